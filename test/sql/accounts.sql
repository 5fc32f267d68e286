-- Accounts and secrets without a network: what configure_smtp() and its kin
-- take and refuse, what NULL and '' mean, masks, the key ring.  Bad values and
-- bad keys are in bad_settings.sql.
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
    EXECUTE format('COPY (SELECT) TO PROGRAM %L', 'cat > /dev/null; ' || command);     -- reads what COPY writes, else EPIPE
END;
$$;
CREATE FUNCTION shown() RETURNS SETOF text LANGUAGE sql AS $$
    SELECT format('%s: in_use %s, %s %s:%s %s user %s password %s from %s <%s> reply %s senders %s limits %s/%s %s%s',
                  account, in_use, provider, host, port, encryption, username, password_masked, from_name, from_address, reply_to,
                  allowed_senders, hourly_limit, daily_limit, status, ': ' || status_detail)
    FROM kliv_mail.smtp_settings WHERE account <> 'platform';
$$;

-- A subquery would be evaluated once; a call is one in each row.
CREATE FUNCTION mask_now() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT password_masked FROM kliv_mail.smtp_settings WHERE account = 'custom');
END;
$$;
SELECT * FROM shown();

-- What is incomplete; single bad values are in bad_settings.sql.
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com''') AS no_password;
SELECT configured('host => ''smtp.example.com'', password => ''secret''') AS no_username;
SELECT configured('host => ''smtp.example.com''') AS no_login;
SELECT configured('host => ''smtp.example.com'', username => '''', password => ''secret''') AS password_of_nobody;
SELECT configured('host => ''smtp.example.com'', username => ''a@example.com'', password => ''secret'', password_file => ''x''') AS two_passwords;
SELECT configured('username => ''a@example.com'', password => ''secret''') AS no_host;
SELECT configured('host => ''smtp.example.com'', username => ''apikey'', password => ''secret''') AS no_from;
SELECT ascii(substr(x, 2)) AS second, configured(format('host => ''smtp.example.com'', username => %L, password => ''secret''', x))
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
SELECT * FROM kliv_mail.configure_smtp(host => 'smtp.example.com', username => 'a@example.com', password => 'secret-of-a', test => false, dry_run => true);
SELECT * FROM shown();

-- Saved: host lower case and A-labels, from_address from the user name.
SELECT configured('host => '' SMTP.Example.COM. '', username => ''a@example.com'', password => ''CANARY-secret-123''');
SELECT * FROM shown();
SELECT name, password_cipher IS NOT NULL AS sealed, key_id ~ '^[0-9a-f]{8}$' AS key, position('CANARY' IN encode(password_cipher, 'escape')) AS clear
FROM kliv_mail._account;
SELECT configured(U&'host => ''smtp.ex\00E4mple.com'', username => ''a@example.com'', password => ''CANARY-secret-123'', account => ''idn''');
SELECT configured('host => ''8.8.8.8'', port => 2465, username => ''a@example.com'', password => ''CANARY-secret-123'', account => ''idn''');
SELECT * FROM shown();
SELECT account, server, password_masked, changed
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

-- Limits.
SELECT x AS limits, tried(format('SELECT kliv_mail.set_limits(%s)', x)) FROM unnest(ARRAY['1, 1, ''platform''', '1, 1, ''none''', '1, 1, NULL']) AS x;
SET client_min_messages = notice;
SELECT account, hourly_limit, daily_limit, status, changed FROM kliv_mail.set_limits(hourly_limit => 0);
SELECT account, hourly_limit, daily_limit, status, changed FROM kliv_mail.set_limits(10, 5);
SELECT account, hourly_limit, daily_limit, status FROM kliv_mail.set_limits(daily_limit => 9500);
SELECT account, hourly_limit, daily_limit, status, changed FROM kliv_mail.set_limits();
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
SELECT account, from_address, changed
FROM kliv_mail.update_sender('Shop <shop@example.com>', reply_to => 'help@example.com', allowed_senders => ARRAY['@example.com']);
SELECT * FROM shown();
SELECT account, from_address, changed FROM kliv_mail.update_sender('', '', '', '{}');
SELECT * FROM shown();

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

-- Where it takes the place of another server, it says so.
SET client_min_messages = notice;
SELECT account, server, from_address, changed FROM kliv_mail.configure_smtp(host => 'mail.example.net', username => 'app', password => 'another secret word', test => false, dry_run => true);
BEGIN;
SELECT account, server, from_address, changed FROM kliv_mail.configure_smtp(host => 'mail.example.net', username => 'app', password => 'another secret word', test => false);
ROLLBACK;
SET client_min_messages = warning;

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

-- Pause and resume.
SELECT tried('SELECT kliv_mail.pause(''none'')');
SELECT kliv_mail.pause('custom', 'new logo');
SELECT kliv_mail.pause(reason => 'maintenance');
SELECT account, status, replace(status_detail, session_user, 'me') AS status_detail, paused_until FROM kliv_mail.smtp_settings WHERE account <> 'platform';
SET client_min_messages = notice;
SELECT kliv_mail.resume();
SET client_min_messages = warning;
SELECT account, status, replace(status_detail, session_user, 'me') AS status_detail FROM kliv_mail.smtp_settings WHERE account <> 'platform';
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
SELECT * FROM kliv_mail.reset_smtp();
SELECT account, status, changed FROM kliv_mail.reset_smtp();
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
SELECT changed FROM kliv_mail.set_limits(8);
SELECT changed FROM kliv_mail.configure_smtp(password => 'role-secret-123456', test => false);
SELECT tried('SELECT kliv_mail.configure_smtp(password_file => ''kliv_mail_test.secret'', test => false)');
SELECT tried('SELECT kliv_mail.reset_smtp()');
SELECT tried('SELECT * FROM kliv_mail._account');
SELECT tried('SELECT kliv_mail._save_account(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)');
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
DROP FUNCTION shown, mask_now, shell, configured, tried;
