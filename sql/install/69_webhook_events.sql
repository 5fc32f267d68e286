-- What a provider's webhook says, in one vocabulary, and what follows from it.

-- bounce_type: hard and policy, the provider knows; soft, at most that; NULL, what its words mean, and hard where it gives none.
CREATE TYPE kliv_mail._webhook_event AS (
    key         text,       -- the same when it is repeated
    kind        text,       -- deferred | sent | delivered | bounced | complained | unsubscribed; NULL: nothing of these
    bounce_type text,
    recipient   text,
    header_id   text,       -- our Message-ID, without <>
    server_id   text,       -- the provider's id of the mail, as its SMTP server said it
    delivery_id bigint,     -- what we gave it, and it repeats
    status      text,
    diagnostic  text,
    raw         jsonb
);

CREATE FUNCTION kliv_mail._number_of(p_text text) RETURNS bigint
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE WHEN p_text ~ '^[0-9]{1,18}$' THEN p_text::bigint END;
END;

-- The Message-ID among a mail's headers, as [{"name", "value"}].
CREATE FUNCTION kliv_mail._message_id_in(p_headers jsonb) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT min(btrim(h.value ->> 'value', ' <>'))
    FROM jsonb_array_elements(CASE jsonb_typeof(p_headers) WHEN 'array' THEN p_headers ELSE '[]' END) AS h (value)
    WHERE lower(h.value ->> 'name' COLLATE "C") = 'message-id';
END;

-- An array, or an empty one.
CREATE FUNCTION kliv_mail._array_in(p_value jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE jsonb_typeof(p_value) WHEN 'array' THEN p_value ELSE '[]' END;
END;

CREATE FUNCTION kliv_mail._sendgrid_events(p_body jsonb) RETURNS SETOF kliv_mail._webhook_event
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT e ->> 'sg_event_id',
        CASE e ->> 'event' WHEN 'processed' THEN 'sent' WHEN 'delivered' THEN 'delivered' WHEN 'deferred' THEN 'deferred' WHEN 'bounce' THEN 'bounced'
            WHEN 'dropped' THEN 'bounced' WHEN 'spamreport' THEN 'complained' WHEN 'unsubscribe' THEN 'unsubscribed'
            WHEN 'group_unsubscribe' THEN 'unsubscribed' END,
        -- It drops what bounced before, and what its customer's own lists say.
        CASE WHEN e ->> 'event' = 'dropped' THEN CASE WHEN e ->> 'reason' IN ('Bounced Address', 'Invalid') THEN 'hard' ELSE 'policy' END
             WHEN e ->> 'type' = 'blocked' THEN 'soft' END,
        e ->> 'email', btrim(e ->> 'smtp-id', ' <>'), nullif(split_part(e ->> 'sg_message_id', '.', 1), ''), kliv_mail._number_of(e ->> 'kliv_mail'),
        e ->> 'status', coalesce(e ->> 'reason', e ->> 'response'), e
    FROM jsonb_array_elements(kliv_mail._array_in(p_body)) AS x (e);
END;

CREATE FUNCTION kliv_mail._mailgun_events(p_body jsonb) RETURNS SETOF kliv_mail._webhook_event
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    -- The signature does not cover the event, so that one token is good for one event, and only the Message-ID says whose.
    SELECT p_body #>> '{signature,token}',
        CASE e ->> 'event' WHEN 'accepted' THEN 'sent' WHEN 'delivered' THEN 'delivered' WHEN 'complained' THEN 'complained'
            WHEN 'unsubscribed' THEN 'unsubscribed' WHEN 'rejected' THEN 'bounced'
            WHEN 'failed' THEN CASE e ->> 'severity' WHEN 'permanent' THEN 'bounced' ELSE 'deferred' END END,
        CASE WHEN e ->> 'event' = 'rejected' OR e ->> 'reason' IN ('suppress-complaint', 'suppress-unsubscribe') THEN 'policy'
             WHEN e ->> 'reason' = 'suppress-bounce' THEN 'hard' END,
        e ->> 'recipient', btrim(e #>> '{message,headers,message-id}', ' <>'), NULL::text, NULL::bigint, e #>> '{delivery-status,enhanced-code}',
        nullif(concat_ws(' ', nullif(e #>> '{delivery-status,code}', '0'), coalesce(nullif(e #>> '{delivery-status,message}', ''),
            e #>> '{delivery-status,description}', e #>> '{reject,reason}')), ''), e
    FROM (SELECT p_body -> 'event-data' AS e) AS x;
END;

CREATE FUNCTION kliv_mail._ses_events(p_id text, p_event jsonb) RETURNS SETOF kliv_mail._webhook_event
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT p_id || '/' || r.n,
        CASE t.type WHEN 'Send' THEN 'sent' WHEN 'Delivery' THEN 'delivered' WHEN 'DeliveryDelay' THEN 'deferred'
            -- An answer by itself, as of who is on holiday, is told of as a bounce; a server that refused the mail says so with a status.
            WHEN 'Bounce' THEN CASE WHEN p_event #>> '{bounce,bounceType}' IS DISTINCT FROM 'Transient' OR p_event #>> '{bounce,bounceSubType}' IS DISTINCT FROM 'General'
                OR coalesce(r.value ->> 'status', r.value ->> 'diagnosticCode') IS NOT NULL THEN 'bounced' END
            WHEN 'Reject' THEN 'bounced' WHEN 'Subscription' THEN 'unsubscribed'
            WHEN 'Complaint' THEN CASE p_event #>> '{complaint,complaintFeedbackType}' WHEN 'not-spam' THEN NULL ELSE 'complained' END END,
        CASE WHEN t.type = 'Reject' THEN 'policy'
             WHEN p_event #>> '{bounce,bounceType}' <> 'Permanent' THEN 'soft'
             WHEN p_event #>> '{bounce,bounceSubType}' IN ('NoEmail', 'Suppressed', 'OnAccountSuppressionList') THEN 'hard' END,
        -- An address, or an object that has one, perhaps with a name before it.
        regexp_replace(coalesce(r.value ->> 'emailAddress', r.value #>> '{}'), '^.*<([^<>]*)>.*$', E'\\1'),
        kliv_mail._message_id_in(p_event #> '{mail,headers}'), p_event #>> '{mail,messageId}', NULL::bigint, r.value ->> 'status',
        coalesce(r.value ->> 'diagnosticCode', p_event #>> '{reject,reason}'), p_event
    FROM (SELECT coalesce(p_event ->> 'eventType', p_event ->> 'notificationType') AS type) AS t,
         LATERAL jsonb_array_elements(kliv_mail._array_in(CASE t.type WHEN 'Bounce' THEN p_event #> '{bounce,bouncedRecipients}'
             WHEN 'Complaint' THEN p_event #> '{complaint,complainedRecipients}' WHEN 'DeliveryDelay' THEN p_event #> '{deliveryDelay,delayedRecipients}'
             WHEN 'Delivery' THEN p_event #> '{delivery,recipients}' ELSE p_event #> '{mail,destination}' END)) WITH ORDINALITY AS r (value, n);
END;

CREATE FUNCTION kliv_mail._postmark_events(p_body jsonb) RETURNS SETOF kliv_mail._webhook_event
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT concat_ws('/', p_body ->> 'RecordType', coalesce(p_body ->> 'ID', concat_ws('/', p_body ->> 'MessageID', p_body ->> 'Recipient', p_body ->> 'ChangedAt'))),
        CASE p_body ->> 'RecordType' WHEN 'Delivery' THEN 'delivered' WHEN 'SpamComplaint' THEN 'complained'
            WHEN 'SubscriptionChange' THEN CASE WHEN p_body ->> 'SuppressionReason' = 'ManualSuppression' AND p_body ->> 'Origin' = 'Recipient'
                THEN 'unsubscribed' END
            WHEN 'Bounce' THEN CASE WHEN p_body ->> 'Type' IN ('SpamComplaint', 'SpamNotification') THEN 'complained' WHEN p_body ->> 'Type' = 'Unsubscribe' THEN 'unsubscribed'
                WHEN p_body ->> 'Type' NOT IN ('AutoResponder', 'AddressChange', 'ChallengeVerification', 'Subscribe', 'OpenRelayTest', 'Unconfirmed')
                THEN 'bounced' END END,
        CASE WHEN p_body ->> 'Type' IN ('HardBounce', 'BadEmailAddress') THEN 'hard'
             WHEN p_body ->> 'Type' IN ('Blocked', 'SMTPApiError', 'DMARCPolicy', 'VirusNotification', 'ManuallyDeactivated', 'TemplateRenderingFailed') THEN 'policy'
             ELSE 'soft' END,
        coalesce(p_body ->> 'Email', p_body ->> 'Recipient'), NULL::text, NULL::text, kliv_mail._number_of(p_body #>> '{Metadata,kliv-mail}'), NULL::text,
        regexp_replace(coalesce(nullif(p_body ->> 'Details', ''), p_body ->> 'Description'), '^[a-z]+; *', ''), p_body;
END;

CREATE FUNCTION kliv_mail._resend_events(p_id text, p_body jsonb) RETURNS SETOF kliv_mail._webhook_event
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT p_id || '/' || r.n,
        CASE p_body ->> 'type' WHEN 'email.sent' THEN 'sent' WHEN 'email.delivered' THEN 'delivered' WHEN 'email.delivery_delayed' THEN 'deferred'
            WHEN 'email.bounced' THEN 'bounced' WHEN 'email.suppressed' THEN 'bounced' WHEN 'email.failed' THEN 'bounced'
            WHEN 'email.complained' THEN 'complained' END,
        CASE WHEN p_body ->> 'type' = 'email.suppressed' OR p_body #>> '{data,bounce,subType}' IN ('NoEmail', 'Suppressed') THEN 'hard'
             WHEN p_body ->> 'type' = 'email.failed' THEN 'policy'
             WHEN p_body #>> '{data,bounce,type}' <> 'Permanent' THEN 'soft' END,
        r.value #>> '{}', coalesce(kliv_mail._message_id_in(p_body #> '{data,headers}'), btrim(p_body #>> '{data,message_id}', ' <>')),
        p_body #>> '{data,email_id}', NULL::bigint, NULL::text,
        coalesce(p_body #>> '{data,bounce,diagnosticCode,0}', p_body #>> '{data,bounce,message}', p_body #>> '{data,failed,reason}'), p_body
    FROM jsonb_array_elements(kliv_mail._array_in(p_body #> '{data,to}')) WITH ORDINALITY AS r (value, n);
END;

CREATE FUNCTION kliv_mail._classify_report(recipient text, p_status text, p_diagnostic text, OUT bounce_type text, OUT code integer, OUT status text,
    OUT diagnostic text, OUT reason text, OUT hint text)
AS '$libdir/kliv_mail_net', 'kliv_mail__classify_report' LANGUAGE C STABLE SET search_path = pg_catalog, pg_temp;

-- One event; true if a delivery's status changed.
CREATE FUNCTION kliv_mail._apply_event(p_provider text, p_delivery bigint, e kliv_mail._webhook_event) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v record;
    v_type text;
    v_raw bytea := convert_to(left(e.raw::text, 4000), 'UTF8');
BEGIN
    IF e.kind <> 'bounced' THEN
        RETURN kliv_mail._apply_report(p_provider, e.key, p_delivery, e.recipient, e.kind, NULL, NULL, NULL, NULL,
            CASE e.kind WHEN 'complained' THEN 'the recipient complained about the message' END,
            CASE e.kind WHEN 'complained' THEN 'Send no more marketing mail to the address.' END, true, v_raw);
    END IF;
    SELECT * INTO v FROM kliv_mail._classify_report(e.recipient, e.status, e.diagnostic) AS x;
    v_type := CASE WHEN e.bounce_type IN ('hard', 'policy') THEN e.bounce_type
                   WHEN e.bounce_type = 'soft' THEN CASE v.bounce_type WHEN 'hard' THEN 'soft' ELSE v.bounce_type END
                   WHEN v.code IS NULL THEN 'hard' ELSE v.bounce_type END;
    IF v_type = 'hard' AND v.bounce_type <> 'hard' THEN
        v.reason := 'the provider knows the address as one that takes no mail';
        v.hint := 'Correct the address, or stop writing to it.';
    ELSIF v_type = 'policy' AND v.bounce_type <> 'policy' THEN
        v.reason := 'the provider did not send the message';
        v.hint := 'Its words, and its console, say why.';
    ELSIF v_type = 'soft' AND v.bounce_type = 'hard' THEN
        v.reason := 'the recipient''s server did not take the message';
        v.hint := 'The server''s words say why.';
    END IF;
    RETURN kliv_mail._apply_report(p_provider, e.key, p_delivery, e.recipient, 'bounced', v_type, v.code, v.status, v.diagnostic, v.reason, v.hint,
        true, v_raw);
END;
$$;

CREATE FUNCTION kliv_mail._ingest_webhook(p_caller name, p_provider text, p_headers jsonb, p_body bytea) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_most CONSTANT integer := 4194304;
    v_most_events CONSTANT integer := 5000;
    w kliv_mail._webhook;
    v_json jsonb;
    v_events kliv_mail._webhook_event[];
    v_changed integer := 0;
    v record;
BEGIN
    PERFORM kliv_mail._check_webhook(p_provider, false, false, false, false);
    IF p_body IS NULL OR p_headers IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = format('%s: must not be null', CASE WHEN p_body IS NULL THEN 'body' ELSE 'headers' END),
            HINT = 'Give the request''s headers as a JSON object, and its body byte for byte.';
    ELSIF jsonb_typeof(p_headers) <> 'object' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'headers: is not a JSON object', HINT = 'Give names and values: {"content-type": "application/json"}.';
    ELSIF octet_length(p_body) > v_most THEN
        RAISE program_limit_exceeded USING MESSAGE = format('body: %s bytes, over %s', octet_length(p_body), v_most);
    END IF;
    SELECT * INTO w FROM kliv_mail._webhook AS x WHERE x.provider = p_provider;
    IF w.provider IS NULL OR (p_provider = 'ses' AND (w.topic_arn IS NULL OR w.certificate IS NULL)) THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = format('the webhook of %s is not configured', p_provider),
            HINT = format('SELECT kliv_mail.configure_webhook(%L, %s);', p_provider,
                (SELECT string_agg(n.name || ' => ''...''', ', ') FROM unnest(kliv_mail._webhook_needs(p_provider)) AS n (name)));
    END IF;

    -- Nothing of a body is parsed before its signature is right, but where that stands in the body.
    IF p_provider IN ('mailgun', 'ses') THEN
        v_json := kliv_mail._request_json(p_body, 'body');
    END IF;
    IF NOT coalesce(kliv_mail._is_from_provider(w, p_headers, p_body, v_json), false) THEN
        RAISE invalid_authorization_specification USING MESSAGE = format('the request is not signed by %s, or too old', p_provider),
            HINT = 'Hand in headers and body as they came. If they are the provider''s, save its present key: SELECT kliv_mail.configure_webhook(...).';
    END IF;
    v_json := coalesce(v_json, kliv_mail._request_json(p_body, 'body'));

    IF p_provider = 'ses' AND v_json ->> 'Type' <> 'Notification' THEN
        -- Whoever owns the topic opens the link; nothing here does.
        PERFORM kliv_mail._apply_report('ses', v_json ->> 'MessageId', NULL, NULL, 'confirmation', NULL, NULL, NULL, NULL,
            format('%s: %s', v_json ->> 'Type', v_json ->> 'SubscribeURL'), NULL, false, NULL);
        RETURN 0;
    ELSIF jsonb_typeof(v_json) = 'array' AND jsonb_array_length(v_json) > v_most_events THEN
        RAISE program_limit_exceeded USING MESSAGE = format('body: %s events, over %s', jsonb_array_length(v_json), v_most_events);
    END IF;
    v_events := ARRAY(
        SELECT x FROM kliv_mail._sendgrid_events(v_json) AS x WHERE p_provider = 'sendgrid'
        UNION ALL SELECT x FROM kliv_mail._mailgun_events(v_json) AS x WHERE p_provider = 'mailgun'
        UNION ALL SELECT x FROM kliv_mail._postmark_events(v_json) AS x WHERE p_provider = 'postmark'
        UNION ALL SELECT x FROM kliv_mail._resend_events(
            coalesce(kliv_mail._request_header(p_headers, 'svix-id'), kliv_mail._request_header(p_headers, 'webhook-id')), v_json) AS x WHERE p_provider = 'resend'
        UNION ALL SELECT x FROM kliv_mail._ses_events(v_json ->> 'MessageId',
            CASE p_provider WHEN 'ses' THEN kliv_mail._request_json(convert_to(v_json ->> 'Message', 'UTF8'), 'Message') END) AS x WHERE p_provider = 'ses');
    -- In one order, so that two requests at a time wait for each other and never both: an address's
    -- deliveries one after the other, and last what is about none, which is counted in a row that all share.
    FOR v IN
        SELECT x AS event, d.id FROM unnest(v_events) AS x,
            LATERAL (SELECT kliv_mail._find_delivery(x.header_id, x.server_id, x.delivery_id, x.recipient) OFFSET 0) AS d (id)
        WHERE x.key <> '' AND x.kind IS NOT NULL AND x.recipient IS NOT NULL
        ORDER BY d.id IS NULL, lower(x.recipient COLLATE "C"), d.id, x.key
    LOOP
        v_changed := v_changed + kliv_mail._apply_event(p_provider, v.id, v.event)::integer;
    END LOOP;
    RETURN v_changed;
END;
$$;

CREATE FUNCTION kliv_mail.ingest_webhook(provider text, headers jsonb, body bytea) RETURNS integer
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.ingest_webhook(text, jsonb, bytea) IS
$$Takes a request of a provider's webhook and applies its events to the deliveries that they are about: delivered, bounced or complained, the highest of these whatever their order. A hard bounce suppresses the address, a complaint and an unsubscription stop its marketing mail.
provider: sendgrid | mailgun | ses | postmark | resend, as configured by configure_webhook(). headers: names and values, in any case. body: byte for byte, at most 4 MB and 5,000 events.
The signature is verified first; an event counts once, however often it is repeated. What is about no mail of this database is kept and changes nothing. Answer the provider 200 after the commit, 401 for 28000, else 500, so that it repeats what was not committed. For ses, a SubscriptionConfirmation is kept in the view events with its link, for you to open.
Returns how many deliveries changed. Errors: 28000 not signed by the provider, or too old (postmark's requests carry no time), 22023 no such provider, or the body is not JSON, 22004 an argument is NULL, 54000 too large, 55000 the webhook is not configured, its key cannot be read, or a delivery's outcome is not recorded yet.
Example: SELECT kliv_mail.ingest_webhook('postmark', '{"Authorization": "Basic aG9vazpzM2NyZXQ="}', '{}');$$;
