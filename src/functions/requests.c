/*-------------------------------------------------------------------------
 *
 * requests.c
 *		SQL function for http_request(): _percent_decoded().
 *
 * In kliv_mail_net.  Runs no SQL.  What the bytes of a request mean is SQL
 * (84_requests.sql); a character at a time is too slow there.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "base/encoding.h"
#include "base/error.h"
#include "base/kliv_mail.h"

PG_FUNCTION_INFO_V1(kliv_mail__percent_decoded);

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/*
 * _percent_decoded(encoded, form): the text behind %XX, in a form behind + too.
 * 22023 for a % without two digits, and for bytes that are no UTF-8 or NUL.
 */
Datum
kliv_mail__percent_decoded(PG_FUNCTION_ARGS)
{
	text	   *encoded = PG_GETARG_TEXT_PP(0);
	bool		form = PG_GETARG_BOOL(1);
	const char *from = VARDATA_ANY(encoded);
	const char *end = from + VARSIZE_ANY_EXHDR(encoded);
	char	   *decoded = palloc(end - from + 1);
	char	   *to = decoded;

	while (from < end)
	{
		if (*from == '%')
		{
			int			high = end - from > 2 ? hex_digit(from[1]) : -1;
			int			low = end - from > 2 ? hex_digit(from[2]) : -1;

			if (high < 0 || low < 0)
				klm_refuse(NULL, ERRCODE_INVALID_PARAMETER_VALUE, true, NULL,
						   "the request has a %% without two hexadecimal digits");
			*to++ = (char) (high << 4 | low);
			from += 3;
		}
		else
		{
			*to++ = form && *from == '+' ? ' ' : *from;
			from++;
		}
	}
	*to = '\0';
	if (!pg_verify_mbstr(PG_UTF8, decoded, to - decoded, true))
		klm_refuse(NULL, ERRCODE_INVALID_PARAMETER_VALUE, true, NULL,
				   "the request has bytes that are no UTF-8");
	PG_RETURN_TEXT_P(cstring_to_text(klm_from_utf8(decoded)));
}
