# Tls.pm: a certificate authority for the tests, made anew in each run.
#
#	my $tls = KlivMail::Tls->new($folder);
#	$tls->ca_file                                   # for kliv_mail.ca_file
#	my ($cert, $key) = $tls->certificate('good');   # for localhost, 127.0.0.1, ::1
#	$tls->certificate('expired', expired => 1);
#	$tls->certificate('other', hosts => ['mail.other.example']);
#	$tls->certificate('self', self_signed => 1);
#
# Copyright (c) 2026, the kliv_mail developers
package KlivMail::Tls;

use strict;
use warnings;
use KlivMail::Server;
use File::Path ();
use POSIX ();

sub new
{
    my ($class, $folder, $name) = @_;
    my $self = bless { folder => $folder }, $class;
    File::Path::make_path($folder);
    KlivMail::Server::write_file("$folder/ca.cnf", <<"EOF");
[ca]
default_ca = tests
[tests]
database = $folder/index
rand_serial = yes
new_certs_dir = $folder
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
EOF
    KlivMail::Server::write_file("$folder/index", '');
    $self->_key('ca');
    _openssl(
        'req', '-new', '-x509', '-config', "$folder/ca.cnf", '-extensions', 'authority',
        '-key', "$folder/ca.key", '-subj', '/CN=' . ($name // 'kliv_mail test authority'),
        '-days', '30', '-out', "$folder/ca.crt");
    return $self;
}

sub ca_file
{
    my ($self) = @_;
    return "$self->{folder}/ca.crt";
}

# (certificate file, key file).  Options: hosts, expired, self_signed.
sub certificate
{
    my ($self, $name, %option) = @_;
    my $folder = $self->{folder};
    my @hosts = @{ $option{hosts} // [ 'localhost', '127.0.0.1', '::1' ] };
    my $alternatives = join ',', map { (/^[0-9.]+$|:/ ? 'IP:' : 'DNS:') . $_ } @hosts;
    my $day = 86400;
    my ($from, $to) = $option{expired} ? (-20 * $day, -2 * $day) : (-$day, 20 * $day);

    KlivMail::Server::write_file("$folder/$name.cnf", <<"EOF");
[server]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth
subjectAltName = $alternatives
[req]
distinguished_name = name
[name]
EOF
    $self->_key($name);
    if ($option{self_signed})
    {
        _openssl(
            'req', '-new', '-x509', '-config', "$folder/$name.cnf", '-extensions', 'server',
            '-key', "$folder/$name.key", '-subj', "/CN=$hosts[0]", '-days', '30',
            '-out', "$folder/$name.crt");
    }
    else
    {
        _openssl(
            'req', '-new', '-config', "$folder/$name.cnf", '-key', "$folder/$name.key",
            '-subj', "/CN=$hosts[0]", '-out', "$folder/$name.csr");
        _openssl(
            'ca', '-batch', '-notext', '-config', "$folder/ca.cnf", '-cert', "$folder/ca.crt",
            '-keyfile', "$folder/ca.key", '-extfile', "$folder/$name.cnf",
            '-extensions', 'server', '-startdate', _time($from), '-enddate', _time($to),
            '-in', "$folder/$name.csr", '-out', "$folder/$name.crt");
    }
    return ("$folder/$name.crt", "$folder/$name.key");
}

sub _key
{
    my ($self, $name) = @_;
    _openssl('ecparam', '-name', 'prime256v1', '-genkey', '-noout',
        '-out', "$self->{folder}/$name.key");
    return;
}

sub _time
{
    my ($offset) = @_;
    return POSIX::strftime('%Y%m%d%H%M%SZ', gmtime(time + $offset));
}

# Quiet unless it fails.
sub _openssl
{
    my @command = @_;
    my $output = qx{openssl @{[map { "'$_'" } @command]} 2>&1};
    die "openssl @command failed:\n$output" if $? != 0;
    return;
}

1;
