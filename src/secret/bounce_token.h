/*-------------------------------------------------------------------------
 *
 * bounce_token.h
 *		The tokens that sign the return path of a delivery (VERP).
 *
 * In kliv_mail_net.  A return path is b+<token>@<kliv_mail.bounce_domain>; a
 * token is the delivery's number, the day it was sent and 80 bits of a keyed hash
 * of the two, "1c2.fyk.mzxw6ytboi4dcmrt", in letters that keep their meaning in
 * either case.  Whoever has one can speak about that one delivery, for
 * 30 days; its key derives as the unsubscribe tokens' does.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_BOUNCE_TOKEN_H
#define KLM_BOUNCE_TOKEN_H

#include "secret/domain.h"
#include "secret/secret_memory.h"

/* The key, which the caller wipes; false: *error says what is wrong with the ring (55000). */
extern bool klm_bounce_key(const KlmDomain *domain, bool may_create, KlmSecret **key,
						   KlmError *error);

/* The return path of a delivery, palloc'd.  day: since whichever day, the same for both calls. */
extern char *klm_return_path(const KlmSecret *key, int64 delivery_id, int day,
							 const char *bounce_domain);

/* The delivery that a token is for; 0: it is none of ours, or too old.  false as above. */
extern bool klm_bounce_token_read(const KlmDomain *domain, const char *token, int today,
								  int64 *delivery_id, KlmError *error);

#endif							/* KLM_BOUNCE_TOKEN_H */
