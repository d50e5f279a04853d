"""Whether the machine does something else while it is measured. On Linux; elsewhere it is not known."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psycopg

_TICKS = os.sysconf("SC_CLK_TCK")
_LOAD = 0.25  # processes that want to run, for each processor; more is not quiet
_OTHERS = 0.05  # the share of the machine that other processes may take
_STOLEN = 0.02  # the same for the host of a virtual machine


def processor_time(process: Path) -> float:
    """Seconds that a process used; by the hundredth of a second where the kernel keeps no better account."""
    try:
        return int((process / "schedstat").read_text().split()[0]) / 1e9
    except OSError:
        user, system = _stat(process)[11:13]
        return (int(user) + int(system)) / _TICKS


def tree_time(*roots: int) -> float:
    """Seconds that these processes used with all that they started, those included that have ended."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents.setdefault(int(_stat(stat.parent)[1]), []).append(int(stat.parent.name))
        except OSError:  # it has just ended
            continue
    seconds, left = 0.0, list(roots)
    while left:
        pid = left.pop()
        left += parents.get(pid, [])
        process = Path("/proc", str(pid))
        try:
            user, system = _stat(process)[13:15]  # of its children that have ended
            seconds += processor_time(process) + (int(user) + int(system)) / _TICKS
        except OSError:
            continue
    return seconds


def _stat(process: Path) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second may hold blanks."""
    return (process / "stat").read_text().rpartition(")")[2].split()


def postmaster(conn: psycopg.Connection[Any]) -> int | None:
    """The process that started our server process, if the server runs on this machine."""
    pid = conn.execute("SELECT pg_backend_pid()").fetchall()[0][0]
    try:
        parent = int(_stat(Path("/proc", str(pid)))[1])
        names = {Path("/proc", str(process), "comm").read_text().strip() for process in (pid, parent)}
    except OSError:
        return None
    return parent if names == {"postgres"} else None


@dataclass(frozen=True)
class Moment:
    """Seconds of processor time so far: of the whole machine, taken by its host, and ours."""

    at: float
    busy: float
    stolen: float
    ours: float

    @classmethod
    def now(cls, server: int | None) -> Self | None:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq, stolen = (int(field) / _TICKS for field in fields[:8])
        roots = {os.getpid(), os.getpid() if server is None or _is_ours(server) else server}
        return cls(time.monotonic(), user + nice + system + irq + softirq, stolen, tree_time(*roots))


def _is_ours(pid: int) -> bool:
    """Whether this process started it, itself or by others."""
    while pid > 1 and pid != os.getpid():
        pid = int(_stat(Path("/proc", str(pid)))[1])
    return pid == os.getpid()


class Quiet:
    """Watches the machine: look() once before the first round, and after each. `load` is that before the run."""

    def __init__(self, load: float, server: int | None) -> None:
        self._load, self._server = load, server
        self._moments: list[Moment] = []

    def look(self) -> None:
        moment = Moment.now(self._server)
        if moment is not None:
            self._moments.append(moment)

    def warnings(self) -> list[str]:
        processors = os.cpu_count() or 1
        found: list[str] = []
        if self._load > _LOAD * processors:
            found.append(f"the load before the run was {self._load:.1f}, on {processors} processors")
        if self._server is None or len(self._moments) < 2:
            return [
                *found,
                "how much other processes did meanwhile is not known: this is not Linux, or the server is elsewhere",
            ]
        others = self._shares(lambda moment: moment.busy - moment.ours)
        if max(others) > _OTHERS:
            found.append(_said("other processes took", others))
        stolen = self._shares(lambda moment: moment.stolen)
        if max(stolen) > _STOLEN:
            found.append(_said("the host of this virtual machine took", stolen))
        return found

    def _shares(self, used: Callable[[Moment], float]) -> list[float]:
        """Of the machine, for each round."""
        processors = os.cpu_count() or 1
        pairs = zip(self._moments, self._moments[1:], strict=False)
        return [(used(after) - used(before)) / (after.at - before.at) / processors for before, after in pairs]


def _said(what: str, shares: Sequence[float]) -> str:
    worst = max(shares)
    return (
        f"{what} {sum(shares) / len(shares):.0%} of the machine, most in round {shares.index(worst) + 1}: {worst:.0%}"
    )
