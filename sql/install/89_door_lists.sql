-- Pages of the administrator: suppressions, topics, templates.

CREATE FUNCTION kliv_mail._door_suppressions(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_search text := lower(trim(r #>> '{query,address}') COLLATE "C");
    v_after text := r #>> '{query,after}';
    v_rows jsonb;
    v_last text;
    v_expires text := nullif(kliv_mail._door_field(r, 'expires_at'), '');
BEGIN
    IF r ->> 'method' = 'POST' THEN
        IF v_expires !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}$' THEN
            RAISE invalid_parameter_value USING MESSAGE = 'expires_at: is not a day', HINT = 'Write it as 2027-01-31.';
        END IF;
        RETURN jsonb_build_object('location', format('/admin/suppressions?done=suppressed&n=%s', kliv_mail.suppress(
            address => kliv_mail._door_field(r, 'address'), scope => coalesce(nullif(kliv_mail._door_field(r, 'scope'), ''), 'all'),
            reason => nullif(kliv_mail._door_field(r, 'reason'), ''), expires_at => v_expires::timestamp AT TIME ZONE kliv_mail._door_zone())));
    END IF;
    SELECT jsonb_agg(jsonb_build_object('address', s.address, 'scope', s.scope, 'scope_name', coalesce(r #>> ARRAY['t', 'scope_' || s.scope], s.scope), 'reason', s.reason,
               'at', kliv_mail._door_time(s.created_at), 'role', s.created_by, 'expires_at', kliv_mail._door_time(s.expires_at)) ORDER BY s.address COLLATE "C", s.scope), max(s.address COLLATE "C")
    INTO v_rows, v_last
    FROM (SELECT * FROM kliv_mail.suppressions AS x
          WHERE (coalesce(v_search, '') = '' OR x.address = v_search OR x.address = '@' || v_search) AND (v_after IS NULL OR x.address > v_after COLLATE "C")
          ORDER BY x.address COLLATE "C", x.scope LIMIT 50) AS s;
    RETURN jsonb_build_object('page', 'suppressions', 'nav', 'suppressions', 'data', jsonb_build_object('rows', coalesce(v_rows, '[]'), 'none', v_rows IS NULL, 'address', r #>> '{query,address}',
        'after', CASE WHEN jsonb_array_length(v_rows) = 50 THEN v_last END, 'f', r -> 'form',
        'scopes', (SELECT jsonb_agg(jsonb_build_object('value', x.scope, 'name', coalesce(r #>> ARRAY['t', 'scope_' || x.scope], x.scope), 'chosen', x.scope = r #>> '{form,scope}') ORDER BY x.n, x.scope)
                   FROM (VALUES ('all', 1), ('marketing', 2) UNION SELECT t.name, 3 FROM kliv_mail.topics AS t WHERE t.name <> 'marketing') AS x (scope, n))));
END;
$$;

CREATE FUNCTION kliv_mail._door_unsuppress(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s record;
BEGIN
    IF r ->> 'method' = 'POST' THEN
        RETURN jsonb_build_object('location', '/admin/suppressions?done=' || CASE WHEN kliv_mail.unsuppress(address => r #>> '{form,address}', scope => r #>> '{form,scope}') THEN 'unsuppressed' ELSE 'nothing' END);
    END IF;
    SELECT * INTO s FROM kliv_mail.suppressions AS x
    WHERE x.address = coalesce(r #>> '{form,address}', r #>> '{query,address}') AND x.scope = coalesce(r #>> '{form,scope}', r #>> '{query,scope}');
    RETURN CASE WHEN s.address IS NULL THEN kliv_mail._door_problem(404)
        ELSE jsonb_build_object('page', 'unsuppress', 'nav', 'suppressions', 'data', to_jsonb(s) || jsonb_build_object('scope_name', coalesce(r #>> ARRAY['t', 'scope_' || s.scope], s.scope),
            'at', kliv_mail._door_time(s.created_at), 'wish', s.reason IN ('unsubscribed', 'complained'))) END;
END;
$$;

CREATE FUNCTION kliv_mail._door_topics(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_shown jsonb;
BEGIN
    IF r ->> 'method' = 'POST' THEN
        PERFORM kliv_mail.save_topic(name => kliv_mail._door_field(r, 'name'), title => kliv_mail._door_field(r, 'title'),
            description => kliv_mail._door_field(r, 'description'), locale => nullif(kliv_mail._door_field(r, 'locale'), ''));
        RETURN jsonb_build_object('location', '/admin/topics?done=topic');
    END IF;
    -- One to be changed, by the query.
    SELECT to_jsonb(t) INTO v_shown FROM kliv_mail.topics AS t
    WHERE t.name = r #>> '{query,name}' AND t.locale IS NOT DISTINCT FROM nullif(r #>> '{query,locale}', '');
    RETURN jsonb_build_object('page', 'topics', 'nav', 'topics', 'data', jsonb_build_object('f', coalesce(v_shown, '{}') || (r -> 'form'),
        'rows', (SELECT coalesce(jsonb_agg(to_jsonb(t) || jsonb_build_object('at', kliv_mail._door_time(t.saved_at)) ORDER BY t.name, t.locale NULLS FIRST), '[]') FROM kliv_mail.topics AS t)));
END;
$$;

CREATE FUNCTION kliv_mail._door_topic_delete(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name text := coalesce(r #>> '{form,name}', r #>> '{query,name}');
BEGIN
    IF r ->> 'method' = 'POST' THEN
        RETURN jsonb_build_object('location', '/admin/topics?done=' || CASE WHEN kliv_mail.delete_topic(name => v_name) THEN 'topic_deleted' ELSE 'nothing' END);
    END IF;
    RETURN CASE WHEN NOT EXISTS (SELECT FROM kliv_mail.topics AS t WHERE t.name = v_name) THEN kliv_mail._door_problem(404)
        ELSE jsonb_build_object('page', 'topic_delete', 'nav', 'topics', 'data', jsonb_build_object('name', v_name)) END;
END;
$$;

CREATE FUNCTION kliv_mail._door_templates(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_rows jsonb;
BEGIN
    IF r ->> 'method' = 'POST' THEN
        RETURN jsonb_build_object('location', format('/admin/templates?done=starters&n=%s', kliv_mail.install_starter_templates(nullif(r #>> '{form,locale}', ''))));
    END IF;
    SELECT jsonb_agg(jsonb_build_object('name', t.name, 'locale', t.locale, 'version', t.version, 'draft', CASE WHEN t.newest_version IS DISTINCT FROM t.version THEN t.newest_version END,
               'type', r #>> ARRAY['t', 'type_' || t.message_type], 'subject', t.subject, 'description', t.description, 'at', kliv_mail._door_time(t.saved_at), 'role', t.saved_by)
           ORDER BY t.name, t.locale NULLS FIRST) INTO v_rows FROM kliv_mail.templates AS t;
    RETURN jsonb_build_object('page', 'templates', 'nav', 'templates', 'data', jsonb_build_object('rows', coalesce(v_rows, '[]'), 'none', v_rows IS NULL));
END;
$$;

-- The version that a page of templates is about: by the query or the form, else the one in use, else the newest.
CREATE FUNCTION kliv_mail._door_version(r jsonb) RETURNS kliv_mail.template_versions
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT v.* FROM kliv_mail.template_versions AS v
    WHERE v.name = coalesce(r #>> '{form,name}', r #>> '{query,name}')
      AND v.locale IS NOT DISTINCT FROM nullif(coalesce(r #>> '{form,locale}', r #>> '{query,locale}'), '')
      AND (coalesce(r #>> '{form,version}', r #>> '{query,version}', '') !~ '^[0-9]{1,9}$'
           OR v.version = (substring(coalesce(r #>> '{form,version}', r #>> '{query,version}') FROM '^[0-9]{1,9}$'))::integer)
    ORDER BY v.in_use DESC, v.version DESC LIMIT 1;
END;

CREATE FUNCTION kliv_mail._door_template(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v kliv_mail.template_versions := kliv_mail._door_version(r);
    f jsonb := r -> 'form';
    v_variables jsonb;
    v_version integer;
    v_locale text := nullif(kliv_mail._door_field(r, 'locale'), '');
BEGIN
    IF r ->> 'method' = 'POST' THEN
        IF trim(f ->> 'variables') <> '' THEN
            BEGIN
                v_variables := f ->> 'variables';
            EXCEPTION WHEN invalid_text_representation THEN
                RAISE invalid_parameter_value USING MESSAGE = 'variables: is not JSON', HINT = 'Write it as {"firstName": {"required": false, "example": "Ana"}}, or leave it empty.';
            END;
        END IF;
        v_version := kliv_mail.save_template(name => kliv_mail._door_field(r, 'name'), subject => f ->> 'subject', body => replace(f ->> 'body', E'\r\n', E'\n'),
            format => f ->> 'format', plain_text => nullif(replace(f ->> 'plain_text', E'\r\n', E'\n'), ''), message_type => f ->> 'message_type', locale => v_locale,
            variables => v_variables, description => f ->> 'description', publish => f ->> 'publish' = 'yes',
            -- What this form does not ask for stays.
            expires_in => v.expires_in);
        -- By the locale as it was saved: pt_br is pt-BR.
        SELECT x.locale INTO v_locale FROM kliv_mail.template_versions AS x
        WHERE x.name = kliv_mail._door_field(r, 'name') AND x.version = v_version AND lower(coalesce(x.locale, '') COLLATE "C") = lower(replace(coalesce(v_locale, ''), '_', '-') COLLATE "C");
        RETURN jsonb_build_object('location', format('/admin/templates/preview?name=%s&locale=%s&version=%s&done=%s', kliv_mail._door_field(r, 'name'), v_locale, v_version,
            CASE f ->> 'publish' WHEN 'yes' THEN 'published' ELSE 'draft' END));
    END IF;
    RETURN jsonb_build_object('page', 'template', 'nav', 'templates', 'title', coalesce(v.name, r #>> '{t,template_new}'), 'data', jsonb_build_object('saved', v.name IS NOT NULL,
        'f', coalesce(to_jsonb(v), '{}') || jsonb_build_object('variables', CASE WHEN v.variables <> '{}' THEN jsonb_pretty(v.variables) END) || f,
        'formats', (SELECT jsonb_agg(jsonb_build_object('value', x, 'name', x, 'chosen', x = coalesce(f ->> 'format', v.format))) FROM unnest('{markdown,html}'::text[]) AS x),
        'types', (SELECT jsonb_agg(jsonb_build_object('value', x, 'name', r #>> ARRAY['t', 'type_' || x], 'chosen', x = coalesce(f ->> 'message_type', v.message_type)))
                  FROM unnest('{transactional,system,marketing}'::text[]) AS x)));
END;
$$;

-- The mail that a version makes with its examples.
CREATE FUNCTION kliv_mail.__door_mail(p_caller name, p_name text, p_locale text, p_version integer) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m record;
BEGIN
    SELECT * INTO m FROM kliv_mail._template_example(kliv_mail._version_to_see(p_name, p_locale, p_version), NULL, p_locale) AS x;
    RETURN to_jsonb(m);
END;
$$;

CREATE FUNCTION kliv_mail._door_mail(name text, locale text, version integer) RETURNS jsonb
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C STABLE SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION kliv_mail._door_preview(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v kliv_mail.template_versions := kliv_mail._door_version(r);
    v_mail jsonb;
    v_problems jsonb;
BEGIN
    IF v.name IS NULL THEN
        RETURN kliv_mail._door_problem(404);
    END IF;
    v_mail := kliv_mail._door_mail(v.name, v.locale, v.version);
    IF (r -> 'may_change')::boolean AND NOT pg_is_in_recovery() AND NOT current_setting('transaction_read_only')::boolean THEN
        SELECT jsonb_agg(to_jsonb(c) || jsonb_build_object('tone', CASE c.severity WHEN 'error' THEN 'bad' ELSE 'wait' END)) INTO v_problems FROM kliv_mail.check_template(v.name, v.locale, v.version) AS c;
    END IF;
    RETURN jsonb_build_object('page', 'preview', 'nav', 'templates', 'title', v.name, 'frames', true, 'data', to_jsonb(v) || jsonb_build_object(
        'subject', v_mail ->> 'subject', 'plain_text', v_mail ->> 'plain_text', 'kilobytes', ceil(octet_length(v_mail ->> 'html') / 1024.0), 'problems', coalesce(v_problems, '[]'),
        'at', kliv_mail._door_time(v.saved_at), 'type', r #>> ARRAY['t', 'type_' || v.message_type],
        'versions', (SELECT jsonb_agg(jsonb_build_object('version', x.version, 'in_use', x.in_use, 'shown', x.version = v.version, 'at', kliv_mail._door_time(x.saved_at), 'role', x.saved_by) ORDER BY x.version DESC)
                     FROM (SELECT * FROM kliv_mail.template_versions AS y WHERE y.name = v.name AND y.locale IS NOT DISTINCT FROM v.locale ORDER BY y.version DESC LIMIT 20) AS x)));
END;
$$;

CREATE FUNCTION kliv_mail._door_document(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v kliv_mail.template_versions := kliv_mail._door_version(r);
BEGIN
    RETURN CASE WHEN v.name IS NULL THEN kliv_mail._door_problem(404)
        ELSE jsonb_build_object('status', 200, 'document', kliv_mail._door_mail(v.name, v.locale, v.version) ->> 'html') END;
END;
$$;

CREATE FUNCTION kliv_mail._door_publish(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v kliv_mail.template_versions := kliv_mail._door_version(r);
BEGIN
    IF v.name IS NULL THEN
        RETURN kliv_mail._door_problem(404);
    ELSIF r ->> 'method' = 'POST' THEN
        PERFORM kliv_mail.restore_template(name => v.name, version => v.version, locale => v.locale);
        RETURN jsonb_build_object('location', format('/admin/templates/preview?name=%s&locale=%s&version=%s&done=published', v.name, v.locale, v.version));
    END IF;
    RETURN jsonb_build_object('page', 'publish', 'nav', 'templates', 'data', to_jsonb(v));
END;
$$;

CREATE FUNCTION kliv_mail._door_template_delete(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v kliv_mail.template_versions := kliv_mail._door_version(r);
BEGIN
    IF v.name IS NULL THEN
        RETURN kliv_mail._door_problem(404);
    ELSIF r ->> 'method' = 'POST' THEN
        RETURN jsonb_build_object('location', '/admin/templates?done=' || CASE WHEN kliv_mail.delete_template(name => v.name, locale => coalesce(v.locale, '')) THEN 'template_deleted' ELSE 'nothing' END);
    END IF;
    RETURN jsonb_build_object('page', 'template_delete', 'nav', 'templates', 'data', to_jsonb(v));
END;
$$;
