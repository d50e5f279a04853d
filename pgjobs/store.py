"""One method per statement, connection first: rows in, Jobs out. The only file that touches a cursor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any
from uuid import UUID

import psycopg
from psycopg import ClientCursor, Connection, Cursor, postgres
from psycopg.adapt import AdaptersMap, Loader
from psycopg.pq import ExecStatus, Format
from psycopg.rows import TupleRow, tuple_row
from psycopg.types.string import TextLoader

from pgjobs import statements
from pgjobs.errors import AttemptLost
from pgjobs.job import Job, JobState
from pgjobs.outcome import Outcome

AnyConnection = Connection[Any]
_ATTEMPT_LOST = "PJ001"  # raised by the function attempt_lost() of the schema


@dataclass(frozen=True, slots=True)
class Row:
    """What one insert needs; everything is checked and encoded already."""

    kind: str
    queue: str
    priority: int
    max_attempts: int
    args: str
    metadata: str
    tags: list[str]
    scheduled_at: Any
    delay: timedelta
    notify: bool


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the way to claim depends on."""

    uptime: timedelta
    can_check_connections: bool  # whether it can watch for clients that vanish while it works for them
    transaction_bound: str  # the setting that ends a transaction which lasts too long


class Store:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.channel = statements.channel(schema)
        self._enqueue = statements.load("enqueue.sql", schema)
        self._maintain = statements.load("maintain.sql", schema)
        self._observe = statements.load("observe.sql", schema)
        work = _with_savepoint(statements.load("work.sql", schema), f"pgjobs_{token_hex(4)}")
        self._work = work
        self._claims = {
            "priority": work["claim"],
            # the only difference between the two orders
            "scheduled_at": work["claim"].replace(b"ORDER BY priority, scheduled_at", b"ORDER BY scheduled_at"),
        }
        ending = (work["finish"], work["commit"], work["reset_session"])
        self._complete = b"\n".join((work["keep_effects"], *ending))
        self._fail = b"\n".join((work["drop_effects"], *ending))
        self._finish_late = b"\n".join((work["begin_late_finish"], *ending))
        self._finish_after_loss = b"\n".join((work["begin_late_finish"], work["restore_claim"], *ending))

    # --- enqueue

    def insert_job(self, conn: AnyConnection, row: Row) -> Job[Any]:
        with _bound_cursor(conn) as cur:
            cur.execute(self._enqueue["insert_job"], self._insert_parameters(row))
            return _job(_one(cur))

    def insert_jobs(self, conn: AnyConnection, rows: Iterable[Row]) -> list[Job[Any]]:
        """The same statement for each row, all in one exchange with the server; the answers in the rows' order."""
        with _bound_cursor(conn) as cur:
            cur.executemany(self._enqueue["insert_job"], [self._insert_parameters(row) for row in rows], returning=True)
            jobs = [_job(_one(cur))]
            while cur.nextset():
                jobs.append(_job(_one(cur)))
            return jobs

    def _insert_parameters(self, row: Row) -> dict[str, Any]:
        parameters = {name: getattr(row, name) for name in Row.__slots__}
        return {**parameters, "channel": self.channel}

    # --- work

    def claim(
        self,
        conn: AnyConnection,
        *,
        queue: str,
        token: UUID,
        worker: str,
        order: str = "priority",
        synchronous_commit: bool = True,
        check_interval: str = "0",
        bounded_by: str = "idle_in_transaction_session_timeout",
        bound: str = "0",
        bounds: str = "{}",
        detached: Sequence[str] = (),
        lease: timedelta = timedelta(minutes=1),
    ) -> Job[Any] | None:
        """Claim the next job, and lock it in the transaction that is then open, behind the savepoint.

        None: nothing to claim, and no transaction open. Raises AttemptLost when the claim was committed but its row
        was taken away before it could be locked.
        """
        with _literal_cursor(conn) as cur:
            cur.execute(
                self._claims[order],
                {
                    "queue": queue,
                    "token": token,
                    "worker": worker,
                    "synchronous_commit": "on" if synchronous_commit else "off",
                    "check_interval": check_interval,
                    "bounded_by": bounded_by,
                    "bound": bound,
                    "bounds": bounds,
                    "detached": list(detached),
                    "lease": lease,
                },
            )
            claimed, locked = _answers(cur)
        if claimed and locked:
            return _job(claimed[0])
        self.rollback(conn)
        if claimed:
            raise AttemptLost(f"job {claimed[0][0]} was claimed but taken away before it was locked")
        return None

    def release_claim(self, conn: AnyConnection, *, queue: str, token: UUID) -> bool:
        """Give back the attempt of a claim whose handler never started. Says whether there was one."""
        with _literal_cursor(conn) as cur:
            cur.execute(self._work["release_claim"], {"queue": queue, "token": token})
            return cur.rowcount > 0

    def complete(self, conn: AnyConnection, job: Job[Any], outcome: Outcome) -> bool:
        """Commit the handler's writes together with the outcome. Says whether the session is clean afterwards."""
        return self._finish(conn, self._complete, job, outcome)

    def fail(self, conn: AnyConnection, job: Job[Any], outcome: Outcome) -> bool:
        """Drop the handler's writes, keep the lock, commit the outcome. Says whether the session is clean."""
        return self._finish(conn, self._fail, job, outcome)

    def finish_late(self, conn: AnyConnection, job: Job[Any], outcome: Outcome, *, after_loss: bool = False) -> bool:
        """Record the outcome in a transaction of its own, guarded by the token alone. Says whether the session is
        clean. `after_loss` of a connection the server may have lost the claim too; it is then made good."""
        return self._finish(conn, self._finish_after_loss if after_loss else self._finish_late, job, outcome)

    def _finish(self, conn: AnyConnection, statement: bytes, job: Job[Any], outcome: Outcome) -> bool:
        waiting = not outcome.state.final
        with _literal_cursor(conn) as cur:
            try:
                cur.execute(
                    statement,
                    {
                        "id": job.id,
                        "queue": job.queue,
                        "token": job.token,
                        "attempt": job.attempt,
                        "state": outcome.state,
                        "final": outcome.state.final,
                        "given_back": int(outcome.attempt_given_back),
                        "at": outcome.at,
                        "delay": outcome.delay if waiting else None,
                        "error": outcome.error_json(job.attempt),
                    },
                )
            except psycopg.Error as error:
                if error.sqlstate == _ATTEMPT_LOST:
                    raise AttemptLost(f"job {job.id} no longer runs under attempt {job.attempt}") from error
                raise
            *_, last = _answers(cur)
            return bool(last[0][-1] == 0)

    def rollback(self, conn: AnyConnection) -> None:
        with _literal_cursor(conn) as cur:
            cur.execute(b"ROLLBACK")

    def server_facts(self, conn: AnyConnection) -> ServerFacts:
        with _literal_cursor(conn) as cur:
            cur.execute(self._work["server_facts"])
            uptime, can_check, version = _one(cur)
            bound = "transaction_timeout" if version >= 170000 else "idle_in_transaction_session_timeout"
            return ServerFacts(timedelta(seconds=uptime), can_check, bound)

    # --- maintain

    def begin_duty(self, conn: AnyConnection, duty: str) -> timedelta | None:
        """Lock a duty in a transaction that stays open if the duty is due.

        How long until it is due, zero or less for now; None: somebody else is at it.
        """
        with _literal_cursor(conn) as cur:
            cur.execute(self._maintain["begin_duty"], {"duty": duty})
            (rows,) = _answers(cur)
        remaining: timedelta | None = rows[0][0] if rows else None
        if remaining is None or remaining > timedelta(0):
            self.rollback(conn)
        return remaining

    def end_duty(self, conn: AnyConnection, duty: str, after: timedelta) -> None:
        """Move the duty's time on and commit."""
        with _literal_cursor(conn) as cur:
            cur.execute(self._maintain["end_duty"], {"duty": duty, "after": after})

    def postpone_duty(self, conn: AnyConnection, duty: str, after: timedelta) -> None:
        with _literal_cursor(conn) as cur:
            cur.execute(self._maintain["postpone_duty"], {"duty": duty, "after": after})

    def promote(self, conn: AnyConnection, batch: int) -> dict[str, int]:
        """Make due jobs available; how many per queue."""
        with _literal_cursor(conn) as cur:
            cur.execute(self._maintain["promote"], {"batch": batch, "channel": self.channel})
            return {queue: jobs for queue, jobs, _ in cur.fetchall()}

    def next_due(self, conn: AnyConnection) -> timedelta | None:
        """How long until the next waiting job is due."""
        with _literal_cursor(conn) as cur:
            cur.execute(self._maintain["next_due"])
            due: timedelta | None = _one(cur)[0]
            return due

    def rescue(self, conn: AnyConnection, batch: int, grace: timedelta) -> list[Job[Any]]:
        """Finish the attempts of workers that vanished; the jobs as they are now."""
        with _literal_cursor(conn) as cur:
            cur.execute(self._maintain["rescue"], {"batch": batch, "grace": grace})
            return [_job(row) for row in cur.fetchall()]

    def clean(self, conn: AnyConnection, state: JobState, keep: timedelta, batch: int) -> int:
        """Delete jobs that ended in this state longer ago than `keep`; how many."""
        with _literal_cursor(conn) as cur:
            cur.execute(self._maintain["clean"], {"state": state, "keep": keep, "batch": batch})
            deleted: int = _one(cur)[0]
            return deleted

    # --- observe

    def get_job(self, conn: AnyConnection, id: int) -> Job[Any] | None:
        with _bound_cursor(conn) as cur:
            cur.execute(self._observe["get_job"], {"id": id})
            row = cur.fetchone()
            return _job(row) if row else None

    def listen(self, conn: AnyConnection) -> None:
        with _literal_cursor(conn) as cur:
            cur.execute(f'LISTEN "{self.channel}"'.encode())


class Migrations:
    """The statements that keep the books of migrations in one schema."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._sql = statements.load("migrate.sql", schema)

    @property
    def table_sql(self) -> str:
        """What makes the schema and the table of migrations."""
        return f'CREATE SCHEMA IF NOT EXISTS "{self._schema}";\n{self._sql["create_migration_table"].decode()}'

    def bookkeeping_sql(self, version: int, name: str, direction: str) -> str:
        """What records a step; version and name come from the files of this package."""
        statement = self._sql["record_migration" if direction == "up" else "forget_migration"].decode()
        return statement.format(version=version, name=name)

    def begin_step(self, conn: AnyConnection) -> None:
        self.execute(conn, self._sql["begin_step"].decode())

    def lock(self, conn: AnyConnection) -> None:
        with _literal_cursor(conn) as cur:
            cur.execute(self._sql["lock_migrations"], {"schema": self._schema})

    def bound_lock_waits(self, conn: AnyConnection) -> None:
        self.execute(conn, self._sql["bound_lock_waits"].decode())

    def create_table(self, conn: AnyConnection) -> None:
        """Make the table, and the schema if it is not there."""
        with _literal_cursor(conn) as cur:
            cur.execute(self._sql["schema_exists"], {"schema": self._schema})
            exists = bool(_one(cur)[0])
        self.execute(conn, self._sql["create_migration_table"].decode() if exists else self.table_sql)

    def table_exists(self, conn: AnyConnection) -> bool:
        with _literal_cursor(conn) as cur:
            cur.execute(self._sql["migration_table_exists"], {"schema": self._schema})
            return bool(_one(cur)[0])

    def applied(self, conn: AnyConnection) -> list[int]:
        with _literal_cursor(conn) as cur:
            cur.execute(self._sql["applied_migrations"])
            return [version for (version,) in cur.fetchall()]

    def execute(self, conn: AnyConnection, sql: str) -> None:
        with _literal_cursor(conn) as cur:
            cur.execute(sql.encode())


def _with_savepoint(work: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    """The statements with another name for the savepoint, so that no handler hits it with one of its own."""
    return {key: sql.replace(b"SAVEPOINT pgjobs", f"SAVEPOINT {name}".encode()) for key, sql in work.items()}


class _RawJson(TextLoader):
    """Leaves JSON as text, so that no row is too deep or too long to be fetched."""


class _RawJsonBinary(_RawJson):
    format = Format.BINARY

    def load(self, data: Any) -> str | bytes:
        return super().load(memoryview(data)[1:])  # the version of the format stands before the text


class _IsoInstant(Loader):
    """Reads what the claim and the duties ask for: ISO. psycopg goes by the session's DateStyle, which is theirs only
    for as long as their transaction."""

    def load(self, data: Any) -> datetime:
        return datetime.fromisoformat(str(data, "ascii"))


# psycopg's own, whatever loaders and dumpers the application has registered for itself.
_ADAPTERS = AdaptersMap(psycopg.adapters)
postgres.register_default_adapters(_ADAPTERS)
_ADAPTERS.register_loader("jsonb", _RawJson)
_ADAPTERS.register_loader("jsonb", _RawJsonBinary)
_ADAPTERS.register_loader("timestamptz", _IsoInstant)


class _BoundCursor(Cursor[TupleRow]):
    adapters = _ADAPTERS


class _LiteralCursor(ClientCursor[TupleRow]):
    adapters = _ADAPTERS


def _bound_cursor(conn: AnyConnection) -> _BoundCursor:
    """A plain cursor of our own, whatever factories the application has set; values are bound by the server. They come
    back in the binary form, which no setting of the session changes."""
    cur = _BoundCursor(conn, row_factory=tuple_row)
    cur.format = Format.BINARY
    return cur


def _literal_cursor(conn: AnyConnection) -> _LiteralCursor:
    """A cursor that sends several statements in one message; libpq quotes the values into the text."""
    return _LiteralCursor(conn, row_factory=tuple_row)


def _answers(cur: Cursor[TupleRow]) -> list[list[TupleRow]]:
    """The rows of each statement of a message that gives rows."""
    answers = []
    more: bool | None = True
    while more:
        if cur.pgresult is not None and cur.pgresult.status == ExecStatus.TUPLES_OK:
            answers.append(cur.fetchall())
        more = cur.nextset()
    return answers


def _one(cur: Cursor[TupleRow]) -> TupleRow:
    row = cur.fetchone()
    if row is None:
        raise psycopg.DataError("the statement gave no row")
    return row


def _job(row: Sequence[Any]) -> Job[Any]:
    """A Job from the columns that every statement lists in this order; instants in UTC."""
    return Job(
        id=row[0],
        state=JobState(row[1]),
        queue=row[2],
        kind=row[3],
        priority=row[4],
        attempt=row[5],
        max_attempts=row[6],
        raw_args=row[7],
        raw_metadata=row[8],
        raw_errors=row[9],
        tags=tuple(row[10]),
        scheduled_at=row[11].astimezone(UTC),
        created_at=row[12].astimezone(UTC),
        attempted_at=row[13] and row[13].astimezone(UTC),
        finalized_at=row[14] and row[14].astimezone(UTC),
        attempted_by=tuple(row[15]),
        token=row[16],
    )
