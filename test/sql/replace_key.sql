-- replace_key: of a role's messages with a key, the newest waits; and reschedule().
SET client_min_messages = warning;
-- Nothing of this is to leave, whatever the server is configured for.
SELECT kliv_mail.pause(reason => 'regression test') >= 0 AS paused;
CREATE ROLE regress_kliv_mail_replacer;
SELECT kliv_mail.grant_send('regress_kliv_mail_replacer');
CREATE FUNCTION waiting() RETURNS text LANGUAGE sql AS $$
    SELECT coalesce(string_agg(m.subject || ' to ' || o.recipient, ', ' ORDER BY o.id), 'nobody') FROM kliv_mail._outbox AS o JOIN kliv_mail._message AS m ON m.id = o.message_id $$;
CREATE FUNCTION state(call text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'SELECT ' || call;
    RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE || regexp_replace(': ' || SQLERRM, 'message \d+', 'message N');
END $$;
-- Where a sender is, it may be the one that stops it.
CREATE FUNCTION gone(p_message bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. 3000 LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM kliv_mail._outbox AS o WHERE o.message_id = p_message);
        PERFORM pg_sleep(0.01);
    END LOOP;
    RETURN NOT EXISTS (SELECT FROM kliv_mail._outbox AS o WHERE o.message_id = p_message);
END $$;
\pset format unaligned
\pset tuples_only on

\echo # the newest wins, and the earlier one says so
SELECT kliv_mail.send('ana@x.example, bob@x.example', 'first', 'b', replace_key => 'code') AS first \gset
SELECT kliv_mail.send('ana@x.example', 'other', 'b', replace_key => 'another code') > 0;
SELECT kliv_mail.send('ana@x.example', 'none', 'b') > 0;
SELECT kliv_mail.send('ana@x.example', 'second', 'b', replace_key => 'code') AS second \gset
SELECT waiting();
SELECT recipient, status, replace(reason, :'second', 'N'), hint FROM kliv_mail.deliveries WHERE message_id = :first ORDER BY recipient;
SELECT status FROM kliv_mail.messages WHERE id = :first;

\echo # those of another role are its own
SET ROLE regress_kliv_mail_replacer;
SELECT kliv_mail.send('ana@x.example', 'of another', 'b', replace_key => 'code') > 0;
RESET ROLE;
SELECT waiting();

\echo # what a server is being given or has stays; what comes back has been replaced
UPDATE kliv_mail._outbox SET epoch = 7 WHERE message_id = :second;
SELECT kliv_mail.send('ana@x.example', 'third', 'b', replace_key => 'code') > 0;
SELECT waiting();
UPDATE kliv_mail._outbox SET epoch = NULL, attempts = 1, doubtful = true WHERE message_id = :second;
SELECT kliv_mail.send('ana@x.example', 'fourth', 'b', replace_key => 'code') AS fourth \gset
SELECT gone(:second);
SELECT waiting();
SELECT status, regexp_replace(reason, 'message \d+', 'message N') FROM kliv_mail.deliveries WHERE message_id = :second;

\echo # what failed and is tried again is an earlier one, too
UPDATE kliv_mail._outbox SET epoch = 7 WHERE message_id = :fourth;
SELECT count(*) FROM kliv_mail._finish(7, ARRAY(SELECT kliv_mail._ended(id, 'failed', 'x', NULL) FROM kliv_mail._outbox WHERE epoch = 7), now());
SELECT kliv_mail.retry(:fourth);
SELECT kliv_mail.send('ana@x.example', 'fifth', 'b', replace_key => 'code') AS fifth \gset
SELECT waiting();

\echo # a rollback replaces nothing; many in one statement leave the last
BEGIN;
SELECT kliv_mail.send('ana@x.example', 'not at all', 'b', replace_key => 'code') > 0;
ROLLBACK;
SELECT waiting();
SELECT count(kliv_mail.send('ana@x.example', 'number ' || n, 'b', replace_key => 'code')) FROM generate_series(1, 5) AS n;
SELECT waiting();

\echo # the id of the first one, and nothing else, where the idempotency_key was used
SELECT kliv_mail.send('ana@x.example', 'keyed', 'b', replace_key => 'code', idempotency_key => 'keyed') AS keyed \gset
SELECT kliv_mail.send('ana@x.example', 'last', 'b', replace_key => 'code') > 0;
SELECT kliv_mail.send('ana@x.example', 'keyed', 'b', replace_key => 'code', idempotency_key => 'keyed') = :keyed;
SELECT waiting();
SELECT state($$kliv_mail.send('ana@x.example', 'keyed', 'b', replace_key => 'other', idempotency_key => 'keyed')$$);

\echo # marketing mail is a message for each, of one call
DELETE FROM kliv_mail._outbox;
SELECT kliv_mail.set_brand(unsubscribe_url => 'https://x.example/u') IS NOT NULL;
SELECT kliv_mail.send('a@x.example, b@x.example, c@x.example', 'digest 1', 'b', message_type => 'marketing', replace_key => 'digest') > 0;
SELECT kliv_mail.send('a@x.example, b@x.example', 'digest 2', 'b', message_type => 'marketing', replace_key => 'digest', idempotency_key => 'digest 2') AS digest \gset
SELECT waiting();
SELECT kliv_mail.send('a@x.example, b@x.example', 'digest 2', 'b', message_type => 'marketing', replace_key => 'digest', idempotency_key => 'digest 2') = :digest;
SELECT count(DISTINCT m.id) || ' messages, ' || count(*) || ' deliveries, ' || bool_and(position(o.recipient::bytea IN m.entity) > 0)
FROM kliv_mail._message AS m JOIN kliv_mail._outbox AS o ON o.message_id = m.id;
SELECT kliv_mail.suppress('b@x.example') IS NOT NULL;
SELECT kliv_mail.send('a@x.example, b@x.example, c@x.example', 'digest 3', 'b', message_type => 'marketing', replace_key => 'digest') > 0;
SELECT waiting();
SELECT recipient, status, reason FROM kliv_mail.deliveries WHERE subject = 'digest 3' ORDER BY recipient;
SELECT kliv_mail.unsuppress('b@x.example');

DELETE FROM kliv_mail._outbox;
\echo # arguments
SELECT kliv_mail.send('ana@x.example', 's', 'b', replace_key => '');
SELECT kliv_mail.send('ana@x.example', 's', 'b', replace_key => repeat('x', 256));
SELECT kliv_mail.save_template('replacing', 'Code', 'It is $code.', variables => '{"code": {"required": true}}') > 0;
SELECT count(kliv_mail.send_template('replacing', 'ana@x.example', jsonb_build_object('code', n), replace_key => 'code')) FROM generate_series(1, 3) AS n;
SELECT count(*) || ' waits, ' || bool_and(position('It is 3.'::bytea IN m.entity) > 0) FROM kliv_mail._outbox AS o JOIN kliv_mail._message AS m ON m.id = o.message_id;

\echo # reschedule()
DELETE FROM kliv_mail._outbox;
SELECT kliv_mail.send('ana@x.example, bob@x.example, eve@x.example', 's', 'b', send_at => now() + interval '1 day', expires_at => now() + interval '4 years') AS id \gset
SELECT kliv_mail.reschedule(:id, now() + interval '2 years');
SELECT recipient, due BETWEEN now() + interval '1 year' AND now() + interval '3 years' FROM kliv_mail._outbox ORDER BY id;
SELECT status FROM kliv_mail.messages WHERE id = :id;
-- What is under way, in doubt or finished stays.
UPDATE kliv_mail._outbox SET epoch = 7 WHERE recipient = 'ana@x.example';
UPDATE kliv_mail._outbox SET doubtful = true, due = 'infinity' WHERE recipient = 'bob@x.example';
SELECT kliv_mail.reschedule(:id, '2000-01-01');
SELECT recipient, due <= now() FROM kliv_mail._outbox ORDER BY id;
SELECT kliv_mail.cancel(:id), kliv_mail.reschedule(:id, now() + interval '1 day');
DELETE FROM kliv_mail._outbox;
SELECT kliv_mail.send('ana@x.example', 's', 'b', expires_at => date_trunc('day', now()) + interval '2 days') AS id \gset
SELECT left(state(format('kliv_mail.reschedule(%s, %L)', :id, date_trunc('day', now()) + interval '2 days')), 15);
SELECT kliv_mail.reschedule(:id, NULL);
SELECT kliv_mail.reschedule(:id, 'infinity');
SELECT kliv_mail.reschedule(NULL, now()) IS NULL;
SELECT kliv_mail.reschedule(0, now());
SET ROLE regress_kliv_mail_replacer;
SELECT state(format('kliv_mail.reschedule(%s, now())', :id));
RESET ROLE;

\pset format aligned
\pset tuples_only off
DROP FUNCTION waiting(), state(text);
SELECT kliv_mail.set_brand(unsubscribe_url => '') IS NOT NULL;
DELETE FROM kliv_mail._outbox;
SELECT kliv_mail.delete_template('replacing');
SELECT kliv_mail.resume() >= 0 AS resumed;
SELECT kliv_mail.revoke_access('regress_kliv_mail_replacer');
DROP ROLE regress_kliv_mail_replacer;
