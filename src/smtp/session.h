/*-------------------------------------------------------------------------
 *
 * session.h
 *		One SMTP session after AUTH, as a machine: bytes in, bytes out.
 *
 * Layer: pure (palloc only): no socket, no clock, so it can be tested and
 * fuzzed.  Knows no verdicts.
 *
 * Several deliveries can be open at once: with PIPELINING (RFC 2920) MAIL,
 * RCPT and DATA leave in one flight, and body, dot and the next delivery's
 * envelope in the next one, so at most two are open; without it one is, in
 * lock-step.  Each delivery is its own transaction with one RCPT.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_SMTP_H
#define KLM_SMTP_H

#include "base/kliv_mail.h"
#include "smtp/ehlo.h"

/*
 * A delivery handed to the machine.  The strings and the parts must live until
 * its result was taken; nothing is copied.  The parts are the message, one
 * after the other; the machine makes every line end CRLF and stuffs dots.
 */
typedef struct KlmSmtpPart
{
	const char *data;
	Size		length;
} KlmSmtpPart;

typedef struct KlmSmtpDelivery
{
	void	   *tag;			/* the caller's */
	const char *mail_from;		/* "" for the null sender */
	const char *rcpt_to;
	bool		ask;			/* send no mail, only ask (MAIL, RCPT, then RSET); the result
								 * is the last reply of these */
	bool		chunk;			/* where the server has CHUNKING, the message may leave with
								 * its envelope: only where it was heard of just now */
	bool		smtputf8;
	KlmSmtpPart parts[3];
	int			part_count;
} KlmSmtpDelivery;

/*
 * How a delivery ended.  lost: no complete reply was read (connection ended,
 * timed out, or closed by us); then reply.stage is KLM_STAGE_DOT exactly when
 * the last byte of the final dot, or of the chunk, had been reported by klm_smtp_sent(), and a
 * delivery with started == false had put nothing on the wire that could count
 * as an attempt (its envelope behind another's dot included).
 *
 * A session that served other deliveries before may end at any moment (idle,
 * N messages a connection): then a delivery of which nothing was answered, or
 * whose MAIL was answered with 421, has started == false; lost == false in the
 * second case.  The first delivery of a session always counts once a byte of
 * it was sent, so that a server which hangs up at once is no endless loop.
 *
 * A chunk of which all has left is in doubt when the connection is lost, as
 * others are between dot and reply, even if nothing was answered; chunk_failed
 * says so, or that the server refused BDAT, which it had offered: lost, started
 * == false.
 */
typedef struct KlmSmtpResult
{
	void	   *tag;
	bool		lost;
	bool		started;
	bool		chunk_failed;	/* lost as a chunk: set delivery.chunk no more */
	KlmReply	reply;
} KlmSmtpResult;

typedef struct KlmSmtp KlmSmtp;

/* In a memory context of its own below the current one. */
extern KlmSmtp *klm_smtp_create(const KlmSmtpCaps *caps);
extern void klm_smtp_destroy(KlmSmtp *smtp);

/*
 * Can it take one more delivery now?  false while full, and for ever after the
 * session turned bad (421, a reply out of step, EOF): then klm_smtp_usable()
 * is false and the caller closes the connection once no result is open.
 * open_count: deliveries begun whose result is not yet known.
 */
extern bool klm_smtp_can_begin(const KlmSmtp *smtp);
extern bool klm_smtp_usable(const KlmSmtp *smtp);
extern int	klm_smtp_open_count(const KlmSmtp *smtp);

/*
 * Begin a delivery.  An address that could break the envelope, a size above
 * SIZE, a non-ASCII local part without SMTPUTF8: no byte is sent, the result
 * (a local reply with 5.1.3, 5.3.4 or 5.6.7) is queued at once.
 */
extern void klm_smtp_begin(KlmSmtp *smtp, const KlmSmtpDelivery *delivery);

/*
 * Take back a delivery of which nothing was put out yet (it waits behind
 * another one): its tag, or NULL if there is none.  It has no result.
 */
extern void *klm_smtp_withdraw(KlmSmtp *smtp);

/* Bytes to send now (NULL and 0 if none), valid until the next call. */
extern const char *klm_smtp_output(KlmSmtp *smtp, Size *length);

/* That many bytes of the output were handed to the socket. */
extern void klm_smtp_sent(KlmSmtp *smtp, Size length);

/* Bytes that the server sent. */
extern void klm_smtp_received(KlmSmtp *smtp, const char *data, Size length);

/*
 * The connection is gone or given up: what is open becomes lost.  why: plain
 * words for the reply text ("connection closed by the server", "no reply
 * within 300 s").
 */
extern void klm_smtp_closed(KlmSmtp *smtp, const char *why);

/* Take the next finished delivery; false if none.  Text is palloc'd in the current context. */
extern bool klm_smtp_result(KlmSmtp *smtp, KlmSmtpResult *result);

/*
 * The stage whose reply is awaited now (the final dot has a longer timeout);
 * false if none is (QUIT's reply counts as none: nobody needs it).  While the
 * body is put out the stage is KLM_STAGE_DATA and the time is a time to send in.
 */
extern bool klm_smtp_awaits(const KlmSmtp *smtp, KlmStage *stage);

/* Whole replies read so far. */
extern uint64 klm_smtp_replies(const KlmSmtp *smtp);

/*
 * Ask the session to end politely: QUIT is put out once nothing is open.  No
 * delivery can begin any more; close when there is no output left.
 */
extern void klm_smtp_quit(KlmSmtp *smtp);

#endif							/* KLM_SMTP_H */
