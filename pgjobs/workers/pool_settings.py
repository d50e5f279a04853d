"""Checks of the settings that only a worker pool has."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pgjobs import checks
from pgjobs.db.source import defaults_for
from pgjobs.errors import InvalidSetting, shown
from pgjobs.hooks import ErrorHandler
from pgjobs.job import JobState


def check_order(order: Any) -> str:
    if isinstance(order, str) and order in ("priority", "scheduled_at"):
        return order
    raise InvalidSetting(f"order is 'priority' or 'scheduled_at', not {shown(order)}")


def check_listen_dsn(listen_dsn: object) -> None:
    if listen_dsn is None:
        return
    if not isinstance(listen_dsn, str):  # the error names the type alone: a URL contains the password
        raise InvalidSetting(f"listen_dsn is a connection string, not of type {type(listen_dsn).__name__}")
    defaults_for(listen_dsn)  # raises here, not in the listener's log, if the string cannot be parsed


def check_error_handler(error_handler: object) -> None:
    if error_handler is None or isinstance(error_handler, ErrorHandler):
        return
    error = f"error_handler is an object of a class of ErrorHandler, not {shown(error_handler)}"
    if isinstance(error_handler, type) and issubclass(error_handler, ErrorHandler):
        error += f": give {error_handler.__name__}()"
    raise InvalidSetting(error)


def check_keep(
    completed: timedelta | None, cancelled: timedelta | None, discarded: timedelta | None
) -> dict[JobState, timedelta | None]:
    """How long finished jobs are kept, by their state; None means for ever."""
    return {
        JobState.COMPLETED: checks.check_retention("keep_completed", completed),
        JobState.CANCELLED: checks.check_retention("keep_cancelled", cancelled),
        JobState.DISCARDED: checks.check_retention("keep_discarded", discarded),
    }
