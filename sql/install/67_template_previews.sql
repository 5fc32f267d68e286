-- How a template looks.

-- The version to look at: one by its number, be it a draft, or the one in use in the
-- nearest locale; else 22023.
CREATE FUNCTION kliv_mail._version_to_see(p_name text, p_locale text, p_version integer) RETURNS kliv_mail._template_version
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name text := kliv_mail._template_name(p_name, 'template');
    v_locale text;
    v kliv_mail._template_version;
BEGIN
    FOREACH v_locale IN ARRAY kliv_mail._template_locales(kliv_mail._template_locale(p_locale)) LOOP
        SELECT x.* INTO v FROM kliv_mail._template_version AS x
        LEFT JOIN kliv_mail._template AS t ON t.name = x.name AND t.locale = x.locale
        WHERE x.name = v_name AND x.locale = v_locale AND x.version = coalesce(p_version, t.version);
        EXIT WHEN FOUND;
    END LOOP;
    IF v.name IS NULL AND p_version IS NULL THEN
        PERFORM kliv_mail._template_to_send(p_name, p_locale);
    ELSIF v.name IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format('version: "%s" has no version %s', v_name, p_version),
            HINT = format('SELECT locale, version, saved_at FROM kliv_mail.template_versions WHERE name = %L; lists them.', v_name);
    END IF;
    RETURN v;
END;
$$;

-- The mail that a version makes with its examples, and variables in their place.
CREATE FUNCTION kliv_mail._template_example(
    v kliv_mail._template_version, p_variables jsonb, p_locale text, OUT subject text, OUT plain_text text, OUT html text, OUT preheader text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m record;
    v_locale text := coalesce(nullif(kliv_mail._template_locale(p_locale), ''), v.locale);
    v_brand jsonb := kliv_mail._brand_values();
BEGIN
    IF jsonb_typeof(p_variables) <> 'object' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'variables: is not an object', HINT = 'Write {"name": "value"}.';
    END IF;
    SELECT * INTO m FROM kliv_mail._template_mail(v.subject, CASE v.name WHEN 'layout' THEN '' ELSE v.body END, v.format, v.plain_text,
        CASE v.name WHEN 'layout' THEN v.body ELSE kliv_mail._template_source('layout', v_locale) END, kliv_mail._template_partials(v_locale),
        kliv_mail._variable_examples(v.variables) || coalesce(p_variables, '{}'), kliv_mail._variable_defaults(v.variables), v_brand,
        nullif(v_locale, ''), 'ana@example.com',
        CASE v.message_type WHEN 'marketing' THEN coalesce(v_brand ->> 'unsubscribe_url', 'https://example.com/unsubscribe') END) AS x;
    subject := m.subject;
    plain_text := m.plain_text;
    html := m.html;
    preheader := m.preheader;
END;
$$;

CREATE FUNCTION kliv_mail._preview_template(p_caller name, p_template text, p_variables jsonb, p_locale text)
RETURNS TABLE (subject text, plain_text text, html text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT m.subject, m.plain_text, m.html
    FROM kliv_mail._template_example(kliv_mail._version_to_see(p_template, p_locale, NULL), p_variables, p_locale) AS m;
END;

CREATE FUNCTION kliv_mail.preview_template(template text, variables jsonb DEFAULT NULL, locale text DEFAULT NULL)
RETURNS TABLE (subject text, plain_text text, html text)
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.preview_template IS
$$The mail that a template makes, and sends none: with the declared examples, and variables in their place where they are given. To look at it: preview_html(); a mail that is queued: preview().
Errors: 22023 no such template, or a value that a filter cannot take.
Example: SELECT subject, plain_text FROM kliv_mail.preview_template('welcome', '{"firstName": "Ana"}');$$;

-- The page of preview_html().  The mail stands in frames of their own, in which no
-- script runs; all else is escaped by Mustache.
CREATE FUNCTION kliv_mail._preview_page() RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
RETURN $page$<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src https: data:; style-src 'unsafe-inline'">
<title>{{name}}: {{subject}}</title>
<style>
:root{color-scheme:light dark}
body{margin:0 auto;max-width:1180px;padding:16px;font:15px/1.5 system-ui,sans-serif}
h1{margin:0;font-size:22px}
h2{margin:24px 0 8px;font-size:16px}
p{margin:4px 0}
table{border-collapse:collapse}
th,td{padding:4px 12px 4px 0;text-align:left;vertical-align:top}
iframe{display:block;box-sizing:border-box;max-width:100%;height:760px;border:1px solid #8888;resize:vertical}
pre{margin:0;padding:12px;border:1px solid #8888;white-space:pre-wrap;overflow-wrap:anywhere}
.row{display:flex;flex-wrap:wrap;gap:24px}
</style>
</head>
<body>
<main>
<h1>{{subject}}</h1>
<p>{{preheader}}</p>
<p><small>{{name}}{{#locale}}, {{locale}}{{/locale}}, version {{version}}, {{message_type}}, {{kilobytes}} kB of HTML</small></p>
<h2>Errors and warnings</h2>
{{^problems}}
<p>None.</p>
{{/problems}}
{{#has_problems}}
<table>
<tr><th>Line</th><th>What</th><th>Cure</th></tr>
{{#problems}}
<tr><td>{{line}}{{#column}}:{{column}}{{/column}}</td><td>{{severity}}: {{problem}}</td><td>{{hint}}</td></tr>
{{/problems}}
</table>
{{/has_problems}}
<div class="row">
<section><h2>Phone, 375 px</h2><iframe title="The mail on a phone" width="377" sandbox referrerpolicy="no-referrer" srcdoc="{{html}}"></iframe></section>
<section><h2>Desk, 700 px</h2><iframe title="The mail on a desk" width="702" sandbox referrerpolicy="no-referrer" srcdoc="{{html}}"></iframe></section>
</div>
<h2>Text</h2>
<pre>{{plain_text}}</pre>
</main>
</body>
</html>
$page$;

CREATE FUNCTION kliv_mail._preview_html(p_caller name, p_template text, p_variables jsonb, p_locale text, p_version integer) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v kliv_mail._template_version := kliv_mail._version_to_see(p_template, p_locale, p_version);
    m record;
    v_problems jsonb;
BEGIN
    SELECT * INTO m FROM kliv_mail._template_example(v, p_variables, p_locale) AS x;
    SELECT coalesce(jsonb_agg(to_jsonb(x) ORDER BY x.severity, x.line, x."column", x.problem), '[]') INTO v_problems
    FROM kliv_mail._template_problems(v.name, v.subject, v.body, v.format, v.plain_text, v.message_type, v.locale, v.variables) AS x;
    RETURN kliv_mail.render(kliv_mail._preview_page(), to_jsonb(m) || jsonb_build_object('name', v.name, 'locale', nullif(v.locale, ''),
        'version', v.version, 'message_type', v.message_type, 'kilobytes', ceil(octet_length(m.html) / 1024.0),
        'problems', v_problems, 'has_problems', jsonb_array_length(v_problems) > 0));
END;
$$;

CREATE FUNCTION kliv_mail.preview_html(template text, variables jsonb DEFAULT NULL, locale text DEFAULT NULL, version integer DEFAULT NULL) RETURNS text
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.preview_html IS
$$A page for a browser that shows the mail that a template makes, and sends none: its subject, what lists of mail show beside it, the HTML as wide as a phone and as a desk, the text part, and all of check_template(). variables: in the place of the declared examples. version: NULL is the one in use; a number shows any, be it a draft.
Errors: 22023 no such template or version, or a value that a filter cannot take, 54000 the page would be over 2 MB.
Example: SELECT kliv_mail.preview_html('welcome', '{"firstName": "Ana"}');$$;
