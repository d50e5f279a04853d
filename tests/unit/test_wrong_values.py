"""What is given wrongly anywhere in the public interface is refused by its name and with its value, before any SQL."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool, PoolClosed

import pgjobs
from pgjobs import (
    Client,
    Handler,
    JobFilter,
    JobOptions,
    NewJob,
    PgjobsError,
    QueueSettings,
    RetryAfter,
    RetryAt,
    Schedule,
    Snooze,
    Unique,
    WorkerPool,
    WorkMap,
    constant,
    decode_args,
    every,
    exponential,
    job_options,
    only_for,
    river,
    schema_sql,
)
from tests.samples import Thing
from tests.unit.samples import a_job

Call = Callable[[Client, Any], object]


class Unprintable:
    """Whose repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def nothing(tx: Any, job: Any) -> None: ...


WRONG: dict[str, Any] = {
    "None": None,
    "5": 5,
    "-1": -1,
    "True": True,
    "nan": math.nan,
    "inf": math.inf,
    "huge": 10**5000,
    "text": "x",
    "empty": "",
    "NUL": "a\0b",
    "surrogate": "a\ud800b",
    "bytes": b"xyz",
    "list": [],
    "list of None": [None],
    "dict": {},
    "object": object(),
    "unprintable": Unprintable(),
    "class": int,
    "function": nothing,
    "naive": datetime(2026, 1, 1),
    "aware": datetime(2026, 1, 1, tzinfo=UTC),
    "duration": timedelta(hours=1),
    "negative duration": timedelta(hours=-1),
}
ANY_TIME = {"None", "duration", "negative duration"}
FUNCTIONS = {"None", "class", "function"}
TEXTS = {"text", "empty", "NUL", "surrogate"}


POOL: ConnectionPool[Any] = ConnectionPool("postgresql://nowhere.invalid/none", open=False)


def method(name: str) -> Call:
    return lambda client, value: getattr(client, name)(value)


def async_method(name: str, *behind: object) -> Call:
    async def call(client: Client, value: Any) -> object:
        found: object = await getattr(client, name)(value, *behind)
        return found

    return lambda client, value: asyncio.run(call(client, value))


def of_schedules(name: str) -> Call:
    return lambda client, value: getattr(client.schedules, name)(value)


def filtered(name: str) -> Call:
    return lambda client, value: JobFilter(**{name: value})


def pool_with(name: str) -> Call:
    setting: Any = name
    return lambda client, value: WorkerPool(client, {Thing: nothing}, **{setting: value})


# what takes the value; what the parameter is called; which of WRONG it takes
CALLS: dict[str, tuple[Call, str, set[str]]] = {
    # a client
    "Client": (lambda client, value: Client(value), "connection string", set()),
    "Client schema": (lambda client, value: Client(POOL, schema=value), "schema", {"text"}),
    "Client id": (lambda client, value: Client(POOL, id=value), "id", {"None", *TEXTS}),
    "Client work_map": (lambda client, value: Client(POOL, work_map=value), "work_map", {"None", "dict"}),
    "Client queue": (lambda client, value: Client(POOL, queue=value), "queue", {"text"}),
    "Client priority": (lambda client, value: Client(POOL, priority=value), "priority", {"5", "-1"}),
    "Client max_attempts": (lambda client, value: Client(POOL, max_attempts=value), "max_attempts", {"5"}),
    "Client max_args_bytes": (
        lambda client, value: Client(POOL, max_args_bytes=value),
        "max_args_bytes",
        {"5", "huge"},
    ),
    "Client backoff": (lambda client, value: Client(POOL, backoff=value), "backoff", FUNCTIONS),
    "Client context": (lambda client, value: Client(POOL, context=value), "context", FUNCTIONS),
    "Client code_version": (
        lambda client, value: Client(POOL, code_version=value),
        "code_version",
        {"None", "text", "empty"},
    ),
    "Client hooks": (
        lambda client, value: Client(POOL, hooks=[value]),
        "hooks",
        {"object", "unprintable", "naive", "aware", "duration", "negative duration"},
    ),
    "Client middleware": (lambda client, value: Client(POOL, middleware=[value]), "middleware", {"class", "function"}),
    "migrate direction": (lambda client, value: client.migrate(direction=value), "direction", set()),
    "migrate target": (lambda client, value: client.migrate(target=value), "target", {"None"}),
    "migrate max_steps": (lambda client, value: client.migrate(max_steps=value), "max_steps", {"None", "5", "huge"}),
    "migrate dry_run": (lambda client, value: client.migrate(dry_run=value), "dry_run", {"True"}),
    # enqueue
    "enqueue tx": (lambda client, value: client.enqueue(value, Thing()), "tx", {"None"}),
    "enqueue args": (lambda client, value: client.enqueue(None, value), "", {"dict"}),
    "enqueue kind": (lambda client, value: client.enqueue(None, {}, kind=value), "kind", set()),
    "enqueue notify": (lambda client, value: client.enqueue(None, Thing(), notify=value), "notify", {"True"}),
    "aenqueue tx": (async_method("aenqueue", Thing()), "tx", {"None"}),
    "aenqueue_many tx": (async_method("aenqueue_many", [Thing()]), "tx", {"None"}),
    "enqueue_many jobs": (lambda client, value: client.enqueue_many(None, value), "jobs", set()),
    "enqueue_many notify": (lambda client, value: client.enqueue_many(None, [], notify=value), "notify", {"True"}),
    "enqueue_many returning": (
        lambda client, value: client.enqueue_many(None, [], returning=value),
        "returning",
        {"True"},
    ),
    "queue": (lambda client, value: NewJob(Thing(), queue=value), "queue", {"None", "text"}),
    "priority": (lambda client, value: NewJob(Thing(), priority=value), "priority", {"None", "5", "-1"}),
    "scheduled_at": (lambda client, value: NewJob(Thing(), scheduled_at=value), "scheduled_at", {"None", "aware"}),
    "delay": (lambda client, value: NewJob(Thing(), delay=value), "delay", {"None", "duration"}),
    "max_attempts": (lambda client, value: JobOptions(max_attempts=value), "max_attempts", {"None", "5"}),
    "tags": (lambda client, value: JobOptions(tags=value), "tag", {"None", "list"}),
    "metadata": (lambda client, value: JobOptions(metadata=value), "metadata", {"None", "dict"}),
    "context": (lambda client, value: JobOptions(context=value), "context", {"None", "dict"}),
    "unique": (lambda client, value: job_options(unique=value), "unique", {"None"}),
    "replace": (lambda client, value: job_options(replace=value), "replace", {"None", "True", "list", "dict"}),
    "pending": (lambda client, value: job_options(pending=value), "pending", {"None", "True"}),
    "by_args": (lambda client, value: Unique(by_args=value), "by_args", {"True"}),
    "by_period": (lambda client, value: Unique(by_period=value), "by_period", {"None", "duration"}),
    "by_queue": (lambda client, value: Unique(by_queue=value), "by_queue", {"True"}),
    "by_state": (lambda client, value: Unique(by_state=value), "by_state", set()),
    "exclude_kind": (lambda client, value: Unique(by_queue=True, exclude_kind=value), "exclude_kind", {"True"}),
    "decode_args cls": (lambda client, value: decode_args(value, "{}"), "", set()),
    "decode_args raw": (lambda client, value: decode_args(Thing, value), "args", {"dict"}),
    # look and control
    **{
        f"{name} id": (method(name), "id", {"5", "-1", "huge"})
        for name in ("get", "cancel", "release", "retry", "delete", "update", "wait")
    },
    **{f"{name} id": (async_method(name), "id", {"5", "-1", "huge"}) for name in ("aget", "await_job")},
    "cancel reason": (lambda client, value: client.cancel(1, reason=value), "reason", TEXTS),
    "retry reset": (lambda client, value: client.retry(1, reset=value), "reset", {"True"}),
    "update priority": (lambda client, value: client.update(1, priority=value), "priority", {"None", "5", "-1"}),
    "update tags": (lambda client, value: client.update(1, tags=value), "tag", {"None", "list"}),
    "update metadata": (lambda client, value: client.update(1, metadata=value), "metadata", {"None", "dict"}),
    "get tx": (lambda client, value: client.get(1, value), "tx", {"None"}),
    "list filter": (lambda client, value: client.list_jobs(value), "filter", {"None"}),
    "list order": (lambda client, value: client.list_jobs(order=value), "order", set()),
    "list descending": (lambda client, value: client.list_jobs(descending=value), "descending", {"True"}),
    "list limit": (lambda client, value: client.list_jobs(limit=value), "limit", {"5"}),
    "list cursor": (lambda client, value: client.list_jobs(cursor=value), "cursor", {"None"}),
    "count filter": (lambda client, value: client.count(value), "filter", {"None"}),
    **{f"{name} filter": (method(name), "filter", set()) for name in ("cancel_many", "retry_many", "delete_many")},
    "update_many filter": (lambda client, value: client.update_many(value, priority=1), "filter", set()),
    "cancel_many limit": (
        lambda client, value: client.cancel_many(JobFilter.all(), limit=value),
        "limit",
        {"None", "5", "huge"},
    ),
    "cancel_many reason": (lambda client, value: client.cancel_many(JobFilter.all(), reason=value), "reason", TEXTS),
    "retry_many reset": (lambda client, value: client.retry_many(JobFilter.all(), reset=value), "reset", {"True"}),
    "wait timeout": (
        lambda client, value: client.wait(1, timeout=value),
        "timeout",
        {"None", "duration", "negative duration"},
    ),
    "lock_job queue": (lambda client, value: client.lock_job(queue=value).__enter__(), "queue", {"text"}),
    "lock_job id": (lambda client, value: client.lock_job(id=value).__enter__(), "id", {"None", "5", "-1", "huge"}),
    "subscribe kinds": (lambda client, value: client.subscribe(value), "kinds", {"list"}),
    "subscribe size": (lambda client, value: client.subscribe(size=value), "size", {"5", "huge"}),
    "Subscription.get": (lambda client, value: client.subscribe().get(value), "timeout", ANY_TIME),
    **{
        f"filter {name}": (filtered(name), name, {"None", "list"})
        for name in ("ids", "kinds", "queues", "states", "priorities", "tags_any")
    },
    "filter tags_all": (filtered("tags_all"), "tags_all", {"None"}),
    "filter metadata": (filtered("metadata"), "metadata", {"None"}),
    "filter args": (filtered("args"), "args", {"None"}),
    "filter really_all": (filtered("really_all"), "really_all", {"True"}),
    **{
        f"filter {name}_{end}": (
            filtered(f"{name}_{end}"),
            f"{name}_{end}",
            {"None", "aware"},
        )
        for name in ("created", "scheduled", "attempted", "finalized")
        for end in ("after", "before")
    },
    # queues and schedules
    "queues.figures": (lambda client, value: client.queues.stats(value), "queue", {"None", "list"}),
    "queues.pause": (lambda client, value: client.queues.pause(value), "queue", {"text"}),
    "queues.resume": (lambda client, value: client.queues.resume(value), "queue", {"text"}),
    **{
        f"schedules.{name}": (
            of_schedules(name),
            "name",
            {"text", "empty"},
        )
        for name in ("get", "pause", "resume", "run_now", "remove", "change")
    },
    "schedules.add": (lambda client, value: client.schedules.add(value), "schedule", set()),
    "schedules.change spec": (lambda client, value: client.schedules.change("x", spec=value), "spec", {"None"}),
    "schedules.change zone": (lambda client, value: client.schedules.change("x", zone=value), "zone", {"None"}),
    "schedules.change window": (
        lambda client, value: client.schedules.change("x", window=value),
        "window",
        {"None", "duration"},
    ),
    "schedules.change catch_up": (
        lambda client, value: client.schedules.change("x", catch_up=value),
        "catch_up",
        {"None"},
    ),
    "Schedule name": (lambda client, value: Schedule(value, "@daily", Thing()), "name", {"text"}),
    "Schedule spec": (lambda client, value: Schedule("x", value, Thing()), "spec", set()),
    "Schedule kind": (lambda client, value: Schedule("x", "@daily", Thing(), kind=value), "kind", {"None"}),
    "Schedule zone": (lambda client, value: Schedule("x", "@daily", Thing(), zone=value), "zone", set()),
    "Schedule catch_up": (lambda client, value: Schedule("x", "@daily", Thing(), catch_up=value), "catch_up", set()),
    "Schedule window": (
        lambda client, value: Schedule("x", "@daily", Thing(), window=value),
        "window",
        {"None", "duration"},
    ),
    "Schedule run_on_start": (
        lambda client, value: Schedule("x", "@daily", Thing(), run_on_start=value),
        "run_on_start",
        {"True"},
    ),
    "Schedule version": (lambda client, value: Schedule("x", "@daily", Thing(), version=value), "version", {"5"}),
    "Schedule.next": (lambda client, value: Schedule("x", "@daily", Thing()).next(value), "after", {"aware"}),
    "every": (lambda client, value: every(value), "interval", {"duration"}),
    # handlers and policies
    "WorkMap": (lambda client, value: WorkMap(value), "WorkMap", {"None", "dict"}),
    "WorkMap key": (lambda client, value: WorkMap({value: nothing}), "", set()),
    "Handler": (lambda client, value: Handler(value), "handler", {"class", "function"}),
    "Handler timeout": (
        lambda client, value: Handler(nothing, timeout=value),
        "timeout",
        {"None", "duration", "class", "function"},
    ),
    "Handler backoff": (
        lambda client, value: Handler(nothing, backoff=value),
        "backoff",
        {"None", "class", "function"},
    ),
    "Handler detached": (lambda client, value: Handler(nothing, detached=value), "detached", {"True"}),
    "Handler middleware": (
        lambda client, value: Handler(nothing, middleware=[value]),
        "middleware",
        {"class", "function"},
    ),
    "handles detached": (
        lambda client, value: WorkMap().handles(Thing, detached=value)(nothing),
        "detached",
        {"True"},
    ),
    "constant": (lambda client, value: constant(value), "delay", {"duration"}),
    "exponential base": (lambda client, value: exponential(value), "base", {"duration"}),
    "exponential factor": (lambda client, value: exponential(factor=value), "factor", {"5", "huge"}),
    "exponential maximum": (lambda client, value: exponential(maximum=value), "maximum", {"duration"}),
    "exponential jitter": (lambda client, value: exponential(jitter=value), "jitter", set()),
    "river": (lambda client, value: river(jitter=value), "jitter", set()),
    "only_for": (lambda client, value: only_for(value), "types", set()),
    "only_for policy": (
        lambda client, value: only_for(ValueError, policy=value),
        "policy",
        {"None", "class", "function"},
    ),
    "Snooze": (lambda client, value: Snooze(value), "delay", {"duration"}),
    "RetryAfter": (lambda client, value: RetryAfter(value), "delay", {"duration"}),
    "RetryAt": (lambda client, value: RetryAt(value), "when", {"aware"}),
    "set_metadata": (lambda client, value: running_job().set_metadata(value), "set_metadata", {"None", "dict"}),
    "set_progress": (lambda client, value: running_job().set_progress(value), "done", {"5"}),
    "set_progress total": (lambda client, value: running_job().set_progress(1, total=value), "total", {"None", "5"}),
    "set_progress note": (
        lambda client, value: running_job().set_progress(1, note=value),
        "note",
        {"None", "text", "empty"},
    ),
    # worker pools
    "WorkerPool": (lambda client, value: WorkerPool(value, {Thing: nothing}), "client", set()),
    "WorkerPool work_map": (WorkerPool, "work_map", {"dict"}),
    **{
        f"WorkerPool {name}": (
            pool_with(name),
            name,
            takes,
        )
        for name, takes in {
            "queues": {"None"},
            "cron": {"list"},
            "name": TEXTS,
            "order": set(),
            "poll_interval": {"duration"},
            "fetch_cooldown": set(),
            "backoff": FUNCTIONS,
            "timeout": {"None", "duration"},
            "lease": {"duration"},
            "unknown_kinds": {"class", "function"},
            "middleware": {"list"},
            "error_handler": {"None"},
            "keep_completed": {"None", "duration"},
            "keep_cancelled": {"None", "duration"},
            "keep_discarded": {"None", "duration"},
            "reindex_at": {"None"},
            "batch_size": {"5"},
            "batch_time": {"duration"},
            "durability": set[str](),
            "listen": {"True"},
        }.items()
    },
    "WorkerPool listen_dsn": (pool_with("listen_dsn"), "connection string", {"None", "empty"}),
    "WorkerPool threads": (lambda client, value: WorkerPool(client, {}, queues={"x": value}), "threads", {"5"}),
    "WorkerPool queue": (lambda client, value: WorkerPool(client, {}, queues={value: 1}), "queue", {"text"}),
    "QueueSettings": (lambda client, value: QueueSettings(value), "threads", {"5"}),
    "QueueSettings batch_size": (lambda client, value: QueueSettings(1, batch_size=value), "batch_size", {"None", "5"}),
    "QueueSettings batch_time": (
        lambda client, value: QueueSettings(1, batch_time=value),
        "batch_time",
        {"None", "duration"},
    ),
    "QueueSettings durability": (lambda client, value: QueueSettings(1, durability=value), "durability", {"None"}),
    "add_queue": (lambda client, value: WorkerPool(client, {}).add_queue(value, 1), "queue", {"text"}),
    "add_queue threads": (lambda client, value: WorkerPool(client, {}).add_queue("x", value), "threads", {"5"}),
    "remove_queue": (lambda client, value: WorkerPool(client, {}).remove_queue(value), "queue", {"text"}),
    "work_one": (lambda client, value: WorkerPool(client, {}).work_one(value), "queue", {"text"}),
    "stop": (
        lambda client, value: WorkerPool(client, {}).stop(value),
        "timeout",
        {"None", "duration", "negative duration"},
    ),
    # the tables as SQL
    "schema_sql": (lambda client, value: schema_sql(value), "schema", {"text"}),
    "schema_sql start": (lambda client, value: schema_sql(start=value), "start", set()),
    "schema_sql target": (lambda client, value: schema_sql(target=value), "target", {"None"}),
}
# may hold a password, or args that do not belong into a log: only the type is told
SECRET = {"Client", "WorkerPool", "WorkerPool listen_dsn", "decode_args raw"}
KEYS = {"WorkMap key", "WorkerPool queue"}
UNHASHABLE = {"list", "list of None", "dict"}  # cannot be keys


def running_job() -> Any:
    """A job in its handler, which takes any metadata and progress."""

    class Running:
        def set_metadata(self, values: object) -> None: ...
        def set_progress(self, report: object) -> None: ...

    return a_job(running=Running())


@pytest.fixture(scope="module")
def client() -> Client:
    """Whose pool is closed: to send anything would be another error."""
    client = Client("postgresql://nowhere.invalid/none")
    client.close()
    return client


def told(value: object) -> str:
    """The beginning of a value as the error shows it."""
    if isinstance(value, type):
        return value.__name__
    if value == [None]:  # the list, or what is wrong in it
        return "None"
    try:
        return "" if value in ("", [], {}) else repr(value)[:15]
    except (ValueError, RuntimeError):
        return type(value).__name__


@pytest.mark.finding("E7")
@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_value_is_refused_by_its_name_before_any_sql(client: Client, call: str) -> None:
    """Wrong values passed in silence, or failed somewhere inside with an error of Python's that named nothing."""
    act, name, accepted = CALLS[call]
    for label, value in WRONG.items():
        if label in accepted or (label in UNHASHABLE and call in KEYS):
            continue
        with pytest.raises(PgjobsError) as refused:
            act(client, value)
        assert isinstance(refused.value, ValueError | TypeError), (call, label)
        text = str(refused.value)
        assert name in text, (call, label, text)
        assert call in SECRET or told(value) in text, (call, label, text)
        assert len(text) < 1000


@pytest.mark.finding("E7")
@pytest.mark.parametrize("call", [call for call in CALLS if call != "Subscription.get"])
def test_what_is_right_is_taken(client: Client, call: str) -> None:
    """The table above says nothing wrong: what it calls right gets as far as the database, or all the way."""
    act, _, accepted = CALLS[call]
    for label in accepted:
        with suppress(
            pgjobs.NoJobs, pgjobs.PoolTooSmall, pgjobs.WorkerPoolError, pgjobs.InvalidKind, psycopg.Error, PoolClosed
        ):
            act(client, WRONG[label])
