/*-------------------------------------------------------------------------
 *
 * reports.c
 *		Query results as mail: csv() gives an attachment, html_table() a table
 *		for an HTML body.
 *
 * The query runs as the caller, with the caller's search_path and snapshot and
 * read-only: nothing here switches the user, and nothing is taken from a table
 * of ours.
 *
 * Calls SPI and the base folder.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "base/encoding.h"
#include "base/guc.h"
#include "base/text.h"

/* How many rows are fetched at a time, so that a large result is not held twice. */
#define FETCH_ROWS 1000

PG_FUNCTION_INFO_V1(kliv_mail_csv);
PG_FUNCTION_INFO_V1(kliv_mail_html_table);

/* Writes one row; values are NULL for SQL NULL, and for the heading the columns' names. */
typedef void (*WriteRow) (StringInfo out, TupleDesc desc, char **values, bool heading);

/*
 * Would a spreadsheet take the text for a formula?  It may come from anybody who
 * fills in a form, and a formula can send the sheet's other cells away.  A number
 * with its sign is none.  Their wide forms begin a formula too.
 */
static bool
is_formula(const char *value)
{
	static const char *const wide[] = {"\uFF1D", "\uFF0B", "\uFF0D", "\uFF20"};

	for (int i = 0; i < lengthof(wide); i++)
		if (strncmp(value, wide[i], strlen(wide[i])) == 0)
			return true;
	if (*value == '+' || *value == '-')
		return value[1] == '\0' || value[1 + strspn(value + 1, "0123456789.")] != '\0';
	return *value == '=' || *value == '@' || *value == '\t' || *value == '\r';
}

static bool
is_number(Oid type)
{
	char		category;
	bool		preferred;

	get_type_category_preferred(type, &category, &preferred);
	return category == TYPCATEGORY_NUMERIC;
}

static void
write_csv(StringInfo out, TupleDesc desc, char **values, bool heading, bool spreadsheet)
{
	for (int i = 0; i < desc->natts; i++)
	{
		const char *value = values[i];

		if (i > 0)
			appendStringInfoChar(out, ',');
		if (value == NULL)
			continue;
		/* The usual way to say that it is text, of columns that can hold any. */
		if (spreadsheet && is_formula(value) &&
			(heading || !is_number(TupleDescAttr(desc, i)->atttypid)))
			value = psprintf("'%s", value);
		/* RFC 4180; an empty text is quoted, so that it differs from NULL. */
		if (value[0] != '\0' && value[strcspn(value, ",\"\r\n")] == '\0' && value[0] != ' ' &&
			value[strlen(value) - 1] != ' ')
		{
			appendStringInfoString(out, value);
			continue;
		}
		appendStringInfoChar(out, '"');
		for (; *value; value++)
		{
			if (*value == '"')
				appendStringInfoChar(out, '"');
			appendStringInfoChar(out, *value);
		}
		appendStringInfoChar(out, '"');
	}
	appendStringInfoString(out, "\r\n");
}

static void
write_csv_row(StringInfo out, TupleDesc desc, char **values, bool heading)
{
	write_csv(out, desc, values, heading, false);
}

static void
write_sheet_row(StringInfo out, TupleDesc desc, char **values, bool heading)
{
	write_csv(out, desc, values, heading, true);
}

static void
write_html_row(StringInfo out, TupleDesc desc, char **values, bool heading)
{
	appendStringInfoString(out, "<tr>");
	for (int i = 0; i < desc->natts; i++)
	{
		const char *value = values[i] ? values[i] : "";

		appendStringInfo(out, "<%s style=\"border:1px solid #ccc;padding:4px 8px;text-align:%s\">",
						 heading ? "th" : "td",
						 is_number(TupleDescAttr(desc, i)->atttypid) ? "right" : "left");
		for (; *value; value++)
		{
			switch (*value)
			{
				case '&':
					appendStringInfoString(out, "&amp;");
					break;
				case '<':
					appendStringInfoString(out, "&lt;");
					break;
				case '>':
					appendStringInfoString(out, "&gt;");
					break;
				case '"':
					appendStringInfoString(out, "&quot;");
					break;
				case '\n':
					appendStringInfoString(out, "<br>");
					break;
				case '\r':
					break;
				default:
					appendStringInfoChar(out, *value);
			}
		}
		appendStringInfo(out, "</%s>", heading ? "th" : "td");
	}
	appendStringInfoString(out, "</tr>\n");
}

/* Run the query and write its rows to out, which lives in the caller's context. */
static void
write_result(const char *query, StringInfo out, WriteRow write_row)
{
	SPIPlanPtr	plan;
	Portal		portal;
	Size		limit = (Size) klm_max_message_size * 1024;
	bool		heading = true;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	plan = SPI_prepare(query, 0, NULL);
	if (plan == NULL || !SPI_is_cursor_plan(plan))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("query: is not one statement that gives rows"),
				 errhint("Give one SELECT, VALUES or TABLE statement.")));
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, true);
	for (;;)
	{
		TupleDesc	desc;
		char	  **values;

		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		desc = SPI_tuptable->tupdesc;
		values = palloc(Max(1, desc->natts) * sizeof(char *));
		if (heading)
		{
			for (int i = 0; i < desc->natts; i++)
				values[i] = SPI_fname(desc, i + 1);
			write_row(out, desc, values, true);
			heading = false;
		}
		for (uint64 row = 0; row < SPI_processed; row++)
		{
			for (int i = 0; i < desc->natts; i++)
				values[i] = SPI_getvalue(SPI_tuptable->vals[row], desc, i + 1);
			write_row(out, desc, values, false);
			for (int i = 0; i < desc->natts; i++)
			{
				if (values[i])
					pfree(values[i]);
			}
			if ((Size) out->len > limit)
				ereport(ERROR,
						(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						 errmsg("query: the result is over kliv_mail.max_message_size (%d kB)", klm_max_message_size),
						 errhint("Select fewer rows or columns.")));
		}
		if (SPI_processed < FETCH_ROWS)
			break;
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	SPI_finish();
}

/* csv(query, encoding) returns kliv_mail.attachment */
Datum
kliv_mail_csv(PG_FUNCTION_ARGS)
{
	char	   *query = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *name = klm_argument(fcinfo, 1);
	int			encoding = PG_UTF8;
	bool		mark = false;
	StringInfoData out;
	char	   *converted;
	Size		length;
	bytea	   *content;
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {false, false, true, false};

	/* Excel takes UTF-8 for the local encoding unless a byte order mark says otherwise. */
	if (pg_strcasecmp(name, "UTF8BOM") == 0)
		mark = true;
	else if (pg_strcasecmp(name, "SJIS") == 0)
		encoding = PG_SJIS;
	else if (pg_strcasecmp(name, "UTF8") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("encoding: \"%s\" is not a choice", klm_from_utf8_lossy(klm_shown(name, strlen(name)))),
				 errhint("Use UTF8BOM (Excel), UTF8 or SJIS.")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	initStringInfo(&out);
	/* Plain UTF8 is for programs, and gives every value as it is. */
	write_result(query, &out, mark || encoding == PG_SJIS ? write_sheet_row : write_csv_row);
	converted = pg_server_to_any(out.data, out.len, encoding);
	length = converted == out.data ? out.len : strlen(converted);
	content = palloc(VARHDRSZ + length + 3);
	SET_VARSIZE(content, VARHDRSZ + length + (mark ? 3 : 0));
	if (mark)
		memcpy(VARDATA(content), "\xEF\xBB\xBF", 3);
	memcpy(VARDATA(content) + (mark ? 3 : 0), converted, length);

	values[0] = CStringGetTextDatum("result.csv");
	/* Without a charset text is taken for ASCII (RFC 2046, 4.1.2). */
	values[1] = CStringGetTextDatum(encoding == PG_SJIS ? "text/csv; charset=Shift_JIS" : "text/csv; charset=utf-8");
	values[2] = (Datum) 0;
	values[3] = PointerGetDatum(content);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/* html_table(query) returns text */
Datum
kliv_mail_html_table(PG_FUNCTION_ARGS)
{
	char	   *query = text_to_cstring(PG_GETARG_TEXT_PP(0));
	StringInfoData out;

	initStringInfo(&out);
	appendStringInfoString(&out, "<table style=\"border-collapse:collapse\">\n");
	write_result(query, &out, write_html_row);
	appendStringInfoString(&out, "</table>\n");
	PG_RETURN_TEXT_P(cstring_to_text_with_len(out.data, out.len));
}
