# Sign-ups by a trigger that sends, four sessions at once at each isolation level,
# while a sender is at work: none aborts that the same INSERT without mail would
# not.  KLIV_MAIL_SIGNUPS is how many each session makes (1000 is the long form).
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Test::More;

my $each = $ENV{KLIV_MAIL_SIGNUPS} // 60;
my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    conf         => {
        'kliv_mail.platform_hourly_limit' => 10000,
        'kliv_mail.platform_daily_limit'  => 10000
    });
$node->sql(q{
    CREATE TABLE users (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text);
    CREATE TABLE plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text);
    CREATE FUNCTION welcome() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        PERFORM kliv_mail.send(NEW.email, 'Welcome', 'Hello', on_limit => CASE WHEN NEW.id % 2 = 0 THEN 'error' ELSE 'defer' END,
            idempotency_key => CASE WHEN NEW.id % 4 = 0 THEN NEW.email END);
        RETURN NULL;
    END $$;
    CREATE TRIGGER welcome AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION welcome();
    -- one in ten is suppressed
    SELECT count(kliv_mail.suppress('user' || i || '@x.example')) FROM generate_series(1, 10) AS i});

# Four sessions; how many of their transactions failed, and what pgbench said.
sub sign_ups
{
    my ($level, $table) = @_;
    my $script = PostgreSQL::Test::Utils::tempdir() . '/script';
    append_to_file($script, "\\set n random(1, 100)\n"
          . "BEGIN ISOLATION LEVEL $level;\nINSERT INTO $table (email) VALUES ('user' || :n || '\@x.example');\nCOMMIT;\n");
    my ($out, $err) = ('', '');
    my $ok = IPC::Run::run(
        [
            $node->installed_command('pgbench'), '-n', '-c', 4, '-j', 4, '-t', $each, '-f', $script, '--failures-detailed',
            '-h', $node->host, '-p', $node->port, 'postgres'
        ],
        '>', \$out, '2>', \$err);
    ok($ok, "$level, $table: pgbench ends well") or diag($err);
    my ($failed) = $out =~ /number of failed transactions: (\d+)/;
    my ($done) = $out =~ /number of transactions actually processed: (\d+)/;
    return ($failed // 'none told', $done // 0, $out);
}

for my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
    my $before = $node->sql('SELECT count(*) FROM kliv_mail.messages');
    my ($failed, $done, $out) = sign_ups($level, 'plain');
    is("$failed failed, $done done", '0 failed, ' . 4 * $each . ' done', "$level: without mail none fails");
    ($failed, $done, $out) = sign_ups($level, 'users');
    is("$failed failed, $done done", '0 failed, ' . 4 * $each . ' done', "$level: with mail none fails") or diag($out);
    note($out);
}
$node->wait_until(q{SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE status NOT IN ('sent', 'suppressed')});
is($node->sql('SELECT count(*) FROM users'), 12 * $each, 'every sign-up is there');
ok($node->sql(q{SELECT count(*) > 0 FROM kliv_mail.deliveries WHERE status = 'suppressed'}) eq 't', 'some were suppressed');

# Beside an application that reads what others write: only its own conflicts count.
my ($one, $two) = map { $node->session } 1 .. 2;
$one->query('BEGIN ISOLATION LEVEL SERIALIZABLE');
$two->query('BEGIN ISOLATION LEVEL SERIALIZABLE');
like($one->query(q{SELECT kliv_mail.send('one@x.example', 'x', 'x', on_limit => 'error') > 0}), qr/^t$/m, 'one sends');
like($two->query(q{SELECT account FROM kliv_mail.configure_smtp(host => 'localhost', port => 1, encryption => 'none', username => '',
    from_address => 'a@a.example', test => false)}), qr/custom/, 'another configures an account');
like($two->query(q{SELECT kliv_mail.send('two@x.example', 'x', 'x', on_limit => 'error') > 0}), qr/^t$/m, '... and sends');
unlike($one->query('COMMIT'), qr/ERROR/, 'the one commits');
unlike($two->query('COMMIT'), qr/ERROR/, 'the other one, too');

# A prepared transaction that has sent holds nobody up.
$node->sql(q{BEGIN; SELECT kliv_mail.send('prepared@x.example', 'x', 'x'); PREPARE TRANSACTION 'mail'});
is($node->try(q{SET lock_timeout = '5s'; SELECT kliv_mail.send('after@x.example', 'x', 'x')})->{state}, '', 'nobody waits for it');
$node->sql(q{COMMIT PREPARED 'mail'});
$_->quit for $one, $two;

# The same where it is the first use of the database.
$node->sql('CREATE DATABASE fresh');
$node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => 'fresh');
my $first = $node->session(dbname => 'fresh');
$first->query(q{BEGIN; SELECT kliv_mail.send('first@x.example', 'x', 'x')});
is($node->try(q{SET lock_timeout = '5s'; SELECT kliv_mail.send('second@x.example', 'x', 'x')}, dbname => 'fresh')->{state},
    '', 'the first send() of a database makes nobody wait');
$first->query('ROLLBACK');
$first->quit;
$node->stop;

done_testing();
