/*-------------------------------------------------------------------------
 *
 * text_writer.h
 *		Plain text of paragraphs, lists, quotes and tables.
 *
 * Pure.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_TEXT_WRITER_H
#define KLM_TEXT_WRITER_H

#include "lib/stringinfo.h"

#include "base/kliv_mail.h"

#define KLM_TEXT_DEPTH 64

typedef struct KlmTextCell
{
	int			offset;			/* in cells */
	int			length;
	int			width;
	char		align;			/* 'l', 'c', 'r' */
} KlmTextCell;

typedef struct KlmTextWriter
{
	StringInfo	out;
	int			breaks;			/* line ends due before the next text */
	bool		line_start;
	StringInfoData prefix;		/* of each line */
	int			common;			/* its octets that the last line has, too */
	int			depth;
	int			widths[KLM_TEXT_DEPTH]; /* what each level added to prefix */
	char		marker[16];		/* an item's, due on its first line; "" */

	bool		in_cell;
	int			columns;
	StringInfoData cells;		/* the texts of all */
	KlmTextCell *cell;
	int			cell_count;
	int			cell_space;
} KlmTextWriter;

extern void klm_text_begin(KlmTextWriter *writer, StringInfo out);
extern void klm_text_put(KlmTextWriter *writer, const char *text, int length);
/* What comes begins at the end of the output: line ends and prefixes that are due are there. */
extern void klm_text_here(KlmTextWriter *writer);
/* At least so many line ends before what comes: 2 leave an empty line. */
extern void klm_text_break(KlmTextWriter *writer, int breaks);
/* Lines begin with more; with a marker, the first one has that in its place. */
extern void klm_text_indent(KlmTextWriter *writer, const char *prefix, const char *marker);
extern void klm_text_dedent(KlmTextWriter *writer);
/* The columns that a text takes where letters have one width. */
extern int	klm_text_width(const char *text, int length);

extern void klm_text_begin_table(KlmTextWriter *writer, int columns);
extern void klm_text_begin_cell(KlmTextWriter *writer, char align);
extern void klm_text_end_cell(KlmTextWriter *writer);
extern void klm_text_end_table(KlmTextWriter *writer);

#endif							/* KLM_TEXT_WRITER_H */
