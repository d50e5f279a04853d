"""Raises an exception in another thread."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress

from pgjobs.errors import Interrupted
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.watch")


def raise_in(thread: threading.Thread, exception: type[BaseException]) -> None:
    """Let the thread raise this when it next runs Python code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(exception))


def started(act: Callable[[], object], *, name: str) -> bool:
    """Whether it has a thread of its own now: the system may refuse that for a while, by a limit on processes."""
    try:
        threading.Thread(target=act, name=name, daemon=True).start()
    except (RuntimeError, MemoryError) as error:
        log.error("%s: no thread for it: %s", name, error)
        return False
    return True


def let_arrive() -> None:
    """What was raised in this thread and is still on its way arrives now. It is not taken back: for CPython 3.11 one
    would then be due for ever, and under a debugger or a coverage tool, no call would get past its first line."""
    with suppress(Interrupted):
        for _ in range(100):  # the interpreter looks each time it goes back
            pass
