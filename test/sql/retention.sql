-- purge(), forget() and delivery_stats().
SET client_min_messages = warning;
SET timezone = 'UTC';
\pset format unaligned
\pset tuples_only on
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET kliv_mail.delivery = hold', current_database()); END $$;
DELETE FROM kliv_mail._delivery;
CREATE FUNCTION became(id bigint) RETURNS TABLE (recipient text, status text, reason text, hint text) LANGUAGE sql AS
    'SELECT recipient, status, CASE status WHEN ''suppressed'' THEN reason END, CASE status WHEN ''suppressed'' THEN hint END
     FROM kliv_mail.deliveries WHERE message_id = $1 ORDER BY recipient';
-- Finish all that waits of a message.
CREATE FUNCTION ends(id bigint, verdict text, bounce_type text DEFAULT NULL, simulated boolean DEFAULT false) RETURNS bigint LANGUAGE sql AS $$
    SELECT count(*) FROM kliv_mail._finish(NULL, ARRAY(
        SELECT ROW(o.id, 'platform', verdict, 'recipient', bounce_type, NULL, 'dot', 250, NULL, 'played', 'played', NULL, 'id', 'From: a', NULL, simulated)::kliv_mail._outcome
        FROM kliv_mail._outbox AS o WHERE o.message_id = ends.id), kliv_mail._now()) $$;

-- The tables that have a word, in whatever spelling.
CREATE FUNCTION found(word text) RETURNS TABLE (place text) LANGUAGE plpgsql AS $$
DECLARE
    t regclass;
    n bigint;
BEGIN
    FOR t IN SELECT c.oid FROM pg_class AS c WHERE c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind = 'r' ORDER BY 1 LOOP
        EXECUTE format('SELECT count(*) FROM %s AS x WHERE position(%L IN lower(x::text)) > 0 OR position(%L IN x::text) > 0', t, lower(word), encode(convert_to(word, 'UTF8'), 'hex')) INTO n;
        IF n > 0 THEN place := t; RETURN NEXT; END IF;
    END LOOP;
END;
$$;

\echo # figures
SELECT kliv_mail.send('a@x.example', 's', 'b', tags => '{one,two}') AS a \gset
SELECT kliv_mail.send('b@y.example', 's', 'b', message_type => 'system', tags => '{two}') AS b \gset
SELECT kliv_mail.send('c@y.example, d@x.example', 's', 'b') AS c \gset
SELECT kliv_mail.send('e@x.example', 's', 'b', message_type => 'marketing', topic => 'news', headers => '{"List-Unsubscribe": "<https://example.com/u>"}') AS e \gset
SELECT kliv_mail.send('f@x.example', 's', 'b') AS f \gset
SELECT ends(:a, 'accepted'), ends(:b, 'bounced', 'hard'), ends(:c, 'accepted'), ends(:e, 'accepted'), ends(:f, 'accepted', NULL, true);
UPDATE kliv_mail._delivery SET status = 'complained' WHERE message_id = :e;
-- (a sender may have played its report by now, or not)
UPDATE kliv_mail._delivery SET status = 'delivered' WHERE simulated;
\set stats 'group_name, finished, accepted, delivered, bounced_hard, bounced_soft, blocked, complained, failed, suppressed, cancelled, expired, simulated, bounce_rate, complaint_rate FROM kliv_mail.delivery_stats(until => kliv_mail._now() + interval \'1 hour\', bucket => \'10 days\''
SELECT :stats);
SELECT :stats, group_by => 'message_type');
SELECT :stats, group_by => 'domain');
SELECT group_name, finished FROM kliv_mail.delivery_stats(until => kliv_mail._now() + interval '1 hour', bucket => '10 days', group_by => 'tag');
SELECT group_name, finished FROM kliv_mail.delivery_stats(until => kliv_mail._now() + interval '1 hour', bucket => '10 days', group_by => 'topic');
SELECT group_name, finished FROM kliv_mail.delivery_stats(until => kliv_mail._now() + interval '1 hour', bucket => '10 days', group_by => 'template');
SELECT count(*), sum(finished) FROM kliv_mail.delivery_stats('2000-01-01', '2000-01-02');
\set VERBOSITY terse
SELECT kliv_mail.delivery_stats('2000-01-02', '2000-01-01');
SELECT kliv_mail.delivery_stats('2000-01-01', '2000-01-02', '1 month');
SELECT kliv_mail.delivery_stats('2000-01-01', '2000-01-02', '0');
SELECT kliv_mail.delivery_stats('2000-01-01', '2000-01-02', '1 second');
SELECT kliv_mail.delivery_stats('2000-01-01', '2000-01-02', group_by => 'mood');
SELECT kliv_mail.delivery_stats('2000-01-01', '2000-01-02', group_by => NULL);
\set VERBOSITY default

\echo # the data of one person
SELECT kliv_mail.suppress('Una@q.example', 'marketing', 'asked') AS stopped;
SELECT kliv_mail.send('una@q.example', 'Hello Una', 'only for Una', idempotency_key => 'forget') AS own \gset
SELECT kliv_mail.send('Una@Q.example, bob@x.example', 'Hello both', 'for both', metadata => '{"ana": 1}') AS shared \gset
SELECT kliv_mail.send('UNA@q.example', 'Hello again', 'waits') AS waits \gset
SELECT kliv_mail.send('una@q.example, carl@x.example', 'Hello Una and Carl', 'not finished') AS both \gset
SELECT ends(:own, 'accepted'), ends(:shared, 'accepted');
SET client_min_messages = notice;
SELECT kliv_mail.forget('una@Q.example');
SET client_min_messages = warning;
SELECT id = :shared AS shared, id = :both AS both, subject, metadata, recipients_total FROM kliv_mail.messages WHERE id IN (:own, :shared, :waits, :both) ORDER BY id;
SELECT recipient, status FROM kliv_mail.deliveries WHERE message_id IN (:own, :shared, :waits, :both) ORDER BY message_id, recipient;
SELECT found('una@q.example'), found('Hello Una');
SELECT ends(:both, 'accepted'), kliv_mail.forget('una@q.example');
SELECT found('bob@x.example');
SELECT found('una@q.example'), found('only for Una');
SELECT count(*) FROM kliv_mail.suppressions WHERE address = 'una@q.example';
SELECT * FROM became(kliv_mail.send('una@q.example', 's', 'b', message_type => 'marketing', headers => '{"List-Unsubscribe": "<https://example.com/u>"}'));
SELECT b.status FROM became(kliv_mail.send('una@q.example', 's', 'b')) AS b;
SELECT kliv_mail.unsuppress('una@q.example'), kliv_mail.unsuppress('Una@q.example', 'marketing'), kliv_mail.unsuppress('Una@q.example', 'marketing');
SELECT b.status FROM became(kliv_mail.send('una@q.example', 's', 'b', message_type => 'marketing', headers => '{"List-Unsubscribe": "<https://example.com/u>"}')) AS b;
SELECT kliv_mail.forget('nobody@x.example');
\set VERBOSITY terse
SELECT kliv_mail.forget('nobody');
SELECT kliv_mail.forget('@x.example');
\set VERBOSITY default
-- What was emptied is not sent again.
UPDATE kliv_mail._delivery SET status = 'failed' WHERE message_id = :shared;
SELECT kliv_mail.retry(:shared);

\echo # history
SELECT count(*) > 0 AS there FROM kliv_mail.deliveries WHERE finished_at IS NOT NULL;
SELECT count(*) AS waiting FROM kliv_mail._outbox \gset
SELECT kliv_mail.purge(kliv_mail._now()) > 5;
SELECT count(*) FROM kliv_mail._delivery;
SELECT count(*) = :waiting FROM kliv_mail._outbox;
SELECT kind, data ->> 'rows' IS NOT NULL FROM kliv_mail.events ORDER BY at DESC LIMIT 1;
INSERT INTO kliv_mail._suppression (address, scope, created_at, created_by, expires_at) VALUES ('gone@x.example', 'all', now(), 'me', now() - interval '1 hour'), ('stays@x.example', 'all', now(), 'me', NULL);
SELECT kliv_mail.purge(kliv_mail._now() - interval '1 minute') > 0;
SELECT address FROM kliv_mail._suppression WHERE address IN ('gone@x.example', 'stays@x.example');
\set VERBOSITY sqlstate
SELECT kliv_mail.purge(kliv_mail._now() + interval '1 minute');
SELECT kliv_mail.purge(NULL);
\set VERBOSITY default
DELETE FROM kliv_mail._outbox;
DELETE FROM kliv_mail._suppression;
DROP FUNCTION became, ends, found;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET kliv_mail.delivery', current_database()); END $$;
