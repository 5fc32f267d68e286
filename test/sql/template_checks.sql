-- What check_template() finds in HTML, in Markdown and in a layout, and where.
SET client_min_messages = warning;
CREATE FUNCTION tried(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
    hint text;
BEGIN
    EXECUTE 'SELECT ' || statement INTO result;
    RETURN coalesce(result, 'NULL');
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RETURN SQLSTATE || ' ' || SQLERRM || coalesce(E'\n  ' || nullif(hint, ''), '');
END $$;
-- The problems of a template that is saved so.
CREATE FUNCTION problems(subject text, body text, format text, name text DEFAULT 'checked', message_type text DEFAULT 'system', variables jsonb DEFAULT '{"u": {"example": "https://x.example/"}}')
RETURNS TABLE (severity text, line integer, "column" integer, problem text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM kliv_mail.save_template(name, subject, body, format, message_type => message_type, variables => variables, locale => 'xx');
    RETURN QUERY SELECT c.severity, c.line, c."column", c.problem FROM kliv_mail.check_template(name, 'xx') AS c;
    PERFORM kliv_mail.delete_template(name);
END $$;

-- HTML: images, links
SELECT * FROM problems('s', E'<p>Hi\n<img src="http://x.example/a.png">\n<a href="http://a.example">x</a> <a href="https://evil.example/"><b> https://bank.example/</b></a>\n'
    '<a href=ftp://x>y</a> <a href="#top">top</a> <a href=''/rel''>r</a> <img alt src=data:x> <img src="cid:logo" alt="Logo">\n'
    '<a href="{{u}}">https://other.example</a> <a href="{{u}}">www.x.example</a> <a href="https://www.x.example/a&amp;b">https://x.example</a><!-- <img> --> <a name="top">https://y.example</a>', 'html');
SELECT * FROM problems('s', 'all is well <a href="{{u}}">here</a>', 'html');
SELECT * FROM problems('s', E'{{u}}\n<p title="x', 'html');
-- Markdown with HTML
SELECT * FROM problems('s', E'{{% html }}\n# H {{u}}\n\n<img src="http://x.example/a.png">\n\ntext <a href="http://a.example">x</a> <a href="https://evil.example/">**https://bank.example/**</a>\n\n- a ![](https://x.example/b.png)\n'
    '- [https://bank.example](https://evil.example) <https://x.example>', 'markdown');
-- what is refused, and where
SELECT f, b, tried(format('kliv_mail.save_template(''refused'', ''s'', %L, %L)', b, f)) FROM (VALUES ('html', E'<p\n onclick="x()">a'), ('html', E'<p>\n<b {{v}}>a'), ('html', E'\n\n <a on{{v}}=x>'), ('html', E'<script>\n{{v}}</script>'),
    ('markdown', E'{{% html }}\na\n\nb <i onclick=x>c</i>'), ('markdown', E'{{% html }}\na\n\n<script>x</script>'), ('markdown', E'a\n\nb {{{v}}}')) AS x (f, b);
SELECT b, tried(format('kliv_mail.save_template(''layout'', ''s'', %L, ''html'', locale => ''xx'')', b)) FROM unnest(ARRAY['<html>{{content}}</html>', '<html><p title="{{{content}}}">x</p></html>', '<html><!-- {{&content}} --></html>',
    E'<html>\n{{{content}}}<script>x</script></html>', E'<html>{{{content}}}\n<p {{subject}}></html>', '<html>{{{content}}}{{nothing}}</html>']) AS b;
-- a layout has its own
SELECT * FROM problems('s', E'<html>\n <img src="https://x.example/a.png">{{{content}}}</html>', 'html', 'layout', variables => NULL);
-- nobody reads more than 200
SELECT count(*) FROM problems('s', '{{u}}' || repeat('<img src=http://x.example>', 1000), 'html');
-- the whole
SELECT * FROM problems('Your {{name}} and ' || E'{{ code }} ' || repeat('long ', 16), 'Hi {{name}}', 'markdown', message_type => 'marketing', variables => '{"name": {}, "code": {"example": "1"}, "never": {}}');
SELECT * FROM problems('s', repeat('word ', 21000), 'markdown', variables => NULL);
SELECT kliv_mail.set_brand(color => '#ffd400') ->> 'color';
SELECT * FROM problems('s', 'Hi', 'markdown', variables => NULL);
SELECT kliv_mail.set_brand(color => '') ->> 'color';
-- partials: what they use counts; one that is not there (any more)
SELECT kliv_mail.save_template('inner', 's', '{{name}}', locale => 'xx');
SELECT kliv_mail.save_template('outer', 's', 'x {{> inner}}', locale => 'xx'), kliv_mail.save_template('inner', 's', '{{name}} {{#more}}{{> outer}}{{/more}}', variables => '{"name": {}, "more": {"default": ""}}', locale => 'xx');
SELECT * FROM problems('s', 'Hi {{> outer}}', 'markdown', variables => '{"name": {}, "more": {"default": ""}, "never": {}}');
SELECT kliv_mail.save_template('checked', 's', E'Hi\n\n {{> inner}}', locale => 'xx', plain_text => '{{> outer}}'), kliv_mail.delete_template('inner', 'xx'), kliv_mail.delete_template('outer', 'xx');
SELECT severity, line, "column", problem FROM kliv_mail.check_template('checked', 'xx');
SELECT kliv_mail.delete_template('checked');
DROP FUNCTION tried, problems;
