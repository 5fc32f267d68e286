-- configure_smtp() and update_sender(): what they read, check and write (what
-- needs a secret or an address parser is src/functions/configure.c).

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
    p_kept text, p_dry_run boolean)
RETURNS kliv_mail.account_summary
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := kliv_mail._now();
    before kliv_mail._account;
    after kliv_mail._account;
    result kliv_mail.account_summary;
BEGIN
    BEGIN
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
        after.rolling_limit := kliv_mail._rolling_limit(after.provider, after.username);
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
        result := kliv_mail._summary(before, after, p_kept, p_dry_run);
        IF p_dry_run THEN
            -- Take it all back; the variables stay.
            RAISE EXCEPTION USING ERRCODE = 'KM000';
        END IF;
        PERFORM kliv_mail._label();
        PERFORM kliv_mail._account_mended(p_account);
    EXCEPTION WHEN SQLSTATE 'KM000' THEN
        NULL;
    END;
    RETURN result;
END;
$$;

CREATE FUNCTION kliv_mail.configure_smtp(
    provider text DEFAULT NULL, host text DEFAULT NULL, port integer DEFAULT NULL, username text DEFAULT NULL,
    password text DEFAULT NULL, encryption text DEFAULT NULL, from_address text DEFAULT NULL, from_name text DEFAULT NULL,
    reply_to text DEFAULT NULL, allowed_senders text[] DEFAULT NULL, hourly_limit integer DEFAULT NULL,
    daily_limit integer DEFAULT NULL, region text DEFAULT NULL, auth text DEFAULT NULL, password_sealed bytea DEFAULT NULL,
    password_file text DEFAULT NULL, test boolean DEFAULT true, dry_run boolean DEFAULT false, account text DEFAULT 'custom')
RETURNS SETOF kliv_mail.account_summary
AS '$libdir/kliv_mail_net', 'kliv_mail_configure_smtp' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.configure_smtp IS
$$Saves the SMTP account that mail goes by, after testing it; a call that fails saves nothing. NULL keeps what is saved (a new account: the provider's values, 50 an hour, 500 a day), '' clears. Another provider, host, port, encryption or username needs the password again; sender and limits stay.
provider: @PROVIDERS@
encryption: tls | starttls | none
auth: password | oauth2
A provider's arguments are in the view providers (required, example); without one give host, username and password. Left out, encryption is tls on the ports 465 and 2465 and starttls on others; none is only for a relay without password. With oauth2 the password is an access token. Instead of password: password_sealed (crypto_box_seal of the lines account, host, password for public_key()) or password_file (on the server, for members of pg_read_server_files). from_address: default is a username that is an address; it goes with it, another one is kept. test: connect, log in and ask whether from_address may send first. dry_run: check, and test, but save nothing. account: a further account's name.
Returns the account in short, its password masked, and what changed. Errors: 22023 bad value, 42501 host not allowed or account platform, 54000 too long, 55000 key, KM001 to KM006 a failed test (dns, connect, tls, ehlo, auth, sender).
Example: SELECT * FROM kliv_mail.configure_smtp(provider => 'sendgrid', password => 'SG.your-api-key', from_address => 'noreply@example.com');
Example: SELECT * FROM kliv_mail.configure_smtp(host => 'smtp.example.com', port => 465, username => 'app@example.com', password => 'the mailbox password');
Example: SELECT * FROM kliv_mail.configure_smtp(password => 'the new password');$$;

-- A connection test of an account as it is ended.  A success ends a hold that
-- its steps could have met, and one for a limit, which whoever tests may have raised.  Another
-- one that a mail met later stays; its reason is returned.
CREATE FUNCTION kliv_mail._record_test(p_account text, p_ok boolean) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_stays text := (SELECT q.held_reason FROM kliv_mail._quota AS q JOIN kliv_mail._accounts() AS x ON x.name = q.account
                     WHERE q.account = p_account AND q.held_until > v_at AND q.fingerprint IS NOT DISTINCT FROM x.fingerprint
                       AND q.held_stage IN ('rcpt', 'data', 'dot') AND q.held_by <> 'quota');
    v_ends boolean := p_ok AND v_stays IS NULL;
BEGIN
    IF p_account = 'platform' THEN
        INSERT INTO kliv_mail._platform_test AS t (tested_at, ok, renewed_at) VALUES (v_at, p_ok, CASE WHEN v_ends THEN v_at END)
        ON CONFLICT (singleton) DO UPDATE
        SET tested_at = excluded.tested_at, ok = excluded.ok, renewed_at = coalesce(excluded.renewed_at, t.renewed_at);
    ELSE
        UPDATE kliv_mail._account AS a
        SET last_test_at = v_at, last_test_ok = p_ok, renewed_at = CASE WHEN v_ends THEN v_at ELSE a.renewed_at END
        WHERE a.name = p_account;
    END IF;
    IF v_ends THEN
        PERFORM kliv_mail._account_mended(p_account);
    END IF;
    RETURN CASE WHEN p_ok THEN v_stays END;
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
RETURNS SETOF kliv_mail.account_summary
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
    PERFORM kliv_mail._account_mended(p_account);
    RETURN NEXT kliv_mail._summary(before, after);
END;
$$;

CREATE FUNCTION kliv_mail.update_sender(from_address text DEFAULT NULL, from_name text DEFAULT NULL, reply_to text DEFAULT NULL,
                                        allowed_senders text[] DEFAULT NULL, account text DEFAULT NULL)
RETURNS SETOF kliv_mail.account_summary
AS '$libdir/kliv_mail_net', 'kliv_mail_update_sender' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.update_sender IS
$$Changes who mail comes from; it counts at once for what is queued. NULL keeps, '' (for allowed_senders '{}') clears; a cleared from_address becomes the user name where that is an address.
from_address: an address, or "Name <address>". reply_to: an address list. allowed_senders: addresses and @domains that send(from_address) may name. account: NULL is the one in use.
Returns the account in short, and what changed. Errors: 22023 bad value or no such account, 42501 account platform.
Example: SELECT * FROM kliv_mail.update_sender(from_address => 'shop@example.com', from_name => 'The Shop');$$;
