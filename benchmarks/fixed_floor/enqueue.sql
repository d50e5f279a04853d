-- The fixed floor of an enqueue: a plain INSERT, committed. table.sql says why this file never changes.
--
--   pgbench -n -M prepared -f benchmarks/fixed_floor/enqueue.sql -c 4 -j 2 -t 1000
\startpipeline
INSERT INTO fixed_floor.job (kind, args, metadata)
VALUES ('noop', '{"number": 1, "address": "user1@example.com"}', '{}');
\endpipeline
