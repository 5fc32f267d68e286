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

