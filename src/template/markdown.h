/*-------------------------------------------------------------------------
 *
 * markdown.h
 *		Markdown (GitHub's dialect, by md4c) to HTML and to plain text, in one
 *		pass.
 *
 * Pure but for md4c's own memory, which ends with the call, also by an error.
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
#include "template/note.h"

typedef struct KlmMarkdown
{
	const KlmHolder *holder;
	bool		raw_html;		/* the author's HTML passes */
	bool		rtl;			/* it is read from right to left */
	const char *link_color;		/* "#rrggbb" */
	const char *button_color;
	const char *button_text_color;
	KlmNotes   *notes;			/* NULL: none are asked for */
} KlmMarkdown;

/*
 * Append to html and text.  False with *error, 54000: blocks are too deep in one
 * another, or one of the two would be over KLM_MAX_OUTPUT.
 */
extern bool klm_markdown_render(KlmMarkdown *markdown, const char *source, int length,
								StringInfo html, StringInfo text, KlmError *error);

#endif							/* KLM_MARKDOWN_H */
