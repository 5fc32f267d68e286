-- Webhooks: who may hand in what a provider says.  What it says is read in 69_webhook_events.sql.

-- Which arguments of configure_webhook() a provider has.
CREATE FUNCTION kliv_mail._webhook_needs(p_provider text) RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE p_provider WHEN 'sendgrid' THEN '{public_key}' WHEN 'ses' THEN '{topic_arn,certificate}'
        WHEN 'mailgun' THEN '{secret}' WHEN 'postmark' THEN '{secret}' WHEN 'resend' THEN '{secret}' END::text[];
END;

CREATE FUNCTION kliv_mail._check_webhook(p_provider text, p_secret boolean, p_public_key boolean, p_topic_arn boolean, p_certificate boolean)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_needs text[] := kliv_mail._webhook_needs(p_provider);
    v_other text := (SELECT min(a.name) FROM (VALUES ('secret', p_secret), ('public_key', p_public_key), ('topic_arn', p_topic_arn),
        ('certificate', p_certificate)) AS a (name, given) WHERE a.given AND a.name <> ALL (v_needs));
BEGIN
    IF v_needs IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format('provider: %s has no webhook here', coalesce('"' || left(p_provider, 60) || '"', 'NULL')),
            HINT = 'Choose one of sendgrid, mailgun, ses, postmark, resend.', COLUMN = 'provider';
    ELSIF v_other IS NOT NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%s: the webhook of %s has none', v_other, p_provider),
            HINT = format('It needs %s.', array_to_string(v_needs, ' and ')), COLUMN = v_other;
    END IF;
END;
$$;

-- NULL keeps, '' clears.  certificate and public_key were looked at.
CREATE FUNCTION kliv_mail._save_webhook(p_caller name, p_provider text, p_new_secret boolean, p_secret_cipher bytea, p_secret_masked text, p_key_id text,
    p_public_key text, p_topic_arn text, p_certificate text) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_needs text[] := kliv_mail._webhook_needs(p_provider);
    w kliv_mail._webhook;
    v_result jsonb;
    v_missing text[];
BEGIN
    IF p_topic_arn <> '' AND p_topic_arn !~ E'^arn:aws[a-z-]*:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]+(\\.fifo)?$' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('topic_arn: "%s" is not the ARN of an SNS topic', left(p_topic_arn, 100)),
            HINT = 'Copy it from the SNS console, such as arn:aws:sns:eu-west-1:123456789012:bounces.', COLUMN = 'topic_arn';
    END IF;
    INSERT INTO kliv_mail._webhook AS x (provider, updated_at, updated_by) VALUES (p_provider, kliv_mail._now(), p_caller)
    ON CONFLICT (provider) DO UPDATE SET updated_at = excluded.updated_at, updated_by = excluded.updated_by;
    UPDATE kliv_mail._webhook AS x
    SET secret_cipher = CASE WHEN p_new_secret THEN p_secret_cipher ELSE x.secret_cipher END,
        secret_masked = CASE WHEN p_new_secret THEN p_secret_masked ELSE x.secret_masked END,
        key_id = CASE WHEN p_new_secret THEN p_key_id ELSE x.key_id END,
        public_key = nullif(coalesce(p_public_key, x.public_key), ''), topic_arn = nullif(coalesce(p_topic_arn, x.topic_arn), ''),
        certificate = nullif(coalesce(p_certificate, x.certificate), '')
    WHERE x.provider = p_provider
    RETURNING x.* INTO w;
    v_result := jsonb_strip_nulls(jsonb_build_object('secret', w.secret_masked, 'public_key', w.public_key, 'topic_arn', w.topic_arn,
        'certificate', CASE WHEN w.certificate IS NOT NULL THEN 'sha256:' || encode(sha256(convert_to(w.certificate, 'UTF8')), 'hex') END));
    v_missing := ARRAY(SELECT n.name FROM unnest(v_needs) AS n (name) WHERE NOT v_result ? n.name);
    IF v_missing = v_needs THEN
        DELETE FROM kliv_mail._webhook AS x WHERE x.provider = p_provider;
    END IF;
    v_result := jsonb_build_object('provider', p_provider) || v_result || jsonb_build_object('missing', to_jsonb(v_missing));
    PERFORM kliv_mail._label();
    PERFORM kliv_mail._log_event('webhook_configured', NULL, p_provider, v_result, p_caller);
    RETURN v_result;
END;
$$;

CREATE FUNCTION kliv_mail.configure_webhook(provider text, secret text DEFAULT NULL, public_key text DEFAULT NULL, topic_arn text DEFAULT NULL,
                                            certificate text DEFAULT NULL) RETURNS jsonb
AS '$libdir/kliv_mail_net', 'kliv_mail_configure_webhook' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.configure_webhook IS
$$Saves what a provider's webhook is verified by in ingest_webhook(); NULL keeps, '' clears, and a provider of which all is cleared has none.
provider: sendgrid | mailgun | ses | postmark | resend
secret (stored encrypted): mailgun: the HTTP webhook signing key; resend: the signing secret, whsec_...; postmark: user:password of the webhook's basic authentication, or its password alone. public_key: sendgrid's verification key. topic_arn and certificate: of the SNS topic that carries ses' events, and of the file that SigningCertURL of its messages names, in PEM. Nothing is ever fetched from there.
Returns what is saved, the secret masked, and what is missing. Errors: 22023 a bad value, or one that the provider has no use for, 54000 too long, 55000 the key cannot be read or made.
Example: SELECT kliv_mail.configure_webhook('resend', secret => 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw');$$;

-- A header's value, whatever the case of its name; NULL where it is missing, or there more than once.
CREATE FUNCTION kliv_mail._request_header(p_headers jsonb, p_name text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE WHEN count(*) = 1 THEN min(h.value #>> '{}') END
    FROM jsonb_each(p_headers) AS x (name, given),
         LATERAL jsonb_array_elements(CASE jsonb_typeof(x.given) WHEN 'array' THEN x.given ELSE jsonb_build_array(x.given) END) AS h (value)
    WHERE lower(x.name COLLATE "C") = p_name;
END;

CREATE FUNCTION kliv_mail._request_text(body bytea) RETURNS text
AS '$libdir/kliv_mail_net', 'kliv_mail__request_text' LANGUAGE C STABLE STRICT SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION kliv_mail._request_json(p_body bytea, p_what text) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN kliv_mail._request_text(p_body)::jsonb;
EXCEPTION WHEN data_exception OR statement_too_complex THEN
    RAISE invalid_parameter_value USING MESSAGE = format('%s: is not JSON', p_what), HINT = 'Hand in the body of the request as it came.';
END;
$$;

CREATE FUNCTION kliv_mail._webhook_signed(provider text, secret_cipher bytea, key_id text, key text, version text, signature text, body bytea)
RETURNS boolean
AS '$libdir/kliv_mail_net', 'kliv_mail__webhook_signed' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;

-- Is a time near enough?  NULL and what is no time are not.
CREATE FUNCTION kliv_mail._is_recent(p_time text, p_window interval) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz;
BEGIN
    IF p_time ~ '^[0-9]{9,11}$' THEN
        v_at := to_timestamp(p_time::bigint);
    ELSIF p_time ~ E'^[0-9]{4}-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?Z$' THEN
        BEGIN
            v_at := p_time::timestamptz;
        EXCEPTION WHEN datetime_field_overflow THEN
            RETURN false;
        END;
    END IF;
    RETURN coalesce(v_at BETWEEN kliv_mail._now() - p_window AND kliv_mail._now() + p_window, false);
END;
$$;

-- What Amazon signs: each of these fields that is there, name and value a line each.
CREATE FUNCTION kliv_mail._sns_text(p_message jsonb) RETURNS bytea
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT convert_to(string_agg(f.name || E'\n' || (p_message ->> f.name) || E'\n', '' ORDER BY f.name COLLATE "C"), 'UTF8')
    FROM unnest(CASE p_message ->> 'Type' WHEN 'Notification' THEN '{Message,MessageId,Subject,Timestamp,TopicArn,Type}'::text[]
                ELSE '{Message,MessageId,SubscribeURL,Timestamp,Token,TopicArn,Type}' END) AS f (name)
    WHERE p_message ->> f.name IS NOT NULL;
END;

-- Is the request the provider's, and recent?  p_json: its body, where the signature stands in it.
CREATE FUNCTION kliv_mail._is_from_provider(w kliv_mail._webhook, p_headers jsonb, p_body bytea, p_json jsonb) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_id text;
    v_time text;
BEGIN
    CASE w.provider
    WHEN 'sendgrid' THEN
        v_time := kliv_mail._request_header(p_headers, 'x-twilio-email-event-webhook-timestamp');
        RETURN kliv_mail._is_recent(v_time, interval '600 seconds')
           AND kliv_mail._webhook_signed('sendgrid', NULL, NULL, w.public_key, NULL,
                kliv_mail._request_header(p_headers, 'x-twilio-email-event-webhook-signature'), convert_to(v_time, 'UTF8') || p_body);
    WHEN 'resend' THEN
        v_id := coalesce(kliv_mail._request_header(p_headers, 'svix-id'), kliv_mail._request_header(p_headers, 'webhook-id'));
        v_time := coalesce(kliv_mail._request_header(p_headers, 'svix-timestamp'), kliv_mail._request_header(p_headers, 'webhook-timestamp'));
        RETURN v_id <> '' AND kliv_mail._is_recent(v_time, interval '300 seconds')
           AND kliv_mail._webhook_signed('resend', w.secret_cipher, w.key_id, NULL, NULL,
                coalesce(kliv_mail._request_header(p_headers, 'svix-signature'), kliv_mail._request_header(p_headers, 'webhook-signature')),
                convert_to(v_id || '.' || v_time || '.', 'UTF8') || p_body);
    WHEN 'postmark' THEN
        RETURN kliv_mail._webhook_signed('postmark', w.secret_cipher, w.key_id, NULL, NULL, kliv_mail._request_header(p_headers, 'authorization'), NULL);
    WHEN 'mailgun' THEN
        -- It tries for eight hours, with the same signature.
        RETURN kliv_mail._is_recent(p_json #>> '{signature,timestamp}', interval '12 hours') AND p_json #>> '{signature,token}' <> ''
           AND kliv_mail._webhook_signed('mailgun', w.secret_cipher, w.key_id, NULL, NULL, p_json #>> '{signature,signature}',
                convert_to((p_json #>> '{signature,timestamp}') || (p_json #>> '{signature,token}'), 'UTF8'));
    WHEN 'ses' THEN
        -- Any customer of Amazon gets a signature of Amazon's: the topic makes it ours.
        RETURN p_json ->> 'TopicArn' = w.topic_arn AND kliv_mail._is_recent(p_json ->> 'Timestamp', interval '1 hour')
           AND p_json ->> 'MessageId' <> ''
           AND p_json ->> 'SigningCertURL' ~ E'^https://sns\\.[a-zA-Z0-9-]{3,}\\.amazonaws\\.com(\\.cn)?/[A-Za-z0-9_/-]+\\.pem$'
           AND kliv_mail._webhook_signed('ses', NULL, NULL, w.certificate, p_json ->> 'SignatureVersion', p_json ->> 'Signature',
                kliv_mail._sns_text(p_json));
    END CASE;
END;
$$;
