-- The table of the fixed floor: the job table as it was on 2026-11-30 (commit 6a6119a), with its domains, CHECKs and
-- indexes, in a schema of its own.
--
-- Never change a file of this directory when the tables or statements of pgjobs change. What pgjobs needs is measured
-- over this floor, and figures of different versions can be compared only because the floor stays the same. A test
-- compares the files with their digests.
CREATE SCHEMA fixed_floor;

CREATE DOMAIN fixed_floor.job_state AS text CONSTRAINT job_state CHECK (VALUE IN (
    'available', 'scheduled', 'pending', 'running', 'retryable', 'completed', 'cancelled', 'discarded'));
CREATE DOMAIN fixed_floor.queue_name AS text CONSTRAINT job_names CHECK (pg_catalog.length(VALUE) BETWEEN 1 AND 64);
CREATE DOMAIN fixed_floor.kind_name AS text CONSTRAINT job_names CHECK (pg_catalog.length(VALUE) BETWEEN 1 AND 128);
CREATE DOMAIN fixed_floor.instant AS timestamptz
    CONSTRAINT job_times CHECK (VALUE BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC');
CREATE DOMAIN fixed_floor.attempts AS integer CONSTRAINT job_attempt CHECK (VALUE >= 0);
CREATE DOMAIN fixed_floor.attempt_limit AS integer CONSTRAINT job_attempt CHECK (VALUE >= 1);
CREATE DOMAIN fixed_floor.texts AS text[]
    CONSTRAINT job_arrays CHECK (pg_catalog.array_position(VALUE, NULL) IS NULL);
CREATE DOMAIN fixed_floor.covered_states AS text[] CONSTRAINT job_unique_covers CHECK (
    VALUE @> ARRAY['available', 'pending', 'running', 'scheduled']);
CREATE DOMAIN fixed_floor.json_object AS jsonb CONSTRAINT job_json CHECK (pg_catalog.jsonb_typeof(VALUE) = 'object');
CREATE DOMAIN fixed_floor.json_array AS jsonb CONSTRAINT job_json CHECK (pg_catalog.jsonb_typeof(VALUE) = 'array');

CREATE TABLE fixed_floor.job (
    id            bigint GENERATED ALWAYS AS IDENTITY,
    scheduled_at  fixed_floor.instant NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    created_at    fixed_floor.instant NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    attempted_at  fixed_floor.instant,
    finalized_at  fixed_floor.instant,
    leased_until  fixed_floor.instant,
    token         uuid,
    attempt       fixed_floor.attempts      NOT NULL DEFAULT 0,
    max_attempts  fixed_floor.attempt_limit NOT NULL DEFAULT 25,
    priority      smallint                  NOT NULL DEFAULT 0,
    state         fixed_floor.job_state     NOT NULL DEFAULT 'available',
    queue         fixed_floor.queue_name    NOT NULL DEFAULT 'default',
    kind          fixed_floor.kind_name     NOT NULL,
    tags          fixed_floor.texts         NOT NULL DEFAULT '{}',
    attempted_by  fixed_floor.texts         NOT NULL DEFAULT '{}',
    unique_key    bytea,
    unique_states fixed_floor.covered_states,
    args          fixed_floor.json_object   NOT NULL DEFAULT '{}',
    metadata      fixed_floor.json_object   NOT NULL DEFAULT '{}',
    errors        fixed_floor.json_array    NOT NULL DEFAULT '[]',
    output        jsonb,
    schedule      text,
    tick          timestamptz,
    PRIMARY KEY (id, queue),
    CONSTRAINT job_finalized CHECK ((finalized_at IS NOT NULL) = (state ~ '^[cd]')),
    CONSTRAINT job_has_attempts_left CHECK (
        attempt + (finalized_at IS NULL AND state <> 'running')::integer <= max_attempts),
    CONSTRAINT job_unique_states CHECK ((unique_key IS NULL) = (unique_states IS NULL))
) WITH (
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 1
);

CREATE INDEX job_fetch ON fixed_floor.job (queue, priority, scheduled_at, id) WHERE state = 'available';
CREATE INDEX job_due ON fixed_floor.job (scheduled_at) WHERE state IN ('scheduled', 'retryable');
CREATE INDEX job_running ON fixed_floor.job (token) WHERE state = 'running';
CREATE INDEX job_final ON fixed_floor.job (state, finalized_at) WHERE finalized_at IS NOT NULL;
CREATE UNIQUE INDEX job_unique ON fixed_floor.job (unique_key)
    WHERE unique_key IS NOT NULL AND state = ANY (unique_states);
CREATE UNIQUE INDEX job_tick ON fixed_floor.job (schedule, tick) WHERE schedule IS NOT NULL;

-- What a handler writes that inserts one row.
CREATE TABLE fixed_floor.effect (job bigint NOT NULL);
