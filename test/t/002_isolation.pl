# Each file of test/specs by pg_isolation_regress, as a test of its own.
use strict;
use warnings;
use KlivMail::Regress;

KlivMail::Regress::run('specs', $ENV{KLIV_MAIL_ISOLATION});
