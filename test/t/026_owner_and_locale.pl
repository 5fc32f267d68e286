# Whose the extension is, and in which language the database thinks: send() and
# the views work for a plain owner; suppressions find their address in Turkish.
use strict;
use warnings;
use KlivMail::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = KlivMail::Cluster->new('main', platform_url => 'smtp://127.0.0.1:9',
    conf => { 'kliv_mail.delivery' => 'hold' }, extension => 0);
$node->sql(q{CREATE ROLE alice SUPERUSER LOGIN; CREATE ROLE app; CREATE DATABASE hers OWNER alice});
$node->sql(q{CREATE EXTENSION kliv_mail CASCADE; SELECT kliv_mail.grant_send('app')}, dbname => 'hers', role => 'alice');
my $id = $node->sql(q{SELECT kliv_mail.send('a@x.example', 'x', 'x')}, dbname => 'hers', role => 'app');

# Every function that an application calls, as whom; each must answer.
sub all_answer
{
    my ($what, @roles) = @_;
    for my $role (@roles)
    {
        for my $sql ("SELECT kliv_mail.send('b\@x.example', 'x', 'x')",
            "SELECT kliv_mail.send('b\@x.example', 'x', 'x', on_limit => 'error') WHERE false",
            'SELECT count(*) FROM kliv_mail.deliveries', 'SELECT count(*) FROM kliv_mail.messages',
            'SELECT count(*) FROM kliv_mail.usage', "SELECT kliv_mail.wait($id, '0 s')", "SELECT kliv_mail.retry($id)",
            $role eq 'app' ? () : ('SELECT count(*) FROM kliv_mail.next_step()', "SELECT count(*) FROM kliv_mail.next_step($id)",
                'SELECT count(*) FROM kliv_mail.status', 'SELECT count(*) FROM kliv_mail.smtp_settings',
                'SELECT count(*) FROM kliv_mail.events'))
        {
            is($node->try($sql, dbname => 'hers', role => $role)->{message}, '', "$what, $role: $sql");
        }
    }
    return;
}
all_answer('a superuser owns it', 'app', 'alice');
$node->sql('ALTER ROLE alice NOSUPERUSER');
all_answer('a plain role owns it', 'app', 'alice');
$node->sql('CREATE ROLE bob NOLOGIN');
$node->sql('REASSIGN OWNED BY alice TO bob', dbname => 'hers');
all_answer('it was reassigned', 'app', 'bob');

# Turkish: lower('I') is not 'i'.
SKIP:
{
    my $made = $node->try(q{CREATE DATABASE turkish TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'tr-TR' LOCALE 'C' ENCODING 'UTF8'});
    skip 'the server has no ICU', 1 if $made->{state};
    $node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => 'turkish');
    is($node->sql(q{SELECT lower('I')}, dbname => 'turkish'), "\xC4\xB1", 'the database is Turkish');
    for my $address ('INFO@EXAMPLE.COM', 'Ilia@example.com')
    {
        my $plain = lc $address;
        $node->sql("SELECT kliv_mail.suppress('$address')", dbname => 'turkish');
        is($node->sql("SELECT count(*) FROM kliv_mail.suppressions WHERE address = '$plain'", dbname => 'turkish'), 1, "$address is suppressed as $plain");
        for my $written ($address, $plain, ucfirst $plain)
        {
            my $message = $node->sql("SELECT kliv_mail.send('$written', 'x', 'x')", dbname => 'turkish');
            is($node->sql("SELECT status FROM kliv_mail.deliveries WHERE message_id = $message", dbname => 'turkish'),
                'suppressed', "... $written gets no mail");
        }
        is($node->sql("SELECT kliv_mail.unsuppress('" . uc($address) . "')", dbname => 'turkish'), 't', '... until it is taken back');
    }
    my $waiting = $node->sql(q{SELECT kliv_mail.send('ILHAN@example.com', 'x', 'x')}, dbname => 'turkish');
    is($node->sql(q{SELECT kliv_mail.suppress('ilhan@EXAMPLE.com')}, dbname => 'turkish'), 1, 'what waits is stopped');
    is($node->try(q{SELECT account FROM kliv_mail.configure_smtp(host => 'INFO.EXAMPLE.COM', port => 25, encryption => 'none', username => '',
            from_address => 'INFO@IN.EXAMPLE', allowed_senders => ARRAY['@INSIDE.EXAMPLE'], test => false)}, dbname => 'turkish')->{message},
        '', 'an account is saved');
    is($node->try(q{SELECT kliv_mail.send('a@x.example', 'x', 'x', from_address => 'Info@inside.example')}, dbname => 'turkish')->{message},
        '', '... and may send as what it was allowed');
}
$node->stop;

done_testing();
