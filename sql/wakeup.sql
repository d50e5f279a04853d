-- The session locks of the wake-up leader, which the listener's connection alone takes, and the look of a worker that
-- polls. pgjobs/wakeup/wakeup_leader.py explains the locks. No statement here waits for one.

-- name: listener_facts
-- The process id tells a pooler from the server itself.
SELECT pg_catalog.pg_backend_pid(), pgjobs.advisory_class();

-- name: disable_idle_timeout
-- The listener's session is idle most of the time. Not sent through a pooler, where the session is not the listener's.
SET idle_session_timeout = 0;

-- name: lead
-- Takes the leader's lock of each queue, unless this session has it, and then the queue's lock, which switches NOTIFY
-- on. The second cannot be had while a transaction is open that has enqueued without a NOTIFY. A process that leaves
-- jobs of unknown kinds to other processes has searched for its own kinds alone, so it wakes the others to search too.
WITH tried AS MATERIALIZED (
    SELECT queue, place, CASE
        WHEN already THEN true
        ELSE pg_catalog.pg_try_advisory_lock((%(class)s)::integer, pg_catalog.hashtext(' leader ' || queue))
        END AS leads
    FROM ROWS FROM (
        pg_catalog.unnest(%(queues)s::text[]), pg_catalog.unnest(%(leads)s::boolean[])
    ) WITH ORDINALITY AS asked (queue, already, place)
)
SELECT
    leads,
    CASE WHEN leads THEN pg_catalog.pg_try_advisory_lock((%(class)s)::integer, pg_catalog.hashtext(queue))
        ELSE false END,
    CASE WHEN leads AND %(leaves_jobs)s THEN pg_catalog.pg_notify(%(channel)s, queue) END
FROM tried ORDER BY place;

-- name: notify_off
SELECT pg_catalog.pg_advisory_unlock((%(class)s)::integer, pg_catalog.hashtext(queue))
FROM pg_catalog.unnest(%(queues)s::text[]) AS queue;

-- name: resign
-- The notification wakes the other processes, one of which leads next.
SELECT
    CASE WHEN notify_on THEN pg_catalog.pg_advisory_unlock((%(class)s)::integer, pg_catalog.hashtext(queue)) END,
    pg_catalog.pg_advisory_unlock((%(class)s)::integer, pg_catalog.hashtext(' leader ' || queue)),
    pg_catalog.pg_notify(%(channel)s, queue)
FROM ROWS FROM (
    pg_catalog.unnest(%(queues)s::text[]), pg_catalog.unnest(%(notify_on)s::boolean[])) AS led (queue, notify_on);

-- name: any_claimable
-- Cheaper than a claim, and a worker that polls hardly ever finds a job.
SELECT EXISTS (
    SELECT FROM pgjobs.job
    WHERE state = 'available' AND queue = %(queue)s AND scheduled_at <= pg_catalog.statement_timestamp()
        AND (%(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s::text[]))
) AND NOT EXISTS (SELECT FROM pgjobs.queue WHERE name = %(queue)s AND paused_at IS NOT NULL);
