# Webhooks: the vectors of the conformance data, and for two providers the whole circle:
# send, 250, webhook, bounced, suppressed, and the next mail goes nowhere.
use strict;
use warnings;
use IPC::Run ();
use JSON::PP;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use MIME::Base64 qw(encode_base64);
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $json = JSON::PP->new->canonical->utf8;
my $tls = KlivMail::Tls->new("$folder/tls");
my ($certificate, $key) = $tls->certificate('server');
my $smtp = KlivMail::SmtpServer->start(tls => 1, cert => $certificate, key => $key);
my $node = KlivMail::Cluster->new(
    'main',
    conf => {
        'kliv_mail.allowed_hosts' => 'localhost',
        'kliv_mail.ca_file'       => $tls->ca_file,
        log_statement             => 'all'
    });

# The request, or the error: "28000 ...".
sub ingest
{
    my ($provider, $headers, $body) = @_;
    my $result = $node->try(sprintf q{SELECT kliv_mail.ingest_webhook('%s', $h$%s$h$, decode('%s', 'hex'))}, $provider, $json->encode($headers), unpack 'H*', $body);
    return $result->{state} eq '' ? $result->{out} : $result->{state};
}
sub configure
{
    my ($provider, %argument) = @_;
    $node->sql("SELECT kliv_mail.configure_webhook('$provider'" . join('', map { ", $_ => \$v\$$argument{$_}\$v\$" } sort keys %argument) . ')');
    return;
}
sub slurp_json { my ($file) = @_; return $json->decode(slurp_file($file)); }

# ---- the vectors ----

SKIP:
{
    my $file = ($ENV{KLIV_MAIL_CONFORMANCE} // '') . '/webhook_vectors.json';
    skip 'the conformance data is not there', 16 unless -e $file;
    my %time = (sendgrid => 1600112502, resend => 1614265330, mailgun => 1534108637, ses => '2012-04-26T20:45:04Z', postmark => time);
    my $topic = 'arn:aws:sns:us-west-2:123456789012:MyTopic';
    my $good;
    my $number = 0;
    for my $vector (@{ slurp_json($file) })
    {
        my $provider = $vector->{provider} =~ s/-sns$//r;
        $good = $vector if $provider eq 'ses' && $vector->{valid} && !$good;

        # Those of a certificate's address are the good one with another address, which is not signed.
        my $body = $vector->{body} // $json->encode({ %{ $json->decode(encode_utf8($good->{body})) }, SigningCertURL => $vector->{cert_url} });
        configure($provider,
            $provider eq 'sendgrid' ? (public_key => $vector->{public_key})
            : $provider eq 'ses' ? (topic_arn => $topic, certificate => $good->{cert_pem})
            : (secret => $vector->{secret} // $vector->{signing_key} // 'hook:s3cret'));
        my $at = $time{$provider} =~ /T/ ? "'$time{$provider}'::timestamptz" : "to_timestamp($time{$provider})";
        $node->clock_offset($node->sql("SELECT make_interval(secs => extract(epoch FROM $at - clock_timestamp()))"));
        my $result = ingest($provider, $vector->{headers} // {}, encode_utf8($body));
        is($result, $vector->{valid} ? '0' : '28000', sprintf 'vector %d: %s, %s', ++$number, $provider, $vector->{why} // 'valid');

        # Once more it has no second effect, and a changed byte is refused.
        next unless $vector->{valid};
        is(ingest($provider, $vector->{headers} // {}, encode_utf8($body)), '0', '... repeated');
        (my $other = $body) =~ s/MyTopic|50-char-token|hello|2432232314|HardBounce/x/;
        is(ingest($provider, $vector->{headers} // {}, encode_utf8($other)), $provider eq 'postmark' ? '0' : '28000', '... with other words');
        $node->clock_offset('0');
        is(ingest($provider, $vector->{headers} // {}, encode_utf8($body)), $provider eq 'postmark' ? '0' : '28000', '... and long after');
    }
    $node->clock_offset('0');
    is($node->sql(q{SELECT count(*) FROM kliv_mail.suppressions}), 0, 'events about mail of others suppress nobody');
}
sub encode_utf8 { my ($text) = @_; utf8::encode($text) if utf8::is_utf8($text); return $text; }

# ---- the whole circle ----

sub openssl
{
    my ($input, @command) = @_;
    my ($out, $err) = ('', '');
    IPC::Run::run([ 'openssl', @command ], '<', \$input, '>', \$out, '2>', \$err) or die "openssl @command: $err";
    return $out;
}
openssl('', 'genpkey', '-algorithm', 'EC', '-pkeyopt', 'ec_paramgen_curve:P-256', '-out', "$folder/ec.key");
my $public = openssl('', 'pkey', '-in', "$folder/ec.key", '-pubout') =~ s/-----.*?-----|\s//gr;
my $topic = 'arn:aws:sns:eu-west-1:123456789012:mail';
openssl('', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', "$folder/rsa.key", '-out', "$folder/sns.pem", '-subj', '/CN=sns.amazonaws.com', '-days', '2');
configure('sendgrid', public_key => $public);
configure('ses', topic_arn => $topic, certificate => slurp_file("$folder/sns.pem"));

sub sendgrid
{
    my ($events, $time) = @_;
    return ingest('sendgrid', signed($json->encode($events) . "\r\n", $time));
}
# The headers and the body.
sub signed
{
    my ($body, $time) = @_;
    $time //= time;
    my $signature = encode_base64(openssl("$time$body", 'dgst', '-sha256', '-sign', "$folder/ec.key"), '');
    return ({ 'X-Twilio-Email-Event-Webhook-Signature' => $signature, 'X-Twilio-Email-Event-Webhook-Timestamp' => "$time" }, $body);
}
my $notifications = 0;
sub ses
{
    my ($event, %change) = @_;
    my %message = (
        Type => 'Notification', MessageId => 'n-' . ++$notifications, TopicArn => $topic, Message => $json->encode($event),
        Timestamp => POSIX::strftime('%Y-%m-%dT%H:%M:%S.000Z', gmtime), SignatureVersion => '2', %change);
    my $text = join '', map { defined $message{$_} ? "$_\n$message{$_}\n" : () }
      $message{Type} eq 'Notification' ? qw(Message MessageId Subject Timestamp TopicArn Type) : qw(Message MessageId SubscribeURL Timestamp Token TopicArn Type);
    $message{Signature} = encode_base64(openssl($text, 'dgst', $message{SignatureVersion} eq '1' ? '-sha1' : '-sha256', '-sign', "$folder/rsa.key"), '');
    $message{SigningCertURL} //= 'https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-abc.pem';
    return ingest('ses', {}, $json->encode(\%message));
}

# How each says it; from the mail as its server got it.
my %circle = (
    sendgrid => {
        arguments => "provider => 'sendgrid', password => 'SG.aaaaaaaaaaaaaaaaaaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbb', from_address => 'shop\@shop.example'",
        auth => 'apikey:SG.aaaaaaaaaaaaaaaaaaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbb', reply => '250 Ok: queued as hiBH4ZmzRkeDNfGW9GEQVw',
        event => sub {
            my ($name, $recipient, $mail, %more) = @_;
            my ($id) = $mail =~ /"kliv_mail":"(\d+)"/;
            my ($header) = $mail =~ /^Message-ID: (<.*?>)/m;
            return sendgrid([ { email => $recipient, event => $name, sg_event_id => "$name-$recipient", sg_message_id => 'hiBH4ZmzRkeDNfGW9GEQVw.filter-1', kliv_mail => $id, 'smtp-id' => $header, timestamp => time, %more } ]);
        },
        delivered => [ 'delivered', response => '250 OK' ],
        bounced => [ 'bounce', type => 'bounce', status => '5.1.1', reason => '550 5.1.1 The email account does not exist' ],
        complained => ['spamreport']
    },
    ses => {
        arguments => "provider => 'ses', region => 'eu-west-1', username => 'AKIAIOSFODNN7EXAMPLE', password => 'BIvn8c9kSx0Dd4rOaGq1Tz7uWyXe2Lf5hJm3PpQs6Rt0', from_address => 'shop\@shop.example'",
        auth => 'AKIAIOSFODNN7EXAMPLE:BIvn8c9kSx0Dd4rOaGq1Tz7uWyXe2Lf5hJm3PpQs6Rt0', reply => '250 Ok 0102018f-2b3c-4d5e',
        event => sub {
            my ($name, $recipient, $mail, %more) = @_;
            my ($header) = $mail =~ /^Message-ID: (<.*?>)/m;
            return ses({ eventType => $name, mail => { messageId => '0102018f-2b3c-4d5e', destination => [$recipient], headers => [ { name => 'Message-ID', value => $header } ] }, %more });
        },
        delivered => sub { return [ 'Delivery', delivery => { recipients => [ $_[0] ] } ]; },
        bounced => sub { return [ 'Bounce', bounce => { bounceType => 'Permanent', bounceSubType => 'General', bouncedRecipients => [ { emailAddress => $_[0], status => '5.1.1', diagnosticCode => 'smtp; 550 5.1.1 user unknown' } ] } ]; },
        complained => sub { return [ 'Complaint', complaint => { complainedRecipients => [ { emailAddress => $_[0] } ] } ]; }
    });

for my $provider (sort keys %circle)
{
    my $circle = $circle{$provider};
    my $event = sub {
        my ($kind, $recipient, $mail) = @_;
        my $said = $circle->{$kind};
        my ($name, @more) = @{ ref $said eq 'CODE' ? $said->($recipient) : $said };
        return $circle->{event}->($name, $recipient, $mail, @more);
    };
    $smtp->set(auth => [ $circle->{auth} ], dot_reply => $circle->{reply});
    $node->sql("SELECT * FROM kliv_mail.configure_smtp($circle->{arguments}, host => 'localhost', port => " . $smtp->port . q{, encryption => 'tls')});
    my $send = sub {
        my ($recipient) = @_;
        my $before = $smtp->count;
        my $id = $node->sql("SELECT kliv_mail.send('$recipient', 'Receipt', 'x')");
        $node->wait_until("SELECT finished_at IS NOT NULL FROM kliv_mail.deliveries WHERE message_id = $id");
        my @accepted = $smtp->accepted;
        return ($id, $smtp->count > $before ? $smtp->message($accepted[-1]) : undef);
    };
    my $state = sub { my ($id) = @_; return $node->sql("SELECT concat_ws(' ', status, bounce_type) FROM kliv_mail.deliveries WHERE message_id = $id"); };

    my ($id, $mail) = $send->("ana\@$provider.example");
    is($state->($id), 'sent', "$provider: sent");
    is($event->('delivered', "ana\@$provider.example", $mail), '1', '... its webhook says delivered');
    is($state->($id), 'delivered', '... and so it is');
    is($event->('delivered', "ana\@$provider.example", $mail), '0', '... once');
    is($event->('bounced', "ana\@$provider.example", $mail), '1', '... then bounced');
    is($state->($id), 'bounced hard', '... and so it is');
    is($event->('delivered', "ana\@$provider.example", $mail), '0', '... and stays');
    is($node->sql("SELECT scope FROM kliv_mail.suppressions WHERE address = 'ana\@$provider.example'"), 'all', '... the address is suppressed');
    my $connections = () = $smtp->ledger('connect');
    my ($next, $nothing) = $send->("Ana\@$provider.example");
    is($state->($next), 'suppressed', '... and the next mail to it');
    is(scalar(() = $smtp->ledger('connect')), $connections, '... without a connection');
    my ($third, $third_mail) = $send->("ben\@$provider.example");
    is($event->('bounced', "eve\@$provider.example", $third_mail), '0', '... an event that names another recipient changes nothing');
    is($state->($third), 'sent', '... and nobody');
    is($event->('complained', "ben\@$provider.example", $third_mail), '1', '... a complaint');
    is($node->sql("SELECT scope FROM kliv_mail.suppressions WHERE address = 'ben\@$provider.example'"), 'marketing', '... stops marketing mail');
}

# ---- what servers replied, cut anywhere: one event's words lose no other event ----

# Of mails to these that a server took: how SendGrid says that each bounced.
my $bounces = 0;
sub bounces
{
    my (@recipients) = @_;
    my @ids = map { $node->sql("SELECT kliv_mail.send('$_', 'Receipt', 'x')") } @recipients;
    $node->wait_until('SELECT bool_and(finished_at IS NOT NULL) FROM kliv_mail.deliveries WHERE message_id IN (' . join(',', @ids) . ')');
    return map { { email => shift @recipients, event => 'bounce', status => '5.1.1', reason => '550 5.1.1 unknown', sg_event_id => 'b' . ++$bounces,
            'smtp-id' => $node->sql("SELECT header_id FROM kliv_mail._message WHERE id = $_") } } @ids;
}
# An event's JSON with these bytes behind its words.
sub with_words { my ($event, $words) = @_; return $json->encode($event) =~ s/unknown/unknown $words/r; }

my @words = ('\u0000', '\ud83d', '\udcff\uD83D', '\\\\u0000', '\ud83d\ude00', "bo\xeete", "\xed\xa0\xbd\xe3\x81", "\0");
my $lost = "\xef\xbf\xbd";
my @kept = ($lost, $lost, "$lost$lost", '\u0000', "\xf0\x9f\x98\x80", "bo${lost}te", $lost x 5, $lost);
my @cut = bounces(map { "cut$_\@example.com" } 0 .. $#words);
is(ingest('sendgrid', signed('[' . join(",\r\n", map { with_words($cut[$_], $words[$_]) } 0 .. $#words) . "]\r\n")), scalar @words,
    'NUL, halves of pairs, bytes of other encodings: all of them bounce');
is($node->sql(sprintf q{SELECT convert_to(string_agg(substr(last_reply, 19), '|' ORDER BY recipient), 'UTF8') = decode('%s', 'hex') FROM kliv_mail.deliveries WHERE recipient LIKE 'cut%%'}, unpack 'H*', join '|', @kept),
    't', '... with what is left of their words') or note($node->sql(q{SELECT recipient, last_reply FROM kliv_mail.deliveries WHERE recipient LIKE 'cut%'}));
is(ingest('sendgrid', signed('[' . with_words($cut[0], '\ud83') . ']')), '22023', '... an escape that is none is no JSON');
my ($nul) = bounces('nul@example.com');
is(ses({ eventType => 'Bounce', mail => { messageId => 'x', destination => ['nul@example.com'], headers => [ { name => 'Message-ID', value => $nul->{'smtp-id'} } ] },
        bounce => { bounceType => 'Permanent', bounceSubType => 'General', bouncedRecipients => [ { emailAddress => 'nul@example.com', diagnosticCode => "smtp; 550 5.1.1 \0 unknown" } ] } }),
    '1', '... a NUL in an event of ses, which is a text in what is signed');
my %octets = (LATIN1 => 3, EUC_JP => 6, SQL_ASCII => 8);
for my $encoding (sort keys %octets)
{
    my $database = lc "hooks_$encoding";
    $node->sql("CREATE DATABASE $database TEMPLATE template0 ENCODING '$encoding' LOCALE 'C'");
    $node->sql('CREATE EXTENSION pgcrypto; CREATE EXTENSION kliv_mail', dbname => $database);
    is($node->sql(q{SELECT octet_length(kliv_mail._request_json(convert_to('{"a": "\u00e9\ud83d\u3042"}', 'UTF8'), 'body') ->> 'a')}, dbname => $database), $octets{$encoding}, "... what a database in $encoding lacks");
}

# ---- requests at the same time wait for each other, and never both ----

# Three mails of one address, in this order by what tells them apart and in others by their events' keys; the last is held.
my @three = bounces(('three@example.com') x 3);
sub keyed { my (%key) = @_; return signed($json->encode([ map { { %{ $three[$_] }, sg_event_id => $key{$_} } } sort keys %key ])); }
my $holder = $node->session;
$holder->sql(q{BEGIN; SELECT 1 FROM kliv_mail._delivery WHERE id = (SELECT max(id) FROM kliv_mail._delivery WHERE recipient = 'three@example.com') FOR UPDATE});
my @at_once = map { $node->session } 1 .. 2;
my $waiting = q{SELECT count(*) = %d FROM pg_stat_activity WHERE query LIKE '%%ingest_webhook%%' AND wait_event_type = 'Lock'};
for my $number (0, 1)
{
    my ($headers, $body) = keyed(@{ [ [ 0 => 'k1', 2 => 'k2', 1 => 'k3' ], [ 1 => 'k4', 0 => 'k5' ] ]->[$number] });
    $at_once[$number]->send(sprintf q{SELECT kliv_mail.ingest_webhook('sendgrid', $h$%s$h$, decode('%s', 'hex'))}, $json->encode($headers), unpack 'H*', $body);
    $node->wait_until(sprintf $waiting, $number + 1);
}
$holder->sql('COMMIT');
is(join(' ', map { $_->result } @at_once), '3 0', 'two requests about the same mails, in other orders');

# Who judges an account's name makes no other request wait, which may have what that one waits for.
for my $first ('true', 'false')
{
    my ($bounce) = bounces("judged_$first\@example.com");
    $node->sql("DELETE FROM kliv_mail._reputation WHERE $first; UPDATE kliv_mail._reputation SET judged_at = '-infinity'");
    $holder->sql(q{BEGIN; SELECT kliv_mail._judge_reputation((SELECT account FROM kliv_mail._delivery ORDER BY id DESC LIMIT 1), kliv_mail._now())});
    local $ENV{PGOPTIONS} = '-c lock_timeout=5s';
    is(sendgrid([$bounce]), '1', 'while the account is judged' . ($first eq 'true' ? ' for the first time' : ''));
    $holder->sql('ROLLBACK');
}

# ---- what is refused ----

is(sendgrid([], time - 601), '28000', 'sendgrid: too old');
is(sendgrid([], time + 660), '28000', '... from the future');
is(sendgrid([ map { { sg_event_id => $_, event => 'bounce', email => "x$_\@example.com", reason => '550 5.1.1 unknown' } } 1 .. 5001 ]), '54000', '... 5,001 events');
is($node->sql(q{SELECT count(*) FROM kliv_mail._report WHERE recipient LIKE 'x%@example.com'}), 0, '... of which none is kept');
is(ses({}, TopicArn => 'arn:aws:sns:eu-west-1:210987654321:evil'), '28000', 'ses: another topic, well signed');
is(ses({}, SignatureVersion => '1'), '0', '... SHA-1 is version 1');
is(ses({}, SignatureVersion => '3'), '28000', '... there is no version 3');
is(ses({}, Timestamp => '2026-13-45T99:99:99Z'), '28000', '... no time');
is(ses({}, Timestamp => '2012-04-26T20:45:04.751Z'), '28000', '... an old one');
for my $url ('http://sns.eu-west-1.amazonaws.com/x.pem', 'https://sns.eu-west-1.amazonaws.com.evil.test/x.pem', 'https://sns.eu-west-1.amazonaws.com:8443/x.pem', 'https://evil@sns.eu-west-1.amazonaws.com/x.pem', 'https://sns.eu-west-1.amazonaws.com/x.txt', "https://sns.eu-west-1.amazonaws.com/x.pem\nhttps://evil.test/")
{
    is(ses({}, SigningCertURL => $url), '28000', "... a certificate at $url");
}
is(ses({}, Type => 'SubscriptionConfirmation', Message => 'confirm', Token => 't', SubscribeURL => 'https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription'), '0', '... a confirmation for our topic');
is($node->sql(q{SELECT detail FROM kliv_mail.events WHERE kind = 'confirmation'}), 'SubscriptionConfirmation: https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription', '... is kept for who owns it');
is(ses({}, Type => 'SubscriptionConfirmation', Message => 'confirm', Token => 't', SubscribeURL => 'https://evil.test/', TopicArn => 'arn:aws:sns:eu-west-1:210987654321:evil'), '28000', '... for a foreign topic not');

# ---- no secret in the log ----

configure('postmark', secret => 'hook:Str3ng-g3heim');
ingest('postmark', { Authorization => 'Basic ' . encode_base64('hook:Str3ng-g3heim', '') }, '{');
$node->try(q{SELECT kliv_mail.configure_webhook('postmark', secrets => 'Str3ng-g3heim')});
$node->try(q{SELECT kliv_mail.configure_webhook('sendgrid', secret => 'Str3ng-g3heim')});
my $log = slurp_file($node->logfile);
unlike($log =~ s/^.*LOG:  statement: .*$//mgr, qr/Str3ng|aG9vazpTdHIzbmctZzNoZWlt/, 'no secret and no Authorization in the log, but where log_statement writes them');
unlike($log, qr/Str3ng|aG9vazpTdHIzbmctZzNoZWlt/, '... which is masked, too');

done_testing();
