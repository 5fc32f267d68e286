-- What a report changes, whichever way it came: status by rank, suppressions, counts.

-- A report that changes nothing.
CREATE FUNCTION kliv_mail._ignore_report(p_source text, p_reason text) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    INSERT INTO kliv_mail._ignored_report AS i (source, reason, day, count, last_at)
    SELECT p_source, p_reason, (n.at AT TIME ZONE 'UTC')::date, 1, n.at FROM (SELECT kliv_mail._now() AS at) AS n
    ON CONFLICT (source, reason, day) DO UPDATE SET count = i.count + 1, last_at = excluded.last_at;
END;

CREATE FUNCTION kliv_mail._filters_by_recipient(address text) RETURNS boolean
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS '$libdir/kliv_mail_net', 'kliv_mail__filters_by_recipient';
COMMENT ON FUNCTION kliv_mail._filters_by_recipient(text) IS
    'Is the address at a carrier whose subscribers'' filters answer as if there were no such mailbox?';

-- Suppress an address, unless it is so already, for as long or longer.  What waits for it is stopped
-- by the claim: a look through a long outbox for each report would cost more than the mail.
CREATE FUNCTION kliv_mail._suppress_for(p_address text, p_scope text, p_reason text, p_expires_at timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_address text := lower(p_address COLLATE "C");
BEGIN
    -- With redirect_to a server speaks of another address than the recipient's.
    IF kliv_mail._setting('kliv_mail.redirect_to') = '' AND kliv_mail.is_address(p_address)
       AND NOT EXISTS (SELECT FROM kliv_mail._suppression AS s
                       WHERE s.address = v_address AND (s.scope IN ('all', p_scope) OR s.scope = 'marketing' AND p_scope <> 'all')
                         AND coalesce(s.expires_at, 'infinity') >= coalesce(p_expires_at, 'infinity')) THEN
        PERFORM kliv_mail._add_suppressions(current_user, ARRAY[v_address], p_scope, p_reason, p_expires_at);
    END IF;
END;
$$;

-- After a hard bounce: once kliv_mail.hard_bounces of them were counted, in a row of _suppression
-- that has expired until then.  Where a filter may have said "unknown", the first time is for 30 days only.
CREATE FUNCTION kliv_mail._suppress_bounced(p_address text, p_reason text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := kliv_mail._now();
    v_address text := lower(p_address COLLATE "C");
    v_enough integer := current_setting('kliv_mail.hard_bounces')::integer;
    v_bounces integer;
BEGIN
    IF kliv_mail._setting('kliv_mail.redirect_to') <> '' OR NOT kliv_mail.is_address(p_address) THEN
        RETURN;
    END IF;
    -- What is in force says no more about the times before.
    INSERT INTO kliv_mail._suppression AS s (address, scope, reason, created_at, created_by, expires_at, bounces)
    VALUES (v_address, 'all', left('hard bounce: ' || p_reason, 1000), at, current_user, at, 1)
    ON CONFLICT (address, scope) DO UPDATE SET bounces = s.bounces + 1 WHERE s.expires_at <= at
    RETURNING s.bounces INTO v_bounces;
    IF v_bounces >= v_enough THEN
        PERFORM kliv_mail._add_suppressions(current_user, ARRAY[v_address], 'all', left('hard bounce: ' || p_reason, 1000),
            CASE WHEN v_bounces = v_enough AND kliv_mail._filters_by_recipient(p_address) THEN at + interval '30 days' END);
    END IF;
END;
$$;

-- The deliveries of the mail that has a Message-ID.  In steps, each by its index: of a join the planner, whose
-- statistics are of whatever moment, makes a walk through all that was ever sent.
CREATE FUNCTION kliv_mail._deliveries_of(p_header_id text) RETURNS TABLE (id bigint, recipient text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_message bigint;
BEGIN
    FOR v_message IN SELECT m.id FROM kliv_mail._message AS m WHERE m.header_id = p_header_id LOOP
        RETURN QUERY SELECT d.id, d.recipient FROM kliv_mail._every_delivery AS d WHERE d.message_id = v_message;
    END LOOP;
END;
$$;

-- The delivery that a report is about; NULL: none of ours.  Each way asks for the recipient, too.
-- p_id is what a provider repeats of what we gave it, where it tells us no better.
CREATE FUNCTION kliv_mail._find_delivery(p_header_id text, p_server_id text, p_id bigint, p_recipient text) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_recipient text := lower(p_recipient COLLATE "C");
    v_found bigint := (SELECT min(d.id) FROM kliv_mail._deliveries_of(p_header_id) AS d WHERE kliv_mail._goes_to(d.recipient, v_recipient));
BEGIN
    IF v_found IS NULL AND p_server_id IS NOT NULL THEN
        SELECT d.id INTO v_found FROM kliv_mail._delivery AS d
        WHERE kliv_mail._goes_to(d.recipient, v_recipient) AND d.server_message_id = p_server_id ORDER BY d.id DESC LIMIT 1;
    END IF;
    IF v_found IS NULL AND p_id IS NOT NULL THEN
        SELECT d.id INTO v_found FROM kliv_mail._delivery AS d
        WHERE d.id = p_id AND kliv_mail._goes_to(d.recipient, v_recipient) AND (p_server_id IS NULL OR d.server_message_id IS NULL);
    END IF;
    RETURN v_found;
END;
$$;

-- The delivery, finished and locked; NULL: it waits for another attempt, or is gone.  One
-- that is in doubt was accepted, as we know now; for one that a sender has in hand its record
-- is waited for (p_patience times a twentieth of a second), since a provider may be faster than our commit.
CREATE FUNCTION kliv_mail._finished_delivery(p_id bigint, p_patience integer) RETURNS kliv_mail._delivery
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    d kliv_mail._delivery;
    o record;
BEGIN
    FOR i IN 1 .. p_patience LOOP
        SELECT * INTO d FROM kliv_mail._delivery AS x WHERE x.id = p_id FOR NO KEY UPDATE;
        IF d.id IS NOT NULL THEN
            RETURN d;
        END IF;
        SELECT x.epoch, x.doubtful INTO o FROM kliv_mail._outbox AS x WHERE x.id = p_id;
        IF NOT FOUND THEN
            -- Gone since the look before.
            SELECT * INTO d FROM kliv_mail._delivery AS x WHERE x.id = p_id FOR NO KEY UPDATE;
            RETURN d;
        ELSIF o.epoch IS NULL AND o.doubtful THEN
            PERFORM FROM kliv_mail._outbox AS x WHERE x.id = p_id AND x.epoch IS NULL AND x.doubtful FOR UPDATE SKIP LOCKED;
            IF FOUND THEN
                PERFORM FROM kliv_mail._finish(NULL, ARRAY[kliv_mail._ended(p_id, 'accepted', NULL, NULL)], kliv_mail._now());
                CONTINUE;
            END IF;
        ELSIF o.epoch IS NULL THEN
            RETURN NULL;
        END IF;
        -- A snapshot that stays would never see the record.
        EXIT WHEN current_setting('transaction_isolation') <> 'read committed';
        PERFORM pg_sleep(0.05);
    END LOOP;
    RAISE object_not_in_prerequisite_state USING MESSAGE = 'the report is about a delivery whose outcome is not recorded yet',
        HINT = 'Hand it in again later, as providers do by themselves after an error.';
END;
$$;

-- One report, once; true if the delivery's status changed.  p_sure: not only the Message-ID speaks for it, which
-- each recipient of the message knows.
CREATE FUNCTION kliv_mail._apply_report(p_source text, p_key text, p_delivery bigint, p_recipient text, p_kind text, p_bounce_type text,
    p_code integer, p_status text, p_diagnostic text, p_reason text, p_hint text, p_sure boolean, p_raw bytea,
    p_patience integer DEFAULT 60)
RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_ranks CONSTANT text[] := '{sent,delivered,bounced,complained}';
    v_most CONSTANT integer := 50;
    v record;
    d kliv_mail._delivery;
    v_changed boolean;
BEGIN
    SELECT x.id, x.message_id, x.account, x.recipient INTO v FROM kliv_mail._every_delivery AS x WHERE x.id = p_delivery;
    -- Who has one mail of ours can report on it for ever.
    IF p_source = 'bounce' AND v.id IS NOT NULL
       AND (SELECT count(*) FROM kliv_mail._report AS r WHERE r.source = 'bounce' AND r.delivery_id = v.id) >= v_most
       AND NOT EXISTS (SELECT FROM kliv_mail._delivery AS x WHERE x.id = v.id AND array_position(v_ranks, p_kind) > array_position(v_ranks, x.status)) THEN
        PERFORM kliv_mail._ignore_report(p_source, 'one of too many about a mail');
        RETURN false;
    END IF;
    INSERT INTO kliv_mail._report AS r (source, key, at, kind, message_id, delivery_id, account, recipient, bounce_type, detail, raw)
    VALUES (p_source, left(p_key, 300), kliv_mail._now(), p_kind, v.message_id, v.id, v.account, coalesce(v.recipient, left(p_recipient, 320)),
        p_bounce_type, coalesce(p_diagnostic, p_reason), substr(p_raw, 1, 16384))
    ON CONFLICT (source, key) DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    ELSIF v.id IS NULL THEN
        IF p_kind <> 'confirmation' THEN
            PERFORM kliv_mail._ignore_report(p_source, 'about no mail of this database');
        END IF;
        RETURN false;
    ELSIF p_kind IN ('deferred', 'sent') THEN
        RETURN false;           -- nothing that we do not know
    END IF;
    d := kliv_mail._finished_delivery(p_delivery, p_patience);

    -- The higher rank stays, in whatever order they come; what never reached a server has none.
    v_changed := coalesce(array_position(v_ranks, p_kind) > array_position(v_ranks, d.status), false)
        OR (p_kind = 'bounced' AND d.status = 'bounced' AND p_bounce_type = 'hard' AND d.bounce_type IS DISTINCT FROM 'hard');
    IF v_changed THEN
        UPDATE kliv_mail._delivery AS x
        SET status = p_kind, bounce_type = CASE WHEN p_kind = 'bounced' THEN p_bounce_type END, reason = p_reason, hint = p_hint,
            last_stage = CASE WHEN p_diagnostic IS NULL THEN x.last_stage ELSE 'report' END,
            last_code = CASE WHEN p_diagnostic IS NULL THEN x.last_code ELSE p_code END,
            last_enhanced = CASE WHEN p_diagnostic IS NULL THEN x.last_enhanced ELSE p_status END,
            last_reply = coalesce(p_diagnostic, x.last_reply), reported_at = kliv_mail._now(), changed = kliv_mail._change()
        WHERE x.id = d.id;
    END IF;
    IF v_changed AND d.account IS NOT NULL AND (p_kind = 'complained' OR p_kind = 'bounced' AND p_bounce_type = 'hard') THEN
        PERFORM kliv_mail._judge_reputation(d.account, kliv_mail._now());
    END IF;
    -- A complaint is about marketing, a hard bounce about the address.
    IF p_sure AND d.status = ANY (v_ranks) THEN
        IF p_kind = 'bounced' AND p_bounce_type = 'hard' AND v_changed THEN
            PERFORM kliv_mail._suppress_bounced(d.recipient, p_reason);
        ELSIF p_kind = 'complained' THEN
            PERFORM kliv_mail._suppress_for(d.recipient, 'marketing', 'complaint', NULL);
        ELSIF p_kind = 'unsubscribed' THEN
            PERFORM kliv_mail._suppress_for(d.recipient, coalesce((SELECT m.topic FROM kliv_mail._message AS m WHERE m.id = d.message_id), 'marketing'),
                'unsubscribed at ' || p_source, NULL);
        END IF;
    END IF;
    RETURN v_changed;
END;
$$;
