-- An account's good name, in two stages: bounces and complaints of the last seven
-- days warn, and then pause its marketing mail until resume().
SET client_min_messages = warning;
\pset format unaligned
\pset tuples_only on
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET kliv_mail.delivery = hold', current_database()); END $$;
SELECT kliv_mail.resume() >= 0;
SET kliv_mail.test_in_session = on;
SET kliv_mail.delivery = on;
INSERT INTO kliv_mail._account (name, in_use, route_order, origin, host, port, encryption, from_address,
    hourly_limit, daily_limit, created_at, updated_at, updated_by, renewed_at, last_test_at, last_test_ok)
VALUES ('custom', true, 9, kliv_mail._origin(), 'smtp.example.com', 25, 'none', 'app@example.com', 1000, 10000, now(), now(), 'me', now(), now(), true);
SELECT kliv_mail.send('a@x.example', 's', 'b', account => 'custom') AS message \gset

-- So many deliveries that ended so, hours ago; then the account is judged as after a minute.
CREATE FUNCTION ended(count integer, status text, hours integer DEFAULT 1, simulated boolean DEFAULT false) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, created_at, attempts, doubts, account, bounce_type, sent_at, finished_at, simulated, changed)
    SELECT nextval('kliv_mail._delivery_id'), (SELECT max(id) FROM kliv_mail._message), 'r@x.example', 'to', 1, 'custom', ended.status, now(), 1, 0, 'custom',
        CASE ended.status WHEN 'bounced' THEN 'hard' END, CASE WHEN ended.status <> 'bounced' THEN now() END, now() - make_interval(hours => hours), ended.simulated, 0
    FROM generate_series(1, count);
    UPDATE kliv_mail._reputation SET judged_at = judged_at - interval '1 hour';
    PERFORM kliv_mail._judge_reputation('custom', kliv_mail._now());
    RETURN (SELECT coalesce(r.stage, 'well') || coalesce(': ' || r.reason, '') FROM kliv_mail._reputation AS r WHERE r.account = 'custom');
END;
$$;

\echo # too few to judge, too old, or played
SELECT ended(20, 'bounced'), ended(170, 'sent');
DELETE FROM kliv_mail._delivery WHERE account = 'custom';
SELECT ended(50, 'bounced', 169), ended(50, 'bounced', 1, true), ended(50, 'complained', 1, true), ended(300, 'sent');
\echo # bounces: above 4 %, above 8 %
SELECT ended(12, 'bounced');
SELECT ended(1, 'bounced');
SELECT code, problem, statement, cures, safe FROM kliv_mail.next_step() WHERE code ~ 'reputation';
SELECT r.account, r.stage, r.hint FROM kliv_mail._bad_reputations() AS r;
SELECT hint ~ 'went to addresses that do not exist' AS told FROM kliv_mail.status;
SELECT ended(13, 'bounced');
SELECT ended(1, 'bounced');
SELECT kind, account, detail FROM kliv_mail.events WHERE kind IN ('reputation_warning', 'marketing_paused') ORDER BY at;
\echo # marketing mail waits, other mail does not
SET client_min_messages = notice;
SELECT kliv_mail.send('a@x.example', 's', 'b', account => 'custom', message_type => 'marketing', headers => '{"List-Unsubscribe": "<https://example.com/u>"}') AS news \gset
SELECT kliv_mail.send('a@x.example', 's', 'b', account => 'custom') AS receipt \gset
SET client_min_messages = warning;
SELECT message_id = :news AS news, status, held_by, reason, hint, code, estimated_send_at FROM kliv_mail.deliveries WHERE message_id = :news;
SELECT held_by FROM kliv_mail.deliveries WHERE message_id = :receipt;
SELECT problem, statement, cures, safe FROM kliv_mail.next_step(:news);
SELECT count(*) FILTER (WHERE m.message_type = 'marketing') AS marketing, count(*) AS all FROM kliv_mail._claim_account(1, 'custom', 99, 1000000, true) AS c JOIN kliv_mail._message AS m ON m.id = c.message_id;
UPDATE kliv_mail._outbox SET epoch = NULL;
SELECT code, statement, cures, safe FROM kliv_mail.next_step() WHERE code = 'marketing_paused';
\echo # it stays so until resume(), and what came before counts no more
SELECT ended(1000, 'sent');
SELECT kliv_mail.resume('custom') > 0;
SELECT ended(0, 'sent');
SELECT held_by IS NULL FROM kliv_mail.deliveries WHERE message_id = :news;
SELECT ended(300, 'sent', 0), ended(30, 'bounced', 0);
DELETE FROM kliv_mail._reputation;
DELETE FROM kliv_mail._delivery WHERE account = 'custom';
\echo # complaints: above 0.08 %, above 0.3 % and at least two
SELECT ended(1300, 'sent');
SELECT ended(1, 'complained');
SELECT ended(1, 'complained');
SELECT ended(2, 'complained');
DELETE FROM kliv_mail._reputation;
DELETE FROM kliv_mail._delivery WHERE account = 'custom';
SELECT ended(250, 'sent'), ended(1, 'complained');
DELETE FROM kliv_mail._reputation;
DELETE FROM kliv_mail._delivery WHERE account = 'custom';
\echo # what a report says of a mail to several, of whom each could have made it, does not count
SELECT ended(250, 'sent');
SELECT kliv_mail.send('a@x.example, b@x.example', 's', 'b', account => 'custom') > 0;
SELECT ended(50, 'sent');
UPDATE kliv_mail._delivery SET status = 'bounced', bounce_type = 'hard', reported_at = now() WHERE message_id = (SELECT max(id) FROM kliv_mail._message);
SELECT ended(0, 'sent');
UPDATE kliv_mail._delivery SET reported_at = NULL WHERE reported_at IS NOT NULL;
SELECT ended(0, 'sent');

RESET kliv_mail.delivery;
DROP FUNCTION ended;
DELETE FROM kliv_mail._outbox;
DELETE FROM kliv_mail._delivery WHERE account = 'custom';
DELETE FROM kliv_mail._reputation;
DELETE FROM kliv_mail._usage WHERE account = 'custom';
DELETE FROM kliv_mail._quota WHERE account = 'custom';
DELETE FROM kliv_mail._account WHERE name = 'custom';
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET kliv_mail.delivery', current_database()); END $$;
