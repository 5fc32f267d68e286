/*-------------------------------------------------------------------------
 *
 * launcher.c
 *		The launcher: starts a sender where mail is due, and a fetcher where a
 *		bounce mailbox is.
 *
 * Owns the process.  Calls slots.c, which knows what is due; this file knows
 * how workers are started, and which databases there are.
 *
 * The launcher is connected to no database, so that it is in nobody's way, and
 * reads the two shared catalogues that such a process can read: pg_database,
 * and pg_shseclabel, where CREATE EXTENSION (and every sender) has left a label
 * on each database that has mail.  It reads them at its start and at reload.
 * Databases without the label may be copies of one that has mail, made while
 * the launcher was down: after a start they are looked at once, one a second.
 *
 * Everything else comes to it: a commit that queued mail, a sender that ended,
 * a block that was lifted set its latch.  It sleeps until then, or until the
 * earliest time at which something is due.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/guc.h"
#include "cluster/database_label.h"
#include "cluster/settings.h"
#include "cluster/slots.h"
#include "worker/key_check.h"
#include "worker/launcher.h"

/* The longest sleep while something is due later: the wall's clock may be set meanwhile. */
#define MAX_SLEEP_MS (60 * 60 * 1000L)

/* A clock that is only kept right moves by less than this between two looks. */
#define CLOCK_STEP_MS 10000

/* Between two looks at databases that have no label. */
#define LOOK_INTERVAL_MS 1000

/* Between two tries when no worker slot is free: doubling up to the second. */
#define SLOT_RETRY_MS 10000
#define SLOT_RETRY_MAX_MS 60000

/* A shortage that comes back within this time is the one already reported. */
#define SLOT_REPORT_MS 600000

/* Between two tries when the table of databases is full. */
#define OVERFLOW_RETRY_MS 60000

/* A worker that was asked for. */
typedef struct Start
{
	KlmReservation reservation;
	BackgroundWorkerHandle *handle; /* NULL: none */
} Start;

extern PGDLLEXPORT void klm_launcher_main(Datum argument);

/* One a slot; in TopMemoryContext. */
static Start *starts = NULL;

/*
 * Handles of workers that have given their slots back and still occupy their
 * slots: the postmaster has not yet seen them end.  In TopMemoryContext.
 */
static List *ending = NIL;

/*
 * Databases that are still to be looked at: without a label after a start, or
 * without room in the table.  The last comes first.
 */
static Oid *to_look_at = NULL;
static int	to_look_at_count = 0;
static int64 next_look = 0;

static bool slots_exhausted = false;
static long slot_retry_ms = SLOT_RETRY_MS;
static int64 next_slot_try = 0;
static int64 sender_shortage = 0;	/* when one was last reported */
static int64 fetcher_shortage = 0;
static int64 next_overflow_scan = KLM_NEVER;
static bool overflow_reported = false;

static void register_process(const char *name, const char *main_function,
							 BgWorkerStartTime start, int restart_s);
static void read_databases(bool mark_due, bool look_at_others);
static void warn_of_moved_clock(void);
static bool clock_was_set(void);
static int64 start_senders(void);
static int64 start_fetchers(void);
static bool start_sender(const KlmReservation *reservation);
static bool register_worker(const KlmReservation *reservation, const char *type,
							const char *main_function, int64 *reported);
static void check_starts(void);
static bool has_stopped(BackgroundWorkerHandle *handle);
static int64 look_at_next(void);

void
klm_launcher_init(void)
{
	/* pg_upgrade must meet nobody who connects to its databases. */
	if (IsBinaryUpgrade)
		return;

	register_process("kliv_mail launcher", "klm_launcher_main", BgWorkerStart_RecoveryFinished, 5);
	register_process("kliv_mail key check", "klm_keycheck_main", BgWorkerStart_ConsistentState, 60);
}

/* One that lives with the server, and comes back so many seconds after it failed. */
static void
register_process(const char *name, const char *main_function, BgWorkerStartTime start,
				 int restart_s)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = start;
	worker.bgw_restart_time = restart_s;
	strlcpy(worker.bgw_name, name, BGW_MAXLEN);
	strlcpy(worker.bgw_type, name, BGW_MAXLEN);
	strlcpy(worker.bgw_library_name, "kliv_mail", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, main_function, BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

void
klm_launcher_main(Datum argument)
{
	MemoryContext context;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	pqsignal(SIGINT, KLM_SIG_IGN);	/* pg_cancel_backend(): there is no query to cancel */
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	starts = MemoryContextAllocZero(TopMemoryContext, klm_launcher_slots() * sizeof(Start));
	context = AllocSetContextCreate(TopMemoryContext, "kliv_mail launcher", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);

	klm_launcher_attach();
	klm_publish_settings();
	klm_check_keys();
	warn_of_moved_clock();
	(void) clock_was_set();
	read_databases(true, true);

	for (;;)
	{
		int64		wake_at;
		int64		now;
		long		sleep_ms = -1;

		/* First the latch: what happens from here on sets it again. */
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(context);

		/* Not 0, which would say that it is not to be started again. */
		if (ShutdownRequestPending)
			proc_exit(1);

		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			klm_publish_settings();
			klm_check_keys();
			warn_of_moved_clock();
			read_databases(true, false);
		}

		/* What is due by the wall's clock is so now, or not any more: their senders know. */
		if (clock_was_set())
			read_databases(true, false);

		check_starts();
		wake_at = start_senders();
		wake_at = Min(wake_at, start_fetchers());

		now = klm_clock_ms();
		if (next_overflow_scan <= now)
		{
			next_overflow_scan = KLM_NEVER;
			read_databases(false, true);
			continue;
		}
		wake_at = Min(wake_at, next_overflow_scan);

		if (wake_at != KLM_NEVER)
			sleep_ms = Max(0, Min(wake_at - now, MAX_SLEEP_MS));
		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (sleep_ms >= 0 ? WL_TIMEOUT : 0),
						 sleep_ms, PG_WAIT_EXTENSION);
	}
}

static void
warn_of_moved_clock(void)
{
	if (klm_test_clock_offset != 0)
		ereport(WARNING,
				(errmsg("the clock of kliv_mail is moved by \"%s\"",
						GetConfigOption("kliv_mail.test_clock_offset", false, false)),
				 errhint("kliv_mail.test_clock_offset is for tests: reset it where real mail is "
						 "sent.")));
}

/* Has somebody set the wall's clock since the last look? */
static bool
clock_was_set(void)
{
	static int64 ahead = 0;
	int64		before = ahead;

	ahead = GetCurrentTimestamp() / 1000 - klm_clock_ms();
	return ahead > before + CLOCK_STEP_MS || ahead < before - CLOCK_STEP_MS;
}

/*
 * Read the catalogues.  mark_due: every database with the label is due now;
 * look_at_others: those that the table does not know will be looked at.
 * Entries of databases that are gone are freed.
 */
static void
read_databases(bool mark_due, bool look_at_others)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *labelled = NIL;
	KlmExisting *existing;
	Oid		   *due;
	int			existing_count = 0;
	int			existing_max = 64;
	int			due_count = 0;
	int			other_count = 0;
	Oid		   *others;
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;
	ListCell   *cell;

	existing = palloc(existing_max * sizeof(KlmExisting));

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	MemoryContextSwitchTo(caller);

	foreach(cell, klm_database_labels())
		labelled = lappend_oid(labelled, ((KlmLabel *) lfirst(cell))->database);
	list_sort(labelled, list_oid_cmp);

	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		/* -2: an interrupted DROP DATABASE has left it invalid. */
		if (!form->datallowconn || form->datconnlimit == -2)
			continue;
		if (existing_count == existing_max)
		{
			existing_max *= 2;
			existing = repalloc_huge(existing, existing_max * sizeof(KlmExisting));
		}
		existing[existing_count].database = form->oid;
		existing[existing_count++].owner = form->datdba;
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	(void) pgstat_report_stat(true);
	MemoryContextSwitchTo(caller);

	klm_launcher_prune(existing, existing_count);

	/* Both lists are sorted now: split the second by the first. */
	pg_qsort(existing, existing_count, sizeof(KlmExisting), oid_cmp);	/* by its first member */
	due = palloc((existing_count + 1) * sizeof(Oid));
	others = palloc((existing_count + 1) * sizeof(Oid));
	cell = list_head(labelled);
	for (int i = 0; i < existing_count; i++)
	{
		while (cell != NULL && lfirst_oid(cell) < existing[i].database)
			cell = lnext(labelled, cell);
		if (cell != NULL && lfirst_oid(cell) == existing[i].database)
			due[due_count++] = existing[i].database;
		else
			others[other_count++] = existing[i].database;
	}

	if (mark_due)
		klm_launcher_mark_due(due, due_count);
	if (look_at_others)
	{
		if (to_look_at != NULL)
			pfree(to_look_at);
		to_look_at = MemoryContextAllocHuge(TopMemoryContext, (existing_count + 1) * sizeof(Oid));
		to_look_at_count = 0;
		for (int i = 0; i < other_count; i++)
		{
			if (!klm_launcher_knows(others[i]))
				to_look_at[to_look_at_count++] = others[i];
		}
		for (int i = 0; i < due_count; i++)
		{
			if (!klm_launcher_knows(due[i]))
				to_look_at[to_look_at_count++] = due[i];
		}
	}
}

/*
 * Start what is due.  Returns when there is something to do next, if nothing
 * sets the latch before.
 */
static int64
start_senders(void)
{
	KlmReservation reservation;
	KlmOutlook	outlook;
	int64		now = klm_clock_ms();
	bool		databases_read = false;

	if (slots_exhausted && now < next_slot_try)
		return next_slot_try;

	while (klm_launcher_reserve(&reservation, &outlook))
	{
		/* Where the last sender failed, the database may be gone. */
		if ((reservation.failures > 0 || reservation.unknown_owner) && !databases_read)
		{
			klm_launcher_cancel(&reservation, false);
			read_databases(false, false);
			databases_read = true;
			continue;
		}
		if (!start_sender(&reservation))
			return next_slot_try;
	}

	/* Nobody waits for a slot any more. */
	if (slots_exhausted)
	{
		slots_exhausted = false;
		klm_launcher_set_exhausted(false);
	}

	if (klm_launcher_overflowed() && next_overflow_scan == KLM_NEVER)
	{
		if (!overflow_reported)
			ereport(LOG,
					(errmsg("more databases have mail than kliv_mail can watch at the same time"),
					 errhint("They are served with a delay of about a minute.")));
		overflow_reported = true;
		next_overflow_scan = now + OVERFLOW_RETRY_MS;
	}
	if (outlook.room && to_look_at_count > 0)
	{
		int64		look = look_at_next();

		return Min(outlook.next_start, look);
	}
	return outlook.next_start;
}

/* false: there is no worker slot now; then next_slot_try is set. */
static bool
start_sender(const KlmReservation *reservation)
{
	if (!register_worker(reservation, "sender", "klm_sender_main", &sender_shortage))
	{
		int64		now = klm_clock_ms();

		/* Nobody waits for it: its database asks again. */
		if (reservation->extra)
		{
			klm_launcher_cancel(reservation, false);
			return true;
		}
		slot_retry_ms = slots_exhausted ? Min(slot_retry_ms * 2, SLOT_RETRY_MAX_MS) : SLOT_RETRY_MS;
		slots_exhausted = true;
		next_slot_try = now + slot_retry_ms;
		klm_launcher_cancel(reservation, false);
		klm_launcher_set_exhausted(true);
		return false;
	}
	return true;
}

/*
 * Start fetchers where they are due; what finds no worker slot is due again in
 * a minute, and keeps no sender from its own.  Returns as start_senders() does.
 */
static int64
start_fetchers(void)
{
	KlmReservation reservation;
	int64		next_start;

	while (klm_launcher_reserve_fetcher(&reservation, &next_start))
	{
		if (!register_worker(&reservation, "fetcher", "klm_fetcher_main", &fetcher_shortage))
			klm_launcher_cancel(&reservation, false);
	}
	return next_start;
}

/* A worker for the slot; false: none is free, as the log is told now and then (*reported). */
static bool
register_worker(const KlmReservation *reservation, const char *type, const char *main_function,
				int64 *reported)
{
	Start	   *start = &starts[reservation->slot];
	BackgroundWorker worker = {0};
	MemoryContext caller;
	bool		registered;

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	worker.bgw_main_arg = klm_launcher_argument(reservation);
	snprintf(worker.bgw_name, BGW_MAXLEN, "kliv_mail %s for database %u", type,
			 reservation->database);
	snprintf(worker.bgw_type, BGW_MAXLEN, "kliv_mail %s", type);
	strlcpy(worker.bgw_library_name, "kliv_mail_net", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, main_function, BGW_MAXLEN);

	caller = MemoryContextSwitchTo(TopMemoryContext);
	if (start->handle != NULL)
	{
		ending = lappend(ending, start->handle);
		start->handle = NULL;
	}
	registered = RegisterDynamicBackgroundWorker(&worker, &start->handle);
	MemoryContextSwitchTo(caller);
	start->reservation = *reservation;

	if (!registered)
	{
		int64		now = klm_clock_ms();

		start->handle = NULL;
		if (reservation->extra)
			return false;
		if (*reported == 0 || now >= *reported + SLOT_REPORT_MS)
			ereport(LOG,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("no worker slot is free for a kliv_mail %s", type),
					 errhint("Raise max_worker_processes by kliv_mail.max_senders, two for fetchers "
							 "of bounces and one for the launcher. Mail waits until then.")));
		*reported = now;
		return false;
	}

	klm_launcher_started(reservation);
	return true;
}

/*
 * The postmaster signals when a worker has started or stopped.  One that
 * stopped before its sender attached (its library is missing, no process could
 * be made) has to be cleared away here; the others do that themselves.
 */
static void
check_starts(void)
{
	ListCell   *cell;

	for (int i = 0; i < klm_launcher_slots(); i++)
	{
		Start	   *start = &starts[i];

		if (start->handle != NULL && has_stopped(start->handle))
		{
			start->handle = NULL;
			if (klm_launcher_awaited(&start->reservation))
				klm_launcher_cancel(&start->reservation, true);
		}
	}
	foreach(cell, ending)
	{
		if (has_stopped(lfirst(cell)))
			ending = foreach_delete_current(ending, cell);
	}
}

/* Frees the handle of a worker that has. */
static bool
has_stopped(BackgroundWorkerHandle *handle)
{
	pid_t		pid;

	if (GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED)
		return false;
	pfree(handle);

	/* Its slot may be what another sender waits for. */
	next_slot_try = 0;
	return true;
}

/* Make the next one due, at most one a second; returns when to come again. */
static int64
look_at_next(void)
{
	int64		now = klm_clock_ms();

	if (now < next_look)
		return next_look;

	if (!klm_launcher_mark_due(&to_look_at[to_look_at_count - 1], 1))
		return next_look = now + OVERFLOW_RETRY_MS;
	to_look_at_count--;
	next_look = now + LOOK_INTERVAL_MS;

	/* At once: to start the sender. */
	return now;
}
