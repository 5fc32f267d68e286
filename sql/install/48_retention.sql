-- What is not kept: old history, by retention or purge(), and one person's data, by forget().

-- Old history, in small batches (p_limit NULL: all of it); the sender calls it when it has nothing to do.
CREATE FUNCTION kliv_mail._retain(p_before timestamptz, p_limit integer) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    -- From the oldest on, by the indexes on times: whoever joins whole tables reads all history for each batch.
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_hashjoin = off SET jit = off AS $$
DECLARE
    v_count bigint;
    v_total bigint := 0;
    v_messages bigint[];
BEGIN
    -- A message goes with the last of its deliveries, and its key with it: what still waits, however
    -- old, is not even looked at.
    WITH gone AS (
        DELETE FROM kliv_mail._delivery AS d
        WHERE d.id IN (SELECT x.id FROM kliv_mail._delivery AS x WHERE x.finished_at < p_before ORDER BY x.finished_at LIMIT p_limit FOR UPDATE SKIP LOCKED)
        RETURNING d.message_id)
    SELECT count(*), coalesce(array_agg(DISTINCT g.message_id), '{}') INTO v_total, v_messages FROM gone AS g;
    WITH gone AS (
        DELETE FROM kliv_mail._message AS m
        WHERE m.id = ANY (v_messages) AND NOT EXISTS (SELECT FROM kliv_mail._outbox AS o WHERE o.message_id = m.id)
          AND NOT EXISTS (SELECT FROM kliv_mail._delivery AS d WHERE d.message_id = m.id)
        RETURNING m.id)
    SELECT coalesce(array_agg(g.id), '{}') INTO v_messages FROM gone AS g;
    DELETE FROM kliv_mail._idempotency AS i WHERE i.message_id = ANY (v_messages);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_total := v_total + v_count + cardinality(v_messages);
    DELETE FROM kliv_mail._event AS e
    WHERE e.id IN (SELECT x.id FROM kliv_mail._event AS x WHERE x.at < p_before ORDER BY x.at LIMIT p_limit);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_total := v_total + v_count;
    DELETE FROM kliv_mail._report AS r
    WHERE (r.source, r.key) IN (SELECT x.source, x.key FROM kliv_mail._report AS x WHERE x.at < p_before ORDER BY x.at LIMIT p_limit);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_total := v_total + v_count;
    DELETE FROM kliv_mail._suppression AS s
    WHERE (s.address, s.scope) IN (SELECT x.address, x.scope FROM kliv_mail._suppression AS x WHERE x.expires_at < p_before LIMIT p_limit);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    v_total := v_total + v_count;
    DELETE FROM kliv_mail._ignored_report AS i WHERE i.last_at < p_before;
    DELETE FROM kliv_mail._usage AS u WHERE u.window_end < least(p_before, kliv_mail._now() - interval '8 days');
    RETURN v_total;
END;
$$;

CREATE FUNCTION kliv_mail._purge(p_caller name, p_before timestamptz) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_total bigint;
BEGIN
    IF p_before IS NULL OR p_before > kliv_mail._now() THEN
        RAISE invalid_parameter_value USING MESSAGE = format('before: %s is not in the past', coalesce(p_before::text, 'NULL')),
            HINT = 'Give a time: SELECT kliv_mail.purge(now() - interval ''7 days'');';
    END IF;
    -- At once: within one transaction each further batch would walk past all that those before it deleted.
    v_total := kliv_mail._retain(p_before, NULL);
    PERFORM kliv_mail._log_event('purged', NULL, format('history before %s', p_before), jsonb_build_object('rows', v_total), p_caller);
    RETURN v_total;
END;
$$;

CREATE FUNCTION kliv_mail.purge(before timestamptz) RETURNS bigint
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.purge IS
$$Deletes at once the history that kliv_mail.retention would delete later: mail that finished before that time, its events, reports and idempotency keys. What waits, suppressions in force and the counts of quotas stay. All of it is one transaction; nobody waits for it.
Returns how many rows were deleted. Errors: 22023 not a time in the past.
Example: SELECT kliv_mail.purge(now() - interval '90 days');$$;

-- What was sent to others as well is emptied: their deliveries stay.
CREATE FUNCTION kliv_mail._forget(p_caller name, p_address text) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := kliv_mail._now();
    v_address text := kliv_mail._one_address(p_address);
    v_messages bigint[];
    v_waiting bigint;
    v_count integer;
BEGIN
    -- What waits for it ends first; what a sender has in hand is left, and told of.
    PERFORM FROM kliv_mail._finish(NULL, ARRAY(
        SELECT kliv_mail._ended(x.id, 'cancelled', 'its recipient is forgotten', NULL)
        FROM (SELECT o.id FROM kliv_mail._outbox AS o WHERE lower(o.recipient COLLATE "C") = v_address AND o.epoch IS NULL
              FOR UPDATE SKIP LOCKED) AS x), at);
    WITH gone AS (DELETE FROM kliv_mail._delivery AS d
                  WHERE kliv_mail._goes_to(d.recipient, v_address) AND NOT EXISTS (SELECT FROM kliv_mail._outbox AS o WHERE o.message_id = d.message_id)
                  RETURNING d.message_id)
    SELECT coalesce(array_agg(DISTINCT g.message_id), '{}'), count(*) INTO v_messages, v_count FROM gone AS g;
    DELETE FROM kliv_mail._message AS m
    WHERE m.id = ANY (v_messages) AND NOT EXISTS (SELECT FROM kliv_mail._delivery AS d WHERE d.message_id = m.id);
    UPDATE kliv_mail._message AS m SET entity = '', subject = '(erased)', reply_to = NULL, tags = NULL, metadata = NULL
    WHERE m.id = ANY (v_messages);
    DELETE FROM kliv_mail._idempotency AS i WHERE i.message_id = ANY (v_messages);
    -- What others still wait for names the address, and is left for a later call.
    SELECT count(DISTINCT x.message_id) INTO v_waiting
    FROM (SELECT d.message_id FROM kliv_mail._delivery AS d WHERE kliv_mail._goes_to(d.recipient, v_address)
          UNION ALL SELECT o.message_id FROM kliv_mail._outbox AS o WHERE lower(o.recipient COLLATE "C") = v_address) AS x;
    DELETE FROM kliv_mail._report AS r WHERE lower(r.recipient COLLATE "C") = v_address;
    DELETE FROM kliv_mail._event AS e WHERE lower(e.detail COLLATE "C") = v_address;
    DELETE FROM kliv_mail._usage AS u WHERE lower(u.account COLLATE "C") = '@' || v_address;
    WITH gone AS (DELETE FROM kliv_mail._suppression AS s WHERE s.address = v_address RETURNING s.*)
    INSERT INTO kliv_mail._forgotten AS f (hash, scope, expires_at)
    SELECT kliv_mail._address_hash(g.address), g.scope, g.expires_at FROM gone AS g WHERE g.expires_at IS NULL OR g.expires_at > at
    ON CONFLICT (hash, scope) DO UPDATE SET expires_at = excluded.expires_at;
    PERFORM kliv_mail._log_event('forgotten', NULL, NULL, jsonb_build_object('deliveries', v_count), p_caller);
    IF v_waiting > 0 THEN
        RAISE NOTICE USING MESSAGE = CASE v_waiting WHEN 1 THEN 'a message that names the address is not finished, and stays until then'
                ELSE format('%s messages that name the address are not finished, and stay until then', v_waiting) END,
            HINT = 'Call kliv_mail.forget() again then.';
    END IF;
    PERFORM kliv_mail._wake();
    RETURN v_count;
END;
$$;

CREATE FUNCTION kliv_mail.forget(address text) RETURNS integer
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.forget IS
$$Erases one person's data, whatever the case in which the address was written: queued mail to it is cancelled, its deliveries, reports and events are deleted, and so are messages that went to nobody else; one that others got too stays with their deliveries, without its contents. Where the address was suppressed, a keyed hash of it stays, so that it gets no mail still; kliv_mail.unsuppress() ends that.
Returns how many deliveries were deleted; a NOTICE tells of what is not finished. What others have of it, such as backups and the server's log, is theirs to erase. Errors: 22023 not an address.
Example: SELECT kliv_mail.forget('ana@example.com');$$;
