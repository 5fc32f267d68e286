# Several senders on one database: where mail waits for a connection another
# sender comes, they share the account's connections, nothing is sent twice or
# beyond the quota, and what one of them leaves behind the other takes up.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $connections = 4;
my $smtp = KlivMail::SmtpServer->start(delay_dot => 50, no_transcript => 1);
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    conf         => {
        'kliv_mail.connections_per_account' => $connections,
        'kliv_mail.platform_hourly_limit'   => 1000,
        'kliv_mail.platform_daily_limit'    => 1000,
        'kliv_mail.sender_idle_timeout'     => 0
    });
$node->clock_to_noon;

# Sessions that are there before connections are forbidden.
my $here = $node->session;
my $elsewhere = $node->session(dbname => 'template1');

sub queue
{
    my ($name, $count) = @_;
    return $here->query("SELECT count(kliv_mail.send('$name' || i || '\@customer.example', 'x', 'x')) FROM generate_series(1, $count) AS i");
}

sub wait_here
{
    my ($query) = @_;
    return $node->wait_for($query, sub { $here->query($query) eq 't' });
}
my $senders = q{(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender' AND datname = 'postgres')};

# ---- one, while the setting says so ----

queue('one', 200);
$smtp->wait_for_count(150);
is($here->query("SELECT $senders"), 1, 'one sender, which is the default');

# ---- a second one dies before it has begun: the first looks for what it had ----

my $orphan = $here->query(q{SELECT kliv_mail.send('orphan@customer.example', 'x', 'x', send_at => kliv_mail._now() + interval '1 hour')});
$here->query("UPDATE kliv_mail._outbox SET epoch = 999999 WHERE message_id = $orphan");
$here->query("SELECT kliv_mail._stamp(999999, 1, '{}', ARRAY(SELECT id FROM kliv_mail._outbox WHERE message_id = $orphan), '{}')");
queue('more', 200);
$elsewhere->query('ALTER DATABASE postgres ALLOW_CONNECTIONS false');
$node->configure('kliv_mail.senders_per_database' => 2);
$node->reload;
wait_here("SELECT EXISTS (SELECT FROM kliv_mail._delivery WHERE message_id = $orphan)");
is($here->query("SELECT status, doubts FROM kliv_mail._delivery WHERE message_id = $orphan"), 'sent|1', 'an orphaned claim is found while a sender runs');
$elsewhere->query('ALTER DATABASE postgres ALLOW_CONNECTIONS true');

# ---- two share the connections ----

queue('two', 400);
wait_here("SELECT $senders = 2");
my $from = $smtp->count;
$smtp->wait_for_count($from + 50);
pass('a second sender comes');

# ---- a change reaches both, a bar waits for both ----

like($here->query(q{SELECT kliv_mail.pause()}), qr/^\d+$/, 'pause()');
wait_here(q{SELECT NOT EXISTS (SELECT FROM kliv_mail._outbox WHERE epoch IS NOT NULL)});
my $paused = $smtp->count;
like($here->query(q{SELECT kliv_mail.resume()}), qr/^\d+$/, 'resume()');
$smtp->wait_for_count($paused + 50);
$here->quit;
$elsewhere->query('ALTER DATABASE postgres RENAME TO renamed');
pass('a statement that wants the database alone gets it');
$elsewhere->query('ALTER DATABASE renamed RENAME TO postgres');

$node->wait_until(q{SELECT count(*) FILTER (WHERE status <> 'sent') = 0 FROM kliv_mail.deliveries});
my %copies;
$copies{ $_->{rcpt}[0] }++ for $smtp->accepted;
is(scalar(keys %copies), 801, 'every mail arrived');
is(join(' ', grep { $copies{$_} > 1 } sort keys %copies), '', '... once');
is($node->sql(q{SELECT used FROM kliv_mail.usage WHERE window_name = 'day' AND account = 'platform'}), 801, 'the quota counted each');

# The connections that were open at the same time, as the server saw them.
my ($open, $most) = (0, 0);
for my $event (sort { $a->{mono} <=> $b->{mono} } grep { $_->{event} =~ /^(connect|end)$/ } $smtp->ledger)
{
    $open += $event->{event} eq 'connect' ? 1 : -1;
    $most = $open if $open > $most;
}
cmp_ok($most, '<=', $connections + 3, "no more connections than one sender had, but for those that are about to close ($most)");

# ---- the quota holds for both together ----

$node->sql(q{SELECT count(kliv_mail.send('over' || i || '@customer.example', 'x', 'x')) FROM generate_series(1, 300) AS i});
$node->wait_until(q{SELECT count(*) FILTER (WHERE held_by = 'quota') = count(*) FROM kliv_mail.deliveries WHERE status <> 'sent'});
is($node->sql(q{SELECT used FROM kliv_mail.usage WHERE window_name = 'day' AND account = 'platform'}), 1000, 'the quota is used up and no further');
is($smtp->count, 1000, '... which is what the server has');
$node->wait_until("SELECT $senders = 0");
pass('both leave when nothing can leave any more');

# ---- one is asked to end and cannot record: the other takes up its claims ----

$smtp->set(dot_reply => 'hold');
$node->reconfigure('kliv_mail.platform_hourly_limit' => 2000, 'kliv_mail.platform_daily_limit' => 2000,
                   'kliv_mail.sender_idle_timeout' => '10min');
my $idle = 'SELECT NOT EXISTS (SELECT FROM kliv_mail._outbox)';
$node->wait_until("SELECT $senders = 2");
$smtp->set(dot_reply => '');
$smtp->resume;
$node->wait_until($idle);
# Too little mail for a second sender to come again.
$smtp->set(dot_reply => 'hold');
$from = $smtp->count;
my $left = $node->sql(q{SELECT kliv_mail.send('left@customer.example', 'x', 'x')});
$smtp->wait_for_count($from + 1);
my $leaver = $node->sql(q{SELECT pid FROM pg_locks WHERE classid = 'kliv_mail._epoch'::regclass
                          AND objid = (SELECT epoch FROM kliv_mail._outbox)});
my $locker = $node->session;
$locker->query('BEGIN');
$locker->query('LOCK TABLE kliv_mail._delivery IN SHARE MODE');
kill 'TERM', $leaver or die "no sender $leaver";
$smtp->set(dot_reply => '');
$smtp->resume;
$node->wait_until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $leaver)");
$locker->query('COMMIT');
$node->wait_until($idle);
is($node->sql("SELECT status, doubts FROM kliv_mail._delivery WHERE message_id = $left"), 'sent|1',
   'what a sender could not record before it ended is in doubt for the other one');

$node->stop;
done_testing();
