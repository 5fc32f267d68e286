-- What eyes read in psql: a narrow row an account, and what a name is for.

CREATE VIEW kliv_mail.overview AS
    SELECT s.account, s.in_use, s.status, s.host || ':' || s.port AS server, s.from_address AS sender,
           h.used || '/' || h.quota AS hour, d.used || '/' || d.quota AS day, coalesce(d.queued, 0) AS waiting
    FROM kliv_mail.smtp_settings AS s
    LEFT JOIN kliv_mail._usage_now() AS h ON h.account = s.account AND h.window_name = 'hour'
    LEFT JOIN kliv_mail._usage_now() AS d ON d.account = s.account AND d.window_name = 'day'
    ORDER BY s.in_use DESC, s.account;
COMMENT ON VIEW kliv_mail.overview IS
'The accounts at a glance, those in use first: a narrow row each. smtp_settings, usage and status have the whole.';
COMMENT ON COLUMN kliv_mail.overview.account IS 'The account''s name.';
COMMENT ON COLUMN kliv_mail.overview.in_use IS 'Does mail go by it?';
COMMENT ON COLUMN kliv_mail.overview.status IS 'As in smtp_settings.';
COMMENT ON COLUMN kliv_mail.overview.server IS 'Its SMTP server, host:port.';
COMMENT ON COLUMN kliv_mail.overview.sender IS 'The address that its mail comes from.';
COMMENT ON COLUMN kliv_mail.overview.hour IS 'Recipients used in this hour / its limit.';
COMMENT ON COLUMN kliv_mail.overview.day IS 'Recipients used on this day / its limit.';
COMMENT ON COLUMN kliv_mail.overview.waiting IS 'Deliveries that wait for it.';

CREATE FUNCTION kliv_mail.help(name text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name text := regexp_replace(left(help.name, 200), '^kliv_mail[.]|[(].*$', '', 'g');
    v_help text;
    v_index jsonb;
BEGIN
    IF help.name IS NULL THEN
        v_index := kliv_mail.describe();
        -- (for eyes: one line each)
        RETURN concat_ws(E'\n', 'SELECT kliv_mail.help(''send''); tells all of send(), and so of each function, view and setting.', '',
            (SELECT string_agg(left(x.name || '(): ' || x.purpose, 118), E'\n' ORDER BY x.name)
             FROM (SELECT DISTINCT ON (1) substr(f ->> 'name', 11), f ->> 'purpose' FROM jsonb_array_elements(v_index -> 'functions') WITH ORDINALITY AS e (f, n)
                   ORDER BY 1, e.n) AS x (name, purpose)), '',
            (SELECT string_agg(left(format('view %s: %s', substr(v.key, 11), v.value), 118), E'\n' ORDER BY v.key) FROM jsonb_each_text(v_index -> 'views') AS v),
            '', (SELECT string_agg(left(format('setting %s: %s', s.name, s.short_desc), 118), E'\n' ORDER BY s.name) FROM pg_settings AS s WHERE s.name ^@ 'kliv_mail.'));
    END IF;
    SELECT string_agg(x.help, E'\n\n' ORDER BY x.signature) INTO v_help
    FROM (SELECT 'f' || p.oid::regprocedure::text, format(E'kliv_mail.%s(%s) RETURNS %s\n%s', p.proname, pg_get_function_arguments(p.oid),
                     pg_get_function_result(p.oid), obj_description(p.oid, 'pg_proc'))
          FROM pg_proc AS p
          WHERE p.pronamespace = 'kliv_mail'::regnamespace AND p.proname = v_name AND p.proname !~ '^_'
          UNION ALL
          SELECT 'v', format(E'view kliv_mail.%s\n%s', c.relname, obj_description(c.oid, 'pg_class'))
                 || coalesce((SELECT string_agg(format(E'\n  %s: %s', t.attname, col_description(c.oid, t.attnum)), '' ORDER BY t.attnum)
                              FROM pg_attribute AS t WHERE t.attrelid = c.oid AND t.attnum > 0), '')
          FROM pg_class AS c
          WHERE c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind = 'v' AND c.relname = v_name AND c.relname !~ '^_'
          UNION ALL
          SELECT 's', format(E'setting %s\n%s %s', s.name, s.short_desc, s.extra_desc)
          FROM pg_settings AS s WHERE s.name = 'kliv_mail.' || v_name) AS x (signature, help);
    IF v_help IS NULL THEN
        RAISE invalid_parameter_value USING COLUMN = 'name', MESSAGE = format('name: there is no "%s" here', left(help.name, 100)),
            HINT = kliv_mail._nearest(v_name, ARRAY(
                       SELECT p.proname::text FROM pg_proc AS p WHERE p.pronamespace = 'kliv_mail'::regnamespace AND p.proname !~ '^_'
                       UNION SELECT c.relname::text FROM pg_class AS c WHERE c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind = 'v' AND c.relname !~ '^_'))
                || 'SELECT jsonb_pretty(kliv_mail.describe()); has all of them.';
    END IF;
    -- Lines that a terminal has room for; an example stays as it is, to be copied.
    RETURN (SELECT string_agg(CASE WHEN length(l.line) <= 118 OR l.line ^@ 'Example: ' THEN l.line ELSE regexp_replace(l.line, E'([^\\n]{80,112}) ', E'\\1\n', 'g') END, E'\n' ORDER BY l.n)
            FROM regexp_split_to_table(v_help, E'\n') WITH ORDINALITY AS l (line, n));
END;
$$;
COMMENT ON FUNCTION kliv_mail.help(text) IS
$$What a function, a view or a setting of kliv_mail is for: its arguments, columns, errors and an example, to be read; without a name a line of each that you may use. 22023 where there is none of that name, with the nearest.
Example: SELECT kliv_mail.help();
Example: SELECT kliv_mail.help('send');$$;
