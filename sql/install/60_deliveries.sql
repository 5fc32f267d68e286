-- The view deliveries, and who sees what.  Each view filters by membership in sender_role; who holds SELECT on
-- _sees_all (grant_read, grant_admin) sees every role's mail.  _manages_all is
-- the same for cancel() and its kin.

CREATE VIEW kliv_mail._sees_all AS SELECT true AS yes;
CREATE VIEW kliv_mail._manages_all AS SELECT true AS yes;

-- Every delivery, finished or not, with the bare facts.  account: by which it
-- goes or went.
CREATE VIEW kliv_mail._every_delivery AS
    SELECT o.id, o.message_id, o.recipient, o.kind, o.created_at, o.priority, o.attempts, o.expires_at,
           CASE WHEN o.epoch IS NOT NULL THEN o.account WHEN o.route = '' THEN kliv_mail._default_account() ELSE o.route END AS account,
           o.due, o.held_by AS row_held_by, o.epoch IS NOT NULL AS claimed, o.doubtful, o.origin <> kliv_mail._origin() AS foreign_origin, true AS waiting,
           NULL::text AS final_status, NULL::text AS bounce_type, o.last_stage, o.last_code, o.last_enhanced, o.last_reply,
           o.last_reason AS reason, o.last_hint AS hint,
           NULL::text AS server_message_id, NULL::timestamptz AS sent_at, NULL::timestamptz AS finished_at
    FROM kliv_mail._outbox AS o
    UNION ALL
    SELECT d.id, d.message_id, d.recipient, d.kind, d.created_at, d.priority, d.attempts, d.expires_at,
           coalesce(d.account, nullif(d.route, '')),
           NULL, NULL, false, false, false, false,
           d.status, d.bounce_type, d.last_stage, d.last_code, d.last_enhanced, d.last_reply, d.reason, d.hint,
           d.server_message_id, d.sent_at, d.finished_at
    FROM kliv_mail._delivery AS d;

-- When the deliveries that wait go out by quota and hold, for the first 10,000
-- in the line of each account that may send at all.  (Here and below: the
-- indexes are made for these looks, and statistics of a table that is empty at
-- one moment and full at the next would mislead.)
CREATE FUNCTION kliv_mail._line_of(p_caller name) RETURNS TABLE (id bigint, account text, estimated_send_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off
SET jit = off AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_origin text := kliv_mail._origin();
    v_start timestamptz;
    v_routes text[];
    v_all boolean := has_table_privilege(p_caller, 'kliv_mail._sees_all', 'SELECT');
    a record;
    v record;
BEGIN
    FOR a IN SELECT x.name FROM kliv_mail._accounts() AS x WHERE x.in_use AND x.problem IS NULL LOOP
        SELECT * INTO v FROM kliv_mail._availability(a.name, v_at);
        CONTINUE WHEN v.blocked_until = 'infinity' OR v.hour_limit = 0 OR v.day_limit = 0;
        v_start := greatest(v_at, coalesce(v.blocked_until, v_at));
        v_routes := kliv_mail._own_routes(a.name);
        RETURN QUERY
            WITH l AS MATERIALIZED (
                SELECT c.id, c.message_id, c.due, row_number() OVER (ORDER BY c.priority, c.due, c.id) AS n
                FROM (SELECT o.id, o.message_id, p.priority, o.due
                      FROM unnest(v_routes) AS r (route), unnest(ARRAY[0, 1, 2]::smallint[]) AS p (priority), LATERAL (
                          SELECT o.id, o.message_id, o.due FROM kliv_mail._outbox AS o
                          WHERE o.origin = v_origin AND o.route = r.route AND o.priority = p.priority
                            AND o.epoch IS NULL AND o.due < 'infinity'
                          ORDER BY o.due, o.id LIMIT 10000) AS o
                      ORDER BY p.priority, o.due, o.id LIMIT 10000) AS c)
            SELECT l.id, a.name::text, greatest(v_start, l.due, t.slot)
            FROM l JOIN kliv_mail._slot_times(1, (SELECT count(*) FROM l), v_at, v.hour_limit, v.day_limit, v.hour_used, v.hour_open_at,
                                              v.day_used, v.day_open_at) AS t ON t.n = l.n
            WHERE v_all OR EXISTS (
                SELECT FROM kliv_mail._message AS m
                WHERE m.id = l.message_id AND pg_has_role(p_caller, to_regrole(quote_ident(m.sender_role))::oid, 'MEMBER'));
    END LOOP;
END;
$$;

-- Of all that wait, those that the caller may see: who reads a view calls what
-- stands in it.  C, which knows the caller; SECURITY DEFINER would forget it.
CREATE FUNCTION kliv_mail._line() RETURNS TABLE (id bigint, account text, estimated_send_at timestamptz)
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'kliv_mail__line';

-- For those behind them: the end of the line, by the table's own count of its
-- rows as the planner has it.
CREATE FUNCTION kliv_mail._line_end() RETURNS TABLE (account text, estimated_send_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp ROWS 5
BEGIN ATOMIC
    SELECT a.name, greatest(kliv_mail._now(), v.blocked_until, t.slot)
    FROM kliv_mail._accounts() AS a
    CROSS JOIN LATERAL kliv_mail._availability(a.name, kliv_mail._now()) AS v
    CROSS JOIN (SELECT greatest(c.reltuples, 10000)::bigint AS n FROM pg_class AS c WHERE c.oid = 'kliv_mail._outbox'::regclass) AS o
    CROSS JOIN LATERAL kliv_mail._slot_times(o.n, o.n, kliv_mail._now(), v.hour_limit, v.day_limit, v.hour_used, v.hour_open_at,
                                             v.day_used, v.day_open_at) AS t
    WHERE a.in_use AND a.problem IS NULL AND v.blocked_until IS DISTINCT FROM 'infinity';
END;

-- What stops each account now.
CREATE FUNCTION kliv_mail._account_holds()
RETURNS TABLE (account text, held_by text, blocked_until timestamptz, reason text, hint text, remaining integer, remaining_marketing integer)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp ROWS 5
BEGIN ATOMIC
    SELECT a.name, v.held_by, v.blocked_until, v.reason, v.hint, v.remaining, v.remaining_marketing
    FROM kliv_mail._accounts() AS a CROSS JOIN LATERAL kliv_mail._availability(a.name, kliv_mail._now()) AS v;
END;

-- The same with the state of the moment: status and held_by are derived here
-- and nowhere else.
CREATE VIEW kliv_mail._delivery_now AS
    SELECT d.*, x.held_by,
           CASE WHEN NOT d.waiting THEN d.final_status
                WHEN d.claimed THEN 'sending'
                WHEN d.doubtful THEN 'in_doubt'
                WHEN x.held_by IS NOT NULL THEN 'deferred'
                WHEN d.due > x.at THEN 'scheduled'
                ELSE 'queued' END AS status,
           h.held_by AS account_held_by, h.reason AS account_reason, h.hint AS account_hint,
           CASE WHEN d.waiting AND NOT d.claimed AND d.due < 'infinity' AND NOT d.foreign_origin
                THEN coalesce(l.estimated_send_at, e.estimated_send_at) END AS estimated_send_at
    FROM kliv_mail._every_delivery AS d
    LEFT JOIN kliv_mail._account_holds() AS h ON d.waiting AND h.account = d.account
    -- Not "= d.id": the key's index could give that order to a merge join, and where the
    -- statistics know of no rows, the planner would read all of it for one message.
    LEFT JOIN kliv_mail._line() AS l ON d.waiting AND l.id = d.id + 0
    LEFT JOIN kliv_mail._line_end() AS e ON d.waiting AND l.id IS NULL AND e.account = d.account
    CROSS JOIN LATERAL (
        SELECT n.at,
               CASE WHEN NOT d.waiting OR d.claimed THEN NULL
                    WHEN d.foreign_origin OR h.held_by = 'restore' THEN 'restore'
                    WHEN d.due = 'infinity' THEN NULL      -- in doubt, and not tried again by itself
                    WHEN d.due > n.at AND d.attempts > 0 THEN 'retry'
                    WHEN d.due > n.at AND d.row_held_by IS NOT NULL THEN d.row_held_by
                    WHEN d.due > n.at THEN NULL
                    WHEN h.held_by IS NOT NULL THEN h.held_by
                    WHEN d.priority = 2 AND h.remaining_marketing = 0 THEN 'quota'
                    WHEN l.estimated_send_at > n.at + interval '1 second' THEN 'quota' END AS held_by
        FROM (SELECT kliv_mail._now() AS at) AS n) AS x;

CREATE VIEW kliv_mail.deliveries WITH (security_barrier) AS
    SELECT d.message_id, d.recipient, d.kind, d.created_at, m.subject, m.message_type, d.status, d.held_by,
           CASE WHEN NOT d.waiting THEN CASE WHEN d.status <> 'delivered' THEN d.reason END
                WHEN d.status = 'sending' THEN 'it is being handed to the server'
                WHEN d.held_by = 'restore' AND d.account_held_by IS DISTINCT FROM 'restore'
                    THEN 'it was queued in another database, which sends it'
                WHEN d.held_by = 'restore' THEN d.account_reason
                WHEN d.status = 'in_doubt' AND d.due = 'infinity'
                    THEN 'a server may have it, and only retry() or cancel() moves it on: ' || coalesce(d.reason, 'the outcome is unknown')
                WHEN d.status = 'in_doubt' THEN 'a server may have it; it is tried again: ' || coalesce(d.reason, 'the outcome is unknown')
                WHEN d.status = 'scheduled' THEN 'it is scheduled for ' || d.due
                WHEN d.held_by = 'retry' THEN coalesce(d.reason, 'it is tried again later')
                WHEN d.held_by = d.row_held_by AND d.due > kliv_mail._now() THEN d.reason
                WHEN d.held_by = 'quota' AND d.account_held_by IS NULL THEN 'others before it fill the quota of its account'
                WHEN d.held_by IS NOT NULL THEN d.account_reason
                ELSE coalesce(p.reason, 'it is next: a sender takes it at once') END AS reason,
           CASE WHEN NOT d.waiting THEN d.hint
                WHEN d.status IN ('sending', 'scheduled') THEN NULL
                WHEN d.held_by = 'restore' THEN CASE WHEN d.account_held_by = 'restore' THEN d.account_hint END
                WHEN d.status = 'in_doubt' AND d.due < 'infinity' THEN coalesce(d.hint, d.account_hint)
                WHEN d.status = 'in_doubt' THEN concat_ws(' ', format('SELECT kliv_mail.retry(%s); sends it again, SELECT kliv_mail.cancel(%s); gives it up.', d.message_id, d.message_id), d.hint)
                WHEN d.held_by = 'retry' THEN coalesce(d.hint, format('SELECT kliv_mail.retry(%s); tries it now.', d.message_id))
                WHEN d.held_by = 'quota' AND d.account_held_by IS NULL THEN 'It goes out by itself at estimated_send_at.'
                WHEN d.held_by IS NOT NULL THEN d.account_hint
                ELSE coalesce(p.hint, 'The sender''s last error: ' || p.last_error) END AS hint,
           d.attempts, d.account,
           CASE WHEN d.waiting AND NOT d.claimed AND d.due < 'infinity' THEN d.due END AS next_attempt_at,
           d.estimated_send_at,
           d.bounce_type, d.last_stage, d.last_code, d.last_enhanced AS last_enhanced_code, d.last_reply,
           d.server_message_id, d.sent_at, d.finished_at
    FROM kliv_mail._delivery_now AS d
    JOIN kliv_mail._message AS m ON m.id = d.message_id
    CROSS JOIN kliv_mail._machinery() AS p
    WHERE has_table_privilege('kliv_mail._sees_all', 'SELECT')
       OR coalesce(pg_has_role(to_regrole(quote_ident(m.sender_role))::oid, 'MEMBER'), false);

COMMENT ON VIEW kliv_mail.deliveries IS 'Every delivery (one message to one recipient), yours or, with grant_read or grant_admin, everybody''s. status, held_by, reason and hint say in plain words why it has not arrived and what to do.';
COMMENT ON COLUMN kliv_mail.deliveries.message_id IS 'The id that send() returned.';
COMMENT ON COLUMN kliv_mail.deliveries.recipient IS 'The address as it goes on the wire: domain in A-labels.';
COMMENT ON COLUMN kliv_mail.deliveries.kind IS 'to, cc or bcc.';
COMMENT ON COLUMN kliv_mail.deliveries.created_at IS 'When send() was called.';
COMMENT ON COLUMN kliv_mail.deliveries.subject IS 'The message''s subject.';
COMMENT ON COLUMN kliv_mail.deliveries.message_type IS 'system, transactional or marketing.';
COMMENT ON COLUMN kliv_mail.deliveries.status IS 'scheduled, queued, deferred, sending, in_doubt, sent (the server accepted it), delivered (a report says so), bounced, complained, failed, suppressed, cancelled or expired.';
COMMENT ON COLUMN kliv_mail.deliveries.held_by IS 'While it waits: quota, account, retry, paused, restore or key; NULL when nothing holds it.';
COMMENT ON COLUMN kliv_mail.deliveries.reason IS 'Why it has not arrived, in plain words.';
COMMENT ON COLUMN kliv_mail.deliveries.hint IS 'What to do; often a statement.';
COMMENT ON COLUMN kliv_mail.deliveries.attempts IS 'Tries that reached a server and count.';
COMMENT ON COLUMN kliv_mail.deliveries.account IS 'The account that it goes or went by.';
COMMENT ON COLUMN kliv_mail.deliveries.next_attempt_at IS 'Not before this time; NULL when nothing is planned.';
COMMENT ON COLUMN kliv_mail.deliveries.estimated_send_at IS 'When quota and holds let it go: exact for the first 10,000 in line of its account.';
COMMENT ON COLUMN kliv_mail.deliveries.bounce_type IS 'hard, soft or policy; NULL if not bounced.';
COMMENT ON COLUMN kliv_mail.deliveries.last_stage IS 'Where the last reply was given: connect, greeting, tls, ehlo, auth, mail, rcpt, data or dot.';
COMMENT ON COLUMN kliv_mail.deliveries.last_code IS 'The last SMTP reply code; 0: the connection was lost without one.';
COMMENT ON COLUMN kliv_mail.deliveries.last_enhanced_code IS 'The last enhanced status code (RFC 3463).';
COMMENT ON COLUMN kliv_mail.deliveries.last_reply IS 'The server''s own words, printable, at most 1,024 octets.';
COMMENT ON COLUMN kliv_mail.deliveries.server_message_id IS 'The id that the server gave the mail.';
COMMENT ON COLUMN kliv_mail.deliveries.sent_at IS 'When the server accepted it.';
COMMENT ON COLUMN kliv_mail.deliveries.finished_at IS 'When its status became final.';
