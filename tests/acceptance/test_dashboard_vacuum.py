"""VACUUM from the page Maintenance: in the background, by operators alone, and with a word on how it ended."""

from __future__ import annotations

import threading
from typing import Any, NoReturn

import psycopg
import pytest
from psycopg import sql as composing
from psycopg.conninfo import make_conninfo

from pgjobs import Client
from pgjobs.dashboard import User
from pgjobs.dashboard.queries import DashboardQueries
from pgjobs.db.repair import TABLES
from pgjobs.db.source import PoolSource
from pgjobs.db.statements import load
from tests.acceptance.dashboard_site import Site
from tests.acceptance.test_dashboard import audit
from tests.conformance.conftest import Rows
from tests.conformance.conftest import sql as sql_fixture
from tests.conftest import Connect
from tests.samples import Thing
from tests.waiting import wait_until

VACUUM = "/maintenance/vacuum"
sql = sql_fixture


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than the answer waits."""
    monkeypatch.setattr("pgjobs.dashboard.pages.maintenance._PATIENCE", 20.0)


def acts(client: Client) -> list[tuple[str, str, Any, int]]:
    """The rows of the audit, without the time that a vacuum took."""
    return [(who, act, {k: v for k, v in target.items() if k != "seconds"}, n) for who, act, target, n in audit(client)]


@pytest.mark.conformance(289)
def test_a_table_is_vacuumed_and_analyzed(client: Client, sql: Rows) -> None:
    client.enqueue_many(None, [Thing(n) for n in range(50)])
    client.list_jobs()
    sql("DELETE FROM pgjobs.job")
    site = Site(client, auth=lambda environ: User("ada", "operator"))
    assert "Vacuum</button>" in site.page("/maintenance")
    assert "1 table vacuumed." in site.act(VACUUM, {"table": "job"})
    ((vacuumed, analyzed),) = sql(
        "SELECT last_vacuum, last_analyze FROM pg_stat_all_tables WHERE relid = 'pgjobs.job'::regclass"
    )
    assert vacuumed is not None
    assert analyzed is not None
    about = {"table": "job"}
    assert acts(client) == [("ada", "start-vacuum", about, 1), ("ada", "vacuum-tables", about, 1)]
    assert "table being vacuumed" in site.page("/audit")


@pytest.mark.parametrize("table", TABLES)
def test_each_table_of_pgjobs_can_be_vacuumed(client: Client, table: str) -> None:
    assert "1 table vacuumed." in Site(client).act(VACUUM, {"table": table})


@pytest.mark.conformance(289)
@pytest.mark.parametrize(
    "table", ["", "non-existing-table", "jobs", "history", "pg_class", "job; DROP TABLE job", 'job"', "JOB", "\0"]
)
def test_another_name_is_refused_before_any_sql(table: str) -> None:
    with Client("postgresql://localhost:1/none") as client:  # any statement would take long, and fail
        answer = Site(client).post(VACUUM, {"table": table})
    assert answer.status_code == 400
    assert "pgjobs has no table" in answer.text
    assert "job_progress" in answer.text


def test_a_viewer_cannot_vacuum(client: Client) -> None:
    site = Site(client, auth=lambda environ: User("eve"))
    assert "Vacuum</button>" not in site.page("/maintenance")
    assert site.post(VACUUM, {"table": "job"}).status_code == 403
    assert audit(client) == []


def test_a_role_without_the_right_is_told_what_to_do(client: Client, database: str, connect: Connect) -> None:
    """Postgres itself would only warn, and vacuum nothing."""
    admin = connect(autocommit=True)
    role = composing.Identifier(f"{client.schema}_eve")
    admin.execute(composing.SQL("CREATE ROLE {}").format(role))
    admin.execute(composing.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(composing.Identifier(client.schema), role))
    everything = composing.SQL("GRANT ALL ON ALL TABLES IN SCHEMA {} TO {}")
    admin.execute(everything.format(composing.Identifier(client.schema), role))
    if admin.info.server_version >= 170000:
        admin.execute(
            composing.SQL("REVOKE MAINTAIN ON ALL TABLES IN SCHEMA {} FROM {}").format(
                composing.Identifier(client.schema), role
            )
        )
    try:
        dsn = make_conninfo(database, options=f"-c role={client.schema}_eve")
        with Client(dsn, schema=client.schema) as eve:
            answer = Site(eve).post(VACUUM, {"table": "job"})
            assert answer.status_code == 403
            assert f"may not vacuum table {client.schema}.job" in answer.text
            assert f"Run VACUUM (ANALYZE) {client.schema}.job as its owner" in answer.text
            if admin.info.server_version >= 170000:
                table = composing.Identifier(client.schema, "job")
                admin.execute(composing.SQL("GRANT MAINTAIN ON {} TO {}").format(table, role))
                assert Site(eve).post(VACUUM, {"table": "job"}).status_code == 303
    finally:
        admin.execute(composing.SQL("DROP OWNED BY {}").format(role))
        admin.execute(composing.SQL("DROP ROLE {}").format(role))


def test_it_waits_for_no_lock_and_says_so(client: Client, connect: Connect) -> None:
    other = connect()
    other.execute(
        composing.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(
            composing.Identifier(client.schema, "queue")
        )
    )
    answer = Site(client).post(VACUUM, {"table": "queue"})
    assert answer.status_code == 409
    assert "Table queue was not vacuumed, since another transaction, perhaps autovacuum" in answer.text
    other.rollback()
    *_, (_, act, target, count) = acts(client)
    assert (act, count, target["table"]) == ("vacuum-tables", 0, "queue")
    assert "holds a lock" in target["problem"]


def test_a_long_one_goes_on_in_the_background(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, vacuum = threading.Event(), DashboardQueries.vacuum
    began = []

    def slow(queries: DashboardQueries, conn: Any, table: str) -> None:
        began.append(table)
        assert go_on.wait(20)
        vacuum(queries, conn, table)

    monkeypatch.setattr(DashboardQueries, "vacuum", slow)
    monkeypatch.setattr("pgjobs.dashboard.pages.maintenance._PATIENCE", 0.05)
    site = Site(client)
    try:
        assert "1 table being vacuumed." in site.act(VACUUM, {"table": "job"})
        assert "1 table being vacuumed." in site.act(VACUUM, {"table": "job"}), "it joins the one that runs"
        assert site.get("/jobs").status_code == 200
    finally:
        go_on.set()
    wait_until(lambda: [act for _, act, _, _ in audit(client)].count("vacuum-tables") == 1)
    assert began == ["job"]
    assert acts(client)[-1] == ("local", "vacuum-tables", {"table": "job"}, 1)


def test_one_that_takes_too_long_is_cancelled(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleeps(queries: DashboardQueries, conn: Any, table: str) -> None:
        conn.execute("SELECT pg_sleep(60)")

    monkeypatch.setattr(DashboardQueries, "vacuum", sleeps)
    monkeypatch.setattr("pgjobs.dashboard.vacuums._TIMEOUT", 0.1)
    answer = Site(client).post(VACUUM, {"table": "job"})
    assert answer.status_code == 500
    assert "it was cancelled" in answer.text
    assert acts(client)[-1][3] == 0


def test_what_the_database_refuses_is_told_and_written_down(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(queries: DashboardQueries, conn: Any, table: str) -> None:
        conn.execute(b"VACUUM (NONSENSE) x")

    monkeypatch.setattr(DashboardQueries, "vacuum", refused)
    answer = Site(client).post(VACUUM, {"table": "job"})
    assert answer.status_code == 500
    assert "unrecognized VACUUM option" in answer.text
    assert "unrecognized VACUUM option" in acts(client)[-1][2]["problem"]


def test_an_unexpected_error_is_no_success(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pool of the application opens connections as it likes, and fails with any error. Only the log has its text."""

    def no_password(source: PoolSource, dsn: str | None = None) -> NoReturn:
        raise RuntimeError("the token is 5ecret")

    site = Site(client)
    site.page("/maintenance")
    monkeypatch.setattr(PoolSource, "connect", no_password)
    answer = site.post(VACUUM, {"table": "job"})
    assert answer.status_code == 500
    assert "Table job was not vacuumed, for RuntimeError: the log of the dashboard says more." in answer.text
    _, act, about, count = acts(client)[-1]
    assert (act, count, about["problem"].split(":")[0]) == ("vacuum-tables", 0, "not vacuumed, for RuntimeError")
    assert "5ecret" not in f"{answer.text}{about}"
    assert "5ecret" in caplog.text


def test_one_that_gets_no_thread_does_not_keep_the_table(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def none_left(thread: threading.Thread) -> None:
        if thread.name == "pgjobs/vacuum":
            raise RuntimeError("can't start new thread")
        start(thread)

    site = Site(client)
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", none_left)
        assert site.post(VACUUM, {"table": "job"}).status_code == 500
    assert "1 table vacuumed." in site.act(VACUUM, {"table": "job"})


def test_a_warning_of_the_database_is_told(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is how VACUUM says that it has passed over a table."""

    def warned(queries: DashboardQueries, conn: Any, table: str) -> None:
        conn.execute(b"DO $$ BEGIN RAISE NOTICE 'fine'; RAISE WARNING 'skipped'; END $$")

    monkeypatch.setattr(DashboardQueries, "vacuum", warned)
    answer = Site(client).post(VACUUM, {"table": "job"})
    assert answer.status_code == 500
    assert "Table job was perhaps not vacuumed; the database warns: skipped." in answer.text
    assert acts(client)[-1][3] == 0


def test_a_vacuum_that_runs_is_shown(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DashboardQueries, "running_vacuums", lambda *given: {"job": "scanning heap, 40 %"})
    page = Site(client).page("/maintenance")
    assert "runs: scanning heap, 40 %" in page
    assert 'name="table" value="job"' not in page


def test_the_statement_that_shows_them_runs_on_this_server(client: Client, connect: Connect) -> None:
    conn: psycopg.Connection[Any] = connect(autocommit=True)
    assert conn.execute(load("dashboard.sql", client.schema)["vacuums"]).fetchall() == []
