-- Addresses, attachments and the bytes of a message: pure functions, no queue.
-- The ids are those of the catalogue of bad inputs.
SET client_min_messages = warning;
\pset format unaligned
\pset fieldsep ' => '
CREATE SCHEMA addresses_test;
SET search_path = addresses_test;

-- What an expression gives, or the SQLSTATE, message and hint that it raises.
CREATE FUNCTION tried(expression text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    result text;
    hint text;
BEGIN
    EXECUTE 'SELECT (' || expression || ')::text' INTO result;
    RETURN coalesce(result, 'NULL');
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
    RETURN SQLSTATE || ' ' || SQLERRM || coalesce(E'\n  ' || nullif(hint, ''), '');
END $$;

-- The list's addresses in one line, or its error.
CREATE FUNCTION parsed(list text) RETURNS text LANGUAGE sql AS $$
    SELECT tried(format($q$SELECT string_agg(coalesce(name, '') || '<' || address || '>', ' ' ORDER BY n)
        FROM kliv_mail.parse_addresses(%L) WITH ORDINALITY AS a(name, address, n)$q$, list)) $$;

-- A composed message, its date and its boundaries replaced.
CREATE FUNCTION composed(subject text, body text DEFAULT NULL, html text DEFAULT NULL, to_list text DEFAULT NULL,
        headers jsonb DEFAULT NULL, attachments kliv_mail.attachment[] DEFAULT NULL,
        sender text DEFAULT NULL, reply_to text DEFAULT NULL)
    RETURNS SETOF text LANGUAGE sql AS $$
    SELECT unnest(string_to_array(regexp_replace(regexp_replace(convert_from(
        kliv_mail._compose($1, $2, $3, $4, NULL, $5, $6, $7, $8), 'UTF8'),
        '=_(\d)_[0-9a-f]{24}', '=_\1_BOUNDARY', 'g'),
        'Date: \w{3}, \d{1,2} \w{3} \d{4} \d\d:\d\d:\d\d \+0000', 'Date: NOW'), E'\r\n')) $$;

-- Lists that are accepted.
SELECT parsed(list) FROM (VALUES
    ('ana@example.com'),
    ('Ana <ana@example.com>, bob@example.org'),
    ('"Smith, John" <j@x.example>, O''Brien <o@x.example>, John Q. Public <q@x.example>'),
    ('"CEO" <ceo@bank.example>'),
    ('"say \"hi\" \\" <q@x.example>'),
    ('山田　太郎 <yamada@example.jp>, 山田、太郎 <t@example.jp>'),
    ('　ana@example.com　,' || U&'\00A0' || 'bob@example.org' || U&'\2003'),
    ('Ana <  ana@example.com  > (her (own) address), (x) bob@example.org'),
    ('"a b"@x.example'),                                        -- B010
    ('"a<b"@x.example'), ('ok@x.example, "a\>b"@x.example'),
    ('"a\"b"@x.example, "plain"@x.example'),
    ('a..b@docomo.ne.jp, a.@ezweb.ne.jp, .a@x.example'),        -- B009, as the design has it
    ('a@x.example, A@X.EXAMPLE, a@x.example'),                  -- B023
    ('A <a@x.example>, B <b@x.example>'),                       -- B021, as the design has it
    ('Ana <a@x.example>, Other <a@x.example>'),
    ('joe@exämple.com, joe@例え.jp, joe@straße.de'),             -- B017
    ('joe@xn--80ak6aa92e.com'),                                 -- B018
    ('jösé@x.example'),                                         -- B016
    (repeat('x', 64) || '@x.example'),                          -- B012
    ('xy@' || repeat(repeat('a', 60) || '.', 4) || 'example'),   -- B013: 254
    ('x@' || repeat('a', 63) || '.example')                     -- B014
) AS lists(list);

-- Lists that are not.
SELECT list, parsed(list) FROM (VALUES
    (''), ('   '), ('　'),                                       -- B001
    (E'a@b.example\r\nBcc: evil@x.example'),                    -- B002
    (E'a@b.example>\r\nRCPT TO:<evil@x.example'),               -- B003
    (E'a@b.example\nDATA'),                                     -- B004
    ('<a@b.example> NOTIFY=NEVER'),                             -- B005
    ('b@y.example> ORCPT=rfc822;x'),                            -- B006
    ('a b@x.example'),                                          -- B007
    ('a@'), ('@x.example'), ('a'), ('a@@x.example'),            -- B008
    ('..@x.example'),
    (E'"a\r\nb"@x.example'),                                    -- B011
    (repeat('x', 65) || '@x.example'),                          -- B012
    ('xyz@' || repeat(repeat('a', 60) || '.', 4) || 'example'),  -- B013: 255
    ('x@' || repeat('a', 64) || '.example'), ('a@x-.example'), ('a@-x.example'), ('a@x_y.example'), -- B014
    ('a@[127.0.0.1]'), ('a@[IPv6:::1]'), ('a@localhost'), ('a@10.0.0.1'),   -- B015
    (E'joe@exam\u200Bple.com'), (E'\uFEFFjoe@x.example'), (E'joe@exam\u00ADple.com'),   -- B019
    ('Undisclosed:;'), ('Team: a@x.example, b@x.example;'),     -- B021
    (E'Bob\r\nBcc: x@y.example <b@x.example>'),                 -- B025
    (E'Bob \u202Ecod.exe <b@x.example>'),                       -- B026
    ('a@x.example; b@y.example'), ('a@x.example，b@y.example'), ('山田 <a@x.example>、佐藤 <b@y.example>'),
    ('ana＠example.com'), ('ａｎａ@example.com'), ('ana@ｅｘａｍｐｌｅ．ｃｏｍ'), ('ana@example。com'),
    ('a@x.example,'), ('a@x.example,,b@x.example'), (',a@x.example'),
    ('a@x.example b@x.example'), ('<a@x.example'), ('Ana <a@x.example>>'), ('Smith, Ana <a@x.example>'),
    ('Ana@home <a@x.example>'), ('"Ana <a@x.example>'), ('Ana (x <a@x.example>'), ('mailto:a@x.example'),
    ('a@x..example'), ('a@x.example.'), ('a@.example'), ('a@exa/mple.com'), ('a@exam℀ple.com'),
    ('<@relay.example:a@x.example>'), ('a @x.example'), ('a@ x.example'), ('"a"b@x.example'), ('a"b"@x.example')
) AS lists(list);

SELECT tried('SELECT count(*) FROM kliv_mail.parse_addresses(NULL)');
SELECT tried($$SELECT count(*) FROM kliv_mail.parse_addresses(repeat('a@x.example,', 100000))$$);
SELECT tried($$SELECT count(*) FROM kliv_mail.parse_addresses((SELECT string_agg('a' || i || '@x.example', ',') FROM generate_series(1, 20000) i))$$);
SELECT tried($$SELECT count(*) FROM kliv_mail.parse_addresses(repeat('n', 1001) || ' <a@x.example>')$$);

SELECT address, kliv_mail.is_address(address) FROM (VALUES
    ('a@x.example'), (' a@x.example '), ('a..b@x.example'), ('Ana <a@x.example>'), ('<a@x.example>'),
    ('a@x.example, b@x.example'), ('a'), (''), (NULL)) AS a(address);

SELECT tried(call) FROM (VALUES
    ($$kliv_mail.mailbox('ana@example.com')$$),
    ($$kliv_mail.mailbox('ana@example.com', 'Ana')$$),
    ($$kliv_mail.mailbox(' ana@EXAMPLE.com', 'Smith, "A." Ana\')$$),
    ($$kliv_mail.mailbox('ana@example.com', '"CEO" <ceo@bank.example>')$$),    -- B027
    ($$kliv_mail.mailbox('yamada@example.jp', '山田 太郎')$$),
    ($$kliv_mail.mailbox('Ana <ana@example.com>')$$),
    ($$kliv_mail.mailbox('Ana <ana@example.com>', 'Other')$$),
    ($$kliv_mail.mailbox('ana@example.com', '')$$),
    ($$kliv_mail.mailbox('ana@example.com', '  two  spaces ')$$),
    ($$kliv_mail.mailbox('a@x.example, b@x.example', 'Two')$$),
    ($$kliv_mail.mailbox('nobody', 'No')$$),
    ($$kliv_mail.mailbox(NULL, 'No')$$),
    ($$kliv_mail.mailbox('ana@example.com', E'Ana\r\nBcc: x@y.example')$$),
    ($$kliv_mail.mailbox('ana@example.com', repeat('x', 1001))$$)
) AS calls(call);

-- Files.
SELECT tried(format('kliv_mail.attach(%s)', arguments)) FROM (VALUES
    ($$'a.pdf', 'x'$$), ($$'A.PDF', ''$$), ($$'a.unknown', ''$$), ($$'noextension', ''$$),
    ($$'../../etc/passwd', ''$$), ($$'C:\a\b.txt', ''$$),                       -- B059
    ($$E'a"\r\nContent-Type: text/html', ''$$),                                 -- B060
    ($$'請求書 résumé.pdf', ''$$),                                               -- B061
    ($$repeat('x', 300), ''$$), ($$'', ''$$), ($$'.', ''$$), ($$'a/', ''$$), ($$NULL, ''$$),    -- B062
    ($$E'invoice\u202Efdp.txt', ''$$),                                          -- B063
    ($$'a', '', E'text/html\r\nX: y'$$), ($$'a', '', 'x'$$), ($$'a', '', 'multipart/mixed'$$),  -- B064
    ($$'a', '', 'a/b; boundary=z'$$), ($$'a', '', 'message/rfc822'$$), ($$'a', '', 'a/b;'$$),
    ($$'a', '', 'text/calendar; method=REQUEST; charset="utf-8"'$$), ($$'a', '', 'text/plain; name=x'$$),
    ($$'A.EXE', ''$$), ($$'a.exe.', ''$$), ($$'a.exe . ', ''$$), ($$'dir/a.vbs', ''$$), ($$'exe', ''$$),  -- B065
    ($$'a', NULL$$),
    ($$'a', '', NULL, 'logo'$$), ($$'a', '', NULL, 'logo@x.example'$$),
    ($$'a', '', NULL, 'a>b'$$), ($$'a', '', NULL, E'a\r\nb'$$), ($$'a', '', NULL, ''$$), ($$'a', '', NULL, 'a b'$$)  -- B069
) AS calls(arguments);
SELECT tried(format('kliv_mail.attach_text(%s)', arguments)) FROM (VALUES
    ($$'a.csv', 'a,b'$$), ($$'a', 'x'$$), ($$'a.json', '{}'$$), ($$'a.xyz', 'ü'$$), ($$'a.html', '', 'text/plain; charset=UTF-8'$$),
    ($$'a.txt', '', 'text/plain; charset=iso-8859-1'$$), ($$'a.txt', NULL$$)
) AS calls(arguments);
-- B066: as large as may be, and a byte more.
SELECT regexp_replace(tried(format($q$length((kliv_mail.%s('a', %s(repeat('x', %s)%s)).content)$q$, f, c, size + more, e)), '\d{7,}|\d+ kB', 'SIZE', 'g')
FROM (SELECT setting::int * 1024 AS size FROM pg_settings WHERE name = 'kliv_mail.max_message_size') AS s,
    (VALUES (0), (1)) AS m(more), (VALUES ('attach', 'convert_to', $$, 'UTF8')$$), ('attach_text', '', ')')) AS k(f, c, e);

-- What a message refuses.
CREATE FUNCTION refused(subject text DEFAULT 'x', headers jsonb DEFAULT NULL, attachments kliv_mail.attachment[] DEFAULT NULL)
    RETURNS text LANGUAGE sql AS $$
    SELECT tried(format('CASE WHEN kliv_mail._compose(%L, %L, NULL, NULL, NULL, %L, %L) IS NOT NULL THEN %L END',
        subject, 'x', headers, attachments, 'OK')) $$;
SELECT refused(subject) FROM (VALUES
    (E'Hi\r\nX: y'), (E'Hi\nX'), (E'Hi\rX'),                                    -- B029
    (E'Hi \u202Eexe'), (E'bell\u0007'), (repeat('x', 20000)),                   -- B033
    (E'\u2028'), (E'\u0085'), (E'a\tb'), ('   '), (''), ('👨‍👩‍👧‍👦'), (repeat('x', 16000))  -- B032
) AS subjects(subject);
SELECT headers, refused(headers => headers) FROM (VALUES
    ('{"Bcc":"x@y"}'::jsonb), ('{"bcc":"x@y"}'), ('{"BCC ":"x@y"}'),            -- B042
    ('{"From":"x"}'), ('{"Sender":"x"}'), ('{"Reply-To":"x"}'), ('{"To":"x"}'), ('{"Cc":"x"}'), ('{"Date":"x"}'),   -- B043
    ('{"Message-ID":"x"}'), ('{"Return-Path":"x"}'), ('{"Received":"x"}'), ('{"DKIM-Signature":"x"}'),
    ('{"Content-Type":"x"}'), ('{"content-transfer-encoding":"x"}'), ('{"MIME-Version":"1.0"}'), ('{"Subject":"x"}'),
    ('{"Resent-To":"x"}'), ('{"ARC-Seal":"x"}'), ('{"Authentication-Results":"x"}'),
    ('{"Apparently-To":"x"}'), ('{"Errors-To":"x"}'), ('{"return-receipt-to":"x"}'),
    -- What steers a provider past recipients, quota and account, in any case; and what we write ourselves.
    ('{"X-SMTPAPI":"{\"to\":[\"eve@evil.example\"]}"}'), ('{"x-smtpapi ":"{}"}'), ('{"X-MSYS-API":"{}"}'),
    ('{"X-MC-BccAddress":"bcc@evil.example"}'), ('{"x-mc-subaccount":"other"}'), ('{"X-MC-TagsX":"a"}'), ('{"X-MC-Tags":"a"}'),
    ('{"X-SES-SOURCE-ARN":"arn:aws:ses:x"}'), ('{"X-SES-FROM-ARN":"arn:aws:ses:x"}'), ('{"X-SES-RETURN-PATH-ARN":"arn:aws:ses:x"}'),
    ('{"X-SES-CONFIGURATION-SET":"mine"}'), ('{"X-Mailgun-Variables":"{}"}'), ('{"X-Mailgun-Recipient-Variables":"{}"}'),
    ('{"X-Mailgun-Tag":"a"}'), ('{"X-PM-Metadata-kliv-mail":"1"}'), ('{"X-PM-Message-Stream":"broadcast"}'), ('{"X-PM-Tag":"a"}'),
    ('{"Resend-Idempotency-Key":"1"}'),
    ('{"X A":"1"}'), ('{"X:":"1"}'), ('{"":"1"}'), ('{"X-é":"1"}'),             -- B044
    ('{"X-A\r\nBcc":"1"}'), ('{"X-A":"1\r\nBcc: x"}'), ('{"X-A":"\u0007"}'),    -- B045
    ('{"X-A":1}'), ('{"X-A":null}'), ('{"X-A":["1"]}'), ('{"X-A":{"b":"1"}}'), ('["X-A"]'), ('"X-A"'),   -- B046
    ('{"X-A":"1","x-a":"2"}'),
    ('{"List-Unsubscribe":"<http://x>","List-Unsubscribe-Post":"List-Unsubscribe=One-Click"}'),         -- B048
    ('{"List-Unsubscribe":"<mailto:u@x.example>, <https://x.example/u?a=b>","List-Unsubscribe-Post":"List-Unsubscribe=One-Click"}'),
    ('{"List-Unsubscribe-Post":"List-Unsubscribe=One-Click"}'), ('{"List-Unsubscribe-Post":"yes"}'),
    ('{"List-Unsubscribe":"https://x.example/"}'), ('{"List-Unsubscribe":"<javascript:x>"}'), ('{"List-Unsubscribe":"<https://x.example/a b>"}'),
    ('{"List-Id":"News <news.x.example>"}'), ('{"List-Id":"news.x.example"}'), ('{"List-Id":"<news>"}'), ('{"List-Id":"<.news.x>"}'),
    ('{"List-Post":"NO"}'), ('{"List-Post":"maybe"}'), ('{"List-Help":"<https://x.example/help>"}'),
    ('{"In-Reply-To":"<a@x.example>"}'), ('{"In-Reply-To":"a@x.example"}'), ('{"References":"<a@x.example> <b@x.example>"}'), ('{"References":"<a@x.example><b@x.example>"}'), ('{"References":"<a@b@c>"}'),
    ('{"Auto-Submitted":"auto-generated"}'), ('{"Auto-Submitted":"auto-replied; x=y"}'), ('{"Auto-Submitted":"yes"}'),
    ('{"Feedback-ID":"a:b:c:sender"}'), ('{"Feedback-ID":"a:b:c:d:sender"}'), ('{"Feedback-ID":"a b"}'), ('{"Feedback-ID":"a:"}'),
    ('{"Importance":"High"}'), ('{"Importance":"very"}'), ('{"Priority":"urgent"}'), ('{"Priority":"1"}'),
    ('{"X-Priority":"1"}'), ('{"X-Priority":"1 (Highest)"}'), ('{"X-Priority":"6"}'), ('{"X-Priority":"1; x"}'),
    ('{"Disposition-Notification-To":"Ana <a@x.example>"}'), ('{"Disposition-Notification-To":"a"}')
) AS h(headers);
SELECT left(refused(headers => jsonb_build_object(n, v)), 120) FROM (VALUES                         -- B047
    ('X-' || repeat('n', 78), 'x'), ('X-A', repeat('v', 20000)), ('X-A', repeat('v', 16000))) AS h(n, v);
SELECT refused(headers => (SELECT jsonb_object_agg('X-' || i, 'x') FROM generate_series(1, n) i)) FROM (VALUES (100), (101), (1000)) AS c(n);
SELECT refused(attachments => array_fill(kliv_mail.attach('a', ''), ARRAY[n])) FROM (VALUES (100), (101)) AS c(n);  -- B066
SELECT refused(attachments => ARRAY[kliv_mail.attach('a', '', NULL, 'x'), kliv_mail.attach('b', '', NULL, 'x')]);   -- B069
-- Rows made by hand are checked as attach() checks.
SELECT refused(attachments => ARRAY[a::kliv_mail.attachment]) FROM (VALUES
    ($$(a.exe,,,)$$), ($$(a,,,)$$), ($$(,,,"")$$), ($$(a,multipart/mixed,,"")$$), ($$(a,,"x y","")$$), ($$(a,,,"")$$)) AS c(a);
SELECT refused(attachments => ARRAY[NULL]::kliv_mail.attachment[]);

-- What goes on the wire.
SELECT composed('Hello', 'Hello' || E'\n' || 'world', to_list => 'Ana <ana@example.com>, "Smith, J." <j@example.org>, 山田太郎 <y@例え.jp>',
    headers => '{"X-Order":"1234"}', sender => 'Müller & Söhne <m@x.example>', reply_to => 'r@x.example, s@x.example');
SELECT composed('', '');
SELECT composed('=?utf-8?B?SGk=?= typed, "quoted" – 請求書 No. 42', E'Naïve\nFrom here\n.\n..\ntrailing \ttab\t\n\u0007bell\r\rCR');
SELECT composed(repeat('é', 200), repeat('日本語。', 30));
SELECT composed(repeat('👨‍👩‍👧‍👦', 12), repeat('x', 200));
SELECT composed(repeat('a long subject ', 12), 'x', headers => jsonb_build_object('References',
    (SELECT string_agg('<' || i || '@example.com>', ' ') FROM generate_series(1, 12) i), 'X-Json', '{"a":  "b"}', 'X-Empty', ''));
SELECT composed('Both', 'Text', '<p>HTML <img src="cid:logo"></p>', attachments => ARRAY[
    kliv_mail.attach('logo.png', '\x89504e47', content_id => 'logo'), kliv_mail.attach('unused.png', '\x89504e47', content_id => 'unused'),
    kliv_mail.attach_text('請求書 résumé.csv', 'a,b'), kliv_mail.attach('a "b" c.bin', ''),
    kliv_mail.attach(repeat('長', 30) || '.pdf', 'x')]);
SELECT composed('Only HTML', NULL, '<!DOCTYPE html><html><head><title>Title</title><style>p{color:red}</style></head><body>
<div style="display: none">hidden</div><h1>Hi &amp; welcome</h1>
<p>Click <a href="https://x.example/?a=1&amp;b=2">here</a>, write to <a href="mailto:a@x.example">a@x.example</a>
or <a href="https://x.example/">https://x.example</a>.<br>Second line<br><br>Third</p>
<script>alert("<p>no</p>")</script><!-- <p>no</p> -->
<ul><li>one<li>two<ol><li>a</li><li>b</li></ol></ul>
<table><tr><th>Item</th><th>Price</th></tr><tr><td><b>Tea</b></td><td>&euro;&nbsp;5</td></tr></table>
<blockquote><p>quoted</p><p>twice</p></blockquote><pre>a
  b</pre><hr>1 < 2 &copy; &#x3042; &#65; &nope; <a href="javascript:x">js</a> <img alt="Logo" src="x"></body></html>');
-- No more than its length, whatever it is.
SELECT length(kliv_mail._compose('x', NULL, repeat(piece, 20000), NULL, NULL, NULL, NULL)) < 20000 * length(piece) * 15 AS bounded
FROM (VALUES ('<div>'), ('<ul><li>'), ('<blockquote>x'), ('<'), ('&'), ('<a href="https://x">'), ('<!--'), ('<p '), ('</'), ('<script>'), ('<div hidden>')) AS p(piece);
-- Boundaries are new each time (B067).
SELECT count(DISTINCT substring(convert_from(kliv_mail._compose('x', 'x', 'x', NULL, NULL, NULL, NULL), 'UTF8') FROM 'boundary="(.*?)"')) FROM generate_series(1, 10);

-- Immutable and parallel safe, so that they can stand in constraints and indexes.
CREATE TABLE person (email text CHECK (kliv_mail.is_address(email)));
INSERT INTO person VALUES ('ana@example.com');
INSERT INTO person VALUES ('ana');
INSERT INTO person VALUES (NULL);
DROP SCHEMA addresses_test CASCADE;

-- May an account with the address a@x.example send as this?  Domains compare without
-- case, local parts exactly, whether the address is its own or an allowed one.
SELECT address, kliv_mail._may_send_as(address, 'a@x.example', ARRAY['News@Y.example', '@z.example', NULL])
FROM unnest(ARRAY['a@x.example', 'a@X.EXAMPLE', 'A@x.example', 'b@x.example', 'News@y.example', 'news@y.example',
                  'any@Z.example', 'any@sub.z.example', '"a@z.example"@y.example', 'no address', NULL]) AS address;
SELECT kliv_mail._may_send_as('a@x.example', NULL, NULL) AS "without any", kliv_mail._may_send_as('a@x.example', NULL, '{@x.example}') AS "by domain";

-- A name as people type or paste it: what cannot be seen goes, what joins stays, and the
-- rest must be a name.  NULL stands for the mailbox of the address alone.
SELECT n.what, kliv_mail.mailbox('a@x.example', n.name) AS mailbox
FROM (VALUES ('zero width', U&'Ana\200B'), ('embedding', U&'\202AAna\202C'), ('byte order mark', U&'\FEFFAna'), ('Hebrew', U&'\05D3\05DF\200F'),
             ('isolate', U&'\2068Ana\2069'), ('marks inside', U&'A\200En\2060a'), ('line ends', E' \r\n Ana \r\n'), ('next line', U&'\0085Ana\2028'),
             ('nothing left', U&'\200B\FEFF'), ('joined', U&'\0646\0645\06CC\200C\062E\0648\0627\0647\0645'), ('emoji', U&'\+01F469\200D\+01F467'),
             ('joins nothing', U&'Ana\200D\+01F469'), ('at the end', U&'\3042\200D'), ('spaces', '  ')) AS n (what, name);
SELECT kliv_mail.mailbox('a@x.example', E'Ana\nBcc: b@x.example');
SELECT kliv_mail.mailbox('a@x.example', U&'Ana\0007');
SELECT kliv_mail.mailbox('a@x.example', repeat('あ', 400));
-- Names with all kinds of signs: one recipient, whose name is what it was.
SELECT n.name, kliv_mail.mailbox('a@x.example', n.name) AS mailbox, p.name = n.name AND p.address = 'a@x.example' AS same
FROM unnest(ARRAY['Smith, Ana', 'A "B" C', '<b@y.example>', 'O''Brien', 'a@b.example', '=?utf-8?q?x?=', '株式会社　山田(営業)', 'a\b', 'x;y', ':']) AS n (name),
     kliv_mail.parse_addresses(kliv_mail.mailbox('a@x.example', n.name)) AS p;
-- Long names and addresses in To: no line over 998 octets, and every address is there.
SELECT max(octet_length(l.line)) <= 998 AS short, count(*) > 50 AS folded
FROM (SELECT string_agg(format('%s <%s%s@%s.%s.example>', repeat('山', 60), i, repeat('a', 60), repeat('b', 63), repeat('c', 60)), ', ') AS list
      FROM generate_series(10, 59) AS i) AS t,
     LATERAL (SELECT split_part(convert_from(kliv_mail._compose('s', 'b', NULL, t.list, NULL, NULL, NULL), 'UTF8'), E'\r\n\r\n', 1) AS head) AS h,
     LATERAL (SELECT regexp_split_to_table(h.head, E'\r\n') AS line) AS l;
