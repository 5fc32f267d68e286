# The wire as real servers make it: replies that are not quite replies, a dot
# that is answered late, long tokens, the good-bye.  What was accepted is
# accepted once.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $tls = KlivMail::Tls->new(PostgreSQL::Test::Utils::tempdir() . '/tls');
my ($cert, $key) = $tls->certificate('good');
my $smtp = KlivMail::SmtpServer->start(plain => 1, tls => 1, cert => $cert, key => $key);
my $node = KlivMail::Cluster->new(
    'main',
    conf => {
        'kliv_mail.allowed_hosts' => '127.0.0.1, localhost',
        'kliv_mail.ca_file'       => $tls->ca_file,
        'kliv_mail.reply_timeout' => '1s',
        'kliv_mail.connections_per_account' => 1
    });
$node->sql(q{SELECT count(*) FROM kliv_mail.configure_smtp(host => 'localhost', port => } . $smtp->port('plain')
      . q{, encryption => 'none', username => '', from_address => 'shop@shop.example', hourly_limit => 1000)});

sub arrives_once
{
    my ($recipient, $what) = @_;
    my $id = $node->sql("SELECT kliv_mail.send('$recipient', 'Hello', 'It works')");
    is($node->sql("SELECT kliv_mail.wait($id, '60 s')"), 'sent', "$what: accepted")
      or diag($node->sql("SELECT * FROM kliv_mail.deliveries WHERE message_id = $id \\gx"));
    is(scalar($smtp->accepted($recipient)), 1, '... one copy');
    return;
}

# ---- a line that begins with 250 says so, whatever follows ----

for ([ 'multi', "250-2.0.0 accepted\r\nqueued as ABC123\r\n250 2.0.0 thank you", 'text between the lines of a reply' ],
    [ 'tab', "250\tOk queued", 'a tab behind the code' ],
    [ 'blank', "250 2.0.0 Ok queued\r\n", 'an empty line behind the reply' ],
    [ 'glued', '250_Ok', 'a sign behind the code' ])
{
    my ($name, $reply, $what) = @$_;
    $smtp->set(plays => { $name => [ 'dot', $reply ] });
    arrives_once("$name\@example.com", $what);
}
$smtp->set(plays => {});

# ---- a dot that is answered later than reply_timeout, and another mail behind it ----

for my $pipelining (1, 0)
{
    $smtp->set(pipelining => $pipelining, delay_dot => 2500);
    $smtp->drop_connections;
    $node->sql("SELECT kliv_mail.send('late$pipelining-' || i || '\@example.com', 'Hello', 'It works') FROM generate_series(1, 2) AS i");
    $node->wait_until("SELECT count(*) = 2 FROM kliv_mail.deliveries WHERE recipient LIKE 'late$pipelining-%' AND status = 'sent'");
    is(join(' ', map { scalar($smtp->accepted("late$pipelining-$_\@example.com")) } 1, 2), '1 1',
        ($pipelining ? 'with' : 'without') . ' PIPELINING: a late answer to the dot is its own, and no mail goes twice');
}
$smtp->set(pipelining => 1, delay_dot => 0);

# ---- a server that takes no more of the body ----

my $stuck = $node->sql(q{SELECT kliv_mail.send('once-stall-body@example.com', 'x', repeat('x', 12000000))});
$node->wait_until("SELECT attempts = 1 AND status = 'deferred' FROM kliv_mail.deliveries WHERE message_id = $stuck");
like($node->sql("SELECT reason || last_stage FROM kliv_mail.deliveries WHERE message_id = $stuck"), qr/^the connection was lost while the message was sentdata$/, 'a body that the server does not read is given up after reply_timeout');
is($node->sql("SELECT kliv_mail.retry($stuck)"), 1, '... tried again');
is($node->sql("SELECT kliv_mail.wait($stuck, '60 s')"), 'sent', '... it is sent');
is(scalar($smtp->accepted('once-stall-body@example.com')), 1, '... once');

# ---- an extension that is offered is used where it is needed only ----

$smtp->set(smtputf8 => 1);
$smtp->drop_connections;
my $id = $node->sql(q{SELECT kliv_mail.send('ascii@example.com', U&'\3053\3093\306B\3061\306F', 'x')});
is($node->sql("SELECT kliv_mail.wait($id, '60 s')"), 'sent', 'a Japanese subject to an ASCII address');
my ($mail) = grep { /shop\@shop\.example/ } reverse $smtp->transcript =~ /^.*?(MAIL FROM:.*)$/mg;
unlike($mail, qr/SMTPUTF8/, '... goes without SMTPUTF8 though the server has it');

# ---- no argument makes a header line of its own ----

my %place = (
    subject      => q{send('%s', 'a' || x || 'Evil: 1', 'b')},
    value        => q{send('%s', 's', 'b', headers => jsonb_build_object('X-A', 'a' || x || 'Evil: 1'))},
    name         => q{send('%s', 's', 'b', headers => jsonb_build_object('X-A' || x || 'Evil', '1'))},
    from_name    => q{send('%s', 's', 'b', from_name => 'a' || x || 'Evil: 1')},
    reply_to     => q{send('%s', 's', 'b', reply_to => '"a' || x || 'Evil: 1" <r@shop.example>')},
    display      => q{send('"a' || x || 'Evil: 1" <%s>', 's', 'b')},
    filename     => q{send('%s', 's', 'b', attachments => ARRAY[kliv_mail.attach('a' || x || 'Evil: 1.txt', 'x')])},
    content_type => q{send('%s', 's', 'b', attachments => ARRAY[kliv_mail.attach('a.txt', 'x', 'text/plain' || x || 'Evil: 1')])},
    content_id   => q{send('%s', 's', 'b', attachments => ARRAY[kliv_mail.attach('a.png', 'x', 'image/png', 'a' || x || 'Evil: 1')])},
    account      => q{update_sender(from_name => 'a' || x || 'Evil: 1')},
    account_to   => q{update_sender(reply_to => '"a' || x || 'Evil: 1" <r@shop.example>')});
my ($number, @odd) = 0;
for my $place (sort keys %place)
{
    for my $break ('\000D\000A', '\000D', '\000A', '\0085', '\2028', '\000B', '\000C')
    {
        my $call = sprintf $place{$place}, 'inject' . ++$number . '@example.com';
        my $result = $node->try("SELECT kliv_mail.$call FROM (VALUES (U&'$break')) AS v (x)");
        push @odd, "$place $break: $result->{state}" unless $result->{state} =~ /^(?:22023)?$/;
    }
}
is_deeply(\@odd, [], 'line breaks of all kinds: refused as an argument, or harmless');
$node->wait_until("SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE recipient LIKE 'inject%' AND status <> 'sent'");
my @injected = grep { $_->{rcpt}[0] =~ /^inject/ } $smtp->accepted;
ok(@injected > 0, 'what was harmless arrives');
is(scalar(grep { $smtp->message($_) =~ /(?:^|[\r\n])Evil/ } @injected), 0, '... and no line of it begins so');

# ---- the good-bye ----

sub ends { return map { $_->{reason} } $smtp->ledger('end'); }
for my $binary (0, 1)
{
    $smtp->set(quit_binary => $binary);
    $smtp->drop_connections;
    my $before = ends();
    is($node->sql(q{SELECT bool_and(ok) FROM kliv_mail.test_smtp()}), 't', 'test_smtp()');
    ok($smtp->wait_for(sub { my @ends = ends(); @ends > $before }), '... its connection ends');
    is((ends())[-1], 'quit', '... by QUIT' . ($binary ? ', whatever the answer' : ''));
    $before = ends();
    $node->sql("SELECT kliv_mail.send('bye$binary-' || i || '\@example.com', 'Hello', 'It works') FROM generate_series(1, 10) AS i");
    $node->wait_until("SELECT count(*) = 10 FROM kliv_mail.deliveries WHERE recipient LIKE 'bye$binary-%' AND status = 'sent'");
    ok($smtp->wait_for(sub { my @ends = ends(); @ends > $before }, 90), 'ten mails: the idle connection ends');
    is((ends())[-1], 'quit', '... by QUIT');
}
$smtp->set(quit_binary => 0);

# ---- long tokens ----

for my $length (400, 504, 505, 3000, 8000)
{
    my $token = 'x' x $length;
    $smtp->set(auth => ["app:$token"], auth_mechanisms => 'XOAUTH2', command_limit => 512);
    my $steps = $node->sql(q{SELECT string_agg(step || CASE WHEN ok THEN '' ELSE '! ' || detail END, ' ') FROM kliv_mail.test_smtp(host => 'localhost', encryption => 'tls', port => }
          . $smtp->port('tls') . qq{, username => 'app', password => '$token', auth => 'oauth2', from_address => 'shop\@shop.example')});
    like($steps, qr/^dns connect tls ehlo auth sender$/, "a token of $length characters, commands of 512 octets");
}
is($node->try(q{SELECT * FROM kliv_mail.configure_smtp(host => 'localhost', encryption => 'tls', port => } . $smtp->port('tls')
          . q{, username => 'app', password => repeat('x', 8193), auth => 'oauth2', from_address => 'shop@shop.example', account => 'token')})->{state},
    '54000', 'a token of 8,193 characters is refused');

$node->stop;
done_testing();
