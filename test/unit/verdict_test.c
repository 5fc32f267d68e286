/*-------------------------------------------------------------------------
 *
 * verdict_test.c
 *		Unit tests of src/smtp/verdict.c: no recipient's address decides what a
 *		reply means.  Every rule of the table, at each of its stages, and what
 *		servers really say, with 44 addresses that are made of rules' words.
 *
 * Build (libpgcommon and libpgport are PostgreSQL's frontend libraries):
 *	cc -Isrc -I$(pg_config --includedir-server) -o verdict_test
 *		test/unit/verdict_test.c src/base/error.c src/base/text.c src/message/address.c
 *		src/smtp/evidence.c src/smtp/providers.c src/smtp/reply_parse.c src/smtp/verdict.c
 *		src/smtp/verdict_rules.c -L$(pg_config --pkglibdir) -L$(pg_config --libdir) -lpgcommon -lpgport -lidn2
 * Ends with "N passed, N failed".
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "message/address.h"
#include "smtp/reply_parse.h"
#include "smtp/verdict.h"
#include "smtp/verdict_rules.h"

#include "outside.h"

#define PLAIN "bob@example.com"

static int	passed;
static int	failed;

/* What anybody may type into a sign-up form. */
static const char *addresses[] = {
	"sendasdenied@x.example", "daily_quota_exceeded@x.example", "a@throttle.example",
	"x@spamhaus.example", "\"daily limit\"@nodomain.example", "bob@rate-limit.example",
	"throttle@nodomain.example", "reputation@example.com", "dkim@example.com", "spf@dmarc.example",
	"\"relay access denied\"@x.example", "\"too many connections\"@x.example",
	"\"authentication required\"@x.example", "\"sender address rejected: not owned by user\"@x.example",
	"\"said: 550 5.7.1 relay access denied\"@x.example", "5.7.28@x.example", "4.7.28@x.example",
	"5.4.5@x.example", "\"5.4.5\"@x.example", "\"550 5.4.5 daily limit\"@x.example", "421@4.7.0.example",
	"greylist@postgrey.example", "\"mailbox full\"@over-quota.example", "user.unknown@x.example",
	"\"user unknown\"@no-such-user.example", "spam@virus.example", "unsolicited@blocked.example",
	"a+throttl@x.example", "throttle+tag@x.example", "credits/exceeded@x.example",
	"\"a\\\"b maximum sending rate\"@x.example", "\"a@b sandbox domain\"@x.example",
	"\"; too many login attempts\"@x.example", "\"(rbl) listed at\"@x.example",
	"said@throttle.example", "\"message too large\"@x.example", "size-limit@malformed.example",
	"mx.throttle@mx.throttle.example", "ratelimit@xn--n3h.example", "hourly-limit@per-hour.example",
	"\"quota exceeded\"@inactive.example", "'slow'down@x.example", "slow{down}@x.example",
	"\xE5\x88\xB6\xE9\x99\x90throttle@x.example"
};

/* Mobile carriers of Japan, but for the last two. */
static const char *const carriers[] = {
	"taro@docomo.ne.jp", "taro@ezweb.ne.jp", "taro@AU.com", "taro@softbank.ne.jp",
	"taro@i.softbank.jp", "taro@t.vodafone.ne.jp", "taro@ymobile.ne.jp",
	"taro@notdocomo.ne.jp", "taro@docomo.ne.jp.example"
};

static void
check(bool ok, const char *what, const char *reply, const char *address, const KlmDecision *expected,
	  const KlmDecision *found)
{
	if (ok)
	{
		passed++;
		return;
	}
	if (++failed <= 20)
		printf("not ok: %s: %s\n\tfor %s: %s %s \"%s\", with a plain address: %s %s \"%s\"\n", what,
			   reply, address, klm_verdict_name(found->verdict), klm_scope_name(found->scope),
			   found->reason, klm_verdict_name(expected->verdict),
			   klm_scope_name(expected->scope), expected->reason);
}

static void
decide(KlmStage stage, const char *raw, const char *provider, const char *recipient,
	   KlmDecision *decision)
{
	KlmReply	reply;

	klm_read_reply(stage, raw, strlen(raw), &reply);
	klm_classify_reply(&reply, provider, recipient, false, 0, decision);
}

static bool
same(const KlmDecision *a, const KlmDecision *b)
{
	return a->verdict == b->verdict && a->scope == b->scope && a->reason == b->reason &&
		a->hint == b->hint && a->unknown == b->unknown &&
		(a->bounce_type == b->bounce_type || strcmp(a->bounce_type, b->bounce_type) == 0) &&
		a->pause_s == b->pause_s;
}

/* How servers put an address into a reply; $ is the address, # the server's words, ~ code and status. */
static const char *const echoes[] = {
	"~ <$>: #", "~ # <$>", "~ $: #", "~ #: $", "~ # ($)", "~ $... #", "~ # for $;", "~ # '$'",
	"~-<$>\r\n~ #", "~-$ said no\r\n~ #", "~ # (in reply to RCPT TO:<$>)", "~ \"$\" #", "~ #: RCPT TO:$"
};

static char *
fill(const char *pattern, const char *code, const char *status, const char *words, const char *address)
{
	StringInfoData out;

	initStringInfo(&out);
	for (const char *p = pattern; *p; p++)
	{
		if (*p == '~')
		{
			appendStringInfo(&out, "%s%c", code, p[1] == '-' ? '-' : ' ');
			p++;
			if (status)
				appendStringInfo(&out, "%s ", status);
		}
		else if (*p == '$')
			appendStringInfoString(&out, address);
		else if (*p == '#')
			appendStringInfoString(&out, words);
		else
			appendStringInfoChar(&out, *p);
	}
	return out.data;
}

/* The same verdict whoever the recipient is, and whether we know it or not; by so many echoes, in turn. */
static void
test_reply(KlmStage stage, const char *code, const char *status, const char *words,
		   const char *provider, int echo_count)
{
	static int	turn = 0;
	KlmDecision expected;
	KlmDecision found;
	char	   *given = fill("~ #", code, status, words, "");

	decide(stage, given, provider, PLAIN, &expected);
	for (int a = 0; a < lengthof(addresses); a++)
	{
		/* A given reply: a name in it may only make it narrower. */
		decide(stage, given, provider, addresses[a], &found);
		check(same(&expected, &found) || found.scope < expected.scope, "a reply without an address",
			  given, addresses[a], &expected, &found);
	}
	pfree(given);
	for (int e = 0; e < echo_count; e++)
	{
		const char *echo = echoes[turn++ % lengthof(echoes)];
		char	   *plain = fill(echo, code, status, words, PLAIN);

		decide(stage, plain, provider, NULL, &expected);
		for (int a = 0; a < lengthof(addresses); a++)
		{
			char	   *raw = fill(echo, code, status, words, addresses[a]);

			decide(stage, raw, provider, NULL, &found);
			check(same(&expected, &found), "recipient not known", raw, addresses[a], &expected, &found);
			decide(stage, raw, provider, addresses[a], &found);
			check(same(&expected, &found) || found.scope < expected.scope, "recipient known", raw,
				  addresses[a], &expected, &found);
			pfree(raw);
		}
		pfree(plain);
	}
}

/* "5.7.2x" as "5.7.20", "4.7.*" as "4.7.1", "x.2.2" as the code says. */
static char *
example_of(const char *list, char first)
{
	char	   *example = pnstrdup(list, strcspn(list, " "));

	for (char *p = example; *p; p++)
	{
		if (*p == 'x')
			*p = p == example ? first : '0';
		else if (*p == '*')
			*p = '1';
	}
	return example;
}

/* Each of a rule's phrases, with the first of its codes and stati, at each of its stages. */
static void
test_rule(const KlmRule *rule)
{
	const char *text = rule->text ? rule->text : "no";
	char	   *code = example_of(rule->codes ? rule->codes : "550", '5');
	char	   *status = rule->status ? example_of(rule->status, code[0]) : NULL;

	while (*text)
	{
		Size		length = strcspn(text, "|");
		char	   *words = pnstrdup(text, length);
		KlmDecision decision;

		for (char *p = words; *p; p++)
			if (*p == '*')
				*p = 'z';
		for (int stage = KLM_STAGE_RCPT; stage <= KLM_STAGE_DOT; stage++)
			if (rule->stages & KLM_AT(stage))
			{
				char	   *raw = fill("~ #", code, status, words, "");

				/* It is known at all, by this rule or by one above it. */
				decide((KlmStage) stage, raw, rule->provider, PLAIN, &decision);
				check(!decision.unknown, "a rule knows it", raw, PLAIN, &decision, &decision);
				test_reply((KlmStage) stage, code, status, words, rule->provider, 2);
				pfree(raw);
			}
		pfree(words);
		text += length + (text[length] == '|');
	}
}

/* What servers say, with code and status apart. */
static const struct
{
	KlmStage	stage;
	const char *code;
	const char *status;
	const char *words;
	const char *provider;
}			said[] = {
	{KLM_STAGE_RCPT, "550", "5.1.1", "The email account that you tried to reach does not exist"},
	{KLM_STAGE_RCPT, "550", "5.5.0", "Requested action not taken: mailbox unavailable"},
	{KLM_STAGE_RCPT, "550", "5.4.1", "Recipient address rejected: Access denied"},
	{KLM_STAGE_RCPT, "452", "4.2.2", "The recipient's inbox is out of storage space"},
	{KLM_STAGE_RCPT, "450", "4.2.1", "receiving email too quickly"},
	{KLM_STAGE_RCPT, "450", "4.7.1", "Recipient address rejected: Greylisted"},
	{KLM_STAGE_RCPT, "454", NULL, "Throttling failure: Maximum sending rate exceeded", "ses"},
	{KLM_STAGE_DOT, "454", NULL, "Throttling failure: Daily message quota exceeded", "ses"},
	{KLM_STAGE_RCPT, "421", NULL, "Too many concurrent SMTP connections"},
	{KLM_STAGE_RCPT, "550", "5.4.5", "Daily user sending limit exceeded", "gmail"},
	{KLM_STAGE_RCPT, "550", "5.4.5", "Daily SMTP relay limit exceeded"},
	{KLM_STAGE_RCPT, "550", "5.7.1", "Your mail was rejected: daily sending limit exceeded"},
	{KLM_STAGE_DOT, "421", "4.7.28", "unusual rate of unsolicited mail"},
	{KLM_STAGE_RCPT, "432", "4.3.2", "Concurrent connections limit exceeded; sender thread limit exceeded"},
	{KLM_STAGE_DOT, "554", "5.2.0", "STOREDRV.Submission.Exception:SubmissionQuotaExceeded"},
	{KLM_STAGE_RCPT, "451", "4.7.500", "Access denied, please try again later"},
	{KLM_STAGE_RCPT, "451", NULL, "Authentication failed: Maximum credits exceeded", "sendgrid"},
	{KLM_STAGE_RCPT, "550", "5.7.1", "Relaying denied"},
	{KLM_STAGE_RCPT, "530", "5.7.0", "Authentication Required"},
	{KLM_STAGE_RCPT, "530", "5.7.57", "Client not authenticated to send mail"},
	{KLM_STAGE_DOT, "554", NULL, "Message rejected: Email address is not verified", "ses"},
	{KLM_STAGE_RCPT, "550", NULL, "Unauthenticated senders not allowed", "sendgrid"},
	{KLM_STAGE_DOT, "550", NULL, "domain is not verified", "resend"},
	{KLM_STAGE_DOT, "550", "5.7.26", "senders to authenticate with either SPF or DKIM"},
	{KLM_STAGE_DOT, "550", "5.7.1", "likely unsolicited mail"},
	{KLM_STAGE_DOT, "550", "5.7.25", "does not have a PTR record"},
	{KLM_STAGE_RCPT, "550", "5.7.515", "sending domain does not meet the required authentication level"},
	{KLM_STAGE_RCPT, "550", "5.7.1", "is on our block list (S3150)"},
	{KLM_STAGE_RCPT, "550", "5.7.511", "Access denied, banned sender"},
	{KLM_STAGE_RCPT, "421", "4.7.0", "[TSS04] temporarily deferred due to user complaints"},
	{KLM_STAGE_DOT, "554", NULL, "Message rejected", "ses"},
	{KLM_STAGE_DOT, "552", "5.3.4", "Your message exceeded message size limits"},
	{KLM_STAGE_DOT, "550", "5.7.1", "not RFC 5322 compliant because it has duplicate headers"},
	{KLM_STAGE_RCPT, "450", "4.1.2", "Recipient address rejected: Domain not found"},
	{KLM_STAGE_RCPT, "550", "5.1.1", "Recipient address rejected: User unknown in virtual mailbox table"},
	{KLM_STAGE_RCPT, "450", "4.1.1", "Recipient address rejected: unverified address: host "
	"mx.throttle.example[192.0.2.1] said: 450 4.7.1 too many messages, slow down"},
	{KLM_STAGE_RCPT, "550", "5.1.1", "Recipient address rejected: undeliverable address: host "
	"mx.x.example[192.0.2.1] said: 550 5.7.1 Relay access denied"},
	{KLM_STAGE_RCPT, "450", NULL, "unverified address: host "
	"mx.x.example[192.0.2.1] refused to talk to me: 421 4.7.0 too many connections"},
	{KLM_STAGE_RCPT, "450", NULL, "unverified address: connect to mx.throttle.example[192.0.2.1]:25: timed out"},
	{KLM_STAGE_RCPT, "450", NULL, "Host or domain name not found. Name service error for name=throttle.example type=MX"},
	{KLM_STAGE_RCPT, "450", NULL, "some words that no rule knows"},
	{KLM_STAGE_RCPT, "550", NULL, "some words that no rule knows"},
	{KLM_STAGE_DOT, "450", NULL, "some words that no rule knows"},
	{KLM_STAGE_DOT, "550", NULL, "some words that no rule knows"},
};

/* What says that a connection has carried as many mails as it may, and what is of another limit. */
static const struct
{
	const char *raw;
	bool		used_up;
}			limits[] = {
	{"452 4.4.5 Maximum number of messages per session exceeded\r\n", true},
	{"451-Requested action aborted\r\n451 Mails per session limit exceeded\r\n", true},
	{"452 4.3.2 Too many messages in this session\r\n", true},
	{"421 too many messages in this connection\r\n", true},
	{"421 4.7.0 TOO MANY MESSAGES ON THIS CONNECTION\r\n", true},
	{"421 Max message per connection reached, closing transmission channel\r\n", true},
	{"450 message limit per connection\r\n", true},
	{"452 4.5.3 Too many recipients for this SMTP session\r\n", true},
	{"452-Too many e-mails sent in this\r\n452 session\r\n", true},
	{"452 4.4.5 Try again later\r\n", false},
	{"451 too many messages from you today\r\n", false},
	{"450 4.7.1 Too many messages per hour in this session's account\r\n", false},
	{"421 4.7.0 Error: too many connections from 192.0.2.1\r\n", false},
	{"421 too many sessions\r\n", false},
	{"451 4.7.1 rate limit exceeded for this connection\r\n", false},
	{"452 Too many messages per sessionless client\r\n", false},
	{"552 5.5.3 Maximum number of messages per session exceeded\r\n", false},
	{"250 2.0.0 Ok: 10 messages in this session\r\n", false},
	{"450 4.1.1 <\"messages per session\"@x.example> is not known yet\r\n", false},
	{"450 4.1.1 messages per session@x.example is not known yet\r\n", false},
};

static void
test_limits(void)
{
	for (int i = 0; i < lengthof(limits); i++)
	{
		static const char recipient[] = "\"messages per session\"@x.example";
		KlmReply	reply;

		klm_read_reply(KLM_STAGE_MAIL, limits[i].raw, strlen(limits[i].raw), &reply);
		if (klm_connection_used_up(&reply, recipient) == limits[i].used_up)
			passed++;
		else
		{
			failed++;
			printf("not ok: %s: %s", limits[i].used_up ? "a connection's end" : "another limit",
				   limits[i].raw);
		}
	}
}

int
main(void)
{
	KlmDecision decision;

	for (int a = 0; a < lengthof(addresses); a++)
	{
		KlmAddress	address;

		/* As the sender has it, which is how it stands in RCPT. */
		if (!klm_parse_address(addresses[a], &address, NULL))
		{
			failed++;
			printf("not ok: no address: %s\n", addresses[a]);
		}
		else
			addresses[a] = address.addr;
	}
	for (int i = 0; i < klm_rule_count; i++)
		test_rule(&klm_rules[i]);
	for (int i = 0; i < lengthof(said); i++)
		test_reply(said[i].stage, said[i].code, said[i].status, said[i].words, said[i].provider,
				   lengthof(echoes));

	test_limits();

	/* The name alone, and hosts of the domain, once the recipient is known. */
	decide(KLM_STAGE_RCPT, "550 Unknown user sendasdenied", NULL, "sendasdenied@x.example", &decision);
	check(decision.verdict == KLM_PERMANENT && strcmp(decision.bounce_type, "hard") == 0, "the name alone",
		  "550 Unknown user sendasdenied", "sendasdenied@x.example", &decision, &decision);
	decide(KLM_STAGE_RCPT, "450 Domain mx1.throttle.example not found", NULL, "a@throttle.example", &decision);
	check(decision.verdict == KLM_TEMPORARY && decision.scope == KLM_SCOPE_RECIPIENT, "a host of the domain",
		  "450 Domain mx1.throttle.example not found", "a@throttle.example", &decision, &decision);
	decide(KLM_STAGE_RCPT, "550 5.7.1 Relay access denied", NULL, "relay@x.example", &decision);
	check(decision.scope <= KLM_SCOPE_ACCOUNT, "a name that is a word", "relay", "relay@x.example", &decision,
		  &decision);

	/* A carrier's "unknown" is about the mailbox at RCPT, and perhaps about us at the dot. */
	for (int i = 0; i < lengthof(carriers); i++)
	{
		bool		carrier = i < lengthof(carriers) - 2;

		decide(KLM_STAGE_RCPT, "550 5.1.1 User unknown", NULL, carriers[i], &decision);
		check(decision.verdict == KLM_PERMANENT && strcmp(decision.bounce_type, "hard") == 0,
			  "unknown at RCPT", "550", carriers[i], &decision, &decision);
		decide(KLM_STAGE_DOT, "550 Unknown user", NULL, carriers[i], &decision);
		check(decision.verdict == KLM_PERMANENT &&
			  strcmp(decision.bounce_type, carrier ? "soft" : "hard") == 0,
			  "unknown at the dot", "550", carriers[i], &decision, &decision);
		check(klm_filters_by_recipient(carriers[i]) == carrier, "a carrier", "", carriers[i],
			  &decision, &decision);
	}
	printf("%d passed, %d failed\n", passed, failed);
	return failed != 0;
}
