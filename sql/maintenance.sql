-- The duties that keep the queue moving. Any process may do them; each is a short transaction. A time that is to be
-- read comes as microseconds: how an interval is written hangs on the session, which may have another style by then.

-- name: begin_duty
-- Begins with bounds that the server keeps: a process that hangs in here loses its connection, and with it the duty.
-- Null when somebody else holds the row; and whether there is one.
-- A time that is further away than the duty ever wants is of a clock that was wrong, or was set by hand: then it is due.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = '5s';
SET LOCAL statement_timeout = '30s';
SET LOCAL lock_timeout = '5s';
SET LOCAL DateStyle = ISO;
-- what the application has deferred to the commit is to fail with the row that it is about, not the whole duty
SET CONSTRAINTS ALL IMMEDIATE;
WITH held AS MATERIALIZED (
    SELECT CASE
        WHEN next_run_at > (pg_catalog.clock_timestamp() + %(longest)s::interval)
            OR next_run_at < (pg_catalog.clock_timestamp() - %(longest)s::interval) THEN pg_catalog.clock_timestamp()
        ELSE next_run_at END AS next_run_at
    FROM pgjobs.maintenance WHERE duty = %(duty)s FOR NO KEY UPDATE SKIP LOCKED
)
SELECT (SELECT (EXTRACT(epoch FROM (next_run_at - pg_catalog.clock_timestamp())) * 1000000)::bigint FROM held),
    EXISTS (SELECT FROM pgjobs.maintenance WHERE duty = %(duty)s);

-- name: glance
-- Whether there is anything that will be due soon, or may have to be rescued or settled: without, one look takes the place
-- of the transactions of both duties.
SELECT
    EXISTS (SELECT FROM pgjobs.job WHERE state = ANY ('{scheduled,retryable}')
        AND scheduled_at < (pg_catalog.clock_timestamp() + %(soon)s::interval)),
    EXISTS (SELECT FROM pgjobs.job WHERE state = 'running') OR EXISTS (SELECT FROM pgjobs.cancel_request);

-- name: end_duty
UPDATE pgjobs.maintenance SET next_run_at = pg_catalog.clock_timestamp() + %(after)s::interval WHERE duty = %(duty)s;
COMMIT;

-- name: current_time
-- By the clock that decides when a duty is due.
SELECT (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint;

-- name: postpone_duty
-- After a failure: moved on all the same, so that not every process tries again at once.
UPDATE pgjobs.maintenance SET next_run_at = pg_catalog.clock_timestamp() + %(after)s::interval
WHERE duty = %(duty)s AND next_run_at <= pg_catalog.clock_timestamp();

-- name: promote
-- Makes due jobs available and wakes their workers: at most one notification per queue, with the commit. A job whose key does
-- not hold while it waits may have lost it to a duplicate, which the update of the whole batch would fail on: it is only
-- named here, for settle_promotion. Nobody waits for the disk: what a crash of the server takes back is done again, and
-- who commits what a promoted job has done waits for this too. Then how long until the next one is due; null when none
-- waits.
SET LOCAL synchronous_commit = off;
WITH due AS MATERIALIZED (
    {due_jobs}
), promoted AS (
    UPDATE pgjobs.job SET state = 'available'
    FROM due WHERE job.id = due.id AND job.queue = due.queue AND NOT contested
    RETURNING job.queue
), counted AS (
    SELECT queue, pg_catalog.count(*) AS jobs FROM promoted GROUP BY queue
)
SELECT queue, jobs, NULL::bigint AS id, {notify_worker}, NULL::timestamptz AS scheduled_at FROM counted
UNION ALL
SELECT queue, 1, id, NULL, scheduled_at FROM due WHERE contested
ORDER BY scheduled_at NULLS FIRST, queue, id;
{next_due_job};

-- name: rows_to_promote
-- What `promote` would take, when that has failed because of one of them.
WITH due AS MATERIALIZED (
    {due_jobs}
)
SELECT id, queue FROM due;

-- name: settle_promotion
-- One due job whose duplicate may have its key meanwhile: available, or discarded. For a duplicate that somebody is inserting it
-- does not wait: then this fails, and postpone_promotion follows. A key that the state 'discarded' would share with the
-- duplicate is given up.
SET LOCAL lock_timeout = '50ms';
UPDATE pgjobs.job SET
    state = CASE WHEN lost THEN 'discarded' ELSE 'available' END,
    finalized_at = CASE WHEN lost THEN pg_catalog.clock_timestamp() END,
    metadata = CASE WHEN lost THEN metadata || '{"unique_key_conflict": "scheduler_discarded"}' ELSE metadata END,
    unique_key = CASE WHEN lost AND 'discarded' = ANY (unique_states) THEN NULL ELSE unique_key END,
    unique_states = CASE WHEN lost AND 'discarded' = ANY (unique_states) THEN NULL ELSE unique_states END
FROM (
    SELECT EXISTS (
        SELECT FROM pgjobs.job AS duplicate
        WHERE duplicate.unique_key = contested.unique_key AND duplicate.state = ANY (duplicate.unique_states)) AS lost
    FROM pgjobs.job AS contested WHERE id = %(id)s AND queue = %(queue)s
) AS look
WHERE id = %(id)s AND queue = %(queue)s AND state = ANY ('{scheduled,retryable}')
    AND (state = ANY (unique_states)) IS NOT TRUE
RETURNING state, CASE WHEN state = 'available' THEN {notify_worker} END;
SET LOCAL lock_timeout = '5s';

-- name: postpone_promotion
-- Looked at again soon, and until then in nobody's way.
UPDATE pgjobs.job SET scheduled_at = pg_catalog.clock_timestamp() + interval '1 second'
WHERE id = %(id)s AND queue = %(queue)s;

-- name: next_due
-- How long until the next waiting job is due; null when none waits.
{next_due_job};

-- name: hurry_promote
-- A job has come that is due before the next promote. Waits for one that is under way, which may have looked too early.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL statement_timeout = '10s';
SET LOCAL lock_timeout = '5s';
UPDATE pgjobs.maintenance SET next_run_at = next.due
FROM (
    SELECT pg_catalog.min(scheduled_at) AS due FROM pgjobs.job WHERE state = ANY ('{scheduled,retryable}')
) AS next
WHERE duty = 'promote' AND next_run_at > next.due;
COMMIT;

-- name: rescue
-- Running rows that nobody works on: without a lease, old enough to have been locked, and not locked; or with a lease
-- that is over. SKIP LOCKED is the proof of life: a worker holds its row's lock for as long as it lives. What somebody
-- wanted cancelled is cancelled, not retried. A last attempt of a kind that this process does not know is left to one
-- that does, for a day.
-- Which of several jobs took the process down nobody can tell. So a job that had neighbours, and was never in trouble
-- before, has its attempt given back; that is noted in its metadata, and done twice at most. Without a token, so
-- that no late record of the attempt finds it.
-- What a row holds may be large. So the rescue takes the rows in their order until their stored values reach some
-- megabytes, and one at least. Its answer has no args and no metadata, and of the errors only the new one. It does not
-- change metadata that are large. Errors larger than pgjobs ever records are removed and their job is discarded with
-- that reason, since to add another error takes longer than a duty has, or cannot be done.
WITH seen AS MATERIALIZED (
    {vanished_jobs}
), vanished AS MATERIALIZED (
    SELECT id, queue, token, worker, known
    FROM (
        SELECT seen.*, pg_catalog.sum(bytes) OVER (ORDER BY id, queue ROWS UNBOUNDED PRECEDING) - bytes AS before
        FROM seen
    ) AS placed
    WHERE before < 4000000
), request AS (
    DELETE FROM pgjobs.cancel_request USING vanished
    WHERE cancel_request.job_id = vanished.id AND cancel_request.queue = vanished.queue
        AND (cancel_request.token = vanished.token OR (cancel_request.token IS NULL AND vanished.token IS NULL))
    RETURNING job_id, cancel_request.queue, reason, requested_at
), crew AS MATERIALIZED (
    SELECT attempted_by[pg_catalog.array_upper(attempted_by, 1)] AS worker FROM pgjobs.job
    WHERE state = 'running' AND EXISTS (SELECT FROM vanished)
    GROUP BY 1 HAVING pg_catalog.count(*) > 1
    UNION
    SELECT worker.id FROM pgjobs.worker JOIN vanished ON vanished.worker = worker.id
    WHERE lost_at > (pg_catalog.clock_timestamp() - interval '1 minute')
), noted AS (
    UPDATE pgjobs.worker SET lost_at = pg_catalog.clock_timestamp()
    WHERE id = ANY (ARRAY(
        SELECT id FROM pgjobs.worker WHERE id = ANY (ARRAY(SELECT worker FROM vanished)) FOR NO KEY UPDATE SKIP LOCKED))
), next AS MATERIALIZED (
    SELECT vanished.*, given, small, cancel, cancel IS NOT NULL AS cancelled,
        cancel IS NULL AND attempt > 0 AND small AND NOT overfull AND errors = '[]'
            AND pg_catalog.jsonb_array_length(given) < 2
            AND EXISTS (SELECT FROM crew WHERE crew.worker = vanished.worker) AS excused,
        attempt >= max_attempts OR overfull AS last, overfull
    FROM vanished
    JOIN pgjobs.job ON job.id = vanished.id AND job.queue = vanished.queue
    CROSS JOIN LATERAL (SELECT
        pg_catalog.pg_column_size(metadata) <= 1000000 AS small,
        -- what comes out of the operator is no longer compressed
        CASE WHEN pg_catalog.pg_column_size(errors) > 100000
            THEN pg_catalog.pg_column_size(errors || '[]') > 16000000 ELSE false END AS overfull
        OFFSET 0  -- computed once
    ) AS sizes
    CROSS JOIN LATERAL (SELECT
        CASE WHEN small AND pg_catalog.jsonb_typeof(metadata -> 'excused') = 'array' THEN metadata -> 'excused'
            ELSE '[]' END AS given
        OFFSET 0
    ) AS said
    LEFT JOIN (
        SELECT DISTINCT ON (job_id, queue) job_id, queue, pg_catalog.jsonb_strip_nulls(
            pg_catalog.jsonb_build_object('cancel_attempted_at', requested_at, 'cancel_reason', reason)) AS cancel
        FROM request ORDER BY job_id, queue, requested_at
    ) AS first_request ON first_request.job_id = vanished.id AND first_request.queue = vanished.queue
), rescued AS (
    UPDATE pgjobs.job SET
        state = CASE WHEN cancelled THEN 'cancelled' WHEN last AND NOT excused THEN 'discarded' ELSE 'retryable' END,
        attempt = attempt - CASE WHEN excused THEN 1 ELSE 0 END,
        token = CASE WHEN NOT excused THEN job.token END,
        finalized_at = CASE WHEN cancelled OR last AND NOT excused THEN pg_catalog.clock_timestamp() END,
        metadata = CASE WHEN cancelled AND small THEN metadata || cancel
            WHEN excused THEN metadata || pg_catalog.jsonb_build_object('excused', given
                || pg_catalog.jsonb_build_array(
                    pg_catalog.jsonb_build_object('at', pg_catalog.clock_timestamp(), 'worker', worker)))
            ELSE metadata END,
        -- a delay of its own, 1 s doubling up to 60 s: the job is rarely to blame. Those that had neighbours come back
        -- apart from each other, so that the one that is to blame meets them less
        scheduled_at = CASE
            WHEN excused
                THEN pg_catalog.clock_timestamp() + ((1 + pg_catalog.random())
                    * pg_catalog.power(2, pg_catalog.jsonb_array_length(given)) * interval '1 second')
            WHEN cancelled OR last THEN scheduled_at
            ELSE pg_catalog.clock_timestamp() + (LEAST(pg_catalog.power(2, LEAST((
                SELECT pg_catalog.count(*) FROM pg_catalog.jsonb_array_elements(
                    pg_catalog.jsonb_path_query_array(errors, '$[last-99 to last]')) AS entry
                WHERE pg_catalog.starts_with(entry ->> 'error', 'worker vanished')
            ), 6)), 60) * interval '1 second') END,
        leased_until = NULL,
        errors = CASE WHEN excused THEN errors ELSE
            CASE WHEN overfull THEN '[]'
                WHEN pg_catalog.jsonb_array_length(errors) >= 100 THEN errors - 50
                ELSE errors END
            || pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_object(
                'attempt', attempt,
                'at', pg_catalog.clock_timestamp(),
                -- what clients call themselves is clean; what somebody wrote by hand may not be
                'error', 'worker vanished: '
                    || COALESCE(pg_catalog.regexp_replace(
                        pg_catalog.left(worker, 255), E'[\\x01-\\x1f\\x7f-\\x9f]', '?', 'g'), 'unknown')
                    || ' lost its connection or its process while it ran this attempt'
                    || CASE WHEN last AND NOT known AND NOT cancelled
                        THEN '; for a day there was no process that knows this kind' ELSE '' END
                    || CASE WHEN overfull
                        THEN '; this job cannot be worked, for its errors are so large that no other can be added'
                        ELSE '' END,
                'trace', NULL)) END
    FROM next
    WHERE job.id = next.id AND job.queue = next.queue
        AND state = 'running' AND (job.token = next.token OR (job.token IS NULL AND next.token IS NULL))
    RETURNING
        job.queue, job.id, state, kind, priority, attempt, max_attempts, '{}'::jsonb AS args, '{}'::jsonb AS metadata,
        CASE WHEN excused THEN '[]' ELSE pg_catalog.jsonb_build_array(errors -> (-1)) END AS errors,
        '{}'::text[] AS tags, scheduled_at, created_at, attempted_at, finalized_at, '{}'::text[] AS attempted_by,
        job.token, leased_until
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, NULL::jsonb AS output,
    (SELECT pg_catalog.count(*) FROM seen) > (SELECT pg_catalog.count(*) FROM vanished)
FROM rescued;

-- name: rows_to_rescue
WITH seen AS MATERIALIZED (
    {vanished_jobs}
)
SELECT id, queue FROM seen;

-- name: rescued_job
-- For hooks, which may read all of it; what is larger than a few megabytes is left out.
SELECT
    id, state, queue, kind, priority, attempt, max_attempts,
    CASE WHEN pg_catalog.pg_column_size(args) > 1000000 OR pg_catalog.octet_length(args::text) > 4000000
        THEN '{}'::jsonb ELSE args END,
    CASE WHEN pg_catalog.pg_column_size(metadata) > 1000000 OR pg_catalog.octet_length(metadata::text) > 4000000
        THEN '{}'::jsonb ELSE metadata END,
    CASE WHEN pg_catalog.pg_column_size(errors) > 1000000 OR pg_catalog.octet_length(errors::text) > 8000000
        THEN pg_catalog.jsonb_build_array(errors -> (-1)) ELSE errors END,
    CASE WHEN pg_catalog.pg_column_size(tags) > 1000000 THEN '{}'::text[] ELSE tags END,
    scheduled_at, created_at, attempted_at, finalized_at,
    CASE WHEN pg_catalog.pg_column_size(attempted_by) > 1000000 THEN '{}'::text[] ELSE attempted_by END,
    token, leased_until,
    CASE WHEN pg_catalog.pg_column_size(output) > 1000000 OR pg_catalog.octet_length(output::text) > 4000000
        THEN NULL ELSE output END
FROM pgjobs.job WHERE id = %(id)s AND queue = %(queue)s;

-- name: settle_requests
-- Requests to cancel an attempt that no longer runs: it ended while the request was being committed. A job that waits is
-- cancelled now; of one that runs again the newer attempt is asked, for as long as it takes until the job is over; one
-- that is over or gone needs none any more. What somebody else holds is left for the next time.
WITH stale AS MATERIALIZED (
    {stale_requests}
), free AS MATERIALIZED (
    SELECT id, queue, 'cancelled' = ANY (unique_states) AND EXISTS (
        SELECT FROM pgjobs.job AS duplicate
        WHERE duplicate.unique_key = job.unique_key AND duplicate.state = ANY (duplicate.unique_states)
            AND (duplicate.id, duplicate.queue) <> (job.id, job.queue)) AS conflict
    FROM pgjobs.job
    WHERE id = ANY (ARRAY(SELECT job_id FROM stale WHERE waits))
        AND EXISTS (SELECT FROM stale WHERE waits AND stale.job_id = job.id AND stale.queue = job.queue)
        AND state = ANY ('{available,scheduled,retryable,pending}')
    FOR NO KEY UPDATE SKIP LOCKED
), first_request AS (
    SELECT DISTINCT ON (free.id, free.queue) free.id, free.queue, conflict, requested_at, reason
    FROM free JOIN stale ON stale.job_id = free.id AND stale.queue = free.queue
    ORDER BY free.id, free.queue, requested_at
), cancelled AS (
    UPDATE pgjobs.job SET
        state = 'cancelled',
        finalized_at = pg_catalog.clock_timestamp(),
        metadata = metadata || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
            'cancel_attempted_at', requested_at, 'cancel_reason', reason,
            'unique_key_conflict', CASE WHEN conflict THEN true END)),
        unique_key = CASE WHEN conflict THEN NULL ELSE unique_key END,
        unique_states = CASE WHEN conflict THEN NULL ELSE unique_states END
    FROM first_request WHERE job.id = first_request.id AND job.queue = first_request.queue
    RETURNING job.id, job.queue
), moved AS (
    UPDATE pgjobs.cancel_request AS request SET token = stale.token
    FROM stale WHERE request.id = stale.id AND runs
    RETURNING request.job_id
), removed AS (
    DELETE FROM pgjobs.cancel_request AS request USING stale
    WHERE request.id = stale.id AND NOT runs
        AND (NOT waits OR EXISTS (
            SELECT FROM cancelled WHERE cancelled.id = stale.job_id AND cancelled.queue = stale.queue))
    RETURNING request.job_id
)
SELECT (SELECT pg_catalog.count(*) FROM cancelled),
    (SELECT pg_catalog.count(*) FROM moved) + (SELECT pg_catalog.count(*) FROM removed);

-- name: rows_to_settle
WITH stale AS MATERIALIZED (
    {stale_requests}
)
SELECT DISTINCT job_id, queue FROM stale;

-- name: prune
-- Deletes what has been over for longer than it is kept, the oldest first, a batch at a time.
WITH old AS MATERIALIZED (
    {old_jobs}
), deleted AS (
    DELETE FROM pgjobs.job USING old WHERE job.id = old.id AND job.queue = old.queue RETURNING job.id
)
SELECT pg_catalog.count(*) FROM deleted;

-- name: rows_to_prune
WITH old AS MATERIALIZED (
    {old_jobs}
)
SELECT id, queue FROM old;

-- name: prune_part
-- Where a queue says itself how long its jobs are kept. Reads the index on, past the jobs of all queues, and deletes
-- those of one queue, or of all but some. Passes over rows that another transaction holds.
WITH seen AS MATERIALIZED (
    {next_ended}
), old AS MATERIALIZED (
    {old_of_seen}
), deleted AS (
    DELETE FROM pgjobs.job USING old WHERE job.id = old.id AND job.queue = old.queue RETURNING job.id
), last AS (
    SELECT finalized_at, id FROM seen ORDER BY finalized_at DESC, id DESC LIMIT 1
)
SELECT
    (SELECT pg_catalog.count(*) FROM seen),
    (SELECT finalized_at FROM last),
    (SELECT id FROM last),
    (SELECT pg_catalog.count(*) FROM deleted);

-- name: rows_to_prune_part
WITH seen AS MATERIALIZED (
    {next_ended}
), old AS MATERIALIZED (
    {old_of_seen}
)
SELECT id, queue FROM old;

-- name: some_jobs_to_prune
-- When very many are referenced by rows of the application, and may not go: some, in no order, so that those that must
-- stay do not hide the others for ever.
SELECT id, queue FROM pgjobs.job
WHERE state = %(state)s AND finalized_at < (pg_catalog.clock_timestamp() - %(keep)s::interval)
    AND (%(queue)s::text IS NULL OR queue = %(queue)s::text) AND queue <> ALL (%(others)s::text[])
ORDER BY pg_catalog.random()
LIMIT %(batch)s;

-- name: bare_write
-- The change that an act makes to the state of a job, without anything that the act reads of the row or adds to it. It
-- is tried with a row that the act has failed for, and rolled back; see pgjobs/set_aside.py.
UPDATE pgjobs.job SET
    state = CASE WHEN %(state)s::text = 'retryable' AND attempt >= max_attempts THEN 'discarded'
        ELSE %(state)s::text END,
    attempt = CASE WHEN attempt < max_attempts THEN attempt + %(counted)s::integer ELSE attempt END,
    attempted_at = pg_catalog.statement_timestamp(),
    attempted_by = '{}',
    errors = '[]',
    finalized_at = CASE WHEN %(state)s::text ~ '^[cd]' OR (%(state)s::text = 'retryable' AND attempt >= max_attempts)
        THEN pg_catalog.statement_timestamp() END,
    leased_until = NULL,
    unique_key = CASE WHEN %(key)s::boolean THEN unique_key END,
    unique_states = CASE WHEN %(key)s::boolean THEN unique_states END
WHERE id = ANY (ARRAY(
        SELECT id FROM pgjobs.job WHERE id = %(id)s AND queue = %(queue)s AND state = ANY (%(states)s::text[])
        FOR NO KEY UPDATE SKIP LOCKED))
    AND queue = %(queue)s
RETURNING id;

-- name: discard_unworkable
-- With `fresh`, nothing of the row's that may be in the way is kept. A running job only under the token that is given,
-- or without one where it has no lease that lasts: it may have been claimed anew since it was looked at.
UPDATE pgjobs.job SET
    state = 'discarded',
    finalized_at = pg_catalog.statement_timestamp(),
    leased_until = NULL,
    token = NULL,
    unique_key = CASE WHEN %(fresh)s::boolean THEN NULL ELSE unique_key END,
    unique_states = CASE WHEN %(fresh)s::boolean THEN NULL ELSE unique_states END,
    attempted_by = CASE WHEN %(fresh)s::boolean THEN '{}' ELSE attempted_by END,
    errors = CASE
            WHEN %(fresh)s::boolean OR pg_catalog.pg_column_size(errors) > 1000000 THEN '[]'::jsonb
            WHEN pg_catalog.jsonb_array_length(errors) >= 100 THEN errors - 50
            ELSE errors END
        || pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_object(
            'attempt', attempt, 'at', pg_catalog.statement_timestamp(), 'error', %(reason)s::text, 'trace', NULL))
WHERE id = ANY (ARRAY(
        SELECT id FROM pgjobs.job WHERE id = %(id)s AND queue = %(queue)s AND state = ANY (%(states)s::text[])
            AND (token = %(token)s::uuid OR (%(token)s::uuid IS NULL
                AND (state <> 'running' OR leased_until IS NULL OR leased_until < pg_catalog.clock_timestamp())))
        FOR NO KEY UPDATE SKIP LOCKED))
    AND queue = %(queue)s
RETURNING id;

-- ----- indexes
-- The upkeep of the indexes of the job table. None of these runs in a transaction of several statements.

-- name: job_indexes
-- Ours begin with job_; what a rebuild leaves behind when it is cut off is called like its index, with _ccnew or _ccold.
SELECT relname, indisvalid FROM pg_catalog.pg_index JOIN pg_catalog.pg_class ON pg_class.oid = indexrelid
WHERE indrelid = 'pgjobs.job'::pg_catalog.regclass AND pg_catalog.starts_with(relname::text, 'job_')
ORDER BY relname;

-- name: rebuild_index
-- Nobody is locked out, but in the end it waits for every transaction that has used the table and is open still.
REINDEX INDEX CONCURRENTLY {index};

-- name: drop_index
DROP INDEX CONCURRENTLY IF EXISTS {index};

-- name: begin_making
-- One process at a time makes the index: two that do it on the same table would wait for each other. It waits for all
-- snapshots that are older, so this transaction must have none.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = 0;
SELECT duty FROM pgjobs.maintenance WHERE duty = 'indexes' FOR NO KEY UPDATE SKIP LOCKED;

-- name: make_time_index
-- For those who take the oldest first, whatever the priorities. Who never asks for that order does not pay for it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_by_time ON pgjobs.job (queue, scheduled_at, id) WHERE state = 'available';
