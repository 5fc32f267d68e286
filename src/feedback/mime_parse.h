/*-------------------------------------------------------------------------
 *
 * mime_parse.h
 *		The little of MIME that reports need: headers, parts, decoded text.
 *
 * Pure (palloc only).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_MIME_PARSE_H
#define KLM_MIME_PARSE_H

#include "base/kliv_mail.h"

/* Of a mail no more than this is looked at: a report comes before what it returns. */
#define KLM_MIME_MAX (1024 * 1024)

/* All point into one copy of the mail, in which every line ends with '\n'. */
typedef struct KlmPart
{
	const char *header;
	Size		header_length;
	const char *body;			/* as it was sent, encoded */
	Size		body_length;
	char	   *type;			/* "text/plain", lower case; what is missing or malformed is that */
} KlmPart;

/*
 * The whole mail first, then its leaves in their order, palloc'd.  Never fails:
 * what is no multipart as the standard has it is one part.  A mail within
 * the mail (message/rfc822) is a leaf.
 */
extern KlmPart *klm_mime_parts(const char *raw, Size length, int *count);

/* Where a header ends and what is behind it begins. */
extern void klm_split_header(const char *text, Size length, KlmPart *part);

/* The number-th header of that name (0: the first), unfolded, palloc'd; or NULL. */
extern char *klm_header(const char *header, Size length, const char *name, int number);

/* A parameter of a Content-Type, palloc'd; or NULL. */
extern char *klm_header_parameter(const char *value, const char *name);

/* The body without its transfer encoding, NUL-terminated, palloc'd; it may have NULs itself. */
extern char *klm_part_text(const KlmPart *part, Size *length);

#endif							/* KLM_MIME_PARSE_H */
