/*-------------------------------------------------------------------------
 *
 * owner_call.c
 *		Our SQL functions, run as the extension's owner.
 *
 * The only place that changes the current user in a session.  Calls SPI and
 * the base folder; what the functions mean, it does not know.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "base/encoding.h"
#include "base/error.h"
#include "db/owner_call.h"

/* A kept plan; there is one for each function and list of argument types. */
typedef struct KeptPlan
{
	struct KeptPlan *next;
	char	   *function;
	int			count;
	Oid			types[FUNC_MAX_ARGS];
	SPIPlanPtr	plan;
} KeptPlan;

static KeptPlan *plans = NULL;

static SPIPlanPtr plan_of(const KlmCall *call, const char *function);

/* The owner of a function of ours, which is the extension's. */
static Oid
function_owner(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);
	return owner;
}

void
klm_become_owner(Oid function, KlmCaller *caller)
{
	Oid			owner = function_owner(function);

	GetUserIdAndSecContext(&caller->user, &caller->context);
	SetUserIdAndSecContext(owner, caller->context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
}

void
klm_become_caller(const KlmCaller *caller)
{
	SetUserIdAndSecContext(caller->user, caller->context);
}

void
klm_enter_owner(FunctionCallInfo fcinfo, KlmCaller *caller)
{
	klm_become_owner(fcinfo->flinfo->fn_oid, caller);
	SPI_connect();
}

void
klm_leave_owner(const KlmCaller *caller)
{
	SPI_finish();
	klm_become_caller(caller);
}

void
klm_add(KlmCall *call, Oid type, Datum value, bool isnull)
{
	Assert(call->count < FUNC_MAX_ARGS);
	call->types[call->count] = type;
	call->values[call->count] = value;
	call->nulls[call->count] = isnull ? 'n' : ' ';
	call->count++;
}

void
klm_add_text(KlmCall *call, const char *utf8)
{
	klm_add(call, TEXTOID, utf8 ? CStringGetTextDatum(klm_from_utf8(utf8)) : (Datum) 0,
			utf8 == NULL);
}

void
klm_add_bool(KlmCall *call, bool value)
{
	klm_add(call, BOOLOID, BoolGetDatum(value), false);
}

void
klm_add_int4(KlmCall *call, int32 value)
{
	klm_add(call, INT4OID, Int32GetDatum(value), false);
}

void
klm_add_int8(KlmCall *call, int64 value)
{
	klm_add(call, INT8OID, Int64GetDatum(value), false);
}

void
klm_add_bytea(KlmCall *call, const bytea *value)
{
	klm_add(call, BYTEAOID, PointerGetDatum(value), value == NULL);
}

void
klm_add_time(KlmCall *call, TimestampTz value)
{
	klm_add(call, TIMESTAMPTZOID, TimestampTzGetDatum(value), false);
}

void
klm_add_caller(KlmCall *call, const KlmCaller *caller)
{
	NameData   *name = palloc0(sizeof(NameData));

	namestrcpy(name, GetUserNameFromId(caller->user, false));
	klm_add(call, NAMEOID, NameGetDatum(name), false);
}

/* The plan lives as long as the session; PostgreSQL makes it anew where the function changed. */
static SPIPlanPtr
plan_of(const KlmCall *call, const char *function)
{
	KeptPlan   *plan;
	StringInfoData sql;
	SPIPlanPtr	made;

	for (plan = plans; plan; plan = plan->next)
		if (plan->count == call->count && strcmp(plan->function, function) == 0 &&
			memcmp(plan->types, call->types, call->count * sizeof(Oid)) == 0)
			return plan->plan;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT * FROM " KLM_SCHEMA "._%s(", function);
	for (int i = 0; i < call->count; i++)
		appendStringInfo(&sql, "%s$%d", i > 0 ? ", " : "", i + 1);
	appendStringInfoChar(&sql, ')');
	made = SPI_prepare(sql.data, call->count, (Oid *) call->types);
	if (made == NULL)
		elog(ERROR, "could not prepare \"%s\": %s", sql.data, SPI_result_code_string(SPI_result));
	plan = MemoryContextAllocZero(TopMemoryContext, sizeof(KeptPlan));
	plan->function = MemoryContextStrdup(TopMemoryContext, function);
	plan->count = call->count;
	memcpy(plan->types, call->types, call->count * sizeof(Oid));
	SPI_keepplan(made);
	plan->plan = made;
	plan->next = plans;
	plans = plan;
	return made;
}

void
klm_run(KlmCall *call, const char *function, bool read_only)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorContextCallback *callers = error_context_stack;

	PG_TRY();
	{
		error_context_stack = NULL;
		if (SPI_execute_plan(plan_of(call, function), call->values, call->nulls,
							 read_only, 0) != SPI_OK_SELECT)
			elog(ERROR, "could not call kliv_mail._%s()", function);
		error_context_stack = callers;
	}
	PG_CATCH();
	{
		klm_rethrow(context);
	}
	PG_END_TRY();
}

void
klm_run_one(KlmCall *call, const char *function, bool read_only)
{
	klm_run(call, function, read_only);
	if (SPI_processed != 1)
		elog(ERROR, "kliv_mail._%s() returned %llu rows", function,
			 (unsigned long long) SPI_processed);
}

static Datum
value_of(int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column, isnull);
}

bool
klm_result_bool(int column)
{
	bool		isnull;
	Datum		value = value_of(column, &isnull);

	return !isnull && DatumGetBool(value);
}

int64
klm_result_int8(int column)
{
	bool		isnull;
	Datum		value = value_of(column, &isnull);

	if (isnull)
		return 0;
	return SPI_gettypeid(SPI_tuptable->tupdesc, column) == INT4OID ?
		DatumGetInt32(value) : DatumGetInt64(value);
}

TimestampTz
klm_result_time(int column)
{
	bool		isnull;
	Datum		value = value_of(column, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

char *
klm_result_text(int column, MemoryContext context)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, column);

	return value ? MemoryContextStrdup(context, klm_to_utf8(value)) : NULL;
}

char **
klm_result_texts(int column, MemoryContext context, int *count)
{
	bool		isnull;
	Datum		value = value_of(column, &isnull);
	Datum	   *elements;
	bool	   *nulls;
	int			length;
	char	  **texts;

	*count = 0;
	if (isnull)
		return NULL;
	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &length);
	texts = MemoryContextAlloc(context, Max(1, length) * sizeof(char *));
	for (int i = 0; i < length; i++)
		if (!nulls[i])
			texts[(*count)++] =
				MemoryContextStrdup(context, klm_to_utf8(TextDatumGetCString(elements[i])));
	return texts;
}

int64 *
klm_result_int8s(int column, MemoryContext context, int *count)
{
	bool		isnull;
	ArrayType  *array = DatumGetArrayTypeP(value_of(column, &isnull));
	Datum	   *elements;
	int			length;
	int64	   *numbers;

	deconstruct_array(array, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &elements, NULL,
					  &length);
	numbers = MemoryContextAlloc(context, Max(1, length) * sizeof(int64));
	for (int i = 0; i < length; i++)
		numbers[i] = DatumGetInt64(elements[i]);
	if (count != NULL)
		*count = length;
	return numbers;
}

Datum
klm_return_value(FunctionCallInfo fcinfo, int column)
{
	Form_pg_attribute attribute = TupleDescAttr(SPI_tuptable->tupdesc, column - 1);
	Datum		value = value_of(column, &fcinfo->isnull);

	if (fcinfo->isnull)
		return (Datum) 0;
	return SPI_datumTransfer(value, attribute->attbyval, attribute->attlen);
}

void
klm_return_rows(FunctionCallInfo fcinfo)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
		tuplestore_puttuple(result->setResult, SPI_tuptable->vals[i]);
}
