"""The README is true: its programs run, its SQL runs, its tables of settings say what the signatures say.

A block of Python is a program of its own, unless a comment before it says otherwise:

    <!-- in: client, tx -->            it runs where these names are there already (see `surroundings`)
    <!-- not run: for this reason -->  it does not run
"""

from __future__ import annotations

import ast
import inspect
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import pgjobs
from pgjobs import Client, Job, JobOptions, JobState, WorkerPool, WorkMap, cli
from pgjobs.maintenance.reindexer import MIDNIGHT
from pgjobs.options import Options
from pgjobs.unique import STATES, Unique
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PLACEHOLDER = "postgresql://localhost/app"


class Block(NamedTuple):
    language: str
    code: str
    line: int  # of the README where the code begins
    comment: str  # the HTML comment before it


def blocks(language: str) -> list[Block]:
    found = []
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        before = README[: match.start()].rstrip().rpartition("\n")[2]
        comment = re.fullmatch(r"<!-- (.*) -->", before)
        line = README.count("\n", 0, match.start(2)) + 1
        found.append(Block(match[1], match[2], line, comment[1] if comment else ""))
    return [block for block in found if block.language == language]


FIRST, *OTHERS = blocks("python") or [Block("python", "", 0, "")]


# --- the first program


def test_the_first_program_is_complete_and_short() -> None:
    assert FIRST.code, "the README has no Python in it"
    lines = [line for line in FIRST.code.splitlines() if line.strip()]
    assert len(lines) <= 15
    assert PLACEHOLDER in FIRST.code
    assert ".run()" in lines[-1]
    assert FIRST.comment == "", "nothing prepares the first program"


def test_the_first_program_runs_its_job_and_ends_well_on_sigterm(fresh_database: str, tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text(FIRST.code.replace(PLACEHOLDER, fresh_database))
    command = [sys.executable, "-W", "error", str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            wait_until(lambda: process.poll() is not None or states(fresh_database) == ["completed"], timeout=30)
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert said == ""
    assert process.returncode == 0
    assert states(fresh_database) == ["completed"]
    with psycopg.connect(fresh_database) as conn:
        assert conn.execute("SELECT email, greeted FROM account").fetchall() == [("ada@example.com", True)]


def states(dsn: str) -> list[str]:
    """The states of all jobs; none while there are no tables."""
    with psycopg.connect(dsn) as conn:
        if conn.execute("SELECT to_regclass('pgjobs.job')").fetchone() == (None,):
            return []
        return [state for (state,) in conn.execute("SELECT state FROM pgjobs.job")]


# --- the other blocks


@dataclass
class Welcome:
    email: str


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    email: Mapped[str] = mapped_column(primary_key=True)
    greeted: Mapped[bool | None]


@contextmanager
def surroundings(dsn: str) -> Iterator[dict[str, Any]]:
    """All that a block may ask for with `in:`."""
    where = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    engine = sqlalchemy.create_engine(sqlalchemy.URL.create("postgresql+psycopg", query=where))
    with ExitStack() as ending, Client(dsn) as client:
        ending.callback(engine.dispose)
        client.migrate()
        with client.pool.connection() as tx:
            tx.execute("CREATE TABLE account (email text, greeted boolean)")
        with client.pool.connection() as tx:
            yield {
                "client": client,
                "tx": tx,
                "email": "grace@example.com",
                "Welcome": Welcome,
                "Connection": psycopg.Connection,
                "Job": Job,
                "engine": engine,
                "Account": Account,
            }


@pytest.mark.parametrize("block", OTHERS, ids=lambda block: f"line {block.line}")
def test_a_block_runs_where_the_names_it_asks_for_are_there(block: Block, fresh_database: str) -> None:
    if block.comment.startswith("not run: "):
        assert block.comment.removeprefix("not run: ").strip(), "say why"
        compile(block.code, "README.md", "exec")
        return
    names = re.split(r",\s*", block.comment.removeprefix("in: ")) if block.comment.startswith("in: ") else []
    with surroundings(fresh_database) as around:
        given = {name: around[name] for name in names}
        exec(compile("\n" * (block.line - 1) + block.code, "README.md", "exec"), given)


def test_a_block_names_what_it_needs_or_why_it_is_not_run() -> None:
    for block in OTHERS:
        assert re.match(r"$|in: |not run: ", block.comment), f"line {block.line}: {block.comment}"


def test_the_sql_runs(fresh_database: str) -> None:
    statements = [part for block in blocks("sql") for part in re.split(r";\n", block.code) if part.strip()]
    assert statements
    with surroundings(fresh_database) as around:
        around["client"].enqueue(None, Welcome("ada@example.com"))
        with psycopg.connect(fresh_database) as conn:
            for statement in statements:
                assert conn.execute(statement.encode()).description is not None


# --- the tables of settings


class Setting(NamedTuple):
    name: str
    default: str  # as the README writes it


def tables() -> Iterator[tuple[str, list[Setting]]]:
    """Each table that has a column `default`: the head of its first column, and its rows, one for each name."""
    for table in re.findall(r"(?:^\|.*\|\n)+", README, re.MULTILINE):
        head, _, *rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.strip().splitlines()
        ]
        if "default" in head:
            column = head.index("default")
            yield head[0], [setting for row in rows for setting in settings(row[0], row[column])]


def settings(names: str, defaults: str) -> Iterator[Setting]:
    """`a`, `b` | 1 h, 2 h are two settings; `a`, `b` | none are two settings with one default."""
    found = re.findall(r"`(\w+)`", names)
    each = [part.strip() for part in re.findall(r"(?:`[^`]*`|[^,`])+", defaults)]
    assert len(each) in (1, len(found)), f"{names}: {defaults}"
    for name, default in zip(found, each if len(each) == len(found) else each * len(found), strict=True):
        yield Setting(name, default)


UNITS = {"ms": "milliseconds", "s": "seconds", "min": "minutes", "h": "hours", "d": "days"}
WORDS: dict[str, tuple[object, ...]] = {
    "none": (None, timedelta(0)),
    "now": (None,),
    "the pool's": (None,),
    "midnight UTC": (MIDNIGHT,),
    "all but cancelled and discarded": (tuple(sorted(set(STATES) - {"cancelled", "discarded"})),),
}
# A signature cannot hold a mutable default: there None stands for what the README says.
MEANT_BY_NONE = {("WorkerPool", "queues"): '`{"default": 10}`', ("WorkerPool", "backoff"): "`river()`"}


def says(text: str, value: object) -> bool:
    """Whether the README's text means the value of a signature."""
    if text in WORDS:
        return any(value == word and type(value) is type(word) for word in WORDS[text])
    if duration := re.fullmatch(r"(\d+) (\w+)", text):
        return value == timedelta(**{UNITS[duration[2]]: int(duration[1])})
    literal: object = ast.literal_eval(text.strip("`"))
    return literal == value and type(literal) is type(value)


def defaults_of(function: Callable[..., object]) -> dict[str, object]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def options_of_a_job() -> dict[str, object]:
    """What `enqueue` takes: None leaves the choice to the args class, then to the client, whose defaults count."""
    of_the_client = defaults_of(Client)
    return {name: of_the_client.get(name) for name in Options.__annotations__}


EXPECTED: Mapping[str, tuple[str, Callable[[], dict[str, object]]]] = {
    "option": ("enqueue", options_of_a_job),
    "setting of `WorkerPool`": ("WorkerPool", lambda: defaults_of(WorkerPool)),
    "setting of `Client`": ("Client", lambda: defaults_of(Client)),
    "field of `Unique`": ("Unique", lambda: defaults_of(Unique)),
}


def test_the_tables_of_settings_are_known() -> None:
    heads = [head for head, _ in tables()]
    assert heads
    assert set(heads) <= set(EXPECTED)
    assert {"option", "setting of `WorkerPool`"} <= set(heads)


@pytest.mark.parametrize(("head", "rows"), list(tables()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_table_of_settings_says_what_the_signature_says(head: str, rows: list[Setting]) -> None:
    owner, of = EXPECTED[head]
    defaults = of()
    names = [row.name for row in rows]
    assert sorted(names) == sorted(defaults), "every setting once, and no other"
    for row in rows:
        if defaults[row.name] is None and (owner, row.name) in MEANT_BY_NONE:
            assert row.default == MEANT_BY_NONE[owner, row.name]
        else:
            assert says(row.default, defaults[row.name]), f"{row.name}: {row.default}, not {defaults[row.name]!r}"


def test_a_worker_pool_has_ten_threads_on_the_default_queue_when_none_are_named() -> None:
    with Client(PLACEHOLDER) as client:
        assert WorkerPool(client, WorkMap({Welcome: lambda tx, job: None})).threads == 10


def test_the_options_of_a_job_are_the_same_everywhere() -> None:
    assert {field.name for field in fields(JobOptions)} == set(Options.__annotations__)


def test_a_wrong_default_is_noticed() -> None:
    assert says("1 s", timedelta(seconds=1))
    assert not says("2 s", timedelta(seconds=1))
    assert not says("none", timedelta(seconds=1))
    assert not says("`True`", 1)
    assert list(settings("`a`, `b`", "24 h, `{1, 2}`")) == [Setting("a", "24 h"), Setting("b", "`{1, 2}`")]
    assert list(settings("`a`, `b`", "now")) == [Setting("a", "now"), Setting("b", "now")]


# --- what else it names


def test_the_diagram_shows_every_state() -> None:
    section = README.partition("## The life of a job")[2].partition("\n## ")[0]
    assert section
    assert [state for state in JobState if state not in section] == []


def test_the_make_targets_it_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE))
    assert named
    assert named <= targets


def test_the_commands_it_names_exist(capsys: pytest.CaptureFixture[str]) -> None:
    named = re.findall(r"`pgjobs (\w+)([^`]*)`", README)
    assert named
    for command, options in named:
        with pytest.raises(SystemExit) as ended:
            cli.main([command, "--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", options):
            assert option in text


def test_what_it_calls_in_the_library_exists() -> None:
    """Every `name()` in the prose that is written like one of ours: a policy, or a method of a class it names."""
    for name in re.findall(r"`(\w+)\(\)`", README):
        homes = (pgjobs, Client, WorkerPool)
        assert any(hasattr(home, name) for home in homes), name
    for owner, name in re.findall(r"`(Client|WorkerPool|client)\.(\w+)\(", README):
        assert hasattr(getattr(pgjobs, owner.title() if owner == "client" else owner), name)
