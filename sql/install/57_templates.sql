-- save_template() and its kin.

-- The variables of sources: declared ones are what may stand there, else those
-- that are found outside of sections become the declared ones.
CREATE FUNCTION kliv_mail._template_variables(p_subject text, p_body text, p_plain text, p_variables jsonb, p_name text) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    n record;
    v_found jsonb := '{}';
    v_root text;
    v_known boolean;
    v_names text[];
    c_built_in constant text[] := ARRAY['firstName', 'lastName', 'email', 'timestamp', 'brand', 'unsubscribe_url', 'preheader'];
    c_layout constant text[] := ARRAY['content', 'subject', 'lang', 'dir', 'unsubscribe'];
BEGIN
    IF p_variables IS NOT NULL THEN
        PERFORM kliv_mail._check_variables(p_variables);
    END IF;
    v_names := c_built_in || CASE p_name WHEN 'layout' THEN c_layout ELSE '{}' END
        || ARRAY(SELECT k FROM jsonb_object_keys(coalesce(p_variables, '{}')) AS k);
    FOR n IN
        SELECT x.*, split_part(x.name, '.', 1) AS root FROM kliv_mail._template_all_names(p_subject, p_body, p_plain) AS x
    LOOP
        IF n.kind = 'partial' THEN
            IF n.name <> p_name AND NOT EXISTS (SELECT FROM kliv_mail._template AS t WHERE t.name = n.name) THEN
                RAISE invalid_parameter_value USING
                    MESSAGE = format('%s: line %s, column %s: there is no template "%s" to put in', n.argument, n.line, n."column", left(n.name, 80)),
                    HINT = kliv_mail._nearest(n.name, ARRAY(SELECT DISTINCT t.name FROM kliv_mail._template AS t)) || 'Save the partial first.';
            END IF;
            CONTINUE;
        ELSIF n.root = '' OR n.root = ANY (v_names) THEN
            CONTINUE;
        ELSIF p_variables IS NULL AND cardinality(n.sections) = 0 THEN
            v_found := v_found || jsonb_build_object(n.root, jsonb_build_object('required', true));
            CONTINUE;
        ELSIF cardinality(n.sections) > 0 THEN
            -- A field of what a section around it is about, as far as its example tells.
            v_known := EXISTS (
                SELECT FROM unnest(n.sections) AS s (section)
                CROSS JOIN LATERAL (SELECT p_variables -> split_part(s.section, '.', 1) -> 'example' AS example) AS e
                WHERE e.example IS NULL OR position('.' IN s.section) > 0 OR jsonb_typeof(e.example) NOT IN ('array', 'object')
                   OR EXISTS (SELECT FROM jsonb_path_query(e.example, 'strict $.**') AS f (item) WHERE jsonb_typeof(f.item) = 'object' AND f.item ? n.root));
            CONTINUE WHEN v_known OR p_variables IS NULL;
        END IF;
        RAISE invalid_parameter_value USING
            MESSAGE = format('%s: line %s, column %s: there is no variable "%s"', n.argument, n.line, n."column", left(n.root, 80)),
            HINT = kliv_mail._nearest(n.root, v_names) || 'Declare it in variables, or write $$ for a dollar sign.';
    END LOOP;
    RETURN coalesce(p_variables, v_found);
END;
$body$;

CREATE FUNCTION kliv_mail._save_template(
    p_caller name, p_name text, p_subject text, p_body text, p_format text, p_plain_text text, p_message_type text, p_locale text,
    p_variables jsonb, p_expires_in interval, p_description text, p_publish boolean) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name text := kliv_mail._template_name(p_name, 'name');
    v_locale text := kliv_mail._template_locale(p_locale);
    v_variables jsonb;
    v_before jsonb;
    v_version integer;
    v_missing text;
    w record;
BEGIN
    IF p_subject IS NULL OR p_body IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = CASE WHEN p_subject IS NULL THEN 'subject' ELSE 'body' END || ': is NULL';
    ELSIF p_format IS NULL OR p_format NOT IN ('markdown', 'html') THEN
        RAISE invalid_parameter_value USING MESSAGE = format('format: %s is not a choice', coalesce(quote_ident(left(p_format, 40)), 'NULL')),
            HINT = 'Use markdown (your own HTML passes where {{% html }} begins the body) or html.';
    ELSIF p_message_type IS NULL OR p_message_type NOT IN ('system', 'transactional', 'marketing') THEN
        RAISE invalid_parameter_value USING MESSAGE = format('message_type: %s is not a choice', coalesce(quote_ident(left(p_message_type, 40)), 'NULL')),
            HINT = 'Use system, transactional or marketing.';
    ELSIF p_expires_in <= interval '0' OR p_expires_in > interval '10 years' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('expires_in: %s is not a time within ten years', p_expires_in),
            HINT = 'Write it as ''10 minutes'', or leave it NULL.';
    ELSIF length(p_description) > 1000 THEN
        RAISE program_limit_exceeded USING MESSAGE = 'description: over 1000 characters';
    ELSIF p_publish IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = 'publish: is NULL', HINT = 'Use true, or false for a draft.';
    ELSIF v_name = 'layout' AND (p_format <> 'html' OR NOT EXISTS (
              SELECT FROM kliv_mail._template_names('body', p_body) AS x WHERE x.name = 'content' AND x.raw)
              -- not in a tag or a comment
              OR p_body ~ E'<[^<>]*[{]{2}[{&]\\s*content\\s*[}]{2,3}[^<>]*>') THEN
        RAISE invalid_parameter_value USING MESSAGE = 'body: a layout is HTML with {{{content}}} where a mail''s content goes',
            HINT = 'Save it with format => ''html'', or take another name for what is no layout.';
    END IF;
    v_variables := kliv_mail._template_variables(p_subject, p_body, p_plain_text, p_variables, v_name);

    PERFORM pg_advisory_xact_lock('kliv_mail._template'::regclass::oid::integer, hashtext(v_name || ' ' || v_locale));
    SELECT v.variables INTO v_before FROM kliv_mail._template AS t
    JOIN kliv_mail._template_version AS v ON (v.name, v.locale, v.version) = (t.name, t.locale, t.version)
    WHERE t.name = v_name AND t.locale = v_locale;
    IF FOUND THEN
        SELECT min(x.key) INTO v_missing FROM jsonb_each(v_variables) AS x
        WHERE kliv_mail._is_required(x.value) AND NOT v_before ? x.key;
        IF v_missing IS NOT NULL THEN
            RAISE invalid_parameter_value USING MESSAGE = format('variables: "%s" is new and required, and callers of "%s" do not give it', v_missing, v_name),
                HINT = format('Give it a default, {"%s": {"default": "..."}}, or save another template.', v_missing);
        END IF;
    END IF;
    FOR w IN SELECT * FROM kliv_mail._template_problems(v_name, p_subject, p_body, p_format, p_plain_text, p_message_type, v_locale, v_variables)
             ORDER BY severity, line, "column", problem LIMIT 5 LOOP
        IF w.severity = 'error' THEN
            RAISE invalid_parameter_value USING MESSAGE = 'body: ' || CASE WHEN w.line IS NOT NULL THEN format('line %s, column %s: ', w.line, w."column") ELSE '' END || w.problem, HINT = w.hint;
        END IF;
        RAISE NOTICE USING MESSAGE = CASE WHEN w.line IS NOT NULL THEN format('line %s, column %s: ', w.line, w."column") ELSE '' END || w.problem, HINT = w.hint;
    END LOOP;

    SELECT coalesce(max(v.version), 0) + 1 INTO v_version FROM kliv_mail._template_version AS v WHERE v.name = v_name AND v.locale = v_locale;
    INSERT INTO kliv_mail._template_version (name, locale, version, subject, body, format, plain_text, message_type, variables, expires_in,
        description, saved_at, saved_by)
    VALUES (v_name, v_locale, v_version, p_subject, p_body, p_format, p_plain_text, p_message_type, v_variables, p_expires_in,
        nullif(p_description, ''), kliv_mail._now(), p_caller);
    INSERT INTO kliv_mail._template AS t (name, locale, version) VALUES (v_name, v_locale, CASE WHEN p_publish THEN v_version END)
    ON CONFLICT (name, locale) DO UPDATE SET version = coalesce(excluded.version, t.version);
    PERFORM kliv_mail._template_changed();
    PERFORM kliv_mail._log_event('template_saved', NULL, format('%s%s, version %s%s', v_name, coalesce(' (' || nullif(v_locale, '') || ')', ''), v_version,
        CASE WHEN p_publish THEN '' ELSE ', a draft' END), NULL, p_caller);
    RETURN v_version;
END;
$$;

CREATE FUNCTION kliv_mail.save_template(
    name text, subject text, body text, format text DEFAULT 'markdown', plain_text text DEFAULT NULL,
    message_type text DEFAULT 'transactional', locale text DEFAULT NULL, variables jsonb DEFAULT NULL, expires_in interval DEFAULT NULL,
    description text DEFAULT NULL, publish boolean DEFAULT true) RETURNS integer
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.save_template IS
$comment$Saves a new version of a template and returns its number; publish => false makes a draft, the present version stays in use. body is Markdown with $firstName or ${order.total}, {{#items}}...{{/items}}, {{> partial}}; [Label](https://... "button") is a button. A body that begins with {{% html }} lets its own HTML and {{{name}}} pass, else both are shown as they are written. plain_text: NULL is made from body. variables: {"name": {"required": true, "default": ..., "example": ..., "description": "..."}}; NULL: what is found is required. expires_in: mail that has not left by then does not leave. A template named layout (html with {{{content}}}) stands around all others.
format: markdown | html
message_type: system | transactional | marketing
Warns of what mail programs would not like (NOTICE; all of it: check_template()). Errors: 42601 syntax, 22023 an unknown variable or partial, both with line, column and the nearest name, 54000 over 256 kB.
Example: SELECT kliv_mail.save_template('welcome', 'Welcome, $firstName', 'Hello **$firstName**, [confirm](${url} "button") your address.', variables => '{"url": {"example": "https://example.com/c/1"}}');$comment$;

-- A template of that name and locale; else 22023 with the nearest name.
CREATE FUNCTION kliv_mail._known_template(p_name text, p_locale text) RETURNS kliv_mail._template
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t kliv_mail._template;
BEGIN
    SELECT * INTO t FROM kliv_mail._template AS x
    WHERE x.name = kliv_mail._template_name(p_name, 'name') AND x.locale = kliv_mail._template_locale(p_locale);
    IF NOT FOUND THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('name: there is no template "%s"%s', p_name, CASE WHEN p_locale IS NOT NULL THEN format(' in "%s"', p_locale) ELSE '' END),
            HINT = kliv_mail._nearest(p_name, ARRAY(SELECT DISTINCT x.name FROM kliv_mail._template AS x))
                || 'SELECT name, locale FROM kliv_mail.templates; lists them.';
    END IF;
    RETURN t;
END;
$$;

CREATE FUNCTION kliv_mail._restore_template(p_caller name, p_name text, p_version integer, p_locale text) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name text := kliv_mail._template_name(p_name, 'name');
    v_locale text := kliv_mail._template_locale(p_locale);
BEGIN
    IF NOT EXISTS (SELECT FROM kliv_mail._template_version AS v WHERE v.name = v_name AND v.locale = v_locale AND v.version = p_version) THEN
        RAISE invalid_parameter_value USING MESSAGE = format('version: "%s" has no version %s', p_name, coalesce(p_version::text, 'NULL')),
            HINT = format('SELECT version, saved_at FROM kliv_mail.template_versions WHERE name = %L; lists them.', p_name);
    END IF;
    INSERT INTO kliv_mail._template (name, locale, version) VALUES (v_name, v_locale, p_version)
    ON CONFLICT (name, locale) DO UPDATE SET version = excluded.version;
    PERFORM kliv_mail._template_changed();
    PERFORM kliv_mail._log_event('template_restored', NULL, format('%s, version %s', v_name, p_version), NULL, p_caller);
    RETURN p_version;
END;
$$;

CREATE FUNCTION kliv_mail.restore_template(name text, version integer, locale text DEFAULT NULL) RETURNS integer
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.restore_template IS
$$Puts a version of a template into use: an older one, a draft, or one of a template that was deleted. Returns its number. Errors: 22023 no such version.
Example: SELECT kliv_mail.restore_template('welcome', 1);$$;

CREATE FUNCTION kliv_mail._delete_template(p_caller name, p_name text, p_locale text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM kliv_mail._template AS t
    WHERE t.name = kliv_mail._template_name(p_name, 'name') AND (p_locale IS NULL OR t.locale = kliv_mail._template_locale(p_locale));
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM kliv_mail._template_changed();
    PERFORM kliv_mail._log_event('template_deleted', NULL, p_name || coalesce(' (' || p_locale || ')', ''), NULL, p_caller);
    RETURN true;
END;
$$;

CREATE FUNCTION kliv_mail.delete_template(name text, locale text DEFAULT NULL) RETURNS boolean
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.delete_template IS
$$Takes a template out of use, in one locale or (NULL) in all; true if there was one. Its versions stay in kliv_mail.template_versions, restore_template() brings one back; mail that was made from it is not touched.
Example: SELECT kliv_mail.delete_template('welcome');$$;
