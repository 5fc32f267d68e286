/*-------------------------------------------------------------------------
 *
 * addresses.c
 *		mailbox(), is_address(), parse_addresses(), _may_send_as().
 *
 * Runs no SQL.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "base/encoding.h"
#include "base/error.h"
#include "base/text.h"
#include "message/address.h"

PG_FUNCTION_INFO_V1(kliv_mail_mailbox);
PG_FUNCTION_INFO_V1(kliv_mail_is_address);
PG_FUNCTION_INFO_V1(kliv_mail_parse_addresses);
PG_FUNCTION_INFO_V1(kliv_mail__may_send_as);

/* mailbox(address text, name text) */
Datum
kliv_mail_mailbox(PG_FUNCTION_ARGS)
{
	char	   *text = klm_argument(fcinfo, 0);
	char	   *name = klm_argument(fcinfo, 1);
	KlmAddress	address;
	KlmAddress	again;
	KlmError	error;
	char	   *result;

	if (text == NULL)
		klm_refuse("address", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Give an e-mail address.", "is NULL");
	if (!klm_parse_address(text, &address, &error))
		klm_raise("address", &error, false);
	if (name)
		name = klm_without_invisible(name);
	if (name == NULL || name[strspn(name, " \t")] == '\0')
		name = address.name;
	else if (klm_has_unsafe_char(name, false))
		klm_refuse("name", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "A name has no line breaks and no characters that cannot be seen.",
				   "\"%s\" cannot be a name", klm_shown(name, strlen(name)));

	/* What send() would refuse is refused here. */
	result = klm_format_address(name, address.addr);
	if (!klm_parse_address(result, &again, &error))
		klm_raise("name", &error, false);
	PG_RETURN_TEXT_P(cstring_to_text(klm_from_utf8(result)));
}

/* is_address(address text): an address alone, without a name; NULL gives false. */
Datum
kliv_mail_is_address(PG_FUNCTION_ARGS)
{
	char	   *value;
	KlmAddress	address;

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	value = klm_to_utf8_or_null(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_BOOL(value != NULL && klm_parse_address(value, &address, NULL) &&
				   address.name == NULL && strchr(value, '<') == NULL);
}

/* parse_addresses(list text) RETURNS TABLE (name text, address text) */
Datum
kliv_mail_parse_addresses(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	KlmAddress *addresses;
	int			count;
	KlmError	error;

	InitMaterializedSRF(fcinfo, 0);
	if (!klm_parse_address_list(klm_argument(fcinfo, 0), &addresses, &count, &error))
		klm_raise("list", &error, false);
	for (int i = 0; i < count; i++)
	{
		Datum		values[2] = {0};
		bool		nulls[2] = {false, false};

		if (addresses[i].name == NULL)
			nulls[0] = true;
		else
			values[0] = CStringGetTextDatum(klm_from_utf8(addresses[i].name));
		values[1] = CStringGetTextDatum(klm_from_utf8(addresses[i].addr));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* _may_send_as(address text, from_address text, allowed_senders text[]) */
Datum
kliv_mail__may_send_as(PG_FUNCTION_ARGS)
{
	Datum	   *elements;
	bool	   *nulls;
	char	  **senders = NULL;
	int			count = 0;

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	if (!PG_ARGISNULL(2))
	{
		deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), TEXTOID, -1, false, TYPALIGN_INT,
						  &elements, &nulls, &count);
		senders = palloc(Max(1, count) * sizeof(char *));
		for (int i = 0; i < count; i++)
			senders[i] = nulls[i] ? NULL : TextDatumGetCString(elements[i]);
	}
	PG_RETURN_BOOL(klm_may_send_as(text_to_cstring(PG_GETARG_TEXT_PP(0)),
								   PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1)),
								   senders, count));
}
