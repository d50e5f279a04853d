"""The places of the children, and what keeps them from working."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pgjobs.processes.child_process import ChildProcess
from pgjobs.processes.health import Answer


@dataclass(slots=True)
class Place:
    """What is to be one working child, always."""

    number: int
    child: ChildProcess | None = None
    failures: int = 0  # one after the other
    start_at: float = 0.0  # by the monotonic clock, if there is no child
    done: bool = False  # no child is needed any more
    trouble: str = "not started yet"  # why there is no child

    def problem(self) -> str | None:
        """Why it does not work; None if it works, or is done."""
        child = self.child
        if self.done:
            return None
        return self.trouble if child is None else child.problem()


def problems_of(places: Sequence[Place]) -> list[str]:
    """What keeps processes from working, as far as is known."""
    found = ((place.number, place.problem()) for place in places)
    return [f"process {number}: {problem}" for number, problem in found if problem is not None]


def readiness(places: Sequence[Place], *, stopping: bool) -> Answer:
    """The answer of /readyz. Called in threads of the health server, while the parent changes the places."""
    problems = (["stopping"] if stopping else []) + problems_of(places)
    return not problems, {"ready": not problems, "problems": problems, "processes": list(map(_described, places))}


def _described(place: Place) -> dict[str, object]:
    child = place.child
    return {
        "process": place.number,
        "pid": None if child is None else child.pid,
        "state": "done" if place.done else "dead" if child is None else str(child.report.state),
        "problem": place.problem(),
    }
