-- The application's feed: what became of its mail, in an order that is safe to follow.

CREATE FUNCTION kliv_mail._outcomes(p_caller name, p_after text, p_max integer)
RETURNS TABLE (cursor text, at timestamptz, message_id bigint, recipient text, status text, bounce_type text, reason text, tags text[], metadata jsonb)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
    SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    -- Of the one snapshot that all of this function reads by (39_change.sql).
    v_until bigint := kliv_mail._era() + pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
    v_change bigint := 0;
    v_id bigint := 0;
    v_all boolean := has_table_privilege(p_caller, 'kliv_mail._sees_all', 'SELECT');
BEGIN
    IF p_after IS NOT NULL THEN
        IF p_after !~ '^[0-9]{1,18}-[0-9]{1,18}$' THEN
            RAISE invalid_parameter_value USING MESSAGE = format('after: "%s" is not a cursor', left(p_after, 100)),
                HINT = 'Give the last row''s cursor, or NULL to begin.';
        END IF;
        v_change := split_part(p_after, '-', 1)::bigint;
        v_id := split_part(p_after, '-', 2)::bigint;
        IF v_change >= v_until THEN
            RAISE invalid_parameter_value USING MESSAGE = format('after: this database has not come as far as "%s"', p_after),
                HINT = 'It is of another database, or was given before this one was recovered to an earlier time: begin with an older cursor, or NULL.';
        END IF;
    END IF;
    IF p_max IS NULL OR p_max NOT BETWEEN 1 AND 100000 THEN
        RAISE invalid_parameter_value USING MESSAGE = format('max: %s is not within 1 and 100000', coalesce(p_max::text, 'NULL'));
    END IF;
    RETURN QUERY
        SELECT x.changed || '-' || x.id, x.at, x.message_id, x.recipient, x.status, x.bounce_type, x.reason, x.tags, x.metadata
        FROM ((SELECT d.changed, d.id, coalesce(d.reported_at, d.finished_at) AS at, d.message_id, d.recipient, d.status, d.bounce_type,
                      CASE WHEN d.status <> 'delivered' THEN d.reason END AS reason, m.tags, m.metadata
               FROM kliv_mail._delivery AS d JOIN kliv_mail._message AS m ON m.id = d.message_id
               WHERE (d.changed, d.id) > (v_change, v_id) AND d.changed < v_until
                 AND (v_all OR coalesce(pg_has_role(p_caller, to_regrole(quote_ident(m.sender_role))::oid, 'MEMBER'), false))
               ORDER BY d.changed, d.id LIMIT p_max)
              UNION ALL
              (SELECT o.doubted, o.id, o.doubted_at, o.message_id, o.recipient, 'in_doubt', NULL, o.last_reason, m.tags, m.metadata
               FROM kliv_mail._outbox AS o JOIN kliv_mail._message AS m ON m.id = o.message_id
               WHERE o.doubtful AND (o.doubted, o.id) > (v_change, v_id) AND o.doubted < v_until
                 AND (v_all OR coalesce(pg_has_role(p_caller, to_regrole(quote_ident(m.sender_role))::oid, 'MEMBER'), false))
               ORDER BY o.doubted, o.id LIMIT p_max)) AS x
        ORDER BY x.changed, x.id LIMIT p_max;
END;
$$;

CREATE FUNCTION kliv_mail.outcomes(after text DEFAULT NULL, max integer DEFAULT 1000)
RETURNS TABLE (cursor text, at timestamptz, message_id bigint, recipient text, status text, bounce_type text, reason text, tags text[], metadata jsonb)
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C STABLE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.outcomes IS
$$What became of your messages (with grant_read or grant_admin: of all), in order: each delivery that is sent, delivered, bounced, complained, failed, suppressed, cancelled, expired or in_doubt since the cursor after (NULL: from the beginning), at most max (1 to 100000). Give the last row's cursor next time: nothing is missed and nothing comes twice, whoever commits when; one that has changed several times since comes once, as it is. tags and metadata are those of send().
What is new shows once every transaction has ended that was writing on the server when it was committed, in whatever database; a transaction left open, or prepared, holds it up. With kliv_mail.notify, NOTIFY kliv_mail says that there is news. History older than kliv_mail.retention is gone.
Errors: 22023 not a cursor, one of another database or of a future that was recovered from, or max out of range.
Example: SELECT * FROM kliv_mail.outcomes(NULL, 100);$$;
