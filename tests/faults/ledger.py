"""What a fault test knows beside the library: which jobs were promised, which handlers started, what they wrote."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from pgjobs import Client, Job
from tests.faults.invariants import violations
from tests.waiting import wait_until

# The `held` ones stand still in their COMMIT until nobody holds the lock with the number of their effect's `gate`.
_TABLES = """
CREATE TABLE {schema}.promised (job bigint PRIMARY KEY);
CREATE TABLE {schema}.start (
    job bigint, attempt int, pid int, due timestamptz, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE {schema}.effect (
    job bigint, attempt int, pid int, session text, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE {schema}.tick_effect (job bigint, schedule text, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE {schema}.held (job bigint PRIMARY KEY, gate bigint);
CREATE FUNCTION {schema}.hold() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE number bigint;
BEGIN
    SELECT gate INTO number FROM {schema}.held WHERE held.job = NEW.job;
    IF number IS NOT NULL THEN PERFORM pg_advisory_xact_lock_shared(number); END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON {schema}.effect DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION {schema}.hold();
"""


class Ledger:
    """The jobs of one schema and what is on record about them, seen through a connection that survives the server."""

    def __init__(self, dsn: str, schema: str = "pgjobs") -> None:
        self.dsn = dsn
        self.schema = schema
        self.client = Client(dsn, schema=schema)
        self.client.migrate()
        self._conn: psycopg.Connection[Any] | None = None
        self.sql(_TABLES)

    def close(self) -> None:
        self.client.close()
        if self._conn is not None:
            self._conn.close()

    # --- promises

    def enqueue(self, then: str = "return", *, first: str | None = None, **options: Any) -> Job[Any]:
        """A job, and in the same transaction the promise that there is one. `first` is for its first attempt."""
        with psycopg.connect(self.dsn) as tx:
            return self.enqueue_in(tx, then, first=first, **options)

    def enqueue_in(
        self, tx: psycopg.Connection[Any], then: str = "return", *, first: str | None = None, **options: Any
    ) -> Job[Any]:
        args = {"first": then if first is None else first, "then": then}
        job = self.client.enqueue(tx, args, kind="job", **options)
        tx.execute(self._composed("INSERT INTO {schema}.promised VALUES (%s)"), [job.id])
        return job

    # --- looking

    def _composed(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(schema=sql.Identifier(self.schema))

    def sql(self, text: str, *values: Any, patience: float = 30) -> list[tuple[Any, ...]]:
        """Run SQL at once; in it {schema} stands for the schema. Tries again while there is no server."""
        deadline = time.monotonic() + patience
        while True:
            try:
                if self._conn is None or self._conn.closed:
                    self._conn = psycopg.connect(self.dsn, autocommit=True, application_name="ledger")
                cur = self._conn.execute(self._composed(text), values or None)
                return cur.fetchall() if cur.description else []
            except psycopg.OperationalError as error:
                lost = self._conn is None or self._conn.closed
                if not lost or time.monotonic() > deadline:
                    raise error
                if self._conn is not None:
                    self._conn.close()
                time.sleep(0.05)

    def job(self, job: Job[Any]) -> Job[Any]:
        with psycopg.connect(self.dsn) as conn:
            found = self.client.get(job.id, conn)
        assert found is not None, f"job {job.id} is gone"
        return found

    def starts(self, job: Job[Any]) -> list[int]:
        """The attempts whose handler was started, in their order."""
        rows = self.sql("SELECT attempt FROM {schema}.start WHERE job = %s ORDER BY at", job.id)
        return [attempt for (attempt,) in rows]

    def effects(self, job: Job[Any]) -> list[int]:
        """The attempts whose writes were committed."""
        return [attempt for (attempt,) in self.sql("SELECT attempt FROM {schema}.effect WHERE job = %s", job.id)]

    def wait_started(self, job: Job[Any], attempt: int = 1, timeout: float = 20) -> None:
        wait_until(lambda: attempt in self.starts(job), timeout)

    def unfinished(self) -> int:
        return int(self.sql("SELECT count(*) FROM {schema}.job WHERE finalized_at IS NULL")[0][0])

    def wait_drained(self, timeout: float = 20) -> float:
        """Wait until no job is left to do; how many seconds it took."""
        began = time.monotonic()
        try:
            wait_until(lambda: self.unfinished() == 0, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.situation()}") from None
        return time.monotonic() - began

    def situation(self) -> str:
        """What is left to do, and who is connected."""
        jobs = "SELECT id, state, attempt, scheduled_at, errors FROM {schema}.job WHERE finalized_at IS NULL LIMIT 5"
        sessions = """
            SELECT pid, application_name, state, wait_event, clock_timestamp() - xact_start, left(query, 80)
            FROM pg_stat_activity WHERE datname = current_database()
        """
        duties = "SELECT duty, next_run_at - clock_timestamp() FROM {schema}.maintenance"
        return "\n".join(str(row) for query in (jobs, sessions, duties) for row in self.sql(query))

    def check(self) -> None:
        """Raise unless every invariant holds. For a queue at rest: nothing may be at work."""
        assert self.client.missing_migrations() == []
        self.check_rows()

    def check_rows(self) -> None:
        """The same, whatever version the tables have."""
        assert violations(self.sql) == {}

    # --- holding things up

    @contextmanager
    def locked(self, number: int) -> Iterator[None]:
        """Hold the lock that the handlers and commits with this number wait for."""
        with psycopg.connect(self.dsn, autocommit=True) as keeper:
            keeper.execute("SELECT pg_advisory_lock(%s)", [number])
            yield

    def hold_commit(self, job: Job[Any], number: int) -> None:
        """Let every COMMIT of this job's effect wait for the lock with this number."""
        self.sql("INSERT INTO {schema}.held VALUES (%s, %s)", job.id, number)

    def waiting(self, number: int) -> int:
        """How many sessions wait for that lock."""
        rows = self.sql(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted", number
        )
        return int(rows[0][0])
