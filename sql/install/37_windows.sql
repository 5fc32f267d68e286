-- Windows of quotas, and what is used of them: who looks for the rows of _usage that count now.

-- The moment at which a local day begins: the first one, where midnight comes
-- twice since the clocks go back then (the Azores, Havana).
CREATE FUNCTION kliv_mail._midnight(day timestamp, zone text) RETURNS timestamptz
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := day AT TIME ZONE zone;
BEGIN
    RETURN CASE WHEN (v_at - interval '1 hour') AT TIME ZONE zone = day THEN v_at - interval '1 hour' ELSE v_at END;
END;
$$;

-- The rows that count at a moment: of the window that begins at p_start, and of others that contain
-- the moment, which another clock or another quota_timezone has left.  No window is longer than 26
-- hours (Troll's, by two).  The newest generation of the present window is found first, and what a held snapshot keeps
-- of those before it is not looked at: it grows by what each claim counts.
CREATE FUNCTION kliv_mail._windows(p_account text, p_window_name text, p_start timestamptz, at timestamptz)
RETURNS TABLE (window_name text, window_end timestamptz, used integer, generation integer)
LANGUAGE sql STABLE
BEGIN ATOMIC
    -- The planner puts it into what calls it.
    -- (One that another zone had ended by now is the present one's, too.)
    (SELECT u.window_name, CASE WHEN u.window_end > at THEN u.window_end END, u.used, u.generation FROM kliv_mail._usage AS u
     WHERE u.account = p_account AND u.window_name = p_window_name AND u.window_start = p_start
     ORDER BY u.generation DESC LIMIT 1)
    UNION ALL
    SELECT u.window_name, u.window_end, u.used, 0 FROM kliv_mail._usage AS u
    WHERE u.account = p_account AND u.window_name = p_window_name AND u.window_start > p_start AND u.window_start <= at AND u.window_end > at
    UNION ALL
    SELECT u.window_name, u.window_end, u.used, 0 FROM kliv_mail._usage AS u
    WHERE u.account = p_account AND u.window_name = p_window_name AND u.window_end > at
      AND u.window_start < p_start AND u.window_start > at - CASE p_window_name WHEN 'hour' THEN interval '1 hour' ELSE interval '26 hours' END;
END;

-- Where the provider counts the last 24 hours: what they have used, and when
-- room for one more comes (marketing leaves its share free).
CREATE FUNCTION kliv_mail._last_24_hours(p_account text, at timestamptz, p_limit integer,
    OUT used integer, OUT opens_at timestamptz, OUT marketing_opens_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT coalesce(max(w.total), 0),
           CASE WHEN max(w.total) >= p_limit THEN min(w.leaves_at) FILTER (WHERE w.rest < p_limit) END,
           CASE WHEN max(w.total) >= kliv_mail._marketing_share(p_limit)
                THEN min(w.leaves_at) FILTER (WHERE w.rest < kliv_mail._marketing_share(p_limit)) END
    INTO used, opens_at, marketing_opens_at
    FROM (SELECT u.window_end + interval '24 hours' AS leaves_at, sum(u.used) OVER () AS total,
                 sum(u.used) OVER () - sum(u.used) OVER (ORDER BY u.window_end) AS rest
          FROM kliv_mail._usage AS u
          WHERE u.account = p_account AND u.window_name = 'hour' AND u.window_end > at - interval '24 hours' AND u.window_start <= at) AS w;
END;
$$;
