-- A claim reads about as many rows as it takes, and a record too, however long
-- the line: also when the statistics are of a moment when all was empty, as
-- autovacuum mostly meets it.
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET kliv_mail.delivery = hold', current_database()); END $$;
SET client_min_messages = warning;
-- A sender that is on its way out takes no claim for a dead one's.
SELECT kliv_mail._epoch_lock(78) AS alive;
INSERT INTO kliv_mail._account (name, in_use, route_order, origin, host, port, encryption, from_address,
    hourly_limit, daily_limit, created_at, updated_at, updated_by, renewed_at)
VALUES ('scale', true, 9, kliv_mail._origin(), 'smtp.example.com', 25, 'none', 'app@example.com', 10000, 10000, now(), now(), 'me', now());
SET kliv_mail.test_in_session = on;
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
SELECT count(r) FROM kliv_mail._record(78, ARRAY(SELECT ROW(c.id, 'scale', 'accepted', 'message', NULL, 0, 'dot', 250, NULL, '250 ok', NULL, NULL,
    'id', 'From: a', NULL, NULL)::kliv_mail._outcome FROM claimed AS c)) AS r;
SELECT rows_read('kliv_mail._outbox') - :before_outbox < 300 AS outbox, rows_read('kliv_mail._delivery') - :before_delivery < 300 AS delivery;
COMMIT;

-- A claim looks at a stretch of the line, and what is due behind its end is left to another.
BEGIN;
SELECT min(due) AS first, max(due) AS last FROM kliv_mail._outbox WHERE route = 'scale' AND epoch IS NULL \gset
SELECT u.what, (SELECT count(*) FROM kliv_mail._claim(78, 50, 1000000, '{scale}', '{0}', '{0}', '{50}',
    array_fill('-infinity'::timestamptz, '{3}'), '{0,0,0}', array_fill(u.until, '{3}'))) AS claimed
FROM (VALUES ('before it', :'first'::timestamptz - interval '1 second'), ('to its last', :'last')) AS u (what, until);
ROLLBACK;

-- A long line behind an account that is held costs another account's claim
-- nothing, and a look at one message no more than its own rows and the first
-- 10,000 in line: with the statistics of before, and with new ones.
INSERT INTO kliv_mail._account (name, in_use, route_order, origin, host, port, encryption, from_address,
    hourly_limit, daily_limit, created_at, updated_at, updated_by, renewed_at)
VALUES ('free', true, 10, kliv_mail._origin(), 'smtp.example.com', 25, 'none', 'app@free.example', 10000, 10000, now(), now(), 'me', now());
SELECT kliv_mail._hold_account(ROW(NULL, 'scale', NULL, NULL, NULL, 86400, NULL, NULL, NULL, NULL, 'the server says no', NULL, NULL, NULL, NULL, NULL)::kliv_mail._outcome, 'account', true);
SELECT count(kliv_mail.send('f' || n || '@example.com', 'Scale', 'x', account => 'free')) FROM generate_series(1, 100) AS n;
INSERT INTO kliv_mail._outbox (id, message_id, recipient, kind, origin, route, priority, due, created_at)
SELECT nextval('kliv_mail._delivery_id'), o.message_id, o.recipient, o.kind, o.origin, o.route, o.priority, o.due, o.created_at
FROM (SELECT * FROM kliv_mail._outbox WHERE route = 'scale' AND epoch IS NULL LIMIT 1000) AS o, generate_series(1, 30);
INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, created_at, attempts, doubts, account, finished_at, changed)
SELECT nextval('kliv_mail._delivery_id'), -n, 'old@example.com', 'to', 1, 'scale', 'sent', now(), 1, 0, 'scale', now(), 0 FROM generate_series(1, 5000) AS n;
SELECT max(message_id) FILTER (WHERE route = 'free') AS free, max(message_id) FILTER (WHERE route = 'scale') AS held FROM kliv_mail._outbox \gset
SELECT max(message_id) AS finished FROM kliv_mail._delivery WHERE route = 'scale' \gset
CREATE FUNCTION reads(query text, OUT outbox bigint, OUT message bigint, OUT delivery bigint) LANGUAGE plpgsql AS $$
BEGIN
    outbox := rows_read('kliv_mail._outbox');
    message := rows_read('kliv_mail._message');
    delivery := rows_read('kliv_mail._delivery');
    EXECUTE query;
    outbox := rows_read('kliv_mail._outbox') - outbox;
    message := rows_read('kliv_mail._message') - message;
    delivery := rows_read('kliv_mail._delivery') - delivery;
END;
$$;
-- The indexes by which a query reads the tables that grow; or that it reads all of one.
CREATE FUNCTION paths(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    line text;
BEGIN
    FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query LOOP
        IF line ~ '(Index|Index Only|Seq) Scan .*_(outbox|message|delivery|event)' THEN
            RETURN NEXT coalesce(substring(line FROM 'Seq Scan on _\w+'), substring(line FROM '(?:using|Index Scan on) (_\w+)'));
        END IF;
    END LOOP;
END;
$$;
-- The claim of one account, of all accounts, and the look at the next due time.
PREPARE claims AS
    SELECT c.what, r.outbox < 300 AS outbox, r.message < 300 AS message
    FROM (VALUES ('one', 'SELECT * FROM kliv_mail._claim_account(79, ''free'', 50, 1000000, true)'),
                 ('all', 'SELECT * FROM kliv_mail._claim(79, 32, 1000000)'),
                 ('due', 'SELECT kliv_mail._next_due()')) AS c (what, query),
         LATERAL reads(c.query) AS r;
PREPARE looks (bigint, bigint, bigint) AS
    SELECT c.what, v.name, r.outbox < 10300 AS outbox, r.message < 300 AS message, r.delivery < 300 AS delivery
    FROM (VALUES ('finished', $1), ('held', $2), ('free', $3)) AS c (what, id),
         (VALUES ('deliveries', 'message_id'), ('messages', 'id')) AS v (name, key),
         LATERAL reads(format('SELECT * FROM kliv_mail.%s WHERE %s = %s', v.name, v.key, c.id)) AS r;
BEGIN;
EXECUTE claims;
ROLLBACK;
EXECUTE looks (:finished, :held, :free);
SELECT p AS path FROM paths('SELECT * FROM kliv_mail.deliveries WHERE message_id = ' || :held) AS p ORDER BY 1;
-- What is blocked of an account that has sent little does not make the record read what the others have
-- sent, nor does a suppression make next_step() read the line.
BEGIN;
SELECT id FROM kliv_mail._claim_account(79, 'free', 1, 1000000, true) \gset
SELECT r.delivery < 300 AS delivery FROM reads(format('SELECT kliv_mail._record(79, ARRAY[ROW(%s, ''free'', ''policy_block'', ''message'', ''policy'', 0, ''dot'', 550,
    ''5.7.1'', ''no'', ''no'', NULL, NULL, NULL, NULL, NULL)::kliv_mail._outcome])', :id)) AS r;
UPDATE kliv_mail._delivery SET status = 'suppressed', hint = 'SELECT kliv_mail.unsuppress(''x@example.com''); lets mail to it leave again.' WHERE message_id = :finished;
SELECT r.outbox < 10300 AS outbox FROM reads('SELECT * FROM kliv_mail.next_step(' || :finished || ')') AS r;
ROLLBACK;
-- A report finds its mail by the indexes: in a session of an application, and as the sender's and the fetcher's are.
SELECT m.header_id AS of_finished FROM kliv_mail._message AS m WHERE m.id = :finished \gset
PREPARE reports (text) AS
    SELECT c.what, r.outbox < 300 AS outbox, r.message < 300 AS message, r.delivery < 300 AS delivery
    FROM (VALUES ('found', format('SELECT kliv_mail._find_delivery(%L, NULL, NULL, ''r1@example.com'')', $1)),
                 ('another''s', format('SELECT kliv_mail._find_delivery(%L, NULL, NULL, ''r77@example.com'')', $1)),
                 ('nobody''s', format('SELECT * FROM kliv_mail._match_bounce(''arf'', ''{}'', %L, NULL, NULL)', $1))) AS c (what, query), LATERAL reads(c.query) AS r;
EXECUTE reports (:'of_finished');
BEGIN;
SET LOCAL plan_cache_mode = force_generic_plan;
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
EXECUTE reports (:'of_finished');
ROLLBACK;
VACUUM ANALYZE kliv_mail._outbox, kliv_mail._message, kliv_mail._delivery;
EXECUTE reports (:'of_finished');
BEGIN;
EXECUTE claims;
ROLLBACK;
EXECUTE looks (:finished, :held, :free);
SELECT p AS path FROM paths('SELECT * FROM kliv_mail.deliveries WHERE message_id = ' || :held) AS p ORDER BY 1;
-- One that does read all.
SELECT paths('SELECT * FROM kliv_mail._outbox WHERE recipient = ''x''');

DROP FUNCTION reads, paths;
DEALLOCATE ALL;
DROP FUNCTION rows_read;
DELETE FROM kliv_mail._outbox WHERE route IN ('scale', 'free');
DELETE FROM kliv_mail._delivery WHERE route IN ('scale', 'free');
DELETE FROM kliv_mail._message WHERE account IN ('scale', 'free');
DELETE FROM kliv_mail._usage WHERE account IN ('scale', 'free');
DELETE FROM kliv_mail._quota WHERE account IN ('scale', 'free');
DELETE FROM kliv_mail._account WHERE name IN ('scale', 'free');
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET kliv_mail.delivery', current_database()); END $$;
