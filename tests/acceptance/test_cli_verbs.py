"""Each verb of the command line as a process of its own: on a bare install in a pipe, and with rich on a terminal."""

from __future__ import annotations

import json
import re
import signal
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgjobs import Client, Schedule, WorkerPool, guide
from pgjobs.observe.figures import number_of
from pgjobs.version import __version__
from tests.acceptance.cli_program import PIPE, Done, of, run, run_on_terminal, start

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Program:
    """The program, in one of the ways in which it is run."""

    def __init__(self, client: Client, *, on_terminal: bool) -> None:
        self.client = client
        self.on_terminal = on_terminal

    def __call__(self, *arguments: object) -> Done:
        """Run a verb on the tables of the client; what it prints comes without colours."""
        words = [*arguments, *of(self.client)]
        if not self.on_terminal:
            return run(*words)
        done = run_on_terminal(*words, rich=True)
        return done._replace(out=ESCAPES.sub("", done.out))


@pytest.fixture(params=["bare in a pipe", "rich on a terminal"])
def pgjobs(request: pytest.FixtureRequest, client: Client) -> Program:
    return Program(client, on_terminal=request.param == "rich on a terminal")


def cells(line: str) -> list[str]:
    return re.split(r"  +", line.strip())


def test_enqueue_list_show_and_wait(pgjobs: Program) -> None:
    done = pgjobs("enqueue", "mail.send", '{"to": "ada"}', "--queue", "mail", "--tag", "first", "--priority", "-3")
    assert (done.code, done.err) == (0, "")
    (job,) = pgjobs.client.list_jobs().jobs
    assert done.out == f"job {job.id} enqueued: mail.send in mail, available\n"
    assert (job.kind, job.args, job.queue, job.tags, job.priority) == (
        "mail.send",
        {"to": "ada"},
        "mail",
        ("first",),
        -3,
    )

    head, line = pgjobs("list", "--kind", "mail.send").lines
    assert cells(head) == ["ID", "STATE", "KIND", "QUEUE", "PRIORITY", "ATTEMPT", "WHEN", "TAGS", "LAST ERROR"]
    found = cells(line)
    assert found[:6] == [str(job.id), "available", "mail.send", "mail", "-3", "0/25"]
    assert re.fullmatch(r"\d+s ago", found[6])
    assert found[7:] == ["first"]
    assert "ada" not in line, "args are not listed"

    shown = pgjobs("show", job.id)
    assert shown.lines[0] == f"job {job.id}"
    assert "  args       {" in shown.lines
    assert '"to": "ada"' in shown.out
    assert "ada" not in pgjobs("show", job.id, "--no-args").out

    waited = pgjobs("wait", job.id, "--timeout", "1ms")
    assert waited.code == 4
    assert f"pgjobs: error: job {job.id} is not over after 1.0 ms: it is available" in waited.out + waited.err
    pgjobs.client.cancel(job.id)
    waited = pgjobs("wait", job.id)
    assert (waited.code, waited.out) == (3, f"job {job.id} is cancelled\n")


def test_wait_is_0_for_a_completed_job(pgjobs: Program) -> None:
    job: Any = pgjobs.client.enqueue(None, {}, kind="test")
    with WorkerPool(pgjobs.client, {"test": lambda tx, job: None}):
        assert pgjobs("wait", job.id, "--timeout", "30s") == Done(0, f"job {job.id} is completed\n")


def test_cancel_retry_update_release_and_delete(pgjobs: Program) -> None:
    client = pgjobs.client
    id = client.enqueue(None, {}, kind="test", pending=True).id

    assert pgjobs("release", id) == Done(0, f"released job {id}\n")
    assert client.get(id).state == "available"  # type: ignore[union-attr]
    assert pgjobs("cancel", id, "--reason", "no longer wanted") == Done(0, f"cancelled job {id}\n")
    cancelled: Any = client.get(id)
    assert (cancelled.state, cancelled.metadata["cancel_reason"]) == ("cancelled", "no longer wanted")
    assert pgjobs("retry", id) == Done(0, f"retried job {id}\n")
    assert client.get(id).state == "available"  # type: ignore[union-attr]
    done = pgjobs("update", id, "--set-priority", "-7", "--set-metadata", '{"a": 1}', "--set-time", "2030-01-01T00:00Z")
    assert done == Done(0, f"updated job {id}\n")
    updated: Any = client.get(id)
    assert (updated.priority, updated.scheduled_at) == (-7, datetime(2030, 1, 1, tzinfo=UTC))
    assert updated.metadata["a"] == 1
    assert pgjobs("delete", id, "--yes") == Done(0, f"deleted job {id}\n")
    assert client.get(id) is None


def test_queues(pgjobs: Program) -> None:
    pgjobs.client.enqueue(None, {}, kind="test", queue="mail")
    updated = pgjobs("queues", "update", "mail", "--keep-completed", "forever", "--keep-discarded", "30d")
    assert updated.code == 0
    assert cells(updated.lines[1])[:5] == ["mail", "active", "forever", "pool", "30d"]
    assert cells(pgjobs("queues", "pause", "--all", "--dry-run").lines[1])[:2] == ["mail", "active"]
    assert cells(pgjobs("queues", "pause", "mail").lines[1])[:2] == ["mail", "paused"]
    assert cells(pgjobs("queues", "list").lines[1])[:2] == ["mail", "paused"]
    assert cells(pgjobs("queues", "resume", "--all").lines[1])[:2] == ["mail", "active"]
    (queue,) = pgjobs.client.queues.list()
    assert (queue.paused_at, queue.keep_completed, queue.keep_discarded) == (None, timedelta.max, timedelta(days=30))


def test_schedules(pgjobs: Program) -> None:
    schedules = pgjobs.client.schedules
    schedules.add(Schedule("nightly", "30 2 * * *", {"rows": 3}, kind="report", zone="Europe/Berlin"))
    _, line = pgjobs("schedules", "list").lines
    assert cells(line)[:5] == ["nightly", "active", "30 2 * * *", "Europe/Berlin", "report"]
    shown = pgjobs("schedules", "show", "nightly")
    assert '{"rows": 3}' in shown.out
    assert '  options    {"queue": "default", ' in shown.out
    assert "delay" not in shown.out
    assert pgjobs("schedules", "pause", "nightly") == Done(0, "paused schedule nightly\n")
    assert schedules.list()[0].paused_at is not None
    assert pgjobs("schedules", "resume", "nightly") == Done(0, "resumed schedule nightly\n")
    assert schedules.list()[0].paused_at is None
    done = pgjobs("schedules", "run", "nightly", "weekly")
    assert done.code == 1
    assert "schedule nightly will run once" in done.out
    assert "pgjobs: error: there is no schedule 'weekly'" in done.out + done.err
    assert schedules.list()[0].run_now_at is not None


def test_workers_and_stats(pgjobs: Program) -> None:
    client = pgjobs.client
    client.enqueue(None, {}, kind="test", queue="idle")
    with WorkerPool(client, {"test": lambda tx, job: None}, queues={"mail": 3}):
        _, worker = pgjobs("workers").lines
        head, idle, mail, total = pgjobs("stats").lines
        assert cells(pgjobs("stats", "mail", "--states").lines[1])[:2] == ["mail", "active"]
    assert client.id in worker
    assert "mail=3" in worker
    assert cells(head) == ["QUEUE", "STATE", "WAITING", "OLDEST", "RUNNING", "DONE/MIN", "DISCARDED/MIN", "WORKERS"]
    assert cells(idle)[:3] == ["idle", "active", "1"]
    assert cells(mail) == ["mail", "active", "0", "0", "0", "0", "1"]
    assert cells(total)[:2] == ["(all)", "1"]


def test_stats_of_the_past(pgjobs: Program) -> None:
    client = pgjobs.client
    with client.pool.connection() as tx:
        table = f'"{client.schema}".figure'
        tx.execute(
            f"INSERT INTO {table} (minute, queue, kind, completed, failed, run_seconds, run_counts) SELECT "
            "date_bin('1 hour', now(), '2000-01-01Z') - interval '20 min' + n * interval '1 min', 'mail', "
            f"'send' || n % 2, 5, 1, 3, {number_of([1, 2, 3])} FROM generate_series(0, 9) AS n".encode()
        )
    done = pgjobs("stats", "--since", "2h")
    head, first, second = done.lines
    assert cells(head) == [
        *("QUEUE", "KIND", "DONE", "FAILED", "DISCARDED"),
        *("RUN", "RUN P95", "RUN P99", "WAIT", "WAIT P95", "WAIT P99"),
    ]
    assert cells(first) == ["mail", "send0", "25", "5", "0", "500ms", "1.34ms", "1.34ms"]
    assert cells(second)[:4] == ["mail", "send1", "25", "5"]
    steps = pgjobs("stats", "mail", "--since", "2h", "--step", "5m", "--by", "queue").lines
    assert [cells(line)[1:4] for line in steps[1:]] == [["mail", "25", "5"]] * 2
    assert cells(pgjobs("stats", "--by", "none", "--kind", "send1", "--since", "7d").lines[1])[:2] == ["25", "5"]
    (line,) = pgjobs("stats", "--since", "2h", "--by", "none", "--json").lines
    found = json.loads(line)
    assert (found["queue"], found["kind"], found["completed"], found["failed"]) == (None, None, 50, 10)
    assert found["run"]["mean"] == 0.5
    assert found["wait"] == {"mean": None, "p50": None, "p95": None, "p99": None}
    nothing = pgjobs("stats", "other", "--since", "2h")
    assert "no attempt has ended in this time" in nothing.out + nothing.err
    for wrong in (["--watch", "--since", "1h"], ["--step", "30s"], ["mail", "other", "--by", "kind"]):
        assert pgjobs("stats", *wrong).code != 0


def test_migrate(pgjobs: Program) -> None:
    assert pgjobs("migrate", "--check") == Done(0, "ok\n")
    assert pgjobs("migrate") == Done(0, "nothing to do\n")


@pytest.mark.parametrize("on_terminal", [False, True], ids=["bare in a pipe", "rich on a terminal"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["version"], f"pgjobs {__version__} (Python "),
        (["guide"], guide.TOPICS[0]),
        (["roles", "--sql"], "BEGIN;"),
        (["migrate", "--sql"], "BEGIN;"),
        (["schedules", "simulate", "@daily", "--from", "2026-03-07", "--count", "1"], "Sun 2026-03-08 00:00:00+00:00"),
        (["demo", "--help"], "usage: pgjobs demo"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_what_needs_no_database(words: list[str], said: str, on_terminal: bool) -> None:
    done = run_on_terminal(*words, rich=True) if on_terminal else run(*words)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(said)


# --- tables


@pytest.fixture
def failed(client: Client) -> int:
    """The id of a job whose last error is longer than a line."""
    id = client.enqueue(None, {}, kind="report.build", queue="reports").id
    with client.pool.connection() as tx:
        tx.execute(
            f"UPDATE {client.schema}.job SET state = 'discarded', finalized_at = now(), attempt = 1,".encode()
            + b"""errors = '[{"attempt": 1, "at": "2026-01-01T00:00:00Z", "error": "%s", "trace": null}]'::jsonb"""
            % (b"x" * 300)
        )
    return id


def test_nothing_is_cut_in_a_pipe_with_rich_or_without(client: Client, failed: int) -> None:
    bare, rich = run("list", *of(client)), run("list", *of(client), rich=True, env={"COLUMNS": "60"})
    assert "x" * 300 in bare.out
    assert "\x1b" not in rich.out
    times = re.compile(r"\d+s ago ?")
    assert times.sub("", rich.out) == times.sub("", bare.out)


def test_a_table_fits_the_terminal_with_rich_or_without(client: Client, failed: int) -> None:
    bare = run_on_terminal("list", *of(client), rich=False, width=90)
    rich = run_on_terminal("list", *of(client), rich=True, width=90)
    assert "\x1b" not in bare.out
    assert "\x1b[31mdiscarded\x1b[0m" in rich.out
    for shown in (bare.out, ESCAPES.sub("", rich.out)):
        head, line = shown.splitlines()
        assert len(head) <= 90
        assert len(line) == 90
        assert line.endswith("x…")


def test_no_color_is_obeyed(client: Client, failed: int) -> None:
    shown = run_on_terminal("list", *of(client), rich=True, env={"NO_COLOR": "1"})
    assert "discarded" in shown.out
    assert "\x1b[31m" not in shown.out


HOSTILE = "red \x1b[31m\x9b2J\x07 \r\nforged \u202eline\u200f \u2028 [bold]b[/bold] :smile:"


@pytest.mark.parametrize("way", ["pipe", "bare", "rich"])
def test_hostile_text_is_shown_harmlessly(client: Client, way: str) -> None:
    with client.pool.connection() as tx:
        row = tx.execute(
            f"INSERT INTO {client.schema}.job (state, queue, kind, args, tags, errors, finalized_at)".encode()
            + b"VALUES ('discarded', %s, %s, %s, %s, %s, now()) RETURNING id",
            [HOSTILE, HOSTILE, json.dumps({"a": HOSTILE}), [HOSTILE], _errors(HOSTILE)],
        ).fetchone()
    assert row is not None
    (id,) = row
    for words in (["list"], ["show", id], ["stats", "--states"]):
        arguments = [*words, *of(client)]
        done = run(*arguments) if way == "pipe" else run_on_terminal(*arguments, rich=way == "rich", width=400)
        assert done.code == 0
        shown = re.sub(r"\x1b\[[0-9;]*m", "", done.out) if way == "rich" else done.out
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200f\u2028\u202e]", shown)
        assert "[bold]b[/bold] :smile:" in shown
        assert not re.search("^forged", shown, re.MULTILINE) or words[0] == "show"  # where an error has its lines
    printed = run("show", id, "--json", *of(client)).out
    assert printed.isascii()
    assert json.loads(printed)["args"] == {"a": HOSTILE}


def _errors(text: str) -> str:
    return json.dumps([{"attempt": 1, "at": "2026-01-01T00:00:00Z", "error": text, "trace": text}])


# --- live


def test_watch_prints_new_figures_until_its_reader_has_had_enough(client: Client) -> None:
    client.enqueue(None, {}, kind="test")
    running = start("stats", "--watch", "100ms", "--json", *of(client), stdout=PIPE, stderr=PIPE, text=True)
    lines = [json.loads(running.stdout.readline()) for _ in range(2)]
    assert [line["waiting"] for line in lines] == [1, 1]
    assert lines[0]["at"] < lines[1]["at"]
    running.stdout.close()
    assert (running.stderr.read(), running.wait(timeout=60)) == ("", 141)
    running.stderr.close()


@pytest.mark.parametrize("rich", [False, True], ids=["bare", "rich"])
def test_watch_on_a_terminal_shows_new_figures_until_ctrl_c(client: Client, rich: bool) -> None:
    client.enqueue(None, {}, kind="test", queue="mail")

    def seen(shown: str) -> bytes:
        times = set(re.findall(r"(\d\d:\d\d:\d\d), Ctrl-C to end", shown))
        return b"\x03" if len(times) > 1 and "mail" in shown else b""  # Ctrl-C

    done = run_on_terminal("stats", "--watch", "200ms", *of(client), rich=rich, answer=seen)
    assert done.code == 130
    assert "Traceback" not in done.out


def test_watch_ends_when_its_terminal_is_gone(client: Client) -> None:
    done = run_on_terminal("stats", "--watch", "100ms", *of(client), rich=True, answer=lambda shown: None)
    assert done.code in (-signal.SIGHUP, 1, 141)
