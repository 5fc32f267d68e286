/*-------------------------------------------------------------------------
 *
 * owner_call.h
 *		Our SQL functions, run as the extension's owner.
 *
 * A caller of the extension needs EXECUTE and nothing else: the C function
 * remembers who it is, becomes the owner, and calls kliv_mail._something(),
 * to which the caller's name is an argument where it matters.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_OWNER_CALL_H
#define KLM_OWNER_CALL_H

#include "fmgr.h"

#include "base/kliv_mail.h"

/* Who called, to be returned to. */
typedef struct KlmCaller
{
	Oid			user;
	int			context;
} KlmCaller;

/*
 * Become the owner of the SQL function that was called, under the restrictions
 * of one, so that nothing that a table's or a type's owner wrote runs with
 * its rights.  An error undoes it with the (sub)transaction.
 */
extern PGDLLEXPORT void klm_become_owner(Oid function, KlmCaller *caller);
extern PGDLLEXPORT void klm_become_caller(const KlmCaller *caller);

/* The same with SPI connected, and disconnected. */
extern PGDLLEXPORT void klm_enter_owner(FunctionCallInfo fcinfo, KlmCaller *caller);
extern PGDLLEXPORT void klm_leave_owner(const KlmCaller *caller);

/* The arguments of a call of one of our SQL functions; {0} has none. */
typedef struct KlmCall
{
	int			count;
	Oid			types[FUNC_MAX_ARGS];
	Datum		values[FUNC_MAX_ARGS];
	char		nulls[FUNC_MAX_ARGS];
} KlmCall;

extern PGDLLEXPORT void klm_add(KlmCall *call, Oid type, Datum value, bool isnull);
extern PGDLLEXPORT void klm_add_text(KlmCall *call, const char *utf8);	/* NULL: SQL NULL */
extern PGDLLEXPORT void klm_add_bool(KlmCall *call, bool value);
extern PGDLLEXPORT void klm_add_int4(KlmCall *call, int32 value);
extern PGDLLEXPORT void klm_add_int8(KlmCall *call, int64 value);
extern PGDLLEXPORT void klm_add_bytea(KlmCall *call, const bytea *value);
extern PGDLLEXPORT void klm_add_time(KlmCall *call, TimestampTz value);
extern PGDLLEXPORT void klm_add_caller(KlmCall *call, const KlmCaller *caller);

/*
 * SELECT * FROM kliv_mail._<function>(...), by a plan that the session keeps,
 * with SPI connected; the rows are in SPI_tuptable.  What the function raises
 * on purpose comes without the lines of our code.  The name must be a string
 * constant.  read_only: it sees the caller's snapshot.
 */
extern PGDLLEXPORT void klm_run(KlmCall *call, const char *function, bool read_only);

/* klm_run() of a function that gives one row. */
extern PGDLLEXPORT void klm_run_one(KlmCall *call, const char *function, bool read_only);

/* A column of the first row of what klm_run() got, the first being 1. */
extern PGDLLEXPORT bool klm_result_bool(int column);
extern PGDLLEXPORT int64 klm_result_int8(int column);	/* of int4 or int8; 0 for NULL */
extern PGDLLEXPORT TimestampTz klm_result_time(int column);	/* 0 for NULL */
extern PGDLLEXPORT char *klm_result_text(int column, MemoryContext context);	/* UTF-8, or NULL */

/* The elements of a text[] in UTF-8, without the NULLs; none for NULL. */
extern PGDLLEXPORT char **klm_result_texts(int column, MemoryContext context, int *count);

/* The elements of a bigint[] without NULLs; count may be NULL. */
extern PGDLLEXPORT int64 *klm_result_int8s(int column, MemoryContext context, int *count);

/* The value of that column becomes the result of the SQL function that was called. */
extern PGDLLEXPORT Datum klm_return_value(FunctionCallInfo fcinfo, int column);

/* The rows that klm_run() got become the result of the SQL function that was called. */
extern PGDLLEXPORT void klm_return_rows(FunctionCallInfo fcinfo);

#endif							/* KLM_OWNER_CALL_H */
