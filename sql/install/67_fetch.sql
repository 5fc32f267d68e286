-- What the fetcher does with the bounce mailbox (src/worker/fetcher.c calls these by name):
-- each is a transaction, or part of one, between two waits for the server.  p_settings is
-- the _bounce_mailbox.updated_at that it works with; where it is another, it begins anew.

-- When a fetcher is next needed, by this database's clock; infinity: not before a call.
CREATE FUNCTION kliv_mail._fetch_due() RETURNS timestamptz
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT coalesce((SELECT f.next_at FROM kliv_mail._fetched AS f CROSS JOIN kliv_mail._mailbox_held() AS h WHERE h.reason IS NULL), 'infinity');
END;

-- The mails before seen_uid were looked at, to_file waits to be moved, postponed to be looked
-- at again.  A server that numbers anew begins anew; what was taken is not counted twice.
CREATE FUNCTION kliv_mail._fetch_open(p_settings timestamptz, p_uid_validity bigint)
RETURNS TABLE (seen_uid bigint, to_file bigint[], postponed bigint[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE kliv_mail._fetched AS f
    SET uid_validity = p_uid_validity, seen_uid = 0, to_file = '{}', postponed = '{}', hand_uid = NULL, hand_tries = 0
    WHERE f.settings = p_settings AND f.uid_validity IS DISTINCT FROM p_uid_validity;
    RETURN QUERY SELECT f.seen_uid, f.to_file, f.postponed FROM kliv_mail._fetched AS f WHERE f.settings = p_settings;
END;
$$;

-- The mail is taken next; false: it is left alone, since three times nobody came to its end, be it
-- that the server, or we, did not survive it.  NULL: the settings have changed.
CREATE FUNCTION kliv_mail._fetch_hand(p_settings timestamptz, p_uid bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_tries integer;
BEGIN
    UPDATE kliv_mail._fetched AS f
    SET hand_uid = p_uid, hand_tries = CASE WHEN f.hand_uid = p_uid THEN f.hand_tries + 1 ELSE 1 END
    WHERE f.settings = p_settings
    RETURNING f.hand_tries INTO v_tries;
    IF v_tries > 3 THEN
        PERFORM kliv_mail._ignore_report('bounce', 'could not be read');
        UPDATE kliv_mail._fetched AS f
        SET seen_uid = greatest(f.seen_uid, p_uid), postponed = array_remove(f.postponed, p_uid), looked_at = f.looked_at + 1,
            hand_uid = NULL, hand_tries = 0;
    END IF;
    RETURN v_tries <= 3;
END;
$$;

-- One mail, as ingest_bounce() takes it; whether it is to be filed.  NULL: the settings have changed.
-- p_raw NULL: it is gone, or the server does not give it.
CREATE FUNCTION kliv_mail._fetch_take(p_settings timestamptz, p_uid bigint, p_raw bytea) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_type text;
    v_later boolean := false;
    v_file boolean := false;
    v_again boolean;
BEGIN
    -- First the lock, so that nothing is counted that is not marked as taken.
    SELECT p_uid = ANY (f.postponed) INTO v_again FROM kliv_mail._fetched AS f WHERE f.settings = p_settings FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF p_raw IS NOT NULL THEN
        BEGIN
            SELECT t.report_type INTO v_type FROM kliv_mail._take_bounce(p_raw, 2) AS t;
            v_file := v_type <> 'none';
        EXCEPTION
            -- Later it may be another matter: the outcome recorded, the key there, the lock free.
            WHEN object_not_in_prerequisite_state OR lock_not_available OR transaction_rollback OR insufficient_resources THEN
                v_later := true;
            WHEN OTHERS THEN
                RAISE LOG 'kliv_mail: a mail in the bounce mailbox could not be read: %', SQLERRM;
                PERFORM kliv_mail._ignore_report('bounce', 'could not be read');
        END;
    END IF;
    UPDATE kliv_mail._fetched AS f
    SET seen_uid = greatest(f.seen_uid, p_uid), hand_uid = NULL, hand_tries = 0,
        looked_at = f.looked_at + CASE WHEN v_again OR p_raw IS NULL THEN 0 ELSE 1 END,
        to_file = CASE WHEN v_file THEN array_append(array_remove(f.to_file, p_uid), p_uid) ELSE f.to_file END,
        -- A hundred, so that nobody fills it: the oldest gives way.
        postponed = CASE WHEN NOT v_later THEN array_remove(f.postponed, p_uid) WHEN v_again THEN f.postponed
                         ELSE (array_append(f.postponed, p_uid))[greatest(1, cardinality(f.postponed) - 98):] END;
    RETURN v_file;
END;
$$;

CREATE FUNCTION kliv_mail._fetch_filed(p_settings timestamptz, p_uids bigint[]) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE kliv_mail._fetched AS f
    SET to_file = ARRAY(SELECT u.uid FROM unnest(f.to_file) AS u (uid) WHERE u.uid <> ALL (p_uids)), filed = f.filed + cardinality(p_uids)
    WHERE f.settings = p_settings;
END;

-- The look is over.  p_more: there is more to look at, at once.  p_trouble: what ended it;
-- p_final: trying again soon is in vain, and may get the mailbox locked.
CREATE FUNCTION kliv_mail._fetch_end(p_settings timestamptz, p_more boolean, p_step text, p_trouble text, p_hint text, p_final boolean,
    OUT is_new boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := kliv_mail._now();
    v_every interval;
    f kliv_mail._fetched;
BEGIN
    SELECT x.* INTO f FROM kliv_mail._fetched AS x WHERE x.settings = p_settings FOR UPDATE;
    SELECT m.fetch_every INTO v_every FROM kliv_mail._bounce_mailbox AS m;
    is_new := f.singleton AND p_trouble IS NOT NULL AND f.trouble_step IS DISTINCT FROM p_step;
    UPDATE kliv_mail._fetched AS x
    SET last_at = at, last_ok_at = CASE WHEN p_trouble IS NULL THEN at ELSE x.last_ok_at END,
        failures = CASE WHEN p_trouble IS NULL THEN 0 ELSE x.failures + 1 END,
        trouble_step = p_step, trouble = left(p_trouble, 1000), trouble_hint = left(p_hint, 1000),
        -- Only what ends in the midst of a mail may be the mail's fault.
        hand_uid = CASE WHEN p_step = 'read' THEN x.hand_uid END, hand_tries = CASE WHEN p_step = 'read' THEN x.hand_tries ELSE 0 END,
        next_at = at + CASE WHEN p_more AND p_trouble IS NULL THEN interval '0' WHEN p_trouble IS NULL THEN v_every
                            WHEN p_final THEN greatest(v_every, interval '1 hour')
                            ELSE greatest(v_every, least(v_every * (1 << least(x.failures, 10)), interval '1 hour')) END
    WHERE x.settings = p_settings;
    IF is_new THEN
        PERFORM kliv_mail._log_event('bounce_mailbox_trouble', NULL, p_trouble, NULL);
    END IF;
END;
$$;
