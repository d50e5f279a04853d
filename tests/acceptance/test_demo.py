"""The demo with little work: what it prints is true, and it leaves no process and no schema behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgjobs import Client
from pgjobs.demo import app, queries, story
from pgjobs.demo.terminal import Progress, print_table
from pgjobs.demo.work import Kill, Row, one_row
from pgjobs.embedded import EmbeddedPostgres
from tests.waiting import wait_until

pytestmark = pytest.mark.tools

SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname IN ('pgjobs_demo', 'stdlib_index')"
RUNNING = Row("running", 1, "demo-1", 0)
DONE = Row("completed", 2, "demo-1, then demo-2", 7)


def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(query).fetchall()


def pids(output: str) -> list[int]:
    return [int(pid) for pid in re.findall(r"\(process\s+(\d+)\)", output)]


def there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def number(pattern: str, output: str) -> int:
    found = re.search(pattern, output, re.MULTILINE)
    assert found, output
    return int(found[1].replace(",", ""))


def counts(output: str) -> dict[str, int]:
    return {title: number(rf"^ +{title}: ([\d,]+)$", output) for title in queries.COUNTS}


def test_it_kills_a_worker_in_the_middle_of_a_job_and_nothing_is_lost_or_done_twice(
    fresh_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(fresh_database) as conn:  # as a demo leaves it that was itself killed
        conn.execute(queries.MAKE_SCHEMAS)
        conn.execute(app.TABLES)
        app.write_index(conn, __file__)
    assert story.run(dsn=fresh_database, loop_seconds=0.5) == 0
    output = capsys.readouterr().out
    assert set(counts(output).values()) == {0}
    assert "\nNothing was lost, and nothing was done twice.\n" in output
    assert "FAILED" not in output
    assert re.search(r"^ +before the kill +running +1 +demo-1 +0$", output, re.MULTILINE)
    after = re.search(r"^ +([\d.]+) s after the kill +(\w+) +(\d) +demo-1", output, re.MULTILINE)
    assert after
    assert float(after[1]) < 15
    assert re.search(r"^ +at the end +completed +2 +demo-1, then demo-2 +[1-9]\d*$", output, re.MULTILINE)
    assert "\x1b" not in output  # it is no terminal
    assert len(pids(output)) == 2
    assert not any(there(pid) for pid in pids(output))
    assert rows(fresh_database, SCHEMAS) == []


def test_what_it_prints_is_what_the_kept_tables_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert story.run(keep=tmp_path / "kept", loop_seconds=0.5) == 0
    output = capsys.readouterr().out
    with EmbeddedPostgres(data_dir=tmp_path / "kept") as server:
        total = number(r"the same ([\d,]+)\s+files", output)
        assert rows(server.dsn, "SELECT state, count(*) FROM pgjobs_demo.job GROUP BY state") == [("completed", total)]
        files = "SELECT count(*), count(DISTINCT path), count(DISTINCT job_id) FROM stdlib_index.file"
        assert rows(server.dsn, files) == [(total, total, total)]
        killed = number(r"This is what the row of job (\d+) said", output)
        assert rows(server.dsn, "SELECT id FROM pgjobs_demo.job WHERE attempted_by = '{demo-1,demo-2}'") == [(killed,)]
        written = number(r"Queries\s+compare\s+the\s+([\d,]+)\s+rows", output)
        assert rows(server.dsn, queries.ROWS_WRITTEN) == [(written,)]
        of_loop = re.sub(r"stdlib_index\.\w+", r"\g<0>_of_loop", queries.ROWS_WRITTEN)
        assert rows(server.dsn, of_loop) == [(written,)]
        assert number(r"^ +demo-1 +(\d+) +0$", output) + number(r"^ +demo-2 +(\d+) +1$", output) == total
        name, times, in_files = rows(server.dsn, queries.COMMON_NAMES)[0]
        assert re.search(rf"^ +{name} +{times:,} +{in_files:,}$", output, re.MULTILINE)
        assert number(r"^ +plain loop, one process +([\d,]+) ", output) == total


def test_it_leaves_a_schema_alone_that_it_did_not_make(fresh_database: str, capsys: pytest.CaptureFixture[str]) -> None:
    with psycopg.connect(fresh_database) as conn:
        conn.execute("CREATE SCHEMA stdlib_index; CREATE TABLE stdlib_index.precious AS SELECT 42 AS answer")
    assert story.run(dsn=fresh_database) == 1
    assert "there is a schema stdlib_index that the demo did not make" in capsys.readouterr().err
    assert rows(fresh_database, "SELECT answer FROM stdlib_index.precious") == [(42,)]
    assert rows(fresh_database, SCHEMAS) == [("stdlib_index",)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_it_is_interrupted(fresh_database: str, number: signal.Signals) -> None:
    script = """if True:
        import signal, sys
        from pgjobs.demo import story
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job does not have
        sys.exit(story.run(dsn=sys.argv[1]))
    """
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen([sys.executable, "-c", script, fresh_database], stdout=log, stderr=log) as process,
    ):

        def said() -> str:
            return Path(log.name).read_text()

        workers = wait_until(lambda: pids(said()), timeout=60)
        assert isinstance(workers, list)
        assert len(workers) == 2
        wait_until(lambda: rows(fresh_database, "SELECT FROM stdlib_index.file LIMIT 1"), timeout=30)
        process.send_signal(number)
        assert process.wait(timeout=20) == (130 if number == signal.SIGINT else -number)
        wait_until(lambda: not any(there(pid) for pid in workers))
        assert "Traceback" not in said()
    if number == signal.SIGINT:
        assert rows(fresh_database, SCHEMAS) == []


def test_the_counts_find_what_they_look_for(fresh_database: str) -> None:
    with psycopg.connect(fresh_database, autocommit=True) as conn:
        conn.execute(queries.MAKE_SCHEMAS)
        conn.execute(app.TABLES)
        conn.execute(queries.SET_LOOP_ASIDE)
        conn.execute(app.TABLES)
        with Client(fresh_database, schema=app.SCHEMA) as client:
            client.migrate()
            app.enqueue(client, [__file__, story.__file__])
        for id, path in conn.execute(
            "SELECT id, args->>'path' FROM pgjobs_demo.job WHERE args->>'path' = %s", [__file__]
        ):
            app.write_index(conn, path, id)
            app.write_index(conn, path, id)
        conn.execute(
            "UPDATE pgjobs_demo.job SET state = 'discarded', finalized_at = now() WHERE args->>'path' <> %s", [__file__]
        )
        (written,) = one_row(conn, queries.ROWS_WRITTEN)
        assert {title: one_row(conn, query)[0] for title, query in queries.COUNTS.items()} == {
            "jobs that are not completed": 2,
            "finished jobs without an effect": 1,
            "effects without a finished job": 2,
            "done twice": 1,
            "rows that differ from the loop's": written,
        }


def test_it_imports_nothing_of_pgjobs_that_is_not_public() -> None:
    for path in Path(story.__file__).parent.glob("*.py"):
        modules = re.findall(r"^(?:from|import) (pgjobs\S*)", path.read_text(), re.MULTILINE)
        others = {module for module in modules if not module.startswith("pgjobs.demo")}
        assert others <= {"pgjobs", "pgjobs.embedded"}, path


def kill(before: Row, done: Row) -> Kill:
    now = datetime.now(UTC)
    return Kill(7, __file__, now, now, [("before the kill", before), ("at the end", done)])


def test_a_job_that_went_another_way_is_a_failure() -> None:
    assert story.find_problems(kill(RUNNING, DONE), {"done twice": 0}) == []
    assert len(story.find_problems(kill(RUNNING._replace(in_index=1), DONE), {})) == 1
    assert len(story.find_problems(kill(RUNNING, DONE._replace(state="discarded")), {})) == 1
    assert len(story.find_problems(kill(RUNNING, DONE._replace(workers="demo-1")), {})) == 1
    assert story.find_problems(kill(RUNNING, DONE), {"done twice": 3}) == ["FAILED: done twice: 3"]


def test_a_file_that_cannot_be_parsed_has_no_definitions() -> None:
    assert app.find_definitions(b"class A:\n    def b(self): ...\n") == [("A", "class", 1), ("b", "function", 2)]
    assert app.find_definitions(b"one\ntwo three\n") == []
    assert app.find_definitions(b"\0") == []
    assert app.find_definitions(b"-" * 200_000 + b"1") == []


def test_a_table_has_its_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "times"), [("a", 1234), ("long name", 5)])
    assert capsys.readouterr().out == "    name       times\n    a          1,234\n    long name      5\n\n"


def test_on_a_terminal_a_bar_is_drawn_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "65")
    with Progress("work") as progress:
        progress.show(0.5, "half of it")
        progress.show(1.0, "all of it")
    half, whole = f"    work  {'#' * 10}{'.' * 10}  half of it", f"    work  {'#' * 20}  all of it"
    assert capsys.readouterr().out == f"\r\x1b[K{half}\r\x1b[K{whole}\n\n"
