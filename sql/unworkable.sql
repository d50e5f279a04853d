-- What is done to a row that an act could not work; see pgjobs/set_aside.py.

-- name: bare_write
-- The change that an act makes, without anything that it reads of the row or adds to it. Rolled back by who tries it.
UPDATE pgjobs.job SET
    state = CASE WHEN %(state)s::text = 'retryable' AND attempt >= max_attempts THEN 'discarded' ELSE %(state)s::text END,
    attempt = CASE WHEN attempt < max_attempts THEN attempt + %(counted)s::integer ELSE attempt END,
    attempted_at = pg_catalog.statement_timestamp(),
    attempted_by = '{}',
    errors = '[]',
    finalized_at = CASE WHEN %(state)s::text ~ '^[cd]' OR (%(state)s::text = 'retryable' AND attempt >= max_attempts)
        THEN pg_catalog.statement_timestamp() END,
    leased_until = NULL,
    unique_key = CASE WHEN %(key)s::boolean THEN unique_key END,
    unique_states = CASE WHEN %(key)s::boolean THEN unique_states END
WHERE id = ANY (ARRAY(
        SELECT id FROM pgjobs.job WHERE id = %(id)s AND queue = %(queue)s AND state = ANY (%(states)s::text[])
        FOR NO KEY UPDATE SKIP LOCKED))
    AND queue = %(queue)s
RETURNING id;

-- name: discard_unworkable
-- With `fresh`, nothing of the row's that may be in the way is kept.
UPDATE pgjobs.job SET
    state = 'discarded',
    finalized_at = pg_catalog.statement_timestamp(),
    leased_until = NULL,
    token = NULL,
    unique_key = CASE WHEN %(fresh)s::boolean THEN NULL ELSE unique_key END,
    unique_states = CASE WHEN %(fresh)s::boolean THEN NULL ELSE unique_states END,
    attempted_by = CASE WHEN %(fresh)s::boolean THEN '{}' ELSE attempted_by END,
    errors = CASE
            WHEN %(fresh)s::boolean OR pg_catalog.pg_column_size(errors) > 1000000 THEN '[]'::jsonb
            WHEN pg_catalog.jsonb_array_length(errors) >= 100 THEN errors - 50
            ELSE errors END
        || pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_object(
            'attempt', attempt, 'at', pg_catalog.statement_timestamp(), 'error', %(reason)s::text, 'trace', NULL))
WHERE id = ANY (ARRAY(
        SELECT id FROM pgjobs.job WHERE id = %(id)s AND queue = %(queue)s AND state = ANY (%(states)s::text[])
        FOR NO KEY UPDATE SKIP LOCKED))
    AND queue = %(queue)s
RETURNING id;
