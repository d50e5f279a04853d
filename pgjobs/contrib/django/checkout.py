"""The checkout of an alias's connection, and the state of Django's wrapper while a handler runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import get_ident
from typing import Any

import psycopg
from django.core.cache import close_caches
from django.db import connections, reset_queries, transaction
from django.db.backends.signals import connection_created
from django.db.utils import Error
from psycopg.pq import TransactionStatus

from pgjobs.clean_text import forget_details, one_line
from pgjobs.db.checkout import Checkout
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.inherited import drop_inherited
from pgjobs.errors import InvalidSetting, TransactionBroken, WorkerPoolError
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.contrib.django")

_BEGUN = (TransactionStatus.INTRANS, TransactionStatus.INERROR, TransactionStatus.ACTIVE)


class AliasCheckout(Checkout):
    """This thread's checkout of the connection of an alias.

    pgjobs sends BEGIN and COMMIT on the driver's connection. For the handler it puts Django's wrapper into the state of
    an `atomic()` block. A real block would have to begin before the claim. While the handler runs, the wrapper has the
    driver's connection object of the job, which ends with the job.
    """

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self._check_wrapper()
        self._of_caller = {other.alias for other in connections.all(initialized_only=True) if other.in_atomic_block}
        self._thread = get_ident()
        self._abandoned = False
        self._in_block = False
        super().__init__()

    def _check_wrapper(self) -> None:
        """Refuse a wrapper whose transaction is not ours to end."""
        wrapper = self._wrapper
        drop_inherited(wrapper)
        if wrapper.in_atomic_block:
            raise WorkerPoolError(
                f"{wrapper.alias!r} is inside an atomic() block: leave it first, since each job has its own transaction"
            )
        if _has_begun(wrapper):
            raise WorkerPoolError(
                f"{wrapper.alias!r} has a transaction open: end it first, since each job has its own transaction"
            )
        wrapper.close_if_unusable_or_obsolete()  # as at the start of a request

    def _get(self) -> AnyConnection:
        if self._wrapper.in_atomic_block:  # a detached handler left the block open
            self._in_block = True
            self._leave_block()
            self._wrapper.close()
        elif _has_begun(self._wrapper):  # or autocommit off, and a transaction open
            self._wrapper.close()
        self._between_jobs()
        with driver_errors():
            self._wrapper.cursor().close()  # connects; the settings may ask for a health check first
            if not self._wrapper.get_autocommit():
                self._wrapper.set_autocommit(True)
        self._abandoned = False
        # Django itself sets None when the settings say nothing
        self.can_prepare = self._wrapper.settings_dict["OPTIONS"].get("prepare_threshold", 0) is not None
        return psycopg_connection(self._wrapper)

    def _put(self, conn: AnyConnection) -> None:
        if get_ident() != self._thread:
            self._abandon(conn)
            return
        wrapper = self._wrapper
        idle = self._ours and conn.info.transaction_status == TransactionStatus.IDLE
        self._leave_block()
        with suppress(Error, psycopg.Error):
            if self._abandoned:
                wrapper.connection = None
            elif not idle:
                wrapper.close()
            else:
                if wrapper.get_autocommit() != wrapper.settings_dict["AUTOCOMMIT"]:
                    wrapper.set_autocommit(wrapper.settings_dict["AUTOCOMMIT"])
                wrapper.close_if_unusable_or_obsolete()

    def describe_tx(self) -> None:
        super().describe_tx()
        pool = pool_of(self._wrapper)
        if pool is not None:
            self._attributes["_pool"] = _PoolOfOriginal(pool, self.original)

    def _abandon(self, conn: AnyConnection) -> None:
        """Return the connection to Django's pool, and leave the wrapper alone.

        The wrapper's thread may still run the handler. There Django finds a closed connection and raises; without a
        connection it would open a new one, outside of the job's transaction.
        """
        self._abandoned = True
        pool = pool_of(self._wrapper)
        if pool is not None:
            with suppress(psycopg.Error, ValueError):
                pool.putconn(conn)

    @property
    def _ours(self) -> bool:
        conn = self._wrapper.connection
        return conn is not None and (conn is self.original or conn is self._tx)

    def _configure(self) -> None:
        """Set up the session as Django does with a new connection: time zone, role, connection_created listeners."""
        wrapper = self._wrapper
        wrapper.init_connection_state()
        if pool_of(wrapper) is not None:  # which Django does in its pool's configure callback
            wrapper._configure_connection(self.original)
        connection_created.send(sender=type(wrapper), connection=wrapper)

    @contextmanager
    def handler_tx(self) -> Iterator[Any]:
        self._enter_block()
        self._wrapper.connection = self.start_tx()
        yield self._wrapper
        self._check_block()

    def end_tx(self, job: int) -> bool:
        if self._tx is not None and self._wrapper.connection is self._tx:
            self._wrapper.connection = self.original
        return super().end_tx(job)

    def after_transaction(self, *, committed: bool) -> None:
        if not self._in_block:
            return
        wrapper = self._wrapper
        self._leave_block()
        if committed:
            try:
                wrapper.run_and_clear_commit_hooks()
            except Exception as error:
                if not self.error_details:
                    forget_details(error)
                log.error("an on_commit hook failed after a job: %s", one_line(error), exc_info=True)
        wrapper.run_on_commit = []
        self._between_jobs()
        if wrapper.settings_dict["CONN_MAX_AGE"] and time.monotonic() >= wrapper.close_at:
            self.spoiled = True

    def _between_jobs(self) -> None:
        """Do what Django does at the start and the end of a request; without its signals, which others may listen to.
        A detached handler has no connection here: what it has opened is looked after when one is taken for its end."""
        reset_queries()
        for other in connections.all(initialized_only=True):
            if other is not self._wrapper:
                if other.in_atomic_block and other.alias not in self._of_caller:
                    log.warning("a handler left an atomic() block open on %r: it is rolled back", other.alias)
                    _forget_block(other)
                    other.close()
                other.close_if_unusable_or_obsolete()
        try:
            close_caches()
        except Exception as error:  # of a cache; the job has ended and its outcome stands
            log.warning("a cache could not be closed after a job: %s", one_line(error))

    def _enter_block(self) -> None:
        """Set the state that `Atomic.__enter__` sets, without its SQL."""
        wrapper = self._wrapper
        self._in_block = True
        wrapper.autocommit = False
        wrapper.in_atomic_block = wrapper.commit_on_exit = True
        wrapper.needs_rollback = False
        wrapper.savepoint_ids, wrapper.run_on_commit = [], []
        wrapper.atomic_blocks = [transaction.atomic(wrapper.alias)]  # a durable block inside refuses to be nested

    def _check_block(self) -> None:
        wrapper = self._wrapper
        if wrapper.closed_in_transaction:
            return  # the executor finds the closed connection
        if wrapper.needs_rollback:
            raise TransactionBroken(
                "the handler's transaction is marked for rollback: by set_rollback(True), or by an error that was "
                "swallowed in an atomic(savepoint=False) block"
            )
        if len(wrapper.atomic_blocks) != 1:
            raise TransactionBroken("the handler left an atomic() block open")

    def _leave_block(self) -> None:
        """Set the state after the outermost block. Nothing is sent: the database transaction has ended already."""
        if not self._in_block:
            return
        self._in_block = False
        _forget_block(self._wrapper)


class _PoolOfOriginal:
    """Django's pool for the connection object of a job: it gets back the object that it has given out."""

    def __init__(self, pool: Any, original: AnyConnection) -> None:
        self._pool = pool
        self._original = original

    def putconn(self, conn: AnyConnection) -> None:
        self._pool.putconn(self._original)


def _forget_block(wrapper: Any) -> None:
    """Set the state after the outermost block of an alias. Nothing is sent."""
    wrapper.in_atomic_block = wrapper.needs_rollback = False
    wrapper.savepoint_ids, wrapper.atomic_blocks = [], []
    wrapper.autocommit = True
    if wrapper.closed_in_transaction:
        wrapper.closed_in_transaction = False
        wrapper.connection = None


def _has_begun(wrapper: Any) -> bool:
    """Whether a transaction is open on the connection of an alias."""
    conn = wrapper.connection
    return isinstance(conn, psycopg.Connection) and conn.info.transaction_status in _BEGUN


def pool_of(wrapper: Any) -> Any:
    """The psycopg pool of an alias whose OPTIONS have one (Django 5.1 or later); else None."""
    return getattr(wrapper, "pool", None)


def psycopg_connection(wrapper: Any) -> AnyConnection:
    if not isinstance(wrapper.connection, psycopg.Connection):
        raise InvalidSetting(
            f"{wrapper.alias!r} uses {type(wrapper.connection).__module__}, and pgjobs needs psycopg 3"
        )
    return wrapper.connection


@contextmanager
def driver_errors() -> Iterator[None]:
    """Raise errors of the driver as psycopg's, which pgjobs knows how to treat."""
    try:
        yield
    except Error as error:
        if isinstance(error.__cause__, psycopg.Error):
            raise error.__cause__ from None
        raise
