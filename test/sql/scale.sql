-- A claim reads about as many rows as it takes, and a record too, however long
-- the line: also when the statistics are of a moment when all was empty, as
-- autovacuum mostly meets it.
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET kliv_mail.delivery = hold', current_database()); END $$;
SET client_min_messages = warning;
INSERT INTO kliv_mail._account (name, in_use, route_order, origin, host, port, encryption, from_address,
    hourly_limit, daily_limit, created_at, updated_at, updated_by, renewed_at)
VALUES ('scale', true, 9, kliv_mail._origin(), 'smtp.example.com', 25, 'none', 'app@example.com', 10000, 10000, now(), now(), 'me', now());
SET kliv_mail.delivery = on;
SELECT count(kliv_mail.send('r' || n || '@example.com', 'Scale', 'x', account => 'scale')) FROM generate_series(1, 500) AS n;
DELETE FROM kliv_mail._outbox;
VACUUM (TRUNCATE false) kliv_mail._outbox;
SELECT relpages > 0 AS pages FROM pg_class WHERE oid = 'kliv_mail._outbox'::regclass;
-- Rows read of a table so far; what an earlier transaction read may be among them.
CREATE FUNCTION rows_read(relation regclass) RETURNS bigint LANGUAGE sql AS $$
    SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::bigint FROM pg_stat_xact_user_tables WHERE relid = relation
$$;
SELECT count(kliv_mail.send('r' || n || '@example.com', 'Scale', 'x', account => 'scale')) FROM generate_series(1, 3000) AS n;
BEGIN;
SELECT rows_read('kliv_mail._outbox') AS outbox, rows_read('kliv_mail._message') AS message \gset before_
CREATE TEMPORARY TABLE claimed AS SELECT id FROM kliv_mail._claim_account(78, 'scale', 50, 1000000, true);
SELECT count(*), rows_read('kliv_mail._outbox') - :before_outbox < 300 AS outbox, rows_read('kliv_mail._message') - :before_message < 300 AS message FROM claimed;
COMMIT;
BEGIN;
SELECT rows_read('kliv_mail._outbox') AS outbox, rows_read('kliv_mail._delivery') AS delivery \gset before_
SELECT kliv_mail._record(78, array_agg(id), array_agg('accepted'::text), array_agg('message'::text), array_agg(NULL::text), array_agg(0),
    array_agg('dot'::text), array_agg(250), array_agg(NULL::text), array_agg('250 ok'::text), array_agg(NULL::text), array_agg(NULL::text),
    array_agg('id'::text), array_agg('From: a'::text), array_agg(false), array_agg(NULL::text)) FROM claimed;
SELECT rows_read('kliv_mail._outbox') - :before_outbox < 300 AS outbox, rows_read('kliv_mail._delivery') - :before_delivery < 300 AS delivery;
COMMIT;

DROP FUNCTION rows_read;
DELETE FROM kliv_mail._outbox WHERE route = 'scale';
DELETE FROM kliv_mail._delivery WHERE route = 'scale';
DELETE FROM kliv_mail._message WHERE account = 'scale';
DELETE FROM kliv_mail._usage WHERE account = 'scale';
DELETE FROM kliv_mail._quota WHERE account = 'scale';
DELETE FROM kliv_mail._account WHERE name = 'scale';
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET kliv_mail.delivery', current_database()); END $$;
