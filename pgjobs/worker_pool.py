"""WorkerPool: the threads that work the queues, how they are woken, and how they stop."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import time as TimeOfDay
from datetime import timedelta
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal, Self

import psycopg

from pgjobs import checks
from pgjobs.backoff import Backoff
from pgjobs.clean_text import one_line
from pgjobs.client import Client
from pgjobs.control.queue_queries import QueueQueries
from pgjobs.db import migrate
from pgjobs.db.channel import CANCEL_NOTICE, DUE_NOTICE, SCHEDULE_NOTICE
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.source import defaults_for, in_autocommit
from pgjobs.errors import InvalidHandler, InvalidSetting, JobStopped, UsedAfterFork, WorkerPoolError, shown
from pgjobs.execution.attempt import AT_STOP, Attempt
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.executor import Executor
from pgjobs.execution.finisher import Finisher
from pgjobs.execution.watchdog import Watchdog
from pgjobs.forking import this_process
from pgjobs.hooks import ErrorHandler, Middleware
from pgjobs.job import Job, JobState
from pgjobs.loggers import get_logger
from pgjobs.maintenance.duties import Maintenance
from pgjobs.maintenance.reindexer import MIDNIGHT, Reindex, check_time
from pgjobs.maintenance.thread import MaintenanceThread
from pgjobs.maintenance.time_index import TimeIndex
from pgjobs.options import check_queue
from pgjobs.outages import Outages
from pgjobs.queue_settings import Durability, QueueSettings, number, way
from pgjobs.schedule import Schedule
from pgjobs.schedules.args_supplier import Asking
from pgjobs.schedules.queries import ScheduleQueries
from pgjobs.schedules.registered import CodeSchedules
from pgjobs.schedules.ticker import Ticker
from pgjobs.wakeup.idle_threads import IdleThreads, Post
from pgjobs.wakeup.listener import Listener
from pgjobs.work_map import Handler, HandlerFunction, check_unknown_kinds, decoding, given_work_map
from pgjobs.workers.heartbeat import ProcessDuties
from pgjobs.workers.signals import LOOK_UP, next_signal, signals
from pgjobs.workers.worker_threads import Place, WorkerThreads

log = get_logger("pgjobs.worker")

_FIRST_PAUSE = 0.1  # seconds that a thread waits after an error of the database; doubles
_LONGEST_PAUSE = 5.0
_LOOK_WITHIN = 40.0  # seconds for the answer to a look; as for a claim
_KEEP_QUEUES_EVERY = 60.0  # seconds between two words that this process works its queues

_ends: set[Callable[[], None]] = set()  # of the pools that were started and not stopped


def _at_exit() -> None:
    for end in list(_ends):
        end()


# Here, where nobody has a pool yet: what was registered last is called first, and so is a pool.stop() of the program's.
atexit.register(_at_exit)


class WorkerPool:
    """OS threads that each claim, lock, run and finish one job per transaction.

        with WorkerPool(client, WorkMap({Welcome: welcome}), queues={"default": 10}):
            ...                                        # works until the block is left
        WorkerPool(client, work_map).run()             # works until SIGTERM or SIGINT

    `queues` says how many threads work each queue; each running job holds one connection, so the client's pool must
    hold that many and two to spare (a pool that the client made grows by itself). `backoff` decides when a failed job
    runs again; left out, the client's does. `timeout` is how long an attempt may take, None for ever. `lease` is how
    long the job of a vanished worker waits, if its handler is detached. `keep_*` is how long jobs stay in the table
    after their end, None for ever. `reindex_at` is the time of the day, midnight UTC, at which the indexes of the job
    table are rebuilt, None for never. `order="scheduled_at"` takes the oldest first, whatever the priorities.

    `unknown_kinds` says what becomes of a job whose kind the WorkMap lacks: "error" fails it, with backoff; "leave"
    does not touch it, so that other workers can; or a handler takes them all. `middleware` stands around every handler;
    `error_handler` judges what they raise.

    `batch_size` more than 1 lets a thread run that many jobs in one transaction, which is faster: the first attempts
    of jobs are claimed together, run one after the other, each behind a savepoint, and committed together, after
    `batch_time` at the latest for what is not started by then. A failed attempt runs again by itself. `durability`
    "relaxed" does not wait for the disk when jobs are finished: a crash of the *server* (not of a worker) may then lose
    what was finished in the last fraction of a second, the effects and the completion together, and those jobs run
    again; what their handlers did outside of the database is then done twice. Both hold for all queues but those that
    say otherwise: `queues={"logs": QueueSettings(4, batch_size=50, durability="relaxed")}`.

    `cron` are the schedules of this code; `pool.schedules` adds and removes some while the pool runs.

    `listen=False` never LISTENs and finds jobs by polling every `poll_interval`; `listen_dsn` is where to LISTEN when
    the client is connected through a pooler.
    """

    _received: SimpleQueue[int | None] | None = None  # what `run` waits for

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
    ) -> None:
        _check_client(client)
        checks.check_text("name", name, is_cleaned=True)
        checks.check_bool("listen", listen)
        self.name = one_line(name)
        self.work_map = given_work_map(work_map)
        self._client = client
        self._note_classes()
        wanted = _checked_queues(queues)
        self._way = way(batch_size, batch_time, durability)
        self._places = {queue: self._place(queue, threads) for queue, threads in wanted.items()}
        checks.check_intervals(poll_interval, fetch_cooldown)
        self._listen = listen
        _check_dsn(listen_dsn)
        self._listen_dsn = listen_dsn
        self._keep = {
            JobState.COMPLETED: checks.check_keep("keep_completed", keep_completed),
            JobState.CANCELLED: checks.check_keep("keep_cancelled", keep_cancelled),
            JobState.DISCARDED: checks.check_keep("keep_discarded", keep_discarded),
        }
        self._reindex_at = check_time(reindex_at)
        checks.check_timeout(timeout)
        checks.check_lease(lease)
        checks.check_function("backoff", backoff, checks.A_BACKOFF)
        _check_error_handler(error_handler)
        self._watchdog = Watchdog(
            on_severed=self._on_severed,
            on_stuck=self._on_stuck,
            on_silent=self._on_silent,
            name=f"{self.name}/watch",
        )
        claimer = self._claimer = Claimer(
            client.queries,
            self.work_map,
            worker=client.id,
            order=_checked_order(order),
            timeout=timeout,
            unknown_kinds=check_unknown_kinds(unknown_kinds),
            lease=lease,
        )
        for place in self._places.values():
            self._set_durability(place)
        self._any_kind = isinstance(claimer.unknown_kinds, Handler)
        self._finisher = Finisher(
            queries=client.queries,
            claimer=claimer,
            backoff=backoff or client.backoff,
            error_handler=error_handler,
            hooks=client.hooks,
            events=client.events,
            error_details=client.error_details,
            waits=lambda: self._hurry("promote"),
        )
        self._executor = Executor(
            claimer=claimer,
            finisher=self._finisher,
            watchdog=self._watchdog,
            hooks=client.hooks,
            middleware=checks.functions("middleware", middleware, "functions of (tx, job, run)"),
            code_version=client.code_version,
        )
        self._outages = Outages()
        self._threads = WorkerThreads(
            self.name,
            client.source,
            self._executor,
            poll_interval=poll_interval,
            fetch_cooldown=fetch_cooldown,
            outages=self._outages,
        )
        self._stopping = self._threads.stopping
        self._queue_queries = QueueQueries(client.schema)
        self._process_duties = ProcessDuties(
            claimer,
            self._watchdog,
            client.registration,
            self._queue_queries,
            queues=lambda: self._places,
            lease=lease,
            events=client.events,
        )
        self._schedule_queries = ScheduleQueries(client.schema)
        self.schedules = CodeSchedules(
            self._schedule_queries, client.source, client._enqueuer.encoded, cron, worker=client.id
        )
        self._control = threading.Lock()  # start and stop, one at a time
        self._process = this_process()
        self._closing = threading.Lock()  # held from when it was seen that the client was closed
        self._threads.on_closed = self._on_closed
        self._started = False
        self._room = 0  # connections that the source keeps for its threads
        self._stopper: threading.Thread | None = None  # who is in the middle of a stop
        self._maintenance: MaintenanceThread | None = None
        self._reindex: Reindex | None = None
        self._time_index: TimeIndex | None = None
        self._listener: Listener | None = None
        self._starts = 0

    def __repr__(self) -> str:
        queues = {queue: place.idle.threads for queue, place in self._places.items()}
        return f"WorkerPool({self.name!r}, queues={queues}, {'running' if self._started else 'not running'})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a WorkerPool cannot be pickled, since its threads belong to this process: make one in the other process"
        )

    # --- start and stop

    def start(self) -> Self:
        """Start the threads and return. Raises when the pool runs already, when the tables do not fit this code, when
        the connection pool is too small, or what the database raises."""
        self._enter_process()
        with self._control:
            if self._started:
                raise WorkerPoolError(f"worker pool {self.name!r} is started already")
            if not self.work_map and not isinstance(self._executor.claimer.unknown_kinds, Handler):
                raise WorkerPoolError("the WorkMap is empty: register a handler before start")
            self._note_classes()  # the WorkMap may have grown
            with self._client.source.first_connection() as conn:
                migrate.make_ready(conn, self._client.schema)
            if self._closing.locked():
                self._closing.release()
            self._keep_queues(self._places)
            self._client.source.reserve_connections(self.threads)
            self._room = self.threads
            self._started = True
            self._starts += 1
            self._process_duties.begin()
            self._client.events.worker_pool_started()
            self._know_paused_queues()
            self._threads.reset()
            try:
                self.schedules.start(lambda: self._hurry("tick"))
                self._start_threads()
            except BaseException:  # a schedule cannot be stored, or the system refuses more threads
                self._stop(0.0)
                raise
            _ends.add(self._end_with_process)
            log.info("%s: %d threads on %s", self.name, self.threads, ", ".join(self._places))
        return self

    def _note_classes(self) -> None:
        """Refuse a WorkMap that handles a kind with another args class than the client has enqueued."""
        for kind, handler in self.work_map.items():
            if handler.args_class is not None:
                self._client._enqueuer.note_class(kind, handler.args_class, error=InvalidHandler)

    def _start_threads(self) -> None:
        queries, source = self._client.queries, self._client.source
        if self._reindex_at is not None:
            self._reindex = Reindex(queries.schema, source.connect, at=self._reindex_at, name=f"{self.name}/reindex")
        if self._executor.claimer.order == "scheduled_at":
            self._time_index = TimeIndex(queries.schema, source.connect, name=f"{self.name}/time-index")
            self._time_index.start()
        self._ticker = Ticker(
            self._schedule_queries,
            lambda: self.schedules.by_name,
            Asking(self._client._enqueuer.encoded, self._schedule_answered, name=self.name),
            wake=lambda queue: self._wake_for(queue, 1),
        )
        maintenance = MaintenanceThread(
            Maintenance(
                queries.schema,
                keep=self._keep,
                wake=self._wake_for,
                rescued=self._on_rescued,
                reads_rescued=lambda: bool(self._client.hooks),
                kinds=self._kinds,
                reindex=self._reindex,
            ),
            source,
            beside=self._process_duties.do,
            at_end=partial(self._sign_off, self.schedules.sign_off()),
            tick=self._tick,
            over=self._watchdog.over,
            is_told=lambda: self._listener is not None and self._listener.hears,
            outages=self._outages,
            on_closed=self._on_closed,
            name=f"{self.name}/maintenance",
        )
        self._client.registration.enter(self, self._describe)
        self._announce()
        maintenance.start()
        self._maintenance = maintenance
        if self._listen:
            for place in self._places.values():
                place.idle.post = Post()
            listener = Listener(
                queries.schema,
                lambda: source.connect(self._listen_dsn),
                wake=self._wake,
                name=f"{self.name}/listener",
                leaves_jobs=self._executor.claimer.unknown_kinds == "leave",
            )
            self._listener = self._threads.listener = listener
        self._watchdog.start()
        for place in self._places.values():
            self._threads.start(place)
        if self._listener is not None:
            self._listener.start()

    def _announce(self) -> None:
        """Be in the registry before the first job starts: should that kill the process at once, the rescue knows which
        other jobs ran beside it. A row that is locked is not waited for longer than a second."""
        with suppress(psycopg.Error), self._client.source.first_connection() as conn, in_autocommit(conn):
            self._client.registration.refresh(conn)

    def stop(self, timeout: timedelta | None = None) -> bool:
        """Start no more jobs, wait for those that run, and end the threads.

        After `timeout` the handlers that still run are told to end (`job.cancelled`), then made to: their writes are
        dropped, their attempts given back, and it returns within two seconds more, whatever they do; also when another
        call, which would wait for longer, is under way. Says whether nothing was cut off. A handler or a hook that
        calls it gets False at once, and the pool stops when it can. Calling it on a pool that does not run is no error;
        a stopped pool may be started again.
        """
        seconds = checks.patience(timeout)  # refused, if it is none, before anybody is told to end
        self._enter_process()
        self._begin_stop()
        if self._is_one_of_its_threads():  # a handler or a hook asks: it would wait for itself
            threading.Thread(target=self.stop, args=(timeout,), name=f"{self.name}/stop").start()
            return False
        if self._stopper is threading.current_thread():  # a signal's handler, in the middle of a stop
            return False
        if not self._control.acquire(timeout=-1 if seconds is None else seconds):
            self._cut_off()
            self._control.acquire()
        try:
            return self._stop(seconds)
        finally:
            self._control.release()

    def _is_one_of_its_threads(self) -> bool:
        if self._threads.includes_me:
            return True
        return self._maintenance is not None and self._maintenance.is_current

    def _stop(self, seconds: float | None) -> bool:
        self._begin_stop()
        self._stopper = threading.current_thread()
        ended = self._threads.wait(seconds)
        if not ended:
            self._cut_off()
            ended = self._threads.wait(AT_STOP.stuck + 0.3)
        for helper in (self._maintenance, self._reindex, self._time_index, self._listener):
            if helper is not None:
                helper.stop(0.4)
        self._maintenance = self._reindex = self._time_index = self._listener = self._threads.listener = None
        self._watchdog.stop()
        self.schedules.stop()
        self._stopper = None
        self._client.source.release_connections(self._room)
        if self._started:
            self._client.events.worker_pool_stopped()
        self._room = 0
        self._started = False
        _ends.discard(self._end_with_process)
        return ended and not self._watchdog.cut_off and not self._threads.any_stuck

    def stop_and_cancel(self) -> bool:
        """Stop without waiting: `stop` with no time at all."""
        return self.stop(timedelta(0))

    def _begin_stop(self) -> None:
        self._stopping.set()
        for place in self._places.values():
            place.idle.wake_all()

    def _cut_off(self) -> None:
        self._watchdog.request_stop_of_all(lambda: JobStopped("the worker pool stopped"), AT_STOP)

    # --- what happens around it

    def _enter_process(self) -> None:
        """A pool that was made before a fork works for the child as well; one that ran at the fork is the parent's."""
        if self._process == this_process():
            return
        if self._started:
            raise UsedAfterFork(
                f"worker pool {self.name!r} was started before the process forked, and its threads are in the parent "
                "alone: make and start a WorkerPool in the child"
            )
        self._process = this_process()
        self._control, self._closing = threading.Lock(), threading.Lock()
        self._watchdog.begin_anew()
        self._threads.begin_anew()
        self._claimer.begin_anew(self._client.id)
        self.schedules.begin_anew(self._client.id)

    def _on_closed(self) -> None:
        """The client, or its connection pool, was closed while this pool runs."""
        if self._stopping.is_set() or not self._closing.acquire(blocking=False):
            return
        self._begin_stop()
        log.error("%s: its client was closed while it ran, so it stops: call stop() before client.close()", self.name)
        if self._received is not None:
            self._received.put(None)
        else:
            threading.Thread(target=self.stop, name=f"{self.name}/stop", daemon=True).start()

    def _end_with_process(self) -> None:
        """The process ends. Its threads are daemons, and go quietly; a stop now could wait for anything."""
        if not self.running:
            return
        if not self._stopping.is_set() and self._closing.acquire(blocking=False):  # one line of the two that there are
            log.warning("%s: the process ends without a stop() of this pool: jobs that run now are cut off, and other "
                        "processes rescue them", self.name)  # fmt: skip
        self._begin_stop()
        for helper in (self._maintenance, self._listener):
            if helper is not None:
                helper.end()

    # --- queues

    def add_queue(self, name: str, threads: int | QueueSettings) -> None:
        """Work this queue too, with so many threads, at once if the pool runs. Raises WorkerPoolError when it works the
        queue already, and what `start` raises."""
        place = self._place(name, threads)
        with self._in_control():
            if name in self._places:
                raise WorkerPoolError(f"worker pool {self.name!r} works queue {name!r} already")
            if self._started:
                self._keep_queues([name])
                self._client.source.reserve_connections(place.idle.threads)
                self._room += place.idle.threads
            self._set_durability(place)
            self._places = {**self._places, name: place}  # a new dict: other threads look at it all the time
            if self._started:
                try:
                    self._threads.start(place)
                except BaseException:  # the system refuses more threads
                    self._leave(name)
                    raise

    def remove_queue(self, name: str, timeout: timedelta | None = None) -> bool:
        """Work this queue no longer: start none of its jobs, and wait for those that run, for ever without `timeout`.

        Says whether they have ended; else they end by themselves. What waits in the queue waits until somebody works it
        again. Raises WorkerPoolError when the pool does not work the queue. A handler of the queue that calls it does
        not wait for itself.
        """
        seconds = checks.patience(timeout)
        with self._in_control():
            if check_queue(name) not in self._places:
                raise WorkerPoolError(f"worker pool {self.name!r} does not work queue {name!r}")
            place, starts = self._leave(name), self._starts
        if not self._threads.wait(seconds, of=place):
            return False
        with suppress(WorkerPoolError), self._in_control():  # a stop gives all room back
            if self._started and self._starts == starts:
                self._client.source.release_connections(place.idle.threads)
                self._room -= place.idle.threads
        return True

    def _keep_queues(self, names: Iterable[str]) -> None:
        """Say that this process works these queues, so that they are known at once. It is said again every minute."""
        try:
            with self._client.source.first_connection() as conn:
                self._queue_queries.keep_queues(conn, names)
        except psycopg.Error as error:  # no reason not to work
            log.warning("%s: its queues are not on record: %s", self.name, one_line(error))

    def _know_paused_queues(self) -> None:
        """Somebody may have subscribed already: what changes from now on is told."""
        if self._client.events.looks_at_queues and not self._client.events.knows_queues:
            with suppress(psycopg.Error), self._client.source.first_connection() as conn:
                self._client.events.note_paused(*self._queue_queries.paused(conn))

    def _place(self, queue: str, threads: int | QueueSettings) -> Place:
        """What the threads of a queue are there for, checked."""
        place = Place(check_queue(queue), IdleThreads(number(threads)), self._way.of(threads))
        if place.way.batch_size > 1 and not self._client.source.batches:
            raise InvalidSetting(
                f"batch_size is 1 with a {type(self._client.source).__name__}, not {place.way.batch_size}: a framework "
                "ends its transaction with each job"
            )
        return place

    def _set_durability(self, place: Place) -> None:
        (self._claimer.async_commit.add if place.way.async_commit else self._claimer.async_commit.discard)(place.queue)

    def _leave(self, name: str) -> Place:
        place = self._places[name]
        self._places = {other: kept for other, kept in self._places.items() if other != name}
        place.idle.close()
        if self._listener is not None:
            self._listener.call(place.idle, name)
        return place

    @contextmanager
    def _in_control(self) -> Iterator[None]:
        """Nobody starts or stops meanwhile. Never waits for a stop: that may be waiting for the handler that asks."""
        self._enter_process()
        while not self._control.acquire(timeout=0.05):
            if self._stopping.is_set():
                raise WorkerPoolError(f"worker pool {self.name!r} is being stopped")
        try:
            yield
        finally:
            self._control.release()

    @property
    def running(self) -> bool:
        return self._started and self._process == this_process()

    @property
    def threads(self) -> int:
        """How many worker threads the pool has while it runs."""
        return sum(place.idle.threads for place in self._places.values())

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, then stop gracefully. Call it on the main thread.

        A second signal cuts off the handlers that still run, as `stop_and_cancel` does, and ends with SystemExit; a
        third exits at once, and the jobs it cuts off come back by themselves.
        """
        if threading.current_thread() is not threading.main_thread():
            raise WorkerPoolError(
                f"worker pool {self.name!r}: run() waits for signals, which only the main thread of a process gets: "
                "call start() here, and stop() when it is to end"
            )
        with signals() as received:
            self._received = received
            self.start()
            next_signal(received)
            self._received = None
            stop = threading.Thread(target=lambda: received.put(None if self.stop() else 0), name=f"{self.name}/stop")
            stop.start()
            second = next_signal(received)
            if second:
                log.warning("%s: the second signal, running handlers are cut off", self.name)
                self._cut_off()
            while stop.is_alive():
                stop.join(LOOK_UP)
        if self._closing.locked():
            raise WorkerPoolError(f"worker pool {self.name!r} has stopped: its client was closed while it ran")
        if second is not None:
            raise SystemExit(128 + second if second else 1)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process == this_process():  # else a child leaves the block that its parent is in
            self.stop()

    # --- work

    def work_one(self, queue: str = "default") -> bool:
        """Run the next job of the queue to its end on this thread, without any workers. Says whether there was one.

        Nobody extends the lease of a detached handler here: give the pool a `lease` longer than that takes.
        """
        check_queue(queue)
        self._enter_process()
        with self._watchdog.running(), self._client.source.checkout() as checkout, self._watchdog.over(checkout):
            return self._executor.run_next(checkout, queue) is not None

    def _on_severed(self, attempt: Attempt) -> None:
        try:
            with self._client.source.own_checkout() as checkout:
                self._finisher.record_severed(attempt, checkout)
                if attempt.on_severed is not None:
                    attempt.on_severed(checkout)
        except Exception as error:  # the rescue will record it, as a worker that vanished
            log.error("job %d: its outcome could not be recorded: %s", attempt.job.id, one_line(error))

    def _on_stuck(self, attempt: Attempt) -> None:
        self._threads.on_stuck(attempt)

    def _on_silent(self) -> None:
        log.warning("%s: the server has not answered for too long; its connections are made anew", self.name)
        self._client.source.discard_idle()

    def _sign_off(self, sign_off: Callable[[], None]) -> None:
        """Give back what was claimed in vain, and tell the other processes that this one has gone; they would notice by
        themselves."""
        sign_off()
        with self._client.source.own_checkout() as checkout:
            with suppress(psycopg.Error):  # the rescue will
                self._claimer.take_back_orphans(checkout.conn, at_once=True)
            with suppress(psycopg.Error):
                self._queue_queries.leave_queues(checkout.conn, self._places)
            self._client.registration.leave(self, checkout.conn)

    def _describe(self) -> tuple[dict[str, int], list[str]]:
        return {queue: place.idle.threads for queue, place in self._places.items()}, list(self.work_map)

    def _kinds(self) -> list[str] | None:
        """The kinds that this pool has handlers for; None for every kind."""
        return None if self._any_kind else list(self.work_map)

    def _on_rescued(self, job: Job[Any]) -> None:
        if job.state is JobState.RETRYABLE:
            self._hurry("promote")  # it is due in a moment
        self._client.hooks("on_rescue", decoding(self.work_map, job))

    # --- schedules

    def _tick(self, conn: AnyConnection) -> timedelta:
        self.schedules.beat(conn)
        return self._ticker.tick(conn)

    def _schedule_answered(self, name: str) -> None:
        self._ticker.answered(name)
        self._hurry("tick")

    def _hurry(self, act: str) -> None:
        if self._maintenance is not None:
            self._maintenance.hurry(act)

    # --- waking

    def _wake(self, queue: str | None) -> None:
        """Call a thread of the queue that a notification names; of every queue when it cannot name one. What cannot be
        the name of a queue says that somebody cancels a job, that one is due soon, or that a schedule has changed."""
        if queue == CANCEL_NOTICE and self._maintenance is not None:
            self._maintenance.call()
        if queue in (DUE_NOTICE, None):
            self._hurry("promote")
        if queue in (SCHEDULE_NOTICE, None):
            self._hurry("tick")
        for name, place in self._places.items():
            if queue in (name, None):
                place.idle.wake()

    def _wake_for(self, queue: str, jobs: int) -> None:
        place = self._places.get(queue)
        if place is not None:
            place.idle.wake()


def _check_client(client: object) -> None:
    if not isinstance(client, Client):
        given = f"of type {type(client).__name__}"  # and no more: a connection string has the password in it
        raise InvalidSetting(f"client is a Client, as in Client('postgresql://...'), not {given}")


def _checked_queues(queues: Any) -> Mapping[str, int | QueueSettings]:
    if queues is None:
        return {"default": 10}
    if not isinstance(queues, Mapping):
        raise InvalidSetting(f"queues is a mapping from name to threads, as in {{'default': 10}}, not {shown(queues)}")
    if not queues:
        raise InvalidSetting("there are no queues to work: give queues={name: threads}, not {}")
    return queues


def _checked_order(order: Any) -> str:
    if isinstance(order, str) and order in ("priority", "scheduled_at"):
        return order
    raise InvalidSetting(f"order is 'priority' or 'scheduled_at', not {shown(order)}")


def _check_dsn(listen_dsn: object) -> None:
    if listen_dsn is None:
        return
    if not isinstance(listen_dsn, str):  # of what type it is and no more: a URL has the password in it
        raise InvalidSetting(f"listen_dsn is a connection string, not of type {type(listen_dsn).__name__}")
    defaults_for(listen_dsn)  # refused here if it cannot be read, not in the listener's log


def _check_error_handler(error_handler: object) -> None:
    if isinstance(error_handler, type) and issubclass(error_handler, ErrorHandler):
        raise InvalidSetting(
            f"error_handler is an object of a class of ErrorHandler, not {shown(error_handler)}: "
            f"give {error_handler.__name__}()"
        )
    if error_handler is not None and not isinstance(error_handler, ErrorHandler):
        raise InvalidSetting(f"error_handler is an object of a class of ErrorHandler, not {shown(error_handler)}")
