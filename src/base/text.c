/*-------------------------------------------------------------------------
 *
 * text.c
 *		UTF-8 character by character, and text made fit to be shown.
 *
 * Pure: palloc and StringInfo.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "base/text.h"

#define SHOWN_CHARS 80

bool
klm_is_joiner(uint32 ch)
{
	return ch == 0x200C || ch == 0x200D;
}

/* Controls, bidi controls, separators of lines, characters without a width. */
bool
klm_is_unsafe(uint32 ch)
{
	return ch < 0x20 || (ch >= 0x7F && ch <= 0x9F) ||
		ch == 0x061C || ch == 0x180E ||
		ch == 0x200B || ch == 0x200E || ch == 0x200F ||
		(ch >= 0x2028 && ch <= 0x202E) ||
		(ch >= 0x2060 && ch <= 0x206F) ||
		ch == 0xFEFF || (ch >= 0xFFF9 && ch <= 0xFFFB);
}

/* Those, and what else shows nothing by itself: a message shows their numbers. */
bool
klm_is_invisible(uint32 ch)
{
	return klm_is_unsafe(ch) || klm_is_joiner(ch) ||
		ch == 0x00AD || ch == 0x034F || ch == 0x115F || ch == 0x1160 || ch == 0x3164 ||
		ch == 0xFFA0 || (ch >= 0xFE00 && ch <= 0xFE0F) || ch >= 0xE0000;
}

uint32
klm_utf8_next(const char **text, const char *end)
{
	const unsigned char *pos = (const unsigned char *) *text;
	int			length;
	uint32		ch;
	int			i;

	if (pos[0] < 0x80)
		length = 1;
	else if (pos[0] < 0xC2)
		length = 0;
	else if (pos[0] < 0xE0)
		length = 2;
	else if (pos[0] < 0xF0)
		length = 3;
	else
		length = pos[0] < 0xF5 ? 4 : 0;
	if (length == 1)
	{
		(*text)++;
		return pos[0];
	}
	if (length == 0 || end - *text < length)
	{
		(*text)++;
		return 0xFFFD;
	}
	ch = pos[0] & (0x7F >> length);
	for (i = 1; i < length; i++)
	{
		if ((pos[i] & 0xC0) != 0x80)
		{
			(*text)++;
			return 0xFFFD;
		}
		ch = (ch << 6) | (pos[i] & 0x3F);
	}
	*text += length;
	return ch;
}

bool
klm_is_space(uint32 ch)
{
	return ch == ' ' || ch == '\t' || ch == 0xA0 || ch == 0x1680 ||
		(ch >= 0x2000 && ch <= 0x200A) || ch == 0x202F || ch == 0x205F || ch == 0x3000;
}

bool
klm_has_unsafe_char(const char *utf8, bool allow_tab)
{
	const char *pos = utf8;
	const char *end;
	uint32		previous = 0;

	/* Most text is printable ASCII: no code points to look at. */
	while ((unsigned char) *pos >= 0x20 && (unsigned char) *pos < 0x7F)
		pos++;
	if (*pos == '\0')
		return false;
	end = pos + strlen(pos);
	if (pos > utf8)
		previous = (unsigned char) pos[-1];

	while (pos < end)
	{
		uint32		ch = klm_utf8_next(&pos, end);

		if (klm_is_unsafe(ch) && !(ch == '\t' && allow_tab))
			return true;
		if (klm_is_joiner(ch))
		{
			const char *peek = pos;

			/* At either end of a word there is nothing to join, and a trimmed name begins there. */
			if (previous < 0x80 || klm_is_space(previous) || (unsigned char) *pos < 0x80 ||
				klm_is_space(klm_utf8_next(&peek, end)))
				return true;
		}
		previous = ch;
	}
	return false;
}

static bool
is_line_end(uint32 ch)
{
	return (ch >= '\n' && ch <= '\r') || ch == 0x85 || ch == 0x2028 || ch == 0x2029;
}

char *
klm_without_invisible(const char *utf8)
{
	StringInfoData out;
	const char *pos = utf8;
	const char *end = utf8 + strlen(utf8);
	const char *joiner = NULL;	/* one that waits for what it joins */
	int			kept = 0;		/* up to the line ends behind it */
	bool		begun = false;	/* there is more than spaces */
	bool		ended = false;	/* a line end, and nothing but spaces since */
	uint32		previous = 0;	/* the last character that was kept */

	initStringInfo(&out);
	while (pos < end)
	{
		const char *from = pos;
		uint32		ch = klm_utf8_next(&pos, end);

		if (klm_is_joiner(ch))
		{
			if (previous >= 0x80 && !klm_is_space(previous) && joiner == NULL)
				joiner = from;
			continue;
		}
		if (is_line_end(ch) && !begun)
		{
			resetStringInfo(&out);
			continue;
		}
		if (ch >= 0xA0 && klm_is_unsafe(ch) && !is_line_end(ch))
			continue;
		if (joiner && ch >= 0x80 && !is_line_end(ch) && !klm_is_space(ch))
			appendBinaryStringInfo(&out, joiner, 3);
		joiner = NULL;
		appendBinaryStringInfo(&out, from, pos - from);
		if (is_line_end(ch))
			ended = true;
		else if (!klm_is_space(ch))
		{
			begun = true;
			ended = false;
		}
		if (!ended)
			kept = out.len;
		previous = ch;
	}
	out.data[kept] = '\0';
	return out.data;
}

char *
klm_shown(const char *text, Size length)
{
	StringInfoData out;
	const char *pos = text;
	const char *end = text + length;
	int			shown = 0;

	initStringInfo(&out);
	while (pos < end)
	{
		const char *from = pos;
		uint32		ch = klm_utf8_next(&pos, end);

		if (shown++ == SHOWN_CHARS)
		{
			appendStringInfoString(&out, "...");
			break;
		}
		if (klm_is_invisible(ch))
			appendStringInfo(&out, "\\u%04X", ch);
		else
			appendBinaryStringInfo(&out, from, pos - from);
	}
	return out.data;
}
