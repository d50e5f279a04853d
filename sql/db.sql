-- Applying migrations, which are the files of migrations/, and repairing damaged schemas.

-- name: create_migration_table
-- After lock_migrations.
CREATE TABLE IF NOT EXISTS pgjobs.migration (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    digest     text NOT NULL, -- of the SQL of this version
    applied_at timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp()
);

-- name: begin_step
-- Overrides the session's defaults. With a snapshot from before the lock, this transaction would not see the steps of
-- the process that had the lock before. The wait for that process, and the step itself, have no time limit.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SELECT pg_catalog.set_config(name, '0', true) FROM pg_catalog.pg_settings
WHERE name = ANY ('{statement_timeout,lock_timeout,idle_in_transaction_session_timeout,transaction_timeout}');

-- name: lock_migrations
-- One process at a time migrates a schema. The lock ends with the transaction, so it is safe behind a pooler.
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('pgjobs.migrate ' || %(schema)s::text, 0));

-- name: set_own_search_path
-- Functions, constraints and indexes keep the operators, functions and types that were found when they were created:
-- with this search_path those of pg_catalog. A setting keeps the caller's search_path; both end with the transaction.
SELECT
    pg_catalog.set_config('pgjobs_caller.search_path', pg_catalog.current_setting('search_path'), true),
    pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

-- name: restore_search_path
SELECT pg_catalog.set_config('search_path', pg_catalog.current_setting('pgjobs_caller.search_path'), true);

-- name: bound_lock_waits
-- While a step waits for a lock on a table, all other sessions queue behind it, so the wait must be short. Set after
-- lock_migrations, whose wait may be long.
SET LOCAL lock_timeout = '2s';

-- name: schema_exists
-- Checked first, so that a role without the right to create schemas can use an existing one.
SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s);

-- name: migration_table_exists
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class
    JOIN pg_catalog.pg_namespace ON pg_namespace.oid = pg_class.relnamespace
    WHERE nspname = %(schema)s AND relname = 'migration' AND relkind = 'r');

-- name: applied_migrations
-- Tables of an unreleased version have no digest.
SELECT version, pg_catalog.to_jsonb(migration) ->> 'digest' FROM pgjobs.migration ORDER BY version;

-- name: record_migration
INSERT INTO pgjobs.migration (version, name, digest) VALUES ({version}, '{name}', '{digest}');

-- name: remove_migration_record
DELETE FROM pgjobs.migration WHERE version = {version};

-- name: guarded_table
-- The start of a script that may run several times, in a transaction of its caller: lock out other migrations, and
-- create the schema and the table of migrations if they do not exist. Restores the caller's search_path at its end.
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
    ELSIF EXISTS (SELECT FROM pgjobs.migration AS done WHERE pg_catalog.to_jsonb(done) ->> 'digest' IS NULL) THEN
        RAISE EXCEPTION 'the tables of schema {schema} were made by an unreleased version of pgjobs: drop the schema';
    END IF;
    PERFORM pg_catalog.set_config('search_path', path, true);
END
$pgjobs$;

-- name: guarded_step
-- One step, unless it was taken. EXECUTE, so that the step is parsed only if it is needed.
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

-- ----- repairs: see pgjobs/db/repair.py
-- Each repair is preceded by a check, since this role may not have the right to repair.

-- name: existing_tables
-- All tables of the schema, including those that pgjobs did not create.
SELECT relname::text FROM pg_catalog.pg_class
WHERE relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s) AND relkind = ANY ('{r,p}');

-- name: shape
-- The parts of the schema, one per line, without the schema's name. The names of types come straight from the catalog,
-- so that no setting quotes them.
WITH schema AS (
    SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s
)
SELECT pg_catalog.concat_ws(' ', 'column', relname, attname, typname, CASE WHEN attnotnull THEN 'not null' END)
FROM pg_catalog.pg_class
    JOIN pg_catalog.pg_attribute ON attrelid = pg_class.oid
    JOIN pg_catalog.pg_type ON pg_type.oid = atttypid
WHERE relnamespace = (SELECT oid FROM schema) AND relkind = ANY ('{r,p}') AND attnum > 0 AND NOT attisdropped
UNION ALL
SELECT pg_catalog.concat_ws(' ', 'rule', COALESCE(relname, typname), conname)
FROM pg_catalog.pg_constraint
    LEFT JOIN pg_catalog.pg_class ON pg_class.oid = conrelid
    LEFT JOIN pg_catalog.pg_type ON pg_type.oid = contypid
WHERE connamespace = (SELECT oid FROM schema) AND contype = ANY ('{c,p,u}')
UNION ALL
SELECT pg_catalog.concat_ws(' ', 'index', owner.relname, index.relname)
FROM pg_catalog.pg_index
    JOIN pg_catalog.pg_class AS index ON index.oid = indexrelid
    JOIN pg_catalog.pg_class AS owner ON owner.oid = indrelid
WHERE owner.relnamespace = (SELECT oid FROM schema) AND owner.relkind = ANY ('{r,p}') AND indisvalid
UNION ALL
SELECT pg_catalog.concat_ws(' ', 'function', proname, pronargs) FROM pg_catalog.pg_proc
WHERE pronamespace = (SELECT oid FROM schema)
UNION ALL
SELECT pg_catalog.concat_ws(' ', 'trigger', relname, tgname)
FROM pg_catalog.pg_trigger JOIN pg_catalog.pg_class ON pg_class.oid = tgrelid
WHERE relnamespace = (SELECT oid FROM schema) AND NOT tgisinternal;

-- name: may_insert
-- False also while the session or the server is read-only.
SELECT pg_catalog.has_table_privilege(%(table)s::pg_catalog.regclass, 'INSERT')
    AND pg_catalog.current_setting('transaction_read_only') = 'off';

-- name: record_migrations
INSERT INTO pgjobs.migration (version, name, digest)
SELECT version, name, digest FROM ROWS FROM (
    pg_catalog.unnest(%(versions)s::integer[]), pg_catalog.unnest(%(names)s::text[]),
    pg_catalog.unnest(%(digests)s::text[])) AS known (version, name, digest)
ON CONFLICT DO NOTHING;

-- name: may_read_duties
-- A role that only enqueues has no right to read them.
SELECT pg_catalog.has_table_privilege('pgjobs.maintenance', 'SELECT');

-- name: duties
SELECT duty FROM pgjobs.maintenance;

-- name: insert_duties
INSERT INTO pgjobs.maintenance (duty) SELECT pg_catalog.unnest(%(duties)s::text[])
ON CONFLICT DO NOTHING
RETURNING duty;

-- name: sequence_rights
-- Whether this role may read, draw and set the next id; whether ids increase by one (if not, several servers share the
-- ids, and each skips those of the other servers); and whether this session may write.
SELECT pg_catalog.has_sequence_privilege('pgjobs.job_id_seq', 'SELECT')
        AND pg_catalog.has_column_privilege('pgjobs.job', 'id', 'SELECT'),
    pg_catalog.has_sequence_privilege('pgjobs.job_id_seq', 'USAGE'),
    pg_catalog.has_sequence_privilege('pgjobs.job_id_seq', 'UPDATE'),
    seqincrement = 1 AND NOT seqcycle,
    pg_catalog.current_setting('transaction_read_only') = 'off'
FROM pg_catalog.pg_sequence WHERE seqrelid = 'pgjobs.job_id_seq'::pg_catalog.regclass;

-- name: next_and_greatest_id
-- The next id of the sequence, and the greatest id of a job.
SELECT (last_value + is_called::integer)::bigint, (SELECT pg_catalog.max(id) FROM pgjobs.job) FROM pgjobs.job_id_seq;

-- name: skip_ids
-- Draws this many ids and uses none of them. Needs no lock: at the same time other transactions draw other ids.
SELECT pg_catalog.count(pg_catalog.nextval('pgjobs.job_id_seq'))
FROM pg_catalog.generate_series(1, %(ids)s::bigint);

-- name: set_next_id
-- For a gap that is too large for skip_ids. This could set the sequence back if other transactions drew ids between its
-- reading and its setting, within one statement: they cannot draw that many.
SELECT pg_catalog.setval('pgjobs.job_id_seq', %(greatest)s::bigint) FROM pgjobs.job_id_seq
WHERE (last_value + %(far)s::bigint) < %(greatest)s::bigint;

-- name: functions_of_old_schema
-- Functions that use an old name of a renamed schema, each with its definition, and whether this role may replace it.
-- They are in PL/pgSQL, whose body is text; the bodies of the functions in SQL follow a rename by themselves.
SELECT
    proname::text, (pg_catalog.regexp_match(prosrc, '"([a-z0-9_]+)"[.][a-z]'))[1], pg_catalog.pg_get_functiondef(oid),
    pg_catalog.pg_has_role(proowner, 'USAGE') AND pg_catalog.current_setting('transaction_read_only') = 'off'
FROM pg_catalog.pg_proc
WHERE pronamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s)
    AND (proname || ' ' || pronargs) = ANY (%(ours)s::text[])
    AND (pg_catalog.regexp_match(prosrc, '"([a-z0-9_]+)"[.][a-z]'))[1] <> %(schema)s
ORDER BY 1;

-- name: publications
-- The publications of each table of the schema.
SELECT DISTINCT tablename::text, pubname::text FROM pg_catalog.pg_publication_tables
WHERE schemaname = %(schema)s ORDER BY 1, 2;

-- name: connection_facts
-- Whether a connection can have startup options, and which: the process that serves it, whether the server can notice
-- during a statement that the client is gone, and whether the connection is one of TCP.
SELECT
    pg_catalog.pg_backend_pid(),
    pg_catalog.version() ~ 'linux|darwin|apple|bsd',
    pg_catalog.inet_client_addr() IS NOT NULL;

-- Whether the server refuses to change a published table. EXPLAIN makes the same checks as the statement itself, even
-- in a read-only session, and changes nothing.

-- name: try_job
EXPLAIN UPDATE pgjobs.job SET priority = priority WHERE false;
EXPLAIN DELETE FROM pgjobs.job WHERE false;

-- name: try_queue
EXPLAIN UPDATE pgjobs.queue SET name = name WHERE false;
EXPLAIN DELETE FROM pgjobs.queue WHERE false;

-- name: try_worker
EXPLAIN UPDATE pgjobs.worker SET pid = pid WHERE false;
EXPLAIN DELETE FROM pgjobs.worker WHERE false;

-- name: try_schedule
EXPLAIN UPDATE pgjobs.schedule SET error = error WHERE false;
EXPLAIN DELETE FROM pgjobs.schedule WHERE false;

-- name: try_scheduler
EXPLAIN UPDATE pgjobs.scheduler SET worker = worker WHERE false;
EXPLAIN DELETE FROM pgjobs.scheduler WHERE false;

-- name: try_cancel_request
EXPLAIN UPDATE pgjobs.cancel_request SET token = token WHERE false;
EXPLAIN DELETE FROM pgjobs.cancel_request WHERE false;

-- name: try_job_progress
EXPLAIN UPDATE pgjobs.job_progress SET done = done WHERE false;
EXPLAIN DELETE FROM pgjobs.job_progress WHERE false;

-- name: try_figure
EXPLAIN UPDATE pgjobs.figure SET completed = completed WHERE false;
EXPLAIN DELETE FROM pgjobs.figure WHERE false;

-- name: try_audit
EXPLAIN DELETE FROM pgjobs.audit WHERE false;

-- name: try_maintenance
EXPLAIN UPDATE pgjobs.maintenance SET next_run_at = next_run_at WHERE false;

-- name: try_migration
EXPLAIN DELETE FROM pgjobs.migration WHERE false;
