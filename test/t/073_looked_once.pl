# A database without the extension is looked at once, after a start, and then
# left alone: no sender is started there again, whatever goes on elsewhere.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    conf         => { log_min_messages => 'debug1', 'kliv_mail.platform_hourly_limit' => 100, 'kliv_mail.platform_daily_limit' => 100 });
my $other = $node->sql(q{SELECT oid FROM pg_database WHERE datname = 'template1'});

# The postmaster says at DEBUG1 which worker it starts.
sub starts
{
    my ($database) = @_;
    my $log = slurp_file($node->logfile);
    return scalar(() = $log =~ /starting background worker process "kliv_mail sender for database $database"/g);
}

ok($smtp->wait_for(sub { starts($other) > 0 }, 60), 'after its start the launcher has a look at a database without a label');
for my $number (1 .. 3)
{
    $node->sql("SELECT kliv_mail.send('a$number\@example.com', 'x', 'x')");
    ok($smtp->wait_for(sub { scalar($smtp->accepted("a$number\@example.com")) }, 60), "mail $number of the other database leaves");
}
is(starts($other), 1, 'nobody looked there again');
$node->stop;
done_testing();
