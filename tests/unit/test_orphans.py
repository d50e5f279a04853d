"""How often a claim is looked for whose answer never came."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest

from pgjobs import WorkMap
from pgjobs.execution import claimer as claiming
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.queries import ExecutionQueries


def test_it_is_looked_for_at_once_then_ever_more_seldom_and_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many claims come meanwhile: each of them looks whether it is time."""
    now, looks = 100.0, list[float]()
    monkeypatch.setattr(claiming, "time", SimpleNamespace(monotonic=lambda: now))
    claimer = Claimer(ExecutionQueries("pgjobs"), WorkMap({"any": lambda tx, job: None}), worker="w")
    claimer.queries = Mock(ExecutionQueries)
    claimer.queries.release_claim.side_effect = lambda *args, **options: looks.append(now)
    claimer._orphan("q", uuid4())
    conn: Any = None
    for _ in range(6000):
        claimer.take_back_orphans(conn)
        now += 0.01
    pauses = [later - earlier for earlier, later in pairwise(looks)]
    assert looks[0] == 100.0
    assert pauses[:5] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8], abs=0.02)
    assert pauses[5:] == pytest.approx([1.0] * len(pauses[5:]), abs=0.02)
    assert looks[-1] == pytest.approx(130, abs=2)


def test_it_is_looked_for_until_it_was_found() -> None:
    claimer = Claimer(ExecutionQueries("pgjobs"), WorkMap({"any": lambda tx, job: None}), worker="w")
    claimer.queries = Mock(ExecutionQueries)
    claimer.queries.release_claim.return_value = True
    claimer._orphan("q", uuid4())
    conn: Any = None
    for _ in range(3):
        claimer.take_back_orphans(conn)
    claimer.queries.release_claim.assert_called_once()
