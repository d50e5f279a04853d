"""The sequence of ids, when it is behind the ids that jobs have."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from pgjobs import Client, SchemaDamaged, WorkerPool
from pgjobs.db import repair
from tests.db.conftest import Run


def next_id(run: Run) -> int:
    ((next,),) = run("SELECT last_value + is_called::integer FROM pgjobs.job_id_seq")
    return int(next)


def jobs_with_ids(run: Run, *ids: int, queue: str = "default") -> None:
    insert = "INSERT INTO pgjobs.job (id, queue, kind) OVERRIDING SYSTEM VALUE SELECT unnest(%s::bigint[]), %s, 'thing'"
    run(insert, list(ids), queue)


@pytest.mark.finding("W12")
@pytest.mark.parametrize("newest", [1, 50, 10_001, 3_000_000_000], ids=str)
@pytest.mark.parametrize("how", ["migrate", "start"])
def test_ids_go_on_behind_those_that_jobs_have(
    own_client: Client, run: Run, caplog: pytest.LogCaptureFixture, newest: int, how: str
) -> None:
    """After a failover to a logical replica the ids began anew, and two jobs of two queues shared one."""
    jobs_with_ids(run, newest, queue="mail")
    with pytest.raises(SchemaDamaged, match=rf"the next id is 1, but there are jobs up to {newest}.*as the owner"):
        own_client.check_schema()
    if how == "migrate":
        own_client.migrate()
    else:
        with WorkerPool(own_client, {"thing": lambda tx, job: None}, queues={"other": 1}):
            pass
    assert next_id(run) == newest + 1
    own_client.check_schema()
    assert own_client.enqueue(None, {}, kind="thing").id == newest + 1
    assert "ids go on behind them" in caplog.text


@pytest.mark.finding("W12")
@pytest.mark.parametrize("drawn", [0, 1, 7])
def test_ids_that_are_ahead_are_left_alone(
    own_client: Client, run: Run, caplog: pytest.LogCaptureFixture, drawn: int
) -> None:
    """A sequence that is behind the ids of jobs is moved; one that is ahead must not be."""
    run("SELECT nextval('pgjobs.job_id_seq') FROM generate_series(1, %s)", drawn)
    jobs_with_ids(run, *range(-3, drawn + 1))
    before = next_id(run)
    own_client.migrate()
    with WorkerPool(own_client, {"thing": lambda tx, job: None}, queues={"other": 1}):
        pass
    assert next_id(run) == before
    assert caplog.text == ""


@pytest.mark.finding("W12")
def test_an_id_that_no_sequence_reaches_was_made_by_hand(
    own_client: Client, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever may insert could else let the ids run out."""
    jobs_with_ids(run, 2**63 - 1)
    own_client.migrate()
    with WorkerPool(own_client, {"thing": lambda tx, job: None}, queues={"other": 1}):
        pass
    assert next_id(run) == 1
    assert own_client.enqueue(None, {}, kind="thing").id == 1
    assert "the next id is 1" in caplog.text


def test_ids_of_several_servers_that_leave_each_others_out(own_client: Client, run: Run) -> None:
    run("ALTER SEQUENCE pgjobs.job_id_seq INCREMENT 2")
    jobs_with_ids(run, 100)
    own_client.migrate()
    own_client.check_schema()
    assert next_id(run) == 1


@pytest.mark.finding("W12")
def test_many_that_start_at_once_never_go_back(own_client: Client, run: Run, fresh_database: str) -> None:
    """Processes that mend the sequence at the same time must never give an id twice."""
    jobs_with_ids(run, 9_000)

    def start(_: int) -> list[int]:
        with psycopg.connect(fresh_database, autocommit=True) as conn:
            repair.repair_schema(conn, "pgjobs")
            drawn = conn.execute("SELECT nextval('pgjobs.job_id_seq') FROM generate_series(1, 50)").fetchall()
            return [id for (id,) in drawn]

    with ThreadPoolExecutor(8) as threads:
        ids = [id for drawn in threads.map(start, range(8)) for id in drawn]
    assert len(set(ids)) == len(ids) == 400
    assert min(ids) > 9_000
