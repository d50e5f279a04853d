"""The rebuild of the indexes: concurrently, once a day, and without anything left over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgjobs import Client, Job, WorkerPool
from pgjobs.maintenance.duties import Maintenance
from pgjobs.maintenance.index_queries import IndexQueries
from pgjobs.maintenance.queries import MaintenanceQueries
from pgjobs.maintenance.reindexer import MIDNIGHT, Reindex
from tests.conformance.conftest import Rows, server, sql
from tests.conftest import Connect
from tests.samples import Tx
from tests.waiting import wait_until

__all__ = ["server", "sql"]

OURS = {"job_due", "job_fetch", "job_final", "job_pkey", "job_running", "job_unique"}


@pytest.fixture
def reindex(client: Client) -> Iterator[Reindex]:
    reindex = Reindex(client.schema, client.source.connect, at=MIDNIGHT, name="reindex")
    yield reindex
    reindex.stop(10)


@pytest.fixture
def indexes(sql: Rows) -> Callable[[], dict[str, tuple[int, bool]]]:
    """The indexes of the job table by name: the file of each, and whether it is valid."""

    def read() -> dict[str, tuple[int, bool]]:
        rows = sql(
            """SELECT relname, relfilenode, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
            WHERE indrelid = 'pgjobs.job'::regclass"""
        )
        return {name: (file, valid) for name, file, valid in rows}

    return read


def changed(before: dict[str, tuple[int, bool]], after: dict[str, tuple[int, bool]]) -> set[str]:
    assert before.keys() == after.keys()
    assert all(valid for _, valid in after.values())
    return {name for name in before if before[name][0] != after[name][0]}


Indexes = Callable[[], dict[str, tuple[int, bool]]]


@pytest.mark.conformance(283)
def test_every_index_of_the_job_table_is_rebuilt_while_jobs_are_enqueued(
    client: Client, reindex: Reindex, indexes: Indexes, sql: Rows
) -> None:
    sql("CREATE INDEX mine ON pgjobs.job (kind)")
    before = indexes()
    rebuilt: list[str] = []
    thread = threading.Thread(target=lambda: rebuilt.extend(reindex.rebuild()))
    thread.start()
    while thread.is_alive():
        client.enqueue(None, dict[str, Any](), kind="thing")
    thread.join()
    assert set(rebuilt) >= OURS
    assert changed(before, indexes()) == set(rebuilt), "and none that is not ours"


@pytest.mark.conformance(283)
@pytest.mark.parametrize("left", ["job_fetch_ccnew", "job_fetch_ccnew31", "job_fetch_ccold1"])
def test_an_index_with_leftovers_is_skipped_and_said_to_be(
    reindex: Reindex, indexes: Indexes, sql: Rows, left: str, caplog: pytest.LogCaptureFixture
) -> None:
    sql(f"CREATE INDEX {left} ON pgjobs.job (kind)")
    before = indexes()
    assert "job_fetch" not in reindex.rebuild()
    assert changed(before, indexes()) >= OURS - {"job_fetch"}
    assert changed(before, indexes()).isdisjoint({"job_fetch", left})
    assert [left in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.conformance(283)
@pytest.mark.parametrize("why", ["stopped", "timed out"])
@pytest.mark.parametrize(
    ("holds", "left"),
    [
        ("INSERT INTO {}.job (kind) VALUES ('thing')", "_ccnew"),  # held up before it has built anything
        ("SELECT 1 FROM {}.job", "_ccold"),  # held up when nothing is left to do but to drop the old one
    ],
)
def test_a_rebuild_that_is_cut_off_removes_what_it_has_left_and_nothing_else(
    *,
    client: Client,
    reindex: Reindex,
    indexes: Indexes,
    sql: Rows,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    holds: str,
    left: str,
    why: str,
) -> None:
    first = "job_due"
    sql(f"CREATE INDEX {first}_ccnewa ON pgjobs.job (kind)")
    sql(f"CREATE INDEX other{left} ON pgjobs.job (kind)")
    before = indexes().keys()
    if why == "timed out":
        monkeypatch.setattr("pgjobs.maintenance.reindexer._TIMEOUT", 0.5)
    holder = connect()
    holder.execute(holds.format(f'"{client.schema}"'))
    reindex.start()
    (thread,) = rebuilding()
    wait_until(lambda: f"{first}{left}" in indexes())
    wait_until(lambda: is_dropping(sql, client) or why == "stopped")
    if why == "stopped":
        reindex.stop(0)
        wait_until(lambda: is_dropping(sql, client))
    holder.rollback()
    wait_until(lambda: f"{first}{left}" not in indexes())
    thread.join(20)
    assert indexes().keys() == before
    assert all(valid for _, valid in indexes().values())


def rebuilding() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "reindex"]


def is_dropping(sql: Rows, client: Client) -> bool:
    return bool(
        sql(
            "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s",
            f'%DROP INDEX CONCURRENTLY IF EXISTS "{client.schema}"%',
        )
    )


def test_a_rebuild_under_way_is_not_begun_again(client: Client, reindex: Reindex, connect: Connect) -> None:
    holder = connect()
    holder.execute(f"""INSERT INTO "{client.schema}".job (kind) VALUES ('thing')""")
    reindex.start()
    (first,) = rebuilding()
    reindex.start()
    assert rebuilding() == [first]
    holder.rollback()
    reindex.stop(20)
    assert not first.is_alive()


# --- R16: what cannot run in a transaction first commits that nobody else does it


@pytest.fixture
def noted(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instead of a rebuild: a note of each."""
    notes: list[str] = []
    monkeypatch.setattr(Reindex, "start", lambda self: notes.append("rebuilt"))
    return notes


@pytest.fixture
def at_midnight(client: Client, monkeypatch: pytest.MonkeyPatch) -> datetime:
    """For the database's clock, as the duty reads it, it has just been midnight."""
    now = datetime(2026, 5, 1, 0, 0, 1, tzinfo=UTC)
    monkeypatch.setattr(IndexQueries, "current_time", staticmethod(lambda conn: now))
    return now


def test_r16_the_rebuild_begins_when_its_next_time_is_committed(
    *, client: Client, reindex: Reindex, sql: Rows, server: Tx, at_midnight: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    left = "SELECT date_part('hour', next_run_at - clock_timestamp()) FROM pgjobs.maintenance WHERE duty = 'indexes'"
    monkeypatch.setattr(Reindex, "start", lambda self: seen.extend([*sql(left), server.info.transaction_status.name]))
    duties = Maintenance(client.schema, keep={}, reindex=reindex)
    assert duties.do(server, "indexes") == timedelta(hours=24, seconds=-1)
    assert seen == [(23.0,), "IDLE"]


def test_r16_a_day_has_one_rebuild_however_many_processes_there_are(
    *, client: Client, reindex: Reindex, server: Tx, connect: Connect, noted: list[str], at_midnight: datetime
) -> None:
    for _ in range(3):
        Maintenance(client.schema, keep={}, reindex=reindex).do(server, "indexes")
    assert noted == ["rebuilt"]


def test_r16_a_lease_that_cannot_be_committed_begins_no_rebuild(
    *, client: Client, reindex: Reindex, server: Tx, noted: list[str], at_midnight: datetime, sql: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def broken(*args: Any) -> None:
        raise psycopg.OperationalError("connection lost")

    duties = Maintenance(client.schema, keep={}, reindex=reindex)
    with monkeypatch.context() as patch:
        patch.setattr(MaintenanceQueries, "end_duty", staticmethod(broken))
        with pytest.raises(psycopg.OperationalError):
            duties.do(server, "indexes")
    server.execute("ROLLBACK")
    assert noted == []
    assert duties.do(server, "workers") > timedelta(0)
    assert noted == [], "nor does the next duty begin it"


def test_r16_nobody_makes_up_for_a_time_at_which_nobody_was_there(
    *, client: Client, reindex: Reindex, sql: Rows, server: Tx, noted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a first start, or one after a night of standstill, does not begin with a rebuild by day."""
    monkeypatch.setattr(IndexQueries, "current_time", staticmethod(lambda conn: datetime(2026, 5, 1, 9, tzinfo=UTC)))
    assert Maintenance(client.schema, keep={}, reindex=reindex).do(server, "indexes") == timedelta(hours=15)
    assert noted == []


@pytest.mark.conformance(283)
@pytest.mark.parametrize("wanted", [True, False])
def test_a_pool_rebuilds_at_its_time_or_never(client: Client, sql: Rows, indexes: Indexes, wanted: bool) -> None:
    def handler(tx: Tx, job: Job[Any]) -> None: ...

    ((now,),) = sql("SELECT clock_timestamp()")
    before = indexes()
    at = (now - timedelta(minutes=1)).astimezone(UTC).timetz()
    pool = WorkerPool(client, {"any": handler}, queues={"idle": 1}, reindex_at=at if wanted else None)
    seen = "SELECT count(*) FROM pgjobs.maintenance WHERE duty = ANY (%s) AND next_run_at > clock_timestamp()"
    with pool:
        wait_until(lambda: sql(seen, ["prune", "workers"]) == [(2,)])
        if wanted:
            wait_until(lambda: all(indexes().get(name, before[name]) != before[name] for name in OURS))
            wait_until(lambda: indexes().keys() == before.keys())
    assert sql(seen, ["indexes"]) == [(int(wanted),)]
    assert changed(before, indexes()) >= (OURS if wanted else set())
    assert wanted or before == indexes()
