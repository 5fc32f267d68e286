# Every page, as it is seen: at the widths of a phone and a desk, light and dark, in
# English and Japanese; with markup in whatever a stranger can write.
use strict;
use warnings;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Site;
use Test::More;

my $site = Site->new;
my $node = $site->{node};
my $evil = q{<img src=x onerror=xss(1)><script>xss(2)</script>"'`{{name}}&lt;};

# Mail of all fates: sent, waiting, refused, bounced, complained about.
$node->sql(q{
    SELECT kliv_mail.set_brand(name => 'Example <b>& Söhne', color => '#0f766e', postal_address => '1 Main Street', unsubscribe_url => 'https://x.example/u');
    SELECT kliv_mail.install_starter_templates();
    SELECT kliv_mail.save_topic('offers', 'Offers', 'What is new, once a week');
    SELECT kliv_mail.save_topic('offers', 'お得情報', locale => 'ja');
    SELECT kliv_mail.send('ana' || n || '@example.com', 'Your receipt ' || n, 'Thank you.') FROM generate_series(1, 12) AS n});
$node->wait_until(q{SELECT count(*) = 12 FROM kliv_mail.messages WHERE status = 'sent'});
my $shown = $node->sql("SELECT quote_literal(\$x\$$evil\$x\$)");
$site->{smtp}->set(rcpt_reply => "550 5.1.1 $evil no such user");
my $refused = $node->sql("SELECT kliv_mail.send(kliv_mail.mailbox('refused\@example.com', $shown), $shown, $shown, tags => ARRAY[$shown], metadata => jsonb_build_object($shown, $shown))");
$node->wait_until("SELECT status NOT IN ('queued', 'sending', 'scheduled') FROM kliv_mail.messages WHERE id = $refused");
$site->{smtp}->set(rcpt_reply => "451 4.7.1 $evil later");
my $deferred = $node->sql("SELECT kliv_mail.send('later\@example.com', 'Invoice', 'x')");
$node->wait_until("SELECT last_reply IS NOT NULL FROM kliv_mail.deliveries WHERE message_id = $deferred");
$site->{smtp}->set(rcpt_reply => '');
my $bounced = $node->sql("SELECT kliv_mail.send('bounced\@example.com', 'Bounced', 'x')");
$node->sql(q{SELECT kliv_mail.send('Ben <ben@example.com>', 'とても長い件名の領収書をお送りしますのでご確認くださいますようお願いいたします', 'x', send_at => now() + interval '2 days')});
$node->sql(q{SELECT kliv_mail.send('complained@simulator.invalid, soft@simulator.invalid, bounced@simulator.invalid', 'Simulated', 'x')});
$node->wait_until("SELECT status = 'sent' FROM kliv_mail.messages WHERE id = $bounced");
my $header = $node->sql("SELECT header_id FROM kliv_mail._message WHERE id = $bounced");
my $dsn = join "\r\n", 'From: MAILER-DAEMON@mx.example.com', 'To: x@example.com', 'Subject: Undelivered', 'MIME-Version: 1.0',
  'Content-Type: multipart/report; report-type=delivery-status; boundary="b"', '', '--b', 'Content-Type: text/plain', '', $evil, '--b', 'Content-Type: message/delivery-status', '',
  'Reporting-MTA: dns; mx.example.com', '', 'Final-Recipient: rfc822; bounced@example.com', 'Action: failed', 'Status: 5.1.1', "Diagnostic-Code: smtp; 550 5.1.1 $evil", '', '--b',
  'Content-Type: text/rfc822-headers', '', "Message-ID: <$header>", '', '--b--', '';
$node->sql("SELECT kliv_mail.ingest_bounce(decode('" . unpack('H*', $dsn) . "', 'hex'))");
# What the database's own people write, or tables that they fill from outside.
for my $call ("suppress('evil\@example.com', reason => $shown)", "save_topic('evil', $shown, $shown)", "save_template('evil', 'A subject', 'Text', description => $shown)",
    "update_sender(from_name => $shown)", "pause('platform', reason => $shown)", q{resume('platform')})
{
    my $result = $node->try("SELECT kliv_mail.$call");
    note("$call: $result->{state} $result->{message}") if $result->{state};
}
$node->sql(q{SELECT kliv_mail.save_template('draft', 'A draft', E'# Draft\n\nHello $firstName', publish => false, variables => '{"firstName": {"example": "Ana"}}')});
my $token = $node->sql(q{SELECT kliv_mail.unsubscribe_url('ana1@example.com', 'offers')}) =~ s{.*/u}{/u}r;
my $all = $node->sql(q{SELECT kliv_mail.unsubscribe_url('ben@example.com')}) =~ s{.*/u}{/u}r;
$site->script('walk.js', 'CANARY-of-boss', $token, $all, "/admin/messages/$refused", "/admin/messages/$deferred", "/admin/messages/$bounced");
$site->end;
done_testing();
