# Postfix.pm: a private Postfix on loopback, beside any other of the machine.
#
# Its master process must be root, and PostgreSQL must not.  So whoever is root
# starts it (test/run, demo/run: start() and stop()), and the tests, which are
# somebody else, find it through KLIV_MAIL_POSTFIX:
#
#	my $postfix = KlivMail::Postfix->running or plan skip_all => '...';
#	$postfix->port('clear')       # neither TLS nor AUTH asked for
#	$postfix->port('starttls')    # STARTTLS and AUTH required
#	$postfix->port('tls')         # TLS from the first byte, AUTH required
#	$postfix->ca_file, $postfix->username, $postfix->password
#	$postfix->mails               # each mail received so far, oldest first
#
# Every recipient's mail is delivered into one maildir that the tests may read, but
# for what comes back: unknown@, full@ and policy@remote.example are refused by a
# second server (a listener of the same); ana@, ben@ and eve@moved.example are
# forwarded to where nobody is.
#
# Copyright (c) 2026, the kliv_mail developers
package KlivMail::Postfix;

use strict;
use warnings;
use File::Path ();
use KlivMail::Server;
use KlivMail::Tls;

my $username = 'app';
my $realm = 'mail.example.net';

# start FOLDER USER: as root; the mail is USER's.
sub start
{
    my ($folder, $user) = @_;
    my (undef, undef, $uid, $gid) = getpwnam($user) or die "no user $user";
    my ($postfix_uid, $postfix_gid) = (getpwnam('postfix'))[ 2, 3 ];
    my $password = join '', map { ('a' .. 'z', 0 .. 9)[ rand 36 ] } 1 .. 24;
    my %port = KlivMail::Server::free_ports(qw(clear starttls tls remote));

    File::Path::make_path(map { "$folder/$_" } qw(conf queue data mail));
    chmod 0755, $folder;
    chown $postfix_uid, $postfix_gid, "$folder/data";
    chown $uid, $gid, "$folder/mail";

    my $tls = KlivMail::Tls->new("$folder/tls");
    my ($certificate, $key) = $tls->certificate('postfix');

    # Postfix 3.9 makes one that nobody else may read.
    KlivMail::Server::write_file("$folder/log", '');
    KlivMail::Server::write_file("$folder/conf/main.cf", <<"EOF");
compatibility_level = 3.6
queue_directory = $folder/queue
data_directory = $folder/data
maillog_file = $folder/log
maillog_file_prefixes = $folder
myhostname = $realm
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
local_transport = error:no local mail
virtual_mailbox_domains = static:all
virtual_mailbox_base = $folder
virtual_mailbox_maps = static:mail/
virtual_minimum_uid = 1
virtual_uid_maps = static:$uid
virtual_gid_maps = static:$gid
smtpd_recipient_restrictions = permit
smtpd_restriction_classes = remote
remote = check_recipient_access inline:{
 {unknown\@remote.example=550 5.1.1 User unknown}
 {full\@remote.example=552 5.2.2 Mailbox full}
 {policy\@remote.example=554 5.7.1 Message rejected by policy}}
transport_maps = inline:{
 {remote.example=smtp:[127.0.0.1]:$port{remote}}
 {gone.example=error:5.1.1 nobody is here any more}}
virtual_alias_maps = inline:{ana\@moved.example=x\@gone.example ben\@moved.example=x\@gone.example
 eve\@moved.example=x\@gone.example}
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_tls_cert_file = $certificate
smtpd_tls_key_file = $key
smtpd_tls_security_level = may
smtpd_sasl_local_domain = $realm
smtpd_sasl_security_options = noanonymous
smtpd_tls_auth_only = yes
cyrus_sasl_config_path = $folder/conf/sasl
smtpd_peername_lookup = no
EOF

    my $authenticated = <<'EOF';
 -o smtpd_sasl_auth_enable=yes
 -o smtpd_client_restrictions=permit_sasl_authenticated,reject
EOF
    my $services = join "\n", map { "$_->[0] unix $_->[1] - n - $_->[2] $_->[3]" } (
        [ cleanup => 'n', 0, 'cleanup' ],
        [ qmgr => 'n', 1, 'qmgr' ],
        [ tlsmgr => '-', 1, 'tlsmgr' ],
        [ rewrite => '-', '-', 'trivial-rewrite' ],
        [ bounce => '-', 0, 'bounce' ],
        [ defer => '-', 0, 'bounce' ],
        [ trace => '-', 0, 'bounce' ],
        [ verify => '-', 1, 'verify' ],
        [ proxymap => '-', '-', 'proxymap' ],
        [ error => '-', '-', 'error' ],
        [ retry => '-', '-', 'error' ],
        [ anvil => '-', 1, 'anvil' ],
        [ smtp => '-', '-', 'smtp' ]);
    KlivMail::Server::write_file("$folder/conf/master.cf", <<"EOF");
127.0.0.1:$port{clear} inet n - n - - smtpd
127.0.0.1:$port{remote} inet n - n - - smtpd
 -o smtpd_recipient_restrictions=remote
127.0.0.1:$port{starttls} inet n - n - - smtpd
 -o smtpd_tls_security_level=encrypt
$authenticated
127.0.0.1:$port{tls} inet n - n - - smtpd
 -o smtpd_tls_wrappermode=yes
$authenticated
$services
virtual unix - n n - - virtual
postlog unix-dgram n - n - 1 postlogd
EOF

    mkdir "$folder/conf/sasl";
    KlivMail::Server::write_file("$folder/conf/sasl/smtpd.conf", <<"EOF");
pwcheck_method: auxprop
auxprop_plugin: sasldb
mech_list: PLAIN LOGIN
sasldb_path: $folder/conf/sasldb
EOF
    open my $pipe, '|-', 'saslpasswd2', '-p', '-c', '-f', "$folder/conf/sasldb", '-u', $realm,
      $username
      or die "could not run saslpasswd2: $!";
    print $pipe $password;
    close $pipe or die 'saslpasswd2 failed';
    chown 0, $postfix_gid, "$folder/conf/sasldb";
    chmod 0640, "$folder/conf/sasldb";

    _postfix($folder, 'start');
    KlivMail::Server::write_file("$folder/info", join '', map { "$_->[0]=$_->[1]\n" } (
            [ ca_file => $tls->ca_file ],
            [ username => $username ],
            [ password => $password ],
            map { [ "port_$_" => $port{$_} ] } sort keys %port));
    return;
}

# stop FOLDER: as root; nothing happens where none was started.
sub stop
{
    my ($folder) = @_;
    _postfix($folder, 'stop') if -e "$folder/queue/pid/master.pid";
    return;
}

# The one that was started for this run, or undef.
sub running
{
    my ($class, $folder) = @_;
    $folder //= $ENV{KLIV_MAIL_POSTFIX};
    return unless $folder;
    open my $file, '<', "$folder/info" or die "could not read $folder/info: $!";
    my %self = map { chomp; split /=/, $_, 2 } <$file>;
    return bless { %self, folder => $folder }, $class;
}

sub port { return $_[0]->{"port_$_[1]"} }
sub ca_file { return $_[0]->{ca_file} }
sub username { return $_[0]->{username} }
sub password { return $_[0]->{password} }

sub log
{
    my ($self) = @_;
    return _read("$self->{folder}/log");
}

sub mails
{
    my ($self) = @_;
    return map { _read($_) }
      sort { (stat $a)[9] <=> (stat $b)[9] || $a cmp $b } glob("$self->{folder}/mail/new/*");
}

sub _postfix
{
    my ($folder, $verb) = @_;
    my $output = qx{postfix -c '$folder/conf' $verb 2>&1};
    return if $? == 0;
    $output .= _read("$folder/log") if -e "$folder/log";
    die "postfix $verb failed:\n$output";
}

sub _read
{
    my ($path) = @_;
    open my $file, '<', $path or die "could not read $path: $!";
    local $/;
    return <$file>;
}

1;
