-- What people do to a job by hand, on the caller's connection and inside its transaction. Each statement looks at the
-- row, changes it if it may and can have its lock now, and says in `verdict` which it was: done, running, final,
-- conflict, unfit, not pending; or busy, when another transaction held the row or changed it meanwhile. So no statement
-- waits for the lock of a job, and none fails where a failure would cost the caller's transaction. Where two queues
-- have a job of this id, the statement changes neither and gives both. Functions are named in full: the search_path is
-- the caller's.

-- name: begin_control
-- For a transaction of our own: whatever the defaults of the session are, each try sees what others have committed, and
-- what cannot be had without waiting (the twin of a unique job that is being inserted) is not waited for long.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '1s';

-- name: cancel
-- A job that runs is locked by its worker: the request stands beside it, for this attempt, and those who listen are told. A key that the state 'cancelled' would share with a twin is given up: to cancel always succeeds.
WITH free AS MATERIALIZED (
    SELECT id, queue, 'cancelled' = ANY (unique_states) AND EXISTS (
        SELECT FROM pgjobs.job AS twin
        WHERE twin.unique_key = job.unique_key AND twin.state = ANY (twin.unique_states)
            AND (twin.id, twin.queue) <> (job.id, job.queue)) AS conflict
    FROM pgjobs.job
    WHERE id = %(id)s AND state = ANY ('{available,scheduled,retryable,pending}') AND {alone}
    FOR NO KEY UPDATE SKIP LOCKED
), changed AS (
    UPDATE pgjobs.job SET
        state = 'cancelled',
        finalized_at = pg_catalog.statement_timestamp(),
        metadata = metadata || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
            'cancel_attempted_at', pg_catalog.statement_timestamp(),
            'cancel_reason', CASE WHEN %(reason)s::text <> '' THEN %(reason)s::text END,
            'unique_key_conflict', CASE WHEN free.conflict THEN true END)),
        unique_key = CASE WHEN free.conflict THEN NULL ELSE job.unique_key END,
        unique_states = CASE WHEN free.conflict THEN NULL ELSE unique_states END
    FROM free WHERE job.id = free.id AND job.queue = free.queue
    RETURNING job.*
), requested AS (
    INSERT INTO pgjobs.cancel_request (job_id, queue, token, reason)
    SELECT id, queue, token, CASE WHEN %(reason)s::text <> '' THEN %(reason)s::text END FROM pgjobs.job
    WHERE id = %(id)s AND state = 'running' AND {alone} AND NOT EXISTS (
        SELECT FROM pgjobs.cancel_request AS earlier WHERE earlier.job_id = job.id AND earlier.token = job.token)
), answer AS (
    SELECT 'done' AS verdict, changed.* FROM changed
    UNION ALL
    SELECT
        CASE WHEN state = 'running' THEN 'running' WHEN finalized_at IS NOT NULL THEN 'final' ELSE 'busy' END,
        (pg_catalog.jsonb_populate_record(job, CASE WHEN state = 'running' THEN pg_catalog.jsonb_build_object(
            'metadata', metadata || pg_catalog.jsonb_build_object('cancel_attempted_at', COALESCE(
                (SELECT pg_catalog.min(requested_at) FROM pgjobs.cancel_request
                    WHERE job_id = job.id AND cancel_request.token = job.token),
                pg_catalog.statement_timestamp())))
            ELSE '{}' END)).*
    FROM pgjobs.job WHERE id = %(id)s AND NOT EXISTS (SELECT FROM changed)
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output, verdict,
    CASE WHEN verdict = 'running' THEN pg_catalog.pg_notify(%(channel)s, ' cancel') END
FROM answer;

-- name: release
-- A pending job waits for its time from now on, or for a worker. Its key holds in all three states.
WITH seen AS (
    SELECT * FROM pgjobs.job WHERE id = %(id)s
), free AS MATERIALIZED (
    SELECT id, queue FROM pgjobs.job WHERE id = %(id)s AND state = 'pending' AND {alone} FOR NO KEY UPDATE SKIP LOCKED
), changed AS (
    UPDATE pgjobs.job SET
        state = CASE WHEN scheduled_at > pg_catalog.statement_timestamp() THEN 'scheduled' ELSE 'available' END
    FROM free WHERE job.id = free.id AND job.queue = free.queue
    RETURNING job.*
), answer AS (
    SELECT 'done' AS verdict, changed.* FROM changed
    UNION ALL
    SELECT CASE WHEN state = 'pending' THEN 'busy' ELSE 'not pending' END, seen.*
    FROM seen WHERE NOT EXISTS (SELECT FROM changed)
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output, verdict,
    CASE
        WHEN verdict <> 'done' THEN NULL
        WHEN state = 'available' THEN {called}
        WHEN scheduled_at < (pg_catalog.statement_timestamp() + interval '2 seconds')
            THEN pg_catalog.pg_notify(%(channel)s, ' due')
    END
FROM answer;

-- name: retry
-- Runs again from now on, but keeps its place in line where it has one. Requests to cancel it are forgotten; one
-- that somebody else is dealing with at the moment would still reach the job, so that counts as busy. Without its token, no
-- late record of an old attempt finds it. With `reset` it begins anew, which only a discarded one may.
WITH seen AS (
    SELECT * FROM pgjobs.job WHERE id = %(id)s
), free AS MATERIALIZED (
    SELECT id, queue, (state = ANY (unique_states)) IS NOT TRUE AND 'available' = ANY (unique_states) AND EXISTS (
        SELECT FROM pgjobs.job AS twin
        WHERE twin.unique_key = job.unique_key AND twin.state = ANY (twin.unique_states)
            AND (twin.id, twin.queue) <> (job.id, job.queue)) AS conflict,
        %(reset)s::boolean AND state <> 'discarded' AS unfit
    FROM pgjobs.job
    WHERE id = %(id)s AND state <> 'running' AND {alone}
    FOR NO KEY UPDATE SKIP LOCKED
), requests AS MATERIALIZED (
    SELECT id FROM pgjobs.cancel_request
    WHERE job_id = %(id)s AND EXISTS (SELECT FROM free)
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
    FROM free
    WHERE job.id = free.id AND job.queue = free.queue AND free.conflict IS NOT TRUE AND NOT free.unfit
        AND (SELECT pg_catalog.count(*) FROM requests)
            = (SELECT pg_catalog.count(*) FROM pgjobs.cancel_request WHERE job_id = %(id)s)
    RETURNING job.*
), forgotten AS (
    DELETE FROM pgjobs.cancel_request USING requests
    WHERE cancel_request.id = requests.id AND EXISTS (SELECT FROM changed)
), answer AS (
    SELECT 'done' AS verdict, changed.* FROM changed
    UNION ALL
    SELECT CASE
        WHEN state = 'running' THEN 'running'
        WHEN EXISTS (SELECT FROM free WHERE unfit) THEN 'unfit'
        WHEN EXISTS (SELECT FROM free WHERE conflict) THEN 'conflict'
        ELSE 'busy' END, seen.*
    FROM seen WHERE NOT EXISTS (SELECT FROM changed)
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output, verdict,
    CASE WHEN verdict = 'done' THEN {called} END
FROM answer;

-- name: delete
-- FOR UPDATE, unlike everywhere else: a row that an open insert of somebody's references cannot be deleted now either.
WITH seen AS (
    SELECT * FROM pgjobs.job WHERE id = %(id)s
), free AS MATERIALIZED (
    SELECT id, queue FROM pgjobs.job
    WHERE id = %(id)s AND state <> 'running' AND {alone}
    FOR UPDATE SKIP LOCKED
), changed AS (
    DELETE FROM pgjobs.job USING free
    WHERE job.id = free.id AND job.queue = free.queue
    RETURNING job.*
), answer AS (
    SELECT 'done' AS verdict, changed.* FROM changed
    UNION ALL
    SELECT CASE WHEN state = 'running' THEN 'running' ELSE 'busy' END, seen.*
    FROM seen WHERE NOT EXISTS (SELECT FROM changed)
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output, verdict
FROM answer;

-- name: update
-- What is null stays. A new time also moves the job between waiting for its time and waiting for a worker. Decided here
-- too, and not by a constraint: attempts that the job has used up already, and a state that a unique twin is in.
WITH seen AS (
    SELECT * FROM pgjobs.job WHERE id = %(id)s
), free AS MATERIALIZED (
    SELECT id, queue, next.state,
        %(max_attempts)s::integer < (attempt + CASE WHEN job.finalized_at IS NULL THEN 1 ELSE 0 END) AS unfit,
        (job.state = ANY (unique_states)) IS NOT TRUE AND next.state = ANY (unique_states) AND EXISTS (
            SELECT FROM pgjobs.job AS twin
            WHERE twin.unique_key = job.unique_key AND twin.state = ANY (twin.unique_states)
                AND (twin.id, twin.queue) <> (job.id, job.queue)) AS conflict
    FROM pgjobs.job, LATERAL (
        SELECT CASE
            WHEN job.state = 'available' AND %(scheduled_at)s::timestamptz > pg_catalog.statement_timestamp()
                THEN 'scheduled'
            WHEN job.state = ANY ('{scheduled,retryable}')
                AND %(scheduled_at)s::timestamptz <= pg_catalog.statement_timestamp() THEN 'available'
            ELSE job.state END AS state) AS next
    WHERE id = %(id)s AND job.state <> 'running' AND {alone}
    FOR NO KEY UPDATE OF job SKIP LOCKED
), changed AS (
    UPDATE pgjobs.job SET
        state = free.state,
        priority = COALESCE(%(priority)s::smallint, priority),
        max_attempts = COALESCE(%(max_attempts)s::integer, max_attempts),
        scheduled_at = COALESCE(%(scheduled_at)s::timestamptz, scheduled_at),
        tags = COALESCE(%(tags)s::text[], tags),
        metadata = metadata || COALESCE(%(metadata)s::jsonb, '{}'),
        output = COALESCE(%(output)s::jsonb, output)
    FROM free
    WHERE job.id = free.id AND job.queue = free.queue AND free.unfit IS NOT TRUE AND free.conflict IS NOT TRUE
    RETURNING job.*
), answer AS (
    SELECT 'done' AS verdict, changed.* FROM changed
    UNION ALL
    SELECT CASE
        WHEN state = 'running' THEN 'running'
        WHEN EXISTS (SELECT FROM free WHERE unfit) THEN 'unfit'
        WHEN EXISTS (SELECT FROM free WHERE conflict) THEN 'conflict'
        ELSE 'busy' END, seen.*
    FROM seen WHERE NOT EXISTS (SELECT FROM changed)
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output, verdict,
    CASE
        WHEN verdict <> 'done' THEN NULL
        WHEN state = 'available' THEN {called}
        WHEN state = ANY ('{scheduled,retryable}')
            AND scheduled_at < (pg_catalog.statement_timestamp() + interval '2 seconds')
            THEN pg_catalog.pg_notify(%(channel)s, ' due')
    END
FROM answer;

-- name: snapshot_is_kept
-- Whether a further try would see nothing new.
SELECT pg_catalog.current_setting('transaction_isolation') = ANY ('{repeatable read,serializable}');

-- name: cancelled_attempts
-- Which of these attempts somebody wants cancelled. Those of a batch share their token.
SELECT DISTINCT ON (job_id, token) job_id, token, COALESCE(reason, '') FROM pgjobs.cancel_request
WHERE token = ANY (%(tokens)s::uuid[])
ORDER BY job_id, token, requested_at;
