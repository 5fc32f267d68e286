/*-------------------------------------------------------------------------
 *
 * reply_parse.c
 *		Read an SMTP reply: its code, its enhanced status, its text, the server's id.
 *
 * Pure (palloc only).  The bytes may be hostile.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "smtp/reply_parse.h"

/* An enhanced status ("5.1.1", also "#5.1.1" and "(#5.1.1)") at the start of s? */
static Size
status_length(const char *s, const char *end)
{
	const char *p = s;

	if (p == end || (*p != '2' && *p != '4' && *p != '5'))
		return 0;
	p++;
	for (int part = 0; part < 2; part++)
	{
		int			digits = 0;

		if (p == end || *p++ != '.')
			return 0;
		while (p < end && *p >= '0' && *p <= '9')
		{
			p++;
			digits++;
		}
		if (digits < 1 || digits > 3)
			return 0;
	}
	/* Nothing that could go on as a number or as somebody's address: "5.1.1@example.com". */
	if (p < end && strchr(" \t),:;<[", *p) == NULL)
		return 0;
	return p - s;
}

/* Does a line begin with three digits, and no fourth one behind them? */
static bool
has_code(const char *line, const char *end)
{
	for (int i = 0; i < 3; i++)
	{
		if (line + i >= end || !isdigit((unsigned char) line[i]))
			return false;
	}
	return end - line == 3 || !isdigit((unsigned char) line[3]);
}

/* Code of a reply line, or 0 if it is none. */
int
klm_line_code(const char *line, Size length)
{
	if (!has_code(line, line + length) || line[0] < '2' || line[0] > '5')
		return 0;
	return (line[0] - '0') * 100 + (line[1] - '0') * 10 + (line[2] - '0');
}

/* Has the reply an enhanced status that begins so? */
bool
klm_has_status(const char *raw, Size length, const char *begin)
{
	return length > 4 + strlen(begin) && strncmp(raw + 4, begin, strlen(begin)) == 0;
}

/* 521 is what Postfix says before it hangs up, so as not to read a message as commands. */
bool
klm_refuses_command(const char *raw, Size length, int code)
{
	return ((code >= 500 && code <= 504) || code == 521) &&
		!klm_has_status(raw, length, "5.6.") && !klm_has_status(raw, length, "5.7.");
}

/* Skip a line's "550-" and its enhanced status; *status is where that stands. */
const char *
klm_skip_codes(const char *line, const char *end, const char **status, Size *length)
{
	const char *p = line;

	*length = 0;
	if (has_code(p, end))
		p += end - p > 3 && strchr(" -\t", p[3]) != NULL ? 4 : 3;
	while (p < end && *p == ' ')
		p++;
	*status = p;
	while (*status < end && (**status == '(' || **status == '#'))
		(*status)++;
	*length = status_length(*status, end);
	if (*length > 0)
		p = *status + *length;
	return p;
}

/* May this code point be shown: no control, no bidi or invisible character? */
static bool
is_printable(pg_wchar c)
{
	if (c < 0x20 || (c >= 0x7f && c < 0xa0))
		return false;
	if ((c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) ||
		(c >= 0x2060 && c <= 0x206f) || c == 0xfeff || c == 0xad || c == 0x61c)
		return false;
	return (c & 0xfffe) != 0xfffe;
}

/* Append a line, printable, while there is room; false when it was cut. */
static bool
append_printable(StringInfo out, const char *line, const char *end)
{
	static const char cut[] = "...";

	while (line < end)
	{
		int			length = pg_utf_mblen((const unsigned char *) line);
		bool		good = false;

		if (length <= end - line && pg_utf8_islegal((const unsigned char *) line, length))
			good = is_printable(utf8_to_unicode((const unsigned char *) line));
		else
			length = 1;
		if (out->len + length > KLM_REPLY_MAX - (int) sizeof(cut))
		{
			appendStringInfoString(out, cut);
			return false;
		}
		if (good)
			appendBinaryStringInfo(out, line, length);
		else
			appendStringInfoChar(out, *line == '\t' ? ' ' : '?');
		line += length;
	}
	return true;
}

void
klm_read_reply(KlmStage stage, const char *raw, Size length, KlmReply *reply)
{
	StringInfoData text;
	const char *end = raw + length;
	const char *status = NULL;
	Size		status_len = 0;
	bool		room = true;

	memset(reply, 0, sizeof(KlmReply));
	reply->stage = stage;
	initStringInfo(&text);

	/* The last line's code is the reply's. */
	while (raw < end)
	{
		const char *newline = memchr(raw, '\n', end - raw);
		const char *line_end = newline ? newline : end;
		const char *found;
		Size		found_len;
		int			code;

		while (line_end > raw && line_end[-1] == '\r')
			line_end--;
		klm_skip_codes(raw, line_end, &found, &found_len);
		if (found_len > 0 && status == NULL)
		{
			status = found;
			status_len = found_len;
		}
		code = klm_line_code(raw, line_end - raw);
		if (code != 0)
			reply->code = code;
		if (room && line_end > raw)
		{
			if (text.len > 0)
				appendStringInfoChar(&text, '\n');
			room = append_printable(&text, raw, line_end);
		}
		raw = newline ? newline + 1 : end;
	}
	reply->text = text.data;

	/* A status that contradicts the code is no status. */
	if (status && status_len < sizeof(reply->enhanced) && status[0] - '0' == reply->code / 100)
		memcpy(reply->enhanced, status, status_len);
}

/* ---- the server's own id ---- */

static bool
is_id_char(char c)
{
	return (c > ' ' && c < 0x7f) && strchr("<>()[]{},;:\"'", c) == NULL;
}

/* The id that begins at s, if it looks like one. */
static char *
id_at(const char *s)
{
	Size		length = 0;
	bool		digit = false;

	while (*s == ' ' || *s == '<' || *s == ':' || *s == '[' || *s == '(')
		s++;
	while (is_id_char(s[length]) && length < 255)
	{
		digit |= isdigit((unsigned char) s[length]) != 0;
		length++;
	}
	while (length > 0 && s[length - 1] == '.')
		length--;
	if (length < 5 || !digit)
		return NULL;
	return pnstrdup(s, length);
}

/* The word before at. */
static char *
id_before(const char *text, const char *at)
{
	const char *start;

	while (at > text && at[-1] == ' ')
		at--;
	start = at;
	while (start > text && is_id_char(start[-1]))
		start--;
	return start < at ? id_at(pnstrdup(start, at - start)) : NULL;
}

/* As it stands after the last of the markers that servers put before an id. */
char *
klm_server_message_id(const KlmReply *reply, const char *provider)
{
	static const char *const before[] = {"queued as ", "queued as: ", "id=", "queued with id ",
	"internalid="};
	static const char *const after[] = {" message accepted for delivery", " - gsmtp"};
	const char *line;
	const char *start;
	const char *status;
	Size		length;
	char	   *id;

	if (reply->code < 200 || reply->code > 299 || reply->text == NULL)
		return NULL;
	line = strrchr(reply->text, '\n');
	line = line ? line + 1 : reply->text;
	start = klm_skip_codes(line, line + strlen(line), &status, &length);

	for (int i = 0; i < lengthof(before); i++)
	{
		for (const char *p = start; *p; p++)
		{
			if (pg_strncasecmp(p, before[i], strlen(before[i])) == 0)
			{
				id = id_at(p + strlen(before[i]));
				if (id)
					return id;
			}
		}
	}
	for (int i = 0; i < lengthof(after); i++)
	{
		for (const char *p = start; *p; p++)
		{
			if (pg_strncasecmp(p, after[i], strlen(after[i])) == 0)
			{
				id = id_before(start, p);
				if (id)
					return id;
			}
		}
	}

	/* SES, Resend and others: "Ok" and the id, or the id alone. */
	while (*start == ' ')
		start++;
	if (pg_strncasecmp(start, "ok", 2) == 0 && !isalnum((unsigned char) start[2]))
		start += 2;
	while (*start == ' ' || *start == ':')
		start++;
	return id_at(start);
}
