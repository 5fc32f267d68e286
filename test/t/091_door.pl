# http_request() as a gateway calls it: an account set up and a mail's trouble found by
# forms alone, a recipient's page, webhooks; nothing that a stranger can store becomes
# markup on any page, and no password stands in an answer or in the log.
use strict;
use warnings;
use JSON::PP;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use MIME::Base64 qw(decode_base64 encode_base64);
use PostgreSQL::Test::Utils;
use Test::More;

my $json = JSON::PP->new->canonical->utf8;
my $tls = KlivMail::Tls->new(PostgreSQL::Test::Utils::tempdir() . '/tls');
my ($certificate, $key) = $tls->certificate('good');
my $password = 'Right-CANARY-4711';
my $smtp = KlivMail::SmtpServer->start(tls => 1, cert => $certificate, key => $key, auth => ["app:$password"]);
my $node = KlivMail::Cluster->new(
    'main',
    conf => {
        'kliv_mail.allowed_hosts'    => 'localhost',
        'kliv_mail.ca_file'          => $tls->ca_file,
        log_statement                => 'all',
        log_min_duration_statement   => 0,
        log_parameter_max_length     => -1 });
$node->sql(q{CREATE ROLE boss; CREATE ROLE reader; CREATE ROLE hooks;
    SELECT kliv_mail.grant_admin('boss'), kliv_mail.grant_read('reader'), kliv_mail.grant_ingest('hooks')});

# request METHOD, PATH, options: query, form => {...}, body, headers, role, dbname; {status, headers, body}.
sub request
{
    my ($method, $path, %option) = @_;
    my %headers = (host => 'mail.example', %{ $option{headers} // {} });
    my $body = $option{body};
    if ($option{form})
    {
        my $encode = sub { my ($text) = @_; utf8::encode($text) if utf8::is_utf8($text); $text =~ s/([^A-Za-z0-9_.-])/sprintf '%%%02X', ord $1/ge; return $text; };
        $body = join '&', map { $encode->($_) . '=' . $encode->($option{form}{$_}) } sort keys %{ $option{form} };
        $headers{'content-type'} //= 'application/x-www-form-urlencoded';
    }
    my $out = $node->sql(
        sprintf(q{SELECT status || ' ' || encode(convert_to(headers::text, 'UTF8'), 'hex') || ' ' || encode(body, 'hex')
            FROM kliv_mail.http_request('%s', $p$%s$p$, %s, $h$%s$h$, %s)},
            $method, $path, defined $option{query} ? "\$q\$$option{query}\$q\$" : 'NULL', $json->encode(\%headers),
            defined $body ? sprintf(q{decode('%s', 'hex')}, unpack 'H*', $body) : 'NULL'),
        role => $option{role} // 'boss', dbname => $option{dbname} // 'postgres');
    my ($status, $head, $content) = split / /, $out, 3;
    return { status => $status, headers => $json->decode(pack 'H*', $head), body => pack('H*', $content // '') };
}
sub get  { my ($path, %option) = @_; return request('GET', $path, %option); }
sub post { my ($path, $form, %option) = @_; return request('POST', $path, form => $form, %option); }

# A form that works answers 303, and where it leads is there.
sub works
{
    my ($path, $form, $where, $name) = @_;
    my $answer = post($path, $form);
    is($answer->{status}, 303, $name) or diag($answer->{body});
    my ($to, $query) = split /\?/, $answer->{headers}{location} // '';
    like($answer->{headers}{location} // '', $where, '... and leads on') if $where;
    my $page = get($to // '/', query => $query);
    is($page->{status}, 200, '... to a page');
    like($page->{body}, qr/role="status"/, '... that says what was done') if ($query // '') =~ /done=/;
    return $page->{body};
}

# ---- an account, from the first visit ----

my $first = get('/admin/settings')->{body};
like($first, qr{href="/admin/settings/new/$_"}, "the first visit shows $_") for qw(gmail sendgrid mailgun ses postmark sakura onamae resend other);
for my $provider (map { [ split /\|/ ] } split /\n/, $node->sql(q{SELECT name || '|' || array_to_string(required, ',') FROM kliv_mail.providers}))
{
    my ($name, $required) = @$provider;
    my $form = get("/admin/settings/new/$name")->{body};
    my @asked = $form =~ /<input id="(\w+)"[^>]* required/g;
    is_deeply([ sort @asked ], [ sort split /,/, $required ], "the form of $name asks for exactly what it requires");
}
my %account = (host => 'localhost', port => $smtp->port('tls'), encryption => 'tls', username => 'app', from_address => 'shop@example.com', from_name => 'Shop');
my $refused = post('/admin/settings/new/other', { %account, password => 'Wrong-CANARY-0815' });
is($refused->{status}, 422, 'a wrong password: the form again');
like($refused->{body}, qr{class="failed".*?<strong>Login</strong>}s, '... with the step that failed');
like($refused->{body}, qr{class="ok".*?<strong>Encryption</strong>}s, '... behind those that were well');
like($refused->{body}, qr{name="host" value="localhost"}, '... and what was typed');
is($node->sql(q{SELECT count(*) FROM kliv_mail._account}), 0, '... and nothing is saved');
like(works('/admin/settings/new/other', { %account, password => $password }, qr{^/admin/settings\?done=saved$}, 'the right one is saved'), qr/\*{4}\S*<\/dd>/, '... and shown masked');
is($node->sql(q{SELECT status FROM kliv_mail.smtp_settings WHERE account = 'custom'}), 'ok', '... tested');
my $test = post('/admin/settings/test', { account => 'custom', send_to => 'me@example.com' });
is($test->{status}, 200, 'the connection test answers with its steps');
is(scalar(() = $test->{body} =~ /class="ok"/g), 7, '... all seven of them well');
my ($test_mail) = $test->{body} =~ m{href="/admin/messages/(\d+)"};
ok($test_mail, '... and links the test mail');
is($node->sql("SELECT kliv_mail.wait($test_mail, '60 s')"), 'sent', '... which leaves');
like(get("/admin/messages/$test_mail")->{body}, qr/me\@example\.com.*250/s, '... and can be followed to the server\'s answer');

# What has no password keeps the saved one; another server does not get it.
works('/admin/settings/new/other', { %account, from_name => 'Shop 2', password => '' }, undef, 'without a password the saved one is kept');
is(post('/admin/settings/new/other', { %account, host => 'other.example', password => '' })->{status}, 422, '... but not for another server');
is($node->sql(q{SELECT host || ' ' || from_name FROM kliv_mail.smtp_settings WHERE account = 'custom'}), 'localhost Shop 2', '... which is not saved');
SKIP:
{
    my $public = $node->sql(q{SELECT encode(kliv_mail.public_key(), 'hex')});
    my ($sealed, $error) = run_command([ '/usr/bin/python3', '-c', 'import sys, base64; from nacl.public import SealedBox, PublicKey; print(base64.b64encode(SealedBox(PublicKey(bytes.fromhex(sys.argv[1]))).encrypt(sys.argv[2].encode())).decode())', $public, "custom\nlocalhost\n$password" ]);
    skip 'no PyNaCl for /usr/bin/python3', 2 if $sealed eq '';
    works('/admin/settings/new/other', { %account, password_sealed => $sealed, from_name => 'Sealed' }, undef, 'a sealed password');
    is($node->sql(q{SELECT from_name FROM kliv_mail.smtp_settings WHERE account = 'custom'}), 'Sealed', '... is opened');
}
unlike(get('//evil.example/admin')->{body}, qr{(?:href|action)="//}, 'no path makes a link to elsewhere');
is(post('/admin/settings/new/other', { %account, password_sealed => '!!' })->{status}, 422, 'one that is none is not');

# ---- sender, limits, pause, reset ----

works('/admin/sender', { account => 'custom', from_address => 'news@example.com', from_name => 'News', reply_to => '', allowed_senders => 'a@example.com,  @example.org' }, qr/done=sender/, 'the sender changes');
is($node->sql(q{SELECT from_address || ' ' || from_name || ' ' || allowed_senders::text FROM kliv_mail.smtp_settings WHERE account = 'custom'}), 'news@example.com News {a@example.com,@example.org}', '... as it was typed');
is(post('/admin/sender', { from_address => 'nobody' })->{status}, 422, '... to no address');
works('/admin/limits', { account => 'custom', hourly_limit => 70, daily_limit => 700 }, qr/done=limits/, 'the limits change');
is(post('/admin/limits', { hourly_limit => $_, daily_limit => 10 })->{status}, 422, "... not to '$_'") for ('-1', 'x', '1e3', '9999999999999');
is($node->sql(q{SELECT hourly_limit || ' ' || daily_limit FROM kliv_mail.smtp_settings WHERE account = 'custom'}), '70 700', '... and are what they were');
works('/admin/pause', { account => '', reason => 'stocktaking' }, qr/done=paused/, 'all mail is paused');
like(get('/admin')->{body}, qr/stocktaking/, '... and the overview says why');
works('/admin/resume', { account => '' }, qr/done=resumed/, '... and goes on');

# ---- why did it not arrive? ----

$smtp->set(plays => { nobody => [ 'rcpt', '550 5.1.1 <b onclick="canary()">no such user</b> {{x}} $y' ] });
my $bounced = $node->sql(q{SELECT kliv_mail.send('nobody@example.com', 'Your invoice', 'x')});
$node->sql("SELECT kliv_mail.wait($bounced, '60 s')");
like(get('/admin/messages', query => $_)->{body}, qr{href="/admin/messages/$bounced"}, "found by $_") for ('address=Nobody%40Example.com', 'subject=INVOICE', 'status=bounced', 'address=nobody%40example.com&subject=invoice&status=bounced');
unlike(get('/admin/messages', query => $_)->{body}, qr{href="/admin/messages/$bounced"}, "not by $_") for ('address=any%40example.com', 'subject=nothing', 'status=sent', "before=$bounced");
my $story = get("/admin/messages/$bounced")->{body};
like($story, qr/The address does not take mail/, 'its page says why');
like($story, qr/no such user/, '... with the server\'s words');
like(get('/admin')->{body}, qr{>Handed to a server 1<.*>Bounced or complained 1<}s, 'the overview counts the one that left and the one that did not');
$smtp->set(plays => {});
works("/admin/messages/$bounced/retry", {}, qr/done=not_retried&n=0/, 'while its address is suppressed it is not tried again');
is($node->sql("SELECT status FROM kliv_mail.messages WHERE id = $bounced"), 'bounced', '... and stays what it is');
works('/admin/suppressions/remove', { address => 'nobody@example.com', scope => 'all' }, undef, 'its suppression is ended');
works("/admin/messages/$bounced/retry", {}, qr/done=retry&n=1/, 'it is tried again');
is($node->sql("SELECT kliv_mail.wait($bounced, '60 s')"), 'sent', '... and arrives');
my $later = $node->sql(q{SELECT kliv_mail.send('later@example.com', 'Later', 'x', send_at => now() + interval '2 days')});
works("/admin/messages/$later/reschedule", { send_at => '2030-01-31T09:00' }, qr/done=reschedule/, 'another time');
is($node->sql("SELECT next_attempt_at = '2030-01-31 09:00+00' FROM kliv_mail.deliveries WHERE message_id = $later"), 't', '... by the clock that the page names');
is(post("/admin/messages/$later/reschedule", { send_at => $_ })->{status}, 422, "... not '$_'") for ('', 'tomorrow', '2030-13-01T00:00', 'infinity', '9999-12-31T00:00');
my $asks = get("/admin/messages/$later/cancel");
like($asks->{body}, qr{<form[^>]*method="post" action="/admin/messages/$later/cancel"}, 'cancelling asks');
is($node->sql("SELECT status FROM kliv_mail.messages WHERE id = $later"), 'scheduled', '... and GET does nothing');
works("/admin/messages/$later/cancel", {}, qr/done=cancel/, '... POST does');
is($node->sql("SELECT status FROM kliv_mail.messages WHERE id = $later"), 'cancelled', '... and it is cancelled');

# ---- suppressions, topics, templates ----

works('/admin/suppressions', { address => 'Gone@Example.com', scope => 'all', reason => 'asked by phone', expires_at => '2030-01-01' }, qr/done=suppressed/, 'an address is suppressed');
is($node->sql(q{SELECT address || ' ' || reason || ' ' || (expires_at = '2030-01-01 00:00+00') FROM kliv_mail.suppressions WHERE reason ~ 'phone'}), 'gone@example.com asked by phone true', '... as it was typed');
like(get('/admin/suppressions', query => 'address=GONE%40example.com')->{body}, qr/gone\@example\.com/, '... and found');
works('/admin/topics', { name => 'news', title => 'News', description => '', locale => '' }, qr/done=topic$/, 'a topic is saved');
works('/admin/topics', { name => 'news', title => "\x{304a}\x{77e5}\x{3089}\x{305b}", description => '', locale => 'ja' }, qr/done=topic$/, '... in Japanese, too');
works('/admin/topics', { name => 'offers', title => 'Offers', description => 'Now and then', locale => '' }, qr/done=topic$/, '... and another one');
works('/admin/templates', { locale => '' }, qr/done=starters/, 'starter templates');
works('/admin/templates/edit', { name => 'hello', locale => '', subject => 'Hello, $who', body => "Hello **\$who**,\r\n\r\nsecond", variables => '{"who": {"example": "<i>Ana</i>"}}',
    format => 'markdown', message_type => 'transactional', plain_text => '', description => '', publish => 'no' }, qr/version=1&done=draft/, 'a template is saved as a draft');
is($node->sql(q{SELECT version IS NULL FROM kliv_mail.templates WHERE name = 'hello'}), 't', '... which is not in use');
like(get('/admin/templates/document', query => 'name=hello&version=1')->{body}, qr{<strong>&lt;i&gt;Ana}, '... shown with its example, escaped');
my $document = get('/admin/templates/document', query => 'name=hello')->{headers}{'content-security-policy'};
like($document, qr/^sandbox; default-src 'none'/, '... in a sandbox');
works('/admin/templates/publish', { name => 'hello', locale => '', version => 1 }, qr/done=published/, '... and published');
is($node->sql(q{SELECT version FROM kliv_mail.templates WHERE name = 'hello'}), '1', '... is in use');
works('/admin/templates/edit', { name => 'hello', locale => 'pt_br', subject => 'Ola', body => 'x', format => 'markdown', message_type => 'transactional', publish => 'yes' }, qr/locale=pt-BR&version=1/, 'a locale as people write it');
my $broken = post('/admin/templates/edit', { name => 'hello', locale => '', subject => 'x', body => '{{#a}}', format => 'markdown', message_type => 'transactional', publish => 'yes' });
is($broken->{status}, 422, 'a template with a fault');
like($broken->{body}, qr/\{\{#a\}\}<\/textarea>/, '... is shown as it was typed');
works('/admin/templates/delete', { name => 'hello', locale => '' }, qr/done=template_deleted/, '... and deleted');

# ---- the recipient's page ----

$node->sql(q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://mail.example/u')});
my ($token) = $node->sql(q{SELECT kliv_mail.unsubscribe_url('ana@example.com', 'news')}) =~ /token=([\w-]+)/;
my $sees = sub { return $node->sql(q{SELECT coalesce(string_agg(scope, ' ' ORDER BY scope), '') FROM kliv_mail.suppressions WHERE address = 'ana@example.com'}); };
my %visitor = (role => 'hooks');
my $page = get("/u/$token", %visitor);
is($page->{status}, 200, 'the link shows a page');
like($page->{body}, qr/<h2>News<\/h2>/, '... with the topic');
unlike($page->{body}, qr/ana\@/, '... and does not tell the address');
like(get('/u', query => "token=$token", %visitor)->{body}, qr/<h2>News/, '... also as unsubscribe_url() writes it');
like(get("/u/$token", headers => { 'Accept-Language' => 'ja' }, %visitor)->{body}, qr/<h2>\xe3\x81\x8a/, '... in Japanese');
request($_, "/u/$token", %visitor) for qw(GET HEAD);
is($sees->(), '', 'looking leaves nothing');
my $one = request('POST', "/u/$token", headers => { 'Content-Type' => 'application/x-www-form-urlencoded' }, body => 'List-Unsubscribe=One-Click', %visitor);
is("$one->{status} " . $sees->(), '200 news', 'one click leaves the topic (RFC 8058)');
my $again = post("/u/$token", { do => 'choose', topic_news => 'yes', topic_offers => 'yes' }, %visitor);
is("$again->{status} $again->{headers}{location} " . $sees->(), "303 /u/$token?done=choose ", 'chosen again');
# As forms of either kind, with headers that libraries give their parts, and as programs within a browser post it.
my $part = qq{--b\r\nContent-Disposition: form-data; name="List-Unsubscribe"%s\r\n\r\nOne-Click\r\n--b--\r\n};
my $click = 'List-Unsubscribe=One-Click';
for my $case (
    [ 'multipart/form-data; boundary=b', sprintf $part, '' ],
    [ 'Multipart/Form-Data; boundary=b', sprintf $part, "\r\nContent-Type: text/plain; charset=US-ASCII\r\nContent-Transfer-Encoding: 8bit" ],
    [ 'Application/X-WWW-Form-URLEncoded', $click ], [ 'application/x-www-form-urlencoded', "$click\r\n" ], [ 'text/plain;charset=UTF-8', $click ], [ undef, $click ],
    [ 'text/plain', $click, Origin => 'moz-extension://7f3a', 'Sec-Fetch-Site' => 'cross-site' ], [ 'application/x-www-form-urlencoded', $click, Origin => 'null' ])
{
    my ($type, $body, %more) = @$case;
    post("/u/$token", { do => 'choose', topic_news => 'yes', topic_offers => 'yes' }, %visitor);
    my $answer = request('POST', '/u', query => "token=$token", headers => { %more, $type ? ('Content-Type' => $type) : () }, body => $body, %visitor);
    is("$answer->{status} " . $sees->(), '200 news', 'one click as ' . join ' ', $type // 'nothing', %more);
}
for my $case ([ 'text/plain', 'x' ], [ 'text/plain', "x\n$click" ], [ 'multipart/form-data; boundary=b', sprintf($part, '') =~ s/One-Click/Two/r ])
{
    is(request('POST', '/u', query => "token=$token", headers => { 'Content-Type' => $case->[0] }, body => $case->[1], %visitor)->{status}, 415, 'another body is none');
}
post("/u/$token", { do => 'choose', topic_news => 'yes' }, %visitor);
is($sees->(), 'offers', 'the other one is left');
post("/u/$token", { do => 'leave' }, %visitor);
is($sees->(), 'news offers', 'and the first by the page\'s button');
post("/u/$token", { do => 'leave_all' }, %visitor);
is($sees->(), 'marketing news offers', 'all is left');
like(get("/u/$token", %visitor)->{body}, qr/You get none of these mails/, '... and the page says so');
post("/u/$token", { do => 'choose', topic_offers => 'yes' }, %visitor);
is($sees->(), 'news', 'one is chosen: that one comes again');
$node->sql(q{SELECT kliv_mail.suppress('ana@example.com', 'offers', 'by hand')});
post("/u/$token", { do => 'choose', topic_offers => 'yes', topic_news => 'yes' }, %visitor);
is($sees->(), 'offers', 'what an administrator stopped does not come again');
$node->sql(q{SELECT kliv_mail.suppress('ana@example.com', 'all', 'complained')});
my $fixed = get("/u/$token", %visitor)->{body};
like($fixed, qr/You get none of these mails/, 'after a complaint nothing comes');
unlike($fixed, qr/<form/, '... and the page promises no change');
post("/u/$token", { do => 'choose', topic_news => 'yes' }, %visitor);
is($sees->(), 'all offers', '... nor does a form make one');
my $bad = substr($token, 0, -2) . (substr($token, -2) eq 'AA' ? 'BB' : 'AA');
for my $wrong ($bad, 'x', '..', 'a' x 1500, '%00', "$token%20")
{
    my @answers = map { request($_, "/u/$wrong", form => $_ eq 'POST' ? { do => 'leave_all' } : undef, %visitor) } qw(GET POST);
    is_deeply([ map { $_->{status} =~ /^40[04]$/ } @answers ], [ 1, 1 ], 'no token: ' . substr $wrong, 0, 20);
    unlike($answers[0]{body}, qr/\@/, '... without a word about addresses');
}
is(post("/u/$token", { do => 'nothing' }, %visitor)->{status}, 400, 'a POST that says nothing');

# ---- webhooks ----

my %signed = (authorization => 'Basic ' . encode_base64('hook:s3cret', ''));
my $hook = sub { my ($provider, $headers, $body) = @_; my $a = request('POST', "/hooks/$provider", headers => $headers, body => $body, %visitor); return "$a->{status} $a->{body}"; };
is($hook->('postmark', \%signed, '{}'), '503 503', 'a webhook that is not configured is repeated');
$node->sql(q{SELECT kliv_mail.configure_webhook('postmark', secret => 'hook:s3cret')});
is($hook->('postmark', \%signed, $json->encode({ RecordType => 'Delivery', MessageID => 'x', Recipient => 'a@example.com', DeliveredAt => '2026-01-01T00:00:00Z' })), '200 0 changed', 'a signed one');
is($hook->('postmark', {}, '{}'), '401 401', 'without a signature');
is($hook->('postmark', { authorization => 'Basic eDp5' }, '{}'), '401 401', 'with another');
is($hook->('postmark', \%signed, '{'), '400 400', 'no JSON');
is($hook->('nobody', \%signed, '{}'), '404 404', 'an unknown provider');
is($hook->('postmark', \%signed, ' ' x 5_000_000), '413 413', 'too large');
is(get('/hooks/postmark', %visitor)->{headers}{allow}, 'POST', 'GET is none');

# ---- what strangers store is text, on every page ----

my $canary = q{"><script>canary()</script><b onclick='canary()'>&lt;{{x}}{{{y}}}$z${z}</title></textarea>};
my $literal = $canary =~ s/'/''/gr;
$node->sql(qq{
    SELECT kliv_mail.send('strange\@example.com', '$literal', 'x', tags => ARRAY['$literal'], metadata => jsonb_build_object('k', '$literal'), send_at => now() + interval '1 day', from_name => 'x');
    SELECT kliv_mail.save_topic('news', left('$literal', 200), '$literal');
    SELECT kliv_mail.suppress('strange2\@example.com', reason => '$literal');
    SELECT kliv_mail.set_brand(name => '$literal');
    UPDATE kliv_mail._delivery SET last_reply = '$literal', reason = '$literal', hint = '$literal', server_message_id = '$literal', status = 'bounced', bounce_type = 'hard' WHERE message_id = $bounced;
    INSERT INTO kliv_mail._report (source, key, at, kind, message_id, recipient, detail, account) VALUES ('bounce', 'k', now(), 'bounced', $bounced, 'nobody\@example.com', '$literal', '$literal');
    INSERT INTO kliv_mail._template_version SELECT 'strange', '', 1, '$literal', 'x', 'markdown', '$literal', 'transactional', '{}', NULL, '$literal', now(), 'x';
    INSERT INTO kliv_mail._template VALUES ('strange', '', 1);
    UPDATE kliv_mail._account SET from_name = '$literal', username = '$literal', reply_to = '$literal';
    UPDATE kliv_mail._quota SET held_until = now() + interval '1 hour', held_by = 'account', held_reason = '$literal', held_hint = '$literal', held_since = now();
    SELECT kliv_mail.pause('custom', '$literal')});
my $strange = $node->sql(q{SELECT max(id) FROM kliv_mail.messages});
my %shows = map { $_ => 1 } ('/admin', '/admin/settings', '/admin/messages', "/admin/messages/$bounced", "/admin/messages/$strange", '/admin/suppressions', '/admin/topics', '/admin/events', '/admin/templates');
my @marks;
for my $path (
    '/admin', '/admin?range=days', '/admin/settings', '/admin/settings/new', '/admin/settings/new/other', '/admin/settings/new/ses', '/admin/settings/test', '/admin/settings/reset', '/admin/sender', '/admin/limits', '/admin/pause',
    '/admin/resume', '/admin/messages', "/admin/messages/$bounced", "/admin/messages/$strange", (map { "/admin/messages/$strange/$_" } qw(retry cancel reschedule)), '/admin/suppressions',
    '/admin/suppressions/remove?address=strange2%40example.com&scope=all', '/admin/topics', '/admin/topics?name=news', '/admin/topics/delete?name=news', '/admin/templates', '/admin/templates/edit?name=strange',
    '/admin/templates/preview?name=strange', '/admin/templates/document?name=strange', '/admin/templates/delete?name=strange', '/admin/events', '/admin/health', "/u/$token")
{
    my ($at, $query) = split /\?/, $path;
    my $answer = get($at, query => $query, role => $at =~ m{^/u/} ? 'hooks' : 'boss');
    is($answer->{status}, 200, "$path is there") or diag($answer->{body});
    push @marks, $path if $answer->{body} =~ m{<script|<b onclick|\Q$canary\E}i;
    like($answer->{body}, qr{&lt;script&gt;canary}, '... and shows what is stored, as text') if $shows{$path};
}
# What the request itself brings.
for my $echo ([ '/admin/messages', 'address=%22%3E%3Cscript%3E&subject=%22%3E%3Cscript%3E' ], [ '/admin/suppressions', 'address=%22%3E%3Cscript%3E' ], [ '/admin/messages', 'done=%22%3E%3Cscript%3E&n=%3Cscript%3E' ],
    [ '/admin/pause', 'account=%22%3E%3Cscript%3E' ], [ '/admin/%3Cscript%3E', undef ], [ '/admin/settings/new/other', 'account=%22%3E%3Cscript%3E' ], [ '/admin', 'x=%22%3E%3Cscript%3E' ])
{
    push @marks, "@{[ map { $_ // '' } @$echo ]}" if get($echo->[0], query => $echo->[1])->{body} =~ /<script/i;
}
push @marks, 'suppressions POST' if post('/admin/suppressions', { address => $canary, scope => $canary, reason => $canary })->{body} =~ /<script/i;
push @marks, 'templates POST' if post('/admin/templates/edit', { name => $canary, subject => $canary, body => $canary, variables => $canary })->{body} =~ /<script/i;
is_deeply(\@marks, [], 'none of it is markup anywhere');
like(get("/admin/messages/$bounced", role => 'reader')->{body}, qr/canary/, 'a reader sees the pages');
unlike(get("/admin/messages/$bounced", role => 'reader')->{body}, qr/method="post"/, '... without a button that changes');

# Every attribute of a page's source is quoted, and nothing is put in unescaped.
for my $file (glob 'sql/pages/*.html')
{
    my $source = slurp_file($file);
    unlike($source, qr/\{\{[{&]/, "$file puts nothing in as it is");
    unlike($source, qr/\s[a-z-]+=\{\{|<script|\son\w+=|\sstyle=/, '... nor into an attribute without quotes, a script or a style');
}

# ---- reset ----

$node->sql(q{SELECT kliv_mail.resume('custom')});
works('/admin/settings/reset', { account => 'custom' }, qr/done=reset/, 'back to the platform');
is($node->sql(q{SELECT in_use FROM kliv_mail.smtp_settings WHERE account = 'custom'}), 'f', '... and the account is out of use');

# ---- other encodings ----

for my $encoding (qw(LATIN1 EUC_JP SQL_ASCII))
{
    $node->sql("CREATE DATABASE door_$encoding ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    $node->sql("CREATE EXTENSION kliv_mail CASCADE; SELECT kliv_mail.grant_admin('boss')", dbname => lc "door_$encoding");
    my $japanese = get('/admin', query => 'lang=ja', dbname => lc "door_$encoding");
    is($japanese->{status}, 200, "$encoding: a page in Japanese");
    like($japanese->{body}, $encoding eq 'LATIN1' ? qr/<h1>Overview/ : qr/<h1>\xe6\xa6\x82\xe8\xa6\x81/, $encoding eq 'LATIN1' ? '... is in English where there are no letters for it' : '... in UTF-8');
    is(request('POST', '/admin/pause', form => { reason => "\x{6642}" }, dbname => lc "door_$encoding")->{status}, $encoding eq 'LATIN1' ? 400 : 303, '... a form with what it may lack');
}

# ---- no page reads all of history ----

# Neither where no table was ever analyzed nor where all were.
$node->sql('CREATE DATABASE history');
$node->sql(q{CREATE EXTENSION kliv_mail CASCADE; SELECT kliv_mail.grant_admin('boss');
    ALTER TABLE kliv_mail._message SET (autovacuum_enabled = off); ALTER TABLE kliv_mail._delivery SET (autovacuum_enabled = off);
    ALTER TABLE kliv_mail._report SET (autovacuum_enabled = off); ALTER TABLE kliv_mail._event SET (autovacuum_enabled = off);
    ALTER TABLE kliv_mail._suppression SET (autovacuum_enabled = off);
    INSERT INTO kliv_mail._message (id, created_at, sender_role, message_type, subject, header_id, entity, recipients)
    SELECT n, now() - interval '2 days' - n * interval '1 minute', 'boss', 'transactional', 'Order ' || n, n, '', 1 FROM generate_series(1, 20000) AS n;
    INSERT INTO kliv_mail._delivery (id, message_id, recipient, kind, priority, route, status, bounce_type, created_at, attempts, doubts, account, finished_at, changed)
    SELECT n, n, 'r' || n || '@example.com', 'to', 1, '', CASE n % 50 WHEN 0 THEN 'bounced' ELSE 'sent' END, CASE n % 50 WHEN 0 THEN 'hard' END, now(), 1, 0, 'platform',
        now() - interval '15 days' - n * interval '1 minute', n FROM generate_series(1, 20000) AS n;
    INSERT INTO kliv_mail._report (source, key, at, kind, message_id, delivery_id, account, recipient)
    SELECT 'postmark', n, now() - n * interval '1 minute', 'delivered', n, n, 'platform', 'r' || n || '@example.com' FROM generate_series(1, 20000) AS n;
    INSERT INTO kliv_mail._event (id, at, kind, account, message_id) SELECT -n, now() - n * interval '1 minute', 'failed_over', 'custom', n FROM generate_series(1, 20000) AS n;
    INSERT INTO kliv_mail._suppression (address, scope, created_at, created_by) SELECT 's' || n || '@example.com', 'all', now(), 'boss' FROM generate_series(1, 20000) AS n;
    CREATE FUNCTION reads(path text, query text) RETURNS text LANGUAGE plpgsql SET search_path = public, pg_catalog AS $$
    DECLARE
        v_before jsonb := row_counts();
        v_status integer;
    BEGIN
        SELECT status INTO v_status FROM kliv_mail.http_request('GET', path, query);
        RETURN v_status || coalesce((SELECT string_agg(a.key || ' ' || (a.value::bigint - (v_before ->> a.key)::bigint), ',' ORDER BY a.key) FROM jsonb_each_text(row_counts()) AS a
            WHERE a.value::bigint - coalesce((v_before ->> a.key)::bigint, 0) > 250), ' few');
    END $$;
    CREATE FUNCTION row_counts() RETURNS jsonb LANGUAGE sql SET search_path = pg_catalog
    RETURN (SELECT coalesce(jsonb_object_agg(' ' || t.relname, t.seq_tup_read + coalesce(t.idx_tup_fetch, 0)), '{}') FROM pg_stat_xact_user_tables AS t WHERE t.schemaname = 'kliv_mail')},
    dbname => 'history');
for my $analyzed (0, 1)
{
    $node->sql('ANALYZE kliv_mail._message, kliv_mail._delivery, kliv_mail._report, kliv_mail._event, kliv_mail._suppression', dbname => 'history') if $analyzed;
    is($node->sql(q{SELECT count(*) FROM pg_class WHERE relnamespace = 'kliv_mail'::regnamespace AND relname ~ '^_(message|delivery|report|event|suppression)$' AND reltuples < 0}, dbname => 'history'),
        $analyzed ? 0 : 5, $analyzed ? 'analyzed tables' : 'tables that were never analyzed');
    for my $path ('/admin', '/admin?range=days', '/admin/messages', '/admin/messages?address=r77%40example.com', '/admin/messages?before=10000', '/admin/messages/77', '/admin/messages/77/retry',
        '/admin/messages/19999', '/admin/messages/19999/cancel', '/admin/events', '/admin/suppressions', '/admin/suppressions?address=s77%40example.com', '/admin/suppressions?after=s77%40example.com',
        '/admin/suppressions/remove?address=s77%40example.com&scope=all', '/admin/topics', '/admin/settings', '/admin/health')
    {
        my ($at, $query) = split /\?/, $path;
        is($node->sql(sprintf(q{SELECT reads('%s', %s)}, $at, defined $query ? "'$query'" : 'NULL'), dbname => 'history'), '200 few', "$path reads few rows");
    }
    is($node->sql(q{BEGIN; SELECT count(*) FROM kliv_mail.history('r77@example.com'); SELECT coalesce((row_counts() ->> ' _message')::bigint, 0) < 250; COMMIT}, dbname => 'history'),
        "1\nt", 'history() reads few messages');
}

# ---- no password anywhere ----

my $log = slurp_file($node->logfile);
unlike($log, qr/CANARY-(?:4711|0815)/, 'no password in the log');
like($log, qr/http_request\(/, '... which has the calls');
unlike($log, qr/43414e4152592d34373131/i, '... nor the bytes of a form');
$node->stop;
done_testing();
