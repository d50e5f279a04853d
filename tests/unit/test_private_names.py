"""The private names of other libraries that pgjobs uses: all of them, where, and that they are still there.

psycopg has an upper bound because of these. `make prerelease` runs the suite with what comes next.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django.db.backends.postgresql.base as django_base
import psycopg
import pytest
import sqlalchemy
from psycopg._preparing import Prepare, PrepareManager
from psycopg_pool import ConnectionPool
from sqlalchemy.orm import Session

import pgjobs
from pgjobs.enqueuing.single_insert import PreparedQuery

pytestmark = pytest.mark.finding("E11")
PACKAGE = Path(pgjobs.__file__).parent

#: Each name, and the files that use it.
USES: dict[str, set[str]] = {
    # psycopg
    "_num_transactions": {"db/checkout.py", "execution/savepoints.py"},
    "_notice_handlers": {"db/python_state.py"},
    "_notify_handlers": {"db/python_state.py"},
    "_prepared": {"db/connection.py", "enqueuing/single_insert.py", "execution/savepoints.py"},
    "_preparing": {"enqueuing/single_insert.py"},
    "_get_tx_start_command": {"enqueuing/single_insert.py"},
    "_deallocate": {"execution/transport.py"},
    # psycopg_pool
    "_configure": {"db/checkout.py"},
    "_pool": {"db/inherited.py", "enqueuing/enqueuer.py"},
    "_add_connection": {"db/own_pool.py"},
    "_connect": {"db/own_pool.py"},
    # db/own_pool.py uses `_lock`, `_nconns`, `_waiting` and `_maybe_grow_pool` of itself: see test_unreachable.py
    "_sched_runner": {"forking.py"},
    # SQLAlchemy
    "_connections": {"contrib/sqlalchemy.py"},
    "_connection_record": {"contrib/sqlalchemy.py"},
    "_max_overflow": {"contrib/sqlalchemy.py"},
    # Django
    "_configure_connection": {"contrib/django/source.py"},
}

#: Private names of our own values.
OURS = {
    "execution/attempt.py": {"_began", "_complete", "_conn_id", "_lock", "_process", "_timeout"},
    "worker_pool.py": {"_encoder"},
    "db/own_pool.py": {"_pid"},
    "timetable.py": {"_fields", "_next_wall", "_written_out"},
}


def _used(tree: ast.AST) -> Iterator[str]:
    """Private attributes of anything but `self`: by a dot or by their name; private modules."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls" | "os" | "sys")):  # those of Python are documented
                pass
            case ast.Attribute(attr=name) if _is_private(name):
                yield name
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr" | "attrgetter"), args=args):
                named = [arg.value for arg in args if isinstance(arg, ast.Constant)]
                yield from (name for name in named if isinstance(name, str) and _is_private(name))
            case ast.ImportFrom(module=str(module)):
                yield from filter(_is_private, [*module.split("."), *(alias.name for alias in node.names)])


def _is_private(name: str) -> bool:
    of_named_tuples = ("_replace", "_asdict")  # which Python documents
    return name[:1] == "_" and name[:2] != "__" and len(name) > 1 and name not in of_named_tuples


def test_no_other_private_name_is_used() -> None:
    """psycopg was used by private parts, and nothing said by which."""
    uses: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        file = path.relative_to(PACKAGE).as_posix()
        for name in set(_used(ast.parse(path.read_text()))) - OURS.get(file, set()):
            if not name.startswith("_pgjobs"):
                uses.setdefault(name, set()).add(file)
    assert uses == USES


def _connection(dsn: str) -> None:
    with psycopg.connect(dsn) as conn:
        assert conn._num_transactions == 0
        with conn.transaction():
            assert conn._num_transactions == 1, "execution/savepoints.py counts along"
        assert conn._notice_handlers == [] == conn._notify_handlers
        conn.add_notice_handler(print)
        conn.add_notify_handler(print)
        assert conn._notice_handlers == [print] == conn._notify_handlers, "db/python_state.py restores them"


def _prepared_statements(dsn: str) -> None:
    with psycopg.connect(dsn, prepare_threshold=0) as conn:
        prepared = conn._prepared
        asked: list[bytes] = []
        add = prepared.maybe_add_to_cache

        def noted(query: Any, prepare: Any, name: bytes) -> Any:
            asked.append(query.query)
            return add(query, prepare, name)

        prepared.maybe_add_to_cache = noted  # type: ignore[method-assign,assignment]
        conn.execute("SELECT %s::int", [1])
        assert asked == [b"SELECT $1::int"]
        assert isinstance(vars(prepared), dict)
        query: Any = PreparedQuery(b"SELECT 2")
        assert prepared.get(query) == (Prepare.SHOULD, b"_pg3_1"), "enqueuing/single_insert.py executes it"
        key = PrepareManager.maybe_add_to_cache(prepared, query, Prepare.SHOULD, b"_pg3_1")
        assert key is not None
        assert len(asked) == 1
        prepared.validate(key, Prepare.SHOULD, b"_pg3_1", [conn.pgconn.exec_(b"SELECT 2")])
        assert prepared.get(query) == (Prepare.YES, b"_pg3_1")
        assert list(prepared.maintain_gen(conn)) == []
        assert conn._get_tx_start_command() == b"BEGIN"
        prepared.clear()
        assert list(inspect.signature(conn._deallocate).parameters) == ["name"]


def _everything_goes_through_wait(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        sent, wait = [], conn.wait

        def noted(*args: Any, **options: Any) -> Any:
            sent.append(1)
            return wait(*args, **options)

        conn.wait = noted  # type: ignore[method-assign]
        conn.execute("SELECT 1")
        with conn.transaction():
            conn.execute("SELECT 1")
        assert len(sent) == 4
        assert conn.lock.locked() is False


def _pool(dsn: str) -> None:
    def configure(conn: psycopg.Connection[Any]) -> None: ...

    with ConnectionPool(dsn, min_size=0, max_size=1, configure=configure, open=True) as pool, pool.connection() as conn:
        assert pool._configure is configure
        assert conn._pool is pool
        assert isinstance(pool.conninfo, str)
        assert callable(pool.connection_class.connect)


def _sqlalchemy(dsn: str) -> None:
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), max_overflow=3)
    with engine.connect() as connection, Session(connection) as session:
        session.connection()
        transaction = session.get_transaction()
        assert transaction is not None
        assert connection in {taken[0] for taken in transaction._connections.values()}
        fairy: Any = connection.connection
        assert fairy._connection_record is not None
        pool: Any = engine.pool
        assert pool._max_overflow == 3
    engine.dispose()


def _django(dsn: str) -> None:
    assert callable(django_base.DatabaseWrapper._configure_connection)


@pytest.mark.parametrize(
    "look",
    [_connection, _prepared_statements, _everything_goes_through_wait, _pool, _sqlalchemy, _django],
    ids=lambda look: look.__name__.strip("_"),
)
def test_the_private_names_are_there_and_do_what_they_did(look: Callable[[str], None], database: str) -> None:
    """A newer psycopg could have changed them, and a queue would have found out in production."""
    look(database)
