-- For the tests of applications (pgjobs.testing): jobs that run inside the transaction of a test.

-- name: read_settings
-- The user, the role and the settings of a session. A custom setting of the application is not among them.
SELECT
    pg_catalog.current_setting('session_authorization'),
    pg_catalog.current_setting('role'),
    pg_catalog.jsonb_object_agg(name, setting)
FROM pg_catalog.pg_settings
WHERE context = ANY ('{user,superuser}') AND setting IS NOT NULL;

-- name: restore_settings
-- Sets back, for the rest of the transaction, what differs from `read_settings`. The user comes first: to set it resets
-- the role, and the role of a handler may not set the others.
SELECT
    pg_catalog.set_config('session_authorization', %(session_user)s, true),
    pg_catalog.set_config('role', %(role)s, true);
WITH changed AS MATERIALIZED (
    SELECT name, value
    FROM pg_catalog.pg_settings JOIN pg_catalog.jsonb_each_text(%(settings)s::jsonb) AS before (key, value)
        ON name = key
    WHERE setting <> value
)
SELECT pg_catalog.set_config(name, value, true) FROM changed;

-- name: waiting_jobs
-- The jobs that could run now, or at their time, in the order in which workers claim them.
SELECT id, queue FROM pgjobs.job
WHERE state = ANY ('{available,scheduled,retryable}') AND (%(queue)s::text IS NULL OR queue = %(queue)s::text)
    AND (%(with_scheduled)s OR scheduled_at <= pg_catalog.clock_timestamp())
ORDER BY priority, scheduled_at, id;

-- name: travel
-- Moves the instants of all jobs and schedules into the past: what is due after that time is due now.
UPDATE pgjobs.job SET
    scheduled_at = scheduled_at - %(by)s::interval,
    created_at = created_at - %(by)s::interval,
    attempted_at = attempted_at - %(by)s::interval,
    finalized_at = finalized_at - %(by)s::interval,
    leased_until = leased_until - %(by)s::interval;
UPDATE pgjobs.schedule SET
    next_tick_at = next_tick_at - %(by)s::interval,
    last_tick_at = last_tick_at - %(by)s::interval,
    created_at = created_at - %(by)s::interval;

-- name: clear
-- Deletes what a test that commits has left. The bookkeeping rows of maintenance and migrations stay.
DELETE FROM pgjobs.job;
DELETE FROM pgjobs.cancel_request;
DELETE FROM pgjobs.job_progress;
DELETE FROM pgjobs.schedule;
DELETE FROM pgjobs.scheduler;
DELETE FROM pgjobs.worker;
DELETE FROM pgjobs.queue;
