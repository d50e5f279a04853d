-- For databases that publish our tables, dump and restore them without rows, or have roles that are not trusted.

-- name: up
-- Nothing can be deleted from a published table without a key. The job and the token are still no key: two requests for
-- one attempt must not wait for each other.
ALTER TABLE pgjobs.cancel_request ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY;

-- How long the jobs of a queue are kept when they are over; null is what the worker pool says. It stands here because
-- cleaning is the duty of any process.
ALTER TABLE pgjobs.queue
    DROP COLUMN settings,
    ADD COLUMN keep_completed interval,
    ADD COLUMN keep_cancelled interval,
    ADD COLUMN keep_discarded interval;

-- What is written by hand stays readable, and what goes into a job with its end stays small. Older rows are as they are.
ALTER TABLE pgjobs.queue ADD CONSTRAINT queue_times CHECK (
    paused_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
    AND updated_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC') NOT VALID;
ALTER TABLE pgjobs.worker ADD CONSTRAINT worker_times CHECK (
    started_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC'
    AND seen_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC') NOT VALID;
ALTER TABLE pgjobs.cancel_request ADD CONSTRAINT cancel_request_size CHECK (
    requested_at BETWEEN '0001-01-03 UTC' AND '9999-12-30 UTC' AND pg_catalog.length(reason) <= 10000) NOT VALID;

-- Who may use a type may make operators for it, which a search_path can put before those that are meant.
REVOKE USAGE ON DOMAIN pgjobs.job_state, pgjobs.queue_name, pgjobs.kind_name, pgjobs.instant, pgjobs.attempts,
    pgjobs.attempt_limit, pgjobs.texts, pgjobs.covered_states, pgjobs.json_object, pgjobs.json_array FROM PUBLIC;

-- Drops what was prepared by name in this session since a time.
CREATE PROCEDURE pgjobs.deallocate_since(since timestamptz) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    prepared text;
BEGIN
    FOR prepared IN SELECT name FROM pg_catalog.pg_prepared_statement() WHERE from_sql AND prepare_time > since LOOP
        EXECUTE pg_catalog.concat('DEALLOCATE ', pg_catalog.quote_ident(prepared));
    END LOOP;
END
$$;

-- name: down
ALTER TABLE pgjobs.cancel_request DROP CONSTRAINT cancel_request_size;
ALTER TABLE pgjobs.worker DROP CONSTRAINT worker_times;
ALTER TABLE pgjobs.queue DROP CONSTRAINT queue_times;
DROP PROCEDURE pgjobs.deallocate_since(timestamptz);
GRANT USAGE ON DOMAIN pgjobs.job_state, pgjobs.queue_name, pgjobs.kind_name, pgjobs.instant, pgjobs.attempts,
    pgjobs.attempt_limit, pgjobs.texts, pgjobs.covered_states, pgjobs.json_object, pgjobs.json_array TO PUBLIC;
ALTER TABLE pgjobs.queue
    DROP COLUMN keep_completed,
    DROP COLUMN keep_cancelled,
    DROP COLUMN keep_discarded,
    ADD COLUMN settings jsonb NOT NULL DEFAULT '{}',
    ADD CONSTRAINT queue_settings CHECK (pg_catalog.jsonb_typeof(settings) = 'object');
ALTER TABLE pgjobs.cancel_request DROP COLUMN id;
