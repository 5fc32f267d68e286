/*-------------------------------------------------------------------------
 *
 * probe.c
 *		The connection test: test_smtp(), and what configure_smtp() runs before
 *		it saves.
 *
 * Layer: processes and SQL entry points.  In kliv_mail_net.  Runs in a backend
 * and owns nothing: its connection ends with the call, also by an error.  The
 * network comes before the first lock and the first write.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "db/account.h"
#include "db/owner_call.h"
#include "functions/configure.h"
#include "net/probe.h"
#include "smtp/providers.h"
#include "smtp/verdict.h"

#define SENDER_TIMEOUT_MS 30000 /* the most for the replies to MAIL and RSET */
#define CONNECT_GRACE_MS 2000	/* libcurl's own time limit comes first */


/* ---- waiting ---- */

/* Sleep until the connector has something, at most until the deadline. */
static void
wait_for(KlmConnector *connector, TimestampTz deadline)
{
	long		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
	long		own = klm_connector_timeout(connector);

	if (own >= 0 && own < timeout)
		timeout = own;
	if (WaitLatchOrSocket(MyLatch,
						  WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						  klm_connector_fd(connector), timeout, PG_WAIT_EXTENSION) & WL_LATCH_SET)
		ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/* Until the connection is open or failed; false at the deadline. */
static bool
wait_for_connection(KlmConnector *connector)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   klm_connect_timeout + CONNECT_GRACE_MS);
	KlmConnection *connection;

	for (;;)
	{
		switch (klm_connector_next(connector, &connection))
		{
			case KLM_CONN_OPEN:
			case KLM_CONN_FAILED:
				return true;
			case KLM_CONN_NONE:
				if (GetCurrentTimestamp() >= deadline)
					return false;
				wait_for(connector, deadline);
				break;
			default:
				break;
		}
	}
}

/*
 * Ask whether the address may send: MAIL, RSET, QUIT.  What is learnt stands in
 * *result; the rest is courtesy.
 */
static void
ask_sender(KlmConnector *connector, KlmConnection *connection, const KlmSmtpCaps *caps,
		   const char *from_address, KlmSmtpResult *result)
{
	int			timeout = Min(klm_reply_timeout, SENDER_TIMEOUT_MS);
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout);
	KlmSmtp    *smtp = klm_smtp_create(caps);
	KlmSmtpDelivery delivery = {.mail_from = from_address};
	bool		answered = false;

	klm_smtp_begin(smtp, &delivery);
	klm_smtp_quit(smtp);
	for (;;)
	{
		KlmConnection *ready;
		const char *data;
		Size		length;
		char		buffer[4096];
		ssize_t		count;
		KlmStage	stage;

		while ((data = klm_smtp_output(smtp, &length)) != NULL)
		{
			count = klm_connection_send(connection, data, length);
			if (count <= 0)
				break;
			klm_smtp_sent(smtp, count);
		}
		if (data != NULL && count < 0)
			klm_smtp_closed(smtp, "the connection was closed by the server");
		klm_connection_want_write(connection, data != NULL && count == 0);

		while ((count = klm_connection_recv(connection, buffer, sizeof(buffer))) > 0)
			klm_smtp_received(smtp, buffer, count);
		if (count < 0)
			klm_smtp_closed(smtp, "the connection was closed by the server");

		if (!answered)
			answered = klm_smtp_result(smtp, result);
		klm_smtp_output(smtp, &length);
		if (answered && length == 0 && !klm_smtp_awaits(smtp, &stage))
			break;
		if (length > 0 && data == NULL)
			continue;			/* what a reply has just made possible */
		if (GetCurrentTimestamp() >= deadline)
		{
			if (answered)
				break;
			klm_smtp_closed(smtp, psprintf("no reply from the server within %g s",
										   timeout / 1000.0));
			continue;
		}
		while (klm_connector_next(connector, &ready) != KLM_CONN_NONE)
			 /* whatever it was, all is tried above */ ;
		wait_for(connector, deadline);
	}
	klm_smtp_destroy(smtp);
}


/* ---- steps ---- */

static KlmProbeStep *
add_step(KlmProbe *probe, const char *name, double elapsed_ms, char *detail)
{
	KlmProbeStep *step = &probe->steps[probe->count++];

	Assert(probe->count <= KLM_PROBE_STEPS);
	step->step = name;
	step->ok = true;
	step->elapsed_ms = elapsed_ms < 0 ? 0 : elapsed_ms;
	step->detail = detail;
	step->hint = NULL;
	return step;
}

/* The step that failed, in our words and the server's. */
static void
add_failure(KlmProbe *probe, const char *name, double elapsed_ms, int sqlstate, char *failure,
			char *hint, const KlmReply *reply, const char *provider)
{
	KlmProbeStep *step;

	probe->ok = false;
	probe->sqlstate = sqlstate;
	probe->failure = failure;
	probe->reply = *reply;
	if (reply->code != 0)
	{
		KlmDecision decision;

		/* What is known about this reply says more than the stage does. */
		klm_classify_reply(reply, provider, false, &decision);
		if (decision.verdict == KLM_PROVIDER_LIMIT)
		{
			/* Neither the login nor the sender is to blame. */
			probe->limited = true;
			probe->failure = failure = pstrdup(decision.reason);
		}
		/* "Nothing: it is tried again ..." is said of mail, not of a test. */
		if (decision.verdict == KLM_TEMPORARY)
			hint = pstrdup("Try again later.");
		else if (decision.hint != NULL &&
				 (probe->limited || strncmp(decision.hint, "Nothing:", 8) != 0))
			hint = pstrdup(decision.hint);
		else if (hint == NULL)
			hint = pstrdup("Try again later.");
	}
	step = add_step(probe, name, elapsed_ms,
					reply->text[0] != '\0' ? psprintf("%s: %s", failure, reply->text) : failure);
	step->ok = false;
	step->hint = hint;
}

static char *
describe_tls(const KlmConnectReport *report)
{
	StringInfoData text;

	initStringInfo(&text);
	appendStringInfoString(&text, report->tls_version ? report->tls_version : "TLS");
	if (report->cert_subject != NULL)
		appendStringInfo(&text, "; certificate of %s", report->cert_subject);
	if (report->cert_issuer != NULL)
		appendStringInfo(&text, "; issued by %s", report->cert_issuer);
	if (report->cert_expires != NULL)
		appendStringInfo(&text, "; expires %s", report->cert_expires);
	return text.data;
}

static char *
describe_ehlo(const KlmSmtpCaps *caps)
{
	StringInfoData text;
	struct
	{
		bool		has;
		const char *name;
	}			flags[] = {
		{caps->pipelining, "PIPELINING"}, {caps->eightbitmime, "8BITMIME"},
		{caps->smtputf8, "SMTPUTF8"}, {caps->dsn, "DSN"}, {caps->starttls, "STARTTLS"}
	};

	initStringInfo(&text);
	if (caps->size > 0)
		appendStringInfo(&text, "SIZE " UINT64_FORMAT, caps->size);
	else if (caps->size_offered)
		appendStringInfoString(&text, "SIZE");
	if (caps->auth)
		appendStringInfo(&text, "%sAUTH %s", text.len > 0 ? ", " : "", caps->auth_mechanisms);
	for (int i = 0; i < lengthof(flags); i++)
		if (flags[i].has)
			appendStringInfo(&text, "%s%s", text.len > 0 ? ", " : "", flags[i].name);
	if (text.len == 0)
		appendStringInfoString(&text, "no extensions");
	return text.data;
}

/*
 * Rows for what the connection went through.  The greeting belongs to the step
 * before it: TLS from the first byte, else the connect.
 */
static void
add_connection_steps(const KlmTarget *target, const char *provider, const KlmConnectReport *report,
					 double total_ms, KlmProbe *probe)
{
	const char *failed = NULL;
	double		before = 0;
	double		next;
	int			sqlstate = ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION;

	/* After the connect nothing but a refusal tells more than that it was lost. */
	if (report->connect_ms >= 0 && report->reply.stage != KLM_STAGE_TLS)
		sqlstate = ERRCODE_CONNECTION_FAILURE;
	if (!report->ok)
	{
		switch (report->reply.stage)
		{
			case KLM_STAGE_CONNECT:
				failed = report->dns_ms < 0 ? "dns" : "connect";
				if (report->refused)
					sqlstate = ERRCODE_INSUFFICIENT_PRIVILEGE;
				break;
			case KLM_STAGE_GREETING:
				failed = target->encryption == KLM_TLS ? "tls" : "connect";
				break;
			case KLM_STAGE_TLS:
				failed = "tls";
				break;
			case KLM_STAGE_AUTH:
				failed = "auth";
				if (!report->caps.auth)
					sqlstate = ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION;
				break;
			default:
				failed = "ehlo";
				break;
		}
		if (report->reply.code != 0)
			sqlstate = ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION;
	}

#define STEP(name, applies, time, text) \
	do { \
		if (failed != NULL && strcmp(failed, name) == 0) \
		{ \
			add_failure(probe, name, total_ms - before, sqlstate, report->detail, report->hint, \
						&report->reply, provider); \
			return; \
		} \
		if (applies) \
		{ \
			next = (time) < before ? before : (time); \
			add_step(probe, name, next - before, text); \
			before = next; \
		} \
	} while (0)

	STEP("dns", true, report->dns_ms,
		 report->address ? psprintf("%s is %s", target->host, report->address) :
		 psprintf("an address of %s was found", target->host));
	STEP("connect", true, report->connect_ms,
		 psprintf("%s port %d", report->address ? report->address : target->host, target->port));
	/* One good address of several is used, and the others are told of. */
	if (report->refused_address != NULL)
		probe->steps[probe->count - 1].hint =
			psprintf("Another address of the host, %s, is loopback, link-local, private or reserved "
					 "and was refused: check the host's DNS records.", report->refused_address);
	/* With STARTTLS the first EHLO may fail before TLS was tried. */
	STEP("tls", target->encryption != KLM_CLEAR && (report->ok || report->tls_ms >= 0),
		 report->tls_ms, describe_tls(report));
	STEP("ehlo", true, report->ehlo_ms, describe_ehlo(&report->caps));
	STEP("auth", target->username != NULL, report->auth_ms,
		 pstrdup("the server accepted the credentials"));
#undef STEP
}

static void
add_sender_step(const KlmSmtpResult *result, const char *provider, const char *from_address,
				double elapsed_ms, KlmProbe *probe)
{
	const KlmProvider *preset = klm_find_provider(provider);

	if (!result->lost && result->reply.code < 300)
	{
		KlmProbeStep *step = add_step(probe, "sender", elapsed_ms,
									  psprintf("MAIL FROM:<%s>: %s", from_address,
											   result->reply.text));

		if (preset == NULL)
			step->hint = pstrdup("A server may check the sender again when a mail arrives; only a "
								 "real mail shows that.");
		else if (preset->unproven != NULL)
			step->hint = pstrdup(preset->unproven);
	}
	else
	{
		/* A lost reply's text is ours. */
		KlmReply	reply = result->reply;

		if (result->lost)
		{
			char	   *failure = reply.text;

			reply.text = pstrdup("");
			add_failure(probe, "sender", elapsed_ms, ERRCODE_CONNECTION_FAILURE, failure, NULL,
						&reply, provider);
		}
		else
			add_failure(probe, "sender", elapsed_ms,
						ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION,
						psprintf("the server does not let \"%s\" send", from_address),
						pstrdup(preset != NULL && preset->sender_hint != NULL ?
								preset->sender_hint :
								"Use a from_address that this user may send from."),
						&reply, provider);
	}
}

void
klm_probe(const KlmTarget *target, const char *provider, const char *from_address, KlmProbe *probe)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "kliv_mail connection test",
												  ALLOCSET_DEFAULT_SIZES);

	memset(probe, 0, sizeof(*probe));
	probe->ok = true;

	/* The context's callback closes the connection, whatever happens. */
	PG_TRY();
	{
		TimestampTz start = GetCurrentTimestamp();
		KlmConnector *connector;
		KlmConnection *connection;
		KlmConnectReport report;
		KlmSmtpResult result;
		KlmError	error;

		MemoryContextSwitchTo(context);
		connector = klm_connector_create();
		connection = klm_connection_open(connector, target, NULL, &error);
		MemoryContextSwitchTo(caller);

		if (connection == NULL)
		{
			KlmReply	none = {.stage = KLM_STAGE_CONNECT,.text = pstrdup("")};

			add_failure(probe, "dns", 0, error.sqlstate, error.message, error.hint, &none,
						provider);
		}
		else if (!wait_for_connection(connector))
		{
			KlmReply	none = {.stage = KLM_STAGE_CONNECT,.text = pstrdup("")};

			add_failure(probe, "connect", klm_connect_timeout,
						ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
						psprintf("no connection within %g s", klm_connect_timeout / 1000.0), NULL,
						&none, provider);
		}
		else
		{
			klm_connection_report(connection, &report);
			add_connection_steps(target, provider, &report,
								 (GetCurrentTimestamp() - start) / 1000.0, probe);
			if (probe->ok && from_address != NULL)
			{
				start = GetCurrentTimestamp();
				ask_sender(connector, connection, &report.caps, from_address, &result);
				add_sender_step(&result, provider, from_address,
								(GetCurrentTimestamp() - start) / 1000.0, probe);
			}
		}
	}
	PG_FINALLY();
	{
		MemoryContextSwitchTo(caller);
		MemoryContextDelete(context);
	}
	PG_END_TRY();
}

void
klm_probe_raise(const KlmProbe *probe, bool secret)
{
	const KlmProbeStep *step = &probe->steps[probe->count - 1];
	const char *hint = step->hint;

	if (probe->limited && hint != NULL)
		hint = psprintf("%s With test => false the settings are saved meanwhile.", hint);
	ereport(ERROR,
			(errcode(probe->sqlstate),
			 errmsg("the connection test failed at step \"%s\": %s", step->step,
					klm_from_utf8(probe->failure)),
			 probe->reply.text[0] != '\0' ?
			 errdetail("The server said: %s", klm_from_utf8(probe->reply.text)) : 0,
			 hint != NULL ? errhint("%s", klm_from_utf8(hint)) : 0,
			 secret ? errhidestmt(true) : 0,
			 secret ? errhidecontext(true) : 0));
}


/* ---- test_smtp() ---- */

/* The account that mail leaves by when nothing is said. */
static char *
default_account(void)
{
	char	   *name;
	MemoryContext caller = CurrentMemoryContext;

	if (SPI_execute("SELECT kliv_mail._default_account()", true, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not read the account in use");
	name = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	return MemoryContextStrdup(caller, klm_to_utf8(name));
}

static bool
account_is_saved(const char *account)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(klm_from_utf8(account))};

	if (SPI_execute_with_args("SELECT FROM kliv_mail._read_account($1)", 1, types, values, NULL,
							  true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the account");
	return SPI_processed > 0;
}

static void
record_test(const char *account, bool ok)
{
	Oid			types[] = {TEXTOID, BOOLOID};
	Datum		values[] = {CStringGetTextDatum(klm_from_utf8(account)), BoolGetDatum(ok)};

	if (SPI_execute_with_args("SELECT kliv_mail._record_test($1, $2)", 2, types, values, NULL,
							  false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not record the connection test");
}

static KlmProbeStep queue_test_mail(const char *account, const char *send_to);
static void put_step(ReturnSetInfo *rsinfo, const KlmProbeStep *step);

PG_FUNCTION_INFO_V1(kliv_mail_test_smtp);

/*
 * What is not given comes from the saved account; its password only where host,
 * port and user name are the saved ones, which klm_resolve() sees to.
 */
Datum
kliv_mail_test_smtp(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	KlmRequest	request = {0};
	KlmCaller	caller;
	KlmProbe	probe;
	const char *send_to;
	bool		any_given = false;
	bool		saved;
	bool		can_send;

	InitMaterializedSRF(fcinfo, 0);

	/* Always, so that the log hook knows our messages for harmless ones. */
	request.secret = true;
	send_to = klm_argument(fcinfo, 10);
	if (send_to != NULL)
	{
		KlmAddress	address;
		KlmError	error;

		if (!klm_parse_address(send_to, &address, &error))
			klm_raise("send_to", &error, true);
	}
	request.provider = klm_argument(fcinfo, 0);
	request.host = klm_argument(fcinfo, 1);
	request.has_port = !PG_ARGISNULL(2);
	request.port = request.has_port ? PG_GETARG_INT32(2) : 0;
	request.username = klm_argument(fcinfo, 3);
	if (!PG_ARGISNULL(4))
	{
		text	   *raw = PG_GETARG_TEXT_PP(4);
		char	   *plain = text_to_cstring(raw);
		char	   *utf8 = klm_argument_to_utf8("password", plain);

		request.password = klm_secret_create(utf8, strlen(utf8));
		explicit_bzero(utf8, strlen(utf8));
		explicit_bzero(plain, strlen(plain));
	}
	request.encryption = klm_argument(fcinfo, 5);
	request.from_address = klm_argument(fcinfo, 6);
	request.region = klm_argument(fcinfo, 7);
	request.auth = klm_argument(fcinfo, 8);
	request.account = klm_argument(fcinfo, 9);
	for (int i = 0; i < 9; i++)
		if (i != 6 && !PG_ARGISNULL(i))
			any_given = true;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	klm_become_owner(fcinfo->flinfo->fn_oid, &caller);

	if (request.account == NULL)
	{
		request.account = default_account();
		/* A server that is given is no test of the platform's. */
		if (any_given && strcmp(request.account, KLM_PLATFORM) == 0)
			request.account = "custom";
	}

	if (strcmp(request.account, KLM_PLATFORM) == 0 && !any_given)
	{
		KlmAccount *account = klm_load_account(request.account);

		if (account == NULL || account->problem != NULL)
		{
			KlmError	error = {
				.sqlstate = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
				.message = account ? account->problem :
				"the account \"platform\" is not configured",
				.hint = account ? account->hint : NULL
			};

			klm_raise(NULL, &error, true);
		}
		saved = false;			/* its tests are not recorded */
		can_send = true;
		klm_probe(&account->target, account->provider,
				  request.from_address ? request.from_address : account->from_address, &probe);
	}
	else
	{
		KlmResolved resolved;

		if (!any_given && !account_is_saved(request.account))
		{
			KlmError	error = {
				.sqlstate = ERRCODE_INVALID_PARAMETER_VALUE,
				.message = psprintf("there is no account \"%s\"", request.account),
				.hint = "The view kliv_mail.smtp_settings has those that are saved."
			};

			klm_raise("account", &error, true);
		}
		klm_resolve(&request, &resolved);
		saved = resolved.saved && resolved.in_use && !resolved.changed &&
			request.password == NULL && request.from_address == NULL;
		/* Only what is saved has a quota, and a sender that keeps to it. */
		can_send = saved;
		if (send_to != NULL && !can_send)
		{
			KlmError	error = {
				.sqlstate = ERRCODE_INVALID_PARAMETER_VALUE,
				.message = "a test mail goes by a saved account as it is",
				.hint = "Save it first; configure_smtp() tests the connection by itself."
			};

			klm_raise("send_to", &error, true);
		}
		klm_probe(&resolved.target, resolved.provider,
				  resolved.from_address && resolved.from_address[0] ? resolved.from_address : NULL,
				  &probe);
	}

	if (saved && !XactReadOnly && !RecoveryInProgress())
		record_test(request.account, probe.ok);
	klm_become_caller(&caller);

	for (int i = 0; i < probe.count; i++)
	{
		KlmProbeStep *step = &probe.steps[i];

		if (probe.ok && can_send && send_to == NULL && i == probe.count - 1)
			step->hint = psprintf("%s%sSELECT * FROM kliv_mail.test_smtp(send_to => 'you@example.com'); proves it with a mail.",
								  step->hint ? step->hint : "", step->hint ? " " : "");
		put_step(rsinfo, step);
	}
	if (probe.ok && send_to != NULL)
	{
		KlmProbeStep step = queue_test_mail(request.account, send_to);

		put_step(rsinfo, &step);
	}
	SPI_finish();
	return (Datum) 0;
}

/*
 * One test mail, as the caller, by the queue: so it keeps to the quota, and
 * goes when this transaction commits.
 */
static KlmProbeStep
queue_test_mail(const char *account, const char *send_to)
{
	Oid			types[] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	const char *name = klm_from_utf8(account);
	Datum		values[] = {
		CStringGetTextDatum(klm_from_utf8(send_to)),
		CStringGetTextDatum(psprintf("Test of the account %s", name)),
		CStringGetTextDatum(psprintf("kliv_mail.test_smtp() sent this mail by the account \"%s\" of the database %s.\n\n"
									 "That it arrived proves that the account can send.\n", name, get_database_name(MyDatabaseId))),
		CStringGetTextDatum(name)
	};
	KlmProbeStep step = {.step = "send", .ok = true};
	TimestampTz start = GetCurrentTimestamp();
	bool		isnull;
	int64		id;

	if (SPI_execute_with_args("SELECT kliv_mail.send($1, $2, $3, account => $4)", 4, types, values, NULL, false, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not queue the test mail");
	id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	step.elapsed_ms = (GetCurrentTimestamp() - start) / 1000.0;
	step.detail = psprintf("queued as message " INT64_FORMAT "; it leaves within the account's quota when this transaction commits", id);
	step.hint = psprintf("SELECT kliv_mail.wait(" INT64_FORMAT "); says how it ended.", id);
	return step;
}

static void
put_step(ReturnSetInfo *rsinfo, const KlmProbeStep *step)
{
	Datum		values[5];
	bool		nulls[5] = {false};

	values[0] = CStringGetTextDatum(step->step);
	values[1] = BoolGetDatum(step->ok);
	values[2] = DirectFunctionCall3(numeric_in,
									CStringGetDatum(psprintf("%.1f", step->elapsed_ms)),
									ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
	values[3] = CStringGetTextDatum(klm_from_utf8(step->detail));
	if (step->hint != NULL)
		values[4] = CStringGetTextDatum(klm_from_utf8(step->hint));
	else
		nulls[4] = true;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}
