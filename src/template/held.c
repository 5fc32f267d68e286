/*-------------------------------------------------------------------------
 *
 * held.c
 *		Values that wait outside a text until it has been parsed, and how they
 *		are put in.
 *
 * Pure: palloc and StringInfo.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "template/held.h"

/* A placeholder: the word, and the number of the value in six digits. */
#define WORD "kLmVaLuE"
#define WORD_LENGTH 8
#define DIGITS 6

void
klm_hold(KlmHolder *holder, StringInfo out, const char *text, int length, bool raw)
{
	KlmHeldValue *value;
	char		word[] = WORD "000000";

	if (holder->count == holder->space)
	{
		holder->space = Max(16, 2 * holder->space);
		holder->values = holder->values == NULL ?
			palloc(holder->space * sizeof(KlmHeldValue)) :
			repalloc(holder->values, holder->space * sizeof(KlmHeldValue));
	}
	value = &holder->values[holder->count];
	value->text = text;
	value->length = length;
	value->raw = raw;
	for (int i = WORD_LENGTH + DIGITS - 1, left = holder->count++; left > 0; i--, left /= 10)
		word[i] = '0' + left % 10;
	appendBinaryStringInfo(out, word, WORD_LENGTH + DIGITS);
}

const KlmHeldValue *
klm_held_next(const KlmHolder *holder, const char *text, const char *end,
			  const char **at, const char **next)
{
	const char *pos = text;

	while (end - pos >= WORD_LENGTH + DIGITS &&
		   (pos = memchr(pos, WORD[0], end - pos - (WORD_LENGTH + DIGITS) + 1)) != NULL)
	{
		if (memcmp(pos, WORD, WORD_LENGTH) == 0)
		{
			int			number = 0;
			int			i;

			for (i = 0; i < DIGITS; i++)
			{
				char		ch = pos[WORD_LENGTH + i];

				if (ch < '0' || ch > '9')
					break;
				number = 10 * number + (ch - '0');
			}
			if (i == DIGITS && number < holder->count)
			{
				*at = pos;
				*next = pos + WORD_LENGTH + DIGITS;
				return &holder->values[number];
			}
		}
		pos++;
	}
	*at = *next = end;
	return NULL;
}

static void
put_escaped(StringInfo out, const char *text, int length, const char *line_end)
{
	const char *end = text + length;
	const char *from = text;

	for (const char *pos = text; pos < end; pos++)
	{
		const char *instead;

		switch (*pos)
		{
			case '&':
				instead = "&amp;";
				break;
			case '<':
				instead = "&lt;";
				break;
			case '>':
				instead = "&gt;";
				break;
			case '"':
				instead = "&quot;";
				break;
			case '\'':
				instead = "&#39;";
				break;
			case '\r':
				if (line_end == NULL)
					continue;
				instead = pos + 1 < end && pos[1] == '\n' ? "" : line_end;
				break;
			case '\n':
				if (line_end == NULL)
					continue;
				instead = line_end;
				break;
			default:
				continue;
		}
		appendBinaryStringInfo(out, from, pos - from);
		appendStringInfoString(out, instead);
		from = pos + 1;
	}
	appendBinaryStringInfo(out, from, end - from);
}

void
klm_put_escaped(StringInfo out, const char *text, int length)
{
	put_escaped(out, text, length, NULL);
}

void
klm_put_lines(StringInfo out, const char *text, int length)
{
	put_escaped(out, text, length, "<br>\n");
}

void
klm_put_style(StringInfo out, const char *text, int length)
{
	for (int i = 0; i < length; i++)
	{
		unsigned char ch = text[i];

		if (pg_ascii_tolower(ch) >= 'a' && pg_ascii_tolower(ch) <= 'z')
			appendStringInfoCharMacro(out, ch);
		else if ((ch >= '0' && ch <= '9') || (ch != '\0' && strchr("#.,% -", ch) != NULL))
			appendStringInfoCharMacro(out, ch);
	}
}

void
klm_put_held(const KlmHolder *holder, StringInfo out, const char *text, int length)
{
	const char *end = text + length;

	while (text < end)
	{
		const char *at;
		const char *next;
		const KlmHeldValue *value = klm_held_next(holder, text, end, &at, &next);

		appendBinaryStringInfo(out, text, at - text);
		if (value != NULL)
			appendBinaryStringInfo(out, value->text, value->length);
		text = next;
	}
}

/* ----------------------------------------------------------------
 * URLs
 * ----------------------------------------------------------------
 */

static bool
is_unreserved(unsigned char ch)
{
	return (ch >= '0' && ch <= '9') || (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') ||
		ch == '-' || ch == '.' || ch == '_' || ch == '~';
}

/* What a URL may hold, percent-encoded where it is something else. */
static void
put_url_text(StringInfo out, const char *text, int length, const char *kept)
{
	static const char hex[] = "0123456789ABCDEF";

	for (int i = 0; i < length; i++)
	{
		unsigned char ch = text[i];

		if (is_unreserved(ch) || (ch != '\0' && strchr(kept, ch) != NULL))
			appendStringInfoCharMacro(out, ch);
		else
		{
			appendStringInfoCharMacro(out, '%');
			appendStringInfoCharMacro(out, hex[ch >> 4]);
			appendStringInfoCharMacro(out, hex[ch & 15]);
		}
	}
}

/* As it is, but for what can stand in no URL. */
#define ANY_OF_URL ":/?#[]@!$&'()*+,;=%"

bool
klm_put_url(const KlmHolder *holder, StringInfo out, const char *text, int length, bool image)
{
	static const char *const schemes[] = {"https://", "http://", "mailto:", "tel:", "cid:"};
	const char *end = text + length;
	int			start = out->len;
	const char *url;
	while (text < end)
	{
		const char *at;
		const char *next;
		const KlmHeldValue *value = klm_held_next(holder, text, end, &at, &next);

		put_url_text(out, text, at - text, ANY_OF_URL);
		if (value != NULL)
		{
			const char *begin = value->text;
			const char *stop = begin + value->length;

			while (begin < stop && (unsigned char) *begin <= ' ')
				begin++;
			while (begin < stop && (unsigned char) stop[-1] <= ' ')
				stop--;
			if (out->len == start || value->raw)
				put_url_text(out, begin, stop - begin, ANY_OF_URL);
			else if (out->len == start + 7 && pg_strncasecmp(out->data + start, "mailto:", 7) == 0)
				put_url_text(out, begin, stop - begin, "@");
			else if (pg_strncasecmp(out->data + start, "tel:", 4) == 0)
				put_url_text(out, begin, stop - begin, "+");
			else
				put_url_text(out, begin, stop - begin, "");
		}
		text = next;
	}
	url = out->data + start;
	for (int i = 0; i < (image ? lengthof(schemes) : lengthof(schemes) - 1); i++)
	{
		if (pg_strncasecmp(url, schemes[i], strlen(schemes[i])) == 0 &&
			strlen(url) > strlen(schemes[i]))
			return true;
	}
	return false;
}
