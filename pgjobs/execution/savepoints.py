"""The savepoints of a batch: one for each handler that uses the connection, set before its first statement."""

from __future__ import annotations

from collections.abc import Callable

from psycopg.pq import ConnStatus, PipelineStatus, TransactionStatus

from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import TransactionBroken
from pgjobs.execution.transport import WRONG_NAMES, Transport

# The server caches 64 subtransactions of a backend; with more of them, the snapshots of all sessions get slow.
MOST = 60

_IN_TRANSACTION = TransactionStatus.INTRANS  # an access through the enum takes longer than the comparison

_ENDED = "the handler ended its transaction itself (COMMIT or ROLLBACK); only pgjobs may"
_OVER = "the transaction of the batch is over: the handler of another job of the batch has ended it"


class Savepoints:
    """The savepoints of one batch.

    `begin` is called before the first statement of a handler. It sends the savepoint, in a round trip of its own,
    together with the end of the previous handler: RELEASE, which fails if that handler has ended the transaction, and
    the reset of the session.
    """

    def __init__(self, conn: AnyConnection, transport: Transport, name: str, between: Callable[[], bytes]) -> None:
        self.used = 0  # how many were set
        self.broken = False  # whether the transaction has ended, or its state is unknown
        self.last: int | None = None  # the last job that has used the connection and succeeded; not released yet
        self.culprit: int | None = None  # the job that has ended the transaction, if a later handler noticed it
        self.fault = _ENDED  # how the transaction was ended
        self._name = name.encode()
        self._between = between
        self._conn = conn
        self._pgconn = conn.pgconn  # read once: the attribute of a handler's object is a property
        self._transport = transport
        self._begun = self._set = self._unclean = False

    @property
    def release(self) -> bytes:
        """The message that releases the last savepoint and resets the session."""
        release = b"" if self.last is None else b"RELEASE SAVEPOINT %s;" % self._name
        return release + self._between() if self._unclean else release

    def end(self, job: int, error: BaseException | None, *, quiet: bool) -> BaseException | None:
        """The handler of this job has ended: roll its writes back if it has failed. Returns the error that the attempt
        has failed with in the end. Sets `broken` if the transaction cannot go on. Not `quiet`: another thread is using
        it."""
        status = self._pgconn.transaction_status
        if not self._begun and quiet and status == _IN_TRANSACTION:
            return error
        was_set, self._begun, self._set = self._set, False, False
        if (
            not quiet
            or self._conn.closed
            or status in (TransactionStatus.UNKNOWN, TransactionStatus.ACTIVE)
            or self._busy
        ):
            self.broken = True
            return error or TransactionBroken("the handler left its connection closed, or in the middle of a command")
        if not was_set or status == TransactionStatus.IDLE:
            self.broken = True
            return error or TransactionBroken(_ENDED)
        if error is None and status == TransactionStatus.INERROR:
            error = TransactionBroken(
                "an SQL error in the handler was swallowed, so its transaction was aborted [25P02]"
            )
        if error is None:
            self.last = job
        elif not self._drop():
            self.broken = True
        return error

    # --- messages

    @property
    def _busy(self) -> bool:
        return self._pgconn.pipeline_status != PipelineStatus.OFF or self._conn.lock.locked()

    def begin(self) -> None:
        """A handler is about to send its first statement."""
        if self._begun or self.broken:  # an interrupt came during the last try, which may have been sent or not
            self.broken = True
            raise TransactionBroken(_OVER)
        self._begun = True
        try:
            self._transport.send_inside(self.release + b"SAVEPOINT %s" % self._name)
        except Exception as error:
            self.broken = True
            if self._pgconn.status == ConnStatus.BAD:
                raise
            self.culprit = self.last
            if isinstance(error, WRONG_NAMES):
                self.fault = "the handler deallocated the prepared statements of pgjobs"
            raise TransactionBroken(_OVER) from error
        self.last = None
        self.used += 1
        self._set = self._unclean = True

    def _drop(self) -> bool:
        """Roll back to the savepoint and release it. A late cancel for the handler may hit this; the next try works."""
        for _ in range(3):
            try:
                self._transport.send_inside(
                    b"ROLLBACK TO SAVEPOINT %s; RELEASE SAVEPOINT %s" % (self._name, self._name)
                )
            except Exception:
                if self._pgconn.transaction_status != TransactionStatus.INERROR:
                    return False
            else:
                self._conn._prepared.clear()  # as psycopg does: statements may refer to tables that are gone
                return True
        return False
