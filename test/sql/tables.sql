-- Rows that make no sense cannot be written by mistake, where a table is small
-- enough for a CHECK.  (What is bad all the same the sender sets aside: 017_bad_rows.)
CREATE FUNCTION refused(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RETURN 'taken';
EXCEPTION WHEN check_violation OR not_null_violation OR unique_violation THEN
    RETURN 'refused: ' || SQLSTATE;
END;
$$;
SET client_min_messages = warning;
INSERT INTO kliv_mail._account (name, in_use, route_order, origin, host, port, encryption, from_address, created_at, updated_at, updated_by, renewed_at)
VALUES ('whole', true, 1, kliv_mail._origin(), 'smtp.example.com', 25, 'none', 'a@example.com', now(), now(), 'me', now());
SELECT change, refused(format('UPDATE kliv_mail._account SET %s WHERE name = ''whole''', change)) FROM (VALUES
    ('host = NULL'), ('port = NULL'), ('port = 0'), ('port = 65536'), ('encryption = NULL'), ('encryption = ''ssl'''), ('from_address = NULL'),
    ('auth = ''magic'''), ('name = ''platform'''), ('name = '''''), ('origin = '''''), ('origin = NULL'), ('in_use = NULL'),
    ('hourly_limit = -1'), ('daily_limit = -1'), ('daily_limit = NULL'), ('rolling_limit = -1'),
    ('allowed_senders = NULL'), ('password_cipher = ''x'', key_id = NULL'), ('renewed_at = NULL'),
    ('in_use = false, host = NULL, port = NULL, encryption = NULL, from_address = NULL')) AS c (change);
SELECT statement, refused(statement) FROM (VALUES
    ('INSERT INTO kliv_mail._usage VALUES (''whole'', ''week'', now(), now() + ''1 hour'', 1, 0)'),
    ('INSERT INTO kliv_mail._usage VALUES (''whole'', ''hour'', now(), now(), 1, 0)'),
    ('INSERT INTO kliv_mail._usage VALUES (''whole'', ''hour'', now(), now() + ''1 hour'', -1, 0)'),
    ('INSERT INTO kliv_mail._suppression (address, scope, created_at, created_by) VALUES (''A@example.com'', ''all'', now(), ''me'')'),
    ('INSERT INTO kliv_mail._suppression (address, scope, created_at, created_by) VALUES (''nobody'', ''all'', now(), ''me'')'),
    ('INSERT INTO kliv_mail._suppression (address, scope, created_at, created_by) VALUES (''a@example.com'', ''Some'', now(), ''me'')'),
    ('INSERT INTO kliv_mail._quota (account, held_by) VALUES (''whole'', ''mood'')')) AS s (statement);
-- An empty table refuses nothing: one row.
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET kliv_mail.delivery = hold', current_database()); END $$;
SELECT kliv_mail.send('tables@example.com', 'x', 'x') > 0 AS sent;
SELECT c.relname, count(*) AS taken FROM (
    SELECT a.attrelid, refused(format('UPDATE %s SET %I = NULL', a.attrelid::regclass, a.attname)) AS answer
    FROM pg_attribute AS a
    WHERE a.attrelid IN ('kliv_mail._outbox'::regclass, 'kliv_mail._message'::regclass) AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull) AS x
JOIN pg_class AS c ON c.oid = x.attrelid WHERE x.answer = 'taken' GROUP BY 1;

-- EXPLAIN tells nothing of what stands in the rows, after ANALYZE either.
SELECT count(kliv_mail.send('often@example.com', 'often', 'x', tags => ARRAY['often'])) FROM generate_series(1, 300);
ANALYZE kliv_mail._message, kliv_mail._outbox, kliv_mail._delivery;
CREATE FUNCTION plan_rows(condition text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    plan json;
BEGIN
    EXECUTE 'EXPLAIN (FORMAT json) SELECT 1 FROM ' || condition INTO plan;
    RETURN (regexp_match(plan::text, '"Plan Rows": (\d+)'))[1];
END;
$$;
SELECT c.relation, plan_rows(format(c.relation, 'often')) = plan_rows(format(c.relation, 'never')) AS the_same FROM (VALUES
    ('kliv_mail.messages WHERE subject = %L'), ('kliv_mail.messages WHERE tags = ARRAY[%L]'), ('kliv_mail.deliveries WHERE recipient = %L || ''@example.com'''),
    ('kliv_mail._message WHERE subject = %L'), ('kliv_mail._outbox WHERE recipient = %L || ''@example.com''')) AS c (relation);
DROP FUNCTION plan_rows(text);

-- A limit above what the provider takes is saved, and said.
SET client_min_messages = notice;
UPDATE kliv_mail._account SET provider = 'resend' WHERE name = 'whole';
SELECT daily_limit FROM kliv_mail.set_limits(daily_limit => 100, account => 'whole');
SELECT daily_limit FROM kliv_mail.set_limits(daily_limit => 2000, account => 'whole');
UPDATE kliv_mail._account SET provider = 'gmail', rolling_limit = kliv_mail._rolling_limit('gmail', 'me@gmail.com') WHERE name = 'whole';
SELECT daily_limit FROM kliv_mail.set_limits(daily_limit => 2001, account => 'whole');
SELECT kliv_mail._rolling_limit(p, u), p, u FROM (VALUES ('gmail', 'me@GMAIL.com'), ('gmail', 'me@googlemail.com'), ('gmail', 'me@shop.example'), ('gmail', NULL),
    ('ses', 'AKIA'), ('sendgrid', 'apikey'), (NULL, 'x')) AS v (p, u);

DROP FUNCTION refused(text);
DELETE FROM kliv_mail._outbox WHERE recipient IN ('tables@example.com', 'often@example.com');
DELETE FROM kliv_mail._message WHERE subject IN ('x', 'often');
DELETE FROM kliv_mail._account WHERE name = 'whole';
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET kliv_mail.delivery', current_database()); END $$;
