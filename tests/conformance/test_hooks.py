"""Hooks look on, middleware steps in, the error handler judges."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgjobs import (
    Cancel,
    Client,
    Discard,
    EncodedJob,
    ErrorHandler,
    Handler,
    Hooks,
    Job,
    JobState,
    JobTimedOut,
    NewJob,
    RetryAfter,
    Snooze,
    TransactionBroken,
    UndecodableArgs,
    UnknownKind,
    WorkerPool,
    constant,
)
from pgjobs.execution.attempt import GracePeriods
from pgjobs.hooks import Insert
from tests import inside
from tests.conformance.conftest import Rows, Stored, facts
from tests.samples import SECOND, Thing, Tx, nothing
from tests.waiting import wait_until

LATER = constant(timedelta(hours=1))
QUICK = GracePeriods(interrupted=0.2, severed=0.4, stuck=0.6)  # the same steps as by default, sooner
NAMES = [name for name in vars(Hooks) if name.startswith("on_")]


def raising(error: BaseException) -> Callable[[Tx, Job[Any]], None]:
    def handler(tx: Tx, job: Job[Any]) -> None:
        raise error

    return handler


@dataclass
class Told(Hooks):
    """Each call of a hook: its name and what it was given."""

    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    fail: type[BaseException] | None = None  # what each of them raises

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def hook(*args: Any) -> None:
            self.calls.append((name, args))
            if self.fail is not None:
                raise self.fail("a broken hook")

        return hook

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [args for called, args in self.calls if called == name]


def ends(told: Told) -> list[tuple[Any, Any]]:
    return [(facts(job), error) for job, error in told.of("on_finish")]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def observed(client: Client, told: Told) -> Client:
    """A client on the same tables, with hooks."""
    return Client(client.pool, schema=client.schema, hooks=[told])


# --- what they are told


@pytest.mark.conformance(240, 242)
def test_the_hooks_of_a_job_that_is_worked_fire_once_each_in_their_order(
    observed: Client, told: Told, stored: Stored
) -> None:
    pool = WorkerPool(observed, {Thing: nothing})
    job = observed.enqueue(None, Thing(7))
    assert pool.work_one() is True
    assert told.names == ["on_enqueue", "on_claim", "on_start", "on_finish", "on_outcome"]
    (enqueued,), (claimed, failure), (started,), (finished, error), (event, same) = (args for _, args in told.calls)
    assert enqueued == job
    assert (claimed.id, claimed.state, claimed.attempt, failure) == (job.id, JobState.RUNNING, 1, None)
    assert started == claimed
    assert started.args == Thing(7)
    assert (facts(finished), error) == (facts(stored(job)), None)
    assert finished.state == JobState.COMPLETED
    assert (event.kind, event.job, same) == ("job_completed", finished, None)
    assert event.stats.run > timedelta(0)


@pytest.mark.conformance(242)
def test_on_an_empty_queue_no_hook_fires(observed: Client, told: Told) -> None:
    assert WorkerPool(observed, {Thing: nothing}).work_one() is False
    assert told.calls == []


def test_a_job_whose_enqueue_is_rolled_back_was_told_of_all_the_same(observed: Client, told: Told) -> None:
    """The hook stands inside the transaction, as it says."""
    with observed.pool.connection() as tx:
        jobs = observed.enqueue_many(tx, [Thing(1), Thing(2)])
        tx.rollback()
    assert told.calls == [("on_enqueue", (job,)) for job in jobs]


OUTCOMES: list[tuple[BaseException, JobState, int]] = [
    (ValueError("failed"), JobState.RETRYABLE, 1),
    (SystemExit(1), JobState.RETRYABLE, 1),
    (Snooze(SECOND), JobState.SCHEDULED, 0),
    (Discard("why"), JobState.DISCARDED, 1),
    (Cancel("why"), JobState.CANCELLED, 1),
    (RetryAfter(SECOND), JobState.RETRYABLE, 1),
]


@pytest.mark.conformance(240)
@pytest.mark.parametrize(("error", "state", "attempt"), OUTCOMES, ids=repr)
def test_every_end_hook_sees_the_error_and_the_job_as_the_attempt_left_it(
    *, client: Client, stored: Stored, error: BaseException, state: JobState, attempt: int
) -> None:
    hooks = [Told(), Told()]
    observed = Client(client.pool, schema=client.schema, hooks=hooks)
    job = observed.enqueue(None, Thing())
    assert WorkerPool(observed, {Thing: raising(error)}).work_one()
    found = stored(job)
    assert (found.state, found.attempt) == (state, attempt)
    for hook in hooks:
        assert ends(hook) == [(facts(found), error)]


@pytest.mark.conformance(244)
def test_a_claim_that_fails_is_told_with_the_error_and_nothing_else(
    observed: Client, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = psycopg.OperationalError("no claim today")

    def broken(*args: Any, **kwargs: Any) -> None:
        raise failure

    observed.enqueue(None, Thing())
    told.calls.clear()
    monkeypatch.setattr(observed.queries, "claim", broken)
    with pytest.raises(psycopg.OperationalError):
        WorkerPool(observed, {Thing: nothing}).work_one()
    assert told.calls == [("on_claim", (None, failure))]


@pytest.mark.conformance(245)
def test_a_commit_that_fails_is_told_of_and_then_the_end(
    observed: Client, told: Told, sql: Rows, stored: Stored
) -> None:
    sql("CREATE TABLE pgjobs.checked (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    insert = f'INSERT INTO "{observed.schema}".checked VALUES (1), (1)'.encode()
    job = observed.enqueue(None, Thing())
    assert WorkerPool(observed, {Thing: lambda tx, job: tx.execute(insert)}, backoff=LATER).work_one()
    assert told.names == ["on_enqueue", "on_claim", "on_start", "on_undone", "on_finish", "on_outcome"]
    ((running, undone),) = told.of("on_undone")
    assert (running.id, running.state) == (job.id, JobState.RUNNING)
    assert isinstance(undone, TransactionBroken)
    assert "23505" in str(undone)
    assert ends(told) == [(facts(stored(job)), undone)]
    assert stored(job).state == JobState.RETRYABLE


def test_undecodable_args_are_told_of_by_their_outcome_alone(observed: Client, told: Told) -> None:
    """There was no handler to start."""
    observed.enqueue(None, {"n": "text"}, kind="thing")
    assert WorkerPool(observed, {Thing: nothing}).work_one()
    assert told.names == ["on_enqueue", "on_claim", "on_outcome"]
    ((event, error),) = told.of("on_outcome")
    assert event.job.state == JobState.RETRYABLE
    assert isinstance(error, UndecodableArgs)


def test_a_job_that_was_rescued_is_told_of(observed: Client, told: Told, sql: Rows) -> None:
    sql(
        "INSERT INTO pgjobs.job (kind, state, attempt, max_attempts, attempted_at)"
        " VALUES ('thing', 'running', 1, 1, now() - interval '1 hour')"
    )
    with WorkerPool(observed, {Thing: nothing}, queues={"idle": 1}):
        wait_until(lambda: told.of("on_rescue"))
    ((job,),) = told.of("on_rescue")
    assert (job.id, job.state, job.error_count) == (1, JobState.DISCARDED, 1)


class Stay:
    """A handler that hears nothing until it is released, if it is inside before its time is up."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def __call__(self, tx: Tx, job: Job[Any]) -> None:
        while not self.release.is_set():
            try:
                while not self.release.wait(0.05):
                    pass
            except BaseException:
                continue


@pytest.mark.conformance(122)
def test_a_stuck_handler_is_told_of_once_and_so_is_its_end_and_not_before(
    observed: Client, told: Told, monkeypatch: pytest.MonkeyPatch, stored: Stored
) -> None:
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", QUICK)
    stay = Stay()
    jobs = [observed.enqueue(None, Thing(n)) for n in range(2)]
    with WorkerPool(observed, {Thing: stay}, queues={"default": 2}, timeout=SECOND, backoff=LATER):
        try:
            wait_until(lambda: len(told.of("on_stuck")) == 2)
            wait_until(lambda: all(stored(job).state == JobState.RETRYABLE for job in jobs))
            stuck = told.of("on_stuck")
            assert sorted(job.id for job, _, _ in stuck) == [job.id for job in jobs]
            assert {(job.kind, job.queue) for job, _, _ in stuck} == {("thing", "default")}
            assert [total for _, _, total in stuck] == [1, 2]
            assert all("in __call__" in stack for _, stack, _ in stuck)
            assert told.of("on_unstuck") == []
            wait_until(lambda: len(observed.workers()[0].stuck) == 2)
            rows = observed.workers()[0].stuck
            assert sorted((row.job_id, row.kind) for row in rows) == [(job.id, "thing") for job in jobs]
            assert all("in __call__" in row.stack and "worker-" in row.thread for row in rows)
        finally:
            stay.release.set()
        wait_until(lambda: len(told.of("on_unstuck")) == 2)
    assert sorted(job.id for job, _ in told.of("on_unstuck")) == [job.id for job in jobs]
    assert all(after > timedelta(0) for _, after in told.of("on_unstuck"))
    assert len(told.of("on_stuck")) == 2
    assert len(told.of("on_finish")) == 2, "each attempt ends once, when its outcome is written"


@pytest.mark.conformance(124)
def test_a_second_job_starts_while_the_only_thread_is_stuck(
    observed: Client, told: Told, monkeypatch: pytest.MonkeyPatch, stored: Stored
) -> None:
    """Nobody has to ask for it."""
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", QUICK)
    stay = Stay()
    observed.enqueue(None, {}, kind="stays")
    other = observed.enqueue(None, Thing())
    with WorkerPool(observed, {"stays": stay, Thing: nothing}, queues={"default": 1}, timeout=SECOND):
        try:
            wait_until(lambda: stored(other).state == JobState.COMPLETED)
            assert not stay.release.is_set()
            assert told.of("on_unstuck") == []
        finally:
            stay.release.set()


# --- hooks that fail


@pytest.mark.conformance(230)
@pytest.mark.parametrize("failure", [ValueError, SystemExit, KeyboardInterrupt])
def test_hooks_that_raise_harm_nobody(
    *,
    client: Client,
    sql: Rows,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[BaseException],
) -> None:
    """Every hook there is fires and raises; the listener hears the next notification, and all is worked. Subscribers
    have no callbacks that could raise: they fetch their events."""
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", QUICK)
    bad, good = Told(fail=failure), Told()
    observed = Client(client.pool, schema=client.schema, hooks=[bad, good])
    sql("CREATE TABLE pgjobs.checked (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    sql("INSERT INTO pgjobs.job (kind, queue, state, attempt) VALUES ('thing', 'other', 'running', 1)")
    sql("UPDATE pgjobs.job SET attempted_at = now() - interval '1 hour'")
    stay = Stay()
    work_map: dict[Any, Any] = {
        Thing: nothing,
        "fails": raising(ValueError("failed")),
        "undone": lambda tx, job: tx.execute(f'INSERT INTO "{client.schema}".checked VALUES (1), (1)'.encode()),
        "stays": Handler(stay, timeout=SECOND),
    }
    with WorkerPool(observed, work_map, queues={"default": 1}, backoff=LATER, poll_interval=timedelta(hours=1)) as pool:
        wait_until(lambda: inside.listens(pool))
        for kind in ("fails", "undone", "nobody.knows", "stays", "thing"):
            observed.enqueue(None, {}, kind=kind)
        wait_until(
            lambda: sql("SELECT state FROM pgjobs.job WHERE kind = 'thing' AND queue = 'default'") == [("completed",)]
        )
        stay.release.set()
        wait_until(lambda: "on_unstuck" in good.names and "on_rescue" in good.names)
        last = observed.enqueue(None, Thing())
        wait_until(lambda: sql("SELECT state FROM pgjobs.job WHERE id = %s", last.id) == [("completed",)])
    assert set(good.names) == set(NAMES), "all of them"
    assert sorted(bad.names) == sorted(good.names)
    assert sql("SELECT kind, state FROM pgjobs.job WHERE queue = 'default' ORDER BY id") == [
        *[(kind, "retryable") for kind in ("fails", "undone", "nobody.knows", "stays")],
        *[("thing", "completed")] * 2,
    ]
    assert "the hook on_finish of Told failed" in caplog.text


def test_a_hook_that_lacks_a_method_harms_nobody(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Something that does not inherit from Hooks, as written against an older version."""
    nothing_at_all: Any = object()
    observed = Client(client.pool, schema=client.schema, hooks=[nothing_at_all])
    observed.enqueue(None, Thing())
    assert WorkerPool(observed, {Thing: nothing}).work_one()
    assert "the hook on_start of object failed" in caplog.text


# --- middleware around the handler


def noting(log: list[str], name: str) -> Callable[[Any, Job[Any], Callable[[], object]], None]:
    def middleware(tx: Any, job: Job[Any], run: Callable[[], object]) -> None:
        log.append(f"{name} begins")
        run()
        log.append(f"{name} ends")

    return middleware


def test_middleware_stands_around_the_handler_that_of_the_pool_outermost(client: Client) -> None:
    log: list[str] = []
    handler = Handler(lambda tx, job: log.append("handler"), middleware=[noting(log, "kind 1"), noting(log, "kind 2")])
    client.enqueue(None, Thing())
    client.enqueue(None, {}, kind="other")
    pool = WorkerPool(
        client,
        {Thing: handler, "other": lambda tx, job: log.append("other")},
        middleware=[noting(log, "pool 1"), noting(log, "pool 2")],
    )
    assert pool.work_one()
    steps = ["pool 1", "pool 2", "kind 1", "kind 2"]
    assert log == [f"{step} begins" for step in steps] + ["handler"] + [f"{step} ends" for step in reversed(steps)]
    log.clear()
    assert pool.work_one()
    assert log == ["pool 1 begins", "pool 2 begins", "other", "pool 2 ends", "pool 1 ends"]


def test_middleware_given_to_the_decorator_is_that_of_its_kind(client: Client) -> None:
    from pgjobs import WorkMap

    log: list[str] = []
    work_map = WorkMap()
    work_map.handles(Thing, middleware=[noting(log, "kind")])(nothing)
    client.enqueue(None, Thing())
    assert WorkerPool(client, work_map).work_one()
    assert log == ["kind begins", "kind ends"]


@pytest.mark.parametrize("fails", [False, True])
def test_what_middleware_writes_commits_with_the_job_or_not_at_all(
    client: Client, effects: str, sql: Rows, stored: Stored, *, fails: bool
) -> None:
    def audit(tx: Tx, job: Job[Any], run: Callable[[], object]) -> None:
        tx.execute(f"INSERT INTO {effects} VALUES ('before')".encode())
        run()
        tx.execute(f"INSERT INTO {effects} VALUES ('after')".encode())
        if fails:
            raise ValueError("the audit failed")

    job = client.enqueue(None, Thing())
    handler = Handler(lambda tx, job: tx.execute(f"INSERT INTO {effects} VALUES ('handler')".encode()))
    assert WorkerPool(client, {Thing: handler}, middleware=[audit]).work_one()
    written = [note for (note,) in sql("SELECT note FROM pgjobs.effect")]
    assert written == ([] if fails else ["before", "handler", "after"])
    assert stored(job).state == (JobState.RETRYABLE if fails else JobState.COMPLETED)
    assert stored(job).last_error == ("the audit failed" if fails else None)


@pytest.mark.conformance(240)
def test_middleware_that_swallows_the_error_makes_the_job_completed_with_no_errors(
    observed: Client, told: Told, stored: Stored
) -> None:
    """What hooks may do in River is for middleware here: hooks only look on."""

    def forgiving(tx: Tx, job: Job[Any], run: Callable[[], object]) -> None:
        with pytest.raises(ValueError, match="failed"):
            run()

    job = observed.enqueue(None, Thing())
    assert WorkerPool(observed, {Thing: raising(ValueError("failed"))}, middleware=[forgiving]).work_one()
    assert (stored(job).state, stored(job).errors) == (JobState.COMPLETED, ())
    assert ends(told) == [(facts(stored(job)), None)]


def test_middleware_may_change_the_error_into_an_outcome(client: Client, stored: Stored) -> None:
    def busy_means_later(tx: Tx, job: Job[Any], run: Callable[[], object]) -> None:
        try:
            run()
        except ConnectionError as error:
            raise Snooze(SECOND) from error

    job = client.enqueue(None, Thing())
    assert WorkerPool(client, {Thing: raising(ConnectionError())}, middleware=[busy_means_later]).work_one()
    assert (stored(job).state, stored(job).attempt) == (JobState.SCHEDULED, 0)


def test_middleware_runs_in_the_time_of_the_job(
    client: Client, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", QUICK)

    def slow(tx: Tx, job: Job[Any], run: Callable[[], object]) -> None:
        while True:
            sum(range(100))

    job = client.enqueue(None, Thing())
    assert WorkerPool(client, {Thing: nothing}, middleware=[slow], timeout=SECOND / 10).work_one()
    assert stored(job).last_error == "timed out after 0.1 s"


def test_middleware_of_a_detached_handler_is_given_no_transaction(client: Client, stored: Stored) -> None:
    given: list[Any] = []

    def middleware(tx: Any, job: Job[Any], run: Callable[[], object]) -> None:
        given.append(tx)
        run()

    job = client.enqueue(None, Thing())
    handler = Handler(lambda tx, job: given.append(tx), detached=True)
    assert WorkerPool(client, {Thing: handler}, middleware=[middleware]).work_one()
    assert given == [None, None]
    assert stored(job).state == JobState.COMPLETED


# --- middleware around the insert


@pytest.mark.conformance(14)
def test_insert_middleware_runs_once_per_batch_sees_all_jobs_and_may_change_their_args(client: Client) -> None:
    batches: list[list[str]] = []

    def double(tx: Any, jobs: Sequence[EncodedJob], insert: Insert) -> list[Job[Any]]:
        batches.append([job.args for job in jobs])
        return insert([replace(job, args=job.args.replace("1", "11")) for job in jobs])

    changing = Client(client.pool, schema=client.schema, middleware=[double])
    jobs = changing.enqueue_many(None, [Thing(1), Thing(2), NewJob(Thing(1), priority=5)])
    changing.enqueue(None, Thing(3))
    assert batches == [['{"n":1}', '{"n":2}', '{"n":1}'], ['{"n":3}']]
    assert [job.raw_args for job in jobs] == ['{"n": 11}', '{"n": 2}', '{"n": 11}']
    seen: list[int] = []

    def handler(tx: Tx, job: Job[Thing]) -> None:
        seen.append(job.args.n)

    pool = WorkerPool(client, {Thing: handler})
    while pool.work_one():
        pass
    assert seen == [11, 2, 3, 11]


@pytest.mark.conformance(14)
def test_insert_middleware_stands_in_the_callers_transaction_the_first_one_outermost(
    client: Client, effects: str, sql: Rows
) -> None:
    log: list[str] = []
    given: list[Any] = []

    def noted(name: str) -> Callable[[Any, Sequence[EncodedJob], Insert], list[Job[Any]]]:
        def middleware(tx: Any, jobs: Sequence[EncodedJob], insert: Insert) -> list[Job[Any]]:
            log.append(f"{name} begins")
            given.append(tx)
            tx.execute(f"INSERT INTO {effects} VALUES ('{name}')".encode())
            inserted = insert(jobs)
            log.append(f"{name} ends")
            return inserted

        return middleware

    noting = Client(client.pool, schema=client.schema, middleware=[noted("outer"), noted("inner")])
    with client.pool.connection() as tx:
        noting.enqueue(tx, Thing())
        assert given == [tx, tx]
        tx.rollback()
    assert log == ["outer begins", "inner begins", "inner ends", "outer ends"]
    assert sql("SELECT (SELECT count(*) FROM pgjobs.effect), (SELECT count(*) FROM pgjobs.job)") == [(0, 0)]
    noting.enqueue(None, Thing())
    assert sql("SELECT (SELECT count(*) FROM pgjobs.effect), (SELECT count(*) FROM pgjobs.job)") == [(2, 1)]


def test_insert_middleware_that_raises_lets_nothing_in_and_one_that_inserts_nothing_is_heard(
    client: Client, sql: Rows
) -> None:
    def refuse(tx: Any, jobs: Sequence[EncodedJob], insert: Insert) -> list[Job[Any]]:
        insert(jobs)
        raise PermissionError("not from here")

    def drop(tx: Any, jobs: Sequence[EncodedJob], insert: Insert) -> list[Job[Any]]:
        return insert([])

    refusing = Client(client.pool, schema=client.schema, middleware=[refuse])
    with pytest.raises(PermissionError):
        refusing.enqueue(None, Thing())
    dropping = Client(client.pool, schema=client.schema, middleware=[drop])
    assert dropping.enqueue_many(None, [Thing(), Thing()]) == []
    assert sql("SELECT count(*) FROM pgjobs.job") == [(0,)]


# --- the error handler


class Judge(ErrorHandler):
    """Answers the same to every error, and notes them."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.errors: list[tuple[str, BaseException, Job[Any]]] = []

    def handle_error(self, job: Job[Any], error: Exception) -> Any:
        self.errors.append(("error", error, job))
        return self._answer()

    def handle_exit(self, job: Job[Any], error: BaseException) -> Any:
        self.errors.append(("exit", error, job))
        return self._answer()

    def _answer(self) -> Any:
        if isinstance(self.answer, BaseException) and not isinstance(self.answer, Cancel | Discard):
            raise self.answer
        return self.answer


def judged(client: Client, judge: Judge, handler: Any, **settings: Any) -> None:
    """Work one job, on a thread of its own: on the main one a KeyboardInterrupt is somebody's Ctrl-C."""
    pool = WorkerPool(client, {Thing: handler}, error_handler=judge, backoff=LATER, **settings)
    with ThreadPoolExecutor(1) as worker:
        assert worker.submit(pool.work_one).result()


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (None, JobState.RETRYABLE),
        (Cancel("no more"), JobState.CANCELLED),
        (Discard("no more"), JobState.DISCARDED),
        ("anything else", JobState.RETRYABLE),
        (RuntimeError("the judge fails"), JobState.RETRYABLE),
        (SystemExit(1), JobState.RETRYABLE),
    ],
    ids=repr,
)
@pytest.mark.parametrize("error", [ValueError("failed"), SystemExit("failed"), KeyboardInterrupt("failed")], ids=repr)
def test_what_the_error_handler_says_is_the_outcome_and_the_error_stays_the_handlers(
    *, client: Client, stored: Stored, answer: Any, state: JobState, error: BaseException
) -> None:
    judge = Judge(answer)
    job = client.enqueue(None, Thing(5))
    judged(client, judge, raising(error))
    found = stored(job)
    assert (found.state, found.attempt, found.state.final) == (state, 1, found.finalized_at is not None)
    assert [entry.error.removeprefix(f"{type(error).__name__}: ") for entry in found.errors] == ["failed"]
    ((method, seen, seen_job),) = judge.errors
    assert (method, seen) == ("error" if isinstance(error, Exception) else "exit", error)
    assert (seen_job.id, seen_job.args, seen_job.attempt) == (job.id, Thing(5), 1)


@pytest.mark.parametrize("error", [Cancel("why"), Discard("why"), Snooze(SECOND)], ids=repr)
def test_the_error_handler_is_not_asked_about_what_the_handler_decided_itself(
    client: Client, stored: Stored, error: Exception
) -> None:
    judge = Judge(Discard("the judge"))
    job = client.enqueue(None, Thing())
    judged(client, judge, raising(error))
    assert judge.errors == []
    assert stored(job).last_error != "the judge"


@pytest.mark.conformance(239)
def test_the_error_handler_is_asked_about_unknown_kinds_with_an_error_that_carries_the_kind(
    client: Client, stored: Stored
) -> None:
    judge = Judge(Cancel())
    job: Job[Any] = client.enqueue(None, {}, kind="nobody.knows")
    judged(client, judge, nothing)
    ((method, error, _),) = judge.errors
    assert method == "error"
    assert isinstance(error, UnknownKind)
    assert error.kind == "nobody.knows"
    assert stored(job).state == JobState.CANCELLED


def test_the_error_handler_is_asked_about_undecodable_args_and_failed_commits(client: Client, stored: Stored) -> None:
    judge = Judge(Discard())
    for args in ({"n": "text"}, {"n": 1}):
        client.enqueue(None, args, kind="thing")
        judged(client, judge, lambda tx, job: tx.rollback())
    assert [type(error) for _, error, _ in judge.errors] == [UndecodableArgs, TransactionBroken]
    with client.pool.connection() as tx:
        states = tx.execute(f'SELECT state FROM "{client.schema}".job'.encode()).fetchall()
    assert states == [("discarded",)] * 2


@pytest.mark.parametrize("hears", [True, False])
def test_the_error_handler_is_asked_once_about_a_timeout(
    client: Client, stored: Stored, monkeypatch: pytest.MonkeyPatch, *, hears: bool
) -> None:
    """Also when the handler did not end until long after that."""
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", QUICK)
    judge, stay = Judge(Discard()), Stay()

    def loop(tx: Tx, job: Job[Any]) -> None:
        while True:
            sum(range(100))

    job = client.enqueue(None, Thing())
    pool = WorkerPool(
        client, {Thing: loop if hears else stay}, error_handler=judge, timeout=SECOND / 10, queues={"default": 1}
    )
    with pool:
        wait_until(lambda: stored(job).state == JobState.DISCARDED)
        stay.release.set()
    assert [type(error) for _, error, _ in judge.errors] == [JobTimedOut]
    assert stored(job).last_error == "timed out after 0.1 s"


def test_the_error_handler_is_not_asked_about_what_a_stop_or_a_cancel_cut_off(client: Client, stored: Stored) -> None:
    judge = Judge(Discard("the judge"))
    started = threading.Semaphore(0)

    def loop(tx: Tx, job: Job[Any]) -> None:
        started.release()
        while True:
            sum(range(100))

    cancelled, stopped = client.enqueue(None, Thing()), client.enqueue(None, Thing(), queue="other")
    pool = WorkerPool(client, {Thing: loop}, error_handler=judge, queues={"default": 1, "other": 1}).start()
    assert started.acquire(timeout=10)
    assert started.acquire(timeout=10)
    client.cancel(cancelled.id)
    wait_until(lambda: stored(cancelled).state == JobState.CANCELLED)
    pool.stop(timedelta(0))
    assert stored(stopped).state == JobState.AVAILABLE
    assert judge.errors == []


def test_a_judge_that_fails_is_in_the_log(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    client.enqueue(None, Thing())
    with caplog.at_level(logging.ERROR, logger="pgjobs"):
        judged(client, Judge(RuntimeError("the judge fails")), raising(ValueError("failed")))
    assert "the error handler failed on job 1" in caplog.text
