"""The last figures of a worker pool, which it writes when it stops: not lost without a word on a slow database."""

from __future__ import annotations

import signal
import threading
from datetime import timedelta

import pytest
from psycopg import sql

from pgjobs import Client, WorkerPool
from pgjobs.db import statements
from tests.conftest import Connect
from tests.samples import Thing, nothing
from tests.waiting import wait_until

SOON = timedelta(seconds=60)


def completed(client: Client) -> int:
    """How many attempts stand in the table of figures."""
    return sum(each.completed for each in client.stats(by=[]))


class SlowTable:
    """The table of figures, whose writes wait until `go`."""

    def __init__(self, client: Client, connect: Connect) -> None:
        self._holder, self._seen_by = connect(autocommit=True), connect(autocommit=True)
        self._key = self._holder.info.backend_pid
        schema, function = sql.Identifier(client.schema), sql.Identifier(client.schema, "wait_to_write")
        self._holder.execute(
            sql.SQL(
                "CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "PERFORM pg_advisory_xact_lock({key}); RETURN NULL; END $$; "
                "CREATE TRIGGER slow BEFORE INSERT ON {schema}.figure EXECUTE FUNCTION {function}()"
            ).format(schema=schema, function=function, key=self._key)
        )
        self._holder.execute("SELECT pg_advisory_lock(%s)", [self._key])

    @property
    def is_written_to(self) -> bool:
        query = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = %s"
        return self._seen_by.execute(query, [self._key]).fetchone() is not None

    def go(self) -> None:
        self._holder.execute("SELECT pg_advisory_unlock(%s)", [self._key])


@pytest.fixture
def slow_table(client: Client, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> SlowTable:
    lines = statements.load("workers.sql", client.schema)
    patient = lines["add_figures"].replace(b"lock_timeout = '1s'", b"lock_timeout = '60s'")
    patient = patient.replace(b"statement_timeout = '5s'", b"statement_timeout = '60s'")
    monkeypatch.setitem(lines, "add_figures", patient)
    return SlowTable(client, connect)


def test_a_stop_waits_for_the_last_write_as_long_as_it_may_last(
    client: Client, slow_table: SlowTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pgjobs.worker_pool._LAST_WRITES", 60.0)
    pool = WorkerPool(client, {Thing: nothing}, queues={"default": 1}, stop_timeout=SOON)
    with pool:
        client.wait(client.enqueue(None, Thing()), timeout=SOON)
        stop = threading.Thread(target=pool.stop)
        stop.start()
        wait_until(lambda: slow_table.is_written_to)
        stop.join(1)
        assert stop.is_alive(), "it gave up after 0.4 seconds, and the process ended"
        slow_table.go()
        stop.join(30)
        assert completed(client) == 1
    assert "figures" not in caplog.text


@pytest.mark.parametrize("hurry", ["no time", "told to hurry"])
def test_a_stop_that_cannot_wait_says_what_it_has_not_written(
    client: Client,
    slow_table: SlowTable,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hurry: str,
) -> None:
    monkeypatch.setattr("pgjobs.worker_pool._LAST_WRITES", 60.0)
    pool = WorkerPool(client, {Thing: nothing}, queues={"default": 1}, stop_timeout=SOON)
    pool.start()
    client.wait(client.enqueue(None, Thing()), timeout=SOON)
    if hurry == "told to hurry":
        stop = threading.Thread(target=pool.stop)
        stop.start()
        wait_until(lambda: slow_table.is_written_to)
        pool.stop_and_cancel()
        stop.join(30)
    else:
        pool.stop_and_cancel()
    wait_until(lambda: slow_table.is_written_to)  # still: the stop did not wait for the write
    (told,) = [line for line in caplog.messages if "figures" in line]
    assert "the figures of 1 attempt are not in the table" in told
    slow_table.go()
    wait_until(lambda: completed(client) == 1), "the process lives on, and so does the write"


def test_ctrl_c_during_the_last_write_leaves_a_pool_that_can_be_stopped(
    client: Client, slow_table: SlowTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.worker_pool._LAST_WRITES", 60.0)
    pool = WorkerPool(client, {Thing: nothing}, queues={"default": 1}, stop_timeout=SOON)
    pool.start()
    client.wait(client.enqueue(None, Thing()), timeout=SOON)

    def press_ctrl_c() -> None:
        wait_until(lambda: slow_table.is_written_to)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=press_ctrl_c).start()
    with pytest.raises(KeyboardInterrupt):
        pool.stop()
    assert pool.running
    slow_table.go()
    pool.stop()
    assert not pool.running, "every later stop did nothing"


def test_a_stop_whose_last_write_fails_says_so(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with WorkerPool(client, {Thing: nothing}, queues={"default": 1}) as pool, client.pool.connection() as tx:
        client.wait(client.enqueue(None, Thing()), timeout=SOON)
        tx.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(sql.Identifier(client.schema, "figure")))
        pool.stop()
    told = [line for line in caplog.messages if "figures" in line]
    assert any("the writing of figures failed: " in line for line in told)
    assert any("the figures of 1 attempt are not in the table" in line for line in told)
