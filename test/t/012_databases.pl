# Several databases, and everything that a sender must not stand in the way of
# (A4): DROP, RENAME, CREATE DATABASE ... TEMPLATE, two-phase commit, restart.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;
use Time::HiRes 'time';

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    extension    => 0,
    conf         => {
        'kliv_mail.platform_hourly_limit' => 1000,
        'kliv_mail.platform_daily_limit'  => 1000
    });

sub make_database
{
    my ($name) = @_;
    $node->sql("CREATE DATABASE $name");
    $node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => $name);
    return;
}

# Run a statement, and be sure that we kept it waiting for no more than 2 s:
# what making and dropping a database without us takes here is not our doing.
sub promptly
{
    my ($sql, $name, %option) = @_;
    my $start = time;
    $node->sql('CREATE DATABASE unconcerned');
    $node->sql('DROP DATABASE unconcerned');
    my $between = time;
    my $result = $node->try($sql, %option);
    my ($plain, $elapsed) = ($between - $start, time - $between);
    is($result->{err}, '', $name);
    cmp_ok($elapsed, '<', 2 + $plain, sprintf('... within 2 s more than a plain one (%.2f s)', $elapsed));
    return;
}

sub arrives
{
    my ($recipient, $name) = @_;
    ok($smtp->wait_for(sub { scalar($smtp->accepted($recipient)) }, 120), $name);
    return;
}

# ---- two with the extension, one without ----

make_database('one');
make_database('two');
$node->sql('CREATE DATABASE without');
$node->sql(qq{SELECT kliv_mail.send('a\@$_.example', 'x', 'x')}, dbname => $_) for qw(one two);
arrives("a\@$_.example", "database $_ delivers") for qw(one two);
is(scalar($node->workers('kliv_mail launcher')), 1, 'one launcher');
is(scalar($node->workers('kliv_mail sender', 'without')), 0, 'no sender in the database without');

# ---- DDL on a database while mail is queued, and while a delivery hangs ----

$node->sql('CREATE ROLE owner LOGIN CREATEDB; CREATE ROLE stranger LOGIN');
KlivMail::RawMessages::gone(qr/^q\d+\@example\.com$/, 'its database was dropped');
# (a superuser's setting for tests: without a folder of its own)
$node->sql("SET allow_in_place_tablespaces = on; CREATE TABLESPACE $_ LOCATION ''") for qw(queued hanging);
for my $state ('queued', 'hanging')
{
    my $prepare = sub {
        my ($name) = @_;
        make_database($name);
        $node->sql("ALTER DATABASE $name OWNER TO owner");
        if ($state eq 'queued')
        {
            $node->sql(q{SELECT kliv_mail.send('later@example.com', 'x', 'x', send_at => now() + interval '1 day')}, dbname => $name);
            $node->sql(q{SELECT kliv_mail.send(format('q%s@example.com', i), 'x', 'x') FROM generate_series(1, 20) AS i}, dbname => $name);
        }
        else
        {
            $node->sql(qq{SELECT kliv_mail.send('stall-dot+$name\@example.com', 'x', 'x')}, dbname => $name);
            $node->wait_until(q{SELECT count(*) = 1 FROM kliv_mail.deliveries WHERE status = 'sending'}, dbname => $name);
            ok($smtp->wait_for(sub { $smtp->transcript =~ /RCPT TO:<stall-dot\+$name\@example\.com>/ }), "$name: a delivery hangs");
        }
    };

    $prepare->('source');
    promptly('CREATE DATABASE copy TEMPLATE source', "$state: CREATE DATABASE ... TEMPLATE");
    promptly('ALTER DATABASE source RENAME TO renamed', "$state: RENAME");
    promptly("ALTER DATABASE renamed SET TABLESPACE $state", "$state: SET TABLESPACE");
    my $refused = $node->try('DROP DATABASE renamed', role => 'stranger');
    is($refused->{state}, '42501', "$state: a stranger's DROP is refused");
    promptly('DROP DATABASE renamed', "$state: DROP DATABASE");
    promptly('DROP DATABASE copy', "$state: DROP of the copy");

    $prepare->('forced');
    promptly('DROP DATABASE forced WITH (FORCE)', "$state: DROP ... FORCE by a plain owner", role => 'owner');

    $prepare->('emptied');
    promptly('DROP EXTENSION kliv_mail', "$state: DROP EXTENSION", dbname => 'emptied');
    promptly('DROP DATABASE emptied', "$state: and its database");
}

# A stranger's refused DROP disturbs nothing: the same sender goes on.
$node->sql(q{SELECT kliv_mail.send('hold-dot@example.com', 'x', 'x')}, dbname => 'one');
$node->wait_until(q{SELECT count(*) = 1 FROM kliv_mail.deliveries WHERE status = 'sending'}, dbname => 'one');
my ($sender) = $node->workers('kliv_mail sender', 'one');
is($node->try('DROP DATABASE one', role => 'stranger')->{state}, '42501', 'refused while a delivery runs');
$smtp->resume;
$node->wait_until(q{SELECT bool_and(status = 'sent') FROM kliv_mail.deliveries}, dbname => 'one');
is($node->sql(q{SELECT max(attempts) FROM kliv_mail.deliveries}, dbname => 'one'), 1, 'at the first attempt');
is(scalar($smtp->accepted('hold-dot@example.com')), 1, 'one copy');

# ---- templates: from an unused extension, and from a used one ----

make_database('fresh_template');
$node->sql('CREATE DATABASE from_fresh TEMPLATE fresh_template');
$node->sql(q{SELECT kliv_mail.send('first@fresh.example', 'x', 'x')}, dbname => 'from_fresh');
is($node->sql('SELECT status, held_by FROM kliv_mail.deliveries', dbname => 'from_fresh'), 'deferred|restore', 'a copy is held, also of a database that was never used');
$node->sql('SELECT kliv_mail.resume()', dbname => 'from_fresh');
arrives('first@fresh.example', 'the first send() in a database made from a template with the extension, after resume()');

$node->sql('CREATE DATABASE from_used TEMPLATE one');
my $result = $node->try(q{SELECT kliv_mail.send('held@used.example', 'x', 'x')}, dbname => 'from_used');
is(scalar(@{ $result->{notices} }), 1, 'from one where it was in use: a notice');
like($result->{err}, qr/resume\(\)/, 'that names the cure');
is($node->sql(q{SELECT status, held_by FROM kliv_mail.deliveries WHERE recipient = 'held@used.example'}, dbname => 'from_used'),
    'deferred|restore', 'the mail is held');
$node->sql(q{SELECT kliv_mail.send('meanwhile@example.com', 'x', 'x')}, dbname => 'two');
arrives('meanwhile@example.com', 'others go on');
is(scalar($smtp->accepted('held@used.example')), 0, 'it has not left');
$node->sql('SELECT kliv_mail.resume()', dbname => 'from_used');
arrives('held@used.example', 'resume() releases it');

# ---- two-phase commit ----

$node->sql(q{BEGIN; SELECT kliv_mail.send('prepared@example.com', 'x', 'x'); PREPARE TRANSACTION 'p'}, dbname => 'one');
is($node->sql('SELECT count(*) FROM kliv_mail.messages WHERE id = (SELECT max(id) FROM kliv_mail.messages)
               AND subject = \'prepared\'', dbname => 'one'), 0, 'prepared: not there yet');
$node->wait_until(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'kliv_mail sender' AND datname = 'one'
                    AND state = 'active'});
my $start = time;
$node->sql(q{COMMIT PREPARED 'p'}, dbname => 'one');
arrives('prepared@example.com', 'COMMIT PREPARED from another session');
cmp_ok(time - $start, '<', 10, 'soon after');
$node->sql(q{BEGIN; SELECT kliv_mail.send('taken-back@example.com', 'x', 'x'); PREPARE TRANSACTION 'r'}, dbname => 'one');
$node->sql(q{ROLLBACK PREPARED 'r'}, dbname => 'one');
$node->sql(q{SELECT kliv_mail.send('after@example.com', 'x', 'x')}, dbname => 'one');
arrives('after@example.com', 'the mail after ROLLBACK PREPARED');
is(scalar($smtp->accepted('taken-back@example.com')), 0, 'the taken back one never');

# ---- a restart with fifty databases ----

my @names = map { "shop$_" } 1 .. 50;
make_database('shop');
for my $name (@names)
{
    $node->sql("CREATE DATABASE $name TEMPLATE shop STRATEGY file_copy");
    $node->sql('SELECT kliv_mail.resume()', dbname => $name);
}
$smtp->set(rcpt_reply => '451 4.3.0 not now');
for my $name (@names)
{
    $node->sql("SELECT kliv_mail.send('r\@$name.example', 'x', 'x', send_at => now() + interval '2 seconds')", dbname => $name);
}
$node->stop('fast');
$smtp->set(rcpt_reply => '');
$node->start;
ok($smtp->wait_for(sub { my %seen = map { $_->{rcpt}[0] => 1 } $smtp->accepted; !grep { !$seen{"r\@$_.example"} } @names }, 170),
    'restart with 50 databases: each delivers')
  or diag(join ' ', grep { !$smtp->accepted("r\@$_.example") } @names);
$node->stop;

done_testing();
