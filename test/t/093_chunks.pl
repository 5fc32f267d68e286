# BDAT (RFC 3030): where a server offers CHUNKING, a message leaves together with
# its envelope.  It arrives octet for octet as with DATA, at Postfix and Exim
# too; refusals stay with their recipient; a server that does not know what it
# offers, or closes behind a number of messages, gets DATA; nothing arrives twice.
use strict;
use warnings;
use IPC::Run ();
use KlivMail::Cluster;
use KlivMail::Postfix;
use KlivMail::Relays;
use KlivMail::Server;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils ();
use Test::More;

my $smtp = KlivMail::SmtpServer->start(plain => 1);
my $node = KlivMail::Cluster->new('main', conf => { 'kliv_mail.allowed_hosts' => '127.0.0.1, localhost', 'kliv_mail.connections_per_account' => 1 });

sub account
{
    my ($name, $port, %more) = @_;
    my %login = (encryption => 'none', username => '', %more);
    $node->sql("SELECT FROM kliv_mail.configure_smtp(account => '$name', host => 'localhost', port => $port, from_address => 'shop\@shop.example',
        hourly_limit => 1000, daily_limit => 1000, test => false" . join('', map { ", $_ => '$login{$_}'" } sort keys %login) . ')');
    return;
}
account('ours', $smtp->port('plain'));

# Lines that begin with dots, one that is a dot, letters of two octets, a line of its own kind at the end.
my $text = q{E'.\n..\n.x\n\nB\u00e9atrice\n' || repeat('0123456789', 40) || E'\n.'};
sub queue
{
    my ($account, $tag, $n, $body) = @_;
    return $node->sql(qq{SELECT count(kliv_mail.send('$tag-' || i || '\@example.com', 'Chunks', @{[ $body // $text ]}, account => '$account')) FROM generate_series(1, $n) AS i});
}
sub all_sent
{
    my ($tag, $n) = @_;
    return ok(eval { $node->wait_until("SELECT count(*) = $n FROM kliv_mail.deliveries WHERE recipient LIKE '$tag-%' AND status = 'sent'"); 1 }, "$tag: all are sent")
      || diag($node->sql("SELECT recipient, status, attempts, reason, last_reply FROM kliv_mail.deliveries WHERE recipient LIKE '$tag-%' AND status <> 'sent' LIMIT 5"));
}
sub once_each
{
    my ($tag, $n) = @_;
    my %copies;
    $copies{$_}++ for map { grep { /^\Q$tag\E-/ } @{ $_->{rcpt} } } $smtp->ledger('message');
    return is_deeply([ scalar(keys %copies), grep { $_ != 1 } values %copies ], [$n], "$tag: each arrived once");
}

# ---- as with DATA ----

$smtp->set(chunking => 0);
queue('ours', 'plain', 5);
all_sent('plain', 5);
$smtp->set(chunking => 1);
$smtp->drop_connections;
queue('ours', 'chunk', 40);
all_sent('chunk', 40);
once_each('chunk', 40);
like($smtp->transcript, qr/> BDAT \d+ LAST\n/, 'a server with CHUNKING gets BDAT');
my ($data) = $smtp->transcript =~ /> RCPT TO:<chunk-1\@example\.com>\n(?:[^\n]* < [^\n]*\n)*[^\n]* > (\w+)/;
is($data, 'DATA', '... but not for the first mail of a connection');
my %entity;
for my $mail ($smtp->ledger('message'))
{
    my ($head, $entity) = split /\r\n\r\n/, $smtp->message($mail), 2;
    # The boundary is each mail's own.
    $entity =~ s/^(--[^\r\n]*)\r\n/--\r\n/;
    my $boundary = $1;
    $entity =~ s/\Q$boundary\E/--/g;
    $entity{$entity}++;
}
is(scalar(keys %entity), 1, 'the message is the same, octet for octet, as with DATA') or diag(explain(\%entity));

# ---- what does not fit, and what is refused ----

queue('ours', 'large', 3, q{repeat('0123456789', 9000)});
queue('ours', 'small', 3);
all_sent('large', 3);
all_sent('small', 3);
once_each($_, 3) for 'large', 'small';
unlike($smtp->transcript, qr/> BDAT \d{5,} LAST/, 'a large message waits for the reply to RCPT');

for my $case ([ 'rcpt-550-5.1.1', 'bounced' ], [ 'mail-451', 'deferred' ], [ 'data-451', 'deferred' ], [ 'dot-552-5.3.4', 'failed' ], [ 'dot-451-4.3.0', 'deferred' ])
{
    my ($name, $fate) = @$case;
    queue('ours', "before+$name", 3);
    my $id = $node->sql(qq{SELECT kliv_mail.send('$name\@example.com', 'Chunks', $text, account => 'ours')});
    queue('ours', "behind+$name", 3);
    all_sent("$_+$name", 3) for 'before', 'behind';
    ok(eval { $node->wait_until("SELECT status = '$fate' AND attempts = 1 FROM kliv_mail.deliveries WHERE message_id = $id"); 1 }, "$name: the refused one is $fate after one attempt")
      or diag($node->sql("SELECT status, attempts, reason, last_reply FROM kliv_mail.deliveries WHERE message_id = $id"));
    once_each("$_+$name", 3) for 'before', 'behind';
    is(scalar(grep { /does not fit/ } $node->sql("SELECT coalesce(string_agg(reason, ' '), '') FROM kliv_mail.deliveries")), 0, '... and no reply was out of step');
}

# ---- a server that offers what it does not know ----

$smtp->set(bdat_known => 0);
$smtp->drop_connections;
queue('ours', 'unknown', 20);
all_sent('unknown', 20);
once_each('unknown', 20);
my $burned = $node->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE recipient LIKE 'unknown-%' AND attempts > 1});
cmp_ok($burned, '<=', 1, '... at most the one that was on its way behind it had a second attempt');
$smtp->set(bdat_known => 1);

# ---- a server that closes without a word behind each fifth ----

account('closing', $smtp->port('plain'));
$smtp->set(messages_per_connection => 5, limit_close => 1);
queue('closing', 'closing', 43);
$node->wait_until(q{SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE recipient LIKE 'closing-%' AND status IN ('queued', 'sending')});
my $doubtful = $node->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE recipient LIKE 'closing-%' AND (attempts > 1 OR status <> 'sent')});
cmp_ok($doubtful, '<=', 2, 'what such a server leaves in doubt is no more than two, and not again');
$node->sql(q{SELECT kliv_mail.retry(message_id) FROM kliv_mail.deliveries WHERE recipient LIKE 'closing-%' AND status <> 'sent'});
all_sent('closing', 43);
$smtp->set(messages_per_connection => 5, limit_close => 0);
$smtp->drop_connections;
account('parting', $smtp->port('plain'));
queue('parting', 'parting', 43);
all_sent('parting', 43);
once_each('parting', 43);
is($node->sql(q{SELECT max(attempts) FROM kliv_mail.deliveries WHERE recipient LIKE 'parting-%'}), 1, 'one that says 421 behind each fifth costs nobody an attempt');

# ---- a server that closes while nothing is on its way ----

account('leaving', $smtp->port('plain'));
$smtp->set(messages_per_connection => 0);
my $leaving = 0;
my $other = $node->session;
for my $round (1 .. 5)
{
    queue('leaving', "here$round", 10);
    all_sent("here$round", 10);
    # The connection ends while the sender takes the next mail.
    $other->query('BEGIN; LOCK TABLE kliv_mail._quota IN EXCLUSIVE MODE');
    queue('leaving', "there$round", 4);
    $node->wait_until(q{SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender' AND wait_event_type = 'Lock'});
    $smtp->drop_connections;
    $other->query('COMMIT');
    all_sent("there$round", 4);
    $leaving += $node->sql(qq{SELECT count(*) FROM kliv_mail.deliveries WHERE recipient LIKE 'there$round-%' AND attempts > 1});
}
$other->quit;
is($leaving, 0, 'what was queued behind the end of a connection is not in doubt');

# ---- Postfix and Exim ----

SKIP:
{
    my $postfix = KlivMail::Postfix->running;
    skip 'Postfix needs root to start: run the tests as root, or with sudo that asks for no password', 3 unless $postfix;
    $node->reconfigure('kliv_mail.ca_file' => $postfix->ca_file);
    account('postfix', $postfix->port('tls'), encryption => 'tls', username => $postfix->username, password => $postfix->password);
    $node->sql(qq{SELECT count(kliv_mail.send('chunk' || i || '\@postfix.example', 'Chunks', $text, account => 'postfix')) FROM generate_series(1, 30) AS i});
    ok(eval { $node->wait_until(q{SELECT count(*) = 30 FROM kliv_mail.deliveries WHERE recipient LIKE '%@postfix.example' AND status = 'sent'}); 1 }, 'Postfix: all are sent')
      or diag($node->sql(q{SELECT status, reason, last_reply FROM kliv_mail.deliveries WHERE recipient LIKE '%@postfix.example' LIMIT 3}));
    my @mails = $node->wait_for('the mails', sub { my @all = grep { /^Delivered-To: chunk\d+\@/m } $postfix->mails; return @all >= 30 ? \@all : undef })->@*;
    is(scalar(@mails), 30, '... each once');
    KlivMail::RawMessages::mail(/^Delivered-To: (\S+)/m, $_) for @mails;
    $node->sql(q{SELECT kliv_mail.reset_smtp(account => 'postfix')});
    $node->wait_for('the end of the connection', sub { $postfix->log =~ / bdat=/ });
    # (A slow machine has not heard of it for two seconds now and then, and sends DATA.)
    my $chunks = 0;
    $chunks += $_ for $postfix->log =~ / bdat=(\d+)/g;
    cmp_ok($chunks, '>', 0, '... by BDAT');
}

SKIP:
{
    my $relays = KlivMail::Relays->running;
    skip 'Exim needs root to start: run the tests as root, or with sudo that asks for no password', 3 unless $relays && grep { $_ eq 'exim' } $relays->names;
    my $hop = $relays->hop;
    account('exim', $relays->port('exim'));
    # (Behind ten of one connection Exim leaves mail to its next queue run.)
    $node->sql(qq{SELECT count(kliv_mail.send('chunk' || i || '\@remote.example', 'Chunks', $text, account => 'exim')) FROM generate_series(1, 9) AS i});
    ok(eval { $node->wait_until(q{SELECT count(*) = 9 FROM kliv_mail.deliveries WHERE recipient LIKE '%@remote.example' AND status = 'sent'}); 1 }, 'Exim: all are sent')
      or diag($node->sql(q{SELECT status, reason, last_reply FROM kliv_mail.deliveries WHERE recipient LIKE '%@remote.example' LIMIT 3}));
    my $arrived = sub { return grep { /^chunk\d+\@remote/ } map { @{ $_->{rcpt} } } $hop->ledger('message') };
    $node->wait_for('the mails', sub { $arrived->() >= 9 });
    is_deeply([ sort { $a cmp $b } $arrived->() ], [ map { "chunk$_\@remote.example" } 1 .. 9 ], '... each once');
    # Its reply to BDAT is one of its own; on a slow machine some go by DATA, as above.
    cmp_ok($node->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE recipient LIKE '%@remote.example' AND last_reply LIKE '%byte chunk%'}), '>', 0, '... by BDAT');
}

# ---- a server that chunks fail at gets them again after ten minutes, then after twenty ----

my $folder = PostgreSQL::Test::Utils::tempdir();
ok(IPC::Run::run([ 'cc', '-shared', '-fPIC', '-o', "$folder/preload.so", 'test/preload.c' ]), 'test/preload.c compiles');
$node->stop;
$node->configure('kliv_mail.sender_idle_timeout' => 3600000);
$node->configure(timing_clock_source => 'system') if $node->pg_version > 18.99;    # (as in 011)
{
    local $ENV{LD_PRELOAD} = "$folder/preload.so";
    local $ENV{KLM_MONOTONIC} = "$folder/seconds";
    $node->start;
}
$smtp->set(messages_per_connection => 0, bdat_known => 0);
account('again', $smtp->port('plain'));
for my $step ([ 0, 1 ], [ 5, 0 ], [ 11, 1 ], [ 26, 0 ], [ 33, 1 ])
{
    my ($at, $tried) = @$step;
    KlivMail::Server::write_file("$folder/seconds", 60 * $at);
    my $before = () = $smtp->transcript =~ /> BDAT /g;
    queue('again', "at$at", 6);
    all_sent("at$at", 6);
    my $now = () = $smtp->transcript =~ /> BDAT /g;
    is($now > $before ? 1 : 0, $tried, "... after $at minutes " . ($tried ? 'by BDAT' : 'without BDAT'));
}

done_testing();
