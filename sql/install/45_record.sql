-- What became of deliveries: the one way out of the outbox, and what the sender reports.

-- Deliveries that end: out of the outbox, into the history; what became of them.  p_epoch: who has claimed
-- them; NULL: nobody.  Where an outcome says nothing of a server, what a server said last stays.
CREATE FUNCTION kliv_mail._finish(p_epoch bigint, p_outcomes kliv_mail._outcome[], at timestamptz, p_change bigint DEFAULT kliv_mail._change())
RETURNS TABLE (message_id bigint, status text)
LANGUAGE c VOLATILE ROWS 100 AS 'MODULE_PATHNAME', 'kliv_mail__finish';

-- The outcome of one that no server ended.
CREATE FUNCTION kliv_mail._ended(id bigint, status text, reason text, hint text) RETURNS kliv_mail._outcome
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT ROW(id, NULL, status, NULL, NULL, NULL, NULL, NULL, NULL, NULL, reason, hint, NULL, NULL, NULL, NULL)::kliv_mail._outcome;
END;

-- Give back to the windows they were taken from what the server surely did not accept.
-- So the share of a recipient's hour, whose rows other accounts' claims take in the same order.
CREATE FUNCTION kliv_mail._refund(p_epoch bigint, p_ids bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_accounts text[];
    v_names text[];
    v_starts timestamptz[];
    v_generations integer[];
    v_counts bigint[];
    v_marketing bigint[];
BEGIN
    IF p_ids = '{}' THEN
        RETURN;
    END IF;
    SELECT array_agg(x.account), array_agg(x.window_name), array_agg(x.window_start), array_agg(x.generation), array_agg(x.n), array_agg(x.marketing)
    INTO v_accounts, v_names, v_starts, v_generations, v_counts, v_marketing
    FROM (SELECT g.*, u.generation
          FROM (SELECT w.account, w.window_name, w.window_start, count(*) AS n, count(*) FILTER (WHERE x.priority = 2) AS marketing
                FROM kliv_mail._outbox AS x,
                     LATERAL (VALUES (x.account, 'hour', x.hour_start), (x.account, 'day', x.day_start), ('@' || x.recipient, 'hour', x.hour_start))
                         AS w (account, window_name, window_start)
                WHERE x.id = ANY (p_ids) AND x.epoch = p_epoch
                GROUP BY 1, 2, 3 ORDER BY w.account COLLATE "C", 2, 3) AS g,
               LATERAL (SELECT u.generation FROM kliv_mail._usage AS u
                        WHERE u.account = g.account AND u.window_name = g.window_name AND u.window_start = g.window_start
                        ORDER BY u.generation DESC LIMIT 1 FOR NO KEY UPDATE) AS u) AS x;
    -- A snapshot of its own, which sees the generations that were locked.
    UPDATE kliv_mail._usage AS u
    SET used = greatest(0, u.used - t.n), used_marketing = greatest(0, u.used_marketing - t.marketing)
    FROM unnest(v_accounts, v_names, v_starts, v_generations, v_counts, v_marketing)
        AS t (account, window_name, window_start, generation, n, marketing)
    WHERE u.account = t.account AND u.window_name = t.window_name AND u.window_start = t.window_start AND u.generation = t.generation;
END;
$$;

-- Record outcomes, all in one go; what became of each.  verdict is one of classify_reply()'s,
-- without a delivery also 'key', or 'connections': its server takes no more than code at once; or
-- 'returned': nothing that counts reached a server, the row goes back as it was,
-- 'postponed': the same, and it waits a minute for the key, or 'suppressed':
-- the claim met an address that gets no mail.
-- Rows that are no longer claimed by this epoch are left alone.
CREATE FUNCTION kliv_mail._record(p_epoch bigint, p_outcomes kliv_mail._outcome[]) RETURNS TABLE (message_id bigint, status text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_retry_for interval;
    v_doubts integer;
    v_refused kliv_mail._outcome[] := ARRAY(SELECT x FROM unnest(p_outcomes) AS x WHERE x.verdict <> 'accepted');
    v_own bigint[] := '{}';
    v_waits bigint[] := '{}';
    v_until timestamptz[] := '{}';
    a record;
    j record;
BEGIN
    IF cardinality(v_refused) = 0 AND NOT EXISTS (SELECT FROM kliv_mail._quota AS q WHERE q.held_until IS NOT NULL OR q.suspects <> '{}' OR q.told IS NOT NULL) THEN
        RETURN QUERY SELECT * FROM kliv_mail._finish(p_epoch, p_outcomes, v_at);
        RETURN;
    END IF;
    v_retry_for := make_interval(secs => extract(epoch FROM current_setting('kliv_mail.retry_for')::interval));
    v_doubts := CASE WHEN current_setting('kliv_mail.on_in_doubt') = 'hold' THEN 0
                     ELSE current_setting('kliv_mail.max_in_doubt_retries')::integer END;

    -- All locks of accounts first, in their order.
    INSERT INTO kliv_mail._quota (account)
    SELECT DISTINCT x.account FROM unnest(v_refused) AS x WHERE x.scope = 'account' AND x.account IS NOT NULL ORDER BY 1
    ON CONFLICT DO NOTHING;
    PERFORM FROM kliv_mail._quota AS q WHERE q.account IN (SELECT x.account FROM unnest(p_outcomes) AS x) ORDER BY q.account FOR NO KEY UPDATE;

    -- The connection, the greeting or the login failed: the account is in trouble.
    FOR a IN SELECT x AS outcome, x.verdict, x.account, x.code FROM unnest(v_refused) AS x WHERE x.id IS NULL ORDER BY x.account LOOP
        IF a.verdict = 'connections' THEN
            UPDATE kliv_mail._quota AS q SET connections = a.code, connections_until = v_at + interval '10 minutes' WHERE q.account = a.account;
            CONTINUE;
        END IF;
        PERFORM kliv_mail._hold_account(a.outcome, CASE a.verdict WHEN 'provider_limit' THEN 'quota' WHEN 'key' THEN 'key' ELSE 'account' END,
                                        a.verdict <> 'provider_limit');
    END LOOP;

    -- Refusals that speak of the account, and mail that went through.
    FOR a IN SELECT q.account FROM kliv_mail._quota AS q
             WHERE q.account IN (SELECT x.account FROM unnest(p_outcomes) AS x WHERE x.id IS NOT NULL AND (x.verdict = 'accepted' OR x.scope = 'account'))
               AND (q.held_until IS NOT NULL OR q.suspects <> '{}' OR q.told IS NOT NULL
                    OR q.account IN (SELECT x.account FROM unnest(v_refused) AS x WHERE x.scope = 'account'))
             ORDER BY q.account LOOP
        SELECT * INTO j FROM kliv_mail._judge(p_epoch, a.account, p_outcomes, v_at);
        v_own := v_own || j.own;
        v_waits := v_waits || j.waits;
        v_until := v_until || array_fill(j.until, ARRAY[cardinality(j.waits)]);
        PERFORM kliv_mail._release_suspects(j.released, j.print, v_at);
        IF cardinality(j.waits) > 1 AND EXISTS (SELECT FROM unnest(v_refused) AS x WHERE x.account = a.account AND x.verdict = 'temporary') THEN
            RETURN QUERY SELECT * FROM kliv_mail._finish(NULL, kliv_mail._tried_enough(a.account, v_at, v_retry_for), v_at);
        END IF;
        -- Those of this batch, which are still claimed.
        UPDATE kliv_mail._outbox AS o SET refused = kliv_mail._refusal(x.stage, x.code, x.enhanced, j.print)
        FROM unnest(v_refused) AS x WHERE x.id = ANY (j.released) AND o.id = x.id AND o.epoch = p_epoch;
    END LOOP;
    IF v_own <> '{}' THEN
        v_refused := ARRAY(SELECT CASE WHEN x.id = ANY (v_own) THEN ROW(x.id, x.account,
                CASE WHEN x.code < 500 OR x.verdict NOT IN ('account_trouble', 'permanent') THEN 'temporary'
                     WHEN x.stage = 'rcpt' THEN 'permanent' ELSE 'message_fault' END,
                CASE WHEN x.stage = 'rcpt' THEN 'recipient' ELSE 'message' END,
                CASE WHEN x.code >= 500 AND x.stage = 'rcpt' THEN coalesce(x.bounce_type, 'soft') ELSE x.bounce_type END,
                x.pause, x.stage, x.code, x.enhanced, x.reply, x.reason || ', while other mail of the account went through', x.hint,
                x.server_id, x.identity, x.fingerprint, x.simulated)::kliv_mail._outcome ELSE x END
            FROM unnest(v_refused) AS x);
    END IF;

    -- The quota, for all but what a server may have.
    PERFORM kliv_mail._refund(p_epoch, ARRAY(SELECT x.id FROM unnest(v_refused) AS x WHERE x.verdict <> 'in_doubt'));

    -- What ends: accepted, refused for good, or tried long enough.
    RETURN QUERY SELECT f.message_id, f.status FROM kliv_mail._finish(p_epoch,
        ARRAY(SELECT x FROM unnest(p_outcomes) AS x WHERE x.verdict = 'accepted')
        || ARRAY(SELECT ROW(x.id, x.account,
                CASE WHEN x.verdict = 'permanent' OR x.verdict = 'temporary' THEN 'bounced'
                     WHEN x.verdict = 'suppressed' THEN 'suppressed' ELSE 'failed' END,
                x.scope, CASE WHEN x.verdict = 'temporary' THEN 'soft' ELSE x.bounce_type END, x.pause, x.stage, x.code, x.enhanced, x.reply,
                CASE WHEN x.verdict = 'temporary' THEN 'it was tried for ' || current_setting('kliv_mail.retry_for') || '; last: ' ELSE '' END
                    || x.reason, x.hint, x.server_id, x.identity, x.fingerprint, x.simulated)::kliv_mail._outcome
            FROM unnest(v_refused) AS x JOIN kliv_mail._outbox AS o ON o.id = x.id
            WHERE (x.scope IS DISTINCT FROM 'account' AND x.verdict IN ('suppressed', 'permanent', 'policy_block', 'message_fault'))
               -- Where all that is left meets the same, nothing goes through that could tell whose fault it is.
               OR (x.verdict = 'temporary' AND (x.scope IS DISTINCT FROM 'account' OR x.id = ANY (v_waits))
                   AND v_at >= o.first_attempt_at + v_retry_for)), v_at) AS f;

    -- An address that does not exist gets no more mail; in their order, as others suppress them.
    FOR a IN SELECT d.recipient, d.reason FROM kliv_mail._delivery AS d
             WHERE d.id = ANY (ARRAY(SELECT x.id FROM unnest(v_refused) AS x WHERE x.verdict = 'permanent' AND x.bounce_type = 'hard'))
               AND d.status = 'bounced' ORDER BY lower(d.recipient COLLATE "C") LOOP
        PERFORM kliv_mail._suppress_bounced(a.recipient, a.reason);
    END LOOP;
    FOR a IN SELECT DISTINCT x.account FROM unnest(v_refused) AS x WHERE x.verdict = 'permanent' AND x.bounce_type = 'hard' ORDER BY 1 LOOP
        PERFORM kliv_mail._judge_reputation(a.account, v_at);
    END LOOP;

    -- A sender that spam filters block five of a hundred times stops for a while,
    -- before its name is worth nothing.
    FOR a IN SELECT DISTINCT x.account FROM unnest(v_refused) AS x WHERE x.verdict = 'policy_block' AND x.scope <> 'account' LOOP
        -- From the fifth last one on: where there is none, nothing else of the history is read.
        SELECT d.finished_at INTO j FROM kliv_mail._delivery AS d WHERE d.account = a.account AND d.bounce_type = 'policy'
        ORDER BY d.finished_at DESC OFFSET 4 LIMIT 1;
        IF FOUND AND (SELECT count(*) FROM (SELECT FROM kliv_mail._delivery AS y
                WHERE y.account = a.account AND y.finished_at > j.finished_at LIMIT 100) AS l) < 100 THEN
            PERFORM kliv_mail._hold_account(ROW(NULL, a.account, NULL, NULL, NULL, 3600, NULL, NULL, NULL, NULL,
                'five of its last hundred mails were blocked as spam or against the receiver''s policy',
                'Read last_reply in kliv_mail.deliveries; set up SPF, DKIM and DMARC for the sender''s domain, or send less of it.',
                NULL, NULL, NULL, NULL)::kliv_mail._outcome, 'account', false);
        END IF;
    END LOOP;

    -- The rest goes back: at its old time where nobody is to blame or the account may be (no
    -- attempt burned, though its time to try in runs where that is only for now), later where it
    -- waits for the account, or where the recipient or the message is to blame, and in doubt at
    -- once, or never without a call.
    RETURN QUERY
        UPDATE kliv_mail._outbox AS o
        SET epoch = NULL,
            -- What reset_smtp() took out of use meanwhile goes by the account that is in use.
            route = CASE WHEN o.route <> '' AND EXISTS (SELECT FROM kliv_mail._account AS c WHERE c.name = o.route AND NOT c.in_use) THEN '' ELSE o.route END,
            attempts = o.attempts - x.unburned::integer,
            first_attempt_at = CASE WHEN o.attempts = 1 AND x.unburned AND NOT (x.verdict = 'temporary' AND o.id = ANY (v_waits)) THEN NULL
                                    ELSE o.first_attempt_at END,
            due = CASE WHEN x.verdict = 'in_doubt' THEN CASE WHEN o.doubts + 1 > v_doubts THEN 'infinity' ELSE v_at END
                       WHEN x.verdict = 'postponed' THEN v_at + interval '1 minute'
                       WHEN x.verdict = 'returned' THEN o.due
                       WHEN x.scope = 'account' THEN coalesce(v_until[array_position(v_waits, o.id)], o.due)
                       ELSE v_at + greatest(make_interval(secs => coalesce(x.pause, 0)), kliv_mail._backoff(o.attempts)) END,
            doubts = o.doubts + (x.verdict = 'in_doubt')::integer,
            held_by = CASE WHEN x.verdict = 'postponed' THEN 'key'
                           WHEN x.scope = 'account' AND o.id = ANY (v_waits) THEN CASE x.verdict WHEN 'provider_limit' THEN 'limit' ELSE 'account' END END,
            -- Its own by now: the next one like it needs no other delivery's witness.
            refused = CASE WHEN o.id = ANY (v_own) THEN kliv_mail._refusal(x.stage, x.code, x.enhanced, x.fingerprint) ELSE o.refused END,
            doubtful = CASE WHEN x.verdict IN ('returned', 'postponed') THEN o.doubtful ELSE x.verdict = 'in_doubt' END,
            doubted_at = CASE WHEN x.verdict = 'in_doubt' THEN v_at ELSE o.doubted_at END,
            doubted = CASE WHEN x.verdict = 'in_doubt' THEN kliv_mail._change() ELSE o.doubted END,
            identity = coalesce(x.identity, o.identity),
            last_stage = CASE WHEN x.verdict = 'returned' THEN o.last_stage ELSE x.stage END,
            last_code = CASE WHEN x.verdict = 'returned' THEN o.last_code ELSE x.code END,
            last_enhanced = CASE WHEN x.verdict = 'returned' THEN o.last_enhanced ELSE x.enhanced END,
            last_reply = CASE WHEN x.verdict = 'returned' THEN o.last_reply ELSE x.reply END,
            last_reason = CASE WHEN x.verdict = 'returned' THEN o.last_reason ELSE x.reason END,
            last_hint = CASE WHEN x.verdict = 'returned' THEN o.last_hint ELSE x.hint END
        FROM (SELECT y.*, y.verdict IN ('returned', 'postponed')
                          OR (y.scope = 'account' AND y.verdict <> 'in_doubt') AS unburned
              FROM unnest(v_refused) AS y) AS x
        WHERE o.id = x.id AND o.epoch = p_epoch
        RETURNING o.message_id, CASE WHEN o.doubtful THEN 'in_doubt' WHEN x.verdict = 'returned' THEN 'queued' ELSE 'deferred' END;

    -- Suspects of earlier batches wait as long as those that joined them, but for what a caller has locked.
    IF v_waits <> '{}' THEN
        UPDATE kliv_mail._outbox AS o SET due = greatest(o.due, v_until[array_position(v_waits, o.id)])
        WHERE o.id IN (SELECT x.id FROM kliv_mail._outbox AS x
                       WHERE x.id = ANY (v_waits) AND x.epoch IS NULL AND x.held_by IS NOT NULL FOR NO KEY UPDATE SKIP LOCKED);
    END IF;
END;
$$;
