"""A small project whose tests take the fixtures of pgjobs.testing, run as its author would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgjobs.testing import Jobs, MemoryClient, Performed
from pgjobs.testing.wanted import NAMES
from tests.documents import PAGES, ROOT

APP = """
from dataclasses import dataclass

from pgjobs import WorkMap


@dataclass
class Welcome:
    email: str


work_map = WorkMap()


@work_map.handles(Welcome)
def welcome(tx, job):
    tx.execute("INSERT INTO greeting VALUES (%s)", [job.args.email])


def signup(client, tx, email):
    client.enqueue(tx, Welcome(email), queue="mail")
"""

CONFTEST = """
import pytest

from app import work_map
from pgjobs import Client

pytest_plugins = ["pgjobs.testing.fixtures"]


@pytest.fixture(scope="session")
def pgjobs_client(pgjobs_dsn):
    with Client(pgjobs_dsn, work_map=work_map) as client:
        client.migrate()
        with client.pool.connection() as conn:
            conn.execute("CREATE TABLE IF NOT EXISTS greeting (email text)")
        yield client
"""

TESTS = """
import pytest

from app import Welcome, signup


@pytest.mark.parametrize("number", range(6))
def test_signup(jobs, pgjobs_client, number):
    assert jobs.empty()
    signup(pgjobs_client, jobs.tx, f"{number}@example.com")
    jobs.assert_enqueued(Welcome(f"{number}@example.com"), queue="mail")
    assert jobs.drain().completed == 1
    assert jobs.tx.execute("SELECT count(*) FROM greeting").fetchone() == (1,)


def test_nothing_is_left(pgjobs_client):
    assert pgjobs_client.count().total == 0


def test_where(pgjobs_dsn, record_property):
    print(f"dsn: {pgjobs_dsn}")
"""

WRONG = """
from app import Welcome, signup


def test_wrong(jobs, pgjobs_client):
    signup(pgjobs_client, jobs.tx, "ada@example.com")
    jobs.assert_enqueued(Welcome("bob@example.com"))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in (("app", APP), ("conftest", CONFTEST), ("test_app", TESTS)):
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def run(project: Path, *arguments: str, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PGJOBS_TEST", "DATABASE_URL"))}
    env = {**kept, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "pytest", "-rP", "-p", "no:cacheprovider", "-W", "error", *arguments]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False, timeout=100)
    return done.stdout + done.stderr


def databases(server_dsn: str) -> set[str]:
    with psycopg.connect(server_dsn) as conn:
        return {name for (name,) in conn.execute("SELECT datname FROM pg_database").fetchall()}


def test_a_database_is_made_on_the_server_of_database_url_and_dropped(project: Path, server_dsn: str) -> None:
    said = run(project, DATABASE_URL=server_dsn)
    assert " 8 passed" in said, said
    (name,) = set(re.findall(r"dsn: .*(pgjobs_test_\w+)", said))
    assert name not in databases(server_dsn)


def test_the_processes_of_xdist_have_a_database_each(project: Path, server_dsn: str) -> None:
    assert " 8 passed" in run(project, "-n", "2", DATABASE_URL=server_dsn)


def test_a_database_that_is_named_for_tests_is_used_itself(project: Path, server_dsn: str, fresh_database: str) -> None:
    said = run(project, PGJOBS_TEST_DATABASE_URL=fresh_database, DATABASE_URL=make_conninfo(server_dsn, port="1"))
    assert " 8 passed" in said, said
    with psycopg.connect(fresh_database) as conn:
        assert conn.execute("SELECT count(*) FROM pgjobs.job").fetchone() == (0,)


def test_without_any_a_server_is_started(project: Path) -> None:
    said = run(project)
    assert " 8 passed" in said, said


def test_a_failure_shows_what_is_there_and_no_line_of_the_library(project: Path, fresh_database: str) -> None:
    (project / "test_app.py").write_text(WRONG)
    said = run(project, PGJOBS_TEST_DATABASE_URL=fresh_database)
    assert "AssertionError: job 1 of kind 'welcome' differs:" in said
    assert "args.email 'ada@example.com', expected 'bob@example.com'" in said
    assert "pgjobs/testing/" not in said


def test_the_page_of_the_guide_names_what_there_is() -> None:
    (page,) = (page for page in PAGES if page.name == "testing")
    objects = {"jobs": Jobs, "memory": MemoryClient(), "done": Performed}
    named = re.findall(r"`(jobs|memory|done)\.(\w+)", page.prose)
    assert len(named) > 15
    assert [name for of, name in named if not (hasattr(objects[of], name) or name == "tx")] == []
    assert [name for name in NAMES if f"`{name}`" not in page.prose] == []


def test_the_page_of_the_guide_is_a_test_module_that_passes(tmp_path: Path, fresh_database: str) -> None:
    (page,) = (page for page in PAGES if page.name == "testing")
    program = page.program(fresh_database)
    (tmp_path / "test_page.py").write_text(program)
    said = run(tmp_path, PGJOBS_TEST_DATABASE_URL=fresh_database)
    assert f" {program.count('def test_')} passed" in said, said
