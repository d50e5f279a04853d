-- What control.sql does to one job, done to a batch of those that fit a filter: by the same rules, with a verdict for each.
-- What somebody else holds is passed over, and a job that no longer fits when its lock is had is left alone. When two jobs
-- of a batch want the same unique key, the older one gets it.

-- name: newest_id
-- Null when there is no job.
SELECT pg_catalog.max(id) FROM pgjobs.job;

-- name: begin_many
-- As begin_control; but a call of many such transactions waits no longer in all of them than it may in one.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SELECT pg_catalog.set_config('lock_timeout', %(patience)s, true);

-- name: ids_in_turn
-- For a batch that has to be done one by one.
{next_in_turn};

-- name: cancel_many
WITH seen AS MATERIALIZED (
    {next_in_turn}
), free AS MATERIALIZED (
    SELECT id, queue, unique_key, 'cancelled' = ANY (unique_states) AS covered, EXISTS (
        SELECT FROM pgjobs.job AS twin
        WHERE twin.unique_key = job.unique_key AND twin.state = ANY (twin.unique_states)
            AND (twin.id, twin.queue) <> (job.id, job.queue)) AS taken
    FROM pgjobs.job
    WHERE id = ANY (ARRAY(SELECT seen.id FROM seen))
        AND EXISTS (SELECT FROM seen WHERE seen.id = job.id AND seen.queue = job.queue) AND {matches}
        AND state = ANY ('{available,scheduled,retryable,pending}')
    FOR NO KEY UPDATE SKIP LOCKED
), judged AS (
    SELECT id, queue, covered AND (
        taken OR pg_catalog.row_number() OVER (PARTITION BY unique_key, covered ORDER BY id) > 1) AS conflict
    FROM free
), changed AS (
    UPDATE pgjobs.job SET
        state = 'cancelled',
        finalized_at = pg_catalog.statement_timestamp(),
        metadata = metadata || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
            'cancel_attempted_at', pg_catalog.statement_timestamp(),
            'cancel_reason', CASE WHEN %(reason)s::text <> '' THEN %(reason)s::text END,
            'unique_key_conflict', CASE WHEN judged.conflict THEN true END)),
        unique_key = CASE WHEN judged.conflict THEN NULL ELSE job.unique_key END,
        unique_states = CASE WHEN judged.conflict THEN NULL ELSE unique_states END
    FROM judged WHERE job.id = judged.id AND job.queue = judged.queue
    RETURNING job.*
), requested AS (
    INSERT INTO pgjobs.cancel_request (job_id, queue, token, reason)
    SELECT job.id, job.queue, token, CASE WHEN %(reason)s::text <> '' THEN %(reason)s::text END
    FROM seen JOIN pgjobs.job ON job.id = seen.id AND job.queue = seen.queue
    WHERE state = 'running' AND NOT EXISTS (
        SELECT FROM pgjobs.cancel_request AS earlier WHERE earlier.job_id = job.id AND earlier.token = job.token)
), answer AS (
    SELECT 'done' AS verdict, changed.* FROM changed
    UNION ALL
    SELECT CASE WHEN job.state = 'running' THEN 'running' ELSE 'busy' END, told.*
    FROM seen JOIN pgjobs.job ON job.id = seen.id AND job.queue = seen.queue,
        LATERAL pg_catalog.jsonb_populate_record(job, CASE WHEN job.state = 'running' THEN
            pg_catalog.jsonb_build_object('metadata', job.metadata || pg_catalog.jsonb_build_object(
                'cancel_attempted_at', COALESCE(
                    (SELECT pg_catalog.min(requested_at) FROM pgjobs.cancel_request AS earlier
                        WHERE earlier.job_id = job.id AND earlier.token = job.token),
                    pg_catalog.statement_timestamp())))
            ELSE '{}' END) AS told
    WHERE NOT EXISTS (SELECT FROM changed WHERE changed.id = seen.id AND changed.queue = seen.queue)
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output, verdict,
    CASE WHEN verdict = 'running' THEN pg_catalog.pg_notify(%(channel)s, ' cancel') END
FROM answer ORDER BY id, queue;

-- name: retry_many
WITH seen AS MATERIALIZED (
    {next_in_turn}
), free AS MATERIALIZED (
    SELECT id, queue, unique_key, %(reset)s::boolean AND state <> 'discarded' AS unfit,
        (state = ANY (unique_states)) IS NOT TRUE AND 'available' = ANY (unique_states) AS covered, EXISTS (
            SELECT FROM pgjobs.job AS twin
            WHERE twin.unique_key = job.unique_key AND twin.state = ANY (twin.unique_states)
                AND (twin.id, twin.queue) <> (job.id, job.queue)) AS taken
    FROM pgjobs.job
    WHERE id = ANY (ARRAY(SELECT seen.id FROM seen))
        AND EXISTS (SELECT FROM seen WHERE seen.id = job.id AND seen.queue = job.queue)
        AND {matches} AND state <> 'running'
    FOR NO KEY UPDATE SKIP LOCKED
), judged AS (
    SELECT id, queue, unfit, covered AND (
        taken OR pg_catalog.row_number() OVER (PARTITION BY unique_key, covered ORDER BY id) > 1) AS conflict
    FROM free
), requests AS MATERIALIZED (
    SELECT id, job_id, queue FROM pgjobs.cancel_request
    WHERE job_id = ANY (ARRAY(SELECT free.id FROM free))
    FOR UPDATE SKIP LOCKED
), changed AS (
    UPDATE pgjobs.job SET
        state = 'available',
        attempt = CASE WHEN %(reset)s::boolean THEN 0 ELSE LEAST(attempt, 2147483646) END,
        max_attempts = CASE WHEN %(reset)s::boolean THEN max_attempts
            ELSE GREATEST(max_attempts, LEAST(attempt, 2147483646) + 1) END,
        scheduled_at = CASE WHEN state = 'available' THEN LEAST(scheduled_at, pg_catalog.statement_timestamp())
            ELSE pg_catalog.statement_timestamp() END,
        finalized_at = NULL,
        leased_until = NULL,
        metadata = metadata - '{cancel_attempted_at,cancel_reason}'::text[],
        token = NULL
    FROM judged
    WHERE job.id = judged.id AND job.queue = judged.queue AND conflict IS NOT TRUE AND NOT unfit
        AND (SELECT pg_catalog.count(*) FROM requests WHERE job_id = job.id AND requests.queue = job.queue)
            = (SELECT pg_catalog.count(*) FROM pgjobs.cancel_request AS request
                WHERE job_id = job.id AND request.queue = job.queue)
    RETURNING job.*
), forgotten AS (
    DELETE FROM pgjobs.cancel_request USING requests, changed
    WHERE cancel_request.id = requests.id AND requests.job_id = changed.id AND requests.queue = changed.queue
), answer AS (
    SELECT 'done' AS verdict, changed.* FROM changed
    UNION ALL
    SELECT CASE
        WHEN job.state = 'running' THEN 'running'
        WHEN judged.unfit THEN 'unfit'
        WHEN judged.conflict THEN 'conflict'
        ELSE 'busy' END, job.*
    FROM seen JOIN pgjobs.job ON job.id = seen.id AND job.queue = seen.queue
        LEFT JOIN judged ON judged.id = seen.id AND judged.queue = seen.queue
    WHERE NOT EXISTS (SELECT FROM changed WHERE changed.id = seen.id AND changed.queue = seen.queue)
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output, verdict,
    CASE WHEN verdict = 'done' THEN {called} END
FROM answer ORDER BY id, queue;

-- name: delete_many
WITH seen AS MATERIALIZED (
    {next_in_turn}
), free AS MATERIALIZED (
    SELECT id, queue FROM pgjobs.job
    WHERE id = ANY (ARRAY(SELECT seen.id FROM seen))
        AND EXISTS (SELECT FROM seen WHERE seen.id = job.id AND seen.queue = job.queue)
        AND {matches} AND state <> 'running'
    FOR UPDATE SKIP LOCKED
), changed AS (
    DELETE FROM pgjobs.job USING free
    WHERE job.id = free.id AND job.queue = free.queue
    RETURNING job.*
), answer AS (
    SELECT 'done' AS verdict, changed.* FROM changed
    UNION ALL
    SELECT CASE WHEN job.state = 'running' THEN 'running' ELSE 'busy' END, job.*
    FROM seen JOIN pgjobs.job ON job.id = seen.id AND job.queue = seen.queue
    WHERE NOT EXISTS (SELECT FROM changed WHERE changed.id = seen.id AND changed.queue = seen.queue)
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output, verdict
FROM answer ORDER BY id, queue;

-- name: update_many
-- The new values have names of their own: those of the columns are the filter's.
WITH seen AS MATERIALIZED (
    {next_in_turn}
), free AS MATERIALIZED (
    SELECT id, queue, unique_key, next.state,
        %(new_max_attempts)s::integer < (attempt + CASE WHEN job.finalized_at IS NULL THEN 1 ELSE 0 END) AS unfit,
        (job.state = ANY (unique_states)) IS NOT TRUE AND next.state = ANY (unique_states) AS covered, EXISTS (
            SELECT FROM pgjobs.job AS twin
            WHERE twin.unique_key = job.unique_key AND twin.state = ANY (twin.unique_states)
                AND (twin.id, twin.queue) <> (job.id, job.queue)) AS taken
    FROM pgjobs.job, LATERAL (
        SELECT CASE
            WHEN job.state = 'available' AND %(new_scheduled_at)s::timestamptz > pg_catalog.statement_timestamp()
                THEN 'scheduled'
            WHEN job.state = ANY ('{scheduled,retryable}')
                AND %(new_scheduled_at)s::timestamptz <= pg_catalog.statement_timestamp() THEN 'available'
            ELSE job.state END AS state) AS next
    WHERE id = ANY (ARRAY(SELECT seen.id FROM seen))
        AND EXISTS (SELECT FROM seen WHERE seen.id = job.id AND seen.queue = job.queue)
        AND {matches} AND job.state <> 'running'
    FOR NO KEY UPDATE OF job SKIP LOCKED
), judged AS (
    SELECT id, queue, state, unfit, covered AND (
        taken OR pg_catalog.row_number() OVER (PARTITION BY unique_key, covered ORDER BY id) > 1) AS conflict
    FROM free
), changed AS (
    UPDATE pgjobs.job SET
        state = judged.state,
        priority = COALESCE(%(new_priority)s::smallint, priority),
        max_attempts = COALESCE(%(new_max_attempts)s::integer, max_attempts),
        scheduled_at = COALESCE(%(new_scheduled_at)s::timestamptz, scheduled_at),
        tags = COALESCE(%(new_tags)s::text[], tags),
        metadata = metadata || COALESCE(%(new_metadata)s::jsonb, '{}'),
        output = COALESCE(%(new_output)s::jsonb, output)
    FROM judged
    WHERE job.id = judged.id AND job.queue = judged.queue AND unfit IS NOT TRUE AND conflict IS NOT TRUE
    RETURNING job.*
), answer AS (
    SELECT 'done' AS verdict, changed.* FROM changed
    UNION ALL
    SELECT CASE
        WHEN job.state = 'running' THEN 'running'
        WHEN judged.unfit THEN 'unfit'
        WHEN judged.conflict THEN 'conflict'
        ELSE 'busy' END, job.*
    FROM seen JOIN pgjobs.job ON job.id = seen.id AND job.queue = seen.queue
        LEFT JOIN judged ON judged.id = seen.id AND judged.queue = seen.queue
    WHERE NOT EXISTS (SELECT FROM changed WHERE changed.id = seen.id AND changed.queue = seen.queue)
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output, verdict,
    CASE WHEN verdict = 'done' THEN {told} END
FROM answer ORDER BY id, queue;
