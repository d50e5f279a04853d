"""Figures of attempts: how many ended in which way, how long they ran, and how long their jobs had waited.

The threads of a worker pool count in memory (AttemptFigures). workers/figures_writer.py adds the counts to the table
`figure`, from which `client.stats` reads them.

Durations are counted in buckets, which can be added up: over threads, processes, kinds and minutes. A percentile is the
middle of its bucket. The bounds of a bucket are at most a quarter apart, so it is at most 12 % off; below 1 ms it is at
most half a millisecond off; a duration above 11 days counts as one of 11 days. The mean is exact.
"""

from __future__ import annotations

import math
import threading
from array import array
from bisect import bisect_left
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import zip_longest
from typing import NamedTuple

#: How an attempt may end. Retried and discarded attempts have failed; interrupted ones are not counted as attempts.
OUTCOMES = ("completed", "retried", "discarded", "cancelled", "snoozed", "interrupted")
#: The kind under which attempts are counted when a process has met too many kinds that it has no handler for.
OTHER_KINDS = "(others)"
#: The same for queues whose jobs were rescued, and which this process does not work.
OTHER_QUEUES = OTHER_KINDS

_STEPS = (1, 1.2, 1.5, 1.8, 2.2, 2.5, 3, 3.6, 4.3, 5, 6, 7.5, 9)
#: The bounds of the buckets in seconds: a bucket holds the durations up to its bound, and one more those above.
BOUNDS = (*(float(f"{step}e{power}") for power in range(-3, 6) for step in _STEPS), 1e6)
_MOST_OTHER_KINDS = 20
_MOST_OTHER_QUEUES = 200

_DIGITS = 12  # of the count of one bucket, in the number that has all of them
_NONE = "0" * _DIGITS


@dataclass(frozen=True, slots=True)
class Durations:
    """Durations, counted in buckets. `counts` has a number for each of BOUNDS, and one for what is above; zeros at its
    end are left out. `total` is their sum in seconds."""

    counts: tuple[int, ...] = ()
    total: float = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> timedelta | None:
        """None if there are no durations."""
        count = self.count
        return timedelta(seconds=max(self.total, 0.0) / count) if count else None

    @property
    def p50(self) -> timedelta | None:
        """The median."""
        return self.percentile(50)

    @property
    def p95(self) -> timedelta | None:
        return self.percentile(95)

    @property
    def p99(self) -> timedelta | None:
        return self.percentile(99)

    def percentile(self, percent: float) -> timedelta | None:
        """The duration that so many percent do not exceed, give or take 12 %; None if there are no durations."""
        rank, below = max(1, math.ceil(self.count * percent / 100)), 0
        for bucket, count in enumerate(self.counts):
            below += count
            if below >= rank:
                return timedelta(seconds=_middle(bucket))
        return None

    def plus(self, other: Durations, sign: int = 1) -> Durations:
        sums = [one + sign * two for one, two in zip_longest(self.counts, other.counts, fillvalue=0)]
        return Durations(_trimmed(sums), self.total + sign * other.total)


NO_DURATIONS = Durations()


class FigureKey(NamedTuple):
    """What is counted apart. The outcome is one of OUTCOMES."""

    queue: str
    kind: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Tally:
    """Attempts of one key. An attempt whose worker vanished counts, but its run time is not known; `lost` is the
    number of these."""

    attempts: int = 0
    run: Durations = NO_DURATIONS
    wait: Durations = NO_DURATIONS
    lost: int = 0

    def plus(self, other: Tally, sign: int = 1) -> Tally:
        return Tally(
            self.attempts + sign * other.attempts,
            self.run.plus(other.run, sign),
            self.wait.plus(other.wait, sign),
            self.lost + sign * other.lost,
        )


class _Counts:
    """What one thread has counted of one key. The arrays have the counts of buckets, up to the highest one that is
    used: a process may have 200 threads with 50 kinds each."""

    __slots__ = ("lost", "run", "run_seconds", "wait", "wait_seconds")

    def __init__(self) -> None:
        self.run, self.wait = array("Q"), array("Q")
        self.run_seconds = self.wait_seconds = 0.0
        self.lost = 0

    def add(self, other: _Counts) -> None:
        self.run, self.wait = _sums(self.run, other.run), _sums(self.wait, other.wait)
        self.run_seconds += other.run_seconds
        self.wait_seconds += other.wait_seconds
        self.lost += other.lost

    def as_tally(self) -> Tally:
        run, wait = Durations(_trimmed(self.run), self.run_seconds), Durations(_trimmed(self.wait), self.wait_seconds)
        return Tally(run.count + self.lost, run, wait, self.lost)


class AttemptFigures:
    """Counts the attempts of one worker pool, from its start on. `known` are the kinds that it has handlers for: each
    is counted apart. Of other kinds only the first 20 are, since a job may have any kind. It rescues jobs of any queue:
    of those that it does not work, only the first 200 are counted apart.

    Each thread counts for itself, without a lock, which would take a third of the time of a count.
    """

    def __init__(self, known: Container[str] = ()) -> None:
        self._known = known
        self.reset_for_process()

    def reset_for_process(self) -> None:
        """Start from zero: called for a new pool, and in a forked child."""
        self._local = threading.local()
        self._lock = threading.Lock()  # not held by `record`, but for the first attempt of a kind
        self._other_kinds: set[str] = set()
        self._other_queues: set[str] = set()
        self._worked_queues: set[str] = set()
        self._threads: list[tuple[threading.Thread, dict[FigureKey, _Counts]]] = []
        self._ended: dict[FigureKey, _Counts] = {}  # the sums of threads that have ended

    def record(self, queue: str, kind: str, outcome: str, wait_seconds: float, run_seconds: float) -> None:
        """Count an attempt that has ended."""
        try:
            counts = self._local.by_key[queue, kind, outcome]
        except (AttributeError, KeyError):
            with self._lock:
                self._worked_queues.add(queue)
            counts = self._counts(queue, kind, outcome)
        run, wait = bisect_left(BOUNDS, run_seconds), bisect_left(BOUNDS, wait_seconds)
        try:
            counts.run[run] += 1
        except IndexError:
            _count_first(counts.run, run)
        try:
            counts.wait[wait] += 1
        except IndexError:
            _count_first(counts.wait, wait)
        counts.run_seconds += run_seconds
        counts.wait_seconds += wait_seconds

    def record_lost(self, queue: str, kind: str, outcome: str) -> None:
        """Count an attempt whose worker vanished."""
        with self._lock:
            if queue not in self._worked_queues and queue not in self._other_queues:
                if len(self._other_queues) < _MOST_OTHER_QUEUES:
                    self._other_queues.add(queue)
                else:
                    queue = OTHER_QUEUES
        self._counts(queue, kind, outcome).lost += 1

    def _counts(self, queue: str, kind: str, outcome: str) -> _Counts:
        """The counts of this thread for a key, which are made if need be."""
        with self._lock:
            by_key: dict[FigureKey, _Counts] | None = getattr(self._local, "by_key", None)
            if by_key is None:
                self._fold_ended()  # work_one() may be called on ever new threads
                by_key = self._local.by_key = {}
                self._threads.append((threading.current_thread(), by_key))
            if kind not in self._known and kind not in self._other_kinds:
                if len(self._other_kinds) < _MOST_OTHER_KINDS:
                    self._other_kinds.add(kind)
                else:
                    kind = OTHER_KINDS
            return by_key.setdefault(FigureKey(queue, kind, outcome), _Counts())

    def snapshot(self) -> dict[FigureKey, Tally]:
        """The sums since the start. They only grow. An attempt that ends meanwhile may be counted in part."""
        sums: dict[FigureKey, _Counts] = {}
        with self._lock:  # no thread adds a key meanwhile
            self._fold_ended()
            for by_key in (self._ended, *(by_key for _, by_key in self._threads)):
                _add(sums, by_key)
        return {key: counts.as_tally() for key, counts in sums.items()}

    def _fold_ended(self) -> None:
        """Keep of threads that have ended only the sums. The caller holds the lock."""
        running = []
        for thread, by_key in self._threads:
            if thread.is_alive():
                running.append((thread, by_key))
            else:
                _add(self._ended, by_key)
        self._threads = running


def _add(sums: dict[FigureKey, _Counts], by_key: Mapping[FigureKey, _Counts]) -> None:
    for key, counts in by_key.items():
        if key not in sums:
            sums[key] = _Counts()
        sums[key].add(counts)


def _sums(some: array[int], others: array[int]) -> array[int]:
    """The sums of two arrays, as a new one."""
    if not some:
        return others[:]
    return array("Q", [one + two for one, two in zip_longest(some, others, fillvalue=0)])


def _count_first(counts: array[int], bucket: int) -> None:
    """Count in a bucket that the array does not have yet."""
    counts.extend(array("Q", bytes(8 * (bucket + 1 - len(counts)))))
    counts[bucket] += 1


def number_of(counts: Sequence[int]) -> str:
    """The counts of buckets as one number, as the table `figure` keeps them: see 0001_tables.sql. The sum of such
    numbers has the sums of the counts."""
    return "".join(f"{count:0{_DIGITS}d}" for count in reversed(counts)) or "0"


def counts_of(number: str) -> tuple[int, ...]:
    """The counts of which `number_of` has made a number; none for other numbers, which were written by hand."""
    if number == "0" or not number.isdecimal():
        return ()
    number = number.zfill(-(-len(number) // _DIGITS) * _DIGITS)
    each = (number[at : at + _DIGITS] for at in range(len(number) - _DIGITS, -1, -_DIGITS))
    return tuple([0 if digits == _NONE else int(digits) for digits in each])  # a week is read in thousands of these


def _trimmed(counts: Iterable[int]) -> tuple[int, ...]:
    """The counts without the zeros at the end."""
    kept = list(counts)
    while kept and not kept[-1]:
        kept.pop()
    return tuple(kept)


def _middle(bucket: int) -> float:
    """The duration in seconds that stands for all in a bucket."""
    if bucket == 0:
        return BOUNDS[0] / 2
    return math.sqrt(BOUNDS[bucket - 1] * BOUNDS[bucket]) if bucket < len(BOUNDS) else BOUNDS[-1]
