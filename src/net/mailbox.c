/*-------------------------------------------------------------------------
 *
 * mailbox.c
 *		A mailbox on an IMAP server: log in, look for mail, fetch it, file it.
 *
 * In kliv_mail_net.  Owns nothing: the connection ends with the mailbox's memory
 * context.  Calls connection.c for the way to TLS, feedback/imap for what is said
 * behind it, and waits with the latch in between.
 *
 * libcurl's own IMAP transfers are not used: they block the process, mark what
 * they fetch as read, and leave it to the server how much is sent.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/base64.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/guc.h"
#include "feedback/imap.h"
#include "feedback/report.h"
#include "net/mailbox.h"

/* The longest silence of a server, where reply_timeout is not shorter ... */
#define SILENCE_MS 60000

/* ... so many times that in all for a command, however busy it seems, ... */
#define PATIENCE 5

/* ... and so much for a response: a large mail, where a server knows no partial fetch. */
#define RESPONSE_MAX (64 * 1024 * 1024)

#define KM(number) MAKE_SQLSTATE('K', 'M', '0', '0', '0' + (number))

struct KlmMailbox
{
	MemoryContext context;
	const KlmTarget *target;
	bool		(*must_stop) (void);
	KlmConnector *connector;
	KlmConnection *connection;
	KlmImap		imap;
	const char *step;			/* what is being done */
	KlmMailboxTrouble trouble;
};

static bool fail(KlmMailbox *mailbox, const char *problem, const char *hint, bool final);
static const char *words(KlmMailbox *mailbox, const char *text);
static bool stops(KlmMailbox *mailbox);
static bool wait_for(KlmMailbox *mailbox, TimestampTz until);
static bool run(KlmMailbox *mailbox);
static bool take_what_came(KlmMailbox *mailbox, bool *anything);
static bool send_some(KlmMailbox *mailbox);
static bool send_login(KlmMailbox *mailbox);
static void wipe_out(KlmImap *imap);

KlmMailbox *
klm_mailbox_create(const KlmTarget *target, bool (*must_stop) (void))
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "kliv_mail mailbox",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(context);
	KlmMailbox *mailbox = palloc0(sizeof(KlmMailbox));

	Assert(target->imap);
	mailbox->context = context;
	mailbox->target = target;
	mailbox->must_stop = must_stop;
	mailbox->connector = klm_connector_create();
	klm_imap_init(&mailbox->imap);
	MemoryContextSwitchTo(caller);
	return mailbox;
}

void
klm_mailbox_close(KlmMailbox *mailbox)
{
	if (mailbox->connection != NULL && mailbox->imap.status != KLM_IMAP_BROKEN)
	{
		MemoryContext caller = MemoryContextSwitchTo(mailbox->context);

		klm_imap_command(&mailbox->imap, "LOGOUT");
		(void) send_some(mailbox);
		MemoryContextSwitchTo(caller);
	}
	wipe_out(&mailbox->imap);
	MemoryContextDelete(mailbox->context);
}

const KlmMailboxTrouble *
klm_mailbox_trouble(const KlmMailbox *mailbox)
{
	return &mailbox->trouble;
}

/* ---- what goes wrong ---- */

/* The server's words are those of the last command. */
static bool
fail(KlmMailbox *mailbox, const char *problem, const char *hint, bool final)
{
	KlmMailboxTrouble *trouble = &mailbox->trouble;

	memset(trouble, 0, sizeof(*trouble));
	trouble->step = mailbox->step;
	trouble->sqlstate = strcmp(mailbox->step, "login") == 0 ? KM(5) : KM(8);
	trouble->problem = problem;
	trouble->reply = words(mailbox, mailbox->imap.text);
	trouble->hint = hint;
	trouble->final = final;
	return false;
}

/* Somebody else's text, made printable, and without the password that it may repeat. */
static const char *
words(KlmMailbox *mailbox, const char *text)
{
	const char *shown;

	if (klm_connection_repeats_secret(mailbox->connection, text))
		return "(the reply repeats the credentials and is not shown)";
	shown = klm_printable(text, strlen(text));
	return shown != NULL ? shown : "";
}

static bool
stops(KlmMailbox *mailbox)
{
	CHECK_FOR_INTERRUPTS();
	if (mailbox->must_stop == NULL || !mailbox->must_stop())
		return false;
	memset(&mailbox->trouble, 0, sizeof(mailbox->trouble));
	mailbox->trouble.step = mailbox->step;
	mailbox->trouble.problem = mailbox->trouble.reply = "";
	mailbox->trouble.stopped = true;
	return true;
}

/* ---- waiting ---- */

/* Until the connector has something, or then; false: we must stop. */
static bool
wait_for(KlmMailbox *mailbox, TimestampTz until)
{
	long		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
	long		own = klm_connector_timeout(mailbox->connector);

	if (own >= 0 && own < timeout)
		timeout = own;
	if (WaitLatchOrSocket(MyLatch,
						  WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						  klm_connector_fd(mailbox->connector), timeout,
						  PG_WAIT_EXTENSION) & WL_LATCH_SET)
		ResetLatch(MyLatch);
	return !stops(mailbox);
}

/*
 * Send what the machine has to say and read until it has its answer, good or
 * bad, or wants the rest of a login.  false: there is none.
 */
static bool
run(KlmMailbox *mailbox)
{
	MemoryContext caller = MemoryContextSwitchTo(mailbox->context);
	int			silence = Min(klm_reply_timeout, SILENCE_MS);
	TimestampTz start = GetCurrentTimestamp();
	TimestampTz end = TimestampTzPlusMilliseconds(start, silence * PATIENCE);
	TimestampTz quiet_end = TimestampTzPlusMilliseconds(start, silence);
	KlmImap    *imap = &mailbox->imap;
	bool		ok = !stops(mailbox);

	while (ok && imap->status == KLM_IMAP_WAITS)
	{
		KlmConnection *ready;
		bool		anything = false;

		if (!send_some(mailbox) || !take_what_came(mailbox, &anything))
			ok = fail(mailbox, "the server closed the connection", NULL, false);
		else if (imap->received > RESPONSE_MAX)
			ok = fail(mailbox, psprintf("the server sent more than %d MB where less was asked for",
										RESPONSE_MAX / 1024 / 1024), NULL, false);
		else if (imap->status == KLM_IMAP_WAITS)
		{
			TimestampTz now = GetCurrentTimestamp();

			if (anything)
				quiet_end = TimestampTzPlusMilliseconds(now, silence);
			if (now >= quiet_end)
				ok = fail(mailbox, psprintf("no answer from the server within %g s",
											silence / 1000.0), NULL, false);
			else if (now >= end)
				ok = fail(mailbox, psprintf("the server's answer did not end within %g s",
											silence * PATIENCE / 1000.0), NULL, false);
			else
			{
				while (klm_connector_next(mailbox->connector, &ready) != KLM_CONN_NONE)
					 /* whatever it was, all is tried above */ ;
				ok = wait_for(mailbox, Min(quiet_end, end));
			}
		}
	}
	if (ok && imap->status == KLM_IMAP_BROKEN)
		ok = fail(mailbox, "the server ended the session, or does not speak IMAP", NULL, false);
	/* What could not be answered is not to be followed by anything. */
	if (!ok)
		imap->status = KLM_IMAP_BROKEN;
	MemoryContextSwitchTo(caller);
	return ok;
}

/* false: the connection is gone, and the answer has not come. */
static bool
take_what_came(KlmMailbox *mailbox, bool *anything)
{
	char		buffer[16384];
	ssize_t		count;

	/* As much at a time as leaves the latch and the limits a chance. */
	for (int i = 0; i < 16 && mailbox->imap.status == KLM_IMAP_WAITS; i++)
	{
		count = klm_connection_recv(mailbox->connection, buffer, sizeof(buffer));
		if (count == 0)
			return true;
		if (count < 0)
			return false;
		*anything = true;
		klm_imap_received(&mailbox->imap, buffer, count);
		klm_connection_acknowledge(mailbox->connection);
	}
	/* TLS may hold more than the socket shows: come again at once. */
	if (mailbox->imap.status == KLM_IMAP_WAITS)
		SetLatch(MyLatch);
	return true;
}

/* false: the connection is gone. */
static bool
send_some(KlmMailbox *mailbox)
{
	StringInfo	out = &mailbox->imap.out;
	ssize_t		count = 0;
	int			sent = 0;

	while (sent < out->len)
	{
		count = klm_connection_send(mailbox->connection, out->data + sent, out->len - sent);
		if (count <= 0)
			break;
		sent += count;
	}
	memmove(out->data, out->data + sent, out->len - sent);
	explicit_bzero(out->data + out->len - sent, sent);
	out->len -= sent;
	out->data[out->len] = '\0';
	klm_connection_want_write(mailbox->connection, out->len > 0);
	return count >= 0;
}

/* ---- the steps ---- */

bool
klm_mailbox_connect(KlmMailbox *mailbox, KlmConnectReport *report)
{
	MemoryContext caller = MemoryContextSwitchTo(mailbox->context);
	KlmMailboxTrouble *trouble = &mailbox->trouble;
	KlmConnection *ready;
	KlmError	error;
	bool		settled = false;

	memset(report, 0, sizeof(*report));
	report->dns_ms = report->connect_ms = report->tls_ms = report->ehlo_ms = -1;
	mailbox->step = "dns";
	mailbox->connection = klm_connection_open(mailbox->connector, mailbox->target, NULL, &error);
	if (mailbox->connection == NULL)
	{
		memset(trouble, 0, sizeof(*trouble));
		trouble->step = mailbox->step;
		trouble->sqlstate = error.sqlstate;
		trouble->problem = error.message;
		trouble->reply = "";
		trouble->hint = error.hint;
		MemoryContextSwitchTo(caller);
		return false;
	}
	while (!settled)
	{
		switch (klm_connector_next(mailbox->connector, &ready))
		{
			case KLM_CONN_OPEN:
			case KLM_CONN_FAILED:
				settled = true;
				break;
			case KLM_CONN_NONE:
				if (!wait_for(mailbox, DT_NOEND))
				{
					MemoryContextSwitchTo(caller);
					return false;
				}
				break;
			default:
				break;
		}
	}
	klm_connection_report(mailbox->connection, report);
	if (!report->ok)
	{
		int			number = 0;

		switch (report->reply.stage)
		{
			case KLM_STAGE_CONNECT:
				number = report->dns_ms < 0 ? 1 : 2;
				break;
			case KLM_STAGE_GREETING:
				number = mailbox->target->encryption == KLM_TLS ? 3 : 2;
				break;
			default:
				/* What it can do is asked for STARTTLS, too. */
				number = 3;
				break;
		}
		memset(trouble, 0, sizeof(*trouble));
		trouble->step = number == 1 ? "dns" : number == 2 ? "connect" : "tls";
		trouble->sqlstate = report->refused ? ERRCODE_INSUFFICIENT_PRIVILEGE : KM(number);
		trouble->problem = report->detail;
		trouble->reply = report->reply.text;
		trouble->hint = report->hint;
	}
	MemoryContextSwitchTo(caller);
	return report->ok;
}

bool
klm_mailbox_login(KlmMailbox *mailbox)
{
	static const char cure[] = "Check username and password; many providers want an app password "
		"instead of the account's own, or IMAP to be allowed for the mailbox first.";
	KlmImap    *imap = &mailbox->imap;
	MemoryContext caller = MemoryContextSwitchTo(mailbox->context);
	bool		ok;

	mailbox->step = "login";
	klm_imap_command(imap, "CAPABILITY");
	ok = run(mailbox);
	if (ok && !imap->auth_plain && imap->login_disabled)
		ok = fail(mailbox, "the server takes no login with a password",
				  "Use a mailbox whose provider allows IMAP with a user name and a password.", true);
	ok = ok && send_login(mailbox);
	wipe_out(imap);
	if (ok && imap->status != KLM_IMAP_OK)
		ok = imap->try_later ?
			fail(mailbox, "the server takes no login at the moment", "It is tried again by itself; "
				 "close what else is logged in, if the mailbox allows only so many.", false) :
			fail(mailbox, "the server refused the user name or password", cure, true);
	if (ok)
	{
		/* Many a server can do more for those who are logged in. */
		klm_imap_command(imap, "CAPABILITY");
		ok = run(mailbox);
	}
	MemoryContextSwitchTo(caller);
	return ok;
}

/* true: the server has answered, in whichever way. */
static bool
send_login(KlmMailbox *mailbox)
{
	KlmImap    *imap = &mailbox->imap;
	const char *username = mailbox->target->username;
	const char *password = mailbox->target->password;
	Size		user_length = strlen(username);
	Size		length = user_length + strlen(password) + 2;
	bool		ok;

	/* Once, so that no copy is left where it grew from. */
	enlargeStringInfo(&imap->out, 4 * length + 64);
	if (imap->auth_plain)
	{
		char	   *plain = palloc0(length + 1);
		int			size = pg_b64_enc_len((int) length) + 1;
		char	   *encoded = palloc0(size);

		memcpy(plain + 1, username, user_length);
		memcpy(plain + user_length + 2, password, strlen(password));
		if (pg_b64_encode((const void *) plain, (int) length, encoded, size - 1) < 0)
			encoded[0] = '\0';
		explicit_bzero(plain, length);
		klm_imap_command(imap, "AUTHENTICATE PLAIN");
		ok = run(mailbox);
		if (ok && imap->status == KLM_IMAP_GOES_ON)
		{
			klm_imap_answer(imap, encoded);
			ok = run(mailbox);
		}
		explicit_bzero(encoded, size);
	}
	else
	{
		char	   *quoted_name = klm_imap_quote(username);
		char	   *quoted = klm_imap_quote(password);

		if (quoted_name == NULL || quoted == NULL)
			return fail(mailbox, "user name or password cannot be sent", NULL, true);
		klm_imap_command(imap, "LOGIN %s %s", quoted_name, quoted);
		explicit_bzero(quoted, strlen(quoted));
		ok = run(mailbox);
	}
	return ok;
}

static void
wipe_out(KlmImap *imap)
{
	explicit_bzero(imap->out.data, imap->out.maxlen);
	resetStringInfo(&imap->out);
}

bool
klm_mailbox_select(KlmMailbox *mailbox, const char *name, uint32 *uid_validity)
{
	KlmImap    *imap = &mailbox->imap;
	MemoryContext caller = MemoryContextSwitchTo(mailbox->context);
	bool		ok;

	mailbox->step = "select";
	klm_imap_command(imap, "SELECT %s", klm_imap_quote(name));
	ok = run(mailbox);
	/* Exchange refuses so what it cannot do for now, too. */
	if (ok && imap->status != KLM_IMAP_OK)
		ok = fail(mailbox, psprintf("the mailbox \"%s\" cannot be opened", name),
				  "Give mailbox => with its name as the server has it; the usual one is INBOX.",
				  imap->try_create);
	else if (ok && imap->read_only)
		ok = fail(mailbox, psprintf("the mailbox \"%s\" can only be read", name),
				  "What was handled is filed, so the user must be allowed to change the mailbox.", true);
	else if (ok && imap->uid_validity == 0)
		ok = fail(mailbox, "the server does not number its mails for good (no UIDVALIDITY)", NULL, true);
	*uid_validity = imap->uid_validity;
	MemoryContextSwitchTo(caller);
	return ok;
}

bool
klm_mailbox_make(KlmMailbox *mailbox, const char *name)
{
	KlmImap    *imap = &mailbox->imap;
	MemoryContext caller = MemoryContextSwitchTo(mailbox->context);
	char	   *quoted = klm_imap_quote(name);
	bool		ok;

	mailbox->step = "file";
	klm_imap_command(imap, "STATUS %s (UIDNEXT)", quoted);
	ok = run(mailbox);
	if (ok && imap->status != KLM_IMAP_OK)
	{
		klm_imap_command(imap, "CREATE %s", quoted);
		ok = run(mailbox);
		if (ok && imap->status != KLM_IMAP_OK)
			ok = fail(mailbox, psprintf("there is no mailbox \"%s\", and it cannot be made", name),
					  "Give filed_mailbox => with a name that the server allows, such as "
					  "'INBOX.kliv_mail' or 'INBOX/kliv_mail'.", true);
	}
	MemoryContextSwitchTo(caller);
	return ok;
}

bool
klm_mailbox_search(KlmMailbox *mailbox, uint32 after, const uint32 **uids, int *count)
{
	MemoryContext caller = MemoryContextSwitchTo(mailbox->context);
	bool		ok = true;

	mailbox->step = "read";
	mailbox->imap.uid_count = 0;
	if (after < PG_UINT32_MAX)
	{
		klm_imap_search(&mailbox->imap, after);
		ok = run(mailbox);
		if (ok && mailbox->imap.status != KLM_IMAP_OK)
			ok = fail(mailbox, "the mailbox cannot be searched", NULL, false);
	}
	*uids = mailbox->imap.uids;
	*count = ok ? mailbox->imap.uid_count : 0;
	MemoryContextSwitchTo(caller);
	return ok;
}

bool
klm_mailbox_fetch(KlmMailbox *mailbox, uint32 uid, const char **data, Size *length)
{
	KlmImap    *imap = &mailbox->imap;
	MemoryContext caller = MemoryContextSwitchTo(mailbox->context);
	bool		ok;

	mailbox->step = "read";
	klm_imap_fetch(imap, uid);
	ok = run(mailbox);
	MemoryContextSwitchTo(caller);
	*data = ok && imap->status == KLM_IMAP_OK && imap->has_body ? imap->body.data : NULL;
	*length = imap->body.len;
	return ok;
}

bool
klm_mailbox_file(KlmMailbox *mailbox, const uint32 *uids, int count, const char *name)
{
	KlmImap    *imap = &mailbox->imap;
	MemoryContext caller = MemoryContextSwitchTo(mailbox->context);
	char	   *quoted = klm_imap_quote(name);
	char	   *set = klm_imap_set(uids, count);
	const char *verb = imap->move ? "MOVE" : "COPY";
	bool		ok;

	mailbox->step = "file";
	klm_imap_command(imap, "UID %s %s %s", verb, set, quoted);
	ok = run(mailbox);
	if (ok && imap->status != KLM_IMAP_OK && imap->try_create)
	{
		/* Somebody has deleted it. */
		ok = klm_mailbox_make(mailbox, name);
		if (ok)
		{
			klm_imap_command(imap, "UID %s %s %s", verb, set, quoted);
			ok = run(mailbox);
		}
	}
	/* Without UIDPLUS others' mails marked \Deleted would go along: ours stay there, marked so. */
	if (ok && imap->status == KLM_IMAP_OK && !imap->move)
	{
		klm_imap_command(imap, "UID STORE %s +FLAGS.SILENT (\\Deleted)", set);
		ok = run(mailbox);
		if (ok && imap->status == KLM_IMAP_OK && imap->uidplus)
		{
			klm_imap_command(imap, "UID EXPUNGE %s", set);
			ok = run(mailbox);
		}
	}
	if (ok && imap->status != KLM_IMAP_OK)
		ok = fail(mailbox, psprintf("what was handled cannot be moved to the mailbox \"%s\"", name),
				  "Look whether the mailbox is full, or give another filed_mailbox.", false);
	MemoryContextSwitchTo(caller);
	return ok;
}

/* ---- the test ---- */

static void
add_step(KlmProbe *probe, const char *name, TimestampTz *since, double elapsed_ms, char *detail)
{
	KlmProbeStep *step = &probe->steps[probe->count++];
	TimestampTz now = GetCurrentTimestamp();

	Assert(probe->count <= KLM_PROBE_STEPS);
	step->step = name;
	step->ok = true;
	step->elapsed_ms = elapsed_ms >= 0 ? elapsed_ms : (now - *since) / 1000.0;
	step->detail = detail;
	step->hint = NULL;
	*since = now;
}

void
klm_probe_mailbox(const KlmTarget *target, const char *name, const char *filed, KlmProbe *probe)
{
	KlmMailbox *mailbox = klm_mailbox_create(target, NULL);
	MemoryContext context = mailbox->context;

	memset(probe, 0, sizeof(*probe));
	PG_TRY();
	{
		KlmConnectReport report;
		TimestampTz since = GetCurrentTimestamp();
		double		total;
		uint32		uid_validity;

		probe->ok = klm_mailbox_connect(mailbox, &report);
		total = (GetCurrentTimestamp() - since) / 1000.0;
		if (probe->ok || report.dns_ms >= 0)
		{
			if (report.address != NULL)
				add_step(probe, "dns", &since, Max(report.dns_ms, 0),
						 psprintf("%s is %s", target->host, report.address));
			if (report.connect_ms >= 0 && (probe->ok || strcmp(mailbox->trouble.step, "tls") == 0))
				add_step(probe, "connect", &since, Max(report.connect_ms - report.dns_ms, 0),
						 psprintf("%s port %d", report.address ? report.address : target->host,
								  target->port));
			if (probe->ok)
				add_step(probe, "tls", &since, Max(total - report.connect_ms, 0),
						 report.tls_version == NULL ? pstrdup("TLS") :
						 report.cert_subject == NULL ? pstrdup(report.tls_version) :
						 psprintf("%s; certificate of %s", report.tls_version, report.cert_subject));
		}
		probe->ok = probe->ok && klm_mailbox_login(mailbox);
		if (probe->ok)
			add_step(probe, "login", &since, -1, pstrdup("the server accepted the credentials"));
		probe->ok = probe->ok && klm_mailbox_select(mailbox, name, &uid_validity);
		if (probe->ok)
			add_step(probe, "select", &since, -1, psprintf("the mailbox \"%s\" is there", name));
		probe->ok = probe->ok && klm_mailbox_make(mailbox, filed);
		if (probe->ok)
			add_step(probe, "file", &since, -1,
					 psprintf("the mailbox \"%s\" takes what was handled", filed));
		else
		{
			const KlmMailboxTrouble *trouble = &mailbox->trouble;

			probe->sqlstate = trouble->sqlstate;
			probe->failure = pstrdup(trouble->problem);
			probe->reply.text = pstrdup(trouble->reply);
			add_step(probe, trouble->step, &since, -1,
					 trouble->reply[0] ? psprintf("%s: %s", trouble->problem, trouble->reply) :
					 pstrdup(trouble->problem));
			probe->steps[probe->count - 1].ok = false;
			probe->steps[probe->count - 1].hint = trouble->hint ? pstrdup(trouble->hint) : NULL;
		}
		klm_mailbox_close(mailbox);
	}
	PG_CATCH();
	{
		MemoryContextDelete(context);
		PG_RE_THROW();
	}
	PG_END_TRY();
}
