/*-------------------------------------------------------------------------
 *
 * domain.c
 *		Keys that belong to one database.
 *
 * Pure, but for libsodium.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sodium.h>

#include "base/compat.h"
#include "secret/domain.h"

void
klm_domain_set(KlmDomain *domain, const bytea *salts)
{
	domain->count = salts ? VARSIZE_ANY_EXHDR(salts) / KLM_SALT_BYTES : 0;
	domain->salts = salts ? (const unsigned char *) VARDATA_ANY(salts) : NULL;
}

bool
klm_domain_check(const KlmDomain *domain, KlmError *error)
{
	if (domain->count > 0)
		return true;
	return klm_fail(error, ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
					"Put back its rows from a dump of this database: with another salt stored "
					"passwords do not open, and links in sent mail lead nowhere.",
					"the table kliv_mail._salt is empty");
}

void
klm_derive(unsigned char *derived, const unsigned char *key, uint64 number, const char *context,
		   const KlmDomain *domain, int salt)
{
	unsigned char subkey[crypto_generichash_KEYBYTES];

	StaticAssertStmt(crypto_generichash_KEYBYTES == crypto_kdf_KEYBYTES, "keys derive from keys");
	Assert(salt < domain->count);
	crypto_kdf_derive_from_key(subkey, sizeof(subkey), number, context, key);
	crypto_generichash(derived, crypto_generichash_BYTES,
					   domain->salts + (Size) salt * KLM_SALT_BYTES, KLM_SALT_BYTES,
					   subkey, sizeof(subkey));
	sodium_memzero(subkey, sizeof(subkey));
}
