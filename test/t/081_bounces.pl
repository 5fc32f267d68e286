# Bounces of a real server: Postfix refuses by itself and passes on what another one
# refused; the reports come to signed return paths, or are known by their
# Message-ID.  (Exim's and OpenSMTPD's: 089_relays.)
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::Postfix;
use PostgreSQL::Test::Utils;
use Test::More;

my $postfix = KlivMail::Postfix->running
  or plan skip_all => 'Postfix needs root to start: run the tests as root, or with sudo that asks for no password';
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $postfix->port('clear'),
    conf => {
        'kliv_mail.platform_hourly_limit' => 100,
        'kliv_mail.platform_daily_limit'  => 100,
        'kliv_mail.bounce_domain'         => 'bounce.example',
        'kliv_mail.retention'             => '100d'
    });

# Mail it, wait for the report, and give the report's file.
sub report_on
{
    my ($recipient) = @_;
    my $id = $node->sql(qq{SELECT kliv_mail.send('$recipient', 'Receipt', 'x')});
    $node->wait_until(qq{SELECT status = 'sent' FROM kliv_mail.deliveries WHERE message_id = $id});
    my $header = $node->sql(qq{SELECT header_id FROM kliv_mail._message WHERE id = $id});
    my $report;
    $node->wait_for("a report on $recipient", sub {
        ($report) = grep { index($_, $header) >= 0 && /^From: .*MAILER-DAEMON/m } $postfix->mails;
        return defined $report;
    });
    my $file = PostgreSQL::Test::Utils::tempdir() . "/$id";
    append_to_file($file, $report);
    chmod 0644, $file;
    return ($id, $file, $report);
}
sub ingest { my ($file) = @_; return $node->sql(qq{SELECT kliv_mail.ingest_bounce(pg_read_binary_file('$file'))}); }
sub outcome
{
    my ($id) = @_;
    return $node->sql(qq{SELECT concat_ws(' ', d.status, d.bounce_type, d.last_enhanced_code,
        (SELECT 'suppressed' FROM kliv_mail.suppressions AS s WHERE s.address = d.recipient)) FROM kliv_mail.deliveries AS d WHERE d.message_id = $id});
}

for my $case (
    [ 'unknown@remote.example', 'bounced hard 5.1.1 suppressed' ], [ 'full@remote.example', 'bounced soft 5.2.2' ],
    [ 'policy@remote.example',  'bounced policy 5.7.1' ],          [ 'ana@moved.example', 'bounced hard 5.1.1 suppressed' ])
{
    my ($recipient, $expected) = @$case;
    my ($id, $file, $report) = report_on($recipient);
    like($report, qr/^Delivered-To: b\+\w+\.\w+\.\w{16}\@bounce\.example$/m, "$recipient: the report came to a signed return path");
    is(ingest($file), '1', "... is believed");
    is(outcome($id), $expected, "... and is $expected");
    is(ingest($file), '0', '... once');
}
my $next = $node->sql(q{SELECT kliv_mail.send('Unknown@remote.example', 'x', 'x')});
is($node->sql(qq{SELECT status FROM kliv_mail.deliveries WHERE message_id = $next}), 'suppressed', 'the next mail to the address is suppressed');

# Forged: another delivery's return path, a changed one, an old one.
my ($reported, undef, $report) = report_on('ben@moved.example');
my $victim = $node->sql(q{SELECT kliv_mail.send('victim@example.com', 'x', 'x')});
$node->wait_until(qq{SELECT status = 'sent' FROM kliv_mail.deliveries WHERE message_id = $victim});
my $header = $node->sql(qq{SELECT header_id FROM kliv_mail._message WHERE id = $victim});
my $folder = PostgreSQL::Test::Utils::tempdir();
sub forged
{
    my ($name, $text, $reason) = @_;
    (my $file = "$folder/$name") =~ tr/ /_/;
    append_to_file($file, $text);
    chmod 0644, $file;
    my $count = q{SELECT coalesce(sum(count), 0) FROM kliv_mail._ignored_report WHERE reason = } . "'$reason'";
    my $before = $node->sql($count);
    is(ingest($file), '0', "$name: changes nothing");
    is($node->sql($count), $before + 1, "... and is counted: $reason");
    is(outcome($victim), 'sent 2.0.0', '... the victim is left alone');
    return;
}
forged('another recipient', $report =~ s/ben\@moved\.example/victim\@example.com/gr, 'about another recipient');
forged('a changed token', $report =~ s/ben\@moved\.example/victim\@example.com/gr =~ s/(b\+\w+\.\w+\.\w{15})(\w)(?=\@)/$1 . ($2 eq 'a' ? 'b' : 'a')/ger, 'forged or expired return path');
forged('the Message-ID beside a bad token', "From: MAILER-DAEMON\@x.example\nTo: b+b.b.abcdefghijklmnop\@bounce.example\nSubject: failure\n\nCould not be delivered:\n\n<victim\@example.com>:\n550 5.1.1 no\n\n--- Below this line is a copy of the message.\n\nMessage-ID: <$header>\n", 'forged or expired return path');
$node->clock_offset('31 days');
forged('an old token', $report, 'forged or expired return path');
$node->clock_offset('0');

# A report on a report, which came from the null path: it is about no mail of ours, though
# the return path that could not be reached is in it, and be it that it comes to that path.
my ($path) = $report =~ /^Delivered-To: (\S+)/m;
for my $to ([ 'postmaster@bounce.example', 'about no mail of this database' ], [ $path, 'about another recipient' ])
{
    forged("a report on a report, to $to->[0]", <<"EOF", $to->[1]);
Return-Path: <>
From: MAILER-DAEMON\@mx.example
To: $to->[0]
Subject: Postmaster notify: double bounce
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="double"

--double
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example

Final-Recipient: rfc822; $path
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such user

--double
Content-Type: message/rfc822

$report
--double--
EOF
}
is(outcome($reported), 'sent 2.0.0', '... and the mail that the inner one is about is left alone, too');

# Without bounce_domain the sender's address has it, and the Message-ID tells.
$node->reconfigure('kliv_mail.bounce_domain' => '');
my ($id, $file);
($id, $file, $report) = report_on('eve@moved.example');
like($report, qr/^Delivered-To: platform\@platform\.example$/m, 'without bounce_domain the report comes to the sender');
is(ingest($file), '1', '... and is known by its Message-ID');
is(outcome($id), 'bounced hard 5.1.1 suppressed', '... so the address is suppressed');

done_testing();
