"""The driver's connections: as psycopg's, and as the pooled connection that SQLAlchemy expects, for one job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg_pool import PoolTimeout
from sqlalchemy import exc
from sqlalchemy.pool import PoolProxiedConnection

from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import InvalidSetting


def psycopg_connection(conn: Any) -> AnyConnection:
    if not isinstance(conn, psycopg.Connection):
        raise InvalidSetting(f"the engine makes connections of {type(conn).__module__}, and pgjobs needs psycopg 3")
    return conn


@contextmanager
def driver_errors() -> Iterator[None]:
    """Raise errors of the driver and the pool as psycopg's, which pgjobs knows how to treat."""
    try:
        yield
    except exc.TimeoutError as error:
        raise PoolTimeout(str(error)) from None
    except exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise error.orig from None
        raise


class JobConnection(PoolProxiedConnection):
    """What a job's Connection takes for the pooled connection: the same, but with the driver's connection of the job,
    and it stays checked out when it is closed."""

    __slots__ = ("_connection_record", "_pooled", "dbapi_connection")

    def __init__(self, pooled: PoolProxiedConnection, conn: AnyConnection) -> None:
        self._pooled = pooled
        self.dbapi_connection: Any = conn
        self._connection_record = _JobRecord(pooled)

    @property
    def driver_connection(self) -> Any:  # type: ignore[override]
        return self.dbapi_connection

    @property
    def is_valid(self) -> bool:
        return self._pooled.is_valid

    @property
    def is_detached(self) -> bool:
        return self._pooled.is_detached

    @property
    def info(self) -> Any:
        return self._pooled.info

    @property
    def record_info(self) -> Any:
        return self._pooled.record_info

    def cursor(self, *args: Any, **options: Any) -> Any:
        return self.dbapi_connection.cursor(*args, **options)

    def commit(self) -> None:
        if not self.dbapi_connection.closed:  # else the job has ended, and pgjobs has ended its transaction
            self.dbapi_connection.commit()

    def rollback(self) -> None:
        if not self.dbapi_connection.closed:
            self.dbapi_connection.rollback()

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        self._pooled.invalidate(e, soft)

    def detach(self) -> None:
        self._pooled.detach()

    def close(self) -> None:
        """The checkout goes on with the connection."""

    def _close_special(self, transaction_reset: bool = False) -> None:
        """SQLAlchemy calls this instead of close() after it has ended a transaction."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pooled, name)


class _JobRecord:
    """The record of a pooled connection, without what is to be undone on the driver's connection of a job, which ends
    with the job."""

    def __init__(self, pooled: Any) -> None:
        self._record = pooled._connection_record
        self.finalize_callback: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)
