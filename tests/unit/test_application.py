"""How the command line finds a client or worker pool of the application, and what it says if it does not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgjobs import Client, WorkerPool
from pgjobs.application import ApplicationNotLoaded, load

POOL = """
from pgjobs import Client, WorkerPool
client = Client("postgresql://localhost/none")
pool = WorkerPool(client, {"job": lambda tx, job: None})
def make():
    return pool
class holder:
    inner = pool
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, whose modules are forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("target", ["found:pool", "found:make", "found:holder.inner", "in_package.found:make"])
def test_a_pool_is_found(directory: Path, target: str) -> None:
    (directory / "in_package").mkdir()
    (directory / "in_package" / "found.py").write_text(POOL)
    (directory / "found.py").write_text(POOL)
    assert isinstance(load(target, WorkerPool), WorkerPool)
    assert sys.path[0] == str(directory)


@pytest.mark.parametrize(
    "target", ["app", "app:", ":pool", "", "app.py:pool()", "app/worker:pool", "a b:c", "a:b:c", "a..b:c", "app:1"]
)
def test_a_target_of_another_form_is_refused(target: str) -> None:
    with pytest.raises(ApplicationNotLoaded) as raised:
        load(target, WorkerPool)
    assert str(raised.value).startswith(f"{target!r} does not say where the WorkerPool is: give module:object, ")


NOT_LOADED = {
    "absent": ("broken:none", "", "module broken ({}/broken.py) has no 'none'"),
    "misspelt": ("broken:pol", POOL, "module broken ({}/broken.py) has no 'pol': is pool meant?"),
    "misspelt function": ("broken:mkae", "def make(): ...", "has no 'mkae': is make meant?"),
    "misspelt function beside a pool": ("broken:mkae", POOL, "has no 'mkae': is make meant?"),
    "another name": ("broken:app", POOL, "has no 'app': is pool meant?"),
    "client": ("broken:client", POOL, "broken:client is Client(schema='pgjobs', "),
    "number": ("broken:number", "number = 1", "broken:number is 1, not a WorkerPool: give module:object, where "),
    "nothing": ("broken:make", "def make(): ...", "broken:make returned None, not a WorkerPool: give module:object"),
    "arguments": ("broken:make", "def make(dsn): ...", "broken:make cannot be called without arguments: missing"),
    "no submodule": ("broken.sub:pool", "", "there is no module 'broken.sub' in {}, nor elsewhere on sys.path"),
    "no package": ("none_such.sub:pool", "", "there is no module 'none_such' in {}, nor elsewhere on sys.path"),
}


@pytest.mark.parametrize(("target", "text", "why"), NOT_LOADED.values(), ids=NOT_LOADED)
def test_the_error_says_what_is_wrong(directory: Path, target: str, text: str, why: str) -> None:
    (directory / "broken.py").write_text(text)
    with pytest.raises(ApplicationNotLoaded) as raised:
        load(target, WorkerPool)
    assert why.format(directory) in str(raised.value)
    assert raised.value.trace is None


RAISED = {
    "make": ("raising:make", "def make():\n    1 / 0", "raising:make raised ZeroDivisionError: division by zero"),
    "lines": ("raising:pool", "raise OSError('two\\nlines')", "importing raising raised OSError: two"),
    "import": ("raising:pool", "import none_such", "importing raising raised ModuleNotFoundError: No module named"),
    "syntax": ("raising:pool", "def broken(:", "importing raising raised SyntaxError: invalid syntax"),
    "exit": ("raising:pool", "raise SystemExit(3)", "importing raising raised SystemExit: 3"),
}


@pytest.mark.parametrize(("target", "text", "why"), RAISED.values(), ids=RAISED)
def test_the_traceback_is_that_of_the_application(directory: Path, target: str, text: str, why: str) -> None:
    (directory / "raising.py").write_text(text)
    with pytest.raises(ApplicationNotLoaded) as raised:
        load(target, WorkerPool)
    assert why in str(raised.value)
    trace = raised.value.trace
    assert trace is not None
    assert f'File "{directory}/raising.py", line ' in trace
    assert "pgjobs/application" not in trace
    assert "importlib" not in trace
    assert str(directory / "raising.py") in raised.value.files, "a change of it may mend that"
    assert raised.value.place is not None
    assert raised.value.place.startswith(f"{directory}/raising.py, line ")


def test_one_of_several_kinds_is_found_and_named(directory: Path) -> None:
    (directory / "found.py").write_text(f"{POOL}number = 1\n")
    assert isinstance(load("found:client", Client, WorkerPool), Client)
    assert isinstance(load("found:make", Client, WorkerPool), WorkerPool)
    for target, why in {
        "found:number": "found:number is 1, not a Client or WorkerPool: give module:object, where ",
        "found:none": "module found ({}/found.py) has no 'none': is client or pool meant?",
        "found": "'found' does not say where the Client or WorkerPool is: give module:object, where ",
    }.items():
        with pytest.raises(ApplicationNotLoaded) as raised:
            load(target, Client, WorkerPool)
        assert str(raised.value).startswith(why.format(directory))


def test_a_package_without_a_file_is_named_all_the_same(directory: Path) -> None:
    (directory / "bare").mkdir()
    with pytest.raises(ApplicationNotLoaded, match=r"^module bare has no 'pool'$"):
        load("bare:pool", WorkerPool)


@pytest.mark.parametrize("text", ["raise KeyboardInterrupt", "def make():\n    raise KeyboardInterrupt"])
def test_ctrl_c_is_no_fault_of_the_application(directory: Path, text: str) -> None:
    (directory / "raising.py").write_text(text)
    with pytest.raises(KeyboardInterrupt):
        load("raising:make", WorkerPool)
