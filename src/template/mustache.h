/*-------------------------------------------------------------------------
 *
 * mustache.h
 *		Mustache: a source is compiled once, and rendered with values.
 *
 * Pure: palloc and StringInfo.  All text is UTF-8.
 *
 * Beside the language's own tags: $name and ${a.b} are {{name}} and {{a.b}}, $$
 * is a dollar sign; a value goes through filters, {{total | currency EUR}}
 * (filter.h).  Lambdas and inheritance are not there.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_MUSTACHE_H
#define KLM_MUSTACHE_H

#include "lib/stringinfo.h"

#include "base/error.h"
#include "template/filter.h"
#include "template/held.h"
#include "template/value.h"

#define KLM_MAX_SOURCE	(256 * 1024)

/* An error in a source: its message has no place in it. */
typedef struct KlmSourceError
{
	KlmError	error;
	int			line;			/* from 1; 0: it is about the whole */
	int			column;			/* in characters, from 1 */
} KlmSourceError;

typedef enum KlmNodeKind
{
	KLM_NODE_TEXT,
	KLM_NODE_VALUE,
	KLM_NODE_SECTION,
	KLM_NODE_INVERTED,
	KLM_NODE_PARTIAL
} KlmNodeKind;

/* The nodes of a section follow it, up to its end. */
typedef struct KlmNode
{
	KlmNodeKind kind;
	const char *text;			/* a text; the name, "a.b" or "." */
	int			length;
	int			offset;			/* in the source */
	int			end;			/* a section: the node behind its last one */
	bool		raw;			/* a value that is put in as it is: {{{name}}}, {{&name}} */
	bool		dollar;			/* written $name or ${name} */
	const char *indent;			/* a partial on a line of its own: what stands before it */
	int			indent_length;
	const KlmFilter *filters;	/* the first one's of a list, or NULL */
} KlmNode;

typedef struct KlmTemplate
{
	char	   *source;			/* a copy, to which the nodes point */
	int			length;
	KlmNode    *nodes;
	int			count;
	bool		allows_html;	/* {{% html }}: in Markdown, its author's HTML passes */
} KlmTemplate;

/* Everything is palloc'd in the present context; NULL with *error filled. */
extern KlmTemplate *klm_mustache_compile(const char *source, KlmSourceError *error);

/* The line and column of an offset in a source. */
extern void klm_source_place(const char *source, int offset, int *line, int *column);

/* What becomes of a value. */
typedef enum KlmValueMode
{
	KLM_PLAIN,					/* put in as it is */
	KLM_ESCAPED,				/* put in with &, <, >, " and ' escaped */
	KLM_HELD					/* a placeholder is put in (held.h) */
} KlmValueMode;

/* Where in the source a part of the output comes from. */
typedef struct KlmPlace
{
	int			output;
	int			source;
} KlmPlace;

typedef struct KlmRendering
{
	KlmValueMode mode;
	KlmHolder  *holder;			/* of KLM_HELD */
	const KlmValue *scopes;		/* looked through from the last one on */
	int			scope_count;
	const KlmTemplate *(*partial) (void *data, const char *name);	/* NULL: empty */
	void	   *partial_data;
	const KlmFormats *formats;	/* NULL: English, UTC */
	StringInfo	places;			/* NULL, or gets a KlmPlace for each text of the template's own */

	/* klm_mustache_render()'s own */
	int			steps;
} KlmRendering;

/*
 * Append to out.  False with *error: 54000 too deep, too much work, over
 * KLM_MAX_OUTPUT; 22023 a filter cannot take the value.
 */
extern bool klm_mustache_render(KlmRendering *rendering, const KlmTemplate *template,
								StringInfo out, KlmError *error);

/* The value of a name in scopes, of which the last one counts first. */
extern bool klm_mustache_find(const KlmValue *scopes, int count, const char *name, int length,
							  KlmValue *value);

#endif							/* KLM_MUSTACHE_H */
