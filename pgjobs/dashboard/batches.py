"""Changes of very many jobs by one click: in transactions of some thousand jobs, each with its row in the audit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pgjobs.dashboard.acts import done_text, done_value
from pgjobs.dashboard.problem import Problem, problem_of
from pgjobs.dashboard.request import Request
from pgjobs.db.cursors import AnyConnection
from pgjobs.results import ManyJobs

BATCH = 5_000  # jobs of one transaction
MOST_IDS = 1_000  # in one row of the audit
_SECONDS = 8.0  # that a click may take; the user presses again for the rest


class Batch(NamedTuple):
    """What became of the jobs of one transaction. `is_full`: there may be more jobs than it looked at."""

    jobs: ManyJobs
    is_full: bool


class Changed(NamedTuple):
    """What one click has changed in all. `left`: how many jobs were left as they are, by the reason. `more`: the time
    was up."""

    jobs: int
    left: Mapping[str, int]
    more: bool


def in_batches(
    request: Request, act: str, target: dict[str, Any], change: Callable[[AnyConnection, int], Batch]
) -> Changed:
    """Call `change(tx, most)` in transactions of its own until there are no more jobs, or none that can be changed, or
    the time is up. Raises Problem if one fails after others, which stay as they were committed."""
    give_up, changed = time.monotonic() + _SECONDS, 0
    while True:
        try:
            with request.acting(act, **target) as action:
                jobs, is_full = change(action.tx, BATCH)
                left = Counter(jobs.skipped.values())  # a later transaction finds them again
                action.count = len(jobs.done)
                action.target["ids"] = [job.id for job in jobs.done[:MOST_IDS]]
                if left:
                    action.target["left"] = dict(left)
        except Exception as error:
            if changed:
                raise _after(changed, act, problem_of(error)) from error
            raise
        changed += action.count
        if not action.count or not is_full:
            return Changed(changed, left, more=False)
        if time.monotonic() > give_up:
            return Changed(changed, left, more=True)


def _after(changed: int, act: str, problem: Problem) -> Problem:
    """The problem of a transaction, with what was done before it: of itself it says that nothing was changed."""
    done = done_text(done_value(act, changed, 0, {}))
    return Problem(problem.status, problem.text, f"Before that: {done} The others are left as they are.")
