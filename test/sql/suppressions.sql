-- Addresses, domains and topics that get no mail; topics, and the links by which
-- recipients leave them.  (Output of its own: nothing may depend on keys or times.)
SET client_min_messages = warning;
SET timezone = 'UTC';
SELECT kliv_mail.set_brand(unsubscribe_url => 'https://shop.example/u') ->> 'unsubscribe_url';
-- What became of each recipient of a mail.
CREATE FUNCTION became(id bigint) RETURNS TABLE (recipient text, status text, reason text, hint text) LANGUAGE sql AS
    'SELECT recipient, status, CASE status WHEN ''suppressed'' THEN reason END, CASE status WHEN ''suppressed'' THEN hint END
     FROM kliv_mail.deliveries WHERE message_id = $1 ORDER BY recipient';

\echo # topics of mail
\set VERBOSITY terse
SELECT kliv_mail.send('a@x.example', 's', 'b', topic => 'news');
SELECT kliv_mail.send('a@x.example', 's', 'b', message_type => 'system', topic => 'news');
SELECT t.topic, kliv_mail.send('a@x.example', 's', 'b', message_type => 'marketing', topic => t.topic) FROM (VALUES ('all')) AS t (topic);
SELECT kliv_mail.send('a@x.example', 's', 'b', message_type => 'marketing', topic => '');
SELECT kliv_mail.send('a@x.example', 's', 'b', message_type => 'marketing', topic => 'News');
SELECT kliv_mail.send('a@x.example', 's', 'b', message_type => 'marketing', topic => repeat('n', 64));
\set VERBOSITY default
SELECT kliv_mail.send('a@x.example', 's', 'b', message_type => 'marketing', topic => repeat('n', 63)) > 0;
SELECT kliv_mail.send('a@x.example', 's', 'b', message_type => 'marketing') AS plain \gset
SELECT kliv_mail.send('a@x.example', 's', 'b', message_type => 'marketing', topic => 'news_2-a', idempotency_key => 'topics') AS news \gset
SELECT kliv_mail.send('a@x.example', 's', 'b', message_type => 'marketing', topic => 'news_2-a', idempotency_key => 'topics') = :news;
\set VERBOSITY sqlstate
SELECT kliv_mail.send('a@x.example', 's', 'b', message_type => 'marketing', topic => 'other', idempotency_key => 'topics');
\set VERBOSITY default
SELECT id = :plain AS plain, topic FROM kliv_mail._message WHERE id IN (:plain, :news) ORDER BY id;

\echo # a link leaves its topic, for its address, and nothing else
SELECT kliv_mail.send('ana@x.example', 's', 'b', message_type => 'marketing', topic => 'news') AS queued \gset
SELECT kliv_mail.unsubscribe(substring(kliv_mail.unsubscribe_url('Ana@X.example', 'news') FROM 'token=(.*)'));
SELECT * FROM became(:queued);
SELECT kliv_mail.send('ANA@x.example, bob@x.example', 's', 'b', message_type => 'marketing', topic => 'news') AS id \gset
SELECT * FROM became(:id);
SELECT * FROM became(:id + 1);
SELECT b.status FROM became(kliv_mail.send('ana@x.example', 's', 'b', message_type => 'marketing', topic => 'offers')) AS b;
SELECT b.status FROM became(kliv_mail.send('ana@x.example', 's', 'b', message_type => 'marketing')) AS b;
SELECT b.status FROM became(kliv_mail.send('ana@x.example', 's', 'b')) AS b;
SELECT b.status FROM became(kliv_mail.send('ana@x.example', 's', 'b', message_type => 'system')) AS b;
-- once more changes nothing
SELECT kliv_mail.unsubscribe(substring(kliv_mail.unsubscribe_url('ana@x.example', 'news') FROM 'token=(.*)'));
SELECT count(*) FROM kliv_mail.events WHERE kind = 'suppressed_address' AND detail = 'ana@x.example';
SELECT address, scope, reason, created_by = current_user AS by_me, expires_at FROM kliv_mail.suppressions WHERE address = 'ana@x.example';

\echo # who leaves the topic marketing leaves all marketing mail
SELECT kliv_mail.unsubscribe(substring(kliv_mail.unsubscribe_url('bob@x.example') FROM 'token=(.*)'));
SELECT * FROM became(kliv_mail.send('bob@x.example', 's', 'b', message_type => 'marketing', topic => 'offers'));
SELECT b.status FROM became(kliv_mail.send('bob@x.example', 's', 'b')) AS b;
-- A link to all that was once made on demand leaves what can be left.
SELECT kliv_mail.unsubscribe(substring(kliv_mail._unsubscribe_link('https://shop.example/u', 'eva@x.example', 'all', false) FROM 'token=(.*)'));
SELECT scope FROM kliv_mail.suppressions WHERE address = 'eva@x.example';
SELECT kliv_mail.unsubscribe('x'), kliv_mail.unsubscribe('');
SELECT kliv_mail.unsubscribe_url('ana@x.example', 'news') = kliv_mail.unsubscribe_url('ANA@x.example', 'news') AS same,
       kliv_mail.unsubscribe_url('ana@x.example', 'news') = kliv_mail.unsubscribe_url('ana@x.example', 'offers') AS other;
\set VERBOSITY terse
SELECT kliv_mail.unsubscribe_url('ana@x.example', 'all');
SELECT kliv_mail.unsubscribe_url('ana@x.example', NULL);
\set VERBOSITY default

\echo # suppress() says what it did
SET client_min_messages = notice;
SELECT kliv_mail.send('carl@x.example', 's', 'b') AS one, kliv_mail.send('Carl@x.example', 's', 'b', message_type => 'marketing') AS two \gset
SELECT kliv_mail.suppress('carl@x.example', 'news');
SELECT kliv_mail.suppress('carl@x.example', 'markting') IS NOT NULL, kliv_mail.unsuppress('carl@x.example', 'markting');
SELECT kliv_mail.save_topic('news');
SELECT kliv_mail.suppress('carl@x.example', 'news'), kliv_mail.delete_topic('news');
SELECT kliv_mail.suppress('carl@x.example', reason => 'asked for it', expires_at => '2999-01-01 00:00+00');
SELECT kliv_mail.suppress('CARL@x.example');
SELECT kliv_mail.suppress('@Y.example', 'marketing');
SELECT kliv_mail.suppress(ARRAY['carl@x.example', 'dora@x.example', 'Dora@X.example', ' @z.example']);
SET client_min_messages = warning;
SELECT reason, hint FROM became(:one) UNION ALL SELECT reason, hint FROM became(:two);
SELECT * FROM became(kliv_mail.send('a@y.example, b@z.example, c@sub.z.example', 's', 'b'));
SELECT reason, hint FROM became(kliv_mail.send('a@y.example', 's', 'b', message_type => 'marketing', topic => 'offers'));
SELECT kliv_mail.unsuppress('@y.example', 'marketing'), kliv_mail.unsuppress('@y.example', 'marketing'), kliv_mail.unsuppress('carl@x.example', 'news');
COPY (SELECT address, scope, reason, expires_at FROM kliv_mail.suppressions ORDER BY 1, 2) TO STDOUT (FORMAT csv);

\echo # next_step() of an address that had no mail, and of a mail whose suppression has ended
SELECT code, problem, statement, cures, safe FROM kliv_mail.next_step('Dora <DORA@z.example>') ORDER BY problem;
SELECT code, problem, statement FROM kliv_mail.next_step('nobody@w.example');
SELECT kliv_mail.suppress('hank@x.example', reason => 'by phone') IS NOT NULL AS suppressed, kliv_mail.send('hank@x.example', 's', 'b') AS hank \gset
SELECT code, regexp_replace(problem, '[0-9]+', 'N') AS problem, statement FROM kliv_mail.next_step('hank@x.example');
SELECT kliv_mail.unsuppress('hank@x.example');
SELECT code, problem, cures FROM kliv_mail.next_step(:hank);
\echo # ... or has another one in its place: of whatever words its reason is, for another kind of mail or for the address instead of its domain
SELECT kliv_mail.suppress('ira@x.example', 'marketing') + kliv_mail.suppress('@u.example') AS suppressed,
    kliv_mail.send('ira@x.example', 's', 'b', message_type => 'marketing') AS ira, kliv_mail.send('una@u.example', 's', 'b') AS una \gset
SELECT kliv_mail.unsuppress('ira@x.example', 'marketing'), kliv_mail.suppress('ira@x.example', reason => 'asked; marketing: it');
SELECT code, problem, regexp_replace(statement, '[0-9]+', 'N') AS statement FROM kliv_mail.next_step(:ira);
SELECT code, regexp_replace(problem, '[0-9]+', 'N') AS problem, regexp_replace(statement, '[0-9]+', 'N') AS statement FROM kliv_mail.next_step('ira@x.example');
SELECT kliv_mail.suppress('una@u.example', 'marketing', 'x; all: y'), kliv_mail.unsuppress('@u.example');
SELECT code, problem, regexp_replace(statement, '[0-9]+', 'N') AS statement FROM kliv_mail.next_step(:una);
SELECT code, regexp_replace(problem, '[0-9]+', 'N') AS problem, regexp_replace(statement, '[0-9]+', 'N') AS statement FROM kliv_mail.next_step('una@u.example');

\echo # ... or has expired, and is suppressed now: retry() would not try it
SELECT kliv_mail.send('kim@x.example', 's', 'b') AS kim \gset
UPDATE kliv_mail._outbox SET expires_at = kliv_mail._now() WHERE message_id = :kim;
-- (a sender may be at it)
DO $$ BEGIN WHILE EXISTS (SELECT FROM kliv_mail._outbox WHERE recipient = 'kim@x.example') LOOP PERFORM kliv_mail._expire(kliv_mail._now()); COMMIT; END LOOP; END $$;
SELECT code, statement = format('SELECT kliv_mail.retry(%s);', :kim) AS retry, cures FROM kliv_mail.next_step(:kim);
SELECT kliv_mail.suppress('kim@x.example', reason => 'by phone');
SELECT code, problem, statement, cures FROM kliv_mail.next_step(:kim);
SELECT kliv_mail.retry(:kim);

\echo # ... or what is wrong
SELECT kliv_mail.suppress('@');
SELECT kliv_mail.suppress(ARRAY['a@x.example', 'nobody']);
\set VERBOSITY terse
SELECT kliv_mail.suppress(ARRAY['a@x.example', NULL]);
SELECT kliv_mail.suppress('a@x.example', 'Some');
SELECT kliv_mail.suppress('a@x.example', NULL);
SELECT kliv_mail.suppress('a@x.example', expires_at => '2000-01-01 00:00+00');
SELECT kliv_mail.unsuppress('a@x.example', 'no such');
\set VERBOSITY default
SELECT count(*) FROM kliv_mail.suppressions WHERE address = 'a@x.example';

\echo # what has expired stops nothing
SELECT kliv_mail.suppress('fred@x.example', expires_at => kliv_mail._now() + interval '1 hour');
SELECT b.status FROM became(kliv_mail.send('fred@x.example', 's', 'b')) AS b;
SET kliv_mail.test_in_session = on;
SET kliv_mail.test_clock_offset = '2 hours';
SELECT b.status FROM became(kliv_mail.send('fred@x.example', 's', 'b')) AS b;
SELECT count(*) FROM kliv_mail.suppressions WHERE address = 'fred@x.example';
RESET kliv_mail.test_clock_offset;

\echo # what a claim meets
INSERT INTO kliv_mail._suppression (address, scope, created_at, created_by)
    VALUES ('@late.example', 'all', now(), 'me'), ('later@x.example', 'news', now(), 'me');
SELECT r.recipient, r.priority, r.topic, s.reason IS NOT NULL AS stopped
FROM (VALUES ('a@late.example', 0, NULL), ('later@x.example', 2, 'news'), ('later@x.example', 2, 'offers'), ('later@x.example', 2, NULL),
             ('later@x.example', 1, NULL), ('"a b"@late.example', 1, NULL), ('a@sub.late.example', 1, NULL)) AS r (recipient, priority, topic),
     kliv_mail._suppressed(r.recipient, r.priority::smallint, r.topic, now()) AS s;

\echo # what is shown of topics
SELECT kliv_mail.save_topic('news', 'News', 'Once a month'), kliv_mail.save_topic('news', 'Neues', locale => 'de_AT');
SELECT kliv_mail.save_topic('news', description => ''), kliv_mail.save_topic('offers');
SELECT name, locale, title, description, saved_by = current_user AS by_me FROM kliv_mail.topics ORDER BY name, locale NULLS FIRST;
SELECT kliv_mail.delete_topic('news'), kliv_mail.delete_topic('news');
SELECT name FROM kliv_mail.topics;
\set VERBOSITY terse
SELECT kliv_mail.save_topic('all');
SELECT kliv_mail.save_topic('news', repeat('x', 201));
SELECT kliv_mail.save_topic('news', locale => 'nowhere at all');
SELECT kliv_mail.delete_topic(NULL);
\set VERBOSITY default
DROP FUNCTION became;
DELETE FROM kliv_mail._suppression;
SELECT kliv_mail.set_brand(unsubscribe_url => '') ->> 'unsubscribe_url' AS unsubscribe_url;
DELETE FROM kliv_mail._outbox;
