# A clock that was ahead and is right again: what was to leave at once does so,
# what was scheduled stays so, and a hold that it wrote is over.  (By SQL, with
# the clock of the session moved; no sender runs.)  Then with the server's own.
use strict;
use warnings;
use IPC::Run ();
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = KlivMail::Cluster->new('main', preload => 0);
my $session = $node->session;
$node->sql(q{
    INSERT INTO kliv_mail._account (name, in_use, route_order, origin, host, port, encryption, from_address, created_at, updated_at, updated_by, renewed_at)
    VALUES ('custom', true, 0, kliv_mail._origin(), 'smtp.example.com', 25, 'none', 'a@a.example', now(), now(), 'me', now())});
$session->sql(q{SET kliv_mail.test_in_session = on; SET kliv_mail.test_clock_offset = '1 day'});
my $at_once = $session->sql(q{SELECT kliv_mail.send('at-once@example.com', 'x', 'x')}) =~ s/^.*NOTICE.*\n|^HINT.*\n|^LOCATION.*\n//mgr;
my $planned = $session->sql(q{SELECT kliv_mail.send('planned@example.com', 'x', 'x', send_at => kliv_mail._now() + interval '1 hour')});
$session->sql(q{INSERT INTO kliv_mail._quota (account, held_until, held_by, held_reason, held_since, failures, fingerprint)
    SELECT 'custom', kliv_mail._now() + interval '10 minutes', 'account', 'the server is down', kliv_mail._now(), 0, a.fingerprint FROM kliv_mail._accounts() AS a WHERE a.name = 'custom'});
is($session->sql(q{SELECT held_by, code FROM kliv_mail.deliveries WHERE recipient ~ 'at-once'}), 'account|account_trouble', 'ahead: the account is held');

$session->sql('RESET kliv_mail.test_clock_offset');
is($session->sql(q{SELECT blocked_until IS NULL FROM kliv_mail._availability('custom', kliv_mail._now())}), 't', 'right again: a hold that reaches further ahead than any does is void');
$session->sql(q{SELECT kliv_mail.send('fresh@example.com', 'x', 'x')});
$session->sql('SELECT kliv_mail._settle_clock(kliv_mail._now(), 0)');
is($session->sql(q{SELECT count(*) FROM kliv_mail._claim_account(1, 'custom', 10, 1000000, true)}), 2, 'what was to leave at once is claimed, also behind what came since');
is($session->sql(q{SELECT string_agg(status, ' ' ORDER BY recipient) FROM kliv_mail.deliveries}), 'sending sending scheduled', '... and what was scheduled waits for its time');
$session->quit;
$node->stop;

# The clock of the server is set back while no sender is there: what waits for a
# retry (as the row says after a refusal) leaves when the launcher had meant it to.
my $folder = PostgreSQL::Test::Utils::tempdir();
ok(IPC::Run::run([ 'cc', '-shared', '-fPIC', '-o', "$folder/preload.so", 'test/preload.c' ]), 'test/preload.c compiles');
my $smtp = KlivMail::SmtpServer->start;
$node->configure(
    shared_preload_libraries        => 'kliv_mail',
    'kliv_mail.sender_idle_timeout' => 0,
    'kliv_mail.platform_url'        => 'smtp://127.0.0.1:' . $smtp->port,
    'kliv_mail.platform_from'       => 'platform@platform.example',
    'kliv_mail.platform_hourly_limit' => 10000,
    'kliv_mail.platform_daily_limit'  => 10000);
# From PostgreSQL 19 on the processor's own counter may be the clock, which no library can move.
$node->configure(timing_clock_source => 'system') if $node->pg_version > 18.99;    # (19rc1 comes before 19)
{
    local $ENV{LD_PRELOAD} = "$folder/preload.so";
    local $ENV{KLM_CLOCK} = "$folder/clock";
    local $ENV{KLM_MONOTONIC} = "$folder/minutes";
    $node->start;
}
$node->sql(q{
    DELETE FROM kliv_mail._outbox;
    SELECT kliv_mail.send('retried@example.com', 'x', 'x', account => 'platform', send_at => kliv_mail._now() + interval '10 seconds');
    UPDATE kliv_mail._message SET send_at = NULL WHERE account = 'platform'});
$node->wait_until(q{SELECT worker = 'idle' AND next_start IS NOT NULL FROM kliv_mail.status});
append_to_file("$folder/clock", '-3600');
ok($node->sql(q{SELECT now() < (SELECT created_at FROM kliv_mail.deliveries WHERE recipient ~ 'retried')}), 'the clock is an hour back');
$node->wait_until(q{SELECT status = 'sent' FROM kliv_mail.deliveries WHERE recipient ~ 'retried'});
is(scalar($smtp->accepted('retried@example.com')), 1, 'what waits for a retry leaves within its seconds');

# It is set two hours ahead while replies to the dot are awaited: nobody has waited for two hours.
$smtp->set(dot_reply => 'hold');
$node->sql(q{SELECT kliv_mail.send('waits' || i || '@example.com', 'x', 'x', account => 'platform') FROM generate_series(1, 3) AS i});
ok($smtp->wait_for(sub { (grep { $_->{rcpt}[0] =~ /^waits/ } $smtp->accepted) >= 2 }), 'mails wait for the reply to the dot');
unlink "$folder/clock";
append_to_file("$folder/clock", '3600');
# (a sender begins with four connections at most)
$node->sql(q{SELECT kliv_mail.send('then@example.com', 'x', 'x', account => 'platform')});
ok($smtp->wait_for(sub { $smtp->accepted('then@example.com') }), 'the sender goes on with the clock two hours ahead');
$smtp->set(dot_reply => '');
$smtp->resume;
$node->wait_until(q{SELECT count(*) = 4 FROM kliv_mail.deliveries WHERE recipient ~ '^(waits|then)' AND status = 'sent'});
is($node->sql(q{SELECT DISTINCT attempts, doubts FROM kliv_mail._delivery WHERE recipient ~ '^(waits|then)'}), '1|0', '... and what waited is sent once');

# A reply to the dot has ten minutes as a whole, though its lines come and come, and
# though another mail joins behind it.  (The clock that waits go by is put on.)
$node->reconfigure('kliv_mail.connections_per_account' => 1);
$node->sql(q{SELECT kliv_mail.send('drip-dot@example.com', 'x', 'x', account => 'platform')});
my $drips = sub { my @lines = $smtp->transcript =~ /< \d+-please wait/g; return scalar @lines };
for my $minutes (4, 8, 12)
{
    my $before = $drips->();
    ok($smtp->wait_for(sub { $drips->() >= $before + 3 }, 60), "after @{[ $minutes - 4 ]} minutes it still replies");
    $node->sql(q{SELECT kliv_mail.send('joins@example.com', 'x', 'x', account => 'platform')}) if $minutes == 4;
    unlink "$folder/minutes";
    append_to_file("$folder/minutes", 60 * $minutes);
}
$node->wait_until(q{SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE status = 'sending'});
is($node->sql(q{SELECT string_agg(recipient || ' ' || status, ', ' ORDER BY recipient) FROM kliv_mail.deliveries WHERE recipient ~ '^(drip|joins)'}),
    'drip-dot@example.com sent, joins@example.com sent', 'a reply that never ends is given up after its ten minutes, and counts as what it began with');

# The clock is set back while a sender is busy: nothing makes it look at the whole line, and what waits for a retry leaves.
$node->reconfigure('kliv_mail.sender_idle_timeout' => '1min');
my $stream = 0;
my $sending = $node->session;
sub busy_until
{
    my ($condition) = @_;
    return $smtp->wait_for(sub {
        $stream++;
        $sending->sql("SELECT kliv_mail.send('stream$stream\@example.com', 'x', 'x', account => 'platform')");
        return $condition->();
    });
}
sub left { my ($local) = @_; return scalar $smtp->accepted("$local\@example.com"); }
ok(busy_until(sub { left('stream20') }), 'a sender is busy');
$node->sql(q{
    SELECT kliv_mail.send('retried-busy@example.com', 'x', 'x', account => 'platform', send_at => kliv_mail._now() + interval '60 seconds');
    UPDATE kliv_mail._message SET send_at = NULL WHERE account = 'platform' AND send_at IS NOT NULL});
my $later = $stream + 10;
busy_until(sub { left("stream$later") });
is(left('retried-busy'), 0, '... what is due in a minute waits');
unlink "$folder/clock";
ok(busy_until(sub { left('retried-busy') }), 'an hour back: it leaves by a sender that is busy');

# It was ahead for one mail, while a long line keeps the claims from where that stands.
$smtp->set(delay_dot => 10, dot_reply => 'hold');
$sending->sql(q{SELECT count(kliv_mail.send('line' || i || '@example.com', 'x', 'x', account => 'platform')) FROM generate_series(1, 400) AS i});
append_to_file("$folder/clock", '3600');
$sending->sql(q{SELECT kliv_mail.send('ahead@example.com', 'x', 'x', account => 'platform')});
unlink "$folder/clock";
is(left('ahead'), 0, 'a mail is queued by a clock that is an hour ahead');
$smtp->set(dot_reply => '');
$smtp->resume;
ok(busy_until(sub { left('ahead') }), '... it leaves by a sender that is busy');
$sending->quit;
$node->stop;
done_testing();
