"""What type checkers say of the application that the guide shows for Flask: nothing, until a handler is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import PAGES, PLACEHOLDER

ROOT = Path(__file__).parents[2]
(PAGE,) = (page for page in PAGES if page.name == "flask")

#: A line that must be refused says `# error`. All others must pass, and so must the page.
USES = """
from typing import Any, assert_type
from pgjobs import Client, NewJob, WorkerPool


@dataclass
class Other:
    n: int


@jobs.handles(Welcome)  # error
def wrong(session: Session, job: Job[Other]) -> None: ...


@jobs.handles("by.name", detached=True)
def by_name(tx: None, job: Job[dict[str, Any]]) -> None: ...


def uses() -> None:
    assert_type(jobs.enqueue(Welcome("a")), Job[Welcome])
    assert_type(jobs.enqueue(NewJob(Welcome("a"))), Job[Welcome])
    assert_type(jobs.enqueue(Welcome("a"), tx=db.session, priority=1).args.email, str)
    assert_type(jobs.enqueue(Welcome("a"), tx=None), Job[Welcome])
    assert_type(jobs.enqueue({"a": 1}, kind="x"), Job[dict[str, int]])
    assert_type(jobs.enqueue_many([Welcome("a"), Other(1)], queue="mail"), list[Job[Any]])
    assert_type(jobs.enqueue_many([Other(1)], returning=False), int)
    assert_type(jobs.client, Client)
    assert_type(jobs.worker_pool(queues={"mail": 1}), WorkerPool)
    jobs.enqueue(Other(1), prioritty=1)  # error
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "uses.py"
    file.write_text(PAGE.program(PLACEHOLDER) + USES)
    return file


def wanted(program: Path) -> set[int]:
    return {number for number, line in enumerate(program.read_text().splitlines(), 1) if line.endswith("# error")}


def test_mypy_finds_the_wrong_uses_alone(program: Path, tmp_path: Path) -> None:
    cache = ROOT / ".mypy_cache" if (ROOT / ".mypy_cache").is_dir() else tmp_path
    options = ["--strict", "--config-file=", "--no-error-summary", f"--cache-dir={cache}", "--python-version=3.11"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(program)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert not done.stderr, done.stderr
    assert {int(line) for line in re.findall(r"uses\.py:(\d+): error: ", done.stdout)} == wanted(program), done.stdout


@pytest.mark.tools
def test_pyright_finds_the_wrong_uses_alone(program: Path) -> None:
    settings = {"extraPaths": [str(ROOT)], "typeCheckingMode": "strict", "reportUnusedFunction": False}
    (program.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, program.name]
    done = subprocess.run(command, cwd=program.parent, capture_output=True, text=True, check=False)
    errors = [found for found in json.loads(done.stdout)["generalDiagnostics"] if found["severity"] == "error"]
    assert {found["range"]["start"]["line"] + 1 for found in errors} == wanted(program), errors
