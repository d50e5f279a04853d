"""Parts of `pgjobs work`: limits, the watch over files, messages, and the arguments of the command."""

from __future__ import annotations

import json
import os
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pgjobs import cli
from pgjobs.cli import work
from pgjobs.processes import code_files
from pgjobs.processes.limits import JobLimit, Limits, resident_bytes
from pgjobs.processes.messages import Channel, Report, State
from pgjobs.processes.reloader import Reloader
from pgjobs.processes.settings import ChildSettings

# --- limits


def test_jobs_and_age_are_lowered_by_chance_and_a_tenth_at_most() -> None:
    assert Limits(max_jobs=1000, chance=lambda: 0.0).max_jobs == 1000
    assert Limits(max_jobs=1000, chance=lambda: 0.999).max_jobs == 901
    assert Limits(max_jobs=5, chance=lambda: 0.999).max_jobs == 5
    assert Limits(max_age=0.001, chance=lambda: 0.999).reached() is None
    old = Limits(max_age=1e-9)
    reached = old.reached()
    assert reached is not None
    assert reached.endswith("(--max-age)")


def test_memory_is_compared_as_it_is() -> None:
    assert Limits(max_rss=resident_bytes() * 2).reached() is None
    reached = Limits(max_rss=resident_bytes() // 2).reached()
    assert reached is not None
    assert reached.startswith("it uses ")


def test_the_memory_of_this_process_grows_with_what_it_keeps() -> None:
    before = resident_bytes()
    kept = bytearray(os.urandom(1 << 20) * 64)
    assert resident_bytes() - before > 32 << 20
    assert kept


def test_the_limit_of_jobs_is_told_once() -> None:
    told: list[str] = []
    limit = JobLimit(2, told.append)
    job: Any = None
    for _ in range(4):
        limit.on_finish(job, None)
    assert told == ["it has run 2 jobs (--max-jobs)"]


# --- files


def test_a_change_is_told_once_the_files_keep_still(tmp_path: Path) -> None:
    first, second, gone = (tmp_path / name for name in ("first.py", "second.py", "gone.py"))
    first.write_text("")
    second.write_text("")
    reloader = Reloader()
    reloader.watch(map(str, (first, second, gone)))
    assert reloader.changed() == []
    os.utime(second, (1, 1))
    assert reloader.changed() == [], "more may come"
    gone.write_text("")
    assert reloader.changed() == []
    assert reloader.changed() == [str(second), str(gone)]
    assert reloader.changed() == []
    first.unlink()
    assert reloader.changed() == []
    assert reloader.changed() == [str(first)]


def test_files_of_python_and_of_packages_are_not_the_applications(tmp_path: Path) -> None:
    for module in (os, pytest, code_files):
        assert module.__file__ is not None
        assert not code_files.is_of_application(module.__file__)
    mine = tmp_path / "mine.py"
    assert code_files.is_of_application(str(mine))
    assert str(mine) in code_files.loaded_files([str(mine)])
    assert str(Path(__file__)) in code_files.loaded_files()


def test_the_place_of_a_frame_is_the_innermost_line_of_the_application() -> None:
    def inner() -> str:
        return code_files.place_of(sys._getframe())

    assert inner().startswith(f"{__file__}, line ")
    assert inner().endswith(", in inner")


# --- messages


def test_messages_arrive_whole_and_in_order() -> None:
    ours, theirs = socket.socketpair()
    sending, receiving = Channel(ours), Channel(theirs)
    report = Report(state=State.FAILED, reason="ä\nb", files=("x" * 100_000,), healthy=False)
    received: list[Any] = []
    theirs.setblocking(False)
    ours.setblocking(True)
    sending.send({"first": 1})
    sending.send(report.to_json())
    while len(received) < 2:
        received += receiving.receive()
    assert received[0] == {"first": 1}
    assert Report.from_json(received[1]) == report
    assert receiving.receive() == []
    sending.close()
    with pytest.raises(EOFError):
        receiving.receive()
    receiving.send({"to": "nobody"})
    receiving.close()


def test_an_offer_is_dropped_when_the_socket_is_full_and_what_is_sent_later_arrives() -> None:
    ours, theirs = socket.socketpair()
    sending, receiving = Channel(ours), Channel(theirs)
    ours.setblocking(False)
    theirs.setblocking(False)
    offered = 0
    while sending.offer("read gauges"):
        offered += 1
    received: list[Any] = []
    while found := receiving.receive():
        received += found
    assert received == ["read gauges"] * offered
    sending.send("stop")
    assert receiving.receive() == ["stop"]
    sending.close()
    receiving.close()


# --- arguments


def test_a_time_is_read() -> None:
    assert work.some_time("25s") == timedelta(seconds=25)


def test_a_size_is_read() -> None:
    assert [work.size(text) for text in ("64K", "512M", "2G")] == [64 << 10, 512 << 20, 2 << 30]


def test_queues_are_read() -> None:
    assert work.queues("default=10, mail") == {"default": 10, "mail": None}


def test_auto_processes_heed_the_limits_of_the_process_and_its_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr(work, "_CPU_LIMIT", limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert work.processes("auto") == 8
    for text, number in {"max 100000": 8, "150000 100000": 2, "1000 100000": 1, "9900000 100000": 8}.items():
        limit.write_text(text)
        assert work.processes("auto") == number
    assert work.processes("3") == 3


WRONG = (
    "--stop-timeout=x", "--stop-timeout=0s", "--stop-timeout=-1s", "--max-age=1 h", "--max-age=1H",
    "--max-age=9999999999d", "--max-age=s", "--max-rss=512", "--max-rss=512m", "--max-rss=0M", "--max-rss=1.5G",
    "--max-jobs=0", "--max-jobs=1e3", "--max-jobs=-1", "--processes=0", "--processes=many", "--queues=",
    "--queues=default=0", "--queues=default=x", "--queues=default,default=2", "--queues=a,,b", "--log-level=loud",
    "--log-format=xml", "--health=80", "--health=localhost:http", "--health=a:65536", "--health=::1:80",
)  # fmt: skip


@pytest.mark.parametrize("argument", WRONG)
def test_a_wrong_argument_is_refused_by_its_name_and_value(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["work", "app:pool", argument])
    name, _, value = argument.partition("=")
    told = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2
    assert told.startswith(f"pgjobs work: error: argument {name}: ")
    assert repr(value) in told


def test_a_system_without_what_it_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pgjobs.processes.supervisor", None)
    assert cli.main(["work", "app:pool"]) == 1


def test_settings_travel_as_json() -> None:
    settings = ChildSettings(target="app:pool", queues={"a": None, "b": 2}, max_age=1.5)
    assert ChildSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
