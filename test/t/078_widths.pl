# What eyes read in psql fits a terminal: the README's everyday statements, each in
# 120 columns at usual values: the tables without \x, sentences by \x auto.  (test_smtp()
# shows a certificate's names, which are as long as they are.)
use strict;
use warnings;
use IPC::Run ();
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $tls = KlivMail::Tls->new(PostgreSQL::Test::Utils::tempdir() . '/tls');
my ($cert, $key) = $tls->certificate('good');
my $smtp = KlivMail::SmtpServer->start(tls => 1, cert => $cert, key => $key, auth => ['app@example.com:correct horse battery']);
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://smtp.platform.example:25',
    conf => { 'kliv_mail.allowed_hosts' => '127.0.0.1, localhost', 'kliv_mail.ca_file' => $tls->ca_file });
my $configure = sprintf q{SELECT kliv_mail.configure_smtp(host => 'localhost', port => %d, encryption => 'tls', username => 'app@example.com', password => 'correct horse battery')}, $smtp->port;
$node->sql($configure);
my $id = $node->sql(q{SELECT kliv_mail.send('ana@example.com', 'Your receipt', 'Thank you.')});
$node->sql("SELECT kliv_mail.wait($id)");

# As psql prints it to a terminal of whatever width, or with \x auto in 120 columns.
sub width
{
    my ($sql, $auto) = @_;
    my ($out, $err) = ('', '');
    local %ENV = $node->_get_env();
    IPC::Run::run([ $node->installed_command('psql'), '-X', '-P', 'pager=off', $auto ? ('-P', 'columns=120', '-P', 'expanded=auto') : (), '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres') ],
        '<', \$sql, '>', \$out, '2>', \$err) or die "$sql: $err";
    my ($widest) = sort { $b <=> $a } map { length } split /\n/, $out;
    return ($widest, $out);
}

my ($everyday) = slurp_file('README.md') =~ /^## Everyday\n(.*?)^### /ms;
# All of it, in its order, by \x auto.
$node->sql(q{CREATE TABLE users (name text, email text); INSERT INTO users VALUES ('Ana', 'ana@example.com')});
my @all = map { s/^--[^\n]*\n//mgr =~ /\G\s*((?:'(?:[^']|'')*'|[^;'])+;)/g } $everyday =~ /^```sql\n(.*?)^```$/msg;
cmp_ok(scalar(@all), '>=', 19, 'the README has its everyday list');
for my $sql (grep { !/test_smtp/ } @all)
{
    my ($width, $out) = width($sql, 1);
    cmp_ok($width // 0, '<=', 120, ($sql =~ s/\s+/ /gr) . ': in 120 columns, by \x auto') or diag($out);
}

# (its last one took the account out of use)
$node->sql($configure);
my @statements = $everyday =~ /^(SELECT [^;]*FROM kliv_mail\.(?:overview|smtp_settings|usage|status|update_sender|set_limits|configure_smtp|reset_smtp)\b[^;]*;)/mg;
cmp_ok(scalar(@statements), '>=', 8, 'the README has its everyday statements');
for my $sql (@statements, 'SELECT * FROM kliv_mail.overview;', q{SELECT kliv_mail.suppress('ana@example.com', reason => 'asked by phone');},
    'SELECT * FROM kliv_mail.suppressions;', 'SELECT kliv_mail.help();')
{
    my ($width, $out) = width($sql);
    cmp_ok($width, '<=', 120, "$width columns: $sql") or diag($out);
}
$node->stop;

done_testing();
