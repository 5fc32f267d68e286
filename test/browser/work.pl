# An administrator's tasks in a browser without script: each of the eight providers is
# set up (played by servers under their real names and ports, as in 040_providers), the
# first by keyboard alone; sender, limits, a mail that did not arrive, a suppression, a
# template, and back to the platform.
use strict;
use warnings;
use JSON::PP;
use KlivMail::Names;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Site;
use Test::More;

my $names = KlivMail::Names->new(PostgreSQL::Test::Utils::tempdir());
my $site = Site->new(names => $names);
my $node = $site->{node};

# What a form is to ask for, and what is typed; user: what the server then sees.
my %provider = (
    gmail => { hosts => ['smtp.gmail.com'], fields => { username => 'ana@gmail.com', password => 'canarycanarycana' }, user => 'ana@gmail.com' },
    sendgrid => { hosts => ['smtp.sendgrid.net'], fields => { password => 'SG.CANARYaaaaaaaaaaaaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbb', from_address => 'shop@shop.example' }, user => 'apikey' },
    mailgun => { hosts => ['smtp.mailgun.org'], fields => { username => 'postmaster@mg.shop.example', password => 'CANARY-credential-1234' }, user => 'postmaster@mg.shop.example' },
    ses => { hosts => ['email-smtp.ap-northeast-1.amazonaws.com'], fields => { region => 'ap-northeast-1', username => 'AKIAIOSFODNN7EXAMPLE', password => 'CANARY0123456789abcdefghijklmnopqrstuvwxyzAB', from_address => 'shop@shop.example' }, user => 'AKIAIOSFODNN7EXAMPLE' },
    postmark => { hosts => [ 'smtp.postmarkapp.com', 'smtp-broadcasts.postmarkapp.com' ], fields => { password => '0f0e0d0c-1111-2222-3333-444455556666', from_address => 'shop@shop.example' }, user => '0f0e0d0c-1111-2222-3333-444455556666' },
    sakura => { hosts => ['shop.sakura.ne.jp'], fields => { host => 'shop.sakura.ne.jp', username => 'info@shop.example', password => 'CANARY-mailbox-password' }, user => 'info@shop.example' },
    onamae => { hosts => ['mail65.onamae.ne.jp'], fields => { host => 'mail65.onamae.ne.jp', username => 'info@shop.example', password => 'CANARY-mailbox-password' }, user => 'info@shop.example' },
    resend => { hosts => ['smtp.resend.com'], fields => { password => 're_CANARY456789abcdefghij', from_address => 'shop@shop.example' }, user => 'resend' });

is($node->sql(q{SELECT string_agg(name, ' ' ORDER BY name) FROM kliv_mail.providers}), join(' ', sort keys %provider), 'all providers are played');
my %smtp;
for my $name (sort keys %provider)
{
    my $row = $provider{$name};
    my $address = $names->address;
    my ($certificate, $key) = $site->{tls}->certificate($name, hosts => $row->{hosts});
    my $smtp = $smtp{$name} = KlivMail::SmtpServer->start(
        address => $address, tls => 1, starttls => 1, cert => $certificate, key => $key, record_clear => 1, auth => ["$row->{user}:$row->{fields}{password}"]);
    $names->add($_, $address, 587 => $smtp->port('starttls'), 2525 => $smtp->port('starttls'), 465 => $smtp->port('tls')) for @{ $row->{hosts} };
}
# A mail that did not arrive, of an address that its server will know later.
$site->{smtp}->set(rcpt_reply => '550 5.1.1 <lost@example.com>: no such user here');
my $lost = $node->sql(q{SELECT kliv_mail.send('lost@example.com', 'Your order 1234', 'x')});
$node->wait_until("SELECT status NOT IN ('queued', 'sending', 'scheduled') FROM kliv_mail.messages WHERE id = $lost");
$site->{smtp}->set(rcpt_reply => '');

$site->script('work.js', 'CANARY-of-boss', JSON::PP->new->canonical->encode({ map { $_ => $provider{$_}{fields} } keys %provider }));

for my $name (sort keys %provider)
{
    my ($login) = grep { $_->{ok} } $smtp{$name}->ledger('auth');
    is($login->{user}, $provider{$name}{user}, "$name: the login was right");
    ok($smtp{$name}->count > 0, '... and the test mail arrived');
    unlike($smtp{$name}->clear_bytes, qr/AUTH|\Q$provider{$name}{fields}{password}\E/, '... with nothing in clear');
}
is($node->sql(q{SELECT status || ' ' || in_use FROM kliv_mail.smtp_settings WHERE account = 'custom'}), 'reset false', 'reset to the platform');
is($node->sql("SELECT status FROM kliv_mail.messages WHERE id = $lost"), 'sent', 'the mail was retried and arrived');
is($node->sql(q{SELECT scope || ' ' || reason FROM kliv_mail.suppressions WHERE address = 'never@example.com'}), 'all asked by telephone', 'the address is suppressed');
like($node->sql(q{SELECT html FROM kliv_mail.preview_template('order-note', '{"firstName": "Ana"}')}), qr/Hello Ana/, 'the template is published');
# Gmail's, in small letters.
unlike(substr(slurp_file($node->logfile), $site->{log_begins}), qr/canarycanary|0f0e0d0c-1111/, 'no password of theirs in the log');
$site->end;
done_testing();
