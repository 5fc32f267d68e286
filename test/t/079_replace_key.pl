# replace_key costs a caller no lock for each key, of which a server has few, and lets
# nobody wait: neither for another caller nor for a stranger who holds locks.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    conf         => {
        max_connections                   => 20,
        max_locks_per_transaction         => 20,    # CREATE EXTENSION takes some 500, each key none
        'kliv_mail.platform_hourly_limit' => 10000,
        'kliv_mail.platform_daily_limit'  => 10000
    });
$node->sql('CREATE ROLE app LOGIN; CREATE ROLE stranger LOGIN');
$node->sql(q{SELECT kliv_mail.grant_send('app')});
$node->sql('SELECT kliv_mail.pause()');

my $digests = q{SELECT count(kliv_mail.send('u' || i || '@x.example', '%s ' || i, 'x', replace_key => 'digest:' || i)) FROM (SELECT i FROM generate_series(1, 1200) AS i ORDER BY %si) AS x};

my $result = $node->try('SET client_min_messages = error; ' . sprintf($digests, 'first', ''), role => 'app');
is("$result->{state} $result->{out}", ' 1200', 'a key for each of 1200 users in one transaction');

# Two at a time, in each other's order.
my ($one, $two) = map { $node->session(role => 'app') } 1 .. 2;
$_->sql('SET client_min_messages = error') for $one, $two;
$_->sql('BEGIN') for $one, $two;
is($one->query(sprintf($digests, 'one', '')), '1200', 'again, by a session that stays in its transaction');
is($two->query(sprintf($digests, 'two', '-')), '1200', 'and by another one meanwhile, which waits for nobody');
is($one->query(q{SELECT kliv_mail.send('u1@x.example', 'one more', 'x', replace_key => 'digest:1') > 0}), 't', 'nor does the first for it');
is($two->query('COMMIT'), '', 'the later ones are there first');
is($one->query('COMMIT'), '', 'and the others then');

# A stranger without a grant.
my $stranger = $node->session(role => 'stranger');
is($stranger->query(q{SELECT count(pg_advisory_lock((SELECT oid::integer FROM pg_class WHERE relname = '_replacement'), k)) FROM
    (SELECT hashtext('app code') AS k UNION SELECT generate_series(0, 63)) AS x}), '65', 'a stranger has all advisory locks that could be meant');
$result = $node->try(q{SET statement_timeout = '10s'; SELECT kliv_mail.send('u1@x.example', 'code', 'x', replace_key => 'code') > 0}, role => 'app');
is("$result->{state} $result->{out}", ' t', '... and nobody waits for them');

$node->sql('SELECT kliv_mail.resume()');
ok($smtp->wait_for_count(1201, 600), 'the newest leave');
$node->wait_until('SELECT count(*) = 0 FROM kliv_mail._outbox');
my %subject = map { $smtp->message($_) =~ /^Subject: (\w+)/m; ($1 => 1) } $smtp->accepted;
is(join(' ', sort keys %subject), 'code one two', 'and nothing else');
is($node->sql(q{SELECT string_agg(subject, ', ') FROM kliv_mail.deliveries WHERE recipient = 'u1@x.example' AND status = 'sent' AND subject <> 'code'}), 'one more', 'the last one of its key alone');
is($node->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE status = 'sent' AND subject LIKE 'one %'}), '1', 'of two, the one that was queued later');
is($node->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE status NOT IN ('sent', 'cancelled')}), '0', 'the earlier ones are cancelled');
is($node->sql('SELECT count(*) FROM kliv_mail._replacement'), '0', 'nothing is left to be replaced');

# Who commits while a sender is at its claim, behind its look at what was replaced.
$node->sql('ALTER DATABASE postgres SET kliv_mail.delivery = hold');
$_->sql('BEGIN') for $one, $two;
$one->query(q{SELECT kliv_mail.send('late@x.example', 'earlier', 'x', replace_key => 'late')});
$two->query(q{SELECT kliv_mail.send('late@x.example', 'later', 'x', replace_key => 'late')});
$_->query('COMMIT') for $two, $one;
is($node->sql(q{SET kliv_mail.test_in_session = on; SET kliv_mail.delivery = on; BEGIN; SELECT kliv_mail._epoch_lock(77);
    SELECT string_agg(m.subject, ', ') FROM kliv_mail._claim_account(77, 'platform', 10, 1000000, true) AS c JOIN kliv_mail._message AS m ON m.id = c.message_id;
    ROLLBACK}) =~ s/^.*\n//sr, 'later', 'a claim takes no mail whose successor it can see');

# So many that no claim looks at all of them, while somebody else keeps all buckets.
$node->sql('DELETE FROM kliv_mail._outbox; DELETE FROM kliv_mail._replacement');
my $three = $node->session(role => 'app');
$_->sql('SET client_min_messages = error; BEGIN') for $one, $two, $three;
is($one->query(sprintf($digests, 'earlier', '')), '1200', 'what is queued first');
is($two->query(sprintf($digests, 'later', '-')), '1200', '... and is replaced before it is there');
is($three->query(q{SELECT count(kliv_mail.send('u@x.example', 'x', 'x', replace_key => 'other:' || i)) FROM generate_series(1, 1200) AS i}), '1200', '... beside a third');
$_->query('COMMIT') for $two, $one;
is($node->sql(q{SET kliv_mail.test_in_session = on; SET kliv_mail.delivery = on; BEGIN; SELECT kliv_mail._epoch_lock(77);
    SELECT string_agg(x.claimed, ', ' ORDER BY n) FROM (
        SELECT n, count(*) || ' ' || string_agg(DISTINCT split_part(m.subject, ' ', 1), ' ') AS claimed
        FROM generate_series(1, 3) AS n, kliv_mail._claim(77, 100, 10000000) AS c JOIN kliv_mail._message AS m ON m.id = c.message_id GROUP BY n) AS x;
    ROLLBACK}) =~ s/^.*\n//sr, '100 later, 100 later, 100 later', 'three claims take none that has been replaced');
$three->query('ROLLBACK');

# What a sender has in hand while its successor is queued may come back, and does not leave then.
$node->sql('DELETE FROM kliv_mail._outbox; DELETE FROM kliv_mail._replacement');
$node->sql(q{SELECT kliv_mail.send('hand@x.example', 'earlier', 'x', replace_key => 'hand')}, role => 'app');
my $hand = $node->session;
$hand->query($_) for 'SET kliv_mail.test_in_session = on', 'SET kliv_mail.delivery = on', 'SELECT kliv_mail._epoch_lock(77)';
is($hand->query('SELECT count(*) FROM kliv_mail._claim(77, 10, 1000000)'), 1, 'a sender has a mail in hand');
$node->sql(q{SELECT kliv_mail.send('hand@x.example', 'later', 'x', replace_key => 'hand')}, role => 'app');
$hand->query('SELECT kliv_mail._replace_rest(kliv_mail._now())');
$hand->query('UPDATE kliv_mail._outbox SET epoch = NULL, attempts = 0 WHERE epoch = 77');
is($hand->query(q{SELECT string_agg(m.subject, ', ') FROM kliv_mail._claim(77, 10, 1000000) AS c JOIN kliv_mail._message AS m ON m.id = c.message_id}),
    'later', '... which came back, and does not leave behind the one that replaces it');
$hand->quit;
done_testing();
