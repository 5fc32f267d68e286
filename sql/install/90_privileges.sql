-- Who may what.  Everything is taken from everybody but the owner, also what
-- default privileges added; grant_*() give back what the README names.
-- The lists of functions and views stand in _grantable() alone.

-- kind: f = function, v = view.
CREATE FUNCTION kliv_mail._grantable() RETURNS TABLE (grant_name text, kind text, object text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT g.grant_name, g.kind, g.object FROM (VALUES
        ('send', 'f', 'send'), ('send', 'f', 'attach'), ('send', 'f', 'attach_text'), ('send', 'f', 'attachments'),
        ('send', 'f', '_known_names'), ('send', 'f', '_text_of'), ('send', 'f', '_addresses_of'), ('send', 'f', '_time_of'), ('send', 'f', '_nearest'), ('send', 'f', '_distance'), ('send', 'f', 'mailbox'),
        ('send', 'f', 'is_address'), ('send', 'f', 'parse_addresses'), ('send', 'f', 'classify_reply'), ('send', 'f', 'parse_bounce'),
        ('send', 'f', 'send_template'), ('send', 'f', 'send_template_batch'), ('send', 'v', 'templates'),
        ('read', 'v', 'templates'), ('read', 'v', 'template_versions'), ('send', 'f', 'render'), ('read', 'f', 'render'), ('send', 'f', 'raw_message'), ('send', 'f', 'preview'), ('send', 'f', 'csv'), ('send', 'f', 'html_table'),
        ('send', 'f', 'cancel'), ('send', 'f', 'retry'), ('send', 'f', 'reschedule'), ('send', 'f', 'wait'), ('send', 'f', 'outcomes'), ('read', 'f', 'outcomes'), ('read', 'f', 'delivery_stats'),
        ('send', 'v', 'messages'), ('send', 'v', 'deliveries'), ('send', 'v', 'events'), ('send', 'v', 'usage'),
        ('send', 'f', '_now'), ('send', 'f', '_origin'), ('send', 'f', '_default_account'), ('send', 'f', '_process_status'),
        ('send', 'f', '_machinery'), ('send', 'f', '_cure_of_hold'), ('send', 'f', '_code_of_hold'), ('read', 'f', '_code_of_hold'), ('read', 'f', '_cure_of_hold'), ('send', 'f', '_more_worker_slots'), ('read', 'f', '_machinery'), ('read', 'f', '_more_worker_slots'),
        ('send', 'f', '_account_holds'), ('send', 'f', '_reputation_hint'), ('read', 'f', '_reputation_hint'), ('read', 'f', '_bad_reputations'), ('read', 'f', '_mailbox_held'), ('read', 'f', '_mailbox_trouble'), ('read', 'v', 'bounce_mailbox'), ('send', 'f', '_line'), ('send', 'f', '_line_end'), ('send', 'f', '_usage_now'),
        ('read', 'f', 'parse_addresses'), ('read', 'f', 'classify_reply'), ('read', 'f', 'parse_bounce'), ('read', 'f', 'is_address'), ('read', 'f', 'mailbox'),
        ('read', 'v', 'messages'), ('read', 'v', 'deliveries'), ('read', 'v', 'events'), ('read', 'v', 'usage'),
        ('read', 'v', 'status'), ('read', 'v', 'suppressions'), ('read', 'v', 'topics'), ('read', 'v', 'overview'), ('read', 'f', 'help'), ('send', 'f', 'help'), ('send', 'f', 'history'), ('read', 'f', 'history'), ('read', 'f', '_nearest'), ('read', 'f', '_distance'), ('read', 'v', 'smtp_settings'), ('read', 'v', 'providers'), ('read', 'v', '_sees_all'),
        ('read', 'f', '_now'), ('read', 'f', '_origin'), ('read', 'f', '_default_account'), ('read', 'f', '_process_status'),
        ('read', 'f', '_account_holds'), ('read', 'f', '_line'), ('read', 'f', '_line_end'), ('read', 'f', '_usage_now'),
        ('read', 'f', '_availability'), ('read', 'f', '_accounts'), ('read', 'f', '_key_state'), ('read', 'f', '_providers'),
        ('read', 'f', '_smtp_settings'), ('read', 'f', 'describe'), ('send', 'f', 'describe'), ('read', 'f', 'skill'), ('send', 'f', 'skill'), ('read', 'f', 'next_step'), ('send', 'f', 'next_step'),
        ('send', 'f', '_effects'), ('read', 'f', '_effects'), ('send', 'f', '_plain_schema_of'), ('read', 'f', '_plain_schema_of'), ('send', 'f', '_schema_of'), ('read', 'f', '_schema_of'), ('send', 'f', '_said_of'), ('read', 'f', '_said_of'), ('send', 'f', '_first_sentence'), ('read', 'f', '_first_sentence'), ('send', 'f', '_describe_function'), ('read', 'f', '_describe_function'), ('send', 'f', '_example_of'), ('read', 'f', '_example_of'), ('send', 'f', '_common_mistakes'), ('read', 'f', '_common_mistakes'),
        ('ingest', 'f', 'unsubscribe'), ('ingest', 'f', 'ingest_bounce'), ('ingest', 'f', 'ingest_webhook'), ('read', 'f', '_statement_of'),
        ('admin', 'f', '_sealing_host'), ('admin', 'f', '_provider_host'),
        ('read', 'f', '_with_cure'), ('read', 'f', '_inputs_of'), ('read', 'f', '_cure'), ('read', 'f', '_next_step_of'), ('read', 'f', '_suppressed_now'), ('send', 'f', '_suppressed_now'),
        ('send', 'f', '_statement_of'), ('send', 'f', '_with_cure'), ('send', 'f', '_inputs_of'), ('send', 'f', '_cure'), ('send', 'f', '_next_step_of'),
        ('send', 'f', '_providers'), ('send', 'v', 'providers')
    ) AS g (grant_name, kind, object)
    UNION ALL
    -- The door: http_request() runs as its caller, and so does what it calls.
    SELECT x.grant_name, 'f', trim(d.object, E' \n')
    FROM (VALUES
        ('read ingest', 'http_request, render, _http_request, _read_request, _form_fields, _path_segments, _percent_decoded, _preferred_language, _is_cross_site,
            _request_form, _door_answer, _door_routes, _door_may, _door_problem, _door_failure, _door_page, _door_texts, _door_brand,
            _door_response, _door_style, _door_ink, _door_zone'),
        ('ingest', '_door_leave, _door_recipient, _door_choose, _door_hook'),
        ('read', '_door_account, _door_account_data, _door_chart, _door_document, _door_events, _door_failed_steps, _door_field, _door_figures, _door_health,
            _door_latest_events, _door_limits, _door_lines, _door_mail, _door_message, _door_message_change, _door_message_id, _door_messages, _door_next_step, _door_number,
            _door_overview, _door_pause, _door_preview, _door_provider, _door_providers, _door_publish, _door_reset, _door_resume, _door_rows, _door_search,
            _door_sender, _door_settings, _door_status, _door_suppressions, _door_template, _door_template_delete, _door_templates, _door_test, _door_time,
            _door_tone, _door_topic_delete, _door_topics, _door_unsuppress, _door_version, _door_window')) AS o (grants, objects),
        string_to_table(o.grants, ' ') AS x (grant_name), string_to_table(o.objects, ',') AS d (object);
END;

CREATE FUNCTION kliv_mail._grant(p_caller name, p_role name, p_grant text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    g record;
BEGIN
    IF to_regrole(quote_ident(p_role)) IS NULL THEN
        RAISE undefined_object USING MESSAGE = format('role: %s', CASE WHEN p_role IS NULL THEN 'is NULL' ELSE format('"%s" does not exist', p_role) END), HINT = 'CREATE ROLE makes one.';
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA kliv_mail TO %I', p_role);
    FOR g IN
        SELECT DISTINCT c.kind, c.object_name FROM (
            SELECT x.kind, CASE x.kind WHEN 'f' THEN f.signature ELSE format('kliv_mail.%I', x.object) END AS object_name
            FROM kliv_mail._grantable() AS x
            LEFT JOIN LATERAL (SELECT p.oid::regprocedure::text AS signature FROM pg_proc AS p
                               WHERE p.pronamespace = 'kliv_mail'::regnamespace AND p.proname = x.object) AS f ON x.kind = 'f'
            WHERE x.grant_name = p_grant
            UNION ALL
            -- An administrator may all that is public, and what the views need.
            SELECT 'f', p.oid::regprocedure::text FROM pg_proc AS p
            WHERE p_grant = 'admin' AND p.pronamespace = 'kliv_mail'::regnamespace
              AND (p.proname !~ '^_' OR p.proname IN (SELECT y.object FROM kliv_mail._grantable() AS y WHERE y.kind = 'f'))
            UNION ALL
            SELECT 'v', c.oid::regclass::text FROM pg_class AS c
            WHERE p_grant = 'admin' AND c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind = 'v'
              AND (c.relname !~ '^_' OR c.relname = '_sees_all')) AS c
    LOOP
        EXECUTE CASE g.kind WHEN 'f' THEN format('GRANT EXECUTE ON FUNCTION %s TO %I', g.object_name, p_role)
                            ELSE format('GRANT SELECT ON %s TO %I', g.object_name, p_role) END;
    END LOOP;
    PERFORM kliv_mail._log_event('access_granted', NULL, format('grant_%s to %I', p_grant, p_role), NULL, p_caller);
END;
$$;

CREATE FUNCTION kliv_mail._grant_send(p_caller name, p_role name) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC SELECT kliv_mail._grant(p_caller, p_role, 'send'); END;

CREATE FUNCTION kliv_mail.grant_send(role name) RETURNS void
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.grant_send IS 'Lets the role send mail and see, cancel and retry its own (and its member roles'') messages. Errors: 42704 no such role.
Example: SELECT kliv_mail.grant_send(''app'');';

CREATE FUNCTION kliv_mail._grant_ingest(p_caller name, p_role name) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC SELECT kliv_mail._grant(p_caller, p_role, 'ingest'); END;

CREATE FUNCTION kliv_mail.grant_ingest(role name) RETURNS void
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.grant_ingest IS 'Lets the role hand in what recipients, mail servers and providers say: unsubscribe(), ingest_bounce() and ingest_webhook(). The token or the signature is the authority. Errors: 42704 no such role.
Example: SELECT kliv_mail.grant_ingest(''hooks'');';

CREATE FUNCTION kliv_mail._grant_admin(p_caller name, p_role name) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC SELECT kliv_mail._grant(p_caller, p_role, 'admin'); END;

CREATE FUNCTION kliv_mail.grant_admin(role name) RETURNS void
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.grant_admin IS 'Lets the role do everything: settings, all mail, grants. Errors: 42704 no such role.
Example: SELECT kliv_mail.grant_admin(''boss'');';

CREATE FUNCTION kliv_mail._grant_read(p_caller name, p_role name) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC SELECT kliv_mail._grant(p_caller, p_role, 'read'); END;

CREATE FUNCTION kliv_mail.grant_read(role name) RETURNS void
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.grant_read IS 'Lets the role read all views, of all senders, but no bodies. Errors: 42704 no such role.
Example: SELECT kliv_mail.grant_read(''support'');';

CREATE FUNCTION kliv_mail._revoke_access(p_caller name, p_role name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF to_regrole(quote_ident(p_role)) IS NULL THEN
        RAISE undefined_object USING MESSAGE = format('role: %s', CASE WHEN p_role IS NULL THEN 'is NULL' ELSE format('"%s" does not exist', p_role) END);
    END IF;
    EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA kliv_mail FROM %I', p_role);
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA kliv_mail FROM %I', p_role);
    EXECUTE format('REVOKE ALL ON SCHEMA kliv_mail FROM %I', p_role);
    PERFORM kliv_mail._log_event('access_revoked', NULL, format('revoke_access from %I', p_role), NULL, p_caller);
END;
$$;

CREATE FUNCTION kliv_mail.revoke_access(role name) RETURNS void
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.revoke_access IS 'Takes from the role whatever a grant function gave it. Errors: 42704 no such role.
Example: SELECT kliv_mail.revoke_access(''app'');';

-- Walk the members' ACLs and leave the owner alone: default privileges of the
-- installing role may have given anything to anybody.
DO $$
DECLARE
    o record;
BEGIN
    FOR o IN
        SELECT CASE WHEN p.prokind = 'p' THEN 'PROCEDURE ' ELSE 'FUNCTION ' END || p.oid::regprocedure::text AS what,
               g.grantee, p.proowner AS owner
        FROM pg_proc AS p, LATERAL (SELECT DISTINCT x.grantee FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS x) AS g
        WHERE p.pronamespace = 'kliv_mail'::regnamespace
        UNION ALL
        SELECT CASE WHEN c.relkind = 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass::text, g.grantee, c.relowner
        FROM pg_class AS c, LATERAL (SELECT DISTINCT x.grantee FROM aclexplode(c.relacl) AS x) AS g
        WHERE c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind IN ('r', 'v', 'S')
        UNION ALL
        SELECT 'TYPE ' || t.oid::regtype::text, g.grantee, t.typowner
        FROM pg_type AS t, LATERAL (SELECT DISTINCT x.grantee FROM aclexplode(coalesce(t.typacl, acldefault('T', t.typowner))) AS x) AS g
        WHERE t.typnamespace = 'kliv_mail'::regnamespace AND t.typtype = 'c'
          AND (SELECT c.relkind FROM pg_class AS c WHERE c.oid = t.typrelid) = 'c'
        UNION ALL
        SELECT 'SCHEMA ' || n.nspname, g.grantee, n.nspowner
        FROM pg_namespace AS n, LATERAL (SELECT DISTINCT x.grantee FROM aclexplode(n.nspacl) AS x) AS g
        WHERE n.nspname = 'kliv_mail'
    LOOP
        CONTINUE WHEN o.grantee = o.owner;
        EXECUTE format('REVOKE ALL ON %s FROM %s CASCADE', o.what,
                       CASE o.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(o.grantee)) END);
    END LOOP;
END;
$$;
