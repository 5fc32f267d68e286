-- set_limits() and reset_smtp().

-- A daily limit above what the provider is known to take is saved, and said.
CREATE FUNCTION kliv_mail._tell_provider_limits(before kliv_mail._account, after kliv_mail._account) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    p record;
BEGIN
    SELECT x.title, x.free_daily, x.notes INTO p FROM kliv_mail._providers() AS x WHERE x.name = after.provider;
    IF after.daily_limit <= coalesce(before.daily_limit, 0) THEN
        RETURN;
    ELSIF after.daily_limit > nullif(after.rolling_limit, 0) THEN
        RAISE NOTICE USING MESSAGE = format('the provider (%s) takes %s recipients in any 24 hours, which rules', p.title, after.rolling_limit), HINT = p.notes;
    ELSIF after.daily_limit > p.free_daily THEN
        RAISE NOTICE USING MESSAGE = format('the provider (%s) takes %s recipients a day until you have a larger plan with it', p.title, p.free_daily), HINT = p.notes;
    END IF;
END;
$$;

CREATE FUNCTION kliv_mail._set_limits(p_caller name, p_hourly integer, p_daily integer, p_account text)
RETURNS SETOF kliv_mail.account_summary
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_account text := kliv_mail._own_account(p_account, 'set_limits');
    before kliv_mail._account;
    after kliv_mail._account;
BEGIN
    LOCK TABLE kliv_mail._account IN SHARE ROW EXCLUSIVE MODE;
    SELECT a.* INTO STRICT before FROM kliv_mail._account AS a WHERE a.name = v_account;
    PERFORM kliv_mail._check_limits(v_account, coalesce(p_hourly, before.hourly_limit), coalesce(p_daily, before.daily_limit));
    UPDATE kliv_mail._account AS a
    SET hourly_limit = coalesce(p_hourly, a.hourly_limit), daily_limit = coalesce(p_daily, a.daily_limit),
        updated_at = greatest(kliv_mail._now(), a.updated_at + interval '1 microsecond'), updated_by = p_caller
    WHERE a.name = v_account
    RETURNING a.* INTO after;
    IF after.hourly_limit = 0 OR after.daily_limit = 0 THEN
        RAISE NOTICE USING MESSAGE = format('a limit of 0 pauses the account "%s"', v_account);
    ELSIF after.hourly_limit > after.daily_limit THEN
        RAISE NOTICE USING MESSAGE = format('the hourly limit %s is above the daily limit %s, which rules',
                                            after.hourly_limit, after.daily_limit);
    END IF;
    PERFORM kliv_mail._tell_provider_limits(before, after);
    PERFORM kliv_mail._log_event('limits_changed', v_account, NULL, c.changes, p_caller)
    FROM (SELECT kliv_mail._account_changes(before, after)) AS c (changes) WHERE c.changes IS NOT NULL;
    PERFORM kliv_mail._wake();
    RETURN NEXT kliv_mail._summary(before, after);
END;
$$;

CREATE FUNCTION kliv_mail.set_limits(hourly_limit integer DEFAULT NULL, daily_limit integer DEFAULT NULL, account text DEFAULT 'custom')
RETURNS SETOF kliv_mail.account_summary
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.set_limits IS
$$Sets how many recipients an account may mail in an hour and in a day (of kliv_mail.quota_timezone's clock); it counts at once for what is queued. NULL keeps; 0 pauses. The daily limits of a database's own accounts together are at most kliv_mail.max_daily_limit (10000).
Returns the account in short, and what changed. Errors: 22023 negative, too large or no such account, 42501 account platform.
Example: SELECT * FROM kliv_mail.set_limits(hourly_limit => 200, daily_limit => 2000);$$;

CREATE FUNCTION kliv_mail._reset_smtp(p_caller name, p_account text)
RETURNS SETOF kliv_mail.account_summary
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_account text := kliv_mail._own_account(coalesce(p_account, 'custom'), 'reset_smtp');
    v_heir text;
    v_moved bigint;
    before kliv_mail._account;
    after kliv_mail._account;
BEGIN
    LOCK TABLE kliv_mail._account IN SHARE ROW EXCLUSIVE MODE;
    SELECT a.* INTO STRICT before FROM kliv_mail._account AS a WHERE a.name = v_account;
    UPDATE kliv_mail._account AS a
    SET in_use = false, username_cipher = NULL, username_masked = NULL, password_cipher = NULL, password_masked = NULL,
        key_id = NULL, password_changed_at = NULL, last_test_at = NULL, last_test_ok = NULL,
        updated_at = greatest(kliv_mail._now(), a.updated_at + interval '1 microsecond'),
        renewed_at = greatest(kliv_mail._now(), a.updated_at + interval '1 microsecond'),
        updated_by = p_caller
    WHERE a.name = v_account AND a.in_use
    RETURNING a.* INTO after;
    IF FOUND THEN
        -- '' is the way of the account in use, so what waits comes back when
        -- custom is configured again.  What is claimed, or locked by a caller, goes by _own_routes().
        UPDATE kliv_mail._outbox AS o SET route = ''
        WHERE o.id IN (SELECT x.id FROM kliv_mail._outbox AS x WHERE x.route = v_account AND x.epoch IS NULL FOR NO KEY UPDATE SKIP LOCKED);
        GET DIAGNOSTICS v_moved = ROW_COUNT;
        IF v_account = 'custom' THEN
            SELECT count(*) INTO v_moved FROM kliv_mail._outbox AS o WHERE o.route = '';
        END IF;
        v_heir := kliv_mail._default_account();
        IF v_moved > 0 THEN
            RAISE NOTICE USING MESSAGE = format('%s deliveries of the account "%s" now wait for the account "%s" (%s)',
                v_moved, v_account, v_heir,
                (SELECT coalesce(x.problem, format('at most %s an hour and %s a day', x.hourly_limit, x.daily_limit))
                 FROM kliv_mail._accounts() AS x WHERE x.name = v_heir));
        END IF;
        PERFORM kliv_mail._label();
        PERFORM kliv_mail._log_event('account_reset', v_account, NULL, jsonb_build_object('moved', v_moved), p_caller);
        PERFORM kliv_mail._wake();
    END IF;
    RETURN NEXT kliv_mail._summary(before, CASE WHEN after.name IS NULL THEN before ELSE after END);
END;
$$;

CREATE FUNCTION kliv_mail.reset_smtp(account text DEFAULT 'custom')
RETURNS SETOF kliv_mail.account_summary
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.reset_smtp IS
$$Takes an account out of use and wipes its password; sender and limits stay for the next configure_smtp(). What it had queued goes by the account in use, that is platform when custom was reset (a NOTICE says how many wait). Resetting twice does nothing.
Returns the account in short, and what changed. Errors: 22023 no such account, 42501 account platform.
Example: SELECT * FROM kliv_mail.reset_smtp();$$;
