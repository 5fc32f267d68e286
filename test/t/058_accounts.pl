# What an account is told apart by, kept from, and freed by: a sender that was
# the former user name, one that a server without SMTPUTF8 cannot take, a hold
# that a good test ends or cannot end, addresses of this very machine, the name
# in EHLO, and ids that came from elsewhere.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::Names;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $names = KlivMail::Names->new($folder);
$names->add('localhost', '127.0.0.1', 0 => 0);
$names->add('this-machine', '93.184.216.34', 0 => 0);
my $smtp = KlivMail::SmtpServer->start;
my $platform = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main',
    start        => 0,
    extension    => 0,
    platform_url => 'smtp://127.0.0.1:' . $platform->port,
    conf         => { 'kliv_mail.allowed_hosts' => '127.0.0.1, localhost', 'kliv_mail.platform_hourly_limit' => 100, 'kliv_mail.platform_daily_limit' => 100 });
{
    local %ENV = (%ENV, $names->environment);
    $node->start;
}
$node->sql('CREATE EXTENSION kliv_mail CASCADE');

# ---- the platform's hold ----

$platform->set(greeting_reply => '421 4.3.2 down');
my $id = $node->sql(q{SELECT kliv_mail.send('a@customer.example', 'x', 'x')});
$node->wait_until("SELECT held_by = 'account' FROM kliv_mail.deliveries WHERE message_id = $id");
is($node->sql(q{SELECT count(*) FROM kliv_mail.test_smtp() WHERE NOT ok}), 1, 'the platform\'s server is down, and a test says so');
is($node->sql(q{SELECT last_test_ok FROM kliv_mail.smtp_settings WHERE account = 'platform'}), 'f', '... which smtp_settings shows');
$platform->set(greeting_reply => '');
is($node->sql(q{SELECT bool_and(ok) FROM kliv_mail.test_smtp()}), 't', 'it is well again');
is($node->sql("SELECT kliv_mail.wait($id, '20 s')"), 'sent', '... and the test ends the hold');
is($node->sql(q{SELECT last_test_ok, last_test_at > now() - interval '1 hour' FROM kliv_mail.smtp_settings WHERE account = 'platform'}), 't|t', '... and is shown');

# One that was met at the dot is none of the steps'.
$platform->set(dot_reply => '554 5.7.1 Sender address rejected: not verified, send from a verified sender identity');
my @stuck = map { $node->sql("SELECT kliv_mail.send('stuck$_\@customer.example', 'x', 'x')") } 1, 2;
$node->wait_until(q{SELECT status = 'held' FROM kliv_mail.smtp_settings WHERE account = 'platform'});
like($node->sql(q{SELECT string_agg(hint, '') FROM kliv_mail.test_smtp()}), qr/stays held, for what a mail met behind these steps/, 'a hold that was met at the dot: a good test says that it stays');
is($node->sql(q{SELECT status FROM kliv_mail.smtp_settings WHERE account = 'platform'}), 'held', '... and so it does');
$platform->set(dot_reply => '');
$node->sql("SELECT kliv_mail.cancel($_)") for @stuck;

# ---- the sender ----

my $to = "host => 'localhost', port => " . $smtp->port . ", encryption => 'none', username => ''";
sub configure { my ($arguments) = @_; return $node->try("SELECT from_address FROM kliv_mail.configure_smtp($arguments)"); }

is(configure("host => 'smtp.old.example', username => 'shop\@old.example', password => 'x', test => false")->{out}, 'shop@old.example', 'a sender that the user name is');
is(configure("host => 'smtp.new.example', username => 'shop\@new.example', password => 'x', test => false")->{out}, 'shop@new.example', '... is that of another user name');
my $result = configure("host => 'smtp.other.example', username => 'token', password => 'x', test => false");
is($result->{out}, 'shop@new.example', '... or is kept where that is no address');
like("@{ $result->{notices} }", qr/the sender address "shop\@new\.example" was saved with the former settings and is kept/, '... and told of');
is(configure("from_address => 'hello\@shop.example', test => false")->{out}, 'hello@shop.example', 'another one');
$result = configure("host => 'smtp.third.example', username => 'info\@third.example', password => 'x', test => false");
is($result->{out}, 'hello@shop.example', '... is kept');
like("@{ $result->{notices} }", qr/the sender address "hello\@shop\.example" was saved with the former settings and is kept/, '... and told of');
$smtp->set(rcpt_reply => '553 5.7.1 <hello@shop.example>: Sender address rejected: not owned by user');
$result = configure($to);
is($result->{state}, 'KM006', 'where it is refused');
like($result->{hint}, qr/"hello\@shop\.example" was saved with the former settings and kept: give from_address =>/, '... the hint says where it comes from, and the argument');
$smtp->set(rcpt_reply => '');
is(configure($to)->{state}, '', 'a server that takes it');
unlike("@{ configure($to)->{notices} }", qr/former/, '... and nothing is said when nothing changed');

# ---- what needs SMTPUTF8 ----

$result = configure(qq{reply_to => 'Soudan <\x{e7}\x{9b}\x{b8}\x{e8}\x{ab}\x{87}\@shop.example>'});
like("$result->{state} $result->{message}", qr/^22023 reply_to: needs a server with SMTPUTF8, and localhost has none/, 'a reply_to that the server cannot take is refused');
$result = $node->try(qq{SELECT * FROM kliv_mail.update_sender(reply_to => '\x{e7}\x{9b}\x{b8}\@shop.example')});
like("@{ $result->{notices} }", qr/reply_to: needs a server with SMTPUTF8/, 'update_sender(), which tests nothing, warns');
# What was changed so behind a mail that waits: nothing mangled leaves, and the account says which address it is.
my $utf8 = $node->sql(q{SELECT kliv_mail.send('utf8@customer.example', 'x', 'x')});
$node->wait_until("SELECT held_by = 'account' FROM kliv_mail.deliveries WHERE message_id = $utf8");
like($node->sql("SELECT attempts || ' ' || reason || ' ' || hint FROM kliv_mail.deliveries WHERE message_id = $utf8"),
    qr/^0 an address of the account itself .*not ASCII before the @.*kliv_mail\.update_sender\(from_address => '...', reply_to => '...', account => 'custom'\);/, '... and its mail waits for another one');
unlike($smtp->transcript, qr/utf8\@customer|[\x80-\xff]/, '... of which the server sees nothing');
$node->sql(q{SELECT * FROM kliv_mail.update_sender(reply_to => '')});
is($node->sql("SELECT kliv_mail.wait($utf8, '60 s')"), 'sent', '... until it has one');
is($node->sql("SELECT account, host FROM kliv_mail.deliveries WHERE message_id = $utf8"), 'custom|localhost', '... and deliveries says by which server it went');

# update_sender() asks no server: the first mails do, and the hint names the call that cures.
$smtp->set(rcpt_reply => '553 5.7.1 <other@shop.example>: Sender address rejected: not owned by user');
is($node->sql(q{SELECT changed FROM kliv_mail.update_sender(from_address => 'other@shop.example')}), 'from_address', 'another sender is saved without a test');
my @refused = map { $node->sql("SELECT kliv_mail.send('refused$_\@customer.example', 'x', 'x')") } 1, 2;
$node->wait_until(q{SELECT status = 'held' FROM kliv_mail.smtp_settings WHERE account = 'custom'});
like($node->sql(q{SELECT problem || ' ' || statement || ' ' || cures FROM kliv_mail.next_step()}),
    qr/the provider does not allow this sender address.* SELECT \* FROM kliv_mail\.update_sender\(from_address => 'the verified address', account => 'custom'\); true$/, '... the first two mails find that it is refused, and next_step() says what to do');
like($node->sql('SELECT hint FROM kliv_mail.test_smtp() WHERE NOT ok'), qr/update_sender\(from_address/, '... a test, too');
$smtp->set(rcpt_reply => '');
$node->sql(q{SELECT * FROM kliv_mail.update_sender(from_address => 'hello@shop.example')});
is($node->sql("SELECT kliv_mail.wait($_, '60 s')"), 'sent', '... which sends them') for @refused;

# ---- this machine ----

for my $host ('93.184.216.34', '::ffff:93.184.216.34', '::ffff:5db8:d822')
{
    my $row = $node->sql("SELECT step, ok, detail FROM kliv_mail.test_smtp(host => '$host', port => 2525, username => '', encryption => 'none', from_address => 'a\@shop.example') ORDER BY ok LIMIT 1");
    like($row, qr/^connect\|f\|/, "$host, which is a public address of this machine, is not connected to");
    is($node->try("SELECT * FROM kliv_mail.configure_smtp(host => '$host', port => 2525, username => '', encryption => 'none', from_address => 'a\@shop.example')")->{state}, '42501', '... and refused');
}
is($node->sql("SELECT bool_and(ok) FROM kliv_mail.test_smtp(host => '::ffff:127.0.0.1', port => " . $smtp->port . ", username => '', encryption => 'none', from_address => 'a\@shop.example')"),
    't', 'an address that is allowed is so in its form for IPv6, too');

# ---- EHLO ----

is($node->sql(q{SELECT bool_and(ok) FROM kliv_mail.test_smtp()}), 't', 'EHLO');
like($smtp->transcript, qr/> EHLO shop\.example/, '... by default is the sender\'s domain');
$smtp->set(mail_reply => '550 Bad HELO - Host impersonating domain name [shop.example]');
like($node->sql('SELECT hint FROM kliv_mail.test_smtp() WHERE NOT ok'), qr/sets kliv_mail\.ehlo_name to a name/, '... where that is refused the hint names the setting');
$smtp->set(mail_reply => '');
is($node->sql(q{SELECT reason FROM kliv_mail.classify_reply('ehlo', '550 5.7.1 <shop.example>: Helo command rejected: Access denied')}), 'the server does not take the name that this machine greets with', '... also in the reply to EHLO itself');
$node->reconfigure('kliv_mail.ehlo_name' => 'mail.this-machine.example');
$node->sql('SELECT * FROM kliv_mail.test_smtp()');
like($smtp->transcript, qr/> EHLO mail\.this-machine\.example/, '... or what kliv_mail.ehlo_name says');
isnt($node->try("ALTER SYSTEM SET kliv_mail.ehlo_name = '$_'")->{state}, '', "... which is not \"$_\"") for 'localhost', 'a b.example', '-a.example', '[not an address]', 'a..example';

# ---- ids that came from elsewhere ----

$node->sql(q{SELECT setval('kliv_mail._message_id', 1, false), setval('kliv_mail._delivery_id', 1, false), setval('kliv_mail._event_id', 1, false)});
is($node->try('SELECT kliv_mail.resume()')->{state}, '', 'sequences behind what is stored: resume()');
is($node->try(q{SELECT kliv_mail.send('n' || n || '@customer.example', 'x', 'x') FROM generate_series(1, 5) AS n})->{state}, '', '... moves them, and send() goes on');
my $last = $node->sql('SELECT last_value FROM kliv_mail._message_id');
$node->sql('SELECT kliv_mail.resume()');
is($node->sql('SELECT last_value FROM kliv_mail._message_id'), $last, '... and moves nothing where nothing is behind');

# ---- another way to read strings ----

# (PostgreSQL 19 has no other)
my $strings = $node->sql('SHOW server_version_num') < 190000 ? 'off' : 'on';
is($node->try(qq{SET standard_conforming_strings = $strings; SELECT kliv_mail.set_brand(name => 'x', unsubscribe_url => 'https://shop.example/u?a=b')})->{state}, '', 'set_brand() with standard_conforming_strings off');
is($node->try(q{SELECT kliv_mail.set_brand(name => E'a\nb')})->{state}, '22023', '... a line break in a name is refused as before');

$node->stop;
done_testing();
