# What is done to a database with mail, and may neither lose nor double any: a
# DROP that a subtransaction undoes, a schema that is reset, a restore in place,
# copies of a database never used, connections that were not allowed for a while.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes 'time';

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    extension    => 0,
    conf         => {
        'kliv_mail.platform_hourly_limit' => 1000,
        'kliv_mail.platform_daily_limit'  => 1000,
        'kliv_mail.sender_idle_timeout'   => 100,
        'kliv_mail.allowed_hosts'         => '127.0.0.1'
    });

sub make_database
{
    my ($name) = @_;
    $node->sql("CREATE DATABASE $name");
    $node->sql('CREATE EXTENSION kliv_mail', dbname => $name);
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
    cascade => q{BEGIN; SAVEPOINT s; DROP EXTENSION plpgsql CASCADE; ROLLBACK TO s; COMMIT});
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

# ---- nor has a sender; and the owner of the extension may leave while it waits for a reply ----

$node->sql('CREATE ROLE boss SUPERUSER; CREATE DATABASE owned');
@in = (dbname => 'owned');
$node->sql('CREATE EXTENSION kliv_mail', @in, role => 'boss');
$smtp->set(dot_reply => 'hold');
my $held = $node->sql(q{SELECT kliv_mail.send('held@owned.example', 'x', 'x')}, @in);
arrives('held@owned.example', 'a mail whose dot is not answered yet');
my ($sender) = $node->workers('kliv_mail sender', 'owned');
$node->sql("SELECT pg_cancel_backend($sender) FROM generate_series(1, 3)");
$node->sql('REASSIGN OWNED BY boss TO postgres; DROP OWNED BY boss; DROP ROLE boss', @in);
my $next = $node->sql(q{SELECT kliv_mail.send('next@owned.example', 'x', 'x')}, @in);
arrives('next@owned.example', 'cancelled and without its owner, the sender goes on');
$smtp->set(dot_reply => '');
$smtp->resume;
is($node->sql("SELECT kliv_mail.wait($_, '60 s')", @in), 'sent', '... and records what it sent') for $held, $next;
is($node->sql('SELECT string_agg(attempts::text, $$ $$), (SELECT last_value FROM kliv_mail._epoch) FROM kliv_mail.deliveries', @in), '1 1|1', '... once, and it was the same all the while');
is(scalar($smtp->accepted("$_\@owned.example")), 1, "... one copy of $_") for qw(held next);
unlike(slurp_file($node->logfile), qr/(?:ERROR|FATAL):|exited with/, '... without an error');

# ---- NOTIFY tells what became of a mail, whatever its last reply was ----

$node->reconfigure('kliv_mail.notify' => 'on');
$node->sql('CREATE ROLE listener', @in);
my $listener = $node->session(@in, role => 'listener');
$listener->query('LISTEN kliv_mail');
my %told = map { $_->[0] => $node->sql("SELECT kliv_mail.send('$_->[0]\@owned.example', 'x', 'x')", @in) } [ 'good' ], [ 'rcpt-550-5.1.1' ], [ 'rcpt-451-4.3.0' ];
$node->wait_until(q{SELECT count(*) = 1 FROM kliv_mail._outbox WHERE held_by IS NULL AND attempts = 1 AND epoch IS NULL}, @in);
my $all = $listener->query('SELECT 1');
like($all, qr/"$told{$_->[0]}": "$_->[1]"/, "NOTIFY: $_->[1]") for [ 'good', 'sent' ], [ 'rcpt-550-5.1.1', 'bounced' ], [ 'rcpt-451-4.3.0', 'deferred' ];
unlike($all =~ s/\{"\d+": "\w+"(?:, "\d+": "\w+")*\}//gr, qr/\@|[{:]\s*"/, '... and nothing else, to a role without any grant, too');
like($node->sql(q{SELECT extra_desc FROM pg_settings WHERE name = 'kliv_mail.notify'}), qr/Any role that may connect/, '... which the setting says');
$node->sql(q{UPDATE kliv_mail._outbox SET first_attempt_at = now() - interval '10 days', due = now(); SELECT kliv_mail._wake()}, @in);
$node->wait_until(q{SELECT count(*) = 0 FROM kliv_mail._outbox}, @in);
like($listener->query('SELECT 1'), qr/"$told{'rcpt-451-4.3.0'}": "bounced"/, '... and bounced, when it was tried long enough');
$listener->quit;
$node->reconfigure('kliv_mail.notify' => 'off');

# ---- a sender whose transactions fail for good leaves, and the next one begins anew ----

my $claim = $node->sql(q{SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'kliv_mail'::regnamespace AND proname = '_claim'}, @in);
$node->sql("ALTER FUNCTION $claim RENAME TO _away", @in);
$node->sql(q{SELECT kliv_mail.send('broken@owned.example', 'x', 'x')}, @in);
ok($node->wait_for('it has gone', sub { slurp_file($node->logfile) =~ /kliv_mail sender.*exited with exit code 1/ }), 'a sender whose claims fail ends');
$node->sql('ALTER FUNCTION ' . $claim =~ s/_claim/_away/r . ' RENAME TO _claim', @in);
arrives('broken@owned.example', '... and the next one sends');

# ---- a sequence of epochs that was set back gives the number of a sender that lives ----

no_sender('owned');
my $alive = $node->session(@in);
is($alive->query('SELECT kliv_mail._epoch_lock(last_value + 1) FROM kliv_mail._epoch'), 't', 'the next epoch is somebody\'s');
my $epoch = $alive->query('SELECT last_value FROM kliv_mail._epoch');
$node->sql(q{SELECT kliv_mail.send('epoch@owned.example', 'x', 'x')}, @in);
arrives('epoch@owned.example', 'a mail goes all the same');
is($alive->query('SELECT last_value FROM kliv_mail._epoch'), $epoch + 2, '... by a sender that took the one behind it');
$alive->quit;

# ---- the usual "reset my schema" ----

make_database('reset');
@in = (dbname => 'reset');
$node->sql(q{SELECT kliv_mail.send('kept@reset.example', 'x', 'x', send_at => now() + interval '4 seconds')}, @in);
is($node->try('DROP SCHEMA public CASCADE; CREATE SCHEMA public', @in)->{err}, '', 'DROP SCHEMA public CASCADE takes nothing of ours along');
is($node->sql('SELECT count(*) FROM kliv_mail.deliveries', @in), 1, '... the queue is there');
arrives('kept@reset.example', '... and goes');

# ---- ALLOW_CONNECTIONS false, and true again ----

make_database('shut');
@in = (dbname => 'shut');
my $session = $node->session(@in);
$node->sql('ALTER DATABASE shut ALLOW_CONNECTIONS false');
$session->query(q{SELECT kliv_mail.send('after@shut.example', 'x', 'x')});
ok($session->wait_until(q{SELECT next_start IS NULL FROM kliv_mail.status}), 'while no connection is allowed the launcher starts nothing');
$session->quit;
$node->sql('ALTER DATABASE shut ALLOW_CONNECTIONS true');
arrives('after@shut.example', 'allowed again, the mail goes by itself');

# ---- a dump restored over the database that it was taken from ----

make_database('shop');
@in = (dbname => 'shop');
my $dump = PostgreSQL::Test::Utils::tempdir() . '/shop.dump';
my $ahead = $node->seconds_ahead;
$node->sql(qq{SELECT kliv_mail.send(format('r%s\@shop.example', i), 'x', 'x', send_at => now() + interval '$ahead seconds') FROM generate_series(1, 5) AS i}, @in);
no_sender('shop');
run_command([ 'pg_dump', '-Fc', '-d', $node->connstr('shop'), '-f', $dump ]);
arrives("r$_\@shop.example", "r$_ is sent after the dump") for 1 .. 5;
$node->wait_until(q{SELECT count(*) = 5 FROM kliv_mail.deliveries WHERE status = 'sent'}, @in);
KlivMail::RawMessages::gone(qr/^r\d\@shop\.example$/, 'their database was restored');
my ($out, $err) = run_command([ 'pg_restore', '--clean', '--if-exists', '--exit-on-error', '-d', $node->connstr('shop'), $dump ]);
is($err, '', 'restored over the same database');
is($node->sql('SELECT (SELECT count(*) FROM kliv_mail._outbox WHERE due < now()), oldest_due FROM kliv_mail.status', @in), '5|', 'what was brought along is not what is due here');
is($node->sql('SELECT DISTINCT status, held_by, code FROM kliv_mail.deliveries WHERE finished_at IS NULL', @in), 'deferred|restore|copy', '... and says that it is held, before any other mail');
my $result = $node->try(q{SELECT kliv_mail.send('new@shop.example', 'x', 'x')}, @in);
like("@{ $result->{notices} }", qr/copy of another/, 'a send() says that it is a copy');
no_sender('shop');
is($node->sql('SELECT DISTINCT status, held_by FROM kliv_mail.deliveries WHERE finished_at IS NULL', @in), 'deferred|restore', 'old and new mail is held');
is(scalar($smtp->accepted("r$_\@shop.example")), 1, "r$_ was not sent again") for 1 .. 5;
$node->sql('SELECT kliv_mail.cancel(id) FROM kliv_mail.messages WHERE subject = $$x$$ AND id <= 5', @in);
$node->sql('SELECT kliv_mail.resume()', @in);
arrives('new@shop.example', 'resume() releases what is wanted');
is($node->sql('SELECT count(*), min(origin) = kliv_mail._origin() FROM kliv_mail._state', @in), '1|t', '... and the database is its own again');

# ---- a copy is held whether what was copied was ever used or not ----

make_database('unused');
$node->sql("CREATE DATABASE copy$_ TEMPLATE unused") for 1, 2;
$node->sql("SELECT kliv_mail.send('copy$_\@unused.example', 'x', 'x')", dbname => "copy$_") for 1, 2;
is($node->sql('SELECT status, held_by FROM kliv_mail.deliveries', dbname => "copy$_"), 'deferred|restore', "copy $_ of a database never used is held") for 1, 2;
$node->sql(q{SELECT kliv_mail.send('first@unused.example', 'x', 'x')}, dbname => 'unused');
arrives('first@unused.example', 'the one that was copied sends');
is(scalar($smtp->accepted("copy$_\@unused.example")), 0, "copy $_ did not") for 1, 2;

# ---- while a sender is in a TLS handshake with a server that says nothing ----

my $silent = KlivMail::SmtpServer->start(silent => 1);
make_database('handshake');
@in = (dbname => 'handshake');
$node->sql("SELECT FROM kliv_mail.configure_smtp(host => '127.0.0.1', port => " . $silent->port
      . ", encryption => 'tls', username => '', from_address => 'shop\@handshake.example', test => false)", @in);
KlivMail::RawMessages::gone(qr/\@handshake\.example$/, 'its database was dropped');
$node->sql(q{SELECT kliv_mail.send('a@handshake.example', 'x', 'x')}, @in);
$node->wait_until(q{SELECT count(*) = 1 FROM kliv_mail.deliveries WHERE status = 'sending'}, @in);
my $plain = time;
$node->sql('CREATE DATABASE unconcerned');
$node->sql('DROP DATABASE unconcerned');
$plain = time - $plain;
for my $sql ('CREATE DATABASE other TEMPLATE handshake', 'DROP DATABASE other', 'DROP DATABASE handshake')
{
    my $start = time;
    is($node->try($sql)->{err}, '', "in a handshake: $sql");
    cmp_ok(time - $start, '<', 2 + $plain, sprintf('... within 2 s more than a plain one (%.2f s)', time - $start));
}

$node->stop;
done_testing();
