# What the server's log says of statements: a call that takes a password without
# its constants, and every other statement as it is, whatever words stand in it.
use strict;
use warnings;
use KlivMail::Cluster;
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

done_testing();
