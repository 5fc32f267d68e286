# The owner of a database who is no superuser tries to get code run as another
# role, to open what belongs to another database, and to stop what all share.
# Whatever he leaves for us to run tells whose rights it ran with.
use strict;
use warnings;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use KlivMail::Tls;
use PostgreSQL::Test::Utils;
use Test::More;

my $folder = PostgreSQL::Test::Utils::tempdir();
my $file = "$folder/kliv_mail.key";
my $tls = KlivMail::Tls->new("$folder/tls");
my ($certificate, $key) = $tls->certificate('good');
my $smtp = KlivMail::SmtpServer->start(tls => 1, cert => $certificate, key => $key, auth => ['app:the password']);
my $node = KlivMail::Cluster->new(
    'main',
    extension => 0,
    conf      => {
        'kliv_mail.key_file'      => $file,
        'kliv_mail.allowed_hosts' => 'localhost',
        'kliv_mail.ca_file'       => $tls->ca_file
    });
my @in = (dbname => 'theirs');
my @as = (dbname => 'theirs', role => 'tenant');
my $where = "host => 'localhost', port => " . $smtp->port . ", encryption => 'tls', username => 'app', from_address => 'shop\@shop.example'";

$node->sql('CREATE ROLE tenant CREATEDB');
$node->sql("CREATE DATABASE $_ OWNER tenant") for qw(theirs other);
$node->sql('CREATE DATABASE app');

# ---- traps, laid before the extension is made and after ----

# Caught is who ran it; a superuser is asked for the crown.
$node->sql(q{
    CREATE SCHEMA mine;
    CREATE TABLE mine.caught (who name, trap text);
    GRANT USAGE ON SCHEMA mine TO PUBLIC;
    GRANT ALL ON mine.caught TO PUBLIC;
    CREATE FUNCTION mine.trap(name text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF current_user <> 'tenant' THEN
            INSERT INTO mine.caught VALUES (current_user, name);
            BEGIN EXECUTE 'ALTER ROLE tenant SUPERUSER'; EXCEPTION WHEN OTHERS THEN NULL; END;
        END IF;
    END $$;
    CREATE SCHEMA z;
    CREATE EXTENSION pgcrypto SCHEMA z}, @as);
my @names = qw(pgp_sym_encrypt_bytea pgp_sym_decrypt_bytea);
# Every signature of three arguments that a look in the catalogue could take.
for my $name (@names)
{
    for my $first (qw(bytea boolean text))
    {
        my $body = $first eq 'bytea' ? "RETURN z.$name(a, b, c);" : 'RETURN NULL;';
        $node->sql(qq{
            CREATE FUNCTION mine.$name(a $first, b text, c text) RETURNS bytea LANGUAGE plpgsql AS \$\$
            BEGIN PERFORM mine.trap('$name($first)'); $body END \$\$;
            ALTER EXTENSION pgcrypto ADD FUNCTION mine.$name($first, text, text)}, @as);
    }
}
$node->sql('CREATE EXTENSION kliv_mail', @in);
$node->sql(q{SELECT kliv_mail.grant_admin('tenant')}, @in);

# What stands in public, in pg_temp and in the search path under the names that our code calls.
my $shadows = q{
    CREATE FUNCTION public.lower(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM mine.trap('lower'); RETURN $1; END $$;
    CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM mine.trap('format'); RETURN $1; END $$;
    CREATE FUNCTION public._now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN PERFORM mine.trap('_now'); RETURN clock_timestamp(); END $$;
    CREATE FUNCTION public.same(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM mine.trap('='); RETURN $1 OPERATOR(pg_catalog.=) $2; END $$;
    CREATE OPERATOR public.= (FUNCTION = public.same, LEFTARG = text, RIGHTARG = text);
    CREATE TYPE public.evil AS (x text);
    CREATE FUNCTION public.to_text(public.evil) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM mine.trap('cast'); RETURN 'x'; END $$;
    CREATE CAST (public.evil AS text) WITH FUNCTION public.to_text(public.evil) AS IMPLICIT;
    ALTER DATABASE theirs SET search_path = public, mine, pg_catalog;
};
$node->sql($shadows, @as);

sub use_it
{
    my ($what) = @_;
    my $number = 0;
    for my $statement (
        "SELECT * FROM kliv_mail.configure_smtp($where, password => 'the password')",
        q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://shop.example/u')},
        q{SELECT kliv_mail.unsubscribe(substring(kliv_mail.unsubscribe_url('ana@customer.example') FROM 'token=(.*)'))},
        q{SELECT kliv_mail.public_key()},
        q{SELECT kliv_mail.rotate_key()},
        q{SELECT * FROM kliv_mail.test_smtp()},
        q{SELECT count(kliv_mail.send('bob' || n || '@customer.example', 'x', 'x', tags => ARRAY['a'])) FROM generate_series(1, 3) AS n},
        q{SELECT kliv_mail.suppress('carl@customer.example')},
        q{SELECT * FROM kliv_mail.status},
        q{SELECT * FROM kliv_mail.smtp_settings},
        q{SELECT * FROM kliv_mail.deliveries},
        q{SELECT * FROM kliv_mail.next_step()})
    {
        my $result = $node->try($statement, @as);
        $number++;
        is($result->{state}, '', "$what: call $number works") or diag("$statement\n$result->{err}");
    }
    $node->wait_until('SELECT count(*) = 0 FROM kliv_mail.deliveries WHERE finished_at IS NULL', @in);
    return;
}

sub nothing_caught
{
    my ($what) = @_;
    is($node->sql('SELECT string_agg(DISTINCT format(\'%s: %s\', who, trap), \', \') FROM mine.caught', @in), '', "$what: nothing of his ran as another role");
    is($node->sql(q{SELECT rolsuper FROM pg_roles WHERE rolname = 'tenant'}), 'f', '... and he is no superuser');
    $node->sql('ALTER ROLE tenant NOSUPERUSER; TRUNCATE mine.caught', @in);
    return;
}

use_it('with functions in pgcrypto and shadows of ours');
nothing_caught('after a mail that was sent');
$node->sql('DROP EXTENSION pgcrypto CASCADE', @as);
use_it('without the extension pgcrypto');

# ---- what belongs to the extension is not his ----

for (
    [ 'a function in our schema', 'CREATE FUNCTION kliv_mail.mine() RETURNS integer LANGUAGE sql AS $$ SELECT 1 $$' ],
    [ 'a trigger on our table', 'CREATE TRIGGER t BEFORE INSERT ON kliv_mail._outbox FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()' ],
    [ 'a rule', 'CREATE RULE r AS ON INSERT TO kliv_mail._event DO ALSO NOTHING' ],
    [ 'a row', q{INSERT INTO kliv_mail._salt VALUES ('\x00000000000000000000000000000000', 'epoch')} ],
    [ 'a ciphertext', 'UPDATE kliv_mail._account SET password_cipher = NULL' ],
    [ 'a function that is replaced', 'CREATE OR REPLACE FUNCTION kliv_mail._now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT now() $$' ],
    [ 'a function that joins', 'ALTER EXTENSION kliv_mail ADD FUNCTION mine.trap(text)' ],
    [ 'an event trigger', 'CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION suppress_redundant_updates_trigger()' ],
    [ 'the generic entry point', q{CREATE FUNCTION mine._reset(x text) RETURNS text AS '$libdir/kliv_mail_net', 'kliv_mail_as_owner' LANGUAGE C} ])
{
    my ($name, $statement) = @$_;
    isnt($node->try($statement, @as)->{state}, '', "refused: $name");
}
use_it('after what was refused');
nothing_caught('at last');

# ---- what all databases share ----

# (From here on our own queries must not walk into his traps.)
$node->sql('ALTER DATABASE theirs RESET search_path', @as);
# Tokens and ciphertexts are of one database.
$node->sql('CREATE EXTENSION kliv_mail', dbname => 'app');
$node->sql(q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://app.example/u')}, dbname => 'app');
for my $list (qw(marketing news))
{
    my ($token) = $node->sql("SELECT kliv_mail.unsubscribe_url('ceo\@customer.example', '$list')", @as) =~ /token=(.*)/;
    is($node->sql("SELECT kliv_mail.unsubscribe('$token')", @in), 't', "a token for $list is good where it was made");
    is($node->sql("SELECT kliv_mail.unsubscribe('$token')", dbname => 'app'), 'f', '... and nothing in another database');
}
is($node->sql('SELECT count(*) FROM kliv_mail.suppressions', dbname => 'app'), 0, '... whose mail goes on');
my $moved = $node->sql(q{SELECT format('(%L::bytea, %L, %L)', password_cipher, key_id, username) FROM kliv_mail._account WHERE name = 'custom'}, @in);
$node->sql("SELECT * FROM kliv_mail.configure_smtp($where, password => 'another', test => false)", dbname => 'app');
$node->sql("UPDATE kliv_mail._account AS a SET password_cipher = x.c, key_id = x.k FROM (VALUES $moved) AS x (c, k, u)", dbname => 'app');
my $result = $node->try('SELECT * FROM kliv_mail.test_smtp()', dbname => 'app');
like("$result->{state} $result->{message}", qr/^55000 .*does not belong to this database/, 'a ciphertext of his opens in no other database either');
$node->sql("SELECT * FROM kliv_mail.configure_smtp($where, password => 'another', test => false)", dbname => 'app');

# The key file does not grow with his calls.
sub keys_in { my @ids = slurp_file($file) =~ /^kliv_mail key (\w+)/mg; return @ids; }
my @before = keys_in();
is($node->sql('SELECT sum(kliv_mail.rotate_key()) FROM generate_series(1, 20)', @as), 20, 'rotate_key() twenty times in a row');
is_deeply([ keys_in() ], \@before, '... adds no key while the newest is younger than a day');
utime time - 90_000, time - 90_000, $file;
is($node->sql('SELECT kliv_mail.rotate_key()', @as), 1, 'a day later');
is(scalar(keys_in()), @before + 1, '... it adds one');
$node->sql('SELECT sum(kliv_mail.rotate_key()) FROM generate_series(1, 120)', @in);
my @after = keys_in();
is(scalar(@after), 100, 'a superuser adds as many as are wanted, and the file keeps a hundred');
my $used = $node->sql('SELECT key_id FROM kliv_mail._account WHERE name = \'custom\'', dbname => 'app');
ok((grep { $_ eq $used } @after) ? 1 : 0, '... that which another database needs among them');
is($node->sql('SELECT key_state FROM kliv_mail.status', dbname => 'app'), 'ok', '... whose password opens as before');

# A label of his database does not name keys for all.
is($node->try(q{SECURITY LABEL FOR kliv_mail ON DATABASE other IS 'mail keys=deadbeef'}, @as)->{state}, '42501', 'a label that names keys is refused to an owner');
is($node->sql(q{SELECT count(*) FROM pg_shseclabel WHERE label ~ 'deadbeef'}), 0, '... so that no database waits for a key that nobody has');

$node->stop;
done_testing();
