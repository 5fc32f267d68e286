# What is changed while mail is under way counts for what has not left, and
# costs no second copy; each marketing mail has its own recipient's link; and a
# recipient gets no more than recipient_hourly_limit.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Test::More;

my %smtp = map { $_ => KlivMail::SmtpServer->start } qw(old new);
my $node = KlivMail::Cluster->new(
    'main',
    conf => {
        'kliv_mail.allowed_hosts'           => '127.0.0.1',
        'kliv_mail.connections_per_account' => 2
    });
# Away from the turn of an hour, which opens windows.
$node->clock_to_noon;

sub configure
{
    my ($server) = @_;
    $node->sql("SELECT FROM kliv_mail.configure_smtp(host => '127.0.0.1', port => @{[ $smtp{$server}->port ]}, encryption => 'none', username => '',
        from_address => 'shop\@shop.example', hourly_limit => 1000, daily_limit => 5000, test => false)");
    return;
}

# Mails to NAME1@, NAME2@, ... at once.
sub send_mails
{
    my ($name, $count, $more) = @_;
    $node->sql("SELECT count(kliv_mail.send('$name' || i || '\@x.example', 'x', 'x'" . ($more // '') . ")) FROM generate_series(1, $count) AS i");
    return;
}

sub all_sent
{
    my ($name, $count, $what) = @_;
    $node->wait_until("SELECT count(*) = 0 FROM kliv_mail._outbox WHERE recipient LIKE '$name%'");
    is($node->sql("SELECT status, count(*) FROM kliv_mail.deliveries WHERE recipient LIKE '$name%' GROUP BY 1"), "sent|$count", $what);
    return;
}

sub arrived { my ($server, $name) = @_; return scalar grep { $_->{rcpt}[0] =~ /^\Q$name\E\d/ } $smtp{$server}->accepted; }

# ---- one suppression does not make each mail read all that wait ----

{
    my $session = $node->session;
    $session->query(q{SELECT kliv_mail.pause(); SELECT kliv_mail.suppress('gone@x.example')});
    # Plans are kept from when little waits.
    $session->query(q{SELECT kliv_mail.send('first@x.example', 'x', 'x')}) for 1 .. 8;
    my $read = $session->query(q{BEGIN; SELECT count(kliv_mail.send('many' || i || '@x.example', 'x', 'x')) FROM generate_series(1, 500) AS i;
        SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables WHERE relid = 'kliv_mail._outbox'::regclass; ROLLBACK});
    cmp_ok(($read =~ /(\d+)\D*\z/)[0], '<', 20_000, 'rows of the outbox that 500 mails read where an address is suppressed');
    $session->query(q{SELECT kliv_mail.cancel(id) FROM kliv_mail.messages; SELECT kliv_mail.unsuppress('gone@x.example'); SELECT kliv_mail.resume()});
    $session->quit;
}

configure('old');

# ---- each recipient's own link ----

$node->sql(q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://shop.example/unsubscribe', postal_address => '1 Road')});
for my $notify (qw(off on))
{
    $node->reconfigure('kliv_mail.notify' => $notify);
    # Some before them, so that outcomes are recorded where the next ones are claimed.
    send_mails("plain$notify", 20);
    send_mails("news$notify", 100, q{, message_type => 'marketing'});
    all_sent("news$notify", 100, "a hundred marketing mails, notify $notify");
    my %link = map { split /\|/ } split /\n/, $node->sql("SELECT recipient, kliv_mail.unsubscribe_url(recipient) FROM kliv_mail.deliveries WHERE recipient LIKE 'news$notify%'");
    my @wrong;
    for my $entry (grep { $_->{rcpt}[0] =~ /^news$notify/ } $smtp{old}->accepted)
    {
        my $header = ($smtp{old}->message($entry) =~ /^List-Unsubscribe: (.*?)\r\n(?![ \t])/ms)[0] // '';
        $header =~ s/\s+//g;
        push @wrong, "$entry->{rcpt}[0]: $header" if $header ne '<' . $link{ $entry->{rcpt}[0] } . '>';
    }
    is(keys(%link) . " @wrong", '100 ', '... each has the link of its own recipient');
}

# ---- an open reset_smtp() of one account keeps no mail of another ----

{
    $node->sql("SELECT FROM kliv_mail.configure_smtp(host => '127.0.0.1', port => @{[ $smtp{new}->port ]}, encryption => 'none', username => '',
        from_address => 'second\@second.example', test => false, account => 'second')");
    $smtp{new}->set(dot_reply => 'hold');
    my $held = $node->sql(q{SELECT kliv_mail.send('reset@x.example', 'x', 'x', account => 'second')});
    $smtp{new}->wait_for(sub { $smtp{new}->accepted('reset@x.example') }, 30) or die 'it is not sent';
    my $resets = $node->session;
    $resets->query(q{BEGIN; SELECT count(*) FROM kliv_mail.reset_smtp('second')});
    $smtp{new}->set(dot_reply => '');
    $smtp{new}->resume;
    my $id = $node->sql(q{SELECT kliv_mail.send('beside@x.example', 'x', 'x')});
    is($node->sql("SELECT kliv_mail.wait($id, '60 s')"), 'sent', 'while reset_smtp() of another account is open, mail goes');
    is($node->sql("SELECT kliv_mail.wait($held, '60 s')"), 'sent', '... and what was under way is recorded');
    unlike(slurp_file($node->logfile), qr/lock timeout/, '... without a wait for a lock');
    $resets->query('COMMIT');
    $resets->quit;
}

# ---- ALTER DATABASE ... SET, for which nobody waits ----

my ($sender) = $node->workers('kliv_mail sender');
$smtp{old}->set(delay_dot => 2500);
send_mails('slow', 1);
$smtp{old}->wait_for(sub { $smtp{old}->transcript =~ /RCPT TO:<slow1\@x\.example>/ }, 30) or die 'it is not sent';
$node->sql(q{ALTER DATABASE postgres SET work_mem = '5MB'});
all_sent('slow', 1, 'a server that is slow while the database gets another setting');
is(arrived('old', 'slow') . $node->sql(q{SELECT ' ' || doubts || ' ' || attempts FROM kliv_mail._delivery WHERE recipient LIKE 'slow%'}), '1 0 1', '... has one copy');

# ---- what is claimed and has not left ----

$smtp{old}->set(delay_dot => 1000);
send_mails('limit', 12);
$smtp{old}->wait_for(sub { $smtp{old}->transcript =~ /RCPT TO:<limit/ }, 30) or die 'they are not sent';
isnt(($node->workers('kliv_mail sender'))[0], $sender, 'the next mail has a sender that read the new setting');
$node->sql('SELECT FROM kliv_mail.set_limits(hourly_limit => 0)');
$node->wait_until(q{SELECT count(*) = 0 FROM kliv_mail._outbox WHERE epoch IS NOT NULL});
cmp_ok(arrived('old', 'limit'), '<=', 4, 'a limit of 0: only what had left leaves');
$node->sql('SELECT FROM kliv_mail.set_limits(hourly_limit => 1000)');
all_sent('limit', 12, '... with another one the others');
is(arrived('old', 'limit'), 12, '... once');

send_mails('moved', 12);
$smtp{old}->wait_for(sub { $smtp{old}->transcript =~ /RCPT TO:<moved/ }, 30) or die 'they are not sent';
configure('new');
all_sent('moved', 12, 'another server');
cmp_ok(arrived('old', 'moved'), '<=', 4, '... takes over at once');
is(arrived('old', 'moved') + arrived('new', 'moved'), 12, '... and no mail is sent twice');

# ---- recipient_hourly_limit ----

$node->reconfigure('kliv_mail.recipient_hourly_limit' => 5);
$node->sql(q{SELECT count(kliv_mail.send('cap1@x.example', 'x', 'x')) FROM generate_series(1, 100);
    SELECT count(kliv_mail.send('other' || i || '@x.example', 'x', 'x')) FROM generate_series(1, 2) AS i});
all_sent('other', 2, 'a recipient with too many mails holds up no other');
$node->wait_until(q{SELECT count(*) = 95 FROM kliv_mail.deliveries WHERE recipient LIKE 'cap%' AND held_by = 'quota'});
is(arrived('new', 'cap'), 5, '... and gets what an hour allows');
$node->reconfigure('kliv_mail.recipient_hourly_limit' => 1);
my $id = $node->sql(q{SELECT kliv_mail.send('once-rcpt-451+1@x.example', 'x', 'x')});
$node->wait_until("SELECT held_by = 'retry' FROM kliv_mail.deliveries WHERE message_id = $id");
$node->sql("SELECT kliv_mail.retry($id)");
is($node->sql("SELECT kliv_mail.wait($id, '60 s')"), 'sent', 'what was refused is not counted');

$node->stop;
done_testing();
