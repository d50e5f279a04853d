"""A check of the doctor: its name, its function and what that finds; and how numbers and names stand in findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from pgjobs.clean_text import one_line
from pgjobs.interval import span_text
from pgjobs.observe.doctor.finding import Finding, Severity
from pgjobs.observe.doctor.queries import Look


class Problem(NamedTuple):
    severity: Severity
    what: str
    advice: str


def notice(what: str, advice: str) -> Problem:
    return Problem(Severity.NOTICE, what, advice)


def warning(what: str, advice: str) -> Problem:
    return Problem(Severity.WARNING, what, advice)


def critical(what: str, advice: str) -> Problem:
    return Problem(Severity.CRITICAL, what, advice)


@dataclass(frozen=True, slots=True)
class Check:
    """One check. `fine` says what is so if it finds nothing, `why` why its findings matter."""

    name: str
    fine: str
    why: str
    find: Callable[[Look], Iterator[Problem]]
    needs_tables: bool = True

    def finding(self, problem: Problem) -> Finding:
        return Finding(self.name, problem.severity, problem.what, self.why, problem.advice)

    @property
    def ok(self) -> Finding:
        return Finding(self.name, Severity.OK, self.fine, self.why, "")


def by_age(seconds: float, *, warning: timedelta, critical: timedelta) -> Severity:
    """How urgent something is that is so old: a notice until it is as old as a warning."""
    if seconds >= critical.total_seconds():
        return Severity.CRITICAL
    return Severity.WARNING if seconds >= warning.total_seconds() else Severity.NOTICE


def span(seconds: float) -> str:
    """A duration as text, such as 5m12s."""
    return str(span_text(timedelta(seconds=min(max(seconds, 0.0), 1e12))))


def size(number: float) -> str:
    """A number of bytes as text."""
    for unit in ("bytes", "kB", "MB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GB"


def count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def name(text: object) -> str:
    """A name of the database, quoted, with characters that could be mistaken for something else escaped."""
    return f"'{one_line(text, 100)}'"
