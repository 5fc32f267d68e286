-- Why has an address not got its mail?

CREATE FUNCTION kliv_mail.next_step(address text)
RETURNS TABLE (code text, problem text, statement text, cures boolean, safe boolean, needs_input text[], retries_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    h record;
    v_any boolean := false;
    v_said text[] := '{}';
BEGIN
    -- A number in quotes is a message's.
    IF next_step.address ~ '^[0-9]{1,18}$' THEN
        RETURN QUERY SELECT * FROM kliv_mail.next_step(next_step.address::bigint);
        RETURN;
    END IF;
    FOR h IN SELECT DISTINCT x.message_id, x.subject FROM kliv_mail.history(next_step.address, 20) AS x
             WHERE x.status NOT IN ('sent', 'delivered') ORDER BY x.message_id DESC LOOP
        v_any := true;
        FOR code, problem, statement, cures, safe, needs_input, retries_at IN
            SELECT n.code, format('message %s, "%s": %s', h.message_id, left(h.subject, 60), n.problem), n.statement, n.cures, n.safe, n.needs_input, n.retries_at
            FROM kliv_mail._next_step_of(h.message_id) AS n LOOP
            v_said := v_said || statement;
            RETURN NEXT;
        END LOOP;
    END LOOP;
    -- Who may see the list is told of an address that is on it, whether it had mail or not.
    IF has_table_privilege('kliv_mail.suppressions', 'SELECT') THEN
        FOR h IN SELECT s.address, s.scope, s.reason,
                        format('SELECT kliv_mail.unsuppress(%L%s);', s.address, CASE WHEN s.scope <> 'all' THEN ', ' || quote_literal(s.scope) END) AS statement
                 FROM kliv_mail.parse_addresses(kliv_mail.mailbox(next_step.address)) AS a
                 JOIN kliv_mail.suppressions AS s ON s.address IN (lower(a.address COLLATE "C"), '@' || lower(split_part(a.address, '@', -1) COLLATE "C"))
                 ORDER BY s.address, s.scope LOOP
            CONTINUE WHEN h.statement = ANY (v_said);       -- by a mail that it stopped
            v_any := true;
            code := 'suppressed';
            problem := format('%s gets no %s: %s', h.address, CASE h.scope WHEN 'all' THEN 'mail' WHEN 'marketing' THEN 'marketing mail'
                              ELSE format('mail of the topic "%s"', h.scope) END, coalesce(h.reason, 'it is suppressed'));
            statement := h.statement;
            cures := true;
            safe := false;
            needs_input := '{}';
            retries_at := NULL;
            RETURN NEXT;
        END LOOP;
    END IF;
    IF NOT v_any THEN
        code := 'ok';
        problem := format('nothing waits for %s, and none of the last mails to it failed', next_step.address);
        statement := format('SELECT * FROM kliv_mail.history(%L);', next_step.address);
        cures := false;
        safe := true;
        needs_input := '{}';
        RETURN NEXT;
    END IF;
END;
$$;
COMMENT ON FUNCTION kliv_mail.next_step(text) IS
$$The same for an address, in whatever case it is written: why its last 20 mails have not arrived, one row for each message and reason, and for who may read suppressions a row for each of the address's own.
Errors: 22023 not an address.
Example: SELECT * FROM kliv_mail.next_step('ana@example.com');$$;
