-- The statements that the application sends on its own connection, in its own transaction. Functions have their full
-- names, because the search_path is the application's. A delay counts from the call: the time is that of the statement,
-- not that of the transaction.
--
-- A role may have the right to enqueue and no right to read the jobs of other roles, and a right to read a column holds
-- for all rows. So these statements return args and metadata as they were sent, written as Postgres writes them, and do
-- not read them from the row. Errors, token and output of a new job are empty and are not read either.

-- name: insert_plain_job
-- One job that can run now and has no tags, no key and no time: most jobs. Columns that are missing here get their
-- default, since sending the values costs more than half of what insert_job costs. It returns what was sent, what a
-- trigger may have changed, what the caller cannot know, and the process id of the server.
INSERT INTO pgjobs.job (queue, kind, priority, max_attempts, args, metadata)
VALUES (%(queue)s, %(kind)s, %(priority)s, %(max_attempts)s, %(args)s::jsonb, %(metadata)s::jsonb)
RETURNING
    id, state, %(args)s::jsonb::text, %(metadata)s::jsonb::text, scheduled_at, created_at, queue, kind, priority,
    max_attempts, pg_catalog.pg_backend_pid(),
    {notify_worker};

-- name: insert_job
-- One job without a key. It could be sent as insert_unique_job too, but planning that takes three times as long.
INSERT INTO pgjobs.job (state, queue, kind, priority, max_attempts, args, metadata, tags, scheduled_at)
SELECT
    {initial_state},
    %(queue)s, %(kind)s, %(priority)s, %(max_attempts)s, %(args)s::jsonb, %(metadata)s::jsonb, %(tags)s::text[], due
FROM ({moment}) AS moment
RETURNING
    id, state, queue, kind, priority, attempt, max_attempts, %(args)s::jsonb AS args, %(metadata)s::jsonb AS metadata,
    '[]'::jsonb AS errors, tags, scheduled_at, created_at, attempted_at, finalized_at, attempted_by,
    NULL::uuid AS token, leased_until, NULL::jsonb AS output,
    {notify_due};

-- name: insert_unique_job
-- One job with a key. If it is not inserted, another job has the key.
WITH new_job AS MATERIALIZED (
    SELECT
        pending, due, pgjobs.unique_key(%(kind)s, %(queue)s, %(args)s::jsonb, due, %(uniqueness)s::jsonb) AS key
    FROM ({moment}) AS moment
), inserted AS (
    INSERT INTO pgjobs.job (
        state, queue, kind, priority, max_attempts, args, metadata, tags, scheduled_at, unique_key, unique_states)
    SELECT
        {initial_state},
        %(queue)s, %(kind)s, %(priority)s, %(max_attempts)s, %(args)s::jsonb, %(metadata)s::jsonb, %(tags)s::text[],
        due, key, pgjobs.unique_states(%(uniqueness)s::jsonb)
    FROM new_job
    ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL AND state = ANY (unique_states) DO NOTHING
    RETURNING
        id, state, queue, kind, priority, attempt, max_attempts, tags, scheduled_at, created_at, attempted_at,
        finalized_at, attempted_by, leased_until
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, %(args)s::jsonb AS args, %(metadata)s::jsonb AS metadata,
    '[]'::jsonb AS errors, tags, scheduled_at, created_at, attempted_at, finalized_at, attempted_by,
    NULL::uuid AS token, leased_until, NULL::jsonb AS output,
    key, {may_read},
    CASE WHEN id IS NOT NULL THEN {notify_due} END
FROM new_job LEFT JOIN inserted ON true;

-- name: insert_jobs
-- Several jobs, with and without keys: one array for each column. They are inserted in the order of their keys, which
-- is the same in every process, so that two batches never wait for each other. Their ids are drawn first, so that ids
-- rise in the order of the call. Of several jobs with one key the first is inserted; for a job that has a duplicate
-- only its key comes back. No array holds a null, because a session can be set to read the word as text.
WITH new_jobs AS MATERIALIZED (
    SELECT column_values.*, moment.due, CASE WHEN uniqueness <> ''
            THEN pgjobs.unique_key(kind, queue, args::jsonb, moment.due, uniqueness::jsonb) END AS key,
        pg_catalog.nextval('pgjobs.job_id_seq') AS new_id
    FROM ROWS FROM (
        pg_catalog.unnest(%(pending)s::boolean[]), pg_catalog.unnest(%(queues)s::text[]),
        pg_catalog.unnest(%(kinds)s::text[]), pg_catalog.unnest(%(priorities)s::smallint[]),
        pg_catalog.unnest(%(max_attempts)s::integer[]), pg_catalog.unnest(%(args)s::text[]),
        pg_catalog.unnest(%(metadata)s::text[]), pg_catalog.unnest(%(tags)s::text[]),
        pg_catalog.unnest(%(timed)s::boolean[]), pg_catalog.unnest(%(scheduled_at)s::timestamptz[]),
        pg_catalog.unnest(%(delays)s::interval[]),
        pg_catalog.unnest(%(uniqueness)s::text[])
    ) WITH ORDINALITY AS column_values(
        pending, queue, kind, priority, max_attempts, args, metadata, tags, timed, scheduled_at, delay, uniqueness,
        place),
    LATERAL (
        SELECT CASE WHEN timed THEN scheduled_at ELSE (pg_catalog.statement_timestamp() + delay) END AS due) AS moment
), inserted AS (
    INSERT INTO pgjobs.job (
        id, state, queue, kind, priority, max_attempts, args, metadata, tags, scheduled_at, unique_key, unique_states)
    OVERRIDING SYSTEM VALUE
    SELECT
        new_id,
        {initial_state},
        queue, kind, priority, max_attempts, args::jsonb, metadata::jsonb, tags::text[], due, key,
        CASE WHEN uniqueness <> '' THEN pgjobs.unique_states(uniqueness::jsonb) END
    FROM new_jobs
    ORDER BY key, place
    ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL AND state = ANY (unique_states) DO NOTHING
    RETURNING
        id, state, queue, kind, priority, attempt, max_attempts, tags, scheduled_at, created_at, attempted_at,
        finalized_at, attempted_by, leased_until
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, sent_args::jsonb AS args, sent_metadata::jsonb AS metadata,
    '[]'::jsonb AS errors, tags, scheduled_at, created_at, attempted_at, finalized_at, attempted_by,
    NULL::uuid AS token, leased_until, NULL::jsonb AS output,
    key, (SELECT {may_read}),
    {notify_due}
FROM (SELECT place, key, new_id, args AS sent_args, metadata AS sent_metadata FROM new_jobs) AS sent
    LEFT JOIN inserted ON id = new_id
ORDER BY place;

-- name: duplicates
-- The jobs that have these keys now. It is a statement of its own, because the snapshot of the insert does not show a
-- job that was committed while the insert waited for it. The keys are sent in binary form, since the quoting of the
-- text form depends on a setting of the session.
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output,
    unique_key
FROM pgjobs.job
WHERE unique_key = ANY (%(keys)b::bytea[]) AND state = ANY (unique_states);

-- name: duplicates_unread
-- The same for a role that may not read args, metadata, errors, token and output.
{select_unread},
    unique_key
FROM pgjobs.job
WHERE unique_key = ANY (%(keys)b::bytea[]) AND state = ANY (unique_states);

-- name: replace_duplicate
-- Changes the job that has the key to what the newer call says, if the job still waits. The client sends only the
-- assignments that the call names, each of which stands under its comment: a role may have no right to write or read
-- the other columns. Metadata is merged key by key. A new time also moves the job between available and scheduled.
WITH moment AS (
    {moment}
), replaced AS (
    UPDATE pgjobs.job SET
        -- replace args
        args = %(args)s::jsonb,
        -- replace priority
        priority = %(priority)s::smallint,
        -- replace max_attempts
        max_attempts = GREATEST(%(max_attempts)s::integer, LEAST(attempt, 2147483646) + 1),
        -- replace tags
        tags = %(tags)s::text[],
        -- replace metadata
        metadata = {job_metadata} || %(metadata)s::jsonb,
        -- replace scheduled_at
        scheduled_at = due,
        state = CASE
            WHEN state = 'pending' THEN state
            WHEN due <= pg_catalog.statement_timestamp() THEN 'available'
            WHEN state = 'available' THEN 'scheduled'
            ELSE state END
        -- replaced
    FROM moment
    WHERE unique_key = %(key)b AND state = ANY (unique_states)
        AND state = ANY ('{available,scheduled,pending,retryable}')
    RETURNING
        id, state, queue, kind, priority, attempt, max_attempts, tags, scheduled_at, created_at, attempted_at,
        finalized_at, attempted_by, leased_until
)
{select_unread},
    {notify_due}
FROM replaced;

-- name: read_replaced
-- The columns that replace_duplicate does not read, for a role that may read them.
SELECT args, metadata, errors, token, output FROM pgjobs.job WHERE id = %(id)s AND queue = %(queue)s;

-- name: prepare_copy
-- What a COPY needs to know: the time that counts as now, whether row security forbids a COPY, and ids.
SELECT
    pg_catalog.statement_timestamp(),
    pg_catalog.row_security_active('pgjobs.job'),
    ARRAY(SELECT pg_catalog.nextval('pgjobs.job_id_seq') FROM pg_catalog.generate_series(1, %(jobs)s::integer));

-- name: copy_with_ids
-- Three times as fast as any INSERT, but a COPY returns no rows and cannot skip a duplicate: for jobs without a key.
COPY pgjobs.job (
    id, created_at, scheduled_at, state, args, queue, kind, priority, max_attempts, metadata, tags
) FROM STDIN (FORMAT binary);

-- name: copy_due_now
-- Jobs without a time of their own: id, state and times are the defaults of the table.
COPY pgjobs.job (args, queue, kind, priority, max_attempts, metadata, tags) FROM STDIN (FORMAT binary);

-- name: copy_timed
-- Jobs with a time, or pending.
COPY pgjobs.job (
    created_at, scheduled_at, state, args, queue, kind, priority, max_attempts, metadata, tags
) FROM STDIN (FORMAT binary);

-- name: notify_copied
-- Sends after a COPY the notifications that the INSERTs above send with their rows. One row stands for all available
-- jobs of a queue, and one for the scheduled job that is due first. With more than 100 queues each is notified at once:
-- notify_worker locks each queue, and the lock table of the server has no room for very many locks.
SELECT CASE
        WHEN state = 'available' AND pg_catalog.cardinality(%(queues)s::text[]) > 100
            THEN pg_catalog.pg_notify(%(channel)s, queue)
        ELSE {notify_due} END
FROM ROWS FROM (
    pg_catalog.unnest(%(queues)s::text[]), pg_catalog.unnest(%(states)s::text[]),
    pg_catalog.unnest(%(times)s::timestamptz[])
) AS copied(queue, state, scheduled_at);
