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
extern char *klm_mime_text_from_html(const char *html);

#endif							/* KLM_HTML_TO_TEXT_H */
