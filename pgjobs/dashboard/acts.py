"""The actions of the dashboard: their names in the audit, and what the page says after them."""

from __future__ import annotations

import re

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
}
_DONE = re.compile(r"([a-z-]{1,40})\.(\d{1,12})\.(\d{1,12})", re.ASCII)


def done_text(done: str) -> str | None:
    """What was done, by the `done` of a URL, as in `cancel-jobs.5.1`; None if it is no such text. No other text can get
    onto the page by a URL."""
    match = _DONE.fullmatch(done)
    if match is None or match[1] not in ACTS:
        return None
    noun, verb = ACTS[match[1]]
    changed, skipped = int(match[2]), int(match[3])
    text = f"{changed:,} {noun if changed == 1 else noun + 's'} {verb}"
    return f"{text}; {skipped:,} skipped." if skipped else f"{text}."
