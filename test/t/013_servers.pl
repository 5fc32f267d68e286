# Real servers: Postfix and aiosmtpd, with STARTTLS and AUTH and with TLS from
# the first byte; and every way in which a server cannot be trusted (A5).
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::Postfix;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use MIME::Base64;
use PostgreSQL::Test::Utils;
use Test::More;

my $tls = KlivMail::Tls->new(PostgreSQL::Test::Utils::tempdir() . '/tls');
my @good = $tls->certificate('good');
my @expired = $tls->certificate('expired', expired => 1);
my @other = $tls->certificate('other', hosts => ['mail.other.example']);
my @self = $tls->certificate('self', self_signed => 1);
my $password = 'correct-horse-battery';

my $node = KlivMail::Cluster->new(
    'main',
    conf => {
        'kliv_mail.allowed_hosts'   => '127.0.0.1, localhost',
        'kliv_mail.ca_file'         => $tls->ca_file,
        'kliv_mail.connect_timeout' => '5s'
    });

sub configure
{
    my ($port, $encryption, %option) = @_;
    my $user = exists $option{username} ? $option{username} : 'app';
    my $pass = $option{password} // $password;
    my $credentials = defined $user ? "username => '$user', password => '$pass'," : '';
    my $host = $option{host} // 'localhost';
    return $node->try("SELECT kliv_mail.configure_smtp(host => '$host', port => $port, encryption => '$encryption',
                           $credentials from_address => 'shop\@shop.example')");
}

sub delivers
{
    my ($recipient, $name) = @_;
    my $id = $node->sql("SELECT kliv_mail.send('$recipient', 'Grüße', 'über TLS')");
    is($node->sql("SELECT kliv_mail.wait($id, '60 s')"), 'sent', $name)
      or diag($node->sql("SELECT * FROM kliv_mail.deliveries WHERE message_id = $id \\gx"));
    return;
}

# ---- Postfix ----

SKIP:
{
    my $postfix = KlivMail::Postfix->running;
    skip 'Postfix needs root to start: run the tests as root, or with sudo that asks for no password', 6 unless $postfix;
    $node->reconfigure('kliv_mail.ca_file' => $postfix->ca_file);
    for my $kind ('starttls', 'tls')
    {
        my %login = (username => $postfix->username, password => $postfix->password);
        is(configure($postfix->port($kind), $kind, %login)->{err}, '', "Postfix: configure_smtp() with $kind");
        delivers("$kind\@postfix.example", "Postfix: delivery with $kind and AUTH");
        my $mail = $node->wait_for("the mail is in the mailbox",
            sub { (grep { /^Delivered-To: $kind\@postfix\.example$/m } $postfix->mails)[0] });
        KlivMail::RawMessages::mail("$kind\@postfix.example", $mail);
        like($mail, qr/^Received: .*\(Postfix\) with ESMTPSA id /ms, 'Postfix: received authenticated, inside TLS');
    }
    $node->reconfigure('kliv_mail.ca_file' => $tls->ca_file);
}

# ---- aiosmtpd ----

{
    my $folder = PostgreSQL::Test::Utils::tempdir();
    my ($in, $out) = ('', '');
    my $server = IPC::Run::start(
        [ '/usr/bin/python3', 'test/aiosmtpd_server.py', @good, "app:$password" ],
        '<', \$in, '>', \$out, '2>', \my $err);
    $server->pump until $out =~ /\n/;
    my ($starttls, $implicit) = $out =~ /(\d+) (\d+)/;
    for ([ starttls => $starttls ], [ tls => $implicit ])
    {
        my ($kind, $port) = @$_;
        is(configure($port, $kind)->{err}, '', "aiosmtpd: configure_smtp() with $kind");
        delivers("$kind\@aiosmtpd.example", "aiosmtpd: delivery with $kind and AUTH");
        $server->pump until $out =~ /^mail \Q$kind\E\@aiosmtpd\.example app tls$/m;
        pass("aiosmtpd: it has the mail");
        $server->pump until $out =~ /^bytes \Q$kind\E\@aiosmtpd\.example (\w+)$/m;
        KlivMail::RawMessages::mail("$kind\@aiosmtpd.example", pack 'H*', $1);
    }
    $in = "end\n";
    $server->kill_kill;
}

# ---- servers that are refused; nothing crosses in clear ----

my @servers;
# [name, options of the server, kind, change of the call, SQLSTATE, message]
my @scenarios = (
    [ 'a self-signed certificate', { cert => $self[0], key => $self[1] }, {}, qr/self[- ]signed|issuer|certificate/i ],
    [ 'an expired certificate', { cert => $expired[0], key => $expired[1] }, {}, qr/expired/i ],
    [ 'a certificate of another host', { cert => $other[0], key => $other[1] }, {}, qr/host ?name|does not match|localhost/i ],
    [ 'no AUTH offered', { no_auth => 1 }, {}, qr/AUTH/ ],
    [ 'wrong credentials', {}, { password => 'wrong' }, qr/535/ ]);
for my $scenario (@scenarios)
{
    my ($name, $options, $change, $message) = @$scenario;
    for my $kind ('starttls', 'tls')
    {
        my $smtp = KlivMail::SmtpServer->start(
            $kind => 1, cert => $good[0], key => $good[1], auth => ["app:$password"], record_clear => 1, %$options);
        my $result = configure($smtp->port, $kind, %$change);
        like($result->{state}, qr/^KM/, "$kind, $name: refused as a failed connection test");
        like("$result->{message}\n$result->{err}", $message, '... which names the reason');
        unlike($result->{err}, qr/\Q$password\E/, '... and not the password');
        is($smtp->count, 0, '... no mail');
        check_clear($smtp, "$kind, $name");
    }
}
{
    my $smtp = KlivMail::SmtpServer->start(
        starttls => 1, cert => $good[0], key => $good[1], auth => ["app:$password"], no_starttls => 1, auth_in_clear => 1,
        record_clear => 1);
    my $result = configure($smtp->port, 'starttls');
    like($result->{state}, qr/^KM003/, 'no STARTTLS offered: refused');
    like($result->{err}, qr/STARTTLS/, '... which names the reason');
    check_clear($smtp, 'no STARTTLS offered');
}
is(configure(25, 'none')->{state}, '22023', 'a password without TLS is an error');

# The same troubles when they come after the account was saved: the mail
# waits, says why, and goes once the trouble is over.
{
    my $smtp = KlivMail::SmtpServer->start(
        starttls => 1, cert => $good[0], key => $good[1], auth => ["app:$password"], record_clear => 1);
    is(configure($smtp->port, 'starttls')->{err}, '', 'a good server');
    for my $trouble (
        [ 'expired', { cert => $expired[0], key => $expired[1] }, qr/expired/i ],
        [ 'nostarttls', { cert => $good[0], key => $good[1], starttls_offered => 0 }, qr/STARTTLS/ ],
        [ 'auth', { starttls_offered => 1, auth_reply => '535 5.7.8 no longer' }, qr/535|refused user name or password/ ])
    {
        my ($name, $set, $reason) = @$trouble;
        $smtp->set(%$set);
        $smtp->drop_connections;
        my $id = $node->sql("SELECT kliv_mail.send('$name\@later.example', 'x', 'x')");
        $node->wait_until("SELECT held_by = 'account' FROM kliv_mail.deliveries WHERE message_id = $id");
        like($node->sql("SELECT reason || coalesce(hint, '') || coalesce(last_reply, '') FROM kliv_mail.deliveries WHERE message_id = $id"), $reason,
            "later $name: the delivery says why it waits");
        is(scalar($smtp->accepted("$name\@later.example")), 0, '... and has not left');
        $smtp->set(cert => $good[0], key => $good[1], starttls_offered => 1, auth_reply => '');
        is($node->try(q{SELECT kliv_mail.configure_smtp(test => true)})->{err}, '', '... configure_smtp() is the cure');
        is($node->sql("SELECT kliv_mail.wait($id, '60 s')"), 'sent', '... and it leaves');
    }
    check_clear($smtp, 'an account in trouble');
}
$node->stop;
done_testing();

# No byte of credentials or mail crossed outside of TLS.
sub check_clear
{
    my ($smtp, $name) = @_;
    my $clear = -e $smtp->dir . '/clear.raw' ? $smtp->clear_bytes : '';
    my $plain = encode_base64("\0app\0$password", '');
    my @found = grep { index($clear, $_) >= 0 } $password, $plain, encode_base64($password, ''), 'MAIL FROM', 'AUTH ', 'Subject:';
    is("@found", '', "$name: nothing crossed in clear");
    return;
}
