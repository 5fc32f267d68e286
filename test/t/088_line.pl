# Where in the line a claim begins (src/worker/sender_line.c): while a sender is
# busy and passes over what it has sent, mail that comes to stand before that place
# leaves all the same: by the transactions that a place waits for, or by looking back,
# of which either is enough for what is tried here; and no claim begins at the front
# while there is mail.  And the rows of send() are rows as any INSERT's (src/db/rows.c):
# triggers that somebody put on the tables run.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils ();
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new('main', conf => { 'kliv_mail.allowed_hosts' => '127.0.0.1', 'kliv_mail.max_daily_limit' => 1_000_000, log_min_messages => 'debug1' });
my $session = $node->session;
$session->sql("SELECT count(*) FROM kliv_mail.configure_smtp(host => '127.0.0.1', port => " . $smtp->port
      . ", encryption => 'none', username => '', from_address => 'shop\@shop.example', test => false, hourly_limit => 1000000, daily_limit => 1000000)");
$smtp->set(delay_dot => 20);

# The sender is never idle until the condition holds: whole looks at the line before
# a rest are not what is tested.
my $stream = 0;
sub busy_until
{
    my ($name, $condition) = @_;
    my $begun = $stream;
    KlivMail::Cluster->wait_for($name, sub {
        if ($session->sql('SELECT count(*) < 200 FROM kliv_mail._outbox WHERE due < now()') eq 't')
        {
            $stream += 100;
            $session->sql("SELECT count(kliv_mail.send('s$stream-' || n || '\@x.example', 'x', 'x')) FROM generate_series(1, 100) AS n");
        }
        return $condition->();
    });
    return $stream - $begun;
}
sub sent { my ($local) = @_; return scalar $smtp->accepted("$local\@x.example"); }
# More than a claim takes has left behind what waits.
sub more_left { my $goal = $smtp->count + 400; busy_until('400 more have left', sub { $smtp->count >= $goal }); return; }

# Claims that looked at all of it, which may take long and is for a sender that has nothing to do.
sub fronts { return scalar(() = PostgreSQL::Test::Utils::slurp_file($node->logfile) =~ /a claim began at the front of each line/g); }

# Due in a while, so that it is locked before any claim.
my ($late, $locker) = ($node->session, $node->session);
my $ahead = 5 + $node->seconds_ahead;
$session->sql("SELECT kliv_mail.send('locked\@x.example', 'x', 'x', send_at => now() + interval '$ahead seconds')");
$locker->sql('BEGIN');
is($locker->sql(q{SELECT count(*) FROM (SELECT FROM kliv_mail._outbox WHERE recipient = 'locked@x.example' FOR UPDATE) AS x}), 1, 'a row is locked before it is due');
$late->sql('BEGIN');
$late->sql(q{SELECT kliv_mail.send('late@x.example', 'x', 'x')});
busy_until('it is due', sub { $session->sql(q{SELECT due < now() FROM kliv_mail._outbox WHERE recipient = 'locked@x.example'}) eq 't' });
more_left();
is(sent('late') + sent('locked'), 0, 'neither has left, while others go on');
my $waited = fronts();
more_left() for 1 .. 3;
cmp_ok(fronts() - $waited, '<=', 1, 'a transaction that writes for long does not keep claims at the front');
$late->sql('COMMIT');
busy_until('what was committed late has left', sub { sent('late') });
is(sent('late'), 1, 'what was committed late leaves by a sender that is busy');
more_left();
is(sent('locked'), 0, 'what is locked is passed over');
$locker->sql('COMMIT');
busy_until('what was locked has left', sub { sent('locked') });
is(sent('locked'), 1, 'what was locked leaves by a sender that is busy');
my $fronts = fronts();
cmp_ok($fronts, '>=', 1, 'a sender begins at the front');
more_left() for 1 .. 3;
cmp_ok(fronts() - $fronts, '<=', 1, '... which claims where it had come to all the time, and looks back at what is before it');

# A look back takes some milliseconds, whatever a snapshot keeps of what was sent: stretches are cut until they do.
sub stretches { my @all = PostgreSQL::Test::Utils::slurp_file($node->logfile) =~ /a look back at stretch \d+ of (\d+)/g; return $all[-1]; }
my $holder = $node->session;
$holder->sql('BEGIN ISOLATION LEVEL REPEATABLE READ');
$holder->sql('SELECT count(*) FROM kliv_mail._outbox');
$session->sql('SELECT kliv_mail.pause()');
$session->wait_until('SELECT count(*) = 0 FROM kliv_mail._outbox WHERE epoch IS NOT NULL');
$session->sql(q{INSERT INTO kliv_mail._outbox (id, message_id, recipient, kind, origin, route, priority, due, created_at)
    SELECT -n, 0, '', 'to', kliv_mail._origin(), '', 1 + n % 2, now() - n * interval '2 ms', now() FROM generate_series(1, 400000) AS n});
$session->sql('DELETE FROM kliv_mail._outbox WHERE id < 0');
my $cut = stretches();
$session->sql('SELECT kliv_mail.resume()');
busy_until('it is cut', sub { stretches() >= $cut + 2 });
cmp_ok(stretches(), '>=', $cut + 2, 'who looks back at much does so in stretches');
# Half of it has a priority of which this sender has claimed nothing yet: claims do not pass over it either.
sub reads { return $session->sql(q{SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = '_outbox_ready'}); }
my $read = reads();
more_left() for 1 .. 4;
$read = reads() - $read;
cmp_ok($read, '<', 6_000_000, "... and claims begin behind it, whoever has sent it: 1,600 mails read $read entries");
$holder->quit;

# What was refused and is asked for again stands where it stood.
$smtp->set(rcpt_reply => '550 5.1.1 no such user');
my $again = $session->sql(q{SELECT kliv_mail.send('again@x.example', 'x', 'x')});
$session->wait_until("SELECT status = 'bounced' FROM kliv_mail.deliveries WHERE message_id = $again");
$smtp->set(rcpt_reply => '');
$session->wait_until('SELECT count(*) = 0 FROM kliv_mail._outbox');
more_left();
$session->sql("SELECT kliv_mail.unsuppress('again\@x.example'), kliv_mail.retry($again)");
busy_until('what is tried again has left', sub { sent('again') });
is(sent('again'), 1, 'retry(): it leaves by a sender that is busy');
$_->quit for $late, $locker;

# What has expired ends as fast as the sender claims, also where it is never idle.
$session->wait_until('SELECT count(*) = 0 FROM kliv_mail._outbox');
$session->sql(q{SELECT count(kliv_mail.send('old@x.example', 'x', 'x', send_at => now() + interval '1 day')) FROM generate_series(1, 8000)});
more_left();
my $before = $smtp->count;
$session->sql(q{UPDATE kliv_mail._outbox SET expires_at = now() WHERE recipient = 'old@x.example'});
busy_until('8,000 expired', sub { $session->sql(q{SELECT count(*) = 0 FROM kliv_mail._outbox WHERE recipient = 'old@x.example'}) eq 't' });
my $meanwhile = $smtp->count - $before;
cmp_ok($meanwhile, '<', 1000, "8,000 expire behind a sender that is busy, while $meanwhile others leave");
$session->sql(q{DELETE FROM kliv_mail._delivery WHERE recipient = 'old@x.example'});

# ---- triggers ----

$session->wait_until('SELECT count(*) = 0 FROM kliv_mail._outbox');
$session->sql(q{
    CREATE TABLE seen (what text, path text);
    CREATE FUNCTION sees() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_WHEN = 'BEFORE' THEN NEW.subject := NEW.subject || '!'; END IF;
        INSERT INTO public.seen VALUES (TG_WHEN || ' ' || TG_TABLE_NAME, current_setting('search_path'));
        RETURN NEW;
    END $$;
    CREATE TRIGGER before_message BEFORE INSERT ON kliv_mail._message FOR EACH ROW EXECUTE FUNCTION sees();
    CREATE TRIGGER after_outbox AFTER INSERT ON kliv_mail._outbox FOR EACH ROW EXECUTE FUNCTION sees();
    SET search_path = public});
my $id = $session->sql(q{SELECT kliv_mail.send('a@x.example, b@x.example', 'Triggers', 'x')});
is($session->sql('SELECT what, path, count(*) FROM seen GROUP BY 1, 2 ORDER BY 1'),
    "AFTER _outbox|pg_catalog, pg_temp|2\nBEFORE _message|pg_catalog, pg_temp|1", 'triggers on the tables run for each row, under a fixed path');
is($session->sql('SHOW search_path'), 'public', '... and the caller has its own again');
is($session->sql("SELECT subject FROM kliv_mail.messages WHERE id = $id"), 'Triggers!', '... and change what is stored');
$session->sql(q{CREATE OR REPLACE FUNCTION sees() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$});
like($session->try(q{SELECT kliv_mail.send('c@x.example', 'x', 'x')})->{err}, qr/not today/, 'one that raises ends the call');
is($session->sql('SHOW search_path'), 'public', '... and the path is the caller\'s all the same');
$session->sql(q{
    DROP TRIGGER before_message ON kliv_mail._message;
    DROP TRIGGER after_outbox ON kliv_mail._outbox;
    CREATE OR REPLACE FUNCTION sees() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.epoch IS NOT NULL AND NEW.recipient ~ '^none' THEN NEW.priority := 32000; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER before_outbox BEFORE UPDATE ON kliv_mail._outbox FOR EACH ROW EXECUTE FUNCTION sees();
    ALTER TABLE kliv_mail._outbox ENABLE ALWAYS TRIGGER before_outbox;
    SELECT kliv_mail.send('none@x.example', 'x', 'x')});
busy_until('other mail has left', sub { sent('none') || PostgreSQL::Test::Utils::slurp_file($node->logfile) =~ /has the priority 32000, which is none/ });
more_left();
is(sent('none'), 0, 'a row that gets a priority which is none does not leave');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/terminated by signal/, '... others do, and no process ends');
$session->quit;
$node->stop;
done_testing();
