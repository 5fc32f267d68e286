/*-------------------------------------------------------------------------
 *
 * markdown.h
 *		Markdown (GitHub's dialect, by md4c) to HTML and to plain text, in one
 *		pass.
 *
 * Pure but for md4c's own memory, which ends with the call.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_MARKDOWN_H
#define KLM_MARKDOWN_H

#include "lib/stringinfo.h"

#include "base/error.h"
#include "template/held.h"

/* What an author would want to know. */
typedef enum KlmNoteKind
{
	KLM_NOTE_NO_ALT,			/* an image without a text */
	KLM_NOTE_REFUSED_URL,		/* a link or an image whose URL is not allowed */
	KLM_NOTE_NOT_HTTPS,
	KLM_NOTE_OTHER_ADDRESS,		/* a link's text names another address than the link's */
	KLM_NOTE_RAW_VALUE,			/* {{{name}}} in a text, without raw HTML */
	KLM_NOTE_MISPLACED,			/* a value in a tag or a script of raw HTML */
	KLM_NOTE_SCRIPT,
	KLM_NOTE_OPEN_TAG			/* raw HTML that ends within a tag */
} KlmNoteKind;

typedef struct KlmNote
{
	struct KlmNote *next;
	KlmNoteKind kind;
	int			offset;			/* in the Markdown, near it */
	char	   *detail;			/* the URL, or NULL */
} KlmNote;

typedef struct KlmMarkdown
{
	const KlmHolder *holder;
	bool		raw_html;		/* the author's HTML passes */
	const char *link_color;		/* "#rrggbb" */
	const char *button_color;
	const char *button_text_color;
	bool		wants_notes;
	KlmNote    *notes;			/* in the end, the last one first */
} KlmMarkdown;

/*
 * Append to html and text.  False with *error, 54000: blocks are too deep in one
 * another, or one of the two would be over KLM_MAX_OUTPUT.
 */
extern bool klm_markdown_render(KlmMarkdown *markdown, const char *source, int length,
								StringInfo html, StringInfo text, KlmError *error);

#endif							/* KLM_MARKDOWN_H */
