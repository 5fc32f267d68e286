/*-------------------------------------------------------------------------
 *
 * rows.c
 *		Rows of our tables that come and go, without a statement.
 *
 * What the executor of an INSERT or a DELETE does with a row, as logical replication
 * has it done too: indexes, constraints, and triggers of each row.  Planning, rights and
 * rules, which are not looked at, are the same for every row of ours.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "rewrite/rewriteHandler.h"
#include "storage/bufmgr.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "db/rows.h"

struct KlmRows
{
	Relation	table;
	EState	   *estate;
	ResultRelInfo *target;
	TupleTableSlot *slot;
	Relation	index;			/* that rows are looked for by, or NULL */
	IndexScanDesc scan;
	List	   *defaults;		/* of columns that are not ours: KlmDefault */
	int			count;
	int			guc_level;		/* where there are triggers, else 0 */
	AttrNumber	numbers[FLEXIBLE_ARRAY_MEMBER];
};

typedef struct KlmDefault
{
	int			attribute;
	ExprState  *value;
} KlmDefault;

/* What the session has looked up, until the catalogues tell of a change to one of them. */
typedef struct KnownRelation
{
	const char *name;
	Oid			oid;
} KnownRelation;

static KnownRelation known[16];
static int	known_count = 0;

static void check_table(Relation table);
static void prepare_defaults(KlmRows *rows);
static void open_primary_key(KlmRows *rows);
static void values_of(KlmRows *rows, Datum *values, bool *nulls);
static bool delete_with_triggers(KlmRows *rows);
static void refuse_change(TM_Result result);
static void forget_relation(Datum arg, Oid relation);
static void forget_relations(Datum arg, int cache, uint32 hash);

Oid
klm_relation(const char *name)
{
	static bool registered = false;
	Oid			oid;

	for (int i = 0; i < known_count; i++)
		if (strcmp(known[i].name, name) == 0)
			return known[i].oid;
	if (!registered)
	{
		CacheRegisterRelcacheCallback(forget_relation, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACENAME, forget_relations, (Datum) 0);
		registered = true;
	}
	oid = get_relname_relid(name, get_namespace_oid(KLM_SCHEMA, false));
	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"" KLM_SCHEMA ".%s\" does not exist", name)));
	if (known_count < lengthof(known))
		known[known_count++] = (KnownRelation) {name, oid};
	return oid;
}

static void
forget_relation(Datum arg, Oid relation)
{
	for (int i = 0; i < known_count; i++)
		if (known[i].oid == relation || !OidIsValid(relation))
			known_count = 0;
}

static void
forget_relations(Datum arg, int cache, uint32 hash)
{
	known_count = 0;
}

int64
klm_next_id(const char *sequence)
{
	return nextval_internal(klm_relation(sequence), false);
}

bool
klm_table_is_empty(const char *table)
{
	Relation	relation = table_open(klm_relation(table), AccessShareLock);
	bool		empty = RelationGetNumberOfBlocks(relation) == 0;

	table_close(relation, AccessShareLock);
	return empty;
}

void
klm_rows_check(const char *name)
{
	Relation	table = table_open(klm_relation(name), AccessShareLock);

	check_table(table);
	table_close(table, AccessShareLock);
}

static void
check_table(Relation table)
{
	if (table->rd_rel->relkind != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"" KLM_SCHEMA ".%s\" is no ordinary table any more", RelationGetRelationName(table)),
				 errhint("kliv_mail needs its own tables as it made them: restore it, and drop or rename what stands in its place.")));
}

KlmRows *
klm_rows_begin(const char *table, const KlmColumn *columns, int count)
{
	KlmRows    *rows = palloc0(offsetof(KlmRows, numbers) + count * sizeof(AttrNumber));
	TupleDesc	desc;
	int			attribute = 0;
	MemoryContext old;

	rows->table = table_open(klm_relation(table), RowExclusiveLock);
	check_table(rows->table);
	rows->count = count;
	desc = RelationGetDescr(rows->table);
	for (int i = 0; i < count; i++)
	{
		while (attribute < desc->natts &&
			   (TupleDescAttr(desc, attribute)->attisdropped ||
				strcmp(NameStr(TupleDescAttr(desc, attribute)->attname), columns[i].name) != 0))
			attribute++;
		if (attribute == desc->natts ||
			TupleDescAttr(desc, attribute)->atttypid != columns[i].type)
			elog(ERROR, "%s has no column \"%s\" of that type in its place", table, columns[i].name);
		rows->numbers[i] = attribute;
	}

	rows->estate = CreateExecutorState();
	old = MemoryContextSwitchTo(rows->estate->es_query_cxt);
	rows->target = makeNode(ResultRelInfo);
	InitResultRelInfo(rows->target, rows->table, 0, NULL, 0);
	rows->estate->es_opened_result_relations = list_make1(rows->target);
	rows->estate->es_output_cid = GetCurrentCommandId(true);
	ExecOpenIndices(rows->target, false);
	rows->slot = table_slot_create(rows->table, &rows->estate->es_tupleTable);
	prepare_defaults(rows);
	MemoryContextSwitchTo(old);

	/* Somebody's own triggers: as in the functions of ours that fix the path. */
	if (rows->target->ri_TrigDesc)
	{
		rows->guc_level = NewGUCNestLevel();
		(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
		AfterTriggerBeginQuery();
	}
	return rows;
}

/* Columns that somebody has added: what an INSERT that does not name them gives them. */
static void
prepare_defaults(KlmRows *rows)
{
	TupleDesc	desc = RelationGetDescr(rows->table);
	int			ours = 0;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		KlmDefault *given;
		Expr	   *value;

		if (ours < rows->count && rows->numbers[ours] == i)
		{
			ours++;
			continue;
		}
		if (attribute->attisdropped || attribute->attgenerated ||
			!(attribute->atthasdef || attribute->attidentity) ||
			(value = (Expr *) build_column_default(rows->table, i + 1)) == NULL)
			continue;
		given = palloc(sizeof(KlmDefault));
		given->attribute = i;
		given->value = ExecPrepareExpr(value, rows->estate);
		rows->defaults = lappend(rows->defaults, given);
	}
}

void
klm_rows_add(KlmRows *rows, const Datum *values, const bool *nulls)
{
	TupleTableSlot *slot = rows->slot;
	ListCell   *lc;

	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
	for (int i = 0; i < rows->count; i++)
	{
		slot->tts_values[rows->numbers[i]] = values[i];
		slot->tts_isnull[rows->numbers[i]] = nulls[i];
	}
	foreach(lc, rows->defaults)
	{
		KlmDefault *given = lfirst(lc);

		slot->tts_values[given->attribute] =
			ExecEvalExprSwitchContext(given->value, GetPerTupleExprContext(rows->estate),
									  &slot->tts_isnull[given->attribute]);
	}
	ExecStoreVirtualTuple(slot);
	ExecSimpleRelationInsert(rows->target, rows->estate, slot);
	ResetPerTupleExprContext(rows->estate);
}

bool
klm_rows_find(KlmRows *rows, int64 id, Datum *values, bool *nulls)
{
	ScanKeyData key;

	if (rows->scan == NULL)
		open_primary_key(rows);
	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(id));
	index_rescan(rows->scan, &key, 1, NULL, 0);
	if (!index_getnext_slot(rows->scan, ForwardScanDirection, rows->slot))
		return false;
	values_of(rows, values, nulls);
	return true;
}

static void
open_primary_key(KlmRows *rows)
{
	MemoryContext old = MemoryContextSwitchTo(rows->estate->es_query_cxt);
	AttrNumber	id = get_attnum(RelationGetRelid(rows->table), "id");

	/* (which is known once its indexes are) */
	list_free(RelationGetIndexList(rows->table));
	if (OidIsValid(rows->table->rd_pkindex))
		rows->index = index_open(rows->table->rd_pkindex, RowExclusiveLock);
	if (rows->index == NULL || rows->index->rd_index->indkey.values[0] != id ||
		rows->index->rd_opcintype[0] != INT8OID)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("the primary key of \"" KLM_SCHEMA ".%s\" is not its id any more", RelationGetRelationName(rows->table)),
				 errhint("kliv_mail needs its own tables as it made them.")));
	CheckCmdReplicaIdentity(rows->table, CMD_DELETE);
	rows->estate->es_snapshot = GetActiveSnapshot();
	rows->scan = klm_index_beginscan(rows->table, rows->index, rows->estate->es_snapshot, 1);
	MemoryContextSwitchTo(old);
}

static void
values_of(KlmRows *rows, Datum *values, bool *nulls)
{
	slot_getallattrs(rows->slot);
	for (int i = 0; i < rows->count; i++)
	{
		values[i] = rows->slot->tts_values[rows->numbers[i]];
		nulls[i] = rows->slot->tts_isnull[rows->numbers[i]];
	}
}

KlmDeleted
klm_rows_delete(KlmRows *rows, Datum *values, bool *nulls)
{
	ItemPointerData place = rows->slot->tts_tid;
	TM_FailureData failure;
	TM_Result	result;

	if (rows->target->ri_TrigDesc == NULL)
		result = klm_tuple_delete(rows->table, &place, rows->estate->es_output_cid,
								  rows->estate->es_snapshot, &failure);
	else
		/* Triggers want a row that nobody changes any more. */
		result = table_tuple_lock(rows->table, &place, rows->estate->es_snapshot, rows->slot,
								  rows->estate->es_output_cid, LockTupleExclusive, LockWaitBlock,
								  0, &failure);
	if (result == TM_Ok && rows->target->ri_TrigDesc)
		return delete_with_triggers(rows) ? KLM_ROW_DELETED : KLM_ROW_GONE;
	if (result == TM_Ok)
		return KLM_ROW_DELETED;
	if (result == TM_Updated)
	{
		refuse_change(result);
		result = table_tuple_lock(rows->table, &place, rows->estate->es_snapshot, rows->slot,
								  rows->estate->es_output_cid, LockTupleExclusive, LockWaitBlock,
								  TUPLE_LOCK_FLAG_FIND_LAST_VERSION, &failure);
		if (result == TM_Ok)
		{
			values_of(rows, values, nulls);
			return KLM_ROW_CHANGED;
		}
	}
	if (result == TM_Deleted)
		refuse_change(result);
	else if (result == TM_SelfModified)
	{
		/* What was named twice is gone; what a trigger has changed must not be forgotten. */
		if (failure.cmax != rows->estate->es_output_cid)
			ereport(ERROR,
					(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
					 errmsg("a row of \"" KLM_SCHEMA ".%s\" was changed by a trigger of the command that deletes it",
							RelationGetRelationName(rows->table)),
					 errhint("Consider using an AFTER trigger instead of a BEFORE trigger to change other rows.")));
	}
	else
		elog(ERROR, "unexpected result of a deletion: %u", result);
	return KLM_ROW_GONE;
}

/* false: one of them keeps the row. */
static bool
delete_with_triggers(KlmRows *rows)
{
	EPQState	epq;

	klm_epq_init(&epq, rows->estate);
	ExecSimpleRelationDelete(rows->target, rows->estate, &epq, rows->slot);
	EvalPlanQualEnd(&epq);
	ResetPerTupleExprContext(rows->estate);
	return !table_tuple_satisfies_snapshot(rows->table, rows->slot, SnapshotSelf);
}

static void
refuse_change(TM_Result result)
{
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 result == TM_Updated ?
				 errmsg("could not serialize access due to concurrent update") :
				 errmsg("could not serialize access due to concurrent delete")));
}

void
klm_rows_end(KlmRows *rows)
{
	if (rows->scan)
	{
		index_endscan(rows->scan);
		index_close(rows->index, NoLock);
	}
	if (rows->guc_level > 0)
	{
		AfterTriggerEndQuery(rows->estate);
		AtEOXact_GUC(false, rows->guc_level);
	}
	ExecResetTupleTable(rows->estate->es_tupleTable, false);
	ExecCloseResultRelations(rows->estate);
	table_close(rows->table, NoLock);
	FreeExecutorState(rows->estate);
	pfree(rows);
	CommandCounterIncrement();
}
