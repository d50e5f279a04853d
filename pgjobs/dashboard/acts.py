"""The actions of the dashboard: their names in the audit, and what the page says after them."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: By the name in the audit: what is counted, and what was done to it.
ACTS = {
    "cancel-jobs": ("job", "cancelled"),
    "retry-jobs": ("job", "made available again"),
    "delete-jobs": ("job", "deleted"),
    "release-jobs": ("job", "released"),
    "update-jobs": ("job", "changed"),
    "enqueue-jobs": ("job", "enqueued"),
    "pause-queues": ("queue", "paused"),
    "resume-queues": ("queue", "resumed"),
    "update-queues": ("queue", "changed"),
    "pause-schedules": ("schedule", "paused"),
    "resume-schedules": ("schedule", "resumed"),
    "run-schedules": ("schedule", "told to run now"),
    "remove-schedules": ("schedule", "removed"),
    "prune-jobs": ("finished job", "deleted"),
    "start-vacuum": ("table", "being vacuumed"),
    "vacuum-tables": ("table", "vacuumed"),
}
#: The reason for which jobs were not found any more, beside those of ManyJobs.
MOVED = "moved"
#: Why jobs are left as they are; see ManyJobs.
REASONS = {
    "running": "running at the moment",
    "locked": "held by another transaction",
    "conflict": "with a unique key that another job has now",
    "unfit": "not discarded, or without attempts that they would get",
    "referenced": "referred to by a row of the application",
    "refused": "refused by a trigger, rule or value of the application",
    MOVED: "deleted or in another state since they were counted",
}
_DONE = re.compile(r"([a-z-]{1,40})\.(\d{1,12})\.(\d{1,12})((?:\.[a-z]{1,12}-\d{1,12}){0,9})", re.ASCII)


def done_value(act: str, changed: int, skipped: int, reasons: Mapping[str, int]) -> str:
    """What was done, for a URL: as in `cancel-jobs.5.1`, or with the reasons `cancel-jobs.5.1.locked-1`."""
    return "".join([f"{act}.{changed}.{skipped}", *(f".{reason}-{jobs}" for reason, jobs in reasons.items() if jobs)])


def done_text(done: str) -> str | None:
    """What was done, in words; None if it is no such text. No other text can get onto the page by a URL."""
    match = _DONE.fullmatch(done)
    if match is None or match[1] not in ACTS:
        return None
    reasons = [part.split("-") for part in match[4].split(".")[1:]]
    if any(reason not in REASONS for reason, _ in reasons):
        return None
    noun, verb = ACTS[match[1]]
    changed, skipped = int(match[2]), int(match[3])
    text = f"{changed:,} {noun if changed == 1 else noun + 's'} {verb}"
    if reasons:
        left = ", ".join(f"{int(jobs):,} {REASONS[reason]}" for reason, jobs in reasons)
        return f"{text}; left as they were: {left}."
    return f"{text}; {skipped:,} skipped." if skipped else f"{text}."
