"""How far a running job has come, as its handler says with `job.set_progress`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from pgjobs.clean_text import is_one_line
from pgjobs.errors import InvalidOption, shown
from pgjobs.interval import instant

MOST = 1e300
NOTE_LIMIT = 200  # characters
_EXACT = 2**53  # a float below this may be a whole number without having been rounded


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running job has come: `done` of `total`, in whatever unit its handler counts."""

    done: float
    total: float | None  # None: the handler does not know, or did not say
    note: str | None
    updated_at: datetime  # when a changed value was last written; aware, by the clock of the database

    @property
    def fraction(self) -> float | None:
        """`done / total`, from 0.0 to 1.0; None without a total. More than the total counts as all of it."""
        if self.total is None:
            return None
        return 1.0 if self.done >= self.total else self.done / self.total


class Report(NamedTuple):
    """What a handler has said of its progress."""

    done: float
    total: float | None
    note: str | None


def report(done: object, total: object, note: object) -> Report:
    """Check what a handler says of its progress; raises InvalidOption."""
    if note is not None and not isinstance(note, str):
        raise InvalidOption(f"note of set_progress must be a str or None, not {shown(note)}")
    if note and (len(note) > NOTE_LIMIT or not is_one_line(note)):
        raise InvalidOption(
            f"note of set_progress must be one line of at most {NOTE_LIMIT} characters, without control characters, "
            f"not {shown(note)} of {len(note)} characters"
        )
    return Report(_number("done", done), None if total is None else _number("total", total), note or None)


def _number(name: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST:
        return float(value)
    raise InvalidOption(f"{name} of set_progress must be a number from 0 to {MOST:g}, not {shown(value)}")


def progress_from(text: str) -> Progress:
    """The progress of a job, from the JSON of the SQL part `progress`."""
    done, total, note, updated_at = json.loads(text)
    return Progress(_plain(done), None if total is None else _plain(total), note, instant(updated_at))


def _plain(number: float) -> float:
    """A whole number as an int, since "3 of 10" reads better than "3.0 of 10.0"."""
    number = float(number)
    return int(number) if number.is_integer() and number < _EXACT else number
