-- What a caller can do with a message: cancel(), retry(), wait(), raw_message(), preview().

-- May the present user see or touch a message of that sender?
CREATE FUNCTION kliv_mail._may_touch(p_role name, p_sender name) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    -- (a function's privilege: pg_read_all_data has that of each table, and manages nothing)
    SELECT has_function_privilege(p_role, 'kliv_mail.grant_admin(name)', 'EXECUTE')
        OR coalesce(pg_has_role(p_role, to_regrole(quote_ident(p_sender))::oid, 'MEMBER'), false);
END;

-- 22023 unless the message is there and the caller may touch it; the transaction
-- that queued it.
CREATE FUNCTION kliv_mail._check_may_touch(p_caller name, p_id bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_transaction bigint;
BEGIN
    SELECT m.xmin::text::bigint INTO v_transaction
    FROM kliv_mail._message AS m WHERE m.id = p_id AND kliv_mail._may_touch(p_caller, m.sender_role);
    IF NOT FOUND THEN
        RAISE invalid_parameter_value USING MESSAGE = format('message_id: there is no message %s of yours', p_id),
            HINT = 'SELECT id, subject FROM kliv_mail.messages; lists them.';
    END IF;
    RETURN v_transaction;
END;
$$;

CREATE FUNCTION kliv_mail.cancel(message_id bigint) RETURNS boolean
LANGUAGE c VOLATILE STRICT SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'kliv_mail_cancel';
COMMENT ON FUNCTION kliv_mail.cancel IS
'Stops what of the message has not left yet; true if something was stopped. A delivery that a server is being given is not. Errors: 22023 a message that is not there or not yours.
Example: SELECT kliv_mail.cancel(1);';

CREATE FUNCTION kliv_mail._cancel(p_id bigint) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off
BEGIN ATOMIC
    SELECT count(*) FROM kliv_mail._finish(NULL, ARRAY(
        SELECT kliv_mail._ended(o.id, 'cancelled',
            'it was cancelled' || CASE WHEN o.doubtful THEN ' while in doubt: a copy may have arrived' ELSE '' END, NULL)
        FROM kliv_mail._outbox AS o WHERE o.message_id = p_id), kliv_mail._now());
END;

CREATE FUNCTION kliv_mail.reschedule(message_id bigint, send_at timestamptz) RETURNS integer
LANGUAGE c VOLATILE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'kliv_mail_reschedule';
COMMENT ON FUNCTION kliv_mail.reschedule IS
'Moves what of the message waits to another time, at most ten years from now; a time that has passed is now. Returns how many deliveries it moved: one that a server is being given, has or may have (in doubt) stays. Errors: 22023 a message that is not there or not yours, no such time, or one that is not before expires_at.
Example: SELECT kliv_mail.reschedule(1, now() + interval ''1 day'');';

-- What may be in doubt stays: another time is no reason for a second copy.
CREATE FUNCTION kliv_mail._reschedule(p_id bigint, p_send_at timestamptz) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_expires_at timestamptz := (SELECT min(o.expires_at) FROM kliv_mail._outbox AS o WHERE o.message_id = p_id);
    v_count integer;
BEGIN
    IF p_send_at >= v_expires_at THEN
        RAISE invalid_parameter_value USING MESSAGE = format('send_at: %s is not before message %s expires, %s', p_send_at, p_id, v_expires_at),
            HINT = 'Send another mail, which expires later.';
    END IF;
    UPDATE kliv_mail._outbox AS o
    SET due = greatest(p_send_at, v_at), held_by = NULL, first_attempt_at = NULL
    WHERE o.message_id = p_id AND o.epoch IS NULL AND NOT o.doubtful;
    GET DIAGNOSTICS v_count = ROW_COUNT;
    IF v_count > 0 THEN
        UPDATE kliv_mail._message AS m SET send_at = p_send_at WHERE m.id = p_id;
    END IF;
    RETURN v_count;
END;
$$;

CREATE FUNCTION kliv_mail.retry(message_id bigint) RETURNS integer
LANGUAGE c VOLATILE STRICT SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'kliv_mail_retry';
COMMENT ON FUNCTION kliv_mail.retry IS
'Queues anew the deliveries of the message that failed, bounced, expired or are in doubt, and tries at once those that wait for a retry; returns how many. To an address that is suppressed, as one that bounced may be, nothing is tried again: kliv_mail.unsuppress() first. Errors: 22023 a message that is not there or not yours.
Example: SELECT kliv_mail.retry(1);';

CREATE FUNCTION kliv_mail._retry(p_id bigint) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_count integer;
    v_total integer;
BEGIN
    WITH gone AS (
        DELETE FROM kliv_mail._delivery AS d
        USING kliv_mail._message AS m
        WHERE d.message_id = p_id AND d.status IN ('failed', 'bounced', 'expired')
          AND m.id = p_id AND m.entity <> ''
          -- The claim would end it as suppressed, which nothing tries again.
          AND (SELECT s.reason FROM kliv_mail._suppressed(d.recipient, d.priority, m.topic, v_at) AS s) IS NULL
        RETURNING d.*)
    INSERT INTO kliv_mail._outbox (id, message_id, recipient, kind, origin, route, priority, due, created_at, expires_at,
        attempts, doubts, account, host, identity, last_stage, last_code, last_enhanced, last_reply, last_reason, replace_key)
    SELECT g.id, g.message_id, g.recipient, g.kind, kliv_mail._origin(), g.route, g.priority, v_at, g.created_at,
        CASE WHEN g.expires_at > v_at THEN g.expires_at END,
        g.attempts, 0, g.account, g.host, g.identity, g.last_stage, g.last_code, g.last_enhanced, g.last_reply, g.reason,
        (SELECT m.replace_key FROM kliv_mail._message AS m WHERE m.id = g.message_id)
    FROM gone AS g;
    GET DIAGNOSTICS v_total = ROW_COUNT;
    UPDATE kliv_mail._outbox AS o
    SET due = v_at, doubts = CASE WHEN o.doubtful THEN 0 ELSE o.doubts END, first_attempt_at = NULL
    -- (or queued for no time, before the clock was set back)
    WHERE o.message_id = p_id AND o.epoch IS NULL AND o.due > v_at
      AND (o.attempts > 0 OR o.held_by IN ('account', 'limit') OR o.due = o.created_at);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_total + v_count;
END;
$$;

CREATE FUNCTION kliv_mail.wait(message_id bigint, timeout interval DEFAULT '30 seconds') RETURNS text
LANGUAGE c VOLATILE STRICT SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'kliv_mail_wait';
COMMENT ON FUNCTION kliv_mail.wait IS
'Waits until the message is finished, or until nothing more can happen before the timeout, and returns its status. Call it after the commit of send(). Errors: 55000 a message of the same transaction, 22023 one that is not there or not yours, 25001 above READ COMMITTED.
Example: SELECT kliv_mail.wait(1, ''60 s'');';

-- Whether a message is finished, then its status, and else the earliest time at
-- which something can happen to it (infinity: not before a call).
CREATE FUNCTION kliv_mail._wait_state(p_id bigint, OUT status text, OUT finished boolean, OUT next_at timestamptz, OUT at timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    o record;
BEGIN
    at := kliv_mail._now();
    -- In this order: each statement has a snapshot of its own, and a status read
    -- before the row left the outbox would be given as the final one.
    finished := NOT EXISTS (SELECT FROM kliv_mail._outbox AS x WHERE x.message_id = p_id);
    IF finished THEN
        SELECT CASE WHEN min(d.status) = max(d.status) THEN min(d.status) ELSE 'partial' END INTO status
        FROM kliv_mail._delivery AS d WHERE d.message_id = p_id;
        RETURN;
    END IF;
    next_at := 'infinity';
    -- One statement, so one snapshot: the claim that takes the last of a quota
    -- must not be seen in the quota and missed in the row.
    FOR o IN SELECT x.epoch, x.origin, x.due, x.expires_at, x.priority, v.*
             FROM kliv_mail._outbox AS x,
                  kliv_mail._availability(CASE WHEN x.route = '' THEN kliv_mail._default_account() ELSE x.route END, at) AS v
             WHERE x.message_id = p_id LOOP
        IF o.epoch IS NOT NULL THEN
            next_at := at;
            RETURN;
        END IF;
        CONTINUE WHEN o.origin <> kliv_mail._origin();
        next_at := least(next_at, o.expires_at, greatest(o.due, o.blocked_until,
            CASE WHEN (CASE WHEN o.priority = 2 THEN o.remaining_marketing ELSE o.remaining END) > 0 THEN NULL
                 WHEN o.hour_limit = 0 OR o.day_limit = 0 THEN 'infinity'
                 WHEN o.day_used >= o.day_limit THEN o.day_open_at ELSE o.hour_open_at END));
    END LOOP;
    -- Recorded since the first look: look again.
    IF NOT FOUND AND NOT finished THEN
        next_at := at;
    END IF;
END;
$$;

-- Its status as the views have it.
CREATE FUNCTION kliv_mail._status_of(p_id bigint) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT s.status FROM kliv_mail._message_status AS s WHERE s.message_id = p_id);
END;
$$;

CREATE FUNCTION kliv_mail.raw_message(message_id bigint, recipient text DEFAULT NULL) RETURNS bytea
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'kliv_mail_raw_message';
COMMENT ON FUNCTION kliv_mail.raw_message IS
'The bytes of the message as they were last sent to the recipient (NULL: to the first one). Errors: 22023 a message or recipient that is not there or not yours, 55000 not sent yet.
Example: SELECT convert_from(kliv_mail.raw_message(1), ''UTF8'');';

CREATE FUNCTION kliv_mail._raw_message(p_id bigint, p_recipient text) RETURNS bytea
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    d record;
BEGIN
    SELECT x.identity INTO d
    FROM (SELECT o.id, o.recipient, o.identity FROM kliv_mail._outbox AS o WHERE o.message_id = p_id
          UNION ALL
          SELECT y.id, y.recipient, y.identity FROM kliv_mail._delivery AS y WHERE y.message_id = p_id) AS x
    WHERE p_recipient IS NULL OR x.recipient = p_recipient
    ORDER BY x.identity IS NULL, x.id LIMIT 1;
    IF NOT FOUND THEN
        RAISE invalid_parameter_value USING MESSAGE = format('recipient: message %s has no recipient "%s"', p_id, p_recipient),
            HINT = format('SELECT recipient FROM kliv_mail.deliveries WHERE message_id = %s; lists them.', p_id);
    ELSIF d.identity IS NULL THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = format('message %s has not been sent yet', p_id),
            HINT = format('SELECT status, reason, hint FROM kliv_mail.deliveries WHERE message_id = %s; says why.', p_id);
    END IF;
    RETURN convert_to(d.identity, 'UTF8') || (SELECT m.entity FROM kliv_mail._message AS m WHERE m.id = p_id);
END;
$$;

CREATE FUNCTION kliv_mail.preview(message_id bigint, recipient text DEFAULT NULL) RETURNS bytea
LANGUAGE c STABLE SET search_path = pg_catalog, pg_temp AS '$libdir/kliv_mail_net', 'kliv_mail_preview';
COMMENT ON FUNCTION kliv_mail.preview IS
$$The bytes of the message as they would go now to the recipient (NULL: to the first one), by the account that it waits for; of what has gone, the bytes as they were sent. It sends nothing and changes nothing: for tests, with kliv_mail.delivery = hold or sandbox. Errors: 22023 a message or recipient that is not there or not yours, 55000 no account to send by, or a body that is not kept any more.
Example: SELECT convert_from(kliv_mail.preview(1), 'UTF8');$$;

-- What klm_compose_identity() needs of one delivery: of the one that went, or will go, to
-- that recipient.  sent: its identity lines as they were sent; account: by which it would go.
CREATE FUNCTION kliv_mail._preview_of(p_id bigint, p_recipient text)
RETURNS TABLE (id bigint, recipient text, account text, sent text, unsubscribe_url text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY
        SELECT x.id, x.recipient, CASE WHEN x.route = '' THEN kliv_mail._default_account() ELSE x.route END, x.sent,
               (SELECT b.unsubscribe_url FROM kliv_mail._brand AS b)
        FROM (SELECT o.id, o.recipient, o.route, NULL::text AS sent FROM kliv_mail._outbox AS o WHERE o.message_id = p_id
              UNION ALL
              SELECT d.id, d.recipient, d.route, CASE WHEN d.sent_at IS NOT NULL THEN d.identity END FROM kliv_mail._delivery AS d
              WHERE d.message_id = p_id) AS x
        WHERE p_recipient IS NULL OR x.recipient = p_recipient
        ORDER BY x.id LIMIT 1;
    IF NOT FOUND THEN
        RAISE invalid_parameter_value USING COLUMN = 'recipient', MESSAGE = format('recipient: message %s has no recipient "%s"', p_id, p_recipient),
            HINT = format('SELECT recipient FROM kliv_mail.deliveries WHERE message_id = %s; lists them.', p_id);
    END IF;
END;
$$;
