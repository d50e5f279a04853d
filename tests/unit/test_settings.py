"""What is set or asked wrongly is refused by name, with what was given and what to give, and before any SQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from pgjobs import (
    Client,
    ErrorHandler,
    Handler,
    Hooks,
    InvalidArgs,
    InvalidFilter,
    InvalidHandler,
    InvalidOption,
    InvalidSchedule,
    InvalidSetting,
    NewJob,
    Schedule,
    WorkerPool,
    WorkMap,
    constant,
    exponential,
    job_options,
)
from tests.samples import Thing, shown
from tests.unit.samples import a_job


def nothing(tx: Any, job: Any) -> None: ...


@pytest.fixture
def client() -> Client:
    """Whose pool is closed: to send anything would be another error."""
    client = Client("postgresql://nowhere.invalid/none")
    client.close()
    return client


DURATIONS = {
    "timeout": (60, "seconds=60"),
    "lease": (60, "seconds=60"),
    "poll_interval": (0.5, "seconds=0.5"),
    "fetch_cooldown": (1, "seconds=1"),
    "keep_completed": (24, "hours=24"),
    "keep_cancelled": (24, "hours=24"),
    "keep_discarded": (168, "hours=168"),
}


@pytest.mark.parametrize("name", DURATIONS)
def test_a_number_in_place_of_a_duration_is_told_how_to_be_one(client: Client, name: str) -> None:
    given, right = DURATIONS[name]
    with pytest.raises(InvalidSetting, match=rf"{name} must be a timedelta.*, not {given}: give timedelta\({right}\)"):
        WorkerPool(client, {Thing: nothing}, **{name: given})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize("given", ["60", True, [1]], ids=repr)
def test_what_is_no_duration_is_refused(client: Client, name: str, given: Any) -> None:
    with pytest.raises(InvalidSetting, match=rf"{name} must be a timedelta.*timedelta\((seconds|hours)=1\)"):
        WorkerPool(client, {Thing: nothing}, **{name: given})


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: Handler(nothing, timeout=5), "timeout"),  # type: ignore[arg-type]
        (lambda: constant(5), "delay"),  # type: ignore[arg-type]
        (lambda: exponential(5), "base"),  # type: ignore[arg-type]
        (lambda: exponential(maximum=5), "maximum"),  # type: ignore[arg-type]
    ],
)
def test_handlers_and_policies_are_told_so_too(call: Callable[[], object], name: str) -> None:
    with pytest.raises(
        (InvalidHandler, InvalidSetting), match=rf"{name} must be .* not 5: give timedelta\(seconds=5\)"
    ):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.wait(7, timeout=5),
        lambda client: asyncio.run(client.await_job(7, timeout=5)),
        lambda client: client.subscribe().get(5),
        lambda client: WorkerPool(client, {Thing: nothing}).stop(5),  # type: ignore[arg-type]
        lambda client: WorkerPool(client, {Thing: nothing}).remove_queue("default", 5),  # type: ignore[arg-type]
    ],
    ids=["wait", "await_job", "get", "stop", "remove_queue"],
)
def test_who_waits_for_a_number_is_told_so_too(client: Client, call: Callable[[Client], object]) -> None:
    with pytest.raises(InvalidSetting, match=r"timeout must be .* not 5: give timedelta\(seconds=5\)"):
        call(client)


@pytest.mark.parametrize("queues", [["default"], "default", {"default"}, 10], ids=repr)
def test_queues_are_a_mapping(client: Client, queues: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"queues is a mapping .*\{'default': 10\}, not .*(default|10)"):
        WorkerPool(client, {Thing: nothing}, queues=queues)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"listen_dsn": 5}, r"listen_dsn is a connection string, not of type int"),
        ({"backoff": 5}, r"backoff must be .*constant\(.*not 5"),
        ({"error_handler": 5}, r"error_handler is .*ErrorHandler, not 5"),
        ({"error_handler": ErrorHandler}, r"error_handler is .*ErrorHandler, not <class"),
        ({"middleware": nothing}, r"middleware must be a list .*give middleware=\[...\]"),
        ({"middleware": "abc"}, r"middleware must be a list .*not 'abc'"),
        ({"middleware": [5]}, r"middleware must be a list .*not of 5"),
    ],
    ids=shown,
)
def test_settings_of_a_worker_pool_that_are_of_another_type(client: Client, setting: Any, error: str) -> None:
    with pytest.raises(InvalidSetting, match=error):
        WorkerPool(client, {Thing: nothing}, **setting)


def test_a_schedule_is_given_in_a_list(client: Client) -> None:
    schedule = Schedule("nightly", "@daily", Thing())
    for cron in (schedule, 5):
        with pytest.raises(InvalidSchedule, match=r"cron must be a list of Schedule\(...\), not .*give cron=\[...\]"):
            WorkerPool(client, {Thing: nothing}, cron=cron)  # type: ignore[arg-type]
    assert len(WorkerPool(client, {Thing: nothing}, cron=iter([schedule])).schedules) == 1


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"code_version": 5}, "code_version must be a str, not 5"),
        ({"backoff": 5}, "backoff must be .*not 5"),
        ({"context": {"user": 1}}, "context must be a function .*not {'user': 1}"),
        ({"hooks": Hooks()}, r"hooks must be a list of Hooks, not .*give hooks=\[...\]"),
        ({"middleware": nothing}, r"middleware must be a list .*give middleware=\[...\]"),
        ({"middleware": [5]}, "middleware must be a list .*not of 5"),
    ],
    ids=shown,
)
def test_settings_of_a_client_that_are_of_another_type(setting: Any, error: str) -> None:
    with pytest.raises(InvalidSetting, match=error):
        Client("postgresql://nowhere.invalid/none", **setting)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"timeout": "never"}, "timeout must be .*not 'never'"),
        ({"backoff": 5}, "backoff must be .*not 5"),
        ({"middleware": nothing}, "middleware must be a list"),
        ({"middleware": [5]}, "middleware must be a list .*not of 5"),
    ],
    ids=shown,
)
def test_settings_of_a_handler_that_are_of_another_type(setting: Any, error: str) -> None:
    with pytest.raises(InvalidHandler, match=error):
        Handler(nothing, **setting)


@pytest.mark.parametrize("given", [5, nothing, [nothing]], ids=["number", "function", "list"])
def test_a_work_map_is_made_of_a_mapping(client: Client, given: Any) -> None:
    for make in (WorkMap, lambda given: WorkerPool(client, given)):
        with pytest.raises(InvalidHandler, match=r"(WorkMap|work_map) must be a mapping.*not (5|.*nothing)"):
            make(given)


@pytest.mark.parametrize("returning", [True, False])
@pytest.mark.parametrize("jobs", [5, None, Thing(), NewJob(Thing())], ids=["number", "None", "args", "NewJob"])
def test_one_job_goes_to_enqueue(client: Client, jobs: Any, returning: bool) -> None:
    with pytest.raises(InvalidArgs, match=r"a list of jobs, not .*: one job goes to enqueue"):
        client.enqueue_many(None, jobs, returning=returning)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.enqueue(None, Thing(), prioritty=1),
        lambda client: NewJob(Thing(), prioritty=1),  # type: ignore[call-arg]
        lambda client: job_options(prioritty=1),  # type: ignore[call-arg]
        lambda client: Schedule("nightly", "@daily", Thing(), prioritty=1),  # type: ignore[call-arg]
    ],
    ids=["enqueue", "NewJob", "job_options", "Schedule"],
)
def test_an_option_that_there_is_not_is_named_beside_those_there_are(
    client: Client, call: Callable[[Client], object]
) -> None:
    with pytest.raises(InvalidOption, match=r"no option 'prioritty': the options are queue, priority, .*, pending$"):
        call(client)


def test_a_kind_among_the_options_of_a_class_is_answered_with_where_it_belongs() -> None:
    options: dict[str, Any] = {"kind": "report"}
    with pytest.raises(InvalidOption, match=r"set it in the args class, as in kind: ClassVar\[str\] = 'report'"):
        job_options(**options)


def test_a_type_error_of_something_else_than_the_names_of_the_options_is_let_through() -> None:
    class Odd(int):
        def __le__(self, other: object) -> bool:
            raise TypeError("odd")

        __ge__ = __le__

    with pytest.raises(TypeError, match="odd"):
        NewJob(Thing(), priority=Odd(1))


CALLS: dict[str, Callable[[Client, Any], object]] = {
    "get": lambda client, id: client.get(id),
    "cancel": lambda client, id: client.cancel(id),
    "release": lambda client, id: client.release(id),
    "retry": lambda client, id: client.retry(id),
    "delete": lambda client, id: client.delete(id),
    "update": lambda client, id: client.update(id, priority=1),
    "update nothing": lambda client, id: client.update(id),
    "wait": lambda client, id: client.wait(id, timeout=timedelta(0)),
    "lock_job": lambda client, id: client.lock_job(id=id).__enter__(),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("id", ["x", "5.0", 5.0, True, NewJob(Thing())], ids=repr)
def test_what_is_no_id_is_told_to_be_one(client: Client, call: str, id: Any) -> None:
    with pytest.raises(InvalidFilter, match=r"the id of a job is a whole number, not .*give job\.id"):
        CALLS[call](client, id)


@pytest.mark.parametrize("call", [call for call in CALLS if call != "wait"])
def test_a_job_is_no_id(client: Client, call: str) -> None:
    with pytest.raises(InvalidFilter, match=r"not a job: give its job\.id"):
        CALLS[call](client, a_job())
