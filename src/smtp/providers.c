/*-------------------------------------------------------------------------
 *
 * providers.c
 *		The presets: what each provider wants, and what people get wrong.
 *
 * NOTES
 *		A check stands here only where the provider documents the rule, since
 *		it refuses what a caller says; what is hearsay is a note.
 *
 * Layer: pure (palloc only).  In kliv_mail_net.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "lib/stringinfo.h"

#include "base/error.h"
#include "smtp/providers.h"

#define INVALID ERRCODE_INVALID_PARAMETER_VALUE

/* The Makefile reads the names here, for the comments of configure_smtp() and test_smtp(). */
const KlmProvider klm_providers[] = {
	{
		.name = "gmail",
		.title = "Gmail and Google Workspace",
		.aliases = "google googlemail gmailcom googlecom googleworkspace workspace gsuite googleapps Gメ"
		"ール Ｇメール",
		.host = "smtp.gmail.com",
		.port = 465,
		.encryption = "tls",
		.tls_ports = "465",
		.starttls_ports = "587",
		.username_is_address = true,
		.oauth2 = true,
		.password_form = KLM_PASSWORD_NO_SPACES,
		.required = {"username", "password"},
		.example = "SELECT * FROM kliv_mail.configure_smtp(provider => 'gmail', username => "
		"'you@gmail.com', password => 'abcd efgh ijkl mnop');",
		.username_hint = "Your full mail address.",
		.password_hint = "Use an app password (16 letters): Google Account > Security > 2-Step "
		"Verification > App passwords. The password that you log in with does not work. Or auth "
		"=> 'oauth2' with an access token.",
		.sender_hint = "Send from the account's own address, or add the other one in Gmail: "
		"Settings > Accounts > Send mail as.",
		.unproven = "Gmail takes any sender here and later puts the account's own address into "
		"From, unless the other one is a verified alias.",
		.notes = "About 500 recipients a day for a personal account, 2,000 for Google Workspace, "
		"counted over the last 24 hours. Bounces arrive as mail in the mailbox only. The "
		"Workspace relay is another server: host => 'smtp-relay.gmail.com'.",
		.notes_ja = "1 日に送れるのは、個人アカウントで約 500 宛先、Google Workspace で 2,000 宛先です（"
		"直近 24 時間で数えます）。パスワードには 16 文字のアプリ パスワードが必要です（Googl"
		"e アカウント > セキュリティ > 2 段階認証プロセス > アプリ パスワード）。不達の知らせ"
		"はメールボックスに届くメールだけです。Workspace の SMTP リレーは別のサーバーです: ho"
		"st => 'smtp-relay.gmail.com'。",
		.docs_url = "https://support.google.com/a/answer/176600",
		.rolling_limit = 2000,
		.personal_rolling_limit = 500,
		.personal_domains = "gmail.com googlemail.com",
	},
	{
		.name = "sendgrid",
		.title = "Twilio SendGrid",
		.aliases = "twiliosendgrid twilio sendgridcom",
		.host = "smtp.sendgrid.net",
		.port = 465,
		.encryption = "tls",
		.tls_ports = "465",
		.starttls_ports = "587 2525 25",
		.username = "apikey",
		.password_form = KLM_PASSWORD_TRIM,
		.required = {"password", "from_address"},
		.example = "SELECT * FROM kliv_mail.configure_smtp(provider => 'sendgrid', password => "
		"'SG.your-api-key', from_address => 'noreply@example.com');",
		.username_hint = "Leave it out: it is the word apikey for everybody.",
		.password_hint = "Use an API key that SendGrid still lists (SG....): SendGrid > Settings > API Keys "
		"> Create API Key, with the permission Mail Send.",
		.sender_hint = "Verify the address or its domain in SendGrid: Settings > Sender "
		"Authentication.",
		.unproven = "SendGrid looks at the sender address only when the whole message has been "
		"sent.",
		.notes = "A used-up plan shows as a failed login (451 Maximum credits exceeded): the "
		"account is held until SendGrid's next day. What SendGrid has accepted it retries itself "
		"for 72 hours.",
		.notes_ja = "プランの上限に達すると、ログインの失敗（451 Maximum credits exceeded）として現れます"
		"。アカウントは SendGrid の翌日まで保留されます。SendGrid がいったん受け付けたメール"
		"は、SendGrid が 72 時間まで再送します。差出人は Settings > Sender Authentication で"
		"認証してください。",
		.docs_url = "https://www.twilio.com/docs/sendgrid/for-developers/sending-email/integrating-with-the-smtp-api",
		.messages_per_connection = 5000,
	},
	{
		.name = "mailgun",
		.title = "Mailgun",
		.aliases = "mailgunorg mailguncom",
		.host = "smtp.mailgun.org",
		.default_region = "us",
		.regions = "us eu",
		.port = 465,
		.encryption = "tls",
		.tls_ports = "465",
		.starttls_ports = "587 2525 25",
		.username_is_address = true,
		.password_form = KLM_PASSWORD_TRIM,
		.required = {"username", "password"},
		.example = "SELECT * FROM kliv_mail.configure_smtp(provider => 'mailgun', username => "
		"'postmaster@mg.example.com', password => 'smtp-password', region => 'us');",
		.username_hint = "A full SMTP login such as postmaster@mg.example.com: Mailgun > Sending "
		"> Domain settings > SMTP credentials.",
		.password_hint = "Use the password of that SMTP login (Mailgun > Sending > Domain "
		"settings > SMTP credentials > Reset password), not an API key.",
		.sender_hint = "Verify the domain in Mailgun (Sending > Domains); a sandbox domain sends "
		"only to its authorized recipients.",
		.unproven = "Mailgun does not say here whether the domain is verified, or a sandbox that "
		"sends to authorized recipients only.",
		.notes = "Accounts of the EU and of the US do not see each other: region => 'eu' for a "
		"domain that was made in the EU. Limits depend on the plan.",
		.notes_ja = "EU と米国のアカウントは互いに見えません。EU で作ったドメインには region => 'eu' を指"
		"定します。パスワードは API キーではなく、SMTP ログインのものです。上限はプランにより"
		"ます。",
		.docs_url = "https://documentation.mailgun.com/docs/mailgun/user-manual/sending-messages/send-smtp",
	},
	{
		.name = "ses",
		.title = "Amazon SES",
		.aliases = "amazonses awsses amazon aws amazonsimpleemailservice simpleemailservice amazonaws",
		.host = "email-smtp.<region>.amazonaws.com",
		.port = 465,
		.encryption = "tls",
		.tls_ports = "465 2465",
		.starttls_ports = "587 2587 25",
		.password_form = KLM_PASSWORD_TRIM,
		.required = {"region", "username", "password", "from_address"},
		.example = "SELECT * FROM kliv_mail.configure_smtp(provider => 'ses', region => "
		"'ap-northeast-1', username => 'AKIA...', password => 'the SMTP password', from_address "
		"=> 'noreply@example.com');",
		.username_hint = "The SMTP user name, 20 characters that begin with AKIA: Amazon SES > "
		"SMTP settings > Create SMTP credentials.",
		.password_hint = "Use the SMTP password of this region (44 characters): Amazon SES > SMTP "
		"settings > Create SMTP credentials. The secret access key of an IAM user (40 characters) "
		"is another thing.",
		.sender_hint = "Verify the address or its domain in this region: Amazon SES > Identities. "
		"In the sandbox the recipients must be verified too; Amazon SES > Account dashboard > "
		"Request production access.",
		.unproven = "SES looks at the sender, and in the sandbox at the recipients, only when the "
		"whole message has been sent.",
		.notes = "Quotas count recipients and are per region; a new account is in the sandbox: "
		"200 a day, one a second, verified recipients only. Credentials belong to one region. On "
		"EC2 use port 587 or 465, not 25.",
		.notes_ja = "上限はリージョンごと、宛先の数で数えます。新しいアカウントはサンドボックスにあり、1 "
		"日 200 通、毎秒 1 通、検証済みの宛先にしか送れません。SMTP 認証情報は 1 つのリージョ"
		"ンでのみ有効で、IAM のシークレットアクセスキーとは別のものです。EC2 からはポート 25 "
		"ではなく 587 か 465 を使ってください。",
		.docs_url = "https://docs.aws.amazon.com/ses/latest/dg/smtp-credentials.html",
		.rolling_limit = KLM_AS_DAILY_LIMIT,
		.free_daily = 200,
	},
	{
		.name = "postmark",
		.title = "Postmark",
		.aliases = "postmarkapp postmarkappcom",
		.host = "smtp.postmarkapp.com",
		.port = 587,
		.encryption = "starttls",
		.starttls_ports = "587 2525 25",
		.username_is_password = true,
		.username_secret = true,
		.password_form = KLM_PASSWORD_TRIM,
		.required = {"password", "from_address"},
		.example = "SELECT * FROM kliv_mail.configure_smtp(provider => 'postmark', password => "
		"'server-api-token', from_address => 'noreply@example.com');",
		.username_hint = "Leave it out: the Server API token serves as both. Give it only with an "
		"SMTP token: its access key, with the secret key as the password.",
		.password_hint = "Use the Server API token: Postmark > your server > API Tokens.",
		.sender_hint = "Add the address or its domain in Postmark: Sender Signatures.",
		.unproven = "Postmark accepts first and may refuse later, when the sender signature is "
		"missing or the account is not approved yet (then it sends to your own domain only).",
		.notes = "STARTTLS only; port 465 does not answer. Mail goes to the stream 'outbound'; "
		"marketing wants an account of its own with host => 'smtp-broadcasts.postmarkapp.com', "
		"which uses the stream 'broadcast'. The user name is a secret and is kept like a password.",
		.notes_ja = "STARTTLS だけに対応しています。ポート 465 は応答しません。メールは 'outbound' ストリ"
		"ームに送られます。マーケティングメールには host => 'smtp-broadcasts.postmarkapp.com'"
		" の別アカウントを使います（'broadcast' ストリーム）。ユーザー名も秘密なので、パスワ"
		"ードと同じように暗号化して保存します。",
		.docs_url = "https://postmarkapp.com/support/article/811-what-are-the-smtp-details-api-tokens-i-should-be-using",
	},
	{
		.name = "sakura",
		.title = "さくらのメールボックス / さくらのレンタルサーバ (Sakura)",
		.aliases = "さくら さくらインターネット さくらのメールボックス さくらメールボックス さくらのレン"
		"タルサーバ さくらのレンタルサーバー さくらサーバー sakurainternet sakuramail sakuran"
		"ejp sakuraadjp",
		.port = 587,
		.encryption = "starttls",
		.tls_ports = "465",
		.starttls_ports = "587",
		.username_is_address = true,
		.required = {"host", "username", "password"},
		.example = "SELECT * FROM kliv_mail.configure_smtp(provider => 'sakura', host => "
		"'example.sakura.ne.jp', username => 'info@example.com', password => 'mailbox password');",
		.host_hint = "Give the initial domain (初期ドメイン), such as example.sakura.ne.jp, also for "
		"addresses of your own domain: the コントロールパネル and the mail that opened the contract name "
		"it.",
		.username_hint = "The full mail address, also for the initial domain: コントロールパネル > メール > "
		"メール一覧.",
		.password_hint = "Use the mailbox's own password (コントロールパネル > メール > メール一覧), not that of "
		"the control panel or of the 会員メニュー. From a server outside of Japan switch 国外IPアドレスフィルタ off.",
		.sender_hint = "Send from the address that logs in, or make the other one in コントロールパネル > "
		"メール > メール一覧.",
		.unproven = "The server takes senders here that other servers refuse later: from_address "
		"should be the address that logs in.",
		.notes = "Make the mailbox in コントロールパネル > メール > メール一覧 > 新規追加; SPF, DKIM and DMARC in "
		"コントロールパネル > メール. The server's name is the initial domain (初期ドメイン); smtp.<your domain> is "
		"wrong. Access from abroad is refused by default: switch 国外IPアドレスフィルタ off in コントロールパネル > "
		"セキュリティ where the database server is not in Japan. The provider does not publish its limits. "
		"Bounces arrive as mail only.",
		.notes_ja = "host には初期ドメイン（例: example.sakura.ne.jp）を指定します。独自ドメインのアドレ"
		"スで送る場合も同じで、smtp.<独自ドメイン> は使えません。初期ドメインはコントロールパ"
		"ネルと契約時のメールに書かれています。ユーザー名はメールアドレス全体、パスワードはコ"
		"ントロールパネルや会員メニューのものではなく、メールアドレスごとのものです。メールア"
		"ドレスはコントロールパネル > メール > メール一覧 > 新規追加 で作り、SPF、DKIM、DMARC"
		" はコントロールパネル > メール で設定します。国外からの接続は初期設定で拒否されます"
		"。データベースのサーバーが日本国外にある場合は、コントロールパネル > セキュリティ で"
		"「国外IPアドレスフィルタ」を無効にしてください。送信数の上限は公表されていません。不"
		"達の知らせはメールだけです。",
		.docs_url = "https://help.sakura.ad.jp/mail/2114/",
	},
	{
		.name = "onamae",
		.title = "お名前メール (Onamae.com)",
		.aliases = "お名前 お名前com お名前ドットコム お名前メール お名前comメール onamaecom onamaemail "
		"onamaenejp gmoonamae",
		.port = 465,
		.encryption = "tls",
		.tls_ports = "465",
		.starttls_ports = "587",
		.username_is_address = true,
		.required = {"host", "username", "password"},
		.example = "SELECT * FROM kliv_mail.configure_smtp(provider => 'onamae', host => "
		"'mail65.onamae.ne.jp', username => 'info@example.com', password => 'mailbox password');",
		.host_hint = "Give the mail server's name of your contract (メールサーバー名), such as "
		"mail65.onamae.ne.jp: コントロールパネル > メール.",
		.username_hint = "The full mail address: コントロールパネル > メール.",
		.password_hint = "Use the mailbox's own password; a new one: コントロールパネル > メール > the "
		"address > メールパスワード > 編集. From a server outside of Japan switch "
		"SMTP認証国外アクセス制限 off.",
		.sender_hint = "Send from the address that logs in, or make the other one in コントロールパネル > "
		"メール.",
		.unproven = "The server takes senders here that other servers refuse later: from_address "
		"should be the address that logs in.",
		.notes = "Make the mailbox and set its password in コントロールパネル > メール (メールアドレス, メールパスワード). "
		"The certificate of smtp.<your domain> is made out to another name, so that a verified "
		"connection fails: use the name mail*.onamae.ne.jp. Logins from abroad are refused by "
		"default: switch SMTP認証国外アクセス制限 off in コントロールパネル > メール where the database server is "
		"not in Japan. The provider does not publish its "
		"limits. Bounces arrive as mail only.",
		.notes_ja = "host には契約のメールサーバー名（例: mail65.onamae.ne.jp）を指定します。コントロール"
		"パネル > メール に書かれています。smtp.<独自ドメイン> は証明書の名前が異なるため使え"
		"ません。ユーザー名はメールアドレス全体、パスワードはコントロールパネル > メール で設"
		"定したメールパスワードです。国外からのログインは初期設定で拒否されます。データベース"
		"のサーバーが日本国外にある場合は、コントロールパネル > メール で「SMTP認証国外アクセ"
		"ス制限」を無効にしてください。送信数の上限は公表されていません。不達の知らせはメール"
		"だけです。",
		.docs_url = "https://help.onamae.com/answer/9537",
	},
	{
		.name = "resend",
		.title = "Resend",
		.aliases = "resendcom",
		.host = "smtp.resend.com",
		.port = 465,
		.encryption = "tls",
		.tls_ports = "465 2465",
		.starttls_ports = "587 2587 25",
		.username = "resend",
		.password_form = KLM_PASSWORD_TRIM,
		.required = {"password", "from_address"},
		.example = "SELECT * FROM kliv_mail.configure_smtp(provider => 'resend', password => "
		"'re_your_api_key', from_address => 'noreply@example.com');",
		.username_hint = "Leave it out: it is the word resend for everybody.",
		.password_hint = "Use an API key that Resend still lists (re_...): Resend > API Keys > Create API Key.",
		.sender_hint = "Verify the domain in Resend (Domains > Add Domain); onboarding@resend.dev "
		"sends only to the account's own address.",
		.unproven = "Resend looks at the sender's domain only when the whole message has been "
		"sent.",
		.notes = "The free plan takes 100 recipients a day and 3,000 a month. Each delivery "
		"carries an idempotency key, so that a retry within 24 hours is no second copy.",
		.notes_ja = "無料プランで送れるのは 1 日 100 宛先、1 か月 3,000 宛先です。配送ごとに冪等キーを付"
		"けるので、24 時間以内の再試行で 2 通届くことはありません。差出人のドメインは Domains"
		" > Add Domain で認証してください。",
		.docs_url = "https://resend.com/docs/send-with-smtp",
		.free_daily = 100,
		.per_second = 5,
	},
};

const int	klm_provider_count = lengthof(klm_providers);

/* Is word one of "465 2465", in any case? */
static bool
word_in(const char *words, const char *word)
{
	Size		length = strlen(word);

	while (words && *words)
	{
		if (length > 0 && pg_strncasecmp(words, word, length) == 0 &&
			(words[length] == ' ' || words[length] == '\0'))
			return true;
		while (*words && *words != ' ')
			words++;
		while (*words == ' ')
			words++;
	}
	return false;
}

const KlmProvider *
klm_find_provider(const char *name)
{
	char		letters[64];
	int			length = 0;

	for (int i = 0; name && i < klm_provider_count; i++)
	{
		if (strcmp(klm_providers[i].name, name) == 0)
			return &klm_providers[i];
	}

	/* As people write it: "Amazon SES", "G Suite", "お名前.com". */
	for (; name && *name; name++)
	{
		if (strchr(" .-_", *name))
			continue;
		if (length == sizeof(letters) - 1)
			return NULL;
		letters[length++] = *name;
	}
	letters[length] = '\0';
	for (int i = 0; i < klm_provider_count; i++)
	{
		if (pg_strcasecmp(klm_providers[i].name, letters) == 0 ||
			word_in(klm_providers[i].aliases, letters))
			return &klm_providers[i];
	}
	return NULL;
}

char *
klm_provider_names(void)
{
	StringInfoData names;

	initStringInfo(&names);
	for (int i = 0; i < klm_provider_count; i++)
		appendStringInfo(&names, "%s%s", i > 0 ? ", " : "", klm_providers[i].name);
	return names.data;
}

static bool
port_in(const char *ports, int port)
{
	char		text[12];

	snprintf(text, sizeof(text), "%d", port);
	return word_in(ports, text);
}

int
klm_provider_rolling_limit(const KlmProvider *provider, const char *username)
{
	const char *domain = username ? strrchr(username, '@') : NULL;

	if (provider == NULL)
		return 0;
	if (provider->personal_domains == NULL)
		return provider->rolling_limit;
	/* Who is not known to be a company's user has the personal figure. */
	if (domain == NULL || word_in(provider->personal_domains, domain + 1))
		return provider->personal_rolling_limit;
	return provider->rolling_limit;
}

bool
klm_port_is_tls(int port)
{
	return port == 465 || port == 2465;
}

/* "us-east-1", "ap-northeast-1", "us-gov-west-1": what may stand in a host name. */
static bool
is_region(const char *region)
{
	Size		length = strlen(region);

	return length >= 4 && length <= 30 &&
		strspn(region, "abcdefghijklmnopqrstuvwxyz0123456789-") == length &&
		islower((unsigned char) region[0]) && strchr(region, '-') != NULL &&
		isdigit((unsigned char) region[length - 1]);
}

bool
klm_provider_host(const KlmProvider *provider, const char *region, char **host, KlmError *error)
{
	const char *mark;

	*host = NULL;
	if (region == NULL || region[0] == '\0')
		region = provider->default_region;

	if (provider->regions)
	{
		const char *at = region ? strstr(provider->regions, region) : NULL;
		Size		length = region ? strlen(region) : 0;

		if (at == NULL || length == 0 || strchr(region, ' ') ||
			(at > provider->regions && at[-1] != ' ') ||
			(at[length] != '\0' && at[length] != ' '))
			return klm_fail(error, INVALID, psprintf("Choose one of: %s.", provider->regions),
						"\"%s\" is not a region of %s", region ? region : "", provider->title);

		/* Mailgun, the only one with named regions: smtp.eu.mailgun.org. */
		*host = strcmp(region, provider->default_region) == 0 ? pstrdup(provider->host) :
			psprintf("smtp.%s%s", region, strchr(provider->host, '.'));
		return true;
	}
	if (provider->host == NULL)
		return true;
	mark = strstr(provider->host, "<region>");
	if (mark == NULL)
	{
		*host = pstrdup(provider->host);
		return true;
	}
	if (region == NULL)
		return klm_fail(error, INVALID,
						"Give the region that the credentials were made in, such as region => 'us-east-1' "
						"(it stands at the top right of the provider's console).",
						"is needed for %s", provider->title);
	if (!is_region(region))
		return klm_fail(error, INVALID, "A region looks like us-east-1 or ap-northeast-1.",
		"\"%s\" is not a region of %s",
					region, provider->title);
	*host = psprintf("%.*s%s%s", (int) (mark - provider->host), provider->host, region,
					 mark + strlen("<region>"));
	return true;
}

Size
klm_provider_tidy_password(const KlmProvider *provider, char *password, Size length)
{
	Size		from = 0;
	Size		kept = 0;

	if (provider == NULL || provider->password_form == KLM_PASSWORD_AS_IS)
		return length;
	if (provider->password_form == KLM_PASSWORD_TRIM)
	{
		while (from < length && isspace((unsigned char) password[from]))
			from++;
		for (Size i = from; i < length; i++)
			password[kept++] = password[i];
		while (kept > 0 && isspace((unsigned char) password[kept - 1]))
			kept--;
	}
	else
	{
		for (Size i = 0; i < length; i++)
		{
			/* Google's page puts no-break spaces between the groups. */
			if (i + 1 < length && memcmp(password + i, "\xc2\xa0", 2) == 0)
				i++;
			else if (!isspace((unsigned char) password[i]))
				password[kept++] = password[i];
		}
	}
	memset(password + kept, 0, length - kept);
	return kept;
}

static bool
ends_with(const char *text, const char *end)
{
	Size		text_length = strlen(text);
	Size		end_length = strlen(end);

	return text_length > end_length && pg_strcasecmp(text + text_length - end_length, end) == 0;
}

static bool
all_of(const char *text, int (*what) (int))
{
	for (; *text; text++)
	{
		if (!what((unsigned char) *text))
			return false;
	}
	return true;
}

/* What is wrong with this password, or NULL; only what the provider documents. */
static const char *
password_problem(const KlmProvider *provider, const char *password)
{
	Size		length = strlen(password);

	if (strcmp(provider->name, "gmail") == 0)
	{
		if (length != 16 || !all_of(password, isalnum))
			return "is not an app password of Gmail, which has 16 letters";
	}
	else if (strcmp(provider->name, "sendgrid") == 0)
	{
		if (strncmp(password, "SG.", 3) != 0)
			return "is not an API key of SendGrid, which begins with SG.";
	}
	else if (strcmp(provider->name, "resend") == 0)
	{
		if (strncmp(password, "re_", 3) != 0)
			return "is not an API key of Resend, which begins with re_";
	}
	else if (strcmp(provider->name, "ses") == 0)
	{
		if (length == 40)
			return "has the 40 characters of a secret access key, which is not the SMTP password";
	}
	else if (strcmp(provider->name, "mailgun") == 0)
	{
		if (strncmp(password, "key-", 4) == 0)
			return "is an API key of Mailgun, which is not the SMTP password";
	}
	return NULL;
}

static bool
check_host(const KlmProvider *provider, const char *host, KlmError *error)
{
	if (strcmp(provider->name, "sakura") == 0 && !ends_with(host, ".sakura.ne.jp"))
		return klm_fail(error, INVALID, provider->host_hint, "\"%s\" is not a server of Sakura", host);
	if (strcmp(provider->name, "onamae") == 0 && !ends_with(host, ".onamae.ne.jp"))
		return klm_fail(error, INVALID, psprintf(
		"%s The certificate of smtp.<your domain> is made out to another name.",
									provider->host_hint),
					"\"%s\" is not a server of Onamae", host);
	return true;
}

bool
klm_provider_check(const KlmProvider *provider, const char *host, int port, const char *encryption,
				   const char *username, const char *password, bool oauth2,
				   const char **argument, KlmError *error)
{
	const char *problem;

	*argument = "host";
	if (!check_host(provider, host, error))
		return false;

	*argument = "port";
	if (provider->tls_ports == NULL && klm_port_is_tls(port))
		return klm_fail(error, INVALID, psprintf(
		"Leave port out, or use one of %s with encryption => 'starttls'.",
									provider->starttls_ports),
					"%s does not answer on port %d", provider->title, port);

	*argument = "encryption";
	if (strcmp(encryption, "starttls") == 0 && port_in(provider->tls_ports, port))
		return klm_fail(error, INVALID, "Use encryption => 'tls' with this port, or port => 587.",
					"%s speaks TLS from the start on port %d, not starttls", provider->title, port);
	if (strcmp(encryption, "tls") == 0 && port_in(provider->starttls_ports, port))
		return klm_fail(error, INVALID, provider->tls_ports ?
		"Use encryption => 'starttls' with this port, or port => 465." :
					"Use encryption => 'starttls' with this port.",
					"%s begins in clear on port %d and changes by starttls", provider->title, port);

	*argument = "username";
	if (username && provider->username && strcmp(username, provider->username) != 0)
		return klm_fail(error, INVALID, provider->username_hint, "%s knows no user name but \"%s\"",
					provider->title, provider->username);
	if (username && provider->username_is_address && strchr(username, '@') == NULL)
		return klm_fail(error, INVALID, provider->username_hint, "\"%s\" is not a full mail address", username);
	if (username && strcmp(provider->name, "ses") == 0 && strchr(username, '@') != NULL)
		return klm_fail(error, INVALID, provider->username_hint,
		"\"%s\" is not an SMTP user name of Amazon SES", username);

	*argument = "auth";
	if (oauth2 && !provider->oauth2)
		return klm_fail(error, INVALID, "Leave auth out and give a password.", "%s does not take oauth2",
					provider->title);

	*argument = "password";
	if (password && !oauth2 && (problem = password_problem(provider, password)) != NULL)
		return klm_fail(error, INVALID, provider->password_hint, "%s", problem);
	*argument = NULL;
	return true;
}

int
klm_provider_headers(const KlmProvider *provider, const char *host, const char *message_id,
					 int64 delivery_id, KlmHeader headers[KLM_PROVIDER_HEADERS_MAX])
{
	int			count = 0;

	if (provider == NULL)
		return 0;
	if (strcmp(provider->name, "postmark") == 0)
	{
		/* A broadcast server takes the broadcast stream only, and the other way round. */
		headers[count].name = "X-PM-Message-Stream";
		headers[count++].value = pg_strncasecmp(host, "smtp-broadcasts.", 16) == 0 ? "broadcast" :
		"outbound";
		headers[count].name = "X-PM-Metadata-kliv-mail";
		headers[count++].value = psprintf(INT64_FORMAT, delivery_id);
	}
	else if (strcmp(provider->name, "resend") == 0)
	{
		headers[count].name = "Resend-Idempotency-Key";
		headers[count++].value = psprintf(INT64_FORMAT "/%.200s", delivery_id, message_id);
	}
	else if (strcmp(provider->name, "sendgrid") == 0)
	{
		headers[count].name = "X-SMTPAPI";
		headers[count++].value = psprintf("{\"unique_args\":{\"kliv_mail\":\"" INT64_FORMAT "\"}}",
										  delivery_id);
	}
	else if (strcmp(provider->name, "mailgun") == 0)
	{
		headers[count].name = "X-Mailgun-Variables";
		headers[count++].value = psprintf("{\"kliv_mail\":\"" INT64_FORMAT "\"}", delivery_id);
	}
	Assert(count <= KLM_PROVIDER_HEADERS_MAX);
	return count;
}
