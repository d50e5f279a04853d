"""Client: what an application does with jobs. An enqueue-only process needs nothing else."""

from __future__ import annotations

import builtins
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from secrets import token_hex
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, cast, overload

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from pgjobs import backoff as policies
from pgjobs import checks, codec
from pgjobs.backoff import Backoff
from pgjobs.clean_text import ERROR_LIMIT, clean, one_line
from pgjobs.control import jobs
from pgjobs.control.filter_queries import FilterQueries, Turn
from pgjobs.control.many import Many
from pgjobs.control.queries import ControlQueries, ControlResult
from pgjobs.control.queue_queries import QueueQueries
from pgjobs.control.queues import Queues
from pgjobs.db import migrate, migration_plan
from pgjobs.db.advice import advised
from pgjobs.db.borrow import Borrowable, borrow
from pgjobs.db.connection import allow_prepare, may_prepare
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.dsn import for_libpq
from pgjobs.db.own_pool import OwnPool, explain_lost_answer, take_live
from pgjobs.db.source import PoolSource, defaults_for, in_autocommit, live_connection
from pgjobs.db.statements import check_schema
from pgjobs.enqueuing.enqueuer import Enqueuer
from pgjobs.enqueuing.queries import EnqueueQueries, can_copy, is_plain
from pgjobs.errors import InvalidArgs, InvalidFilter, InvalidOption, InvalidSetting, JobNotFinished, JobNotFound, shown
from pgjobs.events import Event, EventKind, EventName, Events, QueueEvent, QueueEventKind, QueueEventName, Subscription
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.finisher import Finisher
from pgjobs.execution.lock_job import locked
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.figures import JobCounts, JobPage, ManyJobs, WorkerProcess
from pgjobs.forking import PerProcess, check_pool, this_process
from pgjobs.hooks import EnqueueMiddleware, HookCalls, Hooks, checked_hooks
from pgjobs.job import Job, changed
from pgjobs.job_filter import JobFilter, check_id, check_limit
from pgjobs.observe.listing import Order, listing
from pgjobs.observe.queries import ObserveQueries
from pgjobs.options import NO_OPTIONS, EncodedJob, JobOptions, NewJob, Options, check_queue, options_given
from pgjobs.schedules.queries import ScheduleQueries
from pgjobs.schedules.stored import Schedules
from pgjobs.work_map import Handler, HandlerFunction, WorkMap, decoding, given_work_map
from pgjobs.workers.queries import WorkerQueries
from pgjobs.workers.registration import Registration

Args = TypeVar("Args")

_FIRST_PAUSE = 0.05  # seconds between two looks at a job that is waited for; grows
_LONGEST_PAUSE = 1.0


class Client:
    """Enqueues jobs, looks at them and changes them by hand, on the tables of one schema.

        client = Client("postgresql://localhost/app")     # a pool of its own, made and connected when needed
        client = Client(pool)                             # the application's psycopg_pool.ConnectionPool
        client = Client(SQLAlchemySource(engine))         # pgjobs.contrib.sqlalchemy: handlers are given a Session
        client = Client(DjangoSource("default"))          # pgjobs.contrib.django: handlers run inside atomic()

    `schema` holds the tables. `id` names this process in a job's `attempted_by`. With `work_map` only kinds that it
    handles can be enqueued; without it, any. `queue`, `priority` and `max_attempts` are the defaults of jobs that say
    nothing themselves; `max_args_bytes` is the largest JSON text that args may have. `client.schedules` are the
    schedules of the table, to be added, changed, paused, run and removed while everything runs.

    `backoff` decides when a failed job runs again, where its handler and the worker pool have none of their own.
    `context` is called at each enqueue that brings no context of its own, and what it gives (the id of the user, say)
    reaches the handler as `job.context`. `code_version`, a tag or a commit, is noted in a job's metadata where it is
    enqueued and where it is processed. When a statement of a handler fails, Postgres gives details beside its message:
    a key, a whole row, the text of the statement. `error_details=False` keeps these details out of the job's `errors`
    and of the log; the message itself may still quote a value. `hooks` are told what happens to the jobs of this client
    and of its worker pools; `middleware` stands around each insert.
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
        middleware: Sequence[EnqueueMiddleware] = (),
    ) -> None:
        self.schema = check_schema(schema)
        checks.check_text("id", id, or_none=True, is_cleaned=True)
        checks.check_number("max_args_bytes", max_args_bytes, 1)
        _check_defaults(queue=queue, priority=priority, max_attempts=max_attempts)
        self._given_id = None if id is None else one_line(id, 255)
        self._made_in = this_process()
        self._processes = PerProcess(self._begin_process)
        self.queries = ExecutionQueries(self.schema)
        self._control = ControlQueries(self.schema)
        self.source = _source(pool)
        self.queues = Queues(self.schema, self._transaction)
        self._filters = FilterQueries(self.schema)
        self._observe = ObserveQueries(self.schema)
        self._work_map = None if work_map is None else given_work_map(work_map)
        checks.check_function("backoff", backoff, checks.A_BACKOFF)
        self.backoff = backoff or policies.river()
        checks.check_function("context", context, "a function that gives a mapping or None")
        checks.check_text("code_version", code_version, or_none=True)
        self.code_version = None if code_version is None else clean(code_version, 255)
        if not isinstance(error_details, bool):
            raise InvalidSetting(f"error_details is True or False, not {error_details!r:.80}")
        self.error_details = error_details
        self.hooks = HookCalls(checked_hooks(hooks), error_details=error_details)
        self._events = Events()
        self._enqueuer = Enqueuer(
            queries=EnqueueQueries(self.schema),
            defaults=JobOptions(queue=queue, priority=priority, max_attempts=max_attempts),
            max_args_bytes=max_args_bytes,
            work_map=self._work_map,
            context=context,
            code_version=self.code_version,
            hooks=self.hooks,
            middleware=checks.functions("middleware", middleware, "functions of (tx, jobs, insert)"),
        )
        self._registration = Registration(self.schema, "", self.code_version)
        self.schedules = Schedules(ScheduleQueries(self.schema), self._transaction, self._enqueuer.encoded)

    def __repr__(self) -> str:
        return f"Client(schema={self.schema!r}, id={self.id!r})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Client cannot be pickled, since its connections belong to this process: give the other process the "
            "connection string, or a module that makes a Client when it is imported (a forked process may use this one)"
        )

    # --- this process

    def _begin_process(self) -> _Process:
        """What a client is in one process. A child that was forked is another: it begins anew."""
        id = self._given_id or f"{socket.gethostname()}-{os.getpid()}-{token_hex(4)}"
        if self._given_id and self._made_in != this_process():
            id = f"{self._given_id[:240]}-{os.getpid()}"  # two processes of one name would share a row of workers
        id = one_line(id, 255)
        self._events.begin_anew()
        self._registration.begin_anew(id)
        return _Process(id)

    @property
    def id(self) -> str:
        """The name of this process in `attempted_by` and in the list of workers. In a forked child it is another."""
        return self._processes.get().id

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
        """The connection pool; `with client.pool.connection() as tx` is a transaction. With SQLAlchemy or Django it
        is a small one beside theirs."""
        return self.source.pool

    def close(self) -> None:
        """Close the pool that the client made. One that was given to it stays open."""
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
        """Make or change the tables; what was done, or with `dry_run` what would be.

        "up" goes to the newest version, "down" takes one step; `target` and `max_steps` say otherwise. Down to target 0
        everything goes, the jobs with it. Each step commits by itself, and many processes may do this at once; with a
        `tx` the steps belong to that transaction.
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
        """The versions that this code has and the tables have not; [] when all is well. SchemaDamaged when there are
        tables, and no record of what they have."""
        with advised(self.schema), self.source.first_connection() as conn:
            return migrate.missing(conn, self.schema)

    def check_schema(self) -> None:
        """Raise SchemaMissing, SchemaOutdated or SchemaTooNew unless the tables fit this code, and SchemaDamaged when
        something is missing in them. A worker pool that starts, and `migrate`, put back what they can."""
        with advised(self.schema), self.source.first_connection() as conn:
            migrate.check(conn, self.schema)

    # --- enqueue

    @overload
    def enqueue(
        self, tx: Borrowable | ConnectionPool[Any] | None, args: NewJob[Args], *, notify: bool = True
    ) -> Job[Args]: ...

    @overload
    def enqueue(
        self,
        tx: Borrowable | ConnectionPool[Any] | None,
        args: Args,
        *,
        kind: str | None = None,
        notify: bool = True,
        **options: Unpack[Options],
    ) -> Job[Args]: ...

    def enqueue(
        self,
        tx: Borrowable | ConnectionPool[Any] | None,
        args: Args | NewJob[Args],
        *,
        kind: str | None = None,
        notify: bool = True,
        **options: Unpack[Options],
    ) -> Job[Args]:
        """Insert one job in the transaction `tx`; it exists when, and only when, that transaction commits.

        `tx` is a psycopg connection, cursor or transaction; a SQLAlchemy Session, scoped_session or Connection; a
        Django connection or alias, which outside `atomic()` commits at once, as all of Django does; None (or a pool)
        is a transaction of its own. A Session is not flushed: the job is inserted before what is pending in it.
        `args` is a dataclass instance, or a dict together with `kind`. Options that are left out come from the args
        class (`@job_options`), then from the client:

        - `queue`; `priority`: any smallint, lower runs first; `max_attempts`: 1 to 32767
        - `scheduled_at` (aware) or `delay` (from now, by the database's clock; very long ones are cut to about 7900
          years): not before
        - `tags`: 3 to 255 letters, digits, - and _ each; `metadata`: a JSON object of at most 64 KiB beside the args
        - `context`: a small mapping that reaches the handler as `job.context`
        - `unique=Unique(...)`: what may be there only once. If it is there already, that job is the answer, with
          `duplicate` set, and the transaction goes on. While another transaction is inserting the same, this waits for
          its end; who cannot wait sets `lock_timeout` in the transaction, and is raised `LockNotAvailable`
        - `replace`: True, or what of a duplicate that still waits is replaced by what this call says: `args`,
          `scheduled_at` (or the delay), `priority`, `max_attempts`, `tags`, `metadata`
        - `pending=True`: does not run before `release`

        `notify=False` wakes no worker, which then finds the job by polling: for PREPARE TRANSACTION, which Postgres
        refuses after a notification. Raises InvalidJob (a ValueError) before anything is sent; errors of the database
        pass through. Nothing is committed on a `tx` that was given.
        """
        checks.check_bool("notify", notify, error=InvalidOption)
        said = kind is not None or bool(options)
        if said and isinstance(args, NewJob):
            raise InvalidOption("a NewJob brings its own kind and options: give them there")
        job = self._enqueuer.encoded(NewJob(args, kind=kind, **options) if said else args)
        if (tx is None or isinstance(tx, ConnectionPool)) and self._enqueuer.needs_one_statement(job):
            with advised(self.schema):
                inserted = self._insert_alone(self.source.pool if tx is None else tx, job, notify)
            if inserted is not None:
                return inserted
        with self._enqueuing(tx) as conn:
            self._let_prepare(conn)
            return self._enqueuer.insert(conn, tx, [job], notify=notify)[0]

    def _insert_alone(self, pool: ConnectionPool[Any], job: EncodedJob, notify: bool) -> Job[Any] | None:
        """Insert it in a transaction of its own, which is one statement; None where that cannot be."""
        if type(pool).connection is not ConnectionPool.connection:  # who has his own wants it to be called
            return None
        conn = take_live(pool)  # and no more: what `connection()` does costs as much again
        try:
            if conn.pgconn.transaction_status != TransactionStatus.IDLE:  # the pool's check has begun one
                return None
            if notify and is_plain(job):
                may_prepare = isinstance(pool, OwnPool) or conn.prepare_threshold is not None
                return self._enqueuer.insert_hot(conn, job, may_prepare=may_prepare)
            with in_autocommit(conn):
                self._let_prepare(conn)
                return self._enqueuer.insert(conn, None, [job], notify=notify)[0]
        except psycopg.OperationalError as error:
            if conn.closed:
                explain_lost_answer(error)
            raise
        finally:
            pool.putconn(conn)

    @overload
    def enqueue_many(
        self,
        tx: Borrowable | ConnectionPool[Any] | None,
        jobs: Iterable[object],
        *,
        notify: bool = True,
        returning: Literal[True] = True,
        **options: Unpack[Options],
    ) -> builtins.list[Job[Any]]: ...

    @overload
    def enqueue_many(
        self,
        tx: Borrowable | ConnectionPool[Any] | None,
        jobs: Iterable[object],
        *,
        notify: bool = True,
        returning: Literal[False],
        **options: Unpack[Options],
    ) -> int: ...

    def enqueue_many(
        self,
        tx: Borrowable | ConnectionPool[Any] | None,
        jobs: Iterable[object],
        *,
        notify: bool = True,
        returning: bool = True,
        **options: Unpack[Options],
    ) -> builtins.list[Job[Any]] | int:
        """Insert many jobs in the transaction `tx`; they come back in their order, duplicates among them.

        Each is an args instance, or `NewJob(args, **options)`. The call takes the options of `enqueue`, which hold for
        all of its jobs; the options of a NewJob come before them, those of the args class and of the client after
        them. If one job is invalid, the error names its position, and nothing is sent. An empty list is refused. Large
        batches go by COPY; unique jobs in the order of their keys, so that two such batches never wait for each other.
        On a connection in autocommit mode with no transaction open, a batch may be more than one commit.

        `returning=False` gives back how many were inserted, and is for batches of any size: `jobs` may be an iterator,
        and the memory is bounded, but for unique jobs, hooks and middleware, which need them all. Row security forbids
        the COPY that it uses.
        """
        checks.check_bool("notify", notify, error=InvalidOption)
        checks.check_bool("returning", returning, error=InvalidOption)
        call = options_given(options) if options else NO_OPTIONS
        if returning:
            encoded = list(self._enqueuer.all_encoded(jobs, call))
            with self._enqueuing(tx) as conn:
                return self._enqueuer.insert(conn, tx, encoded, notify=notify)
        own = tx is None or isinstance(tx, ConnectionPool)
        return self._enqueuer.insert_counted(
            self._enqueuing(tx), tx, jobs, call, notify=notify, copy=own or can_copy(borrow(tx))
        )

    def _let_prepare(self, conn: AnyConnection) -> None:
        """Let psycopg prepare what is sent often, if the connection is of our own pool and leads to the server itself;
        for as long as it lives, unless somebody wants it otherwise later."""
        wanted = self._is_ours(conn) and conn.prepare_threshold is None and not may_prepare(conn)
        if wanted and can_copy(conn) and self._is_direct(conn):
            allow_prepare(conn)

    def _is_ours(self, conn: AnyConnection) -> bool:
        """Whether it belongs to the pool that the client made."""
        return self.source.owned and getattr(conn, "_pool", None) is self.source.pool

    def _is_direct(self, conn: AnyConnection) -> bool:
        """Whether no pooler stands between this process and the server. Asked once."""
        process = self._processes.get()
        if process.direct is None:
            process.direct = not self.queries.server_facts(conn).pooled
        return process.direct

    @contextmanager
    def _transaction(self, tx: Borrowable | ConnectionPool[Any] | None) -> Iterator[AnyConnection]:
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

    @contextmanager
    def _enqueuing(self, tx: Borrowable | ConnectionPool[Any] | None) -> Iterator[AnyConnection]:
        """The transaction of an enqueue. When the answer to its COMMIT is lost, the error says what is not known."""
        all_sent = False
        try:
            with self._transaction(tx) as conn:
                yield conn
                all_sent = True
        except psycopg.OperationalError as error:
            if all_sent:
                explain_lost_answer(error)
            raise

    # --- control

    def cancel(self, id: int, tx: Borrowable | ConnectionPool[Any] | None = None, reason: str = "") -> Job[Any]:
        """See to it that the job does not run, or does not run again.

        A job that waits is cancelled at once. For one that runs its worker is told: it comes back as running, with
        `cancel_attempted_at` in its metadata, and ends cancelled unless it completes. One that is over stays as it is.
        """
        why = _reason(reason)
        return self._carry_out(tx, id, lambda conn: self._control.cancel(conn, id, reason=why), running=True)

    def release(self, id: int, tx: Borrowable | ConnectionPool[Any] | None = None) -> Job[Any]:
        """Let a job that was enqueued with `pending=True` run, at its time if it has one. Any other stays as it is."""
        return self._carry_out(tx, id, lambda conn: self._control.release(conn, id), running=True)

    def retry(self, id: int, tx: Borrowable | ConnectionPool[Any] | None = None, *, reset: bool = False) -> Job[Any]:
        """Let the job run now, whatever its state, with one attempt more if it has used them all. A running one is
        left alone.

        `reset` gives a discarded job all its attempts again, and any other is NotDiscarded; its errors stay. Raises
        UniqueConflict when another job has its unique key. On a `tx`, one that is being inserted in the same moment is
        waited for, and if it is committed then aborts the transaction.
        """
        checks.check_bool("reset", reset, error=InvalidOption)
        return self._carry_out(tx, id, lambda conn: self._control.retry(conn, id, reset=reset), running=True)

    def delete(self, id: int, tx: Borrowable | ConnectionPool[Any] | None = None) -> Job[Any]:
        """Delete the job, and return it as it was; JobRunning if it runs."""
        return self._carry_out(tx, id, lambda conn: self._control.delete(conn, id), running=False)

    def update(
        self,
        id: int,
        tx: Borrowable | ConnectionPool[Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        output: object = ...,
        priority: int | None = None,
        scheduled_at: datetime | None = None,
        max_attempts: int | None = None,
        tags: Sequence[str] | None = None,
    ) -> Job[Any]:
        """Change a job that does not run; JobRunning if it does. What is not given stays as it is.

        `metadata` is merged key by key into what is there. `output` is any JSON value of at most 32 MiB, and replaces
        the one before. A waiting job whose `scheduled_at` changes waits for the new time.
        """
        changes = jobs.changes(
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
        return self._carry_out(tx, id, lambda conn: self._control.update(conn, id, changes), running=False)

    def _carry_out(
        self, tx: Borrowable | ConnectionPool[Any] | None, id: int, act: jobs.Act, *, running: bool
    ) -> Job[Any]:
        check_id(id)
        with self._transaction(tx) as conn:
            if tx is None or isinstance(tx, ConnectionPool):
                self._control.begin_control(conn)
            return decoding(self._work_map, jobs.carry_out(self._control, conn, id, act, running=running))

    # --- control of many

    def cancel_many(
        self,
        filter: JobFilter,
        tx: Borrowable | ConnectionPool[Any] | None = None,
        *,
        reason: str = "",
        limit: int | None = None,
    ) -> ManyJobs:
        """Do to the jobs that fit, the oldest first, what `cancel` does to one. Those that are over are not touched.

        Without a `tx` it commits batch by batch. What somebody else holds is skipped after a second, of which there is
        one for the whole call; the answer says what was done, and why not to what was skipped. What is enqueued while
        it runs is not meant. The jobs are all in the answer: with very many, `limit` them and call again.
        """
        why = _reason(reason)
        return self._carry_out_many(
            tx,
            filter,
            limit,
            lambda conn, turn: self._filters.cancel_many(conn, filter, turn, reason=why),
            running=True,
        )

    def retry_many(
        self,
        filter: JobFilter,
        tx: Borrowable | ConnectionPool[Any] | None = None,
        *,
        reset: bool = False,
        limit: int | None = None,
    ) -> ManyJobs:
        """Do to the jobs that fit what `retry` does to one, also to those that are completed; see `cancel_many`."""
        checks.check_bool("reset", reset, error=InvalidOption)
        return self._carry_out_many(
            tx, filter, limit, lambda conn, turn: self._filters.retry_many(conn, filter, turn, reset=reset)
        )

    def delete_many(
        self, filter: JobFilter, tx: Borrowable | ConnectionPool[Any] | None = None, *, limit: int | None = None
    ) -> ManyJobs:
        """Delete the jobs that fit and do not run, and return them as they were; see `cancel_many`."""
        return self._carry_out_many(tx, filter, limit, lambda conn, turn: self._filters.delete_many(conn, filter, turn))

    def update_many(
        self,
        filter: JobFilter,
        tx: Borrowable | ConnectionPool[Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        output: object = ...,
        priority: int | None = None,
        scheduled_at: datetime | None = None,
        max_attempts: int | None = None,
        tags: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> ManyJobs:
        """Do to the jobs that fit what `update` does to one; see `cancel_many`. Nothing to change is refused."""
        changes = jobs.changes(
            metadata=metadata,
            output=output,
            priority=priority,
            scheduled_at=scheduled_at,
            max_attempts=max_attempts,
            tags=tags,
        )
        if changes is None:
            raise InvalidOption("an update of many jobs needs something to change")
        return self._carry_out_many(
            tx, filter, limit, lambda conn, turn: self._filters.update_many(conn, filter, turn, changes)
        )

    def _carry_out_many(
        self,
        tx: Borrowable | ConnectionPool[Any] | None,
        filter: JobFilter,
        limit: int | None,
        act: Callable[[AnyConnection, Turn], builtins.list[ControlResult]],
        *,
        running: bool = False,
    ) -> ManyJobs:
        check_filter(filter)
        filter.check_not_empty()
        check_limit(limit)
        own = tx is None or isinstance(tx, ConnectionPool)
        with self._transaction(tx) as conn:
            retry_busy = own or not self._control.snapshot_is_kept(conn)
        many = Many(
            self._filters,
            filter,
            act,
            lambda: self._transaction(tx),
            limit=limit,
            borrowed=not own,
            running=running,
            retry_busy=retry_busy,
        ).carry_out()
        for job in many.done:
            decoding(self._work_map, job)
        return many

    @contextmanager
    def lock_job(self, *, queue: str = "default", id: int | None = None) -> Iterator[tuple[Any, Job[Any] | None]]:
        """Work one job here and now, without a worker pool: `with client.lock_job(queue="mail") as (tx, job):`

        The next job of the queue, or the one with this id if it waits, is claimed and locked for as long as the block,
        which takes the place of a handler: what it writes through `tx` commits with the job's completion when the
        block is left. What it raises drops its writes and is recorded as a handler's error would be, then raised
        (`Snooze`, `Cancel` and the other signals are not); so is TransactionBroken, when its writes could not be
        committed. `tx` and `job` are None when there is none. No timeout.
        """
        check_queue(queue)
        if id is not None:
            found = self.get(id)
            if found is None:
                raise JobNotFound(id)
            queue = found.queue
        claimer = Claimer(self.queries, self._work_map or WorkMap(), worker=self.id)
        finisher = Finisher(
            queries=self.queries,
            claimer=claimer,
            backoff=self.backoff,
            hooks=self.hooks,
            events=self.events,
            error_details=self.error_details,
        )
        with (
            advised(self.schema),
            self.source.checkout() as checkout,
            locked(claimer, finisher, checkout, queue, id) as (tx, job),
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
        """Hear of every attempt that ends in a worker pool of this client: `for event in client.subscribe(...)`.

        `kinds` are members of EventKind, or all of them when it is empty; or members of QueueEventKind: then a
        QueueEvent tells that a queue was paused or resumed, by any process. A running worker pool of this client looks
        for that every second, so it misses a pause that ends sooner. A subscription never slows a worker: it keeps up
        to `size` unread events, and drops and counts those that come after. It is closed when the worker pool stops.
        """
        subscription = self.events.subscribe(kinds, size)
        if self.events.looks_at_queues and not self.events.knows_queues:  # a pool runs: changes from here on are told
            with suppress(psycopg.Error, PoolTimeout), self._transaction(None) as conn:
                self.events.note_paused(*QueueQueries(self.schema).paused(conn))
        return subscription

    # --- look

    def get(self, id: int, tx: Borrowable | ConnectionPool[Any] | None = None) -> Job[Any] | None:
        """The job with this id as it is now, or None. Raises AmbiguousJob if several queues have a job with this id, as
        may be after a restore."""
        check_id(id)
        with self._transaction(tx) as conn:
            job = self.queries.get_job(conn, id)
            return None if job is None else decoding(self._work_map, job)

    def workers(self, tx: Borrowable | ConnectionPool[Any] | None = None) -> list[WorkerProcess]:
        """The processes that work jobs, the oldest first. One that was killed stays listed for a minute or two."""
        with self._transaction(tx) as conn:
            return WorkerQueries(self.schema).workers(conn)

    def list_jobs(
        self,
        filter: JobFilter | None = None,
        tx: Borrowable | ConnectionPool[Any] | None = None,
        *,
        order: Order = "id",
        descending: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> JobPage:
        """A page of the jobs that fit, of all without a filter; its `next` is the `cursor` to the page behind it.

        By their ids, or with `order="time"` by the time of their state, which the filter must name: of what is over its
        end, of what runs its start, of what waits the time that it waits for; by their ids where that is the same.
        A job that comes or goes between two pages moves no other. `limit` is 1 to 10,000.
        """
        which = JobFilter() if filter is None else filter
        check_filter(which)
        wanted = listing(which, order, descending, limit, cursor)
        with self._transaction(tx) as conn:
            jobs = self._observe.list_jobs(conn, which, wanted)
        return wanted.page([decoding(self._work_map, job) for job in jobs])

    def count(self, filter: JobFilter | None = None, tx: Borrowable | ConnectionPool[Any] | None = None) -> JobCounts:
        """How many jobs fit, by queue and state; of all without a filter. It looks at each: see `queues.figures`."""
        which = JobFilter() if filter is None else filter
        check_filter(which)
        with self._transaction(tx) as conn:
            return JobCounts(self._observe.count_jobs(conn, which))

    @overload
    def wait(self, job: Job[Args], *, timeout: timedelta | None = None) -> Job[Args]: ...

    @overload
    def wait(self, job: int, *, timeout: timedelta | None = None) -> Job[Any]: ...

    def wait(self, job: Job[Any] | int, *, timeout: timedelta | None = None) -> Job[Any]:
        """Wait until the job is over, and return it as it is then; JobNotFinished when that takes longer than
        `timeout`.

        It looks every now and then, at most a second late, and holds no connection in between. The transaction that
        enqueued the job must be committed: else it is JobNotFound.
        """
        id, queue = (job.id, job.queue) if isinstance(job, Job) else (job, None)
        check_id(id)
        seconds = checks.patience(timeout)
        give_up = time.monotonic() + (threading.TIMEOUT_MAX if seconds is None else seconds)
        pause = _FIRST_PAUSE
        while True:
            with self._transaction(None) as conn:
                found = self.queries.get_job(conn, id, queue)
            if found is None:
                raise JobNotFound(id)
            if found.state.final:
                if isinstance(job, Job):
                    return changed(found, decode=job.decode)
                return decoding(self._work_map, found)
            left = give_up - time.monotonic()
            if timeout is not None and left <= 0:
                raise JobNotFinished(id, found.state, timeout)
            time.sleep(min(pause, left))
            pause = min(1.5 * pause, _LONGEST_PAUSE)


@dataclass(slots=True)
class _Process:
    """What is of one process alone."""

    id: str
    direct: bool | None = None  # whether its own connections lead to the server itself; not asked yet


def decode_args(cls: type[Args], raw: str | Mapping[str, Any] | Args) -> Args:
    """Make an instance of an args class from the JSON text of `job.raw_args`, or from `job.args` where that is a dict.
    An instance of the class is given back as it is. Raises UndecodableArgs."""
    if not isinstance(cls, type):
        raise InvalidArgs(f"decode_args takes an args class first, not {shown(cls)}")
    if isinstance(raw, cls):
        return raw
    if issubclass(cls, dict):
        return cast(Args, codec.decode_dict(cast(str, raw)))
    return codec.decode(cls, cast(str | Mapping[str, Any], raw))


def _check_defaults(**options: object) -> None:
    """The last defaults: nothing decides behind them."""
    for name, value in options.items():
        if value is None:
            raise InvalidOption(f"{name} of a client is the last default, and cannot be None")


def _reason(reason: object) -> str:
    if not isinstance(reason, str):
        raise InvalidOption(f"reason is text, not {shown(reason)}: give str(...) of it")
    return clean(reason, ERROR_LIMIT)


def check_filter(filter: object) -> None:
    if not isinstance(filter, JobFilter):
        raise InvalidFilter(
            f"filter is a JobFilter, as in JobFilter(queues=['mail']), not {shown(filter)}: a tx comes behind it"
        )


def _source(pool: object) -> PoolSource:
    if isinstance(pool, PoolSource):
        return pool
    if isinstance(pool, ConnectionPool):
        return PoolSource(pool)
    if isinstance(pool, str) and pool:
        return PoolSource(partial(OwnPool, for_libpq(pool), defaults_for(pool)))
    # of what type it is and no more: a URL has the password in it
    raise InvalidSetting(
        "pool is a connection string, a psycopg_pool.ConnectionPool or a source, not "
        + ("empty" if pool == "" else f"of type {type(pool).__name__}")
    )
