"""The private names of other libraries that pgjobs uses: all of them, where, and that they are still there.

psycopg has an upper bound because of these. `make prerelease` runs the suite with what comes next.
"""

from __future__ import annotations

import ast
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
    # Python: what its own multiprocessing calls at the end of a process; see test_work_stop.py
    "_run_exitfuncs": {"processes/child.py"},
    "_shutdown": {"processes/child.py"},
    # psycopg
    "_preparing": {"db/connection.py", "db/handler_connection.py", "enqueuing/single_insert.py"},
    "_prepared": {
        "db/connection.py",
        "db/handler_connection.py",
        "enqueuing/single_insert.py",
        "execution/savepoints.py",
        "execution/transport.py",
    },
    "_prepared_idx": {"db/handler_connection.py"},
    "_get_tx_start_command": {"enqueuing/single_insert.py"},
    "_deallocate": {"db/connection.py", "db/handler_connection.py"},
    "_notice_handler": {"db/handler_connection.py"},
    "_notify_handler": {"db/handler_connection.py"},
    "_notice_handlers": {"db/handler_connection.py"},
    "_notify_handlers": {"db/handler_connection.py"},
    # db/handler_connection.py and db/checkout.py also set `_autocommit`, `_num_transactions` and `_closed` in the
    # attributes of a new object
    # psycopg_pool
    "_configure": {"db/checkout.py"},
    "_pool": {"db/inherited.py", "enqueuing/enqueuer.py"},
    "_add_connection": {"db/own_pool.py"},
    "_connect": {"db/own_pool.py"},
    # db/own_pool.py uses `_lock`, `_nconns`, `_waiting` and `_maybe_grow_pool` of itself: see test_unreachable.py
    "_sched_runner": {"forking.py"},
    # SQLAlchemy
    "_connections": {"contrib/sqlalchemy/checkout.py"},
    "_connection_record": {"contrib/sqlalchemy/checkout.py", "contrib/sqlalchemy/connections.py"},
    "_max_overflow": {"contrib/sqlalchemy/source.py"},
    # Django
    "_fixture_teardown": {"contrib/django/test.py"},
    "_configure_connection": {"contrib/django/checkout.py"},
}

#: Private names of our own values.
OURS = {
    "execution/attempt.py": {"_began", "_complete", "_conn_id", "_lock", "_process", "_timeout"},
    "worker_pool.py": {"_encoder"},
    "contrib/django/lent.py": {"_enter_block"},
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
        for name in ("_autocommit", "_closed", "_num_transactions", "_prepared", "_adapters", "pgconn", "lock"):
            assert name in vars(conn), "db/handler_connection.py copies or sets it"
        assert conn._num_transactions == 0
        with conn.transaction():
            assert conn._num_transactions == 1, "in a batch it is 1, so that psycopg refuses commit()"
        conn._num_transactions = 1
        with pytest.raises(psycopg.ProgrammingError):
            conn.commit()
        conn._num_transactions = 0
        assert conn._notice_handlers == [] == conn._notify_handlers
        conn.add_notice_handler(print)
        conn.add_notify_handler(print)
        assert conn._notice_handlers == [print] == conn._notify_handlers
        assert getattr(conn.pgconn.notice_handler, "func", None) is psycopg.Connection._notice_handler
        assert getattr(conn.pgconn.notify_handler, "func", None) is psycopg.Connection._notify_handler


def _checks_before_it_sends(dsn: str) -> None:
    class Refusing(psycopg.Connection[Any]):
        refuses = False

        def _check_connection_ok(self) -> None:
            if self.refuses:
                raise ArithmeticError
            super()._check_connection_ok()

    with Refusing.connect(dsn) as conn:
        conn.refuses = True
        for act in (conn.cursor, lambda: conn.execute("SELECT 1"), lambda: conn.pipeline().__enter__()):
            with pytest.raises(ArithmeticError):
                act()
        conn.refuses = False


def _prepared_statements(dsn: str) -> None:
    asked: list[bytes] = []
    deallocated: list[bytes | None] = []

    class Noted(PrepareManager):
        def maybe_add_to_cache(self, query: Any, prep: Any, name: bytes) -> Any:
            asked.append(query.query)
            return super().maybe_add_to_cache(query, prep, name)

    class Noting(psycopg.Connection[Any]):
        def _deallocate(self, name: bytes | None) -> Any:
            deallocated.append(name)
            return super()._deallocate(name)

    with Noting.connect(dsn) as conn:
        conn._prepared = Noted()
        conn.prepare_threshold = 0
        kept = {name: value for name, value in vars(conn._prepared).items() if not isinstance(value, int)}
        conn.execute("SELECT %s::int", [1])
        assert asked == [b"SELECT $1::int"]
        assert conn._prepared._prepared_idx == 1, "the number of the next name; all objects of a connection share it"
        prepared = conn._prepared
        query: Any = PreparedQuery(b"SELECT 3")
        assert prepared.get(query) == (Prepare.SHOULD, b"_pg3_1"), "enqueuing/single_insert.py executes it"
        key = PrepareManager.maybe_add_to_cache(prepared, query, Prepare.SHOULD, b"_pg3_1")
        assert key is not None
        assert len(asked) == 1
        prepared.validate(key, Prepare.SHOULD, b"_pg3_1", [conn.pgconn.exec_(b"SELECT 3")])
        assert prepared.get(query) == (Prepare.YES, b"_pg3_1")
        assert list(prepared.maintain_gen(conn)) == []
        assert conn._get_tx_start_command() == b"BEGIN"
        conn._prepared.clear()
        conn.execute("SELECT 2")
        assert deallocated == [None]
        assert all(vars(conn._prepared)[name] is value for name, value in kept.items()), "the collections are shared"


class _Counted(psycopg.Connection[Any]):
    waits = 0

    def wait(self, *args: Any, **options: Any) -> Any:
        self.waits += 1
        return super().wait(*args, **options)


def _everything_goes_through_wait(dsn: str) -> None:
    def copy() -> None:
        with conn.cursor().copy("COPY mine FROM STDIN") as lines:
            lines.write_row([1])

    def copy_out() -> None:
        with conn.cursor().copy("COPY mine TO STDOUT") as lines:
            list(lines)

    def pipeline() -> None:
        with conn.pipeline():
            conn.execute("SELECT 1")

    def block() -> None:
        with conn.transaction():
            pass

    def server_cursor() -> None:
        with conn.cursor("mine") as cursor:
            cursor.execute("SELECT 1")
            before = conn.waits
            cursor.fetchone()
            assert conn.waits > before

    with _Counted.connect(dsn) as conn:
        conn.execute("CREATE TEMP TABLE mine (n int)")
        acts: list[Callable[[], object]] = [
            lambda: conn.execute("SELECT 1"),
            lambda: conn.cursor().executemany("SELECT %s", [[1], [2]]),
            lambda: list(conn.cursor().stream("SELECT 1")),
            lambda: psycopg.ClientCursor(conn).execute("SELECT 1"),
            copy,
            copy_out,
            pipeline,
            block,
            server_cursor,
            lambda: list(conn.notifies(timeout=0)),
            conn.commit,
            conn.rollback,
            lambda: conn.set_autocommit(True),
        ]
        for act in acts:
            before = conn.waits
            act()
            assert conn.waits > before, act
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
    [
        _connection,
        _checks_before_it_sends,
        _prepared_statements,
        _everything_goes_through_wait,
        _pool,
        _sqlalchemy,
        _django,
    ],
    ids=lambda look: look.__name__.strip("_"),
)
def test_the_private_names_are_there_and_do_what_they_did(look: Callable[[str], None], database: str) -> None:
    """A newer psycopg could have changed them, and a queue would have found out in production."""
    look(database)
