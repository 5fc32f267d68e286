# dbi.pl HOST PORT USER FILE: the mail in the file by DBI (DBD::Pg), as one parameter.
#
# Copyright (c) 2026, the kliv_mail developers
use strict;
use warnings;
use DBI;
use JSON::PP;

my ($host, $port, $user, $file) = @ARGV;
open my $text, '<:raw', $file or die "$file: $!";
my $mail = decode_json(do { local $/; <$text> });
my $dbh = DBI->connect("dbi:Pg:dbname=postgres;host=$host;port=$port", $user, '', { RaiseError => 1 });
$dbh->do('SELECT kliv_mail.send(?)', undef, JSON::PP->new->encode({ %$mail, to => ['dbi@example.com'] }));
$dbh->disconnect;
