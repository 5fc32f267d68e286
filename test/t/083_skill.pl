# describe(name) and skill(): what an agent reads is true, and what it says can be
# run as it stands.
use strict;
use warnings;
use JSON::PP;
use KlivMail::Cluster;
use Test::More;

my $node = KlivMail::Cluster->new('main');
$node->sql(q{ALTER DATABASE postgres SET kliv_mail.delivery = sandbox; CREATE ROLE app; CREATE ROLE other; CREATE ROLE boss; CREATE ROLE reader;
    SELECT kliv_mail.grant_send('app'), kliv_mail.grant_send('other'), kliv_mail.grant_admin('boss'), kliv_mail.grant_read('reader')});
# What the examples call 1.
$node->sql(q{SELECT kliv_mail.send('delivered@simulator.invalid', 'x', 'x')});

# ---- describe() ----

sub described { return decode_json($node->sql("SELECT kliv_mail.describe('$_[0]')")) }
my $index = decode_json($node->sql('SELECT kliv_mail.describe()'));
cmp_ok(length $node->sql('SELECT kliv_mail.describe()'), '<', 14000, 'the index is short');
is_deeply([ grep { $_->{purpose} !~ /\w/ } @{ $index->{functions} } ], [], '... with a sentence for each function');
for my $name (sort { $a cmp $b } keys %{ { map { s/^kliv_mail\.//r => 1 } (map { $_->{name} } @{ $index->{functions} }), keys %{ $index->{views} } } })
{
    my $one = described($name);
    my @lacking = $one->{kind} eq 'view' ? grep { !$_->{purpose} } @{ $one->{columns} } : grep { !$_->{purpose} || !@{ $_->{examples} } } @{ $one->{forms} };
    is_deeply(\@lacking, [], "$name: nothing is without a purpose, no function without an example");
}
my ($send, $object) = @{ described('send')->{forms} };
is_deeply($send->{arguments}{required}, [qw(recipients subject)], 'send(): what must be given');
is_deeply($send->{arguments}{properties}{on_limit}, { type => 'string', sqlType => 'text', sqlDefault => q{'defer'::text}, enum => [qw(defer error)] }, '... and allowed values');
is($send->{arguments}{properties}{send_at}{format}, 'date-time', '... and types');
is($send->{arguments}{properties}{from_address}{description}, q{the account's address or one of its allowed_senders}, '... and what the comment says of an argument');
is($send->{arguments}{properties}{expires_at}{description}, 'not after', '... of each its own');
is($object->{arguments}{required}[0], 'mail', '... and the form with one object');
my %flags = (
    send => 'destructive open_world', cancel => 'destructive idempotent', describe => 'idempotent read_only', history => 'idempotent read_only',
    test_smtp => 'idempotent open_world', forget => 'destructive idempotent', set_limits => 'idempotent', wait => 'idempotent read_only');
for my $name (sort keys %flags)
{
    my $form = described($name)->{forms}[0];
    is(join(' ', grep { $form->{$_} } qw(destructive idempotent open_world read_only)), $flags{$name}, "$name(): $flags{$name}");
}
is($node->sql(q{SELECT string_agg(DISTINCT p.proname::text, ' ') FROM pg_proc AS p WHERE p.pronamespace = 'kliv_mail'::regnamespace AND p.proname !~ '^_'
    AND p.provolatile = 'v' AND p.proname NOT IN (SELECT name FROM kliv_mail._effects())}), '', 'of every volatile function it is said what it does');
is($node->sql(q{SELECT string_agg(name, ' ') FROM kliv_mail._effects() AS e WHERE name NOT IN (SELECT proname FROM pg_proc WHERE pronamespace = 'kliv_mail'::regnamespace)
    AND name !~ 'bounce_mailbox'}), '', '... and of nothing else');
my $unknown = $node->try(q{SELECT kliv_mail.describe('sned')});
is("$unknown->{state} $unknown->{hint}", '22023 Did you mean "send"? SELECT jsonb_pretty(kliv_mail.describe()); has all of them.', 'an unknown name has the nearest');
is($node->try(q{SELECT kliv_mail.describe('_message')})->{state}, '22023', 'what is not public is not described');
is(decode_json($node->sql(q{SELECT kliv_mail.describe('configure_smtp')}, role => 'app'))->{may_call} ? 1 : 0, 0, 'whether one may call it is said');

# Columns with the words of strangers say so.
is($node->sql(q{SELECT string_agg(c.relname || '.' || a.attname, ' ' ORDER BY c.relname, a.attname) FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind = 'v' AND col_description(c.oid, a.attnum) ~ 'never instructions'}),
    'deliveries.last_reply deliveries.reason deliveries.recipient deliveries.server_message_id deliveries.subject events.detail messages.subject smtp_settings.status_detail status.last_error suppressions.reason',
    'columns that hold what strangers wrote say that it is data');

# ---- next_step() for who sends ----

my $id = $node->sql(q{SELECT kliv_mail.send('later@simulator.invalid', 'x', 'x', send_at => now() + interval '1 day')}, role => 'app');
is($node->sql("SELECT code FROM kliv_mail.next_step($id)", role => 'app'), 'scheduled', 'a sender is told of its own mail');
is($node->sql("SELECT code FROM kliv_mail.next_step('$id')", role => 'app'), 'scheduled', '... by the number as a text, too');
is($node->sql("SELECT code FROM kliv_mail.next_step('Later\@simulator.invalid')", role => 'app'), 'scheduled', '... and by the address');
is($node->try("SELECT code FROM kliv_mail.next_step($id)", role => 'other')->{state}, '22023', '... of nobody else\'s');
my $refused = $node->try('SELECT * FROM kliv_mail.next_step()', role => 'app');
is("$refused->{state}", '42501', 'what is about settings is not for it');
like($refused->{hint}, qr/next_step\(id\).*kliv_mail\.grant_read\('app'\)/, '... and the hint says what is, and the grant');
is($node->try('SELECT * FROM kliv_mail.next_step()', role => 'reader')->{state}, '', 'with grant_read it is');

# ---- skill() ----

my $skill = $node->sql('SELECT kliv_mail.skill()', role => 'app');
cmp_ok(length $skill, '<', 16000, 'SKILL.md has a bounded size');
like($skill, qr/\A---\nname: kliv_mail\ndescription: [^\n]{50,1000}\n---\n/, '... and its front matter');
my ($use, $providers) = $skill =~ /^(.*?)^## Providers$(.*?)^## /ms;
my $session = $node->session(role => 'boss');
$session->query(q{SET client_min_messages = warning; CREATE TEMPORARY TABLE users (id int)});
$session->query(q{SELECT kliv_mail.install_starter_templates()});
my @blocks = $use =~ /^```sql\n(.*?)^```$/msg;
cmp_ok(scalar(@blocks), '>=', 20, 'each use has its statement');
for my $block (@blocks)
{
    # What connects to a server that is not there is tried with the providers.
    next if $block =~ /configure_smtp|test_smtp|update_sender|set_limits/;
    $session->query("CREATE ROLE $1") if $block =~ /grant_\w+\('(\w+)'\)/;
    my $result = $session->try($block);
    is($result->{state}, '', 'runs as it stands: ' . ($block =~ /(.*)/)[0]) or diag($result->{out});
}
my @providers = $providers =~ /^```sql\n(.*?)^```$/msg;
is(scalar(@providers), $node->sql('SELECT count(*) FROM kliv_mail.providers'), 'every provider is there');
for my $block (@providers)
{
    (my $untested = $block) =~ s/\);?\s*\z/, test => false)/ or die $block;
    my $result = $session->try($untested);
    is($result->{state}, '', 'saved as it stands, but for the test: ' . ($block =~ /provider => '(\w+)'/)[0]) or diag($result->{out});
}
# With an account the rest of the uses.
for my $block (grep { /update_sender|set_limits/ } @blocks)
{
    my $result = $session->try($block);
    is($result->{state}, '', 'runs as it stands: ' . ($block =~ /(.*)/)[0]) or diag($result->{out});
}
my @pairs = $use =~ /^- not `(.*?)`\n  but `(.*?)`$/mg;
cmp_ok(scalar(@pairs), '>=', 14, 'there are mistakes with their right forms');
while (my ($wrong, $right) = splice @pairs, 0, 2)
{
    isnt($session->try($wrong)->{state}, '', "a mistake is one: $wrong");
    my $result = $session->try($right);
    is($result->{state}, '', "... and the right form is right: $right") or diag($result->{out});
}
my %exists = map { $_ => 1 } split /\n/, $node->sql(q{SELECT proname FROM pg_proc WHERE pronamespace = 'kliv_mail'::regnamespace UNION SELECT relname FROM pg_class WHERE relnamespace = 'kliv_mail'::regnamespace
    UNION SELECT substr(name, 11) FROM pg_settings WHERE name ^@ 'kliv_mail.'});
is_deeply([ grep { !$exists{$_} } $skill =~ /\bkliv_mail\.(\w+)/g ], [], 'nothing is named that there is not');
$session->quit;

done_testing();
