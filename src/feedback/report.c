/*-------------------------------------------------------------------------
 *
 * report.c
 *		What a report says, made of the words of a stranger: bounded, printable,
 *		and judged by the table that judges replies.
 *
 * Pure (palloc only).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "mb/pg_wchar.h"

#include "feedback/report.h"
#include "message/address.h"
#include "smtp/reply_parse.h"
#include "smtp/verdict.h"

#define MAX_ADDRESS 320

KlmReported *
klm_add_reported(KlmReport *report)
{
	KlmReported *reported;

	if (report->count >= KLM_REPORTED_MAX)
		return NULL;
	reported = &report->recipients[report->count++];
	memset(reported, 0, sizeof(KlmReported));
	return reported;
}

char *
klm_printable(const char *text, Size length)
{
	KlmReply	reply;
	char	   *out;

	if (text == NULL)
		return NULL;
	klm_read_reply(KLM_STAGE_RCPT, text, Min(length, 4 * KLM_REPLY_MAX), &reply);
	out = reply.text;
	for (const char *p = reply.text; *p; p++)
		if ((*p != ' ' && *p != '\n') || (out > reply.text && out[-1] != ' '))
			*out++ = *p == '\n' ? ' ' : *p;
	while (out > reply.text && out[-1] == ' ')
		out--;
	*out = '\0';
	return reply.text[0] ? reply.text : NULL;
}

char *
klm_reported_address(const char *text, Size length)
{
	KlmAddress	address;
	char	   *copy;

	while (length > 0 && (isspace((unsigned char) *text) || *text == '<'))
	{
		text++;
		length--;
	}
	while (length > 0 && (isspace((unsigned char) text[length - 1]) || text[length - 1] == '>'))
		length--;
	if (length == 0)
		return NULL;
	copy = pnstrdup(text, Min(length, MAX_ADDRESS));
	if (strlen(copy) == length &&
		pg_encoding_verifymbstr(PG_UTF8, copy, length) == length &&
		klm_parse_address(copy, &address, NULL))
		return address.addr;
	return klm_printable(copy, strlen(copy));
}

const char *
klm_reported_action(const char *text)
{
	static const char *const actions[] = {"failed", "delayed", "delivered", "relayed", "expanded"};

	for (int i = 0; text != NULL && i < lengthof(actions); i++)
	{
		Size		length = strlen(actions[i]);

		if (pg_strncasecmp(text, actions[i], length) == 0 && !isalpha((unsigned char) text[length]))
			return actions[i];
	}
	return NULL;
}

char *
klm_reported_status(const char *text)
{
	const char *status;
	Size		length;

	if (text == NULL)
		return NULL;
	(void) klm_skip_codes(text, text + strlen(text), &status, &length);
	return length > 0 && length < lengthof(((KlmReply *) NULL)->enhanced) ?
		pnstrdup(status, length) : NULL;
}

/* Three digits of a refusal or delay that begin a reply. */
static bool
is_reply(const char *p)
{
	return (p[0] == '4' || p[0] == '5') && p[1] >= '0' && p[1] <= '5' &&
		isdigit((unsigned char) p[2]) && (p[3] == ' ' || p[3] == '-' || p[3] == '#');
}

/* One that has a status, too, is more certainly a reply than a number in a sentence. */
const char *
klm_find_reply(const char *text)
{
	const char *found = NULL;

	for (const char *p = text; *p; p++)
	{
		const char *status;
		Size		length;

		if (!is_reply(p) || (p > text && strchr(" \t\n:(\"'", p[-1]) == NULL))
			continue;
		(void) klm_skip_codes(p, p + strlen(p), &status, &length);
		if (length > 0)
			return p;
		if (found == NULL)
			found = p;
	}
	return found;
}

/* What was said, as the reply that it was or could have been. */
static void
reply_of(const KlmReported *reported, bool at_dot, KlmReply *reply)
{
	const char *words = reported->diagnostic ? reported->diagnostic : "";
	const char *said = klm_find_reply(words);
	const char *status = reported->status;
	int			code = status && status[0] == '4' ? 450 : 550;

	if (said == NULL)
		said = psprintf("%d %s %s", code, status && status[0] != '2' ? status : "", words);
	klm_read_reply(at_dot ? KLM_STAGE_DOT : KLM_STAGE_RCPT, said, strlen(said), reply);

	/* The report's own status, where the server's says less. */
	if (status != NULL && status[0] - '0' == reply->code / 100 &&
		(reply->enhanced[0] == '\0' || strcmp(reply->enhanced + 1, ".0.0") == 0))
		strlcpy(reply->enhanced, status, sizeof(reply->enhanced));
}

void
klm_classify_reported(KlmReported *reported, bool at_dot)
{
	KlmReply	reply;
	KlmDecision decision;

	reply_of(reported, at_dot, &reply);
	if (reported->action == NULL)
		reported->action = reported->status && reported->status[0] == '2' ? "delivered" :
			reply.code < 500 ? "delayed" : "failed";
	if (strcmp(reported->action, "failed") != 0 && strcmp(reported->action, "delayed") != 0)
		return;
	if (reply.enhanced[0])		/* the server's, where the report says 5.0.0 */
		reported->status = pstrdup(reply.enhanced);
	if (reported->status || (reported->diagnostic && klm_find_reply(reported->diagnostic)))
		reported->code = reply.code;

	klm_classify_reply(&reply, NULL, reported->original ? reported->original : reported->recipient,
					   false, 0, &decision);
	reported->reason = decision.reason;
	reported->hint = decision.hint;
	if (strcmp(reported->action, "delayed") == 0)
	{
		/* Whatever the status says, somebody still tries. */
		reported->bounce_type = "soft";
		reported->hint = NULL;
		return;
	}
	reported->bounce_type = decision.bounce_type ? decision.bounce_type : "soft";
	if (decision.scope == KLM_SCOPE_ACCOUNT)
	{
		/* It was said to a server of somebody else, so it is no matter of our account. */
		reported->bounce_type = "soft";
		reported->reason = "a server on the way refused the message";
		reported->hint = "The server's words say why.";
	}
	else if (decision.verdict == KLM_TEMPORARY)
	{
		reported->reason = "a server on the way gave up trying";
		reported->hint = "The server's words say why; kliv_mail.retry() sends it again.";
	}
}
