/*-------------------------------------------------------------------------
 *
 * slots.h
 *		What launcher, senders and backends share: databases that have mail,
 *		who serves them, when they are next due.
 *
 * Layer: edge (shared memory, latches).  Everything here works without the
 * preload too, doing nothing, so that mail can be queued before the
 * administrator has changed shared_preload_libraries.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_SHMEM_H
#define KLM_SHMEM_H

#include "datatype/timestamp.h"
#include "storage/latch.h"

#include "base/kliv_mail.h"

/* Is the library preloaded, so that a launcher exists? */
extern PGDLLEXPORT bool klm_preloaded(void);

/* From _PG_init while preloading: hooks that size and make the shared state. */
extern void klm_shmem_init(void);

/* ---- backends ---- */

/*
 * This transaction queued mail for the database (or changed what may go): at
 * its commit, or at COMMIT PREPARED, a sender is woken or started.  due: when
 * the earliest is due in real time; 0: now.
 */
extern PGDLLEXPORT void klm_wake_at_commit(TimestampTz due);

/*
 * What somebody waits for may have changed without a sender (it was cancelled):
 * at commit, those in klm_wait_for_record() look again.
 */
extern PGDLLEXPORT void klm_changed_at_commit(void);

/*
 * At commit the database's senders end cleanly and are started anew, since
 * what ALTER DATABASE ... SET changes is read at the start of a session.
 */
extern PGDLLEXPORT void klm_restart_at_commit(Oid database);

/*
 * Block the database: no sender is started, and those that run are asked to
 * leave.  klm_block_database() returns once none is attached (interruptible, no
 * time limit but the caller's own); each needs its klm_unblock_database(), also
 * on error.
 */
extern void klm_block_database(Oid database);
extern void klm_unblock_database(Oid database);

/*
 * Sleep until a sender has recorded something since *seen, or another commit
 * changed what can happen (klm_changed_at_commit()), or timeout_ms is
 * over; interruptible.  Start with *seen = klm_records(); false at the timeout
 * or when not preloaded.
 */
extern PGDLLEXPORT uint64 klm_records(void);
extern PGDLLEXPORT bool klm_wait_for_record(uint64 *seen, long timeout_ms);

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

extern PGDLLEXPORT void klm_process_status(KlmProcessStatus *status);

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
 * Leave, with the real time at which a sender is next needed (DT_NOEND:
 * never).  false if a wake-up came after wakes_seen and force is not set: stay
 * and claim again.  With force the time becomes "now" instead.
 */
extern PGDLLEXPORT bool klm_sender_leave(uint64 wakes_seen, TimestampTz next_due, bool force);

/* Results were committed: wake those in klm_wait_for_record(). */
extern PGDLLEXPORT void klm_sender_recorded(void);

/* Remember an error for the view status ("" clears it). */
extern PGDLLEXPORT void klm_sender_set_error(const char *utf8);

/* The database lost (or never had) the extension: forget it and its label. */
extern PGDLLEXPORT void klm_sender_forget_database(void);

/*
 * Put the label on the database by which the launcher finds it, if it is not
 * there; in a transaction.
 */
extern PGDLLEXPORT void klm_label_database(void);

/*
 * The label names the keys that are needed to open what the database stores,
 * where the launcher and other databases can read them: "mail keys=<id>,<id>".
 * ids: separated by commas, "" for none; in a transaction.
 */
extern PGDLLEXPORT void klm_label_keys(const char *ids);

/* What stands behind "keys=" in a label, or NULL. */
extern const char *klm_keys_of_label(const char *label);

/* From _PG_init: the provider of that label; needed without the preload too. */
extern void klm_label_init(void);

/* ---- utility.c ---- */

/* In a transaction: the extension is gone; remove the label. */
extern void klm_unlabel_database(void);

/* In a transaction: does the database bear the label? */
extern bool klm_database_labelled(Oid database);

/* At commit: nothing of this database is to be sent any more. */
extern void klm_forget_at_commit(Oid database);

/* At commit: a sender has a look whether this (new) database has mail. */
extern void klm_look_at_commit(Oid database);

/* Now: a prepared transaction was committed; does nothing where no mail ever was. */
extern void klm_wake_after_prepared(void);

/* ---- launcher.c ---- */

/* A slot taken for a sender that is to be started. */
typedef struct KlmReservation
{
	int			slot;
	uint32		generation;
	Oid			database;
	bool		extra;			/* it has a sender, whose backlog this one helps with */
	int			failures;		/* of senders there, in a row */
} KlmReservation;

/* What there is to do once nothing more can be started now. */
typedef struct KlmOutlook
{
	TimestampTz next_start;		/* real time; DT_NOEND: none known */
	bool		room;			/* a slot is free and nobody waits */
} KlmOutlook;

/* This process is the launcher; what an earlier one reserved is free again. */
extern void klm_launcher_attach(void);

/*
 * Take a slot for the database that has waited longest, and where none waits
 * for one that wants another sender; false: none due, or no slot.
 */
extern bool klm_launcher_reserve(KlmReservation *reservation, KlmOutlook *outlook);

/* The worker's argument from which klm_sender_attach() knows its slot. */
extern Datum klm_launcher_argument(const KlmReservation *reservation);

/* Has the sender not come (yet)? */
extern bool klm_launcher_awaited(const KlmReservation *reservation);

/*
 * Nothing came of it.  failed: the sender died before it attached, and the
 * throttle applies; otherwise it was never started.
 */
extern void klm_launcher_cancel(const KlmReservation *reservation, bool failed);

/* For the view status: the last sender found no worker slot. */
extern void klm_launcher_set_exhausted(bool exhausted);

/* These databases are due now; false if the table has no room for them all. */
extern bool klm_launcher_mark_due(const Oid *databases, int count);

/* Has the table an entry for the database? */
extern bool klm_launcher_knows(Oid database);

/* Free the entries of databases that are not among the existing ones. */
extern void klm_launcher_prune(const Oid *existing, int count);

/* Did a database find no room in the table since the last call? */
extern bool klm_launcher_overflowed(void);

#endif							/* KLM_SHMEM_H */
