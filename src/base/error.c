/*-------------------------------------------------------------------------
 *
 * error.c
 *		Errors as values: filled in where something is found wrong.
 *
 * Pure: palloc and StringInfo.  What raises them is raise.c.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "base/error.h"

bool
klm_fail(KlmError *error, int sqlstate, const char *hint, const char *format,...)
{
	StringInfoData message;
	int			saved_errno = errno;

	if (error == NULL)
		return false;
	initStringInfo(&message);
	for (;;)
	{
		va_list		args;
		int			needed;

		errno = saved_errno;
		va_start(args, format);
		needed = appendStringInfoVA(&message, format, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&message, needed);
	}
	error->sqlstate = sqlstate;
	error->message = message.data;
	error->hint = hint != NULL ? pstrdup(hint) : NULL;
	return false;
}
