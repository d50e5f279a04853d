-- What Postgres alone needs for one job per transaction: the claim, committed before the work; the lock and the
-- savepoint; the release and the finish. One round trip for all of it, and nothing on the client's side but pgbench.
--
--   pgbench -n -M prepared -f benchmarks/floor.sql -c 4 -j 2 -t 1000
--
-- benchmarks/floors.py also runs it with `\;` between the statements, for the simple protocol.
\set token random(1, 9223372036854775806)
\startpipeline
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL synchronous_commit = off;
UPDATE pgjobs.job SET
    state = 'running',
    attempt = attempt + 1,
    attempted_at = statement_timestamp(),
    attempted_by = attempted_by || 'floor'::text,
    token = lpad(to_hex(:token::bigint), 32, '0')::uuid
WHERE queue = 'default' AND id = (
    SELECT id FROM pgjobs.job
    WHERE state = 'available' AND queue = 'default' AND scheduled_at <= statement_timestamp()
    ORDER BY priority, scheduled_at, id
    LIMIT 1
    FOR NO KEY UPDATE SKIP LOCKED)
RETURNING
    id, state, queue, kind, priority, attempt, max_attempts, args, metadata, errors, tags, scheduled_at, created_at,
    attempted_at, finalized_at, attempted_by, token;
COMMIT AND CHAIN;
SELECT id FROM pgjobs.job
WHERE queue = 'default' AND token = lpad(to_hex(:token::bigint), 32, '0')::uuid AND state = 'running'
FOR NO KEY UPDATE;
SAVEPOINT pgjobs;
RELEASE SAVEPOINT pgjobs;
UPDATE pgjobs.job SET state = 'completed', finalized_at = statement_timestamp()
WHERE queue = 'default' AND token = lpad(to_hex(:token::bigint), 32, '0')::uuid AND state = 'running';
COMMIT;
\endpipeline
