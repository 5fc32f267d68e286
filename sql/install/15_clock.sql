-- The present, and where this database is.

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
