# Names.pm: real host names and ports, played on this machine (test/names.c).
#
#	my $names = KlivMail::Names->new($folder);
#	my $address = $names->address;                   # one of 127.0.1.*, anew each time
#	my $smtp = KlivMail::SmtpServer->start(address => $address, tls => 1, ...);
#	$names->add('smtp.gmail.com', $address, 465 => $smtp->port('tls'));
#	{ local %ENV = (%ENV, $names->environment); $node->start; }
#
# Copyright (c) 2026, the kliv_mail developers
package KlivMail::Names;

use strict;
use warnings;

sub new
{
    my ($class, $folder) = @_;
    my $self = bless { library => "$folder/names.so", file => "$folder/names", used => 0 }, $class;
    my $compiler = $ENV{CC} // 'cc';
    system("$compiler -O1 -fPIC -shared -o '$self->{library}' test/names.c -ldl") == 0 or die "could not compile test/names.c";
    $self->_append('');
    return $self;
}

sub address
{
    my ($self) = @_;
    return '127.0.1.' . ++$self->{used};
}

# port => real port, ...
sub add
{
    my ($self, $name, $address, %port) = @_;
    $self->_append("$name $address $_ $port{$_}\n") for sort { $a <=> $b } keys %port;
    return;
}

# A name without address, and one whose look-up takes its time.
sub missing { $_[0]->_append("$_[1] - 0 0\n"); return; }
sub stalled { $_[0]->_append("$_[1] ... 0 0\n"); return; }

# What a server must be started with to live in this world.
sub environment
{
    my ($self) = @_;
    return (LD_PRELOAD => $self->{library}, KLIV_MAIL_TEST_NAMES => $self->{file});
}

sub _append
{
    my ($self, $text) = @_;
    open my $file, '>>', $self->{file} or die "could not write $self->{file}: $!";
    print $file $text;
    close $file or die "could not write $self->{file}: $!";
    return;
}

1;
