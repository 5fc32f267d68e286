# Copies (B5, promise 8): a dump restored in one transaction into another
# cluster, and a template copy.  Everything comes back, nothing is mailed before
# resume(), passwords open when the key is there, and with redirect_to or
# delivery = hold no customer hears of a copy.
use strict;
use warnings;
use File::Copy ();
use JSON::PP;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $tls = KlivMail::Tls->new("$folder/tls");
my ($certificate, $key) = $tls->certificate('good');
my $smtp = KlivMail::SmtpServer->start(tls => 1, cert => $certificate, key => $key, auth => ['app:of the app']);
my %conf = ('kliv_mail.allowed_hosts' => 'localhost', 'kliv_mail.ca_file' => $tls->ca_file, 'kliv_mail.sender_idle_timeout' => 0);
my $source = KlivMail::Cluster->new('source', extension => 0, conf => { %conf, 'kliv_mail.key_file' => "$folder/source.key", wal_level => 'logical', max_wal_senders => 2, max_replication_slots => 2 });
my $target = KlivMail::Cluster->new('target', extension => 0, conf => { %conf, 'kliv_mail.key_file' => "$folder/target.key" });

# ---- a database with something in every table ----

$source->sql('CREATE ROLE clerk; CREATE DATABASE shop');
$target->sql('CREATE ROLE clerk; CREATE DATABASE shop');
my @in = (dbname => 'shop');
my $login = "host => 'localhost', port => " . $smtp->port . ", encryption => 'tls', username => 'app', password => 'of the app'";
$source->sql(qq{
    CREATE EXTENSION kliv_mail CASCADE;
    SELECT kliv_mail.grant_send('clerk'), kliv_mail.grant_read('clerk');
    SELECT * FROM kliv_mail.configure_smtp($login, from_address => 'shop\@shop.example', from_name => 'Shop', reply_to => 'help\@shop.example',
        allowed_senders => ARRAY['\@shop.example'], hourly_limit => 100, daily_limit => 4);
    SELECT * FROM kliv_mail.configure_smtp(host => 'relay.example', username => '', port => 25, encryption => 'none', from_address => 'a\@shop.example', account => 'relay', test => false);
    SELECT kliv_mail.pause('relay', 'not yet');
    SELECT kliv_mail.suppress('no\@customer.example', reason => 'asked for it');
    SELECT kliv_mail.suppress('gone\@customer.example'), kliv_mail.forget('gone\@customer.example');
    SELECT kliv_mail.save_topic('news', 'News');
    SELECT kliv_mail.save_template('welcome', 'Welcome', 'Hello {{name}}');
    SELECT kliv_mail.set_brand(name => 'Shop', unsubscribe_url => 'https://shop.example/u');
    SELECT * FROM kliv_mail.configure_bounce_mailbox('imap.shop.example', 'bounces\@shop.example', 'of the mailbox', enabled => false, test => false)}, @in);
my $link = $source->sql(q{SELECT kliv_mail.unsubscribe_url('c@customer.example')}, @in);
my @sent = map { $source->sql("SELECT kliv_mail.send('done$_\@customer.example', 'x', 'x', idempotency_key => 'key $_', tags => ARRAY['t'], metadata => '{\"n\": $_}')", @in, role => 'clerk') } 1 .. 3;
is($source->sql("SELECT kliv_mail.wait($_)", @in), 'sent', "mail $_ is sent") for @sent;
$smtp->set(rcpt_reply => '550 5.1.1 no such user');
is($source->sql('SELECT kliv_mail.wait(' . $source->sql(q{SELECT kliv_mail.send('bad@customer.example', 'x', 'x')}, @in) . ')', @in), 'bounced', 'one bounces');
$smtp->set(rcpt_reply => '');
is($source->sql(q{SELECT remaining FROM kliv_mail.usage WHERE account = 'custom' AND window_name = 'day'}, @in), 1, 'a bounce was given back');
my @queued = map { $source->sql("SELECT kliv_mail.send('waits$_\@customer.example', 'x', 'x')", @in) } 1 .. 4;
$source->wait_until(q{SELECT count(*) = 3 FROM kliv_mail.deliveries WHERE held_by = 'quota'}, @in);
$source->wait_until(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender'});
my $before = $smtp->count;
my $log_start = -s $target->logfile;
is($before, 4, 'four customers have mail, three wait for quota');

# ---- no table is forgotten ----

is($source->sql(q{
    SELECT c.relname FROM pg_depend AS d JOIN pg_class AS c ON c.oid = d.objid
    WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'kliv_mail')
      AND d.classid = 'pg_class'::regclass AND d.deptype = 'e' AND c.relkind IN ('r', 'p', 'm', 'S')
      AND c.oid <> ALL ((SELECT extconfig FROM pg_extension WHERE extname = 'kliv_mail')::oid[])}, @in), '',
    'every table and sequence of the extension is registered for the dump');
is($source->sql(q{SELECT extcondition IS NULL OR '' = ALL (extcondition) FROM pg_extension WHERE extname = 'kliv_mail'}, @in), 't', '... with all of its rows');
my @tables = split /\n/, $source->sql(q{SELECT relname FROM pg_class WHERE relnamespace = 'kliv_mail'::regnamespace AND relkind = 'r' ORDER BY 1}, @in);

# The rows of every table and the state of every sequence, as text.
sub contents
{
    my ($node, $dbname) = @_;
    my $query = join ' UNION ALL ', map { "SELECT '$_' AS t, (SELECT jsonb_agg(to_jsonb(x) ORDER BY to_jsonb(x)) FROM kliv_mail.$_ AS x) AS rows" } @tables;
    my $contents = decode_json($node->sql("SELECT jsonb_object_agg(t, rows) FROM ($query) AS q", dbname => $dbname));
    $contents->{sequences} = $node->sql(q{SELECT string_agg(sequencename || ' ' || coalesce(last_value, 0), ' ' ORDER BY sequencename) FROM pg_sequences WHERE schemaname = 'kliv_mail'}, dbname => $dbname);
    return $contents;
}
$source->sql(q{INSERT INTO kliv_mail._platform_test (tested_at, ok) VALUES (now(), true);
    INSERT INTO kliv_mail._replacement VALUES (-1, 'app', 'code');
    INSERT INTO kliv_mail._webhook (provider, public_key, updated_at, updated_by) VALUES ('sendgrid', 'x', now(), 'me');
    INSERT INTO kliv_mail._report (source, key, at, kind) VALUES ('sendgrid', 'x', now(), 'delivered');
    INSERT INTO kliv_mail._ignored_report VALUES ('bounce', 'no report', now(), 1, now())}, @in);
my $original = contents($source, 'shop');
# (_batch has what senders are at, and none is there.)
is_deeply([ grep { !$original->{$_} } sort keys %$original ], ['_batch'], 'every table has rows to carry over');

# ---- dump and restore ----

sub runs
{
    my ($name, @command) = @_;
    my ($out, $err) = run_command([@command]);
    is($? >> 8, 0, $name) or diag($err);
    is($err, '', '... without a word');
    return;
}
runs('pg_dump', 'pg_dump', '-Fc', '-d', $source->connstr('shop'), '-f', "$folder/shop.dump");
runs('pg_restore --single-transaction', 'pg_restore', '--single-transaction', '--exit-on-error', '-d', $target->connstr('shop'), "$folder/shop.dump");
# (The target's own state row is new: by it the others are known to come from elsewhere.)
my $restored = contents($target, 'shop');
my ($own_row) = grep { $_->{origin} ne $original->{_state}[0]{origin} } @{ $restored->{_state} };
ok($own_row, 'the new extension has an origin of its own');
$restored->{_state} = [ grep { $_ != $own_row } @{ $restored->{_state} } ];
# So is its salt; that of the original is older and goes on to be used.
is(scalar(@{ $restored->{_salt} }), 2, '... and a salt of its own');
$restored->{_salt} = [ grep { $_->{salt} eq $original->{_salt}[0]{salt} } @{ $restored->{_salt} } ];
is_deeply($restored, $original, 'every row of every table and every sequence is as it was');
is($target->try(q{SELECT id FROM kliv_mail.messages}, @in, role => 'clerk')->{state}, '', 'grants come back');

# ---- held, and it says so ----

sub is_held
{
    my ($node, $dbname) = @_;
    my @db = (dbname => $dbname);
    my $result = $node->try("SELECT kliv_mail.send('new\@customer.example', 'x', 'x')", @db);
    is($result->{state}, '', "$dbname: a new send() is taken");
    like("@{ $result->{notices} }", qr/copy of another/, '... with a NOTICE that it is a copy');
    like($result->{hint}, qr/kliv_mail\.resume\(\)/, '... and what releases it');
    is($node->sql('SELECT DISTINCT status, held_by FROM kliv_mail.deliveries WHERE finished_at IS NULL', @db), 'deferred|restore', 'old and new mail is held');
    like($node->sql('SELECT DISTINCT hint FROM kliv_mail.deliveries WHERE finished_at IS NULL', @db), qr/^SELECT kliv_mail\.resume\(\);/, '... each with the hint');
    like($node->sql('SELECT held, hint FROM kliv_mail.status', @db), qr/copy of another.*kliv_mail\.resume\(\)/, 'status says so');
    is($node->sql(q{SELECT string_agg(DISTINCT status, ' ') FROM kliv_mail.smtp_settings}, @db), 'copy', 'smtp_settings too');
    like($node->sql('SELECT problem, statement FROM kliv_mail.next_step()', @db), qr/copy.*\|SELECT kliv_mail\.resume\(\);/, 'next_step() too');
    is($node->sql(q{SELECT sum(used) FROM kliv_mail.usage WHERE account = 'custom' AND window_name = 'day'}, @db), 4, 'the windows are those of the original');
    return;
}
is_held($target, 'shop');
is($target->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE status = 'sent'}, @in), 4, 'the history is there');
is($target->sql("SELECT kliv_mail.send('done1\@customer.example', 'x', 'x', idempotency_key => 'key 1', tags => ARRAY['t'], metadata => '{\"n\": 1}')", @in, role => 'clerk'), $sent[0], 'an idempotency key finds its message');
$target->wait_until(q{SELECT count(*) = 1 FROM kliv_mail.events WHERE kind = 'copy_held'}, @in);
$target->restart;    # the launcher looks at every database anew
is($target->sql(q{SELECT kliv_mail.wait((SELECT max(id) FROM kliv_mail.messages), '2 s')}, @in), 'deferred', 'wait() does not wait for what cannot come');
is(scalar(() = substr(slurp_file($target->logfile), $log_start) =~ /LOG:  kliv_mail: the database "shop" is a copy of another/g), 1, 'the log says so, once');

# ---- passwords ----

my $result = $target->try(q{SELECT * FROM kliv_mail.test_smtp()}, @in);
is($result->{state}, '55000', 'without the key a stored password is refused');
like($result->{err}, qr/key file.*does not exist/, '... with what is missing');
$result = $target->try(q{SELECT kliv_mail.unsubscribe_url('c@customer.example')}, @in);
is($result->{state}, '55000', '... so are links');
ok(!-e "$folder/target.key", 'no key was made in its place');
is($target->sql(q{SELECT kliv_mail.resume()}, @in), 4, 'resume() releases old and new: 4 deliveries');
is($target->sql(q{SELECT status FROM kliv_mail.smtp_settings WHERE account = 'custom'}, @in), 'key missing', 'now the key is what is missing');
$target->sql(q{SELECT * FROM kliv_mail.set_limits(daily_limit => 400)}, @in);
$target->wait_until(q{SELECT string_agg(DISTINCT held_by, ' ') = 'key' FROM kliv_mail.deliveries WHERE finished_at IS NULL}, @in);
pass('... and holds the mail');
is($smtp->count, $before, 'nothing was mailed');
File::Copy::copy("$folder/source.key", "$folder/target.key");
chmod 0600, "$folder/target.key";
is($target->sql('SELECT bool_and(ok) FROM kliv_mail.test_smtp()', @in), 't', 'with the key the password opens');
is($target->sql(q{SELECT kliv_mail.unsubscribe_url('c@customer.example')}, @in), $link, '... and links are what they were');
$target->wait_until(q{SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE finished_at IS NULL}, @in);
is($smtp->count, $before + 4, 'the released mail goes');
is($target->sql(q{SELECT status, replace(status_detail, current_user, 'me') FROM kliv_mail.smtp_settings WHERE account = 'relay'}, @in), 'paused|the account is paused by me: not yet', 'a pause is still one');
is($source->sql('SELECT count(*) FROM kliv_mail.deliveries WHERE finished_at IS NULL', @in), 3, 'the original still has its own');

# ---- a template copy in the same cluster, where the key is at hand ----

$before = $smtp->count;
$source->sql('CREATE DATABASE staging TEMPLATE shop');
is_held($source, 'staging');
my @staging = (dbname => 'staging');
is($source->sql('SELECT bool_and(ok) FROM kliv_mail.test_smtp()', @staging), 't', 'the password opens here, the key is the same');
is($source->sql(q{SELECT DISTINCT held_by FROM kliv_mail.deliveries WHERE finished_at IS NULL}, @staging), 'restore', '... and that a test is well releases nothing');

# delivery = hold is for copies that cannot be told apart; here on top.
$source->sql(q{ALTER DATABASE staging SET kliv_mail.delivery = 'hold'});
$source->sql('SELECT kliv_mail.resume()', @staging);
$source->sql('SELECT * FROM kliv_mail.set_limits(daily_limit => 400)', @staging);
is($source->sql(q{SELECT DISTINCT held_by, reason FROM kliv_mail.deliveries WHERE finished_at IS NULL}, @staging), 'paused|the setting kliv_mail.delivery is hold', 'delivery = hold holds what resume() released');
like("@{ $source->try(q{SELECT kliv_mail.send('held@customer.example', 'x', 'x')}, @staging)->{notices} }", qr/kliv_mail\.delivery is hold/, '... a new send() says so');
is($smtp->count, $before, '... and nothing left');

# redirect_to: all of it to one address, the customer's in a header.
$source->sql(q{ALTER DATABASE staging SET kliv_mail.redirect_to = 'catch-all@staging.example'});
$source->sql(q{ALTER DATABASE staging RESET kliv_mail.delivery});
my $many = $source->sql(q{SELECT kliv_mail.send('to@customer.example', 'x', 'x', cc => 'cc@customer.example', bcc => 'bcc@customer.example')}, @staging);
$source->wait_until(q{SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE finished_at IS NULL}, @staging);
my @redirected = ($smtp->accepted)[ $before .. $smtp->count - 1 ];
cmp_ok(scalar(@redirected), '==', 8, 'the whole queue went');
is_deeply([ grep { $_ ne 'catch-all@staging.example' } map { @{ $_->{rcpt} } } @redirected ], [], 'no envelope has a customer\'s address');
is_deeply([ sort map { $smtp->message($_) =~ /^X-\S*(?:Recipient|Redirect|Original)\S*: <?([^\s>]+)/mi } @redirected ],
    [ sort 'bcc@customer.example', 'cc@customer.example', 'held@customer.example', 'new@customer.example', 'to@customer.example', map { "waits$_\@customer.example" } 2 .. 4 ],
    'each copy says in a header whose it would have been');

# ---- and the original goes on, as if nothing had been ----

$source->sql('SELECT * FROM kliv_mail.set_limits(daily_limit => 400)', @in);
$source->wait_until(q{SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE finished_at IS NULL}, @in);
is_deeply([ sort map { @{ $_->{rcpt} } } ($smtp->accepted)[ $before + 8 .. $smtp->count - 1 ] ], [ map { "waits$_\@customer.example" } 2 .. 4 ], 'the original sends its own mail to its own customers');

# ---- a publication of all tables to a database that sends, too ----

my @live = (dbname => 'live');
my $own = sub { return "SELECT * FROM kliv_mail.configure_smtp($login, from_address => 'shop\@$_[0].example')" };
for ([ $source, 'pub' ], [ $target, 'sub' ])
{
    my ($node, $name) = @$_;
    $node->sql('CREATE DATABASE live');
    $node->sql('CREATE EXTENSION kliv_mail CASCADE; ' . $own->($name), @live);
}
$source->sql('CREATE PUBLICATION p FOR ALL TABLES', @live);
$target->sql("CREATE SUBSCRIPTION s CONNECTION \$\$" . $source->connstr('live') . "\$\$ PUBLICATION p WITH (copy_data = false)", @live);
my $theirs = $source->sql(q{SELECT kliv_mail.send('pub1@live.example', 'x', 'x', send_at => now() + interval '1 hour')}, @live);
$target->wait_until("SELECT count(*) = 1 FROM kliv_mail._outbox WHERE message_id = $theirs", @live);
is($target->sql("SELECT held_by, code FROM kliv_mail.deliveries WHERE message_id = $theirs", @live), 'restore|foreign_origin', 'mail that a publication brings is its publisher\'s');
$source->sql(q{SELECT kliv_mail.pause(reason => 'of the publisher')}, @live);
$target->wait_until('SELECT count(*) = 1 FROM kliv_mail._pause', @live);
# Its sequences are behind what came with others' numbers.
$target->sql(q{SELECT setval(s, 1000) FROM unnest(ARRAY['kliv_mail._message_id', 'kliv_mail._delivery_id', 'kliv_mail._event_id']::regclass[]) AS s}, @live);
my $ours = $target->sql(q{SELECT kliv_mail.send('sub1@live.example', 'x', 'x')}, @live);
is($target->sql("SELECT held_by, reason ~ 'of the publisher' FROM kliv_mail.deliveries WHERE message_id = $ours", @live), 'paused|t', 'its pause() arrives, too, and says whose it is');
$source->sql('SELECT kliv_mail.resume(); ' . $own->('pub'), @live);
$target->wait_until(q{SELECT from_address = 'shop@pub.example' AND NOT EXISTS (SELECT FROM kliv_mail._pause) FROM kliv_mail._account}, @live);
is($target->sql("SELECT held_by, code, hint ~ 'kliv_mail[.]resume' FROM kliv_mail.deliveries WHERE message_id = $ours", @live), 'restore|account_copy|t', 'its account replaces ours: nothing leaves by it');
$target->sql($own->('sub'), @live);
is($target->sql("SELECT kliv_mail.wait($ours, '60 s')", @live), 'sent', '... and configure_smtp() makes it ours again');
is_deeply([ map { "$_->{mail_from} $_->{rcpt}[0]" } grep { $_->{rcpt}[0] =~ /\@live/ } $smtp->accepted ],
    ['shop@sub.example sub1@live.example'], 'it sent its own mail alone, by its own account');
$target->sql('DROP SUBSCRIPTION s', @live);
$_->stop for $source, $target;

done_testing();
