"""One method per statement of sql/workers.sql, connection first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from pgjobs.db import statements
from pgjobs.db.channel import channel
from pgjobs.db.cursors import AnyConnection, bound_cursor, literal_cursor, one
from pgjobs.observe.figures import NO_DURATIONS, OUTCOMES, Durations, Tally, number_of
from pgjobs.progress import Report
from pgjobs.results import StuckThread, WorkerProcess

#: An attempt, by the id of its job and its token. The jobs of a batch have one token.
AttemptKey = tuple[int, UUID]


@dataclass(slots=True)
class FigureRow:
    """What is added to a row of the table `figure`: attempts of one queue and kind."""

    attempts: dict[str, int] = field(default_factory=dict)  # by outcome
    run: Durations = NO_DURATIONS
    wait: Durations = NO_DURATIONS

    def add(self, outcome: str, tally: Tally) -> None:
        self.attempts[outcome] = self.attempts.get(outcome, 0) + tally.attempts
        self.run, self.wait = self.run.plus(tally.run), self.wait.plus(tally.wait)


class WorkerQueries:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self._channel = channel(schema)
        self._sql = statements.load("workers.sql", schema)

    def register(self, conn: AnyConnection, worker: Mapping[str, Any]) -> None:
        """Write or refresh the row of a process, and commit."""
        with literal_cursor(conn) as cur:
            cur.execute(
                self._sql["register_worker"],
                {**worker, "queues": json.dumps(worker["queues"]), "stuck": json.dumps(worker["stuck"])},
            )

    def deregister(self, conn: AnyConnection, id: str) -> None:
        """Remove the row of a process, and commit."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["deregister_worker"], {"id": id})

    def prune_workers(self, conn: AnyConnection, after: timedelta) -> list[str]:
        """Remove the rows that were not refreshed for this long. Returns their ids."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["prune_workers"], {"after": after})
            return [id for (id,) in cur.fetchall()]

    def may_claim(self, conn: AnyConnection) -> bool:
        """Whether the role of this connection may claim jobs."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["may_claim"])
            may: bool = one(cur)[0]
            return may

    def write_progress(
        self, conn: AnyConnection, reports: Mapping[AttemptKey, Report], ended: Sequence[AttemptKey]
    ) -> None:
        """Write the progress of these attempts, remove that of the attempts that have ended, and commit."""
        values = {
            "ids": [id for id, _ in reports],
            "tokens": [token for _, token in reports],
            "done": [report.done for report in reports.values()],
            "totals": [report.total for report in reports.values()],
            "notes": [report.note for report in reports.values()],
            "ended_ids": [id for id, _ in ended],
            "ended_tokens": [token for _, token in ended],
        }
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["write_progress"], values)

    def add_figures(self, conn: AnyConnection, rows: Mapping[tuple[str, str], FigureRow]) -> None:
        """Add to the figures of this minute, by queue and kind, and commit."""
        values: dict[str, list[Any]] = {
            "queues": [queue for queue, _ in rows],
            "kinds": [kind for _, kind in rows],
            **{outcome: [row.attempts.get(outcome, 0) for row in rows.values()] for outcome in OUTCOMES},
            "run_seconds": [row.run.total for row in rows.values()],
            "wait_seconds": [row.wait.total for row in rows.values()],
            "run_counts": [number_of(row.run.counts) for row in rows.values()],
            "wait_counts": [number_of(row.wait.counts) for row in rows.values()],
        }
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["add_figures"], values)

    def prune_progress(self, conn: AnyConnection, batch: int) -> int:
        """Remove the progress of attempts that have ended, of `batch` attempts at most. Returns of how many."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["prune_progress"], {"batch": batch})
            pruned: int = one(cur)[0]
            return pruned

    def list_workers(self, conn: AnyConnection) -> list[WorkerProcess]:
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["list_workers"])
            return [_worker(row) for row in cur.fetchall()]

    def refresh_queues(self, conn: AnyConnection, names: Iterable[str]) -> None:
        """Note that a worker works these queues now."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["refresh_queues"], {"names": list(names)})

    def prune_queues(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["prune_queues"])

    def paused_queues(self, conn: AnyConnection) -> tuple[datetime, dict[str, datetime]]:
        """The database's time, and when each of the queues that are paused at that time was paused."""
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["paused_queues"])
            rows = cur.fetchall()
            return rows[0][0], {name: since for _, name, since in rows if name is not None}

    def wake_queues(self, conn: AnyConnection, names: Iterable[str]) -> None:
        """Notify the processes that work these queues."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["wake_queues"], {"names": list(names), "channel": self._channel})

    def any_work_left(self, conn: AnyConnection, queues: Iterable[str], kinds: Sequence[str] | None) -> bool:
        """Whether these queues have a job that runs, or one of these kinds that can run now; None means all kinds."""
        with literal_cursor(conn) as cur:
            cur.execute(
                self._sql["any_work_left"],
                {"queues": list(queues), "kinds": None if kinds is None else list(kinds)},
            )
            found: bool = one(cur)[0]
            return found


def _worker(row: Sequence[Any]) -> WorkerProcess:
    return WorkerProcess(
        id=row[0],
        host=row[1],
        pid=row[2],
        queues=_queues(json.loads(row[3])),
        threads=row[4],
        kinds=tuple(row[5]),
        version=row[6],
        code_version=row[7],
        started_at=row[8].astimezone(UTC),
        seen_at=row[9].astimezone(UTC),
        stuck=_stuck_threads(json.loads(row[10]), row[9].astimezone(UTC)),
    )


def _queues(value: Any) -> dict[str, int]:
    return value if isinstance(value, dict) else {}  # written by hand


def _stuck_threads(values: Any, seen_at: datetime) -> tuple[StuckThread, ...]:
    try:
        return tuple(_stuck(each, seen_at) for each in values)
    except (KeyError, TypeError, ValueError, OverflowError):  # written by hand
        return ()


def _stuck(each: Mapping[str, Any], seen_at: datetime) -> StuckThread:
    since = seen_at - timedelta(seconds=each["seconds"])
    return StuckThread(str(each["thread"]), int(each["job"]), str(each["kind"]), since, str(each["stack"]))
