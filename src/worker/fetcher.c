/*-------------------------------------------------------------------------
 *
 * fetcher.c
 *		'kliv_mail fetcher': takes what came back from a bounce mailbox.
 *
 * A short-lived worker of one database, which the launcher starts when its
 * mailbox is due: look what is new -> fetch a mail -> take it (commit) -> ... ->
 * file what was taken -> go.  It is no part of a sender, so that nothing that
 * waits for an IMAP server, and nothing that is in a mail, slows mail down.
 *
 * Nothing of a transaction is open while the server is waited for.  The commit
 * that takes a mail also remembers that it was taken and is still to be filed
 * (67_fetch.sql), so whoever comes after a death goes on from there.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"		/* get_database_name() since PostgreSQL 19 */
#include "utils/memutils.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "cluster/slots.h"
#include "db/bounce_mailbox.h"
#include "db/outbox.h"
#include "net/mailbox.h"
#include "secret/key_ring.h"
#include "secret/secret_memory.h"

/* Where other databases wait for a fetcher: the last mail begins by then, and ends by then. */
#define TURN_MS 30000
#define LONGEST_TURN_MS 120000

/* A look ends by then in any case, and goes on in a new process. */
#define LOOK_MS 600000

/* Whatever stands in the tables, which a database's owner can write: between two looks ... */
#define EVERY_MS 60000

/* ... and two starts. */
#define START_MS 1000

/* So many mails are filed by one command. */
#define FILE_MAX 50

/* After an error of ours. */
#define RETRY_MS 60000

/* What keeps mails from being looked at, in words. */
typedef struct Trouble
{
	const char *step;			/* NULL: nothing */
	const char *problem;
	const char *reply;
	const char *hint;
	bool		final;
} Trouble;

typedef struct Session
{
	KlmBounceMailbox *box;
	KlmMailbox *server;
	KlmFetchState state;
	uint32		taken[FILE_MAX];	/* to be filed */
	int			taken_count;
	bool		made;			/* the mailbox for them is there */
	bool		more;			/* there is more, and our turn is over */
	bool		changed;		/* the settings are others by now */
} Session;

PGDLLEXPORT void klm_fetcher_main(Datum argument) pg_attribute_noreturn();

static int64 started;
static MemoryContext fetcher_context;	/* of all */
static MemoryContext mail_context;	/* of one mail */

static bool must_go(void);
static bool must_stop(void);
static int64 look(void);
static void run(KlmBounceMailbox *box, Trouble *trouble, bool *more);
static bool go_through(Session *session);
static bool take_all(Session *session, const uint32 *uids, int count);
static bool take(Session *session, uint32 uid, bool *skip, uint32 next);
static bool file_taken(Session *session);
static void begin(void);
static const char *cure_of(const Trouble *trouble);

void
klm_fetcher_main(Datum argument)
{
	Oid			database;
	volatile int64 next_due = 0;

	pqsignal(SIGINT, klm_outbox_cancel);
	pqsignal(SIGTERM, klm_outbox_shutdown);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	klm_no_core_dumps();

	if (!klm_sender_attach(argument, &database))
		proc_exit(0);
	/* Somebody may hold a lock on the database, a prepared transaction for ever. */
	SetConfigOption("lock_timeout", "1s", PGC_SUSET, PGC_S_OVERRIDE);
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	pgstat_report_appname("kliv_mail fetcher");
	klm_outbox_pin_session();
	started = klm_clock_ms();

	fetcher_context = AllocSetContextCreate(TopMemoryContext, "kliv_mail fetcher",
											ALLOCSET_DEFAULT_SIZES);
	mail_context = AllocSetContextCreate(TopMemoryContext, "kliv_mail mail",
										 ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(fetcher_context);
	klm_key_wait_ends = must_go;
	klm_outbox_may_be_told_to_go(must_stop);

	PG_TRY();
	{
		next_due = look();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(fetcher_context);
		EmitErrorReport();
		FlushErrorState();
		klm_outbox_abort();
		next_due = klm_clock_ms() + RETRY_MS;
	}
	PG_END_TRY();
	klm_fetcher_leave(next_due);
	proc_exit(0);
}

/* In a signal handler, too. */
static bool
must_go(void)
{
	return ShutdownRequestPending || klm_sender_must_leave();
}

/* Also where others have waited for us too long.  In a signal handler, too. */
static bool
must_stop(void)
{
	return must_go() || klm_fetcher_slot_wanted(LONGEST_TURN_MS);
}

/* One look into the mailbox, if it is due; when the next one is. */
static int64
look(void)
{
	KlmBounceMailbox *box;
	Trouble		trouble = {0};
	KlmError	error;
	TimestampTz due;
	bool		more = false;
	bool		is_new;

	if (!klm_outbox_begin(fetcher_context))
	{
		klm_sender_forget_database();
		return KLM_NEVER;
	}
	/* A sender tells of another version. */
	if (strcmp(klm_outbox_version(), KLIV_MAIL_VERSION) != 0)
	{
		klm_outbox_commit();
		return KLM_NEVER;
	}
	due = klm_fetch_due();
	box = due <= klm_now() ? klm_fetch_settings(fetcher_context) : NULL;
	klm_outbox_commit();
	if (box == NULL)
		return TIMESTAMP_IS_NOEND(due) ? KLM_NEVER :
			klm_clock_ms() + Max(START_MS, (due - klm_now() + 999) / 1000);

	/* Here no transaction waits for a key command. */
	klm_ring_fetch();
	if (klm_bounce_mailbox_open(box, NULL, &error))
		run(box, &trouble, &more);
	else
	{
		trouble.step = "key";
		trouble.problem = error.message;
		trouble.reply = "";
		trouble.hint = error.hint;
	}
	if (box->secret != NULL)
		klm_secret_wipe(box->secret);

	begin();
	if (trouble.step != NULL && trouble.reply[0])
		trouble.problem = psprintf("%s: %s", trouble.problem, trouble.reply);
	trouble.hint = cure_of(&trouble);
	is_new = klm_fetch_end(box->settings, more, trouble.step, trouble.problem, trouble.hint,
						   trouble.final);
	due = klm_fetch_due();
	if (is_new)
		ereport(WARNING,
				(errmsg("kliv_mail cannot read the bounce mailbox of database \"%s\": %s",
						get_database_name(MyDatabaseId), klm_from_utf8_lossy(trouble.problem)),
				 trouble.hint ? errhint("%s", klm_from_utf8_lossy(trouble.hint)) : 0));
	klm_outbox_commit();
	return TIMESTAMP_IS_NOEND(due) ? KLM_NEVER :
		klm_clock_ms() + Max(more ? 0 : EVERY_MS, (due - klm_now() + 999) / 1000);
}

/* What a person can do about it. */
static const char *
cure_of(const Trouble *trouble)
{
	static const char test[] = "SELECT * FROM kliv_mail.test_bounce_mailbox(); shows whether it "
		"still is so.";

	if (trouble->step == NULL)
		return NULL;
	if (strcmp(trouble->step, "login") == 0 && trouble->final)
		return psprintf("%s%sSELECT * FROM kliv_mail.configure_bounce_mailbox(password => 'the new "
						"password'); saves another one.", trouble->hint ? trouble->hint : "",
						trouble->hint ? " " : "");
	if (strcmp(trouble->step, "key") == 0)
		return trouble->hint;	/* which of the keys, and whether another one does */
	return psprintf("%s%s%s", trouble->hint ? trouble->hint : "", trouble->hint ? " " : "", test);
}

/* Connect, log in, look at all that is new. */
static void
run(KlmBounceMailbox *box, Trouble *trouble, bool *more)
{
	Session		session = {.box = box};
	KlmConnectReport report;
	uint32		uid_validity;
	bool		ok;

	pgstat_report_activity(STATE_RUNNING, "looking into the bounce mailbox");
	session.server = klm_mailbox_create(&box->target, must_stop);
	ok = klm_mailbox_connect(session.server, &report) && klm_mailbox_login(session.server) &&
		klm_mailbox_select(session.server, box->mailbox, &uid_validity);
	if (ok)
	{
		begin();
		session.changed = !klm_fetch_open(box->settings, uid_validity, fetcher_context,
										  &session.state);
		klm_outbox_commit();
		ok = session.changed || go_through(&session);
	}
	*more = session.more;
	if (!ok)
	{
		const KlmMailboxTrouble *found = klm_mailbox_trouble(session.server);

		/* Who was told to stop goes on as soon as may be. */
		*more = found->stopped;
		if (!found->stopped)
		{
			trouble->step = found->step;
			trouble->problem = pstrdup(found->problem);
			trouble->reply = pstrdup(found->reply);
			trouble->hint = found->hint ? pstrdup(found->hint) : NULL;
			trouble->final = found->final;
		}
	}
	klm_mailbox_close(session.server);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/* false: the server's trouble; true: all is looked at, or session->more, or session->changed. */
static bool
go_through(Session *session)
{
	KlmFetchState *state = &session->state;
	uint32	   *again = palloc(Max(1, state->postponed_count) * sizeof(uint32));

	/* What was taken before us. */
	for (int i = 0; i < state->to_file_count; i++)
	{
		session->taken[session->taken_count++] = (uint32) state->to_file[i];
		if (session->taken_count == FILE_MAX && !file_taken(session))
			return false;
	}
	if (!file_taken(session))
		return false;

	for (int i = 0; i < state->postponed_count; i++)
		again[i] = (uint32) state->postponed[i];
	if (!take_all(session, again, state->postponed_count))
		return false;

	while (!session->more && !session->changed)
	{
		const uint32 *found;
		uint32	   *uids;
		int			count;

		if (!klm_mailbox_search(session->server, (uint32) state->seen, &found, &count))
			return false;
		if (count == 0)
			break;
		/* (the next command forgets them) */
		uids = palloc(count * sizeof(uint32));
		memcpy(uids, found, count * sizeof(uint32));
		if (!take_all(session, uids, count))
			return false;
		state->seen = uids[count - 1];
		pfree(uids);
	}
	return true;
}

/* Fetch, take and file these mails, until our turn is over. */
static bool
take_all(Session *session, const uint32 *uids, int count)
{
	bool		skip = false;

	if (count == 0)
		return true;
	begin();
	session->changed = !klm_fetch_hand(session->box->settings, uids[0], &skip);
	klm_outbox_commit();
	for (int i = 0; i < count && !session->changed; i++)
	{
		if (klm_fetcher_slot_wanted(TURN_MS) || klm_clock_ms() >= started + LOOK_MS)
		{
			session->more = true;
			break;
		}
		if (!take(session, uids[i], &skip, i + 1 < count ? uids[i + 1] : 0))
			return false;
		if (session->taken_count == FILE_MAX && !file_taken(session))
			return false;
	}
	return session->changed || file_taken(session);
}

/* One mail, unless *skip; the next one (0: none) is in hand then, and *skip its. */
static bool
take(Session *session, uint32 uid, bool *skip, uint32 next)
{
	KlmBounceMailbox *box = session->box;
	const char *data = NULL;
	Size		length = 0;
	bool		file = false;

	if (!*skip && !klm_mailbox_fetch(session->server, uid, &data, &length))
		return false;

	begin();
	if (!*skip && !klm_fetch_take(box->settings, uid, data, length, &file))
		session->changed = true;
	*skip = false;
	if (next != 0 && !session->changed)
		session->changed = !klm_fetch_hand(box->settings, next, skip);
	klm_outbox_commit();
	MemoryContextReset(mail_context);
	if (file && !session->changed)
		session->taken[session->taken_count++] = uid;
	return true;
}

/* Move what was taken out of the way. */
static bool
file_taken(Session *session)
{
	KlmBounceMailbox *box = session->box;

	if (session->taken_count == 0)
		return true;
	if (!session->made && !klm_mailbox_make(session->server, box->filed_mailbox))
		return false;
	session->made = true;
	if (!klm_mailbox_file(session->server, session->taken, session->taken_count,
						  box->filed_mailbox))
		return false;
	begin();
	klm_fetch_filed(box->settings, session->taken, session->taken_count);
	klm_outbox_commit();
	session->taken_count = 0;
	return true;
}

/* The extension may have gone since the last transaction. */
static void
begin(void)
{
	if (!klm_outbox_begin(mail_context))
	{
		klm_sender_forget_database();
		klm_fetcher_leave(KLM_NEVER);
		proc_exit(0);
	}
	if (strcmp(klm_outbox_version(), KLIV_MAIL_VERSION) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the extension kliv_mail has another version than before")));
}
