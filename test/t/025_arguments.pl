# Each argument of each public function with a megabyte in it, in databases of
# three encodings, under a statement_timeout of a second: it is taken or refused
# in time, what is said of it is short, and the server goes on.
use strict;
use warnings;
use KlivMail::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = KlivMail::Cluster->new('main', platform_url => 'smtp://127.0.0.1:9',
    conf => { 'kliv_mail.delivery' => 'hold', 'kliv_mail.connect_timeout' => '1s' }, extension => 0);

# They do what was asked for, whatever the length of an argument: start a command, wait.
my %left_out = map { $_ => 1 } qw(rotate_key);

# What a megabyte is, by kind of text, and the rest of a call that is right.
my %texts = (
    letters => q{repeat('x', 1000000)},
    wide    => q{repeat(convert_from('\xe38182', 'UTF8'), 330000)},
    lines   => q{repeat(E'a\n', 500000)},
    marks   => q{repeat('<', 1000000)},
    commas  => q{repeat('a@x.example,', 80000)},
    opened  => q{repeat('(', 1000000)});
my %right = (
    recipients => q{'a@x.example'}, subject => q{'s'}, body => q{'b'}, address => q{'a@x.example'}, list => q{'a@x.example'},
    filename => q{'a.txt'}, content => q{'x'}, message_id => '1', query => q{'SELECT 1'}, stage => q{'rcpt'}, reply => q{'550 x'},
    name => q{'x'}, recipient => q{'a@x.example'}, role => q{'pg_monitor'}, host => q{'127.0.0.1'}, test => 'false', token => q{'x'},
    scope => q{'all'}, send_at => 'now()', template => q{'x'}, source => q{'x'}, variables => q{'{}'});

for my $encoding (qw(UTF8 EUC_JP SQL_ASCII))
{
    my $name = lc $encoding;
    $node->sql("CREATE DATABASE $name TEMPLATE template0 ENCODING '$encoding' LOCALE 'C'");
    $node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => $name);

    # name, then each argument's name, type and whether it has a default
    my @functions = split /\n/, $node->sql(q{
        SELECT p.oid::regproc || '|' || (SELECT string_agg(concat_ws(' ', a.name, a.type::regtype::text), '|' ORDER BY a.n)
            FROM unnest(p.proargnames, p.proargtypes::oid[]) WITH ORDINALITY AS a (name, type, n) WHERE a.type IS NOT NULL)
        FROM pg_proc AS p
        WHERE p.pronamespace = 'kliv_mail'::regnamespace AND p.proname !~ '^_' AND p.prokind = 'f' AND p.pronargs > 0
        ORDER BY 1}, dbname => $name);
    ok(@functions > 20, scalar(@functions) . " functions in $encoding");

    # In the database itself, so that a megabyte is not sent: one row an attempt.
    $node->sql(q{
        CREATE TABLE tried (call text, kind text, state text, said integer, took interval);
        CREATE FUNCTION try(call text, kind text, value text) RETURNS void LANGUAGE plpgsql AS $$
        DECLARE
            message text; hint text; detail text; state text := ''; context text;
            begun timestamptz := clock_timestamp();
        BEGIN
            BEGIN
                EXECUTE call USING value;
            EXCEPTION WHEN OTHERS OR query_canceled THEN
                GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, hint = PG_EXCEPTION_HINT, detail = PG_EXCEPTION_DETAIL,
                    state = RETURNED_SQLSTATE;
            END;
            INSERT INTO tried VALUES (call, kind, state, octet_length(concat(message, hint, detail)), clock_timestamp() - begun);
        END $$}, dbname => $name);
    my @calls;
    for (@functions)
    {
        my ($function, @arguments) = split /\|/;
        (my $short = $function) =~ s/.*\.//;
        next if $left_out{$short};
        my @parsed = map { [ /^(\S+) (.*)$/ ] } @arguments;
        for my $tested (@parsed)
        {
            my $long =
                $tested->[1] eq 'text'      ? '$1'
              : $tested->[1] eq 'name'      ? undef
              : $tested->[1] eq 'text[]'    ? 'ARRAY[$1]'
              : $tested->[1] eq 'jsonb'     ? q{jsonb_build_object('x', $1)}
              : $tested->[1] eq 'bytea'     ? q{convert_to($1, 'SQL_ASCII')}
              : $tested->[1] eq 'jsonb[]'   ? q{ARRAY[jsonb_build_object('x', $1)]}
              : $tested->[1] eq 'kliv_mail.attachment[]' ? q{ARRAY[ROW($1, NULL, NULL, 'x')::kliv_mail.attachment]}
              :                               undef;
            next unless defined $long;
            my $list = join ', ', map {
                    $_->[0] eq $tested->[0]  ? "$_->[0] => $long"
                  : defined $right{ $_->[0] } ? "$_->[0] => $right{ $_->[0] }"
                  : ()
            } @parsed;
            push @calls, "SELECT * FROM $function($list)";
        }
    }
    my %kinds = %texts;
    delete $kinds{wide} if $encoding eq 'SQL_ASCII';
    my $sql = "SET client_min_messages = error;\n";
    for my $kind (sort keys %kinds)
    {
        for my $call (@calls)
        {
            # Each a statement of its own: the timeout is a statement's.
            $sql .= "BEGIN; SET LOCAL statement_timeout = '1s'; SELECT try(\$call\$$call\$call\$, '$kind', $kinds{$kind}); "
              . "SET LOCAL statement_timeout = 0; COMMIT;\n";
        }
    }
    my ($out, $err) = ('', '');
    $node->psql($name, $sql, stdout => \$out, stderr => \$err, on_error_stop => 0, on_error_die => 0);
    is(substr($err, 0, 2000), '', "$encoding: nothing but what was called took long");
    is($node->sql('SELECT count(*) FROM tried', dbname => $name), @calls * keys %kinds, "$encoding: every call came back");
    is($node->sql(q{SELECT string_agg(format('%s with %s: %s', call, kind, took), E'\n') FROM tried WHERE state = '57014' OR took > '2 s'},
            dbname => $name), '', "$encoding: each in its time");
    is($node->sql(q{SELECT string_agg(format('%s with %s: %s', call, kind, state), E'\n') FROM tried
                    WHERE state <> '' AND state !~ '^(22|54|42|55|0A|KM|53400|23505)'}, dbname => $name), '', "$encoding: refused for what they are");
    is($node->sql(q{SELECT string_agg(format('%s with %s: %s', call, kind, said), E'\n') FROM tried
                    WHERE said > 5000 AND NOT (state = '42601' AND call ~ 'csv|html_table')},
            dbname => $name), '', "$encoding: what is said of them is short");
    note($node->sql(q{SELECT max(took), max(said), count(*) FILTER (WHERE state = ''), count(*) FROM tried}, dbname => $name));
}
ok($node->sql('SELECT pg_postmaster_start_time() IS NOT NULL') eq 't', 'the server goes on');
$node->stop;

done_testing();
