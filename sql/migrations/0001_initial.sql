-- The tables of pgjobs. Every statement names the schema; nothing depends on the search_path.

-- name: up
-- One row per job, from enqueue until it is cleaned away. Wide columns last, fixed ones first, so that rows pack well.
CREATE TABLE pgjobs.job (
    id            bigint GENERATED ALWAYS AS IDENTITY,
    scheduled_at  timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    created_at    timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    attempted_at  timestamptz,
    finalized_at  timestamptz,
    leased_until  timestamptz,
    token         uuid,
    attempt       integer  NOT NULL DEFAULT 0,
    max_attempts  integer  NOT NULL DEFAULT 25,
    priority      smallint NOT NULL DEFAULT 0,
    state         text     NOT NULL DEFAULT 'available',
    queue         text     NOT NULL DEFAULT 'default',
    kind          text     NOT NULL,
    tags          text[]   NOT NULL DEFAULT '{}',
    attempted_by  text[]   NOT NULL DEFAULT '{}',
    unique_key    bytea,
    unique_states text[],
    args          jsonb    NOT NULL DEFAULT '{}',
    metadata      jsonb    NOT NULL DEFAULT '{}',
    errors        jsonb    NOT NULL DEFAULT '[]',
    output        jsonb,

    -- queue is part of every key, so that the table can be distributed by it
    PRIMARY KEY (id, queue),

    -- the CHECKs keep rows that were made by hand readable: a fetch can never meet one that it cannot return
    CONSTRAINT job_state CHECK (state IN (
        'available', 'scheduled', 'pending', 'running', 'retryable', 'completed', 'cancelled', 'discarded')),
    CONSTRAINT job_finalized CHECK ((finalized_at IS NOT NULL) = (state IN ('completed', 'cancelled', 'discarded'))),
    CONSTRAINT job_attempt CHECK (max_attempts >= 1 AND attempt BETWEEN 0 AND max_attempts),
    CONSTRAINT job_has_attempts_left CHECK (
        attempt < max_attempts OR state NOT IN ('available', 'scheduled', 'pending', 'retryable')),
    CONSTRAINT job_names CHECK (
        pg_catalog.length(queue) BETWEEN 1 AND 64 AND pg_catalog.length(kind) BETWEEN 1 AND 128),
    CONSTRAINT job_json CHECK (
        pg_catalog.jsonb_typeof(args) = 'object' AND pg_catalog.jsonb_typeof(metadata) = 'object'
        AND pg_catalog.jsonb_typeof(errors) = 'array'),
    CONSTRAINT job_arrays CHECK (
        pg_catalog.array_position(tags, NULL) IS NULL AND pg_catalog.array_position(attempted_by, NULL) IS NULL),
    -- the years that a client can read in every time zone: no infinity, no year 10000, nothing BC
    CONSTRAINT job_times CHECK (
        scheduled_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND created_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND attempted_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND finalized_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND leased_until BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'),
    CONSTRAINT job_unique_states CHECK ((unique_key IS NULL) = (unique_states IS NULL))
) WITH (
    -- a queue's table is all churn: vacuum by the thousand rows, not by the fifth of the table
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 1
);

-- Each index holds only the rows of its own question, so that a million rows elsewhere cost it nothing.
CREATE INDEX job_fetch ON pgjobs.job (queue, priority, scheduled_at, id) WHERE state = 'available';
CREATE INDEX job_due ON pgjobs.job (scheduled_at) WHERE state IN ('scheduled', 'retryable');
CREATE INDEX job_running ON pgjobs.job (token) WHERE state = 'running';
CREATE INDEX job_final ON pgjobs.job (state, finalized_at) WHERE finalized_at IS NOT NULL;
CREATE UNIQUE INDEX job_unique ON pgjobs.job (unique_key) WHERE unique_key IS NOT NULL AND state = ANY (unique_states);

CREATE TABLE pgjobs.queue (
    name       text PRIMARY KEY,
    paused_at  timestamptz,
    settings   jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    CONSTRAINT queue_name CHECK (pg_catalog.length(name) BETWEEN 1 AND 64),
    CONSTRAINT queue_settings CHECK (pg_catalog.jsonb_typeof(settings) = 'object')
);

-- One row per worker process.
CREATE TABLE pgjobs.worker (
    id         text PRIMARY KEY,
    host       text NOT NULL,
    pid        integer NOT NULL,
    queues     jsonb NOT NULL DEFAULT '{}',
    threads    integer NOT NULL,
    kinds      text[] NOT NULL DEFAULT '{}',
    version    text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    seen_at    timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp()
);

-- One row per durable cron entry; args and options are null where code supplies them at each tick.
CREATE TABLE pgjobs.schedule (
    name         text PRIMARY KEY,
    kind         text NOT NULL,
    spec         text NOT NULL,
    zone         text NOT NULL DEFAULT 'UTC',
    args         jsonb,
    options      jsonb,
    catch_up     text NOT NULL DEFAULT 'last',
    "window"     interval,
    paused_at    timestamptz,
    next_tick_at timestamptz,
    last_tick_at timestamptz,
    created_at   timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    updated_at   timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    CONSTRAINT schedule_catch_up CHECK (catch_up IN ('last', 'all', 'skip'))
);

-- A wish to cancel a job that runs: its row is locked by the worker, so the wish stands beside it. It names the attempt
-- by token; no unique key and no foreign key, which would wait for that lock.
CREATE TABLE pgjobs.cancel_request (
    job_id       bigint NOT NULL,
    queue        text NOT NULL,
    token        uuid,
    reason       text,
    requested_at timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp()
);
CREATE INDEX cancel_request_job ON pgjobs.cancel_request (job_id);

-- The duties that any process may do. Whoever locks a row that is due does its duty and moves the time on.
CREATE TABLE pgjobs.maintenance (
    duty        text PRIMARY KEY,
    next_run_at timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp()
);
INSERT INTO pgjobs.maintenance (duty) VALUES ('promote'), ('rescue'), ('clean');

-- Called by a finish that matched no row: it stops the COMMIT sent behind it. Volatile, so that no plan runs it early.
CREATE FUNCTION pgjobs.attempt_lost() RETURNS boolean LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'pgjobs: the job no longer runs under this token' USING ERRCODE = 'PJ001';
END
$$;

-- name: down
DROP FUNCTION pgjobs.attempt_lost();
DROP TABLE pgjobs.maintenance, pgjobs.cancel_request, pgjobs.schedule, pgjobs.worker, pgjobs.queue, pgjobs.job;
