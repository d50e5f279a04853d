-- Texts that several statements share: `{matches}` in a statement stands for the text of the part of that name.

-- part: matches
-- Whether a job fits a filter. The client sends only the conditions that the filter has: see `without_unused` of
-- pgjobs/db/statements.py. A single state is compared with =, so that the order of an index can be used.
(%(ids)s::bigint[] IS NULL OR job.id = ANY (%(ids)s::bigint[]))
    AND (%(kinds)s::text[] IS NULL OR job.kind = ANY (%(kinds)s::text[]))
    AND (%(queues)s::text[] IS NULL OR job.queue = ANY (%(queues)s::text[]))
    AND (%(states)s::text[] IS NULL OR CASE
        WHEN pg_catalog.cardinality(%(states)s::text[]) = 1 THEN job.state = (%(states)s::text[])[1]
        ELSE job.state = ANY (%(states)s::text[]) END)
    AND (%(priorities)s::smallint[] IS NULL OR job.priority = ANY (%(priorities)s::smallint[]))
    AND (%(tags_any)s::text[] IS NULL OR job.tags && %(tags_any)s::text[])
    AND (%(tags_all)s::text[] IS NULL OR job.tags @> %(tags_all)s::text[])
    AND (%(metadata)s::jsonb IS NULL OR job.metadata @> %(metadata)s::jsonb)
    AND (%(args)s::jsonb IS NULL OR job.args @> %(args)s::jsonb)
    AND (%(created_after)s::timestamptz IS NULL OR job.created_at >= %(created_after)s::timestamptz)
    AND (%(created_before)s::timestamptz IS NULL OR job.created_at < %(created_before)s::timestamptz)
    AND (%(scheduled_after)s::timestamptz IS NULL OR job.scheduled_at >= %(scheduled_after)s::timestamptz)
    AND (%(scheduled_before)s::timestamptz IS NULL OR job.scheduled_at < %(scheduled_before)s::timestamptz)
    AND (%(attempted_after)s::timestamptz IS NULL OR job.attempted_at >= %(attempted_after)s::timestamptz)
    AND (%(attempted_before)s::timestamptz IS NULL OR job.attempted_at < %(attempted_before)s::timestamptz)
    AND (%(finalized_after)s::timestamptz IS NULL OR job.finalized_at >= %(finalized_after)s::timestamptz)
    AND (%(finalized_before)s::timestamptz IS NULL OR job.finalized_at < %(finalized_before)s::timestamptz)

-- part: next_batch
-- The next batch of jobs for a call that changes many: in the order of their ids, without jobs that were enqueued after
-- the call began, and without finished jobs unless the call includes them. Two queues may have jobs with the same id,
-- and ids that were written by hand may be negative.
SELECT job.id, job.queue FROM pgjobs.job
    WHERE {matches}
        AND (%(over)s::boolean OR job.state <> ALL ('{completed,cancelled,discarded}'))
        AND (%(after)s::bigint IS NULL OR (job.id >= %(after)s::bigint
            AND (job.id > %(after)s::bigint OR job.queue > %(after_queue)s::text)))
        AND job.id <= %(newest)s::bigint
        AND (%(among)s::bigint[] IS NULL OR (job.id = ANY (%(among)s::bigint[])
            AND pg_catalog.concat(job.id, ' ', job.queue) = ANY (%(names)s::text[])))
    ORDER BY job.id, job.queue
    LIMIT %(batch)s::integer

-- part: queue_priorities
-- Each queue and priority in which jobs are available, found by jumps through the index, without reading the jobs in
-- between.
SELECT queue, priority FROM (
        SELECT queue, priority FROM pgjobs.job WHERE state = 'available' ORDER BY queue, priority LIMIT 1) AS first
    UNION ALL
    SELECT next.queue, next.priority FROM line, LATERAL (
        SELECT job.queue, job.priority FROM pgjobs.job
        WHERE job.state = 'available' AND (job.queue, job.priority) > (line.queue, line.priority)
        ORDER BY job.queue, job.priority LIMIT 1) AS next

-- part: notify_worker
-- Notifies the queue if a worker sleeps: a sleeping worker has the advisory lock of its queue. If this transaction gets
-- the lock, no worker sleeps, and it sends no notification, which would make all commits of the server wait for each
-- other. It keeps the lock to its end, so that no worker falls asleep before it can see the job.
CASE WHEN NOT pg_catalog.pg_try_advisory_xact_lock_shared(pgjobs.advisory_class(), pg_catalog.hashtext(queue))
        THEN pg_catalog.pg_notify(%(channel)s, queue) END

-- part: notify_due
-- Sends the notification of a job that was inserted or changed: to a worker of its queue if it can run now; to
-- maintenance if it is due before maintenance would look for it. Postgres delivers one at most for each queue and
-- commit.
CASE
        WHEN NOT %(notify)s THEN NULL
        WHEN state = 'available' THEN {notify_worker}
        WHEN state = ANY ('{scheduled,retryable}')
            AND scheduled_at < (pg_catalog.statement_timestamp() + interval '2 seconds')
            THEN pg_catalog.pg_notify(%(channel)s, ' due')
    END

-- part: moment
-- When a job that is being enqueued is due: at the time given, or after the delay.
SELECT %(pending)s::boolean AS pending,
        COALESCE(%(scheduled_at)s::timestamptz, pg_catalog.statement_timestamp() + %(delay)s::interval) AS due

-- part: initial_state
-- The state of a new job. pgjobs/enqueuing/copy_rows.py decides the same for jobs that go by COPY.
CASE WHEN pending THEN 'pending' WHEN due > pg_catalog.statement_timestamp() THEN 'scheduled' ELSE 'available' END

-- part: select_unread
-- Selects all columns of a job in their order, with nulls for those that not every role may read.
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, NULL::jsonb AS args, NULL::jsonb AS metadata,
    NULL::jsonb AS errors, tags, scheduled_at, created_at, attempted_at, finalized_at, attempted_by,
    NULL::uuid AS token, leased_until, NULL::jsonb AS output

-- part: may_read
-- Whether the role may read all columns of a job: also those that say what other roles enqueued and what came of it.
pg_catalog.has_column_privilege('pgjobs.job', 'args', 'SELECT')
        AND pg_catalog.has_column_privilege('pgjobs.job', 'metadata', 'SELECT')
        AND pg_catalog.has_column_privilege('pgjobs.job', 'errors', 'SELECT')
        AND pg_catalog.has_column_privilege('pgjobs.job', 'token', 'SELECT')
        AND pg_catalog.has_column_privilege('pgjobs.job', 'output', 'SELECT')

-- part: selected
-- Leaves out the rows that are set aside, and restricts a retry to some rows. Both values are constants to the planner,
-- which drops the conditions when they are null.
(%(set_aside)s::bigint[] IS NULL OR job.id <> ALL (%(set_aside)s::bigint[]))
        AND (%(among)s::bigint[] IS NULL OR job.id = ANY (%(among)s::bigint[]))

-- part: due_jobs
-- Due jobs, locked. `contested`: the job has a unique key that does not hold in its present state, so another job may
-- have taken the key.
SELECT id, queue, scheduled_at, unique_key IS NOT NULL AND (state = ANY (unique_states)) IS NOT TRUE AS contested
    FROM pgjobs.job
    WHERE state = ANY ('{scheduled,retryable}') AND scheduled_at <= pg_catalog.statement_timestamp() AND {selected}
    ORDER BY scheduled_at
    LIMIT %(batch)s
    FOR NO KEY UPDATE SKIP LOCKED

-- part: next_due_job
-- Microseconds until the next waiting job is due. Times that no client can read are left out: infinity has no distance.
SELECT (EXTRACT(epoch FROM (pg_catalog.min(scheduled_at) - pg_catalog.clock_timestamp())) * 1000000)::bigint
FROM pgjobs.job
WHERE state = ANY ('{scheduled,retryable}')
    AND scheduled_at >= '0001-01-03 UTC'::timestamptz AND scheduled_at <= '9999-12-30 UTC'::timestamptz
    AND (%(set_aside)s::bigint[] IS NULL OR job.id <> ALL (%(set_aside)s::bigint[]))

-- part: job_metadata
-- The metadata of a job, to add to. An UPDATE by hand may have written another JSON value, which is dropped.
(CASE WHEN pg_catalog.jsonb_typeof(job.metadata) = 'object' THEN job.metadata ELSE '{}'::jsonb END)

-- part: claimed_at
-- When a running job was claimed. A time in the future was written by hand, or under a wrong clock.
(CASE WHEN attempted_at > (pg_catalog.clock_timestamp() + interval '1 day') THEN '-infinity'::timestamptz
            ELSE COALESCE(attempted_at, created_at) END)

-- part: vanished_jobs
-- Running jobs whose worker has vanished: their row has no lock, or their lease is over. A lease without an end was
-- written by hand; the worker, if it lives, extends it within a day, which gives it an end. If the last attempt is of
-- a kind that this process does not know, others have a day to rescue it, unless a cancel request waits for it.
SELECT id, queue, token, attempted_by[pg_catalog.array_upper(attempted_by, 1)] AS worker,
        %(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[]) AS known,
        (pg_catalog.pg_column_size(errors) + pg_catalog.pg_column_size(metadata)
            + pg_catalog.pg_column_size(attempted_by))::bigint AS bytes
    FROM pgjobs.job
    WHERE state = 'running' AND CASE
        WHEN leased_until IS NULL THEN {claimed_at} < (pg_catalog.clock_timestamp() - %(grace)s::interval)
        WHEN leased_until > '9999-12-30 UTC'::timestamptz
            THEN {claimed_at} < (pg_catalog.clock_timestamp() - interval '1 day')
        ELSE leased_until < pg_catalog.clock_timestamp() END
        AND (attempt < max_attempts OR %(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[])
            OR {claimed_at} < (pg_catalog.clock_timestamp() - interval '1 day')
            OR EXISTS (SELECT FROM pgjobs.cancel_request WHERE job_id = job.id AND cancel_request.queue = job.queue
                AND (cancel_request.token = job.token OR (cancel_request.token IS NULL AND job.token IS NULL))))
        AND {selected}
    ORDER BY id
    LIMIT %(batch)s
    FOR NO KEY UPDATE SKIP LOCKED

-- part: stale_requests
-- Cancel requests whose attempt has ended.
SELECT request.id, request.job_id, request.queue, request.requested_at, request.reason, job.token,
        COALESCE(job.state = ANY ('{available,scheduled,retryable,pending}'), false) AS waits,
        COALESCE(job.state = 'running', false) AS runs
    FROM pgjobs.cancel_request AS request
    LEFT JOIN pgjobs.job ON job.id = request.job_id AND job.queue = request.queue
    WHERE (job.id IS NULL OR job.state <> 'running' OR job.token <> request.token
            OR (job.token IS NULL) <> (request.token IS NULL))
        AND (%(set_aside)s::bigint[] IS NULL OR request.job_id <> ALL (%(set_aside)s::bigint[]))
        AND (%(among)s::bigint[] IS NULL OR request.job_id = ANY (%(among)s::bigint[]))
    LIMIT %(batch)s
    FOR UPDATE OF request SKIP LOCKED

-- part: old_jobs
-- Finished jobs older than their retention: of one queue, or of all queues but some.
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

-- part: undated_jobs
-- Finished jobs without an end, or with one in the future. They are found by the index of finished jobs.
SELECT id, queue FROM pgjobs.job
    WHERE id = ANY (ARRAY(
            (SELECT id FROM pgjobs.job
                WHERE state = ANY ('{completed,cancelled,discarded}') AND finalized_at IS NULL AND {selected}
                LIMIT %(batch)s)
            UNION ALL
            (SELECT id FROM pgjobs.job
                WHERE state = ANY ('{completed,cancelled,discarded}')
                    AND finalized_at > (pg_catalog.clock_timestamp() + interval '1 day') AND {selected}
                LIMIT %(batch)s)))
        AND state = ANY ('{completed,cancelled,discarded}')
        AND (finalized_at IS NULL OR finalized_at > (pg_catalog.clock_timestamp() + interval '1 day'))
    FOR NO KEY UPDATE SKIP LOCKED

-- part: next_ended
-- The next finished jobs of a state in the order of the index, of all queues, from a position on.
SELECT id, queue, finalized_at FROM pgjobs.job
    WHERE state = %(state)s
        AND finalized_at < (pg_catalog.clock_timestamp() - %(keep)s::interval)
        AND finalized_at >= COALESCE(%(after)s::timestamptz, '-infinity')
        AND (finalized_at > COALESCE(%(after)s::timestamptz, '-infinity') OR id > %(after_id)s::bigint)
    ORDER BY finalized_at, id
    LIMIT %(batch)s

-- part: old_of_seen
-- Of the jobs that were just read, those whose retention is over, locked.
SELECT job.id, job.queue FROM seen JOIN pgjobs.job ON job.id = seen.id AND job.queue = seen.queue
    WHERE (%(queue)s::text IS NULL OR seen.queue = %(queue)s::text) AND seen.queue <> ALL (%(others)s::text[])
        AND job.state = %(state)s AND job.finalized_at = seen.finalized_at AND {selected}
    FOR UPDATE OF job SKIP LOCKED

-- part: select_job
-- The columns of a job, in the order in which Python reads them.
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output

-- part: select_without_args
-- The same for a role that may not read what args, errors and outputs say.
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, NULL::jsonb AS args, metadata, '[]'::jsonb AS errors, tags,
    scheduled_at, created_at, attempted_at, finalized_at, attempted_by, token, leased_until, NULL::jsonb AS output

-- part: progress_row
-- The row of the running attempt of a job. None of a job that does not run: a row that an earlier attempt has left has
-- another token.
FROM pgjobs.job_progress WHERE job.state = 'running' AND job_id = job.id AND job_progress.token = job.token

-- part: progress
-- What the running attempt of a job has said of its progress, as JSON, whose form depends on no setting, or null.
(SELECT pg_catalog.jsonb_build_array(done, total, note, (EXTRACT(epoch FROM updated_at) * 1000000)::bigint)
    {progress_row})

-- part: progress_without_note
(SELECT pg_catalog.jsonb_build_array(done, total, NULL, (EXTRACT(epoch FROM updated_at) * 1000000)::bigint)
    {progress_row})

-- part: page
-- One page of jobs, from the cursor on. The order is a constant to the planner, which removes the branches of the
-- others.
FROM pgjobs.job
WHERE {matches}
    -- a job without an end has no place in this order; maintenance will give it one
    AND CASE WHEN pg_catalog.starts_with(%(order)s::text, 'finalized_at') THEN finalized_at IS NOT NULL ELSE true END
    AND CASE
        WHEN %(after_id)s::bigint IS NULL THEN true
        WHEN %(order)s::text = 'id up' THEN id > %(after_id)s::bigint
        WHEN %(order)s::text = 'id down' THEN id < %(after_id)s::bigint
        WHEN %(order)s::text = 'scheduled_at up'
            THEN (scheduled_at, id) > (%(after_time)s::timestamptz, %(after_id)s::bigint)
        WHEN %(order)s::text = 'scheduled_at down'
            THEN (scheduled_at, id) < (%(after_time)s::timestamptz, %(after_id)s::bigint)
        WHEN %(order)s::text = 'finalized_at up'
            THEN (finalized_at, id) > (%(after_time)s::timestamptz, %(after_id)s::bigint)
        WHEN %(order)s::text = 'finalized_at down'
            THEN (finalized_at, id) < (%(after_time)s::timestamptz, %(after_id)s::bigint)
        WHEN %(order)s::text = 'attempted_at up'
            THEN (COALESCE(attempted_at, created_at), id) > (%(after_time)s::timestamptz, %(after_id)s::bigint)
        WHEN %(order)s::text = 'attempted_at down'
            THEN (COALESCE(attempted_at, created_at), id) < (%(after_time)s::timestamptz, %(after_id)s::bigint)
        END
ORDER BY
    CASE WHEN %(order)s::text = 'scheduled_at up' THEN scheduled_at END,
    CASE WHEN %(order)s::text = 'scheduled_at down' THEN scheduled_at END DESC,
    CASE WHEN %(order)s::text = 'finalized_at up' THEN finalized_at END,
    CASE WHEN %(order)s::text = 'finalized_at down' THEN finalized_at END DESC,
    CASE WHEN %(order)s::text = 'attempted_at up' THEN COALESCE(attempted_at, created_at) END,
    CASE WHEN %(order)s::text = 'attempted_at down' THEN COALESCE(attempted_at, created_at) END DESC,
    CASE WHEN pg_catalog.right(%(order)s::text, 3) = ' up' THEN id END,
    CASE WHEN pg_catalog.right(%(order)s::text, 5) = ' down' THEN id END DESC
LIMIT %(limit)s::integer

-- part: by_time
ORDER BY
    CASE WHEN %(order)s::text = 'scheduled_at up' THEN job.scheduled_at END,
    CASE WHEN %(order)s::text = 'scheduled_at up' THEN job.id END,
    CASE WHEN %(order)s::text = 'scheduled_at down' THEN job.scheduled_at END DESC,
    CASE WHEN %(order)s::text = 'scheduled_at down' THEN job.id END DESC
LIMIT %(limit)s::integer

-- part: page_of_line
-- One page of the available jobs of a queue and priority, by their time.
FROM pgjobs.job
WHERE job.state = 'available' AND job.queue = line.queue AND job.priority = line.priority
    AND {matches}
    AND CASE
        WHEN %(after_id)s::bigint IS NULL THEN true
        WHEN %(order)s::text = 'scheduled_at up'
            THEN (job.scheduled_at, job.id) > (%(after_time)s::timestamptz, %(after_id)s::bigint)
        ELSE (job.scheduled_at, job.id) < (%(after_time)s::timestamptz, %(after_id)s::bigint) END
{by_time}

-- part: one_meant
-- False for a call about one id that two queues have: it changes neither job.
(NOT %(single)s::boolean OR (SELECT pg_catalog.count(*) FROM seen) = 1)

-- part: changeable
-- The jobs of the CTE `seen` in a state that the action changes. The filter is applied again, to the row as it is when
-- its lock is had.
(job.id = ANY (ARRAY(SELECT seen.id FROM seen))
        AND EXISTS (SELECT FROM seen WHERE seen.id = job.id AND seen.queue = job.queue)
        AND {matches} AND job.state = ANY (%(from_states)s::text[]) AND {one_meant})

-- part: select_key
-- For a change to the state `next.state`: whether the job has to get its unique key first, and whether another job has
-- the key.
SELECT job.id, job.queue, unique_key, next.state, next.unfit,
        (job.state = ANY (unique_states)) IS NOT TRUE AND next.state = ANY (unique_states) AS needs_key, EXISTS (
            SELECT FROM pgjobs.job AS duplicate
            WHERE duplicate.unique_key = job.unique_key AND duplicate.state = ANY (duplicate.unique_states)
                AND (duplicate.id, duplicate.queue) <> (job.id, job.queue)) AS key_taken

-- part: key_conflicts
-- When several jobs of a batch need the same key, the oldest one gets it.
SELECT id, queue, state, unfit, needs_key AND (
        key_taken OR pg_catalog.row_number() OVER (PARTITION BY unique_key, needs_key ORDER BY id) > 1) AS conflict
    FROM locked

-- part: allowed
-- The locked jobs that the action may change.
(job.id = checked.id AND job.queue = checked.queue AND checked.unfit IS NOT TRUE AND checked.conflict IS NOT TRUE)

-- part: control_results
-- What an action did to each job of `seen`; sql/control.sql explains the results.
SELECT 'done' AS result, changed.* FROM changed
    UNION ALL
    SELECT CASE
        WHEN job.state = 'running' THEN 'running'
        WHEN NOT (job.state = ANY (%(from_states)s::text[])) THEN 'unchanged'
        WHEN checked.unfit THEN 'unfit'
        WHEN checked.conflict THEN 'conflict'
        ELSE 'busy' END, job.*
    FROM seen JOIN pgjobs.job ON job.id = seen.id AND job.queue = seen.queue
        LEFT JOIN checked ON checked.id = seen.id AND checked.queue = seen.queue
    WHERE NOT EXISTS (SELECT FROM changed WHERE changed.id = seen.id AND changed.queue = seen.queue)

-- part: error_class
-- The class of the last error of a job: the first word of the last traceback that is not indented. Of an error without a
-- traceback, its first words, for those who may see them.
(COALESCE(
    pg_catalog.substring(
        pg_catalog.split_part(job.errors -> -1 ->> 'trace', 'Traceback (most recent call last):', -1),
        '\n([A-Za-z_][A-Za-z0-9_.]*)'),
    CASE WHEN %(any_error)s::boolean
        THEN pg_catalog.rtrim(pg_catalog.substring(job.errors -> -1 ->> 'error', '^[^:;(\n0-9]{1,80}')) END,
    ''))

-- part: fits_search
-- Whether a job fits the conditions of a search, beside those of a filter: the class of its last error, and a text
-- anywhere in it.
(%(error)s::text IS NULL OR {error_class} = %(error)s::text)
    AND (%(text)s::text IS NULL OR pg_catalog.strpos(
        pg_catalog.lower(pg_catalog.concat_ws(' ', job.kind, job.queue, job.tags, job.args, job.metadata, job.errors,
            job.output)),
        pg_catalog.lower(%(text)s::text)) > 0)

-- part: in_range
(%(first)s::bigint IS NULL OR job.id >= %(first)s::bigint)
    AND (%(last)s::bigint IS NULL OR job.id <= %(last)s::bigint)

-- part: add_to_figures
-- Adds to a row of figures that is there already.
ON CONFLICT (minute, queue, kind) DO UPDATE SET
        completed = known.completed + EXCLUDED.completed,
        failed = known.failed + EXCLUDED.failed,
        discarded = known.discarded + EXCLUDED.discarded,
        cancelled = known.cancelled + EXCLUDED.cancelled,
        snoozed = known.snoozed + EXCLUDED.snoozed,
        interrupted = known.interrupted + EXCLUDED.interrupted,
        run_seconds = known.run_seconds + EXCLUDED.run_seconds,
        wait_seconds = known.wait_seconds + EXCLUDED.wait_seconds,
        run_counts = known.run_counts + EXCLUDED.run_counts,
        wait_counts = known.wait_counts + EXCLUDED.wait_counts
