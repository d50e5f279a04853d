-- The bookkeeping of migrations. The migrations themselves are the files of migrations/.

-- name: create_migration_table
-- Serialised by a transaction-level advisory lock taken before, so that many processes may migrate at once.
CREATE TABLE IF NOT EXISTS pgjobs.migration (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    digest     text NOT NULL, -- of the SQL that made the tables
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
-- Tables of an unreleased version have no digest.
SELECT version, pg_catalog.to_jsonb(migration) ->> 'digest' FROM pgjobs.migration ORDER BY version;

-- name: record_migration
INSERT INTO pgjobs.migration (version, name, digest) VALUES ({version}, '{name}', '{digest}');

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
    ELSIF EXISTS (SELECT FROM pgjobs.migration AS done WHERE pg_catalog.to_jsonb(done) ->> 'digest' IS NULL) THEN
        RAISE EXCEPTION 'the tables of schema {schema} were made by an unreleased version of pgjobs: drop the schema';
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

-- ----- what is needed beside the tables
-- What pgjobs needs beside its tables, and what a TRUNCATE, a dump without rows or a failover takes away: rows of its
-- own, and a sequence that is ahead of the ids. A look comes before each repair, since the role may not be allowed to
-- repair.

-- name: tables
-- All of the schema, whoever they belong to.
SELECT relname::text FROM pg_catalog.pg_class
WHERE relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s) AND relkind = ANY ('{r,p}');

-- name: shape
-- What the schema consists of, a line each, with no name of the schema in it. The names of types are taken as they
-- stand in the catalog: no setting quotes them.
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

-- name: may_write
-- Whether this session may insert into a table of ours, now.
SELECT pg_catalog.has_table_privilege(%(table)s::pg_catalog.regclass, 'INSERT')
    AND pg_catalog.current_setting('transaction_read_only') = 'off';

-- name: record_migrations
INSERT INTO pgjobs.migration (version, name, digest)
SELECT version, name, digest FROM ROWS FROM (
    pg_catalog.unnest(%(versions)s::integer[]), pg_catalog.unnest(%(names)s::text[]),
    pg_catalog.unnest(%(digests)s::text[])) AS known (version, name, digest)
ON CONFLICT DO NOTHING;

-- name: may_see_duties
-- A role that only enqueues need not see them.
SELECT pg_catalog.has_table_privilege('pgjobs.maintenance', 'SELECT');

-- name: duties
SELECT duty FROM pgjobs.maintenance;

-- name: put_back_duties
INSERT INTO pgjobs.maintenance (duty) SELECT pg_catalog.unnest(%(duties)s::text[])
ON CONFLICT DO NOTHING
RETURNING duty;

-- name: sequence_rights
-- Whether the next id may be looked at, drawn, and set; and whether ids rise by one: where they do not, several servers
-- share them, and each leaves those of the others out.
SELECT pg_catalog.has_sequence_privilege('pgjobs.job_id_seq', 'SELECT')
        AND pg_catalog.has_column_privilege('pgjobs.job', 'id', 'SELECT'),
    pg_catalog.has_sequence_privilege('pgjobs.job_id_seq', 'USAGE'),
    pg_catalog.has_sequence_privilege('pgjobs.job_id_seq', 'UPDATE'),
    seqincrement = 1 AND NOT seqcycle,
    pg_catalog.current_setting('transaction_read_only') = 'off'
FROM pg_catalog.pg_sequence WHERE seqrelid = 'pgjobs.job_id_seq'::pg_catalog.regclass;

-- name: ids
-- The next id, and the greatest one that a job has.
SELECT (last_value + is_called::integer)::bigint, (SELECT pg_catalog.max(id) FROM pgjobs.job) FROM pgjobs.job_id_seq;

-- name: draw_ids
-- Draws the ids up to this one and uses none of them. No lock is needed: a transaction that draws ids meanwhile gets
-- others.
SELECT pg_catalog.count(pg_catalog.nextval('pgjobs.job_id_seq'))
FROM pg_catalog.generate_series(1, %(ids)s::bigint);

-- name: set_next_id
-- Where there are too many ids to draw. One statement looks at the sequence and changes it: other transactions cannot
-- draw so many ids in between.
SELECT pg_catalog.setval('pgjobs.job_id_seq', %(newest)s::bigint) FROM pgjobs.job_id_seq
WHERE (last_value + %(far)s::bigint) < %(newest)s::bigint;

-- name: functions_of_another_schema
-- Those that name the schema as it was called before; each with its definition, and whether this role may replace it.
-- What is in SQL follows a new name by itself, what is in PL/pgSQL is a text.
SELECT
    proname::text, (pg_catalog.regexp_match(prosrc, '"([a-z0-9_]+)"[.][a-z]'))[1], pg_catalog.pg_get_functiondef(oid),
    pg_catalog.pg_has_role(proowner, 'USAGE') AND pg_catalog.current_setting('transaction_read_only') = 'off'
FROM pg_catalog.pg_proc
WHERE pronamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s)
    AND (proname || ' ' || pronargs) = ANY (%(ours)s::text[])
    AND (pg_catalog.regexp_match(prosrc, '"([a-z0-9_]+)"[.][a-z]'))[1] <> %(schema)s
ORDER BY 1;

-- name: publications
-- Those that a table of ours belongs to.
SELECT DISTINCT tablename::text, pubname::text FROM pg_catalog.pg_publication_tables
WHERE schemaname = %(schema)s ORDER BY 1, 2;

-- Whether the server refuses to change a published table. EXPLAIN makes the same checks as the statement itself, also
-- in a session that may not write, and changes nothing.

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

-- name: try_maintenance
EXPLAIN UPDATE pgjobs.maintenance SET next_run_at = next_run_at WHERE false;

-- name: try_migration
EXPLAIN DELETE FROM pgjobs.migration WHERE false;
