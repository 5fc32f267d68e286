# What each class and scope of a reply does, end to end: to the delivery, its
# attempts and quota, to the account and the other mail that waits for it, and
# when all of it goes on.
use strict;
use warnings;
use JSON::PP;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

# name => [stage, reply, the delivery's status and held_by, the other mail's, quota
# counted for the first, the hold [by, at least, at most in seconds], when what
# waits goes: at once with configure_smtp() or test_smtp(), or in so many hours].
# The replies come until the trouble is over.  What speaks of the account behind the
# login is believed when two mails met it: there are two of those.
my ($hold, $quota) = ([ 'account', 20, 40 ], sub { [ 'quota', $_[0] - 60, $_[0] + 60 ] });
my $noon_to_midnight = 3600 * 12 - 300;
my %case = (
    'accepted'                          => [ 'dot', '250 2.0.0 Ok', 'sent', 'sent', 1 ],
    'recipient, for good'               => [ 'rcpt', '550 5.1.1 no such user', 'bounced hard', 'sent', 0 ],
    'recipient, for good, not gone'     => [ 'rcpt', '550 Requested action not taken', 'bounced soft', 'sent', 1 ],
    'recipient, for good, at the dot'   => [ 'dot', '554 delivery error: dd This user doesn\'t have an account', 'bounced hard', 'sent', 0 ],
    'recipient, for now'                => [ 'rcpt', '451 4.3.0 <bob@example.com>: Temporary lookup failure', 'deferred retry', 'sent', 0, undef, 0.4 ],
    'greylisting'                       => [ 'rcpt', '450 4.7.1 Greylisted, see http://postgrey.example/help', 'deferred retry', 'sent', 0, undef, 0.4 ],
    'a full mailbox'                    => [ 'rcpt', '452 4.2.2 <bob@example.com>: user is over quota', 'deferred retry', 'sent', 0, undef, 2 ],
    'message, for now, at DATA'         => [ 'data', '452 4.3.1 Insufficient system storage', 'deferred retry', 'sent', 0, undef, 0.4 ],
    'message, for now, at the dot'      => [ 'dot', '451 4.3.0 Error: queue file write error', 'deferred retry', 'sent', 0, undef, 0.4 ],
    'a message too large'               => [ 'dot', '552 5.3.4 Message size exceeds fixed limit', 'failed', 'sent', 0 ],
    'a message refused at DATA'         => [ 'data', '554 5.5.1 Error: no valid recipients', 'failed', 'sent', 0 ],
    'a policy block'                    => [ 'dot', '550 5.7.1 likely unsolicited mail', 'failed policy', 'sent', 0 ],
    'a policy block at RCPT'            => [ 'rcpt', '554 5.7.1 blocked using zen.spamhaus.org', 'failed policy', 'sent', 0 ],
    'no reply to the dot'               => [ 'dot', 'drop', 'in_doubt', 'in_doubt', 3 ],
    'Gmail: the day\'s limit'           => [ 'mail', '550 5.4.5 Daily user sending limit exceeded. - gsmtp', 'deferred quota', 'deferred quota', 0, $quota->(86400), 25 ],
    'Gmail: the hour\'s, at RCPT'       => [ 'rcpt', '450 4.2.1 Peak SMTP relay limit exceeded for customer.', 'deferred quota', 'deferred quota', 0, $quota->(3600), 2 ],
    'SES: the day\'s, at the dot'       => [ 'dot', '454 Throttling failure: Daily message quota exceeded.', 'deferred quota', 'deferred quota', 0, $quota->(3600), 2 ],
    'too many connections'              => [ 'greeting', '421 4.7.0 Error: too many connections from 192.0.2.1', 'deferred quota', 'deferred quota', 0, $quota->(60), 0.4 ],
    'SendGrid: used-up credits'         => [ 'auth', '451 Authentication failed: Maximum credits exceeded', 'deferred quota', 'deferred quota', 0, $quota->($noon_to_midnight), 25 ],
    'SendGrid: sender not verified'     => [ 'dot', '550 The from address does not match a verified Sender Identity. Mail cannot be sent until this error is resolved.',
        'deferred account', 'deferred account', 0, $hold, 'configure' ],
    'Resend: domain not verified'       => [ 'dot', '550 The example.com domain is not verified.', 'deferred account', 'deferred account', 0, $hold, 'configure' ],
    'sender refused'                    => [ 'mail', '553 5.1.8 Domain of sender address does not exist', 'deferred account', 'deferred account', 0, $hold, 2 ],
    'sender refused, for no reason'     => [ 'mail', '550 we do not like you', 'deferred account', 'deferred account', 0, $hold, 2 ],
    'sender not taken now'              => [ 'mail', '451 4.3.0 Mail server temporarily rejected message', 'deferred account', 'deferred account', 0, $hold, 2 ],
    'no relaying'                       => [ 'rcpt', '554 5.7.1 <bob@example.com>: Relay access denied', 'deferred account', 'deferred account', 0, $hold, 2 ],
    'the account is suspended, at DATA' => [ 'data', '550 5.7.1 Your account has been suspended', 'deferred account', 'deferred account', 0, $hold, 'configure' ],
    'nobody knows what'                 => [ 'rcpt', '554 nobody knows what this is', 'deferred account', 'deferred account', 0, $hold, 2 ],
    'the connection is dropped'         => [ 'rcpt', 'drop', 'deferred account', 'deferred account', 0, $hold, 2 ],
    'the session ends'                  => [ 'rcpt', '421 4.4.2 Error: timeout exceeded', 'deferred account', 'deferred account', 0, $hold, 2 ],
    'login refused'                     => [ 'auth', '535 5.7.8 Username and Password not accepted', 'deferred account', 'deferred account', 0, $hold, 'configure' ],
    'login not checked now'             => [ 'auth', '454 4.7.0 Temporary authentication failure', 'deferred account', 'deferred account', 0, $hold, 2 ],
    'no service'                        => [ 'greeting', '554 No SMTP service here', 'deferred account', 'deferred account', 0, $hold, 'test' ],
    'no EHLO'                           => [ 'ehlo', '421 4.3.2 Service not available', 'deferred account', 'deferred account', 0, $hold, 2 ],
    'no TLS now'                        => [ 'starttls', '454 4.7.0 TLS not available due to local problem', 'deferred account', 'deferred account', 0, $hold, 2 ]);
my @name = sort keys %case;
my @two = grep { $case{ $name[$_] }[0] =~ /^(?:mail|rcpt|data|dot)$/ && $case{ $name[$_] }[2] =~ /^deferred (?:account|quota)/ } 0 .. $#name;
my %second = map { $_ => 'play+second' } @two;
# Alone it cannot be told from the account's; where another one goes through, it is the recipient's.
$second{$_} = 'well' for grep { $name[$_] eq 'recipient, for good, not gone' } 0 .. $#name;

# ---- a server with a listener for each, an account for each ----

my $tls = KlivMail::Tls->new(PostgreSQL::Test::Utils::tempdir() . '/tls');
my @good = $tls->certificate('good');
my %variants = (plain => [], secure => []);
for my $n (0 .. $#name)
{
    my ($stage, $reply) = @{ $case{ $name[$n] } };
    my %settings = $stage =~ /^(?:greeting|ehlo|starttls|auth)$/ ? ("${stage}_reply" => $reply) : (plays => { play => [ $stage, $reply ] });
    $settings{kind} = { starttls => 'starttls', auth => 'tls' }->{$stage} // 'plain';
    push @{ $variants{ $stage eq 'auth' ? 'secure' : 'plain' } }, "c$n=" . encode_json(\%settings);
}
my %server = (
    plain  => KlivMail::SmtpServer->start(plain => 1, variant => $variants{plain}, cert => $good[0], key => $good[1]),
    secure => KlivMail::SmtpServer->start(variant => $variants{secure}, cert => $good[0], key => $good[1], auth => ['app:secret-pass']));
my $smtp = $server{plain};
my $node = KlivMail::Cluster->new(
    'main',
    conf => {
        'kliv_mail.allowed_hosts'           => '127.0.0.1, localhost',
        'kliv_mail.ca_file'                 => $tls->ca_file,
        'kliv_mail.connections_per_account' => 1,
        # each is asked anew what time it is
        'kliv_mail.sender_idle_timeout'     => 0,
        'kliv_mail.max_daily_limit'         => 1_000_000
    });
my $start = $node->clock_to_noon;

sub server { return $server{ $case{ $name[ $_[0] ] }[0] eq 'auth' ? 'secure' : 'plain' } }

sub configure
{
    my ($account, $port, $kind) = @_;
    my $login = $kind eq 'tls' ? "username => 'app', password => 'secret-pass'" : "username => ''";
    return "SELECT count(*) FROM kliv_mail.configure_smtp(host => 'localhost', port => $port, encryption => '$kind', $login,
                from_address => 'shop\@$account.example', hourly_limit => 200, test => false, account => '$account');\n";
}
my $sql = '';
for my $n (0 .. $#name)
{
    my $stage = $case{ $name[$n] }[0];
    $sql .= configure("c$n", server($n)->port("c$n"), { starttls => 'starttls', auth => 'tls' }->{$stage} // 'none')
      . join '', map { "SELECT kliv_mail.send('$_+$n\@x.example', 'x', 'x', account => 'c$n');\n" } 'play', $second{$n} // ();
}
$node->sql($sql);

# ---- what the reply does ----

# "status held_by" or "status bounce_type", of the first or the other mail of a case.
my $state = q{concat_ws(' ', d.status, CASE WHEN d.status = 'deferred' THEN d.held_by ELSE d.bounce_type END)};

# Wait until those that match have the states of the table's column; one test for each.
sub states
{
    my ($what, $recipient, $expected, @n) = @_;
    my $values = join ', ', map { "('$recipient+$_\@x.example', '" . $expected->($_) . "')" } @n;
    my $settled = eval { $node->wait_until("SELECT count(*) = 0 FROM (VALUES $values) AS v (recipient, state)
        JOIN kliv_mail.deliveries AS d USING (recipient) WHERE $state <> v.state") };
    my %found = map { split /\|/ } split /\n/, $node->sql("SELECT d.recipient, $state FROM kliv_mail.deliveries AS d");
    for my $n (@n)
    {
        is($settled ? $expected->($n) : $found{"$recipient+$n\@x.example"}, $expected->($n), "$name[$n]: $what")
          or diag($node->sql("SELECT status, reason, last_reply FROM kliv_mail.deliveries WHERE account = 'c$n'"));
    }
    return;
}
states('the delivery', 'play', sub { $case{ $name[ $_[0] ] }[2] }, 0 .. $#name);
states('the second', 'play+second', sub { $case{ $name[ $_[0] ] }[2] }, @two);
# All at once, since each call of psql takes its time: by account, the delivery and the first hold.
my (%found, %held);
for (split /\n/, $node->sql(q{
    SELECT d.account, d.attempts, (SELECT sum(u.used) FROM kliv_mail._usage AS u WHERE u.account = d.account AND u.window_name = 'day'),
           d.reason <> '', d.last_reply
    FROM kliv_mail.deliveries AS d WHERE d.recipient ~ '^play[+][0-9]'}))
{
    my ($account, @rest) = split /\|/, $_, -1;
    $found{$account} = \@rest;
}
for (split /\n/, $node->sql(q{
    SELECT DISTINCT ON (e.account) e.account, e.data->>'by', extract(epoch FROM (e.data->>'until')::timestamptz - e.at), e.detail <> ''
    FROM kliv_mail.events AS e WHERE e.kind = 'account_held' ORDER BY e.account, e.at}))
{
    my ($account, @rest) = split /\|/, $_, -1;
    $held{$account} = \@rest;
}
for my $n (0 .. $#name)
{
    my ($stage, $reply, $status, undef, $counted, $hold) = @{ $case{ $name[$n] } };
    my ($attempts, $used, $reason, $last) = @{ $found{"c$n"} };
    my $event = delete $held{"c$n"};
    is($used, $counted, "$name[$n]: counted");
    $status =~ /^deferred (?:quota|account)/ ? is($attempts, 0, '... no attempt burned')
      : $status =~ /^deferred/ ? cmp_ok($attempts, '>=', 1, '... an attempt of its own')
      : is($attempts, $status eq 'in_doubt' ? 3 : 1, '... an attempt');
    is($reason, 't', '... it says why');
    is($last, $reply, '... and what the server said') if $stage =~ /^(?:mail|rcpt|data|dot)$/ && $reply =~ /^\d/;
    next unless $hold;
    is($event->[0], $hold->[0], "... the account is held by $hold->[0]");
    ok($event->[1] >= $hold->[1] && $event->[1] <= $hold->[2], "... for $hold->[1] to $hold->[2] s") or diag($event->[1]);
    is($event->[2], 't', '... and the event says why');
}
is(join(' ', sort keys %held), '', 'no other account is held');
like($node->sql(q{SELECT string_agg(n.problem || ' ' || n.statement, E'\n') FROM (SELECT message_id FROM kliv_mail.deliveries WHERE recipient LIKE 'play+%' AND held_by IN ('quota', 'account') LIMIT 5) AS d,
                       kliv_mail.next_step(d.message_id) AS n}),
    qr/^play\S+ is deferred: .*SELECT .*$/m, 'next_step() knows what is held');

# ---- the other mail of the account ----

$node->sql(join '', map { my $r = $name[$_] eq 'no reply to the dot' ? 'play+other' : 'other'; "SELECT kliv_mail.send('other+$_\@x.example', 'x', 'x', account => 'c$_');\n" } 0 .. $#name);
my $waits = sub { return $case{ $name[ $_[0] ] }[3] };
$case{'no reply to the dot'}[3] = 'sent';
states('the other mail', 'other', $waits, 0 .. $#name);

# ---- how it goes on ----

my @waiting = grep { $case{ $name[$_] }[6] } 0 .. $#name;
for my $n (0 .. $#name)
{
    server($n)->set(variants => { "c$n" => {} });
}
for my $n (grep { $case{ $name[$_] }[6] =~ /configure|test/ } @waiting)
{
    my $call = $case{ $name[$n] }[6] eq 'configure' ? 'configure_smtp' : 'test_smtp';
    $node->sql("SELECT count(*) FROM kliv_mail.$call(account => 'c$n')");
}
my $sent = sub { 'sent' };
my @at_once = grep { $case{ $name[$_] }[6] =~ /configure|test/ } @waiting;
states('configure_smtp() or test_smtp() frees it', 'play', $sent, @at_once);
states('... and the other', 'other', $sent, @at_once);
my @hours = grep { $case{ $name[$_] }[6] =~ /^\d/ } @waiting;
for my $hours (0.4, 2, 25)
{
    $node->clock_offset($start + 3600 * $hours . ' s');
    $node->sql("SELECT kliv_mail.send('wake\@x.example', 'x', 'x')");
    states("sent by itself in $hours hours", 'play', $sent, grep { $case{ $name[$_] }[6] == $hours } @hours);
    states('... and the other', 'other', $sent, grep { $case{ $name[$_] }[6] == $hours } @hours);
    # What is held by a reply that tells how long is not tried before.
    my @early = grep { $case{ $name[$_] }[6] > $hours && $case{ $name[$_] }[5] && $case{ $name[$_] }[5][0] eq 'quota' } @hours;
    my $list = join ', ', map { "'c$_'" } @early;
    is(@early && $node->sql("SELECT count(*) FROM kliv_mail.deliveries WHERE account IN ($list) AND held_by = 'quota' AND attempts = 0"),
        2 * @early + (grep { my $n = $_; grep { $_ == $n } @early } @two), "... and what the provider's limit holds for longer waits in $hours hours");
}
my %copies;
$copies{ $_->{rcpt}[0] }++ for map { $_->accepted } values %server;
for my $n (0 .. $#name)
{
    my $status = $case{ $name[$n] }[2];
    my $expected = $status =~ /^(?:sent|deferred)/ ? 1 : $status eq 'in_doubt' ? 3 : 0;
    is(($copies{"play+$n\@x.example"} // 0) . ' ' . ($copies{"other+$n\@x.example"} // 0), "$expected 1", "$name[$n]: copies");
}
is($node->sql("SELECT count(*) FROM kliv_mail._quota WHERE held_until IS NOT NULL AND account = ANY ('{" . join(',', map { "c$_" } @hours) . "}')"), 0,
    'no account is held any more');

# ---- five of a hundred blocked ----

$node->sql(configure('blocked', $smtp->port('plain'), 'none'));
$node->sql("SELECT count(kliv_mail.send(format('good%s\@block.example', n), 'x', 'x', account => 'blocked')) FROM generate_series(1, 95) AS n");
$node->wait_until("SELECT count(*) FILTER (WHERE status = 'sent') = 95 FROM kliv_mail.deliveries WHERE account = 'blocked'");
$smtp->set(plays => { spam => [ 'dot', '550 5.7.1 This message is likely unsolicited mail' ] });
$node->sql("SELECT count(kliv_mail.send(format('spam+%s\@block.example', n), 'x', 'x', account => 'blocked')) FROM generate_series(1, 4) AS n");
$node->wait_until("SELECT count(*) FILTER (WHERE status = 'failed') = 4 FROM kliv_mail.deliveries WHERE account = 'blocked'");
my $between = $node->sql("SELECT kliv_mail.send('good96\@block.example', 'x', 'x', account => 'blocked')");
is($node->sql("SELECT kliv_mail.wait($between, '120 s')"), 'sent', 'four of a hundred blocked: the account goes on');
my $fifth = $node->sql("SELECT kliv_mail.send('spam+5\@block.example', 'x', 'x', account => 'blocked')");
is($node->sql("SELECT kliv_mail.wait($fifth, '120 s')"), 'failed', 'the fifth: it fails itself');
my $kept = $node->sql("SELECT kliv_mail.send('good97\@block.example', 'x', 'x', account => 'blocked')");
is($node->sql("SELECT kliv_mail.wait($kept, '120 s')"), 'deferred', '... and the others wait');
is($node->sql("SELECT status, held_by, attempts, reason ~ 'blocked', hint <> '' FROM kliv_mail.deliveries WHERE message_id = $kept"),
    'deferred|account|0|t|t', '... held with the account, which says why');
is($node->sql("SELECT count(*), min(data->>'by') FROM kliv_mail.events WHERE kind = 'account_held' AND account = 'blocked'"), '1|account', '... one event');
is($node->sql("SELECT used FROM kliv_mail.usage WHERE account = 'blocked' AND window_name = 'day'"), 96, '... what was blocked is not counted');

# A server that answers EHLO and is gone: counted at the first byte of a mail, no endless loop.
my $gone = KlivMail::SmtpServer->start;
$gone->set(close_after_ehlo => 1);
$node->sql(configure('gone', $gone->port('plain'), 'none'));
my $its = $node->sql("SELECT kliv_mail.send('gone\@x.example', 'x', 'x', account => 'gone')");
$node->wait_until("SELECT held_by IN ('account', 'retry') FROM kliv_mail.deliveries WHERE message_id = $its");
cmp_ok($gone->state->{connections}, '<', 6, 'a server that closes each connection at once is not asked again and again');
$gone->set(close_after_ehlo => 0);
$node->sql("SELECT kliv_mail.test_smtp(account => 'gone'), kliv_mail.retry($its)");
is($node->sql("SELECT kliv_mail.wait($its, '60 s')"), 'sent', '... and has its mail when it is well');

# ---- two hours later ----

$node->clock_offset($start + 3600 * 28 . ' s');
$node->sql("SELECT kliv_mail.send('wake\@x.example', 'x', 'x')");
$node->wait_until("SELECT count(*) = 1 FROM kliv_mail.deliveries WHERE message_id IN ($kept) AND status = 'sent' AND attempts = 1");
pass('the hold of a block ends by itself');
$node->stop;
done_testing();
