"""VACUUM of a table for an operator. It cannot run in a transaction and may take long, so it has a thread and a
connection of its own; how it ended stands in the audit."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import psycopg

from pgjobs.clean_text import one_line
from pgjobs.client import Client
from pgjobs.dashboard.problem import log
from pgjobs.dashboard.queries import DashboardQueries
from pgjobs.maintenance.reindexer import StatementTimeout

_TIMEOUT = 3600.0  # seconds
_LOCKED = "55P03"  # lock_not_available: the SQLSTATE of the warning with which SKIP_LOCKED passes over a table


@dataclass(eq=False)
class Vacuum:
    """One run. `problem` says that and why the table was not vacuumed; None while it runs, and if it was."""

    table: str
    who: str
    problem: str | None = None
    warnings: list[str] = field(default_factory=list)
    is_locked: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    def note(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        """A notice of the server. VACUUM says by warnings, not by an error, that it has passed over a table."""
        if diagnostic.severity_nonlocalized != "WARNING":
            return
        self.is_locked |= diagnostic.sqlstate == _LOCKED
        self.warnings.append(one_line(diagnostic.message_primary or "", 300))


class Vacuums:
    """The vacuums of this process, one of a table at a time."""

    def __init__(self, client: Client, queries: DashboardQueries) -> None:
        self._client = client
        self._queries = queries
        self._lock = threading.Lock()
        self._running: dict[str, Vacuum] = {}

    def start(self, table: str, who: str) -> Vacuum:
        """Vacuum a table in the background. If this process does that already, its present run is returned."""
        with self._lock:
            if table in self._running:
                return self._running[table]
            run = Vacuum(table, who)
            threading.Thread(target=self._run, args=[run], name="pgjobs/vacuum", daemon=True).start()
            self._running[table] = run  # after the start, which may fail; the thread waits for the lock before it ends
            return run

    def _run(self, run: Vacuum) -> None:
        began = time.monotonic()
        try:
            with self._client.source.connect() as conn:
                conn.add_notice_handler(run.note)
                with StatementTimeout("pgjobs/vacuum").bounded(conn, _TIMEOUT):
                    self._queries.vacuum(conn, run.table)
            if run.is_locked:
                run.problem = "not vacuumed, since another transaction, perhaps autovacuum, holds a lock on it"
            elif run.warnings:
                run.problem = f"perhaps not vacuumed; the database warns: {'; '.join(run.warnings)}"
        except psycopg.errors.QueryCanceled:
            run.problem = f"not vacuumed: it was cancelled, as after {_TIMEOUT / 60:.0f} minutes"
        except (psycopg.Error, OSError) as error:
            run.problem = f"not vacuumed: {one_line(error, 300)}"
        except Exception as error:  # of a pool of the application, say; its text may be confidential
            run.problem = f"not vacuumed, for {type(error).__name__}: the log of the dashboard says more"
            log.error("table %s could not be vacuumed", run.table, exc_info=error)
        finally:
            with self._lock:
                del self._running[run.table]
            self._write_down(run, time.monotonic() - began)
            run.ended.set()

    def _write_down(self, run: Vacuum, seconds: float) -> None:
        target = {"table": run.table, "seconds": round(seconds, 1)}
        if run.problem is not None:
            target["problem"] = run.problem
            log.warning("table %s: %s", run.table, run.problem)
        try:
            with self._client.source.transaction() as conn:
                self._queries.begin_acting(conn)
                count = 0 if run.problem is not None else 1
                self._queries.write_audit(conn, run.who, "vacuum-tables", target, count)
        except Exception as error:
            log.warning("the audit does not say how the vacuum of table %s ended: %s", run.table, one_line(error))
