# Every way by which a password comes in (B3): none leaves it in a file of the
# data directory, a dump, a view, pg_stat_statements or the log, and where a
# process has to keep it, a core dump would not have it.  014_secrets has the
# plain calls; here are the others, with every log setting that is said to hide it.
use strict;
use warnings;
use File::Find;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $tls = KlivMail::Tls->new("$folder/tls");
my ($certificate, $key) = $tls->certificate('good');

# A canary for each route, so that one that flies tells where it came from.
my $number = 100;
sub canary { return 'CANARY-' . $_[0] . '-' . $number++; }
my $login = canary('login');
my $smtp = KlivMail::SmtpServer->start(tls => 1, cert => $certificate, key => $key, auth => ["app:$login"]);
my $port = $smtp->port;

my $node = KlivMail::Cluster->new(
    'main',
    durable => 1,
    conf    => {
        shared_preload_libraries          => 'kliv_mail, pg_stat_statements, auto_explain',
        'kliv_mail.allowed_hosts'         => 'localhost',
        'kliv_mail.ca_file'               => $tls->ca_file,
        'kliv_mail.sender_idle_timeout'   => '10min',
        'pg_stat_statements.track'        => 'all',
        'pg_stat_statements.track_utility' => 'on',
        'pg_stat_statements.save'         => 'on',
        'auto_explain.log_min_duration'   => 0,
        'auto_explain.log_nested_statements' => 'on',
        log_statement                     => 'all',
        log_min_duration_statement        => 0,
        log_duration                      => 'on',
        log_min_error_statement           => 'debug5',
        log_error_verbosity               => 'verbose',
        log_parameter_max_length          => -1,
        log_parameter_max_length_on_error => -1,
        debug_print_parse                 => 'on',
        log_lock_waits                    => 'on'
    });
$node->sql('CREATE EXTENSION pg_stat_statements');

# ---- the control: this is found where it is not hidden ----

$node->sql(q{CREATE TABLE control AS SELECT 'CONTROL-secret-123'::text AS t});
$node->sql(q{DO $$ BEGIN PERFORM 'CONTROL-in-a-block'; END $$});
$node->try(q{SELECT 'CONTROL-secret-123'::integer});

# ---- routes ----

my $to = "host => 'localhost', port => $port, encryption => 'tls', username => 'app', from_address => 'shop\@shop.example'";
sub ok_call
{
    my ($name, $sql, %option) = @_;
    is($node->try($sql, %option)->{state}, '', $name);
    return;
}
sub fails
{
    my ($state, $name, $sql, %option) = @_;
    my $result = $node->try($sql, %option);
    like($result->{state}, qr/^$state/, "fails: $name") or diag($result->{err});
    # (psql shows a line of the statement under the error: that is the client's.)
    unlike("$result->{message} $result->{hint}", qr/CANARY/, '... and its message does not say the password');
    return;
}

ok_call('password', "SELECT * FROM kliv_mail.configure_smtp($to, password => '$login')");

# password_file: what it holds, and what it holds when it is refused.
my $file = "$folder/password";
append_to_file($file, canary('file') . "\n");
chmod 0600, $file;
ok_call('password_file', "SELECT * FROM kliv_mail.configure_smtp($to, password_file => '$file', test => false, account => 'by_file')");
fails('KM', 'password_file with the wrong password', "SELECT * FROM kliv_mail.configure_smtp($to, password_file => '$file', account => 'by_file')");
append_to_file("$folder/binary", canary('binary') . "\0x\n");
fails('22023', 'password_file with a NUL in it', "SELECT * FROM kliv_mail.configure_smtp($to, password_file => '$folder/binary', test => false, account => 'by_file')");

# password_sealed: a sealed one that is broken says nothing either (054_sealed has those that open).
fails('22023', 'password_sealed that was not sealed', "SELECT * FROM kliv_mail.configure_smtp($to, password_sealed => convert_to('" . canary('unsealed') . ' ' . ('x' x 60) . "', 'UTF8'), test => false)");

# Postmark: the token is the user name too.
my $token = canary('postmark');
ok_call('Postmark: a secret user name', "SELECT * FROM kliv_mail.configure_smtp('postmark', username => '$token', password => '$token', from_address => 'shop\@shop.example', test => false, account => 'postmark')");
fails('22023', '... with a port that Postmark has not', "SELECT * FROM kliv_mail.configure_smtp('postmark', port => 465, username => '" . canary('postmark') . "', password => '" . canary('postmark') . "', from_address => 'shop\@shop.example', test => false, account => 'postmark')");
fails('22023', '... as a user name without a password', "SELECT * FROM kliv_mail.configure_smtp('postmark', username => '" . canary('postmark') . "', test => false, account => 'postmark')");
ok_call('a user name that equals the password', "SELECT * FROM kliv_mail.configure_smtp(host => 'smtp.example.com', username => '$token', password => '$token', from_address => 'shop\@shop.example', test => false, account => 'equal')");
is($node->sql(q{SELECT count(*) FROM kliv_mail.smtp_settings WHERE account IN ('postmark', 'equal') AND username LIKE '****%'}), 2, '... is shown masked');
ok_call('an access token', "SELECT * FROM kliv_mail.configure_smtp('gmail', username => 'a\@gmail.com', auth => 'oauth2', password => '" . canary('oauth2') . "', test => false, account => 'oauth')");

# test_smtp()
ok_call('test_smtp() with a password', "SELECT * FROM kliv_mail.test_smtp(host => 'localhost', port => $port, encryption => 'tls', username => 'app', password => '" . canary('test') . "', from_address => 'shop\@shop.example')");
fails('22023', 'test_smtp() with a bad argument', "SELECT * FROM kliv_mail.test_smtp(host => 'a b', username => 'app', password => '" . canary('test') . "')");
fails('42883', 'test_smtp() that is not one', "SELECT * FROM kliv_mail.test_smtp(passwort => '" . canary('test') . "')");

# In other statements than a plain SELECT; each is what pg_stat_statements keeps verbatim.
sub plain { return "kliv_mail.configure_smtp(password => '" . canary($_[0]) . "', test => false, account => 'custom')"; }
ok_call('in a DO block', 'DO $do$ BEGIN PERFORM * FROM ' . plain('do') . '; END $do$');
ok_call('by EXECUTE in a DO block', 'DO $do$ BEGIN EXECUTE $x$SELECT * FROM ' . plain('execute') . '$x$; END $do$');
ok_call('EXPLAIN', 'EXPLAIN SELECT * FROM ' . plain('explain'));
ok_call('EXPLAIN ANALYZE', 'EXPLAIN (ANALYZE, VERBOSE) SELECT * FROM ' . plain('analyze'));
ok_call('CREATE TABLE AS', 'CREATE TEMP TABLE t AS SELECT account FROM ' . plain('ctas'));
ok_call('COPY', 'COPY (SELECT account FROM ' . plain('copy') . ') TO STDOUT');
ok_call('a cursor', 'BEGIN; DECLARE c CURSOR FOR SELECT * FROM ' . plain('cursor') . '; FETCH ALL FROM c; COMMIT');
ok_call('a cursor that a block leaves open', 'BEGIN; DO $do$ DECLARE c refcursor; BEGIN OPEN c FOR SELECT * FROM ' . plain('open') . '; END $do$; COMMIT');
ok_call('two statements in one', "SELECT 1\\; SELECT * FROM " . plain('multi'));
ok_call('PREPARE and EXECUTE', "PREPARE p (text) AS SELECT * FROM kliv_mail.configure_smtp(password => \$1, test => false); EXECUTE p('" . canary('prepared') . "')");
ok_call('PREPARE with the password in it', 'PREPARE p AS SELECT * FROM ' . plain('prepare') . '; EXECUTE p');
ok_call('... and EXPLAIN EXECUTE', "PREPARE p (text) AS SELECT * FROM kliv_mail.configure_smtp(password => \$1, test => false); EXPLAIN ANALYZE EXECUTE p('" . canary('explain') . "')");
ok_call('... and EXECUTE, with the plan as JSON', "SET auto_explain.log_format = json; PREPARE p (text) AS SELECT * FROM kliv_mail.configure_smtp(password => \$1, test => false); EXECUTE p('" . canary('json') . "')");
ok_call('... and of several lines', "SET auto_explain.log_format = json; SELECT * -- it's\nFROM\nkliv_mail.configure_smtp(password => '" . canary('json') . "', test => false)");
fails('22P02', 'EXECUTE with a bad argument', "PREPARE p (integer, text) AS SELECT * FROM kliv_mail.configure_smtp(port => \$1, password => \$2, test => false); EXECUTE p('x', '" . canary('prepared') . "')");
fails('22023', 'a cast of the password', "SELECT * FROM kliv_mail.configure_smtp(port => 21, password => '" . canary('cast') . "'::varchar, test => false)");
fails('22P02', 'a password where a number belongs', "SELECT * FROM kliv_mail.configure_smtp(port => '" . canary('cast') . "')");
fails('42601', 'a quote too few', "SELECT * FROM kliv_mail.configure_smtp(password => '" . canary('quote') . ")");
fails('42601', 'a quote too many', "SELECT * FROM kliv_mail.configure_smtp(password => '" . canary('quote') . "'')'x')");
fails('42703', 'a password without quotes', "SELECT * FROM kliv_mail.configure_smtp(password => \"" . canary('unquoted') . "\")");
fails('22012', 'an error behind it', "SELECT 1 / 0 FROM " . plain('behind'));
fails('57014', 'a timeout meanwhile', "SET statement_timeout = '300ms'; SELECT pg_sleep(10) FROM " . plain('timeout'));
fails('25006', 'in a read-only transaction', 'BEGIN READ ONLY; SELECT * FROM ' . plain('readonly'));
fails('42501', 'without the right', 'SELECT * FROM ' . plain('right'), role => 'pg_monitor');

# The extended protocol: the password is a parameter, and the log has those.
sub extended
{
    my ($mode, $name, $expected, $canary) = @_;
    append_to_file("$folder/$name.sql", "SELECT count(*) FROM kliv_mail.configure_smtp(password => :password, port => :port, username => 'app', host => 'localhost', encryption => 'tls', from_address => 'shop\@shop.example', test => false);\n");
    my ($out, $err) = run_command([ 'pgbench', '-n', '-M', $mode, '-t', 1, '-D', "password=$canary", '-D', 'port=' . ($expected ? 21 : $port), '-f', "$folder/$name.sql", '-h', $node->host, '-p', $node->port, 'postgres' ]);
    $expected ? like($err, qr/$expected/, "$mode protocol: $name") : unlike($err, qr/ERROR|abort/, "$mode protocol: $name");
    return;
}
extended($_, "succeeds_$_", '', canary($_)), extended($_, "fails_$_", '21 is not a port', canary($_)) for qw(extended prepared);

# A function of one's own around it.  Its caller's statement is PostgreSQL's own
# to log (the README says so), but not when it fails, and in no file.
$node->sql(q{
    CREATE FUNCTION wrapper(secret text, at integer DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
        RETURN (SELECT account FROM kliv_mail.configure_smtp(password => secret, port => at, test => false));
    END $$});
my $quiet = q{SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_duration = off; SET auto_explain.log_min_duration = -1; SET debug_print_parse = off; };
ok_call('a function of plpgsql around it', "$quiet SELECT wrapper('" . canary('wrapper') . "')");
fails('22023', '... that fails', "$quiet SELECT wrapper('" . canary('wrapper') . "', 21)");
ok_call('the way that the README names: log_statement = none', "SET log_statement = none; SELECT * FROM " . plain('readme'));

# ---- memory: a sender that holds the password ----

$node->sql("SELECT * FROM kliv_mail.configure_smtp($to, password => '$login')");
my $id = $node->sql(q{SELECT kliv_mail.send('ana@example.com', 'x', 'x')});
is($node->sql("SELECT kliv_mail.wait($id, '60 s')"), 'sent', 'a sender has the password');
my ($pid) = $node->workers('kliv_mail sender');
my ($launcher) = $node->workers('kliv_mail launcher');
SKIP:
{
    # A process that may be dumped shows itself to its own user; one that may not does not.
    open my $control, '<', "/proc/$launcher/environ" or skip "no /proc: $!", 2;
    ok(!(open my $environment, '<', "/proc/$pid/environ"), '... and is a process that leaves no core dump');
    like(slurp_file("/proc/$pid/limits"), qr/^Max core file size\s+0\s+0\s/m, '... by its limits either');
}
# A session's own copies are in memory that is marked not to be dumped; only what
# the client sent is elsewhere, so here the password comes from a file.
append_to_file("$folder/memory", canary('memory') . "\n");
my ($in_memory) = slurp_file("$folder/memory") =~ /(\S+)/;
my $session = $node->session;
$session->query("SELECT count(*) FROM kliv_mail.configure_smtp($to, password_file => '$folder/memory', test => false, account => 'by_file')");
my $backend = $session->query('SELECT pg_backend_pid()');
SKIP:
{
    open my $maps, '<', "/proc/$backend/smaps" or skip "no /proc: $!", 1;
    open my $memory, '<:raw', "/proc/$backend/mem" or skip "the memory of another process may not be read here: $!", 1;
    my (@regions, @dumped);
    while (<$maps>)
    {
        push @regions, { from => hex $1, to => hex $2, mode => $3 } if /^([0-9a-f]+)-([0-9a-f]+) (\S+)/;
        $regions[-1]{flags} = $1 if /^VmFlags: (.*)/;
    }
    my $read = 0;
    for my $region (grep { $_->{mode} =~ /^rw/ && $_->{to} - $_->{from} < 512 * 1024 * 1024 } @regions)
    {
        sysseek $memory, $region->{from}, 0 or next;
        my $bytes = '';
        $read += sysread($memory, $bytes, $region->{to} - $region->{from}) // next;
        push @dumped, sprintf('%x at %d', $region->{from}, index($bytes, $in_memory)) if index($bytes, $in_memory) >= 0 && $region->{flags} !~ /\bdd\b/;
    }
    skip 'the memory of another process may not be read here', 1 unless $read;
    is("@dumped", '', 'a session that saved a password from a file has it nowhere that a core dump has');
}
$session->quit;

# ---- where it could be ----

my $pgss = $node->sql('SELECT query FROM pg_stat_statements');
like($pgss, qr/CONTROL-in-a-block/, 'pg_stat_statements has the control');
like($pgss, qr/configure_smtp\(password => \$1/, '... and the calls, without their constants');
unlike($pgss, qr/CANARY/, '... and no password') or diag(join "\n", grep { /CANARY/ } split /\n/, $pgss);
is($node->sql(q{SELECT count(*) FROM kliv_mail.events WHERE events::text LIKE '%CANARY%'}), 0, 'nor has events');
PostgreSQL::Test::Utils::run_log([ 'pg_dumpall', '-d', $node->connstr('postgres'), '-f', "$folder/dump.sql" ]);
like(slurp_file("$folder/dump.sql"), qr/CONTROL-secret-123/, 'a dump has the control');
unlike(slurp_file("$folder/dump.sql"), qr/CANARY/, '... and no password');

$node->sql('CHECKPOINT');
$node->stop;
my (%found, %control);
find(
    {
        no_chdir => 1,
        wanted   => sub {
            return unless -f;
            my $bytes = slurp_file($_);
            $control{$1}++ if index($bytes, 'CONTROL-secret-123') >= 0 && m{/(base|pg_wal|pg_stat)/};
            $control{pg_stat}++ if index($bytes, 'CONTROL-in-a-block') >= 0;
            $found{"$_: $1"}++ while $bytes =~ /(CANARY-\w+-\d+)/g;
        }
    },
    $node->data_dir);
is(join(' ', sort keys %control), 'base pg_stat pg_wal', 'the data directory has the control: heap, WAL, pg_stat_statements');
is(join(' ', sort keys %found), '', 'and no file of it has a password');

my $log = slurp_file($node->logfile);
like($log, qr/STATEMENT:.*CONTROL-secret-123/, 'the log has the control');
like($log, qr/(?:statement|execute \S+): .*kliv_mail\.wait/, '... statements');
like($log, qr/duration: .*plan:\n.*Query Text: .*kliv_mail\.wait/, '... plans');
my %flown = map { $_ => 1 } $log =~ /(CANARY-\w+-\d+)/g;
is(join(' ', sort keys %flown), '', '... and no password') or diag(join "\n", grep { /CANARY/ } split /\n/, $log);

done_testing();
