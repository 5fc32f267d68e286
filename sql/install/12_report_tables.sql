-- What comes back after a server took a mail: reports, and who may hand them in.

-- configure_webhook(): a row each provider.
CREATE TABLE kliv_mail._webhook (
    provider      text COLLATE "C" PRIMARY KEY CHECK (provider IN ('sendgrid', 'mailgun', 'ses', 'postmark', 'resend')),
    secret_cipher bytea,                        -- sealed as an account's password is
    secret_masked text,
    key_id        text,
    public_key    text,
    topic_arn     text,
    certificate   text,
    updated_at    timestamptz NOT NULL,
    updated_by    name NOT NULL,
    CHECK (secret_cipher IS NULL OR key_id IS NOT NULL)
);

-- Every report that was believed, once.  What is not believed, anybody can send as
-- much of as he likes: that is counted in _ignored_report alone.
CREATE TABLE kliv_mail._report (
    source      text COLLATE "C" NOT NULL,      -- bounce, or the provider
    key         text COLLATE "C" NOT NULL,      -- the event's id there; of a bounce its hash
    at          timestamptz NOT NULL,
    kind        text NOT NULL,                  -- deferred | sent | delivered | bounced | complained | unsubscribed | confirmation
    message_id  bigint,                         -- NULL: of no delivery here
    delivery_id bigint,
    account     text,
    recipient   text,
    bounce_type text,
    detail      text,
    raw         bytea,                          -- how it came, its beginning; it may have a body in it, so no view shows it
    PRIMARY KEY (source, key)
);
CREATE INDEX _report_at ON kliv_mail._report (at);
CREATE INDEX _report_message ON kliv_mail._report (message_id) WHERE message_id IS NOT NULL;
CREATE INDEX _report_delivery ON kliv_mail._report (delivery_id) WHERE source = 'bounce';

CREATE TABLE kliv_mail._ignored_report (
    source  text COLLATE "C" NOT NULL,
    reason  text COLLATE "C" NOT NULL,
    day     date NOT NULL,                      -- of UTC
    count   bigint NOT NULL,
    last_at timestamptz NOT NULL,
    PRIMARY KEY (source, reason, day)
);

-- configure_bounce_mailbox(): one row, where there is one.
CREATE TABLE kliv_mail._bounce_mailbox (
    singleton           boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    origin              text COLLATE "C" NOT NULL,
    enabled             boolean NOT NULL,
    host                text NOT NULL,
    port                integer NOT NULL CHECK (port BETWEEN 1 AND 65535),
    encryption          text NOT NULL CHECK (encryption IN ('tls', 'starttls')),
    username            text NOT NULL,
    password_cipher     bytea NOT NULL,         -- sealed as an account's password is
    password_masked     text NOT NULL,
    key_id              text NOT NULL,
    mailbox             text NOT NULL,
    filed_mailbox       text NOT NULL,
    fetch_every         interval NOT NULL,
    last_test_at        timestamptz,
    last_test_ok        boolean,
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,   -- also says which settings the fetcher works with
    updated_by          name NOT NULL,
    password_changed_at timestamptz NOT NULL
);

-- How far the fetcher is, which alone writes it but for a change of the settings.  A
-- server gives a new mail a higher number than all before, as long as uid_validity is
-- the same: so one number stands for all that was looked at.
CREATE TABLE kliv_mail._fetched (
    singleton    boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    settings     timestamptz NOT NULL,          -- updated_at of the mailbox
    uid_validity bigint,                        -- NULL: not opened yet
    seen_uid     bigint NOT NULL DEFAULT 0,
    to_file      bigint[] NOT NULL DEFAULT '{}',    -- taken, and perhaps not moved yet
    postponed    bigint[] NOT NULL DEFAULT '{}',    -- the outcome that they speak of was not recorded yet
    hand_uid     bigint,                        -- what is, or was last, being taken
    hand_tries   integer NOT NULL DEFAULT 0,
    next_at      timestamptz NOT NULL,
    last_at      timestamptz,
    last_ok_at   timestamptz,
    failures     integer NOT NULL DEFAULT 0,    -- in a row
    trouble_step text,
    trouble      text,
    trouble_hint text,
    looked_at    bigint NOT NULL DEFAULT 0,     -- mails
    filed        bigint NOT NULL DEFAULT 0
);
