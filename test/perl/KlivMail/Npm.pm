# KlivMail::Npm: modules of Node for a test, in a folder of its own.
#
#	KlivMail::Npm::install($folder) or skip 'no Node', 4;
#	KlivMail::Npm::locked('web') or plan skip_all => 'no Node';
#
# Which, and in which versions, a package-lock.json says: test/node's, or the folder's own.
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

# The modules that a folder's lock file names, of just those versions.
sub locked
{
    my ($folder) = @_;
    run_command([ 'sh', '-c', 'node --version && npm --version' ]);
    return 0 if $?;
    return 1 if -d "$folder/node_modules";
    local $ENV{npm_config_cache} = PostgreSQL::Test::Utils::tempdir();
    run_command([ 'timeout', '180', 'npm', 'ci', '--silent', '--no-audit', '--no-fund', '--prefix', $folder ]);
    return $? == 0;
}

1;
