"""The thread that asks servers to cancel the statements of handlers that are to stop.

A cancel request opens a connection, which may block for seconds when the network drops packets. So one thread sends the
requests of all attempts of the process, each connection is in its queue at most once, and the thread ends when the
queue is empty.
"""

from __future__ import annotations

import threading

from pgjobs.db.checkout import Checkout
from pgjobs.forking import PerProcess
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.watchdog")


class Canceller:
    """Sends cancel requests, one after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: dict[Checkout, int] = {}  # with the id of its connection; the first may be under way
        self._runs = False

    def cancel(self, checkout: Checkout, conn_id: int) -> None:
        """Have the server cancel the statement of this connection, unless that is queued already. Never blocks."""
        with self._lock:
            if checkout in self._queue:
                return
            self._queue[checkout] = conn_id
            checkout.cancels_begin()
            if self._runs:
                return
            try:
                threading.Thread(target=self._run, name="pgjobs/cancel", daemon=True).start()
                self._runs = True
            except (RuntimeError, MemoryError) as error:  # a limit of the system; the watchdog will try again
                del self._queue[checkout]
                checkout.cancel_ends()
                log.error("pgjobs/cancel: could not start a thread for it: %s", error)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._runs = False
                    return
                checkout, conn_id = next(iter(self._queue.items()))
            try:
                if id(checkout.conn) == conn_id:
                    checkout.cancel_statement()
                else:  # the checkout has another connection by now, whose statement must not be cancelled
                    checkout.cancel_ends()
            finally:
                with self._lock:
                    del self._queue[checkout]


canceller = PerProcess(Canceller)
