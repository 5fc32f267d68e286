# The eight presets against servers that play the providers: under their real
# names and ports, with their ways to log in and their words (issue 3, B1).
# Right credentials connect, are saved and send; each of people's mistakes is
# refused with a hint that names the cure.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::Names;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $tls = KlivMail::Tls->new("$folder/tls");
my $names = KlivMail::Names->new($folder);
my $node = KlivMail::Cluster->new(
    'main',
    start => 0,
    conf => {
        'kliv_mail.allowed_hosts'   => '127.0.1.0/24',
        'kliv_mail.ca_file'         => $tls->ca_file,
        'kliv_mail.connect_timeout' => '5s'
    });
{
    local %ENV = (%ENV, $names->environment);
    $node->start;
}
$node->sql('CREATE EXTENSION kliv_mail CASCADE');

my $token = '0f0e0d0c-1111-2222-3333-444455556666';
my $gmail_says = "535-5.7.8 Username and Password not accepted. For more information, go to\r\n535 5.7.8 https://support.google.com/mail/?p=BadCredentials d1sm1 - gsmtp";
my $sakura_menu = qr/コントロールパネル/;

# provider => {
#	hosts     names that its server answers to
#	port      of the preset; other: its second port, as arguments
#	good      arguments that are right; user, password: what its server then sees
#	refusal   its reply to wrong credentials
#	header    what it wants in each mail
#	mistakes  [what, arguments that replace those of good (undef: left out),
#	           SQLSTATE, error, hint, what the server is to say]
#	later     replies that come only with the mail: [what, server, reason, hint]
# }
my %provider = (
    gmail => {
        hosts => ['smtp.gmail.com'], port => 465, other => { port => 587 },
        good => { username => 'ana@gmail.com', password => 'abcd efgh ijkl mnop' },
        user => 'ana@gmail.com', password => 'abcdefghijklmnop',
        refusal => $gmail_says,
        mistakes => [
            [ 'the password of the Google account', { password => 'My-normal-passw0rd' }, '22023', qr/^password: is not an app password/, qr/app password.*2-Step Verification > App passwords/ ],
            [ 'an app password of another account', { password => 'zzzzyyyyxxxxwwww' }, 'KM005', qr/"auth".*password/, qr/App passwords/ ],
            [ 'a password where Google wants an app password', {}, 'KM005', qr/"auth"/, qr/App passwords/, { auth_reply => '534-5.7.9 Application-specific password required. For more information, go to' . "\r\n" . '534 5.7.9 https://support.google.com/mail/?p=InvalidSecondFactor d1sm1 - gsmtp' } ],
            [ 'no password', { password => undef }, '22023', qr/^password: is needed/, qr/App passwords/ ],
            [ 'no user name', { username => undef }, '22023', qr/^username: is needed/, qr/full mail address/i ],
            [ 'half a user name', { username => 'ana' }, '22023', qr/^username: "ana" is not a full mail address/, qr/full mail address/i ],
            [ 'tls on port 587', { port => 587, encryption => 'tls' }, '22023', qr/^encryption: .*587/, qr/starttls/ ],
            [ 'starttls on port 465', { port => 465, encryption => 'starttls' }, '22023', qr/^encryption: .*465/, qr/'tls'|587/ ],
            [ 'the limit of the day', {}, 'KM006', qr/"sender": the provider's daily limit is used up/, qr/by itself.*test => false/, { mail_reply => '550-5.4.5 Daily user sending limit exceeded. For more information on Gmail' . "\r\n" . '550 5.4.5 sending limits go to https://support.google.com/a/answer/166852 d1sm1 - gsmtp' } ],
            [ 'too many logins', {}, 'KM005', qr/"auth": the server saw too many logins/, qr/in an hour.*test => false/, { auth_reply => '454 4.7.0 Too many login attempts, please try again later. d1sm1 - gsmtp' } ],
        ]
    },
    sendgrid => {
        hosts => ['smtp.sendgrid.net'], port => 465, other => { port => 587 },
        good => { password => 'SG.aaaaaaaaaaaaaaaaaaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbb', from_address => 'shop@shop.example' },
        user => 'apikey',
        refusal => '535 Authentication failed: Bad username / password',
        header => qr/^X-SMTPAPI: \{"unique_args":\{"kliv_mail":"\d+"\}\}\r$/m,
        mistakes => [
            [ 'something else than an API key', { password => 'my-sendgrid-login' }, '22023', qr/^password: .*SG\./, qr/Settings > API Keys > Create API Key/ ],
            [ 'an API key that was deleted', { password => 'SG.deleted.deleted' }, 'KM005', qr/"auth"/, qr/API Keys > Create API Key.*Mail Send/ ],
            [ 'the name of the account as user name', { username => 'ana@shop.example' }, '22023', qr/^username: .*"apikey"/, qr/Leave it out/ ],
            [ 'no sender', { from_address => undef }, '22023', qr/^from_address: is needed/, qr/address that the mail shall come from/ ],
            [ 'a used-up plan', {}, 'KM005', qr/"auth": the provider's credits are used up/, qr/Buy credits.*next day/, { auth_reply => '451 Authentication failed: Maximum credits exceeded' } ],
        ],
        later => [
            [ 'an unverified sender', { dot_reply => '550 The from address does not match a verified Sender Identity. Mail cannot be sent until this error is resolved.' }, qr/sender address/, qr/Settings > Sender Authentication/ ],
        ]
    },
    mailgun => {
        hosts => ['smtp.mailgun.org'], port => 465, other => { port => 587 },
        good => { username => 'postmaster@mg.shop.example', password => 'smtp-credential-1234' },
        user => 'postmaster@mg.shop.example',
        refusal => '535 5.7.0 Authentication failed',
        header => qr/^X-Mailgun-Variables: \{"kliv_mail":"\d+"\}\r$/m,
        mistakes => [
            [ 'the API key', { password => 'key-0123456789abcdef0123456789abcdef' }, '22023', qr/^password: is an API key/, qr/SMTP credentials > Reset password.*not an API key/ ],
            [ 'an API key of the new form', { password => '0123456789abcdef0123456789abcdef-01234567-89abcdef' }, 'KM005', qr/"auth"/, qr/not an API key/ ],
            [ 'the other region', { password => 'of-a-domain-in-the-eu' }, 'KM005', qr/"auth"/, qr/^Mailgun was asked in the region 'us', where only credentials of that region are known \(there are: us eu\): give region => with theirs\./ ],
            [ 'a region that it does not have', { region => 'jp' }, '22023', qr/^region: "jp" is not a region/, qr/us eu/ ],
            [ 'a user name without domain', { username => 'postmaster' }, '22023', qr/^username: .*not a full mail address/, qr/SMTP credentials/ ],
            [ 'no user name', { username => undef }, '22023', qr/^username: is needed/, qr/SMTP credentials/ ],
        ],
        later => [
            [ 'a sandbox domain', { rcpt_reply => '550 5.7.1 Sandbox subdomains are for test purposes only. Please add your own domain or add the address to authorized recipients in Account Settings.' }, qr/not released this account/, qr/console/ ],
        ]
    },
    ses => {
        hosts => ['email-smtp.ap-northeast-1.amazonaws.com'], port => 465, other => { port => 587 },
        good => { region => 'ap-northeast-1', username => 'AKIAIOSFODNN7EXAMPLE', password => 'BJz0123456789abcdefghijklmnopqrstuvwxyzABCDE', from_address => 'shop@shop.example' },
        user => 'AKIAIOSFODNN7EXAMPLE',
        refusal => '535 Authentication Credentials Invalid',
        mistakes => [
            [ 'the secret access key of an IAM user', { password => 'wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY01' }, '22023', qr/^password: has the 40 characters of a secret access key/, qr/SMTP settings > Create SMTP credentials/ ],
            [ 'no region', { region => undef }, '22023', qr/^region: is needed/, qr/region => 'us-east-1'/ ],
            [ 'a region by its name', { region => 'Tokyo' }, '22023', qr/^region: "Tokyo"/, qr/ap-northeast-1/ ],
            [ 'credentials of another region', { password => 'BJz9876543210abcdefghijklmnopqrstuvwxyzABCDE' }, 'KM005', qr/"auth"/, qr/^Amazon SES was asked in the region 'ap-northeast-1', .*give region => with theirs\. .*SMTP password of this region/ ],
            [ 'a mail address as user name', { username => 'ana@shop.example' }, '22023', qr/^username: .*not an SMTP user name/, qr/AKIA/ ],
            [ 'no user name', { username => undef }, '22023', qr/^username: is needed/, qr/AKIA/ ],
            [ 'no sender', { from_address => undef }, '22023', qr/^from_address: is needed/, qr/address that the mail shall come from/ ],
        ],
        later => [
            [ 'an unverified sender', { dot_reply => '554 Message rejected: Email address is not verified. The following identities failed the check in region AP-NORTHEAST-1: shop@shop.example' }, qr/sender address/, qr/Amazon SES > Identities/ ],
        ]
    },
    postmark => {
        hosts => [ 'smtp.postmarkapp.com', 'smtp-broadcasts.postmarkapp.com' ], port => 587, other => { port => 2525 },
        good => { password => $token, from_address => 'shop@shop.example' },
        user => $token,
        refusal => '535 5.7.8 Error: authentication failed',
        header => qr/^X-PM-Message-Stream: outbound\r\nX-PM-Metadata-kliv-mail: \d+\r$/m,
        mistakes => [
            [ 'port 465', { port => 465 }, '22023', qr/^port: .*does not answer on port 465/, qr/587/ ],
            [ 'a token of another server', { password => 'ffffffff-1111-2222-3333-444455556666' }, 'KM005', qr/"auth"/, qr/Server API token: Postmark > your server > API Tokens/ ],
            [ 'the mail address as user name', { username => 'ana@shop.example' }, 'KM005', qr/"auth"/, qr/Server API token/ ],
            [ 'no token', { password => undef }, '22023', qr/^(?:username|password): is needed/, qr/Server API token/ ],
            [ 'no sender', { from_address => undef }, '22023', qr/^from_address: is needed/, qr/address that the mail shall come from/ ],
        ],
        later => [
            [ 'an address without signature', { dot_reply => q{550 5.7.1 The 'From' address you supplied (shop@shop.example) is not a Sender Signature on your account.} }, qr/sender address/, qr/Sender Signatures/ ],
            [ 'an account that is not approved', { dot_reply => q{550 5.7.1 While your account is pending approval, all recipient addresses must share the same domain as the 'From' address. The account is not yet approved.} }, qr/not released this account/, qr/console|support/ ],
        ]
    },
    sakura => {
        hosts => ['shop.sakura.ne.jp'], port => 587, other => { port => 465 },
        good => { host => 'shop.sakura.ne.jp', username => 'info@shop.example', password => 'mailbox-password' },
        user => 'info@shop.example',
        refusal => '535 5.7.0 authentication failed',
        mistakes => [
            [ 'no host', { host => undef }, '22023', qr/^host: is needed/, qr/初期ドメイン.*sakura\.ne\.jp/ ],
            [ 'a host of its own domain', { host => 'smtp.shop.example' }, '22023', qr/^host: "smtp\.shop\.example" is not a server of Sakura/, qr/初期ドメイン/ ],
            [ 'half a user name', { username => 'info' }, '22023', qr/^username: .*not a full mail address/, qr/$sakura_menu > メール > メール一覧/ ],
            [ 'the password of the control panel', { password => 'of-the-panel' }, 'KM005', qr/"auth"/, qr/mailbox's own password.*$sakura_menu.*会員メニュー/ ],
            [ 'a sender that the mailbox may not use', { from_address => 'boss@other.example' }, 'KM006', qr/"sender".*boss\@other\.example/, qr/address that logs in/, { mail_reply => '553 5.7.1 <boss@other.example>: Sender address rejected: not owned by user info@shop.example' } ],
        ]
    },
    onamae => {
        hosts => ['mail65.onamae.ne.jp'], port => 465, other => { port => 587 },
        good => { host => 'mail65.onamae.ne.jp', username => 'info@shop.example', password => 'mailbox-password' },
        user => 'info@shop.example',
        refusal => '535 5.7.8 Error: authentication failed: UGFzc3dvcmQ6',
        mistakes => [
            [ 'no host', { host => undef }, '22023', qr/^host: is needed/, qr/メールサーバー名.*mail65\.onamae\.ne\.jp.*$sakura_menu/ ],
            [ 'a host of its own domain', { host => 'smtp.shop.example' }, '22023', qr/^host: "smtp\.shop\.example" is not a server of Onamae/, qr/mail65\.onamae\.ne\.jp.*certificate/i ],
            [ 'half a user name', { username => 'info' }, '22023', qr/^username: .*not a full mail address/, qr/$sakura_menu > メール/ ],
            [ 'the password of the customer account', { password => 'of-onamae-navi' }, 'KM005', qr/"auth"/, qr/mailbox's own password.*メールパスワード/ ],
            [ 'a sender that the mailbox may not use', { from_address => 'boss@other.example' }, 'KM006', qr/"sender"/, qr/address that logs in/, { mail_reply => '553 5.7.1 <boss@other.example>: Sender address rejected: not owned by user info@shop.example' } ],
        ]
    },
    resend => {
        hosts => ['smtp.resend.com'], port => 465, other => { port => 587 },
        good => { password => 're_0123456789abcdefghij', from_address => 'shop@shop.example' },
        user => 'resend',
        refusal => '535 Invalid username or password',
        header => qr/^Resend-Idempotency-Key: \d+\/\S+\@\S+\r$/m,
        mistakes => [
            [ 'something else than an API key', { password => 'my-login' }, '22023', qr/^password: .*re_/, qr/API Keys/ ],
            [ 'an API key that was deleted', { password => 're_deleted_deleted' }, 'KM005', qr/"auth"/, qr/API Keys/ ],
            [ 'a mail address as user name', { username => 'ana@shop.example' }, '22023', qr/^username: .*"resend"/, qr/Leave it out/ ],
            [ 'no sender', { from_address => undef }, '22023', qr/^from_address: is needed/, qr/address that the mail shall come from/ ],
        ],
        later => [
            [ 'a domain that is not verified', { dot_reply => '550 The shop.example domain is not verified. Please, add and verify your domain on https://resend.com/domains' }, qr/sender address/, qr/Domains/ ],
            [ 'the limit of the day', { dot_reply => '550 You have reached your daily email sending quota.' }, qr/daily limit/, qr/tried every hour/ ],
        ]
    });

# One session: what these tests do most is ask.
my $session = $node->session;

sub configure
{
    my ($provider, %argument) = @_;
    $argument{provider} = $provider;
    return $session->try('SELECT FROM kliv_mail.configure_smtp('
          . join(', ', map { "$_ => " . ($argument{$_} =~ /^\d+$/ ? $argument{$_} : "'$argument{$_}'") } grep { defined $argument{$_} } sort keys %argument)
          . ')');
}

is($session->query('SELECT string_agg(name, \' \' ORDER BY name) FROM kliv_mail.providers'), join(' ', sort keys %provider), 'every preset has its rows here');

for my $name (sort keys %provider)
{
    my $row = $provider{$name};
    my $password = $row->{password} // $row->{good}{password};
    my $address = $names->address;
    my ($cert, $key) = $tls->certificate($name, hosts => $row->{hosts});
    my $smtp = KlivMail::SmtpServer->start(
        address => $address, tls => 1, starttls => 1, cert => $cert, key => $key, record_clear => 1,
        auth => ["$row->{user}:$password"], auth_failure => $row->{refusal});
    my %ports = (587 => $smtp->port('starttls'), 2525 => $smtp->port('starttls'), 465 => $smtp->port('tls'));
    # What the provider does not have is not played.
    delete $ports{465} if $name eq 'postmark';
    $names->add($_, $address, %ports) for @{ $row->{hosts} };

    # Mistakes first: nothing may be saved by them.
    for my $mistake (@{ $row->{mistakes} })
    {
        my ($what, $change, $state, $error, $hint, $set) = @$mistake;
        $smtp->set(%$set) if $set;
        my $result = configure($name, %{ $row->{good} }, %$change);
        $smtp->set(map { $_ => '' } keys %$set) if $set;
        is($result->{state}, $state, "$name, $what: refused");
        like($result->{message}, $error, '... by name');
        like($result->{hint}, $hint, '... and the hint is the cure');
        my $secret = $change->{password} // $row->{good}{password};
        unlike($result->{err}, qr/\Q$secret\E/, '... without the password');
    }
    is($session->query('SELECT count(*) FROM kliv_mail.smtp_settings WHERE account = \'custom\' AND in_use'), 0, "$name: nothing was saved by mistake");
    is($smtp->count, 0, '... and nothing sent');

    # The right ones, in one statement, test included.
    my $result = configure($name, %{ $row->{good} });
    is($result->{state}, '', "$name: configure_smtp() with right credentials");
    like($result->{err}, qr/\ANOTICE: [^\n]*what the test cannot show: .{20}[^\n]*\nHINT: [^\n]*test_smtp\(send_to => 'you\@example\.com', account => 'custom'\); proves it/, '... says what it did not prove, and how to');
    is($session->query('SELECT provider, host, port, encryption, status, username IS NOT NULL FROM kliv_mail.smtp_settings WHERE account = \'custom\''),
        join('|', $name, $row->{hosts}[0], $row->{port}, $row->{port} == 465 ? 'tls' : 'starttls', 'ok', 't'), '... fills in the rest');
    my ($login) = grep { $_->{ok} } reverse $smtp->ledger('auth');
    is($login->{user}, $row->{user}, '... logs in with the right name');
    ok($login->{tls}, '... inside TLS');

    # Its other port.
    my $other = join ', ', map { "$_ => $row->{other}{$_}" } keys %{ $row->{other} };
    is($session->query("SELECT count(*), bool_and(ok) FROM kliv_mail.test_smtp($other, password => '$row->{good}{password}')"), '6|t', "$name: test_smtp($other)");

    # A mail.
    my $id = $session->query("SELECT kliv_mail.send('to-$name\@example.com', 'Hello', 'It works')");
    is($session->query("SELECT kliv_mail.wait($id, '30 s')"), 'sent', "$name: sends")
      or diag($session->query("SELECT * FROM kliv_mail.deliveries WHERE message_id = $id \\gx"));
    my ($entry) = $smtp->accepted("to-$name\@example.com");
    is($entry->{user}, $row->{user}, '... through the login');
    is($entry->{mail_from}, $row->{good}{from_address} // $row->{good}{username}, '... from the right sender');
    like($smtp->message($entry), $row->{header}, '... with the headers of the provider') if $row->{header};
    if ($name eq 'postmark')
    {
        # A stream that the caller names counts, and stands there once.
        $id = $session->query(q{SELECT kliv_mail.send('stream@example.com', 'Hello', 'It works', headers => '{"x-pm-message-stream": "broadcast"}')});
        is($session->query("SELECT kliv_mail.wait($id, '30 s')"), 'sent', "$name: a stream of the caller's");
        my @streams = $smtp->message($smtp->accepted('stream@example.com')) =~ /^X-PM-Message-Stream: (.*)\r$/mig;
        is_deeply(\@streams, ['broadcast'], '... is the only one');
    }

    # What the provider only says when the mail is there.
    for my $later (@{ $row->{later} // [] })
    {
        my ($what, $set, $reason, $hint) = @$later;
        $smtp->set(%$set);
        $id = $session->query("SELECT kliv_mail.send('later-$name\@example.com', 'Hello', 'It works')");
        $node->wait_until("SELECT held_by IS NOT NULL FROM kliv_mail.deliveries WHERE message_id = $id");
        my ($why, $cure) = split /\|/, $session->query("SELECT reason, hint FROM kliv_mail.deliveries WHERE message_id = $id");
        like($why, $reason, "$name, $what: the delivery waits and says why");
        like($cure, $hint, '... and the hint is the cure');
        $smtp->set(map { $_ => '' } keys %$set);
        is($session->query('SELECT bool_and(ok) FROM kliv_mail.test_smtp()'), 't', '... when it is done, test_smtp()');
        is($session->query("SELECT kliv_mail.wait($id, '30 s')"), 'sent', '... lets the mail go');
    }
    my $clear = $smtp->clear_bytes;
    unlike($clear, qr/AUTH|MAIL FROM|\Q$password\E/, "$name: nothing crossed in clear");
    $session->query('SELECT kliv_mail.reset_smtp(); DELETE FROM kliv_mail._account');
    $smtp->stop;
}

# Mailgun's other region is another server, under another name.
{
    my $address = $names->address;
    my ($cert, $key) = $tls->certificate('eu', hosts => ['smtp.eu.mailgun.org']);
    my $smtp = KlivMail::SmtpServer->start(address => $address, tls => 1, cert => $cert, key => $key, auth => ['postmaster@mg.shop.example:of-the-eu']);
    $names->add('smtp.eu.mailgun.org', $address, 465 => $smtp->port);
    my %eu = (username => 'postmaster@mg.shop.example', region => 'eu');
    my $hint = configure('mailgun', %eu, password => 'of-the-us')->{hint};
    like($hint, qr/^Mailgun was asked in the region 'eu'/, 'mailgun, region eu with credentials of the US: the hint says where it asked');
    unlike($hint, qr/=> 'eu'/, '... and does not send there again');
    is(configure('mailgun', %eu, password => 'of-the-eu')->{state}, '', '... with its own');
    is($session->query(q{SELECT host FROM kliv_mail.smtp_settings WHERE account = 'custom'}), 'smtp.eu.mailgun.org', '... is its own host');
}

# Onamae's old name: its certificate is made out to another one, which the hint tells.
{
    my $address = $names->address;
    my ($cert, $key) = $tls->certificate('old', hosts => ['mail65.onamae.ne.jp']);
    my $smtp = KlivMail::SmtpServer->start(address => $address, tls => 1, cert => $cert, key => $key, auth => ['info@shop.example:mailbox-password']);
    $names->add('smtp.shop.example', $address, 465 => $smtp->port);
    my $result = $session->try(q{SELECT kliv_mail.configure_smtp(provider => '', host => 'smtp.shop.example', port => 465, username => 'info@shop.example', password => 'mailbox-password')});
    is($result->{state}, 'KM003', 'a certificate of another name is refused');
    like($result->{message}, qr/not for "smtp\.shop\.example" but for mail65\.onamae\.ne\.jp/, '... and the right name is told');
    like($result->{hint}, qr/Use as host a name that the certificate is for/, '... as the cure');
    is(scalar($smtp->ledger('auth')), 0, '... before any login');
}

# Gmail by token: XOAUTH2, and an expired token's cure.
{
    my $address = $names->address;
    my ($cert, $key) = $tls->certificate('token', hosts => ['smtp-relay.gmail.com']);
    my $smtp = KlivMail::SmtpServer->start(address => $address, tls => 1, cert => $cert, key => $key, auth => ['ana@shop.example:ya29.token'],
        auth_mechanisms => 'LOGIN PLAIN XOAUTH2', auth_failure => $gmail_says);
    $names->add('smtp-relay.gmail.com', $address, 465 => $smtp->port);
    my %relay = (host => 'smtp-relay.gmail.com', username => 'ana@shop.example', auth => 'oauth2');
    my $result = configure('gmail', %relay, password => 'ya29.expired');
    is($result->{state}, 'KM005', 'gmail, auth => oauth2: an expired token');
    like("$result->{message} $result->{hint}", qr/token/, '... is told as one');
    $result = configure('gmail', %relay, password => 'ya29.token');
    is($result->{state}, '', 'gmail, auth => oauth2');
    like("@{ $result->{notices} }", qr/\Athe account "custom" used smtp\.eu\.mailgun\.org until now what the test cannot show: Gmail/, '... says what server was used until now');
    is((grep { $_->{ok} } $smtp->ledger('auth'))[0]{mechanism}, 'XOAUTH2', '... logs in by XOAUTH2');
}

# As people write it, in databases of two encodings; and what is none of the list.
$node->sql(q{CREATE DATABASE euc TEMPLATE template0 ENCODING 'EUC_JP' LOCALE 'C'});
$node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => 'euc');
for my $dbname (qw(postgres euc))
{
    my $ask = sub { return $node->sql("SET client_encoding = 'UTF8'; $_[0]", dbname => $dbname) };
    for ([ 'お名前.com', 'onamae', q{, host => 'mail65.onamae.ne.jp', username => 'info@shop.example'} ], [ 'さくら', 'sakura', q{, host => 'shop.sakura.ne.jp', username => 'info@shop.example'} ],
        [ 'AWS SES', 'ses', q{, region => 'ap-northeast-1', username => 'AKIAIOSFODNN7EXAMPLE', from_address => 'a@shop.example'} ])
    {
        my ($written, $name, $more) = @$_;
        $ask->("SET client_min_messages = warning; SELECT kliv_mail.configure_smtp(provider => '$written', password => 'x', test => false$more)");
        is($ask->(q{SELECT provider FROM kliv_mail.smtp_settings WHERE account = 'custom'}), $name, "$written is $name in $dbname");
    }
    like($ask->(q{SELECT string_agg(notes_ja, ' ') FROM kliv_mail.providers WHERE name IN ('sakura', 'onamae')}), qr/国外IPアドレスフィルタ.*SMTP認証国外アクセス制限/, '... notes in Japanese name the filters of foreign access');
    is($ask->(q{SELECT count(*) FROM kliv_mail.providers WHERE notes_ja !~ '[^ -~]{10}' OR notes_ja IS NULL}), 0, '... of all providers');
}
my $unknown = $node->try(q{SET client_encoding = 'UTF8'; SELECT kliv_mail.configure_smtp(provider => 'エックスサーバー', password => 'x')});
like("$unknown->{state} $unknown->{hint}", qr/^22023 Choose one of gmail, .*resend; or leave it out and give host, username and password/, 'another provider: the list, and what to do without');
is($node->sql(q{SELECT verdict FROM kliv_mail.classify_reply('rcpt', '550 5.7.1 <a@shop.example>... Command rejected', 'さくら')}), 'account_trouble', 'classify_reply() knows a provider by those names, too');
$node->stop;
done_testing();
