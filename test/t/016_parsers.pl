# What arrives says what was given: mails of many shapes, read back by two
# parsers, Python's email and Perl's MIME-tools, from a UTF-8 and from an
# EUC_JP database (A8).  The ids are those of the catalogue of bad inputs.
use strict;
use warnings;
use utf8;
use Digest::SHA 'sha256_hex';
use Encode;
use JSON::PP;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use MIME::Parser;
use MIME::Words;
use PostgreSQL::Test::Utils;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    conf         => {
        'kliv_mail.platform_hourly_limit' => 1000,
        'kliv_mail.platform_daily_limit'  => 1000
    });
$node->sql(q{CREATE DATABASE eucjp TEMPLATE template0 ENCODING 'EUC_JP' LC_COLLATE 'C' LC_CTYPE 'C'});
$node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => 'eucjp');

# Each: subject, and what else differs: text, html, name (the recipient's),
# from_name, reply_to, attachments [name, bytes, type or undef, content id].
my $binary = join '', map { chr } 0 .. 255;
my @cases = (
    { subject => 'Plain', text => "Hello\nworld\n" },
    { subject => 'ご注文ありがとうございます', text => "山田様\n\nこんにちは。\n", name => '山田太郎', from_name => '株式会社サンプル' },
    { subject => '長い件名' x 40, text => '長い本文の一行' x 200 },
    # characters split, blanks doubled or lost elsewhere
    { subject => 'あ' x 300, text => 'x' },
    { subject => "\x{1F389}" x 300, text => 'x', utf8_only => 1 },
    { subject => 'あ a ' x 75 . 'あ', text => 'x' },
    { subject => 'a あ' x 75, text => 'x' },
    # what ISO-2022-JP lacks
    { subject => '①㈱髙﨑ｱｲｳ～∥－', text => "①㈱髙﨑ｱｲｳ～∥－\n", name => '㈱髙﨑①', utf8_only => 1,
        attachments => [ [ '①㈱髙﨑ｱｲｳ～∥－.txt', 'x', 'text/plain' ] ] },
    # B030: words of at most 75 characters, no character split
    { subject => 'é' x 200, text => "caf\x{e9}", utf8_only => 1 },
    { subject => "\x{1F469}\x{200D}\x{1F469}\x{200D}\x{1F467}" x 30, text => "\x{1F389}", utf8_only => 1 },
    { subject => '=?utf-8?B?SGk=?=', text => 'B031: typed literally' },
    { subject => "tab\there, \x{2028} and \x{85}", text => 'B032', utf8_only => 1 },
    { subject => '   ', text => 'B032' },
    { subject => '', text => 'B032' },
    { subject => 'Both', text => "Text\n", html => '<p>HTML &amp; <b>more</b></p>' },
    { subject => 'HTML の件名', text => "テキスト\n", html => "<p>日本語の HTML</p>\n" },
    { subject => 'B035: a line of 100,000', text => 'x' x 100_000 },
    { subject => 'B036: dots', text => "x\n.\nMAIL FROM:<e\@v.example>\n..\n.\n" },
    { subject => 'B036: the rest of a session', text => "x\n.\nMAIL FROM:<e\@v.example>\nRCPT TO:<f\@v.example>" },
    { subject => 'B037: bare CRs', text => "x\r.\rMAIL FROM:<e\@v.example>" },
    { subject => 'B037: CRLF and a bare CR', text => "x\r\n.\rDATA" },
    { subject => 'B038: only a dot', text => '.' },
    { subject => 'B038: two dots', text => '..' },
    { subject => 'B038: a dot and a line end', text => ".\n" },
    { subject => 'B038: ends with a dot', text => "a\n." },
    { subject => 'From at the start', text => "From the start\n>From\n" },
    { subject => 'Trailing blanks', text => "a  \nb\t\n\n\n" },
    { subject => 'B039: controls', text => join('', map { chr } 1 .. 8, 11, 12, 14 .. 31, 127) . "\n" },
    { subject => 'Equals = signs =20 =3D', text => "a=b =20 =\n" },
    # B027: in From too, whose address stays the account's
    { subject => 'Quoted name', text => 'x', name => 'Doe, John "Jo" (x) <y>', from_name => '"CEO" <ceo@bank.example>' },
    { subject => 'Name with = and ?', text => 'x', name => '=?x?= Ana' },
    { subject => 'A file', text => 'see the file', attachments => [ [ 'report.pdf', '%PDF-1.4', 'application/pdf' ] ] },
    # B061
    { subject => '添付ファイル', text => '請求書', attachments =>
          [ [ '請求書 2026年.pdf', $binary, 'application/pdf' ], [ 'empty.bin', '', undef ], [ 'big.bin', $binary x 400, undef ] ] },
    { subject => 'An image inside', text => 'picture', html => '<img src="cid:logo">', attachments =>
          [ [ 'logo.png', "\x89PNG\r\n\x1a\n" . $binary, 'image/png', 'logo' ], [ 'notes.txt', "a\nb\n", 'text/plain' ] ] },
    { subject => 'Long file name', text => 'x', attachments => [ [ ('とても長い名前' x 10) . '.txt', 'x', 'text/plain' ] ] },
    { subject => 'File name "quoted\\" name', text => 'x', attachments => [ [ 'a "b" c;d=e.txt', 'x', 'text/plain' ] ] });

sub literal
{
    my ($text) = @_;
    return 'NULL' unless defined $text;
    $text =~ s/([\\'])/$1$1/g;
    $text =~ s/([\x01-\x09\x0b-\x1f\x7f])/sprintf('\\x%02x', ord $1)/ge;
    return "E'$text'";
}

$ENV{PGCLIENTENCODING} = 'UTF8';
for my $dbname ('postgres', 'eucjp')
{
    my @sent = grep { $dbname eq 'postgres' || !$_->{utf8_only} } @cases;
    my $number = 0;
    for my $case (@sent)
    {
        $case->{address} = 'case' . ++$number . "\@$dbname.example";
        my $to = defined $case->{name} ? 'kliv_mail.mailbox(' . literal($case->{address}) . ', ' . literal($case->{name}) . ')'
          : literal($case->{address});
        my $files = join ', ', map {
            my ($name, $bytes, $type, $cid) = @$_;
            sprintf('kliv_mail.attach(%s, decode(\'%s\', \'hex\'), %s, %s)', literal($name), unpack('H*', $bytes), literal($type), literal($cid))
        } @{ $case->{attachments} // [] };
        $node->sql(encode_utf8(sprintf('SELECT kliv_mail.send(%s, %s, %s, %s, from_name => %s, attachments => %s)',
                    $to, literal($case->{subject}), literal($case->{text}), literal($case->{html}), literal($case->{from_name}),
                    $files ? "ARRAY[$files]" : 'NULL')), dbname => $dbname);
    }
    $node->wait_until(q{SELECT bool_and(status = 'sent') FROM kliv_mail.deliveries}, dbname => $dbname);

    is(scalar(grep { $_->{rcpt}[0] =~ /\@$dbname\.example$/ } $smtp->accepted), scalar(@sent), "$dbname: each is one mail");
    for my $case (@sent)
    {
        my ($entry) = $smtp->accepted($case->{address});
        my $raw = $smtp->message($entry);
        my $label = encode_utf8("$dbname: " . substr($case->{subject}, 0, 30));
        my %expected = (
            subject => $case->{subject},
            from    => [ $case->{from_name} // '', 'platform@platform.example' ],
            to      => [ [ $case->{name} // '', $case->{address} ] ],
            text    => lines($case->{text}),
            html    => lines($case->{html}),
            files   => [ map { [ $_->[0], $_->[2] // 'application/octet-stream', $_->[3] // '', sha256_hex($_->[1]) ] } @{ $case->{attachments} // [] } ]);
        is_deeply(by_python($raw), \%expected, "$label, by Python") or diag(substr($raw, 0, 3000));
        is_deeply(by_perl($raw), \%expected, "$label, by Perl") or diag(substr($raw, 0, 3000));
        my ($head) = $raw =~ /\A(.*?)\r\n\r\n/s;
        unlike($raw, qr/(?<!\r)\n|\r(?!\n)/, "$label: CRLF only");
        unlike($raw, qr/^[^\r\n]{999,}/m, '... no line over 998');
        unlike($raw, qr/[^\x00-\x7f]/, '... 7 bit');
        unlike($head, qr/^[^\r\n]{79,}\r?$/m, '... header lines of at most 78');
        unlike($head, qr/^[ \t]+\r?$/m, '... none of blanks alone');
        is(scalar(grep { length > 75 } $head =~ /=\?[^?\s]+\?[bq]\?[^?\s]*\?=/gi), 0, '... encoded words of at most 75');
    }
}
$node->stop;
done_testing();

# A text's line ends are a matter of transport, and so is one at its end.
sub lines
{
    my ($text) = @_;
    return undef unless defined $text;
    $text =~ s/\r\n?/\n/g;
    $text =~ s/\n\z//;
    return $text;
}

sub by_python
{
    my ($raw) = @_;
    my ($out, $err) = ('', '');
    IPC::Run::run([ '/usr/bin/python3', 'test/read_mail.py' ], '<', \$raw, '>', \$out, '2>', \$err)
      or return "failed: $err";
    my $mail = decode_json($out);
    $mail->{$_} = lines($mail->{$_}) for qw(text html);
    return $mail;
}

sub by_perl
{
    my ($raw) = @_;
    my $parser = MIME::Parser->new;
    $parser->output_to_core(1);
    $parser->decode_bodies(1);
    my $mail = $parser->parse_data($raw);
    my %found = (files => [], text => undef, html => undef);
    $found{subject} = words($mail->head->get('Subject', 0));
    $found{from} = (mailboxes($mail->head->get('From', 0)))[0];
    $found{to} = [ mailboxes($mail->head->get('To', 0)) ];
    for my $part (grep { !$_->is_multipart } $mail, $mail->parts_DFS)
    {
        next if $part == $mail && $mail->is_multipart;
        my $type = $part->effective_type;
        my $bytes = $part->bodyhandle->as_string;
        my $name = $part->head->recommended_filename;
        if (defined $name)
        {
            my ($cid) = ($part->head->get('Content-ID', 0) // '') =~ /<(.*)>/;
            push @{ $found{files} }, [ utf8::is_utf8($name) ? $name : decode_utf8(words_bytes($name)), $type, $cid // '', sha256_hex($bytes) ];
        }
        else
        {
            my $kind = $type eq 'text/html' ? 'html' : 'text';
            $found{$kind} //= lines(decode($part->head->mime_attr('content-type.charset') // 'us-ascii', $bytes));
        }
    }
    # The message itself is the first of parts_DFS too.
    my %seen;
    $found{files} = [ grep { !$seen{"$_->[0] $_->[3]"}++ } @{ $found{files} } ];
    return \%found;
}

# Unfold and decode RFC 2047.
sub words
{
    my ($value) = @_;
    chomp $value;
    $value =~ s/\r?\n(?=[ \t])//g;
    return join '', map { decode($_->[1] || 'us-ascii', $_->[0]) } MIME::Words::decode_mimewords($value);
}

sub words_bytes
{
    my ($value) = @_;
    return join '', map { $_->[0] } MIME::Words::decode_mimewords($value);
}

# [name, address] of each mailbox of a header without groups and comments.
sub mailboxes
{
    my ($value) = @_;
    chomp $value;
    $value =~ s/\r?\n(?=[ \t])//g;
    my @boxes;
    while ($value =~ /\G\s*((?:"(?:[^"\\]|\\.)*"|[^,<"])*)(?:<([^>]*)>)?\s*(?:,|\z)/g)
    {
        my ($name, $address) = ($1, $2);
        last unless length $name || defined $address;
        ($name, $address) = ('', $name) unless defined $address;
        $name =~ s/^\s+|\s+$//g;
        $address =~ s/^\s+|\s+$//g;
        $name = $1 =~ s/\\(.)/$1/gr if $name =~ /\A"(.*)"\z/s;
        push @boxes, [ words($name), $address ];
    }
    return @boxes;
}
