"""The storm in small; `make storm` is the whole of it."""

from __future__ import annotations

import pytest

import pgjobs
from tests.faults.storm import Plan, run

SCHEDULES = 10 if hasattr(pgjobs, "Schedule") else 0


LONG = (60.0, 3)
SOURCES = [("own", 1), ("own", 20), ("plain", 1), ("plain", 20), ("sqlalchemy", 1), ("django", 1)]


@pytest.mark.parametrize(
    ("seconds", "restarts", "source", "batch_size"),
    [
        *((3.0, 1, *source) for source in SOURCES[:2]),
        *(pytest.param(*LONG, *source, marks=[pytest.mark.slow, pytest.mark.timeout(240)]) for source in SOURCES),
    ],
)
def test_f2_a_storm_of_kills_and_crashes_loses_and_doubles_nothing(
    seconds: float, restarts: int, source: str, batch_size: int
) -> None:
    """What it may take is not asserted here: the machine may be busy with others."""
    jobs = int(40 * seconds)
    plan = Plan(
        seconds=seconds,
        jobs=jobs,
        restarts=restarts,
        schedules=SCHEDULES,
        window=10,
        late=20,
        batch_size=batch_size,
        source=source,
    )
    verdict = run(plan)
    print(verdict)
    assert verdict.broken == []
