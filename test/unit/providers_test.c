/*-------------------------------------------------------------------------
 *
 * providers_test.c
 *		Unit tests of src/smtp/providers.c: the mistakes that people make with each
 *		preset, and what the hint tells them.
 *
 * Build (libpgcommon and libpgport are PostgreSQL's frontend libraries):
 *	cc -Isrc -I$(pg_config --includedir-server) -o providers_test
 *		test/unit/providers_test.c src/base/error.c src/base/text.c src/smtp/providers.c
 *		-L$(pg_config --pkglibdir) -L$(pg_config --libdir) -lpgcommon -lpgport
 * Ends with "N passed, N failed".
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "smtp/providers.h"

void
ExceptionalCondition(const char *condition,
#if PG_VERSION_NUM < 160000
					 const char *type,
#endif
					 const char *file, int line)
{
	fprintf(stderr, "assertion failed: %s, %s:%d\n", condition, file, line);
	abort();
}

static int	passed;
static int	failed;

static void
check(bool ok, const char *what, const char *detail)
{
	if (ok)
		passed++;
	else
	{
		failed++;
		printf("not ok: %s (%s)\n", what, detail ? detail : "null");
	}
}

/* argument NULL: it is taken; else hint must occur in the hint. */
typedef struct Case
{
	const char *provider;
	const char *host;
	int			port;
	const char *encryption;
	const char *username;
	const char *password;
	bool		oauth2;
	const char *argument;
	const char *hint;
} Case;

static const Case cases[] = {
	{"gmail", "smtp.gmail.com", 465, "tls", "a@gmail.com", "abcdefghijklmnop", false, NULL, NULL},
	{"gmail", "smtp.gmail.com", 587, "starttls", "a@gmail.com", NULL, false, NULL, NULL},
	{"gmail", "localhost", 2599, "starttls", "a@gmail.com", "abcdefghijklmnop", false, NULL, NULL},
	{"gmail", "smtp.gmail.com", 465, "tls", "a@gmail.com", "ya29.a-long-access-token", true, NULL, NULL},
	{"gmail", "smtp.gmail.com", 465, "tls", "a@gmail.com", "my login password", false, "password", "App passwords"},
	{"gmail", "smtp.gmail.com", 465, "tls", "a@gmail.com", "abcd-efgh-ijkl-m", false, "password", "App passwords"},
	{"gmail", "smtp.gmail.com", 465, "tls", "a", "abcdefghijklmnop", false, "username", "full mail address"},
	{"gmail", "smtp.gmail.com", 465, "starttls", "a@gmail.com", "abcdefghijklmnop", false, "encryption", "tls"},
	{"gmail", "smtp.gmail.com", 587, "tls", "a@gmail.com", "abcdefghijklmnop", false, "encryption", "starttls"},
	{"sendgrid", "smtp.sendgrid.net", 465, "tls", "apikey", "SG.abc", false, NULL, NULL},
	{"sendgrid", "smtp.sendgrid.net", 465, "tls", "a@example.com", "SG.abc", false, "username", "apikey"},
	{"sendgrid", "smtp.sendgrid.net", 465, "tls", "apikey", "my password", false, "password", "API Keys"},
	{"sendgrid", "smtp.sendgrid.net", 465, "tls", "apikey", "SG.abc", true, "auth", "password"},
	{"mailgun", "smtp.mailgun.org", 465, "tls", "postmaster@mg.example.com", "secret", false, NULL, NULL},
	{"mailgun", "smtp.mailgun.org", 465, "tls", "postmaster", "secret", false, "username", "postmaster@"},
	{"mailgun", "smtp.mailgun.org", 465, "tls", "postmaster@mg.example.com", "key-0123", false, "password", "not an API key"},
	{"ses", "email-smtp.us-east-1.amazonaws.com", 465, "tls", "AKIAIOSFODNN7EXAMPLE",
	"BIG4567890123456789012345678901234567890ABC=", false, NULL, NULL},
	{"ses", "email-smtp.us-east-1.amazonaws.com", 2587, "starttls", "AKIAIOSFODNN7EXAMPLE", NULL, false, NULL, NULL},
	{"ses", "email-smtp.us-east-1.amazonaws.com", 465, "tls", "AKIAIOSFODNN7EXAMPLE",
	"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", false, "password", "Create SMTP credentials"},
	{"ses", "email-smtp.us-east-1.amazonaws.com", 465, "tls", "me@example.com", "secret", false, "username", "AKIA"},
	{"postmark", "smtp.postmarkapp.com", 587, "starttls", "token", "token", false, NULL, NULL},
	{"postmark", "smtp.postmarkapp.com", 465, "tls", "token", "token", false, "port", "587"},
	{"postmark", "smtp.postmarkapp.com", 587, "tls", "token", "token", false, "encryption", "starttls"},
	{"sakura", "example.sakura.ne.jp", 587, "starttls", "info@example.com", "secret", false, NULL, NULL},
	{"sakura", "smtp.example.com", 587, "starttls", "info@example.com", "secret", false, "host", "初期ドメイン"},
	{"sakura", "sakura.ne.jp.example.com", 587, "starttls", "info@example.com", "secret", false, "host", "初期ドメイン"},
	{"sakura", "example.sakura.ne.jp", 587, "starttls", "info", "secret", false, "username", "メール一覧"},
	{"onamae", "mail65.onamae.ne.jp", 465, "tls", "info@example.com", "secret", false, NULL, NULL},
	{"onamae", "MAIL65.ONAMAE.NE.JP", 587, "starttls", "info@example.com", "secret", false, NULL, NULL},
	{"onamae", "smtp.example.com", 465, "tls", "info@example.com", "secret", false, "host", "certificate"},
	{"resend", "smtp.resend.com", 2465, "tls", "resend", "re_abc", false, NULL, NULL},
	{"resend", "smtp.resend.com", 465, "tls", "me@example.com", "re_abc", false, "username", "resend"},
	{"resend", "smtp.resend.com", 465, "tls", "resend", "abc", false, "password", "API Keys"},
};

static void
test_checks(void)
{
	for (int i = 0; i < lengthof(cases); i++)
	{
		const Case *c = &cases[i];
		const char *argument;
		KlmError	error = {0};
		bool		taken = klm_provider_check(klm_find_provider(c->provider), c->host, c->port, c->encryption,
											   c->username, c->password, c->oauth2, &argument, &error);
		char	   *what = psprintf("case %d, %s", i, c->provider);

		check(taken == (c->argument == NULL), what, error.message);
		if (taken || c->argument == NULL)
			continue;
		check(strcmp(argument, c->argument) == 0, what, argument);
		check(error.hint && strstr(error.hint, c->hint), what, error.hint);
		check(error.sqlstate == ERRCODE_INVALID_PARAMETER_VALUE, what, NULL);
		check(c->password == NULL || strstr(error.message, c->password) == NULL, "no password in a message",
			  error.message);
	}
}

static void
test_host(const char *provider, const char *region, bool good, const char *wanted)
{
	char	   *host;
	KlmError	error = {0};
	char	   *what = psprintf("host of %s, region %s", provider, region ? region : "null");

	check(klm_provider_host(klm_find_provider(provider), region, &host, &error) == good, what, error.message);
	check(wanted ? host != NULL && strcmp(host, wanted) == 0 : host == NULL, what, host);
	if (!good)
		check(error.message && error.hint, what, NULL);
}

static void
test_tidy(const char *provider, const char *given, const char *wanted)
{
	char		password[64] = {0};
	Size		length = strlen(given);

	memcpy(password, given, length);
	length = klm_provider_tidy_password(klm_find_provider(provider), password, length);
	check(strcmp(password, wanted) == 0 && length == strlen(wanted), "tidy", password);
	for (Size i = length; i < sizeof(password); i++)
		check(password[i] == '\0', "the rest is wiped", password);
}

static void
test_headers(const char *provider, const char *host, int count, const char *name, const char *value)
{
	KlmHeader	headers[KLM_PROVIDER_HEADERS_MAX];
	int			got = klm_provider_headers(klm_find_provider(provider), host, "abc@example.com", 42, headers);

	check(got == count, "how many headers", provider);
	check(count == 0 || (got > 0 && strcmp(headers[0].name, name) == 0 && strcmp(headers[0].value, value) == 0),
		  "header", got > 0 ? headers[0].value : NULL);
}

/* What people write, and whose it is; '' where it is no provider's. */
static const char *const written[][2] = {
	{"Gmail", "gmail"}, {"G Suite", "gmail"}, {"gsuite", "gmail"}, {"Google Workspace", "gmail"},
	{"Amazon SES", "ses"}, {"AWS SES", "ses"}, {"aws-ses", "ses"}, {"SendGrid", "sendgrid"}, {"Send Grid", "sendgrid"},
	{"Mailgun", "mailgun"}, {"PostMark", "postmark"}, {"Resend", "resend"}, {"さくら", "sakura"},
	{"さくらインターネット", "sakura"}, {"さくらのメールボックス", "sakura"}, {"お名前", "onamae"}, {"お名前.com", "onamae"},
	{"お名前メール", "onamae"}, {"Onamae.com", "onamae"}, {"エックスサーバー", ""}, {"xserver", ""}, {"さ", ""}, {"", ""}, {" ", ""},
	{"a very long name that is no provider's, and would not fit into any buffer", ""},
};

static void
test_table(void)
{
	for (int i = 0; i < klm_provider_count; i++)
	{
		const KlmProvider *p = &klm_providers[i];
		const char *argument;
		KlmError	error = {0};

		check(klm_find_provider(p->name) == p, "found by its name", p->name);
		check(p->title && p->required[0] && p->example && p->username_hint && p->password_hint && p->sender_hint &&
			  p->unproven && p->notes && p->docs_url, "complete", p->name);
		check(p->host || p->host_hint, "a host or how to get one", p->name);
		/* The preset passes its own check. */
		check(klm_provider_check(p, p->host ? p->host : strcmp(p->name, "sakura") == 0 ? "x.sakura.ne.jp" :
								 "mail1.onamae.ne.jp", p->port, p->encryption, NULL, NULL, false, &argument, &error),
			  "passes its own check", error.message);
	}
	check(strcmp(klm_provider_names(), "gmail, sendgrid, mailgun, ses, postmark, sakura, onamae, resend") == 0,
		  "names", klm_provider_names());
	check(klm_find_provider("nobody") == NULL && klm_find_provider(NULL) == NULL, "unknown", NULL);
	for (int i = 0; i < lengthof(written); i++)
		check(strcmp(klm_find_provider(written[i][0]) ? klm_find_provider(written[i][0])->name : "", written[i][1]) == 0,
			  "found as people write it", written[i][0]);
}

int
main(void)
{
	test_table();
	test_checks();

	test_host("gmail", NULL, true, "smtp.gmail.com");
	test_host("mailgun", NULL, true, "smtp.mailgun.org");
	test_host("mailgun", "us", true, "smtp.mailgun.org");
	test_host("mailgun", "eu", true, "smtp.eu.mailgun.org");
	test_host("mailgun", "asia", false, NULL);
	test_host("mailgun", "u", false, NULL);
	test_host("mailgun", "us eu", false, NULL);
	test_host("ses", NULL, false, NULL);
	test_host("ses", "ap-northeast-1", true, "email-smtp.ap-northeast-1.amazonaws.com");
	test_host("ses", "us-gov-west-1", true, "email-smtp.us-gov-west-1.amazonaws.com");
	test_host("ses", "evil.example.com/", false, NULL);
	test_host("ses", "Tokyo", false, NULL);
	test_host("sakura", NULL, true, NULL);
	test_host("onamae", NULL, true, NULL);

	test_tidy("gmail", "abcd efgh ijkl mnop", "abcdefghijklmnop");
	test_tidy("gmail", " abcd\xc2\xa0" "efgh\n", "abcdefgh");
	test_tidy("sendgrid", "\r\n SG.a b \r\n", "SG.a b");
	test_tidy("sendgrid", "  \n", "");
	test_tidy("sakura", " a b ", " a b ");
	test_tidy("unknown", " a ", " a ");

	test_headers("postmark", "smtp.postmarkapp.com", 2, "X-PM-Message-Stream", "outbound");
	test_headers("postmark", "smtp-broadcasts.postmarkapp.com", 2, "X-PM-Message-Stream", "broadcast");
	test_headers("resend", "smtp.resend.com", 1, "Resend-Idempotency-Key", "42/abc@example.com");
	test_headers("sendgrid", "smtp.sendgrid.net", 1, "X-SMTPAPI", "{\"unique_args\":{\"kliv_mail\":\"42\"}}");
	test_headers("mailgun", "smtp.mailgun.org", 1, "X-Mailgun-Variables", "{\"kliv_mail\":\"42\"}");
	test_headers("ses", "x", 0, NULL, NULL);
	test_headers(NULL, "x", 0, NULL, NULL);

	printf("%d passed, %d failed\n", passed, failed);
	return failed > 0;
}
