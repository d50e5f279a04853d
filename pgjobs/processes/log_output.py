"""The log of the worker command, for applications that configure none."""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from typing import Any

from pgjobs.loggers import get_logger

log = get_logger("pgjobs.processes")

_TEXT = "%(asctime)s %(levelname)s [%(process)d] %(name)s: %(message)s"
_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object for each record, with the fields that were given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        fields |= {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        if record.exc_text is None and record.exc_info:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            fields["exception"] = record.exc_text
        if record.stack_info:
            fields["stack"] = record.stack_info
        return json.dumps(fields, default=str, ensure_ascii=False)


def configure(level: str, format: str) -> None:
    """Log to the standard error, unless the application has configured the root logger. As JSON, what Python itself
    prints there is logged too: warnings, and exceptions that nothing has caught. Else it would stand between the lines
    of JSON."""
    root = logging.root
    if root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if format == "json" else logging.Formatter(_TEXT))
    root.addHandler(handler)
    root.setLevel(level.upper())
    if format == "json":
        logging.captureWarnings(True)
        _log_uncaught()


def _log_uncaught() -> None:
    """Log the exceptions that end a thread or the process, unless the application sees to them."""

    def of_process(*exc_info: Any) -> None:
        log.critical("an exception ends the process", exc_info=exc_info)

    def of_thread(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_type is not SystemExit:
            name = "a thread" if ended.thread is None else f"thread {ended.thread.name}"
            exc_info: Any = (ended.exc_type, ended.exc_value, ended.exc_traceback)
            log.error("an exception ends %s", name, exc_info=exc_info)

    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = of_process
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = of_thread
