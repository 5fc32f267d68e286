-- http_request(): one SQL function that answers HTTP.  What a path does is in
-- _door_routes(); a route's function gets the request (84_requests.sql) and gives
-- an answer, {"page", "data"}, {"location"}, {"text"} or {"document"}, with a status.
--
-- All of it runs as the caller: its grants decide.  What needs the owner's rights is a
-- function by kliv_mail_as_owner, granted like any other.

-- path: '*' is any segment.  needs: the grant; POST needs admin where GET needs read.
CREATE FUNCTION kliv_mail._door_routes() RETURNS TABLE (path text, methods text, needs text, handler text)
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT x.path, x.methods, x.needs, x.handler FROM (VALUES
        ('admin', 'GET', 'read', '_door_overview'),
        ('admin/style.css', 'GET', 'any', '_door_style'),
        ('u/style.css', 'GET', 'any', '_door_style'),
        ('u', 'GET, POST', 'ingest', '_door_leave'),
        ('u/*', 'GET, POST', 'ingest', '_door_leave'),
        ('hooks/*', 'POST', 'ingest', '_door_hook'),
        ('admin/settings', 'GET', 'read', '_door_settings'),
        ('admin/settings/new', 'GET', 'read', '_door_providers'),
        ('admin/settings/new/*', 'GET, POST', 'read', '_door_provider'),
        ('admin/settings/test', 'GET, POST', 'read', '_door_test'),
        ('admin/settings/reset', 'GET, POST', 'read', '_door_reset'),
        ('admin/sender', 'GET, POST', 'read', '_door_sender'),
        ('admin/limits', 'GET, POST', 'read', '_door_limits'),
        ('admin/pause', 'GET, POST', 'read', '_door_pause'),
        ('admin/resume', 'GET, POST', 'read', '_door_resume'),
        ('admin/messages', 'GET', 'read', '_door_messages'),
        ('admin/messages/*', 'GET', 'read', '_door_message'),
        ('admin/messages/*/retry', 'GET, POST', 'read', '_door_message_change'),
        ('admin/messages/*/cancel', 'GET, POST', 'read', '_door_message_change'),
        ('admin/messages/*/reschedule', 'GET, POST', 'read', '_door_message_change'),
        ('admin/suppressions', 'GET, POST', 'read', '_door_suppressions'),
        ('admin/suppressions/remove', 'GET, POST', 'read', '_door_unsuppress'),
        ('admin/topics', 'GET, POST', 'read', '_door_topics'),
        ('admin/topics/delete', 'GET, POST', 'read', '_door_topic_delete'),
        ('admin/templates', 'GET, POST', 'read', '_door_templates'),
        ('admin/templates/edit', 'GET, POST', 'read', '_door_template'),
        ('admin/templates/preview', 'GET', 'read', '_door_preview'),
        ('admin/templates/document', 'GET', 'read', '_door_document'),
        ('admin/templates/publish', 'GET, POST', 'read', '_door_publish'),
        ('admin/templates/delete', 'GET, POST', 'read', '_door_template_delete'),
        ('admin/events', 'GET', 'read', '_door_events'),
        ('admin/health', 'GET', 'read', '_door_health')
    ) AS x (path, methods, needs, handler);
END;

-- Does the role that asks have the grant?  (Functions' privileges: pg_read_all_data has those of tables.)
CREATE FUNCTION kliv_mail._door_may(p_grant text) RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE p_grant WHEN 'any' THEN true
        WHEN 'ingest' THEN has_function_privilege('kliv_mail.unsubscribe(text)', 'EXECUTE')
        WHEN 'read' THEN has_function_privilege('kliv_mail._smtp_settings()', 'EXECUTE')
        WHEN 'admin' THEN has_function_privilege('kliv_mail.grant_admin(name)', 'EXECUTE') END;
END;

-- An answer that is a short page of its own: a status, and what to do in SQL.
CREATE FUNCTION kliv_mail._door_problem(p_status integer, p_hint text DEFAULT NULL, p_allow text DEFAULT NULL) RETURNS jsonb
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT jsonb_strip_nulls(jsonb_build_object('status', p_status, 'page', 'problem', 'allow', p_allow, 'data',
        jsonb_build_object('number', p_status, 'hint', p_hint)));
END;

-- What an error of a route means to who asked.
CREATE FUNCTION kliv_mail._door_failure(p_state text, p_message text, p_hint text) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE WHEN p_state = '42501' THEN '{"status": 403}'::jsonb
        WHEN p_state ~ '^(?:22|23|54|55000|42601|42704|KM0|53400)'
            THEN jsonb_build_object('status', 422, 'state', p_state, 'message', p_message, 'hint', nullif(p_hint, ''))
        WHEN p_state ~ '^(?:40|53|55|57)' THEN '{"status": 503}'
        ELSE '{"status": 500}' END;
END;

-- The answer to a request that could be read.
CREATE FUNCTION kliv_mail._door_answer(r jsonb, p_headers jsonb, p_body bytea) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_path text[] := ARRAY(SELECT s.segment FROM jsonb_array_elements_text(r -> 'path') WITH ORDINALITY AS s (segment, n) ORDER BY s.n);
    v_method text := CASE r ->> 'method' WHEN 'HEAD' THEN 'GET' ELSE r ->> 'method' END;
    v_route record;
    v_form jsonb;
    v_answer jsonb;
    v_failure jsonb;
    v_status integer;
    v_state text;
    v_message text;
    v_hint text;
BEGIN
    SELECT x.* INTO v_route FROM kliv_mail._door_routes() AS x
    CROSS JOIN LATERAL (SELECT string_to_array(x.path, '/') AS segments) AS p
    WHERE cardinality(p.segments) = cardinality(v_path)
      AND NOT EXISTS (SELECT FROM unnest(p.segments, v_path) AS s (here, given) WHERE s.here NOT IN ('*', s.given))
    ORDER BY position('*' IN x.path) LIMIT 1;
    IF v_route.path IS NULL THEN
        RETURN kliv_mail._door_problem(404);
    ELSIF v_method <> ALL (string_to_array(v_route.methods, ', ')) THEN
        RETURN kliv_mail._door_problem(405, NULL, replace(v_route.methods, 'GET', 'GET, HEAD'));
    ELSIF NOT kliv_mail._door_may(v_route.needs) THEN
        RETURN kliv_mail._door_problem(403, format('SELECT kliv_mail.grant_%s(%L);', v_route.needs, current_user));
    ELSIF v_method = 'POST' AND v_route.needs = 'read' AND NOT kliv_mail._door_may('admin') THEN
        RETURN kliv_mail._door_problem(403, format('SELECT kliv_mail.grant_admin(%L);', current_user));
    ELSIF octet_length(p_body) > (CASE WHEN v_route.path ~ '^u' THEN 16384 ELSE 4194304 END) THEN
        RETURN kliv_mail._door_problem(413);
    END IF;
    IF v_method = 'POST' AND v_route.path !~ '^hooks/' THEN
        -- Who has a recipient's token needs no browser of theirs; and mail programs within a browser post from elsewhere.
        IF (r -> 'cross_site')::boolean AND v_route.path !~ '^u' THEN
            RETURN kliv_mail._door_problem(403) || '{"why": "cross_site"}';
        END IF;
        v_form := kliv_mail._request_form(r ->> 'content_type', p_body);
        IF v_form IS NULL THEN
            RETURN kliv_mail._door_problem(415);
        END IF;
        r := r || jsonb_build_object('form', v_form);
    END IF;
    r := r || jsonb_build_object('method', v_method, 'may_change', kliv_mail._door_may('admin'));
    IF v_route.handler = '_door_hook' THEN
        RETURN kliv_mail._door_hook(v_path[2], p_headers, coalesce(p_body, ''));
    END IF;
    BEGIN
        EXECUTE format('SELECT kliv_mail.%I($1)', v_route.handler) INTO v_answer USING r;
        RETURN v_answer;
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_message = MESSAGE_TEXT, v_hint = PG_EXCEPTION_HINT;
        v_failure := kliv_mail._door_failure(v_state, v_message, v_hint);
        v_status := (v_failure -> 'status')::integer;
    END;
    IF v_status = 403 THEN
        RETURN kliv_mail._door_problem(403, format('SELECT kliv_mail.grant_admin(%L);', current_user));
    ELSIF v_status <> 422 THEN
        RAISE LOG USING MESSAGE = format('http_request: %s %s failed: %s %s', v_method, v_route.path, v_state, v_message);
        RETURN kliv_mail._door_problem(v_status);
    ELSIF v_method = 'GET' OR v_route.methods = 'POST' THEN
        RETURN kliv_mail._door_problem(400, v_message);
    END IF;
    -- The page that the form stands on, with what was given and what is wrong with it.
    BEGIN
        EXECUTE format('SELECT kliv_mail.%I($1)', v_route.handler) INTO v_answer
        USING r || jsonb_build_object('method', 'GET', 'error', v_failure, 'form', v_form - '{password,password_sealed}'::text[]);
        RETURN v_answer || jsonb_build_object('status', 422, 'error', v_failure);
    EXCEPTION WHEN OTHERS THEN
        RETURN kliv_mail._door_problem(422, v_message);
    END;
END;
$$;

-- The function behind http_request(), whose results have names of its arguments, which plpgsql does not like.
CREATE FUNCTION kliv_mail._http_request(p_method text, p_path text, p_query text, p_headers jsonb, p_body bytea)
RETURNS TABLE (status integer, headers jsonb, body bytea)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r jsonb;
    v_answer jsonb;
BEGIN
    BEGIN
        r := kliv_mail._read_request(p_method, p_path, p_query, p_headers, p_body);
        IF p_path !~ '^/hooks/|/style[.]css$' THEN
            r := r || jsonb_build_object('t', kliv_mail._door_texts(r ->> 'language'));
        END IF;
        v_answer := kliv_mail._door_answer(r, p_headers, p_body);
    EXCEPTION WHEN data_exception THEN
        v_answer := kliv_mail._door_problem(400);
    WHEN program_limit_exceeded THEN
        v_answer := kliv_mail._door_problem(CASE WHEN r IS NULL THEN 414 ELSE 413 END);
    END;
    RETURN QUERY SELECT x.status, x.headers, x.body
    FROM kliv_mail._door_response(coalesce(r, jsonb_build_object('route', left(p_path, 2000), 'language', 'en')), v_answer, p_method = 'HEAD') AS x;
END;
$$;

CREATE FUNCTION kliv_mail.http_request(method text, path text, query text DEFAULT NULL, headers jsonb DEFAULT '{}', body bytea DEFAULT NULL)
RETURNS TABLE (status integer, headers jsonb, body bytea)
LANGUAGE sql VOLATILE ROWS 1 SET search_path = pg_catalog, pg_temp SET jit = off
BEGIN ATOMIC
    SELECT x.status, x.headers, x.body FROM kliv_mail._http_request($1, $2, $3, coalesce($4, '{}'), $5) AS x;
END;
COMMENT ON FUNCTION kliv_mail.http_request IS
$$Answers an HTTP request, for whatever server stands in front: pages and webhooks need no code of yours. path: as it came, percent-encoded, without the query; query: what stands behind the ?, or NULL; headers: an object of names, in any case, and values; body: its bytes. One row: the response's status, headers and body, to be handed on unchanged.
/u/TOKEN (grant_ingest): the page by which a recipient leaves a topic, set_brand(unsubscribe_url => 'https://.../u'); a POST leaves, also that of RFC 8058. /hooks/PROVIDER (grant_ingest): the provider's webhook, for ingest_webhook(); answer after the commit. /admin (grant_read to look, grant_admin to change): the administrator's pages, in English and Japanese.
Who asks is the role that calls: sign people in by roles of their own, and let nobody call it for another. GET changes nothing. A POST from another site's page (Origin, Sec-Fetch-Site) to /admin is refused. Errors are statuses: 400, 403, 404, 405, 413, 414, 415, 422, 500, 503.
Example: SELECT status, convert_from(body, 'UTF8') FROM kliv_mail.http_request('GET', '/admin');$$;
