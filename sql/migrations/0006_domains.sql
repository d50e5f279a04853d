-- The rules for the values of a job move from the table to the types of its columns, and the rest is said in fewer words.
-- Postgres reads the CHECKs of a table anew from its catalog for every statement that writes to it, all of them, whatever
-- it writes: ten of them took three quarters of the time of an UPDATE of one row. A domain is looked at only where its
-- column is written. A domain gets its rule when it is in its place: so no row is written anew, only looked
-- at. A view on these columns is in the way of it: whoever has one drops it first and makes it again.

-- name: up
ALTER TABLE pgjobs.job
    DROP CONSTRAINT job_state,
    DROP CONSTRAINT job_finalized,
    DROP CONSTRAINT job_attempt,
    DROP CONSTRAINT job_has_attempts_left,
    DROP CONSTRAINT job_names,
    DROP CONSTRAINT job_json,
    DROP CONSTRAINT job_arrays,
    DROP CONSTRAINT job_times,
    DROP CONSTRAINT job_unique_covers;

CREATE DOMAIN pgjobs.job_state AS text;
CREATE DOMAIN pgjobs.queue_name AS text;
CREATE DOMAIN pgjobs.kind_name AS text;
CREATE DOMAIN pgjobs.instant AS timestamptz;
CREATE DOMAIN pgjobs.attempts AS integer;
CREATE DOMAIN pgjobs.attempt_limit AS integer;
CREATE DOMAIN pgjobs.texts AS text[];
CREATE DOMAIN pgjobs.covered_states AS text[];
CREATE DOMAIN pgjobs.json_object AS jsonb;
CREATE DOMAIN pgjobs.json_array AS jsonb;

ALTER TABLE pgjobs.job
    ALTER state TYPE pgjobs.job_state,
    ALTER queue TYPE pgjobs.queue_name,
    ALTER kind TYPE pgjobs.kind_name,
    ALTER scheduled_at TYPE pgjobs.instant,
    ALTER created_at TYPE pgjobs.instant,
    ALTER attempted_at TYPE pgjobs.instant,
    ALTER finalized_at TYPE pgjobs.instant,
    ALTER leased_until TYPE pgjobs.instant,
    ALTER attempt TYPE pgjobs.attempts,
    ALTER max_attempts TYPE pgjobs.attempt_limit,
    ALTER tags TYPE pgjobs.texts,
    ALTER attempted_by TYPE pgjobs.texts,
    ALTER unique_states TYPE pgjobs.covered_states,
    ALTER args TYPE pgjobs.json_object,
    ALTER metadata TYPE pgjobs.json_object,
    ALTER errors TYPE pgjobs.json_array;

ALTER DOMAIN pgjobs.job_state ADD CONSTRAINT job_state CHECK (VALUE IN (
    'available', 'scheduled', 'pending', 'running', 'retryable', 'completed', 'cancelled', 'discarded'));
ALTER DOMAIN pgjobs.queue_name ADD CONSTRAINT job_names CHECK (pg_catalog.length(VALUE) BETWEEN 1 AND 64);
ALTER DOMAIN pgjobs.kind_name ADD CONSTRAINT job_names CHECK (pg_catalog.length(VALUE) BETWEEN 1 AND 128);
-- the years that a client can read in every time zone: no infinity, no year 10000, nothing BC
ALTER DOMAIN pgjobs.instant ADD CONSTRAINT job_times CHECK (VALUE BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC');
ALTER DOMAIN pgjobs.attempts ADD CONSTRAINT job_attempt CHECK (VALUE >= 0);
ALTER DOMAIN pgjobs.attempt_limit ADD CONSTRAINT job_attempt CHECK (VALUE >= 1);
ALTER DOMAIN pgjobs.texts ADD CONSTRAINT job_arrays CHECK (pg_catalog.array_position(VALUE, NULL) IS NULL);
-- NOT VALID, as it was: the keys that are older may be any
ALTER DOMAIN pgjobs.covered_states ADD CONSTRAINT job_unique_covers CHECK (
    VALUE @> ARRAY['available', 'pending', 'running', 'scheduled']) NOT VALID;
ALTER DOMAIN pgjobs.json_object ADD CONSTRAINT job_json CHECK (pg_catalog.jsonb_typeof(VALUE) = 'object');
ALTER DOMAIN pgjobs.json_array ADD CONSTRAINT job_json CHECK (pg_catalog.jsonb_typeof(VALUE) = 'array');

ALTER TABLE pgjobs.job
    -- the final states, cancelled, completed and discarded, are those that begin with c or d
    ADD CONSTRAINT job_finalized CHECK ((finalized_at IS NOT NULL) = (state ~ '^[cd]')),
    ADD CONSTRAINT job_has_attempts_left CHECK (
        attempt + (finalized_at IS NULL AND state <> 'running')::integer <= max_attempts);

-- name: down
ALTER TABLE pgjobs.job
    DROP CONSTRAINT job_finalized,
    DROP CONSTRAINT job_has_attempts_left,
    ALTER state TYPE text,
    ALTER queue TYPE text,
    ALTER kind TYPE text,
    ALTER scheduled_at TYPE timestamptz,
    ALTER created_at TYPE timestamptz,
    ALTER attempted_at TYPE timestamptz,
    ALTER finalized_at TYPE timestamptz,
    ALTER leased_until TYPE timestamptz,
    ALTER attempt TYPE integer,
    ALTER max_attempts TYPE integer,
    ALTER tags TYPE text[],
    ALTER attempted_by TYPE text[],
    ALTER unique_states TYPE text[],
    ALTER args TYPE jsonb,
    ALTER metadata TYPE jsonb,
    ALTER errors TYPE jsonb;

DROP DOMAIN pgjobs.job_state, pgjobs.queue_name, pgjobs.kind_name, pgjobs.instant, pgjobs.attempts, pgjobs.attempt_limit,
    pgjobs.texts, pgjobs.covered_states, pgjobs.json_object, pgjobs.json_array;

ALTER TABLE pgjobs.job
    ADD CONSTRAINT job_state CHECK (state IN (
        'available', 'scheduled', 'pending', 'running', 'retryable', 'completed', 'cancelled', 'discarded')),
    ADD CONSTRAINT job_finalized CHECK ((finalized_at IS NOT NULL) = (state IN ('completed', 'cancelled', 'discarded'))),
    ADD CONSTRAINT job_attempt CHECK (max_attempts >= 1 AND attempt BETWEEN 0 AND max_attempts),
    ADD CONSTRAINT job_has_attempts_left CHECK (
        attempt < max_attempts OR state NOT IN ('available', 'scheduled', 'pending', 'retryable')),
    ADD CONSTRAINT job_names CHECK (
        pg_catalog.length(queue) BETWEEN 1 AND 64 AND pg_catalog.length(kind) BETWEEN 1 AND 128),
    ADD CONSTRAINT job_json CHECK (
        pg_catalog.jsonb_typeof(args) = 'object' AND pg_catalog.jsonb_typeof(metadata) = 'object'
        AND pg_catalog.jsonb_typeof(errors) = 'array'),
    ADD CONSTRAINT job_arrays CHECK (
        pg_catalog.array_position(tags, NULL) IS NULL AND pg_catalog.array_position(attempted_by, NULL) IS NULL),
    ADD CONSTRAINT job_times CHECK (
        scheduled_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND created_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND attempted_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND finalized_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND leased_until BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'),
    ADD CONSTRAINT job_unique_covers CHECK (
        unique_states @> ARRAY['available', 'pending', 'running', 'scheduled']) NOT VALID;
