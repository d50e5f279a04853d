"""`pgjobs work` is stopped as a platform does it, with the real times: SIGTERM, and SIGKILL half a minute later."""

from __future__ import annotations

import os
import secrets
import signal
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgjobs import Client, Job
from tests.acceptance.test_work_stop import assert_given_back, can_unshare
from tests.acceptance.work_command import APP, SOON, Place, Work, children_of, gate, is_alive
from tests.waiting import wait_until

KILLED_AFTER = 30.0  # seconds, by Kubernetes and many others
OPTIONS = ("--processes", "2", "--stop-timeout", "25s")
AS_PROCESS_1 = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


STYLES = ("as Kubernetes does", "as systemd does", "as process 1 without an init")


@dataclass
class Service:
    """A running `pgjobs work`, and its jobs of a minute."""

    style: str
    place: Place
    work: Work
    pids: list[int] = field(default_factory=list)  # of the parent and its children
    running: list[Job[Any]] = field(default_factory=list)
    gated: list[Job[Any]] = field(default_factory=list)  # those among them that end when the gate is opened
    waiting: list[Job[Any]] = field(default_factory=list)

    def enqueue(self, gate: int) -> None:
        """Have as many jobs run as there are threads, and some wait."""
        place, work = self.place, self.work
        work.wait_for(" is ready after ", times=2)
        parent = children_of(work.process.pid)[0] if self.style == STYLES[2] else work.process.pid
        self.pids = [parent, *children_of(parent)]
        self.gated = [place.enqueue("wait for the gate", gate=gate) for _ in range(2)]
        others = [place.enqueue("compute"), place.enqueue("compute"), place.enqueue("compute", queue="mail")]
        self.running = [*self.gated, *others]
        wait_until(lambda: all(map(place.starts, self.running)), SOON)
        self.waiting = [place.enqueue("compute") for _ in range(3)]

    def terminate(self) -> None:
        for pid in self.pids if self.style == STYLES[1] else self.pids[:1]:
            os.kill(pid, signal.SIGTERM)

    def kill(self) -> list[int]:
        """As a platform does that has waited for long enough. Returns the workers that it finds."""
        found = list(filter(is_alive, self.pids[1:]))
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        if self.work.process.poll() is None:
            self.work.process.kill()
            found.append(self.work.process.pid)
        return found


def start(ends: ExitStack, dsn: str, directory: Path, style: str) -> Service:
    client = ends.enter_context(Client(dsn, schema=f"test_{secrets.token_hex(4)}"))
    client.migrate()
    directory.mkdir()
    place = Place(directory, dsn, client, ends.enter_context(psycopg.connect(dsn, autocommit=True)))
    place.make_tables()
    place.write(APP)
    before = AS_PROCESS_1 if style == STYLES[2] else ()
    return Service(style, place, ends.enter_context(place.work(*OPTIONS, before=before)))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_sigterm_and_a_sigkill_half_a_minute_later_lose_no_attempt(fresh_database: str, tmp_path: Path) -> None:
    styles = STYLES if can_unshare() else STYLES[:2]
    with ExitStack() as ends:
        number, open_gate = ends.enter_context(gate(partial(psycopg.connect, fresh_database)))
        services = [start(ends, fresh_database, tmp_path / style, style) for style in styles]
        for service in services:
            service.enqueue(number)
        stopped_at = time.monotonic()
        for service in services:
            service.terminate()
        with suppress(AssertionError):
            wait_until(lambda: all(service.work.process.poll() is not None for service in services), KILLED_AFTER)
        took = time.monotonic() - stopped_at
        found = {service.style: service.kill() for service in services}
        for service in services:
            place, log = service.place, service.work.log
            assert_given_back(place, *service.running, *service.waiting)
            assert [len(place.starts(job)) for job in service.running] == [1] * 5
            assert [len(place.starts(job)) for job in service.waiting] == [0] * 3
            assert log.count("cut off, it does not count") == 5, log
            assert "is not written" not in log, log
            assert " ERROR " not in log, log
        assert not any(found.values()), f"the SIGKILL has found {found}"
        assert [service.work.process.returncode for service in services] == [0] * len(services)
        assert took > 25, "the jobs had their time"
        open_gate()
        for service in services:
            finish_elsewhere(service)


def finish_elsewhere(service: Service) -> None:
    """The next process runs the jobs, and the first start of each has left nothing."""
    place = service.place
    for job in [*service.running[2:], *service.waiting]:
        place.client.cancel(job.id)
    with place.work() as work:
        wait_until(lambda: place.completed(*service.gated), SOON)
        assert work.stop() == 0
    for job in service.gated:
        assert place.job(job).attempt == 1
        assert place.effects(job) == [1]
        assert [attempt for attempt, _ in place.starts(job)] == [1, 1]
