"""The demo on a few hundred files: it ends with "identical" whoever was killed, and leaves no process behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgjobs import demo
from tests.waiting import wait_until

FILES = 300


def rows(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(query).fetchall()


def pids(output: str) -> list[int]:
    return [int(pid) for pid in re.findall(r"\(pid (\d+)\)", output)]


def there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def figure(output: str, name: str) -> float:
    found = re.search(rf"^{name} +([\d.,]+)", output, re.MULTILINE)
    assert found, output
    return float(found[1].replace(",", ""))


def test_it_kills_a_worker_half_way_and_the_index_is_identical(
    fresh_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.run(dsn=fresh_database, limit=FILES) == 0
    output = capsys.readouterr().out
    assert "\nidentical\n" in output
    assert "DIFFERENT" not in output
    assert figure(output, "files") == FILES
    assert figure(output, "jobs rescued") >= 1
    assert figure(output, "kill to rescue") < 15
    assert len(pids(output)) == 2
    assert not any(there(pid) for pid in pids(output))
    # what it says is what the tables say
    assert rows(fresh_database, "SELECT state, count(*) FROM pgjobs_demo.job GROUP BY state") == [("completed", FILES)]
    files = "SELECT count(*), count(DISTINCT path), count(DISTINCT job_id) FROM stdlib_index.file"
    assert rows(fresh_database, files) == [(FILES, FILES, FILES)]
    rescued = "SELECT count(*) FROM pgjobs_demo.job WHERE attempted_by = '{demo-1,demo-2}'"
    assert rows(fresh_database, rescued) == [(figure(output, "jobs rescued"),)]
    # the lines it prints can be pasted
    printed = re.findall(r"^SELECT .*;$", output, re.MULTILINE)
    assert len(printed) == 5
    assert all(rows(fresh_database, line) for line in printed)


def test_it_leaves_a_schema_alone_that_it_did_not_make(fresh_database: str, capsys: pytest.CaptureFixture[str]) -> None:
    with psycopg.connect(fresh_database) as conn:
        conn.execute("CREATE SCHEMA stdlib_index; CREATE TABLE stdlib_index.precious AS SELECT 42 AS answer")
    assert demo.run(dsn=fresh_database, limit=FILES) == 1
    assert "there is a schema stdlib_index that the demo did not make" in capsys.readouterr().err
    assert rows(fresh_database, "SELECT answer FROM stdlib_index.precious") == [(42,)]
    assert rows(fresh_database, "SELECT count(*) FROM pg_namespace WHERE nspname = 'pgjobs_demo'") == [(0,)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_its_workers_end_with_it(fresh_database: str, number: signal.Signals) -> None:
    script = """if True:
        import signal, sys
        from pgjobs import demo
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job does not have
        sys.exit(demo.run(dsn=sys.argv[1]))
    """
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen([sys.executable, "-u", "-c", script, fresh_database], stdout=log, stderr=log) as process,
    ):

        def said() -> str:
            return Path(log.name).read_text()

        wait_until(lambda: rows(fresh_database, "SELECT FROM pg_class WHERE relname = 'reference'"), timeout=30)
        wait_until(lambda: rows(fresh_database, "SELECT FROM stdlib_index.file LIMIT 1"), timeout=30)
        workers = wait_until(lambda: pids(said()))
        assert isinstance(workers, list)
        process.send_signal(number)
        assert process.wait(timeout=20) == (130 if number == signal.SIGINT else -number)
        wait_until(lambda: not any(there(pid) for pid in workers))
        assert "Traceback" not in said()


def test_no_rescue_is_a_failure() -> None:
    figures = demo._Figures(
        completed=9, unfinished=0, once=9, failed=0, seconds=1.0, rescued=0, rescued_after=None, redone_after=None
    )
    assert [problem[:30] for problem in demo._problems(figures, jobs=9)] == ["FAILED: no job was rescued, so"]


def test_rows_that_differ_are_named() -> None:
    expected: demo.Tables = {"file": Counter({("a.py",): 1, ("b.py",): 1})}
    found: demo.Tables = {"file": Counter({("a.py",): 2})}
    assert demo._differences(found, expected) == [
        "DIFFERENT: 1 rows of file missing, such as ('b.py',)",
        "DIFFERENT: 1 rows of file too many, such as ('a.py',)",
    ]


def test_a_file_that_cannot_be_parsed_has_an_entry_too() -> None:
    assert demo.index(b"one\ntwo three\n") == demo.Index(lines=2, error="SyntaxError")
    assert demo.index(b"\0") == demo.index(b"\0")
    assert demo.index(b"-" * 200_000 + b"1").error in ("RecursionError", "MemoryError")
