/*-------------------------------------------------------------------------
 *
 * bounce_test.c
 *		Unit tests of src/feedback: reports that real servers made
 *		(test/fixtures/bounces), texts in the manner of others, and what only looks
 *		like a report.
 *
 * Build (libpgcommon and libpgport are PostgreSQL's frontend libraries):
 *	cc -Isrc -I$(pg_config --includedir-server) -o bounce_test
 *		test/unit/bounce_test.c src/base/error.c src/base/text.c src/message/address.c
 *		src/smtp/evidence.c src/smtp/providers.c src/smtp/reply_parse.c src/smtp/verdict.c
 *		src/smtp/verdict_rules.c src/feedback/arf.c src/feedback/bounce.c
 *		src/feedback/bounce_text.c src/feedback/dsn.c src/feedback/mime_parse.c
 *		src/feedback/report.c -L$(pg_config --pkglibdir) -L$(pg_config --libdir)
 *		-lpgcommon -lpgport -lidn2
 * Ends with "N passed, N failed".
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "feedback/bounce.h"

#include "counting.h"
#include "outside.h"

/* What a mail was taken for: "dsn id: address action status type; ...". */
static char *
summary(const char *raw, Size length)
{
	static KlmReport report;
	StringInfoData out;

	klm_read_bounce(raw, length, &report);
	initStringInfo(&out);
	appendStringInfo(&out, "%s %s", klm_report_type_name(report.type),
					 report.message_id ? report.message_id : "-");
	for (int i = 0; i < report.count; i++)
	{
		const KlmReported *reported = &report.recipients[i];

		appendStringInfo(&out, "%s %s%s%s %s %s %s", i == 0 ? ":" : ";",
						 reported->recipient ? reported->recipient : "-",
						 reported->original ? "=" : "", reported->original ? reported->original : "",
						 reported->action, reported->status ? reported->status : "-",
						 reported->bounce_type ? reported->bounce_type : "-");
	}
	return out.data;
}

static void
expect(const char *name, const char *raw, Size length, const char *expected)
{
	char	   *found = summary(raw, length);

	check(strcmp(found, expected) == 0, name, psprintf("%s\n\texpected: %s", found, expected));
}

static char *
file(const char *path, Size *length)
{
	FILE	   *stream = fopen(path, "rb");
	char	   *content = palloc(100000);

	*length = stream ? fread(content, 1, 100000, stream) : 0;
	if (stream)
		fclose(stream);
	return content;
}

/* The same with other ends of lines. */
static char *
with_ends(const char *raw, const char *end)
{
	StringInfoData out;

	initStringInfo(&out);
	for (; *raw; raw++)
	{
		if (*raw == '\n')
			appendStringInfoString(&out, end);
		else
			appendStringInfoChar(&out, *raw);
	}
	return out.data;
}

static void
test_servers(void)
{
	static const struct
	{
		const char *name;
		const char *expected;
	}			reports[] = {
		{"exim-001", "dsn unknown.1@shop.example: unknown@remote.example failed 5.1.1 hard"},
		{"exim-002", "dsn full.1@shop.example: full@remote.example failed 5.2.2 soft"},
		{"exim-003", "dsn plain.1@shop.example: plain@remote.example failed 5.0.0 hard"},
		{"exim-004", "dsn policy.1@shop.example: policy@remote.example failed 5.7.1 policy"},
		{"exim-005", "dsn dot.1@shop.example: dot@remote.example failed 5.1.1 hard"},
		{"exim-006", "dsn dotspam.1@shop.example: dotspam@remote.example failed 5.7.1 policy"},
		{"exim-007", "dsn later.1@shop.example: later@remote.example delayed 4.3.0 soft"},
		{"exim-008", "dsn multi.1@shop.example: multi@remote.example failed 5.1.1 hard"},
		{"exim-009", "dsn disabled.1@shop.example: disabled@remote.example failed 5.2.1 hard"},
		{"exim-010", "dsn nobody.1@shop.example: nobody@nowhere.example failed 5.0.0 hard"},
		{"exim-011", "dsn x.1@shop.example: x@refused.example delayed 4.0.0 soft"},
		{"exim-012", "dsn later.1@shop.example: later@remote.example delayed 4.3.0 soft"},
		{"exim-013", "dsn x.1@shop.example: x@refused.example failed 5.0.0 soft"},
		{"exim-014", "dsn later.1@shop.example: later@remote.example failed 4.3.0 soft"},
		{"exim-015", "dsn unknown.1@shop.example: unknown@exim.example failed 5.0.0 hard"},
		{"exim-016", "dsn full.1@shop.example: full@exim.example failed 5.0.0 soft"},
		{"opensmtpd-001", "dsn unknown.1@shop.example: unknown@remote.example failed 5.1.1 hard"},
		{"opensmtpd-002", "dsn full.1@shop.example: full@remote.example failed 5.2.2 soft"},
		{"opensmtpd-003", "dsn plain.1@shop.example: plain@remote.example failed 5.0.0 hard"},
		{"opensmtpd-004", "dsn policy.1@shop.example: policy@remote.example failed 5.7.1 policy"},
		{"opensmtpd-005", "dsn later.1@shop.example: later@remote.example delayed 4.3.0 soft"},
		{"opensmtpd-006", "dsn dot.1@shop.example: dot@remote.example failed 5.1.1 hard"},
		{"opensmtpd-007", "dsn dotspam.1@shop.example: dotspam@remote.example failed 5.7.1 policy"},
		{"opensmtpd-008", "dsn multi.1@shop.example: multi@remote.example failed 5.1.1 hard"},
		{"opensmtpd-009", "dsn disabled.1@shop.example: disabled@remote.example failed 5.2.1 hard"},
		{"opensmtpd-010", "dsn later.1@shop.example: later@remote.example failed 4.4.7 soft"},
		{"opensmtpd-011", "dsn unknown.1@shop.example: unknown@opensmtpd.example failed 5.3.0 hard"},
		{"opensmtpd-012", "dsn full.1@shop.example: full@opensmtpd.example failed 5.3.0 soft"},
		{"opensmtpd-013", "dsn later.1@shop.example: later@opensmtpd.example failed 5.4.7 soft"}
	};
	static KlmReport report;

	for (int i = 0; i < lengthof(reports); i++)
	{
		Size		length;
		char	   *raw = file(psprintf("test/fixtures/bounces/%s.eml", reports[i].name), &length);
		char	   *text = pnstrdup(raw, length);

		expect(reports[i].name, raw, length, reports[i].expected);
		text = with_ends(text, "\r\n");
		expect("... with CRLF", text, strlen(text), reports[i].expected);
		text = with_ends(pnstrdup(raw, length), "\r");
		expect("... with CR", text, strlen(text), reports[i].expected);
		klm_read_bounce(raw, length, &report);
		check(report.token_count == 1 && strcmp(report.tokens[0], "abc.1.q") == 0,
			  "the return path's token", reports[i].name);
	}
}

#define FROM_MAILER "From: MAILER-DAEMON@mx.example\nSubject: failure notice\n\n"
#define REPORT(type) "Content-Type: multipart/report; report-type=" type "; boundary=\"b\"\n\n"
#define STATUS "--b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; mx.example\n\n"
#define ORIGINAL "\n--b\nContent-Type: message/rfc822\n\nMessage-ID: <i@shop.example>\n\nx\n--b--\n"

static void
test_manners(void)
{
	static const struct
	{
		const char *name;
		const char *raw;
		const char *expected;
	}			mails[] = {
		/* for people's eyes */
		{"qmail", FROM_MAILER "Hi. This is the qmail-send program at mx.example.\n"
			"I'm afraid I wasn't able to deliver your message to the following addresses.\n"
			"This is a permanent error; I've given up. Sorry it didn't work out.\n\n"
			"<bob@example.com>:\n192.0.2.1 does not like recipient.\n"
			"Remote host said: 550 5.1.1 No such user\nGiving up on 192.0.2.1.\n\n"
			"<ana@example.com>:\n192.0.2.1 failed after I sent the message.\n"
			"Remote host said: 554 5.7.1 spam\n\n"
			"--- Below this line is a copy of the message.\n\n"
			"Return-Path: <shop@shop.example>\nMessage-ID: <i@shop.example>\n"
			"To: eve@example.com\n\n<eve@example.com>:\n550 no\n",
			"text i@shop.example: bob@example.com failed 5.1.1 hard; "
			"ana@example.com failed 5.7.1 policy"},
		{"a header names them", "X-Failed-Recipients: bob@example.com,\n  ana@example.com\n"
			"Subject: Mail delivery failed\n\nA message that you sent could not be delivered.\n"
			"550 5.2.2 mailbox full\n",
			"text -: bob@example.com failed 5.2.2 soft; ana@example.com failed 5.2.2 soft"},
		{"indented, and the words further below", FROM_MAILER
			"Delivery to the following recipient failed permanently:\n\n     bob@example.com\n\n"
			"Technical details of permanent failure:\nThe error that the other server returned was:\n"
			"550 5.1.1 The account that you tried to reach does not exist.\n\n"
			"----- Original message -----\nX-Received: by x\nMessage-ID: <i@shop.example>\n",
			"text i@shop.example: bob@example.com failed 5.1.1 hard"},
		{"a warning", FROM_MAILER "Delivery of your message has been delayed.\n\nbob@example.com: "
			"451 4.4.1 connection refused\n\nThe server will retry.\n",
			"text -: bob@example.com delayed 4.4.1 soft"},
		{"a warning in its subject", "From: postmaster@mx.example\nSubject: Warning: message delayed\n\n"
			"  bob@example.com\n    451 4.4.1 connection refused\n",
			"text -: bob@example.com delayed 4.4.1 soft"},
		{"a sentence with a number", FROM_MAILER "Could not be delivered, for 587 reasons:\n\n"
			"bob@example.com:\nport 25 is closed\n", "text -: bob@example.com failed - soft"},

		{"a label before it", FROM_MAILER "Could not deliver message to the following recipient(s):\n\n"
			"Failed Recipient: bob@example.com\nReason: Remote host said: 550 5.1.1 The email account "
			"that you tried to reach does not exist.\n\n   -- The header of the message: --\n\n"
			"Message-ID: <i@shop.example>\n",
			"text -: bob@example.com failed 5.1.1 hard"},

		/* fields */
		{"the reply in another field", REPORT("delivery-status") STATUS
			"Final-recipient: RFC822; bob@example.com\nAction: failed\nStatus: 5.0.0\n"
			"X-Supplementary-Info: <192.0.2.1 #5.0.0 smtp; 550 \"Unknown User\">\n" ORIGINAL,
			"dsn i@shop.example: bob@example.com failed 5.0.0 hard"},
		{"the Message-ID in another field", REPORT("delivery-status") "--b\n"
			"Content-Type: message/delivery-status\n\nReporting-MTA: dns; mx.example\n"
			"X-Original-Message-ID: <i@shop.example>\n\nFinal-Recipient: rfc822; bob@example.com\n"
			"Action: failed\nStatus: 5.1.1\n\n--b--\n",
			"dsn i@shop.example: bob@example.com failed 5.1.1 hard"},
		{"Original-Recipient alone", REPORT("delivery-status") STATUS
			"Original-Recipient: rfc822;bob@example.com\nAction: failed\nStatus: 5.1.1\n" ORIGINAL,
			"dsn i@shop.example: bob@example.com failed 5.1.1 hard"},
		{"forwarded", REPORT("delivery-status") STATUS
			"Original-Recipient: rfc822;Bob@Example.com\nFinal-Recipient: RFC822; x@there.example\n"
			"Action: failed\nStatus: 5.2.2\n" ORIGINAL,
			"dsn i@shop.example: x@there.example=Bob@example.com failed 5.2.2 soft"},
		{"other types of an address", REPORT("delivery-status") STATUS
			"Final-Recipient: utf-8; <b\xc3\xb6" "b@example.com>\nAction: FAILED (x)\nStatus: 5.1.1\n"
			"\nFinal-Recipient: bob@example.com\nAction: failed\nStatus: 5.1.1\n" ORIGINAL,
			"dsn i@shop.example: b\xc3\xb6" "b@example.com failed 5.1.1 hard; "
			"bob@example.com failed 5.1.1 hard"},
		{"without action, without status", REPORT("delivery-status") STATUS
			"Final-Recipient: rfc822; a@example.com\nStatus: 4.4.1\n\n"
			"Final-Recipient: rfc822; b@example.com\nDiagnostic-Code: smtp; 550 5.1.1 no\n\n"
			"Final-Recipient: rfc822; c@example.com\nStatus: 2.1.5\n" ORIGINAL,
			"dsn i@shop.example: a@example.com delayed 4.4.1 soft; b@example.com failed 5.1.1 hard; "
			"c@example.com delivered 2.1.5 -"},
		{"a limit of a stranger's account", REPORT("delivery-status") STATUS
			"Final-Recipient: rfc822; a@example.com\nAction: failed\n"
			"Diagnostic-Code: smtp; 550 5.4.5 Daily sending limit exceeded\n" ORIGINAL,
			"dsn i@shop.example: a@example.com failed 5.4.5 soft"},
		{"encoded", REPORT("delivery-status") "--b\nContent-Type: message/delivery-status\n"
			"Content-Transfer-Encoding: quoted-printable\n\nFinal-Recipient: rfc822; a=\n@example.com=0A"
			"Action: failed=0AStatus: 5.1.1\n" ORIGINAL,
			"dsn i@shop.example: a@example.com failed 5.1.1 hard"},
		{"no closing boundary", REPORT("delivery-status") STATUS
			"Final-Recipient: rfc822; a@example.com\nAction: failed\nStatus: 5.1.1\n",
			"dsn -: a@example.com failed 5.1.1 hard"},
		{"folded fields", REPORT("delivery-status") STATUS
			"Final-Recipient:\n rfc822;\n\ta@example.com\nAction:\n failed\nStatus:\n 5.1.1\n" ORIGINAL,
			"dsn i@shop.example: a@example.com failed 5.1.1 hard"},
		{"what it answers", "In-Reply-To: <j@shop.example>\n" REPORT("delivery-status") STATUS
			"Final-Recipient: rfc822; a@example.com\nAction: failed\nStatus: 5.1.1\n--b--\n",
			"dsn j@shop.example: a@example.com failed 5.1.1 hard"},

		/* complaints */
		{"a complaint", REPORT("feedback-report") "--b\nContent-Type: message/feedback-report\n\n"
			"Feedback-Type: abuse\nOriginal-Rcpt-To: a@example.com\nOriginal-Rcpt-To: b@example.com\n"
			ORIGINAL, "arf i@shop.example: a@example.com complained - complaint; "
			"b@example.com complained - complaint"},
		{"an opt-out of somebody", REPORT("feedback-report") "--b\n"
			"Content-Type: message/feedback-report\n\nFeedback-Type: opt-out\n" ORIGINAL,
			"arf i@shop.example: - complained - complaint"},
		{"taken back", REPORT("feedback-report") "--b\nContent-Type: message/feedback-report\n\n"
			"Feedback-Type: not-spam\nOriginal-Rcpt-To: a@example.com\n" ORIGINAL,
			"arf i@shop.example"},

		/* no reports */
		{"vacation", "Subject: Out of office: your receipt\nIn-Reply-To: <i@shop.example>\n\n"
			"bob@example.com: 550 5.1.1 is what I am\n", "autoreply i@shop.example"},
		{"vacation of a program", "Auto-Submitted: auto-replied\nFrom: bob@example.com\n\nAway.\n",
			"autoreply -"},
		{"vacation from the null path", "Return-Path: <>\nAuto-Submitted: auto-generated\n"
			"From: Bob <bob@example.com>\nSubject: Automatic reply: Receipt\n"
			"In-Reply-To: <i@shop.example>\n\nI shall have returned on Monday; I may not reach your "
			"mail before.\n\nBob Builder\nbob@example.com\n", "autoreply i@shop.example"},
		{"a receipt", REPORT("disposition-notification") "--b\n\nread\n--b\n"
			"Content-Type: message/disposition-notification\n\nFinal-Recipient: rfc822; a@example.com\n"
			"Disposition: manual-action/MDN-sent-manually; displayed\n--b--\n", "autoreply -"},
		{"a human", "From: bob@example.com\nSubject: Re: receipt\n\nCould not be delivered:\n\n"
			"<bob@example.com>:\n550 5.1.1 no\n", "none -"},
		{"a report that somebody forwards", "From: bob@example.com\n"
			"Content-Type: multipart/mixed; boundary=c\n\n--c\n\nLook at this.\n--c\n"
			"Content-Type: message/rfc822\n\n" REPORT("delivery-status") STATUS
			"Final-Recipient: rfc822; a@example.com\nAction: failed\nStatus: 5.1.1\n" ORIGINAL "--c--\n",
			"none -"},
		{"parts of a report in a human's mail", "From: bob@example.com\n"
			"Content-Type: multipart/mixed; boundary=b\n\n" STATUS
			"Final-Recipient: rfc822; a@example.com\nAction: failed\nStatus: 5.1.1\n" ORIGINAL,
			"none -"},
		{"an empty boundary", "Content-Type: multipart/report; boundary=\"\"\n\n--\n" STATUS
			"Final-Recipient: rfc822; a@example.com\nAction: failed\nStatus: 5.1.1\n", "none -"},
		{"no fields", REPORT("delivery-status") "--b\nContent-Type: message/delivery-status\n\n\n\n--b--\n",
			"none -"},
		{"a delivered one", REPORT("delivery-status") STATUS
			"Final-Recipient: rfc822; a@example.com\nAction: relayed\nStatus: 2.0.0\n" ORIGINAL,
			"dsn i@shop.example: a@example.com relayed 2.0.0 -"}
	};

	for (int i = 0; i < lengthof(mails); i++)
		expect(mails[i].name, mails[i].raw, strlen(mails[i].raw), mails[i].expected);
}

/* The worst that fits into what is looked at, within a second or so. */
static void
test_bounds(void)
{
	StringInfoData raw;
	static KlmReport report;

	initStringInfo(&raw);
	for (int i = 0; i < 1000; i++)
		appendStringInfo(&raw, "Content-Type: multipart/report; boundary=b%d\n\n--b%d\n", i, i);
	expect("1,000 levels", raw.data, raw.len, "none -");

	resetStringInfo(&raw);
	appendStringInfoString(&raw, REPORT("delivery-status") STATUS);
	for (int i = 0; i < 20000; i++)
		appendStringInfo(&raw, "Final-Recipient: rfc822; a%d@example.com\nAction: failed\n\n", i);
	klm_read_bounce(raw.data, raw.len, &report);
	check(report.count == KLM_REPORTED_MAX, "20,000 recipients", "");

	resetStringInfo(&raw);
	appendStringInfoString(&raw, REPORT("delivery-status") STATUS
						   "Final-Recipient: rfc822; a@example.com\nAction: failed\nDiagnostic-Code: smtp; 550 ");
	while (raw.len < 3 * 1024 * 1024)
		appendStringInfoString(&raw, "\x1b[1m<script>\xe2\x80\xae");
	klm_read_bounce(raw.data, raw.len, &report);
	check(report.count == 1 && strlen(report.recipients[0].diagnostic) <= KLM_REPLY_MAX &&
		  strchr(report.recipients[0].diagnostic, '\x1b') == NULL &&
		  strstr(report.recipients[0].diagnostic, "\xe2\x80\xae") == NULL, "3 MB of words", "");

	resetStringInfo(&raw);
	appendStringInfoString(&raw, FROM_MAILER "undeliverable\n");
	while (raw.len < 2 * 1024 * 1024)
		appendStringInfoString(&raw, "a@b.example\n");
	klm_read_bounce(raw.data, raw.len, &report);
	check(report.count == KLM_REPORTED_MAX, "2 MB of addresses", "");

	resetStringInfo(&raw);
	appendStringInfoString(&raw, FROM_MAILER "undeliverable\n");
	while (raw.len < 2 * 1024 * 1024)
		appendStringInfoString(&raw, "original message ");
	expect("2 MB of one line", raw.data, raw.len, "none -");

	resetStringInfo(&raw);
	appendStringInfoString(&raw, "Content-Type: multipart/report; boundary=b\n\n");
	while (raw.len < 2 * 1024 * 1024)
		appendStringInfoString(&raw, "--b\n");
	expect("2 MB of boundaries", raw.data, raw.len, "none -");

	expect("nothing", "", 0, "none -");
	expect("a NUL", "\0", 1, "none -");
	expect("three bytes", "\r\n\0", 3, "none -");

	/* Any bytes at all. */
	for (int i = 0; i < 2000; i++)
	{
		char		bytes[400];
		Size		length = any(sizeof(bytes));

		for (Size j = 0; j < length; j++)
			bytes[j] = (char) any(256);
		klm_read_bounce(bytes, length, &report);
		check(report.count == 0, "random bytes", "");
	}
}

int
main(void)
{
	test_servers();
	test_manners();
	test_bounds();
	printf("%d passed, %d failed\n", passed, failed);
	return failed > 0;
}
