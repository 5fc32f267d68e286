-- replace_key: a role's newest message with a key is the only one of them that waits.

-- Callers with one key come one after the other, so that the id says which is newer.
CREATE FUNCTION kliv_mail._lock_replace_key(p_sender name, p_key text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock('kliv_mail._replacement'::regclass::oid::integer, hashtext(p_sender || ' ' || p_key));
END;
$$;

-- Stop what still waits of earlier messages, and is not locked; all_seen: nothing was.
CREATE FUNCTION kliv_mail._replace(p_sender name, p_key text, p_message bigint, at timestamptz, OUT stopped integer, OUT all_seen boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    v_ids bigint[] := ARRAY(
        SELECT o.id FROM kliv_mail._outbox AS o
        WHERE o.replace_key = p_key AND o.message_id < p_message AND o.epoch IS NULL
          AND (SELECT m.sender_role FROM kliv_mail._message AS m WHERE m.id = o.message_id) = p_sender
        FOR UPDATE OF o SKIP LOCKED);
BEGIN
    IF v_ids <> '{}' THEN
        PERFORM FROM kliv_mail._finish(NULL, ARRAY(
            SELECT kliv_mail._ended(o.id, 'cancelled', format('replaced by message %s', p_message)
                || CASE WHEN o.doubtful THEN ' while in doubt: a copy may have arrived' ELSE '' END, NULL)
            FROM kliv_mail._outbox AS o WHERE o.id = ANY (v_ids)), at);
    END IF;
    stopped := cardinality(v_ids);
    all_seen := NOT EXISTS (
        SELECT FROM kliv_mail._outbox AS o
        WHERE o.replace_key = p_key AND o.message_id < p_message AND o.epoch IS NULL
          AND (SELECT m.sender_role FROM kliv_mail._message AS m WHERE m.id = o.message_id) = p_sender);
END;
$$;

-- The same for a caller, who leaves to the sender what is locked, by a claim for
-- example, or, above READ COMMITTED, may be newer than the snapshot.  How many were stopped.
CREATE FUNCTION kliv_mail._replace_earlier(p_sender name, p_key text, p_message bigint, at timestamptz) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r record;
BEGIN
    IF current_setting('transaction_isolation') = 'read committed' THEN
        SELECT * INTO r FROM kliv_mail._replace(p_sender, p_key, p_message, at) AS x;
        IF r.all_seen THEN
            RETURN r.stopped;
        END IF;
    ELSE
        SELECT 0 AS stopped INTO r;
    END IF;
    INSERT INTO kliv_mail._replacement (message_id) VALUES (p_message);
    RETURN r.stopped;
END;
$$;

-- What callers left: a sender does it before each claim, and again what is locked now.
CREATE FUNCTION kliv_mail._replace_rest(at timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m record;
BEGIN
    FOR m IN SELECT x.message_id, y.sender_role, y.replace_key
             FROM kliv_mail._replacement AS x LEFT JOIN kliv_mail._message AS y ON y.id = x.message_id FOR UPDATE OF x SKIP LOCKED LOOP
        CONTINUE WHEN NOT (SELECT r.all_seen FROM kliv_mail._replace(m.sender_role, m.replace_key, m.message_id, at) AS r);
        DELETE FROM kliv_mail._replacement AS x WHERE x.message_id = m.message_id;
    END LOOP;
END;
$$;
