# A committed send() becomes a mail on a server, a rolled back one nothing;
# wait() in each of its cases; what send() says while mail cannot leave (A2).
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new('main', platform_url => 'smtp://127.0.0.1:' . $smtp->port);
my $result;

# ---- commit and rollback ----

$node->sql("BEGIN; SELECT kliv_mail.send('ana\@example.com','Hi','Hello'); ROLLBACK");
is($node->sql('SELECT count(*) FROM kliv_mail.messages'), 0, 'a rollback leaves nothing');

$node->sql(q{
    BEGIN;
    SAVEPOINT s;
    SELECT kliv_mail.send('lost@example.com', 'Hi', 'Hello');
    ROLLBACK TO s;
    COMMIT});
is($node->sql('SELECT count(*) FROM kliv_mail.messages'), 0, 'neither does a rolled back savepoint');

$result = $node->try(
    "BEGIN; SELECT kliv_mail.send('ana\@example.com','Hi','Hello'); COMMIT");
is($result->{err}, '', 'the first mail of the platform gives no notice');
my ($first) = $result->{out} =~ /^(\d+)$/m;
is($node->sql("SELECT kliv_mail.wait($first, '60 s')"), 'sent', 'wait() returns when it is sent');
is($smtp->count, 1, 'the server has exactly that one');
my ($entry) = $smtp->accepted;
is("@{ $entry->{rcpt} }", 'ana@example.com', 'its envelope recipient');
is($entry->{mail_from}, 'platform@platform.example', 'its envelope sender is the platform\'s');
my $bytes = $smtp->message($entry);
like($bytes, qr/^From: platform\@platform\.example\r\n/m, 'its From');
like($bytes, qr/^To: ana\@example\.com\r\n/m, 'its To');
like($bytes, qr/^Subject: Hi\r\n/m, 'its Subject');
like($bytes, qr/^Date: \w{3}, \d{1,2} \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}\r\n/m, 'its Date');
like($bytes, qr/^Message-ID: <[^<>\s]+\@[^<>\s]+>\r\n/mi, 'its Message-ID');
like($bytes, qr/\r\n\r\nHello\r\n\z/, 'its body');
is($entry->{bare}, 0, 'no bare CR or LF on the wire');
is($node->sql("SELECT status, held_by IS NULL, last_stage, last_code, last_enhanced_code, attempts,
                      server_message_id, sent_at IS NOT NULL
               FROM kliv_mail.deliveries WHERE message_id = $first"),
    "sent|t|dot|250|2.0.0|1|$entry->{id}|t", 'its delivery: every part of the reply is kept');

# ---- several recipients; bcc in no copy ----

$node->sql('ALTER SYSTEM SET kliv_mail.platform_hourly_limit = 1000');
$node->sql('ALTER SYSTEM SET kliv_mail.platform_daily_limit = 1000');
$node->reload;
$node->wait_until("SELECT quota = 1000 FROM kliv_mail.usage WHERE window_name = 'day'");
my $many = $node->sql(q{
    SELECT kliv_mail.send('Ana <ana@example.com>, bob@example.org', 'Several', 'text', '<p>html</p>',
        cc => 'carol@example.net', bcc => 'secret@example.net')});
is($node->sql("SELECT kliv_mail.wait($many, '60 s')"), 'sent', 'four recipients');
my @copies = map { $smtp->message($_) } grep { $_->{conn} } ($smtp->accepted)[ 1 .. 4 ];
is(scalar(@copies), 4, 'four copies');
is_deeply([ sort map { $_->{rcpt}[0] } ($smtp->accepted)[ 1 .. 4 ] ],
    [qw(ana@example.com bob@example.org carol@example.net secret@example.net)],
    'each in a transaction of its own');
is(scalar(grep { /secret\@/ } @copies), 0, 'B056: bcc stands in no copy');
is(scalar(grep { /^Cc: carol\@example\.net\r$/m } @copies), 4, 'cc stands in all');
my %ids = map { /^Message-ID: (\S+)/mi; ($1 => 1) } @copies;
is(scalar(keys %ids), 1, 'all copies have one Message-ID');

# ---- send_at, expires_at, idempotency_key, cancel, retry ----

$result = $node->try(q{SELECT kliv_mail.send('later@example.com', 'Later', 'x', send_at => now() + interval '1 day')});
my $later = $result->{out};
is($node->sql("SELECT status, held_by FROM kliv_mail.deliveries WHERE message_id = $later"),
    'scheduled|', 'send_at: scheduled');
is($node->sql("SELECT kliv_mail.cancel($later), kliv_mail.cancel($later)"), 't|f', 'cancel() stops it, once');
is($node->sql("SELECT status FROM kliv_mail.messages WHERE id = $later"), 'cancelled', 'and says so');

my $key = "SELECT kliv_mail.send('key\@example.com', 'Once', 'x', idempotency_key => 'order-7')";
my $once = $node->sql($key);
is($node->sql($key), $once, 'the same key and arguments give the first id');
is($node->try($key =~ s/'x'/'y'/r)->{state}, '23505', 'other arguments are 23505');
$node->sql("SELECT kliv_mail.wait($once, '60 s')");
is(scalar($smtp->accepted('key@example.com')), 1, 'and one mail leaves');

# A refused recipient: bounced, and its address suppressed; then retry() sends it again.
my $refused = $node->sql(q{SELECT kliv_mail.send('once-rcpt-550-5.1.1@example.com', 'No', 'x')});
is($node->sql("SELECT kliv_mail.wait($refused, '60 s')"), 'bounced', '550 at RCPT: bounced');
is($node->sql("SELECT bounce_type, last_stage, last_code, last_enhanced_code FROM kliv_mail.deliveries WHERE message_id = $refused"),
    'hard|rcpt|550|5.1.1', 'with the reply');
is($node->sql(q{SELECT kliv_mail.unsuppress('once-rcpt-550-5.1.1@example.com')}), 't', 'the address was suppressed');
is($node->sql("SELECT kliv_mail.retry($refused)"), 1, 'retry() queues it anew');
is($node->sql("SELECT kliv_mail.wait($refused, '60 s')"), 'sent', 'and it is sent');

my $later_on = $node->sql(q{SELECT kliv_mail.send('once-rcpt-451-4.3.0@example.com', 'Not now', 'x')});
$node->wait_until("SELECT status = 'deferred' FROM kliv_mail.deliveries WHERE message_id = $later_on");
is($node->sql("SELECT held_by, last_code, last_enhanced_code, next_attempt_at BETWEEN now() AND now() + interval '1 minute'
               FROM kliv_mail.deliveries WHERE message_id = $later_on"), 'retry|451|4.3.0|t', '451: deferred, with the time of the next try');
is($node->sql("SELECT kliv_mail.retry($later_on)"), 1, 'retry() tries it at once');
is($node->sql("SELECT kliv_mail.wait($later_on, '60 s')"), 'sent', 'and it is sent');

# ---- what the server cannot take is found out before a byte is sent ----

my $utf8 = $node->sql("SELECT kliv_mail.send('j\xc3\xb6s\xc3\xa9\@x.example', 'x', 'x')");
is($node->sql("SELECT kliv_mail.wait($utf8, '60 s')"), 'failed', 'B016: a server without SMTPUTF8');
is($node->sql("SELECT last_enhanced_code, attempts FROM kliv_mail.deliveries WHERE message_id = $utf8"), '5.6.7|1', '... says so');
$smtp->set(size => 100_000);
$smtp->drop_connections;
my $big = $node->sql(q{SELECT kliv_mail.send('big@x.example', 'x', repeat('x', 200000))});
is($node->sql("SELECT kliv_mail.wait($big, '60 s')"), 'failed', 'B040: a mail over the SIZE of the server');
is($node->sql("SELECT last_enhanced_code, attempts FROM kliv_mail.deliveries WHERE message_id = $big"), '5.3.4|1', '... says so');
unlike($smtp->transcript, qr/big\@x\.example/, '... and no byte of it was sent');
$smtp->set(size => 52428800);

# ---- wait(): its other cases ----

my $session = $node->session;
$session->query('BEGIN');
my $own = $session->query(q{SELECT kliv_mail.send('own@example.com', 'Own', 'x')});
like($session->query("SELECT kliv_mail.wait($own)"), qr/ERROR:  55000:/, 'a message of the same transaction');
$session->query('ROLLBACK');
is($node->try('SELECT kliv_mail.wait(999999)')->{state}, '22023', 'an unknown message');
is($node->try("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT kliv_mail.wait($first)")->{state},
    '25001', 'above READ COMMITTED');

$node->sql(q{CREATE ROLE ann; CREATE ROLE ben;
    SELECT kliv_mail.grant_send('ann'); SELECT kliv_mail.grant_send('ben')});
my $anns = $node->sql(q{SELECT kliv_mail.send('a@example.com', 'Ann', 'x')}, role => 'ann');
is($node->try("SELECT kliv_mail.wait($anns)", role => 'ben')->{state}, '22023', 'somebody else\'s message');
is($node->sql("SELECT kliv_mail.wait($anns, '60 s')", role => 'ann'), 'sent', 'one\'s own');
is($node->sql('SELECT count(*) FROM kliv_mail.messages', role => 'ben'), 0, 'a role sees its own messages');
is($node->sql('SELECT count(*) FROM kliv_mail.deliveries', role => 'ann'), 1, 'and all of those');

# Woken while it waits, by a commit that came after it began.
$smtp->set(dot_reply => 'stall');
my $slow = $node->sql(q{SELECT kliv_mail.send('slow@example.com', 'Slow', 'x')});
$session->send("SELECT kliv_mail.wait($slow, '170 s')");
$node->wait_until(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%kliv_mail.wait(%' AND wait_event_type IS NOT NULL
                    AND pid <> pg_backend_pid() AND state = 'active'});
$node->wait_until("SELECT status = 'sending' FROM kliv_mail.deliveries WHERE message_id = $slow");
ok(!$session->ready, 'wait() waits while the server is silent');
is($node->sql("SELECT kliv_mail.wait($slow, '0 s')"), 'sending', 'a timeout returns what it is now');
$smtp->set(dot_reply => '');
$smtp->release;
is($session->result, 'sent', 'the connection is lost after the dot: it is tried again, and wait() returns');
is($node->sql("SELECT attempts FROM kliv_mail.deliveries WHERE message_id = $slow"), 2, 'at the second attempt');
$session->quit;

# ---- the platform's quota: the third mail ----

my $limited = KlivMail::Cluster->new('limited', platform_url => 'smtp://127.0.0.1:' . $smtp->port);
for my $n (1, 2)
{
    $result = $limited->try("SELECT kliv_mail.send('p$n\@example.com', 'Platform $n', 'x')");
    is_deeply($result->{notices}, [], "platform mail $n: no notice");
    is($limited->sql("SELECT kliv_mail.wait($result->{out}, '60 s')"), 'sent', "platform mail $n: sent");
}
$result = $limited->try(q{SELECT kliv_mail.send('p3@example.com', 'Platform 3', 'x')});
is(scalar(@{ $result->{notices} }), 1, 'the third: one notice');
like($result->{notices}[0], qr/account "platform" has used its 2 recipients of this (?:hour|day)/, 'what it waits for');
like($result->{hint}, qr/configure_smtp/, 'and the call that cures it');
my $started = time;
is($limited->sql("SELECT kliv_mail.wait($result->{out}, '170 s')"), 'deferred', 'wait(): held by quota');
cmp_ok(time - $started, '<', 60, 'at once');
is($limited->sql(q{SELECT status, held_by, attempts, reason <> '' AND hint <> '',
                          estimated_send_at = date_trunc('day', now(), 'UTC') + interval '1 day'
                   FROM kliv_mail.deliveries WHERE recipient = 'p3@example.com'}),
    'deferred|quota|0|t|t', 'its delivery says why, and when it goes');
$result = $limited->try(q{
    SELECT kliv_mail.send('p4@example.com', 'Platform 4', 'x');
    SELECT kliv_mail.send('p5@example.com', 'Platform 5', 'x')});
is(scalar(@{ $result->{notices} }), 2, 'one notice each transaction');
$result = $limited->try(q{
    BEGIN;
    SELECT kliv_mail.send('p6@example.com', 'Platform 6', 'x');
    SELECT kliv_mail.send('p7@example.com', 'Platform 7', 'x');
    COMMIT});
is(scalar(@{ $result->{notices} }), 1, 'and no more in one transaction');
$result = $limited->try(q{SELECT kliv_mail.send('p8@example.com', 'x', 'x', on_limit => 'error')});
is($result->{state}, '53400', 'on_limit => error');
is($limited->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE recipient = 'p8@example.com'}), 0, 'queues nothing');

# ---- no platform server; not preloaded ----

my $bare = KlivMail::Cluster->new('bare', preload => 0);
$result = $bare->try(q{SELECT kliv_mail.send('x@example.com', 'x', 'x')});
is($result->{state}, '', 'without preload: queued');
like($result->{err}, qr/shared_preload_libraries/, 'the notice says the line to add');
$result = $bare->try('DROP EXTENSION kliv_mail; CREATE EXTENSION kliv_mail');
like($result->{err}, qr/WARNING: .*kliv_mail is not preloaded: mail queues, and nothing sends it/, 'so does CREATE EXTENSION');
is($result->{hint}, "ALTER SYSTEM SET shared_preload_libraries = 'kliv_mail'; then restart the server.", '... with the statement');
$bare->sql(q{SET client_min_messages = warning; SELECT kliv_mail.send('x@example.com', 'x', 'x')});
like($bare->sql('SELECT reason, hint FROM kliv_mail.deliveries'), qr/shared_preload_libraries|platform_url/,
    'deliveries says so too');
is($bare->sql('SELECT preloaded FROM kliv_mail.status'), 'f', 'and status');
$bare->stop;
$bare->configure(shared_preload_libraries => 'kliv_mail');
$bare->start;
$result = $bare->try(q{SELECT kliv_mail.send('y@example.com', 'y', 'y')});
is(scalar(@{ $result->{notices} }), 1, 'no platform server: one notice');
like($result->{err}, qr/kliv_mail\.platform_url/, 'that names the setting');
is($bare->sql(q{SELECT status, held_by FROM kliv_mail.deliveries WHERE recipient = 'y@example.com'}),
    'deferred|account', 'and the mail waits');
$bare->reconfigure(
    'kliv_mail.platform_url'  => 'smtp://127.0.0.1:' . $smtp->port,
    'kliv_mail.platform_from' => 'platform@platform.example');
$bare->wait_until(q{SELECT bool_and(status = 'sent') FROM kliv_mail.deliveries});
pass('once it is there, both leave by themselves');

$_->stop for $node, $limited, $bare;
done_testing();
