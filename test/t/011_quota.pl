# The platform's quota, 2 an hour and 2 a day, is never exceeded, and what waits
# goes out by itself (A3).  The clock is moved by kliv_mail.test_clock_offset.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $url = 'smtp://127.0.0.1:' . $smtp->port;
# (retention counts in days of the same clock)
my $node = KlivMail::Cluster->new('platform', platform_url => $url, conf => { 'kliv_mail.retention' => '1000d' });

my $noon = $node->clock_to_noon;
$node->sql(q{DO $$ BEGIN FOR i IN 1..200 LOOP PERFORM kliv_mail.send(format('r%s@example.com', i), 'Mail ' || i, 'x'); END LOOP; END $$});
$node->wait_settled(2);
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
    $node->wait_settled(2);
}
is($smtp->count, 2, 'the other hours of the day bring none');
my @per_day = ();
for my $day (1 .. 99)
{
    my $before = $smtp->count;
    $node->clock_offset(($noon + 86400 * $day) . ' s');
    $node->wait_settled(2 + 2 * $day);
    push @per_day, $smtp->count - $before;
}
is_deeply(\@per_day, [ (2) x 99 ], 'each of 99 days brings exactly 2');
is($node->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE status = 'sent'}), 200, 'and then all have left');
is_deeply([ map { $_->{rcpt}[0] } $smtp->accepted ], [ map { "r$_\@example.com" } 1 .. 200 ], 'in the order of sending');
is($node->sql('SELECT kliv_mail._next_due()'), 'infinity', 'nothing is due any more');

# A clock set back opens no second window.
$node->sql(q{SELECT kliv_mail.send('back@example.com', 'x', 'x')});
$node->clock_offset(($noon + 86400 * 98) . ' s');
$node->wait_settled(200);
is($smtp->count, 200, 'a clock set back a day: that day is used up');
$node->clock_offset(($noon + 86400 * 100) . ' s');
$node->wait_settled(201);
is($smtp->count, 201, 'forward again: it leaves');

# The day on which New York's clocks are set back has 25 hours.
my $midnight = $node->sql(q{SELECT extract(epoch FROM '2027-11-07 04:30:00Z' - now())::integer});
$node->sql(q{ALTER DATABASE postgres SET kliv_mail.quota_timezone = 'America/New_York'});
$node->clock_offset("$midnight s");
$node->sql(q{SELECT kliv_mail.send(format('ny%s@example.com', i), 'x', 'x') FROM generate_series(1, 3) AS i});
$node->wait_settled(203);
is($node->sql(q{SELECT estimated_send_at = '2027-11-08 05:00:00Z' FROM kliv_mail.deliveries WHERE status = 'deferred'}), 't',
    'B095: a day of 25 hours ends an hour later');
$node->clock_offset(($midnight + 24 * 3600) . ' s');
$node->wait_settled(203);
is($smtp->count, 203, 'B095: 24 hours later it is the same day');
$node->clock_offset(($midnight + 25 * 3600) . ' s');
$node->wait_settled(204);
is($smtp->count, 204, 'B095: 25 hours later it is the next');
$node->stop;

done_testing();
