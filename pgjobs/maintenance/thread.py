"""The thread of a worker pool that does the duties, ticks the schedules, and does the housekeeping of its process.

The duties and the ticks are its tasks. It sleeps until the next task is ready or `wake` or `run_soon` is called. An
idle queue should cost little, so before it does urgent duties it asks, in one statement, whether they would find
anything. It does not ask about a task that was passed to `run_soon`, or whose last call returned exactly when it must
be called.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue

import psycopg
from psycopg_pool import PoolClosed

from pgjobs.clean_text import one_line
from pgjobs.db.checkout import Checkout
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.source import PoolSource
from pgjobs.loggers import get_logger
from pgjobs.maintenance import duties
from pgjobs.maintenance.duties import AFTER_FAILURE, NOW, Maintenance
from pgjobs.outages import Outages

log = get_logger("pgjobs.maintenance")

_HOUSEKEEPING = "the housekeeping of this process"  # in the log
_HOUSEKEEPING_EVERY = 1.0  # seconds

# How long this thread waits for an answer of the server, in seconds.
_ANSWER_WITHIN = 40.0  # the server gives each statement 30
_SLOW_ANSWER_WITHIN = 600.0  # for duties that are not urgent and may take many statements


class MaintenanceThread:
    """Repeats its tasks until it is stopped.

    `housekeeping` is done every second, and after `wake`. `tick` ticks the schedules; it returns how long until the
    next tick. `at_end` is called when the thread ends. `guard` guards a connection while it is used. `listening` says
    whether notifications of jobs that are due soon reach this process. `on_closed` is called when the source of
    connections was closed. `each_round` is called every second, without a connection.
    """

    def __init__(
        self,
        maintenance: Maintenance,
        source: PoolSource,
        *,
        name: str,
        housekeeping: Callable[[AnyConnection], None] = lambda conn: None,
        tick: Callable[[AnyConnection], timedelta] = lambda conn: duties.LOOK_EVERY,
        at_end: Callable[[], None] = lambda: None,
        guard: Callable[[Checkout], AbstractContextManager[object]] = lambda checkout: nullcontext(),
        listening: Callable[[], bool] = lambda: True,
        outages: Outages | None = None,
        on_closed: Callable[[], None] = lambda: None,
        each_round: Callable[[], None] = lambda: None,
    ) -> None:
        self._maintenance = maintenance
        self._tasks: dict[str, Callable[[AnyConnection], timedelta]] = {
            **{duty: partial(maintenance.do, name=duty) for duty in maintenance.duties},
            "tick": tick,  # no duty: each process has schedules of its own
        }
        self._urgent = {duty.name for duty in maintenance.duties.values() if duty.urgent}
        self._source = source
        self._housekeeping = housekeeping
        self._at_end = at_end
        self._guard = guard
        self._listening = listening
        self._outages = outages or Outages()
        self._on_closed = on_closed
        self._each_round = each_round
        self._requested: SimpleQueue[str] = SimpleQueue()  # tasks, by run_soon
        self._exact: set[str] = set()  # tasks whose next time is known exactly
        self._woken = threading.Event()
        self._stopping = False
        self._back_at = math.inf  # when the thread comes back from what it does, at the latest; by the monotonic clock
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._back_at = time.monotonic() + _HOUSEKEEPING_EVERY
        self._thread.start()

    def end(self) -> None:
        """Let the thread end after the present task. Does not wait."""
        self._stopping = True
        self._woken.set()

    def stop(self, timeout: float | None = None) -> bool:
        """Let the thread end, and wait for it. Returns whether it has ended."""
        self.end()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on this thread, as a hook does."""
        return self._thread is threading.current_thread()

    @property
    def overdue(self) -> float:
        """For how many seconds the thread should have been back from what it does; 0 if it is in time, and infinity if
        it has ended."""
        return max(0.0, time.monotonic() - self._back_at) if self._thread.is_alive() else math.inf

    def wake(self) -> None:
        """Do the housekeeping now. May be called from any thread."""
        self._woken.set()

    def run_soon(self, task: str) -> None:
        """Do a task now: it may have something to do earlier than expected. May be called from any thread."""
        self._requested.put(task)
        self._woken.set()

    def _run(self) -> None:
        ready_at = dict.fromkeys(self._tasks, 0.0)
        while not self._stopping:
            requested = self._take_requested()
            ready_at.update(dict.fromkeys(requested, 0.0))
            ready = [task for task, at in ready_at.items() if at <= time.monotonic()]
            idle = self._find_idle(set(ready), requested | self._exact)
            pause = duties.IDLE_LOOK_EVERY if self._listening() else duties.LOOK_EVERY
            ready_at.update(dict.fromkeys(idle, time.monotonic() + pause.total_seconds()))
            for task in ready:
                if task not in idle and not self._stopping:
                    ready_at[task] = time.monotonic() + self._do(task).total_seconds()
            self._do_housekeeping()
            self._back_at = time.monotonic() + _HOUSEKEEPING_EVERY
            wake_at = min(*ready_at.values(), self._back_at)
            self._woken.wait(max(0.0, wake_at - time.monotonic()))
            self._woken.clear()
        with suppress(Exception):  # other processes find out by themselves that this one has gone
            self._at_end()

    def _take_requested(self) -> set[str]:
        """The tasks that run_soon named since the last call."""
        requested = set()
        with suppress(Empty):
            while True:
                requested.add(self._requested.get_nowait())
        if "promote" in requested:
            self._attempt("promote", self._bring_promote_forward)
        return requested

    def _bring_promote_forward(self, conn: AnyConnection) -> timedelta:
        self._maintenance.bring_promote_forward(conn)
        return NOW

    def _find_idle(self, ready: set[str], certain: set[str]) -> set[str]:
        """The urgent duties that would find nothing to do. A duty in `certain` is never one of them. Asks the database
        only if an urgent duty is ready that is not in `certain`; the answer then covers all urgent duties."""
        if not (ready - certain) & self._urgent:
            return set()
        try:
            with self._connection() as conn:
                return self._urgent - self._maintenance.anything_due(conn) - certain
        except psycopg.Error:  # the duties will fail too, and that is logged
            return set()

    def _do(self, task: str) -> timedelta:
        """Do a task. Returns how long until it should be done again."""
        wait = self._attempt(task, self._tasks[task])
        (self._exact.add if wait < duties.LOOK_EVERY else self._exact.discard)(task)
        return wait

    def _do_housekeeping(self) -> None:
        self._each_round()
        try:
            with self._connection() as conn:
                self._housekeeping(conn)
            self._outages.worked(log, _HOUSEKEEPING)
        except PoolClosed:
            self._on_closed()
        except Exception as error:
            with suppress(Exception):
                self._outages.failed(log, _HOUSEKEEPING, error, f"{_HOUSEKEEPING} failed")

    def _attempt(self, task: str, call: Callable[[AnyConnection], timedelta]) -> timedelta:
        """Call a task, and catch all its exceptions. Returns how long until it should be done again."""
        is_duty = task in self._maintenance.duties
        try:
            within = _SLOW_ANSWER_WITHIN if is_duty and task not in self._urgent else _ANSWER_WITHIN
            with self._connection(within) as conn:
                wait = call(conn)
            self._outages.worked(log, f"duty {task}", wrote=is_duty)  # a tick may have had nothing to write
            return wait
        except PoolClosed:
            self._on_closed()
            return AFTER_FAILURE
        except Exception as error:
            with suppress(Exception):  # a handler of the log that fails
                self._log_failure(task, error)
        if is_duty:
            try:
                with self._connection() as conn:
                    self._maintenance.postpone(conn, task)
            except psycopg.Error as error:
                log.debug("duty %s could not be postponed: %s", task, one_line(error))
        return AFTER_FAILURE

    def _log_failure(self, task: str, error: Exception) -> None:
        text = f"duty {task} failed and is tried again in {AFTER_FAILURE}"
        if self._maintenance.set_aside.was_logged(error):
            log.debug("%s: %s", text, one_line(error))
        else:
            self._outages.failed(log, f"duty {task}", error, text)

    @contextmanager
    def _connection(self, within: float = _ANSWER_WITHIN) -> Iterator[AnyConnection]:
        self._back_at = time.monotonic() + _ANSWER_WITHIN  # a pool may have to connect
        try:
            with self._source.own_checkout() as checkout, self._guard(checkout), checkout.answered_within(within):
                self._back_at = time.monotonic() + within
                yield checkout.conn
        finally:
            self._back_at = time.monotonic() + _HOUSEKEEPING_EVERY
