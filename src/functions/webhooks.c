/*-------------------------------------------------------------------------
 *
 * webhooks.c
 *		SQL functions about webhooks: configure_webhook(), and for
 *		ingest_webhook() _webhook_signed(), _request_text(), _classify_report().
 *
 * In kliv_mail_net.  Which bytes a provider signs and what its events say is
 * SQL (67_webhooks.sql, 68_webhook_events.sql): PostgreSQL's own parser of JSON
 * reads them, once they are known to be the provider's.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "db/account.h"
#include "db/owner_call.h"
#include "feedback/report.h"
#include "feedback/webhook_signature.h"
#include "hooks/secrets_in_logs.h"
#include "secret/seal.h"

/* No provider's secret is longer. */
#define MAX_SECRET 1000

PG_FUNCTION_INFO_V1(kliv_mail_configure_webhook);
PG_FUNCTION_INFO_V1(kliv_mail__webhook_signed);
PG_FUNCTION_INFO_V1(kliv_mail__request_text);
PG_FUNCTION_INFO_V1(kliv_mail__classify_report);

static Datum configure(FunctionCallInfo fcinfo);
static void check_values(const char *provider, const char *secret, const char *public_key,
						 const char *certificate);
static void binding_of(const char *provider, const KlmDomain *domain, KlmBinding *binding);
static KlmSecret *open_secret(FunctionCallInfo fcinfo, const char *provider);
static bool read_escape(const char **at, const char *end, uint32 *ch);
static int	code_unit(const char *from, const char *end);
static char *text_argument(FunctionCallInfo fcinfo, int number);

/* configure_webhook(provider, secret, public_key, topic_arn, certificate) */
Datum
kliv_mail_configure_webhook(PG_FUNCTION_ARGS)
{
	return klm_call_hidden(fcinfo, configure);
}

static Datum
configure(FunctionCallInfo fcinfo)
{
	char	   *provider = klm_argument(fcinfo, 0);
	char	   *secret = klm_argument(fcinfo, 1);
	char	   *public_key = klm_argument(fcinfo, 2);
	char	   *certificate = klm_argument(fcinfo, 4);
	MemoryContext context = CurrentMemoryContext;
	KlmCaller caller;
	KlmCall		call = {0};
	bytea	   *cipher = NULL;
	char	   *key_id = NULL;
	Datum		result;

	PreventCommandIfReadOnly("kliv_mail.configure_webhook()");
	klm_enter_owner(fcinfo, &caller);
	MemoryContextSwitchTo(context);

	/* Which arguments a provider has, SQL says; it raises for those that it has not. */
	klm_add_text(&call, provider);
	klm_add_bool(&call, secret != NULL);
	klm_add_bool(&call, public_key != NULL);
	klm_add_bool(&call, !PG_ARGISNULL(3));
	klm_add_bool(&call, certificate != NULL);
	klm_run(&call, "check_webhook", false);
	check_values(provider, secret, public_key, certificate);

	if (secret != NULL && secret[0])
	{
		KlmDomain	domain;
		KlmBinding	binding;
		KlmError	error;
		KlmSecret  *plain = klm_secret_create(secret, strlen(secret));
		bool		may_create;

		/* The lock of all that is sealed, which rotate_key() takes, too. */
		memset(&call, 0, sizeof(call));
		klm_add_text(&call, NULL);
		klm_add(&call, TIMESTAMPTZOID, (Datum) 0, true);
		klm_run(&call, "lock_accounts", false);
		may_create = klm_result_bool(1);
		MemoryContextSwitchTo(context);
		klm_load_domain(&domain);
		binding_of(provider, &domain, &binding);
		if (!klm_seal(plain, &binding, may_create, &cipher, &key_id, &error))
			klm_raise("secret", &error, true);
		klm_secret_wipe(plain);
	}

	memset(&call, 0, sizeof(call));
	klm_add_caller(&call, &caller);
	klm_add_text(&call, provider);
	klm_add_bool(&call, secret != NULL);
	klm_add_bytea(&call, cipher);
	klm_add_text(&call, secret && secret[0] ? klm_mask(secret) : NULL);
	klm_add_text(&call, key_id);
	klm_add_text(&call, public_key);
	klm_add_text(&call, klm_argument(fcinfo, 3));
	klm_add_text(&call, certificate);
	klm_run(&call, "save_webhook", false);
	result = klm_return_value(fcinfo, 1);
	klm_leave_owner(&caller);
	if (secret != NULL)
		explicit_bzero(secret, strlen(secret));
	return result;
}

/* What could never verify a signature is a mistake in copying. */
static void
check_values(const char *provider, const char *secret, const char *public_key,
			 const char *certificate)
{
	if (secret != NULL && secret[0])
	{
		KlmBytes	bytes = {secret, strlen(secret)};

		if (bytes.length > MAX_SECRET)
			klm_refuse("secret", ERRCODE_PROGRAM_LIMIT_EXCEEDED, true,
					   "Copy it from the provider's console.", "over %d characters", MAX_SECRET);
		if (strcmp(provider, "resend") == 0 && !klm_is_svix_secret(bytes))
			klm_refuse("secret", ERRCODE_INVALID_PARAMETER_VALUE, true,
					   "Copy the webhook's signing secret from Resend's console.",
					   "is not \"whsec_\" and base64");
	}
	if (public_key != NULL && public_key[0] && !klm_is_ecdsa_key(public_key))
		klm_refuse("public_key", ERRCODE_INVALID_PARAMETER_VALUE, true,
				   "Copy the verification key of the signed event webhook from SendGrid's console.",
				   "is not a P-256 public key in base64");
	if (certificate != NULL && certificate[0] && !klm_is_rsa_certificate(certificate))
		klm_refuse("certificate", ERRCODE_INVALID_PARAMETER_VALUE, true,
				   "Give the file that SigningCertURL of a notification names, with its BEGIN and "
				   "END lines; fetch it yourself, from https://sns.<region>.amazonaws.com/.",
				   "is not an X.509 certificate in PEM with an RSA key of 2048 bits or more");
}

/* A space: no account is named so. */
static void
binding_of(const char *provider, const KlmDomain *domain, KlmBinding *binding)
{
	memset(binding, 0, sizeof(KlmBinding));
	binding->account = psprintf("webhook %s", provider);
	binding->host = "";
	binding->domain = domain;
	binding->save = psprintf("SELECT kliv_mail.configure_webhook('%s', secret => 'the secret');",
							 provider);
}

/*
 * _webhook_signed(provider, secret_cipher, key_id, key, version, signature, body): key is
 * SendGrid's public key or Amazon's certificate.
 */
Datum
kliv_mail__webhook_signed(PG_FUNCTION_ARGS)
{
	char	   *provider = text_argument(fcinfo, 0);
	char	   *key = text_argument(fcinfo, 3);
	char	   *version = text_argument(fcinfo, 4);
	char	   *signature = text_argument(fcinfo, 5);
	bytea	   *body = PG_ARGISNULL(6) ? NULL : PG_GETARG_BYTEA_PP(6);
	KlmSecret  *secret = NULL;
	KlmBytes	text = {"", 0};
	KlmBytes	bytes = {"", 0};
	bool		ok = false;

	if (signature == NULL)
		PG_RETURN_BOOL(false);
	if (body != NULL)
	{
		text.data = VARDATA_ANY(body);
		text.length = VARSIZE_ANY_EXHDR(body);
	}
	if (!PG_ARGISNULL(1))
	{
		secret = open_secret(fcinfo, provider);
		bytes.data = secret->data;
		bytes.length = secret->length;
	}
	if (strcmp(provider, "sendgrid") == 0)
		ok = key != NULL && klm_signed_by_ecdsa(key, signature, text);
	else if (strcmp(provider, "ses") == 0)
		ok = key != NULL && version != NULL && klm_signed_by_rsa(key, version, signature, text);
	else if (secret != NULL)
		ok = strcmp(provider, "mailgun") == 0 ? klm_signed_by_hmac(bytes, signature, text) :
			strcmp(provider, "resend") == 0 ? klm_signed_by_svix(bytes, signature, text) :
			strcmp(provider, "postmark") == 0 && klm_signed_by_basic(bytes, signature);
	klm_secret_wipe(secret);
	PG_RETURN_BOOL(ok);
}

static KlmSecret *
open_secret(FunctionCallInfo fcinfo, const char *provider)
{
	MemoryContext context = CurrentMemoryContext;
	KlmDomain	domain;
	KlmBinding	binding;
	KlmSecret  *secret;
	KlmError	error;

	SPI_connect();
	MemoryContextSwitchTo(context);
	klm_load_domain(&domain);
	SPI_finish();
	binding_of(provider, &domain, &binding);
	if (!klm_open(PG_GETARG_BYTEA_PP(1), text_argument(fcinfo, 2), &binding, &secret, NULL, &error))
		klm_raise(NULL, &error, true);
	return secret;
}

/*
 * _request_text(body): the bytes as text that PostgreSQL's parser of JSON takes.  Providers
 * pass on what servers replied, cut anywhere: a byte that is no UTF-8, an escaped NUL and half
 * of a surrogate pair are U+FFFD, or one of a request's thousand events would lose the others.
 * Escapes of what is not ASCII become characters, and what the database's encoding lacks "?".
 */
Datum
kliv_mail__request_text(PG_FUNCTION_ARGS)
{
	bytea	   *body = PG_GETARG_BYTEA_PP(0);
	const char *at = VARDATA_ANY(body);
	const char *end = at + VARSIZE_ANY_EXHDR(body);
	StringInfoData text;

	initStringInfo(&text);
	while (at < end)
	{
		unsigned char utf8[MAX_MULTIBYTE_CHAR_LEN];
		uint32		ch = 0xFFFD;
		int			length = pg_utf_mblen((const unsigned char *) at);

		if (!read_escape(&at, end, &ch))
		{
			/* What an escaped backslash stands before is no escape. */
			if (end - at >= 2 && at[0] == '\\' && at[1] == '\\')
				length = 2;
			if (*at != 0 && length <= end - at &&
				(*at == '\\' || pg_utf8_islegal((const unsigned char *) at, length)))
			{
				appendBinaryStringInfo(&text, at, length);
				at += length;
				continue;
			}
			at++;
		}
		unicode_to_utf8(ch, utf8);
		appendBinaryStringInfo(&text, (char *) utf8, pg_utf_mblen(utf8));
	}
	PG_RETURN_TEXT_P(cstring_to_text(klm_from_utf8_lossy(text.data)));
}

/*
 * Is there a \uXXXX of what PostgreSQL's parser may not take?  Then *at moves behind it, or
 * behind the two of a pair.
 */
static bool
read_escape(const char **at, const char *end, uint32 *ch)
{
	int			first = code_unit(*at, end);
	int			second;

	if (first < 0 || (first > 0 && first < 0x80))
		return false;
	*at += 6;
	*ch = first == 0 || (first >= 0xD800 && first <= 0xDFFF) ? 0xFFFD : first;
	second = first >= 0xD800 && first < 0xDC00 ? code_unit(*at, end) : -1;
	if (second >= 0xDC00 && second <= 0xDFFF)
	{
		*at += 6;
		*ch = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
	}
	return true;
}

/* The number in \uXXXX, or -1. */
static int
code_unit(const char *from, const char *end)
{
	int			number = 0;

	if (end - from < 6 || from[0] != '\\' || from[1] != 'u')
		return -1;
	for (int i = 2; i < 6; i++)
	{
		if (!isxdigit((unsigned char) from[i]))
			return -1;
		number = number * 16 + (from[i] <= '9' ? from[i] - '0' : (from[i] | 0x20) - 'a' + 10);
	}
	return number;
}

/*
 * _classify_report(recipient, status, diagnostic, at_dot, OUT bounce_type, OUT code, OUT status,
 * OUT diagnostic, OUT reason, OUT hint): a refusal that a provider passes on, as parse_bounce()
 * judges one.
 */
Datum
kliv_mail__classify_report(PG_FUNCTION_ARGS)
{
	char	   *recipient = klm_argument(fcinfo, 0);
	char	   *status = klm_argument(fcinfo, 1);
	char	   *diagnostic = klm_argument(fcinfo, 2);
	KlmReported reported = {0};
	TupleDesc	desc;
	Datum		values[6] = {0};
	bool		nulls[6] = {false};
	const char *texts[6] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	reported.recipient = recipient ? klm_reported_address(recipient, strlen(recipient)) : NULL;
	reported.action = "failed";
	reported.status = klm_reported_status(status);
	reported.diagnostic = diagnostic ? klm_printable(diagnostic, strlen(diagnostic)) : NULL;
	klm_classify_reported(&reported, false);

	texts[0] = reported.bounce_type;
	texts[2] = reported.status;
	texts[3] = reported.diagnostic;
	texts[4] = reported.reason;
	texts[5] = reported.hint;
	for (int i = 0; i < lengthof(texts); i++)
	{
		nulls[i] = texts[i] == NULL;
		if (texts[i] != NULL)
			values[i] = CStringGetTextDatum(klm_from_utf8_lossy(texts[i]));
	}
	values[1] = Int32GetDatum(reported.code);
	nulls[1] = reported.code == 0;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

static char *
text_argument(FunctionCallInfo fcinfo, int number)
{
	return PG_ARGISNULL(number) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(number));
}
