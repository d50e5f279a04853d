"""One child, as its parent sees it."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

from pgjobs.processes import notify
from pgjobs.processes.messages import Channel, Command, Report, State
from pgjobs.processes.settings import ChildSettings

#: Seconds beyond its stop timeout after which a child that has not ended is killed. The stop of a pool may take two of
#: them, and the end of the process the others.
STOP_GRACE = 4.0
#: Seconds after which it is killed once its pool has stopped: it has no more jobs. It limits itself to one and a half,
#: but Python may take long to end where it gets little of a processor. The second is for one that its parent does not
#: wait for.
EXIT_GRACE, LATE_EXIT = 2.0, 20.0
#: A child that is ready reports every two seconds.
SILENT_AFTER = 15.0


class ChildProcess:
    """A child that was started, until it has ended."""

    def __init__(self, number: int, settings: ChildSettings) -> None:
        self.number = number
        self.report = Report(state=State.LOADING)
        self.started_at = self.changed_at = self.reported_at = time.monotonic()  # the second: of its state
        self.ready_at: float | None = None
        self.stop_timeout: float | None = 0.0  # None: without limit; a child that never was ready ends at once
        self.killed_because: str | None = None
        self._has_reported = False
        self.waits_for: str | None = None  # as the log has it
        self._stop_asked_at: float | None = None
        self._cut_off_at: float | None = None
        self._stopped_at: float | None = None  # its pool
        self.announced = self.announced_stop = False  # in the log: that it is ready, that it stops
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pgjobs.processes.child", str(theirs.fileno()), settings.target],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={name: value for name, value in os.environ.items() if name not in notify.VARIABLES},
                process_group=0,  # Ctrl-C in the terminal goes to the parent alone, not to programs that handlers start
            )
        self.channel.send(settings.to_json())
        ours.setblocking(False)

    def __str__(self) -> str:
        return f"process {self.number} (pid {self.pid})"

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """As of a shell: 128 and the signal if one killed it, unless it had no jobs. None while it runs."""
        code = self._process.poll()
        if code is not None and code < 0 and not self.may_have_jobs:
            return self.report.code
        return code if code is None or code >= 0 else 128 - code

    @property
    def may_have_jobs(self) -> bool:
        """Whether its pool may run, as far as the parent knows."""
        return self.report.state in (State.STARTING, State.READY, State.STOPPING)

    def how_it_ended(self) -> str:
        code = self._process.returncode
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"exited with code {code}"

    def new_reports(self) -> list[Report]:
        """The reports that have arrived. `report` is then the last of them."""
        reports: list[Report] = []
        with suppress(EOFError):
            while received := self.channel.receive():
                reports += map(Report.from_json, received)
        for report in reports:
            now = time.monotonic()
            if report.state != self.report.state or not self._has_reported:
                self.changed_at = now
            self._has_reported = True
            if report.state is State.READY:
                self.ready_at = self.ready_at or now
                self.stop_timeout = report.stop_timeout
            elif report.state is State.STOPPED:
                self._stopped_at = now
            self.report, self.reported_at = report, now
        return reports

    def stop(self) -> None:
        """Ask it to stop; `kill_at` is then when it must have ended."""
        if self._stop_asked_at is None:
            self._stop_asked_at = time.monotonic()
            self.channel.send(Command.STOP)

    def cut_off(self) -> None:
        self._cut_off_at = time.monotonic()
        self.channel.send(Command.CUT_OFF)

    @property
    def kill_at(self) -> float:
        """When it is killed if it has not ended, by the monotonic clock. The parent may learn of its stop timeout after
        it has asked it to stop: a child that was about to become ready then runs jobs already."""
        asked, stopped = self._stop_asked_at, self._stopped_at
        latest = math.inf if stopped is None else stopped + (LATE_EXIT if asked is None else EXIT_GRACE)
        if self._cut_off_at is not None:
            return min(latest, self._cut_off_at + STOP_GRACE)
        if asked is None or self.stop_timeout is None:
            return latest
        return min(latest, asked + self.stop_timeout + STOP_GRACE)

    def kill(self, why: str) -> None:
        self.killed_because = why
        self._process.kill()

    @property
    def silent(self) -> bool:
        """Whether it does not report although it should, if it is ready."""
        return time.monotonic() - self.reported_at > SILENT_AFTER

    def problem(self) -> str | None:
        """Why it does not work; None if it works."""
        report = self.report
        if report.state is not State.READY:
            link = " for " if report.state is State.WAITING else ": "
            return f"{report.state}{link}{report.reason}" if report.reason else str(report.state)
        if self.silent:
            return f"it has not reported for {time.monotonic() - self.reported_at:.0f} s"
        return report.reason if not report.healthy else None

    def close(self) -> None:
        self.channel.close()
