/*-------------------------------------------------------------------------
 *
 * webhook.c
 *		Fuzz target: signatures, keys and certificates of webhooks' requests.
 *
 * Input, with NULs between: a byte for the kind, a key, a signature, the body.
 * Nobody who does not have the key has a signature.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feedback/webhook_signature.h"
#include "fuzz.h"

int
LLVMFuzzerTestOneInput(const uint8 *data, Size size)
{
	static const KlmBytes secret = {"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 38};
	char		kind = size > 0 ? (char) data[0] : 0;
	char	   *key;
	char	   *signature;
	KlmBytes	given;
	KlmBytes	body;
	char	   *copy;

	if (size == 0)
		return 0;
	data++;
	size--;
	key = fuzz_text(&data, &size);
	signature = fuzz_text(&data, &size);
	given.data = key;
	given.length = strlen(key);
	copy = palloc(size);
	memcpy(copy, data, size);
	body.data = copy;
	body.length = size;

	/* What the body's sender chose, by our secret. */
	HOLDS(!klm_signed_by_hmac(secret, signature, body));
	HOLDS(!klm_signed_by_svix(secret, signature, body));
	HOLDS(!klm_signed_by_basic(secret, signature));

	/* What an administrator typed, and signatures by it. */
	switch (kind % 5)
	{
		case 0:
			HOLDS(!klm_signed_by_ecdsa(key, signature, body) || klm_is_ecdsa_key(key));
			break;
		case 1:
			HOLDS(!klm_signed_by_rsa(key, "1", signature, body) || klm_is_rsa_certificate(key));
			HOLDS(!klm_signed_by_rsa(key, "3", signature, body));
			break;
		case 2:
			HOLDS(!klm_signed_by_svix(given, signature, body) || klm_is_svix_secret(given));
			break;
		case 3:
			(void) klm_signed_by_hmac(given, signature, body);
			break;
		default:
			(void) klm_signed_by_basic(given, signature);
	}
	fuzz_free_all();
	return 0;
}
