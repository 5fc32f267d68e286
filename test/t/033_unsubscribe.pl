# One click leaves a topic (RFC 8058): the next newsletter of that topic does not
# come, another topic's and the next receipt do; links of one address or topic are
# good for no other.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    conf => { 'kliv_mail.platform_hourly_limit' => 100, 'kliv_mail.platform_daily_limit' => 100 });
$node->sql(q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://shop.example:8443/leave?lang=en', postal_address => '1 Road');
    CREATE ROLE hooks; SELECT kliv_mail.grant_ingest('hooks');
    SELECT kliv_mail.save_template('letter', 'Letter', 'Hello', message_type => 'marketing')});

# The headers of the next mail to an address, unfolded; '' when it was suppressed.
my %seen;
sub headers
{
    my ($recipient, $sql) = @_;
    my $id = $node->sql("SELECT kliv_mail.$sql");
    my $status = $node->sql("SELECT kliv_mail.wait($id, '60 s')");
    return '' if $status eq 'suppressed';
    is($status, 'sent', "$sql: sent");
    my $mail = $smtp->message(($smtp->accepted($recipient))[ $seen{$recipient}++ ]);
    $mail =~ s/\r\n\r\n.*//s;
    $mail =~ s/\r\n(?=[ \t])//g;
    return $mail;
}
sub newsletter { my ($to, $topic) = @_; return headers($to, "send('$to', 'News', 'Hello', message_type => 'marketing', topic => '$topic')"); }
sub token { my ($headers) = @_; return ($headers =~ m{^List-Unsubscribe: <https://shop\.example:8443/leave\?lang=en&token=([\w-]+)>\r?$}m)[0] // ''; }

my $news = newsletter('ana@example.com', 'news');
like($news, qr/^List-Id: <news\.shop\.example>\r?$/m, 'List-Id: the topic, below the application\'s domain');
like($news, qr/^List-Unsubscribe-Post: List-Unsubscribe=One-Click\r?$/m, 'List-Unsubscribe-Post');
isnt(token($news), '', 'List-Unsubscribe with a token');
like(headers('ana@example.com', q{send('ana@example.com', 'News', 'Hello', message_type => 'marketing')}), qr/^List-Id: <marketing\.shop\.example>\r?$/m, 'the topic of mail that names none');
like(headers('ana@example.com', q{send('ana@example.com', 'News', 'Hello', message_type => 'marketing', topic => 'news', headers => '{"List-Id": "Mine <own.example.com>"}')}),
    qr/^List-Id: Mine <own\.example\.com>\r?$/m, '... or the caller\'s own List-Id');
like(headers('eva@example.com', q{send('eva@example.com', 'News', 'Hello', message_type => 'marketing', topic => 'news', headers => '{"List-Unsubscribe": "<https://own.example/u>"}')}),
    qr/^List-Id: <news\.platform\.example>\r?$/m, 'where the link is the caller\'s own: below the sender\'s domain');
unlike(headers('ana@example.com', q{send('ana@example.com', 'Receipt', 'Hello')}), qr/^List-/m, 'other mail has no such header');

# The page behind the link hands the token of its URL on, whoever posts List-Unsubscribe=One-Click to it.
is($node->sql("SELECT kliv_mail.unsubscribe('" . token($news) . "')", role => 'hooks'), 't', 'one click');
is(newsletter('ana@example.com', 'news'), '', '... stops the next newsletter of that topic');
like(newsletter('ana@example.com', 'offers'), qr/^List-Id: <offers\./m, '... not another topic\'s');
like(headers('ana@example.com', q{send('ana@example.com', 'Receipt', 'Hello')}), qr/^Subject: Receipt/m, '... not the next receipt');
like(headers('ana@example.com', q{send('ana@example.com', 'Code', '1', message_type => 'system')}), qr/^Subject: Code/m, '... nor a system mail');
like(newsletter('bob@example.com', 'news'), qr/^List-Id: <news\./m, '... nor another recipient\'s newsletter');

# A template's body has the same link as its header.
my $mail = headers('dora@example.com', q{send_template('letter', 'dora@example.com', topic => 'offers')});
my $token = token($mail);
my $id = $node->sql(q{SELECT max(id) FROM kliv_mail.messages});
like($node->sql("SELECT convert_from(kliv_mail.raw_message($id), 'UTF8')") =~ s/=\r?\n//gr =~ s/=3D/=/gr, qr/href="[^"]*token=\Q$token\E"/, 'a template\'s body has the link of its topic');
$node->sql(q{SELECT count(*) FROM kliv_mail.send_template_batch('letter', ARRAY['fay@example.com', 'dora@example.com'], topic => 'news')});
is($node->sql("SELECT kliv_mail.unsubscribe('$token')"), 't', 'it leaves that topic');
is(headers('dora@example.com', q{send_template('letter', 'dora@example.com', topic => 'offers')}), '', '... of the template');
is($node->sql(q{SELECT string_agg(topic, ' ' ORDER BY id) FROM kliv_mail._message WHERE id > } . $id), 'news news offers', 'a batch has its topic');

# Who left between send() and the claim gets nothing, and it counts in no quota.
$node->sql(q{SELECT kliv_mail.pause()});
$id = $node->sql(q{SELECT kliv_mail.send('gus@late.example', 'News', 'Hello', message_type => 'marketing', topic => 'news')});
my $used = $node->sql(q{SELECT used FROM kliv_mail.usage WHERE account = 'platform' AND window_name = 'day'});
$node->sql(q{INSERT INTO kliv_mail._suppression (address, scope, created_at, created_by) VALUES ('@late.example', 'news', now(), 'me')});
$node->sql(q{SELECT kliv_mail.resume()});
is($node->sql("SELECT kliv_mail.wait($id, '60 s')"), 'suppressed', 'who left between send() and the claim gets nothing');
is($node->sql(q{SELECT used FROM kliv_mail.usage WHERE account = 'platform' AND window_name = 'day'}), $used, '... and it counts in no quota');
is(scalar($smtp->accepted('gus@late.example')), 0, '... nor does the server know of it');

# ---- hard bounces: the first one suppresses, or as many as are asked for ----

sub refused
{
    my ($to) = @_;
    my $id = $node->sql("SELECT kliv_mail.send('$to', 'Receipt', 'Hello')");
    return $node->sql("SELECT kliv_mail.wait($id, '60 s')");
}
is(refused('rcpt-550-5.1.1+one@example.com'), 'bounced', 'a hard bounce');
is(refused('rcpt-550-5.1.1+one@example.com'), 'suppressed', '... suppresses the address');
is($node->sql(q{SELECT scope || '|' || reason || '|' || (expires_at IS NULL) FROM kliv_mail.suppressions WHERE address ^@ 'rcpt'}), 'all|hard bounce: the mailbox does not exist|true', '... for all mail and for ever');
$node->reconfigure('kliv_mail.hard_bounces' => 2);
is(refused('rcpt-550-5.1.1+two@example.com'), 'bounced', 'hard_bounces = 2: a first one');
is($node->sql(q{SELECT count(*) FROM kliv_mail.suppressions WHERE address ~ 'two'}), 0, '... is counted only');
is(refused('rcpt-550-5.1.1+two@example.com'), 'bounced', '... a second one');
is(refused('rcpt-550-5.1.1+two@example.com'), 'suppressed', '... suppresses the address');
is(refused('rcpt-550-5.1.1+0@docomo.ne.jp'), 'bounced', 'of a carrier whose subscribers filter');
is(refused('rcpt-550-5.1.1+0@docomo.ne.jp'), 'bounced', '... twice');
my $until = q{SELECT expires_at BETWEEN kliv_mail._now() + interval '29 days' AND kliv_mail._now() + interval '30 days' FROM kliv_mail.suppressions WHERE address ~ 'docomo'};
is($node->sql($until), 't', '... suppresses for 30 days');
$node->clock_offset('31 days');
is(refused('rcpt-550-5.1.1+0@docomo.ne.jp'), 'bounced', '... and once more after these');
is($node->sql(q{SELECT expires_at IS NULL FROM kliv_mail.suppressions WHERE address ~ 'docomo'}), 't', '... for ever');
$node->stop;

done_testing();
