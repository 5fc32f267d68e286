-- Quotas and what else can stop an account: one function, _availability(),
-- that the claim, the views, next due times and send()'s NOTICE all ask.
--
-- Windows are hours and days of the clock of kliv_mail.quota_timezone.  A
-- claim adds to the windows of its time.  What is used "now" is the sum of all
-- stored windows whose range contains now, so that neither a clock set back
-- nor another time zone opens a second window.

-- The share of a window that marketing may fill: at least one, where it may have any.
CREATE FUNCTION kliv_mail._marketing_share(window_limit integer) RETURNS integer
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT greatest((window_limit::bigint * share / 100)::integer, least(window_limit, share, 1))
    FROM (SELECT 100 - current_setting('kliv_mail.reserved_share')::integer AS share) AS s;
END;

-- What lets more of an account's mail leave: a statement to run, where there is one.
-- What is used can be more than a limit that was lowered.
CREATE FUNCTION kliv_mail._higher_limits(p_account text, hour_used integer, day_used integer) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a kliv_mail._account;
    v_cap integer := current_setting('kliv_mail.max_daily_limit')::integer;
    v_most bigint := v_cap - (SELECT coalesce(sum(x.daily_limit), 0) FROM kliv_mail._account AS x WHERE x.name <> p_account);
    v_hourly bigint;
    v_daily bigint;
BEGIN
    SELECT x.* INTO a FROM kliv_mail._account AS x WHERE x.name = p_account;
    IF NOT FOUND THEN
        RETURN 'A provider of your own (kliv_mail.configure_smtp()) has higher limits.';
    END IF;
    IF a.daily_limit = 0 THEN
        v_daily := least(500, v_most);
    ELSIF day_used >= a.daily_limit THEN
        v_daily := least(2::bigint * day_used, v_most);
    END IF;
    IF v_daily <= greatest(a.daily_limit, day_used) THEN
        RETURN format('The database has the %s a day that kliv_mail.max_daily_limit allows; the administrator of the server can raise that.', v_cap);
    END IF;
    IF a.hourly_limit = 0 THEN
        v_hourly := 50;
    ELSIF hour_used >= a.hourly_limit THEN
        v_hourly := least(2::bigint * hour_used, coalesce(v_daily, a.daily_limit));
    END IF;
    RETURN format('SELECT * FROM kliv_mail.set_limits(%s, account => %L); raises the limit, if the provider allows as much.',
        concat_ws(', ', 'hourly_limit => ' || v_hourly, 'daily_limit => ' || v_daily), p_account);
END;
$$;

-- May mail of an account leave now, and if not, why and until when?
-- blocked_until: NULL = it may; infinity = until somebody calls something.
-- An exhausted quota is not a block here: remaining says it.
CREATE FUNCTION kliv_mail._availability(
    p_account text, at timestamptz,
    OUT hour_limit integer, OUT day_limit integer,
    OUT hour_start timestamptz, OUT hour_end timestamptz, OUT hour_used integer,
    OUT day_start timestamptz, OUT day_end timestamptz, OUT day_used integer,
    OUT remaining integer, OUT remaining_marketing integer,
    OUT hour_open_at timestamptz,       -- when a window opens anew in which something is left
    OUT day_open_at timestamptz,
    OUT blocked_until timestamptz, OUT held_by text, OUT reason text, OUT hint text,
    OUT probe_room integer)             -- NULL: no trouble; after one a single delivery tries: 1, or 0 while it does
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a record;
    q record;
    p record;
    zone text;
BEGIN
    SELECT * INTO a FROM kliv_mail._accounts() AS x WHERE x.name = p_account;
    zone := current_setting('kliv_mail.quota_timezone');
    hour_start := date_trunc('hour', at, zone);
    hour_end := hour_start + interval '1 hour';
    -- A day has 23 or 25 hours where the zone changes its clocks.
    day_start := date_trunc('day', at, zone);
    day_end := ((day_start AT TIME ZONE zone) + interval '1 day') AT TIME ZONE zone;
    hour_limit := coalesce(a.hourly_limit, 0);
    day_limit := coalesce(a.daily_limit, 0);
    SELECT coalesce(sum(u.used) FILTER (WHERE u.window_name = 'hour'), 0),
           coalesce(sum(u.used) FILTER (WHERE u.window_name = 'day'), 0),
           coalesce(max(u.window_end) FILTER (WHERE u.window_name = 'hour' AND u.used > 0), hour_end),
           coalesce(max(u.window_end) FILTER (WHERE u.window_name = 'day' AND u.used > 0), day_end)
    INTO hour_used, day_used, hour_open_at, day_open_at
    FROM kliv_mail._usage AS u
    WHERE u.account = p_account AND u.window_start <= at AND u.window_end > at;
    remaining := greatest(0, least(hour_limit - hour_used, day_limit - day_used));
    remaining_marketing := greatest(0, least(kliv_mail._marketing_share(hour_limit) - hour_used,
                                             kliv_mail._marketing_share(day_limit) - day_used));

    -- The order is that of what an administrator has to do first.
    IF EXISTS (SELECT FROM kliv_mail._state AS s WHERE s.origin <> kliv_mail._origin()) THEN
        blocked_until := 'infinity';
        held_by := 'restore';
        reason := 'this database is a copy of another one, and a copy sends nothing until it is told to';
        hint := 'SELECT kliv_mail.resume(); releases the mail, if this copy is the one that shall send it.';
    ELSIF current_setting('kliv_mail.delivery') = 'hold' THEN
        blocked_until := 'infinity';
        held_by := 'paused';
        reason := 'the setting kliv_mail.delivery is hold';
        hint := format('ALTER DATABASE %I RESET kliv_mail.delivery; releases the mail.', current_database());
    ELSE
        SELECT * INTO p FROM kliv_mail._pause AS x WHERE x.account IN ('', p_account) ORDER BY x.account LIMIT 1;
        IF FOUND THEN
            blocked_until := 'infinity';
            held_by := 'paused';
            reason := CASE WHEN p.account = '' THEN 'all mail' ELSE format('the account "%s"', p_account) END
                || format(' is paused by %s', p.paused_by) || coalesce(': ' || p.reason, '');
            hint := CASE WHEN p.account = '' THEN 'SELECT kliv_mail.resume(); releases it.'
                         ELSE format('SELECT kliv_mail.resume(%L); releases it.', p_account) END;
        ELSIF a.name IS NULL OR NOT a.in_use THEN
            blocked_until := 'infinity';
            held_by := 'account';
            reason := format('the account "%s" is not in use', p_account);
            hint := format('SELECT * FROM kliv_mail.configure_smtp(password => ''its password'', account => %L); puts it in use again.', p_account);
        ELSIF a.problem IS NOT NULL THEN
            blocked_until := 'infinity';
            held_by := CASE WHEN a.own THEN 'restore' ELSE 'account' END;   -- own: a copy's account
            reason := a.problem;
            hint := a.hint;
        ELSE
            SELECT * INTO q FROM kliv_mail._quota AS x WHERE x.account = p_account;
            -- A hold is about the settings that it was met with.
            IF q.held_until IS NOT NULL AND q.fingerprint IS NOT DISTINCT FROM a.fingerprint THEN
                IF q.failures > 0 THEN
                    probe_room := 1 - EXISTS (SELECT FROM kliv_mail._outbox AS o WHERE o.id = q.probe AND o.epoch IS NOT NULL)::integer;
                END IF;
                IF q.held_until > at THEN
                    blocked_until := q.held_until;
                    held_by := q.held_by;
                    reason := q.held_reason;
                    hint := q.held_hint;
                END IF;
            END IF;
        END IF;
    END IF;
    IF held_by IS NULL AND remaining = 0 THEN
        held_by := 'quota';
        IF hour_limit = 0 OR day_limit = 0 THEN
            reason := format('the limit of the account "%s" is 0', p_account);
            hint := CASE WHEN a.own THEN kliv_mail._higher_limits(p_account, hour_used, day_used)
                         ELSE 'The administrator of the server sets kliv_mail.platform_hourly_limit and kliv_mail.platform_daily_limit; '
                              || kliv_mail._higher_limits(p_account, hour_used, day_used) END;
        ELSIF day_used >= day_limit THEN
            reason := format('the account "%s" has used its %s recipients of this day', p_account, day_limit)
                || CASE WHEN day_used > day_limit THEN format(', and %s more', day_used - day_limit) ELSE '' END;
        ELSE
            reason := format('the account "%s" has used its %s recipients of this hour', p_account, hour_limit)
                || CASE WHEN hour_used > hour_limit THEN format(', and %s more', hour_used - hour_limit) ELSE '' END;
        END IF;
        hint := coalesce(hint, 'It goes out by itself when the next window opens. '
                               || kliv_mail._higher_limits(p_account, hour_used, day_used));
    END IF;
END;
$$;

-- The times at which the p_from-th to the p_to-th recipient from now (1 is the
-- first) fit into an account's windows.  Arithmetic, so that ten thousand in
-- line cost nothing much; what stands in later windows than the present ones
-- is not there yet.  The end of a time zone's odd day may be an hour off.
CREATE FUNCTION kliv_mail._slot_times(
    p_from bigint, p_to bigint, at timestamptz, hour_limit integer, day_limit integer,
    hour_used integer, hour_open_at timestamptz, day_used integer, day_open_at timestamptz)
RETURNS TABLE (n bigint, slot timestamptz)
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp ROWS 10000
BEGIN ATOMIC
    SELECT k.n,
           CASE WHEN k.n <= w.here THEN at
                WHEN k.n <= w.here + w.today THEN hour_open_at + ((k.n - w.here - 1) / hour_limit) * interval '1 hour'
                ELSE (((day_open_at AT TIME ZONE w.zone) + ((k.n - w.here - w.today - 1) / w.per_day) * interval '1 day') AT TIME ZONE w.zone)
                     + (((k.n - w.here - w.today - 1) % w.per_day) / hour_limit) * interval '1 hour' END
    FROM (SELECT y.here, y.zone, least(day_limit::bigint, 24::bigint * hour_limit) AS per_day,
                 -- the later hours of the present day
                 least(greatest(0, day_limit - day_used - y.here),
                       greatest(0, ceil(extract(epoch FROM day_open_at - hour_open_at) / 3600))::bigint * hour_limit) AS today
          FROM (SELECT greatest(0, least(hour_limit - hour_used, day_limit - day_used))::bigint AS here,
                       current_setting('kliv_mail.quota_timezone') AS zone) AS y) AS w,
         generate_series(p_from, p_to) AS k (n)
    WHERE hour_limit > 0 AND day_limit > 0;
END;
