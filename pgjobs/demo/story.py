"""Run the application of `app.py` with two worker processes, kill one in the middle of a job, and count the damage.

A plain loop goes first. It indexes files for some seconds, so that the amount of work fits the machine; the workers
then index the same files. At the end queries compare what both have written.

The database is an embedded Postgres that is deleted when the demo ends; --keep keeps it. In another database (--dsn) it
uses schemas of its own, pgjobs_demo and stdlib_index, and drops them at the end.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection

from pgjobs import Client
from pgjobs.demo import app, queries
from pgjobs.demo.terminal import print_table, say
from pgjobs.demo.work import Kill, one_row, plain_loop, work_off
from pgjobs.demo.worker_process import DemoFailed, start_worker
from pgjobs.embedded import EmbeddedPostgres, EmbeddedPostgresError, database_url


def run(dsn: str | None = None, keep: Path | None = None, loop_seconds: float = 4.0) -> int:
    """Run the demo and print its results. Returns 0 if nothing was lost or done twice."""
    try:
        if dsn and keep:
            raise DemoFailed("give --dsn or --keep: the demo leaves nothing in a database of yours")
        given = dsn or (None if keep else database_url())
        if given:
            with _own_schemas(_checked(given)) as address:
                return _tell(address, loop_seconds)
        with EmbeddedPostgres(data_dir=keep) as server, _own_schemas(server.dsn, drop=False) as address:
            code = _tell(address, loop_seconds)
            _say_how_to_keep(server, keep)
            return code
    except KeyboardInterrupt:
        print("\npgjobs demo: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (DemoFailed, EmbeddedPostgresError) as error:
        print(f"pgjobs demo: {error}", file=sys.stderr)
        return 1


def _checked(dsn: str) -> str:
    Client(dsn).close()  # raises for a wrong connection string, without repeating the password
    dsn = re.sub(r"^(postgres(ql)?)\+psycopg:", r"\1:", dsn)  # as SQLAlchemy writes it
    psycopg.connect(dsn).close()  # fails at once when there is no server; a pool would try for half a minute
    return dsn


@contextmanager
def _own_schemas(dsn: str, drop: bool = True) -> Iterator[str]:
    """Make the two schemas of the demo, and drop them on the way out. A schema that it has not made stays as it is."""
    with psycopg.connect(dsn) as conn:
        for (name,) in conn.execute(queries.FOREIGN_SCHEMAS, [queries.MARK]):
            raise DemoFailed(f"there is a schema {name} that the demo did not make: use another database")
        conn.execute(queries.MAKE_SCHEMAS)
        conn.execute(app.TABLES)
    try:
        yield dsn
    finally:
        if drop:
            with psycopg.connect(dsn) as conn:
                conn.execute(queries.DROP_SCHEMAS)


def _tell(dsn: str, loop_seconds: float) -> int:
    say(
        "Two worker processes index files of the Python standard library. One of them is killed in the middle of a "
        "job. At the end we count what was lost and what was done twice."
    )
    say(
        "1. First without a queue. A plain loop takes one file after another: it writes a row for the file and a row "
        "for each class and function in it, and commits."
    )
    paths, seconds = plain_loop(dsn, loop_seconds)
    with Client(dsn, schema=app.SCHEMA, id="demo") as client:
        client.migrate()
        app.enqueue(client, paths)
    with start_worker(dsn, "demo-1") as victim, start_worker(dsn, "demo-2") as other:
        say(
            f"2. Now the same {len(paths):,} files with a queue. Each is a job; all are enqueued in one transaction. "
            f"Two worker processes run them: {victim} and {other}."
        )
        kill = work_off(dsn, (victim, other), len(paths))
        other.stop()
    with psycopg.connect(dsn, prepare_threshold=None) as conn:
        counts = {title: one_row(conn, query)[0] for title, query in queries.COUNTS.items()}
        _print_rows(kill)
        _print_counts(conn, counts)
        problems = find_problems(kill, counts)
        for text in problems or ["Nothing was lost, and nothing was done twice."]:
            say(text)
        _print_results(conn)
        _print_speed(conn, kill, len(paths), seconds)
    print(f"The code of this application: {os.path.relpath(app.__file__)}")
    return 1 if problems else 0


def find_problems(kill: Kill, counts: dict[str, int]) -> list[str]:
    """The results that differ from what pgjobs promises, as texts."""
    problems = [f"FAILED: {title}: {count}" for title, count in counts.items() if count]
    before, done = kill.rows[0][1], kill.rows[-1][1]
    if before != ("running", 1, "demo-1", 0):
        problems.append(f"FAILED: before the kill the job was not running without visible rows: {before}")
    if done[:3] != ("completed", 2, "demo-1, then demo-2"):
        problems.append(f"FAILED: the killed worker's job was not completed by the other: {done}")
    return problems


def _print_rows(kill: Kill) -> None:
    say(f"   This is what the row of job {kill.job_id} said, and how many rows of the index it had:")
    head = ("when", "state", "attempt", "worker", "rows in the index")
    print_table(head, [(when, *row) for when, row in kill.rows])


def _print_counts(conn: Connection[Any], counts: dict[str, int]) -> None:
    (rows,) = one_row(conn, queries.ROWS_WRITTEN)
    say(
        f"4. All jobs are finished. Queries compare the {rows:,} rows of the index with the table of jobs and with "
        "what the loop wrote. (An effect is the row that a handler writes for its file.)"
    )
    for title, count in counts.items():
        print(f"    {title}: {count:,}")
    print()


def _print_results(conn: Connection[Any]) -> None:
    say("5. Jobs are rows of a table, so SQL answers questions about them. Which worker completed how many?")
    print_table(("worker", "jobs", "of them rescued"), conn.execute(queries.BY_WORKER).fetchall())
    say("   And what is in the index? The functions and methods that these files define most often:")
    print_table(("name", "times", "in files"), conn.execute(queries.COMMON_NAMES).fetchall())


def _print_speed(conn: Connection[Any], kill: Kill, files: int, seconds: float) -> None:
    times = {"half_way": kill.half_way, "killed_at": kill.killed_at, "job_id": kill.job_id}
    together, together_seconds, alone, alone_seconds = one_row(conn, queries.SPEED, times)
    parts = (
        ("plain loop, one process", files, seconds),
        ("two workers, before the kill", together, together_seconds),
        ("one worker, after the kill", alone, alone_seconds),
    )
    say(
        "6. How fast is the queue, compared with the loop? Both wrote the same rows and committed after each file. The "
        "queue also writes which worker runs which job:"
    )
    print_table(
        ("", "files", "seconds", "files/s", "times the loop"),
        [(name, n, f"{s:.1f}", f"{n / s:.0f}", f"{n / s * seconds / files:.2f}") for name, n, s in parts],
    )


def _say_how_to_keep(server: EmbeddedPostgres, keep: Path | None) -> None:
    if keep is None:
        print(f"This database is deleted now. To keep one and look at its tables: {_command()} demo --keep DIR")
        return
    start = (
        "from pathlib import Path; from pgjobs.embedded import EmbeddedPostgres; "
        f"server = EmbeddedPostgres(data_dir=Path({json.dumps(str(keep.absolute()))})).start(); input(server.dsn)"
    )
    print(f"The database is kept in {keep}. Look at pgjobs_demo.job and stdlib_index.definition. To start it again")
    print(f"until you press Enter, with an address for psql:\n\n{shlex.join([sys.executable, '-c', start])}\n")
    if sys.stdin.isatty():
        psql = server.bindir / "psql"
        print(f"It runs now:\n\n{psql if psql.exists() else 'psql'} {shlex.quote(server.dsn)}\n")
        try:
            input("Press Enter to stop it. ")
        except (EOFError, KeyboardInterrupt):
            print()


def _command() -> str:
    """How to call `pgjobs` from here: it is not on the PATH when the virtual environment is not active."""
    if shutil.which("pgjobs"):
        return "pgjobs"
    return os.path.relpath(Path(sys.executable).with_name("pgjobs"))
