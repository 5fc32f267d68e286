/*-------------------------------------------------------------------------
 *
 * wake.h
 *		What a backend asks of launcher and senders.
 *
 * Without the preload all of it does nothing, so that mail can be queued before
 * the administrator has changed shared_preload_libraries.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_WAKE_H
#define KLM_WAKE_H

#include "datatype/timestamp.h"

#include "base/kliv_mail.h"

/*
 * This transaction queued mail for the database (or changed what may go): at
 * its commit, or at COMMIT PREPARED, a sender is woken or started.  due: when
 * the earliest is due in real time; 0: now.
 */
extern void klm_wake_at_commit(TimestampTz due);

/* The bounce mailbox was changed: at commit a fetcher is due. */
extern void klm_fetch_at_commit(void);

/*
 * What somebody waits for may have changed without a sender (it was cancelled):
 * at commit, those in klm_wait_for_record() look again.
 */
extern void klm_changed_at_commit(void);

/*
 * At commit the senders of the database, or (InvalidOid) of all, end cleanly and
 * are started anew, since what ALTER DATABASE ... SET changes is read at the
 * start of a session; other sessions look at it again (hooks/fresh_settings.c).
 */
extern void klm_restart_at_commit(Oid database);

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
extern uint64 klm_records(void);
extern bool klm_wait_for_record(uint64 *seen, long timeout_ms);

/* At commit: a sender has a look whether this database has mail (a copy), or none any more. */
extern void klm_look_at_commit(Oid database);

/* Now: DROP DATABASE, which no subtransaction can undo, has dropped it. */
extern void klm_forget_database(Oid database);

/* Now: a prepared transaction was committed; wakes nobody where no mail ever was. */
extern void klm_wake_after_prepared(void);

/* As a sender: results were committed: wake those in klm_wait_for_record(). */
extern PGDLLEXPORT void klm_sender_recorded(void);

#endif							/* KLM_WAKE_H */
