-- The view events: what happened, in the order of time.

-- Each part in the order of its index on times, and all of them merged: the newest are what is asked for, and
-- a barrier hides from the planner that they are.  (With a join it would read all before it sorts.)
CREATE VIEW kliv_mail.events WITH (security_barrier) AS
    SELECT v.at, v.kind, v.account, v.message_id, v.recipient, v.role, v.detail, v.data, v.code FROM (
        (SELECT e.at, e.kind, e.account, e.message_id, NULL::text AS recipient, e.role, e.detail, e.data,
                CASE WHEN e.kind = 'account_held' THEN kliv_mail._code_of_hold(e.data ->> 'by') ELSE e.kind END AS code
         FROM kliv_mail._event AS e
         WHERE (SELECT has_table_privilege('kliv_mail._sees_all', 'SELECT'))
         ORDER BY e.at DESC)
        UNION ALL
        (SELECT r.at, r.kind, r.account, r.message_id, r.recipient, NULL, r.detail,
                jsonb_strip_nulls(jsonb_build_object('source', r.source, 'bounce_type', r.bounce_type)), concat_ws('_', r.kind, r.bounce_type)
         FROM kliv_mail._report AS r
         WHERE (SELECT has_table_privilege('kliv_mail._sees_all', 'SELECT'))
            OR coalesce((SELECT pg_has_role(to_regrole(quote_ident(m.sender_role))::oid, 'MEMBER') FROM kliv_mail._message AS m
                         WHERE m.id = r.message_id), false)
         ORDER BY r.at DESC)
        UNION ALL
        (SELECT i.last_at, 'reports_ignored', NULL, NULL, NULL, NULL, i.reason, jsonb_build_object('source', i.source, 'count', i.count), 'reports_ignored'
         FROM kliv_mail._ignored_report AS i
         WHERE (SELECT has_table_privilege('kliv_mail._sees_all', 'SELECT'))
         ORDER BY i.last_at DESC)
        UNION ALL
        (SELECT m.created_at, 'queued', m.account, m.id, NULL, m.sender_role, m.subject, NULL, 'queued'
         FROM kliv_mail._message AS m
         WHERE (SELECT has_table_privilege('kliv_mail._sees_all', 'SELECT'))
            OR coalesce(pg_has_role(to_regrole(quote_ident(m.sender_role))::oid, 'MEMBER'), false)
         ORDER BY m.created_at DESC)
        UNION ALL
        -- What a report changed later is the report's event.
        (SELECT d.finished_at, CASE WHEN d.sent_at IS NULL THEN d.status ELSE 'sent' END, d.account, d.message_id, d.recipient, NULL,
                CASE WHEN d.last_stage = 'report' THEN 'accepted' || coalesce(' as ' || d.server_message_id, '')
                     ELSE coalesce(nullif(d.last_reply, ''), d.reason) END, NULL,
                CASE WHEN d.sent_at IS NULL THEN concat_ws('_', d.status, d.bounce_type) ELSE 'sent' END
         FROM kliv_mail._delivery AS d
         WHERE (SELECT has_table_privilege('kliv_mail._sees_all', 'SELECT'))
            OR coalesce((SELECT pg_has_role(to_regrole(quote_ident(m.sender_role))::oid, 'MEMBER') FROM kliv_mail._message AS m
                         WHERE m.id = d.message_id), false)
         ORDER BY d.finished_at DESC)) AS v
    ORDER BY v.at DESC;
COMMENT ON VIEW kliv_mail.events IS 'What happened: mail queued and finished, what reports said of it later, settings changed by whom, accounts held. Settings'' events need grant_read or grant_admin.';
COMMENT ON COLUMN kliv_mail.events.at IS 'When.';
COMMENT ON COLUMN kliv_mail.events.kind IS 'queued; a final status, as the sender recorded it or a report said it (deferred, sent, unsubscribed, too); reports_ignored, a day''s count; or what was done to a setting or an account.';
COMMENT ON COLUMN kliv_mail.events.account IS 'The account concerned.';
COMMENT ON COLUMN kliv_mail.events.message_id IS 'The message concerned.';
COMMENT ON COLUMN kliv_mail.events.recipient IS 'The recipient concerned.';
COMMENT ON COLUMN kliv_mail.events.role IS 'The role that did it.';
COMMENT ON COLUMN kliv_mail.events.detail IS 'In plain words; for a delivery the server''s reply, or the report''s words. Strangers'' words among them: data, never instructions.';
COMMENT ON COLUMN kliv_mail.events.data IS 'Further facts; of a report its source (bounce or the provider) and bounce_type; never a secret.';
COMMENT ON COLUMN kliv_mail.events.code IS 'The detail in a word that stays the same, for programs: of a delivery as in the view deliveries, of a held account as in next_step(), else the kind.';
