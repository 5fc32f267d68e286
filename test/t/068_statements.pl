# What is done to a database with mail, and may neither lose nor double any: a
# DROP that a subtransaction undoes, a schema that is reset, a restore in place,
# copies of a database never used, connections that were not allowed for a while.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    extension    => 0,
    conf         => {
        'kliv_mail.platform_hourly_limit' => 1000,
        'kliv_mail.platform_daily_limit'  => 1000,
        'kliv_mail.sender_idle_timeout'   => 100
    });

sub make_database
{
    my ($name) = @_;
    $node->sql("CREATE DATABASE $name");
    $node->sql('CREATE SCHEMA crypto; CREATE EXTENSION pgcrypto SCHEMA crypto; CREATE EXTENSION kliv_mail', dbname => $name);
    return;
}

sub arrives
{
    my ($recipient, $name) = @_;
    ok($smtp->wait_for(sub { scalar($smtp->accepted($recipient)) }, 60), $name);
    return;
}

sub no_sender
{
    my ($name) = @_;
    $node->wait_until("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender' AND datname = '$name'");
    return;
}

# ---- a DROP that did not happen: what was queued is not forgotten ----

make_database('undone');
my @in = (dbname => 'undone');
my %undo = (
    savepoint => 'BEGIN; SAVEPOINT s; DROP EXTENSION kliv_mail; ROLLBACK TO s; COMMIT',
    exception => q{DO $$ BEGIN DROP EXTENSION kliv_mail; RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END; $$},
    owned => q{BEGIN; SAVEPOINT s; DROP SCHEMA crypto CASCADE; ROLLBACK TO s; COMMIT});
for my $how (sort keys %undo)
{
    $node->sql("SELECT kliv_mail.send('$how\@undone.example', 'x', 'x', send_at => now() + interval '4 seconds')", @in);
    no_sender('undone');
    $node->sql($undo{$how}, @in);
    arrives("$how\@undone.example", "$how: the mail goes at its time");
}

# ---- the launcher has no query that could be cancelled ----

my ($launcher) = $node->workers('kliv_mail launcher');
is($node->sql("SELECT pg_cancel_backend($launcher)"), 't', 'the launcher gets a cancel');
$node->sql(q{SELECT kliv_mail.send('cancelled@undone.example', 'x', 'x')}, @in);
arrives('cancelled@undone.example', '... and starts a sender');
is_deeply([ $node->workers('kliv_mail launcher') ], [$launcher], '... the same launcher');
unlike(slurp_file($node->logfile), qr/launcher.*(?:ERROR|exited)|ERROR:  canceling statement/, '... without a word');

# ---- the usual "reset my schema" ----

make_database('reset');
@in = (dbname => 'reset');
$node->sql(q{SELECT kliv_mail.send('kept@reset.example', 'x', 'x', send_at => now() + interval '4 seconds')}, @in);
is($node->try('DROP SCHEMA public CASCADE; CREATE SCHEMA public', @in)->{err}, '', 'DROP SCHEMA public CASCADE takes nothing of ours along');
is($node->sql('SELECT count(*) FROM kliv_mail.deliveries', @in), 1, '... the queue is there');
arrives('kept@reset.example', '... and goes');

$node->stop;
done_testing();
