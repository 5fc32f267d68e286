-- Query results as mail: csv() and html_table().
\pset null '<null>'
CREATE TEMP TABLE item (name text, price numeric, note text);
INSERT INTO item VALUES ('tea', 3.50, NULL), ('"green", tea', 4, E'two\nlines'), ('<b>&', NULL, ''), (' spaced ', 1, '日本');

SELECT filename, content_type, content_id, replace(convert_from(content, 'UTF8'), E'\r', '') AS content
FROM kliv_mail.csv('SELECT * FROM item', 'UTF8');
-- Excel's byte order mark, and Japan's encoding
SELECT left(encode(content, 'hex'), 6) AS bom FROM kliv_mail.csv('SELECT 1');
SELECT content_type, convert_from(content, 'SJIS') AS content FROM kliv_mail.csv('SELECT note FROM item WHERE note = ''日本''', 'sjis');
-- a name of its own, and what people call that encoding
SELECT filename, content_type FROM kliv_mail.csv('SELECT 1', filename => '売上 2026年.csv');
SELECT e, content_type, encode(content, 'hex') AS bytes FROM unnest('{SJIS,Shift_JIS,shift-jis,CP932,Windows-31J,MS932,utf-8,UTF8 BOM}'::text[]) AS e, kliv_mail.csv('SELECT ''髙'' AS a', e, 'x.csv');
-- A text that a spreadsheet would take for a formula; a program gets it as it is.
CREATE TEMP TABLE hostile (name text, amount numeric);
INSERT INTO hostile VALUES ('=1+1', -1), ('+81 3 1234', 2), ('-5', 3), ('-5+cmd', 4), ('@SUM(A1)', 5), (E'\t=1', 6), ('＝1+1', 7), ('a=b', 8), ('+1.5', 9);
SELECT replace(substr(convert_from(content, 'UTF8'), 2), E'\r', '') AS content FROM kliv_mail.csv('SELECT name AS "=name", amount FROM hostile');
SELECT replace(convert_from(content, 'UTF8'), E'\r', '') AS content FROM kliv_mail.csv('SELECT name AS "=name", amount FROM hostile', 'UTF8');
SELECT kliv_mail.html_table('SELECT * FROM item');
SELECT kliv_mail.html_table('SELECT 1 AS none WHERE false');

-- bad input
SELECT kliv_mail.csv('SELECT 1', 'UTF16');
SELECT kliv_mail.csv('SELECT 1', repeat('s', 1000));
SELECT kliv_mail.csv('SELECT 1', filename => E'a\nb.csv');
SELECT kliv_mail.csv('SELECT 1', filename => 'virus.exe');
SELECT kliv_mail.csv('SELECT 1', filename => '');
SELECT kliv_mail.csv('SELECT 1; SELECT 2');
SELECT kliv_mail.csv('DELETE FROM item');
SELECT kliv_mail.csv('DELETE FROM item RETURNING *');
SELECT kliv_mail.html_table('SELECT nothing');
SELECT kliv_mail.html_table('SELECT ''x'' FROM nowhere');
SELECT kliv_mail.csv('SELECT ''€''', 'SJIS');
SELECT kliv_mail.csv('SELECT x AS a FROM unnest(ARRAY[''ok'', ''𠮷野家'', ''—'']) AS x', 'SJIS');
SELECT kliv_mail.csv('SELECT 1 AS "😀"', 'SJIS');
SELECT octet_length(content) FROM kliv_mail.csv('SELECT ''①㈱髙ｱｲｳ～∥－'' AS a', 'SJIS');
\set VERBOSITY sqlstate
SELECT kliv_mail.csv('SELECT repeat(''x'', 1000000) FROM generate_series(1, 30)');

-- the caller's rights and search_path
CREATE ROLE report_reader;
GRANT USAGE ON SCHEMA kliv_mail TO report_reader;
GRANT EXECUTE ON FUNCTION kliv_mail.html_table(text) TO report_reader;
CREATE TABLE secret_report (s text);
SET ROLE report_reader;
SELECT kliv_mail.html_table('SELECT * FROM secret_report');
SELECT kliv_mail.html_table('SELECT * FROM kliv_mail._account');
SELECT kliv_mail.html_table('SELECT current_user::text AS who');
RESET ROLE;
DROP TABLE secret_report;
REVOKE ALL ON SCHEMA kliv_mail FROM report_reader;
REVOKE ALL ON FUNCTION kliv_mail.html_table(text) FROM report_reader;
DROP ROLE report_reader;

-- raw_message() of what never left
SELECT kliv_mail.send('raw@example.com', 'Raw', 'x') AS raw \gset
SELECT kliv_mail.raw_message(:raw);
SELECT kliv_mail.raw_message(:raw, 'other@example.com');
SELECT kliv_mail.raw_message(:raw, 'nobody');
SELECT kliv_mail.raw_message(0);
SELECT kliv_mail.cancel(:raw);

-- what eyes read: a narrow row an account, and what a name is for
SELECT account, in_use, server, hour, day, waiting FROM kliv_mail.overview;
SELECT max(length(o::text)) < 120 AS narrow FROM kliv_mail.overview AS o;
SELECT split_part(kliv_mail.help('kliv_mail.wait'), E'\n', 1) AS help;
SELECT max(length(l)) <= 118 AS narrow, count(*) > 80 AS all, bool_or(l ^@ 'send(): Queues a mail') AND bool_or(l ^@ 'view deliveries: ') AND bool_or(l ^@ 'setting kliv_mail.delivery: ') AS kinds
FROM regexp_split_to_table(kliv_mail.help(), E'\n') AS l;
SELECT max(length(l)) <= 118 AS narrow FROM regexp_split_to_table(kliv_mail.help('send'), E'\n') AS l WHERE l !~ '^Example';
SELECT kliv_mail.help('overview');
SELECT kliv_mail.help('mask_secrets');
SELECT kliv_mail.help('send') ~ 'send\(mail jsonb\).*\n(.*\n)+kliv_mail.send\(recipients' AS both_forms;
\set VERBOSITY default
SELECT kliv_mail.help('sned');
SELECT kliv_mail.help('_claim');
