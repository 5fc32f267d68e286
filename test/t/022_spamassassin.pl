# What a spam filter thinks of the bytes: SpamAssassin, with every rule of its
# package that needs no network, finds nothing wrong with the headers, the MIME
# structure or the encodings of mails of many shapes, as a server received them;
# and it does find what is wrong with mails that are made wrong (D4).
use strict;
use warnings;
use utf8;
use Encode;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Mail::SpamAssassin;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

# The rules that none of our mails may meet: those that say of a message that
# its headers, its MIME structure or its encodings are malformed, incomplete,
# forged or only a spammer's program makes them so.
my $about_format = qr/
    MISSING_ | MIME | MALF | INVALID_(?!FONT) | ILLEGAL | 8BIT | BASE64 | _B64 | _QP_ | BAD_ENC | BOGUS_ | CORRUPT | FRAGMENTED
  | MPART_ | MULTIPART | PART_LIMIT | BOUND | CTYPE | _CTE_ | ^CTE_ | CHARSET | CDISP | FAKE_ASCII | OBFU_\w*ATTACH
  | ^HEAD | ^HDR | MISSP | LCASE | NO_HEADERS | UNCLOSED | UNBAL | _WSP_ | ADDR_WS | EXCESS_BASE64 | BLANK_NAME | NO_USER | ^FROMSPACE
  | MSGID | DATE_IN | DATE_SPAM | FORGED_ | RATWARE | X_MESSAGE_INFO | RCVD_DBL_DQ
  | HTML_BAD | HTML_EXTRA_CLOSE | HTML_TAG_BALANCE | HTML_NONELEMENT | HTML_OBFUSCATE | NO_HTML_TAG | LONGL/x;
# Not among them: what judges the caller's words and pictures (HTML_MESSAGE,
# HTML_IMAGE_ONLY_*, EMPTY_MESSAGE, SUSPICIOUS_RECIPS, most of TVD_*, which are an
# author's initials, such as TVD_SPACE_RATIO on one long word; T_HTML_ATTACH and
# T_OBFU_HTML_ATT_MALW: an HTML file, beside a ZIP file), where the mail came from
# (RCVD_*, RDNS_*, made up here), and LIST_PARTIAL_SHORT_MSG: a
# List-Unsubscribe in a short mail without List-Id and without DKIM, which the
# account's server adds; a mailing is no mailing list.

my $smtp = KlivMail::SmtpServer->start(smtputf8 => 1);
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    conf         => {
        'kliv_mail.platform_hourly_limit' => 1000,
        'kliv_mail.platform_daily_limit'  => 1000
    });
$ENV{PGCLIENTENCODING} = 'UTF8';
my $filter = filter();

# ---- mails that are made wrong: the rule that must fire ----

my $good = "From: Shop <shop\@platform.example>\r\nDate: " . date() . "\r\nMessage-ID: <0a1b2c3d4e5f\@platform.example>\r\n"
  . "Subject: Your order has left\r\nTo: Ana <ana\@mailbox.example>\r\nMIME-Version: 1.0\r\n";
my $plain = "Content-Type: text/plain; charset=utf-8\r\n";
my $text = "Hello Ana, your order has left our house and will be with you on Thursday.\r\n" x 3;
my $both = qq{${good}Content-Type: multipart/alternative;\r\n boundary="=_1_x"\r\n\r\n--=_1_x\r\n$plain\r\n$text\r\n}
  . "--=_1_x\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html><body>$text</body></html>\r\n--=_1_x--\r\n";
my %wrong = (
    MISSING_DATE         => $good =~ s/^Date:.*\n//mr . "$plain\r\n$text",
    MISSING_MID          => $good =~ s/^Message-ID:.*\n//mr . "$plain\r\n$text",
    MISSING_SUBJECT      => $good =~ s/^Subject:.*\n//mr . "$plain\r\n$text",
    MISSING_HEADERS      => $good =~ s/^To:.*\n//mr . "$plain\r\n$text",
    MISSING_HB_SEP       => "$good$plain$text",
    MISSING_MIME_HB_SEP  => $both =~ s/\r\n\r\nHello/\r\nHello/r,
    HEADER_COUNT_SUBJECT => "${good}Subject: again\r\n$plain\r\n$text",
    INVALID_DATE         => $good =~ s/^Date:.*$/Date: 24\/11\/26 at noon\r/mr . "$plain\r\n$text",
    DATE_IN_PAST_96_XX   => $good =~ s/^Date:.*$/Date: Tue, 4 Jan 2022 10:00:00 +0000\r/mr . "$plain\r\n$text",
    INVALID_MSGID        => $good =~ s/^Message-ID:.*$/Message-ID: <a b>\r/mr . "$plain\r\n$text",
    SUBJ_ILLEGAL_CHARS   => $good =~ s/^Subject:.*$/Subject: R\xe9servation confirm\xe9e pour l'\xe9t\xe9\r/mr . "$plain\r\n$text",
    BAD_ENC_HEADER       => $good =~ s/^Subject:.*$/Subject: =?utf-8?B?44GU5 rOo5paH?=\r/mr . "$plain\r\n$text",
    FROM_EXCESS_BASE64   => $good =~ s/^From: Shop/From: =?utf-8?B?U2hvcA==?=/mr . "$plain\r\n$text",
    TO_MALFORMED         => $good =~ s/^To:.*$/To: Ana <ana\r/mr . "$plain\r\n$text",
    MIME_HTML_ONLY       => "${good}Content-Type: text/html; charset=utf-8\r\n\r\n<html><body>$text</body></html>\r\n",
    MIME_HTML_MOSTLY     => $both =~ s/\r\n\r\nHello.*?\r\n--/\r\n\r\nHello\r\n\r\n--/sr =~ s/<body>.*<\/body>/"<body>" . $text x 100 . "<\/body>"/ser,
    MPART_ALT_DIFF       => $both =~ s/<body>.*<\/body>/<body>Lottery winners collect fabulous millions today, without any questions asked.<\/body>/sr,
    MIME_BASE64_TEXT     => "${good}Content-Type: text/plain; charset=us-ascii\r\nContent-Transfer-Encoding: base64\r\n\r\nSGVsbG8gQW5hLCB5b3VyIG9yZGVyIGhhcyBsZWZ0IG91ciBob3VzZQ==\r\n",
    BASE64_LENGTH_79_INF => "$good${plain}Content-Transfer-Encoding: base64\r\n\r\n" . 'SGVs' x 40 . "\r\n",
    MIME_QP_LONG_LINE    => "$good${plain}Content-Transfer-Encoding: quoted-printable\r\n\r\n" . "a=20" x 60 . "\r\n",
    CTE_8BIT_MISMATCH    => "$good${plain}Content-Transfer-Encoding: 7bit\r\n\r\nna\xc3\xafve $text");
for my $rule (sort keys %wrong)
{
    my ($hits) = judged('shop@platform.example', 'ana@mailbox.example', $wrong{$rule});
    ok((grep { $_ eq $rule } @$hits), "a mail made wrong: $rule fires") or diag("only: @$hits");
    like($rule, $about_format, '... and would count');
}
# A rule that fires for these is broken: with a Perl newer than itself, SpamAssassin finds
# HEAD_ILLEGAL_CHARS in every mail.
my %broken;
for my $right ("$good$plain\r\n$text", $both)
{
    my ($hits) = judged('shop@platform.example', 'ana@mailbox.example', $right);
    $broken{$_} = 1 for grep { $_ =~ $about_format } @$hits;
}
is(join(' ', grep { $_ ne 'HEAD_ILLEGAL_CHARS' } sort keys %broken), '', 'none for the same made right');

# ---- ours ----

my $hello = 'Hello Ana,\n\nyour order 1234 has left our house this morning and will be with you on Thursday.\n\nKind regards,\nThe shop\n';
my $page = '<html><body><h1>Your order</h1><p>Hello Ana, your order 1234 has left our house this morning and will be with you on Thursday.</p>'
  . '<p><a href="https://shop.example/orders/1234">See where it is</a></p><p>Kind regards, the shop</p></body></html>';
my $png = q{decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==', 'base64')};
my @shapes = (
    text => "'Your order has left', E'$hello'",
    html => "'Your order has left', html => '$page'",
    'a piece of HTML' => "'Your order has left', html => '<p>Hello Ana, your order 1234 has left our house this morning.</p>'",
    both => "'Your order has left', E'$hello', '$page'",
    Japanese => q{'ご注文ありがとうございます', E'山田様\n\nこのたびはご注文いただき、誠にありがとうございます。\n商品は本日発送いたしました。\n', from_name => '株式会社サンプル'},
    'Japanese, both' => q{'商品を発送いたしました', E'山田様\n\n商品は本日発送いたしました。\n', '<html><body><p>山田様</p><p>商品は本日発送いたしました。</p></body></html>', from_name => '株式会社サンプル'},
    'Japanese, HTML only' => q{'商品を発送いたしました', html => '<html><body><p>山田様</p><p>商品は本日発送いたしました。</p></body></html>'},
    accents => q{'Réservation confirmée', E'Bonjour Zoë,\n\nvotre réservation est confirmée. À bientôt !\n', from_name => 'Hôtel de la Plage'},
    emoji => q{'Welcome 🎉👩‍👩‍👧‍👦', E'Hello 👋🏽, so good to have you with us.\n', '<p>Hello 👋🏽, so good to have you with us.</p>', from_name => 'The team 🚀'},
    'right to left' => q{'مرحبا بكم في متجرنا', E'عزيزنا العميل،\nشكرا لطلبك. سيصلك قريبا.\n', '<html dir="rtl"><body><p>عزيزنا العميل،</p><p>شكرا لطلبك. سيصلك قريبا.</p></body></html>', from_name => 'متجر'},
    'Hebrew, HTML only' => q{'ההזמנה שלך בדרך', html => '<html dir="rtl"><body><p>שלום וברכה, ההזמנה שלך בדרך.</p></body></html>'},
    'a long subject' => q{repeat('every word of this subject counts ', 8), 'The body is short.'},
    'a long line' => q{'Log of the night', repeat('all is well, ', 8000)},
    'a long word' => q{'Key', repeat('0123456789abcdef', 2000)},
    'long lines of HTML' => q{'Your invoice', html => '<html><body><p>' || repeat('Tea, 100 g, 5.00 EUR; ', 3000) || '</p></body></html>'},
    'controls, dots, From' => q{'Odd text', E'From the start\n.\n..\na\u0001\u001bb  \n\t\n\n'},
    'an empty body' => q{'The subject says it all', ''},
    'an empty subject' => "'', E'$hello'",
    'a file' => qq{'Your invoice', E'$hello', attachments => ARRAY[kliv_mail.attach('invoice.pdf', '%PDF-1.4')]},
    'files of many kinds' => qq{'Your files', E'$hello', '$page', attachments => ARRAY[kliv_mail.attach('請求書 2026年.pdf', '%PDF-1.4'),
        kliv_mail.attach('empty.bin', ''), kliv_mail.attach_text('notes.txt', 'naïve'), kliv_mail.attach_text('page.html', '<p>x</p>'),
        kliv_mail.attach('photo.jpg', '\\xffd8ffe0'), kliv_mail.attach('book.xlsx', 'PK'), kliv_mail.attach('all.zip', 'PK'), kliv_mail.attach_text('meeting.ics', 'BEGIN:VCALENDAR')]},
    'a large file' => q{'The data', 'See the file.', attachments => ARRAY[kliv_mail.attach('data.bin', decode(repeat('00ff80', 700000), 'hex'))]},
    'an image inside' => qq{'Our new logo', E'$hello', '<html><body><p>Hello Ana, this is our new logo. We hope that you like it as much as we do.</p><img src="cid:logo" alt="Logo"></body></html>',
        attachments => ARRAY[kliv_mail.attach('logo.png', $png, content_id => 'logo')]},
    'an image and a file' => qq{'Our new logo', html => '<html><body><p>Hello Ana, this is our new logo. We hope that you like it as much as we do.</p><img src="cid:logo" alt="Logo"></body></html>',
        attachments => ARRAY[kliv_mail.attach('logo.png', $png, content_id => 'logo'), kliv_mail.attach('guide.pdf', '%PDF-1.4')]},
    'bulk headers' => qq{'News of November', E'$hello', '$page', message_type => 'marketing', headers => '{"List-Id":"News <news.shop.example>","Feedback-ID":"nov:news:shop",
        "List-Unsubscribe":"<https://shop.example/u/7f3a>, <mailto:unsubscribe\@shop.example>","List-Unsubscribe-Post":"List-Unsubscribe=One-Click","Precedence":"bulk"}'},
    'our unsubscribe link' => "'News of November', E'$hello', '$page', message_type => 'marketing'",
    'a thread' => q{'Re: Your question', 'We have answered it.', headers => '{"In-Reply-To":"<a1@shop.example>","References":"<a0@shop.example> <a1@shop.example>","Auto-Submitted":"auto-replied","X-Priority":"1","Importance":"high"}',
        reply_to => 'Help desk <help@shop.example>'},
    'every kind of name' => q{'Names', 'Hello all.', from_name => '"CEO", of the shop', cc => '"Doe, John" <john@x.example>, 山田太郎 <yamada@例え.jp>, "odd one"@x.example, a..b@docomo.example', reply_to => 'Zoë <zoe@x.example>'},
    'an address beyond ASCII' => q{'Names', 'Hello both.', cc => 'José <jösé@x.example>'},
    'many recipients' => q{'Meeting', 'We meet on Thursday.', cc => (SELECT string_agg(format('Person %s <person%s@x%s.example>', i, i, i), ', ') FROM generate_series(1, 48) AS i)},
    'csv()' => q{'Users', 'See the file.', attachments => ARRAY[kliv_mail.csv('SELECT i AS id, ''名前'' AS name FROM generate_series(1, 100) AS i')]},
    'csv(), SJIS' => q{'Users', 'See the file.', attachments => ARRAY[kliv_mail.csv('SELECT i AS id, ''名前'' AS name FROM generate_series(1, 100) AS i', 'SJIS')]},
    'html_table()' => q{'Users', html => '<html><body><p>These are the users of today.</p>' || kliv_mail.html_table('SELECT i AS id, ''name <'' || i AS name FROM generate_series(1, 30) AS i') || '</body></html>'});

$node->sql(q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://shop.example/unsubscribe')});
my @names = @shapes[ grep { $_ % 2 == 0 } 0 .. $#shapes ];
my %call = @shapes;
my $number = 0;
my %address = map { $_ => 'shape' . ++$number . '@mailbox.example' } @names;
$node->sql(encode_utf8(join '', map { "SELECT kliv_mail.send('Ana Example <$address{$_}>', $call{$_});\n" } @names));
$node->wait_until(q{SELECT bool_and(status = 'sent') FROM kliv_mail.deliveries});

# the starter templates, with their examples
$node->sql(q{SELECT kliv_mail.set_brand(name => 'Shop', postal_address => E'1 Main Street\nSpringfield'); SELECT kliv_mail.install_starter_templates()});
for my $template (split /\n/, $node->sql(q{SELECT name || '.' || coalesce(locale, 'en') FROM kliv_mail.templates ORDER BY locale, name}))
{
    my ($name, $locale) = split /\./, $template;
    push @names, $template;
    $address{$template} = "$template\@mailbox.example";
    $node->sql(qq{SELECT kliv_mail.send_template(name, 'Ana Example <$address{$template}>', kliv_mail._variable_examples(variables), '$locale')
        FROM kliv_mail.templates WHERE name = '$name' AND coalesce(locale, 'en') = '$locale'});
}
$node->wait_until(q{SELECT bool_and(status = 'sent') FROM kliv_mail.deliveries});

my %others;
for my $name (@names)
{
    my ($entry) = $smtp->accepted($address{$name});
    my $message = $smtp->message($entry);
    my ($hits, $spam) = judged($entry->{mail_from}, $address{$name}, $message);
    is_deeply([ grep { $_ =~ $about_format && !$broken{$_} } @$hits ], [], encode_utf8("$name: nothing wrong with its form"))
      or diag(substr($message, 0, 3000));
    ok(!$spam, '... and no spam') or diag("@$hits");
    push @{ $others{$_} }, $name for grep { $_ !~ $about_format } @$hits;
}
note("$_, about words or origin: ", encode_utf8(join ', ', @{ $others{$_} })) for sort keys %others;

$node->stop;
done_testing();

sub date
{
    return POSIX::strftime('%a, %d %b %Y %H:%M:%S +0000', gmtime);
}

# SpamAssassin as the mailbox's server runs it, asking nobody.  Many rules about
# the form are switched off by a score of 0, since they catch few spammers: here
# they are on.  (One instance for a process: a second one loses rules.)
sub filter
{
    my $rules = '/usr/share/spamassassin';
    my $scores = join '', map { slurp_file($_) } glob("$rules/*.cf");
    my $on = join '', map { "score $_ 0.001\n" } $scores =~ /^\s*score\s+(\w+)\s+0(?:\.0+)?(?:\s|$)/mg;
    my $filter = Mail::SpamAssassin->new({
        rules_filename       => $rules,
        site_rules_filename  => '/etc/spamassassin',
        userprefs_filename   => '/dev/null',
        userstate_dir        => $node->basedir,
        home_dir_for_helpers => $node->basedir,
        dont_copy_prefs      => 1,
        local_tests_only     => 1,
        # Its own network is another one: the mail came from outside.
        post_config_text     => "use_bayes 0\nclear_trusted_networks\ntrusted_networks 192.0.2.1\n$on"
    });
    $filter->init(0);
    return $filter;
}

# The rules that a message meets, and whether it counts as spam, with the lines
# that the mailbox's server puts before it.
sub judged
{
    my ($sender, $recipient, $message) = @_;
    my $mail = $filter->parse("Return-Path: <$sender>\r\n"
          . "Received: from smtp.platform.example (smtp.platform.example [IPv6:2001:db8::25])\r\n"
          . "\tby mx.mailbox.example (Postfix) with ESMTPS id 4Xyz123Abc\r\n"
          . "\tfor <$recipient>; " . date() . "\r\n$message", 1);
    my $status = $filter->check($mail);
    my @hits = sort split /,/, $status->get_names_of_tests_hit;
    my $spam = $status->is_spam;
    $status->finish;
    $mail->finish;
    return (\@hits, $spam);
}
