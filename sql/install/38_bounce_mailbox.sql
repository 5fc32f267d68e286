-- The bounce mailbox: its settings, and how it is (what needs a secret or the network is
-- src/functions/bounce_mailbox.c; what the fetcher does is in 67_fetch.sql).

CREATE FUNCTION kliv_mail._wake_fetcher() RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'kliv_mail__wake_fetcher';
COMMENT ON FUNCTION kliv_mail._wake_fetcher() IS 'Starts a fetcher, or another one, when this transaction commits.';

CREATE FUNCTION kliv_mail._read_bounce_mailbox() RETURNS SETOF kliv_mail._bounce_mailbox
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT m.* FROM kliv_mail._bounce_mailbox AS m;
END;

-- Why nobody may look into the mailbox now; NULL: somebody may.  A copy of this database
-- must not take the original's mail, as it must not send any.
CREATE FUNCTION kliv_mail._mailbox_held(OUT reason text, OUT hint text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m record;
BEGIN
    SELECT x.origin, x.enabled INTO m FROM kliv_mail._bounce_mailbox AS x;
    IF NOT FOUND THEN
        reason := 'no bounce mailbox is configured';
    ELSIF m.origin <> kliv_mail._origin() THEN
        reason := 'this database is a copy, and the mailbox is the original''s';
        hint := 'SELECT kliv_mail.resume(); releases it, if this copy is the one that shall send; or give the password again.';
    ELSIF current_setting('kliv_mail.delivery') <> 'on' THEN
        reason := format('kliv_mail.delivery is %s', current_setting('kliv_mail.delivery'));
        hint := format('ALTER DATABASE %I RESET kliv_mail.delivery; ends that.', current_database());
    ELSIF kliv_mail._setting('kliv_mail.redirect_to') <> '' THEN
        reason := 'kliv_mail.redirect_to is set, so no mail of this database reaches its recipients';
        hint := format('ALTER DATABASE %I RESET kliv_mail.redirect_to; ends that.', current_database());
    ELSIF NOT m.enabled THEN
        reason := 'switched off';
        hint := 'SELECT * FROM kliv_mail.configure_bounce_mailbox(enabled => true); switches it on.';
    END IF;
END;
$$;

-- What is wrong with it, for status and next_step(); no row: nothing.
CREATE FUNCTION kliv_mail._mailbox_trouble() RETURNS TABLE (reason text, hint text, retries_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT 'the bounce mailbox cannot be read: ' || f.trouble, f.trouble_hint, f.next_at
    FROM kliv_mail._fetched AS f CROSS JOIN kliv_mail._mailbox_held() AS h
    WHERE f.trouble IS NOT NULL AND h.reason IS NULL;
END;

CREATE VIEW kliv_mail.bounce_mailbox AS
    SELECT m.enabled, m.host, m.port, m.encryption, m.username, m.password_masked, m.mailbox, m.filed_mailbox, m.fetch_every,
           CASE WHEN NOT m.enabled THEN 'off' WHEN h.reason IS NOT NULL THEN 'held' WHEN f.trouble IS NOT NULL THEN 'trouble'
                WHEN f.last_ok_at IS NULL THEN 'not looked into yet' ELSE 'ok' END AS status,
           coalesce(h.reason || coalesce('. ' || h.hint, ''), f.trouble || coalesce('. ' || f.trouble_hint, '')) AS status_detail,
           f.last_at AS last_fetch_at, f.last_ok_at AS last_fetch_ok_at, CASE WHEN h.reason IS NULL THEN f.next_at END AS next_fetch_at,
           f.looked_at, f.filed, cardinality(f.postponed) AS postponed, m.last_test_at, m.last_test_ok,
           m.created_at, m.updated_at, m.updated_by, m.password_changed_at
    FROM kliv_mail._bounce_mailbox AS m LEFT JOIN kliv_mail._fetched AS f ON f.singleton = m.singleton
    CROSS JOIN LATERAL kliv_mail._mailbox_held() AS h;
COMMENT ON VIEW kliv_mail.bounce_mailbox IS 'The mailbox that bounces are fetched from, and how that goes; no row: none is configured.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.enabled IS 'Is it looked into?';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.host IS 'The IMAP server.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.port IS 'Its port.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.encryption IS 'tls or starttls.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.username IS 'The user name of the login.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.password_masked IS 'The saved password''s end.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.mailbox IS 'Where new mail is looked for.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.filed_mailbox IS 'Where bounces, complaints and automatic replies are moved once they are handled.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.fetch_every IS 'How long after a look the next one is.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.status IS 'ok, trouble, held, off, or not looked into yet.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.status_detail IS 'Why, and what to do.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.last_fetch_at IS 'The last look.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.last_fetch_ok_at IS 'The last one that met no trouble.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.next_fetch_at IS 'The next one, at the earliest.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.looked_at IS 'Mails that were looked at so far.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.filed IS 'Mails of them that were filed.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.postponed IS 'Reports that are looked at again, since the outcome that they speak of was not recorded yet.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.last_test_at IS 'The last connection test.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.last_test_ok IS 'How it ended.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.created_at IS 'When it was first saved.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.updated_at IS 'When it was last changed.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.updated_by IS 'By whom.';
COMMENT ON COLUMN kliv_mail.bounce_mailbox.password_changed_at IS 'When the password was saved.';

-- All is complete and checked; only the password may be what is saved.  p_seen: updated_at of
-- the row that the caller worked with.
CREATE FUNCTION kliv_mail._save_bounce_mailbox(
    p_caller name, p_seen timestamptz, p_host text, p_port integer, p_encryption text, p_username text,
    p_new_password boolean, p_password_cipher bytea, p_password_masked text, p_key_id text,
    p_mailbox text, p_filed_mailbox text, p_fetch_every interval, p_enabled boolean, p_tested boolean)
RETURNS SETOF kliv_mail.bounce_mailbox
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := kliv_mail._now();
    before kliv_mail._bounce_mailbox;
    after kliv_mail._bounce_mailbox;
BEGIN
    SELECT m.* INTO before FROM kliv_mail._bounce_mailbox AS m FOR UPDATE;
    IF p_seen IS DISTINCT FROM before.updated_at THEN
        RAISE serialization_failure USING MESSAGE = 'the bounce mailbox was changed by another session meanwhile',
            HINT = 'Look at kliv_mail.bounce_mailbox and call again.';
    END IF;
    after := before;
    after.singleton := true;
    after.enabled := p_enabled;
    after.host := p_host;
    after.port := p_port;
    after.encryption := p_encryption;
    after.username := p_username;
    after.mailbox := p_mailbox;
    after.filed_mailbox := p_filed_mailbox;
    after.fetch_every := p_fetch_every;
    IF p_new_password THEN
        -- A password saved here is meant for here.
        after.origin := kliv_mail._origin();
        after.password_cipher := p_password_cipher;
        after.password_masked := p_password_masked;
        after.key_id := p_key_id;
        after.password_changed_at := at;
    END IF;
    IF p_tested THEN
        after.last_test_at := at;
        after.last_test_ok := true;
    END IF;
    after.created_at := coalesce(before.created_at, at);
    after.updated_at := greatest(at, before.updated_at + interval '1 microsecond');
    after.updated_by := p_caller;
    DELETE FROM kliv_mail._bounce_mailbox;
    INSERT INTO kliv_mail._bounce_mailbox SELECT after.*;
    -- Another mailbox has other mails; the same one is gone on with.
    IF (before.host, before.username, before.mailbox) IS DISTINCT FROM (after.host, after.username, after.mailbox) THEN
        DELETE FROM kliv_mail._fetched;
    END IF;
    INSERT INTO kliv_mail._fetched AS f (settings, next_at) VALUES (after.updated_at, at)
    ON CONFLICT (singleton) DO UPDATE
    SET settings = excluded.settings, next_at = excluded.next_at, failures = 0, trouble_step = NULL, trouble = NULL, trouble_hint = NULL;
    PERFORM kliv_mail._label();
    PERFORM kliv_mail._log_event('bounce_mailbox_configured', NULL, format('%s at %s', after.username, after.host),
        jsonb_build_object('host', after.host, 'port', after.port, 'mailbox', after.mailbox, 'enabled', after.enabled,
                           'password', CASE WHEN p_new_password THEN after.password_masked END), p_caller);
    PERFORM kliv_mail._wake_fetcher();
    RETURN QUERY SELECT v.* FROM kliv_mail.bounce_mailbox AS v;
END;
$$;

CREATE FUNCTION kliv_mail.configure_bounce_mailbox(
    host text DEFAULT NULL, username text DEFAULT NULL, password text DEFAULT NULL, port integer DEFAULT NULL, mailbox text DEFAULT NULL,
    encryption text DEFAULT NULL, filed_mailbox text DEFAULT NULL, fetch_every interval DEFAULT NULL, enabled boolean DEFAULT NULL,
    password_sealed bytea DEFAULT NULL, test boolean DEFAULT true)
RETURNS SETOF kliv_mail.bounce_mailbox
AS '$libdir/kliv_mail_net', 'kliv_mail_configure_bounce_mailbox' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.configure_bounce_mailbox IS
$$Saves the mailbox that bounces come to, after testing it; from then on it is looked into over IMAP, and what ingest_bounce() would take is taken from there. A call that fails saves nothing. NULL keeps what is saved. Another host, port, encryption or username needs the password again.
encryption: tls | starttls
Give it a mailbox of its own, or the sender's: bounces, complaints and automatic replies are moved to filed_mailbox (default kliv_mail) once they are handled; everything else, such as people's answers, stays where and as unread as it is. Two databases must not share one. port: default 993, with starttls 143. mailbox: default INBOX; names are ASCII, as the server lists them. fetch_every: default 5 minutes, at least 1 minute. enabled: false stops it and keeps the settings. password_sealed: crypto_box_seal of the lines "bounce mailbox", host, password for public_key(). test: connect, log in, open the mailbox, and make filed_mailbox where it is missing.
Returns the row of the view bounce_mailbox. Errors: 22023 bad value, 42501 host not allowed, 54000 too long, 55000 key, 40001 changed meanwhile, KM001 to KM003, KM005 and KM008 a failed test (dns, connect, tls, login, mailbox).
Example: SELECT * FROM kliv_mail.configure_bounce_mailbox('imap.example.com', 'bounces@example.com', 'the mailbox password');
Example: SELECT * FROM kliv_mail.configure_bounce_mailbox(password => 'the new password');$$;

CREATE FUNCTION kliv_mail.test_bounce_mailbox() RETURNS TABLE (step text, ok boolean, elapsed_ms numeric, detail text, hint text)
AS '$libdir/kliv_mail_net', 'kliv_mail_test_bounce_mailbox' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.test_bounce_mailbox() IS
$$Tests the saved bounce mailbox step by step: dns, connect, tls, login, select (open the mailbox), file (the mailbox for what was handled is there, or is made); ends with the first step that is not ok, whose hint says what to do. A good test ends a trouble: the mailbox is looked into at once. Reads and moves no mail.
Errors: 55000 no mailbox is configured, or the key of its password cannot be read.
Example: SELECT * FROM kliv_mail.test_bounce_mailbox();$$;

CREATE FUNCTION kliv_mail._record_mailbox_test(p_seen timestamptz, p_ok boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := kliv_mail._now();
BEGIN
    UPDATE kliv_mail._bounce_mailbox AS m SET last_test_at = at, last_test_ok = p_ok WHERE m.updated_at = p_seen;
    IF FOUND AND p_ok THEN
        UPDATE kliv_mail._fetched AS f
        SET next_at = at, failures = 0, trouble_step = NULL, trouble = NULL, trouble_hint = NULL WHERE f.trouble IS NOT NULL;
        PERFORM kliv_mail._wake_fetcher();
    END IF;
END;
$$;

CREATE FUNCTION kliv_mail._remove_bounce_mailbox(p_caller name) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_found boolean;
BEGIN
    DELETE FROM kliv_mail._fetched;
    DELETE FROM kliv_mail._bounce_mailbox;
    v_found := FOUND;
    IF v_found THEN
        PERFORM kliv_mail._label();
        PERFORM kliv_mail._log_event('bounce_mailbox_removed', NULL, NULL, NULL, p_caller);
    END IF;
    RETURN v_found;
END;
$$;

CREATE FUNCTION kliv_mail.remove_bounce_mailbox() RETURNS boolean
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.remove_bounce_mailbox IS
$$Forgets the bounce mailbox and its password; what is in it stays there. Returns whether there was one. configure_bounce_mailbox(enabled => false) stops it and keeps the settings.
Example: SELECT kliv_mail.remove_bounce_mailbox();$$;
