-- What _finish() takes out of the outbox, and what it makes of it in the history.
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET kliv_mail.delivery = hold', current_database()); END $$;
SET client_min_messages = warning;
SELECT count(kliv_mail.send(format('f%s@finish.example', n), 'Finish', 'x')) FROM generate_series(1, 9) AS n;
CREATE VIEW waits AS SELECT * FROM kliv_mail._outbox WHERE recipient LIKE '%@finish.example';
CREATE VIEW ended AS SELECT * FROM kliv_mail._delivery WHERE recipient LIKE '%@finish.example';
CREATE FUNCTION id(n integer) RETURNS bigint LANGUAGE sql RETURN (SELECT id FROM waits WHERE recipient = format('f%s@finish.example', n));
UPDATE kliv_mail._outbox SET epoch = 7, attempts = 2, account = 'custom', host = 'smtp.example.com', identity = 'From: before', last_stage = 'rcpt',
    last_code = 451, last_enhanced = '4.7.1', last_reply = repeat('later ', 40000), expires_at = now() + interval '1 day'
WHERE id IN (SELECT id FROM waits);
UPDATE kliv_mail._outbox SET epoch = NULL WHERE id = id(3);

-- Each column, of one that a server accepted, and of one whose outcome says nothing of a server; what is
-- not the epoch's stays, and one that is named twice ends once
CREATE TEMPORARY TABLE before AS SELECT * FROM waits;
SELECT f.status, b.recipient FROM kliv_mail._finish(7, ARRAY[
    ROW(id(1), 'custom', 'accepted', 'message', NULL, 0, 'dot', 250, '2.0.0', '250 Ok', NULL, NULL, 'srv', 'From: as sent', NULL, true)::kliv_mail._outcome,
    kliv_mail._ended(id(2), 'failed', 'why', 'do this'), kliv_mail._ended(id(3), 'failed', 'not ours', NULL), NULL,
    kliv_mail._ended(id(2), 'expired', 'again', NULL), kliv_mail._ended(NULL, 'failed', 'nobody', NULL), kliv_mail._ended(0, 'failed', 'no row', NULL)],
    '2090-01-01 12:00+00') AS f JOIN before AS b USING (message_id) ORDER BY 2;
SELECT e.recipient, e.status, e.kind, e.priority, e.route, e.attempts, e.doubts, e.account, e.host, e.identity, e.bounce_type, e.last_stage, e.last_code, e.last_enhanced,
    length(e.last_reply) AS reply, e.reason, e.hint, e.server_message_id, e.sent_at = '2090-01-01 12:00+00' AS sent, e.finished_at = '2090-01-01 12:00+00' AS finished, e.simulated,
    e.changed BETWEEN kliv_mail._change() - 1000 AND kliv_mail._change() AS changed, (e.id, e.message_id, e.created_at, e.expires_at) = (b.id, b.message_id, b.created_at, b.expires_at) AS the_same
FROM ended AS e JOIN before AS b USING (id) ORDER BY 1;
SELECT count(*) AS reply_kept FROM ended AS e JOIN before AS b USING (id) WHERE e.last_reply = b.last_reply;
SELECT recipient, epoch FROM waits ORDER BY 1;

-- nothing to do
SELECT count(*) FROM kliv_mail._finish(7, '{}', now());
SELECT count(*) FROM kliv_mail._finish(7, NULL, now());
-- a verdict that ends nothing
SELECT count(*) FROM kliv_mail._finish(7, ARRAY[kliv_mail._ended(id(4), 'temporary', NULL, NULL)], now());
SELECT count(*) FROM kliv_mail._finish(7, ARRAY[kliv_mail._ended(id(4), NULL, NULL, NULL)], now());
SELECT count(*) FROM waits WHERE recipient = 'f4@finish.example';

-- Somebody's triggers: one keeps a row, others see what goes and what comes.
CREATE TABLE seen (n serial, what text);
CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.seen (what) VALUES (format('%s %s %s %s', TG_WHEN, TG_OP, coalesce(NEW.recipient, OLD.recipient), current_setting('search_path')));
    RETURN CASE WHEN TG_WHEN = 'BEFORE' AND OLD.recipient = 'f5@finish.example' THEN NULL WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END;
$$;
CREATE TRIGGER before_it BEFORE DELETE ON kliv_mail._outbox FOR EACH ROW EXECUTE FUNCTION see();
CREATE TRIGGER after_it AFTER DELETE ON kliv_mail._outbox FOR EACH ROW EXECUTE FUNCTION see();
CREATE TRIGGER after_it AFTER INSERT ON kliv_mail._delivery FOR EACH ROW EXECUTE FUNCTION see();
SELECT status FROM kliv_mail._finish(7, ARRAY[kliv_mail._ended(id(5), 'failed', NULL, NULL), kliv_mail._ended(id(6), 'failed', NULL, NULL)], now());
SELECT what FROM seen ORDER BY n;
SELECT recipient FROM waits WHERE recipient ~ '^f[56]' ORDER BY 1;
SELECT recipient FROM ended WHERE recipient ~ '^f[56]' ORDER BY 1;
DROP TRIGGER before_it ON kliv_mail._outbox;
DROP TRIGGER after_it ON kliv_mail._outbox;
DROP TRIGGER after_it ON kliv_mail._delivery;

-- One that changes another row that is to end, by the command that ends it: no row is forgotten.
CREATE FUNCTION change_the_other() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE kliv_mail._outbox SET attempts = attempts + 1 WHERE recipient ~ '^f[78]@finish' AND id <> NEW.id;
    RETURN NEW;
END;
$$;
CREATE TRIGGER before_it BEFORE INSERT ON kliv_mail._delivery FOR EACH ROW EXECUTE FUNCTION change_the_other();
SELECT status FROM kliv_mail._finish(7, ARRAY[kliv_mail._ended(id(7), 'failed', NULL, NULL), kliv_mail._ended(id(8), 'failed', NULL, NULL)], now());
SELECT count(*) AS wait FROM waits WHERE recipient ~ '^f[78]';
DROP TRIGGER before_it ON kliv_mail._delivery;

-- The owner's own columns have their defaults, and the primary key any name.
ALTER TABLE kliv_mail._delivery ADD archived boolean NOT NULL DEFAULT false, ADD gone text, ADD n integer GENERATED BY DEFAULT AS IDENTITY,
    ADD twice integer GENERATED ALWAYS AS (attempts * 2) STORED, ADD noted timestamptz DEFAULT now();
ALTER TABLE kliv_mail._delivery DROP gone;
ALTER INDEX kliv_mail._outbox_pkey RENAME TO another;
SELECT status FROM kliv_mail._finish(7, ARRAY[kliv_mail._ended(id(8), 'failed', NULL, NULL), kliv_mail._ended(id(9), 'failed', NULL, NULL)], now());
SELECT d.recipient, d.archived, d.n > 0 AS n, d.twice, d.noted IS NOT NULL AS noted FROM kliv_mail._delivery AS d WHERE d.recipient ~ '^f[89]@finish' ORDER BY 1;
ALTER INDEX kliv_mail.another RENAME TO _outbox_pkey;
ALTER TABLE kliv_mail._delivery DROP archived, DROP n, DROP twice, DROP noted;

-- A table that is none of ours any more is an error, and nothing worse.
BEGIN;
ALTER TABLE kliv_mail._delivery RENAME TO _delivery_before;
CREATE TABLE kliv_mail._delivery (LIKE kliv_mail._delivery_before) PARTITION BY RANGE (finished_at);
CREATE TABLE kliv_mail._delivery_all PARTITION OF kliv_mail._delivery DEFAULT;
SELECT status FROM kliv_mail._finish(7, ARRAY[kliv_mail._ended(id(7), 'failed', NULL, NULL)], now());
ROLLBACK;
BEGIN;
ALTER TABLE kliv_mail._outbox RENAME TO _outbox_before;
CREATE VIEW kliv_mail._outbox AS SELECT * FROM kliv_mail._outbox_before;
SELECT status FROM kliv_mail._finish(7, ARRAY[kliv_mail._ended(id(7), 'failed', NULL, NULL)], now());
ROLLBACK;
BEGIN;
ALTER TABLE kliv_mail._outbox DROP CONSTRAINT _outbox_pkey, ADD PRIMARY KEY (message_id);
SELECT status FROM kliv_mail._finish(7, ARRAY[kliv_mail._ended(id(7), 'failed', NULL, NULL)], now());
ROLLBACK;

-- all or nothing
BEGIN;
SELECT status FROM kliv_mail._finish(7, ARRAY[kliv_mail._ended(id(7), 'failed', NULL, NULL)], now());
ROLLBACK;
SELECT count(*) FROM waits WHERE recipient = 'f7@finish.example';
DELETE FROM kliv_mail._outbox WHERE id IN (SELECT id FROM waits);
DELETE FROM kliv_mail._delivery WHERE id IN (SELECT id FROM ended);
DROP VIEW waits, ended CASCADE;
DROP TABLE seen;
DROP FUNCTION see();
DROP FUNCTION change_the_other();
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET kliv_mail.delivery', current_database()); END $$;
