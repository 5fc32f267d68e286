# A mail with two files as one parameter of each driver: the same bytes arrive.
use strict;
use warnings;
use utf8;
use Digest::SHA qw(sha256_hex);
use Encode qw(encode_utf8);
use IPC::Run ();
use JSON::PP;
use KlivMail::Cluster;
use KlivMail::Npm;
use KlivMail::SmtpServer;
use MIME::Base64 qw(encode_base64);
use PostgreSQL::Test::Utils;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    conf => { 'kliv_mail.platform_hourly_limit' => 100, 'kliv_mail.platform_daily_limit' => 100 });
$node->sql('CREATE ROLE app LOGIN');
$node->sql(q{SELECT kliv_mail.grant_send('app')});

# Every byte, also those that break a driver's quoting, and a text with quotes and backslashes.
my $folder = PostgreSQL::Test::Utils::tempdir();
my $bytes = join '', map { pack 'C*', map { ($_ * $_ + 7 * $_) % 256 } 0 .. 255, reverse 0 .. 255 } 1 .. 400;
my $text = encode_utf8(qq{品名,金額\r\n"煎茶 \\n ' \$1 ?",3\n𠮷 😀\n});
my $mail = {
    subject     => q{It's "here" \\ 請求書 ? %s $1},
    text        => "line one\nline 'two' \\ ? %s",
    html        => '<p>Hello</p>',
    attachments => [
        { filename => '請求書 2026年.pdf', content => encode_base64($bytes, ''), content_type => 'application/pdf' },
        { filename => '売上.csv', text => Encode::decode_utf8($text) } ]
};
append_to_file("$folder/mail.json", JSON::PP->new->utf8->canonical->encode($mail));

sub arrives
{
    my ($name) = @_;
    $node->wait_until('SELECT count(*) = 0 FROM kliv_mail._outbox');
    my ($message) = $smtp->accepted("$name\@example.com");
    ok($message, "$name: the mail arrives") or return;
    my ($raw, $json) = ($smtp->message($message), '');
    IPC::Run::run([ '/usr/bin/python3', 'test/read_mail.py' ], '<', \$raw, '>', \$json);
    my $read = decode_json($json);
    is_deeply(
        [ map { [ @$_[ 0, 1, 3 ] ] } @{ $read->{files} } ],
        [ [ '請求書 2026年.pdf', 'application/pdf', sha256_hex($bytes) ], [ '売上.csv', 'text/csv', sha256_hex($text) ] ],
        '... its files, byte for byte');
    is($read->{subject}, $mail->{subject}, '... its subject');
    is($read->{text} =~ s/\r//gr =~ s/\n\z//r, $mail->{text}, '... and its text');
    return;
}

sub runs
{
    my (@command) = @_;
    my $out = '';
    ok(IPC::Run::run([ @command, $node->host, $node->port, 'app', "$folder/mail.json" ], '>', \$out, '2>&1', IPC::Run::timeout(120)), "$command[-1] runs") or diag($out);
    return;
}

runs('/usr/bin/python3', 'test/drivers/python.py');
arrives($_) for 'psycopg2', 'psycopg3';
runs('/usr/bin/perl', 'test/drivers/dbi.pl');
arrives('dbi');
runs('/usr/bin/ruby', 'test/drivers/activerecord.rb');
arrives('activerecord');
SKIP:
{
    skip 'no Node, no npm, or its registry cannot be reached', 9 if !KlivMail::Npm::install($folder);
    local $ENV{NODE_PATH} = "$folder/node_modules";
    runs('node', 'test/drivers/node.js');
    arrives($_) for 'pg', 'postgresjs';
}

# ---- the README's blocks, as they are written there ----

for my $language (qw(python js))
{
    SKIP:
    {
        my ($code) = grep { /receipt\.pdf/ } slurp_file('README.md') =~ /^```$language\n(.*?)^```$/msg;
        ok($code, "README.md sends from $language") or next;
        skip 'no Node, or what it needs is missing', 3 if $language eq 'js' && !-d "$folder/node_modules/pg";
        my ($host, $port) = ($node->host, $node->port);
        append_to_file(
            "$folder/readme.$language",
            $language eq 'python'
            ? "import base64\nimport psycopg\nfrom psycopg.types.json import Jsonb\npdf = b'%PDF-1.4'\n"
              . "with psycopg.connect(host='$host', port=$port, user='app', dbname='postgres') as connection, connection.cursor() as cursor:\n"
              . join '', map { "    $_\n" } split /\n/, $code
            : "const { Client } = require('pg');\nconst pdf = Buffer.from('%PDF-1.4');\n(async () => {\n"
              . "const client = new Client({ host: '$host', port: $port, user: 'app', database: 'postgres' });\nawait client.connect();\n$code\nawait client.end();\n})();\n");
        my $before = () = $smtp->accepted('ana@example.com');
        my $out = '';
        ok(IPC::Run::run([ $language eq 'python' ? '/usr/bin/python3' : 'node', "$folder/readme.$language" ], '>', \$out, '2>&1', IPC::Run::timeout(60)), '... which runs') or diag($out);
        $node->wait_until('SELECT count(*) = 0 FROM kliv_mail._outbox');
        my @mails = $smtp->accepted('ana@example.com');
        is(scalar(@mails), $before + 1, '... and arrives');
        like($smtp->message($mails[-1]), qr/^Content-Type: application\/pdf.*^JVBERi0xLjQ=\r$/ms, '... with its file');
    }
}

$node->stop;
done_testing();
