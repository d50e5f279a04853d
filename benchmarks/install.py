"""Installs the libraries that pgjobs is compared with: into a directory of the user's cache, never beside pgjobs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgjobs-benchmarks"
_NODE = 22  # the oldest that the newest releases of the libraries run on
_TRIES = 5  # releases of an npm package, the newest first


class CannotInstall(Exception):
    """Why a library cannot be had on this machine."""


def python_home(name: str, *packages: str, minimum: tuple[int, int] = (3, 11), upgrade: bool = False) -> Path:
    """The interpreter of an environment that has these packages; with `upgrade`, the newest that pip finds."""
    home = CACHE / name
    python, marker = home / "bin" / "python", home / "installed"
    if marker.exists() and not upgrade:
        return python
    if not python.exists():
        _run([*_interpreter(minimum), "-m", "venv", str(home)])
    options = ["--upgrade", "--upgrade-strategy", "eager"] if upgrade else []
    try:
        _run([str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *options, *packages])
    except CannotInstall:
        if not marker.exists():
            raise  # else what was installed before is taken: an index that cannot be reached is no reason to stop
    marker.touch()
    return python


def node_home(name: str, *packages: str) -> tuple[str, Path]:
    """node, and a directory with these packages."""
    node, home = _node(0), CACHE / name
    if not (home / "installed").exists():
        _npm(node, home, *packages)
        (home / "installed").touch()
    return node, home


def newest_node_home(name: str, package: str) -> tuple[str, Path, str]:
    """node, a directory with the newest release of this package that can be installed, and why it is not the newest.

    It may not be when a mirror of the registry lags behind with a dependency.
    """
    node, home = _node(_NODE), CACHE / name
    try:
        versions = json.loads(_run([_npm_path(), "view", package, "versions", "--json"], node=node))
    except CannotInstall:
        if package_version(home, package) is None:
            raise
        return node, home, "the registry could not be asked"
    released = sorted((version for version in versions if re.fullmatch(r"[\d.]+", version)), key=_ordered)
    refused: list[str] = []
    for version in reversed(released[-_TRIES:]):
        try:
            if package_version(home, package) != version:
                _npm(node, home, f"{package}@{version}")
        except CannotInstall as error:
            refused.append(f"{version} cannot be installed: {error}")
        else:
            return node, home, "; ".join(refused)
    raise CannotInstall(refused[0] if refused else f"npm has no release of {package}")


def package_version(home: Path, package: str) -> str | None:
    """The installed version of an npm package."""
    try:
        return str(json.loads((home / "node_modules" / package / "package.json").read_text())["version"])
    except FileNotFoundError:
        return None


def python_version(python: Path, package: str) -> str:
    """The installed version of a Python package."""
    return _run([str(python), "-c", f"import importlib.metadata as m; print(m.version({package!r}))"]).strip()


def interpreter(program: str | Path) -> str:
    """What it calls itself: Python 3.13.0, or node v26.10.0."""
    said = _run([str(program), "--version"]).strip()
    return f"node {said}" if said.startswith("v") else said


def _interpreter(minimum: tuple[int, int]) -> list[str]:
    """This one if it is new enough, else one that the PATH has; a version manager's shim is told which to run."""
    if sys.version_info >= minimum:
        return [sys.executable]
    for minor in range(sys.version_info.minor + 9, minimum[1] - 1, -1):
        name = f"python3.{minor}"
        if (found := shutil.which(name)) is None:
            continue
        version = subprocess.run(["pyenv", "whence", name], capture_output=True, text=True, check=False).stdout.split()
        for command in ([found], ["env", f"PYENV_VERSION={version[-1]}", found] if version else []):
            if command and subprocess.run([*command, "-c", ""], capture_output=True, check=False).returncode == 0:
                return command
    raise CannotInstall(f"it needs Python {minimum[0]}.{minimum[1]} or newer, and there is none on the PATH")


def _node(minimum: int) -> str:
    """The PATH's if it is new enough, else the newest that npm has."""
    found = shutil.which("node")
    if found is None:
        raise CannotInstall("it needs node and npm, and there is none on the PATH")
    if int(_run([found, "--version"]).strip().removeprefix("v").split(".")[0]) >= minimum:
        return found
    home = CACHE / "node"
    node = home / "node_modules" / ".bin" / "node"
    if not node.exists():
        _npm(found, home, "node@latest")
    return str(node)


def _npm(node: str, home: Path, *packages: str) -> None:
    home.mkdir(parents=True, exist_ok=True)
    _run([_npm_path(), "install", "--loglevel", "error", "--no-fund", "--no-audit", *packages], node=node, cwd=home)


def _npm_path() -> str:
    npm = shutil.which("npm")
    if npm is None:
        raise CannotInstall("it needs npm, and there is none on the PATH")
    return npm


def _run(command: Sequence[str], *, node: str | None = None, cwd: Path | None = None) -> str:
    # npm runs on the node that it installs for: it looks for releases that this one can run
    path = f"{Path(node).parent}{os.pathsep}{os.environ['PATH']}" if node else os.environ["PATH"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, "PATH": path}
    )
    if done.returncode != 0:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise CannotInstall(next((line for line in said if "No matching" in line), said[-1] if said else str(command)))
    return done.stdout


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
