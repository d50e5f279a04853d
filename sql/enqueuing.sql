-- What the application runs on its own connection, inside its own transaction. Functions are named in full: the
-- search_path is the application's. The time is that of the statement, not of the transaction, so that a delay counts
-- from the call.
--
-- A role that enqueues need not have the right to read what others have enqueued, and a right to read a column holds
-- for every row. So args and metadata come back from what was sent, as Postgres writes it, and not from the row;
-- errors, token and output, which a new job does not have, are not read either.

-- name: insert_job
-- One job that nothing is unique about. Said without a subquery: it is planned each time.
INSERT INTO pgjobs.job (state, queue, kind, priority, max_attempts, args, metadata, tags, scheduled_at)
VALUES (
    CASE WHEN %(pending)s THEN 'pending'
        WHEN COALESCE(%(scheduled_at)s::timestamptz, pg_catalog.statement_timestamp() + %(delay)s::interval)
            > pg_catalog.statement_timestamp() THEN 'scheduled'
        ELSE 'available' END,
    %(queue)s, %(kind)s, %(priority)s, %(max_attempts)s, %(args)s::jsonb, %(metadata)s::jsonb, %(tags)s::text[],
    COALESCE(%(scheduled_at)s::timestamptz, pg_catalog.statement_timestamp() + %(delay)s::interval))
RETURNING
    id, state, queue, kind, priority, attempt, max_attempts, %(args)s::jsonb AS args, %(metadata)s::jsonb AS metadata,
    '[]'::jsonb AS errors, tags, scheduled_at, created_at, attempted_at, finalized_at, attempted_by,
    NULL::uuid AS token, leased_until, NULL::jsonb AS output,
    {notify_due};

-- name: insert_plain_job
-- One job that is to run now and says nothing unusual: what is not named here has its default. What comes back is what
-- was sent and a trigger may have changed, what the caller cannot know, and the server's process. Values that say
-- nothing are the larger part of what the statement above costs.
INSERT INTO pgjobs.job (queue, kind, priority, max_attempts, args, metadata)
VALUES (%(queue)s, %(kind)s, %(priority)s, %(max_attempts)s, %(args)s::jsonb, %(metadata)s::jsonb)
RETURNING
    id, state, %(args)s::jsonb::text, %(metadata)s::jsonb::text, scheduled_at, created_at, queue, kind, priority,
    max_attempts, pg_catalog.pg_backend_pid(),
    {notify_worker};

-- name: insert_unique_job
-- One job with a key. If it is not inserted, another job has that key.
WITH given AS MATERIALIZED (
    SELECT due, pgjobs.unique_key(%(kind)s, %(queue)s, %(args)s::jsonb, due, %(uniqueness)s::jsonb) AS key
    FROM (
        SELECT COALESCE(%(scheduled_at)s::timestamptz, pg_catalog.statement_timestamp() + %(delay)s::interval) AS due
    ) AS moment
), inserted AS (
    INSERT INTO pgjobs.job (
        state, queue, kind, priority, max_attempts, args, metadata, tags, scheduled_at, unique_key, unique_states)
    SELECT
        CASE WHEN %(pending)s THEN 'pending' WHEN due > pg_catalog.statement_timestamp() THEN 'scheduled' ELSE 'available' END,
        %(queue)s, %(kind)s, %(priority)s, %(max_attempts)s, %(args)s::jsonb, %(metadata)s::jsonb, %(tags)s::text[], due,
        key, pgjobs.unique_states(%(uniqueness)s::jsonb)
    FROM given
    ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL AND state = ANY (unique_states) DO NOTHING
    RETURNING
        id, state, queue, kind, priority, attempt, max_attempts, tags, scheduled_at, created_at, attempted_at,
        finalized_at, attempted_by, leased_until
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, %(args)s::jsonb AS args, %(metadata)s::jsonb AS metadata,
    '[]'::jsonb AS errors, tags, scheduled_at, created_at, attempted_at, finalized_at, attempted_by,
    NULL::uuid AS token, leased_until, NULL::jsonb AS output,
    1 AS place, key, {may_read},
    CASE WHEN id IS NOT NULL THEN {notify_due} END
FROM given LEFT JOIN inserted ON true;

-- name: insert_jobs
-- Any number of jobs, of which some may be unique: one array for each column. They are inserted in the order of their
-- keys, the same in every process, so that two of them never wait for each other; the ids are drawn before, so that
-- they rise in the order given. Of those with one key the first given is inserted; of a job that has a duplicate nothing but
-- place and key come back. No array holds a null: a session may be set to read none.
WITH given AS MATERIALIZED (
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
        CASE WHEN pending THEN 'pending' WHEN due > pg_catalog.statement_timestamp() THEN 'scheduled'
            ELSE 'available' END,
        queue, kind, priority, max_attempts, args::jsonb, metadata::jsonb, tags::text[], due, key,
        CASE WHEN uniqueness <> '' THEN pgjobs.unique_states(uniqueness::jsonb) END
    FROM given
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
    place, key, (SELECT {may_read}),
    {notify_due}
FROM (SELECT place, key, new_id, args AS sent_args, metadata AS sent_metadata FROM given) AS asked
    LEFT JOIN inserted ON id = new_id
ORDER BY place;

-- name: duplicates
-- The jobs that hold these keys now. A statement of its own: one that was committed while the insert waited for it is
-- not in the insert's snapshot. Keys go in the binary form: how the other is quoted depends on a setting of the session.
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output,
    unique_key
FROM pgjobs.job
WHERE unique_key = ANY (%(keys)b::bytea[]) AND state = ANY (unique_states);

-- name: duplicates_unread
-- The same for a role that may not read all of a job: without what others have given it and what came of it.
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, NULL::jsonb AS args, NULL::jsonb AS metadata,
    NULL::jsonb AS errors, tags, scheduled_at, created_at, attempted_at, finalized_at, attempted_by,
    NULL::uuid AS token, leased_until, NULL::jsonb AS output,
    unique_key
FROM pgjobs.job
WHERE unique_key = ANY (%(keys)b::bytea[]) AND state = ANY (unique_states);

-- name: replace_duplicate
-- Gives the job that holds the key what a newer call says, if it still waits. Only the assignments that the call names
-- are sent, each of which follows its comment: a role may have no right to what the others write and read. Metadata is
-- merged key by key; a new time also moves the job between waiting for its time and waiting for a worker.
WITH moment AS (
    SELECT COALESCE(%(scheduled_at)s::timestamptz, pg_catalog.statement_timestamp() + %(delay)s::interval) AS due
), replaced AS (
    UPDATE pgjobs.job SET
        -- replace args
        args = %(args)s::jsonb,
        -- replace priority
        priority = %(priority)s::smallint,
        -- replace max_attempts
        max_attempts = GREATEST(%(max_attempts)s::integer, attempt + 1),
        -- replace tags
        tags = %(tags)s::text[],
        -- replace metadata
        metadata = metadata || %(metadata)s::jsonb,
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
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, NULL::jsonb AS args, NULL::jsonb AS metadata,
    NULL::jsonb AS errors, tags, scheduled_at, created_at, attempted_at, finalized_at, attempted_by,
    NULL::uuid AS token, leased_until, NULL::jsonb AS output,
    {notify_due}
FROM replaced;

-- name: read_replaced
-- What the statement above leaves out, for a role that may read it.
SELECT args, metadata, errors, token, output FROM pgjobs.job WHERE id = %(id)s AND queue = %(queue)s;

-- name: prepare_copy
-- What a COPY with ids needs: the ids, the time that counts as now, and whether row security would forbid it.
SELECT
    pg_catalog.statement_timestamp(),
    pg_catalog.row_security_active('pgjobs.job'),
    ARRAY(SELECT pg_catalog.nextval('pgjobs.job_id_seq') FROM pg_catalog.generate_series(1, %(jobs)s::integer));

-- name: copy_with_ids
-- Three times as fast as any INSERT, but it gives no rows back and cannot pass over a duplicate: for jobs without a key.
COPY pgjobs.job (
    id, created_at, scheduled_at, state, args, queue, kind, priority, max_attempts, metadata, tags
) FROM STDIN (FORMAT binary);

-- name: copy_due_now
-- Jobs without a time of their own: state, time and id are the table's defaults.
COPY pgjobs.job (args, queue, kind, priority, max_attempts, metadata, tags) FROM STDIN (FORMAT binary);

-- name: copy_timed
COPY pgjobs.job (
    created_at, scheduled_at, state, args, queue, kind, priority, max_attempts, metadata, tags
) FROM STDIN (FORMAT binary);

-- name: notify_queues
-- After a COPY, which cannot: each queue, or maintenance. Of very many queues each is notified: the server has not room
-- for as many locks.
SELECT CASE
        WHEN queue = ' due' OR pg_catalog.cardinality(%(queues)s::text[]) > 100
            THEN pg_catalog.pg_notify(%(channel)s, queue)
        ELSE {notify_worker} END
FROM pg_catalog.unnest(%(queues)s::text[]) AS queue;
