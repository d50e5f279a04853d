"""The benchmarks still run, on a handful of jobs. What they measure is nobody's to assert."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest

from benchmarks import floors
from benchmarks.calls import count_calls
from benchmarks.ground import WrongResult, table
from benchmarks.proxy import further_away
from benchmarks.quiet import tree_time
from benchmarks.ratios import Line, interval, report, verdict
from benchmarks.slow_disk import commit_time, means, slow_disk

pytestmark = pytest.mark.tools

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str, database: str | None = None, timeout: float = 100) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | ({} if database is None else {"DATABASE_URL": database}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_benchmark_prints_its_tables_and_cleans_up(fresh_database: str, tmp_path: Path) -> None:
    sizes = ["--jobs", "24", "--rounds", "1", "--threads", "1", "3", "--results", str(tmp_path)]
    parts = ["--parts", "drain", "insert", "batch", "waits", "enqueue", "bulk", "process"]
    said = run("benchmarks.bench", *sizes, *parts, database=fresh_database, timeout=200)
    assert re.match(r"Postgres \d+.*, fsync o", said)
    _, rates, taken, *tables = said.split("\n\n")
    figure, ratio = r" +[\d,.e+]+", r" +\d+\.\d\d"
    shown = [re.fullmatch(rf"(.+?) +jobs/s{figure}({ratio})?{ratio}", row) for row in rates.splitlines()[1:]]
    expected = [name for name, _ in ROWS if re.match("drain|batches|enqueue", name) and not re.search(ALIEN, name)]
    assert [row and row[1] for row in shown] == [*expected, "enqueue one, user's pool, 4 threads"]
    assert [row and row[2] is None for row in shown] == [name.startswith("batches") for name in expected] + [False]
    assert re.fullmatch(r"one job takes +client us +server us +Python calls +C calls", taken.splitlines()[0])
    assert all(re.search(rf"{figure * 4}$", row) for row in taken.splitlines()[1:] if not row.startswith("enqueue"))
    answers = json.loads((tmp_path / "bench.json").read_text())["questions"]
    assert list(answers) == ["pickup", "scheduled", "enqueue_many", "memory"]
    heads = [table.splitlines()[0].rpartition(" (")[0] for table in tables]
    assert heads[-len(answers) :] == [answer["title"] for answer in answers.values()]
    assert answers["pickup"]["arms"][0]["of"] == 24
    assert (tmp_path / "bench.svg").exists()
    with psycopg.connect(fresh_database) as conn:
        assert conn.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^pgjobs'").fetchall() == []


def test_the_cost_of_telemetry_is_a_table_of_its_own(fresh_database: str, tmp_path: Path) -> None:
    sizes = ["--jobs", "24", "--rounds", "1", "--results", str(tmp_path)]
    said = run("benchmarks.bench", *sizes, "--parts", "telemetry", database=fresh_database)
    answers = json.loads((tmp_path / "bench.json").read_text())["questions"]
    assert list(answers) == ["telemetry_1", "telemetry_enqueue_1", "telemetry_4", "telemetry_enqueue_4"]
    assert [len(answer["arms"]) for answer in answers.values()] == [4, 3, 4, 3]
    assert len(re.findall(r" \d+\.\d\d$", said, re.MULTILINE)) == 10, "each but the first has a ratio"


def test_the_fixed_floor_never_changes() -> None:
    digests = {path.name: sha256(path.read_bytes()).hexdigest()[:16] for path in floors.FIXED.iterdir()}
    assert digests == {
        "drain.sql": "23cb3302df13f745",
        "enqueue.sql": "e8312133a46754ab",
        "insert.sql": "18f5b73a5bb2a777",
        "table.sql": "38b93ef552fe405a",
    }, "figures over another floor cannot be compared with those of before: take the change back"


def test_a_fixed_floor_that_left_jobs_undone_gives_no_figure(
    fresh_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        psycopg.connect(fresh_database, autocommit=True) as conn,
        floors.fixed_floor(conn, fresh_database, "pgjobs_fixed") as floor,
    ):
        assert floor(floors.FIXED_INSERT, 2, 20) > 0
        ran = floors._run
        monkeypatch.setattr(
            floors, "_run", lambda dsn, script, clients, jobs: ran(dsn, script, clients, jobs - clients)
        )
        with pytest.raises(WrongResult, match=r"should have 20 rows, but .* says \[\(18,\)\]"):
            floor(floors.FIXED_DRAIN, 2, 20)


def test_calls_are_counted_of_pgjobs_and_of_what_a_handler_calls(fresh_database: str) -> None:
    def two() -> None:
        sorted([])

    def write(tx: Any, job: int) -> None:
        two()
        two()

    with table(fresh_database, "pgjobs", 400) as (client, rows):
        rows.load()
        python, c = count_calls(client, 1, 400, write=None)
        rows.load()
        with_three, c_with_two = count_calls(client, 1, 400, write=write)
    assert python > 5
    assert with_three - python == pytest.approx(3, abs=0.5)
    assert c_with_two - c == pytest.approx(2, abs=0.5)


ALIEN = "user's pool|SQLAlchemy|Django"
IN_GIT = shutil.which("git") and (ROOT / ".git").exists()
ROWS = [
    ("drain, 1 thread", "jobs/s"),
    ("drain, 3 threads", "jobs/s"),
    ("drain, handler inserts, 4 threads", "jobs/s"),
    ("batches of 100, 4 threads", "jobs/s"),
    ("batches of 100, handler inserts, 4 threads", "jobs/s"),
    ("drain, user's pool, 4 threads", "jobs/s"),
    ("drain, user's pool, handler inserts, 4 threads", "jobs/s"),
    ("drain, SQLAlchemy, 4 threads", "jobs/s"),
    ("drain, SQLAlchemy, handler inserts, 4 threads", "jobs/s"),
    ("drain, Django, 4 threads", "jobs/s"),
    ("drain, Django, handler inserts, 4 threads", "jobs/s"),
    ("batches of 100, user's pool, 4 threads", "jobs/s"),
    ("batches of 100, user's pool, handler inserts, 4 threads", "jobs/s"),
    ("pickup p50", "ms"),
    ("pickup p99", "ms"),
    ("enqueue one, 1 thread", "jobs/s"),
    ("enqueue one, 4 threads", "jobs/s"),
    ("enqueue one, user's pool, 4 threads", "jobs/s"),
    ("bulk with ids", "jobs/s"),
    ("bulk without ids", "jobs/s"),
]


@pytest.mark.timeout(600)  # it starts some seventy processes
@pytest.mark.skipif(not IN_GIT, reason="a revision is taken from a git checkout")
def test_every_row_is_measured_over_a_baseline(fresh_database: str, tmp_path: Path) -> None:
    sizes = ["--jobs", "24", "--rounds", "1", "--threads", "1", "3", "--results", str(tmp_path)]
    said = run("benchmarks.bench", "--baseline", "HEAD", *sizes, database=fresh_database, timeout=580)
    _, table, taken, notes, end = said.split("\n\n")
    assert [measured(row) for row in table.splitlines()[1:]] == ROWS
    pair = r" +[\d,.]+ of [\d,.]+ +\d+\.\d\d"
    assert re.fullmatch(f"drain, 1 thread{pair * 4}", taken.splitlines()[1])
    assert "the smallest to the largest of 1 ratios" in notes
    assert re.match(r"(Slower than|Not slower than) HEAD[,:]", end.splitlines()[-1])
    rows = json.loads((tmp_path / "baseline.json").read_text())["rows"]
    found = {row["name"]: sorted(row["floors"]) for row in rows if row["floors"]}
    expected = {name: ["chain", "fixed"] for name, _ in ROWS if re.match("drain|enqueue", name)}
    assert found == expected | {name: ["fixed"] for name, _ in ROWS if name.startswith("batches")}
    with psycopg.connect(fresh_database) as conn:
        assert conn.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^pgjobs'").fetchall() == []


def measured(row: str) -> tuple[str, str]:
    """The name and the unit of a row that has both figures, their ratio and its interval."""
    figure, ratio = r" +[\d,.e+]+", r"\d+\.\d\d"
    found = re.match(rf"(.*\S) +(jobs/s|ms){figure}{figure} +{ratio} +{ratio} to {ratio}", row)
    assert found, row
    return found[1], found[2]


def test_a_wheel_as_the_baseline(fresh_database: str, tmp_path: Path) -> None:
    wheel = tmp_path / "pgjobs_psycopg-0.0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for part, target in (("pgjobs", "pgjobs"), ("sql", "pgjobs/sql")):
            for path in (ROOT / part).rglob("*"):
                if path.suffix != ".pyc":
                    archive.write(path, Path(target, path.relative_to(ROOT / part)))
    sizes = ["--jobs", "24", "--rounds", "1", "--threads", "1", "--parts", "drain", "--results", str(tmp_path)]
    said = run("benchmarks.bench", "--baseline", str(wheel), *sizes, database=fresh_database)
    assert f" over {wheel.name}, in turns" in said
    assert measured(said.split("\n\n")[1].splitlines()[1]) == ROWS[0]


def refused(baseline: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench", "--baseline", baseline],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr


def test_what_cannot_be_a_baseline_is_refused(tmp_path: Path) -> None:
    assert refused("no-such-revision").startswith(
        "BASELINE=no-such-revision: neither a revision of this repository nor"
    )
    assert "nowhere.whl: this wheel cannot be read: " in refused(str(tmp_path / "nowhere.whl"))
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("other/__init__.py", "")
    assert refused(str(other)) == f"BASELINE={other}: there is no pgjobs in it\n"


def test_processes_beside_one_with_as_many_threads(fresh_database: str, tmp_path: Path) -> None:
    sizes = ["--jobs", "40", "--rounds", "1", "--split", "1x4", "2x2", "--results", str(tmp_path)]
    said = run("benchmarks.processes", *sizes, database=fresh_database)
    one, two = [[cell.strip() for cell in row.split("|")[1:-1]] for row in said.splitlines() if " x " in row][1:]
    assert (one[0], two[0]) == ("1 x 4", "2 x 2")
    assert len(two) == 5
    assert all(re.fullmatch(r"[\d,.]+", cell) for cell in one[1:])
    assert all(re.fullmatch(r"[\d,.]+ \(\d+\.\d\d\)", cell) for cell in two[1:])
    assert (tmp_path / "processes.json").exists()
    with psycopg.connect(fresh_database) as conn:
        assert conn.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^pgjobs'").fetchall() == []


def test_servers_like_real_ones(tmp_path: Path) -> None:
    sizes = ["--threads", "1", "2", "--batches", "5", "--batch-threads", "1", "--seconds", "0.2", "--rounds", "1"]
    said = run("benchmarks.real", *sizes, "--results", str(tmp_path))
    pings, commits = zip(*re.findall(r": ping ([\d.]+) ms, commit ([\d.]+) ms$", said, re.MULTILINE), strict=True)
    assert [float(time) > 1 for time in pings] == [False, False, True, True]
    assert [float(time) > 1 for time in commits[1:]] == [True] * 3
    assert len(re.findall(r"^\| 1 +(\| [\d,.]+ +){4}\|$", said, re.MULTILINE)) == 4
    assert len(re.findall(r", (no-op|inserts a row): one by one, \d threads? give .*; the best batches", said)) == 8
    assert (tmp_path / "real.json").exists()


def test_a_slow_disk_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert means().endswith("commit_delay is 1 ms instead")
    with slow_disk({}) as server:
        assert commit_time(server.dsn) >= 1


def test_what_a_proxy_holds_back_arrives_in_order_and_whole(fresh_database: str) -> None:
    sent = ["x" * 3_000_000, "last"]
    with further_away(fresh_database, 20) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        started = time.perf_counter()
        with conn.pipeline():
            answers = [conn.execute("SELECT %s::text", [text]) for text in sent]
        assert time.perf_counter() - started >= 0.04
        assert [answer.fetchall() for answer in answers] == [[(text,)] for text in sent]
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def line(name: str, *ratios: float, unit: str = "jobs/s") -> Line:
    return Line(name, unit, now=[1000 * ratio for ratio in ratios], baseline=[1000.0] * len(ratios))


def test_a_row_is_slower_when_its_whole_interval_is_below_the_limit() -> None:
    below = [0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.965, 1.2]  # the 2nd and the 8th of nine are the interval
    reaching = [*below[:-2], 0.98, 1.2]
    slower, not_slower = line("slow", *below), line("other", *reaching)
    assert slower.slower
    assert not not_slower.slower
    assert verdict([slower, not_slower], "1.0") == "Slower than 1.0, the whole interval below 0.97: slow (0.94)."
    assert verdict([not_slower], "1.0") == "Not slower than 1.0: none of 1 rows has its whole interval below 0.97."
    shown = report([slower, not_slower]).splitlines()
    assert [row.partition("  ")[0] for row in shown if "SLOWER" in row] == ["slow"]


def test_a_longer_time_is_slower() -> None:
    longer = line("pickup", 1.1, 1.12, 1.15, unit="ms")
    assert longer.slower
    assert longer.ratio == pytest.approx(1 / 1.12)
    assert not line("pickup", 0.9, 0.91, 0.92, unit="ms").slower


def test_the_interval_is_that_of_the_sign_test() -> None:
    nine, five = interval([9, 8, 7, 6, 5, 4, 3, 2, 1]), interval([1, 2, 3, 4, 5])
    assert (nine.low, nine.high, round(nine.sure, 3)) == (2, 8, 0.961)
    assert (five.low, five.high, round(five.sure, 4)) == (1, 5, 0.9375)


def test_a_verdict_names_its_doubts() -> None:
    few = verdict([line("a", 1.0, 1.0, 1.0)], "1.0", quiet=False)
    assert few.endswith(" (but the machine was not quiet, and an interval of 3 rounds is 75% sure).")


@pytest.mark.skipif(sys.platform != "linux", reason="processor time is read from /proc")
def test_our_processor_time_is_that_of_all_that_we_started() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = tree_time(os.getpid())
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alive = tree_time(os.getpid())
        child.communicate(b"\n")
    ended = tree_time(os.getpid())
    assert alive - before > 0.28
    assert ended - before > 0.28


def grown(results: Path, *parts: str) -> dict[str, Any]:
    """The questions that `make bench-growth` answers, in small."""
    sizes = ["--rows", "200", "--jobs", "40", "--rounds", "1", "--results", str(results)]
    said = run("benchmarks.growth", *sizes, "--parts", *parts)
    questions: dict[str, Any] = json.loads((results / "growth.json").read_text())["questions"]
    assert all(question["title"] in said for question in questions.values())
    return questions


def test_growth_beside_a_backlog(tmp_path: Path) -> None:
    questions = grown(tmp_path, "backlog")
    assert {"200 waiting", "200 future", "200 completed"} < questions.keys()
    for question in questions.values():
        without, beside, *_ = question["arms"]
        assert beside["over"] == [without["name"]]
    assert (tmp_path / "growth-backlog.svg").exists()


def test_growth_by_plans_and_in_one_transaction(tmp_path: Path) -> None:
    questions = grown(tmp_path, "plan", "one_transaction")
    assert questions["plan"]["notes"][1].startswith("200 waiting: job_fetch; ")
    assert questions["worked off"]["arms"][0]["median"] > 0


@pytest.mark.skipif(not shutil.which("cc"), reason="the slow disk is a program in C")
def test_growth_by_threads_and_on_a_slow_disk(tmp_path: Path) -> None:
    assert list(grown(tmp_path, "threads")) == ["threads, this disk", "threads, +1 ms per flush"]
    assert (tmp_path / "growth-threads.svg").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="processor time is read from /proc")
def test_the_profile_shows_where_time_goes() -> None:
    said = run("benchmarks.profile", "--jobs", "60", "--threads", "1", "--batch-size", "10", "--top", "10")
    assert len(re.findall(r"^[\d,]+ jobs/s.* Processor time in us per job: client [\d.]+", said, re.MULTILINE)) == 2
    assert re.search(r"^ +[\d.]+  execution/\w+\.py$", said, re.MULTILINE)
    assert re.search(r'^ +[\d.]+ .* UPDATE "pgjobs"\.job', said, re.MULTILINE)


def test_the_crash_benchmark_finds_that_we_leave_no_effect_without_a_finished_job() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.crash",
            "--queues",
            "pgjobs",
            "--kills",
            "2",
            "--jobs",
            "800",
            "--again",
            "0",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row = done.stdout.splitlines()[1]
    assert row.split()[:4] == ["pgjobs", "2", "0", "(0-0)"]


def test_the_bulk_benchmark_prints_its_table(fresh_database: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bulk", "--jobs", "400", "--dsn", fresh_database],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    head, _, *rows = done.stdout.splitlines()
    assert head.startswith("| way | jobs | jobs/s | client MB | notifications |")
    assert [row.split(" | ")[:2] for row in rows] == [["| with ids", "40"], ["| without", "400"], ["| unique", "20"]]
    assert [row.split(" | ")[4] for row in rows] == ["1"] * 3, "one notification, however many jobs"


def test_the_waking_benchmark_prints_its_tables(fresh_database: str) -> None:
    small = ["--clients", "2", "3", "--seconds", "1", "--rounds", "1", "--jobs", "10"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.wake", *small],
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": fresh_database},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    commits, pickup = done.stdout.split("\n\n")
    assert [row.split()[0] for row in commits.splitlines()[2:]] == ["2", "3"]
    assert all(re.fullmatch(r" +\d+( +[\d,]+ \d+\.\d\d +){4}", row + " ") for row in commits.splitlines()[2:])
    assert [row.split()[:2] for row in pickup.splitlines()[2:]] == [["sparse", "10"], ["dense", "10"]]
