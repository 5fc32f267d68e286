-- Claims whose sender is gone, rows that cannot be read, and when a sender is next needed.

-- The claims of epochs whose sender is gone, as their locks tell: a server may
-- have what was handed to a connection; the rest goes back as it was.  How many are in doubt.
CREATE FUNCTION kliv_mail._recover() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_doubts integer := CASE WHEN current_setting('kliv_mail.on_in_doubt') = 'hold' THEN 0
                             ELSE current_setting('kliv_mail.max_in_doubt_retries')::integer END;
    v_epoch bigint;
    v_begun bigint[];
    v_rest bigint[];
    v_total bigint := 0;
    v_count bigint;
    v_origin text := kliv_mail._origin();
    v_there text := (SELECT string_agg(s.origin, ', ' ORDER BY s.origin) FROM kliv_mail._state AS s WHERE s.origin <> v_origin);
BEGIN
    -- Where it came by a dump the label is not there yet, or not all of it.
    PERFORM kliv_mail._label();
    -- A copy says so, once, in the log and in events.
    IF v_there IS NOT NULL AND NOT EXISTS (SELECT FROM kliv_mail._event AS e WHERE e.kind = 'copy_held' AND e.data->>'origin' = v_origin) THEN
        PERFORM kliv_mail._log_event('copy_held', NULL, format('this database is a copy of %s and sends nothing until resume()', v_there),
                                     jsonb_build_object('origin', v_origin));
        RAISE LOG USING MESSAGE = format('kliv_mail: the database "%s" is a copy of another one, and sends nothing until it is told to', current_database()),
            HINT = 'SELECT kliv_mail.resume(); in that database releases its mail, if this copy is the one that shall send it.';
    END IF;
    FOR v_epoch IN SELECT DISTINCT b.epoch FROM kliv_mail._batch AS b ORDER BY 1 LOOP
        CONTINUE WHEN NOT kliv_mail._epoch_dead(v_epoch);
        -- Another sender may be at it: what is given back is given back once.
        PERFORM FROM kliv_mail._batch AS b WHERE b.epoch = v_epoch ORDER BY b.id FOR UPDATE;
        CONTINUE WHEN NOT FOUND;
        -- What came back and was claimed again stands in several: the last one counts.
        SELECT coalesce(array_agg(x.d) FILTER (WHERE x.begun), '{}'), coalesce(array_agg(x.d) FILTER (WHERE NOT x.begun), '{}')
        INTO v_begun, v_rest
        FROM (SELECT DISTINCT ON (d) d, b.begun FROM kliv_mail._batch AS b, unnest(b.deliveries) AS d
              WHERE b.epoch = v_epoch ORDER BY d, b.id DESC) AS x;
        PERFORM kliv_mail._refund(v_epoch, v_rest);
        UPDATE kliv_mail._outbox AS o
        SET epoch = NULL, attempts = o.attempts - 1, first_attempt_at = CASE WHEN o.attempts > 1 THEN o.first_attempt_at END
        WHERE o.id = ANY (v_rest) AND o.epoch = v_epoch;
        UPDATE kliv_mail._outbox AS o
        SET epoch = NULL, doubtful = true, doubted_at = v_at, doubted = kliv_mail._change(), doubts = o.doubts + 1,
            due = CASE WHEN o.doubts + 1 > v_doubts THEN 'infinity' ELSE v_at END,
            last_stage = NULL, last_code = NULL, last_enhanced = NULL, last_reply = NULL,
            last_reason = 'the sender ended before the outcome was recorded', last_hint = NULL
        WHERE o.id = ANY (v_begun) AND o.epoch = v_epoch;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        v_total := v_total + v_count;
        DELETE FROM kliv_mail._batch AS b WHERE b.epoch = v_epoch;
    END LOOP;
    RETURN v_total;
END;
$$;

-- Set a row aside that could not even be read; the sender goes on without it.
CREATE FUNCTION kliv_mail._set_aside(p_id bigint, p_reason text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM kliv_mail._outbox AS o, LATERAL kliv_mail._finish(o.epoch, ARRAY[kliv_mail._ended(p_id, 'failed', p_reason,
        'The queued row was changed by hand; send the mail anew.')], kliv_mail._now()) AS f
    WHERE o.id = p_id;
    RETURN FOUND;
END;
$$;

-- When a sender is next needed, by this database's clock; infinity: not before a call.
CREATE FUNCTION kliv_mail._next_due() RETURNS timestamptz
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
    SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_origin text := kliv_mail._origin();
    v_next timestamptz := 'infinity';
    v_due timestamptz[];
    v record;
    a record;
BEGIN
    -- Ours alone: nobody here can end what was brought from elsewhere.
    SELECT coalesce(min(o.expires_at), 'infinity') INTO v_next FROM kliv_mail._outbox AS o
    WHERE o.origin = v_origin AND o.expires_at IS NOT NULL;
    -- _play_reports(), but for what somebody's open transaction has locked.
    IF EXISTS (SELECT FROM kliv_mail._delivery AS d WHERE d.simulated AND d.status = 'sent') THEN
        PERFORM FROM kliv_mail._delivery AS d WHERE d.simulated AND d.status = 'sent' LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
        IF FOUND THEN
            RETURN v_at;
        END IF;
        v_next := least(v_next, v_at + interval '1 minute');
    END IF;
    FOR a IN SELECT x.name FROM kliv_mail._accounts() AS x WHERE x.in_use AND x.problem IS NULL LOOP
        -- The first in line of each priority.
        SELECT array_agg((SELECT min(d.due) FROM unnest(kliv_mail._routes(a.name)) AS r (route), LATERAL (
                    SELECT o.due FROM kliv_mail._outbox AS o
                    WHERE o.origin = v_origin AND o.route = r.route AND o.priority = p.priority AND o.epoch IS NULL
                      AND (r.route = ANY (kliv_mail._own_routes(a.name)) OR coalesce((
                            SELECT m.from_address IS NULL OR kliv_mail._may_send(a.name, m.from_address)
                            FROM kliv_mail._message AS m WHERE m.id = o.message_id), true))
                    ORDER BY o.due, o.id LIMIT 1) AS d) ORDER BY p.priority)
        INTO v_due FROM generate_series(0, 2) AS p (priority);
        CONTINUE WHEN v_due[1] IS NULL AND v_due[2] IS NULL AND v_due[3] IS NULL;
        SELECT * INTO v FROM kliv_mail._availability(a.name, v_at);
        CONTINUE WHEN v.blocked_until = 'infinity' OR v.hour_limit = 0 OR v.day_limit = 0;
        -- greatest() and least() ignore NULL: what is not there must not come first.
        v_next := least(v_next, greatest(
            least(CASE WHEN v_due[1] IS NOT NULL OR v_due[2] IS NOT NULL THEN
                      greatest(least(v_due[1], v_due[2]), CASE WHEN v.remaining = 0 THEN v.opens_at END) END,
                  CASE WHEN v_due[3] IS NOT NULL THEN
                      greatest(v_due[3], CASE WHEN v.remaining_marketing = 0 THEN v.marketing_opens_at END) END),
            v.blocked_until));
    END LOOP;
    RETURN v_next;
END;
$$;

-- What only the sender calls, by name (src/db/owner_call.h).
CREATE FUNCTION kliv_mail._next_epoch() RETURNS bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT nextval('kliv_mail._epoch'::regclass);
END;

CREATE FUNCTION kliv_mail._notify(p_payload text) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT pg_notify('kliv_mail', p_payload);
END;
