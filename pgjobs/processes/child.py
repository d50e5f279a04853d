"""A worker process of `pgjobs work`: `python -m pgjobs.processes.child FD module:pool`, started by supervisor.py.

FD is the child's end of a socket to its parent. The parent decides when the process stops; the child also stops,
gently, when it receives a signal (a service manager may send one to all processes of a service), when the parent has
died, and when a limit is reached. A second signal means the same as the first: those of a service manager and of the
parent must not add up to two, which would cut off running jobs.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import NoReturn

import psycopg
from psycopg_pool import PoolClosed

from pgjobs.application import ApplicationNotLoaded, load
from pgjobs.clean_text import one_line
from pgjobs.db import migration_plan
from pgjobs.errors import PgjobsError, SchemaDamaged, SchemaMissing, SchemaOutdated
from pgjobs.loggers import get_logger
from pgjobs.processes import code_files, log_output
from pgjobs.processes.limits import MEBIBYTE, JobLimit, Limits, resident_bytes
from pgjobs.processes.messages import STOP_SIGNALS, Channel, Command, Report, State
from pgjobs.processes.metrics import PoolMetrics
from pgjobs.processes.settings import ChildSettings
from pgjobs.worker_pool import WorkerPool
from pgjobs.workers.signals import LOOK_UP, handling

log = get_logger("pgjobs.processes")

_RETRY_EVERY = 1.0  # seconds between two looks for the database and its tables
_REPORT_EVERY = 2.0  # seconds, unless there is news
_LINGER = 1.5  # seconds in which the process must end once its pool has stopped; see EXIT_GRACE
_HEALTHY_WITHIN = timedelta(seconds=20)


@dataclass(frozen=True, slots=True)
class Stop:
    """Why this process ends its work."""

    reason: str
    patient: bool = False  # wait for running jobs as long as they take
    replace: bool = False  # another process is to take its place
    done: bool = False  # no other process is needed
    code: int = 0


@dataclass(frozen=True, slots=True)
class CutOff:
    """Running handlers are to be cut off."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The pool has stopped."""


class StopAsked(Exception):
    """The process is to end before its pool was started."""


class Child:
    """The process: loads the application, waits for its tables, runs its pool, and stops it."""

    def __init__(self, channel: Channel, settings: ChildSettings) -> None:
        self._channel = channel
        self._settings = settings
        self._inbox: SimpleQueue[Stop | CutOff | Stopped] = SimpleQueue()  # put() is safe in a signal handler
        self._state_lock = threading.Lock()
        self._may_exit = True  # nothing is started that a stop must wait for
        self._limits = Limits(max_jobs=settings.max_jobs, max_rss=settings.max_rss, max_age=settings.max_age)
        self._last: Report | None = None
        self._reported_at = 0.0
        self._files: tuple[str, ...] = ()
        self._modules = 0
        self._metrics: PoolMetrics | None = None  # once the pool runs, if they are asked for

    def run(self) -> int:
        """Returns the exit code of the process."""
        threading.Thread(target=self._listen, name="pgjobs/parent", daemon=True).start()
        self._report(Report(state=State.LOADING))
        try:
            pool = self._load()
            log_output.configure(self._settings.log_level, self._settings.log_format)
            self._prepare(pool)
            with handling(STOP_SIGNALS, self._on_signal):
                self._start(pool)
                return self._work(pool)
        except StopAsked:
            return 0
        except ApplicationNotLoaded as error:
            self._fail(str(error), trace=error.trace, files=error.files)
        except (PgjobsError, psycopg.Error) as error:
            self._fail(_reason(error))
        return 1

    # --- what the parent says

    def _listen(self) -> None:
        """The thread that hears the parent, and notices its death."""
        while True:
            try:
                commands = self._channel.receive()
            except EOFError:
                log.warning("the parent process is gone, so this process stops")
                self._stop_for("its parent process is gone")
                return
            for command in commands:
                if command == Command.STOP:
                    self._stop_for("its parent stops it")
                elif command == Command.CUT_OFF:
                    self._inbox.put(CutOff())
                elif self._metrics is not None:
                    self._metrics.read_gauges()

    def _stop_for(self, reason: str) -> None:
        with self._state_lock:
            if self._may_exit:  # the main thread may be importing, which nothing can interrupt
                os._exit(0)
        self._inbox.put(Stop(reason))

    def _on_signal(self, number: int) -> None:
        self._inbox.put(Stop(f"it received {signal.Signals(number).name}"))

    # --- what it says

    def _report(self, report: Report) -> None:
        """Send a report if it says something new, or if the last one is old."""
        now = time.monotonic()
        if report != self._last or now - self._reported_at >= _REPORT_EVERY:
            self._last, self._reported_at = report, now
            self._channel.send(report.to_json())

    def _fail(self, reason: str, *, trace: str | None = None, files: Sequence[str] = ()) -> None:
        watched = code_files.loaded_files(files)
        self._report(Report(state=State.FAILED, reason=reason, trace=trace, files=watched))

    # --- before the pool is started

    def _load(self) -> WorkerPool:
        with self._telling_where_it_hangs():
            pool = load(self._settings.target, WorkerPool)
        if pool.running:
            raise ApplicationNotLoaded(
                f"the worker pool {self._settings.target} is started already: `pgjobs work` starts it, so keep start() "
                'and run() under if __name__ == "__main__"'
            )
        return pool

    @contextmanager
    def _telling_where_it_hangs(self) -> Iterator[None]:
        """When the time is up, tell the parent which line of the application does not return; it then gives up."""
        main = threading.main_thread().ident
        assert main is not None

        def tell() -> None:
            place = code_files.place_of(sys._current_frames()[main])
            self._report(Report(state=State.LOADING, reason=f"it hangs in {place}"))

        timer = threading.Timer(self._settings.start_timeout, tell)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _prepare(self, pool: WorkerPool) -> None:
        """Set what the command line says about the pool."""
        if self._settings.queues is not None:
            pool.select_queues(self._settings.queues)
        if self._limits.max_jobs is not None:
            pool.client.hooks.add(JobLimit(self._limits.max_jobs, self._retire))
        max_rss, used = self._limits.max_rss, resident_bytes()
        if max_rss is not None and used >= max_rss:
            raise PgjobsError(
                f"--max-rss {max_rss / MEBIBYTE:.0f}M is too little: {self._settings.target} needs "
                f"{used / MEBIBYTE:.0f} MiB before it has run a job"
            )

    def _start(self, pool: WorkerPool) -> None:
        """Start the pool, once the database can be reached and has the tables."""
        while True:
            self._wait_for_database(pool)
            with self._state_lock:
                self._may_exit = False
            self._report(Report(state=State.STARTING))
            try:
                pool.start()
                return
            except psycopg.OperationalError:  # the database went away in this moment
                if not self._settings.wait or self._missing(pool) is None:
                    raise
            with self._state_lock:
                self._may_exit = True

    def _wait_for_database(self, pool: WorkerPool) -> None:
        """Return when the tables fit this code, or when something is wrong that waiting does not help: the start of
        the pool will say what."""
        self._report(Report(state=State.WAITING))  # it is loaded; a pool of the application may wait for long by itself
        while (reason := self._missing(pool)) is not None and self._settings.wait:
            self._report(Report(state=State.WAITING, reason=reason))
            with suppress(Empty):
                self._inbox.get(timeout=_RETRY_EVERY)
                raise StopAsked

    def _missing(self, pool: WorkerPool) -> str | None:
        """What the pool must wait for before its start; None if nothing is known that waiting would help."""
        try:
            pool.client.check_schema()
        except (SchemaMissing, SchemaOutdated):
            schema, version, program = pool.client.schema, max(migration_plan.versions()), self._settings.program
            option = f" --schema {schema}" if program == "pgjobs" and schema != "pgjobs" else ""  # a framework knows it
            return f"the tables of schema {schema} at version {version}: run {program} migrate{option}"
        except PoolClosed:  # the start says so
            return None
        except psycopg.OperationalError as error:
            return f"the database: {one_line(error)}"
        except SchemaDamaged:  # the start repairs it, or says what to do
            return None
        return None

    # --- while the pool runs

    def _work(self, pool: WorkerPool) -> int:
        self._limits.begin()
        if self._settings.metrics:
            self._metrics = PoolMetrics(pool)
        if self._settings.burst:
            threading.Thread(target=self._stop_when_drained, args=(pool,), name="pgjobs/burst", daemon=True).start()
        stop = self._wait_for_stop(pool)
        stopping = Report(state=State.STOPPING, reason=stop.reason, replace=stop.replace, done=stop.done)
        self._report(stopping)
        self._stop(pool, stop)
        code = 1 if pool.any_stuck else stop.code
        metrics = None if self._metrics is None else self._metrics.metrics(now=True)
        self._report(replace(stopping, state=State.STOPPED, code=code, metrics=metrics))
        return code

    def _wait_for_stop(self, pool: WorkerPool) -> Stop:
        while True:
            self._report_work(pool)
            with suppress(Empty):
                event = self._inbox.get(timeout=LOOK_UP)
                if isinstance(event, Stop):
                    return event
                self._inbox.put(event)  # for the stop
                return Stop("its parent cuts it off")
            if not pool.running:
                return Stop("its worker pool has stopped by itself", code=1)
            if (large := self._limits.too_large()) is not None and _has_done_nothing(pool):
                # it counts as one that has died: there is a pause before the next one, which will not be smaller
                return Stop(f"{large}, before it has run a job", code=1)
            reached = self._limits.reached()
            if reached is not None:
                return Stop(reached, patient=True, replace=True)

    def _retire(self, reason: str) -> None:
        self._inbox.put(Stop(reason, patient=True, replace=True))

    def _stop_when_drained(self, pool: WorkerPool) -> None:
        """The thread that ends the process when no jobs are left. Another one than the main thread, which must not
        wait for the database."""
        ended = threading.Event()
        while pool.running:
            with suppress(psycopg.Error, PgjobsError):
                if pool.drained():
                    self._inbox.put(Stop("no jobs are left", patient=True, done=True))
                    return
            ended.wait(LOOK_UP)

    def _report_work(self, pool: WorkerPool) -> None:
        outage = pool.outage
        if outage is not None:
            reason: str | None = f"{outage} does not answer"
        elif not pool.healthy(_HEALTHY_WITHIN):
            reason = "its threads do not work"
        else:
            reason = None
        files = self._new_files()
        timeout = self._stop_timeout(pool)
        seconds = None if timeout is None else timeout.total_seconds()
        report = Report(state=State.READY, healthy=reason is None, reason=reason, stop_timeout=seconds, files=files)
        if self._metrics is not None:
            report = replace(report, metrics=self._metrics.metrics(), gauges=self._metrics.gauges())
        self._report(report)

    def _new_files(self) -> tuple[str, ...] | None:
        """The files to watch, if they have changed since the last call."""
        if not self._settings.reload or len(sys.modules) == self._modules:
            return None
        self._modules = len(sys.modules)
        files = code_files.loaded_files()
        if files == self._files:
            return None
        self._files = files
        return files

    # --- the stop

    def _stop(self, pool: WorkerPool, stop: Stop) -> None:
        """Stop the pool, while signals and commands of the parent are still heard."""
        patient = stop.patient
        self._begin_stop(pool, None if patient else self._stop_timeout(pool))
        while True:
            with suppress(Empty):
                event = self._inbox.get(timeout=LOOK_UP)
                if isinstance(event, Stopped):
                    return
                if isinstance(event, CutOff):
                    self._begin_stop(pool, timedelta(0))
                elif patient and not event.patient:
                    patient = False
                    self._begin_stop(pool, self._stop_timeout(pool))

    def _begin_stop(self, pool: WorkerPool, timeout: timedelta | None) -> None:
        def stop() -> None:
            pool.stop(timeout)
            self._inbox.put(Stopped())

        threading.Thread(target=stop, name="pgjobs/stop", daemon=True).start()

    def _stop_timeout(self, pool: WorkerPool) -> timedelta | None:
        given = self._settings.stop_timeout
        if given is not None:
            return timedelta(seconds=given)
        return pool.stop_timeout


def _has_done_nothing(pool: WorkerPool) -> bool:
    return not pool.figures.snapshot() and not any(pool.busy_threads.values())


def _reason(error: PgjobsError | psycopg.Error) -> str:
    """The error with its advice on one line, without the statement that the server refused."""
    text = one_line(error) if isinstance(error, psycopg.Error) and error.diag.message_primary else str(error)
    parts = [text, *getattr(error, "__notes__", ())]
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        parts.append("a worker needs the rights of pgjobs_worker")
    return " ".join("; ".join(parts).split())


def _end_soon(code: int) -> None:
    """Let no thread of the application that is not a daemon, and no function of its `atexit`, keep the process from
    ending: it would be replaced, and never go."""

    ending = threading.main_thread()

    def end() -> None:
        time.sleep(_LINGER)
        names = [thread.name for thread in threading.enumerate() if not thread.daemon and thread is not ending]
        log.warning("exiting although code of the application still runs%s", f": {', '.join(names)}" if names else "")
        _flush()
        os._exit(code)

    threading.Thread(target=end, name="pgjobs/end", daemon=True).start()


def _end(code: int) -> NoReturn:
    """End the process as Python does, up to the functions that are registered with `atexit`. What Python would do then,
    to clean up all objects, takes seconds on a busy machine, in which a platform may already kill the process, and may
    run code of the application that no thread can interrupt. `multiprocessing` ends its processes in this way too."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
        atexit._run_exitfuncs()
    finally:  # also if a signal interrupts it
        _flush()
        os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def main(arguments: list[str]) -> int:
    descriptor = int(arguments[0])
    os.set_inheritable(descriptor, False)
    channel = Channel(socket.socket(fileno=descriptor))
    (values, *_) = channel.receive()
    code = Child(channel, ChildSettings.from_json(values)).run()
    _end_soon(code)
    return code


if __name__ == "__main__":
    _end(main(sys.argv[1:]))
