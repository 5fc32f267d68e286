/*-------------------------------------------------------------------------
 *
 * bounce_text.c
 *		Reports that only people can read, and mail that is no report.
 *
 * qmail, older Exim, OpenSMTPD, Gmail as it was, sendmail, and the many programs
 * that took after them write different words around the same thing: a line
 * that is an address, or begins with one, and below it what a server said.
 * Below all of it, after a line that says so, comes the mail that is returned.
 *
 * Anybody can write such a text, so it is read only where the mail says that a
 * mail server wrote it; and as with every report, what follows from it is for
 * its Message-ID or its signed return path to allow.
 *
 * Pure (palloc only).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "feedback/bounce_text.h"

/* A text is looked at no further than this; the mail that is returned may be long. */
#define MAX_TEXT 65536

static bool is_generated(const KlmPart *mail);
static bool is_marked_autoreply(const KlmPart *mail);
static char *lower_copy(const char *text, Size length);
static const char *quoted_mail(const char *text, const char *lower);
static bool has_any(const char *text, const char *const *phrases, int count);
static Size address_line(const char *line, const char *end, const char **address,
						 const char **behind);
static const char *behind_label(const char *line, const char *end);
static char *words_from(const char *from, const char *end);
static const char *end_of_words(const char *from, const char *end);
static bool is_address_char(char c);

/* ---- who wrote it ---- */

bool
klm_is_from_mailer(const KlmPart *mail)
{
	static const char *const names[] = {"mailer-daemon", "maildaemon", "mail-daemon", "postmaster@",
		"mail delivery system", "mail delivery subsystem", "mail administrator"};
	char	   *from = klm_header(mail->header, mail->header_length, "From", 0);
	char	   *path = klm_header(mail->header, mail->header_length, "Return-Path", 0);

	if (klm_header(mail->header, mail->header_length, "X-Failed-Recipients", 0) != NULL)
		return true;
	/* Who is on holiday answers with a null path, too (RFC 3834). */
	if (path != NULL && strcmp(path, "<>") == 0 && !is_marked_autoreply(mail) &&
		(!klm_is_autoreply(mail) || is_generated(mail)))
		return true;
	return from != NULL && has_any(lower_copy(from, strlen(from)), names, lengthof(names));
}

static bool
is_generated(const KlmPart *mail)
{
	char	   *value = klm_header(mail->header, mail->header_length, "Auto-Submitted", 0);

	return value != NULL && pg_strncasecmp(value, "auto-generated", strlen("auto-generated")) == 0;
}

bool
klm_is_autoreply(const KlmPart *mail)
{
	char	   *value = klm_header(mail->header, mail->header_length, "Auto-Submitted", 0);

	if (value != NULL && pg_strncasecmp(value, "no", 2) != 0)
		return true;
	return is_marked_autoreply(mail);
}

/* By what mail servers' own reports do not have: Exchange's holidays are "auto-generated", too. */
static bool
is_marked_autoreply(const KlmPart *mail)
{
	static const char *const subjects[] = {"out of office", "out of the office", "auto-reply",
		"auto reply", "autoreply", "automatic reply", "auto response", "auto-response", "vacation",
		"on leave", "away from", "abwesenheit", "automatische antwort", "absence du bureau"};
	static const char *const markers[] = {"X-Autoreply", "X-Autorespond", "X-Autoresponder",
		"X-Mail-Autoreply", "X-Vacation"};
	char	   *value = klm_header(mail->header, mail->header_length, "Precedence", 0);

	if (value != NULL && pg_strncasecmp(value, "auto", 4) == 0)
		return true;
	for (int i = 0; i < lengthof(markers); i++)
		if (klm_header(mail->header, mail->header_length, markers[i], 0) != NULL)
			return true;
	value = klm_header(mail->header, mail->header_length, "Subject", 0);
	return value != NULL && has_any(lower_copy(value, strlen(value)), subjects, lengthof(subjects));
}

/* ---- what it says ---- */

void
klm_read_bounce_text(const KlmPart *mail, const char *text, KlmReport *report)
{
	static const char *const failures[] = {"deliver", "could not be sent", "not reach", "returned",
		"undeliver", "failed", "failure", "rejected", "bounce", "permanent", "fatal error",
		"not be sent", "no such user", "user unknown"};
	static const char *const delays[] = {"delayed", "still trying", "will be retried",
		"will retry", "will continue to", "has not been delivered", "has not yet been",
		"not yet delivered",
		"will try", "retry to send", "this is a warning", "warning message only"};
	static const char *const finals[] = {"permanent", "given up", "giving up", "gave up",
		"too long", "failed permanently", "could not be delivered", "will not be retried"};
	char	   *header = klm_header(mail->header, mail->header_length, "Subject", 0);
	char	   *subject = header ? lower_copy(header, strlen(header)) : pstrdup("");
	char	   *named = klm_header(mail->header, mail->header_length, "X-Failed-Recipients", 0);
	char	   *lower = lower_copy(text, MAX_TEXT);
	const char *quoted = quoted_mail(text, lower);
	const char *end = quoted ? quoted : text + strlen(lower);
	KlmReported *reported = NULL;
	bool		delayed;

	/* The words of the mail that is returned say nothing. */
	lower[end - text] = '\0';
	delayed = has_any(lower, delays, lengthof(delays)) ||
		has_any(subject, delays, lengthof(delays));
	if (!delayed && !has_any(lower, failures, lengthof(failures)) &&
		!has_any(subject, failures, lengthof(failures)))
		return;
	delayed &= !has_any(lower, finals, lengthof(finals));

	for (const char *line = text; line < end;)
	{
		const char *newline = memchr(line, '\n', end - line);
		const char *line_end = newline ? newline : end;
		const char *address;
		const char *behind;
		Size		length = address_line(line, line_end, &address, &behind);

		if (length > 0)
		{
			reported = klm_add_reported(report);
			if (reported == NULL)
				break;
			reported->recipient = klm_reported_address(address, length);
			reported->action = delayed ? "delayed" : "failed";
			reported->diagnostic = words_from(behind, end);
		}
		line = newline ? newline + 1 : end;
	}

	/* Exim names them in a header, too. */
	if (report->count == 0 && named != NULL)
	{
		for (const char *name = named; *name; name += strspn(name, ", "))
		{
			Size		length = strcspn(name, ",");

			reported = klm_add_reported(report);
			if (reported == NULL)
				break;
			reported->recipient = klm_reported_address(name, length);
			reported->action = delayed ? "delayed" : "failed";
			reported->diagnostic = klm_printable(text, end - text);
			name += length;
		}
	}
	if (report->count > 0 && report->message_id == NULL && quoted != NULL)
	{
		KlmPart		original;

		while (*quoted == '\n' || *quoted == ' ')
			quoted++;
		klm_split_header(quoted, strlen(quoted), &original);
		report->message_id = klm_id_of(klm_header(original.header, original.header_length,
												  "Message-ID", 0));
	}
}

/*
 * What a server said about one of several stands below it, up to the next one; or, what a
 * program said that Exim called, below a line of dashes around it.
 */
char *
klm_words_about(const char *text, const char *address)
{
	Size		length = strlen(address);
	char	   *lower = lower_copy(text, MAX_TEXT);
	char	   *wanted = lower_copy(address, length);
	const char *found = length > 0 ? strstr(lower, psprintf("\n------ %s ------\n", wanted)) : NULL;
	const char *end = text + strlen(lower);

	if (found != NULL)
		found += strlen("\n------ ");
	else if (length > 0)
		found = strstr(lower, wanted);
	if (found == NULL)
		return NULL;
	found = text + (found - lower) + length;
	while (found < end && strchr(">:\"'- \t\n", *found) != NULL)
		found++;
	return words_from(found, end);
}

char *
klm_id_of(const char *value)
{
	const char *open = value ? strchr(value, '<') : NULL;
	Size		length;

	if (value == NULL)
		return NULL;
	if (open != NULL)
		value = open + 1;
	length = strcspn(value, "> \t");
	if (length == 0 || length > 255)
		return NULL;
	for (Size i = 0; i < length; i++)
		if (value[i] <= ' ' || value[i] >= 0x7f)
			return NULL;
	return pnstrdup(value, length);
}

/* ---- lines ---- */

/* Lower case, NULs as spaces, so that what strstr() finds stands at the same place in the text. */
static char *
lower_copy(const char *text, Size length)
{
	Size		size = strnlen(text, length);
	char	   *copy = palloc(size + 1);

	for (Size i = 0; i < size; i++)
		copy[i] = text[i] >= 'A' && text[i] <= 'Z' ? text[i] + ('a' - 'A') : text[i];
	copy[size] = '\0';
	return copy;
}

static bool
has_any(const char *text, const char *const *phrases, int count)
{
	for (int i = 0; i < count; i++)
		if (strstr(text, phrases[i]) != NULL)
			return true;
	return false;
}

/* Where what the server wrote ends, and the mail that it returns begins; NULL: nowhere. */
static const char *
quoted_mail(const char *text, const char *lower)
{
	static const char *const lines[] = {"below this line is a copy", "this is a copy of",
		"original message", "copy of the original message", "original message follows",
		"returned message", "unsent message", "message header follows", "headers of the message",
		"your message follows", "the message headers", "copy of your message", "start of message"};
	const char *first = NULL;

	for (int i = 0; i < lengthof(lines); i++)
	{
		const char *found = lower;

		while ((found = strstr(found, lines[i])) != NULL)
		{
			const char *start = found;
			const char *line_end;

			while (start > lower && start[-1] != '\n')
				start--;
			line_end = strchr(found, '\n');

			/* A line of its own between dashes, or one that ends with a colon. */
			if (*start == '-' || *start == '=' || strncmp(start, " ---", 4) == 0 ||
				(line_end != NULL && line_end[-1] == ':'))
			{
				const char *behind = line_end ? text + (line_end + 1 - lower) : NULL;

				if (behind != NULL && (first == NULL || behind < first))
					first = behind;
				break;
			}
			found += strlen(lines[i]);
		}
	}
	return first;
}

/*
 * A line that is an address, or an address and a colon and more; its length, and what is
 * behind it.  0: no such line.
 */
static Size
address_line(const char *line, const char *end, const char **address, const char **behind)
{
	const char *p = line;
	bool		bracket;
	bool		at = false;
	Size		length;

	while (p < end && (*p == ' ' || *p == '\t' || *p == '*'))
		p++;
	p = behind_label(p, end);
	bracket = p < end && *p == '<';
	p += bracket;
	*address = p;
	while (p < end && is_address_char(*p))
		at |= *p++ == '@';
	length = p - *address;

	/* "bob@example.com:", "bob@example.com." */
	while (length > 0 && !bracket &&
		   ((*address)[length - 1] == ':' || (*address)[length - 1] == '.'))
	{
		length--;
		p--;
	}
	if (!at || length < 3 || (*address)[0] == '@' || (*address)[length - 1] == '@')
		return 0;
	if (bracket && (p == end || *p++ != '>'))
		return 0;
	if (p < end && (*p == ':' || *p == '.'))
		p++;
	else if (strspn(p, " \t") < end - p)
		return 0;
	*behind = p;
	return length;
}

/* Behind "Failed Recipient: ", or where the line begins. */
static const char *
behind_label(const char *line, const char *end)
{
	static const char word[] = "recipient:";
	const char *p = line;

	while (p < end && (isalpha((unsigned char) *p) || *p == ' '))
		p++;
	if (p == end || *p != ':' || p - line < sizeof(word) - 2 ||
		pg_strncasecmp(p - (sizeof(word) - 2), word, sizeof(word) - 1) != 0)
		return line;
	for (p++; p < end && (*p == ' ' || *p == '\t'); p++)
		;
	return p;
}

/*
 * Of the paragraphs up to the next line that is an address, the one that quotes a reply,
 * else the first.
 */
static char *
words_from(const char *from, const char *end)
{
	char	   *first = NULL;

	end = end_of_words(from, end);
	while (from < end)
	{
		const char *stop = from;
		char	   *words;

		while (stop < end && !(stop[0] == '\n' && (stop + 1 == end || stop[1] == '\n')))
			stop++;
		words = klm_printable(from, stop - from);
		if (words != NULL && klm_find_reply(words) != NULL)
			return words;
		if (first == NULL && words != NULL)
			first = words;
		from = stop + 1;
	}
	return first;
}

/* Up to the next line that is an address. */
static const char *
end_of_words(const char *from, const char *end)
{
	const char *newline = memchr(from, '\n', end - from);

	while (newline != NULL)
	{
		const char *line = newline + 1;
		const char *address;
		const char *behind;

		newline = memchr(line, '\n', end - line);
		if (address_line(line, newline ? newline : end, &address, &behind) > 0)
			return line;
	}
	return end;
}

static bool
is_address_char(char c)
{
	return isalnum((unsigned char) c) || ((unsigned char) c & 0x80) != 0 ||
		(c != '\0' && strchr("@.!#$%&'*+/=?^_`{|}~-:", c) != NULL);
}
