-- http_request(), what it answers: the response's status, headers and body.

-- Pages (sql/pages/NAME.html) are Mustache, and the only place where HTML is; in
-- base64, as the starter templates.  NULL: there is none of that name.
CREATE FUNCTION kliv_mail._door_page(p_name text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN convert_from(decode(CASE p_name
@PAGES@
    END, 'base64'), 'UTF8');
END;
$$;

-- What pages say (sql/pages/texts/LANGUAGE.json).  English where the database's encoding lacks the letters.
CREATE FUNCTION kliv_mail._door_texts(p_language text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN convert_from(decode(CASE p_language
@TEXTS@
    END, 'base64'), 'UTF8');
EXCEPTION WHEN untranslatable_character THEN
    RETURN kliv_mail._door_texts('en');
END;
$$;

-- The application's name and colour, for whoever sees a page.
CREATE FUNCTION kliv_mail.__door_brand(p_caller name) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN coalesce((SELECT jsonb_build_object('name', b.name, 'color', b.color) FROM kliv_mail._brand AS b), '{}');
END;
$$;

CREATE FUNCTION kliv_mail._door_brand() RETURNS jsonb
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C STABLE SET search_path = pg_catalog, pg_temp;

-- Black or white, whichever is easier to read on the colour (WCAG 2: relative luminance).
CREATE FUNCTION kliv_mail._door_ink(p_color text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE WHEN sum(w.weight * CASE WHEN c.share <= 0.03928 THEN c.share / 12.92 ELSE ((c.share + 0.055) / 1.055) ^ 2.4 END) > 0.179
                THEN '#000000' ELSE '#ffffff' END
    FROM (VALUES (0, 0.2126::double precision), (1, 0.7152), (2, 0.0722)) AS w (n, weight)
    CROSS JOIN LATERAL (SELECT get_byte(decode(substr(p_color, 2), 'hex'), w.n) / 255.0::double precision AS share) AS c;
END;

-- The stylesheet, with the brand's colour.  Its address changes with it, so that it may be kept.
CREATE FUNCTION kliv_mail._door_style(r jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_color text := coalesce(substring(kliv_mail._door_brand() ->> 'color' FROM '^#[0-9A-Fa-f]{6}$'), '#0f5f63');
BEGIN
    RETURN jsonb_build_object('status', 200, 'style', kliv_mail.render(kliv_mail._door_page('style'),
        jsonb_build_object('color', v_color, 'ink', kliv_mail._door_ink(v_color))));
END;
$$;

-- An answer becomes a response.  The partial {{> content}} of a layout is the answer's page.
CREATE FUNCTION kliv_mail._door_response(r jsonb, a jsonb, p_head boolean) RETURNS TABLE (status integer, headers jsonb, body bytea)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_type text := 'text/html; charset=utf-8';
    v_policy text := 'default-src ''none''; style-src ''self''; img-src data:; form-action ''self''; frame-ancestors ''none''; base-uri ''none''';
    v_text text;
    v_page text := a ->> 'page';
    v_brand jsonb;
    v_layout text;
    t jsonb;
BEGIN
    status := coalesce((a ->> 'status')::integer, 200);
    headers := jsonb_build_object('x-content-type-options', 'nosniff', 'referrer-policy', 'same-origin', 'cache-control', 'no-store',
        'x-frame-options', 'DENY', 'cross-origin-opener-policy', 'same-origin', 'cross-origin-resource-policy', 'same-origin');
    IF a ? 'location' THEN
        status := 303;
        headers := headers || jsonb_build_object('location', a ->> 'location');
        v_text := '';
    ELSIF a ? 'style' THEN
        v_type := 'text/css; charset=utf-8';
        v_text := a ->> 'style';
        headers := headers || '{"cache-control": "private, max-age=86400"}';
    ELSIF a ? 'document' THEN
        -- Mail that a template made: a document without origin, script or request, which only our page may frame.
        v_text := a ->> 'document';
        v_policy := 'sandbox; default-src ''none''; style-src ''unsafe-inline''; img-src data:; frame-ancestors ''self''; base-uri ''none''';
        headers := headers || '{"x-frame-options": "SAMEORIGIN"}';
    ELSIF a ? 'text' OR r ->> 'route' ^@ '/hooks' THEN
        v_type := 'text/plain; charset=utf-8';
        v_text := coalesce(a ->> 'text', a #>> '{data,number}');
    ELSE
        t := coalesce(r -> 't', kliv_mail._door_texts(r ->> 'language'));
        v_layout := CASE WHEN v_page IN ('problem', 'leave', 'left') THEN 'layout_card' ELSE 'layout' END;
        -- Who may call nothing here is told so all the same.
        v_brand := CASE WHEN has_function_privilege('kliv_mail._door_brand()', 'EXECUTE') THEN kliv_mail._door_brand() ELSE '{}' END;
        IF a ? 'frames' THEN
            v_policy := v_policy || '; frame-src ''self''';
        END IF;
        v_text := kliv_mail.render(kliv_mail._door_page(v_layout),
            coalesce(a -> 'data', '{}') || jsonb_build_object(
                't', t, 'language', r ->> 'language', 'brand', v_brand,
                'style', CASE WHEN r ->> 'route' ^@ '/admin' THEN '/admin/style.css' ELSE '/u/style.css' END
                         || '?v=' || left(md5(concat(kliv_mail._door_page('style'), v_brand ->> 'color')), 12),
                'nav', jsonb_build_object(coalesce(a ->> 'nav', 'none'), true), 'title', coalesce(a ->> 'title', t ->> ('title_' || v_page)),
                'problem', CASE WHEN v_page = 'problem' THEN t ->> ('problem_' || coalesce(a ->> 'why', status::text)) END,
                'sign_out', r ->> 'sign_out', 'raw_query', r ->> 'raw_query',
                'may_change', kliv_mail._door_may('admin'), 'role', current_user, 'database', current_database(), 'time_zone', kliv_mail._door_zone(),
                'error', coalesce(a -> 'error', r -> 'error'), 'done', t ->> ('done_' || (r #>> '{query,done}')),
                'done_count', substring(r #>> '{query,n}' FROM '^[0-9]{1,9}$')),
            (SELECT jsonb_object_agg(x.name, kliv_mail._door_page(x.name)) FROM unnest('{head,language,nav,next,message_rows,steps}'::text[]) AS x (name))
                || jsonb_build_object('content', kliv_mail._door_page(v_page)));
    END IF;
    IF v_text <> '' THEN
        headers := headers || jsonb_build_object('content-type', v_type);
    END IF;
    headers := headers || jsonb_build_object('content-security-policy', v_policy);
    IF a ? 'allow' THEN
        headers := headers || jsonb_build_object('allow', a ->> 'allow');
    END IF;
    IF status = 503 THEN
        headers := headers || '{"retry-after": "10"}';
    END IF;
    -- The switch of languages is kept by the browser.
    IF r ? 'set_language' AND r ->> 'route' ^@ '/admin' AND status = 200 THEN
        headers := headers || jsonb_build_object('set-cookie', format('kliv_mail_language=%s; Path=/admin; Max-Age=31536000; HttpOnly; SameSite=Strict', r ->> 'set_language'));
    END IF;
    body := CASE WHEN p_head THEN ''::bytea ELSE convert_to(v_text, 'UTF8') END;
    RETURN NEXT;
END;
$$;

-- Times are shown by the clock that quotas go by.
CREATE FUNCTION kliv_mail._door_zone() RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT current_setting('kliv_mail.quota_timezone');
END;

CREATE FUNCTION kliv_mail._door_time(p_at timestamptz) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE WHEN isfinite(p_at) THEN to_char(p_at AT TIME ZONE kliv_mail._door_zone(), 'YYYY-MM-DD HH24:MI') END;
END;
