# The bounce mailbox: Dovecot's, with mails of all kinds in it, and those of a server that
# misbehaves; each mail counts once, and nothing of it hinders what sends.
# KLIV_MAIL_BOUNCES (100) says how many mails there are.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::Dovecot;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $count = $ENV{KLIV_MAIL_BOUNCES} // 100;
my $folder = PostgreSQL::Test::Utils::tempdir();
my $tls = KlivMail::Tls->new("$folder/tls");
my $dovecot = KlivMail::Dovecot->start($tls);
my $smtp = KlivMail::SmtpServer->start(plain => 1, no_transcript => 1);
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port('plain'),
    conf => {
        'kliv_mail.platform_hourly_limit' => 10000,
        'kliv_mail.platform_daily_limit'  => 10000,
        'kliv_mail.ca_file'               => $tls->ca_file
    });
my $session = $node->session;

sub quoted { my ($text) = @_; return "'" . $text =~ s/'/''/gr . "'"; }
sub configure
{
    my (%argument) = @_;
    return $node->try('SELECT * FROM kliv_mail.configure_bounce_mailbox('
          . join(', ', map { "$_ => " . (ref $argument{$_} ? ${ $argument{$_} } : quoted($argument{$_})) } sort keys %argument) . ')');
}
sub steps { return $node->sql(q{SELECT string_agg(step || CASE WHEN ok THEN '' ELSE '!' END, ' ') FROM kliv_mail.test_bounce_mailbox()}); }
sub mailbox { my ($column) = @_; return $session->sql("SELECT $column FROM kliv_mail.bounce_mailbox"); }

# Have it looked into now, and wait until that is over.
sub fetch
{
    my $before = mailbox('coalesce(last_fetch_at, \'-infinity\')');
    $session->sql('SELECT FROM kliv_mail.configure_bounce_mailbox(test => false)');
    $session->wait_until("SELECT last_fetch_at > '$before' AND next_fetch_at > last_fetch_at FROM kliv_mail.bounce_mailbox");
    return;
}

# ---- settings ----

my %good = (host => '127.0.0.1', port => \$dovecot->port('tls'), username => $dovecot->username, password => $dovecot->password);
my $try = configure(%good);
is($try->{state}, '42501', 'an address of this machine is refused');
$node->reconfigure('kliv_mail.allowed_hosts' => '127.0.0.1');
is($node->try('SELECT * FROM kliv_mail.test_bounce_mailbox()')->{state}, '55000', 'nothing is configured yet');
for my $case (
    [ { encryption => 'none' }, '22023', 'encryption: none would send the password in clear' ],
    [ { encryption => 'ssl' }, '22023', 'encryption: "ssl" is not known' ],
    [ { port => \'25' }, '22023', 'port: 25 is not a port for IMAP' ],
    [ { mailbox => 'kliv_mail' }, '22023', 'filed_mailbox: is the mailbox that is looked into' ],
    [ { mailbox => "IN\tBOX" }, '22023', undef ],
    [ { filed_mailbox => 'x' x 201 }, '54000', undef ],
    [ { fetch_every => '10 seconds' }, '22023', 'fetch_every: is not between 1 minute and 1 day' ],
    [ { fetch_every => '1 month' }, '22023', undef ],
    [ { username => '' }, '22023', 'username: is needed' ],
    [ { password => "x\ny" }, '22023', undef ],
    [ { host => 'imaps://127.0.0.1' }, '22023', undef ],
    [ { password => 'wrong' }, 'KM005', undef ],
    [ { mailbox => 'nowhere' }, 'KM008', undef ],
    [ { port => \'1' }, 'KM002', undef ])
{
    my ($change, $state, $message) = @$case;
    my $try = configure(%good, %$change);
    is($try->{state}, $state, join(' ', %$change) . ": $state") or diag($try->{err});
    is($try->{message}, $message, '... and says so') if defined $message;
    unlike($try->{err}, qr/\Q@{[ $dovecot->password ]}\E/, '... without the password');
}
is($node->sql('SELECT count(*) FROM kliv_mail.bounce_mailbox'), '0', 'what failed saved nothing');

$try = configure(%good, enabled => \'false');
is($try->{state}, '', 'switched off it is saved without a look');
is(mailbox('status'), 'off', '... and is off');
is(configure(port => \$dovecot->port('starttls'))->{state}, '22023', 'another port needs the password again');
is(configure(%good, port => \$dovecot->port('starttls'), encryption => 'starttls', enabled => \'true')->{state}, '', 'STARTTLS');
is(steps(), 'dns connect tls login select file', 'the test goes step by step');
$session->wait_until(q{SELECT status = 'ok' FROM kliv_mail.bounce_mailbox});
is(configure(%good)->{state}, '', 'TLS');
is(mailbox('password_masked'), '****"word\\', 'the password is masked');
is(mailbox(q{concat_ws(' ', mailbox, filed_mailbox, fetch_every, encryption)}), 'INBOX kliv_mail 00:05:00 tls', 'the rest is as usual');

# ---- mails of all kinds ----

# The deliveries that reports are about: a quarter of the mails.
my $own = int($count / 4);
my $first = $node->sql(q{SELECT min(x.id) FROM (SELECT kliv_mail.send('r' || n || '@example.com', 'Receipt', 'x') AS id FROM generate_series(1, } . "$own) AS n) AS x");
$node->wait_until("SELECT count(*) = $own FROM kliv_mail.deliveries WHERE status = 'sent'");
my @header = split /\n/, $node->sql("SELECT header_id FROM kliv_mail._message ORDER BY id");

my $number = 0;
sub mail
{
    my ($header, $body) = @_;
    return "Received: from x by y; Sun, 29 Nov 2026 10:00:00 +0000\nDate: Sun, 29 Nov 2026 10:00:00 +0000\nMessage-ID: <"
      . ++$number . "\@elsewhere.example>\n$header\n\n$body";
}
sub report
{
    my ($type, $first, $machine, $id) = @_;
    return mail("From: Mail Delivery System <MAILER-DAEMON\@elsewhere.example>\nTo: platform\@platform.example\nSubject: Undelivered Mail\n"
          . "MIME-Version: 1.0\nContent-Type: multipart/report; report-type=$type; boundary=\"B\"",
        "--B\nContent-Type: text/plain\n\n$first\n\n--B\nContent-Type: message/$type\n\n$machine\n\n"
          . "--B\nContent-Type: message/rfc822\n\nMessage-ID: <$id>\nSubject: Receipt\n\nx\n\n--B--\n");
}
sub dsn
{
    my ($recipient, $id) = @_;
    return report('delivery-status', 'It could not be delivered.', "Reporting-MTA: dns; mx.elsewhere.example\n\nFinal-Recipient: rfc822; $recipient\n"
          . "Action: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 5.1.1 User unknown", $id);
}
sub arf
{
    my ($recipient, $id) = @_;
    return report('feedback-report', 'A complaint.', "Feedback-Type: abuse\nUser-Agent: x/1\nVersion: 1\nOriginal-Rcpt-To: <$recipient>", $id);
}
my @garbage = (
    sub { '' }, sub { 'x' }, sub { "\0\0\0" }, sub { join '', map { chr(($_ * 7 + $_[0]) % 256) } 0 .. 4000 },
    sub { "Content-Type: multipart/mixed; boundary=b\n\n" . "--b\nContent-Type: text/plain\n\nx\n" x 1000 },
    sub { join '', map { "Content-Type: multipart/mixed; boundary=b$_\n\n--b$_\n" } 1 .. 1000 },
    sub { 'Subject: ' . 'x' x 300_000 . "\n\n" . "* 1 FETCH (UID 1 BODY[] {5}\r\nk3 OK done\r\n" },
    sub { "Content-Type: multipart/report; report-type=delivery-status; boundary=\"\"\n\n--\n" . 'A' x 70_000 });

# Each mail another.
my %kind = (dsn => [], arf => [], forged => [], auto => [], reply => [], garbage => []);
for my $n (1 .. $own)
{
    push @{ $kind{ $n % 5 ? 'dsn' : 'arf' } }, ($n % 5 ? \&dsn : \&arf)->("r$n\@example.com", $header[ $n - 1 ]);
    push @{ $kind{forged} }, dsn("r$n\@example.com", "$n\@nowhere.example");
    push @{ $kind{auto} }, mail("From: r$n\@example.com\nTo: platform\@platform.example\nSubject: Out of office\nAuto-Submitted: auto-replied", "I am away.\n") if $n % 2;
    push @{ $kind{garbage} }, $garbage[ $n % @garbage ]->($n);
}
push @{ $kind{reply} }, mail("From: r$_\@example.com\nTo: platform\@platform.example\nSubject: Re: Receipt\nIn-Reply-To: <$header[0]>", "Thank you!\n")
  for 1 .. $count - $own * 3 - @{ $kind{auto} };
push @{ $kind{garbage} }, mail('Subject: large', "x\n" x (25 * 512 * 1024)) x 2;
my %left = map { $_ => 1 } qw(reply garbage);
my @all;
{
    my @each = map { my $kind = $_; map { [ $kind, $_ ] } @{ $kind{$kind} } } sort keys %kind;
    my $state = 1;
    # (in an order that is the same in each run)
    @all = map { $_->[1] } sort { $a->[0] <=> $b->[0] } map { $state = ($state * 1103515245 + 12345) % 2147483648; [ $state, $_ ] } @each;
}
my @stays = grep { $left{ $_->[0] } } @all;
note(scalar(@all), ' mails: ', join(', ', map { scalar(@{ $kind{$_} }) . " $_" } sort keys %kind));

sub outcome
{
    return $node->sql(q{SELECT concat_ws(' ', (SELECT count(*) FROM kliv_mail.deliveries WHERE status = 'bounced'),
        (SELECT count(*) FROM kliv_mail.deliveries WHERE status = 'complained'), (SELECT count(*) FROM kliv_mail.suppressions WHERE scope = 'all'),
        (SELECT count(*) FROM kliv_mail._report))});
}
sub ignored { my ($reason) = @_; return $node->sql("SELECT coalesce(sum(count), 0) FROM kliv_mail._ignored_report WHERE reason = '$reason'"); }

# How long a mail takes meanwhile, from send() to the record, the median of some.
sub latency
{
    my ($until) = @_;
    my @took;
    while (@took < 15 || (@took < 1000 && !$until->()))
    {
        my $begin = Time::HiRes::time();
        my $id = $session->sql(q{SELECT kliv_mail.send('latency@example.org', 'x', 'x')});
        is($session->sql("SELECT kliv_mail.wait($id)"), 'sent', 'a mail leaves meanwhile') if @took == 0;
        $session->sql("SELECT kliv_mail.wait($id)") if @took;
        push @took, Time::HiRes::time() - $begin;
    }
    return (sort { $a <=> $b } @took)[ @took / 2 ];
}

my $alone = latency(sub { 1 });
my $complaints = @{ $kind{arf} };
my $bounced = @{ $kind{dsn} };
$dovecot->deliver(map { $_->[1] } @all);
my $begin = Time::HiRes::time();
$session->sql('SELECT FROM kliv_mail.configure_bounce_mailbox(test => false)');
my $over = sub { $session->sql('SELECT looked_at >= ' . @all . ' AND next_fetch_at > last_fetch_at FROM kliv_mail.bounce_mailbox') eq 't' };
my $beside = latency($over);
eval { $node->wait_for('all are looked at', $over) } or diag($node->sql('TABLE kliv_mail._fetched'), ' ', $node->sql('SELECT now()'), $node->sql('TABLE kliv_mail._ignored_report'));
note(sprintf '%d mails in %.1f s; a mail of ours took %.1f ms alone, %.1f ms meanwhile', scalar @all, Time::HiRes::time() - $begin, $alone * 1000, $beside * 1000);
cmp_ok($beside, '<', $alone * 3 + 0.1, 'mail is not slowed');
my $expected = "$bounced $complaints $bounced $own";
is(outcome(), $expected, 'each report of our own mails counted');
is(ignored('about no mail of this database'), scalar @{ $kind{forged} }, '... and each forged one, as ignored');
is(ignored('an automatic reply'), scalar @{ $kind{auto} }, '... and each automatic reply');
is(ignored('no report'), scalar @stays, '... and what is no report');
is(scalar($dovecot->mails('kliv_mail')), @all - @stays, 'reports and automatic replies are filed');
is(scalar($dovecot->mails('')), @stays, 'the rest stays');
is(scalar(grep { /:2,[^\/]*S/ } $dovecot->mails('')), 0, '... unread');
is(mailbox(q{concat_ws(' ', status, looked_at, filed, postponed)}), join(' ', 'ok', scalar(@all), @all - @stays, 0), 'the view says so');
is($node->sql(q{SELECT kliv_mail.send('r1@example.com', 'x', 'x') > 0}), 't', 'the next mail to one that bounced');
is($node->sql(q{SELECT status FROM kliv_mail.deliveries ORDER BY message_id DESC LIMIT 1}), 'suppressed', '... is suppressed');

# Twice over, and a look for nothing.
$dovecot->deliver(map { $_->[1] } @all);
fetch();
fetch();
is(outcome(), $expected, 'the same mails again change nothing');
is(scalar($dovecot->mails('kliv_mail')), 2 * (@all - @stays), '... and are filed');
is(scalar($dovecot->mails('')), 2 * @stays, '... or stay');
is(mailbox('looked_at'), 2 * @all, 'each mail is looked at once');

# Another numbering: looked at anew, counted once.
$dovecot->change_uidvalidity;
fetch();
is(outcome(), $expected, 'under another UIDVALIDITY nothing is counted twice');
is(mailbox('looked_at'), 2 * @all + 2 * @stays, '... what stayed is looked at again');

# Without MOVE; and without UIDPLUS, where what is filed stays, marked.
sub another { my ($id) = @_; return dsn("r1\@example.com", $id // "n\@nowhere.example"); }
my $filed = $dovecot->mails('kliv_mail');
$dovecot->set(without => 'MOVE');
$dovecot->deliver(another());
fetch();
is(scalar($dovecot->mails('kliv_mail')), $filed + 1, 'without MOVE it is copied');
is(scalar($dovecot->mails('')), 2 * @stays, '... and expunged');
$dovecot->set(without => 'MOVE UIDPLUS');
$dovecot->deliver(another());
fetch();
is(scalar($dovecot->mails('kliv_mail')), $filed + 2, 'without UIDPLUS it is copied');
is(scalar(grep { /:2,[^\/]*T/ } $dovecot->mails('')), 1, '... and marked as deleted');
fetch();
is(scalar($dovecot->mails('kliv_mail')), $filed + 2, '... once');
$dovecot->set(without => '');

# ---- trouble ----

my $log = -s $node->logfile;
sub warnings_of { return scalar(() = slurp_file($node->logfile, $log) =~ /WARNING:  kliv_mail cannot read the bounce mailbox/g); }
$dovecot->set(password => 'Zweites-Passw0rt');
fetch();
is(mailbox('status'), 'trouble', 'a password that is refused is a trouble');
like(mailbox('status_detail'), qr/^the server refused the user name or password: .*configure_bounce_mailbox\(password => 'the new password'\)/, '... with its cure');
is(mailbox(q{next_fetch_at > now() + interval '50 minutes'}), 't', '... and not tried again soon');
is(warnings_of(), 1, '... and one warning');
like($node->sql('SELECT hint FROM kliv_mail.status'), qr/^the bounce mailbox cannot be read: the server refused/, 'status tells of it');
is(steps(), 'dns connect tls login!', 'the test, too');
$session->sql('SELECT FROM kliv_mail.configure_bounce_mailbox(fetch_every => \'1 minute\', test => false)');
is(configure(password => 'Zweites-Passw0rt')->{state}, '', 'the new password cures it');
$session->wait_until(q{SELECT status = 'ok' FROM kliv_mail.bounce_mailbox});
# (Two, where it was looked into with the changed interval before the password came.)
like($node->sql('SELECT count(*) FROM kliv_mail.events WHERE kind = \'bounce_mailbox_trouble\''), qr/^[12]$/, 'events has each trouble');
$node->sql('SELECT kliv_mail.rotate_key()');
fetch();
is(mailbox('status'), 'ok', 'rotate_key() takes the password along');

# A copy, and what else may not send, leaves the mailbox alone.
my $logins = $dovecot->logins;
$node->sql("ALTER DATABASE postgres SET kliv_mail.delivery = 'hold'");
$dovecot->deliver(another());
$node->sql('SELECT FROM kliv_mail.configure_bounce_mailbox(test => false)');
$node->wait_until(q{SELECT status = 'held' AND next_fetch_at IS NULL FROM kliv_mail.bounce_mailbox});
$node->sql('ALTER DATABASE postgres RESET kliv_mail.delivery');
my $dump = "$folder/dump.sql";
{
    local %ENV = $node->_get_env();
    PostgreSQL::Test::Utils::command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
}
unlike(slurp_file($dump), qr/Zweites-Passw0rt/, 'a dump has no password in clear');
$node->sql('CREATE DATABASE copy');
$node->sql("\\i $dump", dbname => 'copy');
is($node->sql('SELECT status FROM kliv_mail.bounce_mailbox', dbname => 'copy'), 'held', 'a copy leaves the mailbox alone');
is($node->sql('SELECT kliv_mail._fetch_due()', dbname => 'copy'), 'infinity', '... and is never due');
$node->sql('DROP DATABASE copy');

# ---- a server that misbehaves ----

$node->reconfigure('kliv_mail.connect_timeout' => '3s', 'kliv_mail.reply_timeout' => '3s');

my $odd = "$folder/odd";
mkdir $odd;
my ($certificate, $key) = $tls->certificate('odd');
my $input = '';
my $server = IPC::Run::start([ '/usr/bin/python3', 'test/imap_server.py', '--dir', $odd, '--cert', $certificate, '--key', $key ], '<pipe', \*INPUT);
$node->wait_for('the server runs', sub { -e "$odd/port" });
my $secret = 'odd-Pass-w0rd-canary';
sub put { my ($name, $text) = @_; open my $file, '>', "$odd/$name" or die "$name: $!"; print $file $text; close $file; return; }
sub commands { return -e "$odd/commands" ? slurp_file("$odd/commands") : ''; }
put('password', $secret);
put('mood', '');
my %odd = (host => '127.0.0.1', port => \slurp_file("$odd/port"), encryption => 'tls', username => 'u');
$try = configure(%odd, password => "not-$secret");
is($try->{state}, 'KM005', 'a server that repeats the password');
unlike($try->{err}, qr/\Q$secret\E/, '... is not quoted');
is(configure(%odd, password => $secret)->{state}, '', 'another server');
$session->wait_until(q{SELECT status = 'ok' FROM kliv_mail.bounce_mailbox});
my @fresh = split /\n/, $node->sql(q{SELECT header_id FROM kliv_mail._message WHERE id IN (SELECT kliv_mail.send('s' || n || '@example.com', 'Receipt', 'x') FROM generate_series(1, 6) AS n) ORDER BY id});
$node->wait_until(q{SELECT count(*) = 6 FROM kliv_mail.deliveries WHERE recipient LIKE 's%@example.com' AND status = 'sent'});
@fresh = split /\n/, $node->sql(q{SELECT m.header_id FROM kliv_mail._message AS m JOIN kliv_mail._delivery AS d ON d.message_id = m.id WHERE d.recipient LIKE 's%@example.com' ORDER BY m.id});
sub hard { return $node->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE recipient LIKE 's%@example.com' AND status = 'bounced'}); }

put('inbox/1', dsn('s1@example.com', $fresh[0]));
for my $case (
    [ 'CAPABILITY hang', 'no reply from the server within 3 s', 'tls' ],
    [ 'AUTHENTICATE hang', 'no answer from the server within 3 s', 'login' ],
    [ 'AUTHENTICATE busy', 'takes no login at the moment: \\[UNAVAILABLE\\] .*by itself', 'login' ],
    [ 'AUTHENTICATE crowded', 'takes no login at the moment: \\[ALERT\\] .*by itself', 'login' ],
    [ 'SELECT hang', 'no answer from the server within 3 s', 'select' ],
    [ 'SELECT no', 'the mailbox "INBOX" cannot be opened', 'select' ],
    [ 'UID SEARCH hang', 'no answer from the server within 3 s', 'read' ],
    [ 'UID SEARCH endless', 'the server\'s answer did not end|the server sent more than', 'read' ],
    [ 'UID SEARCH oneline', 'does not speak IMAP', 'read' ],
    [ 'UID SEARCH garbage', 'does not speak IMAP', 'read' ],
    [ 'UID SEARCH drop', 'the server closed the connection', 'read' ],
    [ 'UID FETCH huge', 'the server sent more than 64 MB', 'read' ],
    [ 'UID MOVE no', 'cannot be moved to the mailbox', 'file' ])
{
    my ($mood, $problem, $step) = @$case;
    put('mood', "$mood\n");
    fetch();
    like(mailbox('status_detail'), qr/$problem/, "$mood: $problem");
    is($node->sql('SELECT trouble_step FROM kliv_mail._fetched'), $step, "... at the step $step");
    is(mailbox(q{next_fetch_at < now() + interval '30 minutes'}), 't', '... tried again soon');
    unlike(mailbox('status_detail'), qr/password =>/, '... and no fault of the password');
}
is(hard(), 1, 'what was read is counted');
is(-e "$odd/inbox/1" ? 1 : 0, 1, '... and not filed yet');
put('mood', '');
fetch();
is(-e "$odd/filed/1" ? 1 : 0, 1, 'it is filed once the server lets it be');
is(hard(), 1, '... and was counted once');

# Killed between the two: taken, and the server does not answer to the filing.
put('mood', "UID MOVE hang\n");
$node->reconfigure('kliv_mail.reply_timeout' => '60s');
put('inbox/2', dsn('s2@example.com', $fresh[1]));
$session->sql('SELECT FROM kliv_mail.configure_bounce_mailbox(test => false)');
$session->wait_until('SELECT to_file = ARRAY[2::bigint] FROM kliv_mail._fetched');
$node->wait_for('the filing', sub { commands() =~ /^UID MOVE 2 /m });
my ($pid) = $node->workers('kliv_mail fetcher');
put('mood', '');
$session->quit;
kill 'KILL', $pid;
$node->wait_until('SELECT pg_postmaster_start_time() IS NOT NULL');
$session = $node->session;
$session->wait_until(q{SELECT to_file = '{}' FROM kliv_mail._fetched});
is(-e "$odd/filed/2" ? 1 : 0, 1, 'after a kill it is filed');
is(hard(), 2, '... and counted once');
is(scalar(() = commands() =~ /^UID FETCH 2 /mg), 1, '... without being fetched again');

# A mail that nobody comes to the end of is left alone after three times.
put('inbox/3', dsn('s3@example.com', $fresh[2]));
put('inbox/4', dsn('s4@example.com', $fresh[3]));
put('mood', "UID FETCH drop\n");
fetch() for 1 .. 3;
put('mood', '');
fetch();
is(ignored('could not be read'), 1, 'a mail at which the connection breaks three times is left alone');
is(hard(), 3, '... and the next ones are taken');

# Nothing waits for a fetcher: DROP DATABASE and shutdown go through while the server hangs.
put('mood', "UID SEARCH hang\n");
$session->sql('SELECT FROM kliv_mail.configure_bounce_mailbox(test => false)');
$node->wait_for('a fetcher', sub { $node->workers('kliv_mail fetcher') });
$begin = Time::HiRes::time();
$node->sql('ALTER EXTENSION kliv_mail UPDATE');
cmp_ok(Time::HiRes::time() - $begin, '<', 5, 'a statement that needs the database for itself does not wait');
$node->sql('SELECT kliv_mail.remove_bounce_mailbox()');
is($node->sql('SELECT count(*) FROM kliv_mail.bounce_mailbox'), '0', 'it can be removed');
is($node->sql('SELECT count(*) FROM kliv_mail._fetched'), '0', '... with all that was known of it');
$session->quit;
$node->stop('fast');
unlike(slurp_file($node->logfile), qr/\Q$secret\E|Zweites-Passw0rt|Mbx-S3cret/, 'no password is in the log');
unlike(slurp_file($node->logfile), qr/PANIC|Assert/, 'nothing crashed but what was killed');
close INPUT;
$server->finish;
$dovecot->stop;
done_testing();
