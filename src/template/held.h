/*-------------------------------------------------------------------------
 *
 * held.h
 *		Values that wait outside a text until it has been parsed.
 *
 * Where a template becomes Markdown or HTML with values in it, each value is
 * held here and a placeholder stands in its place, a word of ASCII letters and
 * digits that every parser takes for a part of the text around it.  Behind the
 * parser, where it is known what the place is, the value is put in as that place
 * asks for: no value is ever parsed, so none can become markup.
 *
 * A template that writes such a word itself shows a value of its own twice, or
 * the word: nothing that its author could not do anyway.
 *
 * Pure.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_HELD_H
#define KLM_HELD_H

#include "lib/stringinfo.h"

#include "base/kliv_mail.h"

/* Of a mail's HTML, and of its text; and of the two on their way to that. */
#define KLM_MAX_OUTPUT (2 * 1024 * 1024)

typedef struct KlmHeldValue
{
	const char *text;
	int			length;
	bool		raw;			/* {{{name}}} */
} KlmHeldValue;

typedef struct KlmHolder
{
	KlmHeldValue *values;
	int			count;
	int			space;
} KlmHolder;

/* Hold a value (which is not copied), and append its placeholder. */
extern void klm_hold(KlmHolder *holder, StringInfo out, const char *text, int length, bool raw);

/*
 * The next placeholder in [text, end): the text before it ends at *at, the
 * text behind it begins at *next.  NULL: there is none, *at is end.
 */
extern const KlmHeldValue *klm_held_next(const KlmHolder *holder, const char *text,
										 const char *end, const char **at, const char **next);

/* Append a value for a place in HTML: text, or an attribute's value in quotes. */
extern void klm_put_escaped(StringInfo out, const char *text, int length);

/* The same with a <br> for each line end. */
extern void klm_put_lines(StringInfo out, const char *text, int length);

/* Append a value to a style: what cannot stand in one is left out. */
extern void klm_put_style(StringInfo out, const char *text, int length);

/*
 * Append text, with the values that it holds, as a URL (not escaped for HTML): a
 * value that stands at its beginning, or is raw, as it is, each other one
 * percent-encoded.  False: it is none of https, http, mailto, tel (and cid, for an
 * image).
 */
extern bool klm_put_url(const KlmHolder *holder, StringInfo out, const char *text, int length,
						bool image);

/* Append text with its values as they are. */
extern void klm_put_held(const KlmHolder *holder, StringInfo out, const char *text, int length);

#endif							/* KLM_HELD_H */
