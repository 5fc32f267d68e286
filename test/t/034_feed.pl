# outcomes(): the consumer's ledger equals deliveries, nothing twice, nothing
# missing, while eight sessions write, one commits late, one is prepared, senders
# are killed and the server dies and restarts.  In make test this happens once; in
# make feed MINUTES=10 in each two minutes, where the late one is a minute late
# (KLIV_MAIL_FEED_SECONDS).
use strict;
use warnings;
use IPC::Run ();
use KlivMail::Cluster;
use KlivMail::Npm;
use KlivMail::SmtpServer;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seconds = $ENV{KLIV_MAIL_FEED_SECONDS} // 12;
my $rounds = int(($seconds + 60) / 120) || 1;
my $smtp = KlivMail::SmtpServer->start(no_transcript => 1);
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    durable => 1,
    conf => {
        client_min_messages => 'warning',
        'kliv_mail.notify' => 'on',
        'kliv_mail.platform_hourly_limit' => 10000000,
        'kliv_mail.platform_daily_limit' => 10000000
    });
$node->sql(q{SELECT kliv_mail.suppress('@stopped.example')});
my $connection = $node->connstr('postgres');
my $folder = PostgreSQL::Test::Utils::tempdir();
my $stop = "$folder/stop";

# What statements print, each a transaction of its own; undef when one fails, as they do while the server is away.
sub ask
{
    my ($sql) = @_;
    open my $file, '>', "$folder/sql.$$" or die $!;
    print $file $sql;
    close $file or die $!;
    my $out = qx{psql -XAtq -v ON_ERROR_STOP=1 -d "$connection" -f $folder/sql.$$ 2>/dev/null};
    return $? == 0 ? $out : undef;
}

# ---- eight writers, each of whose recipients is another address ----

sub script
{
    my ($writer, $round) = @_;
    my $at = "$writer.$round";
    my $send = sub { my ($to) = @_; return "SELECT kliv_mail.send('$to', 's', 'b', metadata => '{\"writer\": $writer}');\n"; };
    return join '',
      $send->("ok+$at\@a.example"), $send->("rcpt-550-5.1.1+$at\@a.example"), $send->("x+$at\@stopped.example"),
      $send->("once-rcpt-451+$at\@a.example, once-drop-dot+$at\@a.example"),
      "BEGIN;\n", $send->("gone+$at\@a.example"), $send->("y+$at\@stopped.example"), "ROLLBACK;\n",
      "BEGIN;\n", $send->("cancelled+$at\@a.example"), "SELECT kliv_mail.cancel(currval('kliv_mail._message_id'));\n", $send->("z+$at\@stopped.example"),
      # A transaction that began before others and commits behind them.
      ($writer <= 2 ? "SELECT pg_sleep(0.3 * $writer);\n" : ''), "COMMIT;\n";
}
my @children;
my $parent = $$;
for my $writer (1 .. 8)
{
    my $pid = fork // die "fork: $!";
    if ($pid == 0)
    {
        for (my $round = 1; !-e $stop && getppid() == $parent; $round++)
        {
            ask(script($writer, $round));
            # In the long form no more than a slow machine sends, too.
            usleep($rounds > 1 ? 1_500_000 : 50_000);
        }
        POSIX::_exit(0);
    }
    push @children, $pid;
}

# ---- the consumer: drains, and begins again where it was ----

my ($cursor, %status, %twice, @backwards);
my ($reads, $last_read, %did) = (0, time);
sub drain
{
    my $after = defined $cursor ? "'$cursor'" : 'NULL';
    my $rows = ask("SELECT cursor, recipient, status FROM kliv_mail.outcomes($after, 50)") // return;
    for (split /\n/, $rows)
    {
        my ($next, $recipient, $status) = split /\|/;
        push @backwards, "$cursor, $next" if defined $cursor && order($next) le order($cursor);
        $twice{"$recipient $status"}++ if $status ne 'in_doubt';
        $status{$recipient} = $status;
        $cursor = $next;
        $reads++;
        $last_read = time;
    }
    return scalar(() = $rows =~ /\n/g);
}
sub order { return sprintf '%020d-%020d', split /-/, $_[0]; }

# ---- what goes wrong meanwhile ----

my $begin = time;
my ($late, $late_since, @late, @minutes, @still);
sub late
{
    my ($round) = @_;
    push @late, "late+$round\@stopped.example";
    $late = $node->session;
    $late->sql("BEGIN; SELECT kliv_mail.send('$late[-1]', 's', 'b')");
    $late_since = time;
    return;
}
sub commit_late
{
    my $took = time - $late_since;
    push @still, (time - $last_read) / $took;
    $late->sql('COMMIT');
    $late->quit;
    push @minutes, $took;
    return;
}
sub prepare
{
    my ($round) = @_;
    push @late, "prepared+$round\@stopped.example";
    $node->sql("BEGIN; SELECT kliv_mail.send('$late[-1]', 's', 'b'); PREPARE TRANSACTION 'feed'");
    return;
}
sub sender_gets
{
    my ($signal) = @_;
    my $launcher = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'kliv_mail launcher'};
    my $before = ask($launcher);
    $did{$signal} += kill $signal, sender();
    # A KILL takes the server with it for a while.
    $node->wait_for('the server is up again', sub { (ask($launcher) || $before) ne $before }) if $signal eq 'KILL';
    return;
}
# A KILL takes down each session: none while the late one has to live.
my @events = (
    [ 0,    \&late ],
    [ 0.15, sub { sender_gets('TERM') } ],
    [ 0.3,  sub { sender_gets('TERM') } ],
    [ 0.5,  \&commit_late ],
    [ 0.55, sub { sender_gets('KILL') } ],
    [ 0.62, \&prepare ],
    [ 0.66, sub { $node->stop('immediate'); $node->start; $did{crash}++ } ],
    [ 0.72, sub { $node->sql(q{COMMIT PREPARED 'feed'}) } ],
    [ 0.8,  sub { $node->restart; $did{restart}++ } ],
    [ 0.88, sub { sender_gets('KILL') } ]);
my @plan = map { my $round = $_; map { my ($at, $code) = @$_; [ ($round + $at) / $rounds, sub { $code->($round) } ] } @events } 0 .. $rounds - 1;
sub sender
{
    for (1 .. 200)
    {
        my ($pid) = (ask(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender'}) // '') =~ /^(\d+)/;
        return $pid if $pid;
        usleep(20_000);
    }
    die 'there is no sender';
}
while (time < $begin + $seconds)
{
    drain();
    (shift @plan)->[1]->() while @plan && time > $begin + $plan[0][0] * $seconds;
    usleep(20_000);
}
$_->[1]->() for @plan;
open my $flag, '>', $stop or die $!;
close $flag;
waitpid $_, 0 for @children;

# ---- the ledger ----

# Mail that waits for a retry does not have to be waited for, but is tried now.
$node->wait_until('SELECT count(*) >= 0 FROM kliv_mail._outbox');
$node->wait_for('the outbox is empty', sub {
    $node->sql('SELECT count(kliv_mail.retry(m.message_id)) FROM (SELECT DISTINCT o.message_id FROM kliv_mail._outbox AS o WHERE o.due > now()) AS m');
    return $node->sql('SELECT count(*) FROM kliv_mail._outbox') eq '0';
});
1 while drain();
my %is = map { split /\|/ } split /\n/, $node->sql('SELECT recipient, status FROM kliv_mail.deliveries');
cmp_ok(scalar(keys %is), '>', 100, 'deliveries: ' . keys %is);
note sprintf '%d s, %d outcomes read; late by %s s; %s', $seconds, $reads, join(' ', map { int } @minutes),
  join ', ', map { "$_ $did{$_}" } sort keys %did;
is_deeply(\@backwards, [], 'every cursor lies behind the one before');
is_deeply([ grep { $twice{$_} > 1 } sort keys %twice ], [], 'nothing came twice');
is_deeply([ map { "$_: $is{$_}" } grep { ($status{$_} // '') ne $is{$_} } sort keys %is ], [], 'nothing is missing, and each is what it is');
is_deeply([ grep { !exists $is{$_} } sort keys %status ], [], 'and there is nothing else');
is($status{$_}, 'suppressed', "$_ came, too") for @late;
is(scalar(grep { $_ > 0.5 } @still), $rounds, 'a writer that commits late holds the feed up');
for my $status (qw(sent bounced suppressed cancelled))
{
    cmp_ok(scalar(grep { $_ eq $status } values %status), '>', 5, "$status is among them");
}

# ---- whose it is, and how far ----

$node->sql(q{CREATE ROLE one; CREATE ROLE two; CREATE ROLE reader; SELECT kliv_mail.grant_send('one'), kliv_mail.grant_send('two'), kliv_mail.grant_read('reader')});
$node->sql(q{SELECT kliv_mail.send('mine@stopped.example', 's', 'b', tags => '{t}', metadata => '{"order": 7}')}, role => 'one');
my $mine = q{SELECT recipient, status, reason, tags, metadata FROM kliv_mail.outcomes()};
is($node->sql($mine, role => 'one'), 'mine@stopped.example|suppressed|mail to @stopped.example is suppressed|{t}|{"order": 7}', 'a role has its own');
is($node->sql($mine, role => 'two'), '', '... another one nothing of it');
cmp_ok($node->sql('SELECT count(*) FROM kliv_mail.outcomes(max => 100000)', role => 'reader'), '>', 100, 'who reads all has all');
is($node->sql('SELECT count(*) FROM kliv_mail.outcomes(max => 7)'), 7, 'no more than max');
is($node->sql('SELECT kliv_mail.outcomes() IS NULL', role => 'two'), '', 'no row, no cursor');
for ([ q{'x'}, qr/not a cursor/ ], [ q{'1-'}, qr/not a cursor/ ], [ q{'999999999999999999-1'}, qr/not come as far/ ], [ 'NULL, 0', qr/max: 0/ ], [ 'NULL, NULL', qr/max: NULL/ ])
{
    my $result = $node->try("SELECT * FROM kliv_mail.outcomes($_->[0])");
    like("$result->{state} $result->{message}", qr/^22023 .*$_->[1]/, "outcomes($_->[0])");
}
is($node->sql(q{SET default_transaction_read_only = on; SELECT count(*) > 0 FROM kliv_mail.outcomes()}), 't', 'it writes nothing');

# ---- the README's consumers ----

for my $language (qw(python js))
{
    SKIP:
    {
        my ($code) = grep { /follow/ } slurp_file('README.md') =~ /^```$language\n(.*?)^```$/msg;
        ok($code, "README.md has a consumer in $language") or next;
        skip 'no Node, no npm, or its registry cannot be reached', 2 if $language eq 'js' && !KlivMail::Npm::install($folder);
        my ($host, $port, $program) = ($node->host, $node->port, "$folder/consumer.$language");
        append_to_file(
            $program,
            $language eq 'python'
            ? "import psycopg2\n$code\ndef handle(cursor, recipient, status, metadata):\n    print(recipient, status, (metadata or {}).get('order'), flush=True)\n"
              . "follow(psycopg2.connect('host=$host port=$port dbname=postgres'), '$cursor', handle)\n"
            : "const { Client } = require('pg');\n$code\nconst client = new Client({ host: '$host', port: $port, database: 'postgres', user: process.env.USER });\n"
              . "client.connect().then(() => follow(client, '$cursor', async row => console.log(row.recipient, row.status, row.metadata ? row.metadata.order : 'None')));\n");
        my $out = '';
        my $consumer = IPC::Run::start([ $language eq 'python' ? '/usr/bin/python3' : 'node', $program ], '>', \$out, '2>&1', IPC::Run::timeout(60));
        $consumer->pump until $out =~ /^mine\@stopped\.example suppressed 7$/m;
        like($out, qr/^mine\@stopped\.example suppressed 7$/m, '... which reads what there is');
        $node->wait_until(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%kliv_mail.outcomes%' AND state = 'idle' AND pid <> pg_backend_pid()});
        $node->sql(qq{SELECT kliv_mail.send('$language\@a.example', 's', 'b', metadata => '{"order": 8}')});
        $consumer->pump until $out =~ /^$language\@a\.example sent 8$/m;
        like($out, qr/^$language\@a\.example sent 8$/m, '... and what comes');
        $consumer->kill_kill;
    }
}

# A dump restored on a server whose transactions are younger goes on behind the cursor.
1 while drain();
my $last = $cursor;
my $target = KlivMail::Cluster->new('target', extension => 0, conf => { client_min_messages => 'warning' });
command_ok([ 'pg_dump', '-Fc', '-x', '-f', "$folder/dump", '-d', $connection ], 'pg_dump');
command_ok([ 'pg_restore', '-d', $target->connstr('postgres'), "$folder/dump" ], 'pg_restore');
is($target->sql(q{SELECT count(*) FROM kliv_mail.outcomes(max => 100000)}), $node->sql(q{SELECT count(*) FROM kliv_mail.outcomes(max => 100000)}), 'a copy has all of it');
$target->sql(q{SELECT kliv_mail.send('copied@stopped.example', 's', 'b')});
is($target->sql("SELECT recipient FROM kliv_mail.outcomes('$last')"), 'copied@stopped.example', '... and what is new lies behind the original\'s cursors');
$target->sql(q{SELECT kliv_mail.resume(); SELECT kliv_mail.send('released@stopped.example', 's', 'b')});
is($target->sql("SELECT recipient FROM kliv_mail.outcomes('$last')"), "copied\@stopped.example\nreleased\@stopped.example", '... also once it is released');
$target->stop;
$node->stop;

done_testing();
