-- A sign-up page in SQL: each new user gets a welcome mail.
\pset footer off
\pset null ''

SET client_min_messages = warning;
\echo '== CREATE EXTENSION, a table of users, a trigger that welcomes them'
\set ECHO queries
CREATE EXTENSION kliv_mail CASCADE;
\set ECHO none
RESET client_min_messages;
\set ECHO queries

CREATE TABLE users (
    id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name  text NOT NULL,
    email text NOT NULL
);

CREATE FUNCTION welcome() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM kliv_mail.send(
        recipients => kliv_mail.mailbox(NEW.email, NEW.name),
        subject    => 'Welcome, ' || NEW.name || '!',
        body       => format(E'Hello %s,\n\nit is good to have you here.\n', NEW.name));
    RETURN NULL;
END;
$$;

CREATE TRIGGER welcome AFTER INSERT ON users
    FOR EACH ROW WHEN (kliv_mail.is_address(NEW.email)) EXECUTE FUNCTION welcome();

-- The web application: it may sign users up, and it may not send mail.  (A
-- trigger's WHEN is evaluated with the rights of the role that inserts.)
CREATE ROLE web;
GRANT INSERT ON users TO web;
GRANT EXECUTE ON FUNCTION kliv_mail.is_address(text) TO web;

\echo
\echo '== three people sign up, as role web; the platform sends 2 an hour'
SET ROLE web;
INSERT INTO users (name, email) VALUES ('Ana', 'ana@example.com');
INSERT INTO users (name, email) VALUES ('山田太郎', 'taro@example.jp');
INSERT INTO users (name, email) VALUES ('Bob', 'bob@example.org');
RESET ROLE;
\set ECHO none

\echo
\echo '== SELECT id, subject, kliv_mail.wait(id) FROM kliv_mail.messages'
SELECT id, subject, kliv_mail.wait(id) FROM kliv_mail.messages ORDER BY id;

\echo '== kliv_mail.deliveries'
SELECT recipient, status, last_code AS code, last_reply, held_by, reason,
       to_char(estimated_send_at, 'YYYY-MM-DD HH24:MI') AS estimated_send_at
FROM kliv_mail.deliveries ORDER BY message_id \gx

\echo '== kliv_mail.usage'
SELECT account, window_name, used, quota, remaining, queued FROM kliv_mail.usage ORDER BY 1, 2 DESC;
