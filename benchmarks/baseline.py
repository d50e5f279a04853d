"""Two versions of pgjobs, each in a directory of its own, and a process that does one piece of work with one of them.

The present version is copied too, so that files may be edited while it is measured. Both run on this interpreter and
the packages that it has.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

from benchmarks.ground import WrongResult
from benchmarks.workload import DEADLINE

_HERE = Path(__file__).parent
_ROOT = _HERE.parent
_PARTS = ("pgjobs", "sql")  # in a checkout; a wheel has both in one


@dataclass(frozen=True)
class Side:
    """A version of pgjobs, and the schema that it works in."""

    name: str
    path: tuple[Path, Path]  # its own, and that of the benchmarks
    dsn: str
    schema: str

    def migrate(self) -> None:
        with Process(self, "migrate", 0, {}) as process:
            process.run()


def present() -> str:
    """The name of the present version."""
    try:
        return f"the present code ({_git('describe', '--always', '--dirty').decode().strip()})"
    except (OSError, subprocess.CalledProcessError):
        return "the present code"


def present_side(folder: Path, dsn: str, schema: str) -> Side:
    """The present version, copied into this folder."""
    copy_present(folder)
    return Side(present(), (folder / "now", folder / "bench"), dsn, schema)


def copy_present(into: Path) -> None:
    """Its parts, and this package."""
    left_out = shutil.ignore_patterns("__pycache__")
    for part in _PARTS:
        if (_ROOT / part).is_dir():
            shutil.copytree(_ROOT / part, into / "now" / part, ignore=left_out)
    (into / "bench").mkdir()
    for module in _HERE.glob("*.py"):
        target = into / "bench" / _HERE.name / module.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(module, target)


def copy_baseline(given: str, into: Path) -> str:
    """Unpack a git revision or a wheel. Returns its name."""
    target = into / "baseline"
    target.mkdir()
    name = _unpack_wheel(Path(given), target) if given.endswith(".whl") else _unpack_revision(given, target)
    if not (target / "pgjobs" / "__init__.py").is_file():
        raise SystemExit(f"BASELINE={given}: there is no pgjobs in it")
    return name


def _unpack_wheel(wheel: Path, target: Path) -> str:
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    except (OSError, zipfile.BadZipFile) as error:
        raise SystemExit(f"BASELINE={wheel}: this wheel cannot be read: {error}") from None
    return wheel.name


def _unpack_revision(revision: str, target: Path) -> str:
    try:
        commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
        there = _git("ls-tree", "--name-only", commit).decode().splitlines()
        packed = _git("archive", "--format=zip", commit, *(part for part in _PARTS if part in there))
        subject = _git("log", "-1", "--format=%h (%s)", commit).decode().strip()
    except FileNotFoundError:
        raise SystemExit(f"BASELINE={revision}: git is not installed; give a wheel") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode().strip() or "no such revision"
        raise SystemExit(
            f"BASELINE={revision}: neither a revision of this repository nor a .whl file: {said}"
        ) from None
    with zipfile.ZipFile(BytesIO(packed)) as archive:
        archive.extractall(target)
    return subject


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, check=True).stdout


class Process:
    """Runs `workload.py` with the pgjobs of one side. It is ready when the block begins, and ends with the block."""

    def __init__(self, side: Side, work: str, jobs: int, options: Mapping[str, Any]) -> None:
        self._side = side
        task = {"work": work, "dsn": side.dsn, "schema": side.schema, "jobs": jobs, "options": options}
        # -P: else the directory it is started in would come first
        self._command = [sys.executable, "-P", "-m", "benchmarks.workload", json.dumps(task)]

    def __enter__(self) -> Self:
        path = [*map(str, self._side.path), os.environ.get("PYTHONPATH", "")]
        self._child = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        )
        self._alarm = threading.Timer(DEADLINE, self._child.kill)
        self._alarm.start()
        try:
            found = Path(self.hear()["pgjobs"])
            if not found.is_relative_to(self._side.path[0]):
                raise WrongResult(f"{self._side.name} should be measured, but {found} was imported")
        except BaseException:
            self._end(kill=True)
            raise
        return self

    def __exit__(self, raised: type[BaseException] | None, *_: object) -> None:
        self._end(kill=raised is not None)

    def _end(self, *, kill: bool) -> None:
        if kill:
            self._child.kill()
        with self._child:  # closes its input, which ends it, and waits
            pass
        self._alarm.cancel()

    def run(self) -> dict[str, Any]:
        """Do the work. Returns what the process reports."""
        self.tell()
        return self.hear()

    def tell(self) -> None:
        """Let the process begin its work, or end it where the work waits for this."""
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The next message of the process."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"the process that ran {self._side.name} ended too early; what it said stands above")
        said: dict[str, Any] = json.loads(line)
        return said
