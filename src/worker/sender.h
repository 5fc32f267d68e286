/*-------------------------------------------------------------------------
 *
 * sender.h
 *		What the files of the sender share: its state, pools, links, deliveries.
 *
 * An account in use has a pool with its links (connections) and the queue of
 * claimed deliveries that no link has begun.  For sender*.c and identity.c
 * alone.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_SENDER_H
#define KLM_SENDER_H

#include "lib/ilist.h"

#include "base/clock.h"
#include "cluster/slots.h"
#include "db/account.h"
#include "db/outbox.h"
#include "net/connection.h"
#include "smtp/session.h"
#include "smtp/reply_parse.h"
#include "smtp/verdict.h"

/* An account's settings, kept while a pool or a link uses them. */
typedef struct KlmSettings
{
	MemoryContext context;
	int			users;
	KlmAccount *account;
	bool		opened;			/* its secrets were looked for */
} KlmSettings;

/* Where claims of a pool and a priority begin (sender_line.c). */
typedef struct KlmLine
{
	KlmPlace	from;
	KlmPlace	next;			/* and will, once no transaction below that runs; */
	TransactionId until;		/* invalid: there is no next */
	int64		next_at;		/* since when there is */
	KlmPlace	taken;			/* of what the last claim took, the last */
	bool		reached;		/* when it was made, none below until ran */
} KlmLine;

/* So many mails that met a used-up connection an account's pool knows. */
#define KLM_REFUSED		32

typedef struct KlmPool
{
	dlist_node	node;
	char	   *name;
	char	   *version;		/* KlmClaim.settings that the settings were loaded for */
	KlmSettings   *settings;
	dlist_head	queue;			/* Deliveries not begun */
	int			queued;
	int			granted;		/* the first of them that may begin: a commit has said so */
	int			to_grant;		/* more of them, once this transaction is committed */
	int			room;			/* and of what it claims */
	int			open;			/* Deliveries begun on a link */
	int			ahead;			/* what it used up lately in the time that we claim ahead */
	int64		begun;			/* since that was measured */
	int64		measured_at;
	int64		bytes;			/* of both */
	dlist_head	links;
	int			link_count;
	int			opening;
	int			allowed;		/* connections now; grows on success, shrinks on trouble */
	int64		next_begin;		/* where the provider takes only so many a second */
	KlmLine		lines[KLM_PRIORITIES];
	int			claimed;		/* of its lines, by the last claim that did not look back */
	/* the last deliveries that did, how often, and where the next one goes */
	int64		refused_ids[KLM_REFUSED];
	int			refused_times[KLM_REFUSED];
	int			refused_next;
	bool		more;			/* its last claim found something */
	bool		stale;			/* the queue was composed for other settings */
	bool		looked_at;		/* at whether it is paused, at least once */
	bool		paused;			/* pause(), a limit of 0, out of use: what has not left goes back */
	bool		hold;			/* trouble of the account itself is to be recorded */
	/* no more connections than that, as the server showed; 0: not known */
	int			ceiling;
	int64		ceiling_until;
	int64		chunks_from;	/* until then no mail leaves by BDAT */
	int64		chunk_pause;	/* how long the last such pause was */
	int			refused;		/* connections in a row, while none was open */
	bool		own_path;		/* its server refused a signed return path: no more of these */
	int64		next_open;		/* no connection before that: we had no descriptor for it */
} KlmPool;

typedef enum LinkState
{
	LINK_OPENING,
	LINK_OPEN
} LinkState;

typedef struct KlmLink
{
	dlist_node	node;
	KlmPool	   *pool;
	KlmSettings   *settings;
	MemoryContext context;
	LinkState	state;
	KlmConnection *connection;
	KlmSmtp    *smtp;
	int64		deadline;		/* of the reply that is awaited, or of idleness */
	int64		moved;			/* the last byte of ours went then */
	int64		heard;			/* the server's last bytes came then */
	uint64		replies;		/* read before the one that is awaited */
	KlmStage	stage;			/* that the deadline is of */
	bool		waiting;		/* for a reply, or to send; else idle */
	bool		spent;			/* no more mail goes by it */
	bool		smtputf8;		/* its server has that, */
	bool		chunking;		/* and that */
	int			largest;		/* octets of its largest message */
	int			begun;			/* deliveries handed to it */
	int			served;			/* of them, with a reply */
	int			accepted;		/* of them, by the server */
} KlmLink;

/* What one claim brought, all of it in one context. */
typedef struct KlmBatch
{
	MemoryContext context;
	int64		number;			/* of its row of _batch */
	int			open;			/* deliveries without an outcome */
	int			room;			/* deliveries that an account was to have in hand */
	int		   *busy;			/* that each of the first pools had before; */
	int		   *rooms;			/* and was to have */
	int			offered;		/* so many pools there were */
	bool		whole;			/* from the beginning of each line */
	bool		back;			/* in front of where claims begin, which looked there only */
	TimestampTz seen;			/* when it was made, */
	TransactionId oldest;		/* the oldest transaction that ran then, */
	TransactionId next_xid;		/* and the first that had not begun behind it */
	List	   *claims;			/* KlmClaim */
	List	   *messages;		/* KlmStoredMessage */
	char	   *url;			/* the brand's unsubscribe URL, or NULL */
	KlmDomain	domain;			/* where unsubscribe links are wanted */
	int64		recovered;		/* deliveries of senders that died */
	int64		newest;			/* id when it looked whether the clock was set back; 0: not */
} KlmBatch;

/* What one commit said may begin: a row of _batch until all of it has an outcome. */
typedef struct KlmGrant
{
	int64		number;
	int			open;
} KlmGrant;

typedef struct KlmDelivery
{
	dlist_node	node;
	int64		id;
	KlmBatch	   *batch;
	KlmGrant   *grant;			/* NULL: it may not begin yet */
	KlmPool	   *pool;
	KlmStoredMessage *message;
	int			priority;
	KlmPlace	place;			/* in the line of that priority */
	int			size;
	const char *recipient;
	TimestampTz expires_at;		/* 0: never */
	char	   *identity;		/* the identity lines */
	bool		account_smtputf8;	/* the account's own addresses need SMTPUTF8 */
	bool		foreign_sender; /* its From is not the account's own */
	bool		signed_path;	/* it is not the envelope's, which is a signed return path */
	KlmSmtpDelivery smtp;
} KlmDelivery;

/* The one sender that this process is. */
typedef struct KlmSender
{
	MemoryContext context;
	MemoryContext outcome_context;	/* until a transaction has recorded them */
	KlmConnector *connector;
	dlist_head	pools;
	int64		epoch;
	KlmOutcome *outcomes;
	int			outcome_count;
	int64		claimed_bytes;	/* of all pools */
	MemoryContext claim_context;	/* the batch of the transaction under way */
	int64	   *tried_ids;		/* the rows that it reads, for blame when it fails */
	int			tried_count;
	KlmSenderState shared;
	int			connections;	/* to an account, our share of connections_per_account */
	bool		recovery_wanted;	/* a sender may have died with claims */
	bool		claim_wanted;
	bool		claim_again;	/* an account's last claim found something, so there may be more */
	int64		commit_us;		/* that a commit has taken of late */
	int64		last_batch;		/* numbers of rows of _batch that were given */
	int64	   *done;			/* those that the next transaction deletes */
	int			done_count;
	bool		claims_abandoned;	/* outcomes were let go: our death has to be noticed */
	int64		next_claim;		/* of klm_clock_ms() */
	bool		isolating;		/* one row at a time, to find one that cannot be read */
	int			isolated;		/* rows that were read so */
} KlmSender;

/* ---- sender_pools.c ---- */

extern KlmSender klm_sender;

/* What nothing that counts was done with goes back as it was, to its place in the line. */
extern void klm_give_back(int64 id, KlmPool *pool, int priority, KlmPlace place);

/* An outcome that no server gave: what is wrong with the row. */
extern void klm_add_local_outcome(int64 id, const KlmPool *pool, const char *verdict,
								  const char *reason);
extern void klm_add_outcome(KlmDelivery *delivery, const KlmAccount *account,
							const KlmReply *reply, const KlmDecision *decision);

/* A delivery has its outcome.  Others of the batch may hang elsewhere: its mail goes now. */
extern void klm_finish_delivery(KlmDelivery *delivery);

/* What no link has begun goes back as it was. */
extern void klm_return_queue(KlmPool *pool);

/* Trouble of the account itself, which the next transaction records; verdict also "key". */
extern void klm_note_hold(KlmPool *pool, const KlmSettings *settings, const char *verdict,
						  int pause_s, KlmStage stage, const char *reason, const char *hint);

/* Its server takes no more connections than that, which senders to come know for a while. */
extern void klm_note_connections(KlmPool *pool, int connections);

/* What to do about a reply to an account, in the current context or static. */
extern const char *klm_cure_of(const KlmDecision *decision, const KlmAccount *account);

/* The pool of an account, which is made where there is none yet. */
extern KlmPool *klm_find_pool(const char *name);

/* How many connections the pool may have now. */
extern int	klm_connection_limit(KlmPool *pool);

/* All of a claim, or one more of what one commit let begin, has its outcome. */
extern void klm_batch_free(KlmBatch *batch);
extern void klm_leave_grant(KlmGrant *grant);

/* Outcomes and holds are recorded. */
extern void klm_drop_outcomes(void);

/* A pool or a link uses them no more. */
extern void klm_release_settings(KlmSettings *settings);

/* ---- sender_claim.c ---- */

/*
 * In a transaction, in claim_context: claim what there is room for, and read
 * what is needed of it.  The batch is for klm_queue_claimed().
 */
extern KlmBatch *klm_claim(void);

/* Behind its commit, which is durable before anything reaches a socket: queue it. */
extern void klm_queue_claimed(KlmBatch *batch, KlmGrant *grant);

/* Is there an account that has more, with room for another claim worth its transaction? */
extern bool klm_has_room(void);

/* ---- sender_line.c ---- */

/*
 * In a transaction, three stretches for each pool: the next of what lies in front of
 * where claims begin, with began == when such a look did; NULL: it has looked at enough.
 * Behind a claim of it: whether it found something.
 */
extern KlmStretch *klm_line_back(int64 began);
extern void klm_line_looked(bool found);

/* And where the claim is to begin. */
extern KlmStretch *klm_line_begin(KlmBatch *batch);

/* Behind the claim, and behind its commit. */
extern void klm_line_end(KlmBatch *batch);
extern void klm_line_move(const KlmBatch *batch);

/* Something may stand in a line where nothing was: the next claim is to look at all of it. */
extern void klm_line_changed(void);

/* When a claim will look at all of it. */
extern int64 klm_line_whole_at(void);

/* ---- sender_grant.c ---- */

/*
 * In a transaction that records all outcomes: what is queued, and behind it of
 * the claims, may begin as far as there is room.  Behind its commit: it may; the
 * caller leaves the grant.
 */
extern void klm_grant(List *claims);
extern KlmGrant *klm_granted(void);
extern void klm_may_begin(KlmDelivery *delivery, KlmGrant *grant);

/* Would a transaction let something begin where nothing is under way? */
extern bool klm_wants_grants(void);

/* ---- sender_simulator.c ---- */

/* What may begin and needs no server gets its outcome. */
extern void klm_play(KlmPool *pool);

/* ---- sender_links.c ---- */

/* Hand queued deliveries to links, opening such as there is need for. */
extern void klm_feed(KlmPool *pool);

/* Nothing new leaves of an account that is paused: only what has its dot is waited for. */
extern void klm_stop_paused(KlmPool *pool);

/* Read and write what is ready. */
extern void klm_drive_network(void);
extern void klm_check_deadlines(int64 now);

/* When something has to be done for the pool without anything happening. */
extern int64 klm_pool_deadline(KlmPool *pool, int64 now);

extern bool klm_waits_for_dot(const KlmLink *link);

/* why: what open deliveries lose their connection to; NULL: none is open, part politely. */
extern void klm_close_link(KlmLink *link, const char *why);

/* All of them, politely where nothing is open. */
extern void klm_close_all_links(void);

/* ---- identity.c ---- */

/*
 * From, Reply-To and what else says who sends: the account's, with what the
 * message wishes as far as the account may.  In the current context; NULL with
 * *problem where they cannot be made.  *smtputf8: addresses that are the
 * account's need SMTPUTF8.
 */
extern char *klm_compose_identity(const KlmAccount *account, const KlmStoredMessage *message,
								  const KlmClaim *claimed, const char **from, bool *smtputf8,
								  const char **problem);

/*
 * The domain that a Message-ID without one gets from the account; NULL: it has
 * one, or the account none to give.  Points into the address.
 */
extern const char *klm_new_message_domain(const KlmAccount *account,
										  const KlmStoredMessage *message);

/*
 * Marketing mail: each recipient's unsubscribe link, in the given context;
 * outside of a transaction.  url: the brand's, or NULL.  False: the key is
 * missing, these deliveries wait.
 */
extern bool klm_make_unsubscribe_links(List *claims, List *messages, const char *url,
									   const KlmDomain *domain, MemoryContext context);

/*
 * The signed return path of each delivery (kliv_mail.bounce_domain), in the given
 * context; in a transaction with SPI connected.  Where the key cannot be had
 * there is none, and the log says so once.
 */
extern void klm_sign_return_paths(List *claims, MemoryContext context);

#endif							/* KLM_SENDER_H */
