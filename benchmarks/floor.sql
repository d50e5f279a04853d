-- The claim chain: what Postgres alone needs for the statements of pgjobs, one job per transaction, with nothing on the
-- client's side but pgbench. A job whose handler has sent nothing is completed in the transaction that claims the next
-- one; the lock of that one begins the transaction of its handler. So each job takes one round trip and one commit.
--
-- benchmarks/floors.py puts the parts together: `first`, `next` for each further job, and `last`, because pgbench wants
-- no open transaction at the end of a script. `insert` is for a job whose handler inserts a row.

-- name: first
\set token random(1, 9223372036854775806)
\startpipeline
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL statement_timeout = '30s';
{claim_alone}
COMMIT AND CHAIN;
{lock}
\endpipeline

-- name: next
\set done :token
\set token random(1, 9223372036854775806)
\startpipeline
{complete}
{claim_with_finish}
COMMIT AND CHAIN;
{lock}
\endpipeline

-- name: last
\set done :token
\startpipeline
{complete}
COMMIT;
\endpipeline

-- name: insert
\set token random(1, 9223372036854775806)
\set done :token
\startpipeline
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL statement_timeout = '30s';
{claim_alone}
COMMIT AND CHAIN;
{lock}
SAVEPOINT pgjobs;
INSERT INTO pgjobs.effect (job) VALUES (:token);
RELEASE SAVEPOINT pgjobs;
{complete}
COMMIT;
\endpipeline

-- name: claim_alone
{claim},
    set_config('synchronous_commit', CASE WHEN leased_until IS NULL THEN 'off' ELSE 'on' END, true);

-- name: claim_with_finish
{claim},
    CASE WHEN leased_until IS NOT NULL THEN set_config('synchronous_commit', 'on', true) END;

-- name: claim
UPDATE pgjobs.job SET
    state = 'running',
    attempt = attempt + 1,
    attempted_at = statement_timestamp(),
    attempted_by = CASE
        WHEN array_lower(attempted_by, 1) = 1 AND array_ndims(attempted_by) = 1
            THEN (array_append(attempted_by, 'floor'))[GREATEST(cardinality(attempted_by) - 98, 1):]
        ELSE ARRAY['floor'] END,
    token = lpad(to_hex(:token::bigint), 32, '0')::uuid,
    leased_until = CASE WHEN kind = ANY ('{}'::text[]) THEN statement_timestamp() + interval '1 minute' END
WHERE queue = 'default' AND id = (
    SELECT id FROM pgjobs.job
    WHERE state = 'available' AND queue = 'default' AND scheduled_at <= statement_timestamp()
        AND NOT EXISTS (SELECT FROM pgjobs.queue WHERE name = 'default' AND paused_at IS NOT NULL)
        AND (priority, scheduled_at, id) > ('-32768'::smallint, '-infinity'::timestamptz, '-1'::bigint)
    ORDER BY priority, scheduled_at, id
    LIMIT 1
    FOR NO KEY UPDATE SKIP LOCKED)
RETURNING id

-- name: lock
SELECT
    id, kind, priority, max_attempts, args, to_json(scheduled_at),
    CASE WHEN created_at <> scheduled_at THEN to_json(created_at) END,
    CASE WHEN metadata <> '{}' THEN metadata END,
    CASE WHEN errors <> '[]' THEN errors END,
    CASE WHEN cardinality(tags) > 0 THEN tags END,
    CASE WHEN cardinality(attempted_by) > 1 THEN attempted_by END,
    attempt, to_json(attempted_at), to_json(leased_until)
FROM pgjobs.job
WHERE queue = 'default' AND token = lpad(to_hex(:token::bigint), 32, '0')::uuid AND state = 'running'
FOR NO KEY UPDATE;

-- name: complete
UPDATE pgjobs.job SET
    state = 'completed',
    finalized_at = statement_timestamp(),
    leased_until = NULL
WHERE queue = 'default' AND token = lpad(to_hex(:done::bigint), 32, '0')::uuid AND state = 'running'
RETURNING
    state, (EXTRACT(epoch FROM finalized_at) * 1000000)::bigint, set_config('statement_timeout', '30s', true) <> '';
