-- Durable cron. A schedule's row is its duty: whoever locks it while its tick is due makes the job and moves the next
-- tick on, in one statement.

-- name: due_schedules
-- First the schedules that this process may tick and that want something now: a tick, a run by hand, or a next tick
-- computed. What code supplies is for processes whose code has it, and not an older one. A schedule that was never
-- planned is known since it was made; one whose spec has changed begins now. Then how long until one of those that want
-- nothing now will; null when none ever does.
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
WHERE (NOT in_code OR (%(mine)s::jsonb ->> name)::integer >= version) AND name <> ALL (%(aside)s::text[]);
COMMIT;

-- name: names_of_due_schedules
-- When what the rows hold cannot be read.
SELECT name FROM pgjobs.schedule
WHERE {due_schedule}
ORDER BY LEAST(run_now_at, next_tick_at) NULLS FIRST
LIMIT %(batch)s;

-- name: tick
-- Makes the job of one tick, if one is to be made, and moves the schedule on: both or neither, and only while the row
-- is as it was when that was decided, so that any number of processes may try. Nothing is held between two messages.
-- What the row has itself is used where code supplied nothing. A job that has a duplicate is not made, and the tick is over.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = '5s';
SET LOCAL statement_timeout = '30s';
SET LOCAL lock_timeout = '5s';
SET LOCAL DateStyle = ISO;
WITH held AS MATERIALIZED (
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
    FROM held WHERE schedule.name = held.name
    RETURNING held.*
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

-- name: note_schedule_error
-- Why a schedule cannot tick, for who looks; written once.
UPDATE pgjobs.schedule SET error = %(error)s WHERE name = %(name)s AND (error <> %(error)s OR error IS NULL);

-- name: begin_registration
-- The instant that new schedules count from. Each statement must see what others have committed meanwhile.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '10s';
SET LOCAL idle_in_transaction_session_timeout = '10s';
SELECT (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint;

-- name: register_schedule
-- Makes the row if there is none, and holds it. Who comes second sees below what the first has done.
INSERT INTO pgjobs.schedule (
    name, kind, spec, zone, args, options, catch_up, "window", in_code, version, registered, planned_for, next_tick_at,
    seen_at)
VALUES (
    %(name)s, %(kind)s, %(spec)s, %(zone)s, %(args)s::jsonb, %(options)s::jsonb, %(catch_up)s, %(window)s::interval, true,
    %(version)s, %(registered)s::jsonb, COALESCE(%(spec)s, '') || ' ' || %(zone)s, %(next)s::timestamptz,
    pg_catalog.clock_timestamp())
ON CONFLICT (name) DO UPDATE SET seen_at = pg_catalog.clock_timestamp();
-- What a newer deploy says wins, and between equals what was not said before; an older one changes nothing.
UPDATE pgjobs.schedule SET
    kind = %(kind)s, spec = %(spec)s, zone = %(zone)s, args = %(args)s::jsonb, options = %(options)s::jsonb,
    catch_up = %(catch_up)s, "window" = %(window)s::interval, in_code = true, version = %(version)s,
    registered = %(registered)s::jsonb, planned_for = COALESCE(%(spec)s, '') || ' ' || %(zone)s, error = NULL,
    next_tick_at = CASE WHEN spec = %(spec)s::text AND zone = %(zone)s THEN next_tick_at ELSE %(next)s::timestamptz END,
    updated_at = pg_catalog.statement_timestamp()
WHERE name = %(name)s AND (version < %(version)s
    OR (version = %(version)s AND (NOT in_code OR registered <> %(registered)s::jsonb OR registered IS NULL)));
-- The first live process that has it lets it run at once.
UPDATE pgjobs.schedule SET run_now_at = pg_catalog.statement_timestamp()
WHERE name = %(name)s AND %(run_on_start)s AND run_now_at IS NULL AND version <= %(version)s AND NOT EXISTS (
    SELECT FROM pgjobs.scheduler
    WHERE id <> %(scheduler)s AND name = ANY (schedules)
        AND scheduler.seen_at > (pg_catalog.clock_timestamp() - %(dead_after)s::interval));

-- name: beat_scheduler
-- This process lives, and has these schedules. What was in some code and has been in none for long is forgotten. The
-- answer is whether it was known: if not, somebody has emptied the tables.
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
WHERE seen_at < (pg_catalog.clock_timestamp() - %(forget_after)s::interval) AND NOT EXISTS (
    SELECT FROM pgjobs.scheduler WHERE name = ANY (schedules)
        AND scheduler.seen_at > (pg_catalog.clock_timestamp() - %(dead_after)s::interval));
COMMIT;

-- name: write_scheduler
-- The first part of beat_scheduler, inside the transaction that registers.
INSERT INTO pgjobs.scheduler (id, worker, schedules, seen_at)
VALUES (%(scheduler)s, %(worker)s, %(names)s::text[], pg_catalog.clock_timestamp())
ON CONFLICT (id) DO UPDATE SET schedules = excluded.schedules, seen_at = excluded.seen_at;

-- name: remove_scheduler
-- A worker pool that stops has its schedules no more.
DELETE FROM pgjobs.scheduler WHERE id = %(scheduler)s;

-- What people do to schedules by hand, on the caller's connection and inside its transaction.

-- name: schedules_now
-- The instant that a schedule which is added by hand counts from.
SELECT pg_catalog.clock_timestamp();

-- name: list_schedules
-- All, or the one of a name.
SELECT
    name, kind, spec, zone, args, options, catch_up, "window", paused_at, next_tick_at, last_tick_at, run_now_at, error,
    in_code, version, created_at, updated_at
FROM pgjobs.schedule WHERE %(name)s::text IS NULL OR name = %(name)s::text ORDER BY name;

-- name: add_schedule
-- Whoever is first has the name.
INSERT INTO pgjobs.schedule (
    name, kind, spec, zone, args, options, catch_up, "window", version, planned_for, next_tick_at, run_now_at)
VALUES (
    %(name)s::text, %(kind)s::text, %(spec)s::text, %(zone)s::text, %(args)s::jsonb, %(options)s::jsonb, %(catch_up)s::text,
    %(window)s::interval, %(version)s::integer, %(spec)s::text || ' ' || %(zone)s::text, %(next)s::timestamptz,
    CASE WHEN %(run_on_start)s::boolean THEN pg_catalog.statement_timestamp() END)
ON CONFLICT (name) DO NOTHING
RETURNING name;

-- name: change_schedule
-- What is null stays. Another spec or zone has another next tick, which who ticks next computes.
UPDATE pgjobs.schedule SET
    kind = COALESCE(%(kind)s::text, kind),
    spec = COALESCE(%(spec)s::text, spec),
    zone = COALESCE(%(zone)s::text, zone),
    args = COALESCE(%(args)s::jsonb, args),
    options = COALESCE(%(options)s::jsonb, options),
    catch_up = COALESCE(%(catch_up)s::text, catch_up),
    "window" = CASE WHEN %(set_window)s::boolean THEN %(window)s::interval ELSE "window" END,
    error = NULL,
    updated_at = pg_catalog.statement_timestamp()
WHERE name = %(name)s::text
RETURNING name;

-- name: pause_schedule
-- It stays paused since when it was first.
UPDATE pgjobs.schedule SET
    paused_at = COALESCE(paused_at, pg_catalog.statement_timestamp()), updated_at = pg_catalog.statement_timestamp()
WHERE name = %(name)s::text
RETURNING name;

-- name: resume_schedule
-- Its ticks went by meanwhile: who ticks moved it on.
UPDATE pgjobs.schedule SET paused_at = NULL, updated_at = pg_catalog.statement_timestamp()
WHERE name = %(name)s::text
RETURNING name;

-- name: remove_schedule
-- Its jobs stay.
DELETE FROM pgjobs.schedule WHERE name = %(name)s::text RETURNING name;

-- name: run_schedule_now
-- A wish, which who ticks next fulfils: also where code supplies the args. Twice before that is once.
UPDATE pgjobs.schedule SET run_now_at = COALESCE(run_now_at, pg_catalog.statement_timestamp())
WHERE name = %(name)s::text
RETURNING name;
