# A sender that meets a row made bad by hand sets it aside and goes on; one
# whose record fails sends no second copy and resumes (A9).
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    conf         => {
        'kliv_mail.platform_hourly_limit' => 1000,
        'kliv_mail.platform_daily_limit'  => 1000
    });

# ---- bad rows ----

# While all is paused, so that no sender is faster than the hand.
$node->sql('SELECT kliv_mail.pause()');
my %bad = (
    'CR and LF in the address' => q{UPDATE kliv_mail._outbox SET recipient = E'a@b.example>\r\nRCPT TO:<evil@x.example' WHERE message_id = %d},
    'an ESMTP parameter'       => q{UPDATE kliv_mail._outbox SET recipient = 'a@b.example> NOTIFY=NEVER' WHERE message_id = %d},
    'an empty address'         => q{UPDATE kliv_mail._outbox SET recipient = '' WHERE message_id = %d},
    'a message that is gone'   => q{DELETE FROM kliv_mail._message WHERE id = %d},
    'CR and LF in From'        => q{UPDATE kliv_mail._message SET from_name = E'x\r\nBcc: evil@x.example' WHERE id = %d},
    'a bad Reply-To'           => q{UPDATE kliv_mail._message SET reply_to = E'a@b.example\r\nBcc: evil@x.example' WHERE id = %d});
my %id;
for my $name (sort keys %bad)
{
    $id{$name} = $node->sql(q{SELECT kliv_mail.send('victim@example.com', 'x', 'x')});
    $node->sql(sprintf($bad{$name}, $id{$name}));
    $node->sql(q{SELECT kliv_mail.send('good@example.com', 'x', 'x')});
}
$node->sql('SELECT kliv_mail.resume()');
ok($smtp->wait_for(sub { $smtp->accepted('good@example.com') == keys %bad }, 120), 'the good mails around bad rows leave');
for my $name (sort keys %bad)
{
    $node->wait_until("SELECT count(*) = 0 FROM kliv_mail._outbox WHERE message_id = $id{$name}");
    like($node->sql("SELECT status, reason <> '' FROM kliv_mail._delivery WHERE message_id = $id{$name}"),
        qr/^(?:failed|bounced)\|t$/, "$name: set aside, and says why");
}
is(scalar(grep { !grep { $_ eq 'good@example.com' } @{ $_->{rcpt} } } $smtp->accepted), 0, 'nothing else reached the server');
unlike($smtp->transcript, qr/evil|NOTIFY/, 'not even as a command');
my @lost = grep { /terminated|PANIC|crash/ } split /\n/, PostgreSQL::Test::Utils::slurp_file($node->logfile);
is("@lost", '', 'no worker died');

# ---- a record that fails ----

# A setting by which every error would end the sender, if it were the database's to make.
$node->wait_until(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender'});
$node->sql('ALTER DATABASE postgres SET exit_on_error = on');

# One that waits for a lock longer than lock_timeout (1 s).
$smtp->set(dot_reply => 'hold');
my $locked = $node->sql(q{SELECT kliv_mail.send('locked@record.example', 'x', 'x')});
ok($smtp->wait_for(sub { scalar($smtp->accepted('locked@record.example')) }, 60), 'lock timeout: the server has it');
my $session = $node->session;
$session->query('BEGIN');
$session->query('LOCK TABLE kliv_mail._delivery IN ACCESS EXCLUSIVE MODE');
$smtp->resume;
$node->wait_for('the record has failed', sub { PostgreSQL::Test::Utils::slurp_file($node->logfile) =~ /lock timeout/ });
$smtp->set(dot_reply => '');
$session->query('COMMIT');
is($node->sql("SELECT kliv_mail.wait($locked, '120 s')"), 'sent', '... recorded once it can be');
is(scalar($smtp->accepted('locked@record.example')), 1, '... one copy');
$session->quit;

# One for which the disk is full: played by a trigger that fires always.
$node->sql(q{
    CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE disk_full USING MESSAGE = 'no space left on device'; END $$;
    CREATE TRIGGER full_disk BEFORE INSERT ON kliv_mail._delivery FOR EACH ROW EXECUTE FUNCTION full_disk();
    ALTER TABLE kliv_mail._delivery ENABLE ALWAYS TRIGGER full_disk});
my @full = split /\n/, $node->sql(q{SELECT kliv_mail.send(format('full%s@record.example', i), 'x', 'x') FROM generate_series(1, 20) AS i});
$node->wait_for('the record has failed', sub { PostgreSQL::Test::Utils::slurp_file($node->logfile) =~ /no space left on device/ });
cmp_ok(scalar(grep { "@{ $_->{rcpt} }" =~ /^full/ } $smtp->accepted), '<=', 2 * 8, 'full disk: nothing more is claimed than is in flight');
like($node->sql('SELECT last_error FROM kliv_mail.status'), qr/no space left on device/, '... status says so');
$node->sql('DROP TRIGGER full_disk ON kliv_mail._delivery');
for my $id (@full)
{
    $node->wait_until("SELECT status = 'sent' FROM kliv_mail.messages WHERE id = $id");
}
pass('... it resumes by itself');
is_deeply([ map { scalar $smtp->accepted("full$_\@record.example") } 1 .. 20 ], [ (1) x 20 ], '... one copy each');

# One row that can never be recorded does not keep the others from it.
my @some = split /\n/, $node->sql(q{SELECT kliv_mail.pause() < 0;
    SELECT kliv_mail.send(format('dup%s@record.example', i), 'x', 'x') FROM generate_series(1, 5) AS i}) =~ s/^\w\n//r;
$node->sql(q{INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, created_at, attempts, doubts, finished_at, changed)
    SELECT o.id, 0, 'x', 'to', 1, '', 'sent', now(), 0, 0, now(), 0 FROM kliv_mail._outbox AS o WHERE o.recipient = 'dup3@record.example'});
$node->sql('SELECT kliv_mail.resume()');
for my $i (0, 1, 3, 4)
{
    is($node->sql("SELECT kliv_mail.wait($some[$i], '60 s')"), 'sent', 'beside a row that cannot be recorded: ' . ($i + 1));
}
is_deeply([ map { scalar $smtp->accepted("dup$_\@record.example") } 1, 2, 4, 5 ], [ (1) x 4 ], '... one copy each');
$node->sql(q{DELETE FROM kliv_mail._delivery WHERE message_id = 0});

# That one's sender ends for want of work, and the next one takes it up.
$node->wait_until(q{SELECT status = 'sent' FROM kliv_mail.deliveries WHERE recipient = 'dup3@record.example'});
is($node->sql(q{SELECT doubts FROM kliv_mail._delivery WHERE recipient = 'dup3@record.example'}), 1, '... which was in doubt once its sender ended');

# A raising trigger of somebody's own that does not fire always: never runs.
$node->sql(q{CREATE TRIGGER plain BEFORE INSERT ON kliv_mail._delivery FOR EACH ROW EXECUTE FUNCTION full_disk()});
my $plain = $node->sql(q{SELECT kliv_mail.send('plain@record.example', 'x', 'x')});
is($node->sql("SELECT kliv_mail.wait($plain, '60 s')"), 'sent', 'an ordinary trigger does not run in the sender');

# A history that its owner has made something else of: what could not be recorded does not leave.
$node->sql(q{DROP TRIGGER plain ON kliv_mail._delivery;
    BEGIN;
    ALTER TABLE kliv_mail._delivery RENAME TO _delivery_before;
    CREATE TABLE kliv_mail._delivery (LIKE kliv_mail._delivery_before) PARTITION BY RANGE (finished_at);
    CREATE TABLE kliv_mail._delivery_all PARTITION OF kliv_mail._delivery DEFAULT;
    COMMIT});
$node->sql(q{SELECT kliv_mail.send('partition@record.example', 'x', 'x')});
$node->wait_for("the log says so", sub { PostgreSQL::Test::Utils::slurp_file($node->logfile) =~ /"kliv_mail\._delivery" is no ordinary table any more/ });
is(scalar($smtp->accepted('partition@record.example')), 0, 'a partitioned history: nothing leaves');
$node->sql('BEGIN; DROP TABLE kliv_mail._delivery; ALTER TABLE kliv_mail._delivery_before RENAME TO _delivery; COMMIT; SELECT kliv_mail.resume()');
$node->wait_until(q{SELECT status = 'sent' FROM kliv_mail.deliveries WHERE recipient = 'partition@record.example'});
is(scalar($smtp->accepted('partition@record.example')), 1, '... and once it is as it was the mail, one copy');
@lost = grep { /terminated by signal|PANIC|crash/ } split /\n/, PostgreSQL::Test::Utils::slurp_file($node->logfile);
is("@lost", '', '... and no process died');
$node->stop;

done_testing();
