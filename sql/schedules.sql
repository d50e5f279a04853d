-- Durable cron. Any process may tick a due schedule: one statement enqueues the job and moves next_tick_at on.

-- name: due_schedules
-- First result: the schedules that have something to do now: a tick, a run by hand, or a first next_tick_at to compute.
-- A schedule of code is for the processes whose code has it, in this version or a newer one. If next_tick_at must be
-- computed, it comes after the returned instant: created_at for a new schedule, now for one whose spec has changed.
-- Second result: how long until the next schedule is due; null if none ever is.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = '5s';
SET LOCAL statement_timeout = '30s';
SET LOCAL lock_timeout = '5s';
SET LOCAL DateStyle = ISO;
SELECT
    name, spec, zone, catch_up, (EXTRACT(epoch FROM "window") * 1000000)::bigint, next_tick_at, run_now_at,
    paused_at IS NOT NULL, in_code AND args IS NULL,
    next_tick_at IS NOT NULL AND planned_for = (COALESCE(spec, '') || ' ' || zone),
    CASE WHEN planned_for IS NULL AND last_tick_at IS NULL THEN created_at ELSE pg_catalog.clock_timestamp() END,
    pg_catalog.clock_timestamp()
FROM pgjobs.schedule
WHERE {due_schedule} AND (%(only)s::text IS NULL OR name = %(only)s::text)
ORDER BY LEAST(run_now_at, next_tick_at) NULLS FIRST
LIMIT %(batch)s;
SELECT (EXTRACT(epoch FROM (pg_catalog.min(next_tick_at) - pg_catalog.clock_timestamp())) * 1000000)::bigint
FROM pgjobs.schedule
WHERE (NOT in_code OR (%(versions)s::jsonb ->> name)::integer >= version) AND name <> ALL (%(left_out)s::text[]);
COMMIT;

-- name: names_of_due_schedules
-- For when due_schedules fails because of the values in a row.
SELECT name FROM pgjobs.schedule
WHERE {due_schedule}
ORDER BY LEAST(run_now_at, next_tick_at) NULLS FIRST
LIMIT %(batch)s;

-- name: tick
-- Enqueues the job of one tick, if `wanted`, and moves the schedule on: both or neither, and only if the row is still
-- as it was when the process planned the tick. So any number of processes may try. Kind, args and options come from the
-- row unless code has computed them. If the job has a duplicate, no job is inserted and the schedule moves on.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = '5s';
SET LOCAL statement_timeout = '30s';
SET LOCAL lock_timeout = '5s';
SET LOCAL DateStyle = ISO;
WITH locked AS MATERIALIZED (
    SELECT name, COALESCE(%(kind)s, kind) AS kind, COALESCE(%(args)s::jsonb, args, '{}') AS args,
        COALESCE(%(options)s::jsonb, options, '{}') AS options
    FROM pgjobs.schedule
    WHERE name = %(name)s AND (next_tick_at = %(seen_next)s::timestamptz
            OR (next_tick_at IS NULL AND %(seen_next)s::timestamptz IS NULL))
        AND (run_now_at = %(seen_run_now)s::timestamptz
            OR (run_now_at IS NULL AND %(seen_run_now)s::timestamptz IS NULL))
        AND (spec = %(spec)s::text OR (spec IS NULL AND %(spec)s::text IS NULL))
        AND zone = %(zone)s AND (paused_at IS NOT NULL) = %(paused)s
    FOR NO KEY UPDATE SKIP LOCKED
), moved AS (
    UPDATE pgjobs.schedule SET
        next_tick_at = %(next)s::timestamptz,
        planned_for = COALESCE(spec, '') || ' ' || zone,
        last_tick_at = COALESCE(%(last)s::timestamptz, last_tick_at),
        run_now_at = CASE WHEN %(ran_now)s THEN NULL ELSE run_now_at END,
        error = %(error)s
    FROM locked WHERE schedule.name = locked.name
    RETURNING locked.*
), inserted AS (
    INSERT INTO pgjobs.job (
        state, queue, kind, priority, max_attempts, args, metadata, tags, scheduled_at, schedule, tick, unique_key,
        unique_states)
    SELECT
        CASE WHEN (options ->> 'pending')::boolean THEN 'pending'
            WHEN moment.due > pg_catalog.statement_timestamp() THEN 'scheduled' ELSE 'available' END,
        COALESCE(options ->> 'queue', 'default'),
        kind,
        COALESCE((options ->> 'priority')::smallint, 0),
        COALESCE((options ->> 'max_attempts')::integer, 25),
        args,
        COALESCE(options -> 'metadata', '{}') || pg_catalog.jsonb_build_object(
            'periodic', true, 'schedule', name, 'tick', %(tick_text)s::text),
        ARRAY(SELECT pg_catalog.jsonb_array_elements_text(COALESCE(options -> 'tags', '[]'))),
        moment.due,
        name,
        %(tick)s::timestamptz,
        CASE WHEN options ->> 'uniqueness' IS NOT NULL THEN pgjobs.unique_key(
            kind, COALESCE(options ->> 'queue', 'default'), args, moment.due, options -> 'uniqueness') END,
        CASE WHEN options ->> 'uniqueness' IS NOT NULL THEN pgjobs.unique_states(options -> 'uniqueness') END
    FROM moved, LATERAL (SELECT COALESCE(
        (options ->> 'scheduled_at')::timestamptz,
        %(tick)s::timestamptz + COALESCE(options ->> 'delay', '0')::interval) AS due) AS moment
    WHERE %(wanted)s
    ON CONFLICT DO NOTHING
    RETURNING id, queue, state
)
SELECT id, queue, CASE
    WHEN state = 'available' THEN {notify_worker}
    WHEN state = 'scheduled' THEN pg_catalog.pg_notify(%(channel)s, ' due') END
FROM moved LEFT JOIN inserted ON true;
COMMIT;

-- name: write_schedule_error
-- Why a schedule cannot tick. Not written again while it is the same.
UPDATE pgjobs.schedule SET error = %(error)s WHERE name = %(name)s AND (error <> %(error)s OR error IS NULL);

-- name: begin_registration
-- Returns the time: new schedules tick first after it. READ COMMITTED, so that each of the following statements sees
-- what other processes have committed.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '10s';
SET LOCAL idle_in_transaction_session_timeout = '10s';
SELECT (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint;

-- name: register_schedule
-- Inserts the row if there is none, and locks it: a second process waits here, then sees what the first has written.
INSERT INTO pgjobs.schedule (
    name, kind, spec, zone, args, options, catch_up, "window", in_code, version, registered, planned_for, next_tick_at,
    seen_at)
VALUES (
    %(name)s, %(kind)s, %(spec)s, %(zone)s, %(args)s::jsonb, %(options)s::jsonb, %(catch_up)s, %(window)s::interval,
    true, %(version)s, %(registered)s::jsonb, COALESCE(%(spec)s, '') || ' ' || %(zone)s, %(next)s::timestamptz,
    pg_catalog.clock_timestamp())
ON CONFLICT (name) DO UPDATE SET seen_at = pg_catalog.clock_timestamp();
-- A higher version replaces the definition; the same version does so if its definition differs from the registered one;
-- a lower version changes nothing.
UPDATE pgjobs.schedule SET
    kind = %(kind)s, spec = %(spec)s, zone = %(zone)s, args = %(args)s::jsonb, options = %(options)s::jsonb,
    catch_up = %(catch_up)s, "window" = %(window)s::interval, in_code = true, version = %(version)s,
    registered = %(registered)s::jsonb, planned_for = COALESCE(%(spec)s, '') || ' ' || %(zone)s, error = NULL,
    next_tick_at = CASE WHEN spec = %(spec)s::text AND zone = %(zone)s THEN next_tick_at ELSE %(next)s::timestamptz END,
    updated_at = pg_catalog.statement_timestamp()
WHERE name = %(name)s AND (version < %(version)s
    OR (version = %(version)s AND (NOT in_code OR registered <> %(registered)s::jsonb OR registered IS NULL)));
-- run_on_start: only if no other live process has the schedule.
UPDATE pgjobs.schedule SET run_now_at = pg_catalog.statement_timestamp()
WHERE name = %(name)s AND %(run_on_start)s AND run_now_at IS NULL AND version <= %(version)s AND NOT EXISTS (
    SELECT FROM pgjobs.scheduler
    WHERE id <> %(scheduler)s AND name = ANY (schedules)
        AND scheduler.seen_at > (pg_catalog.clock_timestamp() - %(dead_after)s::interval));

-- name: scheduler_heartbeat
-- Writes that this process is alive and has these schedules. Deletes the rows of dead processes, and schedules that no
-- live process has had for long. Returns whether the process had a row: if not, the tables have been emptied.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = '5s';
SET LOCAL statement_timeout = '30s';
SET LOCAL lock_timeout = '5s';
SELECT EXISTS (SELECT FROM pgjobs.scheduler WHERE id = %(scheduler)s);
INSERT INTO pgjobs.scheduler (id, worker, schedules, seen_at)
VALUES (%(scheduler)s, %(worker)s, %(names)s::text[], pg_catalog.clock_timestamp())
ON CONFLICT (id) DO UPDATE SET schedules = excluded.schedules, seen_at = excluded.seen_at;
DELETE FROM pgjobs.scheduler WHERE seen_at < (pg_catalog.clock_timestamp() - interval '1 day');
UPDATE pgjobs.schedule SET seen_at = pg_catalog.clock_timestamp() WHERE name = ANY (
    SELECT name FROM pgjobs.schedule
    WHERE name = ANY (%(names)s::text[]) AND seen_at < (pg_catalog.clock_timestamp() - interval '1 hour')
    FOR NO KEY UPDATE SKIP LOCKED);
DELETE FROM pgjobs.schedule
WHERE seen_at < (pg_catalog.clock_timestamp() - %(prune_after)s::interval) AND NOT EXISTS (
    SELECT FROM pgjobs.scheduler WHERE name = ANY (schedules)
        AND scheduler.seen_at > (pg_catalog.clock_timestamp() - %(dead_after)s::interval));
COMMIT;

-- name: register_scheduler
-- As in scheduler_heartbeat, but within the transaction that registers schedules.
INSERT INTO pgjobs.scheduler (id, worker, schedules, seen_at)
VALUES (%(scheduler)s, %(worker)s, %(names)s::text[], pg_catalog.clock_timestamp())
ON CONFLICT (id) DO UPDATE SET schedules = excluded.schedules, seen_at = excluded.seen_at;

-- name: deregister_scheduler
-- When a worker pool stops.
DELETE FROM pgjobs.scheduler WHERE id = %(scheduler)s;

-- ----- client.schedules: on the caller's connection and in the caller's transaction

-- name: schedules_now
-- A schedule that is added by hand ticks first after this instant.
SELECT pg_catalog.clock_timestamp();

-- name: list_schedules
-- All schedules, or the one of this name.
SELECT
    name, kind, spec, zone, args, options, catch_up, "window", paused_at, next_tick_at, last_tick_at, run_now_at, error,
    in_code, version, created_at, updated_at
FROM pgjobs.schedule WHERE %(name)s::text IS NULL OR name = %(name)s::text ORDER BY name;

-- name: add_schedule
-- Inserts nothing if the name is taken.
INSERT INTO pgjobs.schedule (
    name, kind, spec, zone, args, options, catch_up, "window", version, planned_for, next_tick_at, run_now_at)
VALUES (
    %(name)s::text, %(kind)s::text, %(spec)s::text, %(zone)s::text, %(args)s::jsonb, %(options)s::jsonb,
    %(catch_up)s::text, %(window)s::interval, %(version)s::integer, %(spec)s::text || ' ' || %(zone)s::text,
    %(next)s::timestamptz, CASE WHEN %(run_on_start)s::boolean THEN pg_catalog.statement_timestamp() END)
ON CONFLICT (name) DO NOTHING
RETURNING name;

-- name: change_schedule
-- A null leaves the column as it is. planned_for says of which spec and zone next_tick_at is the next tick. If that is
-- not what the row has after all, as after two changes at once, the process that ticks next computes next_tick_at.
UPDATE pgjobs.schedule SET
    kind = COALESCE(%(kind)s::text, kind),
    spec = COALESCE(%(spec)s::text, spec),
    zone = COALESCE(%(zone)s::text, zone),
    args = COALESCE(%(args)s::jsonb, args),
    options = COALESCE(%(options)s::jsonb, options),
    catch_up = COALESCE(%(catch_up)s::text, catch_up),
    "window" = CASE WHEN %(set_window)s::boolean THEN %(window)s::interval ELSE "window" END,
    planned_for = CASE WHEN %(next)s::timestamptz IS NULL THEN planned_for ELSE %(planned_for)s::text END,
    next_tick_at = COALESCE(%(next)s::timestamptz, next_tick_at),
    error = NULL,
    updated_at = pg_catalog.statement_timestamp()
WHERE name = %(name)s::text
RETURNING name;

-- name: pause_schedule
-- If it is paused already, paused_at stays.
UPDATE pgjobs.schedule SET
    paused_at = COALESCE(paused_at, pg_catalog.statement_timestamp()), updated_at = pg_catalog.statement_timestamp()
WHERE name = %(name)s::text
RETURNING name;

-- name: resume_schedule
-- The ticks of the pause are not made up: a paused schedule is moved on at each tick, without a job.
UPDATE pgjobs.schedule SET paused_at = NULL, updated_at = pg_catalog.statement_timestamp()
WHERE name = %(name)s::text
RETURNING name;

-- name: remove_schedule
-- The jobs that it has enqueued stay.
DELETE FROM pgjobs.schedule WHERE name = %(name)s::text RETURNING name;

-- name: run_schedule_now
-- The process that ticks next enqueues the job, since only code may be able to compute its args. A second call before
-- that changes nothing.
UPDATE pgjobs.schedule SET run_now_at = COALESCE(run_now_at, pg_catalog.statement_timestamp())
WHERE name = %(name)s::text
RETURNING name;
