-- preview_html(): what stands on the page, which version, and that nothing gets out
-- of its place.
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
CREATE FUNCTION unescaped(html text) RETURNS text LANGUAGE sql
RETURN replace(replace(replace(replace(replace(html, '&lt;', '<'), '&gt;', '>'), '&quot;', '"'), '&#39;', ''''), '&amp;', '&');
CREATE FUNCTION part(html text, pattern text) RETURNS text LANGUAGE sql
RETURN (regexp_match(html, pattern))[1];

SELECT kliv_mail.save_template('page', 'About <i> & {{v}}', E'# {{v}}\n\nText </pre></iframe> "{{v}}"\n\n![](https://x.example/a.png)',
    variables => '{"v": {"example": "</title>\"''<script>alert(1)</script>"}, "never": {"default": 1}}');
SELECT kliv_mail.save_template('page', 'A draft', 'Text', publish => false, locale => 'ja');
SELECT kliv_mail.preview_html('page') AS page \gset
SELECT regexp_replace(regexp_replace(:'page', '<style>.*</style>', '<style>'), 'srcdoc="[^"]*"', 'srcdoc', 'g') AS page;
SELECT unescaped(part(:'page', '<pre>(.*)</pre>')) = p.plain_text AS text, (SELECT count(*) FROM regexp_matches(:'page', 'srcdoc="([^"]*)"', 'g') AS m WHERE unescaped(m[1]) = p.html) AS frames,
       unescaped(part(:'page', '<h1>(.*?)</h1>')) = p.subject AS subject, :'page' ~ '<script|alert[(]1[)]<' AS script
FROM kliv_mail.preview_template('page') AS p;
SELECT part(kliv_mail.preview_html('page', '{"v": "other"}'), '<h1>(.*?)</h1>');
-- a draft, by its number; what is not there
SELECT part(kliv_mail.preview_html('page', locale => 'ja', version => 1), '<small>(.*?)</small>');
SELECT tried($$left(kliv_mail.preview_html('page', locale => 'ja'), 15)$$), tried($$kliv_mail.preview_html('page', version => 2)$$), tried($$kliv_mail.preview_html('pag')$$),
    tried($$kliv_mail.preview_html('page', '[]')$$), tried($$kliv_mail.preview_html(NULL)$$);
-- a layout: what stands around nothing
SELECT kliv_mail.save_template('layout', 's', '<!DOCTYPE html><html lang="en"><body><h1>Own</h1>{{{content}}}{{unsubscribe_url}}</body></html>', 'html', locale => 'de');
SELECT html FROM kliv_mail.preview_template('layout', locale => 'de');
-- from right to left; a list in a list; a link that begins a line of a list
SELECT kliv_mail.save_template('page', 's', E'> q\n\n- <https://x.example>\n  - [b](https://y.example)\n\n| c | d | e |\n|---|--:|:--|\n| f | g | h |', locale => l) FROM unnest(ARRAY['ar', 'en']) AS l;
SELECT l, m[1] AS element, m[2] AS style FROM unnest(ARRAY['ar', 'en']) AS l, kliv_mail.preview_template('page', locale => l) AS p,
    regexp_matches(regexp_replace(p.html, '^.*k-card"[^\n]*', ''), '<(blockquote|ul|td)[^>]* style="([^"]*)"', 'g') AS m;
SELECT p.html ~ 'lang="ar" dir="rtl"' AS rtl, p.plain_text FROM kliv_mail.preview_template('page', locale => 'ar') AS p;
-- behind a preheader of the author's own, nothing of the body is to be seen
SELECT kliv_mail.save_template('page', 's', 'The code is 1.', variables => '{"preheader": {"default": "Valid for ten minutes."}}', locale => 'it');
SELECT v, (SELECT length(part(p.html, '<div style="display:none[^>]*>(.*?)</div>')) FROM kliv_mail.preview_template('page', v::jsonb, 'it') AS p),
    part(kliv_mail.preview_html('page', v::jsonb, 'it'), '</h1>\n<p>(.*?)</p>') FROM unnest(ARRAY['{}', '{"preheader": ""}', '{"preheader": null}', '{"preheader": 5}']) AS v;
SELECT kliv_mail.delete_template('layout', 'de'), kliv_mail.delete_template('page');
DROP FUNCTION tried, unescaped, part;
