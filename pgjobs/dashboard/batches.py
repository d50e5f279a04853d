"""Changes of very many jobs by one click: in transactions of some thousand jobs, each with its row in the audit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pgjobs.dashboard.request import Request
from pgjobs.db.cursors import AnyConnection
from pgjobs.results import ManyJobs

BATCH = 5_000  # jobs of one transaction
MOST_IDS = 1_000  # in one row of the audit
_SECONDS = 8.0  # that a click may take; the user presses again for the rest


def in_batches(
    request: Request, act: str, target: dict[str, Any], change: Callable[[AnyConnection, int], ManyJobs]
) -> tuple[int, bool]:
    """Call `change(tx, most)`, which returns the jobs that it changed, in transactions of its own until it changes
    none, or the time is up. Returns how many were changed in all, and whether there may be more."""
    give_up, changed = time.monotonic() + _SECONDS, 0
    while True:
        with request.acting(act, **target) as action:
            done = change(action.tx, BATCH).done
            action.count = len(done)
            action.target["ids"] = [job.id for job in done[:MOST_IDS]]
        changed += action.count
        if action.count < BATCH:
            return changed, False
        if time.monotonic() > give_up:
            return changed, True
