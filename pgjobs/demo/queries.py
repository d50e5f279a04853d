"""The SQL of the demo, apart from that of its application."""

MARK = "made by pgjobs demo, which drops it"
FOREIGN_SCHEMAS = """
    SELECT nspname FROM pg_namespace
    WHERE nspname IN ('pgjobs_demo', 'stdlib_index') AND obj_description(oid, 'pg_namespace') IS DISTINCT FROM %s
"""
MAKE_SCHEMAS = """
    DROP SCHEMA IF EXISTS pgjobs_demo, stdlib_index CASCADE;
    CREATE SCHEMA pgjobs_demo;
    COMMENT ON SCHEMA pgjobs_demo IS 'made by pgjobs demo, which drops it';
    CREATE SCHEMA stdlib_index;
    COMMENT ON SCHEMA stdlib_index IS 'made by pgjobs demo, which drops it';
"""
DROP_SCHEMAS = "DROP SCHEMA IF EXISTS pgjobs_demo, stdlib_index CASCADE"
SET_LOOP_ASIDE = """
    ALTER TABLE stdlib_index.file RENAME TO file_of_loop;
    ALTER TABLE stdlib_index.definition RENAME TO definition_of_loop;
"""

# --- while the workers run

NOW = "SELECT clock_timestamp()"
FINISHED = "SELECT count(*) FROM pgjobs_demo.job WHERE finalized_at IS NOT NULL"
RUNNING_JOB = """
    SELECT id, args->>'path', clock_timestamp() FROM pgjobs_demo.job
    WHERE state = 'running' AND attempted_by[cardinality(attempted_by)] = %s
"""
# Transactions that have written into `file` and are not committed: each holds a lock on the table.
INSIDE_HANDLERS = """
    SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'relation' AND database = datid AND relation = 'stdlib_index.file'::regclass
        AND datname = current_database() AND mode = 'RowExclusiveLock' AND state = 'idle in transaction'
"""
STATE_OF_JOB = "SELECT state FROM pgjobs_demo.job WHERE id = %s"
ROW_OF_JOB = """
    SELECT state, attempt, array_to_string(attempted_by, ', then '),
        (SELECT count(*) FROM stdlib_index.file WHERE path = args->>'path')
        + (SELECT count(*) FROM stdlib_index.definition WHERE path = args->>'path')
    FROM pgjobs_demo.job WHERE id = %s
"""

# --- at the end

COUNTS = {
    "jobs that are not completed": "SELECT count(*) FROM pgjobs_demo.job WHERE state <> 'completed'",
    "finished jobs without an effect": """
        SELECT count(*) FROM pgjobs_demo.job
        WHERE finalized_at IS NOT NULL AND NOT EXISTS (SELECT FROM stdlib_index.file WHERE job_id = job.id)""",
    "effects without a finished job": """
        SELECT count(*) FROM stdlib_index.file LEFT JOIN pgjobs_demo.job ON job.id = job_id
        WHERE job.state IS DISTINCT FROM 'completed'""",
    "done twice": "SELECT count(*) FROM (SELECT FROM stdlib_index.file GROUP BY path HAVING count(*) > 1) AS twice",
    "rows that differ from the loop's": """
        WITH of_workers AS (
            SELECT path, lines, NULL AS name, NULL AS kind FROM stdlib_index.file
            UNION ALL SELECT path, line, name, kind FROM stdlib_index.definition
        ), of_loop AS (
            SELECT path, lines, NULL AS name, NULL AS kind FROM stdlib_index.file_of_loop
            UNION ALL SELECT path, line, name, kind FROM stdlib_index.definition_of_loop
        )
        SELECT count(*) FROM (
            (TABLE of_workers EXCEPT ALL TABLE of_loop) UNION ALL (TABLE of_loop EXCEPT ALL TABLE of_workers)
        ) AS different""",
}
ROWS_WRITTEN = "SELECT (SELECT count(*) FROM stdlib_index.file) + (SELECT count(*) FROM stdlib_index.definition)"
# Without the job that was killed: that one waits for its rescue.
SPEED = """
    SELECT count(*) FILTER (WHERE finalized_at <= %(half_way)s),
        extract(epoch FROM %(half_way)s - min(attempted_at))::float,
        count(*) FILTER (WHERE finalized_at > %(killed_at)s),
        extract(epoch FROM max(finalized_at) - %(killed_at)s)::float
    FROM pgjobs_demo.job WHERE id <> %(job_id)s
"""
BY_WORKER = """
    SELECT attempted_by[cardinality(attempted_by)] AS worker, count(*), count(*) FILTER (WHERE attempt > 1)
    FROM pgjobs_demo.job GROUP BY worker ORDER BY worker
"""
COMMON_NAMES = """
    SELECT name, count(*), count(DISTINCT path) FROM stdlib_index.definition
    WHERE kind = 'function' GROUP BY name ORDER BY count(*) DESC, name LIMIT 5
"""
