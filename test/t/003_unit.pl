# The pure modules without a server: each driver of test/unit is compiled by
# the command in its head comment (a line that begins with cc and those indented
# deeper below it) and run; it says what went wrong and exits with another status
# than 0.
use strict;
use warnings;
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my @drivers = sort glob('test/unit/*.c');
plan tests => 2 * @drivers || 1;
ok(0, 'there are drivers in test/unit') unless @drivers;

my @runner = $ENV{VALGRIND} ? qw(valgrind --quiet --error-exitcode=1 --leak-check=no) : ();
$ENV{UNMEASURED} = 1 if @runner || ($ENV{COPT} // '') =~ /-fsanitize/;
my $folder = PostgreSQL::Test::Utils::tempdir();
for my $driver (@drivers)
{
    my ($name) = $driver =~ m{([^/]+)\.c$};
    my ($comment) = slurp_file($driver) =~ m{\A/\*(.*?)\*/}s;
    my ($command) = $comment =~ /^ \*\t(cc\b[^\n]*(?:\n \*\t\t[^\n]*)*)/m;
    $command =~ s/\n \*\t\t/ /g if $command;
    $command =~ s/^cc/cc $ENV{COPT}/ if $command && $ENV{COPT};
    my ($output, $compiled) = ('', 0);

    if ($command && $command =~ s/(?<=-o )(\S+)/$folder\/$name/)
    {
        $compiled = IPC::Run::run([ 'sh', '-c', $command ], '>', \$output, '2>&1');
    }
    ok($compiled, "$driver compiles") or diag($command // 'no command in its head', "\n$output");
  SKIP:
    {
        skip "$driver did not compile", 1 unless $compiled;
        ok(IPC::Run::run([ @runner, "$folder/$name" ], '>', \$output, '2>&1'), "$driver runs")
          or diag($output);
    }
}
