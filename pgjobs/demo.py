"""Index the Python standard library with two worker processes, and kill one of them half way.

Every source file becomes a job, enqueued in one transaction per package. A job's handler parses its file and
writes the definitions and references it finds through its `tx`. Half way one of the two processes is killed with
SIGKILL while it is inside handlers: what they wrote is rolled back, and the other process rescues their jobs. At
the end the tables must equal, row for row, what one plain loop over the same files finds.

The database is an embedded Postgres that goes when the demo ends; --keep keeps it. On a database that is given the
demo works in schemas of its own (pgjobs_demo and stdlib_index), and leaves them there to be looked at.
"""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection

from pgjobs import Client, Job, PgjobsError, WorkerPool, WorkMap, job_options
from pgjobs.db.dsn import for_libpq, read_dsn
from pgjobs.embedded import EmbeddedPostgres, EmbeddedPostgresError, database_url

# --- the application: a job, the tables it fills, its handler, and the program of a worker process

# No unique keys: a file that was indexed twice shall show.
TABLES = """
    CREATE TABLE stdlib_index.file (path text, package text, lines integer, error text, job_id bigint);
    CREATE TABLE stdlib_index.definition (path text, name text, kind text, line integer);
    CREATE TABLE stdlib_index.reference (path text, name text, count integer);
"""
_DEFINITIONS = {ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "async function"}


@job_options(max_attempts=3)
@dataclass(frozen=True)
class IndexFile:
    path: str
    package: str


@dataclass
class Index:
    """What is found in one file. `error` says why it could not be parsed: some of Python's own tests cannot."""

    lines: int
    error: str | None = None
    definitions: list[tuple[str, str, int]] = field(default_factory=list)  # name, kind, line
    references: Counter[str] = field(default_factory=Counter)


def index_file(tx: Connection[Any], job: Job[IndexFile]) -> None:
    """The handler. It never commits: its rows and the job's completion become visible together, or not at all."""
    path, worker = job.args.path, job.attempted_by[-1]
    # Until the transaction ends, pg_stat_activity shows what it is at.
    tx.execute("SELECT set_config('application_name', %s, true)", [f"{worker} indexes {Path(path).name}"])
    found = index(Path(path).read_bytes())
    tx.execute(
        "INSERT INTO stdlib_index.file (path, package, lines, error, job_id) VALUES (%s, %s, %s, %s, %s)",
        [path, job.args.package, found.lines, found.error, job.id],
    )
    names, kinds, lines = ([row[n] for row in found.definitions] for n in range(3))
    tx.execute(
        "INSERT INTO stdlib_index.definition (path, name, kind, line)"
        " SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::integer[])",
        [path, names, kinds, lines],
    )
    tx.execute(
        "INSERT INTO stdlib_index.reference (path, name, count) SELECT %s, * FROM unnest(%s::text[], %s::integer[])",
        [path, list(found.references), list(found.references.values())],
    )


def index(source: bytes) -> Index:
    """Parse one file. The same bytes give the same index, also when they cannot be parsed."""
    found = Index(lines=len(source.splitlines()))
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        found.error = type(error).__name__
        return found
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                found.references[name] += 1
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                found.definitions.append((node.name, _DEFINITIONS[type(node)], node.lineno))
    return found


def work(schema: str, worker: str) -> None:
    """The program of one worker process."""
    warnings.simplefilter("ignore")  # of the sources that are parsed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with Client(os.environ["DATABASE_URL"], schema=schema, id=worker) as client:
        WorkerPool(client, WorkMap({IndexFile: index_file}), queues={"default": THREADS}).run()


def _end_with_parent() -> None:
    os.read(0, 1)  # the demo never writes into this pipe: it ends with the demo, however that ends
    os._exit(1)


# --- the demo

THREADS = 4
WORKERS = ("demo-1", "demo-2")
VICTIM = WORKERS[0]
_ENOUGH_FILES = 1200
_MARK = "made by pgjobs demo, which drops it when it runs again"
# A rescue leaves an error, or, as the victim ran several jobs, a note that the attempt was excused.
_VANISHED = {"victim": VICTIM, "error": f"worker vanished: {VICTIM} %"}
_RESCUED = "errors->0->>'error' LIKE %(error)s OR metadata->'excused'->0->>'worker' = %(victim)s"
_RESCUED_AT = "COALESCE(metadata->'excused'->0->>'at', errors->0->>'at')::timestamptz"
_STALLED = 60.0  # seconds without any progress

# Five lines to look at the tables with, for psql.
LOOK = (
    "SELECT state, count(*) FROM pgjobs.job GROUP BY state;",
    "SELECT id, attempt, attempted_by, metadata->'excused' AS back FROM pgjobs.job WHERE attempted_by[2] <> '';",
    "SELECT attempted_by[cardinality(attempted_by)] AS worker, count(*) FROM pgjobs.job GROUP BY worker;",
    "SELECT args->>'path' AS path, finalized_at - attempted_at AS took FROM pgjobs.job ORDER BY took DESC LIMIT 10;",
    "SELECT name, count(*) FROM stdlib_index.definition GROUP BY name ORDER BY count(*) DESC LIMIT 10;",
)


class DemoFailed(PgjobsError):
    """The demo cannot go on; the text says why."""


def run(dsn: str | None = None, keep: Path | None = None, limit: int | None = None) -> int:
    """Run the demo and print what it shows; 0 when all is as it should be. `limit` takes only so many files."""
    given = dsn or (None if keep else database_url())
    try:
        if dsn and keep:
            raise DemoFailed("give --dsn or --keep: on a database that is given the tables stay anyway")
        if given:
            given = for_libpq(given)
            read_dsn(given)
            psycopg.connect(given).close()  # fails at once, and says why; a pool would go on trying
            code = _demo(given, "pgjobs_demo", limit)
            print("To remove the tables: DROP SCHEMA pgjobs_demo, stdlib_index CASCADE;")
            return code
        with EmbeddedPostgres(data_dir=keep) as server:
            code = _demo(server.dsn, "pgjobs", limit)
            _say_how_to_keep(server, keep)
            return code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (DemoFailed, EmbeddedPostgresError) as error:
        print(f"pgjobs demo: {error}", file=sys.stderr)
        return 1


def _demo(dsn: str, schema: str, limit: int | None) -> int:
    files = find_files(limit)
    with Client(dsn, schema=schema, id="demo") as client:
        _make_tables(client)
        transactions = _enqueue(client, files)
        print(f"{len(files):,} jobs enqueued, one for each source file, in {transactions} transactions")
        with ExitStack() as running:
            workers = {name: running.enter_context(_Worker.running(name, dsn, schema)) for name in WORKERS}
            print("working:", ", ".join(f"{name} (pid {worker.pid})" for name, worker in workers.items()))
            killed_at = _work_off(client, workers, len(files))
            problems = [problem for worker in workers.values() if (problem := worker.stop())]
        expected, seconds = _index_in_one_loop(files)
        with client.pool.connection() as conn:
            found = _read_tables(conn)
            figures = _figures(conn, schema, killed_at)
    differences = _differences(found, expected)
    problems += _problems(figures, len(files))
    _print_report(figures, found, expected, seconds)
    print("", *(differences or ["identical"]), *problems, sep="\n")
    print("\nTo look at the tables:\n")
    print(*(line.replace("pgjobs.", f"{schema}.") for line in LOOK), "", sep="\n")
    return 1 if differences or problems else 0


def find_files(limit: int | None = None) -> list[IndexFile]:
    """The standard library's sources, with its tests; where these are not installed, installed packages as well."""
    found = list(_sources(Path(sysconfig.get_path("stdlib"))))
    if len(found) < _ENOUGH_FILES:
        found += _sources(Path(sysconfig.get_path("purelib")))
    found.sort(key=lambda file: (file.package, file.path))
    if not found:
        raise DemoFailed(f"there are no Python sources in {sysconfig.get_path('stdlib')}")
    return found[:: max(1, len(found) // limit)][:limit] if limit else found


def _sources(root: Path) -> Iterator[IndexFile]:
    for path in root.rglob("*.py"):
        inside = path.relative_to(root)
        if inside.parts[0] not in ("site-packages", "dist-packages") and path.is_file() and os.access(path, os.R_OK):
            yield IndexFile(str(path), inside.parts[0].removesuffix(".py"))


def _make_tables(client: Client) -> None:
    """Fresh tables in schemas of the demo's own. One of the same name that somebody else made is left alone."""
    with client.pool.connection() as conn:
        for schema in (client.schema, "stdlib_index"):
            query = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s"
            made_by = conn.execute(query, [schema]).fetchone()
            if made_by and made_by[0] != _MARK:
                raise DemoFailed(f"there is a schema {schema} that the demo did not make: use another database")
            conn.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
            conn.execute(f"CREATE SCHEMA {schema}")
            conn.execute(f"COMMENT ON SCHEMA {schema} IS '{_MARK}'")
        conn.execute(TABLES)
    client.migrate()


def _enqueue(client: Client, files: list[IndexFile]) -> int:
    """One transaction for each package; how many that were."""
    packages = [list(jobs) for _, jobs in groupby(files, key=lambda file: file.package)]
    for jobs in packages:
        with client.pool.connection() as tx:
            client.enqueue_many(tx, jobs)
    return len(packages)


# --- the worker processes, and the end of one of them


@dataclass
class _Worker:
    """A worker process, seen from the demo."""

    name: str
    process: subprocess.Popen[bytes]
    log: Any

    @classmethod
    @contextmanager
    def running(cls, name: str, dsn: str, schema: str) -> Iterator[_Worker]:
        """Killed on the way out, if it is still there."""
        with (
            tempfile.TemporaryFile() as log,
            subprocess.Popen(
                [sys.executable, "-m", "pgjobs.demo", schema, name],
                env=os.environ | {"DATABASE_URL": dsn},  # not an argument, which every user of the machine can read
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C in the terminal is for the demo alone, which then ends its workers
            ) as process,
        ):
            try:
                yield cls(name, process, log)
            finally:
                process.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raise if it ended by itself."""
        if self.process.poll() not in (None, -signal.SIGKILL):
            raise DemoFailed(f"{self.name} ended with code {self.process.returncode}:\n{self._said()}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> str | None:
        """Ask it to stop, unless it was killed; what went wrong with that."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            return f"{self.name} did not stop within 15 s:\n{self._said()}"
        return None if code in (0, -signal.SIGKILL) else f"{self.name} stopped with code {code}:\n{self._said()}"

    def _said(self) -> str:
        self.log.seek(0)
        said: bytes = self.log.read()
        return said.decode(errors="replace").strip()[-3000:]


def _work_off(client: Client, workers: dict[str, _Worker], total: int) -> datetime:
    """Watch until all jobs are over; half way, kill the victim. When that was, by the database's clock."""
    query = f"""
        SELECT count(*) FILTER (WHERE state = 'completed'), count(*) FILTER (WHERE finalized_at IS NULL),
            count(*) FILTER (WHERE {_RESCUED})
        FROM {client.schema}.job"""
    killed_at: datetime | None = None
    rescue_seen = False
    with _Progress("two workers", total) as progress:
        moved = _Stall()
        while True:
            completed, still_open, rescued = _row(client, query, _VANISHED)
            progress.show(completed)
            if killed_at is None and completed >= total // 2:
                killed_at = _kill_inside_handlers(client, workers[VICTIM], progress)
            if rescued and not rescue_seen:
                rescue_seen = True
                progress.say(f"the first {rescued} of its jobs rescued; the other process does them again")
            if not still_open:
                break
            for worker in workers.values():
                worker.check()
            moved.check((completed, still_open, rescued))
            time.sleep(0.05)
    if killed_at is None:
        raise DemoFailed("half of the jobs could not be completed")
    return killed_at


def _kill_inside_handlers(client: Client, victim: _Worker, progress: _Progress) -> datetime:
    """Hold the process still until the server says that it is inside handlers, then kill it."""
    query = """
        SELECT count(*), clock_timestamp() FROM pg_stat_activity
        WHERE application_name LIKE %s AND state = 'idle in transaction' AND datname = current_database()"""
    for _ in range(20):
        victim.process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)  # what it had sent to the server before comes to its end
        inside, now = _row(client, query, [f"{victim.name} indexes %"])
        if inside:
            victim.kill()
            progress.say(f"half way: {victim.name} killed with SIGKILL (handlers it was inside: {inside})")
            assert isinstance(now, datetime)
            return now
        victim.process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    raise DemoFailed(f"{victim.name} was never seen inside a handler, so it could not be killed there")


class _Stall:
    """Raises when nothing has changed for too long."""

    def __init__(self) -> None:
        self._seen: object = None
        self._since = time.monotonic()

    def check(self, now: object) -> None:
        if now != self._seen:
            self._seen, self._since = now, time.monotonic()
        elif time.monotonic() - self._since > _STALLED:
            raise DemoFailed(f"nothing has moved for {_STALLED:g} s: completed, open, rescued are {now}")


def _row(client: Client, query: str, parameters: Mapping[str, object] | Sequence[object]) -> tuple[Any, ...]:
    with client.pool.connection() as conn:
        row: tuple[Any, ...] = conn.execute(query, parameters).fetchone() or ()
        return row


# --- the comparison

#: By table, its rows, each as often as it is there.
Tables = dict[str, Counter[tuple[Any, ...]]]


def _index_in_one_loop(files: list[IndexFile]) -> tuple[Tables, float]:
    """The same index without any queue, and the seconds that took."""
    tables: Tables = {"file": Counter(), "definition": Counter(), "reference": Counter()}
    began = time.monotonic()
    with warnings.catch_warnings(), _Progress("one loop", len(files)) as progress:
        warnings.simplefilter("ignore")
        for n, file in enumerate(files, 1):
            found = index(Path(file.path).read_bytes())
            tables["file"][(file.path, file.package, found.lines, found.error)] += 1
            tables["definition"].update((file.path, *row) for row in found.definitions)
            tables["reference"].update((file.path, *row) for row in found.references.items())
            progress.show(n)
    return tables, time.monotonic() - began


def _read_tables(conn: Connection[Any]) -> Tables:
    return {
        "file": Counter(conn.execute("SELECT path, package, lines, error FROM stdlib_index.file")),
        "definition": Counter(conn.execute("SELECT path, name, kind, line FROM stdlib_index.definition")),
        "reference": Counter(conn.execute("SELECT path, name, count FROM stdlib_index.reference")),
    }


def _differences(found: Tables, expected: Tables) -> list[str]:
    lines = []
    for table in expected:
        for word, rows in (("missing", expected[table] - found[table]), ("too many", found[table] - expected[table])):
            if rows:
                lines.append(f"DIFFERENT: {rows.total()} rows of {table} {word}, such as {next(iter(rows))}")
    return lines


@dataclass(frozen=True)
class _Figures:
    completed: int
    unfinished: int
    once: int  # jobs that have left exactly one file
    failed: int  # jobs with an error that is not the kill's
    seconds: float  # from the first claim to the last completion
    rescued: int
    rescued_after: float | None  # seconds from the kill until the first rescue was recorded
    redone_after: float | None  # and until the last job that was rescued was completed


def _figures(conn: Connection[Any], schema: str, killed_at: datetime) -> _Figures:
    row = conn.execute(
        f"""
        SELECT count(*) FILTER (WHERE state = 'completed'),
            count(*) FILTER (WHERE state <> 'completed'),
            count(*) FILTER (WHERE files = 1),
            count(*) FILTER (WHERE jsonb_array_length(errors) >
                CASE WHEN errors->0->>'error' LIKE %(error)s THEN 1 ELSE 0 END),
            extract(epoch FROM max(finalized_at) - min(attempted_at))::float,
            count(*) FILTER (WHERE vanished),
            extract(epoch FROM min({_RESCUED_AT}) FILTER (WHERE vanished) - %(killed_at)s)::float,
            extract(epoch FROM max(finalized_at) FILTER (WHERE vanished) - %(killed_at)s)::float
        FROM {schema}.job
        LEFT JOIN (SELECT job_id, count(*) AS files FROM stdlib_index.file GROUP BY job_id) AS left_by ON job_id = id
        CROSS JOIN LATERAL (SELECT COALESCE({_RESCUED}, false) AS vanished) AS told""",
        {"killed_at": killed_at, **_VANISHED},
    ).fetchone()
    assert row is not None
    return _Figures(*row)


def _problems(figures: _Figures, jobs: int) -> list[str]:
    problems = []
    if figures.unfinished or figures.completed != jobs:
        problems.append(f"FAILED: {figures.completed} of {jobs} jobs are completed, {figures.unfinished} are not")
    if figures.once != jobs:
        problems.append(f"FAILED: {jobs - figures.once} jobs have not left exactly one file")
    if figures.failed:
        problems.append(f"FAILED: {figures.failed} jobs had an error that is not the kill's")
    if not figures.rescued:
        problems.append("FAILED: no job was rescued, so the demo has not shown what it should")
    return problems


def _print_report(figures: _Figures, found: Tables, expected: Tables, seconds: float) -> None:
    rows: list[tuple[str, Callable[[Tables], int]]] = [
        ("files", lambda tables: tables["file"].total()),
        ("lines", lambda tables: sum(row[2] * times for row, times in tables["file"].items())),
        ("definitions", lambda tables: tables["definition"].total()),
        ("references", lambda tables: sum(row[2] * times for row, times in tables["reference"].items())),
    ]
    print(f"\n{'':24}{'two workers':>14}{'one loop':>14}")
    for name, count in rows:
        print(f"{name:24}{count(found):>14,}{count(expected):>14,}")
    files = found["file"].total()
    print(f"{'seconds':24}{figures.seconds:>14.1f}{seconds:>14.1f}")
    print(f"{'jobs/s':24}{files / figures.seconds:>14.0f}{files / seconds:>14.0f}")
    print(f"{'jobs rescued':24}{figures.rescued:>14}")
    for name, after in (("kill to rescue", figures.rescued_after), ("kill to all done again", figures.redone_after)):
        print(f"{name:24}" + ("never" if after is None else f"{after:.1f} s").rjust(14))
    print("(the loop writes into no database, and nobody kills it half way)")


def _say_how_to_keep(server: EmbeddedPostgres, keep: Path | None) -> None:
    if keep is None:
        print(f"This database goes now. To keep one: {_command()} demo --keep DIR")
        return
    start = (
        "from pathlib import Path; from pgjobs.embedded import EmbeddedPostgres; "
        f"server = EmbeddedPostgres(data_dir=Path({json.dumps(str(keep.absolute()))})).start(); input(server.dsn)"
    )
    print(f"The database is kept in {keep}. To start it again, until you press Enter, with an address for psql:")
    print(f"\n{shlex.join([sys.executable, '-c', start])}\n")
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


class _Progress:
    """A bar on a terminal; elsewhere a line at every quarter."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._quarters = 0
        self._began = time.monotonic()
        self._live = sys.stdout.isatty()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._live:
            print()

    def show(self, done: int) -> None:
        passed = 4 * done // self._total
        if self._live:
            width = max(10, min(50, shutil.get_terminal_size().columns - 45))
            filled = width * done // self._total
            print(
                f"\r\x1b[K{self._title}  {'#' * filled}{'.' * (width - filled)}  {self._text(done)}", end="", flush=True
            )
        elif passed > self._quarters:
            self._quarters = passed
            print(f"{self._title}: {self._text(done)}", flush=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        print(f"\r\x1b[K{text}" if self._live else text, flush=True)

    def _text(self, done: int) -> str:
        return f"{done:,}/{self._total:,}  {time.monotonic() - self._began:.1f} s"


if __name__ == "__main__":
    work(*sys.argv[1:])
