"""Which source files belong to the application: not those of Python, of installed packages and of pgjobs."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

import pgjobs

_PLACES = [str(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_PLACES += [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
_PLACES += [str(Path(pgjobs.__file__).parent)]
_ELSEWHERE = tuple({f"{Path(place).resolve()}/" for place in _PLACES})


def is_of_application(file: str) -> bool:
    return file.endswith(".py") and not str(Path(file).resolve()).startswith(_ELSEWHERE)


def loaded_files(others: Iterable[str] = ()) -> tuple[str, ...]:
    """The files of the application's modules that are imported, and those of `others` that are the application's."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    found = {str(Path(file).resolve()) for file in (*files, *others) if isinstance(file, str)}
    return tuple(sorted(filter(is_of_application, found)))


def place_of(frame: FrameType) -> str:
    """The innermost line of the application's code that led to this frame; the line of the frame if there is none."""
    outer: FrameType | None = frame
    while outer is not None and not is_of_application(outer.f_code.co_filename):
        outer = outer.f_back
    found = outer or frame
    return f"{found.f_code.co_filename}, line {found.f_lineno}, in {found.f_code.co_name}"
