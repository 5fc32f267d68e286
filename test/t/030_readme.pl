# The README is true: its statements run, in order, and do what the text beside
# them says; what it names exists; README.ja.md says the same.
use strict;
use warnings;
use IPC::Run ();
use JSON::PP;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my %japanese = ('README.md' => 'README.ja.md', 'doc/production.md' => 'doc/production.ja.md');
my %text = map { $_ => slurp_file($_) } %japanese;

# [language, text] of each code block
sub blocks { return [ map { [@$_] } pairs($_[0] =~ /^```(\w*)\n(.*?)^```$/msg) ]; }
sub pairs { my @pairs; push @pairs, [ splice @_, 0, 2 ] while @_; return @pairs; }
my $blocks = blocks($text{'README.md'});
my ($providers, @sql) = sort { ($b =~ /provider =>/) <=> ($a =~ /provider =>/) } map { $_->[1] } grep { $_->[0] eq 'sql' } @$blocks;
is(scalar(@sql), 7, 'README.md has its seven SQL blocks');

# ---- the Japanese one ----

my %outline;
for my $name (keys %text)
{
    (my $prose = $text{$name}) =~ s/^```.*?^```$//msg;
    $outline{$name} = {
        headings => [ $prose =~ /^(#+) \S/mg ],
        bullets  => scalar(() = $prose =~ /^- /mg),
        code     => [ sort $prose =~ /`([^`]+)`/g ],
        table    => [ $prose =~ /^\|.*?\|(.*)\|$/mg ]
    };
    $_ = join ' ', /`([^`]+)`/g for @{ $outline{$name}{table} };
}
for my $english (sort keys %japanese)
{
    my $name = $japanese{$english};
    is_deeply(blocks($text{$name}), blocks($text{$english}), "$name: the same code blocks");
    is_deeply($outline{$name}, $outline{$english}, '... headings, points, table and code words');
    unlike($text{$name}, qr/^(?:。|、|）|」)/m, '... and no line begins with what ends a sentence');
}

# ---- the way into production, of which test/production.pl runs every line in bare chroots ----

my @production = @{ blocks($text{'doc/production.md'}) };
for my $shell (map { $_->[1] } grep { $_->[0] eq 'sh' } @$blocks, @production)
{
    my ($out, $err) = ('', '');
    ok(IPC::Run::run([ 'bash', '-n' ], '<', \$shell, '>', \$out, '2>', \$err), 'the shell understands: ' . (split /\n/, $shell)[0]) or diag($err);
}
my %installed = map { $_ => 1 } map { split ' ' } $text{'README.md'} =~ /^apt-get install -y (.*)$/mg;
my ($built) = slurp_file('demo/packages') =~ /^# build\n(.*?)\n\n/ms;
is_deeply([ grep { !$installed{$_} && !/MAJOR|^libc6-dev$|^pkg-config$/ } split /\n/, $built ], [], 'README.md installs what demo/packages has for the build');
for my $file (sort keys %text)
{
    (my $folder = $file) =~ s/[^\/]+$//;
    (my $prose = $text{$file}) =~ s/^```.*?^```$//msg;
    is_deeply([ grep { !-e "$folder$_" } grep { !/^https?:/ } $prose =~ /\]\(([^)#]+)[^)]*\)/g ], [], "$file: what it links to is there");
}

# ---- servers: one's own provider, with TLS and AUTH, and the platform's ----

my $tls = KlivMail::Tls->new(PostgreSQL::Test::Utils::tempdir() . '/tls');
my ($certificate, $key) = $tls->certificate('good');
my ($login) = $sql[0] =~ /username => '([^']+)'/;
my ($password) = $sql[0] =~ /password => '([^']+)'/;
my $smtp = KlivMail::SmtpServer->start(tls => 1, cert => $certificate, key => $key, auth => ["$login:$password"]);
my $platform = KlivMail::SmtpServer->start(starttls => 1, cert => $certificate, key => $key, auth => ['platform:of the platform']);

my ($settings) = grep { /^kliv_mail\.platform_url/m } map { $_->[1] } @$blocks;
my %conf = $settings =~ /^(kliv_mail\.\w+) = '([^']+)'/mg;
my $file = PostgreSQL::Test::Utils::tempdir() . '/password';
append_to_file($file, "of the platform\n");
chmod 0600, $file;
$conf{'kliv_mail.platform_url'} =~ s/mail\.platform\.example:587/'localhost:' . $platform->port('starttls')/e;
$conf{'kliv_mail.platform_password_file'} = $file;
my ($preload) = "@{[map { $_->[1] } @$blocks]}" =~ /\bshared_preload_libraries = '(.+?)'/;

my $node = KlivMail::Cluster->new(
    'main',
    extension => 0,
    conf => {
        %conf,
        shared_preload_libraries  => $preload,
        'kliv_mail.allowed_hosts' => 'localhost',
        'kliv_mail.ca_file'       => $tls->ca_file
    });
$node->sql('CREATE ROLE stranger');

# The statements as written, but for the provider's host and its default port.
sub local_server
{
    my ($statement) = @_;
    my $here = "host => 'localhost', port => " . $smtp->port('tls') . ", encryption => 'tls'";
    $statement =~ s/host => 'smtp\.example\.com'/$here/g;
    return $statement;
}

sub statements
{
    my ($block) = @_;
    my @statements;
    push @statements, $1 while $block =~ /\G\s*((?:\$\$.*?\$\$|'(?:[^']|'')*'|--[^\n]*|[^;'\$-]|[\$-])+;)/gcs;
    (my $rest = substr $block, pos($block) // 0) =~ s/\s//g;
    is($rest, '', 'the block is statements only');
    return @statements;
}

# Run all of a block, or those that match; a list of what they printed.
sub runs
{
    my ($block) = @_;
    my @results;
    for my $statement (statements($block))
    {
        my $result = $node->try(local_server($statement));
        (my $name = $statement) =~ s/--[^\n]*|\s+/ /g;
        is($result->{state}, '', 'runs: ' . substr($name =~ s/^ +//r, 0, 70)) or diag($result->{err});
        push @results, { %$result, statement => $statement };
    }
    return @results;
}

# The one mail that a server has for an address since the last look.
my %seen;
sub mail
{
    my ($server, $recipient, $name) = @_;
    my $new = $server->wait_for(sub { ($server->accepted($recipient))[ $seen{$recipient} // 0 ] });
    ok($new, $name) or return '';
    $seen{$recipient}++;
    return $server->message($new);
}

# ---- install and configure ----

my (undef, $create, @configure) = statements($sql[0]);
is($node->try($create)->{state}, '', 'CREATE EXTENSION');
like($node->sql('SELECT statement FROM kliv_mail.next_step()'), qr/^SELECT .*configure_smtp\(/, 'next_step(): the statement to run next');

# "in three sentences": at once through the platform's server, 2 an hour
for my $n (1 .. 3)
{
    my $result = $node->try("SELECT kliv_mail.send('p$n\@example.com', 'Hi', 'Hello', from_address => 'ana\@shop.example')");
    is($result->{state}, '', "platform mail $n");
    like($result->{err}, qr/Reply-To/, 'from_address becomes Reply-To') if $n == 1;
    like($result->{err}, qr/2 recipients/, 'the third waits, and a notice says for what') if $n == 3;
}
for my $n (1, 2)
{
    my $mail = mail($platform, "p$n\@example.com", "the platform's server has mail $n");
    like($mail, qr/^From: Platform <noreply\@platform\.example>\r$/m, '... from the platform');
    like($mail, qr/^Reply-To: ana\@shop\.example\r$/m, '... replies go to the wished address');
}
is($node->sql(q{SELECT status, held_by FROM kliv_mail.deliveries WHERE recipient = 'p3@example.com'}), 'deferred|quota', 'the third is held by quota');
KlivMail::RawMessages::gone(qr/^p[12]\@example\.com$/, 'the extension was dropped');
$node->sql('DROP EXTENSION kliv_mail');
%seen = ();

# A refused login and a refused sender save nothing.
$node->sql($create);
my ($statement) = grep { /configure_smtp/ } @configure;
my $result = $node->try(local_server($statement =~ s/\Q$password\E/wrong/r));
like($result->{state}, qr/^KM005$/, 'configure_smtp() with a wrong password: refused');
$smtp->set(mail_reply => '553 5.7.1 not your address');
$result = $node->try(local_server($statement));
like($result->{err}, qr/553 5\.7\.1 not your address/, '... that may not send as the address: refused with what the server said');
$smtp->set(mail_reply => '');
is($node->sql('SELECT count(*) FROM kliv_mail._account'), 0, '... nothing is saved');
is($node->sql(q{SELECT account FROM kliv_mail.smtp_settings WHERE in_use}), 'platform', '... mail still goes by the platform');
$node->sql('DROP EXTENSION kliv_mail');

my (undef, undef, undef, $configured, $sent, $waited, $outcome) = runs($sql[0]);
is($configured->{out}, "ok|$login", 'configure_smtp() shows the saved row; from_address is the user name');
for my $of_provider (grep { /provider =>/ } statements($providers), map { statements($_->[1]) } grep { $_->[0] eq 'sql' && $_->[1] =~ /provider =>/ } @production)
{
    my $named = $node->try($of_provider =~ s/\);$/, test => false, dry_run => true);/r);
    is($named->{state}, '', 'a provider has what it needs: ' . ($of_provider =~ s/--[^\n]*|\s+/ /gr)) or diag($named->{err});
}
is($sent->{out}, 1, 'send() gives the message id');
like(mail($smtp, 'ana@example.com', 'the mail arrives'), qr/^Subject: Hello\r\n.*^It works\r\n/ms, '... with subject and text');
is($waited->{out}, 'sent', '... and is sent');
like($outcome->{out}, qr/^ana\@example\.com\|sent\|250 /, '... with the reply');
is(($smtp->ledger('auth'))[-1]{user}, $login, '... by the login that was saved');
is($node->try(q{SELECT kliv_mail.send('app@example.com', 'Hi', 'Hello')}, role => 'app')->{state}, '', 'app may send');
mail($smtp, 'app@example.com', '... and its mail arrives');
is($node->try(q{SELECT kliv_mail.send('web@example.com', 'Hi', 'Hello')}, role => 'stranger')->{state}, '42501', 'another role may not');

# ---- a mail for every sign-up ----

runs($sql[1]);
$result = $node->try(q{INSERT INTO users (name, email) VALUES ('山田, 太郎', 'taro@example.jp')}, role => 'web');
is($result->{err}, '', 'web signs somebody up');
like(mail($smtp, 'taro@example.jp', '... and the mail arrives'), qr/^Subject: Welcome\r$/m, '... with its subject');
is($node->try(q{INSERT INTO users (name, email) VALUES ('Bob', 'no address')}, role => 'web')->{err}, '', 'no address: no mail, no error');
$node->sql('SELECT kliv_mail.pause()');
$result = $node->try(q{INSERT INTO users (name, email) VALUES ('Eve', 'eve@example.com')}, role => 'web');
is($result->{state}, '', 'mail trouble does not abort the INSERT');
is(scalar(@{ $result->{notices} }), 1, '... a notice says what it waits for');
$node->sql('SELECT kliv_mail.resume()');
mail($smtp, 'eve@example.com', '... and it goes when the trouble ends');

# ---- everyday ----

my %result = map { $_->{statement} =~ /kliv_mail\.(\w+)\((?:.*(send_at|is_address))?/s; ($1 . ($2 ? "/$2" : '')) => $_ }
  grep { $_->{statement} =~ /kliv_mail\.\w+\(/ } my @everyday = runs($sql[2]);
my ($receipt) = grep { $_->{statement} =~ /idempotency_key/ } @everyday;
is($node->try($receipt->{statement})->{out}, $receipt->{out}, 'the same key and arguments: the first message');
for my $recipient ('bob@example.org', 'team@example.com', 'archive@example.com')
{
    my $mail = mail($smtp, $recipient, "the receipt reaches $recipient");
    like($mail, qr/^To: Ana <ana\@example\.com>, bob\@example\.org\r\nCc: team\@example\.com\r\n/m, '... with its recipients');
    unlike($mail, qr/archive|^Bcc/mi, '... and no bcc');
    like($mail, qr/^X-Order: 1234\r$/m, '... with its header');
    like($mail, qr/receipt\.csv/, '... with its file');
}
is($node->sql("SELECT tags, metadata FROM kliv_mail.messages WHERE id = $receipt->{out}"), '{receipt}|{"order": 1234}', 'tags and metadata');
ok($smtp->wait_for(sub { grep { $smtp->message($_) =~ /^Subject: Your code\r$/m } $smtp->accepted('ana@example.com') }), 'send_at: it goes then');
is($result{'send/is_address'}{out}, 2, 'one mail for each row with an address');
like(mail($smtp, 'taro@example.jp', '... arrives'), qr/^Subject: News\r$/m, '... as the statement has it');
is($result{wait}{out}, 'sent', 'wait(1)');
is($result{cancel}{out}, 'f', 'cancel(1): nothing is left to stop');
is($result{retry}{out}, 0, 'retry(1): nothing to try again');
like($result{next_step}{out}, qr/accepted/, 'next_step(1): it has arrived');
my %views = map { $_->{statement} =~ /FROM kliv_mail\.(\w+);/ ? ($1 => $_->{out}) : () } @everyday;
like($views{smtp_settings}, qr/\|\*\*\*\*attery\|/, 'smtp_settings: the password is masked');
unlike($views{smtp_settings}, qr/correct/, '... and in no clear');
is(scalar(split /\n/, $views{usage}), 4, 'usage: hour and day of both accounts');
like($views{status}, qr/\|/, 'status: a row');
like($result{update_sender}{out}, qr/\|from_name, reply_to, allowed_senders$/, 'update_sender() shows what it changed');
like($result{set_limits}{out}, qr/\|200\|2000\|/, 'set_limits() too');
unlike($result{test_smtp}{out}, qr/\|f\|/, 'test_smtp(): every step is well');
like($result{test_smtp}{out}, qr/^sender\|t\|/m, '... to the last');
like($result{configure_smtp}{out}, qr/^custom\|ok\|.*\|(?:password|nothing)$/, 'configure_smtp() with a new password alone');
like("$result{pause}{out} $result{resume}{out}", qr/^\d+ \d+$/, 'pause() and resume()');
runs($sql[3]);
is($node->sql(q{SELECT account FROM kliv_mail.smtp_settings WHERE in_use}), 'platform', 'reset_smtp(): back to the platform');
mail($platform, 'late@example.com', 'whose server has the next mail') if $node->sql(q{SELECT kliv_mail.send('late@example.com', 'Late', 'x')});

# ---- templates ----

my %made = map { $_->{statement} =~ /kliv_mail\.(\w+)\(/ ? ($1 => $_) : () } runs($sql[4]);
is($made{install_starter_templates}{out}, 20, 'install_starter_templates(): ten, twice');
like($node->sql("SELECT subject || convert_from(entity, 'UTF8') FROM kliv_mail._message WHERE id = $made{send_template}{out}"),
    qr/^Welcome to Example\n?.*1 Main Street/s, 'send_template(): a mail in the brand');
like($made{preview_html}{out}, qr/^<!DOCTYPE html>.*ご登録ありがとうございます/s, 'preview_html(): a page, in Japanese');
is($made{check_template}{out}, '', 'check_template(): nothing to warn of');

# ---- what applications send ----

my @templates = runs($sql[5]);
my ($reset) = grep { $_->{statement} =~ /idempotency_key/ } @templates;
is($node->try($reset->{statement})->{out}, $reset->{out}, 'a second reset with the token is the first one');
my ($code) = grep { $_->{statement} =~ /replace_key/ } @templates;
my $newer = $node->try($code->{statement} =~ s/482 913/555 111/r)->{out};
is($node->sql("SELECT status, reason FROM kliv_mail.deliveries WHERE message_id = $code->{out}"), "cancelled|replaced by message $newer", 'a newer code replaces the first one');
is($node->sql("SELECT expires_at - created_at BETWEEN '9 minutes' AND '10 minutes' FROM kliv_mail._message WHERE id = $newer"), 't', '... and leaves within ten minutes');
is($node->sql(q{SELECT count(*) FROM kliv_mail.messages WHERE template = 'receipt' AND subject ~ 'A-1042' AND subject ~ '[^ -~]'}), 1, 'the receipt is Japanese');
is($templates[-1]{out}, '2|recipients: "no address" is not an e-mail address', 'the newsletter tells the address that is none');
is($node->sql(q{SELECT string_agg(o.recipient || ' ' || (m.subject = 'News for ' || u.name), ', ' ORDER BY m.id) FROM kliv_mail._message AS m
    JOIN kliv_mail._outbox AS o ON o.message_id = m.id JOIN users AS u ON u.email = o.recipient WHERE m.template = 'news'}),
    'taro@example.jp true, eve@example.com true', '... and each other one has a mail');
is($node->sql("SELECT kliv_mail.reschedule($newer, now() + interval '5 minutes')"), 1, 'reschedule() moves what waits');
like($node->sql(q{SELECT plain_text FROM kliv_mail.preview_template('news')}), qr/^Autumn\n=+\n/, 'preview_template() shows it');
$node->sql(q{SELECT kliv_mail.set_brand(unsubscribe_url => '')});

# ---- doc/production.md: tests, and Japan (the providers there are in 040_providers.pl) ----

my @statements = map { $_->[1] =~ s/DATABASE shop/DATABASE postgres/gr } grep { $_->[0] eq 'sql' && $_->[1] !~ /configure_smtp/ } @production;
is(scalar(@statements), 2, 'doc/production.md has its SQL');
my $count = $node->sql('SELECT count(*) FROM kliv_mail._message');
my $asserted = $node->try($statements[0]);
is($asserted->{state}, '', 'a test that asserts on mail') or diag($asserted->{err});
like($asserted->{out}, qr/^Welcome\|ana\@example\.com\|(?:queued|deferred)\nt$/m, '... sees it, and its text');
is($node->sql('SELECT count(*) FROM kliv_mail._message'), $count, '... and leaves none behind');
$node->sql($_) for $text{'doc/production.md'} =~ /`(ALTER DATABASE shop SET [^`]+)`/g ? map { s/DATABASE shop/DATABASE postgres/r } $text{'doc/production.md'} =~ /`(ALTER DATABASE shop SET [^`]+)`/g : die 'no settings for staging';
$node->sql("ALTER DATABASE postgres RESET $_") for 'kliv_mail.delivery', 'kliv_mail.redirect_to';
my $japan = $node->try($statements[1]);
is($japan->{state}, '', 'Japan') or diag($japan->{err});
like($japan->{out}, qr/sakura\|.*onamae\|/s, '... its providers have notes in Japanese');
$node->sql('ALTER DATABASE postgres RESET kliv_mail.quota_timezone');

# ---- reference ----

my ($described) = runs($sql[6]);
my $description = decode_json($described->{out});
my %exists = map { $_ => 1 } split /\n/, $node->sql(q{
    SELECT proname FROM pg_proc WHERE pronamespace = 'kliv_mail'::regnamespace AND proname !~ '^_'
    UNION SELECT relname FROM pg_class WHERE relnamespace = 'kliv_mail'::regnamespace AND relkind = 'v' AND relname !~ '^_'});
my %setting = map { $_ => 1 } split /\n/, $node->sql(q{SELECT name FROM pg_settings WHERE name LIKE 'kliv\_mail.%'});
my %listed = map { $_ => 1 } map { s/\(.*//r } map { split ' ' } grep { !/held_by/ } @{ $outline{'README.md'}{table} };
is_deeply([ grep { !$exists{$_} } sort keys %listed ], [], 'every function and view of the table exists');
is_deeply([ grep { !$listed{$_} } sort keys %exists ], [], 'and every function and view is in the table');
is_deeply([ grep { !$exists{$_} && !$setting{"kliv_mail.$_"} && !/^(?:password|key|conf|git)$/ } join(' ', @text{sort keys %japanese}) =~ /\bkliv_mail\.(\w+)/g ],
    [], 'and what the text names');
is_deeply([ sort map { s/^kliv_mail\.//r } map { $_->{name} } @{ $description->{functions} } ],
    [ sort split /\n/, $node->sql(q{SELECT proname FROM pg_proc WHERE pronamespace = 'kliv_mail'::regnamespace AND proname !~ '^_'}) ],
    'describe() tells every function');
is($node->sql(q{
    SELECT 'function ' || proname FROM pg_proc
    WHERE pronamespace = 'kliv_mail'::regnamespace AND proname !~ '^_' AND obj_description(oid, 'pg_proc') IS NULL
    UNION ALL SELECT 'view ' || relname FROM pg_class
    WHERE relnamespace = 'kliv_mail'::regnamespace AND relkind = 'v' AND relname !~ '^_' AND obj_description(oid, 'pg_class') IS NULL
    UNION ALL SELECT 'column ' || relname || '.' || attname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0
    WHERE relnamespace = 'kliv_mail'::regnamespace AND relkind = 'v' AND relname !~ '^_' AND col_description(attrelid, attnum) IS NULL
    UNION ALL SELECT 'setting ' || name FROM pg_settings WHERE name LIKE 'kliv\_mail.%' AND coalesce(short_desc, '') = ''}),
    '', 'every function, view, column and setting carries its description');

# The statuses and what holds a delivery are words of the views.
my ($states) = $text{'README.md'} =~ /^(A delivery is .*?)\n\n/ms;
my $definition = $node->sql(q{
    SELECT col_description('kliv_mail.deliveries'::regclass, attnum) FROM pg_attribute
    WHERE attrelid = 'kliv_mail.deliveries'::regclass AND attname IN ('status', 'held_by')});
is_deeply([ grep { $definition !~ /\b$_\b/ } grep { $_ ne 'held_by' } $states =~ /`(\w+)`/g ], [], 'every status named is one');
my ($holds) = $states =~ /`held_by` (.*?)\)/;
is_deeply([ grep { $definition !~ /\b$_\b/ } $holds =~ /(\w+)(?=,| or|$)/g ], [], 'and everything that holds one');

is($node->try(q{SELECT kliv_mail.send('m@example.com', 'x', 'x', message_type => 'marketing')})->{state}, '55000', 'marketing mail needs a way to unsubscribe');
is($node->try(q{SELECT kliv_mail.send('m@example.com', 'x', 'x', message_type => 'marketing', headers => '{"List-Unsubscribe": "<https://shop.example/u>"}')})->{state},
    '', '... a header of its own');
is($node->try(q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://shop.example/unsubscribe');
                SELECT kliv_mail.send('m@example.com', 'x', 'x', message_type => 'marketing')})->{state},
    '', '... or the page of the brand');
$node->stop;

# ---- make's targets ----

my $help = qx{make -s help};
my %target = map { $_ => 1 } $help =~ /^(\S+):/mg;
my @named = grep { $_ ne 'install' } map { $_->[1] =~ /^(?:\w+=\S+ )*make (?:\w+=\S+ )*([a-z][\w-]*)/mg } @$blocks, map { [ '', $_ ] } @{ $outline{'README.md'}{code} };
cmp_ok(scalar(@named), '>=', 3, 'the README names targets of make');
is_deeply([ grep { !$target{$_} } @named ], [], '... that make help lists');

done_testing();
