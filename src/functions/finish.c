/*-------------------------------------------------------------------------
 *
 * finish.c
 *		_finish(): deliveries that end, out of the outbox, into the history.
 *
 * The one way out of the outbox, which each mail goes once.  Calls db/rows.c; what
 * verdicts mean is for 45_record.sql to say.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

#include "db/rows.h"

PG_FUNCTION_INFO_V1(kliv_mail__finish);

/* Of kliv_mail._outcome, in its order. */
enum
{
	O_ID, O_ACCOUNT, O_VERDICT, O_SCOPE, O_BOUNCE_TYPE, O_PAUSE, O_STAGE, O_CODE, O_ENHANCED,
	O_REPLY, O_REASON, O_HINT, O_SERVER_ID, O_IDENTITY, O_FINGERPRINT, O_SIMULATED, O_COLUMNS
};

/* What is known of a delivery that waits; each list in its table's order. */
enum
{
	W_MESSAGE_ID, W_RECIPIENT, W_KIND, W_ROUTE, W_PRIORITY, W_CREATED_AT, W_EXPIRES_AT,
	W_ATTEMPTS, W_DOUBTS, W_EPOCH, W_ACCOUNT, W_HOST, W_IDENTITY, W_LAST_STAGE, W_LAST_CODE,
	W_LAST_ENHANCED, W_LAST_REPLY, W_COLUMNS
};
static const KlmColumn waiting_columns[W_COLUMNS] = {
	{"message_id", INT8OID}, {"recipient", TEXTOID}, {"kind", TEXTOID}, {"route", TEXTOID},
	{"priority", INT2OID}, {"created_at", TIMESTAMPTZOID}, {"expires_at", TIMESTAMPTZOID},
	{"attempts", INT4OID}, {"doubts", INT4OID}, {"epoch", INT8OID}, {"account", TEXTOID},
	{"host", TEXTOID}, {"identity", TEXTOID}, {"last_stage", TEXTOID}, {"last_code", INT4OID},
	{"last_enhanced", TEXTOID}, {"last_reply", TEXTOID}
};

/* And of one that has ended. */
enum
{
	E_ID, E_MESSAGE_ID, E_RECIPIENT, E_KIND, E_PRIORITY, E_ROUTE, E_STATUS, E_CREATED_AT,
	E_EXPIRES_AT, E_ATTEMPTS, E_DOUBTS, E_ACCOUNT, E_HOST, E_IDENTITY, E_BOUNCE_TYPE,
	E_LAST_STAGE, E_LAST_CODE, E_LAST_ENHANCED, E_LAST_REPLY, E_REASON, E_HINT,
	E_SERVER_MESSAGE_ID, E_SENT_AT, E_FINISHED_AT, E_SIMULATED, E_CHANGED, E_COLUMNS
};
static const KlmColumn ended_columns[E_COLUMNS] = {
	{"id", INT8OID}, {"message_id", INT8OID}, {"recipient", TEXTOID}, {"kind", TEXTOID},
	{"priority", INT2OID}, {"route", TEXTOID}, {"status", TEXTOID},
	{"created_at", TIMESTAMPTZOID}, {"expires_at", TIMESTAMPTZOID}, {"attempts", INT4OID},
	{"doubts", INT4OID}, {"account", TEXTOID}, {"host", TEXTOID}, {"identity", TEXTOID},
	{"bounce_type", TEXTOID}, {"last_stage", TEXTOID}, {"last_code", INT4OID},
	{"last_enhanced", TEXTOID}, {"last_reply", TEXTOID}, {"reason", TEXTOID},
	{"hint", TEXTOID}, {"server_message_id", TEXTOID}, {"sent_at", TIMESTAMPTZOID},
	{"finished_at", TIMESTAMPTZOID}, {"simulated", BOOLOID}, {"changed", INT8OID}
};

static void read_outcome(Datum outcome, TupleDesc *desc, Datum *values, bool *nulls);
static const char *status_of(const char *verdict);
static bool take(KlmRows *rows, int64 id, int64 epoch, Datum *values, bool *nulls);

/*
 * _finish(epoch bigint, outcomes _outcome[], at timestamptz, change bigint): what ended,
 * (message_id, status).  epoch: who has claimed them; NULL: nobody.
 */
Datum
kliv_mail__finish(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	int64		epoch = PG_ARGISNULL(0) ? 0 : PG_GETARG_INT64(0);
	ArrayType  *array;
	Datum	   *outcomes;
	bool	   *missing;
	int			count;
	int16		length;
	bool		byval;
	char		align;
	KlmRows    *waiting;
	KlmRows    *ended;
	TupleDesc	desc = NULL;

	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(1) || PG_ARGISNULL(2) || PG_ARGISNULL(3))
		return (Datum) 0;
	array = PG_GETARG_ARRAYTYPE_P(1);
	get_typlenbyvalalign(ARR_ELEMTYPE(array), &length, &byval, &align);
	deconstruct_array(array, ARR_ELEMTYPE(array), length, byval, align, &outcomes, &missing,
					  &count);
	if (count == 0)
		return (Datum) 0;

	/* As a statement does: it sees what was done before it, and what others committed. */
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	waiting = klm_rows_begin("_outbox", waiting_columns, W_COLUMNS);
	ended = klm_rows_begin("_delivery", ended_columns, E_COLUMNS);
	for (int i = 0; i < count; i++)
	{
		Datum		o[O_COLUMNS];
		bool		no_o[O_COLUMNS];
		Datum		w[W_COLUMNS];
		bool		no_w[W_COLUMNS];
		Datum		e[E_COLUMNS];
		bool		no_e[E_COLUMNS];
		Datum		row[2];
		bool		no_row[2] = {false, false};
		const char *status;

#define FROM_WAITING(to, from) (e[to] = w[from], no_e[to] = no_w[from])
#define FROM_OUTCOME(to, from) (e[to] = o[from], no_e[to] = no_o[from])
		CHECK_FOR_INTERRUPTS();
		if (missing[i])
			continue;
		read_outcome(outcomes[i], &desc, o, no_o);
		if (no_o[O_ID] || !take(waiting, DatumGetInt64(o[O_ID]), epoch, w, no_w))
			continue;
		status = status_of(no_o[O_VERDICT] ? "" : TextDatumGetCString(o[O_VERDICT]));

		FROM_OUTCOME(E_ID, O_ID);
		FROM_WAITING(E_MESSAGE_ID, W_MESSAGE_ID);
		FROM_WAITING(E_RECIPIENT, W_RECIPIENT);
		FROM_WAITING(E_KIND, W_KIND);
		FROM_WAITING(E_PRIORITY, W_PRIORITY);
		FROM_WAITING(E_ROUTE, W_ROUTE);
		e[E_STATUS] = CStringGetTextDatum(status);
		no_e[E_STATUS] = false;
		FROM_WAITING(E_CREATED_AT, W_CREATED_AT);
		FROM_WAITING(E_EXPIRES_AT, W_EXPIRES_AT);
		FROM_WAITING(E_ATTEMPTS, W_ATTEMPTS);
		FROM_WAITING(E_DOUBTS, W_DOUBTS);
		FROM_WAITING(E_ACCOUNT, W_ACCOUNT);
		FROM_WAITING(E_HOST, W_HOST);
		FROM_OUTCOME(E_IDENTITY, O_IDENTITY);
		if (no_o[O_IDENTITY])
			FROM_WAITING(E_IDENTITY, W_IDENTITY);
		FROM_OUTCOME(E_BOUNCE_TYPE, O_BOUNCE_TYPE);
		/* Where an outcome says nothing of a server, what a server said last stays. */
		if (no_o[O_STAGE])
		{
			FROM_WAITING(E_LAST_STAGE, W_LAST_STAGE);
			FROM_WAITING(E_LAST_CODE, W_LAST_CODE);
			FROM_WAITING(E_LAST_ENHANCED, W_LAST_ENHANCED);
			FROM_WAITING(E_LAST_REPLY, W_LAST_REPLY);
		}
		else
		{
			FROM_OUTCOME(E_LAST_STAGE, O_STAGE);
			FROM_OUTCOME(E_LAST_CODE, O_CODE);
			FROM_OUTCOME(E_LAST_ENHANCED, O_ENHANCED);
			FROM_OUTCOME(E_LAST_REPLY, O_REPLY);
		}
		FROM_OUTCOME(E_REASON, O_REASON);
		FROM_OUTCOME(E_HINT, O_HINT);
		FROM_OUTCOME(E_SERVER_MESSAGE_ID, O_SERVER_ID);
		e[E_SENT_AT] = e[E_FINISHED_AT] = PG_GETARG_DATUM(2);
		no_e[E_SENT_AT] = strcmp(status, "sent") != 0;
		no_e[E_FINISHED_AT] = false;
		e[E_SIMULATED] = BoolGetDatum(!no_o[O_SIMULATED] && DatumGetBool(o[O_SIMULATED]));
		no_e[E_SIMULATED] = false;
		e[E_CHANGED] = PG_GETARG_DATUM(3);
		no_e[E_CHANGED] = false;
		klm_rows_add(ended, e, no_e);

		row[0] = e[E_MESSAGE_ID];
		row[1] = e[E_STATUS];
		tuplestore_putvalues(result->setResult, result->setDesc, row, no_row);
	}
	klm_rows_end(ended);
	klm_rows_end(waiting);
	PopActiveSnapshot();
	if (desc)
		ReleaseTupleDesc(desc);
	return (Datum) 0;
}

static void
read_outcome(Datum outcome, TupleDesc *desc, Datum *values, bool *nulls)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(outcome);
	HeapTupleData tuple = {.t_len = HeapTupleHeaderGetDatumLength(header),.t_data = header};

	if (*desc == NULL)
		*desc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header),
									   HeapTupleHeaderGetTypMod(header));
	if ((*desc)->natts != O_COLUMNS)
		elog(ERROR, "kliv_mail._outcome has %d columns", (*desc)->natts);
	heap_deform_tuple(&tuple, *desc, values, nulls);
}

/* What _delivery has of it; another verdict ends nothing. */
static const char *
status_of(const char *verdict)
{
	static const char *const final[] = {"bounced", "failed", "suppressed", "cancelled", "expired"};

	if (strcmp(verdict, "accepted") == 0)
		return "sent";
	for (int i = 0; i < lengthof(final); i++)
		if (strcmp(verdict, final[i]) == 0)
			return final[i];
	elog(ERROR, "a delivery cannot end with the verdict \"%s\"", verdict);
}

/* Delete a delivery that the epoch has, 0: nobody; false: it has not. */
static bool
take(KlmRows *rows, int64 id, int64 epoch, Datum *values, bool *nulls)
{
	bool		found = klm_rows_find(rows, id, values, nulls);

	while (found && (nulls[W_EPOCH] ? 0 : DatumGetInt64(values[W_EPOCH])) == epoch)
	{
		KlmDeleted	deleted = klm_rows_delete(rows, values, nulls);

		if (deleted == KLM_ROW_DELETED)
			return true;
		found = deleted == KLM_ROW_CHANGED;
	}
	return false;
}
