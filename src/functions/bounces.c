/*-------------------------------------------------------------------------
 *
 * bounces.c
 *		SQL functions about mail that comes back: parse_bounce(), _read_bounce(),
 *		_bounce_token_read(), _filters_by_recipient().
 *
 * In kliv_mail_net.  What follows from a report is SQL (66_bounces.sql).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "db/account.h"
#include "feedback/bounce.h"
#include "secret/bounce_token.h"
#include "smtp/verdict.h"

/* The columns of parse_bounce(), then those of _read_bounce(). */
#define PARSE_COLUMNS 8
#define READ_COLUMNS 13

PG_FUNCTION_INFO_V1(kliv_mail_parse_bounce);
PG_FUNCTION_INFO_V1(kliv_mail__bounce_token_read);
PG_FUNCTION_INFO_V1(kliv_mail__filters_by_recipient);

static void put_row(FunctionCallInfo fcinfo, const KlmReport *report, const KlmReported *reported);
static Datum text_or_null(const char *utf8, bool *null);

/* parse_bounce(raw) and _read_bounce(raw): a row for each recipient, or one that has none. */
Datum
kliv_mail_parse_bounce(PG_FUNCTION_ARGS)
{
	static const KlmReported nobody;
	bytea	   *raw;
	KlmReport  *report = palloc(sizeof(KlmReport));

	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("raw: must not be null"),
				 errhint("Give the whole mail, header and body, as it was received.")));
	raw = PG_GETARG_BYTEA_PP(0);
	klm_read_bounce(VARDATA_ANY(raw), VARSIZE_ANY_EXHDR(raw), report);
	if (report->count == 0)
		put_row(fcinfo, report, &nobody);
	for (int i = 0; i < report->count; i++)
		put_row(fcinfo, report, &report->recipients[i]);
	return (Datum) 0;
}

/* _bounce_token_read(token): the delivery, or NULL. */
Datum
kliv_mail__bounce_token_read(PG_FUNCTION_ARGS)
{
	char	   *token = text_to_cstring(PG_GETARG_TEXT_PP(0));
	MemoryContext context = CurrentMemoryContext;
	KlmDomain	domain;
	KlmError	error;
	int64		delivery_id;

	SPI_connect();
	MemoryContextSwitchTo(context);
	klm_load_domain(&domain);
	SPI_finish();
	if (!klm_bounce_token_read(&domain, token, (int) (klm_now() / USECS_PER_DAY), &delivery_id,
							   &error))
		klm_raise(NULL, &error, false);
	if (delivery_id == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT64(delivery_id);
}

/* _filters_by_recipient(address) */
Datum
kliv_mail__filters_by_recipient(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(klm_filters_by_recipient(text_to_cstring(PG_GETARG_TEXT_PP(0))));
}

static void
put_row(FunctionCallInfo fcinfo, const KlmReport *report, const KlmReported *reported)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum		values[READ_COLUMNS];
	bool		nulls[READ_COLUMNS] = {false};
	Datum		tokens[KLM_TOKENS_MAX];

	values[0] = text_or_null(reported->recipient, &nulls[0]);
	values[1] = text_or_null(reported->action, &nulls[1]);
	values[2] = text_or_null(reported->status, &nulls[2]);
	values[3] = text_or_null(reported->bounce_type, &nulls[3]);
	values[4] = CStringGetTextDatum(klm_report_type_name(report->type));
	values[5] = text_or_null(reported->diagnostic, &nulls[5]);
	values[6] = text_or_null(report->message_id, &nulls[6]);
	values[7] = text_or_null(report->reporting_mta, &nulls[7]);
	if (result->setDesc->natts > PARSE_COLUMNS)
	{
		for (int i = 0; i < report->token_count; i++)
			tokens[i] = CStringGetTextDatum(report->tokens[i]);
		values[8] = text_or_null(reported->original, &nulls[8]);
		values[9] = Int32GetDatum(reported->code);
		nulls[9] = reported->code == 0;
		values[10] = text_or_null(reported->reason, &nulls[10]);
		values[11] = text_or_null(reported->hint, &nulls[11]);
		values[12] = PointerGetDatum(construct_array(tokens, report->token_count, TEXTOID, -1,
													 false, TYPALIGN_INT));
	}
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

static Datum
text_or_null(const char *utf8, bool *null)
{
	*null = utf8 == NULL;
	return utf8 ? CStringGetTextDatum(klm_from_utf8_lossy(utf8)) : (Datum) 0;
}
