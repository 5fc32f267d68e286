-- Bounce mail: what it says, and what follows from it (src/feedback/, src/functions/bounces.c).

CREATE FUNCTION kliv_mail.parse_bounce(raw bytea)
RETURNS TABLE (recipient text, action text, status text, bounce_type text, report_type text, diagnostic text, message_id text,
    reporting_mta text)
LANGUAGE c STABLE PARALLEL SAFE ROWS 1
AS '$libdir/kliv_mail_net', 'kliv_mail_parse_bounce';
COMMENT ON FUNCTION kliv_mail.parse_bounce(bytea) IS
$$What a mail that came back says; a row for each recipient that it reports on, or one without a recipient. Changes nothing. raw: the mail as it was received; its first megabyte is looked at.
report_type: dsn (RFC 3464), arf (a complaint, RFC 5965), text (a mail server's words without machine-readable fields), autoreply (vacation, read receipt) or none. action: failed, delayed, delivered, relayed, expanded or complained. status: RFC 3463, the more precise one of report and reply. bounce_type: hard, soft, policy, complaint or NULL, by the rules of classify_reply(). diagnostic: the server's words, printable, at most 1,024 octets. message_id: of the mail that it is about, without <>; NULL where it names none.
Nothing of it is proven: ingest_bounce() decides whether it is about a mail of ours.
Errors: 22004 raw is NULL.
Example: SELECT * FROM kliv_mail.parse_bounce(pg_read_binary_file('/tmp/bounce.eml'));$$;

CREATE FUNCTION kliv_mail._read_bounce(raw bytea)
RETURNS TABLE (recipient text, action text, status text, bounce_type text, report_type text, diagnostic text, message_id text,
    reporting_mta text, original text, code integer, reason text, hint text, tokens text[])
LANGUAGE c STABLE PARALLEL SAFE ROWS 1
AS '$libdir/kliv_mail_net', 'kliv_mail_parse_bounce';

-- The delivery whose return path has this token; NULL: it is none of ours, or too old.
CREATE FUNCTION kliv_mail._bounce_token_read(token text) RETURNS bigint
AS '$libdir/kliv_mail_net', 'kliv_mail__bounce_token_read' LANGUAGE C VOLATILE STRICT SET search_path = pg_catalog, pg_temp;

-- The delivery that a row of a report is about, and whether that is sure, or why it is to be ignored.
CREATE FUNCTION kliv_mail._match_bounce(p_type text, p_tokens text[], p_message_id text, p_recipient text, p_original text,
    OUT delivery_id bigint, OUT sure boolean, OUT ignored text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_recipient text;
BEGIN
    IF p_tokens <> '{}' THEN
        SELECT t.id INTO delivery_id FROM (SELECT kliv_mail._bounce_token_read(x.token) AS id FROM unnest(p_tokens) AS x (token)) AS t
        WHERE t.id IS NOT NULL LIMIT 1;
        SELECT lower(d.recipient COLLATE "C") INTO v_recipient FROM kliv_mail._every_delivery AS d WHERE d.id = delivery_id;
        sure := true;
        ignored := CASE WHEN delivery_id IS NULL THEN 'forged or expired return path'
                        WHEN v_recipient IS NULL THEN 'about no mail of this database'
                        -- Who passes a complaint on may have made another address of it.
                        WHEN p_type <> 'arf' AND v_recipient <> lower(p_recipient COLLATE "C")
                             AND v_recipient IS DISTINCT FROM lower(p_original COLLATE "C") THEN 'about another recipient' END;
        RETURN;
    END IF;
    delivery_id := coalesce(kliv_mail._find_delivery(p_message_id, NULL, NULL, p_original),
                            kliv_mail._find_delivery(p_message_id, NULL, NULL, p_recipient));
    -- Many providers keep to themselves who complained.
    IF delivery_id IS NULL AND p_recipient IS NULL THEN
        SELECT min(d.id) INTO delivery_id FROM kliv_mail._deliveries_of(p_message_id) AS d HAVING count(*) = 1;
    END IF;
    SELECT m.recipients = 1 INTO sure FROM kliv_mail._message AS m WHERE m.header_id = p_message_id;
    ignored := CASE WHEN sure IS NULL THEN 'about no mail of this database' WHEN delivery_id IS NULL THEN 'about another recipient' END;
END;
$$;

-- A mail that came back, whichever way: how many deliveries it changed, and what it was taken for.
-- p_patience: at least 2, for an outcome that is not recorded yet (_finished_delivery()).
CREATE FUNCTION kliv_mail._take_bounce(p_raw bytea, p_patience integer, OUT changed integer, OUT report_type text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r record;
    m record;
BEGIN
    changed := 0;
    FOR r IN SELECT x.*, row_number() OVER () AS n FROM kliv_mail._read_bounce(p_raw) AS x LOOP
        report_type := r.report_type;
        IF r.action IS NULL THEN
            PERFORM kliv_mail._ignore_report('bounce', CASE r.report_type WHEN 'autoreply' THEN 'an automatic reply' ELSE 'no report' END);
            CONTINUE;
        END IF;
        SELECT * INTO m FROM kliv_mail._match_bounce(r.report_type, r.tokens, r.message_id, r.recipient, r.original) AS x;
        IF m.ignored IS NOT NULL THEN
            PERFORM kliv_mail._ignore_report('bounce', m.ignored);
            CONTINUE;
        END IF;
        changed := changed + kliv_mail._apply_report('bounce', encode(sha256(p_raw), 'hex') || '/' || r.n, m.delivery_id, r.recipient,
            CASE r.action WHEN 'failed' THEN 'bounced' WHEN 'delayed' THEN 'deferred' WHEN 'delivered' THEN 'delivered'
                          WHEN 'complained' THEN 'complained' ELSE 'sent' END,
            r.bounce_type, r.code, r.status, r.diagnostic, r.reason, r.hint, m.sure, p_raw, p_patience)::integer;
    END LOOP;
END;
$$;

CREATE FUNCTION kliv_mail._ingest_bounce(p_caller name, p_raw bytea) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_raw IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'raw: must not be null', HINT = 'Give the whole mail, header and body, as it was received.';
    END IF;
    RETURN (SELECT t.changed FROM kliv_mail._take_bounce(p_raw, 60) AS t);
END;
$$;

CREATE FUNCTION kliv_mail.ingest_bounce(raw bytea) RETURNS integer
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.ingest_bounce(bytea) IS
$$Takes a mail that came back, as parse_bounce() reads it, and applies it to the delivery that it is about: bounced, delivered or complained. A hard bounce suppresses the address, a complaint stops its marketing mail. raw: the mail as it was received, header and body.
It is believed where it came to a signed return path (kliv_mail.bounce_domain) of that delivery, or names the Message-ID and the recipient of a mail of this database. Where the message had several recipients, who all know its Message-ID, that alone suppresses nobody. Everything else, automatic replies too, changes nothing and is counted in the view events (reports_ignored). The same mail twice counts once.
Returns how many deliveries changed. Errors: 22004 raw is NULL, 55000 the outcome of the delivery is not recorded yet, or the key of the return paths cannot be read.
Example: SELECT kliv_mail.ingest_bounce(pg_read_binary_file('/tmp/bounce.eml'));$$;
