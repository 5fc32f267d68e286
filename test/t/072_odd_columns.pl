# Trust nothing in the database: every column of every table, one after the other, with NULL
# and with an odd value, while mail is due.  The sender goes on with other mail, the server
# never restarts.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Test::More;

my $smtp = KlivMail::SmtpServer->start(plain => 1);
my $node = KlivMail::Cluster->new('main', conf => {
        'kliv_mail.allowed_hosts' => '127.0.0.1, localhost', 'kliv_mail.max_daily_limit' => 1_000_000,
        'kliv_mail.sender_idle_timeout' => '300s' });
my $session = $node->session;
$session->query('SET client_min_messages = error');

sub account
{
    my ($name) = @_;
    $session->sql("DELETE FROM kliv_mail._account WHERE name = '$name' OR name IS NULL");
    $session->sql("SELECT count(*) FROM kliv_mail.configure_smtp(host => 'localhost', port => " . $smtp->port . ", encryption => 'none', username => '',
        from_address => 'app\@$name.example', reply_to => 'desk\@$name.example', test => false, hourly_limit => 5000, daily_limit => 50000, account => '$name')");
    return;
}
account($_) for qw(victim other);
# A row of each table to spoil.
$session->sql(q{SELECT kliv_mail.set_brand(name => 'Shop', unsubscribe_url => 'https://shop.example/u')});

my @columns = map { [ split /\|/ ] } split /\n/, $session->sql(q{
    SELECT c.relname, a.attname, format_type(a.atttypid, -1), a.attnotnull
    FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
      AND c.relname IN ('_account', '_message', '_outbox', '_quota', '_usage', '_brand', '_state')
    ORDER BY c.relname = '_account', c.relname, a.attnum});
my %odd = (
    text => [ q{E'\r\nX-Evil: 1'}, q{''}, q{repeat('ü', 3000)} ], bigint => [ '-1', '9223372036854775807' ], integer => [ '-2147483648', '2147483647' ],
    smallint => ['2'], boolean => [ 'true', 'false' ], bytea => [ q{'\x00ff0d0a2e0d0a'}, q{''} ], 'text[]' => [ q{'{NULL,x}'}, q{'{{a},{b}}'} ],
    'bigint[]' => [ q{'{NULL}'}, q{'{{1},{2}}'} ], 'timestamp with time zone' => [ q{'infinity'}, q{'-infinity'} ], name => [q{''}], jsonb => [q{'[]'}]);
my $tries = 0;
my $refused = 0;
for my $column (@columns)
{
    my ($table, $name, $type, $not_null) = @$column;
    for my $value ('NULL', ($odd{$type} // [])->[0] // ())
    {
        next if $value eq 'NULL' && $not_null eq 't';
        # In one transaction with the mail that is due.
        my $where = $table eq '_account' ? "WHERE name = 'victim'" : $table =~ /^_(?:quota|usage)$/ ? "WHERE account = 'victim'"
          : $table eq '_message' ? "WHERE subject = 'odd $tries'" : $table eq '_outbox' ? "WHERE recipient = 'odd$tries\@x.example'" : '';
        my $result = $session->try("BEGIN; SELECT kliv_mail.send('odd$tries\@x.example', 'odd $tries', 'x', account => 'victim');
            INSERT INTO kliv_mail._quota (account) VALUES ('victim') ON CONFLICT DO NOTHING;
            UPDATE kliv_mail.$table SET $name = $value $where; COMMIT");
        if (ref $result && $result->{state})
        {
            $session->query('ROLLBACK');
            $refused++;
        }
        my $id = $session->sql("SELECT kliv_mail.send('fine$tries\@x.example', 'x', 'x', account => 'other')");
        if ($session->sql("SELECT kliv_mail.wait($id, '60 s')") ne 'sent')
        {
            fail("$table.$name = $value: other mail goes on");
            diag($session->sql("SELECT status, held_by, reason FROM kliv_mail.deliveries WHERE message_id = $id"));
        }
        $tries++;
        # As it was.
        $session->sql("DELETE FROM kliv_mail._outbox WHERE recipient !~ '^fine' OR recipient IS NULL; DELETE FROM kliv_mail._quota; DELETE FROM kliv_mail._usage WHERE account !~ '^other';
            UPDATE kliv_mail._state SET origin = kliv_mail._origin() WHERE origin <> kliv_mail._origin()") if $table ne '_state';
        $session->sql("DELETE FROM kliv_mail._state; INSERT INTO kliv_mail._state (origin) VALUES (kliv_mail._origin()); DELETE FROM kliv_mail._outbox WHERE recipient !~ '^fine'") if $table eq '_state';
        $session->sql(q{SELECT kliv_mail.set_brand(name => 'Shop', unsubscribe_url => 'https://shop.example/u')}) if $table eq '_brand';
        account('victim') if $table eq '_account';
    }
}
cmp_ok($tries - $refused, '>', 50, "$tries odd values, $refused of them refused by the tables themselves: other mail goes on");
unlike(slurp_file($node->logfile), qr/terminated by signal|PANIC|abnormally|database system was interrupted/, 'the server never restarted');
$node->stop;
done_testing();
