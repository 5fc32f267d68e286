-- The views.  Each filters by membership in sender_role; who holds SELECT on
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
                WHEN NOT p.preloaded THEN 'no sender can run: kliv_mail is not in shared_preload_libraries'
                WHEN p.launcher_pid IS NULL THEN 'the launcher is not running'
                WHEN p.slots_exhausted THEN 'no worker slot is free for a sender'
                ELSE 'it is next: a sender takes it at once' END AS reason,
           CASE WHEN NOT d.waiting THEN d.hint
                WHEN d.status IN ('sending', 'scheduled') THEN NULL
                WHEN d.held_by = 'restore' THEN CASE WHEN d.account_held_by = 'restore' THEN d.account_hint END
                WHEN d.status = 'in_doubt' AND d.due < 'infinity' THEN coalesce(d.hint, d.account_hint)
                WHEN d.status = 'in_doubt' THEN concat_ws(' ', format('SELECT kliv_mail.retry(%s); sends it again, SELECT kliv_mail.cancel(%s); gives it up.', d.message_id, d.message_id), d.hint)
                WHEN d.held_by = 'retry' THEN coalesce(d.hint, format('SELECT kliv_mail.retry(%s); tries it now.', d.message_id))
                WHEN d.held_by = 'quota' AND d.account_held_by IS NULL THEN 'It goes out by itself at estimated_send_at.'
                WHEN d.held_by IS NOT NULL THEN d.account_hint
                WHEN NOT p.preloaded THEN 'Add kliv_mail to shared_preload_libraries in postgresql.conf and restart the server.'
                WHEN p.launcher_pid IS NULL THEN 'See the server log; SELECT * FROM kliv_mail.status shows the last error.'
                WHEN p.slots_exhausted THEN 'No worker slot is free: raise max_worker_processes in postgresql.conf and restart the server.'
                WHEN p.last_error <> '' THEN 'The sender''s last error: ' || p.last_error
                END AS hint,
           d.attempts, d.account,
           CASE WHEN d.waiting AND NOT d.claimed AND d.due < 'infinity' THEN d.due END AS next_attempt_at,
           d.estimated_send_at,
           d.bounce_type, d.last_stage, d.last_code, d.last_enhanced AS last_enhanced_code, d.last_reply,
           d.server_message_id, d.sent_at, d.finished_at
    FROM kliv_mail._delivery_now AS d
    JOIN kliv_mail._message AS m ON m.id = d.message_id
    CROSS JOIN kliv_mail._process_status() AS p
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

-- A message's status: its least finished delivery's, or partial when finished ones differ.
CREATE VIEW kliv_mail._message_status AS
    SELECT d.message_id,
           CASE WHEN bool_or(d.waiting) THEN
                    (array_agg(d.status ORDER BY array_position(ARRAY['scheduled', 'queued', 'deferred', 'sending', 'in_doubt'], d.status))
                        FILTER (WHERE d.waiting))[1]
                WHEN min(d.status) = max(d.status) THEN min(d.status)
                ELSE 'partial' END AS status,
           count(*) FILTER (WHERE d.status = 'sent') AS sent,
           count(*) FILTER (WHERE d.status = 'delivered') AS delivered,
           count(*) FILTER (WHERE d.status = 'bounced') AS bounced,
           count(*) FILTER (WHERE d.status = 'complained') AS complained,
           count(*) FILTER (WHERE d.status = 'failed') AS failed,
           count(*) FILTER (WHERE d.status = 'suppressed') AS suppressed,
           count(*) FILTER (WHERE d.status = 'cancelled') AS cancelled,
           count(*) FILTER (WHERE d.status = 'expired') AS expired
    FROM kliv_mail._delivery_now AS d
    GROUP BY d.message_id;

CREATE VIEW kliv_mail.messages WITH (security_barrier) AS
    SELECT m.id, m.created_at, m.sender_role, m.message_type, m.template, m.subject, m.from_address,
           s.status, m.recipients AS recipients_total,
           s.sent, s.delivered, s.bounced, s.complained, s.failed, s.suppressed, s.cancelled, s.expired,
           m.tags, m.metadata
    FROM kliv_mail._message AS m
    LEFT JOIN LATERAL (SELECT * FROM kliv_mail._message_status AS x WHERE x.message_id = m.id) AS s ON true
    WHERE has_table_privilege('kliv_mail._sees_all', 'SELECT')
       OR coalesce(pg_has_role(to_regrole(quote_ident(m.sender_role))::oid, 'MEMBER'), false);
COMMENT ON VIEW kliv_mail.messages IS 'Every message (one send()), yours or, with grant_read or grant_admin, everybody''s, with its status and how many of its deliveries ended how.';
COMMENT ON COLUMN kliv_mail.messages.id IS 'The id that send() returned.';
COMMENT ON COLUMN kliv_mail.messages.created_at IS 'When send() was called.';
COMMENT ON COLUMN kliv_mail.messages.sender_role IS 'The role that called send().';
COMMENT ON COLUMN kliv_mail.messages.message_type IS 'system, transactional or marketing.';
COMMENT ON COLUMN kliv_mail.messages.template IS 'The template it was made from; NULL: none.';
COMMENT ON COLUMN kliv_mail.messages.subject IS 'The subject as given.';
COMMENT ON COLUMN kliv_mail.messages.from_address IS 'The sender address asked for; NULL: the account''s.';
COMMENT ON COLUMN kliv_mail.messages.status IS 'Its least finished delivery''s status, or partial when finished ones differ.';
COMMENT ON COLUMN kliv_mail.messages.recipients_total IS 'The number of its deliveries.';
COMMENT ON COLUMN kliv_mail.messages.sent IS 'Deliveries that a server accepted.';
COMMENT ON COLUMN kliv_mail.messages.delivered IS 'Deliveries that a report confirmed.';
COMMENT ON COLUMN kliv_mail.messages.bounced IS 'Deliveries that were refused for good by or for the recipient.';
COMMENT ON COLUMN kliv_mail.messages.complained IS 'Deliveries that the recipient reported as spam.';
COMMENT ON COLUMN kliv_mail.messages.failed IS 'Deliveries that failed for the message''s sake.';
COMMENT ON COLUMN kliv_mail.messages.suppressed IS 'Deliveries to suppressed addresses, not sent.';
COMMENT ON COLUMN kliv_mail.messages.cancelled IS 'Deliveries that cancel() stopped.';
COMMENT ON COLUMN kliv_mail.messages.expired IS 'Deliveries that expired before they could leave.';
COMMENT ON COLUMN kliv_mail.messages.tags IS 'As given to send().';
COMMENT ON COLUMN kliv_mail.messages.metadata IS 'As given to send().';

CREATE FUNCTION kliv_mail._usage_now()
RETURNS TABLE (account text, window_name text, window_start timestamptz, used integer, quota integer, remaining integer,
               remaining_marketing integer, resets_at timestamptz, queued bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off ROWS 4 AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_routes text[];
    v record;
BEGIN
    FOR account IN SELECT a.name FROM kliv_mail._accounts() AS a LOOP
        SELECT * INTO v FROM kliv_mail._availability(account, v_at);
        v_routes := kliv_mail._own_routes(account);
        SELECT count(*) INTO queued FROM kliv_mail._outbox AS o
        WHERE o.origin = kliv_mail._origin() AND o.route = ANY (v_routes) AND o.epoch IS NULL;
        FOR window_name, window_start, used, quota, resets_at IN
            SELECT * FROM (VALUES ('hour', v.hour_start, v.hour_used, v.hour_limit, v.hour_open_at),
                                  ('day', v.day_start, v.day_used, v.day_limit, v.day_open_at)) AS w LOOP
            -- After a change of quota_timezone the window that still counts may be one of the former zone.
            window_start := coalesce((SELECT min(u.window_start) FROM kliv_mail._usage AS u
                                      WHERE u.account = _usage_now.account AND u.window_name = _usage_now.window_name AND u.window_end = resets_at
                                        AND u.window_start <= v_at AND u.used > 0), window_start);
            remaining := greatest(0, quota - used);
            remaining_marketing := greatest(0, kliv_mail._marketing_share(quota) - used);
            RETURN NEXT;
        END LOOP;
    END LOOP;
END;
$$;

CREATE VIEW kliv_mail.usage AS
    SELECT u.account, u.window_name, u.window_start, u.used, u.quota, u.remaining, u.remaining_marketing, u.resets_at, u.queued
    FROM kliv_mail._usage_now() AS u;
COMMENT ON VIEW kliv_mail.usage IS 'What each account has used of its quota in the present hour and day, and what waits for it.';
COMMENT ON COLUMN kliv_mail.usage.account IS 'The account''s name.';
COMMENT ON COLUMN kliv_mail.usage.window_name IS 'hour or day, of the clock of kliv_mail.quota_timezone.';
COMMENT ON COLUMN kliv_mail.usage.window_start IS 'When the present window began. After a change of kliv_mail.quota_timezone: the last window of the former zone, as long as what was used in it counts.';
COMMENT ON COLUMN kliv_mail.usage.used IS 'Recipients counted now: sent, being sent or in doubt, in every window that contains the present.';
COMMENT ON COLUMN kliv_mail.usage.quota IS 'Recipients that it may have.';
COMMENT ON COLUMN kliv_mail.usage.remaining IS 'Recipients that the window has room for; both windows must have some for one to leave.';
COMMENT ON COLUMN kliv_mail.usage.remaining_marketing IS 'Of these, what marketing mail may use (kliv_mail.reserved_share stays free).';
COMMENT ON COLUMN kliv_mail.usage.resets_at IS 'When the window ends and the next opens.';
COMMENT ON COLUMN kliv_mail.usage.queued IS 'Deliveries that wait for this account.';

-- One level more than it seems to need: a view that is a UNION ALL itself is taken
-- apart by the planner, and the barrier with it.
CREATE VIEW kliv_mail.events WITH (security_barrier) AS
    SELECT v.at, v.kind, v.account, v.message_id, v.recipient, v.role, v.detail, v.data FROM (
        SELECT e.at, e.kind, e.account, e.message_id, NULL::text AS recipient, e.role, e.detail, e.data
        FROM kliv_mail._event AS e
        WHERE has_table_privilege('kliv_mail._sees_all', 'SELECT')
        UNION ALL
        SELECT x.at, x.kind, x.account, x.message_id, x.recipient, x.role, x.detail, NULL
        FROM (SELECT m.created_at AS at, 'queued' AS kind, m.account, m.id AS message_id, NULL::text AS recipient, m.sender_role AS role, m.subject AS detail, m.sender_role
              FROM kliv_mail._message AS m
              UNION ALL
              SELECT d.finished_at, d.status, d.account, d.message_id, d.recipient, NULL, coalesce(nullif(d.last_reply, ''), d.reason), m.sender_role
              FROM kliv_mail._delivery AS d JOIN kliv_mail._message AS m ON m.id = d.message_id) AS x
        WHERE has_table_privilege('kliv_mail._sees_all', 'SELECT')
           OR coalesce(pg_has_role(to_regrole(quote_ident(x.sender_role))::oid, 'MEMBER'), false)) AS v;
COMMENT ON VIEW kliv_mail.events IS 'What happened: mail queued and finished, settings changed by whom, accounts held. Settings'' events need grant_read or grant_admin.';
COMMENT ON COLUMN kliv_mail.events.at IS 'When.';
COMMENT ON COLUMN kliv_mail.events.kind IS 'queued, a final status, or what was done to a setting or an account.';
COMMENT ON COLUMN kliv_mail.events.account IS 'The account concerned.';
COMMENT ON COLUMN kliv_mail.events.message_id IS 'The message concerned.';
COMMENT ON COLUMN kliv_mail.events.recipient IS 'The recipient concerned.';
COMMENT ON COLUMN kliv_mail.events.role IS 'The role that did it.';
COMMENT ON COLUMN kliv_mail.events.detail IS 'In plain words; for a delivery the server''s reply.';
COMMENT ON COLUMN kliv_mail.events.data IS 'Further facts; never a secret.';

CREATE VIEW kliv_mail.status AS
    SELECT CASE WHEN NOT p.preloaded THEN 'not preloaded' WHEN p.launcher_pid IS NULL THEN 'launcher not running'
                WHEN p.slots_exhausted THEN 'no worker slot free'
                WHEN p.sender_pid IS NOT NULL THEN 'sending' ELSE 'idle' END AS worker,
           p.preloaded, p.launcher_pid, p.sender_pid,
           (SELECT count(*) FROM kliv_mail._outbox) AS outbox,
           (SELECT min(o.due) FROM kliv_mail._outbox AS o WHERE o.due <= kliv_mail._now()) AS oldest_due,
           CASE WHEN p.next_due IS NOT NULL THEN greatest(p.next_due, now()) END AS next_start,
           nullif(p.last_error, '') AS last_error,
           k.key_state, k.key_fingerprint,
           CASE WHEN h.held_by IN ('restore', 'paused') THEN h.reason END AS held,
           nullif(current_setting('kliv_mail.test_clock_offset'), '0') AS test_clock_offset,
           CASE WHEN NOT p.preloaded THEN 'Add kliv_mail to shared_preload_libraries in postgresql.conf and restart the server.'
                WHEN h.held_by IN ('restore', 'paused') THEN h.hint
                WHEN p.slots_exhausted THEN 'No worker slot is free: raise max_worker_processes in postgresql.conf and restart the server.'
                WHEN h.held_by = 'account' THEN h.reason || coalesce('. ' || h.hint, '')
                ELSE k.advice END AS hint,
           (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'kliv_mail') AS version,
           p.library_version
    FROM kliv_mail._process_status() AS p
    CROSS JOIN kliv_mail._key_state() AS k
    CROSS JOIN LATERAL kliv_mail._availability(kliv_mail._default_account(), kliv_mail._now()) AS h;
COMMENT ON VIEW kliv_mail.status IS 'One row: is the machinery well, how much waits, and what to do.';
COMMENT ON COLUMN kliv_mail.status.worker IS 'idle, sending, or why nothing can be sent.';
COMMENT ON COLUMN kliv_mail.status.preloaded IS 'Is kliv_mail in shared_preload_libraries? Without it mail queues and nothing sends it.';
COMMENT ON COLUMN kliv_mail.status.launcher_pid IS 'The launcher''s process; NULL: not running.';
COMMENT ON COLUMN kliv_mail.status.sender_pid IS 'This database''s sender; NULL: none at the moment, one is started when mail is due.';
COMMENT ON COLUMN kliv_mail.status.outbox IS 'Deliveries that are not finished.';
COMMENT ON COLUMN kliv_mail.status.oldest_due IS 'Since when the oldest one that is due has been so; NULL: none.';
COMMENT ON COLUMN kliv_mail.status.next_start IS 'When a sender is next started, by the real clock.';
COMMENT ON COLUMN kliv_mail.status.last_error IS 'The sender''s last error.';
COMMENT ON COLUMN kliv_mail.status.key_state IS 'The key that opens passwords: ok, none yet, or what is wrong with it.';
COMMENT ON COLUMN kliv_mail.status.key_fingerprint IS 'The id of the newest key.';
COMMENT ON COLUMN kliv_mail.status.held IS 'Why the whole database sends nothing; NULL: it may send.';
COMMENT ON COLUMN kliv_mail.status.test_clock_offset IS 'Not NULL: the clock of this database is moved, which is for tests only.';
COMMENT ON COLUMN kliv_mail.status.hint IS 'What to do.';
COMMENT ON COLUMN kliv_mail.status.version IS 'The extension''s version in this database.';
COMMENT ON COLUMN kliv_mail.status.library_version IS 'The loaded library''s version.';
