# What every real server of the tests needs before it starts: ports that are
# free, and files with its settings.
#
#	KlivMail::Server::free_ports(@names)            { name => port } as a list
#	KlivMail::Server::write_file($path, $text)      anew, whatever was there
#
# Copyright (c) 2026, the kliv_mail developers
package KlivMail::Server;

use strict;
use warnings;
use IO::Socket::INET;

# All are held open until all are chosen, so that they differ.
sub free_ports
{
    my %socket;
    for my $name (@_)
    {
        $socket{$name} = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 1)
          or die "no free port: $!";
    }
    return map { $_ => $socket{$_}->sockport } keys %socket;
}

sub write_file
{
    my ($path, $text) = @_;
    open my $file, '>', $path or die "could not write $path: $!";
    print $file $text;
    close $file or die "could not write $path: $!";
    return;
}

1;
