# Japanese mails with files, as people's readers show them: every file's name is
# right in Python's email (both policies), GMime, MIME::Parser, Email::MIME, s-nail
# and ripmime, and every one reads the same bytes.
use strict;
use warnings;
use utf8;
use Digest::SHA qw(sha256_hex);
use Email::MIME;
use Encode qw(decode encode_utf8 decode_utf8);
use File::Temp ();
use IPC::Run ();
use JSON::PP;
use KlivMail::Cluster;
use MIME::Parser;
use PostgreSQL::Test::Utils;
use Test::More;

# What each mail has; a name that has no content here is read from csv().
my @mails = (
    [ '請求書',         '請求書.pdf' ],
    [ '売上',           '売上一覧.csv' ],
    [ '空白と括弧',     '御見積書 2026年12月 (株式会社 山田商店)様.pdf' ],
    [ '長い名前',       '令和八年度第三四半期における全国支店別売上高および前年同期比増減一覧表の最終確定版.xlsx' ],
    [ '機種依存文字',   '㈱山田①②髙﨑.doc' ],
    [ '絵文字',         '写真😀👨‍👩‍👧.jpg' ],
    [ '第三水準',       '𠮷野家𩸽.txt' ],
    [ '半角カナ',       'ｱｲｳｴｵ.txt' ],
    [ '波ダッシュ',     '10〜12月～−－‖∥.pdf' ],
    [ '二つ',           '請求書.pdf', '納品書.pdf' ],
    [ '英数字と混在',   'report_2026-11-29 最終版 v2.pdf', 'plain name.pdf', q{a'b;c=d,e.txt} ],
    [ '濁点',           "か\x{3099}き\x{3099}.txt", '表示ソ能予.csv' ]);

my $node = KlivMail::Cluster->new('main');
my $content = "%PDF-1.4\r\n" . join '', map { chr } 0 .. 255;

sub composed
{
    my ($subject, @names) = @_;
    my $files = join ', ', map { my $name = s/'/''/gr; "kliv_mail.attach('$name', '\\x" . unpack('H*', $content) . "')" } @names;
    my $hex = $node->sql(encode_utf8(
        "SET client_encoding = 'UTF8'; SELECT kliv_mail._compose('$subject', '本文です。', NULL, '\"山田, 太郎\" <taro\@example.jp>', NULL, NULL, ARRAY[$files], 'App <app\@example.com>')"));
    return pack 'H*', substr $hex, 2;
}

# ---- the readers: bytes of a mail to names; those that unpack, to contents, too ----

sub piped
{
    my ($input, @command) = @_;
    my ($out, $err) = ('', '');
    local $ENV{LC_ALL} = 'C.UTF-8';
    local $SIG{PIPE} = 'IGNORE';
    IPC::Run::run(\@command, '<', \$input, '>', \$out, '2>', \$err) or diag("$command[0]: $err");
    return ($out, $err);
}

# A word of RFC 2047 that a library leaves to its caller.
sub plain { return $_[0] =~ /=\?/ ? decode('MIME-Header', $_[0]) : utf8::is_utf8($_[0]) ? $_[0] : decode_utf8($_[0]); }

sub unpacked
{
    my ($folder) = @_;
    my %files;
    opendir my $dir, $folder or die "$folder: $!";
    for my $name (grep { !/^\.\.?$/ } readdir $dir)
    {
        $files{ decode_utf8($name) } = slurp_file("$folder/$name");
    }
    return %files;
}

my %reader = (
    'MIME::Parser' => sub {
        my $parser = MIME::Parser->new;
        $parser->output_to_core(1);
        return map { plain($_) } grep { defined } map { $_->head->recommended_filename } $parser->parse_data($_[0])->parts;
    },
    'Email::MIME' => sub { return map { plain($_) } grep { defined } map { $_->filename } Email::MIME->new($_[0])->subparts },
    's-nail' => sub {
        my $folder = File::Temp->newdir;
        my $box = "$folder.box";
        append_to_file($box, 'From app@example.com Sun Nov 29 00:00:00 2026' . "\n" . $_[0] =~ s/\r//gr . "\n");
        # It asks where to save each, and offers the name.
        my ($out, $err) = piped("write 1\n\n\n\n\n\nexit\n", '/bin/sh', '-c', "cd '$folder' && exec s-nail '-:/' -R -Sttycharset=UTF-8 -Sv15-compat -# -f '$box'");
        unlike($err, qr/Faulty|error/i, 's-nail has nothing to complain of');
        unlink $box;
        my %files = unpacked($folder);
        return grep { $_ ne '1' } sort keys %files;
    },
    ripmime => sub {
        my $folder = File::Temp->newdir;
        piped($_[0], 'ripmime', '-i', '-', '-d', "$folder", '--overwrite');
        my %files = unpacked($folder);
        return grep { !/^textfile/ } sort keys %files;
    });

my $folder = File::Temp->newdir;
my @raw = map { composed(@$_) } @mails;
append_to_file("$folder/$_", $raw[$_]) for 0 .. $#raw;
my $python = decode_json((piped('', '/usr/bin/python3', 'test/read_names.py', map { "$folder/$_" } 0 .. $#raw))[0]);

# s-nail writes the characters that a shell knows as %28, and leaves joiners out.
sub saved { return map { s/\x{200d}//gr =~ s/([()';])/sprintf '%%%02X', ord $1/ger } @_; }

for my $i (0 .. $#mails)
{
    my ($subject, @names) = @{ $mails[$i] };
    my $title = encode_utf8($subject);
    my %read = (%{ $python->[$i] }, map { $_ => [ $reader{$_}->($raw[$i]) ] } keys %reader);
    is(scalar(keys %read), 7, "$title: seven readers");
    for my $name (sort keys %read)
    {
        my @expected = $name eq 's-nail' ? saved(@names) : @names;
        is_deeply([ map { encode_utf8($_) } sort @{ $read{$name} } ], [ map { encode_utf8($_) } sort @expected ], "$title: $name");
    }
    my @contents = map { sha256_hex($_->body) } grep { defined $_->filename } Email::MIME->new($raw[$i])->subparts;
    is_deeply(\@contents, [ map { sha256_hex($content) } @names ], '... and the bytes');
}

# csv() in Japan's encoding: its charset gives the characters of Excel.
my $hex = $node->sql(encode_utf8(q{SET client_encoding = 'UTF8'; SELECT kliv_mail._compose('売上', '本文です。', NULL, 'taro@example.jp', NULL, NULL,
    ARRAY[kliv_mail.csv('SELECT ''㈱髙﨑①～'' AS 顧客', 'SJIS', '売上.csv')], 'app@example.com')}));
my ($csv) = grep { defined $_->filename } Email::MIME->new(pack 'H*', substr $hex, 2)->subparts;
is(encode_utf8($csv->body_str), encode_utf8("顧客\r\n㈱髙﨑①～\r\n"), 'csv() as Windows-31J is read by its charset');

$node->stop;
done_testing();
