-- What a template may be: names, locales, variables; and what is found in its sources.

CREATE FUNCTION kliv_mail._template_names(argument text, source text)
RETURNS TABLE (kind text, name text, line integer, "column" integer, sections text[], raw boolean)
AS '$libdir/kliv_mail_template', 'kliv_mail__template_names' LANGUAGE C STABLE STRICT SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION kliv_mail._template_all_names(p_subject text, p_body text, p_plain text)
RETURNS TABLE (argument text, kind text, name text, line integer, "column" integer, sections text[], raw boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT s.argument, x.kind, x.name, x.line, x."column", x.sections, x.raw
    FROM (VALUES ('subject', p_subject), ('body', p_body), ('plain_text', p_plain)) AS s (argument, source),
         kliv_mail._template_names(s.argument, s.source) AS x;
END;

CREATE FUNCTION kliv_mail._template_mail(
    subject text, body text, format text, plain_text text, layout text, partials jsonb, variables jsonb, defaults jsonb,
    brand jsonb, locale text, email text, unsubscribe_url text, OUT subject text, OUT plain_text text, OUT html text, OUT notes jsonb, OUT preheader text)
AS '$libdir/kliv_mail_template', 'kliv_mail__template_mail' LANGUAGE C STABLE SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION kliv_mail._template_contrast(color text) RETURNS double precision
AS '$libdir/kliv_mail_template', 'kliv_mail__template_contrast' LANGUAGE C STABLE STRICT SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION kliv_mail._template_changed() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO kliv_mail._template_state AS s (generation) VALUES (gen_random_uuid())
    ON CONFLICT (singleton) DO UPDATE SET generation = excluded.generation;
END;
$$;

CREATE FUNCTION kliv_mail._template_name(p_name text, p_argument text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_name IS NULL OR p_name !~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%s: %s', p_argument, CASE WHEN p_name IS NULL THEN 'is NULL'
                ELSE format('"%s" is not a name', left(p_name, 80)) END),
            HINT = 'Write letters, digits, - and _, at most 63 of them: ''reset-password''.';
    END IF;
    RETURN p_name;
END;
$$;

-- '' for NULL, the default; else in the form "pt-BR".
CREATE FUNCTION kliv_mail._template_locale(p_locale text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_parts text[] := string_to_array(replace(coalesce(p_locale, ''), '_', '-'), '-');
BEGIN
    IF coalesce(p_locale, '') = '' THEN
        RETURN '';
    ELSIF array_to_string(v_parts, '-') !~ '^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}$' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('locale: "%s" is not a locale', left(p_locale, 80)),
            HINT = 'Write it as ''ja'' or ''pt-BR''; NULL is the default.';
    END IF;
    RETURN (SELECT string_agg(CASE WHEN x.n = 1 THEN lower(x.part COLLATE "C") WHEN length(x.part) = 2 THEN upper(x.part COLLATE "C")
                                   WHEN length(x.part) = 4 THEN initcap(x.part COLLATE "C") ELSE x.part END, '-' ORDER BY x.n)
            FROM unnest(v_parts) WITH ORDINALITY AS x (part, n));
END;
$$;

-- The locales to look for, in order: pt-BR, pt, the default.
CREATE FUNCTION kliv_mail._template_locales(p_locale text) RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE WHEN p_locale = '' THEN ARRAY['']
           ELSE ARRAY(SELECT array_to_string((string_to_array(p_locale, '-'))[1:n], '-')
                      FROM generate_series(cardinality(string_to_array(p_locale, '-')), 1, -1) AS n) || ''::text END;
END;

-- How many letters apart two words are (Levenshtein), for hints; both short.
CREATE FUNCTION kliv_mail._distance(a text, b text) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_row integer[] := ARRAY(SELECT generate_series(0, length(b)));
    v_next integer[];
BEGIN
    FOR i IN 1 .. length(a) LOOP
        v_next := ARRAY[i];
        FOR j IN 1 .. length(b) LOOP
            v_next := v_next || least(v_next[j] + 1, v_row[j + 1] + 1,
                v_row[j] + CASE WHEN lower(substr(a, i, 1) COLLATE "C") = lower(substr(b, j, 1) COLLATE "C") THEN 0 ELSE 1 END);
        END LOOP;
        v_row := v_next;
    END LOOP;
    RETURN v_row[length(b) + 1];
END;
$$;

-- 'Did you mean "firstName"? ', or ''.
CREATE FUNCTION kliv_mail._nearest(p_name text, p_names text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT coalesce((
        SELECT format('Did you mean "%s"? ', x.name)
        FROM (SELECT n.name, kliv_mail._distance(left(p_name, 40), left(n.name, 40)) AS distance FROM unnest(p_names) AS n (name)) AS x
        WHERE x.distance <= greatest(2, length(p_name) / 3) ORDER BY x.distance, x.name LIMIT 1), '');
END;

-- variables as declared: an object of objects.
CREATE FUNCTION kliv_mail._check_variables(p_variables jsonb) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v record;
    c_form constant text := 'Write {"name": {"required": true, "default": ..., "example": ..., "description": "..."}}; each of the four may be left out.';
BEGIN
    IF jsonb_typeof(p_variables) <> 'object' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'variables: is not an object', HINT = c_form;
    END IF;
    FOR v IN SELECT x.key, x.value FROM jsonb_each(p_variables) AS x LOOP
        IF v.key !~ E'^[^\\s.{}"''<>$|]{1,100}$' THEN
            RAISE invalid_parameter_value USING MESSAGE = format('variables: "%s" is not a name', left(v.key, 80)), HINT = c_form;
        ELSIF jsonb_typeof(v.value) <> 'object' THEN
            RAISE invalid_parameter_value USING MESSAGE = format('variables: "%s" is not an object', v.key), HINT = c_form;
        ELSIF EXISTS (SELECT FROM jsonb_object_keys(v.value) AS k WHERE k NOT IN ('required', 'default', 'example', 'description')) THEN
            RAISE invalid_parameter_value USING MESSAGE = format('variables: "%s" has "%s"', v.key,
                (SELECT min(k) FROM jsonb_object_keys(v.value) AS k WHERE k NOT IN ('required', 'default', 'example', 'description'))), HINT = c_form;
        ELSIF v.value ? 'required' AND jsonb_typeof(v.value -> 'required') <> 'boolean' THEN
            RAISE invalid_parameter_value USING MESSAGE = format('variables: required of "%s" is not true or false', v.key), HINT = c_form;
        END IF;
    END LOOP;
END;
$$;

-- Must a caller give it?  Where nothing is said: if there is no default.
CREATE FUNCTION kliv_mail._is_required(p_declared jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT coalesce((p_declared -> 'required')::boolean, NOT p_declared ? 'default') AND NOT p_declared ? 'default';
END;

-- The defaults of variables, and their examples as a caller would give them.
CREATE FUNCTION kliv_mail._variable_defaults(p_variables jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT coalesce(jsonb_object_agg(x.key, x.value -> 'default') FILTER (WHERE x.value ? 'default'), '{}') FROM jsonb_each(p_variables) AS x);
END;
$$;

CREATE FUNCTION kliv_mail._variable_examples(p_variables jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT coalesce(jsonb_object_agg(x.key, CASE WHEN x.value ? 'example' THEN x.value -> 'example' WHEN x.value ? 'default' THEN x.value -> 'default'
                                                 ELSE to_jsonb(x.key) END), '{}') FROM jsonb_each(p_variables) AS x);
END;
$$;

-- What is around a mail: the brand, and the layout and the partials of a locale.
CREATE FUNCTION kliv_mail._brand_values() RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT coalesce((SELECT to_jsonb(b) FROM kliv_mail._brand AS b), '{}'));
END;
$$;

CREATE FUNCTION kliv_mail._template_source(p_name text, p_locale text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_locale text;
    v_body text;
BEGIN
    FOREACH v_locale IN ARRAY kliv_mail._template_locales(p_locale) LOOP
        SELECT x.body INTO v_body FROM kliv_mail._current_rows(NULL::kliv_mail._template, '_template_pkey', p_name, v_locale) AS t
        CROSS JOIN LATERAL kliv_mail._current_rows(NULL::kliv_mail._template_version, '_template_version_pkey', t.name, t.locale) AS x
        WHERE x.version = t.version;
        EXIT WHEN FOUND;
    END LOOP;
    RETURN v_body;
END;
$$;

CREATE FUNCTION kliv_mail._template_partials(p_locale text) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT coalesce(jsonb_object_agg(x.name, kliv_mail._template_source(x.name, p_locale)), '{}')
    FROM (SELECT DISTINCT t.name FROM kliv_mail._template AS t WHERE t.version IS NOT NULL) AS x);
END;
$$;
