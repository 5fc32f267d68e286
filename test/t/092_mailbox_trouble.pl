# A bounce mailbox in trouble: what next_step() and status tell of a refused password, a
# mailbox that is gone, a certificate, a server that is away, a missing key, and that the
# statement they give ends it; and the mailbox of a standby, before and after its promotion.
use strict;
use warnings;
use File::Copy ();
use KlivMail::Cluster;
use KlivMail::Dovecot;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $tls = KlivMail::Tls->new("$folder/tls");
my $dovecot = KlivMail::Dovecot->start($tls);
my $smtp = KlivMail::SmtpServer->start(plain => 1, no_transcript => 1);
my $node = KlivMail::Cluster->new(
    'main',
    streaming => 1,
    conf => {
        'kliv_mail.allowed_hosts' => '127.0.0.1',
        'kliv_mail.ca_file'       => $tls->ca_file,
        'kliv_mail.key_file'      => "$folder/kliv_mail.key"
    });

# An account without a password, so that nothing but the mailbox needs the key.
$node->sql(qq{SELECT FROM kliv_mail.configure_smtp(host => '127.0.0.1', port => @{[ $smtp->port ]}, encryption => 'none', username => '',
    from_address => 'shop\@shop.example')});
sub quoted { my ($text) = @_; return "'" . $text =~ s/'/''/gr . "'"; }
sub configure { my ($arguments, $on) = @_; return ($on // $node)->sql("SELECT FROM kliv_mail.configure_bounce_mailbox($arguments)"); }
sub steps { my ($on) = @_; return ($on // $node)->sql(q{SELECT string_agg(step || CASE WHEN ok THEN '' ELSE '!' END, ' ') FROM kliv_mail.test_bounce_mailbox()}); }
sub mailbox { my ($column, $on) = @_; return ($on // $node)->sql("SELECT $column FROM kliv_mail.bounce_mailbox"); }
sub is_ok
{
    my ($what, $on) = @_;
    ($on // $node)->wait_until(q{SELECT status = 'ok' AND next_fetch_at > now() FROM kliv_mail.bounce_mailbox});
    return pass("$what: it is looked into again");
}
sub next_step { my ($on) = @_; return ($on // $node)->sql(q{SELECT concat_ws(' ', code, cures, safe, needs_input) FROM kliv_mail.next_step()}); }
sub statement { my ($on) = @_; return ($on // $node)->sql('SELECT statement FROM kliv_mail.next_step()'); }

# Have it looked into, without a call that would begin anew.
sub look
{
    my ($on) = @_;
    $on //= $node;
    # (One that a call started may be under way.)
    $on->wait_until('SELECT next_fetch_at > now() FROM kliv_mail.bounce_mailbox');
    my $before = mailbox('last_fetch_at', $on);
    $on->sql('UPDATE kliv_mail._fetched SET next_at = kliv_mail._now()');
    $on->sql('SELECT kliv_mail._wake_fetcher()');
    $on->wait_until("SELECT last_fetch_at > '$before' AND next_fetch_at > now() FROM kliv_mail.bounce_mailbox");
    return;
}

# What it meets, how it is told: at which step, in which words, with which statement; whether
# that one ends it, and after how long it is tried by itself.
sub in_trouble
{
    my ($what, $step, $problem, $statement, $cures, $after) = @_;
    look();
    is(mailbox('status'), 'trouble', "$what: a trouble");
    is($node->sql('SELECT trouble_step FROM kliv_mail._fetched'), $step, "... at the step $step");
    like(mailbox('status_detail'), $problem, '... in plain words');
    like($node->sql('SELECT problem FROM kliv_mail.next_step()'), $problem, '... which next_step() has');
    like($node->sql('SELECT hint FROM kliv_mail.status'), $problem, '... and status');
    is(next_step(), "bounce_mailbox $cures", '... code, cures, safe, needs_input');
    is(statement(), $statement, '... with a statement');
    is($node->sql("SELECT retries_at - last_fetch_at >= '$after' FROM kliv_mail.next_step(), kliv_mail.bounce_mailbox"), 't', "... tried again after $after");
    return;
}
my $save = q{SELECT * FROM kliv_mail.configure_bounce_mailbox(password => 'the mailbox password');};
my $test = 'SELECT * FROM kliv_mail.test_bounce_mailbox();';

my $place = sprintf q{host => '127.0.0.1', port => %d, username => %s, fetch_every => '1 minute'}, $dovecot->port('tls'), quoted($dovecot->username);
configure("$place, password => " . quoted($dovecot->password));
is_ok('at first');
is(next_step(), 'ok f f {recipients}', 'nothing is missing');

# ---- a password that is refused ----

my $old = $dovecot->password;
my $new = 'Zweites-Passw0rt';
my $password = q{SELECT * FROM kliv_mail.configure_bounce_mailbox(password => 'the new password');};
$dovecot->set(password => $new);
in_trouble('another password', 'login', qr/the server refused the user name or password/, $password, 't t {password}', '55 minutes');
is($node->try($password)->{state}, 'KM005', 'a wrong one is refused');
is(mailbox('status'), 'trouble', '... and changes nothing');
$node->sql(statement() =~ s/the new password/$new/r);
is_ok('the statement with the right one');
is(next_step(), 'ok f f {recipients}', '... and nothing is missing');

# What it was brings it back, too: nothing was lost by it.
$dovecot->set(password => $old);
look();
is(mailbox('status'), 'trouble', 'and again');
$dovecot->set(password => $new);
is(steps(), 'dns connect tls login select file', 'a good test');
is_ok('a good test ends it');

# ---- the mailbox is gone ----

$dovecot->make('Bounces');
configure(q{mailbox => 'Bounces'});
is_ok('another mailbox');
$dovecot->rename('Bounces', 'Elsewhere');
in_trouble('a mailbox that is gone', 'select', qr/the mailbox "Bounces" cannot be opened/, $test, 'f t {}', '1 minute');
is(steps(), 'dns connect tls login select!', '... the test shows it');
is(next_step(), 'bounce_mailbox f t {}', '... and ends nothing');
$dovecot->rename('Elsewhere', 'Bounces');
$node->sql(statement());
is_ok('it is back');
$dovecot->rename('Bounces', 'Elsewhere');
look();
configure(q{mailbox => 'INBOX'});
is_ok('another one');

# ---- a certificate ----

my ($certificate, $key) = @$dovecot{qw(certificate key)};
my ($expired, $expired_key) = $tls->certificate('expired', expired => 1);
$dovecot->set(certificate => $expired, key => $expired_key);
in_trouble('an expired certificate', 'tls', qr/certificate/, $test, 'f t {}', '1 minute');
my $logins = $dovecot->logins;
look();
is($dovecot->logins, $logins, '... and no password goes there');
$dovecot->set(certificate => $certificate, key => $key);
$node->sql(statement());
is_ok('a good one');

# ---- the server is away ----

$dovecot->stop;
in_trouble('a server that is away', 'connect', qr/could not connect to 127\.0\.0\.1/, $test, 'f t {}', '1 minute');
my $waits = sub { $node->sql('SELECT extract(epoch FROM next_at - last_at)::integer FROM kliv_mail._fetched') };
my @waits = ($waits->(), map { look(); $waits->() } 1 .. 7);
is("@waits", '60 120 240 480 960 1920 3600 3600', '... tried ever less often, and never less than hourly');
is($node->sql(q{SELECT count(*) FROM kliv_mail.events WHERE kind = 'bounce_mailbox_trouble' AND detail ~ 'could not connect'}), 1, '... and told once');
$dovecot->run;
look();
is(mailbox('status'), 'ok', '... until it is there');

# ---- the key is missing ----

my $file = "$folder/kliv_mail.key";
rename $file, "$folder/away" or die $!;
in_trouble('without the key file', 'key', qr/key file ".*" does not exist\. Put the key file back/, $test, 'f t {}', '1 minute');
my $try = $node->try($test);
is($try->{state}, '55000', '... which is what the test says');
like($try->{hint}, qr/^Put the key file back/, '... with its cure');
is($node->try($save =~ s/the mailbox password/$new/r)->{state}, '55000', '... and no other key is made for the same password');
my $id = $node->sql(q{SELECT kliv_mail.send('ana@example.com', 'x', 'x')});
is($node->sql("SELECT kliv_mail.wait($id)"), 'sent', '... mail leaves meanwhile');
rename "$folder/away", $file or die $!;
$node->sql(statement());
is_ok('the key file is back');

# Another ring, without that key: the password can be saved again.
my $other = slurp_file($file) =~ s/^kliv_mail key .*\n//mgr . 'kliv_mail key ' . '5a' x 32 . "\n";
rename $file, "$folder/away" or die $!;
append_to_file($file, $other);
chmod 0600, $file;
in_trouble('without that key', 'key', qr/the key \w{8} of the stored password is not in .*Put that key back/, $save, 't t {password}', '1 minute');
$node->sql(statement() =~ s/the mailbox password/$new/r);
is_ok('saved again');

# Lost for good, as the hint says: nothing names a key any more, and a new one is made.
unlink $file or die $!;
look();
like($node->sql('SELECT problem FROM kliv_mail.next_step()'), qr/lost for good: .*kliv_mail\.remove_bounce_mailbox\(\)/, 'a key that is lost for good: the mailbox is given up');
$node->sql('SELECT kliv_mail.remove_bounce_mailbox()');
configure("$place, password => '$new'");
is_ok('... and configured anew');

# ---- a standby ----

sub dsn
{
    my ($recipient, $id) = @_;
    return <<"EOF";
Date: Sun, 29 Nov 2026 10:00:00 +0000
From: MAILER-DAEMON\@mx.example
To: shop\@shop.example
Subject: Undelivered
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="B"

--B
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example

Final-Recipient: rfc822; $recipient
Action: failed
Status: 5.1.1

--B
Content-Type: message/rfc822

Message-ID: <$id>

x
--B--
EOF
}
$id = $node->sql(q{SELECT kliv_mail.send('gone@example.com', 'x', 'x')});
$node->wait_until("SELECT status = 'sent' FROM kliv_mail.deliveries WHERE message_id = $id");
my $header = $node->sql("SELECT header_id FROM kliv_mail._message WHERE id = $id");
$node->backup('base');
my $standby = bless PostgreSQL::Test::Cluster->new('standby'), 'KlivMail::Cluster';
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->configure('kliv_mail.key_file' => "$folder/standby.key");
my $log = -s $standby->logfile // 0;
$standby->start;
$standby->wait_for('a warning of the key', sub { slurp_file($standby->logfile, $log) =~ /WARNING:  .*key/ });
like(slurp_file($standby->logfile, $log), qr/WARNING:  .*key.*"postgres"|WARNING:  .*"postgres".*key/, 'the standby warns of the key that the mailbox will need');

# Due there, but for that it is a standby; the primary does not know.
$node->sql('UPDATE kliv_mail._fetched SET next_at = kliv_mail._now()');
$node->wait_for_catchup($standby, 'replay', $node->lsn('insert'));
$dovecot->deliver(dsn('gone@example.com', $header));
$logins = $dovecot->logins;
is(mailbox(q{status || ' ' || (next_fetch_at <= now())}, $standby), 'ok true', 'on the standby the mailbox is due');
is($standby->sql(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'kliv_mail (?:fetcher|sender|launcher)'}), 0, '... and nobody looks');
is($standby->sql('SELECT code FROM kliv_mail.next_step()'), 'standby', '... as next_step() says');
is($standby->try($test)->{state}, '55000', '... and a test wants the key, too');
is($dovecot->logins, $logins, 'nobody logged in');
$node->stop('immediate');
$standby->promote;
$standby->wait_until(q{SELECT trouble_step = 'key' FROM kliv_mail._fetched});
pass('promoted, it looks, and misses the key');
like($standby->sql('SELECT problem FROM kliv_mail.next_step()'), qr/bounce mailbox cannot be read.*key/, '... as next_step() says');
is($dovecot->logins, $logins, '... before anybody logs in');
File::Copy::copy($file, "$folder/standby.key");
chmod 0600, "$folder/standby.key";
$standby->sql($test);
is_ok('with the key', $standby);
$standby->wait_until("SELECT status = 'bounced' FROM kliv_mail.deliveries WHERE message_id = $id");
pass('... and what came meanwhile is taken');
is(scalar($dovecot->mails('kliv_mail')), 1, '... and filed');
KlivMail::RawMessages::node($standby);
$standby->stop;
unlike(slurp_file($_->logfile), qr/\Q$new\E|Mbx-S3cret/, 'no password is in the log') for $node, $standby;
$dovecot->stop;
done_testing();
