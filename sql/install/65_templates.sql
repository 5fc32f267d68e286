-- The views of templates.

CREATE VIEW kliv_mail.templates WITH (security_barrier) AS
    SELECT t.name, nullif(t.locale, '') AS locale, t.version, v.message_type, v.format, v.subject, v.variables, v.expires_in, v.description,
           v.saved_at, v.saved_by,
           (SELECT max(x.version) FROM kliv_mail._template_version AS x WHERE x.name = t.name AND x.locale = t.locale) AS newest_version
    FROM kliv_mail._template AS t
    LEFT JOIN kliv_mail._template_version AS v ON v.name = t.name AND v.locale = t.locale AND v.version = t.version;
COMMENT ON VIEW kliv_mail.templates IS 'The templates, with the version of each that is in use.';
COMMENT ON COLUMN kliv_mail.templates.name IS 'What send_template() calls it.';
COMMENT ON COLUMN kliv_mail.templates.locale IS 'NULL: the default, for every locale that has no own.';
COMMENT ON COLUMN kliv_mail.templates.version IS 'The one in use; NULL while there are drafts alone.';
COMMENT ON COLUMN kliv_mail.templates.message_type IS 'system, transactional or marketing.';
COMMENT ON COLUMN kliv_mail.templates.format IS 'markdown or html.';
COMMENT ON COLUMN kliv_mail.templates.subject IS 'The subject, with its variables.';
COMMENT ON COLUMN kliv_mail.templates.variables IS 'What a caller gives: {"name": {"required", "default", "example", "description"}}.';
COMMENT ON COLUMN kliv_mail.templates.expires_in IS 'How long a mail may wait to leave; NULL: as long as it takes.';
COMMENT ON COLUMN kliv_mail.templates.description IS 'As given to save_template().';
COMMENT ON COLUMN kliv_mail.templates.saved_at IS 'When this version was saved.';
COMMENT ON COLUMN kliv_mail.templates.saved_by IS 'Who saved this version.';
COMMENT ON COLUMN kliv_mail.templates.newest_version IS 'The last one that was saved; a draft where it is not version.';

CREATE VIEW kliv_mail.template_versions WITH (security_barrier) AS
    SELECT v.name, nullif(v.locale, '') AS locale, v.version, coalesce(t.version = v.version, false) AS in_use, v.message_type, v.format, v.subject,
           v.body, v.plain_text, v.variables, v.expires_in, v.description, v.saved_at, v.saved_by
    FROM kliv_mail._template_version AS v
    LEFT JOIN kliv_mail._template AS t ON t.name = v.name AND t.locale = v.locale;
COMMENT ON VIEW kliv_mail.template_versions IS 'Every version of every template, also of deleted ones; restore_template() puts one into use.';
COMMENT ON COLUMN kliv_mail.template_versions.name IS 'The template.';
COMMENT ON COLUMN kliv_mail.template_versions.locale IS 'NULL: the default.';
COMMENT ON COLUMN kliv_mail.template_versions.version IS 'From 1, for each name and locale.';
COMMENT ON COLUMN kliv_mail.template_versions.in_use IS 'Is it what send_template() uses?';
COMMENT ON COLUMN kliv_mail.template_versions.message_type IS 'system, transactional or marketing.';
COMMENT ON COLUMN kliv_mail.template_versions.format IS 'markdown or html.';
COMMENT ON COLUMN kliv_mail.template_versions.subject IS 'The subject, with its variables.';
COMMENT ON COLUMN kliv_mail.template_versions.body IS 'The source.';
COMMENT ON COLUMN kliv_mail.template_versions.plain_text IS 'The text part''s source; NULL: made from the body.';
COMMENT ON COLUMN kliv_mail.template_versions.variables IS 'As declared, or as found.';
COMMENT ON COLUMN kliv_mail.template_versions.expires_in IS 'How long a mail may wait to leave.';
COMMENT ON COLUMN kliv_mail.template_versions.description IS 'As given to save_template().';
COMMENT ON COLUMN kliv_mail.template_versions.saved_at IS 'When it was saved.';
COMMENT ON COLUMN kliv_mail.template_versions.saved_by IS 'Who saved it.';
