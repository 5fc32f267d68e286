# Who may what (B6): the catalogue against allow-lists that are written here and
# not taken from the extension; then every function and view tried as a role
# with each grant, as one without, through SET ROLE and a definer trigger.
use strict;
use warnings;
use JSON::PP;
use KlivMail::Cluster;
use KlivMail::SmtpServer;
use Test::More;

my $smtp = KlivMail::SmtpServer->start;
my $node = KlivMail::Cluster->new(
    'main',
    platform_url => 'smtp://127.0.0.1:' . $smtp->port,
    extension    => 0,
    conf         => { 'kliv_mail.platform_hourly_limit' => 100, 'kliv_mail.platform_daily_limit' => 100 });

# Default privileges that give everything to everybody, also by schema.
$node->sql(q{
    CREATE ROLE stranger;
    CREATE ROLE hostile;
    ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC, hostile;
    ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO PUBLIC, hostile;
    ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO PUBLIC, hostile;
    ALTER DEFAULT PRIVILEGES GRANT ALL ON TYPES TO PUBLIC, hostile;
    ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC, hostile;
    CREATE EXTENSION kliv_mail CASCADE;
    ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM PUBLIC, hostile;
    ALTER DEFAULT PRIVILEGES REVOKE ALL ON SEQUENCES FROM PUBLIC, hostile;
    ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM hostile;
    ALTER DEFAULT PRIVILEGES REVOKE ALL ON TYPES FROM hostile;
    ALTER DEFAULT PRIVILEGES REVOKE ALL ON SCHEMAS FROM PUBLIC, hostile});

# Every privilege that somebody but the owner holds: "grantee kind name privilege".
my $held = q{
    SELECT format('%s %s %s %s', CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END, x.kind, x.name, g.privilege_type)
    FROM (
        SELECT 'relation' AS kind, c.relname::text AS name, c.relowner AS owner, coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's'::"char" ELSE 'r'::"char" END, c.relowner)) AS acl
        FROM pg_class AS c WHERE c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind NOT IN ('i', 'c', 't')
        UNION ALL
        SELECT 'column', c.relname || '.' || a.attname, c.relowner, a.attacl
        FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid WHERE c.relnamespace = 'kliv_mail'::regnamespace AND a.attacl IS NOT NULL
        UNION ALL
        SELECT 'function', p.proname, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner))
        FROM pg_proc AS p WHERE p.pronamespace = 'kliv_mail'::regnamespace
        UNION ALL
        SELECT 'schema', n.nspname, n.nspowner, coalesce(n.nspacl, acldefault('n', n.nspowner)) FROM pg_namespace AS n WHERE n.nspname = 'kliv_mail'
        UNION ALL
        SELECT 'type', t.typname, t.typowner, coalesce(t.typacl, acldefault('T', t.typowner))
        FROM pg_type AS t WHERE t.typnamespace = 'kliv_mail'::regnamespace AND t.typelem = 0
            AND (t.typrelid = 0 OR (SELECT c.relkind FROM pg_class AS c WHERE c.oid = t.typrelid) = 'c')) AS x,
        LATERAL aclexplode(x.acl) AS g
    WHERE g.grantee <> x.owner ORDER BY 1};
is($node->sql($held), '', 'after CREATE EXTENSION under hostile default privileges nobody holds anything');

# ---- the allow-lists ----

my @helpers = qw(_now _origin _default_account _process_status _account_holds _line _line_end _usage_now _machinery _more_worker_slots _cure_of_hold _code_of_hold _reputation_hint
    _effects _plain_schema_of _schema_of _said_of _first_sentence _describe_function _example_of _common_mistakes);
# http_request() and what it calls, as the caller.
my @door = qw(http_request _http_request _read_request _form_fields _path_segments _percent_decoded _preferred_language _is_cross_site
    _request_form _door_answer _door_routes _door_may _door_problem _door_failure _door_page _door_texts _door_brand _door_response _door_style
    _door_ink _door_zone);
my @pages = qw(_door_account _door_account_data _door_chart _door_document _door_events _door_failed_steps _door_field _door_figures _door_health
    _door_latest_events _door_limits _door_lines _door_mail _door_message _door_message_change _door_message_id _door_messages _door_next_step _door_number
    _door_overview _door_pause _door_preview _door_provider _door_providers _door_publish _door_reset _door_resume _door_rows _door_search
    _door_sender _door_settings _door_status _door_suppressions _door_template _door_template_delete _door_templates _door_test _door_time
    _door_tone _door_topic_delete _door_topics _door_unsuppress _door_version _door_window);
my %functions = (
    send => [
        qw(send attach attach_text attachments help history _known_names _text_of _addresses_of _time_of _nearest _distance mailbox is_address parse_addresses classify_reply parse_bounce raw_message preview describe skill next_step _statement_of _with_cure _inputs_of _cure _next_step_of _suppressed_now _providers csv html_table cancel retry reschedule wait outcomes render send_template send_template_batch),
        @helpers ],
    read   => [ qw(parse_addresses classify_reply parse_bounce is_address mailbox describe skill help history _nearest _distance next_step render outcomes delivery_stats), @helpers,
        qw(_availability _accounts _key_state _providers _smtp_settings _statement_of _with_cure _inputs_of _cure _next_step_of _suppressed_now _bad_reputations _mailbox_held _mailbox_trouble), @door, @pages ],
    ingest => [ qw(unsubscribe ingest_bounce ingest_webhook render _door_leave _door_recipient _door_choose _door_hook), @door ],
    admin  => undef);    # all that is public, and what the views of the others need
my %views = (
    send   => [qw(messages deliveries events usage templates providers)],
    read   => undef,       # all that are public, and the mark that tells who sees all
    ingest => [],
    admin  => undef);

my @public_functions = split /\n/, $node->sql(q{SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'kliv_mail'::regnamespace AND proname !~ '^_' ORDER BY 1});
my @public_views = split /\n/, $node->sql(q{SELECT relname FROM pg_class WHERE relnamespace = 'kliv_mail'::regnamespace AND relkind = 'v' AND relname !~ '^_' ORDER BY 1});
$functions{admin} = [ @public_functions, grep { /^_/ } @{ $functions{send} }, @{ $functions{read} }, @{ $functions{ingest} }, '_sealing_host', '_provider_host' ];
$views{read} = [ @public_views, '_sees_all' ];
$views{admin} = [ @public_views, '_sees_all' ];

my @grants = qw(send read ingest admin);
$node->sql("CREATE ROLE can_$_; SELECT kliv_mail.grant_$_('can_$_')") for @grants;
for my $grant (@grants)
{
    my %expected = ("can_$grant schema kliv_mail USAGE" => 1);
    $expected{"can_$grant function $_ EXECUTE"} = 1 for @{ $functions{$grant} };
    $expected{"can_$grant relation $_ SELECT"} = 1 for @{ $views{$grant} };
    my %is = map { $_ => 1 } grep { /^can_$grant / } split /\n/, $node->sql($held);
    my @less = grep { !$is{$_} } sort keys %expected;
    my @more = grep { !$expected{$_} } sort keys %is;
    is_deeply([ [@less], [@more] ], [ [], [] ], "grant_$grant gives what stands here, and nothing else");
}
is($node->sql("SELECT x FROM ($held) AS h (x) WHERE x !~ '^can_'"), '', 'and nobody else has anything');

# ---- every function: search_path, definer, qualification ----

is($node->sql(q{
    SELECT p.oid::regprocedure FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
    WHERE p.pronamespace = 'kliv_mail'::regnamespace
      AND (l.lanname <> 'c' OR p.prosecdef)
      -- (what is bound when it is made may do without, to be inlined)
      AND (p.prosqlbody IS NULL OR p.prosecdef)
      AND NOT coalesce(p.proconfig, '{}') @> ARRAY['search_path=pg_catalog, pg_temp']}), '',
    'every SQL and plpgsql function, and whatever is SECURITY DEFINER, has the fixed search_path');
# C functions without one run no SQL text of ours by name; the rest is here.
is($node->sql(q{
    SELECT string_agg(DISTINCT p.proname, ' ' ORDER BY p.proname) FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
    WHERE p.pronamespace = 'kliv_mail'::regnamespace AND l.lanname = 'c' AND p.proname ~ '^[a-z]'
      AND p.proconfig IS NOT NULL AND NOT p.proconfig @> ARRAY['search_path=pg_catalog, pg_temp']}), '', 'no C function has another one');
is($node->sql(q{
    SELECT string_agg(proname, ' ' ORDER BY proname) FROM pg_proc WHERE pronamespace = 'kliv_mail'::regnamespace AND prosecdef}),
    '_account_holds _accounts _availability _bad_reputations _default_account _key_state _line_end _mailbox_held _mailbox_trouble _own_routes _smtp_settings _usage_now',
    'SECURITY DEFINER is only what must be');
is($node->sql(q{
    SELECT c.relname FROM pg_class AS c WHERE c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind = 'v'
      AND pg_get_viewdef(c.oid) ~ 'pg_has_role' AND NOT coalesce(c.reloptions, '{}') @> ARRAY['security_barrier=true']}), '',
    'every view that filters by sender is a security barrier');

# Schema qualification.  What is BEGIN ATOMIC was bound when it was made; text
# is looked through: what is called or read is the catalogue's or qualified.
my %catalogue = map { $_ => 1 } split /\n/, $node->sql(q{
    SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
    UNION SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace
    UNION SELECT word FROM pg_get_keywords()
    UNION SELECT typname FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace});
my @unqualified;
my $sources = decode_json($node->sql(q{
    SELECT jsonb_object_agg(p.oid::regprocedure, p.prosrc) FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
    WHERE p.pronamespace = 'kliv_mail'::regnamespace AND l.lanname IN ('plpgsql', 'sql') AND p.prosqlbody IS NULL}));
cmp_ok(scalar(keys %$sources), '>', 20, 'functions whose text is looked through');
for my $function (sort keys %$sources)
{
    my $source = $sources->{$function};
    # What skill() writes is prose.
    $source =~ s/\$skill\$.*?\$skill\$/''/gs;
    $source =~ s/--[^\n]*//g;
    $source =~ s/'(?:[^']|'')*'/''/g;
    my %own = map { lc $_ => 1 } $source =~ /\b(?:AS|WITH|WITH RECURSIVE|,)\s+(\w+)(?=\s*(?:\(|AS\b))/gi;
    $source =~ s/\bextract\(\w+ FROM /extract(/gi;
    # calls
    while ($source =~ /(?<![\w.%])([a-z_]\w*)\s*\(/gi)
    {
        my $word = lc $1;
        push @unqualified, "$function: $word()" unless $catalogue{$word} || $own{$word};
    }
    # relations
    while ($source =~ /(?<!DISTINCT )\b(?:FROM|JOIN|INSERT\s+INTO|UPDATE|LOCK\s+TABLE|TRUNCATE)\s+(?:ONLY\s+)?([a-z_]\w*)(?![\w.(])/gi)
    {
        my $word = lc $1;
        push @unqualified, "$function: $word" unless $catalogue{$word} || $own{$word} || $source =~ /\bWITH\b.*?\b\Q$word\E\s+AS\s*(?:MATERIALIZED\s*)?\(|\),\s*\Q$word\E\s+AS\s*(?:MATERIALIZED\s*)?\(/s;
    }
}
is_deeply(\@unqualified, [], 'what text functions call and read is qualified');
# A relation of pg_temp cannot step in for one of ours.
$node->sql(q{
    CREATE TEMP TABLE _account (LIKE kliv_mail._account);
    CREATE TEMP TABLE _outbox (LIKE kliv_mail._outbox);
    CREATE TEMP TABLE pg_class (oid oid);
    SELECT kliv_mail.send('temp@example.com', 'x', 'x');
    SELECT kliv_mail.pause(), kliv_mail.resume();
    SELECT 1 / (SELECT count(*)::integer FROM kliv_mail.deliveries)});

# ---- every function and view, tried ----

my $login = 'tried@example.com';
$node->sql(q{
    CREATE FUNCTION attempt(statement text) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
        BEGIN
            EXECUTE statement;
            RAISE SQLSTATE 'KM000';     -- done: take it back
        EXCEPTION WHEN SQLSTATE 'KM000' THEN
            RETURN 'ok';
        END;
    EXCEPTION WHEN OTHERS THEN
        RETURN SQLSTATE;
    END $$});
my $mine = $node->sql(q{SELECT kliv_mail.send('mine@example.com', 'x', 'x')}, role => 'can_send');
my $other = $node->sql(q{SELECT kliv_mail.send('other@example.com', 'x', 'x')});
$node->sql("SELECT kliv_mail.wait($_)") for $mine, $other;
$node->sql(q{SELECT kliv_mail.set_brand(unsubscribe_url => 'https://shop.example/u')});
$node->sql(q{SELECT kliv_mail.configure_smtp(host => 'relay.example', username => '', port => 25, encryption => 'none', from_address => 'a@shop.example', account => 'relay', test => false)});

# Arguments with which each does its work; what is not here is called
# with empty ones (not NULLs, for which a STRICT function is not even called).
my %call = (
    send            => q{('a@example.com', 'x', 'x')},
    attach          => q{('a.txt', 'x')},
    attach_text     => q{('a.txt', 'x')},
    mailbox         => q{('a@example.com')},
    is_address      => q{('a@example.com')},
    parse_addresses => q{('a@example.com')},
    classify_reply  => q{('rcpt', '550 5.1.1 no')},
    csv             => q{('SELECT 1 AS a')},
    html_table      => q{('SELECT 1 AS a')},
    cancel          => "($mine)",
    retry           => "($mine)",
    wait            => "($mine)",
    raw_message     => "($mine)",
    next_step       => "($mine)",
    describe        => '()',
    configure_smtp  => q{(host => 'relay.example', username => '', port => 25, encryption => 'none', from_address => 'a@shop.example', account => 'other', test => false)},
    test_smtp       => q{(account => 'relay', host => 'no.such.host.invalid', username => '')},
    update_sender   => q{(from_name => 'Shop', account => 'relay')},
    set_limits      => q{(hourly_limit => 5, account => 'relay')},
    reset_smtp      => q{('relay')},
    pause           => '()',
    resume          => '()',
    set_brand       => q{('Shop')},
    suppress        => q{('a@example.com')},
    unsuppress      => q{('a@example.com')},
    unsubscribe_url => q{('a@example.com')},
    unsubscribe     => q{('x')},
    public_key      => '()',
    rotate_key      => '()',
    grant_send      => q{('stranger')},
    grant_read      => q{('stranger')},
    grant_ingest    => q{('stranger')},
    grant_admin     => q{('stranger')},
    revoke_access   => q{('stranger')});

# [kind, name, statement]
my @tries = map { [ 'function', $_, "SELECT * FROM kliv_mail.$_" . $call{$_} ] } grep { $call{$_} } @public_functions;
push @tries, map { [ 'function', split /\|/ ] } split /\n/, $node->sql(sprintf(q{
    SELECT p.proname, format('SELECT * FROM kliv_mail.%%I(%%s)', p.proname,
        (SELECT string_agg(CASE WHEN p.provariadic <> 0 AND n = p.pronargs THEN 'VARIADIC ' ELSE '' END || format(CASE WHEN y.typcategory = 'A' THEN '''{}''::%%s' WHEN y.typtype = 'c' THEN 'NULL::%%s' WHEN y.typname = 'anyelement' THEN 'NULL::text' WHEN y.typname IN ('jsonb', 'interval', 'int2', 'int4', 'int8', 'numeric', 'bool', 'oid') THEN '''0''::%%s'
                                         WHEN y.typname IN ('timestamptz', 'timestamp') THEN '''now''::%%s' ELSE '''''::%%s' END, format_type(t, NULL)), ', ' ORDER BY n)
         FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS a (t, n) JOIN pg_type AS y ON y.oid = t))
    FROM pg_proc AS p
    WHERE p.pronamespace = 'kliv_mail'::regnamespace AND p.proname <> ALL ('{%s}')}, join ',', keys %call));
my %first_column = map { split /\|/ } split /\n/, $node->sql(q{
    SELECT c.relname, a.attname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = 1
    WHERE c.relnamespace = 'kliv_mail'::regnamespace AND c.relkind IN ('r', 'v')});
my @relations = sort keys %first_column;
push @tries, map { [ 'view', $_, "SELECT * FROM kliv_mail.$_" ] } @relations;
for my $relation (@relations)
{
    my $column = $first_column{$relation};
    push @tries, map { [ 'never', $relation, $_ ] } "INSERT INTO kliv_mail.$relation DEFAULT VALUES", "UPDATE kliv_mail.$relation SET \"$column\" = NULL",
      "DELETE FROM kliv_mail.$relation", "LOCK TABLE kliv_mail.$relation IN ACCESS EXCLUSIVE MODE",
      ($relation =~ /^_/ ? () : "CREATE RULE r AS ON INSERT TO kliv_mail.$relation DO INSTEAD NOTHING");
}
push @tries, map { [ 'never', $_, "SELECT nextval('kliv_mail.$_')" ] } split /\n/, $node->sql(q{SELECT relname FROM pg_class WHERE relnamespace = 'kliv_mail'::regnamespace AND relkind = 'S'});
push @tries, [ 'never', 'schema', 'CREATE TABLE kliv_mail.mine (i integer)' ], [ 'never', 'schema', 'CREATE FUNCTION kliv_mail.send(text) RETURNS text LANGUAGE sql AS $f$SELECT $1$f$' ],
  [ 'never', 'extension', 'DROP EXTENSION kliv_mail' ], [ 'never', 'schema', 'DROP SCHEMA kliv_mail CASCADE' ],
  [ 'never', 'function', 'ALTER FUNCTION kliv_mail.pause(text, text) RESET ALL' ],
  [ 'never', 'setting', q{SET kliv_mail.redirect_to = 'a@example.com'} ], [ 'never', 'setting', q{SET kliv_mail.delivery = 'hold'} ],
  [ 'never', 'setting', q{SET kliv_mail.test_clock_offset = '1 day'} ];
cmp_ok(scalar(@tries), '>', 250, 'there is much to try: ' . scalar(@tries) . ' statements');

# The states of all tries, as a role: { statement => state }.
sub attempts
{
    my ($role, @statements) = @_;
    my $values = join ', ', map { my $s = $_; $s =~ s/'/''/g; "('$s')" } @statements;
    my $out = $node->sql("SELECT statement || chr(9) || public.attempt(statement) FROM (VALUES $values) AS t (statement)", role => $role);
    return map { split /\t/ } split /\n/, $out;
}

for my $role ((map { "can_$_" } @grants), 'stranger', 'hostile')
{
    my ($grant) = $role =~ /^can_(\w+)/;
    my %may_call = map { $_ => 1 } $grant ? @{ $functions{$grant} } : ();
    my %may_read = map { $_ => 1 } $grant ? @{ $views{$grant} } : ();
    my %state = attempts($role, map { $_->[2] } @tries);
    my (@refused, @let, @broken);
    for (@tries)
    {
        my ($kind, $name, $statement) = @$_;
        my $may = $kind eq 'function' ? $may_call{$name} : $kind eq 'view' ? $may_read{$name} : 0;
        my $state = $state{$statement};
        # With empty arguments a function may well refuse; with those above it works.
        push @refused, "$statement: $state" if $may && ($state eq '42501' || ($kind eq 'view' || $call{$name}) && $state ne 'ok');
        push @let, "$statement: $state" if !$may && $state ne '42501' && !($kind eq 'never' && $state eq '55000');    # or the view takes no rows
    }
    is_deeply(\@refused, [], "$role can do what it may");
    is_deeply(\@let, [], "$role can do nothing else");
}

# ---- rows: own ones, and those of roles that one is a member of ----

$node->sql(q{
    CREATE ROLE app; CREATE ROLE rival; CREATE ROLE ana LOGIN IN ROLE app; CREATE ROLE web;
    SELECT kliv_mail.grant_send('app'), kliv_mail.grant_send('rival')});
my %id = map { $_ => $node->sql(qq{SELECT kliv_mail.send('$_\@row.example', 'subject of $_', 'x', idempotency_key => 'the same', metadata => '{"by": "$_"}')}, role => $_) } qw(app rival ana);
is(scalar(keys %{ { reverse %id } }), 3, 'three roles with the same idempotency key: three messages');
is($node->sql(q{SELECT kliv_mail.send('app@row.example', 'subject of app', 'x', idempotency_key => 'the same', metadata => '{"by": "app"}')}, role => 'app'), $id{app}, '... each finds its own');
is($node->try(q{SELECT kliv_mail.send('else@row.example', 'x', 'x', idempotency_key => 'the same')}, role => 'app')->{state}, '23505', '... and other arguments are an error');
$node->sql("SELECT kliv_mail.wait($_)") for values %id;

my %sees = (app => 'app', rival => 'rival', ana => 'ana app', can_send => '', can_read => 'ana app rival', can_admin => 'ana app rival');
for my $role (sort keys %sees)
{
    is($node->sql(q{
        SELECT coalesce(string_agg(split_part(recipient, '@', 1), ' ' ORDER BY recipient), '') FROM kliv_mail.deliveries WHERE recipient LIKE '%@row.example'
        UNION ALL SELECT coalesce(string_agg(metadata->>'by', ' ' ORDER BY metadata->>'by'), '') FROM kliv_mail.messages WHERE metadata ? 'by'
        UNION ALL SELECT coalesce(string_agg(DISTINCT split_part(recipient, '@', 1), ' '), '') FROM kliv_mail.events WHERE recipient LIKE '%@row.example'}, role => $role),
        join("\n", ($sees{$role}) x 3), "$role sees in deliveries, messages and events: " . ($sees{$role} || 'none'));
}
is($node->sql(q{SELECT count(*) FROM kliv_mail.events WHERE kind LIKE 'access%' OR kind LIKE 'account%'}, role => 'app'), 0, 'settings are no business of a sender');
# The filter cannot be looked behind.
$node->sql(q{
    CREATE FUNCTION public.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$BEGIN RAISE NOTICE 'leaks %', $1; RETURN true; END $$});
unlike($node->try(q{SELECT * FROM kliv_mail.messages WHERE public.leak(subject)}, role => 'rival')->{err}, qr/subject of (?:app|ana)/, 'a cheap function sees no foreign row');
unlike($node->try(q{SELECT * FROM kliv_mail.deliveries WHERE public.leak(recipient)}, role => 'rival')->{err}, qr/(?:app|ana)\@row/, '... nor in deliveries');
unlike($node->try(q{SELECT * FROM kliv_mail.events WHERE public.leak(recipient)}, role => 'rival')->{err}, qr/(?:app|ana)\@row/, '... nor in events');

my @calls = map { "SELECT kliv_mail.$_($id{app})" } qw(cancel retry raw_message);
my %state = attempts('rival', @calls, "SELECT kliv_mail.wait($id{app})");
is_deeply([ values %state ], [ ('22023') x 4 ], 'a foreign message is as if it were not there');
%state = attempts('ana', @calls);
is_deeply([ values %state ], [ ('ok') x 3 ], '... but not for a member of its sender');
%state = attempts('can_read', @calls);
is_deeply([ values %state ], [ ('42501') x 3 ], 'who reads all manages nothing, and reads no body');
$node->sql(q{SELECT kliv_mail.grant_send('can_read')});
%state = attempts('can_read', @calls);
is_deeply([ values %state ], [ ('22023') x 3 ], 'with grant_read and grant_send: still not of others, and no bodies');

# What stands behind the views can be called by who may read them: it tells no more.
$node->sql(qq{SELECT kliv_mail.send('$_-later\@row.example', 'x', 'x', send_at => kliv_mail._now() + interval '1 hour')}, role => $_) for qw(app rival ana);
for my $role (sort keys %sees)
{
    my $mine = join '|', split ' ', $sees{$role};
    is($node->sql('SELECT array_agg(id ORDER BY id) FROM kliv_mail._line()', role => $role),
        $node->sql("SELECT array_agg(o.id ORDER BY o.id) FROM kliv_mail._outbox AS o WHERE o.recipient ~ '^(?:$mine)-later\@'"), "$role: the line has what it may see");
    is($node->sql(q{SELECT count(*) FROM kliv_mail.deliveries WHERE recipient LIKE '%-later@row.example' AND estimated_send_at > kliv_mail._now()}, role => $role),
        scalar(split ' ', $sees{$role}), '... with its time');
}

# ---- SET ROLE, and a definer trigger ----

my $session = $node->session;
$session->query('SET SESSION AUTHORIZATION ana');
like($session->query('SELECT kliv_mail.pause()'), qr/42501/, 'a login of app may not administer');
$session->query('SET ROLE app');
$session->query(q{SELECT kliv_mail.send('setrole@row.example', 'x', 'x')});
is($session->query(q{SELECT sender_role FROM kliv_mail.messages ORDER BY id DESC LIMIT 1}), 'app', 'after SET ROLE app it is app that sends');
$session->query('RESET SESSION AUTHORIZATION');
$session->query('SET ROLE stranger');
like($session->query(q{SELECT kliv_mail.send('a@example.com', 'x', 'x')}), qr/42501/, 'a superuser in the role of a stranger may nothing');
like($session->query(q{SELECT * FROM kliv_mail.deliveries}), qr/42501/, '... nor see anything');
$session->quit;

$node->sql(q{
    CREATE TABLE users (email text);
    GRANT INSERT ON users TO web;
    CREATE FUNCTION welcome() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN PERFORM kliv_mail.send(NEW.email, 'Welcome', 'x'); RETURN NULL; END $$;
    ALTER FUNCTION welcome() OWNER TO app;
    CREATE TRIGGER welcome AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION welcome()});
is($node->try(q{INSERT INTO users VALUES ('trigger@row.example')}, role => 'web')->{state}, '', 'a definer trigger sends for a role without grants');
is($node->sql(q{SELECT sender_role FROM kliv_mail.messages ORDER BY id DESC LIMIT 1}), 'app', '... as its owner');
is($node->try(q{SELECT kliv_mail.send('a@example.com', 'x', 'x')}, role => 'web')->{state}, '42501', '... and to that role nothing stays');
is($node->try(q{SELECT * FROM kliv_mail.messages}, role => 'web')->{state}, '42501', '... nor does it see the mail');
$node->sql('ALTER FUNCTION welcome() OWNER TO stranger');
is($node->try(q{INSERT INTO users VALUES ('a@row.example')}, role => 'web')->{state}, '42501', 'one whose owner has no grant does not');
# ... and what a function of the caller's does runs as the caller, inside our functions too.
$node->sql(q{
    CREATE FUNCTION public.who() RETURNS text LANGUAGE plpgsql AS $$BEGIN RETURN current_user; END $$});
is($node->sql(q{SELECT convert_from((kliv_mail.csv('SELECT public.who() AS who', encoding => 'UTF8')).content, 'UTF8')}, role => 'app') =~ /app/ ? 'app' : 'other', 'app', 'csv() runs its query as the caller');
is($node->try(q{SELECT kliv_mail.csv('SELECT * FROM kliv_mail._account')}, role => 'app')->{state}, '42501', '... with no more rights');
is($node->try(q{SELECT kliv_mail.html_table('SELECT * FROM kliv_mail._account')}, role => 'app')->{state}, '42501', '... html_table() too');

# ---- members of the role that sent see it and may touch it; the role is a name ----

$node->sql(q{CREATE ROLE shop; CREATE ROLE assistant IN ROLE shop; CREATE ROLE competitor;
    SELECT kliv_mail.grant_send(r::name) FROM unnest(ARRAY['shop', 'assistant', 'competitor']) AS r});
my $shops = $node->sql(q{SELECT kliv_mail.send('later@row.example', 'x', 'x', send_at => now() + interval '1 day')}, role => 'shop');
sub sees
{
    my ($role) = @_;
    return $node->sql("SELECT (SELECT count(*) FROM kliv_mail.messages WHERE id = $shops), (SELECT count(*) FROM kliv_mail.deliveries WHERE message_id = $shops),
        (SELECT count(*) FROM kliv_mail.events WHERE message_id = $shops)", role => $role)
      . ' ' . join ' ', map { $_->{state} || $_->{out} } map { $node->try("SELECT kliv_mail.$_", role => $role) } "wait($shops, '0 s')", "retry($shops)";
}
my ($all, $nothing) = ('1|1|1 scheduled 0', '0|0|0 22023 22023');
sub shows { my ($role, $expected, $what) = @_; is(sees($role), $expected, $what); return; }
shows('assistant', $all, 'a member sees what its role sent');
shows('competitor', $nothing, '... and nobody else does');
$node->sql('ALTER ROLE shop RENAME TO store');
shows($_, $nothing, "renamed: $_ sees nothing of it") for qw(store assistant);
shows('can_admin', $all, '... an administrator does, and whose it was');
$node->sql('ALTER ROLE store RENAME TO shop');
shows('assistant', $all, 'the old name again: seen again');
$node->sql(q{SELECT kliv_mail.revoke_access('shop'); DROP ROLE shop});
shows('assistant', $nothing, 'dropped: nobody is a member any more');
$node->sql(q{CREATE ROLE shop; SELECT kliv_mail.grant_send('shop')});
shows('shop', $all, 'made anew: it sees what its namesake sent');
shows('assistant', $nothing, '... and the old members do not');
is($node->sql("SELECT kliv_mail.cancel($shops)", role => 'shop'), 't', '... and may stop it');

# ---- an administrator who is no superuser ----

$node->sql('CREATE ROLE deputy; CREATE ROLE clerk');
is($node->try(q{SELECT kliv_mail.grant_admin('deputy')}, role => 'can_admin')->{state}, '', 'an administrator makes another');
is($node->try(q{SELECT kliv_mail.grant_send('clerk')}, role => 'deputy')->{state}, '', '... who grants on');
is($node->try(q{SELECT kliv_mail.send('clerk@row.example', 'x', 'x')}, role => 'clerk')->{state}, '', '... and the grant works');
is($node->sql(q{SELECT role FROM kliv_mail.events WHERE kind = 'access_granted' AND detail LIKE '%clerk%'}), 'deputy', 'the event names who granted');
is($node->try(q{SELECT kliv_mail.grant_send('nobody_at_all')}, role => 'deputy')->{state}, '42704', 'a role that is not there');
is($node->try(q{SELECT kliv_mail._grant('clerk', 'clerk', 'admin')}, role => 'clerk')->{state}, '42501', 'nobody else gets at the inside');
is($node->try(q{SELECT kliv_mail.revoke_access('clerk')}, role => 'deputy')->{state}, '', 'and revokes');
is($node->sql(q{SELECT role FROM kliv_mail.events WHERE kind = 'access_revoked' AND detail LIKE '%clerk%'}), 'deputy', '... which the event tells too');

# ---- revoke_access ----

for my $grant (@grants)
{
    $node->sql("SELECT kliv_mail.revoke_access('can_$grant')");
    my %state = attempts("can_$grant", map { $_->[2] } @tries);
    is_deeply([ map { "$_: $state{$_}" } grep { $state{$_} ne '42501' && !(/^(?:INSERT|UPDATE|DELETE)/ && $state{$_} eq '55000') } sort keys %state ], [], "revoke_access('can_$grant') leaves nothing");
}
is($node->sql("SELECT x FROM ($held) AS h (x) WHERE x ~ '^(can_|clerk)'"), '', 'the catalogue agrees');
is($node->try(q{DROP ROLE can_send, can_read, can_ingest, can_admin, clerk})->{state}, '', 'and nothing keeps the roles from being dropped');
$node->stop;

done_testing();
