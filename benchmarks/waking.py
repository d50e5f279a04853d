"""What waking costs those who enqueue, as a table of the two benchmarks; wake.py measures it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report import Question
from benchmarks.wake import NOTHING, measure_commits

_SECONDS = 2.0  # of one run


def commits(dsn: str, schema: str, clients: Sequence[int], rounds: int, disk: str) -> Question:
    """Enqueuing commits a second, by who works meanwhile; the schema has been migrated."""
    question = Question(f"wake, {disk}", f"Enqueuing commits, {disk}", "commits/s")
    for row in measure_commits(dsn, schema, clients, _SECONDS, rounds):
        for arm, rates in row.rates.items():
            over = [f"{NOTHING}, {row.clients} clients"] if arm != NOTHING else []
            question.tell(f"{arm}, {row.clients} clients", *rates, over=over)
    return question
