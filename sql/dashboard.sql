-- What the dashboard reads and writes besides the calls of the client. Functions are named in full.

-- name: begin_reading
-- One snapshot for the whole page, and nothing can be written in it. Without JIT, which compiles for longer than these
-- statements run. Returns the time.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;
SET LOCAL statement_timeout = '10s';
SET LOCAL lock_timeout = '1s';
SET LOCAL jit = off;
SET LOCAL idle_in_transaction_session_timeout = '30s';
SELECT (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint;

-- name: begin_acting
-- Returns the time.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL statement_timeout = '30s';
SET LOCAL lock_timeout = '2s';
SET LOCAL idle_in_transaction_session_timeout = '30s';
SELECT (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint;

-- name: write_audit
INSERT INTO pgjobs.audit (who, act, target, count)
VALUES (%(who)s, %(act)s, %(target)s::jsonb, %(count)s);

-- name: count_states
-- Of each state as many as 10,001 jobs, each read from the index of the state. Scheduled and retryable jobs share an
-- index, so they are counted among the first 20,000 of both. No index has the pending ones: see count_pending.
SELECT 'available', pg_catalog.count(*), false FROM (
    SELECT FROM pgjobs.job WHERE state = 'available' ORDER BY queue, priority, scheduled_at, id LIMIT 10001) AS jobs
UNION ALL SELECT 'running', pg_catalog.count(*), false FROM (
    SELECT FROM pgjobs.job WHERE state = 'running' ORDER BY token LIMIT 10001) AS jobs
UNION ALL SELECT 'completed', pg_catalog.count(*), false FROM (
    SELECT FROM pgjobs.job WHERE state = 'completed' ORDER BY finalized_at LIMIT 10001) AS jobs
UNION ALL SELECT 'cancelled', pg_catalog.count(*), false FROM (
    SELECT FROM pgjobs.job WHERE state = 'cancelled' ORDER BY finalized_at LIMIT 10001) AS jobs
UNION ALL SELECT 'discarded', pg_catalog.count(*), false FROM (
    SELECT FROM pgjobs.job WHERE state = 'discarded' ORDER BY finalized_at LIMIT 10001) AS jobs
UNION ALL SELECT jobs.state, pg_catalog.count(*), (SELECT pg_catalog.count(*) FROM (
        SELECT FROM pgjobs.job WHERE state = ANY ('{scheduled,retryable}') ORDER BY scheduled_at LIMIT 20001
    ) AS more) > 20000
FROM (
    SELECT state FROM pgjobs.job WHERE state = ANY ('{scheduled,retryable}') ORDER BY scheduled_at LIMIT 20000
) AS jobs GROUP BY jobs.state;

-- name: size_of_jobs
-- Bytes of the table, without its indexes.
SELECT pg_catalog.pg_relation_size('pgjobs.job');

-- name: count_pending
SELECT pg_catalog.count(*) FROM (SELECT FROM pgjobs.job WHERE state = 'pending' LIMIT 10001) AS jobs;

-- name: estimate_pending
-- From the statistics of the planner; null if it has none.
SELECT (pg_class.reltuples * COALESCE(values.share, 0))::bigint
FROM pg_catalog.pg_class, pg_catalog.pg_stats LEFT JOIN LATERAL (
    SELECT share FROM ROWS FROM (
        pg_catalog.unnest(most_common_vals::text::text[]), pg_catalog.unnest(most_common_freqs)
    ) AS common (value, share) WHERE value = 'pending'
) AS values ON true
WHERE pg_class.oid = 'pgjobs.job'::regclass AND pg_stats.attname = 'state' AND tablename = 'job'
    AND schemaname = (SELECT nspname FROM pg_catalog.pg_namespace WHERE pg_namespace.oid = pg_class.relnamespace);

-- name: queue_numbers
-- Of the queue of this name, or of all. Of each queue as many as 10,001 available jobs are counted.
WITH RECURSIVE line AS (
    {queue_priorities}
), waiting AS (
    SELECT line.queue, pg_catalog.min(first.since) AS since
    FROM line, LATERAL (
        SELECT scheduled_at AS since FROM pgjobs.job
        WHERE state = 'available' AND job.queue = line.queue AND job.priority = line.priority
        ORDER BY scheduled_at LIMIT 1) AS first
    WHERE %(name)s::text IS NULL OR line.queue = %(name)s::text
    GROUP BY line.queue
), running AS (
    SELECT queue, pg_catalog.count(*) AS jobs FROM pgjobs.job WHERE state = 'running' GROUP BY queue
), named AS (
    SELECT name FROM pgjobs.queue UNION SELECT queue FROM line UNION SELECT queue FROM running
)
SELECT
    named.name, paused_at,
    (SELECT pg_catalog.count(*) FROM (
        SELECT FROM pgjobs.job WHERE state = 'available' AND job.queue = named.name
        ORDER BY priority, scheduled_at LIMIT 10001) AS jobs),
    COALESCE(running.jobs, 0),
    waiting.since,
    (SELECT pg_catalog.count(*) FROM pgjobs.worker
        WHERE pg_catalog.jsonb_exists(queues, named.name)
            AND seen_at > (pg_catalog.statement_timestamp() - interval '30 seconds')),
    pg_catalog.date_part('epoch', keep_completed),
    pg_catalog.date_part('epoch', keep_cancelled),
    pg_catalog.date_part('epoch', keep_discarded)
FROM named
    LEFT JOIN pgjobs.queue ON queue.name = named.name
    LEFT JOIN waiting ON waiting.queue = named.name
    LEFT JOIN running ON running.queue = named.name
WHERE %(name)s::text IS NULL OR named.name = %(name)s::text
ORDER BY named.name;

-- name: count_waiting_of_queue
-- As many as 10,001 jobs of a queue that wait in some way. Pending ones are not counted among them, since no index has
-- them.
SELECT pg_catalog.count(*) FROM (
    SELECT FROM pgjobs.job WHERE state = 'available' AND queue = %(name)s::text
    UNION ALL
    SELECT FROM pgjobs.job WHERE state = ANY ('{scheduled,retryable}') AND queue = %(name)s::text
    LIMIT 10001) AS jobs;

-- name: waiting_of_queue
-- The ids of the same jobs, but of none that is newer than the one with an id.
SELECT id FROM pgjobs.job WHERE state = 'available' AND queue = %(name)s::text AND id <= %(newest)s::bigint
UNION ALL
SELECT id FROM pgjobs.job
WHERE state = ANY ('{scheduled,retryable}') AND queue = %(name)s::text AND id <= %(newest)s::bigint
LIMIT %(limit)s::bigint;

-- name: count_ended_before
-- As many as 10,001 jobs of a state that ended before a time.
SELECT pg_catalog.count(*) FROM (
    SELECT FROM pgjobs.job WHERE state = %(state)s::text AND finalized_at < %(before)s::timestamptz
    ORDER BY finalized_at LIMIT 10001) AS jobs;

-- name: jobs_of_schedule
-- The newest jobs of a schedule.
SELECT id FROM pgjobs.job WHERE schedule = %(name)s::text ORDER BY schedule, tick DESC LIMIT %(limit)s;

-- name: list_audit
SELECT id, (EXTRACT(epoch FROM at) * 1000000)::bigint, who, act, target, count FROM pgjobs.audit
WHERE (%(before)s::bigint IS NULL OR id < %(before)s::bigint)
ORDER BY id DESC LIMIT %(limit)s;

-- name: next_runs
SELECT duty, next_run_at FROM pgjobs.maintenance ORDER BY duty;

-- name: table_sizes
-- Without a partition or a foreign table that others may have made. Rows are as the statistics have them.
SELECT
    pg_class.relname, pg_catalog.pg_table_size(pg_class.oid), pg_catalog.pg_indexes_size(pg_class.oid),
    GREATEST(pg_class.reltuples, 0)::bigint, n_dead_tup,
    GREATEST(last_vacuum, last_autovacuum), GREATEST(last_analyze, last_autoanalyze)
FROM pg_catalog.pg_class JOIN pg_catalog.pg_stat_all_tables ON pg_stat_all_tables.relid = pg_class.oid
WHERE pg_class.relnamespace = (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = 'pgjobs.job'::regclass)
ORDER BY 2 DESC, 1;

-- name: index_sizes
SELECT
    index.relname, pg_stat_all_indexes.relname, pg_catalog.pg_relation_size(index.oid), idx_scan, indisvalid
FROM pg_catalog.pg_stat_all_indexes
    JOIN pg_catalog.pg_class AS index ON index.oid = indexrelid
    JOIN pg_catalog.pg_index ON pg_index.indexrelid = index.oid
WHERE index.relnamespace = (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = 'pgjobs.job'::regclass)
ORDER BY 3 DESC, 1;

-- name: may_vacuum
-- Whether the role owns the table or the database, or since Postgres 17 has the right MAINTAIN.
SELECT CASE WHEN pg_catalog.current_setting('server_version_num')::integer >= 170000
    THEN pg_catalog.has_table_privilege(pg_class.oid, 'MAINTAIN') ELSE false END
    OR pg_catalog.pg_has_role(relowner, 'USAGE')
    OR pg_catalog.pg_has_role(datdba, 'USAGE')
FROM pg_catalog.pg_class, pg_catalog.pg_database
WHERE relname = %(table)s::text AND datname = pg_catalog.current_database()
    AND relnamespace = (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = 'pgjobs.job'::regclass);

-- name: vacuum_table
-- Waits for no lock: a table that is locked is passed over with a warning.
VACUUM (ANALYZE, SKIP_LOCKED) {table};

-- name: vacuums
-- The vacuums that run, and how much of the table they have looked at.
SELECT relname, phase, CASE WHEN heap_blks_total > 0 THEN (100 * heap_blks_scanned) / heap_blks_total ELSE 0 END
FROM pg_catalog.pg_stat_progress_vacuum JOIN pg_catalog.pg_class ON pg_class.oid = relid
WHERE datname = pg_catalog.current_database()
    AND relnamespace = (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = 'pgjobs.job'::regclass);
