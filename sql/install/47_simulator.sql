-- What reports say later of mail that the simulator took (src/worker/sender_simulator.c).

-- As the address says, else delivered; how many deliveries.  Nobody is suppressed by it.
CREATE FUNCTION kliv_mail._play_reports(at timestamptz) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    v_ids bigint[] := ARRAY(SELECT d.id FROM kliv_mail._delivery AS d WHERE d.simulated AND d.status = 'sent'
                            ORDER BY d.finished_at LIMIT 200 FOR NO KEY UPDATE SKIP LOCKED);
    v_payload text;
BEGIN
    IF v_ids = '{}' THEN
        RETURN 0;
    END IF;
    WITH told AS (
        UPDATE kliv_mail._delivery AS d
        SET status = p.status, bounce_type = CASE p.status WHEN 'bounced' THEN 'hard' END,
            reason = CASE p.status WHEN 'bounced' THEN 'a report says that the mailbox does not exist (played: no server was asked)'
                                   WHEN 'complained' THEN 'a report says that the recipient complained (played: no server was asked)' END,
            hint = NULL, reported_at = at, changed = kliv_mail._change()
        FROM (SELECT x.id, coalesce(substring(lower(x.recipient COLLATE "C") FROM '^(bounced|complained)(?:[+].*)?@simulator[.]invalid$'), 'delivered') AS status
              FROM kliv_mail._delivery AS x WHERE x.id = ANY (v_ids)) AS p
        WHERE d.id = p.id
        RETURNING d.message_id, d.status)
    SELECT json_object_agg(t.message_id, t.status) INTO v_payload FROM told AS t;
    -- (a full queue would fail the claim beside it)
    IF current_setting('kliv_mail.notify')::boolean AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM kliv_mail._notify(v_payload);
    END IF;
    RETURN cardinality(v_ids);
END;
$$;
