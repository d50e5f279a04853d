"""LISTEN: one thread per process that calls idle workers when a notification arrives.

It only makes things faster. The idle workers poll by themselves, so a connection that does not listen, or a listener
that hangs in one, loses no job.

A peer that has gone silent looks exactly like one that has nothing to say, and neither TCP nor a wait with a timeout
need ever tell them apart. So after a while of silence the listener asks something, and hangs up when no answer comes.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg

from pgjobs.checkout import shut_down
from pgjobs.error_text import one_line
from pgjobs.store import AnyConnection, Store

log = logging.getLogger("pgjobs.listener")

_FIRST_PAUSE = 0.1  # seconds before LISTEN is tried again; doubles
_LONGEST_PAUSE = 10.0
# A silent peer is noticed after the sum of these, at the latest.
_SILENCE = 10.0  # seconds without a notification before the peer is asked whether it is there
_ANSWER = 5.0  # seconds that it has to answer


class Listener:
    """The listening thread. Calls `wake(queue)` for each notification, `wake(None)` when some may have been missed."""

    def __init__(
        self,
        store: Store,
        connect: Callable[[], AnyConnection],
        *,
        wake: Callable[[str | None], None],
        name: str,
    ) -> None:
        self._store = store
        self._connect = connect
        self._wake = wake
        self._stop_read, self._stop_write = os.pipe()  # a wait on a socket can only be ended through a descriptor
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._conn: AnyConnection | None = None
        self._listening = False
        self._pause = _FIRST_PAUSE

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """End the thread and its connection. One that hangs in a connect is left behind; it ends when that does."""
        self._stopping.set()
        os.write(self._stop_write, b"x")
        self._thread.join(timeout)
        if not self._thread.is_alive():
            os.close(self._stop_read)
            os.close(self._stop_write)

    @property
    def listening(self) -> bool:
        """Whether notifications arrive now, as far as is known."""
        return self._listening

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except Exception as error:  # also what a callable connection string raises
                log.warning("not listening, only polling; next try in %.1f s: %s", self._pause, one_line(error))
                self._hang_up()
                self._stopping.wait(self._pause)
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._hang_up()

    def _listen(self) -> None:
        """Listen until it is time to stop; raises when the connection is lost."""
        conn = self._connect()
        self._conn = conn
        with _answer_in_time(conn):
            self._store.listen(conn)
        self._listening = True
        self._wake(None)  # for what was enqueued while nobody listened
        self._pause = _FIRST_PAUSE
        with selectors.DefaultSelector() as selector:
            selector.register(self._stop_read, selectors.EVENT_READ)
            selector.register(conn.fileno(), selectors.EVENT_READ)
            while not self._stopping.is_set():
                if not selector.select(_SILENCE):
                    with _answer_in_time(conn):
                        self._store.probe(conn)
                for notification in conn.notifies(timeout=0):
                    self._wake(notification.payload)

    def _hang_up(self) -> None:
        self._listening = False
        if self._conn is not None:
            with suppress(psycopg.Error):
                self._conn.close()
            self._conn = None


@contextmanager
def _answer_in_time(conn: AnyConnection) -> Iterator[None]:
    """Shut the connection down when the block takes too long: what waits in it for an answer then raises."""
    timer = threading.Timer(_ANSWER, shut_down, [conn])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
