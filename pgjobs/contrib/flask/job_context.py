"""The app context in which one attempt runs.

Flask-SQLAlchemy keeps one Session for each app context in a registry. While a handler runs, the registry has the
Session of the job, so that `db.session` writes in the job's transaction. It is taken out before the app context ends:
Flask-SQLAlchemy would close it then. An app context that the handler pushes shares the Session: the writes in it would
be on another connection otherwise, and stay when the job fails. For the same reason, a Session that `db.session` makes
after `db.session.remove()` may not begin a transaction.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from flask import Flask, appcontext_pushed, current_app, g, has_app_context

from pgjobs.errors import InvalidTransaction, TransactionBroken

if TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy

#: The app of the handler that runs, and its `tx`.
_running: ContextVar[tuple[Flask, Any] | None] = ContextVar("pgjobs_flask_running", default=None)

_REMOVED = (
    "db.session.remove() in a handler gave db.session another Session than that of the job, whose writes would stay if "
    "the job fails: leave out the remove(), or call db.session.rollback() to drop what was written; for a transaction "
    "apart from the job use `with Session(db.engine) as other:`, with Session of sqlalchemy.orm"
)


@contextmanager
def job_context(app: Flask, db: SQLAlchemy | None) -> Iterator[Callable[[Any], None]]:
    """A new app context. The function that it yields takes the handler's `tx`."""
    with app.app_context(), ExitStack() as stack:

        def use(tx: Any) -> None:
            stack.callback(_running.reset, _running.set((app, tx)))
            if db is not None and _is_session(tx):
                stack.enter_context(_registered(db.session.registry, tx))

        yield use


def current_tx(app: Flask) -> Any:
    """The `tx` of the handler of this app that runs; None outside of handlers."""
    running = _running.get()
    return None if running is None or running[0] is not app else running[1]


def share_session(app: Flask, db: SQLAlchemy) -> None:
    """Let the app contexts that a handler pushes have the Session of its job."""

    def pushed(sender: Flask, **_: Any) -> None:
        tx = current_tx(sender)
        if is_job_session(tx):
            g._pgjobs_shared = tx
            db.session.registry.set(tx)

    appcontext_pushed.connect(pushed, app, weak=False)
    guard_session(db)


def guard_session(db: SQLAlchemy) -> None:
    """Refuse in handlers what `db.session` would write in another transaction than that of the job. It is best called
    before the app has threads: a listener may not be added while another thread calls those that there are."""
    from sqlalchemy import event

    if not event.contains(db.session, "after_begin", _refuse_another):
        event.listen(db.session, "after_begin", _refuse_another)


def _refuse_another(session: Any, *_: Any) -> None:
    """Called when a Session has begun on a connection, before it sends its first statement."""
    app, tx = _running.get() or (None, None)
    if session is tx or not is_job_session(tx) or not has_app_context() or current_app != app:
        return
    registry = current_app.extensions["sqlalchemy"].session.registry
    if registry.has() and registry() is session:
        raise InvalidTransaction(_REMOVED)


def is_shared(session: Any) -> bool:
    """Whether the current app context shares this Session with that of the handler, which closes it."""
    return has_app_context() and g.get("_pgjobs_shared") is session


def the_session(tx: Any) -> Any:
    """The Session behind a scoped_session, which would be another one in another app context; else `tx` itself."""
    orm = sys.modules.get("sqlalchemy.orm")
    return tx() if orm is not None and isinstance(tx, orm.scoped_session) else tx


def is_job_session(tx: object) -> bool:
    """Whether this is the Session of a job, made as `db.session` makes its own."""
    return getattr(type(tx), "of_pgjobs_job", False)


def _is_session(tx: Any) -> bool:
    from sqlalchemy.orm import Session

    return isinstance(tx, Session)


@contextmanager
def _registered(registry: Any, session: Any) -> Iterator[None]:
    """In this block the registry has this Session. Raises TransactionBroken if it has another one at the end."""
    registry.set(session)
    try:
        yield
        if _has_another(registry, session):
            raise TransactionBroken(_REMOVED)
    finally:
        if _has_another(registry, session):
            registry().close()
        registry.clear()


def _has_another(registry: Any, session: Any) -> bool:
    return registry.has() and registry() is not session
