# A server that takes no sender but its user's own refuses the signed return paths of
# kliv_mail.bounce_domain, which the administrator of the database server may have
# set for all databases: the mail then leaves with its sender's address.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Test::More;

# By the local part of the sender's address, which is "b" before the "+".
my $smtp = KlivMail::SmtpServer->start(
    play => [ 'b=mail:553 5.7.1 <b+x@bounce.example>: Sender address rejected: not owned by user shop' ]);
my $port = $smtp->port;
my $node = KlivMail::Cluster->new('main', conf => { 'kliv_mail.allowed_hosts' => 'localhost', 'kliv_mail.bounce_domain' => 'bounce.example' });
$node->sql(qq{SELECT count(*) FROM kliv_mail.configure_smtp(host => 'localhost', port => $port, encryption => 'none', username => '',
    from_address => 'shop\@shop.example', test => false)});
$node->sql(q{SELECT count(kliv_mail.send('user' || i || '@x.example', 'x', 'x')) FROM generate_series(1, 20) AS i});
ok($smtp->wait_for_count(20, 60), 'all mail leaves');
$node->wait_until('SELECT count(*) = 0 FROM kliv_mail._outbox');
is($node->sql(q{SELECT string_agg(DISTINCT status || ' ' || attempts, ', ') FROM kliv_mail.deliveries}), 'sent 1', 'the refusals are no attempts of it');
is($node->sql(q{SELECT used FROM kliv_mail.usage WHERE account = 'custom' AND window_name = 'day'}), '20', '... and use up no quota');
is(join(' ', sort { $a cmp $b } keys %{ { map { $_->{mail_from} => 1 } $smtp->accepted } }), 'shop@shop.example', 'with the sender it may have');
is($node->sql(q{SELECT count(*) FROM kliv_mail.events WHERE kind = 'account_held'}), '0', 'and the account is not held');
like(slurp_file($node->logfile), qr/LOG:  kliv_mail: the server of the account "custom" refuses return paths at "bounce\.example"/, 'the log says so');

# A server that refuses the sender itself is another matter.
$smtp->set(mail_reply => '553 5.7.1 <shop@shop.example>: Sender address rejected: not owned by user other');
$node->sql(q{SELECT count(kliv_mail.send('later' || i || '@x.example', 'x', 'x')) FROM generate_series(1, 3) AS i});
$node->wait_until(q{SELECT count(*) > 0 FROM kliv_mail.events WHERE kind = 'account_held'});
like($node->sql(q{SELECT hint FROM kliv_mail.deliveries WHERE recipient LIKE 'later%' LIMIT 1}), qr/update_sender/, 'the account is held, and the hint tells of its address');
done_testing();
