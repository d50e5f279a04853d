"""Finds the Client or the WorkerPool of an application by its name, as in `shop.jobs:client`."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from pgjobs.clean_text import one_line
from pgjobs.client import Client
from pgjobs.errors import PgjobsError
from pgjobs.work_map import WorkMap
from pgjobs.worker_pool import WorkerPool


@dataclass(frozen=True)
class App:
    """A client, and the handlers of the application if they are known."""

    client: Client
    work_map: WorkMap | None = None


def load(name: str) -> App:
    """The client of an application. `name` is `module:object`; the object is a Client, a WorkerPool, or a function that
    returns one of them. The module may be in the current directory. Raises PgjobsError."""
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise _error(name, "write it as module:object, as in shop.jobs:client")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise _error(name, f"importing {module_name} failed: {_described(error)}") from error
    try:
        found = reduce(getattr, path.split("."), module)
    except AttributeError:
        raise _error(name, f"there is no {path} in {module_name}") from None
    return _app(name, found)


def _app(name: str, found: object) -> App:
    if callable(found) and not isinstance(found, Client | WorkerPool):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise _error(name, f"the call failed: {_described(error)}") from error
    if isinstance(found, WorkerPool):
        return App(found.client, found.work_map)
    if isinstance(found, Client):
        return App(found, found.work_map)
    raise _error(
        name, f"it must be a Client, a WorkerPool, or a function that returns one, not a {type(found).__name__}"
    )


def _error(name: str, problem: str) -> PgjobsError:
    return PgjobsError(f"the app {one_line(name, 200)!r}: {problem}")


def _described(error: BaseException) -> str:
    """The error, and the line of the application that raised it."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "importlib" not in file and Path(file) != Path(__file__):
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {one_line(error)}{place}"
