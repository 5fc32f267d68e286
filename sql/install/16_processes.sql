-- What the processes of this database do, and how SQL speaks with them.

-- Exactly one row; next_due is in real time, NULL where nothing is known.
CREATE FUNCTION kliv_mail._process_status(
        OUT preloaded boolean, OUT launcher_pid integer, OUT sender_pid integer,
        OUT next_due timestamptz, OUT slots_exhausted boolean, OUT last_error text,
        OUT library_version text)
    LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED
    AS 'MODULE_PATHNAME', 'kliv_mail__process_status';
COMMENT ON FUNCTION kliv_mail._process_status() IS
    'Whether the library is preloaded, and what launcher and sender of this database do.';

-- At the commit of this transaction a sender looks for what may go, and who is
-- in wait() looks again.
CREATE FUNCTION kliv_mail._wake() RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'kliv_mail__wake';
COMMENT ON FUNCTION kliv_mail._wake() IS
    'Wakes or starts a sender, and whoever is in wait(), when this transaction commits.';

-- The launcher, a standby and other databases read the label without connecting.
CREATE FUNCTION kliv_mail._label_keys(ids text) RETURNS void
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'kliv_mail__label_keys';
COMMENT ON FUNCTION kliv_mail._label_keys(text) IS
    'Writes the ids of the keys that this database needs, separated by commas, into its security label.';

-- A claim carries the epoch of the process that made it. The process holds the
-- epoch's lock until it ends; a claim whose epoch is dead is orphaned.
CREATE FUNCTION kliv_mail._epoch_lock(epoch bigint) RETURNS boolean
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'kliv_mail__epoch_lock';
COMMENT ON FUNCTION kliv_mail._epoch_lock(bigint) IS
    'Takes the lock of an epoch for the life of this process; false if another one holds it.';

CREATE FUNCTION kliv_mail._epoch_dead(epoch bigint) RETURNS boolean
    LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
    AS 'MODULE_PATHNAME', 'kliv_mail__epoch_dead';
COMMENT ON FUNCTION kliv_mail._epoch_dead(bigint) IS
    'True exactly when no process holds the lock of this epoch.';
