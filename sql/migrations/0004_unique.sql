-- Unique jobs: the key, computed here so that no two clients can disagree about it, and an insert for other languages.

-- name: up
-- A job passes through these states without being asked. A key that did not hold in one of them could be taken by a duplicate
-- meanwhile, and the claim or the finish that brings the job back would fail. NOT VALID: no key is older than this.
ALTER TABLE pgjobs.job ADD CONSTRAINT job_unique_covers CHECK (
    unique_states @> ARRAY['available', 'pending', 'running', 'scheduled']) NOT VALID;

-- What is the same for `uniqueness` has the same key: sha256 of a JSON array of kind, queue, period and args, each null
-- when it does not count. jsonb has one order of keys and one way to write a string; only numbers may differ (1.50, 1.5),
-- so zeros at their end go: the pattern takes strings whole, so that it finds digits in none. Letters count as they are
-- encoded, é in one code point is not é in two. The period counts from midnight UTC of a Monday long ago.
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

-- Raises unless `uniqueness` says what pgjobs.Unique can say: {"by_args": true | ["field", ...], "by_period": "1 day",
-- "by_queue": true, "by_state": ["available", ...], "exclude_kind": true}, all of them optional.
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

-- Raises unless these can be a job; in the order of pgjobs.enqueue.
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
        WHEN octet_length(args::text) > 1048576 THEN 'args has more than 1 MiB: store it elsewhere and enqueue a reference'
        WHEN (jsonb_typeof(metadata) = 'object') IS NOT TRUE THEN 'metadata is a JSON object'
        WHEN octet_length(metadata::text) > 65536 THEN 'metadata has more than 64 KiB'
    END;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'pgjobs: %', problem USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;

-- Enqueues one job, for triggers, psql and other languages: SELECT * FROM pgjobs.enqueue('mail.welcome', '{"to": "a@b.c"}').
-- With `uniqueness` (see check_uniqueness) a job that is there already is the answer, as a duplicate. Waits for a duplicate
-- that another transaction is inserting. It looks again until one of the two is there: a duplicate may end in between.
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
    -- workers of its queue; or maintenance, when it is due sooner than that looks by itself
    IF notify AND NOT duplicate AND initial <> 'pending' AND due < statement_timestamp() + interval '2 seconds' THEN
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
ALTER TABLE pgjobs.job DROP CONSTRAINT job_unique_covers;
