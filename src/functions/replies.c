/*-------------------------------------------------------------------------
 *
 * replies.c
 *		SQL functions about replies: classify_reply(), _read_reply().
 *
 * Runs no SQL.  In kliv_mail_net.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "base/text.h"
#include "smtp/providers.h"
#include "smtp/reply_parse.h"
#include "smtp/verdict.h"

PG_FUNCTION_INFO_V1(kliv_mail_classify_reply);
PG_FUNCTION_INFO_V1(kliv_mail__read_reply);

static KlmStage stage_argument(FunctionCallInfo fcinfo, int number);
static void put_row(FunctionCallInfo fcinfo, Datum *values, bool *nulls);
static Datum text_or_null(const char *utf8, bool *null);

/* classify_reply(stage, reply, provider) */
Datum
kliv_mail_classify_reply(PG_FUNCTION_ARGS)
{
	KlmStage	stage = stage_argument(fcinfo, 0);
	char	   *raw;
	char	   *provider = NULL;
	KlmReply	reply;
	KlmDecision decision;
	Datum		values[5];
	bool		nulls[5] = {false};
	Interval   *pause;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("reply: must not be null"),
				 errhint("Give the server's reply; '' stands for a connection that was lost "
				"without one.")));
	raw = klm_argument(fcinfo, 1);
	if (!PG_ARGISNULL(2))
	{
		provider = klm_argument(fcinfo, 2);
		if (klm_find_provider(provider))
			provider = pstrdup(klm_find_provider(provider)->name);
		else
			klm_refuse("provider", ERRCODE_INVALID_PARAMETER_VALUE, false,
					   psprintf("Choose one of %s; or leave it out.", klm_provider_names()),
					   "\"%s\" is not known", klm_shown(provider, strlen(provider)));
	}

	klm_read_reply(stage, raw, strlen(raw), &reply);
	klm_classify_reply(&reply, provider, NULL, reply.code == 0, klm_now(), &decision);

	values[0] = CStringGetTextDatum(klm_verdict_name(decision.verdict));
	values[1] = CStringGetTextDatum(klm_scope_name(decision.scope));
	values[2] = text_or_null(decision.bounce_type, &nulls[2]);
	pause = palloc0(sizeof(Interval));
	pause->time = (TimeOffset) decision.pause_s * USECS_PER_SEC;
	values[3] = IntervalPGetDatum(pause);
	nulls[3] = decision.pause_s == 0;
	values[4] = CStringGetTextDatum(decision.reason);

	InitMaterializedSRF(fcinfo, 0);
	put_row(fcinfo, values, nulls);
	return (Datum) 0;
}

/* _read_reply(stage, raw, provider): what the bytes become; one row. */
Datum
kliv_mail__read_reply(PG_FUNCTION_ARGS)
{
	KlmStage	stage = stage_argument(fcinfo, 0);
	bytea	   *raw = PG_GETARG_BYTEA_PP(1);
	KlmReply	reply;
	Datum		values[4];
	bool		nulls[4] = {false};
	char	   *id;

	klm_read_reply(stage, VARDATA_ANY(raw), VARSIZE_ANY_EXHDR(raw), &reply);
	id = klm_server_message_id(&reply, NULL);
	values[0] = Int32GetDatum(reply.code);
	values[1] = text_or_null(reply.enhanced[0] ? reply.enhanced : NULL, &nulls[1]);
	values[2] = CStringGetTextDatum(klm_from_utf8_lossy(reply.text));
	values[3] = text_or_null(id, &nulls[3]);

	InitMaterializedSRF(fcinfo, 0);
	put_row(fcinfo, values, nulls);
	return (Datum) 0;
}

static KlmStage
stage_argument(FunctionCallInfo fcinfo, int number)
{
	char	   *name;
	KlmStage	stage;

	if (PG_ARGISNULL(number))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("stage: must not be null"),
				 errhint("Choose one of connect, greeting, tls, ehlo, auth, mail, rcpt, data, "
				"dot.")));
	name = klm_argument(fcinfo, number);
	if (!klm_stage_by_name(name, &stage))
		klm_refuse("stage", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Choose one of connect, greeting, tls, ehlo, auth, mail, rcpt, data, dot.",
				   "\"%s\" is not known", klm_shown(name, strlen(name)));
	return stage;
}

static void
put_row(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

static Datum
text_or_null(const char *utf8, bool *null)
{
	*null = utf8 == NULL;
	return utf8 ? CStringGetTextDatum(klm_from_utf8_lossy(utf8)) : (Datum) 0;
}
