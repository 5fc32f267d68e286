-- http_request(): what it takes for a request, which route answers it, and whose grants let it.
SET client_min_messages = warning;
SET kliv_mail.test_in_session = on;

-- Status, and what of the headers is not the same for all.
CREATE FUNCTION asks(method text, path text, query text DEFAULT NULL, body text DEFAULT NULL, more jsonb DEFAULT '{}') RETURNS text
LANGUAGE sql AS $$
    SELECT concat_ws(' ', h.status, h.headers ->> 'location', h.headers ->> 'allow', h.headers ->> 'set-cookie', split_part(h.headers ->> 'content-type', ';', 1), octet_length(h.body) > 0,
        regexp_replace((regexp_match(convert_from(h.body, 'UTF8'), '<h1>([^<]*)'))[1], '\n', '', 'g'))
    FROM kliv_mail.http_request(method, path, query, '{"Host": "mail.example", "Content-Type": "application/x-www-form-urlencoded"}'::jsonb || more, convert_to(body, 'UTF8')) AS h;
$$;
CREATE FUNCTION shows(path text, query text DEFAULT NULL, more jsonb DEFAULT '{}') RETURNS text
LANGUAGE sql AS $$ SELECT convert_from(h.body, 'UTF8') FROM kliv_mail.http_request('GET', path, query, more) AS h $$;

-- All that changes anything is taken back: other tests have this database, too.
BEGIN;

-- ---- what is a request ----
SELECT left(x.path, 30) AS path, asks('GET', x.path) FROM (VALUES ('/admin'), ('/admin/'), ('/%61dmin'), ('/'), ('//admin'), ('/admin//health'), ('/admin/../admin'), ('/admin/%2e%2e/admin'),
    ('/admin/health/..%2f'), ('/admin%2fhealth'), ('/admin/./health'), ('/admin;x'), ('/Admin'), ('admin'), (''), ('/admin?x'), ('/admin#x'), ('/admin/%zz'), ('/admin/%'), ('/admin/%ff'),
    ('/admin/%00'), ('/admin/%0a'), ('/admin\health'), ('/admin health'), ('/管理'), ('/a/b/c/d/e/f/g/h'), ('/' || repeat('a', 3000))) AS x (path);
SELECT left(x.method, 10) AS method, asks(x.method, '/admin'), asks(x.method, '/hooks/resend'), asks(x.method, '/nowhere') FROM (VALUES ('GET'), ('HEAD'), ('PUT'), ('DELETE'), ('OPTIONS'), ('TRACE'), ('get'), (''), ('G ET'), (repeat('G', 100))) AS x (method);
SELECT asks(NULL, '/admin'), asks('GET', NULL), asks('GET', '/admin', more => NULL);
SELECT left(x.query, 10) AS query, asks('GET', '/admin', x.query) FROM (VALUES ('a=1&b=2'), ('a=1&a=2'), ('a=%'), ('a=%e3%81'), ('a=%00'), ('a=b=c'), ('='), ('&&'), ('a=あ'), ('a b'), (repeat('a', 9000)), ('lang=ja'), ('lang=xx')) AS x (query);
SELECT left(x.form, 30) AS form, asks('POST', '/admin/suppressions', NULL, x.form) FROM (VALUES ('address=ana%40example.com&scope=all'), ('address=x'), (''), ('address=%'), ('address=a&address=b'), ('address=あ'),
    ('a\x=1'), (repeat('a=1&', 600)), (repeat('x', 5000000))) AS x (form);
SELECT asks('POST', '/admin/suppressions', NULL, '{}', '{"Content-Type": "application/json"}'), asks('POST', '/admin/suppressions', NULL, 'a=1', '{"Content-Type": "text/plain"}');
SELECT asks('GET', '/admin', more => jsonb_build_object('X', repeat('x', 70000))), asks('GET', '/admin', more => '{"X": 1, "Y": null, "Z": {"a": []}}');
SELECT status FROM kliv_mail.http_request('GET', '/admin', NULL, '[]');
SELECT address, scope FROM kliv_mail.suppressions;

-- ---- languages ----
SELECT x.accept, substring(shows('/admin', NULL, jsonb_build_object('ACCEPT-language', x.accept)) FROM '<html lang="(..)"')
FROM (VALUES ('ja'), ('ja-JP,ja;q=0.9,en;q=0.8'), ('en-GB, ja;q=0.5'), ('fr, ja;q=0.1'), ('ja;q=0, en;q=0.1'), ('*'), (''), ('ja;q=x'), ('de')) AS x (accept);
SELECT substring(shows('/admin', 'lang=en', '{"cookie": "a=b; kliv_mail_language=ja"}') FROM '<html lang="(..)"'), substring(shows('/admin', NULL, '{"cookie": "a=b; kliv_mail_language=ja"}') FROM '<html lang="(..)"'),
       substring(shows('/admin', NULL, '{"cookie": "kliv_mail_language=jaa"}') FROM '<html lang="(..)"');

-- ---- headers ----
SELECT jsonb_pretty(headers) FROM kliv_mail.http_request('GET', '/admin');
SELECT jsonb_pretty(headers) FROM kliv_mail.http_request('GET', '/u/style.css');

-- ---- another site's form ----
SELECT x.more, asks('POST', '/admin/pause', NULL, 'reason=x', x.more), (SELECT count(*) FROM kliv_mail._pause) FROM (VALUES ('{"Origin": "https://evil.example"}'::jsonb), ('{"origin": "null"}'),
    ('{"Sec-Fetch-Site": "cross-site"}'), ('{"Sec-Fetch-Site": "same-site"}'), ('{"Origin": "https://mail.example.evil.example"}'), ('{"Host": null, "Origin": "https://evil.example"}')) AS x (more);
SELECT asks('POST', '/admin/pause', NULL, 'reason=x', '{"Origin": "https://Mail.example", "Sec-Fetch-Site": "same-origin"}');
SELECT account, reason FROM kliv_mail._pause;
SELECT asks('POST', '/admin/resume', NULL, '');

-- ---- every route, with each grant ----
CREATE ROLE door_read; CREATE ROLE door_ingest; CREATE ROLE door_admin; CREATE ROLE door_send; CREATE ROLE door_none;
SELECT kliv_mail.grant_read('door_read'), kliv_mail.grant_ingest('door_ingest'), kliv_mail.grant_admin('door_admin'), kliv_mail.grant_send('door_send');
CREATE FUNCTION as_role(role text, method text, path text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v text;
BEGIN
    PERFORM set_config('role', role, true);
    BEGIN
        SELECT h.status INTO v FROM kliv_mail.http_request(method, replace(path, '*', '1'), NULL, '{"content-type": "application/x-www-form-urlencoded"}') AS h;
    EXCEPTION WHEN insufficient_privilege THEN
        v := 'denied';
    END;
    PERFORM set_config('role', 'none', true);
    RETURN v;
END;
$$;
SELECT r.path, m.method, as_role('door_none', m.method, '/' || r.path) AS none, as_role('door_send', m.method, '/' || r.path) AS send, as_role('door_ingest', m.method, '/' || r.path) AS ingest,
       as_role('door_read', m.method, '/' || r.path) AS read, as_role('door_admin', m.method, '/' || r.path) AS admin
FROM (SELECT DISTINCT x.path, x.methods FROM kliv_mail._door_routes() AS x) AS r, unnest(string_to_array(r.methods, ', ')) AS m (method) ORDER BY 1, 2;

-- The page that refuses says what helps.
SET ROLE door_ingest;
SELECT substring(shows('/admin') FROM 'grant_[^<]*');
SET ROLE door_read;
SELECT substring(convert_from(body, 'UTF8') FROM 'grant_[^<]*') FROM kliv_mail.http_request('POST', '/admin/limits');
RESET ROLE;
ROLLBACK;

-- GET changes nothing, so it works where nothing can be changed.
BEGIN READ ONLY;
SELECT r.path, asks('GET', '/' || replace(r.path, '*', '1')) FROM kliv_mail._door_routes() AS r WHERE r.methods ~ 'GET' ORDER BY 1;
ROLLBACK;
DROP FUNCTION asks, shows;

-- ---- texts: what pages ask for is there, in both languages; what to do, the database itself says in English ----
SELECT k FROM jsonb_object_keys(kliv_mail._door_texts('en')) AS k EXCEPT SELECT k FROM jsonb_object_keys(kliv_mail._door_texts('ja')) AS k;
SELECT k FROM jsonb_object_keys(kliv_mail._door_texts('ja')) AS k WHERE k !~ '^advice_' EXCEPT SELECT k FROM jsonb_object_keys(kliv_mail._door_texts('en')) AS k;
SELECT substr(k, 6) FROM jsonb_object_keys(kliv_mail._door_texts('ja')) AS k WHERE k ~ '^(step|code)_' AND k !~ '^step_(name_|ok$|trouble$)'
EXCEPT SELECT substr(k, 8) FROM jsonb_object_keys(kliv_mail._door_texts('ja')) AS k WHERE k ~ '^advice_';
