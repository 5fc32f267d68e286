/*-------------------------------------------------------------------------
 *
 * wake.c
 *		What a backend asks of launcher and senders: to wake up at its commit,
 *		to stay out of a database, to tell it when results are recorded.
 *
 * Owns the one transaction callback of each backend, what this transaction
 * wishes for, and the blocks that this process holds.  Calls slots.c.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/guc.h"
#include "cluster/settings.h"
#include "cluster/shared_state.h"
#include "cluster/wake.h"

/* What happens to another database when the transaction commits. */
typedef enum CommitAction
{
	COMMIT_RESTART,
	COMMIT_LOOK
} CommitAction;

typedef struct Pending
{
	CommitAction action;
	Oid			database;
} Pending;

/* This transaction's wishes; the list lives in TopTransactionContext. */
static bool wake_pending = false;
static bool change_pending = false;
static bool fetch_pending = false;
static TimestampTz wake_due = 0;
static List *pending = NIL;

/* Blocks that this process holds (OIDs, with repeats); in TopMemoryContext. */
static List *blocks = NIL;

static void add_pending(CommitAction action, Oid database);
static void watch_transaction(void);
static void at_transaction_end(XactEvent event, void *arg);
static void note_prepared(void);
static void carry_out(const Pending *wish);
static void lift_block(Oid oid);
static void lift_all_blocks(void);
static void lift_blocks_at_exit(int code, Datum arg);
static void tell_waiters(Oid oid);

void
klm_wake_at_commit(TimestampTz due)
{
	if (klm_shared == NULL)
		return;

	watch_transaction();
	if (!wake_pending)
	{
		KlmDatabase *database;

		/*
		 * Make the entry now, so that the commit finds it without any work, and
		 * so that COMMIT PREPARED finds it, which may be another session's.
		 */
		LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
		database = klm_make_database(MyDatabaseId);
		if (database != NULL)
			database->has_mail = true;
		LWLockRelease(klm_shared->lock);
	}
	wake_due = wake_pending ? Min(wake_due, due) : due;
	wake_pending = true;
}

void
klm_changed_at_commit(void)
{
	if (klm_shared == NULL)
		return;

	watch_transaction();
	change_pending = true;
}

void
klm_fetch_at_commit(void)
{
	if (klm_shared == NULL)
		return;

	watch_transaction();
	fetch_pending = true;
}

void
klm_restart_at_commit(Oid database)
{
	add_pending(COMMIT_RESTART, database);
}

void
klm_look_at_commit(Oid database)
{
	add_pending(COMMIT_LOOK, database);
}

void
klm_forget_database(Oid oid)
{
	KlmDatabase *database;

	if (klm_shared == NULL)
		return;

	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	database = klm_find_database(oid);
	if (database != NULL)
	{
		database->has_mail = false;
		database->next_due = database->fetch_due = KLM_NEVER;
		klm_remove_if_unknown(database);
	}
	LWLockRelease(klm_shared->lock);
}

void
klm_wake_after_prepared(void)
{
	KlmDatabase *database;
	PGPROC	   *proc = NULL;

	if (klm_shared == NULL)
		return;

	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	/* Else each of a cluster that prepares all it does would have all sessions look. */
	if (klm_shared->settings_prepared)
		klm_note_changed_settings();
	database = klm_find_database(MyDatabaseId);
	if (database != NULL && database->has_mail)
		proc = klm_wake_database(database, klm_clock_ms());
	LWLockRelease(klm_shared->lock);
	klm_nudge(proc);
	tell_waiters(MyDatabaseId);
}

static void
add_pending(CommitAction action, Oid database)
{
	MemoryContext caller;
	Pending    *wish;

	if (klm_shared == NULL)
		return;

	watch_transaction();
	caller = MemoryContextSwitchTo(TopTransactionContext);
	wish = palloc(sizeof(Pending));
	wish->action = action;
	wish->database = database;
	pending = lappend(pending, wish);
	MemoryContextSwitchTo(caller);
}

/* Once a process. */
static void
watch_transaction(void)
{
	static bool registered = false;

	if (!registered)
	{
		RegisterXactCallback(at_transaction_end, NULL);
		registered = true;
	}
}

/*
 * After a commit nothing may fail any more, and nothing here can.  What a
 * rolled-back subtransaction wished for is carried out too: a sender that
 * looks for nothing does no harm.
 */
static void
at_transaction_end(XactEvent event, void *arg)
{
	ListCell   *cell;

	switch (event)
	{
		case XACT_EVENT_COMMIT:
			/* First, since mail may be queued in what was dropped and made anew. */
			foreach(cell, pending)
				carry_out(lfirst(cell));
			if (wake_pending)
			{
				int64		due = wake_due != 0 ? klm_clock_at(wake_due) : klm_clock_ms();
				KlmDatabase *database;
				PGPROC	   *proc;

				LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
				database = klm_make_database(MyDatabaseId);
				if (database != NULL)
				{
					database->has_mail = true;
					proc = klm_wake_database(database, due);
				}
				else
					proc = klm_shared->launcher;
				LWLockRelease(klm_shared->lock);
				klm_nudge(proc);
			}
			if (fetch_pending)
			{
				KlmDatabase *database;

				LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
				/* Where there is no room a sender tells of it at its next start. */
				database = klm_make_database(MyDatabaseId);
				if (database != NULL)
				{
					database->has_mail = true;
					database->fetch_due = klm_clock_ms();
				}
				LWLockRelease(klm_shared->lock);
				klm_nudge_launcher();
			}
			if (change_pending)
				tell_waiters(MyDatabaseId);
			break;
		case XACT_EVENT_PREPARE:
			note_prepared();
			break;
		case XACT_EVENT_ABORT:
			break;
		default:
			return;
	}
	wake_pending = false;
	change_pending = false;
	fetch_pending = false;
	pending = NIL;
	lift_all_blocks();
}

/* What commits it has no pending wishes to carry out; that there was one is kept for good. */
static void
note_prepared(void)
{
	ListCell   *cell;

	foreach(cell, pending)
	{
		if (((Pending *) lfirst(cell))->action != COMMIT_RESTART)
			continue;
		LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
		klm_shared->settings_prepared = true;
		LWLockRelease(klm_shared->lock);
	}
}

static void
carry_out(const Pending *wish)
{
	KlmDatabase *database;

	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	switch (wish->action)
	{
		case COMMIT_RESTART:
			klm_restart_senders(wish->database);
			klm_note_changed_settings();
			break;
		case COMMIT_LOOK:
			database = klm_make_database(wish->database);
			if (database != NULL)
			{
				database->owner = InvalidOid;
				klm_wake_database(database, klm_clock_ms());
			}
			break;
	}
	LWLockRelease(klm_shared->lock);
	klm_nudge_launcher();
}

/*
 * A block lasts until klm_unblock_database(), and at the longest until the
 * transaction or the process ends.  A worker that was started and has not yet
 * attached finds its slot gone and ends without having connected.
 */
void
klm_block_database(Oid oid)
{
	static bool registered = false;
	KlmDatabase *database;
	MemoryContext caller;

	if (klm_shared == NULL)
		return;

	watch_transaction();
	if (!registered)
	{
		before_shmem_exit(lift_blocks_at_exit, (Datum) 0);
		registered = true;
	}
	caller = MemoryContextSwitchTo(TopMemoryContext);
	blocks = lappend_oid(blocks, oid);
	MemoryContextSwitchTo(caller);

	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	database = klm_make_database(oid);
	if (database == NULL)
	{
		/* No room: then it has no sender, and gets none. */
		blocks = list_delete_last(blocks);
		LWLockRelease(klm_shared->lock);
		return;
	}
	database->blocked++;
	for (int i = 0; i < klm_slot_count(); i++)
	{
		KlmSlot    *slot = &klm_shared->slots[i];

		if (slot->state == SLOT_RESERVED && slot->database == oid)
		{
			if (klm_is_fetcher(slot))
				database->fetch_due = klm_clock_ms();
			else
				database->next_due = Min(database->next_due, klm_clock_ms());
			klm_free_slot(slot);
		}
	}
	klm_ask_to_leave(oid, false);
	LWLockRelease(klm_shared->lock);

	ConditionVariablePrepareToSleep(&klm_shared->slot_freed);
	for (;;)
	{
		bool		served;

		LWLockAcquire(klm_shared->lock, LW_SHARED);
		/* (the block keeps the entry where it is) */
		served = database->slots > 0 || database->fetching;
		LWLockRelease(klm_shared->lock);
		if (!served)
			break;
		ConditionVariableSleep(&klm_shared->slot_freed, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

void
klm_unblock_database(Oid oid)
{
	if (list_member_oid(blocks, oid))
	{
		blocks = list_delete_oid(blocks, oid);
		lift_block(oid);
	}
}

static void
lift_block(Oid oid)
{
	KlmDatabase *database;

	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	database = klm_find_database(oid);
	if (database != NULL)
	{
		Assert(database->blocked > 0);
		database->blocked--;
		klm_remove_if_unknown(database);
	}
	LWLockRelease(klm_shared->lock);
	klm_nudge_launcher();
}

static void
lift_all_blocks(void)
{
	while (blocks != NIL)
	{
		Oid			oid = llast_oid(blocks);

		blocks = list_delete_last(blocks);
		lift_block(oid);
	}
}

static void
lift_blocks_at_exit(int code, Datum arg)
{
	lift_all_blocks();
}

uint64
klm_records(void)
{
	KlmDatabase *database;
	uint64		records = 0;

	if (klm_shared == NULL)
		return 0;

	LWLockAcquire(klm_shared->lock, LW_SHARED);
	database = klm_find_database(MyDatabaseId);
	if (database != NULL)
		records = database->records;
	LWLockRelease(klm_shared->lock);
	return records;
}

/*
 * Sleeps on the database's condition variable, and looks the entry up anew
 * after each sleep, since an idle one may have made room for another.
 */
bool
klm_wait_for_record(uint64 *seen, long timeout_ms)
{
	int64		end = klm_clock_ms() + timeout_ms;
	bool		recorded = false;

	if (klm_shared == NULL)
		return false;

	for (;;)
	{
		KlmDatabase *database;
		uint64		records = 0;
		int64		left;

		LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
		database = klm_make_database(MyDatabaseId);
		if (database != NULL)
		{
			ConditionVariablePrepareToSleep(&database->recorded);
			records = database->records;
		}
		LWLockRelease(klm_shared->lock);

		if (database != NULL && records != *seen)
		{
			*seen = records;
			recorded = true;
			break;
		}
		left = end - klm_clock_ms();
		if (left <= 0)
			break;
		if (database == NULL)
		{
			/* No room in the table: let the caller look every second. */
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 Min(left, 1000), PG_WAIT_EXTENSION);
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
			recorded = true;
			break;
		}
		(void) ConditionVariableTimedSleep(&database->recorded, left, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	return recorded;
}

void
klm_sender_recorded(void)
{
	tell_waiters(MyDatabaseId);
}

/* Those in klm_wait_for_record(), which need an entry themselves. */
static void
tell_waiters(Oid oid)
{
	KlmDatabase *database;

	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	database = klm_find_database(oid);
	if (database != NULL)
		database->records++;
	LWLockRelease(klm_shared->lock);
	if (database != NULL)
		ConditionVariableBroadcast(&database->recorded);
}
