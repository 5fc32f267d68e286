/*-------------------------------------------------------------------------
 *
 * outbox.h
 *		The outbox as the sender sees it: claim, record, what is due next.
 *
 * Layer: edge (SPI).  In kliv_mail_net.  Everything here runs between
 * klm_outbox_begin() and klm_outbox_commit(): one transaction, as the
 * extension's owner, in a security-restricted operation.  The logic is that of
 * sql/install/4*.sql; text comes back in UTF-8, palloc'd in the context
 * that klm_outbox_begin() was given.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_OUTBOX_H
#define KLM_OUTBOX_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

#include "base/kliv_mail.h"

/* 0 system, 1 transactional, 2 marketing */
#define KLM_PRIORITIES 3

/* Where in a line a delivery stands: first those that were due first. */
typedef struct KlmPlace
{
	TimestampTz due;
	int64		id;
} KlmPlace;

static inline bool
klm_place_before(KlmPlace a, KlmPlace b)
{
	return a.due < b.due || (a.due == b.due && a.id < b.id);
}

/* A part of a line: from a place up to a time, and all that is due then. */
typedef struct KlmStretch
{
	KlmPlace	from;
	TimestampTz until;
} KlmStretch;

typedef struct KlmClaim
{
	int64		id;
	int64		message_id;
	char	   *recipient;
	char	   *account;
	char	   *settings;		/* changes with any setting of the account */
	char	   *suppressed;		/* why the address gets no mail, or NULL */
	char	   *sender;			/* failover: the From of the account that is in trouble */
	char	   *sender_name;
	/* Filled by the sender: */
	char	   *unsubscribe_link;
	char	   *return_path;	/* signed, or NULL */
	const char *problem;		/* why the link cannot be made, or NULL */
	bool		key_trouble;
	TimestampTz expires_at;		/* 0: never */
	int			priority;
	KlmPlace	place;
	bool		granted;		/* it may begin once the claim is committed */
} KlmClaim;

typedef struct KlmAccountState
{
	char	   *name;
	char	   *settings;		/* as KlmClaim's */
	bool		stopped;		/* paused, a limit of 0, out of use: what has not left goes back */
	int			connections;	/* no more at once, as its server showed; 0: nothing is known */
} KlmAccountState;

typedef struct KlmStoredMessage
{
	int64		id;
	char	   *header_id;		/* Message-ID without <> */
	char	   *from_address;	/* as wished, or NULL; so the next two */
	char	   *from_name;
	char	   *reply_to;
	bool		smtputf8;
	bool		unsubscribe;	/* add the recipient's link */
	char	   *topic;			/* of marketing mail, or NULL */
	char	   *entity;
	Size		entity_length;
	int			users;			/* the sender's deliveries that need the entity */
} KlmStoredMessage;

/*
 * A delivery's outcome: a decision of smtp/verdict, or verdict "returned",
 * "postponed" or "suppressed".  id 0: the account itself is in trouble.
 */
typedef struct KlmOutcome
{
	int64		id;
	const char *account;
	const char *verdict;
	const char *scope;
	const char *bounce_type;
	int			pause_s;
	const char *stage;
	int			code;
	const char *enhanced;
	const char *reply;
	const char *reason;
	const char *hint;
	const char *server_id;
	const char *identity;
	const char *fingerprint;	/* of the settings that it was met with; NULL: none were */
	bool		simulated;		/* no server was asked */
} KlmOutcome;

/* What a record made of a delivery. */
typedef struct KlmChange
{
	int64		message_id;
	char	   *status;
} KlmChange;

/* The session's settings, once it is connected: what senders and fetchers rely on. */
extern void klm_outbox_pin_session(void);

/*
 * Before the first klm_outbox_begin().  told: must this process go?  A statement that
 * lasts on after that is cancelled, within some seconds.  It is asked in a signal handler.
 */
extern void klm_outbox_may_be_told_to_go(bool (*told) (void));

/*
 * false: the extension is not here (any more), and nothing was begun.  The
 * owner is looked up each time, since he may have changed.
 */
extern bool klm_outbox_begin(MemoryContext results);

/* Both leave the context current that was so at klm_outbox_begin(). */
extern void klm_outbox_commit(void);

/* After an error in between: abort, nothing stays open. */
extern void klm_outbox_abort(void);

/*
 * The log says so once the transaction is committed: an account is held, or goes
 * on.  In the database's encoding; elsewhere than in a sender's transaction nothing
 * is said.
 */
extern void klm_outbox_note_hold(bool held, const char *message, const char *hint);

/* Handler of SIGINT: only a lock's time that is over cancels anything. */
extern void klm_outbox_cancel(SIGNAL_ARGS);

/* Handler of SIGTERM: a commit waits for no standby any more. */
extern void klm_outbox_shutdown(SIGNAL_ARGS);

/* The extension's version, as klm_outbox_begin() found it; "" where it is not installed. */
extern const char *klm_outbox_version(void);

/* A new epoch under its session lock. */
extern int64 klm_outbox_open_epoch(void);

/* What dead epochs had begun becomes in doubt, the rest goes back; how many are in doubt. */
extern int64 klm_outbox_recover(void);

/*
 * List of KlmClaim.  bytes < 0: a single row.  busy and held: the deliveries and
 * octets of each of the accounts that are in hand; rooms: how many of each are to
 * be, room: of any other account; stretches: what to look at of the line of each
 * priority of each of them.  The claimed ids are in *ids even where an error ends the call.
 */
extern List *klm_outbox_claim(int64 epoch, int room, int64 bytes, char **accounts, int *busy,
							  int64 *held, int *rooms, const KlmStretch *stretches, int count,
							  int64 **ids, int *id_count);

/* List of KlmAccountState. */
extern List *klm_outbox_accounts(void);

/* List of KlmStoredMessage, in the context; with SPI connected, without klm_outbox_begin() too. */
extern List *klm_outbox_messages(const int64 *ids, int count, MemoryContext context);

/* Completes a Message-ID that has no domain, for good; the whole one. */
extern char *klm_outbox_name_message(int64 id, const char *domain);

/* List of KlmChange, where kliv_mail.notify wants them. */
extern List *klm_outbox_record(int64 epoch, const KlmOutcome *outcomes, int count);

/*
 * What this transaction takes into our hands, as batch, and what of it and of
 * earlier ones a server may have from its commit on, as batch + 1; done: batches
 * that are finished.
 */
extern void klm_outbox_stamp(int64 epoch, int64 batch, const int64 *claimed, int claimed_count,
							 const int64 *begun, int begun_count,
							 const int64 *done, int done_count);

extern void klm_outbox_set_aside(int64 id, const char *reason);
/* Mends what a clock that was ahead has made, of what came behind an id.  The newest id. */
extern int64 klm_outbox_settle_clock(int64 after);

/* A batch each; of how many deliveries. */
extern int64 klm_outbox_expire(void);
extern int64 klm_outbox_play_reports(void);

/* set_brand(unsubscribe_url), or NULL. */
extern char *klm_outbox_unsubscribe_url(void);

/* NOTIFY kliv_mail; a full queue raises. */
extern void klm_outbox_notify(const char *payload);

/* In this database's time; DT_NOEND: not before a call. */
extern TimestampTz klm_outbox_next_due(void);

/* Delete history older than the retention, a batch; how many rows. */
extern int64 klm_outbox_retain(void);

#endif							/* KLM_OUTBOX_H */
