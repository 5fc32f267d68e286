# Retention: what is older goes, in small batches, while the sender has nothing
# better to do; mail that comes meanwhile does not wait for it.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $smtp = KlivMail::SmtpServer->start(no_transcript => 1);
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    conf => {
        'kliv_mail.platform_hourly_limit' => 100,
        'kliv_mail.platform_daily_limit'  => 100,
        'kliv_mail.retention'             => '10d'
    });
my $id = $node->sql(q{SELECT kliv_mail.send('new@example.com', 'x', 'x', idempotency_key => 'new')});
is($node->sql("SELECT kliv_mail.wait($id, '60 s')"), 'sent', 'a mail of now');
my $waiting = $node->sql(q{SELECT kliv_mail.send('waiting@example.com', 'x', 'x', send_at => now() + interval '1 day')});
$node->wait_until(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender'});

# Copies of it, older: 20,000 beyond retention and 100 within, each with a key
# and an event; and one message that is old and still waits.
sub columns
{
    my ($table) = @_;
    return $node->sql("SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute WHERE attrelid = 'kliv_mail.$table'::regclass
        AND attnum > 0 AND NOT attisdropped AND attname NOT IN ('id', 'message_id', 'created_at', 'finished_at', 'header_id', 'key', 'at')");
}

sub grow
{
    my ($count, $age) = @_;
    my ($message, $delivery, $key) = map { columns($_) } '_message', '_delivery', '_idempotency';
    $node->sql("
        BEGIN;
        INSERT INTO kliv_mail._message (id, header_id, created_at, $message)
        SELECT -i, i || header_id, now() - interval '$age', $message FROM kliv_mail._message, generate_series(1, $count) AS i WHERE id = $id;
        INSERT INTO kliv_mail._delivery (id, message_id, created_at, finished_at, $delivery)
        SELECT -i, -i, now() - interval '$age', now() - interval '$age', $delivery
        FROM kliv_mail._delivery, generate_series(1, $count) AS i WHERE message_id = $id;
        INSERT INTO kliv_mail._idempotency (key, message_id, created_at, $key)
        SELECT 'old' || i, -i, now() - interval '$age', $key FROM kliv_mail._idempotency, generate_series(1, $count) AS i WHERE message_id = $id;
        INSERT INTO kliv_mail._event (id, at, kind) SELECT -i, now() - interval '$age', 'paused' FROM generate_series(1, $count) AS i;
        COMMIT");
    return;
}
grow(100, '9 days');
$node->sql("UPDATE kliv_mail._message SET id = id - 1000000 WHERE id < 0; UPDATE kliv_mail._delivery SET id = id - 1000000, message_id = message_id - 1000000 WHERE id < 0;
            UPDATE kliv_mail._idempotency SET key = 'kept' || key, message_id = message_id - 1000000 WHERE message_id < 0; UPDATE kliv_mail._event SET id = id - 1000000 WHERE id < 0");
grow(20000, '11 days');
$node->sql("UPDATE kliv_mail._message SET created_at = now() - interval '20 days' WHERE id = $waiting");
# And many that are as old and wait for next year.
$node->sql(q{
    INSERT INTO kliv_mail._message (id, created_at, sender_role, message_type, subject, header_id, entity, recipients)
    SELECT 5000000 + i, now() - interval '60 days', 'app', 'transactional', 's', i, 'x', 1 FROM generate_series(1, 5000) AS i;
    INSERT INTO kliv_mail._outbox (id, message_id, recipient, kind, origin, route, priority, due, created_at)
    SELECT 5000000 + i, 5000000 + i, 'renewal@example.com', 'to', 'elsewhere', '', 1, now() + interval '1 year', now() - interval '60 days' FROM generate_series(1, 5000) AS i;
    INSERT INTO kliv_mail._idempotency (sender_role, key, fingerprint, message_id, created_at)
    SELECT 'app', 'renewal ' || i, 'x', 5000000 + i, now() - interval '60 days' FROM generate_series(1, 5000) AS i});
# A batch reads what it deletes, not all history beside it.
my $read = $node->sql(q{ANALYZE kliv_mail._message, kliv_mail._delivery;
    BEGIN;
    SELECT kliv_mail._retain(now() - interval '10 days', 100) AS gone \gset
    SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables WHERE relname IN ('_message', '_delivery', '_idempotency', '_event');
    ROLLBACK});
cmp_ok($read, '<', 4000, "a batch of 100 rows of each table reads $read");
# Slow enough to be met in the middle.
$node->sql(q{
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;
    CREATE TRIGGER slow AFTER DELETE ON kliv_mail._event FOR EACH STATEMENT EXECUTE FUNCTION slow();
    ALTER TABLE kliv_mail._event ENABLE ALWAYS TRIGGER slow});

my $old = q{SELECT count(*) FROM kliv_mail._delivery WHERE id BETWEEN -20000 AND -1};
$node->sql(q{SELECT kliv_mail.send('start@example.com', 'x', 'x')});
$node->wait_until("SELECT ($old) < 20000");
my $meanwhile = $node->sql(q{SELECT kliv_mail.send('meanwhile@example.com', 'x', 'x')});
is($node->sql("SELECT kliv_mail.wait($meanwhile, '60 s')"), 'sent', 'a mail meanwhile is sent');
my $left = $node->sql($old);
cmp_ok($left, '>', 0, "... before all of the old is gone: $left are left");
$node->sql(q{DROP TRIGGER slow ON kliv_mail._event});

$node->wait_until("SELECT ($old) = 0");
$node->wait_until(q{SELECT NOT EXISTS (SELECT FROM kliv_mail._message WHERE id BETWEEN -20000 AND -1)
                       AND NOT EXISTS (SELECT FROM kliv_mail._idempotency WHERE key LIKE 'old%')
                       AND NOT EXISTS (SELECT FROM kliv_mail._event WHERE id BETWEEN -20000 AND -1)});
is($node->sql(q{SELECT (SELECT count(*) FROM kliv_mail._message WHERE id < 0), (SELECT count(*) FROM kliv_mail._delivery WHERE id < 0),
                    (SELECT count(*) FROM kliv_mail._idempotency WHERE key LIKE 'kept%'), (SELECT count(*) FROM kliv_mail._event WHERE id < 0)}),
    '100|100|100|100', 'what is younger stays');
is($node->sql("SELECT status FROM kliv_mail.deliveries WHERE message_id = $waiting"), 'scheduled', 'what waits stays, however old');
is($node->sql(q{SELECT kliv_mail.send('new@example.com', 'x', 'x', idempotency_key => 'new')}), $id, 'a key of now is known');
# purge() is one transaction, which reads what it deletes once: not what it deleted before, again and again.
$node->sql('DELETE FROM kliv_mail._message WHERE id < 0; DELETE FROM kliv_mail._delivery WHERE id < 0; DELETE FROM kliv_mail._idempotency WHERE message_id < 0; DELETE FROM kliv_mail._event WHERE id < 0');
$node->sql('VACUUM kliv_mail._message, kliv_mail._delivery, kliv_mail._idempotency, kliv_mail._event');
grow(20000, '9 days');
sub entries_read { return (split /\n/, $node->sql(q{SELECT pg_stat_force_next_flush(); SELECT sum(idx_tup_read) FROM pg_stat_all_indexes WHERE schemaname = 'kliv_mail'}))[-1]; }
my $before = entries_read();
cmp_ok($node->sql(q{SELECT kliv_mail.purge(now() - interval '8 days')}), '>=', 80000, 'purge() deletes 20,000 mails, their keys and events');
cmp_ok((entries_read() - $before) / 80000, '<', 10, '... and reads a few entries for each row');
$node->stop;
done_testing();
