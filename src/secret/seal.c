/*-------------------------------------------------------------------------
 *
 * seal.c
 *		Passwords sealed with the key ring, here and at clients.
 *
 * Calls pgcrypto for what is stored and libsodium for what clients seal.
 *
 * A master key is used only through klm_derive(): one key for each account is
 * the passphrase of pgcrypto, one more the seed of the key pair to which
 * clients seal.  pgcrypto's functions are taken from its library and never from
 * the catalogue, where the owner of a database may have put others of their
 * name; nor does any SQL text call them, which pg_stat_statements or
 * auto_explain would show.  Inside the ciphertext the password stands behind
 * what it belongs to (account, host, port, user name), because pgcrypto has no
 * associated data; a client puts account and host before it.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sodium.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "base/compat.h"
#include "base/error.h"
#include "secret/key_ring.h"
#include "secret/seal.h"

#define NOT_READY ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE

/* Contexts of crypto_kdf: eight characters, never to be changed. */
#define KDF_PGCRYPTO "klm_pgp1"
#define KDF_SEALING "klm_box1"

/* No string-to-key work: the passphrase is 256 random bits, not a human's. */
#define PGP_OPTIONS "cipher-algo=aes256, compress-algo=0, s2k-mode=1, s2k-digest-algo=sha256"

static bool decrypt(const KlmKey *key, const KlmBinding *binding, const KlmSecret *sealed,
					KlmSecret **secret);
static bool call_pgcrypto(const char *function, const KlmKey *key, const KlmBinding *binding,
						  int salt, const KlmSecret *input, KlmSecret **output);
static void end_own_owner(ResourceOwner outer);
static void sealing_pair(const KlmKey *key, const KlmDomain *domain, int salt,
						 unsigned char *public_key, unsigned char *secret_key);
static bool open_box(const KlmRing *ring, const KlmDomain *domain, const bytea *sealed,
					 KlmSecret *opened);
static KlmSecret *bind_secret(const KlmBinding *binding, const KlmSecret *secret);
static bool unbind_secret(const KlmBinding *binding, const KlmSecret *bound, KlmSecret **secret);

/* ---- passwords ---- */

bool
klm_seal(const KlmSecret *secret, const KlmBinding *binding, bool may_create,
		 bytea **ciphertext, char **id, KlmError *error)
{
	KlmRing    *ring;
	KlmSecret  *memory;
	KlmSecret  *bound;
	KlmSecret  *sealed = NULL;
	KlmSecret  *opened = NULL;
	bool		same;

	if (!klm_domain_check(binding->domain, error) ||
		!klm_ring_for_sealing(may_create, &ring, &memory, error))
		return false;
	bound = bind_secret(binding, secret);

	/* What cannot be read back must not be stored. */
	same = call_pgcrypto("pgp_sym_encrypt_bytea", &ring->keys[0], binding, 0, bound, &sealed) &&
		decrypt(&ring->keys[0], binding, sealed, &opened) &&
		opened->length == secret->length &&
		sodium_memcmp(opened->data, secret->data, secret->length) == 0;
	klm_secret_wipe(bound);
	klm_secret_wipe(opened);
	if (same)
	{
		*id = pstrdup(ring->keys[0].id);
		*ciphertext = palloc(VARHDRSZ + sealed->length);
		SET_VARSIZE(*ciphertext, VARHDRSZ + sealed->length);
		memcpy(VARDATA(*ciphertext), sealed->data, sealed->length);
	}
	klm_secret_wipe(sealed);
	klm_secret_wipe(memory);
	if (!same)
		return klm_fail(error, NOT_READY, "Check the installation of pgcrypto's library.",
						"could not be encrypted so that it can be read back");
	return true;
}

static const char save_account[] = "SELECT kliv_mail.configure_smtp(...) with the password.";

bool
klm_open(const bytea *ciphertext, const char *id, const KlmBinding *binding,
		 KlmSecret **secret, bool *key_missing, KlmError *error)
{
	KlmRing    *ring;
	KlmSecret  *memory;
	KlmSecret  *sealed;
	const KlmKey *key;
	bool		missing;
	bool		ok;

	if (key_missing)
		*key_missing = true;
	if (!klm_read_ring(&ring, &memory, &missing, error))
		return false;
	key = id ? klm_find_key(ring, id) : NULL;
	if (key == NULL)
	{
		klm_secret_wipe(memory);
		return klm_fail(error, NOT_READY,
						psprintf("Put that key back into the ring (it came with another server, or "
								 "was removed). Or save the password again: %s",
								 binding->save ? binding->save : save_account),
					"the key %s of the stored password is not in %s", id ? id : "(none)",
					klm_ring_source());
	}
	if (key_missing)
		*key_missing = false;

	sealed = klm_secret_create(VARDATA_ANY(ciphertext), VARSIZE_ANY_EXHDR(ciphertext));
	ok = decrypt(key, binding, sealed, secret);
	klm_secret_wipe(sealed);
	klm_secret_wipe(memory);
	if (!ok)
		return klm_fail(error, NOT_READY,
						psprintf("Save it again: %s", binding->save ? binding->save : save_account),
						"the stored password does not belong to this database, account \"%s\", "
						"host \"%s\", port %d and its user name: the row was changed by other "
						"means than configure_smtp()",
						binding->account, binding->host ? binding->host : "", binding->port);
	return true;
}

/* By whichever salt of the database it was encrypted with; false where it belongs elsewhere. */
static bool
decrypt(const KlmKey *key, const KlmBinding *binding, const KlmSecret *sealed,
		KlmSecret **secret)
{
	for (int i = 0; i < binding->domain->count; i++)
	{
		KlmSecret  *bound;
		bool		ok;

		if (!call_pgcrypto("pgp_sym_decrypt_bytea", key, binding, i, sealed, &bound))
			continue;
		ok = unbind_secret(binding, bound, secret);
		klm_secret_wipe(bound);
		return ok;
	}
	return false;
}

/* The plaintext of a ciphertext: what it belongs to, each with its length, then the secret. */
static KlmSecret *
bind_secret(const KlmBinding *binding, const KlmSecret *secret)
{
	const char *fields[3] = {binding->account, binding->host ? binding->host : "",
	binding->username ? binding->username : ""};
	KlmSecret  *bound;
	char	   *p;
	uint32		number;
	Size		length = 4 + secret->length;

	for (int i = 0; i < lengthof(fields); i++)
		length += 4 + strlen(fields[i]);
	bound = klm_secret_create(NULL, length);
	p = bound->data;
	for (int i = 0; i < lengthof(fields); i++)
	{
		number = pg_hton32((uint32) strlen(fields[i]));
		memcpy(p, &number, 4);
		memcpy(p + 4, fields[i], strlen(fields[i]));
		p += 4 + strlen(fields[i]);
	}
	number = pg_hton32((uint32) binding->port);
	memcpy(p, &number, 4);
	memcpy(p + 4, secret->data, secret->length);
	return bound;
}

static bool
unbind_secret(const KlmBinding *binding, const KlmSecret *bound, KlmSecret **secret)
{
	KlmSecret	nothing = {"", 0};
	KlmSecret  *expected = bind_secret(binding, &nothing);
	bool		same = bound->length >= expected->length &&
		memcmp(bound->data, expected->data, expected->length) == 0;

	if (same)
		*secret = klm_secret_create(bound->data + expected->length,
									bound->length - expected->length);
	klm_secret_wipe(expected);
	return same;
}

/* The resource owner that call_pgcrypto() made where there was none. */
static void
end_own_owner(ResourceOwner outer)
{
	ResourceOwner own = CurrentResourceOwner;

	if (outer != NULL)
		return;
	ResourceOwnerRelease(own, RESOURCE_RELEASE_BEFORE_LOCKS, false, true);
	ResourceOwnerRelease(own, RESOURCE_RELEASE_LOCKS, false, true);
	ResourceOwnerRelease(own, RESOURCE_RELEASE_AFTER_LOCKS, false, true);
	CurrentResourceOwner = NULL;
	ResourceOwnerDelete(own);
}

/*
 * Encrypt or decrypt with the account's passphrase.  false: pgcrypto says wrong
 * key or corrupt data; anything else that it raises goes on.
 */
static bool
call_pgcrypto(const char *function, const KlmKey *key, const KlmBinding *binding, int salt,
			  const KlmSecret *input, KlmSecret **output)
{
	PGFunction	call = load_external_function("$libdir/pgcrypto", function, true, NULL);
	ResourceOwner outer_owner = CurrentResourceOwner;
	MemoryContext outer = CurrentMemoryContext;
	MemoryContext scratch = AllocSetContextCreate(outer, "kliv_mail pgcrypto",
												  ALLOCSET_DEFAULT_SIZES);
	unsigned char subkey[KLM_KEY_BYTES];
	uint64		subkey_number;
	char	   *volatile passphrase = NULL;
	bytea	   *volatile data = NULL;
	volatile bool ok = true;

	crypto_generichash((unsigned char *) &subkey_number, sizeof(subkey_number),
					   (const unsigned char *) binding->account, strlen(binding->account), NULL, 0);
	subkey_number = pg_ntoh64(subkey_number);
	klm_derive(subkey, key->key, subkey_number, KDF_PGCRYPTO, binding->domain, salt);

	MemoryContextSwitchTo(scratch);
	passphrase = palloc(VARHDRSZ + (2 * KLM_KEY_BYTES) + 1);
	SET_VARSIZE(passphrase, VARHDRSZ + (2 * KLM_KEY_BYTES));
	sodium_bin2hex(VARDATA(passphrase), (2 * KLM_KEY_BYTES) + 1, subkey, sizeof(subkey));
	sodium_memzero(subkey, sizeof(subkey));
	data = palloc(VARHDRSZ + input->length);
	SET_VARSIZE(data, VARHDRSZ + input->length);
	memcpy(VARDATA(data), input->data, input->length);

	/* pgcrypto's handles need an owner, which there is none of outside of a transaction. */
	if (outer_owner == NULL)
		CurrentResourceOwner = ResourceOwnerCreate(NULL, "kliv_mail pgcrypto");

	PG_TRY();
	{
		text	   *options = cstring_to_text(PGP_OPTIONS);
		bytea	   *result = DatumGetByteaPP(DirectFunctionCall3(call, PointerGetDatum(data),
																 PointerGetDatum(passphrase),
																 PointerGetDatum(options)));

		MemoryContextSwitchTo(outer);
		*output = klm_secret_create(VARDATA_ANY(result), VARSIZE_ANY_EXHDR(result));
		sodium_memzero(result, VARSIZE_ANY(result));
	}
	PG_CATCH();
	{
		sodium_memzero((void *) passphrase, VARHDRSZ + (2 * KLM_KEY_BYTES));
		sodium_memzero((void *) data, VARHDRSZ + input->length);
		MemoryContextSwitchTo(outer);
		end_own_owner(outer_owner);

		/* pgcrypto has freed what it held before it raises this one. */
		if (geterrcode() != ERRCODE_EXTERNAL_ROUTINE_INVOCATION_EXCEPTION)
			PG_RE_THROW();
		FlushErrorState();
		ok = false;
	}
	PG_END_TRY();

	if (ok)
	{
		end_own_owner(outer_owner);
		sodium_memzero((void *) passphrase, VARHDRSZ + (2 * KLM_KEY_BYTES));
		sodium_memzero((void *) data, VARHDRSZ + input->length);
	}
	MemoryContextDelete(scratch);
	return ok;
}

/* ---- passwords sealed by clients ---- */

static void
sealing_pair(const KlmKey *key, const KlmDomain *domain, int salt, unsigned char *public_key,
			 unsigned char *secret_key)
{
	unsigned char seed[crypto_box_SEEDBYTES];

	StaticAssertStmt(sizeof(seed) == KLM_KEY_BYTES, "a seed is a derived key");
	klm_derive(seed, key->key, 1, KDF_SEALING, domain, salt);
	crypto_box_seed_keypair(public_key, secret_key, seed);
	sodium_memzero(seed, sizeof(seed));
}

bool
klm_public_key(const KlmDomain *domain, bool may_create, bytea **public_key, KlmError *error)
{
	KlmRing    *ring;
	KlmSecret  *memory;
	unsigned char secret_key[crypto_box_SECRETKEYBYTES];

	if (!klm_domain_check(domain, error) ||
		!klm_ring_for_sealing(may_create, &ring, &memory, error))
		return false;
	*public_key = palloc(VARHDRSZ + crypto_box_PUBLICKEYBYTES);
	SET_VARSIZE(*public_key, VARHDRSZ + crypto_box_PUBLICKEYBYTES);
	sealing_pair(&ring->keys[0], domain, 0, (unsigned char *) VARDATA(*public_key), secret_key);
	sodium_memzero(secret_key, sizeof(secret_key));
	klm_secret_wipe(memory);
	return true;
}

bool
klm_open_sealed(const bytea *sealed, const KlmDomain *domain, char **account, char **host,
				KlmSecret **secret, KlmError *error)
{
	KlmRing    *ring;
	KlmSecret  *memory;
	KlmSecret  *opened;
	Size		length = VARSIZE_ANY_EXHDR(sealed);
	const char *lines[2];
	bool		missing;
	bool		ok;

	if (!klm_read_ring(&ring, &memory, &missing, error))
		return false;
	opened = klm_secret_create(NULL, length > crypto_box_SEALBYTES ?
							   length - crypto_box_SEALBYTES : 0);
	ok = length > crypto_box_SEALBYTES && open_box(ring, domain, sealed, opened);
	klm_secret_wipe(memory);
	if (!ok)
	{
		klm_secret_wipe(opened);
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
						"Seal account, host and password, a line each, with libsodium's "
						"crypto_box_seal() for what kliv_mail.public_key() of this database "
						"returns.",
						"was not sealed for this database's public key");
	}

	lines[0] = memchr(opened->data, '\n', opened->length);
	lines[1] = lines[0] ? memchr(lines[0] + 1, '\n',
								 opened->data + opened->length - lines[0] - 1) : NULL;
	if (lines[1] == NULL)
	{
		klm_secret_wipe(opened);
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
						"Seal account, host and password, a line each: "
						"'custom\\nsmtp.example.com\\nthe password'.",
						"names no account and host before the password");
	}
	*account = pnstrdup(opened->data, lines[0] - opened->data);
	*host = pnstrdup(lines[0] + 1, lines[1] - lines[0] - 1);
	*secret = klm_secret_create(lines[1] + 1, opened->data + opened->length - lines[1] - 1);
	klm_secret_wipe(opened);
	return true;
}

/* With any key of the ring and any salt of the database. */
static bool
open_box(const KlmRing *ring, const KlmDomain *domain, const bytea *sealed, KlmSecret *opened)
{
	for (int i = 0; i < ring->count; i++)
		for (int salt = 0; salt < domain->count; salt++)
		{
			unsigned char public_key[crypto_box_PUBLICKEYBYTES];
			unsigned char secret_key[crypto_box_SECRETKEYBYTES];
			bool		ok;

			sealing_pair(&ring->keys[i], domain, salt, public_key, secret_key);
			ok = crypto_box_seal_open((unsigned char *) opened->data,
									  (const unsigned char *) VARDATA_ANY(sealed),
									  VARSIZE_ANY_EXHDR(sealed), public_key, secret_key) == 0;
			sodium_memzero(secret_key, sizeof(secret_key));
			if (ok)
				return true;
			CHECK_FOR_INTERRUPTS();
		}
	return false;
}

char *
klm_mask(const char *utf8)
{
	int			length = 0;
	int			shown;
	const char *p;

	for (p = utf8; *p; p++)
		length += ((*p & 0xC0) != 0x80);
	shown = length >= 18 ? 6 : length / 3;
	for (p = utf8 + strlen(utf8); shown > 0; shown -= ((*p & 0xC0) != 0x80))
		p--;
	return psprintf("****%s", p);
}
