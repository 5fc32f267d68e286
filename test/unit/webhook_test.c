/*-------------------------------------------------------------------------
 *
 * webhook_test.c
 *		Unit tests of src/feedback/webhook_signature.c: what is signed here verifies,
 *		and no longer so with one byte changed.
 *
 * Build (libpgcommon and libpgport are PostgreSQL's frontend libraries):
 *	cc -Isrc -I$(pg_config --includedir-server) -o webhook_test
 *		test/unit/webhook_test.c src/feedback/webhook_signature.c
 *		-L$(pg_config --pkglibdir) -L$(pg_config --libdir) -lpgcommon -lpgport -lcrypto
 * Ends with "N passed, N failed".
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

#include "feedback/webhook_signature.h"

#include "counting.h"
#include "outside.h"

static const char body_text[] = "1600112502[{\"email\":\"a@example.com\",\"event\":\"bounce\"}]\r\n";
static const KlmBytes body = {body_text, sizeof(body_text) - 1};

static char *
base64(const unsigned char *bytes, Size length)
{
	char	   *text = palloc(length * 2 + 8);

	EVP_EncodeBlock((unsigned char *) text, bytes, (int) length);
	return text;
}

static char *
sign(EVP_PKEY *key, const EVP_MD *digest)
{
	EVP_MD_CTX *context = EVP_MD_CTX_new();
	unsigned char signature[1024];
	size_t		length = sizeof(signature);

	if (EVP_DigestSignInit(context, NULL, digest, NULL, key) != 1 ||
		EVP_DigestSign(context, signature, &length, (const unsigned char *) body.data,
					   body.length) != 1)
		abort();
	EVP_MD_CTX_free(context);
	return base64(signature, length);
}

static char *
public_key(EVP_PKEY *key)
{
	unsigned char *spki = NULL;
	int			length = i2d_PUBKEY(key, &spki);
	char	   *text = base64(spki, length);

	OPENSSL_free(spki);
	return text;
}

static char *
certificate(EVP_PKEY *key)
{
	X509	   *x509 = X509_new();
	BIO		   *bio = BIO_new(BIO_s_mem());
	char	   *data;
	char	   *text;
	long		length;

	ASN1_INTEGER_set(X509_get_serialNumber(x509), 1);
	X509_gmtime_adj(X509_getm_notBefore(x509), 0);
	X509_gmtime_adj(X509_getm_notAfter(x509), 3600);
	X509_set_pubkey(x509, key);
	if (X509_sign(x509, key, EVP_sha256()) == 0 || PEM_write_bio_X509(bio, x509) != 1)
		abort();
	length = BIO_get_mem_data(bio, &data);
	text = pnstrdup(data, length);
	BIO_free(bio);
	X509_free(x509);
	return text;
}

/* The body with one byte changed, or cut. */
static KlmBytes
altered(int at)
{
	char	   *copy = pnstrdup(body.data, body.length);
	KlmBytes	other = {copy, body.length};

	if (at < 0)
		other.length -= 2;
	else
		copy[at] ^= 1;
	return other;
}

static void
test_ecdsa(void)
{
	EVP_PKEY   *key = EVP_EC_gen("P-256");
	EVP_PKEY   *other = EVP_EC_gen("P-256");
	EVP_PKEY   *curve = EVP_EC_gen("P-384");
	char	   *signature = sign(key, EVP_sha256());

	check(klm_signed_by_ecdsa(public_key(key), signature, body), "ECDSA", signature);
	check(!klm_signed_by_ecdsa(public_key(other), signature, body), "another key", "");
	check(!klm_signed_by_ecdsa(public_key(curve), sign(curve, EVP_sha256()), body), "P-384", "");
	for (int i = -1; i < (int) body.length; i++)
		check(!klm_signed_by_ecdsa(public_key(key), signature, altered(i)), "a changed body", "");
	for (int i = 0; signature[i]; i++)
	{
		char	   *copy = pstrdup(signature);

		/* The last one's lower bits mean nothing, and Q differs from A in the upper ones. */
		copy[i] = copy[i] == 'A' ? 'Q' : 'A';
		check(!klm_signed_by_ecdsa(public_key(key), copy, body), "a changed signature", copy);
	}
	check(!klm_signed_by_ecdsa(public_key(key), "", body), "no signature", "");
	check(!klm_signed_by_ecdsa("", signature, body), "no key", "");
	check(klm_is_ecdsa_key(public_key(key)) && !klm_is_ecdsa_key(public_key(curve)) &&
		  !klm_is_ecdsa_key("AAAA") && !klm_is_ecdsa_key(certificate(key)), "is it a key?", "");
}

static void
test_rsa(void)
{
	EVP_PKEY   *key = EVP_RSA_gen(2048);
	EVP_PKEY   *weak = EVP_RSA_gen(1024);
	EVP_PKEY   *ec = EVP_EC_gen("P-256");
	char	   *pem = certificate(key);
	char	   *one = sign(key, EVP_sha1());
	char	   *two = sign(key, EVP_sha256());

	check(klm_signed_by_rsa(pem, "1", one, body) && klm_signed_by_rsa(pem, "2", two, body), "RSA", "");
	check(!klm_signed_by_rsa(pem, "2", one, body) && !klm_signed_by_rsa(pem, "1", two, body) &&
		  !klm_signed_by_rsa(pem, "3", two, body) && !klm_signed_by_rsa(pem, "", two, body),
		  "another version", "");
	check(!klm_signed_by_rsa(certificate(weak), "2", sign(weak, EVP_sha256()), body), "1,024 bits", "");
	check(!klm_signed_by_rsa(certificate(ec), "2", sign(ec, EVP_sha256()), body), "no RSA", "");
	for (int i = -1; i < (int) body.length; i++)
		check(!klm_signed_by_rsa(pem, "2", two, altered(i)), "a changed body", "");
	check(klm_is_rsa_certificate(pem) && !klm_is_rsa_certificate("") &&
		  !klm_is_rsa_certificate("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n") &&
		  !klm_is_rsa_certificate(certificate(weak)) && !klm_is_rsa_certificate(certificate(ec)),
		  "is it a certificate?", "");
}

static void
test_hmac(void)
{
	static const KlmBytes secret = {"key-TEST", 8};
	static const KlmBytes svix = {"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 38};
	unsigned char mac[32];
	unsigned char key[64];
	char		hex[65];
	char	   *signature;
	int			length;

	HMAC(EVP_sha256(), secret.data, (int) secret.length, (const unsigned char *) body.data,
		 body.length, mac, NULL);
	for (int i = 0; i < 32; i++)
		snprintf(hex + 2 * i, 3, "%02x", mac[i]);
	check(klm_signed_by_hmac(secret, hex, body), "HMAC in hex", hex);
	for (int i = -1; i < (int) body.length; i++)
		check(!klm_signed_by_hmac(secret, hex, altered(i)), "a changed body", "");
	hex[63] ^= 1;
	check(!klm_signed_by_hmac(secret, hex, body) && !klm_signed_by_hmac(secret, "", body),
		  "a changed HMAC", "");

	/* The key is 24 bytes, so its base64 has no padding. */
	length = EVP_DecodeBlock(key, (const unsigned char *) svix.data + 6, (int) svix.length - 6);
	HMAC(EVP_sha256(), key, length, (const unsigned char *) body.data, body.length, mac, NULL);
	signature = base64(mac, 32);
	check(klm_signed_by_svix(svix, psprintf("v1,%s", signature), body), "Svix", signature);
	check(klm_signed_by_svix(svix, psprintf("v1,AAAA v2,x  v1,%s v1", signature), body), "one of a list", "");
	check(!klm_signed_by_svix(svix, psprintf("v1a,%s", signature), body) &&
		  !klm_signed_by_svix(svix, psprintf("v2,%s", signature), body) &&
		  !klm_signed_by_svix(svix, signature, body) && !klm_signed_by_svix(svix, "v1,", body) &&
		  !klm_signed_by_svix(svix, "", body) && !klm_signed_by_svix(secret, "v1,AAAA", body),
		  "no Svix", "");
	for (int i = -1; i < (int) body.length; i++)
		check(!klm_signed_by_svix(svix, psprintf("v1,%s", signature), altered(i)), "a changed body", "");
	check(klm_is_svix_secret(svix) && !klm_is_svix_secret(secret), "is it a secret?", "");
}

static void
test_basic(void)
{
	static const KlmBytes both = {"hook:s3cret", 11};
	static const KlmBytes alone = {"s3cret", 6};
	static const KlmBytes none = {"", 0};

	check(klm_signed_by_basic(both, "Basic aG9vazpzM2NyZXQ=") &&
		  klm_signed_by_basic(alone, "basic  aG9vazpzM2NyZXQ="), "basic", "");
	check(!klm_signed_by_basic(both, "Basic aG9vazpzM2NyZXR4") &&
		  !klm_signed_by_basic(both, "Bearer aG9vazpzM2NyZXQ=") &&
		  !klm_signed_by_basic(both, "aG9vazpzM2NyZXQ=") && !klm_signed_by_basic(both, "Basic ") &&
		  !klm_signed_by_basic(none, "Basic Og==") && !klm_signed_by_basic(alone, "Basic czNjcmV0eA=="),
		  "not basic", "");
}

int
main(void)
{
	test_ecdsa();
	test_rsa();
	test_hmac();
	test_basic();
	printf("%d passed, %d failed\n", passed, failed);
	return failed > 0;
}
