-- Mustache, and nothing around it.

CREATE FUNCTION kliv_mail.render(source text, variables jsonb, partials jsonb DEFAULT '{}') RETURNS text
AS '$libdir/kliv_mail_template', 'kliv_mail_render' LANGUAGE C STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.render IS
$comment$What a Mustache source becomes with values: {{name}} (HTML-escaped), {{{name}}} (as it is), {{a.b}}, {{#items}}...{{/items}}, {{^items}}...{{/items}}, {{> partial}}, {{! comment}}, {{=<% %>=}}; $name and ${a.b} are {{name}} and {{a.b}}, $$ is $. What is missing is empty. partials: {"name": "source"}.
Filters: {{at | date}}, {{at | date short}}, {{at | time}}, {{at | datetime}}, {{n | number 2}}, {{n | currency EUR}}, {{name | default "friend"}}.
Errors: 42601 syntax, with line and column, 22023 a value that a filter cannot take, 54000 over 256 kB of source, 2 MB of output or too deep.
Example: SELECT kliv_mail.render('Hello $name', '{"name": "Ana"}');$comment$;
