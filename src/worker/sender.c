/*-------------------------------------------------------------------------
 *
 * sender.c
 *		'kliv_mail sender': one database's worker.
 *
 * The loop: one transaction that records what is known and claims what there
 * is room for -> SMTP on many connections -> sleep until a socket, the latch,
 * a timeout or the next due time.  Nothing of a transaction is open while the
 * network is waited for.
 *
 * Owns the process and the transaction.  A transaction that has recorded what
 * is known lets as much more begin, so no more than two deliveries a connection
 * can be accepted and unrecorded.  Calls sender_claim.c, which claims,
 * sender_grant.c, which says what may begin, and sender_links.c, which has the
 * connections; all call sender_pools.c, which has what they share.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "lib/ilist.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"		/* get_database_name() since PostgreSQL 19 */
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/compat.h"
#include "base/guc.h"
#include "cluster/database_label.h"
#include "cluster/wake.h"
#include "db/bounce_mailbox.h"
#include "secret/key_ring.h"
#include "worker/sender.h"

/* The SQL that this library serves besides its own: the release before.  This is the first one. */
#define PREVIOUS_VERSION	KLIV_MAIL_VERSION

/* What a leaving sender waits for replies that may be under way. */
#define LEAVE_GRACE_MS		1000
#define SHUTDOWN_GRACE_MS	500

/* Who only makes room for another database, or has other settings to read, waits so long for a
 * dot's reply, whose loss makes a second copy. */
#define LEAVE_DOT_MS		30000

/* ... and tries so long to record its results, which a lock that somebody holds may prevent. */
#define LEAVE_RECORD_MS		5000

/* A transaction that failed is tried again after 1 s, doubling to this. */
#define MAX_RETRY_MS		30000

#define RETAIN_EVERY_MS		3600000

/* A result waits so long for the next one, to be recorded with it. */
#define COMPANY_MS			1

/* ... and all of them so long, where others come without a pause. */
#define LONGEST_COMPANY_MS	20

/* Mail that has waited so long for a connection is worth another sender. */
#define BACKLOG_MS			1000

/*
 * With more in hand than half of what is claimed ahead, and more behind it, new mail is
 * claimed along with that, or this much later: a claim for each commit would take a few.
 */
#define WAKE_WAITS_MS		50

static WaitEventSet *wait_set;
static List *changes = NIL;	/* for NOTIFY: KlmChange */
static int	failures;			/* transactions failed in a row */
static int64 retry_at;

static uint64 seen_wakes;
static bool wake_waits;			/* for the claim of WAKE_WAITS_MS */
static uint32 seen_deaths;
static int64 idle_since;
static int64 next_retain;
static long slot_ms;			/* when to ask again whether others want our slot; -1: never */
static int64 leave_at;			/* not 0: leaving, and when at the latest */
static bool unfinished;			/* leaving with work that another sender has to take up */
static bool tried_last;			/* to record when the time to leave had come */
static bool quiet;				/* the network had nothing for us at the last look */
static int64 results_since;		/* the first of those that wait to be recorded; 0: none does */
static bool mailbox_told;		/* when the bounce mailbox is due */
static bool notify_apart;		/* NOTIFY failed: not in the transactions that record */

PGDLLEXPORT void klm_sender_main(Datum argument) pg_attribute_noreturn();

static bool must_go(void);
static bool turn_is_over(void);
static bool open_for_business(void);
static void tell_of_mailbox(void);
static void read_shared_state(void);
static void loop(void) pg_attribute_noreturn();
static void leave(int64 next_due) pg_attribute_noreturn();
static bool is_served(const char *version);
static void notice_changes(int64 now);
static void look_whether_to_leave(int64 now);
static void give_up_links(int64 now);
static void record_and_claim(int64 now);
static bool under_way(void);
static bool wants_claim(void);
static void leave_if_done(int64 now);
static void ask_for_help(int64 now);
static bool rest(int64 now);
static long sleep_ms(int64 now);
static bool run_transaction(bool may_claim);
static void forget_recorded(bool claimed);
static int	dot_grace_ms(void);
static bool busy(void);
static bool is_bad_data(const ErrorData *edata);
static bool record_singly(void);
static void blame(const ErrorData *edata);
static char *notification(void);
static void notify(void);
static void begin_transaction(MemoryContext results);
static void record(const KlmOutcome *outcomes, int count);
static bool retain(void);

/* ----------------------------------------------------------------
 * Start and end
 * ----------------------------------------------------------------
 */

void
klm_sender_main(Datum argument)
{
	Oid			database;

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
	pgstat_report_appname("kliv_mail sender");
	klm_outbox_pin_session();

	klm_sender.context = AllocSetContextCreate(TopMemoryContext, "kliv_mail sender", ALLOCSET_DEFAULT_SIZES);
	klm_sender.outcome_context = AllocSetContextCreate(klm_sender.context, "kliv_mail outcomes", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(klm_sender.context);

	read_shared_state();
	seen_wakes = klm_sender.shared.wakes;
	seen_deaths = klm_sender.shared.deaths;
	klm_sender.next_claim = KLM_NEVER;
	klm_key_wait_ends = must_go;
	klm_outbox_may_be_told_to_go(turn_is_over);
	if (!open_for_business())
		leave(KLM_NEVER);

	klm_sender.connector = klm_connector_create();
	wait_set = klm_create_wait_event_set(3);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	AddWaitEventToSet(wait_set, WL_SOCKET_READABLE, klm_connector_fd(klm_sender.connector), NULL,
					  NULL);

	loop();
}

static bool
must_go(void)
{
	return ShutdownRequestPending || klm_sender_must_leave();
}

/* So it is, too, where other databases wait for the slot.  In a signal handler. */
static bool
turn_is_over(void)
{
	long		check_ms;

	return must_go() || klm_sender_slot_wanted(&check_ms);
}

/*
 * Look whether the extension is here in a version that we know, open an epoch.
 * false: there is nothing to do in this database.  Errors end the process; the
 * launcher starts another, no sooner than its throttle allows.
 */
static bool
open_for_business(void)
{
	const char *version;

	if (!klm_outbox_begin(klm_sender.context))
	{
		klm_sender_forget_database();
		return false;
	}
	version = klm_outbox_version();
	if (klm_test_clock_offset != 0)
		ereport(WARNING,
				(errmsg("kliv_mail.test_clock_offset moves the clock of database \"%s\"", get_database_name(MyDatabaseId)),
				 errhint("It is for tests only.")));
	if (!is_served(version))
	{
		char	   *message = psprintf("the library has version %s, the extension in this database version %s",
									   KLIV_MAIL_VERSION, version);

		klm_sender_set_error(message);
		ereport(LOG,
				(errmsg("kliv_mail sends nothing: %s", message),
				 errhint("Run ALTER EXTENSION kliv_mail UPDATE, or restart the server after installing a new version.")));
		klm_outbox_commit();
		return false;
	}
	klm_label_database();
	klm_sender.epoch = klm_outbox_open_epoch();
	tell_of_mailbox();
	klm_outbox_commit();
	return true;
}

/*
 * In a transaction: when the bounce mailbox is due, so that the launcher, which
 * sees no database's tables, starts a fetcher.  Whoever changes it tells by himself.
 */
static void
tell_of_mailbox(void)
{
	TimestampTz due = klm_fetch_due();

	klm_sender_knows_fetch(TIMESTAMP_IS_NOEND(due) ? KLM_NEVER :
						   klm_clock_ms() + (due - klm_now() + 999) / 1000);
	mailbox_told = true;
}

static bool
is_served(const char *version)
{
	return strcmp(version, KLIV_MAIL_VERSION) == 0 || strcmp(version, PREVIOUS_VERSION) == 0;
}

static void
read_shared_state(void)
{
	klm_sender_state(&klm_sender.shared);
	klm_sender.connections = Max(1, klm_connections_per_account / Max(1,
																	  klm_sender.shared.senders));
}

/*
 * Give the slot back; a wake-up that came meanwhile makes the launcher start
 * another at once.  Without a good-bye, those who are there or come next look
 * for the claims that stay behind.
 */
static void
leave(int64 next_due)
{
	if (!busy())
		klm_close_all_links();
	if (klm_sender.outcome_count == 0 && !klm_sender.claims_abandoned)
		klm_sender_leave(seen_wakes, next_due, true);
	proc_exit(0);
}

/* ----------------------------------------------------------------
 * The loop
 * ----------------------------------------------------------------
 */

static void
loop(void)
{
	idle_since = klm_clock_ms();
	next_retain = idle_since + 1000;

	for (;;)
	{
		int64		now = klm_clock_ms();
		dlist_iter	iter;
		WaitEvent	events[3];

		CHECK_FOR_INTERRUPTS();
		notice_changes(now);
		if (leave_at == 0)
			look_whether_to_leave(now);
		if (leave_at != 0 && now >= leave_at)
			give_up_links(now);
		record_and_claim(now);
		if (leave_at != 0)
			leave_if_done(now);

		dlist_foreach(iter, &klm_sender.pools)
			klm_stop_paused(dlist_container(KlmPool, node, iter.cur));

		/* Not once a shutdown came, which ends the wait for a standby to have the claim. */
		if (leave_at == 0 && !ShutdownRequestPending)
		{
			dlist_foreach(iter, &klm_sender.pools)
			{
				klm_play(dlist_container(KlmPool, node, iter.cur));
				klm_feed(dlist_container(KlmPool, node, iter.cur));
			}
		}
		now = klm_clock_ms();
		ask_for_help(now);
		if (!rest(now))
			continue;

		quiet = WaitEventSetWait(wait_set, sleep_ms(now), events, lengthof(events),
								 PG_WAIT_EXTENSION) == 0;
		ResetLatch(MyLatch);
		klm_drive_network();
		klm_check_deadlines(klm_clock_ms());
	}
}

/* What others did: settings read anew, wake-ups, senders that died. */
static void
notice_changes(int64 now)
{
	dlist_iter	iter;

	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		/* Files that settings name may have changed with them. */
		dlist_foreach(iter, &klm_sender.pools)
		{
			KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

			if (pool->version)
				pool->version[0] = '\0';
		}
		klm_sender.claim_wanted = true;
		mailbox_told = false;
	}
	read_shared_state();
	if (klm_sender.shared.wakes != seen_wakes)
	{
		seen_wakes = klm_sender.shared.wakes;
		if (klm_sender.claim_again && !klm_has_room())
		{
			wake_waits = true;
			klm_sender.next_claim = Min(klm_sender.next_claim, now + WAKE_WAITS_MS);
		}
		else
			klm_sender.claim_wanted = true;
	}
	if (klm_sender.shared.deaths != seen_deaths)
	{
		seen_deaths = klm_sender.shared.deaths;
		klm_sender.recovery_wanted = klm_sender.claim_wanted = true;
	}
	if (now >= klm_sender.next_claim)
		klm_sender.claim_wanted = true;
}

static void
look_whether_to_leave(int64 now)
{
	dlist_iter	iter;

	slot_ms = -1;
	if (!ShutdownRequestPending && !klm_sender_must_leave() && !klm_sender_slot_wanted(&slot_ms))
		return;
	leave_at = now + (ShutdownRequestPending ? SHUTDOWN_GRACE_MS : LEAVE_GRACE_MS);
	unfinished = busy() || klm_sender.claim_wanted || klm_sender.claim_again;
	dlist_foreach(iter, &klm_sender.pools)
		klm_return_queue(dlist_container(KlmPool, node, iter.cur));
}

/* Whose reply has not come by now is given up; what had its dot is in doubt. */
static void
give_up_links(int64 now)
{
	bool		patient = now < leave_at + dot_grace_ms();
	dlist_iter	iter;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);
		dlist_mutable_iter link_iter;

		dlist_foreach_modify(link_iter, &pool->links)
		{
			KlmLink	   *link = dlist_container(KlmLink, node, link_iter.cur);

			if (patient && link->state == LINK_OPEN && klm_waits_for_dot(link))
				continue;
			klm_close_link(link, "the sender was asked to stop");
		}
	}
}

/*
 * Record, and beside it claim what there is room for and let more begin.  Results
 * wait for each other while more of them come, since a commit that waits for the
 * disk takes as long as many mails.
 */
static void
record_and_claim(int64 now)
{
	bool		late = leave_at != 0 && now >= leave_at;
	bool		may_claim = leave_at == 0 && wants_claim();
	bool		due;

	if (klm_sender.outcome_count == 0)
		results_since = 0;
	else if (results_since == 0)
		results_since = now;
	due = may_claim || (leave_at == 0 && klm_wants_grants()) ||
		(klm_sender.outcome_count > 0 &&
		 (quiet || leave_at != 0 || !under_way() || now >= results_since + LONGEST_COMPANY_MS));

	if (due && (now >= retry_at || (late && !tried_last)))
	{
		tried_last = late;
		run_transaction(may_claim);
	}

	/* Where it fails for good (the schema or its owner is gone, say), another one begins anew. */
	if (failures >= 2 && !klm_sender.isolating && !busy() && klm_sender.outcome_count == 0)
		proc_exit(1);
}

/* Is there a delivery whose outcome may come by itself? */
static bool
under_way(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		if (pool->granted > 0 || pool->open > 0)
			return true;
	}
	return false;
}

static bool
wants_claim(void)
{
	return klm_sender.claim_wanted || (klm_sender.claim_again && klm_has_room());
}

/*
 * Who only makes room for another database records all before it goes, as far
 * as that can be done; after that, what it knows is in doubt.
 */
static void
leave_if_done(int64 now)
{
	if (busy())
		return;
	if (klm_sender.outcome_count == 0 ||
		(now >= leave_at && (ShutdownRequestPending || klm_sender_must_leave())) ||
		(now >= leave_at + LEAVE_RECORD_MS && klm_sender_is_awaited()))
		leave(unfinished ? klm_clock_ms() : klm_sender.next_claim);
}

/* How much longer than for the rest a leaving sender waits for the reply to a dot. */
static int
dot_grace_ms(void)
{
	return ShutdownRequestPending || klm_sender_must_leave() ? 0 : LEAVE_DOT_MS;
}

/* Mail that waits for a connection all the time is worth another sender. */
static void
ask_for_help(int64 now)
{
	static int64 backlog_since = 0;

	if (!klm_sender.claim_again || klm_has_room() || leave_at != 0)
		backlog_since = 0;
	else if (backlog_since == 0)
		backlog_since = now;
	else if (now >= backlog_since + BACKLOG_MS)
	{
		klm_sender_backlog();
		backlog_since = now;
	}
}

/*
 * With nothing in hand: delete old history, or go.  false: mail came when we
 * were about to go.
 */
static bool
rest(int64 now)
{
	if (busy() || klm_sender.outcome_count > 0)
		idle_since = now;
	else if (leave_at == 0 && !klm_sender.claim_wanted)
	{
		/* Mail that comes meanwhile waits for one batch, not for all of them. */
		if (now >= next_retain)
			next_retain = retain() ? now : now + RETAIN_EVERY_MS;
		/* slot_ms: somebody waits for our slot, which does nothing that cannot wait. */
		if (slot_ms >= 0 ||
			(now < next_retain && now >= idle_since + klm_sender_idle_timeout))
		{
			klm_close_all_links();
			if (klm_sender.claims_abandoned ||
				klm_sender_leave(seen_wakes, klm_sender.next_claim, false))
				proc_exit(0);
			klm_sender.claim_wanted = true;
			return false;
		}
	}
	return true;
}

/* How long nothing has to be done; -1: for ever. */
static long
sleep_ms(int64 now)
{
	int64		until = leave_at != 0 ? KLM_NEVER : Max(klm_sender.next_claim, retry_at);
	long		timeout;
	dlist_iter	iter;

	if (leave_at == 0 && (wants_claim() || klm_wants_grants()))
		until = Min(until, Max(retry_at, now));
	if (klm_sender.outcome_count > 0)
		until = Min(until, Max(retry_at, now + COMPANY_MS));
	if (leave_at > now)
		until = Min(until, leave_at);
	else if (leave_at != 0 && busy())
		until = Min(until, leave_at + dot_grace_ms());
	else if (leave_at != 0 && now < leave_at + LEAVE_RECORD_MS)
		until = Min(until, leave_at + LEAVE_RECORD_MS);
	if (!busy() && klm_sender.outcome_count == 0)
	{
		until = Min(until, idle_since + klm_sender_idle_timeout);
		if (leave_at == 0 && !klm_sender.claim_wanted)
			until = Min(until, next_retain);
	}
	dlist_foreach(iter, &klm_sender.pools)
		until = Min(until, klm_pool_deadline(dlist_container(KlmPool, node, iter.cur), now));
	timeout = until == KLM_NEVER ? -1 : until <= now ? 0 : (long) Min(until - now, INT_MAX / 2);
	if (slot_ms >= 0)
		timeout = timeout < 0 ? slot_ms : Min(timeout, slot_ms);
	if (klm_connector_timeout(klm_sender.connector) >= 0)
		timeout = timeout < 0 ? klm_connector_timeout(klm_sender.connector)
			: Min(timeout, klm_connector_timeout(klm_sender.connector));
	return timeout;
}

/* Is a delivery in our hands? */
static bool
busy(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		if (pool->queued > 0 || pool->open > 0)
			return true;
	}
	return false;
}

/*
 * Old history goes when there is nothing better to do: a batch of it.  true:
 * there may be more.
 */
static bool
retain(void)
{
	volatile int64 deleted = 0;

	PG_TRY();
	{
		begin_transaction(klm_sender.context);
		deleted = klm_outbox_retain();
		klm_outbox_commit();
	}
	PG_CATCH();
	{
		deleted = 0;
		MemoryContextSwitchTo(klm_sender.context);
		EmitErrorReport();
		FlushErrorState();
		klm_outbox_abort();
		MemoryContextSwitchTo(klm_sender.context);
	}
	PG_END_TRY();
	return deleted > 0;
}

/* ----------------------------------------------------------------
 * The transaction: record, hold, expire, claim
 * ----------------------------------------------------------------
 */

/*
 * false: it failed and is tried again later; what was to be recorded is kept.
 */
static bool
run_transaction(bool wanted)
{
	/* After a failure results are recorded alone, so that a claim cannot stand in their way. */
	volatile bool may_claim = wanted && !(failures > 0 && klm_sender.outcome_count > 0);
	volatile bool ok = false;
	volatile bool singly = false;

	klm_sender.tried_count = 0;
	/* Here no transaction waits for a key command. */
	klm_ring_fetch();
	pgstat_report_activity(STATE_RUNNING, "recording and claiming");
	PG_TRY();
	{
		KlmBatch   *batch = NULL;
		KlmGrant   *grant;
		char	   *payload = NULL;
		int64		began;

		if (may_claim)
			klm_sender.claim_context = AllocSetContextCreate(klm_sender.context, "kliv_mail batch", ALLOCSET_DEFAULT_SIZES);
		begin_transaction(may_claim ? klm_sender.claim_context : klm_sender.outcome_context);
		if (klm_sender.outcome_count > 0)
		{
			changes = NIL;
			record(klm_sender.outcomes, klm_sender.outcome_count);
			/*
			 * A full queue fails the commit.  Then it goes by transactions of its own,
			 * until one of those succeeds.
			 */
			if (!notify_apart && (payload = notification()) != NULL)
			{
				notify_apart = true;
				klm_outbox_notify(payload);
			}
		}
		if (may_claim)
		{
			klm_sender.claim_wanted |= wake_waits;
			wake_waits = false;
			batch = klm_claim();
		}
		if (!mailbox_told)
			tell_of_mailbox();
		/* Whatever fails from here on is no row's fault. */
		klm_sender.tried_count = 0;
		klm_grant(batch ? batch->claims : NIL);
		began = klm_clock_us();
		klm_outbox_commit();
		klm_sender.commit_us = (3 * klm_sender.commit_us + klm_clock_us() - began) / 4;
		if (payload != NULL)
			notify_apart = false;
		klm_sender.claim_context = NULL;
		grant = klm_granted();
		/* First: what a claim finds wrong with its rows makes new outcomes. */
		forget_recorded(batch != NULL);
		if (batch)
			klm_queue_claimed(batch, grant);
		klm_leave_grant(grant);
		ok = true;
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		/* Behind a claim's commit only the epoch's end gives back what is in no queue yet. */
		if (may_claim && klm_sender.claim_context == NULL)
			PG_RE_THROW();

		MemoryContextSwitchTo(klm_sender.context);
		edata = CopyErrorData();
		EmitErrorReport();
		FlushErrorState();
		klm_outbox_abort();
		MemoryContextSwitchTo(klm_sender.context);
		klm_sender_set_error(edata->message ? edata->message : "unknown error");
		if (may_claim && klm_sender.outcome_count == 0)
			blame(edata);
		singly = klm_sender.outcome_count > 0 && is_bad_data(edata);
		if (klm_sender.claim_context)
			MemoryContextDelete(klm_sender.claim_context);
		klm_sender.claim_context = NULL;
		FreeErrorData(edata);
	}
	PG_END_TRY();
	pgstat_report_activity(STATE_IDLE, NULL);

	/* One row that cannot be recorded must not keep the others from it. */
	if (singly)
		ok = record_singly();
	if (singly || !ok)
		klm_sender.claim_wanted |= wanted;
	if (!ok)
	{
		failures++;
		retry_at = klm_clock_ms() + Min(MAX_RETRY_MS, 500 << Min(failures, 8));
		return false;
	}

	if (failures > 0)
		klm_sender_set_error("");
	failures = 0;
	retry_at = 0;
	return true;
}

/*
 * Outcomes and holds are committed: forget them, wake who waits.  claimed: in
 * a claim's transaction.
 */
static void
forget_recorded(bool claimed)
{
	if (klm_sender.outcome_count == 0)
		return;
	notify();
	/* What is tried again, or a hold, changes when the next is due. */
	for (int i = 0; i < klm_sender.outcome_count; i++)
	{
		const KlmOutcome *outcome = &klm_sender.outcomes[i];

		if (strcmp(outcome->verdict, klm_verdict_name(KLM_ACCEPTED)) == 0)
			continue;
		klm_sender.claim_wanted |= !claimed;
		/* Another account may take over what waits of this one, whose places it has passed. */
		if (strcmp(outcome->scope, klm_scope_name(KLM_SCOPE_ACCOUNT)) == 0)
			klm_line_changed();
	}
	klm_drop_outcomes();
	klm_sender_recorded();
	klm_sender_progress();
}

/*
 * In the transaction; what became of the deliveries is kept for NOTIFY, as long as
 * the results of this transaction are.
 */
static void
record(const KlmOutcome *outcomes, int count)
{
	List	   *recorded = klm_outbox_record(klm_sender.epoch, outcomes, count);
	MemoryContext old = MemoryContextSwitchTo(klm_sender.outcome_context);

	changes = list_concat(changes, recorded);
	MemoryContextSwitchTo(old);
}

/* The extension's owner, or all of it, may have gone since the last transaction. */
static void
begin_transaction(MemoryContext results)
{
	if (!klm_outbox_begin(results))
	{
		/* What is on its way belongs to nobody any more. */
		klm_sender_forget_database();
		klm_sender.outcome_count = 0;
		leave(KLM_NEVER);
	}
	if (!is_served(klm_outbox_version()))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the extension kliv_mail has another version than before")));
}

/*
 * For NOTIFY kliv_mail, once a recorded batch: message ids and statuses, as
 * {"12": "sent", "13": "bounced"}, as many as a payload holds; NULL: nothing.
 */
static char *
notification(void)
{
	StringInfoData payload;
	ListCell   *lc;

	if (changes == NIL)
		return NULL;
	initStringInfo(&payload);
	foreach(lc, changes)
	{
		KlmChange  *change = lfirst(lc);

		if (payload.len < 7900 && strcmp(change->status, "queued") != 0)
			appendStringInfo(&payload, "%s\"" INT64_FORMAT "\": \"%s\"", payload.len ? ", " : "{",
							 change->message_id, change->status);
	}
	changes = NIL;
	if (payload.len == 0)
		return NULL;
	appendStringInfoChar(&payload, '}');
	return payload.data;
}

/*
 * What could not be notified with its results, since that transaction might
 * have failed by it: in one of its own.
 */
static void
notify(void)
{
	static int64 lost = 0;
	char	   *payload = notification();

	if (payload == NULL)
		return;
	PG_TRY();
	{
		begin_transaction(klm_sender.context);
		klm_outbox_notify(payload);
		klm_outbox_commit();
		notify_apart = false;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(klm_sender.context);
		/* A full queue: listeners are slow, which is no reason to log each time. */
		if (lost++ % 1000 == 0)
			EmitErrorReport();
		FlushErrorState();
		klm_outbox_abort();
		MemoryContextSwitchTo(klm_sender.context);
	}
	PG_END_TRY();
	pfree(payload);
}

/* An error that the rows themselves make, so that trying again is in vain? */
static bool
is_bad_data(const ErrorData *edata)
{
	return ERRCODE_TO_CATEGORY(edata->sqlerrcode) == ERRCODE_DATA_EXCEPTION ||
		ERRCODE_TO_CATEGORY(edata->sqlerrcode) == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION ||
		edata->sqlerrcode == ERRCODE_DATA_CORRUPTED;
}

/*
 * Record outcomes one by one.  What even so meets bad data is let go: its row
 * stays claimed until this sender ends, and is in doubt then.  false: another
 * kind of error came; what is not recorded yet is kept.
 */
static bool
record_singly(void)
{
	volatile int done = 0;
	volatile bool ok = true;

	changes = NIL;				/* those of the transaction that failed */
	while (ok && done < klm_sender.outcome_count)
	{
		PG_TRY();
		{
			begin_transaction(klm_sender.outcome_context);
			record(&klm_sender.outcomes[done], 1);
			klm_outbox_commit();
			done++;
		}
		PG_CATCH();
		{
			ErrorData  *edata;

			MemoryContextSwitchTo(klm_sender.context);
			edata = CopyErrorData();
			EmitErrorReport();
			FlushErrorState();
			klm_outbox_abort();
			MemoryContextSwitchTo(klm_sender.context);
			if (is_bad_data(edata))
			{
				ereport(LOG,
						(errmsg("kliv_mail: the outcome of delivery %lld cannot be recorded",
								(long long) klm_sender.outcomes[done].id)));
				klm_sender.claims_abandoned = true;
				klm_sender.done_count = 0;
				done++;
			}
			else
				ok = false;
			FreeErrorData(edata);
		}
		PG_END_TRY();
	}
	if (ok)
		forget_recorded(false);
	else
	{
		klm_sender.outcome_count -= done;
		memmove(klm_sender.outcomes, &klm_sender.outcomes[done],
				klm_sender.outcome_count * sizeof(KlmOutcome));
		notify();
	}
	return ok;
}

/*
 * A claim failed although nothing was to be recorded.  If it is bad data, read
 * rows one at a time until it fails with a single one, and set that aside.
 */
static void
blame(const ErrorData *edata)
{
	char	   *reason;
	int64		id;

	if (klm_sender.tried_count == 0 || !is_bad_data(edata))
		return;
	if (!klm_sender.isolating || klm_sender.tried_count > 1)
	{
		klm_sender.isolating = true;
		klm_sender.isolated = 0;
		return;
	}
	klm_sender.isolating = false;
	id = klm_sender.tried_ids[0];
	reason = psprintf("the queued row could not be read: %s", edata->message ? edata->message : "unknown error");
	PG_TRY();
	{
		begin_transaction(klm_sender.context);
		klm_outbox_set_aside(id, reason);
		klm_outbox_commit();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(klm_sender.context);
		EmitErrorReport();
		FlushErrorState();
		klm_outbox_abort();
	}
	PG_END_TRY();
	pfree(reason);
}
