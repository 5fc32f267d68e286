-- Support's first question: what became of the mails to an address?

CREATE FUNCTION kliv_mail._history(p_caller name, p_address text, p_max integer)
RETURNS TABLE (at timestamptz, message_id bigint, subject text, status text, reason text, hint text, suppressed text, code text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    -- Whoever joins whole tables reads all messages for the few that are asked for.
    SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := kliv_mail._now();
    v_address text := kliv_mail._one_address((SELECT a.address FROM kliv_mail.parse_addresses(kliv_mail.mailbox(p_address)) AS a));
    v_sees_all boolean := has_table_privilege(p_caller, 'kliv_mail._sees_all', 'SELECT');
    v_suppressed text := (SELECT string_agg(s.scope || coalesce(': ' || s.reason, ''), '; ' ORDER BY s.scope) FROM kliv_mail._suppression AS s
                          WHERE s.address IN (v_address, '@' || split_part(v_address, '@', -1)) AND (s.expires_at IS NULL OR s.expires_at > v_now));
    v_ids bigint[];
BEGIN
    IF p_max IS NULL OR p_max NOT BETWEEN 1 AND 1000 THEN
        RAISE invalid_parameter_value USING MESSAGE = format('max: %s is not from 1 to 1000', coalesce(p_max::text, 'NULL')), HINT = 'The default is 20.';
    END IF;
    -- By the address's index where they are finished; what waits is read once.
    v_ids := ARRAY(
        SELECT x.message_id FROM (
            (SELECT d.message_id, d.created_at FROM kliv_mail._delivery AS d JOIN kliv_mail._message AS m ON m.id = d.message_id
             WHERE kliv_mail._goes_to(d.recipient, v_address)
               AND (v_sees_all OR coalesce(pg_has_role(p_caller, to_regrole(quote_ident(m.sender_role))::oid, 'MEMBER'), false))
             ORDER BY d.created_at DESC LIMIT p_max)
            UNION ALL
            (SELECT o.message_id, o.created_at FROM kliv_mail._outbox AS o JOIN kliv_mail._message AS m ON m.id = o.message_id
             WHERE lower(o.recipient COLLATE "C") = v_address
               AND (v_sees_all OR coalesce(pg_has_role(p_caller, to_regrole(quote_ident(m.sender_role))::oid, 'MEMBER'), false))
             ORDER BY o.created_at DESC LIMIT p_max)) AS x (message_id, created_at)
        ORDER BY x.created_at DESC LIMIT p_max);
    RETURN QUERY
        SELECT coalesce(v.finished_at, v.created_at), v.message_id, v.subject, v.status, v.reason, v.hint, v_suppressed, v.code
        FROM kliv_mail.deliveries AS v
        WHERE v.message_id = ANY (v_ids) AND lower(v.recipient COLLATE "C") = v_address
        ORDER BY v.created_at DESC, v.message_id DESC LIMIT p_max;
END;
$$;

CREATE FUNCTION kliv_mail.history(address text, max integer DEFAULT 20)
RETURNS TABLE (at timestamptz, message_id bigint, subject text, status text, reason text, hint text, suppressed text, code text)
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C STABLE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.history(text, integer) IS
$$The last mails to an address, in whatever case it is written and with a name or without, newest first: yours or, with grant_read or grant_admin, everybody's. at: when it was finished, or queued. status, reason, hint and code as in deliveries; suppressed: the scopes in which the address gets no mail now, with their reasons; NULL: none. max: 1 to 1000.
Errors: 22023 not an address, or max.
Example: SELECT * FROM kliv_mail.history('Ana@Example.com');$$;
