"""What comes out of a table breaks no line of the log and commands no terminal."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pgjobs
from pgjobs.job import JobState
from pgjobs.loggers import Lines, get_logger

SOURCE = Path(pgjobs.__file__).parent
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
HOSTILE = "nightly\nERROR root: \x1b[31mforged\x1b[0m\r\x9b2J \x85 \u2028 \u202e \u200f \u061c \ud800"


class Unreadable:
    def __str__(self) -> str:
        raise ValueError(HOSTILE)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> logging.Logger:
    caplog.set_level(logging.DEBUG, "pgjobs")
    return get_logger("pgjobs.test_log_lines")


@pytest.mark.finding("S4")
@pytest.mark.parametrize(
    "value",
    [HOSTILE, ValueError(HOSTILE), [HOSTILE], (HOSTILE,), {HOSTILE}, HOSTILE.encode(errors="replace"), Unreadable()],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_record_is_made_of_it_is_one_clean_line(
    log: logging.Logger, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    """The names of schedules reached the log raw, with their line breaks and ANSI codes."""
    log.warning("schedule %s: job %d in %.1f s, %s", value, 7, 1.5, JobState.RETRYABLE)
    log.warning("schedule %(name)s: job %(id)d", {"name": value, "id": 7})
    log.warning(f"schedule {HOSTILE}")
    for record in caplog.records:
        assert not CONTROL.search(record.getMessage()), repr(record.getMessage())
    assert caplog.records[0].getMessage().endswith("job 7 in 1.5 s, retryable")
    assert caplog.records[1].getMessage().endswith("job 7")


@pytest.mark.finding("S4")
def test_a_traceback_and_a_stack_keep_their_lines_alone(log: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    """What an error says of a row stands in its traceback too."""
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("a hook failed")
    log.error("stuck at:\n%s", Lines("first\nsecond\x1b[31m\n"))
    log.info("and again")
    assert "\x1b" not in caplog.text
    assert "\x9b" not in caplog.text
    assert "ValueError: nightly" in caplog.text
    assert "first\nsecond" in caplog.text


def _loggers() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("getLogger", "get_logger"):
                yield path.name, node


@pytest.mark.finding("S4")
def test_every_logger_of_ours_cleans_what_it_says() -> None:
    """A call that logs cannot be forgotten, for it is the logger that cleans."""
    found = list(_loggers())
    assert len(found) > 10
    own = [(name, ast.unparse(node)) for name, node in found if "getLogger" in ast.unparse(node.func)]
    assert own == [("loggers.py", "logging.getLogger(name)")] * 2, "the second is of another library"
