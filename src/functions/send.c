/*-------------------------------------------------------------------------
 *
 * send.c
 *		kliv_mail.send().
 *
 * send() checks its arguments (raising only for them), composes the MIME
 * entity, and makes the rows (db/rows.c) under the rights of the
 * extension's owner; the commit wakes a sender (cluster/slots.c).  Whether the mail can
 * leave now is no reason to fail: kliv_mail._send_room() is asked once a
 * statement and account, and a NOTICE says what the mail waits for.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "base/text.h"
#include "cluster/slots.h"
#include "cluster/wake.h"
#include "db/owner_call.h"
#include "db/rows.h"
#include "functions/clock.h"
#include "functions/content.h"
#include "functions/current_rows.h"
#include "functions/send.h"
#include "message/address.h"

#define MAX_RECIPIENTS		50
#define MAX_TAGS			50
#define MAX_KEY_LENGTH		255
#define MAX_TOPIC_LENGTH	63

/* In the order in which mail leaves; the last one is also the topic of what names none. */
static const char *const types[] = {"system", "transactional", "marketing"};

/* A send() on its way: its arguments checked, in UTF-8. */
typedef struct SendRequest
{
	KlmContent	content;
	const KlmFromTemplate *template;	/* or NULL */
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
	const char *topic;			/* of marketing mail, else NULL */
	bool		error_on_limit;
} SendRequest;

/*
 * Whose account it is and what kliv_mail._send_room() said, for this transaction: one
 * entry for each route and priority, in TopTransactionContext.  Both are asked
 * anew by a later statement, since settings may have changed; what was told stays
 * told.
 */
typedef struct SendCheck
{
	struct SendCheck *next;
	char		route[NAMEDATALEN];
	int			priority;
	TimestampTz account_asked;	/* by the statement that began then */
	char	   *account;
	bool		own;
	char	   *from_address;
	char	  **allowed_senders;
	int			allowed_sender_count;
	bool		can_unsubscribe;
	TimestampTz room_asked;
	int			room;
	char	   *problem;
	char	   *hint;
	char	   *quota_problem;
	char	   *quota_hint;
	bool		noticed;
	bool		told_sender;	/* what becomes of from_address */
} SendCheck;

/* The columns of _message, and those of _outbox that a new delivery has; in the tables' order. */
enum
{
	M_ID, M_CREATED_AT, M_SENDER_ROLE, M_MESSAGE_TYPE, M_TEMPLATE, M_ACCOUNT, M_FROM_ADDRESS,
	M_FROM_NAME, M_REPLY_TO, M_SUBJECT, M_HEADER_ID, M_ENTITY, M_SMTPUTF8, M_UNSUBSCRIBE, M_TOPIC,
	M_SEND_AT, M_EXPIRES_AT, M_RECIPIENTS, M_TAGS, M_METADATA, M_REPLACE_KEY, M_COLUMNS
};
static const KlmColumn message_columns[M_COLUMNS] = {
	{"id", INT8OID}, {"created_at", TIMESTAMPTZOID}, {"sender_role", NAMEOID}, {"message_type", TEXTOID}, {"template", TEXTOID},
	{"account", TEXTOID}, {"from_address", TEXTOID}, {"from_name", TEXTOID}, {"reply_to", TEXTOID}, {"subject", TEXTOID},
	{"header_id", TEXTOID}, {"entity", BYTEAOID}, {"smtputf8", BOOLOID}, {"unsubscribe", BOOLOID}, {"topic", TEXTOID},
	{"send_at", TIMESTAMPTZOID}, {"expires_at", TIMESTAMPTZOID}, {"recipients", INT4OID}, {"tags", TEXTARRAYOID},
	{"metadata", JSONBOID}, {"replace_key", TEXTOID}
};

enum
{
	D_ID, D_MESSAGE_ID, D_RECIPIENT, D_KIND, D_ORIGIN, D_ROUTE, D_PRIORITY, D_DUE, D_CREATED_AT,
	D_EXPIRES_AT, D_ATTEMPTS, D_DOUBTS, D_DOUBTFUL, D_REPLACE_KEY, D_COLUMNS
};
static const KlmColumn delivery_columns[D_COLUMNS] = {
	{"id", INT8OID}, {"message_id", INT8OID}, {"recipient", TEXTOID}, {"kind", TEXTOID}, {"origin", TEXTOID}, {"route", TEXTOID},
	{"priority", INT2OID}, {"due", TIMESTAMPTZOID}, {"created_at", TIMESTAMPTZOID}, {"expires_at", TIMESTAMPTZOID},
	{"attempts", INT4OID}, {"doubts", INT4OID}, {"doubtful", BOOLOID}, {"replace_key", TEXTOID}
};

/* Rows that go into the tables at once; then, or with so many octets, they do. */
#define QUEUE_ROWS		150
#define QUEUE_OCTETS	(1024 * 1024)

struct KlmSendQueue
{
	MemoryContext context;		/* of all that the queue points at */
	SendCheck  *check;
	TimestampTz due;			/* in real time; 0: now */
	Size		octets;
	TimestampTz now;
	Datum		message[M_COLUMNS];	/* what all messages have in common */
	bool		message_nulls[M_COLUMNS];
	Datum		delivery[D_COLUMNS];
	bool		delivery_nulls[D_COLUMNS];
	Datum		key;			/* the idempotency_key, and */
	bytea	   *fingerprint;	/* that of the other arguments; or NULL */
	int			count;			/* of messages */
	Datum		subjects[QUEUE_ROWS];
	Datum		header_ids[QUEUE_ROWS];
	Datum		entities[QUEUE_ROWS];
	Datum		smtputf8[QUEUE_ROWS];
	int64	   *places[QUEUE_ROWS]; /* where their ids go */
	int			recipient_count;	/* of one message, or as many as messages */
	Datum		recipients[QUEUE_ROWS];
	Datum		kinds[QUEUE_ROWS];
};

static SendCheck *checks = NULL;
static LocalTransactionId checks_lxid = InvalidLocalTransactionId;

PG_FUNCTION_INFO_V1(kliv_mail_send);

static void refuse_choice(const char *argument, const char *value, const char *hint)
	pg_attribute_noreturn();
static void check_sizes(FunctionCallInfo fcinfo);
static void read_recipients(FunctionCallInfo fcinfo, SendRequest *request);
static void read_identity(FunctionCallInfo fcinfo, SendRequest *request);
static bool has_header(const KlmContent *content, const char *name);
static void read_choices(FunctionCallInfo fcinfo, SendRequest *request);
static void read_topic(FunctionCallInfo fcinfo, SendRequest *request);
static void check_key(FunctionCallInfo fcinfo, int number, const char *name);
static void check_times(FunctionCallInfo fcinfo, TimestampTz now);
static void check_tags(FunctionCallInfo fcinfo);
static bytea *fingerprint_arguments(FunctionCallInfo fcinfo, const SendRequest *request);
static SendCheck *find_check(const SendRequest *request);
static SendCheck *ask_account(FunctionCallInfo fcinfo, const SendRequest *request);
static char **texts_of(Datum array, int *count);
static char *platform_sender(FunctionCallInfo fcinfo);
static void ask_room(FunctionCallInfo fcinfo, const SendRequest *request, SendCheck *check);
static void check_sender_allowed(const SendRequest *request, SendCheck *check);
static void tell_what_it_waits_for(SendCheck *check, int count, int suppressed);
static char *new_message_id(const SendCheck *check, const SendRequest *request);
static void add_mail(FunctionCallInfo fcinfo, const KlmFromTemplate *template,
					 KlmSendQueue *queue);
static void add_message(SendRequest *request, const SendCheck *check, KlmSendQueue *queue,
						int first, int count);
static void begin_queue(FunctionCallInfo fcinfo, const SendRequest *request, SendCheck *check,
						TimestampTz now, KlmSendQueue *queue);
static void set_text(Datum *values, bool *nulls, int column, const char *utf8);
static void set_argument(KlmSendQueue *queue, int column, FunctionCallInfo fcinfo, int number);
static int64 *put_into_outbox(FunctionCallInfo fcinfo, KlmSendQueue *queue);
static int64 take_key(KlmSendQueue *queue, Name sender, int64 message);
static int64 call_replace(KlmSendQueue *queue, Name sender, const char *function, int64 message);
static void add_messages(KlmSendQueue *queue, Name sender, const int64 *ids);
static void add_deliveries(KlmSendQueue *queue, const int64 *ids, const int64 *stopped);
static int64 *stop_suppressed(KlmSendQueue *queue, const int64 *ids, int *count);
static void add_texts(KlmCall *call, Datum *elements, int count);

/* ----------------------------------------------------------------
 * send()
 * ----------------------------------------------------------------
 */

Datum
kliv_mail_send(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(klm_send(fcinfo, NULL));
}

int64
klm_send(FunctionCallInfo fcinfo, const KlmFromTemplate *template)
{
	KlmSendQueue queue;

	queue.context = CurrentMemoryContext;
	queue.count = 0;
	add_mail(fcinfo, template, &queue);
	return put_into_outbox(fcinfo, &queue)[0];
}

KlmSendQueue *
klm_send_begin(void)
{
	KlmSendQueue *queue = palloc(sizeof(KlmSendQueue));

	queue->context = AllocSetContextCreate(CurrentMemoryContext, "kliv_mail queue",
										   ALLOCSET_DEFAULT_SIZES);
	queue->count = 0;
	return queue;
}

void
klm_send_later(FunctionCallInfo fcinfo, const KlmFromTemplate *template, KlmSendQueue *queue,
			   int64 *id)
{
	int			first = queue->count;

	add_mail(fcinfo, template, queue);
	queue->places[first] = id;
	if (queue->count > QUEUE_ROWS - MAX_RECIPIENTS || queue->octets >= QUEUE_OCTETS)
		klm_send_flush(fcinfo, queue);
}

void
klm_send_flush(FunctionCallInfo fcinfo, KlmSendQueue *queue)
{
	int64	   *ids;

	if (queue->count == 0)
		return;
	ids = put_into_outbox(fcinfo, queue);
	for (int i = 0; i < queue->count; i++)
		*queue->places[i] = ids[i];
	pfree(ids);
	queue->count = 0;
	MemoryContextReset(queue->context);
}

/* Check the arguments of a call, and compose its messages. */
static void
add_mail(FunctionCallInfo fcinfo, const KlmFromTemplate *template, KlmSendQueue *queue)
{
	SendRequest request;
	SendCheck  *check;
	TimestampTz now = klm_now();

	PreventCommandIfReadOnly("kliv_mail.send()");

	memset(&request, 0, sizeof(request));
	request.template = template;
	check_sizes(fcinfo);
	read_choices(fcinfo, &request);
	read_topic(fcinfo, &request);
	read_recipients(fcinfo, &request);
	read_identity(fcinfo, &request);
	klm_read_headers(fcinfo, KLM_SEND_HEADERS, &request.content);
	klm_read_attachments(fcinfo, KLM_SEND_ATTACHMENTS, &request.content);
	/* Marketing mail carries a way out of it: the caller's, or set_brand()'s. */
	request.unsubscribe = request.priority == 2 && !has_header(&request.content, "List-Unsubscribe");
	check_times(fcinfo, now);
	check_tags(fcinfo);

	check = ask_account(fcinfo, &request);
	check_sender_allowed(&request, check);
	if (request.unsubscribe && !check->can_unsubscribe)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("marketing mail needs an unsubscribe URL"),
				 errhint("SELECT kliv_mail.set_brand(unsubscribe_url => 'https://example.com/unsubscribe'); sets one for all, a List-Unsubscribe in headers one for this mail.")));
	ask_room(fcinfo, &request, check);
	if (request.error_on_limit && check->room < request.recipient_count)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the quota is used: %s", klm_from_utf8_lossy(check->quota_problem)),
				 errhint("Nothing was queued. With on_limit => 'defer' the mail waits for the next window; higher limits: kliv_mail.configure_smtp(), kliv_mail.set_limits().")));

	if (queue->count == 0)
		begin_queue(fcinfo, &request, check, now, queue);
	/* The day that it is for, where that is a later one. */
	request.content.date = PG_ARGISNULL(KLM_SEND_SEND_AT) ? now :
		Max(now, PG_GETARG_TIMESTAMPTZ(KLM_SEND_SEND_AT));

	/*
	 * Marketing mail tells each recipient only their own address, so each gets
	 * a message; all other mail is one message with a delivery each.
	 */
	if (request.priority != 2)
		add_message(&request, check, queue, 0, request.recipient_count);
	for (int i = 0; request.priority == 2 && i < request.recipient_count; i++)
	{
		request.content.to = &request.recipients[i];
		request.content.to_count = 1;
		add_message(&request, check, queue, i, 1);
	}
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
		{KLM_SEND_RECIPIENTS, "recipients"}, {KLM_SEND_SUBJECT, "subject"}, {KLM_SEND_BODY, "body"}, {KLM_SEND_HTML, "html"},
		{KLM_SEND_CC, "cc"}, {KLM_SEND_BCC, "bcc"}, {KLM_SEND_FROM_NAME, "from_name"}, {KLM_SEND_REPLY_TO, "reply_to"},
		{KLM_SEND_HEADERS, "headers"}, {KLM_SEND_ATTACHMENTS, "attachments"}, {KLM_SEND_METADATA, "metadata"},
		{KLM_SEND_FROM_ADDRESS, "from_address"}, {KLM_SEND_MESSAGE_TYPE, "message_type"},
		{KLM_SEND_IDEMPOTENCY_KEY, "idempotency_key"}, {KLM_SEND_REPLACE_KEY, "replace_key"}, {KLM_SEND_TAGS, "tags"}, {KLM_SEND_TOPIC, "topic"}, {KLM_SEND_ACCOUNT, "account"},
		{KLM_SEND_ON_LIMIT, "on_limit"}
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
			klm_refuse(large[i].name, ERRCODE_PROGRAM_LIMIT_EXCEEDED, false,
					   "Send a link instead of the file.",
					   "%zu kB, over kliv_mail.max_message_size (%d kB)", size / 1024, klm_max_message_size);
		if (size >= 1024)
			appendStringInfo(&parts, "%s%s %zu kB", parts.len > 0 ? ", " : "", large[i].name, size / 1024);
	}
	if (total > limit)
		klm_refuse("message", ERRCODE_PROGRAM_LIMIT_EXCEEDED, false,
				   "Send a link instead of the file.",
				   "%zu kB together (%s), over kliv_mail.max_message_size (%d kB)", total / 1024, parts.data, klm_max_message_size);
}

/* A text that is none of the choices, or NULL. */
static void
refuse_choice(const char *argument, const char *value, const char *hint)
{
	if (value == NULL)
		klm_refuse(argument, ERRCODE_INVALID_PARAMETER_VALUE, false, hint, "is NULL");
	klm_refuse(argument, ERRCODE_INVALID_PARAMETER_VALUE, false, hint,
			   "\"%s\" is not a choice", klm_shown(value, strlen(value)));
}

/* message_type, account, on_limit and the keys. */
static void
read_choices(FunctionCallInfo fcinfo, SendRequest *request)
{
	char	   *type = klm_argument(fcinfo, KLM_SEND_MESSAGE_TYPE);
	char	   *limit = klm_argument(fcinfo, KLM_SEND_ON_LIMIT);
	char	   *account = klm_argument(fcinfo, KLM_SEND_ACCOUNT);

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
		refuse_choice("message_type", type, "Use system, transactional or marketing.");

	if (limit == NULL || (strcmp(limit, "defer") != 0 && strcmp(limit, "error") != 0))
		refuse_choice("on_limit", limit, "Use defer (over quota waits) or error.");
	request->error_on_limit = strcmp(limit, "error") == 0;

	if (account && strlen(account) >= NAMEDATALEN)
		klm_refuse("account", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "SELECT account FROM kliv_mail.smtp_settings; lists the accounts.",
				   "the name is too long");
	request->route = account ? account : "";

	check_key(fcinfo, KLM_SEND_IDEMPOTENCY_KEY, "idempotency_key");
	check_key(fcinfo, KLM_SEND_REPLACE_KEY, "replace_key");
}

static void
check_key(FunctionCallInfo fcinfo, int number, const char *name)
{
	char	   *key = klm_argument(fcinfo, number);

	if (key && key[0] == '\0')
		klm_refuse(name, ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Leave it NULL for none.",
				   "is empty");
	if (key && strlen(key) > MAX_KEY_LENGTH)
		klm_refuse(name, ERRCODE_PROGRAM_LIMIT_EXCEEDED, false,
				   NULL,
				   "%zu octets, over %d", strlen(key), MAX_KEY_LENGTH);
}

/* What the recipients can leave by themselves; marketing mail has one in any case. */
static void
read_topic(FunctionCallInfo fcinfo, SendRequest *request)
{
	char	   *topic = klm_argument(fcinfo, KLM_SEND_TOPIC);

	if (topic && request->priority != 2)
		klm_refuse("topic", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Use it with message_type => 'marketing': recipients cannot leave other mail.",
				   "%s mail has no topic", request->message_type);
	/* As kliv_mail._topic_name() has it; what stops all mail is no topic. */
	if (topic && (topic[0] == '\0' || strlen(topic) > MAX_TOPIC_LENGTH ||
				  topic[strspn(topic, "abcdefghijklmnopqrstuvwxyz0123456789_-")] != '\0' ||
				  strcmp(topic, "all") == 0))
		klm_refuse("topic", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "It has 1 to 63 of a-z, 0-9, _ and -, and is not all.",
				   "\"%s\" is not a topic", klm_shown(topic, strlen(topic)));
	request->topic = topic ? topic : request->priority == 2 ? types[2] : NULL;
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
		{KLM_SEND_RECIPIENTS, "recipients", "to"}, {KLM_SEND_CC, "cc", "cc"}, {KLM_SEND_BCC, "bcc", "bcc"}
	};
	KlmAddress *parsed[lengthof(lists)] = {NULL};
	int			counts[lengthof(lists)] = {0};
	int			total = 0;

	for (int i = 0; i < lengthof(lists); i++)
	{
		char	   *list = klm_argument(fcinfo, lists[i].number);
		KlmError	error;

		if (list == NULL && lists[i].number != KLM_SEND_RECIPIENTS)
			continue;
		if (list == NULL)
			klm_refuse("recipients", ERRCODE_INVALID_PARAMETER_VALUE, false,
					   "Give an address, or several with commas between: 'Ana <ana@example.com>, bob@example.org'.",
					   "is NULL");
		if (lists[i].number != KLM_SEND_RECIPIENTS && list[strspn(list, " \t")] == '\0')
			continue;
		if (request->priority == 2 && lists[i].number != KLM_SEND_RECIPIENTS)
			klm_refuse(lists[i].name, ERRCODE_INVALID_PARAMETER_VALUE, false,
					   "Each recipient of marketing mail gets a message of their own; name them all in recipients.",
					   "marketing mail has no copies");
		if (!klm_parse_address_list(list, &parsed[i], &counts[i], &error))
			klm_raise(lists[i].name, &error, false);
		total += counts[i];
	}
	if (total > MAX_RECIPIENTS)
		klm_refuse("recipients", ERRCODE_PROGRAM_LIMIT_EXCEEDED, false,
				   "Call send() once for each recipient; one statement can: SELECT kliv_mail.send(email, ...) FROM ....",
				   "%d addresses, over %d", total, MAX_RECIPIENTS);

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
			if (parsed[i][j].smtputf8 && lists[i].number != KLM_SEND_BCC)
				request->smtputf8 = true;
		}
	}
}

/* Subject, bodies, and who it shall seem to come from. */
static void
read_identity(FunctionCallInfo fcinfo, SendRequest *request)
{
	char	   *subject = klm_argument(fcinfo, KLM_SEND_SUBJECT);
	char	   *from = klm_argument(fcinfo, KLM_SEND_FROM_ADDRESS);
	char	   *name = klm_argument(fcinfo, KLM_SEND_FROM_NAME);
	char	   *reply_to = klm_argument(fcinfo, KLM_SEND_REPLY_TO);
	KlmError	error;

	if (subject == NULL)
		klm_refuse("subject", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Give a subject; '' is one.",
				   "is NULL");
	if (!klm_mime_check_subject(subject, &error))
		klm_raise("subject", &error, false);
	request->content.subject = subject;

	request->content.text = klm_argument(fcinfo, KLM_SEND_BODY);
	request->content.html = klm_argument(fcinfo, KLM_SEND_HTML);
	if (request->content.text == NULL && request->content.html == NULL)
		klm_refuse("body", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Give body (plain text), html, or both.",
				   "body and html are both NULL");

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
		klm_refuse("from_name", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Give the name as plain text on one line.",
				   "has a line break, control or direction character");
	if (name && strlen(name) > 500)
		klm_refuse("from_name", ERRCODE_PROGRAM_LIMIT_EXCEEDED, false,
				   NULL,
				   "%zu octets, over 500", strlen(name));
	request->from_name = name;

	if (reply_to)
	{
		KlmAddress *addresses;
		int			count;

		if (!klm_parse_address_list(reply_to, &addresses, &count, &error))
			klm_raise("reply_to", &error, false);
		if (count > MAX_RECIPIENTS)
			klm_refuse("reply_to", ERRCODE_PROGRAM_LIMIT_EXCEEDED, false,
					   NULL,
					   "%d addresses, over %d", count, MAX_RECIPIENTS);
		for (int i = 0; i < count; i++)
			request->smtputf8 |= addresses[i].smtputf8;
	}
	request->reply_to = reply_to;
}

static bool
has_header(const KlmContent *content, const char *name)
{
	for (int i = 0; i < content->header_count; i++)
		if (pg_strcasecmp(content->headers[i].name, name) == 0)
			return true;
	return false;
}

void
klm_check_time(const char *argument, TimestampTz at, const char *hint)
{
	if (TIMESTAMP_NOT_FINITE(at) || at > klm_now() + INT64CONST(10) * 366 * USECS_PER_DAY)
		klm_refuse(argument, ERRCODE_INVALID_PARAMETER_VALUE, false, hint,
				   "%s is not a time within ten years", timestamptz_to_str(at));
}

static void
check_times(FunctionCallInfo fcinfo, TimestampTz now)
{
	static const int numbers[] = {KLM_SEND_SEND_AT, KLM_SEND_EXPIRES_AT};
	static const char *const names[] = {"send_at", "expires_at"};

	for (int i = 0; i < lengthof(numbers); i++)
		if (!PG_ARGISNULL(numbers[i]))
			klm_check_time(names[i], PG_GETARG_TIMESTAMPTZ(numbers[i]), "Leave it NULL for none.");
	if (!PG_ARGISNULL(KLM_SEND_EXPIRES_AT))
	{
		TimestampTz expires_at = PG_GETARG_TIMESTAMPTZ(KLM_SEND_EXPIRES_AT);

		if (expires_at <= now)
			klm_refuse("expires_at", ERRCODE_INVALID_PARAMETER_VALUE, false,
					   "Leave it NULL for mail that does not expire.",
					   "%s has passed", timestamptz_to_str(expires_at));
		if (!PG_ARGISNULL(KLM_SEND_SEND_AT) &&
			expires_at <= PG_GETARG_TIMESTAMPTZ(KLM_SEND_SEND_AT))
			klm_refuse("expires_at", ERRCODE_INVALID_PARAMETER_VALUE, false,
					   NULL,
					   "is not after send_at");
	}
}

static void
check_tags(FunctionCallInfo fcinfo)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	if (PG_ARGISNULL(KLM_SEND_TAGS))
		return;
	if (ARR_NDIM(PG_GETARG_ARRAYTYPE_P(KLM_SEND_TAGS)) > 1)
		klm_refuse("tags", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Write ARRAY['welcome', 'spring'].",
				   "the array has more than one dimension");
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(KLM_SEND_TAGS), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements,
					  &nulls, &count);
	if (count > MAX_TAGS)
		klm_refuse("tags", ERRCODE_PROGRAM_LIMIT_EXCEEDED, false,
				   NULL,
				   "%d tags, over %d", count, MAX_TAGS);
	for (int i = 0; i < count; i++)
	{
		if (nulls[i] || VARSIZE_ANY_EXHDR(DatumGetPointer(elements[i])) == 0)
			klm_refuse("tags", ERRCODE_INVALID_PARAMETER_VALUE, false,
					   NULL,
					   "tag %d is NULL or empty", i + 1);
		if (VARSIZE_ANY_EXHDR(DatumGetPointer(elements[i])) > 128)
			klm_refuse("tags", ERRCODE_PROGRAM_LIMIT_EXCEEDED, false,
					   NULL,
					   "tag %d has over 128 octets", i + 1);
	}
}

/* Add a value behind its length, so that no two lists of values look alike; NULL has its own. */
static bool
hash_value(pg_cryptohash_ctx *context, const void *data, Size length)
{
	uint64		size = data ? length : PG_UINT64_MAX;

	return pg_cryptohash_update(context, (const uint8 *) &size, sizeof(size)) >= 0 &&
		(data == NULL || pg_cryptohash_update(context, data, length) >= 0);
}

static bool
hash_text(pg_cryptohash_ctx *context, const char *text)
{
	return hash_value(context, text, text ? strlen(text) : 0);
}

/*
 * SHA-256 of the arguments, so that a key can tell "the same call".  The key
 * itself is not one of them, nor is expires_at, which is mostly a time from now.
 * Attachments count as what they hold: a row can have it compressed or not.
 */
static bytea *
fingerprint_arguments(FunctionCallInfo fcinfo, const SendRequest *request)
{
	pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA256);
	bytea	   *result = palloc(VARHDRSZ + PG_SHA256_DIGEST_LENGTH);
	bool		ok = context != NULL && pg_cryptohash_init(context) >= 0;

	for (int i = 0; i < KLM_SEND_ARGS && ok; i++)
	{
		NullableDatum argument;

		if (i == KLM_SEND_IDEMPOTENCY_KEY || i == KLM_SEND_EXPIRES_AT || i == KLM_SEND_ATTACHMENTS)
			continue;
		argument = request->template == NULL ? fcinfo->args[i] :
			i == KLM_SEND_SUBJECT ? request->template->subject :
			i == KLM_SEND_BODY ? request->template->body :
			i == KLM_SEND_HTML ? request->template->html : fcinfo->args[i];
		if (argument.isnull)
			ok = hash_value(context, NULL, 0);
		else if (i == KLM_SEND_SEND_AT)
		{
			TimestampTz at = DatumGetTimestampTz(argument.value);

			ok = hash_value(context, &at, sizeof(at));
		}
		else
		{
			struct varlena *value = PG_DETOAST_DATUM_PACKED(argument.value);

			ok = hash_value(context, VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
		}
	}
	for (int i = 0; i < request->content.attachment_count && ok; i++)
	{
		const KlmAttachment *file = &request->content.attachments[i];

		ok = hash_text(context, file->filename) && hash_text(context, file->content_type) &&
			hash_text(context, file->content_id) && hash_value(context, file->data, file->length);
	}
	ok = ok && pg_cryptohash_final(context, (uint8 *) VARDATA(result),
								   PG_SHA256_DIGEST_LENGTH) >= 0;
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

/* The entry of the request's route and priority. */
static SendCheck *
find_check(const SendRequest *request)
{
	SendCheck  *check;

	if (checks_lxid != KLM_MY_LXID)
	{
		checks = NULL;
		checks_lxid = KLM_MY_LXID;
	}
	for (check = checks; check; check = check->next)
		if (check->priority == request->priority && strcmp(check->route, request->route) == 0)
			return check;
	check = MemoryContextAllocZero(TopTransactionContext, sizeof(SendCheck));
	strlcpy(check->route, request->route, sizeof(check->route));
	check->priority = request->priority;
	check->next = checks;
	checks = check;
	return check;
}

/*
 * Whose account mail of the route goes by (as kliv_mail._default_account() has it), and
 * what arguments are checked against: read at most once a statement, without locks.
 */
static SendCheck *
ask_account(FunctionCallInfo fcinfo, const SendRequest *request)
{
	static const char *const columns[] = {"in_use", "from_address", "allowed_senders"};
	static const char *const url[] = {"unsubscribe_url"};
	SendCheck  *check = find_check(request);
	const char *name = request->route[0] ? request->route : "custom";
	Datum		values[lengthof(columns)];
	bool		nulls[lengthof(columns)];
	MemoryContext old;

	if (check->account_asked == GetCurrentStatementStartTimestamp())
		return check;
	check->account_asked = 0;	/* not valid until it is whole */
	check->own = klm_current_row("_account", "_account_pkey", klm_from_utf8(name), columns,
								 lengthof(columns), values, nulls) && DatumGetBool(values[0]);
	if (!check->own && request->route[0] && strcmp(request->route, KLM_PLATFORM) != 0)
		klm_refuse("account", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "SELECT account FROM kliv_mail.smtp_settings WHERE in_use; lists the accounts; "
				   "kliv_mail.configure_smtp(account => ...) makes one.",
				   "\"%s\" is not in use", klm_shown(request->route, strlen(request->route)));
	old = MemoryContextSwitchTo(TopTransactionContext);
	check->account = pstrdup(check->own ? name : KLM_PLATFORM);
	check->allowed_sender_count = 0;
	if (check->own)
	{
		check->from_address = nulls[1] ? NULL :
			pstrdup(klm_to_utf8(TextDatumGetCString(values[1])));
		check->allowed_senders = texts_of(values[2], &check->allowed_sender_count);
	}
	else
		check->from_address = platform_sender(fcinfo);
	MemoryContextSwitchTo(old);
	if (request->priority == 2)
		check->can_unsubscribe = klm_current_row("_brand", NULL, NULL, url, 1, values, nulls) &&
			!nulls[0];
	check->account_asked = GetCurrentStatementStartTimestamp();
	return check;
}

/* The elements of a text[] in UTF-8, without the NULLs. */
static char **
texts_of(Datum array, int *count)
{
	Datum	   *elements;
	bool	   *nulls;
	int			length;
	char	  **texts;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT, &elements,
					  &nulls, &length);
	texts = palloc(Max(1, length) * sizeof(char *));
	*count = 0;
	for (int i = 0; i < length; i++)
		if (!nulls[i])
			texts[(*count)++] = pstrdup(klm_to_utf8(TextDatumGetCString(elements[i])));
	return texts;
}

/*
 * The platform's address as kliv_mail._platform() has it, in UTF-8, or NULL.  It depends
 * on these settings alone, and a session keeps it until one of them is another.
 */
static char *
platform_sender(FunctionCallInfo fcinfo)
{
	static char *settings = NULL;
	static char *address = NULL;
	char	   *present = psprintf("%d %s %s", klm_in_sandbox(), klm_platform_url,
								   klm_platform_from);

	if (settings == NULL || strcmp(present, settings) != 0)
	{
		KlmCaller	caller;
		KlmCall		call = {0};

		if (settings)
			pfree(settings);
		if (address)
			pfree(address);
		settings = address = NULL;
		klm_enter_owner(fcinfo, &caller);
		klm_run_one(&call, "platform", true);
		address = klm_result_text(6, TopMemoryContext);
		klm_leave_owner(&caller);
		settings = MemoryContextStrdup(TopMemoryContext, present);
	}
	return address ? pstrdup(address) : NULL;
}

/*
 * Ask kliv_mail._send_room().  With on_limit => 'error' at each call, since the
 * statement may have queued other mail before, and savepoints give room back; it
 * sees what is committed now and what this transaction did, and locks nothing.
 *
 * For the NOTICE once a statement, and no more once the account's has been given;
 * in a SERIALIZABLE transaction not at all: what a look reads other callers write,
 * and PostgreSQL would abort one of two that have nothing to do with each other.
 * (Who asks for an error there asks for that too.)
 */
static void
ask_room(FunctionCallInfo fcinfo, const SendRequest *request, SendCheck *check)
{
	KlmCaller	caller;
	KlmCall		call = {0};

	/* The same account, asked for another way or with another priority. */
	for (const SendCheck *other = checks; other; other = other->next)
		if (other->noticed && strcmp(other->account, check->account) == 0)
			check->noticed = true;
	if (!request->error_on_limit &&
		(check->noticed || IsolationIsSerializable() || !message_level_is_interesting(NOTICE) ||
		 check->room_asked == GetCurrentStatementStartTimestamp()))
		return;
	check->room_asked = 0;
	CommandCounterIncrement();
	klm_enter_owner(fcinfo, &caller);
	PushActiveSnapshot(GetLatestSnapshot());
	klm_add_text(&call, check->account);
	klm_add(&call, INT2OID, Int16GetDatum(request->priority), false);
	klm_add(&call, INT4OID, Int32GetDatum(request->recipient_count), !request->error_on_limit);
	klm_run_one(&call, "send_room", true);
	check->room = klm_result_int8(1);
	check->problem = klm_result_text(2, TopTransactionContext);
	check->hint = klm_result_text(3, TopTransactionContext);
	check->quota_problem = klm_result_text(4, TopTransactionContext);
	check->quota_hint = klm_result_text(5, TopTransactionContext);
	PopActiveSnapshot();
	klm_leave_owner(&caller);
	check->room_asked = GetCurrentStatementStartTimestamp();
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
	if (klm_may_send_as(request->from_address, check->from_address, check->allowed_senders,
						check->allowed_sender_count))
		return;
	klm_refuse("from_address", ERRCODE_INVALID_PARAMETER_VALUE, false,
			   psprintf("It sends as %s. An administrator allows more by "
						"kliv_mail.update_sender(allowed_senders => ARRAY[...]), which takes the whole "
						"list: addresses, and domains such as '@example.com'.",
						check->from_address ? check->from_address : "no address yet"),
			   "the account \"%s\" may not send as %s", check->account,
			   klm_shown(request->from_address, strlen(request->from_address)));
}

/* At most one NOTICE for an account in a transaction, and one a session about the preload. */
static void
tell_what_it_waits_for(SendCheck *check, int count, int suppressed)
{
	static bool told_preload = false;

	if (!klm_preloaded() && !told_preload)
	{
		const char *others = shared_preload_libraries_string;

		told_preload = true;
		ereport(NOTICE,
				(errmsg("the mail is queued, but nothing sends it: kliv_mail is not preloaded"),
				 others == NULL || others[0] == '\0' ?
				 errhint("Add shared_preload_libraries = 'kliv_mail' to postgresql.conf and restart "
						 "the server.") :
				 errhint("Add kliv_mail to what shared_preload_libraries in postgresql.conf has "
						 "and restart the server.")));
	}
	if (check->noticed)
		return;
	count -= suppressed;
	if (suppressed > 0)
	{
		check->noticed = true;
		ereport(NOTICE,
				(errmsg_plural("%d recipient is suppressed and gets no mail",
							   "%d recipients are suppressed and get no mail", suppressed, suppressed),
				 errhint("SELECT recipient, reason, hint FROM kliv_mail.deliveries says which and why.")));
	}
	else if (check->room_asked == 0)
		return;
	else if (count > 0 && check->problem)
	{
		check->noticed = true;
		ereport(NOTICE,
				(errmsg("the mail waits: %s", klm_from_utf8_lossy(check->problem)),
				 check->hint ? errhint("%s", klm_from_utf8_lossy(check->hint)) : 0));
	}
	else if (count > check->room)
	{
		check->noticed = true;
		ereport(NOTICE,
				(errmsg("the mail waits: %s", klm_from_utf8_lossy(check->quota_problem)),
				 errhint("%s", klm_from_utf8_lossy(check->quota_hint))));
	}
	else
		check->room -= count;
}

/* ----------------------------------------------------------------
 * The rows
 * ----------------------------------------------------------------
 */

/*
 * A Message-ID (RFC 5322 section 3.6.4) below the sender's domain; without an
 * account only its left side, which the sender completes.
 */
static char *
new_message_id(const SendCheck *check, const SendRequest *request)
{
	static uint8 pool[64 * 16]; /* for many, since each call of the generator has its cost */
	static int	left = 0;
	char		hex[2 * 16 + 1];
	const char *domain = NULL;

	if (left == 0)
	{
		if (!pg_strong_random(pool, sizeof(pool)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate random bytes for a Message-ID")));
		left = sizeof(pool);
	}
	left -= 16;
	hex_encode((char *) pool + left, 16, hex);
	hex[2 * 16] = '\0';

	if (check->own && request->from_address)
		domain = strrchr(request->from_address, '@');
	if (domain == NULL && check->from_address)
		domain = strrchr(check->from_address, '@');
	return psprintf("%s%s", hex, domain ? domain : "");
}

/* Compose a message to recipients [first, first + count). */
static void
add_message(SendRequest *request, const SendCheck *check, KlmSendQueue *queue, int first, int count)
{
	MemoryContext old = MemoryContextSwitchTo(queue->context);
	char	   *message_id = new_message_id(check, request);
	StringInfoData entity;

	/* The entity goes into the row as bytea: leave room for its header. */
	initStringInfo(&entity);
	appendStringInfoSpaces(&entity, VARHDRSZ);
	MemoryContextSwitchTo(old);
	request->content.message_id = message_id;
	klm_mime_compose(&request->content, &entity);
	if ((Size) entity.len > (Size) klm_max_message_size * 1024)
		klm_refuse("message", ERRCODE_PROGRAM_LIMIT_EXCEEDED, false,
				   "Send a link instead of the file.",
				   "%d kB as composed, over kliv_mail.max_message_size (%d kB)", entity.len / 1024, klm_max_message_size);
	SET_VARSIZE(entity.data, entity.len);
	queue->octets += entity.len;

	MemoryContextSwitchTo(queue->context);
	queue->subjects[queue->count] = CStringGetTextDatum(klm_from_utf8(request->content.subject));
	queue->header_ids[queue->count] = CStringGetTextDatum(klm_from_utf8(message_id));
	queue->entities[queue->count] = PointerGetDatum(entity.data);
	queue->smtputf8[queue->count] = BoolGetDatum(request->smtputf8);
	queue->count++;
	for (int i = first; i < first + count; i++)
	{
		queue->recipients[queue->recipient_count] =
			CStringGetTextDatum(klm_from_utf8(request->recipients[i].addr));
		queue->kinds[queue->recipient_count++] = CStringGetTextDatum(request->kinds[i]);
	}
	MemoryContextSwitchTo(old);
}

/* What all messages in the queue have in common. */
static void
begin_queue(FunctionCallInfo fcinfo, const SendRequest *request, SendCheck *check, TimestampTz now,
			KlmSendQueue *queue)
{
	MemoryContext old = MemoryContextSwitchTo(queue->context);
	bool		later = !PG_ARGISNULL(KLM_SEND_SEND_AT);

	queue->recipient_count = 0;
	queue->octets = 0;
	queue->check = check;
	queue->now = now;
	queue->due = later ?
		Max(1, PG_GETARG_TIMESTAMPTZ(KLM_SEND_SEND_AT) - klm_test_clock_offset) : 0;
	memset(queue->message_nulls, false, sizeof(queue->message_nulls));
	queue->message[M_CREATED_AT] = TimestampTzGetDatum(now);
	set_text(queue->message, queue->message_nulls, M_MESSAGE_TYPE, request->message_type);
	set_text(queue->message, queue->message_nulls, M_TEMPLATE,
			 request->template ? request->template->name : NULL);
	set_text(queue->message, queue->message_nulls, M_ACCOUNT,
			 request->route[0] ? request->route : NULL);
	set_text(queue->message, queue->message_nulls, M_FROM_ADDRESS, request->from_address);
	set_text(queue->message, queue->message_nulls, M_FROM_NAME, request->from_name);
	set_text(queue->message, queue->message_nulls, M_REPLY_TO, request->reply_to);
	queue->message[M_UNSUBSCRIBE] = BoolGetDatum(request->unsubscribe);
	set_text(queue->message, queue->message_nulls, M_TOPIC, request->topic);
	set_argument(queue, M_SEND_AT, fcinfo, KLM_SEND_SEND_AT);
	set_argument(queue, M_EXPIRES_AT, fcinfo, KLM_SEND_EXPIRES_AT);
	set_argument(queue, M_TAGS, fcinfo, KLM_SEND_TAGS);
	set_argument(queue, M_METADATA, fcinfo, KLM_SEND_METADATA);
	set_argument(queue, M_REPLACE_KEY, fcinfo, KLM_SEND_REPLACE_KEY);
	queue->key = PG_ARGISNULL(KLM_SEND_IDEMPOTENCY_KEY) ? (Datum) 0 :
		PG_GETARG_DATUM(KLM_SEND_IDEMPOTENCY_KEY);
	queue->fingerprint = PG_ARGISNULL(KLM_SEND_IDEMPOTENCY_KEY) ? NULL :
		fingerprint_arguments(fcinfo, request);

	memset(queue->delivery_nulls, false, sizeof(queue->delivery_nulls));
	set_text(queue->delivery, queue->delivery_nulls, D_ORIGIN, klm_origin());
	set_text(queue->delivery, queue->delivery_nulls, D_ROUTE, request->route);
	queue->delivery[D_PRIORITY] = Int16GetDatum(request->priority);
	queue->delivery[D_DUE] = later ? queue->message[M_SEND_AT] : TimestampTzGetDatum(now);
	queue->delivery[D_CREATED_AT] = TimestampTzGetDatum(now);
	queue->delivery[D_EXPIRES_AT] = queue->message[M_EXPIRES_AT];
	queue->delivery_nulls[D_EXPIRES_AT] = queue->message_nulls[M_EXPIRES_AT];
	queue->delivery[D_ATTEMPTS] = Int32GetDatum(0);
	queue->delivery[D_DOUBTS] = Int32GetDatum(0);
	queue->delivery[D_DOUBTFUL] = BoolGetDatum(false);
	queue->delivery[D_REPLACE_KEY] = queue->message[M_REPLACE_KEY];
	queue->delivery_nulls[D_REPLACE_KEY] = queue->message_nulls[M_REPLACE_KEY];
	MemoryContextSwitchTo(old);
}

static void
set_text(Datum *values, bool *nulls, int column, const char *utf8)
{
	nulls[column] = utf8 == NULL;
	values[column] = utf8 ? CStringGetTextDatum(klm_from_utf8(utf8)) : (Datum) 0;
}

/* An argument as it was given. */
static void
set_argument(KlmSendQueue *queue, int column, FunctionCallInfo fcinfo, int number)
{
	queue->message_nulls[column] = PG_ARGISNULL(number);
	queue->message[column] = PG_ARGISNULL(number) ? (Datum) 0 : PG_GETARG_DATUM(number);
}

/*
 * Put what is in the queue into the tables, as the owner; the ids of its messages.
 * It waits for nobody, but for another call with the same idempotency_key; nothing is read by
 * it that other callers write, so that SERIALIZABLE callers do not abort one another.
 */
static int64 *
put_into_outbox(FunctionCallInfo fcinfo, KlmSendQueue *queue)
{
	int64	   *ids = palloc(queue->count * sizeof(int64));
	bool		replaces = !queue->message_nulls[M_REPLACE_KEY];
	int64	   *stopped = NULL;
	int			suppressed = 0;
	KlmCaller	caller;
	NameData	sender;
	int64		first;

	namestrcpy(&sender, GetUserNameFromId(GetUserId(), false));
	klm_become_owner(fcinfo->flinfo->fn_oid, &caller);
	if (replaces)
		call_replace(queue, &sender, "share_replace_key", 0);
	for (int i = 0; i < queue->count; i++)
		ids[i] = klm_next_id("_message_id");
	/* The key is the first one's. */
	first = queue->fingerprint ? take_key(queue, &sender, ids[0]) : ids[0];
	if (first != ids[0])
	{
		klm_become_caller(&caller);
		ids[0] = first;
		return ids;
	}
	add_messages(queue, &sender, ids);

	/*
	 * Who is suppressed already goes no further; who will be is caught by
	 * suppress() or, at the latest, by the claim.
	 */
	if (klm_any_suppressed(queue->recipients, queue->recipient_count))
		stopped = stop_suppressed(queue, ids, &suppressed);
	add_deliveries(queue, ids, stopped);
	if (replaces && call_replace(queue, &sender, "replace_earlier", ids[0]) > 0)
		klm_changed_at_commit();
	klm_become_caller(&caller);
	tell_what_it_waits_for(queue->check, queue->recipient_count, suppressed);
	klm_wake_at_commit(queue->due);
	return ids;
}

/* kliv_mail._take_key(): the message that has the idempotency_key. */
static int64
take_key(KlmSendQueue *queue, Name sender, int64 message)
{
	KlmCall		call = {0};
	int64		first;

	SPI_connect();
	klm_add(&call, NAMEOID, NameGetDatum(sender), false);
	klm_add(&call, TEXTOID, queue->key, false);
	klm_add_bytea(&call, queue->fingerprint);
	klm_add_int8(&call, message);
	klm_add_time(&call, queue->now);
	klm_run_one(&call, "take_key", false);
	first = klm_result_int8(1);
	SPI_finish();
	return first;
}

/* kliv_mail._share_replace_key(), or, of a message, _replace_earlier(): how many it stopped. */
static int64
call_replace(KlmSendQueue *queue, Name sender, const char *function, int64 message)
{
	KlmCall		call = {0};
	int64		stopped = 0;

	SPI_connect();
	klm_add(&call, NAMEOID, NameGetDatum(sender), false);
	klm_add(&call, TEXTOID, queue->message[M_REPLACE_KEY], false);
	if (message != 0)
	{
		klm_add_int8(&call, message);
		klm_add_time(&call, queue->now);
	}
	klm_run_one(&call, function, false);
	if (message != 0)
		stopped = klm_result_int8(1);
	SPI_finish();
	return stopped;
}

static void
add_messages(KlmSendQueue *queue, Name sender, const int64 *ids)
{
	KlmRows    *rows = klm_rows_begin("_message", message_columns, M_COLUMNS);

	queue->message[M_SENDER_ROLE] = NameGetDatum(sender);
	queue->message[M_RECIPIENTS] = Int32GetDatum(queue->count > 1 ? 1 : queue->recipient_count);
	for (int i = 0; i < queue->count; i++)
	{
		queue->message[M_ID] = Int64GetDatum(ids[i]);
		queue->message[M_SUBJECT] = queue->subjects[i];
		queue->message[M_HEADER_ID] = queue->header_ids[i];
		queue->message[M_ENTITY] = queue->entities[i];
		queue->message[M_SMTPUTF8] = queue->smtputf8[i];
		klm_rows_add(rows, queue->message, queue->message_nulls);
	}
	klm_rows_end(rows);
}

/* Deliveries that wait, but for those that were stopped; stopped may be NULL. */
static void
add_deliveries(KlmSendQueue *queue, const int64 *ids, const int64 *stopped)
{
	KlmRows    *rows = klm_rows_begin("_outbox", delivery_columns, D_COLUMNS);

	for (int i = 0; i < queue->recipient_count; i++)
	{
		if (stopped && stopped[i])
			continue;
		queue->delivery[D_ID] = Int64GetDatum(klm_next_id("_delivery_id"));
		queue->delivery[D_MESSAGE_ID] = Int64GetDatum(ids[queue->count > 1 ? i : 0]);
		queue->delivery[D_RECIPIENT] = queue->recipients[i];
		queue->delivery[D_KIND] = queue->kinds[i];
		klm_rows_add(rows, queue->delivery, queue->delivery_nulls);
	}
	klm_rows_end(rows);
}

/* kliv_mail._stop_new(): which recipients are suppressed (1), whose rows it makes, and how many. */
static int64 *
stop_suppressed(KlmSendQueue *queue, const int64 *ids, int *count)
{
	Datum		messages[QUEUE_ROWS];
	MemoryContext context = CurrentMemoryContext;
	KlmCall		call = {0};
	int64	   *stopped;

	for (int i = 0; i < queue->recipient_count; i++)
		messages[i] = Int64GetDatum(ids[queue->count > 1 ? i : 0]);
	SPI_connect();
	klm_add(&call, INT8ARRAYOID,
			PointerGetDatum(construct_array(messages, queue->recipient_count, INT8OID, 8,
											FLOAT8PASSBYVAL, TYPALIGN_DOUBLE)), false);
	add_texts(&call, queue->recipients, queue->recipient_count);
	add_texts(&call, queue->kinds, queue->recipient_count);
	klm_add(&call, INT2OID, queue->delivery[D_PRIORITY], false);
	klm_add(&call, TEXTOID, queue->message[M_TOPIC], queue->message_nulls[M_TOPIC]);
	klm_add(&call, TEXTOID, queue->delivery[D_ROUTE], false);
	klm_add(&call, TIMESTAMPTZOID, queue->delivery[D_EXPIRES_AT],
			queue->delivery_nulls[D_EXPIRES_AT]);
	klm_add_time(&call, queue->now);
	klm_run_one(&call, "stop_new", false);
	stopped = klm_result_int8s(1, context, NULL);
	SPI_finish();
	for (int i = 0; i < queue->recipient_count; i++)
		*count += stopped[i];
	return stopped;
}

static void
add_texts(KlmCall *call, Datum *elements, int count)
{
	klm_add(call, TEXTARRAYOID,
			PointerGetDatum(construct_array(elements, count, TEXTOID, -1, false, TYPALIGN_INT)),
			false);
}
