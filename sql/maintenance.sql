-- The duties that keep the queues moving. Any process may do them; each is a short transaction. Durations and instants
-- are returned as microseconds, since the text of an interval depends on settings of the session.

-- name: begin_duty
-- Begins the transaction of a duty and locks its row. The server bounds the transaction: a process that hangs in it
-- loses its connection, and with it the duty. Returns how long until the duty is due (null if another process holds the
-- row), and whether there is a row. A time further away than `longest` was written under a wrong clock, or by hand:
-- then the duty is due.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = '5s';
SET LOCAL statement_timeout = '30s';
SET LOCAL lock_timeout = '5s';
SET LOCAL DateStyle = ISO;
-- a deferred constraint of the application fails at the row that violates it, not at the commit of the duty
SET CONSTRAINTS ALL IMMEDIATE;
WITH locked AS MATERIALIZED (
    SELECT CASE
        WHEN next_run_at > (pg_catalog.clock_timestamp() + %(longest)s::interval)
            OR next_run_at < (pg_catalog.clock_timestamp() - %(longest)s::interval) THEN pg_catalog.clock_timestamp()
        ELSE next_run_at END AS next_run_at
    FROM pgjobs.maintenance WHERE duty = %(duty)s FOR NO KEY UPDATE SKIP LOCKED
)
SELECT (SELECT (EXTRACT(epoch FROM (next_run_at - pg_catalog.clock_timestamp())) * 1000000)::bigint FROM locked),
    EXISTS (SELECT FROM pgjobs.maintenance WHERE duty = %(duty)s);

-- name: anything_due
-- Whether the duties promote and rescue may have something to do: this one statement saves an idle queue the
-- transactions of both.
SELECT
    EXISTS (SELECT FROM pgjobs.job WHERE state = ANY ('{scheduled,retryable}')
        AND scheduled_at < (pg_catalog.clock_timestamp() + %(soon)s::interval)),
    EXISTS (SELECT FROM pgjobs.job WHERE state = 'running') OR EXISTS (SELECT FROM pgjobs.cancel_request);

-- name: end_duty
UPDATE pgjobs.maintenance SET next_run_at = pg_catalog.clock_timestamp() + %(after)s::interval WHERE duty = %(duty)s;
COMMIT;

-- name: current_time
-- The clock of the server decides when a duty is due.
SELECT (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint;

-- name: postpone_duty
-- After a failure, so that not every process tries again at once.
UPDATE pgjobs.maintenance SET next_run_at = pg_catalog.clock_timestamp() + %(after)s::interval
WHERE duty = %(duty)s AND next_run_at <= pg_catalog.clock_timestamp();

-- name: promote
-- First result: makes due jobs available and wakes their workers, with one notification per queue at most. A job whose
-- unique key does not hold while it waits may have lost the key to a duplicate, and the update of the whole batch would
-- fail on it: such jobs are only returned (with their id), for settle_promotion. Second result: how long until the next
-- job is due; null if none waits.
-- The commit does not wait for the disk: after a crash of the server the jobs are promoted again, and the commit of a
-- finished job flushes this one too.
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
-- The jobs that promote would take; for when it fails because of one of them.
WITH due AS MATERIALIZED (
    {due_jobs}
)
SELECT id, queue FROM due;

-- name: settle_promotion
-- Makes one due job available, or discards it if a duplicate has its unique key by now. If a transaction is inserting
-- the duplicate, this does not wait but fails, and postpone_promotion follows. A discarded job gives its key up if the
-- key would hold in the state 'discarded'.
SET LOCAL lock_timeout = '50ms';
UPDATE pgjobs.job SET
    state = CASE WHEN lost THEN 'discarded' ELSE 'available' END,
    finalized_at = CASE WHEN lost THEN pg_catalog.clock_timestamp() END,
    metadata = CASE WHEN lost THEN {job_metadata} || '{"unique_key_conflict": "scheduler_discarded"}' ELSE metadata END,
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
-- Tried again a second later; until then it does not stop other jobs.
UPDATE pgjobs.job SET scheduled_at = pg_catalog.clock_timestamp() + interval '1 second'
WHERE id = %(id)s AND queue = %(queue)s;

-- name: next_due
-- How long until the next waiting job is due; null if none waits.
{next_due_job};

-- name: bring_promote_forward
-- A job was enqueued that is due before the next promote. Waits for a promote that is running: it may have read the
-- table before the job was there.
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
-- Finishes the attempts of workers that vanished: of running jobs without a lease, old enough to be locked, and not
-- locked; and of jobs whose lease is over. SKIP LOCKED is the proof: a live worker holds its row's lock. A job with
-- a request to cancel is cancelled, not retried. A last attempt of a kind that this process does not know is left for a
-- day to a process that does.
-- If a process ran several jobs, any of them may have killed it. So a job that had neighbours and never failed before
-- is excused: the attempt does not count. The metadata record that, and it is done twice at most. The token is removed,
-- so that a late outcome of the attempt does not find the job.
-- The values of a row may be large. So the rescue takes rows in their order until their stored values reach some
-- megabytes, and one row at least. It returns no args and no metadata, and of the errors only the new one. It does not
-- change large metadata. If the errors are larger than pgjobs ever writes, they are removed and the job is discarded
-- with that reason, since adding to them may take longer than a duty may last, or is impossible.
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
), had_neighbours AS MATERIALIZED (
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
            AND EXISTS (SELECT FROM had_neighbours WHERE had_neighbours.worker = vanished.worker) AS excused,
        attempt >= max_attempts OR overfull AS last, overfull
    FROM vanished
    JOIN pgjobs.job ON job.id = vanished.id AND job.queue = vanished.queue
    CROSS JOIN LATERAL (SELECT
        pg_catalog.pg_column_size(metadata) <= 1000000 AS small,
        -- the operator returns the value uncompressed
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
        metadata = CASE WHEN cancelled AND small THEN {job_metadata} || cancel
            WHEN excused THEN {job_metadata} || pg_catalog.jsonb_build_object('excused', given
                || pg_catalog.jsonb_build_array(
                    pg_catalog.jsonb_build_object('at', pg_catalog.clock_timestamp(), 'worker', worker)))
            ELSE metadata END,
        -- 1 s, doubling up to 60 s, and not the backoff of the job: it is rarely to blame. Excused jobs are spread over
        -- time, so that the job that kills the process meets fewer of them
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
                -- clients check their names, but a row may have been written by hand
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
        '{}'::text[] AS tags, scheduled_at, created_at, attempted_at, finalized_at,
        ARRAY[pg_catalog.left(worker, 255)] AS attempted_by,
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
-- For hooks. Values larger than a few megabytes are left out.
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
-- Settles requests to cancel an attempt that has ended: it ended while the request was being committed.
--     the job         the request
--     waits           is applied: the job is cancelled
--     runs again      is passed on to the new attempt
--     is over, gone   is deleted
-- Rows that another transaction holds are left for the next time.
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
        metadata = {job_metadata} || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
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

-- name: date_finished
-- Gives finished jobs an end that have none, or one in the future, because a hand has changed them: they would never be
-- pruned. When they ended is not known, so they are kept from now on.
WITH undated AS MATERIALIZED (
    {undated_jobs}
), dated AS (
    UPDATE pgjobs.job SET finalized_at = pg_catalog.clock_timestamp()
    FROM undated WHERE job.id = undated.id AND job.queue = undated.queue
    RETURNING job.id
)
SELECT pg_catalog.count(*) FROM dated;

-- name: rows_to_date
WITH undated AS MATERIALIZED (
    {undated_jobs}
)
SELECT id, queue FROM undated;

-- name: prune
-- Deletes jobs of a state that ended longer ago than `keep`, the oldest first.
WITH old AS MATERIALIZED (
    {old_jobs}
), deleted AS (
    DELETE FROM pgjobs.job USING old WHERE job.id = old.id AND job.queue = old.queue RETURNING job.id
)
SELECT pg_catalog.count(*) FROM deleted;

-- name: prune_figures
-- Deletes the oldest figures that were kept as long. Of the first hour none, since its figures may be in one row.
WITH old AS MATERIALIZED (
    SELECT minute, queue, kind FROM pgjobs.figure
    WHERE minute < pg_catalog.date_bin(
        '1 hour', pg_catalog.statement_timestamp() - %(keep)s::interval, '2000-01-03 UTC')
    ORDER BY minute LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED
), deleted AS (
    DELETE FROM pgjobs.figure USING old
    WHERE figure.minute = old.minute AND figure.queue = old.queue AND figure.kind = old.kind
    RETURNING old.minute
)
SELECT pg_catalog.count(*) FROM deleted;

-- name: roll_up_figures
-- Adds figures between two ages to those of the minute in which their period begins, and deletes their rows. One
-- statement does both, so that nothing is lost or counted twice. Figures that are written later for such a minute are
-- added the next time, and so is a row that is locked now. Rows are locked in one order, that of add_figures, so that no
-- two transactions wait for each other in a circle. The minutes are found by jumps through the index, since nearly all
-- rows are of minutes in which a period begins.
WITH RECURSIVE bounds AS MATERIALIZED (
    SELECT
        pg_catalog.date_bin('1 hour', pg_catalog.statement_timestamp() - %(older)s::interval, '2000-01-03 UTC') AS since,
        pg_catalog.date_bin(
            %(period)s::interval, pg_catalog.statement_timestamp() - %(old)s::interval, '2000-01-03 UTC') AS until
), line AS (
    SELECT minute FROM (
        SELECT minute FROM pgjobs.figure
        WHERE minute >= (SELECT since FROM bounds) AND minute < (SELECT until FROM bounds)
        ORDER BY minute LIMIT 1) AS first
    UNION ALL
    SELECT next.minute FROM line, LATERAL (
        SELECT figure.minute FROM pgjobs.figure
        WHERE figure.minute > line.minute AND figure.minute < (SELECT until FROM bounds)
        ORDER BY figure.minute LIMIT 1) AS next
), old AS MATERIALIZED (
    SELECT these.minute, these.queue, these.kind FROM line, LATERAL (
        SELECT figure.minute, figure.queue, figure.kind FROM pgjobs.figure
        WHERE figure.minute = line.minute
        ORDER BY figure.queue, figure.kind
        FOR UPDATE SKIP LOCKED) AS these
    WHERE line.minute <> pg_catalog.date_bin(%(period)s::interval, line.minute, '2000-01-03 UTC')
    LIMIT %(batch)s
), deleted AS (
    DELETE FROM pgjobs.figure USING old
    WHERE figure.minute = old.minute AND figure.queue = old.queue AND figure.kind = old.kind
    RETURNING
        figure.minute, figure.queue, figure.kind, completed, failed, discarded, cancelled, snoozed, interrupted,
        run_seconds, wait_seconds, run_counts, wait_counts
), added AS (
    INSERT INTO pgjobs.figure AS known (
        minute, queue, kind, completed, failed, discarded, cancelled, snoozed, interrupted, run_seconds, wait_seconds,
        run_counts, wait_counts)
    SELECT
        pg_catalog.date_bin(%(period)s::interval, minute, '2000-01-03 UTC') AS period, queue, kind,
        pg_catalog.sum(completed),
        pg_catalog.sum(failed),
        pg_catalog.sum(discarded),
        pg_catalog.sum(cancelled),
        pg_catalog.sum(snoozed),
        pg_catalog.sum(interrupted),
        pg_catalog.sum(run_seconds),
        pg_catalog.sum(wait_seconds),
        pg_catalog.sum(run_counts),
        pg_catalog.sum(wait_counts)
    FROM deleted
    GROUP BY period, queue, kind
    ORDER BY period, queue, kind
    {add_to_figures}
)
SELECT pg_catalog.count(*) FROM deleted;

-- name: prune_audit
-- Deletes the oldest rows of the audit that were kept as long. Their ids are in the order of time.
WITH old AS MATERIALIZED (
    SELECT id, at FROM pgjobs.audit ORDER BY id LIMIT %(batch)s
), deleted AS (
    DELETE FROM pgjobs.audit USING old
    WHERE audit.id = old.id AND old.at < (pg_catalog.statement_timestamp() - %(keep)s::interval)
    RETURNING audit.id
)
SELECT pg_catalog.count(*) FROM deleted;

-- name: rows_to_prune
WITH old AS MATERIALIZED (
    {old_jobs}
)
SELECT id, queue FROM old;

-- name: prune_after
-- For when a queue has its own retention. Reads the next jobs of all queues after a position in the index, and deletes
-- those of one queue, or of all queues but some. Leaves rows that another transaction holds.
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

-- name: rows_to_prune_after
WITH seen AS MATERIALIZED (
    {next_ended}
), old AS MATERIALIZED (
    {old_of_seen}
)
SELECT id, queue FROM old;

-- name: some_jobs_to_prune
-- Some jobs in no order. For when none of the oldest can be deleted, because rows of the application reference them:
-- they must not hide the others for ever.
SELECT id, queue FROM pgjobs.job
WHERE state = %(state)s AND finalized_at < (pg_catalog.clock_timestamp() - %(keep)s::interval)
    AND (%(queue)s::text IS NULL OR queue = %(queue)s::text) AND queue <> ALL (%(others)s::text[])
ORDER BY pg_catalog.random()
LIMIT %(batch)s;

-- name: bare_write
-- The change of state that an operation makes, without reading the other values of the row or adding to them. Tried, and
-- rolled back, with a row for which the operation has failed: see pgjobs/execution/set_aside.py.
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
-- With `fresh`, removes all values of the row that may stop the statement. A running job is discarded only if it has
-- the given token, or, without a token, if it has no valid lease: another worker may have claimed it since.
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
-- Of the job table. Each statement is sent by itself, without a transaction block.

-- name: job_indexes
-- Our indexes begin with job_. An interrupted rebuild leaves an index of the same name with _ccnew or _ccold.
SELECT relname, indisvalid FROM pg_catalog.pg_index JOIN pg_catalog.pg_class ON pg_class.oid = indexrelid
WHERE indrelid = 'pgjobs.job'::pg_catalog.regclass AND pg_catalog.starts_with(relname::text, 'job_')
ORDER BY relname;

-- name: rebuild_index
-- Blocks no reads or writes, but waits in the end for every open transaction that has used the table.
REINDEX INDEX CONCURRENTLY {index};

-- name: drop_index
DROP INDEX CONCURRENTLY IF EXISTS {index};

-- name: lock_index_duty
-- One process at a time creates an index: two of them would wait for each other. CREATE INDEX CONCURRENTLY waits for
-- all older snapshots, so this transaction must hold none: hence READ COMMITTED.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = 0;
SELECT duty FROM pgjobs.maintenance WHERE duty = 'indexes' FOR NO KEY UPDATE SKIP LOCKED;

-- name: create_time_index
-- For worker pools with order="scheduled_at". Not in the migrations, since it slows down writes of those without.
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_by_time ON pgjobs.job (queue, scheduled_at, id) WHERE state = 'available';
