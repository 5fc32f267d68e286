# Bad inputs whose result needs a server, an account of one's own or a measure;
# the ids are those of the catalogue of bad inputs, the others are SQL tests.
# And what a user sees of addresses, file types and limits in use (D2).
use strict;
use warnings;
use utf8;
use Encode;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use PostgreSQL::Test::Utils;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main',
    conf => {
        'kliv_mail.allowed_hosts' => '127.0.0.1',
        'kliv_mail.key_file'      => PostgreSQL::Test::Utils::tempdir() . '/key'
    });
$ENV{PGCLIENTENCODING} = 'UTF8';
$node->sql(q{SELECT kliv_mail.configure_smtp(host => '127.0.0.1', username => '', encryption => 'none', from_address => 'shop@shop.example',
    allowed_senders => ARRAY['@news.example', 'ceo@corp.example'], port => } . $smtp->port . ')');

sub state_of
{
    my ($id) = @_;
    return $node->sql("SELECT kliv_mail.wait($id, '150 s')");
}

# ---- who may be the sender, and by which account ----

for ('shop@shop.example', 'any@news.example', 'ceo@corp.example')
{
    my $id = $node->sql("SELECT kliv_mail.send('from-$_', 's', 'b', from_address => '$_')");
    is(state_of($id), 'sent', "an allowed sender: $_");
    my ($entry) = $smtp->accepted("from-$_");
    like($smtp->message($entry), qr/\AFrom: \Q$_\E\r\n/, '... stands in From');
}
for ('ceo@shop.example', 'other@corp.example', 'a@sub.news.example', 'a@evilnews.example')
{
    is($node->try("SELECT kliv_mail.send('a\@x.example', 's', 'b', from_address => '$_')")->{state}, '22023', "B028: not an allowed sender: $_");
}
$node->sql(q{SELECT kliv_mail.configure_smtp(account => 'second', host => '127.0.0.1', username => '', encryption => 'none', from_address => 'shop@shop.example', port => } . $smtp->port . ')');
$node->sql(q{SELECT kliv_mail.reset_smtp('second')});
is($node->try(q{SELECT kliv_mail.send('a@x.example', 's', 'b', account => 'second')})->{state}, '22023', 'B054: an account out of use');
is($node->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE recipient = 'a@x.example'}), 0, '... and nothing is queued');

# ---- addresses beyond ASCII ----

my $beyond = encode_utf8(q{SELECT kliv_mail.send('Ana <ana@%s.example>', 'Grüße', 'x', cc => 'José <jösé@%s.example>')});
my $id = $node->sql($beyond =~ s/%s/without/gr);
is(state_of($id), 'failed', 'B016: a server without SMTPUTF8: nobody gets a mail with such an address in its header');
like($node->sql("SELECT string_agg(DISTINCT last_enhanced_code || ' ' || reason || ' ' || hint, '') FROM kliv_mail.deliveries WHERE message_id = $id"),
    qr/^5\.6\.7 .*SMTPUTF8/, '... and it says why');
is(scalar(grep { /without\.example/ } map { $_->{rcpt}[0] } $smtp->accepted), 0, '... nothing mangled leaves');
$id = $node->sql(encode_utf8(q{SELECT kliv_mail.send('ana@hidden.example', 'x', 'x', bcc => '用户@hidden.example')}));
$node->wait_until("SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE message_id = $id AND finished_at IS NULL");
is($node->sql("SELECT kind, status, last_enhanced_code, hint ~ 'ASCII' FROM kliv_mail.deliveries WHERE message_id = $id ORDER BY kind"),
    "bcc|failed|5.6.7|t\nto|sent|2.0.0|", '... in bcc, which is in no header, it hinders nobody else');
$smtp->set(smtputf8 => 1);
$smtp->drop_connections;
$id = $node->sql($beyond =~ s/%s/with/gr);
is(state_of($id), 'sent', 'a server with it');
for my $recipient ('ana@with.example', 'jösé@with.example')
{
    my ($entry) = $smtp->accepted($recipient);
    like($entry->{parameters}, qr/\bSMTPUTF8\b/, encode_utf8("$recipient: MAIL says SMTPUTF8"));
    like(decode_utf8($smtp->message($entry)), qr/^Cc: =\?utf-8\?\S+\?=\r?\n? <jösé\@with\.example>\r$/m, '... and the address stands as it is');
}
$id = $node->sql(q{SELECT kliv_mail.send('plain@with.example', 's', 'b')});
is(state_of($id), 'sent', 'a mail without such addresses');
unlike(($smtp->accepted('plain@with.example'))[0]{parameters}, qr/SMTPUTF8/, '... does not ask for it');

# ---- content types by file name: what Debian's media-types has ----

SKIP:
{
    skip 'no /etc/mime.types', 1 unless -r '/etc/mime.types';
    my %theirs;
    for (split /\n/, slurp_file('/etc/mime.types'))
    {
        my ($type, @extensions) = split ' ', s/#.*//r;
        $theirs{ lc $_ } //= $type for @extensions;
    }
    # Where ours is another one, and why.
    my %reason = (
        dot => 'a Word template, rather than Graphviz', pot => 'a PowerPoint template, rather than gettext',
        key => 'Keynote, rather than PGP keys', mid => 'audio/midi, which programs know, rather than audio/sp-midi',
        pem => 'any PEM file, rather than a certificate chain', tgz => 'application/gzip, which is registered',
        mkv => 'video/x-matroska, which programs know, rather than the newer video/matroska');
    my @extensions = grep { /^\w+$/ } sort keys %theirs;
    my %ours = map { split /\|/ } split /\n/, $node->sql("SELECT e, (kliv_mail.attach('a.' || e, '')).content_type
        FROM unnest('{" . join(',', @extensions) . "}'::text[]) AS e
        WHERE e <> ALL (string_to_array(current_setting('kliv_mail.prohibited_extensions'), ' '))");
    @extensions = grep { $ours{$_} } @extensions;
    my @other = grep { $ours{$_} ne 'application/octet-stream' && $ours{$_} ne $theirs{$_} } @extensions;
    # (Older releases have our type for mkv.)
    is(join(' ', grep { $_ ne 'mkv' } @other), join(' ', grep { $_ ne 'mkv' } sort keys %reason), 'they agree with media-types but for those with a reason');
    cmp_ok(scalar(grep { $ours{$_} ne 'application/octet-stream' } @extensions), '>', 90, 'and are many');
}

# ---- sizes ----

is($node->sql(q{SELECT current_setting('kliv_mail.max_message_size')}), '25MB', 'the limit of a message');
$node->sql('CREATE TABLE large (body text, file bytea)');
$node->sql(q{INSERT INTO large VALUES (repeat('x', 600 * 1024 * 1024), convert_to(repeat('x', 50 * 1024 * 1024), 'UTF8'))});
my $session = $node->session;
my $pid = $session->query('SELECT pg_backend_pid()');
# What the process needs besides the large values, which lie compressed in the
# table.  (In a ROW() of the caller's PostgreSQL itself unpacks them.)
$session->try(q{SELECT kliv_mail.send('a@x.example', 's', repeat('x', 26 * 1024 * 1024))});
my $before = peak($pid);
for ([ 'the body', q{'a@x.example', 's', body} ], [ 'the HTML', q{'a@x.example', 's', html => body} ],
    [ 'attach()', q{'a@x.example', 's', 'b', attachments => ARRAY[kliv_mail.attach('a.bin', file)]} ],
    [ 'attach_text()', q{'a@x.example', 's', 'b', attachments => ARRAY[kliv_mail.attach_text('a.txt', body)]} ])
{
    my ($name, $arguments) = @$_;
    is($session->try("SELECT kliv_mail.send($arguments) FROM large")->{state}, '54000', "B041: $name of 600 or 50 MB");
}
cmp_ok(peak($pid) - $before, '<', 20_000, 'B041: ... is refused before memory of that size is asked for (kB)');
$session->quit;
$node->sql('DROP TABLE large');
is($node->try(encode_utf8(q{SELECT kliv_mail.send('a@x.example', 's', repeat('é', 12 * 1024 * 1024))}))->{state}, '54000',
    '24 MB that are more in base64');

$node->sql(q{ALTER SYSTEM SET kliv_mail.max_message_size = '32MB'});
$node->reload;
$node->wait_until(q{SELECT current_setting('kliv_mail.max_message_size') = '32MB'});
$smtp->set(size => 25 * 1024 * 1024);
$smtp->drop_connections;
$id = $node->sql(q{SELECT kliv_mail.send('large@x.example', 's', repeat(repeat('x', 70) || E'\n', 26 * 1024 * 1024 / 71))});
is(state_of($id), 'failed', 'B040: 26 MB to a server that takes 25');
is($node->sql("SELECT last_enhanced_code, attempts FROM kliv_mail.deliveries WHERE message_id = $id"), '5.3.4|1', '... says so, at the first attempt');
unlike($smtp->transcript, qr/large\@x\.example/, '... and no byte of it was sent');
$id = $node->sql(q{SELECT kliv_mail.send('less@x.example', 's', repeat(repeat('x', 70) || E'\n', 24 * 1024 * 1024 / 71))});
is(state_of($id), 'sent', '24 MB go');

# ---- prohibited extensions are a setting ----

is($node->try(q{SELECT kliv_mail.attach('a.exe', 'x')})->{state}, '22023', 'B065: .exe');
$node->sql(q{ALTER SYSTEM SET kliv_mail.prohibited_extensions = 'iso .Docm, pdf'});
$node->reload;
$node->wait_until(q{SELECT current_setting('kliv_mail.prohibited_extensions') LIKE 'iso%'});
is($node->try("SELECT kliv_mail.attach('$_', 'x')")->{state}, '22023', "B065: $_ by another setting") for 'a.ISO', 'a.docm', 'b.pdf.';
is($node->try("SELECT kliv_mail.attach('a.exe', 'x')")->{state}, '', '... by which .exe may go');

$node->stop;
done_testing();

# The most memory that a process had, in kB.
sub peak
{
    my ($pid) = @_;
    my ($peak) = slurp_file("/proc/$pid/status") =~ /^VmHWM:\s+(\d+) kB$/m;
    return $peak;
}
