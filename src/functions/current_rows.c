/*-------------------------------------------------------------------------
 *
 * current_rows.c
 *		_current_rows(), _snapshot_rows(): rows of a table of ours without locks;
 *		_any_suppressed(), which reads so.
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
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

#include "db/owner_call.h"
#include "db/rows.h"
#include "functions/current_rows.h"

PG_FUNCTION_INFO_V1(kliv_mail__current_rows);
PG_FUNCTION_INFO_V1(kliv_mail__snapshot_rows);
PG_FUNCTION_INFO_V1(kliv_mail__any_suppressed);

static void collect(FunctionCallInfo fcinfo, Snapshot snapshot, ArrayType *values, int64 max);
static char *address_hash(Datum recipient);
static bool find_row(const char *name, const char *index, const char *const *sought,
					 int sought_count, const char *const *columns, int count, Datum *values,
					 bool *nulls);
static void copy_columns(Relation table, HeapTuple tuple, const char *const *columns, int count,
						 Datum *values, bool *nulls);
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

/* _any_suppressed(recipients text[]) */
Datum
kliv_mail__any_suppressed(PG_FUNCTION_ARGS)
{
	Datum	   *recipients;
	int			count;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false, TYPALIGN_INT, &recipients, NULL,
					  &count);
	PG_RETURN_BOOL(klm_any_suppressed(recipients, count));
}

/*
 * Asked for each mail, so it is to cost next to nothing where nobody is suppressed,
 * and little where others are: no set is made, and no query run.
 */
bool
klm_any_suppressed(const Datum *recipients, int count)
{
	bool		hashed = !klm_table_is_empty("_forgotten");
	bool		found = false;

	if (!hashed && klm_table_is_empty("_suppression"))
		return false;
	for (int i = 0; i < count && !found; i++)
	{
		char	   *address = text_to_cstring(DatumGetTextPP(recipients[i]));
		const char *keys[2] = {address, NULL};

		/* As kliv_mail._suppression_keys() has them. */
		for (char *c = address; *c; c++)
			*c = pg_ascii_tolower((unsigned char) *c);
		keys[1] = strrchr(address, '@');
		found = find_row("_suppression", "_suppression_pkey", keys, keys[1] ? 2 : 1, NULL, 0, NULL,
						 NULL) ||
			(hashed && klm_current_row("_forgotten", "_forgotten_pkey", address_hash(recipients[i]),
									   NULL, 0, NULL, NULL));
	}
	return found;
}

/* kliv_mail._address_hash() */
static char *
address_hash(Datum recipient)
{
	MemoryContext context = CurrentMemoryContext;
	KlmCall		call = {0};
	char	   *hash;

	SPI_connect();
	klm_add(&call, TEXTOID, recipient, false);
	klm_run_one(&call, "address_hash", true);
	hash = klm_result_text(1, context);
	SPI_finish();
	return hash;
}

bool
klm_current_row(const char *name, const char *index, const char *value, const char *const *columns,
				int count, Datum *values, bool *nulls)
{
	return find_row(name, index, &value, 1, columns, count, values, nulls);
}

/* The same for the first of some values that has a row. */
static bool
find_row(const char *name, const char *index, const char *const *sought, int sought_count,
		 const char *const *columns, int count, Datum *values, bool *nulls)
{
	Relation	table = table_open(klm_relation(name), AccessShareLock);
	Relation	order;
	Snapshot	snapshot;
	bool		found = false;

	/* A database without an account of its own looks for one at each send(). */
	if (RelationGetNumberOfBlocks(table) == 0)
	{
		table_close(table, AccessShareLock);
		return false;
	}
	order = index == NULL ? NULL : index_open(klm_relation(index), AccessShareLock);
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	for (int i = 0; i < sought_count && !found; i++)
	{
		ScanKeyData key;
		SysScanDesc scan;
		HeapTuple	tuple;

		if (order)
		{
			ScanKeyEntryInitialize(&key, 0, 1, BTEqualStrategyNumber, InvalidOid, C_COLLATION_OID,
								   F_TEXTEQ, CStringGetTextDatum(sought[i]));
			scan = systable_beginscan_ordered(table, order, SnapshotAny, 1, &key);
		}
		else
			scan = systable_beginscan(table, InvalidOid, false, SnapshotAny, 0, NULL);
		while (!found && HeapTupleIsValid(tuple = order ?
										  systable_getnext_ordered(scan, ForwardScanDirection) :
										  systable_getnext(scan)))
		{
			found = table_tuple_satisfies_snapshot(table, scan->slot, snapshot);
			if (found)
				copy_columns(table, tuple, columns, count, values, nulls);
		}
		if (order)
			systable_endscan_ordered(scan);
		else
			systable_endscan(scan);
	}
	UnregisterSnapshot(snapshot);
	if (order)
		index_close(order, AccessShareLock);
	table_close(table, AccessShareLock);
	return found;
}

static void
copy_columns(Relation table, HeapTuple tuple, const char *const *columns, int count, Datum *values,
			 bool *nulls)
{
	for (int i = 0; i < count; i++)
	{
		AttrNumber	number = get_attnum(RelationGetRelid(table), columns[i]);
		Form_pg_attribute attribute;

		if (number == InvalidAttrNumber)
			elog(ERROR, "%s has no column \"%s\"", RelationGetRelationName(table), columns[i]);
		attribute = TupleDescAttr(table->rd_att, number - 1);
		values[i] = heap_getattr(tuple, number, table->rd_att, &nulls[i]);
		if (!nulls[i] && attribute->attlen == -1)
			values[i] = PointerGetDatum(PG_DETOAST_DATUM_COPY(values[i]));
		else if (!nulls[i])
			values[i] = datumCopy(values[i], attribute->attbyval, attribute->attlen);
	}
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
