-- Changes jobs and queues by hand, on the caller's connection and in its transaction. Functions are named in full: the
-- search_path is the caller's.
--
-- An action changes one job, or one batch of the jobs that fit a filter, with the same statement. Its parts:
--
--   seen      the keys of the jobs: all of one id, or the next batch
--   locked    those of `seen` that the action can change and whose row lock is free now
--   checked   the same, with what forbids the change: `unfit` or `conflict`
--   changed   the jobs that were changed
--   results   each job of `seen` as it is now, with its `result`:
--
--     done        the job was changed
--     running     a worker runs it; only `cancel` does something about it: it writes a request
--     unchanged   its state leaves the action nothing to do: it is over already (cancel), or not pending (release)
--     unfit       it is not discarded (retry with reset), or has used up the attempts that it would get (update)
--     conflict    another job has its unique key
--     busy        another transaction holds its row, or has changed the row since the statement began
--
-- No statement waits for the row lock of a job. What it can see beforehand is a result, not an error: an error would
-- abort the caller's transaction.
-- `single` is true for one job by its id. When two queues have a job of that id, both are seen and neither is changed.

-- name: begin_control
-- In a transaction of our own every statement sees what others have committed, whatever the defaults of the session,
-- and waits only this long for what it cannot skip: a duplicate of a unique job that is being inserted.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SELECT pg_catalog.set_config('lock_timeout', %(patience)s, true);

-- name: snapshot_is_kept
-- Whether another try in this transaction would see nothing new.
SELECT pg_catalog.current_setting('transaction_isolation') = ANY ('{repeatable read,serializable}');

-- name: newest_id
-- Null when there is no job.
SELECT pg_catalog.max(id) FROM pgjobs.job;

-- name: batch_keys
-- The keys of a batch whose jobs must be changed one by one.
{next_batch};

-- name: cancel
-- The row of a running job is locked by its worker: the request goes to a table of its own, for this attempt, and a
-- notification tells the workers. A job gives up its key when the state 'cancelled' would share the key with a
-- duplicate: cancelling always succeeds.
WITH seen AS MATERIALIZED (
    {next_batch}
), locked AS MATERIALIZED (
    {select_key} FROM pgjobs.job, LATERAL (SELECT 'cancelled' AS state, false AS unfit) AS next
    WHERE {changeable}
    FOR NO KEY UPDATE OF job SKIP LOCKED
), checked AS (
    {key_conflicts}
), changed AS (
    UPDATE pgjobs.job SET
        state = 'cancelled',
        finalized_at = pg_catalog.statement_timestamp(),
        metadata = {job_metadata} || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
            'cancel_attempted_at', pg_catalog.statement_timestamp(),
            'cancel_reason', CASE WHEN %(reason)s::text <> '' THEN %(reason)s::text END,
            'unique_key_conflict', CASE WHEN checked.conflict THEN true END)),
        unique_key = CASE WHEN checked.conflict THEN NULL ELSE job.unique_key END,
        unique_states = CASE WHEN checked.conflict THEN NULL ELSE unique_states END
    FROM checked WHERE job.id = checked.id AND job.queue = checked.queue
    RETURNING job.*
), requested AS (
    INSERT INTO pgjobs.cancel_request (job_id, queue, token, reason)
    SELECT job.id, job.queue, token, CASE WHEN %(reason)s::text <> '' THEN %(reason)s::text END
    FROM seen JOIN pgjobs.job ON job.id = seen.id AND job.queue = seen.queue
    WHERE state = 'running' AND {one_meant} AND NOT EXISTS (
        SELECT FROM pgjobs.cancel_request AS earlier WHERE earlier.job_id = job.id AND earlier.token = job.token)
), results AS (
    {control_results}
), answer AS (
    SELECT * FROM results WHERE result <> 'running'
    UNION ALL
    -- a running job, with the time of the request in its metadata
    SELECT result, asked.*
    FROM results JOIN pgjobs.job ON job.id = results.id AND job.queue = results.queue,
        LATERAL pg_catalog.jsonb_populate_record(job, pg_catalog.jsonb_build_object(
            'metadata', {job_metadata} || pg_catalog.jsonb_build_object('cancel_attempted_at', COALESCE(
                (SELECT pg_catalog.min(requested_at) FROM pgjobs.cancel_request AS earlier
                    WHERE earlier.job_id = job.id AND earlier.token = job.token),
                pg_catalog.statement_timestamp())))) AS asked
    WHERE result = 'running'
)
{select_job}, result,
    CASE WHEN result = 'running' AND %(notify)s::boolean THEN pg_catalog.pg_notify(%(channel)s, ' cancel') END
FROM answer ORDER BY id, queue;

-- name: release
WITH seen AS MATERIALIZED (
    {next_batch}
), locked AS MATERIALIZED (
    {select_key} FROM pgjobs.job, LATERAL (
        SELECT false AS unfit, CASE WHEN job.scheduled_at > pg_catalog.statement_timestamp() THEN 'scheduled'
            ELSE 'available' END AS state) AS next
    WHERE {changeable}
    FOR NO KEY UPDATE OF job SKIP LOCKED
), checked AS (
    {key_conflicts}
), changed AS (
    UPDATE pgjobs.job SET state = checked.state
    FROM checked WHERE {allowed}
    RETURNING job.*
), results AS (
    {control_results}
)
{select_job}, result, CASE WHEN result = 'done' THEN {notify_due} END
FROM results ORDER BY id, queue;

-- name: retry
-- The job runs again from now on; an available job keeps its place in the queue. Its requests to cancel are deleted. A
-- request that another transaction is handling would still reach the job: then the job counts as busy. Without its
-- token, no late record of an old attempt finds the job. `reset` gives a discarded job all its attempts again.
WITH seen AS MATERIALIZED (
    {next_batch}
), locked AS MATERIALIZED (
    {select_key} FROM pgjobs.job, LATERAL (
        SELECT 'available' AS state, %(reset)s::boolean AND job.state <> 'discarded' AS unfit) AS next
    WHERE {changeable}
    FOR NO KEY UPDATE OF job SKIP LOCKED
), checked AS (
    {key_conflicts}
), requests AS MATERIALIZED (
    SELECT id, job_id, queue FROM pgjobs.cancel_request
    WHERE job_id = ANY (ARRAY(SELECT locked.id FROM locked))
    FOR UPDATE SKIP LOCKED
), changed AS (
    UPDATE pgjobs.job SET
        state = 'available',
        attempt = CASE WHEN %(reset)s::boolean THEN 0 ELSE LEAST(attempt, 2147483646) END,
        max_attempts = CASE WHEN %(reset)s::boolean THEN max_attempts
            ELSE GREATEST(max_attempts, LEAST(attempt, 2147483646) + 1) END,
        scheduled_at = CASE WHEN job.state = 'available' THEN LEAST(scheduled_at, pg_catalog.statement_timestamp())
            ELSE pg_catalog.statement_timestamp() END,
        finalized_at = NULL,
        leased_until = NULL,
        metadata = {job_metadata} - '{cancel_attempted_at,cancel_reason}'::text[],
        token = NULL
    FROM checked
    WHERE {allowed}
        AND (SELECT pg_catalog.count(*) FROM requests WHERE job_id = job.id AND requests.queue = job.queue)
            = (SELECT pg_catalog.count(*) FROM pgjobs.cancel_request AS request
                WHERE job_id = job.id AND request.queue = job.queue)
    RETURNING job.*
), forgotten AS (
    DELETE FROM pgjobs.cancel_request USING requests, changed
    WHERE cancel_request.id = requests.id AND requests.job_id = changed.id AND requests.queue = changed.queue
), results AS (
    {control_results}
)
{select_job}, result, CASE WHEN result = 'done' THEN {notify_due} END
FROM results ORDER BY id, queue;

-- name: delete
-- FOR UPDATE, unlike the other actions: a row that an open insert of the application references cannot be deleted now.
WITH seen AS MATERIALIZED (
    {next_batch}
), locked AS MATERIALIZED (
    SELECT id, queue FROM pgjobs.job
    WHERE {changeable}
    FOR UPDATE SKIP LOCKED
), checked AS (
    SELECT id, queue, false AS unfit, false AS conflict FROM locked
), changed AS (
    DELETE FROM pgjobs.job USING checked WHERE {allowed}
    RETURNING job.*
), results AS (
    {control_results}
)
{select_job}, result
FROM results ORDER BY id, queue;

-- name: update
-- A null value changes nothing. A new time also moves the job between `scheduled` or `retryable` and `available`. The
-- new values are called new_...: the names of the columns are the filter's.
WITH seen AS MATERIALIZED (
    {next_batch}
), locked AS MATERIALIZED (
    {select_key} FROM pgjobs.job, LATERAL (
        SELECT
            %(new_max_attempts)s::integer < (LEAST(job.attempt, 2147483646)
                + CASE WHEN job.state = ANY ('{completed,cancelled,discarded}') THEN 0 ELSE 1 END) AS unfit,
            CASE
                WHEN job.state = 'available' AND %(new_scheduled_at)s::timestamptz > pg_catalog.statement_timestamp()
                    THEN 'scheduled'
                WHEN job.state = ANY ('{scheduled,retryable}')
                    AND %(new_scheduled_at)s::timestamptz <= pg_catalog.statement_timestamp() THEN 'available'
                ELSE job.state END AS state) AS next
    WHERE {changeable}
    FOR NO KEY UPDATE OF job SKIP LOCKED
), checked AS (
    {key_conflicts}
), changed AS (
    UPDATE pgjobs.job SET
        state = checked.state,
        priority = COALESCE(%(new_priority)s::smallint, priority),
        max_attempts = COALESCE(%(new_max_attempts)s::integer, max_attempts),
        scheduled_at = COALESCE(%(new_scheduled_at)s::timestamptz, scheduled_at),
        tags = COALESCE(%(new_tags)s::text[], tags),
        metadata = CASE WHEN %(new_metadata)s::jsonb IS NULL THEN metadata
            ELSE {job_metadata} || %(new_metadata)s::jsonb END,
        output = COALESCE(%(new_output)s::jsonb, output)
    FROM checked WHERE {allowed}
    RETURNING job.*
), results AS (
    {control_results}
)
{select_job}, result, CASE WHEN result = 'done' THEN {notify_due} END
FROM results ORDER BY id, queue;

-- name: cancelled_attempts
-- Which of these attempts were asked to be cancelled. The attempts of a batch share their token.
SELECT DISTINCT ON (job_id, token) job_id, token, COALESCE(reason, '') FROM pgjobs.cancel_request
WHERE token = ANY (%(tokens)s::uuid[])
ORDER BY job_id, token, requested_at;

-- ----- queues
-- A row of the table `queue` stands for a queue that a worker works or has worked lately, that is paused, or that keeps
-- its jobs for a time of its own. A queue in which jobs wait or run exists without a row.

-- name: pause_queues
-- Pauses or resumes one queue, or with a null name all: claims that begin after the commit see it. Makes the row of a
-- queue that only its jobs show. A call that changes nothing, such as pausing a paused queue, leaves the row as it is.
-- `busy`: another transaction holds the row.
WITH RECURSIVE line AS (
    {queue_priorities}
), named AS (
    SELECT name FROM pgjobs.queue
    UNION SELECT queue FROM line
    UNION SELECT queue FROM pgjobs.job WHERE state = 'running'
), seen AS (
    SELECT name FROM named WHERE %(name)s::text IS NULL OR name = %(name)s::text
), free AS MATERIALIZED (
    SELECT name, paused_at, updated_at, keep_completed, keep_cancelled, keep_discarded FROM pgjobs.queue
    WHERE %(name)s::text IS NULL OR name = %(name)s::text
    FOR NO KEY UPDATE SKIP LOCKED
), changed AS (
    UPDATE pgjobs.queue SET
        paused_at = CASE WHEN %(paused)s::boolean THEN pg_catalog.statement_timestamp() END,
        updated_at = pg_catalog.statement_timestamp()
    FROM free WHERE queue.name = free.name AND (free.paused_at IS NULL) = %(paused)s::boolean
    RETURNING queue.name, queue.paused_at, queue.updated_at,
        queue.keep_completed, queue.keep_cancelled, queue.keep_discarded
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
    SELECT * FROM free WHERE (paused_at IS NOT NULL) = %(paused)s::boolean
    UNION ALL
    SELECT * FROM made
)
SELECT
    seen.name, answer.paused_at, answer.updated_at,
    pg_catalog.date_part('epoch', answer.keep_completed),
    pg_catalog.date_part('epoch', answer.keep_cancelled),
    pg_catalog.date_part('epoch', answer.keep_discarded),
    answer.name IS NULL AS busy,
    CASE WHEN NOT %(paused)s::boolean AND answer.name IS NOT NULL THEN {notify_worker} END
FROM seen LEFT JOIN answer ON answer.name = seen.name, LATERAL (SELECT seen.name AS queue) AS resumed
ORDER BY seen.name;

-- name: update_queue
-- Sets how long the jobs of a queue are kept. Gives no row when another transaction holds the row of the queue.
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
