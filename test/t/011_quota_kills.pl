# Many sessions and a sender that is killed again and again: the quota holds,
# and nothing that was committed is lost (A3, B097).
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes 'usleep';

# Four sessions send without pause while the sender is killed twenty times; a
# crash restarts the server, so they connect anew.
my $smtp = KlivMail::SmtpServer->start(delay_dot => 1000);
my $node = KlivMail::Cluster->new(
    'kills',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    durable      => 1,
    conf         => {
        'kliv_mail.platform_hourly_limit' => 300,
        'kliv_mail.platform_daily_limit'  => 300
    });
$node->clock_to_noon;

# What a statement prints; '' when it fails, as it does while the server restarts.
my $connection = $node->connstr('postgres');
sub ask
{
    my ($sql) = @_;
    return qx{psql -XAtq -d "$connection" -c "$sql" 2>/dev/null};
}

my $committed = PostgreSQL::Test::Utils::tempdir();
my $stop = "$committed/stop";
my @writers;
for my $writer (1 .. 4)
{
    my $pid = fork // die "fork: $!";
    if ($pid == 0)
    {
        open my $file, '>', "$committed/$writer" or POSIX::_exit(1);
        $file->autoflush(1);
        my $n = 0;
        while (!-e $stop)
        {
            $n++;
            my $address = "w$writer-$n\@example.com";
            print $file "$address\n" if ask("SELECT kliv_mail.send('$address', 'x', 'x')") =~ /^\d+$/;
        }
        POSIX::_exit(0);
    }
    push @writers, $pid;
}
my $kills = 0;
my $deadline = time + 600;
while ($kills < 20 && time < $deadline)
{
    my ($pid) = ask(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender'}) =~ /^(\d+)/;
    if ($pid && kill(($kills % 2 ? 'KILL' : 'TERM'), $pid))
    {
        $kills++;
        # The next one must be another.
        while (kill(0, $pid) && time < $deadline) { usleep(10_000) }
    }
    else
    {
        usleep(20_000);
    }
}
open my $flag, '>', $stop or die $!;
close $flag;
waitpid $_, 0 for @writers;
cmp_ok($smtp->count, '<=', 300, "the quota of 300 held over $kills kills");
is($kills, 20, 'of which all happened');
$smtp->set(delay_dot => 0);
$node->wait_until('SELECT true');
my @promised = map { chomp; $_ } map { open my $f, '<', "$committed/$_" or die $!; <$f> } 1 .. 4;
my %known = map { $_ => 1 } split /\n/, $node->sql('SELECT recipient FROM kliv_mail.deliveries');
is(scalar(grep { !$known{$_} } @promised), 0, 'everything committed is known: ' . @promised . ' mails');
$node->wait_until(q{SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE status IN ('queued', 'sending')});
cmp_ok($smtp->count, '<=', 300, 'still within the quota');
is($node->sql(q{SELECT max(used) <= 300 FROM kliv_mail.usage}), 't', 'usage too');

$node->sql('ALTER SYSTEM SET kliv_mail.platform_hourly_limit = 10000');
$node->sql('ALTER SYSTEM SET kliv_mail.platform_daily_limit = 10000');
$node->reload;
# What was in doubt three times is held, and goes when somebody says so.
$node->wait_until(q{SELECT count(*) = 0 FROM kliv_mail.deliveries
                    WHERE status NOT IN ('sent', 'in_doubt') OR status = 'in_doubt' AND next_attempt_at IS NOT NULL});
$node->sql(q{SELECT kliv_mail.retry(message_id) FROM kliv_mail.deliveries WHERE status = 'in_doubt'});
$node->wait_until(q{SELECT bool_and(status = 'sent') FROM kliv_mail.deliveries});
my %arrived = map { $_->{rcpt}[0] => 1 } $smtp->accepted;
is(scalar(grep { !$arrived{$_} } @promised), 0, 'with more quota every one of them arrives');
$node->stop;

done_testing();
