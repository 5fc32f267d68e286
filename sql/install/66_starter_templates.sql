-- Templates to begin with.  Their sources are in sql/templates/LANGUAGE/NAME.md: a
-- head of fields as a mail has it, an empty line, and the body.

-- In base64, since this script is read in the encoding of the database.
CREATE FUNCTION kliv_mail._starter_templates() RETURNS TABLE (language text, name text, source text)
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT x.language, x.name, x.source FROM (VALUES
@STARTER_TEMPLATES@
    ) AS x (language, name, source);
END;

-- What a source says: {"subject": "...", "type": "...", ...}, and "body".
CREATE FUNCTION kliv_mail._read_starter(p_source text) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT jsonb_object_agg(lower(f.m[1] COLLATE "C"), regexp_replace(f.m[2], E'\\n\\s+', ' ', 'g'))
           || jsonb_build_object('body', substr(p_source, position(E'\n\n' IN p_source) + 2))
    FROM regexp_matches(split_part(p_source, E'\n\n', 1), E'(?:^|\\n)(\\w+): ((?:[^\\n]|\\n )*)', 'g') AS f (m);
END;

CREATE FUNCTION kliv_mail._install_starter_templates(p_caller name, p_locale text) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
    v_languages text[] := ARRAY(SELECT DISTINCT s.language FROM kliv_mail._starter_templates() AS s ORDER BY s.language);
    v_language text := (SELECT l FROM unnest(kliv_mail._template_locales(kliv_mail._template_locale(p_locale))) AS l WHERE l = ANY (v_languages) LIMIT 1);
    v_locale text;
    v_count integer := 0;
    s record;
    f jsonb;
BEGIN
    IF p_locale <> '' AND v_language IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format('locale: there are no starter templates in "%s"', p_locale),
            HINT = format('There are some in %s; NULL installs all.', array_to_string(v_languages, ', '));
    END IF;
    FOR s IN SELECT * FROM kliv_mail._starter_templates() AS x WHERE x.language = v_language OR v_language IS NULL ORDER BY x.language, x.name LOOP
        -- English is the default, for every locale without templates of its own.
        v_locale := CASE s.language WHEN 'en' THEN '' ELSE s.language END;
        CONTINUE WHEN EXISTS (SELECT FROM kliv_mail._template AS t WHERE t.name = s.name AND t.locale = v_locale);
        BEGIN
            f := kliv_mail._read_starter(convert_from(decode(s.source, 'base64'), 'UTF8'));
        EXCEPTION WHEN untranslatable_character THEN
            RAISE untranslatable_character USING MESSAGE = format('locale: this database''s encoding, %s, cannot hold the templates in "%s"',
                    current_setting('server_encoding'), s.language),
                HINT = 'SELECT kliv_mail.install_starter_templates(''en''); installs the English ones alone.';
        END;
        PERFORM kliv_mail._save_template(p_caller, s.name, f ->> 'subject', f ->> 'body', 'markdown', NULL, f ->> 'type', v_locale,
            (f ->> 'variables')::jsonb, (f ->> 'expires')::interval, f ->> 'description', true);
        v_count := v_count + 1;
    END LOOP;
    RETURN v_count;
END;
$$;

CREATE FUNCTION kliv_mail.install_starter_templates(locale text DEFAULT NULL) RETURNS integer
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.install_starter_templates IS
$$Saves templates to begin with, and returns how many: welcome, verify-email, one-time-code, reset-password, magic-link, email-changed, security-alert, invitation, receipt, notification. A template that there is already, in whatever version, is left alone; so is one of these once it is yours. locale: 'en' (saved without a locale, for all that have no own), 'ja', or NULL for both.
kliv_mail.templates says which variables each takes, preview_template() shows it; save_template() makes it yours.
Errors: 22023 no templates in that language, 22P05 the database's encoding cannot hold them.
Example: SELECT kliv_mail.install_starter_templates();$$;
