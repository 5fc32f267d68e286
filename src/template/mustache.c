/*-------------------------------------------------------------------------
 *
 * mustache.c
 *		Mustache: a source is compiled once, and rendered with values.
 *
 * Pure: palloc and StringInfo.  Depth, steps and output are bounded, whatever
 * the source and the values are.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/text.h"
#include "template/mustache.h"

/* Sections and partials within one another. */
#define MAX_DEPTH	64
/* Tags of a source, and nodes that one rendering visits: some 20 ms. */
#define MAX_TAGS	20000
#define MAX_STEPS	50000
#define MAX_NAME	255
#define MAX_INDENT	200

typedef struct Compiler
{
	KlmTemplate *template;
	int			space;			/* of its nodes */
	const char *open;			/* the delimiters */
	int			open_length;
	const char *close;
	int			close_length;
	int			sections[MAX_DEPTH];	/* the open ones' nodes */
	int			depth;
	KlmSourceError *error;
} Compiler;

/* A tag, from its first delimiter to behind its second one. */
typedef struct Tag
{
	char		type;			/* one of "#^/!=>&{", or 0 for a value */
	const char *content;		/* without the spaces around it */
	int			length;
	int			start;
	int			end;
} Tag;

/* One rendering on its way. */
typedef struct Run
{
	KlmRendering *rendering;
	const KlmTemplate *template;
	StringInfo	out;
	KlmError   *error;
	int			held;			/* octets of the values that are held */
	char		indent[MAX_INDENT + 1];
	int			indent_length;
	bool		line_start;		/* of a partial: the indent is due */
	int			scope_count;
	KlmValue	scopes[2 * MAX_DEPTH];
} Run;

static bool parse_tag(Compiler *compiler, int start, Tag *tag);
static bool add_tag(Compiler *compiler, const Tag *tag, const char *indent, int indent_length);
static bool add_dollar(Compiler *compiler, int *pos, int *text_start);
static KlmNode *add_node(Compiler *compiler, KlmNodeKind kind, int offset);
static void add_text(Compiler *compiler, int from, int to);
static bool fail_at(Compiler *compiler, int offset, const char *hint, const char *format,...)
	pg_attribute_printf(4, 5);
static bool render_nodes(Run *run, const KlmTemplate *template, int from, int to, int depth);

/* ----------------------------------------------------------------
 * Compiling
 * ----------------------------------------------------------------
 */

void
klm_source_place(const char *source, int offset, int *line, int *column)
{
	const char *end = source + offset;
	const char *pos = source;

	*line = *column = 1;
	while (pos < end)
	{
		if (klm_utf8_next(&pos, end) == '\n')
		{
			(*line)++;
			*column = 1;
		}
		else
			(*column)++;
	}
}

/* 42601 at an offset. */
static bool
fail_at(Compiler *compiler, int offset, const char *hint, const char *format,...)
{
	StringInfoData message;
	KlmSourceError *error = compiler->error;
	int			needed;

	initStringInfo(&message);
	do
	{
		va_list		args;

		va_start(args, format);
		needed = appendStringInfoVA(&message, format, args);
		va_end(args);
		if (needed != 0)
			enlargeStringInfo(&message, needed);
	} while (needed != 0);
	klm_source_place(compiler->template->source, offset, &error->line, &error->column);
	return klm_fail(&error->error, ERRCODE_SYNTAX_ERROR, hint, "%s", message.data);
}

/*
 * Does the tag stand on its lines alone?  Then from *start, the beginning of
 * its first line, to *end, behind its last one, nothing is shown.
 */
static bool
stands_alone(const KlmTemplate *template, int *start, int *end)
{
	const char *source = template->source;
	int			from = *start;
	int			to = *end;

	while (from > 0 && (source[from - 1] == ' ' || source[from - 1] == '\t'))
		from--;
	if (from > 0 && source[from - 1] != '\n')
		return false;
	while (source[to] == ' ' || source[to] == '\t')
		to++;
	if (source[to] == '\r' && source[to + 1] == '\n')
		to += 2;
	else if (source[to] == '\n')
		to++;
	else if (to < template->length)
		return false;
	*start = from;
	*end = to;
	return true;
}

KlmTemplate *
klm_mustache_compile(const char *source, KlmSourceError *error)
{
	KlmTemplate *template = palloc0(sizeof(KlmTemplate));
	Compiler	compiler = {.template = template, .error = error};
	Size		length = strlen(source);
	int			text_start = 0;
	int			pos = 0;
	int			tags = 0;

	memset(error, 0, sizeof(*error));
	if (length > KLM_MAX_SOURCE)
	{
		(void) klm_fail(&error->error, ERRCODE_PROGRAM_LIMIT_EXCEEDED,
						"Move parts of it into partials, or data into variables.",
						"%zu kB, over %d kB", length / 1024, KLM_MAX_SOURCE / 1024);
		return NULL;
	}
	template->source = pstrdup(source);
	template->length = length;
	compiler.open = "{{";
	compiler.close = "}}";
	compiler.open_length = compiler.close_length = 2;

	while (pos < template->length)
	{
		const char *here = template->source + pos;
		int			start;
		int			end;
		Tag			tag = {0};

		if (*here == compiler.open[0] &&
			strncmp(here, compiler.open, compiler.open_length) == 0)
		{
			if (!parse_tag(&compiler, pos, &tag))
				return NULL;
			start = tag.start;
			end = tag.end;
			if (strchr("#^/!=>%", tag.type) == NULL || tag.type == '\0' ||
				!stands_alone(template, &start, &end))
			{
				start = tag.start;
				end = tag.end;
			}
			add_text(&compiler, text_start, start);
			if (++tags > MAX_TAGS)
				break;
			/* Spaces before a partial alone are those of each of its lines. */
			if (!add_tag(&compiler, &tag, template->source + start, tag.start - start))
				return NULL;
			text_start = pos = end;
		}
		else if (*here == '$')
		{
			if (!add_dollar(&compiler, &pos, &text_start))
				return NULL;
			if (++tags > MAX_TAGS)
				break;
		}
		else
			pos++;
	}
	if (tags > MAX_TAGS)
	{
		(void) fail_at(&compiler, pos, "Move parts of it into partials, or data into variables.",
					   "over %d tags", MAX_TAGS);
		error->error.sqlstate = ERRCODE_PROGRAM_LIMIT_EXCEEDED;
		return NULL;
	}
	add_text(&compiler, text_start, template->length);
	if (compiler.depth > 0)
	{
		const KlmNode *section = &template->nodes[compiler.sections[compiler.depth - 1]];

		(void) fail_at(&compiler, section->offset,
					   psprintf("Write {{/%s}} where it ends.", klm_shown(section->text, section->length)),
					   "the section \"%s\" is not closed", klm_shown(section->text, section->length));
		return NULL;
	}
	return template;
}

/* Read the tag that begins at start. */
static bool
parse_tag(Compiler *compiler, int start, Tag *tag)
{
	const char *source = compiler->template->source;
	const char *pos = source + start + compiler->open_length;
	char		before = '\0';	/* what must stand before the closing delimiter */
	const char *close;
	const char *end = source + compiler->template->length;

	while (*pos == ' ' || *pos == '\t' || *pos == '\n' || *pos == '\r')
		pos++;
	tag->type = *pos != '\0' && strchr("#^/!=>&{%", *pos) ? *pos++ : '\0';
	if (tag->type == '=')
		before = '=';
	else if (tag->type == '{')
		before = '}';

	for (close = pos; close < end; close++)
	{
		close = memchr(close, before ? before : compiler->close[0], end - close);
		if (close == NULL)
			break;
		if (strncmp(close + (before ? 1 : 0), compiler->close, compiler->close_length) == 0)
			break;
	}
	if (close == NULL || close >= end)
		return fail_at(compiler, start, "Close it, or write what is no tag within a value of a variable.",
					   "a tag is not closed: %s", klm_shown(source + start, Min(20, end - (source + start))));
	tag->start = start;
	tag->end = close - source + (before ? 1 : 0) + compiler->close_length;
	while (close > pos && strchr(" \t\r\n", close[-1]) != NULL)
		close--;
	while (pos < close && strchr(" \t\r\n", *pos) != NULL)
		pos++;
	tag->content = pos;
	tag->length = close - pos;
	return true;
}

/* Is it a name: "a", "a.b" or "."? */
static bool
check_name(Compiler *compiler, const char *name, int length, int offset, bool dotted)
{
	const char *name_hint =
		"A name has no space, quote or brace; a.b is b of a. Filters stand behind a bar: {{total | number 2}}.";

	if (length == 0)
		return fail_at(compiler, offset, "Write the name of a variable: {{firstName}}.",
					   "a tag has no name");
	if (length > MAX_NAME)
		return fail_at(compiler, offset, NULL, "a name has over %d octets", MAX_NAME);
	if (name[0] == '$')
		return fail_at(compiler, offset, "Write {{name}} or $name.",
					   "$ and {{ }} are two ways to write the same: {{%s}}", klm_shown(name, length));
	if (name[0] == '<')
		return fail_at(compiler, offset, "Use a partial, {{> name }}, and a layout.",
					   "inheritance of templates is not there: {{%s}}", klm_shown(name, length));
	for (int i = 0; i < length; i++)
	{
		if ((unsigned char) name[i] <= ' ' || strchr("{}\"'<>$|", name[i]) != NULL)
			return fail_at(compiler, offset, name_hint, "\"%s\" is not a name",
						   klm_shown(name, length));
	}
	for (int i = 0; i < length && dotted && length > 1; i++)
	{
		if (name[i] == '.' && (i == 0 || i == length - 1 || name[i + 1] == '.'))
			return fail_at(compiler, offset, name_hint, "\"%s\" is not a name",
						   klm_shown(name, length));
	}
	return true;
}

/* A value: a name, and filters behind it. */
static bool
add_value(Compiler *compiler, const char *content, int length, int offset, bool raw, bool dollar)
{
	const char *bar = memchr(content, '|', length);
	int			name_length = bar ? bar - content : length;
	const KlmFilter *filters = NULL;
	KlmNode    *node;

	while (name_length > 0 && strchr(" \t\r\n", content[name_length - 1]) != NULL)
		name_length--;
	if (!check_name(compiler, content, name_length, offset, true))
		return false;
	if (bar)
	{
		KlmError	error;

		filters = klm_filter_parse(bar, length - (bar - content), &error);
		if (filters == NULL)
			return fail_at(compiler, offset, error.hint, "%s", error.message);
	}
	node = add_node(compiler, KLM_NODE_VALUE, offset);
	node->text = pnstrdup(content, name_length);
	node->length = name_length;
	node->raw = raw;
	node->dollar = dollar;
	node->filters = filters;
	return true;
}

/* {{= open close =}} */
static bool
set_delimiters(Compiler *compiler, const Tag *tag)
{
	const char *end = tag->content + tag->length;
	const char *first = tag->content;
	const char *first_end = first;
	const char *second;

	while (first_end < end && (unsigned char) *first_end > ' ')
		first_end++;
	second = first_end;
	while (second < end && (unsigned char) *second <= ' ')
		second++;
	if (first == first_end || second == end || memchr(first, '=', end - first) != NULL ||
		memchr(first, '$', end - first) != NULL)
		return fail_at(compiler, tag->start, "Write {{=<% %>=}}: two of them, a space between, none with = or $.",
					   "bad delimiters");
	for (const char *pos = second; pos < end; pos++)
		if ((unsigned char) *pos <= ' ')
			return fail_at(compiler, tag->start, "Write {{=<% %>=}}: two of them, a space between, none with = or $.",
						   "bad delimiters");
	compiler->open = first;
	compiler->open_length = first_end - first;
	compiler->close = second;
	compiler->close_length = end - second;
	return true;
}

static bool
add_tag(Compiler *compiler, const Tag *tag, const char *indent, int indent_length)
{
	KlmNode    *node;

	switch (tag->type)
	{
		case '!':
			return true;
		case '%':
			if (tag->length != 4 || memcmp(tag->content, "html", 4) != 0)
				return fail_at(compiler, tag->start, "Write {{% html }}, by which a Markdown body's own HTML passes; {{name}} for a value.",
							   "{{%%%s}} is no option", klm_shown(tag->content, tag->length));
			compiler->template->allows_html = true;
			return true;
		case '=':
			return set_delimiters(compiler, tag);
		case '\0':
		case '&':
		case '{':
			return add_value(compiler, tag->content, tag->length, tag->start,
							 tag->type != '\0', false);
		case '>':
			if (!check_name(compiler, tag->content, tag->length, tag->start, false))
				return false;
			node = add_node(compiler, KLM_NODE_PARTIAL, tag->start);
			node->text = pnstrdup(tag->content, tag->length);
			node->length = tag->length;
			node->indent = indent;
			node->indent_length = indent_length;
			return true;
		case '/':
			if (!check_name(compiler, tag->content, tag->length, tag->start, true))
				return false;
			if (compiler->depth == 0)
				return fail_at(compiler, tag->start, NULL, "{{/%s}} closes a section that is not open",
							   klm_shown(tag->content, tag->length));
			node = &compiler->template->nodes[compiler->sections[compiler->depth - 1]];
			if (node->length != tag->length || memcmp(node->text, tag->content, tag->length) != 0)
				return fail_at(compiler, tag->start, psprintf("Write {{/%s}} first.", klm_shown(node->text, node->length)),
							   "{{/%s}} stands where the section \"%s\" is open",
							   klm_shown(tag->content, tag->length), klm_shown(node->text,
																			   node->length));
			node->end = compiler->template->count;
			compiler->depth--;
			return true;
		default:				/* # and ^ */
			if (!check_name(compiler, tag->content, tag->length, tag->start, true))
				return false;
			if (compiler->depth == MAX_DEPTH)
			{
				(void) fail_at(compiler, tag->start, NULL, "over %d sections within one another", MAX_DEPTH);
				compiler->error->error.sqlstate = ERRCODE_PROGRAM_LIMIT_EXCEEDED;
				return false;
			}
			compiler->sections[compiler->depth++] = compiler->template->count;
			node = add_node(compiler, tag->type == '#' ? KLM_NODE_SECTION : KLM_NODE_INVERTED,
							tag->start);
			node->text = pnstrdup(tag->content, tag->length);
			node->length = tag->length;
			return true;
	}
}

static bool
is_letter(char ch)
{
	return (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z');
}

/* $name, ${a.b}, $$, or a dollar sign that is nothing of them. */
static bool
add_dollar(Compiler *compiler, int *pos, int *text_start)
{
	const char *source = compiler->template->source;
	int			start = *pos;
	int			end = start + 1;

	if (source[end] == '$')
	{
		add_text(compiler, *text_start, end);
		*text_start = *pos = end + 1;
		return true;
	}
	if (is_letter(source[end]))
	{
		while (is_letter(source[end]) || (source[end] >= '0' && source[end] <= '9') ||
			   source[end] == '_')
			end++;
		add_text(compiler, *text_start, start);
		*text_start = *pos = end;
		return add_value(compiler, source + start + 1, end - start - 1, start, false, true);
	}
	if (source[end] == '{')
	{
		const char *name = source + end + 1;
		const char *close = name + strcspn(name, "}\n");

		if (*close != '}')
			return fail_at(compiler, start, "Write ${name}, or $$ for a dollar sign.", "${ is not closed");
		add_text(compiler, *text_start, start);
		*text_start = *pos = close + 1 - source;
		while (name < close && (*name == ' ' || *name == '\t'))
			name++;
		return add_value(compiler, name, close - name, start, false, true);
	}
	(*pos)++;
	return true;
}

static KlmNode *
add_node(Compiler *compiler, KlmNodeKind kind, int offset)
{
	KlmTemplate *template = compiler->template;
	KlmNode    *node;

	if (template->count == compiler->space)
	{
		compiler->space = Max(16, 2 * compiler->space);
		template->nodes = template->nodes == NULL ? palloc(compiler->space * sizeof(KlmNode)) :
			repalloc(template->nodes, compiler->space * sizeof(KlmNode));
	}
	node = &template->nodes[template->count++];
	memset(node, 0, sizeof(*node));
	node->kind = kind;
	node->offset = offset;
	return node;
}

static void
add_text(Compiler *compiler, int from, int to)
{
	KlmNode    *node;

	if (from >= to)
		return;
	node = add_node(compiler, KLM_NODE_TEXT, from);
	node->text = compiler->template->source + from;
	node->length = to - from;
}

/* ----------------------------------------------------------------
 * Rendering
 * ----------------------------------------------------------------
 */

/* Is a section with this value shown?  Not for null, false, 0, '' and the empty list. */
static bool
counts_as_true(const KlmValue *value)
{
	switch (value->kind)
	{
		case KLM_NULL:
		case KLM_FALSE:
			return false;
		case KLM_STRING:
			return value->length > 0;
		case KLM_LIST:
			return value->count > 0;
		case KLM_NUMBER:
			for (int i = 0; i < value->length && value->text[i] != 'e' && value->text[i] != 'E';
				 i++)
				if (value->text[i] >= '1' && value->text[i] <= '9')
					return true;
			return false;
		default:
			return true;
	}
}

bool
klm_mustache_find(const KlmValue *scopes, int count, const char *name, int length,
				  KlmValue *value)
{
	const char *end = name + length;
	const char *dot;

	if (length == 1 && name[0] == '.')
	{
		if (count > 0)
			*value = scopes[count - 1];
		return count > 0;
	}
	dot = memchr(name, '.', length);
	if (dot == NULL)
		dot = end;
	for (;;)
	{
		if (count-- == 0)
			return false;
		if (scopes[count].kind == KLM_OBJECT &&
			scopes[count].reader->member(&scopes[count], name, dot - name, value))
			break;
	}
	/* The first part is found; what follows is looked for in it alone. */
	while (dot < end)
	{
		KlmValue	object = *value;

		name = dot + 1;
		dot = memchr(name, '.', end - name);
		if (dot == NULL)
			dot = end;
		if (object.kind != KLM_OBJECT ||
			!object.reader->member(&object, name, dot - name, value))
			return false;
	}
	return true;
}

static bool
fail_depth(Run *run)
{
	return klm_fail(run->error, ERRCODE_PROGRAM_LIMIT_EXCEEDED,
					"A partial that includes itself needs data that ends.",
					"sections and partials are over %d deep", MAX_DEPTH);
}

static bool
step(Run *run)
{
	if (++run->rendering->steps <= MAX_STEPS)
		return true;
	return klm_fail(run->error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, "Show fewer items.",
					"over %d steps to render", MAX_STEPS);
}

static bool
check_output(Run *run)
{
	if ((Size) run->out->len + run->held <= KLM_MAX_OUTPUT)
		return true;
	return klm_fail(run->error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, "Show fewer items, or shorter texts.",
					"over %d kB as rendered", KLM_MAX_OUTPUT / 1024);
}

/* What is put out now comes from there, in the template itself. */
static void
note_place(Run *run, int source)
{
	KlmPlace	place = {run->out->len, source};

	if (run->rendering->places)
		appendBinaryStringInfo(run->rendering->places, (char *) &place, sizeof(place));
}

/* A text of the source; each line of a partial's begins with its indent. */
static bool
put_text(Run *run, const char *text, int length)
{
	const char *end = text + length;
	const char *source = run->template->source;

	if (text >= source && text < source + run->template->length)
		note_place(run, text - source);
	if (run->indent_length == 0)
	{
		appendBinaryStringInfo(run->out, text, length);
		return check_output(run);
	}
	while (text < end)
	{
		const char *line_end = memchr(text, '\n', end - text);

		if (run->line_start)
			appendBinaryStringInfo(run->out, run->indent, run->indent_length);
		run->line_start = line_end != NULL;
		line_end = line_end ? line_end + 1 : end;
		appendBinaryStringInfo(run->out, text, line_end - text);
		text = line_end;
		if (!check_output(run))
			return false;
	}
	return true;
}

static bool
put_value(Run *run, const KlmNode *node)
{
	KlmRendering *rendering = run->rendering;
	KlmValue	value;
	bool		found;
	const char *text = "";
	int			length = 0;

	found = klm_mustache_find(run->scopes, run->scope_count, node->text, node->length, &value);
	if (node->filters)
	{
		StringInfoData filtered;

		initStringInfo(&filtered);
		if (!klm_filter_apply(node->filters, rendering->formats, found ? &value : NULL, &filtered,
							  run->error))
		{
			if (run->error)
				run->error->message = psprintf("\"%s\": %s", node->text, run->error->message);
			return false;
		}
		text = filtered.data;
		length = filtered.len;
	}
	else if (found)
	{
		switch (value.kind)
		{
			case KLM_NULL:
				break;
			case KLM_TRUE:
			case KLM_FALSE:
				text = value.kind == KLM_TRUE ? "true" : "false";
				length = strlen(text);
				break;
			case KLM_NUMBER:
			case KLM_STRING:
				text = value.text;
				length = value.length;
				break;
			case KLM_LIST:
			case KLM_OBJECT:
				text = value.reader->json(&value);
				length = strlen(text);
				break;
		}
	}

	if (run->line_start && run->indent_length > 0)
		appendBinaryStringInfo(run->out, run->indent, run->indent_length);
	run->line_start = false;
	if (node >= run->template->nodes && node < run->template->nodes + run->template->count)
		note_place(run, node->offset);
	/* A value that alone is too long is not copied. */
	run->held += length;
	if (!check_output(run))
		return false;
	if (rendering->mode == KLM_HELD)
		klm_hold(rendering->holder, run->out, text, length, node->raw);
	else if (rendering->mode == KLM_ESCAPED && !node->raw)
		klm_put_escaped(run->out, text, length);
	else
		appendBinaryStringInfo(run->out, text, length);
	if (rendering->mode != KLM_HELD)
		run->held -= length;
	return true;
}

static bool
put_partial(Run *run, const KlmNode *node, int depth)
{
	KlmRendering *rendering = run->rendering;
	const KlmTemplate *partial = rendering->partial ?
		rendering->partial(rendering->partial_data, node->text) : NULL;
	int			outer = run->indent_length;
	bool		ok;

	if (partial == NULL)
		return true;
	if (outer + node->indent_length > MAX_INDENT)
		return klm_fail(run->error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL,
						"the partial \"%s\" is indented by over %d characters", klm_shown(node->text, node->length), MAX_INDENT);
	memcpy(run->indent + outer, node->indent, node->indent_length);
	run->indent_length += node->indent_length;
	if (node->indent_length > 0)
		run->line_start = true;
	ok = render_nodes(run, partial, 0, partial->count, depth + 1);
	run->indent_length = outer;
	return ok;
}

/* A section whose value counts: once for each element of a list. */
static bool
put_section(Run *run, const KlmTemplate *template, int number, const KlmValue *value, int depth)
{
	const KlmNode *node = &template->nodes[number];
	int			times = value->kind == KLM_LIST ? value->count : 1;

	if (run->scope_count == lengthof(run->scopes))
		return fail_depth(run);
	run->scope_count++;
	for (int i = 0; i < times; i++)
	{
		KlmValue   *scope = &run->scopes[run->scope_count - 1];

		/* (also where there is nothing in the section) */
		if (!step(run))
			return false;
		if (value->kind == KLM_LIST)
			value->reader->element(value, i, scope);
		else
			*scope = *value;
		if (!render_nodes(run, template, number + 1, node->end, depth + 1))
			return false;
	}
	run->scope_count--;
	return true;
}

static bool
render_nodes(Run *run, const KlmTemplate *template, int from, int to, int depth)
{
	if (depth > MAX_DEPTH)
		return fail_depth(run);
	for (int i = from; i < to;)
	{
		const KlmNode *node = &template->nodes[i];
		KlmValue	value;
		bool		counts;
		bool		ok = true;

		if (!step(run))
			return false;
		switch (node->kind)
		{
			case KLM_NODE_TEXT:
				ok = put_text(run, node->text, node->length);
				i++;
				break;
			case KLM_NODE_VALUE:
				ok = put_value(run, node);
				i++;
				break;
			case KLM_NODE_PARTIAL:
				ok = put_partial(run, node, depth);
				i++;
				break;
			case KLM_NODE_SECTION:
			case KLM_NODE_INVERTED:
				counts = klm_mustache_find(run->scopes, run->scope_count, node->text, node->length,
										   &value) &&
					counts_as_true(&value);
				if (counts && node->kind == KLM_NODE_SECTION)
					ok = put_section(run, template, i, &value, depth);
				else if (!counts && node->kind == KLM_NODE_INVERTED)
					ok = render_nodes(run, template, i + 1, node->end, depth + 1);
				i = node->end;
				break;
		}
		if (!ok)
			return false;
	}
	return true;
}

bool
klm_mustache_render(KlmRendering *rendering, const KlmTemplate *template, StringInfo out,
					KlmError *error)
{
	Run			run;

	Assert(rendering->scope_count <= MAX_DEPTH);
	memset(&run, 0, offsetof(Run, scopes));
	run.rendering = rendering;
	run.template = template;
	run.out = out;
	run.error = error;
	run.scope_count = rendering->scope_count;
	memcpy(run.scopes, rendering->scopes, rendering->scope_count * sizeof(KlmValue));
	return render_nodes(&run, template, 0, template->count, 0);
}
