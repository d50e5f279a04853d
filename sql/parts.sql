-- What several statements have in common: `{matches}` in one of them stands for the text of the part of that name.

-- part: matches
-- Whether a job fits a filter. The values are constants to the planner, which folds away what is not asked for; what is
-- left stands there as if it had been written for this filter, so that the indexes serve it. One state is compared by
-- equality, which keeps the order of an index behind it, and the index of what is over wants to be told that it is.
(%(ids)s::bigint[] IS NULL OR job.id = ANY (%(ids)s::bigint[]))
    AND (%(kinds)s::text[] IS NULL OR job.kind = ANY (%(kinds)s::text[]))
    AND (%(queues)s::text[] IS NULL OR job.queue = ANY (%(queues)s::text[]))
    AND CASE
        WHEN %(states)s::text[] IS NULL THEN true
        WHEN pg_catalog.cardinality(%(states)s::text[]) = 1 THEN job.state = (%(states)s::text[])[1]
        ELSE job.state = ANY (%(states)s::text[]) END
    AND CASE WHEN %(states)s::text[] <@ '{completed,cancelled,discarded}' THEN job.finalized_at IS NOT NULL ELSE true END
    AND (%(priorities)s::smallint[] IS NULL OR job.priority = ANY (%(priorities)s::smallint[]))
    AND (%(tags_any)s::text[] IS NULL OR job.tags && %(tags_any)s::text[])
    AND (%(tags_all)s::text[] IS NULL OR job.tags @> %(tags_all)s::text[])
    AND (%(metadata)s::jsonb IS NULL OR job.metadata @> %(metadata)s::jsonb)
    AND (%(created_after)s::timestamptz IS NULL OR job.created_at >= %(created_after)s::timestamptz)
    AND (%(created_before)s::timestamptz IS NULL OR job.created_at < %(created_before)s::timestamptz)
    AND (%(scheduled_after)s::timestamptz IS NULL OR job.scheduled_at >= %(scheduled_after)s::timestamptz)
    AND (%(scheduled_before)s::timestamptz IS NULL OR job.scheduled_at < %(scheduled_before)s::timestamptz)
    AND (%(attempted_after)s::timestamptz IS NULL OR job.attempted_at >= %(attempted_after)s::timestamptz)
    AND (%(attempted_before)s::timestamptz IS NULL OR job.attempted_at < %(attempted_before)s::timestamptz)
    AND (%(finalized_after)s::timestamptz IS NULL OR job.finalized_at >= %(finalized_after)s::timestamptz)
    AND (%(finalized_before)s::timestamptz IS NULL OR job.finalized_at < %(finalized_before)s::timestamptz)

-- part: alone
-- Whether no other queue has a job of the same id: else a call that names the id alone does not say which it means.
NOT EXISTS (SELECT FROM pgjobs.job AS namesake WHERE namesake.id = job.id AND namesake.queue <> job.queue)

-- part: next_in_turn
-- A batch of what a call that changes many jobs has still to look at: in the order of their ids, nothing that was
-- enqueued after the call began, and nothing that is over where that does not matter. Two queues may have jobs of one
-- id, and ids that were made by hand may be of any sign.
SELECT job.id, job.queue FROM pgjobs.job
    WHERE {matches}
        AND (%(over)s::boolean OR job.finalized_at IS NULL)
        AND (%(after)s::bigint IS NULL OR (job.id >= %(after)s::bigint
            AND (job.id > %(after)s::bigint OR job.queue > %(after_queue)s::text)))
        AND job.id <= %(newest)s::bigint
        AND (%(among)s::bigint[] IS NULL OR (job.id = ANY (%(among)s::bigint[])
            AND pg_catalog.concat(job.id, ' ', job.queue) = ANY (%(names)s::text[])))
    ORDER BY job.id, job.queue
    LIMIT %(batch)s::integer

-- part: lines
-- Each queue and priority in which jobs are available, found by hopping from one to the next through the index, not past
-- the jobs in between.
SELECT queue, priority FROM (
        SELECT queue, priority FROM pgjobs.job WHERE state = 'available' ORDER BY queue, priority LIMIT 1) AS first
    UNION ALL
    SELECT next.queue, next.priority FROM line, LATERAL (
        SELECT job.queue, job.priority FROM pgjobs.job
        WHERE job.state = 'available' AND (job.queue, job.priority) > (line.queue, line.priority)
        ORDER BY job.queue, job.priority LIMIT 1) AS next

-- part: called
-- Wakes a worker of the queue, if one sleeps: the sleepers hold the lock of their queue, so that it cannot be had. If it
-- can, there is nobody to be woken, and no notification, which would let all commits of the server wait for each other.
-- It is then held to the end of the transaction, and nobody falls asleep who has not seen what that has done.
CASE WHEN NOT pg_catalog.pg_try_advisory_xact_lock_shared(pgjobs.advisory_class(), pg_catalog.hashtext(queue))
        THEN pg_catalog.pg_notify(%(channel)s, queue) END

-- part: told
-- Whom a job wakes that was inserted or changed: a worker of its queue if it can run now; maintenance if it is due sooner
-- than that looks by itself. Postgres delivers it with the commit, once per queue and transaction.
CASE
        WHEN NOT %(notify)s THEN NULL
        WHEN state = 'available' THEN {called}
        WHEN state = ANY ('{scheduled,retryable}')
            AND scheduled_at < (pg_catalog.statement_timestamp() + interval '2 seconds')
            THEN pg_catalog.pg_notify(%(channel)s, ' due')
    END

-- part: may_read
-- Whether the role may read the columns that hold what others have given a job and what came of it.
pg_catalog.has_column_privilege('pgjobs.job', 'args', 'SELECT')
        AND pg_catalog.has_column_privilege('pgjobs.job', 'metadata', 'SELECT')
        AND pg_catalog.has_column_privilege('pgjobs.job', 'errors', 'SELECT')
        AND pg_catalog.has_column_privilege('pgjobs.job', 'token', 'SELECT')
        AND pg_catalog.has_column_privilege('pgjobs.job', 'output', 'SELECT')

-- part: selected
-- What an act leaves out because it cannot be worked now, and what it is restricted to when it is done bit by bit. Both
-- are constants, which are folded away when they say nothing.
(%(aside)s::bigint[] IS NULL OR job.id <> ALL (%(aside)s::bigint[]))
        AND (%(among)s::bigint[] IS NULL OR job.id = ANY (%(among)s::bigint[]))

-- part: due_jobs
-- A key that holds in the state that the job is in cannot be lost. One that may be is contested.
SELECT id, queue, scheduled_at, unique_key IS NOT NULL AND (state = ANY (unique_states)) IS NOT TRUE AS contested
    FROM pgjobs.job
    WHERE state = ANY ('{scheduled,retryable}') AND scheduled_at <= pg_catalog.statement_timestamp() AND {selected}
    ORDER BY scheduled_at
    LIMIT %(batch)s
    FOR NO KEY UPDATE SKIP LOCKED

-- part: next_due_job
SELECT (EXTRACT(epoch FROM (pg_catalog.min(scheduled_at) - pg_catalog.clock_timestamp())) * 1000000)::bigint
FROM pgjobs.job
WHERE state = ANY ('{scheduled,retryable}') AND (%(aside)s::bigint[] IS NULL OR job.id <> ALL (%(aside)s::bigint[]))

-- part: vanished_jobs
SELECT id, queue, token, attempted_by[pg_catalog.array_upper(attempted_by, 1)] AS worker,
        %(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[]) AS known,
        (pg_catalog.pg_column_size(errors) + pg_catalog.pg_column_size(metadata)
            + pg_catalog.pg_column_size(attempted_by))::bigint AS bytes
    FROM pgjobs.job
    WHERE state = 'running' AND CASE
        WHEN leased_until IS NULL
            THEN COALESCE(attempted_at, created_at) < (pg_catalog.clock_timestamp() - %(grace)s::interval)
        ELSE leased_until < pg_catalog.clock_timestamp() END
        AND (attempt < max_attempts OR %(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[])
            OR COALESCE(attempted_at, created_at) < (pg_catalog.clock_timestamp() - interval '1 day')
            OR EXISTS (SELECT FROM pgjobs.cancel_request WHERE job_id = job.id AND cancel_request.queue = job.queue
                AND (cancel_request.token = job.token OR (cancel_request.token IS NULL AND job.token IS NULL))))
        AND {selected}
    ORDER BY id
    LIMIT %(batch)s
    FOR NO KEY UPDATE SKIP LOCKED

-- part: stale_requests
SELECT request.id, request.job_id, request.queue, request.requested_at, request.reason, job.token,
        COALESCE(job.state = ANY ('{available,scheduled,retryable,pending}'), false) AS waits,
        COALESCE(job.state = 'running', false) AS runs
    FROM pgjobs.cancel_request AS request
    LEFT JOIN pgjobs.job ON job.id = request.job_id AND job.queue = request.queue
    WHERE (job.id IS NULL OR job.state <> 'running' OR job.token <> request.token
            OR (job.token IS NULL) <> (request.token IS NULL))
        AND (%(aside)s::bigint[] IS NULL OR request.job_id <> ALL (%(aside)s::bigint[]))
        AND (%(among)s::bigint[] IS NULL OR request.job_id = ANY (%(among)s::bigint[]))
    LIMIT %(batch)s
    FOR UPDATE OF request SKIP LOCKED

-- part: old_jobs
SELECT id, queue FROM pgjobs.job
    WHERE state = %(state)s AND finalized_at < (pg_catalog.clock_timestamp() - %(keep)s::interval)
        AND (%(queue)s::text IS NULL OR queue = %(queue)s::text) AND queue <> ALL (%(others)s::text[]) AND {selected}
    ORDER BY finalized_at
    LIMIT %(batch)s
    FOR UPDATE SKIP LOCKED

-- part: due_schedule
-- A schedule that has something to do now and that this process may tick: see due_schedules.
(NOT in_code OR (%(versions)s::jsonb ->> name)::integer >= version) AND name <> ALL (%(left_out)s::text[])
    AND (next_tick_at IS NULL OR next_tick_at <= pg_catalog.clock_timestamp() OR run_now_at IS NOT NULL
        OR planned_for IS NULL OR planned_for <> (COALESCE(spec, '') || ' ' || zone))

-- part: next_ended
-- The jobs of a state that ended behind a place in the index, whosever they are.
SELECT id, queue, finalized_at FROM pgjobs.job
    WHERE state = %(state)s
        AND finalized_at < (pg_catalog.clock_timestamp() - %(keep)s::interval)
        AND finalized_at >= COALESCE(%(after)s::timestamptz, '-infinity')
        AND (finalized_at > COALESCE(%(after)s::timestamptz, '-infinity') OR id > %(after_id)s::bigint)
    ORDER BY finalized_at, id
    LIMIT %(batch)s

-- part: old_of_seen
SELECT job.id, job.queue FROM seen JOIN pgjobs.job ON job.id = seen.id AND job.queue = seen.queue
    WHERE (%(queue)s::text IS NULL OR seen.queue = %(queue)s::text) AND seen.queue <> ALL (%(others)s::text[])
        AND job.state = %(state)s AND job.finalized_at = seen.finalized_at AND {selected}
    FOR UPDATE OF job SKIP LOCKED
