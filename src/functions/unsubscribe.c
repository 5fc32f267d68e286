/*-------------------------------------------------------------------------
 *
 * unsubscribe.c
 *		SQL functions: an unsubscribe link is made, and its token read.
 *
 * In kliv_mail_net.  Who may, and what a token does, is SQL (75_brand.sql).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"

#include "base/encoding.h"
#include "base/error.h"
#include "db/account.h"
#include "secret/unsubscribe_token.h"

PG_FUNCTION_INFO_V1(kliv_mail__unsubscribe_link);
PG_FUNCTION_INFO_V1(kliv_mail__unsubscribe_read);

/* _unsubscribe_link(url, address, list, may_create) */
Datum
kliv_mail__unsubscribe_link(PG_FUNCTION_ARGS)
{
	char	   *url = klm_to_utf8(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	char	   *address = klm_to_utf8(text_to_cstring(PG_GETARG_TEXT_PP(1)));
	char	   *list = klm_to_utf8(text_to_cstring(PG_GETARG_TEXT_PP(2)));
	char	   *link;
	MemoryContext context = CurrentMemoryContext;
	KlmSecret  *key;
	KlmError	error;

	SPI_connect();
	MemoryContextSwitchTo(context);
	if (!klm_load_token_key(PG_GETARG_BOOL(3), &key, &error))
		klm_raise(NULL, &error, false);
	link = klm_unsubscribe_link(key, url, address, list);
	klm_secret_wipe(key);
	SPI_finish();
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
	char	   *address;
	char	   *list;
	MemoryContext context = CurrentMemoryContext;
	KlmDomain	domain;
	KlmError	error;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	SPI_connect();
	MemoryContextSwitchTo(context);
	klm_load_domain(&domain);
	SPI_finish();
	if (!klm_unsubscribe_read(&domain, token, &address, &list, &error))
		klm_raise(NULL, &error, false);
	if (address != NULL)
	{
		values[0] = CStringGetTextDatum(klm_from_utf8(address));
		values[1] = CStringGetTextDatum(klm_from_utf8(list));
		nulls[0] = nulls[1] = false;
	}
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}
