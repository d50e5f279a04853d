-- What the application runs on its own connection, inside its own transaction. Functions are named in full: the
-- search_path is the application's. The time is that of the statement, not of the transaction, so that a delay counts
-- from the call.

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
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output,
    {told};

-- name: insert_plain_job
-- One job that is to run now and says nothing unusual: what is not named here has its default, and what comes back is
-- what was said here, which a trigger may have changed, what the caller cannot know, and who is at the other end. Values that say nothing are the larger part of what the
-- statement above costs.
INSERT INTO pgjobs.job (queue, kind, priority, max_attempts, args, metadata)
VALUES (%(queue)s, %(kind)s, %(priority)s, %(max_attempts)s, %(args)s::jsonb, %(metadata)s::jsonb)
RETURNING
    id, state, args::text, metadata::text, scheduled_at, created_at, queue, kind, priority, max_attempts,
    pg_catalog.pg_backend_pid(),
    {called};

-- name: insert_unique_job
-- One job with a key. If it is not inserted, its twin is the answer where the statement can see it, else the key alone.
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
    RETURNING *
), answer AS (
    SELECT true AS is_new, inserted.* FROM inserted
    UNION ALL
    SELECT false, job.* FROM pgjobs.job
    WHERE unique_key = (SELECT key FROM given) AND state = ANY (unique_states) AND NOT EXISTS (SELECT FROM inserted)
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output,
    is_new, key,
    CASE WHEN is_new THEN {told} END
FROM given LEFT JOIN answer ON true;

-- name: insert_jobs
-- Any number of jobs, of which some may be unique: one array for each column. They are inserted in the order of their
-- keys, the same in every process, so that two of them never wait for each other; the ids are drawn before, so that
-- they rise in the order given. Of those with one key the first given is inserted; of a job that has a twin nothing but
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
        pending, queue, kind, priority, max_attempts, args, metadata, tags, timed, scheduled_at, delay, uniqueness, place),
    LATERAL (
        SELECT CASE WHEN timed THEN scheduled_at ELSE (pg_catalog.statement_timestamp() + delay) END AS due) AS moment
), inserted AS (
    INSERT INTO pgjobs.job (
        id, state, queue, kind, priority, max_attempts, args, metadata, tags, scheduled_at, unique_key, unique_states)
    OVERRIDING SYSTEM VALUE
    SELECT
        new_id,
        CASE WHEN pending THEN 'pending' WHEN due > pg_catalog.statement_timestamp() THEN 'scheduled' ELSE 'available' END,
        queue, kind, priority, max_attempts, args::jsonb, metadata::jsonb, tags::text[], due, key,
        CASE WHEN uniqueness <> '' THEN pgjobs.unique_states(uniqueness::jsonb) END
    FROM given
    ORDER BY key, place
    ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL AND state = ANY (unique_states) DO NOTHING
    RETURNING *
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output,
    place, key,
    {told}
FROM (SELECT place, key, new_id FROM given) AS asked LEFT JOIN inserted ON id = new_id
ORDER BY place;

-- name: twins
-- The jobs that hold these keys now. A statement of its own: one that was committed while the insert waited for it is
-- not in the insert's snapshot. Keys go in the binary form: how the other is quoted depends on a setting of the session.
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output,
    unique_key
FROM pgjobs.job
WHERE unique_key = ANY (%(keys)b::bytea[]) AND state = ANY (unique_states);

-- name: replace_twin
-- Gives the job that holds the key what a newer call says, if it still waits: what is named in `replace`, and of the
-- metadata key by key. A new time also moves it between waiting for its time and waiting for a worker.
WITH moment AS (
    SELECT COALESCE(%(scheduled_at)s::timestamptz, pg_catalog.statement_timestamp() + %(delay)s::interval) AS due
), replaced AS (
    UPDATE pgjobs.job SET
        args = CASE WHEN 'args' = ANY (%(replace)s::text[]) THEN %(args)s::jsonb ELSE args END,
        priority = CASE WHEN 'priority' = ANY (%(replace)s::text[]) THEN %(priority)s::smallint ELSE priority END,
        max_attempts = CASE WHEN 'max_attempts' = ANY (%(replace)s::text[])
            THEN GREATEST(%(max_attempts)s::integer, attempt + 1) ELSE max_attempts END,
        tags = CASE WHEN 'tags' = ANY (%(replace)s::text[]) THEN %(tags)s::text[] ELSE tags END,
        metadata = CASE WHEN 'metadata' = ANY (%(replace)s::text[]) THEN metadata || %(metadata)s::jsonb ELSE metadata END,
        scheduled_at = CASE WHEN 'scheduled_at' = ANY (%(replace)s::text[]) THEN due ELSE scheduled_at END,
        state = CASE
            WHEN state = 'pending' OR 'scheduled_at' <> ALL (%(replace)s::text[]) THEN state
            WHEN due <= pg_catalog.statement_timestamp() THEN 'available'
            WHEN state = 'available' THEN 'scheduled'
            ELSE state END
    FROM moment
    WHERE unique_key = %(key)b AND state = ANY (unique_states)
        AND state = ANY ('{available,scheduled,pending,retryable}')
    RETURNING job.*
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output,
    {told}
FROM replaced;

-- name: prepare_copy
-- What a COPY with ids needs: the ids, the time that counts as now, and whether row security would forbid it.
SELECT
    pg_catalog.statement_timestamp(),
    pg_catalog.row_security_active('pgjobs.job'),
    ARRAY(SELECT pg_catalog.nextval('pgjobs.job_id_seq') FROM pg_catalog.generate_series(1, %(jobs)s::integer));

-- name: copy_with_ids
-- Three times as fast as any INSERT, but it gives no rows back and cannot pass over a twin: for jobs without a key.
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
        ELSE {called} END
FROM pg_catalog.unnest(%(queues)s::text[]) AS queue;
