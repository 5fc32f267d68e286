# Trust nothing in the database: every column of every table, one after the other, with NULL
# and with an odd value, while mail is due.  Other mail goes on, and the server never restarts.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Test::More;

my $smtp = KlivMail::SmtpServer->start(plain => 1);
my $node = KlivMail::Cluster->new('main', conf => {
        'kliv_mail.allowed_hosts' => '127.0.0.1, localhost', 'kliv_mail.max_daily_limit' => 1_000_000, 'kliv_mail.sender_idle_timeout' => '300s' });
$node->clock_to_noon;
my $session = $node->session;
$session->query('SET client_min_messages = error');

# A row of each table to spoil, of the account "victim" where it is an account's; that of
# _message and _outbox is a new one each time.
for my $account (qw(victim other))
{
    $session->sql("SELECT count(*) FROM kliv_mail.configure_smtp(host => 'localhost', port => " . $smtp->port . ", encryption => 'none', username => '',
        from_address => 'app\@$account.example', reply_to => 'desk\@$account.example', test => false, hourly_limit => 5000, daily_limit => 50000, account => '$account')");
}
$session->sql(q{
    SELECT kliv_mail.set_brand(name => 'Shop', unsubscribe_url => 'https://shop.example/u');
    SELECT kliv_mail.save_template('welcome', 'Welcome', 'Hello {{name}}');
    SELECT kliv_mail.suppress('lost@x.example'), kliv_mail.forget('lost@x.example'), kliv_mail.suppress('gone@x.example');
    SELECT kliv_mail.save_topic('news', 'News');
    INSERT INTO kliv_mail._reputation VALUES ('victim', 'warning', 'x', now(), now());
    INSERT INTO kliv_mail._webhook (provider, public_key, updated_at, updated_by) VALUES ('sendgrid', 'x', now(), 'me');
    INSERT INTO kliv_mail._report (source, key, at, kind) VALUES ('sendgrid', 'x', now(), 'delivered');
    INSERT INTO kliv_mail._ignored_report VALUES ('bounce', 'no report', now(), 1, now());
    INSERT INTO kliv_mail._pause VALUES ('nobody', 'x', now(), 'x');
    INSERT INTO kliv_mail._platform_test (tested_at, ok) VALUES (now(), true);
    SELECT * FROM kliv_mail.configure_bounce_mailbox('localhost', 'bounces', 'of the mailbox', port => 1, test => false);
    SELECT kliv_mail.send('first@x.example', 'first', 'x', account => 'victim', idempotency_key => 'k')});
$session->wait_until(q{SELECT count(*) = 1 FROM kliv_mail._delivery WHERE status = 'sent'});
$session->sql(q{UPDATE kliv_mail._quota SET held_since = now(), failures = 1, probe = 1, suspects = '{1}' WHERE account = 'victim'});
my %spoiled = (
    _account => q{name = 'victim'}, _quota => q{account = 'victim'}, _usage => q{account = 'victim' AND window_name = 'hour'},
    _message => q{subject = 'odd'}, _outbox => q{recipient = 'odd@x.example'}, _delivery => q{recipient = 'first@x.example'});
my @columns = map { [ split /\|/ ] } split /\n/, $session->sql(q{
    SELECT c.relname, a.attname, format_type(a.atttypid, -1), a.attnotnull
    FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY c.relname, a.attnum});
my %table = map { $_->[0] => 1 } @columns;
for my $table (sort keys %table)
{
    $session->sql("CREATE TABLE public.saved$table AS SELECT * FROM kliv_mail.$table WHERE " . ($spoiled{$table} // 'true'));
}
is($session->sql('SELECT count(*) FROM ' . join(' CROSS JOIN ', map { "(SELECT FROM kliv_mail.$_ LIMIT 1) AS t$_" } grep { !/^_(?:message|outbox|batch|replacement)$/ } sort keys %table)), 1,
    'each table has a row to spoil');

my %odd = (
    text => q{E'\r\nX-Evil: 1'}, name => q{''}, bigint => '-9223372036854775808', integer => '-2147483648', smallint => '2', boolean => 'NOT %',
    bytea => q{'\x00ff0d0a2e0d0a'}, 'text[]' => q{'{{NULL,x},{a,b}}'}, 'bigint[]' => q{'{{NULL,2},{1,3}}'}, jsonb => q{'[null]'},
    'timestamp with time zone' => q{'-infinity'}, date => q{'-infinity'}, interval => q{'-178000000 years'}, uuid => q{'00000000-0000-0000-0000-000000000000'});
my ($tries, $refused) = (0, 0);
for my $column (@columns)
{
    my ($table, $name, $type, $not_null) = @$column;
    my $odd = $odd{$type} // die "what is odd for $type?";
    for my $value ($not_null eq 't' ? () : 'NULL', $odd =~ s/%/$name/r)
    {
        my $where = $spoiled{$table} // 'true';
        $tries++;
        # In one transaction with the mail that is due.
        my $result = $session->try("BEGIN; SELECT kliv_mail.send('odd\@x.example', 'odd', 'x', account => 'victim', message_type => 'marketing');
            UPDATE kliv_mail.$table SET $name = $value WHERE $where; COMMIT");
        if ($result->{state})
        {
            $refused++;
            next;
        }
        my $id = $session->sql("SELECT kliv_mail.send('fine\@x.example', 'fine', 'x', account => 'other')");
        my $found = $session->sql("SELECT kliv_mail.wait($id, '30 s')");
        # Another origin says that this is a copy, which sends nothing.
        my $copy = "$table.$name" eq '_state.origin';
        if ($found ne ($copy ? 'deferred' : 'sent'))
        {
            fail("$table.$name = $value: other mail goes on");
            diag($session->sql("SELECT status, held_by, reason FROM kliv_mail.deliveries WHERE message_id = $id"));
        }
        if ($copy)
        {
            is($session->sql("SELECT held_by, code FROM kliv_mail.deliveries WHERE message_id = $id"), 'restore|copy', 'another origin: all waits');
        }
        # The one that is spoiled was claimed before the other, as their accounts come; now it has been recorded, too.
        $session->wait_until("SELECT count(*) = 0 FROM kliv_mail._outbox WHERE epoch IS NOT NULL") if $name ne 'epoch' && !$copy;
        # As it was.
        my $others = $table eq '_account' ? q{name <> 'other'} : $table =~ /^_(?:quota|usage)$/ ? q{account <> 'other'} : $table eq '_delivery' ? q{recipient <> 'fine@x.example'} : 'true';
        $session->sql("BEGIN; DELETE FROM kliv_mail._outbox WHERE message_id <> $id; DELETE FROM kliv_mail._message WHERE subject NOT IN ('fine', 'first'); "
              . ($table =~ /^_(?:message|outbox)$/ ? '' : "DELETE FROM kliv_mail.$table WHERE $others; INSERT INTO kliv_mail.$table SELECT * FROM public.saved$table; ") . 'COMMIT');
        is($session->sql("SELECT kliv_mail._wake(); SELECT kliv_mail.wait($id, '30 s')"), "\nsent", '... until it is the present one') if $copy;
    }
}
cmp_ok($tries - $refused, '>', 200, "$tries odd values, $refused of them refused by the tables themselves: other mail goes on");
unlike(slurp_file($node->logfile), qr/terminated by signal|PANIC|abnormally|database system was interrupted/, 'the server never restarted');
KlivMail::RawMessages::gone(qr/^odd/, 'deleted above');
$node->stop;
done_testing();
