# The adapters, each with its framework: a password reset goes out when its
# transaction commits and not when it rolls back, and a mail with everything
# arrives as the framework was given it (adapters/, test/adapters/).
use strict;
use warnings;
use utf8;
use Cwd qw(abs_path);
use Digest::SHA qw(sha256_hex);
use Encode qw(encode_utf8);
use IPC::Run ();
use JSON::PP;
use KlivMail::Cluster;
use KlivMail::Npm;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new('main', conf => { 'kliv_mail.allowed_hosts' => '127.0.0.1' });
$node->sql('CREATE ROLE app LOGIN; GRANT CREATE ON SCHEMA public TO app');
$node->sql(q{SELECT kliv_mail.grant_send('app')});
$node->sql(q{SELECT status FROM kliv_mail.configure_smtp(host => '127.0.0.1', encryption => 'none', username => '', from_address => 'app@example.com', port => } . $smtp->port . ')');

# A program of a framework, as the role app; what it printed.
sub runs
{
    my ($framework, @command) = @_;
    my $out = '';
    my $ok = IPC::Run::run([ @command, $node->host, $node->port, 'app' ], '>', \$out, '2>&1', IPC::Run::timeout(180));
    ok($ok && $out =~ /^ok$/m, "$framework: its mails are queued") or diag($out);
    return;
}

# The mails to an address, once nothing waits any more.
sub mails
{
    my ($address) = @_;
    $node->wait_until('SELECT count(*) = 0 FROM kliv_mail._outbox');
    return map { $smtp->message($_) } $smtp->accepted($address);
}

sub reading
{
    my ($bytes) = @_;
    my $json = '';
    IPC::Run::run([ '/usr/bin/python3', 'test/read_mail.py' ], '<', \$bytes, '>', \$json);
    return $json eq '' ? {} : decode_json($json);
}

# What each framework was given.
my @files = (
    [ '売上.csv', 'text/csv', '', encode_utf8("品名,金額\n煎茶,3\n") ],
    [ 'bytes.bin', 'application/octet-stream', '', join '', map { chr } 0 .. 255 ],
    [ qr/^attachment.*\.pdf$/, 'application/pdf', '', '%PDF-1.4' ],
    [ 'logo.png', 'image/png', qr/^logo$|\.mail$/, "\x89PNG\r\n\x1a\n" ]);

sub judge
{
    my ($framework, $short, $link, @expected) = @_;
    my ($kept, @more) = mails("$short-kept\@example.com");
    ok($kept && !@more, "$framework: the password reset of a transaction that commits goes out, once");
    like(reading($kept // '')->{text} // '', $link, '... with its link');
    is(scalar(mails("$short-lost\@example.com")), 0, '... that of one that rolls back does not');
    is($node->sql("SELECT count(*) FROM kliv_mail.messages AS m JOIN kliv_mail.deliveries AS d ON d.message_id = m.id WHERE d.recipient = '$short-lost\@example.com'"), 0, '... and was never queued');

    my ($raw) = mails("$short-all\@example.com");
    my $mail = reading($raw // '');
    is($mail->{subject}, '領収書 No. 7', "$framework: the subject");
    is_deeply($mail->{from}, [ '山田, 太郎', 'app@example.com' ], '... who sends');
    is_deeply($mail->{to}, [ [ '', "$short-all\@example.com" ], [ '花子', 'hanako@example.com' ] ], '... to whom');
    like($raw, qr/^Cc: cc\@example\.com\r$/m, '... cc');
    like($raw, qr/^Reply-To: help\@example\.com\r$/m, '... reply-to');
    like($raw, qr/^X-Order: 7\r$/m, '... a header');
    like($mail->{text}, qr/^お買い上げ\s*$/, '... the text');
    like($mail->{html}, qr/^<p>お買い上げ <img src="cid:[^"]+"><\/p>\s*$/, '... the HTML');
    is(scalar(mails("$short-bcc\@example.com")), 1, '... and bcc');
    unlike($raw, qr/-bcc\@/, '... which nobody sees');
    my %has = map { $_->[0] => $_ } @{ $mail->{files} };
    for my $file (@expected)
    {
        my ($name, $type, $id, $bytes) = @$file;
        my ($key) = grep { ref $name ? /$name/ : $_ eq $name } keys %has;
        ok($key, encode_utf8("... the file " . (ref $name ? 'without a name' : $name))) or next;
        my $read = delete $has{$key};
        is($read->[1], $type, '... its type');
        ok((grep { $read->[3] eq sha256_hex($_) } ref $bytes ? @$bytes : $bytes), '... its bytes');
        like($read->[2], ref $id ? $id : qr/^\Q$id\E$/, '... and its Content-ID');
        like($mail->{html}, qr/cid:\Q$read->[2]\E"/, '... which the HTML names') if ref $id;
    }
    is_deeply([ keys %has ], [], '... and no other');
    is($node->sql(qq{SELECT tags FROM kliv_mail.messages AS m JOIN kliv_mail.deliveries AS d ON d.message_id = m.id WHERE d.recipient = '$short-all\@example.com'}), '{receipt}', '... and its tags');
    my @html = mails("$short-html\@example.com");
    is(reading($html[0] // '')->{text} =~ s/\s+$//r, 'only HTML', '... HTML alone gets a text');
    return scalar @html;
}

runs('Django', '/usr/bin/python3', 'test/adapters/django_mail.py');
judge('Django', 'django', qr{http://testserver/accounts/reset/\w+/[\w-]+/}, @files);
like((mails('django-plain@example.com'))[0], qr/^From: app\@example\.com\r$/m, '... Django\'s webmaster@localhost is nobody');
is(scalar(mails('django-silent@example.com')), 1, '... what fails silently leaves the transaction as it was');

# (Mail gave text files the line ends of mail before 2.8.)
runs('ActionMailer', '/usr/bin/ruby', 'test/adapters/actionmailer_mail.rb');
is(judge('ActionMailer', 'rails', qr{https://app\.example/reset\?token=\S{40,}}, [ @{ $files[0] }[ 0 .. 2 ], [ $files[0][3], $files[0][3] =~ s/\n/\r\n/gr ] ], @files[ 1, 3 ]), 2, '... two equal mails are two');

is(scalar(mails('"rails..docomo"@docomo.ne.jp')), 1, '... an address that Mail does not know goes out');

SKIP:
{
    my $folder = PostgreSQL::Test::Utils::tempdir();
    skip 'no Node, no npm, or its registry cannot be reached', 1 if !KlivMail::Npm::install($folder);
    local $ENV{NODE_PATH} = "$folder/node_modules";
    local $ENV{KLIV_MAIL_ADAPTER} = abs_path('adapters/kliv_mail_nodemailer.js');
    runs('nodemailer', 'node', 'test/adapters/nodemailer_mail.js');
    judge('nodemailer', 'node', qr{https://app\.example/reset\?token=\w{32}}, @files);
    my ($raw) = mails('node-all@example.com');
    like($raw, qr/^Importance: high\r$/m, '... its priority');
    like($raw, qr{^list-unsubscribe: <https://app\.example/leave>\r$}mi, '... its list');
    is(scalar(mails('node-plain@example.com')), 1, '... by postgres.js, too');
    is_deeply([ map { "@$_[0, 1]" } @{ reading((mails('node-html@example.com'))[0])->{files} } ], [ 'empty.txt text/plain', 'empty.bin application/octet-stream' ], '... empty files, too');
}

$node->stop;
done_testing();
