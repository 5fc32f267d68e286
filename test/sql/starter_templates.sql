-- Starter templates: what is installed and what is left alone, and the text part
-- of each, which is to read well.
\pset format unaligned
\pset tuples_only on
\encoding UTF8
SELECT kliv_mail.install_starter_templates('fr');
SELECT kliv_mail.save_template('welcome', 'My own', 'Mine', locale => 'ja', publish => false);
SELECT kliv_mail.install_starter_templates('ja-JP'), kliv_mail.install_starter_templates('ja'), kliv_mail.install_starter_templates(), kliv_mail.install_starter_templates();
SELECT name, locale, newest_version FROM kliv_mail.templates WHERE (name, locale) = ('welcome', 'ja') OR newest_version <> 1;
SELECT kliv_mail.delete_template('welcome', 'ja'), kliv_mail.install_starter_templates('en'), kliv_mail.install_starter_templates('ja');
SELECT name, message_type, expires_in, (SELECT string_agg(k, ' ' ORDER BY k) FROM jsonb_object_keys(variables) AS k) FROM kliv_mail.templates WHERE locale IS NULL ORDER BY name;
-- Both languages take the same, but for the name in a greeting.
SELECT e.name FROM kliv_mail.templates AS e JOIN kliv_mail.templates AS j ON j.name = e.name AND j.locale = 'ja'
WHERE e.locale IS NULL AND (e.message_type, e.expires_in) IS DISTINCT FROM (j.message_type, j.expires_in)
   OR e.locale IS NULL AND (SELECT jsonb_object_agg(x.key, x.value - 'example' - 'description' - 'default') FROM jsonb_each(e.variables - '{firstName,lastName}'::text[]) AS x)
      <> (SELECT jsonb_object_agg(x.key, x.value - 'example' - 'description' - 'default') FROM jsonb_each(j.variables - '{firstName,lastName}'::text[]) AS x);
-- Nothing to warn of, with a brand and without.
SELECT t.name, t.locale, c.problem FROM kliv_mail.templates AS t, kliv_mail.check_template(t.name, t.locale) AS c;
SELECT p.subject FROM kliv_mail.templates AS t, kliv_mail.preview_template(t.name, locale => t.locale) AS p ORDER BY t.locale, t.name;
SELECT (kliv_mail.set_brand(name => 'Example', postal_address => E'1 Main Street\nSpringfield') -> 'name');
SELECT t.name, t.locale, c.problem FROM kliv_mail.templates AS t, kliv_mail.check_template(t.name, t.locale) AS c;
SELECT format(E'\n######## %s %s\n%s\n\n%s', t.name, t.locale, p.subject, p.plain_text)
FROM kliv_mail.templates AS t, kliv_mail.preview_template(t.name, locale => t.locale) AS p ORDER BY t.locale, t.name;
-- A table whose headings are empty has none; a code is large.
SELECT t.name, p.html ~ '<thead>', p.html ~ 'font-size:28px' FROM unnest(ARRAY['receipt', 'security-alert', 'one-time-code']) AS t (name), kliv_mail.preview_template(t.name) AS p;
-- Without what may be missing.
SELECT p.plain_text FROM unnest(ARRAY[NULL, 'ja']) AS l, kliv_mail.preview_template('receipt', '{"firstName": null, "lastName": "", "url": null, "items": []}', l) AS p;
SELECT p.plain_text FROM unnest(ARRAY[NULL, 'ja']) AS l, kliv_mail.preview_template('security-alert', '{"device": "", "place": null}', l) AS p;
SELECT count(kliv_mail.delete_template(name)) FROM (SELECT DISTINCT name FROM kliv_mail.templates) AS t;
SELECT kliv_mail.set_brand(name => '', postal_address => '') -> 'name';
