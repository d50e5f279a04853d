-- The progress of running jobs.

-- name: up
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

-- name: down
DROP TABLE pgjobs.job_progress;
