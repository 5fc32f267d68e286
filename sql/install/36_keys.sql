-- The key ring: its state, what the database needs of it, and rotation
-- (src/functions/keys.c).

-- The salts of this database, 16 bytes each, the one to seal with first.
CREATE FUNCTION kliv_mail._salts() RETURNS bytea
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT string_agg(s.salt, ''::bytea ORDER BY s.made_at, s.salt) FROM kliv_mail._salt AS s;
END;

-- The ids of the keys at hand, newest first, or what is wrong; missing: there
-- is no key file at all.  Reads the file, or runs the command, at each call.
CREATE FUNCTION kliv_mail._key_ring(OUT ids text[], OUT missing boolean, OUT problem text, OUT hint text)
AS '$libdir/kliv_mail_net', 'kliv_mail__key_ring' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;

-- The ring for a view: with kliv_mail.key_command only an administrator's look
-- runs the command, and others are told nothing of its keys.
CREATE FUNCTION kliv_mail._key_ring_shown(OUT ids text[], OUT missing boolean, OUT problem text, OUT hint text, OUT looked boolean)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_caller name := CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role')::name END;
BEGIN
    looked := kliv_mail._setting('kliv_mail.key_command') = '' OR has_function_privilege(v_caller, 'kliv_mail.grant_admin(name)', 'EXECUTE');
    IF looked THEN
        SELECT r.ids, r.missing, r.problem, r.hint INTO ids, missing, problem, hint FROM kliv_mail._key_ring() AS r;
    END IF;
END;
$$;

-- What is stored here under a key of the ring.
CREATE VIEW kliv_mail._key_users AS
    SELECT format('the account "%s"', a.name) AS name, a.key_id,
           format('SELECT * FROM kliv_mail.configure_smtp(password => ..., account => %L);', a.name) AS cure
    FROM kliv_mail._account AS a WHERE a.key_id IS NOT NULL
    UNION ALL
    SELECT format('the webhook of %s', w.provider), w.key_id, format('SELECT kliv_mail.configure_webhook(%L, secret => ...);', w.provider)
    FROM kliv_mail._webhook AS w WHERE w.key_id IS NOT NULL
    UNION ALL
    SELECT 'the bounce mailbox', m.key_id, 'SELECT * FROM kliv_mail.configure_bounce_mailbox(password => ...);' FROM kliv_mail._bounce_mailbox AS m;

CREATE FUNCTION kliv_mail._key_state(OUT key_state text, OUT key_fingerprint text, OUT advice text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ring record;
    lost record;
    file text;
BEGIN
    SELECT r.* INTO ring FROM kliv_mail._key_ring_shown() AS r;
    IF NOT ring.looked THEN
        key_state := 'not looked at: kliv_mail.key_command runs for administrators';
        RETURN;
    END IF;
    key_fingerprint := ring.ids[1];
    SELECT u.* INTO lost FROM kliv_mail._key_users AS u
    WHERE ring.problem IS NOT NULL OR u.key_id <> ALL (ring.ids) ORDER BY u.name LIMIT 1;
    IF ring.missing AND lost.name IS NULL THEN
        key_state := 'none yet';
    ELSIF ring.problem IS NOT NULL THEN
        key_state := ring.problem;
        advice := ring.hint;
    ELSIF lost.name IS NOT NULL THEN
        key_state := format('the key %s of %s is not in the key ring', lost.key_id, lost.name);
        advice := 'Put that key back, or save the password again: ' || lost.cure;
    ELSE
        key_state := 'ok';
        file := kliv_mail._setting('kliv_mail.key_file');
        IF kliv_mail._setting('kliv_mail.key_command') = ''
           AND (file !~ '^/' OR starts_with(file, kliv_mail._setting('data_directory') || '/')) THEN
            advice := 'Keep the key outside the data directory (kliv_mail.key_file): base backups carry it along, and pg_upgrade leaves it behind.';
        END IF;
    END IF;
END;
$$;

-- What is needed of the key ring to open what is stored here goes into the
-- database's label, in the transaction that stores it: ids of keys, and root,
-- from which the links that were sent derive.
CREATE FUNCTION kliv_mail._label() RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT kliv_mail._label_keys(coalesce(string_agg(k.id, ',' ORDER BY k.id), ''))
    FROM (SELECT u.key_id AS id FROM kliv_mail._key_users AS u
          UNION SELECT 'root' FROM kliv_mail._brand AS b WHERE b.unsubscribe_url IS NOT NULL) AS k;
END;

-- The first key is made only while nothing that is stored names one, here or in
-- another database: a key that is missing is a state, never a reason for a new one.
CREATE FUNCTION kliv_mail._first_key_allowed() RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT NOT EXISTS (SELECT FROM kliv_mail._key_users AS u)
       AND NOT EXISTS (SELECT FROM kliv_mail._brand AS b WHERE b.unsubscribe_url IS NOT NULL)     -- links that were sent
       AND NOT EXISTS (SELECT FROM pg_shseclabel AS l WHERE l.provider = 'kliv_mail' AND l.label LIKE '% keys=%');
END;

-- The keys that databases of this cluster need, as their labels say.
CREATE FUNCTION kliv_mail._named_keys() RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT DISTINCT k.id
    FROM pg_shseclabel AS l, LATERAL regexp_split_to_table(split_part(l.label, 'keys=', 2), '[, ]') AS k (id)
    WHERE l.provider = 'kliv_mail' AND k.id ~ '^[0-9a-f]{8}$';
END;

-- What rotate_key() reads and writes.  A webhook's secret and the bounce mailbox's password are sealed as the
-- password of an account by a name that no account can have (src/functions/webhooks.c, bounce_mailbox.c).
CREATE FUNCTION kliv_mail._sealed_accounts()
RETURNS TABLE (name text, host text, port integer, username text, username_cipher bytea, password_cipher bytea, key_id text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT a.name, a.host, a.port, a.username, a.username_cipher, a.password_cipher, a.key_id
    FROM kliv_mail._account AS a WHERE a.key_id IS NOT NULL
    UNION ALL
    SELECT 'webhook ' || w.provider, '', 0, NULL, NULL, w.secret_cipher, w.key_id FROM kliv_mail._webhook AS w WHERE w.key_id IS NOT NULL
    UNION ALL
    SELECT 'bounce mailbox', m.host, m.port, m.username, NULL, m.password_cipher, m.key_id FROM kliv_mail._bounce_mailbox AS m
    ORDER BY 1;
END;

CREATE FUNCTION kliv_mail._reseal_account(p_account text, p_username_cipher bytea, p_password_cipher bytea, p_key_id text)
RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE kliv_mail._account AS a
    SET username_cipher = p_username_cipher, password_cipher = p_password_cipher, key_id = p_key_id
    WHERE a.name = p_account;
    UPDATE kliv_mail._webhook AS w SET secret_cipher = p_password_cipher, key_id = p_key_id
    WHERE 'webhook ' || w.provider = p_account;
    UPDATE kliv_mail._bounce_mailbox AS m SET password_cipher = p_password_cipher, key_id = p_key_id
    WHERE p_account = 'bounce mailbox';
END;

CREATE FUNCTION kliv_mail.public_key() RETURNS bytea
AS '$libdir/kliv_mail_net', 'kliv_mail_public_key' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.public_key IS
'The X25519 public key (32 bytes) of this database, for which a client seals a password with libsodium''s crypto_box_seal(), for configure_smtp(password_sealed => ...). What is sealed are three lines: the account''s name, its host, the password. It changes with rotate_key(); what was sealed for an older one still opens. Errors: 55000 key.
Example: SELECT encode(kliv_mail.public_key(), ''base64'');';

-- The host that configure_smtp() will use for these arguments, for whoever seals a
-- form's password and has no host in it; NULL: configure_smtp() will ask for one.
CREATE FUNCTION kliv_mail._sealing_host(p_account text, p_provider text, p_region text, p_host text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT coalesce(p_host,
        (SELECT s.host FROM kliv_mail._smtp_settings() AS s
         WHERE s.account = p_account AND (p_provider IS NULL OR (s.provider = p_provider AND p_region IS NULL))),
        kliv_mail._provider_host(p_provider, p_region));
END;

CREATE FUNCTION kliv_mail.rotate_key() RETURNS integer
AS '$libdir/kliv_mail_net', 'kliv_mail_rotate_key' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.rotate_key IS
'Adds a new key to the key file and encrypts this database''s passwords with it. With kliv_mail.key_command, and for who is no superuser within a day of the last new key, it takes the newest that is there. Call it in each database; then older keys open no password. It changes no password at the provider: that is configure_smtp(password => ...). The file has at most 100 keys; those that no database needs are dropped then. Returns the number of accounts, webhooks and mailboxes encrypted anew. Errors: 55000 a key or a password cannot be read, or the file cannot be written.
Example: SELECT kliv_mail.rotate_key();';
