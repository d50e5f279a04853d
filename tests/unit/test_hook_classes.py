"""Classes of hooks and error handlers whose methods would never be called are refused when they are made."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest

from pgjobs import Client, ErrorHandler, Hooks, InvalidSetting, Job, WorkerPool
from tests.samples import Thing
from tests.unit.test_wrong_values import POOL, nothing


def method(self: Any, *args: Any) -> None: ...


@pytest.mark.finding("E6")
@pytest.mark.parametrize(
    ("base", "name", "meant"),
    [
        (Hooks, "on_finished", "on_finish"),
        (Hooks, "on_cliam", "on_claim"),
        (Hooks, "onfinish", "on_finish"),
        (Hooks, "onFinish", "on_finish"),
        (Hooks, "on_Finish", "on_finish"),
        (Hooks, "finish", None),
        (Hooks, "on_complete", None),
        (Hooks, "on_unstucked", "on_unstuck"),
        (ErrorHandler, "handle_errors", "handle_error"),
        (ErrorHandler, "handel_error", "handle_error"),
        (ErrorHandler, "handle_panic", None),
        (ErrorHandler, "on_error", None),
    ],
)
def test_a_misspelt_method_is_refused_with_the_one_that_was_meant(base: type, name: str, meant: str | None) -> None:
    """A hook called `on_finished` was never called, and nothing said so."""
    allowed = name in ("finish", "on_error")  # helpers of the application's own
    if allowed:
        type("Mine", (base,), {name: method})
        return
    with pytest.raises(InvalidSetting, match=rf"Mine\.{name} will never be called.*_{name}") as refused:
        type("Mine", (base,), {name: method})
    assert meant is None or f"is {meant} meant?" in str(refused.value)
    assert "on_finish, " in str(refused.value) or "handle_error, handle_exit" in str(refused.value)
    type("Mine", (base,), {f"_{name}": method})


@pytest.mark.finding("E6")
@pytest.mark.parametrize("wrap", [staticmethod, classmethod, property, functools.partial])
def test_whatever_kind_of_method_it_is(wrap: Any) -> None:
    """The same for static and class methods, properties and objects that can be called."""
    with pytest.raises(InvalidSetting, match="is on_start meant"):
        type("Mine", (Hooks,), {"on_strat": wrap(method)})


@pytest.mark.finding("E6")
def test_helpers_and_other_attributes_are_its_own() -> None:
    """Only what looks like a hook is one."""

    class Mine(Hooks):
        on_duty = True
        counts: dict[str, int]

        def __init__(self, size: int) -> None:
            self.counts = {}

        def _on_finished(self) -> None: ...

        def reset(self) -> None: ...

        def on_finish(self, job: Job[Any], error: BaseException | None, more: int = 1) -> None: ...

        @staticmethod
        def on_claim(job: Job[Any] | None, error: BaseException | None) -> None: ...

        @classmethod
        def on_undone(cls, *args: Any) -> None: ...

    Client(POOL, hooks=[Mine(1)])


@pytest.mark.finding("E6")
def test_a_mixin_is_looked_through_too() -> None:
    """What a mixin has for others is its own affair; what resembles a hook is meant to be one."""

    class Listener:
        def on_message(self) -> None: ...

    class Misspelt:
        def on_finsh(self, job: Job[Any], error: BaseException | None) -> None: ...

    type("Fine", (Listener, Hooks), {})
    with pytest.raises(InvalidSetting, match="on_finsh will never be called: is on_finish meant"):
        type("Mine", (Misspelt, Hooks), {})


async def asynchronous(self: Any, job: Any) -> None: ...


def generator(self: Any, job: Any) -> Any:
    yield


@pytest.mark.finding("E6")
@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (lambda self: None, "too many positional"),
        (lambda self, job, error, more: None, "missing a required argument: 'more'"),
        (lambda self, job, *, error: None, "too many positional"),
        (staticmethod(lambda self, job, error: None), "missing a required argument"),
        (asynchronous, "is async"),
        (generator, "is a generator"),
        (5, "must be a method"),
        (None, "must be a method"),
    ],
)
def test_a_method_that_cannot_be_called_as_it_is_called_is_refused(wrong: Any, problem: str) -> None:
    """It would have failed, or not run, at every event."""
    with pytest.raises(InvalidSetting, match=r"Mine\.on_finish.*def on_finish\(self, job, error\)") as refused:
        type("Mine", (Hooks,), {"on_finish": wrong})
    assert problem in str(refused.value)


class Mine(Hooks):
    pass


class Judge(ErrorHandler):
    pass


@pytest.mark.finding("E6")
def test_a_class_in_place_of_an_object_is_refused() -> None:
    """`hooks=[Hooks]` failed at every event, in the log."""
    with pytest.raises(InvalidSetting, match=r"hooks must be a list of objects, not of classes: give Mine\(\)"):
        Client(POOL, hooks=[Mine])  # type: ignore[list-item]
    with pytest.raises(InvalidSetting, match=r"error_handler is an object.*give Judge\(\)"):
        WorkerPool(Client(POOL), {Thing: nothing}, error_handler=Judge)  # type: ignore[arg-type]


@pytest.mark.finding("E6")
def test_an_object_that_does_not_inherit_is_looked_at_where_it_is_given() -> None:
    """One that only looks like Hooks, with a method that would never be called."""

    class Looks:
        def on_finsh(self, job: Any, error: Any) -> None: ...

    looks: Any = Looks()
    with pytest.raises(InvalidSetting, match="is on_finish meant"):
        Client(POOL, hooks=[looks])


@pytest.mark.finding("E7")
def test_run_in_another_thread_is_told_what_to_call_there() -> None:
    """signal.signal raised a bare ValueError."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            WorkerPool(Client(POOL), {Thing: nothing}).run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(30)
    assert [type(error).__name__ for error in raised] == ["WorkerPoolError"]
    assert "start()" in str(raised[0])
    assert "stop()" in str(raised[0])
