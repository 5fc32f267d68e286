-- For agents that have nothing but SQL: what there is, made from the catalogue and
-- the comments, so that it cannot say something else than those.

-- Of the functions that are VOLATILE: what a call does.  read_only: it changes nothing
-- that a later call shows; destructive: it stops, erases or sends what cannot be had
-- back; idempotent: twice is as once; open_world: it speaks with a server.
CREATE FUNCTION kliv_mail._effects() RETURNS TABLE (name text, read_only boolean, destructive boolean, idempotent boolean, open_world boolean)
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT e.name, strpos(e.flags, 'r') > 0, strpos(e.flags, 'd') > 0, strpos(e.flags, 'i') > 0, strpos(e.flags, 'o') > 0
    FROM (VALUES
        ('send', 'do'), ('send_template', 'do'), ('send_template_batch', 'do'), ('retry', 'do'), ('cancel', 'di'), ('reschedule', 'i'),
        ('wait', 'ri'), ('raw_message', 'ri'), ('configure_smtp', 'dio'), ('test_smtp', 'io'), ('update_sender', 'i'), ('set_limits', 'i'),
        ('reset_smtp', 'di'), ('set_brand', 'i'), ('pause', 'i'), ('resume', 'dio'), ('grant_send', 'i'), ('grant_read', 'i'), ('grant_ingest', 'i'),
        ('grant_admin', 'i'), ('revoke_access', 'di'), ('rotate_key', 'd'), ('public_key', 'i'), ('save_template', ''), ('restore_template', ''),
        ('delete_template', 'di'), ('install_starter_templates', 'i'), ('save_topic', 'i'), ('delete_topic', 'di'), ('suppress', 'di'),
        ('unsuppress', 'di'), ('unsubscribe', 'di'), ('unsubscribe_url', 'i'), ('ingest_bounce', 'di'), ('ingest_webhook', 'di'),
        ('configure_webhook', 'di'), ('configure_bounce_mailbox', 'dio'), ('test_bounce_mailbox', 'io'), ('remove_bounce_mailbox', 'di'), ('forget', 'di'), ('purge', 'di'),
        ('http_request', 'do'), ('csv', 'r'), ('html_table', 'r'), ('check_template', 'ri'), ('preview_template', 'ri'), ('preview_html', 'ri')) AS e (name, flags);
END;

CREATE FUNCTION kliv_mail._plain_schema_of(type oid) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE type WHEN 'integer'::regtype THEN '{"type": "integer"}' WHEN 'bigint'::regtype THEN '{"type": "integer"}'
                     WHEN 'boolean'::regtype THEN '{"type": "boolean"}' WHEN 'numeric'::regtype THEN '{"type": "number"}'
                     WHEN 'timestamptz'::regtype THEN '{"type": "string", "format": "date-time"}' WHEN 'jsonb'::regtype THEN '{}'
                     WHEN 'bytea'::regtype THEN '{"type": "string", "contentEncoding": "base16"}'
                     WHEN 'kliv_mail.attachment'::regtype
                         THEN '{"type": "object", "required": ["filename"], "properties": {"filename": {"type": "string"}, "content": {"type": "string", "contentEncoding": "base64"}, "text": {"type": "string"}, "content_type": {"type": "string"}, "content_id": {"type": "string"}}}'
                     ELSE '{"type": "string"}' END::jsonb;
END;

CREATE FUNCTION kliv_mail._first_sentence(comment text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT rtrim((regexp_match(comment, E'^(.*?)(?:[.;](?=\\s|$)|\\n|$)'))[1]);
END;

-- An argument's type as JSON Schema has it.
CREATE FUNCTION kliv_mail._schema_of(type oid) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT CASE WHEN t.typelem <> 0 AND t.typcategory = 'A' THEN jsonb_build_object('type', 'array', 'items', kliv_mail._plain_schema_of(t.typelem))
                ELSE kliv_mail._plain_schema_of(t.oid) END
    FROM pg_type AS t WHERE t.oid = type;
END;

-- What a comment says of an argument: the sentence that begins "name: " or "name, other: ".
CREATE FUNCTION kliv_mail._said_of(argument text, comment text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    -- (the quantifier that comes first says whether a match is the shortest)
    SELECT (regexp_match((regexp_match(comment, E'(?:^|\\n|[.;] )(?:[a-z_]+, )*' || argument || E'(?:, [a-z_]+)*: (.*)$'))[1],
                         E'^(.*?)(?:[.;] [a-z_]+(?:, [a-z_]+)*: |\\.?\\n|\\.?$)'))[1];
END;

-- A function's form: overloaded ones have several.
CREATE FUNCTION kliv_mail._describe_function(function oid) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT jsonb_build_object(
               'call', format('kliv_mail.%s(%s)', p.proname, pg_get_function_arguments(p.oid)),
               'purpose', regexp_replace(d.comment, E'\\n?Example: [^\\n]*', '', 'g'),
               'returns', pg_get_function_result(p.oid),
               'arguments', jsonb_build_object('type', 'object', 'additionalProperties', false,
                   'properties', coalesce(x.properties, '{}'), 'required', coalesce(x.required, '[]')),
               'examples', (SELECT coalesce(jsonb_agg(e.m[1]), '[]') FROM regexp_matches(d.comment, E'Example: ([^\\n]*)', 'g') AS e (m)),
               'read_only', coalesce(f.read_only, p.provolatile <> 'v'), 'destructive', coalesce(f.destructive, p.provolatile = 'v'),
               'idempotent', coalesce(f.idempotent, p.provolatile <> 'v'), 'open_world', coalesce(f.open_world, false))
    FROM pg_proc AS p
    CROSS JOIN LATERAL (SELECT coalesce(obj_description(p.oid, 'pg_proc'), '') AS comment) AS d
    LEFT JOIN kliv_mail._effects() AS f ON f.name = p.proname AND p.provolatile = 'v'
    CROSS JOIN LATERAL (
        SELECT jsonb_object_agg(a.name, kliv_mail._schema_of(a.type) || jsonb_strip_nulls(jsonb_build_object(
                   'sqlType', format_type(a.type, NULL),
                   'sqlDefault', CASE WHEN v.value !~ '^NULL' THEN v.value END,
                   'description', CASE WHEN v.choices IS NULL THEN kliv_mail._said_of(a.name, d.comment) END,
                   'enum', v.choices))) AS properties,
               jsonb_agg(a.name ORDER BY a.n) FILTER (WHERE v.value IS NULL) AS required
        FROM unnest(p.proargnames, coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargmodes) WITH ORDINALITY AS a (name, type, mode, n)
        CROSS JOIN LATERAL (
            SELECT pg_get_function_arg_default(p.oid, a.n::integer) AS value,
                   to_jsonb(string_to_array((regexp_match(d.comment, E'(?:^|\\n|\\. )' || a.name || E': ([a-z_0-9]+(?: \\| [a-z_0-9]+)+)'))[1], ' | ')) AS choices) AS v
        WHERE coalesce(a.mode, 'i') IN ('i', 'b', 'v')) AS x
    WHERE p.oid = function;
END;

-- In a function's comment a line "name: a | b | c" lists the allowed values of
-- an argument, a line that begins with "Example: " is a statement to copy.
CREATE FUNCTION kliv_mail.describe(name text DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name text := regexp_replace(left(describe.name, 200), '^kliv_mail[.]|[(].*$', '', 'g');
    v_described jsonb;
BEGIN
    IF describe.name IS NULL THEN
        RETURN jsonb_build_object(
            'what', obj_description((SELECT e.oid FROM pg_extension AS e WHERE e.extname = 'kliv_mail'), 'pg_extension'),
            'version', (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'kliv_mail'),
            'first', 'SELECT * FROM kliv_mail.next_step();',
            'more', 'SELECT jsonb_pretty(kliv_mail.describe(''send'')); SELECT kliv_mail.skill();',
            'functions', (
                SELECT jsonb_agg(jsonb_build_object('name', 'kliv_mail.' || p.proname, 'purpose', kliv_mail._first_sentence(obj_description(p.oid, 'pg_proc')))
                       ORDER BY p.proname, p.pronargs)
                FROM pg_proc AS p
                WHERE p.pronamespace = 'kliv_mail'::regnamespace AND p.proname !~ '^_' AND has_function_privilege(p.oid, 'EXECUTE')),
            'views', (
                SELECT jsonb_object_agg('kliv_mail.' || c.relname, kliv_mail._first_sentence(obj_description(c.oid, 'pg_class')))
                FROM pg_class AS c
                WHERE c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind = 'v' AND c.relname !~ '^_' AND has_table_privilege(c.oid, 'SELECT')));
    END IF;
    v_described := (
        SELECT jsonb_build_object('name', 'kliv_mail.' || v_name, 'kind', 'function', 'may_call', bool_or(has_function_privilege(p.oid, 'EXECUTE')),
                                  'forms', jsonb_agg(kliv_mail._describe_function(p.oid) ORDER BY p.pronargs DESC))
        FROM pg_proc AS p WHERE p.pronamespace = 'kliv_mail'::regnamespace AND p.proname = v_name AND v_name !~ '^_' HAVING count(*) > 0);
    v_described := coalesce(v_described, (
        SELECT jsonb_build_object('name', 'kliv_mail.' || v_name, 'kind', 'view', 'purpose', obj_description(c.oid, 'pg_class'), 'read_only', true,
                   'may_read', has_table_privilege(c.oid, 'SELECT'),
                   'columns', (SELECT jsonb_agg(jsonb_build_object('name', t.attname, 'type', format_type(t.atttypid, NULL), 'purpose', col_description(c.oid, t.attnum))
                                                ORDER BY t.attnum) FROM pg_attribute AS t WHERE t.attrelid = c.oid AND t.attnum > 0))
        FROM pg_class AS c WHERE c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind = 'v' AND c.relname = v_name AND v_name !~ '^_'));
    IF v_described IS NULL THEN
        -- Which it is near to, help() knows.
        PERFORM kliv_mail.help(describe.name);
        RAISE invalid_parameter_value USING COLUMN = 'name', MESSAGE = format('name: "%s" is a setting', left(describe.name, 100)),
            HINT = format('SELECT kliv_mail.help(%L); describes it.', v_name);
    END IF;
    RETURN v_described;
END;
$$;
COMMENT ON FUNCTION kliv_mail.describe(text) IS
$$Without a name an index: what you may call and read here, each in a sentence. With one everything about that function or view: purpose, examples, arguments as JSON Schema (types, defaults, allowed values), and of a function read_only, destructive (it sends, stops or erases), idempotent and open_world (it speaks with a server); of a view its columns. Errors: 22023 where there is none of that name, with the nearest.
Example: SELECT jsonb_pretty(kliv_mail.describe('send'));$$;
