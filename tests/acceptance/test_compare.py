"""The comparison with other queues, as far as it goes without installing any: its own part, the checks, the charts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psycopg
import pytest

from benchmarks.chart import bars, lines
from benchmarks.compare import SETTINGS, Bench, Refused
from benchmarks.compare_report import Figures
from benchmarks.contenders import PGJOBS, Way, pgjobs_itself
from pgjobs.embedded import EmbeddedPostgres

pytestmark = pytest.mark.tools

ROOT = Path(__file__).parent.parent.parent
ROWS = ["drain, no-op handler", "drain, the handler inserts one row", "pickup", "enqueue, one", "enqueue in bulk"]


def test_it_prints_a_table_and_writes_json_and_charts(tmp_path: Path) -> None:
    arguments = ["--queues", "pgjobs", "--jobs", "20", "--rounds", "2", "--results", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.compare", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for row in ROWS:
        assert f"\n{row}" in done.stdout
    assert "refused" not in done.stdout
    found = json.loads((tmp_path / "peers.json").read_text())["rows"]
    assert {len(figure["values"]) for row in found.values() for figure in row.values()} == {2}
    charts = [path.name for path in sorted(tmp_path.glob("*.svg"))]
    assert charts == ["peers-effect.svg", "peers-noop.svg", "peers-p50.svg"]


def test_all_ratios_over_each_peer_stand_in_one_table() -> None:
    figures = Figures(atomic={("pq", "in transaction")})
    for name, way, row, value in [
        ("pgjobs", "", "noop", 200.0),
        ("pgjobs", "batch", "noop", 3000.0),
        ("pgjobs", "", "p50", 3.0),
        ("pq", "in transaction", "noop", 100.0),
        ("pq", "", "p50", 2.0),
        ("huey", "", "p50", 6.0),
        ("boss", "", "noop", 400.0),
        ("boss", "slow", "noop", 50.0),
        ("boss", "", "p50", 1.0),
    ]:
        figures.add(row, name, way, value)
    table = str(figures).partition("pgjobs over each\n")[2]
    rows = [re.split(r"  +", row) for row in table.split("\n\n")[0].splitlines()[2:]]
    assert rows == [
        ["boss", "0.50", "7.50", "3.00"],
        ["pq, in transaction *", "2.00", "30.00", "1.50"],
        ["boss, slow", "4.00", "60.00"],
        ["huey", "0.50"],
    ]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with EmbeddedPostgres(tcp=True, fsync=False, settings=SETTINGS) as server:
        yield Bench(server, PGJOBS, pgjobs_itself())


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("INSERT INTO effect VALUES (1)", "20 jobs, but 21 effects of 20 different ones"),
        ("UPDATE effect SET n = 1 WHERE n = 2", "20 jobs, but 20 effects of 19 different ones"),
        ("DELETE FROM pgjobs.job WHERE (args ->> 'n')::int = 7", "20 jobs, but 19 are recorded as finished"),
    ],
)
def test_a_run_that_lost_or_doubled_something_gives_no_figure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, act: str, reason: str
) -> None:
    waited = Bench._all_done

    def meddle(self: Bench, conn: psycopg.Connection[Any], handler: str, jobs: int) -> float:
        ended = waited(self, conn, handler, jobs)
        conn.execute(act.encode())
        return ended

    monkeypatch.setattr(Bench, "_all_done", meddle)
    with pytest.raises(Refused, match=reason):
        bench.drain("effect", Way(20, {"threads": 2}))


def test_a_worker_that_fails_says_why(bench: Bench) -> None:
    with pytest.raises(Refused, match="threads is a whole number from 1 to 10000, not 0"):
        bench.drain("noop", Way(20, {"threads": 0}))


def test_bars_are_as_long_as_their_values(tmp_path: Path) -> None:
    bars(tmp_path / "a.svg", "Rate", "jobs/s", [("a & b", 100, True), ("<c>", 25, False)])
    svg = ElementTree.parse(tmp_path / "a.svg").getroot()
    widths = [float(part.get("width", 0)) for part in svg.findall(".//{*}rect")]
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01)
    texts = [part.text for part in svg.findall(".//{*}text")]
    assert texts == ["Rate, jobs/s", "a & b", "100", "<c>", "25"]


def test_lines_go_through_their_points(tmp_path: Path) -> None:
    lines(tmp_path / "a.svg", "Rate", "rows", "jobs/s", {"flat": [(1, 5), (10, 5), (100, 5)]}, log_x=True)
    points = [
        (part.get("cx"), part.get("cy")) for part in ElementTree.parse(tmp_path / "a.svg").findall(".//{*}circle")
    ]
    (left, y), (middle, same), (right, again) = [(float(x or 0), float(at or 0)) for x, at in points]
    assert y == same == again
    assert middle == pytest.approx((left + right) / 2, abs=0.2)
