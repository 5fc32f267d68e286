# Servers that take so many mails on a connection, say so with 45x and keep the
# connection: it ends with QUIT, the mail that met it leaves by the next one at
# once, at its first attempt.  One that says so of a fresh connection is no
# endless loop: that counts as any other refusal.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;
use Time::HiRes 'time';

my $smtp = KlivMail::SmtpServer->start(plain => 1);
my $node = KlivMail::Cluster->new('main', conf => { 'kliv_mail.allowed_hosts' => '127.0.0.1', 'kliv_mail.connections_per_account' => 2, 'kliv_mail.max_daily_limit' => 100000,
    'kliv_mail.sender_idle_timeout' => '1s' });

sub account
{
    my ($name) = @_;
    $node->sql("SELECT FROM kliv_mail.configure_smtp(account => '$name', host => '127.0.0.1', port => " . $smtp->port('plain')
          . ", encryption => 'none', username => '', from_address => 'shop\@shop.example', hourly_limit => 1000, daily_limit => 1000, test => false)");
    return;
}

my $stalwart = '452 4.4.5 Maximum number of messages per session exceeded';
my $ionos = "451-Requested action aborted\r\n451 Mails per session limit exceeded";
my %case = (
    'mail' => { limit_stage => 'mail', limit_reply => $stalwart },
    'mail_lines' => { limit_stage => 'mail', limit_reply => $ionos },
    'mail_lockstep' => { limit_stage => 'mail', limit_reply => $stalwart, pipelining => 0 },
    'rcpt' => { limit_stage => 'rcpt', limit_reply => '452 4.3.2 Too many messages in this session' },
    'data' => { limit_stage => 'data', limit_reply => $stalwart, chunking => 0 },
    'bdat' => { limit_stage => 'data', limit_reply => $stalwart },
    'dot' => { limit_stage => 'dot', limit_reply => $ionos, chunking => 0 },
    'data_421' => { limit_stage => 'data', limit_reply => '421 too many messages in this connection', chunking => 0 });

for my $name (sort keys %case)
{
    $smtp->set(messages_per_connection => 10, chunking => 1, pipelining => 1, %{ $case{$name} });
    $smtp->drop_connections;
    account($name);
    my $before = $smtp->ledger;
    my $start = time;
    $node->sql("SELECT count(kliv_mail.send('$name-' || i || '\@example.com', 'x', 'x', account => '$name')) FROM generate_series(1, 100) AS i");
    ok(eval { $node->wait_until("SELECT count(*) = 100 FROM kliv_mail.deliveries WHERE account = '$name' AND status = 'sent'"); 1 }, "$name: all are sent")
      or diag($node->sql("SELECT status, count(*), max(attempts), max(last_reply) FROM kliv_mail.deliveries WHERE recipient LIKE '$name-%' GROUP BY 1"));
    my $took = time - $start;
    note(sprintf '%.1f s', $took);
    cmp_ok($took, '<', 15, '... within seconds');
    is($node->sql("SELECT max(attempts) || ' ' || sum(doubts) FROM kliv_mail._delivery WHERE account = '$name'"), '1 0', '... at one attempt each');
    $node->sql("SELECT FROM kliv_mail.reset_smtp(account => '$name')");
    my @events = $smtp->ledger;
    splice @events, 0, $before;
    my %copies;
    $copies{$_}++ for map { @{ $_->{rcpt} } } grep { $_->{event} eq 'message' } @events;
    is_deeply([ scalar(keys %copies), grep { $_ != 1 } values %copies ], [100], '... and arrived once');
    my $connects = grep { $_->{event} eq 'connect' } @events;
    cmp_ok($connects, '<=', 14, '... by as many connections as that takes') or diag($connects);
    my %ends = map { $_->{reason} => 1 } grep { $_->{event} eq 'end' && $_->{messages} == 10 } @events;
    is_deeply([ keys %ends ], [ $name eq 'data_421' ? '421' : 'quit' ], '... which ended with QUIT') or diag(explain(\%ends));
    is($node->sql("SELECT count(*) FROM kliv_mail.events WHERE kind = 'account_held'"), 0, '... and no account was held');
}

# ---- a server that says so of fresh connections ----

$smtp->set(messages_per_connection => 0, chunking => 1, mail_reply => $stalwart);
$smtp->drop_connections;
account('fresh');
my $before = $smtp->ledger;
$node->sql(q{SELECT count(kliv_mail.send('fresh-' || i || '@example.com', 'x', 'x', account => 'fresh')) FROM generate_series(1, 20) AS i});
$node->wait_until(q{SELECT count(*) = 20 FROM kliv_mail.deliveries WHERE recipient LIKE 'fresh-%' AND status = 'deferred'});
# A sender that tried again and again would not be idle.
$node->wait_until(q{SELECT worker = 'idle' FROM kliv_mail.status});
my @events = $smtp->ledger;
splice @events, 0, $before;
my $connects = grep { $_->{event} eq 'connect' } @events;
note("$connects connections");
cmp_ok($connects, '<=', 6, 'of fresh connections: no connection follows the other') or diag($connects);
like($node->sql(q{SELECT string_agg(DISTINCT last_reply, ' ') FROM kliv_mail.deliveries WHERE recipient LIKE 'fresh-%' AND last_reply IS NOT NULL}), qr/^452 4\.4\.5 /, '... the mail waits, and the reply stands there');

# Where some mails go through and one meets it at each connection, the rest is sent, and that one's attempt counts.
$smtp->set(mail_reply => '', plays => { poor => [ 'rcpt', $stalwart ] });
account('poor');
$node->sql(q{SELECT kliv_mail.send('poor@example.com', 'x', 'x', account => 'poor')});
$node->sql(q{SELECT count(kliv_mail.send('rich-' || i || '@example.com', 'x', 'x', account => 'poor')) FROM generate_series(1, 60) AS i});
ok(eval { $node->wait_until(q{SELECT count(*) = 60 FROM kliv_mail.deliveries WHERE recipient LIKE 'rich-%' AND status = 'sent'}); 1 }, 'one mail that meets it always: the others are sent');
ok(eval { $node->wait_until(q{SELECT status = 'deferred' AND attempts = 1 FROM kliv_mail.deliveries WHERE recipient = 'poor@example.com'}); 1 }, '... and its own attempt counts')
  or diag($node->sql(q{SELECT status, attempts, last_reply FROM kliv_mail.deliveries WHERE recipient = 'poor@example.com'}));

# The same beside traffic that does not end, where it is never the first of a connection.
account('poor');
$node->sql("SELECT FROM kliv_mail.set_limits(account => 'poor', hourly_limit => 10000, daily_limit => 10000)");
$smtp->set(delay_dot => 5);
$node->sql('SELECT kliv_mail.pause()');
$node->sql(q{SELECT count(kliv_mail.send('r1-' || i || '@example.com', 'x', 'x', account => 'poor')) FROM generate_series(1, 50) AS i});
my $id = $node->sql(q{SELECT kliv_mail.send('poor@example.com', 'x', 'x', account => 'poor')});
$node->sql(q{SELECT count(kliv_mail.send('r2-' || i || '@example.com', 'x', 'x', account => 'poor')) FROM generate_series(1, 6000) AS i});
$node->sql('SELECT kliv_mail.resume()');
ok(eval { $node->wait_until("SELECT attempts = 1 AND status = 'deferred' FROM kliv_mail.deliveries WHERE message_id = $id"); 1 }, 'beside a long line its attempt counts, too');
cmp_ok($node->sql(q{SELECT count(*) FROM kliv_mail._outbox WHERE recipient LIKE 'r2-%'}), '>', 500, '... while others still wait');
$node->stop('immediate');
done_testing();
