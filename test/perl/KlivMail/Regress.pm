# Regress.pm: run pg_regress or pg_isolation_regress on a throw-away server and
# count each of its tests as one of ours, so that prove's summary is of all.
#
# Copyright (c) 2026, the kliv_mail developers
package KlivMail::Regress;

use strict;
use warnings;
use IPC::Run ();
use KlivMail::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# kind: the folder below test/.
sub run
{
    my ($kind, $program) = @_;
    my $suffix = $kind eq 'sql' ? 'sql' : 'spec';
    my @names = map { m{([^/]+)\.$suffix$} } sort glob("test/$kind/*.$suffix");
    my $node = KlivMail::Cluster->new($kind, extension => 0);
    my ($output, %result) = ('');

    unlink 'regression.diffs';
    # Without its expected output a test fails; pg_regress would end there.
    for my $missing (grep { !-e "expected/$_.out" } @names)
    {
        open my $file, '>', "expected/$missing.out" or die "could not write expected/$missing.out: $!";
    }
    IPC::Run::run(
        [
            $program,
            '--inputdir=test', '--outputdir=.', '--bindir=',
            '--load-extension=pgcrypto', '--load-extension=kliv_mail',
            '--host=' . $node->host, '--port=' . $node->port, @names
        ],
        '>', \$output, '2>&1');
    my $status = $? >> 8;

    for (split /\n/, $output)
    {
        # PostgreSQL 15, and 16 and newer, which print TAP
        $result{$1} = $2 eq 'ok' if /^test (\S+)\s+\.\.\. (ok|FAILED)/;
        $result{$2} = !$1 if /^(not )?ok \d+\s+[-+] (\S+)/;
    }
    plan tests => @names + 1;
    ok($result{$_}, "$kind/$_") for @names;
    is($status, 0, 'exit status of ' . ($program =~ s{.*/}{}r)) or diag($output);
    diag(substr(slurp_file('regression.diffs'), 0, 20_000)) if -s 'regression.diffs';
    $node->stop;
    return;
}

1;
