-- The fixed floor of a drain whose handler inserts one row: drain.sql with one INSERT more in its transaction, which the
-- pipeline makes of both. table.sql says why this file never changes.
--
--   pgbench -n -M prepared -f benchmarks/fixed_floor/insert.sql -c 4 -j 2 -t 1000
\set job random(1, 9223372036854775806)
\startpipeline
UPDATE fixed_floor.job SET state = 'completed', finalized_at = statement_timestamp()
WHERE queue = 'default' AND id = (
    SELECT id FROM fixed_floor.job
    WHERE state = 'available' AND queue = 'default' AND scheduled_at <= statement_timestamp()
    ORDER BY priority, scheduled_at, id
    LIMIT 1
    FOR UPDATE SKIP LOCKED);
INSERT INTO fixed_floor.effect (job) VALUES (:job::bigint);
\endpipeline
