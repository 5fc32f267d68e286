-- send_template(), and what it asks before.

-- The template that a caller names, in the nearest locale; else 22023.
CREATE FUNCTION kliv_mail._template_to_send(
    p_name text, p_locale text, OUT locale text, OUT version integer, OUT subject text, OUT body text, OUT format text, OUT plain_text text,
    OUT message_type text, OUT variables jsonb, OUT expires_in interval, OUT layout text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_name text := kliv_mail._template_name(p_name, 'template');
    v_locale text := kliv_mail._template_locale(p_locale);
    v kliv_mail._template_version;
BEGIN
    FOREACH locale IN ARRAY kliv_mail._template_locales(v_locale) LOOP
        SELECT x.* INTO v FROM kliv_mail._current_rows(NULL::kliv_mail._template, '_template_pkey', v_name, locale) AS t
        CROSS JOIN LATERAL kliv_mail._current_rows(NULL::kliv_mail._template_version, '_template_version_pkey', t.name, t.locale) AS x
        WHERE x.version = t.version;
        EXIT WHEN FOUND;
    END LOOP;
    IF v.name IS NULL THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('template: there is no template "%s"%s', v_name, CASE
                WHEN EXISTS (SELECT FROM kliv_mail._template AS t WHERE t.name = v_name AND t.version IS NOT NULL)
                    THEN format(' for %s', CASE v_locale WHEN '' THEN 'the default locale' ELSE format('"%s"', v_locale) END)
                WHEN EXISTS (SELECT FROM kliv_mail._template AS t WHERE t.name = v_name) THEN ' but drafts' ELSE '' END),
            HINT = CASE WHEN EXISTS (SELECT FROM kliv_mail._template AS t WHERE t.name = v_name AND t.version IS NOT NULL)
                    THEN (SELECT format('There is one for %s; save one without a locale, which counts for all others.', string_agg(t.locale, ', ' ORDER BY t.locale))
                          FROM kliv_mail._template AS t WHERE t.name = v_name AND t.version IS NOT NULL)
                WHEN EXISTS (SELECT FROM kliv_mail._template AS t WHERE t.name = v_name) THEN 'kliv_mail.restore_template() puts a version into use.'
                ELSE kliv_mail._nearest(v_name, ARRAY(SELECT DISTINCT t.name FROM kliv_mail._template AS t))
                    || 'kliv_mail.save_template() makes one.' END;
    END IF;
    locale := CASE v_locale WHEN '' THEN v.locale ELSE v_locale END;
    version := v.version;
    subject := v.subject;
    body := v.body;
    format := v.format;
    plain_text := v.plain_text;
    message_type := v.message_type;
    variables := v.variables;
    expires_in := v.expires_in;
    layout := kliv_mail._template_source('layout', locale);
END;
$$;

-- The same with what a session keeps of it.
CREATE FUNCTION kliv_mail._load_template(
    p_name text, p_locale text, OUT locale text, OUT subject text, OUT body text, OUT format text, OUT plain_text text, OUT message_type text,
    OUT defaults jsonb, OUT required text[], OUT expires_in interval, OUT layout text, OUT brand_name text, OUT logo_url text, OUT color text,
    OUT postal_address text, OUT footer text, OUT time_zone text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t record;
    b record;
BEGIN
    SELECT * INTO t FROM kliv_mail._template_to_send(p_name, p_locale) AS x;
    SELECT * INTO b FROM kliv_mail._current_rows(NULL::kliv_mail._brand) AS x;
    locale := nullif(t.locale, '');
    subject := t.subject;
    body := t.body;
    format := t.format;
    plain_text := t.plain_text;
    message_type := t.message_type;
    defaults := kliv_mail._variable_defaults(t.variables);
    required := ARRAY(SELECT x.key FROM jsonb_each(t.variables) AS x WHERE kliv_mail._is_required(x.value) ORDER BY x.key);
    expires_in := t.expires_in;
    layout := t.layout;
    brand_name := b.name;
    logo_url := b.logo_url;
    color := b.color;
    postal_address := b.postal_address;
    footer := b.footer;
    time_zone := b.time_zone;
END;
$$;

CREATE FUNCTION kliv_mail._template_generation(OUT generation text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    generation := (SELECT s.generation FROM kliv_mail._current_rows(NULL::kliv_mail._template_state) AS s);
END;
$$;

CREATE FUNCTION kliv_mail._template_partial(p_name text, p_locale text, OUT source text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    source := kliv_mail._template_source(p_name, p_locale);
END;
$$;

-- The link of a marketing mail's body.  Where the key cannot be read the mail waits
-- anyway; the page behind the link is to ask for the address then.
CREATE FUNCTION kliv_mail._template_unsubscribe(p_address text, p_topic text, OUT url text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_url text := (SELECT b.unsubscribe_url FROM kliv_mail._current_rows(NULL::kliv_mail._brand) AS b);
BEGIN
    url := kliv_mail._unsubscribe_link(v_url, p_address, coalesce(p_topic, 'marketing'), false);
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    url := v_url;
END;
$$;

CREATE FUNCTION kliv_mail.send_template(
    template text, recipients text, variables jsonb DEFAULT '{}', locale text DEFAULT NULL,
    cc text DEFAULT NULL, bcc text DEFAULT NULL, from_address text DEFAULT NULL, from_name text DEFAULT NULL, reply_to text DEFAULT NULL,
    headers jsonb DEFAULT NULL, attachments kliv_mail.attachment[] DEFAULT NULL, send_at timestamptz DEFAULT NULL, expires_at timestamptz DEFAULT NULL,
    idempotency_key text DEFAULT NULL, replace_key text DEFAULT NULL, tags text[] DEFAULT NULL, metadata jsonb DEFAULT NULL, account text DEFAULT NULL, on_limit text DEFAULT 'defer',
    topic text DEFAULT NULL)
RETURNS bigint
AS '$libdir/kliv_mail_template', 'kliv_mail_send_template' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.send_template IS
$$Queues a mail made from a template, for exactly one recipient (cc and bcc get the same); returns the message's id. variables: {"firstName": "Ana", "items": [...]}. locale: 'pt-BR' looks for pt-BR, pt and the default. All else is as in send(); the type is the template's, expires_at its expires_in unless given.
on_limit: defer | error
Errors: as send(), and 22023 no such template, a required variable that is missing, a line break in the subject, 54000 over 2 MB as rendered.
Example: SELECT kliv_mail.send_template('welcome', 'ana@example.com', '{"firstName": "Ana", "url": "https://example.com/c/1"}');$$;

CREATE FUNCTION kliv_mail.send_template_batch(
    template text, recipients text[], variables jsonb[] DEFAULT NULL, locale text DEFAULT NULL, send_at timestamptz DEFAULT NULL,
    expires_at timestamptz DEFAULT NULL, tags text[] DEFAULT NULL, metadata jsonb DEFAULT NULL, account text DEFAULT NULL, on_invalid text DEFAULT 'error',
    topic text DEFAULT NULL)
RETURNS TABLE (ordinality bigint, message_id bigint, error text)
AS '$libdir/kliv_mail_template', 'kliv_mail_send_template_batch' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.send_template_batch IS
$$send_template() to many, each with variables of their own (as many as recipients, in the same order): a row for each with the message's id or, with on_invalid => 'skip', what is wrong with it.
on_invalid: error | skip
Errors: as send_template(); with skip, a bad address, a missing variable or a mail that is too long is a row instead.
Example: SELECT count(message_id), count(error) FROM kliv_mail.send_template_batch('news', ARRAY['ana@example.com', 'bob@example.org'], ARRAY['{"firstName": "Ana"}', '{"firstName": "Bob"}']::jsonb[]);$$;
