"""The benchmarks still run, on a handful of jobs. What they measure is nobody's to assert."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg

ROOT = Path(__file__).parent.parent.parent


def test_the_drain_benchmark_prints_its_table_and_cleans_up(fresh_database: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.drain", "--jobs", "24", "--rounds", "1", "--threads", "1", "3"],
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": fresh_database},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.match(r"Postgres \d+.*, fsync o", done.stdout)
    head, *rows = done.stdout.split("\n\n")[1].splitlines()
    assert head.split() == ["threads", "jobs/s", "min-max", "floor", "prepared", "floor", "simple", "ratio"]
    assert [row.split()[0] for row in rows] == ["1", "3"]
    assert all(re.fullmatch(r" +\d+ +[\d,]+ +[\d,]+-[\d,]+ +[\d,]+ +[\d,]+ +\d+\.\d\d", row) for row in rows)
    with psycopg.connect(fresh_database) as conn:
        assert conn.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^pgjobs'").fetchall() == []


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
