-- What the application runs on its own connection, inside its own transaction.

-- name: insert_job
-- The time of the statement, not of the transaction, so that a delay counts from the call. Only a job that can run now
-- wakes a worker, and one that is due sooner than maintenance looks by itself wakes that; Postgres delivers the
-- notification with the commit, once per queue and transaction. Functions are named in full: the search_path is the
-- application's.
WITH inserted AS (
    INSERT INTO pgjobs.job (state, queue, kind, priority, max_attempts, args, metadata, tags, scheduled_at)
    SELECT
        CASE WHEN due > pg_catalog.statement_timestamp() THEN 'scheduled' ELSE 'available' END,
        %(queue)s, %(kind)s, %(priority)s, %(max_attempts)s, %(args)s::jsonb, %(metadata)s::jsonb, %(tags)s::text[], due
    FROM (
        SELECT COALESCE(%(scheduled_at)s::timestamptz, pg_catalog.statement_timestamp() + %(delay)s::interval) AS due
    ) AS moment
    RETURNING *
)
SELECT
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token, leased_until, output,
    CASE
        WHEN NOT %(notify)s THEN NULL
        WHEN state = 'available' THEN pg_catalog.pg_notify(%(channel)s, queue)
        WHEN scheduled_at < pg_catalog.statement_timestamp() + interval '2 seconds'
            THEN pg_catalog.pg_notify(%(channel)s, ' due')
    END
FROM inserted;
