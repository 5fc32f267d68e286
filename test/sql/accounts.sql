-- Accounts and secrets without a network: what configure_smtp() and its kin
-- take and refuse (B080, B081, B083, B084, B087, B090, B091, B093, B094 of the
-- catalogue of bad inputs), what NULL and '' mean, masks, the key ring.
SET client_min_messages = warning;

-- Say what came of a statement: the SQLSTATE, message and hint, or 'done'.
CREATE FUNCTION tried(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    hint text;
BEGIN
    EXECUTE statement;
    RETURN 'done';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RETURN format('%s %s%s', SQLSTATE, SQLERRM, coalesce(' | ' || nullif(hint, ''), ''));
END;
$$;
CREATE FUNCTION configured(arguments text) RETURNS text LANGUAGE sql AS $$
    SELECT tried(format('SELECT kliv_mail.configure_smtp(%s, test => false)', arguments));
$$;
-- Run something where the server's files are.
CREATE FUNCTION shell(command text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('COPY (SELECT) TO PROGRAM %L', command);
END;
$$;
CREATE FUNCTION shown() RETURNS SETOF text LANGUAGE sql AS $$
    SELECT format('%s: in_use %s, %s %s:%s %s user %s password %s from %s <%s> reply %s senders %s limits %s/%s %s%s',
                  account, in_use, provider, host, port, encryption, username, password_masked, from_name, from_address, reply_to,
                  allowed_senders, hourly_limit, daily_limit, status, ': ' || status_detail)
    FROM kliv_mail.smtp_settings WHERE account <> 'platform';
$$;

-- A subquery would be evaluated once; a call is one in each row.
CREATE FUNCTION status_now(name text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT status || coalesce(': ' || status_detail, '') FROM kliv_mail.smtp_settings WHERE account = name);
END;
$$;
CREATE FUNCTION mask_now() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT password_masked FROM kliv_mail.smtp_settings WHERE account = 'custom');
END;
$$;
SELECT * FROM shown();

-- B080: host.  One row each.
SELECT x AS host, configured(format('host => %L, username => ''a@example.com'', password => ''secret-of-a''', x))
FROM unnest(ARRAY['', 'a b', E'smtp.x\r\nQUIT', 'smtp://x', 'u@evil', 'x/y', 'x?y', 'x#y', 'x:25', 'x_y.example', '-x.example',
                  repeat('a', 64) || '.example', 'smtp..example.com', U&'smtp\200B.example.com']) AS x;
-- B081: an address that only the server's administrator can open.
SELECT x AS host, configured(format('host => %L, username => ''a@example.com'', password => ''secret-of-a''', x))
FROM unnest(ARRAY['127.0.0.1', '::1', '[::1]', '::ffff:127.0.0.1', '2130706433', '0x7f.1', '127.1', '169.254.169.254', '10.0.0.5',
                  '192.168.1.1', 'fd00::1', '0.0.0.0', '134744072']) AS x;
-- B083: port.
SELECT x AS port, configured(format('host => ''smtp.example.com'', port => %s, username => ''a@example.com'', password => ''secret-of-a''', x))
FROM unnest(ARRAY[0, -1, 65536, 22, 993]) AS x;
-- B084: encryption.
SELECT x AS encryption, configured(format('host => ''smtp.example.com'', encryption => %L, username => ''a@example.com'', password => ''secret-of-a''', x))
FROM unnest(ARRAY['none', 'maybe', 'TLS']) AS x;
SELECT configured('host => ''smtp.example.com'', encryption => ''none'', username => ''a@example.com''');
-- B087: password.
SELECT left(x, 10) AS password, configured(format('host => ''smtp.example.com'', username => ''a@example.com'', password => %L', x))
FROM unnest(ARRAY['', E'secret\rx', E'secret\nx', repeat('x', 10240)]) AS x;
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com''') AS no_password;
SELECT configured('host => ''smtp.example.com'', password => ''secret''') AS no_username;
SELECT configured('host => ''smtp.example.com''') AS no_login;
SELECT configured('host => ''smtp.example.com'', username => '''', password => ''secret''') AS password_of_nobody;
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret'', password_file => ''x''') AS two_passwords;
SELECT configured('username => ''a@example.com'', password => ''secret''') AS no_host;
SELECT configured('host => ''smtp.example.com'', username => ''apikey'', password => ''secret''') AS no_from;
SELECT x AS username, configured(format('host => ''smtp.example.com'', username => %L, password => ''secret''', x))
FROM unnest(ARRAY[E'a\r\nb@example.com', U&'a\202E@example.com']) AS x;
SELECT configured(format('host => ''smtp.example.com'', username => %L, password => ''secret''', repeat('x', 321))) AS long_username;
-- Words that have no meaning.
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret'', auth => ''magic''');
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret'', region => ''eu''');
SELECT configured('provider => ''postmark'', password => ''00000000-0000-0000-0000-000000000000'', region => ''eu'', from_address => ''a@example.com''');
SELECT configured('provider => ''nope'', username => ''a@example.com'', password => ''secret''');
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret'', hourly_limit => -1');
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret'', daily_limit => -1');
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret'', daily_limit => 10001');
SELECT x AS account, configured(format('host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret'', account => %L', x))
FROM unnest(ARRAY['platform', '', 'Sales', '1st', 'a-b', 'a b', repeat('a', 64)]) AS x;
-- The sender's identity.
SELECT x AS from_address, configured(format('host => ''smtp.example.com'', username => ''a'', password => ''secret'', from_address => %L', x)) ~ '^22023 from_address: '
FROM unnest(ARRAY['nobody', 'a@', E'a@example.com\r\nBcc: b@example.com', 'a@example.com, b@example.com', '@example.com']) AS x;
SELECT configured(E'host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret'', from_name => E''Ana\\r\\nBcc: b@example.com''');
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret'', reply_to => ''nobody''') ~ '^22023 reply_to: ';
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret'', allowed_senders => ARRAY[''a@example.com'', NULL]');
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret'', allowed_senders => ARRAY[[''a@example.com''], [''b@example.com'']]');
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret'', allowed_senders => ARRAY[''example.com'']') ~ '^22023 allowed_senders: ';

-- Nothing of all this was saved.
SELECT * FROM shown();
SELECT count(*) FROM kliv_mail._event WHERE kind = 'account_configured';

-- dry_run shows the row that would be saved.
SELECT account, host, port, encryption, username, password_masked, from_address, hourly_limit, daily_limit, status
FROM kliv_mail.configure_smtp(host => 'smtp.example.com', username => 'a@example.com', password => 'secret-of-a', test => false, dry_run => true);
SELECT * FROM shown();

-- Saved: host lower case and A-labels, from_address from the user name.
SELECT configured('host => '' SMTP.Example.COM. '', username => ''a@example.com'', password => ''CANARY-secret-123''');
SELECT * FROM shown();
SELECT name, password_cipher IS NOT NULL AS sealed, key_id ~ '^[0-9a-f]{8}$' AS key, position('CANARY' IN encode(password_cipher, 'escape')) AS clear
FROM kliv_mail._account;
SELECT configured(U&'host => ''smtp.ex\00E4mple.com'', username => ''a@example.com'', password => ''CANARY-secret-123'', account => ''idn''');
SELECT configured('host => ''8.8.8.8'', port => 2465, username => ''a@example.com'', password => ''CANARY-secret-123'', account => ''idn''');
SELECT * FROM shown();
SELECT account, host, port, encryption, username, password_masked
FROM kliv_mail.configure_smtp(host => '8.8.4.4', username => '', encryption => 'none', account => 'idn', test => false);
SELECT * FROM shown();
DELETE FROM kliv_mail._account WHERE name = 'idn';

-- NULL keeps, '' clears.
SELECT configured('from_name => ''Ana'', reply_to => ''Help <help@example.com>, b@example.com'', allowed_senders => ARRAY[''b@Example.com'', ''@News.example.com''], hourly_limit => 100, daily_limit => 5000');
SELECT * FROM shown();
SELECT configured('from_address => ''Shop <shop@example.com>'', reply_to => '''', allowed_senders => ''{}''');
SELECT * FROM shown();
SELECT configured('from_address => '''', from_name => ''''');
-- A rotated password keeps sender and limits.
SELECT configured('password => ''another-secret-4567''');
SELECT * FROM shown();
-- Any other place needs the password again.
SELECT x AS change, configured(x) FROM unnest(ARRAY['provider => ''sendgrid''', 'host => ''other.example.com''', 'port => 2525',
    'encryption => ''tls''', 'username => ''b@example.com''']) AS x;
-- What is named again and not changed does not.
SELECT configured('host => ''smtp.example.com'', port => 587, encryption => ''starttls'', username => ''a@example.com''');
-- Another port or encryption brings the other along; another host starts anew.
SELECT configured('port => 465, password => ''another-secret-4567''');
SELECT * FROM shown();
SELECT configured('encryption => ''starttls'', password => ''another-secret-4567''');
SELECT configured('host => ''other.example.com'', password => ''another-secret-4567''');
SELECT configured('host => ''other.example.com''');
SELECT configured('host => ''other.example.com'', username => ''b@example.com'', password => ''another-secret-4567''');
SELECT * FROM shown();
-- A preset's user name that is a secret is sealed and masked; the password alone rotates both.
SELECT configured('provider => ''postmark'', password => ''00000000-1111-2222-3333-444444444444'', from_address => ''shop@example.com''');
SELECT * FROM shown();
SELECT configured('password => ''55555555-1111-2222-3333-666666666666''');
SELECT * FROM shown();
-- A user name that equals the password is one.
SELECT configured('provider => '''', host => ''other.example.com'', username => ''token-0123456789-abcdef'', password => ''token-0123456789-abcdef'', from_address => ''shop@example.com''');
SELECT * FROM shown();
SELECT username IS NULL AND username_cipher IS NOT NULL AS hidden, position('token' IN _account::text) AS clear FROM kliv_mail._account;
SELECT configured('hourly_limit => 101');
SELECT * FROM shown();

-- Masks: six of at least eighteen characters, else a third.
SELECT x AS password, configured(format('username => ''u@example.com'', password => %L', x)), mask_now()
FROM unnest(ARRAY['ab', 'abc', 'abcdefghijklmnopq', 'abcdefghijklmnopqr', U&'\79D8\5BC6\306E\5408\8A00\8449']) AS x;

-- Sealed by a client, and from a file.
SELECT octet_length(kliv_mail.public_key());
SELECT configured('password_sealed => ''\x00''');
SELECT configured('password_sealed => decode(repeat(''00'', 64), ''hex'')');
SELECT shell('umask 077; printf "file-secret-012345\n" > kliv_mail_test.secret');
SELECT configured('password_file => ''kliv_mail_test.secret''');
SELECT * FROM shown();
SELECT configured('password_file => ''kliv_mail_test.none''');

-- Limits (B093, B094).
SELECT x AS limits, tried(format('SELECT kliv_mail.set_limits(%s)', x)) FROM unnest(ARRAY['hourly_limit => -1', 'daily_limit => -1', 'daily_limit => 10001',
    '50, 10001', '1, 1, ''platform''', '1, 1, ''none''', 'hourly_limit => ''2147483648''', '1, 1, NULL']) AS x;
SET client_min_messages = notice;
SELECT account, hourly_limit, daily_limit, status, status_detail FROM kliv_mail.set_limits(hourly_limit => 0);
SELECT account, hourly_limit, daily_limit, status FROM kliv_mail.set_limits(10, 5);
SELECT account, hourly_limit, daily_limit, status FROM kliv_mail.set_limits(daily_limit => 9500);
SELECT account, hourly_limit, daily_limit, status FROM kliv_mail.set_limits();
SET client_min_messages = warning;
-- All own accounts together.
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret-of-a'', account => ''second'', daily_limit => 501');
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret-of-a'', account => ''second''');
SELECT tried('SELECT kliv_mail.set_limits(daily_limit => 9501)');
SELECT name, route_order FROM kliv_mail._account ORDER BY name;

-- update_sender.
SELECT tried(format('SELECT kliv_mail.update_sender(%s)', x)) ~ '^22023 (from_address|from_name|reply_to|allowed_senders): ' AS refused
FROM unnest(ARRAY['from_address => ''nobody''', E'from_name => E''a\nb''', 'reply_to => ''a b''', 'allowed_senders => ARRAY[''x'']']) AS x;
SELECT tried('SELECT kliv_mail.update_sender(from_name => ''x'', account => ''platform'')');
SELECT tried('SELECT kliv_mail.update_sender(from_name => ''x'', account => ''none'')');
SELECT account, from_address, from_name, reply_to, allowed_senders
FROM kliv_mail.update_sender('Shop <shop@example.com>', reply_to => 'help@example.com', allowed_senders => ARRAY['@example.com']);
SELECT account, from_address, from_name, reply_to, allowed_senders FROM kliv_mail.update_sender('', '', '', '{}');

-- Every change moves the fingerprint that a hold is compared with; limits do not.
SELECT fingerprint AS f1 FROM kliv_mail._accounts() WHERE name = 'custom' \gset
SELECT FROM kliv_mail.set_limits(10);
SELECT fingerprint = :'f1' AS same_after_limits FROM kliv_mail._accounts() WHERE name = 'custom';
SELECT FROM kliv_mail.configure_smtp(test => false);
SELECT fingerprint <> :'f1' AS moved_by_configure, fingerprint AS f2 FROM kliv_mail._accounts() WHERE name = 'custom' \gset
SELECT :'moved_by_configure';
SELECT kliv_mail._record_test('custom', false);
SELECT fingerprint = :'f2' AS same_after_failed_test FROM kliv_mail._accounts() WHERE name = 'custom';
SELECT status, status_detail FROM kliv_mail.smtp_settings WHERE account = 'custom';
SELECT kliv_mail._record_test('custom', true);
SELECT fingerprint <> :'f2' AS moved_by_test FROM kliv_mail._accounts() WHERE name = 'custom';
SELECT status, status_detail FROM kliv_mail.smtp_settings WHERE account = 'custom';

-- The key (B090): each fault is a state, none makes a new key, and it recovers.
SELECT key_state FROM kliv_mail._key_state();
SELECT fault, regexp_replace(split_part(tried('SELECT kliv_mail.configure_smtp(hourly_limit => 10, test => false)'), '|', 1), 'key [0-9a-f]{8}', 'key ########') AS error,
       regexp_replace(status_now('custom'), 'key [0-9a-f]{8}', 'key ########') AS status
FROM (SELECT f.n, f.fault, shell(f.command) FROM (VALUES
        (1, 'missing', 'mv kliv_mail.key kliv_mail.key.good'),
        (2, 'empty', 'umask 077; : > kliv_mail.key'),
        (3, '31 bytes', 'umask 077; head -c 31 kliv_mail.key.good > kliv_mail.key'),
        (4, 'cut', 'umask 077; head -c 150 kliv_mail.key.good > kliv_mail.key'),
        (5, 'another', 'umask 077; sed "/key/s/[0-9a-f]\{64\}/$(printf %064d 1)/; s/ key [0-9a-f]\{8\} / key /" kliv_mail.key.good > kliv_mail.key'),
        (6, 'wrong id', 'umask 077; sed "s/ key [0-9a-f]\{8\} / key 00000000 /" kliv_mail.key.good > kliv_mail.key'),
        (7, 'no root', 'umask 077; sed "/root/d" kliv_mail.key.good > kliv_mail.key'),
        (8, 'open to all', 'cp kliv_mail.key.good kliv_mail.key; chmod 644 kliv_mail.key'),
        (9, 'link', 'rm kliv_mail.key; ln -s kliv_mail.key.good kliv_mail.key'),
        (10, 'directory', 'rm kliv_mail.key; mkdir -m 700 kliv_mail.key')) AS f (n, fault, command) OFFSET 0) AS x;
SELECT shell('rmdir kliv_mail.key');
-- Missing, and a password given: no new key.
SELECT configured('password => ''new-secret-1234567890''') ~ '^55000 password: the key file ".*" does not exist' AS refused;
SELECT tried('SELECT kliv_mail.public_key()') ~ '^55000 the key file' AS refused;
SELECT tried('SELECT kliv_mail.rotate_key()') ~ '^55000 ' AS refused;
SELECT pg_stat_file('kliv_mail.key', true) IS NULL AS still_missing;
SELECT shell('mv kliv_mail.key.good kliv_mail.key');
SELECT key_state FROM kliv_mail._key_state();
SELECT * FROM shown();

-- Rotation: a new key in front, the others and the root stay, every password opens.
SELECT key_fingerprint AS k1, encode(kliv_mail.public_key(), 'hex') AS p1 FROM kliv_mail._key_state() \gset
SELECT kliv_mail.rotate_key();
SELECT key_fingerprint <> :'k1' AS new_key, encode(kliv_mail.public_key(), 'hex') <> :'p1' AS new_public_key FROM kliv_mail._key_state();
SELECT name, key_id <> :'k1' AS sealed_anew FROM kliv_mail._account ORDER BY name;
SELECT ids[2] = :'k1' AS old_key_kept FROM kliv_mail._key_ring();
SELECT configured('hourly_limit => 20');
-- The old key is needed no more.
SELECT shell('sed -i "/ key ' || :'k1' || ' /d" kliv_mail.key');
SELECT configured('hourly_limit => 21');

-- B091: a ciphertext belongs to its row, host, port and user name.
BEGIN;
UPDATE kliv_mail._account SET password_cipher = (SELECT password_cipher FROM kliv_mail._account WHERE name = 'custom') WHERE name = 'second';
SELECT configured('hourly_limit => 5, account => ''second''');
ROLLBACK;
SELECT x AS moved, moved_and_tried FROM unnest(ARRAY['host = ''evil.example.com''', 'port = 2525', 'username = ''c@example.com''']) AS x,
LATERAL (SELECT tried(format('UPDATE kliv_mail._account SET %s WHERE name = ''second''; SELECT kliv_mail.configure_smtp(hourly_limit => 5, account => ''second'', test => false)', x)) AS moved_and_tried) AS y;
BEGIN;
UPDATE kliv_mail._account SET password_cipher = set_byte(password_cipher, 40, 1 # get_byte(password_cipher, 40)) WHERE name = 'second';
SELECT configured('hourly_limit => 5, account => ''second''');
ROLLBACK;

-- Pause and resume.
SELECT tried('SELECT kliv_mail.pause(''none'')');
SELECT kliv_mail.pause('custom', 'new logo');
SELECT kliv_mail.pause(reason => 'maintenance');
SELECT account, status, status_detail, paused_until FROM kliv_mail.smtp_settings WHERE account <> 'platform';
SET client_min_messages = notice;
SELECT kliv_mail.resume();
SET client_min_messages = warning;
SELECT account, status, status_detail FROM kliv_mail.smtp_settings WHERE account <> 'platform';
SELECT kliv_mail.resume('custom');

-- A copy: everything carries another origin.
SELECT 1 FROM kliv_mail._state WHERE origin = kliv_mail._origin();
UPDATE kliv_mail._state SET origin = '1/1';
UPDATE kliv_mail._account SET origin = '1/1';
SELECT account, status, status_detail FROM kliv_mail.smtp_settings;
SELECT kliv_mail.resume();
SELECT account, status FROM kliv_mail.smtp_settings WHERE account <> 'platform';
SELECT count(*) FILTER (WHERE origin = kliv_mail._origin()) AS here, count(*) FROM kliv_mail._account;

-- Reset: out of use, no secret left, identity and limits stay.
SELECT tried('SELECT kliv_mail.reset_smtp(''platform'')');
SELECT tried('SELECT kliv_mail.reset_smtp(''none'')');
SELECT account, in_use, password_masked, from_address, hourly_limit, status, status_detail FROM kliv_mail.reset_smtp();
SELECT account, in_use, status FROM kliv_mail.reset_smtp();
SELECT password_cipher IS NULL AND username_cipher IS NULL AND key_id IS NULL AS wiped FROM kliv_mail._account WHERE name = 'custom';
SELECT kliv_mail._default_account();
SELECT configured('hourly_limit => 7');
SELECT configured('password => ''back-again-123456''');
SELECT * FROM shown();

-- Who changed what: never a secret.
SELECT kind, account, role = current_user AS me, data - 'moved' AS data FROM kliv_mail._event
WHERE kind IN ('limits_changed', 'paused', 'resumed', 'account_reset', 'key_rotated', 'sender_updated') ORDER BY id;
SELECT count(*) FROM kliv_mail._event AS e WHERE e::text ~ 'CANARY|secret|token-0';
-- The caller's name is that of the role that calls, and rights are those of EXECUTE.
CREATE ROLE kliv_mail_test_admin;
GRANT USAGE ON SCHEMA kliv_mail TO kliv_mail_test_admin;
GRANT EXECUTE ON FUNCTION kliv_mail.set_limits, kliv_mail.configure_smtp TO kliv_mail_test_admin;
SET ROLE kliv_mail_test_admin;
SELECT updated_by FROM kliv_mail.set_limits(8);
SELECT updated_by FROM kliv_mail.configure_smtp(password => 'role-secret-123456', test => false);
SELECT tried('SELECT kliv_mail.configure_smtp(password_file => ''kliv_mail_test.secret'', test => false)');
SELECT tried('SELECT kliv_mail.reset_smtp()');
SELECT tried('SELECT * FROM kliv_mail._account');
SELECT tried('SELECT kliv_mail._save_account(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)');
RESET ROLE;
-- A transaction that may not write is told before the network.
BEGIN READ ONLY;
SELECT tried('SELECT kliv_mail.configure_smtp(password => ''x'', test => false)');
COMMIT;

SELECT shell('rm kliv_mail_test.secret');
DELETE FROM kliv_mail._account;
DELETE FROM kliv_mail._event;
DROP OWNED BY kliv_mail_test_admin;
DROP ROLE kliv_mail_test_admin;
DROP FUNCTION shown, status_now, mask_now, shell, configured, tried;
