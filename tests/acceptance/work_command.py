"""`pgjobs work` as a test sees it: a process, the log that it writes, and the table."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import sql

from pgjobs import Client, Job, JobState
from pgjobs.db.cursors import AnyConnection
from tests.conftest import Connect
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SOON = 30.0  # seconds: the machine may be busy, and each process imports much

# The application. What happens is told in two tables: `start` is written at once through a connection of its own,
# `effect` through the job's transaction. A job asks by its args how its handler goes on.
APP = """
import os, subprocess, threading, time
from datetime import timedelta
import psycopg
from pgjobs import Client, QueueSettings, WorkerPool, constant
schema = os.environ["SCHEMA"]
client = Client(os.environ["DATABASE_URL"], schema=schema)
beside = threading.local()
leaked = []

def handler(tx, job):
    tx.execute(f"INSERT INTO {schema}.effect VALUES (%s, %s)", [job.id, job.attempt])
    if not hasattr(beside, "conn"):
        beside.conn = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    beside.conn.execute(f"INSERT INTO {schema}.start VALUES (%s, %s, %s)", [job.id, job.attempt, os.getpid()])
    match job.args["then"]:
        case "compute":
            end = time.monotonic() + 60
            while time.monotonic() < end:
                time.sleep(0.01)
        case "wait for the gate":
            tx.execute("SELECT pg_advisory_xact_lock_shared(%s)", [job.args["gate"]])
        case "leak":
            leaked.append(bytearray(os.urandom(1 << 20) * job.args["mebibytes"]))
        case "resist":
            while True:
                try:
                    threading.Event().wait(60)
                except BaseException:
                    pass
        case "leave an orphan":
            subprocess.run(["sh", "-c", "sleep 0.3 & echo $!"], check=True)

pool = WorkerPool(
    client,
    {"job": handler},
    queues={"default": 2, "mail": QueueSettings(threads=1, batch_size=7)},
    backoff=constant(timedelta(0)),
    timeout=timedelta(minutes=5),
)
"""


@dataclass
class Place:
    """A directory with the module `app`, and the tables of its own that it works."""

    directory: Path
    dsn: str
    client: Client
    conn: AnyConnection

    def write(self, text: str, name: str = "app.py") -> None:
        (self.directory / name).write_text(text)

    def query(self, text: str, *values: Any) -> list[Any]:
        statement = sql.SQL(text).format(schema=sql.Identifier(self.client.schema))
        cur = self.conn.execute(statement, values or None)
        return cur.fetchall() if cur.description else []

    def make_tables(self) -> None:
        self.query("CREATE TABLE {schema}.effect (job bigint, attempt integer)")
        self.query("CREATE TABLE {schema}.start (job bigint, attempt integer, pid integer)")

    def enqueue(self, then: str = "return", *, queue: str = "default", **args: Any) -> Job[Any]:
        return self.client.enqueue(None, {"then": then, **args}, kind="job", queue=queue)

    def job(self, job: Job[Any]) -> Job[Any]:
        found = self.client.get(job.id)
        assert found is not None
        return found

    def completed(self, *jobs: Job[Any]) -> bool:
        return all(self.job(job).state is JobState.COMPLETED for job in jobs)

    def starts(self, job: Job[Any]) -> list[tuple[int, int]]:
        """The attempt and the process of each start of the job's handler."""
        return self.query("SELECT attempt, pid FROM {schema}.start WHERE job = %s ORDER BY attempt, pid", job.id)

    def effects(self, job: Job[Any]) -> list[int]:
        return [attempt for (attempt,) in self.query("SELECT attempt FROM {schema}.effect WHERE job = %s", job.id)]

    @contextmanager
    def work(
        self,
        *options: str,
        target: str = "app:pool",
        before: Sequence[str] = (),
        program: Sequence[str] = ("-m", "pgjobs"),
        **environment: str,
    ) -> Iterator[Work]:
        """`pgjobs work`, killed on the way out with all that it has started. `before` are words of another program that
        starts it; `program` is what Python runs."""
        log = self.directory / f"{len(list(self.directory.glob('*.log')))}.log"
        inherited = {name: value for name, value in os.environ.items() if name[:2] != "PG" or name[:7] == "PGJOBS_"}
        env = inherited | {"DATABASE_URL": self.dsn, "SCHEMA": self.client.schema, "PYTHONPATH": str(ROOT)}
        with (
            log.open("wb") as file,
            subprocess.Popen(
                [*before, sys.executable, *program, "work", *filter(None, [target]), *options],
                cwd=self.directory,
                env=env | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                process_group=0,
            ) as process,
        ):
            work = Work(process, log)
            try:
                yield work
            except AssertionError as error:
                error.add_note(f"its log:\n{work.log}")
                raise
            finally:
                process.kill()
                for pid in work.pids():
                    os.kill(pid, signal.SIGKILL)


@dataclass
class Work:
    """A running `pgjobs work`."""

    process: subprocess.Popen[bytes]
    path: Path

    @property
    def log(self) -> str:
        return self.path.read_text(errors="replace")

    @property
    def lines(self) -> list[str]:
        """The lines of the parent's log, without the time."""
        return re.findall(r"^[-0-9]+ [0-9:,]+ (\w+ \[\d+\] pgjobs\.processes: .*)$", self.log, re.MULTILINE)

    def told(self, *texts: str, times: int = 1) -> bool:
        """Whether the log has each text so often."""
        return all(self.log.count(text) >= times for text in texts)

    def wait_for(self, *texts: str, times: int = 1) -> None:
        def told_or_ended() -> bool:
            return self.told(*texts, times=times) or self.process.poll() is not None

        wait_until(told_or_ended, SOON)
        assert self.told(*texts, times=times), f"no {texts} in its log"

    def wait_ready(self, processes: int = 1) -> list[int]:
        """Wait until so many processes have become ready, and return the ids of those that live."""
        self.wait_for(" is ready after ", times=processes)
        return self.pids()

    def pids(self) -> list[int]:
        """The ids of the children that live, of those that became ready, in the order of their places."""
        found = re.findall(r"process (\d+) \(pid (\d+)\) is ready", self.log)
        return [int(pid) for _, pid in sorted(found, key=lambda pair: int(pair[0])) if is_alive(int(pid))]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """Stop it as a service manager does; its exit code."""
        self.process.terminate()
        return self.process.wait(SOON)


@contextmanager
def gate(connect: Connect) -> Iterator[tuple[int, Callable[[], object]]]:
    """A lock that handlers wait for until it is opened."""
    number = int.from_bytes(os.urandom(7))
    keeper = connect(autocommit=True)
    keeper.execute("SELECT pg_advisory_lock(%s)", [number])
    try:
        yield number, lambda: keeper.execute("SELECT pg_advisory_unlock(%s)", [number])
    finally:
        keeper.close()


def is_alive(pid: int) -> bool:
    """Whether this is a worker process, and no zombie, which has no command line."""
    try:
        return b"pgjobs.processes.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    """The ids of its child processes, with those that have ended and that it has not waited for."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
