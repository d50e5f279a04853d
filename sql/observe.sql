-- Reads jobs and queues, and changes nothing. Functions are named in full: the search_path is the caller's.

-- name: get_job
{select_job}
FROM pgjobs.job WHERE id = %(id)s ORDER BY queue;

-- name: get_job_with_progress
-- For users. The statement above serves attempts that end, which need no more than the job's own row.
{select_job}, {progress}
FROM pgjobs.job WHERE id = %(id)s ORDER BY queue;

-- name: get_job_without_args
-- For a role that may not read them.
{select_without_args}, {progress_without_note}
FROM pgjobs.job WHERE id = %(id)s ORDER BY queue;

-- name: probe
-- The shortest statement that shows whether the server answers.
SELECT 1;

-- name: list_jobs
{select_job}, {progress}
{page};

-- name: list_jobs_without_args
-- For a role that may not read them.
{select_without_args}, {progress_without_note}
{page};

-- name: list_available
-- The same for available jobs by their time. No index has them in this order; the fetch index has it for each queue and
-- priority, so a page of each is read and merged.
WITH RECURSIVE line AS (
    {queue_priorities}
)
SELECT job.*, NULL::jsonb AS progress
FROM line, LATERAL (
{select_job}
{page_of_line}
) AS job
{by_time};

-- name: list_available_without_args
WITH RECURSIVE line AS (
    {queue_priorities}
)
SELECT job.*, NULL::jsonb AS progress
FROM line, LATERAL (
{select_without_args}
{page_of_line}
) AS job
{by_time};

-- name: count_jobs
-- The number of jobs that fit, by queue and state.
SELECT queue, state, pg_catalog.count(*) FROM pgjobs.job
WHERE {matches}
GROUP BY queue, state
ORDER BY queue, state;

-- ----- queues

-- name: list_queues
WITH RECURSIVE line AS (
    {queue_priorities}
), named AS (
    SELECT name FROM pgjobs.queue
    UNION SELECT queue FROM line
    UNION SELECT queue FROM pgjobs.job WHERE state = 'running'
)
SELECT
    named.name, paused_at, updated_at,
    pg_catalog.date_part('epoch', keep_completed),
    pg_catalog.date_part('epoch', keep_cancelled),
    pg_catalog.date_part('epoch', keep_discarded)
FROM named LEFT JOIN pgjobs.queue ON queue.name = named.name
ORDER BY named.name;

-- name: queue_stats
-- Of the named queues, or of all. Each CTE reads the index of its state alone. Available jobs are counted in the fetch
-- index, where the oldest of each priority comes first.
WITH RECURSIVE line AS (
    {queue_priorities}
), waiting AS (
    SELECT line.queue, pg_catalog.sum(these.jobs)::bigint AS jobs, pg_catalog.min(these.since) AS since
    FROM line, LATERAL (
        SELECT pg_catalog.count(*) AS jobs, pg_catalog.min(scheduled_at) AS since FROM pgjobs.job
        WHERE state = 'available' AND job.queue = line.queue AND job.priority = line.priority) AS these
    WHERE %(names)s::text[] IS NULL OR line.queue = ANY (%(names)s::text[])
    GROUP BY line.queue
), running AS (
    SELECT queue, pg_catalog.count(*) AS jobs FROM pgjobs.job WHERE state = 'running' GROUP BY queue
), ended AS (
    SELECT queue,
        pg_catalog.count(*) FILTER (WHERE state = 'completed') AS done,
        pg_catalog.count(*) FILTER (WHERE state = 'discarded') AS failed
    FROM pgjobs.job
    WHERE state = ANY ('{completed,discarded}')
        AND finalized_at > (pg_catalog.statement_timestamp() - interval '1 minute')
    GROUP BY queue
), named AS (
    SELECT name FROM pgjobs.queue WHERE %(names)s::text[] IS NULL
    UNION SELECT queue FROM line WHERE %(names)s::text[] IS NULL
    UNION SELECT queue FROM running WHERE %(names)s::text[] IS NULL
    UNION SELECT name FROM pg_catalog.unnest(%(names)s::text[]) AS asked (name)
)
SELECT
    named.name,
    paused_at,
    COALESCE(waiting.jobs, 0),
    COALESCE(running.jobs, 0),
    -- a job may be available before its time: it does not wait yet
    CASE WHEN waiting.since IS NOT NULL
        THEN GREATEST(pg_catalog.statement_timestamp() - GREATEST(waiting.since, '0001-01-03 UTC'::timestamptz),
            interval '0') END,
    COALESCE(ended.done, 0),
    COALESCE(ended.failed, 0),
    (SELECT pg_catalog.count(*) FROM pgjobs.worker
        WHERE pg_catalog.jsonb_exists(queues, named.name)
            AND seen_at > (pg_catalog.statement_timestamp() - interval '2 minutes'))
FROM named
    LEFT JOIN pgjobs.queue ON queue.name = named.name
    LEFT JOIN waiting ON waiting.queue = named.name
    LEFT JOIN running ON running.queue = named.name
    LEFT JOIN ended ON ended.queue = named.name
ORDER BY named.name;

-- name: limit_gauges
-- Metrics are read again and again: a slow reading gives way.
SELECT pg_catalog.set_config('statement_timeout', '10s', true), pg_catalog.set_config('lock_timeout', '2s', true);

-- name: overdue_duties
-- By how many seconds each duty of maintenance is overdue.
SELECT duty, GREATEST(EXTRACT(epoch FROM (pg_catalog.statement_timestamp() - next_run_at)), 0)::float8
FROM pgjobs.maintenance WHERE pg_catalog.isfinite(next_run_at) ORDER BY duty;

-- name: oldest_transaction
-- The age in seconds of the oldest transaction of a client in this database, as far as this role may see.
SELECT COALESCE(EXTRACT(epoch FROM (pg_catalog.statement_timestamp() - pg_catalog.min(xact_start))), 0)::float8
FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND backend_type = 'client backend'
    AND pid <> pg_catalog.pg_backend_pid();

-- name: own_retention
-- The queues that keep their jobs for a time of their own.
SELECT
    name,
    pg_catalog.date_part('epoch', keep_completed),
    pg_catalog.date_part('epoch', keep_cancelled),
    pg_catalog.date_part('epoch', keep_discarded)
FROM pgjobs.queue
WHERE keep_completed IS NOT NULL OR keep_cancelled IS NOT NULL OR keep_discarded IS NOT NULL
ORDER BY name;

-- name: figures
-- By step of time, or all in one, and by queue and kind, or an empty text for all of them. The first minute is that in
-- which a period begins, since older figures are kept by periods: see roll_up_figures.
WITH asked AS (
    SELECT COALESCE(%(since)s::timestamptz, pg_catalog.statement_timestamp() - %(ago)s::interval) AS since
), first AS (
    SELECT pg_catalog.date_bin(
        CASE
            WHEN since < (pg_catalog.statement_timestamp() - %(older)s::interval) THEN %(long)s::interval
            WHEN since < (pg_catalog.statement_timestamp() - %(old)s::interval) THEN %(short)s::interval
            ELSE '1 minute'::interval END,
        since, '2000-01-03 UTC') AS minute
    FROM asked
), chosen AS (
    SELECT
        CASE WHEN %(step)s::interval IS NULL THEN first.minute
            ELSE pg_catalog.date_bin(%(step)s::interval, figure.minute, '2000-01-03 UTC') END AS at,
        CASE WHEN %(by_queue)s::boolean THEN queue ELSE '' END AS queue,
        CASE WHEN %(by_kind)s::boolean THEN kind ELSE '' END AS kind,
        completed, failed, discarded, cancelled, snoozed, interrupted, run_seconds, wait_seconds, run_counts, wait_counts
    FROM first JOIN pgjobs.figure ON figure.minute >= first.minute
    WHERE (%(queue)s::text IS NULL OR queue = %(queue)s::text) AND (%(kind)s::text IS NULL OR kind = %(kind)s::text)
)
SELECT
    at, queue, kind,
    pg_catalog.sum(completed),
    pg_catalog.sum(failed),
    pg_catalog.sum(discarded),
    pg_catalog.sum(cancelled),
    pg_catalog.sum(snoozed),
    pg_catalog.sum(interrupted),
    pg_catalog.sum(run_seconds),
    pg_catalog.sum(wait_seconds),
    pg_catalog.sum(run_counts)::text,
    pg_catalog.sum(wait_counts)::text
FROM chosen
GROUP BY at, queue, kind
ORDER BY at, queue, kind;
