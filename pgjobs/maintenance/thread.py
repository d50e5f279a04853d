"""The one thread that repeats the duties."""

from __future__ import annotations

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
from pgjobs.maintenance.duties import (
    AFTER_FAILURE,
    SOON,
    URGENT,
    Maintenance,
)
from pgjobs.outages import Outages

log = get_logger("pgjobs.maintenance")

_BESIDE_EVERY = 1.0  # seconds
_BESIDE = "looking for jobs to cancel, and saying that this process is there,"
_ANSWER_WITHIN = 40.0  # seconds for what is quick; the server gives each statement 30
_SLOW_ANSWER_WITHIN = 600.0  # for duties of many statements


class MaintenanceThread:
    """Repeats the duties until it is stopped."""

    def __init__(
        self,
        maintenance: Maintenance,
        source: PoolSource,
        *,
        name: str,
        beside: Callable[[AnyConnection], None] = lambda conn: None,
        tick: Callable[[AnyConnection], timedelta] = lambda conn: duties.AT_LEAST_EVERY,
        at_end: Callable[[], None] = lambda: None,
        over: Callable[[Checkout], AbstractContextManager[object]] = lambda checkout: nullcontext(),
        is_told: Callable[[], bool] = lambda: True,
        outages: Outages | None = None,
        on_closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._maintenance = maintenance
        self._acts: dict[str, Callable[[AnyConnection], timedelta]] = {
            **{duty: partial(maintenance.do, duty=duty) for duty in maintenance.duties},
            "tick": tick,  # no duty of one process: each looks after the schedules that it has
        }
        self._hurried: SimpleQueue[str] = SimpleQueue()
        self._exact: set[str] = set()  # acts that have said for which moment there is something to do
        self._source = source
        self._beside = beside  # what concerns this process alone; called every second, and when called for
        self._at_end = at_end
        self._over = over  # watches over a connection
        self._on_closed = on_closed  # called when the source has no connections any more
        self._is_told = is_told  # whether it hears of jobs that are due soon
        self._outages = outages or Outages()
        self._called = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._repeat, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Stop after the act under way. Waits for nothing."""
        self._stopping = True
        self._called.set()

    def stop(self, timeout: float | None = None) -> bool:
        """Stop after the act under way. Says whether the thread has ended."""
        self.end()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether this is asked on the thread itself, by a hook."""
        return self._thread is threading.current_thread()

    def call(self) -> None:
        """Something is to be looked at now."""
        self._called.set()

    def hurry(self, act: str) -> None:
        """There may be something for this act before its time. May be called from any thread."""
        self._hurried.put(act)
        self._called.set()

    def _repeat(self) -> None:
        due = dict.fromkeys(self._acts, 0.0)
        while not self._stopping:
            hurried = self._taken_hurries()
            due.update(dict.fromkeys(hurried, 0.0))
            ready = [duty for duty, when in due.items() if when <= time.monotonic()]
            sure = hurried | self._exact  # for these a look would only take time
            in_vain = self._in_vain(set(ready) - sure) - sure
            pause = duties.GLANCE_EVERY if self._is_told() else duties.AT_LEAST_EVERY
            due.update(dict.fromkeys(in_vain, time.monotonic() + pause.total_seconds()))
            for duty in ready:
                if duty not in in_vain and not self._stopping:
                    due[duty] = time.monotonic() + self._next(duty).total_seconds()
            self._look_beside()
            self._called.wait(max(0.0, min(*due.values(), time.monotonic() + _BESIDE_EVERY) - time.monotonic()))
            self._called.clear()
        with suppress(Exception):  # the rows of those who could not take their leave age out
            self._at_end()

    def _next(self, duty: str) -> timedelta:
        """Do an act; when to do it again."""
        after = self._attempt(duty, self._acts[duty])
        (self._exact.add if after < duties.AT_LEAST_EVERY else self._exact.discard)(duty)
        return after

    def _in_vain(self, ready: set[str]) -> set[str]:
        """Those of the acts that would find nothing, ready or not, so that an idle queue costs one look."""
        if not ready.intersection(URGENT):
            return set()
        try:
            with self._connection() as conn:
                return set(URGENT) - self._maintenance.glance(conn)
        except psycopg.Error:  # the acts will say what is wrong
            return set()

    def _taken_hurries(self) -> set[str]:
        hurried = set()
        with suppress(Empty):
            while True:
                hurried.add(self._hurried.get_nowait())
        if "promote" in hurried:
            self._attempt("promote", self._hurry_promote)
        return hurried

    def _hurry_promote(self, conn: AnyConnection) -> timedelta:
        self._maintenance.hurry(conn)
        return SOON

    @contextmanager
    def _connection(self, duty: str = "") -> Iterator[AnyConnection]:
        within = _ANSWER_WITHIN if duty in ("", "promote", "rescue", "tick") else _SLOW_ANSWER_WITHIN
        with self._source.own_checkout() as checkout, self._over(checkout), checkout.answered_within(within):
            yield checkout.conn

    def _look_beside(self) -> None:
        try:
            with self._connection() as conn:
                self._beside(conn)
            self._outages.worked(log, _BESIDE)
        except PoolClosed:
            self._on_closed()
        except Exception as error:
            with suppress(Exception):
                self._outages.failed(log, _BESIDE, error, f"{_BESIDE} failed")

    def _attempt(self, duty: str, act: Callable[[AnyConnection], timedelta]) -> timedelta:
        """Do one act, whatever may come of it; when to try it again."""
        try:
            with self._connection(duty) as conn:
                after = act(conn)
            # a tick may have found nothing to do, and written nothing
            self._outages.worked(log, f"duty {duty}", wrote=duty in self._maintenance.duties)
            return after
        except PoolClosed:
            self._on_closed()
            return AFTER_FAILURE
        except Exception as error:  # the thread outlives every error of the database
            with suppress(Exception):  # a handler of the log that fails
                text = f"duty {duty} failed and is tried again in {AFTER_FAILURE}"
                if self._maintenance.aside.was_said(error):
                    log.debug("%s: %s", text, one_line(error))
                else:
                    self._outages.failed(log, f"duty {duty}", error, text)
        if duty not in self._maintenance.duties:
            return AFTER_FAILURE
        try:
            with self._connection() as conn:
                self._maintenance.postpone(conn, duty)
        except psycopg.Error as error:
            log.debug("duty %s could not be postponed: %s", duty, one_line(error))
        return AFTER_FAILURE
