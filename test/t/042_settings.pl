# Settings over a day: what a change keeps, where a password goes and where not,
# what waits when the account changes, and what the wire shows of it (issue 3, B8).
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $tls = KlivMail::Tls->new(PostgreSQL::Test::Utils::tempdir() . '/tls');
my ($cert, $key) = $tls->certificate('good');
my $first = 'FIRST-password-0123456789';
my $next = 'SECOND-password-987654321';

my $platform = KlivMail::SmtpServer->start;
my $own = KlivMail::SmtpServer->start(tls => 1, starttls => 1, cert => $cert, key => $key, auth => ["app:$first"]);
my $second = KlivMail::SmtpServer->start(tls => 1, cert => $cert, key => $key, auth => ['news@news.example:of-the-second']);
# Takes every connection and writes down what comes.
my $foreign = KlivMail::SmtpServer->start(tls => 1, starttls => 1, cert => $cert, key => $key, auth => ['app:something-else'], record_clear => 1);

my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $platform->port,
    conf => {
        'kliv_mail.allowed_hosts'   => '127.0.0.1, localhost',
        'kliv_mail.ca_file'         => $tls->ca_file,
        'kliv_mail.connect_timeout' => '5s'
    });
# Away from the turn of an hour, which opens windows.
$node->clock_to_noon;
$node->sql('CREATE ROLE boss; SELECT kliv_mail.grant_admin(\'boss\')');
# All as an administrator without other rights.
my $session = $node->session(role => 'boss');

sub query { return $session->query($_[0]); }

sub queued
{
    my ($recipient, %argument) = @_;
    my $more = join '', map { ", $_ => '$argument{$_}'" } sort keys %argument;
    my $printed = query("SELECT kliv_mail.send('$recipient\@example.com', 'x', 'x'$more)");
    my ($id) = $printed =~ /^(\d+)$/m or die $printed;
    return $id;
}

sub sent
{
    my ($id, $server, $recipient, $name) = @_;
    is(query("SELECT kliv_mail.wait($id, '30 s')"), 'sent', $name) or diag(query("SELECT * FROM kliv_mail.deliveries WHERE message_id = $id"));
    my ($entry) = $server->accepted("$recipient\@example.com");
    ok($entry, '... by the right server');
    return $entry;
}

sub held
{
    my ($id, $by, $name) = @_;
    my $now = '';
    my $ok = eval { $node->wait_for($name, sub { ($now = query("SELECT held_by FROM kliv_mail.deliveries WHERE message_id = $id")) eq $by }) };
    ok($ok, $name) or BAIL_OUT(query("SELECT status, held_by, reason, hint, last_reply FROM kliv_mail.deliveries WHERE message_id = $id"));
    return;
}

sub logins { return map { "$_->{user}:" . ($_->{ok} ? 'ok' : 'no') } $_[0]->ledger('auth'); }

# ---- from the platform to an own account ----

my @waiting = map { queued("quota$_") } 1 .. 5;
held($waiting[4], 'quota', 'on the platform: two leave, the others wait for its quota');
is(query('SELECT count(*) FROM kliv_mail.deliveries WHERE held_by = \'quota\''), 3, '... three of them');
my $configure = 'SELECT kliv_mail.configure_smtp(host => \'localhost\', port => ' . $own->port('tls')
  . ", encryption => 'tls', username => 'app', password => '$first', from_address => 'shop\@shop.example', from_name => 'The Shop', reply_to => 'help\@shop.example',"
  . q{ allowed_senders => ARRAY['@news.example'], hourly_limit => 600, daily_limit => 5000)};
is($session->try($configure)->{state}, '', 'configure_smtp() of an own account');
sent($waiting[4], $own, 'quota5', 'releases what waited for the platform\'s quota');
is(join(' ', sort map { $_->{rcpt}[0] =~ s/@.*//r } $own->accepted), 'quota3 quota4 quota5', '... all of them (on several connections, so in any order)');
is($platform->count, 2, '... and the platform\'s server gets no more');

# ---- rotating the password ----

my $kept = 'from_address, from_name, reply_to, allowed_senders, hourly_limit, daily_limit, host, port, encryption, username';
my $before = query("SELECT $kept FROM kliv_mail.smtp_settings WHERE account = 'custom'");
like($before, qr/shop\@shop\.example\|The Shop\|help\@shop\.example\|\{\@news\.example\}\|600\|5000/, 'before the password changes');
$own->set(auth => ["app:$next"]);
$own->drop_connections;
my $lost = queued('rotate');
held($lost, 'account', 'the provider has a new password: mail waits');
is($session->try("SELECT kliv_mail.configure_smtp(password => '$first')")->{state}, 'KM005', 'the old one fails the test');
is($session->try("SELECT kliv_mail.configure_smtp(password => '$next')")->{state}, '', 'configure_smtp(password => ...) alone');
is(query("SELECT $kept FROM kliv_mail.smtp_settings WHERE account = 'custom'"), $before, '... keeps limits, names and senders');
my $entry = sent($lost, $own, 'rotate', '... and releases what waited');
like($own->message($entry), qr/^From: The Shop <shop\@shop\.example>\r$/m, '... under the same name');
is(query('SELECT quota FROM kliv_mail.usage WHERE account = \'custom\' AND window_name = \'day\''), 5000, '... within the same 5,000 a day');

# ---- a saved password goes nowhere else ----

my $foreign_tls = $foreign->port('tls');
my $foreign_starttls = $foreign->port('starttls');
for my $elsewhere (
    "host => '127.0.0.1'",
    "host => '127.0.0.1', port => $foreign_tls",
    "port => $foreign_tls",
    "port => $foreign_starttls, encryption => 'starttls'",
    "host => '127.0.0.1', port => $foreign_tls, username => 'app'",
    "host => 'localhost', port => $foreign_tls, username => 'app', encryption => 'tls', from_address => 'shop\@shop.example'",
    "username => 'other'",
    "provider => 'sendgrid'",
    "provider => '', host => '127.0.0.1', port => $foreign_tls, username => 'app'")
{
    for my $call ('configure_smtp', 'test_smtp')
    {
        my $result = $session->try("SELECT kliv_mail.$call($elsewhere)");
        is($result->{state}, '22023', "$call($elsewhere) wants a password");
        like($result->{message}, qr/^(?:password|username): is needed/, '... by name');
    }
    is($session->try("SELECT kliv_mail.configure_smtp($elsewhere, test => false)")->{state}, '22023', '... without its test too');
}
is($foreign->state->{connections}, 0, 'no connection was made for any of them');
is(query("SELECT $kept FROM kliv_mail.smtp_settings WHERE account = 'custom'"), $before, '... and nothing saved');
# With a password of its own the new place gets that one, and no other.
is($session->try("SELECT kliv_mail.configure_smtp(host => '127.0.0.1', port => $foreign_tls, encryption => 'tls', username => 'app', password => 'of-this-place')")->{state}, 'KM005', 'with a password: tried there');
is($session->try("SELECT kliv_mail.test_smtp(host => '127.0.0.1', port => $foreign_tls, encryption => 'tls', username => 'app', password => 'of-this-place')")->{state}, '', '... by test_smtp() too');
# Nor by the hand of a superuser, whom a sender obeys.
$node->sql("UPDATE kliv_mail._account SET host = '127.0.0.1', port = $foreign_tls WHERE name = 'custom'");
my $moved = queued('moved');
held($moved, 'account', 'an account that was moved by UPDATE: its mail waits');
like(query("SELECT reason FROM kliv_mail.deliveries WHERE message_id = $moved"), qr/does not belong to/, '... and says why');
is($session->try('SELECT * FROM kliv_mail.test_smtp()')->{state}, '55000', '... and test_smtp() refuses');
$node->sql("UPDATE kliv_mail._account SET host = 'localhost', port = " . $own->port('tls') . " WHERE name = 'custom'");
is($session->try('SELECT kliv_mail.test_smtp()')->{state}, '', '... moved back, it is well');
sent($moved, $own, 'moved', '... and the mail leaves');
is(scalar(grep { !/AUTH/ || /of-this-place/ } grep { /FIRST|SECOND/ } split /\n/, decoded($foreign)), 0, 'the foreign server has seen neither password');
like(decoded($foreign), qr/of-this-place/, '(it would have been found)');

# ---- sender: seen on the wire for what is queued ----

is(query("SELECT kliv_mail.pause('custom', 'new logo')"), 0, 'pause(account) says how many it holds');
my $queued = queued('sender');
held($queued, 'paused', 'a paused account holds its mail');
is(query("SELECT replace(reason, current_user, 'me'), hint FROM kliv_mail.deliveries WHERE message_id = $queued"),
    q{the account "custom" is paused by me: new logo|SELECT kliv_mail.resume('custom'); releases it.}, '... and says why, and what to do');
query(q{SELECT kliv_mail.update_sender(from_address => 'office@shop.example', from_name => 'Büro', reply_to => 'Desk <desk@shop.example>')});
is(query("SELECT kliv_mail.resume('custom')"), 1, 'resume(account) says how many it releases');
$entry = sent($queued, $own, 'sender', '... which then leave');
is($entry->{mail_from}, 'office@shop.example', 'update_sender() counts for what was queued: envelope');
like($own->message($entry), qr/^From: =\?utf-8\?.*\?= <office\@shop\.example>\r$/mi, '... From');
like($own->message($entry), qr/^Reply-To: Desk <desk\@shop\.example>\r$/m, '... Reply-To');
query(q{SELECT kliv_mail.update_sender(from_name => '', reply_to => '')});
$entry = sent(queued('cleared'), $own, 'cleared', "'' clears");
like($own->message($entry), qr/^From: office\@shop\.example\r$/m, '... the name');
unlike($own->message($entry), qr/^Reply-To:/m, '... and Reply-To');
query(q{SELECT kliv_mail.update_sender(from_address => 'shop@shop.example')});

# ---- several accounts ----

is($session->try('SELECT kliv_mail.configure_smtp(account => \'news\', host => \'localhost\', port => ' . $second->port
          . q{, encryption => 'tls', username => 'news@news.example', password => 'of-the-second', hourly_limit => 2, daily_limit => 5000)})->{state}, '', 'a second account');
is(query("SELECT account, in_use, from_address, hourly_limit, daily_limit FROM kliv_mail.smtp_settings WHERE account <> 'platform' ORDER BY account"),
    "custom|t|shop\@shop.example|600|5000\nnews|t|news\@news.example|2|5000", '... beside the first');
like($session->try(q{SELECT kliv_mail.set_limits(daily_limit => 5001, account => 'news')})->{message}, qr/above the 10000 a day/, '... the sum of their limits is bounded');
$entry = sent(queued('by-name', account => 'news'), $second, 'by-name', 'send(account => ...)');
is($entry->{user}, 'news@news.example', '... with its login');
is($entry->{mail_from}, 'news@news.example', '... and sender');
sent(queued('by-default'), $own, 'by-default', 'without it mail goes by custom');
is(query(q{SELECT bool_and(ok) FROM kliv_mail.test_smtp(account => 'news')}), 't', 'test_smtp(account => ...)');
query(q{SELECT kliv_mail.pause()});
my $news = queued('paused-news', account => 'news');
my $custom = queued('paused-custom');
held($_, 'paused', 'pause() holds every account') for $news, $custom;
query(q{SELECT kliv_mail.pause('news')});
like(join('|', @{ $session->try('SELECT kliv_mail.resume()')->{notices} }), qr/still paused: the account "news"/, 'resume() leaves what was paused by name, and says so');
sent($custom, $own, 'paused-custom', '... and releases the others');
held($news, 'paused', '... only');
is(query(q{SELECT kliv_mail.resume('news')}), 1, 'resume(account) does the rest');
sent($news, $second, 'paused-news', '... and it leaves');
my $third = queued('news3', account => 'news');
held($third, 'quota', 'its limit is its own');
is(query(q{SELECT used, quota FROM kliv_mail.usage WHERE account = 'news' AND window_name = 'hour'}), '2|2', '... in usage too');
is(query(q{SELECT hourly_limit FROM kliv_mail.set_limits(hourly_limit => 3, account => 'news')}), 3, 'set_limits(account => ...)');
sent($third, $second, 'news3', '... counts at once for what is queued');

# ---- no silent fall-back ----

$own->set(auth_reply => '535 5.7.8 closed');
$own->drop_connections;
my $stuck = queued('stuck');
held($stuck, 'account', 'an own account in trouble holds its mail');
like(query("SELECT reason || ' ' || hint FROM kliv_mail.deliveries WHERE message_id = $stuck"), qr/refused user name or password.*configure_smtp/, '... and says why');
is(query("SELECT account FROM kliv_mail.deliveries WHERE message_id = $stuck"), 'custom', '... for its own account');
is($platform->count, 2, '... and nothing goes by the platform');
is(scalar($second->accepted('stuck@example.com')), 0, '... nor by an account that may not send for its address');
$own->set(auth_reply => '');
is(query('SELECT bool_and(ok) FROM kliv_mail.test_smtp()'), 't', 'a good test');
sent($stuck, $own, 'stuck', '... ends the trouble');

# ---- reset, and back ----

my $usage = query(q{SELECT window_name, used FROM kliv_mail.usage WHERE account = 'custom' ORDER BY 1});
query(q{SELECT kliv_mail.pause('custom')});
my @left = (queued('left1'), queued('left2', account => 'custom'), queued('left3'));
my $reset = $session->try('SELECT kliv_mail.reset_smtp()');
like(join('|', @{ $reset->{notices} }), qr/^3 deliveries of the account "custom" now wait for the account "platform" \(at most 2 an hour and 2 a day\)$/, 'reset_smtp() says how many now wait');
is(query(q{SELECT in_use, password_masked IS NULL, status, from_address, hourly_limit, daily_limit FROM kliv_mail.smtp_settings WHERE account = 'custom'}),
    'f|t|reset|shop@shop.example|600|5000', '... wipes the password, keeps sender and limits');
held($left[1], 'quota', '... and what was queued waits for the platform\'s quota');
is(query("SELECT account FROM kliv_mail.deliveries WHERE message_id = $left[1]"), 'platform', '... by name');
is(join('', @{ $session->try('SELECT kliv_mail.reset_smtp()')->{notices} }), '', 'a second reset does nothing');
is($session->try('SELECT kliv_mail.configure_smtp(hourly_limit => 5)')->{state}, '22023', 'without a password it does not come back');
is($session->try("SELECT kliv_mail.configure_smtp(password => '$next')")->{state}, '', 'with it alone it does');
is(query(q{SELECT in_use, status, from_address, hourly_limit, daily_limit FROM kliv_mail.smtp_settings WHERE account = 'custom'}),
    't|paused|shop@shop.example|600|5000', '... as it was, pause included');
is(query(q{SELECT window_name, used FROM kliv_mail.usage WHERE account = 'custom' ORDER BY 1}), $usage, '... with what it had used: no second quota');
query(q{SELECT kliv_mail.resume('custom')});
sent($left[$_ - 1], $own, "left$_", "... and $_ of what waited leaves") for 1 .. 3;
is($platform->count, 2, 'the platform\'s server has had two mails all day');
is(join(' ', $platform->ledger('auth')), '', '... and no login');

# ---- limits ----

my $notices = $session->try('SELECT kliv_mail.set_limits(hourly_limit => 0)')->{notices};
like("@$notices", qr/a limit of 0 pauses the account "custom"/, 'a limit of 0 pauses');
my $zero = queued('zero');
$node->wait_until("SELECT held_by IS NOT NULL FROM kliv_mail.deliveries WHERE message_id = $zero");
like(query("SELECT reason || '|' || hint FROM kliv_mail.deliveries WHERE message_id = $zero"), qr/limit of the account "custom" is 0\|SELECT \* FROM kliv_mail\.set_limits/, '... and the mail says so');
query('SELECT kliv_mail.set_limits(hourly_limit => 600)');
sent($zero, $own, 'zero', '... until it is raised');

# ---- who did what ----

is(query(q{SELECT string_agg(DISTINCT role::text, ',') FROM kliv_mail.events WHERE kind IN ('account_configured', 'sender_updated', 'limits_changed', 'account_reset', 'paused', 'resumed')}),
    'boss', 'events name who changed what');
is(query(q{SELECT data FROM kliv_mail.events WHERE kind = 'sender_updated' ORDER BY at LIMIT 1})
      =~ /"from_address": \["shop\@shop\.example", "office\@shop\.example"\]/ ? 'yes' : 'no', 'yes', '... from what to what');
is(query(q{SELECT count(*) FROM kliv_mail.events AS e WHERE e::text ~ 'FIRST|SECOND|of-the-second'}), 0, '... and no secret');
$session->quit;
$node->stop;
done_testing();

# What a server was told, AUTH PLAIN made readable.
sub decoded
{
    my ($server) = @_;
    require MIME::Base64;
    my $text = $server->transcript;
    $text =~ s/(AUTH PLAIN |> )([A-Za-z0-9+\/]{8,}={0,2})$/$1 . MIME::Base64::decode_base64($2)/gme;
    return $text;
}
