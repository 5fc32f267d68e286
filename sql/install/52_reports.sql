-- Query results as mail.  No search_path is set: the query is the caller's.
CREATE FUNCTION kliv_mail.csv(query text, encoding text DEFAULT 'UTF8BOM', filename text DEFAULT 'result.csv') RETURNS kliv_mail.attachment
LANGUAGE c VOLATILE STRICT AS '$libdir/kliv_mail_net', 'kliv_mail_csv';
COMMENT ON FUNCTION kliv_mail.csv IS
$$The result of a query as a CSV file for send(attachments => ...), run with your rights and in your snapshot; the first row names the columns.
encoding: UTF8BOM | UTF8 | SJIS
UTF8BOM (default) is what Excel reads; for it and for SJIS a text that begins like a formula (= + - @) gets an apostrophe before it, UTF8 is for programs and changes nothing. SJIS is Windows-31J, as Excel in Japan writes it; Shift_JIS and CP932 are taken for it. Errors: 22023 not one query, no such encoding or a bad file name, 22P05 a character that SJIS lacks, with its row, 54000 over kliv_mail.max_message_size, and the query's own.
Example: SELECT kliv_mail.send('ana@example.com', 'Users', 'See the file.', attachments => ARRAY[kliv_mail.csv('SELECT * FROM users', filename => 'users.csv')]);$$;

CREATE FUNCTION kliv_mail.html_table(query text) RETURNS text
LANGUAGE c VOLATILE STRICT AS '$libdir/kliv_mail_net', 'kliv_mail_html_table';
COMMENT ON FUNCTION kliv_mail.html_table IS
$$The result of a query as an HTML table, escaped, for send(html => ...), run with your rights and in your snapshot. Errors: 22023 not one query, 54000 over kliv_mail.max_message_size, and the query's own.
Example: SELECT kliv_mail.send('ana@example.com', 'Users', html => kliv_mail.html_table('SELECT * FROM users'));$$;
