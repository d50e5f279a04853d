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
