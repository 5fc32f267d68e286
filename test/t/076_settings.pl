# Settings cannot lie: what the sender has to have is refused from a session and
# for a role, and a list of hosts that could name nothing is refused where it is set.
use strict;
use warnings;
use KlivMail::Cluster;
use Test::More;

my $node = KlivMail::Cluster->new('main');
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
