/*-------------------------------------------------------------------------
 *
 * bounce_token.c
 *		The tokens that sign the return path of a delivery (VERP).
 *
 * Derives a key from the ring; the rest is pure.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sodium.h>

#include "secret/bounce_token.h"
#include "secret/key_ring.h"

#define HASH_BYTES 10
#define HASH_CHARS 16			/* of five bits each */
#define VALID_DAYS 30

/* Context of crypto_kdf: eight characters, never to be changed. */
#define KDF_BOUNCE "klmbounc"

/* The first 32 are the digits of the hash, too. */
static const char digits[] = "abcdefghijklmnopqrstuvwxyz0123456789";

static char *signed_part(int64 delivery_id, int day);
static void append_number(char **out, uint64 number);
static bool read_number(const char **text, char end, uint64 *number);
static void hash_of(const KlmSecret *key, const char *text, char *hash);

bool
klm_bounce_key(const KlmDomain *domain, bool may_create, KlmSecret **key, KlmError *error)
{
	KlmRing    *ring;
	KlmSecret  *memory;

	if (!klm_domain_check(domain, error) ||
		!klm_ring_for_sealing(may_create, &ring, &memory, error))
		return false;
	*key = klm_secret_create(NULL, KLM_KEY_BYTES);
	klm_derive((unsigned char *) (*key)->data, ring->root, 1, KDF_BOUNCE, domain, 0);
	klm_secret_wipe(memory);
	return true;
}

char *
klm_return_path(const KlmSecret *key, int64 delivery_id, int day, const char *bounce_domain)
{
	char	   *text = signed_part(delivery_id, day);
	char		hash[HASH_CHARS + 1];
	char	   *path;

	hash_of(key, text, hash);
	path = psprintf("b+%s.%s@%s", text, hash, bounce_domain);
	pfree(text);
	return path;
}

bool
klm_bounce_token_read(const KlmDomain *domain, const char *token, int today, int64 *delivery_id,
					  KlmError *error)
{
	const char *at = token;
	uint64		number;
	uint64		day;
	KlmRing    *ring;
	KlmSecret  *memory;
	KlmSecret  *key;
	char	   *text;
	bool		missing;
	bool		ours = false;

	*delivery_id = 0;
	if (!read_number(&at, '.', &number) || number == 0 || number > PG_INT64_MAX ||
		!read_number(&at, '.', &day) || strlen(at) != HASH_CHARS ||
		day > (uint64) today + 1 || (uint64) today > day + VALID_DAYS)
		return true;
	if (!klm_read_ring(&ring, &memory, &missing, error))
		return false;
	text = signed_part((int64) number, (int) day);
	key = klm_secret_create(NULL, KLM_KEY_BYTES);
	for (int salt = 0; salt < domain->count && !ours; salt++)
	{
		char		expected[HASH_CHARS + 1];

		klm_derive((unsigned char *) key->data, ring->root, 1, KDF_BOUNCE, domain, salt);
		hash_of(key, text, expected);
		ours = sodium_memcmp(expected, at, HASH_CHARS) == 0;
	}
	klm_secret_wipe(key);
	klm_secret_wipe(memory);
	pfree(text);
	if (ours)
		*delivery_id = (int64) number;
	return true;
}

static char *
signed_part(int64 delivery_id, int day)
{
	char	   *text = palloc(32);
	char	   *out = text;

	append_number(&out, (uint64) delivery_id);
	*out++ = '.';
	append_number(&out, (uint64) day);
	*out = '\0';
	return text;
}

/* To base 36. */
static void
append_number(char **out, uint64 number)
{
	char		reversed[16];
	int			length = 0;

	do
	{
		reversed[length++] = digits[number % 36];
		number /= 36;
	} while (number > 0);
	while (length > 0)
		*(*out)++ = reversed[--length];
}

static bool
read_number(const char **text, char end, uint64 *number)
{
	const char *at = *text;

	*number = 0;
	for (; *at && *at != end; at++)
	{
		const char *digit = strchr(digits, *at);

		if (digit == NULL || at - *text >= 12)
			return false;
		*number = *number * 36 + (digit - digits);
	}
	if (at == *text || *at != end)
		return false;
	*text = at + 1;
	return true;
}

static void
hash_of(const KlmSecret *key, const char *text, char *hash)
{
	unsigned char whole[crypto_auth_BYTES];

	StaticAssertStmt(KLM_KEY_BYTES == crypto_auth_KEYBYTES, "a token's key is a derived key");
	StaticAssertStmt(HASH_BYTES * 8 == HASH_CHARS * 5, "five bits a character");
	crypto_auth(whole, (const unsigned char *) text, strlen(text),
				(const unsigned char *) key->data);
	for (int i = 0; i < HASH_CHARS; i++)
	{
		int			bit = i * 5;
		uint32		two = (uint32) whole[bit / 8] << 8 | whole[bit / 8 + 1];

		hash[i] = digits[two >> (11 - bit % 8) & 31];
	}
	hash[HASH_CHARS] = '\0';
}
