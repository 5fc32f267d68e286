# Messages made at random, read back by Python's email package and by GMime.
# KLIV_MAIL_PROPERTY_COUNT sets how many (10000 is the long form), and
# KLIV_MAIL_PROPERTY_SEED which.
use strict;
use warnings;
use utf8;
use Encode;
use IPC::Run ();
use KlivMail::Cluster;
use MIME::Parser;
use Test::More;

my $count = $ENV{KLIV_MAIL_PROPERTY_COUNT} // 200;
my $seed = $ENV{KLIV_MAIL_PROPERTY_SEED} // 1;
my $node = KlivMail::Cluster->new('main');
my $output = '';

ok( IPC::Run::run(
        [
            '/usr/bin/python3', 'test/mime_property.py', '--count', $count, '--seed', $seed,
            'psql', '-h', $node->host, '-p', $node->port, 'postgres'
        ],
        '>', \$output, '2>&1'),
    "$count messages, seed $seed, arrive as they were given") or diag($output);

# With a seed for every day, a year of runs sees other messages.
my $today = time / 86400 | 0;
ok( IPC::Run::run(
        [
            '/usr/bin/python3', 'test/mime_property.py', '--count', 50, '--seed', "day $today",
            'psql', '-h', $node->host, '-p', $node->port, 'postgres'
        ],
        '>', \$output, '2>&1'),
    "50 messages, seed day $today") or diag($output);

# What went wrong in other mailers, and Japanese from databases of other encodings.
sub cases
{
    my ($database, $name, $what) = @_;
    my $ok = IPC::Run::run(
        [ '/usr/bin/python3', 'test/mime_property.py', "--cases=$name", 'psql', '-h', $node->host, '-p', $node->port, $database ],
        '>', \$output, '2>&1');
    ok($ok, $what) or diag($output);
    return;
}
cases('postgres', '', 'known cases');
for my $encoding (qw(EUC_JP SQL_ASCII))
{
    my $database = lc $encoding;
    $node->sql("CREATE DATABASE $database TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'");
    $node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => $database);
    cases($database, 'characters that ISO-2022-JP lacks', "a database in $encoding");
}

# The names of files, as Perl reads them.
my @names = ('請求書 2026年.pdf', '長' x 83 . '.pdf', 'a"b.txt', 'plain name.pdf');
my $files = join ', ', map { "kliv_mail.attach('$_', '\\x00')" } @names;
my $raw = pack 'H*', substr $node->sql(encode_utf8("SET client_encoding = 'UTF8'; SELECT kliv_mail._compose('s', 't', NULL, 'a\@example.com', NULL, NULL, ARRAY[$files])")), 2;
my $parser = MIME::Parser->new;
$parser->output_to_core(1);
my $read = $parser->parse_data($raw);
my @read = map { $_->head->recommended_filename } grep { $_->mime_type ne 'text/plain' || $_->head->recommended_filename } $read->parts;
is_deeply([ map { decode('MIME-Header', $_) =~ /[^\x00-\x7f]/ ? decode('MIME-Header', $_) : decode_utf8($_) } @read ], \@names, 'MIME::Parser reads the names of files');

$node->stop;
done_testing();
