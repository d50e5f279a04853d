-- The upkeep of the indexes of the job table. None of these runs in a transaction of several statements.

-- name: job_indexes
-- Ours begin with job_; what a rebuild leaves behind when it is cut off is called like its index, with _ccnew or _ccold.
SELECT relname, indisvalid FROM pg_catalog.pg_index JOIN pg_catalog.pg_class ON pg_class.oid = indexrelid
WHERE indrelid = 'pgjobs.job'::pg_catalog.regclass AND pg_catalog.starts_with(relname::text, 'job_')
ORDER BY relname;

-- name: rebuild_index
-- Nobody is locked out, but in the end it waits for every transaction that has used the table and is open still.
REINDEX INDEX CONCURRENTLY {index};

-- name: drop_index
DROP INDEX CONCURRENTLY IF EXISTS {index};

-- name: begin_making
-- One process at a time makes the index: two that do it on the same table would wait for each other. It waits for all
-- snapshots that are older, so this transaction must have none.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL idle_in_transaction_session_timeout = 0;
SELECT duty FROM pgjobs.maintenance WHERE duty = 'indexes' FOR NO KEY UPDATE SKIP LOCKED;

-- name: make_time_index
-- For those who take the oldest first, whatever the priorities. Who never asks for that order does not pay for it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS job_by_time ON pgjobs.job (queue, scheduled_at, id) WHERE state = 'available';
