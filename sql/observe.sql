-- Looking, without changing anything. Functions are named in full: the search_path is the caller's.

-- name: get_job
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output
FROM pgjobs.job WHERE id = %(id)s ORDER BY queue;

-- name: probe
-- Whether anybody is there: the shortest question.
SELECT 1;

-- name: list_jobs
-- One page, from behind the cursor on. The order asked for is a constant too: all others are folded away.
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output
FROM pgjobs.job
WHERE {matches}
    AND CASE
        WHEN %(after_id)s::bigint IS NULL THEN true
        WHEN %(order)s::text = 'id up' THEN id > %(after_id)s::bigint
        WHEN %(order)s::text = 'id down' THEN id < %(after_id)s::bigint
        WHEN %(order)s::text = 'scheduled_at up'
            THEN (scheduled_at, id) > (%(after_time)s::timestamptz, %(after_id)s::bigint)
        WHEN %(order)s::text = 'scheduled_at down'
            THEN (scheduled_at, id) < (%(after_time)s::timestamptz, %(after_id)s::bigint)
        WHEN %(order)s::text = 'finalized_at up'
            THEN (finalized_at, id) > (%(after_time)s::timestamptz, %(after_id)s::bigint)
        WHEN %(order)s::text = 'finalized_at down'
            THEN (finalized_at, id) < (%(after_time)s::timestamptz, %(after_id)s::bigint)
        WHEN %(order)s::text = 'attempted_at up'
            THEN (COALESCE(attempted_at, created_at), id) > (%(after_time)s::timestamptz, %(after_id)s::bigint)
        WHEN %(order)s::text = 'attempted_at down'
            THEN (COALESCE(attempted_at, created_at), id) < (%(after_time)s::timestamptz, %(after_id)s::bigint)
        END
ORDER BY
    CASE WHEN %(order)s::text = 'scheduled_at up' THEN scheduled_at END,
    CASE WHEN %(order)s::text = 'scheduled_at down' THEN scheduled_at END DESC,
    CASE WHEN %(order)s::text = 'finalized_at up' THEN finalized_at END,
    CASE WHEN %(order)s::text = 'finalized_at down' THEN finalized_at END DESC,
    CASE WHEN %(order)s::text = 'attempted_at up' THEN COALESCE(attempted_at, created_at) END,
    CASE WHEN %(order)s::text = 'attempted_at down' THEN COALESCE(attempted_at, created_at) END DESC,
    CASE WHEN pg_catalog.right(%(order)s::text, 3) = ' up' THEN id END,
    CASE WHEN pg_catalog.right(%(order)s::text, 5) = ' down' THEN id END DESC
LIMIT %(limit)s::integer;

-- name: list_available
-- The same for jobs that are available, by their time: no index has them in this order, but the one of the fetch has
-- those of each queue and priority, and a page of each is enough.
WITH RECURSIVE line AS (
    {queue_priorities}
)
SELECT
    id, state, job.queue, kind, job.priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output
FROM line, LATERAL (
    SELECT job.* FROM pgjobs.job
    WHERE job.state = 'available' AND job.queue = line.queue AND job.priority = line.priority
        AND {matches}
        AND CASE
            WHEN %(after_id)s::bigint IS NULL THEN true
            WHEN %(order)s::text = 'scheduled_at up'
                THEN (job.scheduled_at, job.id) > (%(after_time)s::timestamptz, %(after_id)s::bigint)
            ELSE (job.scheduled_at, job.id) < (%(after_time)s::timestamptz, %(after_id)s::bigint) END
    ORDER BY
        CASE WHEN %(order)s::text = 'scheduled_at up' THEN job.scheduled_at END,
        CASE WHEN %(order)s::text = 'scheduled_at up' THEN job.id END,
        CASE WHEN %(order)s::text = 'scheduled_at down' THEN job.scheduled_at END DESC,
        CASE WHEN %(order)s::text = 'scheduled_at down' THEN job.id END DESC
    LIMIT %(limit)s::integer
) AS job
ORDER BY
    CASE WHEN %(order)s::text = 'scheduled_at up' THEN job.scheduled_at END,
    CASE WHEN %(order)s::text = 'scheduled_at up' THEN job.id END,
    CASE WHEN %(order)s::text = 'scheduled_at down' THEN job.scheduled_at END DESC,
    CASE WHEN %(order)s::text = 'scheduled_at down' THEN job.id END DESC
LIMIT %(limit)s::integer;

-- name: count_jobs
-- How many fit, by queue and state.
SELECT queue, state, pg_catalog.count(*) FROM pgjobs.job
WHERE {matches}
GROUP BY queue, state
ORDER BY queue, state;
