-- Sending: send(), and what it asks before.

CREATE FUNCTION kliv_mail.send(
    recipients text, subject text, body text DEFAULT NULL, html text DEFAULT NULL,
    cc text DEFAULT NULL, bcc text DEFAULT NULL, from_address text DEFAULT NULL, from_name text DEFAULT NULL,
    reply_to text DEFAULT NULL, headers jsonb DEFAULT NULL, attachments kliv_mail.attachment[] DEFAULT NULL,
    message_type text DEFAULT 'transactional', send_at timestamptz DEFAULT NULL, expires_at timestamptz DEFAULT NULL,
    idempotency_key text DEFAULT NULL, replace_key text DEFAULT NULL, tags text[] DEFAULT NULL, metadata jsonb DEFAULT NULL,
    topic text DEFAULT NULL, account text DEFAULT NULL, on_limit text DEFAULT 'defer')
RETURNS bigint
LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'kliv_mail_send';
COMMENT ON FUNCTION kliv_mail.send(text, text, text, text, text, text, text, text, text, jsonb, kliv_mail.attachment[], text, timestamptz, timestamptz, text, text, text[], jsonb, text, text, text) IS
$$Queues a mail, sent if and only if this transaction commits; returns the message's id.
recipients, cc, bcc, reply_to: address lists ('Ana <ana@example.com>, bob@example.org'), at most 50 addresses together. body: plain text; html: HTML; at least one of them. from_address: the account's address or one of its allowed_senders. headers: {"X-Name": "value"}. attachments: ARRAY[kliv_mail.attach(...)]. send_at: not before; expires_at: not after. idempotency_key: the same key and arguments give the first id. replace_key: what still waits of your earlier messages with this key is cancelled, so that the newest code or digest leaves. topic: of marketing mail, what a recipient leaves by its unsubscribe link, [a-z0-9_-]{1,63}; NULL is 'marketing'. account: NULL is the one in use.
message_type: system | transactional | marketing
on_limit: defer | error
Mail leaves in the order of its type. Over quota defer waits and error raises 53400.
Mail to delivered@, bounced@, soft@, deferred@, complained@ or suppressed@simulator.invalid (or delivered+anything@ and so on) reaches no server and ends as its name says.
Mail trouble never raises: the mail waits, and a NOTICE and kliv_mail.deliveries say why. Errors: 22023 an argument, 54000 a size, 53400 an asked-for quota error, 23505 a reused key, 25006 read-only, 42501 rights, 55000 marketing mail without an unsubscribe URL.
Example: SELECT kliv_mail.send('ana@example.com', 'Welcome', 'Hello Ana');$$;

-- How many more recipients of that priority fit behind what waits already, and
-- what stops the account (problem) whether they fit or not.  p_wanted: so many have to fit, and
-- where they do, room may tell of more than there is; NULL: only a NOTICE depends on it, which is
-- not worth counting a long line: where there is room for hundreds, the mail leaves soon.
CREATE FUNCTION kliv_mail._send_room(
    p_account text, p_priority smallint, p_wanted integer,
    OUT room integer, OUT problem text, OUT hint text, OUT quota_problem text, OUT quota_hint text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
    -- A LIMIT that is a variable makes a plan of its own look cheaper each time, and planning is most of a send().
    SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v record;
    v_left integer;
    v_waiting integer;
    v_serializable boolean := current_setting('transaction_isolation') = 'serializable';
    v_old bigint;
    v_origin text := kliv_mail._origin();
BEGIN
    SELECT * INTO v FROM kliv_mail._availability(p_account, v_at);
    IF v.blocked_until > v_at THEN
        problem := v.reason;
        hint := v.hint;
    ELSIF p_priority = 2 AND v.marketing_reason IS NOT NULL THEN
        problem := v.marketing_reason;
        hint := kliv_mail._reputation_hint(p_account, 'paused');
    END IF;
    -- What is queued before this takes its share; counted only as far as it matters.
    v_left := CASE WHEN p_priority = 2 THEN v.remaining_marketing ELSE v.remaining END;
    IF p_wanted IS NULL AND v_left > 200 THEN
        v_waiting := 0;
    ELSIF v_left - p_wanted > 200 THEN
        -- No id is given twice: where fewer than 200 rows of all that there are have one up to v_old, all together are fewer
        -- than 200 and the ids that were given since, which is what fits.
        v_old := coalesce(pg_sequence_last_value('kliv_mail._delivery_id'), 0) - (v_left - p_wanted - 200);
        IF v_serializable THEN
            SELECT CASE WHEN count(*) < 200 THEN 0 END INTO v_waiting
            FROM kliv_mail._snapshot_rows(NULL::kliv_mail._outbox, '_outbox_pkey', 200) AS o WHERE o.id <= v_old;
        ELSE
            SELECT CASE WHEN count(*) < 200 THEN 0 END INTO v_waiting
            FROM (SELECT FROM kliv_mail._outbox AS o WHERE o.id <= v_old LIMIT 200) AS x;
        END IF;
    END IF;
    IF v_waiting = 0 THEN
        NULL;
    ELSIF v_serializable THEN
        -- Other callers add to the line; rows taken whole cost four times as much.
        SELECT count(*) INTO v_waiting
        FROM unnest(kliv_mail._own_routes(p_account)) AS r (route), generate_series(0, p_priority) AS p (priority),
             kliv_mail._snapshot_rows(NULL::kliv_mail._outbox, '_outbox_ready', v_left + 1, v_origin, r.route, p.priority::text) AS o
        WHERE o.epoch IS NULL AND o.due <= v_at;
    ELSE
        SELECT count(*) INTO v_waiting
        FROM (SELECT FROM unnest(kliv_mail._own_routes(p_account)) AS r (route), generate_series(0, p_priority) AS p (priority), LATERAL (
                  SELECT FROM kliv_mail._outbox AS o
                  WHERE o.origin = v_origin AND o.route = r.route AND o.priority = p.priority
                    AND o.epoch IS NULL AND o.due <= v_at
                  LIMIT v_left + 1) AS w
              LIMIT v_left + 1) AS x;
    END IF;
    room := greatest(0, v_left - v_waiting);
    quota_problem := coalesce(CASE WHEN v.held_by = 'quota' AND v.blocked_until IS NULL THEN v.reason END, format(
        'the account "%s" has no more than %s recipient%s an hour and %s a day%s', p_account, v.hour_limit, CASE WHEN v.hour_limit <> 1 THEN 's' END, v.day_limit,
        CASE WHEN p_priority = 2 THEN format(', of which marketing mail leaves %s %% free', current_setting('kliv_mail.reserved_share')) ELSE '' END));
    quota_hint := coalesce(CASE WHEN v.held_by = 'quota' AND v.blocked_until IS NULL THEN v.hint END,
        'It goes out by itself when the next window opens. ' || CASE WHEN p_account <> 'platform' THEN 'kliv_mail.set_limits() raises the limit.'
            ELSE 'A provider of your own (kliv_mail.configure_smtp()) has higher limits.' END);
END;
$$;
