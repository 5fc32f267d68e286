/*-------------------------------------------------------------------------
 *
 * unsubscribe_token.h
 *		The tokens in the links by which recipients leave a list (RFC 8058).
 *
 * In kliv_mail_net.  A token is base64url of 16 bytes of a keyed hash
 * (HMAC-SHA-512-256), the list, a NUL and the address: it needs no table,
 * nobody else can make one, another database's is none here, and rotate_key()
 * leaves it good, since its key derives from the ring's root and a salt of the
 * database.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_UNSUBSCRIBE_TOKEN_H
#define KLM_UNSUBSCRIBE_TOKEN_H

#include "secret/domain.h"
#include "secret/secret_memory.h"

/*
 * The key of the tokens, which the caller wipes: to be had once for as many
 * links as there are.  false: *error says what is wrong with the ring (55000).
 */
extern bool klm_token_key(const KlmDomain *domain, bool may_create, KlmSecret **key,
						  KlmError *error);

/* url with the token added as parameter "token", palloc'd. */
extern char *klm_unsubscribe_link(const KlmSecret *key, const char *url, const char *address,
								  const char *list);

/*
 * What a token says, palloc'd; *address is NULL where it is none of ours.
 * false: *error says what is wrong with the ring.
 */
extern bool klm_unsubscribe_read(const KlmDomain *domain, const char *token, char **address,
								 char **list, KlmError *error);

#endif							/* KLM_UNSUBSCRIBE_TOKEN_H */
