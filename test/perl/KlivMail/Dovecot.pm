# Dovecot.pm: a Dovecot of our own, run as the user of the tests, with one mailbox.
#
#	my $dovecot = KlivMail::Dovecot->start($tls);    # a KlivMail::Tls
#	$dovecot->port('tls'), $dovecot->port('starttls');
#	$dovecot->username, $dovecot->password;
#	$dovecot->deliver(@mails);                  # into the inbox
#	my @files = $dovecot->mails('kliv_mail');   # of a mailbox ('' is the inbox)
#	$dovecot->logins;                           # how many there were
#	$dovecot->set(without => 'MOVE');           # capabilities that it denies
#	$dovecot->set(password => 'other');         # or certificate and key
#	$dovecot->make('Bounces');                  # another mailbox
#	$dovecot->rename('Bounces', 'Elsewhere');
#	$dovecot->change_uidvalidity;
#	$dovecot->stop;
#	$dovecot->run;                              # again
#
# Copyright (c) 2026, the kliv_mail developers
package KlivMail::Dovecot;

use strict;
use warnings;
use File::Path ();
use IO::Socket::INET;
use IPC::Run ();
use KlivMail::Server;
use PostgreSQL::Test::Utils ();
use Time::HiRes ();

my $binary = '/usr/sbin/dovecot';

sub start
{
    my ($class, $tls) = @_;
    my $folder = PostgreSQL::Test::Utils::tempdir_short();
    my ($certificate, $key) = $tls->certificate('dovecot');
    my $self = bless {
        folder => $folder, certificate => $certificate, key => $key, owner => $$,
        password => 'Mbx-S3cret pass"word\\', count => 0,
        port => { KlivMail::Server::free_ports('tls', 'starttls') } }, $class;
    File::Path::make_path(map { "$folder/mail/$_" } 'new', 'cur', 'tmp');
    $self->_configure;
    return $self->run;
}

sub run
{
    my ($self) = @_;
    $self->_run($binary, '-c', "$self->{folder}/dovecot.conf");
    for my $kind ('tls', 'starttls')
    {
        my $end = time + $PostgreSQL::Test::Utils::timeout_default;
        until (IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->port($kind)))
        {
            die 'Dovecot did not start: ' . $self->log if time > $end;
            Time::HiRes::usleep(20_000);
        }
    }
    return $self;
}

sub port { return $_[0]{port}{ $_[1] }; }
sub username { return 'bounces@shop.example'; }
sub password { return $_[0]{password}; }
sub log { return PostgreSQL::Test::Utils::slurp_file("$_[0]{folder}/log"); }
sub logins { return scalar(() = $_[0]->log =~ /imap-login: Login: /g); }

# As a mail server does it: written aside, then moved into the inbox; a mail's bytes each.
sub deliver
{
    my ($self, @mails) = @_;
    for my $mail (@mails)
    {
        my $name = sprintf '%d.%06d.test', time, ++$self->{count};
        open my $file, '>:raw', "$self->{folder}/mail/tmp/$name" or die "could not write a mail: $!";
        print $file $mail;
        close $file or die "could not write a mail: $!";
        CORE::rename "$self->{folder}/mail/tmp/$name", "$self->{folder}/mail/new/$name" or die "could not deliver: $!";
    }
    return;
}

# The files of a mailbox, in the order in which they were delivered.
sub mails
{
    my ($self, $mailbox) = @_;
    my $folder = "$self->{folder}/mail" . ($mailbox eq '' ? '' : "/.$mailbox");
    my %path = map { (m{([^/]*)$})[0] => $_ } glob("$folder/new/* $folder/cur/*");
    return map { $path{$_} } sort keys %path;
}

# without: a list of capabilities that it denies; password: another one.
sub set
{
    my ($self, %change) = @_;
    $self->{$_} = $change{$_} for keys %change;
    $self->_configure;
    $self->_run('/usr/bin/doveadm', '-c', "$self->{folder}/dovecot.conf", 'reload');
    return;
}

sub make { my ($self, $name) = @_; File::Path::make_path(map { "$self->{folder}/mail/.$name/$_" } 'new', 'cur', 'tmp'); return; }
sub rename { my ($self, $from, $to) = @_; CORE::rename "$self->{folder}/mail/.$from", "$self->{folder}/mail/.$to" or die "could not rename: $!"; return; }

# As after a restore of the server: the same mails under other numbers.
sub change_uidvalidity
{
    my ($self) = @_;
    unlink glob("$self->{folder}/mail/dovecot* $self->{folder}/mail/.[a-z]*/dovecot*");
    return;
}

sub stop
{
    my ($self) = @_;
    $self->_run('/usr/bin/doveadm', '-c', "$self->{folder}/dovecot.conf", 'stop') if delete $self->{running};
    return;
}

sub DESTROY
{
    my ($self) = @_;
    local ($?, $@);
    eval { $self->stop } if $self->{owner} == $$;
    return;
}

sub _configure
{
    my ($self) = @_;
    my $folder = $self->{folder};
    my $user = getpwuid($<);
    my ($gid) = split / /, $(;
    my $group = getgrgid($gid);
    my $capability = 'IMAP4rev1 LITERAL+ ID ENABLE IDLE NAMESPACE UIDPLUS MOVE';
    $capability =~ s/ $_\b// for split / /, $self->{without} // '';
    my ($first, $own) = ('', <<"EOF");
disable_plaintext_auth = yes
ssl_cert = <$self->{certificate}
ssl_key = <$self->{key}
mail_location = maildir:$folder/mail
userdb {
  driver = static
  args = uid=$< gid=$gid home=$folder/home
}
passdb {
  driver = passwd-file
  args = username_format=%u $folder/users
}
EOF
    # 2.4 has other words for these, and wants to know first whose they are.
    ($first, $own) = (<<"FIRST", <<"OWN") if `$binary --version` !~ /^2\.[0-3]\./;
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
FIRST
auth_allow_cleartext = no
ssl_server_cert_file = $self->{certificate}
ssl_server_key_file = $self->{key}
mail_driver = maildir
mail_path = $folder/mail
userdb static {
  fields {
    uid = $<
    gid = $gid
    home = $folder/home
  }
}
passdb passwd-file {
  passwd_file_path = $folder/users
}
OWN
    KlivMail::Server::write_file("$folder/users", $self->username . ':{PLAIN.HEX}' . unpack('H*', $self->{password}) . "\n");
    KlivMail::Server::write_file("$folder/dovecot.conf", <<"EOF");
${first}protocols = imap
listen = 127.0.0.1
base_dir = $folder/run
state_dir = $folder/state
log_path = $folder/log
default_internal_user = $user
default_internal_group = $group
default_login_user = $user
auth_mechanisms = plain
ssl = required
imap_capability = $capability
mail_max_userip_connections = 100
mailbox_list_index = no
first_valid_uid = 1
auth_failure_delay = 0
${own}service anvil {
  chroot =
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
service stats {
  chroot =
}
service imap-login {
  chroot =
  inet_listener imap {
    port = $self->{port}{starttls}
  }
  inet_listener imaps {
    port = $self->{port}{tls}
    ssl = yes
  }
}
EOF
    return;
}

sub _run
{
    my ($self, @command) = @_;
    # (a file: Dovecot keeps its output open)
    my $output = "$self->{folder}/output";
    IPC::Run::run(\@command, '<', '/dev/null', '>', $output, '2>&1')
      or die "@command failed:\n" . PostgreSQL::Test::Utils::slurp_file($output);
    $self->{running} = 1 if $command[0] eq $binary;
    return;
}

1;
