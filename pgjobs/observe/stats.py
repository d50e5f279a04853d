"""The figures that `client.stats` reads: attempts by step of time, queue and kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pgjobs import checks
from pgjobs.errors import InvalidFilter, shown
from pgjobs.job_filter import check_instant
from pgjobs.observe.figures import Durations, counts_of

#: Figures are kept so long.
KEEP_FIGURES = timedelta(days=7)
#: Older figures take less room, so that a week can be read in a moment: those of attempts that ended longer ago than
#: OLD or OLDER are kept for each SHORT or LONG period, as if they had ended when it began.
OLD, SHORT = timedelta(hours=6), timedelta(minutes=5)
OLDER, LONG = timedelta(days=2), timedelta(hours=1)
#: What figures may be split by, besides the time.
FigureGroup = Literal["queue", "kind"]

_GROUPS: tuple[FigureGroup, ...] = ("queue", "kind")
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The attempts that ended in one step of time, of one queue and kind.

    `failed` are all attempts that ended with an error, or whose worker vanished, those of `discarded` jobs included.
    Snoozed attempts, and those that were interrupted by a stop, are not counted as attempts of their job.
    """

    at: datetime  # the beginning of the step
    queue: str | None  # None for all queues
    kind: str | None  # None for all kinds
    completed: int
    failed: int
    discarded: int
    cancelled: int
    snoozed: int
    interrupted: int
    run: Durations  # how long the handlers ran
    wait: Durations  # how long the jobs could have run before they were claimed


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which figures to read. They begin at `since`, or so long `ago`."""

    queue: str | None
    kind: str | None
    since: datetime | None
    ago: timedelta | None
    step: timedelta | None
    by: tuple[FigureGroup, ...]


def wanted(
    queue: str | None,
    kind: str | None,
    since: object,
    step: timedelta | None,
    by: Iterable[FigureGroup],
) -> Wanted:
    """Check the arguments of `client.stats`, for `since` a timedelta or a datetime; raises InvalidFilter."""
    checks.check_text("queue", queue, or_none=True, error=InvalidFilter)
    checks.check_text("kind", kind, or_none=True, error=InvalidFilter)
    checks.check_duration("step", step, or_none=True, unit="minutes", error=InvalidFilter)
    if step is not None and (step < _MINUTE or step % _MINUTE or step > KEEP_FIGURES):
        raise InvalidFilter(f"step must be whole minutes, from 1 minute to 7 days, not {shown(step)}")
    groups = checks.check_list("by", by, "'queue' and 'kind'", error=InvalidFilter)
    for group in groups:
        if group not in _GROUPS:
            raise InvalidFilter(f"by has 'queue' and 'kind', and not {shown(group)}")
    if isinstance(since, datetime):
        check_instant("since", since)
        return Wanted(queue, kind, since, None, step, groups)
    if not isinstance(since, timedelta) or since < timedelta(0):
        raise InvalidFilter(
            "since must be an aware datetime, or a timedelta of zero or more as in timedelta(hours=1), not "
            f"{shown(since)}"
        )
    return Wanted(queue, kind, None, min(since, 2 * KEEP_FIGURES), step, groups)


def figures_of(row: Sequence[Any]) -> Figures:
    """Figures from a row of the statement `figures`."""
    at, queue, kind, completed, failed, discarded, cancelled, snoozed, interrupted, *rest = row
    run_seconds, wait_seconds, run_counts, wait_counts = rest
    return Figures(
        at=at.astimezone(UTC),
        queue=queue or None,
        kind=kind or None,
        completed=completed,
        failed=failed,
        discarded=discarded,
        cancelled=cancelled,
        snoozed=snoozed,
        interrupted=interrupted,
        run=Durations(counts_of(run_counts), run_seconds),
        wait=Durations(counts_of(wait_counts), wait_seconds),
    )
