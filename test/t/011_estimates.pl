# estimated_send_at holds: what it says before is when claims take each delivery,
# whatever type, due time, limits and hours behind it; and no rule is broken on
# the way, the provider's last 24 hours included.  Claims are made here, by
# SQL, with the clock moved half an hour at a time; no sender runs.
use strict;
use warnings;
use KlivMail::Cluster;
use Test::More;

my $node = KlivMail::Cluster->new('main', preload => 0);
my $noon = $node->clock_to_noon;
my $session = $node->session;
$node->sql('ALTER DATABASE postgres RESET kliv_mail.test_clock_offset');

# name => [hourly, daily, last 24 hours]
my %accounts = (
    plain   => [ 3, 20, 'NULL' ],
    rolling => [ 4, 100, 10 ],
    few     => [ 1, 2, 3 ],
    ses     => [ 5, 12, 0 ]);
my $order = 0;
for my $name (sort keys %accounts)
{
    my ($hourly, $daily, $rolling) = @{ $accounts{$name} };
    $order++;
    $node->sql(qq{
        INSERT INTO kliv_mail._account (name, in_use, route_order, origin, host, port, encryption, from_address,
            hourly_limit, daily_limit, rolling_limit, created_at, updated_at, updated_by, renewed_at)
        VALUES ('$name', true, $order, kliv_mail._origin(), 'smtp.example.com', 25, 'none', '$name\@$name.example', $hourly, $daily, $rolling, now(), now(), 'me', now())});
}
$node->sql(q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://shop.example/u')});

my $hours = 0;
$session->sql('SET kliv_mail.test_in_session = on');
sub clock { $hours = shift; return $session->sql("SET kliv_mail.test_clock_offset = '" . ($noon + 3600 * $hours) . " s'"); }

# What was sent before: in the last day by hours, so that the rolling rule has something to wait for.
clock(0);
$session->sql(q{
    INSERT INTO kliv_mail._usage (account, window_name, window_start, window_end, used)
    SELECT a, 'hour', w, w + interval '1 hour', n FROM (VALUES ('rolling', -23, 3), ('rolling', -20, 2), ('rolling', -5, 1), ('few', -22, 1), ('ses', -14, 4)) AS x (a, h, n),
         LATERAL (SELECT date_trunc('hour', kliv_mail._now(), 'UTC') + h * interval '1 hour' AS w) AS w});
for my $name (sort keys %accounts)
{
    # Marketing first, so that it is older; system mail of next day, so that it must not stand before what is due.
    $session->sql(qq{
        SELECT count(kliv_mail.send('m' || i || '\@x.example', 'x', 'x', account => '$name', message_type => 'marketing')) FROM generate_series(1, 8) AS i;
        SELECT count(kliv_mail.send('l' || i || '\@x.example', 'x', 'x', account => '$name', message_type => 'system', send_at => kliv_mail._now() + interval '1 day 2 hours 10 minutes')) FROM generate_series(1, 4) AS i;
        SELECT count(kliv_mail.send('t' || i || '\@x.example', 'x', 'x', account => '$name')) FROM generate_series(1, 8) AS i;
        SELECT count(kliv_mail.send('s' || i || '\@x.example', 'x', 'x', account => '$name', message_type => 'system')) FROM generate_series(1, 2) AS i;
        SELECT count(kliv_mail.send('k' || i || '\@x.example', 'x', 'x', account => '$name', send_at => kliv_mail._now() + i * interval '37 minutes')) FROM generate_series(1, 4) AS i});
}
is($session->sql(q{SELECT string_agg(status || coalesce(' ' || held_by, ''), ', ' ORDER BY recipient) FROM kliv_mail.deliveries WHERE account = 'plain' AND recipient ~ '^(s1|t1|l1|m1)@'}),
    'scheduled, deferred quota, queued, queued', 'what is due stands before what is scheduled, of whatever type');
is($session->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE held_by = 'quota' AND estimated_send_at <= kliv_mail._now() + interval '1 minute'}), 0,
    'nothing that waits for quota is said to leave now');
my %estimate = map { split /\|/ } split /\n/, $session->sql('SELECT id, extract(epoch FROM estimated_send_at) FROM kliv_mail._line()');
is(scalar keys %estimate, 26 * keys %accounts, 'every delivery has an estimate');

my %left;
my $before = $session->sql('SELECT extract(epoch FROM kliv_mail._now())') - 1800;
for my $half (0 .. 2 * 24 * 16)
{
    last if keys %left == keys %estimate;
    clock($half / 2);
    my $at = $session->sql('SELECT extract(epoch FROM kliv_mail._now())');
    for my $name (sort keys %accounts)
    {
        $left{$_} = [ $before, $at, $name ] for split /\n/, $session->sql("SELECT id FROM kliv_mail._claim_account(1, '$name', 3, 1000000, true) UNION ALL SELECT id FROM kliv_mail._claim_account(1, '$name', 100, 1000000, true)");
    }
    $before = $at;
}
is(scalar keys %left, scalar keys %estimate, 'all have left');
my @wrong = grep { !$left{$_} || $estimate{$_} <= $left{$_}[0] || $estimate{$_} > $left{$_}[1] } sort keys %estimate;
is(scalar @wrong, 0, 'each when its estimate said')
  or diag(map { "$_ $left{$_}[2]: said $estimate{$_}, left at $left{$_}[1]\n" } grep { $left{$_} } @wrong[0 .. ($#wrong < 9 ? $#wrong : 9)]);

# No rule was broken: any hour, day, and any 24 hours (of claims, not of windows).
for my $name (sort keys %accounts)
{
    my ($hourly, $daily, $rolling) = @{ $accounts{$name} };
    $rolling = $daily if $rolling eq '0';
    my @times = sort { $a <=> $b } map { $_->[1] } grep { $_->[2] eq $name } values %left;
    my $most = 0;
    for my $i (0 .. $#times)
    {
        my $in_a_day = grep { $_ > $times[$i] - 86400 && $_ <= $times[$i] } @times;
        $most = $in_a_day if $in_a_day > $most;
    }
    cmp_ok($most, '<=', $rolling eq 'NULL' ? 2 * $daily : $rolling, "$name: at most $rolling in any 24 hours");
    is($session->sql("SELECT count(*) FROM kliv_mail._usage WHERE account = '$name' AND (used > CASE window_name WHEN 'hour' THEN $hourly ELSE $daily END)"), 0, "$name: no window is overfull");
}
my $idle = $session->sql(q{SELECT string_agg(quota || ' ' || used || ' ' || remaining, ', ' ORDER BY account) FROM kliv_mail.usage WHERE window_name = '24 hours'});
like($idle, qr/^3 \d \d, 10 \d+ \d+, 12 \d+ \d+$/, 'usage shows the last 24 hours where the provider counts them');

# max_daily_limit holds for the own accounts together, however limits are moved between them.
{
    my $at = "SET kliv_mail.test_clock_offset = '" . ($noon + 86400 * 40) . " s'";
    $session->sql($at);
    $session->sql(q{UPDATE kliv_mail._account SET rolling_limit = NULL; SELECT count(kliv_mail.send('z' || i || '@x.example', 'x', 'x', account => a)) FROM generate_series(1, 10) AS i, unnest(ARRAY['plain', 'rolling']) AS a});
    $node->reconfigure('kliv_mail.max_daily_limit' => 15);
    $session->sql(q{UPDATE kliv_mail._account SET hourly_limit = 10, daily_limit = CASE name WHEN 'plain' THEN 10 ELSE 0 END});
    my $first = $session->sql(q{SELECT count(*) FROM kliv_mail._claim_account(1, 'plain', 100, 1000000, true)});
    $session->sql(q{UPDATE kliv_mail._account SET daily_limit = CASE name WHEN 'rolling' THEN 15 ELSE 0 END});
    my $second = $session->sql(q{SELECT count(*) FROM kliv_mail._claim_account(1, 'rolling', 100, 1000000, true)});
    is("$first $second", '10 5', 'max_daily_limit is for all own accounts together, by what they have used');
    like($session->sql(q{SELECT code || ': ' || reason FROM kliv_mail._account_holds() WHERE account = 'rolling'}),
        qr/^database_day_used: the accounts of this database have used 15 recipients of this day, and kliv_mail\.max_daily_limit is 15$/, '... and so it says');
    is($session->sql(q{SELECT remaining FROM kliv_mail.usage WHERE account = 'rolling' AND window_name = 'day'}), 0, '... and usage');
    is($session->sql(q{SELECT kliv_mail._next_due() = date_trunc('day', kliv_mail._now(), 'UTC') + interval '1 day'}), 't', '... the next day opens it');
    # Two senders at once, for two accounts, share what is left.
    $session->sql("SET kliv_mail.test_clock_offset = '" . ($noon + 86400 * 41) . " s'");
    $session->sql(q{UPDATE kliv_mail._account SET daily_limit = CASE WHEN name IN ('plain', 'rolling') THEN 10 ELSE 0 END});
    $session->sql(q{SELECT count(kliv_mail.send('y' || i || '@x.example', 'x', 'x', account => a)) FROM generate_series(1, 10) AS i, unnest(ARRAY['plain', 'rolling']) AS a});
    my $other = $node->session;
    $other->sql("SET kliv_mail.test_in_session = on; SET kliv_mail.test_clock_offset = '" . ($noon + 86400 * 41) . " s'");
    $session->sql('BEGIN');
    my $mine = $session->sql(q{SELECT count(*) FROM kliv_mail._claim_account(1, 'plain', 100, 1000000, true)});
    my $theirs = $other->sql(q{SELECT count(*) FROM kliv_mail._claim_account(2, 'rolling', 100, 1000000, true)});
    $session->sql('COMMIT');
    my $later = $other->sql(q{SELECT count(*) FROM kliv_mail._claim_account(2, 'rolling', 100, 1000000, true)});
    is("$mine $theirs $later", '10 0 5', 'also while another account\'s claim is under way');
    $other->quit;
}

# Where midnight comes twice, the day begins with the first one and has 25 hours.
for my $case ([ 'Atlantic/Azores', '2025-10-26 00:00Z', '2025-10-27 01:00Z' ], [ 'America/Havana', '2025-11-02 04:00Z', '2025-11-03 05:00Z' ])
{
    my ($zone, $begin, $end) = @$case;
    $session->sql("SET kliv_mail.quota_timezone = '$zone'");
    is($session->sql("SELECT string_agg(DISTINCT (v.day_start = '$begin' AND v.day_end = '$end')::text, ' ') FROM generate_series('$begin', timestamptz '$end' - interval '1 minute', '5 minutes') AS t (at), kliv_mail._availability('plain', t.at) AS v"),
        'true', "$zone: one day of 25 hours, every minute of it within");
    is($session->sql("SELECT v.day_end = '$begin' FROM kliv_mail._availability('plain', timestamptz '$begin' - interval '1 minute') AS v"), 't', '... which the day before ends at');
    $session->sql("SET kliv_mail.test_clock_offset = '" . $node->sql("SELECT extract(epoch FROM timestamptz '$begin' + interval '5 minutes' - now())::integer") . " s'");
    $session->sql(q{UPDATE kliv_mail._account SET hourly_limit = 50, daily_limit = CASE name WHEN 'few' THEN 3 ELSE 0 END});
    $session->sql(q{DELETE FROM kliv_mail._outbox; SELECT count(kliv_mail.send('w' || i || '@x.example', 'x', 'x', account => 'few')) FROM generate_series(1, 12) AS i});
    my @claimed = map { $session->sql(q{SELECT count(*) FROM kliv_mail._claim_account(1, 'few', 100, 1000000, true)}) } 1 .. 2;
    is("@claimed", '3 0', "$zone: a limit of 3 a day lets 3 leave in its first hour");
    is($session->sql(q{SELECT used FROM kliv_mail.usage WHERE account = 'few' AND window_name = 'day'}), 3, '... usage counts them');
    is($session->sql(qq{SELECT string_agg(n::text, ' ' ORDER BY at) FROM (SELECT estimated_send_at AS at, count(*) AS n FROM kliv_mail._line() GROUP BY 1 ORDER BY 1 LIMIT 1) AS l WHERE at = '$end'}), 3, '... three go with the next day');
}

# A day that another zone has just ended, and that begins when this one does: its row goes on.
$session->sql(q{
    SET kliv_mail.quota_timezone = 'UTC';
    RESET kliv_mail.test_clock_offset;
    UPDATE kliv_mail._account SET hourly_limit = 50, daily_limit = 50;
    DELETE FROM kliv_mail._usage;
    DELETE FROM kliv_mail._outbox;
    INSERT INTO kliv_mail._usage (account, window_name, window_start, window_end, used, updates, generation)
        SELECT 'few', 'day', day_start, kliv_mail._now() - interval '1 second', 8, 100, 2 FROM kliv_mail._availability('few', kliv_mail._now());
    SELECT kliv_mail.send('w@x.example', 'x', 'x', account => 'few');
    SELECT FROM kliv_mail._claim_account(1, 'few', 100, 1000000, true)});
is($session->sql(q{SELECT day_used, day_generation, day_end = day_open_at FROM kliv_mail._availability('few', kliv_mail._now())}), '9|2|t', 'a window that another zone had ended by now goes on');
is($session->sql(q{SELECT count(*), bool_and(window_end > kliv_mail._now()) FROM kliv_mail._usage WHERE window_name = 'day'}), '1|t', '... in one row');

# The longest day of all has 26 hours, and counts to its end in another zone.
$session->sql("SET kliv_mail.quota_timezone = 'Antarctica/Troll'");
$session->sql(q{INSERT INTO kliv_mail._usage (account, window_name, window_start, window_end, used)
    SELECT 'plain', 'day', day_start, day_end, 7 FROM kliv_mail._availability('plain', '2026-10-25 12:00Z')});
is($session->sql(q{SELECT day_end - day_start FROM kliv_mail._availability('plain', '2026-10-25 12:00Z')}), '1 day 02:00:00', 'Troll has a day of 26 hours');
$session->sql("SET kliv_mail.quota_timezone = 'UTC'");
is($session->sql(q{SELECT day_used FROM kliv_mail._availability('plain', '2026-10-25 23:30Z')}), 7, '... which another zone opens no second window in');
$session->quit;
$node->stop;
done_testing();
