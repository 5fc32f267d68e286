# Relays.pm: Exim and OpenSMTPD, each in a folder that is its whole world (chroot).
#
# A machine has one mail server, and here that is Postfix, or the owner's choice: the
# packages of these two are unpacked (test/lib.sh), never installed.  They bring
# users and paths of their own along, so each runs in a chroot that has just these.
# Only root may do that: whoever is root starts them (test/run: start() and stop()),
# and the tests, which are somebody else, find them through KLIV_MAIL_RELAYS:
#
#	my $relays = KlivMail::Relays->running or plan skip_all => '...';
#	$relays->names                # those that could be had: exim, opensmtpd
#	$relays->port('exim')         # takes mail for everybody
#	$relays->log('exim')
#	my $hop = $relays->hop;       # where they pass it on to: a KlivMail::SmtpServer
#
# What they refuse by themselves, after they have taken it, at exim.example and
# opensmtpd.example:
#	unknown@, mute@     the program that delivers knows no such user, and says so or not
#	full@               a quota
#	later@              OpenSMTPD: a quota, for now
#	alias@, nobody@     Exim: the alias, or no rule at all, says that nobody is there
#	large@              Exim: more than 1 kB is too large
# What cannot be delivered for now is reported after a second, and given up after a
# few.
#
# Copyright (c) 2026, the kliv_mail developers
package KlivMail::Relays;

use strict;
use warnings;
use File::Basename qw(dirname);
use File::Path ();
use IO::Socket::INET;
use KlivMail::Server;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use POSIX ();
use Time::HiRes qw(time usleep);

# The users of each, by numbers that are nobody's; its folders, with their owners.
my ($daemon, $queue, $mail) = (64101, 64102, 64103);
my %server = (
    exim => {
        package  => 'exim4-daemon-light',
        programs => ['/usr/sbin/exim4'],
        users    => { 'Debian-exim' => $daemon, mail => $mail },
        folders  => { '/var/spool/exim4' => $daemon, '/var/log/exim4' => $daemon },
        settings => [ '/etc/exim4/exim4.conf', \&exim_settings ],
        start    => [ '/usr/sbin/exim4', '-bdf', '-q2s' ] },
    opensmtpd => {
        package  => 'opensmtpd',
        programs => [ '/usr/sbin/smtpd', '/usr/sbin/smtpctl', '/usr/libexec/opensmtpd/*' ],
        users    => { opensmtpd => $daemon, opensmtpq => $queue, mail => $mail },
        folders  => { '/var/lib/opensmtpd/empty' => 0, '/var/spool' => 0, '/var/run' => 0 },
        settings => [ '/etc/smtpd.conf', \&opensmtpd_settings ],
        start    => [ '/usr/sbin/smtpd', '-d' ] });

sub exim_settings
{
    my ($port, $hop) = @_;
    return <<"EOF";
primary_hostname = exim.example
qualify_domain = exim.example
local_interfaces = 127.0.0.1
daemon_smtp_ports = $port
disable_ipv6
tls_advertise_hosts =
host_lookup =
rfc1413_query_timeout = 0s
keep_environment =
acl_smtp_rcpt = accept
log_file_path = /var/log/exim4/%slog
delay_warning = 1s
begin routers
local:
  driver = accept
  domains = exim.example
  local_parts = unknown : mute : full
  transport = \$local_part_data
alias:
  driver = redirect
  domains = exim.example
  local_parts = alias
  allow_fail
  data = :fail: no such person here any more
large:
  driver = manualroute
  domains = exim.example
  local_parts = large
  route_list = * $hop->[0]
  self = send
  transport = small
hop:
  driver = manualroute
  domains = ! exim.example
  route_list = * $hop->[0]
  self = send
  transport = hop
begin transports
hop:
  driver = smtp
  port = $hop->[1]
small:
  driver = smtp
  port = $hop->[1]
  message_size_limit = 1K
unknown:
  driver = pipe
  command = /bin/sh -c "echo User unknown; exit 67"
  return_output
  user = mail
mute:
  driver = pipe
  command = /bin/sh -c "exit 67"
  user = mail
full:
  driver = appendfile
  file = /tmp/box
  quota = 1
  user = mail
begin retry
full\@exim.example quota
* * F,4s,2s
EOF
}

sub opensmtpd_settings
{
    my ($port, $hop) = @_;
    my %words = (
        unknown => 'echo User unknown; exit 67', mute => 'exit 67',
        full    => 'echo Disk quota exceeded; exit 69', later => 'echo Disk quota exceeded; exit 75');
    my $settings = <<"EOF";
table everyone { "@" = mail }
bounce warn-interval 1s
queue ttl 4s
listen on 127.0.0.1 port $port hostname opensmtpd.example
action "hop" relay host smtp://$hop->[0]:$hop->[1]
EOF
    for my $user (sort keys %words)
    {
        $settings .= qq{action "$user" mda "$words{$user}" virtual <everyone>\n}
          . qq{match from any for domain "opensmtpd.example" rcpt-to "$user\@opensmtpd.example" action "$user"\n};
    }
    return $settings . qq{match from any for any action "hop"\n};
}

# start FOLDER PACKAGES: as root; in PACKAGES each has a folder that was unpacked.
sub start
{
    my ($folder, $packages) = @_;
    my @names = grep { -d "$packages/$server{$_}{package}" } sort keys %server;
    my %port = KlivMail::Server::free_ports(@names, 'hop');
    # An address at which nobody else listens, since the tests do not do so yet.
    my $hop = [ join('.', 127, map { 1 + int rand 254 } 1 .. 3), $port{hop} ];

    File::Path::make_path($folder);
    chmod 0755, $folder;
    my $authority = KlivMail::SmtpServer::slurp(KlivMail::Tls->new("$folder/tls")->ca_file);
    for my $name (@names)
    {
        my $root = "$folder/$name";
        my ($path, $settings) = @{ $server{$name}{settings} };
        make_root($root, "$packages/$server{$name}{package}", $server{$name});
        KlivMail::Server::write_file("$root$path", $settings->($port{$name}, $hop));
        # OpenSMTPD 7 does not start without.
        KlivMail::Server::write_file("$root/etc/ssl/certs/ca-certificates.crt", $authority);
        run_in($root, "$folder/$name", @{ $server{$name}{start} });
        my $end = time + 60;
        until (IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port{$name}))
        {
            die "$name did not start:\n" . KlivMail::SmtpServer::slurp("$folder/$name.log") if time > $end;
            usleep(20_000);
        }
    }
    KlivMail::Server::write_file("$folder/info", join '', "names=@names\n", "hop=@$hop\n", map { "port_$_=$port{$_}\n" } @names);
    return;
}

# What a server has to see: its programs, their libraries, its users.
sub make_root
{
    my ($root, $unpacked, $server) = @_;
    my $library_path = join ':', glob "$unpacked/usr/lib/*-linux-* $unpacked/lib/*-linux-*";
    my %copy = ('/bin/sh' => '/bin/sh');
    $copy{ substr $_, length $unpacked } = $_ for map { glob "$unpacked$_" } @{ $server->{programs} };
    for my $program (values %copy)
    {
        for my $library (qx{LD_LIBRARY_PATH='$library_path' ldd '$program' 2>/dev/null} =~ m{(/\S+)}g)
        {
            $copy{ $library =~ s/^\Q$unpacked\E//r } = $library;
        }
    }
    my %folders = (%{ $server->{folders} }, map { $_ => 0 } '/dev', '/tmp', '/etc/ssl/certs', '/nowhere', dirname($server->{settings}[0]));
    File::Path::make_path(map { $root . $_ } keys %folders, map { dirname($_) } keys %copy);
    for my $path (keys %copy)
    {
        # (with its modes: Exim has the set-user-id bit)
        system('cp', '-Lp', $copy{$path}, "$root$path") == 0 or die "could not copy $copy{$path}";
    }
    chmod 01777, "$root/tmp";
    chown $folders{$_}, $folders{$_}, "$root$_" for keys %folders;
    system('mknod', '-m', '666', "$root/dev/null", 'c', 1, 3) == 0 or die 'could not make /dev/null';

    my %users = (root => 0, %{ $server->{users} });
    KlivMail::Server::write_file("$root/etc/passwd", join '', map { "$_:x:$users{$_}:$users{$_}::/nowhere:/bin/sh\n" } sort keys %users);
    KlivMail::Server::write_file("$root/etc/group", join '', map { "$_:x:$users{$_}:\n" } sort keys %users);
    return;
}

# In a session of its own, whose number and output are left beside it.
sub run_in
{
    my ($root, $files, @command) = @_;
    my $pid = fork // die "fork: $!";
    if ($pid == 0)
    {
        POSIX::setsid();
        open STDIN, '<', '/dev/null' or POSIX::_exit(1);
        open STDOUT, '>', "$files.log" or POSIX::_exit(1);
        open STDERR, '>&', \*STDOUT or POSIX::_exit(1);
        umask 022;
        %ENV = (PATH => '/usr/sbin:/usr/bin:/bin');
        chroot $root and chdir '/' and exec @command;
        POSIX::_exit(1);
    }
    KlivMail::Server::write_file("$files.pid", $pid);
    return;
}

# stop FOLDER: as root; nothing happens where none was started.
sub stop
{
    my ($folder) = @_;
    for my $file (glob "$folder/*.pid")
    {
        my $group = KlivMail::SmtpServer::slurp($file);
        my $end = time + 10;
        kill 'TERM', -$group;
        usleep(20_000) while kill(0, -$group) && time < $end;
        kill 'KILL', -$group;
    }
    return;
}

# Those that were started for this run, or undef.
sub running
{
    my ($class) = @_;
    my $folder = $ENV{KLIV_MAIL_RELAYS} || return;
    my %self = map { split /=/, $_, 2 } split /\n/, KlivMail::SmtpServer::slurp("$folder/info");
    return bless { %self, folder => $folder }, $class;
}

sub names { return split / /, $_[0]{names}; }
sub port { return $_[0]{"port_$_[1]"}; }
sub log { return KlivMail::SmtpServer::slurp("$_[0]{folder}/$_[1].log"); }

sub hop
{
    my ($self, %option) = @_;
    my ($address, $port) = split / /, $self->{hop};
    my $server = KlivMail::SmtpServer->start(plain => 1, address => $address, plain_port => $port, %option);
    $server->{behind_relay} = 1;
    return $server;
}

1;
