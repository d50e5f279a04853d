"""`pgjobs doctor`: its lines, its JSON and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from pgjobs import Client, Finding, Severity
from pgjobs.cli import main
from pgjobs.observe.doctor import CHECKS
from tests.acceptance.cli_program import of, run


@pytest.fixture
def findings(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the doctor finds, which a test may change."""
    findings: list[Finding] = []
    monkeypatch.setattr(Client, "doctor", lambda self, **options: findings)
    return findings


@pytest.mark.parametrize(
    ("severities", "ends"),
    [
        ([], (0, "nothing found")),
        ([Severity.NOTICE, Severity.NOTICE], (0, "2 notices")),
        ([Severity.WARNING, Severity.NOTICE], (5, "1 warning, 1 notice")),
        ([Severity.CRITICAL, Severity.WARNING], (6, "1 critical finding, 1 warning")),
    ],
    ids=["none", "notices", "warning", "critical"],
)
def test_the_exit_code_is_that_of_the_most_urgent_finding(
    client: Client,
    findings: list[Finding],
    capsys: pytest.CaptureFixture[str],
    severities: list[Severity],
    ends: tuple[int, str],
) -> None:
    findings += [Finding("queues", severity, "what", "why", "advice") for severity in severities]
    code = main(["doctor", *of(client)])
    assert (code, capsys.readouterr().err.strip()) == ends


def test_a_finding_says_what_why_and_what_to_do(
    client: Client, findings: list[Finding], capsys: pytest.CaptureFixture[str]
) -> None:
    findings.append(Finding("queues", Severity.WARNING, "a\x1b[31m queue", "it matters", "do something"))
    main(["doctor", *of(client)])
    assert capsys.readouterr().out.splitlines() == [
        "WARNING   queues: a\\x1b[31m queue",
        "          Why: it matters",
        "          Do:  do something",
    ]


def test_it_runs_as_a_program(client: Client) -> None:
    done = run("doctor", "--all", *of(client))
    assert done.code in (5, 6), "the server of the tests is fast, and not safe"
    shown = {line.split()[1].rstrip(":") for line in done.lines if not line.startswith(" ")}
    assert shown == {check.name for check in CHECKS}
    assert "OK        schema: the tables are those of this version" in done.lines


def test_json_is_one_object_for_each_finding(client: Client) -> None:
    with client.pool.connection() as conn:
        conn.execute(f"DROP INDEX {client.schema}.job_due".encode())
    done = run("doctor", "--json", *of(client))
    assert done.code == 6
    found = [json.loads(line) for line in done.lines]
    (missing,) = [finding for finding in found if finding["check"] == "indexes"]
    assert list(missing) == ["check", "severity", "what", "why", "advice"]
    assert missing["severity"] == "critical"
    assert missing["what"] == "the index 'job_due' of table job is missing"


def test_tables_that_are_missing_are_a_finding_and_no_error(fresh_database: str) -> None:
    done = run("doctor", "--dsn", fresh_database)
    assert done.code == 6
    assert "schema: there are no pgjobs tables in schema 'pgjobs'" in done.out


def test_a_database_that_is_away_is_an_error(fresh_database: str) -> None:
    done = run("doctor", "--dsn", psycopg.conninfo.make_conninfo(fresh_database, dbname="nowhere"))
    assert (done.code, done.out) == (1, "")
    assert 'database "nowhere" does not exist' in done.err


def test_an_app_tells_how_many_threads_its_pool_has(client: Client, database: str, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(
        "from pgjobs import Client, WorkerPool\n"
        "from psycopg_pool import ConnectionPool\n"
        f"client = Client(ConnectionPool({database!r}, min_size=0, max_size=5, open=False), schema={client.schema!r})\n"
        "pool = WorkerPool(client, {'thing': lambda tx, job: None}, queues={'default': 20})\n"
    )
    done = run("doctor", "--app", "worker:pool", cwd=tmp_path)
    assert "pool: 20 worker threads need a connection pool of at least 22" in done.out
