/*-------------------------------------------------------------------------
 *
 * evidence.c
 *		What in a reply is the server's own opinion, and not an echo of ours.
 *
 * Servers repeat the recipient's address, the host that they asked about it and
 * what that host said.  Whoever fills in a sign-up form chooses the first, and
 * by it the second and the third; none of them may decide what becomes of an
 * account.
 *
 * Pure (palloc only).  All loops are over a text of at most KLM_REPLY_MAX bytes.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "smtp/evidence.h"
#include "smtp/reply_parse.h"

static inline char
lower(char c)
{
	return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
}

/* A character of a host's name, or of a word. */
static inline bool
is_word(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || ((unsigned char) c & 0x80) != 0;
}

static inline bool
is_host(char c)
{
	return is_word(c) || c == '.' || c == '-' || c == '_';
}

/* All lines in one, lower case, without codes. */
static char *
join_lines(const char *text)
{
	char	   *words = palloc(strlen(text) + 2);
	char	   *out = words;

	while (*text)
	{
		const char *end = strchr(text, '\n');
		const char *status;
		Size		length;

		if (end == NULL)
			end = text + strlen(text);
		for (const char *p = klm_skip_codes(text, end, &status, &length); p < end; p++)
			*out++ = *p == '\t' ? ' ' : lower(*p);
		*out++ = ' ';
		text = *end ? end + 1 : end;
	}
	*out = '\0';
	return words;
}

static void
squeeze(char *words)
{
	char	   *out = words;

	for (const char *p = words; *p; p++)
		if (*p != ' ' || (out > words && out[-1] != ' '))
			*out++ = *p;
	*out = '\0';
}

static void
blank(char *from, const char *to)
{
	memset(from, ' ', to - from);
}

/* Every occurrence of a text. */
static void
blank_text(char *words, const char *text)
{
	Size		length = strlen(text);

	if (length > 0)
		for (char *at = words; (at = strstr(at, text)) != NULL; at += length)
			blank(at, at + length);
}

/* Every host that is the domain or lies below it. */
static void
blank_domain(char *words, const char *domain)
{
	Size		length = strlen(domain);
	char	   *at = words;

	while (length > 0 && (at = strstr(at, domain)) != NULL)
	{
		char	   *start = at;
		char	   *end = at + length;

		at = end;
		if (is_word(*end) || *end == '-' || *end == '_' || (*end == '.' && is_word(end[1])) ||
			(start > words && start[-1] != '.' && is_host(start[-1])))
			continue;
		while (start > words && is_host(start[-1]))
			start--;
		blank(start, end);
	}
}

/* The end of the domain that follows an "@". */
static char *
domain_end(char *at)
{
	while (is_host(*++at))
		;
	return at;
}

/*
 * Addresses: "local part"@domain first, since what stands in quotes may contain
 * anything, then words with an "@".
 */
static void
blank_addresses(char *words)
{
	char	   *quote = strchr(words, '"');
	char	   *start = words;

	while (quote != NULL)
	{
		char	   *closing = quote + 1;

		while (*closing && *closing != '"')
			closing += closing[0] == '\\' && closing[1] ? 2 : 1;
		if (*closing == '\0')
			break;
		if (closing[1] == '@')
		{
			closing = domain_end(closing + 1);
			blank(quote, closing);
			quote = strchr(closing, '"');
		}
		else
			quote = closing;	/* which may open what is quoted, after a stray one */
	}
	for (char *p = words; *p; p++)
	{
		if (*p == ' ' || strchr("()<>,;:\"[]", *p) != NULL)
			start = p + 1;
		else if (*p == '@')
		{
			char	   *end = domain_end(p);

			blank(start, end);
			start = end;
			p = end - 1;
		}
	}
}

/* What stands in <>, also where the reply was cut inside. */
static void
blank_brackets(char *words)
{
	char	   *open = NULL;
	Size		length = strlen(words);

	for (char *p = words; *p; p++)
	{
		if (*p == '<')
			open = p;
		else if (*p == '>' && open != NULL)
		{
			blank(open, p + 1);
			open = NULL;
		}
	}
	if (open != NULL && length > 4 && strcmp(words + length - 4, "... ") == 0)
		blank(open, words + length);
}

/* "mx.example.com[192.0.2.1]", which a domain's owner names as he likes, and "name=example.com". */
static void
blank_hosts(char *words)
{
	char	   *at = words;

	while ((at = strchr(at, '[')) != NULL)
	{
		char	   *start = at;
		bool		dot = false;

		while (start > words && is_host(start[-1]))
			dot |= *--start == '.';
		if (dot)
			blank(start, at);
		at++;
	}
	for (at = words; (at = strstr(at, "name=")) != NULL;)
	{
		char	   *end = at += 5;

		while (is_host(*end))
			end++;
		blank(at, end);
	}
}

/* From where another server is quoted on. */
static void
cut_quotation(char *words)
{
	static const char *const markers[] = {
		"said: ", "responded: ", "response: ", "server was: ", "refused to talk to me: "
	};

	for (int i = 0; i < lengthof(markers); i++)
	{
		Size		length = strlen(markers[i]);

		for (char *at = words; (at = strstr(at, markers[i])) != NULL; at += length)
		{
			if (at[length] >= '2' && at[length] <= '5' && is_word(at[length + 1]) &&
				is_word(at[length + 2]))
			{
				*at = '\0';
				break;
			}
		}
	}
}

/* The address as it may be repeated: lower case, its local part with and without quotes. */
static char *
split_address(const char *recipient, char **local, char **bare)
{
	char	   *address = pstrdup(recipient);
	char	   *domain;
	char	   *out;

	for (char *p = address; *p; p++)
		*p = lower(*p);
	domain = strrchr(address, '@');
	*local = domain ? pnstrdup(address, domain - address) : pstrdup(address);
	out = *bare = pstrdup(*local);
	if (**local == '"')
	{
		for (const char *p = *local + 1; *p && *p != '"'; p++)
		{
			if (*p == '\\' && p[1])
				p++;
			*out++ = *p;
		}
		*out = '\0';
	}
	return domain ? domain + 1 : NULL;
}

char *
klm_evidence(const char *text, const char *recipient)
{
	char	   *words = join_lines(text);

	if (recipient != NULL)
	{
		char	   *local;
		char	   *bare;
		char	   *domain = split_address(recipient, &local, &bare);

		if (domain != NULL)
		{
			blank_text(words, psprintf("%s@%s", local, domain));
			blank_text(words, psprintf("%s@%s", bare, domain));
			blank_domain(words, domain);
		}
	}
	blank_addresses(words);
	blank_brackets(words);
	blank_hosts(words);
	cut_quotation(words);
	squeeze(words);
	return words;
}

/* A text where it is no part of a longer word. */
static bool
blank_word(char *words, const char *word)
{
	Size		length = strlen(word);
	bool		found = false;
	char	   *at = words;

	while (length > 0 && (at = strstr(at, word)) != NULL)
	{
		char	   *end = at + length;

		if (!is_word(*end) && (at == words || !is_word(at[-1])))
		{
			blank(at, end);
			found = true;
		}
		at = end;
	}
	return found;
}

bool
klm_evidence_without_name(char *words, const char *recipient)
{
	char	   *local;
	char	   *bare;
	char	   *plus;
	bool		found;

	split_address(recipient, &local, &bare);
	found = blank_word(words, local);
	found |= blank_word(words, bare);
	if ((plus = strchr(bare, '+')) != NULL)
	{
		*plus = '\0';
		found |= blank_word(words, bare);
	}
	if (found)
		squeeze(words);
	return found;
}
