/*-------------------------------------------------------------------------
 *
 * imap.c
 *		The client's side of IMAP as a machine: commands out, responses in.
 *
 * Pure (palloc only).  Knows no socket: net/mailbox.c carries the bytes.
 *
 * A response is a line, or several with literals between them ("{5}" at the end
 * of a line announces so many octets).  A line is kept up to LINE_MAX octets; of
 * literals only the body that was asked for is, up to KLM_IMAP_BODY_MAX; the
 * numbers of a SEARCH, which may be millions, are read as they come.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "feedback/imap.h"

/* No response that we ask for has longer ones, but for what is read as it comes. */
#define LINE_MAX_OCTETS 65536

static void start(KlmImap *imap);
static void take_octet(KlmImap *imap, char octet);
static void take_number(KlmImap *imap, char octet);
static void keep_uid(KlmImap *imap);
static bool literal_begins(KlmImap *imap);
static void take_response(KlmImap *imap);
static void take_status(KlmImap *imap, const char *text);
static void take_code(KlmImap *imap, const char *code);
static void take_capabilities(KlmImap *imap, const char *list);
static void take_fetch(KlmImap *imap, const char *items);
static const char *after_word(const char *text, const char *word);
static const char *find_body(const char *items);

void
klm_imap_init(KlmImap *imap)
{
	memset(imap, 0, sizeof(KlmImap));
	initStringInfo(&imap->out);
	initStringInfo(&imap->line);
	initStringInfo(&imap->body);
}

/* Forget the last command's results, begin the next one with its tag. */
static void
start(KlmImap *imap)
{
	imap->status = KLM_IMAP_WAITS;
	imap->text[0] = '\0';
	imap->try_create = false;
	imap->try_later = false;
	imap->read_only = false;
	imap->uid_validity = 0;
	imap->received = 0;
	imap->uid_count = 0;
	imap->has_body = false;
	imap->fetched_uid = 0;
	resetStringInfo(&imap->body);
	appendStringInfo(&imap->out, "k%d ", ++imap->number);
}

void
klm_imap_command(KlmImap *imap, const char *format,...)
{
	start(imap);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, format);
		needed = appendStringInfoVA(&imap->out, format, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&imap->out, needed);
	}
	appendStringInfoString(&imap->out, "\r\n");
}

void
klm_imap_search(KlmImap *imap, uint32 after)
{
	/* "n:*" names the last mail, too, where n is above it. */
	klm_imap_command(imap, "UID SEARCH UID %u:*", after + 1);
	imap->search_after = after;
}

void
klm_imap_fetch(KlmImap *imap, uint32 uid)
{
	/* PEEK: whoever reads the mailbox shall not find that we have. */
	klm_imap_command(imap, "UID FETCH %u (UID BODY.PEEK[]<0.%d>)", uid, KLM_IMAP_BODY_MAX);
	imap->fetched_uid = uid;
}

void
klm_imap_answer(KlmImap *imap, const char *line)
{
	imap->status = KLM_IMAP_WAITS;
	appendStringInfo(&imap->out, "%s\r\n", line);
}

void
klm_imap_received(KlmImap *imap, const char *data, Size length)
{
	const char *end = data + length;

	imap->received += length;
	while (data < end && imap->status != KLM_IMAP_BROKEN)
	{
		if (imap->literal_left > 0)
		{
			Size		taken = Min(imap->literal_left, (uint64) (end - data));

			if (imap->literal_is_body && imap->body.len < KLM_IMAP_BODY_MAX)
				appendBinaryStringInfo(&imap->body, data,
									   Min(taken, (Size) (KLM_IMAP_BODY_MAX - imap->body.len)));
			imap->literal_left -= taken;
			data += taken;
		}
		else if (imap->numbers)
			take_number(imap, *data++);
		else
			take_octet(imap, *data++);
	}
}

static void
take_octet(KlmImap *imap, char octet)
{
	static const char search[] = "* SEARCH";

	if (octet == '\n')
	{
		if (imap->line.len > 0 && imap->line.data[imap->line.len - 1] == '\r')
			imap->line.data[--imap->line.len] = '\0';
		if (!literal_begins(imap))
		{
			take_response(imap);
			resetStringInfo(&imap->line);
		}
		return;
	}
	if (imap->line.len >= LINE_MAX_OCTETS)
	{
		imap->status = KLM_IMAP_BROKEN;
		strlcpy(imap->text, "a line without an end", sizeof(imap->text));
		return;
	}
	/* Texts end at a NUL, so none may hide something behind one. */
	appendStringInfoChar(&imap->line, octet == '\0' ? ' ' : octet);
	if (octet == ' ' && imap->line.len == sizeof(search) &&
		pg_strncasecmp(imap->line.data, search, sizeof(search) - 1) == 0)
	{
		imap->numbers = true;
		imap->in_number = false;
		imap->found = 0;
	}
}

/* The rest of a line "* SEARCH 3 5 9". */
static void
take_number(KlmImap *imap, char octet)
{
	if (isdigit((unsigned char) octet))
	{
		imap->in_number = true;
		if (imap->found <= PG_UINT32_MAX)
			imap->found = imap->found * 10 + (octet - '0');
		return;
	}
	if (imap->in_number)
		keep_uid(imap);
	imap->in_number = false;
	imap->found = 0;
	if (octet == '\n')
	{
		imap->numbers = false;
		resetStringInfo(&imap->line);
	}
}

/* Among the lowest that are wanted, each once and in order. */
static void
keep_uid(KlmImap *imap)
{
	uint32		uid = (uint32) imap->found;
	int			at = imap->uid_count;

	if (imap->found > PG_UINT32_MAX || uid <= imap->search_after)
		return;
	while (at > 0 && imap->uids[at - 1] > uid)
		at--;
	if (at == KLM_IMAP_UIDS_MAX || (at > 0 && imap->uids[at - 1] == uid))
		return;
	if (imap->uid_count == KLM_IMAP_UIDS_MAX)
		imap->uid_count--;
	memmove(&imap->uids[at + 1], &imap->uids[at], (imap->uid_count - at) * sizeof(uint32));
	imap->uids[at] = uid;
	imap->uid_count++;
}

/* Does the line end with "{n}", so that n octets follow, and then more of it? */
static bool
literal_begins(KlmImap *imap)
{
	const char *line = imap->line.data;
	int			at = imap->line.len - 1;
	int			digits = 0;
	uint64		size = 0;

	if (at < 2 || line[at] != '}' || strncmp(line, "* ", 2) != 0)
		return false;
	while (at > 0 && isdigit((unsigned char) line[at - 1]))
	{
		at--;
		digits++;
	}
	if (digits == 0 || digits > 18 || at == 0 || line[at - 1] != '{')
		return false;
	for (int i = at; i < at + digits; i++)
		size = size * 10 + (line[i] - '0');

	/* What stands before it says what it is. */
	imap->line.len = at - 1;
	imap->line.data[imap->line.len] = '\0';
	imap->literal_left = size;
	imap->literal_is_body = false;
	if (imap->fetched_uid != 0 && !imap->has_body)
	{
		const char *body = find_body(line);

		if (body != NULL && body[strspn(body, " ")] == '\0')
		{
			imap->literal_is_body = true;
			imap->has_body = true;
		}
	}
	/* So that the next item is not taken for a part of this one. */
	appendStringInfoString(&imap->line, "\"\"");
	return true;
}

static void
take_response(KlmImap *imap)
{
	const char *line = imap->line.data;
	const char *rest;
	char		tag[16];

	if ((rest = after_word(line, "*")) != NULL)
	{
		const char *more;

		if ((more = after_word(rest, "OK")) != NULL || (more = after_word(rest, "NO")) != NULL ||
			(more = after_word(rest, "PREAUTH")) != NULL)
			take_code(imap, more);
		else if ((more = after_word(rest, "BYE")) != NULL)
		{
			imap->status = KLM_IMAP_BROKEN;
			strlcpy(imap->text, more, sizeof(imap->text));
		}
		else if ((more = after_word(rest, "CAPABILITY")) != NULL)
			take_capabilities(imap, more);
		else if (isdigit((unsigned char) *rest) &&
				 (more = after_word(rest + strspn(rest, "0123456789 "), "FETCH")) != NULL)
			take_fetch(imap, more);
		return;
	}
	if (line[0] == '+')
	{
		if (imap->status == KLM_IMAP_WAITS)
			imap->status = KLM_IMAP_GOES_ON;
		return;
	}
	snprintf(tag, sizeof(tag), "k%d", imap->number);
	if ((rest = after_word(line, tag)) != NULL)
		take_status(imap, rest);
	else
	{
		imap->status = KLM_IMAP_BROKEN;
		strlcpy(imap->text, line, sizeof(imap->text));
	}
}

/* What follows the tag. */
static void
take_status(KlmImap *imap, const char *text)
{
	const char *more;

	if ((more = after_word(text, "OK")) != NULL)
		imap->status = KLM_IMAP_OK;
	else if ((more = after_word(text, "NO")) != NULL || (more = after_word(text, "BAD")) != NULL)
		imap->status = KLM_IMAP_NO;
	else
	{
		imap->status = KLM_IMAP_BROKEN;
		more = text;
	}
	strlcpy(imap->text, more, sizeof(imap->text));
	take_code(imap, more);
}

/* "[UIDVALIDITY 3] ...", "[TRYCREATE] ..." */
static void
take_code(KlmImap *imap, const char *code)
{
	const char *value;

	if (*code++ != '[')
		return;
	if ((value = after_word(code, "UIDVALIDITY")) != NULL)
		imap->uid_validity = (uint32) strtoul(value, NULL, 10);
	else if ((value = after_word(code, "CAPABILITY")) != NULL)
		take_capabilities(imap, value);
	else if (pg_strncasecmp(code, "TRYCREATE]", 10) == 0 ||
			 pg_strncasecmp(code, "NONEXISTENT]", 12) == 0)
		imap->try_create = true;
	else if (pg_strncasecmp(code, "READ-ONLY]", 10) == 0)
		imap->read_only = true;
	else if (pg_strncasecmp(code, "UNAVAILABLE]", 12) == 0 ||
			 pg_strncasecmp(code, "INUSE]", 6) == 0 || pg_strncasecmp(code, "LIMIT]", 6) == 0 ||
			 pg_strncasecmp(code, "SERVERBUG]", 10) == 0 ||
			 pg_strncasecmp(code, "ALERT] Too many", 15) == 0)
		imap->try_later = true;
}

static void
take_capabilities(KlmImap *imap, const char *list)
{
	imap->auth_plain = imap->login_disabled = imap->move = imap->uidplus = false;
	while (*list != '\0' && *list != ']')
	{
		Size		length = strcspn(list, " ]");

		if (length == 10 && pg_strncasecmp(list, "AUTH=PLAIN", length) == 0)
			imap->auth_plain = true;
		else if (length == 13 && pg_strncasecmp(list, "LOGINDISABLED", length) == 0)
			imap->login_disabled = true;
		else if (length == 4 && pg_strncasecmp(list, "MOVE", length) == 0)
			imap->move = true;
		else if (length == 7 && pg_strncasecmp(list, "UIDPLUS", length) == 0)
			imap->uidplus = true;
		list += length;
		list += strspn(list, " ");
	}
}

/*
 * All of a FETCH response, its literals left out.  A body that is no literal
 * stands in it: a server may quote a short one.
 */
static void
take_fetch(KlmImap *imap, const char *items)
{
	const char *body;

	if (imap->fetched_uid == 0 || imap->has_body || (body = find_body(items)) == NULL)
		return;
	body += strspn(body, " ");
	/* An empty mail may be nothing at all. */
	imap->has_body = *body == '"' || pg_strncasecmp(body, "NIL", 3) == 0;
	if (*body != '"')
		return;
	for (body++; *body != '\0' && *body != '"'; body++)
	{
		if (*body == '\\' && body[1] != '\0')
			body++;
		appendStringInfoChar(&imap->body, *body);
	}
}

/* Behind "BODY[]" or "BODY[]<0>", the first of them that stands there as an item; or NULL. */
static const char *
find_body(const char *items)
{
	static const char body[] = "BODY[]";

	for (const char *p = items; *p != '\0'; p++)
	{
		if (*p == '"')
		{
			/* Somebody's words, such as a flag's. */
			for (p++; *p != '\0' && *p != '"'; p++)
			{
				if (*p == '\\' && p[1] != '\0')
					p++;
			}
			if (*p == '\0')
				break;
		}
		else if (pg_strncasecmp(p, body, sizeof(body) - 1) == 0)
		{
			p += sizeof(body) - 1;
			return strncmp(p, "<0>", 3) == 0 ? p + 3 : p;
		}
	}
	return NULL;
}

/* Where the text begins with that word: what stands behind it and its space. */
static const char *
after_word(const char *text, const char *word)
{
	Size		length = strlen(word);

	if (pg_strncasecmp(text, word, length) != 0 || (text[length] != ' ' && text[length] != '\0'))
		return NULL;
	text += length;
	return text + strspn(text, " ");
}

char *
klm_imap_quote(const char *text)
{
	StringInfoData quoted;

	if (strpbrk(text, "\r\n") != NULL)
		return NULL;
	initStringInfo(&quoted);
	appendStringInfoChar(&quoted, '"');
	for (; *text != '\0'; text++)
	{
		if (*text == '"' || *text == '\\')
			appendStringInfoChar(&quoted, '\\');
		appendStringInfoChar(&quoted, *text);
	}
	appendStringInfoChar(&quoted, '"');
	return quoted.data;
}

char *
klm_imap_set(const uint32 *uids, int count)
{
	StringInfoData set;

	initStringInfo(&set);
	for (int i = 0; i < count; i++)
		appendStringInfo(&set, "%s%u", i > 0 ? "," : "", uids[i]);
	return set.data;
}
