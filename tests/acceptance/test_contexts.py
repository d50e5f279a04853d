"""What a handler sets in context variables is gone with its attempt."""

from __future__ import annotations

import contextvars
import decimal
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from pgjobs import (
    Client,
    ErrorHandler,
    Handler,
    Hooks,
    Job,
    JobState,
    NewJob,
    QueueSettings,
    WorkerPool,
    WorkMap,
    constant,
    current_job,
)
from tests.samples import Tx
from tests.waiting import wait_until

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
JOBS = 4


def work(client: Client, handler: Any, *, batch_size: int = 1, **options: Any) -> list[Job[Any]]:
    """Jobs of one thread, as they are when all are over."""
    jobs = client.enqueue_many(None, [NewJob({"number": number}, kind="any") for number in range(JOBS)])

    def found() -> list[Job[Any]]:
        read = [client.get(job.id) for job in jobs]
        return [job for job in read if job is not None]

    with WorkerPool(client, {"any": handler}, queues={"default": QueueSettings(1, batch_size=batch_size)}, **options):
        wait_until(lambda: all(job.state.final for job in found()), 20)
    return found()


def set_and_note(seen: list[tuple[str, str]], where: str, name: str = "") -> None:
    seen.append((where, tenant.get()))
    tenant.set(name or where)


def values_at(seen: list[tuple[str, str]], where: str) -> set[str]:
    return {value for at, value in seen if at == where}


def set_tenant(seen: list[str], name: str) -> None:
    seen.append(tenant.get())
    tenant.set(name)


@pytest.mark.finding("W6")
@pytest.mark.parametrize("batch_size", [1, JOBS])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("detached", [False, True])
def test_what_a_handler_sets_in_a_context_variable_the_next_job_does_not_see(
    client: Client, *, batch_size: int, fails: bool, detached: bool
) -> None:
    """A tenant or a user that one job had set was that of the next job of the thread."""
    seen: list[str] = []

    def handler(tx: Tx | None, job: Job[Any]) -> None:
        set_tenant(seen, f"of job {job.id}")
        if fails and job.attempt == 1:
            raise ValueError("after it was set")

    jobs = work(client, Handler(handler, detached=detached), batch_size=batch_size, backoff=constant(timedelta(0)))
    assert {job.state for job in jobs} == {JobState.COMPLETED}
    assert set(seen) == {"nobody"}
    assert len(seen) >= JOBS


@pytest.mark.finding("W6")
@pytest.mark.parametrize("batch_size", [1, JOBS])
@pytest.mark.parametrize("touched_before", [False, True])
def test_the_precision_of_decimals_that_a_handler_sets_is_its_own(
    client: Client, *, batch_size: int, touched_before: bool
) -> None:
    """The next job counted with as few digits; the object that holds them is shared by copies of a context."""
    seen: list[int] = []

    class Counting(Hooks):
        def on_start(self, job: Job[Any]) -> None:
            if touched_before:
                decimal.getcontext()

    def handler(tx: Tx, job: Job[Any]) -> None:
        seen.append(decimal.getcontext().prec)
        decimal.getcontext().prec = 3

    with Client(client.pool, schema=client.schema, hooks=[Counting()]) as counting:
        work(counting, handler, batch_size=batch_size)
    assert seen == [decimal.DefaultContext.prec] * JOBS


@pytest.mark.finding("W6")
def test_a_job_that_is_worked_by_hand_sees_what_its_caller_has_set_and_leaves_it_alone(client: Client) -> None:
    """What a handler had set held for its caller from there on."""
    seen: list[tuple[str, int]] = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        seen.append((tenant.get(), decimal.getcontext().prec))
        tenant.set("the job's")
        decimal.getcontext().prec = 3

    def by_hand() -> None:
        tenant.set("the caller's")
        decimal.getcontext().prec = 11
        for _ in range(2):
            client.enqueue(None, {}, kind="any")
            assert WorkerPool(client, {"any": handler}).work_one()
            assert (tenant.get(), decimal.getcontext().prec) == ("the caller's", 11)

    contextvars.copy_context().run(by_hand)
    decimal.setcontext(decimal.Context())
    assert seen == [("the caller's", 11)] * 2


@pytest.mark.finding("W6")
@pytest.mark.parametrize("by_hand", ["work_one", "lock_job"])
def test_the_precision_that_a_policy_or_an_error_handler_sets_is_not_the_callers(client: Client, by_hand: str) -> None:
    """The caller of a work_one() or lock_job() went on with as few digits as they had set."""

    def few_digits(digits: int, answer: timedelta) -> timedelta:
        decimal.getcontext().prec = digits
        return answer

    class Judge(ErrorHandler):
        def handle_error(self, job: Job[Any], error: Exception) -> None:
            decimal.getcontext().prec = 4

    class Noting(Hooks):
        def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
            decimal.getcontext().prec = 5

    def handler(tx: Tx, job: object) -> None:
        raise ValueError("of the handler")

    policies: dict[str, Any] = {
        "timeout": lambda job: few_digits(2, timedelta(minutes=1)),
        "backoff": lambda job, error: few_digits(3, timedelta(hours=1)),
    }
    work_map = WorkMap({"any": Handler(handler, **policies)})

    def act() -> None:
        decimal.getcontext().prec = 11
        client.enqueue(None, {}, kind="any")
        with Client(client.pool, schema=client.schema, hooks=[Noting()], work_map=work_map) as noting:
            if by_hand == "work_one":
                assert WorkerPool(noting, work_map, error_handler=Judge()).work_one()
            else:
                with pytest.raises(ValueError, match="of the handler"), noting.lock_job() as (tx, job):
                    handler(tx, job)
        assert decimal.getcontext().prec == 11

    contextvars.copy_context().run(act)
    decimal.setcontext(decimal.Context())


@pytest.mark.finding("W6")
@pytest.mark.parametrize("batch_size", [1, JOBS])
def test_hooks_middleware_and_policies_of_an_attempt_leave_nothing_for_the_next(
    client: Client, batch_size: int
) -> None:
    """What they had set was there for the next job as well."""
    seen: list[tuple[str, str]] = []
    note = partial(set_and_note, seen)

    class Noting(Hooks):
        def on_claim(self, job: Job[Any] | None, error: BaseException | None) -> None:
            note("on_claim", "nobody")

        def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
            note("on_finish")

    def backoff(job: Job[Any], error: BaseException) -> timedelta:
        note("backoff")
        return timedelta(0)

    def middleware(tx: Tx, job: Job[Any], run: Callable[[], Any]) -> None:
        note("middleware")
        run()
        note("after it")

    def handler(tx: Tx, job: Job[Any]) -> None:
        note("handler")
        if job.attempt == 1:
            raise ValueError("once")

    with Client(client.pool, schema=client.schema, hooks=[Noting()]) as noting:
        work(noting, Handler(handler, middleware=[middleware]), batch_size=batch_size, backoff=backoff)
    assert values_at(seen, "on_claim") == values_at(seen, "middleware") == {"nobody"}
    assert values_at(seen, "handler") == {"middleware"}
    assert values_at(seen, "after it") == {"handler"}
    assert values_at(seen, "backoff") == {"handler"}, "all of one attempt run in one context"
    assert values_at(seen, "on_finish") == {"after it", "backoff"}


@pytest.mark.finding("W6")
@pytest.mark.parametrize("batch_size", [1, JOBS])
def test_what_a_timeout_sets_the_next_one_does_not_see(client: Client, batch_size: int) -> None:
    """What one job's had set was there for the next."""
    seen: list[str] = []

    def timeout(job: Job[Any]) -> timedelta:
        set_tenant(seen, "of a timeout")
        return timedelta(minutes=1)

    work(client, Handler(lambda tx, job: None, timeout=timeout), batch_size=batch_size)
    assert seen == ["nobody"] * JOBS


@pytest.mark.parametrize("batch_size", [1, JOBS])
def test_a_hook_takes_back_at_the_end_what_it_has_set_at_the_start(client: Client, batch_size: int) -> None:
    """As tracing does: a token is good for the context that it was made in."""
    seen: list[str] = []

    class Tracing(Hooks):
        tokens: dict[int, contextvars.Token[str]]

        def on_start(self, job: Job[Any]) -> None:
            self.tokens[job.id] = tenant.set(f"span {job.id}")

        def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
            tenant.reset(self.tokens.pop(job.id))

    tracing = Tracing()
    tracing.tokens = {}
    with Client(client.pool, schema=client.schema, hooks=[tracing]) as traced:
        jobs = work(traced, lambda tx, job: seen.append(tenant.get()), batch_size=batch_size)
    assert seen == [f"span {job.id}" for job in jobs]
    assert tracing.tokens == {}


@pytest.mark.finding("W6")
@pytest.mark.parametrize("batch_size", [1, JOBS])
def test_a_transaction_in_a_context_variable_does_not_cost_the_connection(client: Client, batch_size: int) -> None:
    """It looked as if it were kept for another job, so each job had a connection of its own."""
    held: contextvars.ContextVar[Tx] = contextvars.ContextVar("held")
    backends: set[int] = set()

    def handler(tx: Tx, job: Job[Any]) -> None:
        held.set(tx)
        backends.add(tx.info.backend_pid)

    work(client, handler, batch_size=batch_size)
    assert len(backends) == 1


@pytest.mark.parametrize("batch_size", [1, JOBS])
def test_the_current_job_is_that_of_the_handler_and_nothing_before_and_after(client: Client, batch_size: int) -> None:
    seen: list[tuple[int, int]] = []
    hooks: list[Job[Any] | None] = []

    class Asking(Hooks):
        def on_start(self, job: Job[Any]) -> None:
            hooks.append(current_job())

        def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
            hooks.append(current_job())

    def handler(tx: Tx, job: Job[Any]) -> None:
        current = current_job()
        assert current is not None
        seen.append((job.id, current.id))

    with Client(client.pool, schema=client.schema, hooks=[Asking()]) as asking:
        work(asking, handler, batch_size=batch_size)
    assert len(seen) == JOBS
    assert all(one == other for one, other in seen)
    assert hooks == [None] * (2 * JOBS)


@pytest.mark.finding("W6")
def test_a_handler_in_a_context_of_its_own_is_still_made_to_end(client: Client) -> None:
    """A timeout raises in its thread, wherever that is."""
    ended: list[type[BaseException] | str] = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        ended.append(tenant.get())
        tenant.set("left")
        try:
            while True:
                threading.Event().wait(0.01)
        except BaseException as error:
            ended.append(type(error))
            raise

    client.enqueue(None, {}, kind="any", max_attempts=1)
    job: Job[Any] = client.enqueue(None, {}, kind="any", max_attempts=1)
    with WorkerPool(client, {"any": Handler(handler, timeout=timedelta(milliseconds=100))}, queues={"default": 1}):
        wait_until(lambda: (found := client.get(job.id)) is not None and found.state.final, 20)
    assert [seen for seen in ended if isinstance(seen, str)] == ["nobody", "nobody"]
    assert [seen.__name__ for seen in ended if isinstance(seen, type)] == ["Interrupted", "Interrupted"]
