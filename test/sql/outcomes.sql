-- What _record() makes of outcomes, without a network: states, attempts, quota,
-- holds.  The claims are made by hand under epochs that this session keeps alive;
-- the setting delivery keeps senders of other sessions out.
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET kliv_mail.delivery = hold', current_database()); END $$;
SET client_min_messages = warning;
SELECT kliv_mail._epoch_lock(77) AND kliv_mail._epoch_lock(78) AS alive;
INSERT INTO kliv_mail._account (name, in_use, route_order, origin, host, port, encryption, from_address,
    hourly_limit, daily_limit, created_at, updated_at, updated_by, renewed_at)
VALUES ('out', true, 9, kliv_mail._origin(), 'smtp.example.com', 25, 'none', 'app@example.com', 1000, 10000, now(), now(), 'me', now());

CREATE FUNCTION outcome(id bigint, verdict text, scope text, stage text, code integer, enhanced text DEFAULT NULL,
                        pause integer DEFAULT 0, bounce_type text DEFAULT NULL) RETURNS kliv_mail._outcome
LANGUAGE sql RETURN ROW(id, 'out', verdict, scope, bounce_type, pause, stage, code, enhanced, code || ' played', 'played', NULL, 'id', 'From: a', NULL, NULL)::kliv_mail._outcome;

-- Send to recipients, claim all, give each the same outcome; what became of them.
CREATE FUNCTION play(recipients text[], verdict text, scope text, stage text, code integer, enhanced text DEFAULT NULL,
                     pause integer DEFAULT 0, bounce_type text DEFAULT NULL)
RETURNS TABLE (recipient text, status text, held_by text, attempts integer, bounce text, due_in text, used integer)
LANGUAGE plpgsql AS $$
DECLARE
    ids bigint[];
BEGIN
    PERFORM kliv_mail.send(r, 'Outcome', 'x', account => 'out') FROM unnest(recipients) AS r;
    SELECT array_agg(c.id) INTO ids FROM kliv_mail._claim_account(77, 'out', 100, 1000000, true) AS c;
    PERFORM kliv_mail._record(77, ARRAY(SELECT outcome(i, verdict, scope, stage, code, enhanced, pause, bounce_type) FROM unnest(ids) AS i));
    RETURN QUERY SELECT d.recipient, d.status, d.held_by, d.attempts, d.bounce_type,
        CASE WHEN d.next_attempt_at > now() + interval '10 minutes' THEN 'later' WHEN d.next_attempt_at > now() + interval '10 seconds' THEN 'soon'
             WHEN d.next_attempt_at IS NOT NULL THEN 'now' END,
        (SELECT u.used FROM kliv_mail.usage AS u WHERE u.account = 'out' AND u.window_name = 'day')
    FROM kliv_mail.deliveries AS d WHERE d.recipient = ANY (recipients) ORDER BY d.recipient;
END;
$$;
-- The present session may claim; the windows of a day to come are empty.
SET kliv_mail.test_in_session = on;
SET kliv_mail.delivery = on;
SELECT set_config('kliv_mail.test_clock_offset', (timestamptz '2090-01-01 10:00:00+00' - clock_timestamp())::text, false) <> '' AS clock;
CREATE FUNCTION reset() RETURNS void LANGUAGE sql AS $$
    DELETE FROM kliv_mail._outbox WHERE route = 'out';
    DELETE FROM kliv_mail._delivery WHERE route = 'out';
    DELETE FROM kliv_mail._quota WHERE account = 'out';
    DELETE FROM kliv_mail._usage WHERE account = 'out';
$$;

-- accepted: counted
SELECT recipient, status, attempts, used FROM play('{a@x.example}', 'accepted', 'message', 'dot', 250);
-- refused for good, of the recipient and of the message: given back
SELECT recipient, status, bounce, attempts, used FROM play('{gone@x.example}', 'permanent', 'recipient', 'rcpt', 550, '5.1.1', 0, 'hard');
SELECT recipient, status, bounce, attempts, used FROM play('{c@x.example}', 'message_fault', 'message', 'dot', 552, '5.3.4');
-- for now: the recipient waits, the reply's own pause counts
SELECT recipient, status, held_by, attempts, used FROM play('{d@x.example}', 'temporary', 'recipient', 'rcpt', 451);
SELECT recipient, status, held_by, attempts, used FROM play('{e@x.example}', 'temporary', 'recipient', 'rcpt', 450, '4.2.1', 3600);
-- in doubt: counted, tried again at once, at most twice
SELECT recipient, status, attempts, used FROM play('{f@x.example}', 'in_doubt', 'message', 'dot', 0);
SELECT recipient, status, attempts, used FROM play('{}', 'in_doubt', 'message', 'dot', 0);
SELECT d.status, d.attempts, d.next_attempt_at <= kliv_mail._now() AS at_once FROM kliv_mail.deliveries AS d WHERE d.recipient = 'f@x.example';
SELECT count(*) FROM play('{}', 'in_doubt', 'message', 'dot', 0);
SELECT d.status, d.attempts, d.next_attempt_at, left(d.reason, 60) AS reason FROM kliv_mail.deliveries AS d WHERE d.recipient = 'f@x.example';
SELECT reset();

-- whose fault: one that is refused as if the account were to blame waits alone, and nobody's attempt is burned
SELECT recipient, status, held_by, attempts, used FROM play('{g@x.example}', 'account_trouble', 'account', 'mail', 530, NULL, 3600);
SELECT held_until, failures, cardinality(suspects) AS suspects FROM kliv_mail._quota WHERE account = 'out';
-- another one tries at once, alone; it goes through, and the first one goes on too
SELECT count(kliv_mail.send(r, 'Outcome', 'x', account => 'out')) FROM unnest('{h1@x.example,h2@x.example}'::text[]) AS r;
SELECT count(*) FROM kliv_mail._claim_account(78, 'out', 100, 1000000, true);
SELECT count(*) FROM kliv_mail._claim_account(78, 'out', 100, 1000000, true);
UPDATE kliv_mail._outbox SET epoch = 77 WHERE epoch = 78;
SELECT r.status FROM kliv_mail._record(77, ARRAY(SELECT outcome(o.id, 'accepted', 'message', 'dot', 250) FROM kliv_mail._outbox AS o WHERE o.epoch = 77)) AS r;
SELECT failures, suspects FROM kliv_mail._quota WHERE account = 'out';
-- the same refusal again is its own verdict
SELECT count(*) FROM play('{}', 'account_trouble', 'account', 'mail', 530, NULL, 3600);
SELECT recipient, status, reason FROM kliv_mail.deliveries WHERE recipient ~ '^[gh]\d?@x' ORDER BY 1;
SELECT held_until, failures, cardinality(suspects) AS suspects FROM kliv_mail._quota WHERE account = 'out';
SELECT reset();
-- by stage and code: bounced at RCPT, without a suppression; failed elsewhere; later where it was for now, or a limit
CREATE FUNCTION own(verdict text, stage text, code integer) RETURNS TABLE (status text, held_by text, attempts integer, bounce text)
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM play('{w1@x.example}', verdict, 'account', stage, code, NULL, 3600);
    PERFORM FROM play('{w2@x.example}', 'accepted', 'message', 'dot', 250);
    PERFORM FROM play('{}', verdict, 'account', stage, code, NULL, 3600);
    RETURN QUERY SELECT d.status, d.held_by, d.attempts, d.bounce_type FROM kliv_mail.deliveries AS d WHERE d.recipient = 'w1@x.example';
    PERFORM reset();
END;
$$;
SELECT v.*, o.* FROM (VALUES ('account_trouble', 'mail', 553), ('account_trouble', 'rcpt', 550), ('account_trouble', 'dot', 554), ('permanent', 'rcpt', 554),
    ('temporary', 'rcpt', 421), ('temporary', 'mail', 451), ('provider_limit', 'mail', 550), ('temporary', 'rcpt', 0)) AS v (verdict, stage, code), own(verdict, stage, code) AS o;
DROP FUNCTION own;

-- two different ones in a row: the account is held, and the reason names them
SELECT recipient, status, held_by, attempts, used FROM play('{i1@x.example}', 'account_trouble', 'account', 'mail', 530, NULL, 3600);
SELECT recipient, status, held_by, attempts, used FROM play('{i2@x.example}', 'account_trouble', 'account', 'mail', 530, NULL, 3600);
SELECT held_by, regexp_replace(held_reason, '\d+', 'N', 'g') AS reason, held_stage, failures FROM kliv_mail._quota WHERE account = 'out';
SELECT recipient, status, held_by FROM play('{i3@x.example}', 'accepted', 'message', 'dot', 250);
-- after the hold another one than those two tries; it meets the same: a longer hold
UPDATE kliv_mail._quota SET held_until = kliv_mail._now() WHERE account = 'out';
SELECT count(*) FROM play('{}', 'account_trouble', 'account', 'mail', 530, NULL, 3600);
SELECT failures, cardinality(suspects) AS suspects FROM kliv_mail._quota WHERE account = 'out';
SELECT recipient, status, held_by, attempts FROM kliv_mail.deliveries WHERE recipient ~ '^i\d@x' ORDER BY 1;
-- it is over: one goes through, the rest is free and is not to blame yet
SELECT set_config('kliv_mail.test_clock_offset', (timestamptz '2090-01-01 15:00:00+00' - clock_timestamp())::text, false) <> '' AS clock;
SELECT recipient, status, attempts FROM play('{}', 'accepted', 'message', 'dot', 250);
SELECT held_until, failures, suspects FROM kliv_mail._quota WHERE account = 'out';
SELECT count(*) FROM kliv_mail._claim_account(78, 'out', 100, 1000000, true);
SELECT reset();

-- one alone loses its connection, then none can be opened: the account's first failure; the next one counts anew
SELECT recipient, status, held_by FROM play('{q1@x.example}', 'temporary', 'account', 'rcpt', 0);
SELECT held_until, failures FROM kliv_mail._quota WHERE account = 'out';
SELECT count(*) FROM kliv_mail._record(77, ARRAY[outcome(NULL, 'account_trouble', 'account', 'greeting', 554)]);
SELECT held_until > kliv_mail._now() AS held, failures FROM kliv_mail._quota WHERE account = 'out';
UPDATE kliv_mail._quota SET held_until = kliv_mail._now() WHERE account = 'out';
SELECT count(*) FROM kliv_mail._record(77, ARRAY[outcome(NULL, 'account_trouble', 'account', 'greeting', 554)]);
SELECT held_until > kliv_mail._now() AS held, failures FROM kliv_mail._quota WHERE account = 'out';
SELECT reset();

-- all that is left loses its connection: nothing tells whose fault it is, and each has its time to try in
SELECT recipient, status, held_by, attempts, used FROM play('{r1@x.example,r2@x.example}', 'temporary', 'account', 'rcpt', 0);
SELECT set_config('kliv_mail.test_clock_offset', (timestamptz '2090-01-04 16:00:00+00' - clock_timestamp())::text, false) <> '' AS clock;
SELECT count(*) FROM play('{}', 'temporary', 'account', 'rcpt', 0);
SELECT set_config('kliv_mail.test_clock_offset', (timestamptz '2090-01-04 18:00:00+00' - clock_timestamp())::text, false) <> '' AS clock;
SELECT count(*) FROM play('{}', 'temporary', 'account', 'rcpt', 0);
-- those whose time is over end with the hold of two others: one tries at each hold's end
SELECT count(*) FROM play('{s1@x.example,s2@x.example}', 'temporary', 'account', 'rcpt', 0);
UPDATE kliv_mail._outbox SET attempts = 3, first_attempt_at = kliv_mail._now() - interval '4 days', refused = NULL, last_reason = 'played', due = kliv_mail._now() + interval '1 hour'
WHERE recipient IN ('s1@x.example', 's2@x.example');
UPDATE kliv_mail._quota SET held_until = NULL, suspects = '{}' WHERE account = 'out';
SELECT count(*) FROM play('{s3@x.example,s4@x.example}', 'temporary', 'account', 'rcpt', 0);
SELECT count(*) FROM play('{}', 'temporary', 'account', 'rcpt', 0);
SELECT recipient, status, held_by, attempts, reason FROM kliv_mail.deliveries WHERE recipient ~ '^s\d@x' ORDER BY 1;
SELECT recipient, status, held_by, attempts, reason FROM kliv_mail.deliveries WHERE recipient ~ '^r\d@x' ORDER BY 1;
SELECT set_config('kliv_mail.test_clock_offset', (timestamptz '2090-01-01 15:00:00+00' - clock_timestamp())::text, false) <> '' AS clock;
SELECT reset();

-- a limit that mail met: a good test ends its hold
SELECT count(*) FROM play('{j1@x.example,j2@x.example}', 'provider_limit', 'account', 'rcpt', 550, NULL, 900);
SELECT held_by, held_stage, kliv_mail._record_test('out', true) IS NULL AS ended FROM kliv_mail._quota WHERE account = 'out';
SELECT reset();

-- at fault itself, for now: it is so with other settings, too, and needs no other delivery's witness again
SELECT count(*) FROM play('{n1@x.example}', 'temporary', 'account', 'rcpt', 0);
SELECT count(*) FROM play('{n2@x.example}', 'accepted', 'message', 'dot', 250);
SELECT count(*) FROM play('{}', 'temporary', 'account', 'rcpt', 0);
UPDATE kliv_mail._account SET renewed_at = renewed_at + interval '1 s' WHERE name = 'out';
UPDATE kliv_mail._outbox SET due = kliv_mail._now() WHERE recipient = 'n1@x.example';
SELECT count(*) FROM play('{}', 'temporary', 'account', 'rcpt', 0);
SELECT recipient, status, held_by, attempts FROM kliv_mail.deliveries WHERE recipient ~ '^n\d@x' ORDER BY 1;
SELECT held_until, suspects FROM kliv_mail._quota WHERE account = 'out';
SELECT reset();

-- settings that changed: what waited for the account is free at once
SELECT recipient, status, held_by FROM play('{k1@x.example}', 'account_trouble', 'account', 'mail', 530, NULL, 3600);
UPDATE kliv_mail._account SET renewed_at = renewed_at + interval '1 s' WHERE name = 'out';
SELECT count(*) FROM kliv_mail._claim_account(78, 'out', 100, 1000000, true);
SELECT reset();

-- recorded together, in their order: r is refused, a accepted
CREATE FUNCTION together(letters text) RETURNS TABLE (recipient text, status text, held_by text) LANGUAGE plpgsql AS $$
DECLARE
    ids bigint[];
    refused boolean[] := ARRAY(SELECT l = 'r' FROM regexp_split_to_table(letters, '') AS l);
BEGIN
    PERFORM kliv_mail.send(format('t%s@x.example', i), 'Together', 'x', account => 'out') FROM generate_series(1, length(letters)) AS i;
    SELECT array_agg(c.id ORDER BY c.recipient) INTO ids FROM kliv_mail._claim_account(77, 'out', 100, 1000000, true) AS c;
    PERFORM kliv_mail._record(77, ARRAY(SELECT CASE WHEN x.r THEN outcome(x.id, 'permanent', 'account', 'rcpt', 554, NULL, 3600, 'soft')
                                                    ELSE outcome(x.id, 'accepted', 'message', 'dot', 250) END
                                        FROM unnest(ids, refused) WITH ORDINALITY AS x (id, r, n) ORDER BY x.n));
    RETURN QUERY SELECT d.recipient, d.status, d.held_by FROM kliv_mail.deliveries AS d WHERE d.recipient LIKE 't_@x.example' ORDER BY d.recipient;
END;
$$;
SELECT * FROM together('rraraar');
SELECT held_until IS NOT NULL AS held, cardinality(suspects) AS suspects FROM kliv_mail._quota WHERE account = 'out';
SELECT reset();
SELECT * FROM together('arrra');
SELECT held_until IS NOT NULL AS held, cardinality(suspects) AS suspects FROM kliv_mail._quota WHERE account = 'out';
SELECT reset();
SELECT * FROM together('arr');
SELECT held_until IS NOT NULL AS held, cardinality(suspects) AS suspects FROM kliv_mail._quota WHERE account = 'out';
SELECT reset();
DROP FUNCTION together;

-- the provider's limit: held by quota as long as the reply says, no attempt burned
SELECT recipient, status, held_by, attempts, used FROM play('{i@x.example}', 'provider_limit', 'account', 'mail', 550, '5.4.5', 86400);
SELECT recipient, status, held_by, attempts, used FROM play('{j@x.example}', 'provider_limit', 'account', 'mail', 550, '5.4.5', 86400);
SELECT held_by, held_until > kliv_mail._now() + interval '23 hours' AS a_day, failures FROM kliv_mail._quota WHERE account = 'out';
SELECT reset();

-- what has expired is not claimed, whether or not it was ended yet
SELECT count(kliv_mail.send('e@x.example', 'Code', 'x', account => 'out', expires_at => kliv_mail._now() + interval '1 hour')) FROM generate_series(1, 3);
SELECT set_config('kliv_mail.test_clock_offset', (current_setting('kliv_mail.test_clock_offset')::interval + interval '2 hours')::text, false) <> '' AS later;
SELECT count(*) FROM kliv_mail._claim_account(77, 'out', 100, 1000000, true);
SELECT kliv_mail._expire(kliv_mail._now());
SELECT reset();

-- five of a hundred blocked: the account stops
SELECT count(*) FROM play(ARRAY(SELECT format('n%s@x.example', n) FROM generate_series(1, 80) AS n), 'accepted', 'message', 'dot', 250);
SELECT status, count(*) FROM play('{o1@x.example,o2@x.example,o3@x.example,o4@x.example}', 'policy_block', 'message', 'dot', 550, '5.7.1', 0, 'policy') GROUP BY 1;
SELECT held_by FROM kliv_mail._quota WHERE account = 'out';
SELECT status, bounce FROM play('{o5@x.example}', 'policy_block', 'message', 'dot', 550, '5.7.1', 0, 'policy');
SELECT held_by, held_reason FROM kliv_mail._quota WHERE account = 'out';
SELECT reset();

-- returned: as if it had never been claimed
SELECT recipient, status, attempts, used FROM play('{p@x.example}', 'returned', 'message', 'mail', 0);
-- a row that another epoch has claimed meanwhile is left alone
BEGIN;
UPDATE kliv_mail._outbox SET epoch = 79 WHERE route = 'out';
SELECT r.status FROM kliv_mail._record(77, ARRAY(SELECT outcome(o.id, 'accepted', 'message', 'dot', 250) FROM kliv_mail._outbox AS o WHERE o.epoch = 79)) AS r;
SELECT count(*) FROM kliv_mail._outbox WHERE epoch = 79;
-- nobody holds the lock of epoch 79: what a server may have is in doubt ...
SELECT kliv_mail._stamp(79, 1, '{}', ARRAY(SELECT o.id FROM kliv_mail._outbox AS o WHERE o.epoch = 79), '{}');
SELECT kliv_mail._recover() > 0 AS recovered;
COMMIT;
SELECT status, left(reason, 100) AS reason FROM kliv_mail.deliveries WHERE recipient = 'p@x.example';
SELECT reset();
-- ... and what had only been claimed goes back as it was, with its share of the quota
SELECT count(kliv_mail.send(r, 'Outcome', 'x', account => 'out')) FROM unnest('{p1@x.example,p2@x.example,p3@x.example}'::text[]) AS r;
BEGIN;
SELECT kliv_mail._stamp(79, 1, array_agg(c.id), array_agg(c.id) FILTER (WHERE c.recipient = 'p2@x.example'), '{}')
FROM kliv_mail._claim_account(79, 'out', 100, 1000000, true) AS c;
SELECT used FROM kliv_mail.usage WHERE account = 'out' AND window_name = 'day';
SELECT kliv_mail._recover() AS in_doubt;
COMMIT;
SELECT recipient, status, attempts FROM kliv_mail.deliveries WHERE recipient LIKE 'p_@x.example' ORDER BY 1;
SELECT used FROM kliv_mail.usage WHERE account = 'out' AND window_name = 'day';
SELECT count(*) AS left_behind FROM kliv_mail._batch WHERE epoch IN (78, 79);
-- what began, came back and was claimed again is in doubt no more
BEGIN;
UPDATE kliv_mail._outbox SET epoch = 79, account = 'out' WHERE recipient IN ('p1@x.example', 'p3@x.example');
SELECT kliv_mail._stamp(79, 1, '{}', array_agg(id), '{}') FROM kliv_mail._outbox WHERE epoch = 79;
SELECT kliv_mail._stamp(79, 3, array_agg(id), '{}', '{}') FROM kliv_mail._outbox WHERE epoch = 79 AND recipient = 'p3@x.example';
SELECT kliv_mail._recover() AS in_doubt;
COMMIT;
SELECT reset();

-- marketing leaves a tenth of the windows free
SELECT count(kliv_mail.send(format('q%s@x.example', n), 'News', 'x', account => 'out', message_type => 'marketing',
    headers => '{"List-Unsubscribe": "<https://example.com/u>"}')) FROM generate_series(1, 12) AS n;
UPDATE kliv_mail._account SET hourly_limit = 10, daily_limit = 20 WHERE name = 'out';
SELECT count(*) FROM kliv_mail._claim_account(78, 'out', 100, 1000000, true);
SELECT window_name, used, remaining, remaining_marketing FROM kliv_mail.usage WHERE account = 'out' ORDER BY 1;
SELECT count(kliv_mail.send(format('r%s@x.example', n), 'Reset', 'x', account => 'out', message_type => 'system')) FROM generate_series(1, 3) AS n;
SELECT count(*) FROM kliv_mail._claim_account(78, 'out', 100, 1000000, true);
-- ... and has one where that is more than nothing
SELECT l, kliv_mail._marketing_share(l) FROM unnest(ARRAY[0, 1, 2, 10, 50]) AS l;
SELECT reset();

-- what somebody's trigger keeps from being claimed is not counted, nor what was replaced meanwhile
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN CASE WHEN NEW.recipient = 'u2@x.example' THEN NULL ELSE NEW END; END; $$;
CREATE TRIGGER keep BEFORE UPDATE ON kliv_mail._outbox FOR EACH ROW EXECUTE FUNCTION keep();
SELECT count(kliv_mail.send(format('u%s@x.example', n), 'News', 'x', account => 'out', message_type => CASE WHEN n < 3 THEN 'transactional' ELSE 'marketing' END,
    headers => '{"List-Unsubscribe": "<https://example.com/u>"}')) FROM generate_series(1, 4) AS n;
SELECT recipient FROM kliv_mail._claim_account(78, 'out', 100, 1000000, true) ORDER BY 1;
SELECT window_name, used, used_marketing FROM kliv_mail._usage WHERE account = 'out' ORDER BY 1;
DROP TRIGGER keep ON kliv_mail._outbox;
DROP FUNCTION keep();
SELECT reset();
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(kliv_mail.send(format('v%s@x.example', n), 'Key', 'x', account => 'out', replace_key => 'k' || n % 21)) FROM generate_series(1, 42) AS n;
SELECT count(*) FROM kliv_mail._claim_account(78, 'out', 1, 1000000, true);
SELECT window_name, used FROM kliv_mail._usage WHERE account = 'out' ORDER BY 1;
ROLLBACK;

-- accounts that have no mail take no part of the memory, those that have some an equal one
INSERT INTO kliv_mail._account (name, in_use, route_order, origin, host, port, encryption, from_address, hourly_limit, daily_limit, created_at, updated_at, updated_by, renewed_at)
SELECT 'o' || n, true, 10 + n, kliv_mail._origin(), 'smtp.example.com', 25, 'none', 'app@example.com', 1000, 10000, now(), now(), 'me', now() FROM generate_series(1, 9) AS n;
SELECT count(kliv_mail.send(format('m%s@x.example', n), 'Large', repeat('1234567890', 1000), account => a)) FROM generate_series(1, 20) AS n, unnest('{out,o1}'::text[]) AS a
WHERE a = 'out' OR n <= 9;
BEGIN;
SELECT account, count(*) FROM kliv_mail._claim(78, 100, 100000) GROUP BY 1 ORDER BY 1;
SELECT account, count(*) FROM kliv_mail._claim(78, 100, 100000, '{o1}', '{1}', '{90000}', '{100}') GROUP BY 1 ORDER BY 1;
ROLLBACK;
BEGIN;
SELECT count(*) FROM kliv_mail._claim_account(78, 'o1', 100, 1000000, true);
SELECT account, count(*) FROM kliv_mail._claim(78, 100, 100000) GROUP BY 1 ORDER BY 1;
ROLLBACK;
DELETE FROM kliv_mail._outbox WHERE route = 'o1';
DELETE FROM kliv_mail._account WHERE name ~ '^o\d';
SELECT reset();

-- a row that cannot even be read is set aside
SELECT kliv_mail.send('odd@x.example', 'Reset', 'x', account => 'out') AS odd \gset
SELECT kliv_mail._set_aside(o.id, 'it cannot be read') FROM kliv_mail._outbox AS o WHERE o.message_id = :odd;
SELECT d.status, d.reason FROM kliv_mail.deliveries AS d WHERE d.message_id = :odd;
SELECT kliv_mail._set_aside(-1, 'no such row');
SELECT reset();

-- what does not exist gets no more mail
SELECT s.scope, s.reason FROM kliv_mail.suppressions AS s WHERE s.address ~ '@x.example$' ORDER BY s.address;
DELETE FROM kliv_mail._suppression WHERE address = 'gone@x.example';
DELETE FROM kliv_mail._message WHERE account = 'out';
DELETE FROM kliv_mail._account WHERE name = 'out';
RESET kliv_mail.test_clock_offset;
DROP FUNCTION play, reset, outcome;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET kliv_mail.delivery', current_database()); END $$;
