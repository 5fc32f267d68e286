/*-------------------------------------------------------------------------
 *
 * bounce.c
 *		Fuzz target: a mail that anybody may have sent, read as a report.
 *
 * Input: the mail.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "feedback/bounce.h"
#include "fuzz.h"

/* Printable UTF-8 on one line, bounded. */
static void
check_text(const char *text)
{
	if (text == NULL)
		return;
	HOLDS(text[0] != '\0' && strlen(text) <= KLM_REPLY_MAX);
	HOLDS(pg_encoding_verifymbstr(PG_UTF8, text, strlen(text)) == strlen(text));
	for (const char *p = text; *p; p++)
		HOLDS((unsigned char) *p >= ' ' && *p != 0x7f);
}

static void
check_report(const KlmReport *report)
{
	HOLDS(report->count >= 0 && report->count <= KLM_REPORTED_MAX);
	HOLDS(report->count == 0 || report->type == KLM_REPORT_DSN || report->type == KLM_REPORT_ARF ||
		  report->type == KLM_REPORT_TEXT);
	HOLDS(report->token_count >= 0 && report->token_count <= KLM_TOKENS_MAX);
	check_text(report->message_id);
	check_text(report->reporting_mta);
	for (int i = 0; i < report->token_count; i++)
	{
		check_text(report->tokens[i]);
		HOLDS(strlen(report->tokens[i]) <= 60);
	}
	for (int i = 0; i < report->count; i++)
	{
		const KlmReported *reported = &report->recipients[i];

		check_text(reported->recipient);
		check_text(reported->original);
		check_text(reported->diagnostic);
		check_text(reported->status);
		HOLDS(reported->action != NULL);
		HOLDS(reported->status == NULL || strlen(reported->status) < 16);
		HOLDS(reported->code == 0 || (reported->code >= 200 && reported->code <= 599));
		/* Whoever still tries, or did it, bounces nobody; whoever failed does. */
		HOLDS((strcmp(reported->action, "failed") != 0) || reported->bounce_type != NULL);
		HOLDS((strcmp(reported->action, "delayed") != 0) ||
			  strcmp(reported->bounce_type, "soft") == 0);
		HOLDS((strcmp(reported->action, "delivered") != 0) || reported->bounce_type == NULL);
		HOLDS(reported->bounce_type == NULL || reported->reason != NULL);
	}
}

int
LLVMFuzzerTestOneInput(const uint8 *data, Size size)
{
	static KlmReport report;
	static KlmReport again;
	char	   *raw = palloc(size);
	char	   *dos = palloc(2 * size + 1);
	Size		length = 0;
	bool		simple = true;

	/* Not ended by a NUL, and with a red zone behind it. */
	memcpy(raw, data, size);
	klm_read_bounce(raw, size, &report);
	check_report(&report);

	/* Whichever the ends of its lines, it says the same. */
	for (Size i = 0; i < size; i++)
	{
		simple &= raw[i] != '\r' && raw[i] != '=';
		if (raw[i] == '\n')
			dos[length++] = '\r';
		dos[length++] = raw[i];
	}
	klm_read_bounce(dos, length, &again);
	HOLDS(!simple || (again.type == report.type && again.count == report.count));
	fuzz_free_all();
	return 0;
}
