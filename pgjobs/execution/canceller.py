"""The thread that asks servers to cancel the statements of handlers which are to end.

To ask opens a connection, and that may block for seconds when the network passes nothing on. So it is one thread for
all attempts of the process, and no connection stands in its queue twice. It ends when there is nothing left to ask.
"""

from __future__ import annotations

import threading

from pgjobs.db.checkout import Checkout
from pgjobs.forking import PerProcess
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.watch")


class Canceller:
    """Asks for one connection after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[Checkout, int] = {}  # with the id of its connection; the first one may be under way
        self._runs = False

    def ask(self, checkout: Checkout, conn_id: int) -> None:
        """Have the server cancel what runs on this connection, unless that is being asked for already. Never blocks."""
        with self._lock:
            if checkout in self._waiting:
                return
            self._waiting[checkout] = conn_id
            checkout.cancels_begin()
            if self._runs:
                return
            try:
                threading.Thread(target=self._work, name="pgjobs/cancel", daemon=True).start()
                self._runs = True
            except (RuntimeError, MemoryError) as error:  # a limit of the system: the watch will ask again
                del self._waiting[checkout]
                checkout.cancel_ends()
                log.error("pgjobs/cancel: no thread for it: %s", error)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._runs = False
                    return
                checkout, conn_id = next(iter(self._waiting.items()))
            try:
                if id(checkout.conn) == conn_id:
                    checkout.cancel_statement()
                else:  # it has another connection by now, on which nothing is to be cancelled
                    checkout.cancel_ends()
            finally:
                with self._lock:
                    del self._waiting[checkout]


canceller = PerProcess(Canceller)
