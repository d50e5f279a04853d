"""The act `tick`: every process does it for the schedules of the table and for those of its own code.

A schedule's row is its duty, so there is no duty row: what several processes want to tick at once, one of them does.
What the application supplies, args or a `next(after)`, runs before anything is locked, and args in threads of their
own: a function that hangs holds up its own schedule in its own process, and nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from queue import Empty, SimpleQueue

import psycopg

from pgjobs.clean_text import error_text, forget_details, one_line
from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.set_aside import SetAside, concerns_a_row
from pgjobs.loggers import get_logger
from pgjobs.outages import kind_of
from pgjobs.schedule import Schedule, bounded, due
from pgjobs.schedules.args_supplier import Ask, with_answer
from pgjobs.schedules.queries import DueSchedule, Move, ScheduleQueries
from pgjobs.timetable import Ticks, parse

log = get_logger("pgjobs.cron")

BATCH = 10  # schedules that one look takes: promote and a stop wait for no more
LOOK_EVERY = timedelta(seconds=5)  # for changes that no notification told of
_AGAIN = timedelta(milliseconds=1)
_AFTER_FAILURE = 30.0  # seconds that a schedule which cannot tick is left alone at least
_AFTER_COMMON_FAILURE = 5.0  # the same when many cannot, for a cause that may be that of all
_LATELY = 300.0  # seconds for which a tick shows that those which fail are to blame themselves
_ACT = "ticks"  # as it is called where schedules that fail are set aside
_HELD = 0.1  # seconds that one which somebody else holds, or has just moved, is left alone
_LONG = 60.0  # seconds after which a function that supplies args is reported


class Ticker:
    """Ticks what is due. `registered` gives the schedules that the code of this process has, by name."""

    def __init__(
        self,
        queries: ScheduleQueries,
        registered: Callable[[], Mapping[str, Schedule]],
        ask: Ask,
        *,
        wake: Callable[[str], None] = lambda queue: None,
    ) -> None:
        self._queries = queries
        self._registered = registered
        self._ask = ask
        self._wake = wake
        self._aside: dict[str, float] = {}  # schedules that wait for an answer, are held, or failed: until when
        self._failing = SetAside()
        self._ticked_at = -math.inf  # when a tick went through
        self._asked: dict[str, tuple[DueSchedule, Move]] = {}  # what code has not answered yet
        self._answered: SimpleQueue[str] = SimpleQueue()  # filled by other threads
        self._ticks: dict[str, tuple[tuple[str, str], Ticks]] = {}  # parsed, by name

    def tick(self, conn: AnyConnection) -> timedelta:
        """Tick what is due, and run what was asked for; how long until the next."""
        mine = self._registered()
        self._call_back()
        versions = {name: schedule.version for name, schedule in mine.items()}
        wanting, wait = self._look(conn, versions)
        for seen in wanting:
            try:
                self._tick(conn, seen, mine.get(seen.name))
            except Exception as error:  # whatever is wrong with one holds up no other
                self._set_aside(conn, seen.name, error)
            else:
                self._failing.worked(_ACT, seen.name)
        self._failing.say(_ACT)
        if wanting:
            return _AGAIN
        back = min(self._aside.values(), default=math.inf) - time.monotonic()
        return max(_AGAIN, min(LOOK_EVERY if wait is None else wait, timedelta(seconds=min(back, _LONG)), LOOK_EVERY))

    def _look(self, conn: AnyConnection, versions: Mapping[str, int]) -> tuple[list[DueSchedule], timedelta | None]:
        """What wants something now; schedule by schedule where one of the rows stops that."""
        aside = list(self._aside)
        try:
            return self._queries.look(conn, versions, aside, BATCH)
        except Exception as error:
            if isinstance(error, psycopg.Error) and not concerns_a_row(error):
                raise
            names = self._queries.names_of_due(conn, versions, aside, BATCH)
            if not names:
                raise
        wanting: list[DueSchedule] = []
        for name in names:
            try:
                wanting += self._queries.look(conn, versions, aside, 1, only=name)[0]
            except Exception as error:
                self._set_aside(conn, name, error)
        return wanting, _AGAIN

    def answered(self, name: str) -> None:
        """There is an answer for a schedule that waited for one. May be called from any thread."""
        self._answered.put(name)

    def _call_back(self) -> None:
        """Look again at the schedules whose answer has come, and at those whose time aside is over."""
        with suppress(Empty):
            while True:
                self._aside.pop(self._answered.get_nowait(), None)
        now = time.monotonic()
        self._aside = {name: until for name, until in self._aside.items() if until > now}

    def _tick(self, conn: AnyConnection, seen: DueSchedule, schedule: Schedule | None) -> None:
        move = self._asked_for(seen) or self._decide(seen, schedule)
        if move.tick is not None and seen.needs_code:
            assert schedule is not None
            answer = self._ask(schedule, move.tick)
            if answer is None:
                self._asked[seen.name] = (seen, move)
                self._aside[seen.name] = time.monotonic() + _LONG
                return
            move = with_answer(seen, move, answer)
        self._move(conn, seen, move)

    def _asked_for(self, seen: DueSchedule) -> Move | None:
        """What code was asked for when the schedule stood as it does now: the answer is to that, whatever ticks have
        come meanwhile."""
        then, move = self._asked.pop(seen.name, (None, None))
        return move if then is not None and then.state == seen.state else None

    def _decide(self, seen: DueSchedule, schedule: Schedule | None) -> Move:
        ticks = self._ticks_of(seen, schedule)
        if not seen.planned or seen.next_tick_at is None:
            return Move(tick=None, next=bounded(ticks.next(seen.since)))
        if seen.run_now_at is not None:
            return Move(tick=seen.run_now_at, next=seen.next_tick_at, ran_now=True)
        what = due(ticks, seen.next_tick_at, seen.now, seen.catch_up, seen.window)
        if what.missed and not seen.paused:
            log.warning("schedule %s: ticks since %s that came too late are left out", seen.name, seen.next_tick_at)
        tick = None if seen.paused else what.tick
        return Move(tick=tick, next=what.next, counted=tick)

    def _move(self, conn: AnyConnection, seen: DueSchedule, move: Move) -> None:
        moved = self._queries.move(conn, seen, move)
        self._ticked_at = time.monotonic()
        if moved is None:  # another process ticks it, or somebody changes it: not hot for that
            self._aside[seen.name] = time.monotonic() + _HELD
        elif moved.id is not None and moved.queue is not None:
            log.info("schedule %s: job %d for %s", seen.name, moved.id, move.tick)
            self._wake(moved.queue)

    def _ticks_of(self, seen: DueSchedule, schedule: Schedule | None) -> Ticks:
        if seen.spec is None:
            assert schedule is not None
            return schedule.ticks
        key = (seen.spec, seen.zone)
        known = self._ticks.get(seen.name)
        if known is None or known[0] != key:
            known = self._ticks[seen.name] = (key, parse(seen.spec, zone=seen.zone, name=seen.name))
        return known[1]

    def _set_aside(self, conn: AnyConnection, name: str, error: Exception) -> None:
        if kind_of(error) is not None:  # no fault of the schedule: it ticks as soon as that is over
            raise error
        of_database = isinstance(error, psycopg.Error)
        if of_database and not concerns_a_row(error):  # the server's, not the schedule's
            raise error
        now = time.monotonic()
        others_work = not of_database or now - self._ticked_at < _LATELY
        try:
            pause = self._failing.failed(_ACT, name, error, f"schedule {name}", others_work=others_work)
            self._aside[name] = now + max(pause, _AFTER_FAILURE)
        except psycopg.Error:  # as many others: those behind them may tick all the same
            self._aside[name] = now + _AFTER_COMMON_FAILURE
        forget_details(error)
        try:
            self._queries.note_error(conn, name, error_text(error))
        except psycopg.Error as other:
            if not concerns_a_row(other):
                raise
            log.debug("schedule %s: its error is not on record: %s", name, one_line(other))
