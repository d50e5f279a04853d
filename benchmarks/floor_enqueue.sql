-- What Postgres alone needs to take in one job: a plain INSERT into the same table, committed.
--
--   pgbench -n -M prepared -f benchmarks/floor_enqueue.sql -c 4 -j 2 -t 1000
\startpipeline
INSERT INTO pgjobs.job (kind, args, metadata) VALUES ('noop', '{"number": 1, "address": "user1@example.com"}', '{}');
\endpipeline
