# Each file of test/sql by pg_regress, as a test of its own.
use strict;
use warnings;
use KlivMail::Regress;

KlivMail::Regress::run('sql', $ENV{PG_REGRESS});
