# The launcher on a primary, and a process of its own on a standby, warn
# of keys that databases need and the key file lacks: a database's label
# names them, in the transaction that changes what is stored.
use strict;
use warnings;
use File::Copy ();
use KlivMail::Cluster;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $file = "$folder/kliv_mail.key";
my $node = KlivMail::Cluster->new('main', streaming => 1, extension => 0, conf => { 'kliv_mail.key_file' => $file });
$node->sql('CREATE DATABASE shop');
$node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => 'shop');

my $label = q{SELECT label FROM pg_seclabels WHERE objtype = 'database' AND objname = 'shop' AND provider = 'kliv_mail'};
sub changes
{
    my ($sql) = @_;
    return $node->sql("$sql;\n$label", dbname => 'shop') =~ s/.*\n//sr;
}
my $configure = q{SELECT count(*) FROM kliv_mail.configure_smtp(host => 'smtp.example.com', username => 'app@example.com', password => 'of the app', test => false};

# ---- the label ----

is($node->sql($label), 'mail', 'without passwords: no keys');
like(changes("$configure)"), qr/^mail keys=[0-9a-f]{8}$/, 'a password: the key that it is encrypted with');
my ($first) = $node->sql($label) =~ /keys=(\w+)/;
is($node->sql('SELECT key_fingerprint FROM kliv_mail.status', dbname => 'shop'), $first, '... as status calls it');
is(changes(q{SELECT count(*) FROM kliv_mail.configure_smtp(account => 'relay', host => 'relay.example.com', username => '', port => 25, encryption => 'none', from_address => 'a@example.com', test => false)}),
    "mail keys=$first", 'an account without one changes nothing');
like(changes(q{BEGIN; SELECT kliv_mail.rotate_key(); ROLLBACK}), qr/^mail keys=$first$/, 'a rotation that is rolled back leaves it');
like(changes(q{SELECT kliv_mail.rotate_key()}), qr/^mail keys=(?!$first)[0-9a-f]{8}$/, 'one that commits does not');
my ($key) = $node->sql($label) =~ /keys=(\w+)/;
is(changes(q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://example.com/u')}), "mail keys=$key,root", 'links need the root');
is(changes(q{SELECT count(*) FROM kliv_mail.reset_smtp()}), 'mail keys=root', 'reset_smtp() forgets the password, and so the key');
is(changes(q{SELECT kliv_mail.set_brand(unsubscribe_url => '')}), 'mail', 'and nothing is left');
changes("$configure, dry_run => true)");
is($node->sql($label), 'mail', 'a dry run writes none');
is(changes("$configure)"), "mail keys=$key", 'saved again');

for (
    [ 'mail', '' ], [ 'mail keys=0123abcd,root', '' ], [ 'mail keys=', '42602' ], [ 'mail keys=a b', '42602' ], [ 'other', '42602' ])
{
    is($node->try("BEGIN; SECURITY LABEL FOR kliv_mail ON DATABASE shop IS '$_->[0]'; ROLLBACK")->{state}, $_->[1], "SECURITY LABEL '$_->[0]': " . ($_->[1] || 'taken'));
}

# By its owner: nothing that other databases, or the log of the server, go by.
$node->sql('CREATE ROLE keeper; ALTER DATABASE shop OWNER TO keeper');
for ([ "'mail'", '' ], [ 'NULL', '' ], [ "'mail keys=deadbeef'", '42501' ])
{
    is($node->try("BEGIN; SET LOCAL ROLE keeper; SECURITY LABEL FOR kliv_mail ON DATABASE shop IS $_->[0]; ROLLBACK")->{state}, $_->[1], "SECURITY LABEL $_->[0] by the owner: " . ($_->[1] || 'taken'));
}
is($node->sql($label), "mail keys=$key", '... and it is what it was');
my ($dump) = run_command([ 'pg_dump', '--create', '--schema-only', '-d', $node->connstr('shop') ]);
like($dump, qr/SECURITY LABEL FOR kliv_mail ON DATABASE shop IS 'mail keys=$key'/, 'pg_dump --create takes it along');

# What README says of pg_restore --create, and so of pg_upgrade, which uses it: the label needs the
# library in the new server, and nothing else does.
{
    my $restores = sub { return run_command([ 'pg_restore', '--create', '--exit-on-error', '-d', $node->connstr('postgres'), "$folder/shop.dump" ]) };
    run_command([ 'pg_dump', '-Fc', '-d', $node->connstr('shop'), '-f', "$folder/shop.dump" ]);
    $node->sql('ALTER DATABASE shop RENAME TO original');
    $node->configure(shared_preload_libraries => '');
    $node->restart;
    like(($restores->())[1], qr/security label provider "kliv_mail" is not loaded/, 'without the library its label cannot be restored');
    $node->sql('DROP DATABASE IF EXISTS shop');
    $node->configure(shared_preload_libraries => 'kliv_mail');
    $node->restart;
    is(($restores->())[1], '', 'with it pg_restore --create has nothing to say');
    is($node->sql($label), "mail keys=$key", '... and the label is there');
    is($node->sql(q{SELECT held ~ 'copy' FROM kliv_mail.status}, dbname => 'shop'), 't', '... of a copy, which sends nothing');
    $node->sql('DROP DATABASE shop');
    $node->sql('ALTER DATABASE original RENAME TO shop');
}

# ---- a primary ----

sub logged { my ($server, $from) = @_; return substr(slurp_file($server->logfile), $from); }
sub size { return -s $_[0]->logfile; }
my $warning = qr/WARNING:  key "$key" of database "shop" is not in kliv_mail's key file "\Q$file\E"/;

sub reloads
{
    my ($change, $name, $expected) = @_;
    my $from = size($node);
    $change->();
    # The launcher's word on a moved clock comes after: then it has looked.
    $node->reconfigure('kliv_mail.test_clock_offset' => int(1 + rand 1e6) . ' ms');
    $node->wait_for('the launcher has reloaded', sub { logged($node, $from) =~ /clock of kliv_mail is moved/ });
    my $found = () = logged($node, $from) =~ /$warning/g;
    is($found, $expected, $name);
    return;
}
my $good = slurp_file($file);
sub put { my ($text) = @_; unlink $file; append_to_file($file, $text); chmod 0600, $file; return; }
reloads(sub { }, 'with the key no warning', 0);
reloads(sub { unlink $file }, 'without the file one, at reload', 1);
reloads(sub { put($good =~ s/^kliv_mail key $key .*\n//mr) }, 'with an older ring too', 1);
reloads(sub { put($good =~ s/^(kliv_mail key) \w+ /$1 /mgr) }, 'keys without ids cannot be compared', 0);
put($good);
unlink $file;
my $from = size($node);
$node->restart;
$node->wait_for('the launcher warns', sub { logged($node, $from) =~ $warning });
pass('at start the launcher warns');
like(logged($node, $from), qr/DETAIL:  could not open the file: No such file/, '... with what is wrong');
like(logged($node, $from), qr/HINT:  Mail that needs it will wait/, '... and what to do');
unlike(logged($node, 0), qr/[0-9a-f]{64}/, 'no key is in the log');

# ---- a standby ----

put($good);
$node->backup('base');
my $standby = bless PostgreSQL::Test::Cluster->new('standby'), 'KlivMail::Cluster';
$standby->init_from_backup($node, 'base', has_streaming => 1);
my $there = "$folder/standby.key";
$standby->configure('kliv_mail.key_file' => $there);
$standby->start;
$warning = qr/WARNING:  key "$key" of database "shop" is not in kliv_mail's key file "\Q$there\E"/;
$standby->wait_for('the standby warns', sub { logged($standby, 0) =~ $warning });
pass('a standby warns at start of the key that was not brought along');
is($standby->sql(q{SELECT string_agg(DISTINCT backend_type, ',') FROM pg_stat_activity WHERE backend_type LIKE 'kliv_mail%'}), 'kliv_mail key check',
    '... by the only process of ours there');
my $check = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'kliv_mail key check'};
my $pid = $standby->sql($check);
$from = size($standby);
is($standby->sql("SELECT pg_cancel_backend($pid)"), 't', '... which gets a cancel, though it has no query');
$standby->reload;
$standby->wait_for('it looks again', sub { logged($standby, $from) =~ $warning });
is($standby->sql($check), $pid, '... and goes on');
is($standby->try(q{SELECT kliv_mail.send('a@x.example', 's', 'b')}, dbname => 'shop')->{state}, '25006', 'B052: nothing is sent there');
like($standby->sql(q{SELECT problem FROM kliv_mail.next_step()}, dbname => 'shop'), qr/^this server is a standby/, '... and next_step() says why');
File::Copy::copy($file, $there);
chmod 0600, $there;
$from = size($standby);
$standby->restart;
$standby->wait_until('SELECT pg_is_in_recovery()');
$standby->promote;
$standby->wait_until(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'kliv_mail launcher'});
$standby->wait_until(q{SELECT key_state = 'ok' FROM kliv_mail.status}, dbname => 'shop');
unlike(logged($standby, $from), $warning, 'with the key, neither it nor the promoted server does');
$_->stop for $standby, $node;

done_testing();
