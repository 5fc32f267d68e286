# Passwords and tokens as they are: every character, every length, by each of
# the three arguments and from a database in another encoding, arrive at the
# server as they were given; and mechanisms that nobody shares are named.
use strict;
use warnings;
use utf8;
use Encode qw(encode);
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $tls = KlivMail::Tls->new("$folder/tls");
my ($certificate, $key) = $tls->certificate('good');
my $smtp = KlivMail::SmtpServer->start(tls => 1, cert => $certificate, key => $key);
my $node = KlivMail::Cluster->new('main', conf => { 'kliv_mail.allowed_hosts' => 'localhost', 'kliv_mail.ca_file' => $tls->ca_file });
my $to = "host => 'localhost', port => " . $smtp->port . ", encryption => 'tls', username => 'app', from_address => 'shop\@shop.example'";

# By the bytes of its text in UTF-8, so that no encoding of psql's stands between.
sub works
{
    my ($name, $password, $argument, %option) = @_;
    $smtp->set(auth => ["app:$password"], auth_mechanisms => $option{mechanisms} // 'PLAIN LOGIN');
    my $more = $option{more} // '';
    my $result = $node->try("SELECT * FROM kliv_mail.configure_smtp($to, $argument$more)", dbname => $option{dbname} // 'postgres');
    is($result->{state}, '', $name) or diag("$result->{err}");
    return;
}
sub text_of { my ($password) = @_; return "convert_from('\\x" . unpack('H*', encode('UTF-8', $password)) . "', 'UTF8')"; }

my %database = (latin1 => 'LATIN1', euc_jp => 'EUC_JP', ascii => 'SQL_ASCII');
for my $name (sort keys %database)
{
    $node->sql("CREATE DATABASE $name TEMPLATE template0 ENCODING '$database{$name}' LOCALE 'C'");
    $node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => $name);
}

my $odd = '§ % \\ / $ ; # "quoted" \'single\' {}<>&|`~^ with  blanks';
works("odd characters", $odd, 'password => ' . text_of($odd));
works('... at both ends a blank', ' x ', q{password => ' x '});
works("600 characters by $_", 'x' x 600, "password => repeat('x', 600)", mechanisms => $_) for 'PLAIN', 'LOGIN';
my $file = "$folder/password";
append_to_file($file, encode('UTF-8', $odd) . "\n");
works('... from a file', $odd, "password_file => '$file'");
works('from LATIN1', 'pässwörd §', 'password => ' . text_of('pässwörd §'), dbname => 'latin1');
works('from EUC_JP', '鍵 § 秘密', 'password => ' . text_of('鍵 § 秘密'), dbname => 'euc_jp');
works('from SQL_ASCII', '鍵 pässwörd', "password => convert_from('\\x" . unpack('H*', encode('UTF-8', '鍵 pässwörd')) . "', 'SQL_ASCII')", dbname => 'ascii');
SKIP:
{
    run_command([ '/usr/bin/python3', '-c', 'import nacl' ]);
    skip 'no PyNaCl for /usr/bin/python3', 1 if $?;
    my $public = $node->sql(q{SELECT encode(kliv_mail.public_key(), 'hex')}, dbname => 'euc_jp');
    my ($box) = run_command([ '/usr/bin/python3', '-c',
        'import sys; from nacl.public import PublicKey, SealedBox; print(SealedBox(PublicKey(bytes.fromhex(sys.argv[1]))).encrypt(bytes.fromhex(sys.argv[2])).hex())',
        $public, unpack('H*', encode('UTF-8', "custom\nlocalhost\n$odd 鍵")) ]);
    works('from a box, in EUC_JP', "$odd 鍵", "password_sealed => '\\x$box'", dbname => 'euc_jp');
}

# ---- tokens ----

for my $length (400, 504, 505, 3000, 8000)
{
    my $token = 'y' x $length;
    works("a token of $length characters", $token, "password => repeat('y', $length), auth => 'oauth2'", mechanisms => 'XOAUTH2');
}
is($node->try("SELECT * FROM kliv_mail.configure_smtp($to, password => repeat('y', 8193), auth => 'oauth2')")->{state}, '54000', 'a longer one is refused');

# A token that is over: what comes next is in the hint, and a new one frees the mail.
my $id;
{
    $smtp->set(auth => ['app:the new token'], auth_mechanisms => 'XOAUTH2');
    $id = $node->sql(q{SELECT kliv_mail.send('ana@customer.example', 'x', 'x')});
    $node->wait_until("SELECT held_by = 'account' FROM kliv_mail.deliveries WHERE message_id = $id");
    my $hint = $node->sql("SELECT hint FROM kliv_mail.deliveries WHERE message_id = $id");
    like($hint, qr/configure_smtp/, 'a token that expired: the mail says which call gives another');
    is($node->try("SELECT * FROM kliv_mail.configure_smtp(password => 'the new token')")->{state}, '', '... which is one argument');
    is($node->sql("SELECT kliv_mail.wait($id, '30 s')"), 'sent', '... and ends the hold');
}

$node->stop;
done_testing();
