"""The SQL files: every statement finds its schema and its caller, and all that give jobs agree on the columns."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import pgjobs
from pgjobs import InvalidSetting, JobFilter, JobState
from pgjobs.control import queries as control_queries
from pgjobs.control import queue_queries
from pgjobs.dashboard import job_queries as dashboard_job_queries
from pgjobs.dashboard import queries as dashboard_queries
from pgjobs.db import channel as channels
from pgjobs.db import migration_queries, repair, roles, startup_options, statements
from pgjobs.db.channel import channel
from pgjobs.db.rows import CLAIMED, as_job, claimed_at, claimed_job
from pgjobs.enqueuing import queries as enqueuing_queries
from pgjobs.execution import batch_queries, scripts
from pgjobs.execution import queries as execution_queries
from pgjobs.maintenance import index_queries
from pgjobs.maintenance import queries as maintenance_queries
from pgjobs.observe import queries as observe_queries
from pgjobs.observe.doctor import queries as doctor_queries
from pgjobs.schedules import queries as schedules_queries
from pgjobs.testing import queries as testing_queries
from pgjobs.wakeup import queries as wakeup_queries
from pgjobs.workers import queries as workers_queries

FILES = [
    *(
        "control.sql",
        "dashboard.sql",
        "dashboard_jobs.sql",
        "db.sql",
        "enqueuing.sql",
        "execution.sql",
        "execution_batch.sql",
        "maintenance.sql",
    ),
    *("doctor.sql", "observe.sql", "roles.sql", "schedules.sql", "testing.sql", "wakeup.sql", "workers.sql"),
]
GIVE_JOBS = [
    *(
        "insert_job",
        "insert_unique_job",
        "insert_jobs",
        "duplicates",
        "duplicates_unread",
        "replace_duplicate",
        "release",
    ),
    *("rescue", "cancel", "retry", "delete", "update", "get_job", "get_job_with_progress", "list_jobs"),
    *("list_available", "get_job_without_args", "list_jobs_without_args", "list_available_without_args"),
]
STORES = [
    *(execution_queries, enqueuing_queries, queue_queries, migration_queries, workers_queries),
    *(index_queries, schedules_queries, wakeup_queries, batch_queries, repair, roles, channels),
    *(control_queries, observe_queries, maintenance_queries, startup_options, testing_queries),
    doctor_queries,
    *(dashboard_queries, dashboard_job_queries),
]
PARTS = "parts.sql"  # what statements of several files share


def everything(schema: str = "pgjobs") -> dict[str, str]:
    """Each statement of the files that the store loads, by its name."""
    return {name: statement.decode() for path in FILES for name, statement in statements.load(path, schema).items()}


def code(statement: str) -> str:
    """A statement without its comments."""
    return re.sub(r"--.*", "", statement)


def test_no_file_and_no_name_is_forgotten_or_given_twice() -> None:
    assert sorted([*FILES, PARTS]) == sorted(path.name for path in statements.ROOT.glob("*.sql"))
    names = [
        name
        for path in FILES
        for name in re.findall(r"^-- name: (\w+)$", (statements.ROOT / path).read_text(), re.MULTILINE)
    ]
    assert sorted(names) == sorted(set(names)) == sorted(everything())


def test_every_part_is_put_into_every_statement_that_names_it() -> None:
    parts = re.findall(r"^-- part: (\w+)$", (statements.ROOT / PARTS).read_text(), re.MULTILINE)
    assert len(parts) == len(set(parts)) > 0
    assert "-- name:" not in (statements.ROOT / PARTS).read_text()
    sources = {path: (statements.ROOT / path).read_text() for path in [*FILES, PARTS]}
    for part in parts:
        assert any(f"{{{part}}}" in source for source in sources.values()), f"{part} is of no use"
        assert not [name for name, statement in everything().items() if f"{{{part}}}" in statement]
    assert "job.metadata OPERATOR(pg_catalog.@>) %(metadata)s" in everything()["list_jobs"]


def test_a_statement_begins_with_its_name_so_that_the_server_shows_it() -> None:
    for name, statement in everything().items():
        assert statement.startswith(f"-- name: {name}\n")
        assert code(statement).strip().endswith(";"), f"{name} can be sent before another"


@pytest.mark.parametrize("schema", ["jobs", "_j2", "select", "user", "pgjobs_2", "a" * 46])
def test_every_table_gets_the_schema_quoted(schema: str) -> None:
    for name, statement in everything(schema).items():
        assert not re.search(r"\bpgjobs\.[a-z]", code(statement)), name
        for table in re.findall(r"(?:(?<!DISTINCT )FROM|UPDATE|INTO|JOIN|TABLE|EXISTS) \(?(\S+\.\w+)", code(statement)):
            assert table.startswith((f'"{schema}".', "pg_catalog.")), f"{name}: {table}"
    assert f'INSERT INTO "{schema}".job (' in everything(schema)["insert_job"]


@pytest.mark.conformance(231, 268, 269)
@pytest.mark.parametrize(
    "schema",
    [
        *("", "drop table;", "my-jobs", "foo bar", "a.b.c", ".foo", "foo.", "123table", "schema.123t", "Jobs123"),
        *("myschema.jobs", "'; DROP TABLE --", 'a"b', "a\n", "é", "a\0", "pg_jobs", "a" * 47, None, 5),
    ],
    ids=lambda schema: repr(schema)[:20],
)
def test_a_name_that_cannot_be_a_schema_is_refused_before_it_gets_into_any_sql(schema: str) -> None:
    with pytest.raises(InvalidSetting):
        statements.check_schema(schema)
    with pytest.raises(InvalidSetting):
        statements.load.__wrapped__("execution.sql", schema)
    with pytest.raises(InvalidSetting):
        execution_queries.ExecutionQueries(schema)


@pytest.mark.conformance(269)
@pytest.mark.parametrize("schema", ["pgxq_valid", "pgjobs", "_", "a1", "a" * 46])
def test_a_good_name_of_a_schema_is_taken_as_it_is(schema: str) -> None:
    assert statements.check_schema(schema) == schema


@pytest.mark.conformance(231)
def test_the_channel_of_a_schema_fits_an_identifier() -> None:
    assert channel("jobs") != channel("jobs2")
    assert len(channel("a" * 46).encode()) <= 63


def test_a_condition_without_a_value_is_left_out_and_any_other_is_kept() -> None:
    statement = (
        b"WHERE (%(ids)s::bigint[] IS NULL OR id = ANY (%(ids)s::bigint[]))\n"
        b"AND (%(kind)s::text IS NULL OR CASE WHEN length(lower(kind)) = 1 THEN true END)\n"
        b"AND (%(batch)s::integer IS NULL OR id < 2)"
    )
    assert statements.without_unused(statement, {"ids": [1], "kind": None}) == (
        b"WHERE (id = ANY (%(ids)s::bigint[]))\nAND true\nAND (%(batch)s::integer IS NULL OR id < 2)"
    )


@pytest.mark.parametrize("name", JobFilter.all().parameters)
def test_each_condition_of_a_filter_is_sent_alone_if_it_is_the_only_one(name: str) -> None:
    conditions = JobFilter.all().parameters
    for statement in ("count_jobs", "list_jobs", "cancel", "update"):
        whole = everything()[statement].encode()
        without, alone = (
            set(re.findall(r"%\((\w+)\)s", statements.without_unused(whole, values).decode()))
            for values in (conditions, {**conditions, name: 1})
        )
        assert not without & conditions.keys()
        assert alone == without | {name}


def test_each_statement_is_loaded_once() -> None:
    assert statements.load("execution.sql", "jobs") is statements.load("execution.sql", "jobs")
    assert statements.load("execution.sql", "jobs") is not statements.load("execution.sql", "other")


# --- who sends what


def named_in(function: ast.AST, *, anywhere: bool = False) -> set[str]:
    """The statements whose names stand in square brackets, as in self._work["claim"]; or anywhere."""
    places = [function] if anywhere else [*_keys(function)]
    return {
        constant.value
        for place in places
        for constant in ast.walk(place)
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str) and constant.value in everything()
    }


def _keys(function: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and not any(map(_is_place, ast.walk(node))):
            yield node.slice


def _is_place(node: ast.AST) -> bool:
    """Whether it is the `at` of a script: the labels of its answers are like the names of statements."""
    return isinstance(node, ast.Attribute | ast.Name) and getattr(node, "attr", getattr(node, "id", "")) == "at"


def in_scripts() -> set[str]:
    """The statements of attempts and batches that are steps of scripts, one or several."""
    return {
        name
        for module, path in ((scripts, "execution.sql"), (batch_queries, "execution_batch.sql"))
        for name in named_in(ast.parse(inspect.getsource(module)), anywhere=True)
        if name in statements.load(path, "pgjobs")
    }


def test_every_statement_has_exactly_one_caller_in_the_stores() -> None:
    printed = statements.load("roles.sql", "pgjobs")
    callers: dict[str, list[str]] = {name: [] for name in everything() if name not in printed}
    for module in STORES:
        for function in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(function, ast.FunctionDef) and module is not batch_queries:
                for name in named_in(function):
                    callers[name].append(function.name)
    for name in in_scripts():
        callers[name].append("script")
    for table in (*repair.TABLES, "migration"):  # each may be published
        callers[f"try_{table}"] = ["_refusal"]
    shared = {
        "create_migration_table": ["create_table", "guarded_table_sql"],
        "create_time_index": ["time_index_sql", "create_time_index"],
        # claims that are tried one by one
        **{name: ["__init__", "script"] for name in ("begin", "set_claim_timeout", "claim")},
        # a job that completes within a transaction of its handler
        **{name: ["complete_within", "script"] for name in ("finish", "cancel_if_requested")},
        "read_session": ["as_claimed", "script"],
        "set_claim_role": ["_set_role", "script"],
    }
    assert {name: functions for name, functions in callers.items() if len(functions) != 1} == shared


def test_every_block_of_the_roles_is_printed_for_some_role() -> None:
    blocks = statements.load("roles.sql", "pgjobs")
    text = roles.roles_sql()
    assert [name for name in blocks if f"-- name: {name}\n" not in text] == []


def test_only_the_stores_and_the_migrations_load_statements_and_only_the_stores_run_them() -> None:
    package = Path(pgjobs.__file__).parent
    apart = {package / "embedded.py", *(package / "demo").iterdir()}  # a server's own statements, an application's
    apart.add(package / "testing" / "fixtures.py")  # which makes databases
    sources = {
        ".".join(path.relative_to(package).with_suffix("").parts): path.read_text()
        for path in package.rglob("*.py")
        if path not in apart
    }
    of_stores = {store.__name__.removeprefix("pgjobs.") for store in STORES}
    assert {name for name, source in sources.items() if "statements.load(" in source} == {
        *of_stores,
        "db.migration_plan",
    }
    runs = {name for name, source in sources.items() if re.search(r"\b(cur|conn|cursor)\.execute", source)}
    assert runs == {*of_stores, "db.cursors"} - {"db.roles", "execution.batch_queries"}  # for others to run


# --- the columns of a job


def columns(statement: str) -> list[str]:
    """What a statement that gives a job lists, from `id` to `output`."""
    found = re.findall(
        r".*(?:SELECT|RETURNING)\s+((?:job\.)?id, (?:job\.)?state,[^;]*?\boutput)\b", code(statement), re.S
    )
    assert len(found) == 1
    listed = [column.strip().removeprefix("job.") for column in found[0].split(",")]
    return [column.rpartition(" AS ")[2] for column in listed]  # what is not read says what stands in its place


def claimed_columns() -> list[str]:
    """What the lock behind a claim lists, from `id` to the settings."""
    as_columns = re.sub(r"pg_catalog\.to_json\((\w+)\)", r"\1", code(everything()["lock"]))
    as_columns = re.sub(r"CASE WHEN .*? THEN (\w+) END", r"\1", as_columns)  # NULL stands for what most jobs have
    found = re.findall(r"SELECT\s+(id, [^;]*?),\s*\{settings\}", as_columns)
    assert len(found) == 1
    return [column.strip() for column in found[0].split(",")]


def test_all_statements_that_give_jobs_list_the_same_columns_in_the_same_order() -> None:
    listed = {name: columns(everything()[name]) for name in GIVE_JOBS}
    first = next(iter(listed.values()))
    assert len(first) == 19
    assert all(names == first for names in listed.values()), listed
    others = set(everything()) - set(GIVE_JOBS)
    assert not [name for name in others if "attempted_by, token" in code(everything()[name])], "and there are no others"
    known = ["state", "queue", "finalized_at", "token", "output"]  # to who claims
    assert sorted(claimed_columns()) == sorted(name for name in first if name not in known)


def test_a_row_becomes_a_job_column_by_column() -> None:
    names = columns(everything()["get_job"])
    row: dict[str, Any] = {name: f"the {name}" for name in names}
    row |= {name: [name] for name in ("tags", "attempted_by")}
    instants = [name for name in names if name.endswith("_at") or name == "leased_until"]
    row |= {name: datetime(2026, 1, 1, hour, tzinfo=UTC) for hour, name in enumerate(instants)}
    row["state"] = "running"
    made = as_job([*row.values(), "more that a statement gives"])
    for name, value in row.items():
        field = f"raw_{name}" if name in ("args", "metadata", "errors", "output") else name
        assert getattr(made, field) == (tuple(value) if isinstance(value, list) else value)
    assert as_job([*({**row, **dict.fromkeys(instants[2:])}).values()]).leased_until is None


COMMON = {"metadata": "{}", "errors": "[]", "tags": (), "attempted_by": ("me",)}


@pytest.mark.parametrize("common", [False, True])
def test_a_row_of_a_claim_becomes_the_running_job_of_its_claimer(common: bool) -> None:
    """A NULL stands for the value that most jobs have."""
    names, token = claimed_columns(), uuid4()
    row: dict[str, Any] = {name: f"the {name}" for name in names}
    row |= {name: [name] for name in ("tags", "attempted_by")}
    instants = [name for name in names if name.endswith("_at") or name == "leased_until"]
    times = {name: datetime(2026, 1, 1, hour, tzinfo=UTC) for hour, name in enumerate(instants)}
    row |= {name: f'"{time.isoformat()}"' for name, time in times.items()}
    expected = {**row, **times}
    if common:
        row |= dict.fromkeys((*COMMON, "created_at", "leased_until"))
        expected |= COMMON | {"created_at": times["scheduled_at"], "leased_until": None}
    same = {**CLAIMED, "queue": "mail", "token": token, "attempted_by": ("me",)}
    made = claimed_job([*row.values(), "more that a statement gives"], same, claimed_at)
    assert (made.state, made.queue, made.token, made.finalized_at, made.raw_output) == (
        JobState.RUNNING, "mail", token, None, None,
    )  # fmt: skip
    for name, value in expected.items():
        field = f"raw_{name}" if name in ("args", "metadata", "errors") else name
        assert getattr(made, field) == (tuple(value) if isinstance(value, list) else value)
