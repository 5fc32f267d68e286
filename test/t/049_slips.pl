# What PostgreSQL itself refuses about a call has our hint, and what a call has of
# secrets does not stay in pg_stat_activity.
use strict;
use warnings;
use KlivMail::Cluster;
use IO::Socket::INET;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = KlivMail::Cluster->new('main');
$node->sql(q{CREATE ROLE web; CREATE ROLE reader; SELECT kliv_mail.grant_ingest('reader'); CREATE SCHEMA other; CREATE FUNCTION other.send(text) RETURNS text LANGUAGE sql RETURN 'x';
    REVOKE ALL ON SCHEMA other FROM PUBLIC; CREATE TABLE kept (id int);
    CREATE FUNCTION indirect() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM kliv_mail.send('a@example.com', 'b', 'c'); END $$});

# ---- a missing right ----

my $grant = qr/^SELECT kliv_mail\.grant_send\('the role'\);.*grant_read\(\).*grant_admin\(\)/;
for my $case (
    [ 'the schema', 'web', q{SELECT kliv_mail.send('a@example.com', 'b', 'c')} ],
    [ 'the schema, by a function of the user', 'web', 'SELECT indirect()' ],
    [ 'a function', 'reader', q{SELECT kliv_mail.send('a@example.com', 'b', 'c')} ],
    [ 'a function, by a function of the user', 'reader', 'SELECT indirect()' ],
    [ 'a view', 'reader', 'SELECT * FROM kliv_mail.deliveries' ])
{
    my ($what, $role, $sql) = @$case;
    my $result = $node->try($sql, role => $role);
    is($result->{state}, '42501', "$what is refused");
    like($result->{hint}, $grant, '... and the hint has the grants');
}
for my $sql (q{SELECT other.send('kliv_mail.send(1)')}, 'SELECT * FROM kept', 'SELECT * FROM kliv_mail._message')
{
    my $result = $node->try($sql, role => 'reader');
    is("$result->{state} $result->{hint}", '42501 ', "what is not ours to give has no such hint: $sql");
}

# ---- wrong names and types ----

my $names = qr/it has recipients, subject, body, html, cc, bcc, .*on_limit\./;
for my $case (
    [ q{SELECT kliv_mail.send(to => 'a@example.com', text => 'b')}, qr/^kliv_mail\.send\(\) has no argument "to"; $names.*\{"to": / ],
    [ q{SELECT kliv_mail.send('a@example.com', 'b', text => 'b')}, qr/^kliv_mail\.send\(\) has no argument "text"; $names/ ],
    [ q{SELECT kliv_mail.send('{a@example.com}'::text[], 'b', 'b')}, qr/^Addresses are one text/ ],
    [ q{SELECT kliv_mail.send('a@example.com', 'b', 'b', attachments => kliv_mail.attach('a', 'b'))}, qr/^Files are an array: attachments => ARRAY/ ],
    [ q{SELECT kliv_mail.attach(name => 'a', content => 'b')}, qr/has no argument "name"; it has filename, content, content_type, content_id/ ],
    [ q{SELECT kliv_mail.update_sender(from => 'a@example.com')}, qr/has no argument "from"; it has from_address/ ],
    [ q{SELECT kliv_mail.suppress(email => 'a@example.com')}, qr/has no argument "email"; it has address/ ],
    [ q{DO $$ BEGIN PERFORM kliv_mail.send('a@example.com', message => 'b'); END $$}, qr/has no argument "message"; $names/ ])
{
    my ($sql, $hint) = @$case;
    like($node->try($sql)->{hint}, $hint, $sql);
}
unlike($node->try(q{SELECT other.send(to => 'a'), 'kliv_mail.send'})->{hint}, qr/it has recipients/, 'another schema\'s function is not taken for ours');
unlike($node->try(q{SELECT lower(upper('a'), 1), kliv_mail.is_address('a')})->{hint}, qr/kliv_mail/, '... nor another function');

# The names in the library are those of the catalogue.
my $source = slurp_file('src/hooks/slips.c');
my $count = 0;
while ($source =~ /^\t\{"(\w+)", ((?:"[^"]*"\s*)+)\}/mg)
{
    my ($name, $pieces) = ($1, $2);
    my $arguments = join '', $pieces =~ /"([^"]*)"/g;
    $count++;
    is(join(' ', sort split /, /, $arguments), $node->sql(qq{
        SELECT string_agg(DISTINCT a.name, ' ' ORDER BY a.name) FROM pg_proc AS p, unnest(p.proargnames, p.proargmodes) AS a (name, mode)
        WHERE p.pronamespace = 'kliv_mail'::regnamespace AND p.proname = '$name' AND coalesce(a.mode, 'i') = 'i' AND NOT (p.proname = 'send' AND a.name = 'mail')}),
        "$name() has the arguments that its hint lists");
}
cmp_ok($count, '>=', 10, 'the list was read');

# ---- what pg_stat_activity keeps ----

my $secret = 'canary-of-a-password';
for my $call (
    qq{SELECT status FROM kliv_mail.configure_smtp(host => 'smtp.example.com', username => 'u\@example.com', password => '$secret', test => false)},
    qq{SELECT * FROM kliv_mail.test_smtp(host => '127.0.0.1', port => 1, username => 'u\@example.com', password => '$secret')},
    qq{SELECT * FROM kliv_mail.test_smtp(host => 'no host', username => 'u\@example.com', password => '$secret')},
    qq{SELECT kliv_mail.configure_smtp(pasword => '$secret')},
    qq{SELECT kliv_mail.configure_webhook('mailgun', secret => '$secret')},
    qq{SELECT kliv_mail.configure_bounce_mailbox('imap.example.com', 'bounces\@example.com', '$secret', test => false)},
    qq{SELECT kliv_mail.configure_bounce_mailbox('no host', 'bounces\@example.com', '$secret', test => false)},
    qq{DO \$\$ BEGIN PERFORM kliv_mail.configure_smtp(host => '127.0.0.1', username => 'u', password => '$secret'); EXCEPTION WHEN OTHERS THEN NULL; END \$\$})
{
    my $session = $node->session;
    my $pid = $session->query('SELECT pg_backend_pid()');
    $session->query("/* mark */ $call");
    $node->wait_until("SELECT state = 'idle' FROM pg_stat_activity WHERE pid = $pid");
    my $shown = $node->sql("SELECT query FROM pg_stat_activity WHERE pid = $pid");
    like($shown, qr{^/\* mark \*/ .*\*\*\*\*}s, 'the statement is shown, with stars: ' . ($call =~ /kliv_mail\.(\w+\(\w+)/)[0]);
    unlike($shown, qr/canary/, '... and without the password, when it has ended');
    $session->quit;
}

# While it runs: a server that does not answer.
my $listen = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1) or die $!;
$node->reconfigure('kliv_mail.allowed_hosts' => '127.0.0.1');
my $session = $node->session;
my $pid = $session->query('SELECT pg_backend_pid()');
$session->send("SELECT * FROM kliv_mail.test_smtp(host => '127.0.0.1', port => @{[ $listen->sockport ]}, username => 'u\@example.com', password => '$secret')");
$node->wait_until("SELECT query ~ 'test_smtp' AND wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pid");
unlike($node->sql("SELECT query FROM pg_stat_activity WHERE pid = $pid"), qr/canary/, 'while it waits for the server there is no password either');
$node->sql("SELECT pg_terminate_backend($pid)");

done_testing;
