-- A notification only when somebody sleeps: the locks by which those who enqueue find that out.

-- name: up
-- The first of the two numbers of our advisory locks; the second is a hash of the queue. Should an application use this
-- number for locks of its own, replace the function by one that gives another, and start the workers anew.
CREATE FUNCTION pgjobs.advisory_class() RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 'pgjobs.job'::pg_catalog.regclass::pg_catalog.oid::integer;
END;

-- As it was, but for what it does to wake somebody.
CREATE OR REPLACE FUNCTION pgjobs.enqueue(
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
    -- a worker of its queue, if one sleeps; or maintenance, when it is due sooner than that looks by itself
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
CREATE OR REPLACE FUNCTION pgjobs.enqueue(
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
DROP FUNCTION pgjobs.advisory_class();
