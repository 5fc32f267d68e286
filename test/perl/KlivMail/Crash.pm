# Crash.pm: kill a sender at a chosen point of a delivery's life, and count what
# that cost.  Both the short test and the long campaign (make crashtest) use it.
#
#	my $crash = KlivMail::Crash->new(senders => 2);
#	for my $point (KlivMail::Crash::points())
#	{
#	    my $result = $crash->run($point, 'kill');      # or 'immediate'
#	}
#
# No run needs luck to be at its point when the blow falls:
#	- the SMTP server stalls or holds its replies, where the point is on the wire;
#	- a lock of ours is in the way, where it is inside a transaction.  The sender
#	  waits for a lock no longer than a second, so it is stopped (SIGSTOP) while
#	  it waits, and seen to wait still after that;
#	- a synchronous standby that does not exist stops whoever commits between the
#	  commit record in the WAL and the moment when he learns of it;
#	- a prepared transaction's lock survives the first blow, for points in the
#	  recovery from it.
#
# Copyright (c) 2026, the kliv_mail developers
package KlivMail::Crash;

use strict;
use warnings;
use List::Util qw(max);
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use POSIX ();
use PostgreSQL::Test::Utils;
use Time::HiRes qw(time usleep);

# Name, what is true when the blow falls, how to get there.
my @POINTS = (
    [ caller     => 'in the caller\'s transaction',                      \&to_caller ],
    [ prepared   => 'in a prepared transaction of the caller\'s',        \&to_prepared ],
    [ unwoken    => 'committed in the WAL, nobody told',                    \&to_unwoken ],
    [ waiting    => 'committed, not claimed: the quota is locked',       \&to_waiting ],
    [ claiming   => 'claim not committed',                               \&to_claiming ],
    [ claimed    => 'claim committed in the WAL, nothing sent',             \&to_claimed ],
    [ opening    => 'claimed, the server is silent at the greeting',     \&to_opening ],
    [ mail       => 'MAIL sent, no reply',                               sub { stall(@_, 'mail') } ],
    [ rcpt       => 'RCPT sent, no reply',                               sub { stall(@_, 'rcpt') } ],
    [ body       => 'in the middle of a body',                           \&to_body ],
    [ dot        => 'dot sent, not accepted, no reply',                  sub { stall(@_, 'dot') } ],
    [ accepted   => 'accepted, no reply',                                \&hold_dots ],
    [ unrecorded => 'two mails a connection accepted, none recorded',    \&to_unrecorded ],
    [ chunks     => 'two chunks a connection accepted, nothing said',    \&to_chunks ],
    [ recording  => 'in the middle of recording',                        \&to_recording ],
    [ recorded   => 'record committed in the WAL, the sender not told',     \&to_recorded ],
    [ doubting   => 'connections lost after the dot, not recorded',      \&to_doubting ],
    [ leaving    => 'in a clean exit, nothing given back yet',           \&to_leaving ],
    [ starting   => 'after a crash, at the start of the next sender',    \&to_starting ],
    [ recovering => 'after a crash, orphaned claims not yet recovered',  \&to_recovering ],
    [ drain      => 'anywhere, at full speed',                           \&to_drain ]);
my %POINT = map { $_->[0] => $_ } @POINTS;

my $SENDERS  = q{pg_stat_activity WHERE backend_type = 'kliv_mail sender'};
my $LAUNCHER = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'kliv_mail launcher'};
my $USED     = q{SELECT coalesce(sum(used), 0) FROM kliv_mail._usage WHERE account = 'platform' AND window_name = 'day'};

sub points { return map { $_->[0] } @POINTS; }
sub describe { my ($point) = @_; return $POINT{$point}[1]; }

# Options:
#	senders     => 1        of the one database
#	connections => 4        of an account in each sender, who share what an account may have
#	name        => 'main'
sub new
{
    my ($class, %option) = @_;
    my $self = bless {
        senders     => $option{senders}     // 1,
        connections => $option{connections} // 4,
        runs        => 0,
        limit       => 0
    }, $class;
    # A sender claims at least four mails a connection, and what it gets rid of in a tenth
    # of a second: there are more, where another one is to have some, too.
    $self->{claimed} = 4 * $self->{connections} * $self->{senders} + ($self->{senders} > 1 ? 1100 : 0);
    $self->{mails} = $self->{claimed} + 12;
    $self->{smtp} = KlivMail::SmtpServer->start(no_transcript => 1);
    # Nothing here fails but processes, so nothing needs to be on a disk: fsync is off.
    my %conf = (
        'kliv_mail.connections_per_account' => $self->{connections} * $self->{senders},
        'kliv_mail.platform_hourly_limit'   => 1000000,
        'kliv_mail.sender_idle_timeout'     => '10min');    # that of one run serves the next
    $conf{'kliv_mail.senders_per_database'} = $self->{senders} if $self->{senders} > 1;
    $self->{node} = KlivMail::Cluster->new(
        $option{name} // 'main',
        platform_url => 'smtp://127.0.0.1:' . $self->{smtp}->port,
        streaming    => 1,      # so that commits can wait for a standby
        conf         => \%conf);
    $self->{node}->clock_to_noon;
    return $self;
}

# One run: up to the point, the blow, and all that was committed delivered.  A
# daily limit that the mails reach halfway makes that two drains: up to the
# limit, and the rest, once the limit is raised by just as much.  Gives
#	kills      blows
#	at         mails that the server had accepted when the last one fell
#	lost       mails that were committed and never arrived
#	ghosts     mails that arrived and were never committed
#	second     second copies
#	changed    second copies whose Message-ID or bytes are not the first's
#	stuck      mails in the outbox, or not 'sent', in the end
#	overrun    mails beyond the limit, or accepted and not counted
#	seconds
sub run
{
    my ($self, $point, $way) = @_;
    my $begun = time;
    my $number = ++$self->{runs};
    $self->{way} = $way;
    $self->{prefix} = "r$number-";
    $self->{expected} = [];
    $self->{never} = [];
    $self->{kills} = 0;
    $self->{victim} = $self->{frozen} = $self->{after} = undef;
    $self->{skip} = scalar(my @before = $self->{smtp}->ledger);
    $self->{used_before} = $self->query($USED);

    # Mail beforehand, so that senders are there, and a row of usage.  Only mail
    # that finds no connection for a while brings another sender.
    my $warm = $self->{senders} > 1 ? $self->{claimed} + 1 : 1;
    $self->raise_limit($warm);
    $self->{smtp}->set(dot_reply => 'hold') if $self->{senders} > 1;
    $self->mail('warm', $warm);
    $self->must('the senders run', "SELECT count(*) = $self->{senders} FROM $SENDERS");
    $self->give_replies;
    $self->must('the first mail is sent', 'SELECT NOT EXISTS (SELECT FROM kliv_mail._outbox)');
    $self->raise_limit($self->{mails} - 8);
    $self->{launcher} = $self->query($LAUNCHER);
    $self->{warm} = $self->accepted;

    $POINT{$point}[2]->($self);
    my %result = (at => $self->accepted - $self->{warm});
    $self->strike;
    $self->query('ALTER SYSTEM RESET synchronous_standby_names');
    $self->query('SELECT pg_reload_conf()');
    $self->query("ROLLBACK PREPARED '$_'")
      for split /\n/, $self->query(q{SELECT gid FROM pg_prepared_xacts WHERE gid = 'lock'});
    $self->{after}->() if $self->{after};

    my $drained = $self->comes_true(
        "SELECT NOT EXISTS (SELECT FROM kliv_mail._outbox WHERE epoch IS NOT NULL)
            AND (($USED) >= $self->{limit} OR NOT EXISTS (SELECT FROM kliv_mail._outbox))");
    $result{overrun} = $self->overrun;
    $self->raise_limit($self->query('SELECT count(*) FROM kliv_mail._outbox'));
    $self->comes_true('SELECT NOT EXISTS (SELECT FROM kliv_mail._outbox)') if $drained;
    $result{overrun} = max($result{overrun}, $self->overrun);

    my %copies;
    push @{ $copies{ $_->{rcpt}[0] } }, $_ for $self->{smtp}->ledger('message', $self->{skip});
    my $sent = $self->query("SELECT count(*) FROM kliv_mail._delivery
                             WHERE recipient LIKE '$self->{prefix}%' AND status = 'sent'");
    $result{stuck} = max($self->query('SELECT count(*) FROM kliv_mail._outbox'),
                         @{ $self->{expected} } - $sent);
    $result{lost} = grep { !$copies{$_} } @{ $self->{expected} };
    $result{ghosts} = grep { $copies{$_} } @{ $self->{never} };
    @result{qw(second changed)} = (0, 0);
    for my $all (values %copies)
    {
        my ($first, @others) = @$all;
        $result{second} += @others;
        $result{changed} += grep {
            $_->{message_id} ne $first->{message_id} || $_->{sha256} ne $first->{sha256}
        } @others;
    }
    $result{kills} = $self->{kills};
    $result{seconds} = time - $begun;
    return \%result;
}

# The most second copies that a run may cost.
sub bound
{
    my ($self, $result) = @_;
    return 2 * $self->{connections} * $self->{senders} * $result->{kills};
}

# What a run did wrong, in words; '' if nothing.
sub verdict
{
    my ($self, $result) = @_;
    my @wrong = map { "$_ $result->{$_}" } grep { $result->{$_} } qw(lost ghosts changed stuck overrun);
    push @wrong, "second copies $result->{second}" if $result->{second} > $self->bound($result);
    return join(', ', @wrong);
}

sub stop
{
    my ($self) = @_;
    $self->forget_sessions;
    kill 'CONT', $self->{frozen} if $self->{frozen};
    $self->{node}->stop;
    $self->{smtp}->stop;
    return;
}

# ---- the points ----

sub to_caller
{
    my ($self) = @_;
    $self->holder('BEGIN');
    $self->mail('open', $self->{mails}, session => $self->{holder}, committed => 0);
    return;
}

# What is prepared outlives the blow, does nothing until it is committed, and
# everything then.
sub to_prepared
{
    my ($self) = @_;
    $self->holder('BEGIN');
    $self->mail('prepared', $self->{mails}, session => $self->{holder});
    $self->{holder}->query(q{PREPARE TRANSACTION 'mail'});
    $self->{after} = sub {
        die 'a prepared mail was sent' if $self->accepted > $self->{warm};
        $self->query(q{COMMIT PREPARED 'mail'});
    };
    return;
}

sub to_unwoken
{
    my ($self) = @_;
    $self->slow_commits;
    my $session = $self->session;
    $self->mail('told', $self->{mails}, session => $session, wait => 0);
    $self->must('the caller waits in its commit', "SELECT EXISTS (SELECT FROM pg_stat_activity
                     WHERE wait_event = 'SyncRep' AND query LIKE '%kliv_mail.send%')");
    return;
}

sub to_waiting
{
    my ($self) = @_;
    $self->holder('BEGIN', 'SELECT count(*) FROM (SELECT FROM kliv_mail._quota FOR UPDATE) AS q');
    $self->mail('wait', $self->{mails});
    $self->must('nothing is claimed', 'SELECT count(*) = count(*) FILTER (WHERE epoch IS NULL) FROM kliv_mail._outbox');
    return;
}

# The claim has written the outbox's rows when it comes to count them.
sub to_claiming
{
    my ($self) = @_;
    $self->holder('BEGIN', 'SELECT count(*) FROM (SELECT FROM kliv_mail._usage FOR UPDATE) AS u');
    $self->mail('claim', $self->{mails});
    $self->freeze($self->{holder_pid});
    return;
}

sub to_claimed
{
    my ($self) = @_;
    $self->holder('BEGIN', 'SELECT count(*) FROM (SELECT FROM kliv_mail._quota FOR UPDATE) AS q');
    $self->mail('claim', $self->{mails});
    $self->slow_commits;
    $self->{holder}->query('ROLLBACK');
    $self->wait_for_committer;
    return;
}

sub to_opening
{
    my ($self) = @_;
    $self->{smtp}->drop_connections;
    $self->{smtp}->set(silent => 1);
    my $skip = () = $self->{smtp}->ledger;
    $self->mail('open', $self->{mails});
    $self->wait_for_events('connections', 'connect', $skip);
    return;
}

# Every connection of every sender has come to this stage, and gets no reply.
sub stall
{
    my ($self, $stage) = @_;
    $self->{smtp}->set("${stage}_reply" => 'stall');
    $self->mail('stall', $self->{mails});
    $self->wait_for_events($stage, 'refused', $self->{skip});
    return;
}

# No socket's buffers hold the body of the first mail.
sub to_body
{
    my ($self) = @_;
    $self->{smtp}->set(data_reply => 'stall-body');
    $self->mail('big', 1, body => q{repeat(repeat('x', 75) || E'\n', 100000)});
    $self->mail('body', $self->{mails} - 1);
    $self->wait_for_events('data', 'refused', $self->{skip});
    return;
}

# Every connection of every sender has sent a mail that is accepted; it gets its
# reply when the server is told to.
sub hold_dots
{
    my ($self) = @_;
    $self->{smtp}->set(dot_reply => 'hold');
    $self->mail('dot', $self->{mails});
    $self->wait_for_accepted($self->{connections} * $self->{senders});
    return;
}

sub give_replies
{
    my ($self) = @_;
    $self->{smtp}->set(dot_reply => '');
    $self->{smtp}->resume;
    return;
}

# Behind the first mail of a connection they leave whole, two at a time (BDAT).
sub to_chunks
{
    my ($self) = @_;
    $self->{smtp}->set(bdat_silent => 1);
    my $skip = scalar(my @before = $self->{smtp}->ledger);
    $self->mail('chunk', $self->{mails});
    my $busy = sub {
        my ($least) = @_;
        my %chunks;
        $chunks{ $_->{conn} }++ for grep { $_->{bdat} } $self->{smtp}->ledger('message', $skip);
        return $self->{connections} * $self->{senders} <= grep { $_ >= $least } values %chunks;
    };
    $self->wait_for('each connection has a chunk', sub { $busy->(1) });
    # On a slow machine the server was not heard of for so long that DATA comes behind it.
    my $end = time + 5;
    usleep(10_000) until $busy->(2) || time > $end;
    return;
}

sub to_unrecorded
{
    my ($self) = @_;
    $self->hold_dots;
    $self->holder('BEGIN', 'LOCK TABLE kliv_mail._delivery IN SHARE MODE');
    $self->give_replies;
    # The second mail of each connection was on its way when the first was held.
    $self->wait_for_accepted(2 * $self->{connections} * $self->{senders});
    # Each sender tries to record again, so it has had time to begin a third.
    my %tries;
    $self->wait_for('every sender has tried twice', sub {
        my $waiting = $self->query(q{SELECT pid || ' ' || waitstart FROM pg_locks
                                     WHERE NOT granted AND relation = 'kliv_mail._delivery'::regclass});
        $tries{$1}{$2} = 1 while $waiting =~ /^(\d+) (.+)$/mg;
        return $self->{senders} == grep { keys %$_ > 1 } values %tries;
    });
    return;
}

# The id of the last mail accepted is in the way, when others of its batch have
# gone from one table to the other already.
sub to_recording
{
    my ($self) = @_;
    $self->hold_dots;
    my $list = join(',', map { "'$_->{rcpt}[0]'" } $self->{smtp}->ledger('message', $self->{skip}));
    $self->holder('BEGIN', "INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status,
                                created_at, attempts, doubts, finished_at, changed)
                            SELECT id, message_id, recipient, kind, priority, route, 'sent', created_at, 1, 0, now(), 0
                            FROM kliv_mail._outbox WHERE recipient IN ($list) ORDER BY id DESC LIMIT 1");
    $self->give_replies;
    $self->freeze($self->{holder_pid});
    return;
}

sub to_recorded
{
    my ($self) = @_;
    $self->hold_dots;
    $self->slow_commits;
    $self->give_replies;
    $self->wait_for_committer;
    return;
}

sub to_doubting
{
    my ($self) = @_;
    $self->hold_dots;
    $self->holder('BEGIN', 'SELECT count(*) FROM (SELECT FROM kliv_mail._quota FOR UPDATE) AS q');
    $self->{smtp}->set(dot_reply => '');
    $self->{smtp}->drop_connections;
    $self->freeze($self->{holder_pid});
    return;
}

sub to_leaving
{
    my ($self) = @_;
    $self->hold_dots;
    $self->holder('BEGIN', 'SELECT count(*) FROM (SELECT FROM kliv_mail._outbox WHERE epoch IS NOT NULL FOR UPDATE) AS o');
    my ($pid) = $self->senders;
    kill 'TERM', $pid;
    $self->freeze($self->{holder_pid}, $pid);
    return;
}

# A sequence being altered gives no numbers, so no epoch is opened.
sub to_starting
{
    my ($self) = @_;
    $self->hold_dots;
    $self->query(q{BEGIN; ALTER SEQUENCE kliv_mail._epoch INCREMENT BY 1; PREPARE TRANSACTION 'lock'});
    $self->strike;
    $self->freeze(0);
    return;
}

sub to_recovering
{
    my ($self) = @_;
    $self->hold_dots;
    $self->query(q{BEGIN; SELECT count(*) FROM (SELECT FROM kliv_mail._outbox WHERE epoch IS NOT NULL FOR UPDATE) AS o; PREPARE TRANSACTION 'lock'});
    $self->strike;
    $self->freeze(0);
    return;
}

sub to_drain
{
    my ($self) = @_;
    $self->{smtp}->set(delay_dot => 5);
    $self->mail('drain', $self->{mails});
    $self->wait_for_accepted(1 + int(rand($self->{mails} - 8)));
    return;
}

# ---- the blow ----

# It falls on {frozen} or {victim}, or on each sender in turn; the server runs
# again afterwards.
sub strike
{
    my ($self) = @_;
    my $node = $self->{node};
    my @senders = $self->senders;
    my $pid = $self->{frozen} // $self->{victim} // $senders[ $self->{runs} / 2 % @senders ];

    # What is stalled or held stays so; the next sender meets a healthy server.
    $self->{smtp}->set(map { $_ => '' } qw(mail_reply rcpt_reply data_reply dot_reply));
    $self->{smtp}->set(silent => 0, bdat_silent => 0, delay_dot => 0);
    $self->{kills}++;
    if ($self->{way} eq 'kill')
    {
        kill 'KILL', $pid or die "no sender $pid to kill";
    }
    else
    {
        # What pg_ctl sends must be the first thing that a stopped process meets
        # when it goes on; without that the postmaster waits five seconds for it.
        local %ENV = $node->_get_env();
        system_or_bail('pg_ctl', '-W', '-D', $node->data_dir, '-m', 'immediate', 'stop');
        if ($self->{frozen})
        {
            $self->wait_for('the signal is there', sub { !kill(0, $pid) || has_pending($pid, POSIX::SIGQUIT) });
            kill 'CONT', $pid;
        }
        $node->stop('immediate', fail_ok => 1);
    }
    $self->forget_sessions;
    $self->{victim} = $self->{frozen} = undef;
    $node->start if $self->{way} ne 'kill';
    # A launcher that was not there before is the sign that all is new.
    my $connection = $node->connstr('postgres');
    my $launcher;
    $self->wait_for('the server is up again', sub {
        chomp($launcher = qx{psql -XAtq -d "$connection" -c "$LAUNCHER" 2>/dev/null});
        $launcher =~ /^\d+$/ && $launcher != $self->{launcher};
    });
    $self->{launcher} = $launcher;
    return;
}

# Stop a sender (this one) that waits for a lock of that process (0: of a
# prepared transaction), while it waits.
sub freeze
{
    my ($self, $blocker, $pid) = @_;
    my $who = defined $pid ? "AND pid = $pid" : '';
    my $waiting = "SELECT min(pid) FROM $SENDERS $who AND wait_event_type = 'Lock' AND $blocker = ANY (pg_blocking_pids(pid))";

    $self->wait_for('a sender waits for the lock', sub {
        my $found = $self->query($waiting) or return 0;
        kill 'STOP', $found or return 0;
        $self->wait_for('it stopped', sub { state_of($found) =~ /[TZ-]/ });
        # It may have stopped a moment after its wait ended, with a lock that our
        # question needs.
        my $control = $self->control;
        $control->send($waiting);
        my $end = time + 2;
        usleep(5_000) while !$control->ready && time < $end;
        my $ready = $control->ready;
        kill 'CONT', $found unless $ready;
        return $self->{frozen} = $found if $control->result eq $found && $ready;
        kill 'CONT', $found;
        return 0;
    });
    return;
}

# The state letter of a process in /proc; '-' when there is none.
sub state_of
{
    my ($pid) = @_;
    open(my $file, '<', "/proc/$pid/stat") or return '-';
    my $line = <$file> // return '-';
    return $line =~ /\) (\S)/ ? $1 : '-';
}

sub has_pending
{
    my ($pid, $signal) = @_;
    open(my $file, '<', "/proc/$pid/status") or return 1;
    my @masks = map { /^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)/ ? hex $1 : () } <$file>;
    return grep { $_ & 1 << $signal - 1 } @masks;
}

# From here on who commits is stopped behind the commit record, which is written.
sub slow_commits
{
    my ($self) = @_;
    $self->query(q{ALTER SYSTEM SET synchronous_standby_names = 'nobody'});
    $self->query('SELECT pg_reload_conf()');
    my $probe = $self->session;
    my $pid = $probe->query('SELECT pg_backend_pid()');
    $self->wait_for('commits wait', sub {
        $probe->send(q{SELECT pg_logical_emit_message(true, 'kliv_mail', 'x')});
        my $waits;
        $waits = $self->query("SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $pid") eq 't'
          until $waits || $probe->ready;
        $probe->result unless $waits;
        return $waits;
    });
    return;
}

sub wait_for_committer
{
    my ($self) = @_;
    $self->must('a sender is in its commit', "SELECT EXISTS (SELECT FROM $SENDERS AND wait_event = 'SyncRep')");
    ($self->{victim}) = split /\n/, $self->query("SELECT pid FROM $SENDERS AND wait_event = 'SyncRep'");
    return;
}

# ---- tools ----

# Queue mails from a session (the control's).  committed => 0: they will not be.
# wait => 0: the statement does not end.
sub mail
{
    my ($self, $kind, $count, %option) = @_;
    my $session = $option{session} // $self->control;
    my $body = $option{body} // q{'x'};
    my $statement = "SELECT count(kliv_mail.send(format('$self->{prefix}$kind-%s\@example.com', i), 'x', $body)) FROM generate_series(1, $count) AS i";

    push @{ $self->{ $option{committed} // 1 ? 'expected' : 'never' } },
      map { "$self->{prefix}$kind-$_\@example.com" } 1 .. $count;
    return $session->send($statement) unless $option{wait} // 1;
    my $printed = $session->query($statement);
    die "send() said: $printed" unless $printed =~ /^$count$/m;
    return;
}

# The daily limit: so many more than are used now.
sub raise_limit
{
    my ($self, $more) = @_;
    my $limit = max($self->{limit}, $self->query($USED) + $more);
    return if $limit == $self->{limit};
    $self->{limit} = $limit;
    $self->query("ALTER SYSTEM SET kliv_mail.platform_daily_limit = $limit");
    $self->query('SELECT pg_reload_conf()');
    return;
}

# Mails beyond the limit, or that the server took in this run and we did not count.
sub overrun
{
    my ($self) = @_;
    my $used = $self->query($USED);
    return max(0, $used - $self->{limit}, $self->accepted - ($used - $self->{used_before}));
}

# Mails of this run that were accepted.
sub accepted
{
    my ($self) = @_;
    return scalar(my @messages = $self->{smtp}->ledger('message', $self->{skip}));
}

sub senders
{
    my ($self) = @_;
    return split /\n/, $self->query("SELECT pid FROM $SENDERS ORDER BY pid");
}

# Sessions live until the next blow.
sub session
{
    my ($self) = @_;
    my $session = $self->{node}->session;
    push @{ $self->{sessions} }, $session;
    return $session;
}

sub control
{
    my ($self) = @_;
    return $self->{control} if $self->{control};
    $self->{control} = $self->session;
    $self->{control}->query('SET synchronous_commit = local');
    return $self->{control};
}

# A session that has run these, and keeps its locks.
sub holder
{
    my ($self, @statements) = @_;
    $self->{holder} = $self->session;
    $self->{holder_pid} = $self->{holder}->query('SELECT pg_backend_pid()');
    for my $statement (@statements)
    {
        my $printed = $self->{holder}->query($statement);
        die "$statement: $printed" if $printed =~ /ERROR/;
    }
    return;
}

sub forget_sessions
{
    my ($self) = @_;
    $_->{run}->kill_kill for @{ $self->{sessions} };
    delete $_->{run} for @{ $self->{sessions} };
    $self->{sessions} = [];
    delete @$self{qw(control holder)};
    return;
}

sub query
{
    my ($self, $sql) = @_;
    my $printed = $self->control->query($sql);
    die "$sql: $printed" if $printed =~ /^(?:ERROR|FATAL)/m;
    return $printed;
}

sub wait_for
{
    my ($self, $what, $condition, $mild) = @_;
    my $end = time + $PostgreSQL::Test::Utils::timeout_default;
    while (1)
    {
        my $result = $condition->();
        return $result if $result;
        last if time > $end;
        usleep(10_000);
    }
    return 0 if $mild;
    my $state = eval { $self->query(q{SELECT status, held_by, reason, count(*) FROM kliv_mail.deliveries
                                      WHERE status <> 'sent' GROUP BY 1, 2, 3}) };
    die "run $self->{runs}: never came true: $what\n", $state // $@;
}

sub must
{
    my ($self, $what, $sql) = @_;
    return $self->wait_for($what, sub { $self->query($sql) eq 't' });
}

# The same, where a failure is counted and does not end the campaign.
sub comes_true
{
    my ($self, $sql) = @_;
    return $self->wait_for($sql, sub { $self->query($sql) eq 't' }, 1);
}

sub wait_for_accepted
{
    my ($self, $count) = @_;
    return $self->wait_for("$count mails are accepted", sub { $self->accepted - $self->{warm} >= $count });
}

# One such event for each connection; of refusals those of a stage.
sub wait_for_events
{
    my ($self, $stage, $kind, $skip) = @_;
    return $self->wait_for("all are at $stage", sub {
        $self->{connections} * $self->{senders} <= grep { ($_->{stage} // $stage) eq $stage } $self->{smtp}->ledger($kind, $skip);
    });
}

1;
