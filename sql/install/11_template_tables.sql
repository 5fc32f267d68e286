-- The tables of templates.

-- version: the one in use; NULL while there are drafts alone.  locale '' is the default.
CREATE TABLE kliv_mail._template (
    name    text COLLATE "C" NOT NULL,
    locale  text COLLATE "C" NOT NULL,
    version integer,
    PRIMARY KEY (name, locale)
);

-- Every save, kept also when its template is deleted.
CREATE TABLE kliv_mail._template_version (
    name         text COLLATE "C" NOT NULL,
    locale       text COLLATE "C" NOT NULL,
    version      integer NOT NULL,
    subject      text NOT NULL,
    body         text NOT NULL,
    format       text NOT NULL CHECK (format IN ('markdown', 'html')),
    plain_text   text,
    message_type text NOT NULL CHECK (message_type IN ('system', 'transactional', 'marketing')),
    variables    jsonb NOT NULL,                -- as declared, or as found
    expires_in   interval,
    description  text,
    saved_at     timestamptz NOT NULL,
    saved_by     name NOT NULL,
    PRIMARY KEY (name, locale, version)
);

-- Another value whenever what mail is made from changes, so that sessions know
-- whether what they keep compiled still is what there is.
CREATE TABLE kliv_mail._template_state (
    singleton  boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    generation uuid NOT NULL
);
