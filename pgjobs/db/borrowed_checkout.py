"""A checkout of the caller's own connection, inside the transaction that is open on it: for the tests of applications.

Nothing here is the checkout's to end: it never closes, replaces, resets or returns the connection. The transport that
pgjobs.testing gives it ends no transaction either.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from pgjobs.db.checkout import Checkout
from pgjobs.db.cursors import AnyConnection


class BorrowedCheckout(Checkout):
    """The psycopg connection of a caller. The handler gets an object of its own over it, as it does from a pool."""

    borrowed = True
    wraps_tx = False

    def __init__(self, conn: AnyConnection) -> None:
        self._lent = conn
        super().__init__()

    def _get(self) -> AnyConnection:
        return self._lent

    def _put(self, conn: AnyConnection) -> None:
        pass

    def _configure(self) -> None:
        pass

    def handler_tx(self) -> AbstractContextManager[AnyConnection]:
        return nullcontext(self.start_tx())

    def after_transaction(self, *, committed: bool) -> None:
        pass
