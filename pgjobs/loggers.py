"""The loggers of pgjobs. What a record says is cleaned here, so that no call has to think of it: names of queues and
schedules, kinds, hosts and errors come out of tables that others write to."""

from __future__ import annotations

import logging
import traceback
from typing import Any

from pgjobs.clean_text import TRACE_LIMIT, clean, one_line

_NUMBERS = (int, float, type(None))


class Lines(str):
    """Text of several lines that is to stay so, a stack; what a terminal would obey goes from it all the same."""

    __slots__ = ()


class _Cleaned(logging.Filter):
    """Keeps each record on one line but for `Lines` and the traceback, and free of what a terminal would obey."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.args:  # a text made before the call
            record.msg = one_line(record.msg)
        elif isinstance(record.args, tuple):
            record.args = tuple(map(_cleaned, record.args))
        else:
            record.args = {name: _cleaned(value) for name, value in record.args.items()}
        if record.exc_info and record.exc_info[0] is not None:  # the formatter takes the text that is there
            record.exc_text = clean("".join(traceback.format_exception(*record.exc_info)).rstrip(), TRACE_LIMIT)
        return True


def _cleaned(value: Any) -> Any:
    """A value as it may stand in a line; numbers stay, for the format may ask for digits."""
    if type(value) in _NUMBERS or isinstance(value, bool):
        return value
    try:
        return clean(value, TRACE_LIMIT) if isinstance(value, Lines) else one_line(value)
    except Exception as error:  # the object's own __str__ is the user's code
        return f"<{type(value).__name__}: its text cannot be read: {type(error).__name__}>"


_CLEANED = _Cleaned()


def get_logger(name: str) -> logging.Logger:
    """The logger of this name, with a filter that cleans its records. A filter of its parent would not see them."""
    logger = logging.getLogger(name)
    logger.addFilter(_CLEANED)  # once, however often it is asked for
    return logger
