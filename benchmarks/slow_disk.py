"""A server whose disk is slower than this machine's: each flush takes a millisecond longer (slow_flush.c)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg

from benchmarks.ground import WrongResult, look_long_up
from pgjobs.embedded import EmbeddedPostgres

_SOURCE = Path(__file__).with_name("slow_flush.c")
_COMMITS = 50


@contextmanager
def slow_disk(settings: Mapping[str, str]) -> Iterator[EmbeddedPostgres]:
    """A server whose every flush takes a millisecond longer, by a library that is compiled now and preloaded into it.

    Where that cannot be, commit_delay makes each flush begin a millisecond later. Commits that come meanwhile join that
    flush; on a slow disk they wait for the next, so the real thing is slower for many threads.
    """
    with tempfile.TemporaryDirectory() as directory:
        library = _compiled(Path(directory))
        delayed = {"wal_sync_method": "fdatasync"} if library else {"commit_delay": "1000", "commit_siblings": "0"}
        server = EmbeddedPostgres(settings={**delayed, **settings})
        with _preloaded(library):
            server.start()
        try:
            look_long_up(server.dsn)
            _check(server)
            yield server
        finally:
            server.stop()


def means() -> str:
    """How the flushes are made slower on this machine."""
    return "fdatasync takes 1 ms longer" if _compiler() else "no C compiler or not Linux: commit_delay is 1 ms instead"


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") if sys.platform == "linux" else None


def _compiled(directory: Path) -> Path | None:
    compiler, library = _compiler(), directory / "slow_flush.so"
    if compiler is None:
        return None
    directory.chmod(0o755)  # the server may be another user's
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, _SOURCE, "-ldl"], check=True)
    return library


@contextmanager
def _preloaded(library: Path | None) -> Iterator[None]:
    """Processes that are started in the block load the library."""
    if library is None:
        yield
        return
    os.environ["LD_PRELOAD"] = str(library)
    try:
        yield
    finally:
        del os.environ["LD_PRELOAD"]


def _check(server: EmbeddedPostgres) -> None:
    """Raise unless it works: no commit may take less time than it adds."""
    if (took := commit_time(server.dsn)) < 1:
        raise WrongResult(f"a commit takes {took:.2f} ms: the disk is not slow")


def commit_time(dsn: str) -> float:
    """How long a transaction of one INSERT takes, in ms: the mean."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE flushed (n int)")
        started = time.perf_counter()
        for n in range(_COMMITS):
            conn.execute("INSERT INTO flushed VALUES (%s)", [n])
        took = (time.perf_counter() - started) / _COMMITS
        conn.execute("DROP TABLE flushed")
    return 1000 * took
