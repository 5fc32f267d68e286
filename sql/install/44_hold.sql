-- An account in trouble: held for a while, longer each time.

-- Seconds to wait before try number n+1: 30 s doubling to an hour, a quarter of
-- it either way by chance, so that what failed together does not come back together.
CREATE FUNCTION kliv_mail._backoff(n integer) RETURNS interval
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT make_interval(secs => least(3600, 30 * power(2, least(greatest(n, 1), 20) - 1)) * (0.75 + random() / 2));
END;

-- Hold an account, or leave the hold that already reaches further.
CREATE FUNCTION kliv_mail._hold_account(p_account text, p_by text, p_pause interval, p_reason text, p_hint text, p_failure boolean,
                                        p_fingerprint text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_print text;
    v_held record;
    v_counts boolean;
    v_failures integer;
    v_until timestamptz;
BEGIN
    SELECT x.fingerprint INTO v_print FROM kliv_mail._accounts() AS x WHERE x.name = p_account;
    -- Met with settings that are no longer the account's: no concern of the new ones.
    IF p_fingerprint <> v_print THEN
        RETURN;
    END IF;
    INSERT INTO kliv_mail._quota (account) VALUES (p_account) ON CONFLICT DO NOTHING;
    SELECT * INTO v_held FROM kliv_mail._quota AS q WHERE q.account = p_account FOR NO KEY UPDATE;
    -- A hold that was met with other settings is over.
    v_failures := CASE WHEN v_held.fingerprint IS NOT DISTINCT FROM v_print THEN v_held.failures ELSE 0 END;
    -- What was under way when the hold began meets the same trouble, and is no further failure.
    v_counts := p_failure AND NOT coalesce(v_failures > 0 AND v_held.held_until > v_at, false);
    v_failures := v_failures + v_counts::integer;
    v_until := v_at + greatest(coalesce(p_pause, interval '0'),
                               CASE WHEN v_counts OR (p_pause IS NULL AND NOT p_failure) THEN kliv_mail._backoff(v_failures)
                                    ELSE interval '0' END);
    UPDATE kliv_mail._quota AS q
    SET held_until = CASE WHEN q.fingerprint IS NOT DISTINCT FROM v_print THEN greatest(q.held_until, v_until) ELSE v_until END,
        held_by = p_by, held_reason = p_reason, held_hint = p_hint,
        held_since = CASE WHEN q.held_until IS NULL OR q.fingerprint IS DISTINCT FROM v_print THEN v_at ELSE q.held_since END,
        failures = v_failures, fingerprint = v_print
    WHERE q.account = p_account;
    IF v_held.held_until IS NULL OR v_held.fingerprint IS DISTINCT FROM v_print OR v_held.held_reason IS DISTINCT FROM p_reason THEN
        PERFORM kliv_mail._log_event('account_held', p_account, p_reason,
            jsonb_build_object('by', p_by, 'until', v_until));
    END IF;
END;
$$;
