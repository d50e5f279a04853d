"""The storm in small; `make storm` is the whole of it."""

from __future__ import annotations

import pytest

import pgjobs
from tests.faults.storm import Plan, run

SCHEDULES = 10 if hasattr(pgjobs, "Schedule") else 0


@pytest.mark.parametrize("batch_size", [1, 20])
@pytest.mark.parametrize(
    ("seconds", "restarts"),
    [(3.0, 1), pytest.param(60.0, 3, marks=[pytest.mark.slow, pytest.mark.timeout(240)])],
)
def test_f2_a_storm_of_kills_and_crashes_loses_and_doubles_nothing(
    seconds: float, restarts: int, batch_size: int
) -> None:
    """What it may take is not asserted here: the machine may be busy with others."""
    jobs = int(40 * seconds)
    verdict = run(
        Plan(seconds=seconds, jobs=jobs, restarts=restarts, schedules=SCHEDULES, late=20, batch_size=batch_size)
    )
    print(verdict)
    assert verdict.broken == []
