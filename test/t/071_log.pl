# What the server's log says of statements: a call that takes a password without
# its constants, and every other statement as it is, whatever words stand in it.
# And of accounts: one line when one is held, one when it goes on.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = KlivMail::Cluster->new(
    'main',
    conf => {
        log_statement              => 'all',
        log_min_duration_statement => 0,
        log_min_error_statement    => 'debug5'
    });
$node->sql('CREATE ROLE nobody_; CREATE DATABASE without');

# What a statement adds to the log.
sub logged
{
    my ($sql, %option) = @_;
    my $from = -s $node->logfile;
    $node->try($sql, %option);
    return substr(slurp_file($node->logfile), $from);
}

# ---- a word hides nothing ----

for my $statement (
    q{select 'exfiltrate' /* configure_smtp */},
    q{create temp table t_evil(a int) /* configure_smtp */},
    q{select 'exfiltrate' -- kliv_mail.configure_smtp(},
    qq{select 'exfiltrate' /* kliv_mail.configure_smtp(password => 'x') */},
    q{select 'exfiltrate' as configure_smtp},
    q{select 'exfiltrate' as "kliv_mail.test_smtp(password"},
    q{select 'exfiltrate', 'test_smtp'},
    q{do $$ begin /* configure_smtp( */ perform 'exfiltrate'; end $$})
{
    my $log = logged($statement, role => 'nobody_');
    (my $shown = $statement) =~ s/\n/\n\t/g;
    like($log, qr/LOG:  statement: \Q$shown\E/, "logged as it is: $statement");
    like($log, qr/LOG:  duration: \S+ ms/, '... with its duration');
}
my $log = logged(q{select 1/0, 'exfiltrate' /* configure_smtp(password => 'x') */}, role => 'nobody_');
like($log, qr/ERROR:  division by zero\n.*STATEMENT:  select 1\/0, 'exfiltrate'/, 'an error has its statement');

# Beside a real call all is there but the call's constants.
$log = logged(q{select 'exfiltrate', account from kliv_mail.configure_smtp(password => 'CANARY-1', host => 'a b')});
like($log, qr/LOG:  statement: select 'exfiltrate', account from kliv_mail\.configure_smtp\(password => '\*\*\*\*', host => '\*+'\)/, 'a real call without its constants');
$log = logged(q{select 1/0, 'exfiltrate' from kliv_mail.configure_smtp(password => 'CANARY-2', test => false)});
like($log, qr/DETAIL:  Statement: select 1\/0, 'exfiltrate' from kliv_mail\.configure_smtp\(password => '\*\*\*\*', test => false\)/, '... where it fails, too');
$log = logged(q{do 'begin perform ''exfiltrate''; perform kliv_mail.test_smtp(password => ''CANARY-3'', host => ''a b''); end'});
like($log, qr/statement: do 'begin perform ''exfiltrate''; perform kliv_mail\.test_smtp\(password => ''\*\*\*\*''/, '... within a literal');
$log = logged(q{select kliv_mail.configur_smtp(password => 'CANARY-4')});
like($log, qr/configur_smtp\(password => '\*\*\*\*'\)/, '... with a slip in its name');
$log = logged(q{select kliv_mail . "configure_smtp" /* ( */ (password => E'CANARY-\\'5', host => $x$a b$x$)});
like($log, qr/"configure_smtp" \/\* \( \*\/ \(password => '\*\*\*\*'/, '... however it is written');
$log = logged(q{select kliv_mail.configure_smtp(password => 'CANARY-6)});
unlike($log, qr/CANARY/, '... and with a quote too few');

$log = logged(q{do $$ begin execute 'select kliv_mail.test_smtp(host => ''a b'', password => ' || quote_literal('CANARY-7') || ')'; perform 'exfiltrate'; end $$});
like($log, qr/quote_literal\('\*\*\*\*'\) \|\| '\*'; perform 'exfiltrate'/, '... put together from parts');
$log = logged(q{do $$ begin execute format('select kliv_mail.test_smtp(hosst => %L, password => %L)', (1)::text, 'CANARY-8'); perform 'exfiltrate'; end $$});
like($log, qr/%\*\)', \(\*\)::text, '\*\*\*\*'\); perform 'exfiltrate'/, '... or by format()');
$log = logged(q{select format('select kliv_mail.configure_smtp(password => %L)', 'CANARY-9') || 1/0});
unlike($log, qr/CANARY/, '... at the top, too');
$log = logged(q{select pg_temp.configure_smtp('shown'), x . test_smtp(format('shown too'))});
like($log, qr/statement: select pg_temp\.configure_smtp\('shown'\), x \. test_smtp\(format\('shown too'\)\)/, 'a function of another schema is none of ours');
$log = logged(q{select 1; select postgres . "kliv_mail" . configure_smtp(password => 'CANARY-a', host => 'a b')});
unlike($log, qr/CANARY/, '... but one of ours, however qualified');
$log = logged(q{prepare p as select 'execute p', $1::text}, role => 'nobody_');
$log = logged(q{prepare p as select 'execute p'; execute p});
like($log, qr/statement: .*execute p/, '(a statement that names itself ends the scan)');

# ---- where the extension is not, nothing is touched ----

$log = logged(q{select configure_smtp(password => 'public')}, dbname => 'without');
$log = logged(q{select 1; select configure_smtp(password => 'public')}, dbname => 'without');
like($log, qr/STATEMENT:  .*configure_smtp\(password => 'public'\)/, 'a database without the extension is left alone');

# ---- the setting is the superuser's ----

is($node->try('SET kliv_mail.mask_secrets = off', role => 'nobody_')->{state}, '42501', 'no other may set it');
$log = logged(q{SET kliv_mail.mask_secrets = off; select * from kliv_mail.test_smtp(host => 'shown anyway')});
like($log, qr/statement: .*shown anyway/, 'off: nothing is masked');
unlike(slurp_file($node->logfile), qr/CANARY/, 'no secret in the log');
$node->stop;

# ---- accounts that are held ----

my $tls = KlivMail::Tls->new(PostgreSQL::Test::Utils::tempdir() . '/tls');
my ($certificate, $key) = $tls->certificate('good');
my $smtp = KlivMail::SmtpServer->start(tls => 1, cert => $certificate, key => $key, auth => ['app@example.com:right']);
my $held = KlivMail::Cluster->new('held', conf => { 'kliv_mail.allowed_hosts' => '127.0.0.1, localhost', 'kliv_mail.ca_file' => $tls->ca_file });
sub configure
{
    my ($password) = @_;
    $held->sql(sprintf q{SELECT kliv_mail.configure_smtp(host => 'localhost', port => %d, encryption => 'tls', username => 'app@example.com', password => '%s', test => false)},
        $smtp->port, $password);
    return;
}
sub holds { return $held->sql(q{SELECT count(*) FROM kliv_mail.events WHERE kind = 'account_held'}) }
sub lines
{
    my ($level, $text) = @_;
    return scalar(() = slurp_file($held->logfile) =~ /$level:  kliv_mail: the account "custom" of database "postgres" $text/g);
}

configure('wrong');
$held->sql(q{SELECT kliv_mail.send('a@example.com', 'x', 'x')});
$held->wait_until(q{SELECT held_by = 'account' FROM kliv_mail.deliveries});
$held->wait_for('the line is there', sub { lines('WARNING', 'is held: ') });
like(slurp_file($held->logfile), qr/WARNING:  kliv_mail: the account "custom" of database "postgres" is held: .*\n.*HINT:  .*SELECT \* FROM kliv_mail\.configure_smtp\(/,
    'a hold is a warning, with its reason and its cure');
my ($line) = slurp_file($held->logfile) =~ /(.*is held: .*\n.*\n.*)/;
unlike($line, qr/CONTEXT|STATEMENT|wrong/, '... and nothing else');

# Met again with other settings, within the minute, and then behind it.
my $before = holds();
configure('wrong again');
$held->wait_for('it is held anew', sub { holds() > $before });
is(lines('WARNING', 'is held: '), 1, 'no second line within a minute');
$held->clock_offset('2 minutes');
$before = holds();
configure('wrong once more');
$held->wait_for('it is held a third time', sub { holds() > $before });
$held->wait_for('the second line is there', sub { lines('WARNING', 'is held: ') == 2 });
is(lines('LOG', 'sends again'), 0, 'nothing went on so far');

# It goes on: said behind the minute, with the next mail that goes.
configure('right');
$held->wait_until(q{SELECT status = 'sent' FROM kliv_mail.deliveries});
is(lines('LOG', 'sends again'), 0, 'no line within a minute of the last one');
$held->clock_offset('4 minutes');
$held->sql(q{SELECT kliv_mail.send('b@example.com', 'x', 'x')});
$held->wait_for('it is said', sub { lines('LOG', 'sends again') });
$held->sql(q{SELECT kliv_mail.send('c@example.com', 'x', 'x')});
$held->wait_until(q{SELECT count(*) = 3 FROM kliv_mail.deliveries WHERE status = 'sent'});
is(lines('LOG', 'sends again'), 1, 'that it goes on is said once');
is(lines('WARNING', 'is held: '), 2, 'and nothing more of the hold');
$held->stop;

done_testing();
