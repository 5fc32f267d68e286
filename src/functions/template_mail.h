/*-------------------------------------------------------------------------
 *
 * template_mail.h
 *		What the SQL functions of templates share.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_TEMPLATE_MAIL_H
#define KLM_TEMPLATE_MAIL_H

#include "pgtime.h"

#include "template/mail.h"

/* A source, compiled; raises 42601 and 54000 for the argument, with line and column. */
extern KlmTemplate *klm_compile_source(const char *argument, const char *utf8);

/* markdown or html. */
extern KlmBodyFormat klm_body_format(const char *name);

/* How a locale writes, with the clock of a zone (NULL or unknown: UTC). */
extern KlmFormats klm_formats_of(const char *locale, const char *time_zone);

/* The present time in those formats, palloc'd. */
extern char *klm_timestamp_text(const KlmFormats *formats);

#endif							/* KLM_TEMPLATE_MAIL_H */
