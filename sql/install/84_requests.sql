-- http_request(), what it reads: path, query, form, language, origin of a request.

-- The text behind %XX (form: behind + too); 22023 for what is none, or no UTF-8.
CREATE FUNCTION kliv_mail._percent_decoded(encoded text, form boolean) RETURNS text
AS '$libdir/kliv_mail_net', 'kliv_mail__percent_decoded' LANGUAGE C IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp;

-- The fields of a query or a form (application/x-www-form-urlencoded), as an object.
-- A name that stands there twice would be read by each reader in another way.
CREATE FUNCTION kliv_mail._form_fields(p_form text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_fields jsonb;
    v_count bigint;
BEGIN
    IF p_form !~ '^[!-~]*$' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the request has characters that are not percent-encoded';
    ELSIF char_length(p_form) - char_length(replace(p_form, '&', '')) > 500 THEN
        RAISE program_limit_exceeded USING MESSAGE = 'the request has over 500 fields';
    END IF;
    SELECT jsonb_object_agg(f.name, f.value), count(f.name) INTO v_fields, v_count
    FROM (SELECT kliv_mail._percent_decoded(split_part(x.pair, '=', 1), true) AS name,
                 kliv_mail._percent_decoded(substr(x.pair, char_length(split_part(x.pair, '=', 1)) + 2), true) AS value
          FROM string_to_table(p_form, '&') AS x (pair) WHERE x.pair <> '') AS f;
    IF v_count <> (SELECT count(*) FROM jsonb_object_keys(coalesce(v_fields, '{}')) AS k) THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the request has a field twice';
    END IF;
    RETURN coalesce(v_fields, '{}');
END;
$$;

-- The segments of a path, decoded; NULL for one that names nothing here, however
-- it is written: empty and dot segments, slashes and control characters in disguise.
CREATE FUNCTION kliv_mail._path_segments(p_path text) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_segments text[];
BEGIN
    IF p_path !~ '^/[!$%&''()*+,./0-9:;=@A-Z_a-z~-]*$' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the path has characters that are not percent-encoded';
    END IF;
    SELECT array_agg(kliv_mail._percent_decoded(s.segment, false) ORDER BY s.n) INTO v_segments
    FROM string_to_table(regexp_replace(substr(p_path, 2), '(.)/$', E'\\1'), '/') WITH ORDINALITY AS s (segment, n);
    RETURN CASE WHEN cardinality(v_segments) <= 6
                 AND NOT EXISTS (SELECT FROM unnest(v_segments) AS s (segment) WHERE s.segment IN ('', '.', '..') OR s.segment ~ E'[/\\\\\\x01-\\x1f\\x7f]')
                THEN v_segments END;
END;
$$;

-- The one of our languages that an Accept-Language likes best.
CREATE FUNCTION kliv_mail._preferred_language(p_accept text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        SELECT coalesce((
            SELECT w.language FROM (
                SELECT lower(split_part(split_part(trim(x.range), ';', 1), '-', 1) COLLATE "C") AS language, x.n,
                       coalesce(substring(x.range FROM ';[ ]*q=([01](?:[.][0-9]{0,3})?)[ ]*$')::numeric, 1) AS q
                FROM string_to_table(left(p_accept, 1000), ',') WITH ORDINALITY AS x (range, n)) AS w
            WHERE w.language IN ('en', 'ja') AND w.q > 0 ORDER BY w.q DESC, w.n LIMIT 1), 'en'));
END;
$$;

-- Did another site's page send this?  A browser says so in one of these headers; who
-- is none, or a mail program that leaves a list, sends neither.  Where the front hands
-- no host on, an origin proves nothing.
CREATE FUNCTION kliv_mail._is_cross_site(p_site text, p_origin text, p_host text) RETURNS boolean
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT coalesce(p_site NOT IN ('same-origin', 'none'), false)
        OR coalesce(lower(regexp_replace(p_origin, '^https?://', '') COLLATE "C") <> lower(p_host COLLATE "C"), p_origin IS NOT NULL AND p_site IS NULL);
END;

-- A request as the routes read it: {"method", "path" (segments; absent: names nothing), "route" (as it came),
-- "query", "form", "language", "set_language", "cross_site", "content_type", "sign_out"}.  Errors of classes 22 and 54: it is none.
CREATE FUNCTION kliv_mail._read_request(p_method text, p_path text, p_query text, p_headers jsonb, p_body bytea) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r jsonb;
    v_query jsonb;
    v_language text;
    h jsonb;
BEGIN
    IF p_method IS NULL OR p_method !~ '^[!#$%&''*+.^_`|~0-9A-Za-z-]{1,40}$' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the request''s method is none';
    ELSIF p_path IS NULL OR jsonb_typeof(p_headers) IS DISTINCT FROM 'object' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'the request has no path, or headers that are no JSON object';
    ELSIF char_length(p_path) > 2000 OR char_length(p_query) > 8000 OR octet_length(p_headers::text) > 65536 THEN
        RAISE program_limit_exceeded USING MESSAGE = 'the request''s path, query or headers are too long';
    END IF;
    -- By their names in lower case; one that stands there twice counts as missing.
    SELECT jsonb_object_agg(x.name, x.value) INTO h
    FROM (SELECT lower(e.key COLLATE "C") AS name, min(e.value #>> '{}') AS value FROM jsonb_each(p_headers) AS e
          WHERE jsonb_typeof(e.value) = 'string' GROUP BY 1 HAVING count(*) = 1) AS x;
    v_query := kliv_mail._form_fields(coalesce(p_query, ''));
    -- The page's switch, what it once said, the browser.
    v_language := substring(v_query ->> 'lang' FROM '^(?:en|ja)$');
    r := jsonb_build_object(
        'method', p_method, 'path', to_jsonb(kliv_mail._path_segments(p_path)), 'route', p_path, 'query', v_query - 'lang', 'form', '{}'::jsonb,
        'raw_query', array_to_string(ARRAY(SELECT x.pair FROM string_to_table(p_query, '&') AS x (pair) WHERE x.pair !~ '^lang=' AND x.pair <> ''), '&'),
        'set_language', v_language,
        'language', coalesce(v_language,
            substring((h ->> 'cookie') FROM '(?:^|;[ ]*)kliv_mail_language=(en|ja)(?:;|$)'),
            kliv_mail._preferred_language(h ->> 'accept-language')),
        'cross_site', kliv_mail._is_cross_site(h ->> 'sec-fetch-site', h ->> 'origin', h ->> 'host'), 'content_type', h ->> 'content-type',
        -- Where whoever signed this person in lets them go.
        'sign_out', substring(h ->> 'x-kliv-mail-sign-out' FROM '^/[a-z0-9_-][a-z0-9/_-]{0,100}$'));
    RETURN jsonb_strip_nulls(r);
END;
$$;

-- The fields of the form that a POST carries; NULL: its body is none.
CREATE FUNCTION kliv_mail._request_form(p_type text, p_body bytea) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- What is no ASCII gets a backslash, which no form has.
    v_text text := encode(p_body, 'escape');
BEGIN
    IF v_text = '' OR v_text IS NULL THEN
        RETURN '{}';
    -- Mail programs leave a list by this one field (RFC 8058), as a form of either kind; those within a browser
    -- call it text, or nothing, and libraries give the parts of a form headers of their own.
    ELSIF v_text ~ E'^List-Unsubscribe=One-Click[ \\r\\n]*$'
       OR p_type ~* '^multipart/form-data(?:$|[ ;])' COLLATE "C"
          AND v_text ~ E'name="?List-Unsubscribe"?[^\\r\\n]*(?:\\r?\\n[^\\r\\n]+)*\\r?\\n\\r?\\nOne-Click' THEN
        RETURN '{"List-Unsubscribe": "One-Click"}';
    ELSIF p_type ~* '^application/x-www-form-urlencoded(?:$|[ ;])' COLLATE "C" THEN
        IF position(E'\\' IN v_text) > 0 THEN
            RAISE invalid_parameter_value USING MESSAGE = 'the request has characters that are not percent-encoded';
        END IF;
        RETURN kliv_mail._form_fields(v_text);
    END IF;
    RETURN NULL;
END;
$$;
