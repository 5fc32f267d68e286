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
 * Calls SPI, the base folder, and message/attachment.c for the file's name.
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
#include "base/error.h"
#include "base/guc.h"
#include "base/text.h"
#include "message/attachment.h"

/* How many rows are fetched at a time, so that a large result is not held twice. */
#define FETCH_ROWS 1000

PG_FUNCTION_INFO_V1(kliv_mail_csv);
PG_FUNCTION_INFO_V1(kliv_mail_html_table);

/* Writes one row; values are NULL for SQL NULL.  Row 0 is the heading: the columns' names. */
typedef void (*WriteRow) (StringInfo out, TupleDesc desc, char **values, uint64 row);

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
write_csv_row(StringInfo out, TupleDesc desc, char **values, uint64 row)
{
	write_csv(out, desc, values, row == 0, false);
}

static void
write_sheet_row(StringInfo out, TupleDesc desc, char **values, uint64 row)
{
	write_csv(out, desc, values, row == 0, true);
}

/* Where PostgreSQL finds a character that SJIS lacks: in which row, and what to do. */
static void
name_row(void *argument)
{
	uint64		row = *(uint64 *) argument;

	if (geterrcode() != ERRCODE_UNTRANSLATABLE_CHARACTER)
		return;
	if (row == 0)
		errhint("It is in the name of a column. UTF8BOM has every character, and Excel opens it too.");
	else
		errhint("It is in row " UINT64_FORMAT " of the result. UTF8BOM has every character, and Excel opens it too.",
				row);
}

/* Row by row, so that an error can say in which. */
static void
write_sjis_row(StringInfo out, TupleDesc desc, char **values, uint64 row)
{
	int			start = out->len;
	ErrorContextCallback context = {error_context_stack, name_row, &row};
	char	   *converted;

	write_csv(out, desc, values, row == 0, true);
	error_context_stack = &context;
	converted = pg_server_to_any(out->data + start, out->len - start, PG_SJIS);
	error_context_stack = context.previous;
	if (converted == out->data + start)
		return;
	out->len = start;
	appendStringInfoString(out, converted);
	pfree(converted);
}

static void
write_html_row(StringInfo out, TupleDesc desc, char **values, uint64 row)
{
	bool		heading = row == 0;

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
	uint64		number = 0;

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
		if (number == 0)
		{
			for (int i = 0; i < desc->natts; i++)
				values[i] = SPI_fname(desc, i + 1);
			write_row(out, desc, values, number++);
		}
		for (uint64 row = 0; row < SPI_processed; row++)
		{
			for (int i = 0; i < desc->natts; i++)
				values[i] = SPI_getvalue(SPI_tuptable->vals[row], desc, i + 1);
			write_row(out, desc, values, number++);
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

/*
 * Is the name one of an encoding's, as people write it: SJIS, Shift_JIS, CP932?
 * What PostgreSQL calls SJIS is Windows-31J, with its ㈱, ① and 髙.
 */
static bool
names_encoding(const char *name, const char *const *known)
{
	char		letters[16];
	int			length = 0;

	for (; *name; name++)
	{
		if (*name == '-' || *name == '_' || *name == ' ')
			continue;
		if (length == sizeof(letters) - 1)
			return false;
		letters[length++] = *name;
	}
	letters[length] = '\0';
	for (; *known; known++)
		if (pg_strcasecmp(letters, *known) == 0)
			return true;
	return false;
}

/* csv(query, encoding, filename) returns kliv_mail.attachment */
Datum
kliv_mail_csv(PG_FUNCTION_ARGS)
{
	static const char *const utf8bom[] = {"UTF8BOM", NULL};
	static const char *const utf8[] = {"UTF8", NULL};
	static const char *const sjis[] = {"SJIS", "ShiftJIS", "CP932", "MS932", "Windows31J", NULL};
	char	   *query = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *name = klm_argument(fcinfo, 1);
	KlmAttachment attachment = {0};
	KlmError	error;
	WriteRow	write_row = write_sheet_row;
	StringInfoData out;
	TupleDesc	desc;
	Datum		values[4];
	bool		nulls[4] = {false, false, true, false};

	initStringInfo(&out);
	appendStringInfoSpaces(&out, VARHDRSZ);
	attachment.filename = klm_argument(fcinfo, 2);
	/* Without a charset text is taken for ASCII (RFC 2046, 4.1.2). */
	attachment.content_type = "text/csv; charset=utf-8";
	/* Excel takes UTF-8 for the local encoding unless a byte order mark says otherwise. */
	if (names_encoding(name, utf8bom))
		appendStringInfoString(&out, "\xEF\xBB\xBF");
	else if (names_encoding(name, sjis))
	{
		write_row = write_sjis_row;
		attachment.content_type = "text/csv; charset=Windows-31J";
	}
	else if (names_encoding(name, utf8))
		write_row = write_csv_row;	/* for programs: every value as it is */
	else
		klm_refuse("encoding", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Use UTF8BOM (Excel), UTF8 or SJIS (Windows-31J, Japan's).",
				   "\"%s\" is not a choice", klm_shown(name, strlen(name)));
	if (!klm_mime_check_attachment(&attachment, klm_prohibited_extensions, &error))
		klm_raise("filename", &error, false);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	write_result(query, &out, write_row);
	SET_VARSIZE(out.data, out.len);
	values[0] = CStringGetTextDatum(klm_from_utf8(attachment.filename));
	values[1] = CStringGetTextDatum(attachment.content_type);
	values[2] = (Datum) 0;
	values[3] = PointerGetDatum(out.data);
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
