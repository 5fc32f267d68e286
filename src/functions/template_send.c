/*-------------------------------------------------------------------------
 *
 * template_send.c
 *		kliv_mail.send_template(), and send_template_batch().
 *
 * In kliv_mail_template.  A template is loaded and compiled once a session, and
 * anew when kliv_mail._template_generation() says that templates or brand have
 * changed; what it becomes goes the way of send().
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "base/text.h"
#include "db/owner_call.h"
#include "functions/send.h"
#include "functions/template_mail.h"
#include "functions/template_values.h"
#include "message/address.h"
#include "template/layout.h"

/* What a session keeps; then it begins anew. */
#define MOST_KEPT 64

/* A template as it is used, in a context of its own. */
typedef struct Kept
{
	struct Kept *next;
	MemoryContext context;
	char	   *name;
	char	   *asked_locale;	/* "" or as the caller wrote it */
	char	   *locale;			/* or NULL */
	char	   *message_type;
	KlmMailSource source;
	KlmBrand	brand;
	char	   *time_zone;
	KlmValue	defaults;
	char	  **required;
	int			required_count;
	Interval   *expires_in;		/* or NULL */
	List	   *partial_names;	/* each asked for once */
	List	   *partials;		/* compiled, or NULL where there is none */
} Kept;

static Kept *kept = NULL;
static int	kept_count = 0;
static char kept_generation[64];

/* What find_partial() needs. */
typedef struct Partials
{
	FunctionCallInfo fcinfo;
	Kept	   *template;
} Partials;

PG_FUNCTION_INFO_V1(kliv_mail_send_template);
PG_FUNCTION_INFO_V1(kliv_mail_send_template_batch);

/* The arguments of send_template(), in order. */
enum
{
	ARG_TEMPLATE,
	ARG_RECIPIENTS,
	ARG_VARIABLES,
	ARG_LOCALE,
	ARG_CC,
	ARG_BCC,
	ARG_FROM_ADDRESS,
	ARG_FROM_NAME,
	ARG_REPLY_TO,
	ARG_HEADERS,
	ARG_ATTACHMENTS,
	ARG_SEND_AT,
	ARG_EXPIRES_AT,
	ARG_IDEMPOTENCY_KEY,
	ARG_REPLACE_KEY,
	ARG_TAGS,
	ARG_METADATA,
	ARG_ACCOUNT,
	ARG_ON_LIMIT,
	ARG_TOPIC
};

/* Those of send_template_batch(). */
enum
{
	BATCH_TEMPLATE,
	BATCH_RECIPIENTS,
	BATCH_VARIABLES,
	BATCH_LOCALE,
	BATCH_SEND_AT,
	BATCH_EXPIRES_AT,
	BATCH_TAGS,
	BATCH_METADATA,
	BATCH_ACCOUNT,
	BATCH_ON_INVALID,
	BATCH_TOPIC
};

/* ----------------------------------------------------------------
 * Templates that the session keeps
 * ----------------------------------------------------------------
 */

static void
forget_all(void)
{
	while (kept)
	{
		Kept	   *next = kept->next;

		MemoryContextDelete(kept->context);
		kept = next;
	}
	kept_count = 0;
}

/* Load a template with all that its mail needs; 22023 where there is none. */
static Kept *
load(FunctionCallInfo fcinfo, const char *name, const char *locale)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "kliv_mail template",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = CurrentMemoryContext;
	Kept	   *new = MemoryContextAllocZero(context, sizeof(Kept));
	KlmCaller	caller;
	KlmCall		call = {0};
	char	   *texts[17];
	bool		isnull;
	Datum		value;

	klm_enter_owner(fcinfo, &caller);
	klm_add_text(&call, name);
	klm_add_text(&call, locale);
	klm_run_one(&call, "load_template", true);
	/* (7, 8 and 9 are no texts) */
	for (int i = 1; i < lengthof(texts); i++)
		texts[i] = i >= 7 && i <= 9 ? NULL : klm_result_text(i, context);
	new->required = klm_result_texts(8, context, &new->required_count);
	MemoryContextSwitchTo(context);
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 7, &isnull);
	new->defaults = klm_value_of_jsonb(DatumGetJsonbPCopy(value));
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 9, &isnull);
	if (!isnull)
	{
		new->expires_in = palloc(sizeof(Interval));
		*new->expires_in = *DatumGetIntervalP(value);
	}
	klm_leave_owner(&caller);

	MemoryContextSwitchTo(context);
	new->context = context;
	new->name = pstrdup(name);
	new->asked_locale = pstrdup(locale ? locale : "");
	new->locale = texts[1];
	new->message_type = texts[6];
	new->source.subject = klm_compile_source("subject", texts[2]);
	new->source.body = klm_compile_source("body", texts[3]);
	new->source.format = klm_body_format(texts[4]);
	new->source.plain_text = texts[5] ? klm_compile_source("plain_text", texts[5]) : NULL;
	new->source.layout = klm_compile_source("layout", texts[10] ? texts[10] : klm_default_layout);
	new->brand.name = texts[11];
	new->brand.logo_url = texts[12];
	new->brand.color = texts[13];
	new->brand.postal_address = texts[14];
	new->brand.footer = texts[15];
	new->time_zone = texts[16];
	MemoryContextSwitchTo(old);
	return new;
}

static Kept *
find_template(FunctionCallInfo fcinfo, const char *name, const char *locale)
{
	KlmCaller	caller;
	KlmCall		call = {0};
	char	   *generation;
	MemoryContext context = CurrentMemoryContext;
	Kept	   *found;

	klm_enter_owner(fcinfo, &caller);
	klm_run_one(&call, "template_generation", true);
	generation = klm_result_text(1, context);
	klm_leave_owner(&caller);
	if (generation == NULL || strcmp(generation, kept_generation) != 0)
		forget_all();
	strlcpy(kept_generation, generation ? generation : "", sizeof(kept_generation));

	for (found = kept; found; found = found->next)
		if (strcmp(found->name, name) == 0 &&
			strcmp(found->asked_locale, locale ? locale : "") == 0)
			return found;
	found = load(fcinfo, name, locale);
	if (kept_count == MOST_KEPT)
		forget_all();
	MemoryContextSetParent(found->context, TopMemoryContext);
	found->next = kept;
	kept = found;
	kept_count++;
	return found;
}

static const KlmTemplate *
find_partial(void *data, const char *name)
{
	Partials   *partials = data;
	Kept	   *template = partials->template;
	KlmTemplate *compiled = NULL;
	MemoryContext old;
	KlmCaller	caller;
	KlmCall		call = {0};
	char	   *source;
	ListCell   *lc;

	foreach(lc, template->partial_names)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return list_nth(template->partials, foreach_current_index(lc));
	}
	old = CurrentMemoryContext;
	klm_enter_owner(partials->fcinfo, &caller);
	klm_add_text(&call, name);
	klm_add_text(&call, template->locale ? template->locale : "");
	klm_run_one(&call, "template_partial", true);
	source = klm_result_text(1, template->context);
	klm_leave_owner(&caller);
	MemoryContextSwitchTo(template->context);
	if (source)
		compiled = klm_compile_source(psprintf("partial \"%s\"", name), source);
	template->partial_names = lappend(template->partial_names, pstrdup(name));
	template->partials = lappend(template->partials, compiled);
	MemoryContextSwitchTo(old);
	return compiled;
}

/* ----------------------------------------------------------------
 * One mail
 * ----------------------------------------------------------------
 */

/* Are the variables an object, with all that must be in it? */
static bool
check_variables(const Kept *template, const KlmValue *variables, KlmError *error)
{
	if (variables->kind != KLM_OBJECT)
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE, "Write {\"firstName\": \"Ana\"}.",
						"variables: is not an object");
	for (int i = 0; i < template->required_count; i++)
	{
		KlmValue	value;
		const char *name = template->required[i];

		if (!variables->reader->member(variables, name, strlen(name), &value) ||
			value.kind == KLM_NULL)
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
							psprintf("SELECT variables FROM kliv_mail.templates WHERE name = '%s'; says what it takes; "
									 "kliv_mail.save_template() can give it a default.", template->name),
							"variables: \"%s\" is missing, which the template \"%s\" needs", name, template->name);
	}
	return true;
}

/* The link in a marketing mail; NULL where there is no URL for it, which send() refuses. */
static char *
unsubscribe_url(FunctionCallInfo fcinfo, const char *address, const char *topic)
{
	MemoryContext context = CurrentMemoryContext;
	KlmCaller	caller;
	KlmCall		call = {0};
	char	   *url;

	klm_enter_owner(fcinfo, &caller);
	klm_add_text(&call, address);
	klm_add_text(&call, topic);
	klm_run_one(&call, "template_unsubscribe", false);
	url = klm_result_text(1, context);
	klm_leave_owner(&caller);
	return url;
}

static bool
render(FunctionCallInfo fcinfo, Kept *template, const char *address, const char *topic,
	   Jsonb *variables, KlmMail *mail, KlmError *error)
{
	KlmFormats	formats = klm_formats_of(template->locale, template->time_zone);
	Partials	partials = {fcinfo, template};
	KlmMailInput input = {
		.defaults = template->defaults, .email = address,
		.timestamp = klm_timestamp_text(&formats), .locale = template->locale,
		.brand = &template->brand, .partial = find_partial, .partial_data = &partials,
		.formats = &formats
	};

	input.variables = klm_value_of_jsonb(variables);
	if (!check_variables(template, &input.variables, error))
		return false;
	if (strcmp(template->message_type, "marketing") == 0)
		input.unsubscribe_url = unsubscribe_url(fcinfo, address, topic);
	if (klm_mail_render(&template->source, &input, mail, NULL, error))
		return true;
	error->message = psprintf("template \"%s\": %s", template->name, error->message);
	return false;
}

static void
set_text(NullableDatum *argument, const char *utf8)
{
	argument->isnull = utf8 == NULL;
	if (utf8)
		argument->value = CStringGetTextDatum(klm_from_utf8_lossy(utf8));
}

/* What send() is called with that the template decides. */
static void
set_mail(FunctionCallInfo send, const Kept *template, const KlmMail *mail)
{
	set_text(&send->args[KLM_SEND_SUBJECT], mail->subject);
	set_text(&send->args[KLM_SEND_BODY], mail->text);
	set_text(&send->args[KLM_SEND_HTML], mail->html);
	set_text(&send->args[KLM_SEND_MESSAGE_TYPE], template->message_type);
	if (send->args[KLM_SEND_EXPIRES_AT].isnull && template->expires_in)
	{
		TimestampTz from = klm_now();

		if (!send->args[KLM_SEND_SEND_AT].isnull)
			from = Max(from, DatumGetTimestampTz(send->args[KLM_SEND_SEND_AT].value));
		send->args[KLM_SEND_EXPIRES_AT].value =
			DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(from),
								IntervalPGetDatum(template->expires_in));
		send->args[KLM_SEND_EXPIRES_AT].isnull = false;
	}
}

static char *
template_argument(FunctionCallInfo fcinfo, int number)
{
	char	   *name = klm_argument(fcinfo, number);

	if (name == NULL)
		klm_refuse("template", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "SELECT name FROM kliv_mail.templates; lists them.", "is NULL");
	return name;
}

/* One address, and no more. */
static bool
read_recipient(const char *text, KlmAddress *address, KlmError *error)
{
	KlmAddress *addresses;
	int			count;

	if (text == NULL)
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE, "Give an address.",
						"recipients: is NULL");
	if (!klm_parse_address_list(text, &addresses, &count, error))
	{
		error->message = psprintf("recipients: %s", error->message);
		return false;
	}
	if (count != 1)
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
						"Use cc and bcc for copies, kliv_mail.send_template_batch() for many.",
						"recipients: %d addresses, and a template is for one", count);
	*address = addresses[0];
	return true;
}

Datum
kliv_mail_send_template(PG_FUNCTION_ARGS)
{
	static const int same[][2] = {
		{ARG_RECIPIENTS, KLM_SEND_RECIPIENTS}, {ARG_CC, KLM_SEND_CC}, {ARG_BCC, KLM_SEND_BCC},
		{ARG_FROM_ADDRESS, KLM_SEND_FROM_ADDRESS}, {ARG_FROM_NAME, KLM_SEND_FROM_NAME},
		{ARG_REPLY_TO, KLM_SEND_REPLY_TO}, {ARG_HEADERS, KLM_SEND_HEADERS},
		{ARG_ATTACHMENTS, KLM_SEND_ATTACHMENTS}, {ARG_SEND_AT, KLM_SEND_SEND_AT},
		{ARG_EXPIRES_AT, KLM_SEND_EXPIRES_AT}, {ARG_IDEMPOTENCY_KEY, KLM_SEND_IDEMPOTENCY_KEY},
		{ARG_REPLACE_KEY, KLM_SEND_REPLACE_KEY}, {ARG_TAGS, KLM_SEND_TAGS},
		{ARG_METADATA, KLM_SEND_METADATA}, {ARG_ACCOUNT, KLM_SEND_ACCOUNT},
		{ARG_ON_LIMIT, KLM_SEND_ON_LIMIT},
		{ARG_TOPIC, KLM_SEND_TOPIC}
	};
	char	   *name = template_argument(fcinfo, ARG_TEMPLATE);
	KlmFromTemplate from = {.name = name};
	KlmAddress	address;
	Kept	   *template;
	KlmMail		mail;
	KlmError	error;

	LOCAL_FCINFO(send, KLM_SEND_ARGS);

	if (!read_recipient(klm_argument(fcinfo, ARG_RECIPIENTS), &address, &error))
		klm_raise(NULL, &error, false);
	if (PG_ARGISNULL(ARG_VARIABLES))
		klm_refuse("variables", ERRCODE_INVALID_PARAMETER_VALUE, false, "Write '{}' for none.",
				   "is NULL");
	template = find_template(fcinfo, name, klm_argument(fcinfo, ARG_LOCALE));
	if (!render(fcinfo, template, address.addr, klm_argument(fcinfo, ARG_TOPIC),
				PG_GETARG_JSONB_P(ARG_VARIABLES), &mail, &error))
		klm_raise(NULL, &error, false);

	InitFunctionCallInfoData(*send, fcinfo->flinfo, KLM_SEND_ARGS, fcinfo->fncollation, NULL, NULL);
	for (int i = 0; i < lengthof(same); i++)
		send->args[same[i][1]] = fcinfo->args[same[i][0]];
	set_mail(send, template, &mail);
	from.subject = fcinfo->args[ARG_TEMPLATE];
	from.body = fcinfo->args[ARG_VARIABLES];
	from.html = fcinfo->args[ARG_LOCALE];
	PG_RETURN_INT64(klm_send(send, &from));
}

/* ----------------------------------------------------------------
 * Many
 * ----------------------------------------------------------------
 */

/* The elements of an array argument of one dimension. */
static void
read_array(FunctionCallInfo fcinfo, int number, const char *argument, Oid type, char align,
		   Datum **elements, bool **nulls, int *count)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(number);

	if (ARR_NDIM(array) > 1)
		klm_refuse(argument, ERRCODE_INVALID_PARAMETER_VALUE, false, NULL,
				   "the array has more than one dimension");
	deconstruct_array(array, type, -1, false, align, elements, nulls, count);
}

/* Queue one of a batch, or false with *error. */
static bool
send_one(FunctionCallInfo fcinfo, FunctionCallInfo send, Kept *template, NullableDatum recipient,
		 Jsonb *variables, KlmSendQueue *queue, int64 *id, KlmError *error)
{
	KlmFromTemplate from = {.name = template->name};
	KlmAddress	address;
	KlmMail		mail;

	if (!read_recipient(recipient.isnull ? NULL :
						klm_to_utf8(TextDatumGetCString(recipient.value)), &address, error) ||
		!render(fcinfo, template, address.addr, klm_argument(fcinfo, BATCH_TOPIC), variables,
				&mail, error))
		return false;
	send->args[KLM_SEND_RECIPIENTS] = recipient;
	set_mail(send, template, &mail);
	klm_send_later(send, &from, queue, id);
	return true;
}

Datum
kliv_mail_send_template_batch(PG_FUNCTION_ARGS)
{
	static const int same[][2] = {
		{BATCH_SEND_AT, KLM_SEND_SEND_AT}, {BATCH_EXPIRES_AT, KLM_SEND_EXPIRES_AT},
		{BATCH_TAGS, KLM_SEND_TAGS}, {BATCH_METADATA, KLM_SEND_METADATA},
		{BATCH_ACCOUNT, KLM_SEND_ACCOUNT}, {BATCH_TOPIC, KLM_SEND_TOPIC}
	};
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *name = template_argument(fcinfo, BATCH_TEMPLATE);
	char	   *locale = klm_argument(fcinfo, BATCH_LOCALE);
	char	   *on_invalid = klm_argument(fcinfo, BATCH_ON_INVALID);
	Jsonb	   *none = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
	Kept	   *template;
	bool		skip;
	Datum	   *recipients;
	Datum	   *variables = NULL;
	bool	   *recipient_nulls;
	bool	   *variable_nulls = NULL;
	int			count;
	int			variable_count = 0;
	int64	   *ids;
	char	  **errors;
	KlmSendQueue *queue;
	MemoryContext each;
	MemoryContext old = CurrentMemoryContext;

	LOCAL_FCINFO(send, KLM_SEND_ARGS);

	if (on_invalid == NULL || (strcmp(on_invalid, "error") != 0 && strcmp(on_invalid, "skip") != 0))
		klm_refuse("on_invalid", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Use error, or skip, which gives a row for each bad one and queues the others.",
				   "\"%s\" is not a choice", on_invalid ? klm_shown(on_invalid, strlen(on_invalid)) : "NULL");
	skip = strcmp(on_invalid, "skip") == 0;
	if (PG_ARGISNULL(BATCH_RECIPIENTS))
		klm_refuse("recipients", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Write ARRAY['ana@example.com', 'bob@example.org'], or (SELECT array_agg(...)).", "is NULL");
	read_array(fcinfo, BATCH_RECIPIENTS, "recipients", TEXTOID, TYPALIGN_INT, &recipients,
			   &recipient_nulls, &count);
	if (!PG_ARGISNULL(BATCH_VARIABLES))
	{
		read_array(fcinfo, BATCH_VARIABLES, "variables", JSONBOID, TYPALIGN_INT, &variables,
				   &variable_nulls, &variable_count);
		if (variable_count != count)
			klm_refuse("variables", ERRCODE_INVALID_PARAMETER_VALUE, false,
					   "Give an object for each recipient, in the same order; NULL for none at all.",
					   "%d elements for %d recipients", variable_count, count);
	}
	InitMaterializedSRF(fcinfo, 0);
	template = find_template(fcinfo, name, locale);
	ids = palloc0(Max(1, count) * sizeof(int64));
	errors = palloc0(Max(1, count) * sizeof(char *));
	queue = klm_send_begin();
	each = AllocSetContextCreate(CurrentMemoryContext, "kliv_mail batch", ALLOCSET_DEFAULT_SIZES);
	InitFunctionCallInfoData(*send, fcinfo->flinfo, KLM_SEND_ARGS, fcinfo->fncollation, NULL, NULL);
	for (int i = 0; i < KLM_SEND_ARGS; i++)
		send->args[i].isnull = true;
	set_text(&send->args[KLM_SEND_ON_LIMIT], "defer");
	MemoryContextSwitchTo(each);
	for (int i = 0; i < count; i++)
	{
		NullableDatum recipient = {recipients[i], recipient_nulls[i]};
		Jsonb	   *own = variables && !variable_nulls[i] ? DatumGetJsonbP(variables[i]) : none;
		KlmError	error;

		CHECK_FOR_INTERRUPTS();
		for (int j = 0; j < lengthof(same); j++)
			send->args[same[j][1]] = fcinfo->args[same[j][0]];
		if (!send_one(fcinfo, send, template, recipient, own, queue, &ids[i], &error))
		{
			if (!skip)
				klm_raise(psprintf("element %d", i + 1), &error, false);
			errors[i] = MemoryContextStrdup(old, klm_from_utf8_lossy(error.message));
		}
		MemoryContextReset(each);
	}
	MemoryContextSwitchTo(old);
	klm_send_flush(send, queue);
	for (int i = 0; i < count; i++)
	{
		Datum		values[3] = {Int64GetDatum(i + 1), Int64GetDatum(ids[i])};
		bool		nulls[3] = {false, errors[i] != NULL, errors[i] == NULL};

		if (errors[i])
			values[2] = CStringGetTextDatum(errors[i]);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
