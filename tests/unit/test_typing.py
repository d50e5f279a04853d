"""What type checkers are told: wrong uses are found before they run, and right ones are let be."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest

from tests.documents import DOCUMENTS, ROOT

PYRIGHT = str(Path(sys.executable).parent / "pyright")

#: A line that must be refused says `# error: ` and a part of what mypy says. All others must pass.
SNIPPET = """
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

from psycopg import AsyncConnection, Connection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from pgjobs import (
    Client, Event, EventKind, Job, JobFilter, JobState, NewJob, QueueEvent, QueueEventKind, Subscription, Unique,
    WorkMap, decode_args,
)


@dataclass
class Welcome:
    email: str


@dataclass
class Other:
    n: int


def uses(client: Client, tx: Connection[Any]) -> None:
    assert_type(client.enqueue(tx, Welcome("a")), Job[Welcome])
    assert_type(client.enqueue(tx, NewJob(Welcome("a"), priority=1)), Job[Welcome])
    assert_type(client.enqueue(tx, Welcome("a"), priority=1).args.email, str)
    assert_type(client.enqueue(tx, {"a": 1}, kind="x"), Job[dict[str, int]])
    assert_type(client.wait(client.enqueue(tx, Welcome("a"))), Job[Welcome])
    assert_type(client.wait(5), Job[Any])
    assert_type(client.get(5), Job[Any] | None)
    assert_type(client.enqueue_many(tx, [Welcome("a"), Other(1)], queue="mail"), list[Job[Any]])
    assert_type(client.enqueue_many(tx, [Other(1)], returning=False, priority=3), int)
    assert_type(decode_args(Welcome, "{}"), Welcome)
    assert_type(decode_args(Welcome, {"email": "a"}), Welcome)
    client.enqueue(tx, Other(1), unique=Unique(by_state=["available"]), replace=["args", "priority"])
    client.enqueue(tx, Other(1), replace=["arg"])  # error: List item 0 has incompatible type
    client.enqueue(tx, Other(1), prioritty=1)  # error: No overload variant
    Unique(by_state=["avaliable"])  # error: List item 0 has incompatible type
    Unique(by_state=[JobState.AVAILABLE, "running"])
    JobFilter(states=["done"])  # error: List item 0 has incompatible type
    JobFilter(states=["completed", JobState.RUNNING])
    client.list_jobs(JobFilter(states=[JobState("completed")]), order="id")


async def asynchronous_uses(client: Client, tx: AsyncConnection[Any], session: AsyncSession, other: Session) -> None:
    assert_type(await client.aenqueue(tx, Welcome("a")), Job[Welcome])
    assert_type(await client.aenqueue(session, NewJob(Welcome("a"), priority=1)), Job[Welcome])
    assert_type((await client.aenqueue(None, Welcome("a"), priority=1)).args.email, str)
    assert_type(await client.aenqueue(tx.cursor(), {"a": 1}, kind="x"), Job[dict[str, int]])
    assert_type(await client.aenqueue_many(tx, [Welcome("a"), Other(1)], queue="mail"), list[Job[Any]])
    assert_type(await client.aenqueue_many(await session.connection(), [Other(1)], returning=False), int)
    assert_type(await client.await_job(await client.aenqueue(tx, Welcome("a"))), Job[Welcome])
    assert_type(await client.aget(5, tx), Job[Any] | None)
    await client.aenqueue(tx, Other(1), prioritty=1)  # error: No overload variant
    await client.aenqueue(other, Other(1))  # error: No overload variant


def events(client: Client, kind: EventKind) -> None:
    assert_type(client.subscribe(), Subscription[Event])
    assert_type(client.subscribe([kind, "job_failed"]), Subscription[Event])
    assert_type(client.subscribe(["queue_paused"]), Subscription[QueueEvent])
    assert_type(client.subscribe([QueueEventKind.RESUMED]), Subscription[QueueEvent])
    assert_type(client.subscribe(["queue_paused", EventKind.FAILED]), Subscription[Event | QueueEvent])
    client.subscribe(["job_complete"])  # error: List item 0 has incompatible type
    assert_type(next(client.subscribe()), Event)
    for event in client.subscribe(["queue_paused"]):
        assert_type(event.queue, str)
    plain: Subscription = client.subscribe()
    assert_type(plain.get(), Event | None)


work_map = WorkMap()


@work_map.handles(Welcome)
def welcome(tx: Connection[Any], job: Job[Welcome]) -> None:
    assert_type(job.args.email, str)


@work_map.handles(Welcome)  # error: has incompatible type
def wrong(tx: Connection[Any], job: Job[Other]) -> None: ...


@work_map.handles(Welcome, detached=True)
def anything(tx: None, job: Job[Any]) -> int:
    return 1


@work_map.handles(Welcome)
def wider(tx: Any, job: Job[object]) -> None: ...


@work_map.handles("by.name")
def by_name(tx: Any, job: Job[dict[str, Any]]) -> None: ...


def still_a_function(tx: Connection[Any], job: Job[Welcome]) -> None:
    welcome(tx, job)
    assert_type(anything(None, job), int)
    welcome(tx, 5)  # error: incompatible type
"""


#: By line of the snippet: a part of what mypy says.
WANTED = {
    number: line.partition("# error: ")[2] for number, line in enumerate(SNIPPET.splitlines(), 1) if "# error: " in line
}

#: The documents whose programs are whole applications.
APPLICATIONS = ("README", "sqlalchemy")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory with the snippet, and with the applications of the documents."""
    (tmp_path / "uses.py").write_text(SNIPPET)
    for document in DOCUMENTS:
        if document.name in APPLICATIONS:
            (tmp_path / f"{document.name}_page.py").write_text(document.program("dbname=app"))
    return tmp_path


def mypy(directory: Path) -> dict[str, dict[int, str]]:
    """By file and line: the errors."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", "--show-error-codes"]
    cache = ROOT / ".mypy_cache" if (ROOT / ".mypy_cache").is_dir() else directory
    files = map(str, directory.glob("*.py"))
    done = subprocess.run(
        [*command, f"--cache-dir={cache}", "--python-version=3.11", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    found: dict[str, dict[int, str]] = {}
    for file, line, text in re.findall(r"(\w+)\.py:(\d+): error: (.*)", done.stdout):
        lines = found.setdefault(file, {})
        lines[int(line)] = lines.get(int(line), "") + text
    return found


@pytest.mark.finding("E9")
@pytest.mark.finding("W13")
def test_wrong_uses_are_found_and_right_ones_are_not(programs: Path) -> None:
    """`handles(Welcome)` over a handler of Job[Other] passed, `replace=`, states and kinds of events were any str, and
    `client.wait` lost the type."""
    found = mypy(programs)
    assert found.keys() == {"uses"}, "the applications of the documents have no error"
    assert found["uses"].keys() == WANTED.keys(), found
    for number, text in WANTED.items():
        assert text in found["uses"][number]


@pytest.mark.tools
@pytest.mark.skipif(which(PYRIGHT) is None, reason="there is no pyright here: pip install pyright")
def test_pyright_finds_the_same(programs: Path) -> None:
    """It is a program for Node, and fetches itself when it runs for the first time."""
    (programs / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    done = subprocess.run(
        [PYRIGHT, "--project", str(programs), "--pythonpath", sys.executable, "--outputjson"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = {
        (Path(each["file"]).stem, each["range"]["start"]["line"] + 1): each["message"]
        for each in json.loads(done.stdout)["generalDiagnostics"]
        if each["severity"] == "error"
    }
    assert found.keys() == {("uses", number) for number in WANTED}, found
