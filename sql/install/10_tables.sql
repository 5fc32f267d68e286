-- The tables but those of deliveries and templates (11_).  Hot and cold apart:
-- _outbox holds only unfinished deliveries, finishing moves a row to _delivery,
-- _message holds what was composed once.  No foreign keys on the hot path.  Every
-- table has a primary key, and no row that this script makes (_state, _salt) has
-- the key of another database's, so that dump and restore meet no conflict.  (What
-- is dumped is registered in 95_dump.sql.)

CREATE TYPE kliv_mail.attachment AS (
    filename     text,
    content_type text,
    content_id   text,
    content      bytea
);
COMMENT ON TYPE kliv_mail.attachment IS
    'A file for send(); make it with kliv_mail.attach() or kliv_mail.attach_text(), which check it.';

CREATE SEQUENCE kliv_mail._message_id;
CREATE SEQUENCE kliv_mail._delivery_id;
CREATE SEQUENCE kliv_mail._event_id;
CREATE SEQUENCE kliv_mail._epoch;

-- Where this database's mail may leave from (promise 8): CREATE EXTENSION
-- makes the row of kliv_mail._origin().  Where there is another origin's, this
-- is a copy: a dump brings its own row and meets the new one, a copy of the
-- files has the old one alone.  The eras together count the servers that it has
-- lived on (_change()).
CREATE TABLE kliv_mail._state (
    origin     text COLLATE "C" PRIMARY KEY,
    era        integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- What the secrets of this database are bound to.  The row that is made here gets
-- company where a dump is restored: the original's, which is older and goes on
-- to be used.  So no row of a dump can collide with it.
CREATE TABLE kliv_mail._salt (
    salt    bytea PRIMARY KEY CHECK (octet_length(salt) = 16),
    made_at timestamptz NOT NULL
);
INSERT INTO kliv_mail._salt (salt, made_at) VALUES (uuid_send(gen_random_uuid()), now());

-- The last test of the platform's account, which is no row of _account.
CREATE TABLE kliv_mail._platform_test (
    singleton  boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    tested_at  timestamptz NOT NULL,
    ok         boolean NOT NULL,
    renewed_at timestamptz                      -- moves with every successful test: ends a hold
);

-- The accounts that configure_smtp() saves.  'platform' is never a row.
CREATE TABLE kliv_mail._account (
    name                text COLLATE "C" PRIMARY KEY CHECK (name <> 'platform'),
    in_use              boolean NOT NULL,       -- false after reset_smtp(), which keeps the identity
    route_order         integer NOT NULL,       -- failover: lower first; custom is 0
    origin              text COLLATE "C" NOT NULL,
    provider            text,
    region              text,
    host                text,
    port                integer CHECK (port BETWEEN 1 AND 65535),
    encryption          text CHECK (encryption IN ('tls', 'starttls', 'none')),
    auth                text CHECK (auth IN ('password', 'oauth2')),
    username            text,                   -- NULL where secret (then username_cipher) or none
    username_cipher     bytea,
    username_masked     text,
    password_cipher     bytea,                  -- names its key, bound to account, host, port, user
    password_masked     text,
    key_id              text,
    from_address        text,
    from_name           text,
    reply_to            text,
    allowed_senders     text[] NOT NULL DEFAULT '{}',
    hourly_limit        integer NOT NULL DEFAULT 50 CHECK (hourly_limit >= 0),
    daily_limit         integer NOT NULL DEFAULT 500 CHECK (daily_limit >= 0),
    rolling_limit       integer CHECK (rolling_limit >= 0), -- what its provider takes in any 24 hours; 0: as daily_limit; NULL: no such rule
    renewed_at          timestamptz NOT NULL,   -- moves with every configure and successful test: ends a hold
    last_test_at        timestamptz,
    last_test_ok        boolean,
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    updated_by          name NOT NULL,
    password_changed_at timestamptz,
    CONSTRAINT _account_complete CHECK (NOT in_use OR (host IS NOT NULL AND port IS NOT NULL AND encryption IS NOT NULL
        AND from_address IS NOT NULL)),
    CHECK (name <> '' AND origin <> ''),
    CHECK (password_cipher IS NULL OR key_id IS NOT NULL)
);

-- pause(): account '' is the whole database.
CREATE TABLE kliv_mail._pause (
    account   text COLLATE "C" PRIMARY KEY,
    reason    text,
    paused_at timestamptz NOT NULL,
    paused_by name NOT NULL
);

-- One row an account, made by the first claim.  Its lock serialises the claims
-- of the account; its columns are the hold that a reply caused.  Written by
-- _claim() and _record() only, never by settings or send().
CREATE TABLE kliv_mail._quota (
    account     text COLLATE "C" PRIMARY KEY,
    held_until  timestamptz,                    -- NULL: not held
    held_by     text CHECK (held_by IN ('quota', 'account', 'key')),
    held_reason text,
    held_hint   text,
    held_since  timestamptz,
    failures    integer NOT NULL DEFAULT 0,     -- account-scope failures in a row
    held_stage  text,                           -- where in the session it was met
    probe       bigint,                         -- the delivery that tries, or last tried, whether they have ended
    suspects    bigint[] NOT NULL DEFAULT '{}', -- the deliveries in a row that were refused as if the account were to blame
    fingerprint text,                           -- of the settings that hold and suspects are about
    connections integer,                        -- no more at once, as its server showed
    connections_until timestamptz,
    told        text,                           -- the hold that the server's log last told of; NULL: that it is over, or none
    told_at     timestamptz
);

-- What bounces and complaints make of an account's name (49_reputation.sql): no row, no trouble yet.
CREATE TABLE kliv_mail._reputation (
    account    text COLLATE "C" PRIMARY KEY,
    stage      text CHECK (stage IN ('warning', 'paused')),    -- paused: no marketing mail leaves
    reason     text,
    judged_at  timestamptz NOT NULL,
    resumed_at timestamptz                      -- by resume(): what came before counts no more
);

-- What was claimed, by account name, kind of window and window.  Rows whose
-- range contains the present count, so that neither a clock set back nor
-- another quota_timezone opens a second window.  Each claim updates a row, and beside a
-- snapshot that somebody holds all its versions stay: with every fiftieth update the row has
-- another generation, so that an index finds the last few of them (_windows()).
CREATE TABLE kliv_mail._usage (
    account        text COLLATE "C" NOT NULL,
    window_name    text COLLATE "C" NOT NULL CHECK (window_name IN ('hour', 'day')),
    window_start   timestamptz NOT NULL,
    window_end     timestamptz NOT NULL,
    used           integer NOT NULL DEFAULT 0 CHECK (used >= 0),
    used_marketing integer NOT NULL DEFAULT 0 CHECK (used_marketing >= 0),
    updates        integer NOT NULL DEFAULT 0,
    generation     integer NOT NULL DEFAULT 0,
    CHECK (window_end > window_start),
    PRIMARY KEY (account, window_name, window_start, generation)
);

CREATE TABLE kliv_mail._message (
    id            bigint PRIMARY KEY,
    created_at    timestamptz NOT NULL,
    sender_role   name NOT NULL,
    message_type  text NOT NULL,                -- system | transactional | marketing
    template      text,
    account       text COLLATE "C",             -- as asked for; NULL: the account in use
    from_address  text,                         -- as wished; NULL: the account's
    from_name     text,
    reply_to      text,                         -- an address list
    subject       text NOT NULL,
    header_id     text COLLATE "C" NOT NULL,    -- Message-ID without <>; without its @domain until _name_message()
    entity        bytea NOT NULL,               -- from Date on, CRLF, as it goes on the wire
    smtputf8      boolean NOT NULL DEFAULT false,   -- an address in its header is not ASCII
    unsubscribe   boolean NOT NULL DEFAULT false,   -- the sender adds each recipient's unsubscribe link
    topic         text COLLATE "C",             -- of marketing mail
    send_at       timestamptz,
    expires_at    timestamptz,
    recipients    integer NOT NULL,
    tags          text[],
    metadata      jsonb,
    replace_key   text COLLATE "C"
);
ALTER TABLE kliv_mail._message ALTER entity SET STORAGE EXTERNAL;
CREATE INDEX _message_created ON kliv_mail._message (created_at);
CREATE INDEX _message_header_id ON kliv_mail._message (header_id);

-- Addresses, and whole domains (@example.com), that get no mail, in lower case.
-- scope: all, marketing (all of that), or a topic of it.
CREATE TABLE kliv_mail._suppression (
    address    text COLLATE "C" NOT NULL,
    scope      text COLLATE "C" NOT NULL CHECK (scope ~ '^[a-z0-9_-]{1,63}$'),
    reason     text,
    created_at timestamptz NOT NULL,
    created_by name NOT NULL,
    expires_at timestamptz,
    bounces    integer NOT NULL DEFAULT 0,      -- hard ones that were counted
    PRIMARY KEY (address, scope),
    CHECK (address = lower(address COLLATE "C") AND address ~ '@')
);

CREATE INDEX _suppression_expires ON kliv_mail._suppression (expires_at) WHERE expires_at IS NOT NULL;

-- Those of addresses that forget() erased, as _address_hash() has them.
CREATE TABLE kliv_mail._forgotten (
    hash       text COLLATE "C" NOT NULL,
    scope      text COLLATE "C" NOT NULL,
    expires_at timestamptz,
    PRIMARY KEY (hash, scope)
);

-- save_topic(): what a page shows of the topics of marketing mail.  Mail may name
-- others as well.
CREATE TABLE kliv_mail._topic (
    name        text COLLATE "C" NOT NULL,
    locale      text COLLATE "C" NOT NULL,      -- '': for all that have no own
    title       text,
    description text,
    saved_at    timestamptz NOT NULL,
    saved_by    name NOT NULL,
    PRIMARY KEY (name, locale)
);

-- set_brand(): one row, made at the first call.
CREATE TABLE kliv_mail._brand (
    singleton       boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    name            text,
    logo_url        text,
    color           text,
    postal_address  text,
    footer          text,
    unsubscribe_url text,
    time_zone       text
);

CREATE TABLE kliv_mail._idempotency (
    sender_role name NOT NULL,
    key         text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL,                 -- of the other arguments
    message_id  bigint NOT NULL,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (sender_role, key)
);
CREATE INDEX _idempotency_message ON kliv_mail._idempotency (message_id);

-- Messages with a replace_key whose earlier ones a sender is to stop, and never to claim:
-- their caller's transaction could not see or lock all of them.
CREATE TABLE kliv_mail._replacement (
    message_id  bigint NOT NULL,
    sender_role name NOT NULL,
    replace_key text COLLATE "C" NOT NULL,
    PRIMARY KEY (replace_key, sender_role, message_id)
);
ALTER TABLE kliv_mail._replacement SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- What the view events cannot derive: settings changed, holds, failovers, copies.
CREATE TABLE kliv_mail._event (
    id          bigint PRIMARY KEY,
    at          timestamptz NOT NULL,
    kind        text NOT NULL,
    account     text,
    message_id  bigint,
    delivery_id bigint,
    role        name,
    detail      text,
    data        jsonb                           -- never a secret
);
CREATE INDEX _event_at ON kliv_mail._event (at);
CREATE INDEX _event_message ON kliv_mail._event (message_id) WHERE message_id IS NOT NULL;
