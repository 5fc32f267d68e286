# In a database with hostile default privileges nobody but the owner holds
# anything after CREATE EXTENSION, and no trigger of somebody else runs in the
# sender (A11).
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new('main', platform_url => 'smtp://127.0.0.1:' . $smtp->port, extension => 0);
$node->sql(q{
    CREATE ROLE web;
    ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO web;
    ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO web;
    ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO web;
    ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO web;
    ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO web;
    CREATE TABLE control (i integer)});
is($node->sql(q{SELECT has_table_privilege('web', 'control', 'TRIGGER')}), 't', 'the default privileges are in force');
$node->sql('CREATE EXTENSION kliv_mail CASCADE');

# Every grant on every member, but the owner's own.
my $grants = q{
    SELECT format('%s %s: %s to %s', kind, name, privilege_type, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
    FROM (
        SELECT 'relation' AS kind, c.oid::regclass::text AS name, coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's'::"char" ELSE 'r'::"char" END, c.relowner)) AS acl, c.relowner AS owner
        FROM pg_class AS c WHERE c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind IN ('r', 'v', 'm', 'S', 'p', 'f')
        UNION ALL
        SELECT 'column', a.attrelid::regclass || '.' || a.attname, a.attacl, c.relowner
        FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid WHERE c.relnamespace = 'kliv_mail'::regnamespace AND a.attacl IS NOT NULL
        UNION ALL
        SELECT 'function', p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner)), p.proowner
        FROM pg_proc AS p WHERE p.pronamespace = 'kliv_mail'::regnamespace
        UNION ALL
        SELECT 'schema', n.nspname, coalesce(n.nspacl, acldefault('n', n.nspowner)), n.nspowner
        FROM pg_namespace AS n WHERE n.nspname = 'kliv_mail'
        UNION ALL
        SELECT 'type', t.oid::regtype::text, coalesce(t.typacl, acldefault('T', t.typowner)), t.typowner
        FROM pg_type AS t WHERE t.typnamespace = 'kliv_mail'::regnamespace AND t.typtype IN ('c', 'd', 'e')
            AND (t.typrelid = 0 OR (SELECT relkind FROM pg_class WHERE oid = t.typrelid) = 'c')) AS x,
        LATERAL aclexplode(x.acl) AS g
    WHERE g.grantee <> x.owner
    ORDER BY 1};
is($node->sql($grants), '', 'nobody but the owner holds anything');
is($node->sql(q{SELECT count(*) > 20 FROM pg_proc WHERE pronamespace = 'kliv_mail'::regnamespace}), 't', '(and there is something to hold)');

# A role without grants can do nothing.
for my $sql (
    q{SELECT kliv_mail.send('a@example.com', 'x', 'x')},
    q{SELECT * FROM kliv_mail.deliveries},
    q{SELECT * FROM kliv_mail._account},
    q{INSERT INTO kliv_mail._outbox DEFAULT VALUES},
    q{SELECT kliv_mail.configure_smtp(host => 'x')},
    q{SELECT kliv_mail._claim(1, 1, 1)},
    q{SELECT nextval('kliv_mail._message_id')},
    q{SELECT kliv_mail.grant_admin('web')},
    q{CREATE TABLE kliv_mail.mine (i integer)},
    q{CREATE TRIGGER t BEFORE UPDATE ON kliv_mail._outbox FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()})
{
    is($node->try($sql, role => 'web')->{state}, '42501', "refused: $sql");
}

# Even where an owner gives TRIGGER away: what such a trigger does, it never
# does in the sender, which would be as its superuser.
$node->sql(q{
    CREATE SCHEMA web AUTHORIZATION web;
    GRANT USAGE ON SCHEMA kliv_mail TO web;
    GRANT TRIGGER ON ALL TABLES IN SCHEMA kliv_mail TO web;
    CREATE TABLE web.ran (who name, session name, backend text);
    GRANT ALL ON web.ran TO PUBLIC});
$node->sql(q{
    CREATE FUNCTION web.evil() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO web.ran SELECT current_user, session_user, (SELECT backend_type FROM pg_stat_activity WHERE pid = pg_backend_pid());
        RETURN coalesce(NEW, OLD);
    END $$;
    CREATE TRIGGER evil BEFORE INSERT OR UPDATE OR DELETE ON kliv_mail._outbox FOR EACH ROW EXECUTE FUNCTION web.evil();
    CREATE TRIGGER evil BEFORE INSERT ON kliv_mail._delivery FOR EACH ROW EXECUTE FUNCTION web.evil();
    CREATE CONSTRAINT TRIGGER evil_late AFTER INSERT ON kliv_mail._delivery DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION web.evil()}, role => 'web');
my $id = $node->sql(q{SELECT kliv_mail.send('a@example.com', 'x', 'x')});
is($node->sql("SELECT kliv_mail.wait($id, '60 s')"), 'sent', 'a mail is sent');
is($node->sql(q{SELECT count(*) FROM web.ran WHERE backend = 'kliv_mail sender'}), 0, 'no trigger ran in the sender');
is($node->sql(q{SELECT count(*) > 0 FROM web.ran}), 't', '(in the session of send() it did, so it could)');
$node->stop;

done_testing();
