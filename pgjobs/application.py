"""Finds an object of the application by a text such as `app.worker:pool`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from pgjobs.errors import PgjobsError, shown

T = TypeVar("T")


class ApplicationNotLoaded(PgjobsError):
    """The text of the error says what is wrong with the module, or what it raised. If its code raised, `trace` is the
    application's part of the traceback, and `place` the file and line where that ends; `files` are the files whose
    change may mend it."""

    def __init__(
        self, text: str, *, trace: str | None = None, place: str | None = None, files: Sequence[str] = ()
    ) -> None:
        super().__init__(text)
        self.trace = trace
        self.place = place
        self.files = files


def check_target(target: str, *kinds: type[object]) -> None:
    """Raise ApplicationNotLoaded unless the text can name an object of these kinds."""
    module, colon, name = target.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise ApplicationNotLoaded(f"{target!r} does not say where the {_names(kinds)} is: give {_form(kinds)}")


def load(target: str, *kinds: type[T]) -> T:
    """Import the module, with the current directory on sys.path, and return its object, which is of one of these kinds,
    or which a function without arguments returns. Raises ApplicationNotLoaded; a KeyboardInterrupt passes."""
    check_target(target, *kinds)
    module_name, _, name = target.partition(":")
    directory = os.getcwd()
    if directory not in sys.path:
        sys.path.insert(0, directory)
    found = _look_up(_import(module_name, directory), module_name, name, kinds)
    says = "is"
    if not isinstance(found, kinds) and callable(found):
        found = _call(found, target)
        says = "returned"
    if not isinstance(found, kinds):
        raise ApplicationNotLoaded(f"{target} {says} {shown(found)}, not a {_names(kinds)}: give {_form(kinds)}")
    return found


def _names(kinds: Sequence[type[object]]) -> str:
    return " or ".join(kind.__name__ for kind in kinds)


def _form(kinds: Sequence[type[object]]) -> str:
    return f"module:object, where the object is a {_names(kinds)} or a function that makes one, as in app.worker:pool"


def _import(name: str, directory: str) -> Any:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
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


def _look_up(module: Any, module_name: str, name: str, kinds: tuple[type[object], ...]) -> Any:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            fitting = [each for each, value in vars(module).items() if isinstance(value, kinds)]
            near = get_close_matches(name, [each for each in dir(module) if each[0] != "_"], 1) or fitting
            meant = f": is {' or '.join(near)} meant?" if near else ""
            file = getattr(module, "__file__", None)  # a package without __init__.py and a builtin have none
            where = f" ({file})" if file else ""
            raise ApplicationNotLoaded(f"module {module_name}{where} has no {name!r}{meant}")
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
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _raised(target, error) from error


def _raised(what: str, error: BaseException) -> ApplicationNotLoaded:
    """The error of the application's code, with the traceback from its first line on."""
    trace = error.__traceback__
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    while trace is not None and _is_machinery(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace)
    said = "".join(traceback.format_exception_only(error)).strip().splitlines()
    text = said[-1 if isinstance(error, SyntaxError) else 0]  # of that the others show the code
    places = [
        f"{frame.f_code.co_filename}, line {line}"
        for frame, line in traceback.walk_tb(trace)
        if not _is_machinery(frame.f_code.co_filename)
    ]
    if isinstance(error, SyntaxError) and error.filename is not None:
        files.append(error.filename)
        places.append(f"{error.filename}, line {error.lineno}")
    return ApplicationNotLoaded(
        f"{what} raised {text}", trace="".join(lines).rstrip(), place=places[-1] if places else None, files=files
    )


def _is_machinery(file: str) -> bool:
    return file == __file__ or file.startswith("<frozen importlib") or file == importlib.__file__
