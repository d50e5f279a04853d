-- Looking, without changing anything.

-- name: get_job
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output
FROM pgjobs.job WHERE id = %(id)s;

-- name: probe
-- Whether anybody is there: the shortest question.
SELECT 1;
