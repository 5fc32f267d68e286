# A password given to configure_smtp() is in clear nowhere: not in a file of
# the data directory, a dump, a view or a log, also when the call fails (A6).
use strict;
use warnings;
use File::Find;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $canary = 'CANARY-secret-123';
my $tls = KlivMail::Tls->new(PostgreSQL::Test::Utils::tempdir() . '/tls');
my ($certificate, $key) = $tls->certificate('good');
my $smtp = KlivMail::SmtpServer->start(tls => 1, cert => $certificate, key => $key, auth => ["app:$canary"]);
my $port = $smtp->port;

my $node = KlivMail::Cluster->new(
    'main',
    durable => 1,
    conf    => {
        'kliv_mail.allowed_hosts'     => '127.0.0.1, localhost',
        'kliv_mail.ca_file'           => $tls->ca_file,
        log_min_duration_statement    => 0,
        log_min_error_statement       => 'debug5',
        log_error_verbosity           => 'verbose',
        log_parameter_max_length_on_error => -1
    });

sub call
{
    my (%change) = @_;
    my %argument = (
        host         => "'localhost'",
        port         => $port,
        encryption   => "'tls'",
        username     => "'app'",
        password     => "'$canary'",
        from_address => "'shop\@shop.example'",
        %change);
    return 'SELECT * FROM kliv_mail.configure_smtp('
      . join(', ', map { "$_ => $argument{$_}" } sort keys %argument) . ')';
}

# The control: what is found by this test if it is there.
$node->sql(q{CREATE TABLE control AS SELECT 'CONTROL-secret-123'::text AS t});
$node->try(q{SELECT 'CONTROL-secret-123'::integer});

# ---- calls that succeed ----

my $result = $node->try(call());
is($result->{err}, '', 'configure_smtp() succeeds');
unlike($result->{out}, qr/CANARY/, 'what it returns is masked');
is($node->sql('SELECT password_masked FROM kliv_mail.smtp_settings WHERE in_use'), '****t-123',
    'password_masked: **** and the last third');
my $id = $node->sql(q{SELECT kliv_mail.send('ana@example.com', 'x', 'x')});
is($node->sql("SELECT kliv_mail.wait($id, '60 s')"), 'sent', 'the password is the right one');
is(($smtp->ledger('auth'))[-1]{ok} ? 'yes' : 'no', 'yes', '... as the server saw it');
is($node->try("DO \$do\$ BEGIN PERFORM * FROM kliv_mail.configure_smtp(password => '$canary'); END \$do\$")->{err},
    '', 'in a DO block');
is($node->try("DO \$do\$ BEGIN EXECUTE 'SELECT kliv_mail.configure_smtp(password => ' || quote_literal('$canary') || ')'; END \$do\$")->{err},
    '', 'by EXECUTE');
is($node->try("PREPARE p AS SELECT kliv_mail.configure_smtp(password => \$1); EXECUTE p('$canary')")->{err}, '', 'prepared');

# ---- calls that fail ----

$node->sql('CREATE ROLE nobody_special');
for (
    [ '22023', 'in our code: a bad host', call(host => "'a b'") ],
    [ '22023', 'in our code: a password without TLS', call(encryption => "'none'") ],
    [ '42883', 'a wrong argument name', call(hots => "'x'") ],
    [ '22P02', 'a bad cast', call(port => "'abc'") ],
    [ '42601', 'a syntax error', call() . ' WHERE WHERE' ],
    [ '42501', 'a missing right', call(), role => 'nobody_special' ],
    [ 'KM', 'a failed test: wrong credentials', call(username => "'other'") ],
    [ 'KM', 'a failed test: closed port', call(port => 1) ],
    [ '22023', 'in a DO block', "DO \$do\$ BEGIN PERFORM * FROM kliv_mail.configure_smtp(host => 'a b', port => 25, password => '$canary'); END \$do\$" ],
    [ '22023', 'by EXECUTE', "DO \$do\$ BEGIN EXECUTE 'SELECT kliv_mail.configure_smtp(host => ''a b'', port => 25, password => ''$canary'')'; END \$do\$" ],
    [ '22012', 'an error after it in its statement', "SELECT kliv_mail.configure_smtp(password => '$canary'), 1/0" ],
    [ '42883', 'test_smtp(): a wrong argument name', "SELECT kliv_mail.test_smtp(pasword => '$canary', hots => '')" ],
    [ '22P02', 'test_smtp(): a bad cast', "SELECT kliv_mail.test_smtp(port => 'abc', password => '$canary')" ])
{
    my ($state, $name, $sql, %option) = @$_;
    $result = $node->try($sql, %option);
    like($result->{state}, qr/^(?:$state|28)/, "fails: $name") or diag($result->{err});
    # (psql shows a line of the statement under the error: that is the client's.)
    unlike("$result->{message} $result->{hint}", qr/CANARY/, '... and its message does not say the password');
}

# ---- slips: behind the mask one still sees what is wrong ----

for my $function (qw(configure_smtp test_smtp))
{
    my $arguments = $node->sql("SELECT array_to_string(proargnames[1:pronargs], ', ') FROM pg_proc WHERE proname = '$function'");
    for my $slip ([ 'login', '42883', qr/function kliv_mail\.$function\(/ ], [ 'user', '42601', qr/at or near "=>"/ ], [ 'from', '42601', qr/at or near "from"/ ])
    {
        my ($argument, $state, $message) = @$slip;
        $result = $node->try("SELECT * FROM kliv_mail.$function(password => '$canary', $argument => 'app')");
        is($result->{state}, $state, "$function($argument => ...): $state");
        like($result->{message}, $message, '... the message says where');
        is($result->{hint}, "kliv_mail.$function() has no argument \"$argument\"; it has $arguments.", '... the hint what there is');
    }
}
for (
    [ 'a comma too few', "password => '$canary' port => 25", qr/at or near "port"/, qr/separated by commas/ ],
    [ 'an argument twice', "host => 'a', host => '$canary'", qr/argument name "host" used more than once/, qr/^$/ ],
    [ 'the wrong quotes', "host => \"$canary\"", qr/^column "\*\*\*\*" does not exist/, qr/single quotes/ ],
    [ 'a word of SQL that is no argument', "password => '$canary') ORDER FROM (", qr/at or near "\*\*\*\*"/, qr/^$/ ])
{
    my ($name, $arguments, $message, $hint) = @$_;
    $result = $node->try("SELECT * FROM kliv_mail.configure_smtp($arguments)");
    like($result->{message}, $message, "$name: the message");
    like($result->{hint}, $hint, '... and the hint');
    unlike("$result->{message} $result->{hint}", qr/CANARY/, '... without the password');
}
is($node->try("SELECT kliv_mail.configur_smtp(password => '$canary')")->{state}, '42883', 'a wrong function name');

# ---- where it could be ----

is(scalar(grep { /CANARY/ } map { $node->sql("SELECT x::text FROM kliv_mail.$_ AS x") }
        split /\n/, $node->sql(q{SELECT relname FROM pg_class WHERE relnamespace = 'kliv_mail'::regnamespace AND relkind IN ('r', 'v')})),
    0, 'in no table and no view');
PostgreSQL::Test::Utils::run_log([ 'pg_dumpall', '-d', $node->connstr('postgres'), '-f', $node->basedir . '/dump.sql' ]);
like(slurp_file($node->basedir . '/dump.sql'), qr/CONTROL-secret-123/, 'a dump has the control');
unlike(slurp_file($node->basedir . '/dump.sql'), qr/CANARY/, 'and not the password');

$node->sql('CHECKPOINT');
$node->stop;
my %found;
find(
    {
        no_chdir => 1,
        wanted   => sub {
            return unless -f;
            my $bytes = slurp_file($_);
            $found{control}++ if index($bytes, 'CONTROL-secret-123') >= 0;
            $found{$_}++ if index($bytes, 'CANARY') >= 0;
        }
    },
    $node->data_dir);
cmp_ok(delete $found{control}, '>=', 2, 'the data directory has the control, heap and WAL');
is(join(' ', keys %found), '', 'and no file of it has the password');

my $log = slurp_file($node->logfile);
like($log, qr/STATEMENT:.*CONTROL-secret-123/, 'the log has the control');
like($log, qr/duration: .*kliv_mail\.wait/, 'and durations');
unlike($log, qr/CANARY/, 'and not the password')
  or diag(join "\n", grep { /CANARY/ } split /\n/, $log);

done_testing();
