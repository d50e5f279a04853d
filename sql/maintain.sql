-- The duties that keep the queue moving. Any process may do them; each is a short transaction.

-- name: begin_duty
-- Begins with bounds that the server keeps: a process that hangs in here loses its connection, and with it the duty.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = '5s';
SET LOCAL statement_timeout = '30s';
SET LOCAL lock_timeout = '5s';
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL DateStyle = ISO;
SET LOCAL IntervalStyle = postgres;
SELECT next_run_at - clock_timestamp() FROM pgjobs.maintenance WHERE duty = %(duty)s
FOR NO KEY UPDATE SKIP LOCKED;

-- name: end_duty
UPDATE pgjobs.maintenance SET next_run_at = clock_timestamp() + %(after)s::interval WHERE duty = %(duty)s;
COMMIT;

-- name: postpone_duty
-- After a failure: moved on all the same, so that not every process tries again at once.
UPDATE pgjobs.maintenance SET next_run_at = pg_catalog.clock_timestamp() + %(after)s::interval
WHERE duty = %(duty)s AND next_run_at <= pg_catalog.clock_timestamp();

-- name: promote
-- Makes due jobs available and wakes their workers: one notification per queue, with the commit.
WITH due AS MATERIALIZED (
    SELECT id, queue FROM pgjobs.job
    WHERE state IN ('scheduled', 'retryable') AND scheduled_at <= statement_timestamp()
    ORDER BY scheduled_at
    LIMIT %(batch)s
    FOR NO KEY UPDATE SKIP LOCKED
), promoted AS (
    UPDATE pgjobs.job SET state = 'available'
    FROM due WHERE job.id = due.id AND job.queue = due.queue
    RETURNING job.queue
), counted AS (
    SELECT queue, count(*) AS jobs FROM promoted GROUP BY queue
)
SELECT queue, jobs, pg_notify(%(channel)s, queue) FROM counted ORDER BY queue;

-- name: next_due
-- How long until the next waiting job is due; null when none waits.
SELECT min(scheduled_at) - clock_timestamp() FROM pgjobs.job WHERE state IN ('scheduled', 'retryable');

-- name: rescue
-- Running rows that nobody works on: without a lease, old enough to have been locked, and not locked; or with a lease
-- that is over. SKIP LOCKED is the proof of life: a worker holds its row's lock for as long as it lives.
WITH vanished AS MATERIALIZED (
    SELECT id, queue, (
        SELECT count(*) FROM jsonb_array_elements(errors) AS entry WHERE entry ->> 'error' LIKE 'worker vanished%%'
    ) AS times_before
    FROM pgjobs.job
    WHERE state = 'running' AND CASE
        WHEN leased_until IS NULL THEN COALESCE(attempted_at, created_at) < clock_timestamp() - %(grace)s::interval
        ELSE leased_until < clock_timestamp() END
    ORDER BY id
    LIMIT %(batch)s
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE pgjobs.job SET
    state = CASE WHEN attempt >= max_attempts THEN 'discarded' ELSE 'retryable' END,
    finalized_at = CASE WHEN attempt >= max_attempts THEN clock_timestamp() END,
    -- a delay of its own, 1 s doubling up to 60 s: the job is rarely to blame
    scheduled_at = CASE WHEN attempt >= max_attempts THEN scheduled_at
        ELSE clock_timestamp() + LEAST(power(2, LEAST(times_before, 6)), 60) * interval '1 second' END,
    leased_until = NULL,
    errors = CASE WHEN jsonb_array_length(errors) >= 100 THEN errors - 50 ELSE errors END
        || jsonb_build_array(jsonb_build_object(
            'attempt', attempt,
            'at', clock_timestamp(),
            -- what clients call themselves is clean; what somebody wrote by hand may not be
            'error', 'worker vanished: '
                || COALESCE(regexp_replace(
                    left(attempted_by[cardinality(attempted_by)], 255), '[\x01-\x1f\x7f-\x9f]', '?', 'g'), 'unknown')
                || ' lost its connection or its process while it ran this attempt',
            'trace', NULL))
FROM vanished
WHERE job.id = vanished.id AND job.queue = vanished.queue
RETURNING
    job.id, state, job.queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token;

-- name: clean
-- Deletes what has been over for longer than it is kept, the oldest first, a batch at a time.
WITH old AS MATERIALIZED (
    SELECT id, queue FROM pgjobs.job
    WHERE state = %(state)s AND finalized_at < clock_timestamp() - %(keep)s::interval
    ORDER BY finalized_at
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM pgjobs.job USING old WHERE job.id = old.id AND job.queue = old.queue RETURNING job.id
)
SELECT count(*) FROM deleted;
