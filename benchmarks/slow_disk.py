"""A server whose disk is slower than this machine's: each flush takes a millisecond longer (slow_flush.c)."""

from __future__ import annotations

import os
import shutil
import subprocess
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
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("a slower disk is made by a C program: there is no cc; leave it out with --parts")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)  # the server may be another user's
        library = Path(directory, "slow_flush.so")
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, _SOURCE, "-ldl"], check=True)
        server = EmbeddedPostgres(settings={"wal_sync_method": "fdatasync", **settings})
        os.environ["LD_PRELOAD"] = str(library)
        try:
            server.start()
        finally:
            del os.environ["LD_PRELOAD"]
        try:
            look_long_up(server.dsn)
            _check(server)
            yield server
        finally:
            server.stop()


def _check(server: EmbeddedPostgres) -> None:
    """The library was loaded: no commit takes less than it adds."""
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE flushed (n int)")
        started = time.perf_counter()
        for n in range(_COMMITS):
            conn.execute("INSERT INTO flushed VALUES (%s)", [n])
        took = (time.perf_counter() - started) / _COMMITS
        conn.execute("DROP TABLE flushed")
    if took < 0.001:
        raise WrongResult(f"a commit takes {1000 * took:.2f} ms: the disk is not slow")
