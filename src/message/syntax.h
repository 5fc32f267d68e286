/*-------------------------------------------------------------------------
 *
 * syntax.h
 *		Which characters may stand where in headers.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_SYNTAX_H
#define KLM_SYNTAX_H

static inline bool
klm_is_alnum(unsigned char ch)
{
	return (ch >= '0' && ch <= '9') || (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z');
}

/* token of RFC 2045 */
static inline bool
klm_is_token(unsigned char ch)
{
	return ch > 0x20 && ch < 0x7F && strchr("()<>@,;:\\\"/[]?=", ch) == NULL;
}

#endif							/* KLM_SYNTAX_H */
