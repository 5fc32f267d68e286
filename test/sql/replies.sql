-- What replies mean.  Most of these are what servers really say; the expected
-- verdict, scope and bounce type stand beside each, and what the reply asks to
-- wait.  Only what differs is listed.
SET client_min_messages = warning;
\pset format unaligned
\pset fieldsep ' | '

CREATE TEMP TABLE expected (stage text, provider text, means text, pause interval, reply text);

-- The right answers.
INSERT INTO expected VALUES
('greeting', NULL, 'accepted account', NULL, '220 mx.example.com ESMTP'),
('ehlo', NULL, 'accepted account', NULL, E'250-mx.example.com\r\n250-PIPELINING\r\n250 SIZE 1000'),
('auth', NULL, 'accepted account', NULL, '235 2.7.0 Authentication successful'),
('mail', NULL, 'accepted account', NULL, '250 2.1.0 Ok'),
('rcpt', NULL, 'accepted recipient', NULL, '250 2.1.5 Ok'),
('rcpt', NULL, 'accepted recipient', NULL, '251 2.1.5 User not local; will forward'),
('data', NULL, 'accepted message', NULL, '354 End data with <CR><LF>.<CR><LF>'),
('dot', NULL, 'accepted message', NULL, '250 2.0.0 Ok: queued as 4Wz1Yp0Tq8z9sZ'),
('dot', NULL, 'accepted message', NULL, '251 2.0.0 accepted'),
('dot', NULL, 'accepted message', NULL, '299 whatever'),
-- No reply: what stood in its place decides by the stage.
('connect', NULL, 'account_trouble account', NULL, ''),
('greeting', NULL, 'account_trouble account', NULL, ''),
('tls', NULL, 'account_trouble account', NULL, ''),
('ehlo', NULL, 'account_trouble account', NULL, ''),
('auth', NULL, 'account_trouble account', NULL, ''),
('mail', NULL, 'temporary account', NULL, ''),
('rcpt', NULL, 'temporary recipient soft', NULL, ''),
('data', NULL, 'temporary message', NULL, ''),
('dot', NULL, 'in_doubt message', NULL, ''),
('dot', NULL, 'in_doubt message', NULL, 'this is no reply'),
('dot', NULL, 'in_doubt message', NULL, '354 go on'),
('rcpt', NULL, 'temporary recipient soft', NULL, '999 what'),
-- No such recipient.
('rcpt', NULL, 'permanent recipient hard', NULL, E'550-5.1.1 The email account that you tried to reach does not exist. Please try\r\n550-5.1.1 double-checking the recipient''s email address for typos or\r\n550 5.1.1 unnecessary spaces. https://support.google.com/mail/?p=NoSuchUser - gsmtp'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.1.1 <bob@example.com>: Recipient address rejected: User unknown in local recipient table'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.1.1 <bob@example.com>: Recipient address rejected: User unknown in virtual mailbox table'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302)'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.4.1 Recipient address rejected: Access denied. [AM6EUR05FT047.eop-eur05.prod.protection.outlook.com]'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient bob@example.com not found by SMTP address lookup'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 Unknown user bob@docomo.ne.jp'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 <bob@ezweb.ne.jp>: User unknown'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 Invalid recipient: <bob@docomo.ne.jp>'),
('dot', NULL, 'permanent recipient hard', NULL, '554 delivery error: dd This user doesn''t have a yahoo.com account (bob@yahoo.com) [0] - mta4320'),
('dot', NULL, 'permanent recipient hard', NULL, '554 delivery error: dd Requested mail action aborted: This mailbox is disabled (554.30)'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.1.1 unknown or illegal alias: bob@example.com'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 #5.1.0 Address rejected.'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 No such user here'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 Unrouteable address'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 sorry, no mailbox here by that name (#5.1.1)'),
('rcpt', NULL, 'permanent recipient hard', NULL, '554 5.7.1 <bob@example.com>: Recipient address rejected: user unknown'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.1.2 <bob@nosuch.example>: Recipient address rejected: Domain not found'),
('rcpt', NULL, 'permanent recipient hard', NULL, '501 5.1.3 Bad recipient address syntax'),
('rcpt', NULL, 'permanent recipient hard', NULL, '553 5.1.3 not sent: the recipient''s address cannot stand in an SMTP command'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.1.6 Mailbox has moved, no forwarding address'),
('rcpt', NULL, 'permanent recipient hard', NULL, '556 5.1.10 Recipient domain has a null MX'),
('rcpt', NULL, 'permanent recipient hard', NULL, '551 User not local; please try <bob@example.org>'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550-5.2.1 The email account that you tried to reach is disabled. Learn more - gsmtp'),
('rcpt', NULL, 'permanent recipient hard', NULL, '554 5.2.1 Inactive user bob@example.ee'),
('rcpt', NULL, 'permanent recipient hard', NULL, '525 5.7.13 Disabled recipient address'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.7.17 Mailbox owner has changed'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.7.18 Domain owner has changed'),
('rcpt', NULL, 'permanent recipient hard', NULL, '552-5.2.2 The email account that you tried to reach is over quota and inactive. - gsmtp'),
('dot', NULL, 'permanent recipient hard', NULL, '554 5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException; OverQuotaPerm'),
('dot', 'postmark', 'permanent recipient hard', NULL, '550 You tried to send to a recipient that has been marked as inactive.'),
('dot', NULL, 'permanent recipient hard', NULL, '550 5.1.1 User unknown'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.4.4 Host not found'),
-- Refused, and not known to be gone: fails, but is no hard bounce.
('rcpt', NULL, 'permanent recipient soft', NULL, '550 5.3.0 played by the test server'),
('rcpt', NULL, 'permanent recipient soft', NULL, '550 Requested action not taken'),
('rcpt', NULL, 'permanent recipient soft', NULL, '554 5.4.6 Too many hops'),
('rcpt', NULL, 'permanent recipient soft', NULL, '550 5.7.133 RESOLVER.RST.SenderNotAuthenticatedForGroup; authentication required'),
-- The recipient, for now.
('rcpt', NULL, 'temporary recipient soft', '1 hour', E'452-4.2.2 The recipient''s inbox is out of storage space. Please direct the\r\n452 4.2.2 recipient to https://support.google.com/mail/?p=OverQuotaTemp - gsmtp'),
('rcpt', NULL, 'temporary recipient soft', '1 hour', '552 5.2.2 Mailbox is full'),
('rcpt', NULL, 'temporary recipient soft', '1 hour', '552-5.2.2 The email account that you tried to reach is over quota. Please direct the recipient to'),
('dot', NULL, 'temporary recipient soft', '1 hour', '552 Requested mail action aborted: exceeded storage allocation'),
('rcpt', NULL, 'temporary recipient soft', '1 hour', '550 Mailbox quota exceeded'),
('rcpt', NULL, 'temporary recipient soft', '1 hour', '452 4.2.2 <bob@example.com>: user is over quota'),
('rcpt', NULL, 'permanent recipient soft', NULL, '550 5.7.124 RESOLVER.RST.RestrictedToGroupPermission; sender not in allowed-senders list'),
('rcpt', NULL, 'permanent recipient soft', NULL, '550 5.7.129 RESOLVER.RST.RestrictedToRecipientsPermission; sender not authorized'),
('rcpt', NULL, 'temporary recipient soft', '10 minutes', '550 5.2.121 RESOLVER.RST.RecipientRateLimit; recipient rate limit exceeded'),
('dot', NULL, 'temporary recipient soft', '10 minutes', '554 5.2.122 The recipient has exceeded their limit for the number of messages they can receive per hour'),
('rcpt', NULL, 'temporary recipient soft', '10 minutes', '450-4.2.1 The user you are trying to contact is receiving mail too quickly. Please resend your message at a later time.'),
('rcpt', NULL, 'temporary recipient soft', '10 minutes', '450 4.2.1 The user you are trying to contact is receiving email too quickly'),
('rcpt', NULL, 'temporary recipient soft', '10 minutes', '550-5.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages from being delivered.'),
('dot', NULL, 'temporary recipient soft', '10 minutes', '432 4.3.2 STOREDRV.Deliver; recipient thread limit exceeded'),
('rcpt', NULL, 'temporary recipient soft', '5 minutes', '450 4.7.1 <bob@example.com>: Recipient address rejected: Greylisted, see http://postgrey.example/help'),
('rcpt', NULL, 'temporary recipient soft', '5 minutes', '451 4.7.1 Greylisting in action, please come back later'),
('rcpt', NULL, 'temporary recipient soft', '5 minutes', '450 Temporarily deferred: greylisted for 300 seconds'),
('rcpt', NULL, 'temporary recipient soft', '5 minutes', '451 DT:SPM Graylisted, try again later'),
('rcpt', NULL, 'temporary recipient soft', NULL, '450 4.1.2 <bob@example.com>: Recipient address rejected: Domain not found'),
('rcpt', NULL, 'temporary recipient soft', NULL, '450 4.1.1 <bob@example.com>: Recipient address rejected: unverified address: connection timed out'),
('rcpt', NULL, 'temporary recipient soft', NULL, '450 Requested mail action not taken: mailbox unavailable'),
('rcpt', NULL, 'temporary recipient soft', NULL, '451 4.3.0 <bob@example.com>: Temporary lookup failure'),
('rcpt', NULL, 'temporary recipient soft', NULL, '452 4.5.3 Domain policy size per transaction exceeded, please try this recipient in a separate transaction.'),
('dot', NULL, 'temporary message', NULL, '451 4.3.0 Error: queue file write error'),
('dot', 'ses', 'temporary message', NULL, '451 Temporary service failure'),
('dot', 'ses', 'temporary message', NULL, '451 Timeout waiting for data from client'),
('data', NULL, 'temporary message', NULL, '452 4.3.1 Insufficient system storage'),
('dot', NULL, 'temporary message', '1 hour', '421-4.7.28 Gmail has detected this sender exceeded its quota for sending messages with the same Message-ID.'),
-- The provider's limits; each of these may come with 4xx, 5xx, at any stage.
('mail', 'gmail', 'provider_limit account', '1 day', '550 5.4.5 Daily user sending limit exceeded. For more information on Gmail sending limits go to https://support.google.com/a/answer/166852 - gsmtp'),
('dot', 'gmail', 'provider_limit account', '1 day', E'550-5.4.5 Daily user sending\r\n550-5.4.5 limit exceeded. - gsmtp\r\n550 5.4.5 - gsmtp'),
('rcpt', NULL, 'provider_limit account', '1 day', '550 5.4.5 Daily SMTP relay limit exceeded for customer.'),
('mail', NULL, 'provider_limit account', '1 day', '550 5.7.1 Daily SMTP relay limit exceeded for user'),
('rcpt', 'gmail', 'provider_limit account', '1 day', '550 5.7.1 Daily SMTP relay limit exceeded for user'),
-- ... but not for a day where it may be the recipient's server that says so behind an unknown relay.
('rcpt', NULL, 'provider_limit account', '15 minutes', '550 5.7.1 Your mail was rejected: daily sending limit exceeded'),
('dot', NULL, 'provider_limit account', '15 minutes', '452 4.2.2 You have reached your monthly limit'),
('rcpt', 'gmail', 'provider_limit account', '1 hour', '450 4.2.1 Peak SMTP relay limit exceeded for customer. This is a temporary error.'),
('mail', 'gmail', 'provider_limit account', '1 hour', '421 4.7.0 Try again later, closing connection. (MAIL) - gsmtp'),
('auth', 'gmail', 'provider_limit account', '1 hour', '454 4.7.0 Too many login attempts, please try again later. - gsmtp'),
('dot', 'gmail', 'provider_limit account', '1 hour', '421-4.7.28 Gmail has detected an unusual rate of unsolicited mail originating from your IP address.'),
('dot', NULL, 'provider_limit account', '1 hour', '421-4.7.26 Your email has been rate limited because it is unauthenticated. Gmail requires all senders to authenticate with either SPF or DKIM.'),
('dot', NULL, 'provider_limit account', '1 hour', '421-4.7.32 Your email has been rate limited because the From: header (RFC5322) in this message isn''t aligned with either the authenticated SPF or DKIM organizational domain.'),
('mail', 'ses', 'provider_limit account', '10 seconds', '454 Throttling failure: Maximum sending rate exceeded.'),
('dot', 'ses', 'provider_limit account', '10 seconds', '454 Throttling failure: Maximum sending rate exceeded.'),
('dot', 'ses', 'provider_limit account', '1 hour', '454 Throttling failure: Daily message quota exceeded.'),
('greeting', 'ses', 'provider_limit account', '1 minute', '421 Too many concurrent SMTP connections'),
('mail', NULL, 'provider_limit account', '1 minute', '421 4.7.0 mx.example.com Error: too many connections from 192.0.2.1'),
('dot', NULL, 'provider_limit account', '1 minute', '432 4.3.2 Concurrent connections limit exceeded; sender thread limit exceeded'),
('dot', NULL, 'provider_limit account', '1 hour', '554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message'),
('rcpt', NULL, 'provider_limit account', '15 minutes', '451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (AS77712)'),
('rcpt', NULL, 'provider_limit account', '15 minutes', '451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation.'),
('rcpt', 'sendgrid', 'provider_limit account', '1 hour', '452 Too many recipients received this hour (throttled)'),
('rcpt', NULL, 'provider_limit account', '15 minutes', '452 4.5.3 Too many recipients'),
('dot', 'mailgun', 'provider_limit account', '1 hour', '550 Domain mg.example.com is not allowed to send: recipient limit exceeded'),
('dot', 'resend', 'provider_limit account', '1 hour', '550 You have reached your daily email sending quota'),
('dot', 'resend', 'provider_limit account', '1 day', '550 You have reached your monthly email sending quota'),
('mail', 'resend', 'provider_limit account', '10 seconds', '450 Too many requests. You can only make 5 requests per second.'),
('dot', NULL, 'provider_limit account', '1 hour', '550 Domain example.com has exceeded the max emails per hour (100/100 (100%)) allowed. Message discarded.'),
('dot', NULL, 'provider_limit account', '1 hour', '450 Requested mail action not taken: Mail send limit exceeded'),
('greeting', NULL, 'provider_limit account', '1 hour', '421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1; see https://postmaster.yahooinc.com/error-codes'),
('rcpt', NULL, 'provider_limit account', '1 hour', '450 4.7.1 Error: too much mail from 192.0.2.1'),
('rcpt', NULL, 'provider_limit account', '15 minutes', '451 4.7.1 Rate limit reached, slow down'),
-- A hiccup of the server's own: soon again, not in an hour.
('mail', 'gmail', 'temporary account', NULL, '421 4.7.0 Temporary System Problem. Try again later (WS). - gsmtp'),
('mail', 'gmail', 'temporary account', NULL, '421 4.3.0 Temporary System Problem. Try again later (10). x - gsmtp'),
-- What the server only repeats is no evidence: the recipient, and what another server said.
('rcpt', NULL, 'temporary recipient soft', NULL, '450 4.1.2 <throttle@nodomain.example>: Recipient address rejected: Domain not found'),
('rcpt', NULL, 'temporary recipient soft', NULL, '450 4.1.2 <"daily limit"@nodomain.example>: Recipient address rejected: Domain not found'),
('rcpt', NULL, 'temporary recipient soft', NULL, '450 4.1.2 <bob@rate-limit.example>: Recipient address rejected: Domain not found'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.1.1 <sendasdenied@example.com>: Recipient address rejected: User unknown in virtual mailbox table'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.1.1 <reputation@example.com>: Recipient address rejected: User unknown'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.1.1 <dkim@example.com>: Recipient address rejected: User unknown'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 daily_quota_exceeded@spamhaus.example: User unknown'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 Unknown user "daily limit"@x.example'),
('rcpt', NULL, 'permanent recipient soft', NULL, '550 5.4.5@x.example is not welcome'),
('rcpt', NULL, 'temporary recipient soft', NULL, '450 4.1.1 <bob@x.example>: Recipient address rejected: unverified address: host mx.x.example[192.0.2.1] said: 450 4.7.1 too many messages, slow down'),
('rcpt', NULL, 'temporary recipient soft', NULL, '450 unverified address: host mx.throttle.example[192.0.2.1] said: 450 4.7.1 too many messages, slow down'),
('rcpt', NULL, 'temporary recipient soft', NULL, '450 unverified address: host mx.x.example[192.0.2.1] refused to talk to me: 421 4.7.0 too many connections'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.1.1 <bob@x.example>: Recipient address rejected: undeliverable address: host mx.x.example[192.0.2.1] said: 550 5.7.1 Relay access denied'),
('rcpt', NULL, 'permanent recipient hard', NULL, '550 5.1.1 Relaying denied, unauthenticated senders, daily limit'),
-- A sender that is not the one who logged in.
('mail', NULL, 'account_trouble account', NULL, '501 mail from address must be same as authorization user.'),
('mail', NULL, 'account_trouble account', NULL, '501 Mail from address must be same as authorization user'),
('mail', NULL, 'account_trouble account', NULL, '553 Mail from must equal authorized user'),
('rcpt', NULL, 'account_trouble account', NULL, '553 Mail from must equal authorized user'),
('mail', NULL, 'account_trouble account', NULL, '440 mail from account doesn''t conform with authentication (Auth Account:a@shop.example|Mail Account:b@shop.example)'),
('mail', NULL, 'account_trouble account', NULL, '550 not local sender over smtp'),
('mail', NULL, 'account_trouble account', NULL, '550 5.7.0 From address is not one of your addresses'),
('mail', NULL, 'account_trouble account', NULL, '501 Syntax error in parameters'),
-- The name of this machine, and access from abroad.
('rcpt', NULL, 'account_trouble account', NULL, '554 5.7.1 <shop.example>: Helo command rejected: Access denied'),
('rcpt', NULL, 'account_trouble account', NULL, '550 Bad HELO - Host impersonating domain name [shop.example]'),
('rcpt', 'sakura', 'account_trouble account', NULL, '550 5.7.1 <***@***.co.jp>... Command rejected'),
('rcpt', NULL, 'account_trouble account', NULL, '550 5.7.1 <bob@shop.example>... Command rejected'),
('mail', 'sakura', 'account_trouble account', NULL, '550 5.7.1 <bob@shop.example>... Command rejected'),
-- The account itself: login, sender, relaying.
('auth', 'gmail', 'account_trouble account', NULL, E'535-5.7.8 Username and Password not accepted. For more information, go to\r\n535 5.7.8  https://support.google.com/mail/?p=BadCredentials - gsmtp'),
('auth', 'gmail', 'account_trouble account', NULL, '534-5.7.9 Application-specific password required. Learn more at'),
('mail', 'gmail', 'account_trouble account', NULL, '530-5.7.0 Authentication Required. Learn more at'),
('auth', 'ses', 'account_trouble account', NULL, '535 Authentication Credentials Invalid'),
('auth', 'sendgrid', 'account_trouble account', NULL, '535 Authentication failed: Bad username / password'),
('auth', 'postmark', 'account_trouble account', NULL, '535 5.7.8 Error: authentication failed: UGFzc3dvcmQ6'),
('auth', NULL, 'account_trouble account', NULL, '535 5.7.3 Authentication unsuccessful'),
('auth', NULL, 'account_trouble account', NULL, '535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant.'),
('auth', NULL, 'account_trouble account', NULL, '550 5.7.30 Basic authentication is not supported for Client Submission.'),
('auth', NULL, 'account_trouble account', NULL, '501 5.5.2 Cannot decode AUTH parameter'),
('auth', NULL, 'account_trouble account', NULL, '504 5.5.4 Unrecognized authentication type'),
('auth', 'gmail', 'account_trouble account', NULL, '334 eyJzdGF0dXMiOiI0MDAiLCJzY2hlbWVzIjoiQmVhcmVyIn0='),
('auth', NULL, 'account_trouble account', NULL, '538 5.7.11 Encryption required for requested authentication mechanism'),
('auth', NULL, 'temporary account', NULL, '454 4.7.0 Temporary authentication failure: Connection lost to authentication server'),
('auth', NULL, 'temporary account', NULL, '451 4.3.0 Temporary failure'),
('mail', NULL, 'account_trouble account', NULL, '530 5.7.57 Client not authenticated to send mail'),
('mail', NULL, 'account_trouble account', NULL, '530 5.7.0 Must issue a STARTTLS command first'),
('rcpt', NULL, 'account_trouble account', NULL, '554 5.7.1 <bob@example.com>: Relay access denied'),
('rcpt', NULL, 'account_trouble account', NULL, '550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain'),
('rcpt', 'mailgun', 'account_trouble account', NULL, '550 5.7.1 Relaying denied'),
('rcpt', NULL, 'account_trouble account', NULL, '550-Please turn on SMTP Authentication in your mail client, or login to the server first. 550 relay not permitted'),
('rcpt', NULL, 'account_trouble account', NULL, '550 5.7.0 Mail relay denied [192.0.2.1].'),
('rcpt', NULL, 'account_trouble account', NULL, '554 5.7.1 <unknown[192.0.2.1]>: Client host rejected: Access denied'),
('rcpt', NULL, 'temporary account', NULL, '450 4.7.1 Client host rejected: cannot find your hostname, [192.0.2.1]'),
('rcpt', NULL, 'account_trouble account', NULL, '553 5.7.1 <info@example.com>: Sender address rejected: not owned by user web@example.com'),
('mail', NULL, 'account_trouble account', NULL, '553 5.1.8 <info@example.com>... Domain of sender address info@example.com does not exist'),
('rcpt', NULL, 'account_trouble account', NULL, '550 5.1.8 <info@example.com>: Sender address rejected: Domain not found'),
('mail', NULL, 'account_trouble account', NULL, '553 5.1.7 The sender''s address was syntactically invalid'),
('mail', NULL, 'account_trouble account', NULL, '550 5.7.1 Requested action not taken: message refused'),
('mail', NULL, 'account_trouble account', NULL, '550 we do not like you'),
('dot', 'sendgrid', 'account_trouble account', NULL, '550 The from address does not match a verified Sender Identity. Mail cannot be sent until this error is resolved.'),
('dot', 'sendgrid', 'account_trouble account', NULL, '403 You are not authorized to send from that email address'),
('mail', 'sendgrid', 'account_trouble account', NULL, '550 Unauthenticated senders not allowed'),
('dot', 'ses', 'account_trouble account', NULL, '554 Message rejected: Email address is not verified. The following identities failed the check in region US-EAST-1: bob@example.com'),
('dot', 'ses', 'account_trouble account', NULL, '554 Message rejected: Sending paused for this account. For more information, please check the inbox of the email address associated with your AWS account.'),
('dot', 'ses', 'account_trouble account', NULL, '554 Access denied: User arn:aws:iam::1:user/x is not authorized to perform ses:SendRawEmail'),
('dot', 'mailgun', 'account_trouble account', NULL, '550 Domain sandbox1.mailgun.org is not allowed to send: Sandbox subdomains are for test purposes only. Please add your own domain or add the address to authorized recipients.'),
('dot', 'resend', 'account_trouble account', NULL, '550 The example.com domain is not verified. Please, add and verify your domain on https://resend.com/domains'),
('auth', 'resend', 'account_trouble account', NULL, '535 API key is invalid'),
('dot', 'resend', 'account_trouble account', NULL, '550 You can only send testing emails to your own email address (me@example.com).'),
('dot', 'postmark', 'account_trouble account', NULL, '550 The From address you supplied (a@example.com) is not a Sender Signature on your account.'),
('dot', NULL, 'account_trouble account', NULL, '554 5.2.252 SendAsDenied; info@example.com not allowed to send as web@example.com'),
('dot', NULL, 'account_trouble account', NULL, '550 5.4.6 Unusual sending activity detected. Please try after sometime'),
-- Before the login everything is about the account.
('greeting', NULL, 'account_trouble account', NULL, '421 4.3.2 Service not available, closing transmission channel'),
('greeting', NULL, 'account_trouble account', NULL, '451 4.3.5 Server configuration problem'),
('greeting', NULL, 'account_trouble account', NULL, '554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org'),
('greeting', NULL, 'account_trouble account', NULL, '554 No SMTP service here'),
('greeting', NULL, 'account_trouble account', NULL, '521 5.2.1 This host does not accept mail'),
('tls', NULL, 'account_trouble account', NULL, '454 4.7.0 TLS not available due to local problem'),
('ehlo', NULL, 'account_trouble account', NULL, '550 5.7.1 Helo command rejected'),
('ehlo', NULL, 'provider_limit account', '1 hour', '421 4.7.0 Try again later, closing connection.'),
-- 421: the session ends, the mail is not to blame.
('mail', NULL, 'temporary account', NULL, '421 4.3.2 System shutting down'),
('rcpt', NULL, 'temporary account', NULL, '421 4.4.2 mx.example.com Error: timeout exceeded'),
('data', NULL, 'temporary account', NULL, '421 Service shutting down'),
('dot', NULL, 'temporary account', NULL, '421 4.3.0 played by the test server'),
('mail', NULL, 'temporary account', NULL, '451 4.3.0 Mail server temporarily rejected message'),
-- Words that mean a mailbox elsewhere, and a mailbox that means something else.
('rcpt', NULL, 'policy_block message policy', NULL, '554 5.7.1 <bob@example.com>: Recipient address rejected: Access denied'),
('rcpt', NULL, 'policy_block message policy', NULL, '550 5.7.1 The PTR record for 192.0.2.1 does not exist'),
('dot', NULL, 'policy_block message policy', NULL, E'550-Requested action not taken: mailbox unavailable\r\n550-Reject due to policy restrictions.\r\n550 For explanation visit https://postmaster.gmx.net/'),
('rcpt', NULL, 'policy_block message policy', NULL, '550 Mail from 192.0.2.1 rejected see: http://www.dnsbl.example.net/'),
('rcpt', NULL, 'permanent recipient soft', NULL, '550 We do not accept mail from strangers'),
('rcpt', NULL, 'permanent recipient soft', NULL, '550 You are not allowed to send to this list'),
('rcpt', NULL, 'policy_block message policy', NULL, '550 5.7.1 You are not allowed to send to this list'),
('dot', NULL, 'temporary message', NULL, '451 4.7.1 The attachment is being analysed in a sandbox'),
-- Policy.
('dot', NULL, 'policy_block message policy', NULL, E'550-5.7.26 This mail has been blocked because the sender is unauthenticated.\r\n550-5.7.26 Gmail requires all senders to authenticate with either SPF or DKIM.\r\n550 5.7.26  - gsmtp'),
('dot', NULL, 'policy_block message policy', NULL, '550-5.7.1 [192.0.2.1] Gmail has detected that this message is likely unsolicited mail. To reduce the amount of spam sent to Gmail, this message has been blocked.'),
('dot', NULL, 'policy_block message policy', NULL, '550-5.7.25 [192.0.2.1] The IP address sending this message does not have a PTR record setup'),
('rcpt', NULL, 'policy_block message policy', NULL, '550 5.7.515 Access denied, sending domain EXAMPLE.COM does not meet the required authentication level.'),
('rcpt', NULL, 'policy_block message policy', NULL, '550 5.7.1 Unfortunately, messages from [192.0.2.1] weren''t sent. Please contact your Internet service provider since part of their network is on our block list (S3150).'),
('rcpt', NULL, 'policy_block message policy', NULL, '550 5.7.511 Access denied, banned sender[192.0.2.1].'),
('rcpt', NULL, 'policy_block message policy', NULL, '550 5.7.606 Access denied, banned sending IP [192.0.2.1]. To request removal from this list please visit https://sender.office.com/'),
('rcpt', NULL, 'policy_block message policy', NULL, '554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org'),
('rcpt', NULL, 'policy_block message policy', NULL, '550 5.2.1 Mailbox unavailable. Your IP address 192.0.2.1 is blacklisted using SPAMHAUS-XBL.'),
('rcpt', NULL, 'policy_block message policy', NULL, '553 5.7.1 [BL21] Connections will not be accepted from 192.0.2.1, because the ip is in Spamhaus''s list'),
('dot', NULL, 'policy_block message policy', NULL, '554 5.7.9 Message not accepted for policy reasons. See https://postmaster.yahooinc.com/error-codes'),
('dot', NULL, 'policy_block message policy', NULL, '552 5.7.0 This message was blocked because its content presents a potential security issue.'),
('dot', 'ses', 'policy_block message policy', NULL, '554 Message rejected'),
('dot', NULL, 'policy_block message policy', NULL, '550 spam message rejected. Please visit https://help.mail.ru/notspam-support'),
('dot', NULL, 'policy_block message policy', NULL, '550 5.7.1 Unauthenticated email from example.com is not accepted due to domain''s DMARC policy.'),
('dot', NULL, 'policy_block message policy', NULL, '554 5.6.0 Message contains invalid content'),
('dot', NULL, 'policy_block message policy', NULL, '554 rejected due to virus'),
-- The message itself.
('mail', NULL, 'message_fault message', NULL, '552 5.3.4 Message size exceeds fixed limit'),
('dot', NULL, 'message_fault message', NULL, '552-5.3.4 Your message exceeded Google''s message size limits. Please visit'),
('rcpt', NULL, 'message_fault message', NULL, '552 5.2.3 Message length exceeds administrative limit'),
('dot', NULL, 'message_fault message', NULL, '554 5.6.1 Message body type not supported'),
('mail', NULL, 'message_fault message', NULL, '553 5.6.7 not sent: an address is not ASCII and the server has no SMTPUTF8'),
('mail', NULL, 'message_fault message', NULL, '555 5.5.4 Unsupported option: SMTPUTF8'),
('mail', NULL, 'message_fault message', NULL, '552 Message size exceeds maximum permitted'),
('dot', NULL, 'message_fault message', NULL, '550-5.7.1 [192.0.2.1] Messages missing a valid address in From: header, or not RFC 5322 compliant because it has duplicate headers'),
('dot', NULL, 'message_fault message', NULL, '554 Transaction failed'),
('dot', NULL, 'message_fault message', NULL, '550 maximum allowed line length is 998 octets, line too long'),
('dot', NULL, 'message_fault message', NULL, '552 5.3.0 played by the test server'),
('data', NULL, 'message_fault message', NULL, '554 5.5.1 Error: no valid recipients');

SELECT count(*) >= 120 AS enough FROM expected;

SELECT e.stage, e.provider, e.reply, e.means AS expected, e.pause AS expected_pause,
       concat_ws(' ', c.verdict, c.scope, c.bounce_type) AS found, c.pause, c.reason
FROM expected AS e, kliv_mail.classify_reply(e.stage, e.reply, e.provider) AS c
WHERE concat_ws(' ', c.verdict, c.scope, c.bounce_type) <> e.means OR c.pause IS DISTINCT FROM e.pause;

-- Refused from abroad, in words that sound like a sender's or a recipient's: the reason says which.
SELECT stage, reason FROM unnest(ARRAY['mail', 'rcpt']) AS stage,
    kliv_mail.classify_reply(stage, '550 5.7.1 <***@***.co.jp>... Command rejected', 'sakura');

-- Every reason is there, and none is the reply itself.
SELECT e.reply, c.reason FROM expected AS e, kliv_mail.classify_reply(e.stage, e.reply, e.provider) AS c
WHERE c.reason IS NULL OR c.reason = '' OR c.reason ~ '\d\d\d';

-- The same words mean the same with bare LF and with CRLF.
SELECT count(*) AS differ FROM expected AS e,
    kliv_mail.classify_reply(e.stage, e.reply, e.provider) AS c,
    kliv_mail.classify_reply(e.stage, replace(e.reply, E'\r', ''), e.provider) AS d
WHERE c IS DISTINCT FROM d;

-- SendGrid's credits come back when its day (UTC) ends.
SELECT verdict, scope, pause > interval '0' AND abs(extract(epoch FROM (now() + pause) -
        (date_trunc('day', now() AT TIME ZONE 'UTC') + interval '1 day') AT TIME ZONE 'UTC')) < 60 AS until_its_day_ends
FROM kliv_mail.classify_reply('auth', '451 Authentication failed: Maximum credits exceeded', 'sendgrid');

-- Arguments.
CREATE FUNCTION pg_temp.refused(VARIADIC arguments text[]) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    hint text;
BEGIN
    PERFORM kliv_mail.classify_reply(arguments[1], arguments[2], arguments[3]);
    RETURN 'taken';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RETURN format('%s %s. %s', SQLSTATE, SQLERRM, hint);
END;
$$;
SELECT pg_temp.refused('helo', '250 ok', NULL);
SELECT pg_temp.refused('DOT', '250 ok', NULL);
SELECT pg_temp.refused(NULL, '250 ok', NULL);
SELECT pg_temp.refused('dot', NULL, NULL);
SELECT pg_temp.refused('dot', '250 ok', 'hotmail');

-- How a reply is read: code, status, printable and capped text, the server's id.
SELECT r.*
FROM (VALUES
    (1, '250 2.0.0 Ok: queued as 4Wz1Yp0Tq8z9sZ'::bytea),
    (2, '250 Ok 0102018b1f2e3d4c-5a6b7c8d-1111-2222-3333-444455556666-000000'),
    (3, '250 2.0.0 OK  1700000000 d2e1a72fcca58-6b5e0a1b2c3si123456pfg.45 - gsmtp'),
    (4, '250 OK id=1qXyZ1-0001AB-2C'),
    (5, '250 2.0.0 39B0abCD012345 Message accepted for delivery'),
    (6, '250 2.6.0 <abc@example.com> [InternalId=9921212124433, Hostname=x.outlook.com] 1500 bytes in 0.1, 12 KB/sec Queued mail for delivery'),
    (7, '250 ok'),
    (8, '550 5.1.1 queued as no1234567'),
    (9, E'550-5.7.1 one\r\n550 5.7.1 two\r\n'),
    (10, '250 5.1.1 the status contradicts the code'),
    (11, '550 5.1.1.1 no status'),
    (12, '550 5.1234.1 no status'),
    (13, '550 (#5.1.1) in brackets'),
    (14, '550'),
    (15, '55'),
    (16, ''),
    (17, '650 5.1.1 no code'),
    (18, '550-only a first line'),
    (19, E'250-hello\r\n550 5.1.1 the last line counts'),
    (20, E'garbage before it\r\n250 2.0.0 ok'),
    (21, '\x353530206e756c200020657363201b5b33316d2038626974208081ff2064656c207f'::bytea),
    (22, convert_to(U&'550 5.1.1 \5B9B\5148\4E0D\660E bidi \202E zero \200B nel \0085 tab' || E'\tend', 'UTF8')),
    (23, '\x35353020e38182e381'::bytea || ' cut in two'::bytea)
) AS v (n, raw), kliv_mail._read_reply('dot', v.raw) AS r ORDER BY v.n;

-- 70 kB, in one line and in many, with characters of three bytes: at most 1,024 bytes, cut between characters.
SELECT r.code, r.enhanced, octet_length(r.reply) BETWEEN 1000 AND 1024 AS capped, right(r.reply, 5) AS ends,
    length(r.reply) AS characters
FROM (VALUES
    (1, '550 5.1.1 ' || repeat('x', 70000)),
    (2, repeat(E'550-5.7.1 a long story\r\n', 3000) || '550 5.7.1 the end'),
    (3, '550 5.1.1 ' || repeat(U&'\3042', 30000)),
    (4, repeat(E'250-ok\r\n', 9000) || '550 no after all')
) AS v (n, raw), kliv_mail._read_reply('rcpt', convert_to(v.raw, 'UTF8')) AS r ORDER BY v.n;

-- Random bytes never fail, and what comes out is printable.
SELECT count(*) AS bad FROM (
    SELECT r.* FROM generate_series(1, 2000) AS i,
        LATERAL (SELECT decode(string_agg(md5(i::text || j), ''), 'hex') AS raw FROM generate_series(1, 1 + i % 90) AS j) AS x,
        LATERAL (SELECT kliv_mail._read_reply('dot', '\x353530'::bytea || substr(x.raw, 1, i % 1400)) AS r) AS y,
        LATERAL (SELECT (y.r).*) AS r) AS t
WHERE octet_length(reply) > 1024 OR reply ~ '[\x01-\x09\x0b-\x1f\x7f-\x9f]' OR reply IS NULL;

-- The presets.
SELECT name, host, port, encryption, required FROM kliv_mail.providers;
SELECT name FROM kliv_mail.providers
WHERE title IS NULL OR username_hint IS NULL OR password_hint IS NULL OR notes IS NULL OR docs_url !~ '^https://'
   OR example NOT LIKE 'SELECT * FROM kliv_mail.configure_smtp(provider => ''' || name || ''',%;'
   OR EXISTS (SELECT FROM unnest(required) AS r WHERE example NOT LIKE '%' || r || ' => %');
