/*-------------------------------------------------------------------------
 *
 * reply.c
 *		Fuzz target: one reply of a hostile server, and what it is taken for.
 *
 * Input: a byte for stage and lost, a byte for the provider, the reply's bytes.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "fuzz.h"
#include "smtp/reply_parse.h"
#include "smtp/verdict.h"

int
LLVMFuzzerTestOneInput(const uint8 *data, Size size)
{
	static const char *const providers[] = {NULL, "ses", "sendgrid", "gmail", "mailgun", "postmark",
	"brevo", "no such provider"};
	KlmReply	reply;
	KlmDecision decision;
	KlmDecision again;
	const char *provider;
	char	   *id;
	char	   *raw;
	bool		lost;

	if (size < 2)
		return 0;
	lost = (data[0] & 0x80) != 0;
	provider = providers[data[1] % lengthof(providers)];

	/* Not ended by a NUL, and with a red zone behind it. */
	raw = palloc(size - 2);
	memcpy(raw, data + 2, size - 2);
	klm_read_reply(data[0] % (KLM_STAGE_DOT + 1), raw, size - 2, &reply);
	HOLDS(reply.code == 0 || (reply.code >= 200 && reply.code <= 599));
	HOLDS(reply.enhanced[0] == '\0' || reply.enhanced[0] - '0' == reply.code / 100);
	HOLDS(strlen(reply.text) <= KLM_REPLY_MAX);
	HOLDS(pg_encoding_verifymbstr(PG_UTF8, reply.text, strlen(reply.text)) == strlen(reply.text));
	for (const char *p = reply.text; *p; p++)
		HOLDS(((unsigned char) *p >= ' ' && *p != 0x7f) || *p == '\n');

	klm_classify_reply(&reply, provider, NULL, lost, 0, &decision);
	HOLDS(decision.reason != NULL && decision.reason[0] != '\0');
	HOLDS(decision.pause_s >= 0);
	HOLDS(klm_verdict_name(decision.verdict) != NULL && klm_scope_name(decision.scope) != NULL);
	HOLDS(decision.verdict != KLM_ACCEPTED ||
		  (!lost && (reply.code / 100 == 2 || reply.code == 354)));
	/* Only the dot leaves doubt, and a refusal none. */
	HOLDS(decision.verdict != KLM_IN_DOUBT ||
		  (reply.stage == KLM_STAGE_DOT && (lost || reply.code < 400)));
	/* Without a reply nobody is bounced. */
	HOLDS(!(lost || reply.code == 0) || decision.bounce_type == NULL ||
		  strcmp(decision.bounce_type, "hard") != 0);
	klm_classify_reply(&reply, provider, NULL, lost, 0, &again);
	HOLDS(decision.verdict == again.verdict && decision.scope == again.scope &&
		  decision.reason == again.reason && decision.pause_s == again.pause_s);

	/* Whoever the recipient is, a matter of his own does not become the account's. */
	klm_classify_reply(&reply, provider, "\"too many\"@throttle.example", lost, 0, &again);
	HOLDS(again.scope <= decision.scope || strstr(reply.text, "throttle") != NULL);

	id = klm_server_message_id(&reply, provider);
	HOLDS(id == NULL || (id[0] != '\0' && strpbrk(id, "\r\n") == NULL));
	fuzz_free_all();
	return 0;
}
