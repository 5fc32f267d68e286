# Templates: the Mustache language's own test suite (MIT licence), which is not
# part of this project (found by KLIV_MAIL_CONFORMANCE or beside the checkout, else
# skipped); what HTML a parser of others sees in rendered mail, for nasty values in
# every place; sessions that keep a template compiled; many at once.
use strict;
use warnings;
use IPC::Run ();
use JSON::PP;
use KlivMail::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = KlivMail::Cluster->new('main', conf => { client_min_messages => 'warning' });
my $json = JSON::PP->new->utf8->canonical;

sub quoted { my ($text) = @_; $text =~ s/'/''/g; return "'$text'"; }

# ---- the language's own tests ----

my $folder = ($ENV{KLIV_MAIL_CONFORMANCE} // '../shared/conformance') . '/mustache';
SKIP:
{
    skip "no $folder", 1 unless -d $folder;
    my ($count, @wrong) = (0);
    for my $file (sort glob("$folder/*.json"))
    {
        my $tests = quoted(slurp_file($file));
        my @results = split /\n/, $node->sql(qq{SELECT (t ->> 'name') || '|' || coalesce(kliv_mail.render(t ->> 'template', t -> 'data', coalesce(t -> 'partials', '{}'))
            = t ->> 'expected', false) FROM jsonb_array_elements(($tests)::jsonb -> 'tests') AS t});
        $count += @results;
        push @wrong, map { "$file: $_" } grep { !/\|true$/ } @results;
    }
    is_deeply(\@wrong, [], "all $count cases of Mustache");
    is($count, 136, '... which are 136');
}

# ---- every place, every value ----

my @values = ('<script>alert(1)</script>', '](javascript:alert(1))', '`code`', 'a | b', "two\nlines", '{{firstName}} $firstName', '&lt;&amp;&#65;',
    q{"'><img src=x onerror=alert(1)>}, '**x** _y_ # z', 'javascript:alert(1)', "\x{5c71}" , '~~~', '-->', '</style></td></table>', '%3Cb%3E', 'kLmVaLuE000000');
my $markdown = <<'END';
{{% html }}
# H {{v}}

T {{v}} and *{{v}}* [L {{v}}](https://x.example/{{v}}?q={{v}} "T {{v}}") [B {{v}}](https://x.example/b/{{v}} "button") [U]({{v}})

![A {{v}}](https://x.example/{{v}}.png "T {{v}}") `C {{v}}`

| {{v}} |
|---|
| D {{v}} |

```
P {{v}}
```

- I {{v}}

> Q {{v}}

https://x.example/auto/{{v}}

<p title="R {{v}}" data-x=S{{v}} style="color:{{v}}">W {{v}}</p><a href="{{v}}">X</a><a href="https://x.example/{{v}}">Y</a>
END
$node->sql("SELECT kliv_mail.save_template('places', 'S', " . quoted($markdown) . ", variables => '{\"v\": {\"example\": \"e\"}}')");

$node->sql(q{SELECT kliv_mail.save_template('subject', 'S {{v}}', 'b')});

# What Python's parser sees: tags with their attributes, and the text.
my $reader = <<'END';
import html.parser, json, sys
class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.text = [], []
    def handle_starttag(self, tag, attributes):
        self.seen.append([tag, attributes])
    def handle_data(self, data):
        self.text.append(data)
print(json.dumps([[(r := Reader()).feed(page), r.close(), r.seen, ''.join(r.text)][2:] for page in json.load(sys.stdin)]))
END
utf8::encode($_) for @values;
my @rows = map { $json->decode($node->sql("SELECT to_json(p) FROM kliv_mail.preview_template('places', jsonb_build_object('v', " . quoted($_) . ')) AS p')) }
  'Zq7', @values;
my ($out, $in) = ('', $json->encode([ map { $_->{html} } @rows ]));
IPC::Run::run([ 'python3', '-c', $reader ], '<', \$in, '>', \$out) or die 'could not run python3';
my ($first, @read) = @{ $json->decode($out) };
my ($tags, $text) = @$first;
my $norm = sub { my ($t) = @_; $t =~ s/\s+/ /g; $t };
for my $i (0 .. $#values)
{
    my $value = $values[$i];
    utf8::decode($value);
    my ($its_tags, $its_text) = @{ $read[$i] };
    # A line end is a <br>, which is a tag more.
    my @its = grep { $_->[0] ne 'br' } @$its_tags;
    is(join(' ', map { $_->[0] } @its), join(' ', grep { $_ ne 'br' } map { $_->[0] } @$tags), "the same tags: $values[$i]")
      or next;
    my @wrong;
    for my $j (0 .. $#its)
    {
        my %were = map { $_->[0] => $_->[1] } @{ $tags->[$j][1] };
        for (@{ $its[$j][1] })
        {
            my ($name, $is) = @$_;
            my $was = delete $were{$name};
            my $bytes = $value;
            utf8::encode($bytes);
            $bytes =~ s/([^A-Za-z0-9._~-])/sprintf '%%%02X', ord $1/ge;
            my %may;
            for my $form ($value, $bytes, $value =~ s/[^A-Za-z0-9#.,% -]//gr)
            {
                my $wanted = $was // '';
                $wanted =~ s/Zq7/$form/g;
                $may{$wanted} = 1;
            }
            push @wrong, "$name=$is" unless defined $was && $may{ $is // '' };
            push @wrong, "$name=$is" if $name =~ /^(?:href|src)$/ && ($is // '') !~ m{^(?:https://|$)};
        }
        push @wrong, keys %were;
    }
    is_deeply(\@wrong, [], '... the same attributes, with the value');
    my $wanted = $text =~ s/Zq7/$value/gr;
    is($norm->($its_text), $norm->($wanted), '... and the same text') or diag($its_text);
    my $subject = "SELECT subject FROM kliv_mail.preview_template('subject', jsonb_build_object('v', " . quoted($values[$i]) . '))';
    if ($value =~ /\n/) { is($node->try($subject)->{state}, '22023', '... is no subject') }
    else                { is($node->sql($subject), "S $values[$i]", '... the subject is the value') }
    like($rows[ $i + 1 ]{plain_text}, qr/Q \Q@{[ $value =~ s,\n.*,,sr ]}\E/, '... and the text part has it');
}

# ---- what a session keeps ----

$node->sql(q{SELECT kliv_mail.save_template('part', 's', 'one'); SELECT kliv_mail.save_template('news', 'N', '{{> part}} $firstName')});
my $session = $node->session;
my $body = q{SELECT convert_from(m.entity, 'UTF8') FROM kliv_mail._message AS m WHERE m.id = };
my $id = $session->query(q{SELECT kliv_mail.send_template('news', 'a@x.example', '{"firstName": "Ana"}')});
like($node->sql($body . $id), qr/^one Ana\r$/m, 'a mail of a template with a partial');
$node->sql(q{SELECT kliv_mail.save_template('part', 's', 'two')});
$id = $session->query(q{SELECT kliv_mail.send_template('news', 'a@x.example', '{"firstName": "Ana"}')});
like($node->sql($body . $id), qr/^two Ana\r$/m, 'another session changed the partial');
$node->sql(q{SELECT kliv_mail.set_brand(name => 'Brand & Co', postal_address => 'Street 1')});
$id = $session->query(q{SELECT kliv_mail.send_template('news', 'a@x.example', '{"firstName": "Ana"}')});
like($node->sql($body . $id), qr/Brand & Co/, '... and the brand');
$session->query('BEGIN');
$session->query(q{SELECT kliv_mail.save_template('part', 's', 'three')});
$session->query(q{SELECT kliv_mail.send_template('news', 'a@x.example', '{"firstName": "Ana"}')});
$session->query('ROLLBACK');
$id = $session->query(q{SELECT kliv_mail.send_template('news', 'a@x.example', '{"firstName": "Ana"}')});
like($node->sql($body . $id), qr/^two Ana\r$/m, 'a change that was rolled back is none');

# ---- a newsletter to 3,000, three of them bad ----

$node->sql(q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://x.example/u');
    SELECT kliv_mail.save_template('letter', 'News for $firstName', 'Hello $firstName, $email', message_type => 'marketing')});
is($node->sql(q{WITH b AS (SELECT * FROM kliv_mail.send_template_batch('letter',
        (SELECT array_agg(CASE WHEN n % 1000 = 0 THEN 'bad ' || n ELSE 'r' || n || '@x.example' END ORDER BY n) FROM generate_series(1, 3000) AS n),
        (SELECT array_agg(jsonb_build_object('firstName', 'F' || n) ORDER BY n) FROM generate_series(1, 3000) AS n), on_invalid => 'skip'))
    SELECT count(message_id) || '|' || count(error) || '|' || string_agg(error, ', ' ORDER BY ordinality) FROM b}),
    '2997|3|recipients: "bad 1000" is not an e-mail address, recipients: "bad 2000" is not an e-mail address, recipients: "bad 3000" is not an e-mail address',
    '2,997 queued, three told');
is($node->sql(q{SELECT count(*) FROM kliv_mail._message AS m JOIN kliv_mail._outbox AS o ON o.message_id = m.id
    WHERE m.template = 'letter' AND m.subject = 'News for F' || substr(split_part(o.recipient, '@', 1), 2)
      AND convert_from(m.entity, 'UTF8') LIKE '%' || o.recipient || '%' AND convert_from(m.entity, 'UTF8') LIKE '%https://x.example/u?token=%'}),
    2997, 'each to its own recipient');
is($node->sql(q{SELECT count(*) FROM kliv_mail._message AS m, LATERAL (SELECT count(DISTINCT x.a[1]) AS n
    FROM regexp_matches(convert_from(m.entity, 'UTF8'), 'r[0-9]+@x[.]example', 'g') AS x (a)) AS n WHERE m.template = 'letter' AND n.n <> 1}), 0, '... naming no other one');

done_testing();
