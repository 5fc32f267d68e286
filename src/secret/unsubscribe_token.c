/*-------------------------------------------------------------------------
 *
 * unsubscribe_token.c
 *		The links by which recipients leave a list; see unsubscribe.h.
 *
 * Layer: edge (the key ring, through crypto.c), with its SQL entry points.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sodium.h>

#include "access/htup_details.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"

#include "base/encoding.h"
#include "base/error.h"
#include "secret/seal.h"
#include "secret/unsubscribe_token.h"

/* Longer than any address and list name; what is longer is no token of ours. */
#define MAX_TOKEN 600

PG_FUNCTION_INFO_V1(kliv_mail__unsubscribe_link);
PG_FUNCTION_INFO_V1(kliv_mail__unsubscribe_read);

bool
klm_unsubscribe_link(const char *url, const char *address, const char *list, bool may_create,
					 char **link, KlmError *error)
{
	Size		list_length = strlen(list) + 1;
	Size		length = list_length + strlen(address);
	Size		text_size;
	unsigned char *bytes = palloc(KLM_TOKEN_BYTES + length);
	char	   *text;

	memcpy(bytes + KLM_TOKEN_BYTES, list, list_length);
	memcpy(bytes + KLM_TOKEN_BYTES + list_length, address, length - list_length);
	if (!klm_token((char *) bytes + KLM_TOKEN_BYTES, length, may_create, bytes, error))
		return false;
	text_size = sodium_base64_encoded_len(KLM_TOKEN_BYTES + length,
										  sodium_base64_VARIANT_URLSAFE_NO_PADDING);
	text = palloc(text_size);
	sodium_bin2base64(text, text_size, bytes, KLM_TOKEN_BYTES + length,
					  sodium_base64_VARIANT_URLSAFE_NO_PADDING);
	*link = psprintf("%s%ctoken=%s", url, strchr(url, '?') ? '&' : '?', text);
	pfree(text);
	pfree(bytes);
	return true;
}

/* _unsubscribe_link(url, address, list, may_create) */
Datum
kliv_mail__unsubscribe_link(PG_FUNCTION_ARGS)
{
	char	   *url = klm_to_utf8(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	char	   *address = klm_to_utf8(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	char	   *list = klm_to_utf8(text_to_cstring(PG_GETARG_TEXT_PP(2)));
	char	   *link;
	KlmError	error;

	if (!klm_unsubscribe_link(url, address, list, PG_GETARG_BOOL(3), &link, &error))
		klm_raise(NULL, &error, false);
	PG_RETURN_TEXT_P(cstring_to_text(klm_from_utf8(link)));
}

/* _unsubscribe_read(token, OUT address, OUT list): NULL, NULL for what is no token of ours. */
Datum
kliv_mail__unsubscribe_read(PG_FUNCTION_ARGS)
{
	char	   *token = text_to_cstring(PG_GETARG_TEXT_PP(0));
	TupleDesc	desc;
	Datum		values[2] = {0};
	bool		nulls[2] = {true, true};
	unsigned char bytes[MAX_TOKEN + 1];
	unsigned char expected[KLM_TOKEN_BYTES];
	size_t		length = 0;
	KlmError	error;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (strlen(token) <= MAX_TOKEN &&
		sodium_base642bin(bytes, MAX_TOKEN, token, strlen(token), NULL, &length, NULL,
						  sodium_base64_VARIANT_URLSAFE_NO_PADDING) == 0 &&
		length > KLM_TOKEN_BYTES)
	{
		if (!klm_token((char *) bytes + KLM_TOKEN_BYTES, length - KLM_TOKEN_BYTES, false, expected,
					   &error))
			klm_raise(NULL, &error, false);
		if (sodium_memcmp(expected, bytes, KLM_TOKEN_BYTES) == 0)
		{
			char	   *list = (char *) bytes + KLM_TOKEN_BYTES;

			/* Ours, so list and address are the texts that they were. */
			bytes[length] = '\0';
			values[0] = CStringGetTextDatum(klm_from_utf8(list + strlen(list) + 1));
			values[1] = CStringGetTextDatum(klm_from_utf8(list));
			nulls[0] = nulls[1] = false;
		}
	}
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}
