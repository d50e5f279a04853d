-- The rights that each kind of role needs, for psql or a migration of the application. `pgjobs roles --sql` fills in
-- the names. Columns are listed one by one, so that no role gets rights to a new column by accident.

-- name: make_role
-- A role without LOGIN: grant it to login roles, or add LOGIN.
DO $pgjobs$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) '{role}') THEN
        CREATE ROLE "{role}" NOLOGIN;
    END IF;
END
$pgjobs$;
REVOKE ALL ON
    pgjobs.job, pgjobs.queue, pgjobs.worker, pgjobs.schedule, pgjobs.scheduler, pgjobs.cancel_request,
    pgjobs.job_progress, pgjobs.figure, pgjobs.audit, pgjobs.maintenance, pgjobs.migration
FROM "{role}";
REVOKE ALL ON SEQUENCE pgjobs.job_id_seq FROM "{role}";
GRANT USAGE ON SCHEMA {schema} TO "{role}";
GRANT SELECT (version, name, digest, applied_at) ON pgjobs.migration TO "{role}";

-- name: grant_enqueuer
-- Enqueues. Of existing jobs it reads the columns that a duplicate is reported with, but not args, metadata, errors and
-- output. It cannot insert schedule and tick, with which it could suppress ticks of a schedule, nor id.
GRANT SELECT (
    id, state, queue, kind, priority, attempt, max_attempts, tags, scheduled_at, created_at, attempted_at, finalized_at,
    attempted_by, leased_until, unique_key, unique_states
) ON pgjobs.job TO "{role}";
GRANT INSERT (
    state, queue, kind, priority, max_attempts, args, metadata, tags, scheduled_at, unique_key, unique_states
) ON pgjobs.job TO "{role}";
GRANT EXECUTE ON FUNCTION
    pgjobs.enqueue(text, jsonb, text, integer, timestamptz, interval, integer, text[], jsonb, jsonb, boolean, boolean),
    pgjobs.check_job(text, jsonb, text, integer, timestamptz, interval, integer, text[], jsonb),
    pgjobs.check_uniqueness(jsonb, jsonb),
    pgjobs.unique_key(text, text, jsonb, timestamptz, jsonb),
    pgjobs.unique_states(jsonb),
    pgjobs.advisory_class()
TO "{role}";

-- name: grant_enqueue_many
-- For enqueue_many, which draws ids before it inserts. With this right a role could insert ids that are not drawn yet.
GRANT INSERT (id, created_at) ON pgjobs.job TO "{role}";
GRANT USAGE ON SEQUENCE pgjobs.job_id_seq TO "{role}";

-- name: grant_replace
-- For replace=. With this right a role can change all waiting jobs, and read the metadata of all jobs, for merging.
GRANT UPDATE (args, priority, max_attempts, tags, metadata, scheduled_at, state) ON pgjobs.job TO "{role}";
GRANT SELECT (metadata) ON pgjobs.job TO "{role}";

-- name: grant_worker
-- Runs a worker pool: claims, finishes, rescues and prunes jobs, and ticks schedules. Its handlers may enqueue, cancel,
-- retry and delete other jobs. Only the owner of the tables can maintain indexes.
GRANT SELECT, INSERT, UPDATE, DELETE ON
    pgjobs.job, pgjobs.queue, pgjobs.worker, pgjobs.schedule, pgjobs.scheduler
TO "{role}";
GRANT SELECT, INSERT, UPDATE, DELETE ON pgjobs.cancel_request, pgjobs.job_progress, pgjobs.figure TO "{role}";
GRANT SELECT, INSERT, UPDATE ON pgjobs.maintenance TO "{role}";
GRANT SELECT (id, at), DELETE ON pgjobs.audit TO "{role}";
GRANT USAGE ON SEQUENCE pgjobs.job_id_seq TO "{role}";
GRANT EXECUTE ON FUNCTION
    pgjobs.attempt_lost(),
    pgjobs.unique_key(text, text, jsonb, timestamptz, jsonb),
    pgjobs.unique_states(jsonb),
    pgjobs.advisory_class()
TO "{role}";

-- name: grant_viewer
-- Reads everything except args, errors and output, and the notes of the progress, which may quote args.
GRANT SELECT (
    id, state, queue, kind, priority, attempt, max_attempts, metadata, tags, scheduled_at, created_at, attempted_at,
    finalized_at, attempted_by, leased_until, token, unique_key, unique_states, schedule, tick
) ON pgjobs.job TO "{role}";
GRANT SELECT (name, paused_at, updated_at, keep_completed, keep_cancelled, keep_discarded)
    ON pgjobs.queue TO "{role}";
GRANT SELECT (
    id, host, pid, queues, threads, kinds, version, code_version, started_at, seen_at, lost_at, stuck
) ON pgjobs.worker TO "{role}";
GRANT SELECT (
    name, kind, spec, zone, catch_up, "window", paused_at, next_tick_at, last_tick_at, created_at, updated_at, in_code,
    version, planned_for, run_now_at, seen_at, error
) ON pgjobs.schedule TO "{role}";
GRANT SELECT (id, worker, schedules, seen_at) ON pgjobs.scheduler TO "{role}";
GRANT SELECT (id, job_id, queue, token, reason, requested_at) ON pgjobs.cancel_request TO "{role}";
GRANT SELECT (job_id, token, done, total, updated_at) ON pgjobs.job_progress TO "{role}";
GRANT SELECT (
    minute, queue, kind, completed, failed, discarded, cancelled, snoozed, interrupted, run_seconds, wait_seconds,
    run_counts, wait_counts
) ON pgjobs.figure TO "{role}";
GRANT SELECT (duty, next_run_at) ON pgjobs.maintenance TO "{role}";
GRANT SELECT (id, at, who, act, count) ON pgjobs.audit TO "{role}";

-- name: grant_view_of_args
-- Reads args, errors, output and notes too, which client.wait and client.schedules need.
GRANT SELECT (args, errors, output) ON pgjobs.job TO "{role}";
GRANT SELECT (note) ON pgjobs.job_progress TO "{role}";
GRANT SELECT (target) ON pgjobs.audit TO "{role}";
GRANT SELECT (args, options, registered) ON pgjobs.schedule TO "{role}";

-- name: grant_operator
-- Cancels, retries, changes and deletes jobs, pauses queues, and edits schedules. It cannot change the kind, queue,
-- args and errors of a job.
GRANT UPDATE (
    state, priority, max_attempts, attempt, scheduled_at, finalized_at, leased_until, metadata, tags, token, output,
    unique_key, unique_states
) ON pgjobs.job TO "{role}";
GRANT DELETE ON pgjobs.job TO "{role}";
GRANT SELECT, INSERT, UPDATE, DELETE ON pgjobs.cancel_request TO "{role}";
GRANT INSERT, UPDATE, DELETE ON pgjobs.schedule TO "{role}";
GRANT INSERT, UPDATE ON pgjobs.queue TO "{role}";
GRANT INSERT (who, act, target, count) ON pgjobs.audit TO "{role}";
GRANT EXECUTE ON FUNCTION pgjobs.advisory_class() TO "{role}";
