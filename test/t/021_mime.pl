# Messages made at random, read back by Python's email package and by GMime.
# KLIV_MAIL_PROPERTY_COUNT sets how many (10000 is the long form), and
# KLIV_MAIL_PROPERTY_SEED which.
use strict;
use warnings;
use IPC::Run ();
use KlivMail::Cluster;
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

$node->stop;
done_testing();
