-- Addresses and attachments: pure functions over message/address.c and message/attachment.c.

CREATE FUNCTION kliv_mail.parse_addresses(list text)
    RETURNS TABLE (name text, address text)
    LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE ROWS 5
    AS 'MODULE_PATHNAME', 'kliv_mail_parse_addresses';
COMMENT ON FUNCTION kliv_mail.parse_addresses(text) IS
    'The addresses of an RFC 5322 list (''Ana <ana@example.com>, bob@example.org''), exact repeats merged: display name (NULL if none) and the address as it goes on the wire, the domain in lower-case A-labels. 22023 for what is no list of addresses, with the right form in the hint; 54000 over 1 MB.
Example: SELECT * FROM kliv_mail.parse_addresses(''Ana <ana@example.com>, bob@example.org'');';

CREATE FUNCTION kliv_mail.is_address(address text) RETURNS boolean
    LANGUAGE c IMMUTABLE PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'kliv_mail_is_address';
COMMENT ON FUNCTION kliv_mail.is_address(text) IS
    'Is this exactly one e-mail address that send() takes, without a display name? For CHECK constraints and trigger WHEN conditions. NULL gives false; raises nothing. Spaces around the address are allowed.
Example: SELECT kliv_mail.is_address(''ana@example.com'');';

CREATE FUNCTION kliv_mail.mailbox(address text, name text DEFAULT NULL) RETURNS text
    LANGUAGE c IMMUTABLE PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'kliv_mail_mailbox';
COMMENT ON FUNCTION kliv_mail.mailbox(text, text) IS
    'One address with a display name, quoted as needed, for the address arguments of send(): mailbox(''ana@example.com'', ''Smith, Ana'') gives "Smith, Ana" <ana@example.com>. name NULL or '''' (the default): the one that address has, or none. Of the name goes what cannot be seen: marks of direction, characters without a width, line ends before and behind it. 22023 unless address is exactly one address, or for a name with a line break inside it; 54000 for a name over 1,000 bytes.
Example: SELECT kliv_mail.send(kliv_mail.mailbox(''ana@example.com'', ''Smith, Ana''), ''Hello'', ''It works'');';

-- May an account with that address and those allowed senders send as address?
CREATE FUNCTION kliv_mail._may_send_as(address text, from_address text, allowed_senders text[])
    RETURNS boolean
    LANGUAGE c IMMUTABLE PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'kliv_mail__may_send_as';

CREATE FUNCTION kliv_mail.attach(filename text, content bytea, content_type text DEFAULT NULL,
        content_id text DEFAULT NULL)
    RETURNS kliv_mail.attachment
    LANGUAGE c STABLE PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'kliv_mail_attach';
COMMENT ON FUNCTION kliv_mail.attach(text, bytea, text, text) IS
    'A file for send(attachments => ARRAY[...]). filename: its last path component is used, at most 255 bytes. content_type: type/subtype, by default by the file name''s extension, application/octet-stream where that is unknown. content_id: the name by which the HTML shows an image, as <img src="cid:NAME">. 22023 for a bad name or type and for an extension in kliv_mail.prohibited_extensions; 54000 over kliv_mail.max_message_size.
Example: SELECT kliv_mail.send(''ana@example.com'', ''Your file'', ''Here it is'', attachments => ARRAY[kliv_mail.attach(''logo.png'', ''\x89504e47'')]);';

CREATE FUNCTION kliv_mail.attach_text(filename text, content text, content_type text DEFAULT NULL)
    RETURNS kliv_mail.attachment
    LANGUAGE c STABLE PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'kliv_mail_attach_text';
COMMENT ON FUNCTION kliv_mail.attach_text(text, text, text) IS
    'A text file for send(attachments => ARRAY[...]), in UTF-8 whatever the database''s encoding. content_type: by default by the file name''s extension, text/plain where that is unknown; a text type gets charset=utf-8. Errors as attach().
Example: SELECT kliv_mail.send(''ana@example.com'', ''Your file'', ''Here it is'', attachments => ARRAY[kliv_mail.attach_text(''a.csv'', ''item,price'')]);';

-- The bytes that send() makes, for the tests: no queue, no account.
CREATE FUNCTION kliv_mail._compose(subject text, body text, html text, to_list text, cc text,
        headers jsonb, attachments kliv_mail.attachment[], sender text DEFAULT NULL,
        reply_to text DEFAULT NULL)
    RETURNS bytea
    LANGUAGE c VOLATILE PARALLEL SAFE
    AS 'MODULE_PATHNAME', 'kliv_mail__compose';
COMMENT ON FUNCTION kliv_mail._compose(text, text, text, text, text, jsonb, kliv_mail.attachment[], text, text) IS
    'A message as send() composes it, behind From and Reply-To where a sender is given.';

