-- The statements of one attempt: claim, lock, finish. Many are sent in one message: an error in one of them skips all
-- that follow. Some names have several commands.

-- name: select_by_priority
-- The job that a claim takes: the most urgent due job of the given kinds. No job while the queue is paused; the pause
-- is read once, not for each row. The scan starts behind the low-water mark, the job that this process claimed
-- last: before it the index may be full of dead entries that cannot be removed while an old transaction can see them.
SELECT id FROM pgjobs.job
    WHERE state = 'available' AND queue = %(queue)s AND scheduled_at <= pg_catalog.statement_timestamp()
        AND (%(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[]))
        AND NOT EXISTS (SELECT FROM pgjobs.queue WHERE name = %(queue)s AND paused_at IS NOT NULL)
        AND (priority, scheduled_at, id) >
            ((%(mark_priority)s)::smallint, %(mark_time)s::timestamptz, (%(mark_id)s)::bigint)
        {skip_set_aside}
    ORDER BY priority, scheduled_at, id
    LIMIT 1
    FOR NO KEY UPDATE SKIP LOCKED;

-- name: select_by_time
-- The oldest job that is due, whatever its priority.
SELECT id FROM pgjobs.job
    WHERE state = 'available' AND queue = %(queue)s AND scheduled_at <= pg_catalog.statement_timestamp()
        AND (%(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[]))
        AND NOT EXISTS (SELECT FROM pgjobs.queue WHERE name = %(queue)s AND paused_at IS NOT NULL)
        AND (scheduled_at, id) > (%(mark_time)s::timestamptz, (%(mark_id)s)::bigint)
        {skip_set_aside}
    ORDER BY scheduled_at, id
    LIMIT 1
    FOR NO KEY UPDATE SKIP LOCKED;

-- name: select_by_id
-- The waiting job with this id, even before its time.
SELECT id FROM pgjobs.job
    WHERE id = %(id)s AND queue = %(queue)s AND state = ANY ('{available,scheduled,retryable}')
    FOR NO KEY UPDATE SKIP LOCKED;

-- name: skip_set_aside
-- A condition of the statements above that passes over jobs which cannot be claimed now; see execution/set_aside.py.
AND id <> ALL (%(set_aside)s::bigint[]);

-- name: sample_available
-- A sample of the jobs that a claim could take, when the first ones cannot be claimed: in random order, but each kind
-- in turn, because the application often refuses jobs of one kind.
SELECT id FROM (
    SELECT id, kind FROM pgjobs.job
    WHERE state = 'available' AND queue = %(queue)s AND scheduled_at <= pg_catalog.statement_timestamp()
        AND (%(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[]))
        AND id <> ALL (%(set_aside)s::bigint[])
    ORDER BY priority, scheduled_at, id
    LIMIT 10000) AS line
ORDER BY pg_catalog.row_number() OVER (PARTITION BY kind ORDER BY pg_catalog.random())
LIMIT %(most)s;

-- name: begin
-- The defaults of the session may be others.
BEGIN ISOLATION LEVEL READ COMMITTED;

-- name: set_claim_timeout
-- Bounds the claim, and its waiting for locks.
SET LOCAL statement_timeout = '30s';

-- name: set_claim_timeout_used
-- The same behind a handler that has used the connection; also releases the advisory locks that it has left.
SELECT pg_catalog.pg_advisory_unlock_all(), pg_catalog.set_config('statement_timeout', '30s', true);

-- name: set_lock_timeout
SET LOCAL lock_timeout = '10s';

-- name: check_constraints_at_once
-- For claims that are tried and rolled back: deferred constraints of the application must fail as they would at COMMIT.
SET CONSTRAINTS ALL IMMEDIATE;

-- name: read_session
-- The role that claims, which must write the finish, and the values of those settings that a job's transaction needs.
SELECT
    pg_catalog.current_setting('session_authorization'),
    pg_catalog.current_setting('role'),
    pg_catalog.current_setting('idle_in_transaction_session_timeout'),
    pg_catalog.current_setting('client_connection_check_interval'),
    pg_catalog.current_setting('tcp_keepalives_idle'),
    pg_catalog.current_setting('tcp_keepalives_interval'),
    pg_catalog.current_setting('tcp_keepalives_count'),
    pg_catalog.current_setting('tcp_user_timeout');

-- name: claim
-- The claim, in a transaction of its own: it counts the attempt and shows it as running, and is committed before the
-- handler starts, so that the attempt of a job that kills its process is counted. The commit need not wait for the
-- disk: a server crash that loses it also ends the attempt. A detached attempt survives such a crash, so its claim
-- must, too.
UPDATE pgjobs.job SET
    state = 'running',
    attempt = attempt + 1,
    attempted_at = pg_catalog.statement_timestamp(),
    -- an array with another lower bound or more dimensions was made by hand: start a new one
    attempted_by = CASE
        WHEN pg_catalog.array_lower(attempted_by, 1) = 1 AND pg_catalog.array_ndims(attempted_by) = 1
            THEN (pg_catalog.array_append(attempted_by, %(worker)s::text))[
                GREATEST(pg_catalog.cardinality(attempted_by) - 98, 1):]
        ELSE ARRAY[%(worker)s::text] END,
    token = %(new_token)s,
    leased_until = CASE WHEN kind = ANY (%(detached)s::text[])
        THEN pg_catalog.statement_timestamp() + %(lease)s::interval END
WHERE queue = %(queue)s AND id = ({next})
{returning};

-- name: claim_alone
-- What a claim in a transaction of its own returns: whether its commit waits for the disk.
pg_catalog.set_config(
    'synchronous_commit', CASE WHEN leased_until IS NULL THEN %(synchronous_commit)s::text ELSE 'on' END, true);

-- name: claim_with_finish
-- The same for a claim in the transaction of a finish, whose commit waits for the disk unless that is switched off.
CASE WHEN (leased_until IS NOT NULL OR %(synchronous_commit)s::boolean)
        AND pg_catalog.current_setting('synchronous_commit') = 'off'
    THEN pg_catalog.set_config('synchronous_commit', 'on', true) END;

-- name: lock
-- Begins the handler's transaction: finds the row by the token, which only this attempt has, and locks it until the
-- end. It is sent in one message with the claim, so that no other transaction gets the row in between. FOR NO KEY
-- UPDATE lets the application insert rows that reference the job. The settings bound the transaction: the row of a host
-- that vanished is free within half a minute, not after two hours, and the server ends the transaction of a process
-- that hangs.
-- A setting that the session has already is left out. Returns only what the claimer does not know: NULL stands for the
-- value that most jobs have. Instants are in the format of JSON, because the DateStyle may be any.
SELECT
    id, kind, priority, max_attempts, args, pg_catalog.to_json(scheduled_at),
    CASE WHEN created_at <> scheduled_at THEN pg_catalog.to_json(created_at) END,
    CASE WHEN metadata <> '{}' THEN metadata END,
    CASE WHEN errors <> '[]' THEN errors END,
    CASE WHEN pg_catalog.cardinality(tags) > 0 THEN tags END,
    CASE WHEN pg_catalog.cardinality(attempted_by) > 1 THEN attempted_by END,
    attempt, pg_catalog.to_json(attempted_at), pg_catalog.to_json(leased_until),
    {settings}
FROM pgjobs.job
WHERE queue = %(queue)s AND token = %(new_token)s AND state = 'running'
FOR NO KEY UPDATE;

-- name: job_settings
-- The settings of a transaction in which handlers run.
(%(idle_timeout)s::text IS NULL
        OR pg_catalog.set_config('idle_in_transaction_session_timeout', %(idle_timeout)s::text, true) <> ''),
    (%(check_interval)s::text IS NULL
        OR pg_catalog.set_config('client_connection_check_interval', %(check_interval)s::text, true) <> ''),
    (%(keepalives_idle)s::text IS NULL
        OR pg_catalog.set_config('tcp_keepalives_idle', %(keepalives_idle)s::text, true) <> ''),
    (%(keepalives_interval)s::text IS NULL
        OR pg_catalog.set_config('tcp_keepalives_interval', %(keepalives_interval)s::text, true) <> ''),
    (%(keepalives_count)s::text IS NULL
        OR pg_catalog.set_config('tcp_keepalives_count', %(keepalives_count)s::text, true) <> ''),
    (%(user_timeout)s::text IS NULL
        OR pg_catalog.set_config('tcp_user_timeout', %(user_timeout)s::text, true) <> '');

-- name: job_bound
-- The bound of the transaction of one job, by its kind.
pg_catalog.set_config(%(bounded_by)s::text, COALESCE(%(bounds)s::jsonb ->> kind, %(bound)s::text), true);

-- name: savepoint
SAVEPOINT pgjobs;

-- name: unclaim
-- Undoes a claim whose handler has not started: the attempt is not counted, and the error of a rescue that has taken
-- the job for one of a vanished worker is removed. A job stays as it is if a duplicate has its unique key by now, or if
-- its row is locked: this must not wait for the end of a lost connection. The index by token has running jobs only; a
-- job that was rescued since the claim is found by the time of the rescue, which was not long ago. Without that time,
-- each call would read the whole table.
WITH unclaimed AS (
    UPDATE pgjobs.job SET
        state = 'available',
        attempt = attempt - 1,
        scheduled_at = LEAST(scheduled_at, pg_catalog.statement_timestamp()),
        attempted_at = NULL,
        leased_until = NULL,
        finalized_at = NULL,
        errors = CASE WHEN state = 'running' THEN errors ELSE errors - (-1) END,
        token = NULL
    WHERE (id, queue) = ANY (
            SELECT id, queue FROM pgjobs.job
            WHERE queue = %(queue)s AND token = %(token)s AND state = ANY ('{running,retryable,discarded}')
                AND id = ANY (ARRAY(
                    SELECT id FROM pgjobs.job WHERE state = 'running' AND token = %(token)s
                    UNION ALL
                    SELECT id FROM pgjobs.job
                    WHERE state = ANY ('{scheduled,retryable}') AND token = %(token)s
                        AND scheduled_at > (pg_catalog.statement_timestamp() - interval '1 minute')
                        AND scheduled_at < (pg_catalog.statement_timestamp() + interval '2 minutes')
                    UNION ALL
                    SELECT id FROM pgjobs.job
                    WHERE state = 'discarded' AND token = %(token)s
                        AND finalized_at > (pg_catalog.statement_timestamp() - interval '1 minute')))
            FOR NO KEY UPDATE SKIP LOCKED)
        AND NOT (unique_key IS NOT NULL AND (state = ANY (unique_states)) IS NOT TRUE AND EXISTS (
            SELECT FROM pgjobs.job AS duplicate
            WHERE duplicate.unique_key = job.unique_key AND duplicate.state = ANY (duplicate.unique_states)))
    RETURNING queue
)
SELECT {notify_worker} FROM unclaimed;

-- name: select_claimed_id
-- The job of a claim whose row could not be read.
SELECT id FROM pgjobs.job WHERE queue = %(queue)s AND token = %(token)s AND state = 'running';

-- name: extend_leases
-- Extends the leases of the detached attempts of this process, and returns those that still run. A row that another
-- transaction has locked, to finish it, is left out.
WITH locked AS MATERIALIZED (
    SELECT id, queue FROM pgjobs.job
    WHERE token = ANY (%(tokens)s::uuid[]) AND state = 'running' AND leased_until IS NOT NULL
    FOR NO KEY UPDATE SKIP LOCKED
), extended AS (
    UPDATE pgjobs.job SET leased_until = pg_catalog.clock_timestamp() + %(lease)s::interval
    FROM locked WHERE job.id = locked.id AND job.queue = locked.queue
)
SELECT token FROM pgjobs.job WHERE token = ANY (%(tokens)s::uuid[]) AND state = 'running';

-- name: release_savepoint
-- Fails when the handler has ended or broken the transaction: then its job is not completed.
RELEASE SAVEPOINT pgjobs;

-- name: set_claim_role
-- Returns to the role that has claimed the job, because a role of the handler may not write here. The user comes first:
-- to set it resets the role. Commands take the server a tenth of the time of set_config().
SET LOCAL SESSION AUTHORIZATION %(session_user)s;
SET LOCAL ROLE %(role)s;

-- name: set_session_role
-- The same beyond the transaction, for outcomes that are written in later ones.
SET SESSION AUTHORIZATION %(session_user)s;
SET ROLE %(role)s;

-- name: drop_statement_timeout
-- A timeout that the handler has set is for its own statements.
SET LOCAL statement_timeout = 0;

-- name: drop_other_settings
SET LOCAL lock_timeout = 0;
SET LOCAL row_security = on;

-- name: deallocate
-- Statements that the handler has prepared outlive its transaction, and behind a pooler other clients get the session.
-- No other client has used the session since the claim, so what was prepared since then is the handler's.
CALL pgjobs.deallocate_since(%(since)s::timestamptz);

-- name: commit_async
-- For queues whose finishes need not wait for the disk.
SET LOCAL synchronous_commit = off;

-- name: complete
-- The same as `finish`, for the outcome of most attempts.
WITH finished AS (
    UPDATE pgjobs.job SET
        state = 'completed',
        finalized_at = pg_catalog.statement_timestamp(),
        leased_until = NULL,
        metadata = CASE WHEN %(metadata)s::jsonb IS NULL THEN metadata ELSE metadata || %(metadata)s::jsonb END,
        output = COALESCE(%(output)s::jsonb, output)
    WHERE queue = %(queue)s AND token = %(token)s AND state = 'running'
    RETURNING id
)
SELECT pg_catalog.min(id), (EXTRACT(epoch FROM pg_catalog.statement_timestamp()) * 1000000)::bigint,
    CASE WHEN pg_catalog.count(*) = 1 THEN true ELSE pgjobs.attempt_lost() END
FROM finished;

-- name: complete_used
-- The same without metadata and output. The handler may have changed or deleted its own row, so the updated rows are
-- counted before the COMMIT that follows.
WITH finished AS (
    UPDATE pgjobs.job SET
        state = 'completed',
        finalized_at = pg_catalog.statement_timestamp(),
        leased_until = NULL
    WHERE queue = %(queue)s AND token = %(token)s AND state = 'running'
    RETURNING id
)
SELECT pg_catalog.min(id), (EXTRACT(epoch FROM pg_catalog.statement_timestamp()) * 1000000)::bigint,
    CASE WHEN pg_catalog.count(*) = 1 THEN true ELSE pgjobs.attempt_lost() END
FROM finished;

-- name: complete_untouched
-- The same after a handler that has not used the connection: its row was locked all the time, so it cannot have
-- changed, and there are no writes that could be committed without the completion.
UPDATE pgjobs.job SET
    state = 'completed',
    finalized_at = pg_catalog.statement_timestamp(),
    leased_until = NULL
WHERE queue = %(queue)s AND token = %(token)s AND state = 'running'
RETURNING
    id, (EXTRACT(epoch FROM finalized_at) * 1000000)::bigint,
    -- the bound of the claim that follows in the same transaction
    (%(claim_timeout)s::text IS NULL
        OR pg_catalog.set_config('statement_timeout', %(claim_timeout)s::text, true) <> '');

-- name: rollback_to_savepoint
-- Drops the handler's writes and keeps the row's lock. The savepoint is released before the outcome is written: a row
-- that is locked by the transaction and written by its subtransaction would need a MultiXact.
ROLLBACK TO SAVEPOINT pgjobs;

-- name: begin_late_finish
-- The handler's transaction and its lock are gone: the token alone guards the outcome. It does not wait long: if the
-- row is locked, a dead connection or a rescue has the lock.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL statement_timeout = '10s';
SET LOCAL lock_timeout = '1s';

-- name: restore_claim
-- A server that has crashed may have lost the claim, which did not wait for the disk. The attempt has started, so it
-- counts: the row is set as the claim had left it. In all other cases this matches no row: the row of a claim that was
-- undone, or of an attempt that was not counted, has the time of its last claim.
UPDATE pgjobs.job SET
    state = 'running', attempt = %(attempt)s, attempted_at = pg_catalog.statement_timestamp(), token = %(token)s
WHERE queue = %(queue)s AND id = %(id)s AND (token <> %(token)s OR token IS NULL)
    AND state = 'available' AND attempt = (%(attempt)s - 1)
    AND (attempted_at < %(attempted_at)s OR attempted_at IS NULL);

-- name: finish
-- Writes the outcome of one attempt, with the metadata and the output of its handler. Raises an error when the attempt
-- no longer owns the job, which skips the COMMIT that follows.
WITH finished AS (
    UPDATE pgjobs.job SET
        state = CASE WHEN next.due <= pg_catalog.statement_timestamp() THEN 'available' ELSE %(state)s END,
        attempt = attempt - %(refund)s,
        scheduled_at = COALESCE(next.due, scheduled_at),
        finalized_at = CASE WHEN %(final)s THEN pg_catalog.statement_timestamp() END,
        leased_until = NULL,
        metadata = CASE
            WHEN %(metadata)s::jsonb IS NULL AND NOT %(snoozed)s THEN metadata
            ELSE (metadata || COALESCE(%(metadata)s::jsonb, '{}'::jsonb)
                || CASE WHEN %(snoozed)s THEN pg_catalog.jsonb_build_object('snoozes',
                    CASE WHEN pg_catalog.jsonb_typeof((metadata -> 'snoozes')) = 'number'
                        THEN ((metadata ->> 'snoozes')::numeric + 1) ELSE 1 END)
                    ELSE '{}'::jsonb END)
            END,
        output = COALESCE(%(output)s::jsonb, output),
        -- at most 100 errors: the first and the last ones say most, so the middle one is removed
        errors = CASE WHEN next.error IS NULL THEN errors
            ELSE CASE WHEN pg_catalog.jsonb_array_length(errors) >= 100 THEN errors - 50 ELSE errors END
                || pg_catalog.jsonb_build_array(
                    next.error || pg_catalog.jsonb_build_object('at', pg_catalog.statement_timestamp()))
            END
    FROM (SELECT
        -- a past instant would make a retry without a pause, perhaps again and again
        CASE WHEN %(at)s::timestamptz <= pg_catalog.statement_timestamp()
            THEN (pg_catalog.statement_timestamp() + interval '1 second')
            ELSE COALESCE(%(at)s::timestamptz, (pg_catalog.statement_timestamp() + %(delay)s::interval)) END AS due,
        %(error)s::jsonb AS error) AS next
    WHERE queue = %(queue)s AND id = %(id)s AND token = %(token)s AND state = 'running'
    RETURNING state, queue
)
-- The time in microseconds: no setting of the handler changes the format of a number.
SELECT pg_catalog.min(state), (EXTRACT(epoch FROM pg_catalog.statement_timestamp()) * 1000000)::bigint,
    CASE WHEN pg_catalog.count(*) = 1 THEN true ELSE pgjobs.attempt_lost() END,
    (SELECT {notify_worker} FROM finished WHERE state = 'available')
FROM finished;

-- name: cancel_if_requested
-- Sent after the finish in the same message: if the job has a cancel request, the job is cancelled and the request is
-- deleted. A job that has completed all the same stays completed; its metadata has the request. This is not a part of
-- `finish`, where a second table would take each finish a third more time.
WITH request AS (
    DELETE FROM pgjobs.cancel_request WHERE job_id = %(id)s AND token = %(token)s RETURNING requested_at, reason
)
UPDATE pgjobs.job SET
    state = CASE WHEN state = 'completed' THEN state ELSE 'cancelled' END,
    finalized_at = CASE WHEN state = 'completed' THEN finalized_at ELSE pg_catalog.statement_timestamp() END,
    metadata = metadata || cancel
FROM (
    SELECT pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
        'cancel_attempted_at', requested_at, 'cancel_reason', reason)) AS cancel
    FROM request ORDER BY requested_at LIMIT 1
) AS first_request
WHERE queue = %(queue)s AND id = %(id)s AND token = %(token)s
RETURNING state;

-- name: rollback
ROLLBACK;

-- name: commit
COMMIT;

-- name: commit_and_begin
-- The next transaction has the isolation level of this one, whatever the defaults of the session are. A handler cannot
-- have changed it, because it runs behind a savepoint.
COMMIT AND CHAIN;

-- name: reset_session
-- Resets what a handler has left in the session.
RESET SESSION AUTHORIZATION;
RESET ALL;
UNLISTEN *;
CLOSE ALL;
DISCARD TEMP;

-- name: release_advisory_locks
SELECT pg_catalog.pg_advisory_unlock_all();

-- name: count_prepared
-- How many statements a handler has prepared by name: if there are any, the connection is given up.
SELECT pg_catalog.count(*) FROM pg_catalog.pg_prepared_statement() WHERE from_sql;

-- name: server_facts
-- How long the server has been up, whether it can notice during a statement that the client is gone, its version, and
-- the process that serves this connection.
SELECT
    (EXTRACT(epoch FROM (pg_catalog.clock_timestamp() - pg_catalog.pg_postmaster_start_time())) * 1000000)::bigint,
    pg_catalog.version() ~ 'linux|darwin|apple|bsd',
    pg_catalog.current_setting('server_version_num')::integer,
    pg_catalog.pg_backend_pid();
