"""Adds advice to database errors, as a note: which command creates missing tables, or grants missing rights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from psycopg import errors

_MISSING = (
    errors.UndefinedTable,
    errors.UndefinedColumn,
    errors.UndefinedFunction,
    errors.UndefinedObject,
    errors.InvalidSchemaName,
)


@contextmanager
def advised(schema: str) -> Iterator[None]:
    """Add advice to the errors of pgjobs' statements in this block. Errors of the application's code, which may run in
    the block too, stay as they are."""
    try:
        yield
    except (*_MISSING, errors.InsufficientPrivilege, errors.UniqueViolation) as error:
        advice = _advice(error, schema)
        if advice is not None and advice not in getattr(error, "__notes__", ()) and _is_ours(error):
            error.add_note(advice)
        raise


def _advice(error: errors.Error, schema: str) -> str | None:
    if isinstance(error, _MISSING):
        return (
            f"the tables of pgjobs in schema {schema!r} are missing, or older than this code: "
            f"run `pgjobs migrate --schema {schema}` or client.migrate()"
        )
    if isinstance(error, errors.UniqueViolation):
        if error.diag.constraint_name != "job_pkey":
            return None
        return (
            f"the sequence of ids is behind the jobs in schema {schema!r}, as after a failover to a logical replica or "
            f"a restore: run `pgjobs migrate --schema {schema}` or client.migrate(), or start a worker pool"
        )
    if "row-level security" in str(error):  # no right is missing
        return None
    return (
        f"the database role lacks a right on the tables of pgjobs in schema {schema!r}: "
        f"`pgjobs roles --sql --schema {schema}` prints what a role needs to enqueue, work, view or control"
    )


def _is_ours(error: errors.Error) -> bool:
    """Whether pgjobs sent the statement that failed: not a middleware, a handler or a trigger."""
    if "PL/pgSQL" in (error.diag.context or ""):
        return False
    sender = ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in ("psycopg", "psycopg_pool", "contextlib"):
            sender = module
        trace = trace.tb_next
    return sender.partition(".")[0] == "pgjobs"
