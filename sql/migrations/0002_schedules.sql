-- Durable cron: what a schedule needs to tick once however many processes look after it.

-- name: up
ALTER TABLE pgjobs.schedule
    -- both null where code supplies them at each tick
    ALTER COLUMN kind DROP NOT NULL,
    ALTER COLUMN spec DROP NOT NULL,
    -- registered by code: it ticks only in processes that registered it
    ADD COLUMN in_code boolean NOT NULL DEFAULT false,
    ADD COLUMN version integer NOT NULL DEFAULT 0,
    -- what code said last: what was changed by hand since then stays until code says something else
    ADD COLUMN registered jsonb,
    -- the spec and zone that next_tick_at was computed from; when they are others now, it is computed anew
    ADD COLUMN planned_for text,
    ADD COLUMN run_now_at timestamptz,
    -- when a process last said that its code has the schedule
    ADD COLUMN seen_at timestamptz,
    ADD COLUMN error text,
    -- rows that were made by hand stay readable, as those of jobs
    ADD CONSTRAINT schedule_names CHECK (
        pg_catalog.length(name) BETWEEN 1 AND 127 AND pg_catalog.length(kind) BETWEEN 1 AND 128
        AND pg_catalog.length(spec) BETWEEN 1 AND 250 AND pg_catalog.length(zone) BETWEEN 1 AND 250),
    ADD CONSTRAINT schedule_is_whole CHECK (in_code OR (kind IS NOT NULL AND spec IS NOT NULL)),
    ADD CONSTRAINT schedule_json CHECK (
        pg_catalog.jsonb_typeof(args) = 'object' AND pg_catalog.jsonb_typeof(options) = 'object'),
    ADD CONSTRAINT schedule_window CHECK ("window" BETWEEN '0' AND '100000 days'),
    ADD CONSTRAINT schedule_times CHECK (
        next_tick_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND last_tick_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND run_now_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND paused_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND created_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND updated_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC');

-- Every change by hand tells the processes that tick, whoever makes it and by whatever means; a tick tells nobody.
CREATE FUNCTION pgjobs.schedule_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('pgjobs:' || TG_TABLE_SCHEMA, ' schedule');
    RETURN NULL;
END
$$;
CREATE TRIGGER schedule_inserted AFTER INSERT ON pgjobs.schedule
    FOR EACH ROW EXECUTE FUNCTION pgjobs.schedule_changed();
CREATE TRIGGER schedule_updated AFTER UPDATE ON pgjobs.schedule
    FOR EACH ROW WHEN (
        OLD.spec IS DISTINCT FROM NEW.spec OR OLD.zone <> NEW.zone
        OR (NEW.run_now_at IS NOT NULL AND OLD.run_now_at IS DISTINCT FROM NEW.run_now_at))
    EXECUTE FUNCTION pgjobs.schedule_changed();

-- One row per worker pool that has schedules from code: who else is alive decides whether `run_on_start` runs.
CREATE TABLE pgjobs.scheduler (
    id        uuid PRIMARY KEY,
    worker    text NOT NULL,
    schedules text[] NOT NULL DEFAULT '{}',
    seen_at   timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp()
);

-- The tick that a job was made for: no second job can be.
ALTER TABLE pgjobs.job ADD COLUMN schedule text, ADD COLUMN tick timestamptz;
CREATE UNIQUE INDEX job_tick ON pgjobs.job (schedule, tick) WHERE schedule IS NOT NULL;

-- name: down
DROP INDEX pgjobs.job_tick;
ALTER TABLE pgjobs.job DROP COLUMN schedule, DROP COLUMN tick;
DROP TABLE pgjobs.scheduler;
DROP TRIGGER schedule_inserted ON pgjobs.schedule;
DROP TRIGGER schedule_updated ON pgjobs.schedule;
DROP FUNCTION pgjobs.schedule_changed();
-- code that supplies these registers them again
DELETE FROM pgjobs.schedule WHERE kind IS NULL OR spec IS NULL;
ALTER TABLE pgjobs.schedule
    DROP CONSTRAINT schedule_names,
    DROP CONSTRAINT schedule_is_whole,
    DROP CONSTRAINT schedule_json,
    DROP CONSTRAINT schedule_window,
    DROP CONSTRAINT schedule_times,
    DROP COLUMN in_code,
    DROP COLUMN version,
    DROP COLUMN registered,
    DROP COLUMN planned_for,
    DROP COLUMN run_now_at,
    DROP COLUMN seen_at,
    DROP COLUMN error,
    ALTER COLUMN kind SET NOT NULL,
    ALTER COLUMN spec SET NOT NULL;
