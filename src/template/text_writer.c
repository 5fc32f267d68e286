/*-------------------------------------------------------------------------
 *
 * text_writer.c
 *		Plain text of paragraphs, lists, quotes and tables.
 *
 * Pure: palloc and StringInfo.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "template/held.h"
#include "template/text_writer.h"

/* A wider table is written as a list of its rows. */
#define MOST_TABLE_WIDTH 76

void
klm_text_begin(KlmTextWriter *writer, StringInfo out)
{
	memset(writer, 0, sizeof(*writer));
	writer->out = out;
	writer->line_start = true;
	initStringInfo(&writer->prefix);
	initStringInfo(&writer->cells);
}

int
klm_text_width(const char *text, int length)
{
	int			width = 0;

	for (int i = 0; i < length;)
	{
		int			size = pg_encoding_mblen(PG_UTF8, text + i);
		int			columns = 1;

		if ((unsigned char) text[i] >= 0x80 && i + size <= length)
			columns = pg_encoding_dsplen(PG_UTF8, text + i);
		width += Max(columns, 0);
		i += size;
	}
	return width;
}

/* The line ends that are due, and the prefix of the line that begins. */
static void
begin_line(KlmTextWriter *writer)
{
	int			prefix = writer->prefix.len;
	int			marker = strlen(writer->marker);

	for (; writer->breaks > 0; writer->breaks--)
	{
		if (writer->out->len == 0)
			continue;
		appendStringInfoChar(writer->out, '\n');
		if (writer->breaks > 1)
		{
			int			bare = Min(writer->common, prefix);

			/* An empty line of a quotation carries its sign. */
			while (bare > 0 && writer->prefix.data[bare - 1] == ' ')
				bare--;
			appendBinaryStringInfo(writer->out, writer->prefix.data, bare);
		}
	}
	appendBinaryStringInfo(writer->out, writer->prefix.data, prefix - Min(marker, prefix));
	appendStringInfoString(writer->out, writer->marker);
	writer->marker[0] = '\0';
	writer->common = prefix;
	writer->line_start = false;
}

void
klm_text_put(KlmTextWriter *writer, const char *text, int length)
{
	const char *end = text + length;

	if (writer->in_cell)
	{
		for (; text < end; text++)
			appendStringInfoChar(&writer->cells, *text == '\n' || *text == '\r' ? ' ' : *text);
		return;
	}
	while (text < end)
	{
		const char *line_end = memchr(text, '\n', end - text);
		int			line = (line_end ? line_end : end) - text;

		if (line > 0 && text[line - 1] == '\r')
			line--;
		if (line > 0)
		{
			if (writer->line_start || writer->breaks > 0)
				begin_line(writer);
			appendBinaryStringInfo(writer->out, text, line);
		}
		if (line_end)
			writer->breaks++;
		text = line_end ? line_end + 1 : end;
	}
}

void
klm_text_here(KlmTextWriter *writer)
{
	if (!writer->in_cell && (writer->line_start || writer->breaks > 0))
		begin_line(writer);
}

void
klm_text_break(KlmTextWriter *writer, int breaks)
{
	if (!writer->line_start)
		writer->breaks = Max(writer->breaks, breaks);
}

void
klm_text_indent(KlmTextWriter *writer, const char *prefix, const char *marker)
{
	/* Deeper than that the markdown is refused. */
	if (writer->depth == KLM_TEXT_DEPTH)
		return;
	/* An item that holds nothing but a list has its sign on the list's first line. */
	if (writer->marker[0])
		begin_line(writer);
	writer->widths[writer->depth++] = strlen(prefix);
	appendStringInfoString(&writer->prefix, prefix);
	if (marker)
		strlcpy(writer->marker, marker, sizeof(writer->marker));
}

void
klm_text_dedent(KlmTextWriter *writer)
{
	if (writer->depth == 0)
		return;
	if (writer->marker[0])
		begin_line(writer);
	writer->prefix.len -= writer->widths[--writer->depth];
	writer->prefix.data[writer->prefix.len] = '\0';
	writer->common = Min(writer->common, writer->prefix.len);
}

/* ----------------------------------------------------------------
 * Tables: held until they end, since columns are as wide as their widest cell
 * ----------------------------------------------------------------
 */

void
klm_text_begin_table(KlmTextWriter *writer, int columns)
{
	writer->columns = columns;
	writer->cell_count = 0;
	resetStringInfo(&writer->cells);
}

void
klm_text_begin_cell(KlmTextWriter *writer, char align)
{
	KlmTextCell *cell;

	if (writer->cell_count == writer->cell_space)
	{
		writer->cell_space = Max(64, 2 * writer->cell_space);
		writer->cell = writer->cell == NULL ? palloc(writer->cell_space * sizeof(KlmTextCell)) :
			repalloc(writer->cell, writer->cell_space * sizeof(KlmTextCell));
	}
	cell = &writer->cell[writer->cell_count++];
	memset(cell, 0, sizeof(*cell));
	cell->offset = writer->cells.len;
	cell->align = align;
	writer->in_cell = true;
}

void
klm_text_end_cell(KlmTextWriter *writer)
{
	KlmTextCell *cell = &writer->cell[writer->cell_count - 1];

	cell->length = writer->cells.len - cell->offset;
	cell->width = klm_text_width(writer->cells.data + cell->offset, cell->length);
	writer->in_cell = false;
}

static void
put_spaces(KlmTextWriter *writer, int count)
{
	static const char spaces[] = "                ";

	for (; count > 0; count -= (int) sizeof(spaces) - 1)
		klm_text_put(writer, spaces, Min(count, (int) sizeof(spaces) - 1));
}

static void
put_cell(KlmTextWriter *writer, const KlmTextCell *cell)
{
	klm_text_put(writer, writer->cells.data + cell->offset, cell->length);
}

/* A row of columns; it ends where its last text does. */
static void
put_row(KlmTextWriter *writer, int first, const int *widths)
{
	int			last = writer->columns - 1;

	while (last > 0 && writer->cell[first + last].length == 0)
		last--;
	for (int i = 0; i <= last; i++)
	{
		const KlmTextCell *cell = &writer->cell[first + i];
		int			space = widths[i] - cell->width;
		int			before = cell->align == 'r' ? space : cell->align == 'c' ? space / 2 : 0;

		put_spaces(writer, before + (i > 0 ? 2 : 0));
		put_cell(writer, cell);
		if (i < last)
			put_spaces(writer, space - before);
	}
	klm_text_break(writer, 1);
}

/* A wide table: each row as lines of "heading: text". */
static void
put_list(KlmTextWriter *writer)
{
	for (int first = writer->columns; first < writer->cell_count; first += writer->columns)
	{
		/* The headings come again and again. */
		if (writer->out->len > KLM_MAX_OUTPUT)
			return;
		for (int i = 0; i < writer->columns; i++)
		{
			if (writer->cell[first + i].length == 0)
				continue;
			put_cell(writer, &writer->cell[i]);
			if (writer->cell[i].length > 0)
				klm_text_put(writer, ": ", 2);
			put_cell(writer, &writer->cell[first + i]);
			klm_text_break(writer, 1);
		}
		klm_text_break(writer, 2);
	}
}

/* A table of two columns without headings: what each row is about, and the rest. */
static void
put_pairs(KlmTextWriter *writer)
{
	for (int first = 2; first < writer->cell_count; first += 2)
	{
		put_cell(writer, &writer->cell[first]);
		if (writer->cell[first].length > 0 && writer->cell[first + 1].length > 0)
			klm_text_put(writer, ": ", 2);
		put_cell(writer, &writer->cell[first + 1]);
		klm_text_break(writer, 1);
	}
}

/* Rows of columns, with a line below the headings. */
static void
put_rows(KlmTextWriter *writer, const int *widths, int total, bool headings)
{
	int			columns = writer->columns;

	for (int first = headings ? 0 : columns; first < writer->cell_count; first += columns)
	{
		put_row(writer, first, widths);
		if (first == 0)
		{
			for (int i = 0; i < total; i++)
				klm_text_put(writer, "-", 1);
			klm_text_break(writer, 1);
		}
	}
}

void
klm_text_end_table(KlmTextWriter *writer)
{
	int			columns = writer->columns;
	int		   *widths;
	int			total = 2 * (columns - 1);
	bool		headings = false;

	if (columns <= 0 || writer->cell_count % columns != 0)
		return;
	widths = palloc0(columns * sizeof(int));
	for (int i = 0; i < writer->cell_count; i++)
	{
		widths[i % columns] = Max(widths[i % columns], writer->cell[i].width);
		headings |= i < columns && writer->cell[i].length > 0;
	}
	for (int i = 0; i < columns; i++)
		total += widths[i];
	if (!headings && columns == 2)
		put_pairs(writer);
	else if (total > MOST_TABLE_WIDTH)
		put_list(writer);
	else
		put_rows(writer, widths, total, headings);
	pfree(widths);
}
