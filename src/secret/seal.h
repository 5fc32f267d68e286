/*-------------------------------------------------------------------------
 *
 * seal.h
 *		Passwords sealed with the key ring, here and at clients.
 *
 * In kliv_mail_net.  Everything here is called inside a transaction.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_SEAL_H
#define KLM_SEAL_H

#include "secret/domain.h"
#include "secret/secret_memory.h"

/* What a ciphertext is bound to. */
typedef struct KlmBinding
{
	const char *account;
	const char *host;
	int			port;
	const char *username;		/* NULL as "" */
	const KlmDomain *domain;	/* the database's */
	const char *save;			/* what saves it anew; NULL: configure_smtp() */
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

/* The X25519 public key of the newest key, for crypto_box_seal() at a client. */
extern bool klm_public_key(const KlmDomain *domain, bool may_create, bytea **public_key,
						   KlmError *error);

/*
 * Open what a client sealed with any public key that this database has had:
 * the account and the host that the password is for, and the password.  false:
 * *error says that it was not (22023), or what is wrong with the ring (55000).
 */
extern bool klm_open_sealed(const bytea *sealed, const KlmDomain *domain, char **account,
							char **host, KlmSecret **secret, KlmError *error);

/* "****" and the last characters: six of at least eighteen, else a third. */
extern char *klm_mask(const char *utf8);

#endif							/* KLM_SEAL_H */
