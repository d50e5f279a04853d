"""Jobs: what a test with a database asks about jobs, and does with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar, Unpack, overload

from pgjobs import checks
from pgjobs.backoff import Backoff
from pgjobs.client import Client
from pgjobs.db.advice import advised
from pgjobs.db.borrow import Borrowable, borrow
from pgjobs.db.checkout import Checkout
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import InvalidSetting, JobNotFound, NotRunning
from pgjobs.hooks import ErrorHandler, Middleware
from pgjobs.job import Job, JobState
from pgjobs.job_filter import JobFilter, check_id
from pgjobs.options import NewJob, Options, check_queue
from pgjobs.testing.enqueued import Enqueued
from pgjobs.testing.nested import within
from pgjobs.testing.performed import Drained, Performed, outcome_of
from pgjobs.testing.queries import TestingQueries
from pgjobs.testing.runner import Runner, runner
from pgjobs.testing.shown import classes_in
from pgjobs.work_map import Handler, HandlerFunction, as_work_map, decoding
from pgjobs.workers.pool_settings import check_error_handler

Args = TypeVar("Args")


class Jobs(Enqueued):
    """The jobs of a test: assertions about what was enqueued, and jobs run inside the test's own transaction.

        def test_signup(conn):                           # a psycopg connection with a transaction open
            jobs = Jobs(client, conn, work_map)
            signup(conn, "ada@example.com")
            jobs.assert_enqueued(Welcome("ada@example.com"), queue="mail")
            assert jobs.drain().completed == 1           # and all is gone when the test rolls back

    `tx` is the transaction of the test, as `client.enqueue` takes it. Jobs run in it as they do in a worker: with the
    hooks of the client, the middleware, the timeout, a savepoint around the handler, and the outcome written by the
    statements of a worker. What a worker commits stays in the transaction; what it rolls back is rolled back to a
    savepoint. The transaction stays open, with the settings and the role that it had; a custom setting of a handler
    (`SET LOCAL app.tenant`) stays, since Postgres does not list these. A handler that sends COMMIT or ROLLBACK itself
    breaks the test, with TransactionBroken; `tx.commit()` of psycopg raises in the handler.

    Without `tx` everything commits, as in a worker; call `clear()` after the test.

    `work_map` has the handlers; the default is that of the client. `middleware`, `error_handler`, `backoff` and
    `timeout` are what the application gives its WorkerPool. Not for production, and for one thread at a time.
    """

    def __init__(
        self,
        client: Client,
        tx: Borrowable | None = None,
        work_map: Mapping[Any, Handler | HandlerFunction] | None = None,
        *,
        middleware: Sequence[Middleware] = (),
        error_handler: ErrorHandler | None = None,
        backoff: Backoff | None = None,
        timeout: timedelta | None = timedelta(minutes=1),
    ) -> None:
        if not isinstance(client, Client):
            raise InvalidSetting(f"client is a Client, not of type {type(client).__name__}")
        checks.check_timeout(timeout)
        checks.check_function("backoff", backoff, checks.A_BACKOFF)
        check_error_handler(error_handler)
        super().__init__(self._stored, client.work_map if work_map is None else as_work_map(work_map))
        self.client = client
        self.tx: Any = tx  # as it was given
        self._queries = TestingQueries(client.schema)
        self._settings: dict[str, Any] = {
            "middleware": checks.check_functions("middleware", middleware, "functions of (tx, job, run)"),
            "error_handler": error_handler,
            "backoff": backoff,
            "timeout": timeout,
        }

    @contextmanager
    def _connection(self) -> Iterator[AnyConnection]:
        with advised(self.client.schema):
            if self.tx is not None:
                yield borrow(self.tx)
                return
            with self.client.source.transaction() as conn:
                yield conn

    def _stored(self, *, after: int | None = None) -> list[Job[Any]]:
        """The jobs of the table, or those behind an id."""
        with self._connection() as conn:
            found = self._queries.jobs(conn, JobFilter(), after=after)
        return [decoding(self._work_map, job) for job in found]

    def _known_classes(self) -> Mapping[str, type]:
        return {**classes_in(self._work_map), **self._classes}  # without a look at the table

    # --- run jobs

    @overload
    def perform(self, args: NewJob[Args]) -> Performed[Args]: ...

    @overload
    def perform(self, args: Args, *, kind: str | None = None, **options: Unpack[Options]) -> Performed[Args]: ...

    def perform(self, args: Any, *, kind: str | None = None, **options: Unpack[Options]) -> Performed[Any]:
        """Enqueue a job with these args and options, as `client.enqueue` takes them, and run its handler at once, also
        before its time.

        An exception of the handler becomes the outcome, as in a worker; `raise_error()` of the result raises it. Raises
        UnknownKind if the kind has no handler, and NotRunning if the job cannot be run: it is `pending`, or a duplicate
        that has ended.
        """
        self._runner()
        return self.perform_stored(self.client.enqueue(self.tx, args, kind=kind, **options))

    @overload
    def perform_stored(self, job: Job[Args]) -> Performed[Args]: ...

    @overload
    def perform_stored(self, job: int) -> Performed[Any]: ...

    def perform_stored(self, job: Job[Any] | int) -> Performed[Any]:
        """Run the handler of a job that was enqueued, or that waits for its next attempt, also before its time; `job`
        is the job or its id. Otherwise as `perform`."""
        id, queue = (job.id, job.queue) if isinstance(job, Job) else (job, None)
        check_id(id)
        runner, found = self._runner(), self._get(id)
        runner.claimer.work_map.find(found.kind)
        performed = self._run(runner, id, queue or found.queue)
        if performed is None:
            why = "release it first" if found.state is JobState.PENDING else "only a job that waits can be run"
            raise NotRunning(f"job {id} cannot be run, since it is {found.state}: {why}")
        return performed

    def drain(
        self,
        queue: str | None = None,
        *,
        with_scheduled: bool = False,
        recursive: bool = False,
        safety: bool = True,
    ) -> Drained:
        """Run each job that waits once, in the order of workers, on this thread. Returns the attempts, and their
        counts.

        `queue` runs the jobs of this queue alone. Jobs whose time has not come run only `with_scheduled`; jobs that are
        enqueued by the handlers, only if `recursive`. With `safety=False` the first error of a handler is raised, after
        it is recorded. A job that fails or snoozes runs once: call again for its next attempt. Paused queues are
        drained, too. Raises errors of the database.
        """
        for name, value in (("with_scheduled", with_scheduled), ("recursive", recursive), ("safety", safety)):
            checks.check_bool(name, value)
        runner = self._runner()
        if queue is not None:
            check_queue(queue)
        performed: list[Performed[Any]] = []
        seen: set[int] = set()
        while waiting := [each for each in self._waiting(queue, with_scheduled) if each[0] not in seen]:
            for id, of_queue in waiting[: 1 if recursive else None]:
                seen.add(id)
                done = self._run(runner, id, of_queue)
                if done is None:  # a handler has cancelled or deleted it
                    continue
                performed.append(done)
                if not safety:
                    done.raise_error()
            if not recursive:
                break
        return Drained(tuple(performed))

    def travel(self, by: timedelta) -> None:
        """Let so much time pass for all jobs and schedules, by moving their instants into the past. The clock of the
        database decides what is due, so no other clock needs to be changed.

            jobs.travel(timedelta(hours=1))
            jobs.drain()                        # also what was scheduled within the hour

        The key of `Unique(by_period=...)` stays that of the enqueue. Without `tx` this commits, and holds for every job
        of the schema.
        """
        checks.check_duration("by", by)
        with self._connection() as conn:
            self._queries.travel(conn, by)

    def clear(self) -> None:
        """Delete all jobs, schedules, and rows of queues and workers, for tests that commit. It commits itself, unless
        there is a `tx`."""
        with self._connection() as conn:
            self._queries.clear(conn)

    # --- how

    def _runner(self) -> Runner:
        if self._work_map is None:
            raise InvalidSetting("Jobs has no handlers to run: give it a work_map, as in Jobs(client, tx, work_map)")
        return runner(self.client, self._work_map, **self._settings)

    def _waiting(self, queue: str | None, with_scheduled: bool) -> Sequence[tuple[int, str]]:
        with self._connection() as conn:
            return self._queries.waiting_jobs(conn, queue, with_scheduled=with_scheduled)

    def _get(self, id: int) -> Job[Any]:
        found = self.client.get(id, self.tx)
        if found is None:
            raise JobNotFound(id)
        return found

    def _checkout(self) -> AbstractContextManager[Checkout]:
        return self.client.source.checkout() if self.tx is None else within(self.client, self.tx)

    def _run(self, runner: Runner, id: int, queue: str) -> Performed[Any] | None:
        """Run one job; None if it cannot be claimed."""
        with self._connection() as conn:
            before = self._queries.last_id(conn)
        with self._checkout() as checkout:
            attempt = runner.run_job(checkout, queue, id)
        if attempt is None:
            return None
        job = decoding(self._work_map, self._get(id))
        return Performed(outcome_of(job, attempt), job, attempt.error, tuple(self._stored(after=before)))
