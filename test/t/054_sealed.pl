# password_sealed: the two clients of the README seal a password that the server
# opens, before and after rotate_key(), and that nobody meets on the way.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::Npm;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my %block = slurp_file('README.md') =~ /^```(python|js)\n(.*?)^```$/msg;
is(join(' ', sort keys %block), 'js python', 'README.md has a client in Python and one in Node');

my $tls = KlivMail::Tls->new("$folder/tls");
my ($certificate, $key) = $tls->certificate('good');
my $smtp = KlivMail::SmtpServer->start(tls => 1, cert => $certificate, key => $key);
my $node = KlivMail::Cluster->new(
    'main',
    conf => {
        'kliv_mail.allowed_hosts'   => 'localhost',
        'kliv_mail.ca_file'         => $tls->ca_file,
        log_statement               => 'all',
        log_min_duration_statement  => 0
    });
sub accepts { my ($password) = @_; utf8::decode($password); $smtp->set(auth => ["app:$password"]); return; }

accepts('the first one');
is($node->try(q{SELECT * FROM kliv_mail.configure_smtp(host => 'localhost', port => } . $smtp->port
          . q{, encryption => 'tls', username => 'app', from_address => 'shop@shop.example', password => 'the first one')})->{state}, '', 'an account with another password');
my $public = $node->sql(q{SELECT encode(kliv_mail.public_key(), 'hex')});
is(length($public), 64, 'public_key() gives 32 bytes');
is($node->sql(q{SELECT encode(kliv_mail.public_key(), 'hex')}), $public, '... the same each time');
is($node->sql(q{SELECT kliv_mail.public_key(), kliv_mail._sealing_host('custom', NULL, NULL, 'localhost')}), "\\x$public|localhost", '... also beside what needs memory of its own');
for ([ q{'custom', NULL, NULL, NULL}, 'localhost' ], [ q{'custom', '', NULL, 'mail.example.com'}, 'mail.example.com' ], [ q{'other', 'gmail', NULL, NULL}, 'smtp.gmail.com' ],
    [ q{'other', 'mailgun', 'eu', NULL}, 'smtp.eu.mailgun.org' ], [ q{'other', 'ses', 'eu-west-1', NULL}, 'email-smtp.eu-west-1.amazonaws.com' ],
    [ q{'other', 'ses', 'nowhere', NULL}, '' ], [ q{'other', 'sakura', NULL, NULL}, '' ], [ q{'other', 'nobody', NULL, NULL}, '' ])
{
    is($node->sql("SELECT kliv_mail._sealing_host($_->[0])"), $_->[1], "the host to seal for: $_->[0]");
}

# Run the client of the README with a password; '' or what it said.
sub client
{
    my ($language, $password) = @_;
    my $program = "$folder/client.$language";
    unlink $program;
    my $connection = 'host=' . $node->host . ' port=' . $node->port . ' dbname=postgres';
    my ($host, $port) = ($node->host, $node->port);
    append_to_file(
        $program,
        $language eq 'python'
        ? "import sys, psycopg2\n$block{python}\nsave_password(psycopg2.connect('$connection'), 'localhost', sys.argv[1])\n"
        : "const { Client } = require('pg');\n$block{js}\n"
          . "const client = new Client({ host: '$host', port: $port, database: 'postgres', user: process.env.USER });\n"
          . "client.connect().then(() => savePassword(client, 'localhost', process.argv[2])).then(() => client.end())\n"
          . "  .catch(error => { console.error(error); process.exit(1); });\n");
    my ($out, $err) = run_command([ $language eq 'python' ? '/usr/bin/python3' : 'node', $program, $password ]);
    return $err;
}

sub seals
{
    my ($language, $password, $name) = @_;
    accepts($password);
    is(client($language, $password), '', "$language: $name");
    my $id = $node->sql(qq{SELECT kliv_mail.send('$language\@example.com', 'x', 'x')});
    is($node->sql("SELECT kliv_mail.wait($id, '60 s')"), 'sent', '... and mail goes');
    my $login = ($smtp->ledger('auth'))[-1];
    ok($login->{ok} && $login->{user} eq 'app', '... by that login');
    accepts('another than the one sealed');
    like(client($language, $password), qr/535|authentication/i, '... and it is tested as any other is');
    return;
}

SKIP:
{
    run_command([ '/usr/bin/python3', '-c', 'import nacl, psycopg2' ]);
    skip 'no PyNaCl or psycopg2 for /usr/bin/python3', 4 if $?;
    seals('python', 'CANARY sealed by Python ä 鍵', 'the client seals a password, configure_smtp() tests and saves it');
}

SKIP:
{
    # (the versions that were tried)
    skip 'no Node, no npm, or its registry cannot be reached', 4 if !KlivMail::Npm::install($folder);
    seals('js', 'CANARY sealed by Node ü 鎖', 'the client seals a password, configure_smtp() tests and saves it');
}

SKIP:
{
    run_command([ '/usr/bin/python3', '-c', 'import nacl' ]);
    skip 'no PyNaCl for /usr/bin/python3', 7 if $?;
    # Sealed offline, by hand: an older key's stays good, what is broken is refused.
    my $seal = sub {
        my ($for, $password) = @_;
        my ($out) = run_command([ '/usr/bin/python3', '-c',
            'import sys; from nacl.public import PublicKey, SealedBox; print(SealedBox(PublicKey(bytes.fromhex(sys.argv[1]))).encrypt(sys.argv[2].encode()).hex())', $for, $password ]);
        return $out;
    };
    my $before = $seal->($public, "custom\nlocalhost\nCANARY from before the rotation");
    $node->sql('SELECT kliv_mail.rotate_key()');
    isnt($node->sql(q{SELECT encode(kliv_mail.public_key(), 'hex')}), $public, 'rotate_key() changes the public key');
    accepts('CANARY from before the rotation');
    my $save = sub { return $node->try("SELECT * FROM kliv_mail.configure_smtp(password_sealed => '\\x$_[0]')"); };
    is($save->($before)->{state}, '', 'what was sealed for the older one still opens');
    is($save->($seal->($public, "custom\nLOCALHOST\nCANARY from before the rotation"))->{state}, '', '... the case of a host does not matter');

    # A box is of one database: another tenant's public_key() is another, and the box of one opens in no other.
    $node->sql('CREATE DATABASE evil');
    $node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => 'evil');
    isnt($node->sql(q{SELECT encode(kliv_mail.public_key(), 'hex')}, dbname => 'evil'), $node->sql(q{SELECT encode(kliv_mail.public_key(), 'hex')}), 'another database has another public key');
    my $stolen = $node->try("SELECT * FROM kliv_mail.configure_smtp(host => 'localhost', port => " . $smtp->port
          . ", encryption => 'tls', username => 'x\@evil.example', password_sealed => '\\x$before')", dbname => 'evil');
    is("$stolen->{state} $stolen->{message}", q{22023 password_sealed: was not sealed for this database's public key}, '... and does not open what was sealed for this one');
    is(scalar(grep { ($_->{user} // '') eq 'x@evil.example' } $smtp->ledger('auth')), 0, '... nor send it to a server of its own');

    # ... for one account and one host of it.
    for (
        [ 'for another account', $seal->($public, "second\nlocalhost\nCANARY elsewhere"), qr/^22023 password_sealed: was sealed for the account "second", not "custom"/ ],
        [ 'for another host', $seal->($public, "custom\nsmtp.example.com\nCANARY elsewhere"), qr/^22023 password_sealed: was sealed for the host "smtp.example.com", not "localhost"/ ],
        [ 'without account and host', $seal->($public, 'CANARY bare'), qr/^22023 password_sealed: names no account and host before the password/ ])
    {
        my $result = $save->($_->[1]);
        like("$result->{state} $result->{message}", $_->[2], "refused: $_->[0]");
    }
    for (
        [ 'for another server', $seal->('2fe57da347cd62431528daac5fbb290730fff684afc4cfc2ed90995f58cb3b74', 'CANARY lost') ],
        [ 'cut short', substr($before, 0, -2) ],
        [ 'changed', substr($before, 0, -2) . ($before =~ /00$/ ? '01' : '00') ],
        [ 'empty', '' ])
    {
        my $result = $save->($_->[1]);
        is("$result->{state} $result->{message}", q{22023 password_sealed: was not sealed for this database's public key}, "refused: $_->[0]");
    }
    is($node->try(q{SELECT * FROM kliv_mail.configure_smtp(password => 'x', password_sealed => '\x00')})->{state}, '22023', 'refused: two passwords');
}

unlike(slurp_file($node->logfile), qr/CANARY/, 'no password is in the log, whatever it logs');
$node->stop;

done_testing();
