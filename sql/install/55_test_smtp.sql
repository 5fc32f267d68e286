-- The connection test (src/functions/test_smtp.c).  Rows, a step each, up to the one that
-- failed; sends no mail unless asked.

CREATE FUNCTION kliv_mail.test_smtp(provider text DEFAULT NULL, host text DEFAULT NULL, port integer DEFAULT NULL,
    username text DEFAULT NULL, password text DEFAULT NULL, encryption text DEFAULT NULL, from_address text DEFAULT NULL,
    region text DEFAULT NULL, auth text DEFAULT NULL, account text DEFAULT NULL, send_to text DEFAULT NULL)
RETURNS TABLE (step text, ok boolean, elapsed_ms numeric, detail text, hint text)
AS '$libdir/kliv_mail_net', 'kliv_mail_test_smtp' LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION kliv_mail.test_smtp(text, text, integer, text, text, text, text, text, text, text, text) IS
'Tests a connection step by step: dns, connect, tls, ehlo, auth, sender (MAIL FROM and RCPT TO of the own address, then RSET); ends with the first step that is not ok, whose hint says what to do. elapsed_ms is the time of the step in milliseconds. SELECT * FROM kliv_mail.test_smtp(); tests the account in use. What is not given comes from the saved account (account => name; NULL: the one in use); a saved password is used only where host, port and username are the saved ones, else give it (22023). Sends no mail unless send_to names an address: then one test mail is queued, counted in the quota like any other, and the step send names its message. Takes at most kliv_mail.connect_timeout and 30 s for the sender step, and can be cancelled. A test of what is saved stands in smtp_settings, and a good one ends a hold of the account, unless a mail met it behind these steps; then the hint says so.
provider: @PROVIDERS@
encryption: tls | starttls | none
auth: password | oauth2
Example: SELECT * FROM kliv_mail.test_smtp();
Example: SELECT * FROM kliv_mail.test_smtp(send_to => ''you@example.com'');';
