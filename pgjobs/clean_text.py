"""Text for storage and logs: messages and tracebacks of errors, cut to a length and without control characters."""

from __future__ import annotations

import re
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Any

import psycopg

from pgjobs.errors import Signal

ERROR_LIMIT = 8 * 1024  # characters of an error's message
TRACE_LIMIT = 32 * 1024  # characters of its traceback
_FRAMES = 60  # the innermost ones of each traceback in a chain
# control characters except newline and tab, which may command a terminal; and lone surrogates, which Postgres refuses
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# the same, and characters that end a line or change the direction of the text
_NOT_FOR_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def error_text(error: BaseException) -> str:
    """The error's message, cleaned and cut, with the cause of a signal and the SQLSTATE of a database error.

    The type comes first if the message alone says little, as that of a KeyError or a `sys.exit(0)`.
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
    """Remove Postgres's details (rows, keys, the text of statements) from the error and from its causes, keeping the
    primary messages. Only `diag` of a psycopg.Error still has them, and that is not printed."""
    chain = _chain(error)
    shorter = [(str(each), _primary(each)) for each in chain if isinstance(each, psycopg.Error)]
    for each in chain:
        with suppress(Exception):  # an exception class of the application may refuse the assignment
            if isinstance(each, psycopg.Error):
                each.args = (_primary(each), *each.args[1:])
            else:
                each.args = tuple(_shortened(arg, shorter) for arg in each.args)
        with suppress(Exception):
            if hasattr(each, "hide_parameters"):  # a SQLAlchemy error, which prints the parameters of the statement
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
    """The server's message without its details; the whole text of an error that did not come from the server."""
    return error.diag.message_primary or str(error)


def _shortened(text: Any, shorter: list[tuple[str, str]]) -> Any:
    if isinstance(text, str):
        for whole, primary in shorter:
            text = text.replace(whole, primary)
    return text


_LIMIT = "{} of the handler, role, database or server, or because the attempt exceeded its timeout by 10 s"
_HINTS = {
    "25P03": _LIMIT.format("idle_in_transaction_session_timeout"),
    "25P04": _LIMIT.format("transaction_timeout"),
    "57P01": "pg_terminate_backend(), or a shutdown of the server",
    "57P02": "a crash of another backend, after which the server restarts",
    "57P05": "idle_session_timeout of the role, database or server",
}
# The SQLSTATE by a part of the message, in English, for when libpq gives only the text.
_MESSAGES = {"idle-in-transaction timeout": "25P03", "transaction timeout": "25P04", "administrator command": "57P01"}


def connection_ended(message: str) -> psycopg.OperationalError:
    """The error of a connection that has ended, with the SQLSTATE that belongs to the message, if known."""
    error = psycopg.OperationalError(message.strip())
    error.sqlstate = next((sqlstate for text, sqlstate in _MESSAGES.items() if text in message), None)
    return error


def hint(error: object) -> str:
    """The likely reason if the server ended the connection; else an empty text."""
    found = _HINTS.get(error.sqlstate or "") if isinstance(error, psycopg.Error) else None
    return f" (by {found})" if found else ""


def _message(error: object) -> str:
    try:
        return str(error)
    except BaseException:  # __str__ is the application's code
        return "<str() of the error raised>"


def error_trace(error: BaseException) -> str | None:
    """The traceback from the handler's first line on, without values of variables, cleaned and cut in the middle. None
    if the error has no frames outside of pgjobs."""
    of_handler = skip_pgjobs(error.__traceback__)
    if of_handler is None:
        return None
    try:
        lines = traceback.TracebackException(type(error), error, of_handler, limit=-_FRAMES, compact=True).format()
        return clean("".join(lines), TRACE_LIMIT)
    except Exception as broken:  # the failure must be recorded, with or without its traceback
        return f"<the traceback cannot be formatted: {type(broken).__name__}>"


def skip_pgjobs(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of pgjobs at its start."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("pgjobs."):
        trace = trace.tb_next
    return trace


def calls_application(error: BaseException) -> bool:
    """Whether the tracebacks of the error and its causes have frames of other code than pgjobs and psycopg."""
    traces = (trace for each in _chain(error) for trace, _ in traceback.walk_tb(each.__traceback__))
    return not all(trace.f_globals.get("__name__", "").startswith(("pgjobs.", "psycopg")) for trace in traces)


def clean(text: str, limit: int) -> str:
    """Text without control characters except newline and tab, cut in the middle to at most `limit` characters."""
    if len(text) > limit:
        half = (limit - 40) // 2
        text = f"{text[:half]}\n[{len(text) - 2 * half} characters cut]\n{text[-half:]}"
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def is_one_line(text: str) -> bool:
    """Whether the text has neither line breaks nor control characters."""
    return _NOT_FOR_A_LINE.search(text) is None


def one_line(text: object, limit: int = 500) -> str:
    """Text for one line of a log: line breaks and control characters are escaped. A database error is shown without its
    details, which may contain whole rows."""
    line = _primary(text) if isinstance(text, psycopg.Error) else _message(text)
    line = line.rstrip() + hint(text) if isinstance(text, BaseException) else line
    return _NOT_FOR_A_LINE.sub(lambda match: match[0].encode("unicode_escape").decode(), line[:limit])[:limit]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for a log record with its traceback; libpq adds advice on further lines."""
    line = one_line(error)
    return line.split("\\n")[0] or line
