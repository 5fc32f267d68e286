/*-------------------------------------------------------------------------
 *
 * webhook_signature.c
 *		Is a webhook's request signed by its provider?
 *
 * OpenSSL's own memory is freed on every path; nothing here raises, but palloc, and
 * that only while nothing of OpenSSL's is held.  OpenSSL leaves an error queue
 * to its caller, which is emptied, so that a TLS connection of the session
 * does not find it.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/objects.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "feedback/webhook_signature.h"

#define HMAC_BYTES 32

/* No key, signature, certificate or list of signatures of a provider is longer. */
#define MAX_BASE64 8192
#define MAX_CERTIFICATE 16384

static bool decode_base64(const char *text, Size length, KlmBytes *bytes);
static bool verify(EVP_PKEY *key, const EVP_MD *digest, KlmBytes signature, KlmBytes text);
static EVP_PKEY *ecdsa_key(const char *public_key);
static EVP_PKEY *rsa_key(const char *certificate);
static bool svix_key(KlmBytes secret, KlmBytes *key);
static bool hmac(KlmBytes key, KlmBytes text, unsigned char *mac);

bool
klm_signed_by_ecdsa(const char *public_key, const char *signature, KlmBytes text)
{
	KlmBytes	bytes;

	return decode_base64(signature, strlen(signature), &bytes) &&
		verify(ecdsa_key(public_key), EVP_sha256(), bytes, text);
}

bool
klm_signed_by_rsa(const char *certificate, const char *version, const char *signature,
				  KlmBytes text)
{
	const EVP_MD *digest = strcmp(version, "1") == 0 ? EVP_sha1() :
		strcmp(version, "2") == 0 ? EVP_sha256() : NULL;
	KlmBytes	bytes;

	return digest != NULL && decode_base64(signature, strlen(signature), &bytes) &&
		verify(rsa_key(certificate), digest, bytes, text);
}

bool
klm_signed_by_hmac(KlmBytes secret, const char *signature, KlmBytes text)
{
	static const char digits[] = "0123456789abcdef";
	unsigned char mac[HMAC_BYTES];
	char		hex[2 * HMAC_BYTES];

	if (strlen(signature) != sizeof(hex) || !hmac(secret, text, mac))
		return false;
	for (int i = 0; i < HMAC_BYTES; i++)
	{
		hex[2 * i] = digits[mac[i] >> 4];
		hex[2 * i + 1] = digits[mac[i] & 15];
	}
	return CRYPTO_memcmp(hex, signature, sizeof(hex)) == 0;
}

bool
klm_signed_by_svix(KlmBytes secret, const char *signatures, KlmBytes text)
{
	unsigned char mac[HMAC_BYTES];
	KlmBytes	key;
	bool		found = false;
	bool		ok;

	if (strlen(signatures) > MAX_BASE64 || !svix_key(secret, &key))
		return false;
	ok = hmac(key, text, mac);
	OPENSSL_cleanse((void *) key.data, key.length);
	while (ok && *signatures)
	{
		Size		length = strcspn(signatures, " ");
		KlmBytes	given;

		if (length > 3 && strncmp(signatures, "v1,", 3) == 0 &&
			decode_base64(signatures + 3, length - 3, &given) && given.length == HMAC_BYTES)
			found |= CRYPTO_memcmp(mac, given.data, HMAC_BYTES) == 0;
		signatures += length;
		signatures += strspn(signatures, " ");
	}
	return found;
}

bool
klm_signed_by_basic(KlmBytes secret, const char *authorization)
{
	KlmBytes	given;
	const char *colon;

	if (pg_strncasecmp(authorization, "Basic ", 6) != 0)
		return false;
	authorization += 6;
	authorization += strspn(authorization, " ");
	if (!decode_base64(authorization, strlen(authorization), &given))
		return false;
	colon = memchr(given.data, ':', given.length);
	if (memchr(secret.data, ':', secret.length) == NULL && colon != NULL)
	{
		given.length -= colon + 1 - given.data;
		given.data = colon + 1;
	}
	return given.length == secret.length && secret.length > 0 &&
		CRYPTO_memcmp(given.data, secret.data, secret.length) == 0;
}

bool
klm_is_ecdsa_key(const char *public_key)
{
	EVP_PKEY   *key = ecdsa_key(public_key);

	EVP_PKEY_free(key);
	return key != NULL;
}

bool
klm_is_rsa_certificate(const char *certificate)
{
	EVP_PKEY   *key = rsa_key(certificate);

	EVP_PKEY_free(key);
	return key != NULL;
}

bool
klm_is_svix_secret(KlmBytes secret)
{
	KlmBytes	key;

	if (!svix_key(secret, &key))
		return false;
	OPENSSL_cleanse((void *) key.data, key.length);
	return true;
}

/* Takes the key; NULL is none. */
static bool
verify(EVP_PKEY *key, const EVP_MD *digest, KlmBytes signature, KlmBytes text)
{
	EVP_MD_CTX *context;
	bool		ok = false;

	if (key == NULL)
		return false;
	context = EVP_MD_CTX_new();
	if (context != NULL && EVP_DigestVerifyInit(context, NULL, digest, NULL, key) == 1)
		ok = EVP_DigestVerify(context, (const unsigned char *) signature.data, signature.length,
							  (const unsigned char *) text.data, text.length) == 1;
	EVP_MD_CTX_free(context);
	EVP_PKEY_free(key);
	ERR_clear_error();
	return ok;
}

static EVP_PKEY *
ecdsa_key(const char *public_key)
{
	KlmBytes	spki;
	const unsigned char *at;
	EVP_PKEY   *key;
	char		group[32];

	if (!decode_base64(public_key, strlen(public_key), &spki))
		return NULL;
	at = (const unsigned char *) spki.data;
	key = d2i_PUBKEY(NULL, &at, (long) spki.length);
	if (key != NULL &&
		(EVP_PKEY_get_group_name(key, group, sizeof(group), NULL) != 1 ||
		 OBJ_txt2nid(group) != NID_X9_62_prime256v1))
	{
		EVP_PKEY_free(key);
		key = NULL;
	}
	ERR_clear_error();
	return key;
}

static EVP_PKEY *
rsa_key(const char *certificate)
{
	Size		length = strlen(certificate);
	BIO		   *bio = length <= MAX_CERTIFICATE ? BIO_new_mem_buf(certificate, (int) length) : NULL;
	X509	   *x509 = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
	EVP_PKEY   *key = x509 ? X509_get_pubkey(x509) : NULL;

	X509_free(x509);
	BIO_free(bio);
	if (key != NULL && (EVP_PKEY_get_base_id(key) != EVP_PKEY_RSA || EVP_PKEY_get_bits(key) < 2048))
	{
		EVP_PKEY_free(key);
		key = NULL;
	}
	ERR_clear_error();
	return key;
}

/* palloc'd. */
static bool
svix_key(KlmBytes secret, KlmBytes *key)
{
	if (secret.length <= 6 || strncmp(secret.data, "whsec_", 6) != 0)
		return false;
	return decode_base64(secret.data + 6, secret.length - 6, key);
}

/* palloc'd; false where it is empty, too long, or no base64 as the standard has it. */
static bool
decode_base64(const char *text, Size length, KlmBytes *bytes)
{
	unsigned char *out;
	int			count;

	if (length == 0 || length > MAX_BASE64 || length % 4 != 0 || memchr(text, '\0', length) != NULL)
		return false;
	out = palloc(length);
	/* It skips spaces at either end, and counts the padding. */
	count = EVP_DecodeBlock(out, (const unsigned char *) text, (int) length);
	if (count != (int) (length / 4 * 3))
		return false;
	count -= (text[length - 1] == '=') + (text[length - 2] == '=');
	bytes->data = (const char *) out;
	bytes->length = count;
	return count > 0;
}

static bool
hmac(KlmBytes key, KlmBytes text, unsigned char *mac)
{
	unsigned int length = 0;
	bool		ok = HMAC(EVP_sha256(), key.data, (int) key.length,
						  (const unsigned char *) text.data, text.length, mac, &length) != NULL &&
		length == HMAC_BYTES;

	ERR_clear_error();
	return ok;
}
