# Quotas are never exceeded, whatever happens, and what waits goes out by
# itself (A3).  The clock is moved by kliv_mail.test_clock_offset.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use POSIX ':sys_wait_h';
use Test::More;
use Time::HiRes 'usleep';

my $sent = q{SELECT count(*) FROM kliv_mail.deliveries WHERE status = 'sent'};

# Wait until so many are sent and nothing more can leave now.
sub settled
{
    my ($node, $count) = @_;
    $node->wait_until("SELECT count(*) FILTER (WHERE status = 'sent') = $count
                           AND count(*) FILTER (WHERE status IN ('queued', 'sending', 'in_doubt')) = 0
                       FROM kliv_mail.deliveries");
    return;
}

# ---- the platform: 2 an hour, 2 a day ----

my $smtp = KlivMail::SmtpServer->start;
my $url = 'smtp://127.0.0.1:' . $smtp->port;
# (retention counts in days of the same clock)
my $node = KlivMail::Cluster->new('platform', platform_url => $url, conf => { 'kliv_mail.retention' => '365d' });

# Noon, so that neither midnight nor the turn of an hour comes meanwhile.
sub to_noon
{
    my ($node) = @_;
    my $offset = $node->sql(q{SELECT extract(epoch FROM date_trunc('day', now(), 'UTC') + interval '36 hours 5 minutes' - now())::integer});
    $node->clock_offset("$offset s");
    return $offset;
}
my $noon = to_noon($node);
$node->sql(q{DO $$ BEGIN FOR i IN 1..200 LOOP PERFORM kliv_mail.send(format('r%s@example.com', i), 'Mail ' || i, 'x'); END LOOP; END $$});
settled($node, 2);
is($smtp->count, 2, 'of 200 on the platform account exactly 2 leave');
is($node->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE status = 'deferred' AND held_by = 'quota'}), 198, '198 wait');
is($node->sql(q{
    SELECT count(*) FROM (
        SELECT estimated_send_at, row_number() OVER (ORDER BY message_id) AS n
        FROM kliv_mail.deliveries WHERE status = 'deferred') AS d
    WHERE estimated_send_at = (SELECT date_trunc('day', kliv_mail._now(), 'UTC')) + ((n + 1) / 2) * interval '1 day'}),
    198, 'each with the right estimated_send_at');
is($node->sql('SELECT window_name, used, quota, remaining, queued FROM kliv_mail.usage ORDER BY 1 DESC'),
    "hour|2|2|0|198\nday|2|2|0|198", 'usage agrees');

for my $hour (1 .. 11)
{
    $node->clock_offset(($noon + 3600 * $hour) . ' s');
    settled($node, 2);
}
is($smtp->count, 2, 'the other hours of the day bring none');
my @per_day = ();
for my $day (1 .. 99)
{
    my $before = $smtp->count;
    $node->clock_offset(($noon + 86400 * $day) . ' s');
    settled($node, 2 + 2 * $day);
    push @per_day, $smtp->count - $before;
}
is_deeply(\@per_day, [ (2) x 99 ], 'each of 99 days brings exactly 2');
is($node->sql($sent), 200, 'and then all have left');
is_deeply([ map { $_->{rcpt}[0] } $smtp->accepted ], [ map { "r$_\@example.com" } 1 .. 200 ], 'in the order of sending');
is($node->sql('SELECT kliv_mail._next_due()'), 'infinity', 'nothing is due any more');

# A clock set back opens no second window.
$node->sql(q{SELECT kliv_mail.send('back@example.com', 'x', 'x')});
$node->clock_offset(($noon + 86400 * 98) . ' s');
settled($node, 200);
is($smtp->count, 200, 'a clock set back a day: that day is used up');
$node->clock_offset(($noon + 86400 * 100) . ' s');
settled($node, 201);
is($smtp->count, 201, 'forward again: it leaves');
$node->stop;

# ---- an own account: 50 an hour, 500 a day ----

$smtp = KlivMail::SmtpServer->start;
$node = KlivMail::Cluster->new('own', conf => { 'kliv_mail.allowed_hosts' => '127.0.0.1' });
$noon = to_noon($node);
my $port = $smtp->port;
$node->sql("SELECT kliv_mail.configure_smtp(host => '127.0.0.1', port => $port, encryption => 'none',
                from_address => 'shop\@shop.example')");
is($node->sql('SELECT hourly_limit, daily_limit FROM kliv_mail.smtp_settings WHERE in_use'), '50|500', 'a new account\'s limits');
my $result = $node->try('SELECT kliv_mail.set_limits(daily_limit => 10001)');
is($result->{state}, '22023', 'more than max_daily_limit is refused');
is($node->sql(q{SELECT daily_limit FROM kliv_mail.smtp_settings WHERE in_use}), 500, 'and changes nothing');
is($node->try('SELECT kliv_mail.set_limits(hourly_limit => -1)')->{state}, '22023', 'a negative limit');
is($node->try(q{SELECT kliv_mail.set_limits(daily_limit => 3, account => 'platform')})->{state}, '42501', 'the platform\'s limits');

$node->sql(q{SELECT kliv_mail.send(format('r%s@example.com', i), 'x', 'x') FROM generate_series(1, 60) AS i});
settled($node, 50);
is($smtp->count, 50, 'of 60 exactly 50 leave in the hour');
is($node->sql(q{SELECT window_name, used, remaining, queued FROM kliv_mail.usage WHERE account = 'custom' ORDER BY 1 DESC}),
    "hour|50|0|10\nday|50|450|10", 'usage agrees with the ledger');
$node->sql(q{SELECT kliv_mail.send(format('s%s@example.com', i), 'x', 'x') FROM generate_series(1, 500) AS i});
for my $hour (1 .. 9)
{
    $node->clock_offset(($noon + 3600 * $hour) . ' s');
    settled($node, 50 + 50 * $hour);
}
is($smtp->count, 500, '500 in ten hours');
for my $hour (10 .. 11)
{
    $node->clock_offset(($noon + 3600 * $hour) . ' s');
    settled($node, 500);
}
is($smtp->count, 500, 'and no more in this day');
is($node->sql(q{SELECT window_name, used, remaining, queued FROM kliv_mail.usage WHERE account = 'custom' ORDER BY 1 DESC}),
    "hour|0|0|60\nday|500|0|60", 'usage: the hour is free, the day rules');
$node->clock_offset(($noon + 86400) . ' s');
settled($node, 550);
$node->clock_offset(($noon + 86400 + 3600) . ' s');
settled($node, 560);
is($smtp->count, 560, 'the next day brings the rest');

# B098: ten thousand in one transaction, B097 and a changed limit at once.
$node->clock_offset(($noon + 2 * 86400) . ' s');
$node->sql(q{SELECT kliv_mail.set_limits(hourly_limit => 100, daily_limit => 10000)});
$node->sql(q{SELECT count(kliv_mail.send(format('t%s@example.com', i), 'x', 'x')) FROM generate_series(1, 10000) AS i});
settled($node, 660);
is($smtp->count, 660, 'B098: of 10,000 in one transaction 100 leave in the hour');
is_deeply([ sort map { $_->{rcpt}[0] } ($smtp->accepted)[ 560 .. 659 ] ], [ sort map { "t$_\@example.com" } 1 .. 100 ],
    'B098: the oldest hundred');
is($node->sql(q{
    SELECT count(*) FROM (
        SELECT estimated_send_at, row_number() OVER (ORDER BY message_id) AS n
        FROM kliv_mail.deliveries WHERE status = 'deferred') AS d
    WHERE estimated_send_at <> CASE
        WHEN n <= 1100 THEN date_trunc('hour', kliv_mail._now(), 'UTC') + ((n + 99) / 100) * interval '1 hour'
        ELSE date_trunc('day', kliv_mail._now(), 'UTC') + interval '1 day' + ((n - 1101) / 100) * interval '1 hour' END}),
    0, 'B098: all 9,900 estimates are right');
$node->sql('SELECT kliv_mail.set_limits(hourly_limit => 250)');
settled($node, 810);
is($smtp->count, 810, 'a raised limit counts at once for what is queued');
$node->sql('SELECT kliv_mail.set_limits(hourly_limit => 0)');
$node->clock_offset(($noon + 2 * 86400 + 3600) . ' s');
settled($node, 810);
is($node->sql(q{SELECT DISTINCT status, held_by FROM kliv_mail.deliveries WHERE status <> 'sent'}), 'deferred|quota', '0 pauses');
is($smtp->count, 810, 'and nothing leaves');
$node->stop;

# ---- many senders and kills ----

# Four sessions send without pause while the sender is killed twenty times; a
# crash restarts the server, so they connect anew.
$smtp = KlivMail::SmtpServer->start(delay_dot => 1000);
$node = KlivMail::Cluster->new(
    'kills',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    durable      => 1,
    conf         => {
        'kliv_mail.platform_hourly_limit' => 300,
        'kliv_mail.platform_daily_limit'  => 300
    });
to_noon($node);
my $committed = PostgreSQL::Test::Utils::tempdir();
my $stop = "$committed/stop";
my @writers;
for my $writer (1 .. 4)
{
    my $pid = fork // die "fork: $!";
    if ($pid == 0)
    {
        open my $file, '>', "$committed/$writer" or POSIX::_exit(1);
        $file->autoflush(1);
        my $n = 0;
        while (!-e $stop)
        {
            $n++;
            my ($out, $err) = ('', '');
            my $status = $node->psql(
                'postgres',
                "SELECT kliv_mail.send('w$writer-$n\@example.com', 'x', 'x')",
                stdout => \$out, stderr => \$err, on_error_die => 0);
            print $file "w$writer-$n\@example.com\n" if defined $status && $status == 0 && $out =~ /^\d+$/;
        }
        POSIX::_exit(0);
    }
    push @writers, $pid;
}
my $kills = 0;
my $deadline = time + 170;
while ($kills < 20 && time < $deadline)
{
    my ($code, $out) = $node->psql('postgres',
        q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender'}, on_error_die => 0);
    my ($pid) = ($out // '') =~ /^(\d+)/;
    if ($pid && kill(($kills % 2 ? 'KILL' : 'TERM'), $pid))
    {
        $kills++;
        # The next one must be another.
        while (kill(0, $pid) && time < $deadline) { usleep(10_000) }
    }
    else
    {
        usleep(20_000);
    }
}
open my $flag, '>', $stop or die $!;
close $flag;
waitpid $_, 0 for @writers;
cmp_ok($smtp->count, '<=', 300, "the quota of 300 held over $kills kills");
is($kills, 20, 'of which all happened');
$smtp->set(delay_dot => 0);
$node->wait_until('SELECT true');
my @promised = map { chomp; $_ } map { open my $f, '<', "$committed/$_" or die $!; <$f> } 1 .. 4;
my %known = map { $_ => 1 } split /\n/, $node->sql('SELECT recipient FROM kliv_mail.deliveries');
is(scalar(grep { !$known{$_} } @promised), 0, 'everything committed is known: ' . @promised . ' mails');
$node->wait_until(q{SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE status IN ('queued', 'sending')});
cmp_ok($smtp->count, '<=', 300, 'still within the quota');
is($node->sql(q{SELECT max(used) <= 300 FROM kliv_mail.usage}), 't', 'usage too');

$node->sql('ALTER SYSTEM SET kliv_mail.platform_hourly_limit = 10000');
$node->sql('ALTER SYSTEM SET kliv_mail.platform_daily_limit = 10000');
$node->reload;
$node->wait_until(q{SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE status NOT IN ('sent')});
my %arrived = map { $_->{rcpt}[0] => 1 } $smtp->accepted;
is(scalar(grep { !$arrived{$_} } @promised), 0, 'with more quota every one of them arrives');
$node->stop;

done_testing();
