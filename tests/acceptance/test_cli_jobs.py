"""The verbs for jobs: which jobs they mean, what they print for programs, what they ask, and how they fail."""

from __future__ import annotations

import io
import json
import re
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from pgjobs import Client, Job, JobState, NewJob, Schedule, WorkerPool, cli
from pgjobs.cli import filters
from tests.acceptance.cli_program import of, run_on_terminal
from tests.waiting import wait_until

VARIABLES = ("DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE", "PGJOBS_APP")


@pytest.fixture(autouse=True)
def _no_database_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Program:
    """Runs the command line in this process, on the tables of a client."""

    def __init__(self, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
        self.client = client
        self._capsys = capsys

    def __call__(self, *words: object, app: str | None = None) -> Said:
        where = of(self.client) if app is None else ["--app", app]
        try:
            code = cli.main([*map(str, words), *where])
        except SystemExit as ended:  # of argparse
            code = int(ended.code or 0)
        out, err = self._capsys.readouterr()
        return Said(code, out, err)

    def ids(self, *words: object) -> list[int]:
        said = self("list", "--json", "--reverse", *words)
        assert said.code == 0, said.err
        return [json.loads(line)["id"] for line in said.lines]


@pytest.fixture
def pgjobs(client: Client, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(client, capsys)


# --- which jobs


def test_the_options_of_a_filter(pgjobs: Program) -> None:
    client = pgjobs.client
    jobs = client.enqueue_many(
        None,
        [
            NewJob({"to": "ada", "n": 1}, kind="mail.send", queue="mail", priority=-1, tags=["one", "two"]),
            NewJob({}, kind="mail.send", queue="bulk", metadata={"tenant": 7}, tags=["two"]),
            NewJob({}, kind="report", pending=True),
        ],
    )
    a, b, c = (job.id for job in jobs)
    assert pgjobs.ids() == [a, b, c]
    assert pgjobs.ids("--kind", "mail.send") == [a, b]
    assert pgjobs.ids("--queue", "bulk", "--queue", "default") == [b, c]
    assert pgjobs.ids("--state", "pending") == [c]
    assert pgjobs.ids("--priority", "-1") == [a]
    assert pgjobs.ids("--tag", "one", "--tag", "two") == [a]
    assert pgjobs.ids("--any-tag", "one", "--any-tag", "two") == [a, b]
    assert pgjobs.ids("--metadata", '{"tenant": 7}') == [b]
    assert pgjobs.ids("--args", '{"to": "ada"}') == [a]
    assert pgjobs.ids("--created-after", "1h") == [a, b, c]
    assert pgjobs.ids("--created-before", "1h") == []
    assert pgjobs.ids("--scheduled-before", "+1h", "--kind", "report") == [c]
    assert pgjobs.ids("--finalized-after", "2020-01-01") == []
    client.cancel(b)
    client.cancel(a)
    assert pgjobs.ids("--state", "cancelled", "--order", "time") == [b, a]


def test_a_list_says_how_to_go_on(pgjobs: Program) -> None:
    ids = [pgjobs.client.enqueue(None, {}, kind="test").id for _ in range(5)]
    said = pgjobs("list", "--limit", "2", "--json")
    assert [json.loads(line)["id"] for line in said.lines] == ids[:2:-1]
    cursor = said.err.split()[-1]
    assert said.err == f"there are more jobs: --limit 0 for all, or go on with --cursor {cursor}\n"
    said = pgjobs("list", "--limit", "0", "--json", "--cursor", cursor)
    assert [json.loads(line)["id"] for line in said.lines] == ids[2::-1]
    assert said.err == ""


def test_a_long_list_is_read_page_by_page(pgjobs: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgjobs.cli.listing._PAGE", 2)
    monkeypatch.setattr("pgjobs.cli.output._CHUNK", 2)
    ids = [pgjobs.client.enqueue(None, {}, kind="test").id for _ in range(5)]
    assert pgjobs.ids("--limit", "0") == ids
    assert pgjobs.ids("--limit", "3") == ids[:3]
    head, *lines = pgjobs("list", "--limit", "0", "--reverse").lines
    assert head.split()[0] == "ID"
    assert [int(line.split()[0]) for line in lines] == ids


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["list", "--created-after", "yesterday"], "must be a date or time such as 2026-03-07"),
        (["list", "--metadata", "[1]"], "must be a JSON object"),
        (["list", "--priority", "x"], "must be a whole number"),
        (["show", "abc"], "the id of a job is a whole number, not 'abc'"),
        (["retry"], "which jobs? give ids, or options such as --state or --kind, or --all"),
        (["cancel", "7", "--all"], "--all: not allowed with"),
        (["update", "7"], "what is to change?"),
        (["enqueue", "test", "{"], "'{' is not JSON"),
        (["enqueue", "test", "@nosuch.json"], "No such file"),
        (["enqueue", "test", '{"a": NaN}'], "NaN is not a JSON number"),
        (["enqueue", "test", "--delay", "soon"], "must be a time such as 30s"),
        (["enqueue", "test", "--at", "0001-01-01T00:00Z"], "must be a date or time"),
        (["queues", "pause"], "which queues? give names, or --all"),
        (["queues", "update", "mail"], "what is to change?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(pgjobs: Program, words: list[str], problem: str) -> None:
    said = pgjobs(*words)
    assert (said.code, said.out) == (2, "")
    assert problem in said.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["list", "--state", "runing"], "'runing' is not a state; there are available, "),
        (["list", "--order", "time"], "order='time' is the time of one state"),
        (["list", "--cursor", "7"], "is no cursor"),
        (["show", "77"], "there is no job 77"),
        (["retry", "77"], "there is no job 77"),
        (["wait", "77"], "there is no job 77"),
        (["release", "77"], "there is no job 77"),
        (["delete", "77", "78", "--yes"], "there is no job 78"),
        (["enqueue", "a kind"], "kind 'a kind': use 2 to 128"),
        (["enqueue", "test", "--queue", "a queue"], "queue 'a queue': use 1 to 64"),
        (["queues", "pause", "nowhere"], "there is no queue 'nowhere'"),
        (["schedules", "show", "never"], "there is no schedule 'never'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_exist_is_one_line(pgjobs: Program, words: list[str], problem: str) -> None:
    said = pgjobs(*words)
    assert said.code == 1
    assert said.err.splitlines()[-1].startswith("pgjobs: error: ")
    assert problem in said.err
    assert all(line.startswith("pgjobs: error: ") for line in said.err.splitlines())


# --- enqueue


def test_enqueue_takes_args_from_a_file_and_options(
    pgjobs: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "args.json"
    file.write_text('{"city": "Zürich"}', encoding="utf-8")
    words = ["--delay", "2h", "--max-attempts", "3", "--metadata", '{"a": 1}', "--unique", "args", "--json"]
    first = pgjobs("enqueue", "test", f"@{file}", *words).json
    assert (first["args"], first["state"], first["max_attempts"]) == ({"city": "Zürich"}, "scheduled", 3)
    assert (first["metadata"], first["duplicate"]) == ({"a": 1}, False)
    monkeypatch.setattr("sys.stdin", io.StringIO(file.read_text(encoding="utf-8")))
    second = pgjobs("enqueue", "test", "-", *words).json
    assert (second["id"], second["duplicate"]) == (first["id"], True)


# --- many


def test_many_jobs_are_changed_step_by_step(pgjobs: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgjobs.cli.applying._STEP", 2)
    client = pgjobs.client
    ids = [client.enqueue(None, {}, kind="test").id for _ in range(5)]
    client.cancel(ids[1])
    said = pgjobs("cancel", "--kind", "test", "--json").json
    others = [ids[0], *ids[2:]]
    assert said == {"action": "cancel", "dry_run": False, "jobs": 4, "ids": others, "skipped": {}, "missing": []}
    assert pgjobs("retry", "--state", "cancelled", "--limit", "3").out == "retried 3 jobs\n"
    assert client.count().by_state[JobState.AVAILABLE] == 3
    assert pgjobs("delete", "--all", "--yes").out == "deleted 5 jobs\n"
    assert pgjobs("delete", "--all", "--yes").out == "deleted 0 jobs\n"


def test_an_interrupt_says_how_far_it_came(pgjobs: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgjobs.cli.applying._STEP", 2)
    for _ in range(5):
        pgjobs.client.enqueue(None, {}, kind="test")
    calls: list[object] = []

    def narrowed(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    real = filters.narrowed
    monkeypatch.setattr("pgjobs.cli.applying.narrowed", narrowed)
    said = pgjobs("cancel", "--all")
    assert said.code == 130
    assert said.err == "pgjobs: interrupted after 4 jobs cancelled; the unfinished step changed nothing\n"
    assert pgjobs.client.count().by_state[JobState.CANCELLED] == 4


def one_job_in_each_state(client: Client) -> dict[JobState, int]:
    """The ids; none of the jobs runs."""
    ids: dict[JobState, int] = {}
    for state in (state for state in JobState if state is not JobState.RUNNING):
        ids[state] = client.enqueue(None, {}, kind="test", queue=str(state), max_attempts=1).id
    with client.pool.connection() as conn:
        conn.execute(
            sql.SQL(
                "UPDATE {} SET state = queue, scheduled_at = now() + interval '1 h', attempt = 1, "
                "finalized_at = CASE WHEN queue IN ('completed', 'cancelled', 'discarded') THEN now() END"
            ).format(sql.Identifier(client.schema, "job"))
        )
    return ids


@pytest.mark.parametrize("which", [["--kind", "test"], ["--all"]], ids=" ".join)
def test_retry_without_a_state_takes_only_what_has_failed(pgjobs: Program, which: list[str]) -> None:
    ids = one_job_in_each_state(pgjobs.client)
    failed = sorted([ids[JobState.RETRYABLE], ids[JobState.DISCARDED]])
    assert pgjobs("retry", *which, "--dry-run", "--json").json["ids"] == failed
    assert pgjobs("retry", *which, "--json").json["ids"] == failed
    states = {job.id: job.state for job in pgjobs.client.list_jobs().jobs}
    assert states == {**{id: state for state, id in ids.items()}, **dict.fromkeys(failed, JobState.AVAILABLE)}
    said = pgjobs("retry", *which)
    assert (said.code, said.out) == (0, "retried 0 jobs\n")
    assert said.err == "looked only at jobs that are retryable or discarded: --state names others\n"


def test_retry_takes_what_is_named_whatever_its_state(pgjobs: Program) -> None:
    ids = one_job_in_each_state(pgjobs.client)
    completed, scheduled = ids[JobState.COMPLETED], ids[JobState.SCHEDULED]
    assert pgjobs("retry", completed).out == f"retried job {completed}\n"
    assert pgjobs("retry", "--state", "scheduled", "--json").json["ids"] == [scheduled]


def test_a_dry_run_shows_the_jobs_as_they_are(pgjobs: Program) -> None:
    ids = one_job_in_each_state(pgjobs.client)
    said = pgjobs("retry", "--state", "discarded", "--dry-run")
    assert said.lines[1].split()[:2] == [str(ids[JobState.DISCARDED]), "discarded"]
    said = pgjobs("update", ids[JobState.COMPLETED], "--set-priority", "7", "--dry-run")
    assert said.lines[1].split()[:5] == [str(ids[JobState.COMPLETED]), "completed", "test", "completed", "0"]


def test_an_interrupted_question_leaves_the_error_a_line_of_its_own(client: Client) -> None:
    client.enqueue(None, {}, kind="test")
    done = run_on_terminal(
        "delete", "--all", *of(client), rich=False, answer=lambda shown: b"\x03" if "[y/N]" in shown else b""
    )
    assert done.code == 130
    assert done.lines[-1] == "pgjobs: interrupted; the unfinished step changed nothing"
    assert client.count().total == 1


@pytest.mark.parametrize(
    "verb",
    [["cancel"], ["retry", "--state", "available"], ["delete"], ["update", "--set-priority", "3"]],
    ids=" ".join,
)
def test_a_dry_run_shows_a_count_and_a_sample_and_changes_nothing(pgjobs: Program, verb: list[str]) -> None:
    client = pgjobs.client
    for _ in range(12):
        client.enqueue(None, {}, kind="test", priority=7)
    before = client.list_jobs().jobs
    said = pgjobs(*verb, "--kind", "test", "--dry-run")
    assert said.code == 0
    assert len(said.lines) == 1 + 10 + 2
    assert said.lines[-2:] == ["and 2 more jobs", f"would {verb[0]} 12 jobs; nothing was changed"]
    assert client.list_jobs().jobs == before
    one = pgjobs(*verb, before[0].id, "--dry-run", "--json").json
    assert (one["dry_run"], one["ids"]) == (True, [before[0].id])
    assert client.list_jobs().jobs == before


def test_skipped_jobs_are_named_with_the_reason_and_fail(pgjobs: Program) -> None:
    client = pgjobs.client
    done: Any = client.enqueue(None, {}, kind="test")
    with WorkerPool(client, {"test": lambda tx, job: None}):
        client.wait(done)
    waiting = client.enqueue(None, {}, kind="test").id
    said = pgjobs("cancel", done.id, waiting, 9999)
    assert said.code == 1
    assert said.out == f"cancelled job {waiting}\n"
    assert said.err.splitlines() == [
        f"skipped 1 job (completed): {done.id}",
        "pgjobs: error: there is no job 9999",
    ]
    said = pgjobs("cancel", done.id)
    assert (said.code, said.out, said.err) == (1, "", f"skipped 1 job (completed): {done.id}\n")
    said = pgjobs("retry", waiting, "--reset")
    assert said.code == 1
    assert "only a discarded one gets all its attempts again" in said.err


def test_a_running_job_is_told_to_end_and_not_deleted(pgjobs: Program) -> None:
    client = pgjobs.client
    id = client.enqueue(None, {}, kind="test").id
    with client.lock_job(id=id) as (_, job):
        assert job is not None
        assert pgjobs("retry", id).err == f"skipped 1 job (running): {id}\n"
        assert pgjobs("delete", id, "--yes").err.startswith(f"pgjobs: error: job {id} is running: cancel it")
        said = pgjobs("cancel", id)
        assert said.code == 0
        assert said.out.splitlines()[-1] == "of these, 1 job ran: their workers were told to end them"


# --- what destroys


def test_delete_needs_a_yes_in_a_pipe(pgjobs: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [pgjobs.client.enqueue(None, {}, kind="test").id for _ in range(2)]
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    for words in ([ids[0]], ["--kind", "test"], ["--all"]):
        said = pgjobs("delete", *words)
        assert (said.code, said.out) == (1, "")
        assert said.err.endswith("with args and errors: add --yes to do that\n")
    assert pgjobs.client.count().total == 2


@pytest.mark.parametrize(("typed", "left"), [(b"y\n", 0), (b"n\n", 2), (b"\n", 2), (b"\x04", 2)])
def test_delete_asks_on_a_terminal(client: Client, typed: bytes, left: int) -> None:
    for _ in range(2):
        client.enqueue(None, {}, kind="test")
    done = run_on_terminal(
        "delete", "--all", *of(client), rich=True, answer=lambda shown: typed if "[y/N]" in shown else b""
    )
    assert "this deletes 2 jobs, with args and errors. Go on? [y/N]" in done.out
    assert done.code == (1 if left else 0)
    assert ("pgjobs: error: nothing was changed" if left else "deleted 2 jobs") in done.out
    assert client.count().total == left


# --- progress


@pytest.mark.parametrize("rich", [False, True], ids=["bare", "rich"])
def test_long_work_shows_its_progress_on_a_terminal(client: Client, rich: bool) -> None:
    client.enqueue_many(None, [NewJob({}, kind="test") for _ in range(2500)], returning=False)
    done = run_on_terminal("cancel", "--all", *of(client), rich=rich)
    assert done.code == 0
    assert done.out.splitlines()[-1].endswith("cancelled 2500 jobs")
    assert ("2500/2500" if rich else "2000 of 2500") in done.out


def test_the_progress_of_running_jobs_is_shown(pgjobs: Program) -> None:
    client, ends = pgjobs.client, threading.Event()
    waiting = client.enqueue(None, {}, kind="test", delay=timedelta(hours=1)).id

    def work(tx: Any, job: Job[Any]) -> None:
        job.set_progress(**job.args)
        assert ends.wait(30)

    assert "PROGRESS" not in pgjobs("list").lines[0]
    said = [{"done": 299, "total": 300, "note": "page 3"}, {"done": 0.5}, {"done": 12345678}, {"done": 0, "total": 0}]
    ids = [client.enqueue(None, args, kind="work").id for args in said]
    with WorkerPool(client, {"work": work}):
        try:
            wait_until(lambda: all((found := client.get(id)) and found.progress for id in ids))
            head, *lines = pgjobs("list", "--reverse").lines
            at = head.index("PROGRESS")
            shown = [line[at : at + len("PROGRESS")].strip() for line in lines]
            assert shown == ["", "99%", "0.5", "12345678", "100%"]
            assert [line[:at].split()[1] for line in lines] == ["scheduled", *["running"] * 4]
            assert "PROGRESS" not in pgjobs("list", "--state", "scheduled").lines[0]
            (line,) = [line for line in pgjobs("show", ids[0]).lines if line.startswith("  progress ")]
            assert re.fullmatch(r"  progress   299 of 300 \(99%\), \d+s ago: page 3", line)
            (line,) = [line for line in pgjobs("show", ids[1]).lines if line.startswith("  progress ")]
            assert re.fullmatch(r"  progress   0\.5, \d+s ago", line)
            for words in (["show", waiting, *ids], ["list", "--reverse"]):
                of_waiting, first, *_ = [json.loads(line)["progress"] for line in pgjobs(*words, "--json").lines]
                assert of_waiting is None
                assert datetime.fromisoformat(first.pop("updated_at")).utcoffset() == timedelta(0)
                assert first == {"done": 299, "total": 300, "note": "page 3", "fraction": 299 / 300}
        finally:
            ends.set()
        assert pgjobs("wait", *ids).code == 0
    assert "progress" not in pgjobs("show", ids[0]).out


# --- an app


APP = """
from dataclasses import dataclass
from pgjobs import Client, WorkerPool, WorkMap, job_options


@job_options(queue="mail", max_attempts=3)
@dataclass
class Welcome:
    email: str
    rows: int = 0


work_map = WorkMap({{Welcome: lambda tx, job: None}})
client = Client({dsn!r}, schema={schema!r}, work_map=work_map)
enqueuing = Client({dsn!r}, schema={schema!r})


def pool():
    return WorkerPool(enqueuing, work_map)


def broken():
    raise RuntimeError("no such setting")


def leaving():
    raise SystemExit("no such setting")
"""


@pytest.fixture
def shop(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of an application, in the current directory."""
    name = f"shop_{client.schema}"
    (tmp_path / f"{name}.py").write_text(APP.format(dsn=str(client.pool.conninfo), schema=client.schema))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # undone after the test, unlike what `--app` does
    return name


@pytest.mark.parametrize("object", ["client", "pool"])
def test_an_app_gives_the_database_and_the_args_classes(pgjobs: Program, shop: str, object: str) -> None:
    app = f"{shop}:{object}"
    job = pgjobs("enqueue", "welcome", '{"email": "ada@example.com"}', "--json", app=app).json
    assert (job["args"], job["queue"], job["max_attempts"]) == ({"email": "ada@example.com", "rows": 0}, "mail", 3)
    for args, problem in (
        ("{}", "$.email: missing"),
        ('{"email": 7}', "$.email"),
        ('{"email": "a", "row": 7}', "Welcome has no field 'row'"),
    ):
        said = pgjobs("enqueue", "welcome", args, app=app)
        assert said.code == 1
        assert problem in said.err
    said = pgjobs("enqueue", "welcom", "{}", app=app)
    assert (said.code, said.err) == (
        1,
        "pgjobs: error: the app has no handler for kind 'welcom'; did you mean 'welcome'?\n",
    )
    assert pgjobs.client.count().total == 1


def test_the_app_of_the_environment_gives_way_to_a_dsn(
    pgjobs: Program, shop: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    id = pgjobs.client.enqueue(None, {}, kind="test").id
    monkeypatch.setenv("PGJOBS_APP", f"{shop}:client")
    assert cli.main(["show", str(id)]) == 0
    assert cli.main(["roles", "--sql"]) == 0
    assert f'GRANT USAGE ON SCHEMA "{pgjobs.client.schema}"' in capsys.readouterr().out
    monkeypatch.setenv("PGJOBS_APP", "nosuch:client")
    assert pgjobs("show", id).code == 0


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("{0}", "'{0}' does not say where the Client or WorkerPool is: give module:object, where "),
        ("{0}:nothing", "module {0} ({1}/{0}.py) has no 'nothing': is client or enqueuing meant?"),
        ("{0}:work_map", "{0}:work_map is {{'welcome': "),
        ("{0}:broken", "{0}:broken raised RuntimeError: no such setting; raised in {1}/{0}.py, line "),
        ("{0}:leaving", "{0}:leaving raised SystemExit: no such setting; raised in {1}/{0}.py, line "),
        ("no_{0}:client", "there is no module 'no_{0}' in {1}, nor elsewhere on sys.path"),
    ],
)
def test_an_app_that_cannot_be_used_is_one_line(
    pgjobs: Program, shop: str, tmp_path: Path, name: str, problem: str
) -> None:
    said = pgjobs("list", app=name.format(shop))
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith(f"pgjobs: error: {problem.format(shop, tmp_path)}")
    assert said.err.count("\n") == 1


def test_an_error_says_that_the_app_is_that_of_the_environment(
    pgjobs: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PGJOBS_APP", "nosuch:client")
    assert cli.main(["list"]) == 1
    assert capsys.readouterr().err.endswith(", nor elsewhere on sys.path; the app is that of PGJOBS_APP\n")
    assert cli.main(["list", "--app", "nosuch:client"]) == 1
    assert capsys.readouterr().err.endswith(", nor elsewhere on sys.path\n")


def test_an_app_has_a_database_and_a_schema_of_its_own(pgjobs: Program, shop: str) -> None:
    said = pgjobs("list", "--dsn", "dbname=x", app=f"{shop}:client")
    assert (said.code, said.err) == (1, "pgjobs: error: --app and --dsn name two databases: give one of them\n")
    said = pgjobs("list", "--schema", "x", app=f"{shop}:client")
    assert said.code == 1
    assert "the app decides the schema" in said.err


def test_the_pool_of_an_app_that_is_not_open_yet_is_opened(
    pgjobs: Program, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"unopened_{client.schema}"
    (tmp_path / f"{name}.py").write_text(
        "from pgjobs import Client\nfrom psycopg_pool import ConnectionPool\n"
        f"pool = ConnectionPool({str(client.pool.conninfo)!r}, open=False)\n"
        f"client = Client(pool, schema={client.schema!r})\n"
    )
    monkeypatch.chdir(tmp_path)
    said = pgjobs("list", app=f"{name}:client")
    assert (said.code, said.err) == (0, "no jobs\n")


# --- secret fields

LOGINS = """
from dataclasses import dataclass, field
from pgjobs import Client, WorkerPool

@dataclass
class Login:
    user: str
    password: str = field(metadata={{"secret": True}})

client = Client({dsn!r}, schema={schema!r})
pool = WorkerPool(client, {{Login: lambda tx, job: None}})
"""
ADA = '{"user": "ada", "password": "hunter2"}'


@pytest.fixture
def logins(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a worker pool whose jobs have a secret."""
    name = f"logins_{client.schema}"
    (tmp_path / f"{name}.py").write_text(LOGINS.format(dsn=str(client.pool.conninfo), schema=client.schema))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return f"{name}:pool"


@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["text", "json"])
def test_secret_fields_are_shown_only_to_those_who_ask(pgjobs: Program, logins: str, as_json: tuple[str, ...]) -> None:
    client = pgjobs.client
    id = client.enqueue(None, json.loads(ADA), kind="login").id
    client.schedules.add(Schedule("nightly", "@daily", json.loads(ADA), kind="login"))
    client.cancel(id)
    commands: list[tuple[object, ...]] = [("show", id, *as_json), ("schedules", "show", "nightly", *as_json)]
    if as_json:
        commands += [("wait", id, "--json"), ("enqueue", "login", ADA, "--json")]
    for command in commands:
        hidden, shown, unknown = (
            pgjobs(*command, *more, app=app).out.replace('":"', '": "')
            for more, app in (((), logins), (("--show-secrets",), logins), ((), None))
        )
        assert "hunter2" not in hidden
        assert '"password": "[secret]"' in hidden
        assert "ada" in hidden
        assert '"password": "hunter2"' in shown
        assert '"password": "hunter2"' in unknown, "no app says which fields are secret"


def test_an_error_of_enqueue_does_not_tell_the_secret(pgjobs: Program, logins: str) -> None:
    said = pgjobs("enqueue", "login", '{"user": "ada", "password": ["hunter2"]}', app=logins)
    assert (said.code, said.out) == (1, "")
    assert "$.password: expected str, found list" in said.err
    assert "hunter2" not in said.err
