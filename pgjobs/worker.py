"""WorkerPool: the threads that work the queues, how they are woken, and how they stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Literal, Self

import psycopg

from pgjobs import backoff as policies
from pgjobs.backoff import Backoff
from pgjobs.client import Client
from pgjobs.errors import InvalidSetting, WorkerPoolError
from pgjobs.executor import Executor
from pgjobs.job import JobState, check_queue
from pgjobs.listener import Listener
from pgjobs.maintenance import Maintenance, MaintenanceThread
from pgjobs.outcome import one_line
from pgjobs.work_map import Handler, HandlerFunction, WorkMap

log = logging.getLogger("pgjobs.worker")

_MOST_THREADS = 10_000
_FIRST_PAUSE = 0.1  # seconds that a thread waits after an error of the database; doubles
_LONGEST_PAUSE = 5.0


class WorkerPool:
    """OS threads that each claim, lock, run and finish one job per transaction.

        with WorkerPool(client, WorkMap({Welcome: welcome}), queues={"default": 10}):
            ...                                        # works until the block is left
        WorkerPool(client, work_map).run()             # works until SIGTERM or SIGINT

    `queues` says how many threads work each queue; each running job holds one connection, so the client's pool must
    hold that many and two to spare (a pool that the client made grows by itself). `backoff` decides when a failed job
    runs again. `keep_*` is how long jobs stay in the table after their end, None for ever. `order="scheduled_at"`
    takes the oldest first, whatever the priorities. `listen=False` never LISTENs and finds jobs by polling every
    `poll_interval`; `listen_dsn` is where to LISTEN when the client is connected through a pooler.
    """

    def __init__(
        self,
        client: Client,
        work_map: Mapping[Any, Handler | HandlerFunction],
        *,
        queues: Mapping[str, int] | None = None,
        name: str = "pgjobs",
        order: Literal["priority", "scheduled_at"] = "priority",
        poll_interval: timedelta = timedelta(seconds=1),
        fetch_cooldown: timedelta = timedelta(0),
        backoff: Backoff | None = None,
        keep_completed: timedelta | None = timedelta(hours=24),
        keep_cancelled: timedelta | None = timedelta(hours=24),
        keep_discarded: timedelta | None = timedelta(days=7),
        listen: bool = True,
        listen_dsn: str | None = None,
    ) -> None:
        self.name = one_line(name)
        self.work_map = work_map if isinstance(work_map, WorkMap) else WorkMap(work_map)
        self._client = client
        if queues is not None and not queues:
            raise InvalidSetting("there are no queues to work: give queues={name: threads}")
        self._queues = {check_queue(queue): _Queue(threads) for queue, threads in (queues or {"default": 10}).items()}
        if order not in ("priority", "scheduled_at"):
            raise InvalidSetting(f"order is 'priority' or 'scheduled_at', not {order!r}")
        self._order = order
        _check_intervals(poll_interval, fetch_cooldown)
        self._poll_interval = poll_interval.total_seconds()
        self._cooldown = fetch_cooldown.total_seconds()
        self._listen = listen
        self._listen_dsn = listen_dsn
        self._keep = {
            JobState.COMPLETED: _check_keep("keep_completed", keep_completed),
            JobState.CANCELLED: _check_keep("keep_cancelled", keep_cancelled),
            JobState.DISCARDED: _check_keep("keep_discarded", keep_discarded),
        }
        self._executor = Executor(
            client.store, client.source, self.work_map, worker=client.id, backoff=backoff or policies.river()
        )
        self._control = threading.Lock()  # start and stop, one at a time
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._maintenance: MaintenanceThread | None = None
        self._listener: Listener | None = None

    # --- start and stop

    def start(self) -> Self:
        """Start the threads and return. Raises when the pool runs already, when the tables do not fit this code, when
        the connection pool is too small, or what the database raises."""
        with self._control:
            if self.running:
                raise WorkerPoolError(f"worker pool {self.name!r} is started already")
            if not self.work_map:
                raise WorkerPoolError("the WorkMap is empty: register a handler before start")
            self._client.check_schema()
            self._client.source.make_room(self.threads)
            self._stopping.clear()
            self._start_threads()
            log.info("%s: %d threads on %s", self.name, self.threads, ", ".join(self._queues))
        return self

    def _start_threads(self) -> None:
        store, source = self._client.store, self._client.source
        self._maintenance = MaintenanceThread(
            Maintenance(store, keep=self._keep, wake=self._wake_for), source, name=f"{self.name}/maintenance"
        )
        if self._listen:
            self._listener = Listener(
                store, lambda: source.connect(self._listen_dsn), wake=self._wake, name=f"{self.name}/listener"
            )
            self._listener.start()
        names = (queue for queue, state in self._queues.items() for _ in range(state.threads))
        self._threads = [
            threading.Thread(target=self._work, args=(queue,), name=f"{self.name}/worker-{n}", daemon=True)
            for n, queue in enumerate(names)
        ]
        self._maintenance.start()
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: timedelta | None = None) -> bool:
        """Start no more jobs, wait for those that run (at most `timeout`), and end the threads.

        Says whether all have ended. After False some handlers still run; their jobs end as usual when they return.
        Calling it on a pool that does not run is no error. A stopped pool may be started again.
        """
        deadline = None if timeout is None else time.monotonic() + timeout.total_seconds()
        with self._control:
            self._stopping.set()
            for state in self._queues.values():
                state.wake_all()
            for thread in self._threads:
                if thread is not threading.current_thread():  # a handler may ask for the stop
                    thread.join(_left(deadline))
            if self._maintenance is not None:
                self._maintenance.stop(_left(deadline))
                self._maintenance = None
            if self._listener is not None:
                self._listener.stop()
                self._listener = None
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if self._threads:
                log.warning("%s: stopped, but %d handlers still run", self.name, len(self._threads))
            return not self._threads

    @property
    def running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    @property
    def threads(self) -> int:
        """How many worker threads the pool has while it runs."""
        return sum(state.threads for state in self._queues.values())

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, then stop gracefully. A second signal exits at once; the jobs it cuts off come
        back by themselves. Call it on the main thread."""
        with _signals() as wait_for_signal, self:
            wait_for_signal()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- work

    def work_one(self, queue: str = "default") -> bool:
        """Run the next job of the queue to its end on this thread, without any others. Says whether there was one."""
        with self._client.source.checkout() as held:
            return self._executor.run_next(held, check_queue(queue), order=self._order) is not None

    def _work(self, queue: str) -> None:
        """The life of one worker thread: work while there are jobs, else wait without a connection."""
        state = self._queues[queue]
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            try:
                seen = self._work_while_jobs(queue, state)
            except BaseException as error:  # whatever the database or a handler's leftovers do, the thread lives
                known = isinstance(error, psycopg.Error)
                log.warning("%s: no claim, next try in %.1f s: %s", queue, pause, one_line(error), exc_info=not known)
                self._stopping.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                pause = _FIRST_PAUSE
                if not self._stopping.is_set():  # else `seen` may be younger than the call that ends all waiting
                    state.wait(seen, self._poll_interval)

    def _work_while_jobs(self, queue: str, state: _Queue) -> int:
        """Work until the queue is found empty; the call count from before that look."""
        with self._client.source.checkout() as held:
            while True:
                seen = state.calls
                if self._stopping.is_set():
                    return seen
                if self._executor.run_next(held, queue, order=self._order, claimed=state.wake) is None:
                    return seen
                if self._cooldown:
                    self._stopping.wait(self._cooldown)

    # --- waking

    def _wake(self, queue: str | None) -> None:
        """Call a thread of the queue that a notification names; of every queue when it cannot name one."""
        for name, state in self._queues.items():
            if queue in (name, None):
                state.wake()

    def _wake_for(self, queue: str, jobs: int) -> None:
        if queue in self._queues:
            self._queues[queue].wake()


class _Queue:
    """The threads of one queue, and how the idle ones wait."""

    def __init__(self, threads: Any) -> None:
        if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= _MOST_THREADS:
            raise InvalidSetting(f"a queue has 1 to {_MOST_THREADS} threads, not {threads!r}")
        self.threads = threads
        self.calls = 0  # how often it was called; a thread that missed a call looks again before it waits
        self._changed = threading.Condition()
        self._idle = 0  # threads that wait
        self._called = 0  # of them, those that were called and have not woken up yet
        self._clock_watched = False  # one idle thread waits no longer than the poll interval

    def wake(self) -> None:
        """Call one idle thread. When it finds a job it calls the next: many jobs wake many threads, one job one."""
        with self._changed:
            self.calls += 1
            if self._called < self._idle:
                self._called += 1
                self._changed.notify()

    def wake_all(self) -> None:
        with self._changed:
            self.calls += 1
            self._called = self._idle
            self._changed.notify_all()

    def wait(self, seen: int, poll_interval: float) -> None:
        """Wait for a call that came after `seen`; one of the idle threads no longer than the poll interval."""
        with self._changed:
            if self.calls != seen:
                return
            self._idle += 1
            if not self._wait_for_call(poll_interval):
                self._called -= 1
            self._idle -= 1
            if self._idle and not self._clock_watched:
                self._changed.notify()  # somebody else must watch the clock now

    def _wait_for_call(self, poll_interval: float) -> bool:
        """Says whether the poll interval was over, rather than a call received."""
        while not self._called:
            if self._clock_watched:
                self._changed.wait()
                continue
            self._clock_watched = True
            called = self._changed.wait(poll_interval)
            self._clock_watched = False
            if not called:
                return not self._called
        return False


@contextmanager
def _signals() -> Iterator[Callable[[], object]]:
    """Give a function that waits for the first SIGTERM or SIGINT; the second one exits the process."""
    received: SimpleQueue[int] = SimpleQueue()  # its put() is safe in a signal handler, an Event's set() is not
    seen: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)
        received.put(number)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received.get
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _check_intervals(poll_interval: timedelta, fetch_cooldown: timedelta) -> None:
    if poll_interval < timedelta(milliseconds=1):
        raise InvalidSetting(f"poll_interval is at least a millisecond, not {poll_interval!r}")
    if fetch_cooldown and fetch_cooldown < timedelta(milliseconds=1):
        raise InvalidSetting(f"fetch_cooldown is none or at least a millisecond, not {fetch_cooldown!r}")
    if fetch_cooldown > poll_interval:
        raise InvalidSetting(f"poll_interval {poll_interval!r} is shorter than fetch_cooldown {fetch_cooldown!r}")


def _check_keep(name: str, keep: timedelta | None) -> timedelta | None:
    if keep is not None and keep < timedelta(0):
        raise InvalidSetting(f"{name} is a timedelta of zero or more, or None for ever; not {keep!r}")
    return keep
