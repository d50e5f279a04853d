-- The bookkeeping of migrations. The migrations themselves are the files of migrations/.

-- name: create_migration_table
-- Serialised by a transaction-level advisory lock taken before, so that many processes may migrate at once.
CREATE TABLE IF NOT EXISTS pgjobs.migration (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp()
);

-- name: begin_step
-- Whatever the session's defaults are: a snapshot kept from before the lock would not show what the migrator before us
-- has done, and the wait for that one, like the step itself, takes as long as it takes.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SELECT pg_catalog.set_config(name, '0', true) FROM pg_catalog.pg_settings
WHERE name = ANY ('{statement_timeout,lock_timeout,idle_in_transaction_session_timeout,transaction_timeout}');

-- name: lock_migrations
-- One migrator at a time per schema; gone with the transaction, so it is safe behind a pooler.
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('pgjobs.migrate ' || %(schema)s::text, 0));

-- name: own_search_path
-- What a migration makes keeps the operators, functions and types that it was made with: those of pg_catalog, whatever
-- the caller's search_path would have found. That is kept in a setting, and ends with the transaction.
SELECT
    pg_catalog.set_config('pgjobs_caller.search_path', pg_catalog.current_setting('search_path'), true),
    pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

-- name: search_path_of_caller
SELECT pg_catalog.set_config('search_path', pg_catalog.current_setting('pgjobs_caller.search_path'), true);

-- name: bound_lock_waits
-- Asking for a lock on a table makes everybody else queue behind the request: not for long, then. For the migration's
-- own statements only; the wait for another migrator is before it.
SET LOCAL lock_timeout = '2s';

-- name: schema_exists
-- Asked first, so that a role without the right to create schemas can use one that is there.
SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s);

-- name: migration_table_exists
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class
    JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace
    WHERE nspname = %(schema)s AND relname = 'migration' AND relkind = 'r');

-- name: applied_migrations
SELECT version FROM pgjobs.migration ORDER BY version;

-- name: record_migration
INSERT INTO pgjobs.migration (version, name) VALUES ({version}, '{name}');

-- name: forget_migration
DELETE FROM pgjobs.migration WHERE version = {version};

-- name: guarded_table
-- For a script that may run twice, inside a transaction of somebody else's: one migrator at a time, and the table that
-- says what was done. Names are looked up in pg_catalog alone, as long as it takes.
DO $pgjobs$
DECLARE
    path constant pg_catalog.text := pg_catalog.current_setting('search_path');
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('pgjobs.migrate {schema}', 0));
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = '{schema}') THEN
        CREATE SCHEMA "{schema}";
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_class
        WHERE relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = '{schema}')
            AND relname = 'migration' AND relkind = 'r')
    THEN
        EXECUTE $pgjobs_step$
{table}
$pgjobs_step$;
    END IF;
    PERFORM pg_catalog.set_config('search_path', path, true);
END
$pgjobs$;

-- name: guarded_step
-- One step, unless it was taken. It is a text, of which nothing is looked at before.
DO $pgjobs$
DECLARE
    path constant pg_catalog.text := pg_catalog.current_setting('search_path');
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    IF {up} = (SELECT pg_catalog.count(*) = 0 FROM pgjobs.migration WHERE version = {version}) THEN
        EXECUTE $pgjobs_step$
{step}
$pgjobs_step$;
    END IF;
    PERFORM pg_catalog.set_config('search_path', path, true);
END
$pgjobs$;
