# What a mail costs in WAL, in figures that no noise blurs: a test fails where one
# grows by more than a tenth.  Who makes it grow on purpose changes the figure here.
use strict;
use warnings;
use KlivMail::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $mails = 400;
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:1',
    conf => {
        autovacuum => 'off',
        full_page_writes => 'off',
        wal_level => 'replica',
        'kliv_mail.platform_hourly_limit' => 1000000,
        'kliv_mail.platform_daily_limit' => 1000000
    });
$node->sql('ALTER DATABASE postgres SET kliv_mail.delivery = hold');
my $session = $node->background_psql('postgres', on_error_stop => 1);
$session->query("SET client_min_messages = warning; SET kliv_mail.test_in_session = on; SET kliv_mail.delivery = on; SELECT kliv_mail._epoch_lock(77);
    CREATE TEMPORARY TABLE claimed (id bigint, account text)");

# Octets of WAL a mail; at most a tenth more than what it was, and not less than nine tenths.
sub costs
{
    my ($what, $figure, $sql) = @_;
    my ($before) = $session->query('SELECT pg_current_wal_insert_lsn()') =~ /(\S+)/;
    $session->query($sql);
    my ($octets) = $session->query("SELECT (pg_current_wal_insert_lsn() - '$before') / $mails") =~ /(\d+)/;
    note("$what: $octets octets");
    cmp_ok($octets, '<=', 1.1 * $figure, "$what: no more than $figure octets and a tenth");
    cmp_ok($octets, '>=', 0.9 * $figure, "$what: the figure is up to date");
    return;
}

costs('a send() of 8 KB', 10400, "SELECT count(kliv_mail.send('a' || n || '\@example.com', 'Costs', repeat('8 KB in all, line by line' || E'\\n', 316))) FROM generate_series(1, $mails) AS n");
costs('its claim', 205, "INSERT INTO claimed SELECT id, account FROM kliv_mail._claim(77, $mails, 100000000)");
costs('its record', 655, "SELECT count(r) FROM kliv_mail._record(77, ARRAY(SELECT ROW(c.id, c.account, 'accepted', 'message', NULL, 0, 'dot', 250, NULL, '250 2.0.0 Ok: queued as 4TxYz', NULL, NULL, '4TxYz', 'From: a', NULL, NULL)::kliv_mail._outcome FROM claimed AS c)) AS r");
is($session->query('SELECT count(*) FROM kliv_mail._delivery'), $mails, 'all of them were claimed and recorded');

# A claim changes no column that an index has.
$session->query('SELECT pg_stat_force_next_flush()');
cmp_ok($session->query(q{SELECT (100 * n_tup_hot_upd / n_tup_upd)::integer FROM pg_stat_user_tables WHERE relname = '_outbox'}), '>=', 90, 'claims write no index entries');

# Beside a snapshot that somebody holds, what was sent stays in the index.  Claims come some ten
# times a second, however fast mail leaves; each passes over it a few times and not for each row.
{
    # (in the order in which a sender looks at them)
    $session->query('TRUNCATE kliv_mail._outbox, kliv_mail._message, kliv_mail._suppression, claimed');
    my $holder = $node->background_psql('postgres', on_error_stop => 1);
    $holder->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM kliv_mail._outbox');
    my $sends = sub { $session->query("SELECT count(kliv_mail.send('a' || n || '\@example.com', 'Costs', 'x')) FROM generate_series(1, $_[0]) AS n") };
    my $entries = sub { return $session->query(q{SELECT pg_stat_get_xact_tuples_returned('kliv_mail._outbox_ready'::regclass)}) };
    $sends->(2000);
    $session->query('INSERT INTO claimed SELECT id, account FROM kliv_mail._claim(77, 2000, 100000000)');
    $session->query("SELECT count(r) FROM kliv_mail._record(77, ARRAY(SELECT ROW(c.id, c.account, 'accepted', 'message', NULL, 0, 'dot', 250, NULL, '250 ok', NULL, NULL, 'x', 'From: a', NULL, NULL)::kliv_mail._outcome FROM claimed AS c)) AS r");
    $sends->(100);
    $session->query('BEGIN');
    my $before = $entries->();
    is($session->query('SELECT count(*) FROM kliv_mail._claim(77, 100, 100000000)'), 100, 'a claim beside 2,000 that were sent while a snapshot is held');
    my $walks = ($entries->() - $before) / 2000;
    $session->query('ROLLBACK');
    note("passed over $walks times");
    # As a sender does that knows where its last claim ended.
    my ($place) = $session->query(q{SELECT format('%L, %s', due, id) FROM kliv_mail._outbox ORDER BY due, id LIMIT 1}) =~ /(\S.*\S)/;
    my ($due, $id) = split /, /, $place;
    $session->query('BEGIN');
    $before = $entries->();
    is($session->query("SELECT count(*) FROM kliv_mail._claim(77, 100, 100000000, ARRAY['platform'], ARRAY[0], ARRAY[0], ARRAY[100],
        ARRAY[$due, $due, $due]::timestamptz[], ARRAY[$id, $id, $id])"), 100, 'the same from where the last claim ended');
    cmp_ok($entries->() - $before, '<=', 400, '... passes over none of them');
    $session->query('COMMIT');
    cmp_ok($walks, '>=', 0.9, '... has to pass over them');
    cmp_ok($walks, '<=', 3, '... three times at most');

    # A vacuum that finds no living row there leaves statistics of a table without rows, by which
    # every index is as good as any other.
    my $record = sub {
        my ($verdict, $code, $n) = @_;
        return $session->query("SELECT count(r) FROM kliv_mail._record(77, ARRAY(SELECT ROW(o.id, o.account, '$verdict', 'recipient', NULL, 0, 'dot', $code, NULL, '$code x', NULL, NULL, 'x', 'From: a', NULL, NULL)::kliv_mail._outcome
            FROM kliv_mail._outbox AS o WHERE o.epoch = 77 ORDER BY o.id LIMIT $n)) AS r");
    };
    $record->('accepted', 250, 100);
    # (So many that a tree has several hundred pages: with fewer the primary key's costs least.)
    $session->query(q{INSERT INTO kliv_mail._outbox (id, message_id, recipient, kind, origin, route, priority, due, created_at)
        SELECT n - 1000000, n - 1000000, 'gone@example.com', 'to', kliv_mail._origin(), '', 1, now() - interval '1 hour', now() FROM generate_series(1, 250000) AS n});
    $session->query('DELETE FROM kliv_mail._outbox WHERE id < 0');
    $session->query('VACUUM kliv_mail._outbox');
    is($session->query(q{SELECT reltuples FROM pg_class WHERE oid = 'kliv_mail._outbox'::regclass}), 0, 'statistics of a table without rows');
    $sends->(100);
    ($place) = $session->query(q{SELECT format('%L, %s', due, id) FROM kliv_mail._outbox ORDER BY due, id LIMIT 1}) =~ /(\S.*\S)/;
    ($due, $id) = split /, /, $place;
    my @steps = (
        [ 'a claim' => sub { $session->query("SELECT count(*) FROM kliv_mail._claim(77, 100, 100000000, ARRAY['platform'], ARRAY[0], ARRAY[0], ARRAY[100],
            ARRAY[$due, $due, $due]::timestamptz[], ARRAY[$id, $id, $id])") } ],
        [ 'record of what was accepted' => sub { $record->('accepted', 250, 50) } ],
        [ 'record of what is to be tried again' => sub { $record->('temporary', 451, 10) } ],
        [ 'retry() of ten' => sub { $session->query('SELECT count(kliv_mail.retry(o.message_id)) FROM (SELECT message_id FROM kliv_mail._outbox WHERE epoch IS NULL LIMIT 10) AS o') } ],
        [ 'cancel() of ten' => sub { $session->query('SELECT count(kliv_mail.cancel(o.message_id)) FROM (SELECT message_id FROM kliv_mail._outbox WHERE epoch IS NULL LIMIT 10) AS o') } ]);
    # (What an index scan passes over and does not give is no entry in the statistics, but its pages are.)
    my $pages = sub { return $session->query(q{SELECT pg_stat_get_xact_blocks_fetched('kliv_mail._outbox_ready'::regclass)}) };
    for (@steps)
    {
        my ($name, $step) = @$_;
        $session->query('BEGIN');
        $before = $pages->();
        $step->();
        cmp_ok($pages->() - $before, '<=', 500, "$name reads no more of the queue's index than it needs");
        $session->query('COMMIT');
    }
    $holder->quit;
}

# Each claim updates what is used of the present windows, and gives back what was not sent: also
# beside a snapshot that keeps each version they find the last one.
{
    $session->query('TRUNCATE kliv_mail._outbox, kliv_mail._message, claimed; DELETE FROM kliv_mail._usage');
    my $holder = $node->background_psql('postgres', on_error_stop => 1);
    $holder->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM kliv_mail._usage');
    $session->query(q{SELECT count(kliv_mail.send('a' || n || '@example.com', 'Costs', 'x')) FROM generate_series(1, 1500) AS n});
    my $claims = sub { $session->query("DO \$\$ BEGIN FOR i IN 1 .. $_[0] LOOP PERFORM FROM kliv_mail._claim(77, 1, 100000000); COMMIT; END LOOP; END \$\$") };
    my $blocks = sub { return $session->query(q{SELECT sum(pg_stat_get_xact_blocks_fetched(c)) FROM unnest(ARRAY['kliv_mail._usage', 'kliv_mail._usage_pkey']::regclass[]) AS c}) };
    $claims->(1400);
    cmp_ok($session->query(q{SELECT pg_relation_size('kliv_mail._usage') / 8192}), '>=', 20, 'fourteen hundred claims leave their versions');
    for ([ 'a claim' => 'SELECT FROM kliv_mail._claim(77, 1, 100000000)', 40 ],
        [ 'a refund' => 'SELECT kliv_mail._refund(77, ARRAY(SELECT o.id FROM kliv_mail._outbox AS o WHERE o.epoch = 77 ORDER BY o.id DESC LIMIT 1))', 20 ])
    {
        my ($name, $step, $most) = @$_;
        $session->query('BEGIN');
        my $before = $blocks->();
        $session->query($step);
        my $read = $blocks->() - $before;
        note("$name reads $read pages");
        cmp_ok($read, '<=', $most, "$name reads the last of them only");
        $session->query('COMMIT');
    }
    is($session->query(q{SELECT string_agg(window_name || ' ' || used, ', ' ORDER BY window_name) FROM kliv_mail._usage}), 'day 1400, hour 1400', '... and all are counted in one row a window');
    # The same of what senders have in hand, behind a vacuum that found no living row.
    $session->query(q{INSERT INTO kliv_mail._batch (epoch, id, begun, deliveries) SELECT 77, n, false, '{1}' FROM generate_series(1, 100000) AS n; DELETE FROM kliv_mail._batch; VACUUM kliv_mail._batch});
    $session->query(q{INSERT INTO kliv_mail._batch (epoch, id, begun, deliveries) SELECT 77, n, false, '{1}' FROM generate_series(100001, 100004) AS n});
    my $stamped = sub { return $session->query(q{SELECT sum(pg_stat_get_xact_blocks_fetched(c)) FROM unnest(ARRAY['kliv_mail._batch', 'kliv_mail._batch_pkey']::regclass[]) AS c}) };
    $session->query('BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL plan_cache_mode = force_generic_plan');
    my $read = $stamped->();
    $session->query(q{SELECT kliv_mail._stamp(77, 100005, '{1}', '{2}', '{100001, 100002}')});
    cmp_ok($stamped->() - $read, '<=', 100, 'a stamp reads no more of what senders had in hand than it needs');
    $session->query('COMMIT');
    $holder->quit;
}

# Beside a transaction that stays open, what is sent with a replace_key waits to be looked at again: a claim
# looks at some of it, however much there is, and at that which it takes.
{
    $session->query('TRUNCATE kliv_mail._outbox, kliv_mail._message, claimed; VACUUM kliv_mail._outbox, kliv_mail._message, kliv_mail._replacement');
    my $sends = sub { my ($by, $key, $n) = @_; $by->query("SELECT count(kliv_mail.send('a' || n || '\@example.com', 'Costs', 'x', replace_key => '$key' || n)) FROM generate_series(1, $n) AS n") };
    my $holder = $node->background_psql('postgres', on_error_stop => 1);
    $holder->query('SET client_min_messages = warning; BEGIN');
    $sends->($holder, 'code', 1000);
    $sends->($session, 'digest', 5000);
    is($session->query('SELECT count(*) FROM kliv_mail._replacement'), 5000, 'five thousand keys wait for who holds all of their buckets');
    my $pages = sub { return $session->query(q{SELECT sum(pg_stat_get_xact_blocks_fetched(oid)) FROM pg_class WHERE relnamespace = 'kliv_mail'::regnamespace AND relkind IN ('r', 'i')}) };
    for ('a claim', 'another one')
    {
        $session->query('BEGIN');
        my $before = $pages->();
        is($session->query('SELECT count(*) FROM kliv_mail._claim(77, 16, 100000000)'), 16, "$_ beside them");
        my $read = $pages->() - $before;
        note("$_ reads $read pages");
        cmp_ok($read, '<=', 4000, '... reads some of them and not all');
        $session->query('COMMIT');
    }
    $holder->query('COMMIT');
    $session->query('SELECT FROM kliv_mail._claim(77, 16, 100000000)');
    is($session->query('SELECT count(*) FROM kliv_mail._replacement'), 0, 'all are done with where nobody holds them');
    $holder->quit;
}

# Whether a send() fits is not asked of each row that waits, where there is room for all; and where there is
# not, it is told to the last one.
{
    $session->query('TRUNCATE kliv_mail._outbox, kliv_mail._message, kliv_mail._replacement, claimed; DELETE FROM kliv_mail._usage; VACUUM kliv_mail._outbox');
    my $blocks = sub { return $session->query(q{SELECT sum(pg_stat_get_xact_blocks_fetched(oid)) + pg_stat_get_xact_tuples_returned('kliv_mail._outbox_ready'::regclass) FROM pg_class WHERE relname LIKE E'\\\\_outbox%'}) };
    my $send = sub { my ($n) = @_; return q{SELECT kliv_mail.send('} . join(',', map { "b$_\@example.com" } 1 .. $n) . q{', 'Costs', 'x', on_limit => 'error') > 0} };
    my $refused = sub { my ($n) = @_; return $session->query("DO \$\$ BEGIN PERFORM FROM (" . $send->($n) . ") AS x; RAISE division_by_zero; EXCEPTION WHEN configuration_limit_exceeded THEN PERFORM set_config('test.said', 'refused', false);
        WHEN division_by_zero THEN PERFORM set_config('test.said', 'fits', false); END \$\$; SELECT current_setting('test.said')") };
    my %read;
    for my $waiting (0, 20000)
    {
        $session->query("SELECT count(kliv_mail.send('a' || n || '\@example.com', 'Costs', 'x')) FROM generate_series(1, $waiting) AS n");
        for my $isolation ('READ COMMITTED', 'SERIALIZABLE')
        {
            $session->query("BEGIN ISOLATION LEVEL $isolation");
            $session->query($send->(1));    # plans
            my $before = $blocks->();
            $session->query($send->(1));
            $read{$isolation}[$waiting > 0] = $blocks->() - $before;
            $session->query('ROLLBACK');
        }
    }
    for (sort keys %read)
    {
        my ($alone, $behind) = @{ $read{$_} };
        note("a send() that has to fit, $_: $alone, behind 20,000 $behind");
        cmp_ok($behind, '<=', 400 + $alone, "a send() that has to fit looks at few of 20,000, $_");
    }
    my $waiting = $session->query('SELECT count(*) FROM kliv_mail._outbox WHERE epoch IS NULL');
    for my $room (3, 190, 230, 1000)
    {
        $node->reconfigure(map { ("kliv_mail.platform_${_}_limit" => $waiting + $room) } 'hourly', 'daily');
        my $most = $room < 50 ? $room : 50;
        is($refused->($most), 'fits', "$most fit where there is room for $room");
        is($refused->(4), 'refused', '... and no more') if $room == 3;
    }
}

$session->quit;
$node->stop;

done_testing();
