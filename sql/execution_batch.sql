-- The statements of many attempts in one transaction. All jobs of a claim have the same token, so that the lock finds
-- them by one index scan; a statement for one of them also has its id.

-- name: select_batch_by_priority
-- The jobs that a claim takes: those that claims of one job would take one after the other. A job that must run alone
-- ends the batch before it: a job that has failed before or was in a batch that crashed, a job with one attempt only,
-- and a detached job.
SELECT id, attempt > 0 OR max_attempts = 1 OR metadata ? 'excused' OR kind = ANY (%(detached)s::text[]) AS alone,
    pg_catalog.pg_column_size(args) + pg_catalog.pg_column_size(metadata) + pg_catalog.pg_column_size(errors)
        + pg_catalog.pg_column_size(tags) AS bytes
    FROM pgjobs.job
    WHERE state = 'available' AND queue = %(queue)s AND scheduled_at <= pg_catalog.statement_timestamp()
        AND (%(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[]))
        AND NOT EXISTS (SELECT FROM pgjobs.queue WHERE name = %(queue)s AND paused_at IS NOT NULL)
        AND (priority, scheduled_at, id) >
            ((%(mark_priority)s)::smallint, %(mark_time)s::timestamptz, (%(mark_id)s)::bigint)
        {skip_set_aside}
    ORDER BY priority, scheduled_at, id
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED;

-- name: select_batch_by_time
-- The oldest jobs that are due, whatever their priorities.
SELECT id, attempt > 0 OR max_attempts = 1 OR metadata ? 'excused' OR kind = ANY (%(detached)s::text[]) AS alone,
    pg_catalog.pg_column_size(args) + pg_catalog.pg_column_size(metadata) + pg_catalog.pg_column_size(errors)
        + pg_catalog.pg_column_size(tags) AS bytes
    FROM pgjobs.job
    WHERE state = 'available' AND queue = %(queue)s AND scheduled_at <= pg_catalog.statement_timestamp()
        AND (%(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[]))
        AND NOT EXISTS (SELECT FROM pgjobs.queue WHERE name = %(queue)s AND paused_at IS NOT NULL)
        AND (scheduled_at, id) > (%(mark_time)s::timestamptz, (%(mark_id)s)::bigint)
        {skip_set_aside}
    ORDER BY scheduled_at, id
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED;

-- name: set_batch_settings
-- As set_claim_timeout and set_lock_timeout; synchronous_commit is the same for all jobs, because none is detached. The claim is planned
-- once for each connection: to plan it takes longer than to claim a hundred jobs. A plan that is used again must suit a
-- table of any size, so it uses the index.
SELECT
    pg_catalog.set_config('statement_timeout', '30s', true),
    pg_catalog.set_config('lock_timeout', '10s', true),
    pg_catalog.set_config('DateStyle', 'ISO', true),
    pg_catalog.set_config('synchronous_commit', %(synchronous_commit)s::text, true),
    pg_catalog.set_config('plan_cache_mode', 'force_generic_plan', true),
    pg_catalog.set_config('enable_seqscan', 'off', true),
    pg_catalog.set_config('enable_bitmapscan', 'off', true);

-- name: claim_batch
-- The claim, in a transaction of its own. When the first job must run alone, no job is claimed. The rows are found by
-- an array, for which every plan uses the index; the jobs come in any order. Values that all jobs have in common are
-- not returned, and values that most have are NULL. Large jobs end the batch, too: a process never has more than some
-- megabytes of jobs, by their size in the table.
WITH next AS MATERIALIZED (
    {next}
), placed AS MATERIALIZED (
    SELECT id, pg_catalog.row_number() OVER () AS place,
        alone OR pg_catalog.sum(bytes) OVER (ROWS UNBOUNDED PRECEDING) > 2000000 AS ends
    FROM next
)
UPDATE pgjobs.job SET
    state = 'running',
    attempt = attempt + 1,
    attempted_at = pg_catalog.statement_timestamp(),
    attempted_by = CASE
        WHEN pg_catalog.array_lower(attempted_by, 1) = 1 AND pg_catalog.array_ndims(attempted_by) = 1
            THEN (pg_catalog.array_append(attempted_by, %(worker)s::text))[
                GREATEST(pg_catalog.cardinality(attempted_by) - 98, 1):]
        ELSE ARRAY[%(worker)s::text] END,
    token = %(new_token)s
WHERE queue = %(queue)s AND id = ANY (ARRAY(
    SELECT id FROM placed WHERE place < COALESCE((SELECT pg_catalog.min(place) FROM placed WHERE ends), 32767)))
RETURNING
    id, kind, priority, max_attempts, args, scheduled_at,
    CASE WHEN created_at <> scheduled_at THEN created_at END,
    CASE WHEN metadata <> '{}' THEN metadata END,
    CASE WHEN errors <> '[]' THEN errors END,
    CASE WHEN pg_catalog.cardinality(tags) > 0 THEN tags END,
    CASE WHEN pg_catalog.cardinality(attempted_by) > 1 THEN attempted_by END;

-- name: lock_batch
-- Begins the transaction of all handlers, with the settings of `lock`. The server ends it when the last job that may be
-- started in it has used up its time. All processes lock the rows in the same order. Returns the number of jobs, when
-- they were claimed (in the format of JSON, because the DateStyle is reset by now), the transaction id, and its bound.
WITH locked AS MATERIALIZED (
    SELECT kind, attempted_at FROM pgjobs.job
    WHERE queue = %(queue)s AND token = %(new_token)s AND state = 'running'
    ORDER BY id
    FOR NO KEY UPDATE
), bounded AS (
    SELECT pg_catalog.count(*) AS jobs, pg_catalog.to_json(pg_catalog.max(attempted_at)) #>> '{}' AS attempted_at,
        CASE WHEN pg_catalog.bool_or(bound = 0) THEN '0'
            ELSE LEAST(pg_catalog.max(bound) + %(batch_time)s::bigint, 2147483647)::text END AS bound
    FROM (
        SELECT attempted_at, COALESCE(%(bounds)s::jsonb ->> kind, %(bound)s::text)::bigint AS bound FROM locked
    ) AS each
)
SELECT jobs, attempted_at, pg_catalog.pg_current_xact_id_if_assigned()::text, bound,
    pg_catalog.set_config('idle_in_transaction_session_timeout', '0', true),
    pg_catalog.set_config('client_connection_check_interval', %(check_interval)s::text, true),
    pg_catalog.set_config('tcp_keepalives_idle', '10', true),
    pg_catalog.set_config('tcp_keepalives_interval', '5', true),
    pg_catalog.set_config('tcp_keepalives_count', '3', true),
    pg_catalog.set_config('tcp_user_timeout', '25s', true),
    pg_catalog.set_config(%(bounded_by)s::text, bound, true)
FROM bounded WHERE jobs > 0;

-- name: select_locked_ids
-- The jobs of a claim that are locked, when some were taken away.
SELECT id FROM pgjobs.job WHERE queue = %(queue)s AND token = %(new_token)s AND state = 'running';

-- name: set_job_settings
-- The settings that the session does not have by itself, when it was reset between two jobs.
SELECT {settings};

-- name: set_transaction_timeout
-- The bound of the transaction, when the session was reset between two jobs.
SET LOCAL transaction_timeout = %(bound)s;

-- name: set_idle_timeout
-- The same on servers before Postgres 17.
SET LOCAL idle_in_transaction_session_timeout = %(bound)s;

-- name: complete_batch
-- All that completed and left nothing else behind. Raises in the server when one of them is no longer this attempt's,
-- which skips the COMMIT behind it.
WITH finished AS (
    UPDATE pgjobs.job SET
        state = 'completed',
        finalized_at = pg_catalog.statement_timestamp(),
        leased_until = NULL
    WHERE queue = %(queue)s AND id = ANY (%(ids)s::bigint[]) AND token = %(token)s AND state = 'running'
    RETURNING id
)
SELECT (EXTRACT(epoch FROM pg_catalog.statement_timestamp()) * 1000000)::bigint,
    CASE WHEN pg_catalog.count(*) = pg_catalog.cardinality(%(ids)s::bigint[]) THEN true ELSE pgjobs.attempt_lost() END
FROM finished;

-- name: complete_claim
-- Completes the jobs of a claim whose handlers have not used the connection: the rows were locked all the time, so they
-- cannot have changed. They are found by the token.
UPDATE pgjobs.job SET
    state = 'completed',
    finalized_at = pg_catalog.statement_timestamp(),
    leased_until = NULL
WHERE queue = %(queue)s AND token = %(token)s AND state = 'running';

-- name: select_time
-- The time of the message, which all its statements have in common.
SELECT (EXTRACT(epoch FROM pg_catalog.statement_timestamp()) * 1000000)::bigint;

-- name: store_batch_data
-- Stores the metadata and the output of the handlers. An empty text stands for none: a session with array_nulls = off
-- reads NULL in an array as a text.
UPDATE pgjobs.job SET
    metadata = CASE WHEN data.metadata = '' THEN job.metadata ELSE job.metadata || data.metadata::jsonb END,
    output = CASE WHEN data.output = '' THEN job.output ELSE data.output::jsonb END
FROM ROWS FROM (
    pg_catalog.unnest(%(data_ids)s::bigint[]), pg_catalog.unnest(%(metadata)s::text[]),
    pg_catalog.unnest(%(output)s::text[])
) AS data (id, metadata, output)
WHERE job.queue = %(queue)s AND job.id = ANY (%(data_ids)s::bigint[]) AND job.id = data.id AND token = %(token)s;

-- name: unclaim_batch
-- Undoes the claim of the jobs whose handlers were not started.
UPDATE pgjobs.job SET
    state = 'available',
    attempt = attempt - 1,
    attempted_at = NULL,
    token = NULL
WHERE queue = %(queue)s AND id = ANY (%(rest)s::bigint[]) AND token = %(token)s AND state = 'running';

-- name: undo_batch
-- Makes the jobs available again whose handlers ran and whose transaction was not committed. Their attempt is counted,
-- so each will run alone.
UPDATE pgjobs.job SET
    state = 'available',
    errors = CASE WHEN pg_catalog.jsonb_array_length(errors) >= 100 THEN errors - 50 ELSE errors END
        || pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_object(
            'attempt', attempt, 'at', pg_catalog.statement_timestamp(), 'error', %(error)s::text, 'trace', NULL))
WHERE queue = %(queue)s AND id = ANY (%(ids)s::bigint[]) AND token = %(token)s AND state = 'running'
RETURNING id, (EXTRACT(epoch FROM pg_catalog.statement_timestamp()) * 1000000)::bigint;

-- name: restore_batch
-- As restore_claim, for the jobs that were started.
UPDATE pgjobs.job SET
    state = 'running', attempt = 1, attempted_at = pg_catalog.statement_timestamp(), token = %(token)s
WHERE queue = %(queue)s AND id = ANY (%(started)s::bigint[]) AND (token <> %(token)s OR token IS NULL)
    AND state = 'available' AND attempt = 0
    AND (attempted_at < %(attempted_at)s OR attempted_at IS NULL);

-- name: select_completed
-- The jobs that were completed after all: the answer to their COMMIT was lost.
SELECT id, (EXTRACT(epoch FROM finalized_at) * 1000000)::bigint FROM pgjobs.job
WHERE queue = %(queue)s AND id = ANY (%(ids)s::bigint[]) AND token = %(token)s AND state = 'completed';

-- name: complete_batch_late
-- Completes the jobs whose writes a handler has committed by ending the transaction of its batch.
UPDATE pgjobs.job SET
    state = 'completed',
    finalized_at = pg_catalog.statement_timestamp(),
    leased_until = NULL
WHERE queue = %(queue)s AND id = ANY (%(ids)s::bigint[]) AND token = %(token)s AND state = 'running'
RETURNING id, (EXTRACT(epoch FROM pg_catalog.statement_timestamp()) * 1000000)::bigint;

-- name: was_committed
-- Whether the transaction of a batch was committed. A server that has crashed since may have lost the transaction, and
-- may have given its id to another. So when the connection was lost, a row must show that this id has locked it, alone
-- or in a MultiXact with the insert of a foreign key: that mark was lost or kept together with the commit. The function
-- that reads a MultiXact fails for the id of a single transaction.
SELECT pg_catalog.pg_xact_status(%(xid)s::text::xid8) = 'committed' AND CASE
    WHEN NOT %(lost)s THEN true
    WHEN EXISTS (
        SELECT FROM pgjobs.job WHERE queue = %(queue)s AND token = %(token)s AND state = 'running'
            AND xmax = %(xid)s::text::xid8::xid) THEN true
    ELSE EXISTS (
        SELECT FROM pgjobs.job, LATERAL pg_catalog.pg_get_multixact_members(xmax) AS locker (id, mode)
        WHERE queue = %(queue)s AND token = %(token)s AND state = 'running' AND xmax::text <> '0'
            AND locker.id = %(xid)s::text::xid8::xid)
    END;
