# The gateway of web/ on a server with roles of its own: its tests are in web/test, for
# Node's test runner; here is what they need.
use strict;
use warnings;
use Cwd qw(getcwd);
use KlivMail::Cluster;
use KlivMail::Npm;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'no Node, no npm, or its registry cannot be reached' if !KlivMail::Npm::locked('web');

my $folder = PostgreSQL::Test::Utils::tempdir();
my $tls = KlivMail::Tls->new("$folder/tls");
my ($certificate, $key) = $tls->certificate('server');
my $platform = KlivMail::SmtpServer->start(plain => 1);
my $smtp = KlivMail::SmtpServer->start(tls => 1, cert => $certificate, key => $key, auth => ['app@shop.example:CANARY-of-smtp']);
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $platform->port,
    conf => {
        'kliv_mail.platform_hourly_limit' => 1000, 'kliv_mail.platform_daily_limit' => 10000,
        'kliv_mail.allowed_hosts' => 'localhost', 'kliv_mail.ca_file' => $tls->ca_file,
        log_statement => 'all', log_min_duration_statement => 0
    });
my $superuser = $node->sql('SELECT current_user');
$node->sql(q{
    CREATE ROLE boss LOGIN PASSWORD 'CANARY-of-boss'; CREATE ROLE reader LOGIN PASSWORD 'CANARY-of-reader'; CREATE ROLE outsider LOGIN PASSWORD 'CANARY-of-outsider';
    CREATE ROLE hooks LOGIN PASSWORD 'CANARY-of-hooks'; CREATE ROLE trusted LOGIN; CREATE ROLE clear LOGIN PASSWORD 'CANARY-in-clear';
    SET password_encryption = 'md5'; CREATE ROLE older LOGIN PASSWORD 'CANARY-in-md5';
    SELECT kliv_mail.grant_admin('boss'), kliv_mail.grant_read('reader'), kliv_mail.grant_ingest('hooks')});
# Who is to prove who they are; PostgreSQL::Test::Cluster lets everybody in.
my $hba = slurp_file($node->data_dir . '/pg_hba.conf');
unlink $node->data_dir . '/pg_hba.conf';
append_to_file($node->data_dir . '/pg_hba.conf', "local all boss,reader,outsider,hooks scram-sha-256\nlocal all clear password\nlocal all older md5\n$hba");
$node->reload;
# What set the passwords is in the log: the tests look at what comes after.
my $begins = -s $node->logfile;

my %environment = (
    PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'postgres', PGUSER => 'hooks', PGPASSWORD => 'CANARY-of-hooks',
    KLIV_MAIL_TEST_SUPERUSER => $superuser, KLIV_MAIL_TEST_DATA => $node->data_dir, KLIV_MAIL_TEST_LOG => $node->logfile, KLIV_MAIL_TEST_LOG_BEGINS => $begins,
    KLIV_MAIL_TEST_SMTP => $smtp->port, KLIV_MAIL_TEST_FILES => (run_command([ 'sh', '-c', 'ulimit -Hn' ]))[0] =~ s/unlimited/1000000/r);
my $top = getcwd();
for my $file (sort glob 'web/test/*.test.js')
{
    local %ENV = (%ENV, %environment);
    my ($out, $err) = run_command([ 'node', '--test-reporter=tap', "$top/$file" ]);
    my $status = $?;
    my $count = 0;
    while ($out =~ /^(not )?ok \d+ - (.*)$/mg)
    {
        ok(!$1, "$file: $2");
        $count++;
    }
    note(join "\n", $out =~ /^# .*$/mg);
    ok($status == 0 && $count > 0, "$file: all of $count") or diag("$out$err");
}

$node->stop;
done_testing();
