"""Errors as pages: what is wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from pgjobs import errors
from pgjobs.clean_text import one_line
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.dashboard")

_LONGEST = 1000


class Problem(Exception):
    """A request that cannot be answered: the status of the response, what is wrong, and what to do."""

    def __init__(
        self, status: int, text: str, advice: str = "", *, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.advice = advice
        self.headers = headers


_OF_REQUESTS = {
    404: ("There is no such page.", "Start again at the overview."),
    405: ("This address does not take this kind of request.", "Open the page, and press the button there."),
    413: ("The request is too large.", "Send less at once."),
}
_CONFLICTS = (
    errors.JobRunning, errors.JobLocked, errors.UniqueConflict, errors.NotDiscarded, errors.QueueLocked,
    errors.AmbiguousJob,
)  # fmt: skip


def problem_of(error: Exception) -> Problem:
    """The error as a problem. An unexpected one is logged, and its text is not shown."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        text, advice = _OF_REQUESTS.get(error.code or 400, ("The request cannot be understood.", "Go back, and retry."))
        methods = error.valid_methods if isinstance(error, MethodNotAllowed) else None
        headers = {"Allow": ", ".join(sorted(methods))} if methods else {}
        return Problem(error.code or 400, text, advice, headers=headers)
    if isinstance(error, (psycopg.Error, PoolTimeout, PoolClosed)):
        return _of_database(error)
    if isinstance(error, errors.PgjobsError):
        return _of_pgjobs(error)
    log.error("the dashboard failed to make a page", exc_info=error)
    return Problem(500, "The dashboard failed to make this page.", "The log of its process says why.")


def problem_for_stranger(error: Exception) -> Problem:
    """The error as a problem for those of whom it is not known yet who they are: an error of the application's `auth`
    tells them nothing of that, nor of its database."""
    found = problem_of(error)
    if isinstance(error, (Problem, HTTPException)):
        return found
    log.warning(
        "the dashboard cannot tell who sends a request: %s: %s", type(error).__name__, one_line(error, _LONGEST)
    )
    return Problem(max(found.status, 500), "The dashboard cannot tell who you are.", "The log of its process says why.")


def _of_pgjobs(error: errors.PgjobsError) -> Problem:
    text = sentence(error)
    if isinstance(error, errors.MigrationError):
        return Problem(503, text, "Run `pgjobs migrate`, with the version of pgjobs that the workers have.")
    if isinstance(error, _CONFLICTS):
        return Problem(409, text, "Nothing was changed. Look at it as it is now, then try again.")
    if isinstance(error, LookupError):
        return Problem(404, text, "It may have been deleted in the meantime.")
    if isinstance(error, errors.InvalidSetting) and not isinstance(error, errors.PoolTooSmall):
        log.error("the dashboard is set up wrongly", exc_info=error)
    return Problem(400, text, "Nothing was changed. Go back, and correct it.")


def _of_database(error: Exception) -> Problem:
    advice = "; ".join(sentence(note) for note in getattr(error, "__notes__", ()))
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    if isinstance(error, psycopg.errors.QueryCanceled):
        return Problem(503, "The database took too long for this page.", "Narrow the filter, or try again later.")
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return Problem(409, "Another transaction holds a row that this needs.", "Nothing was changed. Try again.")
    if isinstance(error, psycopg.errors.ForeignKeyViolation):
        return Problem(
            409,
            sentence(f"A foreign key of the application forbids this: {primary or error}"),
            "Nothing was changed. Delete the row that refers to the job first, or choose other jobs.",
        )
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return Problem(403, sentence(f"The database refuses this: {primary or error}"), advice)
    if isinstance(error, (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)):
        return Problem(503, sentence(primary or error), advice)
    if primary is None and isinstance(error, psycopg.DataError):
        return Problem(
            400, "The request has characters that the database cannot store.", "Go back, and leave them out."
        )
    if primary is None:
        log.warning("the dashboard cannot reach the database: %s", error)
        return Problem(503, "The database does not answer.", "Jobs wait until it does. Try again.")
    log.error("the database refused a statement of the dashboard", exc_info=error)
    return Problem(500, sentence(f"The database refused a statement: {primary}"), "The log of the dashboard has more.")


def sentence(text: object) -> str:
    """A text as a sentence on one line."""
    line = one_line(text, _LONGEST).strip()
    line = line[:1].upper() + line[1:]
    return line if line.endswith((".", "!", "?")) else f"{line}."
