# KlivMail::Npm: modules of Node for a test, in a folder of its own.
#
#	KlivMail::Npm::install($folder) or skip 'no Node', 4;
#
# Which, and in which versions, test/node/package-lock.json says.
#
# Copyright (c) 2026, the kliv_mail developers
package KlivMail::Npm;

use strict;
use warnings;
use File::Copy qw(copy);
use PostgreSQL::Test::Utils;

# Installed for this run only, where programs in the folder find them; false where
# there is no Node, no npm or no registry.
sub install
{
    my ($folder) = @_;
    run_command([ 'sh', '-c', 'node --version && npm --version' ]);
    return 0 if $?;
    local $ENV{npm_config_cache} = "$folder/npm";
    local $ENV{npm_config_update_notifier} = 'false';
    copy("test/node/$_", "$folder/$_") or die "$_: $!" for 'package.json', 'package-lock.json';
    run_command([ 'timeout', '90', 'npm', 'ci', '--silent', '--no-audit', '--no-fund', '--prefix', $folder ]);
    return $? == 0 && -d "$folder/node_modules/pg";
}

1;
