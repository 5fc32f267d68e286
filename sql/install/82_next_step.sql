-- What is to be done next, for people and agents that have nothing but SQL, made
-- from the views' own codes, reasons and hints, so that it cannot say something else.

-- The first statement in a hint, if there is one.
CREATE FUNCTION kliv_mail._statement_of(hint text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT (regexp_match(hint, E'((?:SELECT|ALTER|UPDATE)\\M[^;]*;)'))[1];
END;

-- What is to be done outside of SQL is said with the problem: the sentences before the statement, if there is one.
CREATE FUNCTION kliv_mail._with_cure(problem text, hint text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT problem || coalesce('. ' || CASE WHEN kliv_mail._statement_of(hint) IS NULL THEN hint
                                            ELSE substring(split_part(hint, kliv_mail._statement_of(hint), 1) FROM E'^.*\\.(?=\\s)') END, '');
END;

-- The arguments of a statement that stand for something: 'the new password'.
CREATE FUNCTION kliv_mail._inputs_of(statement text) RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT coalesce(array_agg(m.x[1] ORDER BY m.n), '{}')
    FROM regexp_matches(statement, '([a-z_]+) => ''(?:the|its) [^'']*''', 'g') WITH ORDINALITY AS m (x, n);
END;

-- The statement for a code, where the hint has none of its own; whether it ends
-- the trouble, and whether it may be run without asking anybody: one that sends,
-- spends, restarts or undoes what a person decided may not.
CREATE FUNCTION kliv_mail._cure(
    code text, hint text, account text, message_id bigint,
    OUT statement text, OUT cures boolean, OUT safe boolean, OUT needs_input text[])
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    statement := kliv_mail._statement_of(hint);
    IF statement IS NOT NULL THEN
        cures := statement ~ 'configure_smtp|update_sender|configure_bounce_mailbox'
            OR code NOT IN ('account_trouble', 'provider_limit', 'retry', 'in_doubt', 'next', 'standby', 'reputation_warning', 'bounce_mailbox',
                             'suppressed');     -- mail from now on leaves, not the one that ended
        safe := code NOT IN ('not_preloaded', 'launcher_not_running', 'no_worker_slot', 'copy', 'account_copy', 'delivery_hold', 'paused', 'marketing_paused',
            'account_paused', 'limit_zero', 'hour_used', 'day_used', 'suppressed', 'in_doubt_held', 'expired');
        needs_input := kliv_mail._inputs_of(statement);
    ELSIF code = 'platform_not_configured' OR code IN ('hour_used', 'day_used', 'limit_zero') AND account = 'platform' THEN
        SELECT v.example, true, true, v.required INTO statement, cures, safe, needs_input FROM kliv_mail.providers AS v ORDER BY v.name LIMIT 1;
    ELSE
        -- What shows more, or waits for what comes by itself.
        statement := CASE
            WHEN code IN ('not_preloaded', 'standby', 'launcher_not_running', 'no_worker_slot', 'sender_error') THEN 'SELECT * FROM kliv_mail.status;'
            WHEN code = 'key_missing' THEN 'SELECT key_state, hint FROM kliv_mail.status;'
            WHEN code = 'bounce_mailbox' THEN 'SELECT * FROM kliv_mail.test_bounce_mailbox();'
            WHEN code IN ('account_trouble', 'untested') THEN format('SELECT * FROM kliv_mail.test_smtp(account => %L);', account)
            WHEN code IN ('next', 'sending') AND message_id IS NOT NULL THEN format('SELECT kliv_mail.wait(%s);', message_id)
            WHEN message_id IS NULL OR code IN ('limit_zero', 'hour_used', 'day_used', 'database_day_used', 'rolling_used', 'in_line', 'provider_limit')
                THEN format('SELECT window_name, used, quota, remaining, resets_at, queued FROM kliv_mail.usage WHERE account = %L;', account)
            ELSE format('SELECT recipient, status, reason, hint, last_reply FROM kliv_mail.deliveries WHERE message_id = %s;', message_id) END;
        cures := code = 'untested';
        safe := true;
        needs_input := '{}';
    END IF;
END;
$$;

-- What stops a mail now that was stopped or has expired, where it is one that the caller sees; of an
-- address that had none of the caller's it tells nothing.
CREATE FUNCTION kliv_mail.__suppressed_now(p_caller name, p_message bigint, p_recipient text) RETURNS TABLE (reason text, hint text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY
        SELECT s.reason, s.hint
        FROM kliv_mail._message AS m JOIN kliv_mail._delivery AS d ON d.message_id = m.id,
             kliv_mail._suppressed(d.recipient, d.priority, m.topic, kliv_mail._now()) AS s
        WHERE m.id = p_message AND d.recipient = p_recipient AND d.status IN ('suppressed', 'expired')
          AND (has_table_privilege(p_caller, 'kliv_mail._sees_all', 'SELECT')
               OR coalesce(pg_has_role(p_caller, to_regrole(quote_ident(m.sender_role))::oid, 'MEMBER'), false))
        LIMIT 1;
END;
$$;

CREATE FUNCTION kliv_mail._suppressed_now(p_message bigint, p_recipient text) RETURNS TABLE (reason text, hint text)
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C STABLE SET search_path = pg_catalog, pg_temp;

-- Why a message has not arrived, one row for each reason.
CREATE FUNCTION kliv_mail._next_step_of(p_message bigint)
RETURNS TABLE (code text, problem text, statement text, cures boolean, safe boolean, needs_input text[], retries_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    d record;
    v_reason text;
    v_hint text;
BEGIN
    IF NOT EXISTS (SELECT FROM kliv_mail.messages AS m WHERE m.id = p_message) THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('message_id: there is no message %s of yours', p_message),
            HINT = 'SELECT id, subject FROM kliv_mail.messages; lists them.';
    END IF;
    FOR d IN
        SELECT v.code, v.status, v.account, v.reason, v.hint, count(*) AS n, min(v.recipient) AS recipient, min(v.next_attempt_at) AS retries_at
        FROM kliv_mail.deliveries AS v
        WHERE v.message_id = p_message AND v.status NOT IN ('sent', 'delivered')
        GROUP BY v.code, v.status, v.account, v.reason, v.hint ORDER BY count(*) DESC
    LOOP
        code := d.code;
        -- What stopped it may have ended, by unsuppress() or by its time, and something else may stop the next one; the mail has ended, too.
        v_reason := NULL;
        IF code = 'expired' OR code = 'suppressed' AND d.hint ~ 'unsuppress' THEN
            SELECT s.reason, s.hint INTO v_reason, v_hint FROM kliv_mail._suppressed_now(p_message, d.recipient) AS s;
        END IF;
        IF code = 'suppressed' AND d.hint ~ 'unsuppress' THEN
            d.reason := coalesce(v_reason, d.reason);
            d.hint := coalesce(v_hint, 'That has ended, and what was stopped stays so: send it anew.');
        ELSIF v_reason IS NOT NULL THEN
            d.hint := format('Now %s, so that it cannot be tried again. %s', v_reason, v_hint);
        END IF;
        problem := kliv_mail._with_cure(format('%s%s is %s: %s', d.recipient,
            CASE WHEN d.n > 1 THEN format(' (and %s others)', d.n - 1) ELSE '' END, d.status, d.reason), d.hint);
        SELECT c.statement, c.cures, c.safe, c.needs_input INTO statement, cures, safe, needs_input
        FROM kliv_mail._cure(d.code, d.hint, d.account, p_message) AS c;
        cures := cures AND v_reason IS NULL;
        retries_at := d.retries_at;
        RETURN NEXT;
    END LOOP;
    IF NOT FOUND THEN
        code := 'sent';
        problem := 'nothing: the server has accepted every copy';
        statement := format('SELECT recipient, status, last_reply FROM kliv_mail.deliveries WHERE message_id = %s;', p_message);
        cures := false;
        safe := true;
        needs_input := '{}';
        RETURN NEXT;
    END IF;
END;
$$;

CREATE FUNCTION kliv_mail.next_step(message_id bigint DEFAULT NULL)
RETURNS TABLE (code text, problem text, statement text, cures boolean, safe boolean, needs_input text[], retries_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    p record;
    a record;
    u record;
    v_account text := kliv_mail._default_account();
    v_hint text;
    v_platform boolean := false;
BEGIN
    IF message_id IS NOT NULL THEN
        RETURN QUERY SELECT * FROM kliv_mail._next_step_of(next_step.message_id);
        RETURN;
    ELSIF NOT has_table_privilege('kliv_mail._sees_all', 'SELECT') THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied for what is missing: it is about accounts and settings',
            HINT = format('SELECT * FROM kliv_mail.next_step(id); tells of a mail of yours, and SELECT kliv_mail.grant_read(%L); lets the role see the rest.', current_user);
    END IF;
    SELECT * INTO p FROM kliv_mail._machinery() AS m;
    SELECT * INTO a FROM kliv_mail.smtp_settings AS s WHERE s.account = v_account;
    SELECT h.* INTO u FROM kliv_mail._account_holds() AS h WHERE h.account = v_account;
    IF p.code IS NOT NULL THEN
        code := p.code;
        problem := p.reason;
        v_hint := p.hint;
    ELSIF a.status = 'key missing' THEN
        code := 'key_missing';
        problem := a.status_detail;
        v_hint := (SELECT s.hint FROM kliv_mail.status AS s);
        retries_at := nullif(u.blocked_until, 'infinity');
    ELSIF u.held_by IN ('restore', 'paused') OR (u.held_by IS NOT NULL AND v_account = 'custom') THEN
        code := u.code;
        problem := u.reason;
        v_hint := u.hint;
        retries_at := nullif(coalesce(u.blocked_until, u.opens_at), 'infinity');
    ELSIF v_account = 'platform' THEN
        -- Whatever troubles the platform's account, one's own provider is the cure.
        v_platform := true;
        code := CASE WHEN u.held_by = 'account' THEN u.code ELSE 'platform_only' END;
        problem := rtrim(CASE WHEN u.held_by IS DISTINCT FROM 'account' THEN 'mail goes by the platform''s server, which is held to a few a day'
                              WHEN u.hint ~ 'configure_smtp' THEN u.reason
                              ELSE kliv_mail._with_cure(u.reason, u.hint) END, '.')
            || '. Save an account of your own like this (SELECT name, required, example FROM kliv_mail.providers; has the other providers)';
        retries_at := CASE WHEN u.held_by = 'account' THEN nullif(u.blocked_until, 'infinity') END;
    ELSIF a.status = 'untested' THEN
        code := 'untested';
        problem := coalesce(a.status_detail, 'the account is not tested');
    ELSIF EXISTS (SELECT FROM kliv_mail._account_holds() AS h JOIN kliv_mail._accounts() AS x ON x.name = h.account
                  WHERE x.own AND x.in_use AND h.held_by IS NOT NULL) THEN
        -- One of the further accounts.
        SELECT h.* INTO u FROM kliv_mail._account_holds() AS h JOIN kliv_mail._accounts() AS x ON x.name = h.account
        WHERE x.own AND x.in_use AND h.held_by IS NOT NULL
        ORDER BY h.held_by = 'quota', x.route_order, x.name LIMIT 1;
        v_account := u.account;
        code := u.code;
        problem := format('the account %I: ', u.account) || u.reason;
        v_hint := u.hint;
        retries_at := nullif(coalesce(u.blocked_until, u.opens_at), 'infinity');
    ELSIF EXISTS (SELECT FROM kliv_mail._bad_reputations()) THEN
        SELECT r.account, CASE r.stage WHEN 'paused' THEN 'marketing_paused' ELSE 'reputation_warning' END, r.reason, r.hint
        INTO v_account, code, problem, v_hint FROM kliv_mail._bad_reputations() AS r LIMIT 1;
    ELSIF EXISTS (SELECT FROM kliv_mail._mailbox_trouble()) THEN
        SELECT 'bounce_mailbox', t.reason, t.hint, t.retries_at INTO code, problem, v_hint, retries_at FROM kliv_mail._mailbox_trouble() AS t;
    ELSIF p.last_error IS NOT NULL THEN
        code := 'sender_error';
        problem := 'the sender met an error: ' || p.last_error;
    ELSE
        code := 'ok';
        problem := 'nothing: mail can be sent';
    END IF;
    SELECT c.statement, c.cures, c.safe, c.needs_input INTO statement, cures, safe, needs_input
    FROM kliv_mail._cure(CASE WHEN v_platform THEN 'platform_not_configured' ELSE next_step.code END, v_hint, v_account, NULL) AS c;
    IF code = 'ok' THEN
        statement := 'SELECT kliv_mail.send(''you@example.com'', ''Hello'', ''It works'');';
        cures := false;
        safe := false;
        needs_input := '{recipients}';
    ELSE
        problem := kliv_mail._with_cure(problem, v_hint);
    END IF;
    RETURN NEXT;
END;
$$;
COMMENT ON FUNCTION kliv_mail.next_step(bigint) IS
$$What is missing, in one row, and the statement for it; with a message's id: why that mail has not arrived, one row for each reason.
code: a word that stays the same, for programs (ok or sent: nothing is wrong); problem: in plain words, with what is to be done outside of SQL; statement: run it; cures: true, it ends the problem, false, it shows more, or waits; safe: true, it may be run without asking anybody, false, it sends, spends, restarts or undoes what a person decided; needs_input: its arguments to fill in first; retries_at: when it is tried again by itself.
Errors: 22023 a message that is not there or not yours, 42501 without an id for a role that may not see the settings.
Example: SELECT * FROM kliv_mail.next_step();
Example: SELECT * FROM kliv_mail.next_step(1);$$;
