# Crashes in mid-drain: nothing is lost, and second copies stay within what was
# in flight (A7, the short form).
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $connections = 8;
my $mails = 500;
my $smtp = KlivMail::SmtpServer->start(delay_dot => 25, durable => 1, no_transcript => 1);
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    durable      => 1,
    conf         => {
        'kliv_mail.connections_per_account' => $connections,
        'kliv_mail.platform_hourly_limit'   => 10000,
        'kliv_mail.platform_daily_limit'    => 10000
    });

my %before;
for my $round (1 .. 10)
{
    my $way = $round % 2 ? 'kill -9 of the sender' : 'immediate stop';
    my $start = $smtp->count;
    $node->sql("SELECT kliv_mail.send(format('r$round-%s\@example.com', i), 'x', 'x') FROM generate_series(1, $mails) AS i");
    my $at = $start + 30 * $round;
    $smtp->wait_for_count($at, 120) or die "the drain of round $round stands still";
    if ($round % 2)
    {
        my ($pid) = $node->workers('kliv_mail sender');
        kill 'KILL', $pid or die "no sender in round $round";
    }
    else
    {
        $node->stop('immediate');
    }
    cmp_ok($smtp->count, '<', $start + $mails, "round $round: $way in mid-drain");
    $node->start unless $round % 2;
    $node->wait_for('the server is up', sub { ($node->psql('postgres', 'SELECT 1', on_error_die => 0, stdout => \my $o, stderr => \my $e) // 1) == 0 });
    $node->wait_until(q{SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE status <> 'sent'});

    my %copies;
    $copies{ $_->{rcpt}[0] }++ for $smtp->accepted;
    my @lost = grep { !$copies{"r$round-$_\@example.com"} } 1 .. $mails;
    is("@lost", '', '... nothing is lost');
    my $second = 0;
    $second += $_ - 1 for values %copies;
    cmp_ok($second - ($before{second} // 0), '<=', 2 * $connections,
        '... second copies: ' . ($second - ($before{second} // 0)));
    $before{second} = $second;
}

my %ids;
$ids{ $_->{rcpt}[0] }{ $_->{message_id} } = 1 for $smtp->accepted;
is(scalar(grep { keys %{ $ids{$_} } != 1 } keys %ids), 0, 'second copies have the first one\'s Message-ID');
my %sums;
$sums{ $_->{rcpt}[0] }{ $_->{sha256} } = 1 for $smtp->accepted;
is(scalar(grep { keys %{ $sums{$_} } != 1 } keys %sums), 0, 'and the same bytes');
is($node->sql('SELECT count(*) FROM kliv_mail._outbox'), 0, 'no row is stuck');
cmp_ok($node->sql(q{SELECT used FROM kliv_mail.usage WHERE window_name = 'day'}), '>=', 10 * $mails, 'what was in doubt counts again');
$node->stop;

done_testing();
