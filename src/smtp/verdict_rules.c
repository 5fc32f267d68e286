/*-------------------------------------------------------------------------
 *
 * verdict_rules.c
 *		Which replies mean what: the table.
 *
 * Pure: nothing but data.  verdict.c has the order in which the rules are tried,
 * and why.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "smtp/verdict_rules.h"

#define EHLO KLM_AT(KLM_STAGE_EHLO)
#define SETUP (KLM_AT(KLM_STAGE_CONNECT) | KLM_AT(KLM_STAGE_GREETING) | KLM_AT(KLM_STAGE_TLS) | \
			   EHLO)
#define AUTH KLM_AT(KLM_STAGE_AUTH)
#define MAIL KLM_AT(KLM_STAGE_MAIL)
#define RCPT KLM_AT(KLM_STAGE_RCPT)
#define DATA (KLM_AT(KLM_STAGE_DATA) | KLM_AT(KLM_STAGE_DOT))
#define ANY (SETUP | AUTH | MAIL | RCPT | DATA)

#define HOUR 3600
#define DAY 86400

#define LIMIT KLM_PROVIDER_LIMIT, KLM_SCOPE_ACCOUNT, NULL
#define TROUBLE KLM_ACCOUNT_TROUBLE, KLM_SCOPE_ACCOUNT, NULL
#define LATER KLM_TEMPORARY, KLM_SCOPE_RECIPIENT, "soft"
#define LATER_ACCOUNT KLM_TEMPORARY, KLM_SCOPE_ACCOUNT, NULL
#define HARD KLM_PERMANENT, KLM_SCOPE_RECIPIENT, "hard"
#define SOFT KLM_PERMANENT, KLM_SCOPE_RECIPIENT, "soft"
#define BLOCK KLM_POLICY_BLOCK, KLM_SCOPE_MESSAGE, "policy"
#define FAULT KLM_MESSAGE_FAULT, KLM_SCOPE_MESSAGE, NULL

#define WAITS \
	"Nothing: what is queued goes out by itself then. A higher limit is the provider's to give."
#define LOGIN_HINT \
	"Check user name and password with the provider and give them to " \
	"kliv_mail.configure_smtp(); what is queued goes out then."
#define SENDER_HINT \
	"Have the provider verify this address or its domain, or choose a verified one with " \
	"kliv_mail.update_sender(from_address => ...)."
#define REPUTATION_HINT \
	"Look the sending server up in the list that the reply names, and ask its provider; " \
	"check SPF, DKIM and DMARC of the sender's domain."
#define CONTENT_HINT \
	"Look at the text, the links and the attachments; check SPF, DKIM and DMARC of the " \
	"sender's domain."
#define ABROAD_HINT \
	"Japanese hosts refuse access from abroad by default: allow it in the provider's control panel " \
	"(Sakura: 国外IPアドレスフィルタ; Onamae: SMTP認証国外アクセス制限), or send through a provider " \
	"that takes mail from everywhere."
#define FULL_HINT "Nothing: it is tried again. The recipient has to make room."
#define ADDRESS_HINT "Correct the address, or stop writing to it."
const KlmRule klm_rules[] = {
	/*
	 * At RCPT a precise status says more than any phrase: it is about the
	 * recipient's address, whatever words stand beside it.
	 */
	{RCPT, "5xx", "5.1.1", NULL, NULL,
		HARD, 0, KLM_HINT_OURS, "the mailbox does not exist", ADDRESS_HINT},
	{RCPT, "5xx", "5.1.2 5.1.10", NULL, NULL,
		HARD, 0, KLM_HINT_OURS, "the recipient's domain takes no mail", ADDRESS_HINT},
	{RCPT, "5xx", "5.1.3 5.1.4 5.1.6 5.1.9", NULL, NULL,
		HARD, 0, KLM_HINT_OURS, "the recipient's address is not valid", ADDRESS_HINT},
	{RCPT, "4xx", "4.1.1 4.1.2 4.1.3", NULL, NULL,
		LATER, 0, KLM_HINT_OURS, "the server cannot say yet whether the recipient exists", KLM_AGAIN},

	/*
	 * What looks like a limit of the account and is not.
	 */
	{RCPT | DATA, "4xx 5xx", NULL, NULL,
		"receiving mail too quickly|receiving email too quickly|receiving mail at a rate|"
		"receiving email at a rate|rate that prevents|recipient thread limit|"
		"mailbox * receiving too many",
		LATER, 600, KLM_HINT_OURS,
		"the recipient is receiving too much mail at the moment", KLM_AGAIN},
	{RCPT | DATA, "4xx 5xx", "x.2.121 x.2.122", NULL, NULL,
		LATER, 600, KLM_HINT_OURS,
		"the recipient is receiving too much mail at the moment", KLM_AGAIN},
	{ANY, "4xx 5xx", NULL, NULL, "messages with the same message-id",
		KLM_TEMPORARY, KLM_SCOPE_MESSAGE, NULL, HOUR, KLM_HINT_OURS,
		"the server has seen this message too often", "Nothing: it is tried again later."},
	{ANY, "4xx 5xx", NULL, NULL, "policy size per transaction",
		LATER, 0, KLM_HINT_OURS, "the server wants this recipient in a transaction of its own", KLM_AGAIN},

	/*
	 * Deferred because of what we are: 421 and 451 with security codes, from
	 * the large mailbox providers.
	 */
	{ANY, "4xx", "4.7.26 4.7.27 4.7.29 4.7.30 4.7.31 4.7.32 4.7.33 4.7.40", NULL, NULL,
		LIMIT, HOUR, KLM_HINT_OURS, "the server slows mail down that is not authenticated",
		"Set up SPF, DKIM and DMARC for the sender's domain as the provider describes."},
	{ANY, "421 450", "4.7.28", NULL, NULL,
		LIMIT, HOUR, KLM_HINT_OURS, "the server takes no more mail at the moment", WAITS},
	{ANY, "4xx", NULL, NULL, "temporary system problem",
		LATER_ACCOUNT, 0, KLM_HINT_OURS, "the server has a problem of its own at the moment", KLM_AGAIN},
	{ANY, "421", "4.7.0", "gmail", NULL,
		LIMIT, HOUR, KLM_HINT_OURS, "the server takes no more mail at the moment", WAITS},
	{ANY, "421", "4.7.0", NULL, "temporarily deferred|unsolicited|complaint|try again later",
		LIMIT, HOUR, KLM_HINT_OURS, "the server takes no more mail at the moment", WAITS},

	/*
	 * Codes whose words would mislead below.
	 */
	{RCPT | DATA, "5xx", "5.7.2x 5.7.9 5.7.515 5.7.509", NULL, NULL,
		BLOCK, 0, KLM_HINT_OURS,
		"the server blocks the message: its sender is not authenticated (SPF, DKIM, DMARC)",
		"Set up SPF, DKIM and DMARC for the sender's domain as the provider describes."},
	{RCPT | DATA, "5xx", "5.7.124 5.7.129 5.7.133 5.7.134 5.7.135 5.7.136 5.7.12 5.7.2", NULL, NULL,
		SOFT, 0, KLM_HINT_OURS, "the recipient takes mail from chosen senders only",
		"Ask the recipient to allow the sender's address."},

	/*
	 * A limit of the provider: the day's, the hour's, the second's.  These say
	 * so at AUTH (SendGrid), at MAIL or RCPT (Gmail), and after the dot (SES,
	 * Resend), with 4xx as with 5xx.
	 */
	{ANY, "4xx 5xx", NULL, NULL, "maximum credits exceeded|credits exceeded|out of credits",
		LIMIT, KLM_UTC_DAY, KLM_HINT_OURS, "the provider's credits are used up",
		"Buy credits or wait for the provider's next day; a test_smtp() that succeeds ends the wait."},
	{ANY, "4xx 5xx", NULL, NULL,
		"daily * sending limit|daily smtp relay limit|daily * limit exceeded|"
		"daily sending limit|exceeded * daily * limit|daily limit",
		LIMIT, DAY, KLM_HINT_OURS, "the provider's daily limit is used up", WAITS},
	{ANY, "5xx", "5.4.5", NULL, NULL,
		LIMIT, DAY, KLM_HINT_OURS, "the provider's daily limit is used up", WAITS},
	{ANY, "4xx 5xx", NULL, NULL, "monthly * quota|monthly_quota|monthly * limit|monthly limit",
		LIMIT, DAY, KLM_HINT_OURS, "the provider's monthly limit is used up",
		"Move to a larger plan at the provider; a test_smtp() that succeeds ends the wait."},
	{ANY, "4xx 5xx", NULL, NULL,
		"daily message quota|daily email sending quota|daily sending quota|daily_quota_exceeded|"
		"daily quota|submissionquotaexceeded|submission quota|sending quota exceeded|"
		"message quota exceeded",
		LIMIT, HOUR, KLM_HINT_OURS, "the provider's daily limit is used up",
		"Nothing: it is tried every hour until the provider's window has moved on."},
	{ANY, "4xx 5xx", NULL, NULL,
		"maximum sending rate|sending rate exceeded|too many requests|requests per second|"
		"rate_limit_exceeded",
		LIMIT, 10, KLM_HINT_OURS, "the provider takes fewer messages a second",
		"Nothing: it goes on more slowly."},
	{ANY, "4xx 5xx", NULL, NULL,
		"too many concurrent|too many connections|too many simultaneous|concurrent connections|"
		"sender thread limit|connection limit|too many sessions|connection rate limit|"
		"too many smtp sessions",
		LIMIT, 60, KLM_HINT_OURS, "the server takes fewer connections at the same time",
		"Nothing: it goes on with fewer."},
	{ANY, "4xx 5xx", NULL, NULL, "too many login attempts|too many failed login|too many auth",
		LIMIT, HOUR, KLM_HINT_OURS, "the server saw too many logins",
		"Nothing: it is tried again in an hour."},
	{ANY, "4xx 5xx", NULL, NULL,
		"this hour|per hour|hourly limit|hourly * limit|emails per hour|peak smtp relay limit|"
		"mail send limit exceeded|send limit exceeded|sending limit|exceeded * messaging limit|"
		"outgoing limit|message limit exceeded|recipient limit exceeded|recipient rate limit|"
		"too much mail|exceeded * sending * limit|exceeded * number of messages|"
		"exceeded * allowed * messages",
		LIMIT, HOUR, KLM_HINT_OURS, "the provider's limit for this hour is used up", WAITS},
	{ANY, "4xx", NULL, NULL,
		"throttl|rate limit|ratelimit|rate-limit|sending too fast|too many messages|"
		"too many emails|slow down|unusual rate of|unexpected volume|message rate|too fast",
		LIMIT, 900, KLM_HINT_OURS, "the server takes no more mail at the moment", WAITS},
	{ANY, "5xx", NULL, NULL,
		"rate limit exceeded|ratelimit exceeded|sending rate limit|throttling failure",
		LIMIT, HOUR, KLM_HINT_OURS, "the server takes no more mail at the moment", WAITS},

	/*
	 * The account is not allowed to: login, sender, relaying.
	 */
	{ANY, "4xx 5xx", NULL, NULL,
		"verified sender identity|not a verified|address is not verified|"
		"addresses are not verified|address not verified|identities failed the check|"
		"domain is not verified|domain not verified|sender not verified|unverified sender|"
		"not a sender signature|sender signature|verify your domain|not authorized to send from|"
		"not allowed to send from|not permitted to send from|not authorised to send|sendasdenied|"
		"send as this sender|not owned by user|sender address rejected: not|"
		"not allowed to use this sender|from address * not allowed|sender not allowed|"
		"sender is not allowed|sender not authorized|only send testing emails|"
		"envelope sender * not|same as authorization user|same as authenticated user|"
		"same as auth user|equal authorized user|equal authenticated user|conform with authentication|"
		"not conform with auth|not local sender|not one of your addresses|sender mismatch|"
		"sender does not match|from address does not match|from address must match|"
		"must match the auth|not match the auth|relaying disallowed as|not authorized to send as|"
		"not permitted to send as",
		TROUBLE, 0, KLM_HINT_SENDER, "the provider does not allow this sender address", SENDER_HINT},
	{ANY, "5xx", "5.2.252", NULL, NULL,
		TROUBLE, 0, KLM_HINT_SENDER, "the provider does not allow this sender address", SENDER_HINT},
	{ANY, "4xx 5xx", NULL, NULL,
		"is not allowed to send:|sending paused|sending is paused|sandbox subdomain|"
		"sandbox domain|sandbox mode|authorized recipients|account * under review|"
		"account is not active|your account * suspended|your account * disabled|"
		"your account * blocked|account has been temporarily blocked|account is not approved|"
		"not yet approved|unusual sending activity|not authorized to perform|"
		"sending has been disabled|outgoing mail * disabled|outbound spam",
		TROUBLE, 0, KLM_HINT_OURS, "the provider has not released this account for sending",
		"See the provider's console, where the reason stands; its support can lift it."},
	{ANY, "4xx 5xx", NULL, NULL,
		"api key is invalid|invalid api key|api key not found|api key is not valid",
		TROUBLE, 0, KLM_HINT_LOGIN, "the provider does not know this API key", LOGIN_HINT},
	{ANY, "4xx 5xx", NULL, NULL,
		"smtpclientauthentication is disabled|basic authentication is not supported|"
		"basic auth * disabled",
		TROUBLE, 0, KLM_HINT_OURS, "the provider does not take passwords for this mailbox",
		"Have its administrator allow SMTP AUTH for the mailbox, or use auth => 'oauth2'."},
	{ANY, "4xx 5xx", NULL, NULL,
		"client not authenticated|client was not authenticated|not authenticated to send|"
		"you are not authenticated|unauthenticated senders|authentication required|"
		"authentication is required|must authenticate|must be authenticated|"
		"requires authentication|need to authenticate|authenticate first|auth first|smtp auth|"
		"please authenticate|log in first|pop before smtp|must issue a starttls|"
		"starttls command first",
		TROUBLE, 0, KLM_HINT_LOGIN, "the server wants a login first", LOGIN_HINT},
	{ANY, "5xx", NULL, NULL,
		"relay access denied|relaying denied|relay denied|unable to relay|relay not permitted|"
		"relaying not allowed|not permitted to relay|relaying is not|relay is not|"
		"not allowed to relay|do not relay|relaying prohibited|relaying to * prohibited|"
		"no relaying|cannot relay|relay operation|invalid credentials for relay|"
		"client host rejected|mail relay denied|authorized relay",
		TROUBLE, 0, KLM_HINT_LOGIN, "the server does not relay for this account",
		"Check user name, password and host: the server takes us for a stranger."},
	{ANY, "4xx", NULL, NULL,
		"client host rejected|cannot find your|helo command rejected|relay access denied",
		LATER_ACCOUNT, 0, KLM_HINT_OURS,
		"the server does not take mail from this machine at the moment",
		"If it lasts: ask the server's administrator what this machine's name and address must "
		"look like; kliv_mail.ehlo_name sets the name."},
	{EHLO | MAIL | RCPT | DATA, "5xx", NULL, NULL,
		"helo command rejected|ehlo command rejected|bad helo|bad ehlo|invalid helo|helo rejected|"
		"helo name|helo is|host impersonating",
		TROUBLE, 0, KLM_HINT_OURS, "the server does not take the name that this machine greets with",
		"The administrator of the database server sets kliv_mail.ehlo_name to a name that resolves "
		"to its public address, and reloads the configuration."},

	/*
	 * Japanese hosts refuse what comes from abroad until they are told
	 * otherwise, with words that sound like a recipient's.
	 */
	{MAIL | RCPT, "5xx", NULL, "sakura", "command rejected",
		TROUBLE, 0, KLM_HINT_OURS, "the provider refuses mail from abroad", ABROAD_HINT},
	{MAIL | RCPT, "5xx", NULL, NULL, "... command rejected",
		TROUBLE, 0, KLM_HINT_OURS, "the server takes no commands from this machine", ABROAD_HINT},
	{AUTH | MAIL, "5xx", NULL, NULL,
		"access from abroad|overseas|foreign access|foreign ip|outside of japan|outside japan",
		TROUBLE, 0, KLM_HINT_OURS, "the provider refuses access from abroad", ABROAD_HINT},
	{SETUP | AUTH | MAIL, "4xx 5xx", "4.7.0", NULL, "tls required|not in whitelist",
		TROUBLE, 0, KLM_HINT_OURS, "the server does not take mail this way",
		"Use port 587 or 465 with a login."},
	{ANY, "530 534 535 538", NULL, NULL, NULL,
		TROUBLE, 0, KLM_HINT_LOGIN, "the server refused user name or password", LOGIN_HINT},

	/*
	 * The sender, where the server itself judges it.
	 */
	{MAIL | RCPT | DATA, "5xx", "5.1.7 5.1.8", NULL, NULL,
		TROUBLE, 0, KLM_HINT_SENDER, "the server refuses the sender address", SENDER_HINT},
	{MAIL | RCPT | DATA, "5xx", NULL, NULL,
		"sender address rejected|sender rejected|sender verify failed|sender verification|"
		"domain of sender|sender domain * not|sender domain not|invalid sender|sender denied",
		TROUBLE, 0, KLM_HINT_SENDER, "the server refuses the sender address", SENDER_HINT},
	{MAIL | RCPT | DATA, "4xx", NULL, NULL,
		"sender address rejected|domain of sender|sender verify|could not complete sender",
		LATER_ACCOUNT, 0, KLM_HINT_SENDER, "the server cannot check the sender address", SENDER_HINT},

	/*
	 * Greeting, TLS, EHLO and login: always about the account.
	 */
	{SETUP, "421 45x 43x", NULL, NULL, NULL,
		TROUBLE, 0, KLM_HINT_OURS, "the server takes no connections at the moment", KLM_AGAIN},
	{SETUP, "5xx", NULL, NULL,
		"block list|blocklist|blacklist|blocked using|listed|spamhaus|reputation",
		TROUBLE, 0, KLM_HINT_OURS,
		"the server refuses connections from this machine: its address is on a block list",
		"Look this machine's address up in the list that the reply names, or send through a "
		"provider."},
	{SETUP, "4xx 5xx", NULL, NULL, NULL,
		TROUBLE, 0, KLM_HINT_OURS, "the server refuses the connection",
		"Check host and port, and that this machine may connect to them; "
		"kliv_mail.test_smtp() shows more."},
	{AUTH, "504", NULL, NULL, NULL,
		TROUBLE, 0, KLM_HINT_OURS, "the server does not offer this way to log in",
		"Check auth (password or oauth2) and port: many servers offer AUTH on 587 or 465 only."},
	{AUTH, "421 4xx", NULL, NULL, NULL,
		LATER_ACCOUNT, 0, KLM_HINT_OURS, "the server cannot check the login at the moment", KLM_AGAIN},
	{AUTH, "3xx 5xx", NULL, NULL, NULL,
		TROUBLE, 0, KLM_HINT_LOGIN, "the server refused user name or password", LOGIN_HINT},

	/*
	 * Recipients that are too many, more slowly put.
	 */
	{ANY, "451", "4.7.5xx 4.7.6xx", NULL, NULL,
		LIMIT, 900, KLM_HINT_OURS, "the server takes no more mail at the moment", WAITS},
	{ANY, "452 451 421", "4.5.3", NULL, NULL,
		LIMIT, 900, KLM_HINT_OURS, "the server takes no more recipients at the moment", WAITS},
	{ANY, "452 421", NULL, NULL, "too many recipients",
		LIMIT, 900, KLM_HINT_OURS, "the server takes no more recipients at the moment", WAITS},
	{ANY, "450", "4.2.1", NULL, "relay limit",
		LIMIT, HOUR, KLM_HINT_OURS, "the provider's limit for this hour is used up", WAITS},

	/*
	 * Greylisting, before what "try again later" means otherwise.
	 */
	{MAIL | RCPT | DATA, "4xx", NULL, NULL,
		"greylist|graylist|grey list|gray list|grey-list|gray-list|postgrey|"
		"deferred for * seconds|try again in * seconds|retry in * minutes",
		LATER, 300, KLM_HINT_OURS, "the server is greylisting: it asks to try again later", KLM_AGAIN},

	/*
	 * The message is too large or malformed.
	 */
	{MAIL | RCPT | DATA, "5xx", "5.3.4 5.2.3", NULL, NULL,
		FAULT, 0, KLM_HINT_OURS, "the message is larger than the server takes",
		"Send smaller attachments, or a link to them."},
	{MAIL | RCPT | DATA, "5xx", NULL, NULL,
		"message size|message too large|message too big|message is too large|message exceeds|"
		"size limit|too large|maximum message|exceeds * size|fixed limit|fixed maximum|"
		"larger than the current system limit",
		FAULT, 0, KLM_HINT_OURS, "the message is larger than the server takes",
		"Send smaller attachments, or a link to them."},
	{MAIL | RCPT | DATA, "5xx", "5.6.7", NULL, NULL,
		FAULT, 0, KLM_HINT_OURS,
		"an address is not ASCII, and the server does not know such addresses (SMTPUTF8)",
		"Use the recipient's ASCII address, or a provider whose server knows SMTPUTF8."},
	{MAIL | RCPT | DATA, "5xx", NULL, NULL,
		"rfc 5322|rfc5322|rfc 2822|rfc 822|duplicate header|missing header|missing * header|"
		"malformed|invalid header|bare lf|bare newline|line too long|lines are too long|8bit data|"
		"non-ascii|smtputf8",
		FAULT, 0, KLM_HINT_OURS, "the server finds the message malformed",
		"Look at the headers given to send(); the reply says which."},

	/*
	 * Block lists and reputation, also where they pose as a mailbox.
	 */
	{MAIL | RCPT | DATA, "5xx", NULL, NULL,
		"spamhaus|dnsbl|blocklist|block list|blacklist|black list|black listed|blocked using|"
		"blocked by|listed at|is listed|listed in|listed on|reputation|realtime block|(rbl|rbl on|"
		"surbl|uribl|barracuda|sorbs|banned sending ip|ip address is blocked|ip blocked|"
		"has been blocked|s3150|s3140",
		BLOCK, 0, KLM_HINT_OURS, "the server blocks the sending server or domain for its reputation",
		REPUTATION_HINT},

	{RCPT | DATA, "5xx", NULL, NULL, "ptr record|reverse dns|rdns|spf |spf-|dkim|dmarc",
		BLOCK, 0, KLM_HINT_OURS,
		"the server blocks the message: its sender is not authenticated (SPF, DKIM, DMARC, PTR)",
		"Set up SPF, DKIM and DMARC for the sender's domain as the provider describes."},
	{RCPT | DATA, "5xx", NULL, NULL,
		"mailbox unavailable * policy|mailbox unavailable * reject due|mailbox unavailable * spam|"
		"mailbox unavailable * dns",
		BLOCK, 0, KLM_HINT_OURS, "the server blocks the message by its policy", CONTENT_HINT},

	/*
	 * The mailbox is full or resting.
	 */
	{RCPT | DATA, "552 550 554", "5.2.2", NULL, "inactive|overquotaperm",
		HARD, 0, KLM_HINT_OURS, "the mailbox is full and nobody uses it any more", ADDRESS_HINT},
	{RCPT | DATA, "4xx 5xx", "x.2.2", NULL, NULL,
		LATER, HOUR, KLM_HINT_OURS, "the recipient's mailbox is full", FULL_HINT},
	{RCPT | DATA, "4xx 5xx", NULL, NULL,
		"mailbox full|mailbox is full|mailbox * full|over quota|overquota|quota exceeded|"
		"exceeded * quota|exceeds * quota|out of storage|storage full|storage allocation|"
		"exceeded storage|not enough storage|mailbox size limit|quota exceed|recipient storage|"
		"disk quota|mailbox for * is full|inbox is full",
		LATER, HOUR, KLM_HINT_OURS, "the recipient's mailbox is full", FULL_HINT},
	{RCPT, "552", NULL, NULL, NULL,
		LATER, HOUR, KLM_HINT_OURS, "the recipient's mailbox is full", FULL_HINT},

	/*
	 * There is no such recipient.
	 */
	{DATA, "5xx", "5.1.1", NULL, NULL,
		HARD, 0, KLM_HINT_OURS, "the mailbox does not exist", ADDRESS_HINT},
	{RCPT | DATA, "5xx", "5.1.2 5.1.10 5.4.4", NULL, NULL,
		HARD, 0, KLM_HINT_OURS, "the recipient's domain takes no mail", ADDRESS_HINT},
	{DATA, "5xx", "5.1.3 5.1.4 5.1.6 5.1.9", NULL, NULL,
		HARD, 0, KLM_HINT_OURS, "the recipient's address is not valid", ADDRESS_HINT},
	{RCPT | DATA, "5xx", "5.2.1 5.7.13", NULL, NULL,
		HARD, 0, KLM_HINT_OURS, "the mailbox is disabled", ADDRESS_HINT},
	{RCPT | DATA, "5xx", "5.7.17 5.7.18", NULL, NULL,
		HARD, 0, KLM_HINT_OURS, "the mailbox belongs to somebody else now", ADDRESS_HINT},
	{RCPT | DATA, "556 521", NULL, NULL, NULL,
		HARD, 0, KLM_HINT_OURS, "the recipient's domain takes no mail", ADDRESS_HINT},
	{RCPT | DATA, "551", NULL, NULL, NULL,
		HARD, 0, KLM_HINT_OURS, "the mailbox has moved", ADDRESS_HINT},
	{RCPT | DATA, "5xx", NULL, NULL,
		"mailbox disabled|mailbox is disabled|account disabled|account is disabled|"
		"account has been disabled|user disabled|account is inactive|mailbox is inactive|"
		"inactive user|inactive account|inactive mailbox|marked as inactive|account suspended|"
		"account has been suspended|is expired|account expired|is no longer available|"
		"no longer in use|account closed|mailbox suspended",
		HARD, 0, KLM_HINT_OURS, "the mailbox is disabled", ADDRESS_HINT},
	{RCPT | DATA, "5xx", NULL, NULL,
		"user unknown|unknown user|no such user|unknown recipient|recipient unknown|"
		"no such recipient|no such mailbox|no such address|no such email|no such person|"
		"no such account|no such domain|user not found|recipient not found|mailbox not found|"
		"address not found|account not found|user doesn't have|mailbox unavailable|"
		"mailbox not available|not exist|doesn't exist|address unknown|unknown address|"
		"address is unknown|invalid recipient|invalid mailbox|invalid address|invalid user|"
		"bad destination mailbox|no mailbox|not a valid mailbox|not a valid user|not a known user|"
		"not our customer|unknown local part|unknown local-part|unrouteable address|"
		"unroutable address|undeliverable address|nonexistent|non-existent|unknown mailbox|"
		"unknown account|unknown or illegal|user is unknown|is not known here|"
		"not known to this system|does not like recipient",
		HARD, 0, KLM_HINT_OURS, "the mailbox does not exist", ADDRESS_HINT},
	{RCPT | DATA, "5xx", NULL, NULL,
		"domain not found|host not found|host unknown|unknown host|null mx|no mx record|"
		"domain does not accept|host does not accept",
		HARD, 0, KLM_HINT_OURS, "the recipient's domain takes no mail", ADDRESS_HINT},
	{RCPT | DATA, "5xx", "5.4.1", NULL, "recipient address rejected",
		HARD, 0, KLM_HINT_OURS, "the mailbox does not exist", ADDRESS_HINT},
	{RCPT | DATA, "5xx", "5.1.0", NULL, "address rejected|recipient rejected",
		HARD, 0, KLM_HINT_OURS, "the mailbox does not exist", ADDRESS_HINT},

	/*
	 * Policy: spam, content, missing authentication.
	 */
	{MAIL, "5xx", "5.7.*", NULL, NULL,
		TROUBLE, 0, KLM_HINT_SENDER, "the server refuses the sender address", SENDER_HINT},
	{RCPT, "550 553 554", "5.7.0", NULL, NULL,
		TROUBLE, 0, KLM_HINT_LOGIN, "the server does not relay for this account",
		"Check user name, password and sender address."},
	{RCPT | DATA, "5xx", "5.7.8 5.7.3 5.7.57 5.7.139 5.7.30", NULL, NULL,
		TROUBLE, 0, KLM_HINT_LOGIN, "the server wants a login first", LOGIN_HINT},
	{RCPT | DATA, "5xx", "5.7.*", NULL, NULL,
		BLOCK, 0, KLM_HINT_OURS, "the server blocks the message by its policy", CONTENT_HINT},
	{RCPT | DATA, "5xx", "5.6.0", NULL, NULL,
		BLOCK, 0, KLM_HINT_OURS, "the server blocks the message for its content", CONTENT_HINT},
	{MAIL | RCPT | DATA, "5xx", "5.6.*", NULL, NULL,
		FAULT, 0, KLM_HINT_OURS, "the server cannot take the message in this form",
		"Look at the headers, the attachments and their types."},
	{RCPT | DATA, "5xx", NULL, NULL,
		"spam|unsolicited|message rejected|content rejected|rejected * content|virus|malware|"
		"phish|policy|prohibited|banned|suspicious|security issue|local configuration|blocked|"
		"bulk mail|complaint|denied by",
		BLOCK, 0, KLM_HINT_OURS, "the server blocks the message by its policy", CONTENT_HINT},

	/*
	 * What the code alone tells.
	 */
	{ANY, "421", NULL, NULL, NULL,
		LATER_ACCOUNT, 0, KLM_HINT_OURS, "the server ended the connection", KLM_AGAIN},
	{MAIL | RCPT | DATA, "555", NULL, NULL, NULL,
		FAULT, 0, KLM_HINT_OURS, "the server does not know an option that this message needs",
		"See the reply; kliv_mail.test_smtp() shows what the server offers."},
	{MAIL, "552", NULL, NULL, NULL,
		FAULT, 0, KLM_HINT_OURS, "the message is larger than the server takes",
		"Send smaller attachments, or a link to them."},
	{RCPT, "501", NULL, NULL, NULL,
		HARD, 0, KLM_HINT_OURS, "the recipient's address is not valid for this server", ADDRESS_HINT},
	{DATA, "501 552", NULL, NULL, NULL,
		FAULT, 0, KLM_HINT_OURS, "the server does not take this message", "The reply says why."},
};

const int	klm_rule_count = lengthof(klm_rules);

/* docomo; au, UQ and TU-KA; SoftBank, Vodafone, WILLCOM and EMOBILE; Rakuten. */
const char *const klm_carriers[] = {
	"docomo.ne.jp",
	"au.com", "ezweb.ne.jp", "uqmobile.jp", "ido.ne.jp", "sky.tkc.ne.jp", "sky.tkk.ne.jp", "sky.tu-ka.ne.jp",
	"softbank.ne.jp", "i.softbank.jp", "vodafone.ne.jp", "disney.ne.jp", "ymobile.ne.jp", "y-mobile.ne.jp",
	"ymobile1.ne.jp", "pdx.ne.jp", "willcom.com", "wcm.ne.jp", "emnet.ne.jp", "jp-c.ne.jp", "jp-d.ne.jp",
	"jp-h.ne.jp", "jp-k.ne.jp", "jp-n.ne.jp", "jp-q.ne.jp", "jp-r.ne.jp", "jp-s.ne.jp", "jp-t.ne.jp",
	"rakumail.jp"
};

const int	klm_carrier_count = lengthof(klm_carriers);
