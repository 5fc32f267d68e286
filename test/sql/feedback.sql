-- Reports: what parse_bounce() reads, what ingest_bounce() and ingest_webhook() change.
\set VERBOSITY default
\set SHOW_CONTEXT never
SET client_min_messages = warning;
CREATE SCHEMA feedback;
SET search_path = feedback, public;
\pset format unaligned
\pset tuples_only on

-- A report of a mail server.
CREATE FUNCTION dsn(recipient text, status text, diagnostic text, message_id text, action text DEFAULT 'failed', receiver text DEFAULT 'shop@shop.example')
RETURNS bytea LANGUAGE sql AS $$
    SELECT convert_to(format(E'Return-Path: <>\r\nFrom: MAILER-DAEMON@mx.example\r\nTo: %s\r\nSubject: Undelivered\r\nMIME-Version: 1.0\r\n'
        'Content-Type: multipart/report; report-type=delivery-status; boundary="=_b"\r\n\r\n--=_b\r\nContent-Type: text/plain\r\n\r\nSorry.\r\n\r\n'
        '--=_b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example\r\n\r\nFinal-Recipient: rfc822; %s\r\nAction: %s\r\n%s%s\r\n'
        '--=_b\r\nContent-Type: text/rfc822-headers\r\n\r\nMessage-ID: <%s>\r\nSubject: Receipt\r\n\r\n--=_b--\r\n',
        receiver, recipient, action, 'Status: ' || status || E'\r\n', 'Diagnostic-Code: smtp; ' || diagnostic || E'\r\n', message_id), 'UTF8') $$;

-- One that was accepted by a server; its message's Message-ID.
CREATE FUNCTION accepted(recipients text, server_id text DEFAULT NULL, type text DEFAULT 'transactional') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_id bigint := kliv_mail.send(recipients, 'Receipt', 'x', message_type => type);
BEGIN
    PERFORM kliv_mail._finish(NULL, ARRAY(SELECT ROW(o.id, 'custom', 'accepted', 'message', NULL, NULL, 'dot', 250, '2.0.0', '250 2.0.0 Ok', NULL, NULL,
        server_id, NULL, NULL, NULL)::kliv_mail._outcome FROM kliv_mail._outbox AS o WHERE o.message_id = v_id), now());
    RETURN (SELECT m.header_id FROM kliv_mail._message AS m WHERE m.id = v_id);
END $$;
CREATE FUNCTION tried(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_result text;
    v_hint text;
BEGIN
    EXECUTE 'SELECT ' || statement INTO v_result;
    RETURN v_result;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS v_hint = PG_EXCEPTION_HINT;
    RETURN sqlstate || ' ' || sqlerrm || E'\n  ' || v_hint;
END $$;
CREATE FUNCTION state_of(address text) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(concat_ws(' ', d.status, d.bounce_type, d.last_stage, d.last_code, d.last_enhanced_code, '"' || d.reason || '"', d.code), '; ' ORDER BY d.message_id)
        || coalesce(' | ' || (SELECT string_agg(concat_ws(' ', s.scope, '"' || s.reason || '"',
            round(extract(epoch FROM s.expires_at - s.created_at) / 86400) || ' days'), ', ' ORDER BY s.scope) FROM kliv_mail.suppressions AS s WHERE s.address = $1), '')
    FROM kliv_mail.deliveries AS d WHERE d.recipient = $1 $$;
CREATE FUNCTION ignored() RETURNS text LANGUAGE sql AS $$
    SELECT string_agg(concat_ws(' ', i.source, i.reason, i.count), ', ' ORDER BY i.source, i.reason) FROM kliv_mail._ignored_report AS i $$;

\echo # what parse_bounce() reads
SELECT * FROM kliv_mail.parse_bounce(dsn('bob@example.com', '5.1.1', '550 5.1.1 User unknown', 'a.1@shop.example'));
SELECT * FROM kliv_mail.parse_bounce(dsn('bob@example.com', '5.1.1 (unknown)', '550 No such user', 'a.1@shop.example', 'delayed'));
SELECT * FROM kliv_mail.parse_bounce(dsn('<bob@example.com>', NULL, E'550 5.2.2 \x1b[31m<b>full</b>; DROP TABLE x', 'a.1@shop.example'));
SELECT * FROM kliv_mail.parse_bounce(dsn('bob@example.com', '9.9.9', NULL, 'a.1@shop.example'));
SELECT p.* FROM unnest('{"","\\x00","\\x0d0a00"}'::bytea[]) AS b, kliv_mail.parse_bounce(b) AS p;
SELECT tried($$x FROM kliv_mail.parse_bounce(NULL) AS x$$);

\echo # a hard bounce: the delivery, the address, the next mail
SELECT kliv_mail.ingest_bounce(dsn('hard@example.com', '5.1.1', '550 5.1.1 User unknown', accepted('Hard@Example.com')));
SELECT state_of('Hard@example.com');
SELECT kliv_mail.send('hard@example.com', 'x', 'x') AS next \gset
SELECT d.status, d.reason, d.attempts FROM kliv_mail.deliveries AS d WHERE d.message_id = :next;
SELECT kliv_mail.ingest_bounce(dsn('soft@example.com', '5.2.2', '552 5.2.2 Mailbox full', accepted('soft@example.com'))), state_of('soft@example.com');
SELECT kliv_mail.ingest_bounce(dsn('policy@example.com', '5.7.1', '550 5.7.1 spam', accepted('policy@example.com'))), state_of('policy@example.com');
SELECT kliv_mail.ingest_bounce(dsn('slow@example.com', '4.4.1', '451 4.4.1 busy', accepted('slow@example.com'), 'delayed')), state_of('slow@example.com');
SELECT kliv_mail.ingest_bounce(dsn('there@example.com', '2.0.0', '250 ok', accepted('there@example.com'), 'delivered')), state_of('there@example.com');

\echo # forged, unknown, foreign: nothing changes, and it is counted
SELECT accepted('victim@example.com') AS victim \gset
SELECT kliv_mail.ingest_bounce(dsn('victim@example.com', '5.1.1', '550 5.1.1 User unknown', 'guess@shop.example'));
SELECT kliv_mail.ingest_bounce(dsn('other@example.com', '5.1.1', '550 5.1.1 User unknown', :'victim'));
SELECT kliv_mail.ingest_bounce(dsn('victim@example.com', '5.1.1', '550 5.1.1 User unknown', :'victim', 'failed', 'b+abc.abc.abcdefghijklmnop@bounce.example'));
SELECT kliv_mail.ingest_bounce(convert_to(E'Subject: Out of office\nAuto-Submitted: auto-replied\nIn-Reply-To: <' || :'victim' || E'>\n\nvictim@example.com: 550 5.1.1 no', 'UTF8'));
SELECT kliv_mail.ingest_bounce(convert_to(E'From: eve@example.net\nSubject: failure\n\nvictim@example.com: 550 5.1.1 no\n\nMessage-ID: <' || :'victim' || '>', 'UTF8'));
SELECT state_of('victim@example.com');
SELECT p.report_type, p.recipient FROM (VALUES (E'Ana <ana@example.com>\nAuto-Submitted: auto-replied'), (E'x@example.com\nAuto-Submitted: auto-generated'), ('x@example.com')) AS f (header),
    LATERAL kliv_mail.parse_bounce(convert_to(E'Return-Path: <>\nFrom: ' || f.header || E'\nSubject: Re: Receipt\nIn-Reply-To: <id@x>\n\nNobody reads this before Monday, so your mail will not reach me.\n\nAna Smith\nana@example.com\n+49 30 1234\n', 'UTF8')) AS p;
SELECT ignored();
SELECT e.kind, e.detail, e.data FROM kliv_mail.events AS e WHERE e.kind = 'reports_ignored' ORDER BY e.detail;

\echo # who has one mail can report on it for ever: what changes nothing is kept fifty times
SELECT accepted('flood@example.com') AS flood \gset
SELECT sum(kliv_mail.ingest_bounce(dsn('flood@example.com', '4.4.1', 'try ' || i, :'flood', 'delayed'))) FROM generate_series(1, 60) AS i;
SELECT count(*) FROM kliv_mail._report WHERE recipient = 'flood@example.com';
SELECT kliv_mail.ingest_bounce(dsn('flood@example.com', '5.1.1', '550 5.1.1 User unknown', :'flood')), state_of('flood@example.com');

\echo # who knows a Message-ID by being another recipient of it suppresses nobody
SELECT accepted('ana@example.com, ben@example.com') AS two \gset
SELECT kliv_mail.ingest_bounce(dsn('ana@example.com', '5.1.1', '550 5.1.1 User unknown', :'two')), state_of('ana@example.com'), state_of('ben@example.com');

\echo # the same once; ranks; a complaint after it, with the address kept back
SELECT accepted('rank@example.com') AS rank \gset
SELECT kliv_mail.ingest_bounce(dsn('rank@example.com', '4.2.2', '452 4.2.2 full', :'rank'));
SELECT kliv_mail.ingest_bounce(dsn('rank@example.com', '4.2.2', '452 4.2.2 full', :'rank'));
SELECT kliv_mail.ingest_bounce(dsn('rank@example.com', '2.0.0', '250 ok', :'rank', 'delivered')), state_of('rank@example.com');
CREATE FUNCTION arf(type text, fields text, message_id text) RETURNS bytea LANGUAGE sql AS $$
    SELECT convert_to(format(E'From: fbl@isp.example\nSubject: complaint\nContent-Type: multipart/report; report-type=feedback-report; boundary=b\n\n--b\n'
        'Content-Type: message/feedback-report\n\nFeedback-Type: %s\nUser-Agent: x\nVersion: 1\n%s\n--b\nContent-Type: message/rfc822\n\n'
        'Message-ID: <%s>\n\nx\n--b--\n', type, fields, message_id), 'UTF8') $$;
SELECT * FROM kliv_mail.parse_bounce(arf('abuse', E'Original-Rcpt-To: <rank@example.com>\n', 'id@x'));
SELECT kliv_mail.ingest_bounce(arf('not-spam', '', :'rank')), kliv_mail.ingest_bounce(arf('abuse', '', :'rank')), state_of('rank@example.com');

\echo # carriers whose subscribers filter: an unknown one is suppressed for 30 days, then for good; at the dot it is soft
SELECT kliv_mail.ingest_bounce(dsn('taro@docomo.ne.jp', '5.1.1', '550 5.1.1 User unknown', accepted('taro@docomo.ne.jp'))), state_of('taro@docomo.ne.jp');
UPDATE kliv_mail._suppression SET expires_at = now() - interval '1 day' WHERE address = 'taro@docomo.ne.jp';
SELECT kliv_mail.ingest_bounce(dsn('taro@docomo.ne.jp', '5.1.1', '550 5.1.1 User unknown', accepted('taro@docomo.ne.jp'))), state_of('taro@docomo.ne.jp');
SELECT kliv_mail.ingest_bounce(dsn('jiro@ezweb.ne.jp', '5.1.1', '550 5.1.1 User unknown (in reply to end of DATA command)', accepted('jiro@ezweb.ne.jp'))), state_of('jiro@ezweb.ne.jp');
SELECT a, kliv_mail._filters_by_recipient(a) FROM unnest('{a@docomo.ne.jp,a@x.docomo.ne.jp,a@notdocomo.ne.jp,a@I.SOFTBANK.JP,a@softbank.example,docomo.ne.jp}'::text[]) AS a;

\echo # a manual suppression is never shortened; redirect_to suppresses nobody
SELECT kliv_mail.suppress('hanako@docomo.ne.jp', 'marketing') FROM (SELECT accepted('hanako@docomo.ne.jp') AS id) AS x;
SELECT kliv_mail._suppress_for('hanako@docomo.ne.jp', 'marketing', 'shorter', now() + interval '1 day'), state_of('hanako@docomo.ne.jp');

\echo # a report settles what was in doubt, and says nothing of what waits for another attempt
SELECT kliv_mail.send('doubt@example.com', 'x', 'x') AS doubt \gset
UPDATE kliv_mail._outbox SET doubtful = true, due = 'infinity' WHERE message_id = :doubt;
SELECT kliv_mail.ingest_bounce(dsn('doubt@example.com', '5.1.1', '550 5.1.1 User unknown', header_id)), state_of('doubt@example.com') FROM kliv_mail._message WHERE id = :doubt;
SELECT state_of('doubt@example.com');
SELECT kliv_mail.send('waits@example.com', 'x', 'x') AS waits \gset
SELECT kliv_mail.ingest_bounce(dsn('waits@example.com', '5.1.1', '550 5.1.1 User unknown', header_id)) FROM kliv_mail._message WHERE id = :waits;
SELECT d.status FROM kliv_mail.deliveries AS d WHERE d.message_id = :waits;
SELECT kliv_mail.cancel(:waits);

\echo # one recipient of three
SELECT kliv_mail.ingest_bounce(convert_to(replace(convert_from(dsn('three@example.com', '5.1.1', '550 5.1.1 User unknown', accepted('three@example.com')), 'UTF8'),
    E'\r\n--=_b\r\nContent-Type: text/rfc822', E'\r\nFinal-Recipient: rfc822; x@example.com\r\nAction: delayed\r\nStatus: 4.4.1\r\n\r\n'
    'Original-Recipient: rfc822;y@example.com\r\nAction: delivered\r\nStatus: 2.0.0\r\n\r\n--=_b\r\nContent-Type: text/rfc822'), 'UTF8')), state_of('three@example.com');

\echo # the domain of return paths
CREATE FUNCTION set_domain(d text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER DATABASE %I SET kliv_mail.bounce_domain = %L', current_database(), d);
    RETURN 'good';
END $$;
SELECT d, tried(format('set_domain(%L)', d)) FROM unnest('{bounce.example.com,nodot,"[192.0.2.1]",a b.example,-x.example,""}'::text[]) AS d;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET kliv_mail.bounce_domain', current_database()); END $$;

\echo # what is configured for webhooks
SELECT tried($$kliv_mail.configure_webhook('nobody', secret => 'x')$$);
SELECT tried($$kliv_mail.configure_webhook('sendgrid', secret => 'x')$$);
SELECT tried($$kliv_mail.configure_webhook('sendgrid', public_key => 'x')$$);
SELECT tried($$kliv_mail.configure_webhook('resend', secret => 'x')$$);
SELECT tried($$kliv_mail.configure_webhook('postmark', secret => repeat('x', 1001))$$);
SELECT tried($$kliv_mail.configure_webhook('ses', topic_arn => 'x')$$);
SELECT tried($$kliv_mail.configure_webhook('ses', certificate => 'x')$$);
SELECT tried($$kliv_mail.configure_webhook(NULL)$$);
SELECT kliv_mail.configure_webhook('ses', topic_arn => 'arn:aws:sns:us-west-2:123456789012:MyTopic');
SELECT tried($$kliv_mail.ingest_webhook('ses', '{}', '{}')$$);
SELECT kliv_mail.configure_webhook('ses', topic_arn => '');
SELECT kliv_mail.configure_webhook('postmark', secret => 'hook:s3cret s3cret s3cret');
SELECT kliv_mail.configure_webhook('mailgun', secret => 'key-TEST');
SELECT kliv_mail.configure_webhook('resend', secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw');

\echo # requests that are none of the provider's
SELECT tried($$kliv_mail.ingest_webhook('sendgrid', '{}', '[]')$$);
SELECT tried($$kliv_mail.ingest_webhook('nobody', '{}', '[]')$$);
SELECT tried($$kliv_mail.ingest_webhook('postmark', '[]', '{}')$$);
SELECT tried($$kliv_mail.ingest_webhook('postmark', NULL, '{}')$$);
SELECT tried($$kliv_mail.ingest_webhook('postmark', '{}', '{}')$$);
SELECT tried($$kliv_mail.ingest_webhook('postmark', '{"authorization": "Basic aG9vazpzM2NyZXQ="}', '{}')$$);
SELECT tried($$kliv_mail.ingest_webhook('mailgun', '{}', '{')$$);
SELECT tried($$kliv_mail.ingest_webhook('mailgun', '{}', '{"signature": {"timestamp": "hello", "token": "t", "signature": "00"}}')$$);
SELECT tried($$kliv_mail.ingest_webhook('postmark', '{}', convert_to(repeat(' ', 5000000), 'UTF8'))$$);

-- Signed by the secrets above.
CREATE FUNCTION mailgun(event jsonb, token text, at timestamptz DEFAULT now()) RETURNS integer LANGUAGE sql AS $$
    SELECT kliv_mail.ingest_webhook('mailgun', '{}', convert_to(jsonb_build_object('signature', jsonb_build_object('timestamp', extract(epoch FROM at)::bigint::text,
        'token', token, 'signature', encode(public.hmac(extract(epoch FROM at)::bigint::text || token, 'key-TEST', 'sha256'), 'hex')), 'event-data', event)::text, 'UTF8')) $$;
CREATE FUNCTION svix(body text, id text DEFAULT 'msg_1', at timestamptz DEFAULT now(), before text DEFAULT '', version text DEFAULT 'v1', names text[] DEFAULT '{svix-id,svix-timestamp,svix-signature}')
RETURNS integer LANGUAGE sql AS $$
    SELECT kliv_mail.ingest_webhook('resend', jsonb_build_object(names[1], id, names[2], extract(epoch FROM at)::bigint::text, names[3],
        before || version || ',' || encode(public.hmac(convert_to(id || '.' || extract(epoch FROM at)::bigint || '.' || body, 'UTF8'),
            decode('MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', 'base64'), 'sha256'), 'base64')), convert_to(body, 'UTF8')) $$;
CREATE FUNCTION postmark(body jsonb) RETURNS integer LANGUAGE sql AS $$
    SELECT kliv_mail.ingest_webhook('postmark', jsonb_build_object('AUTHORIZATION', 'Basic ' || encode('hook:s3cret s3cret s3cret', 'base64')), convert_to(body::text, 'UTF8')) $$;

\echo # mailgun: every event; a token once; only the Message-ID says whose it is
CREATE FUNCTION mailgun_event(event text, id text, recipient text, more jsonb DEFAULT '{}') RETURNS jsonb LANGUAGE sql AS $$
    SELECT jsonb_build_object('event', event, 'recipient', recipient, 'message', jsonb_build_object('headers', jsonb_build_object('message-id', id))) || more $$;
SELECT accepted('mg@example.com') AS mg \gset
SELECT mailgun(mailgun_event('accepted', :'mg', 'mg@example.com'), 't1'), mailgun(mailgun_event('failed', :'mg', 'mg@example.com', '{"severity": "temporary"}'), 't2'),
    mailgun(mailgun_event('opened', :'mg', 'mg@example.com'), 't3'), state_of('mg@example.com');
SELECT mailgun(mailgun_event('delivered', :'mg', 'mg@example.com'), 't4'), state_of('mg@example.com');
SELECT mailgun(mailgun_event('failed', :'mg', 'mg@example.com', '{"severity": "permanent", "delivery-status": {"code": 550, "message": "5.1.1 no such user"}}'), 't4') AS again;
SELECT mailgun(mailgun_event('failed', :'mg', 'victim@example.com', '{"severity": "permanent", "delivery-status": {"code": 550, "message": "5.1.1 no such user"}}'), 't5') AS foreign;
SELECT mailgun(mailgun_event('failed', :'mg', 'mg@example.com', '{"severity": "permanent", "delivery-status": {"code": 550, "message": "5.1.1 no such user"}}'), 't6'), state_of('mg@example.com');
SELECT mailgun(mailgun_event('delivered', :'mg', 'mg@example.com'), 't7'), mailgun(mailgun_event('complained', :'mg', 'mg@example.com'), 't8'), state_of('mg@example.com');
SELECT accepted('unsubscribed@example.com') AS mg \gset
SELECT mailgun(mailgun_event('unsubscribed', :'mg', 'unsubscribed@example.com'), 't9'), state_of('unsubscribed@example.com');
SELECT tried($$mailgun(mailgun_event('delivered', 'x', 'unsubscribed@example.com'), 't10', now() - interval '13 hours')$$);

\echo # resend: the list, the window, the names of its headers, each event
SELECT accepted('re@example.com', 're-1') AS re \gset
SELECT svix('{"type": "email.sent", "data": {"email_id": "re-1", "to": ["re@example.com"]}}', 'm1'), svix('{"type": "email.opened", "data": {"email_id": "re-1", "to": ["re@example.com"]}}', 'm2');
SELECT svix('{"type": "email.delivered", "data": {"email_id": "re-1", "to": ["re@example.com"]}}', 'm3', before => 'v1,AAAA v2,x '), state_of('re@example.com');
SELECT svix('{"type": "email.bounced", "data": {"email_id": "re-1", "to": ["re@example.com"], "bounce": {"type": "Permanent", "subType": "General", "message": "550 5.1.1 \u0000 unknown"}}}', 'm4',
    names => '{webhook-id,WEBHOOK-TIMESTAMP,Webhook-Signature}'), state_of('re@example.com');
SELECT tried($$svix('{}', at => now() - interval '302 seconds')$$);
SELECT tried($$svix('{}', at => now() + interval '310 seconds')$$);
SELECT tried($$svix('{}', version => 'v1a')$$);
SELECT tried($$svix('no json')$$);
SELECT svix('{}', 'm5'), svix('[]', 'm6'), svix('{"type": "email.bounced", "data": {"to": ["never@example.com"], "extra": 1}}', 'm7');

\echo # postmark: by what it repeats of ours, and the recipient
SELECT accepted('pm@example.com') AS pm \gset
SELECT d.id AS pm_id FROM kliv_mail._delivery AS d WHERE d.recipient = 'pm@example.com' \gset
SELECT postmark(jsonb_build_object('RecordType', 'Delivery', 'MessageID', 'x', 'Recipient', 'pm@example.com', 'Metadata', jsonb_build_object('kliv-mail', :'pm_id'))), state_of('pm@example.com');
SELECT postmark(jsonb_build_object('RecordType', 'Bounce', 'ID', 1, 'Type', 'HardBounce', 'Email', 'victim@example.com', 'Metadata', jsonb_build_object('kliv-mail', :'pm_id'))) AS foreign;
SELECT postmark(jsonb_build_object('RecordType', 'Bounce', 'ID', 2, 'Type', 'AutoResponder', 'Email', 'pm@example.com', 'Metadata', jsonb_build_object('kliv-mail', :'pm_id'))) AS autoreply;
SELECT postmark(jsonb_build_object('RecordType', 'Bounce', 'ID', 3, 'Type', 'SoftBounce', 'Email', 'pm@example.com', 'Details', 'smtp;550 5.1.1 unknown', 'Metadata', jsonb_build_object('kliv-mail', :'pm_id'))), state_of('pm@example.com');
SELECT postmark(jsonb_build_object('RecordType', 'Bounce', 'ID', 4, 'Type', 'HardBounce', 'Email', 'pm@example.com', 'Details', 'smtp;550 5.1.1 unknown', 'Metadata', jsonb_build_object('kliv-mail', :'pm_id'))), state_of('pm@example.com');
SELECT postmark(jsonb_build_object('RecordType', 'SpamComplaint', 'ID', 5, 'Email', 'pm@example.com', 'Metadata', jsonb_build_object('kliv-mail', :'pm_id'))), state_of('pm@example.com');

\echo # how the events of the other two are read
SELECT e.key, e.kind, e.bounce_type, e.recipient, e.header_id, e.server_id, e.delivery_id, e.status, e.diagnostic FROM kliv_mail._sendgrid_events('[
    {"sg_event_id": "1", "event": "processed", "email": "a@x.example", "smtp-id": "<i@x>", "sg_message_id": "s.filter", "kliv_mail": "7"},
    {"sg_event_id": "2", "event": "bounce", "type": "bounce", "email": "a@x.example", "status": "5.1.1", "reason": "550 5.1.1 unknown"},
    {"sg_event_id": "3", "event": "bounce", "type": "blocked", "email": "a@x.example"}, {"sg_event_id": "4", "event": "dropped", "reason": "Bounced Address", "email": "a@x.example"},
    {"sg_event_id": "5", "event": "dropped", "reason": "Spam Content", "email": "a@x.example"}, {"sg_event_id": "6", "event": "deferred"}, {"sg_event_id": "7", "event": "spamreport"},
    {"sg_event_id": "8", "event": "group_unsubscribe"}, {"sg_event_id": "9", "event": "open"}, {"sg_event_id": "10", "event": "delivered", "response": "250 ok"}, 1, null, "x"]') AS e;
SELECT count(*) FROM unnest('{"{}",1,null}'::jsonb[]) AS j, kliv_mail._sendgrid_events(j);
SELECT e.key, e.kind, e.bounce_type, e.recipient, e.header_id, e.server_id, e.status, e.diagnostic FROM (VALUES
    ('{"notificationType": "Bounce", "mail": {"messageId": "m1", "headers": [{"name": "Message-ID", "value": "<i@x>"}]}, "bounce": {"bounceType": "Permanent", "bounceSubType": "General", "bouncedRecipients": [{"emailAddress": "a@x.example", "status": "5.1.1", "diagnosticCode": "smtp; 550 5.1.1 unknown"}, {"emailAddress": "B <b@x.example>"}]}}'),
    ('{"eventType": "Bounce", "bounce": {"bounceType": "Transient", "bouncedRecipients": [{"emailAddress": "a@x.example"}]}}'), ('{"eventType": "Bounce", "bounce": {"bounceType": "Permanent", "bounceSubType": "NoEmail", "bouncedRecipients": [{"emailAddress": "a@x.example"}]}}'),
    ('{"eventType": "Bounce", "bounce": {"bounceType": "Transient", "bounceSubType": "General", "bouncedRecipients": [{"emailAddress": "away@x.example"}]}}'),
    ('{"eventType": "Bounce", "bounce": {"bounceType": "Transient", "bounceSubType": "General", "bouncedRecipients": [{"emailAddress": "a@x.example", "action": "failed", "status": "4.4.7"}]}}'),
    ('{"eventType": "Complaint", "complaint": {"complainedRecipients": [{"emailAddress": "a@x.example"}]}}'), ('{"eventType": "Complaint", "complaint": {"complaintFeedbackType": "not-spam", "complainedRecipients": [{"emailAddress": "a@x.example"}]}}'),
    ('{"eventType": "Delivery", "delivery": {"recipients": ["a@x.example"]}}'), ('{"eventType": "DeliveryDelay", "deliveryDelay": {"delayedRecipients": [{"emailAddress": "a@x.example"}]}}'),
    ('{"eventType": "Reject", "reject": {"reason": "Bad content"}, "mail": {"destination": ["a@x.example"]}}'), ('{"eventType": "Open", "mail": {"destination": ["a@x.example"]}}'), ('{}'), ('[]')) AS v (event),
    LATERAL kliv_mail._ses_events('id', v.event::jsonb) AS e;

\echo # secrets are sealed, masked, turned over, and nobody but an administrator changes them
SELECT w.provider, w.secret_masked, w.secret_cipher IS NOT NULL AND position('s3cret'::bytea IN w.secret_cipher) = 0 FROM kliv_mail._webhook AS w ORDER BY 1;
SELECT e.detail, e.data FROM kliv_mail.events AS e WHERE e.kind = 'webhook_configured' ORDER BY e.at, e.detail;
SELECT kliv_mail.rotate_key() >= 3, postmark('{"RecordType": "Open"}');
SELECT kliv_mail.configure_webhook('postmark', secret => 's3cret s3cret s3cret'), postmark('{"RecordType": "Open"}');
SELECT kliv_mail.configure_webhook('mailgun', secret => ''), kliv_mail.configure_webhook('resend', secret => ''), kliv_mail.configure_webhook('postmark', secret => '');
CREATE ROLE feedback_ingest;
GRANT USAGE ON SCHEMA feedback TO feedback_ingest;
SELECT kliv_mail.grant_ingest('feedback_ingest');
SET ROLE feedback_ingest;
SELECT kliv_mail.ingest_bounce('');
SELECT tried($$kliv_mail.ingest_bounce(NULL)$$);
SELECT tried($$kliv_mail.configure_webhook('mailgun', secret => 'mine')$$);
RESET ROLE;
SELECT kliv_mail.revoke_access('feedback_ingest');
REVOKE USAGE ON SCHEMA feedback FROM feedback_ingest;
DROP ROLE feedback_ingest;
SELECT e.kind, e.recipient, e.detail, e.data FROM kliv_mail.events AS e WHERE e.recipient IN ('pm@example.com', 'hard@example.com', 'Hard@example.com') ORDER BY e.recipient, e.at, e.kind;
SELECT ignored();
DELETE FROM kliv_mail._suppression WHERE reason ~ '^(hard bounce|complaint|unsubscribed at)' OR address = 'hanako@docomo.ne.jp';
DROP SCHEMA feedback CASCADE;
