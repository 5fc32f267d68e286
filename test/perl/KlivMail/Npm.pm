# KlivMail::Npm: modules of Node for a test, in a folder of its own.
#
#	KlivMail::Npm::install($folder, 'pg@8') or skip 'no pg', 4;
#
# Copyright (c) 2026, the kliv_mail developers
package KlivMail::Npm;

use strict;
use warnings;
use PostgreSQL::Test::Utils;

# Installed for this run only, where programs in the folder find them; false where
# there is no Node, no npm or no registry.
sub install
{
    my ($folder, @modules) = @_;
    run_command([ 'sh', '-c', 'node --version && npm --version' ]);
    return 0 if $?;
    local $ENV{npm_config_cache} = "$folder/npm";
    local $ENV{npm_config_update_notifier} = 'false';
    run_command([ 'timeout', '60', 'npm', 'install', '--silent', '--no-audit', '--no-fund', '--no-save', '--prefix', $folder, @modules ]);
    return $? == 0 && !grep { !-d "$folder/node_modules/" . s/\@.*//r } @modules;
}

1;
