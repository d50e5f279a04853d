"""Fills a database for the dashboard: jobs in every state, and in every field texts that attack a page.

python -m tests.hostile_jobs "postgresql://..." --jobs 1000000 --schema pgjobs
"""

from __future__ import annotations

import argparse
from typing import Any

import psycopg
from psycopg import sql

from pgjobs import Client
from pgjobs.observe.figures import number_of

#: None has more than 64 characters, so that it may be the name of a queue. A script of theirs would set `pwned`.
CORPUS = [
    "<script>pwned=1</script>",
    "<img src=x onerror=pwned=1>",
    '"><svg onload=pwned=1>',
    "' autofocus onfocus='pwned=1",
    '" style="position:fixed;inset:0" x="',
    "javascript:pwned=1",
    "</textarea><script>pwned=1</script>",
    "</title></style></script><script>alert(1)</script>",
    "<style>*{display:none}</style>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'>",
    "<base href=//evil.example/>",
    "<form action=//evil.example><button>Retry",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<!-- --!> ]]> <?php",
    "&lt;script&gt;pwned=1&lt;/script&gt; &#60;b&#62;",
    "{{ 7*7 }} {% raw %} ${7*7} #{7*7} <%= 7*7 %>",
    "'; DROP TABLE job; -- %s %(x)s",
    "../../etc/passwd?x=1&y=2#z",
    "\u202eright to left\u202c \u2066\u200f \u200b",
    "two\nlines\r\nand\ttabs \x1b[31mred \x7f \u2028 end",
    "Z\u0351\u036b\u0343\u036a\u0302a\u0322\u0332\u031bl\u0367\u0358go",
    "W" * 64,
    "pgjоbs \U0001f4a5 ﷽",
    "a/b//c/../d",
    " ",
]
#: Without a space, so that nothing but the page itself can break its line.
LONG = "<b>" + "long" * 2000

_FILL = """
INSERT INTO {schema}.job (
    state, queue, kind, priority, attempt, max_attempts, tags, attempted_by, args, metadata, errors, output,
    scheduled_at, created_at, attempted_at, finalized_at, schedule)
SELECT
    state::{schema}.job_state,
    CASE WHEN bad THEN text ELSE (ARRAY['default', 'mail', 'reports', 'images'])[1 + i %% 4] END,
    CASE WHEN bad THEN text ELSE (ARRAY['mail.send', 'report.build', 'image.scale', 'charge'])[1 + i %% 4] END,
    i %% 5, attempt, 25,
    CASE WHEN bad THEN ARRAY[text, 'vip'] WHEN i %% 3 = 0 THEN ARRAY['customer-' || i %% 1000] ELSE '{{}}' END,
    CASE WHEN attempt = 0 THEN '{{}}' WHEN bad THEN ARRAY[text] ELSE ARRAY['worker-' || i %% 8] END,
    CASE WHEN bad THEN jsonb_build_object(text, text, 'nested', jsonb_build_array(text), 'long', %(long)s::text,
            'exact', 9007199254740993 + i)
        ELSE jsonb_build_object('user', i, 'email', 'user' || i || '@example.com') END,
    CASE WHEN bad THEN jsonb_build_object(text, text, 'traceparent', text) ELSE '{{}}' END,
    CASE WHEN failed THEN jsonb_build_array(jsonb_build_object(
            'attempt', attempt, 'at', now() - interval '1 hour',
            'error', CASE WHEN bad THEN text || ': ' || text ELSE 'ValueError: no such user ' || i %% 100 END,
            'trace', 'Traceback (most recent call last):' || chr(10) || CASE WHEN bad THEN text || %(long)s::text
                ELSE '  File "jobs.py", line 3, in send' || chr(10) || 'ValueError: no such user ' || i %% 100 END))
        ELSE '[]' END,
    CASE WHEN state = 'completed' AND bad THEN jsonb_build_object(text, text) END,
    CASE WHEN state IN ('scheduled', 'retryable') THEN now() + i %% 100000 * interval '1 s'
        ELSE now() - (i %% 86000 + 60) * interval '1 s' END,
    now() - (i %% 86000 + 61) * interval '1 s',
    CASE WHEN attempt > 0 THEN now() - (i %% 86000 + 20) * interval '1 s' END,
    CASE WHEN state IN ('completed', 'cancelled', 'discarded') THEN now() - i %% 86000 * interval '1 s' END,
    CASE WHEN bad THEN text END
FROM (
    SELECT i, state, (%(corpus)s::text[])[1 + i %% %(texts)s] AS text, i %% 50 = 0 OR i > %(jobs)s - 400 AS bad,
        state IN ('retryable', 'discarded') AS failed,
        CASE WHEN state IN ('available', 'scheduled') THEN 0 ELSE 1 + i %% 4 END AS attempt
    FROM (
        SELECT i, CASE WHEN i %% 20 < 10 THEN 'completed' WHEN i %% 20 < 15 THEN 'available'
            WHEN i %% 20 < 16 THEN 'scheduled' WHEN i %% 20 < 17 THEN 'retryable' WHEN i %% 20 < 19 THEN 'discarded'
            WHEN i > %(jobs)s - 200 THEN 'running' ELSE 'cancelled' END AS state
        FROM generate_series(1, %(jobs)s) AS i
    ) AS with_state
) AS job
"""

_BESIDE = """
INSERT INTO {schema}.queue (name, paused_at)
SELECT text, CASE WHEN random() < 0.3 THEN now() END FROM unnest(%(corpus)s::text[]) AS text
ON CONFLICT DO NOTHING;
INSERT INTO {schema}.worker (id, host, pid, queues, threads, kinds, version, code_version, stuck)
SELECT text, text, 1, jsonb_build_object(text, 10, 'default', 2), 12, ARRAY[text, 'mail.send'], text, text,
    jsonb_build_array(jsonb_build_object('thread', text, 'job', 1, 'kind', text, 'queue', text, 'seconds', 99,
        'stack', text || %(long)s::text))
FROM unnest(%(corpus)s::text[]) AS text;
INSERT INTO {schema}.schedule (name, kind, spec, args, options, next_tick_at, last_tick_at, error)
SELECT text, text, CASE WHEN text ~ '^[<"]' THEN text ELSE '*/5 * * * *' END, jsonb_build_object(text, text),
    '{{}}', now() + interval '1 min', now() - interval '4 min', text
FROM unnest(%(corpus)s::text[]) AS text;
INSERT INTO {schema}.audit (who, act, target, count)
SELECT text, 'cancel-jobs', jsonb_build_object(text, text), 3 FROM unnest(%(corpus)s::text[]) AS text;
INSERT INTO {schema}.figure (minute, queue, kind, completed, failed, discarded, run_seconds, wait_seconds,
    run_counts, wait_counts)
SELECT date_trunc('minute', now()) - m * interval '1 min', queue, 'mail.send', 50 + m %% 20, m %% 7, m %% 3, 5, 9,
    %(run_counts)s::numeric, %(wait_counts)s::numeric
FROM generate_series(0, 1440) AS m, unnest(ARRAY['default', 'mail', %(first)s]) AS queue;
INSERT INTO {schema}.job_progress (job_id, token, done, total, note)
SELECT id, COALESCE(token, gen_random_uuid()), 3, 10, %(first)s FROM {schema}.job WHERE state = 'running';
"""


def fill(conn: psycopg.Connection[Any], schema: str, jobs: int) -> None:
    """Add so many jobs, of which one of 50 and the newest 400 are hostile, and rows to the other tables. Needs the
    rights of a superuser: the triggers are left out."""
    values = {
        **{"corpus": CORPUS, "texts": len(CORPUS), "long": LONG, "jobs": jobs, "first": CORPUS[0]},
        **{"run_counts": number_of([10, 20, 20]), "wait_counts": number_of([0, 0, 5, 5, 40])},
    }
    with conn.transaction(), psycopg.ClientCursor(conn) as cur:
        cur.execute("SET LOCAL session_replication_role = replica")
        for text in (_FILL, _BESIDE):
            cur.execute(sql.SQL(text).format(schema=sql.Identifier(schema)), values)
    with conn.cursor() as cur:
        for table in ("job", "figure"):
            cur.execute(sql.SQL("VACUUM (ANALYZE) {}").format(sql.Identifier(schema, table)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dsn")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--schema", default="pgjobs")
    options = parser.parse_args()
    with Client(options.dsn, schema=options.schema) as client:
        client.migrate()
    with psycopg.connect(options.dsn, autocommit=True) as conn:
        fill(conn, options.schema, options.jobs)
    print(f"{options.jobs:,} jobs in schema {options.schema}")


if __name__ == "__main__":
    main()
