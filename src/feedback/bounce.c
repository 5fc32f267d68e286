/*-------------------------------------------------------------------------
 *
 * bounce.c
 *		What a mail that came back says: a report, an auto-reply, or nothing.
 *
 * The parts of a report, the tokens that may have signed its return path, and the
 * mail that it is about are looked for here; what each kind of report says, its own
 * file reads.  A report within a mail that somebody forwards is a leaf of
 * type message/rfc822, and not looked into.
 *
 * Pure (palloc only).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "feedback/arf.h"
#include "feedback/bounce.h"
#include "feedback/bounce_text.h"
#include "feedback/dsn.h"
#include "feedback/mime_parse.h"

/* "b+", and what bounce_token.h says a token is. */
#define MAX_TOKEN 60

/* The parts that matter, the first of each; NULL: none. */
typedef struct Found
{
	const KlmPart *mail;
	const KlmPart *status;
	const KlmPart *feedback;
	const KlmPart *original;
	const KlmPart *text;
	char	   *report_type;
} Found;

static void find_parts(const KlmPart *parts, int count, Found *found);
static bool is_type(const KlmPart *part, const char *first, const char *second);
static void read_original(const KlmPart *part, KlmReport *report);
static void read_references(const KlmPart *mail, KlmReport *report);
static void complete_from_text(KlmReport *report, const char *text);
static bool refused_at_dot(const KlmReported *reported, const char *text);
static void add_tokens(KlmReport *report, const char *value);

void
klm_read_bounce(const char *raw, Size length, KlmReport *report)
{
	static const char *const receivers[] = {"Delivered-To", "X-Original-To", "Envelope-To",
	"X-Envelope-To", "To"};
	Found		found = {0};
	char	   *text = NULL;
	char	   *body;
	char	   *return_path = NULL;
	Size		body_length;
	int			count;
	KlmPart    *parts = klm_mime_parts(raw, length, &count);

	memset(report, 0, sizeof(KlmReport));
	find_parts(parts, count, &found);
	for (int i = 0; i < lengthof(receivers); i++)
		add_tokens(report, klm_header(found.mail->header, found.mail->header_length,
									  receivers[i], 0));
	if (found.text != NULL)
		text = klm_part_text(found.text, &body_length);

	if (found.feedback != NULL)
	{
		report->type = KLM_REPORT_ARF;
		body = klm_part_text(found.feedback, &body_length);
		klm_read_arf(body, body_length, report, &return_path);
		add_tokens(report, return_path);
	}
	else if (found.status != NULL)
	{
		body = klm_part_text(found.status, &body_length);
		klm_read_dsn(body, body_length, report);
		if (report->count > 0)
			report->type = KLM_REPORT_DSN;
	}
	if (found.original != NULL)
		read_original(found.original, report);
	if (report->type == KLM_REPORT_NONE && found.report_type != NULL &&
		pg_strcasecmp(found.report_type, "disposition-notification") == 0)
		report->type = KLM_REPORT_AUTOREPLY;
	if (report->type == KLM_REPORT_NONE && text != NULL && klm_is_from_mailer(found.mail))
	{
		klm_read_bounce_text(found.mail, text, report);
		if (report->count > 0)
			report->type = KLM_REPORT_TEXT;
	}
	if (report->type == KLM_REPORT_NONE && klm_is_autoreply(found.mail))
		report->type = KLM_REPORT_AUTOREPLY;

	if (report->type == KLM_REPORT_DSN && text != NULL)
		complete_from_text(report, text);
	if (report->type == KLM_REPORT_DSN || report->type == KLM_REPORT_TEXT)
	{
		for (int i = 0; i < report->count; i++)
			klm_classify_reported(&report->recipients[i],
								  refused_at_dot(&report->recipients[i], text));
	}
	if (report->type == KLM_REPORT_NONE)
		report->message_id = NULL;	/* nobody says anything about it */
	else if (report->message_id == NULL)
		read_references(found.mail, report);
}

const char *
klm_report_type_name(KlmReportType type)
{
	static const char *const names[] = {"none", "dsn", "arf", "text", "autoreply"};

	return names[type];
}

static void
find_parts(const KlmPart *parts, int count, Found *found)
{
	bool		is_report;

	found->mail = &parts[0];
	is_report = strcmp(parts[0].type, "multipart/report") == 0 || klm_is_from_mailer(&parts[0]);
	if (is_report)
	{
		char	   *value = klm_header(parts[0].header, parts[0].header_length, "Content-Type", 0);

		found->report_type = value ? klm_header_parameter(value, "report-type") : NULL;
	}
	for (int i = 1; i < count; i++)
	{
		const KlmPart *part = &parts[i];

		if (is_report && found->status == NULL &&
			is_type(part, "message/delivery-status", "message/global-delivery-status"))
			found->status = part;
		else if (is_report && found->feedback == NULL && is_type(part, "message/feedback-report", NULL))
			found->feedback = part;
		else if (found->original == NULL &&
				 (is_type(part, "message/rfc822", "text/rfc822-headers") ||
				  is_type(part, "message/global", "message/global-headers")))
			found->original = part;
		else if (found->text == NULL && is_type(part, "text/plain", NULL))
			found->text = part;
	}
	for (int i = 1; i < count && found->text == NULL; i++)
		if (is_type(&parts[i], "text/html", NULL))
			found->text = &parts[i];
}

static bool
is_type(const KlmPart *part, const char *first, const char *second)
{
	return strcmp(part->type, first) == 0 || (second != NULL && strcmp(part->type, second) == 0);
}

/* The mail that is returned, or its header: which one it is. */
static void
read_original(const KlmPart *part, KlmReport *report)
{
	Size		length;
	char	   *text = klm_part_text(part, &length);
	KlmPart		original;
	char	   *id;

	klm_split_header(text, length, &original);
	id = klm_id_of(klm_header(original.header, original.header_length, "Message-ID", 0));
	if (id != NULL)
		report->message_id = id;
	add_tokens(report, klm_header(original.header, original.header_length, "Return-Path", 0));
}

/* Where nothing is returned: what the report answers. */
static void
read_references(const KlmPart *mail, KlmReport *report)
{
	report->message_id = klm_id_of(klm_header(mail->header, mail->header_length, "In-Reply-To", 0));
	if (report->message_id == NULL)
		report->message_id = klm_id_of(klm_header(mail->header, mail->header_length, "References", 0));
}

/* Where a report's fields say no more than "failed", its text for people does. */
static void
complete_from_text(KlmReport *report, const char *text)
{
	for (int i = 0; i < report->count; i++)
	{
		KlmReported *reported = &report->recipients[i];
		const char *address = reported->original ? reported->original : reported->recipient;
		const char *status = reported->status;
		bool		expired = status != NULL && strcmp(status + 1, ".4.7") == 0;

		if (reported->diagnostic != NULL || address == NULL)
			continue;
		/* A status that ends with .0 says at most what is at fault. */
		if (status == NULL || expired || strcmp(strrchr(status, '.'), ".0") == 0)
			reported->diagnostic = klm_words_about(text, address);
		/* OpenSMTPD 6 calls delayed what it has given up. */
		if (expired && reported->diagnostic != NULL &&
			strcmp(reported->diagnostic, "Envelope expired") == 0)
			reported->action = "failed";
	}
}

/* Postfix and others say which command was answered so. */
static bool
refused_at_dot(const KlmReported *reported, const char *text)
{
	static const char *const phrases[] = {"end of DATA", "end of data", "after end of"};

	for (int i = 0; i < lengthof(phrases); i++)
		if ((text && strstr(text, phrases[i])) ||
			(reported->diagnostic && strstr(reported->diagnostic, phrases[i])))
			return true;
	return false;
}

/* Each "b+...@" of a header: whether a token is ours, its signature tells. */
static void
add_tokens(KlmReport *report, const char *value)
{
	const char *at = value;

	while (at != NULL && report->token_count < KLM_TOKENS_MAX && (at = strstr(at, "+")) != NULL)
	{
		const char *start = ++at;
		Size		length = 0;
		char	   *token;
		bool		known = false;

		if (start - value < 2 || (start[-2] != 'b' && start[-2] != 'B') ||
			(start - value > 2 && isalnum((unsigned char) start[-3])))
			continue;
		while (isalnum((unsigned char) start[length]) || start[length] == '.')
			length++;
		if (start[length] != '@' || length == 0 || length > MAX_TOKEN)
			continue;
		token = pnstrdup(start, length);
		for (char *p = token; *p; p++)
			if (*p >= 'A' && *p <= 'Z')
				*p += 'a' - 'A';
		for (int i = 0; i < report->token_count; i++)
			known |= strcmp(report->tokens[i], token) == 0;
		if (!known)
			report->tokens[report->token_count++] = token;
	}
}
