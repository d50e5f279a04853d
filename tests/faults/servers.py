"""Servers to be broken: one of the tests' own, a pooler, a small disk, a network of its own."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import TypeVar
from urllib.parse import parse_qs, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgjobs.embedded import EmbeddedPostgres
from tests.waiting import wait_until

Result = TypeVar("Result")

_CLONE_NEWNET = 0x40000000
_NOBODY = 65534

PGBOUNCER = which("pgbouncer") or which("/usr/sbin/pgbouncer")
FAKETIME = which("faketime")
ROOT_ON_LINUX = os.geteuid() == 0 and which("ip") is not None and which("nsenter") is not None


def port_of(dsn: str) -> int:
    return int(conninfo_to_dict(dsn)["port"] or 5432)


def through(dsn: str, port: int) -> str:
    """The same database, by way of another port of the loopback."""
    return make_conninfo(dsn, host="127.0.0.1", port=port)


def ready(dsn: str) -> bool:
    """Whether a connection can be made."""
    try:
        psycopg.connect(dsn, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def pgbouncer(dsn: str, *, ignores: str = "extra_float_digits") -> Iterator[int]:
    """PgBouncer in transaction mode with four connections to the server; gives its port. It refuses startup parameters
    that it does not know, but for those that it is told to swallow."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    settings = f"""
[databases]
* = host=127.0.0.1 port={port_of(dsn)} user={conninfo_to_dict(dsn)["user"]}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
max_client_conn = 200
ignore_startup_parameters = {ignores}
"""
    user = _NOBODY if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        file = Path(directory, "pgbouncer.ini")
        file.write_text(settings)
        with (
            Path(directory, "log").open("wb") as log,
            subprocess.Popen(
                [str(PGBOUNCER), str(file)],
                stdout=log,
                stderr=log,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            ) as process,
        ):
            try:
                wait_until(lambda: ready(through(dsn, port)))
                yield port
            finally:
                process.kill()


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A directory on a disk of this size."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", directory], check=True)
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)


class Network:
    """A network of its own: what is started in it reaches the loopback there and nothing else.

    In it packets can be made to vanish, so that nobody is told that a connection is gone.
    """

    def __init__(self, keeper: int) -> None:
        self._enter = ["nsenter", f"--target={keeper}", "--net"]

    def _ip(self, *arguments: str) -> None:
        subprocess.run([*self._enter, "ip", *arguments], check=True)

    def swallow(self) -> None:
        """From now on every packet to 127.0.0.1 is lost without a word."""
        self._ip("route", "del", "local", "127.0.0.1", "table", "local")
        self._ip("route", "add", "blackhole", "127.0.0.1", "table", "local")

    def mend(self) -> None:
        self._ip("route", "del", "blackhole", "127.0.0.1", "table", "local")
        self._ip("route", "add", "local", "127.0.0.1", "dev", "lo", "table", "local")


def in_a_network_of_its_own(make: Callable[[], Result]) -> Result:
    """Call this with a new network around it; the processes that it starts stay there."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            results.append(make())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter)  # a network belongs to a thread, and the thread's children
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def socket_dsn(server: EmbeddedPostgres) -> str:
    """The way to a server by its socket, where its network cannot be reached."""
    parts = urlsplit(server.dsn)
    assert not parse_qs(parts.query), "it listens on a socket alone"
    return f"postgresql://pgjobs@/postgres?host={server.data_dir / 'cluster'}&port={parts.port}"
