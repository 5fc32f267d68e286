# The kill test in its long form; make crashtest runs it, test/t/015_crash.pl is
# the short one.  From the environment:
#
#	RUNS       of each point and number of senders (50)
#	POINTS     names from test/perl/KlivMail/Crash.pm (all)
#	SENDERS    of the one database ("1 2")
#	CONNECTIONS  of each sender (4); with 8 results are recorded while half of what may begin is
#	           with the server (more, the test's server does not hold at once; "drain" can have any)
#
# Half of the runs kill a sender, half stop the server at once.  A line for each
# point as it goes on, all lines again at the end.
use strict;
use warnings;
use List::Util qw(max min sum0);
use KlivMail::Crash;
use Test::More;

my $runs = $ENV{RUNS} || 50;
my @points = $ENV{POINTS} ? split(' ', $ENV{POINTS}) : KlivMail::Crash::points();
my @senders = split(' ', $ENV{SENDERS} || '1 2');
my $columns = "%7s  %-10s  %4s  %5s  %8s  %4s  %7s  %4s  %5s  %5s  %6s  %5s  %7s  %6s";
my @lines = (sprintf $columns, 'senders', 'point', 'runs', 'kills', 'accepted', 'lost', 'second', 'max', 'mean',
             'bound', 'ghosts', 'stuck', 'overrun', 's/run');
my %known = map { $_ => 1 } KlivMail::Crash::points();
my @unknown = grep { !$known{$_} } @points;
BAIL_OUT("unknown points: @unknown; there are: " . join(' ', KlivMail::Crash::points())) if @unknown;

sub cluster
{
    my ($name, $senders) = @_;
    return KlivMail::Crash->new(senders => $senders, name => $name, $ENV{CONNECTIONS} ? (connections => $ENV{CONNECTIONS}) : ());
}

diag("the columns: mails accepted when the last kill fell; second copies in all, in the worst run, in the mean",
     " run, and how many a run may cost; mails sent and never committed; mails that did not finish; quota");
diag($lines[0]);
for my $senders (@senders)
{
    my $crash;
    for my $point (@points)
    {
        my (@results, @wrong);
        for my $run (1 .. $runs)
        {
            $crash //= cluster("senders_$senders", $senders);
            my $result = eval { $crash->run($point, $run % 2 ? 'kill' : 'immediate') };
            if (!$result)
            {
                # Never there, or never back: nothing more to be had from this cluster.
                push @wrong, "run $run: $@";
                diag("$point, $wrong[-1]");
                eval { $crash->stop };
                $crash = cluster("senders_${senders}_" . time, $senders);
                next;
            }
            push @results, $result;
            my $verdict = $crash->verdict($result);
            push @wrong, "run $run: $verdict" if $verdict;
            diag("$point, $wrong[-1]") if $verdict;
            diag("$point: $run of $runs") if $run % 10 == 0 && $run < $runs;
        }
        ok(@results == $runs && !@wrong, "$senders sender(s), " . KlivMail::Crash::describe($point));
        next unless @results;
        my %sum = map { my $name = $_; $name => sum0(map { $_->{$name} } @results) } keys %{ $results[0] };
        my @at = map { $_->{at} } @results;
        my @second = map { $_->{second} } @results;
        push @lines, sprintf($columns, $senders, $point, scalar(@results), $sum{kills},
                             min(@at) == max(@at) ? $at[0] : min(@at) . '-' . max(@at), $sum{lost}, $sum{second},
                             max(@second), sprintf('%.1f', $sum{second} / @results), max(map { $crash->bound($_) } @results),
                             $sum{ghosts}, $sum{stuck}, $sum{overrun}, sprintf('%.1f', $sum{seconds} / @results));
        diag($lines[-1]);
    }
    $crash->stop;
}
diag(join("\n", '', @lines));

done_testing();
