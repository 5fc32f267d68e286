# What leaves first, what is kept free, accounts that hang beside others that
# do not, and how many connections an account gets (C4).
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;
use Time::HiRes 'time';

my %server = map { $_ => KlivMail::SmtpServer->start } qw(custom slow silent);
$server{silent}->set(silent => 1);
my $node = KlivMail::Cluster->new('main', conf => { 'kliv_mail.allowed_hosts' => '127.0.0.1', 'kliv_mail.sender_memory' => '1MB' });
my $noon = $node->clock_to_noon;
my $session = $node->session;
sub sql { return $session->sql($_[0]); }
sub wait_until { return $session->wait_until($_[0]); }
sub hours_later
{
    my $offset = $noon + 3600 * $_[0];
    sql("SET kliv_mail.test_clock_offset = '$offset s'; ALTER DATABASE postgres SET kliv_mail.test_clock_offset = '$offset s'");
    return;
}
hours_later(0);
sql(q{SET client_min_messages = error; SELECT kliv_mail.set_brand(unsubscribe_url => 'https://shop.example/u')});

sub configure
{
    my ($account, $more) = @_;
    sql("SELECT FROM kliv_mail.configure_smtp(account => '$account', host => '127.0.0.1', port => " . $server{$account}->port
          . ", encryption => 'none', username => '', from_address => '$account\@shop.example', test => false, $more)");
    return;
}

# $count mails to NAME1, NAME2 ... of that type, one after the other.
sub send_mails
{
    my ($type, $name, $count, $more) = @_;
    sql("SELECT kliv_mail.send('$name$_\@example.com', 'x', 'x', message_type => '$type'" . ($more // '') . ')') for 1 .. $count;
    return;
}

# Wait until nothing more can leave now; the local parts that were accepted
# since the last call.
my $taken = 0;
sub accepted
{
    wait_until(q{SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE status IN ('queued', 'sending', 'in_doubt')});
    my @all = map { $_->{rcpt}[0] =~ s/@.*//r } $server{custom}->accepted;
    my @new = @all[ $taken .. $#all ];
    $taken = @all;
    return @new;
}
sub count_of { my ($type, @names) = @_; return scalar grep { /^$type/ } @names; }

# ---- marketing leaves a tenth of each window free ----

configure('custom', 'hourly_limit => 20, daily_limit => 28');
sql(q{SELECT kliv_mail.send(format('marketing%s@example.com', i), 'x', 'x', message_type => 'marketing') FROM generate_series(1, 25) AS i});
is(count_of('marketing', accepted()), 18, 'of an hour of 20 marketing has 18');
is(sql(q{SELECT remaining, remaining_marketing FROM kliv_mail.usage WHERE account = 'custom' AND window_name = 'hour'}), '2|0', 'and so says the view');
is(sql(q{SELECT DISTINCT status, held_by FROM kliv_mail.deliveries WHERE recipient LIKE 'marketing%' AND status <> 'sent'}), 'deferred|quota',
    'the others wait for the quota');
sql('SELECT kliv_mail.pause()');
send_mails('transactional', 'transactional', 3);
send_mails('system', 'system', 1);
sql('SELECT kliv_mail.resume()');
is(join(' ', sort(accepted())), 'system1 transactional1', 'the two that are left are for other mail, system before transactional');
hours_later(1);
my @got = accepted();
is(count_of('transactional', @got), 2, 'the next hour: first what is no marketing');
is(count_of('marketing', @got), 3, '... and marketing until the day has 25 of 28');
send_mails('transactional', 'late', 4);
is(join(' ', sort(accepted())), 'late1 late2 late3', 'the last three of the day are for other mail');
hours_later(24);
is(join(' ', sort(accepted())), 'late4 marketing22 marketing23 marketing24 marketing25', 'the next day brings the rest');

# ---- system before transactional before marketing, older first ----

sql(q{ALTER SYSTEM SET kliv_mail.connections_per_account = 1; SELECT pg_reload_conf(); SELECT FROM kliv_mail.set_limits(1000, 9000)});
sql('SELECT kliv_mail.pause()');
send_mails('marketing', 'm', 3);
send_mails('transactional', 't', 3);
send_mails('system', 's', 3);
send_mails('transactional', 'u', 3);
send_mails('marketing', 'n', 3);
sql('SELECT kliv_mail.resume()');
is(join(' ', accepted()), 's1 s2 s3 t1 t2 t3 u1 u2 u3 m1 m2 m3 n1 n2 n3', 'system before transactional before marketing, older first');

# ---- accounts that hang ----

sql(q{ALTER SYSTEM RESET kliv_mail.connections_per_account; SELECT pg_reload_conf()});
configure($_, 'hourly_limit => 1000, daily_limit => 500') for qw(slow silent);
# More than the sender's memory holds at a server that answers no dot.
sql(q{SELECT kliv_mail.send(format('stall-dot+%s@example.com', i), 'x', repeat('12345678 ', 30000), account => 'slow') FROM generate_series(1, 8) AS i});
sql(q{SELECT kliv_mail.send(format('never%s@example.com', i), 'x', 'x', account => 'silent') FROM generate_series(1, 10) AS i});
wait_until(q{SELECT count(*) FILTER (WHERE account = 'slow') > 0 AND count(*) FILTER (WHERE account = 'silent') > 0
             FROM kliv_mail.deliveries WHERE status = 'sending'});
my $start = time;
sql(q{SELECT kliv_mail.send(format('well%s@example.com', i), 'x', repeat('12345678 ', 30000)) FROM generate_series(1, 20) AS i});
ok($server{custom}->wait_for(sub { $server{custom}->count - $taken == 20 }, 30), 'accounts that hang are not in the way of one that does not');
note(sprintf '%.1f s', time - $start);
is(sql(q{SELECT count(*) FILTER (WHERE account = 'slow') > 0 FROM kliv_mail.deliveries WHERE status = 'sending'}), 't', '... while they hang');
$session->quit;
$node->stop;
done_testing();
