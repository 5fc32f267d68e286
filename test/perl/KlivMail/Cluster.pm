# Cluster.pm: a throw-away server with kliv_mail, over PostgreSQL::Test::Cluster.
#
#	my $node = KlivMail::Cluster->new('main', platform_url => "smtp://127.0.0.1:$port");
#	$node->sql("SELECT kliv_mail.send('ana@example.com', 'Hi', 'Hello')");
#	$node->wait_until("SELECT status = 'sent' FROM kliv_mail.messages");
#
# Nothing here sleeps for a fixed time: everything waits for a condition.
#
# Copyright (c) 2026, the kliv_mail developers
package KlivMail::Cluster;

use strict;
use warnings;
use File::Temp ();
use IPC::Run ();
use KlivMail::RawMessages;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

our @ISA = ('PostgreSQL::Test::Cluster');

# Options, each with its default:
#	platform_url => undef    the setting; platform_from is set along with it
#	conf         => {}       further settings, by name
#	preload      => 1        shared_preload_libraries = kliv_mail
#	durable      => 0        fsync on: only where durability is what is tested
#	encoding     => 'UTF8'
#	locale       => 'C'
#	start        => 1        start it
#	extension    => 1        CREATE EXTENSION in database postgres
#	streaming    => 0        may have standbys
sub new
{
    my ($class, $name, %option) = @_;
    my $self = $class->SUPER::new($name);

    KlivMail::RawMessages::node($self);
    $self->init(
        extra => [
            '--encoding', $option{encoding} // 'UTF8',
            '--locale',   $option{locale}   // 'C'
        ],
        allows_streaming => $option{streaming} // 0);

    my %conf = (
        fsync => $option{durable} ? 'on' : 'off',

        # PostgreSQL's module logs every statement and stays down after a
        # crash: both would hide what is tested here.
        log_statement           => 'none',
        restart_after_crash     => 'on',
        max_connections         => 50,
        max_worker_processes    => 16,
        max_prepared_transactions => 5);
    $conf{shared_preload_libraries} = 'kliv_mail' if $option{preload} // 1;
    if (defined $option{platform_url})
    {
        $conf{'kliv_mail.platform_url'}  = $option{platform_url};
        $conf{'kliv_mail.platform_from'} = 'platform@platform.example';
    }
    %conf = (%conf, %{ $option{conf} // {} });
    $self->configure(%conf);

    if ($option{start} // 1)
    {
        $self->start;
        $self->sql('CREATE EXTENSION kliv_mail CASCADE') if $option{extension} // 1;
    }
    return $self;
}

# Append settings; the last one of a name counts.
sub configure
{
    my ($self, %conf) = @_;
    my $text = '';
    for my $name (sort keys %conf)
    {
        (my $value = $conf{$name}) =~ s/'/''/g;
        $text .= "$name = '$value'\n";
    }
    $self->append_conf('postgresql.conf', $text);
    return;
}

# configure() and reload, and wait until the server has taken it up.
sub reconfigure
{
    my ($self, %conf) = @_;
    $self->configure(%conf);
    my $before = $self->sql('SELECT pg_conf_load_time()');
    $self->reload;
    $self->wait_until("SELECT pg_conf_load_time() > '$before'");
    return;
}

# Run statements, return what they print; die when one fails.  Options: dbname,
# role (SET ROLE first).
sub sql
{
    my ($self, $sql, %option) = @_;
    $sql = "SET ROLE \"$option{role}\";\n$sql" if $option{role};
    return $self->safe_psql($option{dbname} // 'postgres', $sql);
}

# Run statements that may fail or give notices: {out, err, state, message,
# hint, notices => [...]}; state is '' when all succeeded.
sub try
{
    my ($self, $sql, %option) = @_;
    my ($out, $err) = ('', '');
    $sql = "SET ROLE \"$option{role}\";\n$sql" if $option{role};
    $self->psql(
        $option{dbname} // 'postgres', "\\set VERBOSITY verbose\n$sql",
        stdout => \$out, stderr => \$err, on_error_stop => 1);
    return _outcome($out, $err // '');
}

# What psql printed, taken apart.
sub _outcome
{
    my ($out, $err) = @_;
    my %result = (out => $out, err => $err, state => '', message => '', hint => '');
    if ($err =~ /^(?:psql:\S+ )?(?:ERROR|FATAL):  ([0-9A-Z]{5}): (.*)$/m)
    {
        @result{qw(state message)} = ($1, $2);
    }
    $result{hint} = $1 if $err =~ /^HINT:  (.*)$/m;
    $result{notices} = [ $err =~ /^(?:psql:\S+ )?NOTICE:  (?:[0-9A-Z]{5}: )?(.*)$/mg ];
    return \%result;
}

# Wait until the query gives 't' (or the text expected); at most 180 s.
sub wait_until
{
    my ($self, $query, %option) = @_;
    my $expected = $option{expected} // 't';
    my $end = Time::HiRes::time() + $PostgreSQL::Test::Utils::timeout_default;
    while (1)
    {
        return 1 if eval { $self->poll_query_until($option{dbname} // 'postgres', $query, $expected) };
        # A server in recovery turns psql away before it has read the query.
        die $@ if $@ && $@ !~ /Broken pipe/;
        last if !$@ || Time::HiRes::time() > $end;
        Time::HiRes::usleep(50_000);
    }
    my $why = "never true: $query";
    BAIL_OUT($why) if $option{bail};
    die $why;
}

# Wait until the Perl condition is true; at most 180 s.
sub wait_for
{
    my ($self, $what, $condition) = @_;
    my $end = Time::HiRes::time() + $PostgreSQL::Test::Utils::timeout_default;
    while (1)
    {
        my $result = $condition->();
        return $result if $result;
        die "timed out waiting until $what" if Time::HiRes::time() > $end;
        Time::HiRes::usleep(50_000);
    }
}

# The clock of the extension, from now on; for sessions and senders to come.
# interval '' sets it back.
sub clock_offset
{
    my ($self, $interval, $dbname) = @_;
    $dbname //= 'postgres';
    my $value = $interval eq '' ? 'DEFAULT' : "'$interval'";
    $self->sql("ALTER DATABASE \"$dbname\" SET kliv_mail.test_clock_offset = $value",
        dbname => $dbname);
    return;
}

# Move the clock to noon and five minutes of tomorrow (UTC), so that neither
# midnight nor the turn of an hour comes meanwhile; the seconds moved.
sub clock_to_noon
{
    my ($self) = @_;
    my $offset = $self->sql(q{SELECT extract(epoch FROM
        date_trunc('day', now(), 'UTC') + interval '36 hours 5 minutes' - now())::integer});
    $self->clock_offset("$offset s");
    return $offset;
}

# So many seconds that a few statements are done before, as slow as the machine
# is at present: for the send_at of what is to leave after them.
sub seconds_ahead
{
    my ($self) = @_;
    my $begin = Time::HiRes::time();
    $self->sql('SELECT 1');
    return 3 + 20 * (Time::HiRes::time() - $begin);
}

# Wait until so many deliveries are sent and nothing more can leave now.
sub wait_settled
{
    my ($self, $count) = @_;
    return $self->wait_until("SELECT count(*) FILTER (WHERE status = 'sent') = $count
                                  AND count(*) FILTER (WHERE status IN ('queued', 'sending', 'in_doubt')) = 0
                              FROM kliv_mail.deliveries");
}

# The pids of the background workers of that type ('kliv_mail sender').
sub workers
{
    my ($self, $type, $dbname) = @_;
    my $of = defined $dbname ? "AND datname = '$dbname'" : '';
    return split /\n/,
      $self->sql("SELECT pid FROM pg_stat_activity WHERE backend_type = '$type' $of ORDER BY pid");
}

# A session that stays open: $session->query($sql) gives what it prints,
# errors and notices included; send() and result() are its two halves.
sub session
{
    my ($self, %option) = @_;
    my $session = bless {
        input => '', output => '', count => 0, taken => 0,
        timer => IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default)
    }, 'KlivMail::Cluster::Session';
    local %ENV = $self->_get_env();
    $session->{run} = IPC::Run::start(
        [
            $self->installed_command('psql'), '-XAtq', '-v', 'VERBOSITY=verbose',
            '-d', $self->connstr($option{dbname} // 'postgres')
        ],
        '<', \$session->{input}, '>', \$session->{output}, '2>&1', $session->{timer});
    # It is connected when it is returned: what comes next may refuse new connections.
    $session->query($option{role} ? "SET ROLE \"$option{role}\"" : '');
    return $session;
}

package KlivMail::Cluster::Session;

sub send
{
    my ($self, $sql) = @_;
    $self->{count}++;
    # (a session may have been idle for longer)
    $self->{timer}->start;
    $self->{input} .= "$sql\n;\n\\echo === $self->{count} ===\n";
    $self->{run}->pump_nb;
    return;
}

# The output of the statement sent first of those whose output was not taken.
sub result
{
    my ($self) = @_;
    my $number = ++$self->{taken};
    $self->{timer}->start;
    $self->{run}->pump until $self->{output} =~ s/\A(.*?)^=== $number ===\n//ms;
    my $output = $1;
    chomp $output;
    return $output;
}

sub query
{
    my ($self, $sql) = @_;
    $self->send($sql);
    return $self->result;
}

# query() that dies where a statement fails, and what the cluster's wait_until()
# does, without a psql for each look.
sub sql
{
    my ($self, $sql) = @_;
    my $printed = $self->query($sql);
    die "$sql: $printed" if $printed =~ /^(?:ERROR|FATAL): /m;
    return $printed;
}

sub wait_until
{
    my ($self, $query) = @_;
    return KlivMail::Cluster->wait_for($query, sub { $self->sql($query) eq 't' });
}

# query() with the hash of KlivMail::Cluster's try(); out and err are both all
# that was printed, which is '' when a statement without rows succeeded.
sub try
{
    my ($self, $sql) = @_;
    my $printed = $self->query($sql);
    return KlivMail::Cluster::_outcome($printed, $printed);
}

# Is the output of the next statement complete?  Does not wait.
sub ready
{
    my ($self) = @_;
    my $number = $self->{taken} + 1;
    $self->{run}->pump_nb;
    return $self->{output} =~ /^=== $number ===$/m;
}

sub quit
{
    my ($self) = @_;
    return unless $self->{run};
    $self->{input} .= "\\q\n";
    eval { $self->{run}->finish };
    delete $self->{run};
    return;
}

sub DESTROY
{
    my ($self) = @_;
    # While all is destroyed IPC::Run is half gone; psql ends with its input then.
    return if ${^GLOBAL_PHASE} eq 'DESTRUCT';
    local ($?, $@);
    eval { $self->{run}->kill_kill } if $self->{run};
    return;
}

1;
