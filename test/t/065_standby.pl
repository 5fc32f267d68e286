# Primary and standby (C5): nothing runs on a standby; one that is promoted in
# the middle of a drain sends what it has, and what it had not heard of at most
# twice; a key that was not brought along is warned of before.
use strict;
use warnings;
use File::Copy ();
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes 'time';

my $CONNECTIONS = 4;
my @kept;       # all clusters, to ask at the end what each mail was
my $smtp = KlivMail::SmtpServer->start;
my $tls = KlivMail::Tls->new(PostgreSQL::Test::Utils::tempdir() . '/tls');
my ($certificate, $certificate_key) = $tls->certificate('good');
my $own = KlivMail::SmtpServer->start(tls => 1, cert => $certificate, key => $certificate_key, auth => ['app:correct-horse']);
my %settings = (
    'kliv_mail.platform_hourly_limit' => 10000,
    'kliv_mail.platform_daily_limit' => 10000,
    'kliv_mail.connections_per_account' => $CONNECTIONS,
    'kliv_mail.allowed_hosts' => '127.0.0.1, localhost',
    'kliv_mail.ca_file' => $tls->ca_file,

    # In the data directory, where a base backup takes it along if it is there.
    'kliv_mail.key_file' => 'kliv_mail.key');

sub primary
{
    my ($name, %conf) = @_;
    my $node = KlivMail::Cluster->new(
        $name, streaming => 1, platform_url => 'smtp://127.0.0.1:' . $smtp->port, conf => { %settings, %conf });
    push @kept, $node;
    return $node;
}

sub standby_of
{
    my ($node, $name, %conf) = @_;
    my $standby = bless PostgreSQL::Test::Cluster->new($name), 'KlivMail::Cluster';
    $standby->init_from_backup($node, 'base', has_streaming => 1);
    $standby->configure(%conf) if %conf;
    $standby->start;
    KlivMail::RawMessages::node($standby);
    push @kept, $standby;
    return $standby;
}

# Queue so many mails; wait until the server has had a part of them.
sub drain
{
    my ($node, $name, $count, $part) = @_;
    $node->sql("SELECT kliv_mail.send(format('$name%s\@example.com', i), 'x', 'x') FROM generate_series(1, $count) AS i");
    $smtp->wait_for(sub { received($name) >= $part }, 120) or die "$name: no drain";
    return;
}

# What the server has, for names that begin so: how many, and copies of each.
sub received { my ($name) = @_; return scalar grep { $_->{rcpt}[0] =~ /^$name\d/ } $smtp->accepted; }
sub copies
{
    my ($name) = @_;
    my %copies;
    $copies{ $_->{rcpt}[0] }++ for grep { $_->{rcpt}[0] =~ /^$name\d/ } $smtp->accepted;
    return \%copies;
}

# Kill the primary, promote the standby; how long until a sender runs there.
# In between, when the standby has applied all that it has: { sent, waiting },
# as it knows, and what the server has received.
sub fail_over
{
    my ($node, $standby) = @_;
    $node->stop('immediate');
    # The mails that were on their way: their connections end with the sender.
    $smtp->wait_for(sub { $smtp->state->{open} == 0 }) or die 'connections stay open';
    $standby->wait_until('SELECT pg_last_wal_receive_lsn() IS NOT DISTINCT FROM pg_last_wal_replay_lsn() OR pg_last_wal_replay_lsn() > pg_last_wal_receive_lsn()');
    my %has = map { $_ => [ split /\n/, $standby->sql("SELECT recipient FROM kliv_mail.deliveries WHERE account = 'platform' AND status " . ($_ eq 'sent' ? '=' : '<>') . " 'sent'") ] }
      qw(sent waiting);
    $has{received} = { map { $_->{rcpt}[0] => 1 } $smtp->accepted };
    my $start = time;
    $standby->promote;
    $standby->wait_until(q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender'});
    $has{seconds} = time - $start;
    return \%has;
}

# ---- nothing runs on a standby ----

my $node = primary('main');
$node->sql(q{SELECT kliv_mail.send('first@example.com', 'x', 'x')});
$node->wait_settled(1);
$node->backup('base');
my $standby = standby_of($node, 'standby');
$node->wait_for_catchup($standby);
is($standby->sql('SELECT worker FROM kliv_mail.status'), 'launcher not running', 'status answers on a standby');
is($standby->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'kliv_mail%' AND backend_type <> 'kliv_mail key check'}), 0, '... where nothing of ours sends');
is($standby->try(q{SELECT kliv_mail.send('no@example.com', 'x', 'x')})->{state}, '25006', '... nor can anything be queued');

# ---- a key that is made after the base backup: the standby warns of it ----

$node->sql("SELECT FROM kliv_mail.configure_smtp(account => 'own', host => 'localhost', port => " . $own->port
      . ", encryption => 'tls', username => 'app', password => 'correct-horse', from_address => 'shop\@shop.example')");
$node->sql(q{SELECT kliv_mail.pause('own'); SELECT kliv_mail.send('key@example.com', 'x', 'x', account => 'own')});
my $key = $node->sql('SELECT key_fingerprint FROM kliv_mail.status');
$node->wait_for_catchup($standby);
sub warnings_of_key { my @found = slurp_file($standby->logfile) =~ /WARNING:  key "$key" of database "postgres" is not in kliv_mail's key file/g; return scalar @found; }
$standby->reload if !warnings_of_key();
ok($standby->wait_for('the standby warns', \&warnings_of_key), 'before any promotion the standby warns of the key that it lacks');
ok(!-e $standby->data_dir . '/kliv_mail.key', '... and makes none');

# ---- an asynchronous standby that lost touch in the middle of a drain ----

$smtp->set(delay_dot => 20);
drain($node, 'async', 400, 60);
$standby->configure(primary_conninfo => '');
$standby->reload;
$standby->wait_until(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'walreceiver'});
my $then = received('async');
$smtp->wait_for(sub { received('async') >= $then + 60 }, 120) or die 'no drain';
my $has = fail_over($node, $standby);
cmp_ok($has->{seconds}, '<', 15, sprintf('the sender runs on the promoted server (%.1f s)', $has->{seconds}));
cmp_ok(scalar(@{ $has->{waiting} }), '>', 0, 'in mid-drain: ' . @{ $has->{waiting} } . ' wait, ' . @{ $has->{sent} } . ' are sent, as the standby knows');
$standby->wait_until(q{SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE status <> 'sent' AND account = 'platform'});
my $copies = copies('async');
is(scalar(grep { !$copies->{$_} } grep { /^async/ } @{ $has->{waiting} }, @{ $has->{sent} }), 0, 'nothing that was committed there is lost');
is(scalar(grep { /^async/ && $copies->{$_} != 1 } @{ $has->{sent} }), 0, 'what it knew to be sent is not sent again');
my %second = map { $_ => 1 } grep { $copies->{$_} > 1 } keys %$copies;
my @unheard = grep { $has->{received}{$_} } @{ $has->{waiting} };
cmp_ok(scalar(@unheard), '>=', 50, 'the server had ' . @unheard . ' of which the standby did not know');
is_deeply([ sort keys %second ], [ sort @unheard ], '... these and no others have a second copy');
is(scalar(grep { $_ > 2 } values %$copies), 0, '... and none a third');

# ---- the key there ----

$standby->sql(q{SELECT kliv_mail.resume('own')});
$standby->wait_until(q{SELECT held_by = 'key' FROM kliv_mail.deliveries WHERE recipient = 'key@example.com'});
is($own->count, 0, 'without the key its mail waits');
ok(!-e $standby->data_dir . '/kliv_mail.key', '... and no other key was made');
File::Copy::copy($node->data_dir . '/kliv_mail.key', $standby->data_dir . '/kliv_mail.key') or die "copy: $!";
chmod 0600, $standby->data_dir . '/kliv_mail.key';
$standby->clock_offset('10 minutes');    # the hold of the account ends
$standby->wait_until(q{SELECT status = 'sent' FROM kliv_mail.deliveries WHERE recipient = 'key@example.com'});
is(scalar($own->accepted('key@example.com')), 1, 'with it the mail leaves');
is($standby->sql('SELECT key_state, key_fingerprint FROM kliv_mail.status'), "ok|$key", '... and the key is the one that was made first');
$standby->stop;

# ---- a synchronous one ----

$node = primary('strict');
$node->backup('base');
$standby = standby_of($node, 'mirror');
$node->wait_for_catchup($standby);
$node->reconfigure(synchronous_standby_names => '*');
$node->wait_until(q{SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'});
drain($node, 'sync', 400, 100);
$has = fail_over($node, $standby);
cmp_ok($has->{seconds}, '<', 15, sprintf('the sender runs on the promoted server (%.1f s)', $has->{seconds}));
$standby->reconfigure(synchronous_standby_names => '');
$standby->wait_until(q{SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE status <> 'sent' AND account = 'platform'});
$copies = copies('sync');
is(scalar(keys %$copies), 400, 'with a synchronous standby every mail arrives');
my $seconds = grep { $_ > 1 } values %$copies;
cmp_ok($seconds, '<=', 2 * $CONNECTIONS, "... at most twice the connections a second time ($seconds)");
is(scalar(grep { $_ > 2 } values %$copies), 0, '... and none a third');

# A standby that does not answer holds commits up, and no shutdown.
$standby->reconfigure(synchronous_standby_names => 'nobody');
$standby->sql(q{SET synchronous_commit = local; SELECT kliv_mail.send('alone@example.com', 'x', 'x')});
$standby->wait_until(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender' AND wait_event = 'SyncRep'});
my $start = time;
$standby->stop('fast', timeout => 60);
cmp_ok(time - $start, '<', 30, sprintf('a sender that waits for a standby does not keep the server from stopping (%.1f s)', time - $start));

$smtp->stop;
done_testing();
