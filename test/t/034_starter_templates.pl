# The starter templates' HTML: a strict parser (html5lib) finds nothing wrong with it,
# neither as browsers read it nor as Outlook does, and what mail programs need is
# there.  How it looks is what make gallery looks at.
use strict;
use warnings;
use IPC::Run ();
use JSON::PP;
use KlivMail::Cluster;
use Test::More;

my $node = KlivMail::Cluster->new('main');
my $json = JSON::PP->new->utf8->canonical;

# What each HTML is, in JSON; the errors of the parser in 'errors'.
my $reader = <<'END';
import html5lib, json, re, sys
def parsed(html):
    parser = html5lib.HTMLParser(strict=False)
    return parser.parse(html), [f'{place}: {error} {more}' for place, error, more in parser.errors]
def outlook(html):
    # Outlook reads what stands between its conditions.
    return re.sub(r'<!--\[if mso\]>|<!\[endif\]-->', '', html)
def local(element):
    return element.tag.rsplit('}', 1)[-1] if isinstance(element.tag, str) else ''
def texts(element, inherited, inside, out):
    style = {**inherited, **dict(part.split(':', 1) for part in element.get('style', '').split(';') if ':' in part)}
    inside = inside + [element]
    if element.text and element.text.strip():
        out.append((element.text.strip(), style, inside))
    for child in element:
        if local(child) not in ('', 'style', 'head'):
            texts(child, style, inside, out)
        if child.tail and child.tail.strip():
            out.append((child.tail.strip(), style, inside))
def seen(html):
    tree, errors = parsed(html)
    every = [element for element in tree.iter() if local(element)]
    body = next(element for element in every if local(element) == 'body')
    out = []
    texts(body, {}, [], out)
    shown = [text for text in out if text[1].get('display') != 'none']
    return {
        'errors': errors + parsed(outlook(html))[1] + parsed(re.sub(r'<style>.*?</style>', '', html, flags=re.S))[1],
        'html': dict(tree.attrib), 'body': [body.get('lang'), body.get('dir')],
        'title': ''.join(''.join(element.itertext()) for element in every if local(element) == 'title'),
        'h1': len([1 for element in every if local(element) == 'h1']),
        'tables': [element.get('role') for element in every if local(element) == 'table' and any(local(inner) == 'h1' for inner in element.iter())],
        'no_alt': len([1 for element in every if local(element) == 'img' and not element.get('alt')]),
        'links': [element.get('href') for element in every if local(element) == 'a'],
        'attributes': sorted({name for element in every for name in element.attrib if name.startswith('on')}),
        'elements': sorted({local(element) for element in every}),
        'unstyled': [text[0] for text in shown if not ('font-family' in text[1] and 'color' in text[1] and 'font-size' in text[1] and 'line-height' in text[1])],
        'hidden': [text[0] for text in out if text[1].get('display') == 'none'],
        'first': out[0][0], 'shown': ' '.join(text[0] for text in shown)}
for line in sys.stdin:
    mail = json.loads(line)
    print(json.dumps({**mail, 'seen': seen(mail['html'])}))
END

sub mails
{
    my $rows = $node->sql(q{SELECT jsonb_build_object('name', t.name, 'locale', coalesce(t.locale, 'en'), 'subject', p.subject, 'html', p.html, 'text', p.plain_text)
        FROM kliv_mail.templates AS t, kliv_mail.preview_template(t.name, locale => t.locale) AS p ORDER BY t.name, t.locale});
    my ($out, $err) = ('', '');
    IPC::Run::run([ 'python3', '-c', $reader ], '<', \"$rows\n", '>', \$out, '2>', \$err) or die $err;
    return map { $json->decode($_) } split /\n/, $out;
}

is($node->sql('SELECT kliv_mail.install_starter_templates()'), 20, 'ten in each of two languages');
my %brand = (
    'without a brand' => q{SELECT kliv_mail.set_brand()},
    'with a name and an address' => q{SELECT kliv_mail.set_brand(name => 'A & <B>', postal_address => E'1 Main Street\nSpringfield', color => '#ffd400')},
    'with all' => q{SELECT kliv_mail.set_brand(logo_url => 'https://x.example/logo.png?a=1&b=2', footer => 'x.example', unsubscribe_url => 'https://x.example/u')});
for my $brand ('without a brand', 'with a name and an address', 'with all')
{
    $node->sql($brand{$brand});
    # The brand's links are in marketing mail alone.
    $node->sql(q{SELECT kliv_mail.save_template('letter', 'News', E'# News\n\n[Read](https://x.example/n "button") or [not](https://x.example/o).', message_type => 'marketing')})
      if $brand eq 'with all';
    my @mails = mails();
    is(scalar(@mails), $brand eq 'with all' ? 21 : 20, "$brand: the mails");
    for my $mail (@mails)
    {
        my ($seen, $name) = ($mail->{seen}, "$mail->{name} ($mail->{locale})");
        my @wrong;
        my $wrong = sub { push @wrong, $_[1] unless $_[0] };
        $wrong->(!@{ $seen->{errors} }, "the parser: @{ $seen->{errors} }");
        $wrong->($seen->{html}{lang} eq $mail->{locale} && $seen->{html}{dir} eq 'ltr' && "@{ $seen->{body} }" eq "$mail->{locale} ltr", 'lang and dir');
        $wrong->($seen->{title} eq $mail->{subject}, "title: $seen->{title}");
        $wrong->($seen->{h1} == 1, 'one h1');
        $wrong->(@{ $seen->{tables} } > 1 && !(grep { ($_ // '') ne 'presentation' } @{ $seen->{tables} }), 'role of the layout');
        $wrong->($seen->{no_alt} == 0, 'images have a text');
        $wrong->(@{ $seen->{links} } >= ($mail->{name} eq 'one-time-code' ? 0 : 1) && !(grep { !m{^https://} } @{ $seen->{links} }), "links: @{ $seen->{links} }");
        $wrong->(!@{ $seen->{attributes} } && !(grep { /^(?:script|link|form|input|iframe|object|svg|base)$/ } @{ $seen->{elements} }), 'elements');
        $wrong->(!@{ $seen->{unstyled} }, "inline styles: @{ $seen->{unstyled} }");
        $wrong->(@{ $seen->{hidden} } == 1 && $seen->{hidden}[0] eq $seen->{first}, 'a preheader, first');
        # Lists of mail go on with the body, where there is room.
        $wrong->($mail->{name} ne 'one-time-code' || ("$seen->{first} $mail->{subject}" !~ /482 913/ && length($seen->{first}) > 150), 'no code in what lists of mail show');
        $wrong->(length($mail->{html}) < 40 * 1024, 'size');
        # What the text says, but for its lines and URLs, the HTML says, too.
        my %words = map { $_ => 1 } $seen->{shown} =~ /(\w+)/g;
        my ($told) = $mail->{text} =~ s/https:\S+//gr;
        $wrong->(!(grep { !$words{$_} } $told =~ /(\w+)/g), 'the words of the text: ' . join ' ', grep { !$words{$_} } $told =~ /(\w+)/g);
        is(join("\n", @wrong), '', "$brand: $name");
    }
}

# ---- other encodings ----

for my $case ([ 'LATIN1', '22P05', 10, '22P05' ], [ 'EUC_JP', '', 0, '' ], [ 'SQL_ASCII', '', 0, '' ])
{
    my ($encoding, $state, $english) = @$case;
    my $database = lc $encoding;
    $node->sql("CREATE DATABASE $database TEMPLATE template0 ENCODING '$encoding'");
    $node->sql('CREATE EXTENSION kliv_mail CASCADE', dbname => $database);
    my $result = $node->try('SELECT kliv_mail.install_starter_templates()', dbname => $database);
    is($result->{state}, $state, "$encoding: all of them");
    like($result->{hint}, qr/install_starter_templates\('en'\)/, '... says what can be had') if $state;
    is($node->sql(q{SELECT kliv_mail.install_starter_templates('en')}, dbname => $database), $english, '... the English ones');
}

$node->stop;
done_testing();
