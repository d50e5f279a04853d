-- What the registry of worker processes and the upkeep of indexes need.

-- name: up
-- lost_at: when a job of this process was last rescued. For a minute the others that it held count as neighbours of it.
ALTER TABLE pgjobs.worker ADD COLUMN lost_at timestamptz, ADD COLUMN code_version text;
INSERT INTO pgjobs.maintenance (duty) VALUES ('workers'), ('indexes');

-- name: down
DELETE FROM pgjobs.maintenance WHERE duty IN ('workers', 'indexes');
ALTER TABLE pgjobs.worker DROP COLUMN lost_at, DROP COLUMN code_version;
