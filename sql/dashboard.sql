-- What the dashboard reads and writes besides the calls of the client. Functions are named in full.

-- name: begin_reading
-- One snapshot for the whole page, and nothing can be written in it. Returns the time.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;
SET LOCAL statement_timeout = '10s';
SET LOCAL lock_timeout = '1s';
SET LOCAL idle_in_transaction_session_timeout = '30s';
SELECT (EXTRACT(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint;

-- name: begin_acting
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL statement_timeout = '30s';
SET LOCAL lock_timeout = '2s';
SET LOCAL idle_in_transaction_session_timeout = '30s';

-- name: write_audit
INSERT INTO pgjobs.audit (who, act, target, count)
VALUES (%(who)s, %(act)s, %(target)s::jsonb, %(count)s);
