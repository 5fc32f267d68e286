# production.pl ROOT: the README's way into production, every line of it as it is
# written, and then doc/production.md's, in the bare Debian in the folder ROOT
# (test/chroot, TARGETS=production).  No statement fails, and the first mail is
# accepted within five minutes.  As root.
#
# What stands in for the world: smtp.example.com is a server on an address of
# loopback, whose authority nobody knows until the page says how; git clones from
# this tree.
#
# Copyright (c) 2026, the kliv_mail developers
use strict;
use warnings;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Copy qw(copy);
use File::Path qw(make_path remove_tree);
use File::Temp qw(tempdir);
use lib abs_path(dirname(__FILE__) . '/perl');
use Test::More;
use Time::HiRes qw(time);
use KlivMail::RawMessages;
use KlivMail::SmtpServer;
use KlivMail::Tls;

my $root = shift // die "usage: production.pl ROOT\n";
my $top = abs_path(dirname(__FILE__) . '/..');
my $limit = 300;

# The clock judges where the machine has nothing else to do when it begins, and only tells otherwise.
my ($load, $processors) = (slurp('/proc/loadavg') =~ /^(\S+)/, scalar(() = slurp('/proc/cpuinfo') =~ /^processor/mg));
die "$root is not bare: PostgreSQL is there\n" if -e "$root/usr/lib/postgresql";

sub slurp { my ($path) = @_; open my $file, '<', $path or die "$path: $!"; local $/; return <$file>; }
sub spew { my ($path, $text) = @_; open my $file, '>', $path or die "$path: $!"; print $file $text; close $file or die $!; return; }
sub blocks { my ($path, $language) = @_; return slurp($path) =~ /^```$language\n(.*?)^```$/msg; }

# Commands in the chroot, with no environment of ours; what they printed.  V stays known, as in one shell.
sub inside
{
    my ($what, $script) = @_;
    spew("$root/root/step.sh", "set -e\ncd /usr/local/src\n[ ! -d kliv_mail ] || cd kliv_mail\nV=\$(ls /usr/lib/postgresql 2>/dev/null | sort -V | tail -n 1 || true)\n$script");
    my $out = qx{chroot '$root' env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb DEBIAN_FRONTEND=noninteractive bash /root/step.sh 2>&1 </dev/null};
    my $status = $? >> 8;
    ok($status == 0 && $out !~ /^(?:psql:.*)?(?:ERROR|FATAL):|^pg_restore: error/m, $what) or diag(substr($out, -3000) . "\nstatus $status");
    return $out;
}
sub sql { my ($what, $dbname, $sql) = @_; spew("$root/root/step.sql", $sql); return inside($what, "su postgres -c 'psql $dbname' < /root/step.sql\n"); }

# ---- the world ----

remove_tree("$root/root/kliv_mail");
make_path("$root/srv/kliv_mail.git");
system("tar -C '$top' -cf - --exclude=./.git --exclude='*.o' --exclude='*.so' --exclude=node_modules . | tar -C '$root/srv/kliv_mail.git' -xf - --no-same-owner") == 0 or die 'tar';
system("cd '$root/srv/kliv_mail.git' && git -c init.defaultBranch=main init -q && git add -A && git -c user.name=test -c user.email=test\@example.com commit -q -m tree") == 0 or die 'git';
spew("$root/root/.gitconfig", "[url \"file:///srv/\"]\n\tinsteadOf = https://git.example.com/\n[safe]\n\tdirectory = *\n");

my $folder = tempdir(CLEANUP => 1);
my $tls = KlivMail::Tls->new("$folder/tls");
my ($certificate, $key) = $tls->certificate('server', hosts => ['smtp.example.com']);
my $address = '127.0.' . (1 + $$ % 250) . '.' . (1 + $$ / 250 % 250 | 0);
my $smtp = KlivMail::SmtpServer->start(
    address => $address, starttls => 1, starttls_port => 587, cert => $certificate, key => $key, auth => ['app@example.com:correct horse battery']);
spew("$root/etc/hosts", "127.0.0.1 localhost\n$address smtp.example.com\n");

# ---- README.md ----

my $begun = time;
my ($install) = blocks("$top/README.md", 'sh');
ok($install =~ s/^su postgres -c 'psql shop'\n\z//m, 'the last command opens psql');
inside('README.md: install', $install);
copy($tls->ca_file, "$root/usr/local/src/kliv_mail/ca.crt") or die $!;
my ($own, $move, $backup) = blocks("$top/doc/production.md", 'sh');
inside('doc/production.md: a server of your own', $own);
my ($first, $signup) = grep { !/provider =>/ } blocks("$top/README.md", 'sql');
like(sql('README.md: the first statements', 'shop', $first), qr/^ sent *\n/m, '... and the mail is sent');
my $seconds = time - $begun;
my ($mail) = $smtp->accepted('ana@example.com');
ok($mail, 'the server has it');
my $says = sprintf 'from a bare machine to the first accepted mail: %.0f s (load before: %s)', $seconds, $load;
diag($says);
SKIP:
{
    skip "$says: a busy machine's clock does not count", 1 if $load > $processors;
    cmp_ok($seconds, '<', $limit, $says);
}
sql('README.md: a mail for every sign-up', 'shop', "$signup\nSET ROLE web;\nINSERT INTO users (name, email) VALUES ('Taro', 'taro\@example.jp');\n");
ok($smtp->wait_for(sub { $smtp->accepted('taro@example.jp') }), '... arrives');

# ---- doc/production.md ----

# ca_file counts beside the system's authorities.
sub settings { return join '', map { "su postgres -c \"psql -c \\\"ALTER SYSTEM SET $_\\\" -c 'SELECT pg_reload_conf()'\"\n" } @_; }
inside('another authority in ca_file', settings(q{kliv_mail.ca_file = '/usr/share/ca-certificates/mozilla/ISRG_Root_X1.crt'}));
like(sql('... and a test', 'shop', 'SELECT bool_and(ok) AS all_well FROM kliv_mail.test_smtp();'), qr/^ t *\n/m, '... leaves those of the machine');
inside('the key', $move);
like(sql('... in its new place', 'shop', 'SELECT key_state FROM kliv_mail.status; SELECT bool_and(ok) FROM kliv_mail.test_smtp();'), qr/^ ok *\n.*^ t *\n/ms, '... opens the password');
inside('backup and restore', $backup);
sql('... and the copy sends', 'shop_restored', q{SELECT kliv_mail.send('restored@example.com', 'x', 'x');});
ok($smtp->wait_for(sub { $smtp->accepted('restored@example.com') }), '... by the password that was restored');
inside('a key of root\'s that the group may read', 'chown root:postgres /etc/postgresql/kliv_mail.key && chmod 0640 /etc/postgresql/kliv_mail.key');
like(sql('... and opens the password', 'shop', 'SELECT key_state FROM kliv_mail.status; SELECT bool_and(ok) FROM kliv_mail.test_smtp();'), qr/^ ok *\n.*^ t *\n/ms, '... as before');
my ($test) = grep { /preview/ } blocks("$top/doc/production.md", 'sql');
like(sql('a test that asserts on mail', 'shop', $test), qr/^ t *\n/m, '... sees it');
KlivMail::RawMessages::gone(qr/./, 'in the chroot');
done_testing();

# Nothing of it outlives the test.
END { my $status = $?; system("chroot '$root' service postgresql stop >/dev/null 2>&1") if $root && -e "$root/usr/sbin/service"; $? = $status; }
