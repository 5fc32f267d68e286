/*-------------------------------------------------------------------------
 *
 * probe.c
 *		The connection test: what a connection would do, step by step.
 *
 * In kliv_mail_net.  Runs in a backend and owns nothing: its connection ends
 * with the call, also by an error.  Calls connection.c for the way to AUTH and
 * smtp/session for what comes behind it.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "net/probe.h"
#include "smtp/providers.h"
#include "smtp/verdict.h"

#define SENDER_TIMEOUT_MS 30000 /* the most for the replies to MAIL and RSET */


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

/* Until the connection is open or failed: each of its steps has its time. */
static void
wait_for_connection(KlmConnector *connector)
{
	KlmConnection *connection;

	for (;;)
	{
		switch (klm_connector_next(connector, &connection))
		{
			case KLM_CONN_OPEN:
			case KLM_CONN_FAILED:
				return;
			case KLM_CONN_NONE:
				wait_for(connector, DT_NOEND);
				break;
			default:
				break;
		}
	}
}

/*
 * Ask whether the address may send: MAIL, RCPT of itself (most servers refuse a
 * sender there and not before), RSET, QUIT.  What is learnt stands in *result;
 * the rest is courtesy.
 */
static void
ask_sender(KlmConnector *connector, KlmConnection *connection, const KlmSmtpCaps *caps,
		   const char *from_address, KlmSmtpResult *result)
{
	int			timeout = Min(klm_reply_timeout, SENDER_TIMEOUT_MS);
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout);
	KlmSmtp    *smtp = klm_smtp_create(caps);
	KlmSmtpDelivery delivery = {.mail_from = from_address,.rcpt_to = from_address,.ask = true};
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
		{
			klm_smtp_received(smtp, buffer, count);
			klm_connection_acknowledge(connection);
		}
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

/*
 * A failed test's SQLSTATE names its step.  It is of a class of our own: a pool
 * that sees class 08 throws its connection to the database away.
 */
static int
sqlstate_of(const char *name)
{
	static const char *const steps[] = {"dns", "connect", "tls", "ehlo", "auth", "sender"};
	int			n = 0;

	while (strcmp(steps[n], name) != 0)
		n++;
	return MAKE_SQLSTATE('K', 'M', '0', '0', '1' + n);
}

/* The step that failed, in our words and the server's. */
static void
add_failure(KlmProbe *probe, const char *name, double elapsed_ms, char *failure,
			char *hint, const KlmReply *reply, const char *provider, const char *recipient)
{
	KlmProbeStep *step;

	probe->ok = false;
	probe->sqlstate = sqlstate_of(name);
	probe->failure = failure;
	probe->reply = *reply;
	if (reply->code != 0)
	{
		KlmDecision decision;

		/* What is known about this reply says more than the stage does. */
		klm_classify_reply(reply, provider, recipient, false, klm_now(), &decision);
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

	if (!report->ok)
	{
		switch (report->reply.stage)
		{
			case KLM_STAGE_CONNECT:
				failed = report->dns_ms < 0 ? "dns" : "connect";
				break;
			case KLM_STAGE_GREETING:
				failed = target->encryption == KLM_TLS ? "tls" : "connect";
				break;
			case KLM_STAGE_TLS:
				failed = "tls";
				break;
			case KLM_STAGE_AUTH:
				failed = "auth";
				break;
			default:
				failed = "ehlo";
				break;
		}
	}

#define STEP(name, applies, time, text) \
	do { \
		if (failed != NULL && strcmp(failed, name) == 0) \
		{ \
			add_failure(probe, name, total_ms - before, report->detail, report->hint, \
						&report->reply, provider, NULL); \
			if (report->refused) \
				probe->sqlstate = ERRCODE_INSUFFICIENT_PRIVILEGE; \
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

/*
 * Is it the address as a sender that the server refuses?  At RCPT it was asked
 * as a recipient too: that such a mailbox does not exist, or takes no mail now,
 * says nothing about its sending.
 */
static bool
sender_refused(const KlmSmtpResult *result, const char *provider, const char *from_address)
{
	KlmDecision decision;

	if (result->reply.stage != KLM_STAGE_RCPT)
		return true;
	klm_classify_reply(&result->reply, provider, from_address, false, klm_now(), &decision);
	return decision.scope == KLM_SCOPE_ACCOUNT;
}

static void
add_sender_step(const KlmSmtpResult *result, const char *provider, const char *from_address,
				double elapsed_ms, KlmProbe *probe)
{
	const KlmProvider *preset = klm_find_provider(provider);
	KlmReply	reply = result->reply;

	if (!result->lost &&
		(reply.code < 300 || !sender_refused(result, provider, from_address)))
	{
		KlmProbeStep *step = add_step(probe, "sender", elapsed_ms,
									  psprintf("MAIL FROM and RCPT TO:<%s>: %s", from_address,
											   reply.text));

		if (reply.code >= 300)
			step->hint = psprintf("The server takes no mail to %s itself; mail from it can be sent "
								  "all the same, but answers to it go nowhere.", from_address);
		else if (preset == NULL)
			step->hint = pstrdup("A server may check the sender again when a mail arrives; only a "
								 "real mail shows that.");
		else if (preset->unproven != NULL)
			step->hint = pstrdup(preset->unproven);
	}
	else if (result->lost)
	{
		/* A lost reply's text is ours. */
		char	   *failure = reply.text;

		reply.text = pstrdup("");
		add_failure(probe, "sender", elapsed_ms, failure, NULL, &reply, provider, from_address);
	}
	else
		add_failure(probe, "sender", elapsed_ms,
					psprintf("the server does not let \"%s\" send", from_address),
					pstrdup(preset != NULL && preset->sender_hint != NULL ?
							preset->sender_hint :
							"Use a from_address that this user may send from."),
					&reply, provider, from_address);
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

			add_failure(probe, "dns", 0, error.message, error.hint, &none, provider, NULL);
			probe->sqlstate = error.sqlstate;
		}
		else
		{
			wait_for_connection(connector);
			klm_connection_report(connection, &report);
			probe->smtputf8 = report.caps.smtputf8;
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
