# gallery.pl FOLDER: the starter templates, and what Markdown has, as HTML, one file
# each, in FOLDER.  Run by test/gallery/run, which sets it up.
#
# Copyright (c) 2026, the kliv_mail developers
use strict;
use warnings;
use KlivMail::Cluster;
use MIME::Base64;
use PostgreSQL::Test::Utils;
use Test::More;

my ($folder) = @ARGV;
my $node = KlivMail::Cluster->new('gallery');
mkdir $folder or die "could not make $folder: $!";
$node->sql(q{SELECT kliv_mail.install_starter_templates();
    SELECT kliv_mail.set_brand(name => 'Example', color => '#0f766e', logo_url => 'https://example.com/logo.png',
        footer => 'example.com', postal_address => E'1 Main Street\nSpringfield')});
# What Markdown has, in both directions.
for my $locale ('en', 'ar')
{
    my $text = slurp_file("test/gallery/markdown.$locale.md") =~ s/'/''/gr;
    $node->sql("SELECT kliv_mail.save_template('markdown', 'Markdown', '$text', locale => '$locale', message_type => 'marketing')");
}
for (split /\n/, $node->sql(q{SELECT t.name || '.' || coalesce(t.locale, 'en') || ' ' || translate(encode(convert_to(p.html, 'UTF8'), 'base64'), E'\n', '')
    FROM kliv_mail.templates AS t, kliv_mail.preview_template(t.name, locale => t.locale) AS p}))
{
    my ($name, $html) = split / /;
    open my $file, '>', "$folder/$name.html" or die "could not write $folder/$name.html: $!";
    print $file decode_base64($html);
    close $file or die;
}
$node->stop;
is(scalar(() = glob("$folder/*.html")), 22, 'the mails as files');
done_testing();
