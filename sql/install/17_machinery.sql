-- What keeps all mail of this server from leaving, whatever the account: the one
-- place that words it, for deliveries, status, next_step() and CREATE EXTENSION.

-- One row; code is NULL where nothing does.  VOLATILE, since it asks processes.
CREATE FUNCTION kliv_mail._machinery(OUT code text, OUT reason text, OUT hint text, OUT last_error text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    p record;
BEGIN
    SELECT * INTO p FROM kliv_mail._process_status() AS s;
    last_error := nullif(p.last_error, '');
    IF NOT p.preloaded THEN
        code := 'not_preloaded';
        reason := 'no sender can run: kliv_mail is not in shared_preload_libraries';
        -- Who may not see the list must not be led to overwrite it.
        hint := CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE')
            THEN format('ALTER SYSTEM SET shared_preload_libraries = %s; then restart the server.',
                (SELECT string_agg(quote_literal(x.name), ', ' ORDER BY x.n)
                 FROM regexp_split_to_table(concat_ws(',', nullif(current_setting('shared_preload_libraries'), ''), 'kliv_mail'), '[ ]*,[ ]*')
                     WITH ORDINALITY AS x (name, n)))
            ELSE 'The administrator of the server adds kliv_mail to shared_preload_libraries and restarts it.' END;
    ELSIF pg_is_in_recovery() THEN
        code := 'standby';
        reason := 'this server is a standby, and sends nothing until it is promoted';
        hint := 'Queue mail on the primary.';
    ELSIF p.launcher_pid IS NULL THEN
        code := 'launcher_not_running';
        reason := 'the launcher is not running';
        hint := 'The server''s log says why. It needs a worker slot: ' || kliv_mail._more_worker_slots();
    ELSIF p.slots_exhausted THEN
        code := 'no_worker_slot';
        reason := 'no worker slot is free for a sender';
        hint := kliv_mail._more_worker_slots();
    END IF;
END;
$$;

CREATE FUNCTION kliv_mail._more_worker_slots() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT format('ALTER SYSTEM SET max_worker_processes = %s; then restart the server.',
                  current_setting('max_worker_processes')::integer + 8);
END;
