# Bench.pm: what the benchmarks share: a client without a layer between it and
# the socket, figures and rows of the table, servers that take mail, and a
# cluster that is as durable as a real one.
#
# Numbers are chosen by environment variables (MESSAGES=2000 make bench-drain),
# which each program names in its head; QUICK=1 makes everything small, to see
# whether it runs.
#
# Copyright (c) 2026, the kliv_mail developers
package Bench;

use strict;
use warnings;
use IO::Socket::INET;
use IO::Socket::UNIX;
use JSON::PP;
use KlivMail::Cluster;
use List::Util qw(max);
use POSIX ();
use Test::More;
use Time::HiRes ();

# PostgreSQL's test modules send STDOUT and STDERR to a log file; this is the terminal.
sub say
{
    print { Test::More->builder->output } @_, "\n";
    return;
}

$SIG{__DIE__} = sub { say(@_) unless $^S // 1 };

# What was started ends with us, by END.
$SIG{INT} = $SIG{TERM} = sub { exit 130 };

sub clock { return Time::HiRes::clock_gettime(Time::HiRes::CLOCK_MONOTONIC()) }

sub quantile
{
    my ($q, @values) = @_;
    @values = sort { $a <=> $b } @values;
    return $values[ int($q * $#values + 0.5) ];
}

sub free_port
{
    my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 1) or die "no free port: $!";
    return $socket->sockport;
}

# A number that the environment may choose; quick is what QUICK=1 makes of it.
sub option
{
    my ($name, $default, $quick) = @_;
    return $ENV{$name} if ($ENV{$name} // '') ne '';
    return $ENV{QUICK} ? $quick // $default : $default;
}

sub rounds { return option('ROUNDS', 5, 1) }

# ---- figures ----

sub shown
{
    my ($value) = @_;
    return '0' if $value == 0;
    my $digits = $value == int $value || $value >= 100 ? 0 : $value >= 10 ? 1 : $value >= 1 ? 2 : 3;
    my $text = sprintf "%.${digits}f", $value;
    1 while $text =~ s/^(\d+)(\d{3})/$1,$2/;
    return $text;
}

# A row of the table: what was measured (group and what), of us and of another, each
# as a list of rounds, whose median counts; more or less of it is better; goal of the
# ratio of ours to theirs, if there is one.  BENCH_RESULTS is where bench/table finds it.
sub row
{
    my (%row) = @_;
    my %value = map { $_ => quantile(0.5, @{ $row{$_} }) } 'ours', 'theirs';
    my $ratio = $row{ratio} // $value{ours} / ($value{theirs} || 1e-9);
    my $met = !defined $row{goal} ? undef : $row{better} eq 'more' ? $ratio >= $row{goal} : $ratio <= $row{goal};
    say(sprintf '  %-52s %9s, %s: %s %s   ratio %.2f%s', $row{what}, shown($value{ours}), $row{against}, shown($value{theirs}), $row{unit},
        $ratio, defined $met ? sprintf ' (goal %s %s: %s)', $row{better} eq 'more' ? 'at least' : 'at most', $row{goal}, $met ? 'met' : 'MISSED' : '');
    return $met if !$ENV{BENCH_RESULTS};
    open my $file, '>>', $ENV{BENCH_RESULTS} or die "$ENV{BENCH_RESULTS}: $!";
    print $file JSON::PP->new->canonical->encode({ %row, ratio => $ratio, met => defined $met ? ($met ? 1 : 0) : undef,
            median => \%value }) . "\n";
    close $file;
    return $met;
}

# A table of its own: how something bends.  The doc has a place of this name for it.
sub curve
{
    my ($name, $columns, @lines) = @_;
    my @text = ([@$columns], map { [ map { /^-?[0-9.]+(?:e[-+]?\d+)?$/ ? shown($_) : $_ } @$_ ] } @lines);
    my @width = map { my $n = $_; max(map { length $_->[$n] } @text) } 0 .. $#$columns;
    say("$name:");
    for my $line (@text)
    {
        say('  ' . join '  ', map { sprintf '%*s', $width[$_], $line->[$_] } 0 .. $#width);
    }
    return if !$ENV{BENCH_RESULTS};
    open my $file, '>>', $ENV{BENCH_RESULTS} or die "$ENV{BENCH_RESULTS}: $!";
    print $file JSON::PP->new->canonical->encode({ curve => $name, lines => \@text }) . "\n";
    close $file;
    return;
}

# ---- servers that take mail ----

my %children;

# A program that ends with its standard input and says its port; the port.
sub program
{
    my ($name, @arguments) = @_;
    pipe(my $stdin, my $hold) or die "pipe: $!";
    pipe(my $stdout, my $stdin_of_child) or die "pipe: $!";
    my $pid = fork() // die "fork: $!";
    if ($pid == 0)
    {
        open STDIN, '<&', $stdin and open STDOUT, '>&', $stdin_of_child or POSIX::_exit(1);
        close $hold;
        exec "bench/bin/$name", @arguments or POSIX::_exit(127);
    }
    close $stdin;
    close $stdin_of_child;
    my $port = <$stdout> // die "$name did not start";
    $children{$pid} = $hold;
    return 0 + $port;
}

# Postfix's, which takes whatever comes; its port.
sub smtp_sink
{
    my $port = free_port();
    my $pid = fork() // die "fork: $!";
    if ($pid == 0)
    {
        exec 'smtp-sink', "127.0.0.1:$port", 256 or POSIX::_exit(127);
    }
    $children{$pid} = undef;
    for (1 .. 100)
    {
        last if IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port);
        Time::HiRes::usleep(50000);
    }
    return $port;
}

my $owner = $$;
END
{
    if ($$ == $owner)
    {
        my $status = $?;
        for my $pid (keys %children)
        {
            kill 'TERM', $pid;
            waitpid $pid, 0;
        }
        $? = $status;
    }
}

# Seconds of Postfix's smtp-source for so many messages.
sub smtp_source
{
    my ($port, $messages, $connections, $size) = @_;
    my $start = clock();
    system('smtp-source', '-d', '-s', $connections, '-m', $messages, '-l', $size, '-f', 'a@example.com', '-t', 'b@example.com',
        "127.0.0.1:$port") == 0
      or die 'smtp-source failed';
    return clock() - $start;
}

# Seconds of what a program of bench/bin or bench/peers prints.
sub seconds_of
{
    my ($command) = @_;
    my ($seconds) = qx{$command} =~ /^([0-9.]+)$/m;
    return $seconds || die "$command failed";
}

# ---- queues ----

# Queue messages while nothing may leave, let them go, and give the seconds until the
# last of them is recorded; in the database of the session.
sub queue_and_drain
{
    my ($session, $messages, %option) = @_;
    my $text = $option{text} // text_of(8192, 'i');
    my $arguments = $option{arguments} // '';
    $session->query('SELECT kliv_mail.pause()');
    $session->query("SELECT count(kliv_mail.send('r' || i || '\@example.com', 'Drain', $text$arguments)) FROM generate_series(1, $messages) AS i");
    $session->query('CHECKPOINT');
    $option{before}->() if $option{before};
    my $start = clock();
    $session->query('SELECT kliv_mail.resume()');
    # From the end, which leaves last: to read all that has left would take a processor from who is measured.
    while (defined $session->query('SELECT max(id) FROM kliv_mail._outbox'))
    {
        Time::HiRes::usleep(10000);
        die "not drained after 20 minutes\n" if clock() - $start > 1200;
    }
    return clock() - $start;
}

sub forget_mail
{
    my ($session, $messages) = @_;
    my $sent = $session->query(q{SELECT count(*) FROM kliv_mail._delivery WHERE status = 'sent'});
    die "$sent of $messages were sent\n" if $sent != $messages;
    $session->query('TRUNCATE kliv_mail._delivery, kliv_mail._message');
    return;
}

# The sender's process, undef if there is none.
sub sender
{
    my ($session) = @_;
    return $session->query(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender' AND datname = current_database()});
}

# Seconds of processor that a process has used.
sub processor_of
{
    my ($pid) = @_;
    open my $stat, '<', '/proc/' . ($pid // '') . '/schedstat' or return 0;
    return (split / /, <$stat>)[0] / 1e9;
}

# MB that are its own: not shared, not of a file.
sub own_memory
{
    my ($pid) = @_;
    open my $status, '<', "/proc/$pid/status" or return 0;
    my ($kilobytes) = join('', <$status>) =~ /^RssAnon:\s+(\d+)/m;
    return ($kilobytes // 0) / 1024;
}

# The most of it that the sender has while something is true, and at most so long.
sub most_memory
{
    my ($session, $seconds, $condition) = @_;
    my ($most, $start, $look, $pid) = (0, clock(), 0, undef);
    while (clock() - $start < $seconds)
    {
        if (clock() > $look)
        {
            last if !$condition->();
            $pid = sender($session) // '';
            $look = clock() + ($pid ? 0.2 : 0);
        }
        $most = max($most, own_memory($pid));
        Time::HiRes::usleep(2000);
    }
    return $most;
}

# Rows as send() makes them, of the last one that it has made: a backlog at once.
sub multiply
{
    my ($session, $message, $times) = @_;
    my @columns = map { $session->query("SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = 'kliv_mail.$_'::regclass AND attnum > 0 AND NOT attisdropped AND attname NOT IN ('id', 'message_id', 'recipient', 'header_id')") }
      '_message', '_outbox';
    $session->query("INSERT INTO kliv_mail._message (id, header_id, $columns[0])
        SELECT nextval('kliv_mail._message_id'), i || header_id, $columns[0] FROM kliv_mail._message, generate_series(1, $times) AS i WHERE id = $message");
    $session->query("INSERT INTO kliv_mail._outbox (id, message_id, recipient, $columns[1])
        SELECT nextval('kliv_mail._delivery_id'), $message + i, 'h' || i || '\@example.com', $columns[1]
        FROM kliv_mail._outbox, generate_series(1, $times) AS i WHERE message_id = $message");
    return;
}

# Wait until nothing is in a sender's hands.
sub wait_until_held
{
    my ($session) = @_;
    Time::HiRes::usleep(20000) while $session->query('SELECT EXISTS (SELECT FROM kliv_mail._outbox WHERE epoch IS NOT NULL)') eq 't';
    return;
}

# ---- clusters ----

# Durable, and with room for what is measured; the platform's server is at port.
sub cluster
{
    my ($name, $port, %conf) = @_;
    return KlivMail::Cluster->new(
        $name,
        durable => 1,
        platform_url => "smtp://127.0.0.1:$port",
        conf => {
            shared_buffers => '512MB',
            max_wal_size => '4GB',
            log_duration => 'off',
            'kliv_mail.platform_hourly_limit' => 10000000,
            'kliv_mail.platform_daily_limit' => 10000000,
            %conf
        });
}

# About bytes of text that does not compress, in lines of 64; an SQL expression
# that is another text for each row.
sub text_of
{
    my ($bytes, $row) = @_;
    my $lines = int($bytes / 65 + 0.5);
    return "(SELECT string_agg(md5(random()::text) || md5(random()::text), E'\\n') FROM generate_series(1, $lines) WHERE $row IS NOT NULL)";
}

# A history of so many deliveries, spread over the last days (29), of the roles
# (postgres) in turn: to 50,000 addresses, one of 50 bounced, one message of ten
# with a tag.  Before anything was sent.
sub fill_history
{
    my ($session, $deliveries, %option) = @_;
    my $days = $option{days} // 29;
    my @roles = @{ $option{roles} // ['postgres'] };
    my $role = sprintf q{('{%s}'::text[])[1 + i %% %d]}, join(',', @roles), scalar @roles;
    my $at = "now() - interval '$days days' * ($deliveries - i) / $deliveries";
    my $start = clock();
    $session->query("INSERT INTO kliv_mail._message (id, created_at, sender_role, message_type, subject, header_id, entity, recipients, tags)
        SELECT i, $at, $role, 'transactional', 'Order ' || i, i || '\@example.com', convert_to(repeat('x', 300), 'UTF8'), 1, CASE WHEN i % 10 = 0 THEN ARRAY['news-' || i % 100] END
        FROM generate_series(1, $deliveries) AS i");
    $session->query("INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, bounce_type, created_at, attempts, doubts, account, host, last_stage, last_code, last_reply, reason, sent_at, finished_at, changed)
        SELECT i, i, 'u' || i % 50000 || '\@example.com', 'to', 1, '', CASE i % 50 WHEN 1 THEN 'bounced' ELSE 'sent' END, CASE i % 50 WHEN 1 THEN 'hard' END, x.at, 1, 0, 'platform', 'smtp.example.com',
            'dot', 250, '2.0.0 Ok: queued', 'the server accepted it', CASE WHEN i % 50 <> 1 THEN x.at END, x.at, i
        FROM generate_series(1, $deliveries) AS i, LATERAL (SELECT $at AS at) AS x");
    $session->query("SELECT setval('kliv_mail._message_id', $deliveries), setval('kliv_mail._delivery_id', $deliveries)");
    $session->query('VACUUM ANALYZE');
    $session->query('CHECKPOINT');
    say(sprintf '  %s finished deliveries: made in %.0f s', shown($deliveries), clock() - $start);
    return;
}

# ---- a session, by PostgreSQL's protocol itself ----

sub connect
{
    my ($class, $node, $database) = @_;
    $database //= 'postgres';
    my $socket = IO::Socket::UNIX->new(Peer => $node->host . '/.s.PGSQL.' . $node->port)
      or die "could not connect: $!";
    my $self = bless { socket => $socket, buffer => '' }, $class;
    my $start = pack('N', 196608) . "user\0" . getpwuid($<) . "\0database\0$database\0\0";
    syswrite $socket, pack('N', 4 + length $start) . $start;
    $self->_until_ready;
    $self->query("SET client_min_messages = error; SET application_name = 'bench'");
    return $self;
}

# The two halves of query(): others go on in between.
sub begin
{
    my ($self, $sql) = @_;
    syswrite $self->{socket}, 'Q' . pack('N', 5 + length $sql) . $sql . "\0";
    return;
}

sub finish { my ($self) = @_; return $self->_until_ready }

# Run a simple query; the first column of the last row.
sub query
{
    my ($self, $sql) = @_;
    $self->begin($sql);
    return $self->finish;
}

sub _until_ready
{
    my ($self) = @_;
    my $value;
    while (1)
    {
        my ($type, $body) = $self->_message;
        return $value if $type eq 'Z';
        die 'the server: ' . ($body =~ s/\0/ /gr) . "\n" if $type eq 'E';
        die "no way to log in\n" if $type eq 'R' && unpack('N', $body) != 0;
        if ($type eq 'D')
        {
            my $length = unpack 'x2 l>', $body;
            $value = $length < 0 ? undef : substr $body, 6, $length;
        }
    }
}

sub _message
{
    my ($self) = @_;
    while (1)
    {
        if (length $self->{buffer} >= 5)
        {
            my ($type, $length) = unpack 'a N', $self->{buffer};
            if (length $self->{buffer} > $length)
            {
                my $body = substr $self->{buffer}, 5, $length - 4;
                substr $self->{buffer}, 0, $length + 1, '';
                return ($type, $body);
            }
        }
        sysread($self->{socket}, $self->{buffer}, 65536, length $self->{buffer}) or die "the server closed the connection\n";
    }
}

1;
