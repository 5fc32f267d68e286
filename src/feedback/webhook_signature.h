/*-------------------------------------------------------------------------
 *
 * webhook_signature.h
 *		Is a webhook's request signed by its provider?
 *
 * In kliv_mail_net.  Pure, but for OpenSSL's libcrypto, which compares in constant
 * time.  All of it is about the bytes as they came; what they say, SQL reads
 * afterwards.  Anything malformed is not signed.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_WEBHOOK_SIGNATURE_H
#define KLM_WEBHOOK_SIGNATURE_H

#include "base/kliv_mail.h"

typedef struct KlmBytes
{
	const char *data;
	Size		length;
} KlmBytes;

/* SendGrid: ECDSA of P-256 over SHA-256; key (SPKI) and signature (DER) are in base64. */
extern bool klm_signed_by_ecdsa(const char *public_key, const char *signature, KlmBytes text);

/* Amazon SNS: RSA by the key of an X.509 certificate; version 1 is SHA-1, 2 is SHA-256. */
extern bool klm_signed_by_rsa(const char *certificate, const char *version, const char *signature,
							  KlmBytes text);

/* Mailgun: HMAC-SHA256 in hex. */
extern bool klm_signed_by_hmac(KlmBytes secret, const char *signature, KlmBytes text);

/*
 * Resend (Svix): a list of "v1,<base64 of HMAC-SHA256>" with spaces between, of which one
 * is enough; the secret is base64 behind "whsec_".
 */
extern bool klm_signed_by_svix(KlmBytes secret, const char *signatures, KlmBytes text);

/* Postmark: "Basic <base64 of user:password>"; the secret is both, or the password alone. */
extern bool klm_signed_by_basic(KlmBytes secret, const char *authorization);

/* Could the first three, and Svix's secret, ever verify anything?  For settings. */
extern bool klm_is_ecdsa_key(const char *public_key);
extern bool klm_is_rsa_certificate(const char *certificate);
extern bool klm_is_svix_secret(KlmBytes secret);

#endif							/* KLM_WEBHOOK_SIGNATURE_H */
