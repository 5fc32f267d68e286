# More databases than senders, and no worker slot for a sender (C4).  The times
# after which a sender gives its slot up are real time: 5 s without progress.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes 'time';

my $good = KlivMail::SmtpServer->start;
my $silent = KlivMail::SmtpServer->start(silent => 1);
my $node = KlivMail::Cluster->new(
    'main',
    extension => 0,
    conf => { 'kliv_mail.allowed_hosts' => '127.0.0.1', 'kliv_mail.max_senders' => 4, max_worker_processes => 8 });

my @hanging = map { "hanging$_" } 1 .. 5;
$node->sql('CREATE DATABASE app');
$node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => 'app');
$node->sql("CREATE DATABASE $_ TEMPLATE app") for @hanging, 'sixth';
$node->sql('SELECT kliv_mail.resume()', dbname => $_) for @hanging, 'sixth';

sub configure
{
    my ($name, $server) = @_;
    $node->sql(
        "SELECT FROM kliv_mail.configure_smtp(host => '127.0.0.1', port => " . $server->port
          . ", encryption => 'none', username => '', from_address => 'shop\@$name.example', test => false)",
        dbname => $name);
    return;
}
configure($_, $silent) for @hanging;
configure('sixth', $good);

# ---- five databases on a silent server, four senders, and a sixth ----

$node->sql(q{SELECT kliv_mail.send(format('a%s@example.com', i), 'x', 'x') FROM generate_series(1, 10) AS i}, dbname => $_) for @hanging;
$node->wait_until(q{SELECT count(DISTINCT datname) = 4 FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender'});
my $start = time;
$node->sql(q{SELECT kliv_mail.send('sixth@example.com', 'x', 'x')}, dbname => 'sixth');
ok($good->wait_for(sub { scalar $good->accepted('sixth@example.com') }, 120), 'a sixth database delivers');
cmp_ok(time - $start, '<', 40, sprintf('... within 40 s (%.1f s)', time - $start));
$node->wait_until(q{SELECT count(*) = 1 FROM kliv_mail.deliveries WHERE status = 'sent'}, dbname => 'sixth');

# All had their turns, and none of them lost anything by having to go.
$silent->set(silent => 0);
$silent->release;
for my $name (@hanging)
{
    # What was met meanwhile may hold the account: that is another thing.
    $node->sql('SELECT FROM kliv_mail.test_smtp()', dbname => $name);
    $node->wait_until(q{SELECT count(*) = 10 AND max(attempts) = 1 FROM kliv_mail.deliveries WHERE status = 'sent'}, dbname => $name);
    pass("$name delivers once its server speaks");
}
is($silent->count, 50, 'each mail once');
$node->sql("DROP DATABASE $_") for @hanging;
KlivMail::RawMessages::gone(qr/^a\d+\@example\.com$/, 'its database was dropped');

# ---- no worker slot ----

# All but those that the server's own workers have go to parallel queries.
my $setting = $node->sql('SHOW server_version_num') >= 160000 ? 'debug_parallel_query' : 'force_parallel_mode';
$node->sql(q{ALTER SYSTEM SET kliv_mail.sender_idle_timeout = '1s'});
$node->reconfigure(max_parallel_workers => 8, max_parallel_workers_per_gather => 8);
$node->wait_until(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender'});
my @busy = map { $node->session } 1 .. 8;
$_->send("SET $setting = on;\nSELECT pg_sleep(1000)") for @busy;
sub parallel_workers { return $node->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel worker'}); }
$node->wait_for('the sessions sleep',
    sub { $node->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND query LIKE 'SELECT pg_sleep(1000)%' AND state = 'active'}) == 8 });
cmp_ok(parallel_workers(), '>=', 5, 'parallel queries have the worker slots');

$node->sql('SELECT FROM kliv_mail.test_smtp()', dbname => 'sixth');
my $id = $node->sql(q{SELECT kliv_mail.send('slot@example.com', 'x', 'x')}, dbname => 'sixth');
$node->wait_until(q{SELECT worker = 'no worker slot free' FROM kliv_mail.status}, dbname => 'sixth');
pass('status says that no worker slot is free');
like($node->sql('SELECT hint FROM kliv_mail.status', dbname => 'sixth'), qr/max_worker_processes/, '... and what to do');
is($node->sql("SELECT status, reason FROM kliv_mail.deliveries WHERE message_id = $id", dbname => 'sixth'),
    'queued|no worker slot is free for a sender', 'the delivery says so too');
like($node->sql("SELECT problem FROM kliv_mail.next_step()", dbname => 'sixth'), qr/no worker slot is free/, '... and next_step()');
is(scalar($good->accepted('slot@example.com')), 0, 'the mail waits');
# Whoever queues more meanwhile is none the worse for it.
$node->sql(q{SELECT kliv_mail.send('slot2@example.com', 'x', 'x')}, dbname => 'sixth');
$start = time;
$node->sql(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(1000)%' AND backend_type = 'client backend'});
$node->wait_until(q{SELECT count(*) = 2 FROM kliv_mail.deliveries WHERE status = 'sent' AND recipient LIKE 'slot%'}, dbname => 'sixth');
cmp_ok(time - $start, '<', 60, sprintf('once a slot is free it leaves by itself (%.1f s)', time - $start));
is($node->sql('SELECT worker IN (\'sending\', \'idle\') FROM kliv_mail.status', dbname => 'sixth'), 't', 'and status is well again');
# (also where senders that ended late have brought a shortage before, which is the same one)
my @reports = slurp_file($node->logfile) =~ /no worker slot is free for a kliv_mail sender/g;
is(scalar(@reports), 1, 'the log had it once');
$_->quit for @busy;
$node->stop;

done_testing();
