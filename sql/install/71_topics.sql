-- Topics of marketing mail: what a page for recipients shows of them.

CREATE FUNCTION kliv_mail._save_topic(p_caller name, p_name text, p_title text, p_description text, p_locale text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name text := kliv_mail._topic_name(p_name, 'name');
    v_field record;
BEGIN
    FOR v_field IN SELECT * FROM (VALUES ('title', p_title, 200), ('description', p_description, 1000)) AS f (name, value, size) LOOP
        IF char_length(v_field.value) > v_field.size THEN
            RAISE program_limit_exceeded USING MESSAGE = format('%s: %s characters, over %s', v_field.name, char_length(v_field.value), v_field.size);
        END IF;
    END LOOP;
    INSERT INTO kliv_mail._topic AS t (name, locale, title, description, saved_at, saved_by)
    VALUES (v_name, kliv_mail._template_locale(p_locale), nullif(p_title, ''), nullif(p_description, ''), kliv_mail._now(), p_caller)
    -- NULL keeps, '' clears.
    ON CONFLICT (name, locale) DO UPDATE
    SET title = nullif(coalesce(p_title, t.title), ''), description = nullif(coalesce(p_description, t.description), ''),
        saved_at = excluded.saved_at, saved_by = excluded.saved_by;
    PERFORM kliv_mail._log_event('topic_saved', NULL, v_name, jsonb_strip_nulls(jsonb_build_object('locale', p_locale, 'title', p_title)), p_caller);
END;
$$;

CREATE FUNCTION kliv_mail.save_topic(name text, title text DEFAULT NULL, description text DEFAULT NULL, locale text DEFAULT NULL) RETURNS void
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.save_topic IS
$$Saves what recipients are shown of a topic of marketing mail, which send(topic => ...) names and they can leave: a title of up to 200 characters and a description of up to 1000, for a locale ('ja', 'pt-BR') or NULL, for all that have no own. NULL keeps what is saved, '' clears. The topic marketing is what mail that names none belongs to; who leaves it leaves all marketing mail.
Errors: 22023 not a topic's name ([a-z0-9_-]{1,63}) or a locale, 54000 too long.
Example: SELECT kliv_mail.save_topic('news', 'News', 'What is new, once a month');$$;

CREATE FUNCTION kliv_mail._delete_topic(p_caller name, p_name text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM kliv_mail._topic AS t WHERE t.name = kliv_mail._topic_name(p_name, 'name');
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM kliv_mail._log_event('topic_deleted', NULL, p_name, NULL, p_caller);
    RETURN true;
END;
$$;

CREATE FUNCTION kliv_mail.delete_topic(name text) RETURNS boolean
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.delete_topic IS
$$Shows recipients the topic no more, in no locale; true if it was there. Who has left it stays so, and its links still work.
Errors: 22023 not a topic's name.
Example: SELECT kliv_mail.delete_topic('news');$$;

CREATE VIEW kliv_mail.topics AS
    SELECT t.name, nullif(t.locale, '') AS locale, t.title, t.description, t.saved_at, t.saved_by FROM kliv_mail._topic AS t;
COMMENT ON VIEW kliv_mail.topics IS 'The topics of marketing mail that recipients are shown; kliv_mail.save_topic() adds one. Who has left one stands in kliv_mail.suppressions.';
COMMENT ON COLUMN kliv_mail.topics.name IS 'What send(topic => ...) calls it.';
COMMENT ON COLUMN kliv_mail.topics.locale IS 'NULL: for every locale that has no own.';
COMMENT ON COLUMN kliv_mail.topics.title IS 'Its name for recipients.';
COMMENT ON COLUMN kliv_mail.topics.description IS 'What they get by it.';
COMMENT ON COLUMN kliv_mail.topics.saved_at IS 'When it was last saved.';
COMMENT ON COLUMN kliv_mail.topics.saved_by IS 'By whom.';
