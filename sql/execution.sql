-- One attempt: claim, lock, finish. Several statements stand under one name where they must leave in one round trip;
-- an error in one of them skips all that follow.

-- name: select_by_priority
-- Which job the claim takes: the most urgent that is due, of kinds that this process handles if it leaves the others.
-- None once a pause of the queue is committed; that is asked once, not for each row. The scan starts behind the mark, the job that this process claimed last: before it the index may be full of entries
-- that are dead and cannot be removed, because some old transaction might still want to see them.
SELECT id FROM pgjobs.job
    WHERE state = 'available' AND queue = %(queue)s AND scheduled_at <= pg_catalog.statement_timestamp()
        AND (%(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[]))
        AND NOT EXISTS (SELECT FROM pgjobs.queue WHERE name = %(queue)s AND paused_at IS NOT NULL)
        AND (priority, scheduled_at, id) > ((%(mark_priority)s)::smallint, %(mark_time)s::timestamptz, (%(mark_id)s)::bigint)
        {skip_set_aside}
    ORDER BY priority, scheduled_at, id
    LIMIT 1
    FOR NO KEY UPDATE SKIP LOCKED;

-- name: select_by_time
-- The oldest that is due, whatever the priorities.
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
-- A certain one that waits, before its time if need be.
SELECT id FROM pgjobs.job
    WHERE id = %(id)s AND queue = %(queue)s AND state = ANY ('{available,scheduled,retryable}')
    FOR NO KEY UPDATE SKIP LOCKED;

-- name: skip_set_aside
-- A part of the two above where there are jobs that cannot be claimed now; see pgjobs/set_aside.py.
AND id <> ALL (%(aside)s::bigint[]);

-- name: sample_available
-- Some that a claim could take, when those that stand first cannot be claimed: in no order, but each kind in turn, since
-- what the application stops is often of one kind.
SELECT id FROM (
    SELECT id, kind FROM pgjobs.job
    WHERE state = 'available' AND queue = %(queue)s AND scheduled_at <= pg_catalog.statement_timestamp()
        AND (%(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[]))
        AND id <> ALL (%(aside)s::bigint[])
    ORDER BY priority, scheduled_at, id
    LIMIT 10000) AS line
ORDER BY pg_catalog.row_number() OVER (PARTITION BY kind ORDER BY pg_catalog.random())
LIMIT %(most)s;

-- name: begin
-- Whatever the defaults of the session are.
BEGIN ISOLATION LEVEL READ COMMITTED;

-- name: set_claim_timeouts
-- With it, the role that claims: the finish is written by the same.
SELECT
    pg_catalog.set_config('statement_timeout', '30s', true),
    pg_catalog.set_config('lock_timeout', '10s', true),
    pg_catalog.current_setting('session_authorization'),
    pg_catalog.current_setting('role');

-- name: check_constraints_at_once
-- In a look at why a claim fails, which is rolled back: what the application has deferred to the commit is to fail too.
SET CONSTRAINTS ALL IMMEDIATE;

-- name: read_role
-- The same for the hot path, asked once for each time that a connection is taken from its pool.
SELECT pg_catalog.current_setting('session_authorization'), pg_catalog.current_setting('role');

-- name: set_claim_timeout
-- The time alone: it bounds the waiting for locks as well.
SET LOCAL statement_timeout = '30s';

-- name: claim
-- The claim, in a transaction of its own: it counts the attempt and makes it visible, and is committed before the handler
-- starts, so that a job that kills its process is counted too. That commit need not wait for the disk: a crash that
-- loses it also ends the attempt. But a detached attempt outlives a crash of the server, so its claim must too.
UPDATE pgjobs.job SET
    state = 'running',
    attempt = attempt + 1,
    attempted_at = pg_catalog.statement_timestamp(),
    -- an array that counts from elsewhere, or in more directions, was made by hand: it begins anew
    attempted_by = CASE
        WHEN pg_catalog.array_lower(attempted_by, 1) = 1 AND pg_catalog.array_ndims(attempted_by) = 1
            THEN (pg_catalog.array_append(attempted_by, %(worker)s::text))[
                GREATEST(pg_catalog.cardinality(attempted_by) - 98, 1):]
        ELSE ARRAY[%(worker)s::text] END,
    token = %(token)s,
    leased_until = CASE WHEN kind = ANY (%(detached)s::text[]) THEN pg_catalog.statement_timestamp() + %(lease)s::interval END
WHERE queue = %(queue)s AND id = ({next})
RETURNING
    -- what the claimer does not know by itself; instants as JSON has them, whatever the DateStyle of the session is
    id, kind, priority, attempt, max_attempts, args, metadata, errors, tags, pg_catalog.to_json(scheduled_at),
    pg_catalog.to_json(created_at), pg_catalog.to_json(attempted_at), attempted_by, pg_catalog.to_json(leased_until),
    pg_catalog.set_config('synchronous_commit',
        CASE WHEN leased_until IS NULL THEN %(synchronous_commit)s::text ELSE 'on' END, true);

-- name: lock
-- The handler's transaction: it finds the row by the token that only this attempt has, and holds its lock to the end. It
-- leaves in one message with the claim, so that nothing can come between the two. FOR NO KEY UPDATE lets the application
-- insert rows that reference the job. With it come the bounds: the row of a host that vanished is free within half a
-- minute, not after two hours; and the server ends the transaction when this process hangs as a whole and cannot.
SELECT id,
    pg_catalog.set_config('idle_in_transaction_session_timeout', '0', true),
    pg_catalog.set_config('client_connection_check_interval', %(check_interval)s::text, true),
    pg_catalog.set_config('tcp_keepalives_idle', '10', true),
    pg_catalog.set_config('tcp_keepalives_interval', '5', true),
    pg_catalog.set_config('tcp_keepalives_count', '3', true),
    pg_catalog.set_config('tcp_user_timeout', '25s', true),
    pg_catalog.set_config(%(bounded_by)s::text, COALESCE(%(bounds)s::jsonb ->> kind, %(bound)s::text), true)
FROM pgjobs.job
WHERE queue = %(queue)s AND token = %(token)s AND state = 'running'
FOR NO KEY UPDATE;

-- name: savepoint
SAVEPOINT pgjobs;

-- name: unclaim
-- The claim of a worker that lives but never got the lock: nothing ran, so the attempt is given back, also when
-- a rescue has recorded it as vanished meanwhile. A job whose key a duplicate has taken since stays as the rescue left it; and so
-- does one whose row is held still: nobody waits for the end of a lost connection. Only running jobs are found by their
-- token. Those that were rescued since the claim, which is not long ago, are found by when that was; without, each look
-- would read the whole table.
WITH released AS (
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
SELECT {notify_worker} FROM released;

-- name: select_claimed_id
-- Of a claim whose row could not be read.
SELECT id FROM pgjobs.job WHERE queue = %(queue)s AND token = %(token)s AND state = 'running';

-- name: extend_leases
-- Detached attempts that still run in this process. The answer is which of them are still theirs; one that somebody
-- holds at the moment, to finish it, is not waited for.
WITH mine AS MATERIALIZED (
    SELECT id, queue FROM pgjobs.job
    WHERE token = ANY (%(tokens)s::uuid[]) AND state = 'running' AND leased_until IS NOT NULL
    FOR NO KEY UPDATE SKIP LOCKED
), extended AS (
    UPDATE pgjobs.job SET leased_until = pg_catalog.clock_timestamp() + %(lease)s::interval
    FROM mine WHERE job.id = mine.id AND job.queue = mine.queue
)
SELECT token FROM pgjobs.job WHERE token = ANY (%(tokens)s::uuid[]) AND state = 'running';

-- name: release_savepoint
-- The tripwire of success: it fails when the handler ended or broke the transaction.
RELEASE SAVEPOINT pgjobs;

-- name: set_claim_role
-- By the role that has claimed the job, whatever role the handler has taken: that may not write here. The session's own
-- user first, which undoes a role. Commands, which cost the server a tenth of what set_config() does.
SET LOCAL SESSION AUTHORIZATION %(session_user)s;
SET LOCAL ROLE %(role)s;

-- name: set_session_role
-- The same for what is recorded in other transactions, until the session is reset again.
SET SESSION AUTHORIZATION %(session_user)s;
SET ROLE %(role)s;

-- name: drop_statement_timeout
-- What the handler has set is for its own statements.
SET LOCAL statement_timeout = 0;

-- name: drop_other_settings
SET LOCAL lock_timeout = 0;
SET LOCAL row_security = on;

-- name: deallocate
-- What the handler has prepared by name outlives its transaction, and behind a pooler its session is that of others
-- next. Nobody else can have used this session since the claim; what was prepared before is not this handler's.
CALL pgjobs.deallocate_since(%(since)s::timestamptz);

-- name: commit_async
-- The finish of a queue that need not wait for the disk.
SET LOCAL synchronous_commit = off;

-- name: complete
-- What `finish` would write, for the outcome that most attempts have.
WITH finished AS (
    UPDATE pgjobs.job SET
        state = 'completed',
        finalized_at = pg_catalog.statement_timestamp(),
        leased_until = NULL,
        metadata = CASE WHEN %(metadata)s::jsonb IS NULL THEN metadata ELSE metadata || %(metadata)s::jsonb END,
        output = COALESCE(%(output)s::jsonb, output)
    WHERE queue = %(queue)s AND id = %(id)s AND token = %(token)s AND state = 'running'
    RETURNING state
)
SELECT pg_catalog.min(state), (EXTRACT(epoch FROM pg_catalog.statement_timestamp()) * 1000000)::bigint,
    CASE WHEN pg_catalog.count(*) = 1 THEN true ELSE pgjobs.attempt_lost() END
FROM finished;

-- name: complete_used
-- The same where the handler wanted nothing kept. It may have changed or deleted the row that it locks, so what was
-- updated is counted before the COMMIT behind it.
WITH finished AS (
    UPDATE pgjobs.job SET
        state = 'completed',
        finalized_at = pg_catalog.statement_timestamp(),
        leased_until = NULL
    WHERE queue = %(queue)s AND id = %(id)s AND token = %(token)s AND state = 'running'
    RETURNING state
)
SELECT pg_catalog.min(state), (EXTRACT(epoch FROM pg_catalog.statement_timestamp()) * 1000000)::bigint,
    CASE WHEN pg_catalog.count(*) = 1 THEN true ELSE pgjobs.attempt_lost() END
FROM finished;

-- name: complete_untouched
-- The same after a handler that sent nothing and wanted nothing kept: the row was locked all the while, so nobody can
-- have changed it, and there are no effects that could stay without it.
UPDATE pgjobs.job SET
    state = 'completed',
    finalized_at = pg_catalog.statement_timestamp(),
    leased_until = NULL
WHERE queue = %(queue)s AND id = %(id)s AND token = %(token)s AND state = 'running'
RETURNING state, (EXTRACT(epoch FROM finalized_at) * 1000000)::bigint;

-- name: rollback_to_savepoint
-- The handler's writes go, the row's lock stays. The savepoint is released before the record is written: a row written by two
-- subtransactions of its locker would need a MultiXact.
ROLLBACK TO SAVEPOINT pgjobs;

-- name: begin_late_finish
-- The handler's transaction is gone, and its lock with it: the token alone guards the record. Never waits long: who
-- holds the row now is the dead connection or a rescue.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL statement_timeout = '10s';
SET LOCAL lock_timeout = '1s';

-- name: restore_claim
-- A server that crashed may have lost the claim itself, which did not wait for the disk. The attempt did start, so it
-- counts: the row is brought to where the claim had left it. In every other case this matches nothing: the row of an
-- attempt that was given back, and perhaps taken and given back again, says when it was last claimed.
UPDATE pgjobs.job SET
    state = 'running', attempt = %(attempt)s, attempted_at = pg_catalog.statement_timestamp(), token = %(token)s
WHERE queue = %(queue)s AND id = %(id)s AND (token <> %(token)s OR token IS NULL)
    AND state = 'available' AND attempt = (%(attempt)s - 1)
    AND (attempted_at < %(attempted_at)s OR attempted_at IS NULL);

-- name: finish
-- Writes the outcome of one attempt, and what its handler wanted kept. Raises in the server when the attempt no longer owns the job, which skips the
-- COMMIT behind it. Functions are named in full: a handler may have changed the search_path.
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
        -- at most 100 errors: the first and the latest tell most, so the middle one goes
        errors = CASE WHEN next.error IS NULL THEN errors
            ELSE CASE WHEN pg_catalog.jsonb_array_length(errors) >= 100 THEN errors - 50 ELSE errors END
                || pg_catalog.jsonb_build_array(
                    next.error || pg_catalog.jsonb_build_object('at', pg_catalog.statement_timestamp()))
            END
    FROM (SELECT
        -- an instant that is over would be a retry without a pause, and perhaps the next one too
        CASE WHEN %(at)s::timestamptz <= pg_catalog.statement_timestamp()
            THEN (pg_catalog.statement_timestamp() + interval '1 second')
            ELSE COALESCE(%(at)s::timestamptz, (pg_catalog.statement_timestamp() + %(delay)s::interval)) END AS due,
        %(error)s::jsonb AS error) AS next
    WHERE queue = %(queue)s AND id = %(id)s AND token = %(token)s AND state = 'running'
    RETURNING state, queue
)
-- The time in microseconds: no setting of the handler's changes how a number is written.
SELECT pg_catalog.min(state), (EXTRACT(epoch FROM pg_catalog.statement_timestamp()) * 1000000)::bigint,
    CASE WHEN pg_catalog.count(*) = 1 THEN true ELSE pgjobs.attempt_lost() END,
    (SELECT {notify_worker} FROM finished WHERE state = 'available')
FROM finished;

-- name: cancel_if_requested
-- Behind the finish of an attempt that did not complete, in the same message: somebody wanted the job cancelled while
-- it ran, so it is, and the request goes with it. One that has completed all the same stays so, and keeps the reason.
-- Not a part of finish, where the mere mention of a second table would cost every completed job a third of its finish.
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

-- name: commit
COMMIT;

-- name: commit_and_begin
-- The next transaction is like the one before, which no default of the session is asked for. A handler cannot have made
-- that another: it runs behind a savepoint.
COMMIT AND CHAIN;

-- name: reset_session
-- Whatever a handler left in the session is gone before the next job. The answer is how many named statements it
-- prepared: then the connection is better given up.
RESET SESSION AUTHORIZATION;
RESET ALL;
UNLISTEN *;
CLOSE ALL;
DISCARD TEMP;
SELECT pg_catalog.pg_advisory_unlock_all(), pg_catalog.count(*) FROM pg_catalog.pg_prepared_statement() WHERE from_sql;

-- name: server_facts
-- How long the server has been up, whether it can watch for clients that vanish while it works for them, its version, and who is at
-- the other end.
SELECT
    (EXTRACT(epoch FROM (pg_catalog.clock_timestamp() - pg_catalog.pg_postmaster_start_time())) * 1000000)::bigint,
    pg_catalog.version() ~ 'linux|darwin|apple|bsd',
    pg_catalog.current_setting('server_version_num')::integer,
    pg_catalog.pg_backend_pid();
