# The verdicts of the isemail test data on addresses (Dominic Sayers, BSD
# licence), which is not part of this project: found by KLIV_MAIL_CONFORMANCE or
# beside the checkout, else skipped.  What it calls an error or deprecated is
# refused, what it calls valid is accepted; every exception has its reason here.
use strict;
use warnings;
use utf8;
use KlivMail::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $file = ($ENV{KLIV_MAIL_CONFORMANCE} // '../shared/conformance') . '/isemail/tests.xml';
plan skip_all => "no $file" unless -r $file;

# Is an address of this category, or more exactly of this diagnosis, accepted?
my %accepted = (
    VALID_CATEGORY => 1,
    DNSWARN        => 1,    # valid; nobody asks the DNS here
    ERR            => 0,
    DEPREC         => 0,
    CFWS           => 1,    # spaces and comments around an address
    RFC5322        => 0,    # valid in a header, but SMTP cannot carry it
    RFC5321_QUOTEDSTRING   => 1,
    RFC5321_ADDRESSLITERAL => 0,    # [127.0.0.1]: mail to a bare host is no use of an application
    RFC5321_IPV6DEPRECATED => 0,
    RFC5321_TLD            => 0,    # one label: a host of the server's own network
    RFC5321_TLDNUMERIC     => 0);   # no such top-level domain can exist

my %exception = (
    5  => [ 1 => 0, 'test@io: a single-label domain, as with RFC5321_TLD' ],
    15 => [ 0 => 1, '.test@: Japanese carriers gave such addresses out; sent quoted' ],
    16 => [ 0 => 1, 'test.@: likewise' ],
    map { $_ => [ 1 => 0, 'a folded line: no line break gets into an envelope or a header' ] }
      88, 144, 148, 153);

# An address with a NUL can be no text in PostgreSQL at all (22021).
my %no_text = (57 => 1, 58 => 1);

my $xml = slurp_file($file);
utf8::decode($xml);
my $node = KlivMail::Cluster->new('main');
my $count = 0;
my (@statements, @tests);

while ($xml =~ m{<test id="(\d+)">(.*?)</test>}gs)
{
    my ($id, $test) = ($1, $2);
    my ($address) = $test =~ m{<address>(.*?)</address>}s;
    my ($category) = $test =~ m{<category>ISEMAIL_(.*?)</category>};
    my ($diagnosis) = $test =~ m{<diagnosis>ISEMAIL_(.*?)</diagnosis>};

    $address //= '';
    $address =~ s/&#x([0-9A-F]+);/chr hex $1/ge;
    my %entity = (amp => '&', lt => '<', gt => '>', quot => '"', apos => "'");
    $address =~ s/&(\w+);/$entity{$1}/g;
    # The data writes control characters as their pictures.
    $address =~ s/([\x{2400}-\x{241F}])/chr(ord($1) - 0x2400)/ge;
    push @tests, [ $id, $address, $category, $diagnosis ];
    next if $no_text{$id};
    push @statements, "($id, U&'" . join('', map { sprintf '\\+%06X', ord } split //, $address) . "')";
}
cmp_ok(scalar @tests, '>', 100, 'the test data was read');

my %got = map { split /\|/ } split /\n/,
  $node->sql('SELECT id, kliv_mail.is_address(address)::int FROM (VALUES '
      . join(', ', @statements) . ') AS t(id, address)');

for my $test (@tests)
{
    my ($id, $address, $category, $diagnosis) = @$test;
    my $expected = $accepted{$diagnosis} // $accepted{$category};
    my $reason = '';

    next if $no_text{$id};
    if (my $exception = $exception{$id})
    {
        is($expected, $exception->[0], "$id: the exception is one");
        ($expected, $reason) = ($exception->[1], " ($exception->[2])");
    }
    is($got{$id}, $expected, "$id: $diagnosis$reason") or diag($address =~ s/([^ -~])/sprintf '\\x{%x}', ord $1/ger);
}

$node->stop;
done_testing();
