-- What the doctor looks at: see pgjobs/observe/doctor. Nothing here changes anything, and each statement reads a bounded
-- number of rows, so that it is fast on millions of jobs. Durations are returned in seconds. Times of rows may have been
-- written by hand: they are moved into the years that have a distance from now.

-- name: begin_check
SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY;
SET LOCAL statement_timeout = '5s';
SET LOCAL lock_timeout = '1s';
SET LOCAL idle_in_transaction_session_timeout = '30s';
SET LOCAL DateStyle = ISO;

-- ----- the server

-- name: server_state
SELECT
    pg_catalog.pg_is_in_recovery(),
    pg_catalog.current_setting('server_version_num')::integer,
    pg_catalog.pg_backend_pid(),
    EXTRACT(epoch FROM pg_catalog.clock_timestamp())::float8;

-- name: settings
-- As the sessions of this role and database get them: the value of this transaction may be that of the doctor.
SELECT name, reset_val FROM pg_catalog.pg_settings WHERE name = ANY (%(names)s::text[]);

-- name: connections
-- How many connections there are and may be: on the server, in this database, and of this role (null: no limit). And
-- how many the living worker processes need when each of their threads runs a job.
SELECT
    (SELECT pg_catalog.sum(numbackends) FROM pg_catalog.pg_stat_database)::bigint,
    pg_catalog.current_setting('max_connections')::bigint
        - (pg_catalog.current_setting('superuser_reserved_connections')::bigint
            + COALESCE(pg_catalog.current_setting('reserved_connections', true), '0')::bigint),
    (SELECT numbackends FROM pg_catalog.pg_stat_database WHERE datname = pg_catalog.current_database())::bigint,
    (SELECT CASE WHEN datconnlimit >= 0 THEN datconnlimit END FROM pg_catalog.pg_database
        WHERE datname = pg_catalog.current_database())::bigint,
    (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity WHERE usename = CURRENT_USER),
    (SELECT CASE WHEN rolconnlimit >= 0 THEN rolconnlimit END FROM pg_catalog.pg_roles
        WHERE rolname = CURRENT_USER)::bigint;

-- name: living_workers
-- The living worker processes, and their threads.
SELECT pg_catalog.count(*), COALESCE(pg_catalog.sum(threads), 0)::bigint FROM pgjobs.worker
WHERE seen_at > (pg_catalog.clock_timestamp() - interval '1 minute');

-- name: notify
SELECT pg_catalog.pg_notify(%(channel)s, '');

-- ----- what holds vacuum back

-- name: old_transactions
-- Of this database, the oldest first. VACUUM itself keeps no rows of others.
SELECT
    pid, usename::text, application_name, state,
    EXTRACT(epoch FROM (pg_catalog.clock_timestamp() - xact_start))::float8 AS seconds,
    COALESCE(pg_catalog.age(backend_xmin), pg_catalog.age(backend_xid))
FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()
    AND backend_type <> 'autovacuum worker'
    AND xact_start < (pg_catalog.clock_timestamp() - %(after)s::interval)
ORDER BY xact_start LIMIT 5;

-- name: hidden_sessions
-- Sessions of this database of which this role may not see what they do. Autovacuum has no role.
SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND query = '<insufficient privilege>'
    AND usesysid IS NOT NULL;

-- name: prepared_transactions
SELECT gid, owner::text, EXTRACT(epoch FROM (pg_catalog.clock_timestamp() - prepared))::float8
FROM pg_catalog.pg_prepared_xacts
WHERE database = pg_catalog.current_database() AND prepared < (pg_catalog.clock_timestamp() - %(after)s::interval)
ORDER BY prepared LIMIT 5;

-- name: slots
-- A logical slot keeps rows of the catalogs of its own database, a physical one those of all tables.
SELECT
    slot_name::text, slot_type, active,
    COALESCE(GREATEST(pg_catalog.age(xmin), pg_catalog.age(catalog_xmin)), 0),
    COALESCE(pg_catalog.pg_wal_lsn_diff(
        CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
            ELSE pg_catalog.pg_current_wal_lsn() END, restart_lsn), 0)::float8
FROM pg_catalog.pg_replication_slots
WHERE database IS NULL OR database = pg_catalog.current_database()
ORDER BY slot_name;

-- name: standbys
-- Those that keep rows on this server by hot_standby_feedback.
SELECT application_name, pg_catalog.host(client_addr), pg_catalog.age(backend_xmin) FROM pg_catalog.pg_stat_replication
WHERE backend_xmin IS NOT NULL AND pg_catalog.age(backend_xmin) > %(transactions)s
ORDER BY pg_catalog.age(backend_xmin) DESC LIMIT 5;

-- name: long_jobs
-- Running jobs whose transaction is old. A detached job, which has a lease, has none.
SELECT
    id, queue, kind, attempted_by[pg_catalog.array_upper(attempted_by, 1)],
    EXTRACT(epoch FROM (pg_catalog.clock_timestamp() - attempted_at))::float8
FROM pgjobs.job
WHERE state = 'running' AND leased_until IS NULL AND attempted_at >= '0001-01-03 UTC'::timestamptz
    AND attempted_at < (pg_catalog.clock_timestamp() - %(after)s::interval)
ORDER BY attempted_at LIMIT 5;

-- ----- the tables

-- name: tables
-- Dead and living rows; the seconds since the last vacuum, or since the table was made; whether autovacuum is switched
-- off for the table; and its pages and rows as VACUUM or ANALYZE last counted them.
SELECT
    stat.relname::text, n_dead_tup, n_live_tup,
    EXTRACT(epoch FROM (pg_catalog.clock_timestamp() - GREATEST(last_vacuum, last_autovacuum,
        (SELECT pg_catalog.min(applied_at) FROM pgjobs.migration))))::float8,
    COALESCE(reloptions @> '{autovacuum_enabled=false}' OR reloptions @> '{autovacuum_enabled=off}', false),
    (relpages * pg_catalog.current_setting('block_size')::bigint)::float8,
    reltuples::float8
FROM pg_catalog.pg_stat_all_tables AS stat JOIN pg_catalog.pg_class ON pg_class.oid = relid
WHERE schemaname = %(schema)s AND stat.relname::text = ANY (%(tables)s::text[])
ORDER BY stat.relname;

-- name: indexes
-- Pages and entries are as VACUUM last counted them: together they say how full the pages are.
SELECT
    index.relname::text, owner.relname::text, indisvalid AND indisready,
    (index.relpages * pg_catalog.current_setting('block_size')::bigint)::float8, index.reltuples::float8
FROM pg_catalog.pg_index
    JOIN pg_catalog.pg_class AS index ON index.oid = indexrelid
    JOIN pg_catalog.pg_class AS owner ON owner.oid = indrelid
WHERE owner.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s)
    AND owner.relname::text = ANY (%(tables)s::text[])
ORDER BY index.relname;

-- name: function_bodies
-- Of functions in PL/pgSQL.
SELECT proname::text, prosrc FROM pg_catalog.pg_proc
WHERE pronamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s)
    AND prolang = (SELECT oid FROM pg_catalog.pg_language WHERE lanname = 'plpgsql');

-- name: may_read_ids
SELECT pg_catalog.has_sequence_privilege('pgjobs.job_id_seq', 'SELECT')
    AND pg_catalog.has_column_privilege('pgjobs.job', 'id', 'SELECT');

-- name: roles_to_check
-- Those of the roles that were granted something on these tables: other schemas may have roles of the same names.
SELECT rolname::text FROM pg_catalog.pg_roles
WHERE rolname::text = ANY (%(roles)s::text[])
    AND pg_catalog.has_column_privilege(oid, 'pgjobs.migration', 'version', 'SELECT')
ORDER BY rolname;

-- name: own_rights
-- This role, and what tells which of the roles of `pgjobs roles` it is like.
SELECT CURRENT_USER::text,
    pg_catalog.has_column_privilege('pgjobs.job', 'attempted_by', 'UPDATE'),
    pg_catalog.has_table_privilege('pgjobs.job', 'DELETE'),
    pg_catalog.has_column_privilege('pgjobs.job', 'args', 'INSERT'),
    pg_catalog.has_column_privilege('pgjobs.worker', 'id', 'SELECT');

-- name: missing_rights
SELECT privilege, object, part FROM ROWS FROM (
    pg_catalog.unnest(%(sorts)s::text[]), pg_catalog.unnest(%(privileges)s::text[]),
    pg_catalog.unnest(%(objects)s::text[]), pg_catalog.unnest(%(parts)s::text[])
) AS needed (sort, privilege, object, part)
WHERE NOT CASE
    WHEN sort = 'column' THEN pg_catalog.has_column_privilege(%(role)s::name, object, part, privilege)
    WHEN sort = 'table' THEN pg_catalog.has_table_privilege(%(role)s::name, object, privilege)
    WHEN sort = 'sequence' THEN pg_catalog.has_sequence_privilege(%(role)s::name, object, privilege)
    WHEN sort = 'function' THEN pg_catalog.has_function_privilege(%(role)s::name, object, privilege)
    ELSE pg_catalog.has_schema_privilege(%(role)s::name, object, privilege) END;

-- ----- the work

-- name: waiting_queues
-- Each queue with available jobs: for how long the oldest has waited, for how long the queue has been paused, and how
-- many living processes work it. Reads the oldest job of each priority.
WITH RECURSIVE line AS (
    {queue_priorities}
), waiting AS (
    SELECT line.queue, pg_catalog.min(these.since) AS since
    FROM line, LATERAL (
        SELECT LEAST(GREATEST(scheduled_at, '0001-01-03 UTC'::timestamptz), '9999-12-30 UTC'::timestamptz) AS since
        FROM pgjobs.job WHERE state = 'available' AND job.queue = line.queue AND job.priority = line.priority
        ORDER BY scheduled_at LIMIT 1) AS these
    GROUP BY line.queue
)
SELECT
    waiting.queue,
    EXTRACT(epoch FROM (pg_catalog.clock_timestamp() - since))::float8,
    EXTRACT(epoch FROM (pg_catalog.clock_timestamp() - paused_at))::float8,
    (SELECT pg_catalog.count(*) FROM pgjobs.worker
        WHERE pg_catalog.jsonb_exists(queues, waiting.queue)
            AND seen_at > (pg_catalog.clock_timestamp() - interval '1 minute'))
FROM waiting LEFT JOIN pgjobs.queue ON queue.name = waiting.queue
ORDER BY since;

-- name: unknown_kinds
-- Kinds that no living process has a handler for, among the first jobs of each queue and priority that could have
-- started a while ago, in queues that are worked: how many, the longest wait, and one of them.
WITH RECURSIVE line AS (
    {queue_priorities}
)
SELECT kind, pg_catalog.count(*), pg_catalog.min(id), pg_catalog.min(these.queue)
FROM line, LATERAL (
    SELECT id, kind, job.queue FROM pgjobs.job
    WHERE state = 'available' AND job.queue = line.queue AND job.priority = line.priority
        AND scheduled_at < (pg_catalog.clock_timestamp() - %(after)s::interval)
    ORDER BY scheduled_at LIMIT 200) AS these
WHERE EXISTS (
        SELECT FROM pgjobs.worker WHERE pg_catalog.jsonb_exists(queues, line.queue)
            AND seen_at > (pg_catalog.clock_timestamp() - interval '1 minute'))
    AND NOT EXISTS (
        SELECT FROM pgjobs.worker WHERE these.kind = ANY (kinds)
            AND seen_at > (pg_catalog.clock_timestamp() - interval '1 minute'))
    AND NOT EXISTS (SELECT FROM pgjobs.queue WHERE name = line.queue AND paused_at IS NOT NULL)
GROUP BY kind ORDER BY 2 DESC, kind LIMIT 10;

-- name: failed_kinds
-- The same among the next jobs to be retried that failed for lack of a handler.
SELECT kind, pg_catalog.count(*), pg_catalog.min(id), pg_catalog.min(queue) FROM (
    SELECT id, queue, kind, errors -> (-1) ->> 'error' AS error FROM pgjobs.job
    WHERE state = ANY ('{scheduled,retryable}') ORDER BY scheduled_at LIMIT 1000) AS next
WHERE pg_catalog.starts_with(error, 'no handler for kind ') AND NOT EXISTS (
    SELECT FROM pgjobs.worker WHERE next.kind = ANY (kinds)
        AND seen_at > (pg_catalog.clock_timestamp() - interval '1 minute'))
GROUP BY kind ORDER BY 2 DESC, kind LIMIT 10;

-- name: snoozing_jobs
-- Among the next jobs that become due.
SELECT kind, pg_catalog.count(*), pg_catalog.max(snoozes)::bigint, pg_catalog.min(id), pg_catalog.min(queue) FROM (
    SELECT id, queue, kind, CASE WHEN pg_catalog.jsonb_typeof((metadata -> 'snoozes')) = 'number'
        THEN (metadata ->> 'snoozes')::numeric END AS snoozes
    FROM pgjobs.job WHERE state = ANY ('{scheduled,retryable}') ORDER BY scheduled_at LIMIT 2000) AS next
WHERE snoozes >= %(times)s
GROUP BY kind ORDER BY 3 DESC, kind LIMIT 10;

-- name: vanished_attempts
-- Jobs with several attempts that took the worker with them: among the next to be retried, the running ones, and those
-- that were discarded within a day.
SELECT kind, pg_catalog.count(*), pg_catalog.max(times), pg_catalog.min(id), pg_catalog.min(queue)
FROM (
    (SELECT id, queue, kind, attempt, errors FROM pgjobs.job
        WHERE state = ANY ('{scheduled,retryable}') ORDER BY scheduled_at LIMIT 5000)
    UNION ALL
    (SELECT id, queue, kind, attempt, errors FROM pgjobs.job WHERE state = 'running' LIMIT 5000)
    UNION ALL
    (SELECT id, queue, kind, attempt, errors FROM pgjobs.job
        WHERE state = 'discarded' AND finalized_at > (pg_catalog.clock_timestamp() - interval '1 day')
        ORDER BY finalized_at DESC LIMIT 5000)
) AS failed, LATERAL (
    SELECT pg_catalog.count(*) AS times FROM pg_catalog.jsonb_array_elements(
        CASE WHEN attempt > 1 AND pg_catalog.jsonb_typeof(errors) = 'array' THEN errors ELSE '[]' END) AS entry
    WHERE pg_catalog.starts_with(entry ->> 'error', 'worker vanished')) AS counted
WHERE times > 1
GROUP BY kind ORDER BY 2 DESC, kind LIMIT 10;

-- name: schedules
-- Schedules that are not paused: the error of the last tick; for how long a tick has been overdue; for how long no
-- process has had it in its code, if it needs one; and whether the last three jobs were all discarded.
SELECT
    name, error,
    EXTRACT(epoch FROM (pg_catalog.clock_timestamp() - next_tick_at))::float8,
    CASE WHEN in_code THEN EXTRACT(epoch FROM (pg_catalog.clock_timestamp() - seen_at))::float8 END,
    (SELECT pg_catalog.count(*) FILTER (WHERE state = 'discarded') = 3 FROM (
        SELECT state FROM pgjobs.job WHERE schedule = name ORDER BY tick DESC LIMIT 3) AS last)
FROM pgjobs.schedule WHERE paused_at IS NULL
ORDER BY name LIMIT 1000;

-- name: waiting_duties
SELECT duty, EXTRACT(epoch FROM (pg_catalog.clock_timestamp()
    - LEAST(GREATEST(next_run_at, '0001-01-03 UTC'::timestamptz), '9999-12-30 UTC'::timestamptz)))::float8
FROM pgjobs.maintenance ORDER BY duty;

-- name: work_of_duties
-- For how long the next job to be made available has been due (null: none has been for that long); and whether any job
-- runs, which the rescue looks after.
SELECT
    (SELECT EXTRACT(epoch FROM (pg_catalog.clock_timestamp() - GREATEST(scheduled_at, '0001-01-03 UTC'::timestamptz)))
        FROM pgjobs.job WHERE state = ANY ('{scheduled,retryable}')
            AND scheduled_at < (pg_catalog.clock_timestamp() - %(after)s::interval)
        ORDER BY scheduled_at LIMIT 1)::float8,
    EXISTS (SELECT FROM pgjobs.job WHERE state = 'running');
