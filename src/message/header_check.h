/*-------------------------------------------------------------------------
 *
 * header_check.h
 *		What a caller may put into a header.
 *
 * Pure.  All text is UTF-8.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_HEADER_CHECK_H
#define KLM_HEADER_CHECK_H

#include "base/error.h"

#define KLM_MAX_HEADERS 100

/* Bytes without a space that a line still carries: with the longest name below 998. */
#define KLM_LONGEST_WORD 900

typedef struct KlmHeader
{
	const char *name;
	const char *value;
} KlmHeader;

/*
 * May a caller set this header?  The reserved ones, a bad name, CR/LF/NUL or a
 * control in the value, a structured header with a value it cannot have:
 * false, with SQLSTATE 22023; over the limits (name 76, value 16,000 octets):
 * 54000.
 */
extern bool klm_mime_check_header(const char *name, const char *value, KlmError *error);

/*
 * All headers of a message: each by itself, none twice, not more than
 * KLM_MAX_HEADERS (54000), List-Unsubscribe-Post only beside an https
 * List-Unsubscribe (RFC 8058).
 */
extern bool klm_mime_check_headers(const KlmHeader *headers, int count, KlmError *error);

/* May this be a subject?  CR, LF, controls 22023; over 16,000 octets 54000. */
extern PGDLLEXPORT bool klm_mime_check_subject(const char *subject, KlmError *error);

#endif							/* KLM_HEADER_CHECK_H */
