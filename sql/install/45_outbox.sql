-- The outbox: claim, record, and what is due next.  All of it is SQL,
-- so that tests exercise it without a network and upgrades carry it; the
-- sender calls these functions with batches.
--
-- Lock order: _quota (by account name), then _outbox, then _usage; but the rows that
-- a sender has claimed are its own, and taken first.

-- The routes that are an account's own: its name, and '' while it is the one in use.
CREATE FUNCTION kliv_mail._own_routes(p_account text) RETURNS text[]
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE WHEN p_account = kliv_mail._default_account() THEN ARRAY[p_account, ''] ELSE ARRAY[p_account] END;
END;
$$;

-- May an account of ours send as that address?
CREATE FUNCTION kliv_mail._may_send(p_account text, p_address text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM kliv_mail._account AS a
                   WHERE a.name = p_account
                     AND (p_address = a.from_address OR p_address = ANY (a.allowed_senders)
                          OR lower('@' || split_part(p_address, '@', -1)) IN (SELECT lower(s) FROM unnest(a.allowed_senders) AS s)));
END;
$$;

-- Failover: the account that takes over the mail of one that is in trouble of
-- its own (held by a reply, or its key): the next own one in route_order that
-- is well and may send for its address.  NULL: none, or no trouble.
CREATE FUNCTION kliv_mail._heir(p_account text, at timestamptz) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a record;
    b record;
    v record;
BEGIN
    SELECT * INTO a FROM kliv_mail._accounts() AS x WHERE x.name = p_account AND x.own AND x.in_use AND x.problem IS NULL;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT * INTO v FROM kliv_mail._availability(p_account, at);
    IF v.blocked_until IS NULL OR v.held_by NOT IN ('account', 'key') THEN
        RETURN NULL;
    END IF;
    FOR b IN SELECT x.name FROM kliv_mail._accounts() AS x
             WHERE x.own AND x.in_use AND x.problem IS NULL AND (x.route_order, x.name) > (a.route_order, a.name)
             ORDER BY x.route_order, x.name LOOP
        CONTINUE WHEN NOT kliv_mail._may_send(b.name, a.from_address);
        SELECT * INTO v FROM kliv_mail._availability(b.name, at);
        IF v.blocked_until IS NULL THEN
            RETURN b.name;
        END IF;
    END LOOP;
    RETURN NULL;
END;
$$;

-- All that an account may claim from: its own routes, and those of accounts in
-- trouble whose heir it is.
CREATE FUNCTION kliv_mail._routes(p_account text) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_routes text[] := kliv_mail._own_routes(p_account);
    v_name text;
BEGIN
    -- Only those that are held, and whose address it may send for, can have it as their heir.
    IF p_account <> 'platform' THEN
        FOR v_name IN SELECT a.name FROM kliv_mail._quota AS q JOIN kliv_mail._account AS a ON a.name = q.account
                      WHERE q.held_until > v_at AND q.held_by IN ('account', 'key')
                        AND a.in_use AND a.name <> p_account AND kliv_mail._may_send(p_account, a.from_address) LOOP
            IF kliv_mail._heir(v_name, v_at) = p_account THEN
                v_routes := v_routes || kliv_mail._own_routes(v_name);
            END IF;
        END LOOP;
    END IF;
    RETURN v_routes;
END;
$$;

-- Claim for one account: rows that are due, within both windows, at most
-- p_room of them and (but for the first, when p_first) p_bytes octets.  Counts
-- them in the windows in the same transaction.  sender: whose mail it is, where
-- another account of ours is in trouble.
CREATE FUNCTION kliv_mail._claim_account(p_epoch bigint, p_account text, p_room integer, p_bytes bigint, p_first boolean)
RETURNS TABLE (id bigint, message_id bigint, recipient text, account text, attempts integer, doubts integer, size integer,
               suppressed text, sender text, sender_name text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
    -- Planning anew for each LIMIT is a quarter of what one mail costs the sender.
    SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_put_off integer;
    v_at timestamptz := kliv_mail._now();
    v_origin text := kliv_mail._origin();
    v_own text[] := kliv_mail._own_routes(p_account);
    v_routes text[] := kliv_mail._routes(p_account);
    v_default text := kliv_mail._default_account();
    v_cap integer := current_setting('kliv_mail.recipient_hourly_limit')::integer;
    v record;
    v_room integer;
    v_ids bigint[];
    v_sizes integer[];
BEGIN
    -- A glance without a lock, so that a look in vain writes nothing: is anything
    -- waiting at all, and may it leave?
    IF NOT EXISTS (SELECT FROM unnest(v_routes) AS r (route), LATERAL (
            SELECT FROM kliv_mail._outbox AS o WHERE o.origin = v_origin AND o.route = r.route AND o.epoch IS NULL LIMIT 1) AS x) THEN
        RETURN;
    END IF;
    SELECT * INTO v FROM kliv_mail._availability(p_account, v_at);
    IF v.blocked_until > v_at OR v.remaining = 0 OR v.probe_room = 0 THEN
        RETURN;
    END IF;
    PERFORM FROM kliv_mail._quota AS q WHERE q.account = p_account FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        INSERT INTO kliv_mail._quota (account) VALUES (p_account) ON CONFLICT DO NOTHING;
        PERFORM FROM kliv_mail._quota AS q WHERE q.account = p_account FOR NO KEY UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            RETURN;             -- another sender is claiming for it
        END IF;
    END IF;
    -- From here each statement has a snapshot that sees what the lock's last owner wrote.
    v_at := kliv_mail._now();
    SELECT * INTO v FROM kliv_mail._availability(p_account, v_at);
    IF v.blocked_until > v_at OR v.remaining = 0 OR v.probe_room = 0 THEN
        RETURN;
    END IF;
    -- After trouble, one delivery tries whether it has ended.
    v_room := least(p_room, v.probe_room, v.remaining);
    -- Until what a claim would take has none any more that had its share.
    IF v_cap > 0 THEN
        FOR i IN 1 .. 20 LOOP
            v_put_off := kliv_mail._cap_recipients(v_routes, 1000, v_cap, v_at, v.hour_start, v.hour_end);
            EXIT WHEN v_put_off = 0;
        END LOOP;
        IF v_put_off > 0 THEN
            RETURN;             -- the next claim goes on with it
        END IF;
    END IF;
    -- System before transactional before marketing, older first; marketing only as
    -- far as it leaves its share of the windows free.  The rows are chosen first and
    -- then taken by their ids, since the outbox's statistics are mostly of a moment
    -- when it was empty: a join would read all of it for each claim.
    SELECT array_agg(s.id ORDER BY s.n), array_agg(s.size ORDER BY s.n) INTO v_ids, v_sizes
    FROM (SELECT z.id, z.size, z.priority, row_number() OVER w AS n, sum(z.size) OVER w AS upto
          FROM (SELECT y.*, coalesce((SELECT octet_length(m.entity) FROM kliv_mail._message AS m WHERE m.id = y.message_id), 0) AS size
                FROM (SELECT c.id, c.due, c.message_id, p.priority
                      FROM unnest(v_routes) AS r (route), unnest(ARRAY[0, 1, 2]::smallint[]) AS p (priority), LATERAL (
                          SELECT o.id, o.message_id, o.due FROM kliv_mail._outbox AS o
                          WHERE o.origin = v_origin AND o.route = r.route AND o.priority = p.priority
                            AND o.epoch IS NULL AND o.due <= v_at
                            -- _expire() ends them, a thousand at a time
                            AND (o.expires_at IS NULL OR o.expires_at > v_at)
                            -- another account's mail only if its From may leave here
                            AND (r.route = ANY (v_own) OR coalesce((SELECT m.from_address IS NULL OR kliv_mail._may_send(p_account, m.from_address)
                                                                    FROM kliv_mail._message AS m WHERE m.id = o.message_id), true))
                          ORDER BY o.due, o.id LIMIT v_room FOR NO KEY UPDATE SKIP LOCKED) AS c
                      ORDER BY p.priority, c.due, c.id LIMIT v_room) AS y) AS z
          WINDOW w AS (ORDER BY z.priority, z.due, z.id)) AS s
    WHERE (s.upto <= p_bytes OR (p_first AND s.n = 1)) AND (s.priority < 2 OR s.n <= v.remaining_marketing);
    IF v.probe_room = 1 THEN
        UPDATE kliv_mail._quota AS q SET probe = v_ids[1] WHERE q.account = p_account;
    END IF;
    RETURN QUERY
        WITH claimed AS (
            UPDATE kliv_mail._outbox AS o
            SET epoch = p_epoch, account = p_account, hour_start = v.hour_start, day_start = v.day_start,
                attempts = o.attempts + 1, first_attempt_at = coalesce(o.first_attempt_at, v_at), held_by = NULL
            WHERE o.id = ANY (v_ids)
            RETURNING o.id, o.message_id, o.recipient, o.attempts, o.doubts, array_position(v_ids, o.id) AS n, o.priority,
                CASE WHEN o.route = ANY (v_own) THEN NULL WHEN o.route = '' THEN v_default ELSE o.route END AS instead_of),
        told AS (
            INSERT INTO kliv_mail._event (id, at, kind, account, message_id, delivery_id, detail)
            SELECT nextval('kliv_mail._event_id'), v_at, 'failover', p_account, c.message_id, c.id,
                   format('goes by the account "%s" instead of "%s", which is in trouble', p_account, c.instead_of)
            FROM claimed AS c WHERE c.instead_of IS NOT NULL),
        counted AS (
            INSERT INTO kliv_mail._usage AS u (account, window_name, window_start, window_end, used, used_marketing)
            SELECT p_account, w.window_name, w.window_start, w.window_end, count(*), count(*) FILTER (WHERE c.priority = 2)
            FROM claimed AS c, (VALUES ('hour', v.hour_start, v.hour_end), ('day', v.day_start, v.day_end))
                AS w (window_name, window_start, window_end)
            GROUP BY 1, 2, 3, 4
            UNION ALL
            SELECT '@' || c.recipient, 'hour', v.hour_start, v.hour_end, count(*), 0 FROM claimed AS c WHERE v_cap > 0 GROUP BY 1
            ORDER BY 1, 2, 3
            ON CONFLICT (account, window_name, window_start) DO UPDATE
            SET used = u.used + excluded.used, used_marketing = u.used_marketing + excluded.used_marketing)
        SELECT c.id, c.message_id, c.recipient, p_account, c.attempts, c.doubts, v_sizes[c.n],
               CASE WHEN EXISTS (SELECT FROM kliv_mail._suppression) THEN kliv_mail._suppressed(c.recipient, c.priority, v_at) END,
               f.from_address, f.from_name
        FROM claimed AS c LEFT JOIN kliv_mail._account AS f ON f.name = c.instead_of ORDER BY c.n;
END;
$$;

-- recipient_hourly_limit: who had their share of this hour waits for the next
-- one.  Looks at the first p_room of each route and priority; how many it sent there.
CREATE FUNCTION kliv_mail._cap_recipients(p_routes text[], p_room integer, p_cap integer, at timestamptz,
                                          p_hour_start timestamptz, p_hour_end timestamptz) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_count integer;
BEGIN
    UPDATE kliv_mail._outbox AS o SET due = p_hour_end, held_by = 'quota',
        last_reason = format('this address has had its %s mails of this hour (kliv_mail.recipient_hourly_limit)', p_cap)
    WHERE o.id = ANY (ARRAY(
        SELECT x.id FROM (
            SELECT c.id, c.recipient, row_number() OVER (PARTITION BY c.recipient ORDER BY c.priority, c.due, c.id) AS n
            FROM unnest(p_routes) AS r (route), unnest(ARRAY[0, 1, 2]::smallint[]) AS p (priority), LATERAL (
                SELECT o.id, o.recipient, o.priority, o.due FROM kliv_mail._outbox AS o
                WHERE o.origin = kliv_mail._origin() AND o.route = r.route AND o.priority = p.priority
                  AND o.epoch IS NULL AND o.due <= at
                ORDER BY o.due, o.id LIMIT p_room FOR NO KEY UPDATE SKIP LOCKED) AS c) AS x
        LEFT JOIN kliv_mail._usage AS u ON u.account = '@' || x.recipient AND u.window_name = 'hour'
            AND u.window_start = p_hour_start
        WHERE x.n + coalesce(u.used, 0) > p_cap));
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END;
$$;

-- Claim for all accounts in turn, p_bytes octets in all; NULL: a single row of any
-- size.  p_accounts, p_busy and p_held: how many deliveries and octets the sender
-- already has of some of them.  An account gets no more than half of what the
-- others leave, so that one that hangs cannot fill the sender's memory, and one
-- that has nothing gets a mail of any size.
-- settings changes whenever the account was changed in any way.
CREATE FUNCTION kliv_mail._claim(p_epoch bigint, p_room integer, p_bytes bigint,
                                 p_accounts text[] DEFAULT '{}', p_busy integer[] DEFAULT '{}', p_held bigint[] DEFAULT '{}')
RETURNS TABLE (id bigint, message_id bigint, recipient text, account text, attempts integer, doubts integer, size integer, suppressed text,
               sender text, sender_name text, settings text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    a record;
    c record;
    v_bytes bigint := p_bytes;
BEGIN
    FOR a IN
        SELECT x.name, p_room - coalesce(b.busy, 0) AS room, coalesce(b.busy, 0) = 0 AS idle, coalesce(b.held, 0) AS held,
               md5(x::text) AS settings
        FROM kliv_mail._accounts() AS x
        LEFT JOIN unnest(p_accounts, p_busy, p_held) AS b (name, busy, held) ON b.name = x.name
        WHERE x.in_use AND x.problem IS NULL AND p_room > coalesce(b.busy, 0)
        ORDER BY coalesce(b.busy, 0), x.route_order, x.name
    LOOP
        FOR c IN SELECT * FROM kliv_mail._claim_account(p_epoch, a.name, a.room,
                coalesce(greatest(0, (v_bytes - a.held) / 2), 0), a.idle OR p_bytes IS NULL) LOOP
            id := c.id; message_id := c.message_id; recipient := c.recipient; account := c.account;
            attempts := c.attempts; doubts := c.doubts; size := c.size; suppressed := c.suppressed;
            sender := c.sender; sender_name := c.sender_name; settings := a.settings;
            v_bytes := v_bytes - c.size;
            RETURN NEXT;
        END LOOP;
        EXIT WHEN p_bytes IS NULL AND FOUND;
    END LOOP;
END;
$$;

-- What the sender asks when it is woken, since it may have claimed before a change.
CREATE FUNCTION kliv_mail._account_states(OUT name text, OUT settings text, OUT stopped integer) RETURNS SETOF record
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT x.name, md5(x::text),
           (NOT x.in_use OR x.problem IS NOT NULL OR x.hourly_limit = 0 OR x.daily_limit = 0
            OR EXISTS (SELECT FROM kliv_mail._pause AS p WHERE p.account IN ('', x.name)))::integer
    FROM kliv_mail._accounts() AS x;
END;

-- What the sender needs of the messages it does not hold yet.
CREATE FUNCTION kliv_mail._messages(p_ids bigint[])
RETURNS TABLE (id bigint, header_id text, from_address text, from_name text, reply_to text, smtputf8 boolean, unsubscribe boolean, entity bytea)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT m.id, m.header_id, m.from_address, m.from_name, m.reply_to, m.smtputf8, m.unsubscribe, m.entity
    FROM kliv_mail._message AS m WHERE m.id = ANY (p_ids);
END;

-- Seconds to wait before try number n+1: 30 s doubling to an hour, a quarter of
-- it either way by chance, so that what failed together does not come back together.
CREATE FUNCTION kliv_mail._backoff(n integer) RETURNS interval
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT make_interval(secs => least(3600, 30 * power(2, least(greatest(n, 1), 20) - 1)) * (0.75 + random() / 2));
END;

-- Give back to the windows they were taken from what the server surely did not accept.
-- So the share of a recipient's hour.
CREATE FUNCTION kliv_mail._refund(p_accounts text[], p_recipients text[], p_hours timestamptz[], p_days timestamptz[], p_priorities smallint[])
RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH given AS (
        SELECT w.account, w.window_name, w.window_start, count(*) AS n, count(*) FILTER (WHERE x.priority = 2) AS marketing
        FROM unnest(p_accounts, p_recipients, p_hours, p_days, p_priorities) AS x (account, recipient, hour_start, day_start, priority),
             LATERAL (VALUES (x.account, 'hour', x.hour_start), (x.account, 'day', x.day_start), ('@' || x.recipient, 'hour', x.hour_start))
                 AS w (account, window_name, window_start)
        GROUP BY 1, 2, 3)
    UPDATE kliv_mail._usage AS u
    SET used = greatest(0, u.used - g.n), used_marketing = greatest(0, u.used_marketing - g.marketing)
    FROM given AS g
    WHERE u.account = g.account AND u.window_name = g.window_name AND u.window_start = g.window_start;
END;

-- Hold an account, or leave the hold that already reaches further.
CREATE FUNCTION kliv_mail._hold_account(p_account text, p_by text, p_pause interval, p_reason text, p_hint text, p_failure boolean,
                                        p_fingerprint text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_print text;
    v_held record;
    v_counts boolean;
    v_failures integer;
    v_until timestamptz;
BEGIN
    SELECT x.fingerprint INTO v_print FROM kliv_mail._accounts() AS x WHERE x.name = p_account;
    -- Met with settings that are no longer the account's: no concern of the new ones.
    IF p_fingerprint <> v_print THEN
        RETURN;
    END IF;
    INSERT INTO kliv_mail._quota (account) VALUES (p_account) ON CONFLICT DO NOTHING;
    SELECT * INTO v_held FROM kliv_mail._quota AS q WHERE q.account = p_account FOR NO KEY UPDATE;
    -- A hold that was met with other settings is over.
    v_failures := CASE WHEN v_held.fingerprint IS NOT DISTINCT FROM v_print THEN v_held.failures ELSE 0 END;
    -- What was under way when the hold began meets the same trouble, and is no further failure.
    v_counts := p_failure AND NOT coalesce(v_failures > 0 AND v_held.held_until > v_at, false);
    v_failures := v_failures + v_counts::integer;
    v_until := v_at + greatest(coalesce(p_pause, interval '0'),
                               CASE WHEN v_counts OR (p_pause IS NULL AND NOT p_failure) THEN kliv_mail._backoff(v_failures)
                                    ELSE interval '0' END);
    UPDATE kliv_mail._quota AS q
    SET held_until = CASE WHEN q.fingerprint IS NOT DISTINCT FROM v_print THEN greatest(q.held_until, v_until) ELSE v_until END,
        held_by = p_by, held_reason = p_reason, held_hint = p_hint,
        held_since = CASE WHEN q.held_until IS NULL OR q.fingerprint IS DISTINCT FROM v_print THEN v_at ELSE q.held_since END,
        failures = v_failures, fingerprint = v_print
    WHERE q.account = p_account;
    IF v_held.held_until IS NULL OR v_held.fingerprint IS DISTINCT FROM v_print OR v_held.held_reason IS DISTINCT FROM p_reason THEN
        PERFORM kliv_mail._log_event('account_held', p_account, p_reason,
            jsonb_build_object('by', p_by, 'until', v_until));
    END IF;
END;
$$;

-- Record outcomes, all in one go.  verdict is one of classify_reply()'s, or
-- 'returned': nothing that counts reached a server, the row goes back as it was,
-- 'postponed': the same, and it waits a minute for the key; or 'suppressed':
-- the claim met an address that gets no mail.
-- Rows that are no longer claimed by this epoch are left alone.
CREATE FUNCTION kliv_mail._record(
    p_epoch bigint, p_ids bigint[], p_verdicts text[], p_scopes text[], p_bounce_types text[], p_pauses integer[],
    p_stages text[], p_codes integer[], p_enhanced text[], p_replies text[], p_reasons text[], p_hints text[],
    p_server_ids text[], p_identities text[], p_unknown boolean[], p_fingerprints text[])
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_retry_for interval := make_interval(secs => extract(epoch FROM current_setting('kliv_mail.retry_for')::interval));
    v_doubts integer := CASE WHEN current_setting('kliv_mail.on_in_doubt') = 'hold' THEN 0
                             ELSE current_setting('kliv_mail.max_in_doubt_retries')::integer END;
    v_count integer;
    v_verdicts text[] := p_verdicts;
    v_scopes text[] := p_scopes;
    v_reasons text[] := p_reasons;
    v_strikes text[];
    v_accepted bigint[];
    v_trouble boolean := EXISTS (SELECT FROM unnest(p_verdicts) AS v (verdict) WHERE v.verdict <> 'accepted');
    v_unknown boolean := coalesce(true = ANY (p_unknown), false);
    a record;
BEGIN
    -- What was accepted: the only statement of an untroubled batch.
    WITH r AS MATERIALIZED (
        SELECT x.* FROM unnest(p_ids, p_verdicts, p_stages, p_codes, p_enhanced, p_replies, p_server_ids, p_identities)
            AS x (id, verdict, stage, code, enhanced, reply, server_id, identity)
        WHERE x.verdict = 'accepted'),
    gone AS (
        DELETE FROM kliv_mail._outbox AS o USING r WHERE o.id = r.id AND o.epoch = p_epoch
        RETURNING o.*, r.stage, r.code, r.enhanced, r.reply, r.server_id, r.identity AS sent_identity)
    INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, created_at, expires_at, attempts,
        doubts, account, identity, last_stage, last_code, last_enhanced, last_reply, reason, server_message_id, sent_at, finished_at)
    SELECT g.id, g.message_id, g.recipient, g.kind, g.priority, g.route, 'sent', g.created_at, g.expires_at, g.attempts,
        g.doubts, g.account, g.sent_identity, g.stage, g.code, g.enhanced, g.reply,
        CASE current_setting('kliv_mail.redirect_to') WHEN '' THEN 'the server accepted it'
            ELSE format('the server accepted it for %s (kliv_mail.redirect_to)', current_setting('kliv_mail.redirect_to')) END,
        g.server_id, v_at, v_at
    FROM gone AS g;
    GET DIAGNOSTICS v_count = ROW_COUNT;

    -- An accepted mail ends a row of refusals that nobody understands.
    v_accepted := ARRAY(SELECT x.id FROM unnest(p_ids, p_verdicts) AS x (id, verdict) WHERE x.verdict = 'accepted');
    IF NOT v_unknown AND EXISTS (SELECT FROM kliv_mail._quota AS q WHERE q.strikes <> '{}') THEN
        UPDATE kliv_mail._quota AS q SET strikes = '{}'
        WHERE q.strikes <> '{}' AND q.account IN (SELECT d.account FROM kliv_mail._delivery AS d WHERE d.id = ANY (v_accepted));
    END IF;

    IF v_trouble THEN
        PERFORM FROM kliv_mail._quota AS q
        WHERE q.account IN (SELECT o.account FROM kliv_mail._outbox AS o WHERE o.id = ANY (p_ids) AND o.epoch = p_epoch)
        ORDER BY q.account FOR NO KEY UPDATE;

        -- Three different recipients in a row refused the same way that no rule
        -- knows: that is about the account, and the third one is not to blame.
        -- Those accepted between them count in their order.  One that comes back
        -- with the refusal that it met before has its own verdict: it proves nothing
        -- new, and the line must move until others can prove the account well.
        FOR a IN
            SELECT x.n, coalesce(o.account, d.account) AS account, o.recipient, concat_ws(' ', x.stage, x.code, x.enhanced) AS way, x.reply
            FROM unnest(p_ids, p_unknown, p_stages, p_codes, p_enhanced, p_replies)
                WITH ORDINALITY AS x (id, unknown, stage, code, enhanced, reply, n)
            LEFT JOIN kliv_mail._outbox AS o ON o.id = x.id AND o.epoch = p_epoch AND x.unknown
            LEFT JOIN kliv_mail._delivery AS d ON d.id = x.id AND x.id = ANY (v_accepted)
            WHERE v_unknown AND (o.id IS NOT NULL OR d.id IS NOT NULL)
              AND (o.last_stage, o.last_code, o.last_enhanced) IS DISTINCT FROM (x.stage, x.code, x.enhanced)
            ORDER BY x.n
        LOOP
            SELECT q.strikes INTO v_strikes FROM kliv_mail._quota AS q WHERE q.account = a.account;
            IF v_strikes[1] IS DISTINCT FROM a.way THEN
                v_strikes := ARRAY[a.way];
            END IF;
            CONTINUE WHEN a.recipient = ANY (v_strikes[2:]);
            v_strikes := CASE WHEN a.recipient IS NULL THEN '{}' ELSE v_strikes || a.recipient END;
            IF cardinality(v_strikes) > 3 THEN
                v_verdicts[a.n] := 'account_trouble';
                v_scopes[a.n] := 'account';
                v_reasons[a.n] := 'three recipients in a row were refused the same way: ' || coalesce(a.reply, 'no reply');
            END IF;
            UPDATE kliv_mail._quota AS q SET strikes = v_strikes WHERE q.account = a.account;
        END LOOP;
        -- A 421 is about the connection.  For a delivery that has met the same at the same
        -- place before, and waited for the account, it is the delivery's own verdict:
        -- it alone waits, where it would hold the account up again and again.
        FOR a IN
            SELECT x.n FROM unnest(p_ids, v_verdicts, v_scopes, p_stages, p_codes) WITH ORDINALITY AS x (id, verdict, scope, stage, code, n)
            JOIN kliv_mail._outbox AS o ON o.id = x.id
            WHERE o.epoch = p_epoch AND x.verdict = 'temporary' AND x.scope = 'account' AND x.stage IN ('rcpt', 'data', 'dot')
              AND o.last_stage = x.stage AND o.last_code = x.code
        LOOP
            v_scopes[a.n] := 'recipient';
        END LOOP;

        -- The quota, for all but what a server may have.
        PERFORM kliv_mail._refund(array_agg(o.account), array_agg(o.recipient), array_agg(o.hour_start), array_agg(o.day_start), array_agg(o.priority))
        FROM kliv_mail._outbox AS o JOIN unnest(p_ids, v_verdicts) AS x (id, verdict) ON x.id = o.id
        WHERE o.epoch = p_epoch AND x.verdict NOT IN ('accepted', 'in_doubt')
        HAVING count(*) > 0;

        -- The account's own troubles, one hold an account.
        FOR a IN
            SELECT DISTINCT ON (o.account) o.account, x.verdict, x.pause, x.reason, x.hint, x.fingerprint
            FROM kliv_mail._outbox AS o
            JOIN unnest(p_ids, v_verdicts, v_scopes, p_pauses, v_reasons, p_hints, p_fingerprints) AS x (id, verdict, scope, pause, reason, hint, fingerprint)
                ON x.id = o.id
            WHERE o.epoch = p_epoch AND x.scope = 'account' AND x.verdict IN ('temporary', 'permanent', 'provider_limit', 'account_trouble')
            ORDER BY o.account, x.pause DESC NULLS LAST, x.id
        LOOP
            PERFORM kliv_mail._hold_account(a.account, CASE a.verdict WHEN 'provider_limit' THEN 'quota' ELSE 'account' END,
                make_interval(secs => nullif(a.pause, 0)), a.reason, a.hint, a.verdict <> 'provider_limit', a.fingerprint);
        END LOOP;

        -- Refused for good.
        WITH r AS MATERIALIZED (
            SELECT x.* FROM unnest(p_ids, v_verdicts, v_scopes, p_bounce_types, p_stages, p_codes, p_enhanced, p_replies, v_reasons,
                                   p_hints, p_identities)
                AS x (id, verdict, scope, bounce_type, stage, code, enhanced, reply, reason, hint, identity)),
        verdict AS (
            SELECT o.id,
                   CASE WHEN r.verdict = 'suppressed' THEN 'suppressed'
                        WHEN r.verdict = 'permanent' THEN 'bounced'
                        WHEN r.verdict IN ('policy_block', 'message_fault') THEN 'failed'
                        WHEN r.verdict = 'temporary' AND v_at >= o.first_attempt_at + v_retry_for THEN 'bounced' END AS status,
                   CASE WHEN r.verdict = 'temporary' THEN 'soft' ELSE r.bounce_type END AS bounce_type,
                   CASE WHEN r.verdict = 'temporary' THEN 'it was tried for ' || current_setting('kliv_mail.retry_for') || '; last: '
                        ELSE '' END || r.reason AS reason,
                   r.hint, r.stage, r.code, r.enhanced, r.reply, r.identity
            FROM kliv_mail._outbox AS o JOIN r ON r.id = o.id
            WHERE o.epoch = p_epoch AND r.scope <> 'account'),
        gone AS (
            DELETE FROM kliv_mail._outbox AS o USING verdict AS v WHERE o.id = v.id AND v.status IS NOT NULL
            RETURNING o.*, v.status, v.bounce_type AS bounce, v.reason, v.hint, v.stage, v.code, v.enhanced, v.reply, v.identity AS sent_identity)
        INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, created_at, expires_at, attempts,
            doubts, account, identity, bounce_type, last_stage, last_code, last_enhanced, last_reply, reason, hint, finished_at)
        SELECT g.id, g.message_id, g.recipient, g.kind, g.priority, g.route, g.status, g.created_at, g.expires_at, g.attempts,
            g.doubts, g.account, coalesce(g.sent_identity, g.identity), g.bounce, g.stage, g.code, g.enhanced, g.reply, g.reason, g.hint, v_at
        FROM gone AS g;

        -- A sender that spam filters block five of a hundred times stops for a while,
        -- before its name is worth nothing.
        FOR a IN
            SELECT DISTINCT d.account FROM kliv_mail._delivery AS d JOIN unnest(p_ids, v_verdicts) AS x (id, verdict) ON d.id = x.id
            WHERE x.verdict = 'policy_block'
        LOOP
            IF (SELECT count(*) FROM kliv_mail._delivery AS d WHERE d.account = a.account AND d.bounce_type = 'policy'
                  AND d.finished_at >= (SELECT min(l.finished_at) FROM (SELECT y.finished_at FROM kliv_mail._delivery AS y
                      WHERE y.account = a.account ORDER BY y.finished_at DESC LIMIT 100) AS l)) >= 5 THEN
                PERFORM kliv_mail._hold_account(a.account, 'account', interval '1 hour',
                    'five of its last hundred mails were blocked as spam or against the receiver''s policy',
                    'Read last_reply in kliv_mail.deliveries; set up SPF, DKIM and DMARC for the sender''s domain, or send less of it.', false);
            END IF;
        END LOOP;

        -- The rest goes back: at its old time where the account or nobody is to
        -- blame (no attempt burned), later where the recipient or the message is,
        -- and in doubt at once, or never without a call.
        UPDATE kliv_mail._outbox AS o
        SET epoch = NULL,
            attempts = CASE WHEN x.verdict IN ('returned', 'postponed') OR (x.scope = 'account' AND x.verdict <> 'in_doubt')
                            THEN o.attempts - 1 ELSE o.attempts END,
            first_attempt_at = CASE WHEN o.attempts = 1 AND (x.verdict IN ('returned', 'postponed') OR (x.scope = 'account' AND x.verdict <> 'in_doubt'))
                                    THEN NULL ELSE o.first_attempt_at END,
            due = CASE WHEN x.verdict = 'in_doubt' THEN CASE WHEN o.doubts + 1 > v_doubts THEN 'infinity' ELSE v_at END
                       WHEN x.verdict = 'postponed' THEN v_at + interval '1 minute'
                       WHEN x.verdict = 'returned' OR x.scope = 'account' THEN o.due
                       ELSE v_at + greatest(make_interval(secs => coalesce(x.pause, 0)), kliv_mail._backoff(o.attempts)) END,
            doubts = o.doubts + (x.verdict = 'in_doubt')::integer,
            held_by = CASE WHEN x.verdict = 'postponed' THEN 'key' END,
            doubtful = CASE WHEN x.verdict IN ('returned', 'postponed') THEN o.doubtful ELSE x.verdict = 'in_doubt' END,
            identity = coalesce(x.identity, o.identity),
            last_stage = CASE WHEN x.verdict = 'returned' THEN o.last_stage ELSE x.stage END,
            last_code = CASE WHEN x.verdict = 'returned' THEN o.last_code ELSE x.code END,
            last_enhanced = CASE WHEN x.verdict = 'returned' THEN o.last_enhanced ELSE x.enhanced END,
            last_reply = CASE WHEN x.verdict = 'returned' THEN o.last_reply ELSE x.reply END,
            last_reason = CASE WHEN x.verdict = 'returned' THEN o.last_reason ELSE x.reason END,
            last_hint = CASE WHEN x.verdict = 'returned' THEN o.last_hint ELSE x.hint END
        FROM unnest(p_ids, v_verdicts, v_scopes, p_pauses, p_stages, p_codes, p_enhanced, p_replies, v_reasons, p_hints, p_identities)
            AS x (id, verdict, scope, pause, stage, code, enhanced, reply, reason, hint, identity)
        WHERE o.id = x.id AND o.epoch = p_epoch;
    END IF;

    -- An accepted mail ends the account's trouble, unless the same batch brought it.
    IF EXISTS (SELECT FROM kliv_mail._quota AS q WHERE q.held_until <= v_at) THEN
        UPDATE kliv_mail._quota AS q
        SET held_until = NULL, held_by = NULL, held_reason = NULL, held_hint = NULL, held_since = NULL, failures = 0, fingerprint = NULL
        WHERE q.held_until <= v_at
          AND q.account IN (SELECT d.account FROM kliv_mail._delivery AS d WHERE d.id = ANY (v_accepted));
    END IF;
    RETURN v_count;
END;
$$;

-- The claims of epochs whose sender is gone, as their locks tell: a server may
-- have any of them.
CREATE FUNCTION kliv_mail._recover() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_doubts integer := CASE WHEN current_setting('kliv_mail.on_in_doubt') = 'hold' THEN 0
                             ELSE current_setting('kliv_mail.max_in_doubt_retries')::integer END;
    v_epoch bigint;
    v_total bigint := 0;
    v_count bigint;
    v_origin text := kliv_mail._origin();
    v_there text := (SELECT s.origin FROM kliv_mail._state AS s WHERE s.origin <> v_origin);
BEGIN
    -- Where it came by a dump the label is not there yet, or not all of it.
    PERFORM kliv_mail._label();
    -- A copy says so, once, in the log and in events.
    IF v_there IS NOT NULL AND NOT EXISTS (SELECT FROM kliv_mail._event AS e WHERE e.kind = 'copy_held' AND e.data->>'origin' = v_origin) THEN
        PERFORM kliv_mail._log_event('copy_held', NULL, format('this database is a copy of %s and sends nothing until resume()', v_there),
                                     jsonb_build_object('origin', v_origin));
        RAISE LOG USING MESSAGE = format('kliv_mail: the database "%s" is a copy of another one, and sends nothing until it is told to', current_database()),
            HINT = 'SELECT kliv_mail.resume(); in that database releases its mail, if this copy is the one that shall send it.';
    END IF;
    FOR v_epoch IN SELECT DISTINCT o.epoch FROM kliv_mail._outbox AS o WHERE o.epoch IS NOT NULL LOOP
        CONTINUE WHEN NOT kliv_mail._epoch_dead(v_epoch);
        UPDATE kliv_mail._outbox AS o
        SET epoch = NULL, doubtful = true, doubts = o.doubts + 1,
            due = CASE WHEN o.doubts + 1 > v_doubts THEN 'infinity' ELSE v_at END,
            last_stage = NULL, last_code = NULL, last_enhanced = NULL, last_reply = NULL,
            last_reason = 'the sender ended before the outcome was recorded', last_hint = NULL
        WHERE o.epoch = v_epoch;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        v_total := v_total + v_count;
    END LOOP;
    RETURN v_total;
END;
$$;

-- Set a row aside that could not even be read; the sender goes on without it.
CREATE FUNCTION kliv_mail._set_aside(p_id bigint, p_reason text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    WITH gone AS (DELETE FROM kliv_mail._outbox AS o WHERE o.id = p_id RETURNING o.*)
    INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, created_at, expires_at,
        attempts, doubts, account, reason, hint, finished_at)
    SELECT g.id, g.message_id, g.recipient, g.kind, g.priority, g.route, 'failed', g.created_at, g.expires_at,
        g.attempts, g.doubts, g.account, p_reason, 'The queued row was changed by hand; send the mail anew.', kliv_mail._now()
    FROM gone AS g;
    RETURN FOUND;
END;
$$;

-- When a sender is next needed, by this database's clock; infinity: not before a call.
CREATE FUNCTION kliv_mail._next_due() RETURNS timestamptz
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
    SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_origin text := kliv_mail._origin();
    v_next timestamptz := 'infinity';
    v_due timestamptz[];
    v record;
    a record;
BEGIN
    -- Ours alone: nobody here can end what was brought from elsewhere.
    SELECT coalesce(min(o.expires_at), 'infinity') INTO v_next FROM kliv_mail._outbox AS o
    WHERE o.origin = v_origin AND o.expires_at IS NOT NULL;
    FOR a IN SELECT x.name FROM kliv_mail._accounts() AS x WHERE x.in_use AND x.problem IS NULL LOOP
        -- The first in line of each priority.
        SELECT array_agg((SELECT min(d.due) FROM unnest(kliv_mail._routes(a.name)) AS r (route), LATERAL (
                    SELECT o.due FROM kliv_mail._outbox AS o
                    WHERE o.origin = v_origin AND o.route = r.route AND o.priority = p.priority AND o.epoch IS NULL
                      AND (r.route = ANY (kliv_mail._own_routes(a.name)) OR coalesce((
                            SELECT m.from_address IS NULL OR kliv_mail._may_send(a.name, m.from_address)
                            FROM kliv_mail._message AS m WHERE m.id = o.message_id), true))
                    ORDER BY o.due, o.id LIMIT 1) AS d) ORDER BY p.priority)
        INTO v_due FROM generate_series(0, 2) AS p (priority);
        CONTINUE WHEN v_due[1] IS NULL AND v_due[2] IS NULL AND v_due[3] IS NULL;
        SELECT * INTO v FROM kliv_mail._availability(a.name, v_at);
        CONTINUE WHEN v.blocked_until = 'infinity' OR v.hour_limit = 0 OR v.day_limit = 0;
        -- greatest() and least() ignore NULL: what is not there must not come first.
        v_next := least(v_next, greatest(
            least(CASE WHEN v_due[1] IS NOT NULL OR v_due[2] IS NOT NULL THEN
                      greatest(least(v_due[1], v_due[2]),
                               CASE WHEN v.remaining > 0 THEN NULL
                                    WHEN v.day_used >= v.day_limit THEN v.day_open_at ELSE v.hour_open_at END) END,
                  CASE WHEN v_due[3] IS NOT NULL THEN
                      greatest(v_due[3],
                               CASE WHEN v.remaining_marketing > 0 THEN NULL
                                    WHEN v.day_used >= kliv_mail._marketing_share(v.day_limit) THEN v.day_open_at
                                    ELSE v.hour_open_at END) END),
            v.blocked_until));
    END LOOP;
    RETURN v_next;
END;
$$;
