-- When the deliveries that wait go out by quota and hold, and what stops each account now.

-- An account's claims played forward (src/functions/estimates.c).  dues: those of
-- system mail, then transactional, then marketing, each in order; counts: of each.
-- Limits, what is used: of hour, day and the last 24 hours (-1: no such rule);
-- ends: of hour and day, and of any hour.  NULL: never.
CREATE FUNCTION kliv_mail._leave_times(
    dues timestamptz[], counts integer[], start timestamptz, zone text, limits integer[], marketing_limits integer[], used integer[],
    ends timestamptz[], past_ends timestamptz[], past_used integer[]) RETURNS timestamptz[]
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'kliv_mail__leave_times';

-- The first 10,000 in the line of each account that may send at all; those that
-- are due stand before those that are scheduled.  (Here and below: the
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
    l record;
    h record;
BEGIN
    FOR a IN SELECT x.name FROM kliv_mail._accounts() AS x WHERE x.in_use AND x.problem IS NULL LOOP
        SELECT * INTO v FROM kliv_mail._availability(a.name, v_at);
        CONTINUE WHEN v.blocked_until = 'infinity' OR v.hour_limit = 0 OR v.day_limit = 0;
        v_start := greatest(v_at, coalesce(v.blocked_until, v_at));
        v_routes := kliv_mail._own_routes(a.name);
        SELECT array_agg(c.id ORDER BY c.priority, c.due, c.id) AS ids, array_agg(c.message_id ORDER BY c.priority, c.due, c.id) AS messages,
               array_agg(c.due ORDER BY c.priority, c.due, c.id) AS dues,
               ARRAY[count(*) FILTER (WHERE c.priority = 0), count(*) FILTER (WHERE c.priority = 1), count(*) FILTER (WHERE c.priority = 2)]::integer[] AS counts
        INTO l
        FROM (SELECT o.id, o.message_id, p.priority, o.due
              FROM unnest(v_routes) AS r (route), unnest(ARRAY[0, 1, 2]::smallint[]) AS p (priority), LATERAL (
                  SELECT o.id, o.message_id, o.due FROM kliv_mail._outbox AS o
                  WHERE o.origin = v_origin AND o.route = r.route AND o.priority = p.priority
                    AND o.epoch IS NULL AND o.due < 'infinity'
                  ORDER BY o.due, o.id LIMIT 10000) AS o
              ORDER BY greatest(o.due, v_start), p.priority, o.due, o.id LIMIT 10000) AS c;
        CONTINUE WHEN l.ids IS NULL;
        SELECT coalesce(array_agg(u.window_end ORDER BY u.window_end), '{}') AS ends, coalesce(array_agg(u.used ORDER BY u.window_end), '{}') AS used
        INTO h FROM kliv_mail._usage AS u
        WHERE v.rolling_limit IS NOT NULL AND u.account = a.name AND u.window_name = 'hour'
          AND u.window_end > v_at - interval '24 hours' AND u.window_start <= v_at;
        RETURN QUERY
            SELECT t.id, a.name::text, greatest(v_start, t.leaves_at)
            FROM unnest(l.ids, l.messages, kliv_mail._leave_times(l.dues, l.counts, v_start, current_setting('kliv_mail.quota_timezone'),
                     ARRAY[v.hour_limit, v.day_limit, coalesce(v.rolling_limit, -1)],
                     ARRAY[CASE WHEN v.marketing_reason IS NULL THEN kliv_mail._marketing_share(v.hour_limit) ELSE 0 END, kliv_mail._marketing_share(v.day_limit),
                           coalesce(kliv_mail._marketing_share(v.rolling_limit), -1)],
                     -- Today by what is left of it, which other accounts have their share of.
                     ARRAY[v.hour_used, v.day_limit - v.day_room, coalesce(v.rolling_used, 0)],
                     ARRAY[v.hour_open_at, v.day_open_at, v.hour_end], h.ends, h.used)) AS t (id, message_id, leaves_at)
            WHERE v_all OR EXISTS (
                SELECT FROM kliv_mail._message AS m
                WHERE m.id = t.message_id AND pg_has_role(p_caller, to_regrole(quote_ident(m.sender_role))::oid, 'MEMBER'));
    END LOOP;
END;
$$;

-- Of all that wait, those that the caller may see: who reads a view calls what
-- stands in it.  C, which knows the caller; SECURITY DEFINER would forget it.
CREATE FUNCTION kliv_mail._line() RETURNS TABLE (id bigint, account text, estimated_send_at timestamptz)
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'kliv_mail__line';

-- For those behind them: the end of the line, by the table's own count of its
-- rows as the planner has it, and whole days.
CREATE FUNCTION kliv_mail._line_end() RETURNS TABLE (account text, estimated_send_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp ROWS 5
BEGIN ATOMIC
    SELECT a.name, greatest(v.opens_at, v.blocked_until)
        + (o.n / least(v.day_limit, 24::bigint * v.hour_limit, v.rolling_limit)) * interval '1 day'
    FROM kliv_mail._accounts() AS a
    CROSS JOIN LATERAL kliv_mail._availability(a.name, kliv_mail._now()) AS v
    CROSS JOIN (SELECT greatest(c.reltuples, 10000)::bigint AS n FROM pg_class AS c WHERE c.oid = 'kliv_mail._outbox'::regclass) AS o
    WHERE a.in_use AND a.problem IS NULL AND v.blocked_until IS DISTINCT FROM 'infinity' AND v.hour_limit > 0 AND v.day_limit > 0;
END;

-- What stops each account now.
CREATE FUNCTION kliv_mail._account_holds()
RETURNS TABLE (account text, held_by text, blocked_until timestamptz, code text, reason text, hint text, remaining integer, remaining_marketing integer,
    opens_at timestamptz, marketing_reason text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp ROWS 5
BEGIN ATOMIC
    SELECT a.name, v.held_by, v.blocked_until, v.code, v.reason, v.hint, v.remaining, v.remaining_marketing, v.opens_at, v.marketing_reason
    FROM kliv_mail._accounts() AS a CROSS JOIN LATERAL kliv_mail._availability(a.name, kliv_mail._now()) AS v;
END;
