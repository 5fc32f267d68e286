/*-------------------------------------------------------------------------
 *
 * slots.c
 *		What launcher, senders and backends share: databases that have mail,
 *		who serves them, when they are next due.
 *
 * Owns the shared state and the lock on it (shared_state.h).  Calls
 * database_label.c and reads settings.
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
 * A database whose bounce mailbox is due gets one of a few further slots in the
 * same way, for a fetcher: one a database, which no sender waits for.
 *
 * A database with more mail than its sender's connections take may have further
 * senders, on slots that nobody else waits for; they leave first.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/extension.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "storage/proclist.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/guc.h"
#include "cluster/database_label.h"
#include "cluster/shared_state.h"
#include "cluster/slots.h"

/* Databases that can be known at the same time; idle ones make room for others. */
#define MAX_DATABASES 4096

/* The throttle of senders that fail: 1 s, doubling up to this. */
#define MAX_THROTTLE_S 60

/* A fetcher that failed, or found no worker slot, is started again no sooner. */
#define FETCHER_THROTTLE_MS 60000

/* When a sender has to give its slot to a database that waits. */
#define SLOT_IDLE_MS 5000
#define SLOT_MAX_MS 30000

/* How a worker's argument is made of slot and generation, in 32 bits. */
#define SLOT_BITS 9
#define SLOT_MASK ((1 << SLOT_BITS) - 1)
#define GENERATION_MASK (PG_UINT32_MAX >> SLOT_BITS)

KlmSharedState *klm_shared = NULL;
static HTAB *databases = NULL;

static shmem_request_hook_type previous_request_hook = NULL;
static shmem_startup_hook_type previous_startup_hook = NULL;

/* As the launcher: when a slot was last taken for a database of that owner. */
typedef struct Turn
{
	Oid			owner;			/* hash key */
	int64		at;				/* a sender's */
	int64		fetched_at;		/* a fetcher's */
} Turn;

static HTAB *turns = NULL;

/* As a sender: our slot and what only we need to know of it. */
static KlmSlot *my_slot = NULL;
static int64 my_progress = 0;

static void request_shared_memory(void);
static Size shared_size(void);
static void start_shared_memory(void);
static bool may_be_removed(KlmDatabase *database);
static void leave_slot_at_exit(int code, Datum arg);
static void note_failure(KlmDatabase *database, const KlmSlot *slot);
static int	most_senders(void);
static void detach_launcher(int code, Datum arg);
static bool goes_before(const KlmDatabase *one, const KlmDatabase *other, bool fetcher);
static int	slots_of(Oid owner, bool fetcher);
static int64 last_turn(Oid owner, bool fetcher);
static Turn *turn_of(Oid owner);
static void want_slots(bool wanted);
static int	compare_oids(const void *a, const void *b);

/* ---- setting up ---- */

bool
klm_preloaded(void)
{
	return klm_shared != NULL;
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
									hash_estimate_size(MAX_DATABASES, sizeof(KlmDatabase))));
	RequestNamedLWLockTranche("kliv_mail", 1);
}

static Size
shared_size(void)
{
	return add_size(offsetof(KlmSharedState, slots), mul_size(klm_slot_count(), sizeof(KlmSlot)));
}

static void
start_shared_memory(void)
{
	HASHCTL		info = {0};
	bool		found;

	if (previous_startup_hook)
		previous_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	klm_shared = ShmemInitStruct("kliv_mail", shared_size(), &found);
	if (!found)
	{
		memset(klm_shared, 0, shared_size());
		klm_shared->lock = &GetNamedLWLockTranche("kliv_mail")->lock;
		pg_atomic_init_u32(&klm_shared->wanted, 0);
		pg_atomic_init_u32(&klm_shared->fetcher_wanted, 0);
		pg_atomic_init_u32(&klm_shared->settings_changes, 0);
		ConditionVariableInit(&klm_shared->slot_freed);
	}
	info.keysize = sizeof(Oid);
	info.entrysize = sizeof(KlmDatabase);
	databases = klm_shmem_hash("kliv_mail databases", MAX_DATABASES, &info,
							   HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	LWLockRelease(AddinShmemInitLock);
}

/* ---- the table of databases; all with the lock held ---- */

KlmDatabase *
klm_find_database(Oid oid)
{
	return hash_search(databases, &oid, HASH_FIND, NULL);
}

KlmDatabase *
klm_make_database(Oid oid)
{
	bool		found;
	KlmDatabase *database = hash_search(databases, &oid, HASH_ENTER_NULL, &found);

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
			klm_shared->overflowed = true;
			return NULL;
		}
	}
	if (!found)
	{
		memset((char *) database + sizeof(Oid), 0, sizeof(KlmDatabase) - sizeof(Oid));
		database->next_due = KLM_NEVER;
		database->left_due = KLM_NEVER;
		database->fetch_due = KLM_NEVER;
		ConditionVariableInit(&database->recorded);
	}
	return database;
}

/* Nothing would be lost but its counters, and nobody sleeps on it? */
static bool
may_be_removed(KlmDatabase *database)
{
	bool		watched;

	SpinLockAcquire(&database->recorded.mutex);
	watched = !proclist_is_empty(&database->recorded.wakeup);
	SpinLockRelease(&database->recorded.mutex);

	return !watched && database->blocked == 0 && database->slots == 0 &&
		!database->fetching && database->next_due == KLM_NEVER && database->fetch_due == KLM_NEVER;
}

void
klm_remove_if_unknown(KlmDatabase *database)
{
	if (!database->has_mail && may_be_removed(database))
		hash_search(databases, &database->oid, HASH_REMOVE, NULL);
}

PGPROC *
klm_wake_database(KlmDatabase *database, int64 due)
{
	PGPROC	   *first = NULL;

	database->wakes++;
	database->next_due = Min(database->next_due, due);

	for (int i = 0; database->slots > 0 && i < klm_max_senders; i++)
	{
		KlmSlot    *slot = &klm_shared->slots[i];

		if (slot->state != SLOT_ATTACHED || slot->database != database->oid)
			continue;
		if (database->slots == 1)
			return slot->proc;
		if (first == NULL)
			first = slot->proc;
		else
			klm_nudge(slot->proc);
	}
	return first ? first : klm_shared->launcher;
}

void
klm_nudge(PGPROC *proc)
{
	if (proc != NULL)
		SetLatch(&proc->procLatch);
}

void
klm_nudge_launcher(void)
{
	klm_nudge(klm_shared->launcher);
}

bool
klm_is_fetcher(const KlmSlot *slot)
{
	return slot - klm_shared->slots >= klm_max_senders;
}

void
klm_ask_to_leave(Oid oid, bool restart)
{
	for (int i = 0; i < klm_slot_count(); i++)
	{
		KlmSlot    *slot = &klm_shared->slots[i];

		if (slot->database != oid)
			continue;
		if (slot->state == SLOT_ATTACHED)
		{
			if (restart)
				slot->restart = true;
			else
				slot->must_leave = true;
			klm_nudge(slot->proc);
		}
	}
}

void
klm_restart_senders(Oid oid)
{
	HASH_SEQ_STATUS scan;
	KlmDatabase *database;

	hash_seq_init(&scan, databases);
	while ((database = hash_seq_search(&scan)) != NULL)
	{
		if (OidIsValid(oid) && database->oid != oid)
			continue;
		(void) klm_wake_database(database, klm_clock_ms());
		klm_ask_to_leave(database->oid, true);
	}
}

void
klm_process_status(KlmProcessStatus *status)
{
	KlmDatabase *database;

	memset(status, 0, sizeof(*status));
	status->next_due = DT_NOEND;
	if (klm_shared == NULL)
		return;

	status->preloaded = true;
	LWLockAcquire(klm_shared->lock, LW_SHARED);
	status->launcher_pid = klm_shared->launcher_pid;
	status->slots_exhausted = klm_shared->slots_exhausted;
	database = klm_find_database(MyDatabaseId);
	if (database != NULL)
	{
		status->next_due = klm_wall_time(database->next_due);
		strlcpy(status->last_error, database->last_error, sizeof(status->last_error));
	}
	for (int i = 0; i < klm_max_senders; i++)
	{
		if (klm_shared->slots[i].state == SLOT_ATTACHED &&
			klm_shared->slots[i].database == MyDatabaseId)
		{
			status->sender_pid = klm_shared->slots[i].pid;
			status->next_due = DT_NOEND;
		}
	}
	LWLockRelease(klm_shared->lock);
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
	KlmSlot    *slot;

	if (klm_shared == NULL || number >= klm_slot_count())
		return false;

	Assert(!OidIsValid(MyDatabaseId));
	on_shmem_exit(leave_slot_at_exit, (Datum) 0);

	slot = &klm_shared->slots[number];
	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	if (slot->state == SLOT_RESERVED && slot->generation == generation)
	{
		slot->state = SLOT_ATTACHED;
		slot->proc = MyProc;
		slot->pid = MyProcPid;
		slot->must_leave = false;
		slot->restart = false;
		slot->started = klm_clock_ms();
		*oid = slot->database;
		my_slot = slot;
		my_progress = slot->started;
	}
	LWLockRelease(klm_shared->lock);

	return my_slot != NULL;
}

static void
leave_slot_at_exit(int code, Datum arg)
{
	KlmDatabase *database;
	PGPROC	   *other = NULL;	/* another sender of the database takes up what was ours */

	if (my_slot == NULL)
		return;

	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	database = klm_find_database(my_slot->database);
	if (klm_is_fetcher(my_slot))
	{
		if (my_slot->state == SLOT_ATTACHED && database != NULL)
			database->fetch_due = klm_clock_ms() + FETCHER_THROTTLE_MS;
	}
	else if (my_slot->state == SLOT_ATTACHED && database != NULL)
	{
		/* It has not said good-bye, and what it knew is lost.  (Ours is not the latch to set.) */
		my_slot->state = SLOT_LEAVING;
		note_failure(database, my_slot);
		database->deaths++;
		other = klm_wake_database(database, klm_clock_ms());
	}
	klm_free_slot(my_slot);
	my_slot = NULL;
	if (database != NULL)
		klm_remove_if_unknown(database);
	LWLockRelease(klm_shared->lock);

	ConditionVariableBroadcast(&klm_shared->slot_freed);
	klm_nudge_launcher();
	klm_nudge(other);
}

/* With the lock held. */
void
klm_free_slot(KlmSlot *slot)
{
	KlmDatabase *database = klm_find_database(slot->database);

	if (database != NULL && klm_is_fetcher(slot))
		database->fetching = false;
	else if (database != NULL)
		database->slots--;
	slot->state = SLOT_FREE;
	slot->generation = (slot->generation + 1) & GENERATION_MASK;
	slot->database = InvalidOid;
	slot->owner = InvalidOid;
	slot->proc = NULL;
	slot->pid = 0;
	slot->must_leave = false;
	slot->restart = false;
	slot->extra = false;
}

/* With the lock held.  One that had worked for long begins the throttle anew. */
static void
note_failure(KlmDatabase *database, const KlmSlot *slot)
{
	int64		now = klm_clock_ms();

	if (slot->state != SLOT_RESERVED &&
		now >= slot->started + MAX_THROTTLE_S * 1000)
		database->failures = 0;
	database->not_before =
		now + Min(INT64CONST(1) << Min(database->failures, 30), MAX_THROTTLE_S) * 1000;
	database->failures++;
}

bool
klm_sender_must_leave(void)
{
	return my_slot != NULL && ((volatile KlmSlot *) my_slot)->must_leave;
}

void
klm_sender_progress(void)
{
	my_progress = klm_clock_ms();
}

bool
klm_sender_slot_wanted(long *check_ms)
{
	int64		now;
	int64		end;

	if (my_slot != NULL && ((volatile KlmSlot *) my_slot)->restart)
	{
		*check_ms = 0;
		return true;
	}
	if (my_slot == NULL || pg_atomic_read_u32(&klm_shared->wanted) == 0)
	{
		*check_ms = -1;
		return false;
	}

	if (my_slot->extra)
	{
		*check_ms = 0;
		return true;
	}
	now = klm_clock_ms();
	end = Min(my_progress + SLOT_IDLE_MS, my_slot->started + SLOT_MAX_MS);
	*check_ms = Max(0, end - now);
	return *check_ms == 0;
}

bool
klm_fetcher_slot_wanted(int had_ms)
{
	return my_slot != NULL &&
		(((volatile KlmSlot *) my_slot)->restart ||
		 (pg_atomic_read_u32(&klm_shared->fetcher_wanted) != 0 &&
		  klm_clock_ms() >= my_slot->started + had_ms));
}

void
klm_fetcher_leave(int64 next_due)
{
	KlmDatabase *database;

	Assert(my_slot != NULL);
	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	database = klm_find_database(my_slot->database);
	database->fetch_due = Min(database->fetch_due, next_due);
	my_slot->state = SLOT_LEAVING;
	LWLockRelease(klm_shared->lock);
}

void
klm_sender_knows_fetch(int64 due)
{
	KlmDatabase *database;

	Assert(my_slot != NULL);
	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	database = klm_find_database(my_slot->database);
	/* Whoever has changed the mailbox since it was read has made it due. */
	database->fetch_due = Min(database->fetch_due, due);
	LWLockRelease(klm_shared->lock);
	if (due != KLM_NEVER)
		klm_nudge_launcher();
}

bool
klm_sender_is_awaited(void)
{
	return pg_atomic_read_u32(&klm_shared->wanted) != 0;
}

void
klm_sender_state(KlmSenderState *state)
{
	KlmDatabase *database;

	Assert(my_slot != NULL);
	LWLockAcquire(klm_shared->lock, LW_SHARED);
	database = klm_find_database(my_slot->database);	/* our slot keeps the entry */
	state->wakes = database->wakes;
	state->deaths = database->deaths;
	state->senders = database->slots;
	LWLockRelease(klm_shared->lock);
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
	KlmDatabase *database;
	bool		wish;

	Assert(my_slot != NULL);
	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	database = klm_find_database(my_slot->database);
	wish = database->slots < most_senders();
	database->backlog = wish;
	for (int i = 0; database->slots > 1 && i < klm_max_senders; i++)
	{
		KlmSlot    *slot = &klm_shared->slots[i];

		if (slot != my_slot && slot->state == SLOT_ATTACHED && slot->database == database->oid)
			klm_nudge(slot->proc);
	}
	LWLockRelease(klm_shared->lock);
	if (wish)
		klm_nudge_launcher();
}

bool
klm_sender_leave(uint64 wakes_seen, int64 next_due, bool force)
{
	KlmDatabase *database;
	bool		missed;

	Assert(my_slot != NULL);
	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	database = klm_find_database(my_slot->database);
	missed = database->wakes != wakes_seen;
	if (!missed || force)
	{
		/* Who left before may know of something earlier than the last one does. */
		database->left_due = Min(database->left_due, next_due);
		database->next_due = missed ? klm_clock_ms() : database->left_due;
		database->failures = 0;
		database->not_before = 0;
		my_slot->state = SLOT_LEAVING;
	}
	LWLockRelease(klm_shared->lock);

	/* The launcher hears of it when the process has ended. */
	return !missed || force;
}

void
klm_sender_set_error(const char *utf8)
{
	KlmDatabase *database;
	int			length = pg_encoding_mbcliplen(PG_UTF8, utf8, strlen(utf8),
											   sizeof(database->last_error) - 1);

	Assert(my_slot != NULL);
	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	database = klm_find_database(my_slot->database);
	memcpy(database->last_error, utf8, length);
	database->last_error[length] = '\0';
	LWLockRelease(klm_shared->lock);
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
	KlmDatabase *database;

	Assert(my_slot != NULL);
	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	database = klm_find_database(my_slot->database);
	database->has_mail = false;
	database->fetch_due = KLM_NEVER;
	LWLockRelease(klm_shared->lock);

	if (own_transaction)
		StartTransactionCommand();
	if (klm_database_labelled(MyDatabaseId))
	{
		if (OidIsValid(get_extension_oid(KLM_SCHEMA, true)))
		{
			LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
			database->has_mail = true;
			LWLockRelease(klm_shared->lock);
		}
		else
			klm_unlabel_database();
	}
	if (own_transaction)
		CommitTransactionCommand();
}

/* ---- the launcher ---- */

void
klm_launcher_attach(void)
{
	HASHCTL		info = {0};

	info.keysize = sizeof(Oid);
	info.entrysize = sizeof(Turn);
	turns = hash_create("kliv_mail turns", 64, &info, HASH_ELEM | HASH_BLOBS);

	before_shmem_exit(detach_launcher, (Datum) 0);

	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	klm_shared->launcher = MyProc;
	klm_shared->launcher_pid = MyProcPid;
	klm_shared->slots_exhausted = false;
	for (int i = 0; i < klm_slot_count(); i++)
	{
		KlmSlot    *slot = &klm_shared->slots[i];

		if (slot->state == SLOT_RESERVED)
		{
			if (klm_is_fetcher(slot))
				klm_find_database(slot->database)->fetch_due = klm_clock_ms();
			else
				klm_find_database(slot->database)->next_due = klm_clock_ms();
			klm_free_slot(slot);
		}
	}
	LWLockRelease(klm_shared->lock);
}

static void
detach_launcher(int code, Datum arg)
{
	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	klm_shared->launcher = NULL;
	klm_shared->launcher_pid = 0;
	LWLockRelease(klm_shared->lock);
}

/*
 * Owners of databases take turns, whose databases first come are first served;
 * a database is made easily, a role is not.  Where somebody has to wait, all
 * senders are told once, so that they look at the time that they have had.
 */
bool
klm_launcher_reserve(KlmReservation *reservation, KlmOutlook *outlook)
{
	int64		now = klm_clock_ms();
	HASH_SEQ_STATUS scan;
	KlmDatabase *database;
	KlmDatabase *first = NULL;
	KlmDatabase *helped = NULL;
	KlmSlot    *slot = NULL;
	int			waiting = 0;
	bool		unknown_owner = false;

	outlook->next_start = KLM_NEVER;
	reservation->fetcher = false;
	reservation->extra = false;

	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	hash_seq_init(&scan, databases);
	while ((database = hash_seq_search(&scan)) != NULL)
	{
		int64		start = Max(database->next_due, database->not_before);

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
		if (first == NULL || goes_before(database, first, false))
			first = database;
		if (!OidIsValid(database->owner))
			unknown_owner = true;
		waiting++;
	}
	for (int i = 0; i < klm_max_senders && slot == NULL; i++)
	{
		if (klm_shared->slots[i].state == SLOT_FREE)
			slot = &klm_shared->slots[i];
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
		slot->owner = first->owner;
		slot->extra = reservation->extra;
		if (first->slots++ == 0)
			first->left_due = KLM_NEVER;
		first->backlog = false;
		first->waits_since = 0;
		first->next_due = KLM_NEVER;
		reservation->slot = slot - klm_shared->slots;
		reservation->generation = slot->generation;
		reservation->database = first->oid;
		reservation->failures = first->failures;
		reservation->unknown_owner = unknown_owner;
		reservation->owner = first->owner;
		LWLockRelease(klm_shared->lock);
		return true;
	}

	outlook->room = slot != NULL;
	want_slots(waiting > 0);
	LWLockRelease(klm_shared->lock);
	return false;
}

bool
klm_launcher_reserve_fetcher(KlmReservation *reservation, int64 *next_start)
{
	int64		now = klm_clock_ms();
	HASH_SEQ_STATUS scan;
	KlmDatabase *database;
	KlmDatabase *first = NULL;
	KlmSlot    *slot = NULL;

	*next_start = KLM_NEVER;
	memset(reservation, 0, sizeof(*reservation));
	reservation->fetcher = true;

	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	hash_seq_init(&scan, databases);
	while ((database = hash_seq_search(&scan)) != NULL)
	{
		if (database->blocked > 0 || database->fetching)
			continue;
		if (database->fetch_due > now)
			*next_start = Min(*next_start, database->fetch_due);
		else if (first == NULL || goes_before(database, first, true))
			first = database;
	}
	for (int i = klm_max_senders; i < klm_slot_count() && slot == NULL; i++)
	{
		if (klm_shared->slots[i].state == SLOT_FREE)
			slot = &klm_shared->slots[i];
	}
	if (first != NULL && slot != NULL)
	{
		slot->state = SLOT_RESERVED;
		slot->database = first->oid;
		slot->owner = first->owner;
		first->fetching = true;
		first->fetch_due = KLM_NEVER;
		reservation->slot = slot - klm_shared->slots;
		reservation->generation = slot->generation;
		reservation->database = first->oid;
		reservation->owner = first->owner;
	}
	pg_atomic_write_u32(&klm_shared->fetcher_wanted, first != NULL && slot == NULL);
	LWLockRelease(klm_shared->lock);
	return first != NULL && slot != NULL;
}

/* With the lock held.  Of two that wait (for a fetcher), which one's turn is it? */
static bool
goes_before(const KlmDatabase *one, const KlmDatabase *other, bool fetcher)
{
	if (one->owner != other->owner)
	{
		int			slots = slots_of(one->owner, fetcher);
		int			other_slots = slots_of(other->owner, fetcher);
		int64		turn = last_turn(one->owner, fetcher);
		int64		other_turn = last_turn(other->owner, fetcher);

		if (slots != other_slots)
			return slots < other_slots;
		if (turn != other_turn)
			return turn < other_turn;
	}
	return fetcher ? one->fetch_due < other->fetch_due : one->waits_since < other->waits_since;
}

static int
slots_of(Oid owner, bool fetcher)
{
	int			count = 0;
	int			end = fetcher ? klm_slot_count() : klm_max_senders;

	for (int i = fetcher ? klm_max_senders : 0; i < end; i++)
	{
		if (klm_shared->slots[i].state != SLOT_FREE && klm_shared->slots[i].owner == owner)
			count++;
	}
	return count;
}

static int64
last_turn(Oid owner, bool fetcher)
{
	Turn	   *turn = hash_search(turns, &owner, HASH_FIND, NULL);

	return turn == NULL ? PG_INT64_MIN : fetcher ? turn->fetched_at : turn->at;
}

static Turn *
turn_of(Oid owner)
{
	bool		found;
	Turn	   *turn = hash_search(turns, &owner, HASH_ENTER, &found);

	if (!found)
		turn->at = turn->fetched_at = PG_INT64_MIN;
	return turn;
}

/* With the lock held. */
static void
want_slots(bool wanted)
{
	if (pg_atomic_exchange_u32(&klm_shared->wanted, wanted) == 0 && wanted)
	{
		for (int i = 0; i < klm_max_senders; i++)
		{
			if (klm_shared->slots[i].state == SLOT_ATTACHED)
				klm_nudge(klm_shared->slots[i].proc);
		}
	}
}

void
klm_launcher_started(const KlmReservation *reservation)
{
	Turn	   *turn = turn_of(reservation->owner);

	if (reservation->fetcher)
		turn->fetched_at = klm_clock_ms();
	else
		turn->at = klm_clock_ms();
}

int
klm_launcher_slots(void)
{
	return klm_slot_count();
}

Datum
klm_launcher_argument(const KlmReservation *reservation)
{
	return UInt32GetDatum(reservation->generation << SLOT_BITS | reservation->slot);
}

bool
klm_launcher_awaited(const KlmReservation *reservation)
{
	const KlmSlot *slot = &klm_shared->slots[reservation->slot];
	bool		awaited;

	LWLockAcquire(klm_shared->lock, LW_SHARED);
	awaited = slot->state == SLOT_RESERVED && slot->generation == reservation->generation;
	LWLockRelease(klm_shared->lock);
	return awaited;
}

void
klm_launcher_cancel(const KlmReservation *reservation, bool failed)
{
	KlmSlot    *slot = &klm_shared->slots[reservation->slot];
	KlmDatabase *database;

	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	if (slot->state == SLOT_RESERVED && slot->generation == reservation->generation)
	{
		database = klm_find_database(reservation->database);
		if (reservation->fetcher)
			database->fetch_due = klm_clock_ms() + FETCHER_THROTTLE_MS;
		else
		{
			if (failed)
				note_failure(database, slot);
			database->next_due = Min(database->next_due, klm_clock_ms());
		}
		klm_free_slot(slot);
	}
	LWLockRelease(klm_shared->lock);
	ConditionVariableBroadcast(&klm_shared->slot_freed);
}

void
klm_launcher_set_exhausted(bool exhausted)
{
	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	klm_shared->slots_exhausted = exhausted;
	if (exhausted)
		want_slots(true);		/* a sender that leaves frees a slot, too */
	LWLockRelease(klm_shared->lock);
}

bool
klm_launcher_mark_due(const Oid *oids, int count)
{
	int64		now = klm_clock_ms();
	bool		all = true;

	for (int i = 0; i < count; i++)
	{
		KlmDatabase *database;
		PGPROC	   *proc = NULL;

		LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
		database = klm_make_database(oids[i]);
		if (database != NULL)
		{
			database->has_mail = true;
			proc = klm_wake_database(database, now);
		}
		else
			all = false;
		LWLockRelease(klm_shared->lock);
		if (proc != klm_shared->launcher)
			klm_nudge(proc);
	}
	return all;
}

bool
klm_launcher_knows(Oid oid)
{
	bool		known;

	LWLockAcquire(klm_shared->lock, LW_SHARED);
	known = klm_find_database(oid) != NULL;
	LWLockRelease(klm_shared->lock);
	return known;
}

void
klm_launcher_prune(const KlmExisting *existing, int count)
{
	KlmExisting *sorted = palloc(Max(count, 1) * sizeof(KlmExisting));
	HASH_SEQ_STATUS scan;
	KlmDatabase *database;

	memcpy(sorted, existing, count * sizeof(KlmExisting));
	qsort(sorted, count, sizeof(KlmExisting), compare_oids);

	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	hash_seq_init(&scan, databases);
	while ((database = hash_seq_search(&scan)) != NULL)
	{
		KlmExisting *found = bsearch(&database->oid, sorted, count, sizeof(KlmExisting),
									 compare_oids);

		if (found != NULL)
		{
			database->owner = found->owner;
			continue;
		}
		database->has_mail = false;
		database->next_due = database->fetch_due = KLM_NEVER;
		klm_remove_if_unknown(database);
	}
	LWLockRelease(klm_shared->lock);
	pfree(sorted);
}

/* Of what begins with an OID. */
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

	LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
	overflowed = klm_shared->overflowed;
	klm_shared->overflowed = false;
	LWLockRelease(klm_shared->lock);
	return overflowed;
}
