/*-------------------------------------------------------------------------
 *
 * send.c
 *		kliv_mail.send() and what a caller can do with a message afterwards:
 *		cancel(), retry(), wait(), raw_message(), and see where it stands.
 *
 * send() checks its arguments (raising only for them), composes the MIME
 * entity, and makes the rows with kliv_mail._enqueue() under the rights of the
 * extension's owner; the commit wakes a sender (cluster/slots.c).  Whether the mail can
 * leave now is no reason to fail: kliv_mail._send_check() is asked once a
 * statement and account, and a NOTICE says what the mail waits for.
 *
 * Layer: process.  May call address.c, mime.c, guc.c, shmem.c and SPI.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>
#include <unistd.h>

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "base/text.h"
#include "cluster/slots.h"
#include "cluster/wake.h"
#include "message/address.h"
#include "message/compose.h"

#define MAX_RECIPIENTS		50
#define MAX_ATTACHMENTS		100
#define MAX_TAGS			50
#define MAX_KEY_LENGTH		255

/* The arguments of send(), in order. */
enum
{
	ARG_RECIPIENTS,
	ARG_SUBJECT,
	ARG_BODY,
	ARG_HTML,
	ARG_CC,
	ARG_BCC,
	ARG_FROM_ADDRESS,
	ARG_FROM_NAME,
	ARG_REPLY_TO,
	ARG_HEADERS,
	ARG_ATTACHMENTS,
	ARG_MESSAGE_TYPE,
	ARG_SEND_AT,
	ARG_EXPIRES_AT,
	ARG_IDEMPOTENCY_KEY,
	ARG_TAGS,
	ARG_METADATA,
	ARG_ACCOUNT,
	ARG_ON_LIMIT,
	SEND_ARGS
};

/* A send() on its way: its arguments checked, in UTF-8. */
typedef struct SendRequest
{
	KlmContent	content;
	KlmAddress *recipients;		/* to, then cc, then bcc, exact repeats merged */
	const char **kinds;
	int			recipient_count;
	const char *message_type;
	int			priority;
	const char *route;			/* "" or an account's name */
	const char *from_address;	/* as wished, or NULL */
	const char *from_name;
	const char *reply_to;
	bool		smtputf8;
	bool		unsubscribe;	/* the sender is to add each recipient's link */
	bool		error_on_limit;
} SendRequest;

/*
 * What kliv_mail._send_check() said, for this transaction.  One entry for each
 * route and priority, in TopTransactionContext; asked anew by a later statement,
 * since settings may have changed, but noticed stays.
 */
typedef struct SendCheck
{
	struct SendCheck *next;
	TimestampTz statement;
	char		route[NAMEDATALEN];
	int			priority;
	bool		known;
	bool		own;
	char	   *account;
	char	   *from_address;
	char	  **allowed_senders;
	int			allowed_sender_count;
	bool		can_unsubscribe;
	int			room;
	char	   *problem;
	char	   *hint;
	char	   *quota_problem;
	char	   *quota_hint;
	bool		noticed;
	bool		told_sender;	/* what becomes of from_address */
} SendCheck;

static SendCheck *checks = NULL;
static LocalTransactionId checks_lxid = InvalidLocalTransactionId;

PG_FUNCTION_INFO_V1(kliv_mail_send);
PG_FUNCTION_INFO_V1(kliv_mail_cancel);
PG_FUNCTION_INFO_V1(kliv_mail_retry);
PG_FUNCTION_INFO_V1(kliv_mail_wait);
PG_FUNCTION_INFO_V1(kliv_mail_raw_message);
PG_FUNCTION_INFO_V1(kliv_mail__line);

static void refuse(const char *argument, int sqlstate, const char *message, const char *hint)
	pg_attribute_noreturn();
static void check_sizes(FunctionCallInfo fcinfo);
static void read_recipients(FunctionCallInfo fcinfo, SendRequest *request);
static void read_identity(FunctionCallInfo fcinfo, SendRequest *request);
static void read_headers(FunctionCallInfo fcinfo, SendRequest *request);
static void read_attachments(FunctionCallInfo fcinfo, SendRequest *request);
static void read_choices(FunctionCallInfo fcinfo, SendRequest *request);
static void check_times(FunctionCallInfo fcinfo, TimestampTz now);
static void check_tags(FunctionCallInfo fcinfo);
static bytea *fingerprint_arguments(FunctionCallInfo fcinfo);
static SendCheck *ask_account(const SendRequest *request, Oid owner);
static void check_sender_allowed(const SendRequest *request, SendCheck *check);
static void tell_what_it_waits_for(SendCheck *check, int count, int suppressed);
static char *new_message_id(const SendCheck *check, const SendRequest *request);
static int64 enqueue(FunctionCallInfo fcinfo, const SendRequest *request, int first, int count,
					 const char *message_id, StringInfo entity, Oid sender, Oid owner,
					 bytea *fingerprint, TimestampTz now, bool *is_new, int *suppressed);
static Oid	owner_of(FunctionCallInfo fcinfo);
static void enter_owner(Oid owner, Oid *saved_user, int *saved_context);
static void check_may_touch(int64 message_id, Oid caller, Oid owner, bool *own_transaction);
static int64 call_for_message(const char *statement, int64 message_id);

/* ----------------------------------------------------------------
 * send()
 * ----------------------------------------------------------------
 */

Datum
kliv_mail_send(PG_FUNCTION_ARGS)
{
	SendRequest request;
	SendCheck  *check;
	Oid			sender = GetUserId();
	Oid			owner = owner_of(fcinfo);
	TimestampTz now = klm_now();
	bytea	   *fingerprint = NULL;
	int			step;
	int			suppressed = 0;
	int64		first_id = 0;

	PreventCommandIfReadOnly("kliv_mail.send()");

	memset(&request, 0, sizeof(request));
	check_sizes(fcinfo);
	read_choices(fcinfo, &request);
	read_recipients(fcinfo, &request);
	read_identity(fcinfo, &request);
	read_headers(fcinfo, &request);
	read_attachments(fcinfo, &request);
	check_times(fcinfo, now);
	check_tags(fcinfo);
	if (!PG_ARGISNULL(ARG_IDEMPOTENCY_KEY))
		fingerprint = fingerprint_arguments(fcinfo);

	check = ask_account(&request, owner);
	check_sender_allowed(&request, check);
	if (request.unsubscribe && !check->can_unsubscribe)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("marketing mail needs an unsubscribe URL"),
				 errhint("SELECT kliv_mail.set_brand(unsubscribe_url => 'https://example.com/unsubscribe'); sets one for all, a List-Unsubscribe in headers one for this mail.")));
	if (request.error_on_limit && check->room < request.recipient_count)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the quota is used: %s", check->quota_problem),
				 errhint("Nothing was queued. With on_limit => 'defer' the mail waits for the next window; higher limits: kliv_mail.configure_smtp(), kliv_mail.set_limits().")));

	/*
	 * Marketing mail tells each recipient only their own address, so each gets
	 * a message; all other mail is one message with a delivery each.
	 */
	step = request.priority == 2 ? 1 : request.recipient_count;
	for (int first = 0; first < request.recipient_count; first += step)
	{
		char	   *message_id = new_message_id(check, &request);
		StringInfoData entity;
		bool		is_new;
		int64		id;

		request.content.message_id = message_id;
		request.content.date = now;
		if (request.priority == 2)
		{
			request.content.to = &request.recipients[first];
			request.content.to_count = 1;
		}

		initStringInfo(&entity);
		/* The entity goes into the row as bytea: leave room for its header. */
		appendStringInfoSpaces(&entity, VARHDRSZ);
		klm_mime_compose(&request.content, &entity);
		if ((Size) entity.len > (Size) klm_max_message_size * 1024)
			refuse("message", ERRCODE_PROGRAM_LIMIT_EXCEEDED,
				   psprintf("%d kB as composed, over kliv_mail.max_message_size (%d kB)", entity.len / 1024,
							klm_max_message_size),
				   "Send a link instead of the file.");

		id = enqueue(fcinfo, &request, first, step, message_id, &entity, sender, owner, fingerprint,
					 now, &is_new, &suppressed);
		pfree(entity.data);
		if (first == 0)
			first_id = id;
		if (!is_new)
			PG_RETURN_INT64(id);
	}

	tell_what_it_waits_for(check, request.recipient_count, suppressed);
	klm_wake_at_commit(PG_ARGISNULL(ARG_SEND_AT) ? 0 :
					   Max(1, PG_GETARG_TIMESTAMPTZ(ARG_SEND_AT) - klm_test_clock_offset));

	PG_RETURN_INT64(first_id);
}

static void
refuse(const char *argument, int sqlstate, const char *message, const char *hint)
{
	KlmError	error;

	error.sqlstate = sqlstate;
	error.message = (char *) message;
	error.hint = (char *) hint;
	klm_raise(argument, &error, false);
}

/* Refuse what is too large before anything of that size is detoasted. */
static void
check_sizes(FunctionCallInfo fcinfo)
{
	static const struct
	{
		int			number;
		const char *name;
	}			large[] = {
		{ARG_RECIPIENTS, "recipients"}, {ARG_SUBJECT, "subject"}, {ARG_BODY, "body"}, {ARG_HTML, "html"},
		{ARG_CC, "cc"}, {ARG_BCC, "bcc"}, {ARG_FROM_NAME, "from_name"}, {ARG_REPLY_TO, "reply_to"},
		{ARG_HEADERS, "headers"}, {ARG_ATTACHMENTS, "attachments"}, {ARG_METADATA, "metadata"}
	};
	Size		limit = (Size) klm_max_message_size * 1024;
	Size		total = 0;
	StringInfoData parts;

	initStringInfo(&parts);
	for (int i = 0; i < lengthof(large); i++)
	{
		Size		size;

		if (PG_ARGISNULL(large[i].number))
			continue;
		size = toast_raw_datum_size(PG_GETARG_DATUM(large[i].number));
		total += size;
		if (size > limit)
			refuse(large[i].name, ERRCODE_PROGRAM_LIMIT_EXCEEDED,
				   psprintf("%zu kB, over kliv_mail.max_message_size (%d kB)", size / 1024, klm_max_message_size),
				   "Send a link instead of the file.");
		if (size >= 1024)
			appendStringInfo(&parts, "%s%s %zu kB", parts.len > 0 ? ", " : "", large[i].name, size / 1024);
	}
	if (total > limit)
		refuse("message", ERRCODE_PROGRAM_LIMIT_EXCEEDED,
			   psprintf("%zu kB together (%s), over kliv_mail.max_message_size (%d kB)", total / 1024, parts.data,
						klm_max_message_size),
			   "Send a link instead of the file.");
}

/* message_type, account, on_limit and the key. */
static void
read_choices(FunctionCallInfo fcinfo, SendRequest *request)
{
	char	   *type = klm_argument(fcinfo, ARG_MESSAGE_TYPE);
	char	   *limit = klm_argument(fcinfo, ARG_ON_LIMIT);
	char	   *account = klm_argument(fcinfo, ARG_ACCOUNT);
	char	   *key = klm_argument(fcinfo, ARG_IDEMPOTENCY_KEY);

	static const char *const types[] = {"system", "transactional", "marketing"};

	request->message_type = NULL;
	for (int i = 0; i < lengthof(types); i++)
	{
		if (type && strcmp(type, types[i]) == 0)
		{
			request->message_type = types[i];
			request->priority = i;
		}
	}
	if (request->message_type == NULL)
		refuse("message_type", ERRCODE_INVALID_PARAMETER_VALUE,
			   type ? psprintf("\"%s\" is not a message type", type) : "is NULL",
			   "Use system, transactional or marketing.");

	if (limit == NULL || (strcmp(limit, "defer") != 0 && strcmp(limit, "error") != 0))
		refuse("on_limit", ERRCODE_INVALID_PARAMETER_VALUE,
			   limit ? psprintf("\"%s\" is not a choice", limit) : "is NULL",
			   "Use defer (over quota waits) or error.");
	request->error_on_limit = strcmp(limit, "error") == 0;

	if (account && strlen(account) >= NAMEDATALEN)
		refuse("account", ERRCODE_INVALID_PARAMETER_VALUE, "the name is too long",
			   "SELECT account FROM kliv_mail.smtp_settings; lists the accounts.");
	request->route = account ? account : "";

	if (key && key[0] == '\0')
		refuse("idempotency_key", ERRCODE_INVALID_PARAMETER_VALUE, "is empty", "Leave it NULL for none.");
	if (key && strlen(key) > MAX_KEY_LENGTH)
		refuse("idempotency_key", ERRCODE_PROGRAM_LIMIT_EXCEEDED,
			   psprintf("%zu octets, over %d", strlen(key), MAX_KEY_LENGTH), NULL);
}

/* The three lists, and the deliveries they make. */
static void
read_recipients(FunctionCallInfo fcinfo, SendRequest *request)
{
	static const struct
	{
		int			number;
		const char *name;
		const char *kind;
	}			lists[] = {
		{ARG_RECIPIENTS, "recipients", "to"}, {ARG_CC, "cc", "cc"}, {ARG_BCC, "bcc", "bcc"}
	};
	KlmAddress *parsed[lengthof(lists)] = {NULL};
	int			counts[lengthof(lists)] = {0};
	int			total = 0;

	for (int i = 0; i < lengthof(lists); i++)
	{
		char	   *list = klm_argument(fcinfo, lists[i].number);
		KlmError	error;

		if (list == NULL && lists[i].number != ARG_RECIPIENTS)
			continue;
		if (list == NULL)
			refuse("recipients", ERRCODE_INVALID_PARAMETER_VALUE, "is NULL",
				   "Give an address, or several with commas between: 'Ana <ana@example.com>, bob@example.org'.");
		if (lists[i].number != ARG_RECIPIENTS && list[strspn(list, " \t")] == '\0')
			continue;
		if (request->priority == 2 && lists[i].number != ARG_RECIPIENTS)
			refuse(lists[i].name, ERRCODE_INVALID_PARAMETER_VALUE, "marketing mail has no copies",
				   "Each recipient of marketing mail gets a message of their own; name them all in recipients.");
		if (!klm_parse_address_list(list, &parsed[i], &counts[i], &error))
			klm_raise(lists[i].name, &error, false);
		total += counts[i];
	}
	if (total > MAX_RECIPIENTS)
		refuse("recipients", ERRCODE_PROGRAM_LIMIT_EXCEEDED,
			   psprintf("%d addresses, over %d", total, MAX_RECIPIENTS),
			   "Call send() once for each recipient; one statement can: SELECT kliv_mail.send(email, ...) FROM ....");

	request->content.to = parsed[0];
	request->content.to_count = counts[0];
	request->content.cc = parsed[1];
	request->content.cc_count = counts[1];
	request->recipients = palloc(total * sizeof(KlmAddress));
	request->kinds = palloc(total * sizeof(char *));
	for (int i = 0; i < lengthof(lists); i++)
	{
		for (int j = 0; j < counts[i]; j++)
		{
			bool		seen = false;

			for (int k = 0; k < request->recipient_count && !seen; k++)
				seen = strcmp(request->recipients[k].addr, parsed[i][j].addr) == 0;
			if (seen)
				continue;
			request->recipients[request->recipient_count] = parsed[i][j];
			request->kinds[request->recipient_count++] = lists[i].kind;
			/* An address in To or Cc that is not ASCII stands in every copy's header. */
			if (parsed[i][j].smtputf8 && lists[i].number != ARG_BCC)
				request->smtputf8 = true;
		}
	}
}

/* Subject, bodies, and who it shall seem to come from. */
static void
read_identity(FunctionCallInfo fcinfo, SendRequest *request)
{
	char	   *subject = klm_argument(fcinfo, ARG_SUBJECT);
	char	   *from = klm_argument(fcinfo, ARG_FROM_ADDRESS);
	char	   *name = klm_argument(fcinfo, ARG_FROM_NAME);
	char	   *reply_to = klm_argument(fcinfo, ARG_REPLY_TO);
	KlmError	error;

	if (subject == NULL)
		refuse("subject", ERRCODE_INVALID_PARAMETER_VALUE, "is NULL", "Give a subject; '' is one.");
	if (!klm_mime_check_subject(subject, &error))
		klm_raise("subject", &error, false);
	request->content.subject = subject;

	request->content.text = klm_argument(fcinfo, ARG_BODY);
	request->content.html = klm_argument(fcinfo, ARG_HTML);
	if (request->content.text == NULL && request->content.html == NULL)
		refuse("body", ERRCODE_INVALID_PARAMETER_VALUE, "body and html are both NULL",
			   "Give body (plain text), html, or both.");

	if (from)
	{
		KlmAddress	address;

		if (!klm_parse_address(from, &address, &error))
			klm_raise("from_address", &error, false);
		request->from_address = address.addr;
		/* 'Ana <ana@example.com>' names the sender too. */
		if (name == NULL && address.name)
			name = address.name;
		request->smtputf8 |= address.smtputf8;
	}
	if (name && klm_has_unsafe_char(name, false))
		refuse("from_name", ERRCODE_INVALID_PARAMETER_VALUE, "has a line break, control or direction character",
			   "Give the name as plain text on one line.");
	if (name && strlen(name) > 500)
		refuse("from_name", ERRCODE_PROGRAM_LIMIT_EXCEEDED, psprintf("%zu octets, over 500", strlen(name)), NULL);
	request->from_name = name;

	if (reply_to)
	{
		KlmAddress *addresses;
		int			count;

		if (!klm_parse_address_list(reply_to, &addresses, &count, &error))
			klm_raise("reply_to", &error, false);
		if (count > MAX_RECIPIENTS)
			refuse("reply_to", ERRCODE_PROGRAM_LIMIT_EXCEEDED, psprintf("%d addresses, over %d", count, MAX_RECIPIENTS), NULL);
		for (int i = 0; i < count; i++)
			request->smtputf8 |= addresses[i].smtputf8;
	}
	request->reply_to = reply_to;
}

/* The object {"Name": "value"}. */
static void
read_headers(FunctionCallInfo fcinfo, SendRequest *request)
{
	const char *form = "Write an object of names and texts: {\"X-Order\": \"1234\"}.";
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	Jsonb	   *json;
	KlmHeader  *headers = NULL;
	char	   *name = NULL;
	int			count = 0;
	KlmError	error;

	if (!PG_ARGISNULL(ARG_HEADERS))
	{
		json = PG_GETARG_JSONB_P(ARG_HEADERS);
		if (!JB_ROOT_IS_OBJECT(json))
			refuse("headers", ERRCODE_INVALID_PARAMETER_VALUE, "is not an object", form);
		headers = palloc(Max(1, JB_ROOT_COUNT(json)) * sizeof(KlmHeader));
		iterator = JsonbIteratorInit(&json->root);
		while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
		{
			if (token == WJB_KEY)
				name = klm_argument_to_utf8("headers", pnstrdup(value.val.string.val, value.val.string.len));
			else if (token == WJB_VALUE)
			{
				if (value.type != jbvString)
					refuse("headers", ERRCODE_INVALID_PARAMETER_VALUE,
						   psprintf("the value of \"%s\" is not a text", klm_from_utf8(name)), form);
				headers[count].name = name;
				headers[count++].value =
					klm_argument_to_utf8("headers", pnstrdup(value.val.string.val, value.val.string.len));
			}
		}
		if (!klm_mime_check_headers(headers, count, &error))
			klm_raise("headers", &error, false);
		request->content.headers = headers;
		request->content.header_count = count;
	}

	/* Marketing mail carries a way out of it: the caller's, or set_brand()'s. */
	request->unsubscribe = request->priority == 2;
	for (int i = 0; i < count; i++)
	{
		if (pg_strcasecmp(headers[i].name, "List-Unsubscribe") == 0)
			request->unsubscribe = false;
	}
}

/* The array of kliv_mail.attachment, checked again: anybody can build the row by hand. */
static void
read_attachments(FunctionCallInfo fcinfo, SendRequest *request)
{
	ArrayType  *array;
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	Size		total = 0;
	KlmAttachment *attachments;

	if (PG_ARGISNULL(ARG_ATTACHMENTS))
		return;
	array = PG_GETARG_ARRAYTYPE_P(ARG_ATTACHMENTS);
	if (ARR_NDIM(array) == 0)
		return;
	if (ARR_NDIM(array) > 1)
		refuse("attachments", ERRCODE_INVALID_PARAMETER_VALUE, "the array has more than one dimension",
			   "Write ARRAY[kliv_mail.attach('file.pdf', content)].");
	deconstruct_array(array, ARR_ELEMTYPE(array), -1, false, TYPALIGN_DOUBLE, &elements, &nulls,
					  &count);
	if (count > MAX_ATTACHMENTS)
		refuse("attachments", ERRCODE_PROGRAM_LIMIT_EXCEEDED,
			   psprintf("%d files, over %d", count, MAX_ATTACHMENTS), "Put them into an archive.");

	attachments = palloc0(count * sizeof(KlmAttachment));
	for (int i = 0; i < count; i++)
	{
		HeapTupleHeader row;
		bool		isnull[4];
		Datum		fields[4];
		bytea	   *content;
		KlmError	error;

		if (nulls[i])
			refuse("attachments", ERRCODE_INVALID_PARAMETER_VALUE, psprintf("element %d is NULL", i + 1), NULL);
		row = DatumGetHeapTupleHeader(elements[i]);
		for (int j = 0; j < 4; j++)
			fields[j] = GetAttributeByNum(row, j + 1, &isnull[j]);
		if (isnull[0] || isnull[3])
			refuse("attachments", ERRCODE_INVALID_PARAMETER_VALUE,
				   psprintf("element %d has no %s", i + 1, isnull[0] ? "file name" : "content"),
				   "Make it with kliv_mail.attach() or kliv_mail.attach_text().");
		attachments[i].filename = klm_argument_to_utf8("attachments", TextDatumGetCString(fields[0]));
		attachments[i].content_type =
			isnull[1] ? NULL : klm_argument_to_utf8("attachments", TextDatumGetCString(fields[1]));
		attachments[i].content_id = isnull[2] ? NULL : klm_argument_to_utf8("attachments", TextDatumGetCString(fields[2]));
		/* A row may hold its content compressed: check_sizes() saw it so. */
		total += toast_raw_datum_size(fields[3]);
		if (total > (Size) klm_max_message_size * 1024)
			refuse("attachments", ERRCODE_PROGRAM_LIMIT_EXCEEDED,
				   psprintf("over kliv_mail.max_message_size (%d kB)", klm_max_message_size),
				   "Send a link instead of the file.");
		content = DatumGetByteaPP(fields[3]);
		attachments[i].data = VARDATA_ANY(content);
		attachments[i].length = VARSIZE_ANY_EXHDR(content);
		if (!klm_mime_check_attachment(&attachments[i], klm_prohibited_extensions, &error))
			klm_raise("attachments", &error, false);
		for (int j = 0; attachments[i].content_id && j < i; j++)
		{
			if (attachments[j].content_id &&
				strcmp(attachments[i].content_id, attachments[j].content_id) == 0)
				refuse("attachments", ERRCODE_INVALID_PARAMETER_VALUE,
					   psprintf("two files have the content_id \"%s\"", klm_from_utf8(attachments[i].content_id)),
					   "Give each inline file an id of its own.");
		}
	}
	request->content.attachments = attachments;
	request->content.attachment_count = count;
}

static void
check_times(FunctionCallInfo fcinfo, TimestampTz now)
{
	static const int numbers[] = {ARG_SEND_AT, ARG_EXPIRES_AT};
	static const char *const names[] = {"send_at", "expires_at"};
	TimestampTz latest = now + INT64CONST(10) * 366 * USECS_PER_DAY;

	for (int i = 0; i < lengthof(numbers); i++)
	{
		TimestampTz at;

		if (PG_ARGISNULL(numbers[i]))
			continue;
		at = PG_GETARG_TIMESTAMPTZ(numbers[i]);
		if (TIMESTAMP_NOT_FINITE(at) || at > latest)
			refuse(names[i], ERRCODE_INVALID_PARAMETER_VALUE,
				   psprintf("%s is not a time within ten years", timestamptz_to_str(at)), "Leave it NULL for none.");
	}
	if (!PG_ARGISNULL(ARG_EXPIRES_AT))
	{
		TimestampTz expires_at = PG_GETARG_TIMESTAMPTZ(ARG_EXPIRES_AT);

		if (expires_at <= now)
			refuse("expires_at", ERRCODE_INVALID_PARAMETER_VALUE,
				   psprintf("%s has passed", timestamptz_to_str(expires_at)), "Leave it NULL for mail that does not expire.");
		if (!PG_ARGISNULL(ARG_SEND_AT) && expires_at <= PG_GETARG_TIMESTAMPTZ(ARG_SEND_AT))
			refuse("expires_at", ERRCODE_INVALID_PARAMETER_VALUE, "is not after send_at", NULL);
	}
}

static void
check_tags(FunctionCallInfo fcinfo)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	if (PG_ARGISNULL(ARG_TAGS))
		return;
	if (ARR_NDIM(PG_GETARG_ARRAYTYPE_P(ARG_TAGS)) > 1)
		refuse("tags", ERRCODE_INVALID_PARAMETER_VALUE, "the array has more than one dimension",
			   "Write ARRAY['welcome', 'spring'].");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(ARG_TAGS), TEXTOID, -1, false, TYPALIGN_INT, &elements,
					  &nulls, &count);
	if (count > MAX_TAGS)
		refuse("tags", ERRCODE_PROGRAM_LIMIT_EXCEEDED, psprintf("%d tags, over %d", count, MAX_TAGS), NULL);
	for (int i = 0; i < count; i++)
	{
		if (nulls[i] || VARSIZE_ANY_EXHDR(DatumGetPointer(elements[i])) == 0)
			refuse("tags", ERRCODE_INVALID_PARAMETER_VALUE, psprintf("tag %d is NULL or empty", i + 1), NULL);
		if (VARSIZE_ANY_EXHDR(DatumGetPointer(elements[i])) > 128)
			refuse("tags", ERRCODE_PROGRAM_LIMIT_EXCEEDED, psprintf("tag %d has over 128 octets", i + 1), NULL);
	}
}

/* SHA-256 of every argument but the key, so that a key can tell "the same call". */
static bytea *
fingerprint_arguments(FunctionCallInfo fcinfo)
{
	pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA256);
	bytea	   *result = palloc(VARHDRSZ + PG_SHA256_DIGEST_LENGTH);
	bool		ok = context != NULL && pg_cryptohash_init(context) >= 0;

	for (int i = 0; i < SEND_ARGS && ok; i++)
	{
		uint64		size;
		const void *data;
		TimestampTz at;

		if (i == ARG_IDEMPOTENCY_KEY)
			continue;
		if (PG_ARGISNULL(i))
		{
			size = PG_UINT64_MAX;
			data = NULL;
		}
		else if (i == ARG_SEND_AT || i == ARG_EXPIRES_AT)
		{
			at = PG_GETARG_TIMESTAMPTZ(i);
			size = sizeof(at);
			data = &at;
		}
		else
		{
			struct varlena *value = PG_DETOAST_DATUM_PACKED(PG_GETARG_DATUM(i));

			size = VARSIZE_ANY_EXHDR(value);
			data = VARDATA_ANY(value);
		}
		ok = pg_cryptohash_update(context, (const uint8 *) &size, sizeof(size)) >= 0 &&
			(data == NULL || pg_cryptohash_update(context, data, size) >= 0);
	}
	ok =
		ok && pg_cryptohash_final(context, (uint8 *) VARDATA(result), PG_SHA256_DIGEST_LENGTH) >= 0;
	if (context)
		pg_cryptohash_free(context);
	if (!ok)
		elog(ERROR, "could not compute SHA-256");
	SET_VARSIZE(result, VARHDRSZ + PG_SHA256_DIGEST_LENGTH);
	return result;
}

/* ----------------------------------------------------------------
 * What stands in the way
 * ----------------------------------------------------------------
 */

static char *
spi_text(int column, MemoryContext context)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column);

	return value ? MemoryContextStrdup(context, value) : NULL;
}

/* Ask kliv_mail._send_check(), at most once a statement. */
static SendCheck *
ask_account(const SendRequest *request, Oid owner)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {TEXTOID, INT2OID};
	Datum		values[2];
	SendCheck  *check;
	Oid			user;
	int			context;
	bool		isnull;
	Datum		allowed;

	if (checks_lxid != KLM_MY_LXID)
	{
		checks = NULL;
		checks_lxid = KLM_MY_LXID;
	}
	for (check = checks; check; check = check->next)
	{
		if (check->priority == request->priority && strcmp(check->route, request->route) == 0)
			break;
	}
	if (check && check->statement == GetCurrentStatementStartTimestamp())
		return check;
	if (check == NULL)
	{
		check = MemoryContextAllocZero(TopTransactionContext, sizeof(SendCheck));
		strlcpy(check->route, request->route, sizeof(check->route));
		check->priority = request->priority;
		check->next = checks;
		checks = check;
	}
	check->statement = 0;		/* not valid until it is whole */

	enter_owner(owner, &user, &context);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (plan == NULL)
	{
		plan = SPI_prepare("SELECT * FROM kliv_mail._send_check($1, $2)", lengthof(types), (Oid *) types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare: %s", SPI_result_code_string(SPI_result));
	}
	values[0] = CStringGetTextDatum(klm_from_utf8((char *) request->route));
	values[1] = Int16GetDatum(request->priority);
	if (SPI_execute_plan(plan, values, NULL, true, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "kliv_mail._send_check() returned no row");

	check->known =
		DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	check->account = spi_text(2, TopTransactionContext);
	check->own =
		DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3, &isnull)) &&
		!isnull;
	check->from_address = spi_text(4, TopTransactionContext);
	allowed = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 5, &isnull);
	check->allowed_sender_count = 0;
	if (!isnull)
	{
		Datum	   *elements;
		int			count;
		MemoryContext old;

		deconstruct_array(DatumGetArrayTypeP(allowed), TEXTOID, -1, false, TYPALIGN_INT, &elements,
						  NULL, &count);
		old = MemoryContextSwitchTo(TopTransactionContext);
		check->allowed_senders = palloc(Max(1, count) * sizeof(char *));
		for (int i = 0; i < count; i++)
			check->allowed_senders[check->allowed_sender_count++] =
				klm_to_utf8(TextDatumGetCString(elements[i]));
		MemoryContextSwitchTo(old);
	}
	check->can_unsubscribe =
		DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 6, &isnull)) &&
		!isnull;
	check->room =
		DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 7, &isnull));
	check->problem = spi_text(8, TopTransactionContext);
	check->hint = spi_text(9, TopTransactionContext);
	check->quota_problem = spi_text(10, TopTransactionContext);
	check->quota_hint = spi_text(11, TopTransactionContext);
	SPI_finish();
	SetUserIdAndSecContext(user, context);

	if (!check->known)
		refuse("account", ERRCODE_INVALID_PARAMETER_VALUE,
			   psprintf("\"%s\" is not in use", request->route),
			   "SELECT account FROM kliv_mail.smtp_settings WHERE in_use; lists the accounts; kliv_mail.configure_smtp(account => ...) makes one.");
	check->statement = GetCurrentStatementStartTimestamp();
	return check;
}

/*
 * May the account send as from_address?  The platform never does: there the
 * wish becomes Reply-To when the identity lines are made.
 */
static void
check_sender_allowed(const SendRequest *request, SendCheck *check)
{
	if (request->from_address == NULL)
		return;
	if (!check->own)
	{
		if (!check->told_sender)
			ereport(NOTICE,
					(errmsg("the mail leaves from the platform's address; %s",
							request->reply_to ? "from_address is not used" : "from_address becomes Reply-To"),
					 errhint("kliv_mail.configure_smtp() moves to your own provider and sender address.")));
		check->told_sender = true;
		return;
	}
	if (check->from_address && strcmp(check->from_address, request->from_address) == 0)
		return;
	if (klm_address_allowed(request->from_address, (const char **) check->allowed_senders,
							check->allowed_sender_count))
		return;
	refuse("from_address", ERRCODE_INVALID_PARAMETER_VALUE,
		   psprintf("the account \"%s\" may not send as %s", check->account, klm_from_utf8((char *) request->from_address)),
		   psprintf("It sends as %s. An administrator allows more by kliv_mail.update_sender(allowed_senders => "
					"ARRAY[...]), which takes the whole list: addresses, and domains such as '@example.com'.",
					check->from_address ? check->from_address : "no address yet"));
}

/* At most one NOTICE for an account in a transaction, and one a session about the preload. */
static void
tell_what_it_waits_for(SendCheck *check, int count, int suppressed)
{
	static bool told_preload = false;

	if (!klm_preloaded() && !told_preload)
	{
		told_preload = true;
		ereport(NOTICE,
				(errmsg("the mail is queued, but nothing sends it: kliv_mail is not preloaded"),
				 errhint("Add shared_preload_libraries = 'kliv_mail' to postgresql.conf and restart the server.")));
	}
	count -= suppressed;
	/* The same account, asked for another way or with another priority. */
	for (const SendCheck *other = checks; other; other = other->next)
	{
		if (other->noticed && strcmp(other->account, check->account) == 0)
			check->noticed = true;
	}
	if (!check->noticed && suppressed > 0)
	{
		check->noticed = true;
		ereport(NOTICE,
				(errmsg_plural("%d recipient is suppressed and gets no mail",
							   "%d recipients are suppressed and get no mail", suppressed, suppressed),
				 errhint("SELECT recipient, reason, hint FROM kliv_mail.deliveries says which and why.")));
	}
	else if (!check->noticed && count > 0 && check->problem)
	{
		check->noticed = true;
		ereport(NOTICE,
				(errmsg("the mail waits: %s", check->problem),
				 check->hint ? errhint("%s", check->hint) : 0));
	}
	else if (!check->noticed && count > check->room)
	{
		check->noticed = true;
		ereport(NOTICE,
				(errmsg("the mail waits: %s", check->quota_problem),
				 errhint("%s", check->quota_hint)));
	}
	check->room = Max(0, check->room - count);
}

/* ----------------------------------------------------------------
 * The rows
 * ----------------------------------------------------------------
 */

/* A Message-ID (RFC 5322 section 3.6.4) below the sender's domain. */
static char *
new_message_id(const SendCheck *check, const SendRequest *request)
{
	uint8		random[16];
	char		hex[2 * sizeof(random) + 1];
	char		host[256] = "";
	const char *domain = NULL;

	if (!pg_strong_random(random, sizeof(random)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bytes for a Message-ID")));
	hex_encode((char *) random, sizeof(random), hex);
	hex[2 * sizeof(random)] = '\0';

	if (check->own && request->from_address)
		domain = strrchr(request->from_address, '@');
	if (domain == NULL && check->from_address)
		domain = strrchr(check->from_address, '@');
	if (domain)
		return psprintf("%s%s", hex, domain);
	/* No account yet: the machine's name, if it is a whole one. */
	if (gethostname(host, sizeof(host) - 1) != 0 || strchr(host, '.') == NULL ||
		strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-") != strlen(host))
		strlcpy(host, "localhost.localdomain", sizeof(host));
	return psprintf("%s@%s", hex, host);
}

/* Call kliv_mail._enqueue() for recipients [first, first + count) as the owner. */
static int64
enqueue(FunctionCallInfo fcinfo, const SendRequest *request, int first, int count,
		const char *message_id, StringInfo entity, Oid sender, Oid owner, bytea *fingerprint,
		TimestampTz now, bool *is_new, int *suppressed)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {
		NAMEOID,      TEXTOID,        INT2OID,        TEXTOID,       TEXTOID,  TEXTOID,
		TEXTOID,      TEXTOID,        TEXTOID,        TEXTOID,       BYTEAOID, BOOLOID,
		BOOLOID,      TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTARRAYOID,  JSONBOID, TEXTARRAYOID,
		TEXTARRAYOID, TEXTOID,        BYTEAOID,       TIMESTAMPTZOID};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types) + 1];
	Datum	   *recipients = palloc(count * sizeof(Datum));
	Datum	   *kinds = palloc(count * sizeof(Datum));
	NameData	sender_name;
	MemoryContext memory = CurrentMemoryContext;
	ErrorContextCallback *callers = error_context_stack;
	Oid			user;
	int			context;
	int64		id;
	bool		isnull;

	memset(nulls, ' ', lengthof(types));
	nulls[lengthof(types)] = '\0';
#define SET_TEXT(n, utf8) \
	do { \
		const char *value_ = (utf8); \
		if (value_ == NULL) nulls[n] = 'n'; \
		else values[n] = CStringGetTextDatum(klm_from_utf8((char *) value_)); \
	} while (0)
#define SET_ARGUMENT(n, number) \
	do { \
		if (PG_ARGISNULL(number)) nulls[n] = 'n'; \
		else values[n] = PG_GETARG_DATUM(number); \
	} while (0)

	namestrcpy(&sender_name, GetUserNameFromId(sender, false));
	for (int i = 0; i < count; i++)
	{
		recipients[i] = CStringGetTextDatum(klm_from_utf8(request->recipients[first + i].addr));
		kinds[i] = CStringGetTextDatum(request->kinds[first + i]);
	}
	SET_VARSIZE(entity->data, entity->len);

	memset(values, 0, sizeof(values));
	values[0] = NameGetDatum(&sender_name);
	SET_TEXT(1, request->message_type);
	values[2] = Int16GetDatum(request->priority);
	nulls[3] = 'n';				/* no template */
	SET_TEXT(4, request->route);
	SET_TEXT(5, request->from_address);
	SET_TEXT(6, request->from_name);
	SET_TEXT(7, request->reply_to);
	SET_TEXT(8, request->content.subject);
	SET_TEXT(9, message_id);
	values[10] = PointerGetDatum(entity->data);
	values[11] = BoolGetDatum(request->smtputf8);
	values[12] = BoolGetDatum(request->unsubscribe);
	SET_ARGUMENT(13, ARG_SEND_AT);
	SET_ARGUMENT(14, ARG_EXPIRES_AT);
	SET_ARGUMENT(15, ARG_TAGS);
	SET_ARGUMENT(16, ARG_METADATA);
	values[17] =
		PointerGetDatum(construct_array(recipients, count, TEXTOID, -1, false, TYPALIGN_INT));
	values[18] = PointerGetDatum(construct_array(kinds, count, TEXTOID, -1, false, TYPALIGN_INT));
	/* Of several marketing messages of one call, the first carries the key. */
	if (fingerprint && first == 0)
	{
		SET_ARGUMENT(19, ARG_IDEMPOTENCY_KEY);
		values[20] = PointerGetDatum(fingerprint);
	}
	else
		nulls[19] = nulls[20] = 'n';
	values[21] = TimestampTzGetDatum(now);

	enter_owner(owner, &user, &context);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (plan == NULL)
	{
		plan = SPI_prepare("SELECT * FROM kliv_mail._enqueue($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)",
						   lengthof(types), (Oid *) types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare: %s", SPI_result_code_string(SPI_result));
	}
	PG_TRY();
	{
		error_context_stack = NULL;
		if (SPI_execute_plan(plan, values, nulls, false, 1) != SPI_OK_SELECT || SPI_processed != 1)
			elog(ERROR, "kliv_mail._enqueue() returned no row");
		error_context_stack = callers;
	}
	PG_CATCH();
	{
		klm_rethrow(memory);
	}
	PG_END_TRY();
	id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	*is_new = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	*suppressed +=
		DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3, &isnull));
	SPI_finish();
	SetUserIdAndSecContext(user, context);
	return id;
#undef SET_TEXT
#undef SET_ARGUMENT
}

/* The owner of the function that was called, which is the extension's. */
static Oid
owner_of(FunctionCallInfo fcinfo)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(fcinfo->flinfo->fn_oid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", fcinfo->flinfo->fn_oid);
	owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);
	return owner;
}

/* An error restores the caller by itself, as the end of the (sub)transaction does. */
static void
enter_owner(Oid owner, Oid *saved_user, int *saved_context)
{
	GetUserIdAndSecContext(saved_user, saved_context);
	SetUserIdAndSecContext(owner, *saved_context | SECURITY_LOCAL_USERID_CHANGE |
									  SECURITY_RESTRICTED_OPERATION);
}

/* ----------------------------------------------------------------
 * cancel(), retry(), wait()
 * ----------------------------------------------------------------
 */

/*
 * 22023 unless the message is there and the caller may touch it.  Call as the
 * owner, with SPI connected.
 */
static void
check_may_touch(int64 message_id, Oid caller, Oid owner, bool *own_transaction)
{
	static SPIPlanPtr plan = NULL;
	static const Oid types[] = {INT8OID, NAMEOID};
	Datum		values[2];
	NameData	caller_name;
	bool		isnull;
	bool		found;

	if (plan == NULL)
	{
		plan = SPI_prepare("SELECT kliv_mail._may_touch($2, m.sender_role), m.xmin FROM kliv_mail._message AS m WHERE m.id OPERATOR(pg_catalog.=) $1",
						   lengthof(types), (Oid *) types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare: %s", SPI_result_code_string(SPI_result));
	}
	namestrcpy(&caller_name, GetUserNameFromId(caller, false));
	values[0] = Int64GetDatum(message_id);
	values[1] = NameGetDatum(&caller_name);
	if (SPI_execute_plan(plan, values, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not look up a message");
	found = SPI_processed == 1 &&
		DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("message_id: there is no message %lld of yours", (long long) message_id),
				 errhint("SELECT id, subject FROM kliv_mail.messages; lists them.")));
	if (own_transaction)
		*own_transaction = TransactionIdIsCurrentTransactionId(DatumGetTransactionId(
			SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull)));
}

/* Run a statement of one bigint argument that gives one number. */
static int64
call_for_message(const char *statement, int64 message_id)
{
	Oid			type = INT8OID;
	Datum		value = Int64GetDatum(message_id);
	bool		isnull;

	if (SPI_execute_with_args(statement, 1, &type, &value, NULL, false, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not run: %s", statement);
	return DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
}

Datum
kliv_mail_cancel(PG_FUNCTION_ARGS)
{
	int64		message_id = PG_GETARG_INT64(0);
	Oid			owner = owner_of(fcinfo);
	Oid			caller;
	int			context;
	int64		count;

	PreventCommandIfReadOnly("kliv_mail.cancel()");
	enter_owner(owner, &caller, &context);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	check_may_touch(message_id, caller, owner, NULL);
	count = call_for_message("SELECT kliv_mail._cancel($1)", message_id);
	SPI_finish();
	SetUserIdAndSecContext(caller, context);
	if (count > 0)
		klm_changed_at_commit();
	PG_RETURN_BOOL(count > 0);
}

Datum
kliv_mail_retry(PG_FUNCTION_ARGS)
{
	int64		message_id = PG_GETARG_INT64(0);
	Oid			owner = owner_of(fcinfo);
	Oid			caller;
	int			context;
	int64		count;

	PreventCommandIfReadOnly("kliv_mail.retry()");
	enter_owner(owner, &caller, &context);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	check_may_touch(message_id, caller, owner, NULL);
	count = call_for_message("SELECT kliv_mail._retry($1)::bigint", message_id);
	SPI_finish();
	SetUserIdAndSecContext(caller, context);
	if (count > 0)
		klm_wake_at_commit(0);
	PG_RETURN_INT32((int32) count);
}

Datum
kliv_mail_raw_message(PG_FUNCTION_ARGS)
{
	static const Oid types[] = {INT8OID, TEXTOID};
	Oid			owner = owner_of(fcinfo);
	Oid			caller;
	int			context;
	KlmAddress	address;
	KlmError	error;
	Datum		values[2];
	char		nulls[] = "  ";
	MemoryContext memory = CurrentMemoryContext;
	ErrorContextCallback *callers = error_context_stack;
	bool		isnull;
	Datum		result;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	values[0] = PG_GETARG_DATUM(0);
	values[1] = (Datum) 0;
	if (PG_ARGISNULL(1))
		nulls[1] = 'n';
	else
	{
		if (!klm_parse_address(klm_argument(fcinfo, 1), &address, &error))
			klm_raise("recipient", &error, false);
		values[1] = CStringGetTextDatum(klm_from_utf8(address.addr));
	}
	enter_owner(owner, &caller, &context);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	check_may_touch(PG_GETARG_INT64(0), caller, owner, NULL);
	PG_TRY();
	{
		error_context_stack = NULL;
		if (SPI_execute_with_args("SELECT kliv_mail._raw_message($1, $2)", lengthof(types), (Oid *) types, values, nulls,
								  true, 1) != SPI_OK_SELECT || SPI_processed != 1)
			elog(ERROR, "kliv_mail._raw_message() returned no row");
		error_context_stack = callers;
	}
	PG_CATCH();
	{
		klm_rethrow(memory);
	}
	PG_END_TRY();
	result = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	if (!isnull)
		result = SPI_datumTransfer(result, false, -1);
	SPI_finish();
	SetUserIdAndSecContext(caller, context);
	if (isnull)
		PG_RETURN_NULL();
	return result;
}

/*
 * Each look needs a snapshot of its own, which READ COMMITTED gives to each
 * SPI call that is not read-only; above it, nothing new could ever be seen.
 */
Datum
kliv_mail_wait(PG_FUNCTION_ARGS)
{
	int64		message_id = PG_GETARG_INT64(0);
	Interval   *timeout = PG_GETARG_INTERVAL_P(1);
	Oid			owner = owner_of(fcinfo);
	Oid			caller;
	int			context;
	bool		own_transaction;
	uint64		seen;
	TimestampTz deadline;
	bool		finished;
	char	   *status = NULL;
	MemoryContext result_context = CurrentMemoryContext;

	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("kliv_mail.wait() cannot see anything new in this transaction's isolation level"),
				 errhint("Call it in a READ COMMITTED transaction.")));
	if (timeout->month != 0 || timeout->day < 0 || timeout->day > 24 || timeout->time < 0 ||
		timeout->time > (24 - timeout->day) * USECS_PER_DAY)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout: not a time from 0 to 24 days"),
				 errhint("Write for example '30 seconds'.")));
	deadline = GetCurrentTimestamp() + timeout->day * USECS_PER_DAY + timeout->time;

	for (;;)
	{
		Oid			type = INT8OID;
		Datum		value = Int64GetDatum(message_id);
		TimestampTz now;
		TimestampTz next_at;
		TimestampTz at;
		bool		isnull;
		long		wait_ms;

		/* Before the look, so that what is recorded after it wakes us. */
		seen = klm_records();
		enter_owner(owner, &caller, &context);
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "SPI_connect failed");
		check_may_touch(message_id, caller, owner, &own_transaction);
		if (own_transaction)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("message %lld is sent only when this transaction commits", (long long) message_id),
					 errhint("COMMIT first, then call kliv_mail.wait().")));
		if (SPI_execute_with_args("SELECT * FROM kliv_mail._wait_state($1)", 1, &type, &value, NULL, false, 1) != SPI_OK_SELECT ||
			SPI_processed != 1)
			elog(ERROR, "kliv_mail._wait_state() returned no row");
		status = spi_text(1, result_context);
		finished =
			DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
		next_at = DatumGetTimestampTz(
			SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3, &isnull));
		at = DatumGetTimestampTz(
			SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 4, &isnull));
		SPI_finish();
		SetUserIdAndSecContext(caller, context);

		now = GetCurrentTimestamp();
		if (finished || now >= deadline || !klm_preloaded())
			break;
		/* Nothing more can happen before the timeout. */
		if (next_at == DT_NOEND || next_at - at > deadline - now)
			break;
		wait_ms = Max(1, (deadline - now + 999) / 1000);
		/* A time may pass that nobody records: an expiry, a window. */
		if (next_at > at)
			wait_ms = Min(wait_ms, Max(1, (next_at - at + 999) / 1000 + 100));
		klm_wait_for_record(&seen, wait_ms);
		CHECK_FOR_INTERRUPTS();
	}
	/* Not at each look: where it stands in its account's line costs something to say. */
	if (!finished)
	{
		Oid			type = INT8OID;
		Datum		value = Int64GetDatum(message_id);

		enter_owner(owner, &caller, &context);
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "SPI_connect failed");
		if (SPI_execute_with_args("SELECT s.status FROM kliv_mail._message_status AS s WHERE s.message_id OPERATOR(pg_catalog.=) $1",
								  1, &type, &value, NULL, false, 1) != SPI_OK_SELECT)
			elog(ERROR, "could not look up a message");
		if (SPI_processed == 1)
			status = spi_text(1, result_context);
		SPI_finish();
		SetUserIdAndSecContext(caller, context);
	}
	if (status == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(status));
}

/*
 * _line(): where deliveries stand in line, of those alone that the caller may
 * see, since whoever reads the views may call it too.
 */
Datum
kliv_mail__line(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			owner = owner_of(fcinfo);
	Oid			caller;
	int			context;
	Oid			type = NAMEOID;
	NameData	name;
	Datum		value = NameGetDatum(&name);

	InitMaterializedSRF(fcinfo, 0);
	enter_owner(owner, &caller, &context);
	namestrcpy(&name, GetUserNameFromId(caller, false));
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args("SELECT * FROM kliv_mail._line_of($1)", 1, &type, &value, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the line");
	for (uint64 i = 0; i < SPI_processed; i++)
		tuplestore_puttuple(result->setResult, SPI_tuptable->vals[i]);
	SPI_finish();
	SetUserIdAndSecContext(caller, context);
	return (Datum) 0;
}
