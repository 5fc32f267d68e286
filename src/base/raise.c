/*-------------------------------------------------------------------------
 *
 * raise.c
 *		Errors as values, and those of our own SQL functions, become errors.
 *
 * Needs a server.  Called by everything that is not pure.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/memutils.h"

#include "base/encoding.h"
#include "base/error.h"

void
klm_raise(const char *argument, const KlmError *error, bool secret)
{
	const char *message = klm_from_utf8_lossy(error->message);

	ereport(ERROR,
			(errcode(error->sqlstate),
			 argument != NULL ? errmsg("%s: %s", argument, message) : errmsg("%s", message),
			 error->hint != NULL ? errhint("%s", klm_from_utf8_lossy(error->hint)) : 0,
			 secret ? errhidestmt(true) : 0,
			 secret ? errhidecontext(true) : 0));
}

void
klm_rethrow(MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	if (error->funcname != NULL && (strcmp(error->funcname, "exec_stmt_raise") == 0 ||
									strcmp(error->funcname, "klm_raise") == 0 ||
									strcmp(error->funcname, "klm_argument_to_utf8") == 0))
	{
		error->context = NULL;
		error->internalquery = NULL;
		error->internalpos = 0;
	}
	/* (which asks the callers' own context, as ReThrowError() does not) */
	ThrowErrorData(error);
	pg_unreachable();
}
