-- The tables of pgjobs. Every statement names the schema; none depends on the search_path.

-- name: up
-- The one type of our own: no statement can write another state. It costs an UPDATE of the state half a microsecond.
CREATE DOMAIN pgjobs.job_state AS text CONSTRAINT job_state CHECK (VALUE IN (
    'available', 'scheduled', 'pending', 'running', 'retryable', 'completed', 'cancelled', 'discarded'));
-- A role that may use a type may make operators for it, which a search_path can put before those of Postgres.
REVOKE USAGE ON DOMAIN pgjobs.job_state FROM PUBLIC;

-- One row per job, from enqueue until it is pruned. Columns of fixed width stand first, so that rows pack well. The
-- table has no CHECK: Postgres reads a CHECK anew from its catalog in every statement, and three of them cost a claim
-- and a finish 12 microseconds, a third of what they cost without. The trigger `job_rules` checks new rows instead.
CREATE TABLE pgjobs.job (
    id            bigint GENERATED ALWAYS AS IDENTITY,
    scheduled_at  timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    created_at    timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    attempted_at  timestamptz,
    finalized_at  timestamptz,
    leased_until  timestamptz,
    tick          timestamptz,
    token         uuid,
    attempt       integer          NOT NULL DEFAULT 0,
    max_attempts  integer          NOT NULL DEFAULT 25,
    priority      smallint         NOT NULL DEFAULT 0,
    state         pgjobs.job_state NOT NULL DEFAULT 'available',
    queue         text             NOT NULL DEFAULT 'default',
    kind          text             NOT NULL,
    tags          text[]           NOT NULL DEFAULT '{}',
    attempted_by  text[]           NOT NULL DEFAULT '{}',
    unique_key    bytea,
    unique_states text[],
    args          jsonb            NOT NULL DEFAULT '{}',
    metadata      jsonb            NOT NULL DEFAULT '{}',
    errors        jsonb            NOT NULL DEFAULT '[]',
    output        jsonb,
    schedule      text,

    -- The queue is part of the key, so that the table can be distributed by queue.
    PRIMARY KEY (id, queue)
) WITH (
    -- Every row of a queue is written several times: vacuum by the thousand rows, not by a fifth of the table.
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 1
);

-- Each index holds only the rows of its own question, so that a million rows in other states cost it nothing.
CREATE INDEX job_fetch ON pgjobs.job (queue, priority, scheduled_at, id) WHERE state = 'available';
CREATE INDEX job_due ON pgjobs.job (scheduled_at) WHERE state IN ('scheduled', 'retryable');
CREATE INDEX job_running ON pgjobs.job (token) WHERE state = 'running';
CREATE INDEX job_final ON pgjobs.job (state, finalized_at) WHERE state IN ('completed', 'cancelled', 'discarded');
CREATE UNIQUE INDEX job_unique ON pgjobs.job (unique_key) WHERE unique_key IS NOT NULL AND state = ANY (unique_states);
-- One job per tick of a schedule.
CREATE UNIQUE INDEX job_tick ON pgjobs.job (schedule, tick) WHERE schedule IS NOT NULL;

-- Refuses a new job that no client could read or no worker could work, and such values in an UPDATE of columns that
-- claims and finishes leave alone. An UPDATE of the other columns is not checked, because that would cost every job:
-- the statements that read these columns cope with any value.
CREATE FUNCTION pgjobs.refuse_job() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- The rule that the row breaks, and the columns of the rule. One expression, since each row of a COPY needs it. The
    -- years are those that a client can read in every time zone. A job passes through the covered states on its own: if
    -- its key did not hold in one of them, another job could take the key, and the claim or finish that brings the job
    -- back would fail.
    broken constant text[] := CASE
        WHEN length(NEW.queue) NOT BETWEEN 1 AND 64 THEN '{job_names,queue}'::text[]
        WHEN length(NEW.kind) NOT BETWEEN 1 AND 128 THEN '{job_names,kind}'
        WHEN NEW.scheduled_at NOT BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC' THEN '{job_times,scheduled_at}'
        WHEN NEW.created_at NOT BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC' THEN '{job_times,created_at}'
        WHEN NEW.max_attempts < 1 THEN '{job_attempt,max_attempts}'
        WHEN jsonb_typeof(NEW.args) <> 'object' THEN '{job_json,args}'
        WHEN jsonb_typeof(NEW.errors) <> 'array' THEN '{job_json,errors}'
        WHEN array_position(NEW.tags, NULL) IS NOT NULL THEN '{job_arrays,tags}'
        WHEN (NEW.unique_key IS NULL) <> (NEW.unique_states IS NULL)
            THEN '{job_unique_states,unique_key,unique_states}'
        WHEN NOT NEW.unique_states @> '{available,pending,running,scheduled}' THEN '{job_unique_covers,unique_states}'
        WHEN TG_OP = 'UPDATE' THEN NULL
        WHEN (NEW.finalized_at IS NULL) = (NEW.state IN ('completed', 'cancelled', 'discarded'))
            THEN '{job_finalized,state,finalized_at}'
        WHEN NEW.attempt < 0 THEN '{job_attempt,attempt}'
        WHEN NEW.attempt + (NEW.finalized_at IS NULL AND NEW.state <> 'running')::integer > NEW.max_attempts
            THEN '{job_has_attempts_left,state,attempt,max_attempts}'
        WHEN LEAST(NEW.attempted_at, NEW.finalized_at, NEW.leased_until) < '0001-01-03 UTC'
            OR GREATEST(NEW.attempted_at, NEW.finalized_at, NEW.leased_until) > '9999-12-30 UTC'
            THEN '{job_times,attempted_at,finalized_at,leased_until}'
        WHEN jsonb_typeof(NEW.metadata) <> 'object' THEN '{job_json,metadata}'
        WHEN array_position(NEW.attempted_by, NULL) IS NOT NULL THEN '{job_arrays,attempted_by}'
    END;
    job jsonb;
    given text;
BEGIN
    IF broken IS NOT NULL THEN
        job := to_jsonb(NEW);
        -- a row that was so before must not stop what is done about it
        IF TG_OP = 'UPDATE' AND (
            SELECT bool_and(to_jsonb(OLD) -> name = job -> name) FROM unnest(broken[2:]) AS rule (name))
        THEN
            RETURN NULL;
        END IF;
        -- of args and the like only the type, since they may be confidential
        SELECT string_agg(format('%s = %s', name, CASE
                WHEN name IN ('args', 'errors', 'metadata') THEN format('a JSON %s', jsonb_typeof(job -> name))
                ELSE left((job -> name)::text, 100) END), ', ' ORDER BY place)
            INTO given FROM unnest(broken[2:]) WITH ORDINALITY AS rule (name, place);
        RAISE EXCEPTION USING ERRCODE = 'check_violation', CONSTRAINT = broken[1], TABLE = TG_TABLE_NAME,
            SCHEMA = TG_TABLE_SCHEMA, MESSAGE = format('pgjobs: job %s breaks the rule %s: %s; %s', NEW.id, broken[1],
                given, CASE broken[1]
                    WHEN 'job_names' THEN 'a queue has 1 to 64 characters, a kind 1 to 128'
                    WHEN 'job_times' THEN 'times are from 0001-01-03 to 9999-12-30 UTC'
                    WHEN 'job_attempt' THEN 'attempt is 0 or more, max_attempts 1 or more'
                    WHEN 'job_json' THEN 'args and metadata are JSON objects, errors is a JSON array'
                    WHEN 'job_arrays' THEN 'no element is null'
                    WHEN 'job_unique_states' THEN 'both are null, or none'
                    WHEN 'job_unique_covers' THEN 'it has available, pending, running and scheduled'
                    WHEN 'job_finalized' THEN 'a job has a finalized_at if it is completed, cancelled or discarded'
                    WHEN 'job_has_attempts_left' THEN 'a job that waits has an attempt left'
                END);
    END IF;
    RETURN NULL;
END
$$;
-- The columns are those that neither claim, lock nor the finish of a completed job sets. AFTER, because with a BEFORE
-- trigger a COPY inserts row by row. Without WHEN, which Postgres reads from its catalog as it does a CHECK: these
-- rules as a WHEN cost an INSERT 25 microseconds, the function costs it 6.
CREATE TRIGGER job_rules
    AFTER INSERT OR UPDATE OF
        queue, kind, max_attempts, args, errors, tags, scheduled_at, created_at, unique_key, unique_states
    ON pgjobs.job FOR EACH ROW EXECUTE FUNCTION pgjobs.refuse_job();

-- A queue that some worker works, or has worked lately. keep_*: how long its finished jobs are kept; null means as long
-- as the worker pool says. The table holds it because any process may prune.
CREATE TABLE pgjobs.queue (
    name           text PRIMARY KEY,
    paused_at      timestamptz,
    updated_at     timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    keep_completed interval,
    keep_cancelled interval,
    keep_discarded interval,
    CONSTRAINT queue_name CHECK (pg_catalog.length(name) BETWEEN 1 AND 64),
    CONSTRAINT queue_times CHECK (
        paused_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND updated_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC')
);

-- One row per worker process. lost_at: when a job of this process was last rescued; for a minute the other jobs that it
-- ran count as neighbours of that job. stuck: its threads that are stuck in a handler, with their stacks, ten at most.
CREATE TABLE pgjobs.worker (
    id           text PRIMARY KEY,
    host         text NOT NULL,
    pid          integer NOT NULL,
    queues       jsonb NOT NULL DEFAULT '{}',
    threads      integer NOT NULL,
    kinds        text[] NOT NULL DEFAULT '{}',
    version      text NOT NULL,
    code_version text,
    started_at   timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    seen_at      timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    lost_at      timestamptz,
    stuck        jsonb NOT NULL DEFAULT '[]',
    CONSTRAINT worker_times CHECK (
        started_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND seen_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC')
);

-- One row per cron entry. kind, spec, args and options are null where code supplies them at each tick.
CREATE TABLE pgjobs.schedule (
    name         text PRIMARY KEY,
    kind         text,
    spec         text,
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
    -- true: code registered it, and it ticks only in processes that registered it
    in_code      boolean NOT NULL DEFAULT false,
    version      integer NOT NULL DEFAULT 0,
    -- what code registered last: a change by hand stays until the code changes
    registered   jsonb,
    -- the spec and zone that next_tick_at was computed from; when they change, it is computed anew
    planned_for  text,
    run_now_at   timestamptz,
    -- when a process last said that its code has the schedule
    seen_at      timestamptz,
    error        text,
    CONSTRAINT schedule_catch_up CHECK (catch_up IN ('last', 'all', 'skip')),
    CONSTRAINT schedule_names CHECK (
        pg_catalog.length(name) BETWEEN 1 AND 127 AND pg_catalog.length(kind) BETWEEN 1 AND 128
        AND pg_catalog.length(spec) BETWEEN 1 AND 250 AND pg_catalog.length(zone) BETWEEN 1 AND 250),
    CONSTRAINT schedule_is_whole CHECK (in_code OR (kind IS NOT NULL AND spec IS NOT NULL)),
    CONSTRAINT schedule_json CHECK (
        pg_catalog.jsonb_typeof(args) = 'object' AND pg_catalog.jsonb_typeof(options) = 'object'),
    CONSTRAINT schedule_window CHECK ("window" BETWEEN '0' AND '100000 days'),
    CONSTRAINT schedule_times CHECK (
        next_tick_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND last_tick_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND run_now_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND paused_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND created_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
        AND updated_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC')
);

-- Every change by hand notifies the processes that tick. A tick itself sends no notification.
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

-- One row per worker pool whose code has schedules: `run_on_start` runs only if no other such pool is alive.
CREATE TABLE pgjobs.scheduler (
    id        uuid PRIMARY KEY,
    worker    text NOT NULL,
    schedules text[] NOT NULL DEFAULT '{}',
    seen_at   timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp()
);

-- A request to cancel a job that runs: the worker has locked the job's row, so the request stands in a row of its own.
-- It names the attempt by token. No unique key or foreign key on the job: an insert would wait for that lock.
CREATE TABLE pgjobs.cancel_request (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id       bigint NOT NULL,
    queue        text NOT NULL,
    token        uuid,
    reason       text,
    requested_at timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    -- the reason becomes part of the job when that ends
    CONSTRAINT cancel_request_size CHECK (
        requested_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC' AND pg_catalog.length(reason) <= 10000)
);
CREATE INDEX cancel_request_job ON pgjobs.cancel_request (job_id);

-- One row per running attempt whose handler has called `job.set_progress`. A table of its own, because the attempt has
-- locked the job's row. The worker process writes the row, and removes it when the attempt has ended; a row belongs to
-- the attempt with this token alone, so that what an earlier attempt has left says nothing of the next one. No foreign
-- key on the job: an insert would wait for its row lock. Half of each page stays free, so that an update finds room
-- beside the row and needs no entry in the index.
CREATE TABLE pgjobs.job_progress (
    job_id     bigint NOT NULL,
    token      uuid NOT NULL,
    done       double precision NOT NULL,
    total      double precision,
    note       text,
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp(),
    PRIMARY KEY (job_id, token),
    -- the comparison refuses NaN, which Postgres sorts behind all numbers
    CONSTRAINT job_progress_values CHECK (
        done BETWEEN 0 AND 1e300 AND total BETWEEN 0 AND 1e300 AND pg_catalog.length(note) <= 200
        AND updated_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC')
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 1
);

-- How many attempts ended, how long they ran and how long their jobs had waited: of each minute, queue and kind. Each
-- worker process adds to a row every 10 seconds, so a part of each page stays free for that. The duty `prune` adds older
-- rows to that of the beginning of their 5 minutes, and later of their hour. Failed attempts include those of discarded
-- jobs. run_counts and wait_counts are the counts of buckets of durations, in 12 decimal digits each and the bucket of
-- the shortest durations last: so the server adds up all buckets with one +, which is many times faster than with
-- arrays. pgjobs/observe/figures.py has the bounds of the buckets.
CREATE TABLE pgjobs.figure (
    minute       timestamptz NOT NULL,
    run_seconds  double precision NOT NULL DEFAULT 0,
    wait_seconds double precision NOT NULL DEFAULT 0,
    completed    integer NOT NULL DEFAULT 0,
    failed       integer NOT NULL DEFAULT 0,
    discarded    integer NOT NULL DEFAULT 0,
    cancelled    integer NOT NULL DEFAULT 0,
    snoozed      integer NOT NULL DEFAULT 0,
    interrupted  integer NOT NULL DEFAULT 0,
    queue        text NOT NULL,
    kind         text NOT NULL,
    run_counts   numeric NOT NULL DEFAULT 0,
    wait_counts  numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (minute, queue, kind),
    CONSTRAINT figure_minute CHECK (minute BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC')
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 1
);

-- The duties that any process may do. A process that locks the row of a due duty does it and moves the time on.
CREATE TABLE pgjobs.maintenance (
    duty        text PRIMARY KEY,
    next_run_at timestamptz NOT NULL DEFAULT pg_catalog.statement_timestamp()
);
INSERT INTO pgjobs.maintenance (duty) VALUES ('promote'), ('rescue'), ('prune'), ('workers'), ('indexes');

-- One row per action of a user on the dashboard, in the transaction of the action. target: which jobs, queue or schedule;
-- count: how many of them were changed.
CREATE TABLE pgjobs.audit (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    who    text NOT NULL,
    act    text NOT NULL,
    target jsonb NOT NULL DEFAULT '{}',
    count  bigint NOT NULL,
    CONSTRAINT audit_values CHECK (
        at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC' AND pg_catalog.length(who) <= 200
        AND pg_catalog.length(act) <= 64 AND pg_catalog.jsonb_typeof(target) = 'object')
);

-- Called by a finish that matched no row: it stops the COMMIT sent behind it. Volatile, so that no plan runs it early.
CREATE FUNCTION pgjobs.attempt_lost() RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'pgjobs: the job no longer runs under this token' USING ERRCODE = 'PJ001';
END
$$;

-- Deallocates the statements that were prepared by name in this session since a time.
CREATE PROCEDURE pgjobs.deallocate_since(since timestamptz) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    prepared text;
BEGIN
    FOR prepared IN SELECT name FROM pg_catalog.pg_prepared_statement() WHERE from_sql AND prepare_time > since LOOP
        EXECUTE pg_catalog.concat('DEALLOCATE ', pg_catalog.quote_ident(prepared));
    END LOOP;
END
$$;

-- The first of the two numbers of our advisory locks; the second is a hash of the queue. If an application uses the
-- same number for locks of its own, replace this function by one that returns another number, and restart the workers.
CREATE FUNCTION pgjobs.advisory_class() RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 'pgjobs.job'::pg_catalog.regclass::pg_catalog.oid::integer;
END;

-- The unique key of a job: sha256 of a JSON array of its kind, queue, period and args, each null when `uniqueness`
-- does not count it. The database computes it, so that no two clients can disagree. jsonb sorts keys and writes each
-- string in one way; only equal numbers may differ in text (1.50, 1.5), so the pattern cuts their trailing zeros. It
-- matches whole strings first, so that digits inside strings stay. Text counts as encoded: é as one code point differs
-- from é as two. Periods are counted from midnight UTC of Monday, 0001-01-01.
CREATE FUNCTION pgjobs.unique_key(kind text, queue text, args jsonb, due timestamptz, uniqueness jsonb) RETURNS bytea
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.regexp_replace(
        pg_catalog.jsonb_build_array(
            CASE WHEN uniqueness ->> 'exclude_kind' = 'true' THEN NULL ELSE kind END,
            CASE WHEN uniqueness ->> 'by_queue' = 'true' THEN queue END,
            CASE WHEN uniqueness ->> 'by_period' IS NOT NULL THEN pg_catalog.to_jsonb(EXTRACT(epoch FROM
                pg_catalog.date_bin((uniqueness ->> 'by_period')::interval, due, '0001-01-01 00:00:00+00'))) END,
            CASE pg_catalog.jsonb_typeof(uniqueness -> 'by_args')
                WHEN 'array' THEN (
                    SELECT COALESCE(pg_catalog.jsonb_object_agg(field.key, field.value), '{}')
                    FROM pg_catalog.jsonb_each(args) AS field WHERE (uniqueness -> 'by_args') ? field.key)
                WHEN 'boolean' THEN CASE WHEN uniqueness ->> 'by_args' = 'true' THEN args END
            END
        )::text,
        E'("(?:[^"\\\\]|\\\\.)*"|-?[0-9]+(?:\\.[0-9]*[1-9])?)\\.?0*', E'\\1', 'g'), 'UTF8'));
END;

-- The states in which a job holds its key.
CREATE FUNCTION pgjobs.unique_states(uniqueness jsonb) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT CASE WHEN uniqueness IS NULL THEN NULL
        WHEN uniqueness ->> 'by_state' IS NULL
            THEN ARRAY['available', 'completed', 'pending', 'retryable', 'running', 'scheduled']
        ELSE ARRAY(SELECT pg_catalog.jsonb_array_elements_text(uniqueness -> 'by_state')) END;
END;

-- Raises unless `uniqueness` is an object that pgjobs.Unique could have made: {"by_args": true | ["field", ...],
-- "by_period": "1 day", "by_queue": true, "by_state": ["available", ...], "exclude_kind": true}, all of them optional.
CREATE FUNCTION pgjobs.check_uniqueness(uniqueness jsonb, args jsonb) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    names constant text[] := ARRAY['by_args', 'by_period', 'by_queue', 'by_state', 'exclude_kind'];
    all_states constant text[] := ARRAY[
        'available', 'scheduled', 'pending', 'running', 'retryable', 'completed', 'cancelled', 'discarded'];
    by_args constant jsonb := uniqueness -> 'by_args';
    problem text;
BEGIN
    problem := CASE
        WHEN jsonb_typeof(uniqueness) <> 'object' THEN 'is a JSON object'
        WHEN uniqueness - names <> '{}' THEN 'knows by_args, by_period, by_queue, by_state and exclude_kind'
        WHEN jsonb_typeof(uniqueness -> 'by_queue') NOT IN ('boolean', 'null')
            OR jsonb_typeof(uniqueness -> 'exclude_kind') NOT IN ('boolean', 'null')
            THEN 'says true or false of by_queue and exclude_kind'
        WHEN jsonb_typeof(by_args) NOT IN ('boolean', 'null', 'array') OR by_args = '[]'
            OR by_args @? '$[*] ? (@.type() != "string" && @.type() != "boolean" && @.type() != "null")'
            THEN 'says true, false or a list of fields as by_args'
        WHEN jsonb_typeof(by_args) = 'array' AND NOT args ?& ARRAY(
                SELECT jsonb_array_elements_text(CASE jsonb_typeof(by_args) WHEN 'array' THEN by_args ELSE '[]' END))
            THEN 'names a field in by_args that the args do not have'
        WHEN jsonb_typeof(uniqueness -> 'by_state') NOT IN ('array', 'null') THEN 'says a list of states as by_state'
        WHEN NOT pgjobs.unique_states(uniqueness) <@ all_states THEN 'names a state in by_state that is none'
        WHEN NOT pgjobs.unique_states(uniqueness) @> ARRAY['available', 'pending', 'running', 'scheduled']
            THEN 'needs available, pending, running and scheduled in by_state: a job passes through these'
        WHEN (uniqueness ->> 'by_period')::interval NOT BETWEEN '1 second' AND '365000 days'
            OR EXTRACT(month FROM (uniqueness ->> 'by_period')::interval) <> 0
            OR EXTRACT(year FROM (uniqueness ->> 'by_period')::interval) <> 0
            THEN 'needs a by_period of 1 second to 365000 days, without months'
        WHEN uniqueness ->> 'exclude_kind' = 'true' AND COALESCE(by_args, 'null') IN ('null', 'false')
            AND COALESCE(uniqueness ->> 'by_queue', 'false') = 'false'
            THEN 'would make all jobs one: exclude_kind needs by_args or by_queue'
    END;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'pgjobs: uniqueness % %', uniqueness, problem USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;

-- Raises unless these values make a job; the parameters are in the order of pgjobs.enqueue.
CREATE FUNCTION pgjobs.check_job(
    kind text, args jsonb, queue text, priority integer, scheduled_at timestamptz, delay interval, max_attempts integer,
    tags text[], metadata jsonb
) RETURNS void LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem text;
BEGIN
    problem := CASE
        WHEN (length(kind) <= 128 AND kind COLLATE "C" ~ '^[A-Za-z0-9_][][A-Za-z0-9_<>/.·:+-]+$') IS NOT TRUE
            THEN format('kind %L: use 2 to 128 ASCII letters, digits and - _ [ ] < > / . : +', left(kind, 140))
        WHEN (length(queue) <= 64 AND queue COLLATE "C" ~ '^[A-Za-z0-9_][][A-Za-z0-9_<>/.·:+-]*$') IS NOT TRUE
            THEN format('queue %L: use 1 to 64 ASCII letters, digits and - _ [ ] < > / . : +', left(queue, 80))
        WHEN (priority BETWEEN -32768 AND 32767) IS NOT TRUE
            THEN format('priority is a whole number from -32768 to 32767, not %L', priority)
        WHEN (max_attempts BETWEEN 1 AND 32767) IS NOT TRUE
            THEN format('max_attempts is a whole number from 1 to 32767, not %L', max_attempts)
        WHEN scheduled_at IS NOT NULL AND delay IS NOT NULL THEN 'give scheduled_at or delay, not both'
        WHEN delay < interval '0' THEN format('delay cannot be negative: %s', delay)
        WHEN scheduled_at NOT BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
            THEN format('scheduled_at %s is out of range: from year 1 to 9999-12-30', scheduled_at)
        WHEN EXISTS (SELECT FROM unnest(tags) AS tag WHERE (
            length(tag) <= 255 AND tag COLLATE "C" ~ '^[A-Za-z0-9_][A-Za-z0-9_-]+[A-Za-z0-9_]$') IS NOT TRUE)
            THEN format('tags %L: use 3 to 255 ASCII letters, digits, - and _ in each, not beginning or ending with -',
                left(tags::text, 300))
        WHEN (jsonb_typeof(args) = 'object') IS NOT TRUE THEN 'args is a JSON object'
        WHEN octet_length(args::text) > 1048576
            THEN 'args has more than 1 MiB: store it elsewhere and enqueue a reference'
        WHEN (jsonb_typeof(metadata) = 'object') IS NOT TRUE THEN 'metadata is a JSON object'
        WHEN octet_length(metadata::text) > 65536 THEN 'metadata has more than 64 KiB'
    END;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'pgjobs: %', problem USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;

-- Enqueues one job, for triggers, psql and other languages:
--     SELECT * FROM pgjobs.enqueue('mail.welcome', '{"to": "a@b.c"}');
-- With `uniqueness` (see check_uniqueness) it returns a job that has the same key, if there is one, as a duplicate. It
-- waits for a duplicate that another transaction is inserting, and looks again if a duplicate ends in between.
CREATE FUNCTION pgjobs.enqueue(
    kind text, args jsonb DEFAULT '{}', queue text DEFAULT 'default', priority integer DEFAULT 0,
    scheduled_at timestamptz DEFAULT NULL, delay interval DEFAULT NULL, max_attempts integer DEFAULT 25,
    tags text[] DEFAULT '{}', metadata jsonb DEFAULT '{}', uniqueness jsonb DEFAULT NULL, pending boolean DEFAULT false,
    notify boolean DEFAULT true, OUT id bigint, OUT duplicate boolean
) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    due constant timestamptz := COALESCE(
        scheduled_at, statement_timestamp() + LEAST(COALESCE(delay, '0'), interval '2900000 days'));
    initial constant text := CASE
        WHEN pending THEN 'pending' WHEN due > statement_timestamp() THEN 'scheduled' ELSE 'available' END;
    key bytea;
BEGIN
    PERFORM pgjobs.check_job(
        enqueue.kind, enqueue.args, enqueue.queue, enqueue.priority, enqueue.scheduled_at, delay, enqueue.max_attempts,
        enqueue.tags, enqueue.metadata);
    IF uniqueness IS NOT NULL THEN
        PERFORM pgjobs.check_uniqueness(uniqueness, enqueue.args);
        key := pgjobs.unique_key(enqueue.kind, enqueue.queue, enqueue.args, due, uniqueness);
    END IF;
    LOOP
        INSERT INTO pgjobs.job (
            state, queue, kind, priority, max_attempts, args, metadata, tags, scheduled_at, unique_key, unique_states)
        VALUES (
            initial, enqueue.queue, enqueue.kind, enqueue.priority, enqueue.max_attempts, enqueue.args,
            enqueue.metadata, COALESCE(enqueue.tags, '{}'), due, key, pgjobs.unique_states(uniqueness))
        ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL AND state = ANY (unique_states) DO NOTHING
        RETURNING job.id INTO id;
        duplicate := NOT FOUND;
        EXIT WHEN FOUND;
        SELECT job.id INTO id FROM pgjobs.job WHERE unique_key = key AND state = ANY (unique_states);
        EXIT WHEN FOUND;
    END LOOP;
    -- Wake a worker of the queue if one sleeps, or maintenance if the job is due before its next look.
    IF notify AND NOT duplicate AND initial <> 'pending' AND due < statement_timestamp() + interval '2 seconds'
        AND (initial = 'scheduled'
            OR NOT pg_try_advisory_xact_lock_shared(pgjobs.advisory_class(), hashtext(enqueue.queue)))
    THEN
        PERFORM pg_notify('pgjobs:' || (parse_ident('pgjobs.job'))[1],
            CASE initial WHEN 'available' THEN enqueue.queue ELSE ' due' END);
    END IF;
END
$$;

-- name: down
DROP FUNCTION pgjobs.enqueue(
    text, jsonb, text, integer, timestamptz, interval, integer, text[], jsonb, jsonb, boolean, boolean);
DROP FUNCTION pgjobs.check_job(text, jsonb, text, integer, timestamptz, interval, integer, text[], jsonb);
DROP FUNCTION pgjobs.check_uniqueness(jsonb, jsonb);
DROP FUNCTION pgjobs.unique_states(jsonb);
DROP FUNCTION pgjobs.unique_key(text, text, jsonb, timestamptz, jsonb);
DROP FUNCTION pgjobs.advisory_class();
DROP PROCEDURE pgjobs.deallocate_since(timestamptz);
DROP FUNCTION pgjobs.attempt_lost();
DROP TABLE pgjobs.audit, pgjobs.maintenance, pgjobs.figure, pgjobs.job_progress, pgjobs.cancel_request,
    pgjobs.scheduler, pgjobs.schedule, pgjobs.worker, pgjobs.queue, pgjobs.job;
DROP FUNCTION pgjobs.schedule_changed();
DROP FUNCTION pgjobs.refuse_job();
DROP DOMAIN pgjobs.job_state;
