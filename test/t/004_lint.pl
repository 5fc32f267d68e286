# test/lint finds nothing in this tree, and finds each fault that is planted in a
# copy of it: a check that cannot fail is none.
use strict;
use warnings;
use IPC::Run ();
use KlivMail::Server;
use PostgreSQL::Test::Utils;
use Test::More;

my $copy = PostgreSQL::Test::Utils::tempdir() . '/tree';
mkdir $copy or die "could not make $copy: $!";
system("cp -R src sql test $copy") == 0 or die "could not copy the tree";

# lint_of FOLDER, ARGUMENTS: what it prints there, and whether it was content.
sub lint_of
{
    my ($folder, @arguments) = @_;
    my $output = '';
    my $content = IPC::Run::run([ 'perl', "$folder/test/lint", @arguments ], '>', \$output, '2>&1');
    return ($output, $content);
}

# planted NAME, FILE, CHANGE, FINDING: the file's text goes through CHANGE (in
# $_; a file that is not there is made), and lint has that finding.
sub planted
{
    my ($name, $file, $change, $finding) = @_;
    my $path = "$copy/$file";
    my $before = -e $path ? slurp_file($path) : undef;

    local $_ = $before // '';
    $change->();
    die "$name: nothing was planted" if $_ eq ($before // '');
    KlivMail::Server::write_file($path, $_);
    my ($output) = lint_of($copy, '--sources');
    like($output, $finding, $name);
    if (defined $before) { KlivMail::Server::write_file($path, $before) }
    else                 { unlink $path }
    return;
}

# A line of code at the end of a file's includes.
sub included
{
    my ($line) = @_;
    return sub { s/((?:^#include [^\n]*\n\s*)+)/$1#include $line\n\n/m };
}

sub banner
{
    my ($name) = @_;
    return "/*" . '-' x 73 . "\n *\n * $name\n *\t\tPlanted.\n *\n * Copyright (c) 2026, the kliv_mail developers\n *\n *"
      . '-' x 73 . "\n */\n";
}

my ($output, $content) = lint_of('.');
ok($content, 'lint finds nothing in the tree') or diag($output);

planted('an include of a folder below', 'src/base/encoding.c', included('"db/outbox.h"'),
    qr{^src/base/encoding\.c:\d+: includes db/outbox\.h, of a folder below its own$}m);
planted('a header includes a folder below', 'src/smtp/session.h', included('"net/connection.h"'),
    qr{^src/smtp/session\.h:\d+: includes net/connection\.h, of a folder below its own$}m);
planted('an include without its folder', 'src/base/encoding.c', included('"error.h"'),
    qr{^src/base/encoding\.c:\d+: error\.h is written with its folder$}m);
KlivMail::Server::write_file("$copy/src/db/round.h", banner('round.h') . "#include \"base/kliv_mail.h\"\n#include \"db/owner_call.h\"\n");
KlivMail::Server::write_file("$copy/src/db/round.c", banner('round.c') . "#include \"db/round.h\"\n");
planted('a circle', 'src/db/owner_call.c', included('"db/round.h"'),
    qr{a circle: db/\w+ -> db/\w+ -> db/\w+$}m);
unlink "$copy/src/db/round.h", "$copy/src/db/round.c";
planted('a circle of calls without one of includes', 'src/worker/sender_pools.c',
    sub { $_ .= "\nstatic void\nplanted(KlmPool *pool)\n{\n\tklm_feed(pool);\n}\n" },
    qr{^src/worker/sender_pools\.c:1: a circle of calls: calls klm_feed of worker/sender_links\.c, which calls klm_\w+ of worker/sender_pools\.c$}m);
mkdir "$copy/src/odd" or die "could not make a folder: $!";
planted('a folder that is not in the list', 'src/odd/odd.c', sub { $_ = banner('odd.c') },
    qr{^src/odd/odd\.c:1: lies in no folder of test/lint$}m);
planted('a pure file that raises', 'src/message/address.c', sub { $_ .= "\nstatic void\nplanted(void)\n{\n\tereport(ERROR, (errmsg(\"x\")));\n}\n" },
    qr{^src/message/address\.c:\d+: is pure, and has ereport}m);
planted('a pure file that includes the server', 'src/smtp/session.c', included('"executor/spi.h"'),
    qr{^src/smtp/session\.c:\d+: is pure, and includes the server's executor/spi\.h$}m);
planted('a pure file that includes what raises', 'src/smtp/session.c', included('"base/encoding.h"'),
    qr{^src/smtp/session\.c:\d+: is pure, and base/encoding\.h is not$}m);
for (['<curl/curl.h>', 'db/outbox.c'], ['<sodium.h>', 'net/connection.c'], ['<idn2.h>', 'smtp/providers.c'],
    ['<md4c.h>', 'base/encoding.c'], ['<openssl/evp.h>', 'secret/seal.c'])
{
    my ($header, $file) = @$_;
    planted("$header in $file", "src/$file", included($header), qr{^src/\Q$file\E:\d+: \Q$header\E is not for this file$}m);
}
planted('an export that nobody uses', 'src/base/error.h', sub { s/(?=#endif[^\n]*\n\z)/extern PGDLLEXPORT int klm_planted(void);\n/ },
    qr{^src/base/error\.h:\d+: exports klm_planted, which no other file uses$}m);
planted('a shared name without klm_', 'src/base/error.c', sub { $_ .= "\nint\nplanted(void)\n{\n\treturn 0;\n}\n" },
    qr{^src/base/error\.c:\d+: exports planted: klm_}m);
planted('a prototype in a .c file', 'src/base/error.c', sub { $_ .= "\nextern int klm_planted(void);\n" },
    qr{^src/base/error\.c:\d+: a prototype belongs in the header}m);
planted('an entry point that SQL does not know', 'src/functions/send.c', sub { $_ .= "\nPG_FUNCTION_INFO_V1(kliv_mail_planted);\n" },
    qr{^src/functions/send\.c:1: has the entry point kliv_mail_planted, which no SQL names$}m);
planted('a plan that is compiled for want of another', 'sql/install/43_claim.sql', sub { s/ SET jit = off// },
    qr{^sql/install/43_claim\.sql:\d+: kliv_mail\._anything_waits switches enable_seqscan off, and not jit$}m);
my $body = "\tint\t\t\ti = 0;\n\n" . "\ti++;\n" x 117;
planted('a function of 121 lines', 'src/base/error.c', sub { $_ .= "\nstatic int\nplanted(void)\n{\n$body}\n" },
    qr{^src/base/error\.c:\d+: planted\(\) has 122 lines, over 120}m);
planted('a file of 1,301 lines', 'src/base/error.c', sub { $_ .= "/* line */\n" x 1300 },
    qr{^src/base/error\.c:1: \d+ lines, over 1300}m);
planted('a SQL file of 301 lines', 'sql/install/00_header.sql', sub { $_ .= "-- line\n" x 300 },
    qr{^sql/install/00_header\.sql:1: \d+ lines, over 300}m);
planted('lower() of the locale', 'sql/install/00_header.sql', sub { $_ .= "SELECT lower(trim('X'));\n" },
    qr{^sql/install/00_header\.sql:\d+: lower\(\) without COLLATE "C"$}m);
planted('a backslash of the caller\'s setting', 'sql/install/00_header.sql',
    sub { $_ .= "CREATE FUNCTION kliv_mail._x() AS \$\$ SELECT 'x' ~ '^\\\\d' \$\$;\n" },
    qr{^sql/install/00_header\.sql:\d+: a backslash in a literal: write E'...'$}m);
planted('ILIKE of the locale', 'sql/install/00_header.sql', sub { $_ .= "SELECT 'x' ILIKE 'X';\n" },
    qr{^sql/install/00_header\.sql:\d+: ILIKE or ~\* without COLLATE "C"$}m);
planted('OR REPLACE', 'sql/install/00_header.sql', sub { $_ .= "CREATE OR REPLACE VIEW kliv_mail.planted AS SELECT 1;\n" },
    qr{OR REPLACE adopts}m);
planted('a function without search_path', 'sql/install/00_header.sql',
    sub { $_ .= "CREATE FUNCTION kliv_mail._planted() RETURNS int LANGUAGE sql AS 'SELECT 1';\n" },
    qr{kliv_mail\._planted has no SET search_path}m);
planted('a branch on the version', 'src/base/error.c', sub { $_ .= "\n#if PG_VERSION_NUM >= 170000\n#endif\n" },
    qr{^src/base/error\.c:\d+: a branch on a version belongs in compat\.h$}m);
planted('an elog() that is not listed', 'src/base/encoding.c', sub { $_ .= "\nstatic void\nplanted(void)\n{\n\telog(ERROR, \"planted\");\n}\n" },
    qr{^src/base/encoding\.c:\d+: elog\(\) gives XX000}m);

# The preloaded library in place of the second one, which then needs nothing of it.
system("cp kliv_mail.so $copy/ && cp kliv_mail.so $copy/kliv_mail_net.so") == 0 or die "could not copy the libraries";
($output) = lint_of($copy);
like($output, qr/^kliv_mail\.so:1: exports klm_now, which nothing outside of it needs: PGDLLEXPORT in vain$/m,
    'a symbol that is exported in vain');
unlike($output, qr/exports klm_launcher_main, which/, 'the main function of a process is not');

# A long function that says why is nobody's fault.
my $path = "$copy/src/base/error.c";
KlivMail::Server::write_file($path, slurp_file($path) . "\n/* long: a table */\nstatic int\nplanted(void)\n{\n$body}\n");
($output) = lint_of($copy, '--sources');
unlike($output, qr/planted\(\) has/, 'a long function may say why');

# A warning of a compiler that we do not know must not stop a user's build; to
# the tests' it is an error.  (A sanitizer's build warns where nothing is wrong.)
sub compilation
{
    my (@variables) = @_;
    my $output = '';
    IPC::Run::run(
        [ 'make', '-n', "PG_CONFIG=$ENV{KLIV_MAIL_PG_CONFIG}", @variables, '-W', 'src/base/error.c', 'src/base/error.o' ],
        '>', \$output, '2>&1') or die "make: $output";
    return $output;
}
unlike(compilation('COPT='), qr/-Werror(?!=)/, 'a build of the tree as it comes has no -Werror');
like(compilation('COPT=', 'WERROR=1'), qr/-Werror /, 'WERROR=1 has it');
unlike(compilation('COPT=-fsanitize=undefined', 'WERROR=1'), qr/-Werror(?!=)/, 'a sanitizer takes it away');
unlike(slurp_file('demo/run') . slurp_file('bench/run'), qr/WERROR/, 'demo and bench are built as a user does');
like(slurp_file("test/$_"), qr/^[^#\n]*\bWERROR=1\b/m, "test/$_ builds with WERROR=1") for qw(run compilers);

done_testing();
