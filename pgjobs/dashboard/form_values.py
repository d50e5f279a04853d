"""Values that people type into forms: instants, JSON objects, whole numbers. An empty text is no value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pgjobs import codec
from pgjobs.dashboard.problem import Problem
from pgjobs.errors import UndecodableArgs, shown
from pgjobs.job_filter import BIGGEST_ID, SMALLEST_ID
from pgjobs.options import FIRST_INSTANT, LAST_INSTANT

_LENGTH = re.compile(r"([+-]?)(\d{1,9}(?:\.\d{1,6})?) ?(s|min|m|h|d)", re.ASCII)
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_NUMBER = re.compile(r"-?\d{1,19}", re.ASCII)


class InvalidInput(Problem):
    """A value in a form cannot be used."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(400, f"{name}: {text}", "Go back, and correct it.")


def instant(name: str, text: str, now: datetime, *, past: bool) -> datetime | None:
    """An instant: a date or time in UTC unless it has an offset, or a length of time from now. `past`: a length without
    a sign is in the past."""
    text = text.strip()
    if not text:
        return None
    try:
        match = _LENGTH.fullmatch(text)
        if match is not None:
            length = timedelta(seconds=float(match[2]) * _UNITS[match[3]])
            when = now - length if match[1] == "-" or (past and not match[1]) else now + length
        else:
            given = datetime.fromisoformat(text)
            when = (given if given.tzinfo else given.replace(tzinfo=UTC)).astimezone(UTC)
        if FIRST_INSTANT <= when < LAST_INSTANT:
            return when
    except (ValueError, OverflowError):
        pass
    raise InvalidInput(name, f"write a time such as 2h or 2026-03-07 12:00 (UTC), not {shown(text)}.")


def json_object(name: str, text: str) -> dict[str, Any] | None:
    """A JSON object, its whole numbers exact."""
    if not text.strip():
        return None
    try:
        return codec.decode_dict(text)
    except UndecodableArgs as error:
        what = str(error).removeprefix("args cannot be read: ")
        raise InvalidInput(name, f'write a JSON object such as {{"id": 5}}. {what}') from None


def number(name: str, text: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    if not _NUMBER.fullmatch(text):
        raise InvalidInput(name, f"write a whole number, not {shown(text)}.")
    return int(text)


def words(text: str) -> list[str] | None:
    """The words of a text, as of tags."""
    return text.split() or None


def newest(values: Mapping[str, str]) -> int:
    """The highest id of a job when the page that asked for a confirmation was made."""
    text = values.get("newest", "")
    digits = text.removeprefix("-")
    is_number = digits.isascii() and digits.isdecimal() and len(digits) < 20
    return max(SMALLEST_ID, min(int(text), BIGGEST_ID)) if is_number else BIGGEST_ID
