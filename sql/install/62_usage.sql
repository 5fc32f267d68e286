-- The view usage: each account's windows.

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
        FOR window_name, window_start, used, quota, remaining, resets_at IN
            SELECT * FROM (VALUES ('hour', v.hour_start, v.hour_used, v.hour_limit, greatest(0, v.hour_limit - v.hour_used), v.hour_open_at),
                                  ('day', v.day_start, v.day_used, v.day_limit, v.day_room, v.day_open_at)) AS w LOOP
            -- After a change of quota_timezone the window that still counts may be one of the former zone.
            window_start := coalesce((SELECT min(u.window_start) FROM kliv_mail._usage AS u
                                      WHERE u.account = _usage_now.account AND u.window_name = _usage_now.window_name AND u.window_end = resets_at
                                        AND u.window_start <= v_at AND u.used > 0), window_start);
            remaining_marketing := least(remaining, greatest(0, kliv_mail._marketing_share(quota) - used));
            RETURN NEXT;
        END LOOP;
        IF v.rolling_limit IS NOT NULL THEN
            window_name := '24 hours';
            used := v.rolling_used;
            quota := v.rolling_limit;
            remaining := greatest(0, quota - used);
            remaining_marketing := greatest(0, kliv_mail._marketing_share(quota) - used);
            -- From the first hour that counts until it does no longer.
            SELECT min(u.window_start), min(u.window_end) + interval '24 hours' INTO window_start, resets_at
            FROM kliv_mail._usage AS u
            WHERE u.account = _usage_now.account AND u.window_name = 'hour' AND u.used > 0
              AND u.window_end > v_at - interval '24 hours' AND u.window_start <= v_at;
            window_start := coalesce(window_start, v.hour_start);
            resets_at := coalesce(resets_at, v.hour_end + interval '24 hours');
            RETURN NEXT;
        END IF;
    END LOOP;
END;
$$;

CREATE VIEW kliv_mail.usage AS
    SELECT u.account, u.window_name, u.window_start, u.used, u.quota, u.remaining, u.remaining_marketing, u.resets_at, u.queued
    FROM kliv_mail._usage_now() AS u;
COMMENT ON VIEW kliv_mail.usage IS 'What each account has used of its quota in the present hour and day, and where its provider counts so in the last 24 hours, and what waits for it.';
COMMENT ON COLUMN kliv_mail.usage.account IS 'The account''s name.';
COMMENT ON COLUMN kliv_mail.usage.window_name IS 'hour or day, of the clock of kliv_mail.quota_timezone; or 24 hours, for an account whose provider counts the last 24 hours (Gmail, Amazon SES).';
COMMENT ON COLUMN kliv_mail.usage.window_start IS 'When the present window began; 24 hours: the first hour in which something was used. After a change of kliv_mail.quota_timezone: the last window of the former zone, as long as what was used in it counts.';
COMMENT ON COLUMN kliv_mail.usage.used IS 'Recipients counted now: sent, being sent or in doubt, in every window that contains the present.';
COMMENT ON COLUMN kliv_mail.usage.quota IS 'Recipients that it may have.';
COMMENT ON COLUMN kliv_mail.usage.remaining IS 'Recipients that the window has room for; every window must have some for one to leave. day: also by what kliv_mail.max_daily_limit leaves to this account.';
COMMENT ON COLUMN kliv_mail.usage.remaining_marketing IS 'Of these, what marketing mail may use (kliv_mail.reserved_share stays free).';
COMMENT ON COLUMN kliv_mail.usage.resets_at IS 'When the window ends and the next opens; 24 hours: when its first hour counts no longer.';
COMMENT ON COLUMN kliv_mail.usage.queued IS 'Deliveries that wait for this account.';
