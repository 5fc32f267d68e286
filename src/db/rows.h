/*-------------------------------------------------------------------------
 *
 * rows.h
 *		New rows of our tables, without a statement.
 *
 * For what every send() does: an INSERT costs more to set up than to run.
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
 * Begin to put rows into a table of ours; the columns in the table's order.  The
 * extension's owner must be the current user, for whom triggers run that somebody
 * put on the table.  What is allocated lives in the present memory context.
 */
extern KlmRows *klm_rows_begin(const char *table, const KlmColumn *columns, int count);

/* A row of such values, by the columns' order. */
extern void klm_rows_add(KlmRows *rows, const Datum *values, const bool *nulls);

/* The rows are there for the next command of the transaction. */
extern void klm_rows_end(KlmRows *rows);

#endif							/* KLM_ROWS_H */
