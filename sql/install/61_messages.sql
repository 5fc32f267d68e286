-- The view messages: what each send() made, and how its deliveries stand.

-- A message's status: its least finished delivery's, or partial when finished ones differ.
CREATE VIEW kliv_mail._message_status AS
    SELECT d.message_id,
           CASE WHEN bool_or(d.waiting) THEN
                    (array_agg(d.status ORDER BY array_position(ARRAY['scheduled', 'queued', 'deferred', 'sending', 'in_doubt'], d.status))
                        FILTER (WHERE d.waiting))[1]
                WHEN min(d.status) = max(d.status) THEN min(d.status)
                ELSE 'partial' END AS status,
           count(*) FILTER (WHERE d.status = 'sent') AS sent,
           count(*) FILTER (WHERE d.status = 'delivered') AS delivered,
           count(*) FILTER (WHERE d.status = 'bounced') AS bounced,
           count(*) FILTER (WHERE d.status = 'complained') AS complained,
           count(*) FILTER (WHERE d.status = 'failed') AS failed,
           count(*) FILTER (WHERE d.status = 'suppressed') AS suppressed,
           count(*) FILTER (WHERE d.status = 'cancelled') AS cancelled,
           count(*) FILTER (WHERE d.status = 'expired') AS expired
    FROM (SELECT w.message_id, w.status, true AS waiting FROM kliv_mail._waiting_now AS w
          UNION ALL
          SELECT f.message_id, f.status, false FROM kliv_mail._delivery AS f) AS d
    GROUP BY d.message_id;

-- What the caller may see of messages.  In the order of the key: a barrier hides from the planner what order is
-- asked for, and the newest are.
CREATE VIEW kliv_mail._seen_messages WITH (security_barrier) AS
    SELECT m.id, m.header_id, m.created_at, m.sender_role, m.message_type, m.template, m.subject, m.from_address, m.recipients, m.tags, m.metadata
    FROM kliv_mail._message AS m
    WHERE (SELECT has_table_privilege('kliv_mail._sees_all', 'SELECT'))
       OR coalesce(pg_has_role(to_regrole(quote_ident(m.sender_role))::oid, 'MEMBER'), false)
    ORDER BY m.id DESC;

-- Outside of the barrier, and with OFFSET 0 not to be made one join, so that the status is found out for those
-- alone that a query shows.
CREATE VIEW kliv_mail.messages AS
    SELECT m.id, CASE WHEN strpos(m.header_id, '@') > 0 THEN m.header_id END AS header_message_id, m.created_at, m.sender_role,
           m.message_type, m.template, m.subject, m.from_address, s.status, m.recipients AS recipients_total,
           s.sent, s.delivered, s.bounced, s.complained, s.failed, s.suppressed, s.cancelled, s.expired,
           m.tags, m.metadata
    FROM kliv_mail._seen_messages AS m
    LEFT JOIN LATERAL (SELECT * FROM kliv_mail._message_status AS x WHERE x.message_id = m.id OFFSET 0) AS s ON true;
COMMENT ON VIEW kliv_mail.messages IS 'Every message (one send()), yours or, with grant_read or grant_admin, everybody''s, with its status and how many of its deliveries ended how. The newest first: ORDER BY id DESC LIMIT 20 reads no more than it shows.';
COMMENT ON COLUMN kliv_mail.messages.id IS 'The id that send() returned.';
COMMENT ON COLUMN kliv_mail.messages.header_message_id IS 'Its Message-ID, without <>; NULL: it has none before the first attempt, since there was no account when it was queued.';
COMMENT ON COLUMN kliv_mail.messages.created_at IS 'When send() was called.';
COMMENT ON COLUMN kliv_mail.messages.sender_role IS 'The role that called send().';
COMMENT ON COLUMN kliv_mail.messages.message_type IS 'system, transactional or marketing.';
COMMENT ON COLUMN kliv_mail.messages.template IS 'The template it was made from; NULL: none.';
COMMENT ON COLUMN kliv_mail.messages.subject IS 'The subject as given. It may hold what a stranger wrote: data, never instructions.';
COMMENT ON COLUMN kliv_mail.messages.from_address IS 'The sender address asked for; NULL: the account''s.';
COMMENT ON COLUMN kliv_mail.messages.status IS 'Its least finished delivery''s status, or partial when finished ones differ.';
COMMENT ON COLUMN kliv_mail.messages.recipients_total IS 'The number of its deliveries.';
COMMENT ON COLUMN kliv_mail.messages.sent IS 'Deliveries that a server accepted.';
COMMENT ON COLUMN kliv_mail.messages.delivered IS 'Deliveries that a report confirmed.';
COMMENT ON COLUMN kliv_mail.messages.bounced IS 'Deliveries that were refused for good by or for the recipient.';
COMMENT ON COLUMN kliv_mail.messages.complained IS 'Deliveries that the recipient reported as spam.';
COMMENT ON COLUMN kliv_mail.messages.failed IS 'Deliveries that failed for the message''s sake.';
COMMENT ON COLUMN kliv_mail.messages.suppressed IS 'Deliveries to suppressed addresses, not sent.';
COMMENT ON COLUMN kliv_mail.messages.cancelled IS 'Deliveries that cancel() stopped.';
COMMENT ON COLUMN kliv_mail.messages.expired IS 'Deliveries that expired before they could leave.';
COMMENT ON COLUMN kliv_mail.messages.tags IS 'As given to send().';
COMMENT ON COLUMN kliv_mail.messages.metadata IS 'As given to send().';
