"""The benchmarks still run, on a handful of jobs. What they measure is nobody's to assert."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str, database: str | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | ({} if database is None else {"DATABASE_URL": database}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_benchmark_prints_its_tables_and_cleans_up(fresh_database: str, tmp_path: Path) -> None:
    sizes = ["--jobs", "24", "--rounds", "1", "--threads", "1", "3", "--results", str(tmp_path)]
    parts = ["--parts", "drain", "batch", "insert", "waits", "enqueue", "process"]
    said = run("benchmarks.bench", *sizes, *parts, database=fresh_database)
    assert re.match(r"Postgres \d+.*, fsync o", said)
    _, *tables = said.split("\n\n")
    assert [table.splitlines()[1].split() for table in tables[:1]] == [["median", "min", "max", "ratio"]]
    drains = [row for row in tables[0].splitlines() if row.startswith("pgjobs")]
    assert [row.split(",")[1].split()[:2] for row in drains] == [["1", "threads"], ["3", "threads"]]
    assert all(re.search(r" [\d,.]+ +[\d,.]+ +[\d,.]+ +\d+\.\d\d$", row) for row in drains)
    answers = json.loads((tmp_path / "bench.json").read_text())["questions"]
    assert list(answers) == ["drain", "batch", "insert", "pickup", "scheduled", "enqueue", "enqueue_many", "memory"]
    assert answers["pickup"]["arms"][0]["of"] == 24
    assert (tmp_path / "bench.svg").exists()
    with psycopg.connect(fresh_database) as conn:
        assert conn.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^pgjobs'").fetchall() == []


def grown(results: Path, *parts: str) -> dict[str, Any]:
    """The questions that `make bench-growth` answers, in small."""
    sizes = ["--rows", "200", "--jobs", "40", "--rounds", "1", "--results", str(results)]
    said = run("benchmarks.growth", *sizes, "--parts", *parts)
    questions: dict[str, Any] = json.loads((results / "growth.json").read_text())["questions"]
    assert all(question["title"] in said for question in questions.values())
    return questions


def test_growth_beside_a_backlog(tmp_path: Path) -> None:
    questions = grown(tmp_path, "backlog")
    assert {"200 waiting", "200 future", "200 completed"} < questions.keys()
    for question in questions.values():
        without, beside, *_ = question["arms"]
        assert beside["over"] == [without["name"]]
    assert (tmp_path / "growth-backlog.svg").exists()


def test_growth_by_plans_and_in_one_transaction(tmp_path: Path) -> None:
    questions = grown(tmp_path, "plan", "one_transaction")
    assert questions["plan"]["notes"][1].startswith("200 waiting: job_fetch; ")
    assert questions["worked off"]["arms"][0]["median"] > 0


@pytest.mark.skipif(not shutil.which("cc"), reason="the slow disk is a program in C")
def test_growth_by_threads_and_on_a_slow_disk(tmp_path: Path) -> None:
    assert list(grown(tmp_path, "threads")) == ["threads, this disk", "threads, +1 ms per flush"]
    assert (tmp_path / "growth-threads.svg").exists()


def test_the_crash_benchmark_finds_that_we_leave_no_effect_without_a_finished_job() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.crash",
            "--queues",
            "pgjobs",
            "--kills",
            "2",
            "--jobs",
            "800",
            "--again",
            "0",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row = done.stdout.splitlines()[1]
    assert row.split()[:4] == ["pgjobs", "2", "0", "(0-0)"]


def test_the_bulk_benchmark_prints_its_table(fresh_database: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bulk", "--jobs", "400", "--dsn", fresh_database],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    head, _, *rows = done.stdout.splitlines()
    assert head.startswith("| way | jobs | jobs/s | client MB | notifications |")
    assert [row.split(" | ")[:2] for row in rows] == [["| with ids", "40"], ["| without", "400"], ["| unique", "20"]]
    assert [row.split(" | ")[4] for row in rows] == ["1"] * 3, "one notification, however many jobs"


def test_the_waking_benchmark_prints_its_tables(fresh_database: str) -> None:
    small = ["--clients", "2", "3", "--seconds", "1", "--rounds", "1", "--jobs", "10"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.wake", *small],
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": fresh_database},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    commits, pickup = done.stdout.split("\n\n")
    assert [row.split()[0] for row in commits.splitlines()[2:]] == ["2", "3"]
    assert all(re.fullmatch(r" +\d+( +[\d,]+ \d+\.\d\d +){4}", row + " ") for row in commits.splitlines()[2:])
    assert [row.split()[:2] for row in pickup.splitlines()[2:]] == [["sparse", "10"], ["dense", "10"]]
