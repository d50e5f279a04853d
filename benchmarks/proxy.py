"""A server that is further away: a proxy that delays all data, in both directions.

    python -m benchmarks.proxy "host=/tmp port=5432" 0.5        # ms in each direction

It prints the port that it listens on, and ends with its input. One thread does it all: what arrives is due after the
delay, in the order of arrival. It takes the machine some 50 us of processor for each round trip, more when there is one
connection alone; a network does not, so the highest rates over it are somewhat too low.
"""

from __future__ import annotations

import ctypes
import select
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks.ground import WrongResult

_SLACK = 29  # PR_SET_TIMERSLACK of Linux: without it, the kernel wakes up to 50 us late
_AT_ONCE = 1 << 16  # bytes
_BUFFER = 1 << 20  # bytes that the kernel takes from us at most before it makes us wait


class _Proxy:
    def __init__(self, target: str, delay: float) -> None:
        self._target = conninfo_to_dict(target)
        self._delay = delay
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._other: dict[socket.socket, socket.socket] = {}  # the two ends of each connection
        self._waiting: deque[tuple[float, socket.socket, bytes]] = deque()  # the instant, where to, and what
        self.port = self._listener.getsockname()[1]

    def serve(self) -> None:
        """Forward data until the input ends."""
        while True:
            left = max(0.0, self._waiting[0][0] - time.perf_counter()) if self._waiting else None
            ready, _, _ = select.select([sys.stdin, self._listener, *self._other], [], [], left)
            for source in ready:
                if source is sys.stdin:
                    return
                if source is self._listener:
                    self._accept()
                elif source in self._other:
                    self._receive(source)
            while self._waiting and self._waiting[0][0] <= time.perf_counter():
                _, end, data = self._waiting.popleft()
                self._send(end, data)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = self._connect()
        for end in (client, server):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self._other |= {client: server, server: client}

    def _connect(self) -> socket.socket:
        host, port = str(self._target.get("host", "localhost")), int(str(self._target.get("port", 5432)))
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def _receive(self, source: socket.socket) -> None:
        data = b""
        with suppress(OSError):
            data = source.recv(_AT_ONCE)
        self._waiting.append((time.perf_counter() + self._delay, self._other[source], data))
        if not data:  # nothing more comes from here
            del self._other[source]

    def _send(self, end: socket.socket, data: bytes) -> None:
        with suppress(OSError):
            if data:
                end.sendall(data)
            elif end in self._other:
                end.shutdown(socket.SHUT_WR)
            else:
                end.close()


@contextmanager
def further_away(dsn: str, milliseconds: float) -> Iterator[str]:
    """The dsn of the same server, so much longer in each direction."""
    command = [sys.executable, "-m", "benchmarks.proxy", dsn, str(milliseconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise WrongResult("the proxy did not start")
        yield make_conninfo(dsn, host="127.0.0.1", port=port)


def ping(dsn: str, times: int = 300) -> float:
    """How long the smallest question takes, in ms: the median."""
    took = []
    with psycopg.connect(dsn, autocommit=True) as conn:
        for _ in range(times):
            started = time.perf_counter()
            conn.execute("SELECT 1")
            took.append(1000 * (time.perf_counter() - started))
    return statistics.median(took)


def main() -> None:
    target, milliseconds = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SLACK, 1, 0, 0, 0)
    proxy = _Proxy(target, float(milliseconds) / 1000)
    print(proxy.port, flush=True)
    proxy.serve()


if __name__ == "__main__":
    main()
