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
    ('allowed_senders = NULL'), ('allowed_senders = ARRAY[NULL]'), ('password_cipher = ''x'', key_id = NULL'), ('renewed_at = NULL'),
    ('in_use = false, host = NULL, port = NULL, encryption = NULL, from_address = NULL')) AS c (change);
SELECT statement, refused(statement) FROM (VALUES
    ('INSERT INTO kliv_mail._usage VALUES (''whole'', ''week'', now(), now() + ''1 hour'', 1, 0)'),
    ('INSERT INTO kliv_mail._usage VALUES (''whole'', ''hour'', now(), now(), 1, 0)'),
    ('INSERT INTO kliv_mail._usage VALUES (''whole'', ''hour'', now(), now() + ''1 hour'', -1, 0)'),
    ('INSERT INTO kliv_mail._suppression (address, scope, created_at, created_by) VALUES (''A@example.com'', ''all'', now(), ''me'')'),
    ('INSERT INTO kliv_mail._suppression (address, scope, created_at, created_by) VALUES (''nobody'', ''all'', now(), ''me'')'),
    ('INSERT INTO kliv_mail._suppression (address, scope, created_at, created_by) VALUES (''a@example.com'', ''some'', now(), ''me'')'),
    ('INSERT INTO kliv_mail._quota (account, held_by) VALUES (''whole'', ''mood'')')) AS s (statement);
-- An empty table refuses nothing: one row.
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET kliv_mail.delivery = hold', current_database()); END $$;
SELECT kliv_mail.send('tables@example.com', 'x', 'x') > 0 AS sent;
SELECT c.relname, count(*) AS taken FROM (
    SELECT a.attrelid, refused(format('UPDATE %s SET %I = NULL', a.attrelid::regclass, a.attname)) AS answer
    FROM pg_attribute AS a
    WHERE a.attrelid IN ('kliv_mail._outbox'::regclass, 'kliv_mail._message'::regclass) AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull) AS x
JOIN pg_class AS c ON c.oid = x.attrelid WHERE x.answer = 'taken' GROUP BY 1;
DROP FUNCTION refused(text);
DELETE FROM kliv_mail._outbox WHERE recipient = 'tables@example.com';
DELETE FROM kliv_mail._message WHERE subject = 'x';
DELETE FROM kliv_mail._account WHERE name = 'whole';
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET kliv_mail.delivery', current_database()); END $$;
