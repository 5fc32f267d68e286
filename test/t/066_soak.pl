# A soak: mail at a steady rate, with faults of every kind by recipient, and
# every now and then a disturbance: connections dropped, an account in trouble,
# a pause, other settings, a sender or the whole server killed.  At the end
# everything drains, and the server's ledger and the outbox must tell the same.
#
# In make test this lasts half a minute; make soak MINUTES=60 is the real one.
#	KLIV_MAIL_SOAK_MINUTES   how long mail comes (0.4)
#	KLIV_MAIL_SOAK_RATE      mails a second (20)
#	KLIV_MAIL_SOAK_EVERY     seconds between disturbances (20; 2 in the short form)
#	KLIV_MAIL_SOAK_HARD      0: no kill and no restart
#	KLIV_MAIL_SOAK_SEED      of the random numbers
use strict;
use warnings;
use List::Util qw(max min sum0);
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $length = 60 * ($ENV{KLIV_MAIL_SOAK_MINUTES} // 0.4);
my $long = $length >= 600;
my $rate = $ENV{KLIV_MAIL_SOAK_RATE} // 20;
my $every = $ENV{KLIV_MAIL_SOAK_EVERY} // ($length < 60 ? 2 : 20);
my $hard = $ENV{KLIV_MAIL_SOAK_HARD} // 1;
my $seed = $ENV{KLIV_MAIL_SOAK_SEED} // int(time);
srand $seed;
note "seed $seed, $length s at $rate mails a second, a disturbance each $every s";

# A leak of one short string a mail would be more than this.
use constant BYTES_PER_MAIL => 64;
use constant CONNECTIONS => 12;     # at most, to each server

# ---- two servers, two accounts ----

my $tls = KlivMail::Tls->new(PostgreSQL::Test::Utils::tempdir() . '/tls');
my ($cert, $key) = $tls->certificate('good');
my $password = 'correct-horse-battery';
my %smtp = (
    custom => KlivMail::SmtpServer->start(
        starttls => 1, tls => 1, cert => $cert, key => $key, auth => ["app:$password"],
        no_transcript => 1, messages_per_connection => 50),
    second => KlivMail::SmtpServer->start(no_transcript => 1));
my $node = KlivMail::Cluster->new(
    'main',
    conf => {
        'kliv_mail.allowed_hosts'       => '127.0.0.1, localhost',
        'kliv_mail.ca_file'             => $tls->ca_file,
        'kliv_mail.connect_timeout'     => '3s',
        'kliv_mail.reply_timeout'       => '3s',
        'kliv_mail.max_daily_limit'     => 10000000,
        # So that what fails again and again leaves too, and the line is as long in the end as before.
        'kliv_mail.retry_for'           => $long ? '15min' : '1h',
        # No second life of a sender only because of a pause.
        'kliv_mail.sender_idle_timeout' => $long ? '60s' : '2s',
        'kliv_mail.retention'           => $long ? '10min' : '30d',
        autovacuum_naptime              => '10s'
    });

my $session;

# Run statements, again where the server went away under them.
sub ask
{
    my ($sql) = @_;
    my $end = time + 120;
    while (1)
    {
        if (!$session)
        {
            $node->wait_for('the server is up', sub { server_is_up() });
            $session = eval { $node->session };
            undef $session if $session && !defined eval { $session->query("SET client_min_messages = error; SET application_name = 'soak'") };
        }
        my $printed = $session && eval { $session->query($sql) };
        if (defined $printed && $printed !~ /^(?:psql:\S+ )?(?:FATAL|server closed|connection to server)/m)
        {
            die "$sql:\n$printed" if $printed =~ /^ERROR:/m;
            return $printed;
        }
        undef $session;
        die "no answer to: $sql\n" . ($printed // $@) if time > $end;
        usleep 100_000;
    }
}

sub server_is_up
{
    my ($out, $err);
    return ($node->psql('postgres', 'SELECT 1', stdout => \$out, stderr => \$err) // 1) == 0;
}

my $limits = 'hourly_limit => 1000000, daily_limit => 1000000';

sub configure
{
    my $kind = $_[0] // (rand() < 0.5 ? 'tls' : 'starttls');
    my $port = $smtp{custom}->port($kind);
    return ask("SELECT kliv_mail.configure_smtp(host => 'localhost', port => $port, encryption => '$kind', username => 'app',
                    password => '$password', from_address => 'shop\@soak.example', $limits, test => false)");
}

configure('tls');
ask("SELECT kliv_mail.configure_smtp(host => '127.0.0.1', port => @{[ $smtp{second}->port ]}, encryption => 'none', username => '',
         from_address => 'shop\@soak.example', $limits, test => false, account => 'second')");
ask(q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://soak.example/unsubscribe', postal_address => '1 Road')});
ask(q{SELECT kliv_mail.suppress('gone@soak.example')});

# ---- the mail ----

# What a server may do to one mail, once or at every attempt.
my @faults = (
    qw(rcpt-550-5.1.1 rcpt-450-4.2.1 rcpt-552-5.2.2 data-451 dot-451 dot-552-5.3.4 dot-554-5.6.0 dot-251),
    qw(drop-rcpt drop-data drop-dot drop-before-dot reset-rcpt reset-data reset-dot reset-before-dot),
    qw(stall-rcpt stall-data stall-body stall-dot stall-after-dot half-rcpt half-data half-dot),
    qw(long-dot long-rcpt-450 nul-dot nul-rcpt-550 garbage-rcpt garbage-data garbage-dot),
    qw(extra-rcpt extra-data extra-dot slow-rcpt-300 slow-data-300 slow-dot-300 early-552),
    qw(grey grey-2 close-idle 421-idle));

# What a server says of the connection is about the account: once only, and seldom.
my @account_faults = qw(mail-451 mail-550 drop-mail reset-mail stall-mail half-mail long-mail nul-mail garbage-mail extra-mail 421-mid);

my %mail;       # recipient => { fault, message, may (statuses) }
my $number = 0;
my @errors;

sub one_mail
{
    my $n = ++$number;
    my $chance = rand;
    my $fault = 'ok';
    if ($chance < 0.10)
    {
        $fault = $faults[ rand @faults ];
        $fault = "once-$fault" if rand() < 0.7;
    }
    elsif ($chance < 0.1005)
    {
        $fault = 'once-' . $account_faults[ rand @account_faults ];
    }
    my $type = (qw(system transactional transactional transactional marketing))[ rand 5 ];
    my @to = ("$fault+$n\@soak.example");
    push @to, map { "ok+$n.$_\@soak.example" } 1 .. 2 if rand() < 0.02 && $type ne 'marketing';
    my @arguments = (
        "'" . join(', ', @to) . "'", "'Mail $n'", sprintf(q{repeat(md5('%d') || E' line\n', %d)}, $n, 3 + rand(rand() < 0.1 ? 200 : 20)),
        "message_type => '$type'", "idempotency_key => 'n$n'");
    push @arguments, "html => '<p>Mail <b>$n</b></p>'" if rand() < 0.5;
    push @arguments, "account => 'second'" if rand() < 0.15;
    my $extra = rand;
    my @may = ('sent');
    if ($extra < 0.01)
    {
        push @arguments, sprintf q{attachments => ARRAY[kliv_mail.attach('a.bin', decode(repeat(md5('%d'), %d), 'hex'))]},
          $n, 2000 + rand(rand() < 0.1 ? 60000 : 10000);
    }
    # By the mail's own number, so that the same call again has the same arguments.
    elsif ($extra < 0.03)
    {
        push @arguments, sprintf q{send_at => to_timestamp(%.3f)}, time + 1 + rand 10;
    }
    elsif ($extra < 0.035)
    {
        # Late enough that a loaded machine has called send() by then.
        push @arguments, sprintf q{expires_at => to_timestamp(%.3f)}, time + 30 + rand 10;
        push @may, 'expired';
    }
    $mail{$_} = { fault => $_ eq $to[0] ? $fault : 'ok', n => $n, may => [@may] } for @to;
    my $sql = 'SELECT kliv_mail.send(' . join(', ', @arguments) . ')';
    if ($extra > 0.995)
    {
        push @{ $mail{$_}{may} }, 'cancelled' for @to;
        $sql .= q{ AS id \gset} . "\nSELECT :id; SELECT kliv_mail.cancel(:id) IS NULL WHERE false";
    }
    return $sql;
}

# As many as the clock asks for, each in its own transaction.
sub inject
{
    my ($due) = @_;
    my @sql = map { one_mail() } 1 .. min($due, 40);
    return if !@sql;
    my $first = $number - @sql + 1;
    my @ids = ask(join ";\n", @sql) =~ /^(\d+)$/mg;
    push @errors, "mail $first and after: " . @ids . ' of ' . @sql if @ids != @sql;
    return;
}

# ---- what became of it ----

my %finished;       # recipient => [id, status, attempts, doubts, server's id, was it given up for its age]
my %by_id;
my $seen = '-infinity';

# Take down what is finished before retention deletes it.
sub harvest
{
    my $rows = ask("SELECT id, recipient, status, attempts, doubts, coalesce(server_message_id, ''), reason LIKE 'it was tried for %', finished_at
                    FROM kliv_mail._delivery WHERE finished_at >= '$seen'::timestamptz - interval '1 minute' ORDER BY finished_at");
    for my $row (split /\n/, $rows)
    {
        my ($id, $recipient, $status, $attempts, $doubts, $server_id, $given_up, $at) = split /\|/, $row;
        push @errors, "$recipient is finished twice" if $finished{$recipient} && $finished{$recipient}[0] != $id;
        $finished{$recipient} = [ $id, $status, $attempts, $doubts, $server_id, ($given_up // '') eq 't' ];
        $seen = $at;
    }
    return;
}

# ---- figures ----

my @samples;
my $last = 'nothing yet';
my $begin = time;

sub memory_of
{
    my ($pid) = @_;
    open(my $file, '<', "/proc/$pid/status") or return;
    local $/;
    return (<$file> // '') =~ /^RssAnon:\s+(\d+)/m ? $1 : undef;
}

# Connections to the two servers that are open.
sub connections
{
    my $ports = join '|', map { sprintf '%04X', $_ } map { values %{ $_->ports } } values %smtp;
    return scalar(() = slurp_file('/proc/net/tcp') =~ /^ *\d+: \S+ [0-9A-F]{8}:(?:$ports) 01 /mg);
}

# Of all processes of the server.
sub whole_memory
{
    my ($postmaster) = @_;
    my $sum = memory_of($postmaster) // 0;
    for my $path (glob '/proc/[0-9]*/stat')
    {
        open(my $file, '<', $path) or next;
        my ($pid, $parent) = (<$file> // '') =~ /^(\d+) \(.*\) \S (\d+)/ or next;
        $sum += memory_of($pid) // 0 if $parent == $postmaster;
    }
    return $sum;
}

sub sample
{
    my ($quiet) = @_;
    harvest();
    # What is held in doubt waits for somebody who looks: that is us.
    ask(q{SELECT kliv_mail.cancel(o.message_id) FROM kliv_mail._outbox AS o JOIN kliv_mail._message AS m ON m.id = o.message_id
          WHERE o.due = 'infinity' AND m.recipients = 1 AND o.first_attempt_at < now() - interval '10 minutes'})
      if $long;
    my %now;
    @now{qw(waiting deferred doubt claimed outbox small history sender launcher)} = split /\|/,
      ask(q{SELECT count(*) FILTER (WHERE epoch IS NULL), count(*) FILTER (WHERE attempts > 0 AND NOT doubtful AND epoch IS NULL),
                count(*) FILTER (WHERE doubtful), count(*) FILTER (WHERE epoch IS NOT NULL),
                pg_total_relation_size('kliv_mail._outbox'),
                (SELECT sum(pg_total_relation_size(c)) FROM unnest(ARRAY['_quota', '_usage', '_pause', '_account', '_state']) AS t (name),
                     LATERAL (SELECT ('kliv_mail.' || t.name)::regclass AS c) AS r),
                (SELECT sum(pg_total_relation_size(c)) FROM unnest(ARRAY['_message', '_delivery', '_idempotency', '_event']) AS t (name),
                     LATERAL (SELECT ('kliv_mail.' || t.name)::regclass AS c) AS r),
                (SELECT max(pid) FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender'),
                (SELECT max(pid) FROM pg_stat_activity WHERE backend_type = 'kliv_mail launcher')
            FROM kliv_mail._outbox});
    $now{at} = time - $begin;
    $now{mails} = $number;
    $now{accepted} = $smtp{custom}->count + $smtp{second}->count;
    my %statuses;
    $statuses{ $_->[1] }++ for values %finished;
    $now{sent} = $statuses{sent} // 0;
    for my $who (qw(sender launcher))
    {
        $now{"${who}_kb"} = $now{$who} ? memory_of($now{$who}) : undef;
    }
    # Into the server's log, from where it is read at the end.
    ask(q{SELECT pg_log_backend_memory_contexts(pid) FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender'}) if $long && $now{sender};
    $now{open} = connections();
    open(my $file, '<', $node->data_dir . '/postmaster.pid') or die $!;
    chomp(my $postmaster = <$file>);
    $now{whole_kb} = whole_memory($postmaster);
    my $before = $samples[-1];
    my $per_second = $before ? ($now{sent} - $before->{sent}) / ($now{at} - $before->{at}) : 0;
    push @samples, \%now;
    note sprintf '%5d s: %d in, %d sent (%.1f/s), %d otherwise; %d wait (%d deferred), %d in doubt; sender %s kB, %d connections, launcher %s kB, all %d kB; '
      . 'outbox %d kB, history %d kB, others %d kB; load %s; %s',
      $now{at}, $number, $now{sent}, $per_second, keys(%finished) - $now{sent}, @now{qw(waiting deferred doubt)},
      $now{sender_kb} // '-', $now{open}, $now{launcher_kb} // '-', $now{whole_kb}, (map { $now{$_} / 1024 } qw(outbox history small)),
      (split / /, slurp_file('/proc/loadavg'))[0], $last
      if !$quiet;
    $last = '-';
    return;
}

sub median { my @values = sort { $a <=> $b } @_; return $values[ $#values / 2 ]; }

# ---- disturbances ----

my @cures;      # [when, code]

sub later { my ($seconds, $code) = @_; push @cures, [ time + $seconds, $code ]; return; }

sub trouble
{
    my ($server, %change) = @_;
    my %back = map { $_ => $_ eq 'silent' ? 0 : '' } keys %change;
    $smtp{$server}->set(%change);
    $smtp{$server}->drop_connections;
    later(min(8, $every / 2), sub {
        $smtp{$server}->set(%back);
        $smtp{$server}->release;
        # Half of the time it has to find out by itself.
        configure() if $server eq 'custom' && rand() < 0.5;
    });
    return;
}

my @soft = (
    [ 'pause' => sub { ask('SELECT kliv_mail.pause()'); later(min(5, $every / 2), sub { ask('SELECT kliv_mail.resume()') }) } ],
    [ 'pause of an account' => sub { ask(q{SELECT kliv_mail.pause('custom')}); later(min(5, $every / 2), sub { ask(q{SELECT kliv_mail.resume('custom')}) }) } ],
    [ 'configure_smtp' => sub { configure() } ],
    [ 'update_sender' => sub { ask(sprintf q{SELECT kliv_mail.update_sender(from_name => 'Shop %d')}, rand 1000) } ],
    [ 'rotate_key' => sub { ask('SELECT kliv_mail.rotate_key()') } ],
    [ 'connections dropped' => sub { $_->drop_connections for values %smtp } ],
    [ 'login refused' => sub { trouble('custom', auth_reply => '535 5.7.8 no') } ],
    [ 'greeting 421' => sub { trouble('custom', greeting_reply => '421 4.3.2 not now') } ],
    [ 'second refuses all' => sub { trouble('second', greeting_reply => '554 5.3.2 not now') } ],
    [ 'a silent server' => sub { trouble('custom', silent => 1) } ],
    [ 'a slow server' => sub { $smtp{custom}->set(delay_dot => 200); later(min(10, $every / 2), sub { $smtp{custom}->set(delay_dot => 0) }) } ],
    [ 'other connections' => sub { $node->configure('kliv_mail.connections_per_account' => 2 + int rand(CONNECTIONS - 1)); $node->reload } ]);
my @hard = (
    [ 'sender killed' => sub { my ($pid) = eval { $node->workers('kliv_mail sender') }; kill 'KILL', $pid if $pid } ],
    [ 'sender ended' => sub { my ($pid) = eval { $node->workers('kliv_mail sender') }; kill 'TERM', $pid if $pid } ],
    [ 'immediate stop' => sub { $node->stop('immediate'); $node->start } ],
    [ 'restart' => sub { $node->restart } ]);

my (@soft_turn, @hard_turn);
my $disturbances = 0;
my %happened;

sub disturb
{
    # The second half has no restart, so that a sender's whole life is seen.
    my $all = $hard && $disturbances++ % ($long ? 6 : 4) == 3 && time - $begin < $length / 2 ? \@hard : \@soft;
    my $turn = $all == \@hard ? \@hard_turn : \@soft_turn;
    @$turn = sort { rand() <=> 0.5 } @$all if !@$turn;
    my ($name, $code) = @{ shift @$turn };
    $code->();
    $happened{$name}++;
    $last = $name;
    return;
}

# ---- the run ----

$begin = time;
my ($next_sample, $next_disturbance, $next_release) = ($begin + 10, $begin + $every, $begin + 5);
while ((my $now = time) < $begin + $length)
{
    inject(int(($now - $begin) * $rate) - $number);
    for my $cure (grep { $_->[0] <= $now } @cures)
    {
        @cures = grep { $_ != $cure } @cures;
        $cure->[1]->();
    }
    if ($now >= $next_release)
    {
        # At the dot a client waits ten minutes for a server that hangs.
        $_->release for values %smtp;
        $next_release = $now + 5;
    }
    if ($now >= $next_disturbance)
    {
        disturb();
        $next_disturbance += $every;
    }
    if ($now >= $next_sample)
    {
        sample();
        $next_sample += 10;
    }
    usleep 50_000;
}
my $took = time - $begin;
$_->[1]->() for splice @cures;
ask('SELECT kliv_mail.resume()');
note sprintf '%d mails in %.0f s, %.1f a second; disturbances: %s', $number, $took, $number / $took,
  join ', ', map { "$_ $happened{$_}" } sort keys %happened;
is("@errors", '', 'every send() succeeded, and nothing was finished twice');

# ---- drain: what waits for a retry comes due as the clock moves ----

my $due = q{kliv_mail._outbox WHERE epoch IS NOT NULL OR due < 'infinity'};
for my $hours (0 .. 5)
{
    harvest();
    if ($hours)
    {
        $node->clock_offset(70 * $hours . ' minutes');
        undef $session;
        $node->restart;
    }
    my $end = time + 60;
    my ($left, $still) = (undef, 0);
    while (time < $end && $still < ($long ? 40 : 16))
    {
        $_->release for values %smtp;
        usleep 250_000;
        my $now = ask("SELECT count(*), md5(string_agg(id || '-' || (epoch IS NULL), ',' ORDER BY id)) FROM $due");
        $still = defined $left && $now eq $left ? $still + 1 : 0;
        $left = $now;
        last if $now =~ /^0\|/;
    }
    note "drained after " . 70 * $hours . " minutes of the clock, but for $left";
    last if $left =~ /^0\|/;
}
harvest();
is(ask("SELECT count(*) FROM $due"), 0, 'all is drained, but for what is held in doubt');

# ---- ledger and outbox ----

my %copies;
my %ids;
my (@foreign, @two_ids);
for my $entry (map { $_->accepted } values %smtp)
{
    my $recipient = $entry->{rcpt}[0];
    push @foreign, $recipient if @{ $entry->{rcpt} } != 1 || !$mail{$recipient};
    $copies{$recipient}{ $entry->{id} }++;
    $ids{$recipient}{ $entry->{message_id} }++;
}
my %held = map { my ($recipient, $doubts) = split /\|/; $recipient => $doubts }
  split /\n/, ask('SELECT recipient, doubts FROM kliv_mail._outbox');
is("@foreign", '', 'nobody got a mail who was not to get one');
is(join(' ', grep { keys %{ $ids{$_} } != 1 } keys %ids), '', 'copies have the same Message-ID');

my (%wrong, %count);
my ($doubts_total, $second) = (0, 0);
for my $recipient (sort keys %mail)
{
    my $mail = $mail{$recipient};
    my $copies = sum0 values %{ $copies{$recipient} // {} };
    my ($id, $status, $attempts, $doubts, $server_id, $given_up) =
      $finished{$recipient} ? @{ $finished{$recipient} } : defined $held{$recipient} ? ('', 'in_doubt', 0, $held{$recipient}, '') : ();
    my $told = "$recipient ($copies copies, " . ($status // 'nowhere') . ', ' . ($doubts // 0) . ' times in doubt)';
    if (!defined $status)
    {
        push @{ $wrong{lost} }, $told;
        next;
    }
    $count{$status}++;
    $doubts_total += $doubts;
    $second += $copies - 1 if $copies > 1;
    my $sent = $status eq 'sent' ? 1 : 0;
    push @{ $wrong{missing} }, $told if $copies < $sent;
    push @{ $wrong{'too many'} }, $told if $copies > $sent + $doubts;
    push @{ $wrong{'the wrong server id'} }, "$told $server_id"
      if $sent && $server_id =~ /^[0-9a-f]{8,}$/ && !$copies{$recipient}{$server_id};
    push @{ $wrong{cap} }, $told if $doubts > 3 || ($status eq 'in_doubt' && $doubts != 3);
    # What no fault was played to, or one that is over, arrives; where it met
    # another one when the clock had moved it may have been given up; so may what stalled meanwhile.
    push @{ $wrong{verdict} }, $told
      if $mail->{fault} =~ /^(?:ok|once-(?:(?:rcpt|data|dot|mail)-4|grey|slow|drop|reset|stall|half|421))/ &&
      !grep { $_ eq $status } @{ $mail->{may} }, $mail->{fault} =~ /^once/ && ($attempts > 1 || $doubts == 3 || $given_up) ? qw(bounced in_doubt cancelled) : ();
    push @{ $wrong{verdict} }, $told
      if $mail->{fault} =~ /^(?:rcpt|dot)-55[04]/ && $status !~ /^(?:bounced|failed|cancelled|expired)$/;
}
is(join("\n", map { "$_: " . join ', ', @{ $wrong{$_} } } sort keys %wrong), '', 'ledger and deliveries tell the same');
note 'deliveries: ' . join ', ', map { "$count{$_} $_" } sort keys %count;
note "$doubts_total times in doubt, $second second copies, of " . keys(%mail) . ' deliveries';
is(ask(q{SELECT sum(used) FROM kliv_mail._usage WHERE window_name = 'hour'}), $count{sent} + $doubts_total,
    'the quota counts what was accepted and what may have been, nothing else');
my $events = ask(q{SELECT kind, count(*) FROM kliv_mail._event GROUP BY 1 ORDER BY 1});
note "events: $events";

ask('SELECT kliv_mail.cancel(message_id) FROM kliv_mail._outbox');
is(ask('SELECT count(*) FROM kliv_mail._outbox'), 0, 'what was held in doubt can be cancelled, and the outbox is empty');

# ---- memory, tables, log ----

my @life = grep { $_->{at} > $length / 2 && $_->{sender} } @samples;
@life = grep { $_->{sender} == $life[-1]{sender} } @life if @life;
cmp_ok(max(map { $_->{open} } @samples), '<=', 2 * CONNECTIONS, 'connections do not pile up') if @samples;
if ($long && @life > 20)
{
    # The first eighth of what is seen fills caches.
    my $quarter = @life / 4;
    my @early = @life[ $quarter / 2 .. 1.5 * $quarter ];
    my @late = @life[ -$quarter .. -1 ];
    my $mails = median(map { $_->{mails} } @late) - median(map { $_->{mails} } @early);
    for my $what (qw(sender_kb launcher_kb whole_kb))
    {
        my ($from, $to) = map { my $part = $_; median(map { $_->{$what} } @$part) } \@early, \@late;
        my $per_mail = 1024 * ($to - $from) / $mails;
        note sprintf '%s: %d, then %d kB after %d mails: %.1f bytes a mail; at most %d kB', $what, $from, $to, $mails, $per_mail,
          max map { $_->{$what} // 0 } @samples;
        # What a process once had it seldom gives back: the most that was ever under
        # way at a time counts, and that is a matter of chance.  Beside the sender
        # there are sessions and autovacuum, which come and go.
        my $steps = 1024 * { sender_kb => 4, launcher_kb => 1, whole_kb => 8 }->{$what};
        cmp_ok($to - $from, '<', $steps + BYTES_PER_MAIL * $mails / 1024, "$what is flat");
    }
    # What the sender has in use when little is under way: the least of the first
    # and of the last quarter of its life, without the first eighth.
    my @used = slurp_file($node->logfile) =~ /\[$life[-1]{sender}\] .*Grand total: .* (\d+) used$/mg;
    my $part = int(@used / 4);
    my ($from, $to) = (min(@used[ $part / 2 .. 1.5 * $part ]), min(@used[ -$part .. -1 ]));
    note sprintf 'in use by the sender, where it was least: %d, then %d kB after %d mails', $from / 1024, $to / 1024, $mails;
    # Functions and plans of what happens for the first time are kept: half a megabyte of them.
    cmp_ok($to - $from, '<', 512 * 1024 + 8 * $mails, 'what the sender has in use is flat');
    # A queue's table is as large as its longest line and what comes between two
    # vacuums; where room is not used again it grows with each mail: a third of
    # the run is more than 4 times what stands between two vacuums.
    my @middle = grep { $_->{at} > $length / 3 && $_->{at} <= 2 * $length / 3 } @samples;
    my @end = grep { $_->{at} > 2 * $length / 3 } @samples;
    for my $what (qw(outbox small))
    {
        my ($from, $to) = map { my $part = $_; max map { $_->{$what} } @$part } \@middle, \@end;
        note sprintf '%s: at most %d kB in the middle third, %d kB in the last', $what, $from / 1024, $to / 1024;
        cmp_ok($to, '<=', 1.5 * $from + 1024 * 1024, "the size of $what is flat");
    }
}

# What kills, restarts and a moved clock say, and nothing else.
my $expected = join '|',
  'terminating (?:connection|background worker|\S+ process) .*(?:because of crash|due to)',
  'the database system is (?:shutting down|starting up|not yet accepting|in recovery)',
  'test_clock_offset moves the clock',
  'the account ".*" of database ".*" is held: ',     # each once, with its reason
  'is not a PostgreSQL server process';     # a sender that ended as its memory was asked for
my @said = grep { /\b(?:FATAL|PANIC|WARNING|ERROR): / && !/$expected/ } split /\n/, slurp_file($node->logfile);
is(join("\n", @said[ 0 .. min(20, $#said) ]), '', 'the log has no error, no warning');
$session->quit if $session;
KlivMail::RawMessages::changed('update_sender() between two attempts');
KlivMail::RawMessages::gone(qr/./, 'the retention of an hour\'s soak has deleted it') if $long;
$node->stop;
done_testing();
