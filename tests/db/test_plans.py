"""On a table of a million jobs: lists, figures and the claim read the part of an index that they need, not the table.

Each test looks at the plan of the very statement that the library sends, with the values that it sends, and at how much
of the table and its indexes that has read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from pgjobs import Client, JobFilter, JobState
from pgjobs.control import queries as control_queries
from pgjobs.control import queue_queries
from pgjobs.control.queries import Action, Changes, ControlQueries, KeysetBatch
from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, BoundCursor, LiteralCursor, bound_cursor
from pgjobs.execution import batch_queries
from pgjobs.execution.queries import passing_over
from pgjobs.execution.script import numbered
from pgjobs.observe import queries as observe_queries
from pgjobs.observe.doctor import queries as doctor_queries
from tests import by_hand
from tests.waiting import wait_until

ROWS = 1_000_000
A_PAGE = 600  # blocks: an entry of an index and its row for each job of a page, and the way down the index
Plan = dict[str, Any]

# Each state has its share all over the table, in each of 5 queues and 3 priorities, with 10 kinds and 1000 tags.
FILL = """
INSERT INTO test_plans.job (state, queue, kind, priority, tags, scheduled_at, created_at, attempted_at, finalized_at)
SELECT state, 'queue.' || n %% 5, 'kind.' || n / 150 %% 10, n %% 3, ARRAY['tag-' || n / 150 %% 1000], at, at,
    CASE WHEN final OR state = 'running' THEN at END, CASE WHEN final THEN at + interval '1 second' END
FROM (
    SELECT n, now() + (n - 2000000) * interval '10 ms' AS at, CASE
        WHEN n %% 100000 = 77 THEN 'running'
        ELSE (ARRAY['completed', 'completed', 'completed', 'discarded', 'cancelled',
            'available', 'available', 'available', 'scheduled', 'retryable'])[1 + n / 15 %% 10] END AS state
    FROM generate_series(1, %s) AS n
) AS chosen, LATERAL (SELECT state IN ('completed', 'discarded', 'cancelled') AS final) AS ends
"""


@pytest.fixture(scope="module")
def full(database: str) -> Iterator[Client]:
    """A client on tables with a million jobs, vacuumed and analysed as the server does it by itself."""
    with Client(database, schema="test_plans") as client:
        client.migrate()
        with psycopg.connect(database, autocommit=True) as conn:
            conn.execute(FILL, [ROWS])
            conn.execute("INSERT INTO test_plans.queue (name) SELECT 'queue.' || n FROM generate_series(0, 4) AS n")

            def all_visible() -> bool:  # not while another session has an old snapshot
                conn.execute("VACUUM (ANALYZE) test_plans.job, test_plans.queue")
                query = "SELECT relallvisible >= relpages - 10 FROM pg_class WHERE oid = 'test_plans.job'::regclass"
                return conn.execute(query).fetchone() == (True,)

            wait_until(all_visible, timeout=60)
        yield client
        with client.pool.connection() as conn:
            conn.execute("DROP SCHEMA test_plans CASCADE")


class Explained(BoundCursor):
    """Asks for the plan of each statement, and what it read, before it is sent."""

    plans: list[Plan]

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        super().execute(b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + query, params, **options)
        rows: Any = self.fetchone()
        self.plans.append(rows[0][0]["Plan"])
        return super().execute(query, params, **options)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans of what is looked at in this test."""
    plans: list[Plan] = []

    def explained(conn: AnyConnection) -> Explained:
        plain = bound_cursor(conn)
        cursor = Explained(conn, row_factory=plain.row_factory)
        cursor.format, cursor.plans = plain.format, plans
        return cursor

    for store in (control_queries, queue_queries, observe_queries):
        for cursor in ("bound_cursor", "job_cursor"):
            monkeypatch.setattr(store, cursor, explained, raising=False)
    return plans


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def blocks(plan: Plan) -> int:
    """How many were read, of the table and its indexes."""
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def indexes(plan: Plan) -> set[str]:
    """Those of the job table that are used."""
    return {node["Index Name"] for node in nodes(plan) if "Index Name" in node} - {"job_progress_pkey"}


def looks_for_progress(plan: Plan) -> int:
    """For how many rows of the page."""
    return sum(int(node["Actual Loops"]) for node in nodes(plan) if node.get("Relation Name") == "job_progress")


def assert_no_scan(plan: Plan) -> None:
    assert [node for node in nodes(plan) if node["Node Type"] == "Seq Scan" and node["Relation Name"] == "job"] == []


def sorted_rows(plan: Plan) -> float:
    """How many rows went into the largest sort from nothing."""
    sorts = [node["Plans"][0] for node in nodes(plan) if node["Node Type"] == "Sort"]
    return max((node["Actual Rows"] * node["Actual Loops"] for node in sorts), default=0)


# --- lists

BY_INDEX = {
    "available": "job_fetch",
    "scheduled": "job_due",
    "retryable": "job_due",
    "running": "job_running",
    "completed": "job_final",
    "discarded": "job_final",
    "cancelled": "job_final",
}


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    "filter",
    [JobFilter(), JobFilter.all(), JobFilter(queues=["queue.3"]), JobFilter(kinds=["kind.7"], states=["available"])],
    ids=["nothing", "all", "queue", "kind and state"],
)
def test_pages_by_id_read_the_primary_key_from_the_cursor_on(
    full: Client, plans: list[Plan], filter: JobFilter, descending: bool
) -> None:
    first = full.list_jobs(filter, descending=descending)
    full.list_jobs(filter, descending=descending, cursor=first.next)
    far = full.list_jobs(filter, descending=descending, cursor=f"id.{'down' if descending else 'up'}.{ROWS // 2}")
    assert far.next is not None
    for plan in plans:
        assert_no_scan(plan)
        assert indexes(plan) == {"job_pkey"}
        assert sorted_rows(plan) == 0
        assert blocks(plan) < A_PAGE


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("state", BY_INDEX)
def test_pages_by_time_read_the_index_of_their_state_from_the_cursor_on(
    full: Client, plans: list[Plan], state: str, descending: bool
) -> None:
    filter = JobFilter(states=[JobState(state)])
    page, pages = full.list_jobs(filter, order="time", descending=descending), 1
    while page.next is not None and pages < 3:
        page, pages = full.list_jobs(filter, order="time", descending=descending, cursor=page.next), pages + 1
    assert pages == (1 if state == "running" else 3)
    for plan in plans:
        assert_no_scan(plan)
        assert indexes(plan) == {BY_INDEX[state]}
        # of the 15 queues and priorities of what is available a page each
        assert sorted_rows(plan) <= 15 * 101
        assert looks_for_progress(plan) <= (len(page.jobs) if state == "running" else 0)
        assert blocks(plan) < (15 * A_PAGE if state == "available" else A_PAGE)


@pytest.mark.parametrize("state", ["completed", "scheduled", "available"])
def test_a_page_in_the_middle_is_as_cheap_as_the_first(full: Client, plans: list[Plan], state: str) -> None:
    with full.pool.connection() as conn:
        column = "finalized_at" if state == "completed" else "scheduled_at"
        query = f"SELECT id, {column} FROM test_plans.job WHERE state = %s AND id >= %s ORDER BY id LIMIT 1"
        row: Any = conn.execute(query, [state, ROWS // 2]).fetchone()
    micros = (row[1] - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    page = full.list_jobs(JobFilter(states=[JobState(state)]), order="time", cursor=f"time.up.{row[0]}.{micros}")
    assert page.jobs[0].id > ROWS // 2
    assert blocks(plans[0]) < (15 * A_PAGE if state == "available" else A_PAGE)


def test_what_runs_is_found_among_a_million_by_its_index(full: Client, plans: list[Plan]) -> None:
    running = full.list_jobs(JobFilter(states=["running"])).jobs
    assert len(running) == ROWS // 100_000
    full.count(JobFilter(states=["running"]))
    full.list_jobs(JobFilter(ids=[job.id for job in running]))
    by_state, counted, by_id = plans
    assert indexes(by_state) == indexes(counted) == {"job_running"}
    assert indexes(by_id) == {"job_pkey"}
    assert max(map(blocks, plans)) < 100


def test_what_ended_lately_is_found_by_its_index(full: Client, plans: list[Plan]) -> None:
    newest = full.list_jobs(JobFilter(states=["completed"]), order="time", descending=True, limit=1).jobs[0]
    assert newest.finalized_at is not None
    lately = newest.finalized_at - timedelta(seconds=1)
    full.list_jobs(JobFilter(states=["completed"], finalized_after=lately))
    full.list_jobs(JobFilter(states=["completed", "discarded"], finalized_after=lately))
    for plan in plans:
        assert indexes(plan) == {"job_final"}
        assert blocks(plan) < A_PAGE


# --- control

NOTHING = Changes(metadata=None, output=None, priority=None, scheduled_at=None, max_attempts=None, tags=None)
ACTIONS = {
    "cancel": lambda queries: queries.cancel(""),
    "release": lambda queries: queries.release(),
    "retry": lambda queries: queries.retry(reset=False),
    "delete": lambda queries: queries.delete(),
    "update": lambda queries: queries.update(NOTHING),
}  # fmt: skip
any_action = pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)


@any_action
@pytest.mark.parametrize("filter", [JobFilter.all(), JobFilter(states=["available"])], ids=["all", "state"])
def test_the_next_batch_is_read_from_where_the_last_one_ended(
    full: Client, plans: list[Plan], action: Callable[[ControlQueries], Action], filter: JobFilter
) -> None:
    queries, batch = ControlQueries(full.schema), KeysetBatch(newest=ROWS, size=100, after=(ROWS // 2, ""))
    with full.pool.connection() as conn:
        queries.apply(conn, action(queries), filter, batch)
        conn.rollback()
    (plan,) = plans
    assert_no_scan(plan)
    (seen,) = (node for node in nodes(plan) if node.get("Subplan Name") == "CTE seen")
    assert indexes(seen) == {"job_pkey"}
    assert seen["Actual Rows"] == 100
    assert blocks(seen) < A_PAGE


@any_action
def test_one_job_is_read_by_the_primary_key(
    full: Client, plans: list[Plan], action: Callable[[ControlQueries], Action]
) -> None:
    queries = ControlQueries(full.schema)
    with full.pool.connection() as conn:
        queries.apply(conn, action(queries), JobFilter(ids=[ROWS // 2]), KeysetBatch(), single=True)
        conn.rollback()
    (plan,) = plans
    assert_no_scan(plan)
    (seen,) = (node for node in nodes(plan) if node.get("Subplan Name") == "CTE seen")
    assert indexes(seen) == {"job_pkey"}
    assert blocks(seen) < 20
    assert blocks(plan) < 200


# --- queues


def test_figures_read_the_index_of_each_state(full: Client, plans: list[Plan]) -> None:
    figures = full.queues.stats()
    one = full.queues.stats(["queue.2"])
    assert len(figures) == 5
    with full.pool.connection() as conn:
        query = "SELECT queue, count(*) FROM test_plans.job WHERE state = 'available' GROUP BY queue ORDER BY queue"
        assert [(name, each.waiting) for name, each in figures.items()] == conn.execute(query).fetchall()
    assert one["queue.2"].waiting == figures["queue.2"].waiting
    for plan in plans:
        assert_no_scan(plan)
        assert indexes(plan) == {"job_fetch", "job_running", "job_final"}
    every, single = map(blocks, plans)
    assert every < 10_000, "of the 40,000 that the table and its indexes have"
    assert single < every / 2


def test_the_list_of_queues_hops_over_the_jobs(full: Client, plans: list[Plan]) -> None:
    assert len(full.queues.list()) == 5
    full.queues.pause("queue.1")
    full.queues.resume("*")
    for plan in plans:
        assert_no_scan(plan)
        assert blocks(plan) < 300


# --- the doctor


class ExplainedLiteral(LiteralCursor):
    """Asks for the plan behind each statement of the doctor, and gives the rows of the statement."""

    plans: list[Plan]

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        super().execute(query, params, **options)
        self._found = None if self.description is None else super().fetchall()
        if self._found is not None and b"-- name: notify" not in query:
            super().execute(b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + query, params, **options)
            rows: Any = self.fetchone()
            self.plans.append(rows[0][0]["Plan"])
        return self

    def fetchall(self) -> Any:
        return self._found


def test_the_doctor_reads_a_bounded_number_of_jobs(full: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def explained(conn: AnyConnection) -> ExplainedLiteral:
        cursor = ExplainedLiteral(conn)
        cursor.plans = plans
        return cursor

    monkeypatch.setattr(doctor_queries, "literal_cursor", explained)
    findings = full.doctor()
    assert [finding for finding in findings if finding.what.startswith("could not look")] == []
    assert len(plans) > 25
    for plan in plans:
        assert_no_scan(plan)
        assert (
            sum(n["Actual Rows"] * n["Actual Loops"] for n in nodes(plan) if n.get("Relation Name") == "job") < 15_000
        )
        assert blocks(plan) < 20_000, "of the 40,000 that the table and its indexes have"


# --- the claim


def test_the_claim_looks_once_whether_its_queue_is_paused(full: Client) -> None:
    statement = passing_over(full.queries.work["select_by_priority"], b"").decode()
    with full.pool.connection() as conn, psycopg.ClientCursor(conn) as cursor:
        for queue, rows in (("queue.1", 1), ("queue.2", 0)):
            if not rows:
                full.queues.pause(queue, conn)
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", by_hand.request(queue).values)
            found: Any = cursor.fetchone()
            plan: Plan = found[0][0]["Plan"]
            assert plan["Actual Rows"] == rows
            (looked,) = (node for node in nodes(plan) if node.get("Relation Name") == "queue")
            assert looked["Actual Loops"] == 1
            assert indexes(plan) - {"queue_pkey"} == {"job_fetch"}
            assert blocks(plan) < 20
        conn.rollback()


@pytest.mark.parametrize("stale", [False, True], ids=["analysed", "never analysed"])
def test_the_claim_and_the_finish_of_a_batch_read_by_the_indexes(full: Client, stale: bool) -> None:
    """By the plans that prepared statements get, which know none of the values, whatever the statistics say."""
    batch = statements.load("execution_batch.sql", full.schema)
    claim = batch_queries.BatchQueries(full.queries)._claims["priority", False].replace(b"%(limit)s", b"100")
    ids = "{" + ",".join(map(str, range(1, 101))) + "}"
    values = by_hand.request("queue.1", worker="me").values
    values |= {"token": str(uuid4()), "batch_time": 1, "check_interval": "0", "bound": "0", "bounds": None}
    values["bounded_by"] = "idle_in_transaction_session_timeout"
    nothing = "{" + ",".join(['""'] * 100) + "}"
    values |= {
        "new_token": values["token"],
        "bounds": None,
        "bound": "0",
        "check_interval": "0",
        "ids": ids,
        "bounded_by": "idle_in_transaction_session_timeout",
        "rest": ids,
        "data_ids": ids,
        "metadata": nothing,
        "output": nothing,
    }
    names = ("lock_batch", "select_locked_ids", "store_batch_data", "unclaim_batch", "complete_claim")
    wanted = {"claim": claim} | {name: batch[name] for name in names}
    wanted["complete"] = batch["complete_batch"].split(b"WITH finished AS (")[1].split(b")\nSELECT")[0]
    with full.pool.connection() as conn:
        conn.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        if stale:
            conn.execute("DELETE FROM pg_statistic WHERE starelid = 'test_plans.job'::regclass")
            conn.execute("UPDATE pg_class SET reltuples = -1 WHERE oid = 'test_plans.job'::regclass")
        for name, statement in wanted.items():
            known = numbered(name, statement)
            conn.execute(b"PREPARE %b AS %b" % (name.encode(), known.sql))
            given = sql.SQL(", ").join(sql.Literal(values[parameter]) for parameter in known.parameters)
            explain = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {} ({})")
            found: Any = conn.execute(explain.format(sql.Identifier(name), given)).fetchone()
            plan: Plan = found[0][0]["Plan"]
            assert_no_scan(plan)
            assert blocks(plan) < 3000, name
        conn.execute("DEALLOCATE ALL")
        conn.rollback()


def test_a_claim_whose_answer_was_lost_is_found_by_the_indexes(full: Client) -> None:
    statement = full.queries.work["unclaim"].decode()
    with full.pool.connection() as conn, psycopg.ClientCursor(conn) as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", {"queue": "queue.1", "token": uuid4()})
        found: Any = cursor.fetchone()
        plan: Plan = found[0][0]["Plan"]
        assert_no_scan(plan)
        assert blocks(plan) < 20
        conn.rollback()


def test_every_state_has_its_way(full: Client) -> None:
    """No state is forgotten above but `pending`: no index knows it until something makes such jobs."""
    assert BY_INDEX.keys() | {"pending"} == set(JobState)
