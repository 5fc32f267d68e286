-- The schema.  Made here, not by CREATE EXTENSION, so that a schema that
-- somebody else made beforehand is an error and never adopted.

\echo Use "CREATE EXTENSION kliv_mail CASCADE" to load this file. \quit

SET LOCAL search_path TO pg_catalog, pg_temp;

CREATE SCHEMA kliv_mail;
COMMENT ON SCHEMA kliv_mail IS 'kliv_mail: what begins with "_" is internal.';
