/*-------------------------------------------------------------------------
 *
 * encoding.h
 *		Text between the database's encoding and UTF-8, in which all our C
 *		works.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_ENCODING_H
#define KLM_ENCODING_H

#include "fmgr.h"

#include "base/kliv_mail.h"

/* palloc'd, or the argument itself; both raise what cannot be converted. */
extern PGDLLEXPORT char *klm_to_utf8(const char *text);
extern PGDLLEXPORT char *klm_from_utf8(const char *utf8);

/* NULL for what cannot be converted. */
extern char *klm_to_utf8_or_null(const char *text);

/* For an argument: the error names it, and shows nothing of it. */
extern PGDLLEXPORT char *klm_argument_to_utf8(const char *argument, const char *text);

/* A text argument of a function that is called, in UTF-8; NULL for SQL NULL. */
extern PGDLLEXPORT char *klm_argument(FunctionCallInfo fcinfo, int number);

/* For words of others (a server's reply): what the encoding lacks becomes "?"; never raises. */
extern PGDLLEXPORT char *klm_from_utf8_lossy(const char *utf8);

#endif							/* KLM_ENCODING_H */
