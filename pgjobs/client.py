"""Client: enqueues, reads and changes jobs. A process that only enqueues needs nothing else."""

from __future__ import annotations

import asyncio
import builtins
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from secrets import token_hex
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from pgjobs import backoff as policies
from pgjobs import checks
from pgjobs.backoff import Backoff
from pgjobs.clean_text import ERROR_LIMIT, clean, one_line
from pgjobs.control.jobs import JobControl, encode_changes
from pgjobs.control.queries import Action, ControlQueries
from pgjobs.control.queues import Queues
from pgjobs.db import migrate, migration_plan
from pgjobs.db.advice import advised
from pgjobs.db.borrow import AsyncBorrowable, Borrowable, Tx, borrow
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.source import PoolSource, live_connection, source_of
from pgjobs.db.statements import check_schema
from pgjobs.enqueuing.async_enqueuer import AsyncEnqueuer, AsyncTx
from pgjobs.enqueuing.builder import InsertBuilder
from pgjobs.enqueuing.encoder import Encoder
from pgjobs.enqueuing.enqueuer import Enqueuer
from pgjobs.enqueuing.queries import EnqueueQueries
from pgjobs.errors import InvalidOption, JobNotFound
from pgjobs.events import Event, EventKind, EventName, Events, QueueEvent, QueueEventKind, QueueEventName, Subscription
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.decider import Decider
from pgjobs.execution.finisher import Finisher
from pgjobs.execution.lock_job import lock_job
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.execution.report import Reporter
from pgjobs.forking import PerProcess, check_pool, this_process
from pgjobs.hooks import AsyncEnqueueMiddleware, EnqueueMiddleware, HookCalls, Hooks, checked_hooks
from pgjobs.job import Job
from pgjobs.job_filter import JobFilter
from pgjobs.observe.doctor import examine
from pgjobs.observe.doctor.finding import Finding
from pgjobs.observe.listing import Order
from pgjobs.observe.queries import ObserveQueries
from pgjobs.observe.reader import JobReader
from pgjobs.observe.stats import FigureGroup, Figures, wanted
from pgjobs.options import NO_OPTIONS, JobOptions, NewJob, Options, check_queue, options_given
from pgjobs.results import JobCounts, JobPage, ManyJobs, WorkerProcess
from pgjobs.schedules.queries import ScheduleQueries
from pgjobs.schedules.stored import Schedules
from pgjobs.work_map import Handler, HandlerFunction, WorkMap, as_work_map, decoding
from pgjobs.workers.queries import WorkerQueries
from pgjobs.workers.registration import Registration

Args = TypeVar("Args")


class Client:
    """Enqueues, reads and changes jobs in the tables of one schema. Safe to use from all threads of a process.

        client = Client("postgresql://localhost/app")     # its own connection pool, opened when first used
        client = Client(pool)                             # the application's psycopg_pool.ConnectionPool
        client = Client(SQLAlchemySource(engine))         # pgjobs.contrib.sqlalchemy: handlers get a Session
        client = Client(DjangoSource("default"))          # pgjobs.contrib.django: handlers run inside atomic()

    - `schema`: the schema of the tables.
    - `id`: the name of this process in `job.attempted_by` and `workers()`; default: host, process id, a random part.
    - `work_map`: with it, enqueuing a kind that it does not handle raises UnknownKind, and jobs that the client returns
      have args of its args classes.
    - `queue`, `priority`, `max_attempts`: defaults for jobs whose call and args class do not set them.
    - `max_args_bytes`: the largest JSON text of args, in bytes.
    - `backoff`: when a failed job runs again, if neither its handler nor the worker pool has a backoff.
    - `context`: a function that is called at each enqueue without a `context`; it returns a mapping, for example with
      the id of the user, which the handler reads as `job.context`, or None.
    - `code_version`: a tag or commit, stored in a job's metadata when it is enqueued and when it is processed.
    - `error_details=False`: keep the details of database errors (keys, rows, the text of statements) out of
      `job.errors` and the log. The primary message remains, and may quote a value.
    - `hooks`: objects that observe the jobs of this client and of its worker pools.
    - `middleware`: functions that wrap each insert; `async def` for inserts on asynchronous connections.

    Asynchronous code calls `aenqueue`, `aenqueue_many`, `aget` and `await_job`.

    `client.queues` pauses, resumes and shows queues. `client.schedules` adds, changes, pauses, runs and removes stored
    schedules. A method that takes `tx` works in the caller's transaction, and does not commit it; without `tx`, or with
    a ConnectionPool, it opens and commits its own. Raises InvalidSetting, or InvalidOption for a default of jobs.
    """

    def __init__(
        self,
        pool: str | ConnectionPool[Any] | PoolSource,
        *,
        schema: str = "pgjobs",
        id: str | None = None,
        work_map: Mapping[Any, Handler | HandlerFunction] | None = None,
        queue: str = "default",
        priority: int = 0,
        max_attempts: int = 25,
        max_args_bytes: int = 1024 * 1024,
        backoff: Backoff | None = None,
        context: Callable[[], Mapping[str, Any] | None] | None = None,
        code_version: str | None = None,
        error_details: bool = True,
        hooks: Sequence[Hooks] = (),
        middleware: Sequence[EnqueueMiddleware | AsyncEnqueueMiddleware] = (),
    ) -> None:
        checks.check_text("id", id, or_none=True, is_cleaned=True)
        checks.check_number("max_args_bytes", max_args_bytes, 1)
        checks.check_function("backoff", backoff, checks.A_BACKOFF)
        checks.check_function("context", context, "a function that returns a mapping or None")
        checks.check_text("code_version", code_version, or_none=True)
        checks.check_bool("error_details", error_details)
        _check_defaults(queue=queue, priority=priority, max_attempts=max_attempts)
        self.schema = check_schema(schema)
        self.source = source_of(pool)
        self.backoff = backoff or policies.river()
        self.code_version = None if code_version is None else clean(code_version, 255)
        self.error_details = error_details
        self.hooks = HookCalls(checked_hooks(hooks), error_details=error_details)
        self._work_map = None if work_map is None else as_work_map(work_map)
        # this process
        self._given_id = None if id is None else one_line(id, 255)
        self._made_in = this_process()
        self._processes = PerProcess(self._begin_process)
        self._events = Events()
        self._registration = Registration(self.schema, "", self.code_version)
        # what its methods call
        self.queries = ExecutionQueries(self.schema)
        self._control = ControlQueries(self.schema)
        self._observe = ObserveQueries(self.schema)
        self._encoder = Encoder(
            defaults=JobOptions(queue=queue, priority=priority, max_attempts=max_attempts),
            max_args_bytes=max_args_bytes,
            work_map=self._work_map,
            context=context,
            code_version=self.code_version,
        )
        self._enqueuer = self._build_enqueuer(middleware)
        self._async_enqueuer = AsyncEnqueuer(self._enqueuer)
        self._jobs = JobControl(self._control, self._transaction)
        self._reader = JobReader(self._observe, self.queries, self._transaction, self._work_map)
        self.queues = Queues(self.schema, self._transaction, self._control, self._observe)
        self.schedules = Schedules(ScheduleQueries(self.schema), self._transaction, self._encoder.encode)

    def _build_enqueuer(self, middleware: Sequence[EnqueueMiddleware | AsyncEnqueueMiddleware]) -> Enqueuer:
        queries = EnqueueQueries(self.schema)
        return Enqueuer(
            schema=self.schema,
            encoder=self._encoder,
            queries=queries,
            builder=InsertBuilder(queries, self._encoder),
            source=self.source,
            transaction=self._transaction,
            server=self.queries,
            hooks=self.hooks,
            middleware=checks.check_functions("middleware", middleware, "functions of (tx, jobs, insert)"),
        )

    def __repr__(self) -> str:
        return f"Client(schema={self.schema!r}, id={self.id!r})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Client cannot be pickled, since its connections belong to this process: give the other process the "
            "connection string, or let it import a module that makes a Client (a forked process may use this one)"
        )

    # --- this process

    def _begin_process(self) -> str:
        """Name this process; called again in a forked child."""
        id = self._given_id or f"{socket.gethostname()}-{os.getpid()}-{token_hex(4)}"
        if self._given_id and self._made_in != this_process():
            id = f"{self._given_id[:240]}-{os.getpid()}"  # else both would use the same row of the worker table
        id = one_line(id, 255)
        self._events.reset()
        self._registration.reset_for_process(id)
        return id

    @property
    def id(self) -> str:
        """The name of this process in `job.attempted_by` and `workers()`. A forked child gets another name."""
        return self._processes.get()

    @property
    def work_map(self) -> WorkMap | None:
        """The handlers that were given to this client, or None."""
        return self._work_map

    @property
    def events(self) -> Events:
        self._processes.get()
        return self._events

    @property
    def registration(self) -> Registration:
        self._processes.get()
        return self._registration

    # --- connections

    @property
    def pool(self) -> ConnectionPool[Any]:
        """The connection pool; `with client.pool.connection() as tx:` is a transaction. With SQLAlchemy or Django it is
        a small pool apart from theirs."""
        return self.source.pool

    def close(self) -> None:
        """Close the pool that the client made. A pool that the application passed in stays open."""
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- tables

    def migrate(
        self,
        tx: Borrowable | None = None,
        *,
        direction: migration_plan.Direction = "up",
        target: int | None = None,
        max_steps: int | None = None,
        dry_run: bool = False,
    ) -> builtins.list[migration_plan.Step]:
        """Create or change the tables. Returns the steps done, or with `dry_run` the steps that would be done.

        "up" migrates to the newest version, "down" takes one step; `target`, a version, and `max_steps` override this.
        Down to target 0 drops everything, including all jobs. Without `tx` each step commits separately, and several
        processes may migrate at the same time; with `tx` all steps belong to that transaction. Raises InvalidMigration
        for impossible arguments, and SchemaTooNew if the tables are newer than this code.
        """
        migration_plan.check_request(direction, target, max_steps, dry_run)
        with self.source.first_connection() if tx is None else nullcontext(borrow(tx)) as conn:
            return migrate.migrate(
                conn,
                self.schema,
                direction=direction,
                target=target,
                max_steps=max_steps,
                dry_run=dry_run,
                borrowed=tx is not None,
            )

    def missing_migrations(self) -> builtins.list[int]:
        """The versions that are not applied yet; [] if all are. Raises SchemaDamaged if there are tables without a
        record of their version."""
        with advised(self.schema), self.source.first_connection() as conn:
            return migrate.missing(conn, self.schema)

    def check_schema(self) -> None:
        """Raise SchemaMissing, SchemaOutdated or SchemaTooNew unless the tables have the version of this code, and
        SchemaDamaged if required rows are missing. `migrate` and the start of a worker pool repair what they can."""
        with advised(self.schema), self.source.first_connection() as conn:
            migrate.check(conn, self.schema)

    # --- enqueue

    @overload
    def enqueue(self, tx: Tx, args: NewJob[Args], *, notify: bool = True) -> Job[Args]: ...

    @overload
    def enqueue(
        self,
        tx: Tx,
        args: Args,
        *,
        kind: str | None = None,
        notify: bool = True,
        **options: Unpack[Options],
    ) -> Job[Args]: ...

    def enqueue(
        self,
        tx: Tx,
        args: Args | NewJob[Args],
        *,
        kind: str | None = None,
        notify: bool = True,
        **options: Unpack[Options],
    ) -> Job[Args]:
        """Insert one job in the transaction `tx`; it exists when, and only when, that transaction commits.

        `tx` is a psycopg connection, cursor or transaction; a SQLAlchemy Session, scoped_session or Connection; or a
        Django connection or alias, which outside `atomic()` commits at once, as always in Django. With None (or a
        pool) the job gets a transaction of its own. A Session is not flushed: the job is inserted before its pending
        objects. `args` is a dataclass instance, or a dict together with `kind`. Options that are left out come from the
        args class (`@job_options`), then from the client:

        - `queue`; `priority`: any smallint, lower runs first; `max_attempts`: 1 to 32767
        - `scheduled_at` (aware) or `delay` (from now, by the database's clock; at most about 7900 years): the earliest
          time to run
        - `tags`: 3 to 255 letters, digits, - and _ each; `metadata`: a JSON object of at most 64 KiB beside the args
        - `context`: a small mapping that reaches the handler as `job.context`
        - `unique=Unique(...)`: which jobs count as the same. If there is such a job already, it is returned, with
          `duplicate` set, and the transaction goes on. While another transaction inserts such a job, this call waits
          for its end; set `lock_timeout` in the transaction to get `LockNotAvailable` instead of a long wait
        - `replace`: True, or the parts of a duplicate that this call changes while the duplicate still waits: `args`,
          `scheduled_at` (or the delay), `priority`, `max_attempts`, `tags`, `metadata`
        - `pending=True`: the job does not run before `release`

        `notify=False` wakes no worker; workers find the job by polling. Use it for PREPARE TRANSACTION, which Postgres
        refuses after a notification. An invalid job raises InvalidJob (a ValueError) before anything is sent; errors of
        the database pass through. On a `tx` of the caller nothing is committed.
        """
        checks.check_bool("notify", notify, error=InvalidOption)
        return self._enqueuer.enqueue(tx, _new_job(args, kind, options), notify=notify)

    @overload
    def enqueue_many(
        self,
        tx: Tx,
        jobs: Iterable[object],
        *,
        notify: bool = True,
        returning: Literal[True] = True,
        **options: Unpack[Options],
    ) -> builtins.list[Job[Any]]: ...

    @overload
    def enqueue_many(
        self,
        tx: Tx,
        jobs: Iterable[object],
        *,
        notify: bool = True,
        returning: Literal[False],
        **options: Unpack[Options],
    ) -> int: ...

    def enqueue_many(
        self,
        tx: Tx,
        jobs: Iterable[object],
        *,
        notify: bool = True,
        returning: bool = True,
        **options: Unpack[Options],
    ) -> builtins.list[Job[Any]] | int:
        """Insert many jobs in the transaction `tx`; they come back in their order, duplicates among them.

        Each job is an args instance, or `NewJob(args, **options)`. The call takes the options of `enqueue` for all of
        its jobs; the options of a NewJob win over them, and they win over those of the args class and of the client.
        If one job is invalid, the error names its position, and nothing is sent. An empty list is refused. Large
        batches go by COPY; unique jobs in the order of their keys, so that two such batches never wait for each other.
        On a connection in autocommit mode with no transaction open, a batch may take more than one commit.

        `returning=False` returns the number of jobs that were inserted, and is for batches of any size: `jobs` may be
        an iterator, and memory is bounded, except with unique jobs, hooks or middleware, which need all jobs at once.
        It sends a COPY, which row security forbids.
        """
        checks.check_bool("notify", notify, error=InvalidOption)
        checks.check_bool("returning", returning, error=InvalidOption)
        call = options_given(options) if options else NO_OPTIONS
        if returning:
            return self._enqueuer.enqueue_many(tx, jobs, call, notify=notify)
        return self._enqueuer.enqueue_counted(tx, jobs, call, notify=notify)

    # --- from asynchronous code

    @overload
    async def aenqueue(self, tx: AsyncTx, args: NewJob[Args], *, notify: bool = True) -> Job[Args]: ...

    @overload
    async def aenqueue(
        self,
        tx: AsyncTx,
        args: Args,
        *,
        kind: str | None = None,
        notify: bool = True,
        **options: Unpack[Options],
    ) -> Job[Args]: ...

    async def aenqueue(
        self,
        tx: AsyncTx,
        args: Args | NewJob[Args],
        *,
        kind: str | None = None,
        notify: bool = True,
        **options: Unpack[Options],
    ) -> Job[Args]:
        """`enqueue` from asynchronous code: `await client.aenqueue(tx, args)` inserts one job in the transaction `tx`.

        `tx` is a psycopg AsyncConnection, AsyncCursor or AsyncTransaction; or an AsyncSession, async_scoped_session or
        AsyncConnection of SQLAlchemy with the driver psycopg. With None the job gets a transaction of its own, in a
        thread (`asyncio.to_thread`) and on the pool of the client; with a ConnectionPool or AsyncConnectionPool, on a
        connection of that. All else is as in `enqueue`: the options, the errors, and that nothing is committed on a
        `tx` of the caller.

        If the task is cancelled meanwhile, psycopg cancels the statement: on a `tx` of the caller the transaction must
        then be rolled back, as after an error. With None the job may have been enqueued all the same.
        """
        checks.check_bool("notify", notify, error=InvalidOption)
        return await self._async_enqueuer.enqueue(tx, _new_job(args, kind, options), notify=notify)

    @overload
    async def aenqueue_many(
        self,
        tx: AsyncTx,
        jobs: Iterable[object],
        *,
        notify: bool = True,
        returning: Literal[True] = True,
        **options: Unpack[Options],
    ) -> builtins.list[Job[Any]]: ...

    @overload
    async def aenqueue_many(
        self,
        tx: AsyncTx,
        jobs: Iterable[object],
        *,
        notify: bool = True,
        returning: Literal[False],
        **options: Unpack[Options],
    ) -> int: ...

    async def aenqueue_many(
        self,
        tx: AsyncTx,
        jobs: Iterable[object],
        *,
        notify: bool = True,
        returning: bool = True,
        **options: Unpack[Options],
    ) -> builtins.list[Job[Any]] | int:
        """`enqueue_many` from asynchronous code, with the `tx` of `aenqueue`. With None, an iterator of jobs is read in
        a thread."""
        checks.check_bool("notify", notify, error=InvalidOption)
        checks.check_bool("returning", returning, error=InvalidOption)
        call = options_given(options) if options else NO_OPTIONS
        if returning:
            return await self._async_enqueuer.enqueue_many(tx, jobs, call, notify=notify)
        return await self._async_enqueuer.enqueue_counted(tx, jobs, call, notify=notify)

    async def aget(self, id: int, tx: AsyncBorrowable | None = None) -> Job[Any] | None:
        """`get` from asynchronous code. With a `tx` as in `aenqueue` it reads in that transaction."""
        if tx is None:
            return await asyncio.to_thread(self.get, id)
        with advised(self.schema):
            return await self._reader.get_async(tx, id)

    @overload
    async def await_job(self, job: Job[Args], *, timeout: timedelta | None = None) -> Job[Args]: ...

    @overload
    async def await_job(self, job: int, *, timeout: timedelta | None = None) -> Job[Any]: ...

    async def await_job(self, job: Job[Any] | int, *, timeout: timedelta | None = None) -> Job[Any]:
        """`wait` from asynchronous code: it takes a thread for each look at the job, and none in between."""
        waiting = self._reader.waiting(job, timeout)
        while (finished := await asyncio.to_thread(waiting.look)) is None:
            await asyncio.sleep(waiting.pause)
        return finished

    # --- connections of a call

    @contextmanager
    def _transaction(self, tx: Tx) -> Iterator[AnyConnection]:
        with advised(self.schema):
            if tx is None:
                with self.source.transaction() as conn:
                    yield conn
            elif isinstance(tx, ConnectionPool):
                check_pool(tx)
                with live_connection(tx) as conn, conn.transaction():
                    yield conn
            else:
                yield borrow(tx)

    # --- control

    def cancel(self, id: int, tx: Tx = None, reason: str = "") -> Job[Any]:
        """Make sure that the job does not run, or does not run again.

        A job that waits is cancelled at once. For a running job its worker is notified: the job comes back as running,
        with `cancel_attempted_at` in its metadata, and ends cancelled unless it completes. A finished job stays as it
        is.
        """
        return self._apply(tx, id, self._control.cancel(_reason(reason)))

    def release(self, id: int, tx: Tx = None) -> Job[Any]:
        """Let a job that was enqueued with `pending=True` run, at its time if it has one. Any other stays as it is."""
        return self._apply(tx, id, self._control.release())

    def retry(self, id: int, tx: Tx = None, *, reset: bool = False) -> Job[Any]:
        """Let the job run now, whatever its state, with one attempt more if it has used them all. A running job stays
        as it is.

        `reset` gives a discarded job all its attempts again and keeps its errors; for any other job it raises
        NotDiscarded. Raises UniqueConflict when another job has its unique key. On a `tx` this waits for a duplicate
        that is being inserted in the same moment; if the duplicate is committed, the transaction is aborted.
        """
        checks.check_bool("reset", reset, error=InvalidOption)
        return self._apply(tx, id, self._control.retry(reset=reset))

    def delete(self, id: int, tx: Tx = None) -> Job[Any]:
        """Delete the job, and return it as it was; JobRunning if it runs."""
        return self._apply(tx, id, self._control.delete())

    def update(
        self,
        id: int,
        tx: Tx = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        output: object = ...,
        priority: int | None = None,
        scheduled_at: datetime | None = None,
        max_attempts: int | None = None,
        tags: Sequence[str] | None = None,
    ) -> Job[Any]:
        """Change a job that does not run; JobRunning if it does. An argument that is left out changes nothing.

        `metadata` is merged key by key into that of the job. `output` is any JSON value of at most 32 MiB, and replaces
        the one before. A waiting job whose `scheduled_at` changes waits for the new time.
        """
        changes = encode_changes(
            metadata=metadata,
            output=output,
            priority=priority,
            scheduled_at=scheduled_at,
            max_attempts=max_attempts,
            tags=tags,
        )
        if changes is None:
            job = self.get(id, tx)
            if job is None:
                raise JobNotFound(id)
            return job
        return self._apply(tx, id, self._control.update(changes))

    def _apply(self, tx: Tx, id: int, action: Action) -> Job[Any]:
        return decoding(self._work_map, self._jobs.one(tx, id, action))

    # --- control of many

    def cancel_many(
        self,
        filter: JobFilter,
        tx: Tx = None,
        *,
        reason: str = "",
        limit: int | None = None,
        dry_run: bool = False,
    ) -> ManyJobs:
        """Cancel the jobs that fit, the oldest first, as `cancel` does with one job. Finished jobs are passed over.

        Without a `tx` the call commits batch by batch. It waits a second in all for jobs that other transactions hold,
        then skips them; the result says which jobs were changed, and why each other job was skipped. Jobs that are
        enqueued while the call runs are left alone. The result holds all the jobs: with very many, set a `limit` and
        call again.

        `dry_run` changes nothing and returns what the call would return: the jobs as they would be, and the reasons to
        skip the others. It runs the same statements and rolls them back, without a notification, so it costs as much
        and holds the row locks until it ends. Without a `tx` it is one transaction; with a `tx` it is a savepoint in
        it, and an error that the real call would raise leaves the transaction usable.
        """
        return self._apply_many(tx, filter, self._control.cancel(_reason(reason)), limit, dry_run)

    def retry_many(
        self,
        filter: JobFilter,
        tx: Tx = None,
        *,
        reset: bool = False,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> ManyJobs:
        """Retry the jobs that fit, completed jobs too, as `retry` does with one; for the rest see `cancel_many`."""
        checks.check_bool("reset", reset, error=InvalidOption)
        return self._apply_many(tx, filter, self._control.retry(reset=reset), limit, dry_run)

    def delete_many(
        self,
        filter: JobFilter,
        tx: Tx = None,
        *,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> ManyJobs:
        """Delete the jobs that fit and do not run, and return them as they were; for the rest see `cancel_many`."""
        return self._apply_many(tx, filter, self._control.delete(), limit, dry_run)

    def update_many(
        self,
        filter: JobFilter,
        tx: Tx = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        output: object = ...,
        priority: int | None = None,
        scheduled_at: datetime | None = None,
        max_attempts: int | None = None,
        tags: Sequence[str] | None = None,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> ManyJobs:
        """Update the jobs that fit, as `update` does with one; for the rest see `cancel_many`. A call with nothing to
        change is refused."""
        changes = encode_changes(
            metadata=metadata,
            output=output,
            priority=priority,
            scheduled_at=scheduled_at,
            max_attempts=max_attempts,
            tags=tags,
        )
        if changes is None:
            raise InvalidOption("an update of many jobs needs something to change")
        return self._apply_many(tx, filter, self._control.update(changes), limit, dry_run)

    def _apply_many(
        self,
        tx: Tx,
        filter: JobFilter,
        action: Action,
        limit: int | None,
        dry_run: bool,
    ) -> ManyJobs:
        many = self._jobs.many(tx, filter, action, limit=limit, dry_run=dry_run)
        for job in many.done:
            decoding(self._work_map, job)
        return many

    @contextmanager
    def lock_job(self, *, queue: str = "default", id: int | None = None) -> Iterator[tuple[Any, Job[Any] | None]]:
        """Work one job here, without a worker pool: `with client.lock_job(queue="mail") as (tx, job):`

        Claims and locks the next job of the queue, or the waiting job with this id; `tx` and `job` are None if there is
        none. The block takes the place of a handler: its writes through `tx` are committed together with the job's
        completion at its end. An exception of the block rolls its writes back, is recorded like a handler's error and
        is raised again, except the signals (`Snooze`, `Cancel` and so on). TransactionBroken is recorded and raised if
        the block's writes could not be committed. There is no timeout. Raises JobNotFound if no job has the id.
        """
        check_queue(queue)
        if id is not None:
            found = self.get(id)
            if found is None:
                raise JobNotFound(id)
            queue = found.queue
        claimer = Claimer(self.queries, self._work_map or WorkMap(), worker=self.id)
        finisher = Finisher(
            claimer=claimer,
            decider=Decider(backoff=self.backoff, error_details=self.error_details),
            reporter=Reporter(hooks=self.hooks, events=self.events),
        )
        with (
            advised(self.schema),
            self.source.checkout() as checkout,
            lock_job(claimer, finisher, checkout, queue, id) as (tx, job),
        ):
            if job is not None and self.code_version is not None:
                job.set_metadata(code_version_processed=self.code_version)
            yield tx, job

    @overload
    def subscribe(  # type: ignore[overload-overlap]
        self, kinds: Iterable[EventKind | EventName] = (), *, size: int = 1000
    ) -> Subscription[Event]: ...

    @overload
    def subscribe(
        self, kinds: Iterable[QueueEventKind | QueueEventName], *, size: int = 1000
    ) -> Subscription[QueueEvent]: ...

    @overload
    def subscribe(
        self, kinds: Iterable[EventKind | EventName | QueueEventKind | QueueEventName], *, size: int = 1000
    ) -> Subscription[Event | QueueEvent]: ...

    def subscribe(self, kinds: Iterable[str] = (), *, size: int = 1000) -> Subscription[Any]:
        """Get an event for each attempt that ends in a worker pool of this client: `for event in client.subscribe():`

        `kinds` are members of EventKind (all if empty), or of QueueEventKind for a QueueEvent when any process pauses
        or resumes a queue. A running worker pool of this client checks for these every second, and misses a shorter
        pause. A subscription never slows workers down: it keeps up to `size` unread events, then drops and counts new
        ones. It is closed when the last worker pool of this client stops.
        """
        subscription = self.events.subscribe(kinds, size)
        # read the state now, so that later changes are noticed
        if self.events.wants_queue_events and not self.events.knows_paused_queues:
            with suppress(psycopg.Error, PoolTimeout), self._transaction(None) as conn:
                self.events.update_paused_queues(*WorkerQueries(self.schema).paused_queues(conn))
        return subscription

    # --- read

    def get(self, id: int, tx: Tx = None) -> Job[Any] | None:
        """The current job with this id, or None. Raises AmbiguousJob if several queues have a job with this id, which a
        restore from a dump can cause.

        A role that may not read args, errors and output (`pgjobs roles --hide-args`) gets the job without them, as from
        `list_jobs`: `job.args` raises UndecodableArgs, `errors` is empty, and `output` and the note of its progress are
        None. In a transaction of the caller's that raises psycopg's InsufficientPrivilege.
        """
        return self._reader.get(tx, id)

    def workers(self, tx: Tx = None) -> list[WorkerProcess]:
        """The processes that work jobs, the oldest first. A killed process stays listed for up to two minutes."""
        with self._transaction(tx) as conn:
            return WorkerQueries(self.schema).list_workers(conn)

    def list_jobs(
        self,
        filter: JobFilter | None = None,
        tx: Tx = None,
        *,
        order: Order = "id",
        descending: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> JobPage:
        """A page of the jobs that fit, or of all jobs without a filter; its `next` is the `cursor` to the next page.

        The jobs are in the order of their ids. With `order="time"` the filter must name one state, and the jobs are in
        the order of a time: the end of a finished job, the start of a running one, the time for which a waiting one
        waits; then of their ids. A job that comes or goes between two pages does not move the others. `limit` is 1 to
        10,000. `get` says what a role gets that may not read args.
        """
        return self._reader.list(tx, filter, order=order, descending=descending, limit=limit, cursor=cursor)

    def count(self, filter: JobFilter | None = None, tx: Tx = None) -> JobCounts:
        """The number of jobs that fit, or of all jobs without a filter, by queue and state. It reads every one of them;
        `queues.stats` does not."""
        return self._reader.count(tx, filter)

    def stats(
        self,
        *,
        queue: str | None = None,
        kind: str | None = None,
        since: timedelta | datetime = timedelta(hours=1),
        step: timedelta | None = None,
        by: Iterable[FigureGroup] = ("queue", "kind"),
        tx: Tx = None,
    ) -> builtins.list[Figures]:
        """How many attempts ended `since` a time and in which way, how long they ran, and how long their jobs had
        waited: the mean and percentiles of both.

        `since` is a duration before now, by the database's clock, or an aware datetime. With a `step` of whole minutes
        there are figures for each step of time, else one for the whole time. Steps are counted from a Monday at
        midnight UTC, so the first may begin before `since`. They are split by queue and kind; `by=["queue"]` gives one
        for all kinds, `by=[]` one for everything. Steps without attempts are left out.

        Worker pools write their figures every 10 seconds and when they stop, as those of the minute of the write. They
        are kept for 7 days: for each minute, after 6 hours for each 5 minutes, and after 2 days for each hour. `since`
        is rounded down to such a period, and a period counts as a whole in the step in which it begins: where only
        hours are kept, a `step` of 10 minutes gives one for each hour. If a process is killed, up to 10 seconds of its
        figures are lost. Raises InvalidFilter.
        """
        which = wanted(queue, kind, since, step, by)
        with self._transaction(tx) as conn:
            return self._observe.figures(conn, which)

    def doctor(self, *, threads: int | None = None, include_ok: bool = False) -> builtins.list[Finding]:
        """Look for what is wrong with the database, the tables and the work; the most urgent findings come first.

        `pgjobs guide doctor` lists the checks. It changes nothing: each check reads a bounded number of rows in a
        read-only transaction of its own, of 5 seconds at most. What a role may not see becomes a finding too. `threads`
        are the worker threads that the connection pool is to serve, by default those of the pools that run in this
        process. `include_ok` adds a finding of severity "ok" for each check that found nothing. Raises psycopg's error
        if the connection cannot be made, or is lost.
        """
        if threads is not None:
            checks.check_number("threads", threads, 0)
        checks.check_bool("include_ok", include_ok)
        return examine(self.source, self.schema, threads=threads, include_ok=include_ok)

    @overload
    def wait(self, job: Job[Args], *, timeout: timedelta | None = None) -> Job[Args]: ...

    @overload
    def wait(self, job: int, *, timeout: timedelta | None = None) -> Job[Any]: ...

    def wait(self, job: Job[Any] | int, *, timeout: timedelta | None = None) -> Job[Any]:
        """Wait until the job is completed, cancelled or discarded, and return it. `timeout=None` waits for ever.

        Polls the database, at most once a second in the long run, and holds no connection in between. Raises
        JobNotFinished after `timeout`, and JobNotFound if there is no such job: the transaction that enqueued it must
        be committed first.
        """
        waiting = self._reader.waiting(job, timeout)
        while (finished := waiting.look()) is None:
            time.sleep(waiting.pause)
        return finished


def _new_job(args: object, kind: str | None, options: Options) -> object:
    """The args, or a NewJob with the kind and options of the call, if there are any."""
    if kind is None and not options:
        return args
    if isinstance(args, NewJob):
        raise InvalidOption("a NewJob has its own kind and options: pass them to NewJob(...)")
    return NewJob(args, kind=kind, **options)


def _check_defaults(**options: object) -> None:
    for name, value in options.items():
        if value is None:
            raise InvalidOption(f"{name} of a client is the default of last resort, and cannot be None")


def _reason(reason: str) -> str:
    checks.check_text("reason", reason, is_cleaned=True, error=InvalidOption)
    return clean(reason, ERROR_LIMIT)
