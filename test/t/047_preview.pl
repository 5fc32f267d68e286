# preview(): the bytes as the server will get them, for the sender's own mail, before
# anything has gone; and the Message-ID of mail that was queued without an account.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new('main', conf => { 'kliv_mail.platform_hourly_limit' => 50, 'kliv_mail.platform_daily_limit' => 50 });
$node->sql(q{CREATE ROLE app; CREATE ROLE other; SELECT kliv_mail.grant_send('app'), kliv_mail.grant_send('other')});

sub preview
{
    my ($arguments, %option) = @_;
    return $node->sql("SELECT encode(kliv_mail.preview($arguments), 'hex')", %option) =~ s/\s//gr;
}
sub arrived
{
    my ($recipient) = @_;
    $node->wait_for("$recipient has its mail", sub { $smtp->accepted($recipient) });
    return unpack 'H*', $smtp->message(($smtp->accepted($recipient))[0]);
}

# ---- no account yet ----

my $unnamed = $node->sql(q{SELECT kliv_mail.send('early@example.com, bob@example.com', 'Early', 'é')}, role => 'app');
my $none = $node->try("SELECT kliv_mail.preview($unnamed)", role => 'app');
is("$none->{state} $none->{message}", '55000 the account "platform" is not configured', 'without an account there is no sender');
like($none->{hint}, qr/configure_smtp.*sandbox needs no account/, '... and the hint says how to do without');
is($node->sql("SELECT header_id ~ '^[0-9a-f]{32}\$' FROM kliv_mail._message"), 't', 'half a Message-ID is all there is');
$node->sql(q{ALTER DATABASE postgres SET kliv_mail.delivery = hold});
$node->reconfigure('kliv_mail.platform_url' => 'smtp://127.0.0.1:' . $smtp->port, 'kliv_mail.platform_from' => 'Shop <shop@shop.example>');

# ---- what waits ----

my $early = preview($unnamed, role => 'app');
like(pack('H*', $early), qr/^From: Shop <shop\@shop\.example>\r\nMessage-ID: <[0-9a-f]{32}\@shop\.example>\r\nDate: /, 'an account gives its domain');
is(preview("$unnamed, 'BOB <bob\@example.com>'", role => 'app'), $early, 'each recipient has the same bytes');
my $named = $node->sql(q{SELECT kliv_mail.send('ana@example.com', 'Named', html => '<b>x</b>', from_name => 'Ana''s shop', attachments => ARRAY[kliv_mail.attach_text('a.txt', 'b')])}, role => 'app');
my $whole = preview($named, role => 'app');
unlike(pack('H*', $whole), qr/Message-ID:.*Message-ID:/s, 'with an account there is one Message-ID');
$node->sql(q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://shop.example/u', postal_address => '1 Road'); SELECT kliv_mail.unsubscribe_url('x@example.com')});
my $news = $node->sql(q{SELECT kliv_mail.send('reader@example.com', 'News', 'n', message_type => 'marketing', topic => 'deals')}, role => 'app');
my $news_preview = preview($news, role => 'app');
like(pack('H*', $news_preview), qr/^List-Id: <deals\.shop\.example>\r\nList-Unsubscribe: <https:\/\/shop\.example\/u\?token=/m, 'marketing mail has its recipient\'s link');
is($node->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE attempts > 0}), 0, 'nothing was sent by that, or counted');
is($node->sql(q{SELECT count(*) FROM kliv_mail._message WHERE header_id !~ '@'}), 1, '... or written');

# ---- refusals ----

is($node->try("SELECT kliv_mail.preview($named)", role => 'other')->{message}, "message_id: there is no message $named of yours", 'another sender\'s mail is not shown');
is($node->try("SELECT kliv_mail.preview($named, 'eve\@example.com')", role => 'app')->{message}, qq{recipient: message $named has no recipient "eve\@example.com"}, 'no such recipient');
is($node->try("SELECT kliv_mail.preview($named, 'nobody')", role => 'app')->{state}, '22023', 'no address');
is($node->try('SELECT kliv_mail.preview(999)')->{state}, '22023', 'no such message');
is($node->sql('SELECT kliv_mail.preview(NULL) IS NULL'), 't', 'NULL gives NULL');
is($node->sql("BEGIN READ ONLY; SELECT length(kliv_mail.preview($named)) > 0; COMMIT", role => 'app'), 't', 'a read-only transaction may look');

# ---- what goes is what was shown ----

$node->sql(q{ALTER DATABASE postgres RESET kliv_mail.delivery; SELECT kliv_mail.resume()});
is(arrived('early@example.com'), $early, 'the bytes that arrive are those of the preview');
is(arrived('bob@example.com'), $early, '... for both recipients, though one was named first');
is(arrived('ana@example.com'), $whole, '... with files and HTML');
is(arrived('reader@example.com'), $news_preview, '... and with the unsubscribe link');
$node->wait_until(q{SELECT count(*) = 4 FROM kliv_mail.deliveries WHERE status = 'sent'});
is(preview($named), $whole, 'what has gone is shown as it went');
$node->reconfigure('kliv_mail.platform_from' => 'Other <other@other.example>');
is(preview($unnamed), $early, '... whatever the account says now');

# ---- a copy for a test ----

$node->sql(q{ALTER DATABASE postgres SET kliv_mail.redirect_to = 'dev@example.com'; ALTER DATABASE postgres SET kliv_mail.delivery = hold});
my $redirected = $node->sql(q{SELECT kliv_mail.send('real@example.com', 'R', 'r')});
like(pack('H*', preview($redirected)), qr/^From: Other .*^X-Kliv-Mail-Original-Recipient: real\@example\.com\r$/ms, 'redirect_to shows as it will');
# As forget() leaves it.
$node->sql(qq{UPDATE kliv_mail._message SET entity = '' WHERE id = $redirected});
is($node->try("SELECT kliv_mail.preview($redirected)")->{message}, "the body of message $redirected is not kept any more", 'what was erased is not made up');

done_testing;
