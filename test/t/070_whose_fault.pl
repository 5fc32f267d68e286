# Whose fault is a refusal?  One mail of ten is refused, in each way of the list of
# replies that providers give, whatever the words speak of: the other nine leave at
# once, the account is not held, and the tenth has a verdict of its own that says why.
use strict;
use warnings;
use JSON::PP;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

# [stage, reply, what becomes of the one that meets it]
my @ways = (
    # the recipient
    [ 'rcpt', '550 5.1.1 The email account that you tried to reach does not exist', 'bounced' ],
    [ 'rcpt', '550 5.4.1 Recipient address rejected: Access denied',                'bounced' ],
    [ 'rcpt', '450 4.2.1 The user you are trying to contact is receiving mail too quickly', 'deferred' ],
    [ 'rcpt', '450 4.7.1 Greylisted, please try again later', 'deferred' ],
    [ 'rcpt', '552 5.2.2 quota exceeded',                     'deferred|bounced' ],
    # the account, as it sounds
    [ 'rcpt', '550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain', 'bounced' ],
    [ 'rcpt', '550 5.7.1 Relaying denied',                                       'bounced' ],
    [ 'rcpt', '421 4.7.0 Try again later, closing connection',                   'deferred' ],
    [ 'rcpt', '452 4.5.3 Too many recipients received this hour',                'deferred' ],
    [ 'rcpt', '550 5.7.1 Sending to this recipient is not allowed in sandbox mode', 'bounced|failed' ],
    [ 'rcpt', '553 5.7.1 Sender address rejected: not owned by user app',        'bounced' ],
    [ 'rcpt', '554 5.7.1 Client host rejected: Access denied',                   'bounced|failed' ],
    [ 'mail', '553 5.7.1 Sender address rejected: not owned by user app',        'failed' ],
    [ 'mail', '501 mail from address must be same as authorization user.',       'failed' ],
    [ 'mail', '550 5.4.5 Daily user sending limit exceeded',                     'deferred' ],
    [ 'mail', '454 4.7.0 Throttling failure: Maximum sending rate exceeded.',    'deferred' ],
    [ 'mail', '432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded',   'deferred' ],
    [ 'mail', '530 5.7.0 Authentication Required',                               'failed' ],
    [ 'mail', '451 4.3.0 Temporary system problem',                              'deferred' ],
    [ 'data', '554 5.7.1 The service is not available for your account',         'failed' ],
    [ 'dot',  '554 Message rejected: Email address is not verified. The following identities failed the check in region EU-WEST-1: x', 'failed' ],
    [ 'dot',  '550 The example.com domain is not verified. Please, add and verify your domain', 'failed' ],
    [ 'dot',  '550 5.7.1 You can only send testing emails to your own email address', 'failed|bounced' ],
    [ 'dot',  '554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException', 'deferred|failed' ],
    [ 'dot',  '421 4.7.28 Our system has detected an unusual rate of mail',      'deferred' ],
    # the message
    [ 'dot', '550 5.7.26 This mail has been blocked because the sender is unauthenticated', 'failed' ],
    [ 'dot', '554 Message rejected: content',                                               'failed' ],
    [ 'dot', '552 5.3.4 Message size exceeds fixed limit',                                  'failed' ],
    # nobody knows
    [ 'rcpt', '554 computer says no',   'bounced' ],
    [ 'mail', '550 computer says no',   'failed' ],
    [ 'rcpt', '471 come back tomorrow', 'deferred' ],
    [ 'rcpt', 'drop',                   'deferred' ],
    [ 'mail', 'drop',                   'deferred' ]);

my $smtp = KlivMail::SmtpServer->start(plain => 1, variant => [ map { "v$_=" . encode_json({ plays => { "bad$_" => [ $ways[$_][0], $ways[$_][1] ] } }) } 0 .. $#ways ]);
my $node = KlivMail::Cluster->new('main',
    conf => { 'kliv_mail.allowed_hosts' => '127.0.0.1, localhost', 'kliv_mail.connections_per_account' => 2, 'kliv_mail.max_daily_limit' => 1_000_000 });
$node->clock_to_noon;
my $sql = "SELECT kliv_mail.pause() < 0;\n";
for my $n (0 .. $#ways)
{
    my $port = $smtp->port("v$n");
    $sql .= "SELECT count(*) FROM kliv_mail.configure_smtp(host => 'localhost', port => $port, encryption => 'none', username => '',
                 from_address => 'app\@from$n.example', test => false, account => 'a$n');\n"
      . join '', map { "SELECT kliv_mail.send('" . ($_ == 3 ? "bad$n" : "good$_") . "\@to$n.example', 'x', 'x', account => 'a$n');\n" } 1 .. 10;
}
# A sender that the account may use besides its own, which the server refuses: the message's at once, nobody probes.
my $foreign = @ways;
$sql .= "SELECT count(*) FROM kliv_mail.configure_smtp(host => 'localhost', port => " . $smtp->port('plain') . ", encryption => 'none', username => '',
             from_address => 'app\@from$foreign.example', allowed_senders => ARRAY['\@from$foreign.example'], test => false, account => 'a$foreign');\n"
  . join '', map { "SELECT kliv_mail.send('good$_\@to$foreign.example', 'x', 'x', account => 'a$foreign'"
      . ($_ == 3 ? ", from_address => 'mail-553-5.7.1\@from$foreign.example'" : '') . ");\n" } 1 .. 10;
# What our own machine refuses is the message's too: a row that was changed by hand.
my $local = $foreign + 1;
$sql .= "SELECT count(*) FROM kliv_mail.configure_smtp(host => 'localhost', port => " . $smtp->port('plain') . ", encryption => 'none', username => '',
             from_address => 'app\@from$local.example', allowed_senders => ARRAY['\@from$local.example'], test => false, account => 'a$local');\n"
  . join '', map { "SELECT kliv_mail.send('good$_\@to$local.example', 'x', 'x', account => 'a$local');\n" } 1 .. 10;
$sql .= "UPDATE kliv_mail._message SET from_address = E'news\\r\\nX-Evil: 1\@from$local.example'
         WHERE id = (SELECT message_id FROM kliv_mail._outbox WHERE recipient = 'good3\@to$local.example');\n";
$node->sql($sql);

$node->sql('SELECT kliv_mail.resume()');
ok(eval { $node->wait_until("SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE recipient LIKE 'good%' AND recipient NOT LIKE 'good3@%' AND status <> 'sent'"); 1 },
    'the others of all accounts leave') or diag($node->sql("SELECT account, recipient, status, held_by, reason FROM kliv_mail.deliveries WHERE status <> 'sent' ORDER BY account"));
# What waits for the account alone would have no verdict yet.
ok(eval { $node->wait_until("SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE status IN ('queued', 'sending') OR held_by = 'account'"); 1 }, '... and the tenth has its verdict')
  or diag($node->sql("SELECT account, recipient, status, held_by, reason FROM kliv_mail.deliveries WHERE status IN ('queued', 'sending') OR held_by = 'account'"));
is($node->sql("SELECT string_agg(DISTINCT account, ' ') FROM kliv_mail.events WHERE kind = 'account_held'"), '', 'no account was held');
for my $n (0 .. $#ways)
{
    my ($stage, $reply, $fate) = @{ $ways[$n] };
    like($node->sql("SELECT status FROM kliv_mail.deliveries WHERE recipient = 'bad$n\@to$n.example' AND reason <> '' AND coalesce(held_by, 'retry') = 'retry'
                     AND attempts > 0"), qr/^(?:$fate)$/, "$stage $reply")
      or diag($node->sql("SELECT status, held_by, attempts, bounce_type, reason, last_reply FROM kliv_mail.deliveries WHERE recipient = 'bad$n\@to$n.example'"));
}
is($node->sql("SELECT status, last_code, attempts FROM kliv_mail.deliveries WHERE account = 'a$foreign' AND status <> 'sent'"), 'failed|553|1', "a sender that is not the account's own");
like($node->sql("SELECT status || reason FROM kliv_mail.deliveries WHERE account = 'a$local' AND status <> 'sent'"), qr/^failed/, 'what our own machine refuses');

# An account that is in trouble indeed: two different ones met it, the reason names them.
$smtp->set(mail_reply => '550 5.7.1 this account is suspended');
my @ids = split /\n/, $node->sql("SELECT kliv_mail.send('two' || n || '\@x.example', 'x', 'x', account => 'a$foreign') FROM generate_series(1, 3) AS n");
$node->wait_until("SELECT count(*) = 3 FROM kliv_mail.deliveries WHERE recipient LIKE 'two%' AND held_by = 'account'");
like($node->sql("SELECT status_detail FROM kliv_mail.smtp_settings WHERE account = 'a$foreign'"), qr/met by message (?:$ids[0]|$ids[1]|$ids[2]) and message (?:$ids[0]|$ids[1]|$ids[2])/, 'two in a row: held, with the mails that met it');
$smtp->set(mail_reply => '');
$node->sql("UPDATE kliv_mail._account SET renewed_at = renewed_at + interval '1 s' WHERE name = 'a$foreign'; SELECT kliv_mail._wake()");
for my $id (@ids)
{
    is($node->sql("SELECT kliv_mail.wait($id, '60 s')"), 'sent', '... and nothing is lost when it is over');
}
$node->stop;
done_testing();
