"""One method per statement of sql/doctor.sql. Ages and waits are in seconds, and sizes in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, literal_cursor
from pgjobs.db.roles import Right
from pgjobs.db.source import PoolSource

Rows = list[tuple[Any, ...]]
Row = tuple[Any, ...]


class Look:
    """What a check may look at: the database by these statements, and the pool of this process."""

    def __init__(self, conn: AnyConnection, schema: str, source: PoolSource, threads: int) -> None:
        self.conn = conn
        self.schema = schema
        self.source = source
        self.threads = threads  # that take connections of the pool
        self._sql = statements.load("doctor.sql", schema)

    def _rows(self, statement: bytes, **values: object) -> Rows:
        with literal_cursor(self.conn) as cur:
            cur.execute(statement, values)
            return cur.fetchall()

    def _row(self, statement: bytes, **values: object) -> Row:
        """The row of a statement that always returns one."""
        (row,) = self._rows(statement, **values)
        return row

    def begin(self) -> None:
        """Make the open transaction read-only, and bound it."""
        with literal_cursor(self.conn) as cur:
            cur.execute(self._sql["begin_check"])

    # --- the server

    def server_state(self) -> tuple[bool, int, int, float]:
        """Whether it is a standby; its version; the process id of this session there; its time since 1970."""
        standby, version, pid, time = self._row(self._sql["server_state"])
        return standby, version, pid, time

    def settings(self, names: Sequence[str]) -> dict[str, str]:
        return dict(self._rows(self._sql["settings"], names=list(names)))

    def connections(self) -> list[int | None]:
        """How many there are and may be: on the server, in this database, of this role."""
        return list(self._row(self._sql["connections"]))

    def living(self) -> tuple[int, int]:
        """The number of living worker processes, and of their threads."""
        processes, threads = self._row(self._sql["living_workers"])
        return processes, threads

    def notify(self, channel: str) -> None:
        self._rows(self._sql["notify"], channel=channel)

    # --- what holds vacuum back

    def old_transactions(self, after: timedelta) -> Rows:
        """pid, role, application, state, age, transactions held back"""
        return self._rows(self._sql["old_transactions"], after=after)

    def hidden_sessions(self) -> int:
        hidden: int = self._row(self._sql["hidden_sessions"])[0]
        return hidden

    def prepared_transactions(self, after: timedelta) -> Rows:
        """name, role, age"""
        return self._rows(self._sql["prepared_transactions"], after=after)

    def slots(self) -> Rows:
        """name, type, whether it is active, transactions held back, size of the WAL retained"""
        return self._rows(self._sql["slots"])

    def standbys(self, transactions: int) -> Rows:
        """application, address, transactions held back"""
        return self._rows(self._sql["standbys"], transactions=transactions)

    def long_jobs(self, after: timedelta) -> Rows:
        """id, queue, kind, worker, age"""
        return self._rows(self._sql["long_jobs"], after=after)

    # --- the tables

    def tables(self, tables: Sequence[str]) -> Rows:
        """table, dead rows, living rows, time since a vacuum, whether autovacuum is off, size, rows"""
        return self._rows(self._sql["tables"], schema=self.schema, tables=list(tables))

    def indexes(self, tables: Sequence[str]) -> Rows:
        """index, table, whether it is valid, size, entries"""
        return self._rows(self._sql["indexes"], schema=self.schema, tables=list(tables))

    def function_bodies(self) -> Rows:
        """name, body"""
        return self._rows(self._sql["function_bodies"], schema=self.schema)

    def may_read_ids(self) -> bool:
        may: bool = self._row(self._sql["may_read_ids"])[0]
        return may

    def roles_to_check(self, roles: Sequence[str]) -> list[str]:
        return [role for (role,) in self._rows(self._sql["roles_to_check"], roles=list(roles))]

    def own_rights(self) -> tuple[str, bool, bool, bool, bool]:
        """This role, and whether it may claim, delete, enqueue, and see workers."""
        role, claims, deletes, enqueues, views = self._row(self._sql["own_rights"])
        return role, claims, deletes, enqueues, views

    def missing_rights(self, role: str, rights: Sequence[Right]) -> Rows:
        """privilege, object, column"""
        values = {
            "sorts": [right.sort for right in rights],
            "privileges": [right.privilege for right in rights],
            "objects": [right.object for right in rights],
            "parts": [right.part for right in rights],
        }
        return self._rows(self._sql["missing_rights"], role=role, **values)

    # --- the work

    def waiting_queues(self) -> Rows:
        """queue, longest wait, how long it has been paused, number of living processes that work it"""
        return self._rows(self._sql["waiting_queues"])

    def unknown_kinds(self, after: timedelta) -> Rows:
        """kind, number of jobs, id and queue of one of them"""
        return self._rows(self._sql["unknown_kinds"], after=after)

    def failed_kinds(self) -> Rows:
        """kind, number of jobs, id and queue of one of them"""
        return self._rows(self._sql["failed_kinds"])

    def snoozing_jobs(self, times: int) -> Rows:
        """kind, number of jobs, most snoozes, id and queue of one of them"""
        return self._rows(self._sql["snoozing_jobs"], times=times)

    def vanished_attempts(self) -> Rows:
        """kind, number of jobs, most attempts, id and queue of one of them"""
        return self._rows(self._sql["vanished_attempts"])

    def schedules(self) -> Rows:
        """name, error, for how long it is overdue, for how long no code has had it, whether its last jobs failed"""
        return self._rows(self._sql["schedules"])

    def duties(self) -> dict[str, float]:
        """For how long each duty has been due."""
        return dict(self._rows(self._sql["waiting_duties"]))

    def work_of_duties(self, after: timedelta) -> tuple[float | None, bool]:
        """For how long a job has been due that was not made available, if it is longer; whether any job runs."""
        due, running = self._row(self._sql["work_of_duties"], after=after)
        return due, running
