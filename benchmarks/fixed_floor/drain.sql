-- The fixed floor of a drain: select for update skip locked, update, commit. One statement and one round trip do it all.
-- table.sql makes the table, and says why this file never changes.
--
--   pgbench -n -M prepared -f benchmarks/fixed_floor/drain.sql -c 4 -j 2 -t 1000
\startpipeline
UPDATE fixed_floor.job SET state = 'completed', finalized_at = statement_timestamp()
WHERE queue = 'default' AND id = (
    SELECT id FROM fixed_floor.job
    WHERE state = 'available' AND queue = 'default' AND scheduled_at <= statement_timestamp()
    ORDER BY priority, scheduled_at, id
    LIMIT 1
    FOR UPDATE SKIP LOCKED);
\endpipeline
