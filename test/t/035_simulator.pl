# Simulator and sandbox: every status and report at will, without a network: the
# whole way but the socket, quota included, bounce rates and suppressions not.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    conf => { 'kliv_mail.platform_hourly_limit' => 50, 'kliv_mail.platform_daily_limit' => 50, 'kliv_mail.retry_for' => '1h', 'kliv_mail.notify' => 'on' });

sub status
{
    my ($to) = @_;
    return $node->sql("SELECT status || coalesce(' ' || bounce_type, '') || CASE WHEN simulated THEN ' simulated' ELSE '' END FROM kliv_mail.deliveries WHERE recipient = '$to' ORDER BY created_at DESC LIMIT 1");
}
sub becomes
{
    my ($to, $expected, $name) = @_;
    $node->wait_for("$to is $expected", sub { status($to) eq $expected });
    return pass($name // "$to: $expected");
}

# ---- one address for each status ----

my $listener = $node->session;
$listener->query('LISTEN kliv_mail');
my %expected = (
    delivered => 'delivered simulated',
    bounced => 'bounced hard simulated',
    complained => 'complained simulated',
    soft => 'bounced soft simulated',
    suppressed => 'suppressed simulated',
    deferred => 'deferred',
    anybody => 'delivered simulated');
my $id = $node->sql(sprintf "SELECT kliv_mail.send('%s', 's', 'b')", join ', ', map { "$_\@simulator.invalid, " . ucfirst . "+7\@Simulator.invalid" } sort keys %expected);
becomes("$_\@simulator.invalid", $expected{$_}) for sort keys %expected;
becomes(ucfirst . '+7@simulator.invalid', $expected{$_}) for sort keys %expected;
is($node->sql(q{SELECT count(*) FROM kliv_mail.suppressions}), 0, 'nobody is suppressed by it, so that the next one ends the same way');
is($node->sql(q{SELECT used FROM kliv_mail.usage WHERE window_name = 'hour' AND account = 'platform'}), 8, 'what a server accepted counts in the quota, what it refused is given back');
is($smtp->count, 0, 'nothing reached the server');
like($node->sql("SELECT convert_from(kliv_mail.raw_message($id, 'bounced\@simulator.invalid'), 'UTF8')"), qr/^From: platform\@platform\.example/, 'it was composed to the end');
is($node->sql(q{SELECT DISTINCT last_stage || ' ' || last_code || ' ' || last_enhanced_code FROM kliv_mail.deliveries WHERE recipient ^@ 'soft'}), 'rcpt 550 5.2.0', 'replies stand where they would have been given');
my %fed = map { split /\|/ } split /\n/, $node->sql('SELECT recipient, status FROM kliv_mail.outcomes()');
is($fed{'complained@simulator.invalid'}, 'complained', 'outcomes() has what the reports say');
my $heard = $listener->query('SELECT 1');
like($heard, qr/"$id": ?"complained"|"$id": ?"bounced"|"$id": ?"delivered"/, 'NOTIFY has it, too');
$listener->quit;

# What is deferred is tried again, until that has lasted long enough.
# (by a sender that has the other clock from its beginning)
$node->wait_until(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender'});
$node->clock_offset('2 hours');
$node->sql("UPDATE kliv_mail._outbox SET due = kliv_mail._now() WHERE message_id = $id; SELECT kliv_mail._wake()");
becomes('deferred@simulator.invalid', 'bounced soft simulated', 'deferred@ is given up in the end, as any other');
$node->clock_offset('');

# ---- beside real mail ----

$node->sql(q{SELECT kliv_mail.send('ana@example.com, bounced@simulator.invalid', 's', 'b')});
becomes('ana@example.com', 'sent', 'real mail leaves beside it');
is(scalar($smtp->accepted('ana@example.com')), 1, '... for the server');
$node->sql(q{SELECT kliv_mail.pause()});
$id = $node->sql(q{SELECT kliv_mail.send('delivered+held@simulator.invalid', 's', 'b')});
is(status('delivered+held@simulator.invalid'), 'deferred', 'a pause holds it');
$node->sql(q{SELECT kliv_mail.resume()});
becomes('delivered+held@simulator.invalid', 'delivered simulated', '... until it ends');
$node->sql(q{SELECT kliv_mail.send('delivered+late@simulator.invalid', 's', 'b', send_at => now() + interval '1 day', expires_at => now() + interval '2 days')});
is(status('delivered+late@simulator.invalid'), 'scheduled', 'and so does send_at');

# A sender that dies before the report has come leaves it to the next one.
$node->sql(q{ALTER DATABASE postgres SET kliv_mail.delivery = hold});
$node->sql(q{INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, created_at, attempts, doubts, finished_at, simulated, changed)
    SELECT nextval('kliv_mail._delivery_id'), max(m.id), 'complained+left@simulator.invalid', 'to', 1, '', 'sent', now(), 1, 0, now(), true, kliv_mail._change() FROM kliv_mail._message AS m});
$node->sql('SELECT kliv_mail._wake()');
becomes('complained+left@simulator.invalid', 'complained simulated', 'a report that a sender left');

# What an open transaction has locked is no reason to start one sender after another.
$node->sql(q{INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, created_at, attempts, doubts, finished_at, simulated, changed)
    SELECT nextval('kliv_mail._delivery_id'), max(m.id), 'delivered+locked@simulator.invalid', 'to', 1, '', 'sent', now(), 1, 0, now(), true, kliv_mail._change() FROM kliv_mail._message AS m});
my $session = $node->session;
$session->query('BEGIN');
is($session->query(q{SELECT recipient FROM kliv_mail._delivery WHERE status = 'sent' AND simulated FOR UPDATE}), 'delivered+locked@simulator.invalid', 'a report to come is locked');
is($node->sql(q{SELECT kliv_mail._next_due() > kliv_mail._now() + interval '10 s'}), 't', 'locked: a sender looks again in a minute');
$session->query('ROLLBACK');
is($node->sql(q{SELECT kliv_mail._next_due() <= kliv_mail._now()}), 't', '... and at once where it is not');
$node->sql('SELECT kliv_mail._wake()');
becomes('delivered+locked@simulator.invalid', 'delivered simulated', '... so that it is played');

# ---- the sandbox: any database, without a server ----

$node->reconfigure('kliv_mail.platform_url' => '', 'kliv_mail.platform_from' => '');
$node->sql(q{CREATE DATABASE dev});
$node->sql(q{CREATE EXTENSION kliv_mail CASCADE; ALTER DATABASE dev SET kliv_mail.delivery = sandbox}, dbname => 'dev');
$id = $node->sql(q{SELECT kliv_mail.send('ana@example.com', 's', 'b')}, dbname => 'dev');
is($node->sql("SELECT kliv_mail.wait($id, '60 s')", dbname => 'dev') =~ /^(sent|delivered)$/ ? 1 : 0, 1, 'sandbox: mail to anybody is played');
$node->wait_until(q{SELECT status = 'delivered' AND simulated FROM kliv_mail.deliveries}, dbname => 'dev');
pass('... and delivered');
is($node->sql(q{SELECT delivery || '|' || (hint ~ '^All mail is played') FROM kliv_mail.status}, dbname => 'dev'), 'sandbox|true', 'status says so');
$id = $node->sql(q{SELECT kliv_mail.send('bounced@simulator.invalid', 's', 'b')}, dbname => 'dev');
$node->wait_until(qq{SELECT status = 'bounced' FROM kliv_mail.deliveries WHERE message_id = $id}, dbname => 'dev');
pass('... unless the address says otherwise');
$id = $node->sql(q{SELECT kliv_mail.send('bob@example.com', 's', 'b')});
$node->sql(q{ALTER DATABASE dev RESET kliv_mail.delivery}, dbname => 'dev');
like($node->sql(q{SELECT status || ' ' || reason FROM kliv_mail.deliveries WHERE message_id = kliv_mail.send('eva@example.com', 's', 'b')}, dbname => 'dev') . $node->sql(q{SELECT status || ' ' || reason FROM kliv_mail.deliveries ORDER BY created_at DESC LIMIT 1}, dbname => 'dev'),
    qr/not configured/, 'without it mail waits for a server, as before');
is($smtp->count, 1, 'none of it reached a server');
$node->stop;

done_testing();
