/*-------------------------------------------------------------------------
 *
 * crypto.h
 *		The key ring, and passwords sealed with it.
 *
 * Layer: edge (libsodium, pgcrypto).  In kliv_mail_net.  The key is read for
 * each use and wiped after it; plaintexts live in sodium-guarded memory.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_CRYPTO_H
#define KLM_CRYPTO_H

#include "kliv_mail.h"

/* A plaintext in guarded memory, wiped when its memory context goes. */
typedef struct KlmSecret
{
	char	   *data;			/* NUL-terminated */
	Size		length;
} KlmSecret;

/* In the current context; the caller wipes its own copy of data. */
extern KlmSecret *klm_secret_create(const char *data, Size length);
extern void klm_secret_wipe(KlmSecret *secret);

/* What a ciphertext is bound to. */
typedef struct KlmBinding
{
	const char *account;
	const char *host;
	int			port;
	const char *username;		/* NULL as "" */
} KlmBinding;

/*
 * Encrypt for the newest key of the ring.  Makes the first key when no key
 * file exists and may_create (nothing stored names a key).  *key_id is
 * palloc'd.  false: *error says what is wrong with the key (55000).
 */
extern bool klm_seal(const KlmSecret *secret, const KlmBinding *binding, bool may_create,
					 bytea **ciphertext, char **key_id, KlmError *error);

/*
 * Decrypt, checking the binding.  false: *error says whether the key is
 * missing, unreadable or wrong, or the ciphertext belongs elsewhere (55000).
 * *key_missing (may be NULL): the trouble is the key, not the ciphertext.
 */
extern bool klm_open(const bytea *ciphertext, const char *key_id, const KlmBinding *binding,
					 KlmSecret **secret, bool *key_missing, KlmError *error);

/* "****" and the last characters: six of at least eighteen, else a third. */
extern char *klm_mask(const char *utf8);

#endif							/* KLM_CRYPTO_H */
