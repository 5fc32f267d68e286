# A blow at every point of a delivery's life (the state table in src/README.md):
# nothing is lost or stuck, second copies stay within what was in flight, the
# quota holds (A7).  make crashtest does the same many times over.
use strict;
use warnings;
use KlivMail::Crash;
use Test::More;

my $crash = KlivMail::Crash->new;
my $turn = 0;
for my $point (KlivMail::Crash::points())
{
    my $way = $turn++ % 2 ? 'kill' : 'immediate';
    my $result = $crash->run($point, $way);
    my $figures = "accepted $result->{at}, second copies $result->{second}";
    note sprintf '%s, %s: %.1f s', $point, $way, $result->{seconds};
    is($crash->verdict($result), '', KlivMail::Crash::describe($point) . " ($way): $figures");
}
$crash->stop;

done_testing();
