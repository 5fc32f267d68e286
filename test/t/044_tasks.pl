# The tasks that people and agents come with, each in no more statements than it
# may take, by a role that has grant_admin and nothing else (issue 3, B10).  The
# texts of describe() are enough to find them: every function called here is in
# it with each argument used.
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
my $names = KlivMail::Names->new($folder);
my ($cert, $key) = $tls->certificate('sendgrid', hosts => [ 'smtp.sendgrid.net', 'localhost' ]);
my $smtp = KlivMail::SmtpServer->start(tls => 1, cert => $cert, key => $key, auth => ['apikey:SG.first']);
$names->add('smtp.sendgrid.net', '127.0.0.1', 465 => $smtp->port);
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
$node->sql(q{CREATE EXTENSION kliv_mail CASCADE; CREATE ROLE agent; SELECT kliv_mail.grant_admin('agent')});
$node->clock_to_noon;
my $session = $node->session(role => 'agent');
my %said = map { $_ => 1 } split /\n/, $session->query(q{
    SELECT regexp_replace(f ->> 'name', '^kliv_mail\.', '') || coalesce(' ' || a.name, '')
    FROM jsonb_array_elements(kliv_mail.describe() -> 'functions') AS f,
         jsonb_array_elements(kliv_mail.describe(f ->> 'name') -> 'forms') AS m
    LEFT JOIN jsonb_object_keys(m #> '{arguments,properties}') AS a (name) ON true
    UNION SELECT regexp_replace(f ->> 'name', '^kliv_mail\.', '') FROM jsonb_array_elements(kliv_mail.describe() -> 'functions') AS f
    UNION SELECT regexp_replace(v, '^kliv_mail\.', '') FROM jsonb_object_keys(kliv_mail.describe() -> 'views') AS v});

# The choices where there are some; that nothing lacks a purpose or an example, 083 sees.
is($session->query(q{
    SELECT string_agg(format('kliv_mail.%s %s: %s', f.name, a.key, a.value -> 'enum'), E'\n' ORDER BY f.name, a.key)
    FROM unnest(ARRAY['configure_smtp', 'test_smtp', 'send']) AS f (name), jsonb_array_elements(kliv_mail.describe(f.name) -> 'forms') AS m,
         jsonb_each(m #> '{arguments,properties}') AS a
    WHERE a.value ? 'enum'}),
    join("\n",
        'kliv_mail.configure_smtp auth: ["password", "oauth2"]',
        'kliv_mail.configure_smtp encryption: ["tls", "starttls", "none"]',
        'kliv_mail.configure_smtp provider: ' . $session->query('SELECT jsonb_agg(name) FROM kliv_mail.providers'),
        'kliv_mail.send message_type: ["system", "transactional", "marketing"]',
        'kliv_mail.send on_limit: ["defer", "error"]',
        'kliv_mail.test_smtp auth: ["password", "oauth2"]',
        'kliv_mail.test_smtp encryption: ["tls", "starttls", "none"]',
        'kliv_mail.test_smtp provider: ' . $session->query('SELECT jsonb_agg(name) FROM kliv_mail.providers')),
    '... and the allowed values');

# task, most statements, statements, what the last one prints
my $first;
for my $task (
    [ 'set up a provider, test included', 3,
        [ q{SELECT required, example FROM kliv_mail.providers WHERE name = 'sendgrid'},
          q{SELECT account, status, server, password_masked, changed FROM kliv_mail.configure_smtp(provider => 'sendgrid', password => 'SG.first', from_address => 'shop@shop.example')} ],
        qr/^NOTICE: .*what the test cannot show: SendGrid looks at the sender.*^HINT: .*test_smtp\(send_to => '[^']+', account => 'custom'\); proves it.*^custom\|ok\|smtp\.sendgrid\.net:465 tls\|\*\*\*\*\w{2}\|all, it is new$/ms ],
    [ 'see the settings, secrets masked', 1,
        [ q{SELECT host, username, password_masked, from_address, hourly_limit, daily_limit FROM kliv_mail.smtp_settings WHERE account = 'custom'} ],
        qr/^smtp\.sendgrid\.net\|apikey\|\*\*\*\*\w{2}\|shop\@shop\.example\|50\|500$/ ],
    [ 'see the usage of this hour and day', 1,
        [ q{SELECT window_name, used, quota, remaining FROM kliv_mail.usage WHERE account = 'custom' ORDER BY window_name DESC} ],
        qr/^hour\|0\|50\|50\nday\|0\|500\|500$/ ],
    [ 'change who mail comes from', 1,
        [ q{SELECT from_address, changed FROM kliv_mail.update_sender(from_address => 'office@shop.example', from_name => 'The Shop', reply_to => 'help@shop.example')} ],
        qr/^office\@shop\.example\|from_address, from_name, reply_to$/ ],
    [ 'test the connection', 1,
        [ q{SELECT string_agg(step, ' ') FROM kliv_mail.test_smtp() WHERE ok} ],
        qr/^dns connect tls ehlo auth sender$/ ],
    [ 'change the limits', 1,
        [ q{SELECT hourly_limit, daily_limit FROM kliv_mail.set_limits(hourly_limit => 200, daily_limit => 5000)} ],
        qr/^200\|5000$/ ],
    [ 'change the password', 1,
        [ sub { $smtp->set(auth => ['apikey:SG.second']); q{SELECT status, changed, daily_limit FROM kliv_mail.configure_smtp(password => 'SG.second')} } ],
        qr/^ok\|password\|5000$/ ],
    [ 'send a mail and wait for it', 2,
        [ q{SELECT kliv_mail.send('ana@example.com', 'Hello', 'It works')}, sub { "SELECT kliv_mail.wait($_[0])" } ],
        qr/^sent$/ ],
    [ 'send one that does not arrive', 2,
        [ q{SELECT kliv_mail.send('rcpt-550-5.1.1@example.com', 'Hello', 'It works')}, sub { $first = $_[0]; "SELECT kliv_mail.wait($_[0])" } ],
        qr/^bounced$/ ],
    [ 'know why it did not arrive', 1,
        [ sub { "SELECT problem, statement FROM kliv_mail.next_step($first)" } ],
        qr/^rcpt-550-5\.1\.1\@example\.com is bounced: the mailbox does not exist\. Correct the address.*\|SELECT / ],
    [ 'the same by the view', 1,
        [ sub { "SELECT reason, hint, last_reply FROM kliv_mail.deliveries WHERE message_id = $first" } ],
        qr/^the mailbox does not exist\|Correct the address.*\|550 5\.1\.1 / ],
    [ 'stop one address', 1,
        [ q{SELECT kliv_mail.suppress('bob@example.com', reason => 'asked for it')} ],
        qr/gets no more mail.*^0$/ms ],
    [ 'see that it gets nothing', 2,
        [ q{SELECT kliv_mail.send('bob@example.com', 'Hello', 'It works')}, sub { "SELECT status, reason FROM kliv_mail.deliveries WHERE message_id = $_[0]" } ],
        qr/^suppressed\|.*asked for it/ ],
    [ 'stop everything', 1, [ q{SELECT kliv_mail.pause(reason => 'moving')} ], qr/^0$/ ],
    [ 'know why nothing leaves', 1, [ q{SELECT problem, statement FROM kliv_mail.next_step()} ], qr/^all mail is paused by \S+: moving\|SELECT kliv_mail\.resume\(\);$/ ],
    [ 'go on', 1, [ q{SELECT kliv_mail.resume()} ], qr/^0$/ ],
    [ 'know what to do next', 1, [ q{SELECT problem, statement FROM kliv_mail.next_step()} ], qr/^nothing: mail can be sent\|SELECT kliv_mail\.send\(/ ],
    [ 'see who changed what', 1,
        [ q{SELECT string_agg(kind, ' ' ORDER BY at) FROM kliv_mail.events WHERE role = 'agent' AND account = 'custom' AND kind <> 'queued'} ],
        qr/^account_configured sender_updated limits_changed account_configured$/ ],
    [ 'leave the provider', 1,
        [ q{SELECT changed, password_masked IS NULL, status FROM kliv_mail.reset_smtp()} ],
        qr/^in_use, password\|t\|reset$/ ])
{
    my ($name, $most, $statements, $expected) = @$task;
    my $printed = '';
    cmp_ok(scalar(@$statements), '<=', $most, "$name: in $most");
    for my $statement (@$statements)
    {
        $statement = $statement->($printed =~ /^(\d+)$/m) if ref $statement;
        my @unsaid = grep { !$said{$_} } map { my ($f, $arguments) = @$_; ($f, map { "$f $_" } $arguments =~ /(\w+) =>/g) }
          map { [ /^kliv_mail\.(\w+)\(?(.*)/s ] } $statement =~ /(kliv_mail\.\w+(?:\((?:[^()]|\([^()]*\))*\))?)/g;
        is("@unsaid", '', '... known from describe()');
        $printed = $session->query($statement);
        unlike($printed, qr/SG\.(?:first|second)/, '... no secret is shown');
    }
    like($printed, $expected, '... done');
}

# And what it does not allow.
like($session->query('SELECT * FROM kliv_mail._account'), qr/ERROR:  42501/, 'the role has no right on the tables');
$session->quit;
$node->stop;
done_testing();
