-- Quotas and what else can stop an account: one function, _availability(),
-- that the claim, the views, next due times and send()'s NOTICE all ask.
--
-- Windows are hours and days of the clock of kliv_mail.quota_timezone.  A
-- claim adds to the windows of its time.  What is used "now" is the sum of all
-- stored windows whose range contains now, so that neither a clock set back
-- nor another time zone opens a second window.  Where the provider counts the
-- last 24 hours, the hours that reach into them are a third window, one hour
-- too long rather than too short.  The own accounts of a database together use
-- no more than kliv_mail.max_daily_limit a day, whatever their limits were.

-- The share of a window that marketing may fill: at least one, where it may have any.
CREATE FUNCTION kliv_mail._marketing_share(window_limit integer) RETURNS integer
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    -- Without FROM, so that the planner puts it into what calls it.
    SELECT greatest((window_limit::bigint * (100 - current_setting('kliv_mail.reserved_share')::integer) / 100)::integer,
                    least(window_limit, 100 - current_setting('kliv_mail.reserved_share')::integer, 1));
END;

-- The statement that lets more of an account's mail leave than what is used, or why there is none.
-- What is used can be more than a limit that was lowered.
CREATE FUNCTION kliv_mail._higher_limits(p_account text, hour_used integer, day_used integer, p_others bigint) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a kliv_mail._account;
    v_cap integer := current_setting('kliv_mail.max_daily_limit')::integer;
    v_most bigint := v_cap - greatest(p_others, (SELECT coalesce(sum(x.daily_limit), 0) FROM kliv_mail._snapshot_rows(NULL::kliv_mail._account) AS x WHERE x.name <> p_account));
    v_hourly bigint;
    v_daily bigint;
BEGIN
    SELECT x.* INTO a FROM kliv_mail._snapshot_rows(NULL::kliv_mail._account, '_account_pkey', NULL, p_account) AS x;
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
    RETURN format('SELECT * FROM kliv_mail.set_limits(%s, account => %L); raises the limit above what is used, if the provider allows as much.',
        concat_ws(', ', 'hourly_limit => ' || v_hourly, 'daily_limit => ' || v_daily), p_account);
END;
$$;

-- What to do about a hold: the hint that came with the reply, with the statement
-- for the account in question.  What stands in the server's configuration no
-- statement of ours changes.
CREATE FUNCTION kliv_mail._cure_of_hold(p_account text, p_own boolean, p_provider text, p_held_by text, p_reason text, p_hint text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_change text := format('SELECT * FROM kliv_mail.update_sender(from_address => ''the verified address'', account => %L);', p_account);
BEGIN
    RETURN CASE
        WHEN p_held_by = 'key' THEN p_hint
        WHEN NOT p_own AND strpos(p_hint, 'configure_smtp') > 0
            THEN 'The administrator of the server corrects kliv_mail.platform_username and the file that kliv_mail.platform_password_file names.'
        WHEN strpos(p_hint, 'SELECT ') > 0
            -- A password of Amazon SES belongs to a user name of its own.
            THEN CASE p_provider WHEN 'ses' THEN replace(p_hint, 'password => ''the new one''', 'username => ''the new user name'', password => ''the new one''')
                                 ELSE p_hint END
        WHEN p_own AND strpos(p_hint, 'kliv_mail.update_sender(from_address => ...).') > 0
            THEN replace(p_hint, 'kliv_mail.update_sender(from_address => ...).', v_change)
        WHEN p_own AND strpos(p_reason, 'sender address') > 0 THEN concat_ws(' Or choose another: ', p_hint, v_change)
        -- (a test that succeeds ends it)
        ELSE concat_ws(' ', replace(p_hint, 'kliv_mail.test_smtp() shows more.', ''),
                       format('SELECT * FROM kliv_mail.test_smtp(account => %L); shows more, and ends the wait when it succeeds.', p_account)) END;
END;
$$;

CREATE FUNCTION kliv_mail._code_of_hold(held_by text) RETURNS text
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC SELECT CASE held_by WHEN 'quota' THEN 'provider_limit' WHEN 'key' THEN 'key_missing' ELSE 'account_trouble' END; END;

-- May mail of an account leave now, and if not, why and until when?
-- blocked_until: NULL = it may; infinity = until somebody calls something.
-- An exhausted quota is not a block here: remaining says it.
-- p_known: the account, where the caller has looked at it a moment before.
CREATE FUNCTION kliv_mail._availability(
    p_account text, at timestamptz, p_known kliv_mail._known_account DEFAULT NULL,
    OUT hour_limit integer, OUT day_limit integer,
    OUT hour_start timestamptz, OUT hour_end timestamptz, OUT hour_used integer,
    OUT day_start timestamptz, OUT day_end timestamptz, OUT day_used integer,
    OUT remaining integer, OUT remaining_marketing integer,
    OUT hour_open_at timestamptz,       -- when a window opens anew in which something is left
    OUT day_open_at timestamptz,
    OUT blocked_until timestamptz, OUT held_by text, OUT reason text, OUT hint text,
    OUT probe_room integer,             -- NULL: no trouble; after one a single delivery tries: 1, or 0 while it does
    OUT code text,                      -- of the reason
    OUT rolling_limit integer,          -- of the last 24 hours; NULL: the provider has no such rule
    OUT rolling_used integer,
    OUT day_room integer,               -- of this day, also by kliv_mail.max_daily_limit for all own accounts
    OUT shares_room boolean,            -- the own accounts could together claim more than that leaves
    OUT opens_at timestamptz,           -- when all windows have room: now, if they have
    OUT marketing_opens_at timestamptz,
    OUT hour_generation integer,        -- of the present windows' rows in _usage
    OUT day_generation integer,
    OUT marketing_reason text)          -- what stops marketing mail alone, until resume()
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a kliv_mail._known_account := p_known;
    q record;
    p record;
    r record;
    zone text;
    v_day timestamp;
    v_cap integer := current_setting('kliv_mail.max_daily_limit')::integer;
    v_all bigint := 0;                  -- that the own accounts have used today
    v_claimable bigint;
    v_others bigint := 0;
BEGIN
    IF a.name IS NULL THEN
        SELECT * INTO a FROM kliv_mail._accounts() AS x WHERE x.name = p_account;
    END IF;
    zone := current_setting('kliv_mail.quota_timezone');
    hour_start := date_trunc('hour', at, zone);
    hour_end := hour_start + interval '1 hour';
    -- A day has 22 to 26 hours where the zone changes its clocks.
    v_day := date_trunc('day', at AT TIME ZONE zone);
    day_start := kliv_mail._midnight(v_day, zone);
    day_end := kliv_mail._midnight(v_day + interval '1 day', zone);
    hour_limit := coalesce(a.hourly_limit, 0);
    day_limit := coalesce(a.daily_limit, 0);
    rolling_limit := a.rolling_limit;
    SELECT coalesce(sum(u.used) FILTER (WHERE u.window_name = 'hour'), 0),
           coalesce(sum(u.used) FILTER (WHERE u.window_name = 'day'), 0),
           coalesce(max(u.window_end) FILTER (WHERE u.window_name = 'hour' AND u.used > 0), hour_end),
           coalesce(max(u.window_end) FILTER (WHERE u.window_name = 'day' AND u.used > 0), day_end),
           coalesce(max(u.generation) FILTER (WHERE u.window_name = 'hour'), 0),
           coalesce(max(u.generation) FILTER (WHERE u.window_name = 'day'), 0)
    INTO hour_used, day_used, hour_open_at, day_open_at, hour_generation, day_generation
    FROM (VALUES ('hour', hour_start), ('day', day_start)) AS w (window_name, window_start),
         kliv_mail._windows(p_account, w.window_name, w.window_start, at) AS u;
    day_room := greatest(0, day_limit - day_used);
    shares_room := false;
    IF a.own THEN
        -- An account's limit can have been lowered below what it used, and another's raised by as much.
        SELECT sum(x.used), sum(greatest(0, x.daily_limit - x.used)) INTO v_all, v_claimable
        FROM (SELECT o.daily_limit, coalesce((SELECT sum(u.used) FROM kliv_mail._windows(o.name, 'day', day_start, at) AS u), 0) AS used
              FROM kliv_mail._snapshot_rows(NULL::kliv_mail._account) AS o) AS x;
        v_others := v_all - day_used;
        shares_room := v_all + v_claimable > v_cap;
        day_room := least(day_room, greatest(0, v_cap - v_all));
    END IF;
    remaining := least(greatest(0, hour_limit - hour_used), day_room);
    remaining_marketing := greatest(0, least(kliv_mail._marketing_share(hour_limit) - hour_used,
                                             kliv_mail._marketing_share(day_limit) - day_used, day_room));
    opens_at := greatest(at, CASE WHEN hour_used >= hour_limit THEN hour_open_at END, CASE WHEN day_room = 0 THEN day_open_at END);
    marketing_opens_at := greatest(opens_at,
        CASE WHEN hour_used >= kliv_mail._marketing_share(hour_limit) THEN hour_open_at END,
        CASE WHEN day_used >= kliv_mail._marketing_share(day_limit) THEN day_open_at END);
    IF rolling_limit IS NOT NULL THEN
        SELECT * INTO r FROM kliv_mail._last_24_hours(p_account, at, rolling_limit);
        rolling_used := r.used;
        remaining := least(remaining, greatest(0, rolling_limit - rolling_used));
        remaining_marketing := least(remaining_marketing, greatest(0, kliv_mail._marketing_share(rolling_limit) - rolling_used));
        opens_at := greatest(opens_at, r.opens_at);
        marketing_opens_at := greatest(marketing_opens_at, r.opens_at, r.marketing_opens_at);
    END IF;

    -- The order is that of what an administrator has to do first.
    IF EXISTS (SELECT FROM kliv_mail._snapshot_rows(NULL::kliv_mail._state) AS s WHERE s.origin <> kliv_mail._origin()) THEN
        blocked_until := 'infinity';
        held_by := 'restore';
        code := 'copy';
        reason := 'this database is a copy of another one, and a copy sends nothing until it is told to';
        hint := 'SELECT kliv_mail.resume(); releases the mail, if this copy is the one that shall send it.';
    ELSIF current_setting('kliv_mail.delivery') = 'hold' THEN
        blocked_until := 'infinity';
        held_by := 'paused';
        code := 'delivery_hold';
        reason := 'the setting kliv_mail.delivery is hold';
        hint := format('ALTER DATABASE %I RESET kliv_mail.delivery; releases the mail.', current_database());
    ELSE
        SELECT * INTO p FROM kliv_mail._snapshot_rows(NULL::kliv_mail._pause) AS x WHERE x.account IN ('', p_account) ORDER BY x.account LIMIT 1;
        IF FOUND THEN
            blocked_until := 'infinity';
            held_by := 'paused';
            code := CASE WHEN p.account = '' THEN 'paused' ELSE 'account_paused' END;
            reason := CASE WHEN p.account = '' THEN 'all mail' ELSE format('the account "%s"', p_account) END
                || format(' is paused by %s', p.paused_by) || coalesce(': ' || p.reason, '');
            hint := CASE WHEN p.account = '' THEN 'SELECT kliv_mail.resume(); releases it.'
                         ELSE format('SELECT kliv_mail.resume(%L); releases it.', p_account) END;
        ELSIF a.name IS NULL OR NOT a.in_use THEN
            blocked_until := 'infinity';
            held_by := 'account';
            code := 'account_not_in_use';
            reason := format('the account "%s" is not in use', p_account);
            hint := format('SELECT * FROM kliv_mail.configure_smtp(password => ''its password'', account => %L); puts it in use again.', p_account);
        ELSIF a.problem IS NOT NULL THEN
            blocked_until := 'infinity';
            held_by := CASE WHEN a.own THEN 'restore' ELSE 'account' END;   -- own: a copy's account
            code := CASE WHEN a.own THEN 'account_copy' ELSE 'platform_not_configured' END;
            reason := a.problem;
            hint := a.hint;
        ELSE
            SELECT * INTO q FROM kliv_mail._quota AS x WHERE x.account = p_account;
            -- A hold is about the settings that it was met with.
            IF q.fingerprint IS NOT DISTINCT FROM a.fingerprint THEN
                IF q.failures > 0 OR q.suspects <> '{}' THEN
                    probe_room := 1 - EXISTS (SELECT FROM kliv_mail._snapshot_rows(NULL::kliv_mail._outbox, '_outbox_pkey', NULL, q.probe::text) AS o WHERE o.epoch IS NOT NULL)::integer;
                END IF;
                -- One that began in the future, or reaches further ahead than any does, was written by a clock that was ahead.
                IF q.held_until > at AND q.held_until <= at + kliv_mail._longest_hold() AND coalesce(q.held_since <= at + interval '1 minute', true) THEN
                    blocked_until := q.held_until;
                    held_by := q.held_by;
                    code := kliv_mail._code_of_hold(q.held_by);
                    reason := q.held_reason;
                    hint := kliv_mail._cure_of_hold(p_account, a.own, a.provider, q.held_by, q.held_reason, q.held_hint);
                END IF;
            END IF;
        END IF;
    END IF;
    IF pg_relation_size('kliv_mail._reputation') > 0 THEN
        marketing_reason := (SELECT 'marketing mail is paused: ' || x.reason
                             FROM kliv_mail._snapshot_rows(NULL::kliv_mail._reputation, '_reputation_pkey', NULL, p_account) AS x WHERE x.stage = 'paused');
        IF marketing_reason IS NOT NULL THEN
            remaining_marketing := 0;
            marketing_opens_at := 'infinity';
        END IF;
    END IF;
    IF held_by IS NULL AND remaining = 0 THEN
        held_by := 'quota';
        IF hour_limit = 0 OR day_limit = 0 THEN
            code := 'limit_zero';
            reason := format('the limit of the account "%s" is 0', p_account);
            hint := CASE WHEN NOT a.own THEN 'The administrator of the server sets kliv_mail.platform_hourly_limit and kliv_mail.platform_daily_limit; ' ELSE '' END
                || kliv_mail._higher_limits(p_account, hour_used, day_used, v_others);
        ELSIF day_used >= day_limit THEN
            code := 'day_used';
            reason := kliv_mail._used_up(p_account, day_used, day_limit, 'this day');
        ELSIF day_room = 0 THEN
            code := 'database_day_used';
            reason := format('the accounts of this database have used %s recipients of this day, and kliv_mail.max_daily_limit is %s', v_all, v_cap);
            hint := 'It goes out by itself when the next day begins. The administrator of the server can raise kliv_mail.max_daily_limit.';
        ELSIF rolling_used >= rolling_limit THEN
            code := 'rolling_used';
            reason := kliv_mail._used_up(p_account, rolling_used, rolling_limit, 'the last 24 hours, which is how its provider counts');
            hint := 'It goes out by itself when the first of these hours is 24 hours ago.';
        ELSE
            code := 'hour_used';
            reason := kliv_mail._used_up(p_account, hour_used, hour_limit, 'this hour');
        END IF;
        hint := coalesce(hint, 'It goes out by itself when the next window opens. '
                               || kliv_mail._higher_limits(p_account, hour_used, day_used, v_others));
    END IF;
END;
$$;

CREATE FUNCTION kliv_mail._used_up(p_account text, used integer, window_limit integer, window_words text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE WHEN used > window_limit
                THEN format('the account "%s" has used %s recipient%s of %s, and its limit is now %s', p_account, used, CASE WHEN used > 1 THEN 's' END, window_words, window_limit)
                ELSE format('the account "%s" has used its %s recipient%s of %s', p_account, window_limit, CASE WHEN window_limit > 1 THEN 's' END, window_words) END;
END;
$$;

-- No reply asks for more than a day, and a day of a zone that sets its clocks back has 26 hours at most.
CREATE FUNCTION kliv_mail._longest_hold() RETURNS interval
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT interval '26 hours';
END;
