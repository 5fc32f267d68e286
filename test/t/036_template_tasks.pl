# What applications send from templates, on the wire: at two an hour the newest
# one-time code leaves and the ones before it never do; a reset that is asked for
# twice is one mail; drafts, locales, and versions that come back.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new('main', platform_url => 'smtp://127.0.0.1:' . $smtp->port, 
    conf => { 'kliv_mail.platform_hourly_limit' => 2, 'kliv_mail.platform_daily_limit' => 100 });
$node->sql('SELECT kliv_mail.install_starter_templates()');

sub code
{
    my ($code) = @_;
    return $node->sql("SELECT kliv_mail.send_template('one-time-code', 'ana\@x.example', '{\"code\": \"$code\"}', replace_key => 'code:ana')");
}

# ---- two an hour: the third and the fourth code wait, and the fourth replaces the third ----

my @codes = map { my $id = code("code $_"); $node->wait_until("SELECT status <> 'queued' AND status <> 'sending' FROM kliv_mail.messages WHERE id = $id"); $id } 1 .. 4;
is($node->sql("SELECT string_agg(status, ' ' ORDER BY id) FROM kliv_mail.messages WHERE id IN ($codes[0], $codes[1], $codes[2], $codes[3])"),
    'sent sent cancelled deferred', 'two leave, the third is replaced, the fourth waits');
is($node->sql("SELECT reason FROM kliv_mail.deliveries WHERE message_id = $codes[2]"), "replaced by message $codes[3]", '... and says by which');
is($node->sql("SELECT expires_at - created_at BETWEEN '9 minutes' AND '10 minutes' FROM kliv_mail._message WHERE id = $codes[3]"), 't', 'a code expires in ten minutes');
$node->reconfigure('kliv_mail.platform_hourly_limit' => 10);
$node->sql(q{SELECT kliv_mail.send('other@x.example', 'It wakes the sender', 'x')});
$node->wait_until("SELECT status = 'sent' FROM kliv_mail.messages WHERE id = $codes[3]");
my @sent = map { $smtp->message($_) =~ /(code \d)/ ? $1 : '' } $smtp->accepted('ana@x.example');
is_deeply(\@sent, [ 'code 1', 'code 2', 'code 4' ], 'the newest code left, the stale one did not');

# ---- a reset, asked for twice ----

my $reset = "SELECT kliv_mail.send_template('reset-password', 'bob\@x.example', '{\"url\": \"https://x.example/r?t=41\"}', idempotency_key => 'reset:' || 41)";
is($node->sql($reset), $node->sql($reset), 'one token, one message');
is($node->try($reset =~ s/t=41/t=42/r)->{state}, '23505', '... and no other one by its key');

# ---- a receipt with its items ----

my $receipt = $node->sql(q{SELECT kliv_mail.send_template('receipt', 'eve@x.example', '{"orderNumber": "A-1", "orderedAt": "2026-11-29", "total": "$5",
    "items": [{"name": "Tea <b>", "quantity": 2, "amount": "$2"}, {"name": "Cup", "quantity": 1, "amount": "$3"}]}')});
is($node->sql("SELECT kliv_mail.wait($receipt)"), 'sent', 'a receipt');
my ($mail) = map { $smtp->message($_) } $smtp->accepted('eve@x.example');
like($mail, qr/Tea &lt;b&gt;/, 'its items are in it, and no markup of theirs') or diag($mail);
like($mail, qr/Cup/, '... all of them');

# ---- locales, drafts, versions ----

sub subject { return $node->sql("SELECT subject FROM kliv_mail.preview_template('hi', locale => " . ($_[0] ? "'$_[0]'" : 'NULL') . ')') }
$node->sql(q{SELECT kliv_mail.save_template('hi', 'Hi', 'b'), kliv_mail.save_template('hi', 'Oi', 'b', locale => 'pt'), kliv_mail.save_template('hi', 'E ai', 'b', locale => 'pt-BR')});
is(join(' ', map { subject($_) } 'pt-BR', 'pt_PT', 'ja', ''), 'E ai Oi Hi Hi', 'pt-BR, pt, the default');
is($node->sql(q{SELECT kliv_mail.save_template('hi', 'Hello', 'b', publish => false)}), 2, 'a draft is a version');
is(subject(''), 'Hi', '... that is not used');
my $sent = $node->sql(q{SELECT kliv_mail.send_template('hi', 'ana@x.example')});
$node->sql(q{SELECT kliv_mail.restore_template('hi', 2)});
is(subject(''), 'Hello', '... until it is restored');
is($node->sql(q{SELECT kliv_mail.delete_template('hi')}), 't', 'deleted');
is($node->try(q{SELECT kliv_mail.send_template('hi', 'ana@x.example')})->{state}, '22023', '... it makes no mail');
is($node->sql("SELECT template || ' ' || subject FROM kliv_mail.messages WHERE id = $sent"), 'hi Hi', '... what it made stays');
$node->sql(q{SELECT kliv_mail.restore_template('hi', 1)});
is(subject(''), 'Hi', '... and its first version comes back');

done_testing();
