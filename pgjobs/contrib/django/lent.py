"""A checkout inside the `atomic()` block of a test."""

from __future__ import annotations

from typing import Any

from pgjobs.clean_text import forget_details, one_line
from pgjobs.contrib.django.checkout import AliasCheckout
from pgjobs.db.borrow import borrow
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import InvalidTransaction
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.contrib.django")

# What Django keeps of an atomic() block on the wrapper.
_STATE = (
    *("autocommit", "in_atomic_block", "commit_on_exit", "needs_rollback", "savepoint_ids", "run_on_commit"),
    "atomic_blocks",
)


class LentCheckout(AliasCheckout):
    """The connection of an alias whose `atomic()` block is open: a handler finds the state of a block of its own, and
    the test its own state again."""

    borrowed = True

    def __init__(self, wrapper: Any) -> None:
        super().__init__(wrapper)
        self._before: dict[str, Any] = {}

    def _check_wrapper(self) -> None:
        if not self._wrapper.in_atomic_block:
            raise InvalidTransaction(
                f"{self._wrapper.alias!r} is in no atomic() block, so the jobs of the test could not be rolled back: "
                "use a TestCase, or Jobs without a tx"
            )

    def _get(self) -> AnyConnection:
        return borrow(self._wrapper)

    def _put(self, conn: AnyConnection) -> None:
        pass

    def _configure(self) -> None:
        pass

    def _enter_block(self) -> None:
        self._before = {name: getattr(self._wrapper, name) for name in _STATE}
        super()._enter_block()

    def _leave_block(self) -> None:
        if self._in_block:
            self._in_block = False
            for name, value in self._before.items():
                setattr(self._wrapper, name, value)

    def after_transaction(self, *, committed: bool) -> None:
        """Call the on_commit callbacks of the handler, as after its commit: Django itself calls none in a TestCase."""
        if not self._in_block:
            return
        callbacks = self._wrapper.run_on_commit
        self._leave_block()
        for _, call, robust in callbacks if committed else ():
            try:
                call()
            except Exception as error:
                if not self.error_details:
                    forget_details(error)
                log.error("an on_commit hook failed after a job: %s", one_line(error), exc_info=True)
                if not robust:
                    return
