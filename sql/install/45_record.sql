-- What became of claimed deliveries.

-- Give back to the windows they were taken from what the server surely did not accept.
-- So the share of a recipient's hour.
CREATE FUNCTION kliv_mail._refund(p_accounts text[], p_recipients text[], p_hours timestamptz[], p_days timestamptz[], p_priorities smallint[])
RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH given AS (
        SELECT w.account, w.window_name, w.window_start, count(*) AS n, count(*) FILTER (WHERE x.priority = 2) AS marketing
        FROM unnest(p_accounts, p_recipients, p_hours, p_days, p_priorities) AS x (account, recipient, hour_start, day_start, priority),
             LATERAL (VALUES (x.account, 'hour', x.hour_start), (x.account, 'day', x.day_start), ('@' || x.recipient, 'hour', x.hour_start))
                 AS w (account, window_name, window_start)
        GROUP BY 1, 2, 3)
    UPDATE kliv_mail._usage AS u
    SET used = greatest(0, u.used - g.n), used_marketing = greatest(0, u.used_marketing - g.marketing)
    FROM given AS g
    WHERE u.account = g.account AND u.window_name = g.window_name AND u.window_start = g.window_start;
END;

-- Record outcomes, all in one go.  verdict is one of classify_reply()'s, or
-- 'returned': nothing that counts reached a server, the row goes back as it was,
-- 'postponed': the same, and it waits a minute for the key; or 'suppressed':
-- the claim met an address that gets no mail.
-- Rows that are no longer claimed by this epoch are left alone.
CREATE FUNCTION kliv_mail._record(
    p_epoch bigint, p_ids bigint[], p_verdicts text[], p_scopes text[], p_bounce_types text[], p_pauses integer[],
    p_stages text[], p_codes integer[], p_enhanced text[], p_replies text[], p_reasons text[], p_hints text[],
    p_server_ids text[], p_identities text[], p_unknown boolean[], p_fingerprints text[])
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_retry_for interval := make_interval(secs => extract(epoch FROM current_setting('kliv_mail.retry_for')::interval));
    v_doubts integer := CASE WHEN current_setting('kliv_mail.on_in_doubt') = 'hold' THEN 0
                             ELSE current_setting('kliv_mail.max_in_doubt_retries')::integer END;
    v_count integer;
    v_verdicts text[] := p_verdicts;
    v_scopes text[] := p_scopes;
    v_reasons text[] := p_reasons;
    v_strikes text[];
    v_accepted bigint[];
    v_trouble boolean := EXISTS (SELECT FROM unnest(p_verdicts) AS v (verdict) WHERE v.verdict <> 'accepted');
    v_unknown boolean := coalesce(true = ANY (p_unknown), false);
    a record;
BEGIN
    -- What was accepted: the only statement of an untroubled batch.
    WITH r AS MATERIALIZED (
        SELECT x.* FROM unnest(p_ids, p_verdicts, p_stages, p_codes, p_enhanced, p_replies, p_server_ids, p_identities)
            AS x (id, verdict, stage, code, enhanced, reply, server_id, identity)
        WHERE x.verdict = 'accepted'),
    gone AS (
        DELETE FROM kliv_mail._outbox AS o USING r WHERE o.id = r.id AND o.epoch = p_epoch
        RETURNING o.*, r.stage, r.code, r.enhanced, r.reply, r.server_id, r.identity AS sent_identity)
    INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, created_at, expires_at, attempts,
        doubts, account, identity, last_stage, last_code, last_enhanced, last_reply, reason, server_message_id, sent_at, finished_at)
    SELECT g.id, g.message_id, g.recipient, g.kind, g.priority, g.route, 'sent', g.created_at, g.expires_at, g.attempts,
        g.doubts, g.account, g.sent_identity, g.stage, g.code, g.enhanced, g.reply,
        CASE current_setting('kliv_mail.redirect_to') WHEN '' THEN 'the server accepted it'
            ELSE format('the server accepted it for %s (kliv_mail.redirect_to)', current_setting('kliv_mail.redirect_to')) END,
        g.server_id, v_at, v_at
    FROM gone AS g;
    GET DIAGNOSTICS v_count = ROW_COUNT;

    -- An accepted mail ends a row of refusals that nobody understands.
    v_accepted := ARRAY(SELECT x.id FROM unnest(p_ids, p_verdicts) AS x (id, verdict) WHERE x.verdict = 'accepted');
    IF NOT v_unknown AND EXISTS (SELECT FROM kliv_mail._quota AS q WHERE q.strikes <> '{}') THEN
        UPDATE kliv_mail._quota AS q SET strikes = '{}'
        WHERE q.strikes <> '{}' AND q.account IN (SELECT d.account FROM kliv_mail._delivery AS d WHERE d.id = ANY (v_accepted));
    END IF;

    IF v_trouble THEN
        PERFORM FROM kliv_mail._quota AS q
        WHERE q.account IN (SELECT o.account FROM kliv_mail._outbox AS o WHERE o.id = ANY (p_ids) AND o.epoch = p_epoch)
        ORDER BY q.account FOR NO KEY UPDATE;

        -- Three different recipients in a row refused the same way that no rule
        -- knows: that is about the account, and the third one is not to blame.
        -- Those accepted between them count in their order.  One that comes back
        -- with the refusal that it met before has its own verdict: it proves nothing
        -- new, and the line must move until others can prove the account well.
        FOR a IN
            SELECT x.n, coalesce(o.account, d.account) AS account, o.recipient, concat_ws(' ', x.stage, x.code, x.enhanced) AS way, x.reply
            FROM unnest(p_ids, p_unknown, p_stages, p_codes, p_enhanced, p_replies)
                WITH ORDINALITY AS x (id, unknown, stage, code, enhanced, reply, n)
            LEFT JOIN kliv_mail._outbox AS o ON o.id = x.id AND o.epoch = p_epoch AND x.unknown
            LEFT JOIN kliv_mail._delivery AS d ON d.id = x.id AND x.id = ANY (v_accepted)
            WHERE v_unknown AND (o.id IS NOT NULL OR d.id IS NOT NULL)
              AND (o.last_stage, o.last_code, o.last_enhanced) IS DISTINCT FROM (x.stage, x.code, x.enhanced)
            ORDER BY x.n
        LOOP
            SELECT q.strikes INTO v_strikes FROM kliv_mail._quota AS q WHERE q.account = a.account;
            IF v_strikes[1] IS DISTINCT FROM a.way THEN
                v_strikes := ARRAY[a.way];
            END IF;
            CONTINUE WHEN a.recipient = ANY (v_strikes[2:]);
            v_strikes := CASE WHEN a.recipient IS NULL THEN '{}' ELSE v_strikes || a.recipient END;
            IF cardinality(v_strikes) > 3 THEN
                v_verdicts[a.n] := 'account_trouble';
                v_scopes[a.n] := 'account';
                v_reasons[a.n] := 'three recipients in a row were refused the same way: ' || coalesce(a.reply, 'no reply');
            END IF;
            UPDATE kliv_mail._quota AS q SET strikes = v_strikes WHERE q.account = a.account;
        END LOOP;
        -- A 421 is about the connection.  For a delivery that has met the same at the same
        -- place before, and waited for the account, it is the delivery's own verdict:
        -- it alone waits, where it would hold the account up again and again.
        FOR a IN
            SELECT x.n FROM unnest(p_ids, v_verdicts, v_scopes, p_stages, p_codes) WITH ORDINALITY AS x (id, verdict, scope, stage, code, n)
            JOIN kliv_mail._outbox AS o ON o.id = x.id
            WHERE o.epoch = p_epoch AND x.verdict = 'temporary' AND x.scope = 'account' AND x.stage IN ('rcpt', 'data', 'dot')
              AND o.last_stage = x.stage AND o.last_code = x.code
        LOOP
            v_scopes[a.n] := 'recipient';
        END LOOP;

        -- The quota, for all but what a server may have.
        PERFORM kliv_mail._refund(array_agg(o.account), array_agg(o.recipient), array_agg(o.hour_start), array_agg(o.day_start), array_agg(o.priority))
        FROM kliv_mail._outbox AS o JOIN unnest(p_ids, v_verdicts) AS x (id, verdict) ON x.id = o.id
        WHERE o.epoch = p_epoch AND x.verdict NOT IN ('accepted', 'in_doubt')
        HAVING count(*) > 0;

        -- The account's own troubles, one hold an account.
        FOR a IN
            SELECT DISTINCT ON (o.account) o.account, x.verdict, x.pause, x.reason, x.hint, x.fingerprint
            FROM kliv_mail._outbox AS o
            JOIN unnest(p_ids, v_verdicts, v_scopes, p_pauses, v_reasons, p_hints, p_fingerprints) AS x (id, verdict, scope, pause, reason, hint, fingerprint)
                ON x.id = o.id
            WHERE o.epoch = p_epoch AND x.scope = 'account' AND x.verdict IN ('temporary', 'permanent', 'provider_limit', 'account_trouble')
            ORDER BY o.account, x.pause DESC NULLS LAST, x.id
        LOOP
            PERFORM kliv_mail._hold_account(a.account, CASE a.verdict WHEN 'provider_limit' THEN 'quota' ELSE 'account' END,
                make_interval(secs => nullif(a.pause, 0)), a.reason, a.hint, a.verdict <> 'provider_limit', a.fingerprint);
        END LOOP;

        -- Refused for good.
        WITH r AS MATERIALIZED (
            SELECT x.* FROM unnest(p_ids, v_verdicts, v_scopes, p_bounce_types, p_stages, p_codes, p_enhanced, p_replies, v_reasons,
                                   p_hints, p_identities)
                AS x (id, verdict, scope, bounce_type, stage, code, enhanced, reply, reason, hint, identity)),
        verdict AS (
            SELECT o.id,
                   CASE WHEN r.verdict = 'suppressed' THEN 'suppressed'
                        WHEN r.verdict = 'permanent' THEN 'bounced'
                        WHEN r.verdict IN ('policy_block', 'message_fault') THEN 'failed'
                        WHEN r.verdict = 'temporary' AND v_at >= o.first_attempt_at + v_retry_for THEN 'bounced' END AS status,
                   CASE WHEN r.verdict = 'temporary' THEN 'soft' ELSE r.bounce_type END AS bounce_type,
                   CASE WHEN r.verdict = 'temporary' THEN 'it was tried for ' || current_setting('kliv_mail.retry_for') || '; last: '
                        ELSE '' END || r.reason AS reason,
                   r.hint, r.stage, r.code, r.enhanced, r.reply, r.identity
            FROM kliv_mail._outbox AS o JOIN r ON r.id = o.id
            WHERE o.epoch = p_epoch AND r.scope <> 'account'),
        gone AS (
            DELETE FROM kliv_mail._outbox AS o USING verdict AS v WHERE o.id = v.id AND v.status IS NOT NULL
            RETURNING o.*, v.status, v.bounce_type AS bounce, v.reason, v.hint, v.stage, v.code, v.enhanced, v.reply, v.identity AS sent_identity)
        INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, created_at, expires_at, attempts,
            doubts, account, identity, bounce_type, last_stage, last_code, last_enhanced, last_reply, reason, hint, finished_at)
        SELECT g.id, g.message_id, g.recipient, g.kind, g.priority, g.route, g.status, g.created_at, g.expires_at, g.attempts,
            g.doubts, g.account, coalesce(g.sent_identity, g.identity), g.bounce, g.stage, g.code, g.enhanced, g.reply, g.reason, g.hint, v_at
        FROM gone AS g;

        -- A sender that spam filters block five of a hundred times stops for a while,
        -- before its name is worth nothing.
        FOR a IN
            SELECT DISTINCT d.account FROM kliv_mail._delivery AS d JOIN unnest(p_ids, v_verdicts) AS x (id, verdict) ON d.id = x.id
            WHERE x.verdict = 'policy_block'
        LOOP
            IF (SELECT count(*) FROM kliv_mail._delivery AS d WHERE d.account = a.account AND d.bounce_type = 'policy'
                  AND d.finished_at >= (SELECT min(l.finished_at) FROM (SELECT y.finished_at FROM kliv_mail._delivery AS y
                      WHERE y.account = a.account ORDER BY y.finished_at DESC LIMIT 100) AS l)) >= 5 THEN
                PERFORM kliv_mail._hold_account(a.account, 'account', interval '1 hour',
                    'five of its last hundred mails were blocked as spam or against the receiver''s policy',
                    'Read last_reply in kliv_mail.deliveries; set up SPF, DKIM and DMARC for the sender''s domain, or send less of it.', false);
            END IF;
        END LOOP;

        -- The rest goes back: at its old time where the account or nobody is to
        -- blame (no attempt burned), later where the recipient or the message is,
        -- and in doubt at once, or never without a call.
        UPDATE kliv_mail._outbox AS o
        SET epoch = NULL,
            attempts = CASE WHEN x.verdict IN ('returned', 'postponed') OR (x.scope = 'account' AND x.verdict <> 'in_doubt')
                            THEN o.attempts - 1 ELSE o.attempts END,
            first_attempt_at = CASE WHEN o.attempts = 1 AND (x.verdict IN ('returned', 'postponed') OR (x.scope = 'account' AND x.verdict <> 'in_doubt'))
                                    THEN NULL ELSE o.first_attempt_at END,
            due = CASE WHEN x.verdict = 'in_doubt' THEN CASE WHEN o.doubts + 1 > v_doubts THEN 'infinity' ELSE v_at END
                       WHEN x.verdict = 'postponed' THEN v_at + interval '1 minute'
                       WHEN x.verdict = 'returned' OR x.scope = 'account' THEN o.due
                       ELSE v_at + greatest(make_interval(secs => coalesce(x.pause, 0)), kliv_mail._backoff(o.attempts)) END,
            doubts = o.doubts + (x.verdict = 'in_doubt')::integer,
            held_by = CASE WHEN x.verdict = 'postponed' THEN 'key' END,
            doubtful = CASE WHEN x.verdict IN ('returned', 'postponed') THEN o.doubtful ELSE x.verdict = 'in_doubt' END,
            identity = coalesce(x.identity, o.identity),
            last_stage = CASE WHEN x.verdict = 'returned' THEN o.last_stage ELSE x.stage END,
            last_code = CASE WHEN x.verdict = 'returned' THEN o.last_code ELSE x.code END,
            last_enhanced = CASE WHEN x.verdict = 'returned' THEN o.last_enhanced ELSE x.enhanced END,
            last_reply = CASE WHEN x.verdict = 'returned' THEN o.last_reply ELSE x.reply END,
            last_reason = CASE WHEN x.verdict = 'returned' THEN o.last_reason ELSE x.reason END,
            last_hint = CASE WHEN x.verdict = 'returned' THEN o.last_hint ELSE x.hint END
        FROM unnest(p_ids, v_verdicts, v_scopes, p_pauses, p_stages, p_codes, p_enhanced, p_replies, v_reasons, p_hints, p_identities)
            AS x (id, verdict, scope, pause, stage, code, enhanced, reply, reason, hint, identity)
        WHERE o.id = x.id AND o.epoch = p_epoch;
    END IF;

    -- An accepted mail ends the account's trouble, unless the same batch brought it.
    IF EXISTS (SELECT FROM kliv_mail._quota AS q WHERE q.held_until <= v_at) THEN
        UPDATE kliv_mail._quota AS q
        SET held_until = NULL, held_by = NULL, held_reason = NULL, held_hint = NULL, held_since = NULL, failures = 0, fingerprint = NULL
        WHERE q.held_until <= v_at
          AND q.account IN (SELECT d.account FROM kliv_mail._delivery AS d WHERE d.id = ANY (v_accepted));
    END IF;
    RETURN v_count;
END;
$$;
