"""What a child and its parent tell each other: lines of JSON over a socket, whose end means that the other died."""

from __future__ import annotations

import json
import signal
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

#: What stops the parent, and a child.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

_SEND_WITHIN = 5  # seconds; a peer that reads nothing for so long, because it is stopped, misses what follows


class State(StrEnum):
    """What a child is doing."""

    LOADING = "loading"  # it imports the application
    WAITING = "waiting"  # for the database, or for its tables; without a reason while it looks for the first time
    STARTING = "starting"  # the pool
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"  # its pool has stopped, and it will exit
    FAILED = "failed"  # it will exit, and another one would fail in the same way


class Command(StrEnum):
    """What the parent asks of a child."""

    STOP = "stop"  # let running jobs end, for the stop timeout at most
    CUT_OFF = "cut off"  # stop now
    READ_GAUGES = "read gauges"  # of the database, for a scrape of the metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a child says of itself."""

    state: State
    reason: str | None = None  # why it waits, is not healthy, stops or has stopped, or has failed
    healthy: bool = True
    replace: bool = False  # while it stops: start another one now
    done: bool = False  # while it stops: no other one is needed
    code: int = 0  # once it has stopped: its exit code
    trace: str | None = None  # of the error for which it has failed
    stop_timeout: float | None = None  # seconds that its stop may take; None: without limit
    files: tuple[str, ...] | None = None  # of the application's code, if they have changed
    metrics: list[Any] | None = None  # of its worker pool, as JSON of observe/metrics.py; None if nobody asks for them
    gauges: list[Any] | None = None  # of the database, once after they were asked for

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        files = values["files"]
        return cls(**{**values, "state": State(values["state"]), "files": None if files is None else tuple(files)})


class Channel:
    """One end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._rest = b""  # the beginning of a line
        self._sending = threading.Lock()
        self._broken = False
        self.ended = False  # the peer is gone
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _SEND_WITHIN, 0))

    def send(self, message: object) -> None:
        """Send a message. A peer that is gone is noticed by `receive`."""
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            if self._broken:
                return
            try:
                self.socket.sendall(line)
            except OSError:  # half a line may be sent
                self._broken = True

    def offer(self, message: object) -> bool:
        """Send a short message that may be left out, unless the socket is full. Returns whether it was sent."""
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            if self._broken:
                return False
            try:
                self._broken = self.socket.send(line, socket.MSG_DONTWAIT) < len(line)
            except BlockingIOError:  # nothing was sent
                return False
            except OSError:
                self._broken = True
            return not self._broken

    def receive(self) -> list[Any]:
        """Wait for messages; a socket that does not block returns those that have arrived. Raises EOFError when the
        peer is gone and all of its messages have been received."""
        try:
            received = self.socket.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            received = b""
        if not received:
            self.ended = True
            raise EOFError
        *lines, self._rest = (self._rest + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self.socket.close()
