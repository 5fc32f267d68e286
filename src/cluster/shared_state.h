/*-------------------------------------------------------------------------
 *
 * shared_state.h
 *		What slots.c, wake.c and settings.c keep in shared memory; no other file includes it.
 *
 * One LWLock guards all of it; nobody waits, allocates or raises while holding
 * it, and what a commit does under it is one hash look-up.  slots.c owns the
 * state and has the functions below, which are called with the lock held.
 * All times are of klm_clock_ms().
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_SHARED_STATE_H
#define KLM_SHARED_STATE_H

#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "storage/proc.h"

#include "base/kliv_mail.h"
#include "cluster/settings.h"

typedef struct KlmDatabase
{
	Oid			oid;			/* hash key */
	Oid			owner;			/* as the launcher has read it; InvalidOid: not yet */
	bool		has_mail;		/* as far as we know, the extension is there */
	int			blocked;		/* statements that keep senders out */
	int			slots;			/* reserved or attached for it */
	bool		backlog;		/* its senders wish for another one */
	int64		left_due;		/* the earliest next_due of senders that left while others stay */
	uint32		deaths;			/* senders that did not leave cleanly */
	uint64		wakes;			/* commits that asked for a sender */
	int64		next_due;		/* KLM_NEVER: not known to be due ever */
	int64		waits_since;	/* due, but without a slot; 0: does not wait */
	int			failures;		/* senders in a row that did not leave cleanly */
	int64		not_before;		/* the throttle */
	bool		fetching;		/* a fetcher's slot is reserved or attached for it */
	int64		fetch_due;		/* a fetcher is; KLM_NEVER: not known to be due ever */
	uint64		records;		/* commits of a sender's results, of cancel() and its kin */
	ConditionVariable recorded;
	char		last_error[256];	/* UTF-8 */
} KlmDatabase;

typedef enum KlmSlotState
{
	SLOT_FREE,
	SLOT_RESERVED,
	SLOT_ATTACHED,
	SLOT_LEAVING				/* has said good-bye, its process still ends */
} KlmSlotState;

/* Those of senders, klm_max_senders, and behind them those of fetchers. */
#define KLM_MAX_FETCHERS 2
#define klm_slot_count() (klm_max_senders + KLM_MAX_FETCHERS)

typedef struct KlmSlot
{
	KlmSlotState	state;
	uint32		generation;
	Oid			database;
	Oid			owner;			/* of the database, when it was reserved */
	PGPROC	   *proc;			/* from attached on */
	int			pid;
	bool		must_leave;		/* a statement waits for it */
	bool		restart;		/* with other settings, when what is under way is done */
	bool		extra;			/* its database had a sender already */
	int64		started;
} KlmSlot;

typedef struct KlmSharedState
{
	LWLock	   *lock;
	PGPROC	   *launcher;		/* NULL: not running */
	int			launcher_pid;
	bool		slots_exhausted;
	bool		overflowed;		/* a database found no room in the table */
	pg_atomic_uint32 wanted;	/* databases wait for a sender's slot */
	pg_atomic_uint32 fetcher_wanted;	/* ... a fetcher's */
	ConditionVariable slot_freed;
	pg_atomic_uint32 settings_changes;
	bool		settings_prepared;	/* a prepared transaction may change some */
	bool		settings_published;
	KlmPublishedSettings settings;	/* the launcher's */
	KlmSlot		slots[FLEXIBLE_ARRAY_MEMBER];	/* klm_slot_count() */
} KlmSharedState;

/* NULL: not preloaded. */
extern KlmSharedState *klm_shared;

extern KlmDatabase *klm_find_database(Oid oid);

/*
 * Find or make; NULL when the table is full of databases that are due, served
 * or watched.  Then the launcher, which knows the labels, comes back to it.
 */
extern KlmDatabase *klm_make_database(Oid oid);

/* An entry that only a block or a look has made goes with it. */
extern void klm_remove_if_unknown(KlmDatabase *database);

/*
 * The database is due.  Returns whose latch to set once the lock is released:
 * its sender's, who will see the wake-up, or the launcher's.  Further senders'
 * latches are set here.
 */
extern PGPROC *klm_wake_database(KlmDatabase *database, int64 due);

/* A fetcher's slot, not a sender's? */
extern bool klm_is_fetcher(const KlmSlot *slot);

/* Its senders and its fetcher end at once, or (restart) when what is under way is done. */
extern void klm_ask_to_leave(Oid oid, bool restart);

/* The senders of a database, or (InvalidOid) of all, leave so and come back. */
extern void klm_restart_senders(Oid oid);

extern void klm_free_slot(KlmSlot *slot);

/* Without the lock, too.  Harmless where the process has ended and another has its PGPROC now. */
extern void klm_nudge(PGPROC *proc);
extern void klm_nudge_launcher(void);

#endif							/* KLM_SHARED_STATE_H */
