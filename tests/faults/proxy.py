"""A TCP relay between workers and a server that can be told to misbehave."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self

_CHUNK = 65536
_A_FEW_WORDS = 4000  # bytes; the answer to a claim that finds nothing has fewer
Cut = Literal["before", "after", "within"]


class Proxy:
    """Relays everything, until it is told otherwise. The workers connect to `port` of the loopback."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._open = _opened()
        self._trap: tuple[re.Pattern[bytes], Cut] | None = None
        self.sprung = threading.Event()  # the trap was hit
        self._closed = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self) -> None:
        """Forward nothing more in either direction. The sockets stay open, and the kernel acknowledges what comes."""
        self._open.clear()

    def flow(self) -> None:
        """Forward again, what was held back first."""
        self._open.set()

    def lose(self) -> None:
        """The same for the connections there are, for ever; those that are made from now on are none the worse."""
        self._open.clear()
        self._open = _opened()

    def cut(self) -> None:
        """End every connection there is."""
        with self._lock:
            for each in self._sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def trap(self, request: re.Pattern[bytes], cut: Cut) -> None:
        """Cut the connection of the next request that this is found in: before the server gets it, or after the
        server has answered, without a word of the answer. Within the next answer of more than a few words it is not
        cut, but stands still for ever after these."""
        self.sprung.clear()
        self._trap = (request, cut)

    def lead_to(self, port: int) -> None:
        """Relay the connections that are made from now on to another server."""
        self._server_port = port

    def close(self) -> None:
        self._closed.set()
        self._listening.close()
        self.cut()
        self.flow()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listening.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._server_port))
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    self._sockets |= {client, server}
                sprung: list[Cut] = []  # what is to become of the answer, if not to be passed on
                way = self._open
                for args in ((client, server, way, sprung, True), (server, client, way, sprung, False)):
                    threading.Thread(target=self._pump, args=args, daemon=True).start()

    def _pump(
        self,
        source: socket.socket,
        target: socket.socket,
        way: threading.Event,
        sprung: list[Cut],
        requests: bool,
    ) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                way.wait()
                if requests and self._trap and self._trap[0].search(data):
                    cut = self._trap[1]
                    if cut != "within":
                        self._trap = None
                    if cut == "before":
                        self.sprung.set()
                        break
                    sprung[:] = [cut]
                if not requests and sprung == ["within"] and self._trap and len(data) > _A_FEW_WORDS:
                    self._trap = None
                    target.sendall(data[:_A_FEW_WORDS])
                    self.sprung.set()
                    self._closed.wait()
                    break
                if not requests and sprung == ["after"]:
                    self.sprung.set()
                    break
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._sockets -= {source}
        source.close()


def _opened() -> threading.Event:
    event = threading.Event()
    event.set()
    return event
