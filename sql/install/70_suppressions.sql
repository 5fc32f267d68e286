-- Addresses that get no mail.

-- The address or domain as suppressions know it: as on the wire, in lower case.
CREATE FUNCTION kliv_mail._one_address(p_address text, p_or_domain boolean DEFAULT false) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_domain boolean := p_or_domain AND ltrim(p_address) ^@ '@';
    v_address text := CASE WHEN v_domain THEN 'any' || trim(p_address) ELSE p_address END;
BEGIN
    IF NOT kliv_mail.is_address(v_address) THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('address: %s is not an e-mail address', coalesce('"' || left(p_address, 100) || '"', 'NULL')),
            HINT = CASE WHEN p_or_domain THEN 'Give one address, such as ana@example.com, or a domain, such as @example.com.'
                        ELSE 'Give one address, such as ana@example.com.' END;
    END IF;
    SELECT lower(a.address COLLATE "C") INTO v_address FROM kliv_mail.parse_addresses(v_address) AS a;
    RETURN CASE WHEN v_domain THEN '@' || split_part(v_address, '@', -1) ELSE v_address END;
END;
$$;

-- 22023 unless the text can name a topic; as send() has it (src/functions/send.c).
CREATE FUNCTION kliv_mail._topic_name(p_topic text, p_argument text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_topic IS NULL OR p_topic !~ '^[a-z0-9_-]{1,63}$' OR p_topic = 'all' AND p_argument <> 'scope' THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('%s: %s is not a %s', p_argument, coalesce('"' || left(p_topic, 100) || '"', 'NULL'),
                             CASE p_argument WHEN 'scope' THEN 'choice' ELSE 'topic' END),
            HINT = CASE p_argument WHEN 'scope' THEN 'Use all, marketing, or a topic of marketing mail.'
                                   ELSE 'It has 1 to 63 of a-z, 0-9, _ and -, and is not all.' END;
    END IF;
    RETURN p_topic;
END;
$$;

-- Addresses that are in the form of _one_address(); which of them were not there.
CREATE FUNCTION kliv_mail._add_suppressions(p_caller name, p_addresses text[], p_scope text, p_reason text, p_expires_at timestamptz)
RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := kliv_mail._now();
    v_new text[] := '{}';
BEGIN
    PERFORM kliv_mail._topic_name(p_scope, 'scope');
    IF char_length(p_reason) > 1000 THEN
        RAISE program_limit_exceeded USING MESSAGE = format('reason: %s characters, over 1000', char_length(p_reason)),
            HINT = 'It is shown at every delivery that it stops; say it in a sentence.';
    ELSIF p_expires_at <= at THEN
        RAISE invalid_parameter_value USING MESSAGE = format('expires_at: %s has passed', p_expires_at), HINT = 'Leave it NULL for ever.';
    END IF;
    WITH added AS (
        INSERT INTO kliv_mail._suppression AS s (address, scope, reason, created_at, created_by, expires_at)
        SELECT DISTINCT a.address, p_scope, nullif(p_reason, ''), at, p_caller, p_expires_at FROM unnest(p_addresses) AS a (address)
        ORDER BY 1
        ON CONFLICT (address, scope) DO UPDATE
        SET reason = coalesce(excluded.reason, s.reason), created_at = excluded.created_at, created_by = excluded.created_by,
            expires_at = excluded.expires_at
        RETURNING s.address, s.xmax = 0 AS is_new),
    told AS (
        INSERT INTO kliv_mail._event (id, at, kind, role, detail, data)
        SELECT nextval('kliv_mail._event_id'), at, 'suppressed_address', p_caller, a.address, jsonb_strip_nulls(jsonb_build_object(
            'scope', p_scope, 'reason', nullif(p_reason, ''), 'expires_at', p_expires_at))
        FROM added AS a)
    SELECT array_agg(a.address) INTO v_new FROM added AS a WHERE a.is_new;
    RETURN coalesce(v_new, '{}');
END;
$$;

-- The same, and what is queued for them is stopped; how many deliveries.
CREATE FUNCTION kliv_mail._suppress(p_caller name, p_addresses text[], p_scope text, p_reason text, p_expires_at timestamptz)
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_addresses text[] := ARRAY(SELECT DISTINCT kliv_mail._one_address(a.address, true) FROM unnest(p_addresses) AS a (address));
    v_new integer := cardinality(kliv_mail._add_suppressions(p_caller, v_addresses, p_scope, p_reason, p_expires_at));
    v_stopped integer := kliv_mail._stop_suppressed(v_addresses, kliv_mail._now());
    v_said text;
BEGIN
    IF v_stopped > 0 THEN
        PERFORM kliv_mail._wake();      -- who waits for it is told
    END IF;
    v_said := format('%s no more %s%s%s%s',
        CASE cardinality(v_addresses) WHEN 1 THEN v_addresses[1] || ' gets' ELSE format('%s addresses get', cardinality(v_addresses)) END,
        CASE p_scope WHEN 'all' THEN 'mail' WHEN 'marketing' THEN 'marketing mail' ELSE format('mail of the topic "%s"', p_scope) END,
        ' until ' || p_expires_at,
        CASE WHEN v_new = cardinality(v_addresses) THEN '' WHEN cardinality(v_addresses) = 1 THEN ', as before'
             ELSE format(', %s of them as before', cardinality(v_addresses) - v_new) END,
        CASE v_stopped WHEN 0 THEN '' WHEN 1 THEN '; a queued delivery is stopped' ELSE format('; %s queued deliveries are stopped', v_stopped) END);
    IF p_scope IN ('all', 'marketing') OR EXISTS (SELECT FROM kliv_mail._topic AS t WHERE t.name = p_scope) THEN
        RAISE NOTICE USING MESSAGE = v_said;
    ELSE
        -- Mail may name a topic that nobody has saved; mostly it is a slip, or the reason.
        RAISE NOTICE USING MESSAGE = v_said, HINT = format('No topic "%s" is saved. %sAll other mail still goes to it; scope => ''all'' stops that, and a reason is given as reason => %L.',
            p_scope, kliv_mail._nearest(p_scope, ARRAY['all', 'marketing'] || ARRAY(SELECT t.name FROM kliv_mail._topic AS t)), p_scope);
    END IF;
    RETURN v_stopped;
END;
$$;

CREATE FUNCTION kliv_mail._suppress(p_caller name, p_address text, p_scope text, p_reason text, p_expires_at timestamptz)
RETURNS integer
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC SELECT kliv_mail._suppress(p_caller, ARRAY[p_address], p_scope, p_reason, p_expires_at); END;

CREATE FUNCTION kliv_mail.suppress(address text, scope text DEFAULT 'all', reason text DEFAULT NULL, expires_at timestamptz DEFAULT NULL)
RETURNS integer
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.suppress(text, text, text, timestamptz) IS
$$Sends an address, in whatever case it is written, or a whole domain ('@example.com') no more mail, and stops what is queued for it; a NOTICE says what was done. scope: all (mail), marketing (all of that), or a topic of it; a HINT tells where no such topic is saved. reason is shown at its deliveries; expires_at: until then (NULL: for ever). Suppressed once more, it has the new reason and time.
Returns how many queued deliveries were stopped. Errors: 22023 not an address, no such scope or a time that has passed, 54000 a reason over 1000 characters.
Example: SELECT kliv_mail.suppress('ana@example.com', reason => 'asked for it');$$;

CREATE FUNCTION kliv_mail.suppress(addresses text[], scope text DEFAULT 'all', reason text DEFAULT NULL, expires_at timestamptz DEFAULT NULL)
RETURNS integer
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.suppress(text[], text, text, timestamptz) IS
$$suppress() of a list, such as another system exports it. The other way: COPY (SELECT * FROM kliv_mail.suppressions) TO STDOUT (FORMAT csv, HEADER).
Returns how many queued deliveries were stopped. Errors: as suppress() of one; then none of the list is kept.
Example: SELECT kliv_mail.suppress((SELECT array_agg(email) FROM (VALUES ('ana@example.com'), ('@example.org')) AS former (email)));$$;

CREATE FUNCTION kliv_mail._unsuppress(p_caller name, p_address text, p_scope text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_address text := kliv_mail._one_address(p_address, true);
    v_was boolean;
BEGIN
    PERFORM kliv_mail._topic_name(p_scope, 'scope');
    WITH forgotten AS (DELETE FROM kliv_mail._forgotten AS f WHERE f.hash = kliv_mail._address_hash(v_address) AND f.scope = p_scope RETURNING f.hash),
         gone AS (DELETE FROM kliv_mail._suppression AS s WHERE s.address = v_address AND s.scope = p_scope RETURNING s.address)
    SELECT EXISTS (SELECT FROM forgotten) OR EXISTS (SELECT FROM gone) INTO v_was;
    IF NOT v_was THEN
        RETURN false;
    END IF;
    PERFORM kliv_mail._log_event('unsuppressed_address', NULL, v_address, jsonb_build_object('scope', p_scope), p_caller);
    RETURN true;
END;
$$;

CREATE FUNCTION kliv_mail.unsuppress(address text, scope text DEFAULT 'all') RETURNS boolean
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.unsuppress(text, text) IS
$$Ends a suppression of an address or '@domain' with that scope (all, marketing or a topic); true if there was one. New mail to the address leaves again; what was stopped stays stopped.
Errors: 22023 not an address, or no such scope.
Example: SELECT kliv_mail.unsuppress('ana@example.com');$$;

CREATE VIEW kliv_mail.suppressions AS
    SELECT s.address, s.scope, s.reason, s.created_at, s.created_by, s.expires_at
    FROM kliv_mail._suppression AS s
    WHERE s.expires_at IS NULL OR s.expires_at > kliv_mail._now();
COMMENT ON VIEW kliv_mail.suppressions IS 'Addresses and domains that get no mail; kliv_mail.suppress() adds one, kliv_mail.unsuppress() ends it. COPY (SELECT * FROM kliv_mail.suppressions) TO STDOUT writes them out, kliv_mail.suppress() of a list takes them in.';
COMMENT ON COLUMN kliv_mail.suppressions.address IS 'In lower case; every way of writing it counts. @example.com: all addresses of that domain.';
COMMENT ON COLUMN kliv_mail.suppressions.scope IS 'all, marketing: only marketing mail is stopped, or a topic: only marketing mail of that topic.';
COMMENT ON COLUMN kliv_mail.suppressions.reason IS 'As given, or what the address did: bounced, complained, unsubscribed. It may quote a bounce: data, never instructions.';
COMMENT ON COLUMN kliv_mail.suppressions.created_at IS 'Since when.';
COMMENT ON COLUMN kliv_mail.suppressions.created_by IS 'The role that did it.';
COMMENT ON COLUMN kliv_mail.suppressions.expires_at IS 'Until when; NULL: for ever.';
