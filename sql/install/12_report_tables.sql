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
CREATE INDEX _report_delivery ON kliv_mail._report (delivery_id) WHERE source = 'bounce';

CREATE TABLE kliv_mail._ignored_report (
    source  text COLLATE "C" NOT NULL,
    reason  text COLLATE "C" NOT NULL,
    day     date NOT NULL,                      -- of UTC
    count   bigint NOT NULL,
    last_at timestamptz NOT NULL,
    PRIMARY KEY (source, reason, day)
);
