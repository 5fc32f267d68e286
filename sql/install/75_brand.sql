-- The application's brand, and the links by which recipients leave its
-- marketing mail.

CREATE FUNCTION kliv_mail._brand_unsubscribe_url() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT (SELECT b.unsubscribe_url FROM kliv_mail._brand AS b);
END;

-- url with an unsubscribe token of the address; may_create: make the first key
-- when there is none.  55000 when the key cannot be read.
CREATE FUNCTION kliv_mail._unsubscribe_link(url text, address text, list text, may_create boolean) RETURNS text
AS '$libdir/kliv_mail_net', 'kliv_mail__unsubscribe_link' LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION kliv_mail._unsubscribe_read(token text, OUT address text, OUT list text)
AS '$libdir/kliv_mail_net', 'kliv_mail__unsubscribe_read' LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION kliv_mail._set_brand(p_caller name, p_name text, p_logo_url text, p_color text, p_postal_address text, p_footer text,
                                     p_unsubscribe_url text, p_time_zone text) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_before kliv_mail._brand;
    v_after kliv_mail._brand;
    v_field record;
BEGIN
    FOR v_field IN SELECT * FROM (VALUES ('name', p_name, 200), ('postal_address', p_postal_address, 1000), ('footer', p_footer, 4000),
                                         ('logo_url', p_logo_url, 1000), ('unsubscribe_url', p_unsubscribe_url, 400)) AS f (name, value, size) LOOP
        IF length(v_field.value) > v_field.size THEN
            RAISE program_limit_exceeded USING MESSAGE = format('%s: over %s characters', v_field.name, v_field.size);
        ELSIF v_field.name IN ('logo_url', 'unsubscribe_url') AND v_field.value <> ''
              AND v_field.value !~ E'^https://[A-Za-z0-9.-]+(:[0-9]+)?(/[!$&-;=?-Z_a-z~%]*)?(\\?[!$&-;=?-Z_a-z~%]*)?$' THEN
            RAISE invalid_parameter_value USING MESSAGE = format('%s: "%s" is not an https URL', v_field.name, left(v_field.value, 100)),
                HINT = 'Write it with https://, other characters than ASCII percent-encoded, without a fragment.';
        END IF;
    END LOOP;
    IF p_name ~ E'[\\x01-\\x1f\\x7f]' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'name: has a line break or control character', HINT = 'Give one line of text.';
    ELSIF p_color <> '' AND p_color !~ '^#[0-9A-Fa-f]{6}$' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('color: "%s" is not a color', left(p_color, 40)), HINT = 'Write it as #rrggbb, such as #1a73e8.';
    ELSIF p_time_zone <> '' AND NOT EXISTS (SELECT FROM pg_timezone_names AS z WHERE z.name = p_time_zone) THEN
        RAISE invalid_parameter_value USING MESSAGE = format('time_zone: "%s" is not a time zone', left(p_time_zone, 60)),
            HINT = 'SELECT name FROM pg_timezone_names; lists them.';
    END IF;
    -- The key that the links hang on is made now, not when the first mail leaves.
    IF p_unsubscribe_url <> '' THEN
        PERFORM kliv_mail._unsubscribe_link(p_unsubscribe_url, '', '', kliv_mail._first_key_allowed());
    END IF;
    INSERT INTO kliv_mail._brand DEFAULT VALUES ON CONFLICT DO NOTHING;
    SELECT * INTO v_before FROM kliv_mail._brand AS b FOR UPDATE;
    -- NULL keeps, '' clears.
    UPDATE kliv_mail._brand AS b
    SET name = nullif(coalesce(p_name, b.name), ''), logo_url = nullif(coalesce(p_logo_url, b.logo_url), ''),
        color = nullif(coalesce(p_color, b.color), ''), postal_address = nullif(coalesce(p_postal_address, b.postal_address), ''),
        footer = nullif(coalesce(p_footer, b.footer), ''), unsubscribe_url = nullif(coalesce(p_unsubscribe_url, b.unsubscribe_url), ''),
        time_zone = nullif(coalesce(p_time_zone, b.time_zone), '')
    RETURNING b.* INTO v_after;
    PERFORM kliv_mail._label();
    PERFORM kliv_mail._template_changed();
    PERFORM kliv_mail._log_event('brand_changed', NULL, NULL, (
        SELECT jsonb_object_agg(a.key, jsonb_build_array(o.value, a.value))
        FROM jsonb_each(to_jsonb(v_after)) AS a JOIN jsonb_each(to_jsonb(v_before)) AS o USING (key) WHERE a.value <> o.value), p_caller);
    PERFORM kliv_mail._wake();
    RETURN to_jsonb(v_after) - 'singleton';
END;
$$;

CREATE FUNCTION kliv_mail.set_brand(name text DEFAULT NULL, logo_url text DEFAULT NULL, color text DEFAULT NULL, postal_address text DEFAULT NULL,
                                    footer text DEFAULT NULL, unsubscribe_url text DEFAULT NULL, time_zone text DEFAULT NULL) RETURNS jsonb
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.set_brand IS
$$Sets what the application's mail looks like and where its recipients unsubscribe; NULL keeps, '' clears. unsubscribe_url: an https page of yours that calls kliv_mail.unsubscribe() with its parameter token; marketing mail needs it and carries it as one-click List-Unsubscribe. color: #rrggbb. time_zone: as in pg_timezone_names.
Returns the brand. Errors: 22023 a bad value, 54000 too long, 55000 the key of the links cannot be read or made.
Example: SELECT kliv_mail.set_brand(name => 'Example', unsubscribe_url => 'https://example.com/unsubscribe');$$;

CREATE FUNCTION kliv_mail._unsubscribe_url(p_caller name, p_address text, p_topic text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_url text := kliv_mail._brand_unsubscribe_url();
    v_topic text := kliv_mail._topic_name(p_topic, 'topic');
BEGIN
    IF v_url IS NULL THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = 'there is no unsubscribe URL',
            HINT = 'SELECT kliv_mail.set_brand(unsubscribe_url => ''https://example.com/unsubscribe''); sets it.';
    END IF;
    RETURN kliv_mail._unsubscribe_link(v_url, kliv_mail._one_address(p_address), v_topic, false);
END;
$$;

CREATE FUNCTION kliv_mail.unsubscribe_url(address text, topic text DEFAULT 'marketing') RETURNS text
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C STABLE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.unsubscribe_url IS
$$The link by which this address leaves a topic of marketing mail, or with topic marketing all of it; it works for years, before and after rotate_key(), and for no other address or topic.
Errors: 22023 not an address or not a topic's name, 55000 no unsubscribe_url in set_brand(), or the key cannot be read.
Example: SELECT kliv_mail.unsubscribe_url('ana@example.com', 'news');$$;

-- What a token names is a topic.  Links to all mail, which were once made on demand,
-- are for all that can be left.
CREATE FUNCTION kliv_mail._unsubscribe(p_caller name, p_token text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := kliv_mail._now();
    v_address text;
    v_topic text;
BEGIN
    SELECT r.address, CASE r.list WHEN 'all' THEN 'marketing' ELSE r.list END INTO v_address, v_topic FROM kliv_mail._unsubscribe_read(p_token) AS r;
    IF v_address IS NULL OR v_topic = '' THEN
        RETURN false;
    END IF;
    v_address := lower(v_address COLLATE "C");
    IF NOT EXISTS (SELECT FROM kliv_mail._suppression AS s WHERE s.address = v_address AND s.scope = v_topic AND s.expires_at IS NULL) THEN
        PERFORM kliv_mail._add_suppressions(p_caller, ARRAY[v_address], v_topic, 'unsubscribed', NULL);
        IF kliv_mail._stop_suppressed(ARRAY[v_address], at) > 0 THEN
            PERFORM kliv_mail._wake();
        END IF;
    END IF;
    RETURN true;
END;
$$;

CREATE FUNCTION kliv_mail.unsubscribe(token text) RETURNS boolean
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.unsubscribe IS
$$Takes the address of an unsubscribe link off its topic, as the page behind unsubscribe_url does with its parameter token, also for the POST of RFC 8058 (List-Unsubscribe=One-Click), whose URL has it; true if the token is one of ours. Marketing mail of that topic stops, queued mail included; other topics, transactional and system mail do not. Calling it again does nothing more. Errors: 55000 the key cannot be read.
Example: SELECT kliv_mail.unsubscribe('token from the link');$$;
