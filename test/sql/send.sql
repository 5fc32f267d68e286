-- Bad input at send() and its kin: each is refused with a precise SQLSTATE and
-- a message that names the argument, and queues nothing; what is only unusual
-- is queued and goes on the wire as it should.  The ids are those of the
-- catalogue of bad inputs (B001 to B069); those that need a server are TAP tests.
SET client_min_messages = warning;
-- Nothing of this is to leave, whatever the server is configured for.
SELECT kliv_mail.pause(reason => 'regression test') >= 0 AS paused;

-- Run one call of send() and say what came of it: the SQLSTATE, message and
-- hint, or the deliveries queued.
CREATE FUNCTION tried(arguments text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    sent bigint;
    before bigint := (SELECT count(*) FROM kliv_mail._outbox);
    hint text;
BEGIN
    EXECUTE 'SELECT kliv_mail.send(' || arguments || ')' INTO sent;
    RETURN 'queued: ' || (SELECT string_agg(format('<%s>', o.recipient), ' ' ORDER BY o.id)
                           FROM kliv_mail._outbox AS o WHERE o.message_id = sent);
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    IF before <> (SELECT count(*) FROM kliv_mail._outbox) THEN
        RETURN 'SOMETHING WAS QUEUED';
    END IF;
    RETURN SQLSTATE || ' ' || SQLERRM || coalesce(E'\n  ' || nullif(hint, ''), '');
END $$;

CREATE FUNCTION header_of(id bigint) RETURNS text LANGUAGE sql AS $$
    SELECT replace(convert_from(split.head, 'UTF8'), E'\r\n', E'\n')
    FROM (SELECT substring(m.entity FROM 1 FOR position('\x0d0a0d0a'::bytea IN m.entity) + 1) AS head
          FROM kliv_mail._message AS m WHERE m.id = header_of.id) AS split $$;

\pset format unaligned
\pset tuples_only on

\echo # recipients
SELECT id || ' ' || tried(arguments) FROM (VALUES
    ('B001a', $$NULL, 's', 'b'$$),
    ('B001b', $$'', 's', 'b'$$),
    ('B001c', $$'   ', 's', 'b'$$),
    ('B002', $$E'a@b.example\r\nBcc: evil@x.example', 's', 'b'$$),
    ('B003', $$E'a@b.example>\r\nRCPT TO:<evil@x.example', 's', 'b'$$),
    ('B004', $$E'a@b.example\nDATA', 's', 'b'$$),
    ('B005', $$'<a@b.example> NOTIFY=NEVER', 's', 'b'$$),
    ('B006', $$'b@y.example> ORCPT=rfc822;x', 's', 'b'$$),
    ('B007', $$'a b@x.example', 's', 'b'$$),
    ('B008a', $$'a@', 's', 'b'$$),
    ('B008b', $$'@x.example', 's', 'b'$$),
    ('B008c', $$'a', 's', 'b'$$),
    ('B008d', $$'a@@x.example', 's', 'b'$$),
    ('B009a', $$'.a@x.example', 's', 'b'$$),
    ('B009b', $$'a.@x.example', 's', 'b'$$),
    ('B009c', $$'a..b@x.example', 's', 'b'$$),
    ('B010', $$'"a b"@x.example', 's', 'b'$$),
    ('B011', $$E'"a\r\nb"@x.example', 's', 'b'$$),
    ('B012a', $$repeat('a', 65) || '@x.example', 's', 'b'$$),
    ('B012b', $$repeat('a', 64) || '@x.example', 's', 'b'$$),
    ('B013a', $$repeat('a', 64) || '@' || repeat('b', 63) || '.' || repeat('c', 63) || '.' || repeat('d', 54) || '.example', 's', 'b'$$),
    ('B013b', $$repeat('a', 64) || '@' || repeat('b', 63) || '.' || repeat('c', 63) || '.' || repeat('d', 53) || '.example', 's', 'b'$$),
    ('B014a', $$'a@' || repeat('b', 64) || '.example', 's', 'b'$$),
    ('B014b', $$'a@x-.example', 's', 'b'$$),
    ('B014c', $$'a@x_y.example', 's', 'b'$$),
    ('B015a', $$'a@[127.0.0.1]', 's', 'b'$$),
    ('B015b', $$'a@[IPv6:::1]', 's', 'b'$$),
    ('B015c', $$'a@localhost', 's', 'b'$$),
    ('B017', $$U&'joe@ex\00E4mple.com', 's', 'b'$$),
    ('B018', $$'joe@xn--80ak6aa92e.com', 's', 'b'$$),
    ('B019a', $$U&'joe@exam\200Bple.com', 's', 'b'$$),
    ('B019b', $$U&'\FEFFjoe@x.example', 's', 'b'$$),
    ('B021a', $$'Undisclosed:;', 's', 'b'$$),
    ('B021b', $$'A <a@x.example>, B <b@x.example>', 's', 'b'$$),
    ('B022', $$(SELECT string_agg(format('a%s@x.example', i), ', ') FROM generate_series(1, 51) AS i), 's', 'b'$$),
    ('B022b', $$(SELECT string_agg(format('a%s@x.example', i), ', ') FROM generate_series(1, 25) AS i), 's', 'b',
                cc => (SELECT string_agg(format('c%s@x.example', i), ', ') FROM generate_series(1, 26) AS i)$$),
    ('B022c', $$(SELECT string_agg(format('a%s@x.example', i), ', ') FROM generate_series(1, 10001) AS i), 's', 'b'$$),
    ('B023', $$'a@x.example, A@X.EXAMPLE, a@x.example', 's', 'b'$$),
    ('B024a', $$ARRAY['a@x.example', NULL]::text, 's', 'b'$$),
    ('B024b', $$ARRAY[['a@x.example'], ['b@x.example']]::text, 's', 'b'$$),
    ('semicolon', $$'a@x.example; b@x.example', 's', 'b'$$),
    ('fullwidth', $$U&'\FF41@x.example', 's', 'b'$$),
    ('wide comma', $$U&'a@x.example\FF0Cb@x.example', 's', 'b'$$),
    ('wide space', $$U&'\3000a@x.example\3000', 's', 'b'$$),
    ('cc', $$'a@x.example', 's', 'b', cc => 'x'$$),
    ('bcc', $$'a@x.example', 's', 'b', bcc => E'b@x.example\nX: y'$$),
    ('kinds', $$'a@x.example', 's', 'b', cc => 'b@x.example', bcc => 'c@x.example'$$)) AS t (id, arguments);

\echo # names, From, Reply-To
SELECT id || ' ' || tried(arguments) FROM (VALUES
    ('B025', $$'a@x.example', 's', 'b', from_name => E'Bob\r\nBcc: x@y'$$),
    ('B025b', $$E'"Bob\r\nBcc: x@y" <a@x.example>', 's', 'b'$$),
    ('B026', $$'a@x.example', 's', 'b', from_name => U&'Bob \202Ecod.exe'$$),
    ('B026b', $$U&'Bob \202Ecod.exe <a@x.example>', 's', 'b'$$),
    ('B027', $$'a@x.example', 's', 'b', from_name => '"CEO" <ceo@bank.example>'$$),
    ('B028', $$'a@x.example', 's', 'b', from_address => 'not an address'$$),
    ('B049a', $$'a@x.example', 's', 'b', reply_to => 'nobody'$$),
    ('B049b', $$'a@x.example', 's', 'b', reply_to => E'a@x.example\r\n'$$)) AS t (id, arguments);

\echo # subject and bodies
SELECT id || ' ' || tried(arguments) FROM (VALUES
    ('B029a', $$'a@x.example', E'Hi\r\nX: y', 'b'$$),
    ('B029b', $$'a@x.example', E'Hi\nX', 'b'$$),
    ('B029c', $$'a@x.example', E'Hi\rX', 'b'$$),
    ('B030', $$'a@x.example', repeat(U&'\00E9', 200), 'b'$$),
    ('B031', $$'a@x.example', '=?utf-8?B?SGk=?=', 'b'$$),
    ('B032a', $$'a@x.example', U&'a\2028b', 'b'$$),
    ('B032b', $$'a@x.example', U&'a\0085b', 'b'$$),
    ('B032c', $$'a@x.example', E'a\tb', 'b'$$),
    ('B032d', $$'a@x.example', '   ', 'b'$$),
    ('B032e', $$'a@x.example', '', 'b'$$),
    ('subject NULL', $$'a@x.example', NULL, 'b'$$),
    ('B033', $$'a@x.example', repeat('x', 20000), 'b'$$),
    ('B034', $$'a@x.example', 's'$$),
    ('B036', $$'a@x.example', 's', E'x\n.\nMAIL FROM:<e@v>\nRCPT TO:<f@v>'$$),
    ('B041', $$'a@x.example', 's', repeat(repeat('x', 1024), 30 * 1024)$$)) AS t (id, arguments);

\echo # headers
SELECT id || ' ' || tried($$'a@x.example', 's', 'b', headers => $$ || quote_literal(headers)) FROM (VALUES
    ('B042a', '{"Bcc":"x@y"}'), ('B042b', '{"bcc":"x@y"}'), ('B042c', '{"BCC ":"x@y"}'),
    ('B043a', '{"From":"x@y"}'), ('B043b', '{"Sender":"x@y"}'), ('B043c', '{"Date":"x"}'), ('B043d', '{"Message-ID":"<x@y>"}'),
    ('B043e', '{"Return-Path":"<x@y>"}'), ('B043f', '{"Received":"x"}'), ('B043g', '{"DKIM-Signature":"x"}'), ('B043h', '{"Content-Type":"x/y"}'),
    ('B043i', '{"To":"x@y"}'), ('B043j', '{"CC":"x@y"}'), ('B043k', '{"mime-version":"1.0"}'), ('B043l', '{"Subject":"x"}'), ('B043m', '{"Reply-To":"x@y.example"}'),
    ('B044a', '{"X A":"1"}'), ('B044b', '{"X:":"1"}'), ('B044c', '{"":"1"}'), ('B044d', '{"X-é":"1"}'),
    ('B045a', '{"X-A\r\nBcc":"1"}'), ('B045b', '{"X-A":"1\r\nBcc: x"}'), ('B045c', '{"X-A":"1\nBcc: x"}'),
    ('B046a', '{"X-A":1}'), ('B046b', '{"X-A":null}'), ('B046c', '{"X-A":["a"]}'), ('B046d', '{"X-A":{}}'), ('B046e', '[]'), ('B046f', '"x"'),
    ('B048a', '{"List-Unsubscribe":"<http://x.example/u>","List-Unsubscribe-Post":"List-Unsubscribe=One-Click"}'),
    ('B048b', '{"List-Unsubscribe":"<https://x.example/u>","List-Unsubscribe-Post":"List-Unsubscribe=One-Click"}'),
    ('fine', '{"X-Order":"7","In-Reply-To":"<a@b.example>"}')) AS t (id, headers);
SELECT id || ' ' || tried($$'a@x.example', 's', 'b', headers => $$ || headers) FROM (VALUES
    ('B047a', $$(SELECT jsonb_object_agg('X-' || i, 'v') FROM generate_series(1, 1000) AS i)$$),
    ('B047b', $$jsonb_build_object('X-A', repeat('x', 20000))$$),
    ('B047c', $$jsonb_build_object('X-' || repeat('a', 78), 'x')$$)) AS t (id, headers);

\echo # the other arguments
SELECT id || ' ' || tried($$'a@x.example', 's', 'b', $$ || arguments) FROM (VALUES
    ('B050a', $$send_at => 'infinity'$$),
    ('B050b', $$send_at => '-infinity'$$),
    ('B050c', $$send_at => '294276-12-31'$$),
    ('expires_at', $$expires_at => 'infinity'$$),
    ('expired', $$expires_at => '2001-01-01'$$),
    ('B024c', $$attachments => ARRAY[NULL]::kliv_mail.attachment[]$$),
    ('B024d', $$attachments => ARRAY[[kliv_mail.attach('a', 'x')], [kliv_mail.attach('b', 'x')]]$$),
    ('B024e', $$tags => ARRAY['a', NULL]$$),
    ('B024f', $$tags => ARRAY[['a'], ['b']]$$),
    ('B054', $$account => 'no-such-account'$$),
    ('message_type', $$message_type => 'urgent'$$),
    ('on_limit', $$on_limit => 'drop'$$),
    ('key', $$idempotency_key => ''$$),
    ('marketing', $$message_type => 'marketing'$$)) AS t (id, arguments);

\echo # B020: a zero byte
SELECT kliv_mail.send('a@x.example', 's', E'a\x00b');
SELECT kliv_mail.send('a@x.example', 's', 'b', attachments => ARRAY[kliv_mail.attach(convert_from('\x6100', 'UTF8'), 'x')]);

\echo # B039: controls are encoded, invalid UTF-8 is refused
SELECT tried($$'a@x.example', 's', (SELECT string_agg(chr(i), '') FROM generate_series(1, 31) AS i) || chr(127)$$);
SELECT kliv_mail.send('a@x.example', 's', convert_from('\xeda080', 'UTF8'));

\echo # B030, B031, B032: the header as it goes on the wire
SELECT line FROM (VALUES (repeat(U&'\00E9', 200)), ('=?utf-8?B?SGk=?='), (E'a\tb'), ('   '), ('')) AS s (subject),
    LATERAL (SELECT kliv_mail.send('a@x.example', s.subject, 'b') AS id) AS m,
    LATERAL (SELECT substring(header_of(m.id) FROM '(Subject:[^\n]*(?:\n[ \t][^\n]*)*)') AS line) AS h;

\echo # B051: rolled back
SELECT count(*) AS before FROM kliv_mail._outbox \gset
BEGIN;
SELECT kliv_mail.send('a@x.example', 's', 'b') > 0 AS queued;
SAVEPOINT s;
SELECT kliv_mail.send('b@x.example', 's', 'b') > 0 AS queued;
ROLLBACK TO s;
ROLLBACK;
CREATE TABLE signup (email text);
CREATE FUNCTION signup_mail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM kliv_mail.send(NEW.email, 's', 'b');
    RAISE EXCEPTION 'something else went wrong';
END $$;
CREATE TRIGGER signup_mail AFTER INSERT ON signup FOR EACH ROW EXECUTE FUNCTION signup_mail();
INSERT INTO signup VALUES ('a@x.example');
DROP TABLE signup;
DROP FUNCTION signup_mail();
SELECT count(*) - :before AS "queued by rolled back transactions" FROM kliv_mail._outbox;

\echo # B052: read only
BEGIN READ ONLY;
SELECT kliv_mail.send('a@x.example', 's', 'b');
ROLLBACK;

\echo # B053: without the right
CREATE ROLE regress_kliv_mail_nobody;
SET ROLE regress_kliv_mail_nobody;
SELECT kliv_mail.send('a@x.example', 's', 'b');
RESET ROLE;

\echo # B055: idempotency keys
SELECT kliv_mail.send('a@x.example', 's', 'b', idempotency_key => 'k1') = kliv_mail.send('a@x.example', 's', 'b', idempotency_key => 'k1');
SELECT regexp_replace(tried($$'a@x.example', 's', 'another body', idempotency_key => 'k1'$$), 'message \d+', 'message N');
-- Two roles with the same key do not meet.
CREATE ROLE regress_kliv_mail_sender;
SELECT kliv_mail.grant_send('regress_kliv_mail_sender');
SET ROLE regress_kliv_mail_sender;
SELECT kliv_mail.send('a@x.example', 's', 'a third body', idempotency_key => 'k1') > 0;
SELECT count(*) FROM kliv_mail.messages;
RESET ROLE;

\echo # B056: bcc stands in no header
SELECT kliv_mail.send('a@x.example', 's', 'b', bcc => 'hidden@x.example') AS id \gset
SELECT position('hidden' IN convert_from(entity, 'UTF8')) FROM kliv_mail._message WHERE id = :id;
SELECT string_agg(recipient || ' ' || kind, ', ' ORDER BY recipient) FROM kliv_mail.deliveries WHERE message_id = :id;

\echo # B057: a suppressed recipient
SELECT kliv_mail.suppress('Blocked@x.example', reason => 'asked us to');
SELECT kliv_mail.send('Blocked@X.EXAMPLE, other@x.example', 's', 'b') AS id \gset
SELECT recipient, status, replace(reason, session_user, 'me') AS reason FROM kliv_mail.deliveries WHERE message_id = :id ORDER BY recipient;
SELECT status FROM kliv_mail.messages WHERE id = :id;
SELECT kliv_mail.unsuppress('Blocked@x.example'), kliv_mail.unsuppress('Blocked@x.example');
-- the hint ends the suppression that it speaks of
SELECT kliv_mail.suppress('nonews@x.example', scope => 'marketing');
SELECT kliv_mail.send('nonews@x.example', 's', 'b', message_type => 'marketing', headers => '{"List-Unsubscribe": "<https://example.com/u>"}') AS id \gset
SELECT status, reason, hint FROM kliv_mail.deliveries WHERE message_id = :id;
SELECT kliv_mail.unsuppress('nonews@x.example', 'marketing');

\echo # attach(), attach_text(), mailbox(), is_address()
CREATE FUNCTION attached(call text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    a kliv_mail.attachment;
    hint text;
BEGIN
    EXECUTE 'SELECT (kliv_mail.attach(' || call || ')).*' INTO a;
    RETURN format('%s | %s | %s octets', a.filename, a.content_type, octet_length(a.content));
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RETURN SQLSTATE || ' ' || SQLERRM || coalesce(E'\n  ' || nullif(hint, ''), '');
END $$;
SELECT id || ' ' || attached(call) FROM (VALUES
    ('B059a', $$'../../etc/passwd', 'x'$$),
    ('B059b', $$'C:\a\b.txt', 'x'$$),
    ('B060', $$E'a"\r\nContent-Type: text/html', 'x'$$),
    ('B062a', $$repeat('x', 300), 'x'$$),
    ('B062b', $$'', 'x'$$),
    ('B062c', $$'.', 'x'$$),
    ('B062d', $$NULL, 'x'$$),
    ('B063', $$U&'invoice\202Efdp.exe', 'x'$$),
    ('B064a', $$'a.txt', 'x', E'text/html\r\nX: y'$$),
    ('B064b', $$'a.txt', 'x', 'x'$$),
    ('B064c', $$'a.txt', 'x', 'multipart/mixed'$$),
    ('B064d', $$'a.txt', 'x', 'a/b; boundary=z'$$),
    ('B065a', $$'A.EXE', 'x'$$),
    ('B065b', $$'a.exe.', 'x'$$),
    ('B066a', $$'a.bin', ''$$),
    ('content NULL', $$'a.bin', NULL$$),
    ('B068', $$'a.bin', decode('QUJD@@@=', 'base64')$$),
    ('B069a', $$'a.png', 'x', 'image/png', 'a>b'$$),
    ('B069b', $$'a.png', 'x', 'image/png', E'a\r\nb'$$),
    ('known type', $$'a.pdf', 'x'$$)) AS t (id, call);
SELECT convert_from((kliv_mail.attach_text('a.csv', U&'caf\00E9')).content, 'UTF8') = U&'caf\00E9';
SELECT 'B066c ' || tried($$'a@x.example', 's', 'b', attachments => array_fill(kliv_mail.attach('a.txt', 'x'), ARRAY[101])$$);
SELECT 'B069c ' || tried($$'a@x.example', 's', html => '<img src="cid:c">', attachments =>
    ARRAY[kliv_mail.attach('a.png', 'x', 'image/png', 'c'), kliv_mail.attach('b.png', 'x', 'image/png', 'c')]$$);
-- A row that did not come from attach() is checked all the same.
SELECT 'by hand ' || tried($$'a@x.example', 's', 'b', attachments => ARRAY[ROW(E'a\r\nX: y', 'text/plain', NULL, 'x')::kliv_mail.attachment]$$);
SELECT kliv_mail.mailbox('ana@x.example', 'Doe, "Ana"'), kliv_mail.mailbox('ana@x.example'), kliv_mail.mailbox('ana@x.example', '');
SELECT kliv_mail.mailbox('not an address', 'Ana');
SELECT kliv_mail.mailbox('a@x.example, b@x.example');
SELECT kliv_mail.is_address('a@x.example'), kliv_mail.is_address('a'), kliv_mail.is_address('Ana <a@x.example>'),
       kliv_mail.is_address('a@x.example, b@x.example'), kliv_mail.is_address(NULL);

\echo # nothing that ends a line, wherever it is written
SELECT format('U+%s ', c.name) || tried(format(a.call, 'U&' || chr(39) || 'a' || c.escape || 'b' || chr(39)))
FROM (VALUES ('000D', '\000D'), ('000A', '\000A'), ('0085', '\0085'), ('2028', '\2028')) AS c (name, escape),
     (VALUES ($$'a@x.example', 's', 'b', from_name => %s$$), ($$'a@x.example', 's', 'b', headers => jsonb_build_object('X-A', %s)$$),
             ($$'a@x.example', 's', 'b', headers => jsonb_build_object(%s, 'x')$$), ($$'a@x.example', 's', 'b', reply_to => %s || ' <r@x.example>'$$),
             ($$'a@x.example', 's', 'b', attachments => ARRAY[kliv_mail.attach(%s, 'x')]$$),
             ($$'a@x.example', 's', 'b', attachments => ARRAY[kliv_mail.attach('a', 'x', 'text/plain; a=' || %s)]$$),
             ($$'a@x.example', 's', 'b', attachments => ARRAY[kliv_mail.attach('a', 'x', 'text/plain', %s)]$$)) AS a (call);

\echo # cancel(), retry(), wait(): messages that are not there
SELECT kliv_mail.cancel(0);
SELECT kliv_mail.retry(0);
SELECT kliv_mail.wait(0);
SELECT kliv_mail.cancel(id), kliv_mail.cancel(id), kliv_mail.retry(id) FROM kliv_mail.send('a@x.example', 's', 'b') AS id;

\pset format aligned
\pset tuples_only off
DROP FUNCTION tried, attached, header_of;
DELETE FROM kliv_mail._outbox;
SELECT kliv_mail.resume() >= 0 AS resumed;
SELECT kliv_mail.revoke_access('regress_kliv_mail_sender');
SET client_min_messages = error;
DROP OWNED BY regress_kliv_mail_sender;
DROP ROLE regress_kliv_mail_nobody, regress_kliv_mail_sender;
