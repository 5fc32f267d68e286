-- Addresses that get no mail.

CREATE FUNCTION kliv_mail._suppress(p_caller name, p_address text, p_scope text, p_reason text, p_expires_at timestamptz)
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := kliv_mail._now();
    v_address text := kliv_mail._one_address(p_address);
    v_stopped integer;
BEGIN
    IF p_scope IS NULL OR p_scope NOT IN ('all', 'marketing') THEN
        RAISE invalid_parameter_value USING MESSAGE = format('scope: %s is not a choice', coalesce(quote_ident(p_scope), 'NULL')),
            HINT = 'Use all or marketing.';
    ELSIF char_length(p_reason) > 1000 THEN
        RAISE program_limit_exceeded USING MESSAGE = format('reason: %s characters, over 1000', char_length(p_reason)),
            HINT = 'It is shown at every delivery that it stops; say it in a sentence.';
    ELSIF p_expires_at <= at THEN
        RAISE invalid_parameter_value USING MESSAGE = format('expires_at: %s has passed', p_expires_at), HINT = 'Leave it NULL for ever.';
    END IF;
    INSERT INTO kliv_mail._suppression AS s (address, scope, reason, created_at, created_by, expires_at)
    VALUES (v_address, p_scope, nullif(p_reason, ''), at, p_caller, p_expires_at)
    ON CONFLICT (address, scope) DO UPDATE
    SET reason = coalesce(excluded.reason, s.reason), created_at = excluded.created_at, created_by = excluded.created_by,
        expires_at = excluded.expires_at;
    PERFORM kliv_mail._log_event('suppressed_address', NULL, v_address, jsonb_strip_nulls(jsonb_build_object(
        'scope', p_scope, 'reason', nullif(p_reason, ''), 'expires_at', p_expires_at)), p_caller);
    v_stopped := kliv_mail._stop_suppressed(v_address, at);
    IF v_stopped > 0 THEN
        PERFORM kliv_mail._wake();      -- who waits for it is told
    END IF;
    RETURN v_stopped;
END;
$$;

CREATE FUNCTION kliv_mail.suppress(address text, scope text DEFAULT 'all', reason text DEFAULT NULL, expires_at timestamptz DEFAULT NULL)
RETURNS integer
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.suppress(text, text, text, timestamptz) IS
$$Sends an address no more mail, in whatever case it is written, and stops what is queued for it. reason is shown at its deliveries; expires_at: until then (NULL: for ever).
scope: all | marketing
Returns how many queued deliveries were stopped. Errors: 22023 not an address, or no such scope.
Example: SELECT kliv_mail.suppress('ana@example.com', reason => 'asked for it');$$;

CREATE FUNCTION kliv_mail._unsuppress(p_caller name, p_address text, p_scope text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_address text := kliv_mail._one_address(p_address);
BEGIN
    IF p_scope IS NULL OR p_scope NOT IN ('all', 'marketing') THEN
        RAISE invalid_parameter_value USING MESSAGE = format('scope: %s is not a choice', coalesce(quote_ident(p_scope), 'NULL')),
            HINT = 'Use all or marketing.';
    END IF;
    DELETE FROM kliv_mail._suppression AS s WHERE s.address = v_address AND s.scope = p_scope;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM kliv_mail._log_event('unsuppressed_address', NULL, v_address, jsonb_build_object('scope', p_scope), p_caller);
    RETURN true;
END;
$$;

CREATE FUNCTION kliv_mail.unsuppress(address text, scope text DEFAULT 'all') RETURNS boolean
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.unsuppress(text, text) IS
$$Ends a suppression of that scope; true if there was one. New mail to the address leaves again; what was stopped stays stopped.
scope: all | marketing
Errors: 22023 not an address, or no such scope.
Example: SELECT kliv_mail.unsuppress('ana@example.com');$$;

-- The address as suppressions know it: as on the wire, in lower case.
CREATE FUNCTION kliv_mail._one_address(p_address text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_address text;
BEGIN
    IF NOT kliv_mail.is_address(p_address) THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('address: %s is not an e-mail address', coalesce('"' || left(p_address, 100) || '"', 'NULL')),
            HINT = 'Give one address, such as ana@example.com.';
    END IF;
    SELECT lower(a.address COLLATE "C") INTO v_address FROM kliv_mail.parse_addresses(p_address) AS a;
    RETURN v_address;
END;
$$;

CREATE VIEW kliv_mail.suppressions AS
    SELECT s.address, s.scope, s.reason, s.created_at, s.created_by, s.expires_at
    FROM kliv_mail._suppression AS s
    WHERE s.expires_at IS NULL OR s.expires_at > kliv_mail._now();
COMMENT ON VIEW kliv_mail.suppressions IS 'Addresses that get no mail; kliv_mail.suppress() adds one, kliv_mail.unsuppress() ends it.';
COMMENT ON COLUMN kliv_mail.suppressions.address IS 'In lower case; every way of writing it counts.';
COMMENT ON COLUMN kliv_mail.suppressions.scope IS 'all, or marketing: only marketing mail is stopped.';
COMMENT ON COLUMN kliv_mail.suppressions.reason IS 'As given.';
COMMENT ON COLUMN kliv_mail.suppressions.created_at IS 'Since when.';
COMMENT ON COLUMN kliv_mail.suppressions.created_by IS 'The role that did it.';
COMMENT ON COLUMN kliv_mail.suppressions.expires_at IS 'Until when; NULL: for ever.';
