-- What people do to a job by hand, on the caller's connection and inside its transaction. Each statement looks at the
-- row, changes it if it may and can have its lock now, and says in `verdict` which it was: done, running, final,
-- conflict, unfit, not pending; or busy, when another transaction held the row or changed it meanwhile. So no statement
-- waits for the lock of a job, and none fails where a failure would cost the caller's transaction. Where two queues
-- have a job of this id, the statement changes neither and gives both. Functions are named in full: the search_path is
-- the caller's.

-- name: begin_control
-- For a transaction of our own: whatever the defaults of the session are, each try sees what others have committed, and
-- what cannot be had without waiting (the duplicate of a unique job that is being inserted) is not waited for long.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '1s';

-- name: cancel
-- A job that runs is locked by its worker: the request stands beside it, for this attempt, and those who listen are told. A key that the state 'cancelled' would share with a duplicate is given up: to cancel always succeeds.
WITH free AS MATERIALIZED (
    SELECT id, queue, 'cancelled' = ANY (unique_states) AND EXISTS (
        SELECT FROM pgjobs.job AS duplicate
        WHERE duplicate.unique_key = job.unique_key AND duplicate.state = ANY (duplicate.unique_states)
            AND (duplicate.id, duplicate.queue) <> (job.id, job.queue)) AS conflict
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
        SELECT FROM pgjobs.job AS duplicate
        WHERE duplicate.unique_key = job.unique_key AND duplicate.state = ANY (duplicate.unique_states)
            AND (duplicate.id, duplicate.queue) <> (job.id, job.queue)) AS conflict,
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
-- too, and not by a constraint: attempts that the job has used up already, and a state that a unique duplicate is in.
WITH seen AS (
    SELECT * FROM pgjobs.job WHERE id = %(id)s
), free AS MATERIALIZED (
    SELECT id, queue, next.state,
        %(max_attempts)s::integer < (attempt + CASE WHEN job.finalized_at IS NULL THEN 1 ELSE 0 END) AS unfit,
        (job.state = ANY (unique_states)) IS NOT TRUE AND next.state = ANY (unique_states) AND EXISTS (
            SELECT FROM pgjobs.job AS duplicate
            WHERE duplicate.unique_key = job.unique_key AND duplicate.state = ANY (duplicate.unique_states)
                AND (duplicate.id, duplicate.queue) <> (job.id, job.queue)) AS conflict
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

-- ----- many jobs
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
        SELECT FROM pgjobs.job AS duplicate
        WHERE duplicate.unique_key = job.unique_key AND duplicate.state = ANY (duplicate.unique_states)
            AND (duplicate.id, duplicate.queue) <> (job.id, job.queue)) AS taken
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
            SELECT FROM pgjobs.job AS duplicate
            WHERE duplicate.unique_key = job.unique_key AND duplicate.state = ANY (duplicate.unique_states)
                AND (duplicate.id, duplicate.queue) <> (job.id, job.queue)) AS taken
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
            SELECT FROM pgjobs.job AS duplicate
            WHERE duplicate.unique_key = job.unique_key AND duplicate.state = ANY (duplicate.unique_states)
                AND (duplicate.id, duplicate.queue) <> (job.id, job.queue)) AS taken
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

-- ----- queues
-- What there is to say about queues. A row of the table stands for a queue that a worker works, or has lately; a queue in
-- which jobs wait or run is one without that too. Functions are named in full: the search_path may be the caller's.

-- name: list_queues
WITH RECURSIVE line AS (
    {lines}
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
-- Of the queues that are named, or of all. Every part reads the index of its state alone; those that wait are counted in
-- that of the fetch, where the oldest of each priority stands first.
WITH RECURSIVE line AS (
    {lines}
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
    -- one that is available before its time does not wait yet
    CASE WHEN waiting.since IS NOT NULL
        THEN GREATEST(pg_catalog.statement_timestamp() - waiting.since, interval '0') END,
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

-- name: pause_queues
-- Whether they are paused or not from now on: the claims that begin after the commit see it. The row of a queue that only
-- jobs know is made. Pausing what is paused changes nothing. What somebody else holds is told as busy.
WITH RECURSIVE line AS (
    {lines}
), named AS (
    SELECT name FROM pgjobs.queue
    UNION SELECT queue FROM line
    UNION SELECT queue FROM pgjobs.job WHERE state = 'running'
), seen AS (
    SELECT name FROM named WHERE %(name)s::text IS NULL OR name = %(name)s::text
), free AS MATERIALIZED (
    SELECT name FROM pgjobs.queue
    WHERE %(name)s::text IS NULL OR name = %(name)s::text
    FOR NO KEY UPDATE SKIP LOCKED
), changed AS (
    UPDATE pgjobs.queue SET
        paused_at = CASE WHEN %(paused)s::boolean THEN COALESCE(paused_at, pg_catalog.statement_timestamp()) END,
        updated_at = pg_catalog.statement_timestamp()
    FROM free WHERE queue.name = free.name
    RETURNING queue.name, paused_at, updated_at, keep_completed, keep_cancelled, keep_discarded
), made AS (
    INSERT INTO pgjobs.queue (name, paused_at)
    SELECT name, CASE WHEN %(paused)s::boolean THEN pg_catalog.statement_timestamp() END
    FROM seen WHERE NOT (name = ANY (SELECT name FROM pgjobs.queue))
    ORDER BY name
    ON CONFLICT DO NOTHING
    RETURNING name, paused_at, updated_at, keep_completed, keep_cancelled, keep_discarded
), answer AS (
    SELECT * FROM changed
    UNION ALL
    SELECT * FROM made
)
SELECT
    seen.name, answer.paused_at, answer.updated_at,
    pg_catalog.date_part('epoch', answer.keep_completed),
    pg_catalog.date_part('epoch', answer.keep_cancelled),
    pg_catalog.date_part('epoch', answer.keep_discarded),
    answer.name IS NULL AS busy,
    CASE WHEN NOT %(paused)s::boolean AND answer.name IS NOT NULL THEN {called} END
FROM seen LEFT JOIN answer ON answer.name = seen.name, LATERAL (SELECT seen.name AS queue) AS resumed
ORDER BY seen.name;

-- name: paused_queues
-- In one row at least, which says when this is so.
SELECT pg_catalog.statement_timestamp(), name, paused_at
FROM (SELECT 1) AS always LEFT JOIN pgjobs.queue ON paused_at IS NOT NULL;

-- name: update_queue
-- How long its jobs are kept. No row comes back when somebody else has that of the queue.
WITH free AS MATERIALIZED (
    SELECT name FROM pgjobs.queue WHERE name = %(name)s::text FOR NO KEY UPDATE SKIP LOCKED
), changed AS (
    UPDATE pgjobs.queue SET
        keep_completed = CASE WHEN %(set_completed)s::boolean THEN %(keep_completed)s::interval
            ELSE queue.keep_completed END,
        keep_cancelled = CASE WHEN %(set_cancelled)s::boolean THEN %(keep_cancelled)s::interval
            ELSE queue.keep_cancelled END,
        keep_discarded = CASE WHEN %(set_discarded)s::boolean THEN %(keep_discarded)s::interval
            ELSE queue.keep_discarded END
    FROM free WHERE queue.name = free.name
    RETURNING queue.name, paused_at, updated_at, keep_completed, keep_cancelled, keep_discarded
), made AS (
    INSERT INTO pgjobs.queue (name, keep_completed, keep_cancelled, keep_discarded)
    SELECT %(name)s::text, %(keep_completed)s::interval, %(keep_cancelled)s::interval, %(keep_discarded)s::interval
    WHERE NOT EXISTS (SELECT FROM pgjobs.queue WHERE name = %(name)s::text)
    ON CONFLICT DO NOTHING
    RETURNING name, paused_at, updated_at, keep_completed, keep_cancelled, keep_discarded
), answer AS (
    SELECT * FROM changed
    UNION ALL
    SELECT * FROM made
)
SELECT
    name, paused_at, updated_at,
    pg_catalog.date_part('epoch', keep_completed),
    pg_catalog.date_part('epoch', keep_cancelled),
    pg_catalog.date_part('epoch', keep_discarded)
FROM answer;

-- name: own_retention
SELECT
    name,
    pg_catalog.date_part('epoch', keep_completed),
    pg_catalog.date_part('epoch', keep_cancelled),
    pg_catalog.date_part('epoch', keep_discarded)
FROM pgjobs.queue
WHERE keep_completed IS NOT NULL OR keep_cancelled IS NOT NULL OR keep_discarded IS NOT NULL
ORDER BY name;

-- name: keep_queues
-- Said by a worker of the queues that it works. A row that somebody is just pausing is fresh enough; those who make the
-- same rows make them in the same order, and so never wait for each other in a circle.
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
-- Those that no worker has worked for a day; what is paused stays so, and what says how long its jobs are kept. Where
-- jobs wait the queue is still known by them.
DELETE FROM pgjobs.queue WHERE name = ANY (
    SELECT name FROM pgjobs.queue
    WHERE paused_at IS NULL AND updated_at < (pg_catalog.statement_timestamp() - interval '1 day')
        AND keep_completed IS NULL AND keep_cancelled IS NULL AND keep_discarded IS NULL
    FOR UPDATE SKIP LOCKED);

-- name: leave_queues
-- Who leaves them may have given jobs back, for which somebody else is to look.
SELECT {called} FROM pg_catalog.unnest(%(names)s::text[]) AS queue;
