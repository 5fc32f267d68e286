# KlivMail::SmtpServer: start and question test/smtp_server.py.
#
#   my $smtp = KlivMail::SmtpServer->start(
#       tls => 1, starttls => 1, cert => $cert, key => $key,
#       auth => ['user:secret'], delay_dot => 50, durable => 1);
#   $smtp->port('tls');                 # plain, starttls, tls; without a name the only one
#   $smtp->set(rcpt_reply => '451 4.3.0 later');
#   $smtp->wait_for_count(3, 30) or die;
#   $smtp->message(($smtp->accepted)[0]);       # the bytes
#   $smtp->stop;
#
# The options are those of smtp_server.py, with underscores; a list repeats
# one, a true value of 1 for an option without argument.  The server ends with
# stop(), with the object, or with this process.
#
# Copyright (c) 2026, the kliv_mail developers

package KlivMail::SmtpServer;

use strict;
use warnings;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Path qw(remove_tree);
use File::Temp qw(tempdir);
use IO::Select;
use IO::Socket::UNIX;
use JSON::PP;
use KlivMail::RawMessages;
use POSIX ();
use Socket qw(SOCK_STREAM);
use Time::HiRes qw(sleep time);

# Options that take no argument.
my %FLAG = map { $_ => 1 } qw(plain starttls tls durable no_transcript record_clear silent
  no_starttls no_auth no_pipelining no_size no_eightbitmime auth_in_clear smtputf8 dsn
  limit_close lax_data ignore_initial quit_binary);

my $PROGRAM = abs_path(dirname(__FILE__) . '/../../smtp_server.py');

sub start
{
	my ($class, %option) = @_;

	# A short path of our own: a Unix socket's may have 107 bytes at most.
	my $dir = delete $option{dir};
	my $own = !defined $dir;
	$dir = tempdir('klm_smtp_XXXXXX', TMPDIR => 1) if $own;

	my @command = ('/usr/bin/python3', $PROGRAM, '--dir', $dir, '--control', '--die-with-parent');
	foreach my $name (sort keys %option)
	{
		my $value = $option{$name};
		my $switch = '--' . $name =~ tr/_/-/r;
		next unless defined $value;
		if ($FLAG{$name})
		{
			push @command, $switch if $value;
		}
		else
		{
			push @command, "$switch=$_" foreach ref $value ? @$value : $value;
		}
	}

	# Its standard input ends with us, its standard output tells the ports.
	pipe(my $stdin_read, my $stdin_write) or die "pipe: $!";
	pipe(my $stdout_read, my $stdout_write) or die "pipe: $!";
	my $pid = fork();
	die "fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		open(STDIN, '<&', $stdin_read) or POSIX::_exit(1);
		open(STDOUT, '>&', $stdout_write) or POSIX::_exit(1);
		{ no warnings 'exec'; exec @command; }
		POSIX::_exit(127);
	}
	close $stdin_read;
	close $stdout_write;

	my $self = bless {
		pid => $pid,
		owner => $$,
		stdin => $stdin_write,
		dir => $dir,
		own_dir => $own,
		offset => 0,
		events => [],
	}, $class;
	my $line = IO::Select->new($stdout_read)->can_read(180) ? <$stdout_read> : undef;
	die "the SMTP server did not start: @command\n" unless defined $line;
	$self->{ports} = decode_json($line);
	delete $self->{ports}{pid};
	KlivMail::RawMessages::server($self);
	return $self;
}

sub pid { return $_[0]{pid}; }
sub dir { return $_[0]{dir}; }
sub ports { return { %{ $_[0]{ports} } }; }

sub port
{
	my ($self, $kind) = @_;
	if (!defined $kind)
	{
		my @kinds = keys %{ $self->{ports} };
		die "which port: @kinds?" if @kinds != 1;
		$kind = $kinds[0];
	}
	return $self->{ports}{$kind} // die "no $kind listener";
}

# ---- what happened ----

# Every event so far, or those of one kind ('message', 'connect', 'auth',
# 'refused', 'violation', 'end'), as hashes; those after the first $skip only.
sub ledger
{
	my ($self, $kind, $skip) = @_;
	open(my $file, '<:raw', "$self->{dir}/ledger.jsonl") or die "ledger: $!";
	seek($file, $self->{offset}, 0);
	while (my $line = <$file>)
	{
		last unless $line =~ /\n\z/;
		$self->{offset} += length $line;
		push @{ $self->{events} }, decode_json($line);
	}
	my @events = @{ $self->{events} }[ $skip // 0 .. $#{ $self->{events} } ];
	return grep { !defined $kind || $_->{event} eq $kind } @events;
}

# The accepted messages, those for one recipient if named.
sub accepted
{
	my ($self, $recipient) = @_;
	return grep { !defined $recipient || grep { $_ eq $recipient } @{ $_->{rcpt} } }
	  $self->ledger('message');
}

sub count { return scalar($_[0]->ledger('message')); }

# How often each Message-ID and recipient was accepted: { "id rcpt" => n }.
sub copies
{
	my ($self) = @_;
	my %copies;
	foreach my $entry ($self->accepted)
	{
		$copies{"$entry->{message_id} $_"}++ foreach @{ $entry->{rcpt} };
	}
	return \%copies;
}

# The bytes of an accepted message as they came, dots unstuffed.
sub message
{
	my ($self, $entry) = @_;
	open(my $file, '<:raw', "$self->{dir}/messages.raw") or die "messages: $!";
	seek($file, $entry->{offset}, 0);
	read($file, my $bytes, $entry->{size}) // die "messages: $!";
	return $bytes;
}

# Wait until something is true; its value, or false at the timeout (seconds).
sub wait_for
{
	my ($self, $condition, $timeout) = @_;
	my $end = time() + ($timeout // 60);
	while (1)
	{
		my $value = $condition->($self);
		return $value if $value;
		return 0 if time() >= $end;
		sleep 0.02;
	}
}

# Wait for n accepted messages.
sub wait_for_count
{
	my ($self, $n, $timeout) = @_;
	return $self->wait_for(sub { $self->count >= $n }, $timeout);
}

# What was said: "conn tls|clear > line" and "< line".
sub transcript { return slurp("$_[0]{dir}/transcript.txt"); }

# With record_clear: every byte that came outside of TLS.
sub clear_bytes { return slurp("$_[0]{dir}/clear.raw"); }

sub slurp
{
	my ($path) = @_;
	open(my $file, '<:raw', $path) or die "$path: $!";
	local $/;
	return <$file> // '';
}

# ---- control ----

sub request
{
	my ($self, $request) = @_;
	my $socket = IO::Socket::UNIX->new(Type => SOCK_STREAM, Peer => "$self->{dir}/control.sock")
	  or die "control socket: $!";
	print $socket encode_json($request) . "\n";
	$socket->flush;
	my $line = <$socket> // die 'the SMTP server closed its control socket';
	my $answer = decode_json($line);
	die "the SMTP server: $answer->{error}" if $answer->{error};
	return $answer;
}

# Change settings of DEFAULTS in smtp_server.py (also cert and key together,
# auth => [...], plays => { local => ['dot', '550 ...'] }).
sub set
{
	my ($self, %change) = @_;
	foreach my $name (keys %change)
	{
		# Numbers and booleans as such.
		$change{$name} += 0
		  if defined $change{$name} && !ref $change{$name} && $change{$name} =~ /\A-?\d+\z/;
	}
	$self->request({ set => \%change });
	return;
}

sub drop_connections { $_[0]->request({ drop => JSON::PP::true }); return; }
sub release { $_[0]->request({ release => JSON::PP::true }); return; }
sub resume { $_[0]->request({ resume => JSON::PP::true }); return; }

# { open, peak (since the last call), connections, accepted }
sub state { return $_[0]->request({ state => JSON::PP::true }); }

sub stop
{
	my ($self) = @_;
	my $pid = delete $self->{pid} // return;
	kill 'TERM', $pid;
	close $self->{stdin};
	waitpid($pid, 0);
	return;
}

sub DESTROY
{
	my ($self) = @_;
	return if $self->{owner} != $$;
	local ($?, $!, $@);
	$self->stop;
	KlivMail::RawMessages::ledger($self);
	remove_tree($self->{dir}) if $self->{own_dir};
	return;
}

1;
