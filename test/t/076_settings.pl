# Settings cannot lie: what the sender has to have is refused from a session and
# for a role, and a list of hosts that could name nothing is refused where it is set.
use strict;
use warnings;
use KlivMail::Cluster;
use Test::More;

my $node = KlivMail::Cluster->new('main', platform_url => 'smtp://smtp.platform.example:25');
my %value = (bounce_domain => 'bounce.example.com', delivery => 'hold', redirect_to => 'dev@example.com', quota_timezone => 'Asia/Tokyo', test_clock_offset => '1 day');
$node->sql('CREATE ROLE app LOGIN');
for my $name (sort keys %value)
{
    my $setting = "kliv_mail.$name";
    for my $sql ("SET $setting = '$value{$name}'", "BEGIN; SET LOCAL $setting = '$value{$name}'", "SELECT set_config('$setting', '$value{$name}', false)",
        "UPDATE pg_settings SET setting = '$value{$name}' WHERE name = '$setting'",
        "ALTER ROLE app SET $setting = '$value{$name}'", "ALTER ROLE app IN DATABASE postgres SET $setting = '$value{$name}'",
        "ALTER ROLE app SET $setting FROM CURRENT")
    {
        my $result = $node->try($sql);
        is($result->{state}, '55P02', $sql);
        like($result->{hint}, qr/ALTER DATABASE \.\.\. SET \Q$setting\E/, '... and the hint says how');
    }
    {
        local $ENV{PGOPTIONS} = "-c $setting=$value{$name}";
        my ($out, $err);
        isnt($node->psql('postgres', 'SELECT 1', stdout => \$out, stderr => \$err), 0, "PGOPTIONS: $setting");
        like($err, qr/\Q$setting\E can be set neither in a session nor for a role/, '... and says why');
    }
    is($node->try("ALTER ROLE app RESET $setting")->{state}, '', '... what an older version let in can be taken back');
    is($node->try("ALTER DATABASE postgres SET $setting = '$value{$name}'")->{state}, '', 'a database may');
    is($node->sql("SHOW $setting"), $value{$name}, '... and has it');
    is($node->try("RESET $setting")->{state}, '', '... RESET in a session changes nothing');
    $node->sql("ALTER DATABASE postgres RESET $setting; ALTER ROLE ALL SET $setting = '$value{$name}'");
    is($node->sql("SHOW $setting"), $value{$name}, 'so may all roles together, the sender\'s among them');
    $node->sql("ALTER ROLE ALL RESET $setting");
}
# A role that has one from before: its sessions begin, and it does nothing.
$node->sql(q{INSERT INTO pg_db_role_setting VALUES (0, 'app'::regrole, '{kliv_mail.delivery=hold}')});
my ($out, $err);
is($node->psql('postgres', 'SHOW kliv_mail.delivery', extra_params => [ '-U', 'app' ], stdout => \$out, stderr => \$err), 0, 'a role that has one from before may connect');
is($out, 'on', '... and it does nothing');
like($err, qr/can be set neither/, '... and says so');

# Whatever else senders obey is the configuration file's: no session sets it.  (Both that
# one may set are for itself: what it writes into the log, and a test's own clock.)
is($node->sql(q{SELECT string_agg(name, ' ' ORDER BY name) FROM pg_settings WHERE name LIKE 'kliv\_mail.%' AND context NOT IN ('sighup', 'postmaster')}),
    join(' ', map { "kliv_mail.$_" } sort keys %value, 'mask_secrets'), 'what is not the file\'s');
for my $name (split /\n/, $node->sql(q{SELECT name FROM pg_settings WHERE name LIKE 'kliv\_mail.%' AND name <> 'kliv_mail.mask_secrets'}))
{
    my $was = $node->sql("SHOW $name");
    my $other = $value{ $name =~ s/^kliv_mail\.//r } // ($was eq 'on' ? 'off' : $was eq 'off' ? 'on' : $was eq 'retry' ? 'hold' : $was =~ /^\d/ ? 17 : 'x');
    is($node->try("SET $name = '$other'")->{state}, '55P02', "no session sets $name");
}

# A session that began before a change has what the senders have, from its next statement on.
my $long = $node->session;
my $statement = 'PREPARE seen AS SELECT delivery, test_clock_offset FROM kliv_mail.status';
$long->query($statement);
sub sees { my ($what, $expected, $name) = @_; is($long->query($what), $expected, $name); return; }
sees('EXECUTE seen', 'on|', 'a session');
$node->sql("ALTER DATABASE postgres SET kliv_mail.delivery = hold");
sees('EXECUTE seen', 'hold|', '... has what another one sets for the database');
sees('SHOW kliv_mail.delivery', 'hold', '... SHOW tells it');
sees(q{SELECT code FROM kliv_mail.next_step()}, 'delivery_hold', '... next_step() does');
like($long->query(q{SELECT kliv_mail.cancel(kliv_mail.send('a@example.com', 'x', 'x'))}), qr/the mail waits: .*kliv_mail\.delivery is hold/, '... and the NOTICE of send()');
$long->query('BEGIN');
$long->query('ALTER DATABASE postgres RESET kliv_mail.delivery');
$long->query('ROLLBACK');
sees('EXECUTE seen', 'hold|', '... what is rolled back changes nothing');
$long->query('ALTER DATABASE postgres RESET kliv_mail.delivery');
sees('EXECUTE seen', 'on|', '... nor has it any more what it takes back itself');
$node->sql(q{BEGIN; ALTER DATABASE postgres SET kliv_mail.delivery = hold; PREPARE TRANSACTION 'settings'});
sees('EXECUTE seen', 'on|', '... what is prepared changes nothing');
$node->sql(q{COMMIT PREPARED 'settings'});
sees('EXECUTE seen', 'hold|', '... before it is committed');
$long->query('ALTER DATABASE postgres RESET kliv_mail.delivery');
for my $name (sort keys %value)
{
    my $was = $node->sql("SHOW kliv_mail.$name");
    for my $whose ('DATABASE postgres', 'ROLE ALL', 'ROLE ALL IN DATABASE postgres')
    {
        $node->sql("ALTER $whose SET kliv_mail.$name = '$value{$name}'");
        sees("SHOW kliv_mail.$name", $value{$name}, "ALTER $whose: $name");
        $node->sql("ALTER $whose RESET ALL");
        sees("SHOW kliv_mail.$name", $was, '... and RESET ALL');
    }
}
$node->sql('ALTER DATABASE postgres SET kliv_mail.delivery = sandbox');
sees('SHOW kliv_mail.delivery', 'sandbox', 'above the file');
$node->sql("ALTER SYSTEM SET kliv_mail.delivery = 'hold'");
$node->sql('SELECT pg_reload_conf()');
$node->sql('ALTER DATABASE postgres RESET kliv_mail.delivery');
ok($node->wait_for('hold', sub { $long->query('SHOW kliv_mail.delivery') eq 'hold' }), '... is what the file has, once the database has nothing');
$node->sql('ALTER SYSTEM RESET kliv_mail.delivery');
$node->sql('SELECT pg_reload_conf()');
ok($node->wait_for('on', sub { $long->query('SHOW kliv_mail.delivery') eq 'on' }), '... and when the file has it no more');
# A sender that is there leaves for ALTER ROLE ALL, too.
my $mail = $node->sql(q{SELECT kliv_mail.send('delivered@simulator.invalid', 'x', 'x', send_at => now() + interval '1 h')});
$node->sql("ALTER ROLE ALL SET kliv_mail.delivery = hold");
$node->sql("SELECT kliv_mail.reschedule($mail, now())");
is($node->sql(qq{SELECT kliv_mail.wait($mail, '200 ms')}), 'deferred', 'ALTER ROLE ALL holds what is due then');
$node->sql("ALTER ROLE ALL RESET kliv_mail.delivery");
is($node->sql("SELECT kliv_mail.wait($mail)"), 'delivered', '... until it is reset');
$long->quit;

for my $good ('', 'mail.internal, 10.0.0.0/8, fd00::/8', 'localhost 127.0.0.1', '::1', 'a_b.example', '0.0.0.0/0')
{
    is($node->try("ALTER SYSTEM SET kliv_mail.allowed_hosts = '$good'")->{state}, '', "allowed_hosts: '$good'");
}
for my $bad ('127.0.0.1/33', 'mail.internal; 10.0.0.0/8', '10.0.0.0/', '10.0.0.0/-1', 'mail.internal/24', '10.0.0', '10.0.0.0/8/8', 'http://x', '[::1]', 'fd00::/129', 'a b,c!d')
{
    my $result = $node->try("ALTER SYSTEM SET kliv_mail.allowed_hosts = '$bad'");
    is($result->{state}, '22023', "not allowed_hosts: '$bad'");
    like($result->{err}, qr/is no host name, no address and no network/, '... and says which entry');
}
$node->stop;
done_testing();
