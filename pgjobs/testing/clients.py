"""Clients without a database, for tests of code that enqueues.

    MemoryClient    checks each job as a Client does, and keeps it
    InlineClient    also calls its handler at once
    NoopClient      checks each job, and forgets it

There is no table behind them: no uniqueness, no states that change, no transaction that could be rolled back. What
depends on these is tested with `Jobs`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import count
from typing import Any, NoReturn, TypeVar, Unpack, overload

from pgjobs import checks
from pgjobs.client import Client
from pgjobs.db.borrow import Tx
from pgjobs.db.source import PoolSource
from pgjobs.enqueuing.async_enqueuer import AsyncEnqueuer, AsyncTx
from pgjobs.enqueuing.copy_rows import initial_state
from pgjobs.enqueuing.enqueuer import Enqueuer, check_inserted
from pgjobs.errors import InvalidOption, InvalidSetting
from pgjobs.hooks import check_middleware, insert_with_middleware, is_async_function, with_middleware
from pgjobs.job import Job, changed, job_from
from pgjobs.options import EncodedJob, JobOptions, NewJob, Options
from pgjobs.testing.enqueued import Enqueued
from pgjobs.testing.made_job import MadeJob, as_running
from pgjobs.work_map import Handler, HandlerFunction, WorkMap

Args = TypeVar("Args")


class MemoryClient(Client):
    """A client that keeps its jobs in memory, to be used where the application has its Client.

        client = MemoryClient()
        signup(client, "ada@example.com")
        client.enqueued.assert_enqueued(Welcome("ada@example.com"))

    `enqueue`, `enqueue_many`, `aenqueue` and `aenqueue_many` check args and options, call the middleware and the hooks,
    and return a Job; its ids count from 1. They do nothing with `tx`, which may be anything. `enqueued` has the jobs
    and the assertions. What else a Client does raises InvalidSetting. The settings are those of Client.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(_NoDatabase(), **settings)
        self._kept: list[Job[Any]] = []
        self.enqueued = Enqueued(lambda: self._kept, self.work_map)
        real = {f.name: getattr(self._enqueuer, f.name) for f in fields(Enqueuer) if f.name[0] != "_"}
        self._enqueuer = keeping = _Keeping(**real, keep=self._keep, ids=count(1))
        self._async_enqueuer = _KeepingAsync(keeping)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._kept)} jobs)"

    def _keep(self, tx: object, jobs: Sequence[Job[Any]]) -> None:
        self._kept += jobs


class InlineClient(MemoryClient):
    """A MemoryClient that calls the handler of each job at once, when it is enqueued.

        client = InlineClient(work_map={Welcome: welcome})

    The handler gets the `tx` that `enqueue` was given, and a job in its first attempt, whose args have been through
    JSON; a detached handler gets None as `tx`. The time of the job does not matter. There is no savepoint, no retry and
    no timeout: an exception of the handler, or a signal such as Snooze, is raised by `enqueue`.
    """

    def __init__(self, *, work_map: Mapping[Any, Handler | HandlerFunction], **settings: Any) -> None:
        super().__init__(work_map=work_map, **settings)

    def _keep(self, tx: object, jobs: Sequence[Job[Any]]) -> None:
        self._kept += jobs
        for job in jobs:
            handler = (self.work_map or WorkMap()).find(job.kind)
            made = as_running(changed(job, decode=handler.decode))
            made.decode_args()  # before the handler, which may rely on them
            given = None if handler.detached else tx
            with_middleware(handler.middleware, given, made, handler.function)()


class NoopClient(MemoryClient):
    """A MemoryClient that forgets each job at once: for code that enqueues, where no test asks what."""

    def _keep(self, tx: object, jobs: Sequence[Job[Any]]) -> None:
        pass


class _NoDatabase(PoolSource):
    def __init__(self) -> None:
        super().__init__(_refuse)

    def close(self) -> None:
        pass


def _refuse() -> NoReturn:
    raise InvalidSetting(
        "this client keeps its jobs in memory and has no database: it can enqueue, and nothing else; use a Client and "
        "pgjobs.testing.Jobs"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Keeping(Enqueuer):
    """Gives the jobs, which are checked as ever, to `keep` instead of a table."""

    keep: Callable[[object, Sequence[Job[Any]]], None]
    ids: count[int]

    def enqueue(self, tx: Tx, new: object, *, notify: bool) -> Job[Any]:
        return self._keep_all(tx, [self.encoder.encode(new)], one=True)[0]

    def enqueue_many(self, tx: Tx, new: Iterable[object], call: JobOptions, *, notify: bool) -> list[Job[Any]]:
        return self._keep_all(tx, self.encoded(new, call))

    def enqueue_counted(self, tx: Tx, new: Iterable[object], call: JobOptions, *, notify: bool) -> int:
        return len(self.enqueue_many(tx, new, call, notify=notify))

    def encoded(self, new: Iterable[object], call: JobOptions) -> list[EncodedJob]:
        return [template.with_args(text, args) for template, text, args in self.encoder.encode_all(new, call)]

    def _keep_all(self, tx: Tx, jobs: Sequence[EncodedJob], *, one: bool = False) -> list[Job[Any]]:
        check_middleware(self.middleware, is_async=False)
        return self.kept(tx, insert_with_middleware(self.middleware, tx, self.make)(jobs), one=one)

    def kept(self, tx: object, inserted: list[Job[Any]], *, one: bool) -> list[Job[Any]]:
        check_inserted(inserted, one=one)
        self.call_hooks(inserted)
        self.keep(tx, inserted)
        return inserted

    def make(self, jobs: Sequence[EncodedJob]) -> list[Job[Any]]:
        return [self.encoder.with_args(job, _made_of(job, next(self.ids))) for job in jobs]


@dataclass(frozen=True, slots=True)
class _KeepingAsync(AsyncEnqueuer):
    """The same for `aenqueue`. Middleware may be synchronous or not, since there is no connection that decides it."""

    sync: _Keeping

    async def enqueue(self, tx: AsyncTx, new: object, *, notify: bool) -> Job[Any]:
        return (await self._keep_all(tx, [self.sync.encoder.encode(new)], one=True))[0]

    async def enqueue_many(
        self, tx: AsyncTx, new: Iterable[object], call: JobOptions, *, notify: bool
    ) -> list[Job[Any]]:
        return await self._keep_all(tx, self.sync.encoded(new, call))

    async def enqueue_counted(self, tx: AsyncTx, new: Iterable[object], call: JobOptions, *, notify: bool) -> int:
        return len(await self._keep_all(tx, self.sync.encoded(new, call)))

    async def _keep_all(self, tx: AsyncTx, jobs: Sequence[EncodedJob], *, one: bool = False) -> list[Job[Any]]:
        async def make(jobs: Sequence[EncodedJob]) -> list[Job[Any]]:
            return self.sync.make(jobs)

        middleware = self.sync.middleware
        if any(map(is_async_function, middleware)):
            check_middleware(middleware, is_async=True)
            return self.sync.kept(tx, await insert_with_middleware(middleware, tx, make)(jobs), one=one)
        return self.sync.kept(tx, insert_with_middleware(middleware, tx, self.sync.make)(jobs), one=one)


def _made_of(job: EncodedJob, id: int) -> Job[Any]:
    """The job that an insert of this one would return now."""
    now = datetime.now(UTC)
    due = now + job.delay if job.scheduled_at is None else job.scheduled_at.astimezone(UTC)
    return job_from(
        {
            "id": id,
            "state": initial_state(due, now, pending=job.pending),
            "queue": job.queue,
            "kind": job.kind,
            "priority": job.priority,
            "attempt": 0,
            "max_attempts": job.max_attempts,
            "raw_args": json.dumps(json.loads(job.args)),
            "raw_metadata": job.metadata,
            "tags": tuple(job.tags),
            "scheduled_at": due,
            "created_at": now,
        }
    )


@overload
def make_job(
    args: NewJob[Args], *, attempt: int = 1, cancelled: bool = False, deadline: datetime | None = None, id: int = 1
) -> MadeJob[Args]: ...


@overload
def make_job(
    args: Args,
    *,
    kind: str | None = None,
    attempt: int = 1,
    cancelled: bool = False,
    deadline: datetime | None = None,
    id: int = 1,
    **options: Unpack[Options],
) -> MadeJob[Args]: ...


def make_job(
    args: Any,
    *,
    kind: str | None = None,
    attempt: int = 1,
    cancelled: bool = False,
    deadline: datetime | None = None,
    id: int = 1,
    **options: Unpack[Options],
) -> MadeJob[Any]:
    """A running job, to call a handler by hand: `welcome(tx, make_job(Welcome("ada@example.com"), attempt=2))`.

    Its args have been through JSON. `job.cancelled` and `job.deadline` are what is given here. `job.set_metadata`,
    `record_output`, `set_progress` and `complete` work, and are read back as `job.recorded`. The other arguments are
    the options of `enqueue`. Nothing is stored, so `perform` of `Jobs` shows more of what a worker does.
    """
    job = MemoryClient().enqueue(None, args, kind=kind, **options)
    checks.check_number("attempt", attempt, 1, job.max_attempts, error=InvalidOption)
    checks.check_bool("cancelled", cancelled, error=InvalidOption)
    made: MadeJob[Any] = as_running(changed(job, id=id), attempt=attempt, cancelled=cancelled, deadline=deadline)
    return made
