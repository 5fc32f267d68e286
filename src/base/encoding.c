/*-------------------------------------------------------------------------
 *
 * encoding.c
 *		Text between the database's encoding and UTF-8, in which all our C works.
 *
 * Needs a server (its conversion functions).  Arguments of SQL functions are read here.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "common/string.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

#include "base/encoding.h"

/*
 * The server's conversion functions do the work; in a SQL_ASCII database they
 * verify that the text is UTF-8 and raise 22021 otherwise.
 */
char *
klm_to_utf8(const char *text)
{
	return pg_server_to_any(text, strlen(text), PG_UTF8);
}

char *
klm_from_utf8(const char *utf8)
{
	return pg_any_to_server(utf8, strlen(utf8), PG_UTF8);
}

char *
klm_to_utf8_or_null(const char *text)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *volatile result = NULL;

	PG_TRY();
	{
		result = klm_to_utf8(text);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(caller);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_CHARACTER_NOT_IN_REPERTOIRE &&
			error->sqlerrcode != ERRCODE_UNTRANSLATABLE_CHARACTER)
			PG_RE_THROW();
		/* Its message has bytes of the text, which may be a password. */
		FlushErrorState();
		FreeErrorData(error);
	}
	PG_END_TRY();
	return result;
}

char *
klm_argument_to_utf8(const char *argument, const char *text)
{
	char	   *utf8 = klm_to_utf8_or_null(text);

	if (utf8 == NULL && GetDatabaseEncoding() == PG_SQL_ASCII)
		ereport(ERROR,
				(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
				 errmsg("%s: not in UTF-8, as text in a SQL_ASCII database has to be", argument),
				 errhint("From LATIN1, for example: convert_from(convert(convert_to(..., 'SQL_ASCII'), 'LATIN1', 'UTF8'), 'SQL_ASCII').")));
	if (utf8 == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNTRANSLATABLE_CHARACTER),
				 errmsg("%s: a character has no equivalent in UTF-8", argument)));
	return utf8;
}

char *
klm_argument(FunctionCallInfo fcinfo, int number)
{
	char	   *value;
	HeapTuple	tuple;
	Datum		names;
	Datum		modes;
	char	  **argument_names;
	bool		isnull;
	int			count;

	if (PG_ARGISNULL(number))
		return NULL;
	value = text_to_cstring(PG_GETARG_TEXT_PP(number));
	if (GetDatabaseEncoding() == PG_UTF8 || pg_is_ascii(value))
		return value;

	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(fcinfo->flinfo->fn_oid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", fcinfo->flinfo->fn_oid);
	names = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_proargnames, &isnull);
	modes = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_proargmodes, &isnull);
	count = get_func_input_arg_names(names, isnull ? PointerGetDatum(NULL) : modes,
									 &argument_names);
	ReleaseSysCache(tuple);
	return klm_argument_to_utf8(number < count ? argument_names[number] : "argument", value);
}

/*
 * For error texts: what the database's encoding lacks becomes "?", so that the
 * error that is raised is the one that was meant.
 */
char *
klm_from_utf8_lossy(const char *utf8)
{
	int			encoding = GetDatabaseEncoding();
	Oid			converter;
	const unsigned char *from = (const unsigned char *) utf8;
	const unsigned char *end = from + strlen(utf8);
	StringInfoData out;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII || !IsTransactionState())
		return unconstify(char *, utf8);

	converter = FindDefaultConversionProc(PG_UTF8, encoding);
	initStringInfo(&out);
	while (from < end)
	{
		unsigned char buffer[MAX_CONVERSION_GROWTH * MAX_MULTIBYTE_CHAR_LEN + 1];
		int			length = Min(pg_utf_mblen(from), (int) (end - from));

		CHECK_FOR_INTERRUPTS();
		if (length == 1 && *from < 0x80)
			appendStringInfoChar(&out, *from);
		else if (!OidIsValid(converter) ||
				 pg_do_encoding_conversion_buf(converter, PG_UTF8, encoding,
											   unconstify(unsigned char *, from), length,
											   buffer, sizeof(buffer), true) != length)
			appendStringInfoChar(&out, '?');
		else
			appendStringInfoString(&out, (const char *) buffer);
		from += length;
	}
	return out.data;
}
