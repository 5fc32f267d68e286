-- Templates: what is refused where (B070 to B079 of the catalogue of bad inputs),
-- versions and drafts, locales, variables, warnings, and what is queued.
SET client_min_messages = warning;
SET intervalstyle = postgres;
SELECT kliv_mail.pause(reason => 'regression test') >= 0 AS paused;

CREATE FUNCTION tried(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
    hint text;
    before bigint := (SELECT count(*) FROM kliv_mail._outbox) + (SELECT count(*) FROM kliv_mail._template_version);
BEGIN
    EXECUTE 'SELECT ' || statement INTO result;
    RETURN coalesce(result, 'NULL');
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    IF before <> (SELECT count(*) FROM kliv_mail._outbox) + (SELECT count(*) FROM kliv_mail._template_version) THEN
        RETURN 'SOMETHING WAS KEPT';
    END IF;
    RETURN SQLSTATE || ' ' || SQLERRM || coalesce(E'\n  ' || nullif(hint, ''), '');
END $$;

-- B070, B071: syntax
SELECT s, tried(format('kliv_mail.render(%L, ''{"a": 1}'')', s)) FROM unnest(ARRAY['{{#a}}x', 'x{{/a}}', '{{#a}}{{#b}}{{/a}}{{/b}}',
    '{{', '{{}}', '{{{a}}', '{{=x}}', E'line\n  {{a | what}}', '${a', '{{a b}}']) AS s;
-- B072
SELECT kliv_mail.render('{{v}} {{{v}}}', '{"v": "<script>\"&"}');
-- B074
SELECT tried($$kliv_mail.render('{{> a}}', '{}', '{"a": "x{{> a}}"}')$$);
SELECT tried($$kliv_mail.render('{{> a}}', '{}', '{"a": "{{> b}}", "b": "{{> a}}"}')$$);
-- B075
SELECT tried($$length(kliv_mail.render('{{#a}}{{.}}{{/a}}', jsonb_build_object('a', (SELECT jsonb_agg(n) FROM generate_series(1, 1000000) AS n))))$$);
SELECT tried($$length(kliv_mail.render('{{#a}}{{b}}{{/a}}', jsonb_build_object('a', (SELECT jsonb_agg(n) FROM generate_series(1, 10000) AS n), 'b', repeat('x', 1000))))$$);
-- B076
SELECT kliv_mail.save_template('one', 'S $firstName', 'Hello {{name}}.', variables => '{"name": {"default": "friend"}}');
SELECT v, tried(format('kliv_mail.send_template(''one'', ''a@x.example'', %L)', v)) FROM unnest(ARRAY['[]', '"x"', '1', 'null', NULL]) AS v;
SELECT tried($$length(kliv_mail.render('{{a}}', (SELECT (repeat('{"a":', 1000) || '1' || repeat('}', 1000))::jsonb)))$$);
-- B077
SELECT kliv_mail.render('[{{missing}}]', '{}');
SELECT kliv_mail.save_template('two', 's', 'Hello {{name}}, {{code}}.');
SELECT tried($$kliv_mail.send_template('two', 'a@x.example', '{"name": "Ana"}')$$);
SELECT tried($$kliv_mail.send_template('two', 'a@x.example', '{"name": "Ana", "code": null}')$$);
-- B073
SELECT tried($$kliv_mail.send_template('one', 'a@x.example', '{"firstName": "Hi\r\nBcc: x"}')$$);
-- B078
SELECT left(n, 20) AS n, tried(format('kliv_mail.save_template(%L, ''s'', ''b'')', n)) FROM unnest(ARRAY['a/b', '..', repeat('x', 200), 'a"b', 'a''b', '', NULL]) AS n;
-- B079
SELECT tried($$kliv_mail.render(repeat('x', 10485760), '{}')$$);
SELECT tried($$kliv_mail.render(repeat('{{#a}}', 40000), '{}')$$);
SELECT tried($$kliv_mail.save_template('big', 's', repeat('x', 10485760))$$);

-- variables: declared, found, of a section, built in; the nearest name
SELECT b, tried(format('kliv_mail.save_template(''v'', ''s'', %L, variables => ''{"items": {"example": [{"price": 1, "sku": "x"}]}, "firstNames": {}}'')', b))
FROM unnest(ARRAY['$fistName', E'a\n b $item', '{{#items}}{{price}} $sku{{/items}}', '{{#items}}{{prize}}{{/items}}', '$$x $5 US$', '{{> on}}', '${brand.name} $email $timestamp {{lastName}}']) AS b;
SELECT variables FROM kliv_mail.templates WHERE name = 'two';
SELECT x, tried(format('kliv_mail.save_template(''v'', ''s'', ''b'', variables => %L)', x))
FROM unnest(ARRAY['[]', '{"a": 1}', '{"a b": {}}', '{"a": {"reqired": true}}', '{"a": {"required": 1}}']) AS x;
SELECT tried($$kliv_mail.save_template('two', 's', '{{name}} {{code}} {{more}}')$$);
SELECT tried($$kliv_mail.save_template('two', 's', '{{name}} {{code}} {{more}}', variables => '{"name": {}, "code": {}, "more": {"default": "m"}}')$$);
SELECT a, tried('kliv_mail.save_template(' || a || ')') FROM unnest(ARRAY[$$'v', NULL, 'b'$$, $$'v', 's', NULL$$, $$'v', 's', 'b', 'text'$$, $$'v', 's', 'b', message_type => 'spam'$$,
    $$'v', 's', 'b', locale => 'x/y'$$, $$'v', 's', 'b', expires_in => '-1 s'$$, $$'v', 's', 'b', publish => NULL$$, $$'layout', 's', 'b'$$,
    $$'raw', 's', '{{{name}}}'$$, $$'script', 's', '<script>{{name}}</script>', 'html'$$, $$'tag', 's', '{{% html }}<p {{name}}>'$$, $$'option', 's', '{{% tables }}'$$, $$'format', 's', 'b', 'markdown_html'$$]) AS a;

-- versions and drafts
SELECT kliv_mail.save_template('one', 'S2 $firstName', 'New', publish => false);
SELECT name, locale, version, newest_version, subject FROM kliv_mail.templates WHERE name = 'one';
SELECT subject FROM kliv_mail.preview_template('one', '{"firstName": "Ana"}');
SELECT kliv_mail.restore_template('one', 2);
SELECT subject FROM kliv_mail.preview_template('one', '{"firstName": "Ana"}');
SELECT tried($$kliv_mail.restore_template('one', 9)$$);
SELECT kliv_mail.save_template('draft', 's', 'b', publish => false);
SELECT tried($$kliv_mail.send_template('draft', 'a@x.example')$$);
SELECT kliv_mail.delete_template('one'), kliv_mail.delete_template('one');
SELECT tried($$kliv_mail.send_template('one', 'a@x.example')$$);
SELECT kliv_mail.restore_template('one', 1);
SELECT version, in_use, body FROM kliv_mail.template_versions WHERE name = 'one' ORDER BY version;

-- locales
SELECT kliv_mail.save_template('hello', 'default', 'b'), kliv_mail.save_template('hello', 'pt', 'b', locale => 'pt'), kliv_mail.save_template('hello', 'pt-BR', 'b', locale => 'PT_br');
SELECT l, (SELECT subject FROM kliv_mail.preview_template('hello', locale => l)) FROM unnest(ARRAY['pt-BR', 'pt-PT', 'pt', 'ja', NULL]) AS l;
SELECT kliv_mail.save_template('only', 's', 'b', locale => 'ja');
SELECT tried($$kliv_mail.send_template('only', 'a@x.example')$$);

-- warnings
SELECT kliv_mail.save_template('warned', 'Your code {{code}} ' || repeat('long ', 20), E'Hi\n\n![](https://x.example/a.png) [a](http://x.example) [https://bank.example](https://evil.example) [b](ftp://x)\n\n{{> none}}',
    message_type => 'marketing', variables => '{"code": {"example": "1"}, "never": {"default": ""}}');
SELECT kliv_mail.save_template('none', 's', 'b');
SELECT kliv_mail.save_template('warned', 'Your code {{code}} ' || repeat('long ', 20), E'Hi\n\n![](https://x.example/a.png) [a](http://x.example) [https://bank.example](https://evil.example) [b](ftp://x)\n\n',
    message_type => 'marketing', variables => '{"code": {"example": "1"}, "never": {"default": ""}}');
SELECT * FROM kliv_mail.check_template('warned');
SELECT * FROM kliv_mail.check_template('hello', 'pt');
SELECT tried($$(SELECT count(*) FROM kliv_mail.check_template('helo'))$$);

-- what is queued
SELECT tried($$kliv_mail.send_template('hello', 'a@x.example, b@x.example')$$);
SELECT tried($$kliv_mail.send_template('warned', 'a@x.example', '{"code": 1}')$$);
SELECT kliv_mail.save_template('code', 'Your code', 'It is **{{code}}**.', message_type => 'system', expires_in => '10 minutes');
SELECT kliv_mail.send_template('code', 'Ana <ana@x.example>', '{"code": 123456}', cc => 'copy@x.example', idempotency_key => 'k', tags => '{t}', metadata => '{"m": 1}') AS first \gset
SELECT kliv_mail.send_template('code', 'Ana <ana@x.example>', '{"code": 123456}', cc => 'copy@x.example', idempotency_key => 'k', tags => '{t}', metadata => '{"m": 1}') = :first AS same;
SELECT left(tried($$kliv_mail.send_template('code', 'Ana <ana@x.example>', '{"code": 1}', cc => 'copy@x.example', idempotency_key => 'k', tags => '{t}', metadata => '{"m": 1}')$$), 40);
SELECT template, message_type, subject, tags, metadata, recipients_total FROM kliv_mail.messages WHERE id = :first;
SELECT m.expires_at - m.created_at BETWEEN '9 minutes 50 seconds' AND '10 minutes' AS expires FROM kliv_mail._message AS m WHERE m.id = :first;
SELECT count(*) FROM kliv_mail.send_template_batch('code', '{}');
SELECT tried($$count(*) FROM kliv_mail.send_template_batch('code', '{a@x.example}', '{}')$$);
SELECT tried($$count(*) FROM kliv_mail.send_template_batch('code', '{a@x.example,b}', ARRAY['{"code": 1}', '{"code": 2}']::jsonb[])$$);
SELECT ordinality, message_id IS NOT NULL AS queued, error FROM kliv_mail.send_template_batch('code', ARRAY['a@x.example', 'b', NULL, 'd@x.example', 'e@x.example'],
    ARRAY['{"code": 1}', '{"code": 2}', '{"code": 3}', '{}', NULL]::jsonb[], on_invalid => 'skip');
SELECT tried($$count(*) FROM kliv_mail.send_template_batch('code', '{a@x.example}', on_invalid => 'drop')$$);

-- a layout of one's own
SELECT kliv_mail.save_template('layout', 's', '<html><body>[{{{content}}}]{{brand.name}}</body></html>', 'html');
SELECT html FROM kliv_mail.preview_template('code', '{"code": "<1>"}');
SELECT kliv_mail.delete_template('layout');
SELECT kliv_mail.resume() >= 0 AS resumed;
DROP FUNCTION tried;
