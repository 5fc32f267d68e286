# A clock that was ahead and is right again: what was to leave at once does so,
# what was scheduled stays so, and a hold that it wrote is over.  (By SQL, with
# the clock of the session moved; no sender runs.)
use strict;
use warnings;
use KlivMail::Cluster;
use Test::More;

my $node = KlivMail::Cluster->new('main', preload => 0);
my $session = $node->session;
$node->sql(q{
    INSERT INTO kliv_mail._account (name, in_use, route_order, origin, host, port, encryption, from_address, created_at, updated_at, updated_by, renewed_at)
    VALUES ('custom', true, 0, kliv_mail._origin(), 'smtp.example.com', 25, 'none', 'a@a.example', now(), now(), 'me', now())});
$session->sql(q{SET kliv_mail.test_clock_offset = '1 day'});
my $at_once = $session->sql(q{SELECT kliv_mail.send('at-once@example.com', 'x', 'x')}) =~ s/^.*NOTICE.*\n|^HINT.*\n|^LOCATION.*\n//mgr;
my $planned = $session->sql(q{SELECT kliv_mail.send('planned@example.com', 'x', 'x', send_at => kliv_mail._now() + interval '1 hour')});
$session->sql(q{INSERT INTO kliv_mail._quota (account, held_until, held_by, held_reason, held_since, failures, fingerprint)
    SELECT 'custom', kliv_mail._now() + interval '10 minutes', 'account', 'the server is down', kliv_mail._now(), 1, a.fingerprint FROM kliv_mail._accounts() AS a WHERE a.name = 'custom'});
is($session->sql(q{SELECT held_by, code FROM kliv_mail.deliveries WHERE recipient ~ 'at-once'}), 'account|account_trouble', 'ahead: the account is held');

$session->sql('RESET kliv_mail.test_clock_offset');
is($session->sql(q{SELECT blocked_until IS NULL FROM kliv_mail._availability('custom', kliv_mail._now())}), 't', 'right again: a hold that reaches further ahead than any does is void');
is($session->sql(q{SELECT count(*) FROM kliv_mail._claim_account(1, 'custom', 10, 1000000, true)}), 1, 'what was to leave at once is claimed');
is($session->sql(q{SELECT string_agg(status, ' ' ORDER BY recipient) FROM kliv_mail.deliveries}), 'sending scheduled', '... and what was scheduled waits for its time');
$session->quit;
$node->stop;
done_testing();
