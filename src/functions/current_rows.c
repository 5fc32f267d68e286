/*-------------------------------------------------------------------------
 *
 * current_rows.c
 *		_current_rows(): rows of a table of ours as they are committed now.
 *
 * send() has to know settings and suppressions that others write, and must not
 * make its caller's transaction fail for it.  An ordinary SELECT in a
 * SERIALIZABLE transaction takes predicate locks on what it reads, pages of
 * indexes included, so that two callers that have nothing to do with each other
 * abort one another.  Here the scan itself takes any version of a row, which
 * locks nothing, and each is then tested against a snapshot of the moment.
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

static Oid find_index(Relation table, const char *name, ArrayType *values, ScanKey keys,
					  int *count);

/*
 * _current_rows(NULL::table, index text, VARIADIC key text[]): those whose first
 * columns in the index have the key's values; without an index all of them.
 */
Datum
kliv_mail__current_rows(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Relation	table;
	Oid			index = InvalidOid;
	ScanKeyData keys[INDEX_MAX_KEYS];
	int			count = 0;
	Snapshot	snapshot;
	SysScanDesc scan;
	HeapTuple	tuple;

	InitMaterializedSRF(fcinfo, 0);
	table = table_open(get_typ_typrelid(get_fn_expr_argtype(fcinfo->flinfo, 0)), AccessShareLock);
	if (!PG_ARGISNULL(1))
		index = find_index(table, text_to_cstring(PG_GETARG_TEXT_PP(1)), PG_GETARG_ARRAYTYPE_P(2),
						   keys, &count);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = systable_beginscan(table, index, OidIsValid(index), SnapshotAny, count, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		CHECK_FOR_INTERRUPTS();
		if (table_tuple_satisfies_snapshot(table, scan->slot, snapshot))
			tuplestore_puttuple(result->setResult, tuple);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(table, AccessShareLock);
	return (Datum) 0;
}

/* The index of that name, and scan keys for its first columns. */
static Oid
find_index(Relation table, const char *name, ArrayType *values, ScanKey keys, int *count)
{
	Oid			oid = get_relname_relid(name, RelationGetNamespace(table));
	Relation	index = index_open(oid, AccessShareLock);
	Datum	   *elements;

	deconstruct_array(values, TEXTOID, -1, false, TYPALIGN_INT, &elements, NULL, count);
	for (int i = 0; i < *count; i++)
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
							   OidInputFunctionCall(input, TextDatumGetCString(elements[i]),
													parameter, -1));
	}
	index_close(index, AccessShareLock);
	return oid;
}
