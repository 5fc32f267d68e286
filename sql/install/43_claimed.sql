-- What a sender reads of the deliveries that it has claimed, and what it writes of having them in hand.

-- What the sender needs of the messages it does not hold yet.
CREATE FUNCTION kliv_mail._messages(p_ids bigint[])
RETURNS TABLE (id bigint, header_id text, from_address text, from_name text, reply_to text, smtputf8 boolean, unsubscribe boolean, topic text, entity bytea)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY SELECT m.id, m.header_id, m.from_address, m.from_name, m.reply_to, m.smtputf8, m.unsubscribe, m.topic, m.entity
    FROM kliv_mail._message AS m WHERE m.id = ANY (p_ids);
END;
$$;

-- A message that was queued while there was no account has half a Message-ID: the first
-- account that tries it gives its domain, for good.  The whole one.
CREATE FUNCTION kliv_mail._name_message(p_id bigint, p_domain text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE kliv_mail._message AS m SET header_id = m.header_id || '@' || p_domain WHERE m.id = p_id AND strpos(m.header_id, '@') = 0;
    RETURN (SELECT m.header_id FROM kliv_mail._message AS m WHERE m.id = p_id);
END;
$$;

-- What a transaction of the sender takes into its hands, and what of that a server may
-- have from its commit on; p_done: its batches that are finished.
CREATE FUNCTION kliv_mail._stamp(p_epoch bigint, p_batch bigint, p_claimed bigint[], p_begun bigint[], p_done bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_done <> '{}' THEN
        DELETE FROM kliv_mail._batch AS b WHERE b.epoch = p_epoch AND b.id = ANY (p_done);
    END IF;
    IF p_claimed <> '{}' THEN
        INSERT INTO kliv_mail._batch (epoch, id, begun, deliveries) VALUES (p_epoch, p_batch, false, p_claimed);
    END IF;
    IF p_begun <> '{}' THEN
        INSERT INTO kliv_mail._batch (epoch, id, begun, deliveries) VALUES (p_epoch, p_batch + 1, true, p_begun);
    END IF;
END;
$$;
