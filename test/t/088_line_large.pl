# A mail that does not fit into what the sender's memory has left comes to stand in front of where claims
# begin (src/worker/sender_line.c): it leaves by a sender that is busy, and so does what stands behind it.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new('main', conf => { 'kliv_mail.sender_memory' => '1MB', 'kliv_mail.allowed_hosts' => '127.0.0.1', 'kliv_mail.max_daily_limit' => 1_000_000 });
my $session = $node->session;
$session->sql("SELECT count(*) FROM kliv_mail.configure_smtp(host => '127.0.0.1', port => " . $smtp->port
      . ", encryption => 'none', username => '', from_address => 'shop\@shop.example', test => false, hourly_limit => 1000000, daily_limit => 1000000)");
$smtp->set(delay_dot => 20);
my $stream = 0;

sub busy_until
{
    my ($condition) = @_;
    return $smtp->wait_for(sub {
        if ($session->sql(q{SELECT count(*) < 200 FROM kliv_mail._outbox WHERE recipient LIKE 'stream%'}) eq 't')
        {
            $stream += 100;
            $session->sql("SELECT count(kliv_mail.send('stream$stream-' || n || '\@x.example', 'x', 'x')) FROM generate_series(1, 100) AS n");
        }
        return $condition->();
    });
}
sub more_left { my ($n) = @_; my $goal = $smtp->count + $n; return busy_until(sub { $smtp->count >= $goal }); }

ok(more_left(300), 'a sender is busy');
my $late = $node->session;
$late->sql('BEGIN');
$late->sql(q{SELECT kliv_mail.send('large@x.example', 'x', repeat(repeat('0123456789', 3) || chr(10), 35000)), kliv_mail.send('small@x.example', 'x', 'x')});
ok(more_left(1000), '... and 1,000 leave while another transaction has queued a mail that is larger than the memory, and a small one');
$late->sql('COMMIT');
$late->quit;
ok(busy_until(sub { $smtp->accepted('large@x.example') && $smtp->accepted('small@x.example') }), 'both leave by a sender that is busy');
$session->wait_until('SELECT count(*) = 0 FROM kliv_mail._outbox');
$session->quit;
$node->stop;
done_testing();
