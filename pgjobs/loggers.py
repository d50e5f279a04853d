"""The loggers of pgjobs. A filter removes line breaks and control characters from all records.

Log records contain names, kinds and errors from tables that other programs can write to. Without the filter such a
value could forge log lines, or send commands to a terminal.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any

from pgjobs.clean_text import TRACE_LIMIT, calls_application, clean, one_line
from pgjobs.job import Job

_NUMBERS = (int, float, type(None))


class Lines(str):
    """Text that keeps its line breaks in a log record, such as a stack. Control characters are still removed."""

    __slots__ = ()


class _Cleaned(logging.Filter):
    """Keeps each record on one line, except for `Lines` and tracebacks, and removes control characters."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.args:  # the message is already formatted
            record.msg = one_line(record.msg)
        elif isinstance(record.args, tuple):
            record.args = tuple(map(_cleaned, record.args))
        else:
            record.args = {name: _cleaned(value) for name, value in record.args.items()}
        if record.exc_info and record.exc_info[0] is not None:  # a formatter uses exc_text if it is set
            record.exc_text = clean(_trace(*record.exc_info).rstrip(), TRACE_LIMIT)
        return True


def _trace(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> str:
    """The traceback as text. Where no code of the application was called, as when a connection is lost at a COMMIT, the
    frames of the causes are all of libraries, and are left out."""
    chain = trace is not None or error is None or calls_application(error)
    return "".join(traceback.format_exception(kind, error, trace, chain=chain))


def _cleaned(value: Any) -> Any:
    """A value for a log line. Numbers stay numbers, since the format may be %d."""
    if type(value) in _NUMBERS or isinstance(value, bool):
        return value
    try:
        return clean(value, TRACE_LIMIT) if isinstance(value, Lines) else one_line(value)
    except Exception as error:  # __str__ is the application's code
        return f"<{type(value).__name__}: str() raised {type(error).__name__}>"


_CLEANED = _Cleaned()


def demote(name: str, ours: Callable[[logging.LogRecord], bool]) -> None:
    """Make the records of another library's logger debug messages if they concern what is `ours`."""
    logger = logging.getLogger(name)

    def demoted(record: logging.LogRecord) -> bool:
        if not ours(record):
            return True
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logger.isEnabledFor(logging.DEBUG)

    logger.addFilter(demoted)


def job_fields(job: Job[Any]) -> dict[str, object]:
    """The fields of a log record that is about a job: the `extra` of the call."""
    return {
        "job_id": job.id,
        "kind": one_line(job.kind),
        "queue": one_line(job.queue),
        "attempt": job.attempt,
        "worker": one_line(job.attempted_by[-1]) if job.attempted_by else None,
    }


def shown_seconds(seconds: float) -> str:
    """A duration for a person: "12 ms", "1.5 s", "90 s", "0:05:00"."""
    if seconds < 1:
        return f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"
    if seconds < 100:
        return f"{seconds:.{1 if seconds < 10 and seconds % 1 >= 0.05 else 0}f} s"
    return str(timedelta(seconds=round(seconds)))


def get_logger(name: str) -> logging.Logger:
    """The logger of this name, with the filter, and whose calls never raise: a log handler or filter of the application
    that fails must end no thread. A filter on the parent logger would not see its records."""
    logger = logging.getLogger(name)
    logger.addFilter(_CLEANED)  # adding it twice has no effect
    logger.handle = partial(_handle, logger)  # type: ignore[method-assign]
    return logger


def _handle(logger: logging.Logger, record: logging.LogRecord) -> None:
    """As the method of the logger's class, but an error is printed, as logging does it for its own handlers."""
    try:
        type(logger).handle(logger, record)
    except (Exception, SystemExit):
        if logging.raiseExceptions:
            with suppress(Exception):
                traceback.print_exc()
