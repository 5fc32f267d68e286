-- An account's good name: who sends to addresses that do not exist, or to people who
-- complain, is soon believed by no receiver.  Counted over the last seven days, once
-- 200 mails were judged, and since resume() at the earliest.

-- Looked at when a hard bounce or a complaint is recorded, which alone can make it worse; at most once a minute.
-- What a resume() under way has locked is left.
CREATE FUNCTION kliv_mail._judge_reputation(p_account text, at timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
    r kliv_mail._reputation;
    v_since timestamptz;
    v_bad record;
    v_all record;
    v_bounces numeric;
    v_complaints numeric;
    v_stage text;
    v_reason text;
BEGIN
    -- Nobody waits here, as ON CONFLICT would for whoever judges just now: who comes from a webhook or a record has
    -- rows locked, for which that one may wait.
    IF NOT EXISTS (SELECT FROM kliv_mail._reputation AS x WHERE x.account = p_account) THEN
        IF NOT pg_try_advisory_xact_lock('kliv_mail._reputation'::regclass::oid::integer, hashtext(p_account)) THEN
            RETURN;
        END IF;
        INSERT INTO kliv_mail._reputation (account, judged_at) VALUES (p_account, '-infinity') ON CONFLICT DO NOTHING;
    END IF;
    SELECT * INTO r FROM kliv_mail._reputation AS x WHERE x.account = p_account FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND OR r.judged_at > at - interval '1 minute' AND r.judged_at <= at THEN
        RETURN;
    END IF;
    v_since := greatest(at - interval '7 days', r.resumed_at);
    SELECT count(*) FILTER (WHERE d.bounce_type = 'hard') AS bounces, count(*) FILTER (WHERE d.status = 'complained') AS complaints INTO v_bad
    FROM kliv_mail._delivery AS d
    WHERE d.account = p_account AND d.finished_at >= v_since AND (d.bounce_type = 'hard' OR d.status = 'complained') AND NOT d.simulated
      -- What one of several recipients can say of the others is no witness.
      AND (d.reported_at IS NULL OR (SELECT m.recipients FROM kliv_mail._message AS m WHERE m.id = d.message_id) = 1);
    -- Too few for any rate that counts.
    IF v_bad.bounces > 8 OR v_bad.complaints > 0 THEN
        SELECT count(*) AS judged, count(d.sent_at) AS accepted INTO v_all
        FROM kliv_mail._delivery AS d
        WHERE d.account = p_account AND d.finished_at >= v_since AND NOT d.simulated
          AND (d.sent_at IS NOT NULL OR d.status = 'bounced' OR d.bounce_type = 'policy');
        IF v_all.judged >= 200 THEN
            v_bounces := kliv_mail._percent(v_bad.bounces, v_all.judged);
            v_complaints := kliv_mail._percent(v_bad.complaints, v_all.accepted);
            v_stage := CASE WHEN v_bounces > 8 OR v_complaints > 0.3 AND v_bad.complaints >= 2 THEN 'paused'
                            WHEN v_bounces > 4 OR v_complaints > 0.08 THEN 'warning' END;
        END IF;
    END IF;
    IF v_stage IS NOT NULL THEN
        v_reason := format('of the last %s mails of the account "%s"%s', v_all.judged, p_account,
                           CASE WHEN r.resumed_at > at - interval '7 days' THEN ' since resume()' ELSE ' in seven days' END)
            || CASE WHEN v_bounces > 4 THEN format(', %s %% went to addresses that do not exist', v_bounces) ELSE '' END
            || CASE WHEN v_complaints > 0.08 THEN format(', %s %% were reported as spam', v_complaints) ELSE '' END;
    END IF;
    -- What has paused stays so until resume().
    IF r.stage = 'paused' AND v_stage IS DISTINCT FROM 'paused' THEN
        v_stage := r.stage;
        v_reason := r.reason;
    END IF;
    UPDATE kliv_mail._reputation AS x SET stage = v_stage, reason = v_reason, judged_at = at WHERE x.account = p_account;
    IF v_stage IS DISTINCT FROM r.stage AND v_stage IS NOT NULL THEN
        PERFORM kliv_mail._log_event(CASE v_stage WHEN 'paused' THEN 'marketing_paused' ELSE 'reputation_warning' END, p_account, v_reason, NULL);
    END IF;
END;
$$;

-- The accounts whose good name is in danger; a warning counts for a day after what made it.
CREATE FUNCTION kliv_mail._bad_reputations() RETURNS TABLE (account text, stage text, reason text, hint text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY
        SELECT r.account, r.stage, CASE r.stage WHEN 'paused' THEN 'marketing mail is paused: ' ELSE '' END || r.reason, kliv_mail._reputation_hint(r.account, r.stage)
        FROM kliv_mail._reputation AS r
        WHERE r.stage = 'paused' OR r.stage = 'warning' AND r.judged_at > kliv_mail._now() - interval '1 day'
        ORDER BY r.stage, r.account;
END;
$$;

CREATE FUNCTION kliv_mail._reputation_hint(p_account text, p_stage text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE p_stage WHEN 'paused'
        THEN format('Send to those alone who asked for it, and once the list is clean: SELECT kliv_mail.resume(%L); lets marketing mail leave again.', p_account)
        ELSE 'Send to those alone who asked for it: SELECT * FROM kliv_mail.delivery_stats(now() - interval ''7 days'', bucket => ''1 day'', group_by => ''domain''); shows where it bounces. Above 8 % or 0.3 % marketing mail pauses by itself.' END;
END;
