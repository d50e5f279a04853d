"""What a handler may say of its progress, and how that is read."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

import pytest

from pgjobs import InvalidOption, NotRunning, Progress
from pgjobs.progress import MOST, NOTE_LIMIT, Report, progress_from, report
from tests.unit.samples import NOON, a_job


@pytest.mark.parametrize(
    ("done", "total", "fraction"),
    [(0, 10, 0.0), (3, 10, 0.3), (10, 10, 1.0), (11, 10, 1.0), (0, 0, 1.0), (0.5, 0.8, 0.625), (7, None, None)],
)
def test_the_fraction_is_a_part_of_one(done: float, total: float | None, fraction: float | None) -> None:
    assert Progress(done, total, None, NOON).fraction == fraction


@pytest.mark.parametrize("number", [0, 3, 2.5, MOST, int(MOST), sys.float_info.min, 10**18])
def test_every_number_that_is_finite_and_not_negative_is_taken(number: float) -> None:
    assert report(number, number, None) == Report(float(number), float(number), None)


@pytest.mark.parametrize(
    "number", [-1, -0.1, float("nan"), float("inf"), 10**400, True, "3", Decimal(3), Fraction(1, 2), [3], 1j], ids=repr
)
def test_other_numbers_are_refused_by_name_and_value(number: object) -> None:
    for name, values in {"done": (number, 10), "total": (3, number)}.items():
        with pytest.raises(InvalidOption, match=f"^{name} of set_progress must be a number from 0 to ") as refused:
            report(*values, None)
        assert repr(number)[:20] in str(refused.value)


@pytest.mark.parametrize("note", ["page 3", "à 3 %", "line\N{NO-BREAK SPACE}3", "👩\u200d💻", "x" * NOTE_LIMIT])
def test_a_note_is_any_short_line(note: str) -> None:
    assert report(1, None, note).note == note


def test_an_empty_note_is_none() -> None:
    assert report(1, None, "") == report(1, None, None) == Report(1.0, None, None)


@pytest.mark.parametrize(
    "note", ["x" * (NOTE_LIMIT + 1), "a\nb", "a\0b", "a\x1b[2Jb", "a\u202eb", "a\ud800b", b"x", 5], ids=ascii
)
def test_other_notes_are_refused_by_name_and_value(note: object) -> None:
    with pytest.raises(InvalidOption, match="note of set_progress must be ") as refused:
        report(1, None, note)
    assert repr(note)[:20] in str(refused.value)


def test_whole_numbers_are_read_as_such_however_the_server_writes_them() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    microseconds = int(at.timestamp()) * 1_000_000 + 678
    found = progress_from(f'[3, 10.0, "half", {microseconds}]')
    assert found == Progress(3, 10, "half", at)
    assert (str(found.done), str(found.total)) == ("3", "10")
    assert progress_from("[2.5, null, null, 0]") == Progress(2.5, None, None, datetime(1970, 1, 1, tzinfo=UTC))
    assert progress_from(f"[1{'0' * 300}, null, null, 0]").done == MOST


def test_a_job_that_is_not_run_here_has_no_progress_to_set() -> None:
    with pytest.raises(NotRunning):
        a_job().set_progress(1)
