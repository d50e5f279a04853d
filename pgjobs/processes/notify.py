"""Tells systemd the state of the service, as its sd_notify(3) does: datagrams to the socket NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

from pgjobs.clean_text import one_line

#: Not for the children: the parent speaks for all.
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Sends to the socket that the environment names. Without one, and after an error, it sends nothing."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address[:1] == "@" else address
        self._socket: socket.socket | None = None
        self._status = ""
        self.watchdog_every = _watchdog_every(environment)  # seconds; None if systemd does not watch
        if address[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    def send(self, *assignments: str) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto("\n".join(assignments).encode(), self._address)

    def status(self, text: str) -> None:
        """Tell the status, if it has changed."""
        if text != self._status:
            self._status = text
            self.send(f"STATUS={one_line(text)}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _watchdog_every(environment: Mapping[str, str]) -> float | None:
    """Twice in the time in which systemd wants to hear of this process."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 2e6
