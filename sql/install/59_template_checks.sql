-- What mail programs would not like about a template.

-- Errors and warnings of sources that compile, by what they become with the
-- declared examples.
CREATE FUNCTION kliv_mail._template_problems(
    p_name text, p_subject text, p_body text, p_format text, p_plain_text text, p_message_type text, p_locale text, p_variables jsonb)
RETURNS TABLE (severity text, line integer, "column" integer, problem text, hint text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m record;
    n record;
    v_brand jsonb := kliv_mail._brand_values();
    v_unused text;
    v_partials jsonb := kliv_mail._template_partials(p_locale);
BEGIN
    severity := 'error';
    BEGIN
        SELECT * INTO m FROM kliv_mail._template_mail(p_subject, CASE p_name WHEN 'layout' THEN '' ELSE p_body END, p_format, p_plain_text,
            CASE p_name WHEN 'layout' THEN p_body ELSE kliv_mail._template_source('layout', p_locale) END, v_partials,
            kliv_mail._variable_examples(p_variables), kliv_mail._variable_defaults(p_variables), v_brand, nullif(p_locale, ''), 'ana@example.com',
            CASE p_message_type WHEN 'marketing' THEN coalesce(v_brand ->> 'unsubscribe_url', 'https://example.com/unsubscribe') END) AS x;
    EXCEPTION WHEN invalid_parameter_value OR program_limit_exceeded THEN
        GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT;
        IF p_name = 'layout' OR p_variables::text !~ '"example"' THEN
            severity := 'warning';
            problem := 'it cannot be made with examples: ' || problem;
            hint := 'Declare an example for each variable: variables => {"total": {"example": 12.5}}.';
        END IF;
        RETURN NEXT;
        RETURN;
    END;
    FOR n IN SELECT x.kind, x.line, x."column", x.detail FROM jsonb_to_recordset(m.notes) AS x (kind text, line integer, "column" integer, detail text) LOOP
        severity := CASE WHEN n.kind IN ('raw_value', 'misplaced', 'script') THEN 'error' ELSE 'warning' END;
        line := n.line;
        "column" := n."column";
        SELECT k.problem, k.hint INTO problem, hint FROM (VALUES
            ('no_alt', 'an image has no text', 'Write ![what it shows](https://...), in HTML alt="what it shows": many read mail without images.'),
            ('refused_url', 'a link or image does not begin with https:, http:, mailto: or tel:: ' || coalesce(n.detail, ''),
                'Write the whole URL; no other leads anywhere from a mail.'),
            ('not_https', 'a link or image is not https: ' || coalesce(n.detail, ''), 'Write https://; whoever is between can read and change the other.'),
            ('other_address', 'a link''s text names another address than the link, as phishing does: ' || coalesce(n.detail, ''), 'Name the link in words.'),
            ('raw_value', '{{{ }}} would put HTML into Markdown', 'Write {{ }}, or {{% html }} at the beginning of the body, by which HTML passes.'),
            ('misplaced', 'a value stands in ' || coalesce(n.detail, 'a tag'), 'Put values into texts and attributes only.'),
            ('script', 'mail programs run no script', 'Take the script or the event attribute out.'),
            ('open_tag', 'the HTML ends within a tag', 'Close it.')) AS k (kind, problem, hint) WHERE k.kind = n.kind;
        RETURN NEXT;
    END LOOP;

    severity := 'warning';
    line := NULL;
    "column" := NULL;
    IF octet_length(m.html) > 102 * 1024 THEN
        problem := format('its HTML has %s kB: Gmail cuts it after 102 kB, and the unsubscribe link with it', octet_length(m.html) / 1024);
        hint := 'Say less, or say it on a page that the mail links to.';
        RETURN NEXT;
    END IF;
    IF length(m.subject) > 78 THEN
        problem := format('the subject has %s characters', length(m.subject));
        hint := 'Most programs show 40 to 78 of them.';
        RETURN NEXT;
    END IF;
    FOR n IN
        SELECT x.* FROM kliv_mail._template_names('subject', p_subject) AS x
        WHERE x.kind = 'value' AND x.name ~* '^(code|otp|pin|token|password|one_?time_?code)$' COLLATE "C" ORDER BY x."column" LIMIT 1
    LOOP
        line := n.line;
        "column" := n."column";
        problem := format('the subject shows "%s", and locked screens show subjects', n.name);
        hint := 'Write the code in the body only.';
        RETURN NEXT;
    END LOOP;
    line := NULL;
    "column" := NULL;
    IF kliv_mail._template_contrast(v_brand ->> 'color') < 4.5 THEN
        problem := format('text in the brand''s colour %s on white has a contrast of %s : 1, below 4.5 : 1', v_brand ->> 'color',
            round(kliv_mail._template_contrast(v_brand ->> 'color')::numeric, 1));
        hint := 'Links are shown in another colour; kliv_mail.set_brand(color => ...) takes a darker one.';
        RETURN NEXT;
    END IF;
    FOR v_unused IN
        WITH RECURSIVE used AS (
            SELECT x.kind, x.name FROM kliv_mail._template_all_names(p_subject, p_body, p_plain_text) AS x
            UNION
            SELECT x.kind, x.name FROM used AS u CROSS JOIN LATERAL kliv_mail._template_names(u.name, v_partials ->> u.name) AS x WHERE u.kind = 'partial'
        )
        SELECT k FROM jsonb_object_keys(p_variables) AS k
        WHERE k <> 'preheader' AND NOT EXISTS (SELECT FROM used AS u WHERE u.kind <> 'partial' AND split_part(u.name, '.', 1) = k) ORDER BY k
    LOOP
        problem := format('the variable "%s" is never used', v_unused);
        hint := 'Use it, or take it out of variables.';
        RETURN NEXT;
    END LOOP;
    FOR n IN
        SELECT x.* FROM kliv_mail._template_all_names(p_subject, p_body, p_plain_text) AS x
        WHERE x.kind = 'partial' AND x.name <> p_name AND NOT v_partials ? x.name
    LOOP
        line := n.line;
        "column" := n."column";
        problem := format('%sthere is no template "%s" to put in', CASE n.argument WHEN 'body' THEN '' ELSE n.argument || ': ' END, n.name);
        hint := 'Save and publish it; until then nothing stands there.';
        RETURN NEXT;
    END LOOP;
    line := NULL;
    "column" := NULL;
    IF p_message_type = 'marketing' AND v_brand ->> 'postal_address' IS NULL THEN
        problem := 'marketing mail without a postal address, which laws of many countries ask for';
        hint := 'SELECT kliv_mail.set_brand(postal_address => ''...''); puts it below every mail.';
        RETURN NEXT;
    END IF;
    IF p_name = 'layout' AND NOT EXISTS (SELECT FROM kliv_mail._template_names('body', p_body) AS x WHERE x.name = 'unsubscribe_url') THEN
        problem := 'the layout has no {{unsubscribe_url}}, so marketing mail has no link to leave it';
        hint := 'Write {{#unsubscribe_url}}<a href="{{unsubscribe_url}}">{{unsubscribe}}</a>{{/unsubscribe_url}}.';
        RETURN NEXT;
    END IF;
END;
$$;

CREATE FUNCTION kliv_mail._check_template(p_caller name, p_name text, p_locale text, p_version integer)
RETURNS TABLE (severity text, line integer, "column" integer, problem text, hint text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t kliv_mail._template := kliv_mail._known_template(p_name, p_locale);
    v kliv_mail._template_version;
BEGIN
    SELECT * INTO v FROM kliv_mail._template_version AS x
    WHERE x.name = t.name AND x.locale = t.locale
      AND x.version = coalesce(p_version, t.version, (SELECT max(y.version) FROM kliv_mail._template_version AS y WHERE y.name = t.name AND y.locale = t.locale));
    IF NOT FOUND THEN
        RAISE invalid_parameter_value USING MESSAGE = format('version: "%s" has no version %s', p_name, p_version),
            HINT = format('SELECT version, saved_at FROM kliv_mail.template_versions WHERE name = %L; lists them.', p_name);
    END IF;
    RETURN QUERY SELECT x.* FROM kliv_mail._template_problems(v.name, v.subject, v.body, v.format, v.plain_text, v.message_type, v.locale, v.variables) AS x
    ORDER BY x.severity, x.line, x."column", x.problem;
END;
$$;

CREATE FUNCTION kliv_mail.check_template(name text, locale text DEFAULT NULL, version integer DEFAULT NULL)
RETURNS TABLE (severity text, line integer, "column" integer, problem text, hint text)
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.check_template IS
$$What mail programs would not like about a template, each with its cure: HTML over 102 kB, images without text, links that are not https or name another address than theirs, colours without contrast, a long subject or one with a code, variables that are never used, missing partials, marketing without a postal address. No row: nothing was found. version: NULL is the one in use.
Errors: 22023 no such template or version.
Example: SELECT * FROM kliv_mail.check_template('welcome');$$;
