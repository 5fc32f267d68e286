# An own account's quota, 50 an hour and 500 a day unless changed (A3): what the
# ledger counted, usage says; a changed limit counts at once.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new('own', conf => { 'kliv_mail.allowed_hosts' => '127.0.0.1' });
my $noon = $node->clock_to_noon;
my $port = $smtp->port;
$node->sql("SELECT kliv_mail.configure_smtp(host => '127.0.0.1', port => $port, username => '', encryption => 'none',
                from_address => 'shop\@shop.example')");
is($node->sql('SELECT hourly_limit, daily_limit FROM kliv_mail.smtp_settings WHERE in_use'), '50|500', 'a new account\'s limits');
my $result = $node->try('SELECT kliv_mail.set_limits(daily_limit => 10001)');
is($result->{state}, '22023', 'more than max_daily_limit is refused');
is($node->sql(q{SELECT daily_limit FROM kliv_mail.smtp_settings WHERE in_use}), 500, 'and changes nothing');
is($node->try('SELECT kliv_mail.set_limits(hourly_limit => -1)')->{state}, '22023', 'a negative limit');
is($node->try(q{SELECT kliv_mail.set_limits(daily_limit => 3, account => 'platform')})->{state}, '42501', 'the platform\'s limits');

$node->sql(q{SELECT kliv_mail.send(format('r%s@example.com', i), 'x', 'x') FROM generate_series(1, 60) AS i});
$node->wait_settled(50);
is($smtp->count, 50, 'of 60 exactly 50 leave in the hour');
is($node->sql(q{SELECT window_name, used, quota, queued FROM kliv_mail.usage WHERE account = 'custom' ORDER BY 1 DESC}),
    "hour|50|50|10\nday|50|500|10", 'usage agrees with the ledger');
$node->sql(q{SELECT kliv_mail.send(format('s%s@example.com', i), 'x', 'x') FROM generate_series(1, 500) AS i});
for my $hour (1 .. 9)
{
    $node->clock_offset(($noon + 3600 * $hour) . ' s');
    $node->wait_settled(50 + 50 * $hour);
}
is($smtp->count, 500, '500 in ten hours');
for my $hour (10 .. 11)
{
    $node->clock_offset(($noon + 3600 * $hour) . ' s');
    $node->wait_settled(500);
}
is($smtp->count, 500, 'and no more in this day');
is($node->sql(q{SELECT window_name, used, quota, queued FROM kliv_mail.usage WHERE account = 'custom' ORDER BY 1 DESC}),
    "hour|0|50|60\nday|500|500|60", 'usage: the hour is free, the day rules');
$node->clock_offset(($noon + 86400) . ' s');
$node->wait_settled(550);
$node->clock_offset(($noon + 86400 + 3600) . ' s');
$node->wait_settled(560);
is($smtp->count, 560, 'the next day brings the rest');

# B098: ten thousand in one transaction, B097 and a changed limit at once.
$node->clock_offset(($noon + 2 * 86400) . ' s');
$node->sql(q{SELECT kliv_mail.set_limits(hourly_limit => 100, daily_limit => 10000)});
$node->sql(q{SELECT count(kliv_mail.send(format('t%s@example.com', i), 'x', 'x')) FROM generate_series(1, 10000) AS i});
$node->wait_settled(660);
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
$node->wait_settled(810);
is($smtp->count, 810, 'a raised limit counts at once for what is queued');
$node->sql('SELECT kliv_mail.set_limits(hourly_limit => 0)');
$node->clock_offset(($noon + 2 * 86400 + 3600) . ' s');
$node->wait_settled(810);
is($node->sql(q{SELECT DISTINCT status, held_by FROM kliv_mail.deliveries WHERE status <> 'sent'}), 'deferred|quota', '0 pauses');
is($smtp->count, 810, 'and nothing leaves');
$node->stop;

done_testing();
