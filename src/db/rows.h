/*-------------------------------------------------------------------------
 *
 * rows.h
 *		Rows of our tables that come and go, without a statement.
 *
 * For what every mail does: a statement costs more to set up than to run.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_ROWS_H
#define KLM_ROWS_H

#include "base/kliv_mail.h"

/* A column that is given a value; those that no list names are NULL. */
typedef struct KlmColumn
{
	const char *name;
	Oid			type;
} KlmColumn;

typedef struct KlmRows KlmRows;

/* A table, index or sequence in our schema, by its name, which is a literal. */
extern Oid	klm_relation(const char *name);

/* An id of ours: the next value of a sequence in our schema. */
extern int64 klm_next_id(const char *sequence);

/* Does a table of ours have no page, and so no row? */
extern bool klm_table_is_empty(const char *table);

/*
 * 42809 unless a table of ours is still one: what its owner made a partitioned one, a
 * view or a foreign table of, nothing here can read or write.
 */
extern PGDLLEXPORT void klm_rows_check(const char *table);

/*
 * Begin with a table of ours; the columns in the table's order.  Others that it has by
 * now get their defaults.  The extension's owner must be the current user, for whom
 * triggers run that somebody put on the table (those of each row; none of a statement).
 * What is allocated lives in the present memory context.
 */
extern KlmRows *klm_rows_begin(const char *table, const KlmColumn *columns, int count);

/* A row of such values, by the columns' order. */
extern void klm_rows_add(KlmRows *rows, const Datum *values, const bool *nulls);

/*
 * The row that has an id, by the primary key, as the active snapshot sees it: its values,
 * which live until the next one is looked for.  false: there is none.
 */
extern bool klm_rows_find(KlmRows *rows, int64 id, Datum *values, bool *nulls);

typedef enum KlmDeleted
{
	KLM_ROW_DELETED,
	KLM_ROW_CHANGED,			/* by another one meanwhile: the values are the new ones, and it
								 * is locked */
	KLM_ROW_GONE				/* another one deleted it, or somebody's trigger keeps it */
} KlmDeleted;

/*
 * Delete the row that was found; waits for who has locked it.  40001 where the
 * transaction's isolation lets it see no change of another one, 27000 where a trigger
 * of this very command has changed it.
 */
extern KlmDeleted klm_rows_delete(KlmRows *rows, Datum *values, bool *nulls);

/* What was done is seen by the next command of the transaction. */
extern void klm_rows_end(KlmRows *rows);

#endif							/* KLM_ROWS_H */
