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

CREATE INDEX _replacement_bucket ON kliv_mail._replacement (kliv_mail._key_bucket(sender_role, replace_key), message_id);

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

-- What is not finished of a role's messages with a key that are earlier than one: what a sender has in
-- hand may come back.  Inlined; looked for by the key
-- alone, since where a vacuum found no living row an index by message costs as little and reads all that is earlier.
CREATE FUNCTION kliv_mail._earlier(p_sender name, p_key text, p_message bigint) RETURNS SETOF bigint
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT e.id FROM (SELECT o.id, o.message_id FROM kliv_mail._outbox AS o WHERE o.replace_key = p_key OFFSET 0) AS e
    WHERE e.message_id < p_message
      AND (SELECT m.sender_role FROM kliv_mail._message AS m WHERE m.id = e.message_id) = p_sender;
END;

-- Stop it, but for what somebody has locked or in hand; how many.
CREATE FUNCTION kliv_mail._replace(p_sender name, p_key text, p_message bigint, at timestamptz) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    v_earlier bigint[] := ARRAY(SELECT e FROM kliv_mail._earlier(p_sender, p_key, p_message) AS e);
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
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
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
    INSERT INTO kliv_mail._replacement (message_id, sender_role, replace_key) VALUES (p_message, p_sender, p_key);
    RETURN v_stopped;
END;
$$;

-- What callers left.  That nothing stale leaves is _replace_chosen()'s, which asks for each row that a claim has
-- chosen; this, before each claim, stops the rest, and forgets those whose earlier ones nobody can commit any
-- more and nobody has locked.  While a transaction that stays open keeps buckets, tens of thousands may wait there: of
-- these a claim looks at a hundred, each time at others.
CREATE FUNCTION kliv_mail._replace_rest(at timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
    SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_idle integer[];
    v_rows kliv_mail._replacement[];
    v_count integer;
    m record;
BEGIN
    IF NOT EXISTS (SELECT FROM kliv_mail._replacement) THEN
        RETURN;
    END IF;
    -- Before the look at what they have committed.
    v_idle := ARRAY(SELECT b.bucket FROM generate_series(0, 63) AS b (bucket) WHERE kliv_mail._key_idle(b.bucket));
    v_rows := ARRAY(
        SELECT z.x FROM (SELECT b.bucket FROM generate_series(0, 63) AS b (bucket) WHERE b.bucket <> ALL (v_idle) ORDER BY random()) AS h, LATERAL (
            SELECT e.first + floor(random() * (e.last - e.first + 1))::bigint AS start FROM (
                SELECT (SELECT x.message_id FROM kliv_mail._replacement AS x WHERE kliv_mail._key_bucket(x.sender_role, x.replace_key) = h.bucket
                        ORDER BY x.message_id LIMIT 1) AS first,
                       (SELECT x.message_id FROM kliv_mail._replacement AS x WHERE kliv_mail._key_bucket(x.sender_role, x.replace_key) = h.bucket
                        ORDER BY x.message_id DESC LIMIT 1) AS last OFFSET 0) AS e OFFSET 0) AS s, LATERAL (
            (SELECT x FROM kliv_mail._replacement AS x
             WHERE kliv_mail._key_bucket(x.sender_role, x.replace_key) = h.bucket AND x.message_id >= s.start ORDER BY x.message_id LIMIT 100)
            UNION ALL
            (SELECT x FROM kliv_mail._replacement AS x
             WHERE kliv_mail._key_bucket(x.sender_role, x.replace_key) = h.bucket AND x.message_id < s.start ORDER BY x.message_id LIMIT 100)) AS z
        LIMIT 100);
    FOR i IN 0 .. 50 LOOP
        FOR m IN SELECT x.* FROM unnest(v_rows) AS x
                 WHERE EXISTS (SELECT FROM kliv_mail._earlier(x.sender_role, x.replace_key, x.message_id) OFFSET 0) LOOP
            PERFORM kliv_mail._replace(m.sender_role, m.replace_key, m.message_id, at);
        END LOOP;
        IF i > 0 THEN
            DELETE FROM kliv_mail._replacement AS r WHERE r.ctid = ANY (ARRAY(
                SELECT y.ctid
                FROM unnest(v_rows) AS x, LATERAL (
                    SELECT z.ctid FROM kliv_mail._replacement AS z
                    WHERE z.replace_key = x.replace_key AND z.sender_role = x.sender_role AND z.message_id = x.message_id
                    FOR UPDATE SKIP LOCKED) AS y
                WHERE NOT EXISTS (SELECT FROM kliv_mail._earlier(x.sender_role, x.replace_key, x.message_id) OFFSET 0)));
            GET DIAGNOSTICS v_count = ROW_COUNT;
            -- (The rest is locked, or in a sender's hands.)
            EXIT WHEN v_count < 50;
        END IF;
        v_rows := ARRAY(SELECT x FROM kliv_mail._replacement AS x WHERE kliv_mail._key_bucket(x.sender_role, x.replace_key) = ANY (v_idle) LIMIT 100);
        EXIT WHEN v_rows = '{}';
    END LOOP;
END;
$$;

-- Of what a claim has chosen and locked, stop what a message that is committed by now replaces.  Did it?
CREATE FUNCTION kliv_mail._replace_chosen(p_ids bigint[], at timestamptz) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
    SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    m record;
    v_stopped integer := 0;
BEGIN
    FOR m IN SELECT y.sender_role, c.replace_key, n.message_id
             FROM unnest(p_ids) AS i (id),
                  LATERAL (SELECT o.message_id, o.replace_key FROM kliv_mail._outbox AS o WHERE o.id = i.id OFFSET 0) AS c,
                  LATERAL (SELECT z.sender_role FROM kliv_mail._message AS z WHERE z.id = c.message_id OFFSET 0) AS y,
                  LATERAL (SELECT x.message_id FROM kliv_mail._replacement AS x
                           WHERE x.replace_key = c.replace_key AND x.sender_role = y.sender_role AND x.message_id > c.message_id
                           ORDER BY x.message_id DESC LIMIT 1) AS n LOOP
        v_stopped := v_stopped + kliv_mail._replace(m.sender_role, m.replace_key, m.message_id, at);
    END LOOP;
    RETURN v_stopped > 0;
END;
$$;
