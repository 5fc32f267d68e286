-- A mail in one object, with the names that mail libraries use; files in one parameter.

-- An array of files for send(), from what any driver can hand over.
CREATE FUNCTION kliv_mail.attachments(files jsonb) RETURNS kliv_mail.attachment[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c_form constant text := 'Write [{"filename": "a.pdf", "content": "<base64>"}, {"filename": "a.csv", "text": "item,price"}], with "content_type" and "content_id" where they are needed.';
    v_files jsonb := CASE jsonb_typeof(files) WHEN 'object' THEN jsonb_build_array(files) ELSE files END;
    v_result kliv_mail.attachment[] := '{}';
    v_name text;
    v_type text;
    v_id text;
    v_bytes bytea;
    f record;
BEGIN
    IF files IS NULL OR jsonb_typeof(files) = 'null' THEN
        RETURN NULL;
    ELSIF jsonb_typeof(v_files) <> 'array' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'attachments: is not an array', HINT = c_form, COLUMN = 'attachments';
    END IF;
    FOR f IN SELECT x.file, x.n FROM jsonb_array_elements(v_files) WITH ORDINALITY AS x (file, n) ORDER BY x.n LOOP
        IF jsonb_typeof(f.file) <> 'object' THEN
            RAISE invalid_parameter_value USING MESSAGE = format('attachments: entry %s is not an object', f.n), HINT = c_form, COLUMN = 'attachments';
        END IF;
        PERFORM kliv_mail._known_names(f.file, format('attachments: entry %s', f.n), 'attachments',
            '{filename,content,text,content_type,contentType,content_id,contentId,cid}');
        v_name := kliv_mail._text_of(f.file, 'filename', 'attachments');
        v_type := coalesce(kliv_mail._text_of(f.file, 'content_type', 'attachments'), kliv_mail._text_of(f.file, 'contentType', 'attachments'));
        v_id := coalesce(kliv_mail._text_of(f.file, 'content_id', 'attachments'), kliv_mail._text_of(f.file, 'contentId', 'attachments'),
                         kliv_mail._text_of(f.file, 'cid', 'attachments'));
        IF (f.file->>'content' IS NULL) = (f.file->>'text' IS NULL) THEN
            RAISE invalid_parameter_value USING MESSAGE = format('attachments: entry %s has %s', f.n,
                    CASE WHEN f.file->>'text' IS NULL THEN 'neither "content" nor "text"' ELSE 'both "content" and "text"' END),
                HINT = c_form, COLUMN = 'attachments';
        ELSIF f.file->>'text' IS NOT NULL AND v_id IS NULL THEN
            v_result := v_result || kliv_mail.attach_text(v_name, kliv_mail._text_of(f.file, 'text', 'attachments'), v_type);
        ELSE
            BEGIN
                v_bytes := CASE WHEN f.file->>'content' IS NULL THEN convert_to(f.file->>'text', 'UTF8')
                                WHEN jsonb_typeof(f.file->'content') = 'string' THEN decode(f.file->>'content', 'base64') END;
            EXCEPTION WHEN invalid_parameter_value THEN
                v_bytes := NULL;
            END;
            IF v_bytes IS NULL THEN
                RAISE invalid_parameter_value USING MESSAGE = format('attachments: entry %s: content is not base64', f.n),
                    HINT = 'Encode the file''s bytes in base64 (Node: buffer.toString(''base64'')), or give a text as "text".', COLUMN = 'attachments';
            END IF;
            v_result := v_result || kliv_mail.attach(v_name, v_bytes, v_type, v_id);
        END IF;
    END LOOP;
    RETURN v_result;
END;
$$;
COMMENT ON FUNCTION kliv_mail.attachments(jsonb) IS
$$Files for send(attachments => ...) from one parameter: [{"filename": ..., "content": base64 | "text": ..., "content_type": ..., "content_id": ...}]. content_type and content_id as in attach(); NULL gives NULL.
Errors: 22023 what is not of that form, an unknown name, content that is not base64; else as attach().
Example: SELECT kliv_mail.send('ana@example.com', 'Your receipt', 'Here it is', attachments => kliv_mail.attachments('[{"filename": "receipt.csv", "text": "item,price"}]'));$$;

-- Refuse an object with a name that nobody knows.
CREATE FUNCTION kliv_mail._known_names(p_object jsonb, p_what text, p_argument text, p_known text[]) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name text;
BEGIN
    FOR v_name IN SELECT k.name FROM jsonb_object_keys(p_object) AS k (name) WHERE k.name <> ALL (p_known) LIMIT 1 LOOP
        RAISE invalid_parameter_value USING MESSAGE = format('%s: there is no "%s"', p_what, left(v_name, 100)), COLUMN = p_argument,
            HINT = kliv_mail._nearest(v_name, p_known) || 'There are: ' || array_to_string(p_known, ', ') || '.';
    END LOOP;
END;
$$;

-- A text of an object; NULL where it is null or not there.
CREATE FUNCTION kliv_mail._text_of(p_object jsonb, p_name text, p_argument text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF jsonb_typeof(p_object->p_name) NOT IN ('string', 'null') THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%s: is of type %s', concat_ws(': ', p_argument, nullif(p_name, p_argument)), jsonb_typeof(p_object->p_name)),
            HINT = 'Write it as a string.', COLUMN = p_argument;
    END IF;
    RETURN p_object->>p_name;
END;
$$;

-- Addresses as an address list: a string, {"address": ..., "name": ...}, or an array of these.
CREATE FUNCTION kliv_mail._addresses_of(p_mail jsonb, p_name text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_value jsonb := p_mail->p_name;
    v_list text[] := '{}';
    a jsonb;
BEGIN
    FOR a IN SELECT x FROM jsonb_array_elements(CASE jsonb_typeof(v_value) WHEN 'array' THEN v_value ELSE jsonb_build_array(v_value) END) AS x LOOP
        CONTINUE WHEN a IS NULL OR jsonb_typeof(a) = 'null';
        IF jsonb_typeof(a) = 'object' THEN
            PERFORM kliv_mail._known_names(a, 'mail: ' || p_name, p_name, '{address,email,name}');
            v_list := v_list || kliv_mail.mailbox(coalesce(kliv_mail._text_of(a, 'address', p_name), kliv_mail._text_of(a, 'email', p_name)),
                                                  kliv_mail._text_of(a, 'name', p_name));
        ELSIF jsonb_typeof(a) = 'string' THEN
            v_list := v_list || (a #>> '{}');
        ELSE
            RAISE invalid_parameter_value USING MESSAGE = format('%s: an entry is of type %s', p_name, jsonb_typeof(a)), COLUMN = p_name,
                HINT = 'Write an address list, {"address": "ana@example.com", "name": "Ana"}, or an array of these.';
        END IF;
    END LOOP;
    RETURN CASE WHEN v_list <> '{}' THEN array_to_string(v_list, ', ') END;
END;
$$;

CREATE FUNCTION kliv_mail._time_of(p_mail jsonb, p_name text) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN kliv_mail._text_of(p_mail, p_name, p_name)::timestamptz;
EXCEPTION WHEN invalid_datetime_format OR datetime_field_overflow THEN
    RAISE invalid_datetime_format USING MESSAGE = format('%s: "%s" is no time', p_name, left(p_mail->>p_name, 100)), COLUMN = p_name,
        HINT = 'Write it as in "2026-12-24T18:00:00Z".';
END;
$$;

CREATE FUNCTION kliv_mail.send(mail jsonb) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c_known constant text[] := '{to,cc,bcc,from,from_address,from_name,reply_to,replyTo,subject,text,html,headers,attachments,template,variables,locale,message_type,topic,send_at,expires_at,idempotency_key,replace_key,tags,metadata,account,on_limit}';
    c_of_template constant text[] := '{subject,text,html,message_type}';
    v_template text;
    v_from text;
    v_from_name text;
    v_reply_to text;
    v_tags text[];
    v_name text;
BEGIN
    IF mail IS NULL OR jsonb_typeof(mail) <> 'object' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'mail: is not an object', COLUMN = 'mail',
            HINT = 'Write {"to": "ana@example.com", "subject": "Welcome", "text": "Hello Ana"}.';
    END IF;
    PERFORM kliv_mail._known_names(mail, 'mail', 'mail', c_known);
    v_template := kliv_mail._text_of(mail, 'template', 'template');
    FOR v_name IN SELECT k.name FROM jsonb_object_keys(jsonb_strip_nulls(mail)) AS k (name)
                  WHERE k.name = ANY (CASE WHEN v_template IS NULL THEN '{variables,locale}' ELSE c_of_template END) LIMIT 1 LOOP
        RAISE invalid_parameter_value USING COLUMN = v_name,
            MESSAGE = format('mail: "%s" %s', v_name, CASE WHEN v_template IS NULL THEN 'needs a template' ELSE 'is what the template has' END),
            HINT = format('Leave out "%s" or %s "template".', v_name, CASE WHEN v_template IS NULL THEN 'give' ELSE 'leave out' END);
    END LOOP;
    v_reply_to := coalesce(kliv_mail._addresses_of(mail, 'reply_to'), kliv_mail._addresses_of(mail, 'replyTo'));
    v_from := kliv_mail._addresses_of(mail, 'from');
    IF v_from IS NOT NULL THEN
        IF mail->>'from_address' IS NOT NULL OR mail->>'from_name' IS NOT NULL THEN
            RAISE invalid_parameter_value USING MESSAGE = 'mail: "from" beside "from_address" or "from_name"', COLUMN = 'from',
                HINT = 'Give either "from", or the two others.';
        END IF;
        -- Exactly one, as mailbox() says it.
        SELECT p.address, nullif(p.name, '') INTO v_from, v_from_name FROM kliv_mail.parse_addresses(kliv_mail.mailbox(v_from)) AS p;
    ELSE
        v_from := kliv_mail._text_of(mail, 'from_address', 'from_address');
        v_from_name := kliv_mail._text_of(mail, 'from_name', 'from_name');
    END IF;
    IF jsonb_typeof(mail->'tags') = 'array'
       AND NOT EXISTS (SELECT FROM jsonb_array_elements(mail->'tags') AS x (tag) WHERE jsonb_typeof(x.tag) <> 'string') THEN
        v_tags := ARRAY(SELECT x.tag FROM jsonb_array_elements_text(mail->'tags') WITH ORDINALITY AS x (tag, n) ORDER BY x.n);
    ELSIF jsonb_typeof(mail->'tags') NOT IN ('string', 'null') THEN
        RAISE invalid_parameter_value USING MESSAGE = 'tags: is not an array of strings', HINT = 'Write ["welcome", "beta"].', COLUMN = 'tags';
    ELSE
        v_tags := ARRAY[mail->>'tags'];
        v_tags := nullif(array_remove(v_tags, NULL), '{}');
    END IF;
    IF v_template IS NOT NULL THEN
        RETURN kliv_mail.send_template(
            template => v_template, recipients => kliv_mail._addresses_of(mail, 'to'), variables => coalesce(nullif(mail->'variables', 'null'), '{}'),
            locale => kliv_mail._text_of(mail, 'locale', 'locale'), cc => kliv_mail._addresses_of(mail, 'cc'), bcc => kliv_mail._addresses_of(mail, 'bcc'),
            from_address => v_from, from_name => v_from_name, reply_to => v_reply_to, headers => nullif(mail->'headers', 'null'),
            attachments => kliv_mail.attachments(mail->'attachments'), send_at => kliv_mail._time_of(mail, 'send_at'),
            expires_at => kliv_mail._time_of(mail, 'expires_at'), idempotency_key => kliv_mail._text_of(mail, 'idempotency_key', 'idempotency_key'),
            replace_key => kliv_mail._text_of(mail, 'replace_key', 'replace_key'), tags => v_tags, metadata => nullif(mail->'metadata', 'null'),
            account => kliv_mail._text_of(mail, 'account', 'account'), on_limit => coalesce(kliv_mail._text_of(mail, 'on_limit', 'on_limit'), 'defer'),
            topic => kliv_mail._text_of(mail, 'topic', 'topic'));
    END IF;
    RETURN kliv_mail.send(
        recipients => kliv_mail._addresses_of(mail, 'to'), subject => kliv_mail._text_of(mail, 'subject', 'subject'),
        body => kliv_mail._text_of(mail, 'text', 'text'), html => kliv_mail._text_of(mail, 'html', 'html'),
        cc => kliv_mail._addresses_of(mail, 'cc'), bcc => kliv_mail._addresses_of(mail, 'bcc'), from_address => v_from, from_name => v_from_name,
        reply_to => v_reply_to, headers => nullif(mail->'headers', 'null'), attachments => kliv_mail.attachments(mail->'attachments'),
        message_type => coalesce(kliv_mail._text_of(mail, 'message_type', 'message_type'), 'transactional'),
        send_at => kliv_mail._time_of(mail, 'send_at'), expires_at => kliv_mail._time_of(mail, 'expires_at'),
        idempotency_key => kliv_mail._text_of(mail, 'idempotency_key', 'idempotency_key'), replace_key => kliv_mail._text_of(mail, 'replace_key', 'replace_key'),
        tags => v_tags, metadata => nullif(mail->'metadata', 'null'), topic => kliv_mail._text_of(mail, 'topic', 'topic'),
        account => kliv_mail._text_of(mail, 'account', 'account'), on_limit => coalesce(kliv_mail._text_of(mail, 'on_limit', 'on_limit'), 'defer'));
END;
$$;
COMMENT ON FUNCTION kliv_mail.send(jsonb) IS
$$Queues a mail given as one object, as send() does, or with "template" as send_template() does; returns the message's id.
mail: to, cc, bcc, reply_to: a string, {"address", "name"} or an array of these; from: the same, of one address; subject, text, html, headers, attachments (as for attachments()), message_type, topic, send_at, expires_at, idempotency_key, replace_key, tags, metadata, account, on_limit; with a template: template, variables, locale.
Errors: 22023 an unknown name, with the nearest one; else as send() and send_template().
Example: SELECT kliv_mail.send('{"to": ["ana@example.com"], "subject": "Welcome", "text": "Hello Ana"}');$$;
