/*-------------------------------------------------------------------------
 *
 * markdown.c
 *		Markdown (GitHub's dialect, by md4c) to HTML and to plain text, in one
 *		pass.
 *
 * The only file that includes md4c.  md4c parses a text in which values are
 * placeholders; its callbacks below write both outputs, and put each value in as
 * its place asks for.  md4c has its memory from malloc(): what palloc() raises in
 * a callback is held back until md4c has returned, and so has freed it.
 *
 * Styles are inline, since some mail clients read no others; what adapts to
 * darkness has a class, for which the layout (layout.c) has rules.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <md4c.h>

#include "mb/pg_wchar.h"

#include "message/html_to_text.h"
#include "template/html.h"
#include "template/markdown.h"
#include "template/text_writer.h"

#define MAX_BLOCKS		48
/* Of "[label]: URL", which md4c looks up in a list where labels are the same. */
#define MAX_DEFINITIONS 1000

#define BORDER	"#d0d7de"
#define MONO	"font-family:Consolas,Menlo,monospace"

typedef struct Maker
{
	KlmMarkdown *markdown;
	const char *source;
	int			length;
	StringInfo	html;
	KlmTextWriter text;
	StringInfo	text_out;
	KlmError   *error;
	bool		raised;			/* a callback was ended by an error of the server's */

	int			depth;			/* of blocks */
	bool		had_h1;
	bool		in_code;		/* a block of it */
	int			column;			/* of the table's row */
	int			head_start;		/* in html, of the table's headings */
	bool		headings;		/* is there anything in them? */
	bool		is_headed;		/* and so the table has them */
	int			heading_level;
	int			heading_start;	/* in text_out; -1: not begun */
	bool		tight[MAX_BLOCKS + 1];	/* lists, by depth */
	int			numbers[MAX_BLOCKS + 1];	/* of the next item; -1: unordered */
	int			lists;

	KlmHtml		raw;			/* the author's HTML */
	int			raw_start;		/* in html */
	int			images;			/* open ones: what is in them is the text of the first */
	bool		image_shown;
	bool		image_has_text;
	StringInfoData image_title;
	int			links;			/* open ones, of which there can be one */
	bool		link_open;		/* and shown as one */
	bool		link_button;
	int			link_start;		/* in text_out, or in the cell */
	StringInfoData url;			/* of the open link */
} Maker;

static int	enter_block(MD_BLOCKTYPE type, void *detail, void *data);
static int	leave_block(MD_BLOCKTYPE type, void *detail, void *data);
static int	enter_span(MD_SPANTYPE type, void *detail, void *data);
static int	leave_span(MD_SPANTYPE type, void *detail, void *data);
static int	put_md_text(MD_TEXTTYPE type, const char *text, MD_SIZE size, void *data);

/* Such an error stops the parser; klm_markdown_render() raises it again. */
#define CALLBACK(call) \
	volatile int result = -1; \
	PG_TRY(); \
	{ \
		result = (call); \
	} \
	PG_CATCH(); \
	{ \
		((Maker *) data)->raised = true; \
	} \
	PG_END_TRY(); \
	return result

static int
on_enter_block(MD_BLOCKTYPE type, void *detail, void *data)
{
	CALLBACK(enter_block(type, detail, data));
}

static int
on_leave_block(MD_BLOCKTYPE type, void *detail, void *data)
{
	CALLBACK(leave_block(type, detail, data));
}

static int
on_enter_span(MD_SPANTYPE type, void *detail, void *data)
{
	CALLBACK(enter_span(type, detail, data));
}

static int
on_leave_span(MD_SPANTYPE type, void *detail, void *data)
{
	CALLBACK(leave_span(type, detail, data));
}

static int
on_text(MD_TEXTTYPE type, const char *text, MD_SIZE size, void *data)
{
	CALLBACK(put_md_text(type, text, size, data));
}

bool
klm_markdown_render(KlmMarkdown *markdown, const char *source, int length, StringInfo html,
					StringInfo text, KlmError *error)
{
	MD_PARSER	parser = {
		.flags = MD_DIALECT_GITHUB | (markdown->raw_html ? 0 : MD_FLAG_NOHTML),
		.enter_block = on_enter_block, .leave_block = on_leave_block,
		.enter_span = on_enter_span, .leave_span = on_leave_span, .text = on_text
	};
	Maker	   *maker = palloc0(sizeof(Maker));
	int			definitions = 0;
	int			result;

	for (const char *pos = source; (pos = strstr(pos, "]:")) != NULL; pos += 2)
		definitions++;
	if (definitions > MAX_DEFINITIONS)
		return klm_fail(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, "Write the URL into the link: [text](https://...).",
						"over %d definitions of links", MAX_DEFINITIONS);
	maker->markdown = markdown;
	maker->source = source;
	maker->length = length;
	maker->html = html;
	maker->text_out = text;
	maker->error = error;
	klm_text_begin(&maker->text, text);
	klm_html_begin(&maker->raw, markdown->holder, html, markdown->notes);
	klm_note_source(markdown->notes, source, length);
	initStringInfo(&maker->url);
	initStringInfo(&maker->image_title);
	result = md_parse(source, length, &parser, maker);
	if (maker->raised)
		PG_RE_THROW();
	if (result < 0)
		return klm_fail(error, ERRCODE_OUT_OF_MEMORY, NULL, "out of memory");
	return result == 0;
}

/* ----------------------------------------------------------------
 * Common to all
 * ----------------------------------------------------------------
 */

static void
put(Maker *maker, const char *html)
{
	appendStringInfoString(maker->html, html);
}

static void
put_text(Maker *maker, const char *text)
{
	klm_text_put(&maker->text, text, strlen(text));
}

/* Where the text output stands, be it in a table's cell. */
static StringInfo
text_target(Maker *maker)
{
	return maker->text.in_cell ? &maker->text.cells : maker->text_out;
}

/* What every callback returns. */
static int
check_sizes(Maker *maker)
{
	if (maker->html->len <= KLM_MAX_OUTPUT && maker->text_out->len <= KLM_MAX_OUTPUT &&
		maker->text.cells.len <= KLM_MAX_OUTPUT)
		return 0;
	(void) klm_fail(maker->error, ERRCODE_PROGRAM_LIMIT_EXCEEDED,
					"Show fewer items, or shorter texts.",
					"over %d kB as rendered", KLM_MAX_OUTPUT / 1024);
	return 1;
}

static void
note(Maker *maker, KlmNoteKind kind, const char *detail)
{
	klm_note(maker->markdown->notes, kind, detail);
}

static bool
has_placeholder(Maker *maker, const char *text, int length)
{
	const char *at;
	const char *next;

	return klm_held_next(maker->markdown->holder, text, text + length, &at, &next) != NULL;
}

/* A text with values, in which nothing else is left to read. */
static void
put_literal(Maker *maker, const char *text, int length, bool code)
{
	const char *end = text + length;

	while (text < end)
	{
		const char *at;
		const char *next;
		const KlmHeldValue *value = klm_held_next(maker->markdown->holder, text, end, &at, &next);

		klm_put_escaped(maker->html, text, at - text);
		klm_text_put(&maker->text, text, at - text);
		if (value != NULL)
		{
			if (value->raw && maker->markdown->raw_html && maker->images == 0 && !code)
				appendBinaryStringInfo(maker->html, value->text, value->length);
			else if (maker->images > 0 || code)
				klm_put_escaped(maker->html, value->text, value->length);
			else
				klm_put_lines(maker->html, value->text, value->length);
			if (value->raw && !maker->markdown->raw_html)
				note(maker, KLM_NOTE_RAW_VALUE, NULL);
			klm_text_put(&maker->text, value->text, value->length);
		}
		text = next;
	}
}

/* "&amp;" and its kin, which a value behind a bare & looks like. */
static void
put_entity(Maker *maker, const char *text, int length)
{
	const char *end = text + length;
	unsigned char utf8[8];
	uint32		ch;

	if (has_placeholder(maker, text, length))
		put_literal(maker, text, length, false);
	else if (klm_html_entity(text, end, &ch) != end)
		put_literal(maker, text, length, false);
	else if (ch >= 0x20 && (ch < 0x7F || ch > 0x9F))
	{
		unicode_to_utf8(ch == 0xA0 ? ' ' : ch, utf8);
		appendBinaryStringInfo(maker->html, text, length);
		klm_text_put(&maker->text, (char *) utf8, pg_utf_mblen(utf8));
	}
}

/* An attribute's text with its entities read; placeholders stay. */
static void
read_attribute(Maker *maker, const MD_ATTRIBUTE *attribute, StringInfo out)
{
	resetStringInfo(out);
	if (attribute->size == 0)
		return;
	klm_note_place(maker->markdown->notes, attribute->text);
	for (int i = 0; attribute->substr_offsets[i] < attribute->size; i++)
	{
		const char *text = attribute->text + attribute->substr_offsets[i];
		const char *end = attribute->text + attribute->substr_offsets[i + 1];
		unsigned char utf8[8];
		uint32		ch;

		if (attribute->substr_types[i] == MD_TEXT_ENTITY && !has_placeholder(maker, text, end -
																			 text) &&
			klm_html_entity(text, end, &ch) == end)
		{
			if (ch == 0)
				continue;
			unicode_to_utf8(ch, utf8);
			appendBinaryStringInfo(out, (char *) utf8, pg_utf_mblen(utf8));
		}
		else
			appendBinaryStringInfo(out, text, end - text);
	}
}

/* ----------------------------------------------------------------
 * Blocks
 * ----------------------------------------------------------------
 */

static void
enter_heading(Maker *maker, int level)
{
	static const char *const styles[] = {
		"margin:0 0 16px;font-size:24px;line-height:32px;font-weight:bold",
		"margin:24px 0 12px;font-size:20px;line-height:28px;font-weight:bold",
		"margin:24px 0 8px;font-size:17px;line-height:24px;font-weight:bold"
	};

	/* A page has one first heading. */
	if (level == 1 && maker->had_h1)
		level = 2;
	maker->had_h1 |= level == 1;
	appendStringInfo(maker->html, "<h%d style=\"%s\">", level,
					 styles[Min(level, (int) lengthof(styles)) - 1]);
	klm_text_break(&maker->text, 2);
	maker->heading_start = -1;
	maker->heading_level = level;
}

/* In the text, the two upper levels are underlined. */
static void
leave_heading(Maker *maker)
{
	int			level = maker->heading_level;
	const char *start;
	const char *line;
	int			width;

	appendStringInfo(maker->html, "</h%d>\n", level);
	if (level <= 2 && maker->heading_start >= 0)
	{
		start = maker->text_out->data + maker->heading_start;
		line = strrchr(start, '\n');
		line = line ? line + 1 : start;
		width = Min(klm_text_width(line, strlen(line)), 60);
		klm_text_break(&maker->text, 1);
		for (int i = 0; i < width; i++)
			put_text(maker, level == 1 ? "=" : "-");
	}
	maker->heading_start = -1;
	klm_text_break(&maker->text, 2);
}

/* The signs of a list stand where its lines begin; one within another is as close as its items. */
static const char *
list_style(Maker *maker)
{
	if (maker->markdown->rtl)
		return maker->lists > 0 ? "margin:0;padding:0 24px 0 0" : "margin:0 0 16px;padding:0 24px 0 0";
	return maker->lists > 0 ? "margin:0;padding:0 0 0 24px" : "margin:0 0 16px;padding:0 0 0 24px";
}

static void
enter_list(Maker *maker, bool tight, int number)
{
	maker->lists++;
	maker->tight[maker->lists] = tight;
	maker->numbers[maker->lists] = number;
	if (maker->lists == 1)
		klm_text_break(&maker->text, 2);
}

static void
enter_item(Maker *maker, const MD_BLOCK_LI_DETAIL *item)
{
	char		marker[16] = "- ";
	char		indent[16];
	int			length;

	klm_text_break(&maker->text, maker->tight[maker->lists] ? 1 : 2);
	if (maker->numbers[maker->lists] >= 0)
		snprintf(marker, sizeof(marker), "%d. ", maker->numbers[maker->lists]++);
	length = strlen(marker);
	memset(indent, ' ', length);
	indent[length] = '\0';
	klm_text_indent(&maker->text, indent, marker);
	put(maker, item->is_task ? "<li style=\"margin:0 0 4px;list-style:none\">" :
		"<li style=\"margin:0 0 4px\">");
	if (item->is_task)
	{
		put(maker, item->task_mark == ' ' ? "&#9744; " : "&#9745; ");
		put_text(maker, item->task_mark == ' ' ? "[ ] " : "[x] ");
	}
}

static void
enter_cell(Maker *maker, bool head, MD_ALIGN align)
{
	const char *start = maker->markdown->rtl ? "right" : "left";
	const char *name = align == MD_ALIGN_RIGHT ? "right" : align == MD_ALIGN_CENTER ? "center" :
		align == MD_ALIGN_LEFT ? "left" : start;

	/*
	 * A cell whose words break leaves no room to itself where another one is long, so
	 * they do only in what belongs to a label.
	 */
	appendStringInfo(maker->html, "<%s align=\"%s\" class=\"k-line\" style=\"padding:8px;border-bottom:%dpx solid "
					 BORDER ";text-align:%s%s\">", head ? "th scope=\"col\"" : "td", name, head ? 2 : 1, name,
					 maker->column++ == 0 || head || maker->is_headed ? ";word-break:normal" : "");
	klm_text_begin_cell(&maker->text, align == MD_ALIGN_DEFAULT ? 'l' : name[0]);
}

/* "```big": a code that somebody is to read and type. */
static bool
is_big(const MD_BLOCK_CODE_DETAIL *code)
{
	return code->lang.size == 3 && memcmp(code->lang.text, "big", 3) == 0;
}

static int
enter_block(MD_BLOCKTYPE type, void *detail, void *data)
{
	Maker	   *maker = data;

	if (++maker->depth > MAX_BLOCKS)
	{
		(void) klm_fail(maker->error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL,
						"lists and quotations are over %d deep", MAX_BLOCKS);
		return 1;
	}
	switch (type)
	{
		case MD_BLOCK_DOC:
			break;
		case MD_BLOCK_THEAD:
			maker->head_start = maker->html->len;
			maker->headings = false;
			put(maker, "<thead>\n");
			break;
		case MD_BLOCK_QUOTE:
			put(maker, maker->markdown->rtl ?
				"<blockquote class=\"k-line\" style=\"margin:0 0 16px;padding:0 12px 0 0;border-right:3px solid " BORDER "\">\n" :
				"<blockquote class=\"k-line\" style=\"margin:0 0 16px;padding:0 0 0 12px;border-left:3px solid " BORDER "\">\n");
			klm_text_break(&maker->text, 2);
			klm_text_indent(&maker->text, "> ", NULL);
			break;
		case MD_BLOCK_UL:
			appendStringInfo(maker->html, "<ul style=\"%s\">\n", list_style(maker));
			enter_list(maker, ((MD_BLOCK_UL_DETAIL *) detail)->is_tight, -1);
			break;
		case MD_BLOCK_OL:
			appendStringInfo(maker->html, "<ol start=\"%u\" style=\"%s\">\n",
							 ((MD_BLOCK_OL_DETAIL *) detail)->start, list_style(maker));
			enter_list(maker, ((MD_BLOCK_OL_DETAIL *) detail)->is_tight,
					   ((MD_BLOCK_OL_DETAIL *) detail)->start);
			break;
		case MD_BLOCK_LI:
			enter_item(maker, detail);
			break;
		case MD_BLOCK_HR:
			put(maker, "<hr class=\"k-line\" style=\"margin:24px 0;border:0;border-top:1px solid " BORDER "\">\n");
			klm_text_break(&maker->text, 2);
			put_text(maker, "----------");
			klm_text_break(&maker->text, 2);
			break;
		case MD_BLOCK_H:
			enter_heading(maker, ((MD_BLOCK_H_DETAIL *) detail)->level);
			break;
		case MD_BLOCK_CODE:
			appendStringInfo(maker->html, "<pre class=\"k-code\" style=\"margin:0 0 16px;padding:12px;background-color:#f3f4f6;" MONO
							 ";%swhite-space:pre-wrap;word-break:break-word\"><code>",
							 is_big(detail) ? "font-size:28px;line-height:40px;letter-spacing:4px;text-align:center;" :
							 "font-size:14px;line-height:20px;");
			klm_text_break(&maker->text, 2);
			klm_text_indent(&maker->text, "    ", NULL);
			maker->in_code = true;
			break;
		case MD_BLOCK_HTML:
			klm_text_break(&maker->text, 2);
			maker->raw_start = maker->html->len;
			break;
		case MD_BLOCK_P:
			put(maker, "<p style=\"margin:0 0 16px\">");
			klm_text_break(&maker->text, 2);
			break;
		case MD_BLOCK_TABLE:
			put(maker, "<table cellpadding=\"0\" cellspacing=\"0\" border=\"0\" width=\"100%\" "
				"style=\"margin:0 0 16px;border-collapse:collapse\">\n");
			klm_text_break(&maker->text, 2);
			klm_text_begin_table(&maker->text, ((MD_BLOCK_TABLE_DETAIL *) detail)->col_count);
			break;
		case MD_BLOCK_TBODY:
			put(maker, "<tbody>\n");
			break;
		case MD_BLOCK_TR:
			maker->column = 0;
			put(maker, "<tr>\n");
			break;
		case MD_BLOCK_TH:
		case MD_BLOCK_TD:
			enter_cell(maker, type == MD_BLOCK_TH, ((MD_BLOCK_TD_DETAIL *) detail)->align);
			break;
	}
	return check_sizes(maker);
}

/* A block of the author's HTML: its text is made from what became of it. */
static void
leave_html(Maker *maker)
{
	char	   *text = klm_mime_text_from_html(maker->html->data + maker->raw_start);

	klm_text_put(&maker->text, text, strlen(text));
	klm_text_break(&maker->text, 2);
	pfree(text);
}

static int
leave_block(MD_BLOCKTYPE type, void *detail, void *data)
{
	Maker	   *maker = data;

	maker->depth--;
	switch (type)
	{
		case MD_BLOCK_DOC:
			klm_html_end(&maker->raw);
			break;
		case MD_BLOCK_HR:
			break;
		case MD_BLOCK_QUOTE:
			put(maker, "</blockquote>\n");
			klm_text_dedent(&maker->text);
			klm_text_break(&maker->text, 2);
			break;
		case MD_BLOCK_UL:
		case MD_BLOCK_OL:
			put(maker, type == MD_BLOCK_UL ? "</ul>\n" : "</ol>\n");
			maker->lists--;
			klm_text_break(&maker->text, maker->lists > 0 ? 1 : 2);
			break;
		case MD_BLOCK_LI:
			put(maker, "</li>\n");
			klm_text_dedent(&maker->text);
			break;
		case MD_BLOCK_H:
			leave_heading(maker);
			break;
		case MD_BLOCK_CODE:
			put(maker, "</code></pre>\n");
			maker->in_code = false;
			/* Its last line end is its own. */
			maker->text.breaks = 0;
			klm_text_dedent(&maker->text);
			klm_text_break(&maker->text, 2);
			break;
		case MD_BLOCK_HTML:
			leave_html(maker);
			break;
		case MD_BLOCK_P:
			put(maker, "</p>\n");
			klm_text_break(&maker->text, 2);
			break;
		case MD_BLOCK_TABLE:
			put(maker, "</table>\n");
			klm_text_end_table(&maker->text);
			klm_text_break(&maker->text, 2);
			break;
		case MD_BLOCK_THEAD:
			put(maker, "</thead>\n");
			/* Markdown has no table without headings, but one where they are empty. */
			maker->is_headed = maker->headings;
			if (!maker->headings)
			{
				maker->html->len = maker->head_start;
				maker->html->data[maker->head_start] = '\0';
			}
			break;
		case MD_BLOCK_TBODY:
			put(maker, "</tbody>\n");
			break;
		case MD_BLOCK_TR:
			put(maker, "</tr>\n");
			break;
		case MD_BLOCK_TH:
		case MD_BLOCK_TD:
			put(maker, type == MD_BLOCK_TH ? "</th>\n" : "</td>\n");
			klm_text_end_cell(&maker->text);
			break;
	}
	return check_sizes(maker);
}

/* ----------------------------------------------------------------
 * Spans
 * ----------------------------------------------------------------
 */

/* What the author wrote is no URL; of a value nobody knows that. */
static void
note_refused(Maker *maker, StringInfo written)
{
	if (!has_placeholder(maker, written->data, written->len))
		note(maker, KLM_NOTE_REFUSED_URL, written->data);
}

static void
enter_link(Maker *maker, const MD_SPAN_A_DETAIL *link)
{
	StringInfoData written;

	/* In the text of an image there is none. */
	if (maker->images > 0 || maker->links++ > 0)
		return;
	initStringInfo(&written);
	read_attribute(maker, &link->href, &written);
	resetStringInfo(&maker->url);
	maker->link_open = klm_put_url(maker->markdown->holder, &maker->url, written.data, written.len,
								   false);
	klm_text_here(&maker->text);
	maker->link_start = text_target(maker)->len;
	if (!maker->link_open)
		note_refused(maker, &written);
	else
		klm_note_http(maker->markdown->notes, maker->url.data);
	read_attribute(maker, &link->title, &written);
	maker->link_button = maker->link_open && strcmp(written.data, "button") == 0;
	if (maker->link_open)
	{
		put(maker, "<a href=\"");
		klm_put_escaped(maker->html, maker->url.data, maker->url.len);
		if (maker->link_button)
			/* Outlook knows no padding: there, spaces of that width stand in its place. */
			appendStringInfo(maker->html, "\" style=\"display:inline-block;padding:12px 24px;background-color:%s;color:%s;"
							 "border-radius:6px;font-weight:bold;text-decoration:none\">"
							 "<!--[if mso]><i style=\"mso-font-width:300%%;mso-text-raise:18pt\" hidden>&emsp;</i><span style=\"mso-text-raise:9pt\"><![endif]-->",
							 maker->markdown->button_color, maker->markdown->button_text_color);
		else
		{
			if (written.len > 0)
			{
				StringInfoData title;

				initStringInfo(&title);
				klm_put_held(maker->markdown->holder, &title, written.data, written.len);
				put(maker, "\" title=\"");
				klm_put_escaped(maker->html, title.data, title.len);
				pfree(title.data);
			}
			put(maker, "\" class=\"k-link\" style=\"color:");
			put(maker, maker->markdown->link_color);
			put(maker, ";text-decoration:underline");
			put(maker, maker->text.in_cell ? ";word-break:break-word\">" : "\">");
		}
	}
	pfree(written.data);
}

/* In the text, the URL follows what the link is called, unless it is that. */
static void
leave_link(Maker *maker)
{
	StringInfo	target = text_target(maker);
	const char *shown;

	if (maker->images > 0 || --maker->links > 0 || !maker->link_open)
		return;
	maker->link_open = false;
	if (maker->link_button)
		put(maker, "<!--[if mso]></span><i style=\"mso-font-width:300%\" hidden>&emsp;&#8203;</i><![endif]-->");
	put(maker, "</a>");
	shown = target->data + Min(maker->link_start, target->len);
	klm_note_link(maker->markdown->notes, shown, maker->url.data);
	if (strcmp(shown, maker->url.data) == 0 ||
		(pg_strncasecmp(maker->url.data, "mailto:", 7) == 0 && strcmp(shown, maker->url.data + 7) == 0) ||
		(pg_strncasecmp(maker->url.data, "http://", 7) == 0 && strcmp(shown, maker->url.data + 7) == 0))
		return;
	if (*shown == '\0')
		put_text(maker, maker->url.data);
	else
	{
		put_text(maker, maker->link_button ? ": " : " (");
		put_text(maker, maker->url.data);
		if (!maker->link_button)
			put_text(maker, ")");
	}
}

static void
enter_image(Maker *maker, const MD_SPAN_IMG_DETAIL *image)
{
	StringInfoData url;
	StringInfoData written;

	if (maker->images++ > 0)
		return;
	initStringInfo(&url);
	initStringInfo(&written);
	read_attribute(maker, &image->src, &written);
	maker->image_has_text = false;
	maker->image_shown = klm_put_url(maker->markdown->holder, &url, written.data, written.len,
									 true);
	if (!maker->image_shown)
		note_refused(maker, &written);
	else
		klm_note_http(maker->markdown->notes, url.data);
	read_attribute(maker, &image->title, &written);
	resetStringInfo(&maker->image_title);
	klm_put_held(maker->markdown->holder, &maker->image_title, written.data, written.len);
	if (maker->image_shown)
	{
		put(maker, "<img src=\"");
		klm_put_escaped(maker->html, url.data, url.len);
		put(maker, "\" style=\"max-width:100%;height:auto;border:0\" alt=\"");
	}
	pfree(written.data);
	pfree(url.data);
}

static void
leave_image(Maker *maker)
{
	if (--maker->images > 0)
		return;
	if (!maker->image_has_text)
		note(maker, KLM_NOTE_NO_ALT, NULL);
	if (!maker->image_shown)
		return;
	if (maker->image_title.len > 0)
	{
		put(maker, "\" title=\"");
		klm_put_escaped(maker->html, maker->image_title.data, maker->image_title.len);
	}
	put(maker, "\">");
}

static int
enter_span(MD_SPANTYPE type, void *detail, void *data)
{
	Maker	   *maker = data;

	maker->headings = true;
	if (type == MD_SPAN_A)
		enter_link(maker, detail);
	else if (type == MD_SPAN_IMG)
		enter_image(maker, detail);
	else if (maker->images == 0)
	{
		if (type == MD_SPAN_EM)
			put(maker, "<em>");
		else if (type == MD_SPAN_STRONG)
			put(maker, "<strong>");
		else if (type == MD_SPAN_DEL)
			put(maker, "<del>");
		else if (type == MD_SPAN_CODE)
			put(maker, "<code class=\"k-code\" style=\"padding:2px 4px;background-color:#f3f4f6;" MONO "\">");
	}
	return check_sizes(maker);
}

static int
leave_span(MD_SPANTYPE type, void *detail, void *data)
{
	Maker	   *maker = data;

	if (type == MD_SPAN_A)
		leave_link(maker);
	else if (type == MD_SPAN_IMG)
		leave_image(maker);
	else if (maker->images == 0)
	{
		if (type == MD_SPAN_EM)
			put(maker, "</em>");
		else if (type == MD_SPAN_STRONG)
			put(maker, "</strong>");
		else if (type == MD_SPAN_DEL)
			put(maker, "</del>");
		else if (type == MD_SPAN_CODE)
			put(maker, "</code>");
	}
	return check_sizes(maker);
}

static int
put_md_text(MD_TEXTTYPE type, const char *text, MD_SIZE size, void *data)
{
	Maker	   *maker = data;
	int			before = text_target(maker)->len;

	klm_note_place(maker->markdown->notes, text);
	maker->headings = true;
	maker->image_has_text |= maker->images > 0;
	switch (type)
	{
		case MD_TEXT_BR:
			put(maker, maker->images > 0 ? " " : "<br>\n");
			put_text(maker, "\n");
			break;
		case MD_TEXT_SOFTBR:
			put(maker, "\n");
			put_text(maker, "\n");
			break;
		case MD_TEXT_ENTITY:
			put_entity(maker, text, size);
			break;
		case MD_TEXT_CODE:
			put_literal(maker, text, size, true);
			break;
		case MD_TEXT_HTML:
			if (maker->images == 0)
				klm_html_add(&maker->raw, text, size);
			break;
		default:
			put_literal(maker, text, size, false);
			break;
	}
	if (maker->heading_start < 0 && text_target(maker)->len > before)
		maker->heading_start = before;
	return check_sizes(maker);
}
