"""What waking costs those who enqueue, as a table of the two benchmarks: benchmarks/wake.py measures it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence

from benchmarks.report import Question

_MODULE = "benchmarks.wake"
_NOTHING = "no NOTIFY"
_SECONDS = 2.0  # of one run


def commits(dsn: str, schema: str, clients: Sequence[int], rounds: int, disk: str) -> Question:
    """Enqueuing commits a second, by who works meanwhile; the schema has been migrated."""
    question = Question(f"wake, {disk}", f"Enqueuing commits, {disk}", "commits/s")
    if importlib.util.find_spec(_MODULE) is None:
        question.notes.append("not measured: this version wakes by a NOTIFY in every commit")
        return question
    for row in importlib.import_module(_MODULE).measure_commits(dsn, schema, clients, _SECONDS, rounds):
        for arm, rates in row.rates.items():
            over = [f"{_NOTHING}, {row.clients} clients"] if arm != _NOTHING else []
            question.tell(f"{arm}, {row.clients} clients", *rates, over=over)
    return question
