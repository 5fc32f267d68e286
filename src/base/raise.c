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
#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "base/encoding.h"
#include "base/error.h"

/* No error has more octets, whatever it repeats of what it was given. */
#define TEXT_BYTES 2000

/* A text in the database's encoding, cut where it is longer than any has to be. */
static char *
bounded(char *text)
{
	int			length = text ? strlen(text) : 0;

	if (length <= TEXT_BYTES)
		return text;
	return psprintf("%.*s...", pg_mbcliplen(text, length, TEXT_BYTES), text);
}

/* The same for UTF-8, before each of its characters is converted. */
static const char *
bounded_utf8(const char *utf8)
{
	Size		length = strlen(utf8);

	if (length <= TEXT_BYTES)
		return utf8;
	for (length = TEXT_BYTES; length > 0 && (utf8[length] & 0xC0) == 0x80;)
		length--;
	return psprintf("%.*s...", (int) length, utf8);
}

void
klm_raise(const char *argument, const KlmError *error, bool secret)
{
	const char *message = klm_from_utf8_lossy(bounded_utf8(error->message));

	ereport(ERROR,
			(errcode(error->sqlstate),
			 argument != NULL ? errmsg("%s: %s", argument, message) : errmsg("%s", message),
			 error->hint != NULL ? errhint("%s", klm_from_utf8_lossy(bounded_utf8(error->hint))) : 0,
			 argument != NULL ? err_generic_string(PG_DIAG_COLUMN_NAME, argument) : 0,
			 secret ? errhidestmt(true) : 0,
			 secret ? errhidecontext(true) : 0));
}

/* The argument that an error of our SQL functions begins with, for programs; NULL: none. */
static char *
argument_named(const char *message)
{
	Size		length = message ? strspn(message, "abcdefghijklmnopqrstuvwxyz_") : 0;

	return length > 0 && message[length] == ':' ? pnstrdup(message, length) : NULL;
}

void
klm_rethrow(MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	error->message = bounded(error->message);
	error->detail = bounded(error->detail);
	error->hint = bounded(error->hint);
	if (error->funcname != NULL && (strcmp(error->funcname, "exec_stmt_raise") == 0 ||
									strcmp(error->funcname, "klm_raise") == 0 ||
									strcmp(error->funcname, "klm_argument_to_utf8") == 0))
	{
		error->context = NULL;
		error->internalquery = NULL;
		error->internalpos = 0;
		if (error->column_name == NULL)
			error->column_name = argument_named(error->message);
	}
	/* (which asks the callers' own context, as ReThrowError() does not) */
	ThrowErrorData(error);
	pg_unreachable();
}
