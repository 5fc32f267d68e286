/*-------------------------------------------------------------------------
 *
 * domain.h
 *		What keeps one database's secrets apart from another's.
 *
 * In kliv_mail_net.  The key ring is the cluster's; every key that is used
 * derives from a key of the ring and from a salt of the database.  So no
 * token, box or ciphertext of one database means anything in another one.
 *
 * A database has the salt that its CREATE EXTENSION made, and, in a restored
 * one, that of the original, which its dump carried along and which is older.
 * Secrets are made with the oldest and open with any of them.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_DOMAIN_H
#define KLM_DOMAIN_H

#include "base/error.h"

#define KLM_SALT_BYTES 16

typedef struct KlmDomain
{
	int			count;
	const unsigned char *salts; /* KLM_SALT_BYTES each, oldest first */
} KlmDomain;

/* From what kliv_mail._salts() gives, which must live as long; NULL: none. */
extern void klm_domain_set(KlmDomain *domain, const bytea *salts);

/* false: the database has lost its salts (55000). */
extern bool klm_domain_check(const KlmDomain *domain, KlmError *error);

/* A key of 32 bytes for one purpose (a context of crypto_kdf, eight characters) and one salt. */
extern void klm_derive(unsigned char *derived, const unsigned char *key, uint64 number,
					   const char *context, const KlmDomain *domain, int salt);

#endif							/* KLM_DOMAIN_H */
