"""What must hold after every fault, as queries that return no row. They are about a queue at rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

INVARIANTS = {
    "I0 final states have an end, others have none": """
        SELECT id, state, finalized_at FROM {schema}.job
        WHERE (finalized_at IS NOT NULL) <> (state IN ('completed', 'cancelled', 'discarded'))
    """,
    "I1 a completed job has one effect, of its last attempt; any other job has none": """
        SELECT id, state, job.attempt, array_agg(effect.attempt) FILTER (WHERE effect.job IS NOT NULL)
        FROM {schema}.job LEFT JOIN {schema}.effect ON effect.job = id
        WHERE kind = 'job'
        GROUP BY id, state, job.attempt
        HAVING (state = 'completed') <> (count(effect.job) = 1) OR count(effect.job) > 1
            OR bool_or(effect.attempt <> job.attempt)
    """,
    "I1 no effect is without its job": """
        SELECT job, attempt FROM {schema}.effect WHERE NOT EXISTS (SELECT FROM {schema}.job WHERE id = effect.job)
    """,
    "I2 the jobs are those that were promised": """
        (SELECT 'lost', job FROM {schema}.promised EXCEPT SELECT 'lost', id FROM {schema}.job)
        UNION ALL
        (SELECT 'not promised', id FROM {schema}.job WHERE kind = 'job' EXCEPT
            SELECT 'not promised', job FROM {schema}.promised)
    """,
    "I3 nothing is left running": """
        SELECT id, attempt, attempted_at, attempted_by FROM {schema}.job WHERE state = 'running'
    """,
    "I3 no lock on a job is left": """
        SELECT relation::regclass, mode, pid, xact_start FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE relation = '{schema}.job'::regclass AND xact_start < clock_timestamp() - interval '3 s'
    """,
    "I4 no handler is started more often than the attempts are, and those that were given back": """
        SELECT id, job.attempt, max_attempts, metadata, count(*), array_agg(start.attempt) FROM {schema}.job
        JOIN {schema}.start ON start.job = id
        GROUP BY id, job.attempt, max_attempts, metadata
        HAVING count(*) > job.attempt + COALESCE(jsonb_array_length(metadata -> 'excused'), 0)
            OR job.attempt > max_attempts
    """,
    "I4 each failed attempt has one error, numbered from 1": """
        SELECT id, state, job.attempt, numbers FROM {schema}.job, LATERAL (
            SELECT COALESCE(array_agg((entry ->> 'attempt')::int ORDER BY place), '{{}}') AS numbers
            FROM jsonb_array_elements(errors) WITH ORDINALITY AS entries (entry, place)) AS e
        WHERE numbers <> ARRAY(
            SELECT generate_series(1, attempt - CASE WHEN state = 'completed' THEN 1 ELSE 0 END))
    """,
    "I5 a start that did not complete the job has an error": """
        SELECT start.job, start.attempt FROM {schema}.start JOIN {schema}.job ON id = start.job
        WHERE NOT (state = 'completed' AND start.attempt = job.attempt) AND NOT EXISTS (
            SELECT FROM jsonb_array_elements(errors) AS entry WHERE (entry ->> 'attempt')::int = start.attempt)
    """,
    "I7 no two jobs share a unique key in a covered state": """
        SELECT unique_key, count(*) FROM {schema}.job WHERE state = ANY (unique_states) GROUP BY 1 HAVING count(*) > 1
    """,
    "I9 no transaction is left open": """
        SELECT pid, application_name, state, query FROM pg_stat_activity
        WHERE datname = current_database() AND state ~ '^idle in transaction'
            AND state_change < clock_timestamp() - interval '3 s'
    """,
    "I12 every handler finds the same session": """
        SELECT session, count(*) FROM {schema}.effect WHERE session <> (
            SELECT session FROM {schema}.effect ORDER BY job LIMIT 1) GROUP BY 1
    """,
    "I14 errors are text to be shown": """
        SELECT id, left(entry ->> 'error', 80) FROM {schema}.job, jsonb_array_elements(errors) AS entry
        WHERE octet_length(entry ->> 'error') > 8192 OR entry ->> 'error' ~ '[\\x01-\\x08\\x0b-\\x1f\\x7f]'
    """,
    "I15 no handler starts before its time": """
        SELECT job, attempt, due, at FROM {schema}.start WHERE at < due
    """,
}

# Of schedules that tick every second: a gap between two ticks, or two at less distance.
TICKS = """
    SELECT schedule, tick FROM (
        SELECT schedule, tick, tick - lag(tick) OVER (PARTITION BY schedule ORDER BY tick) AS distance
        FROM {schema}.job WHERE schedule IS NOT NULL) AS ticks
    WHERE distance <> interval '1 s'
"""

Query = Callable[..., Sequence[tuple[Any, ...]]]


def violations(query: Query) -> dict[str, Sequence[tuple[Any, ...]]]:
    """The invariants that do not hold, each with some of the rows that show it."""
    found = {name: query(text + " LIMIT 5" if "UNION" not in text else text) for name, text in INVARIANTS.items()}
    return {name: rows for name, rows in found.items() if rows}
