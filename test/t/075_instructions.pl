# What a mail costs in instructions, against a plain INSERT of the same octets in
# the same run: a figure that neither noise nor another machine blurs.  A test fails
# where one grows by more than a tenth.  Who makes it grow on purpose changes it here.
#
# One single-user server under callgrind runs all; a call of pg_backend_pid() is the
# mark at which callgrind writes down what it has counted.
use strict;
use warnings;
use IPC::Run ();
use KlivMail::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use constant { WARM => 20, MAILS => 100 };

# Instructions a mail, in those of an INSERT of 500 octets.
my %figure = ('send()' => 10.5, claim => 7.0, record => 5.2, 'claim of one' => 309, 'claim in vain' => 133);

my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:1',
    conf => {
        autovacuum => 'off',
        'kliv_mail.platform_hourly_limit' => 1000000,
        'kliv_mail.platform_daily_limit' => 1000000
    });
if ($node->pg_version >= 16)
{
    $node->stop;
    plan skip_all => 'the figures are those of PostgreSQL 15';
}
$node->sql('ALTER DATABASE postgres SET kliv_mail.delivery = hold; CREATE TABLE plain (id bigint PRIMARY KEY, body text NOT NULL);
    VACUUM ANALYZE');
$node->stop;

my @statements = (
    q{SET client_min_messages = warning; SET kliv_mail.test_in_session = on; SET kliv_mail.delivery = on; SELECT kliv_mail._epoch_lock(77);
      CREATE TEMPORARY TABLE claimed (id bigint, account text)});
my @measured;

# The first ones fill caches and make plans; what counts are the MAILS behind them.
sub measure
{
    my ($name, $sql) = @_;
    for my $count (WARM, MAILS)
    {
        # Without a COUNT it is a statement for each.
        push @statements, 'SELECT pg_backend_pid()', $sql =~ /COUNT/ ? $sql =~ s/COUNT/$count/gr : ($sql) x $count;
    }
    push @statements, 'SELECT pg_backend_pid()';
    push @measured, $name;
    return;
}

my $outcomes = q{ARRAY(SELECT ROW(c.id, c.account, 'accepted', 'message', NULL, 0, 'dot', 250, NULL, '250 2.0.0 Ok: queued as 4TxYz',
    NULL, NULL, '4TxYz', 'From: a', NULL, NULL)::kliv_mail._outcome FROM gone AS c)};
my $body = q{repeat('500 octets, a line each ' || E'\n', 20)};
measure('INSERT', "INSERT INTO plain SELECT COUNT * 1000 + n, $body FROM generate_series(1, COUNT) AS n");
measure('send()', "SELECT count(kliv_mail.send('a' || n || '\@example.com', 'Costs', $body)) FROM generate_series(1, COUNT) AS n");
# The rest is a sender's, which has settings of its own (src/db/outbox.c).
push @statements, 'SET jit = off; SET plan_cache_mode = force_generic_plan';
measure('claim', 'INSERT INTO claimed SELECT id, account FROM kliv_mail._claim(77, COUNT, 100000000)');
measure('record', "WITH gone AS (DELETE FROM claimed AS c WHERE c.id IN (SELECT x.id FROM claimed AS x ORDER BY x.id LIMIT COUNT) RETURNING *)
    SELECT count(r) FROM kliv_mail._record(77, $outcomes) AS r");
push @statements, "SELECT count(kliv_mail.send('c' || n || '\@example.com', 'Costs', $body)) FROM generate_series(1, @{[ WARM + MAILS ]}) AS n";
measure($_, 'SELECT count(*) FROM kliv_mail._claim(77, 1, 100000000)') for 'claim of one', 'claim in vain';
push @statements, q{RESET jit; RESET plan_cache_mode; INSERT INTO kliv_mail._suppression (address, scope, created_at, created_by)
    SELECT 's' || n || '@example.com', 'all', now(), 'me' FROM generate_series(1, 10000) AS n};
measure('beside', "SELECT count(kliv_mail.send('b' || n || '\@example.com', 'Costs', $body)) FROM generate_series(1, COUNT) AS n");
push @statements, q{SELECT 'finished ' || count(*) FROM kliv_mail._delivery};

my $folder = PostgreSQL::Test::Utils::tempdir();
my ($out, $err);
my $input = join '', map { "$_;\n\n" } @statements;
ok(IPC::Run::run([ 'valgrind', '--tool=callgrind', "--callgrind-out-file=$folder/out", '--dump-before=pg_backend_pid',
            $node->config_data('--bindir') . '/postgres', '--single', '-j', '-D', $node->data_dir, 'postgres' ],
        '<', \$input, '>', \$out, '2>', \$err), 'callgrind counts') or diag($out, $err);
unlike($out . $err, qr/ERROR|FATAL/, 'each statement succeeds');
like($out, qr/finished @{[ WARM + MAILS ]}\b/, 'all of them were claimed and recorded');

# Between the marks: what came before, then for each WARM, MAILS and the mark alone.
my @counted = map { slurp_file("$folder/out.$_") =~ /^totals: (\d+)/m ? $1 : 0 } 1 .. 3 * @measured;
my %each = map { $measured[$_] => ($counted[ 2 + 3 * $_ ] - $counted[3]) / MAILS } 0 .. $#measured;
note sprintf '%-8s %8.0f instructions, %.2f', $_, $each{$_}, $each{$_} / $each{INSERT} for @measured;
for my $name (sort keys %figure)
{
    my $ratio = $each{$name} / $each{INSERT};
    cmp_ok($ratio, '<=', 1.1 * $figure{$name}, "$name: no more than $figure{$name} times an INSERT, and a tenth");
    cmp_ok($ratio, '>=', 0.9 * $figure{$name}, "$name: the figure is up to date");
}
cmp_ok($each{beside} / $each{'send()'}, '<=', 1.3, 'suppressions of 10,000 others cost a send() no more than three tenths');
done_testing();
