/*-------------------------------------------------------------------------
 *
 * unsubscribe_token.c
 *		The tokens in the links by which recipients leave a list.
 *
 * Derives a key from the ring; the rest is pure.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sodium.h>

#include "secret/key_ring.h"
#include "secret/unsubscribe_token.h"

#define TOKEN_BYTES 16

/* Longer than any address and list name; what is longer is no token of ours. */
#define MAX_TOKEN 600

/* Context of crypto_kdf: eight characters, never to be changed. */
#define KDF_TOKEN "klmtoken"

static void hash_of(const KlmSecret *key, const unsigned char *text, Size length,
					unsigned char *hash);

bool
klm_token_key(const KlmDomain *domain, bool may_create, KlmSecret **key, KlmError *error)
{
	KlmRing    *ring;
	KlmSecret  *memory;

	StaticAssertStmt(KLM_KEY_BYTES == crypto_auth_KEYBYTES, "a token's key is a derived key");
	if (!klm_domain_check(domain, error) ||
		!klm_ring_for_sealing(may_create, &ring, &memory, error))
		return false;
	*key = klm_secret_create(NULL, KLM_KEY_BYTES);
	klm_derive((unsigned char *) (*key)->data, ring->root, 1, KDF_TOKEN, domain, 0);
	klm_secret_wipe(memory);
	return true;
}

char *
klm_unsubscribe_link(const KlmSecret *key, const char *url, const char *address, const char *list)
{
	Size		list_length = strlen(list) + 1;
	Size		length = list_length + strlen(address);
	Size		text_size = sodium_base64_encoded_len(TOKEN_BYTES + length,
													  sodium_base64_VARIANT_URLSAFE_NO_PADDING);
	unsigned char *bytes = palloc(TOKEN_BYTES + length);
	char	   *text = palloc(text_size);
	char	   *link;

	memcpy(bytes + TOKEN_BYTES, list, list_length);
	memcpy(bytes + TOKEN_BYTES + list_length, address, length - list_length);
	hash_of(key, bytes + TOKEN_BYTES, length, bytes);
	sodium_bin2base64(text, text_size, bytes, TOKEN_BYTES + length,
					  sodium_base64_VARIANT_URLSAFE_NO_PADDING);
	link = psprintf("%s%ctoken=%s", url, strchr(url, '?') ? '&' : '?', text);
	pfree(text);
	pfree(bytes);
	return link;
}

bool
klm_unsubscribe_read(const KlmDomain *domain, const char *token, char **address, char **list,
					 KlmError *error)
{
	unsigned char bytes[MAX_TOKEN + 1];
	size_t		length = 0;
	KlmRing    *ring;
	KlmSecret  *memory;
	KlmSecret  *key;
	bool		missing;
	bool		ours = false;

	*address = *list = NULL;
	if (strlen(token) > MAX_TOKEN ||
		sodium_base642bin(bytes, MAX_TOKEN, token, strlen(token), NULL, &length, NULL,
						  sodium_base64_VARIANT_URLSAFE_NO_PADDING) != 0 ||
		length <= TOKEN_BYTES)
		return true;
	if (!klm_read_ring(&ring, &memory, &missing, error))
		return false;
	key = klm_secret_create(NULL, KLM_KEY_BYTES);
	for (int salt = 0; salt < domain->count && !ours; salt++)
	{
		unsigned char expected[TOKEN_BYTES];

		klm_derive((unsigned char *) key->data, ring->root, 1, KDF_TOKEN, domain, salt);
		hash_of(key, bytes + TOKEN_BYTES, length - TOKEN_BYTES, expected);
		ours = sodium_memcmp(expected, bytes, TOKEN_BYTES) == 0;
	}
	klm_secret_wipe(key);
	klm_secret_wipe(memory);
	if (ours)
	{
		/* Ours, so list and address are the texts that they were. */
		bytes[length] = '\0';
		*list = pstrdup((char *) bytes + TOKEN_BYTES);
		*address = pstrdup((char *) bytes + TOKEN_BYTES + strlen(*list) + 1);
	}
	return true;
}

static void
hash_of(const KlmSecret *key, const unsigned char *text, Size length, unsigned char *hash)
{
	unsigned char whole[crypto_auth_BYTES];

	StaticAssertStmt(TOKEN_BYTES <= crypto_auth_BYTES, "a token is a part of a hash");
	crypto_auth(whole, text, length, (const unsigned char *) key->data);
	memcpy(hash, whole, TOKEN_BYTES);
}
