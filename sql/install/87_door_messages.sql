-- Pages of the administrator: messages, and one with its story.

-- The newest messages that a search finds, by indexes: of an address all, else of the
-- last 20,000 messages or deliveries those that fit.
CREATE FUNCTION kliv_mail.__door_search(p_caller name, p_address text, p_subject text, p_status text, p_before bigint, p_max integer) RETURNS bigint[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_before bigint := coalesce(p_before, 9223372036854775807);
    v_address text := lower(trim(p_address) COLLATE "C");
    v_subject text := lower(trim(p_subject) COLLATE "C");
BEGIN
    IF NOT has_table_privilege(p_caller, 'kliv_mail._sees_all', 'SELECT') THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied for the search', HINT = format('SELECT kliv_mail.grant_read(%L);', p_caller);
    ELSIF v_address <> '' THEN
        -- First the address, or the planner walks all messages in order.
        RETURN ARRAY(
            WITH found AS MATERIALIZED (
                SELECT d.message_id, d.status FROM kliv_mail._delivery AS d WHERE kliv_mail._goes_to(d.recipient, v_address)
                UNION ALL
                SELECT o.message_id, 'waiting' FROM kliv_mail._outbox AS o WHERE lower(o.recipient COLLATE "C") = v_address)
            SELECT x.message_id FROM found AS x JOIN kliv_mail._message AS m ON m.id = x.message_id
            WHERE x.message_id < v_before AND (p_status IS NULL OR x.status = p_status)
              AND (v_subject = '' OR v_subject IS NULL OR position(v_subject IN lower(m.subject COLLATE "C")) > 0)
            GROUP BY x.message_id ORDER BY x.message_id DESC LIMIT p_max);
    ELSIF p_status = 'waiting' THEN
        RETURN ARRAY(
            SELECT DISTINCT x.message_id FROM (SELECT o.message_id FROM kliv_mail._outbox AS o WHERE o.message_id < v_before ORDER BY o.message_id DESC LIMIT 20000) AS x
            JOIN kliv_mail._message AS m ON m.id = x.message_id
            WHERE coalesce(v_subject, '') = '' OR position(v_subject IN lower(m.subject COLLATE "C")) > 0
            ORDER BY 1 DESC LIMIT p_max);
    ELSIF p_status IS NOT NULL THEN
        RETURN ARRAY(
            SELECT DISTINCT x.message_id FROM (
                SELECT d.message_id, d.status FROM kliv_mail._delivery AS d WHERE d.message_id < v_before ORDER BY d.message_id DESC LIMIT 20000) AS x
            JOIN kliv_mail._message AS m ON m.id = x.message_id
            WHERE x.status = p_status AND (coalesce(v_subject, '') = '' OR position(v_subject IN lower(m.subject COLLATE "C")) > 0)
            ORDER BY 1 DESC LIMIT p_max);
    ELSIF v_subject <> '' THEN
        RETURN ARRAY(
            SELECT x.id FROM (SELECT m.id, m.subject FROM kliv_mail._message AS m WHERE m.id < v_before ORDER BY m.id DESC LIMIT 20000) AS x
            WHERE position(v_subject IN lower(x.subject COLLATE "C")) > 0 ORDER BY x.id DESC LIMIT p_max);
    END IF;
    RETURN ARRAY(SELECT m.id FROM kliv_mail._message AS m WHERE m.id < v_before ORDER BY m.id DESC LIMIT p_max);
END;
$$;

CREATE FUNCTION kliv_mail._door_search(address text, subject text, status text, before bigint, max integer) RETURNS bigint[]
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C STABLE SET search_path = pg_catalog, pg_temp;

-- The latest events: of each of the view's parts as many as are asked for, by its index on times.
CREATE FUNCTION kliv_mail.__door_latest_events(p_caller name, p_before timestamptz, p_max integer)
RETURNS TABLE (at timestamptz, kind text, account text, message_id bigint, recipient text, role name, detail text, data jsonb)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
#variable_conflict use_column
BEGIN
    IF NOT has_table_privilege(p_caller, 'kliv_mail._sees_all', 'SELECT') THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied for events', HINT = format('SELECT kliv_mail.grant_read(%L);', p_caller);
    END IF;
    RETURN QUERY
        SELECT x.* FROM (
            (SELECT e.at, e.kind, e.account, e.message_id, NULL::text, e.role, e.detail, e.data
             FROM kliv_mail._event AS e WHERE e.at < p_before ORDER BY e.at DESC LIMIT p_max)
            UNION ALL
            (SELECT p.at, p.kind, p.account, p.message_id, p.recipient, NULL, p.detail, jsonb_strip_nulls(jsonb_build_object('source', p.source, 'bounce_type', p.bounce_type))
             FROM kliv_mail._report AS p WHERE p.at < p_before ORDER BY p.at DESC LIMIT p_max)
            UNION ALL
            (SELECT i.last_at, 'reports_ignored', NULL, NULL, NULL, NULL, i.reason, jsonb_build_object('source', i.source, 'count', i.count)
             FROM kliv_mail._ignored_report AS i WHERE i.last_at < p_before ORDER BY i.last_at DESC LIMIT p_max)
            UNION ALL
            (SELECT m.created_at, 'queued', m.account, m.id, NULL, m.sender_role, m.subject, NULL
             FROM kliv_mail._message AS m WHERE m.created_at < p_before ORDER BY m.created_at DESC LIMIT p_max)
            UNION ALL
            (SELECT d.finished_at, CASE WHEN d.sent_at IS NULL THEN d.status ELSE 'sent' END, d.account, d.message_id, d.recipient, NULL,
                    CASE WHEN d.last_stage = 'report' THEN 'accepted' || coalesce(' as ' || d.server_message_id, '') ELSE coalesce(nullif(d.last_reply, ''), d.reason) END, NULL
             FROM kliv_mail._delivery AS d WHERE d.finished_at < p_before ORDER BY d.finished_at DESC LIMIT p_max))
            AS x (at, kind, account, message_id, recipient, role, detail, data)
        ORDER BY x.at DESC LIMIT p_max;
END;
$$;

CREATE FUNCTION kliv_mail._door_latest_events(before timestamptz, max integer)
RETURNS TABLE (at timestamptz, kind text, account text, message_id bigint, recipient text, role name, detail text, data jsonb)
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C STABLE SET search_path = pg_catalog, pg_temp;

-- The lines of a list of messages.  Not by the view messages: of several messages at
-- once its plan would group all of history.
CREATE FUNCTION kliv_mail.__door_lines(p_caller name, p_ids bigint[])
RETURNS TABLE (id bigint, created_at timestamptz, subject text, message_type text, status text, recipients integer, recipient text, sender_role name)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_waiting bigint[];
    v_statuses jsonb;
BEGIN
    IF NOT has_table_privilege(p_caller, 'kliv_mail._sees_all', 'SELECT') THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied for messages', HINT = format('SELECT kliv_mail.grant_read(%L);', p_caller);
    END IF;
    -- What waits has a status that the views alone can tell.
    v_waiting := ARRAY(SELECT DISTINCT o.message_id FROM kliv_mail._outbox AS o WHERE o.message_id = ANY (p_ids));
    IF v_waiting <> '{}' THEN
        SELECT jsonb_object_agg(x.message_id, x.status) INTO v_statuses FROM kliv_mail._message_status AS x WHERE x.message_id = ANY (v_waiting);
    END IF;
    RETURN QUERY
        SELECT m.id, m.created_at, m.subject, m.message_type,
               coalesce(v_statuses ->> m.id::text, (SELECT CASE WHEN min(d.status) = max(d.status) THEN min(d.status) ELSE 'partial' END FROM kliv_mail._delivery AS d WHERE d.message_id = m.id)),
               m.recipients,
               -- (OFFSET 0: those of the message first, whatever the planner thinks of the order of the keys.)
               coalesce((SELECT x.recipient FROM (SELECT d.id, d.recipient FROM kliv_mail._delivery AS d WHERE d.message_id = m.id OFFSET 0) AS x ORDER BY x.id LIMIT 1),
                        (SELECT x.recipient FROM (SELECT o.id, o.recipient FROM kliv_mail._outbox AS o WHERE o.message_id = m.id OFFSET 0) AS x ORDER BY x.id LIMIT 1)), m.sender_role
        FROM kliv_mail._message AS m
        WHERE m.id = ANY (p_ids) ORDER BY m.id DESC;
END;
$$;

CREATE FUNCTION kliv_mail._door_lines(ids bigint[])
RETURNS TABLE (id bigint, created_at timestamptz, subject text, message_type text, status text, recipients integer, recipient text, sender_role name)
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C STABLE SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION kliv_mail._door_rows(p_texts jsonb, p_ids bigint[]) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        SELECT coalesce(jsonb_agg(jsonb_build_object('id', m.id, 'at', kliv_mail._door_time(m.created_at), 'subject', coalesce(nullif(trim(m.subject), ''), p_texts ->> 'no_subject'),
            'type', p_texts ->> ('type_' || m.message_type), 'status', kliv_mail._door_status(p_texts, m.status), 'recipients', m.recipients, 'several', m.recipients > 1,
            'recipient', m.recipient, 'role', m.sender_role) ORDER BY m.id DESC), '[]')
        FROM kliv_mail._door_lines(p_ids) AS m);
END;
$$;

CREATE FUNCTION kliv_mail._door_messages(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    q jsonb := r -> 'query';
    v_statuses text[] := '{waiting,sent,delivered,bounced,complained,failed,suppressed,cancelled,expired}';
    v_status text := (SELECT s FROM unnest(v_statuses) AS s WHERE s = q ->> 'status');
    v_ids bigint[] := kliv_mail._door_search(q ->> 'address', q ->> 'subject', v_status, (substring(q ->> 'before' FROM '^[0-9]{1,18}$'))::bigint, 51);
    v_more bigint := CASE WHEN cardinality(v_ids) = 51 THEN v_ids[50] END;
    v_rows jsonb := kliv_mail._door_rows(r -> 't', v_ids[1:50]);
BEGIN
    RETURN jsonb_build_object('page', 'messages', 'nav', 'messages', 'data', jsonb_build_object(
        'rows', v_rows, 'none', v_rows = '[]', 'before', v_more, 'address', q ->> 'address', 'subject', q ->> 'subject', 'status', v_status,
        'searched', coalesce(q ->> 'address', '') <> '' OR coalesce(q ->> 'subject', '') <> '' OR v_status IS NOT NULL,
        'statuses', (SELECT jsonb_agg(jsonb_build_object('value', s, 'name', r #>> ARRAY['t', 'status_' || s], 'chosen', s = v_status) ORDER BY n)
                     FROM unnest(v_statuses) WITH ORDINALITY AS x (s, n))));
END;
$$;

-- The message that a path names; 404 otherwise.
CREATE FUNCTION kliv_mail._door_message_id(r jsonb) RETURNS bigint
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT (substring(r #>> '{path,2}' FROM '^[0-9]{1,18}$'))::bigint;
END;

CREATE FUNCTION kliv_mail._door_message(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_id bigint := kliv_mail._door_message_id(r);
    t jsonb := r -> 't';
    m kliv_mail.messages;
    v_events jsonb;
    v_deliveries jsonb;
    v_waiting boolean;
    v_again boolean;
BEGIN
    SELECT * INTO m FROM kliv_mail.messages AS x WHERE x.id = v_id;
    IF m.id IS NULL THEN
        RETURN kliv_mail._door_problem(404);
    END IF;
    SELECT jsonb_object_agg(e.recipient, e.steps) INTO v_events FROM (
        SELECT coalesce(x.recipient, '') AS recipient, jsonb_agg(jsonb_build_object('at', kliv_mail._door_time(x.at),
                   'kind', coalesce(t ->> ('event_' || x.kind), t ->> ('status_' || x.kind), replace(x.kind, '_', ' ')), 'tone', kliv_mail._door_tone(x.kind),
                   'detail', CASE WHEN x.kind <> 'queued' THEN x.detail END, 'role', x.role) ORDER BY x.at, x.kind) AS steps
        FROM kliv_mail.events AS x WHERE x.message_id = v_id GROUP BY 1) AS e;
    SELECT jsonb_agg(jsonb_build_object(
               'recipient', d.recipient, 'kind', CASE WHEN d.kind <> 'to' THEN d.kind END, 'status', kliv_mail._door_status(t, d.status),
               'headline', coalesce(t ->> ('code_' || d.code), t ->> ('status_' || d.status)), 'advice', t ->> ('advice_' || d.code),
               'reason', d.reason, 'hint', d.hint, 'bad', d.status NOT IN ('sent', 'delivered'),
               'attempts', d.attempts, 'account', d.account, 'next_attempt_at', kliv_mail._door_time(d.next_attempt_at), 'estimated_send_at', kliv_mail._door_time(d.estimated_send_at),
               'stage', d.last_stage, 'reply', nullif(d.last_reply, ''),
               'server_message_id', d.server_message_id, 'sent_at', kliv_mail._door_time(d.sent_at), 'simulated', d.simulated,
               'suppressed', d.status IN ('suppressed', 'bounced', 'complained'),
               'story', coalesce(v_events -> '', '[]') || coalesce(v_events -> d.recipient, '[]')) ORDER BY d.status IN ('sent', 'delivered'), d.recipient),
           bool_or(d.status IN ('scheduled', 'queued', 'deferred', 'in_doubt')), bool_or(d.status IN ('failed', 'bounced', 'expired', 'in_doubt') OR d.code = 'retry')
    INTO v_deliveries, v_waiting, v_again
    FROM (SELECT * FROM kliv_mail.deliveries AS x WHERE x.message_id = v_id LIMIT 60) AS d;
    RETURN jsonb_build_object('page', 'message', 'nav', 'messages', 'title', m.subject, 'data', jsonb_build_object(
        'message', kliv_mail._door_rows(t, ARRAY[v_id]) -> 0 || jsonb_build_object('from_address', m.from_address, 'template', m.template, 'tags', array_to_string(m.tags, ', '),
            'metadata', CASE WHEN m.metadata <> '{}' THEN m.metadata::text END),
        'deliveries', coalesce(v_deliveries, '[]'), 'can_cancel', v_waiting, 'can_retry', v_again,
        'send_at', replace(kliv_mail._door_time(kliv_mail._now() + interval '1 hour'), ' ', 'T')));
END;
$$;

-- retry, cancel and reschedule: a page that asks, or does it.
CREATE FUNCTION kliv_mail._door_message_change(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_id bigint := kliv_mail._door_message_id(r);
    v_what text := r #>> '{path,3}';
    v_at text := r #>> '{form,send_at}';
    v_count integer;
    m kliv_mail.messages;
BEGIN
    SELECT * INTO m FROM kliv_mail.messages AS x WHERE x.id = v_id;
    IF m.id IS NULL THEN
        RETURN kliv_mail._door_problem(404);
    ELSIF r ->> 'method' = 'GET' THEN
        RETURN jsonb_build_object('page', 'message_change', 'nav', 'messages', 'title', r #>> ARRAY['t', v_what || '_title'], 'data', jsonb_build_object(
            v_what, true, 'what', v_what, 'message', kliv_mail._door_rows(r -> 't', ARRAY[v_id]) -> 0, 'danger', v_what = 'cancel',
            'question', r #>> ARRAY['t', v_what || '_question'], 'button', r #>> ARRAY['t', v_what || '_button'],
            'send_at', coalesce(v_at, replace(kliv_mail._door_time(kliv_mail._now() + interval '1 hour'), ' ', 'T'))));
    ELSIF v_what = 'retry' THEN
        v_count := kliv_mail.retry(v_id);
    ELSIF v_what = 'cancel' THEN
        v_count := kliv_mail.cancel(v_id)::integer;
    ELSE
        IF coalesce(v_at, '') !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2})?$' THEN
            RAISE invalid_parameter_value USING MESSAGE = 'send_at: is not a date and a time', HINT = 'Write it as 2027-01-31 09:00.';
        END IF;
        v_count := kliv_mail.reschedule(v_id, v_at::timestamp AT TIME ZONE kliv_mail._door_zone());
    END IF;
    RETURN jsonb_build_object('location', format('/admin/messages/%s?done=%s&n=%s', v_id,
        CASE WHEN v_count > 0 THEN v_what WHEN v_what = 'retry' THEN 'not_retried' ELSE 'nothing' END, v_count));
END;
$$;
