"""A worker process of the demo: how the demo starts, freezes, kills and stops it, and the program that it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from pgjobs import Client, PgjobsError
from pgjobs.demo import app


class DemoFailed(PgjobsError):
    """The demo cannot go on; the text says why."""


class WorkerProcess:
    """The process, seen from the demo."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.name = name
        self.process = process
        self._log = log

    def __str__(self) -> str:
        return f"{self.name} (process {self.process.pid})"

    def check(self) -> None:
        """Raise if it ended by itself."""
        if self.process.poll() not in (None, -signal.SIGKILL):
            raise DemoFailed(f"{self.name} ended with code {self.process.returncode}:\n{self._log_tail()}")

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop it as a service manager does, with SIGTERM."""
        self.process.terminate()
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"{self.name} did not stop within 15 s:\n{self._log_tail()}") from None
        if self.process.returncode:
            raise DemoFailed(f"{self.name} stopped with code {self.process.returncode}:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-3000:]


@contextmanager
def start_worker(dsn: str, name: str) -> Iterator[WorkerProcess]:
    """A worker process, killed on the way out if it is still there."""
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, name],
            env=os.environ | {"DATABASE_URL": dsn},  # not an argument, which every user of the machine can read
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            process_group=0,  # Ctrl-C in the terminal goes to the demo alone, which then ends its workers
        ) as process,
    ):
        try:
            yield WorkerProcess(name, process, log)
        finally:
            process.kill()


def _main(name: str) -> None:
    warnings.simplefilter("ignore")  # about the source files that are parsed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with Client(os.environ["DATABASE_URL"], schema=app.SCHEMA, id=name) as client:
        app.work(client)


def _end_with_parent() -> None:
    os.read(0, 1)  # the demo never writes into this pipe; it closes when the demo ends, even by kill -9
    os._exit(1)


if __name__ == "__main__":
    _main(sys.argv[1])
