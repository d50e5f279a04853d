"""What is kept of an error, and what may be printed of anything: cut, and cleaned of what a terminal would obey."""

from __future__ import annotations

import re
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Any

import psycopg

from pgjobs.errors import Signal

ERROR_LIMIT = 8 * 1024  # characters of an error's text that are kept
TRACE_LIMIT = 32 * 1024  # characters of its traceback
_FRAMES = 60  # of each traceback in a chain: the innermost
# What must not reach a log line or a terminal as it is, and what Postgres cannot store: control characters but newline
# and tab, and lone surrogates.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# Beside those what ends a line, or turns the direction of the text.
_NOT_FOR_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def error_text(error: BaseException) -> str:
    """The error's message, cleaned and cut; with the cause of a signal, and the SQLSTATE of a database error.

    The type stands before it where the message alone says little: none, or that of a `sys.exit(0)`.
    """
    text = _message(error)
    if not text or not isinstance(error, Exception) or isinstance(error, KeyError):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    if isinstance(error, psycopg.Error) and error.sqlstate:
        text += f" [{error.sqlstate}]" + hint(error)
    if isinstance(error, Signal) and error.__cause__ is not None:
        text += f" (from {type(error.__cause__).__name__}: {_message(error.__cause__)})"
    return clean(text, ERROR_LIMIT)


def forget_details(error: BaseException) -> None:
    """Take out of the error, and of all that it came from, what Postgres says beside the message: whole rows, keys,
    and the text of statements. It stays in `diag` of a psycopg.Error, which is not printed."""
    chain = _chain(error)
    shorter = [(str(each), _primary(each)) for each in chain if isinstance(each, psycopg.Error)]
    for each in chain:
        with suppress(Exception):  # an exception of the application's may have other ideas of its attributes
            if isinstance(each, psycopg.Error):
                each.args = (_primary(each), *each.args[1:])
            else:
                each.args = tuple(_shortened(arg, shorter) for arg in each.args)
        with suppress(Exception):
            if hasattr(each, "hide_parameters"):  # an error of SQLAlchemy, which prints the values of the statement
                each.hide_parameters = True
            if hasattr(each, "__notes__"):
                each.__notes__ = [_shortened(note, shorter) for note in each.__notes__]


def _chain(error: BaseException) -> list[BaseException]:
    found, left = {id(error): error}, [error]
    while left:
        each = left.pop()
        causes = [each.__cause__, each.__context__]
        causes += each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        for cause in causes:
            if cause is not None and id(cause) not in found:
                found[id(cause)] = cause
                left.append(cause)
    return list(found.values())


def _primary(error: psycopg.Error) -> str:
    """The message of the server without its details; of an error that the server did not make, its text."""
    return error.diag.message_primary or str(error)


def _shortened(text: Any, shorter: list[tuple[str, str]]) -> Any:
    if isinstance(text, str):
        for whole, primary in shorter:
            text = text.replace(whole, primary)
    return text


_LIMIT = "{}, of the handler, or of its role, database or server; or it took longer than its timeout and 10 s"
_HINTS = {
    "25P03": _LIMIT.format("idle_in_transaction_session_timeout"),
    "25P04": _LIMIT.format("transaction_timeout"),
    "57P01": "pg_terminate_backend(), or a stop of the server",
    "57P02": "a crash of another backend, after which the server starts anew",
    "57P05": "idle_session_timeout, of the role, database or server",
}


# How a server that speaks English says so, where libpq tells only the text.
_SAID = {"idle-in-transaction timeout": "25P03", "transaction timeout": "25P04", "administrator command": "57P01"}


def connection_ended(message: str) -> psycopg.OperationalError:
    """The error of a connection that has ended, with the SQLSTATE if the message tells the reason."""
    error = psycopg.OperationalError(message.strip())
    error.sqlstate = next((sqlstate for text, sqlstate in _SAID.items() if text in message), None)
    return error


def hint(error: object) -> str:
    """Where the server has ended a connection: what made it do so."""
    found = _HINTS.get(error.sqlstate or "") if isinstance(error, psycopg.Error) else None
    return f" (by {found})" if found else ""


def _message(error: object) -> str:
    try:
        return str(error)
    except BaseException:  # an exception's own __str__ is the user's code
        return "<its text cannot be read>"


def error_trace(error: BaseException) -> str | None:
    """The traceback from the handler's first line on, without values of variables; cleaned and cut in the middle."""
    handlers_own = without_pgjobs(error.__traceback__)
    if handlers_own is None:
        return None
    try:
        lines = traceback.TracebackException(type(error), error, handlers_own, limit=-_FRAMES, compact=True).format()
        return clean("".join(lines), TRACE_LIMIT)
    except Exception as broken:  # never let the record of a failure fail
        return f"<the traceback cannot be formatted: {type(broken).__name__}>"


def without_pgjobs(trace: TracebackType | None) -> TracebackType | None:
    """Skip the library's own frames before the handler's; None when there are no others."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("pgjobs."):
        trace = trace.tb_next
    return trace


def clean(text: str, limit: int) -> str:
    """Text that can be stored and printed: no control characters but newline and tab, at most `limit` characters,
    cut in the middle."""
    if len(text) > limit:
        half = (limit - 40) // 2
        text = f"{text[:half]}\n[{len(text) - 2 * half} characters cut]\n{text[-half:]}"
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: object, limit: int = 500) -> str:
    """Text for a line of a log: nothing in it ends the line or commands the terminal. Of an error of the database
    without the details, in which there may be whole rows."""
    said = _primary(text) if isinstance(text, psycopg.Error) else _message(text)
    said = said.rstrip() + hint(text) if isinstance(text, BaseException) else said
    return _NOT_FOR_A_LINE.sub(lambda match: match[0].encode("unicode_escape").decode(), said[:limit])[:limit]
