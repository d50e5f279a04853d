"""WorkerPool: builds and connects the parts that work the queues, and starts and stops their threads."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import time as TimeOfDay
from datetime import timedelta
from queue import Empty, SimpleQueue
from types import EllipsisType, TracebackType
from typing import Any, Literal, Self

from pgjobs import checks
from pgjobs.backoff import Backoff
from pgjobs.clean_text import one_line
from pgjobs.client import Client
from pgjobs.db import migrate
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import InvalidHandler, InvalidSetting, JobStopped, UsedAfterFork, WorkerPoolError
from pgjobs.execution.attempt import AT_STOP, Attempt
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.decider import Decider
from pgjobs.execution.executor import Executor
from pgjobs.execution.finisher import Finisher
from pgjobs.execution.job_log import JobLog
from pgjobs.execution.report import Reporter
from pgjobs.execution.watchdog import Watchdog
from pgjobs.forking import this_process
from pgjobs.hooks import ErrorHandler, Middleware
from pgjobs.loggers import get_logger, job_fields
from pgjobs.maintenance.background import BackgroundThreads
from pgjobs.maintenance.reindexer import MIDNIGHT, check_time
from pgjobs.observe.figures import AttemptFigures
from pgjobs.options import check_queue
from pgjobs.queue_settings import (
    Durability,
    QueueSettings,
    check_queues,
    check_run_settings,
    check_thread_counts,
    thread_count,
)
from pgjobs.schedule import Schedule
from pgjobs.schedules.queries import ScheduleQueries
from pgjobs.schedules.registered import CodeSchedules
from pgjobs.wakeup.idle_threads import IdleThreads
from pgjobs.work_map import Handler, HandlerFunction, as_work_map, check_unknown_kinds
from pgjobs.workers.context import PoolContext, QueueWorkers
from pgjobs.workers.heartbeat import Heartbeat
from pgjobs.workers.pool_log import PoolLog, check_level
from pgjobs.workers.pool_settings import check_error_handler, check_keep, check_listen_dsn, check_order
from pgjobs.workers.queries import WorkerQueries
from pgjobs.workers.signals import LOOK_UP, next_signal, signals
from pgjobs.workers.worker_threads import WorkerThreads

log = get_logger("pgjobs.worker")

_REPORTS_WITHIN = 0.3  # seconds after a thread counts as stuck, in which the outcome of its job is written
_PART_WITHIN = 0.4  # seconds in which another thread of the pool should end
_LAST_WRITES = 5.0  # the same for the maintenance thread, which writes the last figures, if the stop may last as long

_end_calls: set[Callable[[], None]] = set()  # one for each pool that runs


def _at_exit() -> None:
    for end in list(_end_calls):
        end()


# Registered on import, before any pool exists: atexit calls in reverse order, so a pool.stop() that the program
# registers is called first.
atexit.register(_at_exit)


class WorkerPool:
    """OS threads that each claim, lock, run and finish one job per transaction.

        with WorkerPool(client, WorkMap({Welcome: welcome}), queues={"default": 10}):
            ...                                        # works until the block ends
        WorkerPool(client, work_map).run()             # works until SIGTERM or SIGINT

    `queues` gives the number of threads for each queue. Each running job holds one connection, so the client's pool
    must allow for that many and two more (a pool that the client made grows by itself). `backoff` decides when a failed
    job runs again; the default is the client's. `timeout` limits an attempt; None is no limit. `lease` is how long the
    job of a vanished worker waits if its handler is detached. `stop_timeout` is how long a stop waits for the jobs that
    run, be it by the first signal of `run()`, the end of the `with` block, `stop()` or the exit of the process; None is
    for ever. After it the handlers are cut off within two seconds and their attempts refunded, so a SIGTERM and a
    SIGKILL half a minute later cost no attempt. `keep_*` is how long jobs stay in the table after they ended; None is
    for ever. `reindex_at` is the time of day at which the indexes of the job table are rebuilt, midnight
    UTC by default; None is never. `order="scheduled_at"` runs the oldest job first, whatever its priority.

    `unknown_kinds` decides about a job whose kind is not in the WorkMap: "error" fails it, with backoff; "leave" leaves
    it to other workers; a handler runs it. `middleware` wraps every handler; `error_handler` decides about the
    exceptions that handlers raise.

    With a `batch_size` above 1 a thread runs up to that many jobs in one transaction, which is faster. It claims first
    attempts together, runs them one after the other, each behind a savepoint, and commits them together; after
    `batch_time` it starts no further job of the batch. A failed attempt is repeated alone. With `durability="relaxed"`
    a finish does not wait for the disk: a crash of the *server* (not of a worker) may undo the finishes of the last
    fraction of a second, each with its handler's writes. Those jobs then run again, and what their handlers did outside
    the database happens twice. A queue may have its own settings of these three:
    `queues={"logs": QueueSettings(threads=4, batch_size=50, durability="relaxed")}`.

    `cron` are the schedules of this code; `pool.schedules` adds and removes schedules while the pool runs.

    With `listen=False` the pool uses no LISTEN and finds jobs by polling, every `poll_interval`. `listen_dsn` is a
    direct connection to LISTEN on, for a client that connects through a pooler.

    `job_log_level` is the level of the log lines of jobs that do well: started, completed, snoozed. Failures are logged
    as warnings, discarded jobs as errors, by the logger `pgjobs.job`.
    """

    _started = False
    _starts = 0
    _reserved = 0  # connections that the source keeps for the worker threads
    _signals: SimpleQueue[int | None] | None = None  # while run() waits for a signal, or for a closed client
    _stopper: threading.Thread | None = None  # the thread that is stopping the pool

    def __init__(
        self,
        client: Client,
        work_map: Mapping[Any, Handler | HandlerFunction],
        *,
        queues: Mapping[str, int | QueueSettings] | None = None,
        cron: Iterable[Schedule] = (),
        name: str = "pgjobs",
        order: Literal["priority", "scheduled_at"] = "priority",
        poll_interval: timedelta = timedelta(seconds=1),
        fetch_cooldown: timedelta = timedelta(0),
        backoff: Backoff | None = None,
        timeout: timedelta | None = timedelta(minutes=1),
        lease: timedelta = timedelta(minutes=1),
        stop_timeout: timedelta | None = timedelta(seconds=25),
        unknown_kinds: Literal["error", "leave"] | Handler | HandlerFunction = "error",
        middleware: Sequence[Middleware] = (),
        error_handler: ErrorHandler | None = None,
        keep_completed: timedelta | None = timedelta(hours=24),
        keep_cancelled: timedelta | None = timedelta(hours=24),
        keep_discarded: timedelta | None = timedelta(days=7),
        reindex_at: TimeOfDay | None = MIDNIGHT,
        batch_size: int = 1,
        batch_time: timedelta = timedelta(seconds=1),
        durability: Durability = "full",
        listen: bool = True,
        listen_dsn: str | None = None,
        job_log_level: int | str = logging.DEBUG,
    ) -> None:
        _check_client(client)
        checks.check_text("name", name, is_cleaned=True)
        checks.check_bool("listen", listen)
        checks.check_intervals(poll_interval, fetch_cooldown)
        checks.check_timeout(timeout)
        checks.check_lease(lease)
        checks.check_stop_timeout(stop_timeout)
        checks.check_function("backoff", backoff, checks.A_BACKOFF)
        check_listen_dsn(listen_dsn)
        check_error_handler(error_handler)
        self.name = one_line(name)
        self.work_map = as_work_map(work_map)
        self._client = client
        self._note_classes()
        self._stop_timeout = stop_timeout
        self._log = PoolLog(self.name)
        self._worker_queries = WorkerQueries(client.schema)
        self._figures = AttemptFigures(self.work_map)
        self._context = context = PoolContext(
            self.name, client.schema, client.source, client_closed=self._client_closed
        )
        claimer = self._build_claimer(check_order(order), timeout, check_unknown_kinds(unknown_kinds), lease)
        self._job_log = JobLog(check_level(job_log_level))
        self._executor = executor = self._build_executor(claimer, backoff or client.backoff, error_handler, middleware)
        self._watchdog = executor.watchdog
        self._threads = threads = WorkerThreads(
            context, executor, poll_interval=poll_interval, fetch_cooldown=fetch_cooldown
        )
        self._stopping = threads.stopping
        self._heartbeat = Heartbeat(
            context, executor, threads, client.registration, client.events, figures=self._figures, lease=lease
        )
        self.schedules = self._build_schedules(cron)
        self._background = BackgroundThreads(
            context,
            executor,
            self._heartbeat,
            self.schedules,
            self._figures,
            encode=client._encoder.encode,
            keep=check_keep(keep_completed, keep_cancelled, keep_discarded),
            reindex_at=check_time(reindex_at),
            listen=listen,
            listen_dsn=listen_dsn,
        )
        self._run_settings = check_run_settings(batch_size, batch_time, durability)
        for queue, settings in check_queues(queues).items():
            self._add(self._build_queue_workers(queue, settings))
        self._belong_to_this_process()

    @property
    def client(self) -> Client:
        """The client whose jobs the pool works."""
        return self._client

    @property
    def figures(self) -> AttemptFigures:
        """The attempts that the pool has made in this process, in numbers; `figures.snapshot()` has the sums since it
        was made. `client.stats` reads those of all processes."""
        return self._figures

    # --- its parts

    def _build_claimer(
        self,
        order: str,
        timeout: timedelta | None,
        unknown_kinds: Literal["error", "leave"] | Handler,
        lease: timedelta,
    ) -> Claimer:
        return Claimer(
            self._client.queries,
            self.work_map,
            worker=self._client.id,
            order=order,
            timeout=timeout,
            unknown_kinds=unknown_kinds,
            lease=lease,
        )

    def _build_executor(
        self,
        claimer: Claimer,
        backoff: Backoff,
        error_handler: ErrorHandler | None,
        middleware: Sequence[Middleware],
    ) -> Executor:
        client = self._client
        return Executor(
            claimer=claimer,
            finisher=Finisher(
                claimer=claimer,
                decider=Decider(backoff=backoff, error_handler=error_handler, error_details=client.error_details),
                reporter=Reporter(
                    hooks=client.hooks,
                    events=client.events,
                    job_log=self._job_log,
                    count=self._figures.record,
                    on_due_soon=self._context.promote_soon,
                ),
            ),
            watchdog=Watchdog(
                on_severed=self._on_severed,
                on_stuck=self._on_stuck,
                on_silent=self._on_silent,
                name=f"{self.name}/watch",
            ),
            hooks=client.hooks,
            middleware=checks.check_functions("middleware", middleware, "functions of (tx, job, run)"),
            code_version=client.code_version,
        )

    def _build_schedules(self, cron: Iterable[Schedule]) -> CodeSchedules:
        client = self._client
        queries = ScheduleQueries(client.schema)
        return CodeSchedules(queries, client.source, client._encoder.encode, cron, worker=client.id)

    def _build_queue_workers(self, queue: str, threads: int | QueueSettings) -> QueueWorkers:
        settings, source = self._run_settings.for_queue(threads), self._client.source
        workers = QueueWorkers(check_queue(queue), IdleThreads(thread_count(threads)), settings)
        if settings.batch_size > 1 and not source.batches:
            raise InvalidSetting(
                f"batch_size is 1 with a {type(source).__name__}, not {settings.batch_size}: a framework ends its "
                "transaction with each job"
            )
        return workers

    def __repr__(self) -> str:
        queues = {queue: workers.threads for queue, workers in self._context.queue_workers.items()}
        return f"WorkerPool({self.name!r}, queues={queues}, {'running' if self._started else 'not running'})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a WorkerPool cannot be pickled, since its threads belong to this process: make one in the other process"
        )

    # --- start and stop

    def start(self) -> Self:
        """Start the threads and return. Raises WorkerPoolError if the pool is started already, errors that say that the
        tables do not fit this code or that the connection pool is too small, and errors of the database."""
        self._enter_process()
        with self._control:
            if self._started:
                raise WorkerPoolError(f"worker pool {self.name!r} is started already")
            if not self.work_map and not isinstance(self._executor.claimer.unknown_kinds, Handler):
                raise WorkerPoolError("the WorkMap is empty: register a handler before start")
            self._note_classes()  # the WorkMap may have grown
            source, queue_workers = self._client.source, self._context.queue_workers
            with source.first_connection() as conn:
                migrate.make_ready(conn, self._client.schema)
                self._log_start(conn)
            self._job_log.refresh()
            if self._closing.locked():
                self._closing.release()
            self._heartbeat.register_queues(queue_workers)
            source.reserve_connections(self.threads)
            self._reserved = self.threads
            self._started = True
            self._starts += 1
            self._client.events.worker_pool_started()
            self._heartbeat.read_paused_queues()
            self._threads.reset()
            try:
                self.schedules.start(self._context.tick_soon)
                self._start_threads()
            except BaseException:  # a schedule cannot be stored, or the system refuses more threads
                self._stop(0.0)
                raise
            _end_calls.add(self._end_with_process)
        return self

    def _log_start(self, conn: AnyConnection) -> None:
        queues = {name: (workers.threads, workers.settings) for name, workers in self._context.queue_workers.items()}
        schedules = self.schedules.by_name
        self._log.starting(conn, schema=self._client.schema, worker=self._client.id, queues=queues,
                           kinds=self.work_map.keys(), schedules=schedules.keys())  # fmt: skip

    def _note_classes(self) -> None:
        """Raise if the WorkMap handles a kind with another args class than the client has enqueued."""
        for kind, handler in self.work_map.items():
            if handler.args_class is not None:
                self._client._encoder.note_class(kind, handler.args_class, error=InvalidHandler)

    def _start_threads(self) -> None:
        self._background.start()
        self._watchdog.start()
        for workers in self._context.queue_workers.values():
            self._threads.start(workers)
        self._background.start_listener()

    def stop(self, timeout: timedelta | EllipsisType | None = ...) -> bool:
        """Start no more jobs, wait for the running ones, and end the threads.

        The wait lasts `timeout` at most: by default the `stop_timeout` of the pool, and for ever with None. After it
        the handlers that still run are asked to end (`job.cancelled`), and then forced to: their writes
        are rolled back and their attempts are not counted. The call returns at most two seconds later, whatever the
        handlers do, and even if another stop with a longer timeout is under way. Returns whether no handler was cut
        off. In a handler or a hook it returns False at once, and the pool stops when that has ended. On a pool that
        does not run it does nothing. A stopped pool may be started again.
        """
        # raises for a wrong value before any thread is asked to end
        seconds = checks.timeout_seconds(self._stop_timeout if timeout is ... else timeout)
        self._enter_process()
        self._begin_stop()
        if self._is_own_thread():  # a handler or a hook, which would wait for itself
            threading.Thread(target=self.stop, args=(timeout,), name=f"{self.name}/stop").start()
            return False
        if self._stopper is threading.current_thread():  # a signal handler that interrupted a stop
            return False
        if not self._control.acquire(timeout=-1 if seconds is None else seconds):
            self._cut_off()
            self._control.acquire()
        try:
            return self._stop(seconds)
        finally:
            self._control.release()

    def _is_own_thread(self) -> bool:
        maintenance = self._context.maintenance
        return self._threads.includes_current or (maintenance is not None and maintenance.is_current)

    def _stop(self, seconds: float | None) -> bool:
        self._begin_stop()
        self._stopper, began = threading.current_thread(), time.monotonic()
        try:
            self._log.waiting(self._watchdog.attempts, seconds)
            ended = self._threads.wait(seconds)
            if not ended:
                self._log.cut_off(self._watchdog.attempts, time.monotonic() - began if seconds else 0.0)
                self._cut_off()
                ended = self._wait_cut_off()
            self._end_maintenance(_LAST_WRITES if seconds is None else began + seconds - time.monotonic())
            self._background.stop(_PART_WITHIN)
        except BaseException:  # Ctrl-C: whatever stops the pool next need not wait again
            self._cut_off()
            self._stopper = None
            raise
        self._watchdog.stop()
        self.schedules.stop()
        self._stopper = None
        self._client.source.release_connections(self._reserved)
        self._job_log.flush()
        if self._started:
            self._client.events.worker_pool_stopped()
            self._log.stopped(time.monotonic() - began)
        self._reserved = 0
        self._started = False
        _end_calls.discard(self._end_with_process)
        return ended and not self._watchdog.stopped and not self._threads.any_stuck_since_start

    def _end_maintenance(self, left: float) -> None:
        """Let the maintenance thread end. A slow database gets what is `left` of the stop, in seconds, to write the
        last figures, unless the stop is told to hurry. The stop does not wait for the other tasks of the thread."""
        maintenance = self._context.maintenance
        if maintenance is None:
            return
        until = time.monotonic() + min(left, _LAST_WRITES)
        ended = maintenance.stop(_PART_WITHIN)
        while not ended and self._heartbeat.unwritten and time.monotonic() < until and not self._watchdog.stopping_all:
            ended = maintenance.stop(min(LOOK_UP, max(0.0, until - time.monotonic())))
        if self._closing.locked() and not self._log.exits:  # the client was closed, and that is logged already
            return
        if unwritten := self._heartbeat.unwritten:
            self._log.figures_unwritten(unwritten)

    def stop_and_cancel(self) -> bool:
        """Stop without waiting: `stop` with a timeout of zero."""
        return self.stop(timedelta(0))

    def _begin_stop(self) -> None:
        self._stopping.set()
        self._context.wake_all()

    def _cut_off(self) -> None:
        self._watchdog.request_stop_all(lambda: JobStopped("the worker pool stopped"), AT_STOP)

    def _wait_cut_off(self) -> bool:
        """Wait until the threads whose handlers are cut off have ended or are stuck. Returns whether they have."""
        until, reports = time.monotonic() + AT_STOP.stuck + _REPORTS_WITHIN, self._watchdog.reports
        while reports is not None and (left := until - time.monotonic()) > 0:
            if self._threads.wait(0.0) and self._watchdog.wait_for_reports(0.0):
                break
            with suppress(Empty):
                reports.get(timeout=min(left, 0.05))()
        ended = self._threads.wait(max(0.0, until - time.monotonic()))
        self._watchdog.wait_for_reports(max(0.0, until - time.monotonic()))
        return ended

    @property
    def running(self) -> bool:
        return self._started and self._process == this_process()

    @property
    def stop_timeout(self) -> timedelta | None:
        """How long a stop waits for running jobs, unless it is told otherwise; None for ever."""
        return self._stop_timeout

    @property
    def any_stuck(self) -> bool:
        """Whether a handler goes on although it was cut off, in a thread that was left behind."""
        return self._threads.any_stuck

    @property
    def outage(self) -> str | None:
        """What does not work, such as "the database", since a part of the running pool could not use it; None if
        nothing is known to be wrong."""
        return self._context.outages.current or ("the database" if self._client.source.is_failing else None)

    @property
    def threads(self) -> int:
        """How many worker threads the pool has while it runs."""
        return self._context.threads

    @property
    def busy_threads(self) -> dict[str, int]:
        """How many worker threads of each queue run a job, or look for one. Empty if the pool does not run."""
        if not self.running:
            return {}
        return {name: workers.threads - workers.idle.idle for name, workers in self._context.queue_workers.items()}

    @property
    def idle_threads(self) -> dict[str, int]:
        """How many worker threads of each queue wait for jobs. Empty if the pool does not run."""
        if not self.running:
            return {}
        return {name: workers.idle.idle for name, workers in self._context.queue_workers.items()}

    @property
    def stuck_threads(self) -> int:
        """How many handlers go on although they were cut off, in threads that were left behind."""
        return self._threads.stuck_count

    def healthy(self, max_age: timedelta = timedelta(minutes=1)) -> bool:
        """Whether the pool runs and its threads work: for a liveness probe of your own.

        False if the pool does not run in this process; if one of its worker threads, its watchdog or its listener has
        ended although the pool is not being stopped; if a worker thread is stuck in its handler; or if the maintenance
        thread has ended, or should have been back from what it does for longer than `max_age`. That thread does a round
        each second and each of its calls to the database has a time limit, so a database that is away or slow leaves
        the pool healthy. Sends no SQL, never waits, and may be called on any thread.
        """
        checks.check_max_age(max_age)
        maintenance, listener, stopping = self._context.maintenance, self._context.listener, self._stopping.on
        if not self.running or self._threads.any_stuck:
            return False
        if maintenance is None:
            return stopping  # it is ended last
        if not stopping and not (self._threads.complete and self._watchdog.alive):
            return False
        if not stopping and listener is not None and not listener.alive:
            return False
        return stopping or maintenance.overdue <= max_age.total_seconds()

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, then stop as `stop()` does. Call it on the main thread.

        A second signal cuts off the handlers that still run, as `stop_and_cancel` does, and ends with SystemExit. A
        third exits at once; the jobs that it cuts off are rescued. Ends with SystemExit(1) if a handler resists and its
        thread is left behind.
        """
        if threading.current_thread() is not threading.main_thread():
            raise WorkerPoolError(
                f"worker pool {self.name!r}: run() waits for signals, which only the main thread of a process gets: "
                "call start() here, and stop() to end it"
            )
        with signals() as received:
            self._signals = received
            self.start()
            first = next_signal(received)
            self._signals = None
            if first is not None:  # else the client was closed
                self._log.signal(first)
            stop = threading.Thread(target=self._stop_for_signal, args=(received,), name=f"{self.name}/stop")
            stop.start()
            second = next_signal(received)
            if second:
                self._log.second_signal(second)
                self._cut_off()
            while stop.is_alive():
                stop.join(LOOK_UP)
        if self._closing.locked():
            raise WorkerPoolError(f"worker pool {self.name!r} has stopped: its client was closed while it ran")
        if second is not None:
            raise SystemExit(128 + second if second else 1)

    def _stop_for_signal(self, received: SimpleQueue[int | None]) -> None:
        ended = self.stop()
        received.put(None if ended or not self._threads.any_stuck else 0)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process == this_process():  # else a forked child leaves the block that its parent is in
            self.stop()

    # --- forks, a closed client, and the end of the process

    def _enter_process(self) -> None:
        """Let a pool that was made before a fork work in the child. A pool that ran at the fork works in the parent
        alone."""
        if self._process == this_process():
            return
        if self._started:
            raise UsedAfterFork(
                f"worker pool {self.name!r} was started before the process forked, and its threads are in the parent "
                "alone: make and start a WorkerPool in the child"
            )
        self._belong_to_this_process()
        self._watchdog.reset_for_process()
        self._threads.reset_for_process()
        self._executor.claimer.reset_for_process(self._client.id)
        self._figures.reset_for_process()
        self._heartbeat.reset_for_process()
        self.schedules.reset_for_process(self._client.id)

    def _belong_to_this_process(self) -> None:
        self._process = this_process()
        self._control = threading.Lock()  # locked during a start and a stop
        self._closing = threading.Lock()  # locked once a part has found the client closed

    def _client_closed(self) -> None:
        """The client, or its connection pool, was closed while this pool runs: stop, and log it once."""
        if self._stopping.is_set() or not self._closing.acquire(blocking=False):
            return
        self._begin_stop()
        log.error("%s: its client was closed while it ran, so it stops: call stop() before client.close()", self.name)
        if self._signals is not None:
            self._signals.put(None)
        else:
            threading.Thread(target=self.stop, name=f"{self.name}/stop", daemon=True).start()

    def _end_with_process(self) -> None:
        """The process exits: stop, as at the end of a `with` block."""
        if not self.running:
            return
        self._watchdog.reports = SimpleQueue()
        try:
            # the lock is kept, so that `_client_closed` logs nothing
            if not self._stopping.is_set() and self._closing.acquire(blocking=False):
                self._log.exits = True
            self.stop()
        except KeyboardInterrupt:
            self.stop_and_cancel()

    # --- queues

    def add_queue(self, name: str, threads: int | QueueSettings) -> None:
        """Work this queue too, at once if the pool runs. Raises WorkerPoolError if the pool works the queue already,
        and what `start` raises."""
        workers = self._build_queue_workers(name, threads)
        with self._controlling():
            if name in self._context.queue_workers:
                raise WorkerPoolError(f"worker pool {self.name!r} works queue {name!r} already")
            if self._started:
                self._heartbeat.register_queues([name])
                self._client.source.reserve_connections(workers.threads)
                self._reserved += workers.threads
            self._add(workers)
            if self._started:
                try:
                    self._threads.start(workers)
                except BaseException:  # the system refuses more threads
                    self._context.remove(name)
                    raise

    def remove_queue(self, name: str, timeout: timedelta | None = None) -> bool:
        """Work this queue no longer: start none of its jobs, and wait for the running ones, up to `timeout` if there is
        one.

        Returns whether they have ended; if not, they go on. The jobs that wait in the queue stay there. Raises
        WorkerPoolError if the pool does not work the queue. In a handler of the queue it does not wait for that
        handler.
        """
        seconds = checks.timeout_seconds(timeout)
        with self._controlling():
            if check_queue(name) not in self._context.queue_workers:
                raise WorkerPoolError(f"worker pool {self.name!r} does not work queue {name!r}")
            workers, starts = self._context.remove(name), self._starts
        if not self._threads.wait(seconds, of=workers):
            return False
        with suppress(WorkerPoolError), self._controlling():  # a stop releases all reserved connections
            if self._started and self._starts == starts:
                self._client.source.release_connections(workers.threads)
                self._reserved -= workers.threads
        return True

    def select_queues(self, threads: Mapping[str, int | None]) -> None:
        """Work these queues alone, each with this number of threads, or with as many as before for None. Their other
        settings stay. Call it before `start`. Raises WorkerPoolError for a queue that the pool does not have, and if
        the pool runs."""
        check_thread_counts(threads)
        with self._controlling():
            if self._started:
                raise WorkerPoolError(f"worker pool {self.name!r} runs: select its queues before start()")
            before = self._context.queue_workers
            unknown = [queue for queue in threads if check_queue(queue) not in before]
            if unknown:
                raise WorkerPoolError(
                    f"worker pool {self.name!r} has no queue {unknown[0]!r}; it has {', '.join(sorted(before))}"
                )
            for queue, workers in before.items():
                self._context.remove(queue)
                if queue in threads:
                    number = threads[queue]
                    idle = IdleThreads(workers.threads if number is None else number)
                    self._add(QueueWorkers(queue, idle, workers.settings))

    def _add(self, workers: QueueWorkers) -> None:
        async_queues = self._executor.claimer.async_commit
        if workers.settings.async_commit:
            async_queues.add(workers.queue)
        else:
            async_queues.discard(workers.queue)
        self._context.add(workers)

    @contextmanager
    def _controlling(self) -> Iterator[None]:
        """Keep the pool from being started or stopped during the block. Raises if a stop is under way, which may wait
        for the very handler that is calling."""
        self._enter_process()
        while not self._control.acquire(timeout=0.05):
            if self._stopping.is_set():
                raise WorkerPoolError(f"worker pool {self.name!r} is being stopped")
        try:
            yield
        finally:
            self._control.release()

    # --- work

    def drained(self) -> bool:
        """Whether the queues of this pool are empty: none of their jobs runs, here or in another process, and none can
        run now. Jobs with a later time do not count, nor do those of paused queues, nor kinds that this pool leaves to
        other workers. Raises errors of the database."""
        claimer = self._executor.claimer
        kinds = list(self.work_map) if claimer.unknown_kinds == "leave" else None
        with self._client.source.transaction() as conn:
            return not self._worker_queries.any_work_left(conn, self._context.queue_workers, kinds)

    def work_one(self, queue: str = "default") -> bool:
        """Run the next job of the queue on this thread, without starting the pool. Returns whether there was a job.

        No heartbeat extends the lease of a detached handler here: give the pool a `lease` longer than that takes.
        """
        check_queue(queue)
        self._enter_process()
        self._job_log.refresh()
        with (
            self._watchdog.running(),
            self._client.source.checkout() as checkout,
            self._watchdog.guard(checkout) as slot,
        ):
            job = self._executor.claim(checkout, queue)
            if job is not None:
                self._executor.run(slot, job)
            return job is not None

    # --- what its parts report

    def _on_severed(self, attempt: Attempt) -> None:
        try:
            with self._client.source.own_checkout() as checkout:
                self._executor.finisher.record_severed(attempt, checkout)
                if attempt.on_severed is not None:
                    attempt.on_severed(checkout)
        except Exception as error:  # the rescue will record that the worker vanished
            log.error("job %d: its outcome could not be recorded: %s", attempt.job.id, one_line(error),
                      extra=job_fields(attempt.job))  # fmt: skip

    def _on_stuck(self, attempt: Attempt) -> None:
        self._threads.on_stuck(attempt)

    def _on_silent(self) -> None:
        log.warning("%s: the server has not answered for too long; replacing the idle connections", self.name)
        self._client.source.discard_idle()


def _check_client(client: object) -> None:
    if not isinstance(client, Client):
        given = f"of type {type(client).__name__}"  # the type alone: a connection string contains the password
        raise InvalidSetting(f"client is a Client, as in Client('postgresql://...'), not {given}")
