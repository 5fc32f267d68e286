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
 * What belongs to whom: an account in use has a Pool with its Links
 * (connections) and the queue of claimed deliveries that no link has begun.  A
 * claim's deliveries and their messages live in one Batch, freed when the last
 * of them is finished.  Outcomes wait in a context of their own until a
 * transaction has recorded them; while that fails nothing new is begun, so no
 * more than two deliveries a connection can be accepted and unrecorded.
 *
 * Layer: process.  May call outbox.c, settings.c, connection.c, smtp.c,
 * reply.c, mime.c, shmem.c, guc.c.
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
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/error.h"
#include "base/guc.h"
#include "base/text.h"
#include "cluster/database_label.h"
#include "cluster/slots.h"
#include "cluster/wake.h"
#include "db/account.h"
#include "db/outbox.h"
#include "message/compose.h"
#include "net/connection.h"
#include "secret/unsubscribe_token.h"
#include "smtp/providers.h"
#include "smtp/reply_parse.h"
#include "smtp/session.h"
#include "smtp/verdict.h"

/* The SQL that this library serves besides its own: the release before.  This is the first one. */
#define PREVIOUS_VERSION	KLIV_MAIL_VERSION

/* RFC 5321 section 4.5.3.2.6: the server may take ten minutes over the final dot. */
#define DOT_TIMEOUT_MS		600000

/* An idle connection is closed after this, before most servers would. */
#define LINK_IDLE_MS		60000

/* What a leaving sender waits for replies that may be under way. */
#define LEAVE_GRACE_MS		1000
#define SHUTDOWN_GRACE_MS	500

/* Who only makes room for another database, or has other settings to read, waits so long for a
 * dot's reply, whose loss makes a second copy. */
#define LEAVE_DOT_MS		30000

/* _record() has what waits for the key come back in a minute. */
#define KEY_LOOK_MS			55000

/* A transaction that failed is tried again after 1 s, doubling to this. */
#define MAX_RETRY_MS		30000

#define RETAIN_EVERY_MS		3600000

/* A claim that met another sender's is tried again after 20 ms, doubling to 1 s. */
#define VAIN_CLAIM_MS		20
#define MAX_VAIN_CLAIM_MS	1000

/* Mail that has waited so long for a connection is worth another sender. */
#define BACKLOG_MS			1000

/* An account's settings, kept while a pool or a link uses them. */
typedef struct Settings
{
	MemoryContext context;
	int			users;
	KlmAccount *account;
} Settings;

typedef struct Pool
{
	dlist_node	node;
	char	   *name;
	char	   *version;		/* KlmClaim.settings that the settings were loaded for */
	Settings   *settings;
	dlist_head	queue;			/* Deliveries not begun */
	int			queued;
	int			open;			/* Deliveries begun on a link */
	int64		bytes;			/* of both */
	dlist_head	links;
	int			link_count;
	int			opening;
	int			allowed;		/* connections now; grows on success, shrinks on trouble */
	TimestampTz next_begin;		/* where the provider takes only so many a second */
	bool		more;			/* its last claim found something */
	bool		stale;			/* the queue was composed for other settings */
	bool		paused;			/* pause(), a limit of 0, out of use: what has not left goes back */
	/* Trouble of the account itself, to be recorded. */
	bool		hold;
	const char *hold_by;
	int			hold_pause_s;
	char	   *hold_reason;	/* in outcome_context */
	char	   *hold_hint;
	bool		hold_failure;
	char	   *hold_fingerprint;	/* of the settings that it was met with */
} Pool;

typedef enum LinkState
{
	LINK_OPENING,
	LINK_OPEN
} LinkState;

typedef struct Link
{
	dlist_node	node;
	Pool	   *pool;
	Settings   *settings;
	MemoryContext context;
	LinkState	state;
	KlmConnection *connection;
	KlmSmtp    *smtp;
	TimestampTz deadline;		/* of the reply that is awaited, or of idleness */
	int			begun;			/* deliveries handed to it */
} Link;

typedef struct Batch
{
	MemoryContext context;
	int			open;			/* deliveries without an outcome */
} Batch;

typedef struct Delivery
{
	dlist_node	node;
	int64		id;
	int64		message_id;
	Batch	   *batch;
	Pool	   *pool;
	KlmStoredMessage *message;
	int			size;
	char	   *identity;		/* the identity lines */
	KlmSmtpDelivery smtp;
} Delivery;

static MemoryContext sender_context;
static MemoryContext outcome_context;
static KlmConnector *connector;
static WaitEventSet *wait_set;
static dlist_head pools = DLIST_STATIC_INIT(pools);

static int64 epoch;
static KlmOutcome *outcomes;
static int	outcome_count;
static int	outcome_space;
static int64 claimed_bytes;		/* of all pools */
static MemoryContext claim_context; /* the batch of the transaction under way */
static int64 *tried_ids;		/* the rows that it reads, for blame when it fails */
static int	tried_count;

static KlmSenderState shared_state;
static int	connections;		/* to an account, our share of connections_per_account */
static int	vain_claims;		/* in a row, though something was due */
static bool recovery_wanted = true; /* a sender may have died with claims */
static bool claims_abandoned;	/* outcomes were let go: our death has to be noticed */

static bool claim_wanted = true;
static bool claim_again;		/* an account's last claim found something, so there may be more */
static TimestampTz next_claim = DT_NOEND;	/* real time */
static bool isolating;			/* one row at a time, to find one that cannot be read */
static int	isolated;			/* rows that were read so */
static int	failures;			/* transactions failed in a row */
static TimestampTz retry_at = 0;

PGDLLEXPORT void klm_sender_main(Datum argument) pg_attribute_noreturn();

static void pin_session(void);
static bool open_for_business(void);
static void read_shared_state(void);
static void loop(void) pg_attribute_noreturn();
static void leave(TimestampTz next_due, uint64 wakes) pg_attribute_noreturn();
static bool run_transaction(bool may_claim);
static void forget_recorded(bool claimed);
static void claim(void);
static void look_at_accounts(void);
static const char *cure_of(const KlmDecision *decision, const KlmAccount *account);
static int	dot_grace_ms(void);
static bool make_links(List *claims, List *messages, MemoryContext context);
static void prepare(Batch *batch, KlmClaim *claim, KlmStoredMessage *message, Pool *pool);
static char *compose_identity(const KlmAccount *account, const KlmStoredMessage *message,
							  const KlmClaim *claimed, const char **from, const char **problem);
static Pool *find_pool(const char *name);
static void load_settings(Pool *pool, const char *version);
static void release_settings(Settings *settings);
static void add_outcome(Delivery *delivery, const Link *link, const KlmReply *reply,
						const KlmDecision *decision);
static void add_local_outcome(int64 id, int64 message_id, const char *verdict, const char *reason);
static KlmOutcome *new_outcome(int64 id, int64 message_id);
static void finish(Delivery *delivery);
static void return_queue(Pool *pool);
static void note_hold(Pool *pool, const Settings *settings, const char *by, int pause_s,
					  const char *reason, const char *hint, bool failure);
static void stop_paused(Pool *pool);
static bool waits_for_dot(const Link *link);
static void feed(Pool *pool);
static void take_back_waiting(Pool *pool);
static bool is_spent(Link *link);
static bool keep_pace(Pool *pool);
static void begin(Link *link, Delivery *delivery);
static void open_link(Pool *pool);
static void close_link(Link *link, const char *why);
static void link_opened(Link *link);
static void link_failed(Link *link);
static void flush_link(Link *link);
static void read_link(Link *link);
static void take_results(Link *link);
static void set_deadline(Link *link);
static void drive_network(void);
static void check_deadlines(TimestampTz now);
static bool busy(void);
static bool has_room(void);
static bool holds_to_record(void);
static bool is_bad_data(const ErrorData *edata);
static bool record_singly(void);
static void blame(const ErrorData *edata);
static void notify(void);
static long wait_time(TimestampTz now, TimestampTz until);
static bool retain(void);

/* ----------------------------------------------------------------
 * Start and end
 * ----------------------------------------------------------------
 */

void
klm_sender_main(Datum argument)
{
	Oid			database;

	pqsignal(SIGTERM, klm_outbox_shutdown);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	klm_no_core_dumps();

	if (!klm_sender_attach(argument, &database))
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	pgstat_report_appname("kliv_mail sender");
	pin_session();

	sender_context = AllocSetContextCreate(TopMemoryContext, "kliv_mail sender", ALLOCSET_DEFAULT_SIZES);
	outcome_context = AllocSetContextCreate(sender_context, "kliv_mail outcomes", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(sender_context);

	read_shared_state();
	if (!open_for_business())
		leave(DT_NOEND, shared_state.wakes);

	connector = klm_connector_create();
	wait_set = klm_create_wait_event_set(3);
	AddWaitEventToSet(wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	AddWaitEventToSet(wait_set, WL_SOCKET_READABLE, klm_connector_fd(connector), NULL, NULL);

	loop();
}

/* As autovacuum does: what a role or the database sets must not change what the sender does. */
static void
pin_session(void)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"session_replication_role", "replica"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"synchronous_commit", "on"},
		{"statement_timeout", "0"},
		{"lock_timeout", "1s"},
		{"idle_in_transaction_session_timeout", "0"},
		{"transaction_timeout", "0"}, /* from PostgreSQL 17 on */
		{"zero_damaged_pages", "off"},
		{"jit", "off"},
		/* The outbox's statistics are always of another moment: its indexes are what claims are
		   made for. */
		{"enable_seqscan", "off"},
		{"enable_bitmapscan", "off"},
		{"row_security", "off"},
		{"extra_float_digits", "1"},
		{"datestyle", "ISO, MDY"},
		{"intervalstyle", "postgres"},
	};

	for (int i = 0; i < lengthof(settings); i++)
	{
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	}
}

/*
 * Look whether the extension is here in a version that we know, open an epoch.
 * false: there is nothing to do in this database.  Errors end the process; the
 * launcher starts another, no sooner than its throttle allows.
 */
static bool
open_for_business(void)
{
	char	   *version;

	klm_outbox_begin(sender_context);
	if (klm_test_clock_offset != 0)
		ereport(WARNING,
				(errmsg("kliv_mail.test_clock_offset moves the clock of database \"%s\"", get_database_name(MyDatabaseId)),
				 errhint("It is for tests only.")));
	version = klm_outbox_version();
	klm_outbox_commit();
	if (version == NULL)
	{
		klm_sender_forget_database();
		return false;
	}
	if (strcmp(version, KLIV_MAIL_VERSION) != 0 && strcmp(version, PREVIOUS_VERSION) != 0)
	{
		char	   *message = psprintf("the library has version %s, the extension in this database version %s",
									   KLIV_MAIL_VERSION, version);

		klm_sender_set_error(message);
		ereport(LOG,
				(errmsg("kliv_mail sends nothing: %s", message),
				 errhint("Run ALTER EXTENSION kliv_mail UPDATE, or restart the server after installing a new version.")));
		return false;
	}
	klm_outbox_begin(sender_context);
	klm_label_database();
	epoch = klm_outbox_open_epoch();
	klm_outbox_commit();
	return true;
}

static void
read_shared_state(void)
{
	klm_sender_state(&shared_state);
	connections = Max(1, klm_connections_per_account / Max(1, shared_state.senders));
}

/*
 * Give the slot back; a wake-up that came meanwhile makes the launcher start
 * another at once.  Without a good-bye, those who are there or come next look
 * for the claims that stay behind.
 */
static void
leave(TimestampTz next_due, uint64 wakes)
{
	if (outcome_count == 0 && !claims_abandoned)
		klm_sender_leave(wakes, next_due, true);
	proc_exit(0);
}

/* ----------------------------------------------------------------
 * The loop
 * ----------------------------------------------------------------
 */

static void
loop(void)
{
	uint64		seen_wakes = shared_state.wakes;
	uint32		seen_deaths = shared_state.deaths;
	TimestampTz backlog_since = 0;
	TimestampTz idle_since = GetCurrentTimestamp();
	TimestampTz leave_at = 0;	/* not 0: leaving, and when at the latest */
	bool		unfinished = false; /* leaving with work that another sender has to take up */
	bool		tried_last = false; /* to record when the time to leave had come */
	TimestampTz next_retain = TimestampTzPlusMilliseconds(idle_since, 1000);

	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz until;
		long		timeout;
		long		slot_ms = -1;
		bool		may_claim;
		dlist_iter	iter;
		WaitEvent	events[3];

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			/* Files that settings name may have changed with them. */
			dlist_foreach(iter, &pools)
			{
				Pool	   *pool = dlist_container(Pool, node, iter.cur);

				if (pool->version)
					pool->version[0] = '\0';
			}
			claim_wanted = true;
		}
		read_shared_state();
		if (shared_state.wakes != seen_wakes)
		{
			seen_wakes = shared_state.wakes;
			claim_wanted = true;
		}
		if (shared_state.deaths != seen_deaths)
		{
			seen_deaths = shared_state.deaths;
			recovery_wanted = claim_wanted = true;
		}
		if (now >= next_claim)
			claim_wanted = true;

		if (leave_at == 0 && (ShutdownRequestPending || klm_sender_must_leave() ||
							  klm_sender_slot_wanted(&slot_ms)))
		{
			leave_at = TimestampTzPlusMilliseconds(now, ShutdownRequestPending ? SHUTDOWN_GRACE_MS
																			   : LEAVE_GRACE_MS);
			unfinished = busy() || claim_wanted || claim_again;
			dlist_foreach(iter, &pools)
				return_queue(dlist_container(Pool, node, iter.cur));
		}
		if (leave_at != 0 && now >= leave_at)
		{
			/* Whose reply has not come by now is given up; what had its dot is in doubt. */
			bool		patient = now < TimestampTzPlusMilliseconds(leave_at, dot_grace_ms());

			dlist_foreach(iter, &pools)
			{
				Pool	   *pool = dlist_container(Pool, node, iter.cur);
				dlist_mutable_iter link_iter;

				dlist_foreach_modify(link_iter, &pool->links)
				{
					Link	   *link = dlist_container(Link, node, link_iter.cur);

					if (patient && link->state == LINK_OPEN && waits_for_dot(link))
						continue;
					close_link(link, "the sender was asked to stop");
				}
			}
		}

		/* Record, and claim beside it what there is room for. */
		may_claim =
			leave_at == 0 && (claim_wanted || (claim_again && outcome_count > 0 && has_room()));
		if ((now >= retry_at || (leave_at != 0 && now >= leave_at && !tried_last)) &&
			(outcome_count > 0 || holds_to_record() || may_claim))
		{
			tried_last = leave_at != 0 && now >= leave_at;
			run_transaction(may_claim);
		}

		if (leave_at != 0 && !busy())
		{
			/* Who only makes room for another database does not go before all is recorded. */
			if (outcome_count == 0 ||
				(now >= leave_at && (ShutdownRequestPending || klm_sender_must_leave())))
				leave(unfinished ? 0 : next_claim, seen_wakes);
		}

		dlist_foreach(iter, &pools)
			stop_paused(dlist_container(Pool, node, iter.cur));

		/*
		 * Feed the connections, unless results wait that could not be recorded, or
		 * a shutdown came, which ends the wait for a standby to have the claim.
		 */
		if (leave_at == 0 && outcome_count == 0 && !ShutdownRequestPending)
		{
			dlist_foreach(iter, &pools)
				feed(dlist_container(Pool, node, iter.cur));
			/* Look for more, or for the next due time, while the network is busy. */
			if (claim_again && outcome_count == 0 && has_room() && now >= retry_at)
			{
				run_transaction(true);
				continue;
			}
		}

		now = GetCurrentTimestamp();
		/* Mail that waits for a connection all the time is worth another sender. */
		if (!claim_again || has_room() || leave_at != 0)
			backlog_since = 0;
		else if (backlog_since == 0)
			backlog_since = now;
		else if (now >= TimestampTzPlusMilliseconds(backlog_since, BACKLOG_MS))
		{
			klm_sender_backlog();
			backlog_since = now;
		}

		if (busy() || outcome_count > 0)
			idle_since = now;
		else if (leave_at == 0 && !claim_wanted)
		{
			/* Mail that comes meanwhile waits for one batch, not for all of them. */
			if (now >= next_retain)
				next_retain = retain() ? now : TimestampTzPlusMilliseconds(now, RETAIN_EVERY_MS);
			/* slot_ms: somebody waits for our slot, which does nothing that cannot wait. */
			if (slot_ms >= 0 ||
				(now < next_retain &&
				 now >= TimestampTzPlusMilliseconds(idle_since, klm_sender_idle_timeout)))
			{
				dlist_foreach(iter, &pools)
				{
					Pool	   *pool = dlist_container(Pool, node, iter.cur);

					while (!dlist_is_empty(&pool->links))
						close_link(dlist_head_element(Link, node, &pool->links), NULL);
				}
				if (claims_abandoned || klm_sender_leave(seen_wakes, next_claim, false))
					proc_exit(0);
				claim_wanted = true;
				continue;
			}
		}

		/* Sleep. */
		until = next_claim;
		if ((claim_wanted && leave_at == 0) || outcome_count > 0)
			until = Min(until, Max(retry_at, now));
		if (leave_at > now)
			until = Min(until, leave_at);
		else if (leave_at != 0 && busy())
			until = Min(until, TimestampTzPlusMilliseconds(leave_at, dot_grace_ms()));
		if (!busy() && outcome_count == 0)
		{
			until = Min(until, TimestampTzPlusMilliseconds(idle_since, klm_sender_idle_timeout));
			if (leave_at == 0 && !claim_wanted)
				until = Min(until, next_retain);
		}
		dlist_foreach(iter, &pools)
		{
			Pool	   *pool = dlist_container(Pool, node, iter.cur);
			dlist_iter	link_iter;

			if (pool->queued > 0 && pool->next_begin > now)
				until = Min(until, pool->next_begin);

			dlist_foreach(link_iter, &pool->links)
			{
				Link	   *link = dlist_container(Link, node, link_iter.cur);

				if (link->state == LINK_OPEN)
					until = Min(until, link->deadline);
			}
		}
		timeout = wait_time(now, until);
		if (slot_ms >= 0)
			timeout = timeout < 0 ? slot_ms : Min(timeout, slot_ms);
		if (klm_connector_timeout(connector) >= 0)
			timeout = timeout < 0 ? klm_connector_timeout(connector)
								  : Min(timeout, klm_connector_timeout(connector));

		WaitEventSetWait(wait_set, timeout, events, lengthof(events), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);

		drive_network();
		check_deadlines(GetCurrentTimestamp());
	}
}

/* Milliseconds to a time, rounded up; -1: for ever. */
static long
wait_time(TimestampTz now, TimestampTz until)
{
	int64		ms;

	if (until == DT_NOEND)
		return -1;
	if (until <= now)
		return 0;
	ms = (until - now + 999) / 1000;
	return (long) Min(ms, (int64) INT_MAX / 2);
}

/* Is a delivery in our hands? */
static bool
busy(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &pools)
	{
		Pool	   *pool = dlist_container(Pool, node, iter.cur);

		if (pool->queued > 0 || pool->open > 0)
			return true;
	}
	return false;
}

/*
 * Is there an account that has more, with room for another claim worth its
 * transaction: half of its connections' queues, and of its share of the memory?
 */
static bool
has_room(void)
{
	int64		memory = (int64) klm_sender_memory * 1024;
	dlist_iter	iter;

	dlist_foreach(iter, &pools)
	{
		Pool	   *pool = dlist_container(Pool, node, iter.cur);

		if (pool->more && pool->queued + pool->open <= 2 * connections &&
			pool->bytes <= (memory - (claimed_bytes - pool->bytes)) / 4)
			return true;
	}
	return false;
}

static bool
holds_to_record(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &pools)
	{
		if (dlist_container(Pool, node, iter.cur)->hold)
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
		klm_outbox_begin(sender_context);
		deleted = klm_outbox_retain();
		klm_outbox_commit();
	}
	PG_CATCH();
	{
		deleted = 0;
		MemoryContextSwitchTo(sender_context);
		EmitErrorReport();
		FlushErrorState();
		klm_outbox_abort();
		MemoryContextSwitchTo(sender_context);
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
	volatile bool may_claim = wanted && !(failures > 0 && outcome_count > 0);
	volatile bool ok = false;
	volatile bool singly = false;
	dlist_iter	iter;

	tried_count = 0;
	pgstat_report_activity(STATE_RUNNING, "recording and claiming");
	PG_TRY();
	{
		if (may_claim)
			claim_context = AllocSetContextCreate(sender_context, "kliv_mail batch", ALLOCSET_DEFAULT_SIZES);
		klm_outbox_begin(may_claim ? claim_context : sender_context);
		if (outcome_count > 0)
			klm_outbox_record(epoch, outcomes, outcome_count);
		dlist_foreach(iter, &pools)
		{
			Pool	   *pool = dlist_container(Pool, node, iter.cur);

			if (pool->hold)
			{
				klm_outbox_hold(pool->name, pool->hold_by, pool->hold_pause_s, pool->hold_reason,
								pool->hold_hint, pool->hold_failure, pool->hold_fingerprint);
			}
		}
		if (may_claim)
			claim();
		else
		{
			klm_outbox_commit();
			forget_recorded(false);
		}
		ok = true;
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		/* Behind a claim's commit only the epoch's end gives back what is in no queue yet. */
		if (may_claim && claim_context == NULL)
			PG_RE_THROW();

		MemoryContextSwitchTo(sender_context);
		edata = CopyErrorData();
		EmitErrorReport();
		FlushErrorState();
		klm_outbox_abort();
		MemoryContextSwitchTo(sender_context);
		klm_sender_set_error(edata->message ? edata->message : "unknown error");
		if (may_claim && outcome_count == 0)
			blame(edata);
		singly = outcome_count > 0 && is_bad_data(edata);
		if (claim_context)
			MemoryContextDelete(claim_context);
		claim_context = NULL;
		FreeErrorData(edata);
	}
	PG_END_TRY();
	pgstat_report_activity(STATE_IDLE, NULL);

	/* One row that cannot be recorded must not keep the others from it. */
	if (singly)
		ok = record_singly();
	if (singly || !ok)
		claim_wanted |= wanted;
	if (!ok)
	{
		failures++;
		retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
											   Min(MAX_RETRY_MS, 500 << Min(failures, 8)));
		return false;
	}

	if (failures > 0)
		klm_sender_set_error("");
	failures = 0;
	retry_at = 0;
	return true;
}

/*
 * Outcomes and holds are committed.  Called right behind the commit, since
 * what a claim finds wrong with its rows makes new ones.
 */
static void
forget_recorded(bool claimed)
{
	dlist_iter	iter;

	if (outcome_count == 0 && !holds_to_record())
		return;
	if (klm_notify)
		notify();
	/* What went back to the line, or a hold, changes when the next is due. */
	if (!claimed)
	{
		claim_wanted |= holds_to_record();
		for (int i = 0; i < outcome_count && !claim_wanted; i++)
			claim_wanted = strcmp(outcomes[i].verdict, klm_verdict_name(KLM_ACCEPTED)) != 0;
	}
	outcome_count = outcome_space = 0;
	outcomes = NULL;
	dlist_foreach(iter, &pools)
		dlist_container(Pool, node, iter.cur)->hold = false;
	MemoryContextReset(outcome_context);
	klm_sender_recorded();
	klm_sender_progress();
}

/*
 * NOTIFY kliv_mail, once a recorded batch and in a transaction of its own, so
 * that nothing of it can keep a result from being recorded: message ids and
 * statuses, as {"12": "sent", "13": "bounced"}, as many as a payload holds.
 */
static void
notify(void)
{
	static int64 lost = 0;
	StringInfoData payload;

	initStringInfo(&payload);
	for (int i = 0; i < outcome_count && payload.len < 7900; i++)
	{
		const char *verdict = outcomes[i].verdict;

		if (strcmp(verdict, "returned") == 0)
			continue;
		appendStringInfo(&payload, "%s\"" INT64_FORMAT "\": \"%s\"", payload.len ? ", " : "{",
						 outcomes[i].message_id,
						 strcmp(verdict, klm_verdict_name(KLM_ACCEPTED)) == 0 ? "sent" :
						 strcmp(verdict, klm_verdict_name(KLM_PERMANENT)) == 0 ? "bounced" :
						 strcmp(verdict, klm_verdict_name(KLM_IN_DOUBT)) == 0 ? "in_doubt" :
						 strcmp(verdict, klm_verdict_name(KLM_MESSAGE_FAULT)) == 0 ||
						 strcmp(verdict, klm_verdict_name(KLM_POLICY_BLOCK)) == 0 ? "failed" :
						 strcmp(verdict, "suppressed") == 0 ? "suppressed" : "deferred");
	}
	if (payload.len > 0)
	{
		appendStringInfoChar(&payload, '}');
		PG_TRY();
		{
			klm_outbox_begin(sender_context);
			klm_outbox_notify(payload.data);
			klm_outbox_commit();
		}
		PG_CATCH();
		{
			MemoryContextSwitchTo(sender_context);
			/* A full queue: listeners are slow, which is no reason to log each time. */
			if (lost++ % 1000 == 0)
				EmitErrorReport();
			FlushErrorState();
			klm_outbox_abort();
			MemoryContextSwitchTo(sender_context);
		}
		PG_END_TRY();
	}
	pfree(payload.data);
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

	while (ok && done < outcome_count)
	{
		PG_TRY();
		{
			klm_outbox_begin(sender_context);
			klm_outbox_record(epoch, &outcomes[done], 1);
			klm_outbox_commit();
			done++;
		}
		PG_CATCH();
		{
			ErrorData  *edata;

			MemoryContextSwitchTo(sender_context);
			edata = CopyErrorData();
			EmitErrorReport();
			FlushErrorState();
			klm_outbox_abort();
			MemoryContextSwitchTo(sender_context);
			if (is_bad_data(edata))
			{
				ereport(LOG,
						(errmsg("kliv_mail: the outcome of delivery %lld cannot be recorded",
								(long long) outcomes[done].id)));
				claims_abandoned = true;
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
		outcome_count -= done;
		memmove(outcomes, &outcomes[done], outcome_count * sizeof(KlmOutcome));
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

	if (tried_count == 0 || !is_bad_data(edata))
		return;
	if (!isolating || tried_count > 1)
	{
		isolating = true;
		isolated = 0;
		return;
	}
	isolating = false;
	id = tried_ids[0];
	reason = psprintf("the queued row could not be read: %s", edata->message ? edata->message : "unknown error");
	PG_TRY();
	{
		klm_outbox_begin(sender_context);
		klm_outbox_set_aside(id, reason);
		klm_outbox_commit();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(sender_context);
		EmitErrorReport();
		FlushErrorState();
		klm_outbox_abort();
	}
	PG_END_TRY();
	pfree(reason);
}

/*
 * Claim what there is room for, read what is needed of it, commit, and queue
 * it.  The commit is durable before anything reaches a socket.
 */
static void
claim(void)
{
	Batch	   *batch;
	List	   *claims;
	List	   *messages = NIL;
	bool		key_trouble = false;
	ListCell   *lc;
	dlist_iter	iter;
	int			pool_count = 0;
	int			offered;
	char	  **names;
	int		   *counts;
	int64	   *held;
	int			room = 4 * connections;
	MemoryContext context = claim_context;
	int64		memory = (int64) klm_sender_memory * 1024;
	int64		recovered = 0;

	batch = MemoryContextAllocZero(context, sizeof(Batch));
	batch->context = context;

	dlist_foreach(iter, &pools)
		pool_count++;
	names = palloc(Max(1, pool_count) * sizeof(char *));
	counts = MemoryContextAlloc(context, Max(1, pool_count) * sizeof(int));
	held = palloc(Max(1, pool_count) * sizeof(int64));
	pool_count = 0;
	dlist_foreach(iter, &pools)
	{
		Pool	   *pool = dlist_container(Pool, node, iter.cur);

		names[pool_count] = pool->name;
		held[pool_count] = pool->bytes;
		counts[pool_count++] = pool->queued + pool->open;
	}
	offered = pool_count;

	if (recovery_wanted)
		recovered = klm_outbox_recover();
	klm_outbox_expire();
	claims = klm_outbox_claim(epoch, room, isolating ? -1 : Max(0, memory - claimed_bytes), names,
							  counts, held, pool_count, &tried_ids, &tried_count);

	if (claims != NIL)
	{
		int64	   *ids = palloc(list_length(claims) * sizeof(int64));
		int			count = 0;
		int			claimed_count = tried_count;

		vain_claims = 0;
		/* An account that cannot be read is no row's fault. */
		tried_count = 0;
		foreach(lc, claims)
		{
			KlmClaim   *claimed = lfirst(lc);
			Pool	   *pool = find_pool(claimed->account);

			if (pool->version == NULL || strcmp(pool->version, claimed->settings) != 0)
				load_settings(pool, claimed->settings);
		}
		tried_count = claimed_count;
		foreach(lc, claims)
		{
			KlmClaim   *claimed = lfirst(lc);
			bool		known = false;

			for (int i = 0; i < count && !known; i++)
				known = ids[i] == claimed->message_id;
			if (!known)
				ids[count++] = claimed->message_id;
		}
		messages = klm_outbox_messages(ids, count);
		key_trouble = !make_links(claims, messages, context);
	}
	else
	{
		TimestampTz due = klm_outbox_next_due();
		TimestampTz soonest = TimestampTzPlusMilliseconds(
			GetCurrentTimestamp(), Min(VAIN_CLAIM_MS << Min(vain_claims, 8), MAX_VAIN_CLAIM_MS));

		next_claim = TIMESTAMP_NOT_FINITE(due) ? due : due - klm_test_clock_offset;
		/* What is due and yet was not claimed is another sender's, or held meanwhile. */
		vain_claims = next_claim < soonest ? vain_claims + 1 : 0;
		next_claim = Max(next_claim, soonest);
	}

	/* Behind the claim, so that this sees all that the claim saw. */
	if (claim_wanted)
		look_at_accounts();
	klm_outbox_commit();
	claim_context = NULL;
	forget_recorded(true);
	claim_wanted = recovery_wanted = false;
	/* What was composed for an account that has changed goes back and is composed anew. */
	dlist_foreach(iter, &pools)
	{
		Pool	   *pool = dlist_container(Pool, node, iter.cur);

		if (pool->stale)
			return_queue(pool);
		pool->stale = false;
	}
	if (recovered > 0)
	{
		ereport(LOG,
				(errmsg("kliv_mail: %lld deliveries of a sender that ended are in doubt", (long long) recovered)));
		klm_sender_recorded();
	}
	/* Whoever was offered room and took none has nothing that is due. */
	pool_count = 0;
	dlist_foreach(iter, &pools)
	{
		Pool	   *pool = dlist_container(Pool, node, iter.cur);

		if (pool_count < offered && counts[pool_count] < room)
			pool->more = false;
		pool_count++;
	}
	foreach(lc, claims)
		find_pool(((KlmClaim *) lfirst(lc))->account)->more = true;
	claim_again = false;
	dlist_foreach(iter, &pools)
		claim_again |= dlist_container(Pool, node, iter.cur)->more;
	/* Else all that needs the key would be claimed in vain before anything else is sent. */
	if (key_trouble)
		claim_again = false;
	if (claims == NIL)
	{
		isolating = false;
		MemoryContextDelete(context);
		return;
	}
	if (isolating && ++isolated > room)
		isolating = false;
	/* What falls due meanwhile at an account without room here, or without a pool yet. */
	next_claim = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 1000);
	foreach(lc, claims)
	{
		KlmClaim   *claimed = lfirst(lc);
		KlmStoredMessage *message = NULL;
		Pool	   *pool = find_pool(claimed->account);
		ListCell   *mc;

		foreach(mc, messages)
		{
			if (((KlmStoredMessage *) lfirst(mc))->id == claimed->message_id)
				message = lfirst(mc);
		}
		prepare(batch, claimed, message, pool);
	}
	if (batch->open == 0)
		MemoryContextDelete(context);
	/* Held accounts give everything back at once. */
	dlist_foreach(iter, &pools)
	{
		Pool	   *pool = dlist_container(Pool, node, iter.cur);

		if (pool->settings == NULL)
			return_queue(pool);
		else if (pool->settings->account->problem)
		{
			/* It may be mended without a setting that changes. */
			pool->version[0] = '\0';
			note_hold(pool, pool->settings, pool->settings->account->key_missing ? "key" : "account", 0,
					  pool->settings->account->problem, pool->settings->account->hint, true);
			return_queue(pool);
		}
	}
}

/*
 * What was changed or stopped, which wakes us, counts for what is claimed too:
 * reload the settings that differ, note which accounts stand still.
 */
static void
look_at_accounts(void)
{
	List	   *accounts = klm_outbox_accounts();
	ListCell   *lc;
	dlist_iter	iter;

	dlist_foreach(iter, &pools)
	{
		Pool	   *pool = dlist_container(Pool, node, iter.cur);

		pool->paused = true;
		foreach(lc, accounts)
		{
			KlmAccountState *state = lfirst(lc);

			if (strcmp(state->name, pool->name) != 0 || state->stopped)
				continue;
			pool->paused = false;
			if (pool->version != NULL && strcmp(pool->version, state->settings) != 0)
				load_settings(pool, state->settings);
		}
	}
}

/*
 * Marketing mail: each recipient's unsubscribe link, in the given context; made
 * here since the key ring is read in a transaction.  False: the key is missing,
 * which one look tells for all; these deliveries wait.
 */
static bool
make_links(List *claims, List *messages, MemoryContext context)
{
	static TimestampTz look_at = 0;
	static char reason[256];
	MemoryContext old = MemoryContextSwitchTo(context);
	bool		found = false;
	char	   *url = NULL;
	char	   *trouble = GetCurrentTimestamp() < look_at ? reason : NULL;
	KlmSecret  *key = NULL;
	ListCell   *lc;
	ListCell   *mc;

	foreach(lc, claims)
	{
		KlmClaim   *claimed = lfirst(lc);

		foreach(mc, messages)
		{
			KlmStoredMessage *message = lfirst(mc);
			KlmError	error = {0};

			if (message->id != claimed->message_id || !message->unsubscribe)
				continue;
			if (url == NULL)
				url = klm_outbox_unsubscribe_url();
			if (url == NULL)
				claimed->problem = "set_brand() has no unsubscribe_url any more, which marketing mail needs";
			else if (trouble == NULL && key == NULL && !klm_token_key(false, &key, &error))
			{
				trouble = reason;
				strlcpy(reason, error.message, sizeof(reason));
				look_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), KEY_LOOK_MS);
			}
			if (trouble != NULL)
			{
				claimed->problem = trouble;
				claimed->key_trouble = found = true;
			}
			else if (key != NULL)
				claimed->unsubscribe_link =
					klm_unsubscribe_link(key, url, claimed->recipient, "marketing");
		}
	}
	klm_secret_wipe(key);
	MemoryContextSwitchTo(old);
	return !found;
}

/* Make a delivery of a claimed row, or its outcome if it cannot be one. */
static void
prepare(Batch *batch, KlmClaim *claimed, KlmStoredMessage *message, Pool *pool)
{
	Delivery   *delivery;
	const char *problem = NULL;
	const char *from = NULL;
	MemoryContext old;

	if (pool->settings == NULL)
	{
		add_local_outcome(claimed->id, claimed->message_id, "returned", "");
		return;
	}
	if (claimed->suppressed)
	{
		add_local_outcome(claimed->id, claimed->message_id, "suppressed", claimed->suppressed);
		return;
	}
	if (message == NULL)
	{
		add_local_outcome(claimed->id, claimed->message_id, "message_fault", "its message is not there any more");
		return;
	}
	if (claimed->problem && claimed->key_trouble)
	{
		/* Only marketing mail needs the key for its links: the account's other mail goes on. */
		add_local_outcome(claimed->id, claimed->message_id, "postponed", claimed->problem);
		return;
	}
	if (claimed->problem)
	{
		add_local_outcome(claimed->id, claimed->message_id, klm_verdict_name(KLM_TEMPORARY),
						  claimed->problem);
		return;
	}
	old = MemoryContextSwitchTo(batch->context);
	delivery = palloc0(sizeof(Delivery));
	delivery->id = claimed->id;
	delivery->message_id = claimed->message_id;
	delivery->batch = batch;
	delivery->pool = pool;
	delivery->message = message;
	delivery->size = claimed->size;
	if (pool->settings->account->problem == NULL)
		delivery->identity =
			compose_identity(pool->settings->account, message, claimed, &from, &problem);
	MemoryContextSwitchTo(old);
	if (problem)
	{
		add_local_outcome(claimed->id, claimed->message_id, "message_fault", problem);
		return;
	}
	delivery->smtp.tag = delivery;
	delivery->smtp.mail_from = from;
	delivery->smtp.rcpt_to =
		klm_redirect_to && klm_redirect_to[0] ? klm_redirect_to : claimed->recipient;
	delivery->smtp.smtputf8 = message->smtputf8;
	if (delivery->identity)
	{
		delivery->smtp.parts[0].data = delivery->identity;
		delivery->smtp.parts[0].length = strlen(delivery->identity);
	}
	delivery->smtp.parts[1].data = message->entity;
	delivery->smtp.parts[1].length = message->entity_length;
	delivery->smtp.part_count = 2;
	batch->open++;
	message->users++;
	pool->bytes += delivery->size;
	claimed_bytes += delivery->size;
	dlist_push_tail(&pool->queue, &delivery->node);
	pool->queued++;
}

/*
 * From, Reply-To and what else says who sends: the account's, with what the
 * message wishes as far as the account may.  The same inputs give the same
 * lines, so a retry is the same bytes until the account changes.  In the
 * current context.
 */
static char *
compose_identity(const KlmAccount *account, const KlmStoredMessage *message,
				 const KlmClaim *claimed, const char **from, const char **problem)
{
	KlmIdentity identity = {0};
	KlmHeader	headers[KLM_PROVIDER_HEADERS_MAX + 3];
	const char *reply_to = message->reply_to;
	KlmAddress *addresses = NULL;
	KlmError	error;
	StringInfoData out;
	bool		platform = strcmp(account->name, KLM_PLATFORM) == 0;

	/* Failover: the claim made sure that this account may send for the other. */
	identity.from_address = claimed->sender ? claimed->sender : account->from_address;
	if (message->from_address)
	{
		if (!platform &&
			(strcmp(message->from_address, account->from_address) == 0 ||
			 klm_address_allowed(message->from_address, (const char **) account->allowed_senders,
								 account->allowed_sender_count)))
			identity.from_address = message->from_address;
		else if (reply_to == NULL)
			reply_to = message->from_address;
	}
	identity.from_name = message->from_name ? message->from_name :
		claimed->sender ? claimed->sender_name : account->from_name;
	if (identity.from_name && klm_has_unsafe_char(identity.from_name, false))
	{
		*problem = "the sender's name has a line break or control character";
		return NULL;
	}
	if (reply_to == NULL)
		reply_to = account->reply_to;
	if (reply_to && reply_to[0])
	{
		if (!klm_parse_address_list(reply_to, &addresses, &identity.reply_to_count, &error))
		{
			*problem = psprintf("reply_to: %s", error.message);
			return NULL;
		}
		identity.reply_to = addresses;
	}
	identity.headers = headers;
	identity.header_count =
		klm_provider_headers(klm_find_provider(account->provider), account->target.host,
							 message->header_id, claimed->id, headers);
	if (claimed->unsubscribe_link)
	{
		headers[identity.header_count].name = "List-Unsubscribe";
		headers[identity.header_count++].value = psprintf("<%s>", claimed->unsubscribe_link);
		headers[identity.header_count].name = "List-Unsubscribe-Post";
		headers[identity.header_count++].value = "List-Unsubscribe=One-Click";
	}
	if (klm_redirect_to && klm_redirect_to[0])
	{
		headers[identity.header_count].name = "X-Kliv-Mail-Original-Recipient";
		headers[identity.header_count++].value = claimed->recipient;
		if (klm_has_unsafe_char(claimed->recipient, false))
		{
			*problem = "the recipient's address has a line break or control character";
			return NULL;
		}
	}
	*from = pstrdup(identity.from_address);
	initStringInfo(&out);
	klm_mime_identity(&identity, &out);
	return out.data;
}

/* ----------------------------------------------------------------
 * Pools and their settings
 * ----------------------------------------------------------------
 */

static Pool *
find_pool(const char *name)
{
	dlist_iter	iter;
	Pool	   *pool;

	dlist_foreach(iter, &pools)
	{
		pool = dlist_container(Pool, node, iter.cur);
		if (strcmp(pool->name, name) == 0)
			return pool;
	}
	pool = MemoryContextAllocZero(sender_context, sizeof(Pool));
	pool->name = MemoryContextStrdup(sender_context, name);
	dlist_init(&pool->queue);
	dlist_init(&pool->links);
	pool->allowed = Min(4, connections);
	dlist_push_tail(&pools, &pool->node);
	return pool;
}

/*
 * Read the account's settings, in the transaction.  Links keep those that they
 * were opened with; where a new connection would differ, they finish what they
 * have begun and are then closed (feed()).
 */
static void
load_settings(Pool *pool, const char *version)
{
	MemoryContext context = AllocSetContextCreate(sender_context, "kliv_mail account", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	ResourceOwner owner = CurrentResourceOwner;
	Settings   *settings = palloc0(sizeof(Settings));
	Settings   *before = pool->settings;

	settings->context = context;

	/* In a subtransaction: one account that cannot be read must not stop the others. */
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		settings->account = klm_load_account(pool->name);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		EmitErrorReport();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		settings->account = palloc0(sizeof(KlmAccount));
		settings->account->name = pstrdup(pool->name);
		settings->account->fingerprint = pstrdup("");
		settings->account->problem = psprintf("its settings cannot be read: %s", edata->message);
	}
	PG_END_TRY();
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(old);
	if (settings->account == NULL)
	{
		MemoryContextDelete(context);
		settings = NULL;
	}
	else
		settings->users = 1;
	pool->settings = settings;
	if (settings && before &&
		strcmp(settings->account->fingerprint, before->account->fingerprint) != 0)
		pool->stale = true;
	if (pool->version)
		pfree(pool->version);
	pool->version = MemoryContextStrdup(sender_context, version);
	release_settings(before);
}

static void
release_settings(Settings *settings)
{
	if (settings && --settings->users == 0)
		MemoryContextDelete(settings->context);
}

/* ----------------------------------------------------------------
 * Outcomes
 * ----------------------------------------------------------------
 */

static KlmOutcome *
new_outcome(int64 id, int64 message_id)
{
	KlmOutcome *outcome;

	if (outcome_count == outcome_space)
	{
		outcome_space = Max(64, 2 * outcome_space);
		outcomes = outcomes ? repalloc(outcomes, outcome_space * sizeof(KlmOutcome))
			: MemoryContextAlloc(outcome_context, outcome_space * sizeof(KlmOutcome));
	}
	outcome = &outcomes[outcome_count++];
	memset(outcome, 0, sizeof(KlmOutcome));
	outcome->id = id;
	outcome->message_id = message_id;
	return outcome;
}

/* An outcome that no server gave: "returned", or what is wrong with the row. */
static void
add_local_outcome(int64 id, int64 message_id, const char *verdict, const char *reason)
{
	KlmOutcome *outcome = new_outcome(id, message_id);

	outcome->verdict = verdict;
	outcome->scope = klm_scope_name(KLM_SCOPE_MESSAGE);
	outcome->reason = MemoryContextStrdup(outcome_context, reason);
}

/*
 * What to do about a reply to an account: where its password is the matter,
 * also the statement, which next_step() hands on.  In the current context, or static.
 */
static const char *
cure_of(const KlmDecision *decision, const KlmAccount *account)
{
	if (!decision->login || account->target.username == NULL ||
		strcmp(account->name, KLM_PLATFORM) == 0)
		return decision->hint;
	return psprintf("%s SELECT * FROM kliv_mail.configure_smtp(password => 'the new one', account "
					"=> '%s'); saves it.",
					decision->hint, account->name);
}

static void
add_outcome(Delivery *delivery, const Link *link, const KlmReply *reply,
			const KlmDecision *decision)
{
	KlmOutcome *outcome = new_outcome(delivery->id, delivery->message_id);
	MemoryContext old = MemoryContextSwitchTo(outcome_context);

	outcome->verdict = klm_verdict_name(decision->verdict);
	outcome->scope = klm_scope_name(decision->scope);
	outcome->bounce_type = decision->bounce_type;
	outcome->pause_s = decision->pause_s;
	outcome->stage = klm_stage_name(reply->stage);
	outcome->code = reply->code;
	outcome->enhanced = reply->enhanced[0] ? pstrdup(reply->enhanced) : NULL;
	outcome->reply = pstrdup(reply->text ? reply->text : "");
	outcome->reason = decision->reason;
	outcome->hint = cure_of(decision, link->settings->account);
	outcome->unknown =
		decision->unknown && (reply->stage == KLM_STAGE_MAIL || reply->stage == KLM_STAGE_RCPT);
	outcome->fingerprint = pstrdup(link->settings->account->fingerprint);
	outcome->identity = delivery->identity ? pstrdup(delivery->identity) : NULL;
	if (decision->verdict == KLM_ACCEPTED)
		outcome->server_id = klm_server_message_id(
			reply, delivery->pool->settings ? delivery->pool->settings->account->provider : NULL);
	MemoryContextSwitchTo(old);
}

/* A delivery has its outcome.  Others of the batch may hang elsewhere: its mail goes now. */
static void
finish(Delivery *delivery)
{
	Batch	   *batch = delivery->batch;

	delivery->pool->bytes -= delivery->size;
	claimed_bytes -= delivery->size;
	if (--delivery->message->users == 0)
		pfree(delivery->message->entity - VARHDRSZ);
	if (--batch->open == 0)
		MemoryContextDelete(batch->context);
}

/* What no link has begun goes back as it was. */
static void
return_queue(Pool *pool)
{
	while (!dlist_is_empty(&pool->queue))
	{
		Delivery   *delivery = dlist_container(Delivery, node, dlist_pop_head_node(&pool->queue));

		pool->queued--;
		add_local_outcome(delivery->id, delivery->message_id, "returned", "");
		finish(delivery);
	}
}

static void
note_hold(Pool *pool, const Settings *settings, const char *by, int pause_s, const char *reason,
		  const char *hint, bool failure)
{
	pool->hold = true;
	pool->hold_by = by;
	pool->hold_pause_s = pause_s;
	pool->hold_reason = MemoryContextStrdup(outcome_context, reason);
	pool->hold_hint = hint ? MemoryContextStrdup(outcome_context, hint) : NULL;
	pool->hold_failure = failure;
	pool->hold_fingerprint =
		settings ? MemoryContextStrdup(outcome_context, settings->account->fingerprint) : NULL;
}

/* ----------------------------------------------------------------
 * Connections
 * ----------------------------------------------------------------
 */

/*
 * Nothing new leaves of an account that is paused: only what has its dot is
 * waited for.
 */
static void
stop_paused(Pool *pool)
{
	dlist_mutable_iter iter;

	if (!pool->paused)
		return;
	return_queue(pool);
	dlist_foreach_modify(iter, &pool->links)
	{
		Link	   *link = dlist_container(Link, node, iter.cur);

		if (link->state == LINK_OPEN && klm_smtp_open_count(link->smtp) > 0 && !waits_for_dot(link))
			close_link(link, "mail was paused");
	}
}

/* How much longer than for the rest a leaving sender waits for the reply to a dot. */
static int
dot_grace_ms(void)
{
	return ShutdownRequestPending || klm_sender_must_leave() ? 0 : LEAVE_DOT_MS;
}

static bool
waits_for_dot(const Link *link)
{
	KlmStage	stage;

	return klm_smtp_awaits(link->smtp, &stage) && stage == KLM_STAGE_DOT;
}

/*
 * Hand queued deliveries to links: idle ones first, then new ones as far as
 * the pool may grow, then behind another delivery's dot.
 */
static void
feed(Pool *pool)
{
	int			limit = Min(pool->allowed, connections);
	dlist_mutable_iter surplus;

	/* Where the pool had to shrink, connections go as they become idle. */
	dlist_foreach_modify(surplus, &pool->links)
	{
		Link	   *link = dlist_container(Link, node, surplus.cur);

		if (pool->link_count <= limit)
			break;
		if (link->state == LINK_OPEN && klm_smtp_open_count(link->smtp) == 0)
			close_link(link, NULL);
	}
	take_back_waiting(pool);
	for (int open = 0; open < 2 && pool->queued > 0; open++)
	{
		dlist_mutable_iter iter;

		/* Behind another delivery, which may stall, only when all connections are open. */
		if (open > 0 && pool->link_count < limit)
			break;

		dlist_foreach_modify(iter, &pool->links)
		{
			Link	   *link = dlist_container(Link, node, iter.cur);

			if (link->state != LINK_OPEN || pool->queued == 0)
				continue;
			if (strcmp(link->settings->account->fingerprint,
					   pool->settings->account->fingerprint) != 0 ||
				is_spent(link) || pool->link_count > limit)
			{
				if (klm_smtp_open_count(link->smtp) == 0)
					close_link(link, NULL);
				continue;
			}
			if (klm_smtp_open_count(link->smtp) <= open && klm_smtp_can_begin(link->smtp))
			{
				Delivery   *delivery;

				if (!keep_pace(pool))
					return;
				delivery = dlist_container(Delivery, node, dlist_pop_head_node(&pool->queue));
				pool->queued--;
				begin(link, delivery);
			}
		}
		if (open == 0)
		{
			/* One connection for every two that wait: each takes two in its stride. */
			while (pool->link_count < limit && pool->opening < (pool->queued + 1) / 2 &&
				   !pool->hold)
			{
				int			before = pool->link_count;

				open_link(pool);
				if (pool->link_count == before)
					break;
			}
		}
	}
}

/*
 * A delivery that waits behind another one's reply is better off with a link
 * that is idle, or that can still be opened: back to the head of the queue.
 */
static void
take_back_waiting(Pool *pool)
{
	int			better = Min(pool->allowed, connections) - pool->link_count;
	dlist_iter	iter;

	dlist_foreach(iter, &pool->links)
	{
		Link	   *link = dlist_container(Link, node, iter.cur);

		if (link->state == LINK_OPEN && klm_smtp_open_count(link->smtp) == 0 &&
			klm_smtp_can_begin(link->smtp))
			better++;
	}
	better -= pool->queued;
	dlist_foreach(iter, &pool->links)
	{
		Link	   *link = dlist_container(Link, node, iter.cur);
		Delivery   *delivery;

		if (better <= 0)
			break;
		if (link->state != LINK_OPEN || (delivery = klm_smtp_withdraw(link->smtp)) == NULL)
			continue;
		link->begun--;
		pool->open--;
		pool->queued++;
		dlist_push_head(&pool->queue, &delivery->node);
		better--;
	}
}

/* Has the link had as many messages as its provider takes on one? */
static bool
is_spent(Link *link)
{
	const KlmProvider *provider = klm_find_provider(link->settings->account->provider);

	return provider && provider->messages_per_connection > 0 &&
		link->begun >= provider->messages_per_connection;
}

/* May another delivery begin now?  Where the provider publishes a rate, at its pace. */
static bool
keep_pace(Pool *pool)
{
	const KlmProvider *provider = klm_find_provider(pool->settings->account->provider);
	TimestampTz now;

	if (provider == NULL || provider->per_second <= 0)
		return true;
	now = GetCurrentTimestamp();
	if (now < pool->next_begin)
		return false;
	pool->next_begin = now + USECS_PER_SEC * Max(1, shared_state.senders) / provider->per_second;
	return true;
}

static void
begin(Link *link, Delivery *delivery)
{
	link->begun++;
	link->pool->open++;
	klm_smtp_begin(link->smtp, &delivery->smtp);
	flush_link(link);
	take_results(link);			/* what could not even be begun */
}

static void
open_link(Pool *pool)
{
	MemoryContext context = AllocSetContextCreate(sender_context, "kliv_mail link", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Link	   *link = palloc0(sizeof(Link));
	KlmError	error;

	link->context = context;
	link->pool = pool;
	link->settings = pool->settings;
	link->state = LINK_OPENING;
	link->deadline = DT_NOEND;
	link->connection =
		klm_connection_open(connector, &pool->settings->account->target, link, &error);
	MemoryContextSwitchTo(old);
	if (link->connection == NULL)
	{
		if (pool->link_count == 0)
		{
			note_hold(pool, pool->settings, "account", 0, error.message, error.hint, true);
			return_queue(pool);
		}
		MemoryContextDelete(context);
		return;
	}
	link->settings->users++;
	dlist_push_tail(&pool->links, &link->node);
	pool->link_count++;
	pool->opening++;
}

/* why: what open deliveries lose their connection to; NULL: none is open, part politely. */
static void
close_link(Link *link, const char *why)
{
	Pool	   *pool = link->pool;

	if (link->state == LINK_OPEN)
	{
		if (why == NULL)
		{
			Size		length;
			const char *quit;

			klm_smtp_quit(link->smtp);
			quit = klm_smtp_output(link->smtp, &length);
			if (length > 0)
				(void) klm_connection_send(link->connection, quit, length);
		}
		else
		{
			klm_smtp_closed(link->smtp, why);
			take_results(link);
		}
		klm_smtp_destroy(link->smtp);
	}
	else
		pool->opening--;
	klm_connection_close(link->connection);
	dlist_delete(&link->node);
	pool->link_count--;
	release_settings(link->settings);
	MemoryContextDelete(link->context);
}

static void
link_opened(Link *link)
{
	KlmConnectReport report;
	MemoryContext old = MemoryContextSwitchTo(link->context);

	klm_connection_report(link->connection, &report);
	link->smtp = klm_smtp_create(&report.caps);
	link->state = LINK_OPEN;
	link->pool->opening--;
	MemoryContextSwitchTo(old);
	set_deadline(link);
	klm_sender_progress();
}

/*
 * A connection could not be opened.  While others of the account work, the
 * server wants fewer; otherwise it is the account's trouble, and nobody's
 * attempt.
 */
static void
link_failed(Link *link)
{
	Pool	   *pool = link->pool;
	KlmConnectReport report;
	KlmDecision decision;
	MemoryContext old = MemoryContextSwitchTo(link->context);
	int			working;

	klm_connection_report(link->connection, &report);
	working = pool->link_count - pool->opening;
	if (working > 0)
		pool->allowed = Max(1, working);
	else if (!pool->hold)
	{
		/* What is known about a refusal says more than where it came. */
		bool		replied = report.reply.code >= 400;

		klm_classify_reply(&report.reply, link->settings->account->provider, report.reply.code == 0,
						   &decision);
		note_hold(pool, link->settings, decision.verdict == KLM_PROVIDER_LIMIT ? "quota" : "account", decision.pause_s,
				  psprintf("%s%s%s", replied || report.detail == NULL ? decision.reason : report.detail,
						   report.reply.text && report.reply.text[0] ? ": " : "", report.reply.text ? report.reply.text : ""),
				  (replied && decision.hint) || report.hint == NULL ?
				  cure_of(&decision, link->settings->account) : report.hint,
				  decision.verdict != KLM_PROVIDER_LIMIT);
		return_queue(pool);
	}
	MemoryContextSwitchTo(old);
	close_link(link, "not connected");
}

static void
flush_link(Link *link)
{
	for (;;)
	{
		Size		length;
		const char *output = klm_smtp_output(link->smtp, &length);
		ssize_t		sent;

		if (length == 0)
		{
			klm_connection_want_write(link->connection, false);
			break;
		}
		sent = klm_connection_send(link->connection, output, length);
		if (sent < 0)
		{
			/* What the server said before it closed may still be there to read. */
			klm_connection_want_write(link->connection, false);
			break;
		}
		if (sent == 0)
		{
			klm_connection_want_write(link->connection, true);
			break;
		}
		klm_smtp_sent(link->smtp, sent);
	}
	set_deadline(link);
}

static void
read_link(Link *link)
{
	static char buffer[65536];
	Pool	   *pool = link->pool;
	ssize_t		length = 0;

	/* Not beyond the session's end: a server that never stops talking must not keep us. */
	while (klm_smtp_usable(link->smtp) &&
		   (length = klm_connection_recv(link->connection, buffer, sizeof(buffer))) > 0)
		klm_smtp_received(link->smtp, buffer, length);
	if (length < 0)
	{
		close_link(link, "the server closed the connection");
		return;
	}
	take_results(link);
	if (!klm_smtp_usable(link->smtp) && klm_smtp_open_count(link->smtp) == 0)
	{
		close_link(link, "the session cannot be used any more");
		return;
	}
	/* The next one's message would go out now, behind the dot that it waited for. */
	if (pool->paused && klm_smtp_open_count(link->smtp) > 0 && !waits_for_dot(link))
	{
		close_link(link, "mail was paused");
		return;
	}
	flush_link(link);
}

/* Turn the machine's results into outcomes. */
static void
take_results(Link *link)
{
	Pool	   *pool = link->pool;
	KlmSmtpResult result;
	MemoryContext old = MemoryContextSwitchTo(outcome_context);

	while (klm_smtp_result(link->smtp, &result))
	{
		Delivery   *delivery = result.tag;
		KlmDecision decision;

		pool->open--;
		/*
		 * Given back, with nobody's attempt burned: what put nothing on the
		 * wire that counts, such as an envelope on a used connection that the
		 * server had closed or closes now.  (A refusal of our own, such as of a
		 * damaged address, was not started either, but counts.)  The same where
		 * we have to go in the middle of it: that is no fault of anybody there.
		 */
		if ((!result.started && (result.lost || result.reply.code == 421)) ||
			(result.lost && result.reply.stage != KLM_STAGE_DOT &&
			 (ShutdownRequestPending || klm_sender_must_leave() || pool->paused)))
			add_local_outcome(delivery->id, delivery->message_id, "returned", "");
		else
		{
			klm_classify_reply(&result.reply, link->settings->account->provider, result.lost,
							   &decision);

			/*
			 * A fresh connection that was dropped at MAIL may be this message's
			 * doing: it alone waits, so that it cannot hold up the account, until
			 * others in a row meet the same.  So at RCPT.
			 */
			if (result.lost && (result.reply.stage == KLM_STAGE_MAIL ||
								result.reply.stage == KLM_STAGE_RCPT))
				decision.unknown = true;
			if (result.lost && result.reply.stage == KLM_STAGE_MAIL)
				decision.scope = KLM_SCOPE_MESSAGE;
			add_outcome(delivery, link, &result.reply, &decision);
			if (decision.verdict == KLM_ACCEPTED)
			{
				pool->allowed = Min(connections, pool->allowed + 1);
			}
			else
			{
				if (result.reply.code == 421 || result.reply.code == 451)
					pool->allowed = Max(1, pool->allowed / 2);
				if (decision.scope == KLM_SCOPE_ACCOUNT && decision.verdict != KLM_IN_DOUBT)
				{
					MemoryContextSwitchTo(old);
					return_queue(pool);
					MemoryContextSwitchTo(outcome_context);
				}
			}
			klm_sender_progress();
		}
		finish(delivery);
	}
	MemoryContextSwitchTo(old);
}

/* When the reply that a link waits for, or its idleness, has lasted too long. */
static void
set_deadline(Link *link)
{
	TimestampTz now = GetCurrentTimestamp();
	KlmStage	stage;

	if (klm_smtp_awaits(link->smtp, &stage))
		link->deadline = TimestampTzPlusMilliseconds(
			now,
			stage == KLM_STAGE_DOT ? Max(klm_reply_timeout, DOT_TIMEOUT_MS) : klm_reply_timeout);
	else
		link->deadline = TimestampTzPlusMilliseconds(now, LINK_IDLE_MS);
}

static void
drive_network(void)
{
	KlmConnection *connection;
	KlmConnEvent event;

	while ((event = klm_connector_next(connector, &connection)) != KLM_CONN_NONE)
	{
		Link	   *link = klm_connection_owner(connection);

		switch (event)
		{
			case KLM_CONN_OPEN:
				link_opened(link);
				break;
			case KLM_CONN_FAILED:
				link_failed(link);
				break;
			case KLM_CONN_READABLE:
				read_link(link);
				break;
			case KLM_CONN_WRITABLE:
				flush_link(link);
				break;
			case KLM_CONN_NONE:
				break;
		}
	}
}

static void
check_deadlines(TimestampTz now)
{
	dlist_iter	iter;

	dlist_foreach(iter, &pools)
	{
		Pool	   *pool = dlist_container(Pool, node, iter.cur);
		dlist_mutable_iter link_iter;

		dlist_foreach_modify(link_iter, &pool->links)
		{
			Link	   *link = dlist_container(Link, node, link_iter.cur);
			KlmStage	stage;
			char		reason[64] = "the server takes no more data";

			if (link->state != LINK_OPEN || now < link->deadline)
				continue;
			if (klm_smtp_open_count(link->smtp) > 0 && klm_smtp_awaits(link->smtp, &stage))
				snprintf(reason, sizeof(reason), "no reply within %d s",
						 (stage == KLM_STAGE_DOT ? Max(klm_reply_timeout, DOT_TIMEOUT_MS) :
						  klm_reply_timeout) / 1000);
			close_link(link, klm_smtp_open_count(link->smtp) > 0 ? reason : NULL);
		}
	}
}
