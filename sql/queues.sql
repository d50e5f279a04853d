-- What there is to say about queues. A row of the table stands for a queue that a worker works, or has lately; a queue in
-- which jobs wait or run is one without that too. Functions are named in full: the search_path may be the caller's.

-- name: list_queues
WITH RECURSIVE line AS (
    {lines}
), named AS (
    SELECT name FROM pgjobs.queue
    UNION SELECT queue FROM line
    UNION SELECT queue FROM pgjobs.job WHERE state = 'running'
)
SELECT
    named.name, paused_at, updated_at,
    pg_catalog.date_part('epoch', keep_completed),
    pg_catalog.date_part('epoch', keep_cancelled),
    pg_catalog.date_part('epoch', keep_discarded)
FROM named LEFT JOIN pgjobs.queue ON queue.name = named.name
ORDER BY named.name;

-- name: queue_figures
-- Of the queues that are named, or of all. Every part reads the index of its state alone; those that wait are counted in
-- that of the fetch, where the oldest of each priority stands first.
WITH RECURSIVE line AS (
    {lines}
), waiting AS (
    SELECT line.queue, pg_catalog.sum(these.jobs)::bigint AS jobs, pg_catalog.min(these.since) AS since
    FROM line, LATERAL (
        SELECT pg_catalog.count(*) AS jobs, pg_catalog.min(scheduled_at) AS since FROM pgjobs.job
        WHERE state = 'available' AND job.queue = line.queue AND job.priority = line.priority) AS these
    WHERE %(names)s::text[] IS NULL OR line.queue = ANY (%(names)s::text[])
    GROUP BY line.queue
), running AS (
    SELECT queue, pg_catalog.count(*) AS jobs FROM pgjobs.job WHERE state = 'running' GROUP BY queue
), ended AS (
    SELECT queue,
        pg_catalog.count(*) FILTER (WHERE state = 'completed') AS done,
        pg_catalog.count(*) FILTER (WHERE state = 'discarded') AS failed
    FROM pgjobs.job
    WHERE state = ANY ('{completed,discarded}')
        AND finalized_at > (pg_catalog.statement_timestamp() - interval '1 minute')
    GROUP BY queue
), named AS (
    SELECT name FROM pgjobs.queue WHERE %(names)s::text[] IS NULL
    UNION SELECT queue FROM line WHERE %(names)s::text[] IS NULL
    UNION SELECT queue FROM running WHERE %(names)s::text[] IS NULL
    UNION SELECT name FROM pg_catalog.unnest(%(names)s::text[]) AS asked (name)
)
SELECT
    named.name,
    paused_at,
    COALESCE(waiting.jobs, 0),
    COALESCE(running.jobs, 0),
    -- one that is available before its time does not wait yet
    CASE WHEN waiting.since IS NOT NULL
        THEN GREATEST(pg_catalog.statement_timestamp() - waiting.since, interval '0') END,
    COALESCE(ended.done, 0),
    COALESCE(ended.failed, 0),
    (SELECT pg_catalog.count(*) FROM pgjobs.worker
        WHERE pg_catalog.jsonb_exists(queues, named.name)
            AND seen_at > (pg_catalog.statement_timestamp() - interval '2 minutes'))
FROM named
    LEFT JOIN pgjobs.queue ON queue.name = named.name
    LEFT JOIN waiting ON waiting.queue = named.name
    LEFT JOIN running ON running.queue = named.name
    LEFT JOIN ended ON ended.queue = named.name
ORDER BY named.name;

-- name: pause_queues
-- Whether they are paused or not from now on: the claims that begin after the commit see it. The row of a queue that only
-- jobs know is made. Pausing what is paused changes nothing. What somebody else holds is told as busy.
WITH RECURSIVE line AS (
    {lines}
), named AS (
    SELECT name FROM pgjobs.queue
    UNION SELECT queue FROM line
    UNION SELECT queue FROM pgjobs.job WHERE state = 'running'
), seen AS (
    SELECT name FROM named WHERE %(name)s::text IS NULL OR name = %(name)s::text
), free AS MATERIALIZED (
    SELECT name FROM pgjobs.queue
    WHERE %(name)s::text IS NULL OR name = %(name)s::text
    FOR NO KEY UPDATE SKIP LOCKED
), changed AS (
    UPDATE pgjobs.queue SET
        paused_at = CASE WHEN %(paused)s::boolean THEN COALESCE(paused_at, pg_catalog.statement_timestamp()) END,
        updated_at = pg_catalog.statement_timestamp()
    FROM free WHERE queue.name = free.name
    RETURNING queue.name, paused_at, updated_at, keep_completed, keep_cancelled, keep_discarded
), made AS (
    INSERT INTO pgjobs.queue (name, paused_at)
    SELECT name, CASE WHEN %(paused)s::boolean THEN pg_catalog.statement_timestamp() END
    FROM seen WHERE NOT (name = ANY (SELECT name FROM pgjobs.queue))
    ORDER BY name
    ON CONFLICT DO NOTHING
    RETURNING name, paused_at, updated_at, keep_completed, keep_cancelled, keep_discarded
), answer AS (
    SELECT * FROM changed
    UNION ALL
    SELECT * FROM made
)
SELECT
    seen.name, answer.paused_at, answer.updated_at,
    pg_catalog.date_part('epoch', answer.keep_completed),
    pg_catalog.date_part('epoch', answer.keep_cancelled),
    pg_catalog.date_part('epoch', answer.keep_discarded),
    answer.name IS NULL AS busy,
    CASE WHEN NOT %(paused)s::boolean AND answer.name IS NOT NULL THEN {called} END
FROM seen LEFT JOIN answer ON answer.name = seen.name, LATERAL (SELECT seen.name AS queue) AS resumed
ORDER BY seen.name;

-- name: paused_queues
-- In one row at least, which says when this is so.
SELECT pg_catalog.statement_timestamp(), name, paused_at
FROM (SELECT 1) AS always LEFT JOIN pgjobs.queue ON paused_at IS NOT NULL;

-- name: update_queue
-- How long its jobs are kept. No row comes back when somebody else has that of the queue.
WITH free AS MATERIALIZED (
    SELECT name FROM pgjobs.queue WHERE name = %(name)s::text FOR NO KEY UPDATE SKIP LOCKED
), changed AS (
    UPDATE pgjobs.queue SET
        keep_completed = CASE WHEN %(set_completed)s::boolean THEN %(keep_completed)s::interval
            ELSE queue.keep_completed END,
        keep_cancelled = CASE WHEN %(set_cancelled)s::boolean THEN %(keep_cancelled)s::interval
            ELSE queue.keep_cancelled END,
        keep_discarded = CASE WHEN %(set_discarded)s::boolean THEN %(keep_discarded)s::interval
            ELSE queue.keep_discarded END
    FROM free WHERE queue.name = free.name
    RETURNING queue.name, paused_at, updated_at, keep_completed, keep_cancelled, keep_discarded
), made AS (
    INSERT INTO pgjobs.queue (name, keep_completed, keep_cancelled, keep_discarded)
    SELECT %(name)s::text, %(keep_completed)s::interval, %(keep_cancelled)s::interval, %(keep_discarded)s::interval
    WHERE NOT EXISTS (SELECT FROM pgjobs.queue WHERE name = %(name)s::text)
    ON CONFLICT DO NOTHING
    RETURNING name, paused_at, updated_at, keep_completed, keep_cancelled, keep_discarded
), answer AS (
    SELECT * FROM changed
    UNION ALL
    SELECT * FROM made
)
SELECT
    name, paused_at, updated_at,
    pg_catalog.date_part('epoch', keep_completed),
    pg_catalog.date_part('epoch', keep_cancelled),
    pg_catalog.date_part('epoch', keep_discarded)
FROM answer;

-- name: own_retention
SELECT
    name,
    pg_catalog.date_part('epoch', keep_completed),
    pg_catalog.date_part('epoch', keep_cancelled),
    pg_catalog.date_part('epoch', keep_discarded)
FROM pgjobs.queue
WHERE keep_completed IS NOT NULL OR keep_cancelled IS NOT NULL OR keep_discarded IS NOT NULL
ORDER BY name;

-- name: keep_queues
-- Said by a worker of the queues that it works. A row that somebody is just pausing is fresh enough; those who make the
-- same rows make them in the same order, and so never wait for each other in a circle.
WITH mine AS (
    SELECT name FROM pg_catalog.unnest(%(names)s::text[]) AS mine (name)
), made AS (
    INSERT INTO pgjobs.queue (name) SELECT name FROM mine WHERE NOT (name = ANY (SELECT name FROM pgjobs.queue))
    ORDER BY name
    ON CONFLICT DO NOTHING
), free AS MATERIALIZED (
    SELECT name FROM pgjobs.queue WHERE name = ANY (SELECT name FROM mine) FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE pgjobs.queue SET updated_at = pg_catalog.statement_timestamp()
FROM free WHERE queue.name = free.name;

-- name: forget_queues
-- Those that no worker has worked for a day; what is paused stays so, and what says how long its jobs are kept. Where
-- jobs wait the queue is still known by them.
DELETE FROM pgjobs.queue WHERE name = ANY (
    SELECT name FROM pgjobs.queue
    WHERE paused_at IS NULL AND updated_at < (pg_catalog.statement_timestamp() - interval '1 day')
        AND keep_completed IS NULL AND keep_cancelled IS NULL AND keep_discarded IS NULL
    FOR UPDATE SKIP LOCKED);

-- name: leave_queues
-- Who leaves them may have given jobs back, for which somebody else is to look.
SELECT {called} FROM pg_catalog.unnest(%(names)s::text[]) AS queue;
