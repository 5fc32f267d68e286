# kliv_mail.ca_file stands beside the system's authorities: a server of one's own and
# a provider's are both known.
use strict;
use warnings;
use File::Copy qw(copy);
use KlivMail::Cluster;
use KlivMail::Names;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
mkdir "$folder/certs" or die;
# (OpenSSL looks for an issuer by its name)
my %tls = map { $_ => KlivMail::Tls->new("$folder/$_", "the $_ authority") } qw(own system stranger);
my $names = KlivMail::Names->new($folder);
my $hash = `openssl x509 -hash -noout -in @{[ $tls{system}->ca_file ]}`;
chomp $hash;
copy($tls{system}->ca_file, "$folder/certs/$_") or die for "$hash.0", 'ca-certificates.crt';

my %smtp;
for my $who (sort keys %tls)
{
    my ($cert, $key) = $tls{$who}->certificate('good');
    $smtp{$who} = KlivMail::SmtpServer->start(tls => 1, cert => $cert, key => $key);
}
my $node = KlivMail::Cluster->new('main', start => 0, conf => { 'kliv_mail.allowed_hosts' => '127.0.0.1, localhost' });
{
    local %ENV = (%ENV, $names->environment, KLIV_MAIL_TEST_CERTS => "$folder/certs");
    $node->start;
}
$node->sql('CREATE EXTENSION kliv_mail CASCADE');
# An expression on the handshake with that server.
sub tls_of
{
    my ($who, $expression) = @_;
    return sprintf q{SELECT %s FROM kliv_mail.test_smtp(host => 'localhost', port => %d, encryption => 'tls', username => '', from_address => 'a@example.com')
        WHERE step = 'tls'}, $expression, $smtp{$who}->port;
}
sub known { return $node->sql(tls_of($_[0], 'ok')); }
is(known('own'), 'f', 'an authority of one\'s own is not known at first');
is(known('system'), 't', 'one of the system is');
$node->reconfigure('kliv_mail.ca_file' => $tls{own}->ca_file);
is(known('own'), 't', 'with ca_file one\'s own is known');
is(known('system'), 't', '... and the system\'s still are');
is(known('stranger'), 'f', 'another one is not');
unlink "$folder/certs/ca-certificates.crt" or die;
is(known('system'), 't', 'the system may have a folder alone');
unlink "$folder/certs/$hash.0" or die;
is(known('system') . known('own'), 'ft', '... or nothing');
copy($tls{system}->ca_file, "$folder/certs/ca-certificates.crt") or die;
is(known('system') . known('own'), 'tt', '... or a file alone');
$node->reconfigure('kliv_mail.ca_file' => "$folder/none.crt");
like($node->sql(tls_of('own', q{detail || ' ' || hint})), qr/could not be read: .*none\.crt.*mend kliv_mail\.ca_file/, 'a ca_file that cannot be read is named');
$node->stop;

done_testing();
