-- pause() and resume(), which also releases the mail of a copy.

-- How many deliveries wait for an account ('' = for any).
CREATE FUNCTION kliv_mail._waiting_for(p_account text) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT count(*) FROM kliv_mail._outbox AS o
    WHERE o.epoch IS NULL AND o.origin = kliv_mail._origin()
      AND (p_account = '' OR o.route = p_account OR (o.route = '' AND p_account = kliv_mail._default_account()));
END;

CREATE FUNCTION kliv_mail._known_account(p_account text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_account IS NULL OR p_account = 'platform' THEN
        RETURN coalesce(p_account, '');
    END IF;
    RETURN kliv_mail._own_account(p_account, 'pause');
END;
$$;

CREATE FUNCTION kliv_mail._pause(p_caller name, p_account text, p_reason text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_account text := kliv_mail._known_account(p_account);
BEGIN
    IF char_length(p_reason) > 1000 THEN
        RAISE program_limit_exceeded USING MESSAGE = format('reason: %s characters, over 1000', char_length(p_reason)),
            HINT = 'It is shown wherever mail waits; say it in a sentence.';
    END IF;
    INSERT INTO kliv_mail._pause AS p (account, reason, paused_at, paused_by)
    VALUES (v_account, nullif(p_reason, ''), kliv_mail._now(), p_caller)
    ON CONFLICT (account) DO UPDATE
    SET reason = coalesce(excluded.reason, p.reason), paused_at = excluded.paused_at,
        -- whose reason it is
        paused_by = CASE WHEN excluded.reason IS NULL AND p.reason IS NOT NULL THEN p.paused_by ELSE excluded.paused_by END;
    PERFORM kliv_mail._log_event('paused', nullif(v_account, ''), nullif(p_reason, ''), NULL, p_caller);
    PERFORM kliv_mail._wake();
    RETURN kliv_mail._waiting_for(v_account);
END;
$$;

CREATE FUNCTION kliv_mail.pause(account text DEFAULT NULL, reason text DEFAULT NULL) RETURNS bigint
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.pause IS
$$Stops an account, or with NULL all mail of the database: nothing new leaves within a second of the commit, what is queued and what comes waits for resume(). reason is shown wherever the mail is.
Returns how many deliveries are held. Errors: 22023 no such account.
Example: SELECT kliv_mail.pause(reason => 'maintenance');$$;

-- Sequences behind the ids that are stored: where rows came by logical
-- replication they are not, and the next id would be one that is there.  Never
-- backwards, and not at all where nothing came from elsewhere.
CREATE FUNCTION kliv_mail._advance_sequences() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s record;
BEGIN
    FOR s IN
        SELECT x.name, greatest(x.a, x.b) AS stored, q.last_value, q.is_called
        FROM (VALUES
            ('kliv_mail._message_id'::regclass, (SELECT max(m.id) FROM kliv_mail._message AS m), (SELECT max(d.message_id) FROM kliv_mail._delivery AS d)),
            ('kliv_mail._delivery_id', (SELECT max(o.id) FROM kliv_mail._outbox AS o), (SELECT max(d.id) FROM kliv_mail._delivery AS d)),
            ('kliv_mail._event_id', (SELECT max(e.id) FROM kliv_mail._event AS e), NULL),
            ('kliv_mail._epoch', (SELECT max(b.epoch) FROM kliv_mail._batch AS b), NULL)) AS x (name, a, b)
        JOIN (SELECT 'kliv_mail._message_id'::regclass AS name, v.last_value, v.is_called FROM kliv_mail._message_id AS v
              UNION ALL SELECT 'kliv_mail._delivery_id', v.last_value, v.is_called FROM kliv_mail._delivery_id AS v
              UNION ALL SELECT 'kliv_mail._event_id', v.last_value, v.is_called FROM kliv_mail._event_id AS v
              UNION ALL SELECT 'kliv_mail._epoch', v.last_value, v.is_called FROM kliv_mail._epoch AS v) AS q USING (name)
    LOOP
        IF s.stored > s.last_value OR (s.stored = s.last_value AND NOT s.is_called) THEN
            PERFORM setval(s.name, s.stored);
        END IF;
    END LOOP;
END;
$$;

CREATE FUNCTION kliv_mail._resume(p_caller name, p_account text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_account text := kliv_mail._known_account(p_account);
    v_here text := kliv_mail._origin();
    v_there text[];
    v_era integer;
    v_released bigint := 0;
    v_still text;
BEGIN
    -- A copy: what carries the origin that it was copied from is stamped anew
    -- (other origins, brought by logical replication, stay what they are).
    IF v_account = '' THEN
        PERFORM kliv_mail._advance_sequences();
        WITH gone AS (DELETE FROM kliv_mail._state AS s WHERE s.origin <> v_here RETURNING s.origin, s.era)
        SELECT array_agg(g.origin ORDER BY g.origin), sum(g.era) INTO v_there, v_era FROM gone AS g;
        IF v_there IS NOT NULL THEN
            INSERT INTO kliv_mail._state AS s (origin, era) VALUES (v_here, v_era) ON CONFLICT (origin) DO UPDATE SET era = s.era + excluded.era;
            UPDATE kliv_mail._account SET origin = v_here, renewed_at = kliv_mail._now() WHERE origin = ANY (v_there);
            UPDATE kliv_mail._outbox SET origin = v_here WHERE origin = ANY (v_there);
            UPDATE kliv_mail._bounce_mailbox SET origin = v_here WHERE origin = ANY (v_there);
            PERFORM kliv_mail._wake_fetcher();
            v_released := kliv_mail._waiting_for('');
            PERFORM kliv_mail._log_event('copy_released', NULL, format('this copy of %s sends its own mail now', array_to_string(v_there, ', ')),
                                         jsonb_build_object('origin', to_jsonb(v_there || v_here)), p_caller);
        END IF;
    ELSE
        UPDATE kliv_mail._account SET origin = v_here, renewed_at = kliv_mail._now()
        WHERE name = v_account AND origin <> v_here;
        IF FOUND THEN
            v_released := kliv_mail._waiting_for(v_account);
            PERFORM kliv_mail._log_event('copy_released', v_account, 'the account sends from this database now', NULL, p_caller);
        END IF;
    END IF;
    UPDATE kliv_mail._reputation AS r SET stage = NULL, reason = NULL, resumed_at = kliv_mail._now()
    WHERE v_account IN ('', r.account) AND r.stage = 'paused';
    IF FOUND THEN
        v_released := kliv_mail._waiting_for(v_account);
        PERFORM kliv_mail._log_event('resumed', nullif(v_account, ''), 'marketing mail', NULL, p_caller);
    END IF;
    DELETE FROM kliv_mail._pause AS p WHERE p.account = v_account;
    IF FOUND THEN
        v_released := kliv_mail._waiting_for(v_account);
        PERFORM kliv_mail._log_event('resumed', nullif(v_account, ''), NULL, NULL, p_caller);
    END IF;
    SELECT string_agg(CASE p.account WHEN '' THEN 'all mail of this database' ELSE format('the account "%s"', p.account) END, ', ' ORDER BY p.account)
    INTO v_still FROM kliv_mail._pause AS p;
    IF v_still IS NOT NULL THEN
        RAISE NOTICE USING MESSAGE = format('still paused: %s', v_still),
            HINT = 'kliv_mail.resume(account) ends the pause of an account, kliv_mail.resume() that of the database.';
    END IF;
    PERFORM kliv_mail._wake();
    RETURN v_released;
END;
$$;

CREATE FUNCTION kliv_mail.resume(account text DEFAULT NULL) RETURNS bigint
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.resume IS
$$Ends a pause(): of an account, or with NULL that of the whole database (accounts paused by name stay so, and a NOTICE names them), and a pause of marketing mail that too many bounces or complaints have caused. In a copy of a database (dump and restore, template, pg_upgrade), which sends nothing by itself, resume() releases its mail, old and new.
Returns how many deliveries were released. Errors: 22023 no such account.
Example: SELECT kliv_mail.resume();$$;
