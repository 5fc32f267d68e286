/*-------------------------------------------------------------------------
 *
 * slots.c
 *		What launcher, senders and backends share: databases that have mail,
 *		who serves them, when they are next due.
 *
 * Owns the shared state, the lock on it, the one transaction callback of each
 * backend, and the security label by which the launcher finds databases after
 * a restart.  Calls nothing else of ours but guc.c's variables.
 *
 * A database is due when its next_due has passed.  The launcher then reserves
 * one of max_senders slots for it and starts a worker, which attaches to the
 * slot and gives it back when its process is out of the database:
 *
 *		free -> reserved -> attached -> (leaving ->) free
 *
 * While a sender serves a database, next_due says nothing until the (last)
 * sender leaves: it sees every wake-up itself.  Each change of a slot's holder
 * raises its generation, so that a late worker or a late clean-up cannot hit a
 * successor.
 *
 * A database with more mail than its sender's connections take may have further
 * senders, on slots that nobody else waits for; they leave first.
 *
 * One LWLock guards all of it; nobody waits, allocates or raises while holding
 * it, and what a commit does under it is one hash look-up.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_database.h"
#include "catalog/pg_shseclabel.h"
#include "commands/extension.h"
#include "commands/seclabel.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "pgstat.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/proclist.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/guc.h"
#include "cluster/slots.h"

/* Databases that can be known at the same time; idle ones make room for others. */
#define MAX_DATABASES 4096

/* The throttle of senders that fail: 1 s, doubling up to this. */
#define MAX_THROTTLE_S 60

/* When a sender has to give its slot to a database that waits. */
#define SLOT_IDLE_MS 5000
#define SLOT_MAX_MS 30000

#define LABEL_PROVIDER "kliv_mail"
#define LABEL "mail"
#define LABEL_KEYS " keys="

/* How a worker's argument is made of slot and generation, in 32 bits. */
#define SLOT_BITS 8
#define SLOT_MASK ((1 << SLOT_BITS) - 1)
#define GENERATION_MASK (PG_UINT32_MAX >> SLOT_BITS)

typedef struct Database
{
	Oid			oid;			/* hash key */
	bool		has_mail;		/* as far as we know, the extension is there */
	int			blocked;		/* statements that keep senders out */
	int			slots;			/* reserved or attached for it */
	bool		backlog;		/* its senders wish for another one */
	TimestampTz left_due;		/* the earliest next_due of senders that left while others stay */
	uint32		deaths;			/* senders that did not leave cleanly */
	uint64		wakes;			/* commits that asked for a sender */
	TimestampTz next_due;		/* DT_NOEND: not known to be due ever */
	TimestampTz waits_since;	/* due, but without a slot; 0: does not wait */
	int			failures;		/* senders in a row that did not leave cleanly */
	TimestampTz not_before;		/* the throttle */
	uint64		records;		/* commits of a sender's results, of cancel() and its kin */
	ConditionVariable recorded;
	char		last_error[sizeof(((KlmProcessStatus *) NULL)->last_error)];
} Database;

typedef enum SlotState
{
	SLOT_FREE,
	SLOT_RESERVED,
	SLOT_ATTACHED,
	SLOT_LEAVING				/* has said good-bye, its process still ends */
} SlotState;

typedef struct Slot
{
	SlotState	state;
	uint32		generation;
	Oid			database;
	PGPROC	   *proc;			/* from attached on */
	int			pid;
	bool		must_leave;		/* a statement waits for it */
	bool		restart;		/* with other settings, when what is under way is done */
	bool		extra;			/* its database had a sender already */
	TimestampTz started;
} Slot;

typedef struct SharedState
{
	LWLock	   *lock;
	PGPROC	   *launcher;		/* NULL: not running */
	int			launcher_pid;
	bool		slots_exhausted;
	bool		overflowed;		/* a database found no room in the table */
	pg_atomic_uint32 wanted;	/* databases wait for a slot */
	ConditionVariable slot_freed;
	Slot		slots[FLEXIBLE_ARRAY_MEMBER];	/* klm_max_senders */
} SharedState;

/* What happens to another database when the transaction commits. */
typedef enum CommitAction
{
	COMMIT_RESTART,
	COMMIT_LOOK,
	COMMIT_FORGET
} CommitAction;

typedef struct Pending
{
	CommitAction action;
	Oid			database;
} Pending;

static SharedState *shared = NULL;
static HTAB *databases = NULL;

static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

/* This transaction's wishes; the list lives in TopTransactionContext. */
static bool wake_pending = false;
static bool change_pending = false;
static TimestampTz wake_due = 0;
static List *pending = NIL;

/* Blocks that this process holds (OIDs, with repeats); in TopMemoryContext. */
static List *blocks = NIL;

/* As a sender: our slot and what only we need to know of it. */
static Slot *my_slot = NULL;
static TimestampTz my_progress = 0;

static void request_shared_memory(void);
static Size shared_size(void);
static void start_shared_memory(void);
static Database *find_database(Oid oid);
static Database *make_database(Oid oid);
static bool may_be_removed(Database *database);
static void remove_if_unknown(Database *database);
static PGPROC *wake(Database *database, TimestampTz due);
static void nudge(PGPROC *proc);
static void nudge_launcher(void);
static void tell_waiters(Oid oid);
static void watch_transaction(void);
static void at_transaction_end(XactEvent event, void *arg);
static void add_pending(CommitAction action, Oid database);
static void carry_out(const Pending *wish);
static void ask_to_leave(Oid oid, bool restart);
static void lift_block(Oid oid);
static void lift_all_blocks(void);
static void lift_blocks_at_exit(int code, Datum arg);
static void leave_slot_at_exit(int code, Datum arg);
static void free_slot(Slot *slot);
static void note_failure(Database *database, const Slot *slot);
static int	most_senders(void);
static void detach_launcher(int code, Datum arg);
static void want_slots(bool wanted);
static int	compare_oids(const void *a, const void *b);
static void set_label(const char *label);
static void check_label(const ObjectAddress *object, const char *label);

/* ---- setting up ---- */

bool
klm_preloaded(void)
{
	return shared != NULL;
}

void
klm_shmem_init(void)
{
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request_shared_memory;
	previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = start_shared_memory;
}

static void
request_shared_memory(void)
{
	if (previous_request_hook)
		previous_request_hook();

	RequestAddinShmemSpace(add_size(shared_size(),
									hash_estimate_size(MAX_DATABASES, sizeof(Database))));
	RequestNamedLWLockTranche("kliv_mail", 1);
}

static Size
shared_size(void)
{
	return add_size(offsetof(SharedState, slots), mul_size(klm_max_senders, sizeof(Slot)));
}

static void
start_shared_memory(void)
{
	HASHCTL		info = {0};
	bool		found;

	if (previous_startup_hook)
		previous_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("kliv_mail", shared_size(), &found);
	if (!found)
	{
		memset(shared, 0, shared_size());
		shared->lock = &GetNamedLWLockTranche("kliv_mail")->lock;
		pg_atomic_init_u32(&shared->wanted, 0);
		ConditionVariableInit(&shared->slot_freed);
	}
	info.keysize = sizeof(Oid);
	info.entrysize = sizeof(Database);
	databases = ShmemInitHash("kliv_mail databases", MAX_DATABASES, MAX_DATABASES, &info,
							  HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	LWLockRelease(AddinShmemInitLock);
}

/* ---- the table of databases; all with the lock held ---- */

static Database *
find_database(Oid oid)
{
	return hash_search(databases, &oid, HASH_FIND, NULL);
}

/*
 * Find or make; NULL when the table is full of databases that are due, served
 * or watched.  Then the launcher, which knows the labels, comes back to it.
 */
static Database *
make_database(Oid oid)
{
	bool		found;
	Database   *database = hash_search(databases, &oid, HASH_ENTER_NULL, &found);

	if (database == NULL)
	{
		HASH_SEQ_STATUS scan;

		hash_seq_init(&scan, databases);
		while ((database = hash_seq_search(&scan)) != NULL)
		{
			if (may_be_removed(database))
			{
				hash_search(databases, &database->oid, HASH_REMOVE, NULL);
				hash_seq_term(&scan);
				break;
			}
		}
		database = hash_search(databases, &oid, HASH_ENTER_NULL, &found);
		if (database == NULL)
		{
			shared->overflowed = true;
			return NULL;
		}
	}
	if (!found)
	{
		memset((char *) database + sizeof(Oid), 0, sizeof(Database) - sizeof(Oid));
		database->next_due = DT_NOEND;
		database->left_due = DT_NOEND;
		ConditionVariableInit(&database->recorded);
	}
	return database;
}

/* Nothing would be lost but its counters, and nobody sleeps on it? */
static bool
may_be_removed(Database *database)
{
	bool		watched;

	SpinLockAcquire(&database->recorded.mutex);
	watched = !proclist_is_empty(&database->recorded.wakeup);
	SpinLockRelease(&database->recorded.mutex);

	return !watched && database->blocked == 0 && database->slots == 0 &&
		TIMESTAMP_IS_NOEND(database->next_due);
}

/* An entry that only a block or a look has made goes with it. */
static void
remove_if_unknown(Database *database)
{
	if (!database->has_mail && may_be_removed(database))
		hash_search(databases, &database->oid, HASH_REMOVE, NULL);
}

/*
 * The database is due.  Returns whose latch to set once the lock is released:
 * its sender's, who will see the wake-up, or the launcher's.  Further senders'
 * latches are set here.
 */
static PGPROC *
wake(Database *database, TimestampTz due)
{
	PGPROC	   *first = NULL;

	database->wakes++;
	database->next_due = Min(database->next_due, due);

	for (int i = 0; database->slots > 0 && i < klm_max_senders; i++)
	{
		Slot	   *slot = &shared->slots[i];

		if (slot->state != SLOT_ATTACHED || slot->database != database->oid)
			continue;
		if (database->slots == 1)
			return slot->proc;
		if (first == NULL)
			first = slot->proc;
		else
			nudge(slot->proc);
	}
	return first ? first : shared->launcher;
}

/* Harmless where the process has ended and another has its PGPROC now. */
static void
nudge(PGPROC *proc)
{
	if (proc != NULL)
		SetLatch(&proc->procLatch);
}

static void
nudge_launcher(void)
{
	nudge(shared->launcher);
}

/* ---- backends ---- */

void
klm_wake_at_commit(TimestampTz due)
{
	if (shared == NULL)
		return;

	watch_transaction();
	if (!wake_pending)
	{
		Database   *database;

		/*
		 * Make the entry now, so that the commit finds it without any work, and
		 * so that COMMIT PREPARED finds it, which may be another session's.
		 */
		LWLockAcquire(shared->lock, LW_EXCLUSIVE);
		database = make_database(MyDatabaseId);
		if (database != NULL)
			database->has_mail = true;
		LWLockRelease(shared->lock);
	}
	wake_due = wake_pending ? Min(wake_due, due) : due;
	wake_pending = true;
}

void
klm_changed_at_commit(void)
{
	if (shared == NULL)
		return;

	watch_transaction();
	change_pending = true;
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
klm_forget_at_commit(Oid database)
{
	add_pending(COMMIT_FORGET, database);
}

void
klm_wake_after_prepared(void)
{
	Database   *database;
	PGPROC	   *proc = NULL;

	if (shared == NULL)
		return;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	database = find_database(MyDatabaseId);
	if (database != NULL && database->has_mail)
		proc = wake(database, GetCurrentTimestamp());
	LWLockRelease(shared->lock);
	nudge(proc);
	tell_waiters(MyDatabaseId);
}

static void
add_pending(CommitAction action, Oid database)
{
	MemoryContext caller;
	Pending    *wish;

	if (shared == NULL)
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
				TimestampTz due = wake_due != 0 ? wake_due : GetCurrentTimestamp();
				Database   *database;
				PGPROC	   *proc;

				LWLockAcquire(shared->lock, LW_EXCLUSIVE);
				database = make_database(MyDatabaseId);
				if (database != NULL)
				{
					database->has_mail = true;
					proc = wake(database, due);
				}
				else
					proc = shared->launcher;
				LWLockRelease(shared->lock);
				nudge(proc);
			}
			if (change_pending)
				tell_waiters(MyDatabaseId);
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			break;
		default:
			return;
	}
	wake_pending = false;
	change_pending = false;
	pending = NIL;
	lift_all_blocks();
}

static void
carry_out(const Pending *wish)
{
	Database   *database;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	switch (wish->action)
	{
		case COMMIT_RESTART:
			database = find_database(wish->database);
			if (database != NULL)
			{
				wake(database, GetCurrentTimestamp());
				ask_to_leave(wish->database, true);
			}
			break;
		case COMMIT_LOOK:
			database = make_database(wish->database);
			if (database != NULL)
				wake(database, GetCurrentTimestamp());
			break;
		case COMMIT_FORGET:
			database = find_database(wish->database);
			if (database != NULL)
			{
				database->has_mail = false;
				database->next_due = DT_NOEND;
				database->failures = 0;
				database->last_error[0] = '\0';
				remove_if_unknown(database);
			}
			break;
	}
	LWLockRelease(shared->lock);
	nudge_launcher();
}

/* With the lock held: SetLatch() is cheap enough to call here. */
static void
ask_to_leave(Oid oid, bool restart)
{
	for (int i = 0; i < klm_max_senders; i++)
	{
		Slot	   *slot = &shared->slots[i];

		if (slot->database != oid)
			continue;
		if (slot->state == SLOT_ATTACHED)
		{
			if (restart)
				slot->restart = true;
			else
				slot->must_leave = true;
			nudge(slot->proc);
		}
	}
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
	Database   *database;
	MemoryContext caller;

	if (shared == NULL)
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

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	database = make_database(oid);
	if (database == NULL)
	{
		/* No room: then it has no sender, and gets none. */
		blocks = list_delete_last(blocks);
		LWLockRelease(shared->lock);
		return;
	}
	database->blocked++;
	for (int i = 0; i < klm_max_senders; i++)
	{
		Slot	   *slot = &shared->slots[i];

		if (slot->state == SLOT_RESERVED && slot->database == oid)
		{
			database->next_due = Min(database->next_due, GetCurrentTimestamp());
			free_slot(slot);
		}
	}
	ask_to_leave(oid, false);
	LWLockRelease(shared->lock);

	ConditionVariablePrepareToSleep(&shared->slot_freed);
	for (;;)
	{
		int			slots;

		LWLockAcquire(shared->lock, LW_SHARED);
		slots = database->slots;	/* the block keeps the entry where it is */
		LWLockRelease(shared->lock);
		if (slots == 0)
			break;
		ConditionVariableSleep(&shared->slot_freed, PG_WAIT_EXTENSION);
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
	Database   *database;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	database = find_database(oid);
	if (database != NULL)
	{
		Assert(database->blocked > 0);
		database->blocked--;
		remove_if_unknown(database);
	}
	LWLockRelease(shared->lock);
	nudge_launcher();
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
	Database   *database;
	uint64		records = 0;

	if (shared == NULL)
		return 0;

	LWLockAcquire(shared->lock, LW_SHARED);
	database = find_database(MyDatabaseId);
	if (database != NULL)
		records = database->records;
	LWLockRelease(shared->lock);
	return records;
}

/*
 * Sleeps on the database's condition variable, and looks the entry up anew
 * after each sleep, since an idle one may have made room for another.
 */
bool
klm_wait_for_record(uint64 *seen, long timeout_ms)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	bool		recorded = false;

	if (shared == NULL)
		return false;

	for (;;)
	{
		Database   *database;
		uint64		records = 0;
		long		left;

		LWLockAcquire(shared->lock, LW_EXCLUSIVE);
		database = make_database(MyDatabaseId);
		if (database != NULL)
		{
			ConditionVariablePrepareToSleep(&database->recorded);
			records = database->records;
		}
		LWLockRelease(shared->lock);

		if (database != NULL && records != *seen)
		{
			*seen = records;
			recorded = true;
			break;
		}
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
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
klm_process_status(KlmProcessStatus *status)
{
	Database   *database;

	memset(status, 0, sizeof(*status));
	status->next_due = DT_NOEND;
	if (shared == NULL)
		return;

	status->preloaded = true;
	LWLockAcquire(shared->lock, LW_SHARED);
	status->launcher_pid = shared->launcher_pid;
	status->slots_exhausted = shared->slots_exhausted;
	database = find_database(MyDatabaseId);
	if (database != NULL)
	{
		status->next_due = database->next_due;
		strlcpy(status->last_error, database->last_error, sizeof(status->last_error));
	}
	for (int i = 0; i < klm_max_senders; i++)
	{
		if (shared->slots[i].state == SLOT_ATTACHED &&
			shared->slots[i].database == MyDatabaseId)
		{
			status->sender_pid = shared->slots[i].pid;
			status->next_due = DT_NOEND;
		}
	}
	LWLockRelease(shared->lock);
}

/* ---- senders ---- */

/*
 * Must come before the connection to the database: then the exit callback runs
 * after the process has left the list of those that use the database, and who
 * waits for the slot finds the database free.
 */
bool
klm_sender_attach(Datum worker_argument, Oid *oid)
{
	uint32		argument = DatumGetUInt32(worker_argument);
	int			number = argument & SLOT_MASK;
	uint32		generation = argument >> SLOT_BITS;
	Slot	   *slot;

	if (shared == NULL || number >= klm_max_senders)
		return false;

	Assert(!OidIsValid(MyDatabaseId));
	on_shmem_exit(leave_slot_at_exit, (Datum) 0);

	slot = &shared->slots[number];
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (slot->state == SLOT_RESERVED && slot->generation == generation)
	{
		slot->state = SLOT_ATTACHED;
		slot->proc = MyProc;
		slot->pid = MyProcPid;
		slot->must_leave = false;
		slot->restart = false;
		slot->started = GetCurrentTimestamp();
		*oid = slot->database;
		my_slot = slot;
		my_progress = slot->started;
	}
	LWLockRelease(shared->lock);

	return my_slot != NULL;
}

static void
leave_slot_at_exit(int code, Datum arg)
{
	Database   *database;
	PGPROC	   *other = NULL;	/* another sender of the database takes up what was ours */

	if (my_slot == NULL)
		return;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	database = find_database(my_slot->database);
	if (my_slot->state == SLOT_ATTACHED && database != NULL)
	{
		/* It has not said good-bye, and what it knew is lost.  (Ours is not the latch to set.) */
		my_slot->state = SLOT_LEAVING;
		note_failure(database, my_slot);
		database->deaths++;
		other = wake(database, GetCurrentTimestamp());
	}
	free_slot(my_slot);
	my_slot = NULL;
	if (database != NULL)
		remove_if_unknown(database);
	LWLockRelease(shared->lock);

	ConditionVariableBroadcast(&shared->slot_freed);
	nudge_launcher();
	nudge(other);
}

/* With the lock held. */
static void
free_slot(Slot *slot)
{
	Database   *database = find_database(slot->database);

	if (database != NULL)
		database->slots--;
	slot->state = SLOT_FREE;
	slot->generation = (slot->generation + 1) & GENERATION_MASK;
	slot->database = InvalidOid;
	slot->proc = NULL;
	slot->pid = 0;
	slot->must_leave = false;
	slot->restart = false;
	slot->extra = false;
}

/* With the lock held.  One that had worked for long begins the throttle anew. */
static void
note_failure(Database *database, const Slot *slot)
{
	TimestampTz now = GetCurrentTimestamp();

	if (slot->state != SLOT_RESERVED &&
		TimestampDifferenceExceeds(slot->started, now, MAX_THROTTLE_S * 1000))
		database->failures = 0;
	database->not_before =
		now + Min(INT64CONST(1) << Min(database->failures, 30), MAX_THROTTLE_S) * USECS_PER_SEC;
	database->failures++;
}

bool
klm_sender_must_leave(void)
{
	return my_slot != NULL && ((volatile Slot *) my_slot)->must_leave;
}

void
klm_sender_progress(void)
{
	my_progress = GetCurrentTimestamp();
}

bool
klm_sender_slot_wanted(long *check_ms)
{
	TimestampTz now;
	TimestampTz end;

	if (my_slot != NULL && ((volatile Slot *) my_slot)->restart)
	{
		*check_ms = 0;
		return true;
	}
	if (my_slot == NULL || pg_atomic_read_u32(&shared->wanted) == 0)
	{
		*check_ms = -1;
		return false;
	}

	if (my_slot->extra)
	{
		*check_ms = 0;
		return true;
	}
	now = GetCurrentTimestamp();
	end = Min(TimestampTzPlusMilliseconds(my_progress, SLOT_IDLE_MS),
			  TimestampTzPlusMilliseconds(my_slot->started, SLOT_MAX_MS));
	*check_ms = TimestampDifferenceMilliseconds(now, end);
	return *check_ms <= 0;
}

void
klm_sender_state(KlmSenderState *state)
{
	Database   *database;

	Assert(my_slot != NULL);
	LWLockAcquire(shared->lock, LW_SHARED);
	database = find_database(my_slot->database);	/* our slot keeps the entry */
	state->wakes = database->wakes;
	state->deaths = database->deaths;
	state->senders = database->slots;
	LWLockRelease(shared->lock);
}

/* More senders than connections would not share them. */
static int
most_senders(void)
{
	return Min(klm_senders_per_database, klm_connections_per_account);
}

void
klm_sender_backlog(void)
{
	Database   *database;
	bool		wish;

	Assert(my_slot != NULL);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	database = find_database(my_slot->database);
	wish = database->slots < most_senders();
	database->backlog = wish;
	for (int i = 0; database->slots > 1 && i < klm_max_senders; i++)
	{
		Slot	   *slot = &shared->slots[i];

		if (slot != my_slot && slot->state == SLOT_ATTACHED && slot->database == database->oid)
			nudge(slot->proc);
	}
	LWLockRelease(shared->lock);
	if (wish)
		nudge_launcher();
}

bool
klm_sender_leave(uint64 wakes_seen, TimestampTz next_due, bool force)
{
	Database   *database;
	bool		missed;

	Assert(my_slot != NULL);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	database = find_database(my_slot->database);
	missed = database->wakes != wakes_seen;
	if (!missed || force)
	{
		/* Who left before may know of something earlier than the last one does. */
		database->left_due = Min(database->left_due, next_due);
		database->next_due = missed ? GetCurrentTimestamp() : database->left_due;
		database->failures = 0;
		database->not_before = 0;
		my_slot->state = SLOT_LEAVING;
	}
	LWLockRelease(shared->lock);

	/* The launcher hears of it when the process has ended. */
	return !missed || force;
}

void
klm_sender_recorded(void)
{
	Assert(my_slot != NULL);
	tell_waiters(my_slot->database);
}

/* Those in klm_wait_for_record(), which need an entry themselves. */
static void
tell_waiters(Oid oid)
{
	Database   *database;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	database = find_database(oid);
	if (database != NULL)
		database->records++;
	LWLockRelease(shared->lock);
	if (database != NULL)
		ConditionVariableBroadcast(&database->recorded);
}

void
klm_sender_set_error(const char *utf8)
{
	Database   *database;
	int			length = pg_encoding_mbcliplen(PG_UTF8, utf8, strlen(utf8),
											   sizeof(database->last_error) - 1);

	Assert(my_slot != NULL);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	database = find_database(my_slot->database);
	memcpy(database->last_error, utf8, length);
	database->last_error[length] = '\0';
	LWLockRelease(shared->lock);
}

/*
 * The order proves that no extension that is created meanwhile is forgotten.
 * has_mail: cleared before the catalogue is read, and set by the wake-up of a
 * later send().  The label: it and the extension appear in one commit, so that
 * whoever sees the label sees the extension too.
 */
void
klm_sender_forget_database(void)
{
	bool		own_transaction = !IsTransactionState();
	Database   *database;

	Assert(my_slot != NULL);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	database = find_database(my_slot->database);
	database->has_mail = false;
	LWLockRelease(shared->lock);

	if (own_transaction)
		StartTransactionCommand();
	if (klm_database_labelled(MyDatabaseId))
	{
		if (OidIsValid(get_extension_oid(KLM_SCHEMA, true)))
		{
			LWLockAcquire(shared->lock, LW_EXCLUSIVE);
			database->has_mail = true;
			LWLockRelease(shared->lock);
		}
		else
			set_label(NULL);
	}
	if (own_transaction)
		CommitTransactionCommand();
}

/* ---- the label ---- */

void
klm_label_init(void)
{
	register_label_provider(LABEL_PROVIDER, check_label);
}

/* SECURITY LABEL, which pg_dump --create writes too: our label and no other. */
static void
check_label(const ObjectAddress *object, const char *label)
{
	if (object->classId != DatabaseRelationId)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("security labels of \"%s\" are for databases", LABEL_PROVIDER)));
	if (label != NULL && strcmp(label, LABEL) != 0 && klm_keys_of_label(label) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("\"%s\" is not a security label of \"%s\"", label, LABEL_PROVIDER),
				 errhint("It is \"%s\", for the launcher to look for mail in the database, or \"%s%s...\" "
						 "with the ids of the keys that the database needs.", LABEL, LABEL, LABEL_KEYS)));
}

const char *
klm_keys_of_label(const char *label)
{
	const char *ids = label + strlen(LABEL LABEL_KEYS);

	if (strncmp(label, LABEL LABEL_KEYS, strlen(LABEL LABEL_KEYS)) != 0 || *ids == '\0' ||
		ids[strspn(ids, "abcdefghijklmnopqrstuvwxyz0123456789,")] != '\0')
		return NULL;
	return ids;
}

bool
klm_database_labelled(Oid database)
{
	ObjectAddress object;

	ObjectAddressSet(object, DatabaseRelationId, database);
	return GetSecurityLabel(&object, LABEL_PROVIDER) != NULL;
}

void
klm_label_database(void)
{
	if (!klm_database_labelled(MyDatabaseId))
		set_label(LABEL);
}

void
klm_label_keys(const char *ids)
{
	const char *label = ids[0] == '\0' ? LABEL : psprintf("%s%s%s", LABEL, LABEL_KEYS, ids);
	const char *old;
	ObjectAddress object;

	/* One after the other: the catalogue raises an error where two change a row. */
	LockSharedObject(SharedSecLabelRelationId, MyDatabaseId, 0, ExclusiveLock);
	ObjectAddressSet(object, DatabaseRelationId, MyDatabaseId);
	old = GetSecurityLabel(&object, LABEL_PROVIDER);
	if (old == NULL || strcmp(old, label) != 0)
		set_label(label);
}

void
klm_unlabel_database(void)
{
	if (klm_database_labelled(MyDatabaseId))
		set_label(NULL);
}

static void
set_label(const char *label)
{
	ObjectAddress object;

	ObjectAddressSet(object, DatabaseRelationId, MyDatabaseId);
	SetSecurityLabel(&object, LABEL_PROVIDER, label);
	CommandCounterIncrement();
}

/* ---- the launcher ---- */

void
klm_launcher_attach(void)
{
	before_shmem_exit(detach_launcher, (Datum) 0);

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher = MyProc;
	shared->launcher_pid = MyProcPid;
	shared->slots_exhausted = false;
	for (int i = 0; i < klm_max_senders; i++)
	{
		Slot	   *slot = &shared->slots[i];

		if (slot->state == SLOT_RESERVED)
		{
			find_database(slot->database)->next_due = GetCurrentTimestamp();
			free_slot(slot);
		}
	}
	LWLockRelease(shared->lock);
}

static void
detach_launcher(int code, Datum arg)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->launcher = NULL;
	shared->launcher_pid = 0;
	LWLockRelease(shared->lock);
}

/*
 * First come, first served, by the time since when a database is due and has
 * no slot.  Where somebody has to wait, all senders are told once, so that
 * they look at the time that they have had.
 */
bool
klm_launcher_reserve(KlmReservation *reservation, KlmOutlook *outlook)
{
	TimestampTz now = GetCurrentTimestamp();
	HASH_SEQ_STATUS scan;
	Database   *database;
	Database   *first = NULL;
	Database   *helped = NULL;
	Slot	   *slot = NULL;
	int			waiting = 0;

	outlook->next_start = DT_NOEND;
	reservation->extra = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	hash_seq_init(&scan, databases);
	while ((database = hash_seq_search(&scan)) != NULL)
	{
		TimestampTz start = Max(database->next_due, database->not_before);

		if (database->blocked > 0)
			continue;
		if (database->slots > 0)
		{
			if (database->backlog && database->slots < most_senders() &&
				database->not_before <= now)
				helped = database;
			continue;
		}
		if (start > now)
		{
			outlook->next_start = Min(outlook->next_start, start);
			continue;
		}
		if (database->waits_since == 0)
			database->waits_since = now;
		if (first == NULL || database->waits_since < first->waits_since)
			first = database;
		waiting++;
	}
	for (int i = 0; i < klm_max_senders && slot == NULL; i++)
	{
		if (shared->slots[i].state == SLOT_FREE)
			slot = &shared->slots[i];
	}

	if (first == NULL && helped != NULL)
	{
		first = helped;
		reservation->extra = true;
	}
	if (first != NULL && slot != NULL)
	{
		slot->state = SLOT_RESERVED;
		slot->database = first->oid;
		slot->extra = reservation->extra;
		if (first->slots++ == 0)
			first->left_due = DT_NOEND;
		first->backlog = false;
		first->waits_since = 0;
		first->next_due = DT_NOEND;
		reservation->slot = slot - shared->slots;
		reservation->generation = slot->generation;
		reservation->database = first->oid;
		reservation->failures = first->failures;
		LWLockRelease(shared->lock);
		return true;
	}

	outlook->room = slot != NULL;
	want_slots(waiting > 0);
	LWLockRelease(shared->lock);
	return false;
}

/* With the lock held. */
static void
want_slots(bool wanted)
{
	if (pg_atomic_exchange_u32(&shared->wanted, wanted) == 0 && wanted)
	{
		for (int i = 0; i < klm_max_senders; i++)
		{
			if (shared->slots[i].state == SLOT_ATTACHED)
				nudge(shared->slots[i].proc);
		}
	}
}

Datum
klm_launcher_argument(const KlmReservation *reservation)
{
	return UInt32GetDatum(reservation->generation << SLOT_BITS | reservation->slot);
}

bool
klm_launcher_awaited(const KlmReservation *reservation)
{
	const Slot *slot = &shared->slots[reservation->slot];
	bool		awaited;

	LWLockAcquire(shared->lock, LW_SHARED);
	awaited = slot->state == SLOT_RESERVED && slot->generation == reservation->generation;
	LWLockRelease(shared->lock);
	return awaited;
}

void
klm_launcher_cancel(const KlmReservation *reservation, bool failed)
{
	Slot	   *slot = &shared->slots[reservation->slot];
	Database   *database;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	if (slot->state == SLOT_RESERVED && slot->generation == reservation->generation)
	{
		database = find_database(reservation->database);
		if (failed)
			note_failure(database, slot);
		database->next_due = Min(database->next_due, GetCurrentTimestamp());
		free_slot(slot);
	}
	LWLockRelease(shared->lock);
	ConditionVariableBroadcast(&shared->slot_freed);
}

void
klm_launcher_set_exhausted(bool exhausted)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	shared->slots_exhausted = exhausted;
	if (exhausted)
		want_slots(true);		/* a sender that leaves frees a slot, too */
	LWLockRelease(shared->lock);
}

bool
klm_launcher_mark_due(const Oid *oids, int count)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		all = true;

	for (int i = 0; i < count; i++)
	{
		Database   *database;
		PGPROC	   *proc = NULL;

		LWLockAcquire(shared->lock, LW_EXCLUSIVE);
		database = make_database(oids[i]);
		if (database != NULL)
		{
			database->has_mail = true;
			proc = wake(database, now);
		}
		else
			all = false;
		LWLockRelease(shared->lock);
		if (proc != shared->launcher)
			nudge(proc);
	}
	return all;
}

bool
klm_launcher_knows(Oid oid)
{
	bool		known;

	LWLockAcquire(shared->lock, LW_SHARED);
	known = find_database(oid) != NULL;
	LWLockRelease(shared->lock);
	return known;
}

void
klm_launcher_prune(const Oid *existing, int count)
{
	Oid		   *sorted = palloc(Max(count, 1) * sizeof(Oid));
	HASH_SEQ_STATUS scan;
	Database   *database;

	memcpy(sorted, existing, count * sizeof(Oid));
	qsort(sorted, count, sizeof(Oid), compare_oids);

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	hash_seq_init(&scan, databases);
	while ((database = hash_seq_search(&scan)) != NULL)
	{
		if (bsearch(&database->oid, sorted, count, sizeof(Oid), compare_oids) != NULL)
			continue;
		database->has_mail = false;
		database->next_due = DT_NOEND;
		remove_if_unknown(database);
	}
	LWLockRelease(shared->lock);
	pfree(sorted);
}

static int
compare_oids(const void *a, const void *b)
{
	Oid			left = *(const Oid *) a;
	Oid			right = *(const Oid *) b;

	return (left > right) - (left < right);
}

bool
klm_launcher_overflowed(void)
{
	bool		overflowed;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	overflowed = shared->overflowed;
	shared->overflowed = false;
	LWLockRelease(shared->lock);
	return overflowed;
}
