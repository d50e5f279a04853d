"""No operator, function, type or table of a stranger is found, whatever the search_path of a role; see tests/decoys.py.

First what Postgres understands of each statement: as the body of an SQL function it is kept as a tree, in which
operators, functions and types stand by their numbers. Then a whole life, with nothing written down by any decoy.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgjobs import Client, JobFilter, Unique, WorkerPool
from pgjobs.db import statements
from pgjobs.db.migrate import migrate, schema_sql
from pgjobs.db.migration_plan import versions
from pgjobs.db.migration_queries import MigrationQueries
from pgjobs.execution.queries import passing_over
from tests import decoys, life, modes
from tests.conftest import new_database
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.finding("S1"),
    pytest.mark.finding("S2"),
    pytest.mark.no_decoys("makes all that there can be by itself"),
]

Conn = psycopg.Connection[Any]
Found = Callable[[], list[str]]

FILES = sorted(path.name for path in statements.ROOT.glob("*.sql") if path.name != "parts.sql")
NORMAL = "public"
WORKER, ENQUEUER = ROLES = [f"decoy_{role}_{uuid.uuid4().hex[:8]}" for role in ("worker", "enqueuer")]


@pytest.fixture(scope="module")
def dsn(server_dsn: str) -> Iterator[str]:
    """A database with decoys for all that our tables have to do with."""
    with new_database(server_dsn) as dsn, psycopg.connect(dsn, autocommit=True) as admin:
        if admin.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() != (True,):
            pytest.skip("only a superuser can make decoys that write to a file")
        for role in ROLES:
            admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'".encode())
        admin.execute(f"GRANT CREATE ON DATABASE {conninfo_to_dict(dsn)['dbname']} TO {WORKER}".encode())
        with Client(of_role(dsn, WORKER)) as client:
            client.migrate()
        admin.execute(f"GRANT USAGE ON SCHEMA pgjobs TO {ENQUEUER}".encode())
        for all_of in ("TABLES", "SEQUENCES"):
            admin.execute(f"GRANT ALL ON ALL {all_of} IN SCHEMA pgjobs TO {ENQUEUER}".encode())
        decoys.make_decoys(admin)
        decoys.make_decoys_for(admin, "pgjobs")
        admin.execute("CREATE SCHEMA probe")
        try:
            yield dsn
        finally:
            for role in ROLES:
                admin.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}".encode())


def of_role(dsn: str, role: str) -> str:
    return make_conninfo(dsn, user=role, password=role)


@pytest.fixture
def admin(dsn: str) -> Iterator[Conn]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


@pytest.fixture
def found(admin: Conn) -> Found:
    """The statements that have come upon a decoy in this test."""
    before = decoys.calls(admin)
    return lambda: decoys.found(admin, before)


# --- what Postgres understands


def single_statements() -> dict[str, str]:
    """Each that has an expression in it, by file, name and number, with parameters as PREPARE takes them."""
    texts = {
        f"{path} {name}": text.decode() for path in FILES for name, text in statements.load(path, "pgjobs").items()
    }
    nexts = {
        "execution.sql claim": "execution.sql select_by_priority",
        "execution_batch.sql claim_batch": "execution_batch.sql select_batch_by_priority",
    }
    pieces = {  # of other statements
        name: re.sub(r" *--.*", "", texts.pop(f"execution.sql {name}")).strip().rstrip(";")
        for name in ("skip_set_aside", "claim_alone", "claim_with_finish", "job_settings", "job_bound")
    }
    around = pieces["skip_set_aside"].encode()
    texts = {name: passing_over(text.encode(), around).decode() for name, text in texts.items()}
    for take, next in nexts.items():
        texts[take] = texts[take].replace("{next}", texts[next].strip())
    settings = f"{pieces['job_settings']}, {pieces['job_bound']}"
    claim = texts["execution.sql claim"]
    for name in ("claim_alone", "claim_with_finish"):
        texts[f"execution.sql {name}"] = claim.replace("{returning}", f"RETURNING {pieces[name]}")
    texts["execution.sql claim"] = claim.replace("{returning}", "")
    texts["execution_batch.sql set_job_settings"] = f"SELECT {pieces['job_settings']}"
    texts["execution.sql lock"] = texts["execution.sql lock"].replace("{settings}", settings)
    singles = {
        f"{name} {number}": numbered(single.strip())
        for name, text in texts.items()
        for number, single in enumerate(re.split(r";$", re.sub(r" *--.*", "", text), flags=re.MULTILINE))
    }
    return {name: text for name, text in singles.items() if re.match(r"SELECT|WITH|INSERT|UPDATE|DELETE", text)}


def numbered(text: str) -> str:
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)[sb]", text)))
    text = re.sub(r"%\((\w+)\)[sb]", lambda match: f"${names.index(match[1]) + 1}", text).replace("%%", "%")
    return text.replace("{version}", "1").replace("{name}", "tables")


@pytest.fixture
def as_written(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The statements as they stand in the files."""

    def forget() -> None:
        for cache in (statements.load, statements.pieces, statements.templates, statements.parts):
            cache.cache_clear()

    with monkeypatch.context() as patched:
        patched.setattr(statements, "qualify", lambda text, where: text)
        forget()
        texts = single_statements()
    forget()
    return texts


def parameter_types(conn: Conn, text: str) -> str:
    """Those that Postgres takes the parameters for, named in full."""
    conn.execute(f"PREPARE probe AS {text}".encode())
    query = """SELECT COALESCE(string_agg(format('%I.%I', nspname, typname), ', ' ORDER BY place), '')
        FROM pg_prepared_statements, unnest(parameter_types) WITH ORDINALITY AS parameter (type, place)
        JOIN pg_type ON pg_type.oid = parameter.type JOIN pg_namespace ON pg_namespace.oid = typnamespace
        WHERE name = 'probe'"""
    types: Any = conn.execute(query).fetchone()
    conn.execute("DEALLOCATE probe")
    return str(types[0])


def tree(conn: Conn, text: str, types: str, path: str) -> str:
    """What Postgres understands under this search_path; or why it refuses."""
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(f"SET LOCAL search_path = {path}".encode())
            conn.execute(f"CREATE FUNCTION probe.probe({types}) RETURNS void BEGIN ATOMIC {text}; END".encode())
            conn.execute("SET LOCAL search_path = pg_catalog")
            found: Any = conn.execute("SELECT prosqlbody::text FROM pg_proc WHERE proname = 'probe'").fetchone()
    except psycopg.Error as error:
        return str(error)
    # not where it stands in the text, nor the name of an operator whose number stands beside it
    return re.sub(r":(location|stmt_location|stmt_len) -?\d+|:operName \([^)]*\)", "", found[0])


def test_a_statement_means_what_is_written_and_the_same_under_any_search_path(
    admin: Conn, as_written: dict[str, str]
) -> None:
    """With `=(job_state, job_state)` of a stranger in the search_path, a claim ran the stranger's function."""
    sent = single_statements()
    assert sent.keys() == as_written.keys()
    deceived = set()
    for name, text in sent.items():
        types = parameter_types(admin, text)
        meant = tree(admin, as_written[name], types, NORMAL)
        assert meant.startswith("("), f"{name}: {meant}"
        for path in (NORMAL, *decoys.PATHS):
            assert tree(admin, text, types, path) == meant, f"{name}, under {path}"
            if tree(admin, as_written[name], types, path) != meant:
                deceived.add(name)
    without = {name for name, text in sent.items() if "OPERATOR" not in text and "::pg_catalog" not in text}
    assert deceived >= sent.keys() - without, "the decoys are good: they deceive what is not named in full"


# --- migrations


def bound_to_decoys(conn: Conn, schema: str) -> list[tuple[str, str]]:
    """What of a schema needs a decoy, and which."""
    query = """SELECT needs.identity, needed.identity
        FROM (SELECT * FROM pg_depend WHERE classid <> 0 OFFSET 0) AS depend, -- before Postgres 15 some say no class
            pg_identify_object(classid, objid, objsubid) AS needs,
            pg_identify_object(refclassid, refobjid, refobjsubid) AS needed
        WHERE needed.schema = 'decoy' AND needs.schema = %s"""
    return conn.execute(query, [schema]).fetchall()


@pytest.mark.parametrize("path", decoys.PATHS)
@pytest.mark.parametrize("by", ["migrate", "sql"])
def test_what_a_migration_makes_needs_nothing_of_a_stranger(
    admin: Conn, dsn: str, found: Found, path: str, by: str
) -> None:
    """The condition of an index, or a rule for a column, kept the operator that the migrator's search_path had."""
    with psycopg.connect(dsn) as conn:
        conn.execute(f"SET search_path = {path}".encode())
        conn.commit()
        if by == "sql":
            conn.execute(schema_sql("migrated").encode())
        else:
            for target in (max(versions()), 0, max(versions())):
                migrate(conn, "migrated", direction="up" if target else "down", target=target, borrowed=True)
                assert conn.execute("SHOW search_path").fetchone() == (path,), "in the caller's transaction too"
        conn.commit()
        assert conn.execute("SHOW search_path").fetchone() == (path,)
    assert bound_to_decoys(admin, "migrated") == []
    assert found() == []
    admin.execute("DROP SCHEMA migrated CASCADE")


def test_every_function_of_ours_is_understood_when_it_is_made_or_has_a_search_path_of_its_own(admin: Conn) -> None:
    query = (
        """SELECT proname, proconfig FROM pg_proc WHERE pronamespace = 'pgjobs'::regnamespace AND prosqlbody IS NULL"""
    )
    settings = dict(admin.execute(query).fetchall())
    assert "enqueue" in settings
    assert {name for name, config in settings.items() if config != ["search_path=pg_catalog, pg_temp"]} == set()


def test_without_a_search_path_of_its_own_a_migration_would_be_deceived(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres finds a decoy for the operator of an index, which must not call it."""
    monkeypatch.setattr(MigrationQueries, "own_path", lambda *_: nullcontext())
    with psycopg.connect(dsn) as conn:
        conn.execute(f"SET search_path = {decoys.PATHS[0]}".encode())
        with pytest.raises(psycopg.errors.InvalidObjectDefinition, match="index predicate must be marked IMMUTABLE"):
            migrate(conn, "deceived", borrowed=True)
        conn.rollback()


def test_a_migration_that_is_refused_leaves_the_search_path_as_it_was(dsn: str) -> None:
    with psycopg.connect(dsn) as conn:
        conn.execute("SET LOCAL search_path = public, probe")
        conn.execute("SAVEPOINT before")
        with pytest.raises(psycopg.Error):
            migrate(conn, "pgjobs", direction="down", target=0, borrowed=True)
        conn.execute("ROLLBACK TO before")
        assert conn.execute("SHOW search_path").fetchone() == ("public, probe",)


# --- a life


@pytest.fixture(params=decoys.PATHS)
def path(request: pytest.FixtureRequest, admin: Conn) -> str:
    """The search_path of both roles."""
    for role in ROLES:
        admin.execute(f"ALTER ROLE {role} SET search_path = {request.param}".encode())
    return str(request.param)


@pytest.fixture
def clients(dsn: str, path: str) -> Iterator[tuple[Client, Client]]:
    """One of the role of the workers, one of those who enqueue."""
    with Client(of_role(dsn, WORKER)) as workers, Client(of_role(dsn, ENQUEUER)) as enqueuer:
        yield workers, enqueuer


@pytest.fixture
def conn(dsn: str, path: str) -> Iterator[Conn]:
    """A connection of the application's."""
    with psycopg.connect(of_role(dsn, ENQUEUER)) as conn:
        yield conn


@pytest.fixture
def server(dsn: str, path: str) -> Iterator[Conn]:
    """A connection of a worker's."""
    with psycopg.connect(of_role(dsn, WORKER), autocommit=True) as conn:
        yield conn


def test_nothing_of_a_stranger_runs_where_jobs_are_enqueued_looked_at_and_controlled(
    clients: tuple[Client, Client], conn: Conn, found: Found
) -> None:
    """`=(job_state, text)` of a stranger ran with each `enqueue(unique=)`, and others with list, figures, cancel."""
    _, enqueuer = clients
    life.enqueue_in_every_way(enqueuer, conn)
    for tx in (None, conn):
        life.look_in_every_way(enqueuer, tx)
    life.schedule_in_every_way(enqueuer, conn)
    life.control_in_every_way(enqueuer, conn)
    assert found() == []


def test_nothing_of_a_stranger_runs_in_the_upkeep(
    clients: tuple[Client, Client], server: Conn, admin: Conn, found: Found
) -> None:
    """What upkeep asked outside of its own search_path (anything_due, current_time ..) ran the stranger's code."""
    life.do_the_duties(clients[0], server, admin)
    assert found() == []


WAYS: dict[str, dict[str, Any]] = {
    "hot": {},
    "batches": {"batch_size": 5},
    "by time": {"order": "scheduled_at", "batch_size": 5, "listen": False},
    "plain": {},
    "plain batches": {"batch_size": 5, "durability": "relaxed"},
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_a_stranger_runs_where_jobs_are_worked(
    *,
    clients: tuple[Client, Client],
    found: Found,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Claims and finishes ran the stranger's `=`, `+` and `||` with the rights of the worker."""
    if way.startswith("plain"):
        modes.without_prepared(monkeypatch.setattr)
    workers, enqueuer = clients
    life.work_in_every_way(workers, enqueuer, **WAYS[way])
    assert found() == []
    wrong = [record.getMessage() for record in caplog.records if "does not exist" in record.getMessage()]
    assert wrong == []
    assert not [
        record for record in caplog.records if record.levelno >= logging.ERROR and "psycopg" in str(record.exc_info)
    ]


# --- and it would be noticed

Act = Callable[[Client, Conn], object]


def run_until_over(client: Client, batch_size: int) -> None:
    """Let a worker pool do what waits; a claim that is deceived finds nothing."""
    with WorkerPool(client, {life.Deed: life.do}, batch_size=batch_size):
        wait_until(lambda: not client.count(JobFilter(queues=["default"], states=["available"])).total, timeout=2)


# What is named in full at one place each, and what comes by there.
FORGOTTEN: dict[str, tuple[str, str, str, Act]] = {
    "a claim": (
        "execution.sql select_by_priority",
        "state OPERATOR(pg_catalog.=) 'available'",
        "state = 'available'",
        lambda client, _: run_until_over(client, batch_size=1),
    ),
    "a unique job": (
        "enqueuing.sql duplicates",
        "unique_key OPERATOR(pg_catalog.=) ANY (",
        "unique_key = ANY (",
        lambda client, _: [client.enqueue(None, life.Deed("unique"), unique=Unique()) for _ in range(2)],
    ),
    "a batch": (
        "execution_batch.sql claim_batch",
        "pg_catalog.cardinality(tags) OPERATOR(pg_catalog.>) 0",
        "pg_catalog.cardinality(tags) > 0",
        lambda client, _: run_until_over(client, batch_size=2),
    ),
    "a function": (
        "enqueuing.sql insert_job",
        "pg_catalog.statement_timestamp()",
        "statement_timestamp()",
        lambda client, conn: client.enqueue(conn, life.Deed("later"), delay=timedelta(hours=1)),
    ),
    "a type": (
        "observe.sql count_jobs",
        ">=) %(created_after)s::pg_catalog.timestamptz",
        ">=) %(created_after)s::timestamptz",
        lambda client, conn: client.count(JobFilter(created_after=datetime.now(UTC)), conn),
    ),
    "a table": (
        "observe.sql get_job_with_progress",
        'FROM "pgjobs".job WHERE',
        "FROM job WHERE",
        lambda client, conn: client.get(1, conn),
    ),
}


@pytest.mark.parametrize("place", FORGOTTEN)
def test_one_name_that_is_not_in_full_would_be_noticed(
    *, dsn: str, admin: Conn, found: Found, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement, full, short, act = FORGOTTEN[place]
    path, name = statement.split()
    load = statements.load
    assert full.encode() in load(path, "pgjobs")[name]

    def forgetful(file: str, schema: str) -> dict[str, bytes]:
        texts = dict(load(file, schema))
        if file == path:
            texts[name] = texts[name].replace(full.encode(), short.encode(), 1)
        return texts

    monkeypatch.setattr(statements, "load", forgetful)
    for role in ROLES:
        admin.execute(f"ALTER ROLE {role} SET search_path = {decoys.PATHS[0]}".encode())
    with Client(of_role(dsn, ENQUEUER)) as client, psycopg.connect(of_role(dsn, ENQUEUER)) as conn:
        client.enqueue_many(None, [life.Deed("nothing"), life.Deed("nothing")])
        with suppress(Exception):  # it does what the decoy wants
            act(client, conn)
    assert found()
