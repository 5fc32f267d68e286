# No tenant keeps a sender's slot for longer than the turn of one: neither by a
# lock, nor by a server that is silent, nor by as many databases as it likes.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Test::More;

my $good = KlivMail::SmtpServer->start;
my $silent = KlivMail::SmtpServer->start(silent => 1);
my $node = KlivMail::Cluster->new(
    'main',
    extension => 0,
    conf => {
        'kliv_mail.allowed_hosts' => '127.0.0.1',
        'kliv_mail.max_senders' => 1,
        'kliv_mail.sender_idle_timeout' => 100
    });
$node->sql('CREATE ROLE evil LOGIN CREATEDB; CREATE ROLE app LOGIN');

sub make_database
{
    my ($name, $owner, $server) = @_;
    $node->sql("CREATE DATABASE $name OWNER $owner");
    $node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => $name);
    $node->sql("SELECT kliv_mail.grant_admin('$owner')", dbname => $name);
    $node->sql(
        "SELECT FROM kliv_mail.configure_smtp(host => '127.0.0.1', port => " . $server->port
          . ", encryption => 'none', username => '', from_address => 'shop\@$name.example', test => false)",
        dbname => $name, role => $owner);
    return;
}

sub no_sender
{
    my ($of) = @_;
    $node->wait_until("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender' AND datname LIKE '$of%'");
    return;
}

my @evil = map { "evil$_" } 1 .. 5;
make_database($_, 'evil', $silent) for @evil;
make_database('victim', 'app', $good);

# ---- five databases of one owner on a server that says nothing, and another owner's ----

$node->sql(q{SELECT kliv_mail.send('a@example.com', 'x', 'x')}, dbname => $_) for @evil;
$node->wait_until(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender' AND datname LIKE 'evil%'});
my %turns;
sub note_turns
{
    $turns{$_} = 1 for split /\n/, $node->sql(q{SELECT datname FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender' AND datname LIKE 'evil%'});
    return;
}
$node->sql(q{SELECT kliv_mail.send('victim@example.com', 'x', 'x')}, dbname => 'victim');
ok($good->wait_for(sub { note_turns(); scalar $good->accepted('victim@example.com') }, 100), 'the victim delivers');
# (a turn without progress is 5 s and more, so that none is overlooked)
cmp_ok(scalar(keys %turns), '<=', 2, 'after the one that was there, and at most the one that was next: not after all five');

# ---- a transaction that never ends keeps results from being recorded ----

$silent->set(silent => 0);
$silent->release;
KlivMail::RawMessages::gone(qr{^a\@example\.com$}, "its database was dropped");
$node->sql("DROP DATABASE $_") for @evil[ 1 .. 4 ];
no_sender('');
my $slow = KlivMail::SmtpServer->start;
$node->sql("SELECT FROM kliv_mail.configure_smtp(host => '127.0.0.1', port => " . $slow->port . ", encryption => 'none', username => '', from_address => 'shop\@evil1.example', test => false)", dbname => 'evil1', role => 'evil');
$node->sql(q{SELECT kliv_mail.send('slow-dot-4000+1@example.com', 'x', 'x')}, dbname => 'evil1');
ok($slow->wait_for(sub { $slow->transcript =~ /RCPT TO:<slow-dot/ }), 'a mail of the tenant waits for its dot');
$node->sql(q{BEGIN; UPDATE kliv_mail._outbox SET attempts = attempts; PREPARE TRANSACTION 'forever'}, dbname => 'evil1');
$node->sql(q{SELECT kliv_mail.send('victim2@example.com', 'x', 'x')}, dbname => 'victim');
ok($good->wait_for(sub { scalar $good->accepted('victim2@example.com') }, 60), 'another tenant delivers while the rows are locked');
$node->sql(q{ROLLBACK PREPARED 'forever'}, dbname => 'evil1');

# ---- ... or holds the very database ----

no_sender('');
my $ahead = $node->seconds_ahead;
$node->sql("SELECT kliv_mail.send('later\@example.com', 'x', 'x', send_at => now() + interval '$ahead seconds')", dbname => 'evil1');
no_sender('');
$node->sql(q{BEGIN; ALTER DATABASE evil1 RENAME TO evil9; PREPARE TRANSACTION 'renamed'}, role => 'evil');
ok($node->wait_for('a sender has tried', sub { slurp_file($node->logfile) =~ /\[(\d+)\][^\n]*lock timeout\n.*background worker "kliv_mail sender" \(PID \g1\) exited/s }), 'a sender cannot connect');
$node->sql(q{SELECT kliv_mail.send('victim3@example.com', 'x', 'x')}, dbname => 'victim');
ok($good->wait_for(sub { scalar $good->accepted('victim3@example.com') }, 60), 'another tenant delivers while the database is locked');
$node->sql(q{ROLLBACK PREPARED 'renamed'});
$_->stop for $slow, $silent, $good;
$node->stop;

done_testing();
