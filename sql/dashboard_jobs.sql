-- What the dashboard reads of jobs. Functions are named in full.
--
-- A list of jobs is read in windows: the keys of the next jobs in the order of an index, and then which of them fit. So
-- a page takes no longer, however many jobs there are and however few of them fit.

-- name: window_of_jobs
-- The keys of the next jobs, their states, and the time by which they are ordered.
SELECT id, queue, state, CASE
    WHEN pg_catalog.starts_with(%(order)s::text, 'finalized_at') THEN finalized_at
    WHEN pg_catalog.starts_with(%(order)s::text, 'scheduled_at') THEN scheduled_at
    ELSE COALESCE(attempted_at, created_at) END
{page};

-- name: window_of_available
-- The same for available jobs in the order of their time: see list_available in observe.sql. Queues that are not asked
-- for are left out at once.
WITH RECURSIVE line AS (
    {queue_priorities}
)
SELECT job.id, job.queue, job.state, job.scheduled_at
FROM line, LATERAL (
SELECT id, queue, state, scheduled_at
{page_of_line}
) AS job
WHERE %(line_queues)s::text[] IS NULL OR line.queue = ANY (%(line_queues)s::text[])
{by_time};

-- name: fitting_jobs
-- The keys and states of those that fit, of the jobs in a range of ids or of those whose ids the filter names.
SELECT id, queue, state FROM pgjobs.job WHERE {matches} AND {in_range};

-- name: fitting_search
-- The same with a search, which reads columns that not every role may read.
SELECT id, queue, state FROM pgjobs.job WHERE {matches} AND {in_range} AND {fits_search};

-- name: count_up_to
-- How many jobs fit, but no more than the limit.
SELECT pg_catalog.count(*) FROM (SELECT FROM pgjobs.job WHERE {matches} LIMIT %(most)s::integer) AS these;

-- name: set_count_timeout
SELECT pg_catalog.set_config('statement_timeout', %(timeout)s, true);

-- name: about_all_jobs
-- The number of rows by the statistics of the table, null if there are none.
SELECT CASE WHEN reltuples >= 0 THEN reltuples::bigint END
FROM pg_catalog.pg_class WHERE oid = 'pgjobs.job'::regclass;

-- name: failures
-- The newest jobs that failed, grouped by kind and error: those that failed for good, and of the jobs that are due next
-- those that will be tried again.
WITH failed AS MATERIALIZED (
    (SELECT id, queue, kind, state, errors, finalized_at, attempted_at, created_at FROM pgjobs.job
        WHERE state = 'discarded' ORDER BY state DESC, finalized_at DESC LIMIT %(most)s::integer)
    UNION ALL
    SELECT * FROM (
        SELECT id, queue, kind, state, errors, finalized_at, attempted_at, created_at FROM pgjobs.job
        WHERE state = ANY ('{scheduled,retryable}') ORDER BY scheduled_at LIMIT %(most)s::integer) AS due
    WHERE state = 'retryable'
), known AS MATERIALIZED (
    SELECT id, queue, kind, state, {error_class} AS error, COALESCE(finalized_at, attempted_at, created_at) AS at
    FROM failed AS job
), grouped AS (
    SELECT
        kind, error,
        pg_catalog.count(*) FILTER (WHERE state = 'discarded') AS discarded,
        pg_catalog.count(*) FILTER (WHERE state = 'retryable') AS retryable,
        pg_catalog.count(DISTINCT queue) AS queues,
        pg_catalog.min(at) AS first_at, pg_catalog.max(at) AS last_at, pg_catalog.max(id) AS id
    FROM known GROUP BY kind, error
    ORDER BY discarded DESC, retryable DESC, last_at DESC LIMIT 200
)
SELECT kind, error, discarded, retryable, queues, first_at, last_at, id,
    (SELECT pg_catalog.count(*) FROM failed), (SELECT pg_catalog.count(*) FROM failed WHERE state = 'discarded')
FROM grouped ORDER BY discarded DESC, retryable DESC, last_at DESC;

-- name: sample_of_failures
-- The last error of each of these jobs, cut.
SELECT id, pg_catalog."left"(errors -> -1 ->> 'error', 300) FROM pgjobs.job WHERE id = ANY (%(ids)s::bigint[]);

-- name: transaction_of_job
-- The transaction that has locked the row of a job: its backend, its age, what the backend does and waits for.
SELECT
    activity.pid,
    (EXTRACT(epoch FROM (pg_catalog.clock_timestamp() - activity.xact_start)) * 1000000)::bigint,
    activity.state, activity.wait_event_type, activity.wait_event,
    pg_catalog.pg_blocking_pids(activity.pid)
FROM pgjobs.job JOIN pg_catalog.pg_stat_activity AS activity ON activity.backend_xid = job.xmax
WHERE job.id = %(id)s AND job.queue = %(queue)s AND job.state = 'running';

-- name: known_kinds
-- The kinds that workers handle, and those of the newest jobs.
SELECT kind FROM (
    SELECT pg_catalog.unnest(kinds) AS kind FROM pgjobs.worker
    UNION SELECT kind FROM (SELECT kind FROM pgjobs.job ORDER BY id DESC LIMIT 1000) AS newest) AS known
ORDER BY kind LIMIT 500;

-- name: known_queues
-- The queues that workers work, or in which jobs wait.
WITH RECURSIVE line AS (
    {queue_priorities}
)
SELECT name FROM (SELECT name FROM pgjobs.queue UNION SELECT queue FROM line) AS known ORDER BY name LIMIT 500;

-- name: newest_job_id
SELECT pg_catalog.max(id) FROM pgjobs.job;
