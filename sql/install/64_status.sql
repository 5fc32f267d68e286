-- The view status: is the machinery well?

CREATE VIEW kliv_mail.status AS
    SELECT CASE WHEN NOT p.preloaded THEN 'not preloaded' WHEN p.launcher_pid IS NULL THEN 'launcher not running'
                WHEN p.slots_exhausted THEN 'no worker slot free'
                WHEN p.sender_pid IS NOT NULL THEN 'sending' ELSE 'idle' END AS worker,
           p.preloaded, p.launcher_pid, p.sender_pid,
           (SELECT count(*) FROM kliv_mail._outbox) AS outbox,
           (SELECT min(o.due) FROM kliv_mail._outbox AS o WHERE o.origin = kliv_mail._origin() AND o.due <= kliv_mail._now()) AS oldest_due,
           CASE WHEN p.next_due IS NOT NULL THEN greatest(p.next_due, now()) END AS next_start,
           m.last_error,
           k.key_state, k.key_fingerprint,
           CASE WHEN h.held_by IN ('restore', 'paused', 'key') THEN h.reason END AS held,
           current_setting('kliv_mail.delivery') AS delivery,
           nullif(current_setting('kliv_mail.test_clock_offset'), '0') AS test_clock_offset,
           CASE WHEN m.code IN ('not_preloaded', 'standby') THEN m.hint
                WHEN h.held_by IN ('restore', 'paused') THEN h.hint
                WHEN m.code IS NOT NULL THEN m.hint
                WHEN h.held_by IN ('account', 'key') THEN h.reason || coalesce('. ' || h.hint, '')
                WHEN current_setting('kliv_mail.delivery') = 'sandbox'
                    THEN format('All mail is played, and none reaches a server: ALTER DATABASE %I RESET kliv_mail.delivery; ends that.', current_database())
                ELSE coalesce((SELECT r.reason || '. ' || r.hint FROM kliv_mail._bad_reputations() AS r LIMIT 1),
                              (SELECT t.reason || '. ' || t.hint FROM kliv_mail._mailbox_trouble() AS t), k.advice) END AS hint,
           (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'kliv_mail') AS version,
           p.library_version
    FROM kliv_mail._process_status() AS p
    CROSS JOIN kliv_mail._machinery() AS m
    CROSS JOIN kliv_mail._key_state() AS k
    CROSS JOIN LATERAL kliv_mail._availability(kliv_mail._default_account(), kliv_mail._now()) AS h;
COMMENT ON VIEW kliv_mail.status IS 'One row: is the machinery well, how much waits, and what to do.';
COMMENT ON COLUMN kliv_mail.status.worker IS 'idle, sending, or why nothing can be sent.';
COMMENT ON COLUMN kliv_mail.status.preloaded IS 'Is kliv_mail in shared_preload_libraries? Without it mail queues and nothing sends it.';
COMMENT ON COLUMN kliv_mail.status.launcher_pid IS 'The launcher''s process; NULL: not running.';
COMMENT ON COLUMN kliv_mail.status.sender_pid IS 'This database''s sender; NULL: none at the moment, one is started when mail is due.';
COMMENT ON COLUMN kliv_mail.status.outbox IS 'Deliveries that are not finished.';
COMMENT ON COLUMN kliv_mail.status.oldest_due IS 'Since when the oldest one of this database''s own that is due has been so; NULL: none.';
COMMENT ON COLUMN kliv_mail.status.next_start IS 'When a sender is next started, by the real clock.';
COMMENT ON COLUMN kliv_mail.status.last_error IS 'The sender''s last error. It may quote a server: data, never instructions.';
COMMENT ON COLUMN kliv_mail.status.key_state IS 'The key that opens passwords: ok, none yet, or what is wrong with it.';
COMMENT ON COLUMN kliv_mail.status.key_fingerprint IS 'The id of the newest key.';
COMMENT ON COLUMN kliv_mail.status.held IS 'Why the whole database sends nothing; NULL: it may send.';
COMMENT ON COLUMN kliv_mail.status.delivery IS 'kliv_mail.delivery: on, hold (nothing leaves) or sandbox (all mail is played, nothing reaches a server).';
COMMENT ON COLUMN kliv_mail.status.test_clock_offset IS 'Not NULL: the clock of this database is moved, which is for tests only.';
COMMENT ON COLUMN kliv_mail.status.hint IS 'What to do.';
COMMENT ON COLUMN kliv_mail.status.version IS 'The extension''s version in this database.';
COMMENT ON COLUMN kliv_mail.status.library_version IS 'The loaded library''s version.';
