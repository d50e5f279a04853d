"""The process that workers are forked from, so that the next one is there in milliseconds; and what a worker does.

workers.py runs it as `python -m tests.faults.child`, writes one line of JSON for each worker it wants, and reads the
process id of each. The stop points wrap methods, here alone: the library knows nothing of them.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

from pgjobs import Client, Job, WorkerPool
from pgjobs.db.borrow import borrow
from pgjobs.execution.batch import Batch, Batches
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.queries import ExecutionQueries

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Fork a worker for each line of the standard input, until that ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    for line in sys.stdin:
        config = json.loads(line)
        if config.get("source") in ("sqlalchemy", "django"):
            from tests.acceptance import frameworks  # noqa: F401  once, before the fork: it takes a second
        pid = os.fork()
        if pid == 0:
            _become_worker(config)
        print(pid, flush=True)


def _become_worker(config: dict[str, Any]) -> None:
    """Run a worker to its end; does not return."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status = 1
    try:
        logging.basicConfig(filename=config["log"], level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
        _work(**config)
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        logging.getLogger("child").exception("the worker failed")
    finally:
        logging.shutdown()
        os._exit(status)


def _work(
    *,
    dsn: str,
    ledger: str,
    schema: str,
    queues: dict[str, int],
    stop_at: str | None = None,
    timeout: float | None = 60.0,
    poll: float = 1.0,
    listen: bool = True,
    listen_dsn: str | None = None,
    schedules: int = 0,
    migrate: bool = False,
    batch_size: int = 1,
    source: str = "own",
    **_: Any,
) -> None:
    if stop_at is not None:
        _stop_at(stop_at)
    client = _client(source, dsn, schema, sum(queues.values()))
    if migrate:
        client.migrate()
    handler = Handler(ledger, schema)
    WorkerPool(
        client,
        {"job": handler, "tick": handler.tick},
        queues=queues,
        timeout=None if timeout is None else timedelta(seconds=timeout),
        poll_interval=timedelta(seconds=poll),
        listen=listen,
        listen_dsn=listen_dsn,
        batch_size=batch_size,
        **_schedules(schedules),
    ).run()


def _client(source: str, dsn: str, schema: str, threads: int) -> Client:
    """On connections of this kind: `own` ones, `plain` ones of a pool that prepares nothing, or a framework's."""
    if source == "own":
        return Client(dsn, schema=schema)
    dsn = make_conninfo(dsn, application_name="pgjobs")  # by which the storm knows them
    if source == "plain":
        kwargs = {"prepare_threshold": None}
        return Client(ConnectionPool(dsn, kwargs=kwargs, min_size=0, max_size=threads + 4, open=True), schema=schema)
    from tests.acceptance import frameworks

    if source == "sqlalchemy":
        return frameworks.SQLAlchemyApp(dsn, schema, pool_size=threads).client
    return frameworks.DjangoApp(dsn, schema).client


def _schedules(number: int) -> dict[str, Any]:
    """What a pool is given for so many schedules that tick every second."""
    if not number:
        return {}
    import pgjobs

    schedule, every = pgjobs.Schedule, pgjobs.every
    names = [f"schedule-{each}" for each in range(number)]
    args = [{"schedule": name} for name in names]
    return {
        "cron": [
            schedule(name, every(timedelta(seconds=1)), what, kind="tick", catch_up="all")
            for name, what in zip(names, args, strict=True)
        ]
    }


# --- stop points


def _freeze() -> None:
    """Stop the whole process, until somebody continues or kills it. Sent to this thread: of a signal to the process
    another thread may take care, while this one runs on for a moment."""
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _stop_at(point: str) -> None:
    """Wrap what stands next to this point of an attempt, and of a batch."""
    points = {
        "after_claim": [(Claimer, "claim"), (Batches, "_claim")],
        "after_handler": [(ExecutionQueries, "complete"), (Batch, "_commit")],
        "after_commit": [(ExecutionQueries, "complete"), (Batch, "_commit")],
    }
    for owner, name in points[point]:
        setattr(owner, name, _freezing(getattr(owner, name), point))


def _freezing(call: Callable[..., Any], point: str) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if point == "after_handler":
            _freeze()
        done = call(*args, **kwargs)
        if point == "after_commit" or (point == "after_claim" and done is not None):
            _freeze()
        return done

    return wrapped


# --- the handler


class Handler:
    """Writes what happens into two tables: `start` at once, through a connection of its own; `effect` through the
    job's transaction. Then it does what the job's args ask for: `first` at the first start, `then` at others."""

    def __init__(self, ledger: str, schema: str) -> None:
        self._dsn = ledger
        self._schema = sql.Identifier(schema)
        self._conn: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()

    def __call__(self, tx: Any, job: Job[Any]) -> None:
        self._note(
            "INSERT INTO {}.start (job, attempt, pid, due) VALUES (%s, %s, %s, %s)",
            [job.id, job.attempt, os.getpid(), job.scheduled_at],
        )
        session = "concat_ws(' ', current_setting('search_path'), current_user, current_setting('statement_timeout'))"
        effect = "INSERT INTO {}.effect (job, attempt, pid, session) VALUES (%s, %s, %s, " + session + ")"
        tx = borrow(tx)
        tx.execute(sql.SQL(effect).format(self._schema), [job.id, job.attempt, os.getpid()])
        first = job.attempt == 1 and "excused" not in job.metadata
        command, _, value = job.args["first" if first else "then"].partition(" ")
        getattr(self, f"_{command}")(tx, value)

    def tick(self, tx: Any, job: Job[Any]) -> None:
        statement = sql.SQL("INSERT INTO {}.tick_effect (job, schedule) VALUES (%s, %s)").format(self._schema)
        borrow(tx).execute(statement, [job.id, job.args["schedule"]])

    def _note(self, statement: str, values: list[Any]) -> None:
        """Once more on a new connection when the old one has died with the server."""
        with self._lock:
            for last in (False, True):
                try:
                    if self._conn is None:
                        self._conn = psycopg.connect(self._dsn, autocommit=True, application_name="ledger")
                    self._conn.execute(sql.SQL(statement).format(self._schema), values)
                    return
                except psycopg.OperationalError:
                    self._conn = None
                    if last:
                        raise

    def _return(self, tx: Any, value: str) -> None:
        pass

    def _sleep(self, tx: Any, value: str) -> None:
        threading.Event().wait(float(value))  # faketime breaks time.sleep()

    def _sql(self, tx: Any, value: str) -> None:
        """In a statement for so many seconds."""
        tx.execute("SELECT pg_sleep(%s)", [float(value)])

    def _gate(self, tx: Any, value: str) -> None:
        """Until somebody gives this lock up."""
        tx.execute("SELECT pg_advisory_xact_lock_shared(%s)", [int(value)])

    def _fail(self, tx: Any, value: str) -> None:
        raise ValueError(value)

    def _abort(self, tx: Any, value: str) -> None:
        os.abort()

    def _segfault(self, tx: Any, value: str) -> None:
        ctypes.string_at(0)

    def _exit(self, tx: Any, value: str) -> None:
        os._exit(1)

    def _freeze(self, tx: Any, value: str) -> None:
        _freeze()

    def _hog(self, tx: Any, value: str) -> None:
        """A call into C that keeps the interpreter's lock for so many seconds."""
        ctypes.PyDLL(None).sleep(int(value))

    def _fork(self, tx: Any, value: str) -> None:
        """Leave a child behind that ends by itself, the way Python does it, with the connection it was born with."""
        if os.fork() == 0:
            raise SystemExit(0)

    def _child(self, tx: Any, value: str) -> None:
        """Start a process the ordinary way, and one that is forked and ends at once."""
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
