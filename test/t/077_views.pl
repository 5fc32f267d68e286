# What is asked for of the views with a long history behind reads no more than it
# shows: by the plans and the pages that they read, which no other load blurs.
use strict;
use warnings;
use JSON::PP;
use KlivMail::Cluster;
use Test::More;

my $node = KlivMail::Cluster->new('main', conf => { autovacuum => 'off', jit => 'off' });
$node->sql(q{ALTER DATABASE postgres SET kliv_mail.delivery = hold; CREATE ROLE app; CREATE ROLE reader;
    SELECT kliv_mail.grant_send('app'), kliv_mail.grant_read('reader')});

# A history of 20,000 mails, a third of them the role's.
$node->sql(q{
    INSERT INTO kliv_mail._message (id, created_at, sender_role, message_type, subject, header_id, entity, recipients, tags)
    SELECT n, now() - (20001 - n) * interval '2 s', CASE WHEN n % 3 = 0 THEN 'app' ELSE 'postgres' END, 'transactional', 'Subject ' || n,
           md5(n::text) || '@example.com', 'x', 1, CASE WHEN n % 10 = 0 THEN ARRAY['news-' || n % 100] END
    FROM generate_series(1, 20000) AS n;
    INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, created_at, attempts, doubts, account, identity,
        last_stage, last_code, last_reply, reason, sent_at, finished_at, changed)
    SELECT n, n, CASE n % 5000 WHEN 6 THEN 'Mixed6@example.com' ELSE 'u' || n % 5000 || '@example.com' END, 'to', 1, '', 'sent', now() - (20001 - n) * interval '2 s', 1, 0,
           'platform', repeat('From: a', 10), 'dot', 250, '250 ok', 'the server accepted it', now(), now() - (20001 - n) * interval '2 s' + interval '1 s', n
    FROM generate_series(1, 20000) AS n;
    SELECT setval('kliv_mail._message_id', 20000), setval('kliv_mail._delivery_id', 20000)});
$node->sql(q{SET client_min_messages = warning; SELECT count(kliv_mail.send('w' || n || '@example.com', 'waits', 'x')) FROM generate_series(1, 30) AS n});
$node->sql('VACUUM ANALYZE');

# The pages that a query reads, and the tables that it reads as a whole.
sub looked_at
{
    my ($query, $role) = @_;
    # (the first look fills what a session keeps of the catalogue and of plans)
    my $json = $node->sql("SET jit = off; $query \\g /dev/null\nEXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) $query", role => $role);
    my $plan = decode_json($json)->[0]{Plan};
    my @whole;
    my @nodes = $plan;
    while (my $one = shift @nodes)
    {
        push @whole, $one->{'Relation Name'} if $one->{'Node Type'} eq 'Seq Scan' && $one->{'Relation Name'} =~ /^_(?:message|delivery)$/;
        push @nodes, @{ $one->{Plans} // [] };
    }
    return ($plan->{'Shared Hit Blocks'} + $plan->{'Shared Read Blocks'}, "@whole", $plan->{'Actual Rows'});
}

for my $case (
    [ 'the last messages', 'SELECT id, subject, status FROM kliv_mail.messages ORDER BY id DESC LIMIT 20', 20 ],
    [ 'the last messages with all columns', 'SELECT * FROM kliv_mail.messages ORDER BY id DESC LIMIT 20', 20 ],
    [ 'messages behind a page', 'SELECT * FROM kliv_mail.messages WHERE id < 10000 ORDER BY id DESC LIMIT 20', 20 ],
    [ 'messages by tag', q{SELECT id, status FROM kliv_mail.messages WHERE tags @> ARRAY['news-30'] ORDER BY id DESC LIMIT 20}, 20 ],
    [ 'the last deliveries', 'SELECT message_id, recipient, status, reason FROM kliv_mail.deliveries ORDER BY message_id DESC LIMIT 20', 20 ],
    [ 'deliveries with all columns', 'SELECT * FROM kliv_mail.deliveries ORDER BY message_id DESC, recipient LIMIT 20', 20 ],
    [ 'deliveries by recipient', q{SELECT * FROM kliv_mail.deliveries WHERE recipient = 'u9@example.com'}, 4 ],
    [ 'the last ones to a recipient', q{SELECT * FROM kliv_mail.deliveries WHERE recipient = 'u9@example.com' ORDER BY message_id DESC LIMIT 2}, 2 ],
    [ 'deliveries of a message', 'SELECT * FROM kliv_mail.deliveries WHERE message_id = 300', 1 ],
    [ 'the last events', 'SELECT at, kind FROM kliv_mail.events ORDER BY at DESC LIMIT 20', 20 ],
    [ 'events with all columns', 'SELECT * FROM kliv_mail.events ORDER BY at DESC LIMIT 20', 20 ],
    [ 'the history of an address', q{SELECT * FROM kliv_mail.history('U9@Example.com')}, 4 ],
    [ 'the history of an address that is written otherwise', q{SELECT * FROM kliv_mail.history('mixed6@example.com')}, 4 ])
{
    my ($what, $query, $rows) = @$case;
    for my $role (undef, 'reader', 'app')
    {
        # The role with grant_send sees no other's mail: a third of it.
        next if $role && $role eq 'app' && $what =~ /recipient|address/;
        my ($pages, $whole, $found) = looked_at($query, $role);
        my $who = $role // 'the superuser';
        is($found, $rows, "$what, as $who");
        is($whole, '', '... no table that grows is read as a whole');
        # (the history alone has some 900)
        cmp_ok($pages, '<=', $what =~ /tag/ ? 450 : 400, '... few pages are read') or diag("$pages pages: $query");
    }
}

# The order is the newest first, whoever asks; what is not one's own stays hidden.
is($node->sql('SELECT string_agg(id::text, $$ $$) FROM (SELECT id FROM kliv_mail.messages WHERE id <= 20000 ORDER BY id DESC LIMIT 3) AS x', role => 'app'), '19998 19995 19992', 'a role sees its own');
is($node->sql(q{SELECT count(*) FROM kliv_mail.deliveries}, role => 'app'), 6666, '... in deliveries, too');
is($node->sql(q{SELECT count(*) FROM kliv_mail.events WHERE kind = 'sent'}, role => 'app'), 6666, '... and in events');
is($node->sql(q{SELECT count(*) || ' ' || count(header_message_id) FROM kliv_mail.deliveries WHERE id <= 20000}), '20000 20000', 'each has its Message-ID');
is($node->sql(q{SELECT count(*) FROM kliv_mail.messages WHERE status = 'sent' AND sent = 1 AND header_message_id ~ '@'}), 20000, 'and each message its status');
$node->stop;

done_testing();
