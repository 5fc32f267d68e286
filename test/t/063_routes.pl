# Failover, holds, resume, the reserved share, order, and accounts that are not
# in each other's way (C4).  The clock is moved by kliv_mail.test_clock_offset.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;
use Time::HiRes 'time';

my %server = map { $_ => KlivMail::SmtpServer->start } qw(first other relay);
my $node = KlivMail::Cluster->new('main', conf => { 'kliv_mail.allowed_hosts' => '127.0.0.1' });
my $offset = $node->clock_to_noon;

# One session for everything, since each that is opened takes its time.
my $session = $node->session;
$session->query('SET client_min_messages = error');

sub sql { return $session->sql($_[0]); }
sub wait_until { return $session->wait_until($_[0]); }

# For this session and every sender.
sub move_clock
{
    ($offset) = @_;
    sql(sprintf q{SET kliv_mail.test_in_session = on; SET kliv_mail.test_clock_offset = '%.3f s'; ALTER DATABASE postgres SET kliv_mail.test_clock_offset = '%1$.3f s'}, $offset);
    return;
}
move_clock($offset);

sub configure
{
    my ($account, $server, $from, $more) = @_;
    sql("SELECT FROM kliv_mail.configure_smtp(account => '$account', host => '127.0.0.1', port => " . $server{$server}->port
          . ", encryption => 'none', username => '', from_address => '$from', hourly_limit => 1000, daily_limit => 2000, test => false"
          . ($more // '') . ')');
    return;
}

# One mail to each local part, in one transaction; their ids.
sub send_mails
{
    my ($more, @locals) = @_;
    return split /\n/,
      sql(join ' UNION ALL ', map { "SELECT kliv_mail.send('$_\@example.com', 'x', 'x'$more)" } @locals);
}

sub list { return "'{" . join(',', @_) . "}'"; }

# Wait until all of them are in a status: 'sent', or 'deferred|account'.
sub are
{
    my ($status, $name, @ids) = @_;
    my $all = list(@ids);
    ok( eval {
            wait_until("SELECT bool_and(concat_ws('|', status, held_by) = '$status') FROM kliv_mail.deliveries WHERE message_id = ANY ($all)");
        },
        $name)
      or diag(sql("SELECT message_id, recipient, account, status, held_by, reason FROM kliv_mail.deliveries WHERE message_id = ANY ($all)"));
    return;
}

sub accounts_of
{
    return sql('SELECT string_agg(DISTINCT account, \' \') FROM kliv_mail.deliveries WHERE message_id = ANY (' . list(@_) . ')');
}

# Events of failover for them, the accounts in order of the ids.
sub failovers
{
    return sql(q{SELECT string_agg(account, ' ' ORDER BY message_id) FROM kliv_mail.events WHERE kind = 'failover' AND message_id = ANY (}
          . list(@_) . ')');
}

# The server turns everybody away, or welcomes them again.
sub trouble
{
    my ($server) = @_;
    $server{$server}->set(greeting_reply => '554 5.3.2 no service for you');
    $server{$server}->drop_connections;
    return;
}
sub cured { $server{ $_[0] }->set(greeting_reply => ''); return; }

# (failures in a row, seconds since 1970 by the moved clock)
sub hold
{
    return split /\|/, sql("SELECT failures, extract(epoch FROM held_until) FROM kliv_mail._quota WHERE account = '$_[0]'"), 2;
}

sub past_hold
{
    my (undef, $until) = hold(@_);
    move_clock($until - time + 1);
    return;
}

# ---- failover ----

# In this order: custom, other (which may not send for custom), relay (which may).
configure('custom', 'first', 'shop@shop.example', q{, from_name => 'The Shop', allowed_senders => '{only@first.example}'});
configure('other', 'other', 'other@other.example');
configure('relay', 'relay', 'relay@relay.example', q{, allowed_senders => '{@shop.example}'});

# What is about a recipient, a message, the quota or a pause stays with the account.
my @ids = send_mails('', qw(rcpt-550-5.1.1 grey-9 rcpt-452-4.2.2 dot-552-5.3.4 dot-451));
wait_until("SELECT bool_and(last_reply <> '' AND status <> 'sending') FROM kliv_mail.deliveries WHERE message_id = ANY (" . list(@ids) . ')');
is(accounts_of(@ids), 'custom', 'what is about a recipient or a message stays with its account');
sql('SELECT kliv_mail.cancel(id) FROM kliv_mail.messages');
sql('SELECT FROM kliv_mail.set_limits(hourly_limit => 0)');
my @quota = send_mails('', 'quota');
are('deferred|quota', 'where the quota is used up it waits', @quota);
are('sent', '... while others go on', send_mails(q{, account => 'relay'}, 'turn'));
are('deferred|quota', '... and does not take their way', @quota);
sql('SELECT FROM kliv_mail.set_limits(hourly_limit => 1000)');
are('sent', 'it leaves with a new limit', @quota);
sql(q{SELECT kliv_mail.pause('custom')});
my @paused = send_mails('', map { "paused$_" } 1 .. 3);
are('deferred|paused', 'where the account is paused it waits', @paused);
are('sent', '... while others go on', send_mails(q{, account => 'relay'}, 'turn'));
are('deferred|paused', '... and does not take their way', @paused);
is(sql(q{SELECT kliv_mail.resume('custom')}), 3, 'resume() tells how many it released');
are('sent', '... and they leave', @paused);
is(accounts_of(@quota, @paused), 'custom', 'all by their own account');
sql('SELECT kliv_mail.pause()');
@paused = send_mails('', 'all1', 'all2');
push @paused, send_mails(q{, account => 'relay'}, 'all3');
are('deferred|paused', 'pause() holds every account', @paused);
is(sql('SELECT kliv_mail.resume()'), 3, 'resume() ends it for all');
are('sent', '... and they leave', @paused);
is(sql(q{SELECT count(*) FROM kliv_mail.events WHERE kind = 'failover'}), 0, 'no failover in all of this');

trouble('first');
my @moved = send_mails('', map { "moved$_" } 1 .. 3);
my @only = send_mails(q{, from_address => 'only@first.example'}, 'only-first');
are('sent', 'account trouble: the mail leaves', @moved);
is(accounts_of(@moved), 'relay', '... by the next account that may send for it');
is($server{other}->count, 0, '... not by the one before it, which may not');
my ($entry) = $server{relay}->accepted('moved1@example.com');
is($entry->{mail_from}, 'shop@shop.example', '... from the address of the account in trouble');
like($server{relay}->message($entry), qr/^From: The Shop <shop\@shop\.example>\r$/m, '... and with its name');
is(failovers(@moved), 'relay relay relay', '... with an event for each');
like(sql(q{SELECT detail FROM kliv_mail.events WHERE kind = 'failover' LIMIT 1}), qr/"relay" instead of "custom"/, '... that says so');
like(sql(q{SELECT status || ': ' || status_detail FROM kliv_mail.smtp_settings WHERE account = 'custom'}), qr/^held: .*no service for you/,
    'the settings show the account held, and why');
are('deferred|account', 'what only this account may send waits for it', @only);

trouble('relay');
my @nobody = send_mails('', 'nobody');
my @relayed = send_mails(q{, account => 'relay'}, 'relay');
are('deferred|account', 'where all that may send are in trouble, it waits', @nobody, @relayed);
is($server{other}->count, 0, '... and takes no other way');
cured('relay');
sql(q{SELECT FROM kliv_mail.test_smtp(account => 'relay')});
are('sent', 'one of them is well again: it serves its own and the other mail', @relayed, @nobody);
is(accounts_of(@nobody), 'relay', '... still in place of the first');

cured('first');
past_hold('custom');
are('sent', 'the first is tried again by itself: its own mail leaves', @only);
my @back = send_mails('', 'back1', 'back2');
are('sent', '... and new mail', @back);
is(accounts_of(@back, @only), 'custom', '... by the first account again');
is(failovers(@back, @only), '', '... without an event');
is($server{other}->count, 0, 'and all the time nothing by the account that may not');

# ---- holds grow, and end by success, configure_smtp() or test_smtp() ----

sql(q{SELECT FROM kliv_mail.reset_smtp('relay')});
my $before = time;
trouble('first');
@ids = send_mails('', map { "hold$_" } 1 .. 10);
are('deferred|account', 'an account in trouble', @ids);
for my $n (1 .. 9)
{
    my $connections = $server{first}->state->{connections};
    if ($n > 1)
    {
        $before = time;
        past_hold('custom');
    }
    wait_until("SELECT failures >= $n AND held_until > kliv_mail._now() FROM kliv_mail._quota WHERE account = 'custom'");
    my ($failures, $until) = hold('custom');
    my ($least, $most) = ($until - $offset - time, $until - $offset - $before);
    my $base = 30 * 2**($n - 1);
    $base = 3600 if $base > 3600;
    ok($most >= 0.75 * $base && $least <= 1.25 * $base, "failure $n: held for $base s, give or take a quarter")
      or diag("between $least and $most s");
    is($failures, $n, '... counted once');
    is($server{first}->state->{connections} - $connections, 1, '... met by a single connection') if $n > 1;
}
my (undef, $until) = hold('custom');
are('deferred|account', 'all wait', @ids);
is(sql('SELECT max(attempts) FROM kliv_mail.deliveries WHERE message_id = ANY (' . list(@ids) . ')'), 0, '... no attempt was burned');
is(sql(q{SELECT used FROM kliv_mail.usage WHERE account = 'custom' AND window_name = 'hour'}), 0, '... and no quota');
# The sender, or who starts it, wakes up by itself then.
sql(q{ALTER SYSTEM SET kliv_mail.sender_idle_timeout = '1s'; SELECT pg_reload_conf()});
wait_until("SELECT coalesce(abs(extract(epoch FROM next_start) + $offset - $until) < 0.01, false) FROM kliv_mail.status");
pass('... and a sender is started when the hold ends');
cured('first');
past_hold('custom');
are('sent', 'success ends the trouble', @ids);
is(join('|', hold('custom')), '0|', '... and nothing is left of it');

my $connections = $server{first}->state->{connections};
trouble('first');
@ids = send_mails('', map { "configure$_" } 1 .. 10);
are('deferred|account', 'trouble again', @ids);
(undef, $until) = hold('custom');
cmp_ok($until - $offset - time, '<=', 37.5, '... begins at 30 s again');
sql('SELECT FROM kliv_mail.test_smtp()');
are('deferred|account', 'a test that fails leaves it held', @ids);
cured('first');
sql('SELECT FROM kliv_mail.configure_smtp(test => false)');
are('sent', 'configure_smtp() ends a hold at once', @ids);

trouble('first');
@ids = send_mails('', map { "test$_" } 1 .. 10);
are('deferred|account', 'trouble again', @ids);
cured('first');
sql('SELECT FROM kliv_mail.test_smtp()');
are('sent', 'test_smtp() that succeeds ends it at once', @ids);

$session->quit;
$node->stop;
done_testing();
