"""How the server looks for the next job, with 5 priorities and 50 queues: its time, the index, what it read in vain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from psycopg import sql

from benchmarks.backlog import FIFTY_QUEUES, FIVE_PRIORITIES, dead_entries, old_snapshot
from benchmarks.ground import LARGE, Size, Table, table
from benchmarks.report import Question
from pgjobs.embedded import EmbeddedPostgres
from pgjobs.execution.queries import ExecutionQueries, passing_over
from pgjobs.execution.requests import BEGINNING
from pgjobs.execution.script import numbered

_QUEUE = "queue-7"
_TIMES = 7  # of which the median counts


@dataclass(frozen=True)
class Plan:
    ms: float
    pages: int
    removed: int  # rows that a filter removed
    indexes: tuple[str, ...]  # "the table, read whole" where there is none

    def __str__(self) -> str:
        return f"{' and '.join(self.indexes)}; {self.pages} pages; rows removed by a filter: {self.removed}"


def measure(size: Size) -> Iterator[Question]:
    question = Question("plan", "The look for the next job of a queue, prepared, in the server", "ms")
    few, many, dead = f"{size.rows // 100:,} waiting", f"{size.rows:,} waiting", f"{size.rows:,} dead in front"

    def tell(name: str, found: Plan) -> None:
        question.tell(name, found.ms)
        question.notes.append(f"{name}: {found}")

    with EmbeddedPostgres(settings=LARGE) as server, table(server.dsn, "pgjobs", 0) as (_, rows):
        for name, number in ((few, size.rows // 100), (many, size.rows)):
            rows.empty()
            rows.fill(number, **FIFTY_QUEUES)
            rows.settle()
            tell(name, next_job(rows))
        tell(f"{many}, behind the mark", next_job(rows, behind=_first(rows)))
        rows.empty()
        rows.fill(size.rows, **FIVE_PRIORITIES, queue=f"'{_QUEUE}'")
        rows.settle()
        tell(f"{many} in one queue, the oldest whatever the priority", next_job(rows, "select_by_time"))
        rows.empty()
        with old_snapshot(server.dsn):
            dead_entries(rows, size.rows, queue=f"'{_QUEUE}'")
            rows.fill(size.rows, **FIFTY_QUEUES)
            rows.settle()
            tell(f"{many}, {dead}", next_job(rows))
            tell(f"{many}, {dead}, behind the mark", next_job(rows, behind=_first(rows)))
    yield question


def _first(table: Table) -> dict[str, Any]:
    """The mark that a process has which has claimed the first job of the queue."""
    query = (
        "SELECT priority, scheduled_at::text, id FROM {job} WHERE state = 'available' AND queue = %s ORDER BY 1, 2, 3"
    )
    priority, due, id = table.execute(query + " LIMIT 1", _QUEUE).fetchall()[0]
    return {"mark_priority": priority, "mark_time": due, "mark_id": id}


def next_job(
    table: Table,
    which: Literal["select_by_priority", "select_by_time"] = "select_by_priority",
    behind: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of a claim, from the beginning of the queue or behind a mark, prepared as a worker does it."""
    statement = numbered("probe", passing_over(ExecutionQueries(table.schema).work[which], b""))
    priority, due, id = (part.decode() for part in BEGINNING)
    beginning = {"mark_priority": priority, "mark_time": due, "mark_id": id}
    given = {"queue": _QUEUE, "kinds": None, **beginning, **(behind or {})}
    values = [given[name] if given[name] is None else str(given[name]) for name in statement.parameters]
    execute = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE probe({})")
    plans = []
    with table.conn.transaction(force_rollback=True):
        table.conn.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        table.conn.execute(b"PREPARE probe AS " + statement.sql)
        for _ in range(_TIMES):
            explained = table.conn.execute(execute.format(sql.SQL(", ").join(map(sql.Literal, values))))
            plans.append(_read(explained.fetchall()[0][0][0]))
        table.conn.execute("DEALLOCATE probe")
    return sorted(plans, key=lambda plan: plan.ms)[_TIMES // 2]


def _read(explained: dict[str, Any]) -> Plan:
    root = explained["Plan"]
    nodes = [node for node in _nodes(root) if node.get("Relation Name") != "queue" and _reads(node)]
    return Plan(
        ms=explained["Execution Time"],
        pages=root["Shared Hit Blocks"] + root["Shared Read Blocks"],
        removed=sum(node.get("Rows Removed by Filter", 0) for node in nodes),
        indexes=tuple(node.get("Index Name", "the table, read whole") for node in nodes),
    )


def _reads(node: dict[str, Any]) -> bool:
    """Whether it finds the rows: an index, or the whole table."""
    return "Index Name" in node or node["Node Type"] == "Seq Scan"


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)
