/*-------------------------------------------------------------------------
 *
 * html_to_text.h
 *		A readable plain text for an HTML body.
 *
 * Pure.  All text is UTF-8.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_HTML_TO_TEXT_H
#define KLM_HTML_TO_TEXT_H

#include "base/kliv_mail.h"

/* A readable plain text for an HTML body; palloc'd. */
extern PGDLLEXPORT char *klm_mime_text_from_html(const char *html);

/*
 * What the ampersand at pos begins, and where to go on: behind the ampersand
 * alone, where it begins no entity that is known.  ch 0: nothing to show.
 */
extern PGDLLEXPORT const char *klm_html_entity(const char *pos, const char *end, uint32 *ch);

#endif							/* KLM_HTML_TO_TEXT_H */
