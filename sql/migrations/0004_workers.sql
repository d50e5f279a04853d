-- What the registry of worker processes and the upkeep of indexes need.

-- name: up
-- When a job of this process was last rescued: for a minute the jobs that it held beside count as neighbours of that one.
ALTER TABLE pgjobs.worker ADD COLUMN lost_at timestamptz;
INSERT INTO pgjobs.maintenance (duty) VALUES ('workers'), ('indexes');

-- name: down
DELETE FROM pgjobs.maintenance WHERE duty IN ('workers', 'indexes');
ALTER TABLE pgjobs.worker DROP COLUMN lost_at;
