# Site.pm: what the browser tests look at: a server with mail of all fates, its roles,
# and the gateway before it.
#
#	my $site = Site->new(names => $names);    # KlivMail::Names, where hosts are played
#	$site->{node}->sql(...); $site->{origin}
#	$site->script('walk.js', ...)             # its lines, each a test
#
# Copyright (c) 2026, the kliv_mail developers
package Site;

use strict;
use warnings;
use Cwd qw(getcwd);
use IPC::Run ();
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

sub new
{
    my ($class, %option) = @_;
    my $self = bless { folder => PostgreSQL::Test::Utils::tempdir(), %option }, $class;
    $self->{tls} = KlivMail::Tls->new("$self->{folder}/tls");
    my $smtp = $self->{smtp} = KlivMail::SmtpServer->start(plain => 1);
    my $node = $self->{node} = KlivMail::Cluster->new(
        'main', start => 0,
        platform_url => 'smtp://127.0.0.1:' . $smtp->port,
        conf => {
            'kliv_mail.platform_hourly_limit' => 1000, 'kliv_mail.platform_daily_limit' => 10000,
            'kliv_mail.allowed_hosts' => 'localhost,127.0.0.0/8', 'kliv_mail.ca_file' => $self->{tls}->ca_file,
            'kliv_mail.connect_timeout' => '10s', log_statement => 'all', log_min_duration_statement => 0
        });
    {
        local %ENV = (%ENV, $option{names} ? $option{names}->environment : ());
        $node->start;
    }
    $node->sql(q{CREATE EXTENSION kliv_mail CASCADE;
        CREATE ROLE boss LOGIN PASSWORD 'CANARY-of-boss'; CREATE ROLE reader LOGIN PASSWORD 'CANARY-of-reader';
        CREATE ROLE hooks LOGIN PASSWORD 'CANARY-of-hooks';
        SELECT kliv_mail.grant_admin('boss'), kliv_mail.grant_read('reader'), kliv_mail.grant_ingest('hooks')});
    my $hba = slurp_file($node->data_dir . '/pg_hba.conf');
    unlink $node->data_dir . '/pg_hba.conf';
    append_to_file($node->data_dir . '/pg_hba.conf', "local all boss,reader,hooks scram-sha-256\n$hba");
    $node->reload;
    # What is said from here on is looked through for passwords.
    $self->{log_begins} = -s $node->logfile;

    local %ENV = (
        %ENV, PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'postgres', PGUSER => 'hooks', PGPASSWORD => 'CANARY-of-hooks',
        KLIV_MAIL_WEB_LISTEN => '127.0.0.1:0');
    $self->{gateway_log} = '';
    $self->{gateway} = IPC::Run::start([ 'node', 'web/server.js' ], '<', \undef, '>', \$self->{gateway_log}, '2>&1', IPC::Run::timer(3600));
    $self->{gateway}->pump until $self->{gateway_log} =~ /"origin":"([^"]*)"/ || !$self->{gateway}->pumpable;
    $self->{origin} = $1 // die "the gateway did not start: $self->{gateway_log}";
    return $self;
}

# Runs a program of this folder: a line "ok ..." or "not ok ..." of it is a test.
sub script
{
    my ($self, $name, @arguments) = @_;
    mkdir 'pictures';
    my ($out, $count) = ('', 0);
    my $run = IPC::Run::start([ 'node', "test/browser/$name", $self->{origin}, getcwd() . '/pictures', @arguments ], '<', \undef, '>', \$out, '2>&1', IPC::Run::timer(7200));
    my $line = sub {
        my ($text) = @_;
        $count++ if $text =~ /^(?:not )?ok /;
        $text =~ /^(not )?ok (.*)/ ? ok(!$1, $2) : diag($text);
    };
    while ($run->pumpable)
    {
        $run->pump;
        # The gateway's log must not fill its pipe meanwhile.
        $self->{gateway}->pump_nb;
        $line->($1) while $out =~ s/\A(.*)\n//;
    }
    $run->finish;
    $line->($_) for split /\n/, $out;
    ok(!$run->full_result && $count > 0, "$name: went to its end");
    return;
}

sub end
{
    my ($self) = @_;
    $self->{gateway}->signal('TERM');
    $self->{gateway}->finish;
    ok(!$self->{gateway}->full_result, 'the gateway ends when it is told to');
    my $log = substr slurp_file($self->{node}->logfile), $self->{log_begins};
    unlike($self->{gateway_log}, qr/CANARY/, 'no password in the log of the gateway');
    my $hex = unpack 'H*', 'CANARY';
    unlike($log, qr/CANARY|$hex/i, '... nor of the server, in clear or as bytes');
    $self->{node}->stop;
    return;
}

1;
