-- Queueing: what send() asks as it puts a message and its deliveries in (src/functions/send.c),
-- and what takes deliveries out again that no server was given: suppressed, expired.

-- What an address and its domain are called in _suppression.
CREATE FUNCTION kliv_mail._suppression_keys(p_recipient text) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT ARRAY[lower(p_recipient COLLATE "C"), '@' || split_part(lower(p_recipient COLLATE "C"), '@', -1)];
END;

-- May anything stand in the way of mail to one of these?  _suppressed() says what.
CREATE FUNCTION kliv_mail._any_suppressed(p_recipients text[]) RETURNS boolean
    LANGUAGE c STABLE
    AS 'MODULE_PATHNAME', 'kliv_mail__any_suppressed';

-- What is left of an address that was suppressed and then forgotten: a hash under the
-- database's own salt, which its dumps carry along.
CREATE FUNCTION kliv_mail._address_hash(p_address text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT encode(sha256(s.salt || convert_to(lower(p_address COLLATE "C"), 'UTF8')), 'hex')
            FROM kliv_mail._current_rows(NULL::kliv_mail._salt) AS s ORDER BY s.made_at, s.salt LIMIT 1);
END;
$$;

-- Why an address gets no mail of this priority and topic, and the call that lets it
-- leave again; NULL: it gets it.
CREATE FUNCTION kliv_mail._suppressed(p_recipient text, p_priority smallint, p_topic text, at timestamptz, OUT reason text, OUT hint text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    s record;
BEGIN
    SELECT x.* INTO s
    FROM (SELECT y.address, y.scope, y.reason, y.expires_at
          FROM unnest(kliv_mail._suppression_keys(p_recipient)) AS k (address),
               kliv_mail._current_rows(NULL::kliv_mail._suppression, '_suppression_pkey', k.address) AS y
          UNION ALL
          SELECT lower(p_recipient COLLATE "C"), f.scope, 'it was, when it was forgotten', f.expires_at
          FROM kliv_mail._current_rows(NULL::kliv_mail._forgotten, '_forgotten_pkey', kliv_mail._address_hash(p_recipient)) AS f) AS x
    WHERE (x.scope = 'all' OR p_priority = 2 AND x.scope IN ('marketing', p_topic)) AND (x.expires_at IS NULL OR x.expires_at > at)
    ORDER BY x.scope <> 'all', x.scope <> 'marketing', x.address ^@ '@' LIMIT 1;
    IF FOUND THEN
        reason := CASE WHEN s.address ^@ '@' THEN format('mail to %s is suppressed', s.address) ELSE 'the address is suppressed' END
            || CASE s.scope WHEN 'all' THEN '' WHEN 'marketing' THEN ' for marketing mail' ELSE format(' for the topic "%s"', s.scope) END
            || coalesce(': ' || s.reason, '');
        hint := format('SELECT kliv_mail.unsuppress(%L%s); lets mail to it leave again.', s.address,
                       CASE WHEN s.scope <> 'all' THEN ', ' || quote_literal(s.scope) END);
    END IF;
END;
$$;

-- The message that has a key: the given one, where it is free, or the first one,
-- where the fingerprint of its arguments is the same; else 23505.  Where another
-- call is just taking it, this one waits to see whether that commits.
CREATE FUNCTION kliv_mail._take_key(p_sender name, p_key text, p_fingerprint bytea, p_message bigint, p_now timestamptz)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k record;
BEGIN
    LOOP
        SELECT i.fingerprint, i.message_id INTO k
        FROM kliv_mail._current_rows(NULL::kliv_mail._idempotency, '_idempotency_pkey', p_sender, p_key) AS i;
        IF k.fingerprint = p_fingerprint THEN
            RETURN k.message_id;
        ELSIF FOUND THEN
            RAISE unique_violation USING CONSTRAINT = 'idempotency_key',
                MESSAGE = format('idempotency_key: "%s" was used for message %s with other arguments', left(p_key, 100), k.message_id),
                HINT = 'Give every mail a key of its own; the same key and the same arguments give the first message''s id.';
        ELSIF current_setting('transaction_isolation') = 'read committed' THEN
            INSERT INTO kliv_mail._idempotency (sender_role, key, fingerprint, message_id, created_at)
            VALUES (p_sender, p_key, p_fingerprint, p_message, p_now)
            ON CONFLICT DO NOTHING;
            IF FOUND THEN
                RETURN p_message;
            END IF;
        ELSE
            -- There ON CONFLICT raises 40001 for a row that the transaction may not see.
            BEGIN
                INSERT INTO kliv_mail._idempotency (sender_role, key, fingerprint, message_id, created_at)
                VALUES (p_sender, p_key, p_fingerprint, p_message, p_now);
                RETURN p_message;
            EXCEPTION WHEN unique_violation THEN
                NULL;
            END;
        END IF;
    END LOOP;
END;
$$;

-- Of new deliveries those to suppressed addresses, which end here: 1 for each, 0 for
-- the others, which send() puts into the outbox (src/functions/send.c).
CREATE FUNCTION kliv_mail._stop_new(
    p_messages bigint[], p_recipients text[], p_kinds text[], p_priority smallint, p_topic text, p_route text,
    p_expires_at timestamptz, p_now timestamptz, OUT stopped bigint[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_reasons text[];
    v_hints text[];
BEGIN
    SELECT array_agg(s.reason ORDER BY r.n), array_agg(s.hint ORDER BY r.n), array_agg((s.reason IS NOT NULL)::integer::bigint ORDER BY r.n)
    INTO v_reasons, v_hints, stopped
    FROM unnest(p_recipients) WITH ORDINALITY AS r (recipient, n), kliv_mail._suppressed(r.recipient, p_priority, p_topic, p_now) AS s;
    INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, created_at, expires_at,
        attempts, doubts, reason, hint, finished_at, changed)
    SELECT nextval('kliv_mail._delivery_id'), r.message_id, r.recipient, r.kind, p_priority, p_route, 'suppressed', p_now, p_expires_at,
           0, 0, r.reason, r.hint, p_now, kliv_mail._change()
    FROM unnest(p_messages, p_recipients, p_kinds, v_reasons, v_hints) AS r (message_id, recipient, kind, reason, hint) WHERE r.reason IS NOT NULL;
END;
$$;

-- Finish the waiting deliveries to addresses (as _suppression has them) that are suppressed; a claim ends
-- those that another session has locked now.
CREATE FUNCTION kliv_mail._stop_suppressed(p_addresses text[], at timestamptz) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_ids bigint[] := ARRAY(
        SELECT o.id FROM kliv_mail._outbox AS o
        WHERE kliv_mail._suppression_keys(o.recipient) && p_addresses AND o.epoch IS NULL FOR UPDATE SKIP LOCKED);
    v_count integer;
BEGIN
    IF v_ids = '{}' THEN
        RETURN 0;
    END IF;
    PERFORM FROM kliv_mail._finish(NULL, ARRAY(
        SELECT kliv_mail._ended(o.id, 'suppressed', s.reason, s.hint)
        FROM kliv_mail._outbox AS o JOIN kliv_mail._message AS m ON m.id = o.message_id,
             kliv_mail._suppressed(o.recipient, o.priority, m.topic, at) AS s
        WHERE o.id = ANY (v_ids) AND s.reason IS NOT NULL), at);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END;
$$;

-- Finish deliveries whose expiry has come.
CREATE FUNCTION kliv_mail._expire(at timestamptz) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_origin text := kliv_mail._origin();
    v_count bigint;
BEGIN
    -- Without "epoch IS NULL", which would invite the planner to walk the whole line.
    IF NOT EXISTS (SELECT FROM kliv_mail._outbox AS x WHERE x.origin = v_origin AND x.expires_at <= at) THEN
        RETURN 0;
    END IF;
    PERFORM FROM kliv_mail._finish(NULL, ARRAY(
        SELECT kliv_mail._ended(o.id, 'expired', 'it expired before it could be delivered' || coalesce('; last: ' || o.last_reason, ''),
            format('SELECT kliv_mail.retry(%s); sends it all the same.', o.message_id))
        FROM kliv_mail._outbox AS o WHERE o.origin = v_origin AND o.expires_at <= at
        ORDER BY o.expires_at LIMIT 1000 FOR UPDATE SKIP LOCKED), at);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END;
$$;
