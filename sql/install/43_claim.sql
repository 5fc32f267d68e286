-- A claim: which deliveries a sender takes now, counted in the windows of their account in the same transaction.
--
-- Lock order: _quota (by account name), then _outbox, then _usage; but the rows that
-- a sender has claimed are its own, and taken first; so are a dead sender's, by who
-- has locked its rows of _batch.

-- Take the lock under which an account's windows are read and counted in, or
-- that of the own accounts together (''); false: another sender has it.
CREATE FUNCTION kliv_mail._lock_quota(p_account text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM kliv_mail._quota AS q WHERE q.account = p_account FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        INSERT INTO kliv_mail._quota (account) VALUES (p_account) ON CONFLICT DO NOTHING;
        PERFORM FROM kliv_mail._quota AS q WHERE q.account = p_account FOR NO KEY UPDATE SKIP LOCKED;
    END IF;
    RETURN FOUND;
END;
$$;

-- Does anything wait on these routes, in that stretch of the line?
CREATE FUNCTION kliv_mail._anything_waits(p_routes text[], p_dues timestamptz[], p_ids bigint[], p_untils timestamptz[]) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    v_origin text := kliv_mail._origin();
BEGIN
    RETURN EXISTS (
        SELECT FROM unnest(p_routes) AS r (route), unnest('{0,1,2}'::smallint[], p_dues, p_ids, p_untils) AS p (priority, due, id, until), LATERAL (
            SELECT FROM kliv_mail._outbox AS o
            WHERE o.origin = v_origin AND o.route = r.route AND o.priority = p.priority AND (o.due, o.id) >= (p.due, p.id) AND o.due <= p.until
              AND o.epoch IS NULL LIMIT 1) AS x);
END;
$$;

-- Claim for one account: rows that are due, within all windows, at most
-- p_room of them and (but for the first, when p_first) p_bytes octets.  Counts
-- them in the windows in the same transaction.  sender: whose mail it is, where
-- another account of ours is in trouble.  p_dues and p_ids: of each priority, where in
-- the line to begin, p_untils: the last due time to look at (src/worker/sender_line.c).
-- p_known, p_own and p_routes: the account, its own routes and all that it may claim from, where the
-- caller has looked at them, and knows that something waits there.
CREATE FUNCTION kliv_mail._claim_account(p_epoch bigint, p_account text, p_room integer, p_bytes bigint, p_first boolean,
                                         p_dues timestamptz[] DEFAULT '{-infinity,-infinity,-infinity}', p_ids bigint[] DEFAULT '{0,0,0}',
                                         p_known kliv_mail._known_account DEFAULT NULL, p_untils timestamptz[] DEFAULT '{infinity,infinity,infinity}',
                                         p_own text[] DEFAULT NULL, p_routes text[] DEFAULT NULL)
RETURNS TABLE (id bigint, message_id bigint, recipient text, suppressed text, sender text, sender_name text,
               expires_at timestamptz, priority smallint, due timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
    -- Planning anew for each LIMIT is a quarter of what one mail costs the sender.
    SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_put_off integer;
    v_at timestamptz := kliv_mail._now();
    v_origin text := kliv_mail._origin();
    v_own text[] := coalesce(p_own, kliv_mail._own_routes(p_account));
    v_routes text[] := coalesce(p_routes, kliv_mail._routes(p_account, v_own));
    v_cap integer := current_setting('kliv_mail.recipient_hourly_limit')::integer;
    v record;
    v_room integer;
    v_ids bigint[];
    v_keyed boolean;
    v_replaced boolean;
    v_foreign boolean;
    v_count bigint;
    v_stamped bigint;
    v_marketing bigint;
    v_suspects bigint[];
    v_any_suppressed boolean := pg_relation_size('kliv_mail._suppression') > 0 OR pg_relation_size('kliv_mail._forgotten') > 0;
BEGIN
    -- Glances without a lock, so that a look in vain writes nothing: is anything
    -- waiting at all, and may it leave?
    IF p_routes IS NULL AND NOT kliv_mail._anything_waits(v_routes, p_dues, p_ids, p_untils) THEN
        RETURN;
    END IF;
    IF p_known.name IS NULL THEN
        SELECT * INTO p_known FROM kliv_mail._accounts() AS x WHERE x.name = p_account;
    END IF;
    SELECT * INTO v FROM kliv_mail._availability(p_account, v_at, p_known);
    IF v.blocked_until > v_at OR v.remaining = 0 OR v.probe_room = 0 THEN
        RETURN;
    END IF;
    IF NOT kliv_mail._lock_quota(p_account) THEN
        RETURN;                 -- another sender is claiming for it
    END IF;
    -- From here each statement has a snapshot that sees what the lock's last owner wrote.
    v_at := kliv_mail._now();
    -- What waited for the account with other settings than these goes on.
    SELECT q.suspects INTO v_suspects FROM kliv_mail._quota AS q
    WHERE q.account = p_account AND q.suspects <> '{}'
      AND q.fingerprint IS DISTINCT FROM p_known.fingerprint;
    IF FOUND THEN
        PERFORM kliv_mail._release_suspects(v_suspects, NULL, v_at);
        UPDATE kliv_mail._quota AS q SET suspects = '{}', failures = 0, held_until = NULL WHERE q.account = p_account;
    END IF;
    SELECT * INTO v FROM kliv_mail._availability(p_account, v_at, p_known);
    IF v.shares_room THEN
        -- What another own account claims meanwhile would be taken from the same room.
        IF NOT kliv_mail._lock_quota('') THEN
            RETURN;
        END IF;
        SELECT * INTO v FROM kliv_mail._availability(p_account, v_at, p_known);
    END IF;
    IF v.blocked_until > v_at OR v.remaining = 0 OR v.probe_room = 0 THEN
        RETURN;
    END IF;
    -- After trouble, one delivery tries whether it has ended.
    v_room := least(p_room, v.probe_room, v.remaining);
    -- Until what a claim would take has none any more that had its share.
    IF v_cap > 0 THEN
        FOR i IN 1 .. 20 LOOP
            v_put_off := kliv_mail._cap_recipients(v_routes, p_dues, p_ids, p_untils, 1000, v_cap, v_at, v.hour_start, v.hour_end);
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
    FOR i IN 1 .. 20 LOOP
        SELECT array_agg(s.id), bool_or(s.keyed), bool_or(s.foreign), count(*), count(*) FILTER (WHERE s.priority = 2)
        INTO v_ids, v_keyed, v_foreign, v_count, v_marketing
        FROM (SELECT z.id, z.size, z.priority, z.keyed, z.foreign, row_number() OVER w AS n, sum(z.size) OVER w AS upto
              FROM (SELECT y.*, coalesce((SELECT octet_length(m.entity) FROM kliv_mail._message AS m WHERE m.id = y.message_id), 0) AS size
                    FROM (SELECT c.id, c.due, c.message_id, c.keyed, p.priority, NOT r.route = ANY (v_own) AS foreign
                          FROM unnest(v_routes) AS r (route), unnest('{0,1,2}'::smallint[], p_dues, p_ids, p_untils) AS p (priority, due, id, until), LATERAL (
                              SELECT o.id, o.message_id, o.due, o.replace_key IS NOT NULL AS keyed FROM kliv_mail._outbox AS o
                              WHERE o.origin = v_origin AND o.route = r.route AND o.priority = p.priority
                                AND (o.due, o.id) >= (p.due, p.id) AND o.due <= least(v_at, p.until) AND o.epoch IS NULL
                                -- _expire() ends them, a thousand at a time
                                AND (o.expires_at IS NULL OR o.expires_at > v_at)
                                -- another account's mail only if its From may leave here
                                AND (r.route = ANY (v_own) OR coalesce((SELECT m.from_address IS NULL OR kliv_mail._may_send(p_account, m.from_address)
                                                                        FROM kliv_mail._message AS m WHERE m.id = o.message_id), true))
                              ORDER BY o.due, o.id LIMIT v_room FOR NO KEY UPDATE SKIP LOCKED) AS c
                          ORDER BY p.priority, c.due, c.id LIMIT v_room) AS y OFFSET 0) AS z
              WINDOW w AS (ORDER BY z.priority, z.due, z.id)) AS s
        WHERE (s.upto <= p_bytes OR (p_first AND s.n = 1)) AND (s.priority < 2 OR s.n <= v.remaining_marketing);
        -- What has been replaced is ours now, and goes; what stands behind it is looked for.
        v_replaced := v_keyed IS TRUE AND kliv_mail._replace_chosen(v_ids, v_at);
        EXIT WHEN NOT v_replaced;
    END LOOP;
    IF v_replaced THEN
        RETURN;                 -- the next claim goes on with it
    END IF;
    IF v.probe_room = 1 THEN
        UPDATE kliv_mail._quota AS q SET probe = v_ids[1] WHERE q.account = p_account;
    END IF;
    IF v_count = 0 THEN
        RETURN;
    END IF;
    RETURN QUERY
        UPDATE kliv_mail._outbox AS o
        SET epoch = p_epoch, account = p_account, host = p_known.host, hour_start = v.hour_start, day_start = v.day_start,
            attempts = o.attempts + 1, first_attempt_at = coalesce(o.first_attempt_at, v_at), held_by = NULL
        WHERE o.id = ANY (v_ids)
        RETURNING o.id, o.message_id, o.recipient,
            CASE WHEN v_any_suppressed AND kliv_mail._any_suppressed(ARRAY[o.recipient])
                 THEN (SELECT s.reason FROM kliv_mail._suppressed(o.recipient, o.priority,
                           (SELECT m.topic FROM kliv_mail._message AS m WHERE m.id = o.message_id), v_at) AS s) END,
            CASE WHEN v_foreign AND NOT o.route = ANY (v_own)
                 THEN (SELECT f.from_address FROM kliv_mail._account AS f WHERE f.name = kliv_mail._own_account(o.route)) END,
            CASE WHEN v_foreign AND NOT o.route = ANY (v_own)
                 THEN (SELECT f.from_name FROM kliv_mail._account AS f WHERE f.name = kliv_mail._own_account(o.route)) END,
            o.expires_at, o.priority, o.due;
    -- What somebody's trigger has kept is not counted.
    GET DIAGNOSTICS v_stamped = ROW_COUNT;
    IF v_stamped < v_count THEN
        SELECT count(*), count(*) FILTER (WHERE o.priority = 2) INTO v_count, v_marketing
        FROM kliv_mail._outbox AS o WHERE o.id = ANY (v_ids) AND o.epoch = p_epoch;
    END IF;
    -- The recipients first, as _refund() has them.
    IF v_cap > 0 THEN
        INSERT INTO kliv_mail._usage AS u (account, window_name, window_start, window_end, used)
        SELECT '@' || o.recipient, 'hour', v.hour_start, v.hour_end, count(*) FROM kliv_mail._outbox AS o
        WHERE o.id = ANY (v_ids) AND o.epoch = p_epoch GROUP BY 1 ORDER BY 1
        ON CONFLICT (account, window_name, window_start, generation) DO UPDATE SET used = u.used + excluded.used, window_end = excluded.window_end;
    END IF;
    -- Nobody else gives the account's rows another generation while we have its lock; a recipient's have one.
    INSERT INTO kliv_mail._usage AS u (account, window_name, window_start, window_end, generation, updates, used, used_marketing)
    VALUES (p_account, 'day', v.day_start, v.day_end, v.day_generation, 1, v_count, v_marketing),
           (p_account, 'hour', v.hour_start, v.hour_end, v.hour_generation, 1, v_count, v_marketing)
    ON CONFLICT (account, window_name, window_start, generation) DO UPDATE
    SET used = u.used + excluded.used, used_marketing = u.used_marketing + excluded.used_marketing,
        window_end = excluded.window_end, updates = u.updates + 1, generation = (u.updates + 1) / 50;
    IF v_foreign THEN
        INSERT INTO kliv_mail._event (id, at, kind, account, message_id, delivery_id, detail)
        SELECT nextval('kliv_mail._event_id'), v_at, 'failover', p_account, o.message_id, o.id,
               format('goes by the account "%s" instead of "%s", which is in trouble', p_account, kliv_mail._own_account(o.route))
        FROM kliv_mail._outbox AS o WHERE o.id = ANY (v_ids) AND o.epoch = p_epoch AND NOT o.route = ANY (v_own);
    END IF;
END;
$$;

-- The account that mail of this route is of.
CREATE FUNCTION kliv_mail._own_account(p_route text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE WHEN p_route = '' THEN kliv_mail._default_account() ELSE p_route END;
END;

-- recipient_hourly_limit: who had their share of this hour waits for the next
-- one.  Looks at the first p_room of each route and priority; how many it sent there.
CREATE FUNCTION kliv_mail._cap_recipients(p_routes text[], p_dues timestamptz[], p_ids bigint[], p_untils timestamptz[], p_room integer, p_cap integer, at timestamptz,
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
            FROM unnest(p_routes) AS r (route), unnest('{0,1,2}'::smallint[], p_dues, p_ids, p_untils) AS p (priority, due, id, until), LATERAL (
                SELECT o.id, o.recipient, o.priority, o.due FROM kliv_mail._outbox AS o
                WHERE o.origin = kliv_mail._origin() AND o.route = r.route AND o.priority = p.priority
                  AND (o.due, o.id) >= (p.due, p.id) AND o.due <= least(at, p.until) AND o.epoch IS NULL
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
-- already has of some of them; p_rooms: how many it is to have, p_room of the others; p_dues and
-- p_ids: three for each, where in the line to begin, p_untils: and where to end.  An account gets
-- no more than half of what the others leave (of several that have mail each its part), so that one that
-- hangs cannot fill the sender's memory, and one that has nothing gets a mail of any size; so does
-- who looks back, behind whom nobody would look for it, where the account has little.
-- settings changes whenever the account was changed in any way.
CREATE FUNCTION kliv_mail._claim(p_epoch bigint, p_room integer, p_bytes bigint,
                                 p_accounts text[] DEFAULT '{}', p_busy integer[] DEFAULT '{}', p_held bigint[] DEFAULT '{}',
                                 p_rooms integer[] DEFAULT '{}', p_dues timestamptz[] DEFAULT '{}', p_ids bigint[] DEFAULT '{}',
                                 p_untils timestamptz[] DEFAULT '{}')
RETURNS TABLE (id bigint, message_id bigint, recipient text, account text, suppressed text,
               sender text, sender_name text, settings text, expires_at timestamptz, priority smallint, due timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    a record;
BEGIN
    -- Where nothing leaves, nothing stale does.
    IF current_setting('kliv_mail.delivery') <> 'hold' THEN
        PERFORM kliv_mail._replace_rest(kliv_mail._now());
    END IF;
    FOR a IN
        SELECT y.*, count(*) OVER () AS accounts
        FROM (SELECT x.name, coalesce(b.room, p_room) - coalesce(b.busy, 0) AS room, coalesce(b.busy, 0) AS busy, coalesce(b.held, 0) AS held,
                     md5(x::text) AS settings, x AS known, x.route_order, o.own, kliv_mail._routes(x.name, o.own) AS routes,
                     coalesce(nullif(p_dues[3 * b.n - 2 : 3 * b.n], '{}'), '{-infinity,-infinity,-infinity}') AS dues,
                     coalesce(nullif(p_ids[3 * b.n - 2 : 3 * b.n], '{}'), '{0,0,0}') AS ids,
                     coalesce(nullif(p_untils[3 * b.n - 2 : 3 * b.n], '{}'), '{infinity,infinity,infinity}') AS untils
              FROM kliv_mail._accounts() AS x
              LEFT JOIN unnest(p_accounts, p_busy, p_held, p_rooms) WITH ORDINALITY AS b (name, busy, held, room, n) ON b.name = x.name,
                   LATERAL (SELECT kliv_mail._own_routes(x.name) AS own OFFSET 0) AS o
              WHERE x.in_use AND x.problem IS NULL AND coalesce(b.room, p_room) > coalesce(b.busy, 0) OFFSET 0) AS y
        WHERE kliv_mail._anything_waits(y.routes, y.dues, y.ids, y.untils)
        ORDER BY y.busy, y.route_order, y.name
    LOOP
        RETURN QUERY SELECT c.id, c.message_id, c.recipient, a.name, c.suppressed, c.sender, c.sender_name, a.settings, c.expires_at, c.priority, c.due
            FROM kliv_mail._claim_account(p_epoch, a.name, a.room, coalesce(greatest(0, (p_bytes - a.held) / (a.accounts + 1)), 0),
                a.busy = 0 OR p_bytes IS NULL OR 'infinity' <> ALL (a.untils) AND a.held <= p_bytes / 4, a.dues, a.ids, a.known, a.untils,
                a.own, a.routes) AS c;
        EXIT WHEN p_bytes IS NULL AND FOUND;
    END LOOP;
END;
$$;

-- What the sender asks when it is woken, since it may have claimed before a change.
-- connections: no more at once, as its server showed lately; NULL: nothing is known.
CREATE FUNCTION kliv_mail._account_states() RETURNS TABLE (name text, settings text, stopped integer, connections integer)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT x.name, md5(x::text),
        (NOT x.in_use OR x.problem IS NOT NULL OR x.hourly_limit = 0 OR x.daily_limit = 0
         OR EXISTS (SELECT FROM kliv_mail._pause AS p WHERE p.account IN ('', x.name)))::integer,
        (SELECT q.connections FROM kliv_mail._quota AS q WHERE q.account = x.name AND q.connections_until > kliv_mail._now())
    FROM kliv_mail._accounts() AS x;
END;
$$;
