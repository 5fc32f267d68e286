-- Queueing: a message and its deliveries in, and what takes deliveries out again that
-- no server was given: suppressed, expired.

-- What an address and its domain are called in _suppression.
CREATE FUNCTION kliv_mail._suppression_keys(p_recipient text) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT ARRAY[lower(p_recipient COLLATE "C"), '@' || split_part(lower(p_recipient COLLATE "C"), '@', -1)];
END;

-- May anything stand in the way of mail to one of these?  Asked for each mail, where
-- anybody is suppressed at all, so it is to cost next to nothing; _suppressed() says what.
CREATE FUNCTION kliv_mail._any_suppressed(p_recipients text[]) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_recipient text;
BEGIN
    FOREACH v_recipient IN ARRAY p_recipients LOOP
        IF kliv_mail._any_current_row(NULL::kliv_mail._suppression, '_suppression_pkey', kliv_mail._suppression_keys(v_recipient)) THEN
            RETURN true;
        ELSIF pg_relation_size('kliv_mail._forgotten') > 0
              AND kliv_mail._any_current_row(NULL::kliv_mail._forgotten, '_forgotten_pkey', ARRAY[kliv_mail._address_hash(v_recipient)]) THEN
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END;
$$;

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

-- One message and its deliveries, in the caller's transaction.  It waits for
-- nobody, but for another call with the same idempotency_key; nothing is read by it that
-- other callers write, so that SERIALIZABLE callers do not abort one another.
CREATE FUNCTION kliv_mail._enqueue(
    p_sender name, p_subject text, p_header_id text, p_entity bytea, p_smtputf8 boolean, p_recipients text[], p_kinds text[],
    p_type text, p_priority smallint, p_template text, p_route text, p_from_address text, p_from_name text, p_reply_to text,
    p_unsubscribe boolean, p_topic text, p_send_at timestamptz, p_expires_at timestamptz, p_tags text[], p_metadata jsonb,
    p_key text, p_fingerprint bytea, p_replace_key text, p_now timestamptz,
    OUT message_id bigint, OUT is_new boolean, OUT suppressed integer, OUT replaced integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_id bigint;
    v_origin text := kliv_mail._origin();
    v_reasons text[];
    v_hints text[];
BEGIN
    IF p_replace_key IS NOT NULL THEN
        PERFORM kliv_mail._key_share(kliv_mail._key_bucket(p_sender, p_replace_key));
    END IF;
    v_id := nextval('kliv_mail._message_id');
    message_id := v_id;
    is_new := true;
    suppressed := 0;
    replaced := 0;
    IF p_key IS NOT NULL THEN
        message_id := kliv_mail._take_key(p_sender, p_key, p_fingerprint, v_id, p_now);
        IF message_id <> v_id THEN
            is_new := false;
            RETURN;
        END IF;
    END IF;
    INSERT INTO kliv_mail._message (id, created_at, sender_role, message_type, template, account, from_address, from_name,
        reply_to, subject, header_id, entity, smtputf8, unsubscribe, topic, send_at, expires_at, recipients, tags, metadata, replace_key)
    VALUES (v_id, p_now, p_sender, p_type, p_template, nullif(p_route, ''), p_from_address, p_from_name,
        p_reply_to, p_subject, p_header_id, p_entity, p_smtputf8, p_unsubscribe, p_topic, p_send_at, p_expires_at, cardinality(p_recipients),
        p_tags, p_metadata, p_replace_key);
    -- Who is suppressed already goes no further; who will be is caught by suppress()
    -- or, at the latest, by the claim.
    IF (pg_relation_size('kliv_mail._suppression') > 0 OR pg_relation_size('kliv_mail._forgotten') > 0) AND kliv_mail._any_suppressed(p_recipients) THEN
        SELECT array_agg(s.reason ORDER BY r.n), array_agg(s.hint ORDER BY r.n) INTO v_reasons, v_hints
        FROM unnest(p_recipients) WITH ORDINALITY AS r (recipient, n), kliv_mail._suppressed(r.recipient, p_priority, p_topic, p_now) AS s;
        suppressed := cardinality(array_remove(v_reasons, NULL));
    END IF;
    INSERT INTO kliv_mail._outbox (id, message_id, recipient, kind, origin, route, priority, due, created_at, expires_at, replace_key)
    SELECT nextval('kliv_mail._delivery_id'), v_id, r.recipient, r.kind, v_origin, p_route, p_priority,
           coalesce(p_send_at, p_now), p_now, p_expires_at, p_replace_key
    FROM unnest(p_recipients, p_kinds, v_reasons) AS r (recipient, kind, reason) WHERE r.reason IS NULL;
    IF suppressed > 0 THEN
        INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, created_at, expires_at,
            attempts, doubts, reason, hint, finished_at, changed)
        SELECT nextval('kliv_mail._delivery_id'), v_id, r.recipient, r.kind, p_priority, p_route, 'suppressed', p_now, p_expires_at,
               0, 0, r.reason, r.hint, p_now, kliv_mail._change()
        FROM unnest(p_recipients, p_kinds, v_reasons, v_hints) AS r (recipient, kind, reason, hint) WHERE r.reason IS NOT NULL;
    END IF;
    IF p_replace_key IS NOT NULL THEN
        replaced := kliv_mail._replace_earlier(p_sender, p_replace_key, v_id, p_now);
    END IF;
END;
$$;

-- The same for many messages to one recipient each.  (A function of its own, since
-- arrays of one would cost each send() a quarter more.)  The key is the first one's.
CREATE FUNCTION kliv_mail._enqueue_each(
    p_sender name, p_subjects text[], p_header_ids text[], p_entities bytea[], p_smtputf8 boolean[], p_recipients text[], p_kinds text[],
    p_type text, p_priority smallint, p_template text, p_route text, p_from_address text, p_from_name text, p_reply_to text,
    p_unsubscribe boolean, p_topic text, p_send_at timestamptz, p_expires_at timestamptz, p_tags text[], p_metadata jsonb,
    p_key text, p_fingerprint bytea, p_replace_key text, p_now timestamptz,
    OUT message_ids bigint[], OUT is_new boolean, OUT suppressed integer, OUT replaced integer)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_ids bigint[];
    v_first bigint;
    v_origin text := kliv_mail._origin();
    v_reasons text[];
    v_hints text[];
BEGIN
    IF p_replace_key IS NOT NULL THEN
        PERFORM kliv_mail._key_share(kliv_mail._key_bucket(p_sender, p_replace_key));
    END IF;
    v_ids := ARRAY(SELECT nextval('kliv_mail._message_id') FROM generate_series(1, cardinality(p_header_ids)));
    message_ids := v_ids;
    is_new := true;
    suppressed := 0;
    replaced := 0;
    IF p_key IS NOT NULL THEN
        v_first := kliv_mail._take_key(p_sender, p_key, p_fingerprint, v_ids[1], p_now);
        IF v_first <> v_ids[1] THEN
            message_ids := ARRAY[v_first];
            is_new := false;
            RETURN;
        END IF;
    END IF;
    INSERT INTO kliv_mail._message (id, created_at, sender_role, message_type, template, account, from_address, from_name,
        reply_to, subject, header_id, entity, smtputf8, unsubscribe, topic, send_at, expires_at, recipients, tags, metadata, replace_key)
    SELECT m.id, p_now, p_sender, p_type, p_template, nullif(p_route, ''), p_from_address, p_from_name,
        p_reply_to, m.subject, m.header_id, m.entity, m.smtputf8, p_unsubscribe, p_topic, p_send_at, p_expires_at, 1,
        p_tags, p_metadata, p_replace_key
    FROM unnest(v_ids, p_subjects, p_header_ids, p_entities, p_smtputf8) AS m (id, subject, header_id, entity, smtputf8);
    IF (pg_relation_size('kliv_mail._suppression') > 0 OR pg_relation_size('kliv_mail._forgotten') > 0) AND kliv_mail._any_suppressed(p_recipients) THEN
        SELECT array_agg(s.reason ORDER BY r.n), array_agg(s.hint ORDER BY r.n) INTO v_reasons, v_hints
        FROM unnest(p_recipients) WITH ORDINALITY AS r (recipient, n), kliv_mail._suppressed(r.recipient, p_priority, p_topic, p_now) AS s;
        suppressed := cardinality(array_remove(v_reasons, NULL));
    END IF;
    INSERT INTO kliv_mail._outbox (id, message_id, recipient, kind, origin, route, priority, due, created_at, expires_at, replace_key)
    SELECT nextval('kliv_mail._delivery_id'), r.message_id, r.recipient, r.kind, v_origin, p_route, p_priority,
           coalesce(p_send_at, p_now), p_now, p_expires_at, p_replace_key
    FROM unnest(v_ids, p_recipients, p_kinds, v_reasons) AS r (message_id, recipient, kind, reason) WHERE r.reason IS NULL;
    IF suppressed > 0 THEN
        INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, created_at, expires_at,
            attempts, doubts, reason, hint, finished_at, changed)
        SELECT nextval('kliv_mail._delivery_id'), r.message_id, r.recipient, r.kind, p_priority, p_route, 'suppressed', p_now, p_expires_at,
               0, 0, r.reason, r.hint, p_now, kliv_mail._change()
        FROM unnest(v_ids, p_recipients, p_kinds, v_reasons, v_hints) AS r (message_id, recipient, kind, reason, hint) WHERE r.reason IS NOT NULL;
    END IF;
    IF p_replace_key IS NOT NULL THEN
        replaced := kliv_mail._replace_earlier(p_sender, p_replace_key, v_ids[1], p_now);
    END IF;
END;
$$;

-- Finish the waiting deliveries to addresses (as _suppression has them) that are suppressed; a claim ends
-- those that another session has locked now.
CREATE FUNCTION kliv_mail._stop_suppressed(p_addresses text[], at timestamptz) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
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
