-- What a reply means, and the providers' presets.

CREATE FUNCTION kliv_mail.classify_reply(stage text, reply text, provider text DEFAULT NULL)
RETURNS TABLE (verdict text, scope text, bounce_type text, pause interval, reason text)
LANGUAGE c STABLE PARALLEL SAFE ROWS 1
AS '$libdir/kliv_mail_net', 'kliv_mail_classify_reply';
COMMENT ON FUNCTION kliv_mail.classify_reply(text, text, text) IS
$$What an SMTP reply means; one row. stage: connect, greeting, tls, ehlo, auth, mail, rcpt, data or dot (the final dot was sent). reply: the server's words with their code, all lines of them; '' when the connection was lost without a reply. provider: a name of the view providers, whose own limits are then known.
verdict: accepted, temporary, permanent, provider_limit, account_trouble, policy_block, message_fault or in_doubt; scope: recipient, message or account; bounce_type: hard, soft, policy or NULL; pause: how long the reply asks to wait, NULL where it does not say; reason: in plain words.
Errors: 22023 for another stage or an unknown provider, 22004 for a NULL stage or reply.
Example: SELECT * FROM kliv_mail.classify_reply('rcpt', '550 5.1.1 User unknown');$$;

CREATE FUNCTION kliv_mail._read_reply(stage text, raw bytea)
RETURNS TABLE (code integer, enhanced text, reply text, server_message_id text)
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE ROWS 1
AS '$libdir/kliv_mail_net', 'kliv_mail__read_reply';
COMMENT ON FUNCTION kliv_mail._read_reply(text, bytea) IS
    'How the bytes of a reply are stored: code, status, printable and capped text, the server''s id of the message.';

-- ROWS and the order are those of the table in providers.c.
CREATE FUNCTION kliv_mail._providers()
RETURNS TABLE (name text, title text, host text, port integer, encryption text, required text[], example text,
    username_hint text, password_hint text, notes text, docs_url text, free_daily integer, notes_ja text)
LANGUAGE c STABLE PARALLEL SAFE ROWS 8
AS '$libdir/kliv_mail_net', 'kliv_mail__providers';
COMMENT ON FUNCTION kliv_mail._providers() IS 'The presets behind the view providers.';

-- What a provider takes of an account in any 24 hours: 0 as many as the account's
-- daily limit, NULL where it has no such rule.
CREATE FUNCTION kliv_mail._rolling_limit(provider text, username text) RETURNS integer
LANGUAGE c STABLE PARALLEL SAFE
AS '$libdir/kliv_mail_net', 'kliv_mail__rolling_limit';

-- The server of a preset in a region; NULL where it must be given.
CREATE FUNCTION kliv_mail._provider_host(provider text, region text) RETURNS text
LANGUAGE c STABLE PARALLEL SAFE
AS '$libdir/kliv_mail_net', 'kliv_mail__provider_host';

CREATE VIEW kliv_mail.providers WITH (security_barrier) AS
SELECT p.name, p.title, p.host, p.port, p.encryption, p.required, p.example, p.username_hint, p.password_hint, p.notes,
    p.docs_url, p.notes_ja
FROM kliv_mail._providers() AS p;
COMMENT ON VIEW kliv_mail.providers IS
    'The mail providers that configure_smtp(provider => ...) knows. Run the example with your own values.';
COMMENT ON COLUMN kliv_mail.providers.name IS
    'For configure_smtp(provider => ...) and test_smtp(provider => ...), which know what people call it, too: ''Amazon SES'', ''G Suite''.';
COMMENT ON COLUMN kliv_mail.providers.title IS 'What people call it.';
COMMENT ON COLUMN kliv_mail.providers.host IS
    'Server; <region> stands for the argument region; NULL: must be given, notes say what it is.';
COMMENT ON COLUMN kliv_mail.providers.port IS 'Port that is used unless another is given.';
COMMENT ON COLUMN kliv_mail.providers.encryption IS 'tls or starttls, of that port.';
COMMENT ON COLUMN kliv_mail.providers.required IS 'Arguments of configure_smtp() that must be given besides provider.';
COMMENT ON COLUMN kliv_mail.providers.example IS 'A statement to fill in and run.';
COMMENT ON COLUMN kliv_mail.providers.username_hint IS 'What the user name is.';
COMMENT ON COLUMN kliv_mail.providers.password_hint IS 'What the password is, and where to get it.';
COMMENT ON COLUMN kliv_mail.providers.notes IS 'Limits and what people trip over.';
COMMENT ON COLUMN kliv_mail.providers.docs_url IS 'The provider''s own page.';
COMMENT ON COLUMN kliv_mail.providers.notes_ja IS 'The notes in Japanese, with what host is and where to find it.';
