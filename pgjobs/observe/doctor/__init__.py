"""The doctor: looks for what is wrong with the database, the tables and the work, and changes nothing.

Each check runs in a read-only transaction of its own, which the server bounds, so that one that fails or that this role
may not do hinders no other. To add a check, write its function and add it to CHECKS of its module, and describe it in
the table of pgjobs/guide/doctor.md.
"""

from __future__ import annotations

import psycopg

from pgjobs.clean_text import one_line
from pgjobs.db.repair import SchemaRepair
from pgjobs.db.source import PoolSource
from pgjobs.observe.doctor import horizon, server, tables, work
from pgjobs.observe.doctor.check import Check, Problem, notice, warning
from pgjobs.observe.doctor.finding import Finding
from pgjobs.observe.doctor.queries import Look

CHECKS = (*tables.CHECKS, *work.CHECKS, *horizon.CHECKS, *server.CHECKS)


def examine(source: PoolSource, schema: str, *, threads: int | None = None, include_ok: bool = False) -> list[Finding]:
    """Do all checks; the most urgent findings come first. `threads`: of the worker pools of this source, if they do not
    run here. `include_ok` adds a finding for each check that found nothing. Raises psycopg's error if the connection
    cannot be made, or is lost."""
    with source.first_connection() as conn:
        look = Look(conn, schema, source, source.reserved_threads if threads is None else threads)
        with conn.transaction():
            look.begin()
            has_tables = "job" in SchemaRepair(schema).existing_tables(conn)
        checks = [check for check in CHECKS if has_tables or not check.needs_tables]
        findings = [finding for check in checks for finding in _findings(check, look, include_ok=include_ok)]
    return sorted(findings, key=lambda finding: -finding.severity.rank)


def _findings(check: Check, look: Look, *, include_ok: bool) -> list[Finding]:
    found: list[Finding] = []
    try:
        with look.conn.transaction():
            look.begin()
            for problem in check.find(look):
                found.append(check.finding(problem))
    except Exception as error:  # of one check, which must not hinder the others
        if look.conn.closed:
            raise
        found.append(check.finding(_could_not_look(error)))
    return found or [check.ok] * include_ok


def _could_not_look(error: Exception) -> Problem:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return notice(
            f"could not look: {one_line(error)}",
            "run it as a role with more rights: pgjobs_viewer, granted without --hide-args, or the owner of the tables",
        )
    if isinstance(error, psycopg.errors.QueryCanceled):
        return warning(
            "could not look: the server took more than 5 s to answer",
            "run it again when the server is less busy",
        )
    return warning(
        f"could not look: {type(error).__name__}: {one_line(error)}",
        "run it again; if that does not help, the error says what is in the way",
    )
