# rotate_key() (B4): under load in two databases, and killed at each of its
# steps; no mail is lost or doubled, no password ever closed; in the end the old
# key opens none, and what derives from the root is what it was.
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
my $smtp = KlivMail::SmtpServer->start(
    tls => 1, cert => $certificate, key => $key, delay_dot => 150,
    auth => [ 'one:password of one', 'two:password of two', 'token of both:token of both' ]);
my $file = "$folder/kliv_mail.key";
my $node = KlivMail::Cluster->new(
    'main',
    extension => 0,
    conf => {
        'kliv_mail.key_file'                => $file,
        'kliv_mail.allowed_hosts'           => 'localhost',
        'kliv_mail.ca_file'                 => $tls->ca_file,
        'kliv_mail.connections_per_account' => 2
    });
my @databases = qw(one two);
my $where = "host => 'localhost', port => " . $smtp->port . ", encryption => 'tls', from_address => 'shop\@shop.example', hourly_limit => 5000, daily_limit => 5000";

sub keys_in { my @ids = slurp_file($_[0]) =~ /^kliv_mail key (\w+)/mg; return @ids; }
sub each_database { my ($sql) = @_; return map { $node->sql($sql, dbname => $_) } @databases; }

for my $database (@databases)
{
    $node->sql("CREATE DATABASE $database");
    # The second account's user name is sealed too, since it equals the password.
    $node->sql(qq{
        CREATE EXTENSION kliv_mail CASCADE;
        SELECT * FROM kliv_mail.configure_smtp($where, username => '$database', password => 'password of $database');
        SELECT * FROM kliv_mail.configure_smtp($where, username => 'token of both', password => 'token of both', account => 'token');
        SELECT kliv_mail.set_brand(unsubscribe_url => 'https://$database.example/u')}, dbname => $database);
}
my @links = each_database(q{SELECT kliv_mail.unsubscribe_url('ana@example.com')});
my @token = $links[0] =~ /token=(.*)/;
my $old_ring = slurp_file($file);
is(scalar(keys_in($file)), 1, 'two databases, one key');
$node->sql('CREATE EXTENSION kliv_mail CASCADE');    # a database that stores nothing rotates nothing
is($node->sql('SELECT count(*) FROM kliv_mail.smtp_settings WHERE account <> \'platform\''), 0, 'and one without accounts');

# ---- under load ----

my $mails = 120;
$node->sql("SELECT count(kliv_mail.send('r' || n || '\@$_.example', 'x', 'x', account => CASE n % 2 WHEN 0 THEN 'token' END)) FROM generate_series(1, $mails) AS n", dbname => $_) for @databases;
$smtp->wait_for(sub { $smtp->count >= 5 }) or die 'no drain';
my $started = $smtp->count;
my @sessions = map { $node->session(dbname => $_) } @databases;
my (@answers, $ended);
for (1 .. 4)
{
    $_->send('SELECT kliv_mail.rotate_key()') for @sessions;
    push @answers, map { $_->result } @sessions;
    $ended //= $smtp->count;
}
$smtp->set(delay_dot => 0);
$_->quit for @sessions;
is_deeply(\@answers, [ (2) x 8 ], 'four rotations in both databases at once: each encrypts its two accounts anew');
cmp_ok($ended, '<', 2 * $mails, "... the first of them during the drain (from $started to $ended of " . 2 * $mails . ')');
is(scalar(keys_in($file)), 9, '... each with a key of its own, and none is lost');
$node->wait_until('SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE finished_at IS NULL', dbname => $_) for @databases;
is(join(' ', each_database(q{SELECT count(*) FROM kliv_mail.deliveries WHERE status = 'sent' AND attempts = 1})), "$mails $mails", 'every mail is sent, at the first attempt');
my $copies = $smtp->copies;
is(scalar(keys %$copies), 2 * $mails, 'nothing is lost');
is_deeply([ grep { $copies->{$_} > 1 } keys %$copies ], [], '... or doubled');
is(scalar(grep { !$_->{ok} } $smtp->ledger('auth')), 0, '... and no login failed');
is(join(' ', each_database(q{SELECT count(*) FROM kliv_mail.events WHERE kind = 'account_held'})), '0 0', '... no account was held');

# ---- a kill at each step ----

# Where rotate_key() can be made to stand still: it waits for a lock of ours.
$node->sql(q{
    CREATE FUNCTION stand_still() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_ARGV[0] = current_setting('test.stop', true) THEN PERFORM pg_advisory_xact_lock(1); END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER stand_still BEFORE UPDATE ON kliv_mail._account FOR EACH ROW EXECUTE FUNCTION stand_still('sealing');
    CREATE TRIGGER stand_still_half AFTER UPDATE ON kliv_mail._account FOR EACH ROW WHEN (NEW.name = 'token') EXECUTE FUNCTION stand_still('half');
    CREATE TRIGGER stand_still BEFORE INSERT ON kliv_mail._event FOR EACH ROW EXECUTE FUNCTION stand_still('event')}, dbname => 'one');

my $n = 0;
for (
    [ 'before it reads what is sealed', 'kill', '', sub { $_[0]->query('BEGIN; LOCK TABLE kliv_mail._account IN SHARE ROW EXCLUSIVE MODE') }, 'one', 0 ],
    [ 'when all is open and no key is made', 'stop', '', sub { $_[0]->query('BEGIN; SELECT kliv_mail.rotate_key()') }, 'two', 1 ],
    [ 'when the key is in the file and nothing encrypted with it', 'kill', 'sealing', sub { $_[0]->query('SELECT pg_advisory_lock(1)') }, 'one', 1 ],
    [ 'when one account of two is encrypted anew', 'stop', 'half', sub { $_[0]->query('SELECT pg_advisory_lock(1)') }, 'one', 1 ],
    [ 'when both are', 'kill', 'event', sub { $_[0]->query('SELECT pg_advisory_lock(1)') }, 'one', 1 ],
    [ 'before the commit', 'stop', undef, sub { }, 'one', 1 ])
{
    my ($name, $how, $stop, $block, $blocks_in, $new_keys) = @$_;
    $n++;
    my @before = keys_in($file);
    my @ids = each_database('SELECT string_agg(key_id, \' \' ORDER BY name) FROM kliv_mail._account');
    each_database("SELECT kliv_mail.pause(), kliv_mail.send('step$n\@' || current_database() || '.example', 'x', 'x'), kliv_mail.send('token$n\@' || current_database() || '.example', 'x', 'x', account => 'token')");

    my $blocker = $node->session(dbname => $blocks_in);
    my $rotates = $node->session(dbname => 'one');
    $block->($blocker);
    my $pid = $rotates->query('SELECT pg_backend_pid()');
    $rotates->query("SET test.stop = '$stop'") if $stop;
    $rotates->send(defined $stop ? 'SELECT kliv_mail.rotate_key()' : 'BEGIN; SELECT kliv_mail.rotate_key()');
    $node->wait_until("SELECT " . (defined $stop ? "wait_event_type = 'Lock'" : "state = 'idle in transaction'") . " FROM pg_stat_activity WHERE pid = $pid");
    if ($how eq 'kill')
    {
        my $start = $node->sql('SELECT pg_postmaster_start_time()');
        kill 'KILL', $pid;
        $node->wait_until("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid");
    }
    else
    {
        $node->stop('immediate');
        $node->start;
    }
    eval { $_->quit } for $rotates, $blocker;

    my @after = keys_in($file);
    is(scalar(@after), @before + $new_keys, "$how $name: the file has " . ($new_keys ? 'one key more' : 'what it had'));
    is_deeply([ @after[ $new_keys .. $#after ] ], \@before, '... and all that it had');
    is_deeply([ each_database('SELECT string_agg(key_id, \' \' ORDER BY name) FROM kliv_mail._account') ], \@ids, '... no account is another\'s half');
    is(join(' ', each_database(q{SELECT bool_and(t.ok) FROM kliv_mail._account AS a, kliv_mail.test_smtp(account => a.name) AS t})), 't t', '... every password opens');
    each_database('SELECT kliv_mail.resume()');
    $node->wait_until('SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE finished_at IS NULL', dbname => $_) for @databases;
    is_deeply([ map { scalar($smtp->accepted($_)) } map { ("step$n\@$_.example", "token$n\@$_.example") } @databases ], [ (1) x 4 ], '... every mail goes, once');
}
is(join(' ', grep { !/\Q$file\E$/ } glob("$file*")), '', 'no other file is left behind');

# ---- in the end ----

is(join(' ', each_database('SELECT kliv_mail.rotate_key()')), '2 2', 'both databases rotate');
is_deeply([ each_database(q{SELECT kliv_mail.unsubscribe_url('ana@example.com')}) ], \@links, 'the links are what they were');
is($node->sql("SELECT kliv_mail.unsubscribe('$token[0]')", dbname => 'one'), 't', '... and work');
is(join(' ', each_database(q{SELECT count(DISTINCT key_id) FROM kliv_mail._account})), '1 1', 'one key for each database');
my $ring = slurp_file($file);
my %used = map { $_ => 1 } each_database(q{SELECT DISTINCT key_id FROM kliv_mail._account});
sub put { my ($text) = @_; unlink $file; append_to_file($file, $text); chmod 0600, $file; return; }

put($old_ring);
for my $database (@databases)
{
    like($node->sql('SELECT key_state FROM kliv_mail.status', dbname => $database), qr/is not in the key ring/, "the old key alone, database $database: status says that it is not the one");
    is($node->try("SELECT * FROM kliv_mail.test_smtp(account => '$_')", dbname => $database)->{state}, '55000', "... it opens no password: $_") for qw(custom token);
}
put(join '', map { /^kliv_mail key (\w+)/ && !$used{$1} ? '' : $_ } split /^/, $ring);
is(scalar(keys_in($file)), 2, 'the keys of before can be taken out of the file');
is(join(' ', each_database(q{SELECT bool_and(t.ok) FROM kliv_mail._account AS a, kliv_mail.test_smtp(account => a.name) AS t})), 't t', '... and every password opens');
is_deeply([ each_database(q{SELECT kliv_mail.unsubscribe_url('ana@example.com')}) ], \@links, '... the links are still the same');
is(scalar(grep { !$_->{ok} } $smtp->ledger('auth')), 0, 'no login ever failed');
unlike(slurp_file($node->logfile), qr/password of|token of both|[0-9a-f]{64}/, 'and the log has neither a password nor a key');
$node->stop;

done_testing();
