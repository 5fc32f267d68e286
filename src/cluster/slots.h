/*-------------------------------------------------------------------------
 *
 * slots.h
 *		What launcher and senders share: databases that have mail, who serves
 *		them, when they are next due.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_SLOTS_H
#define KLM_SLOTS_H

#include "datatype/timestamp.h"
#include "storage/latch.h"

#include "base/kliv_mail.h"

/* Is the library preloaded, so that a launcher exists? */
extern bool klm_preloaded(void);

/* From _PG_init while preloading: hooks that size and make the shared state. */
extern void klm_shmem_init(void);

/* For the view status. */
typedef struct KlmProcessStatus
{
	bool		preloaded;
	int			launcher_pid;	/* 0: not running */
	int			sender_pid;		/* of this database; 0: none */
	TimestampTz next_due;		/* real time; DT_NOEND: nothing known */
	bool		slots_exhausted;	/* the last sender could not be started: max_worker_processes */
	char		last_error[256];	/* the last error of a sender of this database, UTF-8 */
} KlmProcessStatus;

extern void klm_process_status(KlmProcessStatus *status);

/* ---- senders ---- */

/*
 * Take the slot that the launcher reserved (its number is the worker's
 * argument); registers the exit callback that gives it back and, after an
 * error, lets the launcher start another no sooner than its throttle allows.
 * false: the slot is no longer ours (blocked meanwhile): exit.
 */
extern PGDLLEXPORT bool klm_sender_attach(Datum worker_argument, Oid *database);

/* Does a statement wait for us to leave (block)?  The request also sets our latch. */
extern PGDLLEXPORT bool klm_sender_must_leave(void);

/* Something moved: a reply was read, a result recorded. */
extern PGDLLEXPORT void klm_sender_progress(void);

/*
 * Do other databases want our slot, and has it been ours long enough (5 s
 * without progress, 30 s in all)?  Otherwise *check_ms says when to ask again
 * (-1: nobody waits; the latch is set when somebody begins to).  Also after
 * klm_restart_at_commit(), which is in no hurry either.
 */
extern PGDLLEXPORT bool klm_sender_slot_wanted(long *check_ms);

/* Does another database wait for a slot? */
extern PGDLLEXPORT bool klm_sender_is_awaited(void);

/* What a sender has to know of its database. */
typedef struct KlmSenderState
{
	uint64		wakes;			/* wake-ups so far */
	uint32		deaths;			/* senders so far that did not leave cleanly */
	int			senders;		/* that work on it, or come or go; ours too */
} KlmSenderState;

extern PGDLLEXPORT void klm_sender_state(KlmSenderState *state);

/*
 * Mail waits that our connections have no room for: another sender is started,
 * or woken, where senders_per_database and connections_per_account let one be.
 */
extern PGDLLEXPORT void klm_sender_backlog(void);

/*
 * Leave, with the time at which a sender is next needed (KLM_NEVER: never).
 * false if a wake-up came after wakes_seen and force is not set: stay and claim
 * again.  With force the time becomes "now" instead.
 */
extern PGDLLEXPORT bool klm_sender_leave(uint64 wakes_seen, int64 next_due, bool force);

/* Remember an error for the view status ("" clears it). */
extern PGDLLEXPORT void klm_sender_set_error(const char *utf8);

/* The database lost (or never had) the extension: forget it and its label. */
extern PGDLLEXPORT void klm_sender_forget_database(void);

/* This database's bounce mailbox is due then (KLM_NEVER: nobody knows). */
extern PGDLLEXPORT void klm_sender_knows_fetch(int64 due);

/* ---- fetchers: klm_sender_attach() and klm_sender_must_leave() are theirs, too ---- */

/* Do other databases want our slot, and has it been ours so long? */
extern PGDLLEXPORT bool klm_fetcher_slot_wanted(int had_ms);

/* Leave, with the time at which a fetcher is next needed here; a wake-up makes it earlier. */
extern PGDLLEXPORT void klm_fetcher_leave(int64 next_due);

/* ---- the launcher ---- */

/* A slot taken for a sender that is to be started. */
typedef struct KlmReservation
{
	int			slot;
	uint32		generation;
	Oid			database;
	Oid			owner;			/* of the database; InvalidOid: not known */
	bool		fetcher;		/* and not for a sender */
	bool		extra;			/* it has a sender, whose backlog this one helps with */
	int			failures;		/* of senders there, in a row */
	bool		unknown_owner;	/* an owner is not known yet, of this or of what waits: no turn */
} KlmReservation;

/* What there is to do once nothing more can be started now. */
typedef struct KlmOutlook
{
	int64		next_start;		/* of klm_clock_ms(); KLM_NEVER: none known */
	bool		room;			/* a slot is free and nobody waits */
} KlmOutlook;

/* This process is the launcher; what an earlier one reserved is free again. */
extern void klm_launcher_attach(void);

/*
 * Take a slot for the database whose turn it is, and where none waits for one
 * that wants another sender; false: none due, or no slot.
 */
extern bool klm_launcher_reserve(KlmReservation *reservation, KlmOutlook *outlook);

/*
 * The same for a fetcher; false: none due, or no slot.  *next_start: when there
 * is something to do next (KLM_NEVER: not known).
 */
extern bool klm_launcher_reserve_fetcher(KlmReservation *reservation, int64 *next_start);

/* The worker was asked for: the owner has had a turn. */
extern void klm_launcher_started(const KlmReservation *reservation);

/* The worker's argument from which klm_sender_attach() knows its slot. */
extern Datum klm_launcher_argument(const KlmReservation *reservation);

/* Has the sender not come (yet)? */
extern bool klm_launcher_awaited(const KlmReservation *reservation);

/* Senders' slots, and fetchers'. */
extern int	klm_launcher_slots(void);

/*
 * Nothing came of it.  failed: the worker died before it attached, and the
 * throttle applies; otherwise it was never started.
 */
extern void klm_launcher_cancel(const KlmReservation *reservation, bool failed);

/* For the view status: the last sender found no worker slot. */
extern void klm_launcher_set_exhausted(bool exhausted);

/* These databases are due now; false if the table has no room for them all. */
extern bool klm_launcher_mark_due(const Oid *databases, int count);

/* Has the table an entry for the database? */
extern bool klm_launcher_knows(Oid database);

/* A database that may be connected to. */
typedef struct KlmExisting
{
	Oid			database;
	Oid			owner;
} KlmExisting;

/* Learn the owners of databases; free the entries of those that are not among the existing ones. */
extern void klm_launcher_prune(const KlmExisting *existing, int count);

/* Did a database find no room in the table since the last call? */
extern bool klm_launcher_overflowed(void);

#endif							/* KLM_SLOTS_H */
