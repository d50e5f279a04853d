"""`--json` of every command that has it: objects on lines of their own, whose names do not change."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from pgjobs import Client, Schedule, WorkerPool, cli
from tests.acceptance.cli_program import of
from tests.acceptance.test_cli import parsers
from tests.waiting import wait_until

LISTED = (
    "id state queue kind priority attempt max_attempts tags scheduled_at created_at attempted_at finalized_at "
    "attempted_by errors last_error progress"
)
JOB = f"{LISTED} leased_until args metadata output"
CHANGED = "action dry_run jobs ids skipped missing"
QUEUE = "name paused_at updated_at keep_completed keep_cancelled keep_discarded"
SCHEDULE = (
    "name kind spec zone catch_up window paused_at next_tick_at last_tick_at run_now_at error in_code version "
    "created_at updated_at"
)
LOAD = "at name paused_at waiting running oldest_waiting done_per_minute failed_per_minute workers"
SPANS = "completed failed discarded cancelled snoozed interrupted run wait"

# The words of a command and its arguments, its exit code, and the names in each of its objects; programs of users
# read them. `?` is the id of a job that waits.
CALLS = [
    ("enqueue", ["letter", '{"to": "ada"}'], 0, f"{JOB} duplicate"),
    ("list", [], 0, LISTED),
    ("show", ["?"], 0, JOB),
    ("wait", ["?cancelled"], 3, JOB),
    ("retry", ["?cancelled"], 0, CHANGED),
    ("retry", ["--all", "--dry-run"], 0, CHANGED),
    ("cancel", ["?"], 0, CHANGED),
    ("delete", ["?", "--yes"], 0, CHANGED),
    ("update", ["?", "--set-priority", "1"], 0, CHANGED),
    ("release", ["?pending"], 0, CHANGED),
    ("queues list", [], 0, QUEUE),
    ("queues pause", ["default"], 0, QUEUE),
    ("queues resume", ["--all"], 0, QUEUE),
    ("queues update", ["default", "--keep-completed", "1d"], 0, QUEUE),
    ("schedules list", [], 0, SCHEDULE),
    ("schedules show", ["nightly"], 0, f"{SCHEDULE} args options"),
    ("schedules run", ["nightly"], 0, SCHEDULE),
    ("schedules pause", ["nightly"], 0, SCHEDULE),
    ("schedules resume", ["nightly"], 0, SCHEDULE),
    ("schedules simulate", ["@daily", "--count", "2"], 0, "at local"),
    ("workers", [], 0, "id host pid queues threads kinds version code_version started_at seen_at stuck"),
    ("stats", [], 0, LOAD),
    ("stats", ["--states"], 0, f"{LOAD} scheduled pending retryable completed cancelled discarded"),
    ("stats", ["--since", "1h"], 0, f"from queue kind {SPANS}"),
    ("doctor", ["--all"], None, "check severity what why advice"),
    ("migrate", ["--check"], 0, "missing"),
    ("migrate", ["down", "--dry-run"], 0, "version name direction dry_run"),
    ("version", [], 0, "pgjobs python psycopg libpq"),
]


def test_every_command_that_prints_json_is_called_here() -> None:
    found = {words for words, parser in parsers().items() if "--json" in parser._option_string_actions}
    assert found == {words for words, *_ in CALLS}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: " ".join([call[0], *call[1]]))
def test_its_objects_have_these_names(
    client: Client, capsys: pytest.CaptureFixture[str], call: tuple[str, list[str], int | None, str]
) -> None:
    words, arguments, code, names = call
    ended, out = called(client, capsys, words, arguments)
    assert code is None or ended == code
    assert out.isascii()
    objects = [json.loads(line) for line in out.splitlines()]
    assert objects
    for each in objects:
        assert sorted(each) == sorted(names.split())


def called(client: Client, capsys: pytest.CaptureFixture[str], words: str, arguments: list[str]) -> tuple[int, str]:
    """The exit code of the command and what it prints, beside a worker pool, with a job of each sort there."""
    ids = {
        "?": client.enqueue(None, {}, kind="letter", queue="elsewhere").id,
        "?pending": client.enqueue(None, {}, kind="letter", pending=True).id,
        "?cancelled": client.cancel(client.enqueue(None, {}, kind="letter", queue="elsewhere").id).id,
    }
    client.schedules.add(Schedule("nightly", "30 2 * * *", {}, kind="letter"))
    done: Any = client.enqueue(None, {}, kind="letter")
    where = [] if words in ("version", "schedules simulate") else of(client)
    with WorkerPool(client, {"letter": lambda tx, job: None}):
        client.wait(done, timeout=timedelta(seconds=30))
        if "--since" in arguments:
            wait_until(lambda: client.stats(since=timedelta(hours=1)), timeout=30)  # they are written every ten seconds
        given = [str(ids.get(each, each)) for each in arguments]
        ended = cli.main([*words.split(), *given, "--json", *where])
    return ended, capsys.readouterr().out
