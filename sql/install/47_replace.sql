-- replace_key: a role's newest message with a key is the only one of them that waits.
--
-- The newest has the highest id, whoever commits first.  No caller waits for another,
-- and none has a lock a key, of which a server has room for some thousands: keys fall into
-- buckets, and all who send with a key of one share its lock until their
-- transactions end.  Where nobody else has it, all earlier messages are there to be seen.

CREATE FUNCTION kliv_mail._key_bucket(p_sender name, p_key text) RETURNS integer
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT hashtext((p_sender || ' ' || p_key) COLLATE "C") & 63;
END;

-- Before the message has its id (src/functions/epoch.c).
CREATE FUNCTION kliv_mail._key_share(bucket integer) RETURNS void
    AS 'MODULE_PATHNAME', 'kliv_mail__key_share' LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp;
CREATE FUNCTION kliv_mail._key_idle(bucket integer) RETURNS boolean
    AS 'MODULE_PATHNAME', 'kliv_mail__key_idle' LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION kliv_mail._share_replace_key(p_sender name, p_key text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM kliv_mail._key_share(kliv_mail._key_bucket(p_sender, p_key));
END;
$$;

-- What still waits of a role's messages with a key that are earlier than one.
CREATE FUNCTION kliv_mail._earlier(p_sender name, p_key text, p_message bigint) RETURNS SETOF bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
BEGIN
    RETURN QUERY SELECT o.id FROM kliv_mail._outbox AS o
    WHERE o.replace_key = p_key AND o.message_id < p_message AND o.epoch IS NULL
      AND (SELECT m.sender_role FROM kliv_mail._message AS m WHERE m.id = o.message_id) = p_sender;
END;
$$;

-- Stop it, but for what somebody has locked; how many.
CREATE FUNCTION kliv_mail._replace(p_sender name, p_key text, p_message bigint, at timestamptz) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_earlier bigint[] := ARRAY(SELECT kliv_mail._earlier(p_sender, p_key, p_message));
    v_ids bigint[];
BEGIN
    IF v_earlier = '{}' THEN
        RETURN 0;
    END IF;
    v_ids := ARRAY(SELECT o.id FROM kliv_mail._outbox AS o WHERE o.id = ANY (v_earlier) AND o.epoch IS NULL FOR UPDATE SKIP LOCKED);
    IF v_ids <> '{}' THEN
        PERFORM FROM kliv_mail._finish(NULL, ARRAY(
            SELECT kliv_mail._ended(o.id, 'cancelled', format('replaced by message %s', p_message)
                || CASE WHEN o.doubtful THEN ' while in doubt: a copy may have arrived' ELSE '' END, NULL)
            FROM kliv_mail._outbox AS o WHERE o.id = ANY (v_ids)), at);
    END IF;
    RETURN cardinality(v_ids);
END;
$$;

-- The same for a caller, who leaves to the sender what is locked, by a claim for example, what
-- somebody else may still commit, and, above READ COMMITTED, what is newer than the
-- snapshot.  How many were stopped.
CREATE FUNCTION kliv_mail._replace_earlier(p_sender name, p_key text, p_message bigint, at timestamptz) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_idle boolean;
    v_stopped integer := 0;
BEGIN
    IF current_setting('transaction_isolation') = 'read committed' THEN
        v_idle := kliv_mail._key_idle(kliv_mail._key_bucket(p_sender, p_key));
        v_stopped := kliv_mail._replace(p_sender, p_key, p_message, at);
        IF v_idle AND NOT EXISTS (SELECT FROM kliv_mail._earlier(p_sender, p_key, p_message)) THEN
            RETURN v_stopped;
        END IF;
    END IF;
    INSERT INTO kliv_mail._replacement (message_id) VALUES (p_message);
    RETURN v_stopped;
END;
$$;

-- What callers left: a sender does it before each claim, and again behind the choice of rows
-- that have a key, until nobody can commit an earlier one any more and nothing is locked.
CREATE FUNCTION kliv_mail._replace_rest(at timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_idle integer[];
    m record;
BEGIN
    IF NOT EXISTS (SELECT FROM kliv_mail._replacement) THEN
        RETURN;
    END IF;
    -- Before the look at what they have committed.
    v_idle := ARRAY(SELECT b.bucket FROM generate_series(0, 63) AS b (bucket) WHERE kliv_mail._key_idle(b.bucket));
    FOR m IN SELECT x.message_id, y.sender_role, y.replace_key
             FROM kliv_mail._replacement AS x JOIN kliv_mail._message AS y ON y.id = x.message_id
             WHERE EXISTS (SELECT FROM kliv_mail._outbox AS o WHERE o.replace_key = y.replace_key AND o.message_id < x.message_id AND o.epoch IS NULL
                             AND (SELECT z.sender_role FROM kliv_mail._message AS z WHERE z.id = o.message_id) = y.sender_role) LOOP
        PERFORM kliv_mail._replace(m.sender_role, m.replace_key, m.message_id, at);
    END LOOP;
    DELETE FROM kliv_mail._replacement AS r
    WHERE r.message_id IN (
        SELECT x.message_id
        FROM kliv_mail._replacement AS x LEFT JOIN kliv_mail._message AS y ON y.id = x.message_id
        WHERE y.id IS NULL
           OR kliv_mail._key_bucket(y.sender_role, y.replace_key) = ANY (v_idle)
              AND NOT EXISTS (SELECT FROM kliv_mail._earlier(y.sender_role, y.replace_key, x.message_id))
        FOR UPDATE OF x SKIP LOCKED);
END;
$$;
