-- What is to be done next, for people and agents that have nothing but SQL, made
-- from the views' own reasons and hints, so that it cannot say something else.

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

-- The statement that shows more of an account's trouble, and ends it once it is over.
CREATE FUNCTION kliv_mail._look_at(held_by text, account text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE WHEN held_by = 'key' THEN 'SELECT key_state, hint FROM kliv_mail.status;'
                WHEN held_by = 'account' AND account <> 'platform' THEN format('SELECT * FROM kliv_mail.test_smtp(account => %L);', account) END;
END;

CREATE FUNCTION kliv_mail.next_step(message_id bigint DEFAULT NULL) RETURNS TABLE (problem text, statement text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    p record;
    a record;
    u record;
    d record;
    custom boolean;
BEGIN
    IF message_id IS NOT NULL THEN
        -- Why this mail has not arrived, one row for each reason.
        IF NOT EXISTS (SELECT FROM kliv_mail.messages AS m WHERE m.id = next_step.message_id) THEN
            RAISE invalid_parameter_value USING
                MESSAGE = format('message_id: there is no message %s of yours', message_id),
                HINT = 'SELECT id, subject FROM kliv_mail.messages; lists them.';
        END IF;
        FOR d IN
            SELECT v.status, v.held_by, v.account, v.reason, v.hint, count(*) AS n, min(v.recipient) AS recipient
            FROM kliv_mail.deliveries AS v
            WHERE v.message_id = next_step.message_id AND v.status NOT IN ('sent', 'delivered')
            GROUP BY v.status, v.held_by, v.account, v.reason, v.hint ORDER BY count(*) DESC
        LOOP
            problem := kliv_mail._with_cure(format('%s%s is %s: %s', d.recipient,
                CASE WHEN d.n > 1 THEN format(' (and %s others)', d.n - 1) ELSE '' END, d.status, d.reason), d.hint);
            statement := coalesce(kliv_mail._statement_of(d.hint), kliv_mail._look_at(d.held_by, d.account),
                format('SELECT recipient, status, reason, hint, last_reply FROM kliv_mail.deliveries WHERE message_id = %s;', message_id));
            RETURN NEXT;
        END LOOP;
        IF NOT FOUND THEN
            problem := 'nothing: the server has accepted every copy';
            statement := format('SELECT recipient, status, last_reply FROM kliv_mail.deliveries WHERE message_id = %s;', message_id);
            RETURN NEXT;
        END IF;
        RETURN;
    END IF;

    SELECT * INTO p FROM kliv_mail._machinery() AS m;
    IF p.code IS NOT NULL THEN
        problem := kliv_mail._with_cure(p.reason, p.hint);
        statement := coalesce(kliv_mail._statement_of(p.hint), 'SELECT * FROM kliv_mail.status;');
        RETURN NEXT;
        RETURN;
    END IF;
    custom := kliv_mail._default_account() = 'custom';
    SELECT * INTO a FROM kliv_mail.smtp_settings AS s WHERE s.account = kliv_mail._default_account();
    SELECT h.* INTO u FROM kliv_mail._account_holds() AS h WHERE h.account = a.account;
    IF a.status = 'key missing' THEN
        problem := a.status_detail;
        statement := 'SELECT key_state, hint FROM kliv_mail.status;';
    ELSIF u.held_by IN ('restore', 'paused') OR (u.held_by IS NOT NULL AND custom) THEN
        problem := kliv_mail._with_cure(u.reason, u.hint);
        statement := coalesce(kliv_mail._statement_of(u.hint), kliv_mail._look_at(u.held_by, a.account),
                              format('SELECT * FROM kliv_mail.usage WHERE account = %L;', a.account));
    ELSIF NOT custom AND u.held_by = 'account' THEN
        problem := rtrim(CASE WHEN u.hint ~ 'configure_smtp' THEN u.reason ELSE kliv_mail._with_cure(u.reason, u.hint) END, '.')
            || '. Save an account of your own like this (SELECT name, required, example FROM kliv_mail.providers; has the other providers)';
        statement := (SELECT v.example FROM kliv_mail.providers AS v ORDER BY v.name LIMIT 1);
    ELSIF NOT custom THEN
        problem := 'mail goes by the platform''s server, which is held to a few a day; save an account of your own like this (SELECT name, required, example FROM kliv_mail.providers; has the other providers)';
        statement := (SELECT v.example FROM kliv_mail.providers AS v ORDER BY v.name LIMIT 1);
    ELSIF a.status = 'untested' THEN
        problem := coalesce(a.status_detail, 'the account is not tested');
        statement := 'SELECT * FROM kliv_mail.test_smtp();';
    ELSIF EXISTS (SELECT FROM kliv_mail._account_holds() AS h JOIN kliv_mail._accounts() AS x ON x.name = h.account
                  WHERE x.own AND x.in_use AND h.held_by IS NOT NULL) THEN
        -- One of the further accounts.
        SELECT h.* INTO u FROM kliv_mail._account_holds() AS h JOIN kliv_mail._accounts() AS x ON x.name = h.account
        WHERE x.own AND x.in_use AND h.held_by IS NOT NULL
        ORDER BY h.held_by = 'quota', x.route_order, x.name LIMIT 1;
        problem := format('the account %I: ', u.account) || kliv_mail._with_cure(u.reason, u.hint);
        statement := coalesce(kliv_mail._statement_of(u.hint), kliv_mail._look_at(u.held_by, u.account),
                              format('SELECT * FROM kliv_mail.usage WHERE account = %L;', u.account));
    ELSIF p.last_error IS NOT NULL THEN
        problem := 'the sender met an error: ' || p.last_error;
        statement := 'SELECT * FROM kliv_mail.status;';
    ELSE
        problem := 'nothing: mail can be sent';
        statement := 'SELECT kliv_mail.send(''you@example.com'', ''Hello'', ''It works'');';
    END IF;
    RETURN NEXT;
END;
$$;
COMMENT ON FUNCTION kliv_mail.next_step(bigint) IS
$$What is missing, in one row, and the statement that cures it; with a message's id: why that mail has not arrived. Errors: 22023 a message that is not there or not yours.
Example: SELECT * FROM kliv_mail.next_step();
Example: SELECT * FROM kliv_mail.next_step(1);$$;
