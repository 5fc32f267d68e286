# Mail trouble never aborts a sign-up: with every trouble there is, the INSERT
# of a role without rights commits, and the mail goes when the trouble ends (A10).
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $tls = KlivMail::Tls->new(PostgreSQL::Test::Utils::tempdir() . '/tls');
my ($certificate, $key) = $tls->certificate('good');
my $smtp = KlivMail::SmtpServer->start(plain => 1, tls => 1, cert => $certificate, key => $key, auth => ['app:secret-of-the-app']);
my $open = KlivMail::SmtpServer->start;
my %platform = ('kliv_mail.platform_url' => 'smtp://127.0.0.1:' . $open->port, 'kliv_mail.platform_from' => 'hello@platform.example');

my $node = KlivMail::Cluster->new(
    'main',
    conf => {
        %platform,
        'kliv_mail.platform_hourly_limit' => 1000,
        'kliv_mail.platform_daily_limit'  => 1000,
        'kliv_mail.allowed_hosts'         => '127.0.0.1, localhost',
        'kliv_mail.ca_file'               => $tls->ca_file,
        'kliv_mail.connect_timeout'       => '5s',
        'kliv_mail.reply_timeout'         => '5s'
    });

$node->sql(q{
    CREATE TABLE users (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, email text);
    CREATE FUNCTION welcome() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        PERFORM kliv_mail.send(kliv_mail.mailbox(NEW.email, NEW.name), 'Welcome', 'Hello ' || NEW.name);
        RETURN NULL;
    END $$;
    CREATE TRIGGER welcome AFTER INSERT ON users
        FOR EACH ROW WHEN (kliv_mail.is_address(NEW.email)) EXECUTE FUNCTION welcome();
    CREATE ROLE web;
    GRANT INSERT ON users TO web;
    GRANT EXECUTE ON FUNCTION kliv_mail.is_address(text) TO web});
is($node->try(q{SELECT kliv_mail.send('a@example.com', 'x', 'x')}, role => 'web')->{state}, '42501', 'the role may not send');

sub sign_up
{
    my ($name, $trouble) = @_;
    my $result = $node->try("INSERT INTO users (name, email) VALUES ('$name', '$name\@user.example')", role => 'web');
    is($result->{state}, '', "$trouble: the sign-up commits") or diag($result->{err});
    is($node->sql("SELECT count(*) FROM users WHERE name = '$name'"), 1, '... the user is there');
    is($node->sql("SELECT count(*) FROM kliv_mail.deliveries WHERE recipient = '$name\@user.example'"), 1, '... the mail is queued');
    return $result;
}

sub leaves
{
    my ($name) = @_;
    $node->wait_until("SELECT status = 'sent' FROM kliv_mail.deliveries WHERE recipient = '$name\@user.example'");
    is(scalar($smtp->accepted("$name\@user.example")) + scalar($open->accepted("$name\@user.example")), 1,
        '... and the mail goes when the trouble ends');
    return;
}

sub waits
{
    my ($name, $held_by) = @_;
    $node->wait_until("SELECT status = 'deferred' AND held_by = '$held_by' AND reason <> '' FROM kliv_mail.deliveries
                       WHERE recipient = '$name\@user.example'");
    pass("... it waits by $held_by");
    return;
}

is(sign_up('plain', 'no trouble')->{err}, '', '... no notice');
leaves('plain');
is($node->try(q{INSERT INTO users (name, email) VALUES ('none', 'no address'), ('null', NULL)}, role => 'web')->{err}, '',
    'what is no address gives no mail and no error');

# The sender killed: another takes over.
$open->set(delay_dot => 2000);
$node->sql(q{SELECT kliv_mail.send('before@user.example', 'x', 'x')});
$node->wait_until(q{SELECT count(*) = 1 FROM kliv_mail.deliveries WHERE status = 'sending'});
my ($pid) = $node->workers('kliv_mail sender');
kill 'TERM', $pid;
sign_up('killed', 'the sender killed');
$open->set(delay_dot => 0);
leaves('killed');

# The provider silent.
$open->set(silent => 1);
$open->drop_connections;
sign_up('silent', 'the server silent');
$node->wait_until(q{SELECT held_by IS NOT NULL AND reason <> '' FROM kliv_mail.deliveries WHERE recipient = 'silent@user.example'});
$open->set(silent => 0);
$open->release;
$node->clock_offset('1 hour');       # an account in trouble is tried again by and by
leaves('silent');

# The quota used.
$node->sql('ALTER SYSTEM SET kliv_mail.platform_hourly_limit = 1');
$node->reload;
$node->wait_until(q{SELECT quota = 1 FROM kliv_mail.usage WHERE account = 'platform' AND window_name = 'hour'});
like("@{ sign_up('quota', 'the quota used')->{notices} }", qr/has used its 1 recipient of this hour/, '... a notice');
waits('quota', 'quota');
$node->sql('ALTER SYSTEM RESET kliv_mail.platform_hourly_limit');
$node->reload;
leaves('quota');

# The account paused.
$node->sql(q{SELECT kliv_mail.pause('platform', 'maintenance')});
like(sign_up('paused', 'the account paused')->{err}, qr/resume/, '... a notice that names the cure');
waits('paused', 'paused');
$node->sql(q{SELECT kliv_mail.resume('platform')});
leaves('paused');

# The platform's server unset.
$node->reconfigure('kliv_mail.platform_url' => '');
sign_up('unset', 'the platform unset');
waits('unset', 'account');
$node->reconfigure(%platform);
leaves('unset');

# The key removed: an own account's password cannot be opened.
is($node->try("SELECT kliv_mail.configure_smtp(host => 'localhost', port => " . $smtp->port('tls') . ", encryption => 'tls',
        username => 'app', password => 'secret-of-the-app', from_address => 'shop\@shop.example')")->{err}, '', 'an own account');
sign_up('own', 'no trouble with it');
leaves('own');
my $file = $node->data_dir . '/kliv_mail.key';
ok(-e $file, 'its key is where the setting says');
rename $file, "$file.away" or die $!;
# A sender that has opened the password keeps it until it looks again.
$node->reload;
$smtp->drop_connections;
sign_up('key', 'the key removed');
waits('key', 'key');
ok(!-e $file, '... no new key was made');
rename "$file.away", $file or die $!;
$node->clock_offset('2 hours');
leaves('key');

# Not preloaded.
$node->stop;
$node->configure(shared_preload_libraries => '');
$node->start;
like(sign_up('unloaded', 'not preloaded')->{err}, qr/shared_preload_libraries/, '... a notice that names the cure');
$node->stop;
$node->configure(shared_preload_libraries => 'kliv_mail');
$node->start;
leaves('unloaded');
$node->stop;

done_testing();
