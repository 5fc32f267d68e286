-- The order of what becomes of deliveries, for outcomes().

-- What a transaction stamps the deliveries with whose state it changes: its own 64-bit
-- id.  No commit to come can show a stamp below one that outcomes() has handed out: it
-- hands out only what is below its snapshot's xmin, and by definition all transactions
-- below that have ended, whether in this database or another, prepared ones included.
-- So what waits for nobody at commit costs the reader alone a delay, as long as the
-- oldest transaction lives that writes anywhere on the server.  (What a crash takes
-- back of sessions that have synchronous_commit off, it can take back from a reader.)
--
-- Above it stands the era: a dump restored on another server, where ids begin anew,
-- brings its row of _state along and so goes on with higher stamps than any that the
-- rows it brought have.
CREATE FUNCTION kliv_mail._change() RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN kliv_mail._era() + pg_current_xact_id()::text::bigint;
END;
$$;

CREATE FUNCTION kliv_mail._era() RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT sum(s.era) FROM kliv_mail._current_rows(NULL::kliv_mail._state) AS s)::bigint << 48;
END;
$$;
