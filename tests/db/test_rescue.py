"""Rescue: whose attempt counts when a worker vanished, what is left to others, and how much is taken at once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from pgjobs import Client, Job, JobState, WorkerPool
from pgjobs.maintenance.duties import Maintenance
from pgjobs.maintenance.queries import MaintenanceQueries
from tests.conformance.conftest import Rows, duties, server, sql, stored
from tests.conftest import Connect
from tests.samples import Tx
from tests.waiting import wait_until

__all__ = ["duties", "server", "sql", "stored"]

Leave = Callable[..., int]


@pytest.fixture
def leave(sql: Rows) -> Leave:
    """Leaves a running job behind that nobody holds; its id."""

    def leave(worker: str, attempt: int = 1, max_attempts: int = 1, kind: str = "thing", age: str = "1 h") -> int:
        ((id,),) = sql(
            """INSERT INTO pgjobs.job (kind, state, attempt, max_attempts, attempted_at, attempted_by, token)
            VALUES (%s, 'running', %s, %s, now() - %s::interval, ARRAY['before', %s], gen_random_uuid())
            RETURNING id""",
            kind,
            attempt,
            max_attempts,
            age,
            worker,
        )
        return int(id)

    return leave


def ended(sql: Rows) -> list[Any]:
    """State, attempt, number of errors and of attempts given back of each job."""
    return sql(
        """SELECT state, attempt, jsonb_array_length(errors),
            jsonb_array_length(coalesce(metadata -> 'excused', '[]'))
        FROM pgjobs.job ORDER BY id"""
    )


def run_again(sql: Rows, worker: str) -> None:
    sql(
        """UPDATE pgjobs.job SET state = 'running', attempt = attempt + 1, token = gen_random_uuid(),
            attempted_at = now() - interval '1 hour', attempted_by = attempted_by || %s::text
        WHERE state = 'retryable'""",
        worker,
    )


# --- neighbours


def test_a_job_that_was_alone_in_its_worker_has_had_its_attempt(
    sql: Rows, server: Tx, duties: Maintenance, leave: Leave
) -> None:
    leave("one")
    leave("other", max_attempts=2)
    duties.rescue(server)
    assert ended(sql) == [("discarded", 1, 1, 0), ("retryable", 1, 1, 0)]


def test_neighbours_that_never_failed_get_their_attempt_back(
    sql: Rows, server: Tx, duties: Maintenance, leave: Leave
) -> None:
    leave("gone")
    leave("gone")
    failed = leave("gone", attempt=2, max_attempts=2)
    sql("""UPDATE pgjobs.job SET errors = '[{"attempt": 1, "error": "failed"}]' WHERE id = %s""", failed)
    duties.rescue(server)
    assert ended(sql) == [("retryable", 0, 0, 1), ("retryable", 0, 0, 1), ("discarded", 2, 2, 0)]
    assert sql(
        """SELECT DISTINCT token, leased_until, finalized_at, metadata -> 'excused' -> 0 ->> 'worker',
            scheduled_at BETWEEN clock_timestamp() AND clock_timestamp() + interval '2 s'
        FROM pgjobs.job WHERE id <> %s""",
        failed,
    ) == [(None, None, None, "gone", True)]


def test_what_kills_its_process_and_always_has_neighbours_is_bounded_too(
    sql: Rows, server: Tx, duties: Maintenance, leave: Leave
) -> None:
    """Twice its attempt is excused, with growing delays. From then on each one counts."""
    leave("0", max_attempts=2)
    seen, delays = [], []
    for worker in range(1, 10):
        leave(f"{worker - 1}", max_attempts=25)  # the innocent one, another each time
        duties.rescue(server)
        seen.append(ended(sql)[0])
        delays += sql("SELECT date_part('epoch', scheduled_at - clock_timestamp()) FROM pgjobs.job WHERE id = 1")
        if seen[-1][0] == "discarded":
            break
        sql("DELETE FROM pgjobs.job WHERE id > 1")
        run_again(sql, f"{worker}")
    assert seen == [("retryable", 0, 0, 1), ("retryable", 0, 0, 2), ("retryable", 1, 1, 2), ("discarded", 2, 2, 2)]
    assert [0.9 < delays[0][0] < 2, 1.9 < delays[1][0] < 4] == [True, True]


def test_neighbours_that_are_rescued_one_after_the_other_are_neighbours_all_the_same(
    *, sql: Rows, server: Tx, connect: Connect, duties: Maintenance, leave: Leave, client: Client
) -> None:
    """The lock of one was free at once; that of the other only when the server noticed that its client is gone."""
    leave("gone")
    leave("gone")
    for name in ("gone", "other"):
        sql("INSERT INTO pgjobs.worker (id, host, pid, threads, version) VALUES (%s, 'h', 1, 2, '1')", name)
    holder = connect()
    holder.execute(f'SELECT FROM "{client.schema}".job WHERE id = 2 FOR NO KEY UPDATE')
    duties.rescue(server)
    assert ended(sql) == [("retryable", 0, 0, 1), ("running", 1, 0, 0)]
    holder.rollback()
    duties.rescue(server)
    assert ended(sql) == [("retryable", 0, 0, 1)] * 2
    assert sql("SELECT id FROM pgjobs.worker WHERE lost_at IS NOT NULL") == [("gone",)]

    leave("gone")
    sql("UPDATE pgjobs.worker SET lost_at = lost_at - interval '2 minutes'")
    duties.rescue(server)
    assert ended(sql)[2] == ("discarded", 1, 1, 0), "that was another time"


def test_a_neighbour_that_was_to_be_cancelled_is_cancelled(
    client: Client, sql: Rows, server: Tx, duties: Maintenance, leave: Leave
) -> None:
    leave("gone")
    client.cancel(leave("gone"), reason="enough")
    duties.rescue(server)
    assert ended(sql) == [("retryable", 0, 0, 1), ("cancelled", 1, 1, 0)]


def test_metadata_made_by_hand_holds_up_no_rescue(sql: Rows, server: Tx, duties: Maintenance, leave: Leave) -> None:
    for made in ('{"excused": 7}', '{"excused": {"a": 1}}', '{"excused": null, "mine": 1}'):
        sql("UPDATE pgjobs.job SET metadata = %s::jsonb WHERE id = %s", made, leave("gone"))
    duties.rescue(server)
    assert ended(sql) == [("retryable", 0, 0, 1)] * 3
    assert sql("SELECT metadata -> 'mine' FROM pgjobs.job WHERE id = 3") == [(1,)]


def test_the_late_record_of_an_excused_attempt_changes_nothing(
    client: Client, sql: Rows, server: Tx, duties: Maintenance, leave: Leave
) -> None:
    """Not that of a claim that never got its lock, either: it would give the attempt back a second time."""
    leave("gone")
    leave("gone")
    tokens = [token for (token,) in sql("SELECT token FROM pgjobs.job")]
    duties.rescue(server)
    for token in tokens:
        assert not client.queries.unclaim(server, queue="default", token=token)
    assert ended(sql) == [("retryable", 0, 0, 1)] * 2


# --- R24: a process that does not know the kind


def test_r24_a_last_attempt_of_an_unknown_kind_waits_for_a_process_that_knows_it(
    client: Client, sql: Rows, server: Tx, leave: Leave
) -> None:
    stranger = Maintenance(client.schema, keep={}, kinds=lambda: ["other"])
    knows = Maintenance(client.schema, keep={}, kinds=lambda: ["other", "thing"])
    leave("a")
    leave("b", max_attempts=2)
    leave("c", kind="other")
    stranger.rescue(server)
    assert ended(sql) == [("running", 1, 0, 0), ("retryable", 1, 1, 0), ("discarded", 1, 1, 0)]
    knows.rescue(server)
    assert ended(sql)[0] == ("discarded", 1, 1, 0)
    assert "kind" not in sql("SELECT errors -> 0 ->> 'error' FROM pgjobs.job WHERE id = 1")[0][0]


def test_r24_after_a_day_it_is_set_aside_by_whoever_finds_it(
    client: Client, sql: Rows, server: Tx, leave: Leave
) -> None:
    stranger = Maintenance(client.schema, keep={}, kinds=lambda: [])
    leave("a", age="23 hours 59 minutes")
    leave("b", age="24 hours 1 minute")
    stranger.rescue(server)
    assert ended(sql) == [("running", 1, 0, 0), ("discarded", 1, 1, 0)]
    assert "no process that knows this kind" in sql("SELECT errors -> 0 ->> 'error' FROM pgjobs.job WHERE id = 2")[0][0]


def test_r24_jobs_that_are_left_to_others_hide_no_job_behind_them(
    client: Client, sql: Rows, server: Tx, leave: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.maintenance.batch_size.LARGE_BATCH", 2)
    for worker in "abc":
        leave(worker)
    leave("d", max_attempts=2)
    client.cancel(leave("e"))
    Maintenance(client.schema, keep={}, kinds=lambda: []).rescue(server)
    assert [state for state, *_ in ended(sql)] == ["running"] * 3 + ["retryable", "cancelled"], "a wish is fulfilled"


@pytest.mark.parametrize("knows", [False, True])
def test_r24_a_pool_that_takes_every_kind_knows_every_kind(
    client: Client, sql: Rows, leave: Leave, knows: bool
) -> None:
    def handler(tx: Tx, job: Job[Any]) -> None: ...

    leave("a")
    leave("b", max_attempts=2)
    pool = WorkerPool(client, {"other": handler}, queues={"idle": 1}, unknown_kinds=handler if knows else "error")
    with pool:
        wait_until(lambda: ended(sql)[1][1:] == (1, 1, 0))
        if knows:
            wait_until(lambda: ended(sql)[0] == ("discarded", 1, 1, 0))
    assert ended(sql)[0][0] == ("discarded" if knows else "running")


# --- R18: what makes the server notice a client that is gone


def test_r18_a_jobs_transaction_makes_the_server_watch_its_client_and_leaves_the_session_alone(
    client: Client, database: str
) -> None:
    """T14. Behind a pooler that watches the pooler; so it belongs to the transaction, and to no session."""
    names = ("client_connection_check_interval", "tcp_keepalives_idle", "tcp_keepalives_count", "tcp_user_timeout")
    seen: list[dict[str, str]] = []

    def look(tx: Tx) -> dict[str, str]:
        cur = tx.execute(
            "SELECT name, reset_val, setting, source FROM pg_settings WHERE name = ANY (%s)", [list(names)]
        )
        return {name: source for name, _, _, source in cur.fetchall()}

    def handler(tx: Tx, job: Job[Any]) -> None:
        seen.append(look(tx))
        assert tx.execute("SHOW client_connection_check_interval").fetchone() == ("500ms",)

    job = client.enqueue(None, dict[str, Any](), kind="any")
    assert WorkerPool(client, {"any": handler}).work_one()
    found = client.get(job.id)
    assert found is not None
    assert found.state == JobState.COMPLETED, found.errors
    assert seen == [dict.fromkeys(names, "session")]
    with client.pool.connection() as conn:
        assert "session" not in look(conn).values()


# --- batches


@pytest.fixture
def slow(sql: Rows, client: Client, server: Tx) -> Callable[[bool], None]:
    """Makes every statement that changes or deletes jobs run out of time, or not."""
    sql("CREATE FUNCTION pgjobs.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); END $$")
    sql("CREATE TRIGGER slow BEFORE UPDATE OR DELETE ON pgjobs.job EXECUTE FUNCTION pgjobs.slow()")
    sql("ALTER TABLE pgjobs.job DISABLE TRIGGER slow")
    server.execute("SET statement_timeout = '100ms'")

    def make(slow: bool) -> None:
        sql(f"ALTER TABLE pgjobs.job {'ENABLE' if slow else 'DISABLE'} TRIGGER slow")
        server.execute(f"SET statement_timeout = '{'100ms' if slow else '30s'}'")

    return make


@pytest.mark.conformance(139)
@pytest.mark.parametrize("duty", ["rescue", "prune"])
def test_three_timeouts_in_a_row_shrink_the_batch_for_good(
    *,
    client: Client,
    sql: Rows,
    server: Tx,
    slow: Callable[[bool], None],
    duty: str,
    leave: Leave,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    act = getattr(MaintenanceQueries(client.schema), duty)

    def noted(*args: Any) -> Any:
        sizes.extend(value for value in args if isinstance(value, int))
        return act(*args)

    monkeypatch.setattr(MaintenanceQueries, duty, staticmethod(noted))
    keep = {JobState.COMPLETED: timedelta(0)}  # one statement a time
    duties = Maintenance(client.schema, keep=keep)

    def times_out() -> None:
        slow(True)
        leave(f"{uuid4()}")
        sql("INSERT INTO pgjobs.job (kind, state, finalized_at) VALUES ('old', 'completed', now() - interval '1 day')")
        with pytest.raises(psycopg.errors.QueryCanceled):
            duties.duties[duty](server)

    def succeeds(duties: Maintenance = duties) -> None:
        slow(False)
        duties.duties[duty](server)

    times_out()
    times_out()
    succeeds()
    assert sizes == [10_000] * 3, "two are not three"
    times_out()
    times_out()
    times_out()
    assert sizes == [10_000] * 6
    succeeds()
    succeeds()
    times_out()
    assert sizes[6:] == [1_000] * 3, "and no success brings it back"
    succeeds(Maintenance(client.schema, keep=keep))
    assert sizes[9:] == [10_000], "a new start does"
