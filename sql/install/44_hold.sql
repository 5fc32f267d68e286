-- An account in trouble: held for a while, longer each time.  And whose fault a refusal is.

-- Time to wait before try number n+1: 30 s doubling to an hour, a quarter of
-- it either way by chance, so that what failed together does not come back together.
CREATE FUNCTION kliv_mail._backoff(n integer) RETURNS interval
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT make_interval(secs => least(3600, 30 * power(2, least(greatest(n, 1), 20) - 1)) * (0.75 + random() / 2));
END;

-- The next line of the server's log, when the sender's transaction is committed; p_reason NULL: it goes on.
CREATE FUNCTION kliv_mail._log_hold(p_account text, p_reason text, p_hint text) RETURNS void
LANGUAGE c VOLATILE AS '$libdir/kliv_mail_net', 'kliv_mail__log_hold';

-- Tell the log of an account's hold, or that it is over: what it was told last is not said again, and no account
-- has more than a line a minute.  What comes too soon is told at the next occasion, if it is still so.
-- p_anew: another hold than the one that was told of.
CREATE FUNCTION kliv_mail._tell_hold(p_account text, p_by text, p_reason text, p_hint text, p_anew boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    -- The messages that met it change with each try.
    v_told text := regexp_replace(p_reason, ' [(]met by [^)]*[)]$', '');
    v_hint text;
BEGIN
    UPDATE kliv_mail._quota AS q SET told = v_told, told_at = v_at
    WHERE q.account = p_account AND (p_anew OR q.told IS DISTINCT FROM v_told)
      AND (q.told_at IS NULL OR q.told_at NOT BETWEEN v_at - interval '1 minute' AND v_at);
    IF FOUND THEN
        IF p_reason IS NOT NULL THEN
            SELECT kliv_mail._cure_of_hold(a.name, a.own, a.provider, p_by, p_reason, p_hint) INTO v_hint
            FROM kliv_mail._accounts() AS a WHERE a.name = p_account;
        END IF;
        PERFORM kliv_mail._log_hold(p_account, p_reason, v_hint);
    END IF;
END;
$$;

-- Hold an account, or leave the hold that already reaches further.  outcome: what was
-- met; its pause NULL and p_failure false: a first backoff.
CREATE FUNCTION kliv_mail._hold_account(p_outcome kliv_mail._outcome, p_by text, p_failure boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_pause interval := make_interval(secs => nullif((p_outcome).pause, 0));
    v_reason text := (p_outcome).reason;
    v_print text;
    v_held record;
    v_counts boolean;
    v_failures integer;
    v_until timestamptz;
BEGIN
    SELECT x.fingerprint INTO v_print FROM kliv_mail._accounts() AS x WHERE x.name = (p_outcome).account;
    -- Met with settings that are no longer the account's: no concern of the new ones.
    IF (p_outcome).fingerprint <> v_print THEN
        RETURN;
    END IF;
    INSERT INTO kliv_mail._quota (account) VALUES ((p_outcome).account) ON CONFLICT DO NOTHING;
    SELECT q.*, q.fingerprint IS NOT DISTINCT FROM v_print AS of_these INTO v_held
    FROM kliv_mail._quota AS q WHERE q.account = (p_outcome).account FOR NO KEY UPDATE;
    -- A hold that was met with other settings is over.  Where there was none yet, what one alone met last was no
    -- trouble of the account, or was this one, which counts once.
    v_failures := CASE WHEN NOT v_held.of_these THEN 0 WHEN v_held.held_until IS NULL THEN greatest(v_held.failures - 1, 0)
                       ELSE v_held.failures END;
    -- What was under way when the hold began meets the same trouble, and is no further failure.
    v_counts := p_failure AND NOT coalesce(v_failures > 0 AND v_held.held_until > v_at, false);
    v_failures := v_failures + v_counts::integer;
    v_until := v_at + greatest(coalesce(v_pause, interval '0'),
                               CASE WHEN v_counts OR (v_pause IS NULL AND NOT p_failure) THEN kliv_mail._backoff(v_failures)
                                    ELSE interval '0' END);
    UPDATE kliv_mail._quota AS q
    SET held_until = CASE WHEN v_held.of_these THEN greatest(q.held_until, v_until) ELSE v_until END,
        held_by = p_by, held_reason = v_reason, held_hint = (p_outcome).hint, held_stage = (p_outcome).stage,
        held_since = CASE WHEN q.held_until IS NULL OR NOT v_held.of_these THEN v_at ELSE q.held_since END,
        failures = v_failures, fingerprint = v_print, suspects = CASE WHEN v_held.of_these THEN q.suspects ELSE '{}' END
    WHERE q.account = (p_outcome).account;
    IF v_held.held_until IS NULL OR NOT v_held.of_these OR v_held.held_reason IS DISTINCT FROM v_reason THEN
        PERFORM kliv_mail._log_event('account_held', (p_outcome).account, v_reason, jsonb_build_object('by', p_by, 'until', v_until));
    END IF;
    PERFORM kliv_mail._tell_hold((p_outcome).account, p_by, v_reason, (p_outcome).hint, NOT v_held.of_these);
END;
$$;

-- Suspects whose account turned out to be well, or is another one by now: they go on at once.
-- p_print: others went through with these settings; met again, the refusal is the delivery's own.
-- What a caller's cancel() or retry() has locked keeps its time: nobody's open transaction may stop the sender.
CREATE FUNCTION kliv_mail._release_suspects(p_ids bigint[], p_print text, at timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE kliv_mail._outbox AS o
    SET due = least(o.due, at), held_by = NULL,
        refused = CASE WHEN p_print IS NOT NULL THEN kliv_mail._refusal(o.last_stage, o.last_code, o.last_enhanced, p_print) END
    WHERE o.id IN (SELECT x.id FROM kliv_mail._outbox AS x WHERE x.id = ANY (p_ids) AND x.epoch IS NULL FOR NO KEY UPDATE SKIP LOCKED);
END;
$$;

-- Somebody changed the account or saw that it works: what waits for it tries at once.
CREATE FUNCTION kliv_mail._account_mended(p_account text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM kliv_mail._release_suspects(q.suspects, NULL, kliv_mail._now())
    FROM kliv_mail._quota AS q WHERE q.account = p_account AND q.suspects <> '{}';
    PERFORM kliv_mail._wake();
END;
$$;

-- What makes a refusal the same one.  One that is only for now is so with other settings and by another
-- account, too: what is at fault itself would else be a suspect anew after each change, and hold the account
-- that stands in for its own.
CREATE FUNCTION kliv_mail._refusal(stage text, code integer, enhanced text, fingerprint text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT concat_ws(' ', stage, code, enhanced, CASE WHEN code >= 500 THEN fingerprint END);
END;

-- Whose fault is a refusal that speaks of the account (scope account)?  The account is in trouble when two
-- different deliveries met it in a row.  One alone waits, while another one tries at once; where that one goes
-- through, the first tries again, and what it meets then is its own verdict.
-- Takes the outcomes of one account in their order, with its row of _quota locked; keeps the account's suspects
-- and hold.  own: of these deliveries the refusal is their own; waits: these wait until then for the account.
CREATE FUNCTION kliv_mail._judge(p_epoch bigint, p_account text, p_outcomes kliv_mail._outcome[], at timestamptz,
                                 OUT own bigint[], OUT waits bigint[], OUT until timestamptz, OUT released bigint[], OUT print text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    q kliv_mail._quota;
    x record;
    v_suspects bigint[];
    v_worst kliv_mail._outcome;
    v_refused boolean := false;
    v_well boolean := false;
    v_held boolean;
    v_failures integer;
    v_met text;
BEGIN
    own := '{}'; waits := '{}'; released := '{}';
    SELECT a.fingerprint INTO print FROM kliv_mail._accounts() AS a WHERE a.name = p_account;
    SELECT * INTO q FROM kliv_mail._quota AS y WHERE y.account = p_account;
    IF q.fingerprint IS DISTINCT FROM print THEN
        PERFORM kliv_mail._release_suspects(q.suspects, NULL, at);
        q.suspects := '{}'; q.failures := 0; q.held_until := NULL;
    END IF;
    v_suspects := q.suspects;
    v_held := coalesce(q.held_until > at, false);
    FOR x IN SELECT o.id, o.verdict, o.pause, r.refused, kliv_mail._refusal(o.stage, o.code, o.enhanced, print) AS refusal
             FROM unnest(p_outcomes) WITH ORDINALITY AS o (id, account, verdict, scope, bounce_type, pause, stage, code, enhanced,
                                                           reply, reason, hint, server_id, identity, fingerprint, simulated, n)
             LEFT JOIN kliv_mail._outbox AS r ON r.id = o.id AND r.epoch = p_epoch
             WHERE o.account = p_account AND coalesce(o.fingerprint = print, true) AND o.simulated IS NOT TRUE
               AND (o.verdict = 'accepted' OR (o.scope = 'account' AND o.verdict <> 'in_doubt' AND r.id IS NOT NULL))
             ORDER BY o.n LOOP
        IF x.verdict = 'accepted' THEN
            v_well := true;
            released := released || v_suspects;
            v_suspects := '{}';
            v_refused := false;
            v_worst := NULL;
        -- Alone again with what is only for now: it has its own time to try in, not an endless one.
        ELSIF x.refused = x.refusal OR (x.verdict = 'temporary' AND v_suspects = ARRAY[x.id]) THEN
            own := own || x.id;
            v_suspects := array_remove(v_suspects, x.id);
        ELSE
            v_suspects := array_remove(v_suspects, x.id) || x.id;
            v_refused := true;
            IF v_worst IS NULL OR coalesce(x.pause, 0) > coalesce(v_worst.pause, 0) THEN
                SELECT y.* INTO v_worst FROM unnest(p_outcomes) AS y WHERE y.id = x.id;
            END IF;
        END IF;
    END LOOP;
    v_suspects := v_suspects[greatest(1, cardinality(v_suspects) - 99):];
    -- A mail that goes through ends the trouble that mail had met; a limit of the provider has its time.
    IF v_well AND (NOT v_held OR (q.held_by = 'account' AND q.suspects <> '{}')) THEN
        q.held_until := NULL; q.failures := 0; q.held_by := NULL; q.held_reason := NULL; q.held_hint := NULL;
        q.held_since := NULL; q.held_stage := NULL;
        v_held := false;
    END IF;
    v_failures := coalesce(q.failures, 0) + (v_refused AND NOT v_held AND cardinality(v_suspects) = 1)::integer;
    IF v_suspects = '{}' AND q.held_until IS NULL THEN
        v_failures := 0;
    END IF;
    UPDATE kliv_mail._quota AS y
    SET suspects = v_suspects, fingerprint = print, failures = v_failures, held_until = q.held_until, held_by = q.held_by,
        held_reason = q.held_reason, held_hint = q.held_hint, held_since = q.held_since, held_stage = q.held_stage
    WHERE y.account = p_account;
    IF v_well AND q.held_until IS NULL AND q.told IS NOT NULL THEN
        PERFORM kliv_mail._tell_hold(p_account, NULL, NULL, NULL, false);
    END IF;
    IF v_refused THEN
        until := at + greatest(make_interval(secs => coalesce(v_worst.pause, 0)), kliv_mail._backoff(v_failures));
        IF cardinality(v_suspects) > 1 THEN
            SELECT string_agg(format('message %s', m.message_id), ' and ' ORDER BY m.message_id) INTO v_met
            FROM (SELECT DISTINCT r.message_id FROM kliv_mail._outbox AS r WHERE r.id = ANY (v_suspects[cardinality(v_suspects) - 1:])) AS m;
            v_worst.reason := v_worst.reason || coalesce(format(' (met by %s)', v_met), '');
            PERFORM kliv_mail._hold_account(v_worst, CASE v_worst.verdict WHEN 'provider_limit' THEN 'quota' ELSE 'account' END,
                                            v_worst.verdict <> 'provider_limit');
            -- Behind the hold's end, so that another one tries first.
            SELECT greatest(y.held_until, at) + interval '5 seconds' INTO until FROM kliv_mail._quota AS y WHERE y.account = p_account;
        END IF;
        waits := v_suspects;
    END IF;
END;
$$;

-- What an account in trouble lets end: deliveries that were tried, and whose time to try in is over.  Each of
-- them would otherwise have to wait for a hold's end to be the one that tries.  A thousand rows of its line are
-- looked at: where more wait, the others in it are tried first.
CREATE FUNCTION kliv_mail._tried_enough(p_account text, at timestamptz, p_retry_for interval) RETURNS kliv_mail._outcome[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    v_origin text := kliv_mail._origin();
BEGIN
    RETURN ARRAY(
        SELECT ROW(o.id, NULL, 'bounced', NULL, 'soft', NULL, o.last_stage, o.last_code, o.last_enhanced, o.last_reply,
            'it was tried for ' || current_setting('kliv_mail.retry_for') || '; last: ' || o.last_reason, o.last_hint,
            NULL, NULL, NULL, NULL)::kliv_mail._outcome
        FROM (SELECT x.* FROM unnest(kliv_mail._own_routes(p_account)) AS r (route), generate_series(0, 2) AS p (priority),
                   LATERAL (SELECT y.* FROM kliv_mail._outbox AS y
                            WHERE y.origin = v_origin AND y.route = r.route AND y.priority = p.priority
                            ORDER BY y.due, y.id LIMIT 1000) AS x
              LIMIT 1000) AS o
        WHERE o.epoch IS NULL AND NOT o.doubtful AND o.last_reason IS NOT NULL
          AND o.first_attempt_at <= at - p_retry_for);
END;
$$;
