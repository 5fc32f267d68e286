-- Pages of the administrator: overview, events, health.

-- How a status looks: good, waiting, bad or off.
CREATE FUNCTION kliv_mail._door_tone(p_status text) RETURNS text
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT CASE WHEN p_status IN ('ok', 'sent', 'delivered') THEN 'good'
        WHEN p_status IN ('scheduled', 'queued', 'sending') THEN 'calm'
        WHEN p_status IN ('deferred', 'in_doubt', 'partial', 'untested', 'paused', 'held', 'copy') THEN 'wait'
        WHEN p_status IN ('cancelled', 'suppressed', 'reset', 'expired') THEN 'off'
        ELSE 'bad' END;
END;

-- A status as pages show it: {"name", "tone"}.
CREATE FUNCTION kliv_mail._door_status(p_texts jsonb, p_status text) RETURNS jsonb
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT jsonb_build_object('name', coalesce(p_texts ->> ('status_' || replace(p_status, ' ', '_')), p_status), 'tone', kliv_mail._door_tone(p_status));
END;

-- A window as a bar: how full it is.
CREATE FUNCTION kliv_mail._door_window(p_used integer, p_quota integer, p_resets_at timestamptz) RETURNS jsonb
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT jsonb_build_object('used', p_used, 'quota', p_quota, 'most', greatest(p_quota, 1), 'shown', least(p_used, greatest(p_quota, 1)),
        'remaining', greatest(0, p_quota - p_used), 'resets_at', kliv_mail._door_time(p_resets_at), 'full', p_used >= p_quota);
END;

-- The figures of the overview, each by an index and none of them over all history:
-- recipients of the accounts' windows, bounces by their own index, and of what waits the first ten thousand.
CREATE FUNCTION kliv_mail.__door_figures(p_caller name, p_days boolean, p_zone text) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_last timestamp := date_trunc(CASE WHEN p_days THEN 'day' ELSE 'hour' END, v_at AT TIME ZONE p_zone);
    v_step interval := CASE WHEN p_days THEN interval '1 day' ELSE interval '1 hour' END;
    v_count integer := CASE WHEN p_days THEN 14 ELSE 24 END;
    v_first timestamptz := (v_last - v_step * (v_count - 1)) AT TIME ZONE p_zone;
    v_bars jsonb;
    v_waiting bigint;
    v_accounts jsonb;
BEGIN
    WITH waiting AS MATERIALIZED (
        SELECT o.created_at FROM kliv_mail._outbox AS o LIMIT 10001),
    bars AS (
        SELECT g.n, (v_last - v_step * (v_count - 1 - g.n)) AS begins FROM generate_series(0, v_count - 1) AS g (n)),
    used AS (
        SELECT date_trunc(CASE WHEN p_days THEN 'day' ELSE 'hour' END, u.window_start AT TIME ZONE p_zone) AS begins, sum(u.used) AS used
        FROM kliv_mail._usage AS u
        WHERE u.window_name = CASE WHEN p_days THEN 'day' ELSE 'hour' END AND u.window_start >= v_first AND u.window_start <= v_at GROUP BY 1),
    unwelcome AS (
        SELECT date_trunc(CASE WHEN p_days THEN 'day' ELSE 'hour' END, x.finished_at AT TIME ZONE p_zone) AS begins, count(*) AS unwelcome,
               -- What was refused is given back to the window; what bounced later stays counted.
               count(x.sent_at) AS later
        FROM kliv_mail._accounts() AS a
        CROSS JOIN LATERAL (SELECT d.finished_at, d.sent_at FROM kliv_mail._delivery AS d
                            WHERE d.account = a.name AND d.finished_at >= v_first AND (d.bounce_type = 'hard' OR d.status = 'complained')
                            ORDER BY d.finished_at DESC LIMIT 5000) AS x GROUP BY 1),
    queued AS (
        SELECT date_trunc(CASE WHEN p_days THEN 'day' ELSE 'hour' END, w.created_at AT TIME ZONE p_zone) AS begins, count(*) AS waiting FROM waiting AS w GROUP BY 1)
    SELECT jsonb_agg(jsonb_build_object('n', b.n, 'at', to_char(b.begins, CASE WHEN p_days THEN 'MM-DD' ELSE 'HH24:MI' END),
               'sent', greatest(0, coalesce(u.used, 0) - coalesce(x.later, 0)), 'bounced', coalesce(x.unwelcome, 0), 'waiting', coalesce(q.waiting, 0)) ORDER BY b.n),
           (SELECT count(*) FROM waiting)
    INTO v_bars, v_waiting
    FROM bars AS b LEFT JOIN used AS u USING (begins) LEFT JOIN unwelcome AS x USING (begins) LEFT JOIN queued AS q USING (begins);
    SELECT jsonb_agg(jsonb_build_object('account', a.name,
               'hour', kliv_mail._door_window(v.hour_used, v.hour_limit, v.hour_open_at), 'day', kliv_mail._door_window(v.day_used, v.day_limit, v.day_open_at),
               'rolling', CASE WHEN v.rolling_limit IS NOT NULL THEN kliv_mail._door_window(v.rolling_used, v.rolling_limit, NULL) END)
           ORDER BY a.route_order, a.name)
    INTO v_accounts
    FROM kliv_mail._accounts() AS a CROSS JOIN LATERAL kliv_mail._availability(a.name, v_at) AS v
    WHERE a.in_use AND (a.own OR kliv_mail._default_account() = 'platform');
    RETURN jsonb_build_object('bars', v_bars, 'waiting', least(v_waiting, 10000), 'waiting_more', v_waiting > 10000, 'accounts', coalesce(v_accounts, '[]'));
END;
$$;

CREATE FUNCTION kliv_mail._door_figures(days boolean, zone text) RETURNS jsonb
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C STABLE SET search_path = pg_catalog, pg_temp;

-- Where each bar of the chart stands, in a drawing of 720 by 160: sent below, then what bounced, then what waits.
CREATE FUNCTION kliv_mail._door_chart(p_bars jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        WITH bars AS (
            SELECT b.bar, (b.bar ->> 'n')::integer AS n, (b.bar ->> 'sent')::numeric AS sent, (b.bar ->> 'bounced')::numeric AS bounced, (b.bar ->> 'waiting')::numeric AS waiting
            FROM jsonb_array_elements(p_bars) AS b (bar)),
        scale AS (
            SELECT greatest(max(b.sent + b.bounced + b.waiting), 1) AS most, 720.0 / count(*) AS width FROM bars AS b),
        heights AS MATERIALIZED (
            SELECT b.*, s.width, round(140 * b.sent / s.most, 1) AS sent_h, round(140 * b.bounced / s.most, 1) AS bounced_h, round(140 * b.waiting / s.most, 1) AS waiting_h
            FROM bars AS b, scale AS s)
        SELECT jsonb_build_object('most', (SELECT s.most FROM scale AS s), 'sent', sum(h.sent), 'bounced', sum(h.bounced), 'waiting', sum(h.waiting),
            'bars', jsonb_agg(h.bar || jsonb_build_object('x', round(h.n * h.width + h.width * 0.15, 1), 'width', round(h.width * 0.7, 1),
                'middle', round(h.n * h.width + h.width * 0.5, 1), 'labelled', h.n % 4 = 0, 'few', h.n % 8 = 0, 'first', h.n = 0,
                'sent_h', h.sent_h, 'sent_y', 142 - h.sent_h, 'bounced_h', h.bounced_h, 'bounced_y', 142 - h.sent_h - h.bounced_h,
                'waiting_h', h.waiting_h, 'waiting_y', 142 - h.sent_h - h.bounced_h - h.waiting_h) ORDER BY h.n))
        FROM heights AS h);
END;
$$;

-- What is to be done, with the page that does it.
CREATE FUNCTION kliv_mail._door_next_step(p_texts jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        SELECT jsonb_build_object('code', n.code, 'well', n.code = 'ok', 'tone', CASE WHEN n.code = 'ok' THEN 'good' WHEN n.code IN ('platform_only', 'untested', 'paused', 'account_paused', 'hour_used', 'day_used') THEN 'wait' ELSE 'bad' END,
            'title', p_texts ->> ('step_' || n.code), 'advice', p_texts ->> ('advice_' || n.code),
            -- (The page has the providers.)
            'problem', regexp_replace(n.problem, '[.] Save an account of your own like this.*$', '.'), 'statement', CASE WHEN n.code <> 'ok' THEN n.statement END, 'retries_at', kliv_mail._door_time(n.retries_at),
            'href', CASE WHEN n.statement ~ 'configure_smtp' THEN '/admin/settings/new' WHEN n.statement ~ 'test_smtp' THEN '/admin/settings/test'
                         WHEN n.statement ~ 'resume' THEN '/admin/resume' WHEN n.statement ~ 'set_limits' THEN '/admin/limits'
                         WHEN n.statement ~ 'update_sender' THEN '/admin/sender' WHEN n.code <> 'ok' THEN '/admin/health' END)
        FROM kliv_mail.next_step(NULL::bigint) AS n LIMIT 1);
END;
$$;

CREATE FUNCTION kliv_mail._door_overview(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_days boolean := coalesce(r #>> '{query,range}' = 'days', false);
    v_figures jsonb := kliv_mail._door_figures(v_days, kliv_mail._door_zone());
    v_accounts jsonb;
BEGIN
    SELECT jsonb_agg(f.account || jsonb_build_object('status', kliv_mail._door_status(r -> 't', s.status), 'detail', s.status_detail,
               'server', s.host || ':' || s.port, 'sender', s.from_address) ORDER BY f.n)
    INTO v_accounts
    FROM jsonb_array_elements(v_figures -> 'accounts') WITH ORDINALITY AS f (account, n)
    JOIN kliv_mail.smtp_settings AS s ON s.account = f.account ->> 'account';
    RETURN jsonb_build_object('page', 'overview', 'nav', 'overview', 'data', v_figures || jsonb_build_object(
        'step', kliv_mail._door_next_step(r -> 't'), 'accounts', coalesce(v_accounts, '[]'), 'chart', kliv_mail._door_chart(v_figures -> 'bars'),
        'days', v_days, 'sandbox', current_setting('kliv_mail.delivery') = 'sandbox',
        'rows', kliv_mail._door_rows(r -> 't', kliv_mail._door_search(NULL, NULL, NULL, NULL, 6))));
END;
$$;

CREATE FUNCTION kliv_mail._door_events(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_before timestamptz := coalesce((substring(r #>> '{query,before}' FROM '^[0-9T:.Z-]{10,40}$'))::timestamptz, 'infinity');
    v_events jsonb;
    v_last timestamptz;
BEGIN
    SELECT jsonb_agg(jsonb_build_object('at', kliv_mail._door_time(e.at), 'kind', coalesce(r #>> ARRAY['t', 'event_' || e.kind], r #>> ARRAY['t', 'status_' || e.kind], replace(e.kind, '_', ' ')),
               'account', e.account, 'message_id', e.message_id, 'recipient', e.recipient, 'role', e.role, 'detail', e.detail,
               'data', CASE WHEN e.data <> '{}' THEN e.data::text END) ORDER BY e.at DESC), min(e.at)
    INTO v_events, v_last
    FROM (SELECT * FROM kliv_mail._door_latest_events(v_before, 50)) AS e;
    RETURN jsonb_build_object('page', 'events', 'nav', 'events', 'data', jsonb_build_object('events', coalesce(v_events, '[]'),
        'before', CASE WHEN jsonb_array_length(v_events) = 50 THEN to_char(v_last AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') END));
END;
$$;

CREATE FUNCTION kliv_mail._door_health(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s record;
BEGIN
    SELECT * INTO s FROM kliv_mail.status;
    RETURN jsonb_build_object('page', 'health', 'nav', 'health', 'data', jsonb_build_object(
        'step', kliv_mail._door_next_step(r -> 't'),
        'status', to_jsonb(s) || jsonb_build_object('oldest_due', kliv_mail._door_time(s.oldest_due), 'next_start', kliv_mail._door_time(s.next_start)),
        'worker_tone', CASE WHEN s.worker IN ('idle', 'sending') THEN 'good' ELSE 'bad' END,
        'key_tone', CASE WHEN s.key_state IN ('ok', 'none yet') THEN 'good' ELSE 'bad' END,
        'delivery_tone', CASE s.delivery WHEN 'on' THEN 'good' ELSE 'wait' END,
        'accounts', (SELECT jsonb_agg(jsonb_build_object('account', x.account, 'status', kliv_mail._door_status(r -> 't', x.status), 'detail', x.status_detail,
                         'last_test_at', kliv_mail._door_time(x.last_test_at), 'test_ok', x.last_test_ok)) FROM kliv_mail.smtp_settings AS x)));
END;
$$;
