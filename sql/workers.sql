-- The registry of worker processes: who is there, since when, and what for. Nothing rests on it: a job is rescued by its
-- row's lock, whether or not its worker has a row here.

-- name: announce
-- Written every few seconds, so it waits for nobody for long. A process that took over a name starts anew.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '1s';
SET LOCAL statement_timeout = '5s';
INSERT INTO pgjobs.worker AS known (id, host, pid, queues, threads, kinds, version, code_version) VALUES (
    %(id)s, %(host)s, %(pid)s, %(queues)s::jsonb, %(threads)s, %(kinds)s::text[], %(version)s, %(code_version)s)
ON CONFLICT (id) DO UPDATE SET
    host = EXCLUDED.host,
    pid = EXCLUDED.pid,
    queues = EXCLUDED.queues,
    threads = EXCLUDED.threads,
    kinds = EXCLUDED.kinds,
    version = EXCLUDED.version,
    code_version = EXCLUDED.code_version,
    started_at = CASE WHEN (known.host, known.pid) = (EXCLUDED.host, EXCLUDED.pid) THEN known.started_at
        ELSE EXCLUDED.started_at END,
    seen_at = EXCLUDED.seen_at;
COMMIT;

-- name: withdraw
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '1s';
SET LOCAL statement_timeout = '5s';
DELETE FROM pgjobs.worker WHERE id = %(id)s;
COMMIT;

-- name: prune_workers
-- The rows of processes that vanished. A process whose jobs are being rescued keeps its row a little longer.
DELETE FROM pgjobs.worker
WHERE GREATEST(seen_at, lost_at) < (pg_catalog.clock_timestamp() - %(after)s::interval)
RETURNING id;

-- name: workers
SELECT id, host, pid, queues, threads, kinds, version, code_version, started_at, seen_at FROM pgjobs.worker
ORDER BY started_at, id;
