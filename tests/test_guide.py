"""The guide and the README are true: their programs, SQL and commands run, their tables say what the signatures say."""

from __future__ import annotations

import ast
import inspect
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import pgjobs.contrib.django
import pgjobs.contrib.flask
import pgjobs.contrib.opentelemetry
import pgjobs.contrib.sentry
import pgjobs.contrib.sqlalchemy
import pgjobs.dashboard
import pgjobs.metrics
import pgjobs.testing
from pgjobs import Client, JobFilter, JobOptions, QueueSettings, Schedule, WorkerPool, WorkMap, cli, guide
from pgjobs.control.queues import Queues
from pgjobs.errors import PgjobsError
from pgjobs.events import Subscription
from pgjobs.maintenance.reindexer import MIDNIGHT
from pgjobs.options import Options
from pgjobs.queue_settings import Durability
from pgjobs.schedule import CatchUp
from pgjobs.schedules.registered import CodeSchedules
from pgjobs.schedules.stored import Schedules
from pgjobs.testing import Jobs, Performed
from pgjobs.unique import STATES, Unique
from pgjobs.work_map import Timeout
from tests.documents import DOCUMENTS, LANGUAGES, PAGES, PLACEHOLDER, README, ROOT, Document, anchor

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)


# --- how a page is made


def test_every_page_is_a_topic_and_every_topic_a_page() -> None:
    assert sorted(guide.TOPICS) == sorted(path.stem for path in (ROOT / "pgjobs" / "guide").glob("*.md"))


@each_page
def test_a_page_begins_with_one_sentence_that_says_what_it_is_for(page: Document) -> None:
    title, sentence, _ = page.text.split("\n\n", 2)
    assert re.fullmatch(r"# \w[^\n]*", title)
    assert guide.summary(page.name) == " ".join(sentence.split())
    assert re.fullmatch(r"[A-Z][^.?!]*\.", guide.summary(page.name))


@each_page
def test_a_page_answers_five_questions_or_more(page: Document) -> None:
    assert len([section for section in page.sections if section.endswith("?")]) >= 5


@each_document
def test_every_fence_has_a_language_and_no_line_is_too_long(document: Document) -> None:
    assert document.text.count("\n```") % 2 == 0
    assert {block.language for block in document.blocks()} <= LANGUAGES
    assert [line for line in document.text.splitlines() if len(line) > 120] == []
    assert "<!--" not in document.text, "a page is also read in a terminal"


@each_document
def test_its_links_lead_somewhere(document: Document) -> None:
    inside = [target for target in re.findall(r"\]\(([^)\s]+)\)", document.text) if "://" not in target]
    for file, _, place in (target.partition("#") for target in inside):
        path = (document.path.parent / file).resolve() if file else document.path
        assert path.is_file(), file
        if document is not README:
            assert path.parent == document.path.parent, f"{file} is not installed beside the page"
        if place:
            assert place in map(anchor, Document(file, path).sections)


# --- what it shows, runs


@pytest.fixture
def shop(fresh_database: str, tmp_path: Path) -> Path:
    """A directory with what a page may import: a Django project `shop` with one model."""
    where = {key: str(value) for key, value in conninfo_to_dict(fresh_database).items()}
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    named = {name: where.pop(key, "") for name, key in names.items()}
    database = {"ENGINE": "django.db.backends.postgresql", **named, "OPTIONS": where}
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "settings.py").write_text(f"DATABASES = {{'default': {database!r}}}\nINSTALLED_APPS = ['shop']\n")
    (package / "models.py").write_text(
        "from django.db import models\n\n\n"
        "class Customer(models.Model):\n"
        "    email = models.TextField(primary_key=True)\n"
        "    greeted = models.BooleanField(default=False)\n"
    )
    with psycopg.connect(fresh_database) as conn:  # as `python manage.py migrate` does
        conn.execute("CREATE TABLE shop_customer (email text PRIMARY KEY, greeted boolean NOT NULL)")
    return tmp_path


@each_page
def test_its_program_and_its_sql_run(page: Document, fresh_database: str, shop: Path) -> None:
    program = shop / f"{page.name.replace('-', '_')}_page.py"
    program.write_text(page.program(fresh_database))
    done = subprocess.run(
        [sys.executable, "-u", "-W", "error", str(program)],
        cwd=shop,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "shop.settings"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # where the log goes
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    # what psycopg_pool logs when a worker replaces a connection, which it may at any time
    printed = re.sub(r"^discarding closed connection: .*\n", "", done.stdout, flags=re.MULTILINE)
    assert without_places(printed) == without_places(page.output_after("python"))
    with Client(fresh_database) as client:
        client.migrate()  # for a page with SQL alone
    statements = [part for block in page.blocks("sql") for part in re.split(r";\n", block.code) if part.strip()]
    with psycopg.connect(fresh_database) as conn:
        for statement in statements:
            cursor = conn.execute(statement.encode())
            assert cursor.description is not None or not statement.lstrip().startswith("SELECT"), statement


def without_places(text: str) -> str:
    """Without the files and the numbers of lines in tracebacks, which are those of the test."""
    return re.sub(r'File "[^"]*", line \d+', 'File "...", line 1', text)


def test_a_program_keeps_the_lines_of_its_page(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    program = f"```python\nx = '{PLACEHOLDER}'\n```\n\nand\n\n```python\nprint(x)\n```\n"
    path.write_text(f"# Page\n\n{program}\n```output\ndbname=y\n```\n")
    page = Document("page", path)
    assert page.program("dbname=y").splitlines() == ["", "", "", "x = 'dbname=y'", "", "", "", "", "", "print(x)"]
    assert page.output_after("python") == "dbname=y\n"
    assert page.output_after("sh") == ""


KNOWN = re.compile(r"make \w|pip install |python app\.py$|python manage\.py |export |docker |systemctl ")


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.blocks("sh")], ids=lambda document: document.name)
def test_its_commands_run(
    document: Document, fresh_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", fresh_database)
    with Client(fresh_database) as client:
        client.migrate()
    printed = ""
    for line in (line for block in document.blocks("sh") for line in block.code.splitlines()):
        words = shlex.split(re.split(r" \| | > ", line)[0], comments=True)
        if words[:1] != ["pgjobs"]:
            assert KNOWN.match(line), line
        elif words[1] != "demo":
            assert cli.main(words[1:]) == 0, line
            out = capsys.readouterr().out
            printed += "" if re.search(r" \| | > ", line) else out
    if document is not README and not document.files and document.output_after("sh"):
        assert re.sub(r"\b\ds ago", "0s ago", printed) == document.output_after("sh")


# --- the tables of settings


class Setting(NamedTuple):
    name: str
    type: str  # as the page writes it
    default: str


class Table(NamedTuple):
    of: str  # the head of its first column
    settings: list[Setting]  # one for each name


def tables(document: Document) -> Iterator[Table]:
    """Each table that has a column `default`."""
    for table in re.findall(r"(?:^\|.*\|\n)+", document.text, re.MULTILINE):
        head, _, *rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.strip().splitlines()
        ]
        if "default" in head:
            named = [dict(zip(head, row, strict=True)) for row in rows]
            yield Table(head[0], [s for row in named for s in settings(row[head[0]], row["type"], row["default"])])


def settings(names: str, type: str, defaults: str) -> Iterator[Setting]:
    """`a`, `b` | 1 h, 2 h are two settings; `a`, `b` | none are two settings with one default."""
    found = re.findall(r"`(\w+)`", names)
    each = [part.strip() for part in re.findall(r"(?:`[^`]*`|[^,`])+", defaults)]
    assert len(each) in (1, len(found)), f"{names}: {defaults}"
    for name, default in zip(found, each if len(each) == len(found) else each * len(found), strict=True):
        yield Setting(name, type, default)


UNITS = {"ms": "milliseconds", "s": "seconds", "min": "minutes", "h": "hours", "d": "days"}
WORDS: dict[str, tuple[object, ...]] = {
    "none": (None, timedelta(0)),
    "now": (None,),
    "the pool's": (None,),
    "midnight UTC": (MIDNIGHT,),
    "DEBUG": (logging.DEBUG,),
    "all but cancelled and discarded": (tuple(sorted(set(STATES) - {"cancelled", "discarded"})),),
}
# A signature cannot hold a mutable default: there None stands for what the page says.
MEANT_BY_NONE = {
    ("WorkerPool", "queues"): '`{"default": 10}`',
    ("WorkerPool", "backoff"): "the client's",
    ("Client", "backoff"): "`river()`",
}


def says(text: str, value: object) -> bool:
    """Whether the page's text means the value of a signature."""
    if text in WORDS:
        return any(value == word and type(value) is type(word) for word in WORDS[text])
    if duration := re.fullmatch(r"(\d+) (\w+)", text):
        return value == timedelta(**{UNITS[duration[2]]: int(duration[1])})
    literal: object = ast.literal_eval(text.strip("`"))
    return literal == value and type(literal) is type(value)


class Parameter(NamedTuple):
    annotation: str
    default: object


ALIASES = {"Timeout": Timeout, "Durability": Durability, "CatchUp": CatchUp}  # of annotations


def parameters(function: Callable[..., object]) -> dict[str, Parameter]:
    """What may be left out of a call."""
    taken = inspect.signature(function).parameters.values()
    return {
        p.name: Parameter(str(ALIASES.get(str(p.annotation).partition(" ")[0], p.annotation)), p.default)
        for p in taken
        if p.default is not p.empty
    }


def options_of_a_job() -> dict[str, Parameter]:
    """What `enqueue` takes: None leaves the choice to the args class, then to the client, whose defaults count."""
    last = parameters(Client)
    return {
        name: Parameter(str(annotation), last[name].default if name in last and name != "context" else None)
        for name, annotation in Options.__annotations__.items()
    }


EXPECTED: Mapping[str, tuple[str, Callable[[], dict[str, Parameter]]]] = {
    "option": ("enqueue", options_of_a_job),
    "setting of `WorkerPool`": ("WorkerPool", lambda: parameters(WorkerPool)),
    "setting of `Client`": ("Client", lambda: parameters(Client)),
    "setting of `QueueSettings`": ("QueueSettings", lambda: parameters(QueueSettings)),
    "setting of `Schedule`": ("Schedule", lambda: parameters(Schedule)),
    "setting of a handler": ("handles", lambda: parameters(WorkMap.handles)),
    "field of `Unique`": ("Unique", lambda: parameters(Unique)),
}
TABLES = [table for document in DOCUMENTS for table in tables(document)]


def test_every_table_of_settings_is_there_once() -> None:
    assert sorted(table.of for table in TABLES) == sorted(EXPECTED)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.of)
def test_a_table_of_settings_says_what_the_signature_says(table: Table) -> None:
    owner, of = EXPECTED[table.of]
    taken = of()
    assert sorted(row.name for row in table.settings) == sorted(taken), "every setting once, and no other"
    for name, type_, default in table.settings:
        annotation, value = taken[name]
        if value is None and (owner, name) in MEANT_BY_NONE:
            assert default == MEANT_BY_NONE[owner, name]
        else:
            assert says(default, value), f"{name}: {default}, not {value!r}"
        assert type_, name
        for word in re.findall(r"`\"?([^`\"]+)\"?`", type_):
            assert re.search(rf"\b{re.escape(word)}\b", annotation), f"{name}: {word} is not in {annotation}"


def test_a_worker_pool_has_ten_threads_on_the_default_queue_when_none_are_named() -> None:
    with Client(PLACEHOLDER) as client:
        assert WorkerPool(client, WorkMap({"some.kind": lambda tx, job: None})).threads == 10


def test_the_options_of_a_job_are_the_same_everywhere() -> None:
    assert {field.name for field in fields(JobOptions)} == set(Options.__annotations__)


def test_a_wrong_default_is_noticed() -> None:
    assert says("1 s", timedelta(seconds=1))
    assert not says("2 s", timedelta(seconds=1))
    assert not says("none", timedelta(seconds=1))
    assert not says("`True`", 1)
    assert list(settings("`a`, `b`", "int", "24 h, `{1, 2}`")) == [
        Setting("a", "int", "24 h"),
        Setting("b", "int", "`{1, 2}`"),
    ]
    assert list(settings("`a`, `b`", "", "now")) == [Setting("a", "", "now"), Setting("b", "", "now")]


def test_the_fields_of_a_filter_are_all_named() -> None:
    section = (ROOT / "pgjobs" / "guide" / "control.md").read_text()
    names = {field.name for field in fields(JobFilter)} - {"really_all"}
    assert {name for name in names if f"`{name}`" not in section} == set()


# --- what else it names


@each_document
def test_the_make_targets_it_names_exist(document: Document) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", document.text, re.MULTILINE)) <= targets


@each_document
def test_the_commands_it_names_exist(document: Document, capsys: pytest.CaptureFixture[str]) -> None:
    commands = "".join(f"`{line}`\n" for block in document.blocks("sh") for line in block.code.splitlines())
    for command, options in re.findall(r"`pgjobs (\w+)([^`]*)`", document.prose + commands):
        actions = options.split()[:1] if command in ("queues", "schedules") else []
        with pytest.raises(SystemExit) as ended:
            cli.main([command, *actions, "--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        for option in re.findall(r"--[a-z-]+", options):
            assert option in text


HOMES: tuple[object, ...] = (pgjobs, pgjobs.contrib.django, pgjobs.contrib.sqlalchemy, Client, Queues, Schedules)
HOMES += (CodeSchedules, WorkerPool, WorkMap, pgjobs.Handler, pgjobs.Job, JobFilter, Subscription, pgjobs.Hooks)
HOMES += (pgjobs.ErrorHandler,)
HOMES += (pgjobs.testing, Jobs, Performed)
HOMES += (pgjobs.contrib.flask, pgjobs.contrib.flask.Pgjobs)
HOMES += (pgjobs.metrics, pgjobs.contrib.opentelemetry, pgjobs.contrib.opentelemetry.OpenTelemetry)
HOMES += (pgjobs.contrib.sentry, pgjobs.Durations, pgjobs.dashboard)
OWNERS: Mapping[str, Any] = {
    "client": Client,
    "pool": WorkerPool,
    "job": pgjobs.Job,
    "work_map": WorkMap,
    "client.queues": Queues,
    "client.schedules": Schedules,
    "pool.schedules": CodeSchedules,
    "events": Subscription,
}
THEIRS = {"handler", "backoff", "timeout", "job_options", "next", "atomic", "set_rollback", "RunSQL", "execute"}
THEIRS |= {"commit"}


@each_document
def test_what_it_calls_in_the_library_exists(document: Document) -> None:
    """Every `name(...)` in the prose is a name of ours, or of a function that is the reader's; so is `client.name(`."""
    for name in re.findall(r"`(\w+)\([^`]*\)`", document.prose):
        assert name in THEIRS or any(hasattr(home, name) for home in HOMES), name
    for owner, name in re.findall(r"`((?:client|pool)\.(?:queues|schedules)|\w+)\.(\w+)\(", document.prose):
        if owner in OWNERS or hasattr(pgjobs, owner):
            assert hasattr(OWNERS.get(owner) or getattr(pgjobs, owner), name), f"{owner}.{name}"


@each_document
def test_the_errors_it_names_exist(document: Document) -> None:
    for table in re.findall(r"^\| error \|.*\n(?:^\|.*\|\n)+", document.text, re.MULTILINE):
        for name in re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE):
            assert hasattr(pgjobs, name) or hasattr(psycopg.errors, name), name


# --- the command that prints it


def test_the_command_lists_every_topic_with_its_first_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["guide"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for topic in guide.TOPICS:
        assert f"{topic} {guide.summary(topic)}" in printed


def test_the_command_prints_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["guide", "unique"]) == 0
    assert capsys.readouterr().out == (ROOT / "pgjobs" / "guide" / "unique.md").read_text()


def test_on_a_terminal_a_page_goes_through_the_pager(monkeypatch: pytest.MonkeyPatch) -> None:
    paged: list[str] = []
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("pydoc.pager", paged.append)
    assert cli.main(["guide", "unique"]) == 0
    assert paged == [guide.read("unique")]


@pytest.mark.parametrize(
    ("asked", "meant"), [("handler", "handlers"), ("long_jobs", "long-jobs"), ("Unique.md", "unique")]
)
def test_an_unknown_topic_is_an_error_that_names_the_nearest(
    asked: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["guide", asked]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"pgjobs: error: the guide has no topic {asked!r}; did you mean {meant!r}? ")


def test_a_topic_that_resembles_none_is_an_error_that_lists_them_all() -> None:
    with pytest.raises(PgjobsError, match="the guide has no topic 'xyz'; the topics are enqueue, unique, ") as raised:
        guide.read("xyz")
    assert all(topic in str(raised.value) for topic in guide.TOPICS)
