/*-------------------------------------------------------------------------
 *
 * verdict.h
 *		What an SMTP reply means: the only place that decides.
 *
 * Layer: pure (palloc only).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_VERDICT_H
#define KLM_VERDICT_H

#include "datatype/timestamp.h"

#include "base/kliv_mail.h"

typedef struct KlmDecision
{
	KlmVerdict	verdict;
	KlmScope	scope;
	const char *bounce_type;	/* "hard", "soft", "policy" or NULL */
	int			pause_s;		/* seconds that the reply implies before another try; 0: the
								 * caller's own backoff */
	const char *reason;			/* static, plain words: "the mailbox does not exist" */
	const char *hint;			/* static, what to do; or NULL */
	bool		login;			/* it is about user name or password */
	bool		sender;			/* it is about the sender's address */
	bool		unknown;		/* no rule knew this reply: only its code class and stage decided */
} KlmDecision;

/*
 * Decide.  provider may be NULL, and so may recipient, the address that the
 * delivery is for: none of its words is evidence.  lost: the connection ended (or timed out)
 * with no (complete) reply; then reply->stage tells whether the dot had left.  now: the
 * database's, since some pauses end with the provider's day.
 */
extern void klm_classify_reply(const KlmReply *reply, const char *provider,
							   const char *recipient, bool lost, TimestampTz now,
							   KlmDecision *decision);

/*
 * Does a refusal for now say that the connection has carried as many mails as it
 * may?  A new one is the cure then.  recipient as above.
 */
extern bool klm_connection_used_up(const KlmReply *reply, const char *recipient);

/*
 * Japan's mobile carriers let their subscribers refuse mail by its sender's domain,
 * and answer for those as if there were no such mailbox.  Is the address at one?
 */
extern bool klm_filters_by_recipient(const char *address);

extern const char *klm_stage_name(KlmStage stage);
extern bool klm_stage_by_name(const char *name, KlmStage *stage);
extern const char *klm_verdict_name(KlmVerdict verdict);
extern const char *klm_scope_name(KlmScope scope);

#endif							/* KLM_VERDICT_H */
