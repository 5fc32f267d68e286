-- What send() does to the transaction that calls it, and what it remembers.
SET client_min_messages = warning;
-- Nothing of this is to leave, whatever the server is configured for.
SELECT kliv_mail.pause(reason => 'regression test') >= 0 AS paused;
SELECT account, status FROM kliv_mail.configure_smtp(host => 'localhost', port => 1, encryption => 'none', username => '',
    from_address => 'shop@five.example', hourly_limit => 5, daily_limit => 5, test => false, account => 'five');
\pset format unaligned
\pset tuples_only on

\echo # on_limit => error is judged by what is committed and what this transaction did
-- More important mail of the same statement takes the room.
DO $$
BEGIN
    PERFORM kliv_mail.send('s@x.example', 's', 'b', message_type => 'system', account => 'five') FROM generate_series(1, 5);
    PERFORM kliv_mail.send('t@x.example', 's', 'b', account => 'five', on_limit => 'error');
END $$;
SELECT count(*) FROM kliv_mail._outbox WHERE route = 'five';
-- What a savepoint took back is room again.
DO $$
BEGIN
    FOR i IN 1 .. 8 LOOP
        BEGIN
            PERFORM kliv_mail.send('u@x.example', 's', 'b', account => 'five', on_limit => 'error');
            RAISE division_by_zero;
        EXCEPTION WHEN division_by_zero THEN
            NULL;
        END;
    END LOOP;
    PERFORM kliv_mail.send('u@x.example', 's', 'b', account => 'five', on_limit => 'error') FROM generate_series(1, 5);
END $$;
SELECT count(*) FROM kliv_mail._outbox WHERE route = 'five';
-- So in one statement, and where the isolation level is higher.
DELETE FROM kliv_mail._outbox;
SELECT count(kliv_mail.send('v' || i || '@x.example', 's', 'b', account => 'five', on_limit => 'error')) FROM generate_series(1, 6) AS i;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(kliv_mail.send('w' || i || '@x.example', 's', 'b', account => 'five', on_limit => 'error')) FROM generate_series(1, 5) AS i;
SELECT kliv_mail.send('w@x.example', 's', 'b', account => 'five', on_limit => 'error');
ROLLBACK;
SELECT count(*) FROM kliv_mail._outbox;

\echo # the account of a mail
UPDATE kliv_mail._account SET allowed_senders = ARRAY[NULL, 'news@five.example', '@shop.example'] WHERE name = 'five';
SELECT kliv_mail.send('a@x.example', 's', 'b', account => 'five', from_address => 'news@FIVE.example') > 0;
SELECT kliv_mail.send('a@x.example', 's', 'b', account => 'five', from_address => 'any@shop.example') > 0;
SELECT kliv_mail.send('a@x.example', 's', 'b', account => 'five', from_address => 'News@five.example');
SELECT kliv_mail.send('a@x.example', 's', 'b', account => repeat('x', 200));

\echo # the date of a mail is the day that it is for
SELECT kliv_mail.send('a@x.example', 's', 'b', send_at => now() + interval '40 days') AS later,
       kliv_mail.send('a@x.example', 's', 'b', send_at => now() - interval '40 days') AS earlier \gset
SELECT abs(extract(epoch FROM d.at - greatest(m.send_at, m.created_at))) < 2 AS right_day
FROM kliv_mail._message AS m,
     LATERAL (SELECT substring(convert_from(m.entity, 'UTF8') FROM 'Date: [A-Z][a-z]{2}, ([^\r]*)')::timestamptz AS at) AS d
WHERE m.id IN (:later, :earlier) ORDER BY m.id;

\echo # a key lives as long as its message
SELECT kliv_mail.send('a@x.example', 's', 'b', send_at => date_trunc('day', now()) + interval '60 days', idempotency_key => 'later') AS later \gset
SELECT kliv_mail._retain(now() + interval '1 day', 1000) >= 0;
SELECT kliv_mail.send('a@x.example', 's', 'b', send_at => date_trunc('day', now()) + interval '60 days', idempotency_key => 'later') = :later;
\set VERBOSITY sqlstate
SELECT kliv_mail.send('a@x.example', 's', 'other', send_at => date_trunc('day', now()) + interval '60 days', idempotency_key => 'later');
\set VERBOSITY default
SELECT kliv_mail.cancel(:later);
SELECT kliv_mail.send('a@x.example', 's', 'b', send_at => date_trunc('day', now()) + interval '60 days', idempotency_key => 'later') = :later;
SELECT kliv_mail._retain(now() + interval '1 day', 1000) > 0;
SELECT kliv_mail.send('a@x.example', 's', 'b', send_at => date_trunc('day', now()) + interval '60 days', idempotency_key => 'later') > :later;

\echo # what counts as the same call
SELECT kliv_mail.send('a@x.example', 's', 'b', expires_at => now() + interval '1 hour', idempotency_key => 'expires') AS first \gset
SELECT kliv_mail.send('a@x.example', 's', 'b', expires_at => now() + interval '1 hour', idempotency_key => 'expires') = :first;
CREATE TABLE file (content bytea);
INSERT INTO file VALUES (convert_to(repeat('the same file ', 10000), 'UTF8'));
SELECT pg_column_size(content) < length(content) / 4 AS compressed FROM file;
SELECT kliv_mail.send('a@x.example', 's', 'b', attachments => ARRAY[kliv_mail.attach('a.txt', content)], idempotency_key => 'file') AS first FROM file \gset
SELECT kliv_mail.send('a@x.example', 's', 'b', attachments => ARRAY[kliv_mail.attach('a.txt', convert_to(repeat('the same file ', 10000), 'UTF8'))],
                      idempotency_key => 'file') = :first;
\set VERBOSITY sqlstate
SELECT kliv_mail.send('a@x.example', 's', 'b', attachments => ARRAY[kliv_mail.attach('a.txt', convert_to(repeat('the same File ', 10000), 'UTF8'))],
                      idempotency_key => 'file');
\set VERBOSITY default
DROP TABLE file;

\echo # suppressed recipients
SELECT kliv_mail.suppress('One@x.example', reason => 'asked'), kliv_mail.suppress('two@x.example', 'marketing');
SELECT kliv_mail.send('three@x.example, ONE@x.example', 's', 'b', cc => 'two@x.example') AS id \gset
SELECT recipient, kind, status, reason, hint FROM kliv_mail.deliveries WHERE message_id = :id ORDER BY recipient;
SET client_min_messages = notice;
SELECT kliv_mail.send('one@x.example', 's', 'b') > 0;
SET client_min_messages = warning;
SELECT kliv_mail.unsuppress('one@x.example'), kliv_mail.unsuppress('two@x.example', 'marketing');

\echo # what others are shown has a size
SELECT kliv_mail.pause(reason => repeat('x', 1001));
SELECT kliv_mail.suppress('one@x.example', reason => repeat('x', 1001));
SELECT kliv_mail.send('a@x.example', 's', 'b', message_type => repeat(E'x\n', 100000));
SELECT kliv_mail.send('a@x.example', 's', 'b', on_limit => repeat('x', 100000));
SELECT kliv_mail.send('a@x.example', 's', 'b', idempotency_key => repeat('x', 100000));

\echo # EXPLAIN tells nothing of what others send
ANALYZE kliv_mail._message;
SELECT attname FROM pg_stats WHERE schemaname = 'kliv_mail' AND tablename = '_message' AND attname IN ('subject', 'tags', 'metadata');

\echo # the clock is set back: retry() moves what waits for no time, what is scheduled stays so
DELETE FROM kliv_mail._outbox;
SET kliv_mail.test_in_session = on;
SET kliv_mail.test_clock_offset = '1 day';
SELECT kliv_mail.send('a@x.example', 's', 'b') AS one \gset
SELECT kliv_mail.send('b@x.example', 's', 'b') AS two \gset
SELECT kliv_mail.send('c@x.example', 's', 'b', send_at => now() + interval '5 days') AS later \gset
RESET kliv_mail.test_clock_offset;
SELECT recipient, due > kliv_mail._now() AS waits FROM kliv_mail._outbox ORDER BY id;
SELECT kliv_mail.retry(:one), kliv_mail.retry(:later);
SELECT recipient, due > kliv_mail._now() AS waits FROM kliv_mail._outbox ORDER BY id;

\echo # whatever the settings of the caller
\c -
SET client_min_messages = warning;
-- (PostgreSQL 19 has no other strings than those of the standard)
SELECT CASE WHEN current_setting('server_version_num')::integer < 190000
            THEN set_config('standard_conforming_strings', 'off', false) || set_config('escape_string_warning', 'off', false)
            END AS strings \gset
SET IntervalStyle = sql_standard;
SET DateStyle = 'German, DMY';
SET plpgsql.variable_conflict = use_column;
SET plpgsql.extra_errors = 'all';
SET transform_null_equals = on;
SET array_nulls = off;
SET backslash_quote = off;
SET TimeZone = 'Asia/Tokyo';
SET bytea_output = escape;
SET quote_all_identifiers = on;
SET default_transaction_isolation = serializable;
SELECT kliv_mail.set_brand(name => 'Shop', unsubscribe_url => 'https://shop.example/u?x=1', color => '#aabbcc') IS NOT NULL;
SELECT kliv_mail.send('a@x.example', 's', 'b', send_at => now() + interval '1 day', expires_at => now() + interval '2 days', tags => ARRAY['a'],
                      metadata => '{"a": 1}', headers => '{"X-A": "b"}', idempotency_key => 'settings') AS id \gset
SELECT status FROM kliv_mail.deliveries WHERE message_id = :id;
SELECT status FROM kliv_mail.messages WHERE id = :id;
SELECT count(*) >= 0 FROM kliv_mail.next_step();
SELECT count(*) >= 0 FROM kliv_mail.next_step(:id);
SELECT kliv_mail.describe() IS NOT NULL;
SELECT count(*) FROM kliv_mail.status;
SELECT count(*) >= 1 FROM kliv_mail.usage;
SELECT count(*) >= 1 FROM kliv_mail.events;
SELECT verdict FROM kliv_mail.classify_reply('rcpt', '550 5.1.1 <a@x.example>: Recipient address rejected: User unknown');
SELECT kliv_mail.retry(:id);
SELECT kliv_mail.cancel(:id);
\c -
-- Who reads all data manages nothing.
SELECT kliv_mail._may_touch('pg_read_all_data', 'postgres');
SET client_min_messages = warning;
DELETE FROM kliv_mail._outbox;
DELETE FROM kliv_mail._delivery;
DELETE FROM kliv_mail._message;
DELETE FROM kliv_mail._idempotency;
DELETE FROM kliv_mail._brand;
SELECT status FROM kliv_mail.reset_smtp('five');
DELETE FROM kliv_mail._account;
SELECT kliv_mail.resume() >= 0 AS resumed;
