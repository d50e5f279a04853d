"""The README: short, and its first program does what it says. tests/test_guide.py checks what all documents share."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psycopg

from pgjobs import JobState, guide
from tests.documents import PLACEHOLDER, README
from tests.waiting import wait_until

(PROGRAM,) = README.blocks("python")


def test_it_is_short() -> None:
    assert len(README.text.splitlines()) <= 200


def test_the_first_program_is_complete_and_short() -> None:
    lines = [line for line in PROGRAM.code.splitlines() if line.strip()]
    assert len(lines) <= 15
    assert PLACEHOLDER in PROGRAM.code
    assert ".run()" in lines[-1]


def test_the_first_program_prints_runs_its_job_and_ends_well_on_sigterm(fresh_database: str, tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text(README.program(fresh_database))
    command = [sys.executable, "-W", "error", str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            wait_until(lambda: process.poll() is not None or states(fresh_database) == ["completed"], timeout=30)
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert said == "".join(block.code for block in README.blocks("output")) != ""
    assert states(fresh_database) == ["completed"]
    with psycopg.connect(fresh_database) as conn:
        assert conn.execute("SELECT email FROM greeting").fetchall() == [("ada@example.com",)]


def states(dsn: str) -> list[str]:
    """The states of all jobs; none while there are no tables."""
    with psycopg.connect(dsn) as conn:
        if conn.execute("SELECT to_regclass('pgjobs.job')").fetchone() == (None,):
            return []
        return [state for (state,) in conn.execute("SELECT state FROM pgjobs.job")]


def test_the_diagram_shows_every_state() -> None:
    section = README.text.partition("## The life of a job")[2].partition("\n## ")[0]
    assert section
    assert [state for state in JobState if state not in section] == []


def test_it_links_to_every_page_of_the_guide() -> None:
    assert [topic for topic in guide.TOPICS if f"| [{topic}](pgjobs/guide/{topic}.md) |" not in README.text] == []


def test_it_shows_one_picture_at_most() -> None:
    assert README.text.count("![") <= 1
