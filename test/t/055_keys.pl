# The key: missing, short, open to others, wrong, from a command.  Each is a
# state in status and smtp_settings that says what to do, holds the account and
# its mail, makes no new key, and is over when the key is back.
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use File::Copy ();
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $tls = KlivMail::Tls->new("$folder/tls");
my ($certificate, $key) = $tls->certificate('good');
my $smtp = KlivMail::SmtpServer->start(tls => 1, cert => $certificate, key => $key, auth => ['app:of the app']);
my $file = "$folder/kliv_mail.key";
my $node = KlivMail::Cluster->new(
    'main',
    conf => {
        'kliv_mail.key_file'            => $file,
        'kliv_mail.allowed_hosts'       => 'localhost',
        'kliv_mail.ca_file'             => $tls->ca_file,
        'kliv_mail.sender_idle_timeout' => 0
    });
my $configure = "SELECT * FROM kliv_mail.configure_smtp(host => 'localhost', port => "
  . $smtp->port . ", encryption => 'tls', username => 'app', password => 'of the app', from_address => 'shop\@shop.example', hourly_limit => 500";

sub state_of { return $node->sql('SELECT key_state FROM kliv_mail.status'); }
sub bytes { return -e $file ? slurp_file($file) : '(none)'; }

# ---- the first key ----

is(state_of(), 'none yet', 'before anything is stored: no key yet');
is(bytes(), '(none)', '... and looking makes none');
is($node->try("$configure)")->{state}, '', 'the first password makes it');
is((stat $file)[2] & 0777, 0600, '... readable for the server alone');
is(state_of(), 'ok', '... and the state is ok');
my $good = bytes();
like($good, qr/\Akliv_mail root [0-9a-f]{64}\nkliv_mail key ([0-9a-f]{8}) [0-9a-f]{64}\n\z/, '... a root and a key with its id');
my ($first) = $good =~ /key ([0-9a-f]{8})/;
is($node->sql('SELECT key_fingerprint FROM kliv_mail.status'), $first, 'status names it');
unlike($node->sql('SELECT * FROM kliv_mail.status'), qr/[0-9a-f]{64}/, '... and shows no key');
is($node->sql('SELECT coalesce(hint, \'\') FROM kliv_mail.status'), '', 'outside of the data directory there is no advice');
my $id = $node->sql(q{SELECT kliv_mail.send('first@example.com', 'x', 'x')});
is($node->sql("SELECT kliv_mail.wait($id)"), 'sent', 'mail is sent');

# ---- troubles ----

$node->sql(q{
    CREATE FUNCTION attempt(statement text) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN EXECUTE statement; RETURN 'ok'; EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE; END $$});
sub attempts { return join ' ', map { $_ } split /\n/, $node->sql(join '', map { my $s = $_; $s =~ s/'/''/g; "SELECT attempt('$s');\n" } @_); }

sub write_key { my ($text, $mode) = @_; unlink $file; append_to_file($file, $text) if defined $text; chmod $mode // 0600, $file if defined $text; return; }
my ($root) = $good =~ /^(kliv_mail root .*\n)/;
my $other = $root . 'kliv_mail key ' . ('ab' x 32) . "\n";
my %advice = (
    missing => qr/Put the key file back/, open => qr/chmod 600/, short => qr/restore it/, empty => qr/Put the key file back/,
    garbage => qr/restore it/, rootless => qr/restore it/, wrong => qr/Put that key back/, altered => qr/restore it/, folder => qr/Put the key file back/);
my $n = 0;
for (
    [ missing  => qr/"\Q$file\E" does not exist/, sub { write_key(undef) } ],
    [ open     => qr/open to group or others \(mode 0644\)/, sub { write_key($good, 0644) } ],
    [ short    => qr/too short/, sub { write_key(substr $good, 0, 40) } ],
    [ empty    => qr/is empty/, sub { write_key('') } ],
    [ garbage  => qr/line 2 .* is no key/, sub { write_key($root . "something else than a key, as long as one, for nobody to take for one\n") } ],
    [ rootless => qr/has no line "kliv_mail root"/, sub { write_key($good =~ s/^kliv_mail root.*\n//r) } ],
    [ altered  => qr/line 2 .* does not belong to its id/, sub { my $t = $good; $t =~ s/(key \w+ .{63})(.)/$1 . ($2 eq '0' ? '1' : '0')/e; write_key($t) } ],
    [ folder   => qr/is not a regular file/, sub { unlink $file; mkdir $file } ],
    [ wrong    => qr/the key $first of the account "custom" is not in the key ring/, sub { write_key($other) } ])
{
    my ($name, $what, $break) = @$_;
    $n++;
    $break->();
    my $before = -d $file ? 'a folder' : bytes();

    my ($state, $hint, $account, $step) = split /\n/, $node->sql(q{
        SELECT key_state FROM kliv_mail.status; SELECT hint FROM kliv_mail.status;
        SELECT status || ': ' || status_detail FROM kliv_mail.smtp_settings WHERE account = 'custom';
        SELECT statement FROM kliv_mail.next_step()});
    like($state, $what, "$name: status says what is wrong");
    like($hint, $advice{$name}, '... and what to do');
    like($account, qr/^key missing: ./, '... smtp_settings too');
    # Where it is one account's key that is gone, its password given again is a cure.
    like($step, $name eq 'wrong' ? qr/^SELECT \* FROM kliv_mail\.configure_smtp\(password => / : qr/^SELECT key_state, hint/, '... next_step() too');

    my $result = $node->try("SELECT kliv_mail.send('$name\@example.com', 'x', 'x')");
    is($result->{state}, '', '... send() goes on');
    $node->wait_until("SELECT status = 'deferred' AND held_by = 'key' AND reason <> '' AND hint <> '' AND attempts = 0 FROM kliv_mail.deliveries WHERE recipient = '$name\@example.com'");
    pass('... its mail is held by the key, without an attempt, and says so');
    # A wrong ring is a working one: what seals goes by it, what opens does not.
    is(attempts('SELECT kliv_mail.rotate_key()', 'SELECT * FROM kliv_mail.test_smtp()',
            $name eq 'wrong' ? () : (qq{$configure, account => 'second', test => false)}, 'SELECT kliv_mail.public_key()')),
        join(' ', ('55000') x ($name eq 'wrong' ? 2 : 4)), '... what needs the key is refused');
    is(-d $file ? 'a folder' : bytes(), $before, '... and what is there stays as it is');

    rmdir $file if -d $file;
    write_key($good);
    if ($n == 1)
    {
        $node->clock_offset('5 minutes');    # the account's hold is looked at again by itself
        $node->wait_until("SELECT status = 'sent' FROM kliv_mail.deliveries WHERE recipient = '$name\@example.com'");
        $node->clock_offset('');
        pass('... and the mail goes by itself');
    }
    else
    {
        is($node->sql('SELECT bool_and(ok) FROM kliv_mail.test_smtp(); SELECT key_state FROM kliv_mail.status'), "t\nok", '... the key is back, a test says so');
        $node->wait_until("SELECT status = 'sent' FROM kliv_mail.deliveries WHERE recipient = '$name\@example.com'");
        pass('... and the mail goes');
    }
}
is($smtp->count, $n + 1, 'every mail arrived, and once');

# ---- another database of the same server never makes a key in its place ----

$node->sql('CREATE DATABASE second');
$node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => 'second');
write_key(undef);
my $result = $node->try("$configure, test => false)", dbname => 'second');
is($result->{state}, '55000', 'a database without passwords makes no first key while another has some');
is(bytes(), '(none)', '... no file is there');
write_key($good);
is($node->try("$configure, test => false)", dbname => 'second')->{state}, '', 'with the key it saves');

# ---- key_command ----

my $secret_store = "$folder/store";
File::Copy::copy($file, $secret_store);
unlink $file;
$node->reconfigure('kliv_mail.key_command' => "cat '$secret_store'");
is(state_of(), 'ok', 'key_command: its output is the ring');
is($node->sql('SELECT bool_and(ok) FROM kliv_mail.test_smtp()'), 't', '... that opens the password');
is($node->sql('SELECT kliv_mail.rotate_key()'), 1, 'rotate_key() without a new key encrypts anew');
ok(!-e $file, '... and writes no file');
my $two = $root . 'kliv_mail key ' . ('cd' x 32) . "\n" . ($good =~ s/^kliv_mail root.*\n//r);
unlink $secret_store;
append_to_file($secret_store, $two);
is($node->sql('SELECT kliv_mail.rotate_key()'), 1, 'with a newer key in front it takes that one');
my $second = $node->sql('SELECT key_fingerprint FROM kliv_mail.status');
isnt($second, $first, '... which status names');
is($node->sql('SELECT key_id FROM kliv_mail._account'), $second, '... and the account');
unlink $secret_store;
append_to_file($secret_store, $good);
like(state_of(), qr/the key $second of the account "custom" is not in the key ring/, 'the old key alone opens it no more');
unlink $secret_store;
append_to_file($secret_store, $two);
for (
    [ 'exit 3', qr/"kliv_mail.key_command" failed: child process exited with exit code 3/ ],
    [ 'true', qr/printed nothing/ ],
    [ 'echo secret-of-the-store-that-is-no-key-at-all-but-is-long-enough-to-be-one-of-them-if-not', qr/line 1 of the output of "kliv_mail.key_command" is no key/ ],
    [ 'no-such-command-at-all 2>/dev/null', qr/exit(?:ed with exit code 127|.*not found)|command not found/ ])
{
    my ($command, $what) = @$_;
    $node->reconfigure('kliv_mail.key_command' => $command);
    my $state = $node->sql('SELECT key_state, hint FROM kliv_mail.status');
    like($state, $what, "key_command = '$command': a clear state");
    unlike($state, qr/secret-of-the-store/, '... that shows nothing of what it printed');
}
# One that hangs holds up nobody who needs no key, no shutdown, and no claim.
my $plain = KlivMail::SmtpServer->start;
$node->sql(q{SELECT * FROM kliv_mail.configure_smtp(host => 'localhost', port => } . $plain->port . q{, encryption => 'none', username => '', from_address => 'b@shop.example', test => false, account => 'plain')});
$node->reconfigure('kliv_mail.key_command' => "cat '$secret_store'");
$node->sql(q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://shop.example/u')});
$node->reconfigure('kliv_mail.key_command' => 'sleep 600; true');
my $waits = $node->sql(q{SELECT kliv_mail.send('needs@example.com', 'x', 'x')});
my $linked = $node->sql(q{SELECT kliv_mail.send('linked@example.com', 'x', 'x', message_type => 'marketing', account => 'plain')});
for my $number (1 .. 4)
{
    my $started = time;
    my $goes = $node->sql(qq{SELECT kliv_mail.send('needs-none$number\@example.com', 'x', 'x', account => 'plain')});
    is($node->sql("SELECT kliv_mail.wait($goes, '60 s')"), 'sent', "a command that hangs: mail $number of an account without a password goes");
    cmp_ok(time - $started, '<', 20, '... soon');
}
my $stop = time;
$node->restart;
cmp_ok(time - $stop, '<', 20, '... and so does the server');
$node->sql("SELECT kliv_mail.cancel($waits), kliv_mail.cancel($linked)");

# One that hangs: the statement can be cancelled, and the command goes with it.
# Only an administrator's look at a view runs it.
$node->sql(q{CREATE ROLE reader; SELECT kliv_mail.grant_read('reader')});
$node->reconfigure('kliv_mail.key_command' => "echo x >> '$folder/runs'; cat '$secret_store'");
sub runs { return -e "$folder/runs" ? -s "$folder/runs" : 0; }
my $runs = runs();
like($node->sql('SELECT key_state FROM kliv_mail.status', role => 'reader'), qr/^not looked at/, 'a reader sees that the command is not run for him');
like($node->sql(q{SELECT status FROM kliv_mail.smtp_settings WHERE account = 'custom'}, role => 'reader'), qr/^(?:ok|held)$/, '... and the account');
is(runs(), $runs, '... and it was not');
is(state_of(), 'ok', 'an administrator sees the state');
cmp_ok(runs(), '>', $runs, '... by running it');

# A claim runs it once, however many links of marketing mail need the key, and outside of its transaction.
$node->reconfigure('kliv_mail.key_command' => "echo x >> '$folder/runs'; sleep 0.2; cat '$secret_store'");
$runs = runs();
$node->sql(q{SELECT count(kliv_mail.send('news' || i || '@example.com', 'x', 'x', message_type => 'marketing', account => 'plain')) FROM generate_series(1, 30) AS i});
$node->wait_until(q{SELECT count(*) = 30 FROM kliv_mail.deliveries WHERE recipient LIKE 'news%' AND status = 'sent'});
cmp_ok((runs() - $runs) / 2, '<=', 8, 'thirty marketing mails: the command ran ' . (runs() - $runs) / 2 . ' times');

# One that closes its output and goes on is waited for as any other: it can be cancelled, and is gone then.
$node->reconfigure('kliv_mail.key_command' => "echo \$\$ > '$folder/closer'; cat '$secret_store'; exec >&-; sleep 600; true");
$result = $node->try("SET statement_timeout = '2s'; SELECT * FROM kliv_mail.test_smtp()");
is($result->{state}, '57014', 'a command that closes its output and goes on: a query can be cancelled');
chomp(my $closer = slurp_file("$folder/closer"));
ok(!kill(0, $closer), '... and the command is gone');
$node->reconfigure('kliv_mail.key_command' => 'echo $$ > \'' . $folder . '/pid\'; sleep 600; true');
is($node->try(q{SET statement_timeout = '1s'; SELECT key_state FROM kliv_mail.status})->{state}, '57014', 'one that hangs can be cancelled');
my $pid = slurp_file("$folder/pid");
ok($pid > 0 && !kill(0, $pid), '... and is gone then');
unlike(slurp_file($node->logfile), qr/[0-9a-f]{64}/, 'no key is in the log');

$node->reconfigure('kliv_mail.key_command' => "cat '$secret_store'");
is($node->sql('SELECT bool_and(ok) FROM kliv_mail.test_smtp()'), 't', 'the command is mended: all is well again');

# ---- lost for good: what the hint says, in its order, sends nothing by the platform meanwhile ----

$node->sql('DROP DATABASE second');
$node->sql('DELETE FROM kliv_mail._account WHERE name = \'second\'');
$node->reconfigure('kliv_mail.key_command' => '', 'kliv_mail.key_file' => $file, 'kliv_mail.platform_url' => 'smtp://127.0.0.1:' . $plain->port, 'kliv_mail.platform_from' => 'p@platform.example');
my $lost = $node->sql(q{SELECT kliv_mail.send('lost@example.com', 'x', 'x')});
$node->wait_until("SELECT held_by = 'key' FROM kliv_mail.deliveries WHERE message_id = $lost");
like($node->sql('SELECT hint FROM kliv_mail.status'), qr/lost for good: kliv_mail\.pause\(\).*kliv_mail\.reset_smtp\(\).*kliv_mail\.set_brand\(unsubscribe_url => ''\).*kliv_mail\.configure_smtp\(\).*kliv_mail\.resume\(\)/, 'a key that is lost for good: pause, reset, configure, resume');
$node->sql($_) for 'SELECT kliv_mail.pause()', 'SELECT * FROM kliv_mail.reset_smtp()', q{SELECT kliv_mail.set_brand(unsubscribe_url => '')}, "$configure)",
  q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://shop.example/u')}, 'SELECT kliv_mail.resume()';
is($node->sql("SELECT kliv_mail.wait($lost, '60 s')"), 'sent', '... and the mail goes');
is(scalar($smtp->accepted('lost@example.com')), 1, '... by its own account');
File::Copy::copy($file, $secret_store);

# ---- inside the data directory there is advice ----

File::Copy::copy($secret_store, $node->data_dir . '/kliv_mail.key');
chmod 0600, $node->data_dir . '/kliv_mail.key';
$node->reconfigure('kliv_mail.key_command' => '', 'kliv_mail.key_file' => 'kliv_mail.key');
is(state_of(), 'ok', 'a key file in the data directory works');
like($node->sql('SELECT hint FROM kliv_mail.status'), qr/outside the data directory/, '... and status advises another place');
# ---- a file of root's ----

SKIP:
{
    my $keys = $ENV{KLIV_MAIL_ROOT_KEYS} or skip 'only root can make them', 4;
    my $other = KlivMail::Cluster->new('other', conf => { 'kliv_mail.key_file' => "$keys/0640" });
    my $save = q{SELECT kliv_mail.configure_smtp(host => 'smtp.example.com', username => 'app@example.com', password => 'x', test => false)};
    is($other->try($save)->{state}, '', 'a key of root\'s that the group may read');
    is($other->sql('SELECT key_state FROM kliv_mail.status'), 'ok', '... is as good as one of the server\'s own');
    $other->reconfigure('kliv_mail.key_file' => "$keys/0644");
    my $result = $other->try($save);
    like("$result->{state} $result->{message}", qr/^55000 .*open to group or others \(mode 0644\)/, '... but not one that all may read');
    like($result->{hint}, qr/chmod 640 /, '... and the hint says what it may be');
    $other->stop;
}

$node->stop;

done_testing();
