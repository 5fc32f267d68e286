/*-------------------------------------------------------------------------
 *
 * seal.h
 *		The key ring, and passwords sealed with it.
 *
 * Layer: edge (libsodium, pgcrypto).  In kliv_mail_net.  The key is read for
 * each use and wiped after it; plaintexts live in sodium-guarded memory.
 *
 * The ring is lines of text, newest key first, in kliv_mail.key_file or as
 * the output of kliv_mail.key_command:
 *
 *		kliv_mail root <64 hex digits>			tokens derive from it; never changes
 *		kliv_mail key [<id>] <64 hex digits>	the id is a hash of the key
 *
 * Everything that touches the ring is called inside a transaction.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_CRYPTO_H
#define KLM_CRYPTO_H

#include "base/error.h"

/* A plaintext in guarded memory, wiped when its memory context goes. */
typedef struct KlmSecret
{
	char	   *data;			/* NUL-terminated */
	Size		length;
} KlmSecret;

/* In the current context; the caller wipes its own copy of data (NULL: zeros). */
extern KlmSecret *klm_secret_create(const char *data, Size length);
extern void klm_secret_wipe(KlmSecret *secret);

/*
 * This process, which handles passwords all its life, leaves no core dump:
 * what libraries copy of them (libcurl) is not in guarded memory.
 */
extern void klm_no_core_dumps(void);

/*
 * Read a file with a secret in it; a relative path starts in the data
 * directory.  what: "the key file", for the message.  private_to: who may own
 * it, and then neither group nor others may have any right; *missing (may be
 * NULL): there is no such file.
 */
typedef enum KlmFileOwner
{
	KLM_OWNER_ANY,				/* not checked, neither is the mode */
	KLM_OWNER_SERVER,			/* the server's user */
	KLM_OWNER_SERVER_OR_ROOT
} KlmFileOwner;

extern bool klm_secret_read_file(const char *path, const char *what, KlmFileOwner private_to,
								 Size max_length, KlmSecret **secret, bool *missing,
								 KlmError *error);

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

/* The ids of the ring's keys, newest first, palloc'd; *missing: there is no key file. */
extern bool klm_key_ids(char ***ids, int *count, bool *missing, KlmError *error);

/*
 * Rotation: put a new key in front of the file's (with kliv_mail.key_command:
 * nothing, the ring's newest is taken as the new one).
 */
extern bool klm_add_key(bool may_create, KlmError *error);

/* The X25519 public key of the newest key, for crypto_box_seal() at a client. */
extern bool klm_public_key(bool may_create, bytea **public_key, KlmError *error);

/* Open what a client sealed with any public key of the ring. */
extern bool klm_open_sealed(const bytea *sealed, KlmSecret **secret, KlmError *error);

/*
 * The first 16 bytes of a keyed hash (HMAC-SHA-512-256) of text, by a key that
 * derives from the ring's root: the same before and after a rotation.
 */
#define KLM_TOKEN_BYTES 16

extern bool klm_token(const char *text, Size length, bool may_create, unsigned char *token,
					  KlmError *error);

/* "****" and the last characters: six of at least eighteen, else a third. */
extern char *klm_mask(const char *utf8);

#endif							/* KLM_CRYPTO_H */
