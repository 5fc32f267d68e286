/*-------------------------------------------------------------------------
 *
 * verdict.c
 *		What an SMTP reply means: verdict and scope by the table in verdict_rules.c.
 *
 * NOTES
 *		The rules are tried from top to bottom and the first that fits decides,
 *		so their order is the knowledge: what speaks of the account (quota used
 *		up, sender not verified, login) wins at every stage, since providers
 *		say it after the dot too; then block lists, since they hide behind
 *		"mailbox unavailable"; then the recipient; then policy, since 5.7.1
 *		means everything; then what the code and the stage alone tell.
 *
 *		A rule looks at the server's own words only (evidence.c); a precise
 *		status at RCPT beats them all.
 *
 * Layer: pure (palloc only).  Sees providers.h for the provider's own hints.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "smtp/evidence.h"
#include "smtp/providers.h"
#include "smtp/verdict.h"
#include "smtp/verdict_rules.h"

/* ---- names ---- */

static const char *const stage_names[] = {
	"connect", "greeting", "tls", "ehlo", "auth", "mail", "rcpt", "data", "dot"
};

static const char *const verdict_names[] = {
	"accepted", "temporary", "permanent", "provider_limit", "account_trouble", "policy_block",
	"message_fault", "in_doubt"
};

static const char *const scope_names[] = {"recipient", "message", "account"};

const char *
klm_stage_name(KlmStage stage)
{
	return stage_names[stage];
}

bool
klm_stage_by_name(const char *name, KlmStage *stage)
{
	for (int i = 0; i < lengthof(stage_names); i++)
	{
		if (strcmp(name, stage_names[i]) == 0)
		{
			*stage = (KlmStage) i;
			return true;
		}
	}
	return false;
}

const char *
klm_verdict_name(KlmVerdict verdict)
{
	return verdict_names[verdict];
}

const char *
klm_scope_name(KlmScope scope)
{
	return scope_names[scope];
}

/* ---- matching ---- */

/* One of the tokens of list, where x stands for a digit and * for the rest? */
static bool
token_matches(const char *list, const char *value)
{
	while (*list)
	{
		const char *v = value;

		while (*list == ' ')
			list++;
		for (; *list && *list != ' ' && *list != '*' && *v; list++, v++)
		{
			if (*list != *v && !(*list == 'x' && *v >= '0' && *v <= '9'))
				break;
		}
		if (*list == '*' || ((*list == '\0' || *list == ' ') && *v == '\0'))
			return true;
		while (*list && *list != ' ')
			list++;
	}
	return false;
}

/* strstr() for a piece of a pattern that is not terminated. */
static const char *
find(const char *text, const char *piece, Size length)
{
	for (; *text; text++)
	{
		if (*text == *piece && strncmp(text, piece, length) == 0)
			return text;
	}
	return NULL;
}

/* Does one of the phrases occur?  '*' inside a phrase stands for anything. */
static bool
phrase_occurs(const char *phrases, const char *text)
{
	for (;;)
	{
		const char *at = text;
		const char *end = phrases;

		for (;;)
		{
			while (*end && *end != '|' && *end != '*')
				end++;
			at = find(at, phrases, end - phrases);
			if (at == NULL)
				break;
			if (*end != '*')
				return true;
			at += end - phrases;
			phrases = ++end;
		}
		while (*phrases && *phrases != '|')
			phrases++;
		if (*phrases == '\0')
			return false;
		phrases++;
	}
}

static KlmScope
default_scope(KlmStage stage)
{
	if (stage <= KLM_STAGE_MAIL)
		return KLM_SCOPE_ACCOUNT;
	return stage == KLM_STAGE_RCPT ? KLM_SCOPE_RECIPIENT : KLM_SCOPE_MESSAGE;
}

/* No reply, or none that could be understood. */
static void
classify_silence(KlmStage stage, KlmDecision *decision)
{
	static const struct
	{
		const char *reason;
		const char *hint;
	}			silence[] = {
		{"the server could not be reached",
			"Check host and port, and that this machine may connect to them; "
		"kliv_mail.test_smtp() shows more."},
		{"the server gave no greeting",
			"Check port and encryption: 465 needs tls, 587 needs starttls. "
		"kliv_mail.test_smtp() shows more."},
		{"no secure connection to the server could be made",
			"Check encryption and the server's certificate; kliv_mail.test_smtp() shows more."},
		{"the connection was lost before the server said what it offers", KLM_AGAIN},
		{"the connection was lost during the login", KLM_AGAIN},
		{"the connection was lost before the server took the sender", KLM_AGAIN},
		{"the connection was lost before the server took the recipient", KLM_AGAIN},
		{"the connection was lost while the message was sent", KLM_AGAIN},
		{("the connection was lost after the message was sent: "
		  "whether the server took it is not known"),
			"Ask the recipient or look into the provider's log; kliv_mail.retry() sends it again."},
	};

	decision->scope = default_scope(stage);
	decision->reason = silence[stage].reason;
	decision->hint = silence[stage].hint;
	if (stage == KLM_STAGE_DOT)
		decision->verdict = KLM_IN_DOUBT;
	else if (stage <= KLM_STAGE_AUTH)
		decision->verdict = KLM_ACCOUNT_TROUBLE;
	else
	{
		decision->verdict = KLM_TEMPORARY;
		if (stage == KLM_STAGE_RCPT)
			decision->bounce_type = "soft";
	}
}

/* What class and stage of an unknown reply make of it. */
static void
classify_unknown(KlmStage stage, int code, KlmDecision *decision)
{
	decision->unknown = true;
	decision->scope = default_scope(stage);
	if (code < 500)
	{
		decision->verdict = KLM_TEMPORARY;
		if (stage == KLM_STAGE_RCPT)
			decision->bounce_type = "soft";
		decision->reason = stage == KLM_STAGE_RCPT ? "the server does not take the recipient at "
		"the moment" :
			stage == KLM_STAGE_MAIL ? "the server does not take the sender at the moment" :
			"the server does not take the message at the moment";
		decision->hint = KLM_AGAIN;
	}
	else if (stage <= KLM_STAGE_MAIL)
	{
		decision->verdict = KLM_ACCOUNT_TROUBLE;
		decision->reason = "the server refuses the sender";
		decision->hint = "The reply says why; kliv_mail.test_smtp() asks it again.";
	}
	else if (stage == KLM_STAGE_RCPT)
	{
		decision->verdict = KLM_PERMANENT;
		decision->bounce_type = "soft";
		decision->reason = "the server refuses the recipient";
		decision->hint = "The reply says why.";
	}
	else
	{
		decision->verdict = KLM_MESSAGE_FAULT;
		decision->reason = "the server refuses the message";
		decision->hint = "The reply says why.";
	}
}

static void
apply_rule(const KlmRule *rule, const KlmProvider *provider, KlmDecision *decision)
{
	decision->verdict = rule->verdict;
	decision->scope = rule->scope;
	decision->bounce_type = rule->bounce_type;
	decision->pause_s = rule->pause_s;
	decision->reason = rule->reason;
	decision->hint = rule->hint;
	decision->login = rule->hint_of == KLM_HINT_LOGIN;
	decision->sender = rule->hint_of == KLM_HINT_SENDER;
	if (provider && rule->hint_of == KLM_HINT_LOGIN && provider->password_hint)
		decision->hint = provider->password_hint;
	if (provider && rule->hint_of == KLM_HINT_SENDER && provider->sender_hint)
		decision->hint = provider->sender_hint;
}

static const KlmRule *
find_rule(const KlmReply *reply, const char *provider, const char *words)
{
	char		digits[12];

	snprintf(digits, sizeof(digits), "%d", reply->code);
	for (int i = 0; i < klm_rule_count; i++)
	{
		const KlmRule *rule = &klm_rules[i];

		if ((rule->stages & KLM_AT(reply->stage)) &&
			(rule->codes == NULL || token_matches(rule->codes, digits)) &&
			(rule->status == NULL ||
			 (reply->enhanced[0] && token_matches(rule->status, reply->enhanced))) &&
			(rule->provider == NULL || (provider && strcmp(rule->provider, provider) == 0)) &&
			(rule->text == NULL || phrase_occurs(rule->text, words)))
			return rule;
	}
	return NULL;
}

/* No rule knows the reply. */
static void
classify_without_rule(const KlmReply *reply, KlmDecision *decision)
{
	memset(decision, 0, sizeof(KlmDecision));

	/* 2xx or 3xx in a wrong place: the session is out of step. */
	if (reply->code < 400)
	{
		classify_silence(reply->stage, decision);
		decision->reason = reply->stage == KLM_STAGE_DOT ?
			"the server's answer to the message makes no sense: whether it took it is not known" :
			"the server's answer makes no sense here";
	}
	else
		classify_unknown(reply->stage, reply->code, decision);
}

static void
classify_words(const KlmReply *reply, const char *provider, const char *words,
			   KlmDecision *decision)
{
	const KlmRule *rule = find_rule(reply, provider, words);

	if (rule != NULL)
		apply_rule(rule, klm_find_provider(provider), decision);
	else
		classify_without_rule(reply, decision);
}

/* Where text goes on behind one of the pieces, if it begins with it. */
static const char *
skip_one(const char *text, const char *const *pieces, int count)
{
	for (int i = 0; i < count; i++)
	{
		Size		length = strlen(pieces[i]);

		if (strncmp(text, pieces[i], length) == 0)
			return text + length;
	}
	return NULL;
}

/*
 * What is counted, and in what: "messages per session", "mail limit for this SMTP
 * connection".  A day's mails and the number of connections are other limits.
 */
bool
klm_connection_used_up(const KlmReply *reply, const char *recipient)
{
	static const char *const counted[] = {"message", "mail", "recipient"};
	static const char *const between[] = {" limit", " count", " sent", " allowed", " exceeded"};
	static const char *const within[] = {" per ", " in this ", " for this ", " on this "};
	static const char *const whole[] = {"session", "connection"};
	char	   *words;
	bool		found = false;

	if (reply->code < 400 || reply->code > 499 || reply->text == NULL)
		return false;
	words = klm_evidence(reply->text, recipient);
	for (const char *p = words; *p && !found; p++)
	{
		const char *at = skip_one(p, counted, lengthof(counted));
		const char *next;

		if (at == NULL)
			continue;
		if (*at == 's')
			at++;
		while ((next = skip_one(at, between, lengthof(between))) != NULL)
			at = next;
		at = skip_one(at, within, lengthof(within));
		if (at != NULL && strncmp(at, "smtp ", 5) == 0)
			at += 5;
		at = at ? skip_one(at, whole, lengthof(whole)) : NULL;
		found = at != NULL && (*at < 'a' || *at > 'z');
	}
	pfree(words);
	return found;
}

bool
klm_filters_by_recipient(const char *address)
{
	const char *domain = strrchr(address, '@');
	Size		length;

	if (domain == NULL)
		return false;
	length = strlen(++domain);
	for (int i = 0; i < klm_carrier_count; i++)
	{
		Size		carrier = strlen(klm_carriers[i]);

		if (length >= carrier && pg_strcasecmp(domain + length - carrier, klm_carriers[i]) == 0 &&
			(length == carrier || domain[length - carrier - 1] == '.'))
			return true;
	}
	return false;
}

void
klm_classify_reply(const KlmReply *reply, const char *provider, const char *recipient, bool lost,
				   TimestampTz now, KlmDecision *decision)
{
	KlmStage	stage = reply->stage;
	int			code = reply->code;
	char	   *words;
	KlmDecision second;

	memset(decision, 0, sizeof(KlmDecision));
	if (lost || code < 200 || code > 599)
	{
		classify_silence(stage, decision);
		return;
	}

	/* The right answer of the stage; any 2xx after the dot is a promise. */
	if ((code < 300 && stage != KLM_STAGE_DATA) || (code == 354 && stage == KLM_STAGE_DATA))
	{
		decision->verdict = KLM_ACCEPTED;
		decision->scope = default_scope(stage);
		decision->reason = stage == KLM_STAGE_DOT ? "the server accepted the message" :
		"the server agreed";
		return;
	}

	words = klm_evidence(reply->text ? reply->text : "", recipient);
	classify_words(reply, provider, words, decision);

	/*
	 * A word that may be the recipient's own name can make a refusal narrower,
	 * never wider: if the account really is in trouble, the next recipient's
	 * reply says so without it.
	 */
	if (recipient != NULL && stage >= KLM_STAGE_RCPT &&
		decision->scope != KLM_SCOPE_RECIPIENT && klm_evidence_without_name(words, recipient))
	{
		classify_words(reply, provider, words, &second);
		if (second.scope < decision->scope)
			*decision = second;
	}
	pfree(words);

	/* What a subscriber's filter says at the dot is about this mail, whatever its words. */
	if (recipient != NULL && stage >= KLM_STAGE_DATA && decision->bounce_type != NULL &&
		strcmp(decision->bounce_type, "hard") == 0 && klm_filters_by_recipient(recipient))
	{
		decision->bounce_type = "soft";
		decision->reason = "the recipient's carrier refuses the message, perhaps by a filter of the recipient";
		decision->hint = "Ask the recipient to allow the sender's domain in the phone's mail settings.";
	}

	/* A TimestampTz counts from a midnight of UTC. */
	if (decision->pause_s == KLM_UTC_DAY)
		decision->pause_s = SECS_PER_DAY - (int) (now % USECS_PER_DAY / USECS_PER_SEC);

	/*
	 * A day's limit with a status of an address, a mailbox or a policy may be the
	 * recipient's server's word, which an unknown relay passes on: whoever has that
	 * server shall not stop the account for a day.  A true limit says it again.
	 */
	if (decision->verdict == KLM_PROVIDER_LIMIT && decision->pause_s > SECS_PER_HOUR &&
		stage >= KLM_STAGE_RCPT && klm_find_provider(provider) == NULL &&
		token_matches("x.1.* x.2.* x.7.*", reply->enhanced))
	{
		decision->pause_s = 15 * SECS_PER_MINUTE;
		decision->hint = KLM_AGAIN;
	}
}
