/*-------------------------------------------------------------------------
 *
 * unsubscribe_token.h
 *		The links by which recipients leave a list (RFC 8058).
 *
 * Layer: edge (the key ring, through crypto.h).  In kliv_mail_net.
 *
 * A token is base64url of 16 bytes of keyed hash, the list, a NUL and the
 * address: it needs no table, nobody else can make one, and rotate_key() leaves
 * it good.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_UNSUBSCRIBE_H
#define KLM_UNSUBSCRIBE_H

#include "base/error.h"

/*
 * url with the token added as parameter "token", palloc'd; in a transaction.
 * false: *error says what is wrong with the key (55000).
 */
extern bool klm_unsubscribe_link(const char *url, const char *address, const char *list,
								 bool may_create, char **link, KlmError *error);

#endif							/* KLM_UNSUBSCRIBE_H */
