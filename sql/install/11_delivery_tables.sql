-- Deliveries, unfinished and finished, and what is in a sender's hands.

-- No CHECK on the hot tables, which nothing but our own code writes: each is parsed anew
-- by every statement that writes.  What send() puts into a column it names in send.c.
-- Unfinished deliveries.  route '' goes by the account in use.  epoch is NULL
-- while the row waits; a claim sets it together with account and windows.  No
-- index has what a claim sets, and each page keeps room, so that a claim writes
-- no index entry.  due is infinity while nothing but a call can move it (an
-- in-doubt delivery that is held).
CREATE TABLE kliv_mail._outbox (
    id               bigint PRIMARY KEY,
    message_id       bigint NOT NULL,
    recipient        text COLLATE "C" NOT NULL, -- addr-spec as on the wire
    kind             text NOT NULL,             -- to | cc | bcc
    origin           text COLLATE "C" NOT NULL,
    route            text COLLATE "C" NOT NULL, -- '' or an account's name
    priority         smallint NOT NULL,         -- 0 system, 1 transactional, 2 marketing
    due              timestamptz NOT NULL,
    created_at       timestamptz NOT NULL,
    expires_at       timestamptz,
    attempts         integer NOT NULL DEFAULT 0,
    first_attempt_at timestamptz,
    doubts           integer NOT NULL DEFAULT 0,    -- times that it ended in doubt
    doubtful         boolean NOT NULL DEFAULT false,    -- the last attempt ended in doubt
    doubted_at       timestamptz,               -- when it did,
    doubted          bigint,                    -- and the _change() that said so
    epoch            bigint,
    account          text COLLATE "C",          -- that it was last claimed for
    host             text,                      -- and the server that this had then
    hour_start       timestamptz,               -- windows that the claim was counted in
    day_start        timestamptz,
    identity         text COLLATE "C",          -- From and the other identity lines as last sent
    last_stage       text,
    last_code        integer,
    last_enhanced    text,
    last_reply       text,
    last_reason      text,
    last_hint        text,
    held_by          text,                      -- quota | key | account | limit (the provider's): what this row alone waits for, until due
    refused          text,                      -- a refusal about its account that others did not meet: its own, if met again
    replace_key      text COLLATE "C"           -- its message's
);
-- The predicate always holds.  It keeps the index from whoever names no origin: where a vacuum found no
-- living row every index costs the same, and ids were looked for in all of this one.
CREATE INDEX _outbox_ready ON kliv_mail._outbox (origin, route, priority, due, id) WHERE origin IS NOT NULL;
CREATE INDEX _outbox_message ON kliv_mail._outbox (message_id);
CREATE INDEX _outbox_replace ON kliv_mail._outbox (replace_key) WHERE replace_key IS NOT NULL;
CREATE INDEX _outbox_doubted ON kliv_mail._outbox (doubted, id) WHERE doubtful;
CREATE INDEX _outbox_expires ON kliv_mail._outbox (origin, expires_at) WHERE expires_at IS NOT NULL;
-- Rows come and go all day: vacuum by the row count, not by a share of it.
ALTER TABLE kliv_mail._outbox SET (fillfactor = 40, autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

-- What senders have in hand: a row for each claim, and one for what of it is
-- handed to connections, written and committed before that.  So what a dead
-- sender had claimed and not begun is no second copy and no used quota.
CREATE TABLE kliv_mail._batch (
    epoch      bigint NOT NULL,
    id         bigint NOT NULL,                 -- the sender's own count
    begun      boolean NOT NULL,                -- a server may have it
    deliveries bigint[] NOT NULL,
    -- By the id first, which each statement of a sender names: without statistics a search for
    -- ids could read all rows of the epoch, and the dead ones a held snapshot keeps.
    PRIMARY KEY (id, epoch)
);
-- Read back once or never: not worth compressing.
ALTER TABLE kliv_mail._batch ALTER deliveries SET STORAGE EXTERNAL;
ALTER TABLE kliv_mail._batch SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- Finished deliveries, written once, touched again only by later reports.
CREATE TABLE kliv_mail._delivery (
    id                bigint PRIMARY KEY,
    message_id        bigint NOT NULL,
    recipient         text COLLATE "C" NOT NULL,
    kind              text NOT NULL,
    priority          smallint NOT NULL,
    route             text COLLATE "C" NOT NULL,
    status            text NOT NULL,            -- sent | delivered | bounced | complained | failed | suppressed | cancelled | expired
    created_at        timestamptz NOT NULL,
    expires_at        timestamptz,
    attempts          integer NOT NULL,
    doubts            integer NOT NULL,
    account           text COLLATE "C",
    host              text,                     -- the server of its last attempt
    identity          text COLLATE "C",
    bounce_type       text,
    last_stage        text,
    last_code         integer,
    last_enhanced     text,
    last_reply        text,
    reason            text,
    hint              text,
    server_message_id text,
    sent_at           timestamptz,
    finished_at       timestamptz NOT NULL,
    simulated         boolean NOT NULL DEFAULT false,   -- no server was asked
    reported_at       timestamptz,              -- when a report last changed it
    changed           bigint NOT NULL           -- the _change() that made it what it is
);
CREATE INDEX _delivery_unwelcome ON kliv_mail._delivery (account, finished_at) WHERE bounce_type = 'hard' OR status = 'complained';
CREATE INDEX _delivery_played ON kliv_mail._delivery (finished_at) WHERE simulated AND status = 'sent';
CREATE INDEX _delivery_changed ON kliv_mail._delivery (changed, id);
CREATE INDEX _delivery_message ON kliv_mail._delivery (message_id);
-- By address, in the order of messages; the few that are not in lower case have their own (_goes_to()).
CREATE INDEX _delivery_recipient ON kliv_mail._delivery (recipient, message_id);
CREATE INDEX _delivery_recipient_case ON kliv_mail._delivery (lower(recipient COLLATE "C")) WHERE recipient <> lower(recipient COLLATE "C");
CREATE INDEX _delivery_finished ON kliv_mail._delivery (finished_at);
CREATE INDEX _delivery_blocked ON kliv_mail._delivery (account, finished_at) WHERE bounce_type = 'policy';

-- Does a delivery go to the address, which is in lower case?  Inlined, for the two indexes.
CREATE FUNCTION kliv_mail._goes_to(recipient text, address text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT recipient = address COLLATE "C"
        OR (recipient <> lower(recipient COLLATE "C") COLLATE "C" AND lower(recipient COLLATE "C") = address COLLATE "C");
END;

-- What became of a claimed delivery, as the sender tells it (45_record.sql).
CREATE TYPE kliv_mail._outcome AS (
    id          bigint,     -- the delivery; NULL: the account itself, whose connection or login failed
    account     text,
    verdict     text,       -- classify_reply()'s, returned, postponed, key, or a final status
    scope       text,
    bounce_type text,
    pause       integer,    -- seconds
    stage       text,
    code        integer,
    enhanced    text,
    reply       text,
    reason      text,
    hint        text,
    server_id   text,
    identity    text,       -- the identity lines as sent
    fingerprint text,       -- of the account's settings that it was met with; NULL: the present ones
    simulated   boolean     -- no server was asked
);

-- What statistics know, EXPLAIN tells whoever may read a view, also of mail that
-- is not theirs.  No index is on these columns, so no plan is worse without.
ALTER TABLE kliv_mail._message ALTER subject SET STATISTICS 0, ALTER tags SET STATISTICS 0, ALTER metadata SET STATISTICS 0,
    ALTER from_address SET STATISTICS 0, ALTER from_name SET STATISTICS 0, ALTER reply_to SET STATISTICS 0, ALTER template SET STATISTICS 0;
ALTER TABLE kliv_mail._outbox ALTER recipient SET STATISTICS 0, ALTER last_reply SET STATISTICS 0, ALTER last_reason SET STATISTICS 0;
ALTER TABLE kliv_mail._delivery ALTER recipient SET STATISTICS 0, ALTER last_reply SET STATISTICS 0, ALTER reason SET STATISTICS 0,
    ALTER server_message_id SET STATISTICS 0;
