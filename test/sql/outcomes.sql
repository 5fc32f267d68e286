-- What _record() makes of outcomes, without a network: states, attempts, quota,
-- holds.  The claims are made by hand under epochs that no sender has; the
-- setting delivery keeps senders of other sessions out.
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET kliv_mail.delivery = hold', current_database()); END $$;
SET client_min_messages = warning;
INSERT INTO kliv_mail._account (name, in_use, route_order, origin, host, port, encryption, from_address,
    hourly_limit, daily_limit, created_at, updated_at, updated_by, renewed_at)
VALUES ('out', true, 9, kliv_mail._origin(), 'smtp.example.com', 25, 'none', 'app@example.com', 1000, 10000, now(), now(), 'me', now());

-- Send to recipients, claim all, give each the same outcome; what became of them.
CREATE FUNCTION play(recipients text[], verdict text, scope text, stage text, code integer, enhanced text DEFAULT NULL,
                     pause integer DEFAULT 0, bounce_type text DEFAULT NULL, unknown boolean DEFAULT false)
RETURNS TABLE (recipient text, status text, held_by text, attempts integer, bounce text, due_in text, used integer)
LANGUAGE plpgsql AS $$
DECLARE
    n integer := cardinality(recipients);
    ids bigint[];
BEGIN
    PERFORM kliv_mail.send(r, 'Outcome', 'x', account => 'out') FROM unnest(recipients) AS r;
    SELECT array_agg(c.id) INTO ids FROM kliv_mail._claim_account(77, 'out', 100, 1000000, true) AS c;
    n := coalesce(cardinality(ids), 0);
    PERFORM kliv_mail._record(77, coalesce(ids, '{}'), array_fill(verdict, ARRAY[n]), array_fill(scope, ARRAY[n]), array_fill(bounce_type, ARRAY[n]),
        array_fill(pause, ARRAY[n]), array_fill(stage, ARRAY[n]), array_fill(code, ARRAY[n]), array_fill(enhanced, ARRAY[n]),
        array_fill(code || ' played', ARRAY[n]), array_fill('played'::text, ARRAY[n]), array_fill(NULL::text, ARRAY[n]),
        array_fill('id'::text, ARRAY[n]), array_fill('From: a'::text, ARRAY[n]), array_fill(unknown, ARRAY[n]), array_fill(NULL::text, ARRAY[n]));
    RETURN QUERY SELECT d.recipient, d.status, d.held_by, d.attempts, d.bounce_type,
        CASE WHEN d.next_attempt_at > now() + interval '10 minutes' THEN 'later' WHEN d.next_attempt_at > now() + interval '10 seconds' THEN 'soon'
             WHEN d.next_attempt_at IS NOT NULL THEN 'now' END,
        (SELECT u.used FROM kliv_mail.usage AS u WHERE u.account = 'out' AND u.window_name = 'day')
    FROM kliv_mail.deliveries AS d WHERE d.recipient = ANY (recipients) ORDER BY d.recipient;
END;
$$;
-- The present session may claim; the windows of a day to come are empty.
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
SELECT recipient, status, bounce, attempts, used FROM play('{b@x.example}', 'permanent', 'recipient', 'rcpt', 550, '5.1.1', 0, 'hard');
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

-- the account's trouble: nobody's attempt, the account is held, a second mail waits for it
SELECT recipient, status, held_by, attempts, used FROM play('{g@x.example}', 'account_trouble', 'account', 'mail', 530);
SELECT recipient, status, held_by, attempts, used FROM play('{h@x.example}', 'accepted', 'message', 'dot', 250);
SELECT held_by, held_reason, failures FROM kliv_mail._quota WHERE account = 'out';
-- after the hold one delivery tries; its success frees the rest
SELECT set_config('kliv_mail.test_clock_offset', (timestamptz '2090-01-01 10:05:00+00' - clock_timestamp())::text, false) <> '' AS clock;
SELECT count(*) FROM kliv_mail._claim_account(78, 'out', 100, 1000000, true);
UPDATE kliv_mail._outbox SET epoch = 77 WHERE epoch = 78;
SELECT kliv_mail._record(77, array_agg(o.id), '{accepted}', '{message}', '{NULL}', '{0}', '{dot}', '{250}', '{NULL}', '{ok}', '{ok}', '{NULL}', '{x}', '{F}', '{false}', '{NULL}')
FROM kliv_mail._outbox AS o WHERE o.epoch = 77;
SELECT held_by, held_reason, failures FROM kliv_mail._quota WHERE account = 'out';
SELECT count(*) FROM kliv_mail._claim_account(78, 'out', 100, 1000000, true);
SELECT reset();

-- a 421 holds the account once; the same for the same delivery again is its own,
-- and does not keep the others back
SELECT recipient, status, held_by, attempts, used FROM play('{p@x.example}', 'temporary', 'account', 'rcpt', 421);
SELECT held_by, failures FROM kliv_mail._quota WHERE account = 'out';
SELECT set_config('kliv_mail.test_clock_offset', (timestamptz '2090-01-01 10:10:00+00' - clock_timestamp())::text, false) <> '' AS clock;
SELECT count(*) FROM play('{}', 'temporary', 'account', 'rcpt', 421);
SELECT d.recipient, d.status, d.held_by, d.attempts, d.next_attempt_at > kliv_mail._now() AS later FROM kliv_mail.deliveries AS d WHERE d.recipient = 'p@x.example';
SELECT held_until > kliv_mail._now() AS held, failures FROM kliv_mail._quota WHERE account = 'out';
SELECT recipient, status, attempts, used FROM play('{q@x.example}', 'accepted', 'message', 'dot', 250);
SELECT reset();

-- the provider's limit: held by quota as long as the reply says, no attempt burned
SELECT recipient, status, held_by, attempts, used FROM play('{i@x.example}', 'provider_limit', 'account', 'mail', 550, '5.4.5', 86400);
SELECT held_by, held_until > kliv_mail._now() + interval '23 hours' AS a_day, failures FROM kliv_mail._quota WHERE account = 'out';
SELECT reset();

-- three different recipients in a row refused the same unknown way: the account
SELECT recipient, status, held_by FROM play('{j@x.example}', 'permanent', 'recipient', 'rcpt', 554, NULL, 0, 'soft', true);
SELECT recipient, status, held_by FROM play('{k@x.example}', 'permanent', 'recipient', 'rcpt', 554, NULL, 0, 'soft', true);
SELECT recipient, status, held_by FROM play('{l@x.example}', 'permanent', 'recipient', 'rcpt', 554, NULL, 0, 'soft', true);
SELECT reset();
-- an accepted one between them: not in a row
SELECT count(*) FROM play('{j@x.example,k@x.example}', 'permanent', 'recipient', 'rcpt', 554, NULL, 0, 'soft', true);
SELECT count(*) FROM play('{m@x.example}', 'accepted', 'message', 'dot', 250);
SELECT recipient, status, held_by FROM play('{l@x.example}', 'permanent', 'recipient', 'rcpt', 554, NULL, 0, 'soft', true);
SELECT reset();
-- nor where they are recorded together: r refused, a accepted, in this order
CREATE FUNCTION together(letters text) RETURNS TABLE (recipient text, status text, held_by text) LANGUAGE plpgsql AS $$
DECLARE
    ids bigint[];
    refused boolean[] := ARRAY(SELECT l = 'r' FROM regexp_split_to_table(letters, '') AS l);
BEGIN
    PERFORM kliv_mail.send(format('t%s@x.example', i), 'Together', 'x', account => 'out') FROM generate_series(1, length(letters)) AS i;
    SELECT array_agg(c.id ORDER BY c.recipient) INTO ids FROM kliv_mail._claim_account(77, 'out', 100, 1000000, true) AS c;
    PERFORM kliv_mail._record(77, ids, array_agg(CASE WHEN r THEN 'permanent' ELSE 'accepted' END), array_agg(CASE WHEN r THEN 'recipient' ELSE 'message' END),
        array_agg(CASE WHEN r THEN 'soft' END), array_agg(0), array_agg(CASE WHEN r THEN 'rcpt' ELSE 'dot' END), array_agg(CASE WHEN r THEN 554 ELSE 250 END),
        array_agg(NULL::text), array_agg('played'::text), array_agg('played'::text), array_agg(NULL::text), array_agg('id'::text), array_agg('F'::text),
        array_agg(r), array_agg(NULL::text))
    FROM unnest(refused) AS r;
    RETURN QUERY SELECT d.recipient, d.status, d.held_by FROM kliv_mail.deliveries AS d WHERE d.recipient LIKE 't_@x.example' ORDER BY d.recipient;
END;
$$;
SELECT * FROM together('rraraar');
SELECT reset();
SELECT * FROM together('arrra');
SELECT reset();
DROP FUNCTION together;

-- what comes back with the refusal that it met before holds nothing: s1 and s2 met rcpt 0, then
-- s3 another one, and all three rcpt 0 again
SELECT recipient, status, held_by FROM play('{s1@x.example,s2@x.example,s3@x.example}', 'temporary', 'recipient', 'rcpt', 0, NULL, 0, NULL, true);
SELECT set_config('kliv_mail.test_clock_offset', (current_setting('kliv_mail.test_clock_offset')::interval + interval '3 hours')::text, false) <> '' AS later;
SELECT count(*) FROM play('{}', 'temporary', 'recipient', 'rcpt', 454, NULL, 0, NULL, true);
SELECT recipient, last_code, attempts FROM kliv_mail.deliveries WHERE recipient ~ '^s\d@x' ORDER BY 1;
SELECT set_config('kliv_mail.test_clock_offset', (current_setting('kliv_mail.test_clock_offset')::interval + interval '3 hours')::text, false) <> '' AS later;
SELECT count(*) FROM play('{}', 'temporary', 'recipient', 'rcpt', 0, NULL, 0, NULL, true);
SELECT count(*) FROM play('{}', 'temporary', 'recipient', 'rcpt', 0, NULL, 0, NULL, true);
SELECT count(*) FROM play('{}', 'temporary', 'recipient', 'rcpt', 0, NULL, 0, NULL, true);
SELECT recipient, status, held_by, last_code, attempts FROM kliv_mail.deliveries WHERE recipient ~ '^s\d@x' ORDER BY 1;
-- so that one that can leave is not kept back
SELECT recipient, status FROM play('{good@x.example}', 'accepted', 'message', 'dot', 250);
SELECT failures, strikes FROM kliv_mail._quota WHERE account = 'out';
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
UPDATE kliv_mail._outbox SET epoch = 79 WHERE route = 'out';
SELECT kliv_mail._record(77, array_agg(o.id), '{accepted}', '{message}', '{NULL}', '{0}', '{dot}', '{250}', '{NULL}', '{ok}', '{ok}', '{NULL}', '{x}', '{F}', '{false}', '{NULL}')
FROM kliv_mail._outbox AS o WHERE o.epoch = 79;
SELECT count(*) FROM kliv_mail._outbox WHERE epoch = 79;
-- nobody holds the lock of epoch 79: in doubt
SELECT kliv_mail._recover() > 0 AS recovered;
SELECT status, left(reason, 100) AS reason FROM kliv_mail.deliveries WHERE recipient = 'p@x.example';
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

DELETE FROM kliv_mail._message WHERE account = 'out';
DELETE FROM kliv_mail._account WHERE name = 'out';
RESET kliv_mail.test_clock_offset;
DROP FUNCTION play, reset;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET kliv_mail.delivery', current_database()); END $$;
