"""How long the jobs of a queue are kept, where its row says so."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from pgjobs import Client, InvalidOption, InvalidSetting, JobState, QueueLocked, WorkerPool
from pgjobs.db import statements
from pgjobs.db.cursors import LiteralCursor
from pgjobs.maintenance.duties import Maintenance
from pgjobs.results import FOR_EVER
from pgjobs.workers.queries import WorkerQueries
from tests.conformance.conftest import Rows
from tests.conftest import Connect
from tests.samples import HOUR
from tests.waiting import wait_until

DAY = timedelta(days=1)
KEPT = [JobState.COMPLETED, JobState.CANCELLED, JobState.DISCARDED]


def ended(sql: Rows, queue: str, *ages: float, state: str = "completed") -> None:
    """Jobs that ended so many days ago."""
    for age in ages:
        sql(
            "INSERT INTO pgjobs.job (queue, kind, state, finalized_at)"
            " VALUES (%s, %s, %s, now() - %s * interval '1 day')",
            queue,
            f"after.{age:g}",
            state,
            age,
        )


def left(sql: Rows) -> dict[str, list[str]]:
    """The kinds of the jobs that are left, by queue."""
    rows = sql("SELECT queue, array_agg(kind::text ORDER BY id) FROM pgjobs.job GROUP BY queue ORDER BY queue")
    return {queue: [kind.removeprefix("after.") for kind in kinds] for queue, kinds in rows}


def clean(duties: Maintenance, server: Any) -> None:
    while duties.prune(server) == timedelta(0):
        pass


@pytest.mark.finding("E10")
@pytest.mark.parametrize("state", KEPT)
def test_a_queue_is_cleaned_by_its_own_time_and_the_others_by_the_pools(
    client: Client, duties: Maintenance, server: Any, sql: Rows, state: JobState
) -> None:
    """No queue could be left out of cleaning, or be kept for longer or shorter than the others."""
    update: Any = client.queues.update
    for queue, keep in {"audit": timedelta.max, "long": 30 * DAY, "short": HOUR}.items():
        update(queue, **{f"keep_{state}": keep})
    for queue in ("audit", "default", "long", "short"):
        ended(sql, queue, 400, 20, 0.1, 0.01, state=state)
    clean(duties, server)
    assert left(sql) == {
        "audit": ["400", "20", "0.1", "0.01"],
        "default": ["0.1", "0.01"],
        "long": ["20", "0.1", "0.01"],
        "short": ["0.01"],
    }


@pytest.mark.parametrize("referenced", [1, 60])
def test_a_job_of_another_queue_with_the_same_id_is_kept_where_some_may_not_be_deleted(
    *, client: Client, duties: Maintenance, server: Any, sql: Rows, referenced: int
) -> None:
    """Job by job only the ids were given, and the job of a queue that is kept for longer went too."""
    client.queues.update("short", keep_completed=HOUR)
    client.queues.update("audit", keep_completed=timedelta.max)
    ended(sql, "short", *[2] * (referenced + 3))
    sql(
        """INSERT INTO pgjobs.job (id, queue, kind, state, finalized_at) OVERRIDING SYSTEM VALUE
        SELECT id, 'audit', 'after.3', state, finalized_at FROM pgjobs.job"""
    )
    sql(
        """CREATE TABLE pgjobs.invoice (job bigint, queue text DEFAULT 'short',
        FOREIGN KEY (job, queue) REFERENCES pgjobs.job (id, queue))"""
    )
    sql(
        "INSERT INTO pgjobs.invoice (job) SELECT id FROM pgjobs.job WHERE queue = 'short' ORDER BY id LIMIT %s",
        referenced,
    )
    for _ in range(20):
        duties.prune(server)
    assert left(sql) == {"audit": ["3"] * (referenced + 3), "short": ["2"] * referenced}


@pytest.mark.finding("E10")
def test_it_is_obeyed_also_by_a_pool_that_keeps_everything(client: Client, sql: Rows) -> None:
    """Pruning is the duty of any process, so what a queue says holds in all of them."""
    client.queues.update("short", keep_completed=HOUR)
    ended(sql, "short", 2, 0.001)
    ended(sql, "default", 2)
    with WorkerPool(client, {"thing": print}, keep_completed=None):
        wait_until(lambda: left(sql) == {"default": ["2"], "short": ["0.001"]})


@pytest.mark.finding("E10")
def test_what_is_set_is_shown_and_what_is_not_given_stays(client: Client) -> None:
    """None is as the worker pools say, timedelta.max for ever."""
    made = client.queues.update("mail", keep_completed=HOUR, keep_discarded=timedelta.max)
    assert (made.keep_completed, made.keep_cancelled, made.keep_discarded) == (HOUR, None, timedelta.max)
    changed = client.queues.update("mail", keep_cancelled=timedelta(0), keep_completed=None)
    assert (changed.keep_completed, changed.keep_cancelled, changed.keep_discarded) == (
        None,
        timedelta(0),
        timedelta.max,
    )
    assert client.queues.list() == (changed,)
    (paused,) = client.queues.pause("mail")
    assert paused.paused_at is not None
    assert paused.keep_discarded == timedelta.max
    client.queues.resume("mail")


@pytest.mark.finding("E10")
def test_it_belongs_to_the_callers_transaction(client: Client, connect: Connect) -> None:
    """As all that takes a tx."""
    tx = connect()
    client.queues.update("mail", tx, keep_completed=HOUR)
    assert client.queues.list() == ()
    tx.rollback()
    assert client.queues.list() == ()
    client.queues.update("mail", keep_completed=HOUR)
    client.queues.update("mail", tx, keep_completed=DAY)
    with pytest.raises(QueueLocked, match="mail"):
        client.queues.update("mail", keep_completed=2 * DAY)
    tx.commit()
    assert [queue.keep_completed for queue in client.queues.list()] == [DAY]


@pytest.mark.finding("E10")
def test_a_row_that_says_something_is_not_forgotten(client: Client, sql: Rows, server: Any) -> None:
    """Queues that nobody works for a day are forgotten, but not what was set by hand."""
    client.queues.update("yearly", keep_completed=400 * DAY)
    client.queues.update("other", keep_completed=DAY)
    client.queues.update("other", keep_completed=None)
    sql("UPDATE pgjobs.queue SET updated_at = now() - interval '2 days'")
    WorkerQueries(client.schema).prune_queues(server)
    assert [queue.name for queue in client.queues.list()] == ["yearly"]


@pytest.mark.finding("E10")
@pytest.mark.parametrize("value", [5, "x", -DAY, True, [], timedelta.min])
def test_a_time_that_is_none_is_refused(client: Client, value: Any) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidSetting, match="keep_cancelled must be"):
        client.queues.update("mail", keep_cancelled=value)
    with pytest.raises(InvalidSetting, match="nothing to change of queue 'mail'"):
        client.queues.update("mail")
    with pytest.raises(InvalidOption, match="queue"):
        client.queues.update("no such name", keep_cancelled=DAY)


@pytest.mark.finding("E10")
def test_what_was_written_by_hand_is_read(client: Client, duties: Maintenance, server: Any, sql: Rows) -> None:
    """Months, what is negative, and more than Python has."""
    sql(
        "INSERT INTO pgjobs.queue (name, keep_completed) VALUES"
        " ('gone', '-5 days'), ('months', '2 months'), ('ages', '170000000 years')"
    )
    shown = {queue.name: queue.keep_completed for queue in client.queues.list()}
    assert shown == {"ages": timedelta.max, "gone": timedelta(0), "months": 60 * DAY}
    for queue in shown:
        ended(sql, queue, 100, 50, 0.0001)
    clean(duties, server)
    assert left(sql) == {"ages": ["100", "50", "0.0001"], "months": ["50", "0.0001"]}


@pytest.mark.finding("E10")
def test_a_pass_reads_on_from_where_it_was_and_begins_anew_now_and_then(
    client: Client, duties: Maintenance, server: Any, sql: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was locked, or came with an earlier time, goes later. Jobs that ended at the same time are told apart."""
    monkeypatch.setattr("pgjobs.maintenance.batch_size.LARGE_BATCH", 3)
    client.queues.update("audit", keep_completed=timedelta.max)
    sql(
        "INSERT INTO pgjobs.job (queue, kind, state, finalized_at)"
        " SELECT CASE WHEN mod(n, 2) = 0 THEN 'audit' ELSE 'default' END, 'after.' || n, 'completed',"
        " date_trunc('day', now()) - interval '9 days' FROM generate_series(1, 20) AS n"
    )
    with client.pool.connection() as locking:
        locking.execute(f'SELECT FROM "{client.schema}".job WHERE kind = %s FOR UPDATE', ["after.5"])
        clean(duties, server)
        assert left(sql) == {"audit": [str(n) for n in range(2, 21, 2)], "default": ["5"]}
    ended(sql, "default", 300)
    clean(duties, server)
    assert left(sql)["default"] == ["300"], "behind the place"
    monkeypatch.setattr("pgjobs.maintenance.pruning._RESTART_EVERY", 0.0)
    clean(duties, server)
    assert left(sql) == {"audit": [str(n) for n in range(2, 21, 2)]}


@pytest.mark.finding("E10")
def test_what_the_application_refers_to_stays_and_holds_nothing_up(
    client: Client, duties: Maintenance, server: Any, sql: Rows
) -> None:
    """As where no queue says anything."""
    client.queues.update("audit", keep_completed=timedelta.max)
    ended(sql, "audit", 9)
    ended(sql, "default", 9, 8, 7)
    sql(
        "CREATE TABLE pgjobs.invoice (id bigint, queue text, FOREIGN KEY (id, queue) REFERENCES pgjobs.job (id, queue))"
    )
    sql("INSERT INTO pgjobs.invoice SELECT id, queue FROM pgjobs.job WHERE queue = 'default' AND kind = 'after.8'")
    clean(duties, server)
    assert left(sql) == {"audit": ["9"], "default": ["8"]}


ROWS = 60_000


@pytest.mark.finding("E10")
def test_a_batch_costs_the_same_wherever_it_is(client: Client, sql: Rows, connect: Connect) -> None:
    """It reads the index on the state and the end of the job from its place on, past nothing."""
    sql(
        "INSERT INTO pgjobs.job (queue, kind, state, finalized_at)"
        " SELECT CASE WHEN n = %s THEN 'default' ELSE 'audit' END, 'thing', 'completed',"
        " now() - (%s - n) * interval '1 second' - interval '30 days' FROM generate_series(1, %s) AS n",
        ROWS,
        ROWS,
        ROWS,
    )
    sql("ANALYZE pgjobs.job")
    statement = statements.load("maintenance.sql", client.schema)["prune_after"]
    conn = connect(autocommit=True)
    end = sql("SELECT max(finalized_at) - interval '100 seconds' FROM pgjobs.job")[0][0]
    blocks = []
    for after in (None, end):
        with LiteralCursor(conn) as cur:
            cur.execute(
                b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement,
                {
                    "state": "completed",
                    "keep": DAY,
                    "batch": 50,
                    "queue": None,
                    "others": ["audit"],
                    "after": after,
                    "after_id": 0,
                    "set_aside": None,
                    "among": None,
                },
            )
            row: Any = cur.fetchone()
        found: Any = json.loads(row[0]) if isinstance(row[0], str) else row[0]
        plan = found[0]["Plan"]
        assert "job_final" in str(plan)
        assert "Seq Scan" not in str([node for node in flat(plan) if node.get("Relation Name") == "job"])
        blocks.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
    assert max(blocks) < 400, "of some thousands"


def flat(plan: Any) -> list[Any]:
    return [plan, *(node for below in plan.get("Plans", []) for node in flat(below))]


def test_for_ever_can_be_subtracted_from_any_time(sql: Rows) -> None:
    assert sql("SELECT now() - %s::interval < now()", FOR_EVER) == [(True,)]


def test_the_audit_is_kept_for_90_days(client: Client, duties: Maintenance, server: Any, sql: Rows) -> None:
    for age in (100, 91, 89, 1):
        sql(
            "INSERT INTO pgjobs.audit (at, who, act, count) VALUES (now() - %s * interval '1 day', 'ada', %s, 1)",
            age,
            f"after.{age}",
        )
    clean(duties, server)
    assert sql("SELECT act FROM pgjobs.audit ORDER BY id") == [("after.89",), ("after.1",)]
