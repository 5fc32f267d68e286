/*-------------------------------------------------------------------------
 *
 * probe.h
 *		The connection test behind test_smtp() and configure_smtp(): what a
 *		connection would do, step by step, with no mail sent.
 *
 * In kliv_mail_net.  Runs in a backend.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_PROBE_H
#define KLM_PROBE_H

#include "net/connection.h"

#define KLM_PROBE_STEPS 6		/* dns, connect, tls, ehlo, auth, sender */

typedef struct KlmProbeStep
{
	const char *step;			/* static: "dns", "connect", "tls", "ehlo", "auth", "sender" */
	bool		ok;
	double		elapsed_ms;		/* of this step alone */
	char	   *detail;			/* what was found, or on failure our words and the server's */
	const char *hint;			/* what to do, or NULL */
} KlmProbeStep;

/*
 * Steps that do not apply (tls of encryption none, auth without credentials)
 * and those behind a failed one have no row.  Texts are UTF-8, palloc'd in the
 * current context, and never hold a secret.
 */
typedef struct KlmProbe
{
	bool		ok;				/* every step was */
	int			count;
	KlmProbeStep steps[KLM_PROBE_STEPS];
	bool		smtputf8;		/* the server takes addresses that are not ASCII */
	/* when not ok: */
	int			sqlstate;		/* what klm_probe_raise() raises */
	char	   *failure;		/* our words */
	KlmReply	reply;			/* the stage and the server's reply, if any */
	bool		limited;		/* the provider's limit is used up: the settings may be right */
} KlmProbe;

/*
 * Connect to target, and unless from_address is NULL ask with MAIL FROM,
 * RCPT TO of itself and RSET whether it may send.  Cancellable, bounded by
 * kliv_mail.connect_timeout and 30 s for the replies of the sender step; sends
 * no mail, and leaves nothing behind however it ends.  provider (may be NULL)
 * chooses the hints.  Call it before the first lock or write.
 */
extern void klm_probe(const KlmTarget *target, const char *provider, const char *from_address,
					  KlmProbe *probe);

/*
 * Raise what a failed probe found: 42501 for an address that the guard refused,
 * KM001 (dns), KM002 (connect), KM003 (tls), KM004 (ehlo), KM005 (auth) or KM006
 * (sender) otherwise, with the server's words and the hint.  secret: the
 * statement carries a password and is kept out of the log.
 */
extern void klm_probe_raise(const KlmProbe *probe, bool secret) pg_attribute_noreturn();

#endif							/* KLM_PROBE_H */
