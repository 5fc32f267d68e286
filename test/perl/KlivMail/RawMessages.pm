# RawMessages.pm: raw_message() of every mail of a test file is what the server
# stored, byte for byte, less the server's own header lines.
#
# A test file calls nothing for it: KlivMail::SmtpServer hands its ledger over
# when it goes, and done_testing() makes one more test: it asks raw_message()
# about all that was sent, with one query for each database of each cluster.
# Where a mail that a server has is in no database by then, the file says so:
#
#	KlivMail::RawMessages::gone(qr/^q\d+\@/, 'its database is dropped');
#
# raw_message() gives what was sent last.  Where an account changes between the
# attempts of a mail that was in doubt, an earlier copy differs in its identity
# lines, and the file says so; then one of the copies of a mail that is "sent"
# must be equal:
#
#	KlivMail::RawMessages::changed('update_sender() between two attempts');
#
# By itself it lets pass only a mail whose outcome is not recorded: its row is
# claimed or in doubt, and raw_message() says that nothing was sent yet.
#
# Copyright (c) 2026, the kliv_mail developers
package KlivMail::RawMessages;

use strict;
use warnings;
use Digest::SHA ();
use Scalar::Util ();
use Test::More;
use Test2::API ();

my (@nodes, @servers);  # weak: they end when their tests let them go
my @stored;             # [Message-ID, recipient, SHA-256] of each mail that a server has
my %raw;                # Message-ID -> recipient -> SHA-256 -> 1: what raw_message() gave
my %unrecorded;         # Message-ID -> recipient -> 1
my %sent;               # Message-ID -> recipient -> 1: its delivery is sent
my @gone;               # [regular expression on the recipient, reason]
my $changed;            # reason

Test2::API::test2_stack()->top->follow_up(\&compare);

sub node { push @nodes, $_[0]; Scalar::Util::weaken($nodes[-1]); return; }
sub server { push @servers, $_[0]; Scalar::Util::weaken($servers[-1]); return; }
sub gone { push @gone, [ @_ ]; return; }
sub changed { ($changed) = @_; return; }

# All that a KlivMail::SmtpServer accepted; it adds no lines of its own, but a
# relay before it does.
sub ledger
{
    my ($server) = @_;
    if ($server->{behind_relay})
    {
        mail($_->{rcpt}[0], $server->message($_)) for grep { ($_->{mail_from} // '') ne '' } $server->accepted;
        return;
    }
    push @stored, map { [ $_->{message_id} // '', $_->{rcpt}[0], $_->{sha256} ] } $server->accepted;
    return;
}

# One mail as another server stored it.
sub mail
{
    my ($recipient, $bytes) = @_;
    $bytes =~ s/\r?\n/\r\n/g;
    $bytes =~ s/\A(?:(?:Return-Path|X-Original-To|Delivered-To|Received):[^\n]*\n(?:[ \t][^\n]*\n)*)+//;
    my ($id) = $bytes =~ /^Message-ID: <([^>]*)>\r$/m;
    push @stored, [ $id, $recipient, Digest::SHA::sha256_hex($bytes) ];
    return;
}

# What raw_message() gives in each database of a running node; of a mail that
# redirect_to sent elsewhere under '', as for any recipient.
sub ask
{
    my ($node) = @_;
    for my $dbname (split /\n/, $node->safe_psql('postgres', 'SELECT datname FROM pg_database WHERE datallowconn'))
    {
        my $rows = $node->safe_psql($dbname, q{
            SELECT to_regproc('kliv_mail.raw_message') IS NOT NULL AS here \gset
            \if :here
            SELECT m.header_id, CASE WHEN d.identity LIKE '%X-Kliv-Mail-Original-Recipient:%' THEN ''
                    ELSE encode(convert_to(d.recipient, 'UTF8'), 'hex') END,
                encode(sha256(CASE WHEN d.identity IS NOT NULL THEN kliv_mail.raw_message(m.id, d.recipient) END), 'hex'),
                d.status
            FROM (SELECT message_id, recipient, identity, attempts, 'waiting' AS status FROM kliv_mail._outbox
                  UNION ALL SELECT message_id, recipient, identity, attempts, status FROM kliv_mail._delivery) AS d
            JOIN kliv_mail._message AS m ON m.id = d.message_id
            WHERE d.attempts > 0 AND kliv_mail.is_address(d.recipient);
            \endif});
        for my $row (split /\n/, $rows)
        {
            my ($id, $recipient, $sha256, $status) = split /\|/, $row, -1;
            utf8::decode($recipient = pack 'H*', $recipient);
            $sent{$id}{$recipient} = 1 if $status eq 'sent';
            $unrecorded{$id}{$recipient} = 1 if $sha256 eq '';
            $raw{$id}{$recipient}{$sha256} = 1 if $sha256 ne '';
        }
    }
    return;
}

sub compare
{
    my ($trace) = @_;
    # A file that died has said enough.
    return unless ($trace->subname // '') =~ /done_testing/;
    ledger($_) for grep { defined } @servers;
    return unless @stored;
    for my $node (grep { defined } @nodes)
    {
        my $stopped = !$node->{_pid};

        # Without the launcher, so that nothing more is sent.
        if ($stopped)
        {
            $node->configure(shared_preload_libraries => '');
            $node->start;
        }
        ask($node);
        $node->stop if $stopped;
    }

    my @wrong;
    my %count = (equal => 0);
    my $raw_of = sub { my ($id, $recipient) = @_; return ($raw{$id} // {})->{$recipient} // ($raw{$id} // {})->{''}; };
    my %equal;      # Message-ID -> recipient -> copies
    for my $mail (@stored)
    {
        my ($id, $recipient, $sha256) = @$mail;
        my $raw = $raw_of->($id, $recipient) or next;
        $equal{$id}{$recipient}++ if $raw->{$sha256};
    }
    for my $mail (@stored)
    {
        my ($id, $recipient, $sha256) = @$mail;
        my $given = $raw_of->($id, $recipient);
        my ($gone) = grep { $recipient =~ $_->[0] } @gone;
        if ($given && $given->{$sha256}) { $count{equal}++; }
        elsif (!$given && ($unrecorded{$id} // {})->{$recipient}) { $count{'not recorded'}++; }
        elsif ($given && $changed && ($equal{$id}{$recipient} || !$sent{$id}{$recipient})) { $count{$changed}++; }
        elsif (!$given && $gone) { $count{ $gone->[1] }++; }
        else { push @wrong, "<$id> to $recipient: " . ($given ? 'other bytes' : 'in no database'); }
    }
    is(join("\n", splice(@wrong, 0, 20)), '', 'raw_message() gives each mail as its server stored it');
    note(join ', ', map { "$_: $count{$_}" } sort keys %count);
    return;
}

1;
