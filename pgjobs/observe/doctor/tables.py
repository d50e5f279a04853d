"""The tables, indexes, functions and rights: whether they are those that the migrations made, and in good condition."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from pgjobs.db import migrate, migration_plan
from pgjobs.db.repair import TABLES, SchemaRepair
from pgjobs.db.roles import LEAST, least_rights
from pgjobs.db.shape import SHAPE
from pgjobs.errors import MigrationError
from pgjobs.observe.doctor.check import Check, Problem, critical, name, notice, size, span, warning
from pgjobs.observe.doctor.finding import Severity
from pgjobs.observe.doctor.queries import Look

MANY_DEAD_ROWS = 100_000
_DEAD_SHARE = 0.2  # of the living rows
LONG_WITHOUT_VACUUM = 600.0  # seconds
LARGE = 256 << 20  # bytes of a table or index, from which on it is looked at for bloat
_BYTES_OF_ROW = 8192.0  # ten times a usual row, and more than a row can have outside of its TOAST table
_BYTES_OF_ENTRY = 400.0  # five times a usual entry of an index

_BY_TIME = "index job job_by_time"  # made by worker pools with order="scheduled_at"
_MIGRATE = "run `pgjobs migrate` or client.migrate() as the owner of the tables"
_SQL = "`pgjobs migrate --sql` prints its definition"
_OURS = (*TABLES, "migration")
_MOST = 5  # parts named in one finding


def _schema(look: Look) -> Iterator[Problem]:
    try:
        migrate.check_versions(look.conn, look.schema)
    except MigrationError as error:
        yield critical(str(error), _MIGRATE)
        return
    expected, found = set(SHAPE.splitlines()), set(SchemaRepair(look.schema).shape(look.conn))
    missing = [line for line in sorted(expected - found) if not line.startswith("index ")]
    if missing:
        yield critical(
            f"schema {look.schema!r} differs from version {max(migration_plan.versions())}: there is no "
            f"{_listed(missing)}",
            f"make it again: {_SQL}; or restore the schema from a dump",
        )
    foreign = [line for line in sorted(found - expected - {_BY_TIME}) if _is_of_our_table(line)]
    if foreign:
        yield notice(
            f"our tables have what no migration made: {_listed(foreign)}",
            "nothing, if the application made it; it costs every job, and a trigger or rule may refuse changes",
        )


def _is_of_our_table(line: str) -> bool:
    sort, table = line.split(" ")[:2]
    return sort in ("column", "rule", "trigger") and table in _OURS


def _listed(lines: list[str]) -> str:
    more = len(lines) - _MOST
    return ", ".join(name(line) for line in lines[:_MOST]) + (f" and {more} more" if more > 0 else "")


def _functions(look: Look) -> Iterator[Problem]:
    repair = SchemaRepair(look.schema)
    outdated = {each[0]: each[1] for each in repair.outdated_functions(look.conn)}
    if outdated:
        yield critical(
            f"functions still use the old name {', '.join(set(map(name, outdated.values())))} of the schema: "
            f"{_listed(sorted(outdated))}",
            _MIGRATE,
        )
    expected = _bodies(look.schema)
    changed = sorted(
        function
        for function, body in look.function_bodies()
        if function in expected and function not in outdated and expected[function] != _spaced(body)
    )
    if changed:
        yield warning(
            f"functions are not those of this version: {_listed(changed)}",
            f"replace them by those of this version: {_SQL}",
        )


@cache
def _bodies(schema: str) -> dict[str, str]:
    """The body of each function in PL/pgSQL as the migrations define it last."""
    text = "\n".join(step.sql for step in migration_plan.plan(schema, [], "up", None))
    pattern = rf'^CREATE (?:FUNCTION|PROCEDURE) "{schema}"\.(\w+)\((?:(?!\$\$|BEGIN ATOMIC).)*?AS \$\$(.*?)\$\$'
    return {function: _spaced(body) for function, body in re.findall(pattern, text, re.DOTALL | re.MULTILINE)}


def _spaced(body: str) -> str:
    return " ".join(body.split())


def _indexes(look: Look) -> Iterator[Problem]:
    known = {line.split(" ")[2]: line.split(" ")[1] for line in SHAPE.splitlines() if line.startswith("index ")}
    found = {row[0]: row[1:] for row in look.indexes(_OURS)}
    for index in sorted(known.keys() - found.keys()):
        yield critical(
            f"the index {name(index)} of table {known[index]} is missing",
            f"make it again, with CREATE INDEX CONCURRENTLY: {_SQL}",
        )
    for index, (table, valid, bytes, entries) in found.items():
        if not valid:
            yield _invalid(index, table, is_ours=index in known)
        elif bytes > LARGE and bytes > _BYTES_OF_ENTRY * max(entries, 1.0):
            yield warning(
                f"the index {name(index)} takes {size(bytes)} for {max(entries, 0):.0f} entries",
                "REINDEX INDEX CONCURRENTLY as the owner of the table. A worker pool does so each day (reindex_at), "
                "if its role owns the tables",
            )


def _invalid(index: str, table: str, *, is_ours: bool) -> Problem:
    left = re.search(r"_cc(?:new|old)\d*$", index) is not None
    return Problem(
        Severity.CRITICAL if is_ours else Severity.WARNING,
        f"the index {name(index)} of table {table} is not valid: it costs every change, and serves no statement",
        "DROP INDEX CONCURRENTLY: an interrupted rebuild has left it"
        if left
        else "REINDEX INDEX CONCURRENTLY as the owner of the table",
    )


def _vacuum(look: Look) -> Iterator[Problem]:
    for table, dead, live, seconds, switched_off, *_ in look.tables(_OURS):
        if switched_off:
            yield warning(
                f"autovacuum is switched off for table {table}",
                f"ALTER TABLE {look.schema}.{table} RESET (autovacuum_enabled)",
            )
        if dead > max(MANY_DEAD_ROWS, _DEAD_SHARE * live) and seconds > LONG_WITHOUT_VACUUM:
            yield warning(
                f"table {table} has {dead} dead rows beside {live} living ones, and no vacuum has ended for "
                f"{span(seconds)}",
                f"VACUUM {look.schema}.{table}; look at the checks transactions, prepared, slots and standbys, and "
                "whether autovacuum keeps up (autovacuum_max_workers, autovacuum_vacuum_cost_limit)",
            )


def _bloat(look: Look) -> Iterator[Problem]:
    for table, *_, bytes, rows in look.tables(_OURS):
        if bytes > LARGE and bytes > _BYTES_OF_ROW * max(rows, 1.0):
            yield warning(
                f"table {table} takes {size(bytes)} for {max(rows, 0):.0f} rows",
                f"when the workers are stopped: VACUUM FULL {look.schema}.{table}; while they work: pg_repack. Then "
                "look at what held vacuum back",
            )


def _ids(look: Look) -> Iterator[Problem]:
    if not look.may_read_ids():
        yield notice(
            "could not look: this role may not read the sequence job_id_seq",
            "run it as the owner of the tables, or as a role that enqueues many jobs",
        )
    used = SchemaRepair(look.schema).used_ids(look.conn)
    if used is not None:
        next, greatest = used
        yield critical(
            f"the next id is {next}, but there are jobs up to {greatest}: enqueuing will fail",
            f"{_MIGRATE}; the start of a worker pool does it too",
        )


def _publications(look: Look) -> Iterator[Problem]:
    for problem in SchemaRepair(look.schema).publication_problems(look.conn):
        yield critical(
            problem,
            "let the table have REPLICA IDENTITY DEFAULT, and publish it without a row filter and list of columns",
        )


def _rights(look: Look) -> Iterator[Problem]:
    own, works, deletes, enqueues, views = look.own_rights()
    kinds = {f"{look.schema}_{kind}": kind for kind in LEAST} | {f"pgjobs_{kind}": kind for kind in LEAST}
    granted = [(role, kinds[role]) for role in look.roles_to_check(list(kinds))]
    own_kind = "worker" if works else "operator" if deletes else "enqueuer" if enqueues and not views else None
    if own_kind is not None and own not in dict(granted):
        granted.append((own, own_kind))
    for role, kind in granted:
        missing = _missing_rights(look, role, kind)
        if missing:
            yield warning(
                f"role {name(role)}, which is like pgjobs_{kind}, lacks rights: {_listed(missing)}",
                "run `pgjobs roles --sql` as the owner of the tables again, as after each migration",
            )


def _missing_rights(look: Look, role: str, kind: str) -> list[str]:
    rows = look.missing_rights(role, least_rights(look.schema, kind))
    return [
        f"{privilege}{f' ({part})' if part else ''} on {object.replace('pg_catalog.', '')}"
        for privilege, object, part in rows
    ]


_SLOWER = "the statements of workers read what is not needed, and all queues become slower"

CHECKS = (
    Check("schema", "the tables are those of this version", "code and tables must fit each other", _schema,
          needs_tables=False),
    Check("functions", "the functions are those of this version", "enqueuing and finishing jobs call them", _functions),
    Check("indexes", "no index is missing, invalid or bloated", _SLOWER, _indexes),
    Check("vacuum", "dead rows are removed", _SLOWER, _vacuum),
    Check("bloat", "no table is much larger than its rows", _SLOWER, _bloat),
    Check("ids", "the next id is free", "an id that a job has already cannot be given again", _ids),
    Check("publications", "no publication forbids changes", "Postgres refuses to change or delete the rows, so jobs "
          "cannot be worked", _publications),
    Check("rights", "the roles of `pgjobs roles` have what they need", "a role without a right fails when it needs it",
          _rights),
)  # fmt: skip
