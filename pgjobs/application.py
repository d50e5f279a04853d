"""Finds the worker pool of the application by a text such as `app.worker:pool`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from pgjobs.client import Client
from pgjobs.errors import PgjobsError, shown
from pgjobs.worker_pool import WorkerPool

_FORM = "module:pool, or module:function where the function makes the WorkerPool, as in app.worker:pool"


class ApplicationNotLoaded(PgjobsError):
    """The text of the error says what is wrong with the module, or what it raised. `trace` is the application's part of
    the traceback, if its code raised; `files` are the files whose change may mend it."""

    def __init__(self, text: str, *, trace: str | None = None, files: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.trace = trace
        self.files = files


def check_target(target: str) -> None:
    module, colon, name = target.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise ApplicationNotLoaded(f"{target!r} does not say where the worker pool is: give {_FORM}")


def load(target: str) -> WorkerPool:
    """Import the module, with the current directory on sys.path, and return its pool, which may be what a function
    without arguments returns. Raises ApplicationNotLoaded."""
    check_target(target)
    module_name, _, name = target.partition(":")
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    found = _look_up(_import(module_name, directory), module_name, name)
    if not isinstance(found, WorkerPool | Client) and callable(found):
        found = _call(found, target)
        what = f"{target} returned {shown(found)}"
    else:
        what = f"{target} is {shown(found)}"
    if not isinstance(found, WorkerPool):
        raise ApplicationNotLoaded(f"{what}, not a WorkerPool: give {_FORM}")
    if found.running:
        raise ApplicationNotLoaded(
            f"the worker pool {target} is started already: `pgjobs work` starts it, so keep start() and run() under "
            'if __name__ == "__main__"'
        )
    return found


def _import(name: str, directory: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            path = os.path.join(directory, *error.name.split("."))
            raise ApplicationNotLoaded(
                f"there is no module {error.name!r} in {directory}, nor elsewhere on sys.path",
                files=[f"{path}.py", os.path.join(path, "__init__.py")],
            ) from error
        raise _raised(f"importing {name}", error) from error
    except BaseException as error:
        raise _raised(f"importing {name}", error) from error


def _look_up(module: Any, module_name: str, name: str) -> Any:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            pools = [each for each, value in vars(module).items() if isinstance(value, WorkerPool)]
            near = pools or get_close_matches(name, [each for each in dir(module) if each[0] != "_"], 1)
            meant = f": is {' or '.join(near)} meant?" if near else ""
            raise ApplicationNotLoaded(f"module {module_name} ({module.__file__}) has no {name!r}{meant}")
        found = getattr(found, part)
    return found


def _call(function: Any, target: str) -> Any:
    try:
        inspect.signature(function).bind()
    except TypeError as problem:
        raise ApplicationNotLoaded(f"{target} cannot be called without arguments: {problem}") from None
    except ValueError:  # a builtin without a signature
        pass
    try:
        return function()
    except BaseException as error:
        raise _raised(target, error) from error


def _raised(what: str, error: BaseException) -> ApplicationNotLoaded:
    """The error of the application's code, with the traceback from its first line on."""
    trace = error.__traceback__
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    while trace is not None and _is_machinery(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace)
    text = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    if isinstance(error, SyntaxError) and error.filename is not None:
        files.append(error.filename)
    return ApplicationNotLoaded(f"{what} raised {text}", trace="".join(lines).rstrip(), files=files)


def _is_machinery(file: str) -> bool:
    return file == __file__ or file.startswith("<frozen importlib") or file == importlib.__file__
