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
    sql("SET kliv_mail.test_in_session = on; SET kliv_mail.test_clock_offset = '$offset s'; ALTER DATABASE postgres SET kliv_mail.test_clock_offset = '$offset s'");
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
# Nobody has to wait for them any more.
sql(q{SELECT kliv_mail.pause('slow'), kliv_mail.pause('silent')});
$server{$_}->drop_connections for qw(slow silent);
# ---- connections: as many as go well ----

my $smtp = $server{custom};
sub setting { sql("ALTER SYSTEM SET kliv_mail.$_[0] = $_[1]; SELECT pg_reload_conf()"); return; }
# Idle connections live for 60 s: that is not what is waited for.
sub connections_until { my ($name, $condition) = @_; ok($smtp->wait_for(sub { $condition->($smtp->state->{open}) }, 40), $name); return; }

# Send $count mails and wait until all are accepted; the events from then on.
my $burst = 0;
sub burst
{
    my ($count, $local) = @_;
    $burst++;
    $local //= "burst$burst";
    my $events = () = $smtp->ledger;
    sql("SELECT kliv_mail.send(format('$local+${burst}_%s\@example.com', i), 'x', 'x') FROM generate_series(1, $count) AS i");
    wait_until("SELECT count(*) = $count FROM kliv_mail.deliveries WHERE recipient LIKE '$local+${burst}\\_%' AND status = 'sent'");
    my @all = $smtp->ledger;
    return @all[ $events .. $#all ];
}

# Another day, and another sender, once those that are there have seen that the clock was changed.
sub next_sender
{
    my $senders = sql(q{SELECT coalesce(string_agg(pid::text, ', '), '0') FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender'});
    hours_later(25);
    wait_until("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid IN ($senders)");
    return;
}

# By a sender that knows nothing of the account yet.
next_sender();
$smtp->drop_connections;
$smtp->state;
$smtp->set(delay_dot => 100);
my @events = burst(80);
my $first = 0;
$first++ until $events[$first]{event} eq 'message';
cmp_ok(scalar(grep { $_->{event} eq 'connect' } @events[ 0 .. $first ]), '<=', 4, 'four connections at most to begin with');
is($smtp->state->{peak}, 8, '... more as all goes well, up to connections_per_account');
is($smtp->state->{open}, 8, '... which stay open');
setting('connections_per_account', 3);
connections_until('a lower setting closes what is too much', sub { $_[0] <= 3 });
$smtp->state;
burst(30);
cmp_ok($smtp->state->{peak}, '<=', 3, '... and bounds what is opened');
setting('connections_per_account', 8);
burst(80);
is($smtp->state->{open}, 8, 'a higher one is used');

# Behind another one's dot, which may take minutes, only when no connection is on its way.
setting('connections_per_account', 2);
connections_until('two are left', sub { $_[0] <= 2 });
$smtp->drop_connections;
$smtp->set(delay_dot => 0);
sql(q{SELECT kliv_mail.send('slow-dot-3000@example.com', 'x', 'x')});
ok($smtp->wait_for(sub { $smtp->transcript =~ /RCPT TO:<slow-dot-3000/ }), 'one waits for its dot');
sql(q{SELECT kliv_mail.send('beside@example.com', 'x', 'x')});
my $sent = sub { return "(SELECT sent_at FROM kliv_mail.deliveries WHERE recipient = '$_[0]\@example.com' AND status = 'sent')" };
wait_until('SELECT ' . $sent->('slow-dot-3000') . ' IS NOT NULL');
is(sql('SELECT ' . $sent->('beside') . ' < ' . $sent->('slow-dot-3000')), 't', '... and the next goes by the last connection, not behind it');
$smtp->set(delay_dot => 100);
setting('connections_per_account', 8);
burst(80);

# 451: the mail has to wait, and the server gets half the connections.
$smtp->set(delay_dot => 0, dot_reply => '451 4.3.2 too busy');
sql(q{SELECT kliv_mail.send(format('busy%s@example.com', i), 'x', 'x') FROM generate_series(1, 8) AS i});
connections_until('after eight times 451 one connection is left', sub { $_[0] == 1 });
wait_until(q{SELECT count(*) = 8 FROM kliv_mail.deliveries WHERE recipient LIKE 'busy%' AND held_by = 'retry'});
$smtp->set(delay_dot => 100, dot_reply => '');
$smtp->state;
burst(80);
is($smtp->state->{peak}, 8, '... and eight again as it goes well');
# 421: the account waits, and comes back with half.
$smtp->set(delay_dot => 0);
sql(q{SELECT kliv_mail.send('rcpt-421-4.3.2@example.com', 'x', 'x')});
connections_until('after 421 half of them are left', sub { $_[0] <= 4 });
wait_until(q{SELECT held_by = 'account' AND attempts = 0 FROM kliv_mail.deliveries WHERE recipient LIKE 'rcpt-421%'});
sql(q{SELECT kliv_mail.cancel(message_id) FROM kliv_mail.deliveries WHERE recipient LIKE 'rcpt-421%'; SELECT FROM kliv_mail.test_smtp()});

# A server that takes two at once: the others that were opening are turned away, which holds nobody;
# what was learnt lasts, and the next sender knows it.
$smtp->set(max_connections => 2, delay_dot => 20);
my $turned_away = sub { next_sender(); $smtp->drop_connections; return scalar grep { $_->{event} eq 'connect' } burst(80) };
my $connects = $turned_away->();
# Those that go well may call for more before the first one is refused.
cmp_ok($connects, '<=', 8, 'a server that takes two connections: at most connections_per_account are tried, and none again for each mail') or diag($connects);
is($turned_away->(), 2, '... the next sender opens two');
is(sql(q{SELECT count(*) FROM kliv_mail.events WHERE kind = 'account_held' AND detail ~ 'oo many c'}), 0, '... and the account is never held');
$smtp->set(max_connections => 0, delay_dot => 0);
sql(q{UPDATE kliv_mail._quota SET connections = NULL});

# Servers that take so many on a connection: by 421, or by closing it.
for my $close (0, 1)
{
    $smtp->set(messages_per_connection => 3, limit_close => $close);
    @events = burst(30);
    my @messages = grep { $_->{event} eq 'message' && $_->{rcpt}[0] =~ /^burst/ } @events;
    is(scalar(@messages), 30, 'three a connection, then ' . ($close ? 'closed' : '421') . ': each mail once');
    is((sort { $b <=> $a } map { $_->{nth} } @messages)[0], 3, '... three a connection');
    # What has left by BDAT when the connection closes without a word is in doubt, once: then DATA serves.
    cmp_ok(sql("SELECT count(*) FROM kliv_mail.deliveries WHERE recipient LIKE 'burst${burst}+%' AND attempts > 1"), '<=', $close ? 8 : 0, '... at the first attempt');
}
$smtp->set(messages_per_connection => 0, limit_close => 0);

# Five a second is what Resend takes.
sql(q{UPDATE kliv_mail._account SET provider = 'resend' WHERE name = 'custom'});
$start = time;
@events = burst(11);
cmp_ok($events[-1]{time} - $start, '>=', 1.95, 'where the provider publishes a rate, eleven mails take two seconds');

# ---- more connections than the process may have descriptors ----

# (a third of them is for what is not a file)
$node->configure(max_files_per_process => 90, 'kliv_mail.max_daily_limit' => 1_000_000);
$session->quit;
$node->restart;
$session = $node->session;
sql("SELECT FROM kliv_mail.configure_smtp(account => 'many$_', host => '127.0.0.1', port => " . $smtp->port
      . ", encryption => 'none', username => '', from_address => 'a\@many$_.example', test => false)") for 1 .. 6;
$smtp->state;
$smtp->set(delay_dot => 300);
sql(q{SELECT kliv_mail.send(format('many%s_%s@example.com', i, j), 'x', 'x', account => 'many' || j) FROM generate_series(1, 16) AS i, generate_series(1, 6) AS j});
wait_until(q{SELECT count(*) = 96 FROM kliv_mail.deliveries WHERE recipient LIKE 'many%' AND status = 'sent'});
my $peak = $smtp->state->{peak};
cmp_ok($peak, '<', 30, "six accounts had fewer connections than they wanted ($peak)");
is(sql(q{SELECT count(*) FROM kliv_mail.events WHERE kind = 'account_held' AND account LIKE 'many%'}), 0, '... and none was held for it');

$session->quit;
$node->stop;
done_testing();
