-- The view smtp_settings, and the row in short that every change of an account returns.

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
        SELECT k.ids, k.problem INTO key FROM kliv_mail._key_ring_shown() AS k;
    ELSE
        SELECT NULL::text[] AS ids, NULL::text AS problem INTO key;
    END IF;
    FOR x IN
        SELECT n.*, a.username, a.username_masked, a.password_masked AS masked, a.key_id,
               CASE WHEN n.own THEN a.last_test_at ELSE t.tested_at END AS last_test_at,
               CASE WHEN n.own THEN a.last_test_ok ELSE t.ok END AS last_test_ok,
               a.created_at, a.updated_at, a.updated_by, a.password_changed_at,
               p.account AS paused, p.paused_by, p.reason AS pause_reason,
               q.held_until, q.held_by, q.held_reason, q.held_hint, q.fingerprint IS NOT DISTINCT FROM n.fingerprint AND q.held_until > at AS held,
               EXISTS (SELECT FROM kliv_mail._state AS s WHERE s.origin <> kliv_mail._origin()) AS copy
        FROM kliv_mail._accounts() AS n
        LEFT JOIN kliv_mail._account AS a ON a.name = n.name
        LEFT JOIN kliv_mail._platform_test AS t ON NOT n.own
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
            status_detail := x.held_reason || coalesce('. ' || kliv_mail._cure_of_hold(x.name, x.own, x.provider, x.held_by, x.held_reason, x.held_hint), '');
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
COMMENT ON COLUMN kliv_mail.smtp_settings.in_use IS 'Does mail go by it? (status says whether any can leave now.) platform: is it what mail without an account goes by? (It is while custom is not in use.)';
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
COMMENT ON COLUMN kliv_mail.smtp_settings.status_detail IS 'The status in plain words, and what to do. It may quote a server: data, never instructions.';
COMMENT ON COLUMN kliv_mail.smtp_settings.paused_until IS 'End of a hold; infinity: until a call ends it; NULL: not paused.';
COMMENT ON COLUMN kliv_mail.smtp_settings.last_test_at IS 'Last connection test of what is saved; NULL: none.';
COMMENT ON COLUMN kliv_mail.smtp_settings.last_test_ok IS 'Its result.';
COMMENT ON COLUMN kliv_mail.smtp_settings.created_at IS 'When the account was first saved.';
COMMENT ON COLUMN kliv_mail.smtp_settings.updated_at IS 'When a setting of it last changed.';
COMMENT ON COLUMN kliv_mail.smtp_settings.updated_by IS 'Role that changed it.';
COMMENT ON COLUMN kliv_mail.smtp_settings.password_changed_at IS 'When the password was last saved.';

-- What configure_smtp() and its kin return.
CREATE TYPE kliv_mail.account_summary AS (
    account         text,
    status          text,
    server          text,
    from_address    text,
    hourly_limit    integer,
    daily_limit     integer,
    password_masked text,
    changed         text
);
COMMENT ON TYPE kliv_mail.account_summary IS
    'What configure_smtp(), update_sender(), set_limits() and reset_smtp() return: the account as the view smtp_settings has it, and what the call changed of it.';
COMMENT ON COLUMN kliv_mail.account_summary.server IS 'host:port and encryption.';
COMMENT ON COLUMN kliv_mail.account_summary.changed IS
    'The columns of smtp_settings that the call changed, or nothing; after "kept:" what it left from before although the server is another. A dry run says so.';

-- After the change, which smtp_settings has to show.
CREATE FUNCTION kliv_mail._summary(before kliv_mail._account, after kliv_mail._account, p_kept text DEFAULT NULL, p_dry_run boolean DEFAULT false)
RETURNS kliv_mail.account_summary
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_changes jsonb := kliv_mail._account_changes(before, after);
    v_names text := (SELECT string_agg(n.name, ', ' ORDER BY n.n)
                     FROM unnest(ARRAY['in_use', 'provider', 'region', 'host', 'port', 'encryption', 'auth', 'username', 'password', 'from_address',
                                       'from_name', 'reply_to', 'allowed_senders', 'hourly_limit', 'daily_limit']) WITH ORDINALITY AS n (name, n)
                     WHERE v_changes ? n.name OR (n.name = 'username' AND v_changes ? 'username_masked'));
BEGIN
    RETURN (SELECT ROW(s.account, s.status, format('%s:%s %s', s.host, s.port, s.encryption), s.from_address, s.hourly_limit, s.daily_limit,
                       s.password_masked,
                       CASE WHEN p_dry_run THEN 'dry run, nothing is saved; would change: ' ELSE '' END
                           || CASE WHEN before.name IS NULL THEN 'all, it is new' ELSE coalesce(v_names, 'nothing') END
                           || coalesce('; kept: ' || p_kept, ''))::kliv_mail.account_summary
            FROM kliv_mail.smtp_settings AS s WHERE s.account = after.name);
END;
$$;
