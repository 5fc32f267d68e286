-- What a clock that was wrong leaves behind.

-- Mail that was queued by a clock that was ahead, to leave at once, waits for
-- that time to come again once the clock is right: it is due now.  Whether there
-- is any the newest row tells.  How many were mended.  (Not what is more than a
-- year ahead: there tests of claims play, out of the sender's sight.)
CREATE FUNCTION kliv_mail._mend_clock(at timestamptz) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    v_count bigint := 0;
BEGIN
    IF (SELECT o.created_at FROM kliv_mail._outbox AS o ORDER BY o.id DESC LIMIT 1) BETWEEN at + interval '1 minute' AND at + interval '1 year' THEN
        UPDATE kliv_mail._outbox AS o
        SET due = at, created_at = at
        WHERE o.created_at > at AND o.created_at < at + interval '1 year' AND o.due > at AND o.due < 'infinity' AND o.epoch IS NULL
          AND NOT EXISTS (SELECT FROM kliv_mail._message AS m WHERE m.id = o.message_id AND m.send_at IS NOT NULL);
        GET DIAGNOSTICS v_count = ROW_COUNT;
        IF v_count > 0 THEN
            PERFORM kliv_mail._log_event('clock_mended', NULL, format('%s deliveries were queued by a clock that was ahead, and are due now', v_count), NULL);
        END IF;
    END IF;
    -- Holds that _availability() no longer heeds.
    IF EXISTS (SELECT FROM kliv_mail._quota AS q WHERE (q.held_until > at + kliv_mail._longest_hold() OR q.held_since > at + interval '1 minute')
                 AND q.held_until < at + interval '1 year') THEN
        UPDATE kliv_mail._quota AS q
        SET held_until = NULL, held_by = NULL, held_reason = NULL, held_hint = NULL, held_since = NULL, failures = 0, fingerprint = NULL
        WHERE (q.held_until > at + kliv_mail._longest_hold() OR q.held_since > at + interval '1 minute') AND q.held_until < at + interval '1 year';
    END IF;
    RETURN v_count;
END;
$$;
