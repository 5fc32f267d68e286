# What new users stumbled over: each time a row, a hint or an error has to say
# the truth and what cures it.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $tls = KlivMail::Tls->new("$folder/tls");
my ($certificate, $key) = $tls->certificate('good');
my $smtp = KlivMail::SmtpServer->start(starttls => 1, cert => $certificate, key => $key, auth => ['platform:of the platform']);
my $file = "$folder/password";
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp+starttls://localhost:' . $smtp->port,
    conf         => {
        'kliv_mail.platform_username'      => 'platform',
        'kliv_mail.platform_password_file' => $file,
        'kliv_mail.platform_hourly_limit'  => 100,
        'kliv_mail.platform_daily_limit'   => 100,
        'kliv_mail.ca_file'                => $tls->ca_file
    });

my $noon = $node->clock_to_noon;

sub send_sql
{
    my ($recipient, $more) = @_;
    return $node->sql("SELECT kliv_mail.send('$recipient\@example.com', 'x', 'x'" . ($more // '') . ')');
}

# ---- the platform's password file is missing, empty, open to others ----

{
    my $id = send_sql('first');
    for my $trouble (
        [ 'missing', sub { }, qr/does not exist/, qr/administrator of the server writes the password into the file/ ],
        [ 'empty first line', sub { append_to_file($file, "\n"); chmod 0600, $file; }, qr/empty first line/, qr/administrator of the server writes the password into the file/ ],
        [ 'open to others', sub { append_to_file($file, "x\n"); chmod 0644, $file; }, qr/open to group or others/, qr/chmod 600/ ])
    {
        my ($name, $make, $reason, $cure) = @$trouble;
        $make->();
        # Tried again now.
        $node->sql('UPDATE kliv_mail._quota SET held_until = kliv_mail._now(); SELECT kliv_mail._wake()');
        $node->wait_for("the file is found $name", sub { $node->sql("SELECT reason FROM kliv_mail.deliveries WHERE message_id = $id") =~ $reason });
        for my $question (
            "SELECT hint FROM kliv_mail.deliveries WHERE message_id = $id",
            q{SELECT status_detail FROM kliv_mail.smtp_settings WHERE account = 'platform'},
            'SELECT hint FROM kliv_mail.status',
            'SELECT problem FROM kliv_mail.next_step()',
            "SELECT problem FROM kliv_mail.next_step($id)")
        {
            like($node->sql($question), $cure, "password file $name: $question");
        }
        like($node->try('SELECT * FROM kliv_mail.test_smtp()')->{hint}, $cure, '... and test_smtp()');
    }
    # A password that the server refuses is the platform's too, and nobody's with SQL alone.
    unlink $file;
    append_to_file($file, "of another\n");
    chmod 0600, $file;
    $node->sql('UPDATE kliv_mail._quota SET held_until = kliv_mail._now(); SELECT kliv_mail._wake()');
    $node->wait_for('the server refuses it', sub { $node->sql("SELECT reason FROM kliv_mail.deliveries WHERE message_id = $id") =~ /refused user name or password/ });
    for my $question (
        "SELECT hint FROM kliv_mail.deliveries WHERE message_id = $id",
        q{SELECT status_detail FROM kliv_mail.smtp_settings WHERE account = 'platform'},
        "SELECT problem FROM kliv_mail.next_step($id)",
        'SELECT hint FROM kliv_mail.test_smtp() WHERE NOT ok')
    {
        my $answer = $node->sql($question);
        like($answer, qr/administrator of the server (?:corrects|sets) kliv_mail\.platform_username.*kliv_mail\.platform_password_file/, "a password that is refused: $question");
        unlike($answer, qr/configure_smtp/, '... and does not name what cannot set it');
    }
    unlink $file;
    append_to_file($file, "of the platform\n");
    chmod 0600, $file;
    $node->sql('UPDATE kliv_mail._quota SET held_until = kliv_mail._now(); SELECT kliv_mail._wake()');
    is($node->sql("SELECT kliv_mail.wait($id, '2 min')"), 'sent', '... written, and mail leaves');
}

# ---- another quota_timezone: a day has 24 hours, and none is used twice ----

{
    my $usage = q{SELECT window_name, window_start AT TIME ZONE 'UTC' = date_trunc(window_name, kliv_mail._now() AT TIME ZONE 'UTC'),
                         resets_at - window_start, used FROM kliv_mail.usage WHERE account = 'platform' ORDER BY 1 DESC};
    my $used = $node->sql(q{SELECT used FROM kliv_mail.usage WHERE account = 'platform' AND window_name = 'day'});
    cmp_ok($used, '>', 0, 'something is used today');
    for my $zone ('Asia/Tokyo', 'Asia/Kolkata', 'America/New_York', 'Pacific/Chatham')
    {
        $node->sql("ALTER DATABASE postgres SET kliv_mail.quota_timezone = '$zone'");
        is($node->sql($usage), "hour|t|01:00:00|$used\nday|t|1 day|$used", "$zone: what is used counts in the windows of UTC");
    }
    $node->clock_offset(($noon + 36 * 3600) . ' s');
    is($node->sql(q{SELECT used, window_start = date_trunc('day', kliv_mail._now(), 'Pacific/Chatham') FROM kliv_mail.usage WHERE account = 'platform' AND window_name = 'day'}),
        '0|t', '... and when they are over, the new zone\'s');
    $node->clock_offset("$noon s");
    $node->sql('ALTER DATABASE postgres RESET kliv_mail.quota_timezone');
}

# ---- in doubt, and not tried again by itself ----

{
    $node->reconfigure('kliv_mail.on_in_doubt' => 'hold');
    my $id = send_sql('drop-dot');
    $node->wait_until("SELECT status = 'in_doubt' FROM kliv_mail.deliveries WHERE message_id = $id");
    my ($held_by, $reason, $hint) = split /\|/, $node->sql("SELECT coalesce(held_by, 'nothing'), reason, hint FROM kliv_mail.deliveries WHERE message_id = $id");
    is($held_by, 'nothing', 'in doubt and held: no retry is planned, and none is named');
    like($reason, qr/a server may have it, and only retry\(\) or cancel\(\) moves it on/, '... the reason says what moves it on');
    like($hint, qr/SELECT kliv_mail\.retry\($id\);.*SELECT kliv_mail\.cancel\($id\);/, '... the hint both statements');
    is($node->sql("SELECT kliv_mail.wait($id, '1 h')"), 'in_doubt', '... wait() does not wait for what does not come');
    like($node->sql("SELECT problem, statement FROM kliv_mail.next_step($id)"), qr/retry\(\) or cancel\(\).*\|SELECT kliv_mail\.retry\($id\);$/, '... next_step() says the same');
    is($node->sql("SELECT kliv_mail.cancel($id)"), 't', '... cancel() ends it');
    like($node->sql("SELECT status, reason FROM kliv_mail.deliveries WHERE message_id = $id"), qr/^cancelled\|.*a copy may have arrived/, '... and says what may be');
    $node->reconfigure('kliv_mail.on_in_doubt' => 'retry');
}

# ---- who waits for a message hears of what ends it without a sender ----

my $later = 0;
for my $end (
    [ 'cancel()', 'SELECT kliv_mail.cancel(%s)', 'cancelled' ],
    [ 'suppress()', q{SELECT kliv_mail.suppress('later2@example.com') /* %s */}, 'suppressed' ],
    [ 'pause()', 'SELECT kliv_mail.pause() /* %s */', 'scheduled' ],
    [ 'a prepared cancel()', q{BEGIN; SELECT kliv_mail.cancel(%s); PREPARE TRANSACTION 'c'; COMMIT PREPARED 'c'}, 'cancelled' ])
{
    my ($name, $statement, $status) = @$end;
    my $id = send_sql('later' . ++$later, q{, send_at => kliv_mail._now() + interval '1 hour'});
    my $session = $node->session;
    $session->send("SELECT kliv_mail.wait($id, '2 hours')");
    $node->wait_until("SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%kliv_mail.wait($id, %' AND wait_event = 'Extension'");
    $node->sql(sprintf $statement, $id);
    is($session->result, $status, "$name wakes wait()");
    $session->quit;
    $node->sql('SELECT kliv_mail.resume()');
}

# ---- a database that converts nothing: what is wrong is named ----

$node->sql(q{CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0});
$node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => 'bytes');
for (
    [ 'subject',         q{kliv_mail.send('a@example.com', E'caf\xe9', 'x')} ],
    [ 'body',            q{kliv_mail.send('a@example.com', 'x', E'caf\xe9')} ],
    [ 'cc',              q{kliv_mail.send('a@example.com', 'x', 'x', cc => E'caf\xe9 <b@example.com>')} ],
    [ 'headers',         q{kliv_mail.send('a@example.com', 'x', 'x', headers => jsonb_build_object('X-A', E'caf\xe9'))} ],
    [ 'attachments',     q{kliv_mail.send('a@example.com', 'x', 'x', attachments => ARRAY[(E'caf\xe9.txt', NULL, NULL, 'x')::kliv_mail.attachment])} ],
    [ 'content',         q{kliv_mail.attach_text('x', E'caf\xe9')} ],
    [ 'name',            q{kliv_mail.mailbox('a@example.com', E'caf\xe9')} ],
    [ 'host',            q{kliv_mail.configure_smtp(host => E'caf\xe9', password => 'x')} ],
    [ 'allowed_senders', q{kliv_mail.configure_smtp(host => 'smtp.example.com', username => 'a@example.com', password => 'x', allowed_senders => ARRAY[E'caf\xe9@example.com'])} ],
    [ 'password',        q{kliv_mail.configure_smtp(host => 'smtp.example.com', username => 'a@example.com', password => E'caf\xe9')} ],
    [ 'password',        q{kliv_mail.test_smtp(host => 'smtp.example.com', username => 'a@example.com', password => E'caf\xe9')} ])
{
    my ($argument, $call) = @$_;
    my $result = $node->try("SELECT * FROM $call", dbname => 'bytes');
    is("$result->{state} $result->{message}", "22021 $argument: not in UTF-8, as text in a SQL_ASCII database has to be", "SQL_ASCII: $argument");
}
like($node->try(q{SELECT kliv_mail.send('a@example.com', E'caf\xe9', 'x')}, dbname => 'bytes')->{hint}, qr/convert/, '... the hint says how to convert it');
is($node->sql(q{SELECT kliv_mail.is_address(E'caf\xe9@example.com'), kliv_mail.is_address('cafe@example.com')}, dbname => 'bytes'), 'f|t', '... is_address() raises nothing');
is($node->sql(q{
    SELECT convert_to(convert_from(convert(convert_to(E'caf\xe9', 'SQL_ASCII'), 'LATIN1', 'UTF8'), 'SQL_ASCII'), 'SQL_ASCII') = '\x636166c3a9'},
    dbname => 'bytes'), 't', '... and what the hint says does it');

# ---- too large: one argument, or all of them together ----

like($node->try(q{SELECT kliv_mail.send('a@example.com', 'x', repeat('x', 30000000), repeat('y', 15000000))})->{message},
    qr/^body: 29296 kB, over /, 'one argument that is too large is named');
like($node->try(q{SELECT kliv_mail.send('a@example.com', 'x', repeat('x', 15000000), repeat('y', 15000000))})->{message},
    qr/^message: 29296 kB together \(body 14648 kB, html 14648 kB\), over kliv_mail\.max_message_size \(25600 kB\)$/, 'two that are too large together: both, with their sizes');

# ---- errors say what the caller did, and not where in our code that was found ----

$node->sql(q{SELECT kliv_mail.send('key@example.com', 'x', 'x', idempotency_key => 'k')});
for my $call (
    q{kliv_mail.suppress('no address')},
    q{kliv_mail.set_limits(-1, account => 'none')},
    q{kliv_mail.pause('none')},
    q{kliv_mail.grant_read('none')},
    q{kliv_mail.set_brand(unsubscribe_url => 'none')},
    q{kliv_mail.update_sender(from_name => 'x', account => 'none')},
    q{kliv_mail.configure_smtp(host => 'smtp.example.com', username => 'a@example.com', password => 'x', daily_limit => 10001, test => false)},
    q{kliv_mail.send('key@example.com', 'x', 'y', idempotency_key => 'k')},
    q{kliv_mail.raw_message(1, 'none@example.com')})
{
    my $result = $node->try("SELECT * FROM $call");
    isnt($result->{state}, '', "refused: $call");
    unlike($result->{err}, qr/CONTEXT|kliv_mail\._/, '... without a line of our code');
}
like($node->try(q{DO $$ BEGIN PERFORM kliv_mail.suppress('no address'); END $$})->{err}, qr/CONTEXT: .*kliv_mail\.suppress.*\n.*inline_code_block line 1/,
    'the caller\'s own context is kept');

# ---- a read-only transaction ----

for my $call (
    q{send('ro@example.com', 'x', 'x')}, 'pause()', 'resume()', q{suppress('ro@example.com')}, q{set_limits(1)}, q{grant_read('none')}, 'rotate_key()',
    q{update_sender(from_name => 'x')}, q{configure_smtp(host => 'smtp.example.com', username => 'a@example.com', password => 'x', dry_run => true)})
{
    my ($name) = $call =~ /^(\w+)/;
    my $result = $node->try("BEGIN READ ONLY; SELECT * FROM kliv_mail.$call");
    is("$result->{state} $result->{message}", "25006 cannot execute kliv_mail.$name() in a read-only transaction", "read-only: $name()");
}
is($node->try("BEGIN READ ONLY; SELECT count(*) FROM kliv_mail.$_")->{state}, '', "read-only: $_ can be looked at")
  for 'messages', 'deliveries', 'events', 'usage', 'status', 'smtp_settings', 'suppressions', 'providers', 'next_step()';

# ---- dropped and made anew in one transaction ----

KlivMail::RawMessages::gone(qr/^(?!anew\@)/, 'the extension was dropped');
$node->sql('BEGIN; DROP EXTENSION kliv_mail; CREATE EXTENSION kliv_mail; SELECT kliv_mail.send(\'anew@example.com\', \'x\', \'x\'); COMMIT');
is($node->sql(q{SELECT kliv_mail.wait(1, '2 min')}), 'sent', 'mail of a transaction that drops the extension and makes it anew leaves');

$node->stop;
done_testing();
