"""Every example, run as a reader would run it, prints what stands at its end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import new_database

HERE = Path(__file__).parent
EXAMPLES = sorted(path for path in HERE.glob("*.py") if path.stem not in ("__init__", Path(__file__).stem))


def expected_output(example: Path) -> str:
    """The comment lines after `# Output:`, which end the file."""
    _, marker, comments = example.read_text().partition("\n# Output:\n")
    assert marker, f"{example.name} does not say what it prints"
    lines = comments.splitlines()
    assert lines, f"{example.name} prints nothing"
    assert all(re.match("# ", line) for line in lines), f"{example.name} has more than comments after its output"
    return "".join(f"{line.removeprefix('# ')}\n" for line in lines)


def run(example: Path, dsn: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", example],
        env=os.environ | {"DATABASE_URL": dsn},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def shared_database(server_dsn: str) -> Iterator[str]:
    """One database for all examples, as a reader would have: what one leaves behind must not disturb another."""
    with new_database(server_dsn) as dsn:
        yield dsn


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_stands_at_its_end_however_often_it_is_run(example: Path, shared_database: str) -> None:
    for _ in range(2):
        done = run(example, shared_database)
        assert done.stdout == expected_output(example), done.stderr
        assert done.returncode == 0, done.stderr
        # only those of the failed attempts that an example shows
        assert done.stderr.count("Traceback") == done.stderr.count(" failed, ")


def test_the_examples_are_found() -> None:
    assert {"insert_and_work", "graceful_shutdown", "print_names"} <= {example.stem for example in EXAMPLES}
