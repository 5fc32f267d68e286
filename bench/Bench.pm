# Bench.pm: what the benchmarks share: a client without a layer between it and
# the socket, figures, and a cluster that is as durable as a real one.
#
# Copyright (c) 2026, the kliv_mail developers
package Bench;

use strict;
use warnings;
use IO::Socket::INET;
use IO::Socket::UNIX;
use KlivMail::Cluster;
use Test::More;
use Time::HiRes ();

# PostgreSQL's test modules send STDOUT and STDERR to a log file; this is the terminal.
sub say
{
    print { Test::More->builder->output } @_, "\n";
    return;
}

$SIG{__DIE__} = sub { say(@_) unless $^S // 1 };

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

# ---- a session, by PostgreSQL's protocol itself ----

sub connect
{
    my ($class, $node) = @_;
    my $socket = IO::Socket::UNIX->new(Peer => $node->host . '/.s.PGSQL.' . $node->port)
      or die "could not connect: $!";
    my $self = bless { socket => $socket, buffer => '' }, $class;
    my $start = pack('N', 196608) . "user\0" . getpwuid($<) . "\0database\0postgres\0\0";
    syswrite $socket, pack('N', 4 + length $start) . $start;
    $self->_until_ready;
    $self->query("SET client_min_messages = error; SET application_name = 'bench'");
    return $self;
}

# Run a simple query; the first column of the last row.
sub query
{
    my ($self, $sql) = @_;
    syswrite $self->{socket}, 'Q' . pack('N', 5 + length $sql) . $sql . "\0";
    return $self->_until_ready;
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
