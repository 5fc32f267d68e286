-- Accounts: 'platform' from the server's configuration, the others from
-- configure_smtp().  What needs a secret or an address parser is C
-- (src/configure.c, src/settings.c); the rest is here.  A public function that
-- changes something runs _<name>(caller, ...) as the extension's owner (C,
-- kliv_mail_as_owner), so that the caller needs no right on a table and the
-- event still names who it was.

CREATE FUNCTION kliv_mail._log_event(kind text, account text, detail text, data jsonb, role name DEFAULT NULL)
RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    INSERT INTO kliv_mail._event (id, at, kind, account, role, detail, data)
    VALUES (nextval('kliv_mail._event_id'), kliv_mail._now(), kind, account, role, detail, data);
END;

-- What changed between two states of an account, for an event: {"column": [old, new]}.
CREATE FUNCTION kliv_mail._account_changes(before kliv_mail._account, after kliv_mail._account)
RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT jsonb_object_agg(n.key, jsonb_build_array(o.value, n.value))
               || CASE WHEN (before).password_changed_at IS DISTINCT FROM (after).password_changed_at
                       THEN '{"password": "changed"}' ELSE '{}' END::jsonb
    FROM jsonb_each(to_jsonb(after)) AS n
    LEFT JOIN jsonb_each(to_jsonb(before)) AS o ON o.key = n.key
    WHERE n.key IN ('in_use', 'provider', 'region', 'host', 'port', 'encryption', 'auth', 'username', 'username_masked',
                    'from_address', 'from_name', 'reply_to', 'allowed_senders', 'hourly_limit', 'daily_limit', 'password_masked')
      AND coalesce(n.value, 'null') <> coalesce(o.value, 'null');
END;

-- The platform's account as the server's configuration has it.
CREATE FUNCTION kliv_mail._platform(
    OUT host text, OUT port integer, OUT encryption text, OUT username text, OUT password_file text,
    OUT from_address text, OUT from_name text, OUT hourly_limit integer, OUT daily_limit integer,
    OUT problem text, OUT hint text, OUT fingerprint text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    origin text := kliv_mail._origin();     -- loads the library, which defines the settings
    url text := nullif(current_setting('kliv_mail.platform_url'), '');
    sender text := nullif(current_setting('kliv_mail.platform_from'), '');
    port_digits text;
BEGIN
    username := nullif(current_setting('kliv_mail.platform_username'), '');
    password_file := nullif(current_setting('kliv_mail.platform_password_file'), '');
    hourly_limit := current_setting('kliv_mail.platform_hourly_limit')::integer;
    daily_limit := current_setting('kliv_mail.platform_daily_limit')::integer;
    fingerprint := md5(concat_ws(chr(31), url, username, password_file, sender));
    hint := 'The administrator of the server mends it in postgresql.conf; or send by a provider of your own: '
            'SELECT * FROM kliv_mail.configure_smtp(...).';
    IF url IS NULL OR sender IS NULL THEN
        problem := 'the account "platform" is not configured';
        hint := 'The administrator of the server sets kliv_mail.platform_url and kliv_mail.platform_from; or send by a '
                'provider of your own: SELECT * FROM kliv_mail.configure_smtp(...).';
        RETURN;
    END IF;
    -- Both settings were checked when they were set (src/guc.c).  No regular
    -- expression: this runs at each send() and claim.
    encryption := CASE lower(split_part(url, '://', 1)) WHEN 'smtps' THEN 'tls' WHEN 'smtp' THEN 'none' ELSE 'starttls' END;
    host := lower(split_part(url, '://', 2));
    port_digits := reverse(split_part(reverse(host), ':', 1));
    port := port_digits::integer;
    host := trim(left(host, -length(port_digits) - 1), '[]');
    -- A configuration file is UTF-8 whatever the database is.
    IF getdatabaseencoding() <> 'UTF8' AND octet_length(sender) <> char_length(sender) THEN
        BEGIN
            sender := convert_from(sender::bytea, 'UTF8');
        EXCEPTION WHEN OTHERS THEN
            problem := 'the setting kliv_mail.platform_from has characters that this database''s encoding lacks';
            RETURN;
        END;
    END IF;
    SELECT a.name, a.address INTO from_name, from_address FROM kliv_mail.parse_addresses(sender) AS a;
    IF username IS NOT NULL AND encryption = 'none' THEN
        problem := 'the setting kliv_mail.platform_username needs TLS, and kliv_mail.platform_url has none';
        RETURN;
    ELSIF username IS NOT NULL AND password_file IS NULL THEN
        problem := 'the setting kliv_mail.platform_username needs kliv_mail.platform_password_file';
        RETURN;
    END IF;
    hint := NULL;
END;
$$;

-- Every account: platform first, which is always in use (what is routed to it
-- by name leaves by it), then those that were saved.  plpgsql, like everything
-- here that send() and claims call: it keeps its plans, which SQL functions make
-- anew at each call.
CREATE FUNCTION kliv_mail._accounts()
RETURNS TABLE (name text, in_use boolean, route_order integer, own boolean, provider text, host text, port integer,
    encryption text, from_address text, from_name text, reply_to text, allowed_senders text[], hourly_limit integer,
    daily_limit integer, problem text, hint text, fingerprint text)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 3 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    p record := kliv_mail._platform();
    here text := kliv_mail._origin();
    cap integer := current_setting('kliv_mail.max_daily_limit')::integer;
BEGIN
    RETURN QUERY VALUES ('platform', true, 2147483647, false, NULL::text, p.host, p.port, p.encryption, p.from_address,
        p.from_name, NULL::text, '{}'::text[], p.hourly_limit, p.daily_limit, p.problem, p.hint, p.fingerprint);
    RETURN QUERY
    SELECT a.name, a.in_use, a.route_order, true, a.provider, a.host, a.port, a.encryption, a.from_address, a.from_name,
           a.reply_to, a.allowed_senders, a.hourly_limit, least(a.daily_limit, cap),
           CASE WHEN a.origin <> here
                THEN format('the account "%s" was saved in another database, of which this one is a copy', a.name) END,
           CASE WHEN a.origin <> here THEN format('SELECT kliv_mail.resume(%L); if it shall send from here too.', a.name) END,
           hashtextextended(concat_ws(chr(31), a.name, a.in_use, a.origin, a.renewed_at, a.host, a.port, a.encryption, a.username), 0)::text
    FROM kliv_mail._account AS a;
END;
$$;

CREATE FUNCTION kliv_mail._default_account() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE WHEN EXISTS (SELECT FROM kliv_mail._account AS a WHERE a.name = 'custom' AND a.in_use)
                THEN 'custom' ELSE 'platform' END;
END;
$$;

-- The ids of the keys at hand, newest first, or what is wrong; missing: there
-- is no key file at all.  Reads the file, or runs the command, at each call.
CREATE FUNCTION kliv_mail._key_ring(OUT ids text[], OUT missing boolean, OUT problem text, OUT hint text)
AS '$libdir/kliv_mail_net', 'kliv_mail__key_ring' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION kliv_mail._key_state(OUT key_state text, OUT key_fingerprint text, OUT advice text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ring record;
    lost record;
    file text;
BEGIN
    SELECT r.* INTO ring FROM kliv_mail._key_ring() AS r;
    key_fingerprint := ring.ids[1];
    SELECT a.name, a.key_id INTO lost FROM kliv_mail._account AS a
    WHERE a.key_id IS NOT NULL AND (ring.problem IS NOT NULL OR a.key_id <> ALL (ring.ids)) ORDER BY a.name LIMIT 1;
    IF ring.missing AND lost.name IS NULL THEN
        key_state := 'none yet';
    ELSIF ring.problem IS NOT NULL THEN
        key_state := ring.problem;
        advice := ring.hint;
    ELSIF lost.name IS NOT NULL THEN
        key_state := format('the key %s of the account "%s" is not in the key ring', lost.key_id, lost.name);
        advice := format('Put that key back, or save the password again: SELECT * FROM kliv_mail.configure_smtp(password => ..., account => %L);', lost.name);
    ELSE
        key_state := 'ok';
        file := current_setting('kliv_mail.key_file');
        IF current_setting('kliv_mail.key_command') = ''
           AND (file !~ '^/' OR starts_with(file, current_setting('data_directory') || '/')) THEN
            advice := 'Keep the key outside the data directory (kliv_mail.key_file): base backups carry it along, and pg_upgrade leaves it behind.';
        END IF;
    END IF;
END;
$$;

-- What klm_load_account() needs.
CREATE FUNCTION kliv_mail._load_account(account text)
RETURNS TABLE (provider text, host text, port integer, encryption text, oauth2 boolean, username text, username_cipher bytea,
    password_cipher bytea, key_id text, password_file text, from_address text, from_name text, reply_to text,
    allowed_senders text[], own boolean, problem text, hint text, fingerprint text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT x.provider, x.host, x.port, x.encryption, coalesce(a.auth = 'oauth2', false),
           CASE WHEN x.own THEN a.username ELSE p.username END, a.username_cipher, a.password_cipher, a.key_id,
           CASE WHEN x.own THEN NULL ELSE p.password_file END, x.from_address, x.from_name, x.reply_to, x.allowed_senders,
           x.own, x.problem, x.hint, x.fingerprint
    FROM kliv_mail._accounts() AS x
    LEFT JOIN kliv_mail._account AS a ON a.name = x.name
    LEFT JOIN kliv_mail._platform() AS p ON NOT x.own
    WHERE x.name = account AND x.in_use;
END;

-- The rows of the view smtp_settings.  Reads the key ring, once, when a
-- password is stored.
CREATE FUNCTION kliv_mail._smtp_settings()
RETURNS TABLE (account text, in_use boolean, provider text, host text, port integer, encryption text, username text,
    password_masked text, from_address text, from_name text, reply_to text, allowed_senders text[], hourly_limit integer,
    daily_limit integer, status text, status_detail text, paused_until timestamptz, last_test_at timestamptz,
    last_test_ok boolean, created_at timestamptz, updated_at timestamptz, updated_by name, password_changed_at timestamptz)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER ROWS 3 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := kliv_mail._now();
    key record;
    x record;
BEGIN
    IF EXISTS (SELECT FROM kliv_mail._account AS a WHERE a.in_use AND a.key_id IS NOT NULL) THEN
        SELECT k.ids, k.problem INTO key FROM kliv_mail._key_ring() AS k;
    ELSE
        SELECT NULL::text[] AS ids, NULL::text AS problem INTO key;
    END IF;
    FOR x IN
        SELECT n.*, a.username, a.username_masked, a.password_masked AS masked, a.key_id, a.last_test_at, a.last_test_ok,
               a.created_at, a.updated_at, a.updated_by, a.password_changed_at,
               p.account AS paused, p.paused_by, p.reason AS pause_reason,
               q.held_until, q.held_reason, q.held_hint, q.fingerprint IS NOT DISTINCT FROM n.fingerprint AND q.held_until > at AS held,
               EXISTS (SELECT FROM kliv_mail._state AS s WHERE s.origin <> kliv_mail._origin()) AS copy
        FROM kliv_mail._accounts() AS n
        LEFT JOIN kliv_mail._account AS a ON a.name = n.name
        LEFT JOIN LATERAL (SELECT w.account, w.reason, w.paused_by FROM kliv_mail._pause AS w WHERE w.account IN ('', n.name)
                           ORDER BY w.account LIMIT 1) AS p ON true
        LEFT JOIN kliv_mail._quota AS q ON q.account = n.name
        ORDER BY n.route_order, n.name
    LOOP
        account := x.name;
        in_use := CASE WHEN x.own THEN x.in_use ELSE kliv_mail._default_account() = 'platform' END;
        provider := x.provider;
        host := x.host;
        port := x.port;
        encryption := x.encryption;
        username := coalesce(x.username, x.username_masked);
        password_masked := x.masked;
        from_address := x.from_address;
        from_name := x.from_name;
        reply_to := x.reply_to;
        allowed_senders := x.allowed_senders;
        hourly_limit := x.hourly_limit;
        daily_limit := x.daily_limit;
        last_test_at := x.last_test_at;
        last_test_ok := x.last_test_ok;
        created_at := x.created_at;
        updated_at := x.updated_at;
        updated_by := x.updated_by;
        password_changed_at := x.password_changed_at;
        paused_until := NULL;
        status := 'ok';
        status_detail := NULL;
        IF x.own AND NOT x.in_use THEN
            status := 'reset';
            status_detail := 'out of use; configure_smtp() with its password puts it in use again';
        ELSIF x.copy OR (x.own AND x.problem IS NOT NULL) THEN
            status := 'copy';
            status_detail := CASE WHEN x.copy THEN 'this database is a copy of another one, and sends nothing until resume()'
                                  ELSE x.problem END;
        ELSIF x.problem IS NOT NULL THEN
            status := 'not configured';
            status_detail := x.problem || coalesce('. ' || x.hint, '');
        ELSIF x.key_id IS NOT NULL AND key.problem IS NOT NULL THEN
            status := 'key missing';
            status_detail := key.problem;
        ELSIF x.key_id IS NOT NULL AND x.key_id <> ALL (key.ids) THEN
            status := 'key missing';
            status_detail := format('the key %s of the stored password is not in the key ring', x.key_id);
        ELSIF x.paused IS NOT NULL THEN
            status := 'paused';
            status_detail := CASE x.paused WHEN '' THEN 'all mail' ELSE 'the account' END
                || format(' is paused by %s', x.paused_by) || coalesce(': ' || x.pause_reason, '');
            paused_until := 'infinity';
        ELSIF x.hourly_limit = 0 OR x.daily_limit = 0 THEN
            status := 'paused';
            status_detail := 'its limit is 0';
            paused_until := 'infinity';
        ELSIF x.held THEN
            status := 'held';
            status_detail := x.held_reason || coalesce('. ' || x.held_hint, '');
            paused_until := x.held_until;
        ELSIF x.own AND x.last_test_ok IS NOT TRUE THEN
            status := 'untested';
            status_detail := CASE WHEN x.last_test_ok THEN NULL WHEN x.last_test_at IS NULL THEN 'not tested since it was saved'
                                  ELSE 'the last test failed' END;
        END IF;
        RETURN NEXT;
    END LOOP;
END;
$$;

CREATE VIEW kliv_mail.smtp_settings WITH (security_barrier) AS
    SELECT * FROM kliv_mail._smtp_settings();
COMMENT ON VIEW kliv_mail.smtp_settings IS
    'The accounts, secrets masked; platform comes from the server''s configuration. SELECT kliv_mail.configure_smtp(...) saves one.';
COMMENT ON COLUMN kliv_mail.smtp_settings.account IS 'platform, custom, or another name given to configure_smtp().';
COMMENT ON COLUMN kliv_mail.smtp_settings.in_use IS 'Can mail leave by it? platform: is it what mail without an account goes by? (It is while custom is not in use.)';
COMMENT ON COLUMN kliv_mail.smtp_settings.provider IS 'Preset (see the view providers), or NULL.';
COMMENT ON COLUMN kliv_mail.smtp_settings.host IS 'SMTP server, lower case, international names as A-labels.';
COMMENT ON COLUMN kliv_mail.smtp_settings.port IS 'TCP port.';
COMMENT ON COLUMN kliv_mail.smtp_settings.encryption IS 'tls (from the first byte), starttls (required), none (only without a password).';
COMMENT ON COLUMN kliv_mail.smtp_settings.username IS 'SMTP user name; masked where the provider''s is a secret or it equals the password.';
COMMENT ON COLUMN kliv_mail.smtp_settings.password_masked IS '**** and the last characters: six of at least eighteen, else a third. NULL: no password.';
COMMENT ON COLUMN kliv_mail.smtp_settings.from_address IS 'Address in From and in the envelope.';
COMMENT ON COLUMN kliv_mail.smtp_settings.from_name IS 'Name in From.';
COMMENT ON COLUMN kliv_mail.smtp_settings.reply_to IS 'Address list in Reply-To, unless a mail has its own.';
COMMENT ON COLUMN kliv_mail.smtp_settings.allowed_senders IS 'Addresses and @domains that send(from_address) may name besides from_address.';
COMMENT ON COLUMN kliv_mail.smtp_settings.hourly_limit IS 'Recipients an hour (of kliv_mail.quota_timezone''s clock); 0: nothing leaves.';
COMMENT ON COLUMN kliv_mail.smtp_settings.daily_limit IS 'Recipients a day; 0: nothing leaves. Never above kliv_mail.max_daily_limit.';
COMMENT ON COLUMN kliv_mail.smtp_settings.status IS 'ok | untested (not tested since saved, or the last test failed) | paused (pause(), or a limit of 0) | held (a reply of the server; ends by itself, by configure_smtp() or by test_smtp()) | key missing (the password cannot be opened) | not configured (platform) | reset (out of use) | copy (of another database; resume() releases it).';
COMMENT ON COLUMN kliv_mail.smtp_settings.status_detail IS 'The status in plain words, and what to do.';
COMMENT ON COLUMN kliv_mail.smtp_settings.paused_until IS 'End of a hold; infinity: until a call ends it; NULL: not paused.';
COMMENT ON COLUMN kliv_mail.smtp_settings.last_test_at IS 'Last connection test of what is saved; NULL: none.';
COMMENT ON COLUMN kliv_mail.smtp_settings.last_test_ok IS 'Its result.';
COMMENT ON COLUMN kliv_mail.smtp_settings.created_at IS 'When the account was first saved.';
COMMENT ON COLUMN kliv_mail.smtp_settings.updated_at IS 'When a setting of it last changed.';
COMMENT ON COLUMN kliv_mail.smtp_settings.updated_by IS 'Role that changed it.';
COMMENT ON COLUMN kliv_mail.smtp_settings.password_changed_at IS 'When the password was last saved.';

-- Limits are checked before the network test and again under the lock that
-- serialises all changes of accounts (taken by the callers that write).
CREATE FUNCTION kliv_mail._check_limits(p_account text, p_hourly integer, p_daily integer) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    origin text := kliv_mail._origin();     -- loads the library, which defines the settings
    cap integer := current_setting('kliv_mail.max_daily_limit')::integer;
    others bigint := (SELECT coalesce(sum(a.daily_limit), 0) FROM kliv_mail._account AS a WHERE a.name <> p_account);
    names text := (SELECT string_agg(format('%s (%s a day)', a.name, a.daily_limit), ', ' ORDER BY a.name)
                   FROM kliv_mail._account AS a WHERE a.name <> p_account AND a.daily_limit > 0);
BEGIN
    IF p_hourly < 0 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('hourly_limit: %s is negative', p_hourly),
            HINT = '0 pauses the account.';
    ELSIF p_daily < 0 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('daily_limit: %s is negative', p_daily),
            HINT = '0 pauses the account.';
    ELSIF p_daily > cap THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('daily_limit: %s is above the %s a day that the server allows', p_daily, cap),
            HINT = format('Choose at most %s; kliv_mail.max_daily_limit is set by the administrator of the server.', cap);
    ELSIF p_daily + others > cap THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('daily_limit: %s and the %s of the other accounts are above the %s a day that the server allows',
                             p_daily, others, cap),
            HINT = format('Lower another account''s with kliv_mail.set_limits(daily_limit => ..., account => ...): %s.', names);
    END IF;
END;
$$;

-- An account as configure_smtp() and rotate_key() read it.
CREATE FUNCTION kliv_mail._read_account(p_account text) RETURNS SETOF kliv_mail._account
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT a.* FROM kliv_mail._account AS a WHERE a.name = p_account;
END;

-- What is needed of the key ring to open what is stored here goes into the
-- database's label, in the transaction that stores it: ids of keys, and root,
-- from which the links that were sent derive.
CREATE FUNCTION kliv_mail._label() RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT kliv_mail._label_keys(coalesce(string_agg(k.id, ',' ORDER BY k.id), ''))
    FROM (SELECT a.key_id AS id FROM kliv_mail._account AS a WHERE a.key_id IS NOT NULL
          UNION SELECT 'root' FROM kliv_mail._brand AS b WHERE b.unsubscribe_url IS NOT NULL) AS k;
END;

-- The first key is made only while nothing that is stored names one, here or in
-- another database: a key that is missing is a state, never a reason for a new one.
CREATE FUNCTION kliv_mail._first_key_allowed() RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT NOT EXISTS (SELECT FROM kliv_mail._account AS a WHERE a.key_id IS NOT NULL)
       AND NOT EXISTS (SELECT FROM kliv_mail._brand AS b WHERE b.unsubscribe_url IS NOT NULL)     -- links that were sent
       AND NOT EXISTS (SELECT FROM pg_shseclabel AS l WHERE l.provider = 'kliv_mail' AND l.label LIKE '% keys=%');
END;

-- From here to the end of the transaction nobody else changes an account; seen
-- is the row's updated_at that the caller worked with (NULL: no row).  Returns
-- _first_key_allowed().
CREATE FUNCTION kliv_mail._lock_accounts(p_account text, p_seen timestamptz) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE kliv_mail._account IN SHARE ROW EXCLUSIVE MODE;
    IF p_account IS NOT NULL AND p_seen IS DISTINCT FROM (SELECT a.updated_at FROM kliv_mail._account AS a WHERE a.name = p_account) THEN
        RAISE EXCEPTION USING ERRCODE = '40001',
            MESSAGE = format('account: "%s" was changed by another session meanwhile', p_account),
            HINT = 'Look at kliv_mail.smtp_settings and call again.';
    END IF;
    RETURN kliv_mail._first_key_allowed();
END;
$$;

-- Write an account.  Connection fields and from_address are complete; of the
-- others NULL keeps (a new account: none, 50, 500), and '' clears.
CREATE FUNCTION kliv_mail._save_account(
    p_caller name, p_account text, p_provider text, p_region text, p_host text, p_port integer, p_encryption text, p_auth text,
    p_username text, p_username_cipher bytea, p_username_masked text, p_password_cipher bytea, p_password_masked text,
    p_key_id text, p_new_password boolean, p_new_connection boolean, p_tested boolean,
    p_from_address text, p_from_name text, p_reply_to text, p_allowed_senders text[], p_hourly integer, p_daily integer,
    p_dry_run boolean)
RETURNS SETOF kliv_mail.smtp_settings
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := kliv_mail._now();
    before kliv_mail._account;
    after kliv_mail._account;
    result kliv_mail.smtp_settings;
BEGIN
    BEGIN
        INSERT INTO kliv_mail._state (origin) VALUES (kliv_mail._origin()) ON CONFLICT DO NOTHING;
        SELECT a.* INTO before FROM kliv_mail._account AS a WHERE a.name = p_account;
        after := before;
        IF before.name IS NULL THEN
            after.name := p_account;
            after.route_order := CASE p_account WHEN 'custom' THEN 0
                ELSE (SELECT coalesce(max(a.route_order), 0) + 1 FROM kliv_mail._account AS a) END;
            after.origin := kliv_mail._origin();
            after.allowed_senders := '{}';
            after.hourly_limit := 50;
            after.daily_limit := 500;
            after.created_at := at;
        END IF;
        after.in_use := true;
        -- A password saved here is meant for here.
        IF p_new_password OR p_new_connection THEN
            after.origin := kliv_mail._origin();
        END IF;
        after.provider := p_provider;
        after.region := p_region;
        after.host := p_host;
        after.port := p_port;
        after.encryption := p_encryption;
        after.auth := p_auth;
        -- Else what is sealed stays, perhaps under a key newer than the one seen.
        IF p_new_password OR p_new_connection THEN
            after.username := p_username;
            after.username_cipher := p_username_cipher;
            after.username_masked := p_username_masked;
            after.password_cipher := p_password_cipher;
            after.password_masked := p_password_masked;
            after.key_id := p_key_id;
            after.password_changed_at := CASE WHEN p_new_password THEN at END;
        END IF;
        IF p_tested THEN
            after.last_test_at := at;
            after.last_test_ok := true;
        ELSIF p_new_password OR p_new_connection THEN
            after.last_test_at := NULL;
            after.last_test_ok := NULL;
        END IF;
        after.from_address := p_from_address;
        after.from_name := nullif(coalesce(p_from_name, before.from_name), '');
        after.reply_to := nullif(coalesce(p_reply_to, before.reply_to), '');
        after.allowed_senders := coalesce(p_allowed_senders, after.allowed_senders);
        after.hourly_limit := coalesce(p_hourly, after.hourly_limit);
        after.daily_limit := coalesce(p_daily, after.daily_limit);
        after.updated_at := greatest(at, before.updated_at + interval '1 microsecond');
        after.updated_by := p_caller;
        after.renewed_at := after.updated_at;
        PERFORM kliv_mail._check_limits(p_account, after.hourly_limit, after.daily_limit);
        DELETE FROM kliv_mail._account AS a WHERE a.name = p_account;
        INSERT INTO kliv_mail._account SELECT after.*;
        PERFORM kliv_mail._log_event('account_configured', p_account, NULL,
                                     kliv_mail._account_changes(before, after), p_caller);
        SELECT s.* INTO result FROM kliv_mail.smtp_settings AS s WHERE s.account = p_account;
        IF p_dry_run THEN
            -- Take it all back; the variables stay.
            RAISE EXCEPTION USING ERRCODE = 'KM001';
        END IF;
        PERFORM kliv_mail._label();
        PERFORM kliv_mail._wake();
    EXCEPTION WHEN SQLSTATE 'KM001' THEN
        NULL;
    END;
    RETURN NEXT result;
END;
$$;

-- What rotate_key() reads and writes.
CREATE FUNCTION kliv_mail._sealed_accounts() RETURNS SETOF kliv_mail._account
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT a.* FROM kliv_mail._account AS a WHERE a.key_id IS NOT NULL ORDER BY a.name;
END;

CREATE FUNCTION kliv_mail._reseal_account(p_account text, p_username_cipher bytea, p_password_cipher bytea, p_key_id text)
RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE kliv_mail._account AS a
    SET username_cipher = p_username_cipher, password_cipher = p_password_cipher, key_id = p_key_id
    WHERE a.name = p_account;
END;

-- A connection test of what is saved for an account ended; a success ends its hold.
CREATE FUNCTION kliv_mail._record_test(p_account text, p_ok boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE kliv_mail._account AS a
    SET last_test_at = kliv_mail._now(), last_test_ok = p_ok,
        renewed_at = CASE WHEN p_ok THEN kliv_mail._now() ELSE a.renewed_at END
    WHERE a.name = p_account;
    IF FOUND AND p_ok THEN
        PERFORM kliv_mail._wake();
    END IF;
END;
$$;

-- An account that a call names; NULL is the one in use, platform is not ours.
CREATE FUNCTION kliv_mail._own_account(p_account text, p_function text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name text := coalesce(p_account, kliv_mail._default_account());
    v_known text := (SELECT string_agg(a.name, ', ' ORDER BY a.name) FROM kliv_mail._account AS a);
BEGIN
    IF v_name = 'platform' THEN
        RAISE EXCEPTION USING ERRCODE = '42501',
            MESSAGE = 'account: "platform" belongs to the server''s configuration',
            HINT = coalesce('Name an account of your own: ' || p_function || '(account => ...), one of ' || v_known || '.',
                            'Save an account of your own first: SELECT * FROM kliv_mail.configure_smtp(...).');
    ELSIF NOT EXISTS (SELECT FROM kliv_mail._account AS a WHERE a.name = v_name) THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('account: there is no account "%s"', v_name),
            HINT = coalesce('Saved are: ' || v_known || '.',
                            'None is saved yet: SELECT * FROM kliv_mail.configure_smtp(...) saves one.');
    END IF;
    RETURN v_name;
END;
$$;

CREATE FUNCTION kliv_mail._update_sender(p_caller name, p_account text, p_from_address text, p_from_name text,
                                         p_reply_to text, p_allowed_senders text[])
RETURNS SETOF kliv_mail.smtp_settings
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before kliv_mail._account;
    after kliv_mail._account;
BEGIN
    LOCK TABLE kliv_mail._account IN SHARE ROW EXCLUSIVE MODE;
    SELECT a.* INTO STRICT before FROM kliv_mail._account AS a WHERE a.name = p_account;
    UPDATE kliv_mail._account AS a
    SET from_address = coalesce(nullif(coalesce(p_from_address, a.from_address), ''),
                                CASE WHEN kliv_mail.is_address(a.username) THEN a.username END),
        from_name = nullif(coalesce(p_from_name, a.from_name), ''),
        reply_to = nullif(coalesce(p_reply_to, a.reply_to), ''),
        allowed_senders = coalesce(p_allowed_senders, a.allowed_senders),
        updated_at = greatest(kliv_mail._now(), a.updated_at + interval '1 microsecond'),
        renewed_at = greatest(kliv_mail._now(), a.updated_at + interval '1 microsecond'),
        updated_by = p_caller
    WHERE a.name = p_account
    RETURNING a.* INTO after;
    IF after.from_address IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'from_address: is needed, since the user name is not an address',
            HINT = 'Give the address that the mail shall come from.';
    END IF;
    PERFORM kliv_mail._log_event('sender_updated', p_account, NULL, c.changes, p_caller)
    FROM (SELECT kliv_mail._account_changes(before, after)) AS c (changes) WHERE c.changes IS NOT NULL;
    PERFORM kliv_mail._wake();
    RETURN QUERY SELECT s.* FROM kliv_mail.smtp_settings AS s WHERE s.account = p_account;
END;
$$;

CREATE FUNCTION kliv_mail.update_sender(from_address text DEFAULT NULL, from_name text DEFAULT NULL, reply_to text DEFAULT NULL,
                                        allowed_senders text[] DEFAULT NULL, account text DEFAULT NULL)
RETURNS SETOF kliv_mail.smtp_settings
AS '$libdir/kliv_mail_net', 'kliv_mail_update_sender' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.update_sender IS
$$Changes who mail comes from; it counts at once for what is queued. NULL keeps, '' (for allowed_senders '{}') clears; a cleared from_address becomes the user name where that is an address.
from_address: an address, or "Name <address>". reply_to: an address list. allowed_senders: addresses and @domains that send(from_address) may name. account: NULL is the one in use.
Returns the row of smtp_settings. Errors: 22023 bad value or no such account, 42501 account platform.
Example: SELECT * FROM kliv_mail.update_sender(from_address => 'shop@example.com', from_name => 'The Shop');$$;

CREATE FUNCTION kliv_mail._set_limits(p_caller name, p_hourly integer, p_daily integer, p_account text)
RETURNS SETOF kliv_mail.smtp_settings
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_account text := kliv_mail._own_account(p_account, 'set_limits');
    before kliv_mail._account;
    after kliv_mail._account;
BEGIN
    LOCK TABLE kliv_mail._account IN SHARE ROW EXCLUSIVE MODE;
    SELECT a.* INTO STRICT before FROM kliv_mail._account AS a WHERE a.name = v_account;
    PERFORM kliv_mail._check_limits(v_account, coalesce(p_hourly, before.hourly_limit), coalesce(p_daily, before.daily_limit));
    UPDATE kliv_mail._account AS a
    SET hourly_limit = coalesce(p_hourly, a.hourly_limit), daily_limit = coalesce(p_daily, a.daily_limit),
        updated_at = greatest(kliv_mail._now(), a.updated_at + interval '1 microsecond'), updated_by = p_caller
    WHERE a.name = v_account
    RETURNING a.* INTO after;
    IF after.hourly_limit = 0 OR after.daily_limit = 0 THEN
        RAISE NOTICE USING MESSAGE = format('a limit of 0 pauses the account "%s"', v_account);
    ELSIF after.hourly_limit > after.daily_limit THEN
        RAISE NOTICE USING MESSAGE = format('the hourly limit %s is above the daily limit %s, which rules',
                                            after.hourly_limit, after.daily_limit);
    END IF;
    PERFORM kliv_mail._log_event('limits_changed', v_account, NULL, c.changes, p_caller)
    FROM (SELECT kliv_mail._account_changes(before, after)) AS c (changes) WHERE c.changes IS NOT NULL;
    PERFORM kliv_mail._wake();
    RETURN QUERY SELECT s.* FROM kliv_mail.smtp_settings AS s WHERE s.account = v_account;
END;
$$;

CREATE FUNCTION kliv_mail.set_limits(hourly_limit integer DEFAULT NULL, daily_limit integer DEFAULT NULL, account text DEFAULT 'custom')
RETURNS SETOF kliv_mail.smtp_settings
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.set_limits IS
$$Sets how many recipients an account may mail in an hour and in a day (of kliv_mail.quota_timezone's clock); it counts at once for what is queued. NULL keeps; 0 pauses. The daily limits of a database's own accounts together are at most kliv_mail.max_daily_limit (10000).
Returns the row of smtp_settings. Errors: 22023 negative, too large or no such account, 42501 account platform.
Example: SELECT * FROM kliv_mail.set_limits(hourly_limit => 200, daily_limit => 2000);$$;

CREATE FUNCTION kliv_mail._reset_smtp(p_caller name, p_account text)
RETURNS SETOF kliv_mail.smtp_settings
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_account text := kliv_mail._own_account(coalesce(p_account, 'custom'), 'reset_smtp');
    v_heir text;
    v_moved bigint;
BEGIN
    LOCK TABLE kliv_mail._account IN SHARE ROW EXCLUSIVE MODE;
    UPDATE kliv_mail._account AS a
    SET in_use = false, username_cipher = NULL, username_masked = NULL, password_cipher = NULL, password_masked = NULL,
        key_id = NULL, password_changed_at = NULL, last_test_at = NULL, last_test_ok = NULL,
        updated_at = greatest(kliv_mail._now(), a.updated_at + interval '1 microsecond'),
        renewed_at = greatest(kliv_mail._now(), a.updated_at + interval '1 microsecond'),
        updated_by = p_caller
    WHERE a.name = v_account AND a.in_use;
    IF FOUND THEN
        -- '' is the way of the account in use, so what waits comes back when
        -- custom is configured again.
        UPDATE kliv_mail._outbox AS o SET route = '' WHERE o.route = v_account;
        GET DIAGNOSTICS v_moved = ROW_COUNT;
        IF v_account = 'custom' THEN
            SELECT count(*) INTO v_moved FROM kliv_mail._outbox AS o WHERE o.route = '';
        END IF;
        v_heir := kliv_mail._default_account();
        IF v_moved > 0 THEN
            RAISE NOTICE USING MESSAGE = format('%s deliveries of the account "%s" now wait for the account "%s" (%s)',
                v_moved, v_account, v_heir,
                (SELECT coalesce(x.problem, format('at most %s an hour and %s a day', x.hourly_limit, x.daily_limit))
                 FROM kliv_mail._accounts() AS x WHERE x.name = v_heir));
        END IF;
        PERFORM kliv_mail._label();
        PERFORM kliv_mail._log_event('account_reset', v_account, NULL, jsonb_build_object('moved', v_moved), p_caller);
        PERFORM kliv_mail._wake();
    END IF;
    RETURN QUERY SELECT s.* FROM kliv_mail.smtp_settings AS s WHERE s.account = v_account;
END;
$$;

CREATE FUNCTION kliv_mail.reset_smtp(account text DEFAULT 'custom')
RETURNS SETOF kliv_mail.smtp_settings
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.reset_smtp IS
$$Takes an account out of use and wipes its password; sender and limits stay for the next configure_smtp(). What it had queued goes by the account in use, that is platform when custom was reset (a NOTICE says how many wait). Resetting twice does nothing.
Returns the row of smtp_settings. Errors: 22023 no such account, 42501 account platform.
Example: SELECT * FROM kliv_mail.reset_smtp();$$;

-- How many deliveries wait for an account ('' = for any).
CREATE FUNCTION kliv_mail._waiting_for(p_account text) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT count(*) FROM kliv_mail._outbox AS o
    WHERE o.epoch IS NULL AND o.origin = kliv_mail._origin()
      AND (p_account = '' OR o.route = p_account OR (o.route = '' AND p_account = kliv_mail._default_account()));
END;

CREATE FUNCTION kliv_mail._known_account(p_account text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_account IS NULL OR p_account = 'platform' THEN
        RETURN coalesce(p_account, '');
    END IF;
    RETURN kliv_mail._own_account(p_account, 'pause');
END;
$$;

CREATE FUNCTION kliv_mail._pause(p_caller name, p_account text, p_reason text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_account text := kliv_mail._known_account(p_account);
BEGIN
    INSERT INTO kliv_mail._pause AS p (account, reason, paused_at, paused_by)
    VALUES (v_account, nullif(p_reason, ''), kliv_mail._now(), p_caller)
    ON CONFLICT (account) DO UPDATE
    SET reason = coalesce(excluded.reason, p.reason), paused_at = excluded.paused_at,
        -- whose reason it is
        paused_by = CASE WHEN excluded.reason IS NULL AND p.reason IS NOT NULL THEN p.paused_by ELSE excluded.paused_by END;
    PERFORM kliv_mail._log_event('paused', nullif(v_account, ''), nullif(p_reason, ''), NULL, p_caller);
    PERFORM kliv_mail._wake();
    RETURN kliv_mail._waiting_for(v_account);
END;
$$;

CREATE FUNCTION kliv_mail.pause(account text DEFAULT NULL, reason text DEFAULT NULL) RETURNS bigint
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.pause IS
$$Stops an account, or with NULL all mail of the database: nothing new leaves within a second of the commit, what is queued and what comes waits for resume(). reason is shown wherever the mail is.
Returns how many deliveries are held. Errors: 22023 no such account.
Example: SELECT kliv_mail.pause(reason => 'maintenance');$$;

CREATE FUNCTION kliv_mail._resume(p_caller name, p_account text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_account text := kliv_mail._known_account(p_account);
    v_here text := kliv_mail._origin();
    v_there text;
    v_before bigint := 0;
    v_released bigint := 0;
    v_still text;
BEGIN
    -- A copy: what carries the origin that it was copied from is stamped anew
    -- (other origins, brought by logical replication, stay what they are).
    IF v_account = '' THEN
        SELECT s.origin INTO v_there FROM kliv_mail._state AS s WHERE s.origin <> v_here FOR UPDATE;
        IF FOUND THEN
            UPDATE kliv_mail._state SET origin = v_here;
            UPDATE kliv_mail._account SET origin = v_here, renewed_at = kliv_mail._now() WHERE origin = v_there;
            UPDATE kliv_mail._outbox SET origin = v_here WHERE origin = v_there;
            v_released := kliv_mail._waiting_for('');
            PERFORM kliv_mail._log_event('copy_released', NULL, format('this copy of %s sends its own mail now', v_there),
                                         jsonb_build_object('origin', jsonb_build_array(v_there, v_here)), p_caller);
        END IF;
    ELSE
        UPDATE kliv_mail._account SET origin = v_here, renewed_at = kliv_mail._now()
        WHERE name = v_account AND origin <> v_here;
        IF FOUND THEN
            v_released := kliv_mail._waiting_for(v_account);
            PERFORM kliv_mail._log_event('copy_released', v_account, 'the account sends from this database now', NULL, p_caller);
        END IF;
    END IF;
    DELETE FROM kliv_mail._pause AS p WHERE p.account = v_account;
    IF FOUND THEN
        v_released := kliv_mail._waiting_for(v_account);
        PERFORM kliv_mail._log_event('resumed', nullif(v_account, ''), NULL, NULL, p_caller);
    END IF;
    SELECT string_agg(CASE p.account WHEN '' THEN 'all mail of this database' ELSE format('the account "%s"', p.account) END, ', ' ORDER BY p.account)
    INTO v_still FROM kliv_mail._pause AS p;
    IF v_still IS NOT NULL THEN
        RAISE NOTICE USING MESSAGE = format('still paused: %s', v_still),
            HINT = 'kliv_mail.resume(account) ends the pause of an account, kliv_mail.resume() that of the database.';
    END IF;
    PERFORM kliv_mail._wake();
    RETURN v_released;
END;
$$;

CREATE FUNCTION kliv_mail.resume(account text DEFAULT NULL) RETURNS bigint
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.resume IS
$$Ends a pause(): of an account, or with NULL that of the whole database (accounts paused by name stay so; a NOTICE names them). In a copy of a database (dump and restore, template, pg_upgrade), which sends nothing by itself, resume() releases its mail, old and new.
Returns how many deliveries were released. Errors: 22023 no such account.
Example: SELECT kliv_mail.resume();$$;

CREATE FUNCTION kliv_mail.configure_smtp(
    provider text DEFAULT NULL, host text DEFAULT NULL, port integer DEFAULT NULL, username text DEFAULT NULL,
    password text DEFAULT NULL, encryption text DEFAULT NULL, from_address text DEFAULT NULL, from_name text DEFAULT NULL,
    reply_to text DEFAULT NULL, allowed_senders text[] DEFAULT NULL, hourly_limit integer DEFAULT NULL,
    daily_limit integer DEFAULT NULL, region text DEFAULT NULL, auth text DEFAULT NULL, password_sealed bytea DEFAULT NULL,
    password_file text DEFAULT NULL, test boolean DEFAULT true, dry_run boolean DEFAULT false, account text DEFAULT 'custom')
RETURNS SETOF kliv_mail.smtp_settings
AS '$libdir/kliv_mail_net', 'kliv_mail_configure_smtp' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.configure_smtp IS
$$Saves the SMTP account that mail goes by, after testing it; a call that fails saves nothing. NULL keeps what is saved (a new account: the provider's values, 50 an hour, 500 a day), '' clears. Another provider, host, port, encryption or username needs the password again; sender and limits stay.
provider: gmail | sendgrid | mailgun | ses | postmark | sakura | onamae | resend
encryption: tls | starttls | none
auth: password | oauth2
A provider's arguments are in the view providers (required, example); without one give host, username and password. Left out, encryption is tls on the ports 465 and 2465 and starttls on others; none is only for a relay without password. With oauth2 the password is an access token. Instead of password: password_sealed (crypto_box_seal for public_key()) or password_file (on the server, for members of pg_read_server_files). from_address: default is a username that is an address. test: connect, log in and ask with MAIL FROM first. dry_run: check, and test, but save nothing. account: a further account's name.
Returns the saved row of smtp_settings, masked. Errors: 22023 bad value, 42501 host not allowed or account platform, 54000 too long, 55000 key, 08xxx failed test.
Example: SELECT * FROM kliv_mail.configure_smtp(provider => 'sendgrid', password => 'SG.your-api-key', from_address => 'noreply@example.com');
Example: SELECT * FROM kliv_mail.configure_smtp(host => 'smtp.example.com', port => 465, username => 'app@example.com', password => 'the mailbox password');
Example: SELECT * FROM kliv_mail.configure_smtp(password => 'the new password');$$;

CREATE FUNCTION kliv_mail.public_key() RETURNS bytea
AS '$libdir/kliv_mail_net', 'kliv_mail_public_key' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.public_key IS
'The X25519 public key (32 bytes) for which a client seals a password with libsodium''s crypto_box_seal(), for configure_smtp(password_sealed => ...). It changes with rotate_key(); what was sealed for an older one still opens. Errors: 55000 key.
Example: SELECT encode(kliv_mail.public_key(), ''base64'');';

CREATE FUNCTION kliv_mail.rotate_key() RETURNS integer
AS '$libdir/kliv_mail_net', 'kliv_mail_rotate_key' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.rotate_key IS
'Adds a new key to the key file (with kliv_mail.key_command: takes its newest) and encrypts this database''s passwords with it. Call it in each database; then older keys open no password. Returns the number of accounts encrypted anew. Errors: 55000 a key or a password cannot be read, or the file cannot be written.
Example: SELECT kliv_mail.rotate_key();';
