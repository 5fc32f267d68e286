-- send() of one object, and attachments(): the same mail as by arguments, one
-- parameter from any driver; what is wrong is named, and queues nothing.
SET client_min_messages = warning;
SELECT kliv_mail.pause(reason => 'regression test') >= 0 AS paused;
\pset format unaligned
\pset tuples_only on

-- What a call says or queues.
CREATE FUNCTION tried(mail jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    sent bigint;
    before bigint := (SELECT count(*) FROM kliv_mail._outbox);
    hint text;
    of_column text;
BEGIN
    sent := kliv_mail.send(mail);
    RETURN 'queued: ' || (SELECT string_agg(format('%s <%s>', o.kind, o.recipient), ' ' ORDER BY o.id) FROM kliv_mail._outbox AS o WHERE o.message_id = sent);
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT, of_column = COLUMN_NAME;
    IF before <> (SELECT count(*) FROM kliv_mail._outbox) THEN
        RETURN 'SOMETHING WAS QUEUED';
    END IF;
    RETURN format('%s [%s] %s', SQLSTATE, of_column, SQLERRM) || coalesce(E'\n  ' || nullif(hint, ''), '');
END $$;

\echo # the forms of addresses
SELECT tried(jsonb_build_object('subject', 's', 'text', 't') || x.mail) FROM (VALUES
    ('{"to": "Ana <ana@example.com>, bob@example.org"}'::jsonb),
    ('{"to": ["ana@example.com", "Bob <bob@example.org>"]}'),
    ('{"to": {"address": "ana@example.com", "name": "Smith, Ana"}}'),
    ('{"to": [{"email": "ana@example.com"}, "bob@example.org"], "cc": "c@example.com", "bcc": ["d@example.com", null]}'),
    ('{"to": []}'), ('{"to": null}'), ('{}'), ('{"to": 7}'), ('{"to": [["a@x.example"]]}'),
    ('{"to": {"adress": "ana@example.com"}}'), ('{"to": {"name": "Ana"}}'), ('{"to": "a@x.example", "from": ["a@x.example", "b@x.example"]}'),
    ('{"to": "a@x.example", "from": "a@x.example", "from_name": "A"}'), ('{"to": "a@x.example", "from": {"address": "nobody"}}')) AS x (mail);

-- as many as a megabyte holds: refused in their time
SET statement_timeout = '5 s';
SELECT left(tried(jsonb_build_object('to', jsonb_agg('a' || n || '@x.example'), 'subject', 's', 'text', 't')), 60) FROM generate_series(1, 60000) AS n;
RESET statement_timeout;

\echo # names and types
SELECT tried('{"to": "a@x.example", "subject": "s", "text": "t"}'::jsonb || x.mail) FROM (VALUES
    ('{"sbject": "s"}'::jsonb), ('{"body": "b"}'), ('{"recipients": "a@x.example"}'), ('{"subject": 7}'), ('{"html": ["<p>"]}'),
    ('{"tags": ["a", "b"]}'), ('{"tags": "a"}'), ('{"tags": [{"name": "a", "value": "b"}]}'), ('{"tags": null, "metadata": null, "headers": null}'),
    ('{"headers": {"X-Order": "7"}}'), ('{"headers": {"X-Order": 7}}'), ('{"send_at": "tomorrow at tea"}'), ('{"send_at": "2090-01-01T10:00:00Z"}'), ('{"expires_at": 5}'),
    ('{"variables": {}}'), ('{"message_type": "spam"}'), ('{"on_limit": "never"}'), ('{"account": "none"}')) AS x (mail);
SELECT tried(NULL), tried('[]'), tried('"a@x.example"');

\echo # the same mail as by arguments
CREATE FUNCTION entity(id bigint) RETURNS text LANGUAGE sql AS $$
    SELECT regexp_replace(regexp_replace(convert_from(m.entity, 'UTF8'), '(Date|Message-ID): [^\r]*\r\n', '', 'g'), '(=_)?[0-9a-f]{16,}', 'B', 'g') FROM kliv_mail._message AS m WHERE m.id = entity.id $$;
SELECT entity(kliv_mail.send('{"to": "Ana <ana@example.com>", "subject": "Two", "text": "t", "html": "<p>t</p>", "reply_to": "r@example.com", "headers": {"X-Order": "7"},
        "attachments": [{"filename": "a.pdf", "content": "JVBERi0="}, {"filename": "a.csv", "text": "item,price"}]}'))
     = entity(kliv_mail.send('Ana <ana@example.com>', 'Two', 't', '<p>t</p>', reply_to => 'r@example.com', headers => '{"X-Order": "7"}',
        attachments => ARRAY[kliv_mail.attach('a.pdf', decode('JVBERi0=', 'base64')), kliv_mail.attach_text('a.csv', 'item,price')])) AS same;
-- for programs: the argument in the column field, a reused key as a constraint
CREATE FUNCTION fields(call text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    c text;
    k text;
BEGIN
    EXECUTE 'SELECT ' || call;
    RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS c = COLUMN_NAME, k = CONSTRAINT_NAME;
    RETURN concat_ws(' ', SQLSTATE, c, k);
END $$;
SELECT x.call || ': ' || fields('kliv_mail.' || x.call) FROM (VALUES ($$send('x', 's', 'b')$$), ($$send('a@x.example', NULL, 'b')$$), ($$send('a@x.example', 's', 'b', cc => 'x')$$),
    ($$send('a@x.example', 's', 'b', send_at => 'infinity')$$), ($$configure_smtp(host => 'a b')$$), ($$configure_smtp(provider => 'none')$$), ($$set_limits(-1)$$),
    ($$suppress('x')$$), ($$suppress('a@x.example', 'X!')$$), ($$set_brand(color => 'blue-ish')$$), ($$attach('a.exe', '')$$), ($$mailbox('x')$$), ($$cancel(NULL)$$), ($$grant_send('nobody_here')$$)) AS x (call);
SELECT fields($$kliv_mail.send('a@x.example', 's' || n, 't', idempotency_key => 'k2') FROM generate_series(1, 2) AS n$$);
DROP FUNCTION fields;
SELECT kliv_mail.send('{"to": "a@x.example", "subject": "s", "text": "t", "idempotency_key": "k"}')
     = kliv_mail.send('a@x.example', 's', 't', idempotency_key => 'k') AS one_key;

\echo # files
SELECT (a).filename, (a).content_type, (a).content_id, length((a).content) FROM unnest(kliv_mail.attachments(
    '[{"filename": "a.pdf", "content": "JVBERi0=", "content_type": null}, {"filename": "b.csv", "text": "é"}, {"filename": "c.png", "content": "iVBO\nRw==", "contentType": "image/png", "cid": "logo"},
      {"filename": "d.html", "text": "<p>", "content_id": "page"}, {"filename": "e.txt", "content": ""}]')) AS a;
SELECT kliv_mail.attachments(NULL) IS NULL, kliv_mail.attachments('null') IS NULL, kliv_mail.attachments('[]') = '{}', cardinality(kliv_mail.attachments('{"filename": "a.txt", "text": "x"}'));
SELECT tried('{"to": "a@x.example", "subject": "s", "text": "t"}'::jsonb || jsonb_build_object('attachments', x.files)) FROM (VALUES
    ('7'::jsonb), ('[7]'), ('[{"filename": "a.pdf"}]'), ('[{"filename": "a.pdf", "content": "YQ==", "text": "a"}]'), ('[{"filename": "a.pdf", "content": "%PDF-1.7"}]'),
    ('[{"filename": "a.pdf", "content": {"type": "Buffer", "data": [1]}}]'), ('[{"filename": "a.pdf", "contents": "YQ=="}]'), ('[{"content": "YQ=="}]'),
    ('[{"filename": "a.exe", "content": "YQ=="}]'), ('[{"filename": "a.txt", "text": 7}]'), ('[{"filename": "a.pdf", "content": "YQ==", "content_type": "no type"}]')) AS x (files);

\echo # a template
SELECT kliv_mail.save_template('object-hello', 'Hello $firstName', 'Hello $firstName', variables => '{"firstName": {"required": true}}');
SELECT subject FROM kliv_mail._message WHERE id = kliv_mail.send('{"to": "ana@example.com", "template": "object-hello", "variables": {"firstName": "Ana"}}');
SELECT tried(x.mail) FROM (VALUES ('{"to": "a@x.example", "template": "object-hello"}'::jsonb), ('{"to": "a@x.example", "template": "object-hallo"}'),
    ('{"to": "a@x.example", "template": "object-hello", "subject": "s"}'), ('{"to": ["a@x.example", "b@x.example"], "template": "object-hello", "variables": {"firstName": "A"}}')) AS x (mail);

\echo # what became of the mails to an address
SELECT kliv_mail.send('Zoe <Zoe@History.example>', 'First', 't') > 0, kliv_mail.send('zoe@history.example, other@history.example', 'Second', 't') > 0;
SELECT kliv_mail.cancel(max(id)) FROM kliv_mail._message;
SELECT subject, status, split_part(reason, ' ', 1) AS reason, suppressed FROM kliv_mail.history('ZOE@history.example');
SELECT code, regexp_replace(problem, '\d+', 'N', 'g') AS problem FROM kliv_mail.next_step('Zoe@History.example');
SELECT code, problem, statement FROM kliv_mail.next_step('nobody@history.example');
SELECT count(*) > 0 FROM kliv_mail.next_step((SELECT max(id)::text FROM kliv_mail._message));
SELECT * FROM kliv_mail.next_step('nobody');
SELECT kliv_mail.suppress('@history.example', 'marketing', 'no news');
SELECT subject, suppressed FROM kliv_mail.history('Zoe <zoe@history.EXAMPLE>', 1);
SELECT kliv_mail.unsuppress('@history.example', 'marketing');
SELECT count(*) FROM kliv_mail.history('nobody@history.example');
SELECT * FROM kliv_mail.history('nobody');
SELECT * FROM kliv_mail.history('a@x.example', 0);

\echo # a role that may send
CREATE ROLE object_sender;
SELECT kliv_mail.grant_send('object_sender');
SET ROLE object_sender;
SELECT kliv_mail.send('{"to": {"address": "ana@example.com", "name": "Ana"}, "subject": "s", "text": "t", "attachments": [{"filename": "a.txt", "text": "x"}]}') > 0;
SELECT kliv_mail.send('{"to": "ana@example.com", "subjet": "s"}');
SELECT count(*) AS others FROM kliv_mail.history('zoe@history.example');
SELECT count(*) AS own FROM kliv_mail.history('ana@example.com');
RESET ROLE;
SELECT sender_role FROM kliv_mail.messages ORDER BY id DESC LIMIT 1;
SELECT kliv_mail.revoke_access('object_sender');
DROP ROLE object_sender;
SELECT kliv_mail.delete_template('object-hello');
DELETE FROM kliv_mail._outbox; DELETE FROM kliv_mail._message; DELETE FROM kliv_mail._idempotency;
SELECT kliv_mail.resume() >= 0;
DROP FUNCTION tried; DROP FUNCTION entity;

-- Base64 where bytes belong is attached as it is, and said.
SET client_min_messages = notice;
SELECT length((kliv_mail.attach_text('a.pdf', encode(repeat('%PDF-1.7', 20)::bytea, 'base64'))).content) AS text,
       length((kliv_mail.attach('a.png', encode(repeat('png?', 20)::bytea, 'base64')::bytea)).content) AS bytes;
SELECT length((kliv_mail.attach_text('a.txt', repeat('abcd', 20))).content) AS text, length((kliv_mail.attach_text('a.csv', repeat('abcd', 20))).content) AS table,
       length((kliv_mail.attach('a.pdf', repeat('%PDF-1.7', 20)::bytea)).content) AS bytes, length((kliv_mail.attach('a.pdf', 'abcd')).content) AS short,
       length((kliv_mail.attachments('[{"filename": "a.pdf", "content": "JVBERi0xLjclUERGLTEuNyVQREYtMS43JVBERi0xLjc="}]'))[1].content) AS decoded;
