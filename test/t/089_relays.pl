# Bounces of two more real servers: Exim and OpenSMTPD take our mail, refuse some
# of it by themselves, pass the rest on to a server that refuses it, warn of what is
# late and give it up; each report is read, matched and applied.  (Postfix: 081.)
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::Relays;
use PostgreSQL::Test::Utils;
use Test::More;

my $relays = KlivMail::Relays->running
  or plan skip_all => 'Exim and OpenSMTPD need root to start: run the tests as root, or with sudo that asks for no password';
my @names = $relays->names or plan skip_all => 'neither the package of Exim nor that of OpenSMTPD can be had here';
my $hop = $relays->hop;
my $node = KlivMail::Cluster->new(
    'main',
    conf => {
        'kliv_mail.allowed_hosts' => '127.0.0.1',
        'kliv_mail.bounce_domain' => 'bounce.example'
    });
$node->sql(qq{SELECT FROM kliv_mail.configure_smtp(account => '$_', host => '127.0.0.1', port => @{[ $relays->port($_) ]}, encryption => 'none',
    username => '', from_address => 'shop\@shop.example', hourly_limit => 1000, daily_limit => 1000, test => false)}) for @names;

# What is refused: by the server behind, as its recipient's name says; by themselves.  With the
# class and the status that the report has, and whether it is for now only.
my @cases = (
    [ 'rcpt-550-5.1.1', 'hard 5.1.1' ],
    [ 'dot-550-5.1.1',  'hard 5.1.1' ],
    [ 'rcpt-550-5.2.1', 'hard 5.2.1' ],
    [ 'rcpt-550-5.3.0', 'soft 5.3.0' ],
    [ 'rcpt-552-5.2.2', 'soft 5.2.2' ],
    [ 'dot-552-5.3.4',  'soft 5.3.4' ],
    [ 'rcpt-550-5.7.1', 'policy 5.7.1' ],
    [ 'dot-554-5.7.1',  'policy 5.7.1' ],
    [ 'rcpt-451-4.3.0', 'soft 4.3.0', 'late' ],
    [ 'rcpt-452-4.2.2', 'soft 4.2.2', 'late' ]);
my %own = (
    exim => [
        [ 'unknown@exim.example', 'hard 5.0.0' ],
        [ 'mute@exim.example',    'soft 5.0.0' ],
        [ 'full@exim.example',    'soft 5.0.0' ],
        [ 'alias@exim.example',   'hard 5.0.0' ],
        [ 'nobody@exim.example',  'hard 5.0.0' ],
        [ 'large@exim.example',   'soft 5.0.0' ] ],
    opensmtpd => [
        [ 'unknown@opensmtpd.example', 'hard 5.3.0' ],
        [ 'mute@opensmtpd.example',    'soft 5.3.0' ],
        [ 'full@opensmtpd.example',    'soft 5.3.0' ],
        [ 'later@opensmtpd.example',   'soft', 'late' ] ]);

# What the report of one server on what it gave up says, where the other says more: version
# 6, or 7.
my %last = (opensmtpd => 'soft [45].4.7');

my $body = q{repeat('All that was bought. ', 100)};
sub post
{
    my ($name, $recipient) = @_;
    return { name => $name, recipient => $recipient,
        id => $node->sql("SELECT kliv_mail.send('$recipient', 'Receipt', $body, account => '$name')") };
}

# The reports on a mail that have come, as files.
sub reports
{
    my ($mail) = @_;
    my @files;
    for my $entry ($hop->accepted)
    {
        my $text = $hop->message($entry);
        next if $text !~ /^From: [^\n]*MAILER-DAEMON/mi || index($text, "<$mail->{header}>") < 0;
        push @files, $mail->{file}{ $entry->{offset} } //= do
        {
            my $file = PostgreSQL::Test::Utils::tempdir() . "/report";
            append_to_file($file, $text);
            chmod 0644, $file;
            $file;
        };
    }
    return @files;
}
sub outcome
{
    my ($mail) = @_;
    return $node->sql(qq{SELECT concat_ws(' ', d.status, d.bounce_type,
        (SELECT 'suppressed' FROM kliv_mail.suppressions AS s WHERE s.address = d.recipient)) FROM kliv_mail.deliveries AS d WHERE d.message_id = $mail->{id}});
}
sub says
{
    my ($file) = @_;
    return $node->sql(qq{SELECT concat_ws(' ', recipient, report_type, action, bounce_type, status) FROM kliv_mail.parse_bounce(pg_read_binary_file('$file'))});
}
sub ingest { my ($file) = @_; return $node->sql(qq{SELECT kliv_mail.ingest_bounce(pg_read_binary_file('$file'))}); }

# All are on their way at once.
my @mails;
for my $name (@names)
{
    for my $case (@cases, @{ $own{$name} })
    {
        my ($to, $expected, $late) = @$case;
        $expected = $last{$name} if $late && $last{$name};
        push @mails, { %{ post($name, $to =~ /\@/ ? $to : "$to+$name\@remote.example") }, expected => $expected, late => $late };
    }
}
$node->wait_until('SELECT count(*) = ' . @mails . q{ FROM kliv_mail.deliveries WHERE status = 'sent'});
$_->{header} = $node->sql("SELECT header_id FROM kliv_mail._message WHERE id = $_->{id}") for @mails;

for my $mail (@mails)
{
    my ($recipient, $expected) = @$mail{qw(recipient expected)};
    my @files;
    my $final = sub { @files = reports($mail); return @files && says($files[-1]) =~ / failed /; };
    eval { $node->wait_for("a last report on $recipient", $final) } or diag($@, $relays->log($mail->{name}));
    is(outcome($mail), 'sent', "$recipient: sent, as far as we know");
    if ($mail->{late})
    {
        like(says($files[0]), qr/^\Q$recipient\E dsn delayed soft 4/, '... a warning came first');
        is(ingest($files[0]), 0, '... which changes nothing');
        is(outcome($mail), 'sent', '... as the outcome tells');
    }
    like(says($files[-1]), qr/^\Q$recipient\E dsn failed $expected$/, "... the report says $expected");
    is(ingest($files[-1]), 1, '... it is believed');
    my ($class) = $expected =~ /^(\w+)/;
    is(outcome($mail), "bounced $class" . ($class eq 'hard' ? ' suppressed' : ''), '... and the outcome follows');
    is(ingest($files[-1]), 0, '... once');
}

# Without bounce_domain the sender's address has it, and the Message-ID tells.
$node->reconfigure('kliv_mail.bounce_domain' => '');
for my $name (@names)
{
    my $mail = post($name, "rcpt-550-5.1.1+id+$name\@remote.example");
    $node->wait_until("SELECT status = 'sent' FROM kliv_mail.deliveries WHERE message_id = $mail->{id}");
    $mail->{header} = $node->sql("SELECT header_id FROM kliv_mail._message WHERE id = $mail->{id}");
    $node->wait_for('a report', sub { reports($mail) });
    my ($file) = reports($mail);
    like(slurp_file($file), qr/^To: shop\@shop\.example\r?$/m, "$name: without bounce_domain the report comes to the sender");
    is(ingest($file), 1, '... and is known by its Message-ID');
    is(outcome($mail), 'bounced hard suppressed', '... so the address is suppressed');
}
KlivMail::RawMessages::gone(qr/^b\+|^shop\@/, 'it is a report');
done_testing();
