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
-- enqueued after the call began, and nothing that is over where that does not matter. Two queues may have jobs of one id,
-- and ids that were made by hand may be of any sign.
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
