"""A source of Django's connections.

    client = Client(DjangoSource("default"))

    def welcome(connection: BaseDatabaseWrapper, job: Job[Welcome]) -> None:
        Account.objects.filter(id=job.args.account).update(greeted=True)

What the handler writes through the ORM on that alias is committed together with the job.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
from django.db import connections
from django.db.backends.signals import connection_created

from pgjobs.contrib.django.checkout import AliasCheckout, driver_errors, pool_of, psycopg_connection
from pgjobs.contrib.django.lent import LentCheckout
from pgjobs.db.borrow import Borrowable, borrow
from pgjobs.db.checkout import Checkout, returning
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.inherited import opened_here
from pgjobs.db.source import CONNECTION_DEFAULTS, PoolSource, own_pool
from pgjobs.errors import InvalidSetting, InvalidTransaction, PoolTooSmall, shown_name


class DjangoSource(PoolSource):
    """Connections of an alias of `settings.DATABASES`. A handler runs inside `atomic()` on the connection that holds
    its job's row lock, and gets that connection as `tx`.

    Each worker thread has its own connection of the alias, as a thread of a web server does, and keeps it while it
    finds jobs. After that `CONN_MAX_AGE` decides; on the other aliases it decides after each job. In a handler,
    `atomic()` is a savepoint, `transaction.on_commit` waits for the job's commit, and `set_rollback(True)` makes the
    attempt fail. The log of queries and the connections of caches are reset between two jobs, as between two requests.
    Maintenance, LISTEN and `enqueue(None, ...)` use other connections, made as Django makes them.
    """

    batches = False  # on_commit hooks, and the end of atomic(), belong to one job

    def __init__(self, alias: str = "default") -> None:
        if alias not in connections:
            raise InvalidSetting(
                f"settings.DATABASES has no {shown_name(alias)}, but {', '.join(map(repr, connections))}"
            )
        super().__init__(partial(own_pool, self._connect))
        self.alias = alias
        connection_created.connect(self._created)

    def _created(self, connection: Any, **_: Any) -> None:
        if isinstance(connection.connection, psycopg.Connection):
            opened_here(connection.connection)  # so that a forked child recognises it as inherited

    @contextmanager
    def checkout(self) -> Iterator[Checkout]:
        with returning(AliasCheckout(connections[self.alias])) as checkout:
            yield checkout

    @contextmanager
    def checkout_within(self, tx: Borrowable) -> Iterator[Checkout]:
        """In the `atomic()` block that is open on the alias."""
        wrapper = connections[self.alias]
        if borrow(tx) is not borrow(wrapper):
            raise InvalidTransaction(f"tx is {self.alias!r} or its connection for this client, not {shown_name(tx)}")
        yield LentCheckout(wrapper)

    def ensure_size(self, threads: int, *, grow: bool) -> None:
        pool = pool_of(connections[self.alias])
        if pool is not None and 0 < pool.max_size < threads:
            raise PoolTooSmall(
                f"{threads} worker threads need as many connections; the pool in the OPTIONS of {self.alias!r} has "
                f"max_size={pool.max_size}"
            )

    def _connect(self) -> AnyConnection:
        """A new connection apart from the alias's, made as Django makes its own."""
        of_alias = connections[self.alias]
        options = {**CONNECTION_DEFAULTS, **of_alias.settings_dict["OPTIONS"]}
        options.pop("pool", None)
        wrapper = type(of_alias)({**of_alias.settings_dict, "OPTIONS": options}, self.alias)
        with driver_errors():
            wrapper.connect()
        conn = psycopg_connection(wrapper)
        conn.cursor_factory = psycopg.Cursor
        return conn
