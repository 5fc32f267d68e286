# The owner of a database who is no superuser, and administrator of its mail,
# tries each way there is to have code run as another role: whatever he makes,
# our functions, views and the sender run none of it.  (What goes through
# pgcrypto, keys and labels: 057_tenant.)
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main', extension => 0,
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    conf => { 'kliv_mail.platform_hourly_limit' => 100, 'kliv_mail.platform_daily_limit' => 100 });
$node->sql('CREATE ROLE tenant LOGIN; CREATE ROLE stranger; GRANT stranger TO tenant');
$node->sql('CREATE DATABASE tdb OWNER tenant');
$node->sql(q{CREATE EXTENSION kliv_mail CASCADE; SELECT kliv_mail.grant_admin('tenant')}, dbname => 'tdb');

# As a login of his own: SET ROLE could be reset.
sub tenant
{
    my ($sql) = @_;
    my ($out, $err) = ('', '');
    $node->psql('tdb', "\\set VERBOSITY verbose\n$sql", stdout => \$out, stderr => \$err, on_error_stop => 1, extra_params => [ '-U', 'tenant' ]);
    return KlivMail::Cluster::_outcome($out, $err // '');
}

is(tenant(q{
    CREATE SCHEMA mine;
    CREATE TABLE mine.ran (who name, session name, what text);
    GRANT USAGE ON SCHEMA mine TO PUBLIC;
    GRANT ALL ON mine.ran TO PUBLIC;
    CREATE FUNCTION mine.evil(what text) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO mine.ran VALUES (current_user, session_user, what);
        BEGIN
            ALTER ROLE tenant SUPERUSER;
        EXCEPTION WHEN insufficient_privilege THEN NULL;
        END;
        RETURN true;
    END $$;
    CREATE FUNCTION mine.evil_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM mine.evil('trigger'); RETURN coalesce(NEW, OLD); END $$;
    CREATE FUNCTION mine.evil_event() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM mine.evil('event'); END $$;
    SELECT mine.evil('himself')})->{state}, '', 'he has what he needs for the attempts');
is($node->sql('SELECT who, what FROM mine.ran', dbname => 'tdb'), 'tenant|himself', '... which is seen when it runs');

# ---- what the server or our rights refuse ----

for my $attempt (
    (map { "CREATE TRIGGER t BEFORE INSERT OR UPDATE OR DELETE ON kliv_mail.$_ FOR EACH ROW EXECUTE FUNCTION mine.evil_trigger()" }
        split /\n/, $node->sql(q{SELECT relname FROM pg_class WHERE relnamespace = 'kliv_mail'::regnamespace AND relkind = 'r'}, dbname => 'tdb')),
    'CREATE TRIGGER t INSTEAD OF UPDATE ON kliv_mail.deliveries FOR EACH ROW EXECUTE FUNCTION mine.evil_trigger()',
    q{CREATE RULE r AS ON INSERT TO kliv_mail._outbox DO ALSO SELECT mine.evil('rule')},
    q{CREATE INDEX i ON kliv_mail._outbox ((mine.evil(recipient)))},
    q{CREATE STATISTICS mine.s ON (mine.evil(recipient)), id FROM kliv_mail._outbox},
    q{CREATE POLICY p ON kliv_mail._outbox USING (mine.evil('policy'))},
    q{ALTER TABLE kliv_mail._outbox ADD CHECK (mine.evil('check'))},
    q{ALTER TABLE kliv_mail._outbox ALTER kind SET DEFAULT mine.evil('default')::text},
    q{ALTER TABLE kliv_mail._outbox ENABLE ROW LEVEL SECURITY},
    'CREATE TABLE mine.child () INHERITS (kliv_mail._outbox)',
    'CREATE TABLE mine.refers (id bigint REFERENCES kliv_mail._message)',
    'ALTER TABLE kliv_mail._outbox OWNER TO tenant',
    q{CREATE FUNCTION kliv_mail._now(integer) RETURNS timestamptz LANGUAGE sql AS 'SELECT now()'},
    q{CREATE OR REPLACE FUNCTION kliv_mail._now() RETURNS timestamptz LANGUAGE sql AS 'SELECT now()'},
    'ALTER FUNCTION kliv_mail._now() RENAME TO _then', 'ALTER FUNCTION kliv_mail._availability(text, timestamptz, kliv_mail._known_account) RESET ALL',
    'ALTER FUNCTION kliv_mail._availability(text, timestamptz, kliv_mail._known_account) SET search_path = mine',
    'DROP FUNCTION kliv_mail._now() CASCADE', 'CREATE OPERATOR kliv_mail.= (LEFTARG = text, RIGHTARG = name, FUNCTION = mine.evil)',
    'CREATE CAST (text AS jsonb) WITH FUNCTION mine.evil(text) AS IMPLICIT', 'CREATE CAST (text AS boolean) WITH FUNCTION mine.evil(text) AS IMPLICIT',
    'CREATE CAST (kliv_mail.attachment AS boolean) WITH INOUT AS IMPLICIT',
    'CREATE OPERATOR CLASS mine.c DEFAULT FOR TYPE text USING btree AS OPERATOR 1 <',
    'ALTER OPERATOR pg_catalog.= (text, text) SET (RESTRICT = NONE)',
    'ALTER EXTENSION kliv_mail ADD FUNCTION mine.evil(text)', 'ALTER EXTENSION kliv_mail DROP FUNCTION kliv_mail._now()', 'ALTER EXTENSION kliv_mail SET SCHEMA mine',
    'ALTER EXTENSION kliv_mail UPDATE', 'ALTER EXTENSION pgcrypto ADD FUNCTION mine.evil(text)', 'DROP EXTENSION kliv_mail', 'DROP EXTENSION pgcrypto CASCADE',
    'ALTER SCHEMA kliv_mail RENAME TO other', 'ALTER SCHEMA kliv_mail OWNER TO tenant', 'DROP SCHEMA kliv_mail CASCADE',
    'CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION mine.evil_event()',
    'CREATE PUBLICATION p FOR TABLE kliv_mail._account', 'CREATE PUBLICATION p FOR ALL TABLES',
    'ALTER DEFAULT PRIVILEGES FOR ROLE postgres GRANT ALL ON TABLES TO tenant',
    'GRANT ALL ON ALL TABLES IN SCHEMA kliv_mail TO tenant', 'REASSIGN OWNED BY postgres TO tenant', 'SET ROLE postgres', 'SET SESSION AUTHORIZATION postgres',
    q{SET session_replication_role = replica}, q{ALTER DATABASE tdb SET session_replication_role = origin}, q{ALTER DATABASE tdb SET session_preload_libraries = 'x'},
    q{ALTER SYSTEM SET kliv_mail.key_command = 'id'}, q{ALTER DATABASE tdb SET kliv_mail.delivery = hold}, q{ALTER DATABASE tdb SET kliv_mail.redirect_to = 'a@example.com'},
    q{SELECT kliv_mail.grant_admin('x'); SELECT lo_import('/etc/passwd')},
    q{SELECT * FROM kliv_mail._account}, q{SELECT * FROM kliv_mail._message}, q{SELECT kliv_mail._claim(1, 1, 1)}, q{SELECT nextval('kliv_mail._message_id')},
    q{INSERT INTO kliv_mail.deliveries DEFAULT VALUES})
{
    my $result = tenant($attempt);
    like($result->{state}, qr/^(?:42501|42P13|42704|42809|42846|42723|55000|0A000|42883|42P17)$/, "refused: $attempt")
      or diag($result->{err});
}
# A privilege that is not there to give is a warning, or nothing.
tenant('GRANT TRIGGER ON kliv_mail._outbox TO tenant');
is($node->sql(q{SELECT count(*) FROM pg_class WHERE relnamespace = 'kliv_mail'::regnamespace AND relkind = 'r' AND has_table_privilege('tenant', oid, 'SELECT, INSERT, UPDATE, DELETE, TRIGGER, REFERENCES')}, dbname => 'tdb'),
    0, 'no table is his');

# ---- what he may make, and nothing of ours may pick up ----

is(tenant(q{
    CREATE FUNCTION mine.text_op(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN mine.evil('operator'); END $$;
    CREATE FUNCTION mine.cat_op(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM mine.evil('operator'); RETURN 'x'; END $$;
    CREATE FUNCTION mine.time_op(timestamptz, timestamptz) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN mine.evil('operator'); END $$;
    DO $do$ DECLARE s text; BEGIN
        FOREACH s IN ARRAY ARRAY['mine', 'public'] LOOP
            EXECUTE pg_catalog.format('CREATE OPERATOR %I.= (LEFTARG = text, RIGHTARG = text, FUNCTION = mine.text_op)', s);
            EXECUTE pg_catalog.format('CREATE OPERATOR %I.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = mine.text_op)', s);
            EXECUTE pg_catalog.format('CREATE OPERATOR %I.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = mine.cat_op)', s);
            EXECUTE pg_catalog.format('CREATE OPERATOR %I.<= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = mine.time_op)', s);
            EXECUTE pg_catalog.format('CREATE FUNCTION %I.lower(text) RETURNS text LANGUAGE plpgsql AS $f$ BEGIN PERFORM mine.evil(''function''); RETURN $1; END $f$', s);
            EXECUTE pg_catalog.format('CREATE FUNCTION %I.now() RETURNS timestamptz LANGUAGE plpgsql AS $f$ BEGIN PERFORM mine.evil(''function''); RETURN clock_timestamp(); END $f$', s);
            EXECUTE pg_catalog.format('CREATE FUNCTION %I.format(text, VARIADIC text[]) RETURNS text LANGUAGE plpgsql AS $f$ BEGIN PERFORM mine.evil(''function''); RETURN ''x''; END $f$', s);
            EXECUTE pg_catalog.format('CREATE FUNCTION %I.current_setting(text) RETURNS text LANGUAGE plpgsql AS $f$ BEGIN PERFORM mine.evil(''function''); RETURN ''on''; END $f$', s);
            EXECUTE pg_catalog.format('CREATE COLLATION %I."C" (locale = ''C'')', s);
            EXECUTE pg_catalog.format('CREATE TABLE %I._outbox (LIKE pg_catalog.pg_class)', s);
        END LOOP;
    END $do$;
    CREATE FUNCTION mine.pgp_sym_encrypt_bytea(bytea, text, text) RETURNS bytea LANGUAGE plpgsql AS $$ BEGIN PERFORM mine.evil('function'); RETURN $1; END $$;
    CREATE TYPE mine.wish AS (a text);
    CREATE FUNCTION mine.wish_text(mine.wish) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM mine.evil('cast'); RETURN 'cast@example.com'; END $$;
    CREATE CAST (mine.wish AS text) WITH FUNCTION mine.wish_text(mine.wish) AS IMPLICIT;
    CREATE DOMAIN mine.checked AS text CHECK (mine.evil('domain'));
    ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
    ALTER DATABASE tdb SET search_path = mine, public, pg_catalog;
    ALTER ROLE tenant SET search_path = mine, public, pg_catalog;
    }
    . ($node->sql('SHOW server_version_num') < 190000 ? 'ALTER DATABASE tdb SET standard_conforming_strings = off;' : '') . q{
    ALTER DATABASE tdb SET default_transaction_isolation = serializable})->{state}, '', 'operators, functions, casts, domains, collations and settings of his own');

# Every door, in a session with his search_path, with temporary objects besides.
my $result = tenant(q{
    SET client_min_messages = warning;
    CREATE TEMPORARY TABLE _outbox (i integer);
    CREATE TEMPORARY TABLE _usage (i integer);
    CREATE FUNCTION pg_temp.lower(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM mine.evil('temporary'); RETURN $1; END $$;
    SELECT pg_catalog.count(kliv_mail.send(ROW('x')::mine.wish::text, 's', 'b')), pg_catalog.count(kliv_mail.send('domain@example.com'::mine.checked, 's', 'b'));
    SELECT kliv_mail.send('a@example.com', 's', 'b', from_name => 'n', reply_to => 'r@example.com', headers => '{"X-A": "b"}', idempotency_key => 'k', metadata => '{"a": 1}');
    SELECT kliv_mail.suppress('b@example.com', reason => 'r'); SELECT kliv_mail.unsuppress('b@example.com');
    SELECT pg_catalog.count(*) FROM kliv_mail.configure_smtp(host => 'smtp.example.com', username => 'a@example.com', password => 'p', test => false);
    SELECT pg_catalog.count(*) FROM kliv_mail.set_limits(10, 20); SELECT pg_catalog.count(*) FROM kliv_mail.update_sender(from_name => 'x');
    SELECT kliv_mail.pause(), kliv_mail.resume(), kliv_mail.pause('custom', 'x'), kliv_mail.resume('custom');
    SELECT pg_catalog.count(*) FROM kliv_mail.reset_smtp();
    SELECT kliv_mail.set_brand(name => 'n'); SELECT kliv_mail.grant_send('stranger'), kliv_mail.revoke_access('stranger');
    SELECT pg_catalog.count(*) FROM kliv_mail.deliveries; SELECT pg_catalog.count(*) FROM kliv_mail.messages; SELECT pg_catalog.count(*) FROM kliv_mail.events;
    SELECT pg_catalog.count(*) FROM kliv_mail.usage; SELECT pg_catalog.count(*) FROM kliv_mail.status; SELECT pg_catalog.count(*) FROM kliv_mail.smtp_settings;
    SELECT pg_catalog.count(*) FROM kliv_mail.suppressions; SELECT pg_catalog.count(*) FROM kliv_mail.providers; SELECT pg_catalog.count(*) FROM kliv_mail.next_step();
    SELECT pg_catalog.count(*) FROM kliv_mail.next_step(1); SELECT kliv_mail.describe() IS NULL; SELECT kliv_mail.rotate_key() IS NULL;
    SELECT kliv_mail.cancel(1) IS NULL, kliv_mail.retry(2) IS NULL, kliv_mail.raw_message(3) IS NULL;
    SELECT kliv_mail.csv('SELECT mine.evil(''query'')') IS NULL, kliv_mail.html_table('SELECT mine.evil(''query'')') IS NULL});
is($result->{state}, '', 'every public function and view still works') or diag($result->{err});
$node->wait_until(q{SELECT pg_catalog.count(*) >= 1 FROM kliv_mail._delivery WHERE status OPERATOR(pg_catalog.=) 'sent'}, dbname => 'tdb');
pass('the sender sends his mail');
# (read with a path that finds none of his operators)
is($node->sql(q{SET search_path = pg_catalog; SELECT string_agg(DISTINCT who || ' ' || session, ', ') FROM mine.ran}, dbname => 'tdb'), 'tenant tenant', 'whatever of his code ran, ran as him alone');
is($node->sql(q{SET search_path = pg_catalog; SELECT string_agg(DISTINCT what, ' ' ORDER BY what) FROM mine.ran}, dbname => 'tdb'), 'cast domain himself query',
    '... where he called it himself, and nowhere in ours');
is($node->sql(q{SELECT rolsuper FROM pg_roles WHERE rolname = 'tenant'}), 'f', '... and he is no superuser');
$node->stop;
done_testing();
