"""Raises an exception in another thread."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress

from pgjobs.errors import Interrupted
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.watchdog")


def raise_in_thread(thread: threading.Thread, exception: type[BaseException]) -> None:
    """Have the thread raise this exception when it next runs Python code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(exception))


def absorb_interrupt() -> None:
    """Let an exception that was raised in this thread arrive here, and drop it.

    Withdrawing it instead would meet a bug of CPython 3.11: the interpreter then believes for ever that an exception is
    due, and under a debugger or a coverage tool no call gets past its first line.
    """
    with suppress(Interrupted):
        for _ in range(100):  # the interpreter checks for it at every jump back
            pass


def start_thread(function: Callable[[], object], *, name: str) -> bool:
    """Call the function in a thread of its own. False if the system refuses a new thread; a later try may succeed."""
    try:
        threading.Thread(target=function, name=name, daemon=True).start()
    except (RuntimeError, MemoryError) as error:
        log.error("%s: could not start a thread for it: %s", name, error)
        return False
    return True
