-- What needs no sign-in: the recipient's page (/u), whose token is the authority, and
-- the providers' webhooks (/hooks), whose signature is.

-- What a token's page shows: the topic, the others, and which of them the recipient gets;
-- NULL for what is no token of ours.
CREATE FUNCTION kliv_mail.__door_recipient(p_caller name, p_token text, p_language text) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_address text;
    v_topic text;
    v_all boolean;
    v_topics jsonb;
BEGIN
    SELECT lower(x.address COLLATE "C"), CASE x.list WHEN 'all' THEN 'marketing' ELSE x.list END INTO v_address, v_topic
    FROM kliv_mail._unsubscribe_read(p_token) AS x;
    IF v_address IS NULL OR v_topic = '' THEN
        RETURN NULL;
    END IF;
    v_all := EXISTS (SELECT FROM kliv_mail._suppression AS s WHERE s.address = v_address AND s.scope IN ('all', 'marketing') AND (s.expires_at IS NULL OR s.expires_at > v_at));
    WITH names AS (
        SELECT t.name FROM kliv_mail._topic AS t UNION SELECT v_topic
        UNION SELECT s.scope FROM kliv_mail._suppression AS s WHERE s.address = v_address AND s.scope NOT IN ('all', 'marketing') AND s.reason = 'unsubscribed'),
    shown AS (
        SELECT n.name, coalesce(x.title, n.name) AS title, x.description,
               NOT v_all AND NOT EXISTS (SELECT FROM kliv_mail._suppression AS s
                                         WHERE s.address = v_address AND s.scope = n.name AND (s.expires_at IS NULL OR s.expires_at > v_at)) AS gets
        FROM names AS n
        LEFT JOIN LATERAL (SELECT t.title, t.description FROM kliv_mail._topic AS t WHERE t.name = n.name AND t.locale IN (p_language, '')
                           ORDER BY t.locale DESC LIMIT 1) AS x ON true)
    SELECT jsonb_agg(to_jsonb(s) ORDER BY s.title) FILTER (WHERE s.name <> 'marketing') INTO v_topics FROM shown AS s;
    RETURN jsonb_build_object('topics', coalesce(v_topics, '[]'), 'topic', v_topic, 'everything', v_topic = 'marketing', 'left_all', v_all,
        -- What the recipient did not wish itself is not the recipient's to change here.
        'fixed', EXISTS (SELECT FROM kliv_mail._suppression AS s WHERE s.address = v_address AND s.scope IN ('all', 'marketing') AND s.reason IS DISTINCT FROM 'unsubscribed'
                             AND (s.expires_at IS NULL OR s.expires_at > v_at)),
        -- Whoever has the mail knows the address; who has the link alone need not learn it.
        'address', left(v_address, 1) || '***@' || split_part(v_address, '@', -1));
END;
$$;

CREATE FUNCTION kliv_mail._door_recipient(token text, language text) RETURNS jsonb
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C STABLE SET search_path = pg_catalog, pg_temp;

-- The recipient gets these of the topics that the page shows; none of them and left_all: no marketing mail at all.
-- What a bounce, a complaint or an administrator stopped is not the recipient's to start again here.
CREATE FUNCTION kliv_mail.__door_choose(p_caller name, p_token text, p_topics text[], p_left_all boolean) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at timestamptz := kliv_mail._now();
    v_page jsonb := kliv_mail.__door_recipient(p_caller, p_token, '');
    v_address text;
    v_gone text;
BEGIN
    IF v_page IS NULL THEN
        RETURN false;
    END IF;
    SELECT lower(x.address COLLATE "C") INTO v_address FROM kliv_mail._unsubscribe_read(p_token) AS x;
    IF p_left_all THEN
        IF NOT EXISTS (SELECT FROM kliv_mail._suppression AS s WHERE s.address = v_address AND s.scope = 'marketing' AND s.expires_at IS NULL) THEN
            PERFORM kliv_mail._add_suppressions(p_caller, ARRAY[v_address], 'marketing', 'unsubscribed', NULL);
        END IF;
    ELSE
        FOR v_gone IN
            DELETE FROM kliv_mail._suppression AS s
            WHERE s.address = v_address AND s.reason = 'unsubscribed' AND cardinality(p_topics) > 0 AND s.scope = ANY (p_topics || 'marketing'::text)
            RETURNING s.scope
        LOOP
            PERFORM kliv_mail._log_event('unsuppressed_address', NULL, v_address, jsonb_build_object('scope', v_gone, 'reason', 'subscribed again'), p_caller);
        END LOOP;
        PERFORM kliv_mail._add_suppressions(p_caller, ARRAY[v_address], t.topic ->> 'name', 'unsubscribed', NULL)
        FROM jsonb_array_elements(v_page -> 'topics') AS t (topic)
        WHERE t.topic ->> 'name' <> ALL (p_topics)
          AND NOT EXISTS (SELECT FROM kliv_mail._suppression AS s WHERE s.address = v_address AND s.scope = t.topic ->> 'name' AND s.expires_at IS NULL);
    END IF;
    IF kliv_mail._stop_suppressed(ARRAY[v_address], v_at) > 0 THEN
        PERFORM kliv_mail._wake();
    END IF;
    RETURN true;
END;
$$;

CREATE FUNCTION kliv_mail._door_choose(token text, topics text[], left_all boolean) RETURNS boolean
AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;

-- GET shows, and changes nothing; POST leaves the topic (also RFC 8058's), or chooses.
CREATE FUNCTION kliv_mail._door_leave(r jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_token text := coalesce(r #>> '{path,1}', r #>> '{query,token}');
    v_page jsonb;
    v_ours boolean;
    v_what text := CASE WHEN r #>> '{form,List-Unsubscribe}' = 'One-Click' THEN 'one_click' ELSE r #>> '{form,do}' END;
    v_rest text := CASE WHEN r #>> '{set_language}' IS NOT NULL THEN '&lang=' || (r ->> 'language') ELSE '' END;
BEGIN
    IF v_token IS NULL OR char_length(v_token) > 1000 OR v_token !~ '^[A-Za-z0-9_-]+$' THEN
        RETURN kliv_mail._door_problem(404);
    ELSIF r ->> 'method' = 'POST' THEN
        IF v_what IN ('one_click', 'leave') THEN
            v_ours := kliv_mail.unsubscribe(v_token);
        ELSIF v_what IN ('choose', 'leave_all') THEN
            v_ours := kliv_mail._door_choose(v_token,
                ARRAY(SELECT substr(f.name, 7) FROM jsonb_object_keys(r -> 'form') AS f (name) WHERE f.name ^@ 'topic_'), v_what = 'leave_all');
        ELSE
            RETURN kliv_mail._door_problem(400);
        END IF;
        RETURN CASE WHEN NOT v_ours THEN kliv_mail._door_problem(404)
            WHEN v_what = 'one_click' THEN jsonb_build_object('status', 200, 'text', 'unsubscribed')
            ELSE jsonb_build_object('location', format('/u/%s?done=%s', v_token, v_what) || v_rest) END;
    END IF;
    v_page := kliv_mail._door_recipient(v_token, r ->> 'language');
    RETURN CASE WHEN v_page IS NULL THEN kliv_mail._door_problem(404)
        ELSE jsonb_build_object('page', 'leave', 'data', v_page || jsonb_build_object('has_topics', jsonb_array_length(v_page -> 'topics') > 0 AND NOT (v_page -> 'fixed')::boolean, 'token', v_token, 'suffix', nullif(v_rest, ''),
            'one', (SELECT t.topic FROM jsonb_array_elements(v_page -> 'topics') AS t (topic) WHERE t.topic ->> 'name' = v_page ->> 'topic'))) END;
END;
$$;

-- The answer stands within the transaction: what is not committed must not be answered 200.
CREATE FUNCTION kliv_mail._door_hook(p_provider text, p_headers jsonb, p_body bytea) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_state text;
    v_message text;
    v_column text;
BEGIN
    RETURN jsonb_build_object('status', 200, 'text', format('%s changed', kliv_mail.ingest_webhook(p_provider, p_headers, p_body)));
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS v_state = RETURNED_SQLSTATE, v_message = MESSAGE_TEXT, v_column = COLUMN_NAME;
    IF v_state !~ '^(?:28|22|54)' THEN
        RAISE LOG USING MESSAGE = format('http_request: the webhook of %s failed: %s %s', p_provider, v_state, v_message);
    END IF;
    -- 503 is what providers repeat.  A signature's trouble is all that is said to who cannot sign.
    RETURN kliv_mail._door_problem(CASE WHEN v_state = '28000' THEN 401 WHEN v_state = '22023' AND v_column = 'provider' THEN 404
        WHEN v_state ~ '^22' THEN 400 WHEN v_state ~ '^54' THEN 413 WHEN v_state = '42501' THEN 403 ELSE 503 END);
END;
$$;
