"""The metrics of a process and of `pgjobs work`, as Prometheus reads them."""

from __future__ import annotations

import os
import re
import signal
import urllib.request
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgjobs import Cancel, Client, Discard, InvalidSetting, Job, Snooze, WorkerPool, WorkMap, constant
from pgjobs.metrics import CONTENT_TYPE, metrics_text
from tests.acceptance.work_command import SOON, Place, Work, gate
from tests.conftest import Connect
from tests.samples import Thing, Tx, nothing
from tests.scrape import Series, scraped
from tests.waiting import wait_until


@dataclass
class Mixed:
    """A job that ends as its number says."""

    n: int


def mixed(tx: Tx, job: Job[Mixed]) -> None:
    match job.args.n % 5:
        case 1 if job.attempt == 1:
            raise ValueError("once")
        case 2:
            raise Discard("why")
        case 3:
            raise Cancel("why")
        case 4 if not job.metadata.get("snoozes"):
            raise Snooze(timedelta(0))


def summed(found: dict[Series, float], name: str, *by: str) -> Counter[tuple[str, ...]]:
    """The values of a metric, by some of its labels."""
    sums: Counter[tuple[str, ...]] = Counter()
    for (series, labels), value in found.items():
        if series == name:
            sums[tuple(dict(labels)[each] for each in by)] += int(value)
    return sums


@pytest.mark.parametrize("batch_size", [1, 20])
def test_under_load_they_add_up_with_the_table(client: Client, batch_size: int) -> None:
    pool = WorkerPool(
        client, WorkMap({Mixed: mixed}), queues={"default": 4}, backoff=constant(timedelta(0)), batch_size=batch_size
    )
    client.enqueue_many(None, [Mixed(n) for n in range(500)])
    with pool:
        wait_until(pool.drained, 60)
        wait_until(lambda: client.count().by_state.total() == 500 and pool.idle_threads == {"default": 4}, 60)
        found = scraped(metrics_text(client, pool))
    states = {str(state): jobs for state, jobs in client.count().by_state.items() if jobs}
    attempts = summed(found, "pgjobs_attempts_total", "outcome")
    assert states == {"completed": 300, "discarded": 100, "cancelled": 100}
    assert attempts == {
        ("completed",): 300,
        ("discarded",): 100,
        ("cancelled",): 100,
        ("retried",): 100,
        ("snoozed",): 100,
    }
    assert summed(found, "pgjobs_process_duration_seconds_count", "outcome") == attempts
    assert summed(found, "pgjobs_queue_wait_seconds_count", "kind") == {("mixed",): 700}
    assert found["pgjobs_database_up", ()] == 1
    assert found["pgjobs_worker_threads", (("queue", "default"), ("state", "idle"))] == 4
    assert "pgjobs_rescued_total" not in {name for name, _ in found}


def test_a_kind_without_a_handler_is_counted_too(client: Client) -> None:
    pool = WorkerPool(client, {Thing: nothing})
    client.enqueue(None, {}, kind="nobody.knows")
    assert pool.work_one()
    found = scraped(metrics_text(client, pool))
    assert summed(found, "pgjobs_attempts_total", "kind", "outcome") == {("nobody.knows", "retried"): 1}


def test_queues_that_wait_and_run_are_shown(client: Client) -> None:
    client.enqueue(None, Thing(), queue="a/b")
    client.enqueue_many(None, [Thing(), Thing()], queue="c", delay=timedelta(0))
    with client.lock_job(queue="c"):
        found = scraped(metrics_text(client))
    jobs = summed(found, "pgjobs_jobs", "queue", "state")
    assert {key: number for key, number in jobs.items() if number} == {
        ("a/b", "waiting"): 1,
        ("c", "waiting"): 1,
        ("c", "running"): 1,
    }
    assert found["pgjobs_queue_oldest_seconds", (("queue", "a/b"),)] >= 0
    assert summed(found, "pgjobs_duty_age_seconds", "duty").keys() >= {("rescue",), ("prune",), ("promote",)}
    assert found["pgjobs_transaction_oldest_seconds", ()] >= 0


def test_hostile_queues_of_a_table_that_others_write_to_cannot_forge_a_series(client: Client) -> None:
    names = ['a"} 1\npgjobs_database_up 7', "tab\there", "back\\"]
    with client.pool.connection() as conn:
        for name in names:
            conn.execute(
                psycopg.sql.SQL("INSERT INTO {}.job (kind, queue) VALUES ('k' || chr(10), %s)").format(
                    psycopg.sql.Identifier(client.schema)
                ),
                [name],
            )
    found = scraped(metrics_text(client))
    assert found["pgjobs_database_up", ()] == 1
    assert sum(summed(found, "pgjobs_jobs", "state").values()) == 3


def test_a_database_that_is_away_leaves_out_what_it_would_say() -> None:
    with Client("postgresql://localhost:1/none?connect_timeout=1") as away:
        assert scraped(metrics_text(away)) == {("pgjobs_database_up", ()): 0}


def test_other_values_are_refused(client: Client) -> None:
    wrong: Any = client.pool
    with pytest.raises(InvalidSetting, match="client is a Client, not a OwnPool"):
        metrics_text(wrong)
    with pytest.raises(InvalidSetting, match="pools are worker pools"):
        metrics_text(client, wrong)


# --- of several processes


def scrape(work: Work) -> dict[Series, float]:
    """What /metrics of the command answers."""
    work.wait_for("health: http://127.0.0.1:")
    (port,) = re.findall(r"health: http://127\.0\.0\.1:(\d+)/livez", work.log)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"] == CONTENT_TYPE
        return scraped(answer.read().decode())


def attempts(found: dict[Series, float]) -> int:
    return summed(found, "pgjobs_attempts_total")[()]


def test_they_are_summed_over_the_processes_and_those_before(place: Place, connect: Connect) -> None:
    with place.work("--processes", "2", "--health", "127.0.0.1:0") as work:
        first, second = work.wait_ready(2)
        jobs = [place.enqueue() for _ in range(30)]
        hold_both(place, connect)
        wait_until(lambda: place.completed(*jobs), SOON)
        wait_until(lambda: attempts(scrape(work)) >= 30, SOON)
        started = dict(place.query("SELECT pid, count(*) FROM {schema}.start GROUP BY pid"))
        assert started.keys() == {first, second}
        before = wait_until(lambda: (found := attempts(scrape(work))) == sum(started.values()) and found, SOON)
        found = scrape(work)
        assert found["pgjobs_processes", (("state", "ready"),)] == 2
        assert found["pgjobs_database_up", ()] == 1
        threads = summed(found, "pgjobs_worker_threads", "queue")
        assert threads == {("default",): 4, ("mail",): 2}
        os.kill(first, signal.SIGKILL)
        work.wait_for(" is ready after ", times=3)
        assert attempts(scrape(work)) == before, "what the killed one had counted stays"
        more = [place.enqueue() for _ in range(5)]
        wait_until(lambda: place.completed(*more), SOON)
        wait_until(lambda: attempts(scrape(work)) == before + 5, SOON)
        assert work.stop() == 0


def hold_both(place: Place, connect: Connect) -> None:
    """Let each process run a job: four at once are more than one process has threads for."""
    with gate(connect) as (locked, open_gate):
        held = [place.enqueue("wait for the gate", gate=locked) for _ in range(4)]
        wait_until(lambda: all(place.starts(job) for job in held), SOON)
        open_gate()
        wait_until(lambda: place.completed(*held), SOON)


def test_a_child_that_is_replaced_counts_to_its_last_job(place: Place) -> None:
    with place.work("--max-jobs", "10", "--health", "127.0.0.1:0") as work:
        work.wait_ready()
        jobs = [place.enqueue() for _ in range(25)]
        wait_until(lambda: place.completed(*jobs), SOON)
        wait_until(lambda: attempts(scrape(work)) == 25, SOON)
        assert work.told("is replaced: it has run 10 jobs", times=1)
