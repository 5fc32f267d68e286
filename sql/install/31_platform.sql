-- The platform's account as the server's configuration has it, and all accounts
-- as send() and claims see them.  Also the event log that every change of an
-- account writes.
--
-- A public function that changes something runs _<name>(caller, ...) as the
-- extension's owner (src/functions/as_owner.c), so that the caller needs no right
-- on a table and the event still names who it was.

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
    url text := nullif(kliv_mail._setting('kliv_mail.platform_url'), '');
    sender text := nullif(kliv_mail._setting('kliv_mail.platform_from'), '');
    port_digits text;
BEGIN
    username := nullif(kliv_mail._setting('kliv_mail.platform_username'), '');
    password_file := nullif(kliv_mail._setting('kliv_mail.platform_password_file'), '');
    hourly_limit := kliv_mail._setting('kliv_mail.platform_hourly_limit')::integer;
    daily_limit := kliv_mail._setting('kliv_mail.platform_daily_limit')::integer;
    fingerprint := md5(concat_ws(chr(31), url, username, password_file, sender, (SELECT t.renewed_at FROM kliv_mail._snapshot_rows(NULL::kliv_mail._platform_test) AS t)));
    hint := 'The administrator of the server mends it in postgresql.conf; or send by a provider of your own: '
            'SELECT * FROM kliv_mail.configure_smtp(...).';
    IF current_setting('kliv_mail.delivery') = 'sandbox' THEN
        -- No server is asked, so that none is needed.
        url := coalesce(url, 'smtp://simulator.invalid:25');
        sender := coalesce(sender, 'platform@simulator.invalid');
    END IF;
    IF url IS NULL OR sender IS NULL THEN
        problem := 'the account "platform" is not configured';
        hint := 'The administrator of the server sets kliv_mail.platform_url and kliv_mail.platform_from; or send by a '
                'provider of your own: SELECT * FROM kliv_mail.configure_smtp(...).';
        RETURN;
    END IF;
    -- Both settings were checked when they were set (src/base/guc.c).  No regular
    -- expression: this runs at each send() and claim.
    encryption := CASE lower(split_part(url, '://', 1) COLLATE "C") WHEN 'smtps' THEN 'tls' WHEN 'smtp' THEN 'none' ELSE 'starttls' END;
    host := lower(split_part(url, '://', 2) COLLATE "C");
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

-- An account as send() and claims see it.  A claim asks once and hands it on.
CREATE TYPE kliv_mail._known_account AS (name text, in_use boolean, route_order integer, own boolean, provider text, host text,
    port integer, encryption text, from_address text, from_name text, reply_to text, allowed_senders text[], hourly_limit integer,
    daily_limit integer, problem text, hint text, fingerprint text, rolling_limit integer);

-- Every account: platform first, which is always in use (what is routed to it
-- by name leaves by it), then those that were saved.  plpgsql, like everything
-- here that send() and claims call: it keeps its plans, which SQL functions make
-- anew at each call.
CREATE FUNCTION kliv_mail._accounts() RETURNS SETOF kliv_mail._known_account
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 3 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    p record := kliv_mail._platform();
    here text := kliv_mail._origin();
    cap integer := current_setting('kliv_mail.max_daily_limit')::integer;
BEGIN
    RETURN QUERY VALUES ('platform', true, 2147483647, false, NULL::text, p.host, p.port, p.encryption, p.from_address,
        p.from_name, NULL::text, '{}'::text[], p.hourly_limit, p.daily_limit, p.problem, p.hint, p.fingerprint, NULL::integer);
    RETURN QUERY
    SELECT a.name, a.in_use, a.route_order, true, a.provider, a.host, a.port, a.encryption, a.from_address, a.from_name,
           a.reply_to, a.allowed_senders, a.hourly_limit, least(a.daily_limit, cap),
           CASE WHEN a.origin <> here
                THEN format('the account "%s" was saved in another database, of which this one is a copy', a.name) END,
           CASE WHEN a.origin <> here THEN format('SELECT kliv_mail.resume(%L); if it shall send from here too.', a.name) END,
           hashtextextended(concat_ws(chr(31), a.name, a.in_use, a.origin, a.renewed_at, a.host, a.port, a.encryption, a.username), 0)::text,
           CASE a.rolling_limit WHEN 0 THEN least(a.daily_limit, cap) ELSE a.rolling_limit END
    FROM kliv_mail._snapshot_rows(NULL::kliv_mail._account) AS a;
END;
$$;

CREATE FUNCTION kliv_mail._default_account() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE WHEN EXISTS (SELECT FROM kliv_mail._snapshot_rows(NULL::kliv_mail._account, '_account_pkey', NULL, 'custom') AS a WHERE a.in_use)
                THEN 'custom' ELSE 'platform' END;
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
