/*-------------------------------------------------------------------------
 *
 * ehlo.c
 *		What a server offers in its reply to EHLO (RFC 5321, 4.1.1.1).
 *
 * Layer: pure.  Owns nothing, calls nothing.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "smtp/ehlo.h"

static bool
keyword_is(const char *word, Size length, const char *keyword)
{
	return length == strlen(keyword) && pg_strncasecmp(word, keyword, length) == 0;
}

/* "AUTH PLAIN LOGIN", also the "AUTH=PLAIN LOGIN" of old servers. */
static void
read_mechanisms(const char *line, Size length, KlmSmtpCaps *caps)
{
	const unsigned char *text = (const unsigned char *) line;
	Size		used = strlen(caps->auth_mechanisms);

	while (length > 0)
	{
		Size		word = 0;

		while (word < length && text[word] > ' ' && text[word] < 0x7f)
			word++;
		if (word > 0 && used + word + 2 < sizeof(caps->auth_mechanisms))
		{
			if (used > 0)
				caps->auth_mechanisms[used++] = ' ';
			for (Size i = 0; i < word; i++)
				caps->auth_mechanisms[used++] = pg_toupper(text[i]);
			caps->auth_mechanisms[used] = '\0';
		}
		if (word == length)
			break;
		text += word + 1;
		length -= word + 1;
	}
}

void
klm_smtp_parse_ehlo(const char *raw, Size length, KlmSmtpCaps *caps)
{
	bool		first = true;

	memset(caps, 0, sizeof(*caps));
	while (length > 0)
	{
		const char *newline = memchr(raw, '\n', length);
		Size		whole = newline ? newline - raw + 1 : length;
		Size		used = newline ? whole - 1 : whole;

		if (used > 0 && raw[used - 1] == '\r')
			used--;

		/* The first line is the server's name and greeting. */
		if (!first && used > 4)
		{
			const char *text = raw + 4;
			Size		rest = used - 4;
			Size		word = 0;

			while (word < rest && text[word] != ' ' && text[word] != '=')
				word++;
			if (keyword_is(text, word, "PIPELINING"))
				caps->pipelining = true;
			else if (keyword_is(text, word, "CHUNKING"))
				caps->chunking = true;
			else if (keyword_is(text, word, "SMTPUTF8"))
				caps->smtputf8 = true;
			else if (keyword_is(text, word, "8BITMIME"))
				caps->eightbitmime = true;
			else if (keyword_is(text, word, "DSN"))
				caps->dsn = true;
			else if (keyword_is(text, word, "STARTTLS"))
				caps->starttls = true;
			else if (keyword_is(text, word, "AUTH"))
			{
				caps->auth = true;
				if (word < rest)
					read_mechanisms(text + word + 1, rest - word - 1, caps);
			}
			else if (keyword_is(text, word, "SIZE"))
			{
				caps->size_offered = true;
				caps->size = 0;
				for (Size i = word + 1; i < rest && text[i] >= '0' && text[i] <= '9'; i++)
				{
					/* A number that does not fit is no limit for us. */
					if (caps->size > (PG_UINT64_MAX - 9) / 10)
					{
						caps->size = 0;
						break;
					}
					caps->size = caps->size * 10 + (text[i] - '0');
				}
			}
		}
		first = false;
		raw += whole;
		length -= whole;
	}
}

bool
klm_smtp_offers(const KlmSmtpCaps *caps, const char *mechanism)
{
	Size		length = strlen(mechanism);

	for (const char *p = caps->auth_mechanisms; (p = strstr(p, mechanism)) != NULL; p += length)
		if ((p == caps->auth_mechanisms || p[-1] == ' ') && (p[length] == ' ' || p[length] == '\0'))
			return true;
	return false;
}
