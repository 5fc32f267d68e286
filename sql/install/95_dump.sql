-- What pg_dump takes along: every table and the sequences of their ids (and of
-- epochs, so that no claim of old is taken for ours).  A test sees that none is forgotten.
SELECT pg_extension_config_dump('kliv_mail._state', '');
SELECT pg_extension_config_dump('kliv_mail._salt', '');
SELECT pg_extension_config_dump('kliv_mail._platform_test', '');
SELECT pg_extension_config_dump('kliv_mail._account', '');
SELECT pg_extension_config_dump('kliv_mail._pause', '');
SELECT pg_extension_config_dump('kliv_mail._quota', '');
SELECT pg_extension_config_dump('kliv_mail._reputation', '');
SELECT pg_extension_config_dump('kliv_mail._usage', '');
SELECT pg_extension_config_dump('kliv_mail._message', '');
SELECT pg_extension_config_dump('kliv_mail._outbox', '');
SELECT pg_extension_config_dump('kliv_mail._batch', '');
SELECT pg_extension_config_dump('kliv_mail._delivery', '');
SELECT pg_extension_config_dump('kliv_mail._webhook', '');
SELECT pg_extension_config_dump('kliv_mail._bounce_mailbox', '');
SELECT pg_extension_config_dump('kliv_mail._fetched', '');
SELECT pg_extension_config_dump('kliv_mail._report', '');
SELECT pg_extension_config_dump('kliv_mail._ignored_report', '');
SELECT pg_extension_config_dump('kliv_mail._suppression', '');
SELECT pg_extension_config_dump('kliv_mail._forgotten', '');
SELECT pg_extension_config_dump('kliv_mail._topic', '');
SELECT pg_extension_config_dump('kliv_mail._brand', '');
SELECT pg_extension_config_dump('kliv_mail._template', '');
SELECT pg_extension_config_dump('kliv_mail._template_version', '');
SELECT pg_extension_config_dump('kliv_mail._template_state', '');
SELECT pg_extension_config_dump('kliv_mail._idempotency', '');
SELECT pg_extension_config_dump('kliv_mail._replacement', '');
SELECT pg_extension_config_dump('kliv_mail._event', '');
SELECT pg_extension_config_dump('kliv_mail._message_id', '');
SELECT pg_extension_config_dump('kliv_mail._delivery_id', '');
SELECT pg_extension_config_dump('kliv_mail._event_id', '');
SELECT pg_extension_config_dump('kliv_mail._epoch', '');

COMMENT ON EXTENSION kliv_mail IS 'the mail system of an application: start with SELECT * FROM kliv_mail.next_step()';

-- Without the preload mail queues and nothing sends it: say the line to add.  No
-- NOTICE of such a script gets through.
DO $$
DECLARE
    m record;
BEGIN
    SELECT * INTO m FROM kliv_mail._machinery() AS x;
    IF m.code = 'not_preloaded' THEN
        RAISE WARNING USING MESSAGE = 'kliv_mail is not preloaded: mail queues, and nothing sends it', HINT = m.hint;
    END IF;
END;
$$;
