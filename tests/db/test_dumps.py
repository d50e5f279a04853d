"""A database that is restored from a dump, of whatever kind, works on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgjobs import Client, Schedule
from pgjobs.db import migration_plan
from pgjobs.embedded import find_bindir
from tests.conftest import new_database
from tests.db.conftest import running
from tests.db.seen_to import seen_to

PROGRAMS = find_bindir()
needs_dump = pytest.mark.skipif(not (PROGRAMS / "pg_dump").exists(), reason="there is no pg_dump here")


def program(name: str, *arguments: str, errors: bool = False) -> None:
    done = subprocess.run([PROGRAMS / name, *arguments], capture_output=True, text=True, check=False)
    assert errors or done.returncode == 0, done.stderr


@pytest.fixture
def target(server_dsn: str) -> Iterator[str]:
    with new_database(server_dsn) as dsn:
        yield dsn


def old_jobs(own_client: Client) -> None:
    for n in range(3):
        own_client.enqueue(None, {"name": f"old {n}"}, kind="thing")
    own_client.schedules.add(Schedule("stored", "@every 1h", {"name": "stored"}, kind="thing"))


@needs_dump
@pytest.mark.finding("W4")
@pytest.mark.parametrize(
    ("form", "options", "jobs"),
    [
        ("plain", [], 3),
        ("custom", [], 3),
        ("plain", ["--schema=pgjobs", "--no-owner", "--no-privileges", "--no-comments"], 3),
        ("plain", ["--inserts"], 3),
        ("plain", ["--schema-only"], 0),
        ("custom", ["--schema-only"], 0),
        ("plain", ["--exclude-table-data=pgjobs.*"], 0),
        ("custom", ["--exclude-table-data=pgjobs.migration", "--exclude-table-data=pgjobs.maintenance"], 3),
        ("plain", ["--exclude-table=pgjobs.migration"], 3),
    ],
    ids=lambda value: " ".join(value) or "whole" if isinstance(value, list) else str(value),
)
def test_a_database_that_is_restored_from_a_dump_works_on(
    own_client: Client,
    fresh_database: str,
    target: str,
    *,
    tmp_path: Path,
    form: str,
    options: list[str],
    jobs: int,
) -> None:
    """From a dump of the schema alone `migrate` died with DuplicateTable; without our rows nothing was rescued."""
    old_jobs(own_client)
    dump = tmp_path / "dump"
    program("pg_dump", f"--format={form}", f"--file={dump}", *options, fresh_database)
    if form == "plain":
        program("psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={dump}", target)
    else:
        program("pg_restore", "--exit-on-error", f"--dbname={target}", str(dump))
    with Client(target) as restored, running(target) as run:
        assert restored.count().total == jobs
        assert restored.migrate() == []
        restored.check_schema()
        assert restored.migrate() == []
        assert restored.enqueue(None, {"name": "new"}, kind="thing").id > jobs
        seen_to(restored, run)
        assert restored.migrate(direction="down", target=0)


@needs_dump
@pytest.mark.finding("W4")
@pytest.mark.parametrize("form", ["plain", "custom"])
def test_rows_alone_are_restored_into_tables_that_are_there(
    own_client: Client, fresh_database: str, target: str, tmp_path: Path, form: str
) -> None:
    """The rows that are there already cannot come again, which psql and pg_restore say, and pass over."""
    old_jobs(own_client)
    dump = tmp_path / "dump"
    program("pg_dump", "--data-only", f"--format={form}", f"--file={dump}", fresh_database)
    with Client(target) as restored, psycopg.connect(target, autocommit=True) as conn:
        restored.migrate()
        if form == "plain":
            program("psql", "--no-psqlrc", "--quiet", f"--file={dump}", target, errors=True)
        else:
            program("pg_restore", "--data-only", f"--dbname={target}", str(dump), errors=True)
        restored.check_schema()
        assert [job.args["name"] for job in restored.list_jobs().jobs] == ["old 0", "old 1", "old 2"]
        assert restored.enqueue(None, {"name": "new"}, kind="thing").id == 4
        assert [row.name for row in restored.schedules.list()] == ["stored"]
        assert conn.execute("SELECT count(*) FROM pgjobs.migration").fetchone() == (len(migration_plan.versions()),)
