# test_smtp(): the steps are right, whatever the server is like, and so is the
# hint; cancelled at any step it leaves nothing; send_to (issue 3, B7).
use strict;
use warnings;
use IO::Socket::INET;
use KlivMail::Cluster;
use KlivMail::Names;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $folder = PostgreSQL::Test::Utils::tempdir();
my $tls = KlivMail::Tls->new("$folder/tls");
my @good = $tls->certificate('good');
my @expired = $tls->certificate('expired', expired => 1);
my @other = $tls->certificate('other', hosts => ['mail.other.example']);
my @self = $tls->certificate('self', self_signed => 1);
my $password = 'correct-horse-battery';
my $timeout = 1.5;

my $names = KlivMail::Names->new($folder);
my $node = KlivMail::Cluster->new(
    'main',
    start => 0,
    conf => {
        'kliv_mail.allowed_hosts'   => '127.0.0.1, localhost',
        'kliv_mail.ca_file'         => $tls->ca_file,
        'kliv_mail.connect_timeout' => "${timeout}s",
        'kliv_mail.reply_timeout'   => '3s'
    });
{
    local %ENV = (%ENV, $names->environment);
    $node->start;
}
$node->sql('CREATE EXTENSION kliv_mail CASCADE');
my $session = $node->session;

# Rows of test_smtp() as [step, ok, detail, hint], or the error's text.
sub steps
{
    my ($arguments, $in) = @_;
    my $printed = ($in // $session)->query("SELECT step, ok, elapsed_ms >= 0, detail, hint FROM kliv_mail.test_smtp($arguments)");
    return $printed if $printed =~ /^ERROR/m;
    return [ map { my ($step, $ok, $time, $detail, $hint) = split /\|/, $_, 5; [ $step, $ok eq 't', $detail, $hint, $time ] } split /\n/, $printed ];
}

sub arguments
{
    my %argument = (host => 'localhost', username => 'app', password => $password, from_address => 'shop@shop.example', @_);
    return join ', ', map { "$_ => " . ($argument{$_} =~ /^\d+$/ ? $argument{$_} : "'$argument{$_}'") } grep { defined $argument{$_} } sort keys %argument;
}

# One server with both kinds of listener; each row below makes it what it needs.
my $smtp = KlivMail::SmtpServer->start(plain => 1, tls => 1, starttls => 1, cert => $good[0], key => $good[1], auth => ["app:$password"], record_clear => 1);
my $old = KlivMail::SmtpServer->start(tls => 1, starttls => 1, cert => $good[0], key => $good[1], auth => ["app:$password"], tls_max => '1.1');
my $closed = do { my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1); $socket->sockport };
my %port = map { $_ => $smtp->port($_) } qw(plain tls starttls);
# Ports that mean something; localhost by IPv4 alone, wherever this runs.
$names->add('localhost', '127.0.0.1', 0 => 0);
$names->add('plain-on-465.example', '127.0.0.1', 465 => $port{starttls});
$names->add('tls-on-587.example', '127.0.0.1', 587 => $port{tls});
$names->missing('no-such-host.example');

# ---- the steps ----

my %normal = (cert => $good[0], key => $good[1], silent => 0, starttls_offered => 1, auth_offered => 1, auth_mechanisms => 'PLAIN LOGIN',
    greeting_reply => '', ehlo_reply => '', starttls_reply => '', auth_reply => '', mail_reply => '', rcpt_reply => '');

# [what, kinds, state of the server, arguments, steps before, step that fails (with
# starttls another), SQLSTATE, detail, hint]
my $both = [ 'tls', 'starttls' ];
my @rows = (
    [ 'no such host', $both, {}, { host => 'no-such-host.example' }, 'dns', qr/no address was found for host "no-such-host\.example"/, qr/spelling/ ],
    [ 'a closed port', $both, {}, { port => $closed }, 'connect', qr/could not connect to localhost \((?:127\.0\.0\.1|::1)\) port $closed: Connection refused/, qr/host and port.*firewall/ ],
    [ 'a silent server', $both, { silent => 1 }, {}, { tls => 'tls', starttls => 'connect' }, qr/within (?:1\.5|3) s/, qr/starttls/ ],
    [ 'a server without TLS on port 465', ['tls'], {}, { host => 'plain-on-465.example', port => 465 }, 'tls', qr/port 465 does not begin with TLS .*wrong version number/, qr/'starttls' with port 587/ ],
    [ 'a server with TLS on port 587', ['starttls'], {}, { host => 'tls-on-587.example', port => 587 }, 'connect', qr/port 587 sent no greeting/, qr/encryption => 'tls'.*port 465/ ],
    [ 'a greeting that refuses', $both, { greeting_reply => '554 5.7.1 your address is listed at zen.spamhaus.org' }, {}, { tls => 'tls', starttls => 'connect' }, qr/listed at zen\.spamhaus\.org/, qr/address up in the list/ ],
    [ 'B086: an expired certificate', $both, { cert => $expired[0], key => $expired[1] }, {}, 'tls', qr/certificate has expired/, qr/renew/ ],
    [ 'B086: a self-signed certificate', $both, { cert => $self[0], key => $self[1] }, {}, 'tls', qr/self-signed/, qr/kliv_mail\.ca_file/ ],
    [ 'B086: a certificate of another host', $both, { cert => $other[0], key => $other[1] }, {}, 'tls', qr/not for "localhost" but for mail\.other\.example/, qr/name that the certificate is for/ ],
    [ 'TLS 1.1', $both, {}, { port => 'old' }, 'tls', qr/TLS/, qr/TLS 1\.2/ ],
    [ 'B085: no STARTTLS', ['starttls'], { starttls_offered => 0 }, {}, 'tls', qr/offers no STARTTLS/, qr/'tls'.*465/ ],
    [ 'STARTTLS refused', ['starttls'], { starttls_reply => '454 4.7.0 TLS not available' }, {}, 'tls', qr/454 4\.7\.0 TLS not available/, qr/later/ ],
    [ 'EHLO refused', ['starttls'], { ehlo_reply => '550 5.7.1 go away' }, {}, 'ehlo', qr/550 5\.7\.1 go away/, qr/./ ],
    [ 'a line that is no reply', ['starttls'], { ehlo_reply => 'garbage' }, {}, 'ehlo', qr/./, undef ],
    [ 'no AUTH', $both, { auth_offered => 0 }, {}, 'auth', qr/offers no AUTH/, qr/587 or 465/ ],
    [ 'no AUTH that we know', $both, { auth_mechanisms => 'GSSAPI NTLM' }, {}, 'auth', qr/GSSAPI NTLM.*PLAIN, LOGIN/, qr/oauth2/ ],
    [ 'a web server', ['starttls'], { greeting_reply => 'garbage' }, {}, { starttls => 'connect' }, qr/sent no (?:SMTP )?greeting/, qr/port 587/ ],
    [ 'no AUTH that can be used', $both, { auth_mechanisms => 'CRAM-MD5' }, {}, 'auth', qr/CRAM-MD5.*PLAIN, LOGIN/, qr/oauth2/ ],
    [ 'wrong credentials', $both, {}, { password => 'wrong' }, 'auth', qr/535 5\.7\.8 Error: authentication failed/, qr/user name and password/ ],
    [ '454 at AUTH', $both, { auth_reply => '454 4.7.0 Temporary authentication failure' }, {}, 'auth', qr/454 4\.7\.0 Temporary authentication failure/, qr/later/ ],
    [ 'lost at AUTH', $both, { auth_reply => 'drop' }, {}, 'auth', qr/closed/, undef ],
    [ 'a sender that is refused', $both, { mail_reply => '550 5.7.1 <shop@shop.example>: Sender address rejected: not owned by user app' }, {}, 'sender', qr/"shop\@shop\.example".*not owned by user app/, qr/update_sender\(from_address/ ],
    [ 'a sender that is refused for now', $both, { mail_reply => '451 4.3.0 try later' }, {}, 'sender', qr/451 4\.3\.0 try later/, qr/later/ ],
    [ 'a sender that is refused at RCPT, as by Postfix and Exim', $both, { rcpt_reply => '553 5.7.1 <shop@shop.example>: Sender address rejected: not owned by user app' }, {}, 'sender', qr/"shop\@shop\.example".*not owned by user app/, qr/update_sender\(from_address/ ],
    [ 'lost at MAIL', $both, { mail_reply => 'drop' }, {}, 'sender', qr/closed/, undef ]);

my %state = (dns => 'KM001', connect => 'KM002', tls => 'KM003', ehlo => 'KM004', auth => 'KM005', sender => 'KM006');

# Which steps come before the one that fails.
sub expected
{
    my ($kind, $failing) = @_;
    my @before;
    for my $step (qw(dns connect tls ehlo auth sender))
    {
        # The first EHLO comes before STARTTLS.
        next if $step eq 'tls' && $failing eq 'ehlo' && $kind eq 'starttls';
        return join ' ', @before, "$step!" if $step eq $failing;
        push @before, $step;
    }
    return "$failing?";
}

# A server that is reached at once and greets late is none that cannot be reached; each step has a time of its own.
for my $kind ('starttls', 'tls')
{
    $smtp->set(%normal, greeting_delay => 2200);
    my $rows = steps(arguments(port => $port{$kind}, encryption => $kind));
    is(ref $rows ? join(' ', map { $_->[0] . ($_->[1] ? '' : '!') } @$rows) : $rows, 'dns connect tls ehlo auth sender',
        "$kind, a greeting later than connect_timeout: waited for");
    $smtp->set(%normal, greeting_delay => 0);
}
{
    $smtp->set(%normal, silent => 1);
    my $rows = steps(arguments(port => $port{plain}, encryption => 'none', username => '', password => undef));
    like($rows->[-1][2], qr/sent no greeting within 3 s/, 'no greeting at all: how long it was waited for');
    unlike($rows->[-1][3], qr/TLS/i, '... without TLS the hint does not speak of it');
    like($rows->[-1][3], qr/connect_timeout/, '... and names the setting for a slow server');
    $smtp->set(%normal);
}

# AUTH LOGIN: a server that does not read an initial response asks for the user name first.
for my $mechanisms ('LOGIN', 'PLAIN LOGIN', 'LOGIN PLAIN', 'PLAIN')
{
    $smtp->set(%normal, auth_mechanisms => $mechanisms, ignore_initial => 1);
    my $rows = steps(arguments(port => $port{tls}, encryption => 'tls'));
    is(ref $rows ? join(' ', map { $_->[0] . ($_->[1] ? '' : '!') } @$rows) : $rows, 'dns connect tls ehlo auth sender',
        "AUTH $mechanisms, LOGIN by its challenges");
    is(($smtp->ledger('auth'))[-1]{user}, 'app', '... the user name is the user name');
    $smtp->set(%normal, ignore_initial => 0);
}

for my $row (@rows)
{
    my ($what, $kinds, $set, $change, $failing, $detail, $hint) = @$row;
    $smtp->set(%normal, %$set);
    for my $kind (@$kinds)
    {
        my %change = %$change;
        $change{port} = $old->port($kind) if ($change{port} // '') eq 'old';
        my $arguments = arguments(port => $port{$kind}, encryption => $kind, %change);
        my $fails = ref $failing ? $failing->{$kind} : $failing;
        my $start = Time::HiRes::time();
        my $rows = steps($arguments);
        my $took = Time::HiRes::time() - $start;
        is(ref $rows ? join(' ', map { $_->[0] . ($_->[1] ? '' : '!') } @$rows) : $rows, expected($kind, $fails), "$kind, $what: the steps");
        next unless ref $rows;
        my $last = $rows->[-1];
        like($last->[2], $detail, '... what is wrong') or diag("@$last");
        defined $hint ? like($last->[3], $hint, '... and the cure') : is(scalar(@$last), 5, '... and all columns');
        cmp_ok($took, '<', $timeout + 4, '... within the time limit');
        is(scalar(grep { $_->[4] ne 't' } @$rows), 0, '... times are not negative');
        my $error = $session->try("SELECT FROM kliv_mail.configure_smtp($arguments)");
        is($error->{state}, $state{$fails}, '... and configure_smtp() fails by it')
          or diag($error->{err});
        like($error->{message}, qr/step "$fails"/, '... and names the step');
        unlike($error->{err} . join(' ', map { "@$_[0 .. 3]" } @$rows), qr/\Q$password\E/, '... without the password');
    }
}
is($session->query(q{SELECT count(*) FROM kliv_mail.smtp_settings WHERE account <> 'platform'}), 0, 'nothing was saved by any of them');
unlike($smtp->clear_bytes, qr/^(?:AUTH|MAIL FROM)|\Q$password\E/m, 'and nothing secret crossed in clear');
is($smtp->count, 0, 'nor was a mail sent');

# ---- B081, B082: where nobody may connect ----

$smtp->set(%normal);
{
    my $private = KlivMail::SmtpServer->start(address => '127.0.2.1', tls => 1, cert => $good[0], key => $good[1], auth => ["app:$password"]);
    $names->add('private.example', '127.0.2.1', 465 => $private->port);
    $names->add('mixed.example', '127.0.2.1', 465 => $private->port);
    $names->add('mixed.example', '127.0.0.1', 465 => $port{tls});
    my $rows = steps(arguments(host => 'private.example', port => 465));
    like($rows->[-1][2], qr/^host "private\.example" is 127\.0\.2\.1, a loopback, link-local, private or reserved address$/, 'B081: a name of a private address');
    is($session->try('SELECT FROM kliv_mail.configure_smtp(' . arguments(host => 'private.example', port => 465) . ')')->{state}, '42501', '... is refused');
    # The certificate is not for that name, so the test ends at tls: by the other address.
    $rows = steps(arguments(host => 'mixed.example', port => 465));
    is(join(' ', map { $_->[0] . ($_->[1] ? '' : '!') } @$rows), 'dns connect tls!', 'B082: a name of a private and another address');
    is($rows->[0][2], 'mixed.example is 127.0.0.1', '... is connected to at the other one');
    like($rows->[1][3], qr/^Another address of the host, 127\.0\.2\.1, is loopback/, '... with a warning of the private one');
    is($private->state->{connections}, 0, '... and the private one is never connected to');
}

# ---- a good server ----

$smtp->set(%normal);
for my $kind (@$both)
{
    my $rows = steps(arguments(port => $port{$kind}, encryption => $kind));
    is(join(' ', map { $_->[0] . ($_->[1] ? '' : '!') } @$rows), 'dns connect tls ehlo auth sender', "$kind, a good server: all steps");
    my %detail = map { $_->[0] => $_->[2] } @$rows;
    like($detail{dns}, qr/^localhost is 127\.0\.0\.1$/, '... dns names the address');
    like($detail{connect}, qr/^127\.0\.0\.1 port $port{$kind}$/, '... connect the port');
    like($detail{tls}, qr/^TLSv1\.[23].*localhost.*kliv_mail test authority.*expires \w{3} +\d+ .*\d{4} GMT/, '... tls version, subject, issuer and expiry');
    like($detail{ehlo}, qr/SIZE 52428800.*AUTH PLAIN LOGIN.*PIPELINING.*8BITMIME/, '... ehlo what the server offers');
    like($detail{sender}, qr/MAIL FROM and RCPT TO:<shop\@shop\.example>: 250 2\.1\.5 Ok/, '... sender the server\'s own words');
    like($rows->[-1][3], qr/may check the sender again/, '... and what it cannot prove');
}
is(join(' ', map { $_->[0] } @{ steps("host => 'localhost', port => $port{plain}, username => '', encryption => 'none', from_address => 'shop\@shop.example'") }),
    'dns connect ehlo sender', 'without login and TLS there are no such steps');
# The own address need be no mailbox: that says nothing about its sending.
$smtp->set(rcpt_reply => '550 5.1.1 <shop@shop.example>: Recipient address rejected: User unknown');
{
    my $last = steps(arguments(port => $port{tls}, encryption => 'tls'))->[-1];
    ok($last->[1], 'a sender without a mailbox is a good one') or diag("@$last");
    like($last->[3], qr/answers to it go nowhere/, '... and the hint says what that means');
}
$smtp->set(%normal);
is($smtp->count, 0, 'a test sends nothing');
unlike($smtp->transcript, qr/> DATA/, 'nor tries to');
like($smtp->transcript, qr/> MAIL FROM:<shop\@shop\.example>.*> RSET/s, 'MAIL, then RSET');

# ---- the saved account ----

$session->query('SELECT FROM kliv_mail.configure_smtp(' . arguments(port => $port{tls}, encryption => 'tls') . ')');
is($session->query(q{SELECT status, last_test_ok FROM kliv_mail.smtp_settings WHERE account = 'custom'}), 'ok|t', 'configure_smtp() has tested');
$smtp->set(auth_reply => '535 5.7.8 no longer');
my $rows = steps('');
is($rows->[-1][0], 'auth', 'test_smtp() of what is saved');
is($session->query(q{SELECT status, status_detail, last_test_ok FROM kliv_mail.smtp_settings WHERE account = 'custom'}),
    'untested|the last test failed|f', '... is remembered when it fails');
$smtp->set(auth_reply => '');
$rows = steps('');
like($rows->[-1][3], qr/SELECT \* FROM kliv_mail\.test_smtp\(send_to => 'you\@example\.com', account => 'custom'\);/, '... and gives the statement that proves more');
is($session->query(q{SELECT status FROM kliv_mail.smtp_settings WHERE account = 'custom'}), 'ok', '... and is remembered when it succeeds');

# Only where it was saved for does the saved password go.
my $elsewhere = KlivMail::SmtpServer->start(tls => 1, starttls => 1, cert => $good[0], key => $good[1], auth => ["app:$password"]);
for my $change ('port => ' . $elsewhere->port('tls'), "host => '127.0.0.1', port => " . $elsewhere->port('tls'),
    "host => '127.0.0.1', username => 'app'", "username => 'other'", q{encryption => 'starttls', port => } . $elsewhere->port('starttls'),
    "provider => 'sendgrid'")
{
    like(steps($change), qr/^ERROR:  22023: password: is needed/, "test_smtp($change) wants the password");
}
is($elsewhere->state->{connections}, 0, '... and connects nowhere without it');
my $other_port = q{encryption => 'starttls', port => } . $elsewhere->port('starttls');
like(steps($other_port), qr/^HINT:  .*username => '' and from_address => '' the way to the login alone is tested/m, '... but says how to test the way there');
is(join(' ', map { $_->[0] . ($_->[1] ? '' : '!') } @{ steps("$other_port, username => '', from_address => ''") }), 'dns connect tls ehlo', '... which does');

# ---- cancelled at each step ----

sub traces
{
    my ($pid) = @_;
    # Sockets and threads: what a connection test could leave behind.
    my $sockets = grep { (readlink $_ // '') =~ /^socket/ } glob "/proc/$pid/fd/*";
    my $threads = () = glob "/proc/$pid/task/*";
    return "$sockets sockets, $threads threads";
}

my $pid = $session->query('SELECT pg_backend_pid()');
my $saved = $session->query('SELECT md5(string_agg(a::text, chr(10))) FROM kliv_mail._account AS a');
$names->stalled('stalled.example');
my $before = traces($pid);
for my $case (
    [ dns => tls => { host => 'stalled.example' }, {} ],
    [ greeting => starttls => {}, { silent => 1 } ],
    [ handshake => tls => {}, { silent => 1 } ],
    [ ehlo => starttls => {}, { ehlo_reply => 'stall' } ],
    [ starttls => starttls => {}, { starttls_reply => 'stall' } ],
    [ auth => tls => {}, { auth_reply => 'stall' } ],
    [ sender => tls => {}, { mail_reply => 'stall' } ])
{
    my ($what, $kind, $change, $set) = @$case;
    for my $call (qw(test_smtp configure_smtp))
    {
        $smtp->set(%normal, %$set);
        my $connections = $smtp->state->{connections};
        $session->send("SELECT * FROM kliv_mail.$call(" . arguments(port => $port{$kind}, encryption => $kind, %$change) . ')');
        if ($what eq 'dns') { $node->wait_until("SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid"); }
        else
        {
            $smtp->wait_for(sub { $smtp->state->{connections} > $connections }, 30) or die "$call has not connected";
            $smtp->wait_for(sub { $smtp->transcript =~ /.*^\d+ \w+ > (?:AUTH|MAIL)/ms }, 30) if $what =~ /auth|sender/;
        }
        $node->sql("SELECT pg_cancel_backend($pid)");
        my $start = Time::HiRes::time();
        like($session->result, qr/^ERROR:  57014:/, "$call() cancelled at $what");
        cmp_ok(Time::HiRes::time() - $start, '<', 1.4, '... at once');
        ok($smtp->wait_for(sub { $smtp->state->{open} == 0 || do { $smtp->release; 0 } }, 10), '... no connection is left');
        # A look-up that was given up ends by itself, and so do threads that libcurl kept for the next one.
        my ($sockets, $threads) = $before =~ /\d+/g;
        ok($smtp->wait_for(sub { my @now = traces($pid) =~ /\d+/g; $now[0] == $sockets && $now[1] <= $threads }, 20), '... nor a socket or thread')
          or diag("$before before, " . traces($pid));
    }
}
$smtp->set(%normal);
is($session->query('SELECT md5(string_agg(a::text, chr(10))) FROM kliv_mail._account AS a'), $saved, '... nor a change of what is saved');
is($session->query('SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = \'relation\' AND relation::regclass::text ~ \'kliv_mail\''), 0, '... nor a lock');
is($session->query('SELECT count(*) FROM kliv_mail.messages'), 0, '... nor a mail');
is(join(' ', map { $_->[0] } @{ steps('') }), 'dns connect tls ehlo auth sender', '... and the next test works');

# No lock is held while the network is waited for: others may change things.
$smtp->set(%normal, auth_reply => 'stall');
$session->send('SELECT * FROM kliv_mail.configure_smtp(' . arguments(port => $port{tls}, encryption => 'tls', from_name => 'x') . ')');
$node->wait_until("SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid");
is($node->sql("SELECT count(*) FROM pg_locks WHERE pid = $pid AND locktype IN ('relation', 'tuple', 'advisory', 'object') AND relation::regclass::text ~ 'kliv_mail'"), 0,
    'configure_smtp() holds no lock of ours while it tests');
is($node->sql('SELECT hourly_limit FROM kliv_mail.set_limits(40)'), 40, '... so that others go on');
$session->result;
$smtp->set(%normal);

# ---- send_to ----

$session->query("SELECT FROM kliv_mail.set_limits(2, 2)");
$rows = steps("send_to => 'ana\@example.com'");
is(join(' ', map { $_->[0] } @$rows), 'dns connect tls ehlo auth sender send', 'send_to: one step more');
my ($id) = $rows->[-1][2] =~ /message (\d+)/;
like($rows->[-1][3], qr/kliv_mail\.wait\($id\)/, '... that says how to follow it');
is($node->sql("SELECT kliv_mail.wait($id, '30 s')"), 'sent', '... and the mail arrives');
is(scalar($smtp->accepted('ana@example.com')), 1, '... once');
is($node->sql(q{SELECT used FROM kliv_mail.usage WHERE account = 'custom' AND window_name = 'day'}), 1, '... counted in the quota');
steps("send_to => 'ana\@example.com'");
($id) = steps("send_to => 'ana\@example.com'")->[-1][2] =~ /message (\d+)/;
$node->wait_until("SELECT held_by = 'quota' FROM kliv_mail.deliveries WHERE message_id = $id");
ok(1, '... and held by it when it is used up');
like(steps("send_to => 'nobody'"), qr/^ERROR:  22023: send_to: /, 'send_to that is no address');
like(steps(arguments(port => $port{tls}, encryption => 'tls', send_to => 'ana@example.com')), qr/^ERROR:  22023: send_to: .*saved account/, 'send_to by what is not saved');
$smtp->set(mail_reply => '550 5.7.1 no');
is(steps("send_to => 'bob\@example.com'")->[-1][0], 'sender', 'send_to after a test that failed');
is($node->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE recipient = 'bob@example.com'}), 0, '... queues nothing');
$session->quit;
$node->stop;
done_testing();
