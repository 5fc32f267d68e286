-- The present, what becomes of mail when it is set back, and where this database is.

-- Every 'now' of this extension: the clock moved by kliv_mail.test_clock_offset.
CREATE FUNCTION kliv_mail._now() RETURNS timestamptz
    LANGUAGE c VOLATILE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'kliv_mail__now';
COMMENT ON FUNCTION kliv_mail._now() IS
    'The present: clock_timestamp() moved by kliv_mail.test_clock_offset.';

-- '<system identifier>/<database OID>/<OID of the extension>': another one in a
-- stored row means that the row was copied here (promise 8), be it by a restore
-- into the very same database, which makes the extension anew.
CREATE FUNCTION kliv_mail._origin() RETURNS text
    LANGUAGE c STABLE STRICT PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'kliv_mail__origin';
COMMENT ON FUNCTION kliv_mail._origin() IS
    'This database of this server: system identifier, database OID and the extension''s own OID.';

INSERT INTO kliv_mail._state (origin) VALUES (kliv_mail._origin());

-- A setting as the server has it, also one that superusers alone may see.
CREATE FUNCTION kliv_mail._setting(name text) RETURNS text
    LANGUAGE c STABLE STRICT
    AS 'MODULE_PATHNAME', 'kliv_mail__setting';
COMMENT ON FUNCTION kliv_mail._setting(text) IS
    'What current_setting() says, whatever the rights of the extension''s owner.';

-- Rows of a table as they are committed now, and as this transaction changed
-- them, without the predicate locks of SERIALIZABLE: _current_rows(NULL::table),
-- or by the first columns of an index: _current_rows(NULL::table, 'index', 'value').
CREATE FUNCTION kliv_mail._current_rows(a_row anyelement, index text DEFAULT NULL, VARIADIC key text[] DEFAULT '{}')
    RETURNS SETOF anyelement
    LANGUAGE c STABLE ROWS 1
    AS 'MODULE_PATHNAME', 'kliv_mail__current_rows';
COMMENT ON FUNCTION kliv_mail._current_rows(anyelement, text, text[]) IS
    'Rows of a table as they are committed now, read without locks of any kind.';

-- The same as the statement's snapshot has them, in the index's order: what a SELECT
-- gives, for what send() shares with claims and views.
CREATE FUNCTION kliv_mail._snapshot_rows(a_row anyelement, index text DEFAULT NULL, max bigint DEFAULT NULL, VARIADIC key text[] DEFAULT '{}')
    RETURNS SETOF anyelement
    LANGUAGE c STABLE ROWS 1
    AS 'MODULE_PATHNAME', 'kliv_mail__snapshot_rows';
COMMENT ON FUNCTION kliv_mail._snapshot_rows(anyelement, text, bigint, text[]) IS
    'Rows of a table as the statement''s snapshot has them, read without locks of any kind.';

-- Where rows were made in the future, the clock has been set back: what was due when it was made, or
-- waits for a retry, is due now.  It looks at those that came behind the id p_after, which an earlier look had
-- returned, and at no more than the last ten thousand ids.  The newest id now.
CREATE FUNCTION kliv_mail._settle_clock(at timestamptz, p_after bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET jit = off AS $$
DECLARE
    v_ahead timestamptz := at + interval '10 seconds';
    v_newest bigint := (SELECT q.last_value FROM kliv_mail._delivery_id AS q);
BEGIN
    IF EXISTS (SELECT FROM kliv_mail._outbox AS o
               WHERE o.id > greatest(p_after, v_newest - 10000) AND o.created_at > v_ahead) THEN
        UPDATE kliv_mail._outbox AS o
        SET created_at = at,
            due = CASE WHEN o.due > at AND o.due < 'infinity' AND coalesce(m.send_at <= o.created_at, true) THEN at ELSE o.due END
        FROM kliv_mail._message AS m
        WHERE m.id = o.message_id AND o.id IN (
            SELECT x.id FROM kliv_mail._outbox AS x WHERE x.epoch IS NULL AND x.created_at > v_ahead FOR NO KEY UPDATE SKIP LOCKED);
    END IF;
    RETURN v_newest;
END;
$$;
