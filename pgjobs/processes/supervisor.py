"""The parent of the worker processes: starts, replaces and stops them, and speaks for all of them.

One thread does everything: it waits for signals, for reports of the children and for the end of one. Each place has one
child at a time; a child that retires (at a limit, or when the code has changed) leaves its place to the next one and
ends its jobs meanwhile.
"""

from __future__ import annotations

import math
import os
import select
import signal
import socket
import time
from contextlib import ExitStack, suppress

from pgjobs.clean_text import one_line
from pgjobs.loggers import Lines, get_logger
from pgjobs.processes.child_process import ChildProcess
from pgjobs.processes.health import Answer, HealthServer
from pgjobs.processes.messages import STOP_SIGNALS, Report, State
from pgjobs.processes.metrics import ProcessMetrics
from pgjobs.processes.notify import Notifier
from pgjobs.processes.places import Place, problems_of, readiness
from pgjobs.processes.reloader import Reloader
from pgjobs.processes.settings import ChildSettings
from pgjobs.processes.unix import reap_orphans, wakeup_socket
from pgjobs.workers.signals import handling

log = get_logger("pgjobs.processes")

_LOOK_EVERY = 0.25  # seconds; signals, reports and ends of children are noticed at once
_LIVE_WITHIN = 30.0  # seconds since the last look, else the parent hangs
_FIRST_PAUSE = 0.5  # seconds before a child that died is replaced; doubles
_LONGEST_PAUSE = 30.0
_CALM = 60.0  # seconds that a child must have worked, so that its death is the first again
_TRIES = 5  # while none was ever ready, so many deaths end the command
_KILL_WITHIN = 5.0  # seconds that a killed child may take to end: the kernel may be waiting for a disk
_TELL_WITHIN = 2.0  # seconds beyond the start timeout, in which a child tells where it hangs
_EXTEND_EVERY = 10.0  # seconds, while systemd waits for READY=1


class Supervisor:
    """The parent process. `run` returns its exit code."""

    def __init__(
        self,
        settings: ChildSettings,
        *,
        processes: int,
        health: tuple[str, int] | None = None,
    ) -> None:
        self._settings = settings
        self._places = [Place(number) for number in range(1, processes + 1)]
        self._retiring: list[ChildProcess] = []
        self._received: list[int] = []  # signals
        self._acted = 0  # on so many of them
        self._code = 0
        self._stopping = self._gave_up = False
        self._ever_ready = False
        self._failed_places: set[int] = set()  # before any child was ready
        self._reloader = Reloader()
        self._looked_at = time.monotonic()
        self._code_looked_at = 0.0
        self._notified_ready = False
        self._next_watchdog = self._next_extension = 0.0
        self._notifier = Notifier(os.environ)
        self._metrics = ProcessMetrics()
        answers = {"/livez": self._livez, "/readyz": self._readyz}
        self._health = None if health is None else HealthServer(*health, answers, self._metrics_text)

    def run(self) -> int:
        with ExitStack() as ends:
            ends.callback(self._notifier.close)
            wakeup = ends.enter_context(wakeup_socket())
            ends.enter_context(handling(STOP_SIGNALS, self._received.append))
            ends.enter_context(handling((signal.SIGCHLD,), lambda number: None))  # which ends a wait
            if self._health is not None:
                self._health.start()
                ends.callback(self._health.stop)
                log.info("health: %s/livez and /readyz", self._health.url)
            ends.callback(self._kill_all)
            self._loop(wakeup)
        if self._gave_up:
            log.error("given up: no process has ever worked, and another try would not help")
        else:
            log.info("stopped")
        return self._code

    def _loop(self, wakeup: socket.socket) -> None:
        log.info("%s: starting %s (pid of the parent: %d)", self._settings.target, self._count(), os.getpid())
        self._start_due()
        while self._children() or not (self._stopping or all(place.done for place in self._places)):
            self._wait(wakeup)
            self._looked_at = time.monotonic()
            if self._act_on_signals():
                return
            for child in self._children():
                self._read(child)
            self._note_ends()
            self._kill_overdue()
            if not self._stopping:
                self._reload()
                self._start_due()
            self._notify()

    def _wait(self, wakeup: socket.socket) -> None:
        """Wait for a signal, a report, or the end of a child."""
        channels = [child.channel for child in self._children()]
        poll = select.poll()
        for each in (wakeup, *(channel.socket for channel in channels if not channel.ended)):
            poll.register(each, select.POLLIN)
        poll.poll(_LOOK_EVERY * 1000)
        with suppress(BlockingIOError):
            wakeup.recv(4096)

    def _children(self) -> list[ChildProcess]:
        return [place.child for place in self._places if place.child is not None] + self._retiring

    def _count(self) -> str:
        number = len(self._places)
        return "1 process" if number == 1 else f"{number} processes"

    # --- starting children

    def _start_due(self) -> None:
        now = time.monotonic()
        for place in self._places:
            if place.child is None and not place.done and place.start_at <= now:
                try:
                    place.child = ChildProcess(place.number, self._settings)
                except OSError as error:  # such as too many processes
                    why = f"cannot be started: {one_line(error)}"
                    self._again_later(place, why, f"process {place.number} {why}")

    def _again_later(self, place: Place, why: str, what: str) -> None:
        pause = min(_FIRST_PAUSE * 2**place.failures, _LONGEST_PAUSE)
        place.failures += 1
        place.trouble = why
        place.start_at = time.monotonic() + pause
        log.warning("%s; another one starts in %g s", what, pause)

    # --- what children report

    def _read(self, child: ChildProcess) -> None:
        for report in child.new_reports():
            self._metrics.note(child, report)
            if report.files is not None:
                self._reloader.watch(report.files)
            if report.state is State.WAITING and report.reason is not None:
                self._note_waiting(child, report.reason)
            elif report.state is State.READY:
                self._note_ready(child)
            elif report.state in (State.STOPPING, State.STOPPED):
                self._note_stopping(child, report)

    def _note_waiting(self, child: ChildProcess, reason: str) -> None:
        """Log what children wait for once, though each of them reports it again and again, with other details."""
        what = reason.partition(":")[0]
        if what != child.waits_for:
            child.waits_for = what
            if not any(other.waits_for == what for other in self._children() if other is not child):
                log.warning("waiting for %s", reason)

    def _note_ready(self, child: ChildProcess) -> None:
        child.waits_for = None
        if child.announced:
            return
        child.announced = True
        self._ever_ready = True
        log.info("%s is ready after %.1f s", child, time.monotonic() - child.started_at)

    def _note_stopping(self, child: ChildProcess, report: Report) -> None:
        if self._stopping or child in self._retiring or child.announced_stop:
            return
        child.announced_stop = True
        place = self._place_of(child)
        if report.replace and place is not None:
            log.info("%s is replaced: %s", child, report.reason)
            self._retire(place)
        else:
            log.info("%s stops: %s", child, report.reason)

    def _place_of(self, child: ChildProcess) -> Place | None:
        return next((place for place in self._places if place.child is child), None)

    def _retire(self, place: Place) -> None:
        """Let the child end its jobs, and another one take its place at once."""
        if place.child is not None:
            self._retiring.append(place.child)
        place.child, place.failures, place.start_at = None, 0, 0.0

    # --- ends of children

    def _note_ends(self) -> None:
        for child in self._children():
            code = child.exit_code()
            if code is None:
                continue
            self._read(child)
            child.close()
            self._metrics.note_end(child)
            if self._stopping and code:
                self._note_code(child, code)
            place = self._place_of(child)
            if place is None:
                self._retiring.remove(child)
                continue
            place.child, place.trouble = None, child.how_it_ended()
            if child.report.done:
                place.done = True
            elif not self._stopping:
                self._note_death(place, child)
        if os.getpid() == 1:
            reap_orphans({child.pid for child in self._children()})

    def _note_code(self, child: ChildProcess, code: int) -> None:
        """A child has not ended well while all stop: so does the parent."""
        self._code = self._code or code
        if child.killed_because is None:
            log.warning("%s %s", child, child.how_it_ended())

    def _note_death(self, place: Place, child: ChildProcess) -> None:
        report = child.report
        failed = report.state is State.FAILED
        how = child.how_it_ended()
        if child.killed_because is not None:
            how = f"was killed: {child.killed_because}"
        elif failed:
            how = f"failed: {report.reason}"
        what = f"{child} {how}"
        if child.ready_at is not None and time.monotonic() - child.ready_at > _CALM:
            place.failures = 0
        self._failed_places.add(place.number)
        if failed and report.trace is not None:
            log.error("%s", Lines(report.trace))
        if failed and self._settings.reload:
            log.error("%s; waiting for a change of the code", what)
            place.trouble, place.start_at = how, math.inf
        elif not self._ever_ready and (failed or self._all_hang(child) or place.failures + 1 >= _TRIES):
            log.error("%s", what)
            self._give_up()
        else:
            self._again_later(place, how, what)

    def _all_hang(self, child: ChildProcess) -> bool:
        """Whether this child was killed because it did not start, and no other one is left that may start."""
        others = [place.child for place in self._places if place.child is not None]
        return child.killed_because is not None and not others

    def _give_up(self) -> None:
        """No child has ever worked, and another try would not help."""
        self._gave_up = True
        self._code = 1
        self._begin_stop()

    # --- children that take too long

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        limit = self._settings.start_timeout
        for child in self._children():
            report = child.report
            if child.killed_because is not None:
                continue
            if now > child.kill_at:
                self._kill_late(child)
            elif report.state in (State.LOADING, State.STARTING) and now - child.changed_at > limit:
                self._kill_if_hanging(child, now - child.changed_at - limit)

    def _kill_late(self, child: ChildProcess) -> None:
        """Kill a child that has not ended in time."""
        if child.may_have_jobs:
            child.kill("it did not stop in time; its jobs are rescued by other processes")
            log.error("%s is killed: %s", child, child.killed_because)
        else:
            child.kill("it does not exit; it runs no jobs")
            log.warning("%s is killed: %s", child, child.killed_because)

    def _kill_if_hanging(self, child: ChildProcess, overdue: float) -> None:
        """Kill a child that did not start in time, once it has told where it hangs, if it can."""
        reason, limit = child.report.reason, self._settings.start_timeout
        if child.report.state is State.STARTING:
            child.kill(f"it did not start its pool within {limit:g} s")
        elif reason is not None:
            child.kill(f"it did not load {self._settings.target} within {limit:g} s: {reason}")
        elif overdue > _TELL_WITHIN:
            child.kill(f"it did not load {self._settings.target} within {limit:g} s")

    def _kill_all(self) -> None:
        for child in self._children():
            child.kill("the parent ends")
        give_up = time.monotonic() + _KILL_WITHIN
        while any(child.exit_code() is None for child in self._children()) and time.monotonic() < give_up:
            time.sleep(0.01)

    # --- signals

    def _act_on_signals(self) -> bool:
        """Returns whether the parent must end at once."""
        while self._acted < len(self._received):
            number = self._received[self._acted]
            self._acted += 1
            name = signal.Signals(number).name
            if self._acted == 1:
                end = "which ends its" if len(self._places) == 1 else "which end their"
                log.info("%s: stopping %s, %s running jobs%s", name, self._count(), end, self._stop_limit())
                self._begin_stop()
            elif self._acted == 2:
                log.warning("a second signal, %s: running handlers are cut off", name)
                self._code = 128 + number
                for child in self._children():
                    child.cut_off()
            else:
                log.warning("a third signal, %s: killing all processes", name)
                self._code = 128 + number
                return True
        return False

    def _stop_limit(self) -> str:
        limits = [child.stop_timeout for child in self._children()]
        longest = max((limit for limit in limits if limit is not None), default=0.0)
        return f" within {longest:g} s" if longest and None not in limits else ""

    def _begin_stop(self) -> None:
        self._stopping = True
        self._notifier.send("STOPPING=1")
        for child in self._children():
            child.stop()

    # --- changes of the code

    def _reload(self) -> None:
        if not self._settings.reload or self._looked_at - self._code_looked_at < 2 * _LOOK_EVERY:
            return
        self._code_looked_at = self._looked_at
        changed = self._reloader.changed()
        if not changed:
            return
        log.info("%s changed: replacing %s", ", ".join(map(os.path.relpath, changed)), self._count())
        for place in self._places:
            if place.child is not None:
                place.child.stop()
            self._retire(place)

    # --- what others are told

    def _notify(self) -> None:
        now, notifier = time.monotonic(), self._notifier
        problems = problems_of(self._places)
        if notifier.watchdog_every is not None and now >= self._next_watchdog:
            notifier.send("WATCHDOG=1")
            self._next_watchdog = now + notifier.watchdog_every
        notifier.status("stopping" if self._stopping else "; ".join(problems) or f"{self._count()} working")
        if self._notified_ready or self._stopping:
            return
        started = [place.child is not None and place.child.ready_at is not None for place in self._places]
        if all(
            ready or place.number in self._failed_places for ready, place in zip(started, self._places, strict=True)
        ):
            self._notified_ready = any(started)
        if self._notified_ready:
            notifier.send("READY=1")
        elif any(child.waits_for for child in self._children()) and now >= self._next_extension:
            notifier.send(f"EXTEND_TIMEOUT_USEC={int(3e6 * _EXTEND_EVERY)}")
            self._next_extension = now + _EXTEND_EVERY

    def _livez(self) -> Answer:
        silent = time.monotonic() - self._looked_at
        return silent < _LIVE_WITHIN, {"live": silent < _LIVE_WITHIN, "pid": os.getpid()}

    def _readyz(self) -> Answer:
        return readiness(self._places, stopping=self._stopping)

    def _metrics_text(self) -> str:
        return self._metrics.text(self._children())
