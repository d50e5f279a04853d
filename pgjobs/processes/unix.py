"""Signals and zombies: what a parent of processes owes to Unix."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def wakeup_socket() -> Iterator[socket.socket]:
    """A socket that is readable after each signal."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(before)


def reap_orphans(children: set[int]) -> None:
    """As process 1, the first of a container, this process inherits all that lose their parent, and must reap them."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    with suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, flags)) is not None and ended.si_pid not in children:
            os.waitpid(ended.si_pid, os.WNOHANG)
