-- The worker processes: their rows, and the rows of the queues that they work. Nothing depends on a worker's row: a job
-- is rescued because its own row is not locked.

-- name: may_claim
-- Whether this role has the rights of a worker, and not just those of an operator.
SELECT pg_catalog.has_column_privilege('pgjobs.job', 'attempted_by', 'UPDATE');

-- name: register_worker
-- Runs every few seconds, so it must not wait long for a lock. A process that took over the id of another starts anew.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '1s';
SET LOCAL statement_timeout = '5s';
INSERT INTO pgjobs.worker AS known (id, host, pid, queues, threads, kinds, version, code_version, stuck) VALUES (
    %(id)s, %(host)s, %(pid)s, %(queues)s::jsonb, %(threads)s, %(kinds)s::text[], %(version)s, %(code_version)s,
    %(stuck)s::jsonb)
ON CONFLICT (id) DO UPDATE SET
    host = EXCLUDED.host,
    pid = EXCLUDED.pid,
    queues = EXCLUDED.queues,
    threads = EXCLUDED.threads,
    kinds = EXCLUDED.kinds,
    version = EXCLUDED.version,
    code_version = EXCLUDED.code_version,
    stuck = EXCLUDED.stuck,
    started_at = CASE WHEN (known.host, known.pid) = (EXCLUDED.host, EXCLUDED.pid) THEN known.started_at
        ELSE EXCLUDED.started_at END,
    seen_at = EXCLUDED.seen_at;
COMMIT;

-- name: deregister_worker
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '1s';
SET LOCAL statement_timeout = '5s';
DELETE FROM pgjobs.worker WHERE id = %(id)s;
COMMIT;

-- name: prune_workers
-- Processes that ended without deregistering. A process stays a little longer while its jobs are rescued.
DELETE FROM pgjobs.worker
WHERE GREATEST(seen_at, lost_at) < (pg_catalog.clock_timestamp() - %(after)s::interval)
RETURNING id;

-- name: write_progress
-- Writes what handlers of this process have said of their progress, and removes the rows of their attempts that have
-- ended. Only this process writes these rows. Its commit does not wait for the disk: after a crash of the server no
-- attempt goes on.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '1s';
SET LOCAL statement_timeout = '5s';
SET LOCAL synchronous_commit = off;
WITH ended AS (
    SELECT job_id, token FROM ROWS FROM (
        pg_catalog.unnest(%(ended_ids)s::bigint[]), pg_catalog.unnest(%(ended_tokens)s::uuid[])
    ) AS ended (job_id, token)
), removed AS (
    DELETE FROM pgjobs.job_progress USING ended
    WHERE job_progress.job_id = ended.job_id AND job_progress.token = ended.token
)
INSERT INTO pgjobs.job_progress AS known (job_id, token, done, total, note)
SELECT job_id, token, done, total, note FROM ROWS FROM (
    pg_catalog.unnest(%(ids)s::bigint[]), pg_catalog.unnest(%(tokens)s::uuid[]), pg_catalog.unnest(%(done)s::float8[]),
    pg_catalog.unnest(%(totals)s::float8[]), pg_catalog.unnest(%(notes)s::text[])
) AS said (job_id, token, done, total, note)
ON CONFLICT (job_id, token) DO UPDATE SET
    done = EXCLUDED.done,
    total = EXCLUDED.total,
    note = EXCLUDED.note,
    updated_at = EXCLUDED.updated_at;
COMMIT;

-- name: prune_progress
-- Of attempts that have ended, where the process died before it removed the row.
WITH left_over AS MATERIALIZED (
    SELECT job_id, token FROM pgjobs.job_progress AS progress
    WHERE NOT EXISTS (
        SELECT FROM pgjobs.job WHERE job.id = progress.job_id AND job.token = progress.token AND state = 'running')
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM pgjobs.job_progress USING left_over
    WHERE job_progress.job_id = left_over.job_id AND job_progress.token = left_over.token
    RETURNING job_progress.job_id
)
SELECT pg_catalog.count(*) FROM removed;

-- name: add_figures
-- Adds to the figures of this minute. All processes write their rows in one order, so they cannot wait for each other in
-- a circle. The commit does not wait for the disk: a crash of the server may lose the figures of its last second.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '1s';
SET LOCAL statement_timeout = '5s';
SET LOCAL synchronous_commit = off;
INSERT INTO pgjobs.figure AS known (
    minute, queue, kind, completed, failed, discarded, cancelled, snoozed, interrupted, run_seconds, wait_seconds,
    run_counts, wait_counts)
SELECT
    pg_catalog.date_bin('1 minute', pg_catalog.statement_timestamp(), '2000-01-03 UTC'), queue, kind, completed,
    retried + discarded, discarded, cancelled, snoozed, interrupted, run_seconds, wait_seconds,
    run_counts::numeric, wait_counts::numeric
FROM ROWS FROM (
    pg_catalog.unnest(%(queues)s::text[]), pg_catalog.unnest(%(kinds)s::text[]),
    pg_catalog.unnest(%(completed)s::integer[]), pg_catalog.unnest(%(retried)s::integer[]),
    pg_catalog.unnest(%(discarded)s::integer[]), pg_catalog.unnest(%(cancelled)s::integer[]),
    pg_catalog.unnest(%(snoozed)s::integer[]), pg_catalog.unnest(%(interrupted)s::integer[]),
    pg_catalog.unnest(%(run_seconds)s::float8[]), pg_catalog.unnest(%(wait_seconds)s::float8[]),
    pg_catalog.unnest(%(run_counts)s::text[]), pg_catalog.unnest(%(wait_counts)s::text[])
) AS counted (
    queue, kind, completed, retried, discarded, cancelled, snoozed, interrupted, run_seconds, wait_seconds, run_counts,
    wait_counts)
ORDER BY queue, kind
{add_to_figures};
COMMIT;

-- name: list_workers
SELECT id, host, pid, queues, threads, kinds, version, code_version, started_at, seen_at, stuck
FROM pgjobs.worker
ORDER BY started_at, id;

-- name: refresh_queues
-- Skips locked rows: a transaction that pauses a queue refreshes its row. All processes insert missing rows in one
-- order, so they cannot wait for each other in a circle.
WITH mine AS (
    SELECT name FROM pg_catalog.unnest(%(names)s::text[]) AS mine (name)
), made AS (
    INSERT INTO pgjobs.queue (name) SELECT name FROM mine WHERE NOT (name = ANY (SELECT name FROM pgjobs.queue))
    ORDER BY name
    ON CONFLICT DO NOTHING
), free AS MATERIALIZED (
    SELECT name FROM pgjobs.queue WHERE name = ANY (SELECT name FROM mine) FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE pgjobs.queue SET updated_at = pg_catalog.statement_timestamp()
FROM free WHERE queue.name = free.name;

-- name: prune_queues
-- Queues that no worker has worked for a day, unless the row says something: that the queue is paused, or how long its
-- jobs are kept. A queue in which jobs wait is still listed.
DELETE FROM pgjobs.queue WHERE name = ANY (
    SELECT name FROM pgjobs.queue
    WHERE paused_at IS NULL AND updated_at < (pg_catalog.statement_timestamp() - interval '1 day')
        AND keep_completed IS NULL AND keep_cancelled IS NULL AND keep_discarded IS NULL
    FOR UPDATE SKIP LOCKED);

-- name: paused_queues
-- At least one row, for the time.
SELECT pg_catalog.statement_timestamp(), name, paused_at
FROM (SELECT 1) AS always LEFT JOIN pgjobs.queue ON paused_at IS NOT NULL;

-- name: wake_queues
-- A process that stops may have unclaimed jobs, which workers of other processes should look for.
SELECT {notify_worker} FROM pg_catalog.unnest(%(names)s::text[]) AS queue;

-- name: any_work_left
-- Whether one of these queues has a job that runs, or one of these kinds (null: of all) that can run now. A job that is
-- due counts, though it is not made available yet; those of a paused queue do not.
SELECT EXISTS (
    SELECT FROM pgjobs.job WHERE state = 'running' AND queue = ANY (%(queues)s::text[])
) OR EXISTS (
    SELECT FROM pg_catalog.unnest(%(queues)s::text[]) AS asked (queue)
    WHERE NOT EXISTS (SELECT FROM pgjobs.queue WHERE name = asked.queue AND paused_at IS NOT NULL)
        AND (EXISTS (
            SELECT FROM pgjobs.job
            WHERE state = 'available' AND queue = asked.queue AND scheduled_at <= pg_catalog.statement_timestamp()
                AND (%(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[]))
        ) OR EXISTS (
            SELECT FROM pgjobs.job
            WHERE state = ANY ('{scheduled,retryable}') AND queue = asked.queue
                AND scheduled_at <= pg_catalog.statement_timestamp()
                AND (%(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[]))
        ))
);
