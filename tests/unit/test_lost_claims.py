"""How often a claim is looked for whose answer never came."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest

from pgjobs.execution import lost_claims
from pgjobs.execution.lost_claims import LostClaims
from pgjobs.execution.queries import ExecutionQueries

CONN: Any = None


def test_it_is_looked_for_at_once_then_ever_less_often_and_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each claim in between looks whether it is time."""
    now, looks = 100.0, list[float]()
    monkeypatch.setattr(lost_claims, "time", SimpleNamespace(monotonic=lambda: now))
    queries = Mock(ExecutionQueries)
    queries.unclaim.side_effect = lambda *args, **options: looks.append(now)
    lost = LostClaims(queries)
    lost.add("q", uuid4())
    for _ in range(6000):
        lost.unclaim_due(CONN)
        now += 0.01
    pauses = [later - earlier for earlier, later in pairwise(looks)]
    assert looks[0] == 100.0
    assert pauses[:5] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8], abs=0.02)
    assert pauses[5:] == pytest.approx([1.0] * len(pauses[5:]), abs=0.02)
    assert looks[-1] == pytest.approx(130, abs=2)


def test_it_is_looked_for_until_it_was_found() -> None:
    queries = Mock(ExecutionQueries)
    queries.unclaim.return_value = True
    lost = LostClaims(queries)
    lost.add("q", uuid4())
    for _ in range(3):
        lost.unclaim_due(CONN)
    queries.unclaim.assert_called_once()
