-- For agents that have nothing but SQL: what there is, made from the catalogue and
-- the comments, so that it cannot say something else than those.

-- In a function's comment a line "name: a | b | c" lists the allowed values of
-- an argument, a line that begins with "Example: " is a statement to copy.
CREATE FUNCTION kliv_mail.describe() RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT jsonb_build_object(
        'what', obj_description((SELECT e.oid FROM pg_extension AS e WHERE e.extname = 'kliv_mail'), 'pg_extension'),
        'version', (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'kliv_mail'),
        'first', 'SELECT * FROM kliv_mail.next_step();',
        'functions', (
            SELECT jsonb_agg(jsonb_build_object(
                       'name', 'kliv_mail.' || p.proname,
                       'purpose', regexp_replace(d.comment, E'\\n?Example: [^\\n]*', '', 'g'),
                       'returns', pg_get_function_result(p.oid),
                       'arguments', coalesce((
                           SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
                                      'name', a.name,
                                      'type', format_type(a.type, NULL),
                                      'default', pg_get_function_arg_default(p.oid, a.n::integer),
                                      'required', CASE WHEN pg_get_function_arg_default(p.oid, a.n::integer) IS NULL THEN true END,
                                      'values', to_jsonb(string_to_array((regexp_match(d.comment, E'(?:^|\\n|\\. )' || a.name || E': ([a-z_0-9]+(?: \\| [a-z_0-9]+)+)'))[1], ' | '))))
                                  ORDER BY a.n)
                           FROM unnest(p.proargnames, coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargmodes)
                                WITH ORDINALITY AS a (name, type, mode, n)
                           WHERE coalesce(a.mode, 'i') IN ('i', 'b', 'v')), '[]'),
                       'examples', (SELECT coalesce(jsonb_agg(x.m[1]), '[]') FROM regexp_matches(d.comment, E'Example: ([^\\n]*)', 'g') AS x (m)))
                   ORDER BY p.proname)
            FROM pg_proc AS p
            CROSS JOIN LATERAL (SELECT coalesce(obj_description(p.oid, 'pg_proc'), '') AS comment) AS d
            WHERE p.pronamespace = 'kliv_mail'::regnamespace AND p.proname !~ '^_' AND has_function_privilege(p.oid, 'EXECUTE')),
        'views', (
            SELECT jsonb_object_agg('kliv_mail.' || c.relname, jsonb_build_object(
                       'purpose', obj_description(c.oid, 'pg_class'),
                       'columns', (SELECT jsonb_object_agg(t.attname, col_description(c.oid, t.attnum))
                                   FROM pg_attribute AS t WHERE t.attrelid = c.oid AND t.attnum > 0)))
            FROM pg_class AS c
            WHERE c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind = 'v' AND c.relname !~ '^_'
              AND has_table_privilege(c.oid, 'SELECT')));
END;
COMMENT ON FUNCTION kliv_mail.describe() IS
$$Everything that you may call and read here, as jsonb: each function's purpose, arguments, types, defaults, allowed values and examples, each view's columns.
Example: SELECT jsonb_pretty(kliv_mail.describe());$$;
