/*-------------------------------------------------------------------------
 *
 * header_check.c
 *		What a caller may put into a header: names, values, the subject.
 *
 * Pure: errors are values.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/error.h"
#include "base/text.h"
#include "message/address.h"
#include "message/header_check.h"
#include "message/syntax.h"

#define HEADER_NAME_BYTES 76
#define HEADER_VALUE_BYTES 16000

static bool check_text(const char *what, const char *value, KlmError *error);
static bool check_list_id(const char *value);
static bool check_uri_list(const char *value);
static bool check_list_post(const char *value);
static bool check_one_click(const char *value);
static bool check_message_ids(const char *value);
static bool check_auto_submitted(const char *value);
static bool check_feedback_id(const char *value);
static bool check_importance(const char *value);
static bool check_priority(const char *value);
static bool check_x_priority(const char *value);
static bool check_receipt(const char *value);
static bool uri_list_has_https(const char *value);

/* Headers whose value has a form, and what to say when it has not. */
static const struct
{
	const char *name;
	bool		(*check) (const char *value);
	const char *hint;
}			structured_headers[] = {
	{"List-Id", check_list_id, "It has the form: Name <name.example.com>."},
	{"List-Unsubscribe", check_uri_list,
	"It has the form <https://example.com/...>, <mailto:...>."},
	{"List-Unsubscribe-Post", check_one_click, "It can only be List-Unsubscribe=One-Click."},
	{"List-Help", check_uri_list, "It has the form <https://example.com/...>."},
	{"List-Subscribe", check_uri_list, "It has the form <https://example.com/...>."},
	{"List-Owner", check_uri_list, "It has the form <mailto:...>."},
	{"List-Archive", check_uri_list, "It has the form <https://example.com/...>."},
	{"List-Post", check_list_post, "It has the form <mailto:...>, or is NO."},
	{"In-Reply-To", check_message_ids, "It has the form <id@example.com>."},
	{"References", check_message_ids, "It has the form <id@example.com> <id@example.com>."},
	{"Auto-Submitted", check_auto_submitted,
	"It is one of no, auto-generated, auto-replied, auto-notified."},
	{"Feedback-ID", check_feedback_id,
	"It has up to four fields with colons between and no spaces, the last one the sender's."},
	{"Importance", check_importance, "It is one of low, normal, high."},
	{"Priority", check_priority, "It is one of non-urgent, normal, urgent."},
	{"X-Priority", check_x_priority, "It is a number from 1 (highest) to 5 (lowest)."},
	{"Disposition-Notification-To", check_receipt, "It is one e-mail address."},
};

/* Headers that are not for callers, and where to put what they would say. */
static const struct
{
	const char *name;			/* with a hyphen at its end: all that begin so */
	const char *hint;
}			reserved_headers[] = {
	{"From", "Use from_address and from_name."},
	{"Sender", "Use from_address; the account's server adds this header if it must."},
	{"Reply-To", "Use reply_to."},
	{"To", "Use recipients."},
	{"Apparently-To", "Use recipients."},
	{"Cc", "Use cc."},
	{"Bcc", "Use bcc."},
	{"Subject", "Use subject."},
	{"Date", "It is the time of the call."},
	{"Message-ID", "It is made for each message, so that its tracking works."},
	{"MIME-Version", "Use body, html and attachments."},
	{"Content-", "Use body, html and attachments."},
	{"Return-Path", "Servers write this header on the way."},
	{"Errors-To", "Servers report to the account's own address."},
	{"Return-Receipt-To", "Use the header Disposition-Notification-To."},
	{"Received", "Servers write this header on the way."},
	{"Resent-", "Servers and mail programs write this header on the way."},
	{"DKIM-Signature", "The account's server signs the mail."},
	{"ARC-", "Servers write this header on the way."},
	{"Authentication-Results", "Servers write this header on the way."},

	/*
	 * What makes a provider send to others, or as somebody else, past the
	 * quota, the suppressions and the account; and what we write ourselves.
	 */
	{"X-SMTPAPI", "It can name further recipients; use recipients, tags and metadata."},
	{"X-MSYS-API", "It can name further recipients; use recipients, tags and metadata."},
	{"X-MC-", "It can name further recipients or another account; use recipients, tags and metadata."},
	{"X-SES-SOURCE-ARN", "The mail goes as the account's own identity; use from_address."},
	{"X-SES-FROM-ARN", "The mail goes as the account's own identity; use from_address."},
	{"X-SES-RETURN-PATH-ARN", "The mail goes as the account's own identity; use from_address."},
	{"X-SES-TENANT", "The mail goes as the account's own identity; use from_address."},
	{"X-Mailgun-Variables", "It carries the delivery's id, so that its tracking works; use metadata."},
	{"X-Mailgun-Recipient-Variables", "Each recipient has a mail of their own; use one send() each."},
	{"X-Mailgun-Rewrite-Sender-Header", "The mail goes as the account's own identity; use from_address."},
	{"X-PM-Metadata-kliv-mail", "It carries the delivery's id, so that its tracking works."},
	{"Resend-Idempotency-Key", "It is made for each delivery; use idempotency_key."},
};

/* Of those that begin with a reserved word: what does no such thing. */
static const char *const harmless_headers[] = {"X-MC-Tags", "X-MC-Metadata", "X-MC-Track"};

static bool
is_harmless(const char *name, Size length)
{
	for (int i = 0; i < lengthof(harmless_headers); i++)
		if (strlen(harmless_headers[i]) == length &&
			pg_strncasecmp(name, harmless_headers[i], length) == 0)
			return true;
	return false;
}

bool
klm_mime_check_header(const char *name, const char *value, KlmError *error)
{
	Size		length = strlen(name);
	Size		trimmed = length;
	const char *pos;
	char	   *what;
	int			i;

	while (trimmed > 0 && (name[trimmed - 1] == ' ' || name[trimmed - 1] == '\t'))
		trimmed--;
	for (i = 0; i < lengthof(reserved_headers); i++)
	{
		const char *reserved = reserved_headers[i].name;
		Size		reserved_length = strlen(reserved);
		bool		prefix = (reserved[reserved_length - 1] == '-');

		if ((prefix ? trimmed >= reserved_length : trimmed == reserved_length) &&
			pg_strncasecmp(name, reserved, reserved_length) == 0 && !is_harmless(name, trimmed))
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE, reserved_headers[i].hint,
							"\"%s\" cannot be set", klm_shown(name, length));
	}

	if (length == 0)
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE, NULL, "a header has no name");
	for (pos = name; *pos != '\0'; pos++)
		if ((unsigned char) *pos <= 0x20 || (unsigned char) *pos >= 0x7F || *pos == ':')
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
							"A header's name has ASCII characters only, no space and no colon.",
							"\"%s\" is not a header name", klm_shown(name, length));
	if (length > HEADER_NAME_BYTES)
		return klm_fail(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL,
						"the header name \"%s\" has %zu bytes, more than %d",
						klm_shown(name, length), length, HEADER_NAME_BYTES);

	what = psprintf("the value of \"%s\" ", name);
	if (!check_text(what, value, error))
		return false;
	for (i = 0; i < lengthof(structured_headers); i++)
		if (pg_strcasecmp(name, structured_headers[i].name) == 0 &&
			!structured_headers[i].check(value))
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE, structured_headers[i].hint,
							"\"%s\" cannot be \"%s\"", name, klm_shown(value, strlen(value)));
	return true;
}

static int
compare_headers(const void *a, const void *b)
{
	return pg_strcasecmp((*(const KlmHeader *const *) a)->name,
						 (*(const KlmHeader *const *) b)->name);
}

bool
klm_mime_check_headers(const KlmHeader *headers, int count, KlmError *error)
{
	const KlmHeader *sorted[KLM_MAX_HEADERS];
	bool		one_click = false;
	bool		https = false;
	int			i;

	if (count > KLM_MAX_HEADERS)
		return klm_fail(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL,
						"%d headers are more than %d", count, KLM_MAX_HEADERS);
	for (i = 0; i < count; i++)
	{
		if (!klm_mime_check_header(headers[i].name, headers[i].value, error))
			return false;
		sorted[i] = &headers[i];
		if (pg_strcasecmp(headers[i].name, "List-Unsubscribe-Post") == 0)
			one_click = true;
		else if (pg_strcasecmp(headers[i].name, "List-Unsubscribe") == 0)
			https = uri_list_has_https(headers[i].value);
	}
	qsort(sorted, count, sizeof(sorted[0]), compare_headers);
	for (i = 1; i < count; i++)
		if (pg_strcasecmp(sorted[i - 1]->name, sorted[i]->name) == 0)
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
							"Header names are equal whatever their case; give each once.",
							"\"%s\" is given twice", sorted[i]->name);
	if (one_click && !https)
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
						"Add List-Unsubscribe with an https URL (RFC 8058).",
						"\"List-Unsubscribe-Post\" needs an https \"List-Unsubscribe\"");
	return true;
}

bool
klm_mime_check_subject(const char *subject, KlmError *error)
{
	return check_text("", subject, error);
}

/*
 * Text for a header: within the limit, no line break, no control, no bidi
 * control.  Tab, U+0085 and U+2028 pass, since they go encoded and break
 * nothing there.  what begins the message: "" or words with a space behind.
 */
static bool
check_text(const char *what, const char *value, KlmError *error)
{
	Size		length = strlen(value);
	const char *end = value + length;
	const char *pos = value;

	if (length > HEADER_VALUE_BYTES)
		return klm_fail(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL,
						"%shas %zu bytes, more than %d", what, length, HEADER_VALUE_BYTES);
	while (pos < end)
	{
		uint32		ch;

		if ((unsigned char) *pos >= 0x20 && (unsigned char) *pos < 0x7F)
		{
			pos++;
			continue;
		}
		ch = klm_utf8_next(&pos, end);
		if (ch == '\r' || ch == '\n')
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE, "Remove the line break.",
							"%scontains a line break: \"%s\"", what, klm_shown(value, length));
		if ((ch < 0x20 && ch != '\t') || (ch >= 0x7F && ch <= 0x9F && ch != 0x85) ||
			ch == 0x061C || ch == 0x200E || ch == 0x200F ||
			(ch >= 0x202A && ch <= 0x202E) || (ch >= 0x2066 && ch <= 0x2069))
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
							"Remove the character; it cannot be seen.",
							"%scontains the character U+%04X: \"%s\"", what, ch,
							klm_shown(value, length));
	}
	return true;
}

/* [phrase] "<" dot-atom of two parts or more ">" (RFC 2919) */
static bool
check_list_id(const char *value)
{
	const char *open = strrchr(value, '<');
	const char *pos;

	if (open == NULL)
		return false;
	for (pos = open + 1; *pos != '>'; pos++)
	{
		if (*pos == '.' ? (pos[-1] == '<' || pos[-1] == '.' || pos[1] == '>') : !klm_is_token(*pos))
			return false;
	}
	return pos[1] == '\0' && pos - open > 1 && memchr(open, '.', pos - open) != NULL;
}

/* "<" URI ">", commas between (RFC 2369, without comments) */
static bool
check_uri_list(const char *value)
{
	const char *pos = value;

	for (;;)
	{
		const char *scheme;
		const char *start;

		pos += strspn(pos, " \t");
		if (*pos++ != '<')
			return false;
		scheme = pos;
		while (klm_is_alnum((unsigned char) *pos) || *pos == '+' || *pos == '-' || *pos == '.')
			pos++;
		if (pos == scheme || *pos++ != ':')
			return false;
		start = pos;
		while (*pos > 0x20 && *pos < 0x7F && *pos != '<' && *pos != '>')
			pos++;
		if (pos == start || *pos++ != '>' || pos - scheme > KLM_LONGEST_WORD)
			return false;
		if (pg_strncasecmp(scheme, "https:", 6) != 0 && pg_strncasecmp(scheme, "http:", 5) != 0 &&
			pg_strncasecmp(scheme, "mailto:", 7) != 0)
			return false;
		pos += strspn(pos, " \t");
		if (*pos == '\0')
			return true;
		if (*pos++ != ',')
			return false;
	}
}

static bool
uri_list_has_https(const char *value)
{
	const char *pos;

	for (pos = value; (pos = strchr(pos, '<')) != NULL; pos++)
		if (pg_strncasecmp(pos, "<https://", 9) == 0)
			return true;
	return false;
}

static bool
check_list_post(const char *value)
{
	return strcmp(value, "NO") == 0 || check_uri_list(value);
}

static bool
check_one_click(const char *value)
{
	return strcmp(value, "List-Unsubscribe=One-Click") == 0;
}

/* "<" left "@" right ">", spaces between */
static bool
check_message_ids(const char *value)
{
	const char *pos = value;

	do
	{
		const char *start;
		int			ats = 0;

		if (*pos != '<')
			return false;
		start = ++pos;
		while (*pos > 0x20 && *pos < 0x7F && *pos != '<' && *pos != '>')
		{
			if (*pos == '@')
			{
				if (pos == start || pos[1] == '>')
					return false;
				ats++;
			}
			pos++;
		}
		if (*pos++ != '>' || ats != 1 || pos - start > KLM_LONGEST_WORD)
			return false;
		if (*pos == '\0')
			return true;
		start = pos;
		pos += strspn(pos, " \t");
		if (pos == start)
			return false;
	} while (true);
}

/* A keyword of RFC 3834, parameters perhaps behind it. */
static bool
check_auto_submitted(const char *value)
{
	Size		length = strcspn(value, "; \t");
	const char *pos = value + length;

	if (!((length == 2 && pg_strncasecmp(value, "no", 2) == 0) ||
		  (length == 14 && pg_strncasecmp(value, "auto-generated", 14) == 0) ||
		  (length == 12 && pg_strncasecmp(value, "auto-replied", 12) == 0) ||
		  (length == 13 && pg_strncasecmp(value, "auto-notified", 13) == 0)))
		return false;
	pos += strspn(pos, " \t");
	if (*pos == '\0')
		return true;
	if (*pos++ != ';' || *pos == '\0')
		return false;
	for (; *pos != '\0'; pos++)
		if ((unsigned char) *pos < 0x20 || (unsigned char) *pos >= 0x7F)
			return false;
	return true;
}

static bool
check_feedback_id(const char *value)
{
	int			colons = 0;
	const char *pos;

	for (pos = value; *pos != '\0'; pos++)
	{
		if ((unsigned char) *pos <= 0x20 || (unsigned char) *pos >= 0x7F)
			return false;
		colons += (*pos == ':');
	}
	return pos > value && pos[-1] != ':' && colons <= 3 && pos - value <= KLM_LONGEST_WORD;
}

static bool
check_importance(const char *value)
{
	return pg_strcasecmp(value, "low") == 0 || pg_strcasecmp(value, "normal") == 0 ||
		pg_strcasecmp(value, "high") == 0;
}

static bool
check_priority(const char *value)
{
	return pg_strcasecmp(value, "non-urgent") == 0 || pg_strcasecmp(value, "normal") == 0 ||
		pg_strcasecmp(value, "urgent") == 0;
}

/* "1", or with what programs write behind it: "1 (Highest)" */
static bool
check_x_priority(const char *value)
{
	Size		length = strlen(value);
	Size		i;

	if (value[0] < '1' || value[0] > '5')
		return false;
	if (length == 1)
		return true;
	if (length < 5 || value[1] != ' ' || value[2] != '(' || value[length - 1] != ')')
		return false;
	for (i = 3; i < length - 1; i++)
		if (!klm_is_alnum((unsigned char) value[i]) && value[i] != ' ')
			return false;
	return true;
}

/* One address, as it must stand in the header, so nothing to encode in it. */
static bool
check_receipt(const char *value)
{
	KlmAddress	address;
	const char *pos;

	for (pos = value; *pos != '\0'; pos++)
		if ((unsigned char) *pos >= 0x80)
			return false;
	return klm_parse_address(value, &address, NULL);
}
