# Why has this mail not arrived?  For each staged cause one query on deliveries
# names it and its cure in plain words, and next_step() the same (issue 3, B9).
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::Names;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $tls = KlivMail::Tls->new("$folder/tls");
my @good = $tls->certificate('good');
my @expired = $tls->certificate('expired', expired => 1);
my $names = KlivMail::Names->new($folder);
$names->missing('smpt.shop.example');
my $password = 'correct-horse-battery';
my %login = (tls => 1, auth => ["app:$password"]);

my $good = KlivMail::SmtpServer->start(%login, cert => $good[0], key => $good[1]);
my $outdated = KlivMail::SmtpServer->start(%login, cert => $expired[0], key => $expired[1]);
my $strict = KlivMail::SmtpServer->start(%login, cert => $good[0], key => $good[1],
    dot_reply => '554 Message rejected: Email address is not verified. The following identities failed the check in region US-EAST-1: unverified@unverified.example');

my $node = KlivMail::Cluster->new(
    'main',
    start => 0,
    conf => {
        'kliv_mail.allowed_hosts'   => '127.0.0.1, localhost',
        'kliv_mail.ca_file'         => $tls->ca_file,
        'kliv_mail.connect_timeout' => '5s'
    });
{
    local %ENV = (%ENV, $names->environment);
    $node->start;
}
$node->sql('CREATE EXTENSION kliv_mail CASCADE');
$node->clock_to_noon;

# An account for each trouble, with a sender of its own, so that none takes over
# another's mail.
sub account
{
    my ($name, $server, %change) = @_;
    my %argument = (
        account => "'$name'", host => "'localhost'", port => $server->port, encryption => "'tls'", username => "'app'",
        password => "'$password'", from_address => "'$name\@$name.example'", test => 'false', %change);
    $node->sql('SELECT kliv_mail.configure_smtp(' . join(', ', map { "$_ => $argument{$_}" } sort keys %argument) . ')');
    return;
}
account('custom', $good);
account('small', $good, hourly_limit => 1);
account('login', $good, password => q{'of-last-year'});
account('certificate', $outdated);
account('dns', $good, host => q{'smpt.shop.example'});
account('halted', $good);
account('unverified', $strict);
$node->sql(q{
    SELECT kliv_mail.send('first@example.com', 'x', 'x', account => 'small');
    SELECT kliv_mail.suppress('gone@example.com', reason => 'asked for it by phone');
    SELECT kliv_mail.pause('halted', 'the shop is closed')});

my @hints_run;
my %code_of = (
    quota => 'hour_used t {}', 535 => 'account_trouble t {password}', certificate => 'account_trouble f {}', DNS => 'account_trouble f {}', greylisting => 'retry f {}',
    '5.1.1' => 'bounced_hard f {}', suppressed => 'suppressed f {}', paused => 'account_paused t {}', expired => 'expired t {}',
    'unverified sender' => 'account_trouble t {from_address}', key => 'key_missing f {}', copy => 'copy t {}', 'sender not running' => 'not_preloaded t {}');
my %unsafe = map { $_ => 1 } 'quota', 'suppressed', 'paused', 'expired', 'copy', 'sender not running';

# The one query.
sub why
{
    my ($id, %option) = @_;
    my @columns = split /\|/, $node->sql("SELECT status, held_by, reason, hint FROM kliv_mail.deliveries WHERE message_id = $id", %option), 4;
    return { status => $columns[0], held_by => $columns[1], reason => $columns[2], hint => $columns[3] };
}

# Each statement in a hint can be run as it stands, but for what it says must be
# filled in; what it would change is taken back.
sub run_hint
{
    my ($what, $hint, %option) = @_;
    for my $statement ($hint =~ /((?:SELECT|ALTER|UPDATE)\b[^;]*;)/g)
    {
        (my $filled = $statement) =~ s/'(?:the new one|its password)'/'$password'/g;
        $filled =~ s/'the verified address'/'other\@other.example'/g;
        my $result =
            $filled =~ /^ALTER SYSTEM SET (\w+)/ ? $node->try("$filled ALTER SYSTEM RESET $1", %option)
          : $filled =~ /\.wait\(/                ? $node->try("SET statement_timeout = '1s'; $filled", %option)
          :                                        $node->try("BEGIN; $filled ROLLBACK", %option);
        # What a server answers is not the statement's fault.
        like($result->{state}, qr/^(?:|KM...|08...|57014)$/, "$what: the hint's statement runs: $statement") or diag($result->{err});
        push @hints_run, $statement;
    }
    return;
}

sub check
{
    my ($id, $cause, $status, $held_by, $reason, $hint, %option) = @_;
    my $row;
    eval { $node->wait_for("$cause is seen", sub { $row = why($id, %option); $row->{status} eq $status && $row->{held_by} eq $held_by && $row->{reason} =~ $reason }) };
    is("$row->{status} $row->{held_by}", "$status $held_by", "$cause: status and held_by");
    like($row->{reason}, $reason, '... the cause');
    like($row->{hint}, $hint, '... the cure');
    unlike("$row->{reason} $row->{hint}", qr/\Q$password\E|of-last-year|NULL|\(null\)/, '... in words that can be shown');
    my ($problem, $statement) = split /\|/, $node->sql("SELECT problem, statement FROM kliv_mail.next_step($id)", %option), 2;
    like($problem, $reason, '... next_step() names the same cause');
    like($statement, qr/^(?:SELECT|ALTER) .*;$/, '... and a statement');
    is($node->sql("SELECT code || ' ' || cures || ' ' || needs_input::text FROM kliv_mail.next_step($id)", %option) =~ s/ true/ t/r =~ s/ false/ f/r,
        $code_of{$cause}, '... its code, whether the statement cures it and what it needs');
    is($node->sql("SELECT safe FROM kliv_mail.next_step($id)", %option), $unsafe{$cause} ? 'f' : 't', '... and whether it may be run without asking');
    is($node->sql("SELECT DISTINCT code FROM kliv_mail.deliveries WHERE message_id = $id", %option), $code_of{$cause} =~ s/ .*//r, '... the same code as the view');
    # What is held and goes on by itself says when, and never a time that is over.
    $status ne 'deferred' or is($node->sql("SELECT coalesce(d.next_attempt_at > kliv_mail._now(), true), d.next_attempt_at IS NOT DISTINCT FROM n.retries_at, d.next_attempt_at IS NOT NULL
            FROM kliv_mail.deliveries AS d, kliv_mail.next_step($id) AS n WHERE d.message_id = $id", %option),
        't|t|' . ($held_by =~ /^(?:quota|account|retry|key)$/ ? 't' : 'f'), '... and when it is tried again');
    run_hint($cause, $row->{hint}, %option);
    run_hint("$cause, next_step()", $statement, %option);
    $problem =~ /\Q$row->{hint}\E/ or like($row->{hint}, qr/\Q$statement\E/, '... which is the cure, or the cure stands with the problem');
    note("$cause: $row->{reason} -> $row->{hint} -> $statement");
    return;
}

sub send_sql
{
    my ($recipient, $more) = @_;
    return $node->sql("SELECT kliv_mail.send('$recipient\@example.com', 'x', 'x'" . ($more // '') . ')');
}

# [cause, recipient, further arguments, status, held_by, reason, hint]
for my $row (
    [ 'quota', 'second', q{, account => 'small'}, 'deferred', 'quota', qr/the account "small" has used its 1 recipient of this hour/, qr/It goes out by itself at \S+ .*kliv_mail\.set_limits\(hourly_limit => 2, account => 'small'\); raises/ ],
    [ '535', 'a', q{, account => 'login'}, 'deferred', 'account', qr/refused user name or password: 535/, qr/user name and password.*configure_smtp\(/ ],
    [ 'certificate', 'b', q{, account => 'certificate'}, 'deferred', 'account', qr/certificate has expired/, qr/operator must renew it.*SELECT \* FROM kliv_mail\.test_smtp\(account => 'certificate'\);/ ],
    [ 'DNS', 'c', q{, account => 'dns'}, 'deferred', 'account', qr/no address was found for host "smpt\.shop\.example"/, qr/spelling.*SELECT \* FROM kliv_mail\.test_smtp\(account => 'dns'\);/ ],
    [ 'greylisting', 'grey-9', '', 'deferred', 'retry', qr/greylisting/, qr/tried again by itself/ ],
    [ '5.1.1', 'rcpt-550-5.1.1', '', 'bounced', '', qr/mailbox does not exist/, qr/Correct the address/ ],
    [ 'suppressed', 'gone', '', 'suppressed', '', qr/asked for it by phone/, qr/kliv_mail\.unsuppress\('gone\@example\.com'/ ],
    [ 'paused', 'd', q{, account => 'halted'}, 'deferred', 'paused', qr/the account "halted" is paused by \S+: the shop is closed/, qr/SELECT kliv_mail\.resume\('halted'\);/ ],
    [ 'expired', 'e', q{, account => 'halted', expires_at => kliv_mail._now() + interval '1 second'}, 'expired', '', qr/expired before it could be delivered/, qr/kliv_mail\.retry\(/ ],
    [ 'unverified sender', 'f', q{, account => 'unverified'}, 'deferred', 'account', qr/does not allow this sender address/, qr/verify this address or its domain.*SELECT \* FROM kliv_mail\.update_sender\(from_address => 'the verified address', account => 'unverified'\);/ ])
{
    my ($cause, $recipient, $more, @expected) = @$row;
    check(send_sql($recipient, $more), $cause, @expected);
}

# An SMTP password of Amazon SES has a user name of its own; the platform's password is not configure_smtp()'s to set.
is($node->sql(q{SELECT kliv_mail._cure_of_hold('a', true, 'ses', 'account', 'x', 'Get one. SELECT * FROM kliv_mail.configure_smtp(password => ''the new one'', account => ''a''); saves it.')}),
    q{Get one. SELECT * FROM kliv_mail.configure_smtp(username => 'the new user name', password => 'the new one', account => 'a'); saves it.}, 'SES: new credentials have a new user name');
like($node->sql(q{SELECT kliv_mail._cure_of_hold('platform', false, NULL, 'account', 'x', 'Check user name and password with the provider and give them to kliv_mail.configure_smtp(); what is queued goes out then.')}),
    qr/^The administrator of the server corrects kliv_mail\.platform_username/, 'platform: who can correct its password');

# The statement for the quota runs, and lets more leave.
{
    my $statement = $node->sql("SELECT statement FROM kliv_mail.next_step((SELECT max(message_id) FROM kliv_mail.deliveries WHERE recipient = 'second\@example.com'))");
    is($node->sql($statement =~ s/\*/hourly_limit, daily_limit/r), '2|500', "quota: the statement of next_step() runs: $statement");
    is($node->sql(q{SELECT kliv_mail.wait((SELECT max(message_id) FROM kliv_mail.deliveries WHERE recipient = 'second@example.com'), '2 min')}), 'sent', '... and one more leaves');
    for my $case (
        [ '2, 2', 'hourly_limit => 4, daily_limit => 4' ],
        [ '1, 7', 'hourly_limit => 4' ],    # two are used
        [ '2, 0', 'hourly_limit => 4, daily_limit => 500' ],
        [ '0, 0', 'hourly_limit => 50, daily_limit => 500' ],
        [ '0, 7', 'hourly_limit => 50' ])
    {
        my ($limits, $cure) = @$case;
        $node->sql("SELECT kliv_mail.set_limits($limits, account => 'small')");
        like($node->sql(q{SELECT hint FROM kliv_mail._account_holds() WHERE account = 'small'}), qr/kliv_mail\.set_limits\($cure, account => 'small'\);/, "limits $limits: the cure");
    }
    $node->sql(q{SELECT kliv_mail.set_limits(2, 2, account => 'small')});
    $node->reconfigure('kliv_mail.max_daily_limit' => $node->sql('SELECT sum(daily_limit) FROM kliv_mail._account'));
    like($node->sql(q{SELECT hint FROM kliv_mail._account_holds() WHERE account = 'small'}), qr/administrator of the server can raise that/, 'the database has all that it may have: so it says');
    $node->reconfigure('kliv_mail.max_daily_limit' => 10000);
}

# What is missing, without a message: the default account is well, others are not.
$node->sql('SELECT kliv_mail.test_smtp()');
like($node->sql('SELECT problem, statement FROM kliv_mail.next_step()'), qr/^the account login: the server refused user name or password.*\|SELECT \* FROM kliv_mail\.configure_smtp\(password => 'the new one', account => 'login'\);$/,
    'next_step() finds the further accounts that are in trouble');

# The key is gone: what the sender has open does not last.
{
    my $key = $node->data_dir . '/kliv_mail.key';
    rename $key, "$key.away" or die "rename: $!";
    $node->sql('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = \'kliv_mail sender\'');
    $good->drop_connections;
    my $id = send_sql('g');
    check($id, 'key', 'deferred', 'key', qr/the key file "kliv_mail\.key" does not exist/, qr/Put the key file back/);
    rename "$key.away", $key or die "rename: $!";
    $node->sql('SELECT kliv_mail.test_smtp()');
    is($node->sql("SELECT kliv_mail.wait($id, '30 s')"), 'sent', 'key: put back, the mail leaves');
}

# A copy of the database sends nothing.
{
    my $id = send_sql('h', q{, account => 'halted'});
    $node->sql('CREATE DATABASE copy TEMPLATE postgres', dbname => 'template1');
    check($id, 'copy', 'deferred', 'restore', qr/copy of another one, and a copy sends nothing/, qr/SELECT kliv_mail\.resume\(\);/, dbname => 'copy');
}

# No sender can run.
{
    $node->configure(shared_preload_libraries => '');
    $node->stop;
    {
        local %ENV = (%ENV, $names->environment);
        $node->start;
    }
    my $id = send_sql('i');
    check($id, 'sender not running', 'queued', '', qr/no sender can run: kliv_mail is not in shared_preload_libraries/, qr/^ALTER SYSTEM SET shared_preload_libraries = 'kliv_mail'; then restart the server\.$/);
}
cmp_ok(scalar(@hints_run), '>', 20, 'statements of hints were run: ' . scalar(@hints_run));
$node->stop;
done_testing();
