-- Bad input at configure_smtp() and set_limits(): a row for each case, with the
-- SQLSTATE, message and hint that it gives, or what it came to.  The ids are
-- those of the catalogue of bad inputs, B080 to B094.  Five of them need a
-- server or its log: B082, B085 and B086 are in t/041_test_smtp.pl, B088 and
-- B089 in t/014_secrets.pl.
SET client_min_messages = notice;
\pset format unaligned
\pset tuples_only on

-- What a statement gives; a refused one must leave the accounts as they were.
CREATE FUNCTION tried(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    before text := (SELECT string_agg(a::text, ',' ORDER BY a.name) FROM kliv_mail._account AS a);
    hint text;
    result text;
BEGIN
    EXECUTE statement INTO result;
    RETURN coalesce(result, 'done');
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    IF before IS DISTINCT FROM (SELECT string_agg(a::text, ',' ORDER BY a.name) FROM kliv_mail._account AS a) THEN
        RETURN 'SOMETHING WAS SAVED';
    ELSIF SQLERRM || coalesce(hint, '') ~ 'CANARY' THEN
        RETURN 'THE PASSWORD WAS SHOWN';
    END IF;
    RETURN SQLSTATE || ' ' || SQLERRM || coalesce(E'\n  ' || nullif(hint, ''), '');
END;
$$;
-- A good call, but for these arguments.  Nothing is connected to.
CREATE FUNCTION configured(changes text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    call text := 'SELECT format(''saved: %s, %s, limits %s/%s, %s'', server, from_address, hourly_limit, daily_limit, status)
                  FROM kliv_mail.configure_smtp(test => false, ';
    argument text;
BEGIN
    FOREACH argument IN ARRAY ARRAY['host => ''smtp.example.com''', 'username => ''a@example.com''', 'password => ''CANARY-a-secret''', 'account => ''bad'''] LOOP
        IF position(split_part(argument, ' ', 1) || ' =>' IN changes) = 0 THEN
            call := call || argument || ', ';
        END IF;
    END LOOP;
    RETURN tried(call || changes || ')');
END;
$$;
CREATE FUNCTION shell(command text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('COPY (SELECT) TO PROGRAM %L', 'cat > /dev/null; ' || command);     -- reads what COPY writes, else EPIPE
END;
$$;

\echo # what is not good
SELECT id || ' ' || configured(changes) FROM (VALUES
    ('B080a', $$host => ''$$),
    ('B080b', $$host => 'a b'$$),
    ('B080c', $$host => E'smtp.x\r\nQUIT'$$),
    ('B080d', $$host => 'smtp://x'$$),
    ('B080e', $$host => 'u@evil'$$),
    ('B080f', $$host => 'x/y'$$),
    ('B080g', $$host => 'x?y'$$),
    ('B080h', $$host => 'x#y'$$),
    ('B080i', $$host => 'x:25'$$),
    ('B080j', $$host => 'x_y.example'$$),
    ('B080k', $$host => '-x.example'$$),
    ('B080l', $$host => repeat('a', 64) || '.example'$$),
    ('B080m', $$host => repeat('a.', 130) || 'example'$$),
    ('B080n', $$host => 'smtp..example.com'$$),
    ('B080o', $$host => U&'smtp\200B.example.com'$$),
    ('B081a', $$host => '127.0.0.1'$$),
    ('B081b', $$host => '::1'$$),
    ('B081c', $$host => '[::1]'$$),
    ('B081d', $$host => '::ffff:127.0.0.1'$$),
    ('B081e', $$host => '2130706433'$$),
    ('B081f', $$host => '0x7f.1'$$),
    ('B081g', $$host => '127.1'$$),
    ('B081h', $$host => '0177.0.0.1'$$),
    ('B081i', $$host => '169.254.169.254'$$),
    ('B081j', $$host => '10.0.0.5'$$),
    ('B081k', $$host => '172.16.0.1'$$),
    ('B081l', $$host => '192.168.1.1'$$),
    ('B081m', $$host => 'fd00::1'$$),
    ('B081n', $$host => 'fe80::1'$$),
    ('B081o', $$host => '0.0.0.0'$$),
    ('B081p', $$host => '::'$$),
    ('B081q', $$host => '134744072'$$),
    ('B081r', $$host => '2001:0:4136:e378:8000:63bf:3fff:fdd2'$$),      -- Teredo
    ('B081s', $$host => '2001:db8::5efe:10.0.0.5'$$),                   -- ISATAP
    ('B081t', $$host => '2001:db8::200:5efe:192.168.1.1'$$),
    ('B081u', $$host => '::ffff:0:127.0.0.1'$$),                        -- translated
    ('B083a', $$port => 0$$),
    ('B083b', $$port => -1$$),
    ('B083c', $$port => 65536$$),
    ('B083d', $$port => 22$$),
    ('B083e', $$port => 993$$),
    ('B084a', $$encryption => 'none'$$),
    ('B084b', $$encryption => 'none', password => NULL$$),
    ('B084c', $$encryption => 'maybe'$$),
    ('B084d', $$encryption => 'TLS'$$),
    ('B084e', $$encryption => ''$$),
    ('B087a', $$password => ''$$),
    ('B087b', $$password => E'CANARY\rx'$$),
    ('B087c', $$password => E'CANARY\nx'$$),
    ('B087d', $$password => repeat('CANARY-xyz', 1024)$$),
    ('B093a', $$hourly_limit => -1$$),
    ('B093b', $$daily_limit => -1$$),
    ('B093c', $$hourly_limit => '2147483648'$$),
    ('B093d', $$daily_limit => 10001$$)) AS x (id, changes);
SELECT id || ' ' || tried(statement) FROM (VALUES
    ('no account a', 'SELECT kliv_mail.set_limits(1, 1)'),
    ('no account b', 'SELECT kliv_mail.update_sender(from_name => ''x'')'),
    ('no account c', 'SELECT kliv_mail.reset_smtp()'),
    ('no account d', 'SELECT kliv_mail.pause(''bad'')')) AS x (id, statement);
SELECT count(*) || ' accounts were saved' FROM kliv_mail._account;

\echo # what is kept (NULL) or taken
SELECT id || ' ' || configured(changes) FROM (VALUES
    ('B083f', $$port => NULL$$),
    ('B093e', $$hourly_limit => 7, daily_limit => 70$$),
    ('B093f', $$hourly_limit => NULL, daily_limit => NULL$$),
    ('B083g', $$port => 2525$$),
    ('B083h', $$port => NULL$$)) AS x (id, changes);
SELECT id || ' ' || tried(format('SELECT format(''limits %%s/%%s, %%s'', hourly_limit, daily_limit, status) FROM kliv_mail.set_limits(account => ''bad'', %s)', arguments))
FROM (VALUES
    ('B093g', $$hourly_limit => -1$$),
    ('B093h', $$daily_limit => -1$$),
    ('B093i', $$hourly_limit => '2147483648'$$),
    ('B093j', $$daily_limit => 10001$$),
    ('B093k', $$hourly_limit => NULL$$),
    ('B093l', $$hourly_limit => 0$$),
    ('B093m', $$hourly_limit => 8, daily_limit => 0$$),
    ('B094a', $$hourly_limit => 10, daily_limit => 5$$)) AS x (id, arguments);
SELECT 'B094b ' || min(u.remaining) || ' can leave' FROM kliv_mail.usage AS u WHERE u.account = 'bad';
SELECT 'B094c ' || configured('hourly_limit => 10, daily_limit => 5');

\echo # the key: each fault is a state, none loses the password or makes a new key, and it recovers
CREATE FUNCTION states() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT format('%s: %s', s.status, s.status_detail) FROM kliv_mail.smtp_settings AS s WHERE s.account = 'bad')
           || E'\n  status: ' || (SELECT k.key_state FROM kliv_mail.status AS k);
END;
$$;
SET client_min_messages = warning;
SELECT 'B090' || fault || ' ' || regexp_replace(split_part(tried('SELECT kliv_mail.configure_smtp(hourly_limit => 10, test => false, account => ''bad'')'), E'\n', 1)
           || E'\n  ' || states(), 'key [0-9a-f]{8}', 'key ########', 'g')
FROM (SELECT f.fault, shell(f.command) FROM (VALUES
        ('a missing', 'mv kliv_mail.key kliv_mail.key.good'),
        ('b empty', 'umask 077; : > kliv_mail.key'),
        ('c 31 bytes', 'umask 077; head -c 31 kliv_mail.key.good > kliv_mail.key'),
        ('d cut', 'umask 077; head -c 150 kliv_mail.key.good > kliv_mail.key'),
        ('e wrong key', 'umask 077; sed "/key/s/[0-9a-f]\{64\}/$(printf %064d 1)/; s/ key [0-9a-f]\{8\} / key /" kliv_mail.key.good > kliv_mail.key'),
        ('f wrong id', 'umask 077; sed "s/ key [0-9a-f]\{8\} / key 00000000 /" kliv_mail.key.good > kliv_mail.key'),
        ('g no root', 'umask 077; sed "/root/d" kliv_mail.key.good > kliv_mail.key'),
        ('h open to all', 'cp kliv_mail.key.good kliv_mail.key; chmod 644 kliv_mail.key'),
        ('i link', 'rm kliv_mail.key; ln -s kliv_mail.key.good kliv_mail.key'),
        ('j directory', 'rm kliv_mail.key; mkdir -m 700 kliv_mail.key')) AS f (fault, command) OFFSET 0) AS x;
SELECT shell('rmdir kliv_mail.key');
SELECT id || ' ' || tried(statement) FROM (VALUES
    ('B090k', 'SELECT kliv_mail.configure_smtp(password => ''CANARY-another'', test => false, account => ''bad'')'),
    ('B090l', 'SELECT kliv_mail.configure_smtp(host => ''smtp.example.com'', username => ''a@example.com'', password => ''CANARY-another'', test => false, account => ''worse'')'),
    ('B090m', 'SELECT kliv_mail.public_key()'),
    ('B090n', 'SELECT kliv_mail.rotate_key()')) AS x (id, statement);
SELECT 'B090o no new key: ' || (pg_stat_file('kliv_mail.key', true) IS NULL);
SELECT shell('mv kliv_mail.key.good kliv_mail.key');
SELECT 'B090p ' || states();
SELECT 'B090q ' || tried('SELECT ''saved'' FROM kliv_mail.configure_smtp(hourly_limit => 10, test => false, account => ''bad'')');

\echo # a ciphertext belongs to its row, host, port and user name
SELECT 'B091 ' || configured('username => ''b@example.com'', password => ''CANARY-of-b'', account => ''other''');
SELECT id || ' ' || tried(format('UPDATE kliv_mail._account SET %s WHERE name = ''other''; SELECT kliv_mail.configure_smtp(hourly_limit => 5, account => ''other'', test => false)', change))
FROM (VALUES
    ('B091a', $$password_cipher = (SELECT b.password_cipher FROM kliv_mail._account AS b WHERE b.name = 'bad')$$),
    ('B091b', $$host = 'evil.example.com'$$),
    ('B091c', $$port = 2525$$),
    ('B091d', $$username = 'c@example.com'$$),
    ('B091e', $$password_cipher = set_byte(password_cipher, 40, 1 # get_byte(password_cipher, 40))$$)) AS x (id, change);

\echo # who may only send
CREATE ROLE kliv_mail_test_sender;
SELECT kliv_mail.grant_send('kliv_mail_test_sender');
GRANT EXECUTE ON FUNCTION tried(text) TO kliv_mail_test_sender;
CREATE FUNCTION denied(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    RETURN 'ALLOWED';
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE || ' ' || SQLERRM;
END;
$$;
SET ROLE kliv_mail_test_sender;
SELECT id || ' ' || denied(statement) FROM (VALUES
    ('B092a', 'SELECT kliv_mail.configure_smtp(host => ''smtp.example.com'', username => ''a@example.com'', password => ''CANARY'', test => false)'),
    ('B092b', 'SELECT * FROM kliv_mail._account'),
    ('B092c', 'SELECT * FROM kliv_mail.smtp_settings'),
    ('B092d', 'SELECT * FROM kliv_mail.test_smtp()'),
    ('B092e', 'SELECT kliv_mail.set_limits(1, 1)'),
    ('B092f', 'SELECT * FROM kliv_mail._smtp_settings()')) AS x (id, statement);
RESET ROLE;

DELETE FROM kliv_mail._account;
DELETE FROM kliv_mail._event;
DROP OWNED BY kliv_mail_test_sender;
DROP ROLE kliv_mail_test_sender;
DROP FUNCTION tried, configured, shell, states, denied;
