-- How sleepers see to it that they are woken: session locks, on the connection of the listener alone; and what those ask
-- who poll. Nothing here waits.

-- name: listener_facts
-- Who is at the other end, and the first number of the locks.
SELECT pg_catalog.pg_backend_pid(), pgjobs.advisory_class();

-- name: stay
-- The session of the listener is idle most of its life, and to be kept; only where it is its own, not behind a pooler.
SET idle_session_timeout = 0;

-- name: take_posts
-- Of each queue: the post, which one of all processes has for the others too; and who has it, the lock that makes those
-- who enqueue notify. That cannot be had while a transaction is open that has enqueued without. A process that leaves
-- jobs to others has seen for itself alone, so the others are to look as well.
WITH tried AS MATERIALIZED (
    SELECT queue, place, CASE WHEN held THEN true
        ELSE pg_catalog.pg_try_advisory_lock((%(class)s)::integer, pg_catalog.hashtext(' post ' || queue)) END AS post
    FROM ROWS FROM (
        pg_catalog.unnest(%(queues)s::text[]), pg_catalog.unnest(%(held)s::boolean[])
    ) WITH ORDINALITY AS asked (queue, held, place)
)
SELECT
    post,
    CASE WHEN post THEN pg_catalog.pg_try_advisory_lock((%(class)s)::integer, pg_catalog.hashtext(queue)) ELSE false END,
    CASE WHEN post AND %(leaves_jobs)s THEN pg_catalog.pg_notify(%(channel)s, queue) END
FROM tried ORDER BY place;

-- name: disarm
-- Somebody has been woken: no more notifications until that one has looked.
SELECT pg_catalog.pg_advisory_unlock((%(class)s)::integer, pg_catalog.hashtext(queue))
FROM pg_catalog.unnest(%(queues)s::text[]) AS queue;

-- name: leave_posts
-- For another process to take, which is called for that.
SELECT
    CASE WHEN armed THEN pg_catalog.pg_advisory_unlock((%(class)s)::integer, pg_catalog.hashtext(queue)) END,
    pg_catalog.pg_advisory_unlock((%(class)s)::integer, pg_catalog.hashtext(' post ' || queue)),
    pg_catalog.pg_notify(%(channel)s, queue)
FROM ROWS FROM (
    pg_catalog.unnest(%(queues)s::text[]), pg_catalog.unnest(%(armed)s::boolean[])) AS mine (queue, armed);

-- name: sees_any
-- Whether a claim would find anything, or might: one that polls asks this first, as there is hardly ever anything.
SELECT EXISTS (
    SELECT FROM pgjobs.job
    WHERE state = 'available' AND queue = %(queue)s AND scheduled_at <= pg_catalog.statement_timestamp()
        AND (%(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[]))
) AND NOT EXISTS (SELECT FROM pgjobs.queue WHERE name = %(queue)s AND paused_at IS NOT NULL);
