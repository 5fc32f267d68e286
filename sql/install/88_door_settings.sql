-- Pages of the administrator: settings, sender, limits, pause and resume.

-- '' for a field that is empty where NULL keeps what is saved; NULL for one that is not there.
CREATE FUNCTION kliv_mail._door_field(r jsonb, p_name text) RETURNS text
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT trim(r #>> ARRAY['form', p_name]);
END;

-- The whole number of a field, 22023 for what is none, NULL where it is empty.
CREATE FUNCTION kliv_mail._door_number(r jsonb, p_name text) RETURNS integer
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_text text := nullif(kliv_mail._door_field(r, p_name), '');
BEGIN
    IF v_text !~ '^[0-9]{1,9}$' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%s: is not a whole number', p_name), HINT = 'Write digits alone: 500.', COLUMN = p_name;
    END IF;
    RETURN v_text::integer;
END;
$$;

-- The account that a page is about: by query or form, else the one of one's own.
CREATE FUNCTION kliv_mail._door_account(r jsonb) RETURNS text
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT coalesce(nullif(r #>> '{form,account}', ''), nullif(r #>> '{query,account}', ''), 'custom');
END;

-- An account as pages show it, what a form was given in its place.
CREATE FUNCTION kliv_mail._door_account_data(r jsonb, s kliv_mail.smtp_settings) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT to_jsonb(s) || jsonb_build_object('status', kliv_mail._door_status(r -> 't', s.status), 'allowed_senders', array_to_string(s.allowed_senders, ', '),
               'provider_title', (SELECT p.title FROM kliv_mail.providers AS p WHERE p.name = s.provider), 'own', s.account <> 'platform', 'reset', s.status = 'reset',
               'last_test_at', kliv_mail._door_time(s.last_test_at), 'updated_at', kliv_mail._door_time(s.updated_at),
               'password_changed_at', kliv_mail._door_time(s.password_changed_at), 'paused', s.status = 'paused', 'paused_until', kliv_mail._door_time(s.paused_until))
        || coalesce(r -> 'form', '{}');
END;

CREATE FUNCTION kliv_mail._door_settings(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_accounts jsonb;
    v_own boolean;
BEGIN
    SELECT jsonb_agg(kliv_mail._door_account_data(r, s.*) ORDER BY s.in_use DESC, s.account), bool_or(s.account <> 'platform' AND s.in_use)
    INTO v_accounts, v_own FROM kliv_mail.smtp_settings AS s;
    IF NOT v_own AND (r -> 'may_change')::boolean AND NOT r -> 'query' ? 'done' THEN
        RETURN kliv_mail._door_providers(r);
    END IF;
    RETURN jsonb_build_object('page', 'settings', 'nav', 'settings', 'data', jsonb_build_object('accounts', v_accounts, 'own', v_own));
END;
$$;

-- The providers as cards: where somebody who has no account of his own begins.
CREATE FUNCTION kliv_mail._door_providers(r jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN jsonb_build_object('page', 'providers', 'nav', 'settings', 'data', jsonb_build_object('providers', (
        SELECT jsonb_agg(jsonb_build_object('name', p.name, 'title', p.title, 'server', coalesce(p.host || ':' || p.port, r #>> '{t,server_of_contract}'),
            'needs', (SELECT string_agg(r #>> ARRAY['t', 'need_' || x], r #>> '{t,comma}' ORDER BY n) FROM unnest(p.required) WITH ORDINALITY AS x (x, n))) ORDER BY p.title)
        FROM kliv_mail.providers AS p)));
END;
$$;

-- The form of a provider asks for what the view providers says that it requires; 'other' is any server.
CREATE FUNCTION kliv_mail._door_provider(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name text := r #>> '{path,3}';
    v_account text := kliv_mail._door_account(r);
    p record;
    s kliv_mail.smtp_settings;
    f jsonb := r -> 'form';
    v_required text[];
BEGIN
    SELECT * INTO p FROM kliv_mail.providers AS x WHERE x.name = v_name;
    IF p.name IS NULL AND v_name <> 'other' THEN
        RETURN kliv_mail._door_problem(404);
    END IF;
    v_required := coalesce(p.required, '{host,port,encryption,username,password,from_address}');
    IF r ->> 'method' = 'POST' THEN
        PERFORM kliv_mail.configure_smtp(
            provider => CASE WHEN v_name = 'other' THEN '' ELSE v_name END,
            host => nullif(kliv_mail._door_field(r, 'host'), ''), port => kliv_mail._door_number(r, 'port'),
            username => CASE WHEN v_name = 'other' THEN kliv_mail._door_field(r, 'username') ELSE nullif(kliv_mail._door_field(r, 'username'), '') END,
            password => CASE WHEN f ->> 'password' <> '' THEN f ->> 'password' END,
            password_sealed => CASE WHEN f ->> 'password_sealed' <> '' THEN decode(f ->> 'password_sealed', 'base64') END,
            encryption => nullif(f ->> 'encryption', ''), region => nullif(kliv_mail._door_field(r, 'region'), ''),
            from_address => nullif(kliv_mail._door_field(r, 'from_address'), ''), from_name => nullif(kliv_mail._door_field(r, 'from_name'), ''),
            account => v_account);
        RETURN jsonb_build_object('location', '/admin/settings?done=saved');
    END IF;
    SELECT * INTO s FROM kliv_mail.smtp_settings AS x WHERE x.account = v_account;
    RETURN jsonb_build_object('page', 'provider', 'nav', 'settings', 'title', coalesce(p.title, r #>> '{t,other_server}'), 'data', jsonb_build_object(
        'name', v_name, 'account', v_account, 'another', CASE WHEN v_account <> 'custom' THEN v_account END, 'other', v_name = 'other',
        'server', p.host || ':' || p.port, 'notes', p.notes, 'japanese_notes', CASE WHEN r ->> 'language' = 'ja' THEN p.notes_ja END, 'docs_url', p.docs_url,
        'username_hint', p.username_hint, 'password_hint', p.password_hint, 'host_example', substring(p.example FROM 'host => ''([^'']+)'''),
        'username_example', coalesce(substring(p.example FROM 'username => ''([^'']+)'''), 'info@example.com'),
        'region_example', substring(p.example FROM 'region => ''([^'']+)'''),
        'asks', (SELECT jsonb_object_agg(x, true) FROM unnest(v_required) AS x), 'sender_needed', 'from_address' = ANY (v_required),
        'kept', s.provider IS NOT DISTINCT FROM p.name AND s.in_use AND s.password_masked IS NOT NULL, 'password_masked', s.password_masked,
        'steps', kliv_mail._door_failed_steps(r), 'has_steps', r #>> '{error,state}' ~ '^KM00[1-6]$',
        'f', CASE WHEN s.provider IS NOT DISTINCT FROM p.name THEN jsonb_build_object('host', s.host, 'port', s.port, 'encryption', s.encryption,
                 'region', substring(s.host FROM '^email-smtp[.]([a-z0-9-]+)[.]'), 'username', CASE WHEN NOT s.username ^@ '****' THEN s.username END,
                 'from_address', s.from_address, 'from_name', s.from_name) ELSE '{}' END || f,
        'encryptions', (SELECT jsonb_agg(jsonb_build_object('value', e, 'name', r #>> ARRAY['t', 'encryption_' || e],
                            'chosen', e = coalesce(f ->> 'encryption', CASE WHEN s.provider IS NULL THEN s.encryption END, ''))) FROM unnest('{"",tls,starttls,none}'::text[]) AS e)));
END;
$$;

-- How far the connection test came, by the class of its error: each step before the one that failed was well.
CREATE FUNCTION kliv_mail._door_failed_steps(r jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT jsonb_agg(jsonb_build_object('step', r #>> ARRAY['t', 'step_name_' || s.step], 'ok', s.n < f.n, 'failed', s.n = f.n) ORDER BY s.n)
    FROM (SELECT (substring(r #>> '{error,state}' FROM '^KM00([1-6])$'))::bigint AS n) AS f
    CROSS JOIN unnest('{dns,connect,tls,ehlo,auth,sender}'::text[]) WITH ORDINALITY AS s (step, n)
    WHERE s.n <= f.n;
END;

-- The one POST that answers with a page: its result stands nowhere else.
CREATE FUNCTION kliv_mail._door_test(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_account text := nullif(coalesce(r #>> '{form,account}', r #>> '{query,account}'), '');
    v_steps jsonb;
    v_ok boolean;
BEGIN
    IF r ->> 'method' = 'POST' THEN
        SELECT jsonb_agg(jsonb_build_object('step', coalesce(r #>> ARRAY['t', 'step_name_' || x.step], x.step), 'ok', x.ok, 'failed', NOT x.ok, 'detail', x.detail, 'hint', x.hint,
                             'ms', round(x.elapsed_ms))), bool_and(x.ok)
        INTO v_steps, v_ok
        FROM kliv_mail.test_smtp(account => v_account, send_to => nullif(kliv_mail._door_field(r, 'send_to'), '')) AS x;
    END IF;
    RETURN jsonb_build_object('page', 'test', 'nav', 'settings', 'data', jsonb_build_object('steps', v_steps, 'tested', v_steps IS NOT NULL, 'well', v_ok,
        'account', coalesce(v_account, (SELECT s.account FROM kliv_mail.smtp_settings AS s WHERE s.in_use ORDER BY s.account = 'platform', s.account <> 'custom' LIMIT 1)),
        'send_to', r #>> '{form,send_to}', 'message', substring((SELECT x ->> 'detail' FROM jsonb_array_elements(v_steps) AS x WHERE x ->> 'step' = r #>> '{t,step_name_send}') FROM 'message ([0-9]+)')));
END;
$$;

CREATE FUNCTION kliv_mail._door_reset(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_account text := kliv_mail._door_account(r);
    v_data jsonb;
BEGIN
    IF r ->> 'method' = 'POST' THEN
        PERFORM kliv_mail.reset_smtp(account => v_account);
        RETURN jsonb_build_object('location', '/admin/settings?done=reset');
    END IF;
    SELECT kliv_mail._door_account_data(r, s.*) INTO v_data FROM kliv_mail.smtp_settings AS s WHERE s.account = v_account AND s.account <> 'platform';
    RETURN CASE WHEN v_data IS NULL THEN kliv_mail._door_problem(404)
        ELSE jsonb_build_object('page', 'reset', 'nav', 'settings', 'data', v_data || jsonb_build_object('platform', (
            SELECT jsonb_build_object('hourly_limit', s.hourly_limit, 'daily_limit', s.daily_limit) FROM kliv_mail.smtp_settings AS s WHERE s.account = 'platform'))) END;
END;
$$;

CREATE FUNCTION kliv_mail._door_sender(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_account text := kliv_mail._door_account(r);
    v_data jsonb;
BEGIN
    IF r ->> 'method' = 'POST' THEN
        PERFORM kliv_mail.update_sender(from_address => kliv_mail._door_field(r, 'from_address'), from_name => kliv_mail._door_field(r, 'from_name'),
            reply_to => kliv_mail._door_field(r, 'reply_to'), account => v_account,
            allowed_senders => array_remove(regexp_split_to_array(kliv_mail._door_field(r, 'allowed_senders'), E'[,\\s]+'), ''));
        RETURN jsonb_build_object('location', '/admin/settings?done=sender');
    END IF;
    SELECT kliv_mail._door_account_data(r, s.*) INTO v_data FROM kliv_mail.smtp_settings AS s WHERE s.account = v_account AND s.account <> 'platform';
    RETURN CASE WHEN v_data IS NULL THEN jsonb_build_object('location', '/admin/settings')
        ELSE jsonb_build_object('page', 'sender', 'nav', 'settings', 'data', v_data) END;
END;
$$;

CREATE FUNCTION kliv_mail._door_limits(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_account text := kliv_mail._door_account(r);
    v_data jsonb;
BEGIN
    IF r ->> 'method' = 'POST' THEN
        PERFORM kliv_mail.set_limits(hourly_limit => kliv_mail._door_number(r, 'hourly_limit'), daily_limit => kliv_mail._door_number(r, 'daily_limit'), account => v_account);
        RETURN jsonb_build_object('location', '/admin/settings?done=limits');
    END IF;
    SELECT kliv_mail._door_account_data(r, s.*) INTO v_data FROM kliv_mail.smtp_settings AS s WHERE s.account = v_account AND s.account <> 'platform';
    RETURN CASE WHEN v_data IS NULL THEN jsonb_build_object('location', '/admin/settings')
        ELSE jsonb_build_object('page', 'limits', 'nav', 'settings', 'data', v_data || jsonb_build_object('max_daily_limit', current_setting('kliv_mail.max_daily_limit'),
            'windows', (SELECT jsonb_agg(jsonb_build_object('name', r #>> ARRAY['t', 'window_' || replace(u.window_name, ' ', '_')], 'w', kliv_mail._door_window(u.used, u.quota, u.resets_at)) ORDER BY u.window_name = 'hour' DESC, u.window_name)
                        FROM kliv_mail.usage AS u WHERE u.account = v_account))) END;
END;
$$;

CREATE FUNCTION kliv_mail._door_pause(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_account text := nullif(coalesce(r #>> '{form,account}', r #>> '{query,account}'), '');
BEGIN
    IF r ->> 'method' = 'POST' THEN
        RETURN jsonb_build_object('location', format('/admin?done=paused&n=%s', kliv_mail.pause(account => v_account, reason => nullif(kliv_mail._door_field(r, 'reason'), ''))));
    END IF;
    RETURN jsonb_build_object('page', 'pause', 'nav', 'settings', 'data', jsonb_build_object('account', v_account, 'reason', r #>> '{form,reason}'));
END;
$$;

CREATE FUNCTION kliv_mail._door_resume(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_account text := nullif(coalesce(r #>> '{form,account}', r #>> '{query,account}'), '');
BEGIN
    IF r ->> 'method' = 'POST' THEN
        RETURN jsonb_build_object('location', format('/admin?done=resumed&n=%s', kliv_mail.resume(account => v_account)));
    END IF;
    RETURN jsonb_build_object('page', 'resume', 'nav', 'settings', 'data', jsonb_build_object('account', v_account, 'step', kliv_mail._door_next_step(r -> 't')));
END;
$$;
