/*-------------------------------------------------------------------------
 *
 * html.h
 *		HTML that an author wrote, with held values put in where they stand.
 *
 * Pure.  A small tokenizer knows whether a value stands in a text, an
 * attribute, a style or elsewhere.  What the author wrote passes as it is.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_HTML_H
#define KLM_HTML_H

#include "template/held.h"
#include "template/note.h"

typedef enum KlmHtmlState
{
	KLM_HTML_TEXT,
	KLM_HTML_TAG,				/* behind "<", in a name or behind it */
	KLM_HTML_NAME,				/* of an attribute */
	KLM_HTML_EQUALS,			/* behind the "=" */
	KLM_HTML_VALUE,				/* of an attribute */
	KLM_HTML_COMMENT,
	KLM_HTML_RAWTEXT			/* in style, script, title, textarea */
} KlmHtmlState;

typedef struct KlmHtml
{
	const KlmHolder *holder;
	StringInfo	out;
	KlmNotes   *notes;			/* NULL: none are asked for */

	KlmHtmlState state;
	char		element[16];	/* the open tag's name, in lower case, or that of the raw text */
	char		attribute[16];
	char		quote;			/* around the value; '\0': none */
	StringInfoData value;		/* the attribute's, as written */

	/* Of notes: the open tag, and the open link. */
	const char *tag;			/* where it begins */
	bool		has_alt;
	StringInfoData url;			/* a link's, or an image's */
	int			link_start;		/* in out; -1: none is open */
	char	   *link_url;
} KlmHtml;

extern void klm_html_begin(KlmHtml *html, const KlmHolder *holder, StringInfo out, KlmNotes *notes);

/* A part of it; no placeholder is split between two. */
extern void klm_html_add(KlmHtml *html, const char *text, int length);

extern void klm_html_end(KlmHtml *html);

#endif							/* KLM_HTML_H */
