"""The other ways to run the tests that start worker pools, chosen by the environment: see `make modes`.

PGJOBS_TEST_BATCH=20    pools run batches of that many jobs, where a test says nothing of them
PGJOBS_TEST_PLAIN=1     pgjobs prepares nothing: a message is a pipeline of single statements, as behind a pooler
PGJOBS_TEST_DECOYS=1    decoys come before `public` in the search_path, and no statement of pgjobs may find one

A test of what cannot be so in a mode says why with a mark, `one_by_one("...")`, `prepared("...")` or
`no_decoys("...")`, and is left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import psycopg

from pgjobs import Client, WorkerPool
from pgjobs.db.checkout import PoolCheckout
from pgjobs.db.cursors import AnyConnection
from pgjobs.enqueuing import single_insert
from pgjobs.enqueuing.enqueuer import Enqueuer
from pgjobs.execution.transport import Transport
from tests import decoys

BATCH_SIZE = int(os.environ.get("PGJOBS_TEST_BATCH") or 1)
PLAIN = bool(os.environ.get("PGJOBS_TEST_PLAIN"))
DECOYS = bool(os.environ.get("PGJOBS_TEST_DECOYS"))
LEFT_OUT = {"one_by_one": BATCH_SIZE > 1, "prepared": PLAIN, "no_decoys": DECOYS}  # by the mark


def install() -> None:
    """Let this process be in the mode that it was started in."""
    if BATCH_SIZE > 1:
        init = WorkerPool.__init__

        @wraps(init)
        def batched(self: WorkerPool, client: Client, *args: Any, **options: Any) -> None:
            if client.source.batches:
                options.setdefault("batch_size", BATCH_SIZE)
            init(self, client, *args, **options)

        WorkerPool.__init__ = batched  # type: ignore[method-assign]
    if PLAIN:
        without_prepared(setattr)
    if DECOYS:
        migrate = Client.migrate

        @wraps(migrate)
        def migrate_among_decoys(self: Client, tx: Any = None, **options: Any) -> Any:
            steps = migrate(self, tx, **options)
            if tx is None and steps:
                with self.source.first_connection() as conn, beside(conn) as other:
                    decoys.add_for(other, self.schema)
            return steps

        Client.migrate = migrate_among_decoys  # type: ignore[method-assign]


def beside(conn: AnyConnection) -> AnyConnection:
    """Another connection to the same database."""
    return psycopg.connect(conn.info.dsn, password=conn.info.password, autocommit=True)


def without_prepared(patch: Callable[[Any, str, object], None]) -> None:
    """Let nothing be prepared by pgjobs; `patch` is setattr, or pytest's."""
    init, send = Transport.__init__, single_insert.send

    def unprepared_transport(self: Transport, conn: AnyConnection, tag: str, *, prepares: bool) -> None:
        init(self, conn, tag, prepares=False)

    def unprepared(conn: AnyConnection, may_prepare: bool, *insert: Any) -> Any:
        return send(conn, False, *insert)

    patch(Transport, "__init__", unprepared_transport)
    patch(PoolCheckout, "enable_prepare", lambda _: None)
    patch(Enqueuer, "_is_direct", lambda *_: False)
    patch(single_insert, "send", unprepared)
