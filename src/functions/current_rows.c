/*-------------------------------------------------------------------------
 *
 * current_rows.c
 *		_current_rows(), _snapshot_rows(), _any_current_row(): rows of a table of
 *		ours without locks.
 *
 * send() has to know settings and suppressions that others write, and must not
 * make its caller's transaction fail for it.  An ordinary SELECT in a
 * SERIALIZABLE transaction takes predicate locks on what it reads, pages of
 * indexes included, so that two callers that have nothing to do with each other
 * abort one another.  Here the scan itself takes any version of a row, which
 * locks nothing, and each is then tested against a snapshot: one of the moment
 * (_current_rows()), or that of the statement, as a SELECT does.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "base/compat.h"

PG_FUNCTION_INFO_V1(kliv_mail__current_rows);
PG_FUNCTION_INFO_V1(kliv_mail__snapshot_rows);
PG_FUNCTION_INFO_V1(kliv_mail__any_current_row);

static void collect(FunctionCallInfo fcinfo, Snapshot snapshot, ArrayType *values, int64 max);
static Relation table_of(FunctionCallInfo fcinfo);
static Oid find_index(Relation table, const char *name, const Datum *values, int count,
					  ScanKey keys);

/*
 * _current_rows(NULL::table, index text, VARIADIC key text[]): those whose first
 * columns in the index have the key's values; without an index all of them.
 */
Datum
kliv_mail__current_rows(PG_FUNCTION_ARGS)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());

	collect(fcinfo, snapshot, PG_GETARG_ARRAYTYPE_P(2), PG_INT64_MAX);
	UnregisterSnapshot(snapshot);
	return (Datum) 0;
}

/* _snapshot_rows(NULL::table, index text, max bigint, VARIADIC key text[]): the first of them. */
Datum
kliv_mail__snapshot_rows(PG_FUNCTION_ARGS)
{
	collect(fcinfo, GetActiveSnapshot(), PG_GETARG_ARRAYTYPE_P(3),
			PG_ARGISNULL(2) ? PG_INT64_MAX : PG_GETARG_INT64(2));
	return (Datum) 0;
}

/*
 * _any_current_row(NULL::table, index text, keys text[]): is there one whose first
 * column in the index is any of the keys?  For who asks at each send() and mostly
 * finds nothing: no set is made, and no query run.
 */
Datum
kliv_mail__any_current_row(PG_FUNCTION_ARGS)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	Relation	table = table_of(fcinfo);
	char	   *index = text_to_cstring(PG_GETARG_TEXT_PP(1));
	Datum	   *keys;
	bool	   *nulls;
	int			count;
	bool		found = false;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), TEXTOID, -1, false, TYPALIGN_INT, &keys, &nulls,
					  &count);
	for (int i = 0; i < count && !found; i++)
	{
		ScanKeyData key;
		SysScanDesc scan;

		if (nulls[i])
			continue;
		scan = systable_beginscan(table, find_index(table, index, &keys[i], 1, &key), true,
								  SnapshotAny, 1, &key);
		while (!found && HeapTupleIsValid(systable_getnext(scan)))
			found = table_tuple_satisfies_snapshot(table, scan->slot, snapshot);
		systable_endscan(scan);
	}
	table_close(table, AccessShareLock);
	UnregisterSnapshot(snapshot);
	PG_RETURN_BOOL(found);
}

/* The table whose row type the first argument has. */
static Relation
table_of(FunctionCallInfo fcinfo)
{
	return table_open(get_typ_typrelid(get_fn_expr_argtype(fcinfo->flinfo, 0)), AccessShareLock);
}

/* Put at most max rows that the snapshot sees into the result, in the index's order. */
static void
collect(FunctionCallInfo fcinfo, Snapshot snapshot, ArrayType *values, int64 max)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Relation	table;
	Oid			index = InvalidOid;
	ScanKeyData keys[INDEX_MAX_KEYS];
	Datum	   *elements;
	int			count = 0;
	SysScanDesc scan;
	HeapTuple	tuple;

	InitMaterializedSRF(fcinfo, 0);
	if (array_contains_nulls(values))
		return;					/* equal to nothing */
	table = table_of(fcinfo);
	if (!PG_ARGISNULL(1))
	{
		deconstruct_array(values, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, &count);
		index = find_index(table, text_to_cstring(PG_GETARG_TEXT_PP(1)), elements, count, keys);
	}
	scan = systable_beginscan(table, index, OidIsValid(index), SnapshotAny, count, keys);
	while (max > 0 && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		CHECK_FOR_INTERRUPTS();
		if (table_tuple_satisfies_snapshot(table, scan->slot, snapshot))
		{
			tuplestore_puttuple(result->setResult, tuple);
			max--;
		}
	}
	systable_endscan(scan);
	table_close(table, AccessShareLock);
}

/* The index of that name, and scan keys for its first columns. */
static Oid
find_index(Relation table, const char *name, const Datum *values, int count, ScanKey keys)
{
	Oid			oid = get_relname_relid(name, RelationGetNamespace(table));
	Relation	index = index_open(oid, AccessShareLock);

	for (int i = 0; i < count; i++)
	{
		Oid			type = index->rd_opcintype[i];
		Oid			equality = get_opfamily_member(index->rd_opfamily[i], type, type,
												   BTEqualStrategyNumber);
		Oid			input;
		Oid			parameter;

		getTypeInputInfo(type, &input, &parameter);
		ScanKeyEntryInitialize(&keys[i], 0, index->rd_index->indkey.values[i],
							   BTEqualStrategyNumber, InvalidOid, index->rd_indcollation[i],
							   get_opcode(equality),
							   OidInputFunctionCall(input, TextDatumGetCString(values[i]),
													parameter, -1));
	}
	index_close(index, AccessShareLock);
	return oid;
}
